#!/usr/bin/env python3
"""PyTorch's decode attention under unequal spans, beside `moascope bench --what decode-attn`: one layer, the same bytes.

    flash, cudnn    scaled_dot_product_attention on that backend, one call for the KV heads of each span, K and V cut to the span
    varlen          torch.nn.attention.varlen.varlen_attn: every (sequence, KV head) a request of its own length
    flex            flex_attention, compiled, on the whole K and V with a block mask of each KV head's window and sink

Each output is compared with float64 before it is timed. A peer that is not there, or refuses the problem, says so.
"""
import inspect
import math

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch (2.8 or later; varlen_attn from 2.10)"""


def tensors(torch, case, copies):
    """per copy: {length: (q (B, heads * group, 1, d), k, v (B, heads, length, d))}"""
    out = []
    for _ in range(copies):
        out.append({n: tuple(torch.randn(case.batch, h, t, case.d_head, device="cuda", dtype=torch.bfloat16)
                             for h, t in ((len(heads) * case.group, 1), (len(heads), n), (len(heads), n)))
                    for n, heads in case.by_length().items()})
    return out


def check_parts(torch, name, case, parts, outs):
    for n, (q, k, v) in parts.items():
        want = peer.reference(torch, q[-1, -case.group:, 0], k[-1, -1], v[-1, -1])
        peer.check(torch, name, outs[n][-1, -case.group:, 0], want)


def sdpa(torch, report, case, args, name, backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    import torch.nn.functional as F
    copies = tensors(torch, case, case.copies(args.big << 20))

    def one(parts):
        return {n: F.scaled_dot_product_attention(q, k, v, enable_gqa=case.group > 1) for n, (q, k, v) in parts.items()}

    with sdpa_kernel([getattr(SDPBackend, backend)]):
        check_parts(torch, name, case, copies[0], one(copies[0]))
        times = peer.graph_times(torch, lambda: [one(parts) for parts in copies], args.reps)
    report.row(name, case, [t / len(copies) for t in times], calls=len(copies[0]))


def varlen(torch, report, case, args):
    from torch.nn.attention.varlen import varlen_attn
    copies = case.copies(args.big << 20)
    lengths = case.lengths * case.batch
    ends = torch.tensor([0] + lengths, device="cuda").cumsum(0).int()
    n_req, total = len(lengths), sum(lengths)
    q = torch.randn(n_req, case.group, case.d_head, device="cuda", dtype=torch.bfloat16)
    q_ends = torch.arange(n_req + 1, device="cuda", dtype=torch.int32)
    # one KV head a request; query heads of the group see the same keys
    kv = [torch.randn(2, total, 1, case.d_head, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    takes = inspect.signature(varlen_attn).parameters  # which of them says it, depends on the version
    extra = {"enable_gqa": True} if case.group > 1 and "enable_gqa" in takes else {}

    def one(x):
        return varlen_attn(q, x[0], x[1], q_ends, ends, 1, max(lengths), **extra)

    n = lengths[-1]
    peer.check(torch, "varlen", one(kv[0])[-1], peer.reference(torch, q[-1], kv[0][0, -n:, 0], kv[0][1, -n:, 0]))
    times = peer.graph_times(torch, lambda: [one(x) for x in kv], args.reps)
    report.row("torch varlen_attn", case, [t / copies for t in times])


def flex(torch, report, case, args):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    dense = 2 * 2 * case.d_head * case.n_head_kv * case.depth * case.batch
    copies = max(1, min(64, math.ceil((args.big << 20) / dense)))
    lengths = torch.tensor(case.lengths, device="cuda")
    last, group = case.depth - 1, case.group

    def sees(b, h, i, j):  # the query is token depth - 1
        return (j < 64) | (last - j < lengths[h // group] - 64)

    mask = create_block_mask(sees, None, case.n_head, 1, case.depth, device="cuda", BLOCK_SIZE=128)
    compiled = torch.compile(flex_attention, dynamic=False)
    q = torch.randn(case.batch, case.n_head, 1, case.d_head, device="cuda", dtype=torch.bfloat16)
    kv = [torch.randn(2, case.batch, case.n_head_kv, case.depth, case.d_head, device="cuda", dtype=torch.bfloat16)
          for _ in range(copies)]

    def one(x):
        return compiled(q, x[0], x[1], block_mask=mask, enable_gqa=group > 1)

    n = case.lengths[-1]
    rows = [j for j in range(case.depth) if j < 64 or last - j < n - 64]
    want = peer.reference(torch, q[-1, -group:, 0], kv[0][0, -1, -1, rows], kv[0][1, -1, -1, rows])
    peer.check(torch, "flex", one(kv[0])[-1, -group:, 0], want)
    times = peer.graph_times(torch, lambda: [one(x) for x in kv], args.reps)
    report.row("torch flex_attention", case, [t / copies for t in times])


PEERS = {"flash": lambda *a: sdpa(*a, "torch flash, one call a span", "FLASH_ATTENTION"),
         "cudnn": lambda *a: sdpa(*a, "torch cudnn, one call a span", "CUDNN_ATTENTION"),
         "varlen": varlen, "flex": flex}


def main():
    p = peer.arguments("PyTorch's decode attention under unequal spans.", HOW)
    p.add_argument("--only", default=",".join(PEERS), help="which of %s, comma-separated" % ", ".join(PEERS))
    args = p.parse_args()
    wanted = args.only.split(",")
    if set(wanted) - set(PEERS):
        p.error("--only %s: of %s" % (args.only, ", ".join(PEERS)))
    report = peer.Report(args, "torch")
    if args.dry_run:
        for case in peer.cases(args):
            report.row("(bytes)", case, None)
        return report.save()
    torch = peer.torch_or_none(report)
    for case in peer.cases(args) if torch else []:
        for name in wanted:
            try:
                PEERS[name](torch, report, case, args)
            except Exception as e:  # a peer that cannot do it is a result, too
                report.absent("torch " + name, "%s: %s" % (type(e).__name__, e), case)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    report.save()


if __name__ == "__main__":
    main()
