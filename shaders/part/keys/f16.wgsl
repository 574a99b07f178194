// keys, f16: a word holds two channels of one token. Queries stay f32. Reads the kernel's binding
// `pages`.

override KEY_STEPS: u32; // vec4s of low key words a lane reads per page

fn keys_pair(k: vec4<u32>, n: u32, scores: ptr<function, Scores>) {
    let q = bitcast<HeadsF>(queries[n]);
    let r = bitcast<HeadsF>(queries[n + 1u]);
    let a = unpack2x16float(k.x);
    let b = unpack2x16float(k.y);
    let c = unpack2x16float(k.z);
    let d = unpack2x16float(k.w);
    (*scores).a += a.x * q + a.y * r;
    (*scores).b += b.x * q + b.y * r;
    (*scores).c += c.x * q + c.y * r;
    (*scores).d += d.x * q + d.y * r;
}

fn keys_eight(w: u32, page: u32, lane: u32, scores: ptr<function, Scores>) {
    let at = page + w * 32u + lane;
    keys_pair(pages[at + 0u], 2u * w, scores);
    keys_pair(pages[at + 32u], 2u * w + 2u, scores);
    keys_pair(pages[at + 64u], 2u * w + 4u, scores);
    keys_pair(pages[at + 96u], 2u * w + 6u, scores);
    keys_pair(pages[at + 128u], 2u * w + 8u, scores);
    keys_pair(pages[at + 160u], 2u * w + 10u, scores);
    keys_pair(pages[at + 192u], 2u * w + 12u, scores);
    keys_pair(pages[at + 224u], 2u * w + 14u, scores);
}

// Scores in log2 units, tokens 4 * lane to 4 * lane + 3. Sixteen words a turn keep enough loads in
// flight.
fn keys_scores(unit: u32, page: u32, lane: u32) -> Scores {
    var scores = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    for (var w = 0u; w < KEY_STEPS; w += 16u) {
        keys_eight(w, page, lane, &scores);
        if (KEY_STEPS % 16u == 0u || w + 8u < KEY_STEPS) {
            keys_eight(w + 8u, page, lane, &scores);
        }
    }
    return scores;
}
