// Changes an element so that it equals another one, and leaves alone what is equal already.

export function morph(older, newer) {
  if (older.isEqualNode(newer)) return;
  changeAttributes(older, newer);
  changeChildren(older, newer);
}

// What the reader has opened, chosen or typed stays.
const OF_THE_READER = { DETAILS: ["open"], INPUT: ["value", "checked"], TEXTAREA: ["value"], OPTION: ["selected"], DIALOG: ["open"] };
// What scripts have changed since the page was loaded.
const OF_SCRIPTS = { BUTTON: ["hidden"], TIME: [] };

function changeAttributes(older, newer) {
  const kept = [...(OF_THE_READER[older.tagName] ?? []), ...(older.hasAttribute("data-share") ? OF_SCRIPTS.BUTTON : [])];
  for (const { name } of [...older.attributes]) {
    if (!newer.hasAttribute(name) && !kept.includes(name)) older.removeAttribute(name);
  }
  for (const { name, value } of newer.attributes) {
    if (!kept.includes(name) && older.getAttribute(name) !== value) older.setAttribute(name, value);
  }
}

function changeChildren(older, newer) {
  const named = new Map();
  for (const child of older.children) if (child.id) named.set(child.id, child);
  let present = older.firstChild;
  for (const next of [...newer.childNodes]) {
    let match = next.id && named.get(next.id);
    if (!match && present && isAlike(present, next)) match = present;
    if (!match) {
      older.insertBefore(document.importNode(next, true), present);
      continue;
    }
    if (match !== present) older.insertBefore(match, present);
    else present = present.nextSibling;
    if (match.nodeType === Node.ELEMENT_NODE) morph(match, next);
    else if (match.data !== next.data) match.data = next.data;
  }
  while (present) {
    const following = present.nextSibling;
    present.remove();
    present = following;
  }
}

function isAlike(present, next) {
  if (present.nodeType !== next.nodeType) return false;
  if (present.nodeType !== Node.ELEMENT_NODE) return true;
  return present.tagName === next.tagName && (present.id || "") === (next.id || "");
}
