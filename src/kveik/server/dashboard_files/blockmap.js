// The pool as a map: one cell per block, painted into a picture of one pixel per block.

import { onTheme } from "./theme.js";
import { ago, at, count, element, put, several } from "./format.js";

const KINDS = ["free", "computing", "being read", "kept", "pinned", "first to go"];
const [FREE, COMPUTING, READ] = [0, 1, 2];
const PLAIN = "plain"; // what nobody in particular holds stands back
const OWNERS = 8; // colours for owners; the smaller ones share one
const AGES = [[1, "1 s"], [10, ""], [60, "1 min"], [600, ""], [3600, "1 h"], [86400, "1 d"]];
const RAMPS = {
  age: ["#f3d79b", "#dfae57", "#bd7f3a", "#8c5a3c", "#5f4a45", "#46424a"],
  heat: ["#d6492e", "#e58a4c", "#e6bf7c", "#b9b7a6", "#8ea0b0", "#6a7f98"],
};
const [CELL, LARGEST, HEIGHT] = [5, 18, 190]; // CSS pixels of a cell with its gap, and of the map

const canvas = () => at("map");
let mode = "owner";
let size = 0;
let columns = 1;
let cell = CELL;
let kind = new Uint8Array(0);
let owner = new Int32Array(0);
let created = new Float64Array(0);
let used = new Float64Array(0);
let hits = new Uint32Array(0);
let serverNow = 0; // tenths of seconds
let heardAt = 0;
let names = new Map(); // number of an owner -> its name
let ranks = new Map(); // name -> colour
let colours = new Map(); // of the style sheet, as 0xAABBGGRR
let picture = null;
let offscreen = null;
let dirty = new Set();
let whole = true;
let asked = false;
let cursor = -1;
let about = null;
let repaintAt = 0;

export function begin(told) {
  about = told;
  size = 0;
  kind = new Uint8Array(0);
  names = new Map();
  ranks = new Map();
  cursor = -1;
  
  legend();
}

function grow(wanted) {
  if (wanted > kind.length) {
    const room = Math.max(wanted, Math.ceil(kind.length * 1.5), 64);
    const larger = (before, made) => {
      made.set(before.subarray(0, Math.min(before.length, made.length)));
      return made;
    };
    const old = kind.length;
    kind = larger(kind, new Uint8Array(room));
    owner = larger(owner.subarray(0, old), new Int32Array(room));
    created = larger(created.subarray(0, old), new Float64Array(room));
    used = larger(used.subarray(0, old), new Float64Array(room));
    hits = larger(hits.subarray(0, old), new Uint32Array(room));
  }
  if (wanted !== size) {
    size = wanted;
    layOut();
  }
}

export function take(told) {
  serverNow = told.now;
  heardAt = performance.now();
  for (const [number, name] of Object.entries(told.owners)) names.set(Number(number), name);
  const places = told.at;
  grow(Math.max(told.size, size));
  for (let index = 0; index < places.length; index += 1) {
    const place = places[index];
    kind[place] = told.kind[index];
    owner[place] = told.owner[index];
    created[place] = told.created[index];
    used[place] = told.used[index];
    hits[place] = told.hits[index];
    dirty.add(place);
  }
  if (Object.keys(told.owners).length) whole = true;
  if (places.length || whole) draw();
}

// Blocks by kind: [held, kept].
export function totals() {
  let held = 0;
  let kept = 0;
  for (let place = 0; place < size; place += 1) {
    if (kind[place] === COMPUTING || kind[place] === READ) held += 1;
    else if (kind[place] !== FREE) kept += 1;
  }
  return [held, kept];
}

// --- colours

function readColours() {
  const probe = element("span", "", "");
  document.body.append(probe);
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
    return packed(red, green, blue);
  };
  colours = new Map();
  for (const name of ["free", "busy", "plain", "other", "card", "amber-fill", "ink"]) colours.set(name, read(name));
  for (let index = 0; index < OWNERS; index += 1) colours.set("owner-" + index, read("owner-" + index));
  for (const [name, ramp] of Object.entries(RAMPS)) colours.set(name, ramp.map(fromHex));
  probe.remove();
}

const packed = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

function fromHex(text) {
  const value = parseInt(text.slice(1), 16);
  return packed(value >> 16, (value >> 8) & 255, value & 255);
}

function css(value) {
  return `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
}

function onRamp(ramp, tenths) {
  let step = 0;
  while (step < AGES.length - 1 && tenths > 10 * AGES[step][0]) step += 1;
  return ramp[step];
}

function elapsed() {
  return serverNow + (performance.now() - heardAt) / 100;
}

function colourOf(place, now) {
  if (kind[place] === FREE) return colours.get("free");
  if (kind[place] === COMPUTING) return colours.get("busy");
  if (mode === "tier") return colours.get("amber-fill");
  if (mode === "age") return onRamp(colours.get("age"), now - created[place]);
  if (mode === "heat") {
    return onRamp(colours.get("heat"), kind[place] === READ ? 0 : now - used[place]);
  }
  return colours.get(ranks.get(names.get(owner[place])) || "other");
}

// --- drawing

function layOut() {
  const place = canvas();
  const scale = window.devicePixelRatio || 1;
  const width = place.clientWidth || 800;
  // Cells are as large as a calm height of the map allows; a very large pool makes it higher.
  let side = LARGEST;
  while (side > CELL && Math.ceil(size / Math.floor(width / side)) * side > HEIGHT) side -= 1;
  columns = Math.max(Math.floor(width / side), 1);
  cell = Math.max(Math.round((width / columns) * scale), 2);
  const rows = Math.max(Math.ceil(size / columns), 1);
  place.width = columns * cell;
  place.height = rows * cell;
  place.style.height = (place.height * width) / place.width + "px";
  offscreen = new OffscreenCanvas(columns, rows);
  picture = new ImageData(columns, rows);
  whole = true;
  draw();
}

export function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(paint);
}

function paint() {
  asked = false;
  if (!colours.size) readColours();
  const pixels = new Uint32Array(picture.data.buffer);
  const now = elapsed();
  if (whole) {
    rank();
    pixels.fill(colours.get("card"));
    for (let place = 0; place < size; place += 1) pixels[place] = colourOf(place, now);
  } else {
    for (const place of dirty) pixels[place] = colourOf(place, now);
  }
  whole = false;
  dirty.clear();
  const context = canvas().getContext("2d", { alpha: false });
  offscreen.getContext("2d").putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(offscreen, 0, 0, canvas().width, canvas().height);
  grid(context);
  outline(context);
}

function grid(context) {
  const gap = cell >= 5 ? Math.max(Math.round(cell / 8), 1) : 0;
  if (!gap) return;
  context.fillStyle = css(colours.get("card"));
  for (let x = cell - gap; x < canvas().width; x += cell) context.fillRect(x, 0, gap, canvas().height);
  for (let y = cell - gap; y < canvas().height; y += cell) context.fillRect(0, y, canvas().width, gap);
}

function outline(context) {
  if (cursor < 0 || cursor >= size) return;
  context.strokeStyle = css(colours.get("ink"));
  context.lineWidth = 2;
  const [x, y] = [(cursor % columns) * cell, Math.floor(cursor / columns) * cell];
  context.strokeRect(x - 1, y - 1, cell + 1, cell + 1);
}

// --- owners and legend

// The largest owners have a colour of their own, which they keep as long as they are among them.
function rank() {
  const blocks = new Map();
  for (let place = 0; place < size; place += 1) {
    if (kind[place] > COMPUTING) {
      const name = names.get(owner[place]);
      blocks.set(name, (blocks.get(name) || 0) + 1);
    }
  }
  const sorted = [...blocks].sort((one, other) => other[1] - one[1]);
  const plain = sorted.filter(([name]) => name === PLAIN);
  const largest = sorted.filter(([name]) => name !== PLAIN).slice(0, OWNERS);
  const kept = new Map(largest.filter(([name]) => ranks.has(name)).map(([name]) => [name, ranks.get(name)]));
  const taken = new Set(kept.values());
  let next = 0;
  for (const [name] of largest) {
    if (kept.has(name)) continue;
    while (taken.has("owner-" + next)) next += 1;
    kept.set(name, "owner-" + next);
    taken.add("owner-" + next);
  }
  ranks = kept.set(PLAIN, "plain");
  return [[...largest, ...plain], [...blocks.values()].reduce((sum, value) => sum + value, 0)];
}

function item(colour, text, amount) {
  const made = element("li", "", "");
  const swatch = element("span", "swatch", "");
  swatch.style.background = colour;
  made.append(swatch, element("b", "", text));
  if (amount !== undefined) made.append(element("span", "", amount));
  return made;
}

export function legend() {
  const places = [];
  const [largest, all] = rank();
  const [held, kept] = totals();
  if (mode === "owner") {
    for (const [name, blocks] of largest) {
      places.push(item(`var(--${ranks.get(name)})`, readable(name), count(blocks)));
    }
    const rest = all - largest.reduce((sum, [, blocks]) => sum + blocks, 0);
    if (rest > 0) places.push(item("var(--other)", "others", count(rest)));
  } else if (mode === "tier") {
    places.push(item("var(--amber-fill)", "memory", count(all)));
  } else {
    places.push(...ramp());
  }
  places.push(item("var(--busy)", "computing"), item("var(--free)", "free"));
  at("map-legend").replaceChildren(...places);
  const parts = [count(held) + " in use", count(kept) + " kept"];
  if (about && size === about.pool_blocks) parts.push(count(size - held - kept) + " free");
  if (about) parts.push("blocks of " + about.block_tokens + " tokens");
  put("pool-aside", parts.join("  ·  "));
}

function ramp() {
  const made = element("li", "", "");
  const strip = element("span", "ramp", "");
  strip.style.background = `linear-gradient(90deg, ${RAMPS[mode].join(", ")})`;
  const from = mode === "age" ? "new" : "just used";
  const to = mode === "age" ? "a day old" : "not for a day";
  made.append(element("span", "", from), strip, element("span", "", to));
  return [made];
}

export function readable(name) {
  if (name === undefined) return "";
  const [first, rest] = [name.split(":", 1)[0], name.slice(name.indexOf(":") + 1)];
  const words = { session: "session ", name: "", document: "document ", turn: "session ", pin: "pinned " };
  return first in words && name.includes(":") ? words[first] + rest : name;
}

// --- one block

function describe(place) {
  if (place < 0 || place >= size) return "Point at a block, or walk with the arrow keys.";
  const parts = ["block " + count(place + 1) + " of " + count(size), KINDS[kind[place]]];
  if (kind[place] > COMPUTING) {
    const now = elapsed();
    parts.push(readable(names.get(owner[place])));
    parts.push(kind[place] === READ ? "in use now" : "used " + ago((now - used[place]) / 10));
    parts.push("made " + ago((now - created[place]) / 10));
    parts.push(several(hits[place], "hit"));
  }
  return parts.join("  ·  ");
}

function select(place) {
  cursor = Math.max(Math.min(place, size - 1), -1);
  put("map-block", describe(cursor));
  draw();
}

function point(event) {
  const place = canvas();
  const scale = place.width / place.clientWidth;
  const column = Math.min(Math.floor((event.offsetX * scale) / cell), columns - 1);
  select(Math.floor((event.offsetY * scale) / cell) * columns + column);
}

const MOVES = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: () => columns, ArrowUp: () => -columns };

function walk(event) {
  if (event.key in MOVES) {
    const target = cursor < 0 ? 0 : cursor + MOVES[event.key]();
    if (target >= 0 && target < size) select(target);
  } else if (event.key === "Home") select(0);
  else if (event.key === "End") select(size - 1);
  else if (event.key === "Escape") select(-1);
  else return;
  event.preventDefault();
}

// Ages move on by themselves.
export function tick() {
  if ((mode === "age" || mode === "heat") && performance.now() > repaintAt) {
    repaintAt = performance.now() + 900;
    whole = true;
    draw();
  }
  if (cursor >= 0) put("map-block", describe(cursor));
  legend();
}

export function startMap() {
  for (const button of at("colours").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      mode = button.dataset.mode;
      for (const each of at("colours").querySelectorAll("button")) {
        each.setAttribute("aria-pressed", String(each === button));
      }
      whole = true;
      draw();
      legend();
    });
  }
  canvas().addEventListener("mousemove", point);
  canvas().addEventListener("mouseleave", () => select(-1));
  canvas().addEventListener("keydown", walk);
  new ResizeObserver(layOut).observe(canvas().parentElement);
  onTheme(() => {
    colours = new Map();
    whole = true;
    if (picture) draw();
  });
}
