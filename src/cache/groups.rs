//! The bind groups of a cache. Group 0 of every kernel holds the cache's own buffers and is made
//! once; group 1 holds a step's parameters and tables and is made once a step; group 2 holds the
//! caller's rows, and is made once a step for rows that come again in every layer; group 3 says
//! where rows with strides lie, and is kept, since engines have few layouts.

use super::buffers::Buffers;
use crate::gpu::{Gpu, Pipeline, Strides};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Which kernel a bind group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Append,
    AppendReordered,
    Protect,
    Elect,
    Query,
    Position,
    AttendDirect,
    AttendSplit,
    Unpack,
    AttendPrefill,
    AttendRows,
    AttendMerge,
    AlignPlan,
    AlignScores,
    AlignValues,
    Dequantize,
}

const ROLES: usize = Role::Dequantize as usize + 1;

/// The group of `layouts`, after the three of every kernel that takes the caller's rows.
const LAYOUTS_GROUP: usize = 3;

/// What a group 2 binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowsOf {
    KeysAndValues,
    Keys,
    Queries,
    Output,
    Election,
}

/// The caller's rows of one call, in the order of their bindings.
type Bound<'a> = [wgpu::BufferBinding<'a>];

/// A group 2, and what it binds.
#[derive(Debug)]
struct RowGroup {
    of: RowsOf,
    bound: Vec<(wgpu::Buffer, u64, Option<wgpu::BufferSize>)>,
    group: wgpu::BindGroup,
}

impl RowGroup {
    fn is_of(&self, of: RowsOf, rows: &Bound<'_>) -> bool {
        self.of == of
            && self.bound.len() == rows.len()
            && self.bound.iter().zip(rows).all(|((buffer, offset, size), row)| buffer == row.buffer && *offset == row.offset && *size == row.size)
    }
}

/// Groups of the caller's rows that are kept at most: an engine with other buffers in every layer
/// must not fill the memory.
const KEPT: usize = 8;

/// Groups of layouts that are kept at most. An engine whose rows begin at any multiple of 16 bytes
/// has 16 of a tensor, where bindings begin at multiples of 256.
const KEPT_LAYOUTS: usize = 64;

/// The layouts of one or two tensors, as `layouts` has them.
pub(super) type Layouts = [Strides; 2];

/// The bind groups of a cache.
#[derive(Debug)]
pub(super) struct Groups {
    /// By layer and slab.
    own: Vec<Vec<[OnceLock<wgpu::BindGroup>; ROLES]>>,
    rows: Mutex<Vec<RowGroup>>,
    layouts: Mutex<Vec<(Layouts, wgpu::BindGroup)>>,
}

impl Groups {
    /// Makes an empty set: groups are made when they are first needed.
    pub fn new(buffers: &Buffers) -> Self {
        let layer = |layer: &super::buffers::Layer| layer.pages.iter().map(|_| Default::default()).collect();
        Self { own: buffers.layers.iter().map(layer).collect(), rows: Mutex::default(), layouts: Mutex::default() }
    }

    /// Returns the bind group of the cache's own buffers.
    pub fn own(&self, gpu: &Gpu, buffers: &Buffers, role: Role, pipeline: &Pipeline, layer: usize, slab: usize) -> &wgpu::BindGroup {
        self.own[layer][slab][role as usize].get_or_init(|| {
            pipeline.bind(gpu, 0, |name| {
                // Every kernel's names are buffers': the test in buffers.rs looks each of them up.
                let buffer = buffers.named(name, layer, slab);
                debug_assert!(buffer.is_some(), "no buffer is called {name}");
                buffer.unwrap_or(&buffers.shared.no_log_sums).as_entire_binding()
            })
        })
    }

    /// Returns the bind group of a caller's rows: that of the layer before, where it binds the
    /// same.
    pub fn rows(&self, gpu: &Gpu, of: RowsOf, pipeline: &Pipeline, rows: &Bound<'_>) -> wgpu::BindGroup {
        let mut kept = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.iter().find(|known| known.is_of(of, rows)) {
            return known.group.clone();
        }
        let group = pipeline.bind_in_order(gpu, 2, rows);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        let bound = rows.iter().map(|row| (row.buffer.clone(), row.offset, row.size)).collect();
        kept.push(RowGroup { of, bound, group: group.clone() });
        group
    }

    /// Returns the bind group of layouts, for a pipeline that takes rows with strides.
    pub fn layouts(&self, gpu: &Gpu, pipeline: &Pipeline, layouts: Layouts) -> wgpu::BindGroup {
        let mut kept = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, group)) = kept.iter().find(|(known, _)| *known == layouts) {
            return group.clone();
        }
        let buffer = gpu.filled("wgkv layouts", bytemuck::bytes_of(&layouts), wgpu::BufferUsages::UNIFORM);
        let group = pipeline.bind(gpu, LAYOUTS_GROUP, |_| buffer.as_entire_binding());
        if kept.len() == KEPT_LAYOUTS {
            kept.remove(0);
        }
        kept.push((layouts, group.clone()));
        group
    }

    /// Drops the caller's rows, so that their buffers are held no longer than to the next step.
    pub fn forget_rows(&self) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
