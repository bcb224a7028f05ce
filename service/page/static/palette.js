// The palette goes to a page, model, dataset, job or collection by a part of its name. It reads the lists of the page.
import { load } from "./live.js";

const LISTS = ["models", "datasets", "jobs", "collections"];
const MOST_OF_EACH = 5;
const PAUSE_MILLISECONDS = 150;
const root = document.querySelector(".brand").href;
const pages = [...document.querySelectorAll("nav.main a")].map((link) => ({ link, kind: "page" }));
const dialog = document.getElementById("palette");
const [input, list] = [dialog.querySelector("input"), dialog.querySelector("ul")];
let pause = null;

export function showPalette() {
  if (dialog.open) return;
  input.value = "";
  offer(pages);
  dialog.showModal();
}

input.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(search, PAUSE_MILLISECONDS);
});

dialog.addEventListener("keydown", (event) => {
  const links = [...list.querySelectorAll("a")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Enter" && event.target === input) {
    event.preventDefault();
    links[0]?.click();
  } else if (step) {
    event.preventDefault();
    [input, ...links].at((links.indexOf(document.activeElement) + 1 + step) % (links.length + 1)).focus();
  }
});

async function search() {
  const sought = input.value.trim();
  const found = sought ? (await Promise.all(LISTS.map((name) => read(name, sought)))).flat() : [];
  // Another letter may have been typed meanwhile.
  if (sought === input.value.trim()) offer([...pages.filter(({ link }) => holds(link, sought)), ...found]);
}

async function read(name, sought) {
  const address = new URL(name, root);
  address.searchParams.set("q", sought);
  if (name !== "collections") address.searchParams.set("fragment", `live_${name}`);
  const { found } = await load(address);
  const links = [...(found?.querySelectorAll("tbody th a") ?? [])];
  const those = name === "collections" ? links.filter((link) => holds(link, sought)) : links;
  return those.slice(0, MOST_OF_EACH).map((link) => ({ link, kind: name.slice(0, -1) }));
}

const holds = (link, sought) => link.textContent.toLowerCase().includes(sought.toLowerCase());

function offer(found) {
  list.replaceChildren(...found.map(({ link, kind }) => {
    const [item, target, word] = ["li", "a", "span"].map((name) => document.createElement(name));
    target.href = link.href;
    target.textContent = link.textContent;
    word.className = "quiet";
    word.textContent = kind;
    item.append(target, word);
    return item;
  }));
  dialog.querySelector("p").hidden = found.length > 0;
}
