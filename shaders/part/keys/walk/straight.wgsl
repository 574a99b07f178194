// keys, the walk over a lane's steps as straight-line code, for GPUs: loops and indexed locals cost
// a factor of four there.

override KEY_STEPS: u32; // vec4s of low key words a lane reads per page

fn keys_eight(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>, scores: ptr<function, Scores>) {
    keys_step(w, page, lane, dots, scores);
    keys_step(w + 1u, page, lane, dots, scores);
    keys_step(w + 2u, page, lane, dots, scores);
    keys_step(w + 3u, page, lane, dots, scores);
    keys_step(w + 4u, page, lane, dots, scores);
    keys_step(w + 5u, page, lane, dots, scores);
    keys_step(w + 6u, page, lane, dots, scores);
    keys_step(w + 7u, page, lane, dots, scores);
}

fn keys_walk(page: u32, lane: u32, dots: ptr<function, Dots>, scores: ptr<function, Scores>) {
    keys_eight(0u, page, lane, dots, scores);
    if (KEY_STEPS > 8u) {
        keys_eight(8u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 16u) {
        keys_eight(16u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 24u) {
        keys_eight(24u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 32u) {
        keys_eight(32u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 40u) {
        keys_eight(40u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 48u) {
        keys_eight(48u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 56u) {
        keys_eight(56u, page, lane, dots, scores);
    }
    if (KEY_STEPS > 64u) {
        // 8 bits of 512 channels.
        for (var w = 64u; w < KEY_STEPS; w += 8u) {
            keys_eight(w, page, lane, dots, scores);
        }
    }
}
