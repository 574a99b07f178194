// rotate: rows times the orthonormal Hadamard matrix of order head_dim. Applied twice it returns the row.
//
//   y = H x,   H = H_outer (x) H_inner / sqrt(head_dim)
//
// One workgroup rotates one row; invocation i holds element i. Rows may be rotated in place.
//
// Parts: place, hadamard. Wrapper: src/kernel/rotate.rs. Twin: src/reference/rotate.rs.

override HEAD_DIM: u32;
override HADAMARD_OUTER: u32;
override HADAMARD_INNER: u32;
override HADAMARD_SCALE: f32;

struct RotateParams { // src/kernel/rotate.rs
    rows: u32,
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

alias Cell = f32;

@group(0) @binding(0) var<uniform> params: RotateParams;
@group(0) @binding(1) var<storage, read_write> rows: array<f32>; // [rows, HEAD_DIM]

var<workgroup> row: array<f32, HEAD_DIM>;

@compute @workgroup_size(HEAD_DIM)
fn rotate(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let r = place_workgroup(workgroup, workgroups);
    // Surplus workgroups of the folded grid rotate the last row's copy in workgroup memory and store nothing.
    let at = min(r, params.rows - 1u) * HEAD_DIM + i;
    row[i] = rows[at];
    workgroupBarrier();
    let x = hadamard_outer(i);
    workgroupBarrier();
    row[i] = x;
    workgroupBarrier();
    if (r < params.rows) {
        rows[at] = hadamard_inner(i);
    }
}
