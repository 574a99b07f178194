// spread: no rotation between lanes: the kernel takes the two factors of part hadamard, through
// workgroup memory.
const SPREAD_SHARED = true;

fn spread_rotate(x: MadeChannels, lane: u32) -> MadeChannels {
    return x;
}
