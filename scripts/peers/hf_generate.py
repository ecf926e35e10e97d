#!/usr/bin/env python3
"""Hugging Face transformers: decode rate of a known shape with random half-precision weights, dense, as the paper's first baseline.

The prompt is random ids; it is prefilled with logits of its last token only. Then greedy tokens one by one through the model's own forward and
cache (what generate() does, without its bookkeeping). Beside `moascope bench --shape NAME --type f16 --what step`.
"""
import time

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch transformers
the attention: --attention sdpa | flash_attention_2 | eager"""


def steps(torch, transformers, report, args, case):
    n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab = peer.SHAPES[case.shape]
    config = transformers.LlamaConfig(vocab_size=n_vocab, hidden_size=d_model, intermediate_size=d_ff, num_hidden_layers=n_layer,
                                      num_attention_heads=n_head, num_key_value_heads=n_head_kv, head_dim=d_head,
                                      max_position_embeddings=case.depth + 4096, tie_word_embeddings=False)
    config._attn_implementation = args.attention
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(0, n_vocab, (case.batch, case.depth), device="cuda")
    seconds = []
    with torch.inference_mode():
        out = model(ids, use_cache=True, logits_to_keep=1)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        for r in range(args.reps + 2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(8):
                out = model(token, past_key_values=cache, use_cache=True)
                cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            if r >= 2:
                seconds.append((time.perf_counter() - start) / 8)
    s = sorted(seconds)
    mid = s[len(s) // 2]
    weights = 2 * sum(p.numel() for p in model.parameters()) - 2 * n_vocab * d_model
    kv = case.kv_bytes * n_layer
    report.rows.append({"what": "step", "peer": "transformers " + args.attention, "plan": "full", "batch": case.batch,
                        "depth": case.depth, "weight_bytes": weights, "kv_bytes": kv, "median_us": 1e6 * mid,
                        "p10_us": 1e6 * s[len(s) // 10], "p90_us": 1e6 * s[9 * len(s) // 10], "tok_s": case.batch / mid,
                        "share": (weights + kv) / mid / report.ceiling})
    print("transformers %s: batch %d depth %d: %.0f us a step, %.1f tok/s, %.1f %% of the ceiling" %
          (args.attention, case.batch, case.depth, 1e6 * mid, case.batch / mid, 100 * (weights + kv) / mid / report.ceiling), flush=True)


def main():
    p = peer.arguments("Decode rate of Hugging Face transformers, dense.", HOW)
    p.add_argument("--attention", default="sdpa")
    p.set_defaults(plan=["full"], shape="vicuna-7b", batch="30", depth="4032", reps=3)
    args = p.parse_args()
    report = peer.Report(args, "transformers")
    if args.dry_run:
        for case in peer.cases(args):
            report.row("(bytes of a layer)", case, None)
        return report.save()
    torch = peer.torch_or_none(report)
    try:
        import transformers
    except Exception as e:
        report.absent("transformers", "cannot be imported: %s" % e)
        return report.save()
    for case in peer.cases(args) if torch else []:
        try:
            steps(torch, transformers, report, args, case)
        except Exception as e:
            report.absent("transformers " + args.attention, "%s: %s" % (type(e).__name__, e), case)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    report.save()


if __name__ == "__main__":
    main()
