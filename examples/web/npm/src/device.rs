//! The device of a page, a worker, or another host of JavaScript.

use futures::channel::oneshot;
use js_sys::Promise;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    lost: Arc<AtomicBool>,
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

        let lost = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = oneshot::channel();
        // wgpu wants a function that can be called often and from any thread, for the sake of other platforms.
        let (flag, sender) = (lost.clone(), Mutex::new(Some(sender)));
        gpu.device().set_device_lost_callback(move |reason, message| {
            flag.store(true, Ordering::Relaxed);
            if let Some(sender) = sender.lock().unwrap_or_else(PoisonError::into_inner).take() {
                // The receiver is gone only if nobody waits.
                let _ = sender.send(if message.is_empty() { format!("{reason:?}") } else { message });
            }
        });
        let loss = future_to_promise(async move { Ok(receiver.await.unwrap_or_default().into()) });
        Ok(Self { gpu, name: entered.name(), lost, loss })
    }

    /// Is it lost?
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
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
