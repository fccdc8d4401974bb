// Open what megafs has sealed: C2SP chunked-encryption over AES-256-GCM (megafs/crypto/aead.py).
//
// salt 24 | commitment 32 | segments of 16384 bytes, each with its tag of 16, the last one shorter.
// Nothing is returned before every segment has verified.

import { concat, equal, utf8 } from "./bytes.js";
import { Failure } from "./failure.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */

const SEGMENT = 16384;
const TAG = 16;
const SALT = 24;
const COMMITMENT = 32;
export const HEADER = SALT + COMMITMENT;
const NONCE = 12;
const KEY = 32;
const LABEL = utf8("c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0");

/**
 * How many bytes were sealed, given the sealed size.
 * @param {number} size
 */
export function openedSize(size) {
  const full = Math.floor((size - HEADER) / (SEGMENT + TAG));
  const rest = (size - HEADER) % (SEGMENT + TAG);
  if (size < HEADER + TAG || rest < TAG) throw new Failure("damaged");
  return full * SEGMENT + rest - TAG;
}

/**
 * HKDF-Expand with SHA-512; WebCrypto's own HKDF always extracts first.
 * @param {Bytes} key
 * @param {Bytes} info
 * @param {number} length
 * @returns {Promise<Bytes>}
 */
async function expand(key, info, length) {
  const hmac = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-512" }, false, [
    "sign",
  ]);
  let whole = new Uint8Array(0);
  let last = new Uint8Array(0);
  for (let n = 1; whole.length < length; n++) {
    const text = concat(last, info, new Uint8Array([n]));
    last = new Uint8Array(await crypto.subtle.sign("HMAC", hmac, text));
    whole = concat(whole, last);
  }
  return whole.slice(0, length);
}

/**
 * Open *sealed*; throws Failure("damaged"), or Failure("password") if the key is another one and
 * `keyMayBeWrong`.
 * @param {Bytes} key 32 bytes
 * @param {Bytes} context
 * @param {Bytes} sealed
 * @param {boolean} [keyMayBeWrong]
 * @returns {Promise<Bytes>}
 */
export async function openSealed(key, context, sealed, keyMayBeWrong = false) {
  const plain = new Uint8Array(openedSize(sealed.length));
  const salt = sealed.subarray(0, SALT);
  const derived = await expand(key, concat(LABEL, salt, context), KEY + NONCE + COMMITMENT);
  if (!equal(derived.subarray(KEY + NONCE), sealed.subarray(SALT, HEADER))) {
    throw new Failure(keyMayBeWrong ? "password" : "damaged");
  }
  const cipher = await crypto.subtle.importKey("raw", derived.slice(0, KEY), "AES-GCM", false, [
    "decrypt",
  ]);
  const base = derived.slice(KEY, KEY + NONCE);
  const step = SEGMENT + TAG;
  const segments = Math.ceil((sealed.length - HEADER) / step);
  const opening = [];
  for (let n = 0; n < segments; n++) {
    const at = HEADER + n * step;
    const segment = sealed.subarray(at, Math.min(at + step, sealed.length));
    opening.push(
      crypto.subtle
        .decrypt({ name: "AES-GCM", iv: nonce(base, n) }, cipher, segment)
        .then((opened) => plain.set(new Uint8Array(opened), n * SEGMENT)),
    );
  }
  try {
    await Promise.all(opening);
  } catch {
    throw new Failure("damaged");
  }
  return plain;
}

/**
 * @param {Bytes} base
 * @param {number} number
 * @returns {Bytes}
 */
function nonce(base, number) {
  const made = base.slice();
  const view = new DataView(made.buffer);
  view.setUint32(8, (view.getUint32(8) ^ number) >>> 0);
  return made;
}
