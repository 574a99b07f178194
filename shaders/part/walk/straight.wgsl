// walk: a slice of 32 channels of scores as straight-line code, for GPUs.

fn walk_scores(s: Four, down: u32, across: u32) -> Four {
    let a = score_step(score_step(s, down, across, 0u), down, across, 1u);
    let b = score_step(score_step(a, down, across, 2u), down, across, 3u);
    let c = score_step(score_step(b, down, across, 4u), down, across, 5u);
    return score_step(score_step(c, down, across, 6u), down, across, 7u);
}
