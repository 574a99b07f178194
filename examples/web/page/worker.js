// The model and its cache, in a thread of their own: the page stays quick while weights are packed.

import initialize, { Demo, codecs } from './demo.js';

const wasm = await initialize({ module_or_path: new URL('demo_bg.wasm', import.meta.url) });
let demo;

const calls = {
  codecs: () => codecs(),
  /** Asks for a device. */
  async open() {
    demo = await Demo.open();
    demo.lost().then((reason) => postMessage({ lost: reason }));
    return demo.device();
  },
  read: (files) => demo.read(...files),
  /** Opens a file, of which only the piece that is being read is here. */
  open_file(file) {
    const reader = new FileReaderSync();
    let read = 0;
    return demo.open_file(file.name, file.size, (start, length) => {
      const bytes = new Uint8Array(reader.readAsArrayBuffer(file.slice(start, start + length)));
      read += bytes.length;
      postMessage({ progress: [Math.min(read, file.size), file.size] });
      return bytes;
    });
  },
  memory: () => wasm.memory.buffer.byteLength,
};

onmessage = async ({ data: { id, name, values } }) => {
  try {
    const call = calls[name] ?? demo[name].bind(demo);
    postMessage({ id, result: await call(...values) });
  } catch (error) {
    // A trap of WebAssembly is a fault of ours; anything else is a text for the reader.
    postMessage({ id, error: error.message ?? String(error), fault: error instanceof WebAssembly.RuntimeError });
  }
};
postMessage({ ready: true });
