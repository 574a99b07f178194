// elect: which tokens of a prompt stay f16 in a layer, RotateKV's attention sinks (2501.16383,
// section 4.3): those that hold the SINKS largest magnitudes of the residual stream which enters
// the layer.
//
// Without MERGE one workgroup finds the largest magnitudes of one block of a chunk's rows. With
// MERGE one workgroup finds, of one chunk's blocks and of those that its sequence had before, the
// largest; a token of this chunk that holds one gets a row, as long as one is free, and keeps it
// for good. (A token of an earlier chunk is packed by now and cannot get one.) Of equal magnitudes
// the earlier number of the rows counts as larger. A number that is not finite counts as zero.
//
// `marks` keeps by slot: the token of each row, then magnitude (as bits) and token of each of the
// largest so far.
//
// Wrapper: src/kernel/elect.rs. Twin: src/kernel/reference/elect.rs.

override MERGE: bool;
override SINKS: u32;
override ELECTED_AT: u32; // first word of slot 0 in marks

struct ElectParams { // src/kernel/elect.rs
    items_at: u32, // first item in tables
    items: u32,
    width: u32,    // numbers of a row of the residual stream
    pad: u32,
}

@group(1) @binding(0) var<uniform> params: ElectParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;           // items of 4 words, with MERGE of 8
@group(2) @binding(0) var<storage, read> residual: array<u32>;         // [rows, width] f32, f16 or bf16
@group(2) @binding(1) var<storage, read_write> candidates: array<u32>; // [block, SINKS, 2]: magnitude, token
@group(0) @binding(0) var<storage, read_write> marks: array<u32>;      // groups; then [slot, 3 * SINKS]

const NOBODY = 0xffffffffu;

// By invocation: its largest that was not taken yet, and where that stands.
var<workgroup> magnitudes: array<u32, 256>;
var<workgroup> places: array<u32, 256>;
// Those taken.
var<workgroup> taken: array<vec2<u32>, SINKS>;

// Where the workgroup's numbers are: `count` of them.
struct Source {
    first: u32,  // row of residual, or block of candidates
    count: u32,
    old: u32,    // with MERGE: where marks keeps the largest so far
    limit: u32,  // and from which token on they are void
}

fn magnitude(bits: u32) -> u32 {
    let positive = bits & 0x7fffffffu;
    return select(0u, positive, positive < 0x7f800000u);
}

// Number p: its magnitude. With MERGE the old ones come first.
fn source_magnitude(source: Source, p: u32) -> u32 {
    if (MERGE) {
        if (p < SINKS) {
            return select(0u, marks[source.old + SINKS + 2u * p], marks[source.old + SINKS + 2u * p + 1u] < source.limit);
        }
        return candidates[2u * (source.first * SINKS + p - SINKS)];
    }
    let at = source.first * params.width + p;
    return magnitude(bitcast<u32>(element_of(residual[element_word(at)], at)));
}

fn source_token(source: Source, p: u32, token_first: u32) -> u32 {
    if (MERGE) {
        if (p < SINKS) {
            return marks[source.old + SINKS + 2u * p + 1u];
        }
        return candidates[2u * (source.first * SINKS + p - SINKS) + 1u];
    }
    return token_first + p / params.width;
}

// Whether (magnitude a, place p) comes before (b, q).
fn before(a: u32, p: u32, b: u32, q: u32) -> bool {
    return a > b || (a == b && p < q);
}

// The invocation's first number after (magnitude, place) in that order: zeros are nobody's.
fn next_after(source: Source, i: u32, bound: u32, place: u32) -> vec2<u32> {
    var best = vec2<u32>(0u, NOBODY);
    for (var p = i; p < source.count; p += 256u) {
        let m = source_magnitude(source, p);
        if (m > 0u && before(bound, place, m, p) && before(m, p, best.x, best.y)) {
            best = vec2<u32>(m, p);
        }
    }
    return best;
}

@compute @workgroup_size(256)
fn elect(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = place_workgroup(workgroup, workgroups);
    if (n >= params.items) {
        return;
    }
    let item = params.items_at + select(4u, 8u, MERGE) * n;
    var source: Source;
    if (MERGE) {
        // slot, first block, blocks, limit, first new token, token after the last
        source = Source(tables[item + 1u], (tables[item + 2u] + 1u) * SINKS, ELECTED_AT + tables[item] * 3u * SINKS, tables[item + 3u]);
    } else {
        // first row, rows, first token
        source = Source(tables[item], tables[item + 1u] * params.width, 0u, 0u);
    }
    var mine = next_after(source, i, NOBODY, 0u);
    for (var s = 0u; s < SINKS; s++) {
        magnitudes[i] = mine.x;
        places[i] = mine.y;
        workgroupBarrier();
        for (var half = 128u; half > 0u; half /= 2u) {
            if (i < half && before(magnitudes[i + half], places[i + half], magnitudes[i], places[i])) {
                magnitudes[i] = magnitudes[i + half];
                places[i] = places[i + half];
            }
            workgroupBarrier();
        }
        let largest = magnitudes[0];
        let place = places[0];
        if (i == 0u) {
            taken[s] = vec2<u32>(largest, NOBODY);
            if (place != NOBODY) {
                taken[s].y = source_token(source, place, tables[item + 2u]);
            }
        }
        workgroupBarrier();
        if (s + 1u < SINKS && place != NOBODY && place % 256u == i) {
            mine = next_after(source, i, largest, place);
        }
    }
    if (!MERGE) {
        if (i < SINKS) {
            candidates[2u * (n * SINKS + i)] = taken[i].x;
            candidates[2u * (n * SINKS + i) + 1u] = taken[i].y;
        }
        return;
    }
    if (i == 0u) {
        let token_first = tables[item + 4u];
        let token_end = tables[item + 5u];
        for (var s = 0u; s < SINKS; s++) {
            if (marks[source.old + s] >= source.limit) {
                marks[source.old + s] = NOBODY;
            }
        }
        for (var s = 0u; s < SINKS; s++) {
            let token = taken[s].y;
            var known = token < token_first || token >= token_end;
            var free = SINKS;
            for (var r = 0u; r < SINKS; r++) {
                known = known || marks[source.old + r] == token;
                if (marks[source.old + r] == NOBODY && free == SINKS) {
                    free = r;
                }
            }
            if (!known && free < SINKS) {
                marks[source.old + free] = token;
            }
            marks[source.old + SINKS + 2u * s] = taken[s].x;
            marks[source.old + SINKS + 2u * s + 1u] = token;
        }
    }
}
