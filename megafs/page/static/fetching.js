// Fetch ranges of objects, again and again while the line is broken.

import { Failure } from "./failure.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */

/** Milliseconds before the second attempt; each further pause is twice as long, up to the longest. */
const PAUSE = 500;
const LONGEST_PAUSE = 15000;
/** For so many milliseconds a range is tried for, counted from the last byte that came. */
const PATIENCE = 10 * 60 * 1000;
/** Without a byte for so long an attempt is given up. */
const SILENCE = 30000;

/**
 * Called when a line breaks (true) and when it carries again (false).
 * @typedef {(broken: boolean) => void} OnTrouble
 */

/**
 * The bytes [start, start+length) at *url*, fewer only where it ends.
 * @param {string} url
 * @param {number} start
 * @param {number} length
 * @param {AbortSignal} [signal]
 * @param {OnTrouble} [onTrouble]
 * @param {number} [patience] in milliseconds
 * @returns {Promise<Bytes>}
 */
export async function fetchRange(url, start, length, signal, onTrouble, patience = PATIENCE) {
  const body = new Uint8Array(length);
  let have = 0;
  let pause = PAUSE;
  let until = Date.now() + patience;
  for (;;) {
    const before = have;
    try {
      have = await attempt(url, start, body, have, signal);
      onTrouble?.(false);
      return have === length ? body : body.subarray(0, have);
    } catch (error) {
      if (signal?.aborted || error instanceof Failure) throw error;
      const broken = /** @type {Broken} */ (error);
      have = broken.have ?? have;
      if (have > before) {
        pause = PAUSE;
        until = Date.now() + patience;
      }
      if (Date.now() >= until) throw new Failure(broken.busy ? "busy" : "offline");
      onTrouble?.(true);
      await sleep(Math.max(pause, broken.wait ?? 0), signal);
      pause = Math.min(2 * pause, LONGEST_PAUSE);
    }
  }
}

class Broken extends Error {
  /**
   * @param {number} have how many bytes came before it broke
   * @param {boolean} [busy]
   * @param {number} [wait] milliseconds that the server asks for
   */
  constructor(have, busy = false, wait = 0) {
    super("broken");
    this.have = have;
    this.busy = busy;
    this.wait = wait;
  }
}

/**
 * @param {string} url
 * @param {number} start
 * @param {Bytes} body
 * @param {number} have
 * @param {AbortSignal} [signal]
 * @returns {Promise<number>} how many bytes there are now
 */
async function attempt(url, start, body, have, signal) {
  const stop = new AbortController();
  const abort = () => stop.abort();
  signal?.addEventListener("abort", abort);
  let alarm = setTimeout(abort, SILENCE);
  try {
    const answer = await fetch(url, {
      headers: { range: `bytes=${start + have}-${start + body.length - 1}` },
      signal: stop.signal,
      credentials: "omit",
      referrerPolicy: "no-referrer",
      cache: "no-store",
      redirect: "follow",
    });
    let skip = rangeOf(answer, start + have, have);
    if (skip < 0) return have; // nothing lies there
    const reader = /** @type {ReadableStream<Bytes>} */ (answer.body).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      clearTimeout(alarm);
      alarm = setTimeout(abort, SILENCE);
      const piece = value.subarray(Math.min(skip, value.length));
      skip -= value.length - piece.length;
      const fits = piece.subarray(0, body.length - have);
      body.set(fits, have);
      have += fits.length;
      if (have === body.length) {
        await reader.cancel(); // whatever more it sends is not wanted
        break;
      }
    }
    const said = answer.headers.get("content-length");
    if (have < body.length && answer.status === 206 && said !== null && cut(said, have, body)) {
      throw new Broken(have);
    }
    return have;
  } catch (error) {
    if (error instanceof Failure || error instanceof Broken) throw error;
    throw new Broken(have);
  } finally {
    clearTimeout(alarm);
    signal?.removeEventListener("abort", abort);
    stop.abort();
  }
}

/**
 * Whether a body ended before its own length.
 * @param {string} said
 * @param {number} have
 * @param {Bytes} body
 */
function cut(said, have, body) {
  return Number(said) > have && have < body.length && Number(said) <= body.length;
}

/**
 * How many bytes of the answer lie before those that were asked for; -1 if it has none of them.
 * @param {Response} answer
 * @param {number} from
 * @param {number} have
 */
function rangeOf(answer, from, have) {
  const { status } = answer;
  if (status === 206) return 0;
  if (status === 200) return from;
  if (status === 416) return -1;
  if (status === 404 || status === 410) throw new Failure("revoked");
  if (status === 400 || status === 401 || status === 403) throw new Failure("expired");
  if (status === 408 || status === 429 || status >= 500) {
    const seconds = Number(answer.headers.get("retry-after"));
    throw new Broken(have, true, Math.min(seconds > 0 ? seconds * 1000 : 0, 60000));
  }
  throw new Failure("refused");
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 */
function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      globalThis.removeEventListener?.("online", go);
      resolve(undefined);
    }, milliseconds);
    const go = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      resolve(undefined);
    };
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    signal?.addEventListener("abort", stop, { once: true });
    globalThis.addEventListener?.("online", go, { once: true });
  });
}
