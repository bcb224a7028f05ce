// Buttons that copy the text before them. They are shown only where they work.
const SHOWN_MILLISECONDS = 1500;

export function offerCopies(part) {
  if (!navigator.clipboard) return;
  for (const button of part.querySelectorAll("button[data-copy]")) {
    if (!button.hidden) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.previousElementSibling.textContent.trim());
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not permitted";
      }
      setTimeout(() => { button.textContent = "Copy"; }, SHOWN_MILLISECONDS);
    });
  }
}
