/* attention.c -- attn_prefill and attn_decode under spans, with and without the probe. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/ops/ops.h"

typedef struct attn_shape {
    int32_t n_tok, pos0; /* prefill; n_tok sequences in decode */
    int32_t n_head_kv, group, d_head;
    moa_kv_type type;
    input_kind kind;
    bool probe;
} attn_shape;

/* spans a head may have when n tokens are there: shortest, below, at, above, dense */
static int32_t pick_span(rig *r, int32_t n) {
    const int32_t around = moa_roundup64(n);
    const int32_t list[] = {128, 192, 256, around - 64, around, around + 64, 1 << 24};
    const int32_t s = list[below(r, 7)];
    return s < MOA_SPAN_MIN ? MOA_SPAN_MIN : s;
}

static const mem *hist_new(rig *r, int32_t n_head) {
    const size_t n = (size_t)n_head * MOA_HIST_BUCKETS * (1 + N_BIN);
    float *x = floats(r, n, NORMAL); /* it is added to */
    return mem_floats(r, x, n);
}

/* skip: rows of stat that are not asked for, or NULL */
static void attn_compare(rig *r, const mem *o, const mem *stat, const bool *skip, int32_t n_head, const mem *hist) {
    compare(r, o, ATTENTION, "o", 1, NULL, 1);
    if (stat) compare(r, stat, STATISTIC, "stat", MOA_N_STAT, skip, (size_t)n_head * MOA_N_STAT);
    if (hist) compare(r, hist, STATISTIC, "hist", 1, NULL, 1);
}

/* all queries, or a chunk of a prompt of which some blocks are looked at */
static moa_probe_rows pick_rows(uint64_t seed, int32_t pos0, int32_t n) {
    const int32_t before = (int32_t)(seed % 5) * 50, after = (int32_t)(seed % 7) * 40;
    if (seed / 2 % 3 == 0) return (moa_probe_rows){0};
    return (moa_probe_rows){.from = pos0 < before ? 0 : pos0 - before,
                            .end = n + after,
                            .every = 1 + (int32_t)(seed / 3 % 6),
                            .seed = (uint32_t)seed};
}

static void prefill_case(rig *r, uint64_t seed, const attn_shape *a) {
    const int32_t n_head = a->n_head_kv * a->group, n = a->pos0 + a->n_tok, seq = (int32_t)(seed % 3);
    if (!case_begin(r, seed, "attn_prefill n_tok %d pos0 %d heads %d/%d d_head %d %s %s%s", a->n_tok, a->pos0,
                    n_head, a->n_head_kv, a->d_head, type_name(a->type),
                    input_names[a->kind], a->probe ? " probe" : ""))
        return;
    cache c = {.n_seq = 3,
               .n_head_kv = a->n_head_kv,
               .group = a->group,
               .d_head = a->d_head,
               .max_pages = (n + 63) / 64 + 1,
               .type = a->type};
    c.n_tok = calloc(3, sizeof *c.n_tok);
    c.n_tok[seq] = n;
    int32_t span[MAX_HEADS], measure[MAX_HEADS], widest[3 * MAX_HEADS] = {0};
    const int32_t past[3] = {a->pos0, a->pos0, a->pos0};
    for (int32_t h = 0; h < n_head; h++) {
        span[h] = pick_span(r, n);
        measure[h] = pick_span(r, n);
        if (span[h] > widest[seq * a->n_head_kv + h / a->group])
            widest[seq * a->n_head_kv + h / a->group] = span[h];
    }
    cache_fill(r, &c, past, widest, false, a->kind);
    const size_t count = (size_t)a->n_tok * (size_t)n_head * (size_t)a->d_head;
    const mem *q = mem_floats(r, floats(r, count, a->kind), count),
              *o = mem_new(r, NULL, count * sizeof(float));
    const mem *sp = mem_new(r, span, sizeof *span * (size_t)n_head),
              *ms = mem_new(r, measure, sizeof *measure * (size_t)n_head);
    const mem *stat =
        a->probe ? mem_new(r, NULL, sizeof(float) * (size_t)a->n_tok * (size_t)n_head * MOA_N_STAT) : NULL;
    const mem *hist = a->probe ? hist_new(r, n_head) : NULL;
    const moa_probe_rows rows = pick_rows(seed, a->pos0, n);
    bool *skip = calloc((size_t)a->n_tok, sizeof *skip);
    for (int32_t i = 0; skip && i < a->n_tok; i++)
        skip[i] = moa_probe_weight(&rows, a->pos0 + i) == 0;
    for (int i = 0; i < 2; i++)
        CALL(attn_prefill, i, .q = F(q, i), .o = F(o, i), .kv = view(&c, i), .span = I(sp, i),
             .span_host = span, .seq = seq, .pos0 = a->pos0, .n_tok = a->n_tok, .n_head = n_head,
             .scale = 1 / sqrtf((float)a->d_head),
             .probe = {.stat = F(stat, i),
                       .measure_span = seed % 2 ? I(ms, i) : NULL,
                       .hist = F(hist, i),
                       .n_bin = N_BIN,
                       .bucket_tok = (n + 7) / 8,
                       .rows = rows});
    attn_compare(r, o, stat, skip, n_head, hist);
    free(skip);
    cache_free(&c);
    case_end(r);
}

const int32_t group_sizes[5] = {1, 3, 4, 6, 7}, head_sizes[5] = {64, 80, 128, 96, 256};

void group_attn_prefill(rig *r) {
    static const int32_t starts[] = {0, 63, 64, 1000};
    uint64_t seed = 1;
    for (int round = 0; round < 3; round++)
        for (int t = 0; t < N_TOK_COUNT; t++)
            for (int p = 0; p < 4; p++, seed++) {
                const attn_shape a = {.n_tok = tok_counts[t],
                                      .pos0 = starts[p],
                                      .group = group_sizes[seed % 5],
                                      .n_head_kv = 1 + (int32_t)(seed % 2),
                                      .d_head = head_sizes[seed / 2 % 8 < 6 ? seed / 2 % 3 : seed / 2 % 2 + 3],
                                      .type = (moa_kv_type)((seed + seed / 4) % MOA_N_KV_TYPE),
                                      .kind = (input_kind)(seed / 3 % N_INPUT),
                                      .probe = seed % 3 != 0};
                prefill_case(r, seed, &a);
            }
}

static void decode_case(rig *r, uint64_t seed, const attn_shape *a) {
    static const int32_t positions[] = {0, 1, 63, 64, 127, 128, 191, 192, 1000, 1023, 517, 1024, 2049, 2580};
    const int32_t n_head = a->n_head_kv * a->group, n_seq = a->n_tok;
    if (!case_begin(r, seed, "attn_decode n_seq %d heads %d/%d d_head %d %s %s%s", n_seq, n_head,
                    a->n_head_kv, a->d_head, type_name(a->type), input_names[a->kind],
                    a->probe ? " probe" : ""))
        return;
    cache c = {.n_seq = n_seq,
               .n_head_kv = a->n_head_kv,
               .group = a->group,
               .d_head = a->d_head,
               .max_pages = 41,
               .type = a->type};
    int32_t pos[17], past[17], span[17 * (MAX_HEADS + 2)] = {0}, widest[17 * MAX_HEADS] = {0},
                                                      measure[MAX_HEADS];
    c.n_tok = calloc((size_t)n_seq, sizeof *c.n_tok);
    for (int32_t s = 0; s < n_seq; s++) {
        pos[s] = n_seq > 2 && s % 4 == 2 ? -1
                 : seed % 2              ? positions[below(r, 14)]
                                         : below(r, seed % 3 ? 1024 : 2600);
        c.n_tok[s] = pos[s] + 1;
        past[s] = pos[s] < 0 ? 0 : pos[s];
        for (int32_t h = 0; h < n_head; h++) {
            int32_t *sp = &span[s * (MAX_HEADS + 2) + h], *w = &widest[s * a->n_head_kv + h / a->group];
            *sp = pick_span(r, past[s] + 1);
            if (*sp > *w) *w = *sp;
        }
    }
    for (int32_t h = 0; h < n_head; h++)
        measure[h] = pick_span(r, 500);
    cache_fill(r, &c, past, widest, false, a->kind);
    const size_t count = (size_t)n_seq * (size_t)n_head * (size_t)a->d_head;
    const mem *q = mem_floats(r, floats(r, count, a->kind), count),
              *o = mem_new(r, NULL, count * sizeof(float));
    const mem *sp = mem_new(r, span, sizeof span), *ms = mem_new(r, measure, sizeof measure),
              *ps = mem_new(r, pos, sizeof *pos * (size_t)n_seq);
    const mem *stat =
        a->probe ? mem_new(r, NULL, sizeof(float) * (size_t)n_seq * (size_t)n_head * MOA_N_STAT) : NULL;
    const mem *hist = a->probe ? hist_new(r, n_head) : NULL;
    for (int i = 0; i < 2; i++)
        CALL(attn_decode, i, .q = F(q, i), .o = F(o, i), .kv = view(&c, i), .pos = I(ps, i), .span = I(sp, i),
             .span_seq_stride = MAX_HEADS + 2, .n_seq = n_seq, .n_head = n_head,
             .scale = 1 / sqrtf((float)a->d_head),
             .probe = {.stat = F(stat, i),
                       .measure_span = seed % 2 ? I(ms, i) : NULL,
                       .hist = F(hist, i),
                       .n_bin = N_BIN,
                       .bucket_tok = 128});
    attn_compare(r, o, stat, NULL, n_head, hist);
    cache_free(&c);
    case_end(r);
}

void group_attn_decode(rig *r) {
    static const int32_t n_seqs[] = {1, 2, 5, 17};
    uint64_t seed = 1;
    for (int round = 0; round < 15; round++)
        for (int s = 0; s < 4; s++, seed++) {
            const attn_shape a = {.n_tok = n_seqs[s],
                                  .group = group_sizes[seed % 5],
                                  .n_head_kv = 1 + (int32_t)(seed % 3),
                                  .d_head = head_sizes[seed / 2 % 8 < 6 ? seed / 2 % 3 : seed / 2 % 2 + 3],
                                  .type = (moa_kv_type)((seed + seed / 4) % MOA_N_KV_TYPE),
                                  .kind = (input_kind)(seed / 3 % N_INPUT),
                                  .probe = seed % 3 != 0};
            decode_case(r, seed, &a);
        }
}

/* SmolLM2's heads (9 over 3, 64 wide): a chunk of n_tok queries that ends at n tokens, or one query of each of n_tok sequences */
static void bench_attn(rig *r, bool prefill, int32_t n_tok, int32_t n, int32_t span_tok, bool probe) {
    const int32_t n_head = 9, n_seq = prefill ? 1 : n_tok, pos0 = n - n_tok;
    (void)case_begin(r, 1, "bench attention");
    cache c = {.n_seq = n_seq,
               .n_head_kv = 3,
               .group = 3,
               .d_head = 64,
               .max_pages = n / 64 + 1,
               .type = MOA_KV_F16};
    int32_t *zero = calloc((size_t)n_seq, 4), *widest = calloc((size_t)n_seq * 3, 4),
            *pos = calloc((size_t)n_seq, 4), span[9];
    c.n_tok = calloc((size_t)n_seq, 4);
    if (!zero || !widest || !pos || !c.n_tok) abort();
    for (int32_t s = 0; s < n_seq; s++) {
        c.n_tok[s] = n;
        pos[s] = n - 1;
        for (int k = 0; k < 3; k++)
            widest[s * 3 + k] = 1 << 24;
    }
    for (int h = 0; h < n_head; h++)
        span[h] = span_tok;
    cache_fill(r, &c, zero, widest, false, NORMAL);
    const size_t count = (size_t)n_tok * (size_t)n_head * 64;
    const mem *q = mem_floats(r, floats(r, count, NORMAL), count), *o = mem_new(r, NULL, count * 4),
              *sp = mem_new(r, span, sizeof span), *ps = mem_new(r, pos, 4 * (size_t)n_seq),
              *stat = mem_new(r, NULL, (size_t)n_tok * 9 * MOA_N_STAT * 4), *hist = hist_new(r, 9);
    const moa_probe on = {.stat = F(stat, 1), .hist = F(hist, 1), .n_bin = N_BIN, .bucket_tok = 64},
                    off = {0};
    double best = 1e30;
    const double end = now_s() + 0.6;
    for (int calls = 0; now_s() < end || calls < 2; calls++) {
        const double start = now_s();
        if (prefill)
            CALL(attn_prefill, 1, .q = F(q, 1), .o = F(o, 1), .kv = view(&c, 1), .span = I(sp, 1),
                 .span_host = span, .pos0 = pos0, .n_tok = n_tok, .n_head = n_head, .scale = 0.125f,
                 .probe = probe ? on : off);
        else
            CALL(attn_decode, 1, .q = F(q, 1), .o = F(o, 1), .kv = view(&c, 1), .pos = I(ps, 1),
                 .span = I(sp, 1), .n_seq = n_seq, .n_head = n_head, .scale = 0.125f,
                 .probe = probe ? on : off);
        sync_tested(r);
        if (now_s() - start < best) best = now_s() - start;
    }
    double pairs = 0;
    for (int32_t t = 0; t < n_tok; t++)
        pairs += moa_n_seen(span_tok, prefill ? pos0 + t : n - 1);
    (void)printf("  %s n_tok %4d of %5d, span %7d%s  %9.1f us  %7.2f GFLOP/s\n",
                 prefill ? "attn_prefill" : "attn_decode ", n_tok, n, span_tok, probe ? ", probe" : "       ",
                 best * 1e6, pairs * n_head * 4 * 64 / best * 1e-9);
    free(zero);
    free(widest);
    free(pos);
    cache_free(&c);
    case_end(r);
}

void bench_attn_prefill(rig *r) {
    for (int probe = 0; probe < 2; probe++) {
        bench_attn(r, true, 512, 512, 1 << 20, probe);
        bench_attn(r, true, 512, 4096, 1 << 20, probe);
        bench_attn(r, true, 512, 4096, 1024, probe);
        bench_attn(r, true, 512, 4096, 128, probe);
    }
}

void bench_attn_decode(rig *r) {
    for (int probe = 0; probe < 2; probe++) {
        bench_attn(r, false, 1, 512, 1 << 20, probe);
        bench_attn(r, false, 1, 4096, 1 << 20, probe);
        bench_attn(r, false, 1, 4096, 256, probe);
        bench_attn(r, false, 8, 4096, 1 << 20, probe);
    }
}
