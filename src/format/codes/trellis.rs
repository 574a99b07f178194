//! What the symbols of a trellis code say ([`Code::Trellis`](crate::Code::Trellis)), and in which
//! order a group's channels are its symbols. Shaders: `shaders/part/shared/trellis.wgsl` and
//! `shaders/part/shared/trellis_words.wgsl`.

/// The number between the two middle levels: level v stands for `v - ZERO` steps.
pub const ZERO: f32 = 4.5;

/// Returns the level, 0 to 9, of a symbol `a` that follows `b`, which follows `c`.
pub fn level(a: u32, b: u32, c: u32) -> u32 {
    b + 2 * (a ^ c ^ ((b & 1) << 1 | c >> 1))
}

/// Returns the levels of a group's symbols, in the order of the trellis.
pub fn levels(symbols: &[u32]) -> Vec<u32> {
    let before = |i: usize, by: usize| symbols[(i + symbols.len() - by) % symbols.len()];
    symbols.iter().enumerate().map(|(i, symbol)| level(*symbol, before(i, 1), before(i, 2))).collect()
}

/// Returns the channel, counted in its group, of symbol `i`: the trellis of keys goes by the bits
/// of their words, in which four consecutive channels lie 8 bits apart; that of values by channels.
pub fn channel(key: bool, i: usize) -> usize {
    if key { i / 16 * 16 + i % 4 * 4 + i / 4 % 4 } else { i }
}

/// Returns the levels of a group's codes, both by channel.
pub fn channel_levels(key: bool, codes: &[u32]) -> Vec<u32> {
    let symbols: Vec<u32> = (0..codes.len()).map(|i| codes[channel(key, i)]).collect();
    let mut by_channel = vec![0; codes.len()];
    levels(&symbols).into_iter().enumerate().for_each(|(i, level)| by_channel[channel(key, i)] = level);
    by_channel
}

/// Returns the levels of the sixteen channels of a word of key codes, given the word before, as
/// four quads of channels, a byte each. Shader: `shaders/part/shared/trellis_words.wgsl`.
pub fn word_levels(word: u32, before: u32) -> [u32; 4] {
    let f = word << 2 | before >> 30;
    let g = word ^ (word << 3 | before >> 29) ^ (word << 4 | before >> 28);
    let even = (f & 0x3333_3333) + ((g << 1) & 0x6666_6666);
    let odd = ((f >> 2) & 0x3333_3333) + ((g >> 1) & 0x6666_6666);
    [even, odd, even >> 4, odd >> 4].map(|levels| levels & 0x0f0f_0f0f)
}

#[cfg(test)]
mod tests {
    use super::{channel, channel_levels, level, levels, word_levels};

    #[test]
    fn words_say_what_their_symbols_say() {
        let mut state = 1_u32;
        for _ in 0..1000 {
            let codes: Vec<u32> = (0..32)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state >> 30
                })
                .collect();
            // Channel 4 j + byte of a word lies at bit 8 byte + 2 j.
            let word = |w: usize| (0..16).fold(0, |word, c| word | codes[16 * w + c] << (8 * (c % 4) + 2 * (c / 4)));
            let want = channel_levels(true, &codes);
            for w in 0..2 {
                let got: Vec<u32> = word_levels(word(w), word(1 - w)).iter().flat_map(|quad| quad.to_le_bytes()).map(u32::from).collect();
                assert_eq!(got, want[16 * w..16 * w + 16]);
            }
        }
    }

    #[test]
    fn the_published_symbols_have_the_published_levels() {
        assert_eq!(levels(&[1, 0, 2, 3, 3, 1, 0, 2]), [4, 3, 6, 8, 7, 5, 1, 6]);
    }

    #[test]
    fn any_two_symbols_leave_four_levels_two_apart() {
        for (b, c) in (0..4).flat_map(|b| (0..4).map(move |c| (b, c))) {
            let mut four = [0, 1, 2, 3].map(|a| level(a, b, c));
            four.sort_unstable();
            assert_eq!(four, [b, b + 2, b + 4, b + 6]);
        }
    }

    #[test]
    fn every_channel_has_one_symbol() {
        for (key, n) in [(true, 80), (true, 128), (false, 96)] {
            let mut channels: Vec<usize> = (0..n).map(|i| channel(key, i)).collect();
            channels.sort_unstable();
            assert_eq!(channels, (0..n).collect::<Vec<_>>());
        }
    }
}
