// What the npm package must do on a `GPUDevice` of the caller's, with the caller's `GPUBuffer`s.

import { Engine, sizes } from './engine.mjs';
import { attention, near, numbers, options, same, throws } from './package.mjs';

/** WebGPU of this host. */
async function webgpu() {
  if (globalThis.navigator?.gpu) return globalThis.navigator.gpu;
  const { create, globals } = await import('webgpu');
  Object.assign(globalThis, globals);
  return create(globalThis.process.env.WGKV_DAWN?.split(',') ?? []);
}

/** Counts calls of a device's methods, and reading back, until `end`. */
function counted(device) {
  const counts = { mapAsync: 0, createBuffer: 0, createBindGroup: 0 };
  const plain = Object.entries({ mapAsync: GPUBuffer.prototype, createBuffer: Object.getPrototypeOf(device), createBindGroup: Object.getPrototypeOf(device) })
    .map(([name, prototype]) => {
      const method = prototype[name];
      prototype[name] = function (...given) {
        counts[name]++;
        return method.apply(this, given);
      };
      return () => { prototype[name] = method; };
    });
  return { counts, end: () => plain.forEach((put) => put()) };
}

/** A number as the bits of a half; small whole multiples of 1/256 are exact. */
function half(x) {
  if (x === 0) return 0;
  const exponent = Math.floor(Math.log2(Math.abs(x)));
  return (x < 0 ? 0x8000 : 0) | ((exponent + 15) << 10) | Math.round((Math.abs(x) / 2 ** exponent - 1) * 1024);
}

/** A half's bits as a number. */
function whole(bits) {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** Bits of numbers, to compare exactly. */
const bits = (array) => new Uint32Array(array.buffer, array.byteOffset, array.length).join();

/** Runs everything; answers what was thrown, and what a step makes at two lengths. */
export async function checkDevice({ Cache, Calibration }) {
  const gpu = await webgpu();
  const adapter = await gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const uncaptured = [];
  device.addEventListener?.('uncapturederror', ({ error }) => uncaptured.push(error.message));
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const make = (size, of = device) => of.createBuffer({ size, usage });
  const put = (array, at = 0) => {
    const buffer = make(at + Math.ceil(array.byteLength / 4) * 4);
    device.queue.writeBuffer(buffer, at, array);
    return buffer;
  };
  /** The test's own reading back. */
  const read = async (buffer, at, bytes, Kind = Float32Array) => {
    const staging = device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, at, staging, 0, bytes);
    device.queue.submit([encoder.finish()]);
    await staging.mapAsync(GPUMapMode.READ);
    return new Kind(staging.getMappedRange().slice(0));
  };
  const texts = [];
  const refused = async (action, ...words) => texts.push(await throws(action, ...words));

  // An engine of plain WebGPU decodes; nothing is read back on the way.
  const [prompt, steps, seed] = [40, 12, { value: 1 }];
  const engine = new Engine(device, { most: prompt, steps, random: (count) => numbers(count, seed.value++) });
  const { hidden, vocabulary, ...shape } = sizes;
  const model = await Cache.open({ device, ...shape, keyBits: 8, valueBits: 8, window: 0, tokens: 256 });
  const first = Array.from(numbers(prompt, 99), (x) => Math.floor((x + 1) / 2 * vocabulary));
  device.queue.writeBuffer(engine.ids, 0, new Uint32Array(first));
  const made = [];
  const count = counted(device);
  for (let at = 0; at < steps; at++) {
    const { createBuffer, createBindGroup } = count.counts;
    same('answer of a step', engine.step(model, at ? 1 : prompt, at), undefined);
    made.push([count.counts.createBuffer - createBuffer, count.counts.createBindGroup - createBindGroup]);
  }
  count.end();
  same('mapAsync', count.counts.mapAsync, 0);
  same('buffers and bind groups of every later step', new Set(made.slice(2).map(String)).size, 1);
  const chosen = Array.from(await read(engine.ids, 4 * prompt, 4 * steps, Uint32Array));
  const logits = await read(engine.kept, 0, 4 * steps * vocabulary);
  near(logits, engine.twin([...first, ...chosen.slice(0, -1)], steps));
  same('tokens', model.tokens, prompt + steps - 1);
  if (new Set(chosen).size < 2) throw new Error(`the engine only says ${chosen}`);
  model.free();

  // Buffers and arrays are the same numbers, at offsets, in f32 and f16.
  const [tokens, width, queries] = [70, 128, 256];
  const exact = (length, seed) => Float32Array.from(numbers(length, seed), (x) => Math.round(x * 256) / 256);
  const [keys, values, query] = [exact(tokens * width, 21), exact(tokens * width, 22), exact(tokens * queries, 23)];
  const cache = await Cache.open({ device, ...options, sequences: 4 });
  const arrays = cache.sequence;
  for (const layer of [0, 1]) cache.append(layer, keys, values);
  const want = await cache.attend(1, query);
  near(want.slice(-queries), attention(keys, values, query.slice(-queries), tokens));
  const halves = (array) => Uint16Array.from(array, half);
  for (const element of ['f32', 'f16']) {
    const [kind, size] = element === 'f16' ? [halves, 2] : [(array) => array, 4];
    const [k, v, q] = [keys, values, query].map((array, n) => put(kind(array), 256 * n));
    const output = make(1024 + size * query.length);
    const other = cache.begin();
    const rows = (buffer, offset) => ({ buffer, offset, element });
    cache.step([{ sequence: other, tokens }]);
    for (const layer of [0, 1]) cache.append(layer, element === 'f16' ? rows(k, 0) : k, rows(v, 256));
    same('answer of attend', cache.attend(1, rows(q, 512), rows(output, 1024)), undefined);
    const got = await read(output, 1024, size * query.length, size === 2 ? Uint16Array : Float32Array);
    if (element === 'f32') same('bits of the output', bits(got), bits(want));
    else near(Float32Array.from(got, whole), want);
    other.end();
  }
  same('tokens of the first', arrays.tokens, tokens);

  // Wrong buffers and devices; each is refused before anything changes.
  const one = (count, seed = 5) => put(numbers(count, seed));
  const [k, v, q, o] = [one(width), one(width), one(queries), make(4 * queries)];
  const second = await (await gpu.requestAdapter()).requestDevice();
  const destroyed = one(width);
  destroyed.destroy();
  const mapped = device.createBuffer({ size: 4 * width, usage, mappedAtCreation: true });
  await refused(() => cache.append(0, k, v), 'step(tokens)');
  cache.step(1);
  await refused(() => cache.append(0, device.createBuffer({ size: 4 * width, usage: GPUBufferUsage.COPY_DST }), v), 'keys', 'STORAGE');
  await refused(() => cache.append(0, k, make(4 * width - 4)), 'values', '512', '508');
  await refused(() => cache.append(0, { buffer: one(2 * width), offset: 4 }, v), 'keys', 'multiple of 256', '4');
  await refused(() => cache.append(0, { buffer: k, offset: 256 }, v), 'keys', '512', '256');
  await refused(() => cache.append(0, { buffer: k, offset: -1 }, v), 'keys', 'offset', '-1');
  await refused(() => cache.append(0, { buffer: k, element: 'bf16' }, v), 'keys', 'f16', 'bf16');
  await refused(() => cache.append(0, { buffer: k, stride: 4 }, v), 'keys', 'stride');
  await refused(() => cache.append(0, { buffer: k, element: 'f16' }, v), 'f32', 'f16');
  await refused(() => cache.append(0, make(4 * width, second), v), 'keys', 'another GPUDevice');
  await refused(() => cache.append(0, destroyed, v), 'keys', 'destroyed');
  await refused(() => cache.append(0, mapped, v), 'keys', 'mapped');
  await refused(() => cache.append(0, { buffer: new ArrayBuffer(8) }, v), 'keys', 'GPUBuffer');
  await refused(() => cache.append(0, k, v, second.createCommandEncoder()), 'encoder', 'another GPUDevice');
  await refused(() => cache.append(0, k, v, {}), 'encoder', 'Object');
  const finished = device.createCommandEncoder();
  finished.finish();
  await refused(() => cache.append(0, k, v, finished), 'encoder', 'finished');
  await refused(() => cache.append(0, numbers(width, 5), v, device.createCommandEncoder()), 'keys', 'GPUBuffer', 'encoder');
  same('tokens after refusals', cache.tokens, tokens + 1);
  cache.abandon();
  same('tokens after abandon', cache.tokens, tokens);
  await refused(() => cache.abandon(), 'step');
  // A step that the end of another sequence ended: its rows must not begin one of the first.
  const passing = cache.begin();
  cache.step(1);
  passing.end();
  await refused(() => cache.append(0, numbers(width, 5), numbers(width, 5)), 'begin it again');
  same('tokens after a step that was ended', cache.tokens, tokens);
  await refused(() => cache.append(0, numbers(width, 5), destroyed), 'values', 'destroyed');
  same('tokens after a refusal that began no step', cache.tokens, tokens);
  cache.step(1);
  for (const layer of [0, 1]) cache.append(layer, k, v);
  await refused(() => cache.attend(0, q, make(4)), 'output', '1024', '4');
  await refused(() => cache.attend(0, q, device.createBuffer({ size: 4 * queries, usage: GPUBufferUsage.COPY_SRC })), 'output', 'STORAGE');
  await refused(() => cache.attend(0, q, new Float32Array(queries)), 'output', 'GPUBuffer');
  await refused(() => cache.attend(0, q, make(4 * queries, second)), 'output', 'another GPUDevice');
  await refused(() => cache.attend(0, q, { buffer: o, element: 'f16' }), 'f16', 'f32');
  await refused(() => cache.attend(0, { buffer: q, element: 'f16' }), 'f16', 'GPUBuffer');
  await refused(() => cache.attend(0, q, undefined, device.createCommandEncoder()), 'encoder', 'output');
  await refused(() => cache.step([{ sequence: {}, tokens: 1 }]), 'Sequence');
  await refused(() => cache.step(0), 'token');
  await refused(() => cache.step(-1), 'tokens', '-1');
  cache.attend(0, q, o);
  // They are what the processor says, with a token that came in buffers.
  const append = (rows, more) => Float32Array.from([...rows, ...more]);
  near(await read(o, 0, 4 * queries), attention(append(keys, numbers(width, 5)), append(values, numbers(width, 5)), numbers(queries, 5), tokens + 1));

  // An encoder that is dropped.
  cache.step(2);
  const [k2, v2] = [one(2 * width, 6), one(2 * width, 7)];
  cache.append(0, k2, v2, device.createCommandEncoder());
  await refused(() => cache.abandon(), 'layer 0');
  cache.abandon({ dropped: true });
  same('tokens after an encoder that was dropped', cache.tokens, tokens + 1);

  // A browser without memory to map.
  const plain = device.createBuffer;
  device.createBuffer = function (descriptor) {
    if (descriptor.mappedAtCreation) throw new RangeError('nothing left to map');
    return plain.call(this, descriptor);
  };
  await refused(() => cache.step(1), 'no memory', 'nothing left to map');
  await refused(() => cache.append(0, new Float32Array(2 ** 19), new Float32Array(2 ** 19)), 'keys', 'no memory', '2097152');
  delete device.createBuffer;
  same('tokens without memory', cache.tokens, tokens + 1);

  // Sequences: a draft on a fork, cut back; and what is saved of it.
  const draft = cache.sequence.fork();
  cache.step([{ sequence: draft, tokens: 2 }, { sequence: cache.sequence, tokens: 1 }]);
  for (const layer of [0, 1]) cache.append(layer, one(3 * width, 8), one(3 * width, 9));
  same('tokens of a draft', draft.tokens, tokens + 3);
  draft.truncate(tokens);
  same('tokens of both', [draft.tokens, cache.tokens].join(), [tokens, tokens + 2].join());
  const saved = await draft.save(64);
  const loaded = cache.load(saved);
  same('tokens that were saved', loaded.tokens, 64);
  draft.end();
  await refused(() => draft.tokens, 'ended');
  await refused(() => draft.end(), 'ended');
  const foreign = await Cache.open({ device, ...options, layers: 1 });
  await refused(() => cache.step([{ sequence: foreign.sequence, tokens: 1 }]), 'another cache');
  foreign.free();
  const [fourth, fifth] = [cache.begin(), cache.begin()];
  await refused(() => cache.begin(), 'sequences');
  for (const sequence of [fourth, fifth, loaded]) sequence.end();

  // Prefixes.
  const text = Array.from({ length: 130 }, (_, n) => n);
  const begun = cache.beginText(text);
  same('tokens found of a new text', begun.tokens, 0);
  cache.step([{ sequence: begun.sequence, tokens: 130 }]);
  for (const layer of [0, 1]) cache.append(layer, numbers(130 * width, 10), numbers(130 * width, 11));
  same('tokens remembered', begun.sequence.remember(text), 128);
  const again = cache.beginText(text);
  same('tokens found', again.tokens, 128);
  same('room', cache.makeRoom([{ sequence: again.sequence, tokens: 2 }]).fits, true);
  await refused(() => cache.beginText('text'), 'token ids');
  for (const { sequence } of [begun, again]) sequence.end();
  cache.forgetTexts();

  // Rows that are not finite are told of.
  const broken = numbers(width, 12);
  broken[3] = NaN;
  cache.step(1);
  for (const layer of [0, 1]) cache.append(layer, broken, numbers(width, 13));
  const status = await cache.status();
  if (!status.flags.some(({ layer, token, head, key }) => layer === 1 && token === cache.tokens - 1 && head === 0 && key === 'not finite')) throw new Error(JSON.stringify(status));
  same('rows since', (await cache.status()).rows, 0);
  cache.free();

  // What codecs learn.
  const calibration = await Calibration.open({ device, codec: 'centred', queryHeads: 4, kvHeads: 2, headDim: 64, rope: options.rope });
  await refused(() => calibration.add(1, { queries: query, keys, values }, tokens), 'layer', '1');
  await refused(() => calibration.add(0, { queries: query, keys, values: keys.slice(1) }, tokens), 'values');
  await refused(() => calibration.finish(), 'tokens');
  calibration.add(0, { queries: put(query), keys, values: put(values) }, tokens);
  const means = await calibration.finish('test');
  calibration.free();
  const centred = await Cache.open({ device, ...options, layers: 1, codec: 'centred', calibration: means });
  centred.append(0, keys, values);
  near((await centred.attend(0, query)).slice(-queries), attention(keys, values, query.slice(-queries), tokens));
  centred.free();
  await refused(() => Calibration.open({ device, codec: 'rtn', queryHeads: 4, kvHeads: 2, headDim: 64 }), 'codec', 'rtn');

  // Bits by layer and head, frequencies, and sinks that are elected.
  const storage = { codec: 'hadamard', scales: 'f16', clip: null, heads_per_group: null };
  const bitPlan = { format: 'wgkv-allocation', version: 1, model: '', storage, layers: 1, kv_heads: 2, head_dim: 64, precisions: [['8/64', '8/64'], ['4/64', '8/32']], report: null };
  const { keyBits, valueBits, rope, ...rest } = { ...options, layers: 1, device };
  const frequencies = Float64Array.from({ length: 32 }, (_, pair) => rope.theta ** (-pair / 32));
  await refused(() => Cache.open({ ...rest, bitPlan: 'no plan' }), 'bit plan');
  await refused(() => Cache.open({ ...rest, bitPlan, keyBits }), 'keyBits', 'bitPlan');
  await refused(() => Cache.open({ ...rest, rope: { theta: 10000, frequencies } }), 'rope');
  await refused(() => Cache.open({ ...rest, sinks: 'largest' }), 'sinks', 'largest');
  await refused(() => Cache.open({ ...rest, element: 'f64' }), 'element', 'f64');
  await refused(() => Cache.open({ ...rest, slidingWindow: 8, chunkedAttention: 8 }), 'chunkedAttention', 'slidingWindow');
  await refused(() => Cache.open({ ...rest, sinkLogits: [1] }), 'sink', '4', '1');
  await refused(() => Cache.open({ ...rest, softCap: -1 }), 'cap', '-1');
  const mixed = await Cache.open({ ...rest, rope: { frequencies }, bitPlan: JSON.stringify(bitPlan) });
  mixed.append(0, keys, values);
  // Two of its heads, those that share a KV head of 8 bits.
  near((await mixed.attend(0, query)).slice(-queries).slice(0, 128), attention(keys, values, query.slice(-queries), tokens).slice(0, 128));
  mixed.free();
  // Keys and queries that come turned, and a sink without a value that takes half of what a lone token gets.
  const turned = await Cache.open({ ...rest, rope, turnedRows: true, scoreScale: 2 ** -20, sinkLogits: new Float32Array(4) });
  turned.append(0, keys.slice(0, width), values.slice(0, width));
  const lone = values.slice(0, width);
  near(await turned.attend(0, query.slice(0, queries)), [0, 0, 64, 64].flatMap((at) => Array.from(lone.slice(at, at + 64), (x) => x / 2)));
  turned.free();
  const learning = await Calibration.open({ device, codec: 'rotate-kv', queryHeads: 4, kvHeads: 2, headDim: 64, rope });
  learning.add(0, { keys: put(keys) }, tokens, undefined);
  const order = await learning.finish();
  learning.free();
  const rotated = await Cache.open({ ...options, layers: 1, device, codec: 'rotate-kv', calibration: order, sinks: 'massive:2' });
  rotated.step(tokens);
  await refused(() => rotated.append(0, keys, values), 'elect');
  const residual = numbers(tokens * 8, 31);
  residual[8 * 33 + 2] = 50;
  await refused(() => rotated.elect(0, residual, 7), 'residual', '7');
  rotated.elect(0, put(residual), 8);
  rotated.append(0, keys, values);
  near((await rotated.attend(0, query)).slice(-queries), attention(keys, values, query.slice(-queries), tokens));
  rotated.free();

  // What a step makes does not grow with what is held.
  const long = await Cache.open({ device, queryHeads: 1, kvHeads: 1, headDim: 64, tokens: 8320, keyBits: 4, valueBits: 4, rope: options.rope });
  const [many, single, out] = [one(1024 * 64), one(64), make(256)];
  const step = (rows, buffer) => {
    long.step(rows);
    long.append(0, buffer, buffer);
    if (rows === 1) long.attend(0, single, out);
  };
  const flat = [];
  for (const length of [1024, 8192]) {
    while (long.tokens < length) step(1024, many);
    step(1, single);
    const held = counted(device);
    for (let n = 0; n < 4; n++) step(1, single);
    held.end();
    flat.push(held.counts);
  }
  same('what steps make at 8192 tokens, of 1024', JSON.stringify(flat[1]), JSON.stringify(flat[0]));
  same('what steps read back', flat[1].mapAsync, 0);
  long.free();

  // Devices that do not serve, and more memory than there is.
  await refused(() => Cache.open({ ...options, device: adapter }), 'GPUDevice');
  await refused(() => Cache.open({ ...options, device: null }), 'GPUDevice');
  await refused(() => Cache.open({ ...options, device, tokens: 2 ** 25 }), 'max_storage_buffer_binding_size');
  const last = await Cache.open({ ...options, layers: 1, device: second });
  last.append(0, keys, values);
  second.destroy();
  await last.lost;
  await refused(() => last.append(0, keys, values), 'lost');
  await refused(() => last.attend(0, query), 'lost');
  await refused(() => Cache.open({ ...options, device: second }), 'lost');
  last.free();
  await device.queue.onSubmittedWorkDone();
  same('errors of the device', uncaptured.join(), '');
  return { texts, steps: { engine: made.at(-1), long: flat.map(({ createBuffer, createBindGroup }) => [createBuffer / 4, createBindGroup / 4]) } };
}

/** 20 GiB, of which a browser says after a while that it has not so much; the page goes on. */
export async function checkMemory({ Cache }) {
  const adapter = await (await webgpu()).requestAdapter();
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const device = await adapter.requestDevice({ requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } });
  const shape = { device, queryHeads: 8, kvHeads: 8, headDim: 128, codec: 'f16' };
  const text = await throws(() => Cache.open({ ...shape, layers: 20, tokens: 2 ** 18 }), 'no memory', '216');
  const small = await Cache.open({ ...shape, tokens: 512 });
  small.append(0, numbers(1024, 1), numbers(1024, 2));
  near(await small.attend(0, numbers(1024, 3)), numbers(1024, 2));
  small.free();
  return text;
}

/** Buffers that were made before the package was imported, of which only the device knows whose they are. */
export async function checkEarly(load) {
  const gpu = await webgpu();
  const devices = [];
  for (let n = 0; n < 2; n++) devices.push(await (await gpu.requestAdapter()).requestDevice());
  const [device, other] = devices;
  const uncaptured = [];
  device.addEventListener('uncapturederror', ({ error }) => uncaptured.push(error.message));
  const make = (of, count = 128) => of.createBuffer({ size: 4 * count, usage: GPUBufferUsage.STORAGE });
  const [good, destroyed, foreign, queries, output, elsewhere] = [make(device), make(device), make(other), make(device, 256), make(device, 256), make(other, 256)];
  destroyed.destroy();
  const { Cache } = await load();
  const open = async () => {
    const cache = await Cache.open({ ...options, layers: 1, device });
    cache.step(1);
    return cache;
  };
  /** What a later call throws. */
  const later = async (call) => {
    for (let n = 0; n < 200; n++) {
      try {
        call();
      } catch (error) {
        return error.message;
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error('nothing was thrown later');
  };
  const texts = [];
  for (const wrong of [destroyed, foreign]) {
    const cache = await open();
    cache.append(0, wrong, good);
    texts.push(await later(() => cache.slide(1)));
    if (!texts.at(-1).includes('append to layer 0')) throw new Error(texts.at(-1));
    cache.free();
  }
  const cache = await open();
  cache.append(0, good, good);
  cache.attend(0, queries, elsewhere);
  texts.push(await later(() => cache.slide(1)));
  // An output that is not written does the cache no harm.
  same('first token held', cache.slide(1), 0);
  cache.step(1);
  cache.append(0, good, good);
  cache.attend(0, queries, output);
  await device.queue.onSubmittedWorkDone();
  same('tokens', cache.tokens, 2);
  cache.free();
  same('errors of the device', uncaptured.join(), '');
  return texts;
}
