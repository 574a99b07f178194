//! Integer codes cut into planes, as they lie in a page: 4 bits in two planes of 2, 8 bits in
//! planes of 4, 2 and 2. Shader: `shaders/part/shared/code_planes.wgsl`.

/// Returns the bits of each plane, the high ones first.
pub fn widths(bits: u32) -> &'static [u32] {
    if bits == 8 { &[4, 2, 2] } else { &[2, 2] }
}

/// Returns the word, from the first plane's start, and the shift of each plane of one code: of
/// channel (or token) `unit`, among `length` times four tokens (channels) the one at `n`.
pub fn places(head_dim: u32, bits: u32, length: u32, unit: u32, n: u32) -> Vec<(usize, u32)> {
    let (row, byte, at, slot) = (unit / 4, unit % 4, n / 4, n % 4);
    let mut first = 0;
    let place = |width: &u32| {
        let plane = first;
        // 128 numbers of every channel.
        first += 4 * head_dim * width;
        if *width == 4 {
            ((plane + (2 * row + slot % 2) * length + at) as usize, 8 * byte + 4 * (slot / 2))
        } else {
            ((plane + row * length + at) as usize, 8 * byte + 2 * slot)
        }
    };
    widths(bits).iter().map(place).collect()
}

/// Returns one code.
pub fn take(head_dim: u32, bits: u32, planes: &[u32], length: u32, unit: u32, n: u32) -> u32 {
    let places = places(head_dim, bits, length, unit, n);
    places.into_iter().zip(widths(bits)).fold(0, |code, ((word, shift), width)| code << width | (planes[word] >> shift & ((1 << width) - 1)))
}

/// Writes one code: all others stay.
pub fn put(head_dim: u32, bits: u32, planes: &mut [u32], length: u32, unit: u32, n: u32, code: u32) {
    let mut low = bits;
    for ((word, shift), width) in places(head_dim, bits, length, unit, n).into_iter().zip(widths(bits)) {
        low -= width;
        let mask = (1 << width) - 1;
        planes[word] = (planes[word] & !(mask << shift)) | ((code >> low & mask) << shift);
    }
}

#[cfg(test)]
mod tests {
    use super::{put, take};

    #[test]
    fn planes_hold_the_bits_of_the_codes_and_nothing_else() {
        for bits in [4, 8] {
            let code = |unit: u32, n: u32| (unit * 40503 + n * 2591 + 7) % (1 << bits);
            for (units, length) in [(80, 32), (128, 20)] {
                let words = (80 * 128 * bits / 32) as usize;
                let mut planes = vec![u32::MAX; words + 8];
                let all = || (0..units).flat_map(|unit| (0..4 * length).map(move |n| (unit, n)));
                all().for_each(|(unit, n)| put(80, bits, &mut planes, length, unit, n, code(unit, n)));
                assert!(all().all(|(unit, n)| take(80, bits, &planes, length, unit, n) == code(unit, n)));
                assert!(planes[words..].iter().all(|word| *word == u32::MAX));
            }
        }
    }
}
