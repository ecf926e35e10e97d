/* rows.c -- embed, rmsnorm, silu_mul, add. */
#include <inttypes.h>
#include <stdio.h>

#include "tests/ops/ops.h"

void group_embed(rig *r) {
    for (int d = 0; d < N_DTYPE; d++)
        for (int t = 0; t < N_TOK_COUNT; t++) {
            const int32_t n_tok = tok_counts[t], n_vocab = 77, d_model = t % 2 ? 256 : 768;
            if (!case_begin(r, (uint64_t)(d * 10 + t), "embed %s n_tok %d d_model %d",
                            moa_dtype_find(dtypes[d])->name, n_tok, d_model))
                continue;
            const weight *w = weight_new(r, dtypes[d], n_vocab, d_model);
            int32_t ids[513];
            for (int32_t i = 0; i < n_tok; i++)
                ids[i] = i == 0 ? n_vocab - 1 : below(r, n_vocab);
            const mem *id = mem_new(r, ids, sizeof *ids * (size_t)n_tok);
            const mem *y = mem_new(r, NULL, sizeof(float) * (size_t)n_tok * (size_t)d_model);
            for (int i = 0; i < 2; i++)
                CALL(embed, i, .w = w->dev[i], .ids = I(id, i), .y = F(y, i), .n_tok = n_tok);
            compare(r, y, VECTOR, "y", 1, NULL, 1);
            case_end(r);
        }
}

void group_rmsnorm(rig *r) {
    static const int32_t sizes[] = {1, 64, 576, 896, 1000, 2049};
    for (int s = 0; s < 6; s++)
        for (int t = 0; t < N_TOK_COUNT; t++)
            for (int in_place = 0; in_place < 2; in_place++) {
                const int32_t n = sizes[s], n_tok = tok_counts[t];
                const input_kind kind = (input_kind)((s + t) % N_INPUT);
                if (!case_begin(r, (uint64_t)(s * 10 + t), "rmsnorm n_tok %d n %d %s%s", n_tok, n,
                                input_names[kind], in_place ? " in place" : ""))
                    continue;
                const weight *w = weight_new(r, s % 2 ? MOA_F16 : MOA_F32, 1, n);
                const size_t count = (size_t)n_tok * (size_t)n;
                const mem *x = mem_floats(r, floats(r, count, kind), count);
                const mem *y = in_place ? x : mem_new(r, NULL, count * sizeof(float));
                for (int i = 0; i < 2; i++)
                    CALL(rmsnorm, i, .x = F(x, i), .w = w->dev[i], .y = F(y, i), .n_tok = n_tok, .n = n,
                         .eps = 1e-5f);
                compare(r, y, VECTOR, "y", 1, NULL, 1);
                case_end(r);
            }
}

static const int64_t lengths[] = {1, 15, 16, 17, 1000, 4099, 123457};

void group_silu_mul(rig *r) {
    for (int n = 0; n < 7; n++)
        for (int where = 0; where < 3; where++) {
            if (!case_begin(r, (uint64_t)(n * 3 + where), "silu_mul n %" PRId64 " %s", lengths[n],
                            where == 0   ? ""
                            : where == 1 ? "into gate"
                                         : "into up"))
                continue;
            const size_t count = (size_t)lengths[n];
            float *g = floats(r, count, OUTLIERS);
            for (size_t i = 0; i < count; i += 11)
                g[i] = i % 2 ? -100.0f : 100.0f;
            const mem *gate = mem_floats(r, g, count), *up = mem_floats(r, floats(r, count, NORMAL), count);
            const mem *y = where == 0 ? mem_new(r, NULL, count * sizeof(float)) : where == 1 ? gate : up;
            for (int i = 0; i < 2; i++)
                CALL(silu_mul, i, .gate = F(gate, i), .up = F(up, i), .y = F(y, i), .n = lengths[n]);
            compare(r, y, VECTOR, "y", 1, NULL, 1);
            case_end(r);
        }
}

void group_add(rig *r) {
    for (int n = 0; n < 7; n++) {
        if (!case_begin(r, (uint64_t)n, "add n %" PRId64, lengths[n])) continue;
        const size_t count = (size_t)lengths[n];
        const mem *x = mem_floats(r, floats(r, count, OUTLIERS), count),
                  *y = mem_floats(r, floats(r, count, NORMAL), count);
        for (int i = 0; i < 2; i++)
            CALL(add, i, .x = F(x, i), .y = F(y, i), .n = lengths[n]);
        compare_bytes(r, y, "y");
        case_end(r);
    }
}

void bench_rest(rig *r) {
    const int32_t n_tok = 512, d = 576;
    float *x = bench_floats(r, (size_t)n_tok * 1536), *y = bench_floats(r, (size_t)n_tok * 1536);
    int32_t pos[512];
    for (int i = 0; i < n_tok; i++)
        pos[i] = i;
    (void)case_begin(r, 1, "bench");
    const mem *p = mem_new(r, pos, sizeof pos);
    const weight *w = weight_new(r, MOA_F32, 1, d);
    double best[4] = {1, 1, 1, 1};
    for (int k = 0; k < 200; k++) {
        double t[5] = {now_s()};
        CALL(rmsnorm, 1, .x = x, .w = w->dev[1], .y = y, .n_tok = n_tok, .n = d, .eps = 1e-5f);
        sync_tested(r);
        t[1] = now_s();
        CALL(rope, 1, .x = y, .pos = I(p, 1), .n_tok = n_tok, .n_head = 9, .d_head = 64, .rope_dim = 64,
             .kind = MOA_ROPE_PAIRS, .theta = 10000, .scale = 1);
        sync_tested(r);
        t[2] = now_s();
        CALL(silu_mul, 1, .gate = x, .up = y, .y = y, .n = (int64_t)n_tok * 1536);
        sync_tested(r);
        t[3] = now_s();
        CALL(add, 1, .x = x, .y = y, .n = (int64_t)n_tok * d);
        sync_tested(r);
        t[4] = now_s();
        for (int i = 0; i < 4; i++)
            best[i] = t[i + 1] - t[i] < best[i] ? t[i + 1] - t[i] : best[i];
    }
    (void)printf("  512 tokens of SmolLM2: rmsnorm %.0f us, rope %.0f us, silu_mul %.0f us, add %.0f us\n",
                 best[0] * 1e6, best[1] * 1e6, best[2] * 1e6, best[3] * 1e6);
    case_end(r);
}
