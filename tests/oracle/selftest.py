#!/usr/bin/env python3
"""The oracle's own test: needs numpy and gguf, no model, one second.

Spans against the worked values of the method; attention, block sums and statistics of forward.py against the
definition written as plain loops in float64, with a length that ends inside a block and inside a slice.
What this cannot see, the layers around attention, is held against llama.cpp (README.md).
"""
import numpy as np

import forward

N = 333
SPANS = [128, 192, 256, 384]  # the last is dense
N_HEAD, N_HEAD_KV, D_HEAD = 4, 2, 8


def check_spans():
    worked = {(0, 0.125): (640, 1152, 2176), (-1024, 1): (4096, 8192, 16384), (1024, 0): (1024, 1024, 1024),
              (0, 0.875): (4480, 8064, 15232), (2048, 0.5): (4608, 6656, 10752), (8192, 0): (5120, 8192, 8192)}
    for (alpha, beta), want in worked.items():
        got = tuple(forward.span_of(alpha, beta, n) for n in (5120, 9216, 17408))
        assert got == want, (alpha, beta, got, want)
    assert forward.span_of(0, 0.125, 1536) == 192 and forward.span_of(-1024, 1, 1536) == 512
    assert all(forward.span_of(a, b, 100) == 128 for a, b in worked)
    assert forward.span_of(192.9, 0, 1000) == 192 and forward.span_of(193, 0, 1000) == 256  # truncation, then up


def check_attention():
    class Shape(forward.Model):
        def __init__(self):
            self.n_layer, self.n_head, self.n_head_kv, self.d_head = 1, N_HEAD, N_HEAD_KV, D_HEAD

    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=(N, h, D_HEAD)).astype(np.float32) for h in (N_HEAD, N_HEAD_KV, N_HEAD_KV))
    q *= 3  # sharp enough that a wrong mask shows
    model = Shape()
    probe = forward.Probe(model, N)
    out = model.attention(q, k, v, 0, SPANS, probe).reshape(N, N_HEAD, D_HEAD)

    nb = (N + 63) // 64
    mass, hist = np.zeros((N_HEAD, nb, nb)), np.zeros((N_HEAD, 1 + nb))
    entropy, sink, distance, window = (np.zeros(N_HEAD) for _ in range(4))
    for h in range(N_HEAD):
        keys, values = k[:, h // 2].astype(np.float64), v[:, h // 2]
        for i in range(N):
            seen = [j for j in range(N) if j <= i and (j < 64 or i - j < SPANS[h] - 64)]
            a = np.exp(keys[seen] @ q[i, h] / D_HEAD ** 0.5)
            a /= a.sum()
            assert np.abs(a @ values[seen] - out[i, h]).max() < 1e-5, (h, i)
            entropy[h] -= np.sum(a * np.log(a)) / N
            for p, j in zip(a, seen):
                mass[h, i // 64, j // 64] += p
                distance[h] += p * (i - j) / N
                if j < 64:
                    sink[h] += p / N
                    hist[h, 0] += p / N
                else:
                    window[h] += p / N
                    hist[h, 1 + (i - j) // 64] += p / N
    stats = probe.stats()
    for name, want, got in (("mass", mass, probe.mass[0]), ("entropy", entropy, stats["entropy"][0]),
                            ("sink", sink, stats["sink"][0]), ("window", window, stats["window"][0]),
                            ("distance", distance, stats["distance"][0]), ("hist", hist, stats["hist"][0])):
        error = np.abs(want - got).max() / np.abs(want).max()
        assert error < 1e-6, (name, error)


if __name__ == "__main__":
    check_spans()
    check_attention()
    print("oracle: spans, attention, block sums and statistics as defined")
