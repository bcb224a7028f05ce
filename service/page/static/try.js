// Sends a picture, sound or video of the form to try a model, and shows what was found.
import { morph } from "./morph.js";

const FIELDS = ["model", "modality", "where", "among", "version", "other"];

export function offerFiles(form) {
  const field = form.querySelector("[data-drop]");
  if (!field) return;
  const input = field.querySelector("input[type=file]");
  const preview = field.querySelector("[data-preview]");
  field.hidden = false;
  for (const note of form.querySelectorAll("[data-without-script]")) note.hidden = true;
  input.addEventListener("change", () => {
    show(preview, input.files[0]);
    chooseModality(form, mediaOf(input.files[0]));
  });
  // A file is sent instead of them, so it must not stay from before.
  for (const name of ["text", "numbers"]) {
    form.elements[name]?.addEventListener("input", (event) => {
      if (!event.target.value) return;
      input.value = "";
      show(preview);
      if (name === "text") chooseModality(form, "text");
    });
  }
  // A file that misses the field must not replace the page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  field.addEventListener("dragover", () => field.classList.add("over"));
  field.addEventListener("dragleave", () => field.classList.remove("over"));
  field.addEventListener("drop", (event) => {
    field.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-like]");
    if (button) searchLike(form, input, button.closest(".item").querySelector("img"));
  });
  offerLikes();
  form.addEventListener("submit", (event) => {
    const file = input.files[0];
    if (!file) return;
    event.preventDefault();
    send(form, file);
  });
}

function offerLikes() {
  for (const button of document.querySelectorAll("[data-like]")) button.hidden = false;
}

// The small picture of a tile becomes the picture to search for.
function searchLike(form, input, picture) {
  const [head, content] = picture.src.split(",");
  const type = head.slice("data:".length).split(";")[0];
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], picture.alt.replace("Picture of ", ""), { type }));
  for (const name of ["text", "numbers"]) if (form.elements[name]) form.elements[name].value = "";
  input.files = files.files;
  input.dispatchEvent(new Event("change"));
  form.requestSubmit();
}

// "image", "audio" or "video", if the browser knows the type of the file.
function mediaOf(file) {
  return ["image", "audio", "video"].find((media) => file?.type.startsWith(`${media}/`));
}

// The item decides its modality, if one of the model takes it. The server does the same.
function chooseModality(form, media) {
  const { modality } = form.elements;
  if (modality.selectedOptions[0]?.dataset.takes === media) return;
  const fitting = [...modality.options].find((option) => option.dataset.takes === media);
  if (fitting) modality.value = fitting.value;
}

function show(preview, file) {
  for (const old of preview.querySelectorAll("[src]")) URL.revokeObjectURL(old.src);
  preview.replaceChildren();
  if (!file) return;
  const kind = mediaOf(file);
  if (!kind) return;
  const element = document.createElement(kind === "image" ? "img" : kind);
  element.className = "preview";
  if (kind === "image") element.alt = `Preview of ${file.name}`;
  else element.controls = true;
  element.src = URL.createObjectURL(file);
  preview.append(element);
}

function send(form, file) {
  const most = Number(form.dataset.fileBytesMax);
  if (file.size > most) {
    say(form, `The file has ${(file.size / 2 ** 20).toFixed(1)} MiB, permitted are ${most / 2 ** 20}.`, "bad");
    return;
  }
  const address = new URL(form.dataset.try, location.href);
  const chosen = new FormData(form);
  for (const name of FIELDS) if (chosen.get(name)) address.searchParams.set(name, chosen.get(name));
  const media = mediaOf(file);
  if (media) address.searchParams.set("media", media);
  address.searchParams.set("fragment", "live_results");
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  say(form, `Searching for ${file.name}…`, "busy");
  const request = new XMLHttpRequest();
  request.open("POST", address);
  request.responseType = "document";
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.addEventListener("loadend", () => {
    button.disabled = false;
    const found = request.response?.getElementById("live_results");
    if (found) {
      morph(document.getElementById("live_results"), found);
      form.querySelector("[data-status]").hidden = true;
      offerLikes();
      return;
    }
    const message = request.response?.querySelector(".message")?.textContent;
    say(form, message?.trim() || "The connection was lost. Try again.", "bad");
  });
  request.send(file);
}

function say(form, text, tone) {
  const status = form.querySelector("[data-status]");
  status.hidden = false;
  status.className = `notice ${tone}`;
  status.textContent = text;
}
