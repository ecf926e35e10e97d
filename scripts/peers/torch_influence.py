#!/usr/bin/env python3
"""The influence profile in PyTorch, with whole N x N attention in memory as the release of "Mixture of Attention Spans" has it, beside
`moascope bench --what profile`.

    forward      eager attention: S = Q K^T / sqrt(d) + mask, softmax in float32, A in half precision, O = A V; the input of each layer is kept
    backward     a layer at a time, so that one layer's N x N matrices are there at once: the layer is computed again, autograd gives dA and
                 the gradient of its input
    influence    E = -A (dA - sum A dA) / (eps + 1 - A) [1, heads, N, N], its absolute values summed over blocks of 64 x 64, to the host

It does less than moascope: no signed map, no windows. Weights are random; they take no gradients. The same shapes, lengths and number of
supervised tokens. --layers K times K layers and multiplies what they took by n_layer / K: said in the row.

    torch_influence.py --shape smollm2 --depth 1024,2048,4096 --against OURS.json       the ratio beside each row
"""
import argparse
import json
import math
import time

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch"""
BLOCK, RESPONSE, EPS = 64, 96, 1e-6


class Layer:
    def __init__(self, torch, shape, dtype, scale):
        _, self.n_head, self.n_head_kv, self.d_head, d_model, d_ff, _ = shape

        def weight(n_out, n_in):
            return torch.randn(n_out, n_in, device="cuda", dtype=dtype) * (scale / math.sqrt(n_in))

        q, kv = self.n_head * self.d_head, self.n_head_kv * self.d_head
        self.q, self.k, self.v, self.o = weight(q, d_model), weight(kv, d_model), weight(kv, d_model), weight(d_model, q)
        self.gate, self.up, self.down = weight(d_ff, d_model), weight(d_ff, d_model), weight(d_model, d_ff)


def norm(torch, x):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def rope(torch, x, cos, sin):
    u, v = x.chunk(2, -1)
    return x * cos + torch.cat((-v, u), -1) * sin


def run_layer(torch, w, x, tables):
    """x (N, d_model) -> its output, and A (1, n_head, N, N)"""
    n = x.shape[0]
    mask, cos, sin = tables
    h = norm(torch, x)
    q, k, v = ((h @ m.T).view(1, n, -1, w.d_head).transpose(1, 2) for m in (w.q, w.k, w.v))
    q, k = rope(torch, q, cos, sin), rope(torch, k, cos, sin)
    group = w.n_head // w.n_head_kv
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    a = torch.softmax((q @ k.transpose(2, 3) / math.sqrt(w.d_head) + mask).float(), -1).to(x.dtype)
    o = (a @ v).transpose(1, 2).reshape(n, -1)
    x = x + o @ w.o.T
    h = norm(torch, x)
    return x + (torch.nn.functional.silu(h @ w.gate.T) * (h @ w.up.T)) @ w.down.T, a


def influence(torch, a, da):
    """(n_head, nb, nb) float32 on the host"""
    e = -a * (da - (a * da).sum(-1, keepdim=True)) / (EPS + 1 - a)
    e[..., 0, 0] = -a[..., 0, 0] * da[..., 0, 0]
    _, heads, n, _ = e.shape
    nb = (n + BLOCK - 1) // BLOCK
    e = torch.nn.functional.pad(e.abs(), (0, nb * BLOCK - n) * 2)
    return e.view(heads, nb, BLOCK, nb, BLOCK).float().sum((2, 4)).cpu()


def make_tables(torch, n, d_head, dtype):
    angle = torch.arange(n, device="cuda")[:, None] * 10000.0 ** (-torch.arange(0, d_head, 2, device="cuda") / d_head)
    angle = torch.cat((angle, angle), -1)
    mask = torch.full((n, n), -math.inf, device="cuda", dtype=dtype).triu(1)
    return mask, angle.cos().to(dtype), angle.sin().to(dtype)


def profile(torch, shape, layers, embed, head, ids, n_supervised, dtype):
    """maps of the layers, and seconds of the layers and of the whole"""
    torch.cuda.synchronize()
    start = time.perf_counter()
    tables = make_tables(torch, len(ids), shape[3], dtype)
    xs, maps = [embed[ids]], []
    torch.cuda.synchronize()
    layers_from = time.perf_counter()
    with torch.no_grad():
        for w in layers:
            xs.append(run_layer(torch, w, xs[-1], tables)[0])
    torch.cuda.synchronize()
    layers_s = time.perf_counter() - layers_from
    x = xs[-1].detach().requires_grad_()
    logits = (norm(torch, x[-n_supervised - 1:-1]) @ head.T).float()
    loss = torch.nn.functional.cross_entropy(logits, ids[-n_supervised:])
    (dx,) = torch.autograd.grad(loss, x)
    torch.cuda.synchronize()
    layers_from = time.perf_counter()
    for w, x in zip(reversed(layers), reversed(xs[:-1])):
        x = x.detach().requires_grad_()
        y, a = run_layer(torch, w, x, tables)
        dx, da = torch.autograd.grad(y, (x, a), dx)
        maps.append(influence(torch, a.detach(), da))
        del y, a, da
    torch.cuda.synchronize()
    end = time.perf_counter()
    return maps[::-1], layers_s + end - layers_from, end - start


def check(torch):
    """E of a small random attention against masking for real, in float64: with the loss linear in A it is exact"""
    g = torch.Generator(device="cuda").manual_seed(1)
    a = torch.randn(1, 2, 80, 80, device="cuda", dtype=torch.float64, generator=g)
    a = (a + torch.full((80, 80), -math.inf, device="cuda", dtype=torch.float64).triu(1)).softmax(-1)
    da = torch.randn(1, 2, 80, 80, device="cuda", dtype=torch.float64, generator=g)
    want = torch.zeros(2, 2, 2, dtype=torch.float64)
    for i in range(1, 80):
        for j in range(i + 1):
            cut = a[0, :, i].clone()
            cut[:, j] = 0
            cut /= cut.sum(-1, keepdim=True)
            want[:, i // BLOCK, j // BLOCK] += ((cut - a[0, :, i]) * da[0, :, i]).sum(-1).abs().cpu()
    want[:, 0, 0] += (a[0, :, 0, 0] * da[0, :, 0, 0]).abs().cpu()
    error = ((influence(torch, a, da).double() - want).norm() / want.norm()).item()
    if not error < 1e-4:
        raise SystemExit("torch_influence: relative error %.2e against masking: what would be timed is not the influence" % error)
    print("influence against masking in float64: relative error %.1e" % error)


def ours(path):
    if not path:
        return {}
    with open(path) as f:
        return {int(r["depth"]): r["item_s"] for r in json.load(f)["rows"] if r["what"] == "profile"}


def main():
    p = argparse.ArgumentParser(description=__doc__, epilog=HOW, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="smollm2", choices=sorted(peer.SHAPES))
    p.add_argument("--depth", default="1024,2048,4096", help="tokens of an item, comma-separated")
    p.add_argument("--layers", type=int, default=0, help="layers that are timed; 0: all")
    p.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    p.add_argument("--items", type=int, default=2, help="timed items; one before them is not")
    p.add_argument("--against", help="JSON of `moascope bench --what profile`: the ratio")
    p.add_argument("--json", help="FILE for the rows")
    args = p.parse_args()
    import torch
    torch.manual_seed(1)
    shape, dtype, mine, rows = peer.SHAPES[args.shape], getattr(torch, args.dtype), ours(args.against), []
    n_layer, d_model, n_vocab = shape[0], shape[4], shape[6]
    k = args.layers or n_layer
    print("%s, torch %s, %s, %s, %d of %d layers" % (torch.cuda.get_device_name(), torch.__version__, args.shape, args.dtype, k, n_layer))
    check(torch)
    layers = [Layer(torch, shape, dtype, 1.0) for _ in range(k)]
    embed, head = (torch.randn(n_vocab, d_model, device="cuda", dtype=dtype) for _ in range(2))
    head /= math.sqrt(d_model)
    for n in (int(x) for x in args.depth.split(",")):
        torch.cuda.reset_peak_memory_stats()
        try:
            times = []
            for _ in range(args.items + 1):
                ids = torch.randint(0, n_vocab, (n,), device="cuda")
                maps, layers_s, all_s = profile(torch, shape, layers, embed, head, ids, RESPONSE if n >= 4 * RESPONSE else max(n // 4, 1), dtype)
                if not all(m.isfinite().all() for m in maps):
                    raise SystemExit("%d tokens: a map is not finite" % n)
                times.append(all_s + layers_s * (n_layer / k - 1))
            seconds = sorted(times[1:])[len(times[1:]) // 2]
        except torch.cuda.OutOfMemoryError as e:
            print("%6d tokens: does not fit: %s" % (n, " ".join(str(e).split())[:120]))
            rows.append({"depth": n, "error": "out of memory"})
            continue
        finally:
            torch.cuda.empty_cache()
        peak = torch.cuda.max_memory_allocated()
        row = {"what": "profile", "peer": "torch", "shape": args.shape, "dtype": args.dtype, "depth": n, "item_s": seconds,
               "layers_timed": k, "peak_bytes": peak}
        text = "%6d tokens: %.4f s an item%s, peak %.2f GB" % (n, seconds, "" if k == n_layer else " (%d of %d layers timed)" % (k, n_layer), peak / 1e9)
        if n in mine:
            row["ratio"] = seconds / mine[n]
            text += "; moascope %.4f s: %.1f times as fast" % (mine[n], row["ratio"])
        rows.append(row)
        print(text, flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"peer": "torch " + torch.__version__, "device": torch.cuda.get_device_name(), "rows": rows}, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
