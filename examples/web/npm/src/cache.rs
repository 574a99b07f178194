//! A cache and its sequences, for `index.js`, which names sequences by numbers.

use crate::device::{Device, Doubts, Given, throw};
use crate::options::parse;
use crate::rows::{Argument, Place, Placed, Places};
use futures::channel::oneshot;
use js_sys::{Float32Array, Promise, Uint8Array, Uint32Array};
use std::collections::BTreeMap;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use wgkv::prefix::PrefixIndex;
use wgkv::{Admission, Cache, Chunk, Defect, Element, Error, Gpu, Sequence, Step};

/// New tokens, which come layer by layer.
struct Growing {
    step: Step,
    tokens: u32,
    /// By layer: whether keys and values were given.
    appended: Vec<bool>,
}

/// A cache.
#[wasm_bindgen]
pub struct Held {
    device: Device,
    cache: Cache,
    prefixes: PrefixIndex,
    sequences: BTreeMap<u32, Sequence>,
    /// The number of the next sequence.
    next: u32,
    growing: Option<Growing>,
    /// Whether a step ended before all layers had their part, by a call about sequences.
    interrupted: bool,
    places: Places,
    doubts: Doubts,
}

/// A defect as a number, 0 for none.
fn code(defect: Option<Defect>) -> u32 {
    defect.map_or(0, |defect| if defect == Defect::NotFinite { 1 } else { 2 })
}

/// What an argument is, for the message that refuses it.
pub fn described(value: &JsValue) -> String {
    match (value.as_f64(), value.dyn_ref::<js_sys::Object>()) {
        (Some(number), _) => number.to_string(),
        (_, Some(object)) => object.constructor().name().into(),
        _ => value.js_typeof().as_string().unwrap_or_default(),
    }
}

/// A whole number below `end`.
pub fn whole(name: &str, value: &JsValue, end: u32) -> Result<u32, JsValue> {
    let whole = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..f64::from(end)).contains(n));
    whole.map(|n| n as u32).ok_or_else(|| throw(format!("{name} must be a whole number below {end}, but is {}", described(value))))
}

/// Bytes that were given.
fn bytes_of(value: &JsValue) -> Result<Vec<u8>, JsValue> {
    let bytes = value.dyn_ref::<Uint8Array>().ok_or_else(|| throw(format!("bytes must be a Uint8Array, but is {}", described(value))))?;
    Ok(bytes.to_vec())
}

/// An admission as two numbers.
fn pair(admission: Admission) -> Vec<u32> {
    vec![admission.pages_needed, admission.pages_free]
}

/// Records on an encoder of the caller's, or where that is undefined on one that is submitted at once. Buffers that the device has not been
/// seen to take are watched: if it refuses them, the next call says so, and what the cache holds is not certain any more where that is
/// `fatal`.
pub struct Recording<'a> {
    /// The device.
    pub device: &'a Device,
    /// The caller's encoder, or undefined.
    pub encoder: &'a JsValue,
    /// What is recorded, for messages.
    pub what: &'a str,
    /// Where refusals are kept.
    pub doubts: &'a Doubts,
    /// Whether the cache needs it.
    pub fatal: bool,
}

impl Recording<'_> {
    /// Records.
    ///
    /// # Errors
    /// Those of `record`; then nothing is submitted.
    pub fn run(self, arguments: Vec<Argument>, record: impl FnOnce(&mut wgpu::CommandEncoder) -> wgkv::Result<()>) -> Result<(), JsValue> {
        let Device { gpu, lent, .. } = self.device;
        let unsure: Vec<Given> = arguments.into_iter().filter_map(Argument::into_unsure).collect();
        let own = self.encoder.is_undefined();
        if !own {
            lent.expect_encoder(self.encoder)?;
            lent.hand_encoder(self.encoder);
        }
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv") });
        let watched = !unsure.is_empty();
        if watched {
            self.doubts.begin();
        }
        let recorded = record(&mut encoder);
        if own && recorded.is_ok() {
            gpu.queue().submit([encoder.finish()]);
        }
        if watched {
            self.doubts.end(self.what, self.fatal, unsure);
        }
        recorded.map_err(throw)
    }
}

impl Held {
    fn layer(&self, layer: &JsValue) -> Result<u32, JsValue> {
        whole("layer", layer, self.cache.plan().shape().layers)
    }

    fn recording<'a>(&'a self, encoder: &'a JsValue, what: &'a str, fatal: bool) -> Recording<'a> {
        Recording { device: &self.device, encoder, what, doubts: &self.doubts, fatal }
    }

    fn find(&self, sequence: u32) -> Result<Sequence, JsValue> {
        self.sequences.get(&sequence).copied().ok_or_else(|| throw("the sequence was ended"))
    }

    fn name(&mut self, sequence: Sequence) -> u32 {
        let name = self.next;
        self.next += 1;
        self.sequences.insert(name, sequence);
        name
    }

    /// Chunks of sequences from numbers, two each.
    fn chunks(&self, pairs: &[u32]) -> Result<Vec<Chunk>, JsValue> {
        pairs.chunks_exact(2).map(|pair| Ok(Chunk { sequence: self.find(pair[0])?, tokens: pair[1] })).collect()
    }

    /// Checks that every layer has what the others have.
    fn whole(&self) -> Result<(), JsValue> {
        let appended = self.growing.as_ref().map_or(&[][..], |growing| &growing.appended);
        match appended.iter().position(|appended| !appended).filter(|_| appended.contains(&true)) {
            Some(layer) => Err(throw(format!("layer {layer} must be given keys and values of the tokens that were appended last, as others were"))),
            None => Ok(()),
        }
    }

    fn alive(&self) -> Result<(), JsValue> {
        if let Some(reason) = self.device.gpu.lost() {
            return Err(throw(format!("the GPU's device was lost ({reason}), and the cache with it: open another")));
        }
        self.doubts.take().map_or(Ok(()), |refused| Err(throw(refused)))
    }

    /// Makes a step, or changes nothing.
    fn grow(&mut self, chunks: &[Chunk]) -> Result<(), JsValue> {
        let step = self.cache.step(chunks).map_err(throw)?;
        if let Some(failure) = self.device.lent.take_failure() {
            self.growing = None;
            self.cache.abandon(step).map_err(throw)?;
            return Err(throw(failure));
        }
        let tokens = step.rows();
        self.growing = Some(Growing { step, tokens, appended: vec![false; self.cache.plan().shape().layers as usize] });
        Ok(())
    }

    /// Ends the step at hand, which a change of any sequence makes stale.
    fn outdate(&mut self) {
        self.interrupted |= self.is_growing();
        self.growing = None;
    }

    /// Refuses rows of a step that a call about sequences ended: without it they would begin another.
    fn expect_uninterrupted(&mut self) -> Result<(), JsValue> {
        if std::mem::take(&mut self.interrupted) {
            return Err(throw("the step ended before all layers had their part, when a sequence was ended, forked, cut or slid: begin it again"));
        }
        Ok(())
    }

    /// Changes sequences on an encoder that is submitted at once.
    fn change<T>(&mut self, change: impl FnOnce(&mut Cache, &mut PrefixIndex, &mut wgpu::CommandEncoder) -> wgkv::Result<T>) -> Result<T, JsValue> {
        let mut encoder = self.device.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv change") });
        let changed = change(&mut self.cache, &mut self.prefixes, &mut encoder).map_err(throw)?;
        self.device.gpu.queue().submit([encoder.finish()]);
        self.outdate();
        Ok(changed)
    }

    /// Ends a sequence that was loaded where there was no memory to map for what it holds.
    fn expect_mapped(&mut self, loaded: Sequence) -> Result<(), JsValue> {
        if let Some(failure) = self.device.lent.take_failure() {
            self.cache.end(loaded).map_err(throw)?;
            return Err(throw(failure));
        }
        Ok(())
    }

    /// Queries of the step of which a layer has its keys and values.
    fn queries(&self, layer: u32, queries: &JsValue) -> Result<(Argument, &Growing), JsValue> {
        let growing = self.growing.as_ref().filter(|growing| growing.appended[layer as usize]);
        let growing = growing.ok_or_else(|| throw(format!("layer {layer} must be given keys and values by append before attend")))?;
        let queries = Argument::new(&self.device, "queries", queries)?;
        let shape = self.cache.plan().shape();
        if let Some(tokens) = queries.tokens(shape.query_heads * shape.head_dim)?.filter(|tokens| *tokens != growing.tokens) {
            return Err(throw(format!("queries must be of the tokens that were appended last, {}, but are of {tokens}", growing.tokens)));
        }
        Ok((queries, growing))
    }

    /// Appends to the step at hand.
    fn give(&mut self, layer: u32, arguments: Vec<Argument>, placed: &[Placed; 2], encoder: &JsValue) -> Result<(), JsValue> {
        let Some(growing) = &self.growing else {
            return Err(throw("there is no step"));
        };
        let [keys, values] = placed.each_ref().map(Placed::rows);
        let what = format!("append to layer {layer}");
        self.recording(encoder, &what, true).run(arguments, |encoder| self.cache.append(encoder, &growing.step, layer, keys, values))?;
        if let Some(growing) = &mut self.growing {
            growing.appended[layer as usize] = true;
        }
        Ok(())
    }
}

#[wasm_bindgen]
impl Held {
    /// Plans, compiles and allocates.
    pub async fn open(options: String, calibration: Option<Vec<u8>>, device: JsValue) -> Result<Self, JsValue> {
        let options = parse(&options).map_err(throw)?;
        let device = Device::shared(&device).await?;
        let plan = options.plan(calibration.as_deref(), device.gpu.capability()).map_err(throw)?;
        device.gpu.prepare(&plan).await.map_err(throw)?;
        let prefixes = PrefixIndex::new(&plan);
        let cache = Cache::request(&device.gpu, plan).await.map_err(throw)?;
        if let Some(failure) = device.lent.take_failure() {
            cache.destroy();
            return Err(throw(failure));
        }
        let doubts = device.lent.doubts();
        Ok(Self { device, cache, prefixes, sequences: BTreeMap::new(), next: 0, growing: None, interrupted: false, places: Places::new(), doubts })
    }

    /// Begins a sequence of no tokens.
    pub fn begin(&mut self) -> Result<u32, JsValue> {
        self.alive()?;
        let sequence = self.cache.begin().map_err(throw)?;
        Ok(self.name(sequence))
    }

    /// Ends a sequence.
    pub fn end(&mut self, sequence: u32) -> Result<(), JsValue> {
        self.cache.end(self.find(sequence)?).map_err(throw)?;
        self.sequences.remove(&sequence);
        self.outdate();
        Ok(())
    }

    /// Begins a sequence of what another holds, or of its first `tokens` tokens.
    pub fn fork(&mut self, sequence: u32, tokens: &JsValue) -> Result<u32, JsValue> {
        self.alive()?;
        self.whole()?;
        let from = self.find(sequence)?;
        let tokens = if tokens.is_undefined() { None } else { Some(whole("tokens", tokens, u32::MAX)?) };
        let forked = self.change(|cache, _, encoder| match tokens {
            Some(tokens) => cache.fork_prefix(encoder, from, tokens),
            None => cache.fork(encoder, from),
        })?;
        Ok(self.name(forked))
    }

    /// Begins a step of these sequences, two numbers each.
    pub fn step(&mut self, pairs: &[u32]) -> Result<(), JsValue> {
        self.alive()?;
        self.whole()?;
        let chunks = self.chunks(pairs)?;
        self.places.forget();
        self.interrupted = false;
        self.grow(&chunks)
    }

    /// Takes a step back of which nothing was recorded, or of which the caller promises that nothing is submitted.
    pub fn abandon(&mut self, dropped: bool) -> Result<(), JsValue> {
        let Some(growing) = &self.growing else {
            return Err(throw("there is no step to abandon"));
        };
        if dropped {
            growing.step.unrecord();
        }
        if let Some(layer) = growing.step.recorded() {
            return Err(throw(format!("a step can be abandoned before anything is recorded of it, but layer {layer} was given its part")));
        }
        match self.growing.take() {
            Some(growing) => self.cache.abandon(growing.step).map_err(throw),
            None => Ok(()),
        }
    }

    /// What a step of these sequences would take: pages needed, pages free.
    #[wasm_bindgen(js_name = canAppend)]
    pub fn can_append(&self, pairs: &[u32]) -> Result<Vec<u32>, JsValue> {
        self.cache.can_append(&self.chunks(pairs)?).map(pair).map_err(throw)
    }

    /// Elects one layer's sinks from the residual stream.
    pub fn elect(&self, layer: &JsValue, residual: &JsValue, width: &JsValue, encoder: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        let (layer, width) = (self.layer(layer)?, whole("width", width, u32::MAX)?);
        let residual = Argument::new(&self.device, "residual", residual)?;
        residual.expect_beside(encoder)?;
        let growing = self.growing.as_ref().ok_or_else(|| throw("a step must be begun by step(tokens) before elect"))?;
        if let Some(tokens) = residual.tokens(width)?.filter(|tokens| *tokens != growing.tokens) {
            return Err(throw(format!("residual must be of the step's tokens, {}, but is of {tokens}", growing.tokens)));
        }
        let placed = self.places.place(&self.device, Place::Keys, &residual)?;
        let elect = |encoder: &mut wgpu::CommandEncoder| self.cache.elect(encoder, &growing.step, layer, placed.rows(), width);
        let recorded = self.recording(encoder, "elect", true).run(vec![residual], elect);
        placed.release();
        recorded
    }

    /// Returns whether a step is begun that not all layers were given.
    #[wasm_bindgen(js_name = isGrowing)]
    pub fn is_growing(&self) -> bool {
        self.growing.as_ref().is_some_and(|growing| growing.appended.contains(&false))
    }

    /// Appends keys and values of new tokens to one layer: of the step at hand, or of a new one of `sequence`.
    pub fn append(&mut self, sequence: Option<u32>, layer: &JsValue, keys: &JsValue, values: &JsValue, encoder: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        self.expect_uninterrupted()?;
        let layer = self.layer(layer)?;
        let shape = self.cache.plan().shape();
        let width = shape.kv_heads * shape.head_dim;
        let keys = Argument::new(&self.device, "keys", keys)?;
        let values = Argument::new(&self.device, "values", values)?;
        keys.expect_beside(encoder)?;
        values.expect_beside(encoder)?;
        let (given, value_tokens) = (keys.tokens(width)?, values.tokens(width)?);
        if let (Some(tokens), Some(value_tokens)) = (given, value_tokens)
            && tokens != value_tokens
        {
            return Err(throw(format!("values must be of as many tokens as keys, {tokens}, but are of {value_tokens}")));
        }
        if keys.element() != values.element() {
            return Err(throw("keys and values must both be f32 or both be f16"));
        }
        let given = given.or(value_tokens);
        let open = self.growing.as_ref().filter(|growing| growing.appended.contains(&false));
        if let Some(growing) = open {
            if growing.appended[layer as usize] {
                let missing = growing.appended.iter().position(|appended| !appended).unwrap_or_default();
                return Err(throw(format!("layer {layer} has its keys and values of these tokens, but layer {missing} has not")));
            }
            if let Some(tokens) = given.filter(|tokens| *tokens != growing.tokens) {
                return Err(throw(format!("keys must be of as many tokens as in the layers before, {}, but are of {tokens}", growing.tokens)));
            }
        }
        let tokens = open.map(|growing| growing.tokens).or(given);
        let tokens = tokens.ok_or_else(|| throw("keys and values in GPUBuffers do not tell how many tokens they hold: call step(tokens) first"))?;
        for rows in [&keys, &values] {
            rows.expect(&self.device, u64::from(tokens) * u64::from(width))?;
        }
        let begins = open.is_none();
        let sequence = sequence.filter(|_| begins).map(|sequence| self.find(sequence)).transpose()?;
        if !encoder.is_undefined() {
            self.device.lent.expect_encoder(encoder)?;
        }
        if begins {
            self.places.forget();
        }
        let placed_keys = self.places.place(&self.device, Place::Keys, &keys)?;
        let placed_values = match self.places.place(&self.device, Place::Values, &values) {
            Ok(placed) => placed,
            Err(error) => {
                placed_keys.release();
                return Err(error);
            }
        };
        let placed = [placed_keys, placed_values];
        if let Some(sequence) = sequence
            && let Err(error) = self.grow(&[Chunk { sequence, tokens }])
        {
            placed.into_iter().for_each(Placed::release);
            return Err(error);
        }
        let appended = self.give(layer, vec![keys, values], &placed, encoder);
        placed.into_iter().for_each(Placed::release);
        // Nothing was recorded: the tokens that this call brought do not count.
        if appended.is_err()
            && begins
            && let Some(growing) = self.growing.take()
        {
            self.cache.abandon(growing.step).map_err(throw)?;
        }
        appended
    }

    /// Attends from the step's tokens to an output of the caller's.
    #[wasm_bindgen(js_name = attendTo)]
    pub fn attend_to(&self, layer: &JsValue, queries: &JsValue, output: &JsValue, encoder: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        let layer = self.layer(layer)?;
        let (queries, growing) = self.queries(layer, queries)?;
        let output = Argument::new(&self.device, "output", output)?;
        queries.expect_beside(encoder)?;
        if output.is_array() {
            return Err(throw("output must be a GPUBuffer: without one, attend answers with a promise of an array"));
        }
        let placed = self.places.place(&self.device, Place::Queries, &queries)?;
        let to = self.places.place(&self.device, Place::Output, &output)?;
        let attend = |encoder: &mut wgpu::CommandEncoder| self.cache.attend(encoder, &growing.step, layer, placed.rows(), to.rows());
        let what = format!("attend in layer {layer}");
        let recorded = self.recording(encoder, &what, false).run(vec![queries, output], attend);
        placed.release();
        recorded
    }

    /// Attends from the step's tokens; a promise of a `Float32Array`.
    pub fn attend(&self, layer: &JsValue, queries: &JsValue) -> Result<Promise, JsValue> {
        self.alive()?;
        let layer = self.layer(layer)?;
        let (queries, growing) = self.queries(layer, queries)?;
        if queries.element() != Element::F32 {
            return Err(throw("queries of f16 want an output of f16: give a GPUBuffer for it"));
        }
        let (shape, gpu) = (self.cache.plan().shape(), &self.device.gpu);
        let size = 4 * u64::from(growing.tokens) * u64::from(shape.query_heads * shape.head_dim);
        let placed = self.places.place(&self.device, Place::Queries, &queries)?;
        let memory = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let output = self.places.output(&self.device, size);
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some("wgkv readback"), size, usage, mapped_at_creation: false });
        let memory = memory.pop();
        let what = format!("attend in layer {layer}");
        let recorded = self.recording(&JsValue::UNDEFINED, &what, false).run(vec![queries], |encoder| {
            self.cache.attend(encoder, &growing.step, layer, placed.rows(), output.rows())?;
            encoder.copy_buffer_to_buffer(output.buffer(), 0, &staging, 0, size);
            Ok(())
        });
        placed.release();
        output.release();
        if let Err(error) = recorded {
            staging.destroy();
            return Err(error);
        }
        let gpu = gpu.clone();
        Ok(future_to_promise(async move {
            if memory.await.is_some() {
                return Err(throw(Error::Memory { need: size }));
            }
            fetch(&gpu, staging).await
        }))
    }

    /// Takes back all tokens but the first `tokens`.
    pub fn truncate(&mut self, sequence: u32, tokens: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        let (sequence, tokens) = (self.find(sequence)?, whole("tokens", tokens, u32::MAX)?);
        // A step that some layers had is over by this on purpose: it is how such a sequence goes on.
        let torn = self.whole().is_err();
        self.change(|cache, _, encoder| cache.truncate(encoder, sequence, tokens))?;
        self.interrupted &= !torn;
        Ok(())
    }

    /// Lets go of old tokens. Returns the first that is still held.
    pub fn slide(&mut self, sequence: u32, keep: &JsValue) -> Result<u32, JsValue> {
        self.alive()?;
        self.whole()?;
        let first = self.cache.slide(self.find(sequence)?, whole("keep", keep, u32::MAX)?).map_err(throw)?;
        self.outdate();
        Ok(first)
    }

    /// The tokens held, or the first `tokens` of them, in all layers; a promise of a `Uint8Array`.
    pub fn save(&self, sequence: u32, tokens: &JsValue) -> Result<Promise, JsValue> {
        self.alive()?;
        self.whole()?;
        let sequence = self.find(sequence)?;
        let tokens = if tokens.is_undefined() { self.cache.tokens(sequence).map_err(throw)? } else { whole("tokens", tokens, u32::MAX)? };
        let saved = self.cache.save_prefix(sequence, tokens);
        Ok(future_to_promise(async move { Ok(Uint8Array::from(saved.await.map_err(throw)?.as_slice()).into()) }))
    }

    /// Begins a sequence of what was saved.
    pub fn load(&mut self, bytes: &JsValue) -> Result<u32, JsValue> {
        self.alive()?;
        self.whole()?;
        let bytes = bytes_of(bytes)?;
        let loaded = self.change(|cache, _, encoder| cache.load(encoder, &bytes))?;
        self.expect_mapped(loaded)?;
        Ok(self.name(loaded))
    }

    /// Fills an empty sequence with what was saved.
    pub fn fill(&mut self, sequence: u32, bytes: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        let bytes = bytes_of(bytes)?;
        let empty = self.find(sequence)?;
        let tokens = self.tokens(sequence)?;
        if tokens > 0 {
            return Err(throw(format!("the cache must be empty to be loaded into, but holds {tokens} tokens")));
        }
        // The plan may have room for no more: the empty one makes it.
        self.cache.end(empty).map_err(throw)?;
        let loaded = self.change(|cache, _, encoder| cache.load(encoder, &bytes)).and_then(|loaded| self.expect_mapped(loaded).map(|()| loaded));
        let (held, result) = match loaded {
            Ok(held) => (held, Ok(())),
            Err(error) => (self.cache.begin().map_err(throw)?, Err(error)),
        };
        self.growing = None;
        self.sequences.insert(sequence, held);
        result
    }

    /// Begins a text from the longest prefix that is kept: the sequence, and how many tokens it holds.
    #[wasm_bindgen(js_name = beginText)]
    pub fn begin_text(&mut self, text: &[u32]) -> Result<Vec<u32>, JsValue> {
        self.alive()?;
        self.whole()?;
        let begun = self.change(|cache, prefixes, encoder| prefixes.begin(cache, encoder, text))?;
        Ok(vec![self.name(begun.sequence), begun.tokens])
    }

    /// Keeps what a sequence holds of a text's first tokens. Returns how many are kept.
    pub fn remember(&mut self, sequence: u32, text: &[u32]) -> Result<u32, JsValue> {
        self.alive()?;
        self.whole()?;
        let sequence = self.find(sequence)?;
        self.change(|cache, prefixes, encoder| prefixes.remember(cache, encoder, sequence, text))
    }

    /// Gives back prefixes until a step of these sequences finds its pages: pages needed, pages free.
    #[wasm_bindgen(js_name = makeRoom)]
    pub fn make_room(&mut self, pairs: &[u32]) -> Result<Vec<u32>, JsValue> {
        self.alive()?;
        self.whole()?;
        let chunks = self.chunks(pairs)?;
        self.change(|cache, prefixes, _| prefixes.make_room(cache, &chunks)).map(pair)
    }

    /// Gives back all prefixes.
    pub fn forget(&mut self) -> Result<(), JsValue> {
        self.alive()?;
        self.whole()?;
        self.change(|cache, prefixes, _| prefixes.clear(cache))
    }

    /// Which rows were not stored as they came, a promise of a `Uint32Array`: how many, then six numbers for each of the first.
    pub fn status(&self) -> Result<Promise, JsValue> {
        self.alive()?;
        let status = self.cache.status();
        Ok(future_to_promise(async move {
            let status = status.await.map_err(throw)?;
            let mut numbers = vec![status.rows];
            for flag in &status.flags {
                numbers.extend([flag.layer, flag.slot, flag.token, flag.head, code(flag.key), code(flag.value)]);
            }
            Ok(Uint32Array::from(numbers.as_slice()).into())
        }))
    }

    /// Tokens of a sequence.
    pub fn tokens(&self, sequence: u32) -> Result<u32, JsValue> {
        self.cache.tokens(self.find(sequence)?).map_err(throw)
    }

    /// A sequence's place in the cache.
    pub fn slot(&self, sequence: u32) -> Result<u32, JsValue> {
        Ok(self.find(sequence)?.slot())
    }

    /// Bytes that the tokens held need.
    pub fn bytes(&self) -> f64 {
        self.cache.bytes_used() as f64
    }

    /// Bytes allocated for keys and values.
    pub fn allocated(&self) -> f64 {
        self.cache.bytes() as f64
    }

    /// Pages that no sequence holds.
    #[wasm_bindgen(js_name = freePages)]
    pub fn free_pages(&self) -> u32 {
        self.cache.free_pages()
    }

    /// Stored bits a number, of a sequence of N tokens.
    pub fn bits(&self, tokens: u32) -> f64 {
        self.cache.plan().bits_per_element(tokens.into())
    }

    /// The plan in words.
    pub fn plan(&self) -> String {
        self.cache.plan().to_string()
    }

    /// Resolves when the device is lost.
    pub fn loss(&self) -> Promise {
        self.device.loss()
    }

    /// Gives the memory back at once.
    pub fn destroy(self) {
        self.places.destroy();
        self.cache.destroy();
    }
}

/// The numbers of a buffer, once all that was submitted before is done.
async fn fetch(gpu: &Gpu, staging: wgpu::Buffer) -> Result<JsValue, JsValue> {
    let (sender, receiver) = oneshot::channel();
    {
        // What the device says to mapping where it is lost is told by the promise.
        let _scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver lives as long as the promise.
            let _ = sender.send(result);
        });
    }
    let failed = |error: &dyn std::error::Error| match gpu.lost() {
        Some(reason) => throw(Error::Lost { reason: reason.to_owned() }),
        None => throw(Error::Readback(error.to_string())),
    };
    receiver.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let view = staging.get_mapped_range(..).map_err(|e| failed(&e))?;
    let numbers = Float32Array::from(bytemuck::cast_slice::<u8, f32>(&view));
    drop(view);
    staging.destroy();
    Ok(numbers.into())
}
