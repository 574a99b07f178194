// values, the walk over a channel's words as straight-line code, for GPUs (see keys/walk/straight).

override HEAD_DIM: u32;    // channels of a head
override VALUES: u32;      // vec4s from a page's start to its values
override VALUE_STEPS: u32; // low value words of one channel

// The first eight words of the lane's channels, loaded before the keys are worked on: no load
// crosses a barrier by itself.
struct Fetched { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, e: vec4<u32>, f: vec4<u32>, g: vec4<u32>, h: vec4<u32> }

fn values_fetch(page: u32, quad: u32) -> Fetched {
    let at = page + VALUES + quad;
    return Fetched(pages[at + 0u * (HEAD_DIM / 4u)], pages[at + 1u * (HEAD_DIM / 4u)], pages[at + 2u * (HEAD_DIM / 4u)], pages[at + 3u * (HEAD_DIM / 4u)], pages[at + 4u * (HEAD_DIM / 4u)], pages[at + 5u * (HEAD_DIM / 4u)], pages[at + 6u * (HEAD_DIM / 4u)], pages[at + 7u * (HEAD_DIM / 4u)]);
}

fn values_eight(w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    values_word(pages[at + (w) * (HEAD_DIM / 4u)], w, at, n, sums);
    values_word(pages[at + (w + 1u) * (HEAD_DIM / 4u)], w + 1u, at, n, sums);
    values_word(pages[at + (w + 2u) * (HEAD_DIM / 4u)], w + 2u, at, n, sums);
    values_word(pages[at + (w + 3u) * (HEAD_DIM / 4u)], w + 3u, at, n, sums);
    values_word(pages[at + (w + 4u) * (HEAD_DIM / 4u)], w + 4u, at, n, sums);
    values_word(pages[at + (w + 5u) * (HEAD_DIM / 4u)], w + 5u, at, n, sums);
    values_word(pages[at + (w + 6u) * (HEAD_DIM / 4u)], w + 6u, at, n, sums);
    values_word(pages[at + (w + 7u) * (HEAD_DIM / 4u)], w + 7u, at, n, sums);
}

fn values_walk(at: u32, n: u32, fetched: Fetched, sums: ptr<function, Sums>) {
    values_word(fetched.a, 0u, at, n, sums);
    values_word(fetched.b, 1u, at, n, sums);
    values_word(fetched.c, 2u, at, n, sums);
    values_word(fetched.d, 3u, at, n, sums);
    values_word(fetched.e, 4u, at, n, sums);
    values_word(fetched.f, 5u, at, n, sums);
    values_word(fetched.g, 6u, at, n, sums);
    values_word(fetched.h, 7u, at, n, sums);
    if (VALUE_STEPS > 8u) {
        values_eight(8u, at, n, sums);
    }
    if (VALUE_STEPS > 16u) {
        values_eight(16u, at, n, sums);
    }
    if (VALUE_STEPS > 24u) {
        values_eight(24u, at, n, sums);
    }
}
