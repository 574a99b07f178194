//! The twin of `shaders/elect.wgsl`.

use super::Constants;
use super::cached::elected;
use crate::kernel::elect::ElectParams;

/// Stands where there is no token or no place.
const NOBODY: u32 = u32::MAX;

/// Elects the tokens of a prompt that stay f16 in a layer: those with the largest magnitudes of the
/// residual stream. Shader: `shaders/elect.wgsl`, in the variant that [`Constants::merge`] names.
///
/// `tables` holds items of 4 words (8 when merging), `residual` is `[rows, width]` in f32, f16 or bf16,
/// `candidates` `[block, sinks, 2]` (magnitude as bits, token), `marks` ends with
/// `[slot, 3 * sinks]`: the token of each row, then magnitude and token of each of the largest so
/// far.
pub fn elect(params: &ElectParams, constants: &Constants, tables: &[u32], residual: &[u32], candidates: &mut [u32], marks: &mut [u32]) {
    let c = constants;
    let sinks = c.sinks as usize;
    for n in 0..params.items {
        if !c.merge {
            let item = (params.items_at + 4 * n) as usize;
            let [row_first, rows, token_first] = [0, 1, 2].map(|e| tables[item + e]);
            let numbers = (0..rows * params.width).map(|p| (magnitude(c.input(residual, row_first * params.width + p)), token_first + p / params.width));
            for (s, (magnitude, token)) in largest(numbers, sinks).into_iter().enumerate() {
                let at = 2 * (n as usize * sinks + s);
                candidates[at..at + 2].copy_from_slice(&[magnitude, token]);
            }
            continue;
        }
        let item = (params.items_at + 8 * n) as usize;
        let [slot, first, blocks, limit, token_first, token_end] = [0, 1, 2, 3, 4, 5].map(|e| tables[item + e]);
        let (rows, old) = marks[elected(c, slot)..][..3 * sinks].split_at_mut(sinks);
        let kept = old.chunks_exact(2).map(|pair| (if pair[1] < limit { pair[0] } else { 0 }, pair[1]));
        let new = candidates[2 * first as usize * sinks..][..2 * blocks as usize * sinks].chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let taken = largest(kept.chain(new), sinks);
        rows.iter_mut().filter(|row| **row >= limit).for_each(|row| *row = NOBODY);
        for (s, (magnitude, token)) in taken.into_iter().enumerate() {
            let known = !(token_first..token_end).contains(&token) || rows.contains(&token);
            if let Some(free) = rows.iter_mut().find(|row| **row == NOBODY).filter(|_| !known) {
                *free = token;
            }
            old[2 * s..2 * s + 2].copy_from_slice(&[magnitude, token]);
        }
    }
}

/// Returns the bits of a magnitude; zero where it is not finite.
fn magnitude(x: f32) -> u32 {
    let bits = x.to_bits() & 0x7fff_ffff;
    if bits < 0x7f80_0000 { bits } else { 0 }
}

/// Returns the largest of (magnitude, token), the earlier of equals first. Zeros elect nobody.
fn largest(numbers: impl Iterator<Item = (u32, u32)>, sinks: usize) -> Vec<(u32, u32)> {
    let mut taken: Vec<(u32, u32)> = numbers.filter(|(magnitude, _)| *magnitude > 0).collect();
    taken.sort_by_key(|(magnitude, _)| std::cmp::Reverse(*magnitude));
    taken.resize(sinks, (0, NOBODY));
    taken
}
