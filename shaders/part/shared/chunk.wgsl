// chunk: what a step adds to one sequence, and where that sequence stands: a record of eight words
// in the kernel's binding `tables`, from `chunk` on. The host writes it in src/cache/sequence.rs.

// The sequence's place in what is kept by slot.
fn chunk_slot(chunk: u32) -> u32 {
    return tables[chunk];
}

// Tokens before the step.
fn chunk_old_tokens(chunk: u32) -> u32 {
    return tables[chunk + 1u];
}

// Tokens after it.
fn chunk_new_tokens(chunk: u32) -> u32 {
    return tables[chunk + 2u];
}

// Tokens before this one lay in pages before the step (but for the sinks).
fn chunk_old_packed(chunk: u32) -> u32 {
    return tables[chunk + 3u];
}

// And after it.
fn chunk_new_packed(chunk: u32) -> u32 {
    return tables[chunk + 4u];
}

// The list of the sequence's physical pages, in `tables`.
fn chunk_list(chunk: u32) -> u32 {
    return tables[chunk + 5u];
}

// Physical page n of the sequence.
fn chunk_page(chunk: u32, n: u32) -> u32 {
    return tables[chunk_list(chunk) + n];
}

// The first of its rows among the step's.
fn chunk_row_first(chunk: u32) -> u32 {
    return tables[chunk + 6u];
}

// Elected sinks from this token on are of a past that was cut off.
fn chunk_limit(chunk: u32) -> u32 {
    return tables[chunk + 7u];
}
