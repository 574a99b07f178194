// position: nothing, for keys that are stored with their mean, and where RoPE turns nothing.
const POSITIONS = false;

fn position_turn(n: u32, lane: u32) {}

fn position_fit(lane: u32) {}

fn position_half(lane: u32) -> Scores {
    return Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
}

fn position_put(lane: u32, half: Scores) {}

fn position_add(lane: u32, half: Scores, s: Scores) -> Scores {
    return s;
}
