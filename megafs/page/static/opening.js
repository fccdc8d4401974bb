// Opens chunks in two workers beside the page, so that the page stays at hand.

import { Failure } from "./failure.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */
/** @typedef {import("./manifest.js").Chunk} Chunk */

/**
 * @typedef {object} Work
 * @property {Bytes} sealed what one get brought; it is given away
 * @property {number} begin where that begins in its object
 * @property {Chunk[]} chunks
 * @property {Bytes} volume
 * @property {number} epoch
 * @property {Bytes} pack
 */

/** @typedef {{start: number, data: Bytes}[]} Opened */

const WORKERS = 2;

export class Openers {
  constructor() {
    /** @type {Map<number, {resolve: (opened: Opened) => void, reject: (why: Failure) => void}>} */
    this.waiting = new Map();
    this.last = 0;
    /** @type {Worker[]} */
    this.workers = [];
  }

  /**
   * @param {Work} work
   * @returns {Promise<Opened>}
   */
  open(work) {
    if (!this.workers.length) {
      for (let n = 0; n < WORKERS; n++) this.workers.push(this.made());
    }
    const number = ++this.last;
    const worker = this.workers[number % WORKERS];
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { resolve, reject });
      worker.postMessage({ number, work }, [work.sealed.buffer]);
    });
  }

  made() {
    const worker = new Worker(new URL("./opening_worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      const waits = this.waiting.get(data.number);
      this.waiting.delete(data.number);
      if (data.opened) waits?.resolve(data.opened);
      else waits?.reject(new Failure(data.reason));
    };
    worker.onerror = () => {
      for (const waits of this.waiting.values()) waits.reject(new Failure("blocked"));
      this.waiting.clear();
    };
    return worker;
  }
}
