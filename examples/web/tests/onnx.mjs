// onnxruntime-web beside the package, on one device: its tensors are the cache's rows, and the cache's output is its tensor.

import { attention, near, numbers, options, same } from './package.mjs';
import { recipes } from './recipes.mjs';

const [hidden, query, kv] = [32, 256, 128];
const weights = { queries: numbers(hidden * query, 1), keys: numbers(hidden * kv, 2), values: numbers(hidden * kv, 3), y: numbers(query * hidden, 4) };

/** A length or a key in the bytes of protocol buffers. */
function varint(n) {
  return n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)];
}

/** An ONNX model, in its bytes, of products of one input with the weights of these names: `[rows, inputs]` to `[rows, outputs]` each. */
function products(input, inputs, names) {
  const bytes = (field, content) => [...varint((field << 3) | 2), ...varint(content.length), ...content];
  const number = (field, value) => [...varint(field << 3), ...varint(value)];
  const text = (field, value) => bytes(field, Array.from(new TextEncoder().encode(value)));
  const matrix = (field, name, columns) => {
    const shape = bytes(2, [...bytes(1, text(2, 'rows')), ...bytes(1, number(1, columns))]);
    return bytes(field, [...text(1, name), ...bytes(2, bytes(1, [...number(1, 1), ...shape]))]);
  };
  const outputs = (name) => weights[name].length / inputs;
  const nodes = names.flatMap((name) => bytes(1, [...text(1, input), ...text(1, `w ${name}`), ...text(2, name), ...text(4, 'MatMul')]));
  const constants = names.flatMap((name) => bytes(5, [
    ...number(1, inputs), ...number(1, outputs(name)), ...number(2, 1), ...text(8, `w ${name}`), ...bytes(9, Array.from(new Uint8Array(weights[name].buffer))),
  ]));
  const ends = [...matrix(11, input, inputs), ...names.flatMap((name) => matrix(12, name, outputs(name)))];
  return Uint8Array.from([...number(1, 8), ...bytes(7, [...nodes, ...text(2, 'products'), ...constants, ...ends]), ...bytes(8, number(2, 13))]);
}

/** A model of a layer's projections. */
const layer = () => products('x', hidden, ['queries', 'keys', 'values']);

/** Takes tokens through a layer of attention whose products are onnxruntime's; answers how many. */
export async function checkOnnx({ Cache }, ort) {
  const onDevice = { executionProviders: ['webgpu'], preferredOutputLocation: 'gpu-buffer' };
  const [projections, output] = [await ort.InferenceSession.create(layer(), onDevice), await ort.InferenceSession.create(products('attended', query, ['y']), onDevice)];
  const device = await ort.env.webgpu.device;
  let reads = 0;
  const plain = GPUBuffer.prototype.mapAsync;
  GPUBuffer.prototype.mapAsync = function (...given) {
    reads++;
    return plain.apply(this, given);
  };
  const cache = await Cache.open({ ...options, device, layers: 1 });
  const all = [];
  let y;
  for (const tokens of [9, 1, 1]) {
    const x = numbers(tokens * hidden, 10 + all.length);
    all.push(...x);
    const { queries, keys, values } = await projections.run({ x: new ort.Tensor('float32', x, [tokens, hidden]) });
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const rows = device.createBuffer({ size: 4 * tokens * query, usage });
    cache.step(tokens);
    cache.append(0, keys.gpuBuffer, values.gpuBuffer);
    cache.attend(0, queries.gpuBuffer, rows);
    ({ y } = await output.run({ attended: ort.Tensor.fromGpuBuffer(rows, { dataType: 'float32', dims: [tokens, query] }) }));
  }
  same('mapAsync', reads, 0);
  GPUBuffer.prototype.mapAsync = plain;
  const multiply = (x, w, inputs) => {
    const width = w.length / inputs;
    return Float32Array.from({ length: x.length / inputs * width }, (_, at) => {
      let sum = 0;
      for (let i = 0; i < inputs; i++) sum += x[Math.floor(at / width) * inputs + i] * w[i * width + at % width];
      return sum;
    });
  };
  const tokens = all.length / hidden;
  const [q, k, v] = [weights.queries, weights.keys, weights.values].map((w) => multiply(all, w, hidden));
  near((await y.getData()).slice(-hidden), multiply(attention(k, v, q.slice(-query), tokens), weights.y, query));
  same('tokens', cache.tokens, tokens);
  cache.free();
  return tokens;
}

/** Runs the README's recipes with onnxruntime; answers how many. */
export async function recipesOnnx(text, wgkv, ort) {
  const model = URL.createObjectURL(new Blob([layer()]));
  const blob = (code) => URL.createObjectURL(new Blob([code], { type: 'text/javascript' }));
  const places = [["from 'wgkv'", `from '${wgkv}'`], ["from 'onnxruntime-web/webgpu'", `from '${ort}'`], ["'layer.onnx'", `'${model}'`]];
  return recipes(text, { onnxruntime: (code) => import(blob(places.reduce((code, [from, to]) => code.replaceAll(from, to), code))) });
}
