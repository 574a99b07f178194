// append_block: what append does, for the new tokens of a whole block at once, where a head's shape
// and the device's subgroups allow it.
//
// LANES neighbours of a subgroup hold one token's row in registers, 32 channels each, and exchange
// numbers by shuffles: first the key's, then the value's. Lane l holds channels 16 l to 16 l + 15,
// and as many from HEAD_DIM / 2 + 16 l on: both channels of every pair that RoPE turns, and whole
// words of key codes. Codes of values, of which a word holds several tokens, and scales meet in
// workgroup memory. Tokens of the block that are not new take part with zeros, and nothing of
// theirs is written.
//
// It stores what append stores; sums over a group of symmetric codes run in another order, so a
// code may round otherwise.
//
// Of codes by a trellis (part trellis) the numbers meet in workgroup memory, where symbols take their
// place: two lanes work on each group of a token.
//
// The rotation is a butterfly in the order of part hadamard's sums: over blocks of HADAMARD_INNER
// channels, then within one.
//
// Wrapper: src/kernel/append_block.rs. Twin: src/kernel/reference/append_block.rs.

override HEAD_DIM: u32;        // 64, 128 or 256
override LANES: u32;           // HEAD_DIM / 32
override HADAMARD_SCALE: f32;
override KEYS: bool;           // whether keys are packed here
override ROTATE_KEYS: bool;
override ROTATE_VALUES: bool;
override CENTRED: bool;
override ROPE: u32;            // 0, or all channels turn: 1 split halves, 2 interleaved pairs
override ROPE_PAIRS: u32;
override KEY_BITS: u32;        // 2, 3, 4 or 8
override VALUE_BITS: u32;
override KEY_CLIP: f32;
override VALUE_CLIP: f32;
override KEY_GROUP: u32;       // channels that share a key scale; divides HEAD_DIM
override VALUE_GROUP: u32;
override KEY_SCALES: u32;      // vec4s from a page's start
override VALUES: u32;
override VALUE_SCALES: u32;
override PAGE_VECS: u32;
override SINKS: u32;           // f16 rows of sinks
override UNPACKED: u32;        // first tokens that are not packed
override RING: u32;            // f16 rows of the window, used in turn
override KEY_TRELLIS: bool;    // whether key codes are those of a trellis
override VALUE_TRELLIS: bool;
override TRELLIS_LANES: u32;   // invocations that find its symbols, two for each group of a token; 1 for none
override CODE_ROWS: u32;       // 2 where keys' codes meet in workgroup memory, too
override TURNED: bool; // whether the caller's rows come turned

struct AppendBlockParams { // src/kernel/append.rs
    items_at: u32,   // first item in tables
    items: u32,
    layer: u32,      // for the status list
    slab_heads: u32, // KV heads whose pages lie in this slab
    heads_at: u32,   // which they are, in tables
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
}

@group(1) @binding(0) var<uniform> params: AppendBlockParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                    // items of 2 words; chunks of 8; pages
@group(0) @binding(0) var<storage, read> turns: array<vec4<f32>>;               // [128 low + high positions, ROPE_PAIRS], two a vector
// group 2: keys and values, in part eights
@group(0) @binding(1) var<storage, read> protected_rows: array<vec4<u32>>;      // [slot, kv_heads, SINKS + RING, HEAD_DIM] pairs of halves
@group(0) @binding(2) var<storage, read> marks: array<vec4<u32>>;               // [kv_heads, 3, HEAD_DIM] f32, for Centred
@group(0) @binding(3) var<storage, read_write> pages: array<u32>;               // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>;      // count, then entries of 4 words

const BLOCK = 32u;                    // tokens
const QUADS = HEAD_DIM / 4u;
const HALF_QUADS = HEAD_DIM / 8u;     // quads of half a head
const CODE_STRIDE = QUADS + 1u;       // so that tokens lie in different banks
const CODE_WORDS = BLOCK * CODE_STRIDE;
const KEY_GROUPS = HEAD_DIM / KEY_GROUP;
const VALUE_GROUPS = HEAD_DIM / VALUE_GROUP;
const KEY_ROWS = CODE_WORDS;          // where those of keys begin
const TRELLIS_ROUNDS = (BLOCK * TRELLIS_LANES + HEAD_DIM - 1u) / HEAD_DIM;
const SCALE_WORDS = BLOCK * (KEY_GROUPS + VALUE_GROUPS);

// [token, quad]: a byte each, of values, then of keys. Of a trellis four that follow in its order: numbers,
// then symbols.
var<workgroup> row_codes: array<u32, CODE_WORDS * CODE_ROWS>;
var<workgroup> scale_pairs: array<u32, SCALE_WORDS>; // [group of the keys, then of the values, token]

// A lane's channels of one row: quads a to d, and e to h from the middle of the head on.
struct Row { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32> }

// Their codes, a byte each.
struct Codes { a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32 }

// How the groups of the first and of the last four quads are fitted; the same where one group has
// the whole head.
struct Fits { first: Fit, last: Fit }

struct Eight { a: vec4<f32>, b: vec4<f32> }

struct Turn { cosine: vec4<f32>, sine: vec4<f32> }

fn halves(two: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
}

fn protected_eight(quad: u32) -> Eight {
    let words = protected_rows[quad / 2u];
    return Eight(halves(words.xy), halves(words.zw));
}

fn row_of(p: Eight, q: Eight, r: Eight, s: Eight) -> Row {
    return Row(p.a, p.b, q.a, q.b, r.a, r.b, s.a, s.b);
}

fn row_zero() -> Row {
    let zero = vec4<f32>(0.0);
    return Row(zero, zero, zero, zero, zero, zero, zero, zero);
}

// A lane's part of the means (0 of keys, 2 of values) or weights (1).
fn row_marks(head: u32, what: u32, lane: u32) -> Row {
    let at = (head * 3u + what) * QUADS + 4u * lane;
    return Row(
        bitcast<vec4<f32>>(marks[at]), bitcast<vec4<f32>>(marks[at + 1u]), bitcast<vec4<f32>>(marks[at + 2u]), bitcast<vec4<f32>>(marks[at + 3u]),
        bitcast<vec4<f32>>(marks[at + HALF_QUADS]), bitcast<vec4<f32>>(marks[at + HALF_QUADS + 1u]),
        bitcast<vec4<f32>>(marks[at + HALF_QUADS + 2u]), bitcast<vec4<f32>>(marks[at + HALF_QUADS + 3u]));
}

// The signs of a value's channels, as sign_of has them: of a quad the last two channels' depend
// on whether it is odd, and lane l's quads are 4 l to 4 l + 3 and as many from the middle of the
// head on.
fn quad_signs(quad: u32) -> vec4<f32> {
    let first = sign_of(4u * quad);
    return select(vec4<f32>(first, first, first, -first), vec4<f32>(first, first, -first, first), (quad & 1u) == 1u);
}

fn row_signs(lane: u32) -> Row {
    let quad = 4u * lane;
    return Row(
        quad_signs(quad), quad_signs(quad + 1u), quad_signs(quad + 2u), quad_signs(quad + 3u),
        quad_signs(quad + HALF_QUADS), quad_signs(quad + HALF_QUADS + 1u), quad_signs(quad + HALF_QUADS + 2u), quad_signs(quad + HALF_QUADS + 3u));
}

fn row_less(x: Row, y: Row) -> Row {
    return Row(x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d, x.e - y.e, x.f - y.f, x.g - y.g, x.h - y.h);
}

fn row_times(x: Row, y: Row) -> Row {
    return Row(x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d, x.e * y.e, x.f * y.f, x.g * y.g, x.h * y.h);
}

// A sum of magnitudes that overflows where a number is not storable: 2^13 times 32 of 2^110 does not.
fn row_storable(x: Row) -> bool {
    let large = vec4<f32>(8192.0);
    return finite(dot(abs(x.a), large) + dot(abs(x.b), large) + dot(abs(x.c), large) + dot(abs(x.d), large)
        + dot(abs(x.e), large) + dot(abs(x.f), large) + dot(abs(x.g), large) + dot(abs(x.h), large));
}

// The bits that any lane of the token has, in all of them.
fn any_lane(bits: u32) -> u32 {
    var all = bits | subgroupShuffleXor(bits, 1u);
    if (LANES > 2u) { all |= subgroupShuffleXor(all, 2u); }
    if (LANES > 4u) { all |= subgroupShuffleXor(all, 4u); }
    return all;
}

// 1 in all lanes of a token where any lane's part of its row is not finite, else 0.
fn row_broken(x: Row) -> u32 {
    return any_lane(select(1u, 0u, row_storable(x)));
}

// Cosines and sines of four pairs from an even one on, at a position given by its rows of the
// table, in pairs from its start.
fn turn_four(high: u32, low: u32, pair: u32) -> Turn {
    let h = (high + pair) / 2u;
    let l = (low + pair) / 2u;
    let p = turn_compose(turns[h].xy, turns[l].xy);
    let q = turn_compose(turns[h].zw, turns[l].zw);
    let r = turn_compose(turns[h + 1u].xy, turns[l + 1u].xy);
    let s = turn_compose(turns[h + 1u].zw, turns[l + 1u].zw);
    return Turn(vec4<f32>(p.x, q.x, r.x, s.x), vec4<f32>(p.y, q.y, r.y, s.y));
}

// Two neighbouring pairs of channels turned.
fn turn_neighbours(x: vec4<f32>, high: u32, low: u32, pair: u32) -> vec4<f32> {
    let p = turn_compose(turns[(high + pair) / 2u].xy, turns[(low + pair) / 2u].xy);
    let q = turn_compose(turns[(high + pair) / 2u].zw, turns[(low + pair) / 2u].zw);
    return x * vec4<f32>(p.x, p.x, q.x, q.x) + x.yxwz * vec4<f32>(-p.y, p.y, -q.y, q.y);
}

// The row at its position.
fn row_turn(x: Row, t: u32, lane: u32) -> Row {
    let high = (128u + t / 128u) * ROPE_PAIRS;
    let low = t % 128u * ROPE_PAIRS;
    if (ROPE == 2u) {
        let pair = 8u * lane;
        let middle = HEAD_DIM / 4u + 8u * lane;
        return Row(
            turn_neighbours(x.a, high, low, pair), turn_neighbours(x.b, high, low, pair + 2u),
            turn_neighbours(x.c, high, low, pair + 4u), turn_neighbours(x.d, high, low, pair + 6u),
            turn_neighbours(x.e, high, low, middle), turn_neighbours(x.f, high, low, middle + 2u),
            turn_neighbours(x.g, high, low, middle + 4u), turn_neighbours(x.h, high, low, middle + 6u));
    }
    let p = turn_four(high, low, 16u * lane);
    let q = turn_four(high, low, 16u * lane + 4u);
    let r = turn_four(high, low, 16u * lane + 8u);
    let s = turn_four(high, low, 16u * lane + 12u);
    return Row(
        x.a * p.cosine - x.e * p.sine, x.b * q.cosine - x.f * q.sine, x.c * r.cosine - x.g * r.sine, x.d * s.cosine - x.h * s.sine,
        x.e * p.cosine + x.a * p.sine, x.f * q.cosine + x.b * q.sine, x.g * r.cosine + x.c * r.sine, x.h * s.cosine + x.d * s.sine);
}

// Sums and differences with the lane that is `mask` away.
fn butterfly_lanes(x: Row, lane: u32, mask: u32) -> Row {
    let sign = select(1.0, -1.0, (lane & mask) != 0u);
    return Row(
        subgroupShuffleXor(x.a, mask) + sign * x.a, subgroupShuffleXor(x.b, mask) + sign * x.b,
        subgroupShuffleXor(x.c, mask) + sign * x.c, subgroupShuffleXor(x.d, mask) + sign * x.d,
        subgroupShuffleXor(x.e, mask) + sign * x.e, subgroupShuffleXor(x.f, mask) + sign * x.f,
        subgroupShuffleXor(x.g, mask) + sign * x.g, subgroupShuffleXor(x.h, mask) + sign * x.h);
}

// Of channels 8 apart.
fn butterfly_eights(x: Row) -> Row {
    return Row(x.a + x.c, x.b + x.d, x.a - x.c, x.b - x.d, x.e + x.g, x.f + x.h, x.e - x.g, x.f - x.h);
}

// Of the four channels of a quad, 1 and then 2 apart.
fn butterfly_quad(x: vec4<f32>) -> vec4<f32> {
    let ones = vec4<f32>(x.x + x.y, x.x - x.y, x.z + x.w, x.z - x.w);
    return vec4<f32>(ones.x + ones.z, ones.y + ones.w, ones.x - ones.z, ones.y - ones.w);
}

fn row_rotate(x: Row, lane: u32) -> Row {
    var y = x;
    if (HEAD_DIM < 256u) { y = butterfly_eights(y); }
    y = butterfly_lanes(y, lane, 1u);
    if (LANES > 2u) { y = butterfly_lanes(y, lane, 2u); }
    if (LANES > 4u) { y = butterfly_lanes(y, lane, 4u); }
    y = Row(y.a + y.e, y.b + y.f, y.c + y.g, y.d + y.h, y.a - y.e, y.b - y.f, y.c - y.g, y.d - y.h);
    y = Row(
        butterfly_quad(y.a), butterfly_quad(y.b), butterfly_quad(y.c), butterfly_quad(y.d),
        butterfly_quad(y.e), butterfly_quad(y.f), butterfly_quad(y.g), butterfly_quad(y.h));
    y = Row(y.a + y.b, y.a - y.b, y.c + y.d, y.c - y.d, y.e + y.f, y.e - y.f, y.g + y.h, y.g - y.h);
    if (HEAD_DIM == 256u) { y = butterfly_eights(y); }
    return Row(
        y.a * HADAMARD_SCALE, y.b * HADAMARD_SCALE, y.c * HADAMARD_SCALE, y.d * HADAMARD_SCALE,
        y.e * HADAMARD_SCALE, y.f * HADAMARD_SCALE, y.g * HADAMARD_SCALE, y.h * HADAMARD_SCALE);
}

fn gather_lanes(x: vec4<f32>, mask: u32, n: u32, bits: u32) -> vec4<f32> {
    let y = subgroupShuffleXor(x, mask);
    return vec4<f32>(fit_gather(x.xy, y.xy, n, bits), fit_gather(x.zw, y.zw, n, bits));
}

// A round of the fit of both groups that the lane has channels of.
fn fit_round(x: Row, fits: Fits, n: u32, bits: u32, channels: u32, clip: f32) -> Fits {
    let first = fit_sixteen(x.a, x.b, x.c, x.d, fits.first, n, bits);
    let last = fit_sixteen(x.e, x.f, x.g, x.h, fits.last, n, bits);
    var both = gather_lanes(vec4<f32>(first, last), 1u, n, bits);
    if (LANES > 2u && channels > 32u) { both = gather_lanes(both, 2u, n, bits); }
    if (LANES > 4u && channels > 64u) { both = gather_lanes(both, 4u, n, bits); }
    if (channels == HEAD_DIM) {
        let fit = fit_close(fit_gather(both.xy, both.zw, n, bits), fits.first, n, channels, bits, clip);
        return Fits(fit, fit);
    }
    return Fits(fit_close(both.xy, fits.first, n, channels, bits, clip), fit_close(both.zw, fits.last, n, channels, bits, clip));
}

fn row_fit(x: Row, bits: u32, channels: u32, clip: f32, trellis: bool) -> Fits {
    var fits = fit_round(x, Fits(fit_open(), fit_open()), 0u, bits, channels, clip);
    if (fit_rounds(bits) > 1u && !trellis) {
        fits = fit_round(x, fits, 1u, bits, channels, clip);
        fits = fit_round(x, fits, 2u, bits, channels, clip);
        fits = fit_round(x, fits, 3u, bits, channels, clip);
    }
    return fits;
}

fn fits_beyond(fits: Fits) -> bool {
    return fit_beyond(fits.first) || fit_beyond(fits.last);
}

fn code_quad(x: vec4<f32>, fit: Fit, bits: u32) -> u32 {
    return fit_code(x.x, fit, bits) | (fit_code(x.y, fit, bits) << 8u) | (fit_code(x.z, fit, bits) << 16u) | (fit_code(x.w, fit, bits) << 24u);
}

fn codes_of(x: Row, fits: Fits, bits: u32) -> Codes {
    return Codes(
        code_quad(x.a, fits.first, bits), code_quad(x.b, fits.first, bits), code_quad(x.c, fits.first, bits), code_quad(x.d, fits.first, bits),
        code_quad(x.e, fits.last, bits), code_quad(x.f, fits.last, bits), code_quad(x.g, fits.last, bits), code_quad(x.h, fits.last, bits));
}

// Leaves a token's scales to who writes them: for each group the first lane that has channels of
// it.
fn scales_leave(fits: Fits, first_group: u32, token: u32, lane: u32, channels: u32, less: f32) {
    if (16u * lane % channels == 0u) {
        scale_pairs[(first_group + 16u * lane / channels) * BLOCK + token] = fit_pack(fits.first, less);
        if (channels < HEAD_DIM) {
            scale_pairs[(first_group + (HEAD_DIM / 2u + 16u * lane) / channels) * BLOCK + token] = fit_pack(fits.last, less);
        }
    }
}

// Leaves a row's numbers to the lanes that find the symbols of its trellis. `at` is the row's first
// word. The trellis of keys goes by the bits of their words, of which this lane has two.
fn shares_leave(x: Row, fits: Fits, at: u32, lane: u32, channels: u32, key: bool) {
    let p = trellis_inverse(fit_squares(fits.first), channels);
    let q = trellis_inverse(fit_squares(fits.last), channels);
    let first = at + 4u * lane;
    let last = first + HALF_QUADS;
    if (key) {
        row_codes[first] = trellis_shares(vec4<f32>(x.a.x, x.b.x, x.c.x, x.d.x), p);
        row_codes[first + 1u] = trellis_shares(vec4<f32>(x.a.y, x.b.y, x.c.y, x.d.y), p);
        row_codes[first + 2u] = trellis_shares(vec4<f32>(x.a.z, x.b.z, x.c.z, x.d.z), p);
        row_codes[first + 3u] = trellis_shares(vec4<f32>(x.a.w, x.b.w, x.c.w, x.d.w), p);
        row_codes[last] = trellis_shares(vec4<f32>(x.e.x, x.f.x, x.g.x, x.h.x), q);
        row_codes[last + 1u] = trellis_shares(vec4<f32>(x.e.y, x.f.y, x.g.y, x.h.y), q);
        row_codes[last + 2u] = trellis_shares(vec4<f32>(x.e.z, x.f.z, x.g.z, x.h.z), q);
        row_codes[last + 3u] = trellis_shares(vec4<f32>(x.e.w, x.f.w, x.g.w, x.h.w), q);
    } else {
        row_codes[first] = trellis_shares(x.a, p);
        row_codes[first + 1u] = trellis_shares(x.b, p);
        row_codes[first + 2u] = trellis_shares(x.c, p);
        row_codes[first + 3u] = trellis_shares(x.d, p);
        row_codes[last] = trellis_shares(x.e, q);
        row_codes[last + 1u] = trellis_shares(x.f, q);
        row_codes[last + 2u] = trellis_shares(x.g, q);
        row_codes[last + 3u] = trellis_shares(x.h, q);
    }
}

fn level_bytes(levels: vec4<u32>, byte: u32) -> vec4<f32> {
    return vec4<f32>((levels >> vec4<u32>(8u * byte)) & vec4<u32>(255u)) - vec4<f32>(4.5);
}

// The sum of sixteen numbers times their levels, whose symbols are the words from `at` on; of the
// row's quads, or of a key's sixteen by components. `quad` is the first, counted in the row.
fn sixteen_products(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, at: u32, quad: u32, channels: u32, key: bool) -> f32 {
    let words = channels / 4u;
    let before = row_codes[at + select(0u, words, quad % words == 0u) - 1u];
    let symbols = vec4<u32>(row_codes[at], row_codes[at + 1u], row_codes[at + 2u], row_codes[at + 3u]);
    let levels = vec4<u32>(trellis_levels(symbols.x, before), trellis_levels(symbols.y, symbols.x),
        trellis_levels(symbols.z, symbols.y), trellis_levels(symbols.w, symbols.z));
    var sums: vec4<f32>;
    if (key) {
        sums = a * level_bytes(levels, 0u) + b * level_bytes(levels, 1u) + c * level_bytes(levels, 2u) + d * level_bytes(levels, 3u);
    } else {
        let middle = vec4<f32>(4.5);
        sums = a * (vec4<f32>(unpack4xU8(levels.x)) - middle) + b * (vec4<f32>(unpack4xU8(levels.y)) - middle)
            + c * (vec4<f32>(unpack4xU8(levels.z)) - middle) + d * (vec4<f32>(unpack4xU8(levels.w)) - middle);
    }
    return (sums.x + sums.y) + (sums.z + sums.w);
}

// The fits with the scales that suit the symbols.
fn trellis_fits(x: Row, fits: Fits, at: u32, lane: u32, channels: u32, key: bool) -> Fits {
    let first = sixteen_products(x.a, x.b, x.c, x.d, at + 4u * lane, 4u * lane, channels, key);
    let last = sixteen_products(x.e, x.f, x.g, x.h, at + HALF_QUADS + 4u * lane, HALF_QUADS + 4u * lane, channels, key);
    var both = gather_lanes(vec4<f32>(first, 0.0, last, 0.0), 1u, 1u, 2u);
    if (LANES > 2u && channels > 32u) { both = gather_lanes(both, 2u, 1u, 2u); }
    if (LANES > 4u && channels > 64u) { both = gather_lanes(both, 4u, 1u, 2u); }
    var fitted = fits;
    if (channels == HEAD_DIM) {
        both = vec4<f32>(both.x + both.z);
    }
    fitted.first = fit_rescaled(fitted.first, trellis_scale(fit_squares(fits.first), both.x, trellis_inverse(fit_squares(fits.first), channels)));
    fitted.last = fit_rescaled(fitted.last, trellis_scale(fit_squares(fits.last), both.z, trellis_inverse(fit_squares(fits.last), channels)));
    return fitted;
}

// Where the group of a token lies in its rows that a lane works on: those of keys come first.
fn trellis_group_at(group: u32) -> u32 {
    let keys = select(0u, KEY_GROUPS, KEY_TRELLIS);
    return select((group - keys) * (VALUE_GROUP / 4u), KEY_ROWS + group * (KEY_GROUP / 4u), group < keys);
}

fn paths_across(paths: TrellisPaths) -> TrellisPaths {
    return TrellisPaths(subgroupShuffleXor(paths.a, 1u), subgroupShuffleXor(paths.b, 1u), subgroupShuffleXor(paths.c, 1u), subgroupShuffleXor(paths.d, 1u));
}

// Four symbols, a byte each, in a byte.
fn symbols_byte(symbols: u32) -> u32 {
    return (symbols & 3u) | ((symbols >> 6u) & 12u) | ((symbols >> 12u) & 48u) | ((symbols >> 18u) & 192u);
}

// Sixteen symbols of a key, in a word.
fn symbols_word(at: u32) -> u32 {
    return pack4xU8(vec4<u32>(symbols_byte(row_codes[at]), symbols_byte(row_codes[at + 1u]), symbols_byte(row_codes[at + 2u]), symbols_byte(row_codes[at + 3u])));
}

fn twos(a: u32, b: u32, c: u32, d: u32) -> u32 {
    return (a & 0x03030303u) | ((b & 0x03030303u) << 2u) | ((c & 0x03030303u) << 4u) | ((d & 0x03030303u) << 6u);
}

fn third_bits(a: u32, b: u32, c: u32, d: u32) -> u32 {
    return ((a >> 2u) & 0x01010101u) | (((b >> 2u) & 0x01010101u) << 1u) | (((c >> 2u) & 0x01010101u) << 2u) | (((d >> 2u) & 0x01010101u) << 3u);
}

// A token's key codes into its words, which are its own. `at` is the first one.
fn keys_put(at: u32, lane: u32, codes: Codes, packs: bool) {
    if (KEY_BITS == 3u) {
        // A word of third bits has the channels of two lanes.
        let shift = 4u * (lane & 1u);
        var first = third_bits(codes.a, codes.b, codes.c, codes.d) << shift;
        var last = third_bits(codes.e, codes.f, codes.g, codes.h) << shift;
        first |= subgroupShuffleXor(first, 1u);
        last |= subgroupShuffleXor(last, 1u);
        if (packs && (lane & 1u) == 0u) {
            pages[at + 128u * (HEAD_DIM / 16u + lane / 2u)] = first;
            pages[at + 128u * (HEAD_DIM / 16u + HEAD_DIM / 64u + lane / 2u)] = last;
        }
    }
    if (packs) {
        if (KEY_BITS < 4u) {
            pages[at + 128u * lane] = twos(codes.a, codes.b, codes.c, codes.d);
            pages[at + 128u * (HEAD_DIM / 32u + lane)] = twos(codes.e, codes.f, codes.g, codes.h);
        } else if (KEY_BITS == 4u) {
            let word = at + 256u * lane;
            let middle = word + 8u * HEAD_DIM;
            pages[word] = codes.a | (codes.b << 4u);
            pages[word + 128u] = codes.c | (codes.d << 4u);
            pages[middle] = codes.e | (codes.f << 4u);
            pages[middle + 128u] = codes.g | (codes.h << 4u);
        } else {
            // Eight bits lie in memory as signed bytes, so that one signed dot product serves every
            // width.
            let word = at + 512u * lane;
            let middle = word + 16u * HEAD_DIM;
            pages[word] = codes.a ^ 0x80808080u;
            pages[word + 128u] = codes.b ^ 0x80808080u;
            pages[word + 256u] = codes.c ^ 0x80808080u;
            pages[word + 384u] = codes.d ^ 0x80808080u;
            pages[middle] = codes.e ^ 0x80808080u;
            pages[middle + 128u] = codes.f ^ 0x80808080u;
            pages[middle + 256u] = codes.g ^ 0x80808080u;
            pages[middle + 384u] = codes.h ^ 0x80808080u;
        }
    }
}

// Channel i's codes of four tokens, a byte each.
fn value_four(four: u32, i: u32) -> u32 {
    let at = 4u * four * CODE_STRIDE + i / 4u;
    let shift = 8u * (i % 4u);
    return ((row_codes[at] >> shift) & 255u) | (((row_codes[at + CODE_STRIDE] >> shift) & 255u) << 8u)
        | (((row_codes[at + 2u * CODE_STRIDE] >> shift) & 255u) << 16u) | (((row_codes[at + 3u * CODE_STRIDE] >> shift) & 255u) << 24u);
}

// The bytes of those of four tokens that lie before token `end` of the block.
fn bytes_before(four: u32, end: u32) -> u32 {
    let count = clamp(end, 4u * four, 4u * four + 4u) - 4u * four;
    return select((1u << (8u * min(count, 3u))) - 1u, 0xffffffffu, count == 4u);
}

// Those of tokens from..end.
fn bytes_of(four: u32, tokens: vec2<u32>) -> u32 {
    return bytes_before(four, tokens.y) & ~bytes_before(four, tokens.x);
}

// Replaces a word's bits under a mask.
fn word_put(at: u32, mask: u32, word: u32) {
    if (mask == 0xffffffffu) {
        pages[at] = word;
    } else if (mask != 0u) {
        pages[at] = (pages[at] & ~mask) | (word & mask);
    }
}

// The word of sixteen tokens' codes of two bits (or the low ones of three), from four of them on.
fn values_twos(at: u32, four: u32, i: u32, tokens: vec2<u32>) {
    word_put(at, twos(bytes_of(four, tokens), bytes_of(four + 1u, tokens), bytes_of(four + 2u, tokens), bytes_of(four + 3u, tokens)),
        twos(value_four(four, i), value_four(four + 1u, i), value_four(four + 2u, i), value_four(four + 3u, i)));
}

fn values_thirds(at: u32, i: u32, tokens: vec2<u32>) {
    let low = third_bits(value_four(0u, i), value_four(1u, i), value_four(2u, i), value_four(3u, i));
    let high = third_bits(value_four(4u, i), value_four(5u, i), value_four(6u, i), value_four(7u, i));
    let low_mask = third_bits(bytes_of(0u, tokens), bytes_of(1u, tokens), bytes_of(2u, tokens), bytes_of(3u, tokens));
    let high_mask = third_bits(bytes_of(4u, tokens), bytes_of(5u, tokens), bytes_of(6u, tokens), bytes_of(7u, tokens));
    word_put(at, low_mask | (high_mask << 4u), low | (high << 4u));
}

fn values_fours(at: u32, four: u32, i: u32, tokens: vec2<u32>) {
    let mask = (bytes_of(four, tokens) & 0x0f0f0f0fu) | ((bytes_of(four + 1u, tokens) & 0x0f0f0f0fu) << 4u);
    word_put(at, mask, value_four(four, i) | (value_four(four + 1u, i) << 4u));
}

// Channel i's value codes of the block's tokens from..end. `at` is in words, `four` counts the
// page's tokens before the block by fours.
fn values_put(at: u32, four: u32, i: u32, tokens: vec2<u32>) {
    if (VALUE_BITS < 4u) {
        let word = at + four / 4u * HEAD_DIM + i;
        values_twos(word, 0u, i, tokens);
        values_twos(word + HEAD_DIM, 4u, i, tokens);
        if (VALUE_BITS == 3u) {
            values_thirds(at + (8u + four / 8u) * HEAD_DIM + i, i, tokens);
        }
    } else if (VALUE_BITS == 4u) {
        let word = at + four / 2u * HEAD_DIM + i;
        values_fours(word, 0u, i, tokens);
        values_fours(word + HEAD_DIM, 2u, i, tokens);
        values_fours(word + 2u * HEAD_DIM, 4u, i, tokens);
        values_fours(word + 3u * HEAD_DIM, 6u, i, tokens);
    } else {
        let word = at + four * HEAD_DIM + i;
        word_put(word, bytes_of(0u, tokens), value_four(0u, i));
        word_put(word + HEAD_DIM, bytes_of(1u, tokens), value_four(1u, i));
        word_put(word + 2u * HEAD_DIM, bytes_of(2u, tokens), value_four(2u, i));
        word_put(word + 3u * HEAD_DIM, bytes_of(3u, tokens), value_four(3u, i));
        word_put(word + 4u * HEAD_DIM, bytes_of(4u, tokens), value_four(4u, i));
        word_put(word + 5u * HEAD_DIM, bytes_of(5u, tokens), value_four(5u, i));
        word_put(word + 6u * HEAD_DIM, bytes_of(6u, tokens), value_four(6u, i));
        word_put(word + 7u * HEAD_DIM, bytes_of(7u, tokens), value_four(7u, i));
    }
}

// Writes what scale_pairs holds of one group for one token, or for two where a word has two.
fn scales_put(page_at: u32, first_token: u32, cell: u32, tokens: vec2<u32>) {
    let per_word = 128u / GROUP_WORDS;
    let group = cell * per_word / BLOCK;
    let token = cell * per_word % BLOCK;
    var at = page_at + 4u * KEY_SCALES + group * GROUP_WORDS;
    if (group >= KEY_GROUPS) {
        at = page_at + 4u * VALUE_SCALES + (group - KEY_GROUPS) * GROUP_WORDS;
    }
    if (!KEYS && group < KEY_GROUPS) {
        return;
    }
    at += group_word(first_token + token);
    let low = token >= tokens.x && token < tokens.y;
    if (per_word == 1u) {
        word_put(at, select(0u, 0xffffffffu, low), scale_pairs[group * BLOCK + token]);
    } else {
        let high = token + 1u >= tokens.x && token + 1u < tokens.y;
        let mask = select(0u, 0xffffu, low) | select(0u, 0xffff0000u, high);
        word_put(at, mask, (scale_pairs[group * BLOCK + token] & 0xffffu) | (scale_pairs[group * BLOCK + token + 1u] << 16u));
    }
}

@compute @workgroup_size(HEAD_DIM)
fn append_block(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = place_workgroup(workgroup, workgroups);
    if (n >= params.items) {
        return;
    }
    let chunk = tables[params.items_at + 2u * n];
    let block = tables[params.items_at + 2u * n + 1u];
    let slot = chunk_slot(chunk);
    let old_tokens = chunk_old_tokens(chunk);
    let old_packed = chunk_old_packed(chunk);
    let new_packed = chunk_new_packed(chunk);
    let page = chunk_page(chunk, block * BLOCK / 128u);
    let row_first = chunk_row_first(chunk);
    let head = tables[params.heads_at + workgroup.z];
    let at = (page * params.slab_heads + workgroup.z) * (4u * PAGE_VECS);

    // The block's tokens that are packed now, counted in the block.
    let tokens = clamp(vec2<u32>(max(old_packed, UNPACKED), new_packed), vec2<u32>(BLOCK * block), vec2<u32>(BLOCK * block + BLOCK)) - BLOCK * block;
    let token = i / LANES;
    let lane = i % LANES;
    let t = BLOCK * block + token;
    let packs = token >= tokens.x && token < tokens.y;
    let fresh = packs && t >= old_tokens;
    let input_row = row_first + t - old_tokens;
    let protected_quad = ((slot * params.kv_heads + head) * (SINKS + RING) + SINKS + t % max(RING, 1u)) * (2u * QUADS) + 4u * lane;

    var broken = 0u;
    var beyond = 0u;
    let row_at = token * CODE_STRIDE;
    var key_row = row_zero();
    var key_fits = Fits(fit_open(), fit_open());
    if (KEYS) {
        var x = row_zero();
        if (fresh) {
            let k = layout_row(0u, input_row, params.kv_heads, head) + 16u * lane;
            x = row_of(eight_key(k), eight_key(k + 8u), eight_key(k + HEAD_DIM / 2u), eight_key(k + HEAD_DIM / 2u + 8u));
            if (CENTRED) {
                var means = row_marks(head, 0u, lane);
                if (TURNED && ROPE > 0u) { means = row_turn(means, t, lane); }
                x = row_less(x, means);
            }
        } else if (packs) {
            x = row_of(protected_eight(protected_quad), protected_eight(protected_quad + 2u),
                protected_eight(protected_quad + HALF_QUADS), protected_eight(protected_quad + HALF_QUADS + 2u));
        }
        broken = row_broken(x);
        if (fresh) {
            if (ROPE > 0u && !TURNED) { x = row_turn(x, t, lane); }
            if (CENTRED) { x = row_times(x, row_marks(head, 1u, lane)); }
        }
        if (broken != 0u) { x = row_zero(); }
        if (ROTATE_KEYS) {
            let rotated = row_rotate(x, lane);
            if (fresh) { x = rotated; }
        }
        key_fits = row_fit(x, KEY_BITS, KEY_GROUP, KEY_CLIP, KEY_TRELLIS);
        if (KEY_TRELLIS) {
            key_row = x;
            shares_leave(x, key_fits, KEY_ROWS + row_at, lane, KEY_GROUP, true);
        } else {
            keys_put(at + t % 128u, lane, codes_of(x, key_fits, KEY_BITS), packs);
        }
    }

    var x = row_zero();
    if (fresh) {
        let v = layout_row(1u, input_row, params.kv_heads, head) + 16u * lane;
        x = row_of(eight_value(v), eight_value(v + 8u), eight_value(v + HEAD_DIM / 2u), eight_value(v + HEAD_DIM / 2u + 8u));
        if (CENTRED) { x = row_less(x, row_marks(head, 2u, lane)); }
    } else if (packs) {
        let quad = protected_quad + QUADS;
        x = row_of(protected_eight(quad), protected_eight(quad + 2u), protected_eight(quad + HALF_QUADS), protected_eight(quad + HALF_QUADS + 2u));
    }
    let value_broken = row_broken(x);
    if (value_broken != 0u) { x = row_zero(); }
    broken |= 2u * value_broken;
    if (fresh && CENTRED) { x = row_times(x, row_signs(lane)); }
    if (ROTATE_VALUES) {
        let rotated = row_rotate(x, lane);
        if (fresh) { x = rotated; }
    }
    var fits = row_fit(x, VALUE_BITS, VALUE_GROUP, VALUE_CLIP, VALUE_TRELLIS);
    if (VALUE_TRELLIS) {
        shares_leave(x, fits, row_at, lane, VALUE_GROUP, false);
    } else {
        let codes = codes_of(x, fits, VALUE_BITS);
        let code_at = row_at + 4u * lane;
        row_codes[code_at] = codes.a;
        row_codes[code_at + 1u] = codes.b;
        row_codes[code_at + 2u] = codes.c;
        row_codes[code_at + 3u] = codes.d;
        row_codes[code_at + HALF_QUADS] = codes.e;
        row_codes[code_at + HALF_QUADS + 1u] = codes.f;
        row_codes[code_at + HALF_QUADS + 2u] = codes.g;
        row_codes[code_at + HALF_QUADS + 3u] = codes.h;
    }
    if (KEY_TRELLIS || VALUE_TRELLIS) {
        workgroupBarrier();
        for (var round = 0u; round < TRELLIS_ROUNDS; round++) {
            let work = round * HEAD_DIM + i;
            let work_token = work / TRELLIS_LANES;
            let group_at = min(work_token, BLOCK - 1u) * CODE_STRIDE + trellis_group_at(work % TRELLIS_LANES / 2u);
            let down = (work & 1u) == 1u;
            let works = work_token >= tokens.x && work_token < tokens.y;
            let none = vec4<f32>(TRELLIS_NONE);
            var paths = TrellisPaths(none, none, none, none);
            var links: TrellisLinks;
            if (works) { paths = trellis_open(group_at, down); }
            let first = trellis_meet(paths, paths_across(paths), down);
            if (works) { paths = trellis_walk(group_at, down, first, &links); }
            let middle = trellis_meet(paths, paths_across(paths), down);
            if (works) { trellis_trace(group_at, down, middle, &links); }
        }
        workgroupBarrier();
        if (KEY_TRELLIS) {
            let words_at = KEY_ROWS + row_at;
            key_fits = trellis_fits(key_row, key_fits, words_at, lane, KEY_GROUP, true);
            if (packs) {
                pages[at + t % 128u + 128u * lane] = symbols_word(words_at + 4u * lane);
                pages[at + t % 128u + 128u * (HEAD_DIM / 32u + lane)] = symbols_word(words_at + HALF_QUADS + 4u * lane);
            }
        }
        if (VALUE_TRELLIS) {
            fits = trellis_fits(x, fits, row_at, lane, VALUE_GROUP, false);
        }
    }
    if (KEYS) {
        beyond = select(0u, 4u, fits_beyond(key_fits));
        scales_leave(key_fits, 0u, token, lane, KEY_GROUP, select(0.0, 128.0, KEY_BITS == 8u));
    }
    scales_leave(fits, KEY_GROUPS, token, lane, VALUE_GROUP, 0.0);
    beyond = any_lane(beyond | select(0u, 8u, fits_beyond(fits)));
    if ((broken | beyond) != 0u && lane == 0u) {
        report(slot, t, head, broken | beyond);
    }
    workgroupBarrier();

    // From here on an invocation has one channel of all tokens.
    values_put(at + 4u * VALUES, BLOCK * block % 128u / 4u, i, tokens);
    let first_token = BLOCK * block;
    for (var cell = i; cell < SCALE_WORDS * GROUP_WORDS / 128u; cell += HEAD_DIM) {
        scales_put(at, first_token, cell, tokens);
    }
}
