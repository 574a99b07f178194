// What the npm package must do in every host: right answers, and clear errors that break nothing.

export const options = { queryHeads: 4, kvHeads: 2, headDim: 64, layers: 2, tokens: 160, rope: { theta: 10000 }, window: 0, keyBits: 8, valueBits: 8 };

/** Numbers between -1 and 1, the same everywhere. */
export function numbers(count, seed) {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Attention of the last token from token `first` on, in plain JavaScript, after the same RoPE. */
export function attention(keys, values, query, tokens, first = 0) {
  const { queryHeads, kvHeads, headDim } = options;
  const turn = (row, position) => Array.from(row, (x, i) => {
    const pair = i % (headDim / 2);
    const angle = position * options.rope.theta ** (-2 * pair / headDim);
    const other = row[i < headDim / 2 ? i + headDim / 2 : i - headDim / 2];
    return x * Math.cos(angle) + (i < headDim / 2 ? -other : other) * Math.sin(angle);
  });
  const output = [];
  for (let head = 0; head < queryHeads; head++) {
    const kv = Math.floor(head / (queryHeads / kvHeads));
    const row = (rows, token) => rows.subarray((token * kvHeads + kv) * headDim, (token * kvHeads + kv + 1) * headDim);
    const q = turn(query.subarray(head * headDim, (head + 1) * headDim), tokens - 1);
    const score = (t) => turn(row(keys, t), t).reduce((sum, k, i) => sum + k * q[i], 0) / Math.sqrt(headDim);
    const scores = Array.from({ length: tokens - first }, (_, n) => score(first + n));
    const most = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - most));
    const total = weights.reduce((a, b) => a + b);
    for (let i = 0; i < headDim; i++) output.push(weights.reduce((sum, weight, n) => sum + weight * row(values, first + n)[i], 0) / total);
  }
  return output;
}

export function same(what, got, want) {
  if (got !== want) throw new Error(`${what} is ${got}, wanted ${want}`);
}

/** Up to the codes of 8 bits, those of the query, and the weights of 8 bits. */
export function near(got, want) {
  const [error, length] = want.reduce(([error, length], x, i) => [error + (got[i] - x) ** 2, length + x * x], [0, 0]);
  if (!(Math.sqrt(error / length) < 0.02)) throw new Error(`attention is off by ${Math.sqrt(error / length)}`);
}

/** Must throw an error whose text holds these words. */
export async function throws(action, ...words) {
  let text;
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Error)) throw new Error(`${error} was thrown, which is no Error`);
    text = error.message;
  }
  if (text === undefined) throw new Error(`nothing was thrown, wanted ${words}`);
  const missing = words.find((word) => !text.includes(word));
  if (missing) throw new Error(`${JSON.stringify(text)} does not say ${JSON.stringify(missing)}`);
  return text;
}

/** Runs everything; answers what was thrown on the way. */
export async function check({ Cache }) {
  const cache = await Cache.open(options);
  const [prompt, width, queries] = [130, 128, 256];
  const keys = numbers((prompt + 1) * width, 1);
  const values = numbers((prompt + 1) * width, 2);
  const query = numbers((prompt + 1) * queries, 3);
  for (const layer of [1, 0]) cache.append(layer, keys.slice(0, prompt * width), values.slice(0, prompt * width));
  same('tokens', cache.tokens, prompt);
  const first = await cache.attend(0, query.slice(0, prompt * queries));
  same('numbers of the output', first.length, prompt * queries);

  const texts = [];
  const last = (rows, row) => rows.slice(prompt * row);
  const refused = async (action, ...words) => texts.push(await throws(action, ...words));
  await refused(() => cache.append(0, new Float64Array(width), values), 'keys', 'Float32Array', 'Float64Array');
  await refused(() => cache.append(0, [1, 2, 3], values), 'keys', 'Float32Array', 'Array');
  await refused(() => cache.append(0, last(keys, width)), 'values', 'Float32Array', 'undefined');
  await refused(() => cache.append(0, keys.slice(0, 100), values), 'keys', '128', '100');
  await refused(() => cache.append(0, new Float32Array(0), new Float32Array(0)), 'keys', '0');
  await refused(() => cache.append(0, keys.slice(0, width), values.slice(0, 2 * width)), 'values', '1', '2');
  await refused(() => cache.append(2, last(keys, width), last(values, width)), 'layer', '2');
  await refused(() => cache.append(0.5, last(keys, width), last(values, width)), 'layer', '0.5');
  await refused(() => cache.append('0', last(keys, width), last(values, width)), 'layer', 'string');
  await refused(() => cache.append(0, numbers(129 * width, 4), numbers(129 * width, 5)), '259', '256');
  await refused(() => cache.attend(0, query.slice(0, queries)), 'queries', '130', '1');
  same('tokens after refusals', cache.tokens, prompt);

  cache.append(0, last(keys, width), last(values, width));
  await refused(() => cache.attend(1, last(query, queries)), 'layer 1', 'append');
  await refused(() => cache.append(0, last(keys, width), last(values, width)), 'layer 0', 'layer 1');
  await refused(() => cache.append(1, keys.slice(0, 2 * width), values.slice(0, 2 * width)), 'keys', '1', '2');
  await refused(() => cache.saveTo(), 'layer 1');
  const got = await cache.attend(0, last(query, queries));
  cache.append(1, last(keys, width), last(values, width));
  const want = attention(keys, values, last(query, queries), prompt + 1);
  near(got, want);

  const { bytes, bytesAllocated, bitsPerElement } = cache;
  if (!(bytes > 0 && bytes <= bytesAllocated && bitsPerElement > 8 && bitsPerElement < 9)) throw new Error(`${bytes}, ${bytesAllocated}, ${bitsPerElement}`);
  if (!`${cache}`.includes('hadamard K8V8')) throw new Error(`${cache}`);

  const saved = await cache.saveTo();
  const twin = await Cache.open({ ...options, tokens: 400 });
  await refused(() => twin.loadFrom([1]), 'bytes', 'Uint8Array');
  await refused(() => twin.loadFrom(saved.slice(1)), 'snapshot');
  await refused(() => twin.loadFrom(saved.map((byte, at) => (at === saved.length - 9 ? byte ^ 1 : byte))), 'snapshot');
  await refused(() => cache.loadFrom(saved), 'empty', '131');
  twin.loadFrom(saved);
  same('tokens that were loaded', twin.tokens, prompt + 1);
  const more = [numbers(width, 6), numbers(width, 7), numbers(queries, 8)];
  const outputs = [];
  for (const one of [cache, twin]) {
    for (const layer of [0, 1]) one.append(layer, more[0], more[1]);
    outputs.push(await one.attend(1, more[2]));
  }
  same('numbers that differ after loading', outputs[0].filter((x, at) => x !== outputs[1][at]).length, 0);
  twin.free();

  const waiting = cache.attend(0, more[2]);
  cache.free();
  cache.free();
  same('output read after free', (await waiting).length, queries);
  await refused(() => cache.append(0, keys, values), 'freed');
  await refused(() => cache.attend(0, query), 'freed');
  await refused(() => cache.bytes, 'freed');

  await refused(() => new Cache(), 'Cache.open');
  await refused(() => Cache.open(), 'queryHeads');
  await refused(() => Cache.open({ ...options, tokens: undefined }), 'tokens', 'missing');
  await refused(() => Cache.open({ ...options, headDim: 65 }), 'head_dim', '65');
  await refused(() => Cache.open({ ...options, keyBits: 5 }), 'bits', '5');
  await refused(() => Cache.open({ ...options, codec: 'int4' }), 'int4', 'hadamard');
  await refused(() => Cache.open({ ...options, valueCode: 'tree' }), 'code', 'trellis', 'tree');
  await refused(() => Cache.open({ ...options, keyCode: 'trellis', keyBits: 2 }), 'trellis', 'centred', 'hadamard');
  await refused(() => Cache.open({ ...options, codec: 'centred', keyCode: 'trellis' }), 'bits of a trellis code', '8');
  await refused(() => Cache.open({ ...options, bits: 4 }), 'bits', 'keyBits');
  await refused(() => Cache.open({ ...options, tokens: '9' }), 'tokens');
  await refused(() => Cache.open({ ...options, tokens: 2 ** 30 }), 'max_storage_buffer_binding_size');
  await refused(() => Cache.open({ ...options, codec: 'rotate-kv' }), 'calibration');
  await refused(() => Cache.open({ ...options, codec: 'rotate-kv', calibration: new Uint8Array(9) }), 'channel order');
  await refused(() => Cache.open({ ...options, codec: 'centred', calibration: new Uint8Array(9) }), 'means');
  await refused(() => Cache.open({ ...options, calibration: 'file' }), 'Uint8Array');

  // By a trellis, two bits are nearer to what came than without.
  const error = async (code) => {
    const two = { codec: 'centred', keyBits: 2, valueBits: 2, group: 64, keyCode: code, valueCode: code };
    const coded = await Cache.open({ ...options, ...two, layers: 1, sinks: 0, rope: undefined });
    const exact = await Cache.open({ ...options, codec: 'f16', layers: 1, rope: undefined });
    const rows = [numbers(60 * width, 21), numbers(60 * width, 22), numbers(60 * queries, 23)];
    const outputs = [];
    for (const one of [coded, exact]) {
      one.append(0, rows[0], rows[1]);
      outputs.push(await one.attend(0, rows[2]));
      one.free();
    }
    return outputs[0].reduce((sum, x, i) => sum + (x - outputs[1][i]) ** 2, 0);
  };
  const [uniform, trellis] = [await error('uniform'), await error('trellis')];
  if (!(trellis < uniform)) throw new Error(`a trellis is off by ${trellis}, uniform codes by ${uniform}`);

  // A stream that is longer than what is held of it, and takes tokens back.
  const stream = await Cache.open({ ...options, layers: 1, tokens: 384, maxTokens: 600, slidingWindow: 100, sinks: 0 });
  const long = [numbers(501 * width, 9), numbers(501 * width, 10), numbers(501 * queries, 11)];
  const rows = (which, first, end) => long[which].slice(first * [width, width, queries][which], end * [width, width, queries][which]);
  const firsts = [];
  for (let first = 0; first < 500; first += 100) {
    stream.append(0, rows(0, first, first + 100), rows(1, first, first + 100));
    await stream.attend(0, rows(2, first, first + 100));
    firsts.push(stream.slide(100));
  }
  same('first tokens held', firsts.join(), '0,0,128,256,384');
  await refused(() => stream.truncate(300), '300', '384');
  await refused(() => stream.truncate(501), '501', '500');
  await refused(() => stream.truncate(1.5), 'tokens', '1.5');
  await refused(() => stream.slide('100'), 'keep', 'string');
  await refused(() => stream.append(0, numbers(101 * width, 4), numbers(101 * width, 5)), '601', '600');
  stream.truncate(450);
  same('tokens that are left', stream.tokens, 450);
  stream.append(0, rows(0, 450, 501), rows(1, 450, 501));
  near((await stream.attend(0, rows(2, 450, 501))).slice(50 * queries), attention(long[0], long[1], rows(2, 500, 501), 501, 401));
  stream.free();

  await refused(() => Cache.open({ ...options, slidingWindow: 0 }), 'sliding window', '0');
  await refused(() => Cache.open({ ...options, maxTokens: 0 }), 'max_tokens', '0');

  const next = await Cache.open({ ...options, layers: 1, keyBits: 2, valueBits: 2 });
  next.append(0, keys, values);
  same('numbers of the next cache', (await next.attend(0, query)).length, query.length);
  next.free();
  return texts;
}
