// Toolbar, keys, light and dark, tabs; then the first study.

function pressed(selector, name, value) {
  document.querySelectorAll(selector).forEach(button => button.setAttribute("aria-pressed", button.dataset[name] === value));
}

function preset(name) {
  setWindow(WINDOWS[name][1], WINDOWS[name][2]);
}

function overlay(name) {
  state.overlay = name;
  changed("overlay");
}

element("windows").append(...Object.entries(WINDOWS).map(([name, [label, centre, width]], index) => make("button", {
  type: "button", "data-window": name, title: `centre ${centre}, width ${width} HU (${index + 1})`, onclick: () => preset(name),
}, label)));
document.querySelectorAll("[data-overlay]").forEach(button => button.addEventListener("click", () => overlay(button.dataset.overlay)));
document.querySelectorAll("[data-zoom]").forEach(button => button.addEventListener("click", () => zoom(Number(button.dataset.zoom))));
document.querySelectorAll("[data-step]").forEach(button => button.addEventListener("click", () => next(Number(button.dataset.step))));
whenChanged(told => {
  const [centre, width] = state.window;
  element("level").textContent = `C ${centre} W ${width}`;
  pressed("[data-window]", "window", Object.keys(WINDOWS).find(name => WINDOWS[name][1] === centre && WINDOWS[name][2] === width));
  if (told.has("overlay") || told.has("structures")) pressed("[data-overlay]", "overlay", state.overlay);
});

const remembered = {
  read() { try { return localStorage.getItem("ctscribe-theme"); } catch { return null; } },
  write(value) { try { localStorage.setItem("ctscribe-theme", value); } catch { /* a page opened from a file may have no storage */ } },
};

function theme(name) {
  document.documentElement.dataset.theme = name;
  element("theme").setAttribute("aria-pressed", name === "dark");
}

function turnTheme() {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  theme(name);
  remembered.write(name);
}

theme(remembered.read() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", event => { if (!remembered.read()) theme(event.matches ? "dark" : "light"); });
element("theme").addEventListener("click", turnTheme);
element("help-button").addEventListener("click", () => element("help").showModal());

/** Shows one of the page's parts. */
function part(name) {
  document.querySelectorAll("[role=tab]").forEach(tab => {
    const own = tab.dataset.part === name;
    tab.setAttribute("aria-selected", own);
    tab.tabIndex = own ? 0 : -1;
    element(tab.dataset.part).hidden = !own;
  });
  if (name === "studies" && state.index < 0 && data.studies.length) next(1);
  else if (name === "studies" && state.study) fit();
}

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => part(tab.dataset.part));
  tab.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const other = tabs[(index + step + tabs.length) % tabs.length];
    other.focus();
    part(other.dataset.part);
  });
});

function cycleStructure(step) {
  const count = state.study.structures.length, [own] = state.structures.size === 1 ? state.structures : [step > 0 ? -1 : count];
  const index = own + step;
  state.sentence = null;
  only(index < 0 || index >= count ? null : index);
}

const KEYS = {
  "[": () => cycleStructure(-1),
  "]": () => cycleStructure(1),
  n: () => next(1),
  p: () => next(-1),
  o: () => {
    const names = [...document.querySelectorAll("[data-overlay]")].filter(button => !button.hidden).map(button => button.dataset.overlay);
    overlay(names[(names.indexOf(state.overlay) + 1) % names.length]);
  },
  a: () => views[0].canvas.focus(),
  c: () => views[1].canvas.focus(),
  s: () => views[2].canvas.focus(),
  e: () => enlargeView(views.find(view => view.canvas === document.activeElement)?.plane ?? "axial"),
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  0: () => zoom(0),
  t: turnTheme,
  "?": () => element("help").showModal(),
  Escape: () => { state.sentence = null; state.finding = null; point([]); only(null, false); },
};
Object.keys(WINDOWS).forEach((name, index) => { KEYS[index + 1] = () => preset(name); });

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || element("help").open || event.target.closest("input, select, textarea")) return;
  const act = KEYS[event.key];
  if (!act || (!state.study && !["t", "?"].includes(event.key))) return;
  event.preventDefault();
  act();
});

window.addEventListener("beforeprint", fit);
if (tabs.length) part("scores");
else if (data.studies.length) element("gallery") ? next(1) : open(0);
