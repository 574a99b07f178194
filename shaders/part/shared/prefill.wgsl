// prefill: an item of attend_prefill or attend_matrices: query rows of one KV head, and the tiles of
// 32 tokens that they are held against. Reads the kernel's bindings `tables` and `marks`; needs
// chunk.

override SHARE: u32;          // query heads per KV head
override SINKS: u32;
override SLIDING_WINDOW: u32; // tokens that a row sees, itself the last; all where it is the largest number
override CHUNK: u32;          // tokens of a chunk that a row sees no further back than the first of; 0 for none
override MASSIVE: bool;       // whether the sinks are elected
override ELECTED_AT: u32;     // first elected sink in marks

const PREFILL_NOWHERE = 0xffffffffu;

struct PrefillItem {
    row_first: u32,     // first row of query_rows
    rows: u32,          // query tokens times SHARE
    head: u32,
    heads: u32,         // query heads
    query_first: u32,   // position of the first query token
    queries: u32,       // query tokens
    after: u32,         // where tokens begin again after the sinks; 0 where the tiles are those of all tokens
    before_end: u32,    // places of sinks
    before_tiles: u32,  // tiles of them
    tokens: u32,        // tokens of the sequence
    tile_first: u32,
    tile_end: u32,
    unpacked: u32,      // the first tile's place in unpacked_rows
    partial: u32,       // of the first query token
    partials: u32,      // from one query token's to the next
    sinks_at: u32,      // the sequence's elected sinks in marks
    limit: u32,         // those from this token on are of a past that was cut off
}

fn prefill_item(at: u32, head: u32, kv_heads: u32) -> PrefillItem {
    let chunk = tables[at];
    let queries = tables[at + 2u];
    let after = tables[at + 4u];
    let before_end = select(min(SINKS, after), select(0u, SINKS, after > 0u), MASSIVE);
    return PrefillItem(tables[at + 3u], queries * SHARE, head, kv_heads * SHARE, chunk_old_tokens(chunk) + tables[at + 1u], queries, after, before_end,
        (before_end + 31u) / 32u, chunk_new_tokens(chunk), tables[at + 5u], tables[at + 6u], tables[at + 7u], tables[at + 8u], tables[at + 9u],
        ELECTED_AT + chunk_slot(chunk) * 3u * SINKS, chunk_limit(chunk));
}

// Which row of [token, query heads] the item's row r is among the queries; of rows beyond the last
// it is the last.
fn prefill_row(item: PrefillItem, r: u32) -> u32 {
    let n = min(r, item.rows - 1u);
    return (item.row_first + n / SHARE) * item.heads + item.head * SHARE + n % SHARE;
}

// And among the partial results.
fn prefill_partial(item: PrefillItem, r: u32) -> u32 {
    return (item.partial + r / SHARE * item.partials) * item.heads + item.head * SHARE + r % SHARE;
}

// The first token that rows see, by the end of what they see.
fn prefill_first(end: vec4<u32>) -> vec4<u32> {
    if (CHUNK > 0u) {
        let own = end - vec4<u32>(1u);
        return own - own % vec4<u32>(max(CHUNK, 1u));
    }
    return max(end, vec4<u32>(SLIDING_WINDOW)) - vec4<u32>(SLIDING_WINDOW);
}

// The tiles of which every row sees every token: the first, and the end of these.
fn prefill_open(item: PrefillItem) -> vec2<u32> {
    let all_end = item.query_first + item.queries;
    let first = max(prefill_first(vec4<u32>(all_end)).x, item.after) - item.after;
    let end = max(min(item.query_first + 1u, item.tokens), item.after) - item.after;
    return vec2<u32>(item.before_tiles + (first + 31u) / 32u, item.before_tiles + end / 32u);
}

// The position of the tile's token n.
fn prefill_position(item: PrefillItem, tile: u32, n: u32) -> u32 {
    if (tile < item.before_tiles) {
        let s = 32u * tile + n;
        var t = s;
        if (MASSIVE) {
            t = marks[item.sinks_at + min(s, SINKS - 1u)];
            t = select(PREFILL_NOWHERE, t, t < item.limit && t < item.after);
        }
        return select(PREFILL_NOWHERE, t, s < item.before_end);
    }
    let t = item.after + 32u * (tile - item.before_tiles) + n;
    return select(PREFILL_NOWHERE, t, t < item.tokens);
}

// Of four rows from r on: the first token that they see, and the end of those.
fn prefill_seen(item: PrefillItem, r: u32) -> array<vec4<u32>, 2> {
    let end = vec4<u32>(item.query_first + 1u) + (vec4<u32>(r) + vec4<u32>(0u, 1u, 2u, 3u)) / vec4<u32>(SHARE);
    return array<vec4<u32>, 2>(prefill_first(end), end);
}
