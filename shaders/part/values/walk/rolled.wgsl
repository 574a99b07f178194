// values, the walk over a channel's words as a loop, for software adapters (see keys/walk/rolled).

override HEAD_DIM: u32;    // channels of a head
override VALUE_STEPS: u32; // low value words of one channel

// Nothing is loaded ahead: a software adapter has no latency to hide.
struct Fetched { nothing: u32 }

fn values_fetch(page: u32, quad: u32) -> Fetched {
    return Fetched(0u);
}

fn values_walk(at: u32, n: u32, fetched: Fetched, sums: ptr<function, Sums>) {
    for (var w = 0u; w < VALUE_STEPS; w++) {
        values_word(pages[at + w * (HEAD_DIM / 4u)], w, at, n, sums);
    }
}
