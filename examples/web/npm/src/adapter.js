// The way to WebGPU for wgpu's web backend, which looks for `navigator.gpu` in windows and workers only, and which cannot ask for the
// feature `subgroups`.

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

/** Sets a global until it is put back. */
function lend(name, value) {
  const before = Object.getOwnPropertyDescriptor(globalThis, name);
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  return () => (before ? Object.defineProperty(globalThis, name, before) : delete globalThis[name]);
}

/** Does the device compile shaders that say they use subgroups? Some refuse the line though they have the feature. */
async function compilesSubgroups(device) {
  device.pushErrorScope('validation');
  const code = 'enable subgroups; @compute @workgroup_size(1) fn main() { _ = subgroupAdd(1u); }';
  const pipeline = device.createComputePipelineAsync({ layout: 'auto', compute: { module: device.createShaderModule({ code }), entryPoint: 'main' } });
  const made = await pipeline.then(() => true, () => false);
  const error = await device.popErrorScope();
  return made && !error;
}

/** A device with subgroups if it can be had, else one without. */
async function requestDevice(adapter, plain, descriptor, granted) {
  if (adapter.features.has('subgroups')) {
    try {
      const device = await plain.call(adapter, { ...descriptor, requiredFeatures: [...(descriptor?.requiredFeatures ?? []), 'subgroups'] });
      granted.subgroups = await compilesSubgroups(device);
      return device;
    } catch {
      // Refused: as if there were none.
    }
  }
  return plain.call(adapter, descriptor);
}

/**
 * Prepares the globals for wgpu's requests. The answer's `leave` puts them back and tells whether subgroups were granted; its `name` is the
 * adapter's, of which browsers tell more or less.
 */
export async function enter() {
  const gpu = await find();
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new Error(NO_ADAPTER);
  const undo = [];
  if (globalThis.navigator?.gpu !== gpu) undo.push(lend('navigator', { gpu }));
  if (!globalThis.Window && !globalThis.WorkerGlobalScope) undo.push(lend('Window', Object));
  const prototype = Object.getPrototypeOf(adapter);
  const plain = prototype.requestDevice;
  const granted = { subgroups: false };
  prototype.requestDevice = function (descriptor) { return requestDevice(this, plain, descriptor, granted); };
  undo.push(() => { prototype.requestDevice = plain; });
  const { description, vendor, architecture } = adapter.info ?? {};
  const name = description || [vendor, architecture].filter(Boolean).join(' ') || 'a GPU without a name';
  return { name, leave() { undo.forEach((put) => put()); return granted.subgroups; } };
}
