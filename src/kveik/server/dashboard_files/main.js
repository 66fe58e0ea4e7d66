// Puts the page together: key, whose cache, the stream, and a clock for what counts down.

import { Refused, getWhose, hasKey, setKey, setWhose, watch } from "./api.js";
import { at, element, put } from "./format.js";
import { startTheme } from "./theme.js";
import * as overview from "./overview.js";
import * as blockmap from "./blockmap.js";
import * as tree from "./tree.js";
import * as lists from "./lists.js";
import * as requests from "./requests.js";

const RATE = new URLSearchParams(location.search).get("rate"); // updates per second; null: as is cheap
const AGAIN = 2000; // milliseconds until a stream that broke is asked for again

let about = null;
let running = null; // the controller of the stream
let paused = false;
let noticeTimer = 0;

function notice(text) {
  at("notice").hidden = false;
  put("notice", text);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { at("notice").hidden = true; }, 6000);
}

function live(state, text) {
  at("live").dataset.state = state;
  put("live", text);
}

const EVENTS = {
  about(told) {
    about = told;
    at("board").hidden = false;
    at("key-form").hidden = true;
    overview.begin(told);
    blockmap.begin(told);
    requests.begin();
    offerTenants(told);
    if (told.scope === "all") tree.hide("Choose one tenant above to open its tree.");
    else tree.look();
  },
  now: overview.now,
  history: overview.past,
  curve: overview.against,
  blocks: blockmap.take,
  requests: requests.take,
  lists: (told) => lists.take(told, about),
};

function offerTenants(told) {
  const choices = told.operator && told.tenants.length ? [["*", "everybody"], ["", "own"]] : [];
  if (choices.length) {
    choices.push(...told.tenants.map((name) => [name, name]), ["public", "public"]);
  }
  at("whose-row").hidden = !choices.length;
  at("whose").replaceChildren(...choices.map(([value, text]) => {
    const made = element("option", "", text);
    made.value = value;
    made.selected = value === getWhose();
    return made;
  }));
}

async function follow() {
  if (running) running.abort();
  const mine = new AbortController();
  running = mine;
  live("", "connecting");
  try {
    await watch((name, told) => {
      if (mine.signal.aborted) return;
      if (name === "about") live("live", "live");
      if (name in EVENTS) EVENTS[name](told);
    }, mine.signal, RATE);
    if (!mine.signal.aborted) throw new Error("the server ended the stream");
  } catch (error) {
    if (mine.signal.aborted) return;
    lost(error, mine);
  }
}

function lost(error, mine) {
  if (error instanceof Refused && error.status === 401) {
    askForKey(hasKey() ? "This key is not known here." : "");
    return;
  }
  if (error instanceof Refused && error.status === 403 && getWhose()) {
    setWhose("");
    follow();
    return;
  }
  live("lost", error instanceof Refused ? error.message : "no connection");
  setTimeout(() => { if (running === mine && !paused) follow(); }, AGAIN);
}

function askForKey(text) {
  setKey("");
  live("", "locked");
  at("board").hidden = true;
  at("key-form").hidden = false;
  put("key-wrong", text);
  at("key").focus();
}

function pause() {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  put("pause", paused ? "Resume" : "Pause");
  if (paused) {
    running.abort();
    live("", "paused");
  } else {
    follow();
  }
}

function tick() {
  if (!about || paused) return;
  blockmap.tick();
  overview.measure(...blockmap.totals());
  tree.tick();
  lists.tick();
}

startTheme();
overview.startOverview();
blockmap.startMap();
tree.startTree(notice);
lists.startLists(notice);
at("pause").addEventListener("click", pause);
at("whose").addEventListener("change", () => {
  setWhose(at("whose").value);
  follow();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(at("key").value.trim());
  at("key").value = "";
  follow();
});
setInterval(tick, 1000);
follow();
