// The way from wgpu's web backend to WebGPU. wgpu makes a device of its own, of `navigator.gpu`, in windows and workers only, without the
// feature `subgroups`, and takes no buffer that it has not made. Here it is lent one object in the place of `navigator.gpu`, which gives it
// another in the place of a device: a device that was requested here or is the caller's, and whose `createBuffer` and
// `createCommandEncoder` hand out the caller's own where there are some.

const NO_WEBGPU =
  'this browser has no WebGPU. It is in Chrome and Edge from 113 on (on Linux perhaps behind chrome://flags/#enable-unsafe-webgpu), ' +
  'in Safari from 26 on, and in Firefox from 141 on (elsewhere than on Windows and macOS behind dom.webgpu.enabled in about:config). ' +
  'Pages must come over https or from localhost';
const NO_ADAPTER =
  'WebGPU is there, but no GPU adapter: the browser may not trust the GPU’s driver (see chrome://gpu or about:support), or hardware ' +
  'acceleration is switched off in its settings';
const NO_NODE = 'Node.js has no WebGPU of its own: install it with `npm install webgpu`';

/** Node's WebGPU, which ends, and every device with it, when nothing holds it any more. */
let node;

/** Where WebGPU is on this host. */
async function find() {
  if (globalThis.navigator?.gpu) return globalThis.navigator.gpu;
  if (node) return node;
  if (!globalThis.process?.versions?.node) throw new Error(NO_WEBGPU);
  const dawn = await import('webgpu').catch(() => { throw new Error(NO_NODE); });
  for (const [name, value] of Object.entries(dawn.globals)) globalThis[name] ??= value;
  // Options of Dawn, as in WGKV_DAWN="backend=vulkan".
  return (node = dawn.create(globalThis.process.env.WGKV_DAWN?.split(',') ?? []));
}

/** What a value is, for the message that refuses it. */
function described(value) {
  if (typeof value === 'number') return `${value}`;
  return Object(value) === value ? value.constructor?.name ?? 'an object' : typeof value;
}

/**
 * What WebGPU does not tell of buffers and encoders: whose they are and whether they still serve. It would find both out when they are used,
 * and say so too late: the caller's tokens would count already. By object: `device`, none of those made before this module was loaded;
 * `gone`, what became of it; `id`, a number of those that were given; `sure`, whether the device has taken it before.
 */
const known = new WeakMap();
const watched = new WeakSet();

function entry(object) {
  if (!known.has(object)) known.set(object, {});
  return known.get(object);
}

/** Replaces a method of a prototype, once. */
function watch(prototype, name, method) {
  const plain = prototype[name];
  if (watched.has(plain)) return;
  prototype[name] = function (...given) { return method(this, Reflect.apply(plain, this, given)); };
  watched.add(prototype[name]);
}

function watchEnd(prototype, name, gone) {
  watch(prototype, name, (object, answer) => {
    entry(object).gone = gone;
    return answer;
  });
}

/** Notes what devices of this prototype make, and what becomes of it. */
function watchDevices(prototype) {
  for (const [make, end, gone] of [['createBuffer', 'destroy', 'was destroyed'], ['createCommandEncoder', 'finish', 'is finished']]) {
    watch(prototype, make, (device, made) => {
      entry(made).device = device;
      watchEnd(Object.getPrototypeOf(made), end, gone);
      return made;
    });
  }
  watchEnd(prototype, 'destroy', 'was destroyed');
}

if (globalThis.GPUDevice) watchDevices(globalThis.GPUDevice.prototype);
if (globalThis.GPUBuffer) watchEnd(globalThis.GPUBuffer.prototype, 'destroy', 'was destroyed');
if (globalThis.Deno && globalThis.GPUAdapter) {
  // Deno 2.9 crashes when a device is asked for its adapterInfo after its adapter was collected: a device holds it here.
  watch(globalThis.GPUAdapter.prototype, 'requestDevice', async (adapter, device) => {
    entry(await device).adapter = adapter;
    return device;
  });
}

/** Does the device compile shaders that say they use subgroups? Some refuse the line though they have the feature. */
async function compilesSubgroups(device) {
  if (!device.features.has('subgroups')) return false;
  device.pushErrorScope('validation');
  const code = 'enable subgroups; @compute @workgroup_size(1) fn main() { _ = subgroupAdd(1u); }';
  const pipeline = device.createComputePipelineAsync({ layout: 'auto', compute: { module: device.createShaderModule({ code }), entryPoint: 'main' } });
  const [error, made] = await Promise.all([device.popErrorScope(), pipeline.then(() => true, () => false)]);
  return made && !error;
}

/** What wgpu takes for a device. */
class StandIn {
  #device;
  /** Whether wgpu may end it. */
  #own;
  /** A buffer or an encoder of the caller's, for the next call that would make one. */
  handed;
  /** Why the browser refused something at once, which wgpu does not expect. */
  failure;

  constructor(device, own) {
    this.#device = device;
    this.#own = own;
  }

  get features() { return this.#device.features; }
  get limits() { return this.#device.limits; }
  get queue() { return this.#device.queue; }
  get lost() { return this.#device.lost; }
  get adapterInfo() {
    const info = this.#device.adapterInfo;
    return info ?? { description: '', isFallbackAdapter: false, subgroupMinSize: 0, subgroupMaxSize: 0 };
  }

  createShaderModule(descriptor) { return this.#device.createShaderModule(descriptor); }
  createBindGroupLayout(descriptor) { return this.#device.createBindGroupLayout(descriptor); }
  createBindGroup(descriptor) { return this.#device.createBindGroup(descriptor); }
  createPipelineLayout(descriptor) { return this.#device.createPipelineLayout(descriptor); }
  createComputePipeline(descriptor) { return this.#device.createComputePipeline(descriptor); }
  createQuerySet(descriptor) { return this.#device.createQuerySet(descriptor); }

  #take() {
    const handed = this.handed;
    this.handed = undefined;
    return handed;
  }

  createCommandEncoder(descriptor) { return this.#take() ?? this.#device.createCommandEncoder(descriptor); }

  createBuffer(descriptor) {
    const handed = this.#take();
    if (handed) return handed;
    try {
      return this.#device.createBuffer(descriptor);
    } catch (error) {
      // There is no memory to map. What is done with a buffer of 4 bytes instead is of no use, nor are its errors of interest.
      if (!this.failure) this.#device.pushErrorScope('validation');
      this.failure ??= `there is no memory for ${descriptor.size} bytes: ${error.message}`;
      return this.#device.createBuffer({ label: descriptor.label, size: 4, usage: descriptor.usage });
    }
  }

  /** Why something was refused since the last call, if it was. */
  takeFailure() {
    const failure = this.failure;
    this.failure = undefined;
    if (failure) this.#device.popErrorScope().catch(() => {});
    return failure;
  }

  pushErrorScope(filter) { this.#device.pushErrorScope(filter); }

  async popErrorScope() {
    const error = await this.#device.popErrorScope();
    if (!error) return error;
    // wgpu knows two classes, by globals that not every host has.
    const name = error.constructor.name === 'GPUOutOfMemoryError' ? 'GPUOutOfMemoryError' : 'GPUValidationError';
    const Known = (globalThis[name] ??= error.constructor);
    return error instanceof Known ? error : new Known(error.message);
  }

  destroy() { if (this.#own) this.#device.destroy(); }
}

/** Rows of the caller's: an array, or a place in a buffer. */
class Given {
  constructor(device, name, value) {
    if (value instanceof Float32Array) {
      this.array = value;
      return;
    }
    const place = typeof value?.buffer?.getMappedRange === 'function' ? value : { buffer: value };
    const { buffer, offset = 0, element = 'f32', ...rest } = place;
    if (typeof buffer?.getMappedRange !== 'function') {
      throw new Error(`${name} must be a Float32Array, a GPUBuffer or { buffer, offset, element } with a GPUBuffer, but is ${described(value)}`);
    }
    const surplus = Object.keys(rest)[0];
    if (surplus !== undefined) throw new Error(`${name}: unknown ${surplus}, wanted buffer, offset or element`);
    if (!Number.isSafeInteger(offset) || offset < 0) throw new Error(`${name}: offset must be a whole number of bytes, but is ${described(offset)}`);
    if (element !== 'f32' && element !== 'f16') throw new Error(`${name}: element must be 'f32' or 'f16', but is ${typeof element === 'string' ? `'${element}'` : described(element)}`);
    const about = entry(buffer);
    if (about.gone) throw new Error(`${name}: the buffer ${about.gone}`);
    if (about.device && about.device !== device) throw new Error(`${name}: the buffer is of another GPUDevice than the cache`);
    if (buffer.mapState && buffer.mapState !== 'unmapped') throw new Error(`${name}: the buffer is mapped: unmap it first`);
    about.id ??= nextId++;
    Object.assign(this, { buffer, offset, half: element === 'f16', id: about.id, size: buffer.size, usage: buffer.usage });
  }

  /** Whether the device is known to take it. */
  get sure() { return !this.buffer || !!entry(this.buffer).device; }
}
let nextId = 1;

/** What the device refused of one cache after the call had returned. */
class Doubts {
  #device;
  /** Why what the cache holds is not certain any more. */
  fatal;
  /** Why an output was not written. */
  once;

  constructor(device) { this.#device = device; }

  begin() { this.#device.pushErrorScope('validation'); }

  /** Ends what `begin` began, of a call with these buffers. */
  end(what, fatal, given) {
    this.#device.popErrorScope().then((error) => {
      if (error) this[fatal ? 'fatal' : 'once'] ??= `${what}: the GPU refused it: ${error.message}`;
      else for (const { buffer } of given) if (buffer) entry(buffer).device = this.#device;
    }, () => {});
  }

  /** What the next call must throw. */
  take() {
    const once = this.once;
    this.once = undefined;
    return this.fatal ?? once;
  }
}

/** A device, and what wgpu takes for it. */
class Lent {
  #device;
  #gpu;
  #undo;

  constructor(device, name, own, subgroups) {
    this.#device = device;
    this.name = name;
    this.subgroups = subgroups;
    this.standIn = new StandIn(device, own);
    const adapter = { features: device.features, limits: device.limits, info: this.standIn.adapterInfo, requestDevice: async () => this.standIn };
    const wgslLanguageFeatures = new Set();
    this.#gpu = { wgslLanguageFeatures, requestAdapter: async () => adapter };
  }

  /** Resolves with the reason when it is lost. */
  get lost() { return this.#device.lost.then(({ message, reason }) => message || reason); }

  /** Has wgpu find it, for as long as it takes to look. */
  enter() {
    const globals = [['navigator', { gpu: this.#gpu }]];
    if (!globalThis.Window && !globalThis.WorkerGlobalScope) globals.push(['Window', Object]);
    this.#undo = globals.map(([name, value]) => {
      const before = Object.getOwnPropertyDescriptor(globalThis, name);
      Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
      return () => (before ? Object.defineProperty(globalThis, name, before) : delete globalThis[name]);
    });
  }

  leave() { this.#undo.forEach((put) => put()); }

  /** Rows that the caller gave. */
  given(name, value) { return new Given(this.#device, name, value); }

  doubts() { return new Doubts(this.#device); }

  /** Has wgpu's next buffer be this one. */
  handBuffer(given) { this.standIn.handed = given.buffer; }

  /** Refuses what is no encoder that serves. */
  expectEncoder(encoder) {
    if (typeof encoder?.beginComputePass !== 'function') throw new Error(`encoder must be a GPUCommandEncoder, but is ${described(encoder)}`);
    const about = entry(encoder);
    if (about.gone) throw new Error(`the encoder ${about.gone}`);
    if (about.device && about.device !== this.#device) throw new Error('the encoder is of another GPUDevice than the cache');
  }

  /** Has wgpu's next encoder be this one. */
  handEncoder(encoder) { this.standIn.handed = encoder; }

  takeFailure() { return this.standIn.takeFailure(); }
}

function nameOf({ description, vendor, architecture } = {}) {
  return description || [vendor, architecture].filter(Boolean).join(' ') || 'a GPU without a name';
}

/** The limits that kernels of computation go by. */
const LIMITS = [
  'maxBindGroups', 'maxBindingsPerBindGroup', 'maxBufferSize', 'maxComputeInvocationsPerWorkgroup', 'maxComputeWorkgroupSizeX', 'maxComputeWorkgroupSizeY',
  'maxComputeWorkgroupSizeZ', 'maxComputeWorkgroupStorageSize', 'maxComputeWorkgroupsPerDimension', 'maxDynamicStorageBuffersPerPipelineLayout',
  'maxDynamicUniformBuffersPerPipelineLayout', 'maxStorageBufferBindingSize', 'maxStorageBuffersPerShaderStage', 'maxUniformBufferBindingSize',
  'maxUniformBuffersPerShaderStage', 'minStorageBufferOffsetAlignment', 'minUniformBufferOffsetAlignment',
];

/** Requests a device with all limits of the fastest adapter, and with halves and subgroups where they are to be had. */
export async function request() {
  const gpu = await find();
  const adapter = async () => {
    const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
    if (!adapter) throw new Error(NO_ADAPTER);
    return adapter;
  };
  let from = await adapter();
  const requiredLimits = Object.fromEntries(LIMITS.filter((limit) => limit in from.limits).map((limit) => [limit, from.limits[limit]]));
  const offered = ['shader-f16', 'subgroups'].filter((feature) => from.features.has(feature));
  const ask = (requiredFeatures) => from.requestDevice({ label: 'wgkv', requiredLimits, requiredFeatures });
  const device = await ask(offered).catch(async (error) => {
    // Subgroups refused: as if there were none. A refusal may have used the adapter up.
    if (!offered.includes('subgroups')) throw error;
    from = await adapter();
    return ask(offered.filter((feature) => feature !== 'subgroups'));
  }).catch((error) => { throw new Error(`the device could not be made: ${error.message}`); });
  watchDevices(Object.getPrototypeOf(device));
  return new Lent(device, nameOf(from.info), true, await compilesSubgroups(device));
}

/** By device of the caller's. */
const adopted = new WeakMap();

/** Takes a device of the caller's. */
export async function adopt(device) {
  if (typeof device?.createComputePipeline !== 'function') throw new Error(`device must be a GPUDevice, but is ${described(device)}`);
  watchDevices(Object.getPrototypeOf(device));
  const lost = await Promise.race([device.lost, undefined]);
  const gone = lost ? lost.message || lost.reason : (known.get(device)?.gone && 'it was destroyed');
  if (gone) throw new Error(`the device was lost: ${gone}`);
  if (!adopted.has(device)) adopted.set(device, new Lent(device, nameOf(device.adapterInfo), false, await compilesSubgroups(device)));
  return adopted.get(device);
}
