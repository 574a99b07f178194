// values, 2 bits by a trellis: a word holds 16 tokens of one channel, and levels come of it and of the
// words of the two channels before, round the group. Needs trellis_words and before/<how>.

fn values_word(v: vec4<u32>, w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    let levels = trellis_words_values(v, before_pair(v, w, at, (*sums).quad));
    values_quad(levels.even & vec4<u32>(0x0f0f0f0fu), n + w * 4u, sums);
    values_quad(levels.odd & vec4<u32>(0x0f0f0f0fu), n + w * 4u + 1u, sums);
    values_quad((levels.even >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), n + w * 4u + 2u, sums);
    values_quad((levels.odd >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), n + w * 4u + 3u, sums);
}
