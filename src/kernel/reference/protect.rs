//! The twin of `shaders/protect.wgsl`.

use super::cached::{elected, offset, window_row};
use super::centre::Centred;
use super::half::{half_pair, half_saturates};
use super::{Constants, hadamard, report, storable, turn};
use crate::kernel::protect::ProtectParams;

/// Items from here on name a row of the elected sinks.
const SINK_ROW: u32 = 1 << 31;

/// Stores new keys and values that stay f16. Shader: `shaders/protect.wgsl`.
///
/// `turns` is as [`turns`](super::turns), `keys` and `values` `[rows, kv_heads, head_dim]` in f32,
/// f16 or bf16, `protected_rows` `[slot, kv_heads, sinks + ring, head_dim]`, `marks` the groups of key
/// channels and the elected sinks, `status` the count, three words of padding, then entries of four
/// words.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn protect(
    params: &ProtectParams,
    constants: &Constants,
    tables: &[u32],
    turns: &[[f32; 2]],
    keys: &[u32],
    values: &[u32],
    marks: &[u32],
    protected_rows: &mut [u32],
    status: &mut [u32],
) {
    let c = constants;
    for (n, head) in (0..params.items).flat_map(|n| (0..params.kv_heads).map(move |h| (n, h))) {
        let item = (params.items_at + 2 * n) as usize;
        let (chunk, mut t) = (tables[item] as usize, tables[item + 1]);
        let slot = tables[chunk];
        let old_tokens = tables[chunk + 1];
        let mut elected_row = false;
        let mut s = if t < c.sinks { t } else { window_row(c, t) };
        if c.massive {
            s = window_row(c, t);
            if t >= SINK_ROW {
                elected_row = true;
                s = t - SINK_ROW;
                t = marks[elected(c, slot) + s as usize];
                // A row that is empty, or that an earlier step filled.
                if t < old_tokens || t >= tables[chunk + 2] {
                    continue;
                }
            }
        }
        let row_first = tables[chunk + 6];
        let place = [row_first + t - old_tokens, params.kv_heads, head];
        let (key, value, mut what) = fresh(c, turns, keys, values, &Centred::of(c, marks, head), place, t, elected_row);
        let beyond = |row: &[f32]| row.iter().any(|x| half_saturates(*x));
        what |= (u32::from(beyond(&key)) << 2) | (u32::from(beyond(&value)) << 3);
        if what != 0 {
            report(status, params.layer, slot, t, head, what);
        }
        let at = offset(c, slot, params.kv_heads, head, s) as usize;
        let half = c.head_dim as usize / 2;
        for i in 0..half {
            protected_rows[at + i] = half_pair(key[2 * i], key[2 * i + 1]);
            protected_rows[at + half + i] = half_pair(value[2 * i], value[2 * i + 1]);
        }
    }
}

/// Returns a token's key and value as attention reads them, from the caller's rows (row, heads,
/// head): centred, turned, weighted and rotated, or zeros where a number is not finite, which
/// Centred reads back as the mean; and which of them (1 the key, 2 the value) had such a number. An
/// elected sink keeps the mean of the channels of its key that turn.
#[expect(clippy::too_many_arguments, reason = "what both kernels have at hand")]
pub(super) fn fresh(
    c: &Constants,
    turns: &[[f32; 2]],
    keys: &[u32],
    values: &[u32],
    centred: &Centred,
    [row, heads, head]: [u32; 3],
    t: u32,
    elected: bool,
) -> (Vec<f32>, Vec<f32>, u32) {
    let take = |rows: &[u32], rows_at, means: &[f32]| -> Vec<f32> {
        let first = c.row(rows_at, row, heads, head);
        (0..c.head_dim).zip(means).map(|(i, mean)| c.input(rows, first + i) - mean).collect()
    };
    let broken = |row: &[f32]| !row.iter().all(|x| storable(*x));
    let mut means = centred.key_means.clone();
    if c.turned {
        means = turn::row(c, turns, &means, t);
    }
    if elected {
        (0..c.head_dim).filter(|i| turn::pair(c, *i) < c.rope_pairs).for_each(|i| means[i as usize] = 0.0);
    }
    let (mut key, mut value) = (take(keys, c.keys_at, &means), take(values, c.values_at, &centred.value_means));
    let what = u32::from(broken(&key)) | (u32::from(broken(&value)) << 1);
    if !c.turned {
        key = turn::row(c, turns, &key, t);
    }
    for (x, weight) in key.iter_mut().zip(&centred.weights) {
        *x *= weight;
    }
    for (x, sign) in value.iter_mut().zip(&centred.value_signs) {
        *x *= sign;
    }
    if what & 1 != 0 {
        key.fill(0.0);
    }
    if what & 2 != 0 {
        value.fill(0.0);
    }
    if c.rotate_keys {
        key = hadamard::row(c, &key);
    }
    if c.rotate_values {
        value = hadamard::row(c, &value);
    }
    (key, value, what)
}
