// rows: f16 rows whose scores are those of their keys alone: keys are stored with their mean, or
// RoPE turns nothing.

fn rows_turn(place: u32, sinks: u32, packed: u32, lane: u32) {}

fn rows_mean(q: u32, lane: u32, sink: bool, s: HeadsF) -> HeadsF {
    return s;
}
