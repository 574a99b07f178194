// place: a long list of workgroups folded into two dimensions, since one holds 65535 at most.
fn place_workgroup(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.x + id.y * groups.x;
}
