// report: the list of keys and values that are not finite. Writes the kernel's binding `status`,
// reads `params.layer`. Twin: src/kernel/reference/mod.rs.

// Adds a row to the list: what is 1 for the key, 2 for the value, 3 for both. Beyond the list's end
// it is only counted.
fn report(slot: u32, token: u32, head: u32, what: u32) {
    let n = atomicAdd(&status[0], 1u);
    let at = 4u + 4u * n;
    if (at + 3u < arrayLength(&status)) {
        atomicStore(&status[at], params.layer);
        atomicStore(&status[at + 1u], slot);
        atomicStore(&status[at + 2u], token);
        atomicStore(&status[at + 3u], head * 4u + what);
    }
}
