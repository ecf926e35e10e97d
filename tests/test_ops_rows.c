/* test_ops_rows.c -- products of 2 to 64 rows, and the fused operations of a decode step of several rows, against the reference backend.
 *
 *   test_ops_rows [DEVICE]      default cuda; exits 77 and says why where there is no such device
 *
 *   product   every weight type, rows of whole stages of the CUDA kernel and of a few more, odd numbers of outputs, fewer and more than
 *             multiprocessors share, rows of x that float16 needs a scale for, bias, residual
 *   gate_up   rmsnorm, both products, silu
 *   qkv       rmsnorm, products, biases, rope of both kinds and of part of a head, pages of several sequences, idle rows, a page that
 *             is not there, q and k of another type than v, both page types
 *
 * The reference goes op by op in double. Every case runs twice on the device: the bits must be the same; what is to be written is NaN
 * before, and stays it beyond the end. Row by row: large rows must not hide small ones. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/backend.h"
#include "ops_half.h"
#include "tests/ops_check.h"

enum { SKIP = 77, GUARD = 32, MAX_PAGES = 4, N_SEQ = 5, MAX_TOK = 64 };
static const double LIMIT = 1e-6; /* NMSE of a product */

static moa_backend *side[2]; /* reference, device */
static char label[240];
static uint64_t state = 88172645463325252u;
static double worst;
static int n_declined;

static uint32_t bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}
static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(bits() >> 8) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f * (bits() % 101 == 0 ? 15.0f : 1.0f);
}

/* --- memory and weights on both sides ------------------------------------------------------------------------------------ */

typedef struct mem {
    float *dev[2], *host; /* n floats and GUARD of NaN behind them */
    size_t n;
} mem;
typedef struct weight {
    moa_dev_weight *dev[2];
} weight;

static void fill_nan(float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        memcpy(x + i, &(uint32_t){0x7fc5a5a5u}, 4);
}
/* random: values; else NaN */
static mem memory(size_t n, bool random) {
    mem m = {.n = n, .host = malloc((n + GUARD) * sizeof(float))};
    if (!m.host) abort();
    fill_nan(m.host, n + GUARD);
    for (size_t i = 0; random && i < n; i++)
        m.host[i] = normal();
    for (int i = 0; i < 2; i++)
        m.dev[i] = put(side[i], m.host, (n + GUARD) * sizeof(float));
    return m;
}
static void again(const mem *m) {
    moa_err err = {0};
    for (int i = 0; i < 2; i++)
        must(side[i]->vt->upload(side[i], m->dev[i], m->host, (m->n + GUARD) * sizeof(float), &err), &err,
             "upload");
}
static void drop(mem *m) {
    for (int i = 0; i < 2; i++)
        side[i]->vt->free(side[i], m->dev[i]);
    free(m->host);
    *m = (mem){0};
}
static float *fetch(const mem *m, int i) {
    moa_err err = {0};
    float *x = malloc((m->n + GUARD) * sizeof *x);
    if (!x) abort();
    must(side[i]->vt->download(side[i], x, m->dev[i], (m->n + GUARD) * sizeof *x, &err), &err, "download");
    return x;
}

/* where the half-precision scales of a block lie, and about how large they are to be */
static const struct {
    moa_dtype type;
    int at[2];
    uint16_t size[2];
} places[] = {
    {MOA_Q4_0, {0, -1}, {0x2100, 0}},     {MOA_Q4_1, {0, 2}, {0x2100, 0x2d00}},
    {MOA_Q5_0, {0, -1}, {0x1d00, 0}},     {MOA_Q5_1, {0, 2}, {0x1d00, 0x2d00}},
    {MOA_Q8_0, {0, -1}, {0x1400, 0}},     {MOA_Q4_K, {0, 2}, {0x0d00, 0x1800}},
    {MOA_Q5_K, {0, 2}, {0x0b00, 0x1800}}, {MOA_Q6_K, {208, -1}, {0x0700, 0}},
};
static void fill_block(moa_dtype type, size_t block_bytes, unsigned char *block) {
    if (type == MOA_F32 || type == MOA_F16 || type == MOA_BF16) {
        const float x = normal() * 0.05f;
        uint32_t b;
        memcpy(&b, &x, 4);
        const uint16_t half = (uint16_t)(0x2400u + bits() % 0x800u + (bits() & 1) * 0x8000u),
                       brain = (uint16_t)(b >> 16);
        memcpy(block,
               type == MOA_F32   ? (const void *)&x
               : type == MOA_F16 ? (const void *)&half
                                 : (const void *)&brain,
               block_bytes);
        return;
    }
    for (size_t i = 0; i < block_bytes; i++)
        block[i] = (unsigned char)bits();
    for (size_t p = 0; p < sizeof places / sizeof *places; p++)
        for (int k = 0; k < 2; k++) {
            const uint16_t scale =
                (uint16_t)(places[p].size[k] + bits() % 0x200u + (bits() % 3 == 0) * 0x8000u);
            if (places[p].type == type && places[p].at[k] >= 0) memcpy(block + places[p].at[k], &scale, 2);
        }
}
static weight new_weight(moa_dtype type, int32_t n_out, int32_t n_in) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    unsigned char *data = malloc(bytes);
    weight w;
    if (!data) abort();
    for (size_t i = 0; i < bytes; i += info->block_bytes)
        fill_block(type, info->block_bytes, data + i);
    for (int i = 0; i < 2; i++) {
        moa_err err = {0};
        const moa_weight m = {
            .name = "test", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
        must(side[i]->vt->weight_load(side[i], &m, false, &w.dev[i], &err), &err, "weight_load");
    }
    free(data);
    return w;
}
static void drop_weight(weight *w) {
    for (int i = 0; i < 2; i++)
        if (w->dev[i]) side[i]->vt->weight_free(side[i], w->dev[i]);
}

/* --- comparing ------------------------------------------------------------------------------------------------------------ */

/* n elements from `first` on */
static void compare_row(const float *a, const float *b, size_t first, size_t n, bool half, double limit,
                        const char *what) {
    double error = 0, power = 0;
    size_t odd = 0;
    for (size_t i = first; i < first + n; i++) {
        const double x = value(a, i, half), y = value(b, i, half);
        odd += isnan(x) != isnan(y);
        if (isnan(x) || isnan(y)) continue;
        error += (x - y) * (x - y);
        power += x * x;
    }
    const double nmse = error == 0 ? 0 : error / power;
    CHECK(odd == 0, "%s: %s: %zu elements from %zu on are written by one side alone", label, what, odd,
          first);
    CHECK(nmse <= limit, "%s: %s from %zu on: NMSE %.2e", label, what, first, nmse);
    if (nmse > worst) worst = nmse;
}
/* rows of m, and what lies behind them; `first`: what an earlier run left, or NULL */
static float *compare(const mem *m, int n_row, bool half, double limit, float *first, const char *what) {
    float *a = fetch(m, 0), *b = fetch(m, 1);
    const size_t n = m->n * (half ? 2 : 1), each = n / (size_t)n_row;
    for (int r = 0; r < n_row; r++)
        compare_row(a, b, (size_t)r * each, each, half, limit, what);
    compare_row(a, b, n, GUARD * (half ? 2 : 1), half, 0, "what lies behind");
    if (first)
        CHECK(memcmp(first, b, (m->n + GUARD) * sizeof *b) == 0, "%s: %s: other bits the second time", label,
              what);
    free(a);
    free(first);
    return b;
}

/* --- product -------------------------------------------------------------------------------------------------------------- */

static void stretch(mem *x, int n_tok) { /* rows that float16 does not hold */
    static const float powers[] = {1e9f, 1e-7f, 0};
    const size_t n = x->n / (size_t)n_tok;
    for (int r = 0; r < n_tok; r += 3)
        for (size_t i = 0; i < n; i++)
            x->host[(size_t)r * n + i] *= powers[r / 3 % 3];
    again(x);
}

static void check_product(moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in, int how) {
    const bool bias = how & 1, accumulate = how & 2;
    (void)snprintf(label, sizeof label, "product %s %d rows %d x %d%s%s",
                   moa_dtype_find((uint32_t)type)->name, n_tok, n_out, n_in, bias ? " bias" : "",
                   accumulate ? " accumulate" : "");
    weight w = new_weight(type, n_out, n_in),
           wb = bias ? new_weight(MOA_F32, 1, n_out) : (weight){{NULL, NULL}};
    mem x = memory((size_t)n_tok * (size_t)n_in, true), y = memory((size_t)n_tok * (size_t)n_out, accumulate);
    float *first = NULL;
    if (how & 4) stretch(&x, n_tok);
    for (int k = 0; k < 2; k++) {
        again(&y);
        for (int i = 0; i < 2; i++)
            CALL(side[i], matmul, .x = x.dev[i], .w = w.dev[i], .bias = wb.dev[i], .y = y.dev[i],
                 .n_tok = n_tok, .accumulate = accumulate);
        first = compare(&y, n_tok, false, (n_out < 16 ? 200 : 10) * LIMIT, first,
                        "y"); /* few outputs may all be small */
    }
    free(first);
    drop(&x), drop(&y);
    drop_weight(&w), drop_weight(&wb);
}

static const moa_dtype dtypes[] = {
#define X(name, id, block_len, block_bytes) MOA_##name,
    MOA_DTYPE_MAP(X)
#undef X
};
enum { N_DTYPE = sizeof dtypes / sizeof *dtypes };

static void check_products(void) {
    static const int32_t toks[] = {2, 3, 7, 8, 9, 12, 16, 17, 25, 33, 50, 64};
    static const int32_t shapes[][2] = {{5, 256},    {7, 512},    {128, 768}, {130, 4096}, {300, 1024},
                                        {193, 2304}, {1531, 256}, {65, 5888}, {640, 1280}};
    enum { N_TOK = sizeof toks / sizeof *toks, N_SHAPE = sizeof shapes / sizeof *shapes };
    for (int d = 0; d < N_DTYPE; d++)
        for (int i = 0; i < N_TOK + N_SHAPE; i++)
            check_product(dtypes[d], toks[(i + d) % N_TOK], shapes[i % N_SHAPE][0], shapes[i % N_SHAPE][1],
                          (i + d) % 8);
    check_product(MOA_F16, 20, 257, 64, 0); /* an odd number of half stages */
    check_product(MOA_BF16, 5, 129, 320, 3);
    check_product(MOA_F16, 64, 1100, 2112, 2);
    check_product(MOA_Q4_0, 31, 33, 16640, 4); /* x beyond what a thread's registers hold */
    check_product(MOA_F16, 9, 20, 20480, 5);
}

/* --- gate and up ------------------------------------------------------------------------------------------------------------- */

static void check_gate_up(moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in) {
    (void)snprintf(label, sizeof label, "gate_up %s %d rows %d x %d", moa_dtype_find((uint32_t)type)->name,
                   n_tok, n_out, n_in);
    weight gate = new_weight(type, n_out, n_in), up = new_weight(type, n_out, n_in),
           norm = new_weight(MOA_F32, 1, n_in);
    const size_t n = (size_t)n_tok * (size_t)n_out;
    mem x = memory((size_t)n_tok * (size_t)n_in, true), h = memory(x.n, false), y = memory(n, false),
        u = memory(n, false);
    float *first = NULL;
    bool taken = false;
    CALL(side[0], rmsnorm, .x = x.dev[0], .w = norm.dev[0], .y = h.dev[0], .n_tok = n_tok, .n = n_in,
         .eps = 1e-6f);
    CALL(side[0], matmul, .x = h.dev[0], .w = gate.dev[0], .y = y.dev[0], .n_tok = n_tok);
    CALL(side[0], matmul, .x = h.dev[0], .w = up.dev[0], .y = u.dev[0], .n_tok = n_tok);
    CALL(side[0], silu_mul, .gate = y.dev[0], .up = u.dev[0], .y = y.dev[0], .n = (int64_t)n);
    for (int k = 0; k < 2; k++) {
        CALL(side[1], fused_gate_up, .in = {.x = x.dev[1], .norm = norm.dev[1], .eps = 1e-6f, .n_tok = n_tok},
             .gate = gate.dev[1], .up = up.dev[1], .y = y.dev[1], .taken = &taken);
        if (taken) first = compare(&y, n_tok, false, 100 * LIMIT, first, "y"); /* of products of products */
    }
    if (type == MOA_F32) CHECK(!taken, "%s: taken", label);
    if (type != MOA_F32) CHECK(taken, "%s: declined", label);
    n_declined += !taken;
    free(first);
    drop(&x), drop(&h), drop(&y), drop(&u);
    drop_weight(&gate), drop_weight(&up), drop_weight(&norm);
}

/* --- residual product behind a norm ------------------------------------------------------------------------------------------ */

static void check_fused_product(moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in, bool accumulate) {
    (void)snprintf(label, sizeof label, "fused product %s %d rows %d x %d",
                   moa_dtype_find((uint32_t)type)->name, n_tok, n_out, n_in);
    weight w = new_weight(type, n_out, n_in), norm = new_weight(MOA_F32, 1, n_in);
    mem x = memory((size_t)n_tok * (size_t)n_in, true), h = memory(x.n, false),
        y = memory((size_t)n_tok * (size_t)n_out, accumulate);
    float *first = NULL;
    bool taken = true;
    for (int k = 0; k < 2 && taken; k++) {
        again(&y);
        CALL(side[0], rmsnorm, .x = x.dev[0], .w = norm.dev[0], .y = h.dev[0], .n_tok = n_tok, .n = n_in,
             .eps = 1e-5f);
        CALL(side[0], matmul, .x = h.dev[0], .w = w.dev[0], .y = y.dev[0], .n_tok = n_tok,
             .accumulate = accumulate);
        CALL(side[1], fused_product, .in = {.x = x.dev[1], .norm = norm.dev[1], .eps = 1e-5f, .n_tok = n_tok},
             .w = w.dev[1], .y = y.dev[1], .accumulate = accumulate, .taken = &taken);
        if (taken) first = compare(&y, n_tok, false, 10 * LIMIT, first, "y");
    }
    CHECK(taken, "%s: declined", label);
    free(first);
    drop(&x), drop(&h), drop(&y);
    drop_weight(&w), drop_weight(&norm);
}

/* --- q, k, v ------------------------------------------------------------------------------------------------------------------ */

typedef struct qkv_case {
    moa_dtype type[3];
    int32_t n_tok, n_head, n_head_kv, d_head, n_in, rope_dim;
    moa_rope_kind kind;
    moa_kv_type kv;
    bool bias, factors, gone;
} qkv_case;
typedef struct qkv_memory {
    weight w[3], norm, bias[2], factors;
    mem x, h, q, k, v, pool;
    int32_t *table[2], *pos[2], *seq[2];
    bool idle[MAX_TOK];
} qkv_memory;

/* Rows of N_SEQ sequences by turns, later rows at later positions; some idle. */
static void qkv_open(qkv_memory *m, const qkv_case *c) {
    const int32_t nq = c->n_head * c->d_head, nk = c->n_head_kv * c->d_head, rows[3] = {nq, nk, nk};
    const size_t n_table = (size_t)N_SEQ * (size_t)c->n_head_kv * MAX_PAGES, n = (size_t)c->n_tok;
    int32_t *table = malloc(n_table * sizeof *table), pos[MAX_TOK], seq[MAX_TOK];
    *m = (qkv_memory){.norm = new_weight(MOA_F32, 1, c->n_in)};
    if (!table) abort();
    for (int i = 0; i < 3; i++)
        m->w[i] = new_weight(c->type[i], rows[i], c->n_in);
    for (int i = 0; i < 2 && c->bias; i++)
        m->bias[i] = new_weight(MOA_F32, 1, rows[i]);
    if (c->factors) m->factors = new_weight(MOA_F32, 1, c->rope_dim / 2);
    for (size_t i = 0; i < n_table; i++)
        table[i] = c->gone ? -1 : (int32_t)(n_table - 1 - i);
    for (int32_t t = 0; t < c->n_tok; t++) {
        m->idle[t] = t % 7 == 3;
        seq[t] = t % N_SEQ;
        pos[t] = m->idle[t] ? -1 : (t / N_SEQ * 13 + t * 3) % (MAX_PAGES * MOA_PAGE_TOK);
    }
    const size_t pool = n_table * 2 * MOA_PAGE_TOK * (size_t)c->d_head / (c->kv == MOA_KV_F16 ? 2 : 1);
    m->x = memory(n * (size_t)c->n_in, true), m->h = memory(n * (size_t)c->n_in, false);
    m->q = memory(n * (size_t)nq, false), m->k = memory(n * (size_t)nk, false);
    m->v = memory(n * (size_t)nk, false), m->pool = memory(pool, false);
    for (int i = 0; i < 2; i++) {
        m->table[i] = put(side[i], table, n_table * sizeof *table);
        m->pos[i] = put(side[i], pos, n * sizeof *pos);
        m->seq[i] = put(side[i], seq, n * sizeof *seq);
    }
    free(table);
}
static void qkv_close(qkv_memory *m) {
    mem *const all[] = {&m->x, &m->h, &m->q, &m->k, &m->v, &m->pool};
    for (int i = 0; i < 6; i++)
        drop(all[i]);
    for (int i = 0; i < 2; i++) {
        side[i]->vt->free(side[i], m->table[i]);
        side[i]->vt->free(side[i], m->pos[i]);
        side[i]->vt->free(side[i], m->seq[i]);
        drop_weight(&m->bias[i]);
    }
    for (int i = 0; i < 3; i++)
        drop_weight(&m->w[i]);
    drop_weight(&m->norm), drop_weight(&m->factors);
}

static moa_args_fused_qkv qkv_args(const qkv_memory *m, const qkv_case *c, int s, bool *taken) {
    return (moa_args_fused_qkv){
        .in = {.x = m->x.dev[s], .norm = m->norm.dev[s], .eps = 1e-5f, .n_tok = c->n_tok},
        .wq = m->w[0].dev[s],
        .wk = m->w[1].dev[s],
        .wv = m->w[2].dev[s],
        .bq = m->bias[0].dev[s],
        .bk = m->bias[1].dev[s],
        .bv = m->bias[1].dev[s],
        .q = m->q.dev[s],
        .k = m->k.dev[s],
        .rope = {.pos = m->pos[s],
                 .freq_factors = m->factors.dev[s],
                 .n_tok = c->n_tok,
                 .d_head = c->d_head,
                 .rope_dim = c->rope_dim,
                 .kind = c->kind,
                 .theta = 10000,
                 .scale = 0.5f},
        .kv = {.pool = m->pool.dev[s],
               .table = m->table[s],
               .table_seq_stride = c->n_head_kv * MAX_PAGES,
               .n_head_kv = c->n_head_kv,
               .d_head = c->d_head,
               .max_pages = MAX_PAGES,
               .type = c->kv},
        .seq = m->seq[s],
        .n_head = c->n_head,
        .taken = taken};
}
static void reference_qkv(const qkv_memory *m, const qkv_case *c) {
    const moa_args_fused_qkv a = qkv_args(m, c, 0, NULL);
    moa_err err = {0};
    CALL(side[0], rmsnorm, .x = a.in.x, .w = a.in.norm, .y = m->h.dev[0], .n_tok = c->n_tok, .n = c->n_in,
         .eps = a.in.eps);
    CALL(side[0], matmul, .x = m->h.dev[0], .w = a.wq, .bias = a.bq, .y = a.q, .n_tok = c->n_tok);
    CALL(side[0], matmul, .x = m->h.dev[0], .w = a.wk, .bias = a.bk, .y = a.k, .n_tok = c->n_tok);
    CALL(side[0], matmul, .x = m->h.dev[0], .w = a.wv, .bias = a.bv, .y = m->v.dev[0], .n_tok = c->n_tok);
    moa_args_rope rope = a.rope;
    rope.x = a.q, rope.n_head = c->n_head;
    must(side[0]->vt->rope(side[0], &rope, &err), &err, "rope");
    rope.x = a.k, rope.n_head = c->n_head_kv;
    must(side[0]->vt->rope(side[0], &rope, &err), &err, "rope");
    if (c->gone) return; /* the reference refuses it: the pages must stay as they are */
    CALL(side[0], kv_store, .k = a.k, .v = m->v.dev[0], .kv = a.kv, .seq = a.seq, .pos = a.rope.pos,
         .n_tok = c->n_tok);
}

/* rows of q or k that are not idle */
static float *compare_heads(const mem *m, const qkv_memory *q, int32_t n_tok, float *first,
                            const char *what) {
    float *a = fetch(m, 0), *b = fetch(m, 1);
    const size_t each = m->n / (size_t)n_tok;
    for (int32_t t = 0; t < n_tok; t++)
        if (!q->idle[t]) compare_row(a, b, (size_t)t * each, each, false, 10 * LIMIT, what);
    compare_row(a, b, m->n, GUARD, false, 0, "what lies behind");
    if (first)
        CHECK(memcmp(first, b, (m->n + GUARD) * sizeof *b) == 0, "%s: %s: other bits the second time", label,
              what);
    free(a);
    free(first);
    return b;
}

static void check_qkv(const qkv_case *c) {
    qkv_memory m;
    bool taken = false;
    float *first[3] = {NULL, NULL, NULL};
    (void)snprintf(label, sizeof label, "qkv %s %s %s %d rows %d/%d x %d of %d, rope %d %s%s%s%s%s",
                   moa_dtype_find((uint32_t)c->type[0])->name, moa_dtype_find((uint32_t)c->type[1])->name,
                   moa_dtype_find((uint32_t)c->type[2])->name, c->n_tok, c->n_head, c->n_head_kv, c->d_head,
                   c->n_in, c->rope_dim, c->kind == MOA_ROPE_PAIRS ? "pairs" : "halves",
                   c->kv == MOA_KV_F16 ? " f16" : " f32", c->bias ? " bias" : "",
                   c->factors ? " factors" : "", c->gone ? " pages gone" : "");
    qkv_open(&m, c);
    reference_qkv(&m, c);
    for (int k = 0; k < 2; k++) {
        const moa_args_fused_qkv a = qkv_args(&m, c, 1, &taken);
        moa_err err = {0};
        must(side[1]->vt->fused_qkv(side[1], &a, &err), &err, "fused_qkv");
        if (!taken) break;
        first[0] = compare_heads(&m.q, &m, c->n_tok, first[0], "q");
        first[1] = compare_heads(&m.k, &m, c->n_tok, first[1], "k");
        first[2] = compare(&m.pool, 1, c->kv == MOA_KV_F16, 10 * LIMIT, first[2], "pages");
    }
    if (c->d_head <= 128) CHECK(taken, "%s: declined", label);
    if (c->d_head > 128) CHECK(!taken, "%s: taken", label);
    n_declined += !taken;
    for (int i = 0; i < 3; i++)
        free(first[i]);
    qkv_close(&m);
}

static void check_qkvs(void) {
#define SAME(t)                                                                                              \
    { t, t, t }
    static const qkv_case cases[] = {
        {SAME(MOA_Q4_0), 8, 8, 2, 128, 1024, 128, MOA_ROPE_PAIRS, MOA_KV_F16, false, false, false},
        {SAME(MOA_Q4_1), 3, 9, 3, 64, 768, 64, MOA_ROPE_HALVES, MOA_KV_F16, true, false, false},
        {{MOA_Q4_K, MOA_Q4_K, MOA_Q6_K},
         12,
         14,
         2,
         64,
         512,
         64,
         MOA_ROPE_HALVES,
         MOA_KV_F16,
         true,
         false,
         false},
        {{MOA_Q6_K, MOA_F16, MOA_Q8_0},
         33,
         4,
         4,
         128,
         512,
         128,
         MOA_ROPE_PAIRS,
         MOA_KV_F32,
         true,
         true,
         false},
        {SAME(MOA_F16), 50, 6, 6, 128, 576, 128, MOA_ROPE_PAIRS, MOA_KV_F16, false, false, false},
        {SAME(MOA_F16), 64, 3, 1, 80, 320, 80, MOA_ROPE_HALVES, MOA_KV_F16, false, true, false},
        {SAME(MOA_BF16), 25, 5, 1, 96, 640, 48, MOA_ROPE_HALVES, MOA_KV_F32, true, false, false},
        {SAME(MOA_Q5_0), 2, 12, 4, 32, 256, 16, MOA_ROPE_PAIRS, MOA_KV_F16, false, false, false},
        {SAME(MOA_Q5_1), 17, 2, 2, 48, 256, 0, MOA_ROPE_PAIRS, MOA_KV_F16, true, false, false},
        {SAME(MOA_Q5_K), 9, 7, 1, 128, 256, 128, MOA_ROPE_HALVES, MOA_KV_F16, false, false, true},
        {SAME(MOA_Q8_0), 40, 8, 8, 64, 512, 64, MOA_ROPE_HALVES, MOA_KV_F16, false, false, false},
        {SAME(MOA_Q8_0), 8, 2, 1, 256, 512, 256, MOA_ROPE_HALVES, MOA_KV_F16, false, false, false}};
#undef SAME
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_qkv(&cases[i]);
}

int main(int argc, char **argv) {
    const moa_backend_config exact = {.reference = true};
    char why[256];
    moa_err err = {0};
    if (moa_backend_open(&side[1], argc > 1 ? argv[1] : "cuda", NULL, why, sizeof why, &err) != MOA_OK) {
        (void)printf("test_ops_rows: %s: not run\n", err.text);
        return SKIP;
    }
    must(moa_backend_open(&side[0], "cpu", &exact, why, sizeof why, &err), &err, "opening the CPU");
    check_products();
    (void)printf("products: %d checks, %d failed, worst NMSE %.1e\n", n_check, n_failed, worst);
    const bool fused = side[1]->vt->fused_qkv && side[1]->vt->fused_gate_up && side[1]->vt->fused_product;
    worst = 0;
    if (fused) {
        for (int d = 0; d < N_DTYPE; d++) {
            check_gate_up(dtypes[d], 2 + 7 * d % 63, 64 + 37 * d, 256 * (1 + d % 4));
            if (dtypes[d] != MOA_F32)
                check_fused_product(dtypes[d], 3 + 11 * d % 62, 200 + 31 * d, 256 * (1 + d % 3), d % 2);
        }
        check_qkvs();
        (void)printf("fused: %d checks in all, worst NMSE %.1e, %d declined as they should be\n", n_check,
                     worst, n_declined);
    } else {
        (void)printf("fused: %s has no fused operations: not run\n", side[1]->vt->name);
    }
    moa_backend_close(&side[0]);
    moa_backend_close(&side[1]);
    (void)printf("test_ops_rows: %d checks, %d failed\n", n_check, n_failed);
    return n_failed ? 1 : 0;
}
