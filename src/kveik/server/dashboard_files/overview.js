// What was saved today; hit rate and memory over time; hit rate against memory.

import { request } from "./api.js";
import { curveChart, lineChart, nothing, stackChart } from "./charts.js";
import { at, bytes, clock, count, duration, percent, put, several } from "./format.js";

const HOUR = 360; // steps of ten seconds
const SIX_HOURS = 2160;

let about = null;
let history = null;
let curve = null;
let steps = HOUR;
let total = 0; // bytes of the pool
let measured = []; // [held, kept] bytes of what this page saw, one per second
let pending = false;

export function begin(told) {
  about = told;
  measured = [];
  history = curve = null;
  total = (told.pool_blocks || 0) * told.block_bytes;
  at("curve-card").hidden = !told.operator;
  put("model", told.model);
}

export function now(told) {
  const today = told.today;
  const reused = today.cached_tokens + today.approximate_tokens;
  put("saved-seconds", duration(today.seconds_saved));
  put("saved-tokens", count(reused));
  put("saved-share", today.prompt_tokens ? percent(today.share) : "–");
  const parts = [several(today.requests, "request"), count(today.prompt_tokens) + " prompt tokens"];
  if (today.approximate_tokens) parts.push(count(today.approximate_tokens) + " reused approximately");
  const state = told.now;
  if (state) {
    parts.push(state.running + " running", state.waiting + " waiting");
    total = state.total_bytes;
  }
  put("today-aside", parts.join("  ·  "));
}

// Blocks on the map by kind: what the memory of one namespace is made of.
export function measure(held, kept) {
  if (about && !about.operator) {
    measured.push([held * about.block_bytes, kept * about.block_bytes]);
    if (measured.length > 3600) measured.shift();
    if (measured.length % 5 === 1) drawMemory();
  }
}

export function past(told) {
  if (steps === HOUR) {
    history = told;
    draw();
  } else {
    fetchHistory();
  }
}

export function against(told) {
  curve = told;
  drawCurve();
}

async function fetchHistory() {
  if (pending) return;
  pending = true;
  try {
    history = await request("/v1/cache/history", { query: { steps }, scoped: about.scope === "all" });
    draw();
  } catch {
    // the next event brings the hour again
  } finally {
    pending = false;
  }
}

function times() {
  return [clock(history.start).slice(0, 5), "now"];
}

// Sums over neighbouring steps: a minute of an hour, five of six; it is a rate, and calm to look at.
function smooth(values, wide) {
  let sum = 0;
  return values.map((value, index) => {
    sum += value - (index >= wide ? values[index - wide] : 0);
    return sum;
  });
}

function drawHits() {
  const series = history.series;
  const wide = steps === HOUR ? 6 : 30;
  const asked = smooth(series.prompt_tokens, wide);
  const cached = smooth(series.cached_tokens, wide);
  const approximate = smooth(series.approximate_tokens, wide);
  const rates = asked.map((value, index) =>
    value > 0 ? (cached[index] + approximate[index]) / value : null);
  if (rates.every((rate) => rate === null)) {
    nothing(at("hits-chart"), "No prompt in this time.");
    return;
  }
  lineChart(at("hits-chart"), "Share of prompt tokens from the cache over time", rates, times());
}

function drawMemory() {
  const series = history && history.series;
  if (series && series.used_bytes) {
    const name = bytes(total);
    stackChart(at("memory-chart"), "Bytes of keys and values over time", series.used_bytes,
      series.cached_bytes, Math.max(total, 1), name, times());
  } else if (measured.length > 1) {
    const most = Math.max(...measured.map(([held, kept]) => held + kept), 1) * 1.15;
    stackChart(at("memory-chart"), "Your bytes of keys and values since this page is open",
      measured.map(([held]) => held), measured.map(([, kept]) => kept), most, bytes(most),
      ["opened", "now"]);
  } else {
    nothing(at("memory-chart"), "Measured while this page is open.");
  }
}

function drawCurve() {
  if (!curve) return;
  const figure = at("curve-chart");
  if (!curve.tokens) {
    nothing(figure, "It takes some prompts to say what another size of pool would serve.");
    return;
  }
  const marks = [
    [Math.max(curve.now / 2, curve.sizes[0]), curve.half, ""],
    [curve.now, curve.this, "this"],
    [Math.min(curve.now * 2, curve.sizes[curve.sizes.length - 1]), curve.twice, ""],
  ];
  curveChart(figure, "Hit rate that pools of other sizes would have had", curve.sizes,
    curve.hit_rates, curve.now, marks);
  put("size-half", percent(curve.half));
  put("size-this", percent(curve.this));
  put("size-twice", percent(curve.twice));
}

export function draw() {
  if (history) drawHits();
  if (about) drawMemory();
  drawCurve();
}

function choose(wanted) {
  steps = wanted;
  at("span-hour").setAttribute("aria-pressed", String(steps === HOUR));
  at("span-six").setAttribute("aria-pressed", String(steps === SIX_HOURS));
  fetchHistory();
}

export function startOverview() {
  at("span-hour").addEventListener("click", () => choose(HOUR));
  at("span-six").addEventListener("click", () => choose(SIX_HOURS));
  new ResizeObserver(draw).observe(at("board"));
}
