//! What decoding from planes read, and how far its result can be from reading everything.

use crate::cache::{Cache, Step};
use crate::error::Result;
use crate::format::PAGE_TOKENS;
use crate::format::codes::aligned::{Planes, ulp, variation};
use crate::format::codes::code_planes;
use crate::kernel::align_plan::{AlignPlanParams, PLAN_BOUND, PLAN_KEYS, PLAN_MAXIMA, PLAN_NORM, PLAN_WORDS, SUM_ENTRIES};
use crate::kernel::align_values::LEDGER_VECS;

/// Bytes that one attend of one layer read from packed pages, by plane. Halves have planes of
/// eight, four and four bits of a number; codes of 8 bits have planes of four, two and two, and
/// codes of 4 bits of two and two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of the keys.
    pub keys: [u64; 3],
    /// Bytes of the values.
    pub values: [u64; 3],
    /// Bytes of keys and values, had all planes been read.
    pub full: u64,
    /// Bytes of what planes are chosen and codes read by: the pages' largest exponents; for codes
    /// the scales and zeros of keys, and twice those of values.
    pub metadata: u64,
    /// Bytes of the scores between the two passes. They are written once and read twice; for codes
    /// they are read once, and a quarter as much again is written and read beside them.
    pub scores: u64,
    /// Keys (or values) in the pages read, counted once for each reading. A page counts whole.
    pub elements: u64,
}

impl Traffic {
    /// Returns the bytes of keys and values.
    pub fn read(&self) -> u64 {
        self.keys.iter().chain(&self.values).sum()
    }

    /// Returns the share of the bytes of keys and values that stayed unread; 0 where there were
    /// none.
    pub fn saved(&self) -> f64 {
        if self.full == 0 { 0.0 } else { 1.0 - self.read() as f64 / self.full as f64 }
    }

    /// Returns the bits read of a key.
    pub fn key_bits(&self) -> f64 {
        8.0 * self.keys.iter().sum::<u64>() as f64 / self.elements.max(1) as f64
    }

    /// Returns the bits read of a value.
    pub fn value_bits(&self) -> f64 {
        8.0 * self.values.iter().sum::<u64>() as f64 / self.elements.max(1) as f64
    }

    /// Adds another's numbers to its own.
    pub fn add(&mut self, other: &Self) {
        for (sum, n) in self.keys.iter_mut().chain(&mut self.values).zip(other.keys.iter().chain(&other.values)) {
            *sum += n;
        }
        self.full += other.full;
        self.metadata += other.metadata;
        self.scores += other.scores;
        self.elements += other.elements;
    }

    /// Returns the bytes by plane, for rows of `numbers` numbers, given how many rows there are of
    /// each level.
    fn planes(bits: u32, levels: [u64; 4], numbers: u64) -> [u64; 3] {
        let planes = Planes::of(bits);
        let mut bytes = [0; 3];
        for ((plane, byte), width) in (0..).zip(&mut bytes).zip(if bits == 16 { &[8, 4, 4][..] } else { code_planes::widths(bits) }) {
            // Level 1 leaves the last plane unread, level 2 also the one before it.
            let rows: u64 = levels.iter().zip(0..).filter(|(_, level)| level + plane < planes.count()).map(|(rows, _)| rows).sum();
            *byte = rows * numbers * u64::from(*width) / 8;
        }
        bytes
    }
}

/// How far one query head's result can be from reading all planes (of the packed pages), in the
/// worst case.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Certificate {
    /// Row of the step.
    pub row: u32,
    /// Query head.
    pub head: u32,
    /// A bound on the error of every score, in nats.
    pub score_error: f64,
    /// A bound on the total variation between the softmax of those scores and the exact one. Times
    /// the range of a channel's values it bounds the effect of the keys' unread planes on the
    /// output.
    pub variation: f64,
    /// A bound on the effect of the values' unread planes on any channel of the output. (Where the
    /// codec rotates values it is the square root of `head_dim` times the bound on the root mean
    /// square over channels.)
    pub value_error: f64,
}

/// What one attend read; made by [`Cache::traffic`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AlignmentReport {
    /// The bytes read.
    pub traffic: Traffic,
    /// By decoding row that has packed pages, and query head.
    pub certificates: Vec<Certificate>,
    /// Loads of the planes that may stay unread, of keys and of values, in bytes as the kernels
    /// counted them; zeros unless the plan has kernels that count.
    #[doc(hidden)]
    pub counted: [[u64; 3]; 2],
}

/// Where one row's parts lie.
struct Row {
    row: u64,
    pages: u64,
    splits: std::ops::Range<u64>,
}

fn row(tables: &[u32], params: &AlignPlanParams, n: u32) -> Row {
    let record = &tables[(params.rows_at + 8 * n) as usize..][..8];
    let [row, pages, first, count] = [0, 2, 4, 5].map(|e| u64::from(record[e]));
    Row { row, pages, splits: first..first + count }
}

impl Cache {
    /// Waits for all submitted work and returns what the last attend of a layer read from planes,
    /// and how far its result can be from reading everything: AlignedKV (2409.16546). All layers
    /// use the same scratch, so call this after the layer's work was submitted and before the next
    /// layer's is. For a step whose rows are attended to in several passes it covers the last pass.
    ///
    /// Rows that prefill read everything and are not counted; plans without planes have nothing to
    /// report.
    ///
    /// # Errors
    /// [`Error::Stale`](crate::Error::Stale), [`Error::Layer`](crate::Error::Layer),
    /// [`Error::Readback`](crate::Error::Readback), [`Error::Lost`](crate::Error::Lost).
    pub async fn traffic(&self, step: &Step, layer: u32) -> Result<AlignmentReport> {
        self.check(step, layer)?;
        let plan = self.plan();
        let mut report = AlignmentReport::default();
        let slabs = plan.slabs(layer);
        let Some(last) = step.passes.last().filter(|_| plan.aligns()) else {
            return Ok(report);
        };
        let words = step.words();
        // Passes, then arrangements, then slabs.
        let every: usize = plan.arrangements().iter().map(Vec::len).sum();
        let before: usize = plan.arrangements().iter().take(plan.arrangement(layer)).map(Vec::len).sum();
        let first = (step.passes.len() - 1) * every + before;
        let row_first = words.attend_merge.last().map_or(0, |(merge, _)| merge.row_first);
        if last.rows == 0 {
            return Ok(report);
        }
        let [scores, plans] = self.align_buffers();
        let [_, _, partials, _] = self.scratch_buffers();
        // Reads back only what is used: the sums of the items, the rows' plans, the ledgers.
        let items = words.align_scores.get(first).map_or(0, |(_, items)| u64::from(*items));
        let (sums, ledgers) = (4 * u64::from(plan.heads_per_reading()) * plan.score_sums(), 16 * plan.ledgers());
        let (entries, ledger_words) = (u64::from(SUM_ENTRIES), 4 * u64::from(LEDGER_VECS));
        let sum_words = self.gpu().read(scores, sums, entries * u64::from(plan.heads_per_reading()) * plan.readings() * items).await?;
        let plan_words = self.gpu().read(plans, 0, u64::from(PLAN_WORDS) * plan.readings() * u64::from(last.rows)).await?;
        let ledgers = self.gpu().read(partials, ledgers, ledger_words * plan.readings() * items).await?;
        let float = |words: &[u32], at: u64| f64::from(f32::from_bits(words.get(at as usize).copied().unwrap_or(0)));
        let shape = plan.shape();
        let (d, heads, blocks, page) = (u64::from(shape.head_dim), u64::from(plan.heads_per_reading()), plan.blocks(), u64::from(PAGE_TOKENS));
        for (slab, ([keys, _], rows)) in slabs.iter().zip(words.align_plan.iter().skip(first)) {
            let (layout, [key_bits, value_bits]) = (slab.layout(), [slab.format().key(), slab.format().value()].map(|precision| precision.bits.get()));
            // Codes are read four channels, or four tokens, at a time.
            let together = if plan.aligns_codes() { 4 } else { 1 };
            for (n, head, block) in (0..*rows).flat_map(|n| slab.heads().iter().flat_map(move |head| (0..blocks).map(move |block| (n, *head, block)))) {
                let Row { row, pages, splits } = row(&words.tables, keys, n);
                let reading = |n: u64| (n * u64::from(shape.kv_heads) + u64::from(head)) * u64::from(blocks) + u64::from(block);
                let at = reading(row) * u64::from(PLAN_WORDS);
                let plan_word = |e: u32| plan_words.get((at + u64::from(e)) as usize).copied().unwrap_or(0);
                let channels = [0, 1, 2, 3].map(|level| if level < 3 || together > 1 { u64::from(plan_word(PLAN_KEYS + level)) } else { 0 });
                let mut tokens = [page / together * pages, 0, 0, 0];
                let (mut costs, mut score_errors) = ([0.0; 4], [0.0_f64; 4]);
                for item in splits {
                    let ledger = ledger_words * reading(item);
                    for level in [1, 2, 3] {
                        let count = float(&ledgers, ledger + 3 + level as u64) as u64;
                        tokens[level] += count;
                        tokens[0] -= count.min(tokens[0]);
                    }
                    costs.iter_mut().zip(0..).for_each(|(cost, h)| *cost += float(&ledgers, ledger + h));
                    let sums = entries * reading(item) * heads;
                    let sum = |entry: u64, h: u64| float(&sum_words, sums + entry * heads + h);
                    score_errors.iter_mut().zip(0..heads).for_each(|(error, h)| *error = error.max(sum(3, h)));
                    for plane in 0..3 {
                        // What all lanes load at once: for codes a word for each lane, or two from
                        // planes of 4 bits; for halves lanes share words.
                        let words = |bits: u32| match bits {
                            16 => 0.5,
                            8 if plane == 0 => 2.0,
                            _ => 1.0,
                        };
                        report.counted[0][plane as usize] += (128.0 * words(key_bits) * sum(4 + plane, 0)) as u64;
                        let quads = (d / 4).min(32) as f64;
                        report.counted[1][plane as usize] += (4.0 * quads * words(value_bits) * float(&ledgers, ledger + 8 + plane)) as u64;
                    }
                }
                report.traffic.add(&Traffic {
                    keys: Traffic::planes(key_bits, channels.map(|n| n * pages), together * page),
                    values: Traffic::planes(value_bits, tokens, together * d),
                    full: page * pages * d * u64::from(key_bits + value_bits) / 8,
                    metadata: match together {
                        1 => 2 * d * pages,
                        _ => 16 * u64::from((layout.key_groups + 2 * layout.value_groups) * layout.scale_vecs) * pages,
                    },
                    scores: if together == 1 { 12 } else { 10 } * heads * page * pages,
                    elements: page * pages * d,
                });
                let largest = (0..shape.head_dim / 4).flat_map(|w| plan_word(PLAN_MAXIMA + w).to_le_bytes()).max().unwrap_or(0);
                for h in (0..plan.heads_per_reading()).filter(|h| block * plan.heads_per_reading() + h < shape.share()) {
                    let codes = together > 1;
                    let score_error = if codes { score_errors[h as usize] } else { float(&plan_words, at + u64::from(PLAN_BOUND + h)) };
                    // The unit of a value's error: for codes a step, times the root of the channels
                    // that an output sums where values are rotated; for halves the last place of
                    // the largest.
                    let unit = match (codes, slab.format().codec().rotates_values()) {
                        (true, true) => f64::from(shape.head_dim).sqrt(),
                        (true, false) => 1.0,
                        _ => ulp(largest.into()),
                    };
                    report.certificates.push(Certificate {
                        row: row_first + row as u32,
                        head: head * shape.share() + block * plan.heads_per_reading() + h,
                        score_error,
                        variation: variation(score_error),
                        value_error: costs[h as usize] * float(&plan_words, at + u64::from(PLAN_NORM + h)) * unit,
                    });
                }
            }
        }
        Ok(report)
    }
}
