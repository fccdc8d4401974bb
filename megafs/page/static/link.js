// The text of a link (megafs/links/link_text.py): #1.<id>.<secret>[.<address of the manifest>]

import { fromBase64 } from "./bytes.js";
import { Failure } from "./failure.js";

/**
 * @typedef {object} Link
 * @property {string} id 22 characters
 * @property {import("./bytes.js").Bytes} secret 32 bytes
 * @property {string} manifest the address of its manifest
 */

/**
 * @param {string} fragment what stands behind "#"
 * @param {string} page the address of this page
 * @returns {Link}
 */
export function parseLink(fragment, page) {
  const [version, id, secret, address, ...more] = fragment.split(".");
  if (version !== "1") throw new Failure(/^[0-9]+$/.test(version) ? "newer" : "incomplete");
  try {
    const bytes = fromBase64(secret ?? "");
    if (!/^[A-Za-z0-9_-]{22}$/.test(id) || bytes.length !== 32 || more.length) {
      throw new Failure("incomplete");
    }
    const text = address === undefined ? `share/${id}/manifest` : ascii(fromBase64(address));
    const manifest = new URL(text, page);
    if (manifest.protocol !== "http:" && manifest.protocol !== "https:") {
      throw new Failure(manifest.protocol === "file:" ? "refused" : "incomplete");
    }
    return { id, secret: bytes, manifest: manifest.href };
  } catch (error) {
    throw error instanceof Failure ? error : new Failure("incomplete");
  }
}

/** @param {Uint8Array} bytes */
function ascii(bytes) {
  return String.fromCharCode(...bytes);
}
