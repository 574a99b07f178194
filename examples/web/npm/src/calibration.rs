//! What codecs learn from sample text, for `index.js`.

use crate::cache::{Recording, whole};
use crate::device::{Device, Doubts, throw};
use crate::options::parse;
use crate::rows::{Argument, Place, Placed, Places};
use js_sys::Uint8Array;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use wgkv::learned::{MeansCollector, OrderCollector, Reach};
use wgkv::{Codec, Error, Shape};

enum Collector {
    Means(MeansCollector),
    Order(OrderCollector),
}

/// What a codec learns from sample text.
#[wasm_bindgen]
pub struct Collecting {
    device: Device,
    shape: Shape,
    collector: Rc<Collector>,
    places: Places,
    doubts: Doubts,
}

#[wasm_bindgen]
impl Collecting {
    /// Allocates the sums.
    pub async fn open(options: String, device: JsValue) -> Result<Self, JsValue> {
        let options = parse(&options).map_err(throw)?;
        let (codec, shape) = (options.codec().map_err(throw)?, options.shape().map_err(throw)?);
        let device = Device::shared(&device).await?;
        let collector = match codec {
            Codec::Centred => Collector::Means(MeansCollector::new(&device.gpu, &shape).map_err(throw)?),
            Codec::RotateKv => Collector::Order(OrderCollector::new(&device.gpu, &shape, options.heads_per_group()).map_err(throw)?),
            _ => return Err(throw(Error::argument("codec", "centred or rotate-kv, which learn", codec))),
        };
        let doubts = device.lent.doubts();
        Ok(Self { device, shape, collector: Rc::new(collector), places: Places::new(), doubts })
    }

    /// Adds one layer's rows: queries, keys and values.
    pub fn add(&self, layer: &JsValue, rows: Vec<JsValue>, tokens: &JsValue, encoder: &JsValue) -> Result<(), JsValue> {
        if let Some(refused) = self.doubts.take() {
            return Err(throw(refused));
        }
        let (layer, tokens) = (whole("layer", layer, self.shape.layers)?, whole("tokens", tokens, u32::MAX)?);
        let Shape { query_heads, kv_heads, head_dim, .. } = self.shape;
        let kinds = [("queries", query_heads, Place::Queries), ("keys", kv_heads, Place::Keys), ("values", kv_heads, Place::Values)];
        let mut arguments = Vec::with_capacity(kinds.len());
        for ((name, heads, place), value) in kinds.into_iter().zip(&rows) {
            // RotateKV learns from keys alone.
            if matches!(*self.collector, Collector::Order(_)) && name != "keys" {
                continue;
            }
            let argument = Argument::new(&self.device, name, value)?;
            argument.expect_beside(encoder)?;
            if let Some(given) = argument.tokens(heads * head_dim)?.filter(|given| *given != tokens) {
                return Err(throw(format!("{name} must be of {tokens} tokens, but are of {given}")));
            }
            argument.expect(&self.device, u64::from(tokens) * u64::from(heads * head_dim))?;
            arguments.push((place, argument));
        }
        self.places.forget();
        let placed = arguments.iter().map(|(place, argument)| self.places.place(&self.device, *place, argument)).collect::<Result<Vec<_>, _>>()?;
        let recording = Recording { device: &self.device, encoder, what: "add", doubts: &self.doubts, fatal: true };
        let arguments = arguments.into_iter().map(|(_, argument)| argument).collect();
        let recorded = recording.run(arguments, |encoder| match (&*self.collector, &placed[..]) {
            (Collector::Means(means), [queries, keys, values]) => means.add(encoder, layer, queries.rows(), keys.rows(), values.rows(), tokens),
            (Collector::Order(order), [keys]) => order.add(encoder, layer, keys.rows(), tokens),
            (_, placed) => Err(Error::argument("rows", "queries, keys and values", placed.len())),
        });
        placed.into_iter().for_each(Placed::release);
        recorded
    }

    /// What was learned, a promise of a `Uint8Array`.
    pub fn finish(&self, model: String) -> js_sys::Promise {
        let collector = Rc::clone(&self.collector);
        future_to_promise(async move {
            let bytes = match &*collector {
                Collector::Means(means) => means.finish(&model).await.and_then(|means| means.to_bytes()),
                Collector::Order(order) => order.finish(&model, Reach::Global).await.and_then(|order| order.to_bytes()),
            };
            Ok(Uint8Array::from(bytes.map_err(throw)?.as_slice()).into())
        })
    }

    /// Gives the memory of arrays back at once.
    pub fn destroy(self) {
        self.places.destroy();
    }
}
