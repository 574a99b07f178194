"""What llama.cpp's quantized caches cost a model: the peer's side of `cargo xtask quality --model smollm2 --peer`.

    python3 benches/peers/llama_cpp_caches.py MODEL.gguf FOLDER TEXT [WINDOWS] [TYPE ...]

FOLDER is the unpacked wheel of the PyPI package inferna-vulkan 0.7.0 (Linux on x86-64, Python 3.12 or later), which has
llama.cpp's libraries and a binding. Needs numpy. TEXT is cut into windows of 2048 tokens (8) as `wgkv-llama perplexity`
cuts it. Each cache (q8_0, q5_0, q4_0; keys and values alike) reads them beside an f16 cache, 128 tokens at once, with
flash attention: llama.cpp quantizes a token before it is attended to. A line is one JSON object with the perplexity,
the divergence from the f16 cache's predictions in nats, and the bits of a number. GGML_VK_VISIBLE_DEVICES= in the
environment keeps it off the GPU.
"""
import json
import sys
from array import array
import numpy as np

CONTEXT, CHUNK = 2048, 128
BITS = {"f16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}


def log_softmax(rows):
    rows = rows - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)


class Reader:
    def __init__(self, binding, model, kind):
        params = binding.LlamaContextParams()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, CHUNK, CHUNK
        params.type_k = params.type_v = getattr(binding, f"GGML_TYPE_{kind.upper()}")
        params.flash_attn_type = binding.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = binding.LlamaContext(model, params, verbose=False)
        self.batch = binding.LlamaBatch(n_tokens=CHUNK, embd=0, n_seq_max=1, verbose=False)

    def begin(self):
        self.context.kv_cache_clear()

    def read(self, ids, past):
        self.batch.clear()
        self.batch.set_batch(ids, past, True)
        if self.context.decode(self.batch) != 0:
            raise SystemExit("llama.cpp could not decode a chunk")
        rows = [np.frombuffer(array("f", self.context.get_logits_ith(i)), dtype=np.float32) for i in range(len(ids))]
        return log_softmax(np.stack(rows))


def main():
    path, folder, text = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    kinds = sys.argv[5:] or ["q8_0", "q5_0", "q4_0"]
    sys.path.insert(0, folder)
    from inferna.llama import llama_cpp as binding

    binding.disable_logging()
    binding.ggml_backend_load_all()
    params = binding.LlamaModelParams()
    params.n_gpu_layers = 999
    model = binding.LlamaModel(path, params, verbose=False)
    vocabulary = model.get_vocab()
    ids = vocabulary.tokenize(open(text, encoding="utf-8").read(), False, False)
    if len(ids) < count * CONTEXT:
        raise SystemExit(f"{text} has {len(ids)} tokens, {count * CONTEXT} are wanted")
    readers = {kind: Reader(binding, model, kind) for kind in ["f16", *kinds]}
    sums = {kind: [0.0, 0.0] for kind in readers}
    for window in range(count):
        targets = np.array(ids[window * CONTEXT : (window + 1) * CONTEXT])
        given = [vocabulary.token_bos(), *targets[:-1].tolist()]
        for reader in readers.values():
            reader.begin()
        for past in range(0, CONTEXT, CHUNK):
            place = slice(past, past + CHUNK)
            for kind, reader in readers.items():
                rows = reader.read(given[place], past)
                if kind == "f16":
                    exact = rows
                sums[kind][0] -= float(rows[np.arange(CHUNK), targets[place]].sum(dtype=np.float64))
                if kind != "f16":
                    sums[kind][1] += float((np.exp(exact) * (exact - rows)).sum(dtype=np.float64))
    tokens = count * CONTEXT
    for kind, (loss, divergence) in sums.items():
        report = {"cache": kind, "bits_per_element": BITS[kind], "perplexity": float(np.exp(loss / tokens)), "kl": divergence / tokens}
        print(json.dumps({**report, "tokens": tokens}), flush=True)


main()
