//! The pipelines of a cache, each looked up once, when it is first needed.

use crate::format::Element;
use crate::gpu::{Gpu, Pipeline, RowForm, Variant};
use crate::kernel::{
    align_plan, align_scores, align_values, append_reordered, attend_direct, attend_matrices, attend_merge, attend_prefill, attend_rows, attend_split,
    dequantize, elect, packing_variant, position, protect, query, unpack,
};
use crate::plan::{Plan, Slab};
use std::sync::OnceLock;

/// A pipeline, once it has been needed.
#[derive(Debug, Default)]
struct Slot(OnceLock<Pipeline>);

impl Slot {
    fn get(&self, gpu: &Gpu, variant: impl FnOnce() -> Variant) -> &Pipeline {
        self.0.get_or_init(|| gpu.pipeline(&variant()))
    }
}

/// One for each form of the caller's rows.
type ByRows = [Slot; RowForm::COUNT];

/// Those that work on one slab's pages.
#[derive(Debug, Default)]
struct SlabPipelines {
    append: ByRows,
    append_reordered: ByRows,
    attend_direct: ByRows,
    attend_split: Slot,
    unpack: Slot,
    dequantize: Slot,
    /// For values, and for keys.
    align_plan: [Slot; 2],
    align_scores: Slot,
    align_values: Slot,
}

/// The pipelines of a cache.
#[derive(Debug)]
pub(super) struct Pipelines {
    query: ByRows,
    position: ByRows,
    protect: ByRows,
    attend_rows: Slot,
    /// By whether blocks are merged.
    elect: [ByRows; 2],
    /// By number of parts, by whether log-sums are wanted, by whether attend_direct came before.
    attend_merge: Vec<[[ByRows; 2]; 2]>,
    attend_prefill: Slot,
    /// By arrangement and slab.
    slabs: Vec<Vec<SlabPipelines>>,
}

impl Pipelines {
    /// Makes an empty set: pipelines are looked up when they are first needed.
    pub fn new(plan: &Plan) -> Self {
        Self {
            query: Default::default(),
            position: Default::default(),
            protect: Default::default(),
            attend_rows: Slot::default(),
            elect: Default::default(),
            attend_merge: plan.merge_choices().iter().map(|_| Default::default()).collect(),
            attend_prefill: Slot::default(),
            slabs: plan.arrangements().iter().map(|slabs| slabs.iter().map(|_| SlabPipelines::default()).collect()).collect(),
        }
    }
}

/// The pipelines of a cache, with what is needed to make the missing ones.
pub(super) struct Lookup<'a> {
    pub gpu: &'a Gpu,
    pub plan: &'a Plan,
    pub pipelines: &'a Pipelines,
}

impl<'a> Lookup<'a> {
    pub fn query(&self, rows: RowForm) -> &'a Pipeline {
        self.pipelines.query[rows.index()].get(self.gpu, || query::variant(self.plan, rows))
    }

    pub fn position(&self, rows: RowForm) -> &'a Pipeline {
        self.pipelines.position[rows.index()].get(self.gpu, || position::variant(self.plan, rows))
    }

    pub fn protect(&self, rows: RowForm) -> &'a Pipeline {
        self.pipelines.protect[rows.index()].get(self.gpu, || protect::variant(self.plan, rows))
    }

    pub fn attend_rows(&self) -> &'a Pipeline {
        self.pipelines.attend_rows.get(self.gpu, || attend_rows::variant(self.plan))
    }

    pub fn elect(&self, element: Element, merge: bool) -> &'a Pipeline {
        self.pipelines.elect[usize::from(merge)][RowForm::from(element).index()].get(self.gpu, || elect::variant(self.plan, element, merge))
    }

    /// Returns the pipeline of `attend_prefill`, or of `attend_matrices` where the plan has them.
    pub fn attend_prefill(&self) -> &'a Pipeline {
        let variant = || if self.plan.matrices() { attend_matrices::variant(self.plan) } else { attend_prefill::variant(self.plan) };
        self.pipelines.attend_prefill.get(self.gpu, variant)
    }

    /// Returns the pipeline for this choice among [`Plan::merge_choices`].
    pub fn attend_merge(&self, rows: RowForm, choice: usize, log_sums: bool, direct: bool) -> &'a Pipeline {
        let variant = || attend_merge::variant(self.plan, rows, self.plan.merge_choices()[choice], log_sums, direct);
        self.pipelines.attend_merge[choice][usize::from(log_sums)][usize::from(direct)][rows.index()].get(self.gpu, variant)
    }

    /// Returns the pipelines of a slab of a layer.
    pub fn slab(&self, layer: u32, slab: usize) -> SlabLookup<'a> {
        let arrangement = self.plan.arrangement(layer);
        let slabs = &self.plan.arrangements()[arrangement];
        SlabLookup { gpu: self.gpu, plan: self.plan, slab: &slabs[slab], pipelines: &self.pipelines.slabs[arrangement][slab] }
    }
}

/// The pipelines of one slab, with what is needed to make the missing ones.
pub(super) struct SlabLookup<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    slab: &'a Slab,
    pipelines: &'a SlabPipelines,
}

impl<'a> SlabLookup<'a> {
    pub fn append(&self, rows: RowForm) -> &'a Pipeline {
        self.pipelines.append[rows.index()].get(self.gpu, || packing_variant(self.plan, self.slab, rows))
    }

    pub fn append_reordered(&self, rows: RowForm) -> &'a Pipeline {
        self.pipelines.append_reordered[rows.index()].get(self.gpu, || append_reordered::variant(self.plan, self.slab, rows))
    }

    pub fn attend_direct(&self, rows: RowForm) -> &'a Pipeline {
        self.pipelines.attend_direct[rows.index()].get(self.gpu, || attend_direct::variant(self.plan, self.slab, rows))
    }

    pub fn attend_split(&self) -> &'a Pipeline {
        self.pipelines.attend_split.get(self.gpu, || attend_split::variant(self.plan, self.slab))
    }

    pub fn unpack(&self) -> &'a Pipeline {
        self.pipelines.unpack.get(self.gpu, || unpack::variant(self.plan, self.slab))
    }

    pub fn dequantize(&self) -> &'a Pipeline {
        self.pipelines.dequantize.get(self.gpu, || dequantize::variant(self.plan, self.slab))
    }

    pub fn align_plan(&self, keys: bool) -> &'a Pipeline {
        self.pipelines.align_plan[usize::from(keys)].get(self.gpu, || align_plan::variant(self.plan, self.slab, keys))
    }

    pub fn align_scores(&self) -> &'a Pipeline {
        self.pipelines.align_scores.get(self.gpu, || align_scores::variant(self.plan, self.slab))
    }

    pub fn align_values(&self) -> &'a Pipeline {
        self.pipelines.align_values.get(self.gpu, || align_values::variant(self.plan, self.slab))
    }
}
