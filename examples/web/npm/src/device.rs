//! The device of a page, a worker, or another host of JavaScript: one that is requested here, or the caller's.

use futures::lock::Mutex;
use js_sys::{Float32Array, Promise};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, future_to_promise};
use wgkv::Gpu;

#[wasm_bindgen(module = "/src/adapter.js")]
extern "C" {
    #[wasm_bindgen(catch)]
    async fn request() -> Result<Lent, JsValue>;

    #[wasm_bindgen(catch)]
    async fn adopt(device: &JsValue) -> Result<Lent, JsValue>;

    /// A device, and what wgpu takes for it.
    #[derive(Clone, Debug)]
    pub type Lent;

    #[wasm_bindgen(method, getter)]
    fn name(this: &Lent) -> String;

    #[wasm_bindgen(method, getter)]
    fn subgroups(this: &Lent) -> bool;

    /// Resolves with the reason when it is lost.
    #[wasm_bindgen(method, getter)]
    fn lost(this: &Lent) -> Promise;

    #[wasm_bindgen(method)]
    fn enter(this: &Lent);

    #[wasm_bindgen(method)]
    fn leave(this: &Lent);

    /// Rows that the caller gave under this name, or an error that says what else it is.
    #[wasm_bindgen(method, catch)]
    pub fn given(this: &Lent, name: &str, value: &JsValue) -> Result<Given, JsValue>;

    /// Has wgpu's next buffer be that of these rows.
    #[wasm_bindgen(method, js_name = handBuffer)]
    pub fn hand_buffer(this: &Lent, given: &Given);

    /// Refuses what is no encoder that serves.
    #[wasm_bindgen(method, catch, js_name = expectEncoder)]
    pub fn expect_encoder(this: &Lent, encoder: &JsValue) -> Result<(), JsValue>;

    /// Has wgpu's next encoder be this one.
    #[wasm_bindgen(method, js_name = handEncoder)]
    pub fn hand_encoder(this: &Lent, encoder: &JsValue);

    /// Why the browser refused something since the last call, if it did.
    #[wasm_bindgen(method, js_name = takeFailure)]
    pub fn take_failure(this: &Lent) -> Option<String>;

    /// What the device will refuse of one cache after a call has returned.
    #[wasm_bindgen(method)]
    pub fn doubts(this: &Lent) -> Doubts;

    /// Rows of the caller's: an array, or a place in a buffer.
    #[derive(Debug)]
    pub type Given;

    /// The numbers of an array; of a buffer, nothing.
    #[wasm_bindgen(method, getter)]
    pub fn array(this: &Given) -> Option<Float32Array>;

    /// The buffer's number.
    #[wasm_bindgen(method, getter)]
    pub fn id(this: &Given) -> u32;

    /// Bytes before the first row.
    #[wasm_bindgen(method, getter)]
    pub fn offset(this: &Given) -> f64;

    /// Whether the numbers are f16.
    #[wasm_bindgen(method, getter)]
    pub fn half(this: &Given) -> bool;

    /// The buffer's bytes.
    #[wasm_bindgen(method, getter)]
    pub fn size(this: &Given) -> f64;

    /// The buffer's usages, in the bits of WebGPU.
    #[wasm_bindgen(method, getter)]
    pub fn usage(this: &Given) -> u32;

    /// Whether the device is known to take it.
    #[wasm_bindgen(method, getter)]
    pub fn sure(this: &Given) -> bool;

    /// What the device refused of one cache after the call had returned.
    #[derive(Debug)]
    pub type Doubts;

    /// Begins to watch.
    #[wasm_bindgen(method)]
    pub fn begin(this: &Doubts);

    /// Ends what `begin` began, in a call with these rows; if it is refused, the cache holds nothing certain any more where that is
    /// `fatal`.
    #[wasm_bindgen(method)]
    pub fn end(this: &Doubts, what: &str, fatal: bool, given: Vec<Given>);

    /// What the next call must throw, if anything was refused.
    #[wasm_bindgen(method)]
    pub fn take(this: &Doubts) -> Option<String>;
}

thread_local! {
    /// The devices at hand: the one that was requested here first, if it was, then those of callers.
    static DEVICES: Rc<Mutex<Vec<(bool, Device)>>> = Rc::default();
}

/// A device, and when it is lost.
#[derive(Clone, Debug)]
pub struct Device {
    /// The device.
    pub gpu: Gpu,
    /// The adapter's name, as far as the browser tells.
    pub name: String,
    /// What wgpu takes for it.
    pub lent: Lent,
    loss: Promise,
}

impl Device {
    /// Makes one with all limits of its adapter, with halves and subgroups where they are to be had.
    ///
    /// # Errors
    /// An `Error` of JavaScript that says what is missing: WebGPU, an adapter, or the device.
    pub async fn request() -> Result<Self, JsValue> {
        Self::of(request().await?).await
    }

    /// Returns the device of the caller's (a `GPUDevice`), or where that is undefined the one that all who have none share. Those that are
    /// lost are forgotten, and in the second case another is requested.
    ///
    /// # Errors
    /// An `Error` of JavaScript for what is no device, or a lost one, and those of [`Device::request`].
    pub async fn shared(device: &JsValue) -> Result<Self, JsValue> {
        let devices = DEVICES.with(Rc::clone);
        let mut devices = devices.lock().await;
        devices.retain(|(_, device)| !device.is_lost());
        let own = device.is_undefined();
        let lent = if own { None } else { Some(adopt(device).await?) };
        let known = devices.iter().find(|(requested, known)| lent.as_ref().map_or(*requested, |lent| known.is(lent)));
        if let Some((_, known)) = known {
            return Ok(known.clone());
        }
        let device = match lent {
            Some(lent) => Self::of(lent).await?,
            None => Self::request().await?,
        };
        devices.push((own, device.clone()));
        Ok(device)
    }

    async fn of(lent: Lent) -> Result<Self, JsValue> {
        lent.enter();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        lent.leave();
        let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await.map_err(throw)?;
        let (device, queue) = adapter.request_device(&wgpu::DeviceDescriptor::default()).await.map_err(throw)?;
        let gpu = Gpu::new(device, queue);
        let gpu = if lent.subgroups() { gpu.with_subgroups() } else { gpu };
        let (lost, reported) = (lent.lost(), gpu.clone());
        let loss = future_to_promise(async move {
            let reason = JsFuture::from(lost).await?;
            reported.report_loss(reason.as_string().unwrap_or_default());
            Ok(reason)
        });
        Ok(Self { gpu, name: lent.name(), lent, loss })
    }

    fn is(&self, lent: &Lent) -> bool {
        let [own, other]: [&JsValue; 2] = [self.lent.as_ref(), lent.as_ref()];
        own == other
    }

    /// Returns whether it is lost.
    pub fn is_lost(&self) -> bool {
        self.gpu.lost().is_some()
    }

    /// Resolves with the reason when it is lost.
    pub fn loss(&self) -> Promise {
        self.loss.clone()
    }
}

/// An error as JavaScript throws it, with the same text.
pub fn throw(error: impl std::fmt::Display) -> JsValue {
    js_sys::Error::new(&error.to_string()).into()
}
