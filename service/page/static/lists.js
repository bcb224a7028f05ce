// Lists are searched while one types, and filtered when one chooses; without this script, the button does it.
import { ask } from "./live.js";

const PAUSE_MILLISECONDS = 200;

export function offerSearch(form) {
  let pause = null;
  form.addEventListener("input", ({ target }) => {
    if (target.type !== "search" && target.tagName !== "SELECT") return;
    clearTimeout(pause);
    pause = setTimeout(() => {
      const given = [...new FormData(form)].filter(([, value]) => value);
      history.replaceState(null, "", `${location.pathname}?${new URLSearchParams(given)}`);
      ask([document.getElementById(form.dataset.list)]);
    }, PAUSE_MILLISECONDS);
  });
}
