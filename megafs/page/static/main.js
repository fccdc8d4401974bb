// The page: reads the link from its own address, asks for what it needs, and hands out the files.

import { Failure, reasonOf } from "./failure.js";
import { fetchRange } from "./fetching.js";
import { parseLink } from "./link.js";
import { LARGEST, needsPassword, openManifest } from "./manifest.js";
import { Openers } from "./opening.js";
import { preview } from "./preview.js";
import { Reader } from "./reader.js";
import { MOST_IN_MEMORY, save, wayOfSaving } from "./saving.js";
import { serviceWorker } from "./streaming.js";
import { kindOf } from "./types.js";
import { chooseLanguage, LANGUAGES, say, sizeOf, timeOf } from "./words.js";
import { zip, zipSize } from "./zip.js";

/** @typedef {import("./manifest.js").Manifest} Manifest */
/** @typedef {import("./manifest.js").SharedFile} SharedFile */
/** @typedef {import("./words.js").Word} Word */

/** Rows of a folder that are shown at once. */
const ROWS = 300;
const MANIFEST_PATIENCE = 20000;

const statusLine = byId("status");
const content = byId("content");
const heading = byId("heading");
let language = chooseLanguage(navigator.languages ?? []);
/** @type {() => void} */
let draw = () => {};
/** @type {(() => void) | null} */
let closeShown = null;

/** @param {string} id */
function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(id);
  return found;
}

/**
 * @param {Word} word
 * @param {Record<string, string>} [values]
 */
const tell = (word, values) => say(language, word, values);

/**
 * @param {string} text
 * @param {boolean} [wrong]
 */
function setStatus(text, wrong = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("wrong", wrong);
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {string} text
 * @param {string} [style]
 * @returns {HTMLElementTagNameMap[T]}
 */
function make(tag, text, style = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (style) element.className = style;
  return element;
}

async function start() {
  setUpLanguage();
  const fragment = location.hash.slice(1);
  // The key is not to stay in the history of the browser, nor in the bar for who looks over one's shoulder.
  history.replaceState(null, "", location.pathname + location.search);
  addEventListener("hashchange", () => location.reload());
  if (!fragment) {
    draw = () => setStatus(tell("noLink"), true);
    draw();
    return;
  }
  if (!globalThis.crypto?.subtle || !globalThis.Worker || !globalThis.ReadableStream) {
    throw new Failure("blocked");
  }
  const link = parseLink(fragment, location.origin + location.pathname);
  setStatus(tell("opening"));
  const [data, worker] = await Promise.all([
    fetchRange(link.manifest, 0, LARGEST, undefined, troubled, MANIFEST_PATIENCE),
    serviceWorker(),
  ]);
  const manifest = needsPassword(data) ? await withPassword(data, link) : await openManifest(data, link, null);
  show(manifest, new Reader(manifest, new Openers()), worker);
}

function setUpLanguage() {
  const select = /** @type {HTMLSelectElement} */ (byId("language"));
  const apply = () => {
    document.documentElement.lang = language;
    byId("language-label").textContent = tell("language");
  };
  select.value = language;
  select.addEventListener("change", () => {
    if (select.value in LANGUAGES) language = select.value;
    apply();
    draw();
  });
  apply();
}

/** @param {boolean} broken */
function troubled(broken) {
  if (broken) setStatus(tell("trouble"), true);
  else if (statusLine.textContent === tell("trouble")) setStatus("");
}

/**
 * Ask until it is the right one.
 * @param {import("./bytes.js").Bytes} data
 * @param {import("./link.js").Link} link
 * @returns {Promise<Manifest>}
 */
function withPassword(data, link) {
  return new Promise((resolve, reject) => {
    const form = document.createElement("form");
    const label = make("label", "");
    label.htmlFor = "password";
    const input = document.createElement("input");
    input.type = "password";
    input.id = "password";
    input.autocomplete = "off";
    input.required = true;
    const button = make("button", "", "first");
    const row = make("div", "", "row");
    row.append(input, button);
    form.append(label, row);
    content.replaceChildren(form);
    draw = () => {
      heading.textContent = "megafs";
      label.textContent = tell("passwordLabel");
      button.textContent = tell("passwordOpen");
      setStatus(tell("passwordAsk"));
    };
    draw();
    input.focus();
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        resolve(await openManifest(data, link, input.value));
      } catch (error) {
        if (reasonOf(error) !== "password") {
          reject(error);
          return;
        }
        button.disabled = false;
        setStatus(tell("passwordWrong"), true);
        input.select();
        input.focus();
      }
    });
  });
}

/**
 * @param {Manifest} manifest
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 */
function show(manifest, reader, worker) {
  const files = manifest.files.filter((file) => !file.folder);
  const whole = files.reduce((size, file) => size + file.size, 0);
  draw = () => {
    heading.textContent = manifest.name;
    document.title = manifest.name;
    setStatus("");
    closeShown?.();
    closeShown = null;
    /** @type {HTMLElement[]} */
    const parts = [about(manifest, files.length, whole), ...hints(worker, manifest)];
    if (manifest.folder) parts.push(...folder(manifest, files, reader, worker));
    else parts.push(single(manifest.name, files[0], reader, worker));
    content.replaceChildren(...parts);
    const who = byId("who");
    who.hidden = false;
    who.textContent = `${tell("who")} ${tell("wait")}`;
  };
  draw();
  byId("main").focus();
}

/**
 * @param {Manifest} manifest
 * @param {number} count
 * @param {number} whole
 */
function about(manifest, count, whole) {
  const size = sizeOf(language, whole);
  const parts = [manifest.folder ? tell("files", { count: String(count), size }) : size];
  if (manifest.expires) {
    const when = new Intl.DateTimeFormat(language, { dateStyle: "long", timeStyle: "short" });
    parts.push(tell("expires", { when: when.format(manifest.expires * 1000) }));
  }
  if (manifest.leftOut) parts.push(tell("leftOut", { count: String(manifest.leftOut) }));
  return make("p", parts.join(" · "));
}

/**
 * @param {ServiceWorker | null} worker
 * @param {Manifest} manifest
 */
function hints(worker, manifest) {
  const large = manifest.files.some((file) => file.size > MOST_IN_MEMORY / 5);
  if (wayOfSaving(worker) !== "memory" || !large) return [];
  return [make("p", tell("memoryOnly", { size: sizeOf(language, MOST_IN_MEMORY) }))];
}

/**
 * @param {string} name
 * @param {SharedFile} file
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 */
function single(name, file, reader, worker) {
  const place = make("div", "");
  const row = make("div", "", "row");
  const button = make("button", tell("download"), "first");
  button.addEventListener("click", () => void downloadFile(name, file, reader, worker, row));
  row.append(button);
  if (kindOf(name)) {
    const look = make("button", tell("show"));
    look.addEventListener("click", () => void lookAt(name, file, reader, worker, place));
    row.append(look);
  }
  place.append(row);
  return place;
}

/**
 * @param {Manifest} manifest
 * @param {SharedFile[]} files
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 */
function folder(manifest, files, reader, worker) {
  const row = make("div", "", "row");
  const all = make("button", tell("downloadAll"), "first");
  all.disabled = !files.length;
  all.addEventListener("click", () => void downloadAll(manifest, reader, worker, row));
  row.append(all);
  const list = make("ul", "", "list");
  const more = make("button", tell("more"));
  let next = 0;
  const entries = [...manifest.files].sort((a, b) => (a.path < b.path ? -1 : 1));
  const grow = () => {
    for (const file of entries.slice(next, next + ROWS)) list.append(line(file, reader, worker));
    next += ROWS;
    more.hidden = next >= entries.length;
  };
  more.addEventListener("click", grow);
  grow();
  return [row, list, more];
}

/**
 * @param {SharedFile} file
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 */
function line(file, reader, worker) {
  const item = make("li", "");
  if (file.folder) {
    item.className = "folder";
    item.textContent = `${file.path}/`;
    return item;
  }
  const name = lastPart(file.path);
  item.append(make("span", file.path, "name"));
  const look = make("button", tell("show"));
  look.setAttribute("aria-label", tell("showName", { name }));
  look.hidden = !kindOf(name);
  look.addEventListener("click", () => void lookAt(name, file, reader, worker, item));
  const button = make("button", tell("download"));
  button.setAttribute("aria-label", tell("downloadName", { name }));
  button.addEventListener("click", () => void downloadFile(name, file, reader, worker, item));
  item.append(make("span", sizeOf(language, file.size), "size"), look, button);
  return item;
}

/** @param {string} path */
function lastPart(path) {
  return path.slice(path.lastIndexOf("/") + 1);
}

/**
 * @param {string} name
 * @param {SharedFile} file
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 * @param {HTMLElement} beside
 */
function downloadFile(name, file, reader, worker, beside) {
  return download(name, file.size, beside, worker, (start, end, signal) =>
    reader.read(file, start, end, signal, troubled),
  );
}

/**
 * @param {Manifest} manifest
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 * @param {HTMLElement} beside
 */
function downloadAll(manifest, reader, worker, beside) {
  /** @param {AbortSignal} signal */
  const entries = (signal) =>
    manifest.files.map((file) => ({
      path: `${manifest.name}/${file.path}${file.folder ? "/" : ""}`,
      size: file.size,
      modified: file.modified,
      read: () => reader.read(file, 0, file.size, signal, troubled),
    }));
  const size = zipSize(entries(new AbortController().signal));
  return download(`${manifest.name}.zip`, size, beside, worker, (_start, _end, signal) => zip(entries(signal)));
}

/**
 * @param {string} name
 * @param {number} size
 * @param {HTMLElement} beside
 * @param {ServiceWorker | null} worker
 * @param {import("./streaming.js").Source} source
 */
async function download(name, size, beside, worker, source) {
  const stop = new AbortController();
  const place = make("div", "", "shown");
  const bar = document.createElement("progress");
  bar.max = Math.max(size, 1);
  bar.value = 0;
  bar.setAttribute("aria-label", name);
  const said = make("p", "");
  const button = make("button", tell("stop"));
  button.addEventListener("click", () => stop.abort());
  place.append(bar, said, button);
  beside.after(place);
  const buttons = beside.querySelectorAll("button");
  for (const other of buttons) other.disabled = true;
  const begun = performance.now();
  let done = 0;
  let drawn = 0;
  const onBytes = (/** @type {number} */ count) => {
    done += count;
    const now = performance.now();
    if (now - drawn < 200 && done < size) return;
    drawn = now;
    bar.value = done;
    said.textContent = progressText(done, size, (now - begun) / 1000);
  };
  onBytes(0);
  try {
    await save({ name, size, source, onBytes, signal: stop.signal }, worker);
    setStatus(tell("saved", { name }));
  } catch (error) {
    const isStop = error instanceof DOMException && error.name === "AbortError";
    setStatus(isStop ? tell("stopped") : tell(reasonOf(error)), !isStop);
  } finally {
    place.remove();
    for (const other of buttons) other.disabled = false;
  }
}

/**
 * @param {number} done
 * @param {number} size
 * @param {number} seconds
 */
function progressText(done, size, seconds) {
  const values = { done: sizeOf(language, done), size: sizeOf(language, size) };
  if (seconds < 1 || !done) return tell("progress", values);
  const rate = done / seconds;
  const left = timeOf(language, (size - done) / rate);
  return tell("progressRate", { ...values, rate: sizeOf(language, rate), left });
}

/**
 * @param {string} name
 * @param {SharedFile} file
 * @param {Reader} reader
 * @param {ServiceWorker | null} worker
 * @param {HTMLElement} beside
 */
async function lookAt(name, file, reader, worker, beside) {
  closeShown?.();
  closeShown = null;
  const kind = kindOf(name);
  if (!kind) return;
  const source = (/** @type {number} */ start, /** @type {number} */ end, /** @type {AbortSignal} */ signal) =>
    reader.read(file, start, end, signal, troubled);
  try {
    const shown = await preview({ name, size: file.size, source, ...kind }, worker);
    if (!shown) {
      setStatus(tell("tooLargeToShow"));
      return;
    }
    const place = make("div", "", "shown");
    const hide = make("button", tell("hide"));
    place.append(shown.element);
    if (shown.cut) place.append(make("p", tell("cut")));
    place.append(hide);
    closeShown = () => {
      shown.close();
      place.remove();
    };
    hide.addEventListener("click", () => {
      closeShown?.();
      closeShown = null;
    });
    shown.element.addEventListener("error", () => setStatus(tell("damaged"), true), { once: true });
    beside.after(place);
    setStatus("");
  } catch (error) {
    setStatus(tell(reasonOf(error)), true);
  }
}

start().catch((error) => {
  const reason = reasonOf(error);
  draw = () => {
    heading.textContent = tell("failed");
    setStatus(tell(reason), true);
  };
  content.replaceChildren();
  draw();
  console.error(error);
});
