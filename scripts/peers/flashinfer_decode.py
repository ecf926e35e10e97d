#!/usr/bin/env python3
"""FlashInfer's batched paged decode under unequal spans, beside `moascope bench --what decode-attn`: one layer, the same bytes.

Heads are flattened into the batch: every (sequence, KV head) is a request of its own length with the group's query heads, bfloat16, pages of
64 in shuffled order. Its three ways are timed: the decode kernel on CUDA cores, the same on tensor cores, and the persistent kernel
(BatchAttention) that shares out work of any length. Its host-side plan for a set of lengths is timed apart: it is paid whenever lengths
change.

Kernels are compiled on first use, a minute or two. `--build FOLDER` compiles what the rows need without a GPU (FLASHINFER_CUDA_ARCH_LIST=9.0a)
and copies the libraries to FOLDER/NAME/NAME.so: put there as flashinfer/data/aot they are loaded at once.
"""
import os
import shutil
import time

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch flashinfer-python"""
PAGE = 64
MODES = ("flashinfer", "flashinfer, tensor cores", "flashinfer, persistent")


class Rig:
    """one copy of a layer: its pages and a wrapper that knows where they are. space: partial results, shared by all copies"""

    def __init__(self, torch, flashinfer, case, mode, space):
        self.torch, self.case, self.mode = torch, case, mode
        self.lengths = case.lengths * case.batch
        pages = [(n + PAGE - 1) // PAGE for n in self.lengths]
        self.indptr = torch.tensor([0] + pages).cumsum(0).int()
        self.n = torch.tensor(self.lengths, dtype=torch.int32)
        self.indices = torch.randperm(sum(pages), device="cuda").int()
        self.cache = torch.randn(sum(pages), 2, PAGE, 1, case.d_head, device="cuda", dtype=torch.bfloat16)
        if mode == MODES[2]:
            self.wrapper = flashinfer.BatchAttention("NHD")
            self.wrapper.float_workspace_buffer = space
        else:
            self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=mode == MODES[1])

    def plan(self):
        c, bf16 = self.case, self.torch.bfloat16
        if self.mode == MODES[2]:
            q_indptr = self.torch.arange(len(self.lengths) + 1, dtype=self.torch.int32)
            self.wrapper.plan(q_indptr, self.indptr, self.indices, self.n, c.group, 1, c.d_head, c.d_head, PAGE,
                              q_data_type=bf16, kv_data_type=bf16)
        else:
            self.wrapper.plan(self.indptr, self.indices, (self.n - 1) % PAGE + 1, c.group, 1, c.d_head, PAGE, q_data_type=bf16,
                              kv_data_type=bf16)

    def run(self, q):
        out = self.wrapper.run(q, self.cache)
        return out[0] if isinstance(out, tuple) else out

    def last(self):
        """K and V (n, d) of the last request"""
        n_page = (self.lengths[-1] + PAGE - 1) // PAGE
        mine = self.cache[self.indices[-n_page:].long()]
        return [mine[:, i].reshape(-1, self.case.d_head)[:self.lengths[-1]] for i in (0, 1)]


def plan_seconds(torch, rig):
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        rig.plan()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[2]


def run(torch, flashinfer, report, case, args, mode):
    space = torch.empty((384 if mode == MODES[2] else 128) << 20, dtype=torch.uint8, device="cuda")
    rigs = [Rig(torch, flashinfer, case, mode, space) for _ in range(case.copies(args.big << 20))]
    for rig in rigs:
        rig.plan()
    plan_s = plan_seconds(torch, rigs[0])
    q = torch.randn(len(rigs[0].lengths), case.group, case.d_head, device="cuda", dtype=torch.bfloat16)
    peer.check(torch, mode, rigs[0].run(q)[-1], peer.reference(torch, q[-1], *rigs[0].last()))
    times = peer.graph_times(torch, lambda: [rig.run(q) for rig in rigs], args.reps)
    report.row(mode, case, [t / len(rigs) for t in times], plan_us=1e6 * plan_s)


def build(folder):
    import torch
    from flashinfer.jit import gen_batch_attention_module, gen_batch_decode_module, gen_batch_prefill_module
    b, i = torch.bfloat16, torch.int32
    for d in sorted({x[3] for x in peer.SHAPES.values()}):
        for spec in (gen_batch_decode_module(b, b, b, i, d, d, 0, False, False),
                     gen_batch_prefill_module("fa2", b, b, b, i, d, d, 0, False, False, False),
                     gen_batch_attention_module(b, b, b, i, d, d, 0, False, False)):
            spec.build()
            os.makedirs(os.path.join(folder, spec.name), exist_ok=True)
            shutil.copy(spec.jit_library_path, os.path.join(folder, spec.name))
            print(spec.name, flush=True)


def main():
    p = peer.arguments("FlashInfer's decode attention under unequal spans.", HOW)
    p.add_argument("--build", metavar="FOLDER", help="only compile its kernels and copy them there")
    args = p.parse_args()
    if args.build:
        return build(args.build)
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
        for mode in MODES:
            try:
                run(torch, flashinfer, report, case, args, mode)
            except Exception as e:
                report.absent(mode, "%s: %s" % (type(e).__name__, e), case)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        report.save()  # what is measured so far is kept
    report.save()


if __name__ == "__main__":
    main()
