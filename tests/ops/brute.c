/* brute.c -- the reference's attention, statistics and maps against the whole N x N matrix in double. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/ops/ops.h"

/* The whole N x N matrix of one head in double, by the words of the method: j <= i and (j < 64 or i - j < S - 64). */
static double *full_softmax(int32_t n, int32_t span, int32_t d_head, double scale, const double *q,
                            size_t q_stride, const double *k, double *lse) {
    double *a = calloc((size_t)n * (size_t)n, sizeof *a);
    if (!a) abort();
    for (int32_t i = 0; i < n; i++) {
        double max = -1e300, sum = 0;
        for (int32_t j = 0; j < n; j++) {
            double dot = -1e300;
            if (j <= i && (j < 64 || i - j < span - 64)) {
                dot = 0;
                for (int32_t d = 0; d < d_head; d++)
                    dot += q[(size_t)i * q_stride + (size_t)d] * k[(size_t)j * (size_t)d_head + (size_t)d] *
                           scale;
            }
            a[i * n + j] = dot;
            max = fmax(max, dot);
        }
        for (int32_t j = 0; j < n; j++)
            sum += a[i * n + j] > -1e299 ? exp(a[i * n + j] - max) : 0;
        for (int32_t j = 0; j < n; j++)
            a[i * n + j] = a[i * n + j] > -1e299 ? exp(a[i * n + j] - max) / sum : 0;
        lse[i] = max + log(sum);
    }
    return a;
}

/* what one query of one head must give: o (d_head) and the statistics */
static void expect_row(const double *a, int32_t i, int32_t d_head, const double *v, int32_t measure,
                       double lse, double *o, double *stat) {
    for (int32_t d = 0; d < d_head; d++) {
        o[d] = 0;
        for (int32_t j = 0; j <= i; j++)
            o[d] += a[j] * v[(size_t)j * (size_t)d_head + (size_t)d];
    }
    for (int k = 0; k < MOA_N_STAT; k++)
        stat[k] = 0;
    for (int32_t j = 0; j <= i; j++) {
        stat[MOA_STAT_ENTROPY] -= a[j] > 0 ? a[j] * log(a[j]) : 0;
        stat[MOA_STAT_SINK] += j < 64 ? a[j] : 0;
        stat[MOA_STAT_WINDOW] += j >= 64 && i - j < measure - 64 ? a[j] : 0;
        stat[MOA_STAT_DISTANCE] += a[j] * (i - j);
    }
    stat[MOA_STAT_LSE] = lse;
}

typedef struct brute {
    int32_t n, n_head, d_head, group, n_bin;
    const cache *c;
    const int32_t *span, *measure;
    const double *q;
    double *o, *stat,
        *hist; /* expected: (n, n_head, d_head), (n, n_head, MOA_N_STAT), (n_head, 8, 1 + n_bin) */
    double *a; /* head 0's matrix, kept for the map */
} brute;

static void brute_expect(brute *e, int32_t first, int32_t bucket_tok) {
    double *lse = calloc((size_t)e->n, sizeof *lse);
    for (int32_t h = 0; h < e->n_head; h++) {
        const size_t kv = (size_t)(h / e->group) * (size_t)e->c->max_pages * MOA_PAGE_TOK * (size_t)e->d_head;
        double *a = full_softmax(e->n, e->span[h], e->d_head, 1 / sqrt(e->d_head),
                                 e->q + (size_t)h * (size_t)e->d_head, (size_t)e->n_head * (size_t)e->d_head,
                                 e->c->k + kv, lse);
        for (int32_t i = 0; i < e->n; i++) {
            const size_t row = (size_t)i * (size_t)e->n_head + (size_t)h;
            expect_row(a + (size_t)i * (size_t)e->n, i, e->d_head, e->c->v + kv, e->measure[h], lse[i],
                       e->o + row * (size_t)e->d_head, e->stat + row * MOA_N_STAT);
            for (int32_t j = 0; i >= first && j <= i; j++) {
                const int32_t bucket = i / bucket_tok > 7 ? 7 : i / bucket_tok,
                              bin = (i - j) / 64 >= e->n_bin ? e->n_bin - 1 : (i - j) / 64;
                e->hist[((size_t)h * 8 + (size_t)bucket) * (size_t)(1 + e->n_bin) +
                        (size_t)(j < 64 ? 0 : 1 + bin)] += a[i * e->n + j];
            }
        }
        if (h == 0)
            e->a = a;
        else
            free(a);
    }
    free(lse);
}

static void brute_check(rig *r, const char *what, const mem *m, const double *expected, size_t n) {
    unsigned char *image = fetch(r, m, 0);
    const float *y = (const float *)(const void *)(image + GUARD_BYTES);
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += (y[i] - expected[i]) * (y[i] - expected[i]);
        power += expected[i] * expected[i];
    }
    r->cases++;
    const double nmse = error / power;
    if (!(nmse <= 1e-12)) {
        char text[160];
        (void)snprintf(text, sizeof text, "%s: NMSE %.2e against the full matrix", what, nmse);
        fail(r, text);
    }
    if (nmse > r->worst) r->worst = nmse;
    free(image);
}

static void brute_map(rig *r, const brute *e, const float *q, int32_t d_head) {
    enum { ROWS = 7, COLS = 11 };
    const int32_t q0 = 13, q1 = e->n - 3, k0 = 5, k1 = e->n;
    double mass[ROWS * COLS] = {0}, max[ROWS * COLS] = {0};
    for (int32_t i = q0; i < q1; i++)
        for (int32_t j = k0; j < k1; j++) {
            int32_t row = 0, col = 0;
            while (q0 + (row + 1) * (q1 - q0) / ROWS <= i)
                row++;
            while (k0 + (col + 1) * (k1 - k0) / COLS <= j)
                col++;
            mass[row * COLS + col] += e->a[i * e->n + j];
            max[row * COLS + col] = fmax(max[row * COLS + col], e->a[i * e->n + j]);
        }
    const size_t count = (size_t)e->n * (size_t)d_head;
    float *qh = floats(r, count, NORMAL), *kh = floats(r, count, NORMAL);
    for (size_t i = 0; i < count; i++) {
        qh[i] = q[(i / (size_t)d_head) * (size_t)e->n_head * (size_t)d_head + i % (size_t)d_head];
        kh[i] = (float)e->c->k[i];
    }
    const mem *dq = mem_floats(r, qh, count), *dk = mem_floats(r, kh, count);
    const mem *dm = mem_new(r, NULL, sizeof(float) * ROWS * COLS),
              *dx = mem_new(r, NULL, sizeof(float) * ROWS * COLS);
    CALL(attn_map, 0, .q = F(dq, 0), .k = F(dk, 0), .d_head = d_head, .span = e->span[0], .q0 = q0, .q1 = q1,
         .k0 = k0, .k1 = k1, .rows = ROWS, .cols = COLS, .scale = 1 / sqrtf((float)d_head), .mass = F(dm, 0),
         .max = F(dx, 0), .measure_span = 128);
    brute_check(r, "map mass", dm, mass, ROWS * COLS);
    brute_check(r, "map max", dx, max, ROWS * COLS);
}

static void brute_case(rig *r, uint64_t seed, int32_t group, int32_t d_head) {
    const int32_t n = 200 + (int32_t)(seed * 37 % 150), n_head = 2 * group, bucket_tok = 40;
    if (!case_begin(r, seed, "brute n %d heads %d/2 d_head %d", n, n_head, d_head)) return;
    cache c = {.n_seq = 1,
               .n_head_kv = 2,
               .group = group,
               .d_head = d_head,
               .max_pages = 9,
               .type = (moa_kv_type)(seed % MOA_N_KV_TYPE)};
    c.n_tok = calloc(1, sizeof *c.n_tok);
    c.n_tok[0] = n;
    int32_t span[MAX_HEADS], measure[MAX_HEADS], zero = 0, all = 1 << 24;
    for (int32_t h = 0; h < n_head; h++) {
        span[h] = 128 + 64 * below(r, 5);
        measure[h] = 128 + 64 * below(r, 5);
    }
    cache_fill(r, &c, &zero, (int32_t[]){all, all}, false, (input_kind)(seed % 2));
    const size_t nq = (size_t)n * (size_t)n_head * (size_t)d_head,
                 ns = (size_t)n * (size_t)n_head * MOA_N_STAT, nh = (size_t)n_head * 8 * (1 + N_BIN);
    float *q = floats(r, nq, NORMAL);
    brute e = {.n = n,
               .n_head = n_head,
               .d_head = d_head,
               .group = group,
               .n_bin = N_BIN,
               .c = &c,
               .span = span,
               .measure = measure};
    double *qd = calloc(nq, sizeof *qd);
    for (size_t i = 0; i < nq; i++)
        qd[i] = q[i];
    e.q = qd;
    e.o = calloc(nq, sizeof *e.o);
    e.stat = calloc(ns, sizeof *e.stat);
    e.hist = calloc(nh, sizeof *e.hist);
    const int32_t first = seed % 3 == 0 ? 70 : 0, n_tok = n - first; /* a later chunk of a prompt */
    brute_expect(&e, first, bucket_tok);
    const size_t skip = (size_t)first * (size_t)n_head;
    const mem *dq = mem_new(r, q + skip * (size_t)d_head, (nq - skip * (size_t)d_head) * 4),
              *o = mem_new(r, NULL, (nq - skip * (size_t)d_head) * 4);
    const mem *sp = mem_new(r, span, sizeof span), *ms = mem_new(r, measure, sizeof measure),
              *stat = mem_new(r, NULL, (ns - skip * MOA_N_STAT) * 4);
    const mem *hist = mem_floats(r, calloc(nh, 4), nh);
    CALL(attn_prefill, 0, .q = F(dq, 0), .o = F(o, 0), .kv = view(&c, 0), .span = I(sp, 0), .span_host = span,
         .pos0 = first, .n_tok = n_tok, .n_head = n_head, .scale = 1 / sqrtf((float)d_head),
         .probe = {.stat = F(stat, 0),
                   .measure_span = I(ms, 0),
                   .hist = F(hist, 0),
                   .n_bin = N_BIN,
                   .bucket_tok = bucket_tok});
    brute_check(r, "prefill o", o, e.o + skip * (size_t)d_head, nq - skip * (size_t)d_head);
    brute_check(r, "prefill stat", stat, e.stat + skip * MOA_N_STAT, ns - skip * MOA_N_STAT);
    brute_check(r, "prefill hist", hist, e.hist, nh);
    const int32_t last = n - 1;
    const size_t at = (size_t)last * (size_t)n_head;
    const mem *dq1 = mem_new(r, q + at * (size_t)d_head, (nq - at * (size_t)d_head) * 4),
              *o1 = mem_new(r, NULL, (nq - at * (size_t)d_head) * 4);
    const mem *stat1 = mem_new(r, NULL, (ns - at * MOA_N_STAT) * 4), *pos = mem_new(r, &last, 4);
    CALL(attn_decode, 0, .q = F(dq1, 0), .o = F(o1, 0), .kv = view(&c, 0), .pos = I(pos, 0), .span = I(sp, 0),
         .span_seq_stride = 0, .n_seq = 1, .n_head = n_head, .scale = 1 / sqrtf((float)d_head),
         .probe = {.stat = F(stat1, 0), .measure_span = I(ms, 0)});
    brute_check(r, "decode o", o1, e.o + at * (size_t)d_head, nq - at * (size_t)d_head);
    brute_check(r, "decode stat", stat1, e.stat + at * MOA_N_STAT, ns - at * MOA_N_STAT);
    brute_map(r, &e, q, d_head);
    free(q);
    free(qd);
    free(e.o);
    free(e.stat);
    free(e.hist);
    free(e.a);
    cache_free(&c);
    case_end(r);
}

void group_brute(rig *r) {
    uint64_t seed = 1;
    for (int g = 0; g < 5; g++)
        for (int d = 0; d < 3; d++)
            brute_case(r, seed++, group_sizes[g], head_sizes[d]);
}
