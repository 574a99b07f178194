//! Snapshots: a sequence as bytes, and back, in any cache that stores tokens the same way.

mod clear;
mod file;

use super::Cache;
use crate::cache::pool::Live;
use crate::cache::sequence::{Sequence, Standing};
use crate::error::Result;
use crate::gpu::trace::event;
use crate::gpu::{Gpu, enough};
use crate::plan::Plan;
use file::Tensors;
use futures::FutureExt;
use std::ops::Range;

/// A run of words in a layer's buffer of one slab, `[page, slab head, word]`, and of the same in a
/// snapshot, `[page, head, word]`.
struct Run {
    slab: usize,
    /// The page among those that the sequence holds.
    page: u32,
    in_slab: Range<usize>,
    in_snapshot: Range<usize>,
}

/// Returns the words of a page over all heads of a layer.
fn page_words(plan: &Plan, layer: u32) -> usize {
    plan.slabs(layer).iter().map(|slab| slab.layout().words() * slab.heads().len()).sum()
}

/// Returns the runs of a layer's first `pages` pages, a head at a time. Which heads share a slab
/// depends on the device, so a snapshot has them in their own order.
fn runs(plan: &Plan, layer: u32, pages: u32) -> Vec<Run> {
    let slabs = plan.slabs(layer);
    let mut firsts = vec![0; plan.shape().kv_heads as usize];
    let mut at = 0;
    for (head, first) in (0..).zip(&mut firsts) {
        *first = at;
        at += slabs.iter().find(|slab| slab.heads().contains(&head)).map_or(0, |slab| slab.layout().words());
    }
    let mut runs = Vec::new();
    for (slab, heads) in slabs.iter().enumerate() {
        let words = heads.layout().words();
        for page in 0..pages {
            for (n, head) in heads.heads().iter().enumerate() {
                let from = (page as usize * heads.heads().len() + n) * words;
                let to = page as usize * at + firsts[*head as usize];
                runs.push(Run { slab, page, in_slab: from..from + words, in_snapshot: to..to + words });
            }
        }
    }
    runs
}

/// Returns the f16 rows of a head that a sequence uses, in the order of a snapshot: those of its
/// sinks, then those of the tokens that no page holds.
fn rows(plan: &Plan, standing: &Standing) -> Vec<Range<u32>> {
    let sinks = plan.sinks();
    let kept = match () {
        () if standing.headless => 0,
        () if plan.elects() => sinks,
        () => sinks.min(standing.tokens),
    };
    let ring = plan.ring();
    let first = standing.packed.max(plan.unpacked()).min(standing.tokens);
    // The rows in use may begin in the middle of the ring and wrap to its start.
    let place = first.checked_rem(ring).unwrap_or(0);
    let end = if ring == 0 { 0 } else { place + (standing.tokens - first) };
    let rows = [0..kept, sinks + place..sinks + end.min(ring), sinks..sinks + end.saturating_sub(ring)];
    rows.into_iter().filter(|rows| !rows.is_empty()).collect()
}

/// Returns the byte ranges of one layer's buffers that a sequence uses, in the order of
/// [`Layer::buffers`](super::buffers::Layer::buffers), without empty pieces.
fn pieces(plan: &Plan, layer: u32, live: &Live, slot: u32) -> Vec<Vec<Range<u64>>> {
    let shape = plan.shape();
    let by_page = |bytes: u64| live.pages.iter().map(|page| u64::from(*page) * bytes..(u64::from(*page) + 1) * bytes).collect();
    let mut pieces: Vec<Vec<Range<u64>>> = plan.slabs(layer).iter().map(|slab| by_page(slab.layout().bytes() * u64::from(slab.count()))).collect();
    let row = 4 * u64::from(shape.head_dim);
    let heads = u64::from(slot * shape.kv_heads)..u64::from((slot + 1) * shape.kv_heads);
    let rows = rows(plan, &live.at);
    let head_rows = u64::from(plan.sinks() + plan.ring());
    let of_head = |head: u64| rows.iter().map(move |rows| (head * head_rows + u64::from(rows.start)) * row..(head * head_rows + u64::from(rows.end)) * row);
    pieces.push(heads.flat_map(of_head).collect());
    pieces.push(by_page(plan.layout_of(layer).row_scale_bytes()));
    let elected = if plan.elects() { 12 * u64::from(plan.sinks()) } else { 0 };
    let first = 4 * u64::from(plan.elected_at()) + u64::from(slot) * elected;
    pieces.push(std::iter::once(first..first + elected).collect());
    pieces.iter_mut().for_each(|pieces| pieces.retain(|piece| !piece.is_empty()));
    pieces
}

/// Checks that these are the bytes of a snapshot of `tokens` tokens that a cache of this plan would
/// load.
#[cfg(feature = "store")]
pub(crate) fn check_snapshot(plan: &Plan, tokens: usize, bytes: &[u8]) -> Result<()> {
    use crate::error::{Error, Thing};
    let (standing, _) = file::from_bytes(plan, bytes)?;
    if standing.tokens as usize == tokens {
        return Ok(());
    }
    Err(Error::mismatch(Thing::Snapshot, "tokens", format!("{tokens}, as many as it is stored for"), standing.tokens))
}

/// What a snapshot holds, once its bytes were checked.
pub(crate) struct Opened<'a> {
    pub standing: Standing,
    layers: Vec<Tensors<&'a [u8]>>,
    /// Of the whole file.
    #[cfg(feature = "tracing")]
    bytes: usize,
}

/// A sequence being copied to the host.
pub(crate) struct Staged {
    gpu: Gpu,
    plan: Plan,
    standing: Standing,
    /// By layer and buffer, in the order of [`pieces`]; none for a buffer that the sequence has
    /// nothing in.
    layers: Vec<Vec<Option<wgpu::Buffer>>>,
}

impl Staged {
    /// Waits for the copies and puts the file together.
    pub async fn finish(self) -> Result<Vec<u8>> {
        let pages = self.standing.pages();
        let mut layers = Vec::with_capacity(self.layers.len());
        for (layer, buffers) in (0..).zip(self.layers) {
            let mut words = Vec::with_capacity(buffers.len());
            for buffer in buffers {
                words.push(match buffer {
                    Some(buffer) => self.gpu.fetch(&buffer).await?,
                    None => Vec::new(),
                });
            }
            let mut others = words.split_off(self.plan.slabs(layer).len()).into_iter();
            let mut next = || others.next().unwrap_or_default();
            let (rows, key_scales, sinks) = (next(), next(), next());
            let mut tensors = Tensors { pages: vec![0; pages as usize * page_words(&self.plan, layer)], key_scales, rows, sinks };
            for run in runs(&self.plan, layer, pages) {
                tensors.pages[run.in_snapshot].copy_from_slice(&words[run.slab][run.in_slab]);
            }
            clear::clear(&self.plan, layer, &self.standing, &mut tensors);
            layers.push(tensors);
        }
        let bytes = file::to_bytes(&self.plan, &self.standing, &layers)?;
        event!(DEBUG, tokens = self.standing.tokens, bytes = bytes.len(), "saved");
        Ok(bytes)
    }
}

impl Cache {
    /// Returns a sequence as the bytes of a safetensors file, which [`Cache::load`] turns into a
    /// sequence of this or another cache, on this or another device, bit for bit.
    ///
    /// The bytes are those that the sequence holds after all work submitted so far. This call
    /// submits the copy, not the future, so the cache can be used in the meantime. The last step
    /// must have been appended in every layer (or brought no tokens of the sequence), and submitted.
    /// Until the future is done, the device
    /// has a copy of the sequence in memory that the host can read.
    ///
    /// | tensor | type, shape | what |
    /// |---|---|---|
    /// | `pages.LAYER` | U32 `[pages, words]` | codes and scales: a page's KV heads in their order, each as its [`PageLayout`](crate::low_level::PageLayout) says |
    /// | `key_scales.LAYER` | U32 `[pages, words]` | for RotateKV: key scales of groups over all heads |
    /// | `rows.LAYER` | F16 `[kv_heads, rows, 2, head_dim]` | keys and values of the sinks, then of the tokens that no page holds, by position; as attention reads them |
    /// | `sinks.LAYER` | U32 `[3 * sinks]` | for elected sinks: the token of each row, then magnitude (as bits of f32) and token of the largest so far |
    ///
    /// A tensor without elements is left out. Places that no token of the sequence has are zeros,
    /// so nothing of other sequences, or of tokens beyond, gets into the bytes. Metadata: `format`,
    /// `version`, `plan` and `calibration` (the fingerprints of the [plan](Plan::fingerprint) and
    /// of what the codec [learned](crate::learned::Learned::fingerprint), or `none`), `tokens`,
    /// where the sequence stands (`packed`, `limit`, `before_tokens`, `before_limit`, and if they
    /// apply `dropped`, the number of pages that it [slid](Cache::slide) beyond, and `headless`, 1
    /// where it [never had](Cache::begin_at) its first tokens), a `sha256.NAME` for each tensor,
    /// and `hash`, the SHA-256 over all others. The hashes find damage, not forgery: anyone who can
    /// write the bytes can also write the hashes.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence), [`Error::Torn`](crate::Error::Torn),
    /// [`Error::Order`](crate::Error::Order) before the step was appended in every layer,
    /// [`Error::Readback`](crate::Error::Readback), [`Error::Lost`](crate::Error::Lost),
    /// [`Error::Memory`](crate::Error::Memory) for that copy.
    pub fn save(&self, sequence: Sequence) -> impl Future<Output = Result<Vec<u8>>> + use<> {
        let staged = self.tokens(sequence).and_then(|tokens| self.stage(sequence, tokens, None));
        async { staged?.finish().await }
    }

    /// Returns what [`Cache::save`] would, for a sequence's first `tokens` tokens, as if it had
    /// been [cut back](Cache::truncate) to them.
    ///
    /// # Errors
    /// Those of [`Cache::save`], [`Error::Range`](crate::Error::Range) and
    /// [`Error::Dropped`](crate::Error::Dropped).
    pub fn save_prefix(&self, sequence: Sequence, tokens: u32) -> impl Future<Output = Result<Vec<u8>>> + use<> {
        let staged = self.stage(sequence, tokens, None);
        async { staged?.finish().await }
    }

    /// Refuses a sequence whose tokens of the open step some layer was not given.
    pub(crate) fn expect_saved(&self, sequence: Sequence) -> Result<()> {
        self.expect_appended("Cache::save", sequence, 0..self.plan.shape().layers)
    }

    /// Submits the copy of a sequence's first `tokens` tokens, as if it had slid, if `keep` says so.
    pub(crate) fn stage(&self, sequence: Sequence, tokens: u32, keep: Option<u32>) -> Result<Staged> {
        self.gpu.alive()?;
        let mut live = self.pool.find(sequence)?.cut(tokens)?;
        self.expect_saved(sequence)?;
        if let Some(keep) = keep {
            live.slide(keep);
        }
        let by_layer: Vec<_> = (0..).zip(&self.buffers.layers).map(|(n, layer)| (layer, pieces(&self.plan, n, &live, sequence.slot()))).collect();
        let need = by_layer.iter().flat_map(|(_, pieces)| pieces).flatten().map(|piece| piece.end - piece.start).sum();
        let scope = self.gpu.watch_memory();
        let staging = |pieces: &Vec<_>| (!pieces.is_empty()).then(|| self.gpu.staging(pieces));
        let layers: Vec<Vec<_>> = by_layer.iter().map(|(_, pieces)| pieces.iter().map(staging).collect()).collect();
        // Browsers report later whether there was memory. Without it the copies fail, which the
        // device's error handlers need not see, and so does reading back.
        enough(scope, need).now_or_never().unwrap_or(Ok(()))?;
        let _scope = self.gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv save") });
        for ((layer, pieces), staging) in by_layer.iter().zip(&layers) {
            for ((buffer, pieces), staging) in layer.buffers().zip(pieces).zip(staging) {
                if let Some(staging) = staging {
                    Gpu::gather(&mut encoder, buffer, pieces, staging);
                }
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(Staged { gpu: self.gpu.clone(), plan: self.plan.clone(), standing: live.at, layers })
    }

    /// Begins a sequence that holds what a snapshot holds, copied by commands on `encoder`. It goes
    /// on as the saved one would have: the same tokens give the same cache and the same attention,
    /// bit for bit on the same device.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for bytes that are damaged, of another version
    /// or plan, or saved with other learned data; [`Error::Sequences`](crate::Error::Sequences),
    /// [`Error::Pages`](crate::Error::Pages) and [`Error::Length`](crate::Error::Length) where
    /// there is no room; [`Error::Lost`](crate::Error::Lost). Then nothing has changed.
    pub fn load(&mut self, encoder: &mut wgpu::CommandEncoder, bytes: &[u8]) -> Result<Sequence> {
        let opened = self.open_snapshot(bytes)?;
        self.load_opened(encoder, opened)
    }

    /// Checks the bytes of a snapshot, and that there is room for what it holds.
    pub(crate) fn open_snapshot<'a>(&self, bytes: &'a [u8]) -> Result<Opened<'a>> {
        self.gpu.alive()?;
        let (standing, layers) = file::from_bytes(&self.plan, bytes)?;
        self.pool.expect_adopt(&self.plan, &standing)?;
        Ok(Opened {
            standing,
            layers,
            #[cfg(feature = "tracing")]
            bytes: bytes.len(),
        })
    }

    /// Begins a sequence that holds what a snapshot of this cache's plan holds.
    pub(crate) fn load_opened(&mut self, encoder: &mut wgpu::CommandEncoder, opened: Opened<'_>) -> Result<Sequence> {
        let Opened { standing, layers, .. } = opened;
        let need = standing.pages();
        let sequence = self.pool.adopt(&self.plan, standing)?;
        let live = self.pool.find(sequence)?;
        for ((n, layer), tensors) in (0..).zip(&self.buffers.layers).zip(layers) {
            let slabs = self.plan.slabs(n).iter();
            let mut pages: Vec<Vec<u8>> = slabs.map(|slab| vec![0; need as usize * 4 * slab.layout().words() * slab.heads().len()]).collect();
            for run in runs(&self.plan, n, need) {
                let bytes = |words: Range<usize>| 4 * words.start..4 * words.end;
                pages[run.slab][bytes(run.in_slab)].copy_from_slice(&tensors.pages[bytes(run.in_snapshot)]);
            }
            let contents = pages.iter().map(Vec::as_slice).chain([tensors.rows, tensors.key_scales, tensors.sinks]);
            for ((buffer, pieces), contents) in layer.buffers().zip(pieces(&self.plan, n, live, sequence.slot())).zip(contents) {
                self.write_pieces(encoder, buffer, &pieces, contents);
            }
        }
        event!(DEBUG, tokens = live.at.tokens, bytes = opened.bytes, pages = need, pages_free = self.free_pages(), "loaded");
        Ok(sequence)
    }

    /// Records the copy of bytes to pieces of a buffer, one after another.
    fn write_pieces(&self, encoder: &mut wgpu::CommandEncoder, buffer: &wgpu::Buffer, pieces: &[Range<u64>], contents: &[u8]) {
        if pieces.is_empty() {
            return;
        }
        let staging = self.gpu.filled("wgkv load", contents, wgpu::BufferUsages::COPY_SRC);
        let mut at = 0;
        for piece in pieces {
            let bytes = piece.end - piece.start;
            encoder.copy_buffer_to_buffer(&staging, at, buffer, piece.start, bytes);
            at += bytes;
        }
    }
}
