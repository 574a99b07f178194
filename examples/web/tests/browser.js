// What `cargo xtask web --test` asks of a browser, one function after another.

import { Engine } from '../page/engine.js';
import { checkDevice, checkEarly, checkMemory } from './device.mjs';
import { check } from './package.mjs';
import { inBrowser, recipes } from './recipes.mjs';

/** The npm package. */
const wgkv = () => import('../package/index.js');

const engine = new Engine('../page/');
const [continuations, tiny] = await Promise.all(['continuations.json', 'tiny.json'].map(async (name) => (await fetch(name)).json()));
const choices = JSON.parse(await engine.call('codecs'));

/** Goes on with a prompt to the end; answers the tokens and the last report. */
async function write(settings, prompt, begun = () => {}) {
  await engine.call('begin', JSON.stringify(settings), prompt);
  await begun();
  const tokens = [];
  for (;;) {
    const progress = JSON.parse(await engine.call('advance'));
    if (progress.token !== null) tokens.push(progress.token);
    if (progress.ended) return { tokens, progress };
  }
}

/** Goes on with texts; answers those that go on otherwise than natively. */
async function compare(texts) {
  const wrong = [];
  for (const { prompt, settings, tokens } of texts) {
    const got = (await write(settings, prompt)).tokens;
    if (JSON.stringify(got) !== JSON.stringify(tokens)) wrong.push({ settings, got, tokens });
  }
  return wrong;
}

/** Bytes of scripts, workers and WebAssembly, where the browser tells; and of the worker's WebAssembly alone. */
async function memory() {
  const measured = await performance.measureUserAgentSpecificMemory?.();
  return { all: measured?.bytes ?? null, wasm: await engine.call('memory') };
}

/** A text of about `tokens` tokens. */
function long(tokens) {
  const sentence = continuations[0].prompt + ' used to carry coal to the harbour. ';
  return sentence.repeat(Math.floor(tokens / 39));
}

globalThis.tests = {
  open: () => engine.call('open'),
  load: () => engine.load(() => {}),
  device: () => engine.call('device'),
  formats: () => choices.flatMap(({ codec, bits }) => bits.map((bits) => [codec, bits])),
  twin: async (codec, bits) => JSON.parse(await engine.call('check', codec, bits)),
  /** Loads a snapshot that a native build saved on another device. */
  async exchange(codec, bits) {
    const response = await fetch(`${codec}-${bits}.safetensors`);
    return JSON.parse(await engine.call('exchange', codec, bits, new Uint8Array(await response.arrayBuffer())));
  },
  subgroups: () => engine.call('compile_subgroups'),
  continuations: () => compare(continuations),
  /** Opens a GGUF file and files that are none; answers the model, what went wrong, and what refused them. */
  async file() {
    const file = new File([await (await fetch('tiny.gguf')).arrayBuffer()], 'tiny.gguf');
    const seen = [];
    const about = await engine.open(file, (loaded, all) => seen.push([loaded, all]));
    const wrong = await compare(tiny);
    if (seen.at(-1)?.[0] !== file.size || seen.at(-1)?.[1] !== file.size) wrong.push({ seen });
    const refusals = [];
    for (const part of [file.slice(0, file.size - 100), new Blob(['PK, not a model']), new Blob([])]) {
      await engine.open(new File([part], 'wrong.gguf'), () => {}).then(() => wrong.push('a wrong file was taken'), (error) => refusals.push(error.message));
    }
    // The model before stays.
    wrong.push(...await compare(tiny.slice(0, 1)));
    await engine.call('take_own');
    return { about, wrong, refusals };
  },
  /** First: its buffers must be made before the package is imported. */
  early: () => checkEarly(wgkv),
  package: async () => check(await wgkv()),
  ownDevice: async () => checkDevice(await wgkv()),
  tooMuch: async () => checkMemory(await wgkv()),
  async recipes() {
    const text = await (await fetch('../package/README.md')).text();
    return recipes(text, inBrowser(new URL('../package/index.js', location)));
  },
  // Two parts, between which the driver may count what it alone can.
  /** Begins a text of `tokens` tokens or a few more, most of them the prompt's. */
  async beginLong(tokens) {
    const more = Math.floor(tokens / 8) + 44;
    const settings = { codec: 'hadamard', bits: 4, temperature: 1, seed: 3, tokens: more };
    await engine.call('begin', JSON.stringify(settings), long(tokens - more + 52));
    const first = JSON.parse(await engine.call('advance'));
    return { first, memory: await memory() };
  },
  async endLong() {
    let progress;
    do progress = JSON.parse(await engine.call('advance')); while (!progress.ended);
    return { progress, memory: await memory() };
  },
};
document.body.dataset.state = 'ready';
