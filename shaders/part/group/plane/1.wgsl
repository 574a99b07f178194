// group, the plane of scales: one token a word, as scale and zero are two halves.
const GROUP_WORDS = 128u;       // words of a group's plane in a page
const GROUP_MASK = 0xffffffffu; // of one token's pair

// Which word of a group's plane token t has.
fn group_word(t: u32) -> u32 {
    return t % 128u;
}

// Where in it.
fn group_shift(t: u32) -> u32 {
    return 0u;
}
