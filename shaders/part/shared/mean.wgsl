// mean: what is taken off a channel of the caller's key and value (Centred), at position t. Keys that
// come turned lose the mean turned to their position. Reads the kernel's binding `turns`; needs
// centre and turn.

override ROPE_PAIRS: u32; // pairs of channels that turn
override CENTRED: bool;
override TURNED: bool;    // whether the caller's keys come turned

// Cosine and sine of a pair at a position.
fn mean_turn(t: u32, pair: u32) -> vec2<f32> {
    return turn_compose(turns[(128u + t / 128u) * ROPE_PAIRS + pair], turns[(t % 128u) * ROPE_PAIRS + pair]);
}

// The means of channel i of a head, the key's turned.
fn mean_turned(head: u32, i: u32, t: u32) -> vec2<f32> {
    var means = centre_means(head, i);
    let pair = turn_pair(i);
    if (CENTRED && pair < ROPE_PAIRS) {
        let turn = mean_turn(t, pair);
        means.x = means.x * turn.x + turn_sign(i) * centre_means(head, turn_partner(i)).x * turn.y;
    }
    return means;
}

// What is taken off before a key that does not come turned is turned.
fn mean_of(head: u32, i: u32, t: u32) -> vec2<f32> {
    if (TURNED) {
        return mean_turned(head, i, t);
    }
    return centre_means(head, i);
}
