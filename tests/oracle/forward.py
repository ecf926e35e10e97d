#!/usr/bin/env python3
"""An independent forward pass: what moascope must compute, said again in NumPy.

It shares nothing with the C program, neither code nor parser: the weights come from gguf-py's reader and
dequantiser, the matrix products from NumPy in float32 (--double: float64), norms and softmax in float64. It is written to be
read beside the method (docs): one function per idea, no tricks but chunking.

    span   S = roundup64(max(min(trunc(alpha + beta*N), N), 128)),   N = prompt tokens + generation limit
    sees   query i sees key j  iff  j <= i and (j < 64 or i - j < S - 64)

    i\\j   0..63 64.........................i        #  sink: the first block, never dropped
    i     ####  ............ooooooooooooooo         o  window: the newest S - 64 keys, i itself included
                             <-- S - 64 -->

Architectures llama and qwen2. Both are pre-norm blocks with grouped queries and a gated SiLU; they differ in
RoPE (llama's GGUF files hold Q and K permuted so that neighbours (2p, 2p+1) turn together, qwen2 turns
(p, p + d/2)) and in qwen2's biases on Q, K and V. A file with a tensor that this pass would not use is
refused: silently leaving a weight out is the one error that an oracle may not make.

What is written
    --logits  float32 [n_tok][n_vocab], every prompt position
    --maps    mass float32 [n_layer][n_head][nb][nb]: sum of A over each 64x64 block; span int32 [n_layer][n_head]
    --stats   float32, each the mean over the prompt's queries; the entry README repeats this list
              entropy       [n_layer][n_head]      nats
              sink          [n_layer][n_head]      attention on keys j < 64
              distance      [n_layer][n_head]      tokens, sum of A_ij (i - j)
              window        [n_layer][n_head]      attention on visible keys j >= 64 (= 1 - sink)
              hist          [n_layer][n_head][1 + nb]  [0] attention on keys j < 64; [1 + d] on keys j >= 64 with
                                                       (i - j) / 64 = d; sums to 1
    --out     JSON array of the greedily chosen ids (--greedy)

Memory: one layer's weights at a time (about 190 MB for 1.5B), the head in slices of the vocabulary, attention
in slices of queries. With --greedy the weights are kept up to --cache-gib, the rest is dequantised per token.
"""
import argparse
import json
import math
import sys
import time

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

SINK = 64
BLOCK = 64
ROWS = 256  # queries per attention slice; a multiple of BLOCK, so that no map block is split over two slices
VOCAB = 16384  # output rows per slice
REAL = np.float32  # of weights, activations and matrix products; --double

STATS_README = """per-head attention statistics of the prompt, each the mean over its queries
entropy       [n_layer][n_head]      nats
sink          [n_layer][n_head]      share of attention on keys j < 64
distance      [n_layer][n_head]      tokens, sum over j of A_ij (i - j)
window        [n_layer][n_head]      share of attention on visible keys j >= 64
hist          [n_layer][n_head][1 + nb]  [0] share on keys j < 64, [1 + d] on keys j >= 64 with (i - j) / 64 = d"""


def die(text):
    sys.stderr.write("forward: %s\n" % text)
    sys.exit(3)


# --- spans -----------------------------------------------------------------------------------------------------


def span_of(alpha, beta, n):
    """Tokens a head keeps when n are reserved. In Python floats, which are the doubles of the C program."""
    tokens = max(min(math.trunc(alpha + beta * n), n), 128)
    return (tokens + BLOCK - 1) // BLOCK * BLOCK


def spans_of_plan(plan, n_layer, n_head, n):
    """plan: None or 'full', 'uniform:D', or the name of a plan file. Returns int32 [n_layer][n_head]."""
    if plan is None or plan == "full":
        alphas, betas = np.zeros((n_layer, n_head)), np.ones((n_layer, n_head))
    elif plan.startswith("uniform:"):
        alphas, betas = np.zeros((n_layer, n_head)), np.full((n_layer, n_head), float(plan[8:]))
    else:
        with open(plan) as f:
            doc = json.load(f)
        alphas, betas = doc["alphas"], doc["betas"]
        for name, rows in (("alphas", alphas), ("betas", betas)):
            if len(rows) != n_layer or any(len(r) != n_head for r in rows):
                die("%s: %s is not %d layers of %d heads" % (plan, name, n_layer, n_head))
    return np.array([[span_of(float(a), float(b), n) for a, b in zip(ra, rb)] for ra, rb in zip(alphas, betas)],
                    dtype=np.int32)


def sees(span, i, j):
    """i, j: arrays that broadcast. The whole definition of visibility."""
    return (j <= i) & ((j < SINK) | (i - j < span - SINK))


# --- the model file --------------------------------------------------------------------------------------------


class Weights:
    """Dequantised tensors by name, kept up to a budget."""

    def __init__(self, path, cache_bytes):
        self.reader = GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}
        self.cache = {}
        self.room = cache_bytes

    def key(self, name, default=None):
        field = self.reader.get_field(name)
        return default if field is None else field.contents()

    def has(self, name):
        return name in self.tensors

    def rows(self, name, index):
        """Some rows of a matrix: float32 [len(index)][n_in]. index: a slice or an array of ids."""
        t = self.tensors[name]
        return dequantize(t.data[index], t.tensor_type).astype(REAL, copy=False)

    def get(self, name):
        """A whole tensor, matrices as [n_out][n_in]; None where the file has none."""
        if name in self.cache:
            return self.cache[name]
        if name not in self.tensors:
            return None
        t = self.tensors[name]
        w = dequantize(t.data, t.tensor_type).astype(REAL, copy=False)
        if w.nbytes <= self.room:
            self.room -= w.nbytes
            self.cache[name] = w
        return w


class Model:
    def __init__(self, path, cache_bytes=0):
        w = self.w = Weights(path, cache_bytes)
        arch = self.arch = w.key("general.architecture")
        if arch not in ("llama", "qwen2"):
            die("%s: architecture %s, only llama and qwen2 are known here" % (path, arch))
        self.n_layer = w.key(arch + ".block_count")
        self.d_model = w.key(arch + ".embedding_length")
        self.n_head = w.key(arch + ".attention.head_count")
        self.n_head_kv = w.key(arch + ".attention.head_count_kv", self.n_head)
        self.d_head = w.key(arch + ".attention.key_length", self.d_model // self.n_head)
        self.d_rope = w.key(arch + ".rope.dimension_count", self.d_head)
        self.eps = w.key(arch + ".attention.layer_norm_rms_epsilon")
        self.head = "output.weight" if w.has("output.weight") else "token_embd.weight"
        self.n_vocab = int(w.tensors["token_embd.weight"].shape[1])
        scaling = w.key(arch + ".rope.scaling.type", "none")
        if scaling != "none":
            die("%s: rope scaling %s is not known here" % (path, scaling))
        base = w.key(arch + ".rope.freq_base", 10000.0)
        self.freq = float(base) ** (-np.arange(0, self.d_rope, 2, dtype=np.float64) / self.d_rope)
        factors = w.get("rope_freqs.weight")
        if factors is not None:
            self.freq /= factors
        self.refuse_unused(path)

    def refuse_unused(self, path):
        known = {"token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"}
        parts = ["attn_norm.weight", "ffn_norm.weight", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight",
                 "ffn_down.weight"] + ["attn_%s.%s" % (x, kind) for x in "qkv" for kind in ("weight", "bias")]
        known.update("blk.%d.%s" % (l, p) for l in range(self.n_layer) for p in parts)
        extra = sorted(set(self.w.tensors) - known)
        if extra:
            die("%s: tensor %s is not known here" % (path, extra[0]))

    # -- the parts of a block

    def rmsnorm(self, x, name):
        ms = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
        return (x / np.sqrt(ms + self.eps)).astype(REAL) * self.w.get(name)

    def linear(self, x, name):
        """x [n][n_in] -> [n][n_out], with the bias if the file has one."""
        y = x @ self.w.get(name + ".weight").T
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def rope(self, x, pos):
        """x [n][heads][d_head], turned to absolute positions pos [n]."""
        angle = np.asarray(pos, dtype=np.float64)[:, None, None] * self.freq
        c, s = np.cos(angle).astype(REAL), np.sin(angle).astype(REAL)
        half = self.d_rope // 2
        if self.arch == "llama":
            first, second = slice(0, self.d_rope, 2), slice(1, self.d_rope, 2)
        else:
            first, second = slice(0, half), slice(half, self.d_rope)
        out = x.copy()  # dimensions past d_rope stay as they are
        out[..., first] = x[..., first] * c - x[..., second] * s
        out[..., second] = x[..., first] * s + x[..., second] * c
        return out

    def mlp(self, x, layer):
        out = np.empty_like(x)
        b = "blk.%d." % layer
        for i in range(0, len(x), 2048):  # bounds the d_ff-wide temporaries of a long prompt
            gate = self.linear(x[i:i + 2048], b + "ffn_gate")
            with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right limit, 0
                gate /= 1 + np.exp(-gate)
            out[i:i + 2048] = self.linear(gate * self.linear(x[i:i + 2048], b + "ffn_up"), b + "ffn_down")
        return out

    def attention(self, q, k, v, first, spans, seen):
        """q [n][n_head][d], k and v [n_key][n_head_kv][d]; query r stands at position first + r.
        seen: None or a Probe that looks at A. Returns [n][n_head*d]."""
        n, group = len(q), self.n_head // self.n_head_kv
        out = np.empty((n, self.n_head, self.d_head), dtype=REAL)
        scale = 1 / math.sqrt(self.d_head)
        for lo in range(0, n, ROWS):
            hi = min(lo + ROWS, n)
            i = first + np.arange(lo, hi)[:, None]
            n_key = first + hi  # later keys are not seen by any query of this slice
            j = np.arange(n_key)[None, :]
            for h in range(self.n_head):
                kv = h // group
                score = (q[lo:hi, h] @ k[:n_key, kv].T).astype(np.float64) * scale
                score[~sees(spans[h], i, j)] = -np.inf
                score -= score.max(axis=1, keepdims=True)  # j = 0 is always seen: the maximum is finite
                a = np.exp(score)
                a /= a.sum(axis=1, keepdims=True)
                out[lo:hi, h] = a.astype(REAL) @ v[:n_key, kv]
                if seen is not None:
                    seen.look(h, a, i, j)
        return out.reshape(n, -1)

    # -- the whole

    def new_cache(self, n):
        shape = (self.n_layer, n, self.n_head_kv, self.d_head)
        return np.zeros(shape, dtype=REAL), np.zeros(shape, dtype=REAL)

    def forward(self, ids, first, cache, spans, probe=None, progress=None):
        """Hidden states [n][d_model] after the last norm, for tokens that stand at first, first + 1, ...
        Nothing is dropped from the cache: visibility is the mask's business alone."""
        keys, values = cache
        n, pos = len(ids), first + np.arange(len(ids))
        x = self.w.rows("token_embd.weight", np.asarray(ids))
        for l in range(self.n_layer):
            b = "blk.%d." % l
            y = self.rmsnorm(x, b + "attn_norm.weight")
            q = self.rope(self.linear(y, b + "attn_q").reshape(n, self.n_head, self.d_head), pos)
            keys[l, first:first + n] = self.rope(
                self.linear(y, b + "attn_k").reshape(n, self.n_head_kv, self.d_head), pos)
            values[l, first:first + n] = self.linear(y, b + "attn_v").reshape(n, self.n_head_kv, self.d_head)
            if probe is not None:
                probe.layer = l
            x = x + self.linear(self.attention(q, keys[l], values[l], first, spans[l], probe), b + "attn_output")
            x = x + self.mlp(self.rmsnorm(x, b + "ffn_norm.weight"), l)
            if progress:
                progress("layer %d/%d" % (l + 1, self.n_layer))
        return self.rmsnorm(x, "output_norm.weight")

    def logits(self, x, out):
        """out [n][n_vocab] from hidden x; out may be a memory map."""
        whole = self.head in self.w.cache or 4 * self.n_vocab * self.d_model <= self.w.room
        for lo in range(0, self.n_vocab, VOCAB):
            hi = min(lo + VOCAB, self.n_vocab)
            w = self.w.get(self.head)[lo:hi] if whole else self.w.rows(self.head, slice(lo, hi))
            out[:, lo:hi] = x @ w.T


class Probe:
    """Sums over what attention does: block masses and the statistics."""

    def __init__(self, model, n):
        L, H, nb = model.n_layer, model.n_head, (n + BLOCK - 1) // BLOCK
        self.n, self.layer = n, 0
        self.mass = np.zeros((L, H, nb, nb))
        self.entropy, self.sink, self.distance, self.window = (np.zeros((L, H)) for _ in range(4))
        self.hist = np.zeros((L, H, 1 + nb))

    def look(self, h, a, i, j):
        l, n_key = self.layer, a.shape[1]
        cols = np.add.reduceat(a, np.arange(0, n_key, BLOCK), axis=1)
        rows = np.add.reduceat(cols, np.arange(0, a.shape[0], BLOCK), axis=0)
        b = int(i[0, 0]) // BLOCK
        self.mass[l, h, b:b + rows.shape[0], :rows.shape[1]] += rows
        self.entropy[l, h] -= np.sum(a * np.log(np.where(a > 0, a, 1)))
        self.sink[l, h] += cols[:, 0].sum()
        self.window[l, h] += cols[:, 1:].sum()
        self.distance[l, h] += np.sum(a * (i - j))
        self.hist[l, h, 0] = self.sink[l, h]
        if n_key > SINK:
            far = np.maximum(i - j[:, SINK:], 0) // BLOCK  # the future has a = 0, its bin does not matter
            self.hist[l, h, 1:] += np.bincount(far.ravel(), a[:, SINK:].ravel(), minlength=self.hist.shape[2] - 1)

    def maps(self, spans):
        return {"mass": self.mass.astype(np.float32), "span": spans}

    def stats(self):
        s = {"entropy": self.entropy, "sink": self.sink, "distance": self.distance, "window": self.window,
             "hist": self.hist}
        s = {k: (v / self.n).astype(np.float32) for k, v in s.items()}
        s["README"] = np.array(STATS_README)
        return s


# --- command ---------------------------------------------------------------------------------------------------


def detokenize(weights, ids):
    """Byte-level BPE text of ids, for a human to look at."""
    tokens = weights.key("tokenizer.ggml.tokens")
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    byte = {chr(b): b for b in keep}
    byte.update({chr(256 + i): b for i, b in enumerate(rest)})
    out = bytearray()
    for i in ids:
        for c in tokens[i]:
            out += bytes([byte[c]]) if c in byte else c.encode()
    return out.decode("utf-8", "replace")


def greedy(model, x_last, first, count, cache, spans, stop, progress):
    """Ids that follow, and for each the gap between the best two logits (how near another choice was)."""
    out, gaps = [], []
    row = np.empty((1, model.n_vocab), dtype=np.float32)
    while True:
        model.logits(x_last, row)
        second, best = np.partition(row[0], -2)[-2:]
        gaps.append(float(best - second))
        out.append(int(row[0].argmax()))
        progress("token %d/%d" % (len(out), count))
        if len(out) == count or out[-1] in stop:
            return out, gaps
        x_last = model.forward(out[-1:], first, cache, spans)
        first += 1


def main():
    p = argparse.ArgumentParser(description="Independent NumPy forward pass under span rules.")
    p.add_argument("model")
    p.add_argument("--ids", required=True, help="JSON array of prompt token ids")
    p.add_argument("--plan", default="full", help="plan file, full, or uniform:D (default full)")
    p.add_argument("-N", type=int, default=None, help="prompt tokens + generation limit (default: prompt + --greedy)")
    p.add_argument("--logits")
    p.add_argument("--maps")
    p.add_argument("--stats")
    p.add_argument("--greedy", type=int, default=0, metavar="G", help="continue by up to G tokens")
    p.add_argument("--ignore-eos", action="store_true")
    p.add_argument("--out", help="where --greedy writes its ids")
    p.add_argument("--gaps", help="where --greedy writes, per id, how far apart the best two logits were")
    p.add_argument("--cache-gib", type=float, default=4.0, help="weights kept between tokens of --greedy (default 4)")
    p.add_argument("--double", action="store_true", help="matrix products and activations in float64 too")
    args = p.parse_args()
    if args.double:
        global REAL
        REAL = np.float64

    with open(args.ids) as f:
        ids = json.load(f)
    n = args.N if args.N is not None else len(ids) + args.greedy
    if not ids or n < len(ids) + args.greedy:
        die("%d prompt tokens and --greedy %d do not fit -N %d" % (len(ids), args.greedy, n))
    start = time.time()

    def progress(text):
        sys.stderr.write("\r\033[K%6.1f s  %s" % (time.time() - start, text))
        sys.stderr.flush()

    model = Model(args.model, int(args.cache_gib * 2**30) if args.greedy else 0)
    if min(ids) < 0 or max(ids) >= model.n_vocab:
        die("%s: ids must be 0..%d" % (args.ids, model.n_vocab - 1))
    spans = spans_of_plan(args.plan, model.n_layer, model.n_head, n)
    cache = model.new_cache(len(ids) + args.greedy)
    probe = Probe(model, len(ids)) if args.maps or args.stats else None
    x = model.forward(ids, 0, cache, spans, probe, progress)
    if args.logits:
        out = np.lib.format.open_memmap(args.logits, "w+", np.float32, (len(ids), model.n_vocab))
        model.logits(x, out)
        out.flush()
    if args.maps:
        np.savez(args.maps, **probe.maps(spans))
    if args.stats:
        np.savez(args.stats, **probe.stats())
    progress("%d tokens, spans %d..%d at N = %d\n" % (len(ids), spans.min(), spans.max(), n))
    if args.greedy:
        stop = () if args.ignore_eos else (model.w.key("tokenizer.ggml.eos_token_id"),)
        new, gaps = greedy(model, x[-1:], len(ids), args.greedy, cache, spans, stop, progress)
        progress("%d tokens, smallest gap between the best two logits %.4f\n" % (len(new), min(gaps)))
        sys.stderr.write(detokenize(model.w, new) + "\n")
        if args.out:
            with open(args.out, "w") as f:
                json.dump(new, f)
                f.write("\n")
        if args.gaps:
            with open(args.gaps, "w") as f:
                json.dump(gaps, f)
                f.write("\n")


if __name__ == "__main__":
    main()
