// The blocks of the package's README, run as they stand.

/** The blocks of JavaScript, with the word after `js` that says where they run. */
function blocks(text) {
  return Array.from(text.matchAll(/^```js ?(\w*)\n(.*?)^```$/gms), ([, where, code]) => ({ where, code }));
}

/** Runs those that `run` has a way for; returns how many. */
export async function recipes(text, run) {
  let count = 0;
  for (const { where, code } of blocks(text)) {
    const way = run[where || 'page'];
    if (!way) continue;
    const title = code.split('\n').find((line) => line && !line.startsWith('import'));
    await way(code).catch((error) => { throw new Error(`the recipe "${title}": ${error.message}`); });
    count++;
  }
  if (count === 0) throw new Error('the README has no recipe that runs here');
  return count;
}

/** The ways of a browser, for a package that lies at this address. */
export function inBrowser(address) {
  const module = (code) => URL.createObjectURL(new Blob([code.replaceAll("from 'wgkv'", `from '${address}'`)], { type: 'text/javascript' }));
  return {
    page: (code) => import(module(code)),
    worker: (code) => new Promise((resolve, reject) => {
      const worker = new Worker(module(code), { type: 'module' });
      const end = (settle) => (event) => {
        worker.terminate();
        settle(event.data ?? new Error(event.message ?? 'a worker failed'));
      };
      worker.onmessage = end(resolve);
      worker.onerror = end(reject);
    }),
  };
}
