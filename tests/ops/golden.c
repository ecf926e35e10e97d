/* golden.c -- the reference against results that can be worked out by hand. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/ops/ops.h"

static void close_to(rig *r, const char *what, size_t i, double got, double expected, double scale) {
    if (fabs(got - expected) <= 2e-7 * scale) return;
    char text[160];
    (void)snprintf(text, sizeof text, "%s[%zu] is %.9g, expected %.9g", what, i, got, expected);
    fail(r, text);
}

static void golden_case(rig *r, const char *label, const mem *m, const double *expected, size_t n) {
    unsigned char *image = fetch(r, m, 0);
    const float *y = (const float *)(const void *)(image + GUARD_BYTES);
    r->cases++;
    for (size_t i = 0; i < n; i++)
        close_to(r, label, i, y[i], expected[i], 1 + fabs(expected[i]));
    free(image);
    case_end(r);
}

/* results that can be worked out by hand */
void group_golden(rig *r) {
    (void)case_begin(r, 1, "golden rope");
    const int32_t one = 1;
    const double c = cos(1), s = sin(1), c2 = cos(.01), s2 = sin(.01); /* frequencies 1 and 10000^(-2/4) */
    const mem *p = mem_new(r, &one, 4), *x = mem_new(r, (float[]){1, 0, 1, 0, 9}, 20);
    CALL(rope, 0, .x = F(x, 0), .pos = I(p, 0), .n_tok = 1, .n_head = 1, .d_head = 5, .rope_dim = 4,
         .kind = MOA_ROPE_PAIRS, .theta = 10000, .scale = 1);
    golden_case(r, "pairs", x, (double[]){c, s, c2, s2, 9}, 5);
    p = mem_new(r, &one, 4);
    x = mem_new(r, (float[]){1, 0, 0, 1, 9}, 20);
    CALL(rope, 0, .x = F(x, 0), .pos = I(p, 0), .n_tok = 1, .n_head = 1, .d_head = 5, .rope_dim = 4,
         .kind = MOA_ROPE_HALVES, .theta = 10000, .scale = 1);
    golden_case(r, "halves", x, (double[]){c, -s2, s, c2, 9}, 5);

    (void)case_begin(r, 1, "golden rmsnorm, silu_mul");
    x = mem_new(r, (float[]){3, 4}, 8);
    const moa_weight ones = {
        .name = "w", .type = MOA_F32, .n_out = 1, .n_in = 2, .data = (float[]){1, 2}, .bytes = 8};
    weight *w = &r->weights[r->n_weight++];
    moa_err err = {0};
    for (int i = 0; i < 2; i++)
        must(r, r->b[i]->vt->weight_load(r->b[i], &ones, false, &w->dev[i], &err), &err);
    CALL(rmsnorm, 0, .x = F(x, 0), .w = w->dev[0], .y = F(x, 0), .n_tok = 1, .n = 2, .eps = 0);
    golden_case(r, "rmsnorm", x, (double[]){3 / sqrt(12.5), 8 / sqrt(12.5)}, 2);
    const mem *g = mem_new(r, (float[]){1, -2, 0}, 12), *u = mem_new(r, (float[]){2, 3, 5}, 12);
    CALL(silu_mul, 0, .gate = F(g, 0), .up = F(u, 0), .y = F(u, 0), .n = 3);
    golden_case(r, "silu_mul", u, (double[]){2 / (1 + exp(-1)), -6 / (1 + exp(2)), 0}, 3);

    (void)case_begin(r, 1,
                     "golden matmul"); /* a Q8_0 row: 0.5 * (1, 2, ..), against x = e_0 - e_31 and all ones */
    unsigned char row[34] = {0x00, 0x38};
    float xs[64] = {0};
    for (int i = 0; i < 32; i++) {
        row[2 + i] = (unsigned char)(i + 1);
        xs[32 + i] = 1;
    }
    xs[0] = 1;
    xs[31] = -1;
    const moa_weight q8 = {.name = "w", .type = MOA_Q8_0, .n_out = 1, .n_in = 32, .data = row, .bytes = 34};
    w = &r->weights[r->n_weight++];
    for (int i = 0; i < 2; i++)
        must(r, r->b[i]->vt->weight_load(r->b[i], &q8, false, &w->dev[i], &err), &err);
    x = mem_new(r, xs, sizeof xs);
    const mem *y = mem_new(r, (float[]){10, 20}, 8);
    CALL(matmul, 0, .x = F(x, 0), .w = w->dev[0], .y = F(y, 0), .n_tok = 2, .accumulate = true);
    golden_case(r, "matmul", y, (double[]){10 + .5 * (1 - 32), 20 + .5 * 528}, 2);
}
