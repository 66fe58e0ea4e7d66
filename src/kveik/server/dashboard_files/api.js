// The server: one key, plain requests, and the stream of changes.

const KEY = "kveik-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

// Whose cache is looked at: "" (own), "*" (of everybody), or the name of a tenant.
let whose = "";

export function setWhose(name) {
  whose = name;
}

export function getWhose() {
  return whose;
}

function address(path, query, scoped) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) url.searchParams.set(name, value);
  }
  if (scoped && whose === "*") url.searchParams.set("scope", "all");
  else if (whose && whose !== "*") url.searchParams.set("namespace", whose);
  return url;
}

async function ask(path, { method = "GET", query = {}, body = null, scoped = false, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = "Bearer " + key;
  if (body !== null) headers["Content-Type"] = "application/json";
  const response = await fetch(address(path, query, scoped), {
    method, headers, signal, body: body === null ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  let message = "the server answered " + response.status;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: the status says enough
  }
  throw new Refused(response.status, message);
}

export async function request(path, options) {
  return (await ask(path, options)).json();
}

// Calls take(name, data) for every event until the stream ends; rejects when it breaks.
export async function watch(take, signal, rate) {
  const response = await ask("/v1/cache/watch", { query: { rate }, scoped: true, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const block = held.slice(0, end);
      held = held.slice(end + 2);
      if (!block.startsWith("event: ")) continue;
      const line = block.indexOf("\n");
      take(block.slice(7, line), JSON.parse(block.slice(line + 7)));
    }
  }
}
