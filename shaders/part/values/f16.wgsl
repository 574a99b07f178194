// values, f16: a word holds two tokens of one channel. The weights are the probabilities
// themselves, in f32. Reads the kernel's binding `pages`.

override HEAD_DIM: u32;      // channels of a head
override VALUES: u32;        // vec4s from a page's start to its values
override UNITS: u32;         // 1
override VALUE_WEIGHTS: u32; // entries of the weights in workgroup memory

// Nothing is loaded ahead: the loads of f16 are many, and the other workgroups hide their latency.
struct Fetched { nothing: u32 }
struct Weighed { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// weights[VALUE_WEIGHTS * unit + t]: the probability of token t of the page, one number a head.
var<workgroup> weights: array<HeadsF, UNITS * VALUE_WEIGHTS>;

fn values_weigh(g: u32, page: u32, lane: u32, p: Scores) -> Weighed {
    return Weighed(p.a, p.b, p.c, p.d);
}

fn values_largest(w: Weighed) -> HeadsF {
    return HeadsF(0.0);
}

fn values_pack(unit: u32, g: u32, lane: u32, w: Weighed, largest: HeadsF) -> HeadsF {
    let at = VALUE_WEIGHTS * unit + 4u * lane;
    weights[at] = w.a;
    weights[at + 1u] = w.b;
    weights[at + 2u] = w.c;
    weights[at + 3u] = w.d;
    return HeadsF(0.0);
}

fn values_fetch(page: u32, quad: u32) -> Fetched {
    return Fetched(0u);
}

fn values_pair(v: vec4<u32>, t: u32, row: ptr<function, Scores>) {
    let p = weights[t];
    let r = weights[t + 1u];
    let a = unpack2x16float(v.x);
    let b = unpack2x16float(v.y);
    let c = unpack2x16float(v.z);
    let d = unpack2x16float(v.w);
    (*row).a += a.x * p + a.y * r;
    (*row).b += b.x * p + b.y * r;
    (*row).c += c.x * p + c.y * r;
    (*row).d += d.x * p + d.y * r;
}

fn values_eight(unit: u32, w: u32, page: u32, quad: u32, row: ptr<function, Scores>) {
    let at = page + VALUES + w * (HEAD_DIM / 4u) + quad;
    let n = VALUE_WEIGHTS * unit + 2u * w;
    values_pair(pages[at + 0u * (HEAD_DIM / 4u)], n, row);
    values_pair(pages[at + 1u * (HEAD_DIM / 4u)], n + 2u, row);
    values_pair(pages[at + 2u * (HEAD_DIM / 4u)], n + 4u, row);
    values_pair(pages[at + 3u * (HEAD_DIM / 4u)], n + 6u, row);
    values_pair(pages[at + 4u * (HEAD_DIM / 4u)], n + 8u, row);
    values_pair(pages[at + 5u * (HEAD_DIM / 4u)], n + 10u, row);
    values_pair(pages[at + 6u * (HEAD_DIM / 4u)], n + 12u, row);
    values_pair(pages[at + 7u * (HEAD_DIM / 4u)], n + 14u, row);
}

// Adds the page's share to the four channels of quad `quad`. Sixteen words a turn of the 64 a
// channel has.
fn values_add(unit: u32, page: u32, quad: u32, fetched: Fetched, row: ptr<function, Scores>) {
    for (var w = 0u; w < 64u; w += 16u) {
        values_eight(unit, w, page, quad, row);
        values_eight(unit, w + 8u, page, quad, row);
    }
}
