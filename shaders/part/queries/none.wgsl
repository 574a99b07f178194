// queries, of restore/shuffled and restore/rolled: none are held, they are read where they lie.
fn queries_take(at: u32, unit: u32, lane: u32) {}
