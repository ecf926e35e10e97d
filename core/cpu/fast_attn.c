/* fast_attn.c -- attention over pages, prefill and decode by the same routine.
 *
 * A task is one KV head and a tile of up to 64 consecutive queries of one sequence (decode: one query of one sequence), for all
 * query heads of the group: rows are (head of the group, query). It walks the pages that some row sees, once:
 *
 *   K page -> (d_head, 64) float      S = Q K           rows x 64      by head, if that head sees the page at all
 *   V page -> (64, d_head) float      online softmax    each row in its own visible range [lo, hi) of the page
 *                                     O = O + P V
 *
 * A long decode is also cut along the keys, 16 pages a task, so that one sequence keeps all threads busy; the parts are merged
 * in their order by their maxima and sums. Where it is cut depends on positions alone.
 *
 * With probes a second walk recomputes S with the log-sum-exp known, so that statistics are sums of final probabilities and the
 * first walk is the same with probes and without. Histograms are summed for each task apart and then in the order of tasks:
 * threads do not change them. */
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"

enum { TILE_TOK = 64, CHUNK_PAGES = 16, STAT_SUMS = 4 /* mass is 1: entropy, sink, window, place */ };

typedef struct attn {
    const moa_kern *kern;
    const float *q;
    float *o;
    moa_kv_view kv;
    moa_probe probe;
    float scale;
    int32_t n_head, group, d_pad;
    int32_t tile_tok, n_task, rows;       /* rows: most of a tile */
    int32_t n_chunk;                      /* parts along the keys; 1: not cut */
    float *parts;                         /* (n_task, n_chunk, group, d_pad + 2): o, max, sum */
    const moa_args_attn_prefill *prefill; /* or */
    const moa_args_attn_decode *decode;
    float *scratch; /* (n_threads, scratch_floats) */
    size_t scratch_floats;
    float *hist; /* (n_task, group, n_bucket, 1 + n_bin) */
    int32_t n_bucket;
    /* the first missing page that was met */
    atomic_bool gone;
    int32_t gone_seq, gone_head, gone_page;
} attn;

/* what a task works on */
typedef struct tile {
    int32_t seq, head_kv, pos, n_tok; /* queries at positions pos .. pos + n_tok - 1 */
    int64_t row;                      /* of the first query in q, o and stat, in rows of n_head heads */
    const int32_t *span;              /* (group) of this KV head's query heads */
    int32_t bucket;                   /* first histogram bucket */
    /* scratch: row r = head of the group * n_tok + query */
    float *q, *o, *s, *max,
        *sum;     /* (rows, d_head), (rows, d_pad), (rows of a head, or all, 64), (rows), (rows) */
    float *k, *v; /* (d_head, 64), (64, d_pad) */
    double *stat; /* (rows, STAT_SUMS) */
    float *hist;  /* (group, n_bucket, 1 + n_bin) or NULL */
} tile;

/* keys of page p that query i sees, as indices in the page */
static void visible(int32_t span, int32_t i, int32_t p, int32_t *lo, int32_t *hi) {
    const int32_t first = p == 0 ? 0 : moa_window_first(span, i) - p * MOA_PAGE_TOK,
                  end = i + 1 - p * MOA_PAGE_TOK;
    *lo = first > 0 ? first : 0;
    *hi = end < MOA_PAGE_TOK ? end : MOA_PAGE_TOK;
}

/* does some query of the tile see some key of page p? The first query looks back furthest; p is not beyond the last. */
static bool head_sees(const tile *t, int32_t head, int32_t p) {
    return p == 0 || p * MOA_PAGE_TOK + MOA_PAGE_TOK - 1 >= moa_window_first(t->span[head], t->pos);
}

/* --- the walk -------------------------------------------------------------------------------------------------------- */

typedef void (*row_fn)(const attn *a, const tile *t, int32_t head, int32_t r, float *s, int32_t p);

/* S of all rows that may see the page, then row_work on each that does; with_v: O += P V */
static void page_step(const attn *a, const tile *t, int32_t p, row_fn row_work, bool with_v) {
    const bool together = t->n_tok <= 4; /* few rows a head: one product for the whole group */
    for (int32_t h = 0; h < a->group; h++) {
        const int32_t n_row = together ? a->group * t->n_tok : t->n_tok, first = together ? 0 : h * t->n_tok;
        if (!together && !head_sees(t, h, p)) continue;
        const moa_gemm qk = {.m = n_row,
                             .n = MOA_PAGE_TOK,
                             .k = a->kv.d_head,
                             .a = t->q + (int64_t)first * a->kv.d_head,
                             .lda = a->kv.d_head,
                             .b = t->k,
                             .ldb = MOA_PAGE_TOK,
                             .c = t->s,
                             .ldc = MOA_PAGE_TOK};
        a->kern->gemm(&qk);
        for (int32_t r = 0; r < n_row; r++)
            row_work(a, t, (first + r) / t->n_tok, first + r, t->s + r * MOA_PAGE_TOK, p);
        const moa_gemm pv = {.m = n_row,
                             .n = a->d_pad,
                             .k = MOA_PAGE_TOK,
                             .a = t->s,
                             .lda = MOA_PAGE_TOK,
                             .b = t->v,
                             .ldb = a->d_pad,
                             .c = t->o + (int64_t)first * a->d_pad,
                             .ldc = a->d_pad,
                             .accumulate = true};
        if (with_v) a->kern->gemm(&pv);
        if (together) break;
    }
}

/* pages from .. to - 1, as far as there are tokens; false: a page that is seen is gone */
static bool walk(attn *a, const tile *t, int32_t from, int32_t to, row_fn row_work, bool with_v) {
    const moa_kv_view *kv = &a->kv;
    const int32_t last = (t->pos + t->n_tok - 1) / MOA_PAGE_TOK;
    const int32_t *table = kv->table + t->seq * kv->table_seq_stride + (int64_t)t->head_kv * kv->max_pages;
    const size_t page_bytes = moa_kv_page_bytes(kv->type, kv->d_head);
    for (int32_t p = from; p <= last && p < to; p++) {
        bool seen = false;
        for (int32_t h = 0; h < a->group && !seen; h++)
            seen = head_sees(t, h, p);
        if (!seen) continue;
        if (table[p] < 0) {
            if (!atomic_exchange(&a->gone, true)) {
                a->gone_seq = t->seq;
                a->gone_head = t->head_kv;
                a->gone_page = p;
            }
            return false;
        }
        /* tokens beyond the last query are not there yet: whatever lies in the page is not looked at */
        const int32_t left = t->pos + t->n_tok - p * MOA_PAGE_TOK,
                      n_tok = left < MOA_PAGE_TOK ? left : MOA_PAGE_TOK;
        const char *page = (const char *)kv->pool + (size_t)table[p] * page_bytes;
        a->kern->page_k(page, kv->type, n_tok, kv->d_head, t->k);
        if (with_v) a->kern->page_v(page, kv->type, n_tok, kv->d_head, a->d_pad, t->v);
        page_step(a, t, p, row_work, with_v);
    }
    return true;
}

static void softmax_row(const attn *a, const tile *t, int32_t head, int32_t r, float *s, int32_t p) {
    int32_t lo, hi;
    visible(t->span[head], t->pos + r % t->n_tok, p, &lo, &hi);
    if (lo >= hi)
        memset(s, 0, sizeof *s * MOA_PAGE_TOK);
    else
        a->kern->softmax_page(s, lo, hi, &t->max[r], &t->sum[r], t->o + (int64_t)r * a->d_pad, a->d_pad);
}

/* --- probes ---------------------------------------------------------------------------------------------------------- */

static float mass(const float *s, int32_t from, int32_t to) {
    float sum = 0;
    for (int32_t j = from; j < to; j++)
        sum += s[j];
    return sum;
}

/* max[r] holds the log-sum-exp by now */
static void probe_row(const attn *a, const tile *t, int32_t head, int32_t r, float *s, int32_t p) {
    const int32_t i = t->pos + r % t->n_tok, begin = p * MOA_PAGE_TOK, weight = moa_probe_weight(&a->probe.rows, i);
    int32_t lo, hi;
    visible(t->span[head], i, p, &lo, &hi);
    if (lo >= hi || weight == 0) return;
    float sums[3];
    a->kern->stat_page(s, lo, hi, t->max[r], sums);
    if (a->probe.stat) {
        const int32_t q_head = t->head_kv * a->group + head;
        const int32_t measure = a->probe.measure_span ? a->probe.measure_span[q_head] : t->span[head];
        const int32_t w = moa_window_first(measure, i) - begin;
        double *stat = t->stat + (int64_t)r * STAT_SUMS;
        stat[0] += sums[1];
        if (p == 0)
            stat[1] += sums[0];
        else
            stat[2] += w <= lo ? sums[0] : w < hi ? mass(s, w, hi) : 0;
        stat[3] += sums[2] + (double)sums[0] * begin;
    }
    if (t->hist) {
        const int32_t n_bin = a->probe.n_bin, bucket = i / a->probe.bucket_tok < MOA_HIST_BUCKETS
                                                           ? i / a->probe.bucket_tok
                                                           : MOA_HIST_BUCKETS - 1;
        float *hist = t->hist + ((int64_t)head * a->n_bucket + bucket - t->bucket) * (1 + n_bin);
        if (p == 0) {
            hist[0] += (float)weight * sums[0];
            return;
        }
        /* distance i - j falls by one a key: up to key `turn` it is in bin far, after it in bin far - 1 */
        const int32_t distance = i - begin, far = distance / MOA_PAGE_TOK, turn = distance % MOA_PAGE_TOK + 1;
        const int32_t at = turn < lo ? lo : turn < hi ? turn : hi;
        hist[1 + (far < n_bin ? far : n_bin - 1)] += (float)weight * mass(s, lo, at);
        if (at < hi) hist[1 + (far - 1 < n_bin ? far - 1 : n_bin - 1)] += (float)weight * mass(s, at, hi);
    }
}

static void put_stat(const attn *a, const tile *t) {
    for (int32_t r = 0; r < a->group * t->n_tok; r++) {
        const int32_t i = t->pos + r % t->n_tok;
        if (moa_probe_weight(&a->probe.rows, i) == 0) continue;
        const double *sum = t->stat + (int64_t)r * STAT_SUMS;
        float *stat =
            a->probe.stat +
            ((t->row + r % t->n_tok) * a->n_head + t->head_kv * a->group + r / t->n_tok) * MOA_N_STAT;
        stat[MOA_STAT_ENTROPY] = (float)sum[0];
        stat[MOA_STAT_SINK] = (float)sum[1];
        stat[MOA_STAT_WINDOW] = (float)sum[2];
        stat[MOA_STAT_DISTANCE] = (float)(i - sum[3]);
        stat[MOA_STAT_LSE] = t->max[r];
    }
}

/* --- a task ---------------------------------------------------------------------------------------------------------- */

static size_t round16(size_t n) {
    return (n + 15) & ~(size_t)15;
}

static void scratch_place(const attn *a, tile *t, float *at) {
    const size_t rows = (size_t)a->rows, d = (size_t)a->kv.d_head, pad = (size_t)a->d_pad;
    t->stat = (double *)(void *)at;
    t->k = at + round16(rows * STAT_SUMS * 2);
    t->v = t->k + d * MOA_PAGE_TOK;
    t->o = t->v + pad * MOA_PAGE_TOK;
    t->s = t->o + rows * pad;
    t->q = t->s + rows * MOA_PAGE_TOK;
    t->max = t->q + round16(rows * d);
    t->sum = t->max + round16(rows);
}

static size_t scratch_size(const attn *a) {
    const size_t rows = (size_t)a->rows, d = (size_t)a->kv.d_head, pad = (size_t)a->d_pad;
    return round16(rows * STAT_SUMS * 2) + (d + pad) * MOA_PAGE_TOK + rows * (pad + MOA_PAGE_TOK) +
           round16(rows * d) + 2 * round16(rows);
}

/* false: an idle row */
static bool tile_of(const attn *a, int32_t task, tile *t) {
    t->head_kv = task % a->kv.n_head_kv;
    if (a->prefill) { /* the last tile sees most and goes first */
        const moa_args_attn_prefill *f = a->prefill;
        const int32_t first = (a->n_task / a->kv.n_head_kv - 1 - task / a->kv.n_head_kv) * a->tile_tok;
        t->seq = f->seq;
        t->row = first;
        t->pos = f->pos0 + first;
        t->n_tok = f->n_tok - first < a->tile_tok ? f->n_tok - first : a->tile_tok;
        t->span = f->span + t->head_kv * a->group;
    } else {
        t->seq = task / a->kv.n_head_kv;
        t->row = t->seq;
        t->pos = a->decode->pos[t->seq];
        t->n_tok = 1;
        t->span = a->decode->span + t->seq * a->decode->span_seq_stride + t->head_kv * a->group;
    }
    if (t->pos < 0) return false;
    if (a->hist) {
        const int32_t bucket = t->pos / a->probe.bucket_tok;
        t->bucket = bucket < MOA_HIST_BUCKETS ? bucket : MOA_HIST_BUCKETS - 1;
        t->hist = a->hist + (int64_t)task * a->group * a->n_bucket * (1 + a->probe.n_bin);
    }
    return true;
}

static void idle(const attn *a, const tile *t) {
    const int64_t row = t->row * a->n_head + t->head_kv * a->group;
    memset(a->o + row * a->kv.d_head, 0, sizeof *a->o * (size_t)a->group * (size_t)a->kv.d_head);
    if (a->probe.stat)
        memset(a->probe.stat + row * MOA_N_STAT, 0, sizeof *a->probe.stat * (size_t)a->group * MOA_N_STAT);
}

/* scratch, scaled queries, empty rows */
static void tile_begin(const attn *a, tile *t, int32_t thread) {
    const int32_t rows = a->group * t->n_tok, d_head = a->kv.d_head;
    scratch_place(a, t, a->scratch + (size_t)thread * a->scratch_floats);
    for (int32_t r = 0; r < rows; r++) {
        const float *q =
            a->q + ((t->row + r % t->n_tok) * a->n_head + t->head_kv * a->group + r / t->n_tok) * d_head;
        for (int32_t d = 0; d < d_head; d++)
            t->q[(int64_t)r * d_head + d] = q[d] * a->scale;
        t->max[r] = -INFINITY;
        t->sum[r] = 0;
    }
    memset(t->o, 0, sizeof *t->o * (size_t)rows * (size_t)a->d_pad);
}

/* does a query of the tile count? */
static bool looked_at(const attn *a, const tile *t) {
    for (int32_t i = 0; i < t->n_tok; i++)
        if (moa_probe_weight(&a->probe.rows, t->pos + i) > 0) return true;
    return false;
}

/* outputs, then what the probes want */
static void tile_end(attn *a, tile *t) {
    const int32_t rows = a->group * t->n_tok, d_head = a->kv.d_head;
    for (int32_t r = 0; r < rows; r++) {
        float *o =
            a->o + ((t->row + r % t->n_tok) * a->n_head + t->head_kv * a->group + r / t->n_tok) * d_head;
        const float inverse = 1 / t->sum[r];
        for (int32_t d = 0; d < d_head; d++)
            o[d] = t->o[(int64_t)r * a->d_pad + d] * inverse;
        t->max[r] += logf(t->sum[r]); /* log-sum-exp */
    }
    if ((!a->probe.stat && !a->hist) || !looked_at(a, t)) return;
    memset(t->stat, 0, sizeof *t->stat * (size_t)rows * STAT_SUMS);
    (void)walk(a, t, 0, INT32_MAX, probe_row, false);
    if (a->probe.stat) put_stat(a, t);
}

static void attend_task(void *ctx, int32_t task, int32_t thread) {
    attn *a = ctx;
    tile t = {0};
    if (!tile_of(a, task, &t)) {
        idle(a, &t);
        return;
    }
    tile_begin(a, &t, thread);
    if (walk(a, &t, 0, INT32_MAX, softmax_row, true)) tile_end(a, &t);
}

/* --- a decode task cut along the keys -------------------------------------------------------------------------------- */

static float *part_at(const attn *a, int32_t task, int32_t chunk) {
    return a->parts + ((int64_t)task * a->n_chunk + chunk) * a->group * (a->d_pad + 2);
}

static void chunk_task(void *ctx, int32_t number, int32_t thread) {
    attn *a = ctx;
    tile t = {0};
    const int32_t task = number / a->n_chunk, chunk = number % a->n_chunk;
    if (!tile_of(a, task, &t)) return;
    tile_begin(a, &t, thread);
    (void)walk(a, &t, chunk * CHUNK_PAGES, (chunk + 1) * CHUNK_PAGES, softmax_row, true);
    float *part = part_at(a, task, chunk);
    for (int32_t g = 0; g < a->group; g++, part += a->d_pad + 2) {
        memcpy(part, t.o + (int64_t)g * a->d_pad, sizeof *part * (size_t)a->d_pad);
        part[a->d_pad] = t.max[g];
        part[a->d_pad + 1] = t.sum[g];
    }
}

static void merge_task(void *ctx, int32_t task, int32_t thread) {
    attn *a = ctx;
    tile t = {0};
    if (!tile_of(a, task, &t)) {
        idle(a, &t);
        return;
    }
    tile_begin(a, &t, thread);
    for (int32_t g = 0; g < a->group; g++) {
        const int64_t row = (int64_t)g * (a->d_pad + 2);
        float *o = t.o + (int64_t)g * a->d_pad;
        for (int32_t c = 0; c < a->n_chunk; c++)
            t.max[g] = fmaxf(t.max[g], part_at(a, task, c)[row + a->d_pad]);
        for (int32_t c = 0; c < a->n_chunk; c++) {
            const float *part = part_at(a, task, c) + row;
            if (part[a->d_pad + 1] == 0) continue; /* a part that sees nothing */
            const float weight = expf(part[a->d_pad] - t.max[g]);
            t.sum[g] += weight * part[a->d_pad + 1];
            for (int32_t d = 0; d < a->d_pad; d++)
                o[d] += weight * part[d];
        }
    }
    tile_end(a, &t);
}

/* adds the tasks' histograms in their order */
static void hist_merge(const attn *a) {
    const int32_t n_col = 1 + a->probe.n_bin;
    for (int32_t task = 0; task < a->n_task; task++) {
        tile t = {0};
        if (!tile_of(a, task, &t)) continue;
        for (int32_t h = 0; h < a->group; h++)
            for (int32_t b = 0; b < a->n_bucket && t.bucket + b < MOA_HIST_BUCKETS; b++) {
                const float *from = t.hist + ((int64_t)h * a->n_bucket + b) * n_col;
                float *to = a->probe.hist +
                            ((int64_t)(t.head_kv * a->group + h) * MOA_HIST_BUCKETS + t.bucket + b) * n_col;
                for (int32_t i = 0; i < n_col; i++)
                    to[i] += from[i];
            }
    }
}

static moa_status attend(moa_cpu *cpu, attn *a, moa_err *err) {
    size_t n_hist = 0, n_part = 0, bytes;
    a->kern = cpu->kern;
    a->group = a->n_head / a->kv.n_head_kv;
    a->d_pad = (int32_t)round16((size_t)a->kv.d_head);
    a->rows = a->group * a->tile_tok;
    a->scratch_floats = scratch_size(a);
    if (a->probe.hist) {
        const int32_t spread = (a->tile_tok - 1) / a->probe.bucket_tok + 2;
        a->n_bucket = a->tile_tok == 1 ? 1 : spread < MOA_HIST_BUCKETS ? spread : MOA_HIST_BUCKETS;
        n_hist = (size_t)a->n_task * (size_t)a->group * (size_t)a->n_bucket * (size_t)(1 + a->probe.n_bin);
    }
    if (a->n_chunk > 1)
        n_part = (size_t)a->n_task * (size_t)a->n_chunk * (size_t)a->group * (size_t)(a->d_pad + 2);
    if (!moa_size_mul(a->scratch_floats, (size_t)cpu->n_threads, &bytes) ||
        !moa_size_add(bytes, n_hist, &bytes) || !moa_size_add(bytes, n_part, &bytes) ||
        !moa_size_mul(bytes, sizeof(float), &bytes))
        bytes = SIZE_MAX;
    a->scratch = moa_cpu_room(cpu, bytes, err);
    if (!a->scratch) return MOA_E_MEMORY;
    if (n_hist) {
        a->hist = a->scratch + a->scratch_floats * (size_t)cpu->n_threads;
        memset(a->hist, 0, sizeof *a->hist * n_hist);
    }
    a->parts = a->scratch + a->scratch_floats * (size_t)cpu->n_threads + n_hist;
    if (a->n_chunk > 1) moa_pool_run(cpu->pool, chunk_task, a, a->n_task * a->n_chunk);
    if (!atomic_load(&a->gone))
        moa_pool_run(cpu->pool, a->n_chunk > 1 ? merge_task : attend_task, a, a->n_task);
    if (atomic_load(&a->gone))
        return moa_fail(err, MOA_E_FAILED, "page %d of sequence %d, KV head %d is seen but gone",
                        a->gone_page, a->gone_seq, a->gone_head);
    if (a->hist) hist_merge(a);
    return MOA_OK;
}

moa_status moa_fast_attn_prefill(moa_backend *b, const moa_args_attn_prefill *f, moa_err *err) {
    attn a = {.q = f->q,
              .o = f->o,
              .kv = f->kv,
              .probe = f->probe,
              .scale = f->scale,
              .n_head = f->n_head,
              .prefill = f};
    if (f->n_tok <= 0) return MOA_OK;
    const int32_t group = f->n_head / f->kv.n_head_kv;
    a.tile_tok = group <= 8 ? TILE_TOK : group <= 16 ? TILE_TOK / 2 : TILE_TOK / 4;
    a.n_task = ((f->n_tok - 1) / a.tile_tok + 1) * f->kv.n_head_kv;
    if (a.tile_tok > f->n_tok) a.tile_tok = f->n_tok;
    return attend((moa_cpu *)b, &a, err);
}

moa_status moa_fast_attn_decode(moa_backend *b, const moa_args_attn_decode *f, moa_err *err) {
    attn a = {.q = f->q,
              .o = f->o,
              .kv = f->kv,
              .probe = f->probe,
              .scale = f->scale,
              .n_head = f->n_head,
              .decode = f,
              .tile_tok = 1};
    a.n_task = f->n_seq * f->kv.n_head_kv;
    if (a.n_task <= 0) return MOA_OK;
    int32_t last = 0;
    for (int32_t s = 0; s < f->n_seq; s++)
        last = f->pos[s] > last ? f->pos[s] : last;
    a.n_chunk = last / MOA_PAGE_TOK / CHUNK_PAGES + 1;
    return attend((moa_cpu *)b, &a, err);
}
