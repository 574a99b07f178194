"""Decode attention in f16 through torch, on the shapes of benches/attention.rs: cuDNN and FlashAttention.

    python3 benches/peers/torch_attention.py [[QUERY_HEADS/KV_HEADS/HEAD_DIM:]SEQUENCESxTOKENS ...]

One new token a sequence, 32/8/128 heads if a shape does not say. Gtok/s = sequences * kv_heads * tokens / time.
Several copies of keys and values are used in turn, 200 MB or more together, so that no cache holds them.
"""
import sys
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS = "32/8/128"
SHAPES = (
    "1x4096 1x32768 1x131072 8x32768 64x4096 64x8192 64x32768 16x131072 "
    "64/8/128:8x32768 28/4/128:8x32768 32/32/128:8x8192 32/8/64:8x32768"
)


def measure(backend, heads, sequences, tokens):
    query_heads, kv_heads, head_dim = heads
    bytes_each = 2 * 2 * sequences * kv_heads * tokens * head_dim
    copies = max(1, -(-(200 << 20) // bytes_each))
    make = lambda heads, n: torch.randn(sequences, heads, n, head_dim, device="cuda", dtype=torch.float16)
    caches = [(make(kv_heads, tokens), make(kv_heads, tokens)) for _ in range(copies)]
    query = make(query_heads, 1)
    calls = 50
    with sdpa_kernel(backend):
        def run():
            for i in range(calls):
                keys, values = caches[i % copies]
                scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        run()
        times = []
        for _ in range(5):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / calls * 1e-3)
    return sorted(times)[len(times) // 2]


print(torch.cuda.get_device_name(), "torch", torch.__version__)
for shape in sys.argv[1:] or SHAPES.split():
    of, _, size = shape.rpartition(":")
    heads = tuple(map(int, (of or HEADS).split("/")))
    sequences, tokens = map(int, size.split("x"))
    for name, backend in [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention", SDPBackend.FLASH_ATTENTION)]:
        try:
            time = measure(backend, heads, sequences, tokens)
            print(f"{shape:>22} {name:>16} f16 {time * 1e6:10.1f} us {sequences * heads[1] * tokens / time * 1e-9:8.2f} Gtok/s", flush=True)
        except Exception as error:
            print(f"{shape:>22} {name:>16} f16 not measured: {error}", flush=True)
