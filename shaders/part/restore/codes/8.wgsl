// codes, 8 bits: 16 channels of two tokens, four words a token. They lie in memory as signed bytes,
// and so do their zeros: both are taken 128 higher.
fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let at = page + 4u * sixteenth * 32u + lane;
    return Sixteen(lane_bytes(pages[at], second), lane_bytes(pages[at + 32u], second), lane_bytes(pages[at + 64u], second), lane_bytes(pages[at + 96u], second));
}
