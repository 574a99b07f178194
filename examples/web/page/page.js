// The page: settings in, text, bars and pictures out. The work is done in the worker.

import { Engine } from './engine.js';

const find = (id) => document.getElementById(id);
/** Tokens that a conversation may have, if the model can have as many. */
const CONTEXT = 4096;
const OWN = { name: 'wiki-8m', file: false };

/** How far the machine is: loading, ready, running, written, lost, unsupported. */
function show(state) {
  document.body.dataset.state = state;
  const idle = state === 'ready' || state === 'written';
  for (const id of ['write', 'check', 'open', 'own', 'anew']) find(id).disabled = !idle;
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
/** The model: its name, and what the worker says of it. */
let model = OWN;
/** The conversation, and the settings of its cache. */
let talk = { messages: [], settings: undefined };

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
    take({ ...OWN, ...await engine.load(loading('Loading the model')) });
  } catch (error) {
    return notice('lost', 'The model could not be loaded', error.message);
  }
  show('ready');
}

/** Shows how much of something has come. */
function loading(what) {
  return (loaded, all) => {
    find('loading-bar').value = loaded / all;
    find('loading-text').textContent = loaded < all ? `${what}: ${bytes(loaded)} of ${bytes(all)}` : `${what}: bringing it to the GPU…`;
  };
}

/** Opens a file from disk; where it is no model, the one before it stays. */
async function open(file) {
  const { engine } = page;
  const before = document.body.dataset.state;
  if (!['ready', 'written'].includes(before)) return;
  find('model-error').hidden = true;
  loading(file.name)(0, file.size || 1);
  show('loading');
  try {
    take({ name: file.name, file: true, ...await engine.open(file, loading(file.name)) });
    show('ready');
  } catch (error) {
    if (document.body.dataset.state === 'lost' || page.engine !== engine) return;
    find('model-error').textContent = `It cannot be opened. ${error.message}`;
    find('model-error').hidden = false;
    show(before);
  }
}

/** Offers what a model can do. */
function take(taken) {
  model = taken;
  const { name, file, parameters, bytes: size, layers, kv_heads: heads, chats, context } = model;
  find('model-name').textContent = name;
  find('model-about').textContent = `${(parameters / 1e6).toFixed(1)} million parameters, ${bytes(size)} on the GPU, texts of up to ${context} tokens`;
  find('own').hidden = !file;
  find('mode').hidden = !chats;
  document.querySelector(`#mode [value=${chats ? 'chat' : 'continue'}]`).checked = true;
  for (const [id, count, first] of [['layer', layers, Math.min(2, layers - 1)], ['head', heads, 0]]) {
    find(id).replaceChildren(...Array.from({ length: count }, (_, n) => new Option(n + 1, n)));
    find(id).value = first;
  }
  find('picture').hidden = true;
  for (const id of ['given', 'added', 'status']) find(id).textContent = '';
  forget();
  offer();
  offerMode();
}

function mode() {
  return document.querySelector('#mode input:checked').value;
}

/** Shows what goes with a text or a conversation. */
function offerMode() {
  const chats = mode() === 'chat';
  find('prompt-label').textContent = chats ? 'Your message'
    : `Begin a text; the model goes on${model.file ? '' : ' in the manner of an encyclopedia, and makes its facts up'}.`;
  for (const id of ['given', 'added']) find(id).hidden = chats;
  for (const id of ['talk', 'anew']) find(id).hidden = !chats;
  find('write').textContent = chats ? 'Send' : 'Write';
  if (chats && find('prompt').value === find('prompt').defaultValue) find('prompt').value = '';
  if (!chats) find('prompt').value ||= find('prompt').defaultValue;
}

/** Forgets the conversation. */
function forget() {
  talk = { messages: [], settings: undefined };
  find('talk').replaceChildren();
}

function chosen() {
  const { codec, bits, about } = model.codecs[find('codec').selectedIndex];
  const checked = document.querySelector('#bits input:checked');
  return { codec, about, all: bits, bits: Number(checked?.value) };
}

/** Fills the lists of codecs and bits. */
function offer() {
  const before = find('codec').value;
  find('codec').replaceChildren(...model.codecs.map(({ codec }) => new Option(codec)));
  find('codec').value = before;
  if (find('codec').selectedIndex < 0) find('codec').selectedIndex = 0;
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

/** What the form asks for. */
function wanted() {
  const { codec, bits } = chosen();
  const number = (id) => Number(find(id).value);
  find('bar-name').textContent = bits === 16 ? codec : `${codec}, ${bits} bits`;
  return { codec, bits, temperature: number('temperature'), top_p: 0.9, seed: number('seed'), tokens: number('tokens') };
}

/** Goes on with a text. */
async function write() {
  const settings = wanted();
  find('given').textContent = find('prompt').value;
  find('added').textContent = '';
  // It takes the conversation's place in the cache.
  talk.settings = undefined;
  await page.engine.call('begin', JSON.stringify(settings), find('prompt').value);
  await go(settings, find('added'), ({ tokens, unread }) => Math.min(tokens + unread + settings.tokens, model.context));
}

/** Says something, and lets the model answer. */
async function chat() {
  const content = find('prompt').value.trim();
  const settings = { ...wanted(), context: Math.min(CONTEXT, model.context) };
  // Another cache reads the whole conversation anew.
  if (talk.settings !== JSON.stringify(settings)) {
    talk.settings = undefined;
    await page.engine.call('begin_chat', JSON.stringify(settings));
    talk.settings = JSON.stringify(settings);
  }
  const messages = [...talk.messages, { role: 'user', content }];
  await page.engine.call('say', JSON.stringify(messages));
  const line = (role, text) => Object.assign(document.createElement('p'), { className: role, textContent: text });
  const answer = line('assistant', '');
  find('talk').append(line('user', content), answer);
  find('prompt').value = '';
  talk.messages = messages;
  try {
    await go(settings, answer, () => settings.context);
  } finally {
    talk.messages.push({ role: 'assistant', content: answer.textContent });
  }
}

/** Adds tokens to the end, or until somebody stops it. The bars have room for `length` tokens. */
async function go(settings, place, length) {
  const { engine } = page;
  let added = 0;
  let spent = 0;
  let most;
  for (;;) {
    const start = performance.now();
    const progress = JSON.parse(await engine.call('advance'));
    if (page.engine !== engine) return;
    most ??= length(progress);
    report(progress, most);
    if (progress.token === null && !progress.ended) {
      find('status').textContent = progress.unread ? `reading, ${progress.unread} tokens to go` : 'writing';
    } else if (progress.token !== null) {
      added += 1;
      spent += performance.now() - start;
      place.textContent += progress.text;
      find('written').scrollTop = find('written').scrollHeight;
      find('speed').textContent = ((1000 * added) / spent).toFixed(1);
      if (added % 24 === 0) await draw();
    }
    if (progress.ended || stopped) {
      const end = mode() === 'chat' ? '' : 'the text is at its end';
      find('status').textContent = stopped ? 'stopped' : added < settings.tokens ? end : '';
      break;
    }
  }
  if (stopped) await engine.call('stop');
  await draw();
  show('written');
}

/** Writes or answers. */
async function begin() {
  if (mode() === 'chat' && !find('prompt').value.trim()) return;
  stopped = false;
  show('running');
  find('status').textContent = 'compiling…';
  await (mode() === 'chat' ? chat() : write());
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
  for (const { codec, bits } of JSON.parse(await page.engine.call('codecs'))) {
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

find('settings').addEventListener('submit', guarded(begin));
find('stop').addEventListener('click', () => { stopped = true; });
find('check').addEventListener('click', guarded(check));
find('restart').addEventListener('click', () => start());
find('codec').addEventListener('change', offerBits);
find('mode').addEventListener('change', offerMode);
find('anew').addEventListener('click', () => {
  forget();
  find('status').textContent = '';
});
find('open').addEventListener('click', () => find('file').click());
find('file').addEventListener('change', async () => {
  const [file] = find('file').files;
  if (file) await open(file);
  // So that the same file can be chosen again.
  find('file').value = '';
});
find('own').addEventListener('click', guarded(async () => {
  find('model-error').hidden = true;
  take({ ...OWN, ...JSON.parse(await page.engine.call('take_own')) });
}));
find('prompt').addEventListener('keydown', (event) => {
  const sends = mode() === 'chat' && event.key === 'Enter' && !event.shiftKey && !event.isComposing;
  if (!sends) return;
  event.preventDefault();
  if (!find('write').disabled) find('settings').requestSubmit();
});
for (const id of ['layer', 'head']) {
  find(id).addEventListener('change', guarded(async () => { if (document.body.dataset.state === 'written') await draw(); }));
}
for (const [type, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle('dropping', over);
    const [file] = type === 'drop' ? event.dataTransfer.files : [];
    if (file) open(file);
  });
}
await start();
