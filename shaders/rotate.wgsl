// rotate: rows times the orthonormal Hadamard matrix of order HEAD_DIM. Applied twice it returns
// the row.
//
//   y = H x,   H = H_outer (x) H_inner / sqrt(HEAD_DIM); Sylvester's matrix, in natural order, where HEAD_DIM is a power of two
//
// HEAD_DIM may be longer than a head: RotateKV rotates several heads as one row.
//
// Part rotate/butterfly for powers of two: a workgroup rotates 32 * INVOCATIONS numbers, several
// rows. Part rotate/dense for 80, 96 and 192: a workgroup rotates one row, invocation i holding element
// i.
//
// In place or not. A buffer cannot be bound both to read and to write, so in place only `rotated`
// is bound to the rows; it is then read as well, and `rows` is bound to 16 bytes that nobody reads.
// Thus the input of the other way stays read-only.
//
// Wrapper: src/kernel/rotate.rs.
// Twin: src/kernel/reference/rotate.rs.

override INVOCATIONS: u32;
override IN_PLACE: bool;

struct RotateParams { // src/kernel/rotate.rs
    rows: u32,
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(0) @binding(0) var<uniform> params: RotateParams;
@group(0) @binding(1) var<storage, read> rows: array<RotateCell>; // [rows, HEAD_DIM] numbers; unless in place
@group(0) @binding(2) var<storage, read_write> rotated: array<RotateCell>; // [rows, HEAD_DIM] numbers

fn rotate_read(at: u32) -> RotateCell {
    if (IN_PLACE) {
        return rotated[at];
    }
    return rows[at];
}

@compute @workgroup_size(INVOCATIONS)
fn rotate(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    // A workgroup has read all its numbers before it writes any, and no other workgroup has a share
    // in them. Surplus invocations, and surplus workgroups of the folded grid, work on copies of
    // the last numbers and store nothing.
    let place = place_workgroup(workgroup, workgroups);
    rotate_gather(place, i);
    workgroupBarrier();
    let x = rotate_mix(i);
    if (ROTATE_BARRIER) {
        workgroupBarrier();
    }
    rotate_put(i, x);
    workgroupBarrier();
    rotate_scatter(place, i);
}
