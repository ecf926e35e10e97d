/* Attention of one query at a time: scores of all visible keys, softmax, weighted sum of values, everything in double.
 *
 *   s_j = scale q.k_j        A_j = exp(s_j - lse)        o = sum_j A_j v_j        over the j that moa_sees() admits
 *
 * Prefill and decode are the same page: they differ only in where the queries' positions and spans stand. Keys are read through
 * the page table; a visible key whose page is gone is the engine's mistake and is said, not computed around.
 * What the probe wants is read off A. */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"
#include "core/cpu/half.h"

typedef struct query {
    const float *q; /* (d_head) */
    float *o;       /* (d_head) */
    const moa_kv_view *kv;
    int32_t seq, head_kv, pos, span;
    float scale;
    double *a;   /* scratch (pos + 1): scores, then A; 0 where not visible */
    double *acc, *k, *v; /* scratch (d_head) */
    double lse;  /* out */
} query;

static double element(moa_kv_type type, const unsigned char *row, int32_t i) {
    if (type == MOA_KV_F32) return ((const float *)(const void *)row)[i];
    const uint16_t x = ((const uint16_t *)(const void *)row)[i];
    return type == MOA_KV_F16 ? moa_half_to_float(x) : moa_bf16_to_float(x);
}

/* K and V of token j, (d_head) each; false: the page is gone */
static bool token(const query *s, int32_t j, double *k, double *v) {
    const moa_kv_view *kv = s->kv;
    unsigned char *page = moa_kv_page_of(kv, s->seq, s->head_kv, j);
    if (!page) return false;
    const unsigned char *k_row = page + (size_t)(j % MOA_PAGE_TOK) * moa_kv_row_bytes(kv->type, kv->d_head),
                        *v_row = k_row + moa_kv_v_at(kv->type, kv->d_head);
    for (int32_t i = 0; i < kv->d_head; i++) {
        if (kv->type == MOA_KV_Q8) {
            k[i] = moa_kv_k_value((int8_t)k_row[i], moa_kv_k_exponents(page, kv->d_head)[i]);
            v[i] = (double)(int8_t)v_row[i] * moa_kv_v_scales(page, kv->d_head)[j % MOA_PAGE_TOK];
        } else {
            k[i] = element(kv->type, k_row, i);
            v[i] = element(kv->type, v_row, i);
        }
    }
    return true;
}

static moa_status attend(query *s, moa_err *err) {
    const int32_t d_head = s->kv->d_head;
    double max = -INFINITY, sum = 0;
    for (int32_t j = 0; j <= s->pos; j++) {
        s->a[j] = -INFINITY;
        if (!moa_sees(s->span, s->pos, j)) continue;
        if (!token(s, j, s->k, s->v))
            return moa_fail(err, MOA_E_FAILED,
                            "query %d of sequence %d sees key %d of KV head %d, whose page is gone", s->pos,
                            s->seq, j, s->head_kv);
        double dot = 0;
        for (int32_t i = 0; i < d_head; i++)
            dot += s->q[i] * s->k[i];
        s->a[j] = dot * s->scale;
        if (s->a[j] > max) max = s->a[j];
    }
    for (int32_t i = 0; i < d_head; i++)
        s->acc[i] = 0;
    for (int32_t j = 0; j <= s->pos; j++)
        sum += exp(s->a[j] - max);
    s->lse = max + log(sum);
    for (int32_t j = 0; j <= s->pos; j++) {
        const bool sees = moa_sees(s->span, s->pos, j);
        s->a[j] = sees ? exp(s->a[j] - s->lse) : 0;
        if (!sees) continue;
        (void)token(s, j, s->k, s->v); /* it was there above */
        for (int32_t i = 0; i < d_head; i++)
            s->acc[i] += s->a[j] * s->v[i];
    }
    for (int32_t i = 0; i < d_head; i++)
        s->o[i] = (float)s->acc[i];
    return MOA_OK;
}

/* sums (n_head, MOA_HIST_BUCKETS, 1 + n_bin): the histogram in double, added to the probe's when the operation ends */
static void probe(const moa_probe *p, const query *s, int64_t row, int32_t head, int32_t n_head,
                  double *sums) {
    const int32_t weight = moa_probe_weight(&p->rows, s->pos);
    if (weight == 0) return;
    if (p->stat) {
        const int32_t measure = p->measure_span ? p->measure_span[head] : s->span;
        double entropy = 0, sink = 0, window = 0, distance = 0;
        for (int32_t j = 0; j <= s->pos; j++) {
            const double a = s->a[j];
            if (a > 0) entropy -= a * log(a);
            if (j < MOA_SINK_TOK)
                sink += a;
            else if (s->pos - j < moa_window(measure))
                window += a;
            distance += a * (s->pos - j);
        }
        float *stat = p->stat + (row * n_head + head) * MOA_N_STAT;
        stat[MOA_STAT_ENTROPY] = (float)entropy;
        stat[MOA_STAT_SINK] = (float)sink;
        stat[MOA_STAT_WINDOW] = (float)window;
        stat[MOA_STAT_DISTANCE] = (float)distance;
        stat[MOA_STAT_LSE] = (float)s->lse;
    }
    if (p->hist) {
        const int32_t bucket =
            s->pos / p->bucket_tok < MOA_HIST_BUCKETS ? s->pos / p->bucket_tok : MOA_HIST_BUCKETS - 1;
        double *hist = sums + ((int64_t)head * MOA_HIST_BUCKETS + bucket) * (1 + p->n_bin);
        for (int32_t j = 0; j <= s->pos; j++) {
            const int32_t bin =
                (s->pos - j) / MOA_PAGE_TOK < p->n_bin ? (s->pos - j) / MOA_PAGE_TOK : p->n_bin - 1;
            hist[j < MOA_SINK_TOK ? 0 : 1 + bin] += weight * s->a[j];
        }
    }
}

/* all scratch of an operation; s and sums are NULL or malloc'ed afterwards */
static moa_status scratch(query *s, double **sums, const moa_probe *p, int32_t n_head, size_t n_key,
                          moa_err *err) {
    const size_t n_sum = p->hist ? (size_t)n_head * MOA_HIST_BUCKETS * (size_t)(1 + p->n_bin) : 0;
    s->a = moa_cpu_scratch(n_key, sizeof *s->a, err);
    s->acc = moa_cpu_scratch(3 * (size_t)s->kv->d_head, sizeof *s->acc, err);
    s->k = s->acc ? s->acc + s->kv->d_head : NULL;
    s->v = s->acc ? s->k + s->kv->d_head : NULL;
    *sums = moa_cpu_scratch(n_sum, sizeof **sums, err);
    for (size_t i = 0; *sums && i < n_sum; i++)
        (*sums)[i] = 0;
    return s->a && s->acc && *sums ? MOA_OK : MOA_E_MEMORY;
}

static void finish(query *s, double *sums, const moa_probe *p, int32_t n_head) {
    const size_t n_sum = p->hist ? (size_t)n_head * MOA_HIST_BUCKETS * (size_t)(1 + p->n_bin) : 0;
    for (size_t i = 0; sums && i < n_sum; i++)
        p->hist[i] += (float)sums[i];
    free(s->a);
    free(s->acc);
    free(sums);
}

moa_status moa_ref_attn_prefill(moa_backend *b, const moa_args_attn_prefill *a, moa_err *err) {
    (void)b;
    const int32_t d_head = a->kv.d_head, group = a->n_head / a->kv.n_head_kv;
    query s = {.kv = &a->kv, .seq = a->seq, .scale = a->scale};
    double *sums = NULL;
    moa_status status = scratch(&s, &sums, &a->probe, a->n_head, (size_t)a->pos0 + (size_t)a->n_tok, err);
    for (int32_t t = 0; t < a->n_tok; t++)
        for (int32_t h = 0; h < a->n_head && status == MOA_OK; h++) {
            const int64_t row = ((int64_t)t * a->n_head + h) * d_head;
            s.q = a->q + row;
            s.o = a->o + row;
            s.pos = a->pos0 + t;
            s.head_kv = h / group;
            s.span = a->span[h];
            status = attend(&s, err);
            if (status == MOA_OK) probe(&a->probe, &s, t, h, a->n_head, sums);
        }
    finish(&s, sums, &a->probe, a->n_head);
    return status;
}

static void idle(const moa_args_attn_decode *a, int32_t seq) {
    const int64_t n = (int64_t)a->n_head * a->kv.d_head, n_stat = (int64_t)a->n_head * MOA_N_STAT;
    for (int64_t i = 0; i < n; i++)
        a->o[seq * n + i] = 0;
    for (int64_t i = 0; a->probe.stat && i < n_stat; i++)
        a->probe.stat[seq * n_stat + i] = 0;
}

moa_status moa_ref_attn_decode(moa_backend *b, const moa_args_attn_decode *a, moa_err *err) {
    (void)b;
    const int32_t d_head = a->kv.d_head, group = a->n_head / a->kv.n_head_kv;
    query s = {.kv = &a->kv, .scale = a->scale};
    double *sums = NULL;
    moa_status status = scratch(&s, &sums, &a->probe, a->n_head, (size_t)a->kv.max_pages * MOA_PAGE_TOK, err);
    for (s.seq = 0; s.seq < a->n_seq && status == MOA_OK; s.seq++) {
        s.pos = a->pos[s.seq];
        if (s.pos < 0) {
            idle(a, s.seq);
            continue;
        }
        for (int32_t h = 0; h < a->n_head && status == MOA_OK; h++) {
            const int64_t row = ((int64_t)s.seq * a->n_head + h) * d_head;
            s.q = a->q + row;
            s.o = a->o + row;
            s.head_kv = h / group;
            s.span = a->span[s.seq * a->span_seq_stride + h];
            status = attend(&s, err);
            if (status == MOA_OK) probe(&a->probe, &s, s.seq, h, a->n_head, sums);
        }
    }
    finish(&s, sums, &a->probe, a->n_head);
    return status;
}
