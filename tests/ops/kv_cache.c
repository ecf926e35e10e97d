/* kv_cache.c -- the KV cache of a case: pages of every type in random order, encoded here in double, NaN wherever nothing is stored. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/ops.h"

void cache_free(cache *c) {
    free(c->table);
    free(c->n_tok);
    free(c->k);
    free(c->v);
}

moa_kv_view view(const cache *c, int side) {
    return (moa_kv_view){.pool = c->pool->dev[side],
                         .table = I(c->dev_table, side),
                         .table_seq_stride = c->stride,
                         .n_head_kv = c->n_head_kv,
                         .d_head = c->d_head,
                         .max_pages = c->max_pages,
                         .type = c->type};
}

/* One page as its type has it, said again in double: k, v (n, d_head) become what the page then gives back. Only what belongs to
 * the n tokens is written. */
static void encode_q8(unsigned char *page, int32_t n, int32_t d_head, double *k, double *v) {
    int8_t *codes = (int8_t *)page;
    for (int32_t i = 0; i < d_head; i++) {
        int exponent = INT_MIN, e;
        bool broken = false;
        for (int32_t t = 0; t < n; t++) {
            const double x = k[t * d_head + i];
            broken |= !isfinite(x);
            if (!broken && frexp(x, &e) != 0 && e > exponent) exponent = e; /* |x| < 2^exponent */
        }
        const int stored = broken ? 255 : exponent == INT_MIN || exponent + 120 < 1 ? 0 : exponent + 120;
        const double step = stored == 255 ? INFINITY : stored == 0 ? 0 : ldexp(1, stored - 127);
        page[2 * MOA_PAGE_TOK * d_head + 4 * MOA_PAGE_TOK + i] = (unsigned char)stored;
        for (int32_t t = 0; t < n; t++) {
            double *x = &k[t * d_head + i];
            const bool sign_only = broken || step == 0 || fabs(*x) < 0x1p-120;
            const double code = sign_only ? (*x < 0 ? -1 : 0) : floor(*x / step);
            codes[t * d_head + i] = (int8_t)code;
            *x = (code + 0.5) * step;
        }
    }
    for (int32_t t = 0; t < n; t++) {
        float top = 0;
        for (int32_t i = 0; i < d_head; i++)
            top = isnan(top) || fabs(v[t * d_head + i]) <= top ? top : (float)fabs(v[t * d_head + i]);
        const float scale = top / 127.0f;
        memcpy(page + 2 * MOA_PAGE_TOK * d_head + 4 * t, &scale, 4);
        for (int32_t i = 0; i < d_head; i++) {
            double *x = &v[t * d_head + i];
            const double code = scale > 0 && isfinite(scale) ? nearbyint((float)*x / scale) : 0;
            codes[(MOA_PAGE_TOK + t) * d_head + i] = (int8_t)code;
            *x = code * (double)scale;
        }
    }
}

static uint16_t bf16_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t cut = bits & 0xffffu, up = cut > 0x8000u || (cut == 0x8000u && (bits & 0x10000u));
    return (uint16_t)((bits >> 16) + up);
}

void encode_page(moa_kv_type type, unsigned char *page, int32_t n, int32_t d_head, double *k, double *v) {
    if (type == MOA_KV_Q8) {
        encode_q8(page, n, d_head, k, v);
        return;
    }
    const size_t elem = type == MOA_KV_F32 ? 4 : 2;
    for (int side = 0; side < 2; side++)
        for (int32_t i = 0; i < n * d_head; i++) {
            double *x = &(side ? v : k)[i];
            const float f = (float)*x;
            const uint16_t bits = type == MOA_KV_F16 ? half_bits(f) : bf16_bits(f);
            memcpy(page + elem * (size_t)(side * MOA_PAGE_TOK * d_head + i),
                   elem == 4 ? (const void *)&f : (const void *)&bits, elem);
            uint32_t wide = (uint32_t)bits << 16;
            float back;
            memcpy(&back, &wide, 4);
            *x = type == MOA_KV_F32 ? f : type == MOA_KV_F16 ? half_value(bits) : back;
        }
}

size_t page_size(moa_kv_type type, int32_t d_head) {
    const size_t n = 2 * (size_t)MOA_PAGE_TOK * (size_t)d_head;
    return type == MOA_KV_Q8 ? (n + 4 * MOA_PAGE_TOK + (size_t)d_head + 15) / 16 * 16 : type == MOA_KV_F32 ? 4 * n : 2 * n;
}

const char *type_name(moa_kv_type type) {
    return (const char *const[]){"f16", "f32", "bf16", "q8"}[type];
}

/* of K's or V's row of token t, head h of sequence s, in c->k or c->v */
double *host_row(const cache *c, double *x, int32_t s, int32_t h, int32_t t) {
    return x + (((int64_t)s * c->n_head_kv + h) * c->max_pages * MOA_PAGE_TOK + t) * c->d_head;
}

/* a pool of NaN, and a table without pages; returns the order in which pages are to be taken, to be freed. c->k, c->v are zero. */
static int32_t *cache_begin(rig *r, cache *c, unsigned char **pool) {
    const int32_t n_slots = c->n_seq * c->n_head_kv * c->max_pages;
    const size_t bytes = page_size(c->type, c->d_head), elem = c->type == MOA_KV_F32 ? 4 : 2;
    c->stride = (int64_t)c->n_head_kv * c->max_pages + 5;
    c->n_pages = n_slots + 3;
    c->table = malloc(sizeof *c->table * (size_t)(c->stride * c->n_seq));
    int32_t *order = malloc(sizeof *order * (size_t)c->n_pages);
    *pool = malloc((size_t)c->n_pages * bytes);
    const size_t n_host = (size_t)n_slots * MOA_PAGE_TOK * (size_t)c->d_head;
    c->k = calloc(n_host, sizeof *c->k);
    c->v = calloc(n_host, sizeof *c->v);
    if (!c->table || !order || !*pool || !c->k || !c->v) abort();
    for (size_t i = 0; i < (size_t)c->n_pages * bytes; i += elem) {
        if (elem == 4)
            memcpy(*pool + i, &(uint32_t){0x7fc00bad}, 4);
        else /* also no number as float, for q8's scales; bfloat16's own */
            memcpy(*pool + i, &(uint16_t){c->type == MOA_KV_F16 ? 0x7e0d : 0x7fcd}, 2);
    }
    for (int32_t i = 0; i < c->n_pages; i++)
        order[i] = i;
    for (int32_t i = c->n_pages - 1; i > 0; i--) {
        const int32_t k = below(r, i + 1), t = order[i];
        order[i] = order[k];
        order[k] = t;
    }
    for (int64_t i = 0; i < c->stride * c->n_seq; i++)
        c->table[i] = -1;
    return order;
}

/* Pages of n_tok[s] tokens, those freed that a head of widest[s*n_head_kv + h] has dropped once n_past[s] tokens are stored;
 * pages lie in random order, unwritten rows hold NaN. empty: the pages are there, but nothing is in them (kv_store's input). */
void cache_fill(rig *r, cache *c, const int32_t *n_past, const int32_t *widest, bool empty,
                       input_kind kind) {
    unsigned char *pool;
    const size_t bytes = page_size(c->type, c->d_head);
    int32_t *order = cache_begin(r, c, &pool), next = 0;
    for (int32_t s = 0; s < c->n_seq; s++)
        for (int32_t h = 0; h < c->n_head_kv; h++)
            for (int32_t p = 0; p * MOA_PAGE_TOK < c->n_tok[s]; p++) {
                if (!moa_keep(widest[s * c->n_head_kv + h], n_past[s], p)) continue;
                const int32_t left = c->n_tok[s] - p * MOA_PAGE_TOK, n = left < MOA_PAGE_TOK ? left : MOA_PAGE_TOK;
                int32_t *slot = &c->table[s * c->stride + (int64_t)h * c->max_pages + p];
                *slot = order[next++];
                if (empty) continue;
                double *row[2] = {host_row(c, c->k, s, h, p * MOA_PAGE_TOK), host_row(c, c->v, s, h, p * MOA_PAGE_TOK)};
                for (int32_t i = 0; i < 2 * n * c->d_head; i++) {
                    float x = kind == EQUAL ? 0.25f : kind == ONE_HOT ? (below(r, 31) ? 0 : 4.0f) : normal(r);
                    if (kind == OUTLIERS && below(r, 97) == 0) x *= 20;
                    row[i / (n * c->d_head)][i % (n * c->d_head)] = x;
                }
                encode_page(c->type, pool + (size_t)*slot * bytes, n, c->d_head, row[0], row[1]);
            }
    c->pool = mem_new(r, pool, (size_t)c->n_pages * bytes);
    c->dev_table = mem_new(r, c->table, sizeof *c->table * (size_t)(c->stride * c->n_seq));
    free(order);
    free(pool);
}
