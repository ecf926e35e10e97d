/* test_ops_fused.c -- the fused operations of a decode step against the single ones of the reference backend.
 *
 *   test_ops_fused [DEVICE]      default cuda; exits 77 and says why where the device or its fused operations are missing
 *
 * Both sides get the same bytes. The reference goes op by op in double; what the fused operation leaves, q, k, the pages, y, may
 * differ by NMSE <= 1e-6 (1e-5 of products of products), and what neither writes still holds its NaN. Every case runs twice on the device: the
 * bits must be the same. Every weight type, rope of both kinds and of part of a head, biases, q and k of another type than v,
 * both page types, an idle row, a page that is gone, odd numbers of outputs, shapes that must be declined. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops_blocks.h"
#include "ops_half.h"

enum { SKIP = 77, REF = 0, DEV = 1, MAX_MEM = 24, MAX_WEIGHT = 8, GUARD = 64 };

typedef struct mem {
    float *dev[2]; /* behind GUARD floats */
    size_t n;      /* floats */
} mem;
typedef struct weight {
    moa_dev_weight *dev[2];
} weight;

static struct rig {
    moa_backend *b[2];
    mem mems[MAX_MEM];
    weight weights[MAX_WEIGHT];
    int n_mem, n_weight, n_case, n_failed, n_declined;
    char label[200];
    double worst;
} rig;

static void must(moa_status s, const moa_err *err) {
    if (s == MOA_OK) return;
    (void)printf("FAILED %s: %s\n", rig.label, err->text);
    exit(1);
}
static void fail(const char *what, double x) {
    rig.n_failed++;
    (void)printf("FAILED %s: %s (%g)\n", rig.label, what, x);
}

/* --- memory and weights on both sides ------------------------------------------------------------------------------------ */

/* host NULL: NaN */
static mem *memory(const float *host, size_t n) {
    mem *m = &rig.mems[rig.n_mem++];
    const size_t total = n + 2 * GUARD;
    float *image = malloc(total * sizeof *image);
    if (!image || rig.n_mem > MAX_MEM) abort();
    for (size_t i = 0; i < total; i++)
        memcpy(image + i, &(uint32_t){0x7fc5a5a5u}, 4);
    if (host) memcpy(image + GUARD, host, n * sizeof *host);
    m->n = n;
    for (int i = 0; i < 2; i++) {
        const moa_backend_vtable *vt = rig.b[i]->vt;
        moa_err err = {0};
        void *p = NULL;
        must(vt->alloc(rig.b[i], total * sizeof *image, &p, &err), &err);
        must(vt->upload(rig.b[i], p, image, total * sizeof *image, &err), &err);
        m->dev[i] = (float *)p + GUARD;
    }
    free(image);
    return m;
}
static mem *random_memory(size_t n) {
    float *x = malloc(n * sizeof *x);
    if (!x) abort();
    for (size_t i = 0; i < n; i++)
        x[i] = normal();
    mem *m = memory(x, n);
    free(x);
    return m;
}
static mem *int_memory(const int32_t *x, size_t n) {
    float *as_floats = malloc(n * sizeof *as_floats);
    if (!as_floats) abort();
    memcpy(as_floats, x, n * sizeof *x);
    mem *m = memory(as_floats, n);
    free(as_floats);
    return m;
}
static const int32_t *ints(const mem *m, int side) {
    return (const int32_t *)(const void *)m->dev[side];
}
static float *fetch(const mem *m, int side) {
    const size_t bytes = (m->n + 2 * GUARD) * sizeof(float);
    float *image = malloc(bytes);
    moa_err err = {0};
    if (!image) abort();
    must(rig.b[side]->vt->download(rig.b[side], image, m->dev[side] - GUARD, bytes, &err), &err);
    return image;
}

static weight *new_weight(moa_dtype type, int32_t n_out, int32_t n_in) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    unsigned char *data = malloc(bytes);
    weight *w = &rig.weights[rig.n_weight++];
    if (!data || rig.n_weight > MAX_WEIGHT) abort();
    for (size_t i = 0; i < bytes; i += info->block_bytes)
        fill_block(type, info, data + i);
    for (int i = 0; i < 2; i++) {
        moa_err err = {0};
        const moa_weight m = {
            .name = "test", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
        must(rig.b[i]->vt->weight_load(rig.b[i], &m, false, &w->dev[i], &err), &err);
    }
    free(data);
    return w;
}

static void begin(const char *label) {
    (void)snprintf(rig.label, sizeof rig.label, "%s", label);
    block_rng = 0x9e3779b97f4a7c15u + (uint64_t)rig.n_case * 77;
    rig.n_case++;
}
static void end(void) {
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < rig.n_mem; k++)
            rig.b[i]->vt->free(rig.b[i], rig.mems[k].dev[i] - GUARD);
        for (int k = 0; k < rig.n_weight; k++)
            rig.b[i]->vt->weight_free(rig.b[i], rig.weights[k].dev[i]);
    }
    rig.n_mem = rig.n_weight = 0;
}

/* --- comparing ------------------------------------------------------------------------------------------------------------ */

/* the same elements are NaN on both sides; the others agree within limit */
static void compare(const mem *m, bool half, double limit, const char *what) {
    float *a = fetch(m, REF), *b = fetch(m, DEV);
    double error = 0, power = 0;
    const size_t n = (m->n + 2 * GUARD) * (half ? 2 : 1);
    for (size_t i = 0; i < n; i++) {
        const double x = value(a, i, half), y = value(b, i, half);
        if (isnan(x) != isnan(y)) {
            fail(isnan(y) ? "not written, or NaN" : "written though the reference did not", (double)i);
            break;
        }
        if (isnan(x)) continue;
        error += (x - y) * (x - y);
        power += x * x;
    }
    const double nmse = error == 0 ? 0 : error / power;
    if (!(nmse <= limit)) fail(what, nmse);
    if (nmse > rig.worst) rig.worst = nmse;
    free(a);
    free(b);
}

/* what a second run leaves, against the first's */
static void same_bits(const mem *m, const float *first, const char *what) {
    float *second = fetch(m, DEV);
    if (memcmp(first, second, (m->n + 2 * GUARD) * sizeof *first) != 0) fail(what, 0);
    free(second);
}

#define CALL(side, op, ...)                                                                                  \
    do {                                                                                                     \
        const moa_args_##op args_ = {__VA_ARGS__};                                                           \
        moa_err err_ = {0};                                                                                  \
        must(rig.b[side]->vt->op(rig.b[side], &args_, &err_), &err_);                                        \
    } while (0)

/* --- product -------------------------------------------------------------------------------------------------------------- */

typedef struct product_case {
    moa_dtype type;
    int32_t n_out, n_in;
    bool norm, accumulate;
} product_case;

static void check_product(const product_case *c) {
    char label[160];
    bool taken = false;
    (void)snprintf(label, sizeof label, "product %s %d x %d%s%s", moa_dtype_find((uint32_t)c->type)->name,
                   c->n_out, c->n_in, c->norm ? " norm" : "", c->accumulate ? " accumulate" : "");
    begin(label);
    const weight *w = new_weight(c->type, c->n_out, c->n_in),
                 *norm = c->norm ? new_weight(MOA_F32, 1, c->n_in) : NULL;
    const mem *x = random_memory((size_t)c->n_in), *h = memory(NULL, (size_t)c->n_in);
    const mem *y = c->accumulate ? random_memory((size_t)c->n_out) : memory(NULL, (size_t)c->n_out);
    float *start = fetch(y, DEV), *first = NULL;
    moa_err err = {0};
    if (norm)
        CALL(REF, rmsnorm, .x = x->dev[REF], .w = norm->dev[REF], .y = h->dev[REF], .n_tok = 1, .n = c->n_in,
             .eps = 1e-5f);
    CALL(REF, matmul, .x = norm ? h->dev[REF] : x->dev[REF], .w = w->dev[REF], .y = y->dev[REF], .n_tok = 1,
         .accumulate = c->accumulate);
    for (int k = 0; k < 2; k++) {
        must(rig.b[DEV]->vt->upload(rig.b[DEV], y->dev[DEV] - GUARD, start,
                                    (y->n + 2 * GUARD) * sizeof *start, &err),
             &err);
        CALL(DEV, fused_product, .in = {.x = x->dev[DEV], .norm = norm ? norm->dev[DEV] : NULL, .eps = 1e-5f},
             .w = w->dev[DEV], .y = y->dev[DEV], .accumulate = c->accumulate, .taken = &taken);
        if (!taken) break;
        if (k == 0) first = fetch(y, DEV);
    }
    if (taken) {
        compare(y, false, 1e-6, "y");
        same_bits(y, first, "y of a second run differs");
    } else if (c->n_in % 8 == 0 && c->n_in < 16384) {
        fail("declined", 0);
    } else {
        rig.n_declined++;
    }
    free(start);
    free(first);
    end();
}

static const moa_dtype dtypes[] = {
#define X(name, id, block_len, block_bytes) MOA_##name,
    MOA_DTYPE_MAP(X)
#undef X
};
enum { N_DTYPE = sizeof dtypes / sizeof *dtypes };

static void check_products(void) {
    static const int32_t n_outs[] = {1, 2, 65, 576, 1531};
    for (int d = 0; d < N_DTYPE; d++)
        for (int o = 0; o < 5; o++) {
            const int32_t block = (int32_t)moa_dtype_find((uint32_t)dtypes[d])->block_len;
            const int32_t n_ins[] = {block == 1 ? 8 : block, block == 256 ? 768 : 576,
                                     block == 256 ? 1536 : 1504, 2048, 5120};
            check_product(
                &(product_case){dtypes[d], n_outs[o], n_ins[(o + d) % 5], (o + d) % 2, (o + d) % 3 == 0});
            check_product(&(product_case){dtypes[d], n_outs[o], n_ins[o], o % 2 == 0, o % 3 == 0});
        }
    check_product(
        &(product_case){MOA_F32, 5, 33, true, false}); /* rows that are no whole number of 16 bytes */
    check_product(&(product_case){MOA_F32, 2, 40000, true, false});
}

/* --- gate and up ------------------------------------------------------------------------------------------------------------- */

static void check_gate_up(moa_dtype type, moa_dtype up_type, int32_t n_out, int32_t n_in) {
    char label[160];
    bool taken = false;
    (void)snprintf(label, sizeof label, "gate_up %s %s %d x %d", moa_dtype_find((uint32_t)type)->name,
                   moa_dtype_find((uint32_t)up_type)->name, n_out, n_in);
    begin(label);
    const weight *gate = new_weight(type, n_out, n_in), *up = new_weight(up_type, n_out, n_in),
                 *norm = new_weight(MOA_F32, 1, n_in);
    const mem *x = random_memory((size_t)n_in), *h = memory(NULL, (size_t)n_in),
              *y = memory(NULL, (size_t)n_out), *u = memory(NULL, (size_t)n_out);
    float *first = NULL;
    CALL(REF, rmsnorm, .x = x->dev[REF], .w = norm->dev[REF], .y = h->dev[REF], .n_tok = 1, .n = n_in,
         .eps = 1e-6f);
    CALL(REF, matmul, .x = h->dev[REF], .w = gate->dev[REF], .y = y->dev[REF], .n_tok = 1);
    CALL(REF, matmul, .x = h->dev[REF], .w = up->dev[REF], .y = u->dev[REF], .n_tok = 1);
    CALL(REF, silu_mul, .gate = y->dev[REF], .up = u->dev[REF], .y = y->dev[REF], .n = n_out);
    for (int k = 0; k < 2; k++) {
        CALL(DEV, fused_gate_up, .in = {.x = x->dev[DEV], .norm = norm->dev[DEV], .eps = 1e-6f},
             .gate = gate->dev[DEV], .up = up->dev[DEV], .y = y->dev[DEV], .taken = &taken);
        if (taken && k == 0) first = fetch(y, DEV);
    }
    if (taken != (type == up_type)) fail("taken", taken);
    if (taken) {
        compare(y, false, 1e-5, "y");
        same_bits(y, first, "y of a second run differs");
    } else {
        rig.n_declined++;
    }
    free(first);
    end();
}

/* --- q, k, v ------------------------------------------------------------------------------------------------------------------ */

typedef struct qkv_case {
    moa_dtype type[3];
    int32_t n_head, n_head_kv, d_head, n_in, rope_dim, pos;
    moa_rope_kind kind;
    moa_kv_type kv;
    bool bias, factors, gone; /* gone: the page is not there */
} qkv_case;

enum { MAX_PAGES = 5, N_PAGE = 16 };

static void reference_qkv(const qkv_case *c, const moa_args_fused_qkv *a, const mem *h, float *v) {
    CALL(REF, rmsnorm, .x = a->in.x, .w = a->in.norm, .y = h->dev[REF], .n_tok = 1, .n = c->n_in,
         .eps = a->in.eps);
    CALL(REF, matmul, .x = h->dev[REF], .w = a->wq, .bias = a->bq, .y = a->q, .n_tok = 1);
    CALL(REF, matmul, .x = h->dev[REF], .w = a->wk, .bias = a->bk, .y = a->k, .n_tok = 1);
    CALL(REF, matmul, .x = h->dev[REF], .w = a->wv, .bias = a->bv, .y = v, .n_tok = 1);
    moa_err err = {0};
    moa_args_rope rope = a->rope;
    rope.n_tok = 1;
    rope.x = a->q, rope.n_head = c->n_head;
    must(rig.b[REF]->vt->rope(rig.b[REF], &rope, &err), &err);
    rope.x = a->k, rope.n_head = c->n_head_kv;
    must(rig.b[REF]->vt->rope(rig.b[REF], &rope, &err), &err);
    if (c->gone) return; /* the reference refuses it: the pages must stay as they are */
    CALL(REF, kv_store, .k = a->k, .v = v, .kv = a->kv, .seq = a->seq, .pos = a->rope.pos, .n_tok = 1);
}

/* element i of K (side 0) or V of a page's token */
static double page_value(const qkv_case *c, const unsigned char *page, int side, int32_t token, int32_t i) {
    const int32_t at = (side * MOA_PAGE_TOK + token) * c->d_head + i;
    float f;
    if (c->kv == MOA_KV_BF16) {
        const uint32_t bits = (uint32_t)((const uint16_t *)(const void *)page)[at] << 16;
        memcpy(&f, &bits, sizeof f);
        return f;
    }
    const double code = ((const int8_t *)page)[at];
    memcpy(&f, page + 2 * MOA_PAGE_TOK * c->d_head + 4 * token, sizeof f);
    const int exponent = page[2 * MOA_PAGE_TOK * c->d_head + 4 * MOA_PAGE_TOK + i];
    return side ? code * (double)f : exponent ? ldexp(code + 0.5, exponent - 127) : 0;
}

/* what the pages of bf16 or q8 hold: where a product's last bits differ, so may the code */
static void compare_pages(const qkv_case *c, const mem *pool) {
    const size_t bytes = moa_kv_page_bytes(c->kv, c->d_head);
    float *a = fetch(pool, REF), *b = fetch(pool, DEV);
    double error = 0, power = 0;
    for (int32_t e = 0; e < N_PAGE * 2 * MOA_PAGE_TOK * c->d_head; e++) {
        const int32_t per = 2 * MOA_PAGE_TOK * c->d_head, in_page = e % per, row = in_page / c->d_head;
        const size_t at = (size_t)(e / per) * bytes;
        const double x = page_value(c, (const unsigned char *)(a + GUARD) + at, row / MOA_PAGE_TOK, row % MOA_PAGE_TOK, in_page % c->d_head),
                     y = page_value(c, (const unsigned char *)(b + GUARD) + at, row / MOA_PAGE_TOK, row % MOA_PAGE_TOK, in_page % c->d_head);
        if (isnan(x) != isnan(y)) {
            fail("a page's value is NaN on one side", e);
            break;
        }
        if (isnan(x)) continue;
        error += (x - y) * (x - y);
        power += x * x;
    }
    const double nmse = error == 0 ? 0 : error / power;
    if (!(nmse <= (c->kv == MOA_KV_Q8 ? 1e-4 : 1e-5))) fail("pages", nmse);
    if ((c->gone || c->pos < 0) && memcmp(a, b, (pool->n + 2 * GUARD) * sizeof *a) != 0) fail("written without a place", 0);
    free(a);
    free(b);
}

static void check_qkv(const qkv_case *c) {
    char label[200];
    bool taken = false;
    (void)snprintf(label, sizeof label, "qkv %s %s %s %d/%d x %d of %d, rope %d %s, pos %d%s%s%s%s",
                   moa_dtype_find((uint32_t)c->type[0])->name, moa_dtype_find((uint32_t)c->type[1])->name,
                   moa_dtype_find((uint32_t)c->type[2])->name, c->n_head, c->n_head_kv, c->d_head, c->n_in,
                   c->rope_dim, c->kind == MOA_ROPE_PAIRS ? "pairs" : "halves", c->pos,
                   (const char *const[]){" f16", " f32", " bf16", " q8"}[c->kv], c->bias ? " bias" : "",
                   c->factors ? " factors" : "", c->gone ? " page gone" : "");
    begin(label);
    const int32_t nq = c->n_head * c->d_head, nk = c->n_head_kv * c->d_head;
    const weight *w[3] = {new_weight(c->type[0], nq, c->n_in), new_weight(c->type[1], nk, c->n_in),
                          new_weight(c->type[2], nk, c->n_in)};
    const weight *norm = new_weight(MOA_F32, 1, c->n_in), *bias = c->bias ? new_weight(MOA_F32, 1, nq) : NULL;
    const weight *bias_k = c->bias ? new_weight(MOA_F32, 1, nk) : NULL;
    const weight *factors = NULL;
    int32_t table[2 * 8 * MAX_PAGES], seq = 1;
    for (int i = 0; i < 2 * 8 * MAX_PAGES; i++)
        table[i] = c->gone ? -1 : (i * 7) % N_PAGE;
    const size_t pool_floats = N_PAGE * moa_kv_page_bytes(c->kv, c->d_head) / sizeof(float);
    float *zero = calloc(pool_floats, sizeof *zero); /* q8: the exponents of earlier tokens are numbers */
    if (!zero) abort();
    const mem *x = random_memory((size_t)c->n_in), *h = memory(NULL, (size_t)c->n_in),
              *q = memory(NULL, (size_t)nq), *k = memory(NULL, (size_t)nk), *v = memory(NULL, (size_t)nk),
              *pool = memory(c->kv == MOA_KV_Q8 ? zero : NULL, pool_floats), *tab = int_memory(table, 2 * 8 * MAX_PAGES),
              *pos = int_memory(&c->pos, 1), *which = int_memory(&seq, 1);
    free(zero);
    if (c->factors) factors = new_weight(MOA_F32, 1, c->rope_dim / 2);
    float *first[3] = {NULL, NULL, NULL};
    for (int side = 0; side < 3; side++) { /* the device twice */
        const int s = side > 0;
        const moa_args_fused_qkv a = {.in = {.x = x->dev[s], .norm = norm->dev[s], .eps = 1e-5f},
                                      .wq = w[0]->dev[s],
                                      .wk = w[1]->dev[s],
                                      .wv = w[2]->dev[s],
                                      .bq = bias ? bias->dev[s] : NULL,
                                      .bk = bias ? bias_k->dev[s] : NULL,
                                      .bv = bias ? bias_k->dev[s] : NULL,
                                      .q = q->dev[s],
                                      .k = k->dev[s],
                                      .v = v->dev[s],
                                      .rope = {.pos = ints(pos, s),
                                               .freq_factors = factors ? factors->dev[s] : NULL,
                                               .d_head = c->d_head,
                                               .rope_dim = c->rope_dim,
                                               .kind = c->kind,
                                               .theta = 10000,
                                               .scale = 0.5f},
                                      .kv = {.pool = pool->dev[s],
                                             .table = ints(tab, s),
                                             .table_seq_stride = c->n_head_kv * MAX_PAGES,
                                             .n_head_kv = c->n_head_kv,
                                             .d_head = c->d_head,
                                             .max_pages = MAX_PAGES,
                                             .type = c->kv},
                                      .seq = ints(which, s),
                                      .n_head = c->n_head,
                                      .taken = &taken};
        moa_err err = {0};
        if (!s)
            reference_qkv(c, &a, h, v->dev[REF]);
        else
            must(rig.b[DEV]->vt->fused_qkv(rig.b[DEV], &a, &err), &err);
        if (side == 1) first[0] = fetch(q, DEV), first[1] = fetch(k, DEV), first[2] = fetch(pool, DEV);
    }
    if (!taken) {
        fail("declined", 0);
    } else {
        if (c->pos >= 0) {
            compare(q, false, 1e-6, "q");
            compare(k, false, 1e-6, "k");
        }
        if (c->kv == MOA_KV_F16 || c->kv == MOA_KV_F32)
            compare(pool, c->kv == MOA_KV_F16, 1e-6, "pages");
        else
            compare_pages(c, pool);
        same_bits(q, first[0], "q of a second run differs");
        same_bits(k, first[1], "k of a second run differs");
        same_bits(pool, first[2], "pages of a second run differ");
    }
    for (int i = 0; i < 3; i++)
        free(first[i]);
    end();
}

static void check_all_qkv(void) {
    for (int d = 0; d < N_DTYPE; d++) {
        const moa_dtype t = dtypes[d], other = dtypes[(d + 3) % N_DTYPE];
        const qkv_case base = {{t, t, t},      9,          3,     64,    768,  64, 131,
                               MOA_ROPE_PAIRS, MOA_KV_F16, false, false, false};
        qkv_case c = base;
        check_qkv(&c);
        c.kind = MOA_ROPE_HALVES, c.bias = true, c.type[2] = other, c.kv = MOA_KV_F32, c.pos = 64;
        check_qkv(&c);
        c.type[1] = other, c.d_head = 80, c.n_head = 4, c.n_head_kv = 4, c.rope_dim = 32, c.pos = 0;
        c.kv = d % 2 ? MOA_KV_BF16 : MOA_KV_Q8;
        check_qkv(&c);
        c.kind = MOA_ROPE_PAIRS, c.d_head = 128, c.n_head = 8, c.n_head_kv = 1, c.rope_dim = 128,
        c.factors = true, c.pos = 319, c.kv = d % 2 ? MOA_KV_Q8 : MOA_KV_BF16;
        check_qkv(&c);
    }
    qkv_case c = {{MOA_Q4_K, MOA_Q4_K, MOA_Q6_K},
                  12,
                  2,
                  128,
                  1536,
                  128,
                  200,
                  MOA_ROPE_HALVES,
                  MOA_KV_F16,
                  true,
                  false,
                  false};
    check_qkv(&c);
    c.pos = -1;
    check_qkv(&c);
    c.pos = 100, c.gone = true;
    check_qkv(&c);
    c.gone = false, c.rope_dim = 0;
    check_qkv(&c);
    for (c.kv = MOA_KV_BF16; c.kv <= MOA_KV_Q8; c.kv++) {
        c.pos = 64, c.gone = false;
        check_qkv(&c);
        c.pos = -1;
        check_qkv(&c);
        c.pos = 100, c.gone = true;
        check_qkv(&c);
    }
}

int main(int argc, char **argv) {
    const moa_backend_config reference = {.reference = true};
    const moa_backend_config config = {0};
    char why[256];
    moa_err err = {0};
    must(moa_cpu_open(&rig.b[REF], &reference, &err), &err);
    if (moa_backend_open(&rig.b[DEV], argc > 1 ? argv[1] : "cuda", &config, why, sizeof why, &err) !=
        MOA_OK) {
        (void)printf("skipped: %s\n", err.text);
        moa_backend_close(&rig.b[REF]);
        return SKIP;
    }
    if (!rig.b[DEV]->vt->fused_qkv || !rig.b[DEV]->vt->fused_gate_up || !rig.b[DEV]->vt->fused_product) {
        (void)printf("skipped: backend %s has no fused operations\n", rig.b[DEV]->vt->name);
        moa_backend_close(&rig.b[DEV]);
        moa_backend_close(&rig.b[REF]);
        return SKIP;
    }
    check_products();
    for (int d = 0; d < N_DTYPE; d++) {
        check_gate_up(dtypes[d], dtypes[d], 193, d % 2 ? 768 : 1536);
        check_gate_up(dtypes[d], dtypes[(d + 1) % N_DTYPE], 64, 768);
    }
    check_all_qkv();
    (void)printf("%d cases, %d declined as they should be, worst NMSE %.1e, %d failures\n", rig.n_case,
                 rig.n_declined, rig.worst, rig.n_failed);
    moa_backend_close(&rig.b[DEV]);
    moa_backend_close(&rig.b[REF]);
    return rig.n_failed != 0;
}
