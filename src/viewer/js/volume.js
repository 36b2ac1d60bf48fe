"use strict";
// Volumes: unpacked when they are first looked at, the last few kept.

const kept = new Map();
const KEPT = 6;

/** The shades of study `index`, (z, y, x) with x fastest. */
async function voxels(index, study) {
  if (!kept.has(index)) {
    kept.set(index, unpack(document.getElementById(`volume-${index}`).textContent, study.volume.shape));
    while (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  const found = kept.get(index);
  kept.delete(index);
  kept.set(index, found);
  return found;
}

function bytes(base64) {
  const text = atob(base64), array = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) array[i] = text.charCodeAt(i);
  return array;
}

/** Base64, deflated, each slice's differences from the median edge predictor (JPEG-LS). */
async function unpack(packed, [d, h, w]) {
  const stream = new Blob([bytes(packed.trim())]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const v = new Uint8Array(await new Response(stream).arrayBuffer());
  if (v.length !== d * h * w) throw new Error(`the volume holds ${v.length} voxels, expected ${d * h * w}`);
  for (let z = 0, i = 0; z < d; z++) {
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++, i++) {
        const a = x ? v[i - 1] : 0, b = y ? v[i - w] : 0, c = x && y ? v[i - w - 1] : 0;
        const least = a < b ? a : b, most = a < b ? b : a;
        v[i] += c >= most ? least : c <= least ? most : a + b - c;
      }
    }
  }
  return v;
}

/** Attention of a structure at every voxel of a slice, 0 to 255: linear between the centres of patches. */
function attentionSlice(attention, shape, plane, index) {
  attention.grid ??= bytes(attention.values);
  const [right, down, deep] = PLANES[plane].axes, cells = attention.shape, strides = [cells[1] * cells[2], cells[2], 1];
  const tap = (axis, at) => {
    const place = Math.min(cells[axis] - 1, Math.max(0, (at + 0.5) / shape[axis] * cells[axis] - 0.5)), low = Math.floor(place);
    return [low * strides[axis], Math.min(low + 1, cells[axis] - 1) * strides[axis], place - low];
  };
  const taps = axis => Array.from({ length: shape[axis] }, (_, at) => tap(axis, at));
  const [z0, z1, fz] = tap(deep, index), xs = taps(right), ys = taps(down), grid = attention.grid;
  const heat = new Float32Array(shape[right] * shape[down]);
  const at = place => grid[place + z0] + fz * (grid[place + z1] - grid[place + z0]);
  for (let y = 0, i = 0; y < shape[down]; y++) {
    const [y0, y1, fy] = ys[y];
    for (let x = 0; x < shape[right]; x++, i++) {
      const [x0, x1, fx] = xs[x];
      const top = at(x0 + y0) + fx * (at(x1 + y0) - at(x0 + y0)), bottom = at(x0 + y1) + fx * (at(x1 + y1) - at(x0 + y1));
      heat[i] = top + fy * (bottom - top);
    }
  }
  return heat;
}
