// The page: settings in, text, bars and pictures out. The work is done in the worker.

import { Engine } from './engine.js';

const find = (id) => document.getElementById(id);
const CONTEXT = 2048;

/** How far the machine is: loading, ready, running, written, lost, unsupported. */
function show(state) {
  document.body.dataset.state = state;
  const idle = state === 'ready' || state === 'written';
  for (const id of ['write', 'check']) find(id).disabled = !idle;
  find('stop').disabled = state !== 'running';
}

function notice(state, title, text) {
  find('notice').querySelector('h2').textContent = title;
  find('notice').querySelector('p').textContent = text.charAt(0).toUpperCase() + text.slice(1);
  find('notice').hidden = false;
  show(state);
}

function bytes(n) {
  return n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(2)} MB`;
}

/** What tests may reach. */
const page = (globalThis.page = { engine: undefined });
let choices = [];

/** Starts the worker, finds a GPU, loads the model. */
async function start() {
  page.engine?.close();
  find('notice').hidden = true;
  find('picture').hidden = true;
  show('loading');
  const engine = (page.engine = new Engine());
  engine.onlost = (reason) => notice('lost', 'The GPU is gone', `Its device was lost (${reason || 'no reason was given'}), and the cache with it. The prompt is still there.`);
  try {
    find('device').textContent = await engine.call('open');
  } catch (error) {
    return notice('unsupported', 'WebGPU cannot be used here', `${error.message}.`);
  }
  try {
    find('loading-text').textContent = 'Loading the model…';
    await engine.load((loaded, all) => {
      find('loading-bar').value = loaded / all;
      find('loading-text').textContent = `Loading the model: ${bytes(loaded)} of ${bytes(all)}`;
    });
    choices = JSON.parse(await engine.call('codecs'));
  } catch (error) {
    return notice('lost', 'The model could not be loaded', error.message);
  }
  offer();
  show('ready');
}

function chosen() {
  const { codec, bits, about } = choices[find('codec').selectedIndex];
  const checked = document.querySelector('#bits input:checked');
  return { codec, about, all: bits, bits: Number(checked?.value) };
}

/** Fills the lists of codecs and bits. */
function offer() {
  const before = find('codec').selectedIndex;
  find('codec').replaceChildren(...choices.map(({ codec }) => new Option(codec)));
  find('codec').selectedIndex = Math.max(before, 0);
  offerBits();
}

function offerBits() {
  const { all, bits, about, codec } = chosen();
  const wanted = all.includes(bits) ? bits : all.includes(4) ? 4 : all[0];
  find('bits').replaceChildren(find('bits').querySelector('legend'), ...all.map((n) => {
    const label = document.createElement('label');
    const input = Object.assign(document.createElement('input'), { type: 'radio', name: 'bits', value: n, checked: n === wanted });
    label.append(input, Object.assign(document.createElement('span'), { textContent: n }));
    return label;
  }));
  find('about').textContent = `${codec}: ${about}.`;
}

let stopped = false;

/** Shows where the session stands; the bars have room for `length` tokens. */
function report({ tokens, bytes: held, f16_bytes: half, bits_per_element: bits }, length) {
  const most = (half / tokens) * length;
  find('bar-f16').style.width = `${(100 * half) / most}%`;
  find('bar-codes').style.width = `${(100 * held) / most}%`;
  find('bytes-f16').textContent = bytes(half);
  find('bytes-codes').textContent = bytes(held);
  find('held').textContent = tokens;
  find('bits-per-element').textContent = bits.toFixed(2);
  find('ratio').textContent = `${(half / held).toFixed(1)}×`;
}

/** Writes to the end, or until somebody stops it. */
async function write() {
  const { engine } = page;
  const { codec, bits } = chosen();
  const number = (id) => Number(find(id).value);
  const settings = { codec, bits, temperature: number('temperature'), top_p: 0.9, seed: number('seed'), tokens: number('tokens') };
  stopped = false;
  show('running');
  find('given').textContent = find('prompt').value;
  find('added').textContent = '';
  find('bar-name').textContent = bits === 16 ? codec : `${codec}, ${bits} bits`;
  find('status').textContent = 'compiling…';
  await engine.call('begin', JSON.stringify(settings), find('prompt').value);
  let added = 0;
  let spent = 0;
  let length;
  for (;;) {
    const start = performance.now();
    const progress = JSON.parse(await engine.call('advance'));
    if (page.engine !== engine) return;
    length ??= Math.min(progress.tokens + progress.unread + settings.tokens, CONTEXT);
    report(progress, length);
    if (progress.token === null && !progress.ended) {
      find('status').textContent = progress.unread ? `reading, ${progress.unread} tokens to go` : 'writing';
    } else if (progress.token !== null) {
      added += 1;
      spent += performance.now() - start;
      find('added').textContent += progress.text;
      find('written').scrollTop = find('written').scrollHeight;
      find('speed').textContent = ((1000 * added) / spent).toFixed(1);
      if (added % 24 === 0) await draw();
    }
    if (progress.ended || stopped) {
      find('status').textContent = stopped ? 'stopped' : added < settings.tokens ? 'the text is at its end' : '';
      break;
    }
  }
  await draw();
  show('written');
}

/** Blue, white, red: a number's share of the largest. */
function colour(share) {
  const x = Math.sign(share) * Math.sqrt(Math.min(Math.abs(share), 1));
  const ends = x < 0 ? [28, 92, 168] : [188, 52, 34];
  return ends.map((end) => Math.round(247 + (end - 247) * Math.abs(x)));
}

function paint(canvas, width, height, numbers, most) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  numbers.forEach((x, i) => image.data.set([...colour(x / most), 255], 4 * i));
  context.putImageData(image, 0, 0);
}

/** Draws one head's keys. */
async function draw() {
  const [layer, head] = ['layer', 'head'].map((id) => Number(find(id).value));
  const [text, ...maps] = await page.engine.call('picture', layer, head);
  const picture = JSON.parse(text);
  const most = maps[0].reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  find('picture').hidden = false;
  find('maps').replaceChildren(...picture.maps.map(({ title, error, peak }, n) => {
    const figure = document.createElement('figure');
    const canvas = document.createElement('canvas');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `Keys ${title}`);
    paint(canvas, picture.channels, maps[n].length / picture.channels, maps[n], most);
    const caption = Object.assign(document.createElement('figcaption'), { textContent: title });
    const note = document.createElement('p');
    const share = Object.assign(document.createElement('b'), { textContent: `${(100 * error).toFixed(error < 0.01 ? 2 : 1)} %` });
    note.append(share, n === 3 ? ' of the keys’ size is lost in what the GPU holds' : ` lost in codes · largest ${peak.toFixed(1)} × the mean`);
    figure.append(caption, canvas, note);
    return figure;
  }));
  find('scale-low').textContent = (-most).toFixed(1);
  find('scale-high').textContent = most.toFixed(1);
  paint(find('scale').querySelector('canvas'), 128, 1, Array.from({ length: 128 }, (_, i) => (i / 63.5 - 1) * most), most);
}

/** Compares this GPU with plain code. */
async function check() {
  find('check-rows').replaceChildren();
  show('running');
  for (const { codec, bits } of choices) {
    for (const n of bits) {
      const { format, errors, agrees } = JSON.parse(await page.engine.call('check', codec, n));
      const row = find('check-rows').insertRow();
      row.className = agrees ? '' : 'wrong';
      row.insertCell().textContent = format;
      row.insertCell().textContent = agrees ? `agrees to ${Math.max(...errors).toExponential(0)}` : 'DISAGREES';
    }
  }
  show('ready');
}

/** Runs a task; what goes wrong is said, and the page goes on. */
function guarded(task) {
  return async (event) => {
    event?.preventDefault();
    const { engine } = page;
    try {
      await task();
    } catch (error) {
      // If the device is lost, the page says so already.
      if (document.body.dataset.state === 'lost' || page.engine !== engine) return;
      find('status').textContent = error.message;
      show('ready');
    }
  };
}

find('settings').addEventListener('submit', guarded(write));
find('stop').addEventListener('click', () => { stopped = true; });
find('check').addEventListener('click', guarded(check));
find('restart').addEventListener('click', () => start());
find('codec').addEventListener('change', offerBits);
for (const [id, count] of [['layer', 6], ['head', 4]]) {
  find(id).replaceChildren(...Array.from({ length: count }, (_, n) => new Option(n + 1, n)));
  find(id).addEventListener('change', guarded(async () => { if (document.body.dataset.state !== 'running') await draw(); }));
}
find('layer').value = 2;
await start();
