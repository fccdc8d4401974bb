// The page reads the links that the command reads: tests/vectors/share.json, under Node.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { webcrypto } from "node:crypto";
import test from "node:test";

globalThis.crypto ??= webcrypto; // Node 18

const page = process.env.PAGE;
const { parseLink } = await import(`${page}/link.js`);
const { needsPassword, openManifest } = await import(`${page}/manifest.js`);
const { openChunk } = await import(`${page}/chunk.js`);
const { Reader } = await import(`${page}/reader.js`);
const { crc32, zip, zipSize } = await import(`${page}/zip.js`);
const { fromBase64, encodeFields } = await import(`${page}/bytes.js`);

const vectors = JSON.parse(readFileSync(new URL("../vectors/share.json", import.meta.url), "utf8"));

/** Opens chunks here, not in workers, which Node has not in this form. */
const openers = {
  async open({ sealed, begin, chunks, volume, epoch, pack }) {
    const opened = [];
    for (const chunk of chunks) {
      const at = chunk.at - begin;
      const data = await openChunk(chunk, sealed.subarray(at, at + chunk.sealed), volume, epoch, pack);
      opened.push({ start: chunk.start, data });
    }
    return opened;
  },
};

function serve(objects, base) {
  const known = new Map(Object.entries(objects).map(([url, data]) => [new URL(url, base).href, fromBase64(data)]));
  globalThis.fetch = async (url, { headers }) => {
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range);
    return new Response(known.get(url).slice(Number(first), Number(last) + 1), { status: 206 });
  };
}

async function read(reader, file, start = 0, end = file.size) {
  const pieces = [];
  for await (const piece of reader.read(file, start, end, new AbortController().signal)) pieces.push(piece);
  return Buffer.concat(pieces);
}

function linkOf(vector) {
  return parseLink(vector.link.slice(vector.link.indexOf("#") + 1), "https://files.example.org/");
}

for (const vector of vectors.cases) {
  test(vector.name, async () => {
    const link = linkOf(vector);
    const data = fromBase64(vector.manifest);
    assert.equal(needsPassword(data), vector.password !== null);
    const manifest = await openManifest(data, link, vector.password);
    serve(vector.objects, link.manifest);
    const reader = new Reader(manifest, openers);
    const found = {};
    for (const file of manifest.files) {
      if (!file.folder) found[file.path] = (await read(reader, file)).toString("base64");
    }
    assert.deepEqual(found, vector.files);
  });

  test(`${vector.name}: any range of it`, async () => {
    const link = linkOf(vector);
    const manifest = await openManifest(fromBase64(vector.manifest), link, vector.password);
    serve(vector.objects, link.manifest);
    const reader = new Reader(manifest, openers);
    for (const file of manifest.files.filter((one) => !one.folder && one.size > 10)) {
      const whole = Buffer.from(vector.files[file.path], "base64");
      for (let n = 0; n < 40; n++) {
        const start = Math.floor(Math.random() * file.size);
        const end = start + Math.floor(Math.random() * (file.size - start));
        assert.deepEqual(await read(reader, file, start, end), whole.subarray(start, end), `${start} to ${end}`);
      }
    }
  });

  test(`${vector.name}: every changed byte is found`, async () => {
    const link = linkOf(vector);
    const data = fromBase64(vector.manifest);
    // A password costs half a second each time.
    const tries = vector.password ? 6 : 400;
    for (let at = 0; at < data.length; at += 1 + Math.floor(data.length / tries)) {
      const bad = data.slice();
      bad[at] ^= 1;
      await assert.rejects(openManifest(bad, link, vector.password ?? ""), undefined, `byte ${at}`);
    }
  });
}

test("a wrong password is told from damage", async () => {
  const vector = vectors.cases.find((one) => one.password);
  const link = linkOf(vector);
  const data = fromBase64(vector.manifest);
  await assert.rejects(openManifest(data, link, "other"), { reason: "password" });
  data[data.length - 1] ^= 1;
  await assert.rejects(openManifest(data, link, vector.password), { reason: "damaged" });
});

test("a forged chunk and a swapped one are refused", async () => {
  const vector = vectors.cases[0];
  const link = linkOf(vector);
  const manifest = await openManifest(fromBase64(vector.manifest), link, null);
  const [url] = Object.keys(vector.objects);
  const object = fromBase64(vector.objects[url]);
  const [chunk, other] = manifest.files[0].chunks;
  const { id, epoch } = manifest.objects[0];
  const sealed = object.slice(chunk.at, chunk.at + chunk.sealed);
  const swapped = object.slice(other.at, other.at + other.sealed);
  const open = (bytes, which = chunk) => openChunk(which, bytes, manifest.volume, epoch, id);
  assert.equal((await open(sealed)).length, chunk.length);
  await assert.rejects(open(swapped), { reason: "damaged" });
  await assert.rejects(open(sealed.slice(0, -1)), { reason: "damaged" });
  // Sealed under the right key, and another digest.
  await assert.rejects(open(sealed, { ...chunk, digest: other.digest }), { reason: "damaged" });
  for (const at of [0, 30, 60, sealed.length - 1]) {
    const bad = sealed.slice();
    bad[at] ^= 1;
    await assert.rejects(open(bad), { reason: "damaged" });
  }
});

test("links that are not whole", () => {
  const whole = vectors.cases[0].link.split("#")[1];
  const page = "https://files.example.org/";
  for (const text of ["", "1", whole.slice(0, 40), whole.slice(0, -2), `${whole}.x.y`, "1..", `${whole}.!!`]) {
    assert.throws(() => parseLink(text, page), { reason: "incomplete" }, text);
  }
  assert.throws(() => parseLink(`2${whole.slice(1)}`, page), { reason: "newer" });
  const file = Buffer.from("file:///etc/passwd").toString("base64url");
  assert.throws(() => parseLink(`${whole}.${file}`, page), { reason: "refused" });
});

test("a zip has the size that was said, and survives being given away", async () => {
  const read = (data) =>
    async function* () {
      yield data.slice();
    };
  const data = new Uint8Array(100000).map((_, n) => n * 7);
  const entries = [
    { path: "d/", size: 0, modified: 0, read: async function* () {} },
    { path: "d/日本", size: data.length, modified: 1790000000, read: read(data) },
    { path: "e", size: 0, modified: 5e9, read: read(new Uint8Array(0)) },
  ];
  let size = 0;
  for await (const piece of zip(entries)) {
    size += piece.length;
    structuredClone(piece, { transfer: [piece.buffer] });
  }
  assert.equal(size, zipSize(entries));
  assert.equal(crc32(0, new TextEncoder().encode("123456789")), 0xcbf43926);
});

test("fields are told apart", () => {
  assert.notDeepEqual(encodeFields("ab", "c"), encodeFields("a", "bc"));
  assert.equal(Buffer.from(encodeFields(1)).toString("hex"), "6d65676166732f3100080000000000000001");
});
