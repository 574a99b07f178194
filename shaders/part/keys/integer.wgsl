// keys, integer codes: the scores of a page's 128 keys against the query heads, four tokens a lane,
// by integer dot products. A "step" is one vec4 of low words: the same word of the lane's four
// tokens. keys/bits/<bits> says how a step unpacks. Reads the kernel's binding `pages`. Every `if`
// here is on constants; keys/walk/straight or keys/walk/rolled walks the steps.

override HEAD_DIM: u32;        // channels of a head
override KEY_SCALES: u32;      // vec4s from a page's start to its key scales
override KEY_STEPS: u32;       // vec4s of low key words a lane reads per page
override KEY_GROUP_STEPS: u32; // steps that share a key scale

// before: of a trellis, the words before.
struct Dots { a: HeadsI, b: HeadsI, c: HeadsI, d: HeadsI, before: vec4<u32> }

fn keys_quad(codes: vec4<u32>, n: u32, dots: ptr<function, Dots>) {
    let q = queries[n];
    (*dots).a += heads_dot_i8(codes.x, q);
    (*dots).b += heads_dot_i8(codes.y, q);
    (*dots).c += heads_dot_i8(codes.z, q);
    (*dots).d += heads_dot_i8(codes.w, q);
}

// Closes a group: its integer dots become scores through each token's scale and zero.
fn keys_fold(g: u32, page: u32, lane: u32, dots: ptr<function, Dots>, scores: ptr<function, Scores>) {
    let scales = scales_of(pages[page + KEY_SCALES + g * SCALE_VECS + scales_vec(lane)], lane);
    let sum = bitcast<HeadsF>(queries[HEAD_DIM / 4u + 1u + g]);
    let a = scales_key(scales.x);
    let b = scales_key(scales.y);
    let c = scales_key(scales.z);
    let d = scales_key(scales.w);
    (*scores).a += a.x * (HeadsF((*dots).a) - a.y * sum);
    (*scores).b += b.x * (HeadsF((*dots).b) - b.y * sum);
    (*scores).c += c.x * (HeadsF((*dots).c) - c.y * sum);
    (*scores).d += d.x * (HeadsF((*dots).d) - d.y * sum);
    *dots = Dots(HeadsI(0), HeadsI(0), HeadsI(0), HeadsI(0), vec4<u32>(0u));
}

fn keys_step(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>, scores: ptr<function, Scores>) {
    if (w < KEY_STEPS) {
        keys_word(w, page, lane, dots);
        if ((w + 1u) % KEY_GROUP_STEPS == 0u) {
            keys_fold(w / KEY_GROUP_STEPS, page, lane, dots, scores);
        }
    }
}

// Scores in log2 units (the query's scale carries log2(e) and the plan's), tokens 4 * lane to 4 *
// lane + 3.
fn keys_scores(unit: u32, page: u32, lane: u32) -> Scores {
    var dots = Dots(HeadsI(0), HeadsI(0), HeadsI(0), HeadsI(0), vec4<u32>(0u));
    var scores = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    keys_walk(page, lane, &dots, &scores);
    let scale = bitcast<HeadsF>(queries[HEAD_DIM / 4u]);
    return Scores(scores.a * scale, scores.b * scale, scores.c * scale, scores.d * scale);
}
