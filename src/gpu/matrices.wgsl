// matrices: one product of cooperative matrices, 16 x 16 halves into f32, to see whether a device
// computes it. One workgroup of 32 invocations.
//
//   product = a * b + c

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read> a: array<f16>;             // [16, 16], row after row
@group(0) @binding(1) var<storage, read> b: array<f16>;             // [16, 16]
@group(0) @binding(2) var<storage, read_write> product: array<f32>; // [16, 16], c before

@compute @workgroup_size(32)
fn matrices() {
    let left = coopLoadT<coop_mat16x16<f16, A>>(&a[0], 16u);
    let right = coopLoadT<coop_mat16x16<f16, B>>(&b[0], 16u);
    let sum = coopLoadT<coop_mat16x16<f32, C>>(&product[0], 16u);
    coopStoreT(coopMultiplyAdd(left, right, sum), &product[0], 16u);
}
