// The last requests as bars, and why not more of each came from the cache.

import { getWhose, request } from "./api.js";
import { at, clock, count, duration, element, percent } from "./format.js";

const SHOWN = 24;
const PARTS = ["cached", "approximate", "computed", "generated"];
const REASONS = {
  new: "The prompt goes on with what was not cached",
  diverged: "The prompt goes on differently from what was cached",
  evicted: "What would have matched had been evicted",
  invalidated: "What would have matched had been invalidated",
  expired: "What would have matched had expired",
  too_short: "All that can be reused was",
  no_store: "A request like this one had left nothing",
  engine_changed: "It was cached by another engine",
};

let largest = 1;

function amounts(one) {
  return {
    cached: one.cached_tokens,
    approximate: one.approximate_tokens,
    computed: one.computed_tokens,
    generated: one.generated_tokens,
  };
}

function bar(one) {
  const made = element("span", "bar", "");
  const values = amounts(one);
  for (const part of PARTS) {
    if (!values[part]) continue;
    const piece = element("i", part, "");
    piece.dataset.tokens = values[part];
    made.append(piece);
  }
  return made;
}

// Lengths follow the square root: a prompt of ten thousand tokens leaves one of fifty visible.
function scale() {
  for (const made of at("requests").querySelectorAll(".bar")) {
    const pieces = [...made.children];
    const all = pieces.reduce((sum, piece) => sum + Number(piece.dataset.tokens), 0);
    made.style.width = 100 * Math.sqrt(all / largest) + "%";
    for (const piece of pieces) piece.style.flex = `${piece.dataset.tokens} 0 2px`;
  }
}

function spoken(one) {
  const values = amounts(one);
  return PARTS.filter((part) => values[part]).map((part) => `${count(values[part])} ${part}`).join(", ");
}

function summary(one) {
  const reused = one.cached_tokens + one.approximate_tokens;
  const share = one.prompt_tokens ? percent(reused / one.prompt_tokens) : "–";
  const parts = [`${share} of ${count(one.prompt_tokens)}`, duration(one.seconds)];
  if (one.outcome !== "finished") parts.unshift(one.outcome);
  else if (one.namespace !== undefined) parts.unshift(one.namespace.slice(0, 12) || "–");
  return parts.join("  ·  ");
}

function word(list, name, text) {
  if (text && text.trim()) list.append(element("dt", "", name), element("dd", "", text));
}

async function explain(one, place) {
  let told = one;
  if (getWhose() !== "*") {
    try {
      told = await request("/v1/cache/requests/" + one.number);
    } catch {
      // it is no more among the last ones: what came with it is still true
    }
  }
  const found = told.explanation;
  const lines = [element("p", "", spoken(one))];
  if (one.seconds_saved >= 0.0005) lines.push(element("p", "", duration(one.seconds_saved) + " of computing saved, estimated"));
  if (!found) {
    lines.push(element("p", "", "Its prompt was not computed, so there is nothing to explain."));
  } else {
    const where = found.position < one.prompt_tokens ? `, from token ${count(found.position + 1)} on` : "";
    lines.push(element("p", "", (REASONS[found.reason] || found.reason) + where + "."));
    if (found.advice) lines.push(element("p", "advice", found.advice));
    const list = element("dl", "words", "");
    if (found.cached) word(list, "cached", found.cached.text || found.cached.token);
    if (found.wanted) word(list, "this prompt", found.wanted.text || found.wanted.token);
    if (list.children.length) lines.push(list);
    else if (told.in_words === false) {
      lines.push(element("p", "", "In words it is known of requests that ran while somebody was watching."));
    }
  }
  place.replaceChildren(...lines);
}

function show(one) {
  const row = element("li", "request", "");
  const button = element("button", "", "");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Request ${one.number}: ${spoken(one)}. Explain`);
  button.append(element("span", "at", clock(one.ended)), bar(one), element("span", "sum", summary(one)));
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", String(open));
    const before = row.querySelector(".why");
    if (before) before.remove();
    if (open) {
      const place = element("div", "why", "");
      row.append(place);
      explain(one, place);
    }
  });
  row.append(button);
  return row;
}

export function begin() {
  largest = 1;
  at("requests").replaceChildren(element("li", "empty", "No request yet."));
}

export function take(told) {
  const list = at("requests");
  const empty = list.querySelector(".empty");
  if (empty && told.requests.length) empty.remove();
  const fresh = told.requests.slice(-SHOWN).reverse().map(show);
  list.prepend(...fresh);
  while (list.children.length > SHOWN) list.lastElementChild.remove();
  for (const one of told.requests) largest = Math.max(largest, one.prompt_tokens + one.generated_tokens);
  scale();
}
