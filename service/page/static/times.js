// Relative times that stay true while a page is open. `formats.ago` says the same on the server.
const STEP_MILLISECONDS = 5000;
const NOW = 10;
const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"]];
const LONGEST = 30 * 86_400;

// The clock of this machine may be wrong: what counts is how much time has passed since the server rendered the page.
const rendered = Date.parse(document.documentElement.dataset.now);
const opened = performance.now();

export function ago(moment) {
  const seconds = (rendered + (performance.now() - opened) - moment) / 1000;
  if (seconds < -NOW || seconds >= LONGEST) return null;
  if (seconds < NOW) return "just now";
  for (const [span, unit] of UNITS) {
    if (seconds >= span) return `${Math.floor(seconds / span)} ${unit} ago`;
  }
  return `${Math.floor(seconds)} s ago`;
}

export function updateTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = ago(Date.parse(time.dateTime));
    if (text !== null && time.textContent !== text) time.textContent = text;
  }
}

export function keepTimes() {
  setInterval(updateTimes, STEP_MILLISECONDS);
}
