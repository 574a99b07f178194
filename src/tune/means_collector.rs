//! Sums of keys, values and queries over batches of sample text, on the GPU.

use super::columns::{Columns, Sums, TurnedKeys};
use crate::error::{Error, Result, Thing};
use crate::format::{Means, Shape, partner};
use crate::gpu::{Gpu, Rows};

/// The largest ratio of weights that is kept: beyond it, channels are as good as silent.
const WEIGHTS: f64 = 1024.0;

/// Collects the sums that [`Means`] are made from: of a corpus once, or of a prompt before it is
/// cached.
///
/// ```no_run
/// # async fn f(gpu: wgkv::Gpu, shape: wgkv::Shape, rows: Vec<[wgpu::Buffer; 3]>, tokens: u32) -> wgkv::Result<()> {
/// use wgkv::Rows;
/// use wgkv::learned::MeansCollector;
/// let collector = MeansCollector::new(&gpu, &shape)?;
/// // For every batch of the sample:
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// for (layer, rows) in rows.iter().enumerate() {
///     let [queries, keys, values] = rows.each_ref().map(Rows::f32);
///     collector.add(&mut encoder, layer as u32, queries, keys, values, tokens)?;
/// }
/// gpu.queue().submit([encoder.finish()]);
/// // After the last:
/// let means = collector.finish("my-model").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MeansCollector {
    gpu: Gpu,
    shape: Shape,
    /// By layer: keys, their squares, values, squares of queries.
    layers: Vec<[Columns; 4]>,
    /// Where keys come turned.
    turned: Option<TurnedKeys>,
}

fn wrong<T>(wanted: String, had: u64) -> Result<T> {
    Err(Error::mismatch(Thing::Means, "tokens", wanted, had))
}

impl MeansCollector {
    /// Begins with no tokens.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a shape that is not served.
    pub fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        shape.check()?;
        let columns = |heads: u32, squares| Columns::new(gpu, heads, shape.head_dim, squares);
        let layer = |_| [columns(shape.kv_heads, false), columns(shape.kv_heads, true), columns(shape.kv_heads, false), columns(shape.query_heads, true)];
        Ok(Self { gpu: gpu.clone(), shape: shape.clone(), layers: (0..shape.layers).map(layer).collect(), turned: None })
    }

    /// Takes keys (and queries) that come turned by the shape's RoPE, and turns keys back, of texts
    /// of `tokens` tokens at most. Without it, turned keys give means of no use, which nothing
    /// can tell from others.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for no tokens, or more than 2^30, and [`Error::Limit`] where the device
    /// cannot bind a table for that many.
    pub fn turned_rows(mut self, tokens: u32) -> Result<Self> {
        self.turned = TurnedKeys::new(&self.gpu, &self.shape.rope, tokens)?;
        Ok(self)
    }

    /// Records adding one layer's rows of `rows` tokens: queries `[rows, query_heads, head_dim]`,
    /// keys and values `[rows, kv_heads, head_dim]`, or in another [layout](crate::RowLayout),
    /// queries and keys before RoPE, or [turned](Self::turned_rows) from position 0 on. Nothing is
    /// submitted. Padding must not be among the rows; there may be none.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Mismatch`] for a layout that does not fit and for turned rows of
    /// more tokens than were told, [`Error::Rows`], [`Error::Offset`], [`Error::Usage`], and
    /// [`Error::Limit`] for more rows than one binding holds. What was recorded before an error
    /// counts all the same: then the collector is of no more use.
    pub fn add(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, queries: Rows<'_>, keys: Rows<'_>, values: Rows<'_>, rows: u32) -> Result<()> {
        self.add_from(encoder, layer, 0, queries, keys, values, rows)
    }

    /// Records what [`MeansCollector::add`] does, of tokens from position `first` on (in batched
    /// layouts those of every sequence), which only [turned](Self::turned_rows) rows depend on.
    ///
    /// # Errors
    /// Those of [`MeansCollector::add`].
    #[expect(clippy::too_many_arguments, reason = "three kinds of rows and which they are")]
    pub fn add_from(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        layer: u32,
        first: u32,
        queries: Rows<'_>,
        keys: Rows<'_>,
        values: Rows<'_>,
        rows: u32,
    ) -> Result<()> {
        let [key_columns, key_squares, value_columns, query_squares] =
            self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.shape.layers })?;
        let turned = self.turned.as_ref().map(|turned| turned.from(first));
        for columns in [key_columns, key_squares] {
            columns.add(&self.gpu, encoder, keys, turned, rows)?;
        }
        // Of queries both channels of a pair count together, whose squares' sum does not turn.
        for (columns, input) in [(value_columns, values), (query_squares, queries)] {
            columns.add(&self.gpu, encoder, input, None, rows)?;
        }
        Ok(())
    }

    /// Waits for all submitted work and makes the means and weights of what was added. More may be
    /// added afterwards.
    ///
    /// Rows with a number that is not finite are left out; [`Means::skipped`] counts them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a layer has no finite rows, or another number of tokens than the
    /// first layer, and where sums leave the range of f32; [`Error::Readback`].
    pub async fn finish(&self, model: &str) -> Result<Means> {
        let mut skipped = 0;
        let mut all = None;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (columns, layer) in self.layers.iter().zip(0..) {
            let mut read: [Sums; 4] = Default::default();
            for (sums, columns) in read.iter_mut().zip(columns) {
                *sums = columns.read(&self.gpu).await?;
                if sums.added == 0 {
                    return wrong(format!("1 or more of finite numbers in layer {layer}"), 0);
                }
                let tokens = sums.added + sums.out;
                let all = *all.get_or_insert(tokens);
                if tokens != all {
                    return wrong(format!("{all} in layer {layer}, as in layer 0"), tokens);
                }
            }
            // The same keys are read twice, and left out twice.
            let [keys, _, values, queries] = &read;
            skipped += keys.out + values.out + queries.out;
            layers.push(read);
        }
        from_sums(&self.shape, model, &layers, skipped)
    }
}

/// Makes means from the sums of every layer: of keys, of their squares, of values, of squares of
/// queries.
fn from_sums(shape: &Shape, model: &str, sums: &[[Sums; 4]], skipped: u64) -> Result<Means> {
    let mut layers = Vec::with_capacity(sums.len());
    for [keys, key_squares, values, query_squares] in sums {
        let mean = |sums: &Sums| sums.columns.iter().map(|sum| (sum / sums.added as f64) as f32).collect::<Vec<f32>>();
        let key_means = mean(keys);
        let d = shape.head_dim as usize;
        let mut weights = Vec::with_capacity(key_means.len());
        for head in 0..shape.kv_heads as usize {
            let share = shape.share() as usize;
            // Of the mean before it is rounded to f32: what is left beside a large one would be off
            // by twice the rounding.
            let spread = |i: usize| {
                let at = head * d + i;
                (key_squares.columns[at] / key_squares.added as f64 - (keys.columns[at] / keys.added as f64).powi(2)).max(0.0)
            };
            let queried =
                |i: usize| (0..share).map(|n| query_squares.columns[(head * share + n) * d + i]).sum::<f64>() / (share as f64 * query_squares.added as f64);
            let both = |of: &dyn Fn(usize) -> f64, i: usize| of(i) + partner(shape, i).map_or(0.0, of);
            let ratio: Vec<f64> = (0..d).map(|i| (both(&queried, i) / both(&spread, i)).powf(0.25)).collect();
            // Channels that are silent on either side have no ratio, and get the head's mean.
            let heard = |ratio: &f64| ratio.is_finite() && *ratio > 0.0;
            let logs: Vec<f64> = ratio.iter().filter(|r| heard(r)).map(|r| r.ln()).collect();
            let middle = (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp();
            let bound = WEIGHTS.sqrt();
            weights.extend(ratio.iter().map(|r| if heard(r) { r.clamp(middle / bound, middle * bound) as f32 } else { middle as f32 }));
        }
        layers.push([key_means, weights, mean(values)]);
    }
    let tokens = sums.first().map_or(0, |[keys, ..]| keys.added);
    Ok(Means::new(shape, model, layers)?.counted(tokens, skipped))
}
