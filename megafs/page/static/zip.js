// Several files as one zip, written as it goes: stored, not compressed, in the zip64 form throughout.
// Sizes are known before, checksums only after each file, so they follow it (APPNOTE 6.3.9, 4.3.9).

import { concat, utf8 } from "./bytes.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */

/**
 * @typedef {object} Entry
 * @property {string} path folders end in "/"
 * @property {number} size
 * @property {number} modified seconds since 1970
 * @property {() => AsyncGenerator<Bytes, void, void>} read
 */

const LOCAL = 0x04034b50;
const DESCRIPTOR = 0x08074b50;
const CENTRAL = 0x02014b50;
const END64 = 0x06064b50;
const LOCATOR64 = 0x07064b50;
const END = 0x06054b50;
/** Sizes follow the file; names are UTF-8. */
const FLAGS = 0x0808;
const VERSION = 45;
const LOCAL_SIZE = 30 + 20;
const DESCRIPTOR_SIZE = 24;
const CENTRAL_SIZE = 46 + 28;
const END_SIZE = 56 + 20 + 22;

const TABLE = Array.from({ length: 8 }, () => new Uint32Array(256));
for (let n = 0; n < 256; n++) {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  TABLE[0][n] = value;
}
for (let n = 0; n < 256; n++) {
  for (let k = 1; k < 8; k++) {
    const value = TABLE[k - 1][n];
    TABLE[k][n] = (value >>> 8) ^ TABLE[0][value & 255];
  }
}

/**
 * CRC-32 of what came so far and *data*; eight bytes at a time (Intel's slicing-by-8).
 * @param {number} crc 0 at first
 * @param {Uint8Array} data
 */
export function crc32(crc, data) {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = TABLE;
  let value = ~crc;
  let at = 0;
  for (const end = data.length - 7; at < end; at += 8) {
    value ^= data[at] | (data[at + 1] << 8) | (data[at + 2] << 16) | (data[at + 3] << 24);
    value =
      t7[value & 255] ^ t6[(value >>> 8) & 255] ^ t5[(value >>> 16) & 255] ^ t4[value >>> 24] ^
      t3[data[at + 4]] ^ t2[data[at + 5]] ^ t1[data[at + 6]] ^ t0[data[at + 7]];
  }
  for (; at < data.length; at++) value = (value >>> 8) ^ t0[(value ^ data[at]) & 255];
  return ~value >>> 0;
}

/**
 * The size of the zip of these entries.
 * @param {Entry[]} entries
 */
export function zipSize(entries) {
  let size = END_SIZE;
  for (const entry of entries) {
    const name = utf8(entry.path).length;
    size += LOCAL_SIZE + name + entry.size + DESCRIPTOR_SIZE + CENTRAL_SIZE + name;
  }
  return size;
}

/**
 * @param {Entry[]} entries
 * @returns {AsyncGenerator<Bytes, void, void>}
 */
export async function* zip(entries) {
  /** @type {Bytes[]} */
  const central = [];
  let at = 0;
  for (const entry of entries) {
    const name = utf8(entry.path);
    const moment = dosTime(entry.modified);
    const offset = at;
    const head = new Fields(LOCAL_SIZE)
      .u32(LOCAL).u16(VERSION).u16(FLAGS).u16(0).u32(moment).u32(0)
      .u32(0xffffffff).u32(0xffffffff).u16(name.length).u16(20)
      .u16(1).u16(16).u64(0).u64(0);
    const local = concat(head.bytes.subarray(0, 30), name, head.bytes.subarray(30));
    const start = local.length;
    yield local; // whoever takes it may give it away: it has no length then
    let crc = 0;
    let size = 0;
    for await (const piece of entry.read()) {
      crc = crc32(crc, piece);
      size += piece.length;
      yield piece;
    }
    if (size !== entry.size) throw new Error("a file has another size than its listing says");
    yield new Fields(DESCRIPTOR_SIZE).u32(DESCRIPTOR).u32(crc).u64(size).u64(size).bytes;
    at += start + size + DESCRIPTOR_SIZE;
    const folder = entry.path.endsWith("/");
    const fields = new Fields(CENTRAL_SIZE)
      .u32(CENTRAL).u16((3 << 8) | VERSION).u16(VERSION).u16(FLAGS).u16(0).u32(moment).u32(crc)
      .u32(0xffffffff).u32(0xffffffff).u16(name.length).u16(28).u16(0).u16(0).u16(0)
      .u32(((folder ? 0o40755 : 0o100644) << 16) | (folder ? 16 : 0)).u32(0xffffffff)
      .u16(1).u16(24).u64(size).u64(size).u64(offset);
    central.push(concat(fields.bytes.subarray(0, 46), name, fields.bytes.subarray(46)));
  }
  const size = central.reduce((sum, part) => sum + part.length, 0);
  for (const part of central) yield part;
  const count = central.length;
  yield new Fields(END_SIZE)
    .u32(END64).u64(44).u16((3 << 8) | VERSION).u16(VERSION).u32(0).u32(0)
    .u64(count).u64(count).u64(size).u64(at)
    .u32(LOCATOR64).u32(0).u64(at + size).u32(1)
    .u32(END).u16(0).u16(0).u16(Math.min(count, 0xffff)).u16(Math.min(count, 0xffff))
    .u32(0xffffffff).u32(0xffffffff).u16(0).bytes;
}

class Fields {
  /** @param {number} size */
  constructor(size) {
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
    this.at = 0;
  }

  /** @param {number} value */
  u16(value) {
    this.view.setUint16(this.at, value, true);
    this.at += 2;
    return this;
  }

  /** @param {number} value */
  u32(value) {
    this.view.setUint32(this.at, value >>> 0, true);
    this.at += 4;
    return this;
  }

  /** @param {number} value */
  u64(value) {
    this.view.setBigUint64(this.at, BigInt(value), true);
    this.at += 8;
    return this;
  }
}

/**
 * Date and time as DOS had them, in the time of whoever reads them; from 1980 to 2107.
 * @param {number} seconds
 */
function dosTime(seconds) {
  const when = new Date(Math.min(Math.max(seconds, 315619200), 4354819200) * 1000);
  const date = ((when.getFullYear() - 1980) << 9) | ((when.getMonth() + 1) << 5) | when.getDate();
  const time = (when.getHours() << 11) | (when.getMinutes() << 5) | (when.getSeconds() >> 1);
  return date * 65536 + time;
}
