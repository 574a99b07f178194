"""Decode attention in f16 through torch, on the shapes of benches/attention.rs: cuDNN and FlashAttention.

    python3 benches/peers/torch_attention.py [SEQUENCESxTOKENS ...]

One new token a sequence, 32 query heads, 8 KV heads, head_dim 128. Gtok/s = sequences * kv_heads * tokens / time.
Several copies of keys and values are used in turn, 200 MB or more together, so that no cache holds them.
"""
import sys
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def measure(backend, sequences, tokens):
    bytes_each = 2 * 2 * sequences * KV_HEADS * tokens * HEAD_DIM
    copies = max(1, -(-(200 << 20) // bytes_each))
    make = lambda heads, n: torch.randn(sequences, heads, n, HEAD_DIM, device="cuda", dtype=torch.float16)
    caches = [(make(KV_HEADS, tokens), make(KV_HEADS, tokens)) for _ in range(copies)]
    query = make(QUERY_HEADS, 1)
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


shapes = sys.argv[1:] or ["1x32768", "1x131072", "64x8192", "64x32768"]
print(torch.cuda.get_device_name(), "torch", torch.__version__)
for shape in shapes:
    sequences, tokens = map(int, shape.split("x"))
    for name, backend in [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention", SDPBackend.FLASH_ATTENTION)]:
        try:
            time = measure(backend, sequences, tokens)
            print(f"{shape:>12} {name:>16} f16 {time * 1e6:10.1f} us {sequences * KV_HEADS * tokens / time * 1e-9:8.2f} Gtok/s", flush=True)
        except Exception as error:
            print(f"{shape:>12} {name:>16} f16 not measured: {error}", flush=True)
