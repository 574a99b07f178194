//! What naga reads in a module: entry point, limits, bindings, parameters, and the house rules that no compiler knows.

use crate::plans::{HALVES_WORKGROUP_BYTES, WIDE_INVOCATIONS, WIDE_WORKGROUP_BYTES};
use crate::proven::{Proven, every, unequal};
use naga::{AddressSpace, Block, Module, ShaderStage, Statement, StorageAccess, TypeInner};
use std::collections::{BTreeMap, HashSet};
use std::mem::offset_of;
use wgkv::low_level::Bindings;
use wgkv::low_level::kernel::{self, Binding, Kernel};

/// WebGPU's default limits, which the portable variants keep to.
const INVOCATIONS: u32 = 256;
const WORKGROUP_BYTES: u32 = 16_384;
const STORAGE_BUFFERS: usize = 8;

/// Kernels that may use atomics: they list broken tokens in `status` (append_reordered finds the extents of groups that lie
/// anywhere in a row, align_plan counts weights). Everything else owns the words it writes.
const ATOMIC_KERNELS: [&str; 5] = ["align_plan", "append", "append_block", "append_reordered", "protect"];

#[test]
fn the_one_entry_point_has_the_name_of_the_file() {
    every(|Proven { variant, module, .. }| {
        let points: Vec<_> = module.entry_points.iter().map(|point| (point.name.as_str(), point.stage)).collect();
        unequal("the list of entry points", points, vec![(variant.kernel.name, ShaderStage::Compute)])
    });
}

fn workgroup_bytes(module: &Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared = module.global_variables.iter().filter(|(_, global)| global.space == AddressSpace::WorkGroup);
    shared.map(|(_, global)| layouter[global.ty].size.next_multiple_of(16)).sum()
}

#[test]
fn workgroups_stay_within_the_default_limits() {
    let mut largest = BTreeMap::new();
    every(|Proven { variant, module, .. }| {
        let mut complaints = Vec::new();
        let invocations = module.entry_points[0].workgroup_size.iter().product::<u32>();
        // That a plan for the default device has no such variant, tests/attend_merge.rs tells.
        let head_dim = variant.constants().iter().find(|(name, _)| *name == "HEAD_DIM").map_or(1, |(_, channels)| *channels as u32);
        // Heads of 512 take an invocation a channel.
        let most = if variant.kernel.name == "attend_merge" { WIDE_INVOCATIONS } else { INVOCATIONS.max(head_dim.min(512)) };
        if invocations > most {
            complaints.push(format!("{invocations} invocations, but {most} are allowed"));
        }
        let bytes = workgroup_bytes(module);
        let constant = |name| variant.constants().iter().find(|(n, _)| *n == name).map_or(1.0, |(_, x)| *x);
        let restores = variant.parts.iter().any(|part| part.name() == "keys/restored");
        // Values in f16 have a weight a token and unit, which RotateKV has several of.
        let weights = variant.parts.iter().any(|part| part.name() == "values/f16");
        let wide = constant("GROUP_HEADS") * constant("HEAD_DIM") > 512.0 || constant("HEAD_DIM") == 256.0 || weights;
        let allowed = match variant.halves || variant.matrices {
            true => HALVES_WORKGROUP_BYTES,
            false if (restores && wide) || (variant.kernel.name == "attend_merge" && invocations > INVOCATIONS) => WIDE_WORKGROUP_BYTES,
            false => WORKGROUP_BYTES,
        };
        if bytes > allowed {
            complaints.push(format!("{bytes} bytes of workgroup memory, but {allowed} are allowed"));
        }
        let storage = module.global_variables.iter().filter(|(_, global)| matches!(global.space, AddressSpace::Storage { .. })).count();
        if storage > STORAGE_BUFFERS {
            complaints.push(format!("{storage} storage buffers, but {STORAGE_BUFFERS} are allowed"));
        }
        let most: &mut (u32, u32) = largest.entry(variant.kernel.name).or_default();
        *most = (most.0.max(invocations), most.1.max(bytes));
        complaints
    });
    for (name, (invocations, bytes)) in largest {
        println!("{name}: {invocations} invocations and {bytes} bytes at most");
    }
}

#[test]
fn bindings_are_those_of_the_kernel() {
    every(|Proven { variant, module, .. }| {
        let mut bound: Vec<(u32, u32, String, Binding)> = Vec::new();
        for (_, global) in module.global_variables.iter() {
            let kind = match global.space {
                AddressSpace::Uniform => Binding::Uniform,
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Binding::Write,
                AddressSpace::Storage { .. } => Binding::Read,
                _ => continue,
            };
            let place = global.binding.unwrap();
            bound.push((place.group, place.binding, global.name.clone().unwrap(), kind));
        }
        bound.sort_by_key(|(group, binding, ..)| (*group, *binding));
        // WGSL has no word for a dynamic offset.
        let plain = |kind: Binding| if kind == Binding::Dynamic { Binding::Uniform } else { kind };
        let of_group =
            |(n, group): (u32, &Bindings)| group.iter().zip(0..).map(move |((name, kind), i)| (n, i, (*name).to_owned(), plain(*kind))).collect::<Vec<_>>();
        let wanted = (0..).zip(&variant.groups()).flat_map(of_group).collect();
        unequal("the list of bindings", bound, wanted)
    });
}

/// Name and offset of a parameter struct's fields, as the Rust side has them.
macro_rules! fields {
    ($kernel:ident :: $params:ident { $($field:ident),* }) => {
        (&kernel::$kernel::KERNEL, stringify!($params), size_of::<kernel::$kernel::$params>(),
            vec![$((stringify!($field), offset_of!(kernel::$kernel::$params, $field))),*])
    };
}

type Fields = (&'static Kernel, &'static str, usize, Vec<(&'static str, usize)>);

fn params() -> Vec<Fields> {
    vec![
        fields!(align_plan::AlignPlanParams { rows_at, slab_heads, heads_at, kv_heads, criterion, phi, pad }),
        fields!(align_scores::AlignScoresParams { items_at, slab_heads, heads_at, kv_heads }),
        fields!(align_values::AlignValuesParams { items_at, slab_heads, heads_at, kv_heads, criterion, pad }),
        fields!(append::AppendParams { items_at, items, layer, slab_heads, heads_at, kv_heads, pad }),
        fields!(append_block::AppendBlockParams { items_at, items, layer, slab_heads, heads_at, kv_heads, pad }),
        fields!(append_reordered::AppendReorderedParams { items_at, items, layer, slab_heads, heads_at, kv_heads, places_at, scales }),
        fields!(attend_direct::AttendDirectParams { items_at, row_items_at, row_items, slab_heads, heads_at, kv_heads, positions_at, row_first }),
        fields!(attend_matrices::AttendMatricesParams { items_at, kv_heads, pad }),
        fields!(attend_merge::AttendMergeParams { records_at, row_first, query_heads, kv_heads }),
        fields!(attend_prefill::AttendPrefillParams { items_at, kv_heads, pad }),
        fields!(attend_rows::AttendRowsParams { items_at, kv_heads, pad }),
        fields!(attend_split::AttendSplitParams { items_at, slab_heads, heads_at, kv_heads }),
        fields!(dequantize::DequantizeParams { chunk, first, tokens, slab_heads, heads_at, kv_heads, limit, pad }),
        fields!(elect::ElectParams { items_at, items, width, pad }),
        fields!(gram::GramParams { rows, heads, pad }),
        fields!(measure::MeasureParams { rows, width, zero, head_dim, base, tokens, sequence_stride, token_stride, head_stride, position, sequence, pad }),
        fields!(position::PositionParams { items_at, positions_at, row_first, query_heads, kv_heads, pad }),
        fields!(protect::ProtectParams { items_at, items, layer, kv_heads }),
        fields!(query::QueryParams { positions_at, row_first, query_heads, kv_heads, groups_at, pad }),
        fields!(rotate::RotateParams { rows, pad }),
        fields!(unpack::UnpackParams { items_at, slab_heads, heads_at, kv_heads }),
    ]
}

/// Every field as words of four bytes: an array `pad` of two is `pad_a` and `pad_b` in WGSL.
fn words(fields: &[(&str, usize)], bytes: usize) -> Vec<(String, u32)> {
    let ends = fields.iter().skip(1).map(|(_, offset)| *offset).chain([bytes]);
    let words = fields.iter().zip(ends).flat_map(|((name, first), end)| {
        (*first..end).step_by(4).zip('a'..='z').map(move |(offset, letter)| {
            let name = if end - first > 4 { format!("{name}_{letter}") } else { (*name).to_owned() };
            (name, offset as u32)
        })
    });
    words.collect()
}

#[test]
fn params_lie_where_rust_puts_them() {
    let params = params();
    assert_eq!(params.len(), kernel::ALL.len(), "every kernel needs a row in params()");
    every(|Proven { variant, module, .. }| {
        let Some((_, name, bytes, fields)) = params.iter().find(|(kernel, ..)| kernel.name == variant.kernel.name) else {
            return vec!["has no row in params()".to_owned()];
        };
        let Some((_, uniform)) = module.global_variables.iter().find(|(_, global)| global.space == AddressSpace::Uniform) else {
            return vec!["has no uniform".to_owned()];
        };
        let ty = &module.types[uniform.ty];
        let TypeInner::Struct { members, span } = &ty.inner else {
            return vec!["the uniform is no struct".to_owned()];
        };
        let got: Vec<(String, u32)> = members.iter().map(|m| (m.name.clone().unwrap(), m.offset)).collect();
        let mut complaints = unequal("the list of fields", got, words(fields, *bytes));
        let integers = members.iter().all(|m| module.types[m.ty].inner == TypeInner::Scalar(naga::Scalar::U32));
        complaints.extend(unequal("every field is a u32:", integers, true));
        complaints.extend(unequal("the struct's name", ty.name.as_deref(), Some(*name)));
        complaints.extend(unequal("the struct's size", *span as usize, variant.kernel.params_bytes));
        complaints.extend(unequal("the Rust struct's size", *bytes, variant.kernel.params_bytes));
        // A uniform binding of less than 16 bytes is refused by some drivers.
        complaints.extend(unequal("the struct's size modulo 16", span % 16, 0));
        complaints
    });
}

/// Calls `visit` on every statement of a block and of the blocks inside it.
fn walk(block: &Block, visit: &mut impl FnMut(&Statement)) {
    for statement in block.iter() {
        visit(statement);
        match statement {
            Statement::Block(inner) => walk(inner, visit),
            Statement::If { accept, reject, .. } => {
                walk(accept, visit);
                walk(reject, visit);
            }
            Statement::Switch { cases, .. } => cases.iter().for_each(|case| walk(&case.body, visit)),
            Statement::Loop { body, continuing, .. } => {
                walk(body, visit);
                walk(continuing, visit);
            }
            _ => {}
        }
    }
}

#[test]
fn house_rule_only_kernels_that_append_use_atomics() {
    every(|Proven { variant, module, .. }| {
        let atomics = module.types.iter().any(|(_, ty)| matches!(ty.inner, TypeInner::Atomic(_)));
        unequal("the use of atomics", atomics, ATOMIC_KERNELS.contains(&variant.kernel.name))
    });
}

/// A barrier in a called function inside a loop was miscompiled by a driver, and hides where the
/// workgroup meets. So a function that has some is called by the entry point alone, outside of loops.
#[test]
fn house_rule_barriers_stand_at_the_top() {
    every(|Proven { module, .. }| {
        let mut complaints = Vec::new();
        let mut meets = HashSet::new();
        for (handle, function) in module.functions.iter() {
            walk(&function.body, &mut |statement| {
                if matches!(statement, Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) | Statement::WorkGroupUniformLoad { .. }) {
                    meets.insert(handle);
                }
            });
        }
        let mut refuse = |body: &Block, place: &str| {
            walk(body, &mut |statement| match statement {
                Statement::Call { function, .. } if meets.contains(function) => {
                    complaints.push(format!("{} has barriers and is called {place}", module.functions[*function].name.as_deref().unwrap_or("?")));
                }
                _ => {}
            });
        };
        for (_, function) in module.functions.iter() {
            refuse(&function.body, "by another function");
        }
        for entry in &module.entry_points {
            walk(&entry.function.body, &mut |statement| {
                if let Statement::Loop { body, continuing, .. } = statement {
                    refuse(body, "in a loop");
                    refuse(continuing, "in a loop");
                }
            });
        }
        complaints
    });
}
