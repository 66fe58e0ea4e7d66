// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  if (value < 1e6) return whole.format(value);
  return value < 1e9 ? (value / 1e6).toFixed(1) + " M" : (value / 1e9).toFixed(1) + " G";
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1024 && place < units.length - 1) {
    value /= 1024;
    place += 1;
  }
  return (place && value < 10 ? value.toFixed(1) : Math.round(value)) + " " + units[place];
}

export function percent(share) {
  const value = 100 * share;
  return (value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)) + " %";
}

export function duration(seconds) {
  if (seconds < 0.0995) return Math.round(seconds * 1000) + " ms";
  if (seconds < 9.95) return seconds.toFixed(1) + " s";
  if (seconds < 60) return Math.round(seconds) + " s";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + " min " + Math.floor(seconds % 60) + " s";
  if (minutes < 48 * 60) return Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
  return Math.floor(minutes / 1440) + " d " + (Math.floor(minutes / 60) % 24) + " h";
}

// The same of something that goes on: seconds without fractions.
export function lasting(seconds) {
  return seconds < 60 ? Math.floor(seconds) + " s" : duration(seconds);
}

export function ago(seconds) {
  return seconds < 1 ? "now" : lasting(seconds) + " ago";
}

export function several(number, word) {
  return count(number) + " " + word + (number === 1 ? "" : "s");
}

export function clock(wall) {
  return new Date(wall * 1000).toLocaleTimeString("en-GB");
}

// An element with a class and a text; whatever the text is, it stays text.
export function element(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

export const at = (id) => document.getElementById(id);

export function put(id, text) {
  const place = at(id);
  if (place.textContent !== text) place.textContent = text;
}
