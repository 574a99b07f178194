// before: the words of the two channels before a quad's, round its group, from where they lie: word w
// of the quad at `at`. Reads the kernel's binding `pages`.

override HEAD_DIM: u32;    // channels of a head
override VALUE_GROUP: u32; // channels that share a value scale; divides HEAD_DIM

fn before_pair(v: vec4<u32>, w: u32, at: u32, quad: u32) -> vec2<u32> {
    const last = VALUE_GROUP / 4u - 1u;
    return pages[at + w * (HEAD_DIM / 4u) - quad + select(quad - 1u, quad + last, quad % (last + 1u) == 0u)].zw;
}
