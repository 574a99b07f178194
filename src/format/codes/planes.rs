//! Halves cut into planes of 8, 4 and 4 bits, as they lie in a page. Shader:
//! `shaders/part/shared/planes.wgsl`.

use super::aligned::{join, split};

/// Returns where number `n` of a row lies in its word of the first plane.
pub fn byte_shift(n: u32) -> u32 {
    16 * (n & 1) + 8 * (n >> 1 & 1)
}

/// Returns where number `n` of a row lies in its word of eight nibbles.
pub fn nibble_shift(n: u32) -> u32 {
    16 * (n & 1) + 4 * (n >> 1 & 3)
}

/// Returns the word, from the first plane's start, and the shift of each plane of number `n` of a
/// row of `length` numbers.
pub fn places(head_dim: u32, length: u32, row: u32, n: u32) -> [(usize, u32); 3] {
    let nibbles = row * length / 8 + n / 8;
    [
        ((row * length / 4 + n / 4) as usize, byte_shift(n)),
        ((32 * head_dim + nibbles) as usize, nibble_shift(n)),
        ((48 * head_dim + nibbles) as usize, nibble_shift(n)),
    ]
}

/// Returns number `n` of a row of `length` numbers: of a channel's 128 tokens, or of a token's
/// channels.
pub fn take(head_dim: u32, planes: &[u32], length: u32, row: u32, n: u32) -> u16 {
    let [first, middle, last] = places(head_dim, length, row, n).map(|(word, shift)| planes[word] >> shift);
    join([first as u8, middle as u8 & 15, last as u8 & 15])
}

/// Writes number `n` of a row: all other numbers stay.
pub fn put(head_dim: u32, planes: &mut [u32], length: u32, row: u32, n: u32, half: u16) {
    for ((word, shift), (bits, mask)) in places(head_dim, length, row, n).into_iter().zip(split(half).into_iter().zip([255, 15, 15])) {
        planes[word] = (planes[word] & !(mask << shift)) | (u32::from(bits) << shift);
    }
}

#[cfg(test)]
mod tests {
    use super::{put, take};

    #[test]
    fn planes_hold_two_bytes_a_number_and_nothing_else() {
        let half = |row: u32, n: u32| (row * 40503 + n * 2591 + 7) as u16;
        for (rows, length) in [(80, 128), (128, 80)] {
            // 64 words a channel are 128 tokens of 16 bits.
            let mut planes = vec![u32::MAX; 64 * 80 + 8];
            let all = || (0..rows).flat_map(|row| (0..length).map(move |n| (row, n)));
            all().for_each(|(row, n)| put(80, &mut planes, length, row, n, half(row, n)));
            assert!(all().all(|(row, n)| take(80, &planes, length, row, n) == half(row, n)));
            assert!(planes[64 * 80..].iter().all(|word| *word == u32::MAX));
        }
    }
}
