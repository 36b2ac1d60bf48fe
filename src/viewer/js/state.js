// What is looked at, and what is told when it changes.

// Axes of a plane: what runs right, what runs down, what is scrolled through; indices into (z, y, x). Letters: left, right, top, bottom edge.
const PLANES = {
  axial: { axes: [2, 1, 0], letters: "RLAP", name: "Axial" },
  coronal: { axes: [2, 0, 1], letters: "RLHF", name: "Coronal" },
  sagittal: { axes: [1, 0, 2], letters: "APHF", name: "Sagittal" },
};
// Centre and width in Hounsfield units.
const WINDOWS = {
  lung: ["Lung", -600, 1500],
  mediastinum: ["Mediastinum", 40, 400],
  bone: ["Bone", 450, 1800],
  abdomen: ["Abdomen", 60, 350],
  vessels: ["Vessels", 170, 600],
  full: ["Full", 0, 2000],
};
// Told apart by colour-blind eyes on grey; after Okabe and Ito, two more for ten structures.
const COLOURS = ["#5cc0f5", "#f5a31a", "#e58fc0", "#ff6b4a", "#2fc79a", "#f2e647", "#c5c9ff", "#9b8cff", "#ffb3d4", "#b9dc58"];

const data = JSON.parse(document.getElementById("data").textContent);
const element = id => document.getElementById(id);

const state = {
  index: -1,
  study: null,
  shades: null,
  at: [0, 0, 0],
  window: [-600, 1500],
  overlay: "patches",
  structures: new Set(), // empty: all
  sentence: null, // [report, sentence]
  zoom: 1,
};

/** The structures whose patches and attention are shown. */
function shownStructures() {
  const all = state.study.structures.map((_, index) => index);
  return state.structures.size ? all.filter(index => state.structures.has(index)) : all;
}

/** An element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const plain = name => name.replaceAll("_", " ");
const percent = share => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

/** Moves the crosshair to voxel (z, y, x), inside of the volume. */
function go(at) {
  state.at = at.map((place, axis) => Math.min(state.study.volume.shape[axis] - 1, Math.max(0, Math.round(place))));
  changed("at");
}

/** The middle of a patch. */
const middle = patch => [0, 1, 2].map(axis => (patch.edges[0][axis] + patch.edges[1][axis]) / 2 - 0.5);

/** Shows one structure alone, or all (`null`), and goes where it looked the most. */
function only(structure, jump = true) {
  state.structures = new Set(structure === null ? [] : [structure]);
  const strongest = structure === null ? null : state.study.structures[structure].patches[0];
  if (jump && strongest) go(middle(strongest));
  changed("structures");
}

/** The shown patches that hold a voxel: [structure, patch] pairs, the strongest first. */
function patchesAt(at) {
  const holds = patch => [0, 1, 2].every(axis => at[axis] + 0.5 >= patch.edges[0][axis] && at[axis] + 0.5 < patch.edges[1][axis]);
  const found = shownStructures().flatMap(structure =>
    state.study.structures[structure].patches.map((patch, index) => [structure, index, patch]).filter(([, , patch]) => holds(patch)));
  return found.sort((a, b) => b[2].mass - a[2].mass);
}

const listeners = [];
const changes = new Set();
/** Parts of the page that draw themselves anew: `what` is "study", "at", "window", "overlay", "structures", "sentence" or "size". */
const whenChanged = listener => listeners.push(listener);
/** Tells all parts, once, before the next frame. */
function changed(what) {
  if (!changes.size) requestAnimationFrame(tell);
  changes.add(what);
}

function tell() {
  const told = new Set(changes);
  changes.clear();
  if (!state.shades) return;
  listeners.forEach(listener => listener(told));
  const { dataset } = document.body;
  dataset.drawn = String(1 + Number(dataset.drawn ?? 0));
  dataset.milliseconds ??= String(Math.round(performance.now()));
}
