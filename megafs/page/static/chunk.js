// Open sealed chunks, and prove that they are what whoever made the link had sealed.
//
// The digest counts as well as the seal: everybody with a link to a chunk has its key, and could
// seal another one in its place.  BLAKE3, which no browser has, is vendor/blake3.js.

import { encodeFields, equal } from "./bytes.js";
import { Failure } from "./failure.js";
import { openSealed } from "./sealed.js";
import { decompress } from "./vendor/fzstd.js";
import "./vendor/blake3.js";

/** @typedef {import("./bytes.js").Bytes} Bytes */
/** @typedef {import("./manifest.js").Chunk} Chunk */

/** @typedef {{init(): void, update(data: Uint8Array): void, digest(kind: "binary"): Uint8Array}} Hasher */

const RAW = 0;
const ZSTD = 1;
const HEAD = 5;
const MOST = 1 << 20;

/** @type {Promise<Hasher> | undefined} */
let hasher;

/** @returns {Promise<Hasher>} */
function blake3() {
  const library = /** @type {any} */ (globalThis).hashwasm;
  hasher ??= library.createBLAKE3(256);
  return /** @type {Promise<Hasher>} */ (hasher);
}

/**
 * The bytes of the file that lie in a chunk.
 * @param {Chunk} chunk
 * @param {Bytes} sealed
 * @param {Bytes} volume
 * @param {number} epoch
 * @param {Bytes} pack
 * @returns {Promise<Bytes>}
 */
export async function openChunk(chunk, sealed, volume, epoch, pack) {
  if (sealed.length !== chunk.sealed) throw new Failure("damaged");
  const hash = await blake3();
  hash.init();
  hash.update(sealed);
  if (!equal(hash.digest("binary"), chunk.digest)) throw new Failure("damaged");
  const context = encodeFields("chunk", volume, epoch, pack, chunk.offset);
  const data = decode(await openSealed(chunk.key, context, sealed), chunk.plain);
  return data.subarray(chunk.skip, chunk.skip + chunk.length);
}

/**
 * The data in a chunk's plaintext: length u32 | codec u8 | data, perhaps compressed.
 * @param {Bytes} plain
 * @param {number} expected
 * @returns {Bytes}
 */
function decode(plain, expected) {
  if (plain.length < HEAD) throw new Failure("damaged");
  const size = new DataView(plain.buffer, plain.byteOffset).getUint32(0);
  if (size !== expected || size > MOST) throw new Failure("damaged");
  const codec = plain[4];
  if (codec === RAW) {
    if (plain.length - HEAD < size) throw new Failure("damaged");
    return plain.subarray(HEAD, HEAD + size);
  }
  if (codec !== ZSTD) throw new Failure("newer");
  let data;
  try {
    data = /** @type {Bytes} */ (decompress(plain.subarray(HEAD), new Uint8Array(size)));
  } catch {
    throw new Failure("damaged");
  }
  if (data.length !== size) throw new Failure("damaged");
  return data;
}
