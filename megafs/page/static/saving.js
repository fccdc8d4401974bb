// Saves bytes to the disk in the best way that this browser can do; chosen by what it has, never by
// its name: a download through the service worker, the file picker, or all of it in memory first.

import { Failure } from "./failure.js";
import { offer } from "./streaming.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */

/**
 * @typedef {object} Saving
 * @property {string} name
 * @property {number} size
 * @property {import("./streaming.js").Source} source
 * @property {(count: number) => void} onBytes how many more bytes there are
 * @property {AbortSignal} signal
 */

/** @typedef {"stream" | "picker" | "memory"} Way */

/** The most that is kept in memory: browsers end tabs that want more. */
export const MOST_IN_MEMORY = 500 * 1000 * 1000;

/**
 * @param {ServiceWorker | null} worker
 * @returns {Way}
 */
export function wayOfSaving(worker) {
  if (worker) return "stream";
  return "showSaveFilePicker" in window ? "picker" : "memory";
}

/**
 * Save it; returns when the browser has all of it.
 * @param {Saving} saving
 * @param {ServiceWorker | null} worker
 * @returns {Promise<void>}
 */
export async function save(saving, worker) {
  if (worker) await bySending(saving, worker);
  else if (wayOfSaving(null) === "picker") await byPicker(saving);
  else await byMemory(saving);
}

/**
 * @param {Saving} saving
 * @param {ServiceWorker} worker
 */
async function bySending(saving, worker) {
  /** @type {() => void} */
  let withdraw = () => {};
  const frame = document.createElement("iframe");
  try {
    await new Promise((resolve, reject) => {
      const offered = offer(worker, {
        name: saving.name,
        size: saving.size,
        type: "application/octet-stream",
        save: true,
        source: (start, end, signal) => counted(saving, start, end, signal),
        onEnd: () => resolve(undefined),
        onError: reject,
        onCancel: () => reject(new DOMException("stopped", "AbortError")),
      });
      saving.signal.addEventListener("abort", () => {
        withdraw();
        reject(new DOMException("stopped", "AbortError"));
      });
      offered.then((made) => {
        withdraw = made.withdraw;
        frame.hidden = true;
        frame.src = made.url;
        document.body.append(frame);
      }, reject);
    });
    await new Promise((resolve) => setTimeout(resolve, 1000)); // the last bytes are on their way
  } finally {
    withdraw();
    frame.remove();
  }
}

/** @param {Saving} saving */
async function byPicker(saving) {
  const picker = /** @type {any} */ (window).showSaveFilePicker;
  const handle = await picker({ suggestedName: saving.name });
  const file = await handle.createWritable();
  try {
    for await (const piece of counted(saving, 0, saving.size, saving.signal)) await file.write(piece);
    await file.close();
  } catch (error) {
    await file.abort();
    throw error;
  }
}

/** @param {Saving} saving */
async function byMemory(saving) {
  if (saving.size > MOST_IN_MEMORY) throw new Failure("tooLarge");
  /** @type {Bytes[]} */
  const pieces = [];
  for await (const piece of counted(saving, 0, saving.size, saving.signal)) pieces.push(piece);
  const url = URL.createObjectURL(new Blob(pieces, { type: "application/octet-stream" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = saving.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/**
 * @param {Saving} saving
 * @param {number} start
 * @param {number} end
 * @param {AbortSignal} signal
 */
async function* counted(saving, start, end, signal) {
  const both = AbortSignal.any ? AbortSignal.any([signal, saving.signal]) : signal;
  for await (const piece of saving.source(start, end, both)) {
    saving.onBytes(piece.length);
    yield piece;
  }
}
