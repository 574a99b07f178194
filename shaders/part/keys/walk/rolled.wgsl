// keys, the walk over a lane's steps as a loop, for software adapters, whose compilers take seconds
// over straight-line code.

override KEY_STEPS: u32; // vec4s of low key words a lane reads per page

fn keys_walk(page: u32, lane: u32, dots: ptr<function, Dots>, scores: ptr<function, Scores>) {
    for (var w = 0u; w < KEY_STEPS; w++) {
        keys_step(w, page, lane, dots, scores);
    }
}
