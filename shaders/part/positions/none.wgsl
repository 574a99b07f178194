// positions: nothing, for keys that are stored with their mean, and where RoPE turns nothing.
const POSITIONS = false;
const POSITIONS_GATHERED = false;

struct PositionBase { nothing: u32 }

fn positions_base(at: u32, lane: u32) -> PositionBase {
    return PositionBase(0u);
}

fn positions_turn(base: PositionBase, n: u32, lane: u32) {}

fn positions_gather(lane: u32) {}

fn positions_half(terms_at: u32, lane: u32) -> Scores {
    return Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
}

fn positions_put(lane: u32, half: Scores) {}

fn positions_add(lane: u32, half: Scores, s: Scores) -> Scores {
    return s;
}
