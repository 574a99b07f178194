//! Rows of numbers in the caller's buffers, and where in a buffer each row lies.

use crate::error::{Error, Result};
use crate::format::Element;
use crate::gpu::Capability;
use std::ops::Range;

/// How the rows of a tensor lie. A row is the `head_dim` numbers of one head of one token, which
/// are always next to each other; strides count numbers, not bytes. All strides of a tensor nest:
/// the largest steps over all that the others reach, so that no number is in two rows.
///
/// What is dense after all (heads first with one token, say, or any stride along a dimension of
/// one) is treated as such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowLayout {
    /// `[tokens, heads, head_dim]`, the tokens of all chunks one after another.
    #[default]
    Dense,
    /// `[sequences, heads, tokens, head_dim]`. Either one tensor holds the
    /// tokens of all chunks, or there is one a chunk and all chunks are equally long.
    HeadsFirst {
        /// Tokens of each sequence.
        tokens: u32,
    },
    /// Tokens of all chunks at one stride: padded rows, or queries, keys and values side by side.
    Strided {
        /// Numbers from a head's row to the same head's of the next token.
        token_stride: u32,
        /// Numbers from a head's row to the next head's of the same token.
        head_stride: u32,
    },
    /// The same, with a stride of their own for sequences. Every chunk has as many tokens as the
    /// others.
    Batched {
        /// Tokens of each sequence.
        tokens: u32,
        /// Numbers from a sequence's first row to the next sequence's.
        sequence_stride: u32,
        /// Numbers from a head's row to the same head's of the next token.
        token_stride: u32,
        /// Numbers from a head's row to the next head's of the same token.
        head_stride: u32,
    },
}

impl RowLayout {
    /// Returns how many rows follow one another before another sequence's begin: `u32::MAX` where
    /// all are of one.
    pub(crate) fn sequence_tokens(&self) -> u32 {
        match self {
            Self::HeadsFirst { tokens } | Self::Batched { tokens, .. } => *tokens,
            Self::Dense | Self::Strided { .. } => u32::MAX,
        }
    }
}

/// Rows in a buffer of the caller's, made with usage `STORAGE` on the device of the
/// [`Gpu`](crate::Gpu) that works on them.
///
/// ```
/// # fn f(qkv: &wgpu::Buffer, keys: &wgpu::Buffer) {
/// use wgkv::Rows;
/// // 32 query and 8 KV heads of 128, a token's queries, keys and values side by side, in bf16:
/// let row = (32 + 2 * 8) * 128;
/// let queries = Rows::bf16(qkv).strided(row, 128);
/// let fused_keys = Rows::bf16(qkv).at(2 * 32 * 128).strided(row, 128);
/// // A tensor [sequences, kv_heads, 17 tokens, head_dim]:
/// let heads_first = Rows::f16(keys).heads_first(17);
/// # }
/// ```
///
/// # Panics
/// wgpu does not tell of which device a buffer, an encoder or a compute pass is, so a call that
/// takes one of another device cannot refuse it. Of two devices of one `wgpu::Instance`, wgpu finds
/// the difference and reports it as an uncaptured error, which panics unless the program has set
/// `wgpu::Device::on_uncaptured_error`: "Device with '..' label of Buffer with '..' label doesn't
/// match Device with '..' label", in the call for buffers; of a "ComputePipeline", in
/// `wgpu::CommandEncoder::finish`, for encoders. Devices of different instances number what they
/// make alike: wgpu then panics ("Cannot get non-existent resource", or for the size of a buffer
/// that the caller does not know), or takes a buffer of its own that has the same number.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// Bytes from the buffer's start to the first row. A multiple of a number's bytes for keys,
    /// values, queries and output (for output of 16 bits, of 4); elsewhere of the device's storage
    /// alignment (256 at most).
    pub offset: u64,
    /// The type of the numbers.
    pub element: Element,
    /// How the rows lie: dense, but for keys, values, queries and output.
    pub layout: RowLayout,
}

impl<'a> Rows<'a> {
    /// Makes dense rows from the buffer's start.
    pub fn new(buffer: &'a wgpu::Buffer, element: Element) -> Self {
        Self { buffer, offset: 0, element, layout: RowLayout::Dense }
    }

    /// Makes dense rows of f32 from the buffer's start.
    pub fn f32(buffer: &'a wgpu::Buffer) -> Self {
        Self::new(buffer, Element::F32)
    }

    /// Makes dense rows of f16 from the buffer's start.
    pub fn f16(buffer: &'a wgpu::Buffer) -> Self {
        Self::new(buffer, Element::F16)
    }

    /// Makes dense rows of bf16 from the buffer's start.
    pub fn bf16(buffer: &'a wgpu::Buffer) -> Self {
        Self::new(buffer, Element::Bf16)
    }

    /// Returns the rows from this many bytes after the buffer's start on.
    pub fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// Returns the rows as [`RowLayout::HeadsFirst`].
    pub fn heads_first(self, tokens: u32) -> Self {
        Self { layout: RowLayout::HeadsFirst { tokens }, ..self }
    }

    /// Returns the rows as [`RowLayout::Strided`].
    pub fn strided(self, token_stride: u32, head_stride: u32) -> Self {
        Self { layout: RowLayout::Strided { token_stride, head_stride }, ..self }
    }

    /// Checks that `elements` numbers lie there, dense and where the device can bind them, and that
    /// one binding holds them; returns a binding of just those.
    pub(crate) fn binding(&self, name: &'static str, elements: u64, capability: &Capability) -> Result<wgpu::BufferBinding<'a>> {
        if self.layout != RowLayout::Dense {
            return Err(Error::argument(format!("layout of {name}"), "dense", format!("{:?}", self.layout)));
        }
        let alignment = capability.storage_alignment;
        let need = elements * self.element.bytes();
        let have = self.buffer.size().saturating_sub(self.offset);
        if have < need {
            return Err(Error::Rows { name, need, have });
        }
        if !self.offset.is_multiple_of(u64::from(alignment)) {
            return Err(Error::Offset { name, need: u64::from(alignment), had: self.offset });
        }
        if !self.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage { name, need: "STORAGE" });
        }
        if need > capability.binding_bytes {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: name, need, have: capability.binding_bytes });
        }
        Ok(wgpu::BufferBinding { buffer: self.buffer, offset: self.offset, size: std::num::NonZeroU64::new(need) })
    }

    /// Checks that rows lie there, dense and where the device can bind them, and returns where.
    pub(crate) fn dense(&self, name: &'static str, shape: RowShape, capability: &Capability) -> Result<Placed<'a>> {
        Ok(Placed { binding: self.binding(name, shape.elements(), capability)?, strides: None, rows: *self, shape, wide: Wide::dense(shape) })
    }

    /// Checks that rows that are only read lie there, and returns where.
    pub(crate) fn read(&self, name: &'static str, shape: RowShape, capability: &Capability) -> Result<Placed<'a>> {
        // No rows are bound as dense ones, at an offset that can be bound.
        if shape.rows == 0 {
            let offset = self.offset / u64::from(capability.storage_alignment) * u64::from(capability.storage_alignment);
            return Rows::new(self.buffer, self.element).at(offset).dense(name, shape, capability);
        }
        let strides = self.layout.strides(name, shape)?;
        if strides == Wide::dense(shape) && self.offset.is_multiple_of(capability.storage_alignment.into()) {
            return Rows { layout: RowLayout::Dense, ..*self }.dense(name, shape, capability);
        }
        let bytes = self.element.bytes();
        let have = self.buffer.size().saturating_sub(self.offset);
        let mut need = strides.extent(shape).saturating_mul(bytes);
        if need <= have {
            // Kernels read whole words.
            need = (self.offset + need).next_multiple_of(4) - self.offset;
        }
        if have < need {
            return Err(Error::Rows { name, need, have });
        }
        if !self.offset.is_multiple_of(bytes) {
            return Err(Error::Offset { name, need: bytes, had: self.offset });
        }
        if !self.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage { name, need: "STORAGE" });
        }
        let offset = self.offset / u64::from(capability.storage_alignment) * u64::from(capability.storage_alignment);
        let size = self.offset - offset + need;
        // Kernels count numbers in 32 bits.
        let most = capability.binding_bytes.min(u64::from(u32::MAX) * bytes);
        if size > most {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: name, need: size, have: most });
        }
        let binding = wgpu::BufferBinding { buffer: self.buffer, offset, size: std::num::NonZeroU64::new(size) };
        let base = ((self.offset - offset) / bytes) as u32;
        Ok(Placed { binding, strides: Some(strides.based_at(base)), rows: *self, shape, wide: strides })
    }

    /// Checks that rows that are written lie there, and returns where. No word is of two rows, since
    /// two invocations would write it.
    pub(crate) fn written(&self, name: &'static str, shape: RowShape, capability: &Capability) -> Result<Placed<'a>> {
        let placed = self.read(name, shape, capability)?;
        if let Some(strides) = placed.strides
            && self.element.bytes() == 2
        {
            if !strides.base.is_multiple_of(2) {
                return Err(Error::Offset { name, need: 4, had: self.offset });
            }
            let strides = [("head_stride", strides.head_stride), ("token_stride", strides.token_stride), ("sequence_stride", strides.sequence_stride)];
            if let Some((stride, had)) = strides.into_iter().find(|(_, stride)| !stride.is_multiple_of(2)) {
                return Err(Error::argument(format!("{stride} of {name}"), "even, since a word holds two numbers of 16 bits", had));
            }
        }
        Ok(placed)
    }
}

/// The rows that a call takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowShape {
    /// Tokens.
    pub rows: u32,
    /// Heads of a token.
    pub heads: u32,
    /// Numbers of a head.
    pub head_dim: u32,
    /// Tokens of every chunk of the step, 0 where they differ; none where there are no chunks.
    pub chunk: Option<u32>,
}

impl RowShape {
    fn elements(self) -> u64 {
        u64::from(self.rows) * u64::from(self.heads * self.head_dim)
    }
}

/// What a kernel's variant depends on of the caller's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowForm {
    /// The type of the numbers.
    pub element: Element,
    /// Whether the kernel reads where they lie from its uniform `layouts`; otherwise they are
    /// dense.
    pub strided: bool,
}

impl RowForm {
    pub(crate) const COUNT: usize = 6;

    /// Returns its place among all.
    pub(crate) fn index(self) -> usize {
        2 * self.element as usize + usize::from(self.strided)
    }
}

impl From<Element> for RowForm {
    /// Returns the form of dense rows.
    fn from(element: Element) -> Self {
        Self { element, strided: false }
    }
}

/// Where rows with strides lie in their binding, counted in numbers: `Layout` of
/// `shaders/part/layout/strided.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Strides {
    /// The first row.
    pub base: u32,
    /// Tokens of a sequence; `u32::MAX` where all are of one.
    pub tokens: u32,
    /// From a sequence to the next.
    pub sequence_stride: u32,
    /// From a token to the next of its sequence.
    pub token_stride: u32,
    /// From a head to the next.
    pub head_stride: u32,
    /// Unused.
    pub pad: [u32; 3],
}

impl Strides {
    /// Returns the first number of a row.
    pub fn row(&self, row: u32, head: u32) -> u32 {
        self.base + row / self.tokens * self.sequence_stride + row % self.tokens * self.token_stride + head * self.head_stride
    }
}

/// Strides of any size, before it is known that a binding holds the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wide {
    /// Tokens of a sequence; all where there is one sequence.
    tokens: u32,
    sequence: u64,
    token: u64,
    head: u64,
}

impl Wide {
    fn dense(shape: RowShape) -> Self {
        let head = u64::from(shape.head_dim);
        Self { tokens: shape.rows, sequence: 0, token: u64::from(shape.heads) * head, head }
    }

    /// Returns count and stride of heads, tokens and sequences.
    fn dimensions(&self, shape: RowShape) -> [(u32, u64); 3] {
        [(shape.heads, self.head), (self.tokens, self.token), (shape.rows.checked_div(self.tokens).unwrap_or(0), self.sequence)]
    }

    /// Returns the numbers from the first row's first to the last row's last.
    fn extent(&self, shape: RowShape) -> u64 {
        let steps = self.dimensions(shape).map(|(count, stride)| u64::from(count.saturating_sub(1)).saturating_mul(stride));
        steps.into_iter().fold(shape.head_dim.into(), u64::saturating_add)
    }

    /// Returns them as the kernels read them, once it is known that a binding holds the rows.
    fn based_at(self, base: u32) -> Strides {
        let Self { tokens, sequence, token, head } = self;
        let tokens = if sequence == 0 { u32::MAX } else { tokens };
        Strides { base, tokens, sequence_stride: sequence as u32, token_stride: token as u32, head_stride: head as u32, pad: [0; 3] }
    }
}

impl RowLayout {
    /// Checks the strides and returns them. Those along a dimension of one are set to what dense
    /// rows have, and two dimensions are made one where one of them has a length of one, so that
    /// equal places have equal strides.
    fn strides(self, name: &'static str, shape: RowShape) -> Result<Wide> {
        let RowShape { rows, heads, head_dim, chunk } = shape;
        let head_dim = u64::from(head_dim);
        let mut wide = match self {
            Self::Dense => return Ok(Wide::dense(shape)),
            Self::HeadsFirst { tokens } => {
                let head = u64::from(tokens) * head_dim;
                Wide { tokens, sequence: u64::from(heads) * head, token: head_dim, head }
            }
            Self::Strided { token_stride, head_stride } => Wide { tokens: rows, sequence: 0, token: token_stride.into(), head: head_stride.into() },
            Self::Batched { tokens, sequence_stride, token_stride, head_stride } => {
                Wide { tokens, sequence: sequence_stride.into(), token: token_stride.into(), head: head_stride.into() }
            }
        };
        if wide.tokens != rows && (wide.tokens == 0 || !rows.is_multiple_of(wide.tokens) || chunk.is_some_and(|chunk| chunk != wide.tokens)) {
            let each = match chunk {
                Some(0) => String::new(),
                Some(chunk) => format!(", or the {chunk} of every chunk"),
                None => ", or a divisor of them".to_owned(),
            };
            return Err(Error::argument(format!("tokens of {name}"), format!("all {rows}{each}"), wide.tokens));
        }
        let mut nested: Vec<_> = ["head_stride", "token_stride", "sequence_stride"].into_iter().zip(wide.dimensions(shape)).collect();
        nested.retain(|(_, (count, _))| *count > 1);
        nested.sort_by_key(|(_, (_, stride))| *stride);
        let mut extent = head_dim;
        for (stride, (count, had)) in nested {
            if had < extent {
                return Err(Error::argument(format!("{stride} of {name}"), format!("{extent} or more"), had));
            }
            extent = u64::from(count - 1).saturating_mul(had).saturating_add(extent);
        }
        let dense = Wide::dense(shape);
        if wide.tokens == 1 && rows > 1 {
            wide.token = wide.sequence;
            wide.tokens = rows;
        }
        if wide.tokens == rows {
            wide.sequence = 0;
        } else if wide.sequence == u64::from(wide.tokens) * wide.token {
            (wide.tokens, wide.sequence) = (rows, 0);
        }
        if rows <= 1 {
            wide.token = dense.token;
        }
        if heads == 1 {
            wide.head = dense.head;
        }
        Ok(wide)
    }
}

/// Rows that lie where they should.
#[derive(Clone, Debug)]
pub(crate) struct Placed<'a> {
    /// What is bound.
    pub binding: wgpu::BufferBinding<'a>,
    /// Where the rows lie in it, unless it is dense rows.
    pub strides: Option<Strides>,
    rows: Rows<'a>,
    shape: RowShape,
    wide: Wide,
}

impl Placed<'_> {
    /// Returns where the rows lie in the binding, dense ones too.
    pub fn layout(&self) -> Strides {
        self.strides.unwrap_or_else(|| self.wide.based_at(0))
    }

    fn spans(&self) -> Spans {
        if self.shape.rows == 0 { Spans::default() } else { Spans::new(self.rows.offset, self.rows.element.bytes(), self.shape, &self.wide) }
    }

    /// Returns what the kernel that reads or writes them depends on.
    pub fn form(&self, element: Element) -> RowForm {
        RowForm { element, strided: self.strides.is_some() }
    }

    /// Returns whether each of these rows lies where the same row of others does.
    pub fn are(&self, other: &Placed<'_>) -> bool {
        self.binding.buffer == other.binding.buffer && self.rows.offset == other.rows.offset && self.wide == other.wide
    }

    /// Refuses rows that are written where others lie, which the same call reads. Rows of both may
    /// take turns in a buffer.
    pub fn expect_apart(&self, name: &'static str, other: &'static str, beside: &Placed<'_>) -> Result<()> {
        if self.binding.buffer != beside.binding.buffer {
            return Ok(());
        }
        let [a, b] = [self, beside].map(Placed::spans);
        if a.apart(&b) {
            return Ok(());
        }
        let [a, b] = [a.hull(), b.hull()];
        Err(Error::argument(name, format!("apart from {other}, at bytes {b:?} of the buffer"), format!("at bytes {a:?} of the same buffer")))
    }
}

/// The bytes of rows: a span of some length, repeated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Spans {
    first: u64,
    length: u64,
    /// How often and at which stride, the largest stride first. What follows an entry is repeated
    /// as a whole, and is no longer than its stride.
    repeats: Vec<(u64, u64)>,
}

impl Spans {
    fn new(first: u64, bytes: u64, shape: RowShape, strides: &Wide) -> Self {
        let mut dimensions: Vec<(u64, u64)> = strides.dimensions(shape).map(|(count, stride)| (count.into(), stride.saturating_mul(bytes))).to_vec();
        dimensions.retain(|(count, _)| *count > 1);
        dimensions.sort_by_key(|(_, stride)| *stride);
        let mut length = u64::from(shape.head_dim) * bytes;
        let mut repeats: Vec<(u64, u64)> = Vec::new();
        for (count, stride) in dimensions {
            match repeats.last_mut() {
                None if stride == length => length = length.saturating_mul(count),
                Some((inner, step)) if stride == inner.saturating_mul(*step) => *inner *= count,
                _ => repeats.push((count, stride)),
            }
        }
        repeats.reverse();
        Self { first, length, repeats }
    }

    fn hull(&self) -> Range<u64> {
        self.first..self.first.saturating_add(reach(self.length, &self.repeats))
    }

    /// Returns whether no byte is of both. May miss that two tensors of unlike strides are apart,
    /// but not that they overlap.
    fn apart(&self, other: &Self) -> bool {
        let at = |spans: &Self| i128::from(spans.first);
        self.length == 0 || other.length == 0 || apart((at(self), self.length, &self.repeats), (at(other), other.length, &other.repeats))
    }
}

/// Returns the bytes from the first to the last of a repeated span.
fn reach(length: u64, repeats: &[(u64, u64)]) -> u64 {
    repeats.iter().fold(length, |sum, (count, stride)| sum.saturating_add((count - 1).saturating_mul(*stride)))
}

/// Where a repeated span begins, its length, and its repeats.
type Repeated<'s> = (i128, u64, &'s [(u64, u64)]);

fn apart(a: Repeated<'_>, b: Repeated<'_>) -> bool {
    let end = |(first, length, repeats): Repeated<'_>| first + i128::from(reach(length, repeats));
    if end(a) <= b.0 || end(b) <= a.0 {
        return true;
    }
    match (a.2.first(), b.2.first()) {
        (None, None) => false,
        // As if both went on for ever: then all that counts is where in a stride they begin.
        (Some((_, stride)), Some((_, same))) if stride == same => {
            let stride = i128::from(*stride);
            let [first, other] = [a.0, b.0].map(|at| at.rem_euclid(stride));
            [-stride, 0, stride].into_iter().all(|shift| apart((first, a.1, &a.2[1..]), (other + shift, b.1, &b.2[1..])))
        }
        (Some((_, large)), Some((_, small))) if large < small => apart(b, a),
        (None, Some(_)) => apart(b, a),
        // One by one those that the other reaches into, if they are few.
        (Some((count, stride)), _) => {
            let stride = i128::from(*stride);
            let first = (b.0 - a.0 - stride).max(0) / stride;
            let last = ((end(b) - a.0) / stride).min(i128::from(*count) - 1);
            last - first < 8 && (first..=last).all(|n| apart((a.0 + n * stride, a.1, &a.2[1..]), b))
        }
    }
}

/// Refuses a binding that is written where another lies, of the same dispatch.
pub(crate) fn expect_apart(name: &'static str, written: &wgpu::BufferBinding<'_>, other: &'static str, beside: &wgpu::BufferBinding<'_>) -> Result<()> {
    let [a, b] = [written, beside].map(|binding| binding.offset..binding.offset + binding.size.map_or(0, u64::from));
    if written.buffer != beside.buffer || a.is_empty() || b.is_empty() || a.start >= b.end || b.start >= a.end {
        return Ok(());
    }
    Err(Error::argument(name, format!("apart from {other}, at bytes {b:?} of the buffer"), format!("at bytes {a:?} of the same buffer")))
}

#[cfg(test)]
mod tests {
    use super::{RowLayout, RowShape, Spans, Wide};
    use std::collections::HashSet;

    const SHAPE: RowShape = RowShape { rows: 6, heads: 2, head_dim: 4, chunk: None };

    /// Every byte of rows.
    fn bytes(first: u64, shape: RowShape, strides: &Wide) -> HashSet<u64> {
        let [heads, tokens, sequences] = strides.dimensions(shape);
        let mut all = HashSet::new();
        for (s, t, h) in (0..sequences.0).flat_map(|s| (0..tokens.0).flat_map(move |t| (0..heads.0).map(move |h| (s, t, h)))) {
            let at = first + 2 * (u64::from(s) * sequences.1 + u64::from(t) * tokens.1 + u64::from(h) * heads.1);
            all.extend(at..at + 2 * u64::from(shape.head_dim));
        }
        all
    }

    #[test]
    fn rows_said_to_be_apart_share_no_byte_and_those_in_one_row_are_found() {
        let layouts = || {
            let strided =
                [(8, 4), (24, 4), (24, 8), (12, 6), (4, 24), (4, 30)].map(|(token_stride, head_stride)| RowLayout::Strided { token_stride, head_stride });
            let heads_first = [2, 3, 6].map(|tokens| RowLayout::HeadsFirst { tokens });
            let batched = [(60, 4, 12), (60, 8, 4), (48, 16, 8)].map(|(sequence_stride, token_stride, head_stride)| RowLayout::Batched {
                tokens: 3,
                sequence_stride,
                token_stride,
                head_stride,
            });
            strided.into_iter().chain(heads_first).chain(batched)
        };
        let mut interleaved = 0;
        for (a, b) in layouts().flat_map(|a| layouts().map(move |b| (a, b))) {
            let [a, b] = [a, b].map(|layout| layout.strides("rows", SHAPE).unwrap_or_else(|error| panic!("{layout:?}: {error}")));
            for at in 0..200 {
                let [one, two] = [(100, &a), (at, &b)].map(|(first, strides)| (Spans::new(first, 2, SHAPE, strides), bytes(first, SHAPE, strides)));
                let disjoint = one.1.is_disjoint(&two.1);
                assert!(disjoint || !one.0.apart(&two.0), "{a:?} at 100 and {b:?} at {at} overlap");
                assert_eq!(one.0.apart(&two.0), two.0.apart(&one.0));
                assert_eq!(one.0.hull(), *one.1.iter().min().unwrap()..one.1.iter().max().unwrap() + 1);
                let meet = one.0.hull().start < two.0.hull().end && two.0.hull().start < one.0.hull().end;
                interleaved += u32::from(disjoint && meet && one.0.apart(&two.0));
            }
        }
        assert!(interleaved > 300, "{interleaved} pairs were seen to take turns");
        // Queries, keys, values and output of a token side by side.
        let fused = RowLayout::Strided { token_stride: 32, head_stride: 4 }.strides("rows", SHAPE).unwrap();
        let parts = [0, 16, 32, 48].map(|first| Spans::new(first, 2, SHAPE, &fused));
        for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
            assert_eq!(parts[i].apart(&parts[j]), i != j);
        }
    }

    #[test]
    fn equal_places_have_equal_strides() {
        let of = |layout: RowLayout, shape: RowShape| layout.strides("rows", shape).unwrap();
        let one = RowShape { chunk: Some(1), ..SHAPE };
        assert_eq!(of(RowLayout::HeadsFirst { tokens: 1 }, one), Wide::dense(SHAPE), "one token of each sequence");
        assert_eq!(of(RowLayout::Strided { token_stride: 8, head_stride: 4 }, SHAPE), Wide::dense(SHAPE));
        let batched = RowLayout::Batched { tokens: 3, sequence_stride: 36, token_stride: 12, head_stride: 4 };
        assert_eq!(of(batched, SHAPE), of(RowLayout::Strided { token_stride: 12, head_stride: 4 }, SHAPE));
        let narrow = RowShape { rows: 1, heads: 1, ..SHAPE };
        assert_eq!(of(RowLayout::Strided { token_stride: 0, head_stride: 0 }, narrow), Wide::dense(narrow), "strides that are never stepped");
    }
}
