//! What keeps a model's keys and values: one cache, or one of groups of layers that differ.

use wgkv::aligned::AlignmentReport;
use wgkv::layers::{LayeredCache, LayeredStep};
use wgkv::{Cache, Chunk, Plan, Rows, Sequence, Step};

/// A cache of all layers of a model, by their numbers there: wgkv's [`Cache`] where all are alike,
/// its [`LayeredCache`] where they differ. Its calls are those of both.
pub trait KvCache {
    /// What [`KvCache::step`] returns.
    type Step;

    /// Returns the plan that a layer is stored by.
    ///
    /// # Errors
    /// [`wgkv::Error::Layer`].
    fn plan_of(&self, layer: u32) -> wgkv::Result<&Plan>;

    /// Begins a sequence of no tokens.
    ///
    /// # Errors
    /// Those of [`Cache::begin`].
    fn begin(&mut self) -> wgkv::Result<Sequence>;

    /// Ends a sequence.
    ///
    /// # Errors
    /// Those of [`Cache::end`].
    fn end(&mut self, sequence: Sequence) -> wgkv::Result<()>;

    /// Cuts a sequence back to its first `tokens` tokens.
    ///
    /// # Errors
    /// Those of [`Cache::truncate`].
    fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> wgkv::Result<()>;

    /// Returns how many tokens a sequence holds.
    ///
    /// # Errors
    /// Those of [`Cache::tokens`].
    fn tokens(&self, sequence: Sequence) -> wgkv::Result<u32>;

    /// Grows sequences by new tokens.
    ///
    /// # Errors
    /// Those of [`Cache::step`].
    fn step(&mut self, chunks: &[Chunk]) -> wgkv::Result<Self::Step>;

    /// Returns the rows of a step: the tokens of all its chunks.
    fn rows(step: &Self::Step) -> u32;

    /// Records the election of one layer's sinks.
    ///
    /// # Errors
    /// Those of [`Cache::elect_in`].
    fn elect_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Self::Step, layer: u32, residual: Rows<'_>, width: u32) -> wgkv::Result<()>;

    /// Records the new tokens' keys and values of one layer.
    ///
    /// # Errors
    /// Those of [`Cache::append_in`].
    fn append_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Self::Step, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> wgkv::Result<()>;

    /// Records attention of the step's tokens in one layer.
    ///
    /// # Errors
    /// Those of [`Cache::attend_in`].
    fn attend_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Self::Step, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> wgkv::Result<()>;

    /// Waits for all submitted work and returns what the last attention of a layer read from planes.
    ///
    /// # Errors
    /// Those of [`Cache::traffic`].
    fn traffic(&self, step: &Self::Step, layer: u32) -> impl Future<Output = wgkv::Result<AlignmentReport>>;

    /// Returns the bytes allocated for keys and values.
    fn bytes(&self) -> u64;

    /// Returns the bytes that the tokens of all live sequences need.
    fn bytes_used(&self) -> u64;

    /// Returns all stored bits over elements for a sequence of `tokens` tokens, over all layers.
    fn bits_per_element(&self, tokens: u64) -> f64;

    /// Gives the memory back at once.
    fn destroy(self);
}

/// Both caches have these calls under the same names.
macro_rules! kv_cache {
    ($cache:ident, $step:ident, |$own:ident, $layer:ident| $plan:expr, |$tokens:ident| $bits:expr) => {
        impl KvCache for $cache {
            type Step = $step;

            fn plan_of(&self, $layer: u32) -> wgkv::Result<&Plan> {
                let $own = self;
                $plan
            }

            fn begin(&mut self) -> wgkv::Result<Sequence> {
                self.begin()
            }

            fn end(&mut self, sequence: Sequence) -> wgkv::Result<()> {
                self.end(sequence)
            }

            fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> wgkv::Result<()> {
                self.truncate(encoder, sequence, tokens)
            }

            fn tokens(&self, sequence: Sequence) -> wgkv::Result<u32> {
                self.tokens(sequence)
            }

            fn step(&mut self, chunks: &[Chunk]) -> wgkv::Result<$step> {
                self.step(chunks)
            }

            fn rows(step: &$step) -> u32 {
                step.rows()
            }

            fn elect_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &$step, layer: u32, residual: Rows<'_>, width: u32) -> wgkv::Result<()> {
                self.elect_in(pass, step, layer, residual, width)
            }

            fn append_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &$step, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> wgkv::Result<()> {
                self.append_in(pass, step, layer, keys, values)
            }

            fn attend_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &$step, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> wgkv::Result<()> {
                self.attend_in(pass, step, layer, queries, output)
            }

            fn traffic(&self, step: &$step, layer: u32) -> impl Future<Output = wgkv::Result<AlignmentReport>> {
                self.traffic(step, layer)
            }

            fn bytes(&self) -> u64 {
                self.bytes()
            }

            fn bytes_used(&self) -> u64 {
                self.bytes_used()
            }

            fn bits_per_element(&self, $tokens: u64) -> f64 {
                let $own = self;
                $bits
            }

            fn destroy(self) {
                self.destroy();
            }
        }
    };
}

kv_cache!(
    Cache,
    Step,
    |cache, layer| match cache.plan().shape().layers {
        layers if layer < layers => Ok(cache.plan()),
        layers => Err(wgkv::Error::Layer { had: layer, layers }),
    },
    |tokens| cache.plan().bits_per_element(tokens)
);
kv_cache!(LayeredCache, LayeredStep, |cache, layer| cache.plan().plan_of(layer), |tokens| {
    let weighed = |plan: &Plan| (plan.bits_per_element(tokens), plan.shape().elements_per_token() as f64);
    let (bits, elements) = cache.plan().groups().iter().map(weighed).fold((0.0, 0.0), |(bits, all), (each, elements)| (bits + each * elements, all + elements));
    bits / elements
});
