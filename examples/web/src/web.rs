//! What the page's worker calls.

use crate::check::{check, exchange};
use crate::codecs::CODECS;
use crate::model::Model;
use crate::picture::Picture;
use crate::session::{Message, Session, Settings};
use js_sys::{Array, Error, Float32Array, Function, Promise, Uint8Array};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wgkv_npm::{Device, throw};

/// Models on a device, and the text or the conversation that is being written.
#[wasm_bindgen]
pub struct Demo {
    device: Device,
    /// The page's own model.
    own: Option<Rc<Model>>,
    model: Option<Rc<Model>>,
    session: Option<Session>,
}

fn json(value: &impl serde::Serialize) -> Result<String, JsValue> {
    serde_json::to_string(value).map_err(throw)
}

/// The codecs with their bits, as JSON.
///
/// # Errors
/// None: the list can be written.
#[wasm_bindgen]
pub fn codecs() -> Result<String, JsValue> {
    json(&CODECS)
}

#[wasm_bindgen]
impl Demo {
    /// Makes a device.
    ///
    /// # Errors
    /// What is missing.
    pub async fn open() -> Result<Self, JsValue> {
        Ok(Self { device: Device::request().await?, own: None, model: None, session: None })
    }

    /// Reads the files of a folder, which becomes the page's own model. Returns it in numbers, as
    /// JSON.
    ///
    /// # Errors
    /// What is wrong with them.
    pub async fn read(&mut self, config: Vec<u8>, tokenizer: Vec<u8>, weights: Vec<u8>, order: Vec<u8>, means: Vec<u8>) -> Result<String, JsValue> {
        let model = Model::from_parts(&self.device.gpu, &config, &tokenizer, weights, &order, &means).await.map_err(throw)?;
        self.own = Some(Rc::new(model));
        self.take_own()
    }

    /// Goes back to the page's own model. Returns it in numbers, as JSON.
    ///
    /// # Errors
    /// Where there is none.
    pub fn take_own(&mut self) -> Result<String, JsValue> {
        let own = self.own.clone().ok_or_else(|| throw("no model was loaded"))?;
        self.take(own)
    }

    /// Opens a GGUF file of this length, of which `read` returns some bytes from a place on. Returns
    /// the model in numbers, as JSON. Where it cannot be opened, the model before it stays.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn open_file(&mut self, name: String, length: f64, read: Function) -> Result<String, JsValue> {
        let read = move |start: u64, bytes: &mut [u8]| {
            let failed = |error: JsValue| std::io::Error::other(String::from(Error::from(error).message()));
            let got = read.call2(&JsValue::NULL, &(start as f64).into(), &(bytes.len() as f64).into()).map_err(failed)?;
            let got = Uint8Array::from(got);
            if got.length() as usize != bytes.len() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            got.copy_to(bytes);
            Ok(())
        };
        let model = Model::from_gguf(&self.device.gpu, &name, length as u64, read).await.map_err(throw)?;
        self.take(Rc::new(model))
    }

    fn take(&mut self, model: Rc<Model>) -> Result<String, JsValue> {
        self.end();
        let about = json(&model.about())?;
        self.model = Some(model);
        Ok(about)
    }

    /// Ends the text, and gives its memory back.
    fn end(&mut self) {
        if let Some(session) = self.session.take() {
            session.destroy();
        }
    }

    /// The device in words.
    pub fn device(&self) -> String {
        let capability = self.device.gpu.capability();
        let subgroups = capability.subgroups.map_or("no subgroups".to_owned(), |(least, most)| format!("subgroups of {least} to {most}"));
        let halves = if capability.halves { "f16" } else { "no f16" };
        format!("{}, {subgroups}, {halves}", self.device.name)
    }

    /// Resolves with the reason when the device is lost.
    pub fn lost(&self) -> Promise {
        self.device.loss()
    }

    /// Takes the device away, as a crash of its driver would.
    pub fn lose(&self) {
        self.device.gpu.device().destroy();
    }

    /// Begins a text. Returns the cache's plan in words.
    ///
    /// # Errors
    /// What is wrong with the settings or the prompt.
    pub async fn begin(&mut self, settings: String, prompt: String) -> Result<String, JsValue> {
        let (model, settings) = self.settings(&settings)?;
        let session = Session::new(model, &settings, &prompt).await.map_err(throw)?;
        Ok(self.session.insert(session).plan())
    }

    /// Begins a conversation, in which nothing is said yet. Returns the cache's plan in words.
    ///
    /// # Errors
    /// What is wrong with the settings, or a model without a chat template.
    pub async fn begin_chat(&mut self, settings: String) -> Result<String, JsValue> {
        let (model, settings) = self.settings(&settings)?;
        let session = Session::conversation(model, &settings).await.map_err(throw)?;
        Ok(self.session.insert(session).plan())
    }

    /// Ends what was, so that its memory is there for what begins.
    fn settings(&mut self, settings: &str) -> Result<(Rc<Model>, Settings), JsValue> {
        self.end();
        let settings = serde_json::from_str(settings).map_err(throw)?;
        Ok((self.model.clone().ok_or_else(|| throw("no model was loaded"))?, settings))
    }

    /// Takes all messages of a conversation, as JSON, to be answered by [`Demo::advance`].
    ///
    /// # Errors
    /// Those of the template, and messages that leave no room for an answer.
    pub fn say(&mut self, messages: &str) -> Result<(), JsValue> {
        let messages: Vec<Message> = serde_json::from_str(messages).map_err(throw)?;
        self.session()?.say(&messages).map_err(throw)
    }

    /// Ends a text or an answer where it stands.
    ///
    /// # Errors
    /// Those of the library.
    pub fn stop(&mut self) -> Result<(), JsValue> {
        self.session()?.stop().map_err(throw)
    }

    fn session(&mut self) -> Result<&mut Session, JsValue> {
        self.session.as_mut().ok_or_else(|| throw("no text was begun"))
    }

    /// Reads on in the prompt, or adds a token. Returns where the session stands, as JSON.
    ///
    /// # Errors
    /// Those of the library.
    pub async fn advance(&mut self) -> Result<String, JsValue> {
        json(&self.session()?.advance().await.map_err(throw)?)
    }

    /// One head's keys: a description as JSON, then the numbers of each map.
    ///
    /// # Errors
    /// Where there are none yet.
    pub async fn picture(&self, layer: usize, head: usize) -> Result<Array, JsValue> {
        let session = self.session.as_ref().ok_or_else(|| throw("no text was begun"))?;
        let picture: Picture = session.picture(layer, head).await.map_err(throw)?;
        let all = Array::of1(&json(&picture)?.into());
        for map in &picture.maps {
            all.push(&Float32Array::from(map.numbers.as_slice()));
        }
        Ok(all)
    }

    /// Compares the GPU with the kernels' CPU twins. Returns the report as JSON.
    ///
    /// # Errors
    /// Those of the library.
    pub async fn check(&self, codec: String, bits: u32) -> Result<String, JsValue> {
        let codec = codec.parse().map_err(throw)?;
        json(&check(&self.device.gpu, codec, bits, 1).await.map_err(throw)?)
    }

    /// Loads a snapshot that another device made, and goes on from it. Returns the report as JSON.
    ///
    /// # Errors
    /// Those of the library.
    pub async fn exchange(&self, codec: String, bits: u32, bytes: Vec<u8>) -> Result<String, JsValue> {
        let codec = codec.parse().map_err(throw)?;
        json(&exchange(&self.device.gpu, codec, bits, 1, &bytes).await.map_err(throw)?)
    }

    /// Compiles the kernels that use subgroups, if the device has them. Returns how many.
    ///
    /// # Errors
    /// The compiler's message.
    pub async fn compile_subgroups(&self) -> Result<usize, JsValue> {
        use wgkv::low_level::{Reduce, kernel};
        use wgkv::{Capability, Capacity, ChannelOrder, Codec, Plan, Protection, Rope, Shape};
        let gpu = &self.device.gpu;
        if gpu.capability().subgroups.is_none() {
            return Ok(0);
        }
        // As if every subgroup had 32 lanes, which the kernels ask for: compiled, not run.
        let shape = Shape { layers: 1, query_heads: 8, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) };
        let mut count = 0;
        for choice in CODECS {
            let format = crate::codecs::format(choice.codec, choice.bits[0]).map_err(throw)?;
            let capability = Capability { subgroups: Some((32, 32)), ..*gpu.capability() };
            let builder = Plan::builder(shape.clone(), format).protection(Protection::NONE).capacity(Capacity::tokens(1, 128));
            // Any order has the kernels of the learned one.
            let builder = if format.codec() == Codec::RotateKv {
                builder.learned(ChannelOrder::natural(&shape, format.heads_per_group(shape.kv_heads)).map_err(throw)?)
            } else {
                builder
            };
            let plan = builder.build(&capability).map_err(throw)?;
            if plan.reduce() == Reduce::Subgroup {
                gpu.prepare(&plan).await.map_err(throw)?;
                count += kernel::variants(&plan).iter().filter(|variant| variant.subgroups).count();
            }
        }
        Ok(count)
    }
}
