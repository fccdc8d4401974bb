// The service worker: gives a file that the page opens to the browser under an address of its own,
// so that it is saved to the disk as it comes, and a film can be wound forward.
//
// The page offers a file (its name, size and type, and a port); a request for stream/<id>/<name>
// asks for bytes over that port.  Nothing is kept, and no key comes here.

/** @type {ServiceWorkerGlobalScope} */
const scope = /** @type {any} */ (self);

/** @typedef {{port: MessagePort, name: string, size: number, type: string, save: boolean}} Offer */

/** @type {Map<string, Offer>} */
const offers = new Map();
let lastRequest = 0;
/** @type {Map<number, (message: any) => void>} */
const listeners = new Map();

scope.addEventListener("install", () => scope.skipWaiting());
scope.addEventListener("activate", (event) => event.waitUntil(scope.clients.claim()));

scope.addEventListener("message", (event) => {
  const { kind, id, name, size, type, save } = event.data;
  const port = event.ports[0];
  if (kind === "offer") {
    offers.set(id, { port, name, size, type, save });
    port.onmessage = ({ data }) => listeners.get(data.request)?.(data);
    port.postMessage({ kind: "ready" });
  } else if (kind === "withdraw") {
    offers.delete(id);
  }
});

scope.addEventListener("fetch", (event) => {
  const found = /\/stream\/([0-9a-f-]+)\/[^/]*$/.exec(new URL(event.request.url).pathname);
  const offer = found && offers.get(found[1]);
  if (offer) event.respondWith(answer(event.request, offer));
  else if (found) event.respondWith(new Response("", { status: 404 }));
});

/**
 * @param {Request} request
 * @param {Offer} offer
 */
function answer(request, offer) {
  const range = /^bytes=(\d*)-(\d*)$/.exec(request.headers.get("range") ?? "");
  let start = 0;
  let end = offer.size;
  if (range && !offer.save && (range[1] || range[2])) {
    if (range[1]) {
      start = Number(range[1]);
      if (range[2]) end = Math.min(Number(range[2]) + 1, offer.size);
    } else {
      start = Math.max(0, offer.size - Number(range[2]));
    }
    if (start >= end) {
      return new Response("", { status: 416, headers: { "content-range": `bytes */${offer.size}` } });
    }
  }
  /** @type {Record<string, string>} */
  const headers = {
    "content-type": offer.type,
    "content-length": String(end - start),
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "referrer-policy": "no-referrer",
  };
  if (offer.save) {
    const name = encodeURIComponent(offer.name).replace(/['()*]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
    headers["content-disposition"] = `attachment; filename*=UTF-8''${name}`;
  } else {
    headers["accept-ranges"] = "bytes";
    headers["content-disposition"] = "inline";
  }
  const partial = !offer.save && (start > 0 || end < offer.size);
  if (partial) headers["content-range"] = `bytes ${start}-${end - 1}/${offer.size}`;
  return new Response(stream(offer.port, start, end), { status: partial ? 206 : 200, headers });
}

/**
 * @param {MessagePort} port
 * @param {number} start
 * @param {number} end
 */
function stream(port, start, end) {
  const request = ++lastRequest;
  let ready = () => {};
  return new ReadableStream(
    {
      start(controller) {
        listeners.set(request, ({ kind, data }) => {
          if (kind === "data") controller.enqueue(data);
          else {
            listeners.delete(request);
            if (kind === "end") controller.close();
            else controller.error(new Error(kind));
          }
          ready();
        });
        port.postMessage({ kind: "open", request, start, end });
      },
      pull() {
        return new Promise((resolve) => {
          ready = () => resolve(undefined);
          port.postMessage({ kind: "pull", request });
        });
      },
      cancel() {
        listeners.delete(request);
        port.postMessage({ kind: "cancel", request });
      },
    },
    { highWaterMark: 2 },
  );
}
