// The three views: slices, attention, patches, crosshair; scrolling, pointing, zooming, windowing.

const views = Object.keys(PLANES).map(plane => {
  const figure = document.querySelector(`figure[data-plane="${plane}"]`);
  return { plane, figure, canvas: figure.querySelector("canvas"), slider: figure.querySelector("input"), centre: [0, 0] };
});
const layer = document.createElement("canvas"); // a slice before it is enlarged

/** Where a view's slice lies on its canvas: pixels a millimetre and the upper left corner. */
function placed(view) {
  const { shape, spacing_mm: spacing } = state.study.volume, [right, down] = PLANES[view.plane].axes;
  const size = [shape[right] * spacing[right], shape[down] * spacing[down]], { width, height } = view.canvas;
  const scale = Math.min(width / size[0], height / size[1]) * state.zoom;
  const place = (side, room, centre) => {
    const length = side * scale;
    return length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, room / 2 - centre * length));
  };
  return { scale, left: place(size[0], width, view.centre[0]), top: place(size[1], height, view.centre[1]), size };
}

/** Canvas pixels of a place (voxel edges) along a plane's two axes; z runs upward. */
function onCanvas(view, { scale, left, top }) {
  const { shape, spacing_mm: spacing } = state.study.volume, [right, down] = PLANES[view.plane].axes;
  const y = place => (down === 0 ? shape[0] - place : place);
  return [place => left + place * spacing[right] * scale, place => top + y(place) * spacing[down] * scale];
}

/** Canvas pixels to a voxel (z, y, x) of the view's slice, not yet rounded or kept inside. */
function voxelAt(view, px, py) {
  const { shape, spacing_mm: spacing } = state.study.volume, [right, down] = PLANES[view.plane].axes, { scale, left, top } = placed(view);
  const at = [...state.at], y = (py - top) / scale / spacing[down];
  at[right] = (px - left) / scale / spacing[right] - 0.5;
  at[down] = (down === 0 ? shape[0] - y : y) - 0.5;
  return at;
}

/** Grey of each shade under the window. */
function greys() {
  const [centre, width] = state.window;
  return Uint8ClampedArray.from(state.study.volume.levels, hu => 255 * ((hu - centre) / width + 0.5));
}

function drawSlice(view, context, box, grey) {
  const { shape } = state.study.volume, [right, down, deep] = PLANES[view.plane].axes, strides = [shape[1] * shape[2], shape[2], 1];
  const [w, h] = [shape[right], shape[down]], picture = new ImageData(w, h), pixels = new Uint32Array(picture.data.buffer);
  for (let y = 0, i = 0; y < h; y++) {
    let from = state.at[deep] * strides[deep] + (down === 0 ? h - 1 - y : y) * strides[down];
    for (let x = 0; x < w; x++, i++, from += strides[right]) pixels[i] = 0xff000000 | (grey[state.shades[from]] * 0x010101);
  }
  enlarge(context, picture, box);
}

function enlarge(context, picture, { scale, left, top, size }) {
  layer.width = picture.width;
  layer.height = picture.height;
  layer.getContext("2d").putImageData(picture, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(layer, left, top, size[0] * scale, size[1] * scale);
}

function drawAttention(view, context, box) {
  const { shape } = state.study.volume, [right, down, deep] = PLANES[view.plane].axes, [w, h] = [shape[right], shape[down]];
  const known = shownStructures().filter(structure => state.study.structures[structure].attention);
  if (!known.length) return;
  const heat = new Float32Array(w * h);
  for (const structure of known) {
    const own = attentionSlice(state.study.structures[structure].attention, shape, view.plane, state.at[deep]);
    own.forEach((value, i) => { if (value > heat[i]) heat[i] = value; });
  }
  const picture = new ImageData(w, h);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const share = heat[(down === 0 ? h - 1 - y : y) * w + x] / 255, i = 4 * (y * w + x);
    picture.data.set([255, 230 * share, 40 * share, share < 0.125 ? 0 : 190 * (share - 0.125) / 0.875], i);
  }
  enlarge(context, picture, box);
}

function drawPatches(view, context, box) {
  const [right, down, deep] = PLANES[view.plane].axes, [x, y] = onCanvas(view, box), ratio = devicePixelRatio;
  for (const structure of shownStructures()) {
    const { patches } = state.study.structures[structure], most = Math.max(...patches.map(patch => patch.mass));
    for (const { edges: [low, high], mass } of patches) {
      if (state.at[deep] + 0.5 < low[deep] || state.at[deep] + 0.5 >= high[deep]) continue;
      const [left, far, a, b] = [x(low[right]), x(high[right]), y(low[down]), y(high[down])];
      const rectangle = [left + ratio, Math.min(a, b) + ratio, far - left - 2 * ratio, Math.abs(b - a) - 2 * ratio];
      context.fillStyle = context.strokeStyle = COLOURS[structure % COLOURS.length];
      context.globalAlpha = state.structures.size ? 0.08 + 0.27 * mass / most : 0.1;
      context.fillRect(...rectangle);
      context.globalAlpha = 0.95;
      context.lineWidth = 1.25 * ratio;
      context.strokeRect(...rectangle);
    }
  }
  context.globalAlpha = 1;
}

function drawCrosshair(view, context, box) {
  const [right, down] = PLANES[view.plane].axes, [x, y] = onCanvas(view, box), gap = 9 * devicePixelRatio;
  const [cx, cy] = [x(state.at[right] + 0.5), y(state.at[down] + 0.5)], { width, height } = view.canvas;
  context.strokeStyle = "#7dd3fc";
  context.globalAlpha = 0.75;
  context.lineWidth = devicePixelRatio;
  context.beginPath();
  for (const [a, b] of [[0, cx - gap], [cx + gap, width]]) { context.moveTo(a, cy); context.lineTo(Math.max(a, b), cy); }
  for (const [a, b] of [[0, cy - gap], [cy + gap, height]]) { context.moveTo(cx, a); context.lineTo(cx, Math.max(a, b)); }
  context.stroke();
  context.globalAlpha = 1;
}

function drawText(view, context, box) {
  const { width, height } = view.canvas, ratio = devicePixelRatio, margin = 7 * ratio, [left, right, top, bottom] = PLANES[view.plane].letters;
  const say = (text, x, y, align, base) => {
    context.textAlign = align;
    context.textBaseline = base;
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  context.lineWidth = 3 * ratio;
  context.strokeStyle = "#000b";
  context.fillStyle = "#e8eef2";
  say(left, margin, height / 2, "left", "middle");
  say(right, width - margin, height / 2, "right", "middle");
  say(top, width / 2, margin, "center", "top");
  say(bottom, width / 2, height - margin, "center", "bottom");
  // a scale of 5 cm, at the lower right
  const length = 50 * box.scale, y = height - margin;
  if (length < width / 2) {
    context.fillRect(width - margin - length, y - ratio, length, 2 * ratio);
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    say("5 cm", width - margin, y - 4 * ratio, "right", "bottom");
  }
}

function draw() {
  const grey = greys();
  for (const view of views) {
    const { canvas, figure, plane, slider } = view, context = canvas.getContext("2d"), box = placed(view), deep = PLANES[plane].axes[2];
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    drawSlice(view, context, box, grey);
    if (state.overlay === "attention") drawAttention(view, context, box);
    if (state.overlay === "patches") drawPatches(view, context, box);
    drawCrosshair(view, context, box);
    drawText(view, context, box);
    const count = state.study.volume.shape[deep];
    slider.max = count - 1;
    slider.value = state.at[deep];
    figure.querySelector("output").textContent = `${state.at[deep] + 1} / ${count}`;
    canvas.setAttribute("aria-label", `${PLANES[plane].name} view, slice ${state.at[deep] + 1} of ${count}`);
  }
}

/** Millimetres, Hounsfield units and structures under the crosshair. */
function where() {
  const { volume, structures } = state.study, [z, y, x] = state.at, [, h, w] = volume.shape;
  const mm = volume.affine.map(row => row[0] * x + row[1] * y + row[2] * z + row[3]);
  const letters = [["L", "R"], ["P", "A"], ["I", "S"]];
  element("where").textContent = mm.map((at, axis) => `${letters[axis][at < 0 ? 0 : 1]} ${Math.abs(at).toFixed(0)}`).join("  ") + " mm";
  element("hu").textContent = `${Math.round(volume.levels[state.shades[(z * h + y) * w + x]])} HU`;
  const named = [...new Set(patchesAt(state.at).map(([structure]) => plain(structures[structure].name)))];
  element("under").textContent = named.length ? `patch of ${named.join(", ")}` : "";
}

/** Canvases as large as their place, at the screen's resolution; drawn at once, since a new size empties them. */
function fit() {
  let other = false;
  for (const { canvas } of views) {
    const size = [canvas.clientWidth, canvas.clientHeight].map(side => Math.max(1, Math.round(side * devicePixelRatio)));
    if (canvas.width === size[0] && canvas.height === size[1]) continue;
    [canvas.width, canvas.height] = size;
    other = true;
  }
  if (other) draw();
}

function zoom(factor) {
  state.zoom = Math.min(8, Math.max(1, state.zoom * factor));
  for (const view of views) {
    const { shape } = state.study.volume, [right, down] = PLANES[view.plane].axes, share = axis => (state.at[axis] + 0.5) / shape[axis];
    view.centre = [share(right), down === 0 ? 1 - share(down) : share(down)];
  }
  changed("size");
}

function scroll(plane, steps) {
  const at = [...state.at];
  at[PLANES[plane].axes[2]] += steps;
  go(at);
}

/** Makes a view the large one. */
function enlargeView(plane) {
  element("views").dataset.large = plane;
  fit();
}

function listen(view) {
  const { canvas, plane, slider } = view, [right, down] = PLANES[plane].axes;
  let dragged = null;
  const pixel = event => [event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio];
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    if (event.ctrlKey) zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
    else if (event.deltaY) scroll(plane, event.deltaY < 0 ? 1 : -1);
  }, { passive: false });
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  canvas.addEventListener("pointerdown", event => {
    canvas.focus();
    canvas.setPointerCapture(event.pointerId);
    dragged = event.button === 2 || event.shiftKey ? { x: event.clientX, y: event.clientY, window: [...state.window] } : {};
    if (!dragged.window) {
      go(voxelAt(view, ...pixel(event)));
      point(patchesAt(state.at).map(([structure]) => structure));
    }
  });
  canvas.addEventListener("pointermove", event => {
    if (!dragged) return;
    if (!dragged.window) return go(voxelAt(view, ...pixel(event)));
    const [centre, width] = dragged.window;
    setWindow(Math.round(centre - 2 * (event.clientY - dragged.y)), Math.max(20, Math.round(width + 4 * (event.clientX - dragged.x))));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { dragged = null; });
  canvas.addEventListener("dblclick", () => enlargeView(plane));
  slider.addEventListener("input", () => scroll(plane, Number(slider.value) - state.at[PLANES[plane].axes[2]]));
  canvas.addEventListener("keydown", event => {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 }[event.key];
    if (!steps || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (!event.shiftKey) return scroll(plane, steps);
    const at = [...state.at], level = event.key === "ArrowUp" || event.key === "ArrowDown";
    at[level ? down : right] += level && down !== 0 ? -steps : steps;
    go(at);
  });
}

function setWindow(centre, width) {
  state.window = [centre, width];
  changed("window");
}

views.forEach(listen);
new ResizeObserver(() => { if (state.study) fit(); }).observe(element("views"));
whenChanged(told => {
  draw();
  if (!(told.size === 1 && told.has("window"))) where();
});
