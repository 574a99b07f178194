//! Gram matrices of rows, head by head, or of the difference of two buffers of rows, for learning
//! weights that depend on how channels go together.
//!
//! `G[h] = sum of x x^T` over all rows, with `x` the channels of head `h`. The rows are cut into
//! chunks of [`CHUNK`], and the matrix of each is written apart, so that [`sum`] can add them in
//! f64. Each workgroup makes a tile of 16 x 16 numbers and reads its two strips of channels; tiles
//! above the diagonal are copies of those below. Shader: `shaders/gram.wgsl`. Twin:
//! [`reference::gram`](crate::low_level::reference::gram).

use super::{Binding, Kernel, Variant, flag};
use crate::error::{Error, Result, Thing};
use crate::format::{Element, check_head_dim};
use crate::gpu::{Gpu, Rows};

/// Rows of one matrix of `grams`.
pub const CHUNK: u32 = 512;

/// Rows that are summed as a tree before they are added to the running sum.
pub const BLOCK: u32 = 32;

/// Rows, and columns, of a workgroup's tile.
pub const TILE: u32 = 16;

/// `GramParams` of `shaders/gram.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GramParams {
    /// Rows to sum over.
    pub rows: u32,
    /// Heads of a row.
    pub heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "gram",
    source: include_str!("../../shaders/gram.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("rows", Binding::Read), ("minus", Binding::Read), ("grams", Binding::Write)]],
    params_bytes: size_of::<GramParams>(),
    zeroed: false,
};

/// Returns the variant for a head dimension, and for rows alone or their difference from others.
pub fn variant(head_dim: u32, difference: bool) -> Variant {
    Variant::new(&KERNEL, &[], &[("HEAD_DIM", head_dim.into()), flag("DIFFERENCE", difference)])
}

/// Returns the number of chunks that `rows` rows make: matrices a head in `grams`.
pub fn chunks(rows: u32) -> u32 {
    rows.div_ceil(CHUNK)
}

/// Returns how many numbers `grams` has: `[chunks(rows), heads, head_dim, head_dim]`.
fn numbers(rows: u32, heads: u32, head_dim: u32) -> u64 {
    let matrices = u64::from(chunks(rows)) * u64::from(heads);
    matrices.saturating_mul(u64::from(head_dim * head_dim))
}

fn check(heads: u32, head_dim: u32) -> Result<()> {
    check_head_dim(head_dim)?;
    if heads == 0 {
        return Err(Error::argument("heads", "1 or more", heads));
    }
    Ok(())
}

/// Records the Gram matrices of `count` f32 rows of `heads` heads, or of those rows less `minus`,
/// into `grams` (`[chunks(count), heads, head_dim, head_dim]` f32, whose numbers are all written; a
/// head's matrix is the sum of its chunks, which [`sum`] takes). `rows` and `minus` may lie in one
/// buffer.
///
/// A number that is not finite makes the matrix of its head and chunk not finite, which [`sum`]
/// refuses.
///
/// # Errors
/// [`Error::Mismatch`] for a head dimension that is not served, for no heads, for rows that are not
/// f32, and where `grams` is the buffer of the rows (a device cannot read a buffer through one
/// binding and write it through another); [`Error::Limit`] for more rows, matrices or workgroups
/// than the device can bind and dispatch; and [`Error::Rows`], [`Error::Offset`], [`Error::Usage`]
/// for buffers that cannot hold them. Then nothing was recorded.
#[expect(clippy::too_many_arguments, reason = "three buffers and what they hold")]
pub fn record(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    rows: Rows<'_>,
    minus: Option<Rows<'_>>,
    count: u32,
    heads: u32,
    head_dim: u32,
    grams: &wgpu::Buffer,
) -> Result<()> {
    check(heads, head_dim)?;
    for (name, rows) in [("rows", Some(rows)), ("minus", minus)].into_iter().filter_map(|(name, rows)| Some((name, rows?))) {
        if rows.element != Element::F32 {
            return Err(Error::argument(name, "f32", rows.element.name()));
        }
        if rows.buffer == grams {
            return Err(Error::argument("grams", format!("in another buffer than {name}"), "in the same"));
        }
    }
    let capability = gpu.capability();
    // The shader counts numbers in 32 bits.
    let most = capability.binding_bytes.min(4 * u64::from(u32::MAX));
    let row_numbers = (u64::from(count) * u64::from(heads)).saturating_mul(head_dim.into());
    let gram_numbers = numbers(count, heads, head_dim);
    for (reason, numbers) in [("one batch of rows", row_numbers), ("the Gram matrices of one batch", gram_numbers)] {
        let need = numbers.saturating_mul(4);
        if need > most {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason, need, have: most });
        }
    }
    let across = head_dim / TILE;
    let grid = [across * (across + 1) / 2, heads, chunks(count)];
    for (reason, need) in ["tiles of a Gram matrix", "heads of a row", "chunks of one batch of rows"].into_iter().zip(grid) {
        if need > capability.workgroups {
            let (need, have) = (need.into(), capability.workgroups.into());
            return Err(Error::Limit { what: "max_compute_workgroups_per_dimension", reason, need, have });
        }
    }
    if count == 0 {
        return Ok(());
    }
    let row_binding = rows.binding("rows", row_numbers, capability)?;
    // A binding cannot stay empty. Without `minus` the rows are bound there again, and the shader
    // never reads them there.
    let minus_binding = minus.map_or(Ok(row_binding.clone()), |minus| minus.binding("minus", row_numbers, capability))?;
    let gram_binding = Rows::f32(grams).binding("grams", gram_numbers, capability)?;
    let params = gpu.uniform(bytemuck::bytes_of(&GramParams { rows: count, heads, pad: [0; 2] }));
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv gram"), timestamp_writes: None });
    let [rows, minus_rows, grams] = [row_binding, minus_binding, gram_binding].map(wgpu::BindingResource::Buffer);
    let bindings = [params.as_entire_binding(), rows, minus_rows, grams];
    gpu.pipeline(&variant(head_dim, minus.is_some())).dispatch_once(gpu, &mut pass, &bindings, grid);
    Ok(())
}

/// Waits for all submitted work, adds up in f64 the chunks that [`record`] wrote for `count` rows,
/// and returns for each head a matrix of `head_dim * head_dim` numbers, row by row. Without rows
/// the matrices are zeros.
///
/// # Errors
/// [`Error::Mismatch`] for a head dimension that is not served, for no heads, and for a matrix that
/// is not finite, since a row was not or a product of two numbers left the range of f32;
/// [`Error::Rows`] and [`Error::Usage`] where `grams` does not hold that many chunks or was made
/// without `COPY_SRC`; [`Error::Readback`].
pub async fn sum(gpu: &Gpu, grams: &wgpu::Buffer, count: u32, heads: u32, head_dim: u32) -> Result<Vec<Vec<f64>>> {
    check(heads, head_dim)?;
    let words = numbers(count, heads, head_dim);
    let need = words.saturating_mul(4);
    if grams.size() < need {
        return Err(Error::Rows { name: "grams", need, have: grams.size() });
    }
    if !grams.usage().contains(wgpu::BufferUsages::COPY_SRC) {
        return Err(Error::Usage { name: "grams", need: "COPY_SRC" });
    }
    let words = gpu.read(grams, 0, words).await?;
    let numbers: &[f32] = bytemuck::cast_slice(&words);
    let size = (head_dim * head_dim) as usize;
    let mut sums = vec![vec![0.0_f64; size]; heads as usize];
    for (i, matrix) in numbers.chunks_exact(size).enumerate() {
        let head = i % heads as usize;
        for (sum, x) in sums[head].iter_mut().zip(matrix) {
            if !x.is_finite() {
                return Err(Error::mismatch(Thing::Sensitivity, "Gram matrix of the rows or the outputs", "finite", format!("{x} in head {head}")));
            }
            *sum += f64::from(*x);
        }
    }
    Ok(sums)
}
