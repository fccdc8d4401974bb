// The manifest of a link (megafs/links/manifest.py): what it gives out, and with which keys.

import { concat, encodeFields, fromBase64, fromHex, utf8 } from "./bytes.js";
import { Failure } from "./failure.js";
import { HEADER, openSealed } from "./sealed.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */

/**
 * Bytes [start, start+length) of a file are [skip, skip+length) of a chunk.
 * @typedef {object} Chunk
 * @property {number} start
 * @property {number} length
 * @property {number} object its number in the manifest's list
 * @property {number} at where the sealed chunk begins in the object
 * @property {number} offset what its key and context say
 * @property {number} sealed
 * @property {number} plain
 * @property {number} skip
 * @property {Bytes} key
 * @property {Bytes} digest
 */

/**
 * @typedef {object} SharedFile
 * @property {string} path "" for a single file
 * @property {number} size
 * @property {number} modified seconds since 1970
 * @property {boolean} folder
 * @property {Chunk[]} chunks by start
 * @property {{start: number, data: Bytes}[]} inline
 */

/**
 * @typedef {object} Manifest
 * @property {string} name
 * @property {boolean} folder
 * @property {Bytes} volume
 * @property {number} expires seconds since 1970, 0 if it does not end
 * @property {{url: string, id: Bytes, epoch: number}[]} objects
 * @property {SharedFile[]} files
 * @property {number} leftOut
 */

const FORMAT = 1;
const PASSWORD = 1;
const SALT = 16;
const HEAD = 2 + SALT;
const ROUNDS = 600000;
const MOST_PLAIN = 1 << 20;
export const LARGEST = 128 << 20;

/**
 * Whether a password is needed to open it.
 * @param {Bytes} data
 */
export function needsPassword(data) {
  if (data.length < HEAD + HEADER) throw new Failure("damaged");
  if (data[0] !== FORMAT || data[1] & ~PASSWORD) throw new Failure("newer");
  return data[1] === PASSWORD;
}

/**
 * @param {Bytes} data the object
 * @param {import("./link.js").Link} link
 * @param {string | null} password
 * @returns {Promise<Manifest>}
 */
export async function openManifest(data, link, password) {
  const needed = needsPassword(data);
  if (needed && password === null) throw new Failure("password");
  const salt = data.slice(2, HEAD);
  const context = encodeFields("share", link.id, FORMAT, data[1], salt);
  const key = await manifestKey(link.secret, needed ? password : null, salt);
  const plain = await openSealed(key, context, data.subarray(HEAD), needed);
  const length = new DataView(plain.buffer).getUint32(0);
  if (4 + length > plain.length) throw new Failure("damaged");
  /** @type {any} */
  let read;
  try {
    read = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(plain.subarray(4, 4 + length)));
    return checked(read, link.manifest);
  } catch (error) {
    throw error instanceof Failure ? error : new Failure("damaged");
  }
}

/**
 * @param {Bytes} secret
 * @param {string | null} password
 * @param {Bytes} salt
 */
async function manifestKey(secret, password, salt) {
  if (password === null) return hmac(secret, utf8("megafs share v1"));
  const typed = await crypto.subtle.importKey("raw", utf8(password.normalize("NFC")), "PBKDF2", false, [
    "deriveBits",
  ]);
  const how = { name: "PBKDF2", hash: "SHA-256", salt, iterations: ROUNDS };
  const stretched = new Uint8Array(await crypto.subtle.deriveBits(how, typed, 256));
  return hmac(secret, concat(utf8("megafs share v1 password"), stretched));
}

/**
 * @param {Bytes} key
 * @param {Bytes} text
 */
async function hmac(key, text) {
  const made = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", made, text));
}

/**
 * Look at what we rely on: whoever made the link may have made it to do harm.
 * @param {any} read
 * @param {string} base
 * @returns {Manifest}
 */
function checked(read, base) {
  if (read.version !== FORMAT) throw new Failure("newer");
  const objects = read.objects.map((/** @type {any} */ item) => {
    const url = new URL(item.url, base);
    if (url.protocol !== "http:" && url.protocol !== "https:") throw new Failure("refused");
    return { url: url.href, id: sized(fromHex(item.id), 16), epoch: count(item.epoch) };
  });
  /** @type {SharedFile[]} */
  const files = read.files.map((/** @type {any} */ file) => checkedFile(file, objects.length));
  if (typeof read.name !== "string" || !read.name || (!read.folder && files.length !== 1)) {
    throw new Failure("damaged");
  }
  return {
    name: read.name,
    folder: read.folder === true,
    volume: sized(fromHex(read.volume), 16),
    expires: count(read.expires),
    objects,
    files,
    leftOut: count(read.left_out ?? 0),
  };
}

/**
 * @param {any} read
 * @param {number} objects
 * @returns {SharedFile}
 */
function checkedFile(read, objects) {
  const size = count(read.size ?? 0);
  /** @type {Chunk[]} */
  const chunks = (read.chunks ?? []).map((/** @type {any[]} */ row) => {
    const [start, length, object, at, offset, sealed, plain, skip] = row.slice(0, 8).map(count);
    const chunk = { start, length, object, at, offset, sealed, plain, skip };
    if (object >= objects || !plain || plain > MOST_PLAIN || !sealed || sealed > 2 * MOST_PLAIN) {
      throw new Failure("damaged");
    }
    if (skip + length > plain) throw new Failure("damaged");
    return { ...chunk, key: sized(fromBase64(row[8]), 32), digest: sized(fromBase64(row[9]), 32) };
  });
  const inline = (read.inline ?? []).map((/** @type {any[]} */ row) => ({
    start: count(row[0]),
    data: fromBase64(row[1]),
  }));
  const pieces = [
    ...chunks.map((chunk) => [chunk.start, chunk.length]),
    ...inline.map((/** @type {{start: number, data: Bytes}} */ piece) => [piece.start, piece.data.length]),
  ].sort((a, b) => a[0] - b[0]);
  let end = 0;
  for (const [start, length] of pieces) {
    if (start < end || length <= 0 || start + length > size) throw new Failure("damaged");
    end = start + length;
  }
  chunks.sort((a, b) => a.start - b.start);
  if (typeof read.path !== "string" || (read.path && !isPath(read.path))) throw new Failure("damaged");
  return {
    path: read.path,
    size,
    modified: Number(read.modified ?? 0),
    folder: read.folder === true,
    chunks,
    inline,
  };
}

/** @param {string} path */
function isPath(path) {
  return path.split("/").every((part) => part && part !== "." && part !== ".." && !part.includes("\0"));
}

/** @param {unknown} value */
function count(value) {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) throw new Failure("damaged");
  return value;
}

/**
 * @param {Bytes} bytes
 * @param {number} size
 */
function sized(bytes, size) {
  if (bytes.length !== size) throw new Failure("damaged");
  return bytes;
}
