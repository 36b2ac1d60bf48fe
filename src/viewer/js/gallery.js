// Studies: one is opened, the others stand in a list that sorts by what they score.

const many = data.studies.length > 1;
const order = data.studies.map((_, index) => index);

/** Unpacks a study and shows it from its middle. */
async function open(index) {
  const study = data.studies[index];
  state.index = index;
  element("study-name").textContent = study.name;
  element("fault").hidden = true;
  document.body.removeAttribute("data-study");
  const found = await voxels(index, study).catch(error => fail(study, error));
  if (!found || state.index !== index) return;
  Object.assign(state, { study, shades: found, sentence: null, finding: null, pointed: new Set(), structures: new Set(), zoom: 1 });
  const { shape, spacing_mm: spacing, factor } = study.volume, axes = [2, 1, 0];
  const side = axes.map(axis => spacing[axis].toFixed(spacing[axis] < 10 ? 2 : 1)).join(" × ");
  const reduced = factor.some(times => times > 1) ? `, each the mean of ${axes.map(axis => factor[axis]).join(" × ")} of what the model saw` : "";
  element("facts").textContent = `${axes.map(axis => shape[axis]).join(" × ")} voxels of ${side} mm${reduced}`;
  document.querySelectorAll('[data-overlay="attention"]').forEach(button => { button.hidden = !study.structures.some(own => own.attention); });
  if (state.overlay === "attention" && !study.structures.some(own => own.attention)) state.overlay = "patches";
  views.forEach(view => { view.centre = [0.5, 0.5]; });
  go(shape.map(count => count / 2));
  fit();
  ["study", "overlay"].forEach(changed);
  document.body.dataset.study = String(index);
  markRow();
  if (many && "requestIdleCallback" in window) requestIdleCallback(() => next(1, beside => voxels(beside, data.studies[beside]).catch(() => {})));
}

function fail(study, error) {
  element("fault").textContent = `${study.name} cannot be shown: ${error.message}`;
  element("fault").hidden = false;
}

/** The study so many places further in the list, as it is sorted and filtered. */
function next(steps, act = open) {
  const rows = visible(), at = rows.indexOf(state.index), index = rows[at + steps];
  if (index !== undefined) act(index);
}

const visible = () => [...document.querySelectorAll("#gallery tbody tr:not([hidden])")].map(row => Number(row.dataset.index));

/** What a study scores with the chosen decoder. */
function score(index, name) {
  const decoders = data.gallery[index]?.decoders ?? [], chosen = element("decoder").value;
  return decoders.find(([decoder]) => decoder === chosen)?.[1].find(([own]) => own === name)?.[1] ?? NaN;
}

function listStudies() {
  const decoders = [...new Set(data.gallery.flatMap(row => row.decoders.map(([decoder]) => decoder)))];
  element("decoder").replaceChildren(...decoders.map(decoder => make("option", { value: decoder }, decoder)));
  element("finding").replaceChildren(make("option", { value: "" }, "any finding"),
    ...data.findings.flatMap((finding, index) => ["missed", "extra"].map(kind => make("option", { value: `${kind}.${index}` }, `${finding}, ${kind}`))));
  const names = [...new Set(data.gallery.flatMap(row => row.decoders.flatMap(([, scores]) => scores.map(([name]) => name))))];
  const head = ["study", ...names].map(name => make("th", { scope: "col", "data-sort": name },
    make("button", { type: "button", onclick: () => sortBy(name) }, name)));
  element("gallery").querySelector("thead").replaceChildren(make("tr", {}, ...head));
  fillRows(names);
  sortBy(names.includes("errors") ? "errors" : "study");
}

function fillRows(names) {
  const shown = value => (Number.isNaN(value) ? "" : Number.isInteger(value) ? String(value) : value.toFixed(3));
  const row = (study, index) => make("tr", { "data-index": index },
    make("th", { scope: "row" }, make("button", { type: "button", onclick: () => open(index) }, study.name)),
    ...names.map(name => make("td", {}, shown(score(index, name)))));
  element("gallery").querySelector("tbody").replaceChildren(...data.studies.map(row));
  element("gallery").dataset.names = JSON.stringify(names);
}

const sorting = { name: "", rising: true };

/** Errors fall first, everything else rises; the same column again turns round. */
function sortBy(name) {
  sorting.rising = sorting.name === name ? !sorting.rising : !["errors", "missed", "extra"].includes(name);
  sorting.name = name;
  arrange();
}

function arrange() {
  const { name, rising } = sorting, key = index => (name === "study" ? data.studies[index].name : score(index, name));
  const compare = (a, b) => (name === "study" ? a.localeCompare(b, "en", { numeric: true }) : (Number.isNaN(a) - Number.isNaN(b)) || a - b);
  order.sort((a, b) => (rising ? 1 : -1) * compare(key(a), key(b)) || a - b);
  const body = element("gallery").querySelector("tbody"), rows = new Map([...body.rows].map(row => [Number(row.dataset.index), row]));
  body.append(...order.map(index => rows.get(index)));
  document.querySelectorAll("#gallery thead th").forEach(head => {
    head.setAttribute("aria-sort", head.dataset.sort !== name ? "none" : rising ? "ascending" : "descending");
  });
  filter();
}

/** Hides the studies in which the chosen decoder did not err on the chosen finding. */
function filter() {
  const [kind, finding] = element("finding").value.split("."), decoder = element("decoder").value;
  const errs = study => study.reports.some(report => report.source === decoder && report.findings.some(([own, found]) => own === Number(finding) && found === kind));
  for (const row of element("gallery").querySelector("tbody").rows) row.hidden = Boolean(kind) && !errs(data.studies[row.dataset.index]);
  element("count").textContent = `${visible().length} of ${data.studies.length}`;
}

function markRow() {
  document.querySelectorAll("#gallery tbody tr").forEach(row => {
    const own = Number(row.dataset.index) === state.index;
    row.classList.toggle("open", own);
    row.querySelector("button").setAttribute("aria-current", own);
    if (own) row.scrollIntoView({ block: "nearest" });
  });
}

if (element("gallery")) {
  listStudies();
  element("decoder").addEventListener("change", () => { fillRows(JSON.parse(element("gallery").dataset.names)); arrange(); markRow(); });
  element("finding").addEventListener("change", filter);
}
