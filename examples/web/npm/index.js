// wgkv for JavaScript: the classes. `wgkv.js` and the WebAssembly module beside it are made by `cargo xtask web`.

import initialize, { Collecting, Held } from './wgkv.js';

const module = new URL('wgkv_bg.wasm', import.meta.url);
// Node.js fetches no files.
const bytes = globalThis.process?.versions?.node && module.protocol === 'file:' ? (await import('node:fs/promises')).readFile(module) : module;
await initialize({ module_or_path: bytes });

/** Passed by this module alone to what a caller does not construct. */
const INNER = Symbol('wgkv');

/** The module's object of a cache, or a calibration. */
const inner = Symbol('inner');

function text(options) {
  const { device, calibration, ...rest } = options ?? {};
  if (calibration !== undefined && !(calibration instanceof Uint8Array)) throw new TypeError('calibration must be a Uint8Array');
  if (typeof rest.sinks === 'number') rest.sinks = rest.sinks === 0 ? 'none' : `first:${rest.sinks}`;
  if (Object(rest.bitPlan) === rest.bitPlan) rest.bitPlan = JSON.stringify(rest.bitPlan);
  return [device, calibration, JSON.stringify(rest, (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value))];
}

function whole(name, value) {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) {
    throw new Error(`${name} must be a whole number below ${2 ** 32}, but is ${typeof value === 'number' ? value : typeof value}`);
  }
  return value;
}

/** Ids of a text's tokens. */
function ids(tokens) {
  if (!Array.isArray(tokens) && !ArrayBuffer.isView(tokens)) throw new TypeError('text must be an array of token ids');
  return Uint32Array.from(tokens, (id) => whole('a token id', id));
}

/** A sequence's number, for its cache alone. */
let numberOf;

/** One text's tokens in a cache. */
export class Sequence {
  #cache;
  #id;

  static {
    numberOf = (sequence, cache) => {
      if (!(sequence instanceof Sequence)) throw new TypeError('sequence must be a Sequence, of this cache');
      if (sequence.#cache !== cache) throw new Error('the sequence is of another cache');
      return sequence.#id;
    };
  }

  constructor(key, cache, id) {
    if (key !== INNER) throw new TypeError('a Sequence is begun by a Cache');
    this.#cache = cache;
    this.#id = id;
  }

  get cache() { return this.#cache; }
  get tokens() { return this.#cache[inner].tokens(this.#id); }
  get slot() { return this.#cache[inner].slot(this.#id); }

  fork(tokens) { return new Sequence(INNER, this.#cache, this.#cache[inner].fork(this.#id, tokens)); }
  truncate(tokens) { this.#cache[inner].truncate(this.#id, tokens); }
  slide(keep) { return this.#cache[inner].slide(this.#id, keep); }
  async save(tokens) { return this.#cache[inner].save(this.#id, tokens); }
  remember(tokens) { return this.#cache[inner].remember(this.#id, ids(tokens)); }
  end() { this.#cache[inner].end(this.#id); }
}

/** Sequences and their new tokens as numbers, two each. */
function pairs(cache, chunks) {
  if (!Array.isArray(chunks)) return [numberOf(cache.sequence, cache), whole('tokens', chunks)];
  return chunks.flatMap(({ sequence, tokens }) => [numberOf(sequence, cache), whole('tokens', tokens)]);
}

/** What a row was not, by the module's numbers. */
const DEFECTS = [null, 'not finite', 'saturated'];

const admission = ([pagesNeeded, pagesFree]) => ({ pagesNeeded, pagesFree, fits: pagesNeeded <= pagesFree });

/** Keys and values of one sequence or many, compressed on a device. */
export class Cache {
  #held;
  /** The sequence to which what names none refers, once it is wanted. */
  #sequence;

  constructor(held) {
    if (!(held instanceof Held)) throw new TypeError('a Cache is made by Cache.open(options)');
    this.#held = held;
  }

  static async open(options) {
    const [device, calibration, rest] = text(options);
    return new Cache(await Held.open(rest, calibration, device));
  }

  get [inner]() {
    if (!this.#held) throw new Error('the cache was freed');
    return this.#held;
  }

  get sequence() { return (this.#sequence ??= this.begin()); }
  get #first() { return numberOf(this.sequence, this); }

  begin() { return new Sequence(INNER, this, this[inner].begin()); }
  load(bytes) { return new Sequence(INNER, this, this[inner].load(bytes)); }

  step(chunks) { this[inner].step(pairs(this, chunks)); }
  abandon({ dropped = false } = {}) { this[inner].abandon(dropped); }
  canAppend(chunks) { return admission(this[inner].canAppend(pairs(this, chunks))); }

  elect(layer, residual, width, encoder) { this[inner].elect(layer, residual, width, encoder); }
  append(layer, keys, values, encoder) {
    const held = this[inner];
    // A step that is begun knows its sequences.
    held.append(held.isGrowing() ? undefined : this.#first, layer, keys, values, encoder);
  }
  attend(layer, queries, output, encoder) {
    if (output !== undefined) return this[inner].attendTo(layer, queries, output, encoder);
    return this.#read(layer, queries, encoder);
  }

  async #read(layer, queries, encoder) {
    if (encoder !== undefined) throw new Error('with an encoder of your own, output must be a GPUBuffer: nothing can be read before you submit');
    return this[inner].attend(layer, queries);
  }

  beginText(tokens) {
    const [id, held] = this[inner].beginText(ids(tokens));
    return { sequence: new Sequence(INNER, this, id), tokens: held };
  }
  makeRoom(chunks) { return admission(this[inner].makeRoom(pairs(this, chunks))); }
  forgetTexts() { this[inner].forget(); }

  truncate(tokens) { this[inner].truncate(this.#first, tokens); }
  slide(keep) { return this[inner].slide(this.#first, keep); }
  async saveTo() { return this[inner].save(this.#first); }
  loadFrom(bytes) { this[inner].fill(this.#first, bytes); }

  async status() {
    const [rows, ...numbers] = await this[inner].status();
    const flags = Array.from({ length: numbers.length / 6 }, (_, n) => {
      const [layer, slot, token, head, key, value] = numbers.slice(6 * n, 6 * n + 6);
      return { layer, slot, token, head, key: DEFECTS[key], value: DEFECTS[value] };
    });
    return { rows, flags };
  }

  get tokens() { return this.#sequence ? this.#sequence.tokens : 0; }
  get bytes() { return this[inner].bytes(); }
  get bytesAllocated() { return this[inner].allocated(); }
  get pagesFree() { return this[inner].freePages(); }
  get bitsPerElement() { return this[inner].bits(this.tokens); }
  get lost() { return this[inner].loss(); }
  toString() { return this[inner].plan(); }

  free() {
    this.#held?.destroy();
    this.#held = undefined;
  }
  [Symbol.dispose ?? Symbol('dispose')]() { this.free(); }
}

/** What 'centred' and 'rotate-kv' learn from a model's sample text. */
export class Calibration {
  #collecting;

  constructor(collecting) {
    if (!(collecting instanceof Collecting)) throw new TypeError('a Calibration is made by Calibration.open(options)');
    this.#collecting = collecting;
  }

  static async open(options) {
    const [device, calibration, rest] = text(options);
    if (calibration !== undefined) throw new TypeError('a Calibration takes none');
    return new Calibration(await Collecting.open(rest, device));
  }

  get #alive() {
    if (!this.#collecting) throw new Error('the calibration was freed');
    return this.#collecting;
  }

  add(layer, { queries, keys, values }, tokens, encoder) { this.#alive.add(layer, [queries, keys, values], tokens, encoder); }
  async finish(model = '') { return this.#alive.finish(`${model}`); }

  free() {
    this.#collecting?.destroy();
    this.#collecting = undefined;
  }
  [Symbol.dispose ?? Symbol('dispose')]() { this.free(); }
}
