// The worker as an object of promises.

const FILES = ['config.json', 'tokenizer.json', 'model.safetensors', 'rotate-kv.safetensors', 'centred.safetensors'];

export class Engine {
  #worker;
  #base;
  #waiting = new Map();
  #next = 0;
  #ready;
  #progress = () => {};
  /** Called once, with the reason, when the device is lost or the worker fails. */
  onlost = () => {};

  /** `base` is the page's folder. */
  constructor(base = './') {
    this.#base = new URL(base, location.href);
    this.#worker = new Worker(new URL('worker.js', this.#base), { type: 'module' });
    this.#ready = new Promise((resolve, reject) => {
      this.#worker.onerror = (event) => {
        const error = new Error(event.message ?? 'the worker could not be loaded');
        reject(error);
        this.#lose(error.message);
      };
      this.#worker.onmessage = ({ data }) => {
        if (data.ready) resolve();
        else if (data.progress) this.#progress(...data.progress);
        else if (data.lost !== undefined) this.#lose(data.lost);
        else this.#settle(data);
      };
    });
    this.#ready.catch(() => {});
  }

  #settle({ id, result, error, fault }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) return resolve(result);
    reject(new Error(error));
    if (fault) this.#lose(error);
  }

  #lose(reason) {
    for (const { reject } of this.#waiting.values()) reject(new Error(`lost: ${reason}`));
    this.#waiting.clear();
    this.onlost(reason);
    this.onlost = () => {};
  }

  /** Calls a function of the worker. */
  async call(name, ...values) {
    await this.#ready;
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, name, values });
    });
  }

  /** Loads the page's own model, telling bytes and all bytes on the way; answers it in numbers. */
  async load(progress) {
    const responses = await Promise.all(FILES.map((file) => fetch(new URL(`model/${file}`, this.#base))));
    const missing = responses.findIndex((response) => !response.ok);
    if (missing >= 0) throw new Error(`model/${FILES[missing]} could not be loaded (${responses[missing].status})`);
    const lengths = responses.map((response) => Number(response.headers.get('content-length')));
    const all = lengths.reduce((a, b) => a + b);
    let loaded = 0;
    const files = [];
    for (const response of responses) {
      const pieces = [];
      for (let reader = response.body.getReader(); ;) {
        const { done, value } = await reader.read();
        if (done) break;
        pieces.push(value);
        loaded += value.length;
        progress(loaded, Math.max(all, loaded));
      }
      files.push(new Uint8Array(await new Blob(pieces).arrayBuffer()));
    }
    return JSON.parse(await this.call('read', files));
  }

  /** Opens a GGUF file, telling bytes and all bytes on the way; answers the model in numbers. */
  async open(file, progress) {
    this.#progress = progress;
    return JSON.parse(await this.call('open_file', file));
  }

  /** Ends the worker, with everything it holds. */
  close() {
    this.onlost = () => {};
    this.#worker.terminate();
  }
}
