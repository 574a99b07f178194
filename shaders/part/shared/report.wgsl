// report: the list of keys and values that could not be stored as they came. Writes the kernel's
// binding `status`, reads `params.layer`. Twin: src/kernel/reference/mod.rs.

// Adds a row to the list. What is a sum of 1 for a key that is not finite, 2 for such a value, 4 for
// a key beyond what is stored, which was clamped, 8 for such a value. Beyond the list's end it is
// only counted.
fn report(slot: u32, token: u32, head: u32, what: u32) {
    let n = atomicAdd(&status[0], 1u);
    let at = 4u + 4u * n;
    if (at + 3u < arrayLength(&status)) {
        atomicStore(&status[at], params.layer);
        atomicStore(&status[at + 1u], slot);
        atomicStore(&status[at + 2u], token);
        atomicStore(&status[at + 3u], head * 16u + what);
    }
}
