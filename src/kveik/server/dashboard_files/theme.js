// auto, light or dark; remembered in this browser.

import { at } from "./format.js";

const NAMES = ["auto", "light", "dark"];
const listeners = [];

export function onTheme(listener) {
  listeners.push(listener);
}

function show(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  at("theme").textContent = "Theme: " + name;
  for (const listener of listeners) listener();
}

export function startTheme() {
  let name = localStorage.getItem("kveik-theme");
  if (!NAMES.includes(name)) name = "auto";
  at("theme").addEventListener("click", () => {
    name = NAMES[(NAMES.indexOf(name) + 1) % NAMES.length];
    localStorage.setItem("kveik-theme", name);
    show(name);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(name));
  show(name);
}
