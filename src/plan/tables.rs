//! The tables that a cache writes once: RoPE's turns, and what the codec learned for each layer.

use super::{Plan, Restore, position};
use crate::format::codes::half::half_pair;
use crate::format::{Codec, Means, PAGE_TOKENS, Rope};

/// Returns cosine and sine of every pair at positions 0 to 127, then at `high` multiples of 128.
pub(crate) fn turn_table(rope: &Rope, high: u64) -> Vec<[f32; 2]> {
    let positions = (0..u64::from(PAGE_TOKENS)).chain((0..high).map(|n| n * u64::from(PAGE_TOKENS)));
    positions
        .flat_map(|position| {
            rope.frequencies().iter().map(move |frequency| {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                [cos as f32, sin as f32]
            })
        })
        .collect()
}

/// Returns that table for every position that a sequence can reach, and what follows it.
pub(crate) fn turns(plan: &Plan) -> Vec<[f32; 2]> {
    let frequencies = plan.shape().rope.frequencies();
    let mut turns = turn_table(&plan.shape().rope, plan.turn_rows() - u64::from(PAGE_TOKENS));
    if turns.is_empty() {
        turns.push([1.0, 0.0]);
    }
    if plan.position_quads() > 0 {
        turns.resize(plan.position_centre() as usize, [1.0, 0.0]);
        turns.extend(position::tables(&plan.shape().rope, plan.position_pages() as usize));
        turns.resize(2 * plan.row_turns() as usize, [1.0, 0.0]);
        turns.extend(row_turns(plan));
    }
    if plan.turn_columns() {
        let pairs = frequencies.len();
        if plan.restore() == Restore::Shuffled {
            // Two tokens' cosines and sines as halves, in the order of the lanes that take them.
            let half = |row: usize, pair: usize, i: usize| turns[row * pairs + pair][i];
            let packed: Vec<[f32; 2]> = (0..PAGE_TOKENS as usize / 2)
                .flat_map(|two| (0..pairs).map(move |at| (2 * two, at / 2 % 8 * 8 + at / 16 * 2 + at % 2)))
                .map(|(token, pair)| [0, 1].map(|i| f32::from_bits(half_pair(half(token, pair, i), half(token + 1, pair, i)))))
                .collect();
            turns.extend(packed);
        } else {
            let columns: Vec<[f32; 2]> =
                (0..pairs).flat_map(|pair| (0..PAGE_TOKENS as usize).map(move |token| token * pairs + pair)).map(|at| turns[at]).collect();
            turns.extend(columns);
        }
    }
    turns
}

/// Returns cosine and sine of the positions 0 to 31 as attend_rows takes them: two pairs, by lane;
/// nothing where a plan has no f16 rows.
fn row_turns(plan: &Plan) -> Vec<[f32; 2]> {
    let frequencies = plan.shape().rope.frequencies();
    let turn = |pair: usize, lane: u32| {
        let (sin, cos) = (f64::from(lane) * frequencies.get(pair).copied().unwrap_or(0.0)).sin_cos();
        [cos as f32, sin as f32]
    };
    (0..plan.row_turn_quads() as usize).flat_map(|q| (0..32).flat_map(move |lane| [turn(2 * q, lane), turn(2 * q + 1, lane)])).collect()
}

/// Returns a layer's marks as they begin: the group of each key channel, or for Centred the means
/// and weights of each KV head; no sinks; the sink logits.
pub(crate) fn marks(plan: &Plan, layer: u32) -> Vec<u32> {
    let mut words = match (plan.format().codec(), plan.channel_order()) {
        (Codec::Centred, _) => plan.means().map_or_else(|| Means::natural_words(plan.shape()), |means| means.words(layer)),
        (_, Some(order)) => {
            let groups: Vec<u8> = order.places(layer).iter().map(|place| (u32::from(*place) / plan.layout_of(layer).row_group) as u8).collect();
            groups.chunks(4).map(|four| four.iter().rev().fold(0, |word, group| word << 8 | u32::from(*group))).collect()
        }
        _ => Vec::new(),
    };
    words.resize(plan.logits_at() as usize, u32::MAX);
    words.extend(plan.sink_logits(layer).unwrap_or_default().iter().map(|logit| logit.to_bits()));
    words.resize(plan.marks_words() as usize, u32::MAX);
    words
}
