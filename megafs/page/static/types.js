// Which files can be looked at in the page, by the end of their names.

/** @typedef {"image" | "text" | "pdf" | "audio" | "video"} Kind */

/** @type {Record<string, [Kind, string]>} */
const KINDS = {
  avif: ["image", "image/avif"],
  bmp: ["image", "image/bmp"],
  gif: ["image", "image/gif"],
  ico: ["image", "image/x-icon"],
  jpeg: ["image", "image/jpeg"],
  jpg: ["image", "image/jpeg"],
  png: ["image", "image/png"],
  svg: ["image", "image/svg+xml"],
  webp: ["image", "image/webp"],
  c: ["text", "text/plain"],
  conf: ["text", "text/plain"],
  css: ["text", "text/plain"],
  csv: ["text", "text/plain"],
  go: ["text", "text/plain"],
  h: ["text", "text/plain"],
  html: ["text", "text/plain"],
  ini: ["text", "text/plain"],
  js: ["text", "text/plain"],
  json: ["text", "text/plain"],
  log: ["text", "text/plain"],
  md: ["text", "text/plain"],
  py: ["text", "text/plain"],
  rs: ["text", "text/plain"],
  sh: ["text", "text/plain"],
  toml: ["text", "text/plain"],
  ts: ["text", "text/plain"],
  txt: ["text", "text/plain"],
  xml: ["text", "text/plain"],
  yaml: ["text", "text/plain"],
  yml: ["text", "text/plain"],
  pdf: ["pdf", "application/pdf"],
  aac: ["audio", "audio/aac"],
  flac: ["audio", "audio/flac"],
  m4a: ["audio", "audio/mp4"],
  mp3: ["audio", "audio/mpeg"],
  oga: ["audio", "audio/ogg"],
  ogg: ["audio", "audio/ogg"],
  opus: ["audio", "audio/ogg"],
  wav: ["audio", "audio/wav"],
  m4v: ["video", "video/mp4"],
  mkv: ["video", "video/x-matroska"],
  mov: ["video", "video/quicktime"],
  mp4: ["video", "video/mp4"],
  ogv: ["video", "video/ogg"],
  webm: ["video", "video/webm"],
};

/**
 * @param {string} name
 * @returns {{kind: Kind, type: string} | null} null if it can only be saved
 */
export function kindOf(name) {
  const end = /\.([a-z0-9]+)$/i.exec(name)?.[1].toLowerCase();
  const found = end ? KINDS[end] : undefined;
  return found ? { kind: found[0], type: found[1] } : null;
}
