// Reports sentence by sentence, findings beside the reference's, structures and their patches.

const SIGNS = { present: "•", matched: "✓", missed: "✗", extra: "+" };
const MEANINGS = {
  present: "affirmed",
  matched: "affirmed here and in the reference",
  missed: "affirmed in the reference only",
  extra: "not affirmed in the reference",
};

const swatch = structure => make("i", { class: "swatch", style: `--colour: ${COLOURS[structure % COLOURS.length]}`, "aria-hidden": "true" });

/** A control that reads as text: a click, Enter or a blank acts. */
function pressable(attributes, act, ...children) {
  const onkeydown = event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act(event);
  };
  return make("span", { role: "button", tabindex: 0, "aria-pressed": "false", onclick: act, onkeydown, ...attributes }, ...children);
}

function showReports() {
  const { study } = state;
  element("reports").replaceChildren(...study.reports.map((report, index) => reportArticle(study, report, index)));
  element("structures").replaceChildren(
    make("button", { type: "button", "data-structure": "all", onclick: () => only(null) }, "All"),
    ...study.structures.map((structure, index) => make("button", {
      type: "button",
      "data-structure": index,
      title: `what ${plain(structure.name)} looked at; with Ctrl or Shift, beside the others`,
      onclick: event => pickStructure(index, event.ctrlKey || event.shiftKey || event.metaKey),
    }, swatch(index), plain(structure.name))));
  element("warnings").replaceChildren(...study.warnings.map(warning => make("li", {}, warning)));
}

function reportArticle(study, report, index) {
  const count = wanted => report.findings.filter(([, found]) => found === wanted).length;
  const compared = report.source !== "reference" && study.reports.some(other => other.source === "reference");
  const summary = compared ? `${count("matched")} matched, ${count("missed")} missed, ${count("extra")} extra` : "";
  const chips = report.findings.map(([finding, found]) => pressable({
    class: `finding ${found}`, "data-finding": finding, title: MEANINGS[found],
  }, () => pickFinding(finding), `${SIGNS[found]} ${data.findings[finding]}`, make("span", { class: "unseen" }, `, ${MEANINGS[found]}`)));
  const sentences = report.sentences.flatMap((sentence, at) => [sentenceControl(report, sentence, [index, at]), " "]);
  return make("article", { "data-source": report.source, "aria-label": `${report.source} report` },
    make("h3", {}, report.source, make("small", {}, summary)),
    make("p", { class: "findings" }, ...(chips.length ? chips : [make("span", { class: "none" }, "no finding affirmed")])),
    make("p", { class: "text" }, ...sentences));
}

/** Marked by the worst that its findings are. */
function sentenceControl(report, sentence, place) {
  const states = sentence.findings.map(finding => report.findings.find(([other]) => other === finding)?.[1]);
  const reference = state.study.reports.filter(other => other.source !== "reference");
  // a sentence of the reference is missed where some report misses a finding of its
  const missed = report.source === "reference" && sentence.findings.some(finding =>
    reference.some(other => other.findings.some(([own, found]) => own === finding && found === "missed")));
  const mark = missed ? "missed" : states.includes("extra") ? "extra" : states.includes("matched") ? "matched" :
    report.source === "reference" && states.includes("present") && reference.length ? "matched" : "";
  const names = sentence.structures.map(structure => plain(state.study.structures[structure].name));
  const told = [names.join(", ") || "no structure", ...sentence.findings.map(finding => data.findings[finding])].join(" · ");
  return pressable({ class: `sentence ${mark}`, "data-sentence": place.join("."), title: told },
    () => pickSentence(sentence, place), ...sentence.structures.map(swatch), sentence.text);
}

/** A sentence's structures alone are shown, where they looked the most; the same sentence again: all. */
function pickSentence(sentence, place) {
  const again = state.sentence?.join() === place.join();
  state.sentence = again ? null : place;
  state.finding = null;
  state.pointed = new Set();
  state.structures = new Set(again ? [] : sentence.structures);
  const strongest = again ? null : state.study.structures[sentence.structures[0]]?.patches[0];
  if (strongest) go(middle(strongest));
  if (state.overlay === "none") state.overlay = "patches";
  changed("structures");
}

function pickFinding(finding) {
  state.finding = state.finding === finding ? null : finding;
  state.sentence = null;
  changed("sentence");
}

function pickStructure(index, beside) {
  state.sentence = null;
  if (!beside) return only(state.structures.size === 1 && state.structures.has(index) ? null : index);
  if (!state.structures.delete(index)) state.structures.add(index);
  changed("structures");
}

/** The sentences of these structures are pointed at: a patch of theirs was clicked. */
function point(structures) {
  state.pointed = new Set(structures);
  changed("sentence");
}

function markReports() {
  const shown = shownStructures();
  document.querySelectorAll("#structures button").forEach(button => {
    const own = button.dataset.structure;
    button.setAttribute("aria-pressed", own === "all" ? !state.structures.size : state.structures.has(Number(own)));
  });
  document.querySelectorAll(".sentence").forEach(control => {
    const place = control.dataset.sentence.split(".").map(Number), sentence = state.study.reports[place[0]].sentences[place[1]];
    const pressed = state.sentence?.join() === place.join();
    control.setAttribute("aria-pressed", pressed);
    control.classList.toggle("pointed", sentence.structures.some(structure => state.pointed.has(structure)));
    control.classList.toggle("named", state.finding !== null && sentence.findings.includes(state.finding));
    control.classList.toggle("aside", state.structures.size > 0 && !pressed && !sentence.structures.some(own => shown.includes(own)));
  });
  document.querySelectorAll(".finding").forEach(chip => chip.setAttribute("aria-pressed", Number(chip.dataset.finding) === state.finding));
  document.querySelector(".pointed")?.scrollIntoView({ block: "nearest" });
}

/** The patches of what is shown alone, to walk through without pointing. */
function listPatches() {
  const list = element("patches"), chosen = [...state.structures];
  list.replaceChildren(...chosen.flatMap(structure => {
    const { name, patches, attention } = state.study.structures[structure];
    const total = patches.reduce((sum, patch) => sum + patch.mass, 0);
    const most = attention ? `, at most ${attention.most.toFixed(1)} times even` : "";
    const buttons = patches.map((patch, index) => make("button", {
      type: "button",
      "data-patch": `${structure}.${index}`,
      "aria-label": `patch ${index + 1} of ${plain(name)}, ${percent(patch.mass)} of its attention`,
      onclick: () => { go(middle(patch)); point([structure]); },
    }, make("b", {}, String(index + 1)), ` ${percent(patch.mass)}`));
    return [make("p", {}, swatch(structure), `${plain(name)}: ${percent(total)} of its attention on ${patches.length} patches${most}`),
      make("div", {}, ...buttons)];
  }));
}

Object.assign(state, { pointed: new Set(), finding: null });
whenChanged(told => {
  if (told.has("study")) showReports();
  if (told.has("study") || told.has("structures")) listPatches();
  if (["study", "structures", "sentence"].some(what => told.has(what))) markReports();
});
