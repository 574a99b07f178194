// spread: the rotation of a reading's query heads by the lanes that hold them, lane, lane + 32 and so
// on each: by shuffles, since the lanes are one subgroup and HEAD_DIM is a power of two. The steps are
// those of part hadamard, the outer factor's bits of the channel before the inner one's, so that the
// sums are the same.

override HEAD_DIM: u32;       // channels of a head: 64, 128 or 256
override HADAMARD_SCALE: f32; // 1 / sqrt(HEAD_DIM)

const SPREAD_SHARED = false;

// A step between lanes: the lane whose bit is set has the difference.
fn spread_number(x: HeadsF, bit: u32, sign: f32) -> HeadsF {
    return subgroupShuffleXor(x, bit) + sign * x;
}

fn spread_lanes(x: MadeChannels, bit: u32, lane: u32) -> MadeChannels {
    let sign = select(1.0, -1.0, (lane & bit) != 0u);
    var y = x;
    y.a = spread_number(x.a, bit, sign);
    y.b = spread_number(x.b, bit, sign);
    if (HEAD_DIM > 64u) {
        y.c = spread_number(x.c, bit, sign);
        y.d = spread_number(x.d, bit, sign);
    }
    if (HEAD_DIM > 128u) {
        y.e = spread_number(x.e, bit, sign);
        y.f = spread_number(x.f, bit, sign);
        y.g = spread_number(x.g, bit, sign);
        y.h = spread_number(x.h, bit, sign);
    }
    return y;
}

// Bits 5, 6 and 7 of the channel, within a lane.
fn spread_own(x: MadeChannels) -> MadeChannels {
    var y = MadeChannels(x.a + x.b, x.a - x.b, x.c + x.d, x.c - x.d, x.e + x.f, x.e - x.f, x.g + x.h, x.g - x.h);
    if (HEAD_DIM > 64u) {
        y = MadeChannels(y.a + y.c, y.b + y.d, y.a - y.c, y.b - y.d, y.e + y.g, y.f + y.h, y.e - y.g, y.f - y.h);
    }
    if (HEAD_DIM > 128u) {
        y = MadeChannels(y.a + y.e, y.b + y.f, y.c + y.g, y.d + y.h, y.a - y.e, y.b - y.f, y.c - y.g, y.d - y.h);
    }
    return y;
}

fn spread_rotate(x: MadeChannels, lane: u32) -> MadeChannels {
    var y = x;
    // 256 is 16 x 16, the others have an inner factor of 8.
    if (HEAD_DIM < 256u) {
        y = spread_lanes(y, 8u, lane);
    }
    y = spread_own(spread_lanes(y, 16u, lane));
    y = spread_lanes(spread_lanes(spread_lanes(y, 1u, lane), 2u, lane), 4u, lane);
    if (HEAD_DIM == 256u) {
        y = spread_lanes(y, 8u, lane);
    }
    return MadeChannels(y.a * HADAMARD_SCALE, y.b * HADAMARD_SCALE, y.c * HADAMARD_SCALE, y.d * HADAMARD_SCALE,
        y.e * HADAMARD_SCALE, y.f * HADAMARD_SCALE, y.g * HADAMARD_SCALE, y.h * HADAMARD_SCALE);
}
