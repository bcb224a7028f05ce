// The switch between light and dark. The choice is a cookie, so that the server renders the next page with it.
const NAME = "cmcl-theme";
const SECONDS = 31_536_000;

export function offerThemes() {
  const switches = document.querySelector("[data-themes]");
  if (!switches) return;
  const root = document.documentElement;
  for (const input of switches.querySelectorAll("input")) {
    input.checked = input.value === (root.dataset.theme ?? "");
    input.addEventListener("change", () => {
      if (input.value) root.dataset.theme = input.value;
      else delete root.dataset.theme;
      const seconds = input.value ? SECONDS : 0;
      document.cookie = `${NAME}=${input.value}; path=/; max-age=${seconds}; samesite=lax`;
    });
  }
  switches.hidden = false;
}
