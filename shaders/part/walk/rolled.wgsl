// walk: a slice of 32 channels of scores in a loop, for software adapters.

fn walk_scores(s: Four, down: u32, across: u32) -> Four {
    var next = s;
    for (var quad = 0u; quad < 8u; quad++) {
        next = score_step(next, down, across, quad);
    }
    return next;
}
