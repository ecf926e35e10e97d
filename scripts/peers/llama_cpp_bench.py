#!/usr/bin/env python3
"""llama.cpp on this machine: prompt and decode rate, as JSON.

The same work as `moascope run MODEL --ids F --temp 0`: one prompt in one batch, logits of its last token
only, then greedy tokens one by one, each at its place after the prompt. Measured around llama_decode itself
through the low-level interface, so that Python's share (about 0.1 ms a token) is mostly the argmax that any
greedy run pays. Model loading is not counted; the first round is thrown away.

    {"engine": "llama.cpp", "version": ..., "threads": 2, "prompt_tokens": 512, "decode_tokens": 128,
     "prefill_tok_s": median, "decode_tok_s": median, "prefill_all": [...], "decode_all": [...], ...}
"""
import argparse
import ctypes
import json
import statistics
import sys
import time

HOW = """environment (the build takes about 15 minutes on one core; CMake and a C++ compiler are needed):
  python3 -m venv ~/.cache/moascope/peers-venv
  CMAKE_BUILD_PARALLEL_LEVEL=1 ~/.cache/moascope/peers-venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python
  ~/.cache/moascope/peers-venv/bin/python scripts/peers/llama_cpp_bench.py MODEL --ids ids.json"""


def rounds(args, ids):
    import llama_cpp as lc
    import numpy as np
    llama = lc.Llama(args.model, n_ctx=len(ids) + args.decode, n_batch=len(ids), n_ubatch=min(len(ids), 512),
                     n_threads=args.threads, n_threads_batch=args.threads, flash_attn=args.flash_attn, verbose=False)
    ctx, n_vocab = llama.ctx, llama.n_vocab()

    def decode(tokens):
        array = (lc.llama_token * len(tokens))(*tokens)
        batch = lc.llama_batch_get_one(array, len(tokens))
        if lc.llama_decode(ctx, batch) != 0:
            sys.exit("llama_cpp_bench: llama_decode failed at %d tokens" % len(tokens))
        row = lc.llama_get_logits_ith(ctx, -1)
        return int(np.ctypeslib.as_array(row, shape=(n_vocab,)).argmax())

    for r in range(args.warmup + args.repeats):
        lc.llama_memory_clear(lc.llama_get_memory(ctx), True)
        out = []
        start = time.perf_counter()
        token = decode(ids)
        prefilled = time.perf_counter()
        for _ in range(args.decode):
            out.append(token)
            token = decode([token])
        end = time.perf_counter()
        if r >= args.warmup:
            yield len(ids) / (prefilled - start), args.decode / (end - prefilled), out
    llama.close()


def main():
    p = argparse.ArgumentParser(description="Prompt and decode rate of llama.cpp.", epilog=HOW,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--ids", required=True, help="JSON array of token ids, at least --prefill of them")
    p.add_argument("--prefill", type=int, default=512)
    p.add_argument("--decode", type=int, default=128)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--flash-attn", action="store_true")
    args = p.parse_args()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("llama_cpp_bench: no llama-cpp-python in %s\n%s" % (sys.executable, HOW))
    with open(args.ids) as f:
        ids = json.load(f)[:args.prefill]
    if len(ids) < args.prefill:
        sys.exit("llama_cpp_bench: %s holds %d ids, --prefill %d" % (args.ids, len(ids), args.prefill))
    prefill, decode, out = zip(*rounds(args, ids))
    json.dump({
        "engine": "llama.cpp", "version": "llama-cpp-python " + llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode().strip(), "threads": args.threads,
        "flash_attn": args.flash_attn, "prompt_tokens": len(ids), "decode_tokens": args.decode,
        "prefill_tok_s": statistics.median(prefill), "decode_tok_s": statistics.median(decode),
        "prefill_all": prefill, "decode_all": decode, "tokens": out[-1],
    }, sys.stdout)
    print()


if __name__ == "__main__":
    main()
