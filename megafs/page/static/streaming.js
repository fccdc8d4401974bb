// Offers what the page opens to the service worker (sw.js), under an address of its own.

/** @typedef {import("./bytes.js").Bytes} Bytes */

/**
 * Gives the bytes [start, end), in pieces.
 * @typedef {(start: number, end: number, signal: AbortSignal) => AsyncGenerator<Bytes, void, void>} Source
 */

/**
 * @typedef {object} Offered
 * @property {string} name
 * @property {number} size
 * @property {string} type
 * @property {boolean} save whether it is for the disk, or to be looked at
 * @property {Source} source
 * @property {() => void} [onEnd] all of it was handed over
 * @property {(error: unknown) => void} [onError]
 * @property {() => void} [onCancel] the browser wants no more
 */

/** Milliseconds for the service worker to be there. */
const PATIENCE = 5000;
const PING = 10000;

/**
 * The service worker of this page; null where there is none, as in private windows.
 * @returns {Promise<ServiceWorker | null>}
 */
export async function serviceWorker() {
  if (!("serviceWorker" in navigator) || !navigator.serviceWorker) return null;
  try {
    await navigator.serviceWorker.register("sw.js");
    const registration = await Promise.race([
      navigator.serviceWorker.ready,
      new Promise((_, reject) => setTimeout(reject, PATIENCE)),
    ]);
    return /** @type {ServiceWorkerRegistration} */ (registration).active;
  } catch {
    return null;
  }
}

/**
 * The address from which the browser can have it; and a way to take it back.
 * @param {ServiceWorker} worker
 * @param {Offered} offered
 * @returns {Promise<{url: string, withdraw: () => void}>}
 */
export async function offer(worker, offered) {
  const { port1: port, port2 } = new MessageChannel();
  const id = crypto.randomUUID();
  /** @type {Map<number, {pieces: AsyncGenerator<Bytes, void, void>, stop: AbortController}>} */
  const requests = new Map();
  const ready = new Promise((resolve) => {
    port.onmessage = ({ data }) => {
      if (data.kind === "ready") resolve(undefined);
      else if (data.kind === "open") {
        const stop = new AbortController();
        requests.set(data.request, { pieces: offered.source(data.start, data.end, stop.signal), stop });
      } else if (data.kind === "pull") void answer(data.request);
      else if (data.kind === "cancel") {
        requests.get(data.request)?.stop.abort();
        requests.delete(data.request);
        offered.onCancel?.();
      }
    };
  });

  /** @param {number} request */
  async function answer(request) {
    const asked = requests.get(request);
    if (!asked) return;
    try {
      const { done, value } = await asked.pieces.next();
      if (!done) {
        const data = value.byteLength === value.buffer.byteLength ? value : value.slice();
        port.postMessage({ kind: "data", request, data }, [data.buffer]);
        return;
      }
      port.postMessage({ kind: "end", request });
      requests.delete(request);
      offered.onEnd?.();
    } catch (error) {
      port.postMessage({ kind: "error", request });
      requests.delete(request);
      if (!asked.stop.signal.aborted) offered.onError?.(error);
    }
  }

  const { name, size, type, save } = offered;
  worker.postMessage({ kind: "offer", id, name, size, type, save }, [port2]);
  await Promise.race([ready, new Promise((_, reject) => setTimeout(reject, PATIENCE))]);
  // A service worker that hears nothing is ended after half a minute, and a download with it.
  const ping = setInterval(() => worker.postMessage({ kind: "ping" }), PING);
  return {
    url: `stream/${id}/${encodeURIComponent(name)}`,
    withdraw() {
      clearInterval(ping);
      worker.postMessage({ kind: "withdraw", id });
      for (const { stop } of requests.values()) stop.abort();
      port.close();
    },
  };
}
