// group, the plane of scales: two tokens a word, of a byte each for scale and zero, or of a half
// and no zero.
const GROUP_WORDS = 64u;    // words of a group's plane in a page
const GROUP_MASK = 0xffffu; // of one token's scale

// Which word of a group's plane token t has.
fn group_word(t: u32) -> u32 {
    return t % 128u / 2u;
}

// Where in it.
fn group_shift(t: u32) -> u32 {
    return 16u * (t % 2u);
}
