// hadamard: the two factors of the orthonormal Hadamard matrix of order HEAD_DIM = HADAMARD_OUTER *
// HADAMARD_INNER, each row of a factor being signs only. 64 = 8x8, 80 = 20x4, 96 = 12x8, 128 =
// 16x8, 192 = 12x16, 256 = 16x16, 512 = 32x16. Every factor is symmetric, so the transform is its
// own inverse. Works on the workgroup array `row` of one or more heads, HEAD_DIM cells each; the
// kernel defines Cell (f32, or a vector of them) and puts a barrier on both sides of each factor.
// Twin: src/kernel/reference/hadamard.rs.

override HEAD_DIM: u32;       // channels of a head
override HADAMARD_OUTER: u32;
override HADAMARD_INNER: u32;
override HADAMARD_SCALE: f32; // 1 / sqrt(HEAD_DIM)

// Signs of the symmetric Hadamard matrices of order 12 and 20 (Paley's second construction): bit j
// of word r is set where entry (r, j) is -1.
const HADAMARD_12 = array<u32, 12>(0x40u, 0x698u, 0xd30u, 0xaa2u, 0x586u, 0xb0cu, 0xfc1u, 0x9dau, 0x3f4u, 0x76au, 0xe56u, 0xcecu);
const HADAMARD_20 = array<u32, 20>(0x400u, 0xd8b60u, 0xb52d0u, 0x6e1b0u, 0xc730cu, 0xaaa8au, 0x71986u, 0x3b06cu, 0x5685au, 0x8d836u, 0xffc01u, 0x27f62u, 0x4bed4u, 0x93db8u, 0x3cf1cu, 0x5d6aau, 0x9e5c6u, 0xe4cecu, 0xe955au, 0xf2636u);

// The same for row r of the Sylvester matrix of order 16, whose corners are those of order 4 and 8.
// Computed, because an indexed constant array costs memory traffic.
fn hadamard_sylvester(r: u32) -> u32 {
    return (0xaaaau * (r & 1u)) ^ (0x6666u * (r & 2u)) ^ (0x3c3cu * (r & 4u)) ^ (0x1fe0u * (r & 8u));
}

fn hadamard_sign(mask: u32, j: u32) -> f32 {
    return bitcast<f32>(0x3f800000u | (((mask >> j) & 1u) << 31u));
}

fn hadamard_four(mask: u32, j: u32, base: u32, stride: u32) -> Cell {
    return ((hadamard_sign(mask, j) * row[base + j * stride] + hadamard_sign(mask, j + 1u) * row[base + (j + 1u) * stride])
        + (hadamard_sign(mask, j + 2u) * row[base + (j + 2u) * stride] + hadamard_sign(mask, j + 3u) * row[base + (j + 3u) * stride]));
}

// The factor over blocks: element i gathers the same place of every block of HADAMARD_INNER
// elements.
fn hadamard_outer(i: u32) -> Cell {
    let r = i % HEAD_DIM / HADAMARD_INNER;
    let base = i - i % HEAD_DIM + i % HADAMARD_INNER;
    var mask = 0u;
    if (HADAMARD_OUTER == 12u) {
        mask = HADAMARD_12[r];
    } else if (HADAMARD_OUTER == 20u) {
        mask = HADAMARD_20[r];
    } else if (HADAMARD_OUTER == 32u) {
        // Four of order 16, the last of the other sign.
        mask = (hadamard_sylvester(r) * 0x10001u) ^ (0x0ffff000u * (r & 16u));
    } else {
        mask = hadamard_sylvester(r);
    }
    var sum = hadamard_four(mask, 0u, base, HADAMARD_INNER) + hadamard_four(mask, 4u, base, HADAMARD_INNER);
    if (HADAMARD_OUTER == 16u) {
        return sum + (hadamard_four(mask, 8u, base, HADAMARD_INNER) + hadamard_four(mask, 12u, base, HADAMARD_INNER));
    }
    if (HADAMARD_OUTER == 32u) {
        sum += hadamard_four(mask, 8u, base, HADAMARD_INNER) + hadamard_four(mask, 12u, base, HADAMARD_INNER);
        return sum + ((hadamard_four(mask, 16u, base, HADAMARD_INNER) + hadamard_four(mask, 20u, base, HADAMARD_INNER))
            + (hadamard_four(mask, 24u, base, HADAMARD_INNER) + hadamard_four(mask, 28u, base, HADAMARD_INNER)));
    }
    if (HADAMARD_OUTER > 8u) {
        sum += hadamard_four(mask, 8u, base, HADAMARD_INNER);
    }
    if (HADAMARD_OUTER > 12u) {
        sum += hadamard_four(mask, 12u, base, HADAMARD_INNER) + hadamard_four(mask, 16u, base, HADAMARD_INNER);
    }
    return sum;
}

// The factor within a block, and the scale that makes the whole orthonormal.
fn hadamard_inner(i: u32) -> Cell {
    let mask = hadamard_sylvester(i % HADAMARD_INNER);
    let base = i - i % HADAMARD_INNER;
    var sum = hadamard_four(mask, 0u, base, 1u);
    if (HADAMARD_INNER > 4u) {
        sum += hadamard_four(mask, 4u, base, 1u);
    }
    if (HADAMARD_INNER > 8u) {
        sum += hadamard_four(mask, 8u, base, 1u) + hadamard_four(mask, 12u, base, 1u);
    }
    return sum * HADAMARD_SCALE;
}
