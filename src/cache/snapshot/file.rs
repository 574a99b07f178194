//! Snapshots as safetensors. [`Cache::save`](crate::Cache::save) documents their contents.

use super::{page_words, rows};
use crate::cache::sequence::Standing;
use crate::error::{Error, Result, Thing};
use crate::format::PAGE_TOKENS;
use crate::format::file::{Contents, Envelope, Tensor};
use crate::format::tensors;
use crate::plan::Plan;
use safetensors::tensor::Dtype;

const FORMAT: &str = "wgkv-snapshot";
const VERSION: &str = "1";

/// Bytes of the header at most, by layer: the tensors' names, shapes, places and checksums take
/// less than half of it.
const HEADER_BYTES: usize = 2048;

/// What a sequence has in one layer: words, or their bytes.
#[derive(Debug)]
pub(super) struct Tensors<T> {
    pub pages: T,
    pub key_scales: T,
    pub rows: T,
    pub sinks: T,
}

/// Returns name, type and shape of each of a layer's tensors.
fn shapes(plan: &Plan, standing: &Standing, layer: u32) -> [(String, Dtype, Vec<usize>); 4] {
    let shape = plan.shape();
    let pages = standing.pages() as usize;
    let rows: u32 = rows(plan, standing).iter().map(|rows| rows.end - rows.start).sum();
    let sinks = if plan.elects() { 3 * plan.sinks() } else { 0 };
    [
        ("pages", Dtype::U32, vec![pages, page_words(plan, layer)]),
        ("key_scales", Dtype::U32, vec![pages, plan.layout_of(layer).row_scale_bytes() as usize / 4]),
        ("rows", Dtype::F16, vec![shape.kv_heads as usize, rows as usize, 2, shape.head_dim as usize]),
        ("sinks", Dtype::U32, vec![sinks as usize]),
    ]
    .map(|(name, dtype, shape)| (format!("{name}.{layer}"), dtype, shape))
}

fn error(name: impl Into<std::borrow::Cow<'static, str>>, wanted: impl ToString, had: impl ToString) -> Error {
    Error::mismatch(Thing::Snapshot, name, wanted, had)
}

/// Calls `of` with the envelope of the snapshots of a plan.
fn with_envelope<T>(plan: &Plan, of: impl FnOnce(&Envelope<'_>) -> Result<T>) -> Result<T> {
    let learned = plan.learned_fingerprint().unwrap_or_else(|| "none".to_owned());
    let fixed = &[("format", FORMAT), ("version", VERSION), ("plan", &plan.fingerprint()), ("calibration", &learned)];
    let header_bytes = HEADER_BYTES * (1 + plan.shape().layers as usize);
    of(&Envelope { thing: Thing::Snapshot, fixed, file_bytes: usize::MAX, header_bytes, hashes_tensors: false })
}

/// Returns the file of a sequence, from each layer's words.
pub(super) fn to_bytes(plan: &Plan, standing: &Standing, layers: &[Tensors<Vec<u32>>]) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for (layer, words) in (0..).zip(layers) {
        let words = [&words.pages, &words.key_scales, &words.rows, &words.sinks];
        tensors.extend(shapes(plan, standing, layer).into_iter().zip(words).filter(|(_, words)| !words.is_empty()));
    }
    let checksums: Vec<(String, String)> =
        tensors.iter().map(|((name, ..), words)| (format!("sha256.{name}"), tensors::checksum(bytemuck::cast_slice(words)))).collect();
    let mut numbers = vec![
        ("tokens", standing.tokens),
        ("packed", standing.packed),
        ("limit", standing.limit),
        ("before_tokens", standing.before.0),
        ("before_limit", standing.before.1),
    ];
    if standing.dropped > 0 {
        numbers.push(("dropped", standing.dropped));
    }
    if standing.headless {
        numbers.push(("headless", 1));
    }
    let numbers: Vec<(&str, String)> = numbers.into_iter().map(|(name, number)| (name, number.to_string())).collect();
    let texts = numbers.iter().map(|(name, number)| (*name, number.as_str())).chain(checksums.iter().map(|(name, sum)| (name.as_str(), sum.as_str())));
    let tensors: Vec<Tensor<'_>> =
        tensors.iter().map(|((name, dtype, shape), words)| (name.as_str(), *dtype, shape.clone(), bytemuck::cast_slice(words))).collect();
    with_envelope(plan, |envelope| envelope.write(texts, &tensors))
}

/// Returns where a saved sequence stands, and the bytes of each layer's tensors; empty for those
/// that it does not have.
pub(super) fn from_bytes<'a>(plan: &Plan, bytes: &'a [u8]) -> Result<(Standing, Vec<Tensors<&'a [u8]>>)> {
    with_envelope(plan, |envelope| read(plan, &envelope.read(bytes)?))
}

fn read<'a>(plan: &Plan, file: &Contents<'_, 'a>) -> Result<(Standing, Vec<Tensors<&'a [u8]>>)> {
    let number = |name| file.number::<u32>(name);
    let before = (number("before_tokens")?, number("before_limit")?);
    let may = |name| if file.find(name).is_some() { number(name) } else { Ok(0) };
    let (dropped, headless) = (may("dropped")?, may("headless")? > 0);
    let standing = Standing { tokens: number("tokens")?, packed: number("packed")?, dropped, headless, limit: number("limit")?, before };
    let least = plan.packed(standing.tokens);
    if !(least..=standing.tokens).contains(&standing.packed) {
        return Err(error("packed", format!("{least} to {} for as many tokens", standing.tokens), standing.packed));
    }
    let full = standing.packed / PAGE_TOKENS;
    if dropped > full {
        return Err(error("dropped", format!("{full} pages at most for as many packed tokens"), dropped));
    }
    if headless && (dropped == 0 || plan.elects()) {
        return Err(error("headless", "0 where pages are not gone, or sinks elected", 1));
    }

    let mut all = Vec::new();
    let mut layers = Vec::new();
    for layer in 0..plan.shape().layers {
        let mut tensor = |(name, dtype, shape): (String, Dtype, Vec<usize>)| {
            if shape.contains(&0) {
                return Ok(&[][..]);
            }
            let bytes = file.tensor(&name, dtype, &shape)?;
            all.push(bytes);
            let name = format!("sha256.{name}");
            let (had, told) = (tensors::checksum(bytes), file.text(&name)?);
            if had == told { Ok(bytes) } else { Err(error(name, format!("{had}, that of the tensor"), format!("{told:?}"))) }
        };
        let [pages, key_scales, rows, sinks] = shapes(plan, &standing, layer).map(&mut tensor);
        layers.push(Tensors { pages: pages?, key_scales: key_scales?, rows: rows?, sinks: sinks? });
    }
    file.check(&all)?;
    Ok((standing, layers))
}
