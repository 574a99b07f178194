// still, nothing: the channels that do not turn add nothing to a log-sum, or there is none.
// still/added is the other way.
fn still_sum(r: u32, query_head: u32, thread: u32) -> f32 {
    return 0.0;
}
