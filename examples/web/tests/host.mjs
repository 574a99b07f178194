// Runs the package's tests in Node.js or Deno.

import { readFile, writeFile } from 'node:fs/promises';
import * as wgkv from 'wgkv';
import { checkDevice } from './device.mjs';
import { check } from './package.mjs';
import { recipes } from './recipes.mjs';

const name = globalThis.Deno ? `Deno ${Deno.version.deno}` : `Node.js ${process.version}`;
const texts = await check(wgkv);
console.log(`${name}: attention agrees, ${texts.length} wrong inputs are refused`);
const own = await checkDevice(wgkv);
console.log(`${name}: on a device of its own an engine decodes, ${own.texts.length} wrong buffers and devices are refused`);
let number = 0;
const run = async (code) => {
  const file = new URL(`recipe-${number++}.mjs`, import.meta.url);
  await writeFile(file, code);
  await import(file);
};
const readme = await readFile(new URL('node_modules/wgkv/README.md', import.meta.url), 'utf8');
console.log(`${name}: ${await recipes(readme, globalThis.Deno ? { page: run } : { node: run })} recipes run`);
// A software adapter may crash where the process ends amid its work, which nothing above waits for.
await new Promise((resolve) => setTimeout(resolve, 2000));
process.exit(0);
