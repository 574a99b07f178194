// before: the words of the two channels before a quad's, round its group, from the lane that has them.

override VALUE_GROUP: u32; // channels that share a value scale; divides HEAD_DIM

fn before_pair(v: vec4<u32>, w: u32, at: u32, quad: u32) -> vec2<u32> {
    const last = VALUE_GROUP / 4u - 1u;
    let lane = select(quad - 1u, quad + last, quad % (last + 1u) == 0u) % 32u;
    return vec2<u32>(subgroupShuffle(v.z, lane), subgroupShuffle(v.w, lane));
}
