// The prefix tree: rows that open and fold, and what may be done to a row.

import { request } from "./api.js";
import { ago, at, bytes, count, element, lasting, put, several } from "./format.js";
import { readable } from "./blockmap.js";

const ROWS = 15;
const MOST = 200;

let tell = () => {};

function facts(row) {
  const made = element("p", "facts", "");
  const add = (text) => made.append(element("span", "", text));
  for (const claim of row.claims) {
    const chip = element("span", claim.startsWith("pin") ? "chip pin" : "chip", readable(claim));
    made.append(chip);
  }
  if (row.approximate) made.append(element("span", "chip", "approximate"));
  if (row.salted) made.append(element("span", "chip", "salted"));
  if (row.after_public) add("behind public text");
  add(several(row.tokens, "token"));
  add(bytes(row.bytes));
  add(several(row.hits, "hit"));
  add(row.readers ? "in use" : "used " + ago(row.idle));
  if (row.time_left !== null) {
    const left = element("span", "timed", "");
    left.dataset.until = performance.now() / 1000 + row.time_left;
    left.textContent = lasting(row.time_left) + " left";
    made.append(left);
  }
  if (row.demoted) add("first to go");
  if (row.priority !== "normal") add(row.priority + " priority");
  if (row.blocks_below) {
    add((row.more_below ? "at least " : "") + several(row.blocks_below, "block") + " below");
  }
  return made;
}

// A deed that cannot be taken back asks once more.
function asks(button, sure, act) {
  const plain = button.textContent;
  let timer = 0;
  const calm = () => {
    button.classList.remove("sure");
    button.textContent = plain;
    timer = 0;
  };
  button.addEventListener("click", () => {
    if (!timer) {
      button.classList.add("sure");
      button.textContent = sure;
      timer = setTimeout(calm, 4000);
      return;
    }
    clearTimeout(timer);
    calm();
    act();
  });
}

function deed(row, name, label, title) {
  const button = element("button", "", label);
  button.type = "button";
  button.title = title;
  button.setAttribute("aria-label", `${label}: ${row.text.slice(0, 60)}`);
  button.dataset.deed = name;
  return button;
}

function deeds(row, done) {
  const made = element("div", "deeds", "");
  const act = async (action) => {
    try {
      const receipt = await request("/v1/cache/tree", {
        method: "POST", body: { node: row.node, action },
      });
      tell(`${action}: ${several(receipt.blocks, "block")}, ${several(receipt.tokens, "token")}`);
    } catch (error) {
      tell(error.message);
    }
    done();
  };
  const pin = row.pinned_by_hand
    ? deed(row, "unpin", "Unpin", "It may be evicted again")
    : deed(row, "pin", "Pin", "Never evict what leads here");
  pin.addEventListener("click", () => act(row.pinned_by_hand ? "unpin" : "pin"));
  const evict = deed(row, "evict", "Evict", "Make room: what is idle of this, and of all below");
  asks(evict, "Really evict", () => act("evict"));
  const expire = deed(row, "expire", "Expire", "Delete and overwrite this and all below, now");
  asks(expire, "Really expire", () => act("expire"));
  made.append(pin, evict, expire);
  return made;
}

// The text of a row; tokens that are no words, such as <|begin|>, stand back.
function say(place, row, open) {
  const text = (open ? row.text : row.text.replaceAll("\n", "⏎ ")) + (row.cut ? " …" : "");
  const parts = text.split(/(<\|[^|<>]{1,40}\|>)/);
  place.replaceChildren(...parts.filter((part) => part).map((part) =>
    element("span", /^<\|[^|<>]+\|>$/.test(part) ? "special" : "", part)));
}

function show(row, done) {
  const made = element("li", "", "");
  const line = element("div", "node", "");
  const twist = element("button", "twist", "");
  twist.type = "button";
  twist.disabled = !row.children;
  const said = element("button", "said", "");
  said.type = "button";
  said.setAttribute("aria-expanded", "false");
  said.addEventListener("click", () => {
    const open = said.getAttribute("aria-expanded") === "false";
    said.setAttribute("aria-expanded", String(open));
    say(said, row, open);
  });
  say(said, row, false);
  twist.setAttribute("aria-label", row.children ? "What follows" : "Nothing follows");
  if (row.children) twist.setAttribute("aria-expanded", "false");
  twist.addEventListener("click", () => {
    const open = twist.getAttribute("aria-expanded") === "false";
    twist.setAttribute("aria-expanded", String(open));
    const below = made.querySelector(":scope > ol");
    if (below) below.remove();
    if (open) {
      const list = element("ol", "", "");
      made.append(list);
      fill(list, row.node, done);
    }
  });
  line.append(twist, said, deeds(row, done), facts(row));
  made.append(line);
  return made;
}

async function fill(list, node, done, most = ROWS) {
  try {
    const found = await request("/v1/cache/tree", { query: { node, rows: most } });
    const again = () => fill(list, node, done, most);
    const rows = found.rows.map((row) => show(row, again));
    const left = found.count - found.rows.length;
    if (left > 0) rows.push(more(left, most, () => fill(list, node, done, MOST)));
    if (!rows.length) rows.push(element("li", "empty", "Nothing is cached here."));
    list.replaceChildren(...rows);
    if (node === null) put("tree-aside", several(found.count, "beginning"));
  } catch (error) {
    if (error.status === 404 && node !== null) look();
    else list.replaceChildren(element("li", "empty", error.message));
  }
}

function more(left, most, act) {
  const made = element("li", "more", "");
  const text = `${count(left)} more, used longer ago`;
  if (most >= MOST) {
    made.textContent = text;
    return made;
  }
  const button = element("button", "quiet", text);
  button.type = "button";
  button.addEventListener("click", act);
  made.append(button);
  return made;
}

export function look() {
  return fill(at("tree"), null);
}

// Of everybody the tree is not shown: whose words these are is for their owner to see.
export function hide(text) {
  put("tree-aside", "");
  at("tree").replaceChildren(element("li", "empty", text));
}

export function tick() {
  for (const left of document.querySelectorAll(".timed")) {
    const seconds = Math.max(Number(left.dataset.until) - performance.now() / 1000, 0);
    const text = lasting(seconds) + " left";
    if (left.textContent !== text) left.textContent = text;
  }
}

export function startTree(notice) {
  tell = notice;
  at("tree-again").addEventListener("click", look);
  at("tree-fold").addEventListener("click", () => {
    for (const twist of at("tree").querySelectorAll('.twist[aria-expanded="true"]')) {
      if (twist.isConnected) twist.click();
    }
  });
}
