//! RotateKV's rotations folded into a model's weights, for engines that own them and their cache.
//!
//! RotateKV (2501.16383) section 4 and Figure 3: `Wk' = P B Wk`, `Wv' = H Wv` by KV head,
//! `Wo' = Wo H` by query head, with `B` the rotation over groups of KV heads, `P` the order of
//! channels and `H` the rotation of one head. A projection by `Wk'` gives keys that are rotated and
//! ordered; attention needs them as they were, `k = B P^-1 (Wk' x)`, before RoPE ([`unfuse_keys`]).
//! Values stay rotated through attention, and `Wo'` turns them back. Queries are untouched.
//!
//! [`Cache`](crate::Cache) takes plain keys and values and rotates them as it writes, which costs
//! next to nothing beside the attention, works with quantized weights, adapters and norms on keys,
//! and needs none of this. An engine of fused weights gives it [`unfuse_keys`] and
//! [`unfuse_values`] of its rows.
//!
//! Weights are f32, `[out, in]` row-major as in checkpoints; everything is computed in f64 and
//! rounded once.

use crate::error::{Error, Result};
use crate::format::hadamard::factors;
use crate::format::{ChannelOrder, Shape};
use crate::kernel::reference::hadamard::{mask, sign};

/// Applies one factor of a Hadamard matrix: of every `order` runs of `run` numbers that follow each
/// other, the sums by its signs.
fn factor(numbers: &mut [f64], order: u32, run: usize) {
    let mut old = vec![0.0; order as usize * run];
    for block in numbers.chunks_exact_mut(old.len()) {
        old.copy_from_slice(block);
        for (sums, r) in block.chunks_exact_mut(run).zip(0..) {
            // Every order but these two is a corner of Sylvester's 16.
            let signs = mask(if order == 12 || order == 20 { order } else { 16 }, r);
            sums.fill(0.0);
            for (line, j) in old.chunks_exact(run).zip(0..) {
                let sign = f64::from(sign(signs, j));
                sums.iter_mut().zip(line).for_each(|(sum, x)| *sum += sign * x);
            }
        }
    }
}

/// Applies `H_heads (x) H_head_dim`, orthonormal, to every `heads * head_dim` lines of `columns`
/// numbers.
fn rotate_lines(numbers: &mut [f32], columns: usize, heads: u32, head_dim: u32) {
    let (outer, inner) = factors(head_dim);
    let scale = 1.0 / f64::from(heads * head_dim).sqrt();
    for block in numbers.chunks_exact_mut((heads * head_dim) as usize * columns) {
        let mut exact: Vec<f64> = block.iter().map(|x| f64::from(*x)).collect();
        factor(&mut exact, inner, columns);
        factor(&mut exact, outer, inner as usize * columns);
        factor(&mut exact, heads, head_dim as usize * columns);
        block.iter_mut().zip(&exact).for_each(|(to, x)| *to = (x * scale) as f32);
    }
}

/// Returns the columns of a matrix of `width` rows.
fn columns(name: &'static str, numbers: usize, width: usize) -> Result<usize> {
    if numbers == 0 || !numbers.is_multiple_of(width) {
        return Err(Error::argument(name, format!("a multiple of {width} numbers, 1 or more"), numbers));
    }
    Ok(numbers / width)
}

/// Returns the order of a layer's channels.
fn order(channel_order: &ChannelOrder, layer: u32) -> Result<&[u16]> {
    if layer >= channel_order.layers() {
        return Err(Error::Layer { had: layer, layers: channel_order.layers() });
    }
    Ok(channel_order.order(layer))
}

/// Makes `Wk' = P B Wk`, in place: `weights` is `[kv_heads * head_dim, hidden]`. A bias of the keys
/// is one column, `hidden = 1`.
///
/// # Errors
/// [`Error::Layer`], and [`Error::Mismatch`] where the numbers are not a multiple of
/// `kv_heads * head_dim`.
pub fn keys(weights: &mut [f32], channel_order: &ChannelOrder, layer: u32) -> Result<()> {
    let order = order(channel_order, layer)?;
    let hidden = columns("key weights", weights.len(), order.len())?;
    rotate_lines(weights, hidden, channel_order.heads_per_group(), channel_order.head_dim());
    let rotated = weights.to_vec();
    for (line, channel) in weights.chunks_exact_mut(hidden).zip(order) {
        line.copy_from_slice(&rotated[usize::from(*channel) * hidden..][..hidden]);
    }
    Ok(())
}

/// Makes `Wv' = H Wv` by KV head, in place: `weights` is `[kv_heads * head_dim, hidden]`. A bias of
/// the values is one column, `hidden = 1`.
///
/// # Errors
/// [`Error::Mismatch`] for a shape that is not served, and where the numbers are not a multiple of
/// `kv_heads * head_dim`.
pub fn values(weights: &mut [f32], shape: &Shape) -> Result<()> {
    shape.check()?;
    let hidden = columns("value weights", weights.len(), (shape.kv_heads * shape.head_dim) as usize)?;
    rotate_lines(weights, hidden, 1, shape.head_dim);
    Ok(())
}

/// Makes `Wo' = Wo H` by query head, in place: `weights` is `[hidden, query_heads * head_dim]`. A
/// bias of the output stays as it is.
///
/// # Errors
/// [`Error::Mismatch`] for a shape that is not served, and where the numbers are not a multiple of
/// `query_heads * head_dim`.
pub fn output(weights: &mut [f32], shape: &Shape) -> Result<()> {
    shape.check()?;
    columns("output weights", weights.len(), (shape.query_heads * shape.head_dim) as usize)?;
    rotate_lines(weights, 1, 1, shape.head_dim);
    Ok(())
}

/// Makes `k = B P^-1 y`, in place: the plain keys before RoPE of what fused weights project, `rows`
/// of `[tokens, kv_heads * head_dim]`.
///
/// # Errors
/// [`Error::Layer`], and [`Error::Mismatch`] where the numbers are not a multiple of
/// `kv_heads * head_dim`.
pub fn unfuse_keys(rows: &mut [f32], channel_order: &ChannelOrder, layer: u32) -> Result<()> {
    let order = order(channel_order, layer)?;
    columns("key rows", rows.len(), order.len())?;
    for row in rows.chunks_exact_mut(order.len()) {
        let fused = row.to_vec();
        for (x, channel) in fused.iter().zip(order) {
            row[usize::from(*channel)] = *x;
        }
    }
    rotate_lines(rows, 1, channel_order.heads_per_group(), channel_order.head_dim());
    Ok(())
}

/// Makes `v = H u` by KV head, in place: the plain values of what fused weights project, `rows` of
/// `[tokens, kv_heads * head_dim]`.
///
/// # Errors
/// [`Error::Mismatch`] for a shape that is not served, and where the numbers are not a multiple of
/// `kv_heads * head_dim`.
pub fn unfuse_values(rows: &mut [f32], shape: &Shape) -> Result<()> {
    shape.check()?;
    columns("value rows", rows.len(), (shape.kv_heads * shape.head_dim) as usize)?;
    rotate_lines(rows, 1, 1, shape.head_dim);
    Ok(())
}
