// rotate/butterfly: rows of 64 to 1024 numbers, a power of two, by butterflies. Needs butterfly.
//
// A workgroup holds a tile of 8 * INVOCATIONS vectors of four numbers, whole rows since INVOCATIONS
// >= 32 (a multiple of it), eight vectors an invocation, and looks at it in three ways. Every 32
// invocations keep to their own 256 vectors. Bits of a vector's number in the tile, below 256, and
// of a number's index in its row, two lower bits being those within the vector:
//
//   step     vectors of an invocation  bits of the vector  bits of the index
//   gather   32 apart                  5, 6, 7             7, 8, 9, as far as the row has them
//   mix      neighbours                0, 1, 2             0, 1 (within the vector), 2, 3, 4
//   scatter  8 apart                   3, 4                5, and 6 where the row has it
//
// So 32 invocations read 512 consecutive bytes at once, and write runs of 128, which memory takes
// whole. mix stores where it loaded, so that nothing but the two exchanges needs a barrier.

override HEAD_DIM: u32;       // channels of a head
override HADAMARD_SCALE: f32; // 1 / sqrt(HEAD_DIM)
override INVOCATIONS: u32;

alias RotateCell = vec4<f32>;
alias RotateMixed = ButterflyEight;

const ROTATE_BARRIER = false;
const ROTATE_VECTORS = 8u * INVOCATIONS;

var<workgroup> rotate_tile: array<vec4<f32>, ROTATE_VECTORS>;

// Eight consecutive invocations meet eight different groups of banks (16 bytes each) in all three
// ways of looking.
fn rotate_slot(v: u32) -> u32 {
    return v ^ ((v >> 3u) & 7u);
}

fn rotate_gather(place: u32, i: u32) {
    let first = place * ROTATE_VECTORS;
    let last = params.rows * (HEAD_DIM / 4u) - 1u;
    let v = (i & ~31u) * 8u + (i & 31u);
    var x = ButterflyEight(
        rotate_read(min(first + v, last)), rotate_read(min(first + v + 32u, last)),
        rotate_read(min(first + v + 64u, last)), rotate_read(min(first + v + 96u, last)),
        rotate_read(min(first + v + 128u, last)), rotate_read(min(first + v + 160u, last)),
        rotate_read(min(first + v + 192u, last)), rotate_read(min(first + v + 224u, last)),
    );
    if (HEAD_DIM > 128u) {
        x = butterfly_1(x);
    }
    if (HEAD_DIM > 256u) {
        x = butterfly_2(x);
    }
    if (HEAD_DIM > 512u) {
        x = butterfly_4(x);
    }
    rotate_tile[rotate_slot(v)] = x.a;
    rotate_tile[rotate_slot(v + 32u)] = x.b;
    rotate_tile[rotate_slot(v + 64u)] = x.c;
    rotate_tile[rotate_slot(v + 96u)] = x.d;
    rotate_tile[rotate_slot(v + 128u)] = x.e;
    rotate_tile[rotate_slot(v + 160u)] = x.f;
    rotate_tile[rotate_slot(v + 192u)] = x.g;
    rotate_tile[rotate_slot(v + 224u)] = x.h;
}

fn rotate_mix(i: u32) -> RotateMixed {
    let v = i * 8u;
    let x = ButterflyEight(
        rotate_tile[rotate_slot(v)], rotate_tile[rotate_slot(v + 1u)], rotate_tile[rotate_slot(v + 2u)], rotate_tile[rotate_slot(v + 3u)],
        rotate_tile[rotate_slot(v + 4u)], rotate_tile[rotate_slot(v + 5u)], rotate_tile[rotate_slot(v + 6u)], rotate_tile[rotate_slot(v + 7u)],
    );
    return butterfly_4(butterfly_2(butterfly_1(butterfly_vectors(x))));
}

fn rotate_put(i: u32, x: RotateMixed) {
    let v = i * 8u;
    rotate_tile[rotate_slot(v)] = x.a;
    rotate_tile[rotate_slot(v + 1u)] = x.b;
    rotate_tile[rotate_slot(v + 2u)] = x.c;
    rotate_tile[rotate_slot(v + 3u)] = x.d;
    rotate_tile[rotate_slot(v + 4u)] = x.e;
    rotate_tile[rotate_slot(v + 5u)] = x.f;
    rotate_tile[rotate_slot(v + 6u)] = x.g;
    rotate_tile[rotate_slot(v + 7u)] = x.h;
}

fn rotate_store(at: u32, x: vec4<f32>) {
    if (at < params.rows * (HEAD_DIM / 4u)) {
        rotated[at] = x * HADAMARD_SCALE;
    }
}

fn rotate_scatter(place: u32, i: u32) {
    let first = place * ROTATE_VECTORS;
    let v = (i & ~7u) * 8u + (i & 7u);
    var x = butterfly_1(ButterflyEight(
        rotate_tile[rotate_slot(v)], rotate_tile[rotate_slot(v + 8u)], rotate_tile[rotate_slot(v + 16u)], rotate_tile[rotate_slot(v + 24u)],
        rotate_tile[rotate_slot(v + 32u)], rotate_tile[rotate_slot(v + 40u)], rotate_tile[rotate_slot(v + 48u)], rotate_tile[rotate_slot(v + 56u)],
    ));
    if (HEAD_DIM > 64u) {
        x = butterfly_2(x);
    }
    rotate_store(first + v, x.a);
    rotate_store(first + v + 8u, x.b);
    rotate_store(first + v + 16u, x.c);
    rotate_store(first + v + 24u, x.d);
    rotate_store(first + v + 32u, x.e);
    rotate_store(first + v + 40u, x.f);
    rotate_store(first + v + 48u, x.g);
    rotate_store(first + v + 56u, x.h);
}
