#!/usr/bin/env python3
"""FlashInfer's batched paged decode under unequal spans, beside `moascope bench --what decode-attn`: one layer, the same bytes.

Heads are flattened into the batch: every (sequence, KV head) is a request of its own length with the group's query heads, bfloat16, pages of
64 in shuffled order. Both of its modes are timed, with and without tensor cores. Its host-side plan for a set of lengths is timed apart: it
is paid whenever lengths change.
"""
import time

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch flashinfer-python"""
PAGE = 64


def make(torch, flashinfer, case, copies, tensor_cores):
    """[(wrapper, cache)], lengths per request, seconds of a plan"""
    lengths = case.lengths * case.batch
    pages = [(n + PAGE - 1) // PAGE for n in lengths]
    total = sum(pages)
    indptr = torch.tensor([0] + pages).cumsum(0).int()
    last = torch.tensor([(n - 1) % PAGE + 1 for n in lengths], dtype=torch.int32)
    out, seconds = [], []
    for _ in range(copies):
        indices = torch.randperm(total, device="cuda").int()
        cache = torch.randn(total, 2, PAGE, 1, case.d_head, device="cuda", dtype=torch.bfloat16)
        space = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
        w = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=tensor_cores)

        def plan():
            w.plan(indptr, indices, last, case.group, 1, case.d_head, PAGE, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)

        plan()
        torch.cuda.synchronize()
        start = time.perf_counter()
        plan()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        out.append((w, cache, indices))
    return out, lengths, sorted(seconds)[len(seconds) // 2]


def run(torch, flashinfer, report, case, args, tensor_cores):
    name = "flashinfer" + (", tensor cores" if tensor_cores else "")
    rigs, lengths, plan_s = make(torch, flashinfer, case, case.copies(args.big << 20), tensor_cores)
    q = torch.randn(len(lengths), case.group, case.d_head, device="cuda", dtype=torch.bfloat16)
    w, cache, indices = rigs[0]
    n_page = (lengths[-1] + PAGE - 1) // PAGE
    mine = cache[indices[-n_page:].long()]
    k, v = (mine[:, i].reshape(-1, case.d_head)[:lengths[-1]] for i in (0, 1))
    peer.check(torch, name, w.run(q, cache)[-1], peer.reference(torch, q[-1], k, v))
    times = peer.graph_times(torch, lambda: [w.run(q, cache) for w, cache, _ in rigs], args.reps)
    report.row(name, case, [t / len(rigs) for t in times], plan_us=1e6 * plan_s)


def main():
    args = peer.arguments("FlashInfer's decode attention under unequal spans.", HOW).parse_args()
    report = peer.Report(args, "flashinfer")
    if args.dry_run:
        for case in peer.cases(args):
            report.row("(bytes)", case, None)
        return report.save()
    torch = peer.torch_or_none(report)
    try:
        import flashinfer
    except Exception as e:
        report.absent("flashinfer", "cannot be imported: %s" % e)
        return report.save()
    for case in peer.cases(args) if torch else []:
        for tensor_cores in (False, True):
            try:
                run(torch, flashinfer, report, case, args, tensor_cores)
            except Exception as e:
                report.absent("flashinfer" + (", tensor cores" if tensor_cores else ""), "%s: %s" % (type(e).__name__, e), case)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    report.save()


if __name__ == "__main__":
    main()
