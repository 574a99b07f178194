// positions, the walk over the waves as a loop, for software adapters (see keys/walk/rolled).

override POSITION_WAVES: u32; // first pairs of RoPE, which turn too fast for a short polynomial

fn positions_waves(lane: u32) -> Scores {
    var half = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    for (var p = 0u; p < POSITION_WAVES; p++) {
        half = waves_add(p, lane, half);
    }
    return half;
}
