//! One sequence in a cache of its own, for `index.js`.

use crate::device::{Device, throw};
use futures::lock::Mutex;
use js_sys::{Float32Array, Promise, Uint8Array};
use serde::Deserialize;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use wgkv::{Bits, Cache, Capacity, ChannelOrder, Chunk, Codec, Format, Means, Plan, Protection, Rope, Rows, Sequence, Shape, Sinks, Step};
use wgpu::util::DeviceExt;

thread_local! {
    /// The device that all caches share, until it is lost.
    static DEVICE: Rc<Mutex<Option<Device>>> = Rc::default();
}

/// The device at hand, or a new one if there is none or it is lost.
async fn device() -> Result<Device, JsValue> {
    let held = DEVICE.with(Rc::clone);
    let mut held = held.lock().await;
    match held.as_ref().filter(|device| !device.is_lost()) {
        Some(device) => Ok(device.clone()),
        None => Ok(held.insert(Device::request().await?).clone()),
    }
}

/// What `index.d.ts` describes as `Options`, but for the calibration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Options {
    tokens: u32,
    #[serde(default = "one")]
    layers: u32,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rope: Option<RopeOptions>,
    codec: Option<String>,
    key_bits: Option<u32>,
    value_bits: Option<u32>,
    group: Option<u32>,
    scales: Option<String>,
    sinks: Option<u32>,
    window: Option<u32>,
    sliding_window: Option<u32>,
    max_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RopeOptions {
    theta: f64,
    dim: Option<u32>,
    #[serde(default)]
    interleaved: bool,
}

fn one() -> u32 {
    1
}

impl Options {
    /// Reads them, or says which is wrong. The place in a text that the caller never saw would mean nothing to him.
    fn parse(text: &str) -> Result<Self, String> {
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| {
            let (path, reason) = (error.path().to_string(), error.inner().to_string());
            let reason = reason.split(" at line ").next().unwrap_or(&reason);
            if path == "." { format!("options: {reason}") } else { format!("options: {path}: {reason}") }
        })
    }

    fn shape(&self) -> Shape {
        let rope = self.rope.as_ref().map_or_else(Rope::none, |rope| {
            let turned = Rope::new(rope.theta, rope.dim.unwrap_or(self.head_dim));
            if rope.interleaved { turned.interleaved() } else { turned }
        });
        Shape { layers: self.layers, query_heads: self.query_heads, kv_heads: self.kv_heads, head_dim: self.head_dim, rope }
    }

    fn format(&self) -> wgkv::Result<Format> {
        let codec = self.codec.as_deref().map_or(Ok(Codec::Hadamard), str::parse)?;
        let bits = |bits: Option<u32>| Bits::try_from(bits.unwrap_or(4));
        let format = Format::new(codec, bits(self.key_bits)?, bits(self.value_bits)?, self.group.unwrap_or(64));
        Ok(match &self.scales {
            Some(scales) => format.with_scales(scales.parse()?),
            None => format,
        })
    }

    fn protection(&self) -> Protection {
        let Protection { sinks, window } = Protection::default();
        Protection { sinks: self.sinks.map_or(sinks, |n| if n == 0 { Sinks::None } else { Sinks::First(n) }), window: self.window.unwrap_or(window) }
    }

    fn plan(&self, calibration: Option<&[u8]>, device: &Device) -> wgkv::Result<Plan> {
        let (shape, format) = (self.shape(), self.format()?);
        let mut builder = match calibration {
            Some(bytes) if format.codec() == Codec::Centred => Plan::builder(shape, format).learned(Means::from_bytes(bytes)?),
            Some(bytes) => {
                let order = ChannelOrder::from_bytes(bytes)?;
                Plan::builder(shape, format.with_heads_per_group(order.heads_per_group())).learned(order)
            }
            None if format.codec() == Codec::RotateKv => return Err(wgkv::Error::argument("calibration", "given, as rotate-kv needs one", "missing")),
            None => Plan::builder(shape, format),
        };
        if let Some(tokens) = self.sliding_window {
            builder = builder.sliding_window(tokens);
        }
        if let Some(tokens) = self.max_tokens {
            builder = builder.max_tokens(tokens);
        }
        builder.protection(self.protection()).capacity(Capacity::tokens(1, self.tokens)).build(device.gpu.capability())
    }
}

/// New tokens, which come layer by layer.
struct Growing {
    step: Step,
    tokens: u32,
    /// By layer: whether keys and values were given.
    appended: Vec<bool>,
}

/// One sequence in a cache of its own.
#[wasm_bindgen]
pub struct Held {
    device: Device,
    cache: Cache,
    sequence: Sequence,
    growing: Option<Growing>,
}

/// What an argument is, for the message that refuses it.
fn described(value: &JsValue) -> String {
    match (value.as_f64(), value.dyn_ref::<js_sys::Object>()) {
        (Some(number), _) => number.to_string(),
        (_, Some(object)) => object.constructor().name().into(),
        _ => value.js_typeof().as_string().unwrap_or_default(),
    }
}

/// A whole number below `end`.
fn whole(name: &str, value: &JsValue, end: u32) -> Result<u32, JsValue> {
    let whole = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..f64::from(end)).contains(n));
    whole.map(|n| n as u32).ok_or_else(|| throw(format!("{name} must be a whole number below {end}, but is {}", described(value))))
}

/// The numbers of an argument; an error if it is anything but a `Float32Array` of rows of `width` numbers.
fn floats(name: &str, value: &JsValue, width: u32) -> Result<(Vec<f32>, u32), JsValue> {
    let Some(array) = value.dyn_ref::<Float32Array>() else {
        return Err(throw(format!("{name} must be a Float32Array, but is {}", described(value))));
    };
    let (length, width) = (array.length(), width.max(1));
    if length == 0 || !length.is_multiple_of(width) {
        return Err(throw(format!("{name} must hold a multiple of {width} numbers, 1 token or more, but holds {length}")));
    }
    Ok((array.to_vec(), length / width))
}

impl Held {
    fn layer(&self, layer: &JsValue) -> Result<u32, JsValue> {
        whole("layer", layer, self.cache.plan().shape().layers)
    }

    fn upload(&self, numbers: &[f32]) -> wgpu::Buffer {
        self.device.gpu.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("wgkv rows"),
            contents: bytemuck::cast_slice(numbers),
            usage: wgpu::BufferUsages::STORAGE,
        })
    }

    /// Records and submits; the buffers are given back after their last use.
    fn submit(&self, inputs: &[wgpu::Buffer], record: impl FnOnce(&mut wgpu::CommandEncoder) -> wgkv::Result<()>) -> Result<(), JsValue> {
        let mut encoder = self.device.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv") });
        let recorded = record(&mut encoder);
        if recorded.is_ok() {
            self.device.gpu.queue().submit([encoder.finish()]);
        }
        inputs.iter().for_each(wgpu::Buffer::destroy);
        recorded.map_err(throw)
    }

    /// Checks that every layer has what the others have.
    fn whole(&self) -> Result<(), JsValue> {
        match self.growing.as_ref().and_then(|growing| growing.appended.iter().position(|appended| !appended)) {
            Some(layer) => Err(throw(format!("layer {layer} must be given keys and values of the tokens that were appended last, as others were"))),
            None => Ok(()),
        }
    }

    fn alive(&self) -> Result<(), JsValue> {
        if self.device.is_lost() { Err(throw("the GPU's device was lost, and the cache with it: open another")) } else { Ok(()) }
    }
}

#[wasm_bindgen]
impl Held {
    /// Plans, compiles and allocates.
    pub async fn open(options: String, calibration: Option<Vec<u8>>) -> Result<Self, JsValue> {
        let options = Options::parse(&options).map_err(throw)?;
        let device = device().await?;
        let plan = options.plan(calibration.as_deref(), &device).map_err(throw)?;
        device.gpu.prepare(&plan).await.map_err(throw)?;
        let mut cache = Cache::request(&device.gpu, plan).await.map_err(throw)?;
        let sequence = cache.begin().map_err(throw)?;
        Ok(Self { device, cache, sequence, growing: None })
    }

    /// Appends keys and values of new tokens to one layer.
    pub fn append(&mut self, layer: &JsValue, keys: &JsValue, values: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        let layer = self.layer(layer)?;
        let shape = self.cache.plan().shape();
        let width = shape.kv_heads * shape.head_dim;
        let (keys, tokens) = floats("keys", keys, width)?;
        let (values, value_tokens) = floats("values", values, width)?;
        if tokens != value_tokens {
            return Err(throw(format!("values must be of as many tokens as keys, {tokens}, but are of {value_tokens}")));
        }
        let fresh = || vec![false; shape.layers as usize];
        match &self.growing {
            Some(growing) if growing.appended.contains(&false) => {
                if growing.appended[layer as usize] {
                    let missing = growing.appended.iter().position(|appended| !appended).unwrap_or_default();
                    return Err(throw(format!("layer {layer} has its keys and values of these tokens, but layer {missing} has not")));
                }
                if growing.tokens != tokens {
                    return Err(throw(format!("keys must be of as many tokens as in the layers before, {}, but are of {tokens}", growing.tokens)));
                }
            }
            _ => {
                let appended = fresh();
                let step = self.cache.step(&[Chunk { sequence: self.sequence, tokens }]).map_err(throw)?;
                self.growing = Some(Growing { step, tokens, appended });
            }
        }
        if let Some(growing) = &self.growing {
            let rows = [self.upload(&keys), self.upload(&values)];
            self.submit(&rows, |encoder| self.cache.append(encoder, &growing.step, layer, Rows::f32(&rows[0]), Rows::f32(&rows[1])))?;
        }
        if let Some(growing) = &mut self.growing {
            growing.appended[layer as usize] = true;
        }
        Ok(())
    }

    /// Attends from the tokens that were appended last; a promise of a `Float32Array`.
    pub fn attend(&self, layer: &JsValue, queries: &JsValue) -> Result<Promise, JsValue> {
        self.alive()?;
        let layer = self.layer(layer)?;
        let growing = self.growing.as_ref().filter(|growing| growing.appended[layer as usize]);
        let growing = growing.ok_or_else(|| throw(format!("layer {layer} must be given keys and values by append before attend")))?;
        let shape = self.cache.plan().shape();
        let (queries, tokens) = floats("queries", queries, shape.query_heads * shape.head_dim)?;
        if tokens != growing.tokens {
            return Err(throw(format!("queries must be of the tokens that were appended last, {}, but are of {tokens}", growing.tokens)));
        }
        let output = self.device.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgkv output"),
            size: 4 * queries.len() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let rows = [self.upload(&queries)];
        self.submit(&rows, |encoder| self.cache.attend(encoder, &growing.step, layer, Rows::f32(&rows[0]), Rows::f32(&output)))?;
        let (gpu, numbers) = (self.device.gpu.clone(), queries.len() as u64);
        Ok(future_to_promise(async move {
            let words = gpu.read(&output, 0, numbers).await.map_err(throw)?;
            output.destroy();
            Ok(Float32Array::from(bytemuck::cast_slice::<u32, f32>(&words)).into())
        }))
    }

    /// Takes back all tokens but the first `tokens`.
    pub fn truncate(&mut self, tokens: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        self.whole()?;
        let tokens = whole("tokens", tokens, u32::MAX)?;
        let mut encoder = self.device.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv truncate") });
        self.cache.truncate(&mut encoder, self.sequence, tokens).map_err(throw)?;
        self.device.gpu.queue().submit([encoder.finish()]);
        self.growing = None;
        Ok(())
    }

    /// Lets go of old tokens. Returns the first that is still held.
    pub fn slide(&mut self, keep: &JsValue) -> Result<u32, JsValue> {
        self.alive()?;
        self.whole()?;
        let first = self.cache.slide(self.sequence, whole("keep", keep, u32::MAX)?).map_err(throw)?;
        self.growing = None;
        Ok(first)
    }

    /// The tokens held, in all layers; a promise of a `Uint8Array`.
    pub fn save(&self) -> Result<Promise, JsValue> {
        self.alive()?;
        self.whole()?;
        let saved = self.cache.save(self.sequence);
        Ok(future_to_promise(async move { Ok(Uint8Array::from(saved.await.map_err(throw)?.as_slice()).into()) }))
    }

    /// Fills an empty cache with what another saved.
    pub fn load(&mut self, bytes: &JsValue) -> Result<(), JsValue> {
        self.alive()?;
        let Some(bytes) = bytes.dyn_ref::<Uint8Array>() else {
            return Err(throw(format!("bytes must be a Uint8Array, but is {}", described(bytes))));
        };
        let tokens = self.tokens()?;
        if tokens > 0 {
            return Err(throw(format!("the cache must be empty to be loaded into, but holds {tokens} tokens")));
        }
        let mut encoder = self.device.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv load") });
        // The plan has room for one sequence: the empty one makes it.
        self.cache.end(self.sequence).map_err(throw)?;
        let loaded = self.cache.load(&mut encoder, &bytes.to_vec());
        match loaded {
            Ok(sequence) => self.sequence = sequence,
            Err(error) => {
                self.sequence = self.cache.begin().map_err(throw)?;
                return Err(throw(error));
            }
        }
        self.device.gpu.queue().submit([encoder.finish()]);
        self.growing = None;
        Ok(())
    }

    /// Tokens held.
    pub fn tokens(&self) -> Result<u32, JsValue> {
        self.cache.tokens(self.sequence).map_err(throw)
    }

    /// Bytes that the tokens held need.
    pub fn bytes(&self) -> f64 {
        self.cache.bytes_used() as f64
    }

    /// Bytes allocated for keys and values.
    pub fn allocated(&self) -> f64 {
        self.cache.bytes() as f64
    }

    /// Stored bits a number.
    pub fn bits(&self) -> Result<f64, JsValue> {
        Ok(self.cache.plan().bits_per_element(self.tokens()?.into()))
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
        self.cache.destroy();
    }
}
