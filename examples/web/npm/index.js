// wgkv for JavaScript: the classes. `wgkv.js` and the WebAssembly module beside it are made by `cargo xtask web`.

import initialize, { Held } from './wgkv.js';

const module = new URL('wgkv_bg.wasm', import.meta.url);
// Node.js fetches no files.
const bytes = globalThis.process?.versions?.node && module.protocol === 'file:' ? (await import('node:fs/promises')).readFile(module) : module;
await initialize({ module_or_path: bytes });

/** One sequence's keys and values, compressed, in a cache of its own. */
export class Cache {
  #held;

  constructor(held) {
    if (!(held instanceof Held)) throw new TypeError('a Cache is made by Cache.open(options)');
    this.#held = held;
  }

  static async open(options) {
    const { calibration, ...rest } = options ?? {};
    if (calibration !== undefined && !(calibration instanceof Uint8Array)) throw new TypeError('calibration must be a Uint8Array');
    return new Cache(await Held.open(JSON.stringify(rest), calibration));
  }

  #alive() {
    if (!this.#held) throw new Error('the cache was freed');
    return this.#held;
  }

  append(layer, keys, values) { this.#alive().append(layer, keys, values); }
  async attend(layer, queries) { return this.#alive().attend(layer, queries); }

  truncate(tokens) { this.#alive().truncate(tokens); }
  slide(keep) { return this.#alive().slide(keep); }

  async saveTo() { return this.#alive().save(); }
  loadFrom(bytes) { this.#alive().load(bytes); }

  get tokens() { return this.#alive().tokens(); }
  get bytes() { return this.#alive().bytes(); }
  get bytesAllocated() { return this.#alive().allocated(); }
  get bitsPerElement() { return this.#alive().bits(); }
  get lost() { return this.#alive().loss(); }
  toString() { return this.#alive().plan(); }

  free() {
    this.#held?.destroy();
    this.#held = undefined;
  }
  [Symbol.dispose ?? Symbol('dispose')]() { this.free(); }
}
