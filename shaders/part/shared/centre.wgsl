// centre: the means of a KV head's key and value channels, and the weights of them, as
// the codec Centred takes them. Reads the kernel's binding `marks`, which begins with them:
// [kv_heads, 3, HEAD_DIM] f32. Other codecs have means of 0 and weights of 1. Needs sign.

override HEAD_DIM: u32; // channels of a head
override CENTRED: bool;

fn centre_at(head: u32, what: u32, i: u32) -> f32 {
    return bitcast<f32>(marks[(head * 3u + what) * HEAD_DIM + i]);
}

// The means of channel i of the key and of the value.
fn centre_means(head: u32, i: u32) -> vec2<f32> {
    if (CENTRED) {
        return vec2<f32>(centre_at(head, 0u, i), centre_at(head, 2u, i));
    }
    return vec2<f32>(0.0);
}

// What channel i of the key and of the value is multiplied by before the rotation: the key's weight,
// whose sign is that of its channel, and the sign.
fn centre_weights(head: u32, i: u32) -> vec2<f32> {
    if (CENTRED) {
        return vec2<f32>(centre_at(head, 1u, i), sign_of(i));
    }
    return vec2<f32>(1.0);
}
