// node megajs.mjs COMMAND URL ...: one thing done with megajs; prints JSON.
import { readFileSync, writeFileSync } from "node:fs";
import { API, File, Storage } from "megajs";

const [command, gateway, ...args] = process.argv.slice(2);

async function login(email, password, secondFactorCode) {
  const options = { email, password, gateway: `${gateway}/`, keepalive: false };
  if (secondFactorCode) options.secondFactorCode = secondFactorCode;
  return new Storage(options).ready;
}

function tree(node) {
  const children = (node.children ?? []).map(tree);
  return { name: node.name, size: node.size, directory: node.directory, children };
}

// file.download() of a link has no option for the gateway.
function fromLink(url) {
  const file = File.fromURL(url);
  file.api = new API(false, { gateway: `${gateway}/` });
  return file;
}

const commands = {
  async list(email, password, code) {
    return tree((await login(email, password, code)).root);
  },
  async upload(email, password, path, name) {
    const storage = await login(email, password);
    const folder = await storage.mkdir("from megajs");
    const file = await folder.upload({ name }, readFileSync(path)).complete;
    return { file: await file.link(), folder: await folder.link() };
  },
  async download(email, password, name, path) {
    const storage = await login(email, password);
    const file = Object.values(storage.files).find((each) => each.name === name);
    writeFileSync(path, await file.downloadBuffer());
    return file.size;
  },
  async link(url, path) {
    const file = await fromLink(url).loadAttributes();
    if (path) writeFileSync(path, await file.downloadBuffer());
    return tree(file);
  },
};

try {
  console.log(JSON.stringify(await commands[command](...args)));
  process.exit(0);
} catch (error) {
  console.error(String(error));
  process.exit(1);
}
