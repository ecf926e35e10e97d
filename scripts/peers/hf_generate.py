#!/usr/bin/env python3
"""Hugging Face transformers: decode rate of a known shape with random half-precision weights, dense.

    --cache dynamic   what generate() does without its bookkeeping: the model's own forward, the cache grows by concatenation (the paper's
                      first baseline)
    --cache static    transformers' StaticCache, and the step captured into a CUDA graph: the same kernels without Python between them

What stands in the cache before the steps is random: nothing is prefilled. Beside `moascope bench --shape NAME --type f16 --what step`.
"""
import time

import peer

HOW = """environment: python3 -m venv V && V/bin/pip install torch transformers
the attention: --attention sdpa | flash_attention_2 | eager"""
STEPS = 8  # a sample


def open_model(torch, transformers, shape, args, device="cuda"):
    n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab = peer.SHAPES[shape]
    config = transformers.LlamaConfig(vocab_size=n_vocab, hidden_size=d_model, intermediate_size=d_ff, num_hidden_layers=n_layer,
                                      num_attention_heads=n_head, num_key_value_heads=n_head_kv, head_dim=d_head,
                                      max_position_embeddings=1 << 18, tie_word_embeddings=False)
    config._attn_implementation = args.attention
    torch.set_default_dtype(torch.float16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def make_cache(torch, transformers, model, case, args):
    c = model.config
    if args.cache == "static":
        cache = transformers.StaticCache(config=c, max_cache_len=case.depth + STEPS * (args.reps + 4))
    else:
        cache = transformers.DynamicCache(config=c)
    size = (case.batch, c.num_key_value_heads, case.depth, c.head_dim)
    for layer in range(c.num_hidden_layers):
        k, v = (torch.randn(size, device=model.device, dtype=torch.float16) for _ in range(2))
        cache.update(k, v, layer)
    return cache


def stepper(torch, model, case, cache, args):
    """a function that makes one token for every sequence"""
    token = torch.randint(0, model.config.vocab_size, (case.batch, 1), device=model.device)

    def step():
        out = model(token, past_key_values=cache, use_cache=True)
        token.copy_(out.logits[:, -1:].argmax(-1))

    if args.cache == "dynamic":
        return step
    return peer.captured(torch, step).replay


def steps(torch, transformers, report, args, case, model):
    n_layer, n_vocab, d_model = model.config.num_hidden_layers, model.config.vocab_size, model.config.hidden_size
    name = "transformers %s, %s cache" % (args.attention, args.cache)
    seconds = []
    with torch.inference_mode():
        cache = make_cache(torch, transformers, model, case, args)
        step = stepper(torch, model, case, cache, args)
        for r in range(args.reps + 2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            if r >= 2:
                seconds.append((time.perf_counter() - start) / STEPS)
    s = sorted(seconds)
    mid = s[len(s) // 2]
    weights = 2 * sum(p.numel() for p in model.parameters()) - 2 * n_vocab * d_model
    kv = case.kv_bytes * n_layer
    report.rows.append({"what": "step", "peer": name, "shape": case.shape, "plan": "full", "batch": case.batch, "depth": case.depth,
                        "weight_bytes": weights, "kv_bytes": kv, "median_us": 1e6 * mid, "p10_us": 1e6 * s[len(s) // 10],
                        "p90_us": 1e6 * s[9 * len(s) // 10], "tok_s": case.batch / mid, "share": (weights + kv) / mid / report.ceiling})
    print("%s: %s batch %d depth %d: %.0f us a step, %.1f tok/s, %.1f %% of the ceiling" %
          (name, case.shape, case.batch, case.depth, 1e6 * mid, case.batch / mid, 100 * (weights + kv) / mid / report.ceiling), flush=True)


def main():
    p = peer.arguments("Decode rate of Hugging Face transformers, dense.", HOW)
    p.add_argument("--attention", default="sdpa")
    p.add_argument("--cache", default="dynamic", choices=("dynamic", "static"))
    p.set_defaults(plan=["full"], shape="vicuna-7b", batch="8", depth="4096", reps=3)
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
    model = open_model(torch, transformers, args.shape, args) if torch else None
    for case in peer.cases(args) if torch else []:
        try:
            steps(torch, transformers, report, args, case, model)
        except Exception as e:
            report.absent("transformers %s, %s cache" % (args.attention, args.cache), "%s: %s" % (type(e).__name__, e), case)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        report.save()
    report.save()


if __name__ == "__main__":
    main()
