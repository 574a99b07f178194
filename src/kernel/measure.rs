//! Adds up columns over tokens: of keys before RoPE, from which RotateKV's channel order follows,
//! and for Centred's means and weights also of values and queries, and of squares. Keys that come
//! turned are turned back ([`record_turned`]).
//!
//! Reads every number twice (the second time from a cache, where blocks of 32 rows fit one) and
//! writes nothing but sums. Shader: `shaders/measure.wgsl`. Twin:
//! [`reference::measure`](crate::low_level::reference::measure).

use super::parts::shared;
use super::{Binding, Kernel, Variant, element_constant, flag};
use crate::error::{Error, Result};
use crate::format::{PAGE_TOKENS, Rope, RopeLayout};
use crate::gpu::{Gpu, RowForm, RowShape, Rows, Strides};
use crate::plan::turn_table;

/// Workgroups at most: lines of `sums` and `counts`.
pub const LINES: u32 = 32;

/// Rows that a workgroup takes at a time.
pub const BLOCK: u32 = 32;

/// `MeasureParams` of `shaders/measure.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct MeasureParams {
    /// Rows to add.
    pub rows: u32,
    /// Numbers of a row.
    pub width: u32,
    /// Must be 0. It keeps compilers from rearranging sums of floats.
    pub zero: u32,
    /// Columns of a head.
    pub head_dim: u32,
    /// The first row, in numbers from the binding's start. From here on where the rows lie, for the
    /// variant of rows with strides, as [`Strides`](crate::low_level::Strides) has it.
    pub base: u32,
    /// Rows of a sequence; `u32::MAX` where all are of one.
    pub tokens: u32,
    /// From a sequence to the next, in numbers.
    pub sequence_stride: u32,
    /// From a row to the next of its sequence.
    pub token_stride: u32,
    /// From a head to the next.
    pub head_stride: u32,
    /// The position of each sequence's first row, where rows come turned.
    pub position: u32,
    /// Rows whose positions follow one another before another sequence's begin.
    pub sequence: u32,
    /// Unused.
    pub pad: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "measure",
    source: include_str!("../../shaders/measure.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("keys", Binding::Read), ("turns", Binding::Read), ("sums", Binding::Write), ("counts", Binding::Write)]],
    params_bytes: size_of::<MeasureParams>(),
    zeroed: false,
};

/// Returns the variant for the caller's rows, for sums of the numbers or of their squares, of rows
/// that come turned by a RoPE if one is given.
pub fn variant(rows: RowForm, squares: bool, turned: Option<&Rope>) -> Variant {
    let kind = match turned.map(Rope::layout) {
        None => 0,
        Some(RopeLayout::SplitHalves) => 1,
        Some(RopeLayout::Interleaved) => 2,
    };
    let pairs = turned.map_or(0, |rope| rope.frequencies().len());
    let constants = [
        element_constant(rows.element),
        flag("SQUARES", squares),
        flag("STRIDED", rows.strided),
        flag("TURNED", pairs > 0),
        ("ROPE", f64::from(if pairs > 0 { kind } else { 0 })),
        ("ROPE_PAIRS", pairs as f64),
    ];
    Variant::new(&KERNEL, &[shared::FINITE, shared::ELEMENT, shared::TURN], &constants)
}

/// Rows that come turned by RoPE.
#[derive(Clone, Copy, Debug)]
pub struct Turned<'a> {
    /// What they were turned by.
    pub rope: &'a Rope,
    /// Cosine and sine of its pairs at positions 0 to 127, then at multiples of 128, pairs of f32:
    /// what [`turns`] returns.
    pub turns: &'a wgpu::Buffer,
    /// The position of the first row, or of each sequence's in batched layouts; those after it
    /// follow one another.
    pub position: u32,
}

/// Returns the table of [`Turned`] for positions below `tokens`.
pub fn turns(rope: &Rope, tokens: u32) -> Vec<[f32; 2]> {
    turn_table(rope, u64::from(tokens.div_ceil(PAGE_TOKENS)))
}

impl Turned<'_> {
    /// Refuses `rows` positions that the table does not have, and pairs that a head does not.
    fn check(&self, rows: u32, head_dim: u32) -> Result<()> {
        let pairs = self.rope.frequencies().len() as u64;
        if 2 * pairs > u64::from(head_dim) {
            return Err(Error::argument("rope pairs", format!("{} at most", head_dim / 2), pairs));
        }
        let table = self.turns.size() / (8 * pairs);
        let most = table.saturating_sub(u64::from(PAGE_TOKENS)).saturating_mul(u64::from(PAGE_TOKENS));
        let end = u64::from(self.position) + u64::from(rows);
        if end > most {
            return Err(Error::argument("the position after the last of turned rows", format!("{most} at most, as told beforehand"), end));
        }
        Ok(())
    }
}

/// Returns the number of workgroups for `rows` rows.
pub fn workgroups(rows: u32) -> u32 {
    rows.div_ceil(BLOCK).min(LINES)
}

/// Records adding `rows` rows (or their squares) of `heads` heads of `head_dim` numbers to `sums`
/// (`[LINES, heads * head_dim]` pairs of f32, the sum and what its roundings lost) and `counts`
/// (`[LINES]` pairs of u32, rows added and rows left out because of a number that is not finite).
/// The sum of a column is that over all lines.
///
/// # Errors
/// [`Error::Mismatch`] for an odd number of columns and for strides that do not fit the rows,
/// [`Error::Limit`] for more rows than one binding holds, and [`Error::Rows`], [`Error::Offset`],
/// [`Error::Usage`] for buffers that cannot hold them; then nothing was recorded.
#[expect(clippy::too_many_arguments, reason = "what it reads, then what it writes to")]
pub fn record(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    keys: Rows<'_>,
    squares: bool,
    rows: u32,
    [heads, head_dim]: [u32; 2],
    sums: &wgpu::Buffer,
    counts: &wgpu::Buffer,
) -> Result<()> {
    record_turned(gpu, encoder, keys, None, squares, rows, [heads, head_dim], sums, counts)
}

/// Records the same of rows that perhaps come turned, each turned back from its position first.
///
/// # Errors
/// Those of [`record`], and [`Error::Mismatch`] for more pairs than a head has, and for positions
/// beyond the table.
#[expect(clippy::too_many_arguments, reason = "what it reads, then what it writes to")]
pub fn record_turned(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    keys: Rows<'_>,
    turned: Option<Turned<'_>>,
    squares: bool,
    rows: u32,
    [heads, head_dim]: [u32; 2],
    sums: &wgpu::Buffer,
    counts: &wgpu::Buffer,
) -> Result<()> {
    let width = heads * head_dim;
    if width == 0 || !width.is_multiple_of(2) {
        return Err(Error::argument("width", "even, and 2 or more", width));
    }
    let capability = gpu.capability();
    // The shader counts numbers in 32 bits.
    let most = capability.binding_bytes.min(u64::from(u32::MAX) * keys.element.bytes());
    let elements = u64::from(rows) * u64::from(width);
    if elements * keys.element.bytes() > most {
        let need = elements * keys.element.bytes();
        return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: "one batch of keys", need, have: most });
    }
    if rows == 0 {
        return Ok(());
    }
    let placed = keys.read("keys", RowShape { rows, heads, head_dim, chunk: None }, capability)?;
    let turned = turned.filter(|turned| !turned.rope.frequencies().is_empty());
    let sequence = keys.layout.sequence_tokens();
    if let Some(turned) = turned {
        turned.check(rows.min(sequence), head_dim)?;
    }
    let lines = u64::from(LINES);
    let sum_lines = Rows::f32(sums).binding("sums", 2 * lines * u64::from(width), capability)?;
    let count_lines = Rows::f32(counts).binding("counts", 2 * lines, capability)?;
    let Strides { base, tokens, sequence_stride, token_stride, head_stride, .. } = placed.strides.unwrap_or_default();
    let position = turned.map_or(0, |turned| turned.position);
    let params = MeasureParams { rows, width, zero: 0, head_dim, base, tokens, sequence_stride, token_stride, head_stride, position, sequence, pad: 0 };
    let params = gpu.filled("wgkv params", bytemuck::bytes_of(&params), wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE);
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv measure"), timestamp_writes: None });
    let form = placed.form(keys.element);
    let [row_binding, sums, counts] = [placed.binding, sum_lines, count_lines].map(wgpu::BindingResource::Buffer);
    // A binding cannot stay empty: without turns the parameters are bound there, and not read.
    let turns = turned.map_or(&params, |turned| turned.turns).as_entire_binding();
    let bindings = [params.as_entire_binding(), row_binding, turns, sums, counts];
    gpu.pipeline(&variant(form, squares, turned.map(|turned| turned.rope))).dispatch_once(gpu, &mut pass, &bindings, [workgroups(rows), 1, 1]);
    Ok(())
}
