// Bytes: encodings, and the list of fields that contexts are made of (megafs/crypto/aead.py).

const encoder = new TextEncoder();

/** @typedef {Uint8Array<ArrayBuffer>} Bytes */

/**
 * @param {string} text
 * @returns {Bytes}
 */
export function utf8(text) {
  return encoder.encode(text);
}

/**
 * @param {string} text base64, with or without padding, of either alphabet
 * @returns {Bytes} throws if it is none
 */
export function fromBase64(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/**
 * @param {string} text
 * @returns {Bytes} throws if it is no hexadecimal number of whole bytes
 */
export function fromHex(text) {
  if (!/^([0-9a-f]{2})*$/.test(text)) throw new Error("not hexadecimal");
  const bytes = new Uint8Array(text.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

/**
 * @param {Uint8Array[]} parts
 * @returns {Bytes}
 */
export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * Whether two strings of bytes are the same; takes as long wherever they differ.
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 */
export function equal(a, b) {
  let different = a.length ^ b.length;
  for (let i = 0; i < Math.min(a.length, b.length); i++) different |= a[i] ^ b[i];
  return different === 0;
}

/**
 * "megafs/1", then each field as its length (u16, big-endian) and its bytes.
 * @param {(Uint8Array | string | number)[]} fields a number is 8 bytes, text UTF-8
 * @returns {Bytes}
 */
export function encodeFields(...fields) {
  /** @type {Uint8Array[]} */
  const parts = [utf8("megafs/1")];
  for (const field of fields) {
    const data =
      typeof field === "number" ? u64(field) : typeof field === "string" ? utf8(field) : field;
    parts.push(new Uint8Array([data.length >> 8, data.length & 255]), data);
  }
  return concat(...parts);
}

/** @param {number} value */
function u64(value) {
  const data = new Uint8Array(8);
  new DataView(data.buffer).setBigUint64(0, BigInt(value));
  return data;
}
