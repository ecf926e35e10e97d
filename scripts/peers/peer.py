"""What the scripts of this folder share: shapes, spans, the bytes that have to be read, timing on a GPU, rows as `moascope bench` has them.

    spans      S = roundup64(max(min(trunc(beta N), N), 128)), KV head k of n_head_kv has the beta at k * len(groups) // n_head_kv
    kept       min(depth, S) keys of each (sequence, KV head): what every peer is given, and no more
    rotation   as many copies of a layer's K and V as fill `big` bytes are read in turn inside one CUDA graph
    --rows     the rows that `bench_gpu.sh` measures of ours (section attn), all shapes in one process
"""
import argparse
import json
import math
import sys
import time

SHAPES = {  # n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab
    "llama3-8b": (32, 32, 8, 128, 4096, 14336, 128256),
    "llama3-70b-layer": (1, 64, 8, 128, 8192, 28672, 1024),
    "vicuna-7b": (32, 32, 32, 128, 4096, 11008, 32000),
    "smollm2": (30, 9, 3, 64, 576, 1536, 49152),
    "qwen2.5-1.5b": (28, 12, 2, 128, 1536, 8960, 151936),
    "qwen2.5-0.5b": (24, 14, 2, 64, 896, 4864, 151936),
}

HALF = {3: [0.8, 0.5, 0.2]}  # unequal rules of mean .5 for so many KV heads; else .8 and .2
ROWS = [("llama3-8b", 1, 4096), ("llama3-8b", 1, 16384), ("llama3-8b", 1, 131072), ("llama3-8b", 8, 16384), ("llama3-8b", 32, 8192),
        ("vicuna-7b", 1, 4096), ("vicuna-7b", 1, 16384), ("vicuna-7b", 1, 131072), ("vicuna-7b", 8, 16384), ("vicuna-7b", 32, 8192)]
ROWS += [(shape, batch, depth) for shape in ("smollm2", "qwen2.5-1.5b") for batch in (1, 8) for depth in (4096, 16384, 32768)]


def span(beta, n):
    x = n if beta * n >= n else max(128, math.trunc(beta * n))
    return (max(x, 128) + 63) // 64 * 64


class Case:
    """One row's problem. lengths: keys kept, per KV head (the same in every sequence)."""

    def __init__(self, shape, groups, batch, depth):
        self.shape, self.groups, self.batch, self.depth = shape, groups, batch, depth
        _, self.n_head, self.n_head_kv, self.d_head = SHAPES[shape][:4]
        self.group = self.n_head // self.n_head_kv
        self.lengths = [min(depth, span(groups[k * len(groups) // self.n_head_kv], depth)) for k in range(self.n_head_kv)]
        self.kv_bytes = 2 * 2 * self.d_head * sum(self.lengths) * batch  # K and V of two bytes an element
        self.kept = sum(self.lengths) / (self.n_head_kv * depth)

    @property
    def plan(self):
        return "full" if self.groups == [1.0] else "groups:" + ",".join("%g" % g for g in self.groups)

    def by_length(self):
        """length -> KV heads that keep so many"""
        out = {}
        for k, n in enumerate(self.lengths):
            out.setdefault(n, []).append(k)
        return out

    def copies(self, big):
        return max(1, min(64, math.ceil(big / self.kv_bytes)))


def arguments(description, how):
    p = argparse.ArgumentParser(description=description, epilog=how, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="llama3-8b", choices=sorted(SHAPES))
    p.add_argument("--plan", nargs="+", default=["full", "groups:0.8,0.2"], help="full or groups:B,B,...")
    p.add_argument("--batch", default="1,8", help="sequences at once, comma-separated")
    p.add_argument("--depth", default="4096,16384", help="tokens there, comma-separated")
    p.add_argument("--rows", action="store_true", help="instead of these four: all shapes and sizes that bench_gpu.sh measures of ours")
    p.add_argument("--reps", type=int, default=20, help="samples a row")
    p.add_argument("--big", type=int, default=1024, help="MiB that are rotated past the caches")
    p.add_argument("--dry-run", action="store_true", help="only what would be read: needs no GPU")
    p.add_argument("--json", help="FILE for the rows")
    return p


def cases(args):
    if args.rows:
        for shape, batch, depth in ROWS:
            for groups in ([1.0], HALF.get(SHAPES[shape][2], [0.8, 0.2])):
                yield Case(shape, groups, batch, depth)
        return
    for plan in args.plan:
        if plan == "full":
            groups = [1.0]
        elif plan.startswith("groups:"):
            groups = [float(x) for x in plan[7:].split(",")]
        else:
            sys.exit("--plan %s: full or groups:B,B,..." % plan)
        for batch in args.batch.split(","):
            for depth in args.depth.split(","):
                yield Case(args.shape, groups, int(batch), int(depth))


class Report:
    def __init__(self, args, peer):
        self.args, self.peer, self.rows, self.ceiling, self.device = args, peer, [], None, None
        print("%-34s %-12s %-18s %5s %6s %5s %9s %8s %8s %8s %7s %6s" % ("peer", "shape", "plan", "batch", "depth", "kept", "MB read", "us p10",
                                                                 "median", "us p90", "GB/s", "share"))

    def row(self, name, case, seconds, **more):
        """seconds: of one layer, one a sample; None: only the bytes"""
        row = {"what": "decode-attn", "peer": name, "shape": case.shape, "plan": case.plan, "batch": case.batch, "depth": case.depth,
               "kept": case.kept, "kv_bytes": case.kv_bytes, **more}
        text = "%-34s %-12s %-18s %5d %6d %5.2f %9.1f" % (name, case.shape[:12], case.plan[:18], case.batch, case.depth, case.kept, case.kv_bytes / 1e6)
        if seconds:
            s = sorted(seconds)
            p10, mid, p90 = (1e6 * s[min(len(s) - 1, int(q * len(s)))] for q in (0.1, 0.5, 0.9))
            rate = case.kv_bytes / mid * 1e6
            row.update(p10_us=p10, median_us=mid, p90_us=p90, bytes_s=rate, share=rate / self.ceiling if self.ceiling else None)
            text += " %8.1f %8.1f %8.1f %7.0f %5.1f%%" % (p10, mid, p90, rate / 1e9, 100 * rate / self.ceiling if self.ceiling else math.nan)
        self.rows.append(row)
        print(text, flush=True)

    def absent(self, name, why, case=None):
        why = " ".join(str(why).split())[:200]
        self.rows.append({"what": "decode-attn", "peer": name, "absent": why,
                          **({"shape": case.shape, "plan": case.plan, "batch": case.batch, "depth": case.depth} if case else {})})
        print("%-34s %sabsent: %s" % (name, "%s %s, %d x %d: " % (case.shape, case.plan, case.batch, case.depth) if case else "", why), flush=True)

    def save(self):
        if self.args.json:
            with open(self.args.json, "w") as f:
                json.dump({"peer": self.peer, "device": self.device, "ceiling": self.ceiling, "rows": self.rows}, f, indent=1)
                f.write("\n")


def torch_or_none(report):
    """torch with a GPU, or None and why"""
    try:
        import torch
    except Exception as e:
        report.absent("torch", "cannot be imported: %s" % e)
        return None
    if not torch.cuda.is_available():
        report.absent("torch", "%s sees no GPU" % torch.__version__)
        return None
    report.device = torch.cuda.get_device_name()
    big = torch.empty(1 << 28, dtype=torch.float32, device="cuda").normal_()
    seconds = graph_times(torch, lambda: big.amax(), 10)
    report.ceiling = big.numel() * 4 / min(seconds)
    print("%s, torch %s, ceiling %.0f GB/s (amax over 1 GiB)" % (report.device, torch.__version__, report.ceiling / 1e9))
    return torch


def captured(torch, call):
    """a CUDA graph of one call, which was made three times before on a stream of its own"""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def graph_times(torch, call, reps, min_s=0.01):
    """seconds of one call, reps samples of many replays of a CUDA graph between two waits"""
    graph = captured(torch, call)

    def sample(n):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    sample(1)
    n = max(1, min(2000, int(min_s / sample(2))))
    sample(n)
    return [sample(n) for _ in range(reps)]


def reference(torch, q, k, v):
    """q (group, d), k and v (n, d) -> (group, d), in float64"""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1) @ v


def check(torch, name, got, want):
    error = ((got.double() - want).norm() / want.norm()).item()
    if not error < 1e-2:
        sys.exit("%s: relative error %.2e against float64: what was timed is not the same attention" % (name, error))
