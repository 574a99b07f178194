//! Recording a step's work on one layer: election, append, attention, and reading back what is
//! stored.

use super::Cache;
use super::groups::{Role, RowsOf};
use super::params::Params;
use super::pass::Pass;
use super::pipelines::Lookup;
use super::sequence::Sequence;
use super::step::{Align, Dispatch, Step, list_heads};
use crate::error::{Error, Result};
use crate::format::Element;
use crate::gpu::trace::span;
use crate::gpu::{Pipeline, Placed, RowForm, Rows, expect_apart, fold};
use crate::kernel::dequantize::DequantizeParams;
use crate::kernel::elect::ElectParams;
use crate::plan::Plan;
use std::ops::Range;

/// The bind groups of the caller's rows: the rows, and where they lie if they have strides.
struct RowGroups {
    rows: wgpu::BindGroup,
    layouts: Option<wgpu::BindGroup>,
}

/// What all dispatches of one call share.
struct Recorder<'a, 'p> {
    cache: &'a Cache,
    pass: &'a mut wgpu::ComputePass<'p>,
    layer: u32,
    /// Parameters and tables.
    step: &'a wgpu::BindGroup,
}

impl<'a> Recorder<'a, '_> {
    fn plan(&self) -> &'a Plan {
        &self.cache.plan
    }

    fn pipelines(&self) -> Lookup<'a> {
        Lookup { gpu: &self.cache.gpu, plan: &self.cache.plan, pipelines: &self.cache.pipelines }
    }

    /// Returns the bind group of the caller's rows.
    fn rows(&self, of: RowsOf, pipeline: &Pipeline, rows: &[wgpu::BufferBinding<'_>]) -> RowGroups {
        RowGroups { rows: self.cache.groups.rows(&self.cache.gpu, of, pipeline, rows), layouts: None }
    }

    /// Returns the bind groups of the caller's rows, for a pipeline of their form. `layouts` are of
    /// one or two tensors.
    fn laid_out(&self, of: RowsOf, pipeline: &Pipeline, rows: &[wgpu::BufferBinding<'_>], form: RowForm, layouts: [&Placed<'_>; 2]) -> RowGroups {
        let Cache { gpu, groups, .. } = self.cache;
        let layouts = form.strided.then(|| groups.layouts(gpu, pipeline, layouts.map(Placed::layout)));
        RowGroups { layouts, ..self.rows(of, pipeline, rows) }
    }

    /// Records one dispatch, of a slab's pages where the kernel works on some.
    fn run(&mut self, role: Role, pipeline: &Pipeline, slab: usize, rows: Option<&RowGroups>, params: u32, workgroups: [u32; 3]) {
        let Cache { gpu, buffers, groups, .. } = self.cache;
        let own = groups.own(gpu, buffers, role, pipeline, self.layer as usize, slab);
        let (second, third) = (rows.map(|rows| &rows.rows), rows.and_then(|rows| rows.layouts.as_ref()));
        let bound = [(own, &[][..]), (self.step, &[params][..]), (second.unwrap_or(self.step), &[][..]), (third.unwrap_or(self.step), &[][..])];
        pipeline.dispatch(gpu, self.pass, &bound[..2 + usize::from(second.is_some()) + usize::from(third.is_some())], workgroups);
    }

    /// Returns a grid for the items of a dispatch.
    fn grid(&self, items: u32, across: u32) -> [u32; 3] {
        let [x, y] = fold(items, self.cache.gpu.capability().workgroups);
        [x, y, across]
    }

    /// Records the packing of new tokens into the pages, and the copies into the f16 rows.
    fn append(&mut self, step: &Step, element: Element, [keys, values]: &[Placed<'_>; 2]) {
        let (plan, layer) = (self.plan(), self.layer as usize);
        // Pages first: they take what leaves the window, before its rows are overwritten.
        let slabs = plan.slabs(self.layer);
        let rows = [keys.binding.clone(), values.binding.clone()];
        let form = RowForm { element, strided: keys.strides.is_some() || values.strides.is_some() };
        for (n, (slab, dispatch)) in slabs.iter().zip(&step.append[layer]).enumerate() {
            if dispatch.items > 0 {
                let pipeline = self.pipelines().slab(self.layer, n).append(form);
                let group = self.laid_out(RowsOf::KeysAndValues, pipeline, &rows, form, [keys, values]);
                self.run(Role::Append, pipeline, n, Some(&group), dispatch.params, self.grid(dispatch.items, slab.count()));
            }
        }
        for (n, dispatch) in step.append_reordered.get(layer).into_iter().flatten().enumerate() {
            if dispatch.items > 0 {
                let pipeline = self.pipelines().slab(self.layer, n).append_reordered(form);
                let group = self.laid_out(RowsOf::Keys, pipeline, &rows[..1], form, [keys, values]);
                self.run(Role::AppendReordered, pipeline, n, Some(&group), dispatch.params, self.grid(dispatch.items, 1));
            }
        }
        let dispatch = step.protect[layer];
        if dispatch.items > 0 {
            let pipeline = self.pipelines().protect(form);
            let group = self.laid_out(RowsOf::KeysAndValues, pipeline, &rows, form, [keys, values]);
            self.run(Role::Protect, pipeline, 0, Some(&group), dispatch.params, self.grid(dispatch.items, plan.shape().kv_heads));
        }
    }

    /// Records the attention of all rows of a step. Log-sums that are not wanted are not written,
    /// whatever buffer is bound for them.
    fn attend(&mut self, step: &Step, element: Element, queries: &Placed<'_>, output: &Placed<'_>, log_sums: (wgpu::BufferBinding<'_>, bool)) {
        let plan = self.plan();
        let (slabs, arrangement, query_heads) = (plan.slabs(self.layer), plan.arrangement(self.layer), plan.shape().query_heads);
        let pipelines = self.pipelines();
        let (query_form, output_form) = (queries.form(element), output.form(element));
        let query = pipelines.query(query_form);
        let query_group = self.laid_out(RowsOf::Queries, query, std::slice::from_ref(&queries.binding), query_form, [queries; 2]);
        let (log_sums, wanted) = log_sums;
        let output_rows = [output.binding.clone(), log_sums];
        for pass in &step.passes {
            let Some(part) = pass.arranged.get(arrangement) else {
                continue;
            };
            if pass.direct {
                for (n, (slab, dispatch)) in slabs.iter().zip(&part.direct).enumerate() {
                    let pipeline = pipelines.slab(self.layer, n).attend_direct(query_form);
                    self.run(Role::AttendDirect, pipeline, n, Some(&query_group), dispatch.params, [dispatch.items, slab.count() * plan.blocks(), 1]);
                }
                self.merge(pass, output_form, &output_rows, output, wanted);
                continue;
            }
            self.run(Role::Query, query, 0, Some(&query_group), part.query, [pass.rows, query_heads, 1]);
            // It reads nothing that `query` writes, so it need not wait for it, unless the compute
            // pass has used the terms before.
            if part.position.items > 0 {
                let grid = [part.position.items, plan.readings() as u32, 1];
                self.run(Role::Position, pipelines.position(query_form), 0, Some(&query_group), part.position.params, grid);
            }
            // Beside attend_split, which writes elsewhere: first, since its items are short.
            if pass.attend_rows.items > 0 {
                let grid = [pass.attend_rows.items, plan.readings() as u32, 1];
                self.run(Role::AttendRows, pipelines.attend_rows(), 0, None, pass.attend_rows.params, grid);
            }
            for (n, (slab, dispatch)) in slabs.iter().zip(&part.split).enumerate() {
                if dispatch.items > 0 {
                    let grid = [dispatch.items, slab.count() / plan.group_heads() * plan.blocks(), 1];
                    self.run(Role::AttendSplit, pipelines.slab(self.layer, n).attend_split(), n, None, dispatch.params, grid);
                }
            }
            // A round unpacks as many tokens as scratch holds, and holds all rows against them.
            for (attend, unpack) in pass.rounds.iter().zip(&part.unpack) {
                for (n, (slab, dispatch)) in slabs.iter().zip(unpack).enumerate() {
                    if dispatch.items > 0 {
                        self.run(Role::Unpack, pipelines.slab(self.layer, n).unpack(), n, None, dispatch.params, [dispatch.items, slab.count(), 1]);
                    }
                }
                for dispatch in attend {
                    let grid = [dispatch.items, plan.shape().kv_heads, plan.column_blocks()];
                    self.run(Role::AttendPrefill, pipelines.attend_prefill(), 0, None, dispatch.params, grid);
                }
            }
            // After the f16 tokens, since their weights count in the softmax.
            self.align(&part.align);
            self.merge(pass, output_form, &output_rows, output, wanted);
        }
    }

    /// Records the merging of a pass's partial results into its output rows, and log-sums if they
    /// are wanted.
    fn merge(&mut self, pass: &Pass, form: RowForm, rows: &[wgpu::BufferBinding<'_>], output: &Placed<'_>, log_sums: bool) {
        let merge = self.pipelines().attend_merge(form, pass.merge_choice, log_sums, pass.direct);
        let group = self.laid_out(RowsOf::Output, merge, rows, form, [output; 2]);
        self.run(Role::AttendMerge, merge, 0, Some(&group), pass.merge, [pass.rows, self.plan().shape().query_heads, 1]);
    }

    /// Records decoding from planes: what to read of the keys, their scores, what to read of the
    /// values, their weighted sums.
    fn align(&mut self, align: &[Align]) {
        let plan = self.plan();
        for (n, (slab, align)) in plan.slabs(self.layer).iter().zip(align).enumerate() {
            let pipelines = self.pipelines().slab(self.layer, n);
            let grid = |dispatch: &Dispatch| [dispatch.items, slab.count() * plan.blocks(), 1];
            for (role, pipeline, dispatch) in [
                (Role::AlignPlan, pipelines.align_plan(true), &align.keys),
                (Role::AlignScores, pipelines.align_scores(), &align.scores),
                (Role::AlignPlan, pipelines.align_plan(false), &align.values),
                (Role::AlignValues, pipelines.align_values(), &align.rows),
            ] {
                self.run(role, pipeline, n, None, dispatch.params, grid(dispatch));
            }
        }
    }
}

/// Begins a compute pass.
fn begin<'e>(encoder: &'e mut wgpu::CommandEncoder, label: &str) -> wgpu::ComputePass<'e> {
    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None })
}

/// Checks that rows are of a type.
fn expect_element(name: &'static str, wanted: Element, rows: Rows<'_>) -> Result<()> {
    if rows.element == wanted { Ok(()) } else { Err(Error::argument(name, wanted.name(), rows.element.name())) }
}

impl Cache {
    fn recorder<'a, 'p>(&'a self, pass: &'a mut wgpu::ComputePass<'p>, layer: u32, step: &'a wgpu::BindGroup) -> Recorder<'a, 'p> {
        Recorder { cache: self, pass, layer, step }
    }

    /// Records the election of one layer's sinks from the residual stream that enters the layer,
    /// before its norm (for the first layer: the embeddings): `[rows, width]` in f32, f16 or bf16,
    /// the chunks of the step one after another. This is RotateKV's choice of sinks (2501.16383,
    /// section 4.3).
    ///
    /// Must come before [`Cache::append`] where the plan's sinks are
    /// [`Sinks::Massive`](crate::Sinks::Massive) and a chunk has more than one token. A chunk of
    /// one token decodes: it elects nothing, and without other chunks nothing is recorded.
    ///
    /// Any chunk of several tokens counts as part of a prompt, including one of drafted tokens that
    /// may be taken back.
    ///
    /// A prompt that comes in several chunks keeps a list of the largest magnitudes so far. A token
    /// of a later chunk that reaches the list gets a row while one is free. Tokens of earlier
    /// chunks are packed by then, and none loses its row.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Lost`], [`Error::Layer`], [`Error::Mismatch`] for a width of 0 or
    /// an odd one, [`Error::Rows`], [`Error::Offset`], [`Error::Usage`], [`Error::Limit`] for more
    /// rows than one binding holds, [`Error::Order`] for the second election of a layer in a step;
    /// then nothing was recorded.
    pub fn elect(&self, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32, residual: Rows<'_>, width: u32) -> Result<()> {
        self.elect_in(&mut begin(encoder, "wgkv elect"), step, layer, residual, width)
    }

    /// Records the election as [`Cache::elect`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`Cache::elect`].
    pub fn elect_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, layer: u32, residual: Rows<'_>, width: u32) -> Result<()> {
        let _span = span!("elect", layer, rows = step.rows);
        let Some(rows) = self.check_elect(step, layer, residual, width)? else {
            return Ok(());
        };
        let Some(election) = &step.election else {
            return Ok(());
        };
        step.recorded.elect(layer)?;
        let mut params = Params::new(&self.gpu);
        let at = [election.blocks, election.chunks].map(|(items_at, items)| params.push(&ElectParams { items_at, items, width, pad: 0 }));
        let group = params.bind(&self.gpu, &self.step_layout, step.tables.binding());
        let mut recorder = self.recorder(pass, layer, &group);
        for (merge, ((_, items), params)) in [false, true].into_iter().zip([election.blocks, election.chunks].into_iter().zip(at)) {
            let pipeline = recorder.pipelines().elect(residual.element, merge);
            let rows = recorder.rows(RowsOf::Election, pipeline, &[rows.clone(), whole(&election.candidates)]);
            recorder.run(Role::Elect, pipeline, 0, Some(&rows), params, recorder.grid(items, 1));
        }
        Ok(())
    }

    /// Checks the arguments of [`Cache::elect`]; returns the rows, if there is something to elect.
    pub(crate) fn check_elect<'r>(&self, step: &Step, layer: u32, residual: Rows<'r>, width: u32) -> Result<Option<wgpu::BufferBinding<'r>>> {
        self.check(step, layer)?;
        if step.election.is_none() {
            return Ok(None);
        }
        if width == 0 || !width.is_multiple_of(2) {
            return Err(Error::argument("width", "even and not 0", width));
        }
        let rows = residual.binding("residual", u64::from(step.rows) * u64::from(width), self.gpu.capability())?;
        step.recorded.expect_unelected(layer)?;
        Ok(Some(rows))
    }

    /// Records the new tokens' keys and values of one layer: `[rows, kv_heads, head_dim]` each or
    /// in another [layout](crate::RowLayout), keys before RoPE unless the plan has
    /// [turned rows](crate::PlanBuilder::turned_rows), the chunks of the step one after another.
    /// Both are f32, f16 or bf16, alike. Once in a step, since a second time would pack what the
    /// first left in the window.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Lost`], [`Error::Layer`], [`Error::Mismatch`], [`Error::Rows`],
    /// [`Error::Offset`], [`Error::Usage`], [`Error::Limit`] for more rows than one binding holds,
    /// [`Error::Unelected`] where [`Cache::elect`] had to come first, and [`Error::Order`] for the
    /// second time; then nothing was recorded, and it can be called again.
    pub fn append(&self, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> Result<()> {
        self.append_in(&mut begin(encoder, "wgkv append"), step, layer, keys, values)
    }

    /// Records what [`Cache::append`] does, within a compute pass of the caller's: cheaper where
    /// many dispatches follow each other.
    ///
    /// # Errors
    /// Those of [`Cache::append`].
    pub fn append_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> Result<()> {
        let _span = span!("append", layer, rows = step.rows);
        let rows = self.check_append(step, layer, keys, values)?;
        // A step that brings no tokens records nothing, so it may come again.
        if step.appends {
            step.recorded.append(layer)?;
        }
        self.recorder(pass, layer, &step.group).append(step, keys.element, &rows);
        Ok(())
    }

    /// Checks the arguments of [`Cache::append`]; returns where keys and values lie.
    pub(crate) fn check_append<'r>(&self, step: &Step, layer: u32, keys: Rows<'r>, values: Rows<'r>) -> Result<[Placed<'r>; 2]> {
        self.check(step, layer)?;
        let shape = step.row_shape(self.plan.shape().kv_heads, self.plan.shape().head_dim);
        expect_element("values", keys.element, values)?;
        let capability = self.gpu.capability();
        let key_rows = keys.read("keys", shape, capability)?;
        let value_rows = values.read("values", shape, capability)?;
        if step.election.is_some() && !step.recorded.elected(layer) {
            return Err(Error::Unelected { layer, sinks: self.plan.protection().sinks.to_string() });
        }
        step.recorded.expect_unappended(layer)?;
        Ok([key_rows, value_rows])
    }

    /// Records causal attention of the step's tokens over everything their sequences hold in one
    /// layer, themselves included: `queries` and `output` are `[rows, query_heads, head_dim]` or in
    /// another [layout](crate::RowLayout) each, queries before RoPE unless the plan has
    /// [turned rows](crate::PlanBuilder::turned_rows), scores times the plan's
    /// [scale](crate::PlanBuilder::score_scale). Both are f32, f16 or bf16, alike. They may be the
    /// same rows, or rows apart from each other (which may interleave in one buffer), but not overlap
    /// otherwise. What lies between rows of the output is left as it is. A query that sees no token,
    /// which only [`Cache::step_parts`] has, has an output of 0. It may be called again, with other
    /// queries.
    ///
    /// # Errors
    /// Those of [`Cache::append`], but [`Error::Unelected`]; [`Error::Order`] before the layer's
    /// [`Cache::append`].
    pub fn attend(&self, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> Result<()> {
        self.attend_in(&mut begin(encoder, "wgkv attend"), step, layer, queries, output)
    }

    /// Records what [`Cache::attend`] does, within a compute pass of the caller's: cheaper where
    /// many dispatches follow each other.
    ///
    /// # Errors
    /// Those of [`Cache::attend`].
    pub fn attend_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> Result<()> {
        self.attend_to(pass, step, layer, queries, output, None)
    }

    /// Records what [`Cache::attend`] does, and also writes the weight of each output beside those
    /// of other caches, over other tokens: the logarithm of the sum of `exp(score)`, in f32,
    /// `[rows, query_heads]`; -1e30 where a query saw no token, whose output is 0. The output over
    /// all tokens is the mean of the parts' outputs, weighted by `exp` of that. The parts may be of
    /// any codec and of other learned data, and need not be this library's. Sink logits count in the
    /// part that has a sequence's first token. `log_sums` lies apart from `queries` and `output`.
    ///
    /// # Errors
    /// Those of [`Cache::attend`].
    pub fn attend_part(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        step: &Step,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Rows<'_>,
    ) -> Result<()> {
        self.attend_part_in(&mut begin(encoder, "wgkv attend"), step, layer, queries, output, log_sums)
    }

    /// Records what [`Cache::attend_part`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`Cache::attend_part`].
    pub fn attend_part_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        step: &Step,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Rows<'_>,
    ) -> Result<()> {
        self.attend_to(pass, step, layer, queries, output, Some(log_sums))
    }

    fn attend_to(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        step: &Step,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Option<Rows<'_>>,
    ) -> Result<()> {
        let _span = span!("attend", layer, rows = step.rows);
        self.check(step, layer)?;
        let shape = self.plan.shape();
        let row_shape = step.row_shape(shape.query_heads, shape.head_dim);
        expect_element("output", queries.element, output)?;
        let capability = self.gpu.capability();
        let query_rows = queries.read("queries", row_shape, capability)?;
        let output_rows = output.written("output", row_shape, capability)?;
        // In place is as good: every pass has read its queries before it writes their output, and
        // the passes share no rows.
        if !output_rows.are(&query_rows) {
            output_rows.expect_apart("output", "queries", &query_rows)?;
        }
        let log_sum_rows = match log_sums {
            Some(rows) => {
                expect_element("log_sums", Element::F32, rows)?;
                let rows = rows.dense("log_sums", step.row_shape(shape.query_heads, 1), capability)?;
                rows.expect_apart("log_sums", "queries", &query_rows)?;
                // One dispatch writes both, so that no byte may be bound twice.
                expect_apart("log_sums", &rows.binding, "output", &output_rows.binding)?;
                rows.binding
            }
            None => whole(&self.buffers.shared.no_log_sums),
        };
        if step.appends {
            step.recorded.expect_appended("Cache::attend", layer)?;
        }
        self.recorder(pass, layer, &step.group).attend(step, queries.element, &query_rows, &output_rows, (log_sum_rows, log_sums.is_some()));
        Ok(())
    }

    /// Records the restoring of cached tokens of one layer to dense f32 rows
    /// `[tokens, kv_heads, head_dim]`: keys as they were after RoPE, values as they came, both with
    /// the error of their codes. Both are written, so they lie apart.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Range`], [`Error::Dropped`], [`Error::Torn`],
    /// [`Error::Layer`], [`Error::Mismatch`], [`Error::Rows`], [`Error::Offset`], [`Error::Usage`],
    /// [`Error::Order`] where the latest step brings tokens of the sequence that the layer was not
    /// given yet, [`Error::Lost`].
    pub fn dequantize(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sequence: Sequence,
        layer: u32,
        tokens: Range<u32>,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<()> {
        let rows = self.check_dequantize(sequence, layer, &tokens, keys, values)?;
        if !tokens.is_empty() {
            self.record_dequantize(&mut begin(encoder, "wgkv dequantize"), sequence, layer, tokens, &rows)?;
        }
        Ok(())
    }

    /// Records what [`Cache::dequantize`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`Cache::dequantize`].
    pub fn dequantize_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        sequence: Sequence,
        layer: u32,
        tokens: Range<u32>,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<()> {
        let rows = self.check_dequantize(sequence, layer, &tokens, keys, values)?;
        if !tokens.is_empty() {
            self.record_dequantize(pass, sequence, layer, tokens, &rows)?;
        }
        Ok(())
    }

    /// Checks the arguments of [`Cache::dequantize`]; returns the bindings of keys and values.
    fn check_dequantize<'r>(
        &self,
        sequence: Sequence,
        layer: u32,
        tokens: &Range<u32>,
        keys: Rows<'r>,
        values: Rows<'r>,
    ) -> Result<[wgpu::BufferBinding<'r>; 2]> {
        self.gpu.alive()?;
        let live = self.pool.find(sequence)?;
        let shape = self.plan.shape();
        if tokens.start > tokens.end || tokens.end > live.at.tokens {
            return Err(Error::Range { first: tokens.start, end: tokens.end, have: live.at.tokens });
        }
        live.expect_held(tokens.start)?;
        live.expect_whole(tokens.end)?;
        self.layer(layer)?;
        for (name, rows) in [("keys", keys), ("values", values)] {
            expect_element(name, Element::F32, rows)?;
        }
        let elements = u64::from(tokens.end - tokens.start) * u64::from(shape.kv_heads * shape.head_dim);
        let capability = self.gpu.capability();
        let [keys, values] = [keys.binding("keys", elements, capability)?, values.binding("values", elements, capability)?];
        expect_apart("values", &values, "keys", &keys)?;
        if !tokens.is_empty() {
            self.expect_appended("Cache::dequantize", sequence, layer..layer + 1)?;
        }
        Ok([keys, values])
    }

    fn record_dequantize(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        sequence: Sequence,
        layer: u32,
        tokens: Range<u32>,
        rows: &[wgpu::BufferBinding<'_>; 2],
    ) -> Result<()> {
        let _span = span!("dequantize", layer, slot = sequence.slot());
        let live = self.pool.find(sequence)?;
        let count = tokens.end - tokens.start;
        let mut words = Vec::new();
        let chunk = live.still(sequence.slot()).record(&mut words, 0);
        let slabs = self.plan.slabs(layer);
        let mut params = Params::new(&self.gpu);
        let mut at = Vec::with_capacity(slabs.len());
        for slab in slabs {
            let heads_at = list_heads(&self.plan, slab, &mut words);
            let (slab_heads, kv_heads, limit) = (slab.count(), self.plan.shape().kv_heads, live.at.limit);
            at.push(params.push(&DequantizeParams { chunk, first: tokens.start, tokens: count, slab_heads, heads_at, kv_heads, limit, pad: 0 }));
        }
        let (group, _) = params.bind_with(&self.gpu, &self.step_layout, &words);
        let mut recorder = self.recorder(pass, layer, &group);
        for ((n, slab), params) in slabs.iter().enumerate().zip(at) {
            let pipeline = recorder.pipelines().slab(layer, n).dequantize();
            // No step forgets these rows, so they are not kept.
            let rows = RowGroups { rows: pipeline.bind_in_order(&self.gpu, 2, rows), layouts: None };
            recorder.run(Role::Dequantize, pipeline, n, Some(&rows), params, recorder.grid(count, slab.count()));
        }
        Ok(())
    }
}

/// Returns the binding of a whole buffer.
fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    buffer.as_entire_buffer_binding()
}
