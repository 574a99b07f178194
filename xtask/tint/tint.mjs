// Compiles modules with Tint, Chromium's WGSL compiler, through Dawn's null backend: it takes no GPU and no browser.
// `node tint.mjs MODULES` reads one JSON object a line, { name, entry, source, starts, workgroup_bytes, invocations }, as
// `cargo xtask shader --all` writes them. What Tint says goes to the output by file and line; an error fails the run.
import fs from 'node:fs';
import readline from 'node:readline';
import { create, globals } from 'webgpu';

Object.assign(globalThis, globals);
// Must outlive the device: without a reference it is collected, and the process crashes.
globalThis.gpu = create(['backend=null']);
const adapter = await globalThis.gpu.requestAdapter();
// WebGPU's default limits: the null backend has no others.
const device = await adapter.requestDevice({ requiredFeatures: ['shader-f16', 'subgroups'] });
const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = device.limits;

async function compile(label, code) {
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ label, code });
  const { messages } = await module.getCompilationInfo();
  await device.popErrorScope();
  return { module, messages, refused: messages.some(({ type }) => type === 'error') };
}

// A linter that lets these pass proves nothing about the others.
const broken = {
  'a barrier in control flow that is not uniform': `
    @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { if (i < 32u) { workgroupBarrier(); } }`,
  'a subgroup operation in control flow that is not uniform': `
    enable subgroups;
    @group(0) @binding(0) var<storage, read_write> sum: u32;
    @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { if (i < 32u) { sum = subgroupAdd(i); } }`,
  'subgroups that are not enabled': `
    @compute @workgroup_size(64) fn main(@builtin(subgroup_size) lanes: u32) { _ = lanes; }`,
  'halves that are not enabled': `
    @compute @workgroup_size(64) fn main() { _ = f16(); }`,
};
let errors = 0;
for (const [what, code] of Object.entries(broken)) {
  if (!(await compile(what, code)).refused) {
    errors += 1;
    console.log(`error: Tint accepts ${what}`);
  }
}

let modules = 0;
let wide = 0;
for await (const line of readline.createInterface({ input: fs.createReadStream(process.argv[2]) })) {
  const { name, entry, source, starts, workgroup_bytes, invocations } = JSON.parse(line);
  const { module, messages, refused } = await compile(name, source);
  modules += 1;
  for (const { type, lineNum, message } of messages) {
    const [first, path] = starts.findLast(([first]) => first <= lineNum) ?? [1, 'the header'];
    errors += type === 'error';
    console.log(`shaders/${path.replace(/\.wgsl$/, '')}.wgsl:${lineNum - first + 1}: ${type}: ${message}\n  in ${name}`);
  }
  // A pipeline is also held to the limits. Variants that need more than the default are for devices that have more.
  if (workgroup_bytes > maxComputeWorkgroupStorageSize || invocations > maxComputeInvocationsPerWorkgroup) {
    wide += 1;
  } else if (!refused) {
    try {
      await device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: entry } });
    } catch (error) {
      errors += 1;
      console.log(`shaders/${entry}.wgsl: error: ${error.message}\n  in ${name}`);
    }
  }
}
if (modules === 0) {
  errors += 1;
  console.log(`error: ${process.argv[2]} holds no modules`);
}
console.log(`Tint: ${modules} modules, ${wide} of them without a pipeline since they need larger workgroups than WebGPU's default; ${errors} errors`);
// The device keeps the process alive.
process.exit(errors === 0 ? 0 : 1);
