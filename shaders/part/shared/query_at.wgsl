// query_at: number i of the caller's queries. Reads the kernel's binding `queries`. Needs element.

fn query_at(i: u32) -> f32 {
    return element_of(queries[element_word(i)], i);
}
