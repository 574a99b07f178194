"""What codecs cost a LLaMA-family model, simulated in PyTorch: the numbers that wgkv's own are held against.

    python3 benches/peers/simulate.py MODEL.gguf TEXT SAMPLE [WINDOWS]

It shares no code with the kernels and takes none of their shortcuts: everything is f32 but for scales and for what
stays in f16; neither queries nor probabilities are quantized. TEXT is predicted in windows of 2048 tokens (8), as
`wgkv-llama perplexity` does it; means and orders of channels are learned from the first 48 windows of SAMPLE.
A row is a codec, its perplexity, and its divergence from the f16 cache in nats. Needs torch, gguf and tokenizers, and
takes a GPU if there is one.
"""
import sys
import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONTEXT, SAMPLE_WINDOWS, PAGE, GROUP = 2048, 48, 128, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = False
torch.set_grad_enabled(False)


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        field = lambda name: reader.fields[name].contents()
        self.heads, self.kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
        self.layers, self.eps = field("llama.block_count"), field("llama.attention.layer_norm_rms_epsilon")
        self.d = field("llama.embedding_length") // self.heads
        self.weights = {t.name: torch.tensor(dequantize(t.data, t.tensor_type).astype(np.float32), device=DEVICE) for t in reader.tensors}
        self.weights.setdefault("output.weight", self.weights["token_embd.weight"])
        # The file has the rows of queries and keys in pairs; halves are what wgkv's decoder makes of them.
        for layer in range(self.layers):
            for name, heads in (("attn_q", self.heads), ("attn_k", self.kv_heads)):
                w = self.weights[f"blk.{layer}.{name}.weight"]
                self.weights[f"blk.{layer}.{name}.weight"] = w.reshape(heads, self.d // 2, 2, -1).transpose(1, 2).reshape(w.shape).contiguous()
        frequencies = field("llama.rope.freq_base") ** (-torch.arange(0, self.d, 2, device=DEVICE, dtype=torch.float64) / self.d)
        angles = torch.arange(CONTEXT, device=DEVICE, dtype=torch.float64)[:, None] * frequencies
        self.cos, self.sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
        tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
        merges = [tuple(pair.split(" ")) for pair in field("tokenizer.ggml.merges")]
        self.tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        self.tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == 3])
        self.begin = field("tokenizer.ggml.bos_token_id")

    def windows(self, path, count):
        ids = self.tokenizer.encode(open(path, encoding="utf-8").read(), add_special_tokens=False).ids
        cut = [ids[i * CONTEXT : (i + 1) * CONTEXT] for i in range(count)]
        assert len(cut[-1]) == CONTEXT, f"{path} has {len(ids)} tokens"
        tensor = lambda row: torch.tensor(row, device=DEVICE)
        return [(tensor([self.begin] + row[:-1]), tensor(row)) for row in cut]

    def turn(self, x):
        low, high = x.chunk(2, -1)
        return torch.cat([low * self.cos - high * self.sin, high * self.cos + low * self.sin], -1)

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[name]

    def predict(self, ids, store=None, tap=None):
        """Log probabilities after each token; `store` makes of a layer's rows what attention sees."""
        w, x = self.weights, self.weights["token_embd.weight"][ids]
        causal = torch.ones(CONTEXT, CONTEXT, device=DEVICE, dtype=torch.bool).tril()
        for layer in range(self.layers):
            of = lambda name: w[f"blk.{layer}.{name}.weight"]
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q, k, v = ((h @ of(name).T).view(CONTEXT, -1, self.d) for name in ("attn_q", "attn_k", "attn_v"))
            if tap:
                tap(layer, q, k, v)
            exact = [half(self.turn(k)), half(v)]
            coded, recent = store(self, layer, k, v, exact, x) if store else (exact, None)
            q = self.turn(q)
            share = self.heads // self.kv_heads
            spread = lambda rows: rows.repeat_interleave(share, 1).transpose(0, 1)
            scores = q.transpose(0, 1) @ spread(coded[0]).transpose(1, 2)
            if recent is not None:
                scores = torch.where(recent, q.transpose(0, 1) @ spread(exact[0]).transpose(1, 2), scores)
            p = (scores / self.d**0.5).masked_fill(~causal, -torch.inf).softmax(-1)
            if recent is None:
                o = p @ spread(coded[1])
            else:
                o = p.masked_fill(recent, 0) @ spread(coded[1]) + p.masked_fill(~recent, 0) @ spread(exact[1])
            x = x + o.transpose(0, 1).reshape(CONTEXT, -1) @ of("attn_output").T
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            x = x + (torch.nn.functional.silu(h @ of("ffn_gate").T) * (h @ of("ffn_up").T)) @ of("ffn_down").T
        return (self.norm(x, "output_norm.weight") @ w["output.weight"].T).log_softmax(-1)


def half(x):
    return x.half().float()


def hadamard(n):
    m = torch.ones(1, 1, device=DEVICE)
    while m.shape[0] < n:
        m = torch.cat([torch.cat([m, m], 1), torch.cat([m, -m], 1)])
    return m / n**0.5


def groups(x, quantize):
    return quantize(x.reshape(*x.shape[:-1], -1, GROUP)).reshape(x.shape)


def asymmetric(bits, clip):
    def quantize(x):
        low, high = clip * x.amin(-1, keepdim=True), clip * x.amax(-1, keepdim=True)
        scale = half(((high - low) / (2**bits - 1)).clamp(min=2**-14))
        zero = (-low / scale).round()
        return scale * (((x / scale).round() + zero).clamp(0, 2**bits - 1) - zero)

    return lambda x: groups(x, quantize)


def symmetric(bits):
    """Mid-rise codes of one step for rows of all kinds, refined twice. wgkv tries several where bits are 3 or 4."""
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    start = {2: 0.9957, 3: 0.5860, 4: 0.3352, 8: 0.0308}[bits]

    def quantize(x):
        scale = start * x.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        middle = lambda: (x / scale).floor().clamp(least, most) + 0.5
        for _ in range(2):
            c = middle()
            scale = ((x * c).sum(-1, keepdim=True) / c.pow(2).sum(-1, keepdim=True)).clamp(min=1e-6)
        c = middle()
        # This scale keeps inner products their size, where least squares would shrink them.
        return half(x.pow(2).sum(-1, keepdim=True) / (x * c).sum(-1, keepdim=True).clamp(min=1e-12)) * c

    return lambda x: groups(x, quantize)


class Learned:
    """Means and second moments of a sample, layer by layer."""

    def __init__(self, model, windows):
        self.sums = [None] * model.layers
        self.count = 0

        def tap(layer, q, k, v):
            share = model.heads // model.kv_heads
            q = q.double().pow(2).view(CONTEXT, model.kv_heads, share, model.d).mean(2)
            new = torch.stack([part.sum(0) for part in (k.double(), k.double().pow(2), v.double(), q)])
            self.sums[layer] = new if self.sums[layer] is None else self.sums[layer] + new

        for ids, _ in windows:
            model.predict(ids, tap=tap)
            self.count += CONTEXT

    def of(self, layer):
        keys, squares, values, queries = self.sums[layer] / self.count
        pairs = lambda x: (x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]).repeat(1, 2)
        weight = (pairs(queries) / pairs(squares - keys.pow(2))).pow(0.25)
        return keys.float(), values.float(), weight.float()


def clip_of(codec, bits):
    return 0.8 if bits == 2 and codec != "rtn" else 1.0


def rtn(keys, values, _):
    quantize = [asymmetric(bits, clip_of("rtn", bits)) for bits in (keys, values)]
    return lambda model, layer, k, v: (quantize[0](model.turn(k)), quantize[1](v))


def hadamards(keys, values, _):
    quantize = [asymmetric(bits, clip_of("hadamard", bits)) for bits in (keys, values)]

    def store(model, layer, k, v):
        m = hadamard(model.d)
        return quantize[0](model.turn(k) @ m) @ m, quantize[1](v @ m) @ m

    return store


def rotate_kv(keys, values, learned, heads=None, reorder=True):
    """`heads` mixes the heads of a token: a symmetric orthogonal matrix."""
    quantize = [asymmetric(bits, clip_of("rotate-kv", bits)) for bits in (keys, values)]

    def store(model, layer, k, v):
        m = hadamard(model.d)
        mix = torch.eye(model.kv_heads, device=DEVICE) if heads is None else heads
        rotate = lambda x: torch.einsum("gh,thd->tgd", mix, x @ m)
        order = rotate(learned.of(layer)[0][None]).flatten().argsort(stable=True) if reorder else torch.arange(k[0].numel(), device=DEVICE)
        coded = torch.empty_like(k.flatten(1))
        coded[:, order] = quantize[0](rotate(k).flatten(1)[:, order])
        return model.turn(rotate(coded.view(k.shape))), quantize[1](v @ m) @ m

    return store


def centred(keys, values, learned):
    quantize = [symmetric(keys), symmetric(values)]

    def store(model, layer, k, v):
        m = hadamard(model.d)
        mean, value_mean, weight = learned.of(layer)
        coded = quantize[0]((model.turn(k - mean) * weight) @ m) @ m / weight + model.turn(mean.expand(k.shape))
        return coded, quantize[1]((v - value_mean) @ m) @ m + value_mean

    return store


def protected(codec, sinks, window=0, by_page=True):
    """What stays in f16 of a codec's rows: sinks, and `window` recent tokens, which leave by page or one by one."""
    kind, _, count = sinks.partition(":")
    place = torch.arange(CONTEXT, device=DEVICE)
    recent = None
    if window:
        packed = (place + 1 - window).clamp(min=0)
        packed = packed // PAGE * PAGE if by_page else packed
        recent = place[None] >= packed[:, None]

    def store(model, layer, k, v, exact, residual):
        sink = torch.zeros(CONTEXT, device=DEVICE, dtype=torch.bool)
        if kind == "first":
            sink[: int(count)] = True
        elif kind == "massive":
            sink[residual.abs().flatten().topk(int(count)).indices // residual.shape[1]] = True
        coded = codec(model, layer, k, v)
        return [torch.where(sink[:, None, None], e, c) for e, c in zip(exact, coded)], recent

    return store


def main():
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    model = Model(sys.argv[1])
    windows, sample = model.windows(sys.argv[2], count), model.windows(sys.argv[3], SAMPLE_WINDOWS if DEVICE == "cuda" else 1)
    learned = Learned(model, sample)
    wanted = [model.predict(ids) for ids, _ in windows]
    loss = lambda p, targets: -p.gather(1, targets[:, None]).double().mean().item()
    mean = lambda numbers: sum(numbers) / len(numbers)
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else DEVICE}, {count} windows of {CONTEXT}")
    print(f"f16\t{np.exp(mean([loss(p, targets) for p, (_, targets) in zip(wanted, windows)])):.3f}\t0", flush=True)
    three = torch.eye(3, device=DEVICE) - 2 / 3
    rows = []
    for codec, sinks in ((rtn, "first:4"), (hadamards, "first:4"), (rotate_kv, "massive:20"), (centred, "first:4")):
        for bits in ((4, 4), (3, 3), (4, 2), (2, 4), (3, 2), (2, 2)):
            rows.append((codec, bits, sinks, 0, True, {}))
    for codec in (rtn, hadamards, centred):
        rows += [(codec, (4, 4), "none", 0, True, {}), (codec, (2, 2), "none", 0, True, {}), (codec, (2, 2), "massive:20", 0, True, {})]
    for change in ({"reorder": False}, {"heads": three}, {"heads": three, "reorder": False}):
        rows.append((rotate_kv, (2, 2), "massive:20", 0, True, change))
    rows += [(rotate_kv, (2, 2), sinks, 0, True, {}) for sinks in ("none", "first:4", "massive:10", "massive:40", "massive:64")]
    for codec, bits in ((centred, (2, 2)), (centred, (3, 3)), (centred, (4, 4)), (hadamards, (2, 2)), (hadamards, (4, 4)), (rotate_kv, (2, 2))):
        rows.append((codec, bits, "massive:20" if codec == rotate_kv else "first:4", 128, True, {}))
    rows += [(rotate_kv, (2, 2), "first:4", 128, True, {}), (rotate_kv, (2, 2), "massive:20", 256, True, {}), (rotate_kv, (2, 2), "massive:20", 512, True, {})]
    rows += [(centred, (2, 2), "first:4", 128, False, {})]
    names = {rtn: "rtn", hadamards: "hadamard", rotate_kv: "rotate-kv", centred: "centred"}
    for codec, bits, sinks, window, by_page, change in rows if DEVICE == "cuda" else rows[::5]:
        store = protected(codec(*bits, learned, **change), sinks, window, by_page)
        losses, divergences = [], []
        for (ids, targets), p in zip(windows, wanted):
            got = model.predict(ids, store)
            losses.append(loss(got, targets))
            divergences.append((p.exp() * (p - got)).sum(-1, dtype=torch.float64).mean().item())
        words = [f"{names[codec]} K{bits[0]}V{bits[1]}", f"sinks {sinks}"] + ([f"window {window}" + ("" if by_page else " by token")] if window else [])
        words += ["no reorder"] if change.get("reorder") is False else []
        words += ["3 heads together"] if "heads" in change else []
        print(f"{', '.join(words)}\t{np.exp(mean(losses)):.3f}\t{mean(divergences):.4f}", flush=True)


main()
