// Folders of raw pairs: recognised and packed as `cmcl dataset add FOLDER` does, by the rules of cmcl/client/raw_folder.py,
// which the page has as data. A file is {path, file}; a row is {id, label, items, source}, whose items are by modality a text,
// a list of numbers, or such a file.
const TAR_BYTES = 128 << 20;
const MOST_TEXT_BYTES = 512 << 10;
const BLOCK = 512;
const NOUNS = { image: "picture", audio: "sound", video: "video", text: "text" };

// The files of what was dropped or chosen, without hidden ones: those of a folder first, then those of its folders.
export async function filesOf(entries) {
  const found = [];
  const walk = async (entry, path) => {
    if (entry.isFile) {
      found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
      return;
    }
    const reader = entry.createReader();
    // A part at a time, until one is empty.
    for (let some = null; some?.length !== 0;) {
      some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      for (const each of some) await walk(each, `${path}/${each.name}`);
    }
  };
  for (const entry of entries) await walk(entry, entry.name);
  return inOrder(found);
}

export function inOrder(files) {
  const visible = files.filter(({ path }) => !path.split("/").some((name) => name.startsWith(".")));
  return visible.sort((one, other) => {
    const [first, second] = [one.path.split("/"), other.path.split("/")];
    const at = first.findIndex((name, index) => name !== second[index]);
    const inside = (at < first.length - 1) - (at < second.length - 1);
    return inside || (first[at] < second[at] ? -1 : 1);
  });
}

// Returns {layout, rows, notes}, or null if no file is of a kind that encoders take. Throws what is missing.
export async function recognise(files, pair, rules) {
  const manifest = rules.manifests.map((name) => files.find(({ path }) => path === name)).find(Boolean);
  if (manifest) return fromManifest(manifest, files, pair);
  if (!files.some(({ path }) => !["", "text"].includes(kindOf(path, rules.suffixes)))) return null;
  const sides = new Sides(pair, rules);
  const found = (await fromCaptions(files, sides)) ?? fromClasses(files, sides);
  if (found) return found;
  const [first] = sides.chosen(files);
  throw new Error(first
    ? `There are ${counted(files, sides)}, and no texts beside them: ${stem(nameOf(first.path))}.txt beside ${nameOf(first.path)} is missing. Or put them into a folder for each class, or add a metadata.jsonl.`
    : `There are ${counted(files, sides)}, and nothing that modality ${sides.files} takes.`);
}

class Sides {
  constructor(pair, { suffixes, texts, takes }) {
    this.suffixes = suffixes;
    const isText = (name) => (takes[name] ?? (texts.includes(name) ? "text" : "")) === "text";
    if (pair.filter(isText).length !== 1) {
      throw new Error(`Which side of ${pair.join(", ")} is the text? One of them must have an encoder of texts, or be called ${texts.join(", ")}; or add a metadata.jsonl.`);
    }
    [this.text, this.files] = isText(pair[0]) ? pair : [pair[1], pair[0]];
    this.takes = takes[this.files] ?? (this.files in suffixes ? this.files : null);
  }

  kind(path) {
    return kindOf(path, this.suffixes);
  }

  isMedia(path) {
    return !["", "text"].includes(this.kind(path));
  }

  chosen(files) {
    const media = files.filter(({ path }) => this.isMedia(path));
    if (!this.takes && new Set(media.map(({ path }) => this.kind(path))).size > 1) {
      throw new Error(`There are ${counted(media, this)}: which of them does modality ${this.files} take? Bind it to an encoder.`);
    }
    return media.filter(({ path }) => !this.takes || this.kind(path) === this.takes);
  }

  leftOut(files, why) {
    if (!files.length) return [];
    const [first, ...others] = files;
    return [`left out: ${counted(files, this)}${why} (${nameOf(first.path)}${others.length ? ` and ${others.length} more` : ""})`];
  }

  notTaken(files, taken) {
    const others = files.filter((each) => this.kind(each.path) !== "text" && !taken.includes(each));
    return this.leftOut(others, `, which modality ${this.files} does not take`);
  }
}

async function fromCaptions(files, sides) {
  const texts = new Map(files.filter(({ path }) => sides.kind(path) === "text").map((each) => [stem(each.path), each]));
  if (!files.some(({ path }) => sides.isMedia(path) && texts.has(stem(path)))) return null;
  const chosen = sides.chosen(files);
  const paired = chosen.filter(({ path }) => texts.has(stem(path)));
  if (!paired.length) return null;
  const rows = [];
  for (const each of paired) {
    const lines = (await readText(texts.get(stem(each.path)).file)).split(/\r\n|\r|\n/).map((line) => line.trim()).filter(Boolean);
    for (const [index, line] of (lines.length ? lines : [""]).entries()) {
      const id = lines.length > 1 ? `${each.path}#${index + 1}` : each.path;
      rows.push({ id, label: null, items: { [sides.files]: each, [sides.text]: line }, source: each.path });
    }
  }
  const stems = new Set(chosen.map(({ path }) => stem(path)));
  return {
    layout: "captions",
    rows,
    notes: [
      ...(rows.length > paired.length ? ["each line of a text is a caption"] : []),
      ...sides.leftOut(chosen.filter((each) => !paired.includes(each)), " without a text of the same name"),
      ...sides.leftOut([...texts].filter(([name]) => !stems.has(name)).map(([, each]) => each), ` without a file for ${sides.files} of the same name`),
      ...sides.notTaken(files, chosen),
    ],
  };
}

function fromClasses(files, sides) {
  const chosen = sides.chosen(files);
  const inside = chosen.filter(({ path }) => path.includes("/"));
  if (!inside.length) return null;
  const rows = inside.map((each) => {
    const label = each.path.split("/").at(-2);
    const words = label.replace(/[_-]+/g, " ").trim();
    return { id: each.path, label, items: { [sides.files]: each, [sides.text]: words }, source: each.path };
  });
  const outside = chosen.filter(({ path }) => !path.includes("/"));
  return { layout: "classes", rows, notes: [...sides.leftOut(outside, " in no folder of a class"), ...sides.notTaken(files, chosen)] };
}

async function fromManifest({ path: name, file }, files, pair) {
  const known = new Map(files.map((each) => [each.path, each]));
  const isTable = name.endsWith(".csv");
  const text = await readText(file);
  const rows = [];
  const missing = [];
  for (const [line, record] of isTable ? table(text) : lines(text)) {
    const items = {};
    for (const modality of pair) {
      const path = record[`${modality}_file_name`] ?? (record[modality] == null ? record.file_name : null);
      const value = path == null ? record[modality] : known.get(path.replace(/^\.\//, ""));
      if (path == null && value == null) throw new Error(`${name}, line ${line}: no column ${modality} or ${modality}_file_name; it has ${Object.keys(record).join(", ")}.`);
      if (path != null) items[modality] = value ?? missing.push(path);
      else if (isTable && /^\[.*\]$/.test(value)) items[modality] = JSON.parse(value);
      else items[modality] = Array.isArray(value) ? value : String(value);
    }
    // A number stands for a file that is missing.
    if (pair.some((modality) => typeof items[modality] === "number")) continue;
    const paths = pair.map((modality) => items[modality].path).filter(Boolean);
    const label = record.label == null || record.label === "" ? null : String(record.label);
    rows.push({ id: String(record.id ?? `${name}:${line}`), label, items, source: [`${name} line ${line}`, ...paths].join(", ") });
  }
  if (!rows.length) throw new Error(`${name} has no row whose files exist${missing.length ? `; the first missing file: ${missing[0]}` : ""}.`);
  return { layout: "manifest", rows, notes: missing.length ? [`left out: rows whose file is missing, ${missing.length} (${missing[0]} first)`] : [] };
}

function lines(text) {
  return text.split("\n").map((line, index) => [index + 1, line]).filter(([, line]) => line.trim()).map(([number, line]) => {
    try {
      return [number, JSON.parse(line)];
    } catch (error) {
      throw new Error(`Line ${number} is not JSON: ${error.message}`);
    }
  });
}

// Rows of CSV: fields with commas or line ends are in quotes, and a quote in them is "".
function table(text) {
  const found = [];
  let [row, line, first, read] = [[], 1, 1, 0];
  for (const [whole, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy)) {
    read += whole.length;
    row.push(quoted?.replaceAll('""', '"') ?? plain);
    line += (quoted?.match(/\n/g)?.length ?? 0) + end.endsWith("\n");
    if (end === ",") continue;
    if (row.length > 1 || row[0]) found.push([first, row]);
    [row, first] = [[], line];
    if (!end) break;
  }
  if (read < text.length) throw new Error(`Line ${line} has a quote inside of a field without quotes.`);
  const [[, head], ...rest] = found;
  return rest.map(([number, fields]) => {
    if (fields.length !== head.length) throw new Error(`Line ${number} has ${fields.length} fields, the header ${head.length}: write fields with commas in quotes.`);
    return [number, Object.fromEntries(head.map((name, index) => [name, fields[index]]))];
  });
}

// Tars of the rows, as files: a sample is {modality}.{suffix} of each item and a JSON of the rest. Nothing is read before it is sent.
export function packed(rows, pair, name) {
  const tars = [];
  let parts = [];
  let bytes = 0;
  const close = () => {
    if (!parts.length) return;
    const number = String(tars.length + 1).padStart(5, "0");
    tars.push(new File([...parts, new Uint8Array(2 * BLOCK)], `${name}-${number}.tar`, { type: "application/x-tar" }));
    [parts, bytes] = [[], 0];
  };
  for (const [index, sample] of samples(rows).entries()) {
    const members = Object.entries(membersOf(sample, pair)).map(([suffix, content]) => [`${String(index).padStart(8, "0")}.${suffix}`, new Blob([content])]);
    const size = members.reduce((sum, [, { size: each }]) => sum + each + 2 * BLOCK, 0);
    if (bytes + size > TAR_BYTES) close();
    for (const [member, content] of members) parts.push(header(member, content.size), content, new Uint8Array(-content.size & (BLOCK - 1)));
    bytes += size;
  }
  close();
  return tars;
}

// Rows of the same file and label that differ in a text are one sample, which has the file once.
function samples(rows) {
  const found = [];
  const latest = new Map();
  for (const row of rows) {
    const items = Object.values(row.items);
    const [text, file] = [items.find((item) => typeof item === "string"), items.find((item) => item.file)];
    const key = text !== undefined && file && JSON.stringify([row.label, file.path]);
    const size = 4 * JSON.stringify([text ?? "", row.id, row.source]).length;
    const last = key && latest.get(key);
    if (last && last.rows.length < 1000 && last.size + size <= MOST_TEXT_BYTES) {
      last.rows.push(row);
      last.size += size;
      continue;
    }
    const sample = { rows: [row], size };
    found.push(sample);
    if (key) latest.set(key, sample);
  }
  return found.map(({ rows: some }) => some);
}

function membersOf(sample, pair) {
  const all = (of) => (sample.length === 1 ? of(sample[0]) : sample.map(of));
  const sources = [...new Set(sample.map(({ source }) => source))];
  const about = { id: all(({ id }) => id), __source__: sources.length === 1 ? sources[0] : all(({ source }) => source) };
  if (sample[0].label !== null) about.label = sample[0].label;
  const members = {};
  for (const modality of pair) {
    const item = sample[0].items[modality];
    if (item.file) members[`${modality}${suffixOf(item.path)}`] = item.file;
    else if (typeof item === "string" && sample.length === 1) members[`${modality}.txt`] = item;
    else about[modality] = all(({ items }) => items[modality]);
  }
  return { ...members, json: JSON.stringify(about) };
}

// A header of a member by POSIX (ustar).
function header(name, size) {
  const block = new Uint8Array(BLOCK);
  const put = (text, at) => block.set(new TextEncoder().encode(text), at);
  const octal = (number, digits) => number.toString(8).padStart(digits, "0");
  put(name, 0);
  put(`0000644\0${octal(0, 7)}\0${octal(0, 7)}\0${octal(size, 11)}\0${octal(0, 11)}\0        0`, 100);
  put("ustar\x0000", 257);
  put(`${octal(block.reduce((sum, byte) => sum + byte, 0), 6)}\0 `, 148);
  return block;
}

export function counted(files, sides) {
  const counts = new Map();
  for (const { path } of files) {
    const noun = NOUNS[sides.kind(path)] ?? "file";
    counts.set(noun, (counts.get(noun) ?? 0) + 1);
  }
  return [...counts].map(([noun, count]) => plural(count, noun)).join(", ");
}

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const kindOf = (path, suffixes) => Object.keys(suffixes).find((kind) => suffixes[kind].includes(suffixOf(path))) ?? "";
const nameOf = (path) => path.split("/").at(-1);
const suffixOf = (path) => nameOf(path).match(/\.[^.]+$/)?.[0].toLowerCase() ?? "";
const stem = (path) => path.replace(/\.[^./]+$/, "");

async function readText(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} cannot be read as UTF-8.`);
  }
}
