// Runs the package's test in Node.js or Deno.

import { Cache } from 'wgkv';
import { check } from './package.mjs';

const texts = await check({ Cache });
const name = globalThis.Deno ? `Deno ${Deno.version.deno}` : `Node.js ${process.version}`;
console.log(`${name}: attention agrees, ${texts.length} wrong inputs are refused`);
process.exit(0);
