#!/usr/bin/env python3
"""PyTorch's dense causal prefill attention, beside `test_ops_cuda --bench attn_prefill`: one layer, every query of N tokens.

    flash, cudnn    scaled_dot_product_attention(is_causal, enable_gqa) on that backend: q, k, v and o of two bytes an element. Ours
                    reads q and writes o as float32: 4 n_tok n_head d_head bytes more in all

TFLOP/s counts the visible pairs: 4 d_head n_head N (N + 1) / 2. A sample is the mean of three calls between two events on the stream.
The last rows of each output are compared with float64 first. A peer that is not there, or refuses the problem, says so.
"""
import argparse
import json
import math

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch (2.8 or later)"""


def last_rows_ok(torch, name, q, k, v, o, rows=64):
    n, group = q.shape[2], q.shape[1] // k.shape[1]
    for h in (0, q.shape[1] - 1):
        s = q[0, h, -rows:].double() @ k[0, h // group].double().T / math.sqrt(q.shape[3])
        hidden = torch.arange(n, device="cuda")[None] > torch.arange(n - rows, n, device="cuda")[:, None]
        peer.check(torch, name, o[0, h, -rows:], torch.softmax(s.masked_fill(hidden, -math.inf), -1) @ v[0, h // group].double())


def times_us(torch, call, reps):
    for _ in range(3):
        call()
    out = []
    for _ in range(reps):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(3):
            call()
        end.record()
        end.synchronize()
        out.append(start.elapsed_time(end) / 3 * 1e3)
    return sorted(out)


def one(torch, shape, backend, dtype, n, reps):
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    _, n_head, n_head_kv, d_head = peer.SHAPES[shape][:4]
    q, k, v = (torch.randn(1, h, n, d_head, device="cuda", dtype=getattr(torch, dtype)) for h in (n_head, n_head_kv, n_head_kv))
    with sdpa_kernel([getattr(SDPBackend, backend)]):
        def call():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=n_head > n_head_kv)

        last_rows_ok(torch, backend, q, k, v, call())
        t = times_us(torch, call, reps)
    median = t[len(t) // 2]
    return {"median_us": median, "p10_us": t[len(t) // 10], "p90_us": t[min(len(t) - 1, 9 * len(t) // 10)],
            "tflops": 4e-6 * d_head * n_head * n * (n + 1) / 2 / median}


def main():
    p = argparse.ArgumentParser(description="PyTorch's dense causal prefill attention.", epilog=HOW)
    p.add_argument("--shape", nargs="+", default=["llama3-8b"], choices=sorted(peer.SHAPES))
    p.add_argument("--n", default="2048,4096,8192,16384,32768", help="tokens, comma-separated")
    p.add_argument("--dtype", nargs="+", default=["float16"], choices=["float16", "bfloat16"])
    p.add_argument("--reps", type=int, default=9, help="samples a row")
    p.add_argument("--json", help="FILE for the rows")
    args = p.parse_args()
    rows = []
    try:
        import torch
        if not torch.cuda.is_available():
            raise RuntimeError("torch %s sees no GPU" % torch.__version__)
    except Exception as e:
        print("torch absent: %s" % e)
        return 77
    print("%s, torch %s" % (torch.cuda.get_device_name(), torch.__version__))
    for shape in args.shape:
        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
            for dtype in args.dtype:
                for n in map(int, args.n.split(",")):
                    row = {"what": "prefill-attn", "peer": backend, "shape": shape, "dtype": dtype, "n": n}
                    try:
                        row.update(one(torch, shape, backend, dtype, n, args.reps))
                        print("%-16s %-13s %-9s N %6d %10.1f us %7.1f TFLOP/s" % (backend, shape, dtype, n, row["median_us"], row["tflops"]),
                              flush=True)
                    except Exception as e:  # a peer that cannot do it is a result, too
                        row["absent"] = " ".join(("%s: %s" % (type(e).__name__, e)).split())[:200]
                        print("%-16s %-13s %-9s N %6d absent: %s" % (backend, shape, dtype, n, row["absent"]), flush=True)
                    rows.append(row)
                    torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"peer": "torch " + torch.__version__, "device": torch.cuda.get_device_name(), "rows": rows}, f, indent=1)
            f.write("\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
