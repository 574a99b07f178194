//! The device of a page, a worker, or another host of JavaScript.

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use wgkv::Gpu;

#[wasm_bindgen(module = "/src/adapter.js")]
extern "C" {
    type Entered;

    #[wasm_bindgen(catch)]
    async fn enter() -> Result<Entered, JsValue>;

    #[wasm_bindgen(method)]
    fn leave(this: &Entered) -> bool;

    #[wasm_bindgen(method, getter)]
    fn name(this: &Entered) -> String;
}

/// A device, and when it is lost.
#[derive(Clone, Debug)]
pub struct Device {
    /// The device.
    pub gpu: Gpu,
    /// The adapter's name, as far as the browser tells.
    pub name: String,
    loss: Promise,
}

impl Device {
    /// Makes one with all limits of its adapter, with halves and subgroups where they are to be had.
    ///
    /// # Errors
    /// An `Error` of JavaScript that says what is missing: WebGPU, an adapter, or the device.
    pub async fn request() -> Result<Self, JsValue> {
        let entered = enter().await?;
        let gpu = Gpu::request().await;
        let subgroups = entered.leave();
        let gpu = gpu.map_err(throw)?;
        let gpu = if subgroups { gpu.with_subgroups() } else { gpu };

        let lost = gpu.until_lost();
        let loss = future_to_promise(async move { Ok(lost.await.into()) });
        Ok(Self { gpu, name: entered.name(), loss })
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
