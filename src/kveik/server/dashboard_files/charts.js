// Small charts in SVG. Colours come from the style sheet, so that they follow the theme.

import { element } from "./format.js";

const SPACE = "http://www.w3.org/2000/svg";
const LEFT = 38;
const TOP = 8;
const BOTTOM = 20;

function shape(kind, name, values) {
  const made = document.createElementNS(SPACE, kind);
  if (name) made.setAttribute("class", name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
}

function words(x, y, anchor, text) {
  const made = shape("text", "", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// The figure is drawn at its own size, so that strokes and letters keep theirs: its picture, how
// wide and high it is, and where a share of the height lies. lines: [share, name] of the grid.
function frame(figure, label, lines) {
  const wide = Math.max(figure.clientWidth, 220);
  const high = Math.max(figure.clientHeight, 120);
  const height = (share) => TOP + (high - TOP - BOTTOM) * (1 - share);
  const svg = shape("svg", "", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label });
  for (const [share, name] of lines) {
    const y = height(share);
    svg.append(shape("line", "grid", { x1: LEFT, x2: wide, y1: y, y2: y }));
    svg.append(words(LEFT - 7, y + 4, "end", name));
  }
  return { svg, wide, high, height };
}

function path(points) {
  return points.map(([x, y], index) => (index ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1)).join("");
}

// Pieces of consecutive numbers; what is null interrupts a line.
function pieces(values, x, y) {
  const found = [];
  let piece = [];
  values.forEach((value, index) => {
    if (value === null) {
      if (piece.length) found.push(piece);
      piece = [];
    } else {
      piece.push([x(index), y(value)]);
    }
  });
  if (piece.length) found.push(piece);
  return found;
}

export function nothing(figure, text) {
  figure.replaceChildren(element("p", "empty", text));
}

function ticks({ svg, wide, high }, times) {
  svg.append(words(LEFT, high - 3, "start", times[0]), words(wide, high - 3, "end", times[1]));
}

// values: shares 0..1 or null; times: what stands under both ends.
export function lineChart(figure, label, values, times) {
  const drawn = frame(figure, label, [[0, "0 %"], [0.5, "50 %"], [1, "100 %"]]);
  const { svg, wide, height } = drawn;
  const step = (wide - LEFT) / Math.max(values.length - 1, 1);
  for (const piece of pieces(values, (index) => LEFT + index * step, height)) {
    if (piece.length === 1) piece.push([piece[0][0] + Math.max(step, 1.5), piece[0][1]]);
    const first = piece[0][0].toFixed(1);
    const last = piece[piece.length - 1][0].toFixed(1);
    const floor = height(0);
    svg.append(shape("path", "hit-fill", { d: `${path(piece)}L${last} ${floor}L${first} ${floor}Z` }));
    svg.append(shape("path", "hit", { d: path(piece) }));
  }
  ticks(drawn, times);
  figure.replaceChildren(svg);
}

// Areas one on the other. most: what the whole height stands for; name: that number in words.
export function stackChart(figure, label, held, kept, most, name, times) {
  const drawn = frame(figure, label, [[0, "0"], [1, name]]);
  const { svg, wide, height } = drawn;
  const step = (wide - LEFT) / Math.max(held.length - 1, 1);
  const area = (low, high, kind) => {
    const x = (index) => LEFT + index * step;
    const up = high.map((value, index) => [x(index), height(Math.min(value / most, 1))]);
    const down = low.map((value, index) => [x(index), height(Math.min(value / most, 1))]).reverse();
    if (up.length === 1) {
      up.push([x(0) + 2, up[0][1]]);
      down.unshift([x(0) + 2, down[0][1]]);
    }
    svg.append(shape("path", kind, { d: path(up) + "L" + path(down).slice(1) + "Z" }));
  };
  area(held.map(() => 0), held, "held");
  area(held, held.map((value, index) => value + kept[index]), "kept");
  ticks(drawn, times);
  figure.replaceChildren(svg);
}

// Hit rate over the size of the pool, which doubles from tick to tick; marks: [size, rate, class].
export function curveChart(figure, label, sizes, rates, now, marks) {
  const { svg, wide, high, height } = frame(figure, label, [[0, "0 %"], [0.5, "50 %"], [1, "100 %"]]);
  const low = Math.log2(sizes[0]);
  const span = Math.max(Math.log2(sizes[sizes.length - 1]) - low, 1e-9);
  const x = (size) => LEFT + 6 + ((Math.log2(size) - low) / span) * (wide - LEFT - 20);
  const points = sizes.map((size, index) => [x(size), height(rates[index])]);
  const floor = height(0);
  const last = points[points.length - 1][0].toFixed(1);
  svg.append(shape("path", "hit-fill", {
    d: `${path(points)}L${last} ${floor}L${points[0][0].toFixed(1)} ${floor}Z`,
  }));
  svg.append(shape("line", "now", { x1: x(now), x2: x(now), y1: TOP, y2: floor }));
  svg.append(shape("path", "hit", { d: path(points) }));
  for (const [size, rate, kind] of marks) {
    svg.append(shape("circle", "mark " + kind, { cx: x(size), cy: height(rate), r: 4 }));
  }
  for (const [times, name] of [[0.25, "¼"], [0.5, "½"], [1, "1"], [2, "2 ×"], [4, "4 ×"]]) {
    const size = now * times;
    if (size >= sizes[0] && size <= sizes[sizes.length - 1] * 1.001) {
      svg.append(words(x(size), high - 3, "middle", name));
    }
  }
  figure.replaceChildren(svg);
}
