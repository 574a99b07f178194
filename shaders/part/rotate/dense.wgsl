// rotate/dense: rows of an order that is no power of two, 80, 96 or 192, by the two factors of part
// hadamard as sums of signs. INVOCATIONS is HEAD_DIM.

override HEAD_DIM: u32; // channels of a head

alias Cell = f32;
alias RotateCell = f32;
alias RotateMixed = f32;

const ROTATE_BARRIER = true;

var<workgroup> row: array<f32, HEAD_DIM>;

fn rotate_gather(place: u32, i: u32) {
    row[i] = rotate_read(min(place, params.rows - 1u) * HEAD_DIM + i);
}

fn rotate_mix(i: u32) -> RotateMixed {
    return hadamard_outer(i);
}

fn rotate_put(i: u32, x: RotateMixed) {
    row[i] = x;
}

fn rotate_scatter(place: u32, i: u32) {
    if (place < params.rows) {
        rotated[place * HEAD_DIM + i] = hadamard_inner(i);
    }
}
