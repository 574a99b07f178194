// position: what the mean of the keys adds to the scores of each page, as far as it turns slowly: two polynomials, in closed form.
//
//   sum_p A_p cos(u angle_p) + B_p sin(u angle_p)  =  sum_k even_k y^k + x sum_k odd_k y^k,   x = u / 64, y = x^2
//
// over the pairs p from POSITION_WAVES on, for u positions from the page's middle. A and B are the query's factors (kernel `query` wrote
// them for the middle of page 0) turned to the page, and the sums on the right have six terms each: a polynomial of every wave, times A or
// B, added up. attend_split (or align_scores) evaluates them, and adds the faster pairs one by one (part positions).
//
// One invocation makes the terms of one page, for one reading: one KV head and up to HEADS query heads that share it.
//
// Parts: heads_<n>. Wrapper: src/kernel/position.rs. Twin: src/reference/position.rs.

override HEADS: u32;
override BLOCKS: u32;          // blocks of HEADS query heads per KV head
override QUERY_STRIDE: u32;    // entries of query_codes per block of heads
override POSITIONS_AT: u32;    // the first of a pair's two factors among them
override ROPE_PAIRS: u32;
override POSITION_CENTRE: u32; // in turns, the turn by 63.5 positions; after it follow the waves, the polynomials, and the slow pairs' turns by pages
override POSITION_WAVES: u32;  // first pairs, which turn too fast
override POSITION_PAGES: u32;  // pages that a sequence can have
override POSITION_PLACES: u32; // pages of a pass

struct PositionParams { // src/kernel/position.rs
    items_at: u32, // first item in tables
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
}

@group(0) @binding(0) var<uniform> params: PositionParams;
@group(0) @binding(1) var<storage, read> tables: array<u32>;                       // items of 4 words
@group(0) @binding(2) var<storage, read> turns: array<vec4<f32>>;                  // two pairs (cosine, sine) a vector: tables of src/position.rs
@group(0) @binding(3) var<storage, read> query_codes: array<HeadsU>;               // [row, kv_heads, BLOCKS, QUERY_STRIDE]
@group(0) @binding(4) var<storage, read_write> position_terms: array<HeadsF>;      // [kv_heads, BLOCKS, 12, page of the pass]

const FACTORS = 2u * ROPE_PAIRS;

var<workgroup> factors: array<HeadsF, FACTORS>;

@compute @workgroup_size(64)
fn position(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let item = params.items_at + 4u * workgroup.x;
    let query_row = tables[item];
    let n = tables[item + 1u] + i;
    let end = tables[item + 2u];
    let page = tables[item + 3u] + n;
    let readings = params.kv_heads * BLOCKS;
    let at = (query_row * readings + workgroup.y) * QUERY_STRIDE + POSITIONS_AT;
    for (var e = i; e < FACTORS; e += 64u) {
        factors[e] = bitcast<HeadsF>(query_codes[at + e]);
    }
    workgroupBarrier();
    if (n >= end) {
        return;
    }
    var even_0 = HeadsF(0.0);
    var even_1 = HeadsF(0.0);
    var even_2 = HeadsF(0.0);
    var even_3 = HeadsF(0.0);
    var even_4 = HeadsF(0.0);
    var even_5 = HeadsF(0.0);
    var odd_0 = HeadsF(0.0);
    var odd_1 = HeadsF(0.0);
    var odd_2 = HeadsF(0.0);
    var odd_3 = HeadsF(0.0);
    var odd_4 = HeadsF(0.0);
    var odd_5 = HeadsF(0.0);
    let table = (POSITION_CENTRE + ROPE_PAIRS + 1u) / 2u + 32u * POSITION_WAVES;
    let by_page = table + 3u * (ROPE_PAIRS - POSITION_WAVES);
    for (var p = POSITION_WAVES; p < ROPE_PAIRS; p++) {
        // By pair, then by page: consecutive invocations read consecutive numbers.
        let turn_index = (p - POSITION_WAVES) * POSITION_PAGES + n;
        let two = turns[by_page + turn_index / 2u];
        let turn = select(two.xy, two.zw, (turn_index & 1u) == 1u);
        let a = factors[2u * p] * turn.x + factors[2u * p + 1u] * turn.y;
        let b = factors[2u * p + 1u] * turn.x - factors[2u * p] * turn.y;
        let f = turns[table + 3u * (p - POSITION_WAVES)];
        let g = turns[table + 3u * (p - POSITION_WAVES) + 1u];
        let h = turns[table + 3u * (p - POSITION_WAVES) + 2u];
        even_0 += f.x * a;
        even_1 += f.y * a;
        even_2 += f.z * a;
        even_3 += f.w * a;
        even_4 += g.x * a;
        even_5 += g.y * a;
        odd_0 += g.z * b;
        odd_1 += g.w * b;
        odd_2 += h.x * b;
        odd_3 += h.y * b;
        odd_4 += h.z * b;
        odd_5 += h.w * b;
    }
    let terms = workgroup.y * 12u * POSITION_PLACES + page;
    position_terms[terms] = even_0;
    position_terms[terms + 1u * POSITION_PLACES] = even_1;
    position_terms[terms + 2u * POSITION_PLACES] = even_2;
    position_terms[terms + 3u * POSITION_PLACES] = even_3;
    position_terms[terms + 4u * POSITION_PLACES] = even_4;
    position_terms[terms + 5u * POSITION_PLACES] = even_5;
    position_terms[terms + 6u * POSITION_PLACES] = odd_0;
    position_terms[terms + 7u * POSITION_PLACES] = odd_1;
    position_terms[terms + 8u * POSITION_PLACES] = odd_2;
    position_terms[terms + 9u * POSITION_PLACES] = odd_3;
    position_terms[terms + 10u * POSITION_PLACES] = odd_4;
    position_terms[terms + 11u * POSITION_PLACES] = odd_5;
}
