#!/usr/bin/env python3
"""The influence profile said again in JAX: whole N x N attention in float64, gradients by automatic differentiation.

It shares nothing with the C program. The weights come from gguf-py's reader and dequantiser. To get G = dL/dA of a layer, a zero
matrix is added to the attention of every head and the loss is differentiated with regard to it:

    o = (A + Z) V,  Z = 0        G = dL/dZ

    E_ij  = A_ij / (1 - A_ij) * (sum_n G_in A_in - G_ij)          E_00 = -G_00 A_00
    abs, signed   sums of |E| and E over 64 x 64 blocks
    joint[w]      sum over rows of  (sum_K A G) / (sum_K A) - sum A G,  K = block 0 and the newest w blocks

Under a plan (--plan PLAN.json, spans of --length tokens) A is the attention that the plan leaves; in joint keys that are cut count with the A
they would have beside those seen, exp(score - log-sum-exp of the seen), so that wider windows have their value too.

Checks of a profile made by the program (relative error, norm-wise per layer):

    influence.py MODEL --data DATA.jsonl --length N --against INFLUENCE.npz[:LIMIT] ...        (limit: 1e-4)

and of the idea itself: cutting one window for real and measuring the loss, against joint, --finite H L W [...]: the loss with head H of
layer L moved a fraction t of the way to the cut (under a plan: or widened) attention, t = 1/8, 1/64: the slope must come to joint[w].

--margin: G and the slopes are of the mean log((1 - p) / p) of the supervised tokens, by its own form (the others' log-sum-exp less the target's
logit); the loss compared stays cross-entropy.

DATA.jsonl: {"ids": [...], "supervise_from": K} lines. Memory: n_head * N^2 doubles a layer; meant for N <= 1024.
Needs jax (CPU), gguf, numpy.  Exit: 0 within the limit, 1 not, 2 usage, 3 the file does not fit."""
import argparse
import json
import math
import sys

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402
from gguf import GGUFReader  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

BLOCK = 64


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.t = {t.name: t for t in reader.tensors}

        def key(name, default=None):
            field = reader.get_field(name)
            return default if field is None else field.contents()

        a = self.arch = key("general.architecture")
        if a not in ("llama", "qwen2"):
            sys.exit("influence: architecture %s is not known here" % a)
        self.n_layer = key(a + ".block_count")
        self.n_head = key(a + ".attention.head_count")
        self.n_head_kv = key(a + ".attention.head_count_kv", self.n_head)
        d_model = key(a + ".embedding_length")
        self.d_head = key(a + ".attention.key_length", d_model // self.n_head)
        self.d_rope = key(a + ".rope.dimension_count", self.d_head)
        self.eps = key(a + ".attention.layer_norm_rms_epsilon")
        base = key(a + ".rope.freq_base", 10000.0)
        self.freq = float(base) ** (-np.arange(0, self.d_rope, 2) / self.d_rope)
        if "rope_freqs.weight" in self.t:
            self.freq = self.freq / self.get("rope_freqs.weight")

    def get(self, name):
        if name not in self.t:
            return None
        t = self.t[name]
        return np.asarray(dequantize(t.data, t.tensor_type), np.float64)

    def layer(self, l):
        names = ["attn_norm.weight", "ffn_norm.weight", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"]
        names += ["attn_%s.%s" % (x, kind) for x in "qkv" for kind in ("weight", "bias")]
        return {n: self.get("blk.%d.%s" % (l, n)) for n in names}


def norm(x, w, eps):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * w


def rope(x, freq, arch):
    n, _, d = x.shape
    angle = jnp.arange(n)[:, None, None] * freq
    c, s, half = jnp.cos(angle), jnp.sin(angle), len(freq)
    if arch == "llama":
        u, v = x[..., 0:2 * half:2], x[..., 1:2 * half:2]
        turned = jnp.stack([u * c - v * s, u * s + v * c], -1).reshape(n, -1, 2 * half)
    else:
        u, v = x[..., :half], x[..., half:2 * half]
        turned = jnp.concatenate([u * c - v * s, u * s + v * c], -1)
    return jnp.concatenate([turned, x[..., 2 * half:]], -1)


def spans(path, m, length):
    """[n_layer][n_head] of a plan file, tokens, by the rule of the method"""
    with open(path) as f:
        plan = json.load(f)
    a, b = np.asarray(plan["alphas"], float), np.asarray(plan["betas"], float)
    if a.shape != (m.n_layer, m.n_head):
        sys.exit("influence: the plan is for %d x %d heads" % a.shape)
    return (np.maximum(np.minimum(np.trunc(a + b * length), length), 128).astype(int) + 63) // 64 * 64


def block(x, w, m, z, see):
    """One layer; z [n_head][n][n] is added to its attention, see [n_head][n][n] says which keys are seen. Returns the layer's output,
    the attention itself, and what keys not seen would weigh beside those seen."""
    n, g = x.shape[0], m.n_head // m.n_head_kv

    def linear(y, name):
        out = y @ w[name + ".weight"].T
        return out if w[name + ".bias"] is None else out + w[name + ".bias"]

    y = norm(x, w["attn_norm.weight"], m.eps)
    q = rope(linear(y, "attn_q").reshape(n, m.n_head, m.d_head), m.freq, m.arch)
    k = rope(linear(y, "attn_k").reshape(n, m.n_head_kv, m.d_head), m.freq, m.arch)
    v = linear(y, "attn_v").reshape(n, m.n_head_kv, m.d_head)
    k, v = jnp.repeat(k, g, axis=1), jnp.repeat(v, g, axis=1)
    score = jnp.einsum("ihd,jhd->hij", q, k) / math.sqrt(m.d_head)
    raw = jnp.where(jnp.tril(jnp.ones((n, n), bool)), score, -jnp.inf)
    score = jnp.where(see, raw, -jnp.inf)
    a = jax.nn.softmax(score, axis=-1)
    wide = jnp.exp(jnp.minimum(raw - jax.scipy.special.logsumexp(score, axis=-1, keepdims=True), 60))
    o = jnp.einsum("hij,jhd->ihd", a + z, v).reshape(n, -1)
    x = x + o @ w["attn_output.weight"].T
    y = norm(x, w["ffn_norm.weight"], m.eps)
    x = x + (jax.nn.silu(y @ w["ffn_gate.weight"].T) * (y @ w["ffn_up.weight"].T)) @ w["ffn_down.weight"].T
    return x, a, wide


def head_loss(x, out_norm, out, targets, first, eps):
    logits = norm(x[first - 1:-1], out_norm, eps) @ out.T
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets])


def head_margin(x, out_norm, out, targets, first, eps):
    logits = norm(x[first - 1:-1], out_norm, eps) @ out.T
    rows = jnp.arange(len(targets))
    return jnp.mean(jax.scipy.special.logsumexp(logits.at[rows, targets].set(-jnp.inf), axis=-1) - logits[rows, targets])


def influence(a, wide, g):
    """abs, signed [nb][nb], joint [nb + 1] of one head; a, wide, g [n][n] NumPy."""
    n, nb = len(a), (len(a) + BLOCK - 1) // BLOCK
    delta = np.sum(a * g, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        e = a / (1 - a) * (delta - g)
    for i in range(1, n):  # the largest entry of a row, in the form that does not cancel
        j = int(a[i].argmax())
        rest = np.delete(a[i], j)
        if rest.sum() > 0:
            e[i, j] = a[i, j] * (rest @ np.delete(g[i], j) / rest.sum() - g[i, j])
    e[0] = 0
    e[0, 0] = -g[0, 0] * a[0, 0]
    e = np.tril(e)
    at = np.arange(0, n, BLOCK)

    def blocks(x):
        return np.add.reduceat(np.add.reduceat(x, at, axis=0), at, axis=1)

    mass, gain = np.add.reduceat(wide, at, axis=1), np.add.reduceat(wide * g, at, axis=1)
    joint = np.zeros(nb + 1)
    for i in range(n):
        b = i // BLOCK
        for w in range(1, nb + 1):
            keep = sorted({0, *range(max(b - w + 1, 0), b + 1)})
            joint[w] += gain[i, keep].sum() / mass[i, keep].sum() - delta[i, 0]
    return blocks(np.abs(e)), blocks(e), joint


class Pass:
    """Forward and backward of one item, a layer at a time; everything an item needs is kept as layer inputs."""

    def __init__(self, m, ids, first, span, margin):
        self.m, self.ids, self.first, self.margin = m, np.asarray(ids), first, margin
        self.z = jnp.zeros((m.n_head, len(ids), len(ids)))
        i, j = np.arange(len(ids))[:, None], np.arange(len(ids))[None]
        s = np.full((m.n_layer, m.n_head), 1 << 30) if span is None else span
        self.see = [jnp.asarray((j <= i) & ((j < BLOCK) | (i - j < s[l][:, None, None] - BLOCK))) for l in range(m.n_layer)]
        self.fwd = jax.jit(lambda x, w, z, see: block(x, w, m, z, see)[0])
        self.att = jax.jit(lambda x, w, z, see: block(x, w, m, z, see)[1:])
        self.bwd = jax.jit(lambda x, w, z, see, dx: jax.vjp(lambda x_, z_: block(x_, w, m, z_, see)[0], x, z)[1](dx))
        self.out_norm, embed = m.get("output_norm.weight"), m.get("token_embd.weight")
        self.out = m.get("output.weight") if "output.weight" in m.t else embed
        self.x = [jnp.asarray(embed[self.ids])]
        for l in range(m.n_layer):
            self.x.append(self.fwd(self.x[-1], m.layer(l), self.z, self.see[l]))

    def tail(self, x):
        """what gradients are of"""
        return (head_margin if self.margin else head_loss)(x, self.out_norm, self.out, self.ids[self.first:], self.first, self.m.eps)

    def cross_entropy(self, x):
        return head_loss(x, self.out_norm, self.out, self.ids[self.first:], self.first, self.m.eps)

    def run(self):
        base, dx = jax.value_and_grad(self.tail)(self.x[-1])
        out = []
        for l in reversed(range(self.m.n_layer)):
            w = self.m.layer(l)
            a, wide = (np.asarray(x) for x in self.att(self.x[l], w, self.z, self.see[l]))
            dx, g = self.bwd(self.x[l], w, self.z, self.see[l], dx)
            g = np.asarray(g)
            out.append([influence(a[h], wide[h], g[h]) for h in range(self.m.n_head)])
            if sys.stderr.isatty():
                sys.stderr.write("\rlayer %d \r" % l)
        out.reverse()
        return (float(self.cross_entropy(self.x[-1])), float(base),
                [np.array([[h[k] for h in layer] for layer in out]) for k in range(3)])

    def loss_moved(self, l, h, w, t):
        """The loss when head h of layer l attends a part t of the way to its attention under w blocks."""
        m = self.m
        a, wide = (np.asarray(x)[h] for x in self.att(self.x[l], m.layer(l), self.z, self.see[l]))
        i, j = np.arange(len(a))[:, None], np.arange(len(a))[None]
        cut = np.where((j < BLOCK) | (j // BLOCK > i // BLOCK - w), wide, 0)
        cut /= cut.sum(axis=1, keepdims=True)
        x = self.fwd(self.x[l], m.layer(l), self.z.at[h].set(t * (cut - a)), self.see[l])
        for up in range(l + 1, m.n_layer):
            x = self.fwd(x, m.layer(up), self.z, self.see[up])
        return float(self.tail(x))


def compare(path, limit, length, names, total, losses):
    """How many of the file's arrays (and its loss) are not within the limit."""
    with np.load(path) as z:
        meta = json.loads(z["meta"].item().decode())["lengths"][str(length)]
        got = [z["%s_%d" % (k, length)] for k in names]
    if meta["items"] != len(losses):
        sys.exit("influence: the file is of %d items, the data of %d" % (meta["items"], len(losses)))
    far = abs(meta["loss"] - np.mean(losses)) / np.mean(losses)
    bad = int(not far <= limit)
    print("%s, limit %.0e\nloss     relative error %.1e%s" % (path, limit, far, "  FAILED" if bad else ""))
    for k, want, x in zip(names, total, got):
        if want.shape != x.shape:
            sys.exit("influence: %s has shape %s, expected %s" % (k, x.shape, want.shape))
        far = [np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300) for a, b in zip(x, want)]
        ok = bool(np.all(np.isfinite(x))) and max(far) <= limit
        bad += not ok
        print("%-8s relative error a layer: worst %.1e (layer %d), median %.1e%s" %
              (k, max(far), int(np.argmax(far)), float(np.median(far)), "" if ok else "  FAILED"))
    return bad


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--data", required=True)
    p.add_argument("--length", type=int, required=True)
    p.add_argument("--against", metavar="FILE[:LIMIT]", action="append", default=[])
    p.add_argument("--out", help="write the oracle's own arrays")
    p.add_argument("--plan", metavar="PLAN.json", help="profile under its spans of --length tokens")
    p.add_argument("--margin", action="store_true")
    p.add_argument("--finite", type=int, nargs=3, metavar=("LAYER", "HEAD", "W"), action="append", default=[])
    o = p.parse_args()
    m = Model(o.model)
    items = [json.loads(line) for line in open(o.data) if line.strip()]
    items = [i for i in items if len(i["ids"]) <= o.length]
    if not items:
        sys.exit("influence: no item of at most %d tokens" % o.length)
    nb = (o.length + BLOCK - 1) // BLOCK
    total = [np.zeros((m.n_layer, m.n_head, nb, nb)), np.zeros((m.n_layer, m.n_head, nb, nb)), np.zeros((m.n_layer, m.n_head, nb + 1))]
    losses, bad = [], 0
    span = spans(o.plan, m, o.length) if o.plan else None
    for item in items:
        one = Pass(m, item["ids"], item["supervise_from"], span, o.margin)
        loss, base, parts = one.run()
        losses.append(loss)
        k = parts[0].shape[-1]
        total[0][..., :k, :k] += parts[0]
        total[1][..., :k, :k] += parts[1]
        total[2][..., :k + 1] += parts[2]
        total[2][..., k + 1:] += parts[2][..., k:]  # all of a shorter item is kept
        for l, h, w in o.finite:
            if w > k - 2 and span is None:
                continue  # nothing is cut
            want = parts[2][l, h, w]
            slopes = [(one.loss_moved(l, h, w, t) - base) / t for t in (1 / 8, 1 / 64, 1 / 512)]
            ok = abs(slopes[2] - want) <= 0.05 * abs(want) + 1e-9 and abs(slopes[2] - want) <= abs(slopes[0] - want) + 1e-9
            bad += not ok
            print("layer %d head %d w %d: joint %+.6e, slopes at 1/8 %+.6e, 1/64 %+.6e, 1/512 %+.6e%s" %
                  (l, h, w, want, *slopes, "" if ok else "  FAILED"))
    total = [t / len(items) for t in total]
    print("%d items, loss %.9f" % (len(items), np.mean(losses)))
    names = ["abs", "signed", "joint"]
    if o.out:
        np.savez(o.out, **{"%s_%d" % (k, o.length): t.astype(np.float32) for k, t in zip(names, total)})
    for which in o.against:
        path, _, limit = which.partition(":")
        bad += compare(path, float(limit or 1e-4), o.length, names, total, losses)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
