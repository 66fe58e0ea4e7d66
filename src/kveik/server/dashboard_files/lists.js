// Named caches with their time left; sessions and streams.

import { getWhose, request } from "./api.js";
import { at, bytes, count, element, lasting, several } from "./format.js";

let tell = () => {};
const longest = new Map(); // name -> most seconds seen left: what the bar is full at
const shown = { names: "", sessions: "" };

function fact(made, text) {
  made.append(element("span", "", text));
}

function button(label, described, act) {
  const made = element("button", "", label);
  made.type = "button";
  made.setAttribute("aria-label", described);
  made.addEventListener("click", act);
  return made;
}

async function change(path, options, done) {
  try {
    await request(path, options);
    tell(done);
  } catch (error) {
    tell(error.message);
  }
}

function countdown(cache) {
  const most = Math.max(longest.get(cache.name) || 0, cache.time_left);
  longest.set(cache.name, most);
  const bar = element("span", "left", "");
  const full = element("i", "", "");
  full.dataset.until = performance.now() / 1000 + cache.time_left;
  full.dataset.most = most;
  bar.append(full);
  return bar;
}

function name(cache, mine) {
  const row = element("li", "row", "");
  row.append(element("span", "title", cache.name));
  const when = element("span", "when", cache.time_left === null ? "no deadline" : "");
  if (cache.time_left !== null) {
    when.classList.add("timed");
    when.dataset.until = performance.now() / 1000 + cache.time_left;
    when.textContent = lasting(cache.time_left) + " left";
  }
  const facts = element("p", "facts", "");
  fact(facts, cache.status);
  fact(facts, several(cache.tokens, "token"));
  fact(facts, bytes(cache.bytes));
  if (cache.hits !== null) fact(facts, several(cache.hits, "hit"));
  if (cache.public) fact(facts, "public");
  for (const tag of cache.tags) facts.append(element("span", "chip", tag));
  const buttons = element("span", "buttons", "");
  if (mine(cache)) {
    const path = "/v1/caches/" + encodeURIComponent(cache.name);
    buttons.append(button(cache.pinned ? "Unpin" : "Pin", `Pin ${cache.name}`, () =>
      change(path, { method: "PATCH", body: { pin: !cache.pinned } }, cache.name + ": changed")));
    buttons.append(button("End", `End ${cache.name}`, () =>
      change(path, { method: "DELETE" }, cache.name + ": ended")));
  }
  row.append(when, facts, buttons);
  if (cache.time_left !== null) row.append(countdown(cache));
  return row;
}

function session(one, streams) {
  const row = element("li", "row", "");
  row.append(element("span", "title", one.session));
  row.append(element("span", "when", one.idle ? "idle " + lasting(one.idle) : "answering"));
  const facts = element("p", "facts", "");
  fact(facts, several(one.blocks, "block"));
  for (const stream of streams) facts.append(...window_(stream));
  const buttons = element("span", "buttons", "");
  buttons.append(button("End", `End session ${one.session}`, () =>
    change("/v1/sessions/" + encodeURIComponent(one.session), { method: "DELETE" }, one.session + ": ended")));
  row.append(facts, buttons);
  return row;
}

function window_(stream) {
  const text = `stream ${stream.sinks}+${stream.window}`;
  const parts = [element("span", "chip", text)];
  if (stream.evicted) parts.push(element("span", "", count(stream.evicted) + " tokens forgotten"));
  return parts;
}

function alone(stream) {
  const row = element("li", "row", "");
  row.append(element("span", "title", "a stream of one request"), element("span", "when", "answering"));
  const facts = element("p", "facts", "");
  facts.append(...window_(stream));
  row.append(facts);
  return row;
}

// A list is made anew only when something in it changed, and not while somebody works in it.
function replace(id, key, rows, empty) {
  if (shown[id] === key || at(id).contains(document.activeElement)) return;
  shown[id] = key;
  at(id).replaceChildren(...(rows.length ? rows : [element("li", "empty", empty)]));
}

export function take(told, about) {
  const everybody = getWhose() === "*";
  const closed = "Choose one tenant above to see what is its own.";
  const mine = (cache) => about.operator || !cache.public;
  replace("names", JSON.stringify(told.caches), told.caches.map((one) => name(one, mine)),
    everybody ? closed : "No named cache. POST /v1/caches makes one.");
  const known = new Set(told.sessions.map((one) => one.session));
  const rows = told.sessions.map((one) =>
    session(one, told.streams.filter((stream) => stream.session === one.session)));
  rows.push(...told.streams.filter((stream) => !known.has(stream.session)).map(alone));
  replace("sessions", JSON.stringify([told.sessions, told.streams]), rows,
    everybody ? closed : "No session holds anything.");
}

export function tick() {
  for (const full of document.querySelectorAll(".left i")) {
    const left = Math.max(Number(full.dataset.until) - performance.now() / 1000, 0);
    full.style.width = (100 * left) / Math.max(Number(full.dataset.most), 1e-9) + "%";
  }
}

export function startLists(notice) {
  tell = notice;
}

