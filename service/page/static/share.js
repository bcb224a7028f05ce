// Buttons that copy a text or the address of a figure, or save the figure as PNG. They are shown only where they work.
const SHOWN_MILLISECONDS = 1500;
const PIXELS = 2;

export function offerSharing(part) {
  for (const button of part.querySelectorAll("button[data-share]")) {
    if (!button.hidden || (button.dataset.share !== "png" && !navigator.clipboard)) continue;
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        button.textContent = await ACTS[button.dataset.share](button);
      } catch {
        button.textContent = "Not permitted";
      }
      setTimeout(() => { button.textContent = label; }, SHOWN_MILLISECONDS);
    });
  }
}

const ACTS = {
  text: (button) => copy(button.previousElementSibling.textContent.trim()),
  link: (button) => copy(new URL(`#${button.closest("figure").id}`, location.href).href),
  png: savePicture,
};

async function copy(text) {
  await navigator.clipboard.writeText(text);
  return "Copied";
}

// The file that the link beside the button saves as SVG, drawn with its heading and its note.
async function savePicture(button) {
  const link = button.parentElement.querySelector("a[download]");
  const picture = new Image();
  picture.src = link.href;
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [PIXELS * picture.width, PIXELS * picture.height];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  const content = await new Promise((resolve) => canvas.toBlob(resolve));
  const file = document.createElement("a");
  file.href = URL.createObjectURL(content);
  file.download = link.download.replace(/svg$/, "png");
  file.click();
  URL.revokeObjectURL(file.href);
  return "Saved";
}
