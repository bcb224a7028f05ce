// Sends the files of a form, with progress, and then the form with the ids of the uploads.
import { filesOf, inOrder, packed, plural, recognise } from "./folder.js";

const ATTEMPTS = 6;
const FIRST_PAUSE_MILLISECONDS = 1000;
const REPEATED = new Set([0, 408, 429, 500, 502, 503, 504]);
// Parquet, Arrow file and stream, npz.
const MAGIC = ["PAR1", "ARROW1", "\xff\xff\xff\xff", "PK\x03\x04"];
const FIRST_BYTES = 64 * 1024;
const SIZES = ["bytes", "KiB", "MiB", "GiB", "TiB"];

// Pairs of a folder that are shown before anything is sent.
const SHOWN = 6;

export function offerUploads(form) {
  offerFolders(form);
  form.hidden = false;
  for (const note of document.querySelectorAll("[data-without-script]")) note.hidden = true;
  let sending = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (sending) return;
    sending = new Sending(form);
    await sending.run();
    sending = null;
  });
  form.querySelector("[data-abort]").addEventListener("click", () => sending?.abort("Stopped. Nothing was posted."));
  // Files that are dropped beside a field must not replace the page.
  for (const kind of ["dragover", "drop"]) {
    form.addEventListener(kind, (event) => { if (event.target.type !== "file") event.preventDefault(); });
  }
}

// A folder, or loose pictures, sounds and texts, become tars of rows, which are the files of the field.
function offerFolders(form) {
  const field = form.querySelector("[data-found]").closest(".drop");
  const [input, folder] = field.querySelectorAll("input");
  const shown = field.querySelector("[data-found]");
  const button = form.querySelector("[type=submit]");
  const rules = JSON.parse(form.dataset.rules);
  let chosen = null;
  const take = async (files) => {
    chosen = files;
    shown.hidden = true;
    button.disabled = true;
    const pair = [form.elements.first.value, form.elements.second.value];
    const roots = new Set(files.map(({ path }) => path.split("/")[0]));
    const isFolder = roots.size === 1 && files[0].path.includes("/");
    const name = isFolder ? [...roots][0] : "rows";
    const inside = isFolder ? files.map(({ path, file }) => ({ path: path.slice(name.length + 1), file })) : files;
    try {
      const found = await recognise(inside, pair, rules);
      if (!found) return isFolder ? give(input, files.map(({ file }) => file)) : undefined;
      show(shown, found, inside.length);
      give(input, packed(found.rows, pair, name.slice(0, 64)));
      form.elements.name.value ||= name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 48);
    } catch (error) {
      give(input, []);
      tell(shown, [["p", `${name}: ${error.message}`]]);
    } finally {
      button.disabled = false;
    }
  };
  field.querySelector("[data-choose]").addEventListener("click", () => folder.click());
  folder.addEventListener("change", () => take(inOrder([...folder.files].map((file) => ({ path: file.webkitRelativePath, file })))));
  input.addEventListener("change", () => take(inOrder([...input.files].map((file) => ({ path: file.name, file })))));
  field.addEventListener("drop", async (event) => {
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    if (!entries.some((entry) => entry.isDirectory)) return;
    event.preventDefault();
    take(await filesOf(entries));
  });
  for (const name of ["first", "second"]) form.elements[name].addEventListener("change", () => chosen && take(chosen));
}

function give(input, files) {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  input.files = transfer.files;
}

function tell(place, elements) {
  place.replaceChildren(...elements.map(([tag, content]) => {
    const element = document.createElement(tag);
    element.append(content);
    return element;
  }));
  place.hidden = false;
}

// What was recognised: how many pairs, the first ones, and what is left out.
function show(place, { layout, rows, notes }, files) {
  const wall = document.createElement("ul");
  wall.className = "wall";
  for (const row of rows.slice(0, SHOWN)) {
    const item = document.createElement("li");
    item.className = "item";
    const items = Object.values(row.items).sort((one, other) => !one.file - !other.file);
    item.append(...items.map(shape));
    wall.append(item);
  }
  tell(place, [["p", `${plural(rows.length, "pair")} of ${plural(files, "file")} (layout: ${layout}). Nothing was sent yet.`], ...notes.map((note) => ["p", `${note[0].toUpperCase()}${note.slice(1)}.`])]);
  place.append(wall);
}

function shape(item) {
  const { file } = item;
  const kind = file?.type.split("/")[0];
  const tag = file ? { image: "img", audio: "audio", video: "video" }[kind] ?? "span" : "span";
  const element = document.createElement(tag);
  element.title = file ? item.path : String(item);
  if (tag === "span") {
    element.className = file ? "shape" : "name";
    element.textContent = element.title;
    return element;
  }
  element.src = URL.createObjectURL(file);
  element.className = "shape";
  if (tag === "img") element.alt = item.path;
  else element.controls = true;
  return element;
}

class Failure extends Error {}

class Sending {
  constructor(form) {
    this.form = form;
    this.inputs = [...form.querySelectorAll("input[data-files]")];
    this.ids = new Map(this.inputs.map((input) => [input.dataset.files, []]));
    this.files = this.inputs.flatMap((input) => [...input.files].map((file) => ({ file, field: input.dataset.files })));
    this.total = this.files.reduce((sum, { file }) => sum + file.size, 0);
    this.sent = new Map();
    this.requests = new Set();
    this.begun = performance.now();
    this.started = [];
    this.stopped = "";
  }

  async run() {
    const leave = (event) => event.preventDefault();
    addEventListener("beforeunload", leave);
    try {
      await this.check();
      this.show(true);
      for (const { file, field } of this.files) this.ids.get(field).push(await this.upload(file));
    } catch (error) {
      // Also of the browser: a file that was chosen can be unreadable by now.
      const message = this.stopped || error.message;
      this.abort(message);
      this.show(false);
      this.say(message, "bad");
      this.forget();
      return;
    } finally {
      removeEventListener("beforeunload", leave);
    }
    for (const [field, ids] of this.ids) this.form.elements[field].value = ids.join(" ");
    this.say("Posting the dataset…");
    // Not requestSubmit: this must not come here again.
    HTMLFormElement.prototype.submit.call(this.form);
  }

  // What the service would refuse only after all bytes were sent, and attributes of fields cannot say.
  async check() {
    const { first, second, evaluate_only: isMeasured, dry_run: isDry } = this.form.elements;
    if (first.value === second.value) {
      throw new Failure(`A pair needs two different modalities, ${first.value} is chosen twice.`);
    }
    if (isMeasured.checked && isDry.checked) {
      throw new Failure("Choose either “Measure only” or “Dry run”: a dry run reports how a dataset would be learned.");
    }
    if (isMeasured.checked && this.files.some(({ field }) => field === "evaluation_uploads")) {
      throw new Failure("With “Measure only”, every row is held out: choose all files as files to train on, and no held-out files.");
    }
    const { fileBytesMax, filesMax } = this.form.dataset;
    if (this.files.length > Number(filesMax)) {
      throw new Failure(`${this.files.length} files are chosen, permitted are ${filesMax}. The command line sends more.`);
    }
    for (const { file } of this.files) {
      if (!file.size) throw new Failure(`${file.name} is empty.`);
      if (file.size > Number(fileBytesMax)) {
        throw new Failure(`${file.name} has ${size(file.size)}, permitted are ${size(Number(fileBytesMax))}.`);
      }
    }
    const others = [];
    for (const { file } of this.files) if (!(await hasRows(file))) others.push(file.name);
    if (others.length) {
      const which = others.length === 1 ? `${others[0]} holds` : `${others.length} files hold`;
      const first = others.length === 1 ? "" : `, ${others[0]} first`;
      throw new Failure(`${which} no rows${first}. Choose pictures, sounds or videos together with their texts, or one of the formats named above.`);
    }
  }

  // Returns the id of the complete upload.
  async upload(file) {
    this.say(`Sending ${file.name}…`);
    const made = await this.json("POST", "", { filename: file.name, bytes: file.size });
    this.started.push(made.id);
    const sent = (bytes) => {
      this.sent.set(made.id, Math.min(bytes, file.size));
      this.showAmount();
    };
    const headers = { "Content-Type": "application/octet-stream" };
    // Fails for a file that is gone or has changed since it was chosen; a request with it would look like a lost connection.
    await file.slice(0, 1).arrayBuffer();
    await this.send("PUT", `/${made.id}/file`, headers, file, sent, () => this.arrived(made.id));
    sent(file.size);
    return made.id;
  }

  // Whether the file arrived although its response was lost.
  async arrived(id) {
    const { status, document } = await this.request("GET", `/${id}`, {}, null, () => {});
    return status === 200 && document.state === "complete";
  }

  async json(method, path, body) {
    const headers = { "Idempotency-Key": token() };
    if (body) headers["Content-Type"] = "application/json";
    return this.send(method, path, headers, body ? JSON.stringify(body) : null);
  }

  // Returns the JSON of the response. What another attempt may do better is sent again.
  async send(method, path, headers, body, onProgress = () => {}, isDone = async () => false) {
    let pause = FIRST_PAUSE_MILLISECONDS;
    for (let attempt = 1; ; attempt++) {
      if (this.stopped) throw new Failure(this.stopped);
      const { status, document } = await this.request(method, path, headers, body, onProgress);
      if (status >= 200 && status < 300) return document;
      if (this.stopped) throw new Failure(this.stopped);
      if (!REPEATED.has(status) || attempt === ATTEMPTS) throw new Failure(describe(status, document));
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (await isDone()) return null;
      pause *= 2;
    }
  }

  request(method, path, headers, body, onProgress) {
    return new Promise((resolve) => {
      const request = new XMLHttpRequest();
      this.requests.add(request);
      request.open(method, this.form.dataset.upload + path);
      request.responseType = "json";
      request.setRequestHeader("Accept", "application/json");
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.upload.addEventListener("progress", (event) => onProgress(event.loaded));
      request.addEventListener("loadend", () => {
        this.requests.delete(request);
        resolve({ status: request.status, document: request.response });
      });
      request.send(body);
    });
  }

  abort(message) {
    this.stopped = message;
    for (const request of this.requests) request.abort();
  }

  // Unposted uploads expire; a browser that discards them does not have to wait for that.
  forget() {
    for (const id of this.started) {
      const request = new XMLHttpRequest();
      request.open("DELETE", `${this.form.dataset.upload}/${id}`);
      request.send();
    }
  }

  show(isSending) {
    this.form.querySelector("[data-progress]").hidden = !isSending;
    this.form.querySelector("[data-abort]").hidden = !isSending;
    this.form.querySelector("[type=submit]").disabled = isSending;
    this.showAmount();
  }

  showAmount() {
    const sent = [...this.sent.values()].reduce((sum, bytes) => sum + bytes, 0);
    const share = this.total ? sent / this.total : 0;
    this.form.querySelector("[data-progress] progress").value = share;
    const seconds = (performance.now() - this.begun) / 1000;
    const left = share > 0.02 && seconds > 3 ? `, about ${duration(seconds * (1 / share - 1))} left` : "";
    this.form.querySelector("[data-amount]").textContent = `${size(sent)} of ${size(this.total)}${left}`;
  }

  say(text, tone = "busy") {
    const status = this.form.querySelector("[data-status]");
    status.hidden = false;
    status.className = `notice ${tone}`;
    status.textContent = text;
  }
}

// Whether the first bytes can be those of a file of features or rows. The service reads the whole file.
async function hasRows(file) {
  const bytes = new Uint8Array(await file.slice(0, FIRST_BYTES).arrayBuffer());
  const at = (start, end) => String.fromCharCode(...bytes.subarray(start, end));
  if (MAGIC.some((magic) => at(0, magic.length) === magic) || at(257, 262) === "ustar") return true;
  // The header of safetensors is JSON, after its length.
  if (at(8, 9) === "{" && bytes[7] === 0) return true;
  // JSONL, or CSV: an id is always a column.
  const line = new TextDecoder().decode(bytes, { stream: true }).trimStart().split(/\r?\n/, 1)[0];
  if (line.startsWith("{")) return true;
  const columns = line.split(",").map((name) => name.trim().replace(/^"(.*)"$/, "$1"));
  return columns.length > 1 && columns.includes("id");
}

function describe(status, problem) {
  if (status === 0) return "The connection was lost. Try again: nothing was posted.";
  if (status === 401) return "You were signed out. Reload the page to sign in; nothing was posted.";
  const fields = (problem?.errors ?? []).map(({ field, message }) => `${field}: ${message}`);
  return [problem?.detail ?? `The service answered ${status}.`, ...fields].join(" ");
}

function token() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function size(bytes) {
  let unit = 0;
  for (; bytes >= 1024 && unit < SIZES.length - 1; unit++) bytes /= 1024;
  return `${unit ? bytes.toFixed(1) : bytes} ${SIZES[unit]}`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  return seconds < 3600 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
