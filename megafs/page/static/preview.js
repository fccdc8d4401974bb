// Shows a file in the page.  Nothing of it can run: pictures are shown as pictures, text as text, and
// what the service worker serves has a policy that forbids scripts.

import { offer } from "./streaming.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */

/** What is shown of a text, and kept in memory of anything else without a service worker. */
const MOST_TEXT = 1 << 20;
const MOST_BLOB = 64 << 20;

/**
 * @typedef {object} Shown
 * @property {HTMLElement} element
 * @property {boolean} cut whether it goes on
 * @property {() => void} close
 */

/**
 * @param {{name: string, size: number, kind: import("./types.js").Kind, type: string,
 *   source: import("./streaming.js").Source}} file
 * @param {ServiceWorker | null} worker
 * @returns {Promise<Shown | null>} null if it is too large to be shown here
 */
export async function preview(file, worker) {
  if (file.kind === "text") return text(file.source, file.size);
  if (worker) {
    const offered = await offer(worker, { ...file, save: false });
    return { element: elementFor(file, offered.url), cut: false, close: offered.withdraw };
  }
  if (file.size > MOST_BLOB || file.kind === "pdf") return null;
  const pieces = [];
  for await (const piece of file.source(0, file.size, new AbortController().signal)) pieces.push(piece);
  const url = URL.createObjectURL(new Blob(pieces, { type: file.type }));
  return { element: elementFor(file, url), cut: false, close: () => URL.revokeObjectURL(url) };
}

/**
 * @param {import("./streaming.js").Source} source
 * @param {number} size
 * @returns {Promise<Shown>}
 */
async function text(source, size) {
  const element = document.createElement("pre");
  element.tabIndex = 0;
  const end = Math.min(size, MOST_TEXT);
  const decoder = new TextDecoder();
  for await (const piece of source(0, end, new AbortController().signal)) {
    element.append(decoder.decode(piece, { stream: true }));
  }
  element.append(decoder.decode());
  return { element, cut: end < size, close: () => {} };
}

/**
 * @param {{name: string, kind: import("./types.js").Kind}} file
 * @param {string} url
 * @returns {HTMLElement}
 */
function elementFor(file, url) {
  if (file.kind === "image") {
    const image = document.createElement("img");
    image.alt = file.name;
    image.src = url;
    return image;
  }
  if (file.kind === "pdf") {
    const frame = document.createElement("iframe");
    frame.title = file.name;
    frame.src = url;
    return frame;
  }
  const media = document.createElement(file.kind === "audio" ? "audio" : "video");
  media.controls = true;
  media.preload = "metadata";
  media.src = url;
  media.setAttribute("aria-label", file.name);
  return media;
}
