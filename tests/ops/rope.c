/* rope.c -- rotary positions. */

#include "tests/ops/ops.h"

static void rope_case(rig *r, uint64_t seed, int32_t n_tok, int32_t d_head, int32_t rope_dim,
                      moa_rope_kind kind, bool factors) {
    const int32_t n_head = 1 + (int32_t)(seed % 9);
    const float theta = seed % 2 ? 10000.0f : 1e6f, scale = seed % 5 == 0 ? 0.25f : 1.0f;
    if (!case_begin(r, seed, "rope n_tok %d n_head %d d_head %d rope_dim %d %s theta %g scale %g%s", n_tok,
                    n_head, d_head, rope_dim, kind == MOA_ROPE_PAIRS ? "pairs" : "halves", (double)theta,
                    (double)scale, factors ? " factors" : ""))
        return;
    const size_t n = (size_t)n_tok * (size_t)n_head * (size_t)d_head;
    const mem *x = mem_floats(r, floats(r, n, (input_kind)(seed % N_INPUT)), n);
    int32_t pos[513];
    bool idle[513];
    for (int32_t t = 0; t < n_tok; t++) {
        pos[t] = seed % 3 == 0 ? 1000 + t : below(r, 32768);
        idle[t] = n_tok > 2 && below(r, 9) == 0;
        if (idle[t]) pos[t] = -1;
    }
    const mem *p = mem_new(r, pos, sizeof *pos * (size_t)n_tok);
    weight *fw = factors ? &r->weights[r->n_weight++] : NULL;
    float f[64];
    for (int32_t i = 0; i < rope_dim / 2; i++)
        f[i] = (float)(1 + 7 * uniform(r));
    for (int i = 0; fw && i < 2; i++) {
        moa_err err = {0};
        const moa_weight m = {.name = "f",
                              .type = MOA_F32,
                              .n_out = 1,
                              .n_in = rope_dim / 2,
                              .data = f,
                              .bytes = 4 * (size_t)rope_dim / 2};
        must(r, r->b[i]->vt->weight_load(r->b[i], &m, false, &fw->dev[i], &err), &err);
    }
    for (int i = 0; i < 2; i++)
        CALL(rope, i, .x = F(x, i), .pos = I(p, i), .freq_factors = fw ? fw->dev[i] : NULL, .n_tok = n_tok,
             .n_head = n_head, .d_head = d_head, .rope_dim = rope_dim, .kind = kind, .theta = theta,
             .scale = scale);
    compare(r, x, VECTOR, "x", 1, idle, (size_t)n_head * (size_t)d_head);
    case_end(r);
}

void group_rope(rig *r) {
    static const int32_t heads[][2] = {{64, 64}, {64, 32}, {80, 80}, {80, 20}, {128, 128}, {128, 96}};
    uint64_t seed = 1;
    for (int t = 0; t < N_TOK_COUNT; t++)
        for (int h = 0; h < 6; h++)
            for (int kind = 0; kind < 2; kind++)
                for (int factors = 0; factors < 2; factors++)
                    rope_case(r, seed++, tok_counts[t], heads[h][0], heads[h][1],
                              kind ? MOA_ROPE_HALVES : MOA_ROPE_PAIRS, factors);
}
