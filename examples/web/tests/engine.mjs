// A small decoder in plain WebGPU, as a page's own engine would be: two layers of attention on random weights, greedy. All of it stays on
// the GPU, the tokens too. And the same in plain JavaScript.

const WGSL = `
struct Job { rows: u32, inputs: u32, outputs: u32, first: u32, adds: u32, at: u32 }
@group(0) @binding(0) var<uniform> job: Job;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> ids: array<u32>;

// y[row] = weights[ids[row]]
@compute @workgroup_size(64) fn embed(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= job.rows * job.outputs) { return; }
  y[id.x] = weights[ids[id.x / job.outputs] * job.outputs + id.x % job.outputs];
}

// y[row] = weights x[first + row], after what y holds where it adds
@compute @workgroup_size(64) fn product(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= job.rows * job.outputs) { return; }
  let row = id.x / job.outputs;
  let column = id.x % job.outputs;
  var sum = 0.0;
  for (var i = 0u; i < job.inputs; i++) { sum += x[(job.first + row) * job.inputs + i] * weights[column * job.inputs + i]; }
  if (job.adds == 1u) { sum += y[id.x]; }
  y[id.x] = sum;
}

// ids[0] = the largest of x, which is kept in y; the token is kept behind the ids
@compute @workgroup_size(1) fn choose() {
  var best = 0u;
  for (var i = 0u; i < job.outputs; i++) {
    y[job.at * job.outputs + i] = x[i];
    if (x[i] > x[best]) { best = i; }
  }
  ids[0] = best;
  ids[job.first + job.at] = best;
}`;

export const sizes = { layers: 2, queryHeads: 4, kvHeads: 2, headDim: 64, hidden: 64, vocabulary: 96, rope: { theta: 10000 } };

export class Engine {
  constructor(device, { most, steps, random }) {
    const { layers, queryHeads, kvHeads, headDim, hidden, vocabulary } = sizes;
    const [query, kv] = [queryHeads * headDim, kvHeads * headDim];
    this.matrix = (outputs, inputs) => Float32Array.from(random(outputs * inputs), (x) => x * Math.sqrt(3 / inputs));
    this.weights = { embeddings: random(vocabulary * hidden), head: this.matrix(vocabulary, hidden) };
    this.weights.layers = Array.from({ length: layers }, () => ({ q: this.matrix(query, hidden), k: this.matrix(kv, hidden), v: this.matrix(kv, hidden), o: this.matrix(hidden, query) }));
    this.device = device;
    this.most = most;
    const { STORAGE, COPY_DST, COPY_SRC, UNIFORM } = GPUBufferUsage;
    const make = (size, usage = STORAGE | COPY_SRC | COPY_DST) => device.createBuffer({ size: 4 * size, usage });
    const put = (numbers) => {
      const buffer = make(numbers.length);
      device.queue.writeBuffer(buffer, 0, numbers);
      return buffer;
    };
    this.gpu = { embeddings: put(this.weights.embeddings), head: put(this.weights.head), layers: this.weights.layers.map((layer) => Object.fromEntries(Object.entries(layer).map(([name, m]) => [name, put(m)]))) };
    this.x = make(most * hidden);
    [this.q, this.out] = [make(most * query), make(most * query)];
    [this.k, this.v] = [make(most * kv), make(most * kv)];
    [this.logits, this.kept] = [make(vocabulary), make(steps * vocabulary)];
    this.ids = make(most + steps);
    const entry = (binding, type) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type, hasDynamicOffset: binding === 0 } });
    this.layout = device.createBindGroupLayout({ entries: [entry(0, 'uniform'), entry(1, 'read-only-storage'), entry(2, 'read-only-storage'), entry(3, 'storage'), entry(4, 'storage')] });
    const module = device.createShaderModule({ code: WGSL });
    const layout = device.createPipelineLayout({ bindGroupLayouts: [this.layout] });
    const pipeline = (entryPoint) => device.createComputePipeline({ layout, compute: { module, entryPoint } });
    this.pipelines = { embed: pipeline('embed'), product: pipeline('product'), choose: pipeline('choose') };
    this.jobs = make(64 * 64, UNIFORM | COPY_DST);
    this.groups = new Map();
  }

  /** Records one dispatch; bind groups are made once. */
  dispatch(encoder, kind, [x, weights, y], { rows = 1, inputs = 1, outputs, first = 0, adds = 0, at = 0 }, threads = rows * outputs) {
    const key = [x, weights, y].map((buffer) => buffer.number ??= Engine.numbers++).join();
    if (!this.groups.has(key)) {
      const buffers = [{ buffer: this.jobs, size: 24 }, ...[x, weights, y, this.ids].map((buffer) => ({ buffer }))];
      this.groups.set(key, this.device.createBindGroup({ layout: this.layout, entries: buffers.map((resource, binding) => ({ binding, resource })) }));
    }
    this.device.queue.writeBuffer(this.jobs, 256 * this.job, new Uint32Array([rows, inputs, outputs, first, adds, at]));
    const pass = encoder.beginComputePass();
    pass.setPipeline(this.pipelines[kind]);
    pass.setBindGroup(0, this.groups.get(key), [256 * this.job++]);
    pass.dispatchWorkgroups(Math.ceil(threads / 64));
    pass.end();
  }

  /** Takes `rows` tokens through the model and chooses the next, in one submission. */
  step(cache, rows, at) {
    const { queryHeads, kvHeads, headDim, hidden, vocabulary } = sizes;
    const encoder = this.device.createCommandEncoder();
    this.job = 0;
    this.dispatch(encoder, 'embed', [this.q, this.gpu.embeddings, this.x], { rows, outputs: hidden });
    cache.step(rows);
    this.gpu.layers.forEach((layer, n) => {
      const project = (weights, y, heads) => this.dispatch(encoder, 'product', [this.x, weights, y], { rows, inputs: hidden, outputs: heads * headDim });
      project(layer.q, this.q, queryHeads);
      project(layer.k, this.k, kvHeads);
      project(layer.v, this.v, kvHeads);
      cache.append(n, this.k, this.v, encoder);
      cache.attend(n, this.q, this.out, encoder);
      this.dispatch(encoder, 'product', [this.out, layer.o, this.x], { rows, inputs: queryHeads * headDim, outputs: hidden, adds: 1 });
    });
    this.dispatch(encoder, 'product', [this.x, this.gpu.head, this.logits], { inputs: hidden, outputs: vocabulary, first: rows - 1 });
    this.dispatch(encoder, 'choose', [this.logits, this.gpu.head, this.kept], { outputs: vocabulary, first: this.most, at }, 1);
    this.device.queue.submit([encoder.finish()]);
  }

  /** The logits that follow each of the last `steps` tokens of a text, in plain JavaScript. */
  twin(text, steps) {
    const { queryHeads, kvHeads, headDim, hidden, vocabulary, rope } = sizes;
    const product = (m, x) => Array.from({ length: m.length / x.length }, (_, o) => x.reduce((sum, value, i) => sum + value * m[o * x.length + i], 0));
    const turn = (row, position) => row.map((x, i) => {
      const [at, half] = [i % headDim, headDim / 2];
      const angle = position * rope.theta ** (-2 * (at % half) / headDim);
      return x * Math.cos(angle) + (at < half ? -row[i + half] : row[i - half]) * Math.sin(angle);
    });
    let rows = text.map((id) => Array.from(this.weights.embeddings.subarray(id * hidden, (id + 1) * hidden)));
    for (const { q, k, v, o } of this.weights.layers) {
      const [keys, values] = [rows.map((x, t) => turn(product(k, x), t)), rows.map((x) => product(v, x))];
      rows = rows.map((x, t) => {
        const query = turn(product(q, x), t);
        const heads = Array.from({ length: queryHeads }, (_, head) => {
          const [at, of] = [head * headDim, Math.floor(head * kvHeads / queryHeads) * headDim];
          const scores = keys.slice(0, t + 1).map((key) => {
            let sum = 0;
            for (let i = 0; i < headDim; i++) sum += query[at + i] * key[of + i];
            return sum / Math.sqrt(headDim);
          });
          const most = Math.max(...scores);
          const weights = scores.map((score) => Math.exp(score - most));
          const total = weights.reduce((a, b) => a + b);
          return Array.from({ length: headDim }, (_, i) => weights.reduce((sum, weight, s) => sum + weight * values[s][of + i], 0) / total);
        });
        const out = product(o, heads.flat());
        return x.map((value, i) => value + out[i]);
      });
    }
    return rows.slice(-steps).flatMap((x) => product(this.weights.head, x));
  }
}
Engine.numbers = 1;
