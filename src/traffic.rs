//! What decoding from planes read, and how far its result can be from reading everything.

use crate::cache::Cache;
use crate::error::Result;
use crate::kernel::align_plan::{AlignPlanParams, PLAN_BOUND, PLAN_KEYS, PLAN_MAXIMA, PLAN_NORM, PLAN_WORDS};
use crate::layout::PAGE_TOKENS;
use crate::reference::aligned::{ulp, variation};
use crate::step::Step;

/// Bytes that one attend of one layer read from packed pages, by plane: eight bits of a number, then four, then four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Of the keys.
    pub keys: [u64; 3],
    /// Of the values.
    pub values: [u64; 3],
    /// The pages' largest exponents, by which planes are chosen.
    pub exponents: u64,
    /// Scores between the two passes, written once and read twice.
    pub scores: u64,
    /// Keys (or values) in the pages read, counted once for each reading. A page counts whole.
    pub elements: u64,
}

impl Traffic {
    /// Bytes of keys and values.
    pub fn read(&self) -> u64 {
        self.keys.iter().chain(&self.values).sum()
    }

    /// Bytes of keys and values if all planes were read: what f16 pages take.
    pub fn full(&self) -> u64 {
        4 * self.elements
    }

    /// The share of the bytes of keys and values that stayed unread; 0 where there were none.
    pub fn saved(&self) -> f64 {
        if self.full() == 0 { 0.0 } else { 1.0 - self.read() as f64 / self.full() as f64 }
    }

    /// Bits read of a key.
    pub fn key_bits(&self) -> f64 {
        8.0 * self.keys.iter().sum::<u64>() as f64 / self.elements.max(1) as f64
    }

    /// Bits read of a value.
    pub fn value_bits(&self) -> f64 {
        8.0 * self.values.iter().sum::<u64>() as f64 / self.elements.max(1) as f64
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        for (sum, n) in self.keys.iter_mut().chain(&mut self.values).zip(other.keys.iter().chain(&other.values)) {
            *sum += n;
        }
        self.exponents += other.exponents;
        self.scores += other.scores;
        self.elements += other.elements;
    }

    /// Bytes by plane of rows of so many numbers, by level.
    fn planes(levels: [u64; 3], numbers: u64) -> [u64; 3] {
        let [zero, one, two] = levels;
        [(zero + one + two) * numbers, (zero + one) * numbers / 2, zero * numbers / 2]
    }
}

/// How far one query head's result can be from reading all planes (of the packed pages), in the worst case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Certificate {
    /// Row of the step.
    pub row: u32,
    /// Query head.
    pub head: u32,
    /// A bound on the error of every score, in nats.
    pub score_error: f64,
    /// A bound on the total variation between the softmax of those scores and the exact one: times the range of a channel's values it
    /// bounds what the keys' unread planes do to the output.
    pub variation: f64,
    /// A bound on what the values' unread planes do to any channel of the output.
    pub value_error: f64,
}

/// What one attend read, by [`Cache::traffic`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlignmentReport {
    /// Bytes.
    pub traffic: Traffic,
    /// By decoding row that has packed pages, and query head.
    pub certificates: Vec<Certificate>,
    /// Loads of the planes that may stay unread, of keys and of values, in bytes as the kernels counted them; zeros unless
    /// the plan has kernels that count.
    #[doc(hidden)]
    pub counted: [[u64; 2]; 2],
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
    /// Waits for all submitted work and tells what the last attend of a layer read from planes, and how far its result can be from
    /// reading everything: AlignedKV (2409.16546). All layers use the same scratch, so it is to be asked after the layer's work was
    /// submitted and before the next layer's is. Of a step whose rows are attended to in several passes it tells of the last.
    ///
    /// Rows that prefill read everything and are not counted; other codecs have nothing to report.
    ///
    /// # Errors
    /// [`Error::Stale`](crate::Error::Stale), [`Error::Layer`](crate::Error::Layer), [`Error::Readback`](crate::Error::Readback).
    pub async fn traffic(&self, step: &Step, layer: u32) -> Result<AlignmentReport> {
        self.check_step(step, layer)?;
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
        // Only what is looked at: the sums of the items, the rows' plans, the ledgers.
        let items = words.align_scores.get(first).map_or(0, |(_, items)| u64::from(*items));
        let (sums, ledgers) = (4 * u64::from(plan.heads()) * plan.score_sums(), 16 * plan.ledgers());
        let sum_words = self.gpu().read(scores, sums, 4 * u64::from(plan.heads()) * plan.readings() * items).await?;
        let plan_words = self.gpu().read(plans, 0, u64::from(PLAN_WORDS) * plan.readings() * u64::from(last.rows)).await?;
        let ledger_words = self.gpu().read(partials, ledgers, 8 * plan.readings() * items).await?;
        let float = |words: &[u32], at: u64| f64::from(f32::from_bits(words.get(at as usize).copied().unwrap_or(0)));
        let shape = plan.shape();
        let (d, heads, blocks, page) = (u64::from(shape.head_dim), plan.heads(), plan.blocks(), u64::from(PAGE_TOKENS));
        for (slab, ([keys, _], rows)) in slabs.iter().zip(words.align_plan.iter().skip(first)) {
            for (n, head, block) in (0..*rows).flat_map(|n| slab.heads().iter().flat_map(move |head| (0..blocks).map(move |block| (n, *head, block)))) {
                let Row { row, pages, splits } = row(&words.tables, keys, n);
                let reading = |n: u64| (n * u64::from(shape.kv_heads) + u64::from(head)) * u64::from(blocks) + u64::from(block);
                let at = reading(row) * u64::from(PLAN_WORDS);
                let plan_word = |e: u32| plan_words.get((at + u64::from(e)) as usize).copied().unwrap_or(0);
                let channels = [0, 1, 2].map(|level| u64::from(plan_word(PLAN_KEYS + level)));
                let mut tokens = [page * pages, 0, 0];
                let mut costs = [0.0; 4];
                for item in splits {
                    let ledger = 8 * reading(item);
                    for level in [1, 2] {
                        let count = float(&ledger_words, ledger + 3 + level as u64) as u64;
                        tokens[level] += count;
                        tokens[0] -= count.min(tokens[0]);
                    }
                    costs.iter_mut().zip(0..).for_each(|(cost, h)| *cost += float(&ledger_words, ledger + h));
                    let sums = 4 * reading(item) * u64::from(heads);
                    for plane in [0, 1] {
                        // A lane loads a word that it shares with its neighbour.
                        report.counted[0][plane as usize] += 64 * float(&sum_words, sums + (2 + plane) * u64::from(heads)) as u64;
                        let quads = (d / 4).min(32);
                        report.counted[1][plane as usize] += 2 * quads * float(&ledger_words, ledger + 6 + plane) as u64;
                    }
                }
                report.traffic.add(&Traffic {
                    keys: Traffic::planes(channels.map(|n| n * pages), page),
                    values: Traffic::planes(tokens, d),
                    exponents: 2 * d * pages,
                    scores: 12 * u64::from(heads) * page * pages,
                    elements: page * pages * d,
                });
                let largest = (0..shape.head_dim / 4).flat_map(|w| plan_word(PLAN_MAXIMA + w).to_le_bytes()).max().unwrap_or(0);
                for h in (0..heads).filter(|h| block * heads + h < shape.share()) {
                    let score_error = float(&plan_words, at + u64::from(PLAN_BOUND + h));
                    report.certificates.push(Certificate {
                        row: row_first + row as u32,
                        head: head * shape.share() + block * heads + h,
                        score_error,
                        variation: variation(score_error),
                        value_error: costs[h as usize] * float(&plan_words, at + u64::from(PLAN_NORM + h)) * ulp(largest.into()),
                    });
                }
            }
        }
        Ok(report)
    }
}
