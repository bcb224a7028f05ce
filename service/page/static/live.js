// Keeps the live parts of an open page up to date.
//
// A live part is an element with an id and `data-live`: the beginnings of the kinds of events that concern it ("job
// version"), and optionally `data-every`: seconds after which it is asked for anyway. The server sends that something has
// changed (server-sent events); the page then asks for these parts of its own address and changes what differs, so that
// focus, selection, open details and the position on the screen stay.
import { morph } from "./morph.js";
import { updateTimes } from "./times.js";

const GATHER_MILLISECONDS = 250;
const PATIENCE_MILLISECONDS = 4000;
const SHOWN_MILLISECONDS = 2500;
const FIRST_RETRY_MILLISECONDS = 2000;
const LONGEST_RETRY_MILLISECONDS = 60_000;
const REQUEST_MILLISECONDS = 15_000;

const bar = document.getElementById("connection");
const wanted = new Set();
const works = { stream: true, requests: true };
let source = null;
let retry = FIRST_RETRY_MILLISECONDS;
let gathering = null;
let losing = null;
let isAsking = false;
let isEnded = false;
let prepare = () => {};
const firstQuery = location.search;

export function enliven(prepareParts) {
  prepare = prepareParts;
  if (!document.body.dataset.stream || parts().length === 0) return;
  document.addEventListener("visibilitychange", follow);
  addEventListener("pagehide", close);
  addEventListener("pageshow", follow);
  setInterval(askRegularly, 1000);
  follow();
}

const parts = () => [...document.querySelectorAll("[data-live]")];
const isHidden = () => document.visibilityState === "hidden";

// A hidden page holds no connection: browsers permit few per server. It catches up when it is shown.
function follow() {
  if (isHidden()) close();
  else open();
}

function close() {
  source?.close();
  source = null;
}

function open() {
  if (source || isEnded || isHidden()) return;
  source = new EventSource(document.body.dataset.stream);
  // A new stream begins with the next event; one that is continued begins where it ended.
  source.addEventListener("open", () => ask(parts()), { once: true });
  source.addEventListener("open", () => {
    retry = FIRST_RETRY_MILLISECONDS;
    note("stream", true);
  });
  source.addEventListener("change", (event) => {
    const { kind } = JSON.parse(event.data);
    ask(parts().filter((part) => concerns(part, kind)));
  });
  source.addEventListener("error", () => {
    note("stream", false);
    if (source?.readyState !== EventSource.CLOSED) return;
    // It was refused, and does not say why: the page's own address does.
    source = null;
    ask(parts());
    setTimeout(open, retry);
    retry = Math.min(2 * retry, LONGEST_RETRY_MILLISECONDS);
  });
}

function concerns(part, kind) {
  return part.dataset.live.split(" ").some((beginning) => kind.startsWith(beginning));
}

// Streams end regularly and are opened again: only what stays away is worth a word.
function note(which, isWell) {
  works[which] = isWell;
  if (!works.stream || !works.requests) {
    losing ??= setTimeout(() => say("lost", "Connection lost. What you see may be old; trying again…"), PATIENCE_MILLISECONDS);
    return;
  }
  clearTimeout(losing);
  losing = null;
  if (bar.dataset.state !== "lost") return;
  say("back", "Connected again.");
  setTimeout(() => { if (bar.dataset.state === "back") say(""); }, SHOWN_MILLISECONDS);
  ask(parts());
}

function say(state, text = "", link = null) {
  bar.textContent = text;
  if (link) {
    const element = document.createElement("a");
    element.href = link.href;
    element.textContent = link.text;
    bar.append(" ", element);
  }
  if (state) bar.dataset.state = state;
  else delete bar.dataset.state;
}

function end(text, link) {
  isEnded = true;
  close();
  clearTimeout(losing);
  say("ended", text, link);
}

function askRegularly() {
  if (isHidden()) return;
  const now = performance.now();
  ask(parts().filter((part) => {
    const every = Number(part.dataset.every);
    part.askedAt ??= now;
    if (!every || now - part.askedAt < every * 1000) return false;
    part.askedAt = now;
    return true;
  }));
}

// Events come in bursts: one request for all that they concern.
export function ask(some) {
  for (const part of some) wanted.add(part.id);
  if (wanted.size && !isEnded) gathering ??= setTimeout(askNow, GATHER_MILLISECONDS);
}

async function askNow() {
  gathering = null;
  if (isAsking || isEnded) return;
  const some = parts().filter((part) => wanted.has(part.id));
  wanted.clear();
  if (!some.length) return;
  isAsking = true;
  const isWell = await refresh(some);
  isAsking = false;
  if (isEnded) return;
  note("requests", isWell);
  if (isWell) ask([]);
  else setTimeout(() => ask(some), FIRST_RETRY_MILLISECONDS);
}

// Returns whether the server answered.
async function refresh(some) {
  const address = new URL(location.href);
  const query = address.search;
  address.hash = "";
  address.searchParams.delete("done");
  for (const part of some) address.searchParams.append("fragment", part.id);
  const { status, found } = await load(address);
  const here = { href: location.href, text: "Reload" };
  if (status === 401) end("You were signed out, or your session has ended.", { ...here, text: "Sign in" });
  else if (status === 403) end("Your key no longer permits this page.", here);
  else if (status === 404) end("This was deleted while the page was open.", { ...here, href: document.querySelector(".brand").href, text: "Overview" });
  // Another release of the service has other parts.
  else if (status === 422) end("The service was updated.", here);
  if (status !== 200) return false;
  for (const part of some) {
    const newer = found.getElementById(part.id);
    if (newer) change(part, newer, query);
    prepare(part);
  }
  updateTimes();
  return true;
}

// New rows on top of a list would move what is being read: they wait behind a button whose place is reserved.
function change(part, newer, query) {
  // A list that is searched has other rows, of which none has arrived.
  const isSame = (part.shownQuery ?? firstQuery) === query;
  part.shownQuery = query;
  const button = isSame && document.querySelector(`[data-arrivals="${part.id}"]`);
  const known = new Set([...part.querySelectorAll("[data-newest-first] > *")].map(({ id }) => id));
  const rows = [...newer.querySelectorAll("[data-newest-first] > *")];
  const arrived = rows.slice(0, Math.max(0, rows.findIndex(({ id }) => known.has(id))));
  const whole = newer.cloneNode(true);
  for (const row of button ? arrived : []) row.remove();
  morph(part, newer);
  if (!button) return;
  // It may be within the part, and was emptied.
  button.textContent = arrived.length ? `${arrived.length} new` : "";
  button.onclick = () => {
    morph(part, whole);
    button.textContent = "";
    prepare(part);
    updateTimes();
  };
}

// XMLHttpRequest and not fetch: it parses a document itself, so that no script here turns text into markup.
export function load(address) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("GET", address);
    request.responseType = "document";
    request.timeout = REQUEST_MILLISECONDS;
    request.addEventListener("loadend", () => resolve({ status: request.response ? request.status : 0, found: request.response }));
    request.send();
  });
}
