// Read the files that a link gives out: fetched some ranges ahead, verified, in order.

import { fetchRange } from "./fetching.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */
/** @typedef {import("./manifest.js").Chunk} Chunk */
/** @typedef {import("./manifest.js").Manifest} Manifest */
/** @typedef {import("./manifest.js").SharedFile} SharedFile */
/** @typedef {import("./opening.js").Opened} Opened */

/** Chunks this close together in an object come in one get, of at most so many bytes. */
const GAP = 64 << 10;
const RANGE = 2 << 20;
/** Gets ahead of the reader: with what is opened, some 24 MiB in memory. */
const AHEAD = 5;

/** @typedef {{start: number, end: number, chunks: Chunk[], data: Bytes | null}} Piece */

export class Reader {
  /**
   * @param {Manifest} manifest
   * @param {{open(work: import("./opening.js").Work): Promise<Opened>}} openers
   */
  constructor(manifest, openers) {
    this.manifest = manifest;
    this.openers = openers;
  }

  /**
   * The bytes [start, end) of a file, in pieces; zeros where it has none.
   * @param {SharedFile} file
   * @param {number} start
   * @param {number} end
   * @param {AbortSignal} signal
   * @param {import("./fetching.js").OnTrouble} [onTrouble]
   * @returns {AsyncGenerator<Bytes, void, void>}
   */
  async *read(file, start, end, signal, onTrouble) {
    const pieces = piecesOf(file).filter((piece) => piece.end > start && piece.start < end);
    /** @type {Promise<Opened>[]} */
    const under = [];
    let next = 0;
    let at = start;
    const begin = () => {
      while (next < pieces.length && under.length < AHEAD) {
        const opened = this.open(pieces[next++], signal, onTrouble);
        opened.catch(() => {}); // reported when its turn comes
        under.push(opened);
      }
    };
    begin();
    while (under.length) {
      const opened = await /** @type {Promise<Opened>} */ (under.shift());
      begin();
      for (const piece of opened) {
        const from = Math.max(piece.start, start);
        const upto = Math.min(piece.start + piece.data.length, end);
        if (upto <= from) continue;
        yield* zeros(from - at);
        yield piece.data.subarray(from - piece.start, upto - piece.start);
        at = upto;
      }
    }
    yield* zeros(end - at);
  }

  /**
   * @param {Piece} piece
   * @param {AbortSignal} signal
   * @param {import("./fetching.js").OnTrouble} [onTrouble]
   * @returns {Promise<Opened>}
   */
  async open(piece, signal, onTrouble) {
    if (piece.data) return [{ start: piece.start, data: piece.data.slice() }];
    const { chunks } = piece;
    const source = this.manifest.objects[chunks[0].object];
    const begin = Math.min(...chunks.map((chunk) => chunk.at));
    const end = Math.max(...chunks.map((chunk) => chunk.at + chunk.sealed));
    const sealed = await fetchRange(source.url, begin, end - begin, signal, onTrouble);
    return this.openers.open({
      sealed,
      begin,
      chunks,
      volume: this.manifest.volume,
      epoch: source.epoch,
      pack: source.id,
    });
  }
}

/**
 * @param {number} count
 * @returns {Generator<Bytes, void, void>}
 */
function* zeros(count) {
  while (count > 0) {
    const size = Math.min(count, 1 << 20);
    yield new Uint8Array(size); // whoever takes it may give it away
    count -= size;
  }
}

/**
 * A file's bytes in order, chunks that lie together in one object in one piece.
 * @param {SharedFile} file
 * @returns {Piece[]}
 */
function piecesOf(file) {
  /** @type {Piece[]} */
  const pieces = file.inline.map(({ start, data }) => ({
    start,
    end: start + data.length,
    chunks: [],
    data,
  }));
  const taken = pieces.map((piece) => piece.start);
  /** @type {Piece | null} */
  let run = null;
  for (const chunk of file.chunks) {
    const between = run && taken.some((start) => run && start >= run.end && start < chunk.start);
    if (run && !between && fits(run.chunks, chunk)) {
      run.chunks.push(chunk);
      run.end = chunk.start + chunk.length;
    } else {
      run = { start: chunk.start, end: chunk.start + chunk.length, chunks: [chunk], data: null };
      pieces.push(run);
    }
  }
  return pieces.sort((a, b) => a.start - b.start);
}

/**
 * @param {Chunk[]} run
 * @param {Chunk} chunk
 */
function fits(run, chunk) {
  const last = run[run.length - 1];
  const gap = chunk.at - last.at - last.sealed;
  const same = chunk.at === last.at && chunk.sealed === last.sealed;
  const near = (gap >= 0 && gap <= GAP) || same;
  return chunk.object === last.object && near && chunk.at + chunk.sealed - run[0].at <= RANGE;
}
