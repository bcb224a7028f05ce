// The script of every page. Without it everything can be read, and forms work.
import { enliven } from "./live.js";
import { offerSharing } from "./share.js";
import { keepTimes } from "./times.js";

keepTimes();
offerSharing(document);
enliven(offerSharing);

for (const form of document.querySelectorAll("form[data-upload]")) {
  import("./upload.js").then(({ offerUploads }) => offerUploads(form));
}
for (const form of document.querySelectorAll("form[data-list]")) {
  import("./lists.js").then(({ offerSearch }) => offerSearch(form));
}
for (const form of document.querySelectorAll("form[data-try]")) {
  import("./try.js").then(({ offerFiles }) => offerFiles(form));
}

const opener = document.querySelector("[data-palette]");
if (opener) {
  const open = () => import("./palette.js").then(({ showPalette }) => showPalette());
  opener.hidden = false;
  opener.addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "k" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    open();
  });
}
