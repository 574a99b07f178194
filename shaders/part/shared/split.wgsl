// split: one unit's walk over pages of one sequence, for one KV head and up to HEADS query heads that
// share it, for attend_split and attend_direct. For the keys a lane owns four tokens, for the values
// four channels (eight beyond head_dim 128, sixteen at 512). The whole body of the loop is
// straight-line: naga's bounds checks cost nothing there, and a factor of four around indexed locals.
//
// split_pages has barriers, so the entry point calls it once, outside of loops. Needs heads, reduce,
// scales, keys, values, positions, restore and cap; reads the kernel's bindings `tables`, `pages` and
// `marks`, its parameters, and its constant HIDDEN.

override HEAD_DIM: u32;     // channels a head: 64, 80, 96, 128, 192, 256 or 512
override VALUE_GROUP: u32;  // channels that share a value scale; divides HEAD_DIM
override HEADS: u32;        // query heads that share one reading: 1, 2 or 4
override VALUE_GROUPS: u32; // value groups a head (1 for f16)
override PAGE_VECS: u32;    // vec4s of one head's page
override MASSIVE: bool;     // whether the sinks are elected
override SINKS: u32;        // f16 rows of sinks
override ELECTED_AT: u32;   // first elected sink in marks

// One number of each head for the lane's four tokens or four channels.
struct Scores { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// Where the units of a workgroup find their keys and queries.
struct Stand {
    slab_first: u32, // the first unit's KV head, counted in the slab
    head_first: u32, // and in the layer
    queries_at: u32, // the first unit's queries
    terms_at: u32,   // terms of positions
}

struct Zeros { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF, e: HeadsF, f: HeadsF, g: HeadsF, h: HeadsF }

fn split_zero(zeros: Zeros, g: u32) -> HeadsF {
    var zero = zeros.a;
    if (VALUE_GROUPS > 1u) { zero = select(zero, zeros.b, g == 1u); }
    if (VALUE_GROUPS > 2u) { zero = select(select(zero, zeros.c, g == 2u), zeros.d, g == 3u); }
    if (VALUE_GROUPS > 4u) { zero = select(select(zero, zeros.e, g == 4u), zeros.f, g == 5u); }
    if (VALUE_GROUPS > 6u) { zero = select(select(zero, zeros.g, g == 6u), zeros.h, g == 7u); }
    return zero;
}

// One head's four channels of a quad.
fn split_put_head(at: u32, h: u32, quad: u32, row: Scores) {
    partials[at + h * (HEAD_DIM / 4u + 1u) + quad] = vec4<f32>(heads_at(row.a, h), heads_at(row.b, h), heads_at(row.c, h), heads_at(row.d, h));
}

fn split_put(at: u32, quad: u32, row: Scores) {
    split_put_head(at, 0u, quad, row);
    if (HEADS > 1u) {
        split_put_head(at, 1u, quad, row);
    }
    if (HEADS > 2u) {
        split_put_head(at, 2u, quad, row);
        split_put_head(at, 3u, quad, row);
    }
}

fn split_lowered(row: Scores, by: HeadsF) -> Scores {
    return Scores(row.a - by, row.b - by, row.c - by, row.d - by);
}

fn split_shrunk(row: Scores, by: HeadsF) -> Scores {
    return Scores(row.a * by, row.b * by, row.c * by, row.d * by);
}

// Hides the lane's tokens that are elected sinks: part half_rows takes them from their f16 rows.
fn split_hide_sinks(s: Scores, slot: u32, limit: u32, token: u32) -> Scores {
    var shown = s;
    for (var r = 0u; r < SINKS; r++) {
        let sink = marks[ELECTED_AT + slot * 3u * SINKS + r];
        if (sink < limit) {
            shown.a = select(shown.a, HeadsF(HIDDEN), sink == token);
            shown.b = select(shown.b, HeadsF(HIDDEN), sink == token + 1u);
            shown.c = select(shown.c, HeadsF(HIDDEN), sink == token + 2u);
            shown.d = select(shown.d, HeadsF(HIDDEN), sink == token + 3u);
        }
    }
    return shown;
}

// A slice of one sequence's pages, as items list it.
struct Slice {
    list: u32,          // where page 0 would be in the list of pages
    first: u32,         // first page
    end: u32,           // page beyond the last
    visible_first: u32, // first token that the row sees in pages
    visible_end: u32,   // tokens before this one lie in pages
    place: u32,         // of page 0 among scores or terms, where pages have places of their own
    limit: u32,
    slot: u32,
}

// The slice of the item that begins here in tables, after its row.
fn split_slice(item: u32) -> Slice {
    return Slice(tables[item + 1u], tables[item + 2u], tables[item + 3u], tables[item + 4u], tables[item + 5u], tables[item + 6u], tables[item + 7u], tables[item + 8u]);
}

// What a slice adds up to: weighted values, of the lane's channels, the largest score and the sum of
// the weights.
struct Split { low: Scores, high: Scores, third: Scores, fourth: Scores, peak: HeadsF, sum: HeadsF }

fn split_pages(slice: Slice, stand: Stand, base: PositionBase, ids: RestoreIds, slab_head: u32, invocation: u32) -> Split {
    let unit = invocation / 32u;
    let lane = invocation % 32u;
    // Lanes beyond the quads of a head repeat the last quad and write nothing.
    let quads = HEAD_DIM / 4u;
    let quad = min(lane, quads - 1u);
    let second = min(lane + 32u, quads - 1u);
    var peak = HeadsF(HIDDEN);
    var sum = HeadsF(0.0);
    var low = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var high = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    // At head_dim 512 alone.
    var third = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var fourth = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var zeros = Zeros(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));

    for (var n = slice.first; n < slice.end; n++) {
        let physical = tables[slice.list + n];
        let page = (physical * params.slab_heads + slab_head) * PAGE_VECS;
        positions_turn(base, n, lane);
        // Values are on their way while the keys are worked on, unless those need all registers.
        var fetched: Fetched;
        if (RESTORE_TILES == 0u) {
            fetched = values_fetch(page, quad);
        }
        if (RESTORE_TILES > 0u) {
            restore_open(physical, invocation);
            for (var tile = 0u; tile < RESTORE_TILES; tile++) {
                workgroupBarrier();
                restore_spread(stand, physical, tile, ids, invocation);
                workgroupBarrier();
                let dots = restore_dots(stand, physical, n, tile, ids, invocation);
                workgroupBarrier();
                restore_put(dots, invocation);
                workgroupBarrier();
                restore_sum(physical, tile, invocation);
            }
            workgroupBarrier();
            fetched = values_fetch(page, quad);
        }
        if (POSITIONS) {
            workgroupBarrier();
            positions_gather(lane);
        }
        var s = keys_scores(unit, page, lane);
        if (POSITIONS) {
            if (POSITIONS_GATHERED) { workgroupBarrier(); }
            let half = positions_half(stand.terms_at + slice.place + n, lane);
            positions_put(lane, half);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            s = positions_add(lane, half, s);
        }
        s = Scores(cap_scores(s.a), cap_scores(s.b), cap_scores(s.c), cap_scores(s.d));
        let token = n * 128u + lane * 4u;
        s.a = select(HeadsF(HIDDEN), s.a, token >= slice.visible_first && token < slice.visible_end);
        s.b = select(HeadsF(HIDDEN), s.b, token + 1u >= slice.visible_first && token + 1u < slice.visible_end);
        s.c = select(HeadsF(HIDDEN), s.c, token + 2u >= slice.visible_first && token + 2u < slice.visible_end);
        s.d = select(HeadsF(HIDDEN), s.d, token + 3u >= slice.visible_first && token + 3u < slice.visible_end);
        if (MASSIVE) {
            s = split_hide_sinks(s, slice.slot, slice.limit, token);
        }
        let lane_peak = max(max(s.a, s.b), max(s.c, s.d));
        reduce_put(unit, lane, lane_peak);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        let new_peak = max(peak, reduce_max(unit, lane_peak));
        let shrink = exp2(peak - new_peak);
        peak = new_peak;
        let p = Scores(exp2(s.a - peak), exp2(s.b - peak), exp2(s.c - peak), exp2(s.d - peak));
        sum = sum * shrink + ((p.a + p.b) + (p.c + p.d));

        // The weights of each value group. The barriers also keep the last page's readers ahead of
        // this page's writers.
        let wa = values_weigh(0u, page, lane, p);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, values_largest(wa));
        workgroupBarrier();
        zeros.a = zeros.a * shrink + values_pack(unit, 0u, lane, wa, reduce_max(unit, values_largest(wa)));
        if (VALUE_GROUPS > 1u) {
            let wb = values_weigh(1u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wb));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.b = zeros.b * shrink + values_pack(unit, 1u, lane, wb, reduce_max(unit, values_largest(wb)));
        }
        if (VALUE_GROUPS > 2u) {
            let wc = values_weigh(2u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wc));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.c = zeros.c * shrink + values_pack(unit, 2u, lane, wc, reduce_max(unit, values_largest(wc)));
            if (VALUE_GROUPS > 3u) {
                let wd = values_weigh(3u, page, lane, p);
                if (REDUCE_BARRIER) { workgroupBarrier(); }
                reduce_put(unit, lane, values_largest(wd));
                if (REDUCE_BARRIER) { workgroupBarrier(); }
                zeros.d = zeros.d * shrink + values_pack(unit, 3u, lane, wd, reduce_max(unit, values_largest(wd)));
            }
        }
        if (VALUE_GROUPS > 4u) {
            let we = values_weigh(4u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(we));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.e = zeros.e * shrink + values_pack(unit, 4u, lane, we, reduce_max(unit, values_largest(we)));
            let wf = values_weigh(5u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wf));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.f = zeros.f * shrink + values_pack(unit, 5u, lane, wf, reduce_max(unit, values_largest(wf)));
        }
        if (VALUE_GROUPS > 6u) {
            let wg = values_weigh(6u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wg));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.g = zeros.g * shrink + values_pack(unit, 6u, lane, wg, reduce_max(unit, values_largest(wg)));
            let wh = values_weigh(7u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wh));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.h = zeros.h * shrink + values_pack(unit, 7u, lane, wh, reduce_max(unit, values_largest(wh)));
        }
        workgroupBarrier();

        low = split_shrunk(low, shrink);
        values_add(unit, page, quad, fetched, &low);
        if (HEAD_DIM > 128u) {
            high = split_shrunk(high, shrink);
            values_add(unit, page, second, values_fetch(page, second), &high);
        }
        if (HEAD_DIM > 256u) {
            third = split_shrunk(third, shrink);
            values_add(unit, page, lane + 64u, values_fetch(page, lane + 64u), &third);
            fourth = split_shrunk(fourth, shrink);
            values_add(unit, page, lane + 96u, values_fetch(page, lane + 96u), &fourth);
        }
    }

    workgroupBarrier();
    reduce_put(unit, lane, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total = reduce_add(unit, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    reduce_put(unit, lane, zeros.a);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    zeros.a = reduce_add(unit, zeros.a);
    if (VALUE_GROUPS > 1u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.b);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.b = reduce_add(unit, zeros.b);
    }
    if (VALUE_GROUPS > 2u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.c);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.c = reduce_add(unit, zeros.c);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.d);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.d = reduce_add(unit, zeros.d);
    }
    if (VALUE_GROUPS > 4u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.e);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.e = reduce_add(unit, zeros.e);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.f);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.f = reduce_add(unit, zeros.f);
    }
    if (VALUE_GROUPS > 6u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.g);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.g = reduce_add(unit, zeros.g);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.h);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.h = reduce_add(unit, zeros.h);
    }

    let first_low = split_lowered(low, split_zero(zeros, 4u * lane / VALUE_GROUP));
    var last_high = high;
    if (HEAD_DIM > 128u) {
        last_high = split_lowered(high, split_zero(zeros, 4u * (lane + 32u) / VALUE_GROUP));
    }
    if (HEAD_DIM > 256u) {
        third = split_lowered(third, split_zero(zeros, 4u * (lane + 64u) / VALUE_GROUP));
        fourth = split_lowered(fourth, split_zero(zeros, 4u * (lane + 96u) / VALUE_GROUP));
    }
    return Split(first_low, last_high, third, fourth, peak, total);
}

// Writes a partial result that begins at `at`: each head's quads, then its largest score and its
// sum.
fn split_write(at: u32, lane: u32, split: Split) {
    let quads = HEAD_DIM / 4u;
    if (lane < quads) {
        split_put(at, lane, split.low);
    }
    if (HEAD_DIM > 128u && lane + 32u < quads) {
        split_put(at, lane + 32u, split.high);
    }
    if (HEAD_DIM > 256u) {
        split_put(at, lane + 64u, split.third);
        split_put(at, lane + 96u, split.fourth);
    }
    if (lane == 0u) {
        split_put(at, quads, Scores(split.peak, split.sum, HeadsF(0.0), HeadsF(0.0)));
    }
}
