"use strict";
// What the page shows follows from `state` alone: `point`, `pin` and `choose` change it, `light` and `place` draw it.
const { images, layers } = JSON.parse(document.getElementById("data").textContent);
const page = document.documentElement;
const byId = (id) => document.getElementById(id);
const state = { pointed: null, pinned: null, chosen: 0 }; // {layer, cluster}, or null
const views = images.map(() => ({ zoom: 1, x: 0, y: 0, cross: null, box: null })); // x, y: what is at the top left
const tiles = [];
const ZOOM = 1.5, MOST = 24;
const UNLIT = 28, FADE = 0.88; // clusters that are not lit go so far towards a grey darker than any cluster's colour

// Label images: zlib streams of labels, decoded when they come into sight.

async function decoded(image, layer) {
  const bytes = Uint8Array.from(atob(images[image].labels[layer]), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return layers[layer].colours.length > 256 ? new Uint16Array(buffer) : new Uint8Array(buffer);
}

function abgr(hex, lit) { // a pixel of a canvas
  const value = parseInt(hex.slice(1), 16);
  const mix = (channel) => (lit ? channel : Math.round(channel + (UNLIT - channel) * FADE));
  return ((255 << 24) | (mix(value & 255) << 16) | (mix((value >> 8) & 255) << 8) | mix(value >> 16)) >>> 0;
}

function litIn(layer) { // the clusters that are lit in a layer; null where all are
  const lit = state.pointed || state.pinned;
  if (!lit) return null;
  if (lit.layer === layer) return [lit.cluster];
  const ranked = (layers[lit.layer].related[lit.cluster] || {})[layer];
  return ranked ? ranked.map(([cluster]) => cluster) : null;
}

function paint(tile) {
  const lit = litIn(tile.layer);
  const key = String(lit);
  if (!tile.labels || tile.painted === key) return;
  if (!tile.visible) { tile.stale = true; return; }
  const colours = layers[tile.layer].colours.map((hex, k) => abgr(hex, !lit || lit.includes(k)));
  const table = Uint32Array.from(colours);
  const [height, width] = images[tile.image].shapes[tile.layer];
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = table[tile.labels[i]];
  tile.canvas.getContext("2d").putImageData(pixels, 0, 0);
  tile.painted = key;
  tile.stale = false;
}

async function show(tile) {
  tile.asked ??= decoded(tile.image, tile.layer).then((labels) => {
    [tile.canvas.height, tile.canvas.width] = images[tile.image].shapes[tile.layer];
    tile.labels = labels;
  });
  await tile.asked;
  paint(tile);
}

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const tile = tiles.find((one) => one.frame === entry.target);
    tile.visible = entry.isIntersecting;
    if (tile.visible && tile.canvas) show(tile);
  }
}, { rootMargin: "300px" });

// Clusters: naming them, and lighting them up.

const percent = (part) => `${Number((100 * part).toPrecision(3))} %`;

function words({ layer, cluster }) {
  const one = layers[layer];
  const around = Object.entries(one.related[cluster] || {}).map(([other, ranked]) =>
    ` In ${layers[other].name}: ${ranked.map(([k, part]) => `${k} (${percent(part)})`).join(", ")}.`);
  return `${one.name}, cluster ${cluster}: ${percent(one.shares[cluster])} of ${one.unit}.${around.join("")}`;
}

let drawing = 0;
function light() {
  const lit = state.pointed || state.pinned;
  byId("status").textContent = lit ? words(lit) : "Point at a label image, or move in it with the arrow keys.";
  byId("card").hidden = byId("release").hidden = !state.pinned;
  for (const card of document.querySelectorAll(".card.lit")) card.classList.remove("lit");
  if (lit) byId(`card-${lit.layer}-${lit.cluster}`)?.classList.add("lit");
  for (const button of document.querySelectorAll(".light[aria-pressed='true']")) button.setAttribute("aria-pressed", "false");
  if (state.pinned) {
    const { layer, cluster } = state.pinned;
    for (const button of document.querySelectorAll(`.light[data-layer="${layer}"][data-cluster="${cluster}"]`)) {
      button.setAttribute("aria-pressed", "true");
    }
  }
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => tiles.forEach((tile) => tile.canvas && paint(tile)));
}

const same = (one, other) => one === other || (one && other && one.layer === other.layer && one.cluster === other.cluster);

function point(cluster) {
  if (same(state.pointed, cluster)) return;
  state.pointed = cluster;
  light();
}

function pin(cluster) { // again: let go
  state.pinned = same(state.pinned, cluster) ? null : cluster;
  state.pointed = null;
  const focused = document.activeElement;
  if (state.pinned) choose(state.pinned.layer);
  light();
  if (focused.closest(".panel[hidden]")) toCard(); // what had the focus is hidden
}

function toCard() { // of the cluster that is kept lit
  const { layer, cluster } = state.pinned;
  choose(layer);
  const card = byId(`card-${layer}-${cluster}`);
  card.scrollIntoView({ block: "center" });
  card.querySelector("button").focus({ preventScroll: true });
}

function choose(layer) {
  state.chosen = layer;
  for (const input of document.querySelectorAll("input[name=layer]")) input.checked = Number(input.value) === layer;
  for (const panel of document.querySelectorAll(".panel")) panel.hidden = Number(panel.dataset.layer) !== layer;
  for (const tile of tiles) tile.frame.parentElement.classList.toggle("chosen", tile.layer === layer);
}

// Places: fractions of an image, the same in its input and in all its layers.

async function under(tile, at) { // the cluster at a place; of an input, that of the layer that is chosen
  const layer = tile.layer ?? state.chosen;
  const of = tiles.find((one) => one.image === tile.image && one.layer === layer);
  await show(of); // it may never have been in sight
  const [height, width] = images[tile.image].shapes[layer];
  const [column, row] = [cell(at.x, width), cell(at.y, height)];
  return { layer, cluster: of.labels[row * width + column] };
}

async function pointAt(tile, at) { // the cross is there; it may be elsewhere, or away, once the cluster is known
  views[tile.image].cross = at;
  const cluster = await under(tile, at);
  if (views[tile.image].cross === at) point(cluster);
}

const cell = (part, cells) => Math.min(Math.max(Math.floor(part * cells), 0), cells - 1);

function placeOf(tile, event) {
  const frame = tile.frame.getBoundingClientRect();
  const view = views[tile.image];
  return {
    x: view.x + (event.clientX - frame.left) / frame.width / view.zoom,
    y: view.y + (event.clientY - frame.top) / frame.height / view.zoom,
  };
}

function place(image) { // draw an image's view, cross and box
  const view = views[image];
  byId(`image-${image}`).classList.toggle("zoomed", view.zoom > 1);
  for (const tile of tiles.filter((one) => one.image === image)) {
    tile.plane.style.transform = view.zoom === 1 ? "" :
      `translate(${-100 * view.x * view.zoom}%, ${-100 * view.y * view.zoom}%) scale(${view.zoom})`;
    tile.cross.hidden = !view.cross;
    if (view.cross) {
      tile.cross.style.left = `${100 * (view.cross.x - view.x) * view.zoom}%`;
      tile.cross.style.top = `${100 * (view.cross.y - view.y) * view.zoom}%`;
    }
    tile.box.hidden = !view.box;
    if (view.box) {
      const [top, left, height, width] = view.box;
      const parts = { top: top - view.y, left: left - view.x, height, width };
      for (const [side, part] of Object.entries(parts)) tile.box.style[side] = `${100 * part * view.zoom}%`;
    }
  }
}

function look(image, zoom, x, y) { // at zoom, with (x, y) at the top left, or as near as the edges let it
  const view = views[image];
  view.zoom = Math.min(Math.max(zoom, 1), MOST);
  const most = 1 - 1 / view.zoom;
  view.x = Math.min(Math.max(x, 0), most);
  view.y = Math.min(Math.max(y, 0), most);
  place(image);
}

function zoom(image, factor, at) { // keep a place where it is, or the middle
  const view = views[image];
  at = at || { x: view.x + 0.5 / view.zoom, y: view.y + 0.5 / view.zoom };
  const next = Math.min(Math.max(view.zoom * factor, 1), MOST);
  look(image, next, at.x - (at.x - view.x) * view.zoom / next, at.y - (at.y - view.y) * view.zoom / next);
}

function moveTo(tile, at) { // point at a place, and keep it in sight
  const view = views[tile.image];
  const span = 1 / view.zoom;
  pointAt(tile, at);
  const inside = (start, part) => (part < start ? part : part > start + span ? part - span : start);
  look(tile.image, view.zoom, inside(view.x, at.x), inside(view.y, at.y));
}

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(tile, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const view = views[tile.image];
  if (KEYS[event.key]) {
    const [height, width] = images[tile.image].shapes[tile.layer ?? state.chosen];
    const step = event.shiftKey ? 10 : 1;
    const moved = (part, cells, by) => (Math.min(Math.max(cell(part, cells) + by * step, 0), cells - 1) + 0.5) / cells;
    const from = view.cross || { x: view.x + 0.5 / view.zoom, y: view.y + 0.5 / view.zoom };
    const [right, down] = view.cross ? KEYS[event.key] : [0, 0]; // the first one shows where the cross is
    moveTo(tile, { x: moved(from.x, width, right), y: moved(from.y, height, down) });
  } else if (event.key === "+" || event.key === "=") zoom(tile.image, ZOOM, view.cross);
  else if (event.key === "-") zoom(tile.image, 1 / ZOOM, view.cross);
  else if (event.key === "0") look(tile.image, 1, 0, 0);
  else if ((event.key === "Enter" || event.key === " ") && view.cross) under(tile, view.cross).then(pin);
  else return;
  event.preventDefault();
}

function leave(image) {
  views[image].cross = null;
  place(image);
  point(null);
}

function listen(tile) {
  const { frame, image } = tile;
  let grip = null; // where a drag began, and the view then
  frame.addEventListener("pointerdown", (event) => {
    if (event.button === 0) grip = { x: event.clientX, y: event.clientY, view: { ...views[image] }, moved: false };
  });
  frame.addEventListener("pointermove", (event) => {
    if (grip && event.buttons) {
      const [right, down] = [event.clientX - grip.x, event.clientY - grip.y];
      if (!grip.moved && Math.hypot(right, down) > 4) {
        grip.moved = true;
        frame.setPointerCapture(event.pointerId);
      }
      if (grip.moved) {
        const { width, height } = frame.getBoundingClientRect();
        const from = grip.view;
        look(image, from.zoom, from.x - right / width / from.zoom, from.y - down / height / from.zoom);
        return;
      }
    }
    const at = placeOf(tile, event);
    pointAt(tile, at);
    place(image);
  });
  frame.addEventListener("pointerup", (event) => {
    if (grip && !grip.moved) under(tile, placeOf(tile, event)).then(pin);
    grip = null;
  });
  frame.addEventListener("pointercancel", () => { grip = null; });
  frame.addEventListener("pointerleave", () => leave(image));
  frame.addEventListener("blur", () => leave(image));
  frame.addEventListener("dblclick", (event) => zoom(image, 2, placeOf(tile, event)));
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
    event.preventDefault();
    zoom(image, Math.exp(-event.deltaY / 200), placeOf(tile, event));
  }, { passive: false });
  frame.addEventListener("keydown", (event) => onKey(tile, event));
}

function showBox(image, box) {
  for (const view of views) view.box = null;
  views[image].box = box;
  const [top, left, height, width] = box;
  const fit = Math.min(8, Math.max(1, 0.4 / Math.max(height, width)));
  look(image, fit, left + width / 2 - 0.5 / fit, top + height / 2 - 0.5 / fit);
  views.forEach((_, other) => place(other));
  byId(`image-${image}`).scrollIntoView({ block: "center" });
  tiles.find((tile) => tile.image === image).frame.focus({ preventScroll: true });
}

for (const figure of document.querySelectorAll(".sample")) {
  const image = Number(figure.dataset.image);
  for (const element of figure.querySelectorAll(".tile")) {
    const layer = element.dataset.layer === undefined ? null : Number(element.dataset.layer);
    const [frame, plane, canvas, cross, box] =
      ["frame", "plane", "plane canvas", "cross", "box"].map((name) => element.querySelector(`.${name}`));
    const tile = { image, layer, frame, plane, canvas, cross, box, visible: false };
    if (layer !== null) plane.querySelector("img").src = figure.querySelector("img").src; // it stands in the file once
    tiles.push(tile);
    listen(tile);
    sight.observe(frame);
  }
  for (const button of figure.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom === "all") look(image, 1, 0, 0);
      else zoom(image, button.dataset.zoom === "in" ? ZOOM : 1 / ZOOM);
    });
  }
}
for (const input of document.querySelectorAll("input[name=layer]")) {
  input.addEventListener("change", () => choose(Number(input.value)));
}
for (const button of document.querySelectorAll(".light")) {
  const cluster = { layer: Number(button.dataset.layer), cluster: Number(button.dataset.cluster) };
  button.addEventListener("pointerenter", () => point(cluster));
  button.addEventListener("pointerleave", () => point(null));
  button.addEventListener("click", () => pin(cluster));
}
for (const button of document.querySelectorAll("button.patch")) {
  button.addEventListener("click", () => showBox(Number(button.dataset.image), button.dataset.box.split(" ").map(Number)));
}
byId("blend").addEventListener("input", (event) => {
  page.style.setProperty("--blend", event.target.value / 100);
  byId("blend-value").textContent = `${event.target.value}\u202f%`;
});
byId("theme").addEventListener("change", (event) => {
  if (event.target.value) page.dataset.theme = event.target.value;
  else delete page.dataset.theme;
});
byId("card").addEventListener("click", toCard);
function release() {
  const focused = document.activeElement;
  state.pinned = null;
  point(null);
  light();
  if (focused.hidden) byId("blend").focus(); // what had the focus is hidden
}
byId("release").addEventListener("click", release);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  views.forEach((view, image) => { view.box = view.cross = null; place(image); });
  release();
});
choose(0);
page.dataset.ready = "";
