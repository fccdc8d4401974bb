// A worker that opens chunks: see opening.js.

import { openChunk } from "./chunk.js";
import { reasonOf } from "./failure.js";

/** @typedef {import("./opening.js").Work} Work */

onmessage = async ({ data }) => {
  const { number, work } = /** @type {{number: number, work: Work}} */ (data);
  try {
    const opened = [];
    for (const chunk of work.chunks) {
      const at = chunk.at - work.begin;
      const sealed = work.sealed.subarray(at, at + chunk.sealed);
      const bytes = await openChunk(chunk, sealed, work.volume, work.epoch, work.pack);
      opened.push({ start: chunk.start, data: bytes.slice() });
    }
    const buffers = opened.map((piece) => piece.data.buffer);
    postMessage({ number, opened }, { transfer: buffers });
  } catch (error) {
    postMessage({ number, reason: reasonOf(error) });
  }
};
