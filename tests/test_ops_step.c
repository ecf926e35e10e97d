/* test_ops_step.c -- a whole decode step as one operation against the single operations of the reference backend.
 *
 *   test_ops_step [DEVICE [CASE [grid | cluster] | bench [WORD]]]      default cuda, all cases (also -1) by both kernels; WORD: those
 *   whose name has it. Exits 77 and says why where the device or its operation is missing
 *
 * Small models of random weights: groups of 1, 3, 4, 7 and 8 query heads, heads of 64 and 128 (80 and 96 declined), every weight type, q, k and v of
 * different types, biases, rope of both kinds and of part of a head, spans that differ inside a group, tokens that fill no page and
 * many pages, pages that are gone, an idle row, heads with and without their own matrix, statistics and histograms. Both sides get
 * the same bytes, the reference goes op by op in double. What the step leaves (x, logits, pages, statistics) may differ by NMSE <=
 * 1e-5 (5e-5 of statistics), and what neither writes still holds its NaN. On the device every case runs twice and once more from a
 * recording: the bits must be the same. All of it by the kernel of all multiprocessors ($MOASCOPE_STEP=1) and by that of a cluster of
 * sixteen (=cluster), which takes other sizes of heads and quantised weights alone. */
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "ops_blocks.h"
#include "ops_check.h"
#include "ops_half.h"

enum { SKIP = 77, REF = 0, DEV = 1, GUARD = 64, MAX_LAYER = 32, MAX_ROW = 32, OWN_LAYER = 30, N_MATRIX = 7 };

static const moa_dtype dtypes[] = {
#define X(name, id, block_len, block_bytes) MOA_##name,
    MOA_DTYPE_MAP(X)
#undef X
};
enum { N_DTYPE = sizeof dtypes / sizeof *dtypes };

typedef struct step_case {
    int32_t n_row; /* of as many sequences, the last idle; 0 is 1 */
    int32_t n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab, pos, rope_dim;
    moa_dtype type[N_MATRIX + 1]; /* q k v o gate up down, head */
    moa_rope_kind kind;
    bool bias, factors, tied, narrow, gone,
        watch;                         /* narrow: unequal spans; gone: an old page in sight is not there */
    bool no_logits, declined, unequal; /* unequal: .8 and .2 of all tokens */
} step_case;

static moa_backend *backend[2];
static bool timing;                   /* on the device alone */
static size_t fresh_bytes = SIZE_MAX; /* of a weight; then they come again */
static double worst;
static char label[256];
static bool cluster; /* which kernel */

/* --- one case's memory, on both sides ---------------------------------------------------------------------------------------- */

typedef struct buffer {
    float *dev[2]; /* behind GUARD floats */
    size_t n;
    float *start; /* host image with its guards, what both begin with */
} buffer;

enum { B_X, B_Q, B_O, B_GATE, B_LOGITS, B_POOL, B_STAT, B_HIST, B_TABLE, B_SPAN, B_POS, B_SEQ, N_BUFFER };

typedef struct model {
    step_case c;
    moa_layer_weights layer[MAX_LAYER][2]; /* [layer][side] */
    moa_dev_weight *out_norm[2], *output[2], *factors[2];
    buffer b[N_BUFFER];
    int32_t max_pages, n_bin, n_own, row; /* row: of the reference */
} model;

static int32_t rows_of(const step_case *c) {
    return c->n_row > 1 ? c->n_row : 1;
}
static int32_t pos_of(const step_case *c, int32_t row) {
    const int32_t pos = c->pos - 37 * row;
    return row == 0 ? c->pos : (row == c->n_row - 1 && !timing) || pos < 0 ? -1 : pos;
}

static void *hold(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) abort();
    return p;
}

static void start_again(const buffer *b, int side) {
    moa_err err = {0};
    must(backend[side]->vt->upload(backend[side], b->dev[side] - GUARD, b->start,
                                   (b->n + 2 * GUARD) * sizeof(float), &err),
         &err, "upload");
}
/* host NULL: NaN */
static void make_buffer(buffer *b, const void *host, size_t n) {
    const uint32_t poison = 0x7fc5a5a5u;
    b->n = n;
    b->start = hold((n + 2 * GUARD) * sizeof(float));
    for (size_t i = 0; i < n + 2 * GUARD; i++)
        memcpy(b->start + i, &poison, 4);
    if (host) memcpy(b->start + GUARD, host, n * sizeof(float));
    for (int side = timing ? DEV : REF; side < 2; side++)
        b->dev[side] = (float *)put(backend[side], b->start, (n + 2 * GUARD) * sizeof(float)) + GUARD;
}
static float *fetch(const buffer *b, int side) {
    const size_t bytes = (b->n + 2 * GUARD) * sizeof(float);
    float *image = hold(bytes);
    moa_err err = {0};
    must(backend[side]->vt->download(backend[side], image, b->dev[side] - GUARD, bytes, &err), &err,
         "download");
    return image;
}
static const int32_t *ints(const buffer *b, int side) {
    return (const int32_t *)(const void *)b->dev[side];
}

static void load(moa_dtype type, int32_t n_out, int32_t n_in, moa_dev_weight **ref, moa_dev_weight **dev) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    unsigned char *data = hold(bytes);
    moa_err err = {0};
    const size_t fresh = bytes < fresh_bytes ? bytes : fresh_bytes / info->block_bytes * info->block_bytes;
    for (size_t i = 0; i < fresh; i += info->block_bytes)
        fill_block(type, info, data + i);
    for (size_t i = fresh, n; i < bytes; i += n) {
        n = bytes - i < fresh ? bytes - i : fresh;
        memcpy(data + i, data, n);
    }
    const moa_weight w = {
        .name = "test", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
    if (!timing) must(backend[REF]->vt->weight_load(backend[REF], &w, false, ref, &err), &err, "weight");
    must(backend[DEV]->vt->weight_load(backend[DEV], &w, false, dev, &err), &err, "weight");
    free(data);
}

static void load_layer(const step_case *c, moa_layer_weights w[2]) {
    const int32_t q = c->n_head * c->d_head, kv = c->n_head_kv * c->d_head, d = c->d_model;
    w[0] = w[1] = (moa_layer_weights){0};
    load(MOA_F32, 1, d, &w[0].attn_norm, &w[1].attn_norm);
    load(MOA_F32, 1, d, &w[0].ffn_norm, &w[1].ffn_norm);
    load(c->type[0], q, d, &w[0].wq, &w[1].wq);
    load(c->type[1], kv, d, &w[0].wk, &w[1].wk);
    load(c->type[2], kv, d, &w[0].wv, &w[1].wv);
    load(c->type[3], d, q, &w[0].wo, &w[1].wo);
    load(c->type[4], c->d_ff, d, &w[0].gate, &w[1].gate);
    load(c->type[5], c->d_ff, d, &w[0].up, &w[1].up);
    load(c->type[6], d, c->d_ff, &w[0].down, &w[1].down);
    if (!c->bias) return;
    load(MOA_F32, 1, q, &w[0].bq, &w[1].bq);
    load(MOA_F32, 1, kv, &w[0].bk, &w[1].bk);
    load(MOA_F32, 1, kv, &w[0].bv, &w[1].bv);
}

static uint16_t half_of(float x) { /* of normal range, not rounded */
    uint32_t b;
    memcpy(&b, &x, 4);
    const int e = (int)(b >> 23 & 255) - 112;
    return e <= 0 ? 0 : (uint16_t)((b >> 16 & 0x8000u) | (uint32_t)e << 10 | (b >> 13 & 1023u));
}

/* Pages of the sequences (all but the first in the table), the rows of tokens before the newest filled; what no head sees is not there */
static void fill_cache(model *m, const int32_t *span) {
    const step_case *c = &m->c;
    const int32_t each = c->n_layer * c->n_head_kv * m->max_pages, n_table = (1 + rows_of(c)) * each,
                  group = c->n_head / c->n_head_kv, n_span = c->n_layer * c->n_head;
    const size_t page = (size_t)2 * MOA_PAGE_TOK * (size_t)c->d_head, n_page = (size_t)(n_table - each) + 1;
    int32_t *table = hold((size_t)n_table * sizeof *table), used = 0;
    uint16_t *pool = hold(n_page * page * 2);
    for (size_t i = 0; i < n_page * page; i++)
        pool[i] = 0x7e5a; /* NaN */
    for (int32_t i = 0; i < n_table; i++)
        table[i] = -1;
    for (int32_t r = 0; r < rows_of(c); r++)
        for (int32_t g = 0; g < c->n_layer * c->n_head_kv; g++) { /* KV heads of all layers */
            const int32_t pos = pos_of(c, r), k = g % c->n_head_kv;
            int32_t widest = 0;
            for (int32_t h = 0; h < group; h++)
                if (span[r * n_span + g * group + h] > widest) widest = span[r * n_span + g * group + h];
            for (int32_t p = 0; p * MOA_PAGE_TOK <= pos; p++) {
                if (!moa_keep(widest, pos, p) || (c->gone && p == 1 && k == 0)) continue;
                const int32_t at = (int32_t)n_page - 1 - used++;
                table[(1 + r) * each + g * m->max_pages + p] = at;
                uint16_t *to = pool + (size_t)at * page;
                if (timing && used > 1) { /* what stands in a page does not change how long it takes */
                    memcpy(to, pool + (n_page - 1) * page, page * sizeof *to);
                    continue;
                }
                for (int32_t t = 0; t < MOA_PAGE_TOK && p * MOA_PAGE_TOK + t < pos; t++)
                    for (int32_t i = 0; i < c->d_head; i++) {
                        to[t * c->d_head + i] = half_of(normal());
                        to[(MOA_PAGE_TOK + t) * c->d_head + i] = half_of(normal());
                    }
            }
        }
    make_buffer(&m->b[B_TABLE], table, (size_t)n_table);
    make_buffer(&m->b[B_POOL], pool, n_page * page / 2);
    free(table);
    free(pool);
}

/* layers from n_own on have the weights of those before */
static void open_model(model *m, const step_case *c, int32_t n_own) {
    const int32_t n_row = rows_of(c), n_span = n_row * c->n_layer * c->n_head;
    int32_t seq[MAX_ROW], pos[MAX_ROW];
    int32_t *span = hold((size_t)n_span * sizeof *span);
    *m = (model){.c = *c,
                 .n_own = n_own < c->n_layer ? n_own : c->n_layer,
                 .max_pages = (c->pos < 0 ? 0 : c->pos / MOA_PAGE_TOK) + 2};
    m->n_bin = m->max_pages > 3 ? m->max_pages - 2 : 1; /* the last bins fall together */
    for (int32_t l = 0; l < c->n_layer; l++)
        if (l < n_own)
            load_layer(c, m->layer[l]);
        else
            memcpy(m->layer[l], m->layer[l % n_own], sizeof m->layer[l]);
    load(MOA_F32, 1, c->d_model, &m->out_norm[0], &m->out_norm[1]);
    load(c->type[7], c->n_vocab, c->d_model, &m->output[0], &m->output[1]);
    if (c->factors) load(MOA_F32, 1, c->rope_dim / 2, &m->factors[0], &m->factors[1]);
    for (int32_t i = 0; i < n_span; i++)
        span[i] = c->narrow ? MOA_SPAN_MIN + MOA_PAGE_TOK * (int32_t)(bits() % 6) : 1 << 20;
    for (int32_t i = 0; i < n_span && c->unequal; i++) /* heads by turns, the heads of a group alike */
        span[i] = c->pos / 10 * (i / (c->n_head / c->n_head_kv) % 2 ? 2 : 8);
    const size_t rows = (size_t)n_row;
    float *x = hold(rows * (size_t)c->d_model * sizeof *x);
    for (int32_t i = 0; i < n_row * c->d_model; i++)
        x[i] = normal();
    for (int32_t r = 0; r < n_row; r++)
        seq[r] = 1 + r, pos[r] = pos_of(c, r);
    make_buffer(&m->b[B_X], x, rows * (size_t)c->d_model);
    make_buffer(&m->b[B_Q], NULL, rows * (size_t)c->n_head * (size_t)c->d_head);
    make_buffer(&m->b[B_O], NULL, rows * (size_t)c->n_head * (size_t)c->d_head);
    make_buffer(&m->b[B_GATE], NULL, rows * (size_t)c->d_ff);
    make_buffer(&m->b[B_LOGITS], NULL, rows * (size_t)c->n_vocab);
    make_buffer(&m->b[B_STAT], NULL, (size_t)n_span * MOA_N_STAT);
    const size_t n_hist = (size_t)n_span * MOA_HIST_BUCKETS * (size_t)(1 + m->n_bin);
    float *hist = hold(n_hist * sizeof *hist);
    for (size_t i = 0; i < n_hist; i++)
        hist[i] = 0.25f;
    make_buffer(&m->b[B_HIST], hist, n_hist);
    make_buffer(&m->b[B_SPAN], span, (size_t)n_span);
    make_buffer(&m->b[B_POS], pos, rows);
    make_buffer(&m->b[B_SEQ], seq, rows);
    fill_cache(m, span);
    free(span);
    free(x);
    free(hist);
}

static void close_model(model *m) {
    for (int side = timing ? DEV : REF; side < 2; side++) {
        const moa_backend_vtable *vt = backend[side]->vt;
        for (int32_t l = 0; l < m->n_own; l++) {
            const moa_layer_weights *y = &m->layer[l][side];
            moa_dev_weight *all[] = {y->attn_norm, y->wq, y->wk,       y->wv,   y->bq, y->bk,
                                     y->bv,        y->wo, y->ffn_norm, y->gate, y->up, y->down};
            for (size_t i = 0; i < sizeof all / sizeof *all; i++)
                vt->weight_free(backend[side], all[i]);
        }
        vt->weight_free(backend[side], m->out_norm[side]);
        vt->weight_free(backend[side], m->output[side]);
        vt->weight_free(backend[side], m->factors[side]);
        for (int i = 0; i < N_BUFFER; i++)
            vt->free(backend[side], m->b[i].dev[side] - GUARD);
    }
    for (int i = 0; i < N_BUFFER; i++)
        free(m->b[i].start);
}

/* --- arguments ------------------------------------------------------------------------------------------------------------------ */

static moa_kv_view view_of(const model *m, int side, int32_t layer) {
    const int64_t each = (int64_t)m->c.n_head_kv * m->max_pages;
    return (moa_kv_view){.pool = m->b[B_POOL].dev[side],
                         .table = ints(&m->b[B_TABLE], side) + layer * each,
                         .table_seq_stride = each * m->c.n_layer,
                         .n_head_kv = m->c.n_head_kv,
                         .d_head = m->c.d_head,
                         .max_pages = m->max_pages,
                         .type = MOA_KV_F16};
}
static moa_probe probe_of(const model *m, int side, int32_t layer) {
    const int64_t at = (int64_t)layer * m->c.n_head;
    if (!m->c.watch) return (moa_probe){0};
    return (moa_probe){.stat = m->b[B_STAT].dev[side] + at * MOA_N_STAT,
                       .hist = m->b[B_HIST].dev[side] + at * MOA_HIST_BUCKETS * (1 + m->n_bin),
                       .n_bin = m->n_bin,
                       .bucket_tok = 100};
}
static moa_args_rope rope_of(const model *m, int side, float *x, int32_t n_head) {
    return (moa_args_rope){.x = x,
                           .pos = ints(&m->b[B_POS], side) + m->row,
                           .freq_factors = m->factors[side],
                           .n_tok = 1,
                           .n_head = n_head,
                           .d_head = m->c.d_head,
                           .rope_dim = m->c.rope_dim,
                           .kind = m->c.kind,
                           .theta = 10000,
                           .scale = 1};
}

/* --- the reference ---------------------------------------------------------------------------------------------------------------- */

static void multiply(const float *x, const moa_dev_weight *w, const moa_dev_weight *bias, float *y,
                     bool more) {
    CALL(backend[REF], matmul, .x = x, .w = w, .bias = bias, .y = y, .n_tok = 1, .accumulate = more);
}
static void normalise(const model *m, const moa_dev_weight *w, float *y) {
    CALL(backend[REF], rmsnorm, .x = m->b[B_X].dev[REF] + m->row * m->c.d_model, .w = w, .y = y, .n_tok = 1,
         .n = m->c.d_model, .eps = 1e-5f);
}
static void turn(const model *m, float *x, int32_t n_head) {
    const moa_args_rope a = rope_of(m, REF, x, n_head);
    moa_err err = {0};
    must(backend[REF]->vt->rope(backend[REF], &a, &err), &err, "rope");
}

static void reference_layer(const model *m, int32_t l, float *space[5]) {
    const moa_layer_weights *w = &m->layer[l][REF];
    float *h = space[0], *k = space[1], *v = space[2], *gate = space[3], *up = space[4],
          *x = m->b[B_X].dev[REF] + m->row * m->c.d_model, *q = m->b[B_Q].dev[REF], *o = m->b[B_O].dev[REF];
    normalise(m, w->attn_norm, h);
    multiply(h, w->wq, w->bq, q, false);
    multiply(h, w->wk, w->bk, k, false);
    multiply(h, w->wv, w->bv, v, false);
    turn(m, q, m->c.n_head);
    turn(m, k, m->c.n_head_kv);
    moa_kv_view kv = view_of(m, REF, l);
    CALL(backend[REF], kv_store, .k = k, .v = v, .kv = kv, .seq = ints(&m->b[B_SEQ], REF) + m->row,
         .pos = ints(&m->b[B_POS], REF) + m->row, .n_tok = 1);
    kv.table += (1 + m->row) * kv.table_seq_stride; /* attention has its sequences in order */
    CALL(backend[REF], attn_decode, .q = q, .o = o, .kv = kv, .pos = ints(&m->b[B_POS], REF) + m->row,
         .span = ints(&m->b[B_SPAN], REF) + (m->row * m->c.n_layer + l) * m->c.n_head,
         .span_seq_stride = m->c.n_head, .n_seq = 1, .n_head = m->c.n_head, .scale = 0.125f,
         .probe = probe_of(m, REF, l));
    multiply(o, w->wo, NULL, x, true);
    normalise(m, w->ffn_norm, h);
    multiply(h, w->gate, NULL, gate, false);
    multiply(h, w->up, NULL, up, false);
    CALL(backend[REF], silu_mul, .gate = gate, .up = up, .y = gate, .n = m->c.d_ff);
    multiply(gate, w->down, NULL, x, true);
}

static void reference_row(const model *m) {
    const step_case *c = &m->c;
    const size_t kv = (size_t)c->n_head_kv * (size_t)c->d_head;
    const size_t sizes[5] = {(size_t)c->d_model, kv, kv, (size_t)c->d_ff, (size_t)c->d_ff};
    float *space[5];
    for (int i = 0; i < 5; i++)
        space[i] = take(backend[REF], sizes[i] * sizeof(float));
    for (int32_t l = 0; l < c->n_layer; l++)
        reference_layer(m, l, space);
    if (!c->no_logits) {
        normalise(m, m->out_norm[REF], space[0]);
        multiply(space[0], m->output[REF], NULL, m->b[B_LOGITS].dev[REF] + m->row * c->n_vocab, false);
    }
    for (int i = 0; i < 5; i++)
        backend[REF]->vt->free(backend[REF], space[i]);
}

static void reference(const model *m) {
    model one = *m;
    for (; one.row < rows_of(&m->c); one.row++)
        reference_row(&one);
}

/* --- comparing -------------------------------------------------------------------------------------------------------------------- */

/* the same elements are NaN on both sides; the others agree within limit */
static void compare(const model *m, int which, bool half, double limit, const char *what) {
    const buffer *b = &m->b[which];
    float *x = fetch(b, REF), *y = fetch(b, DEV);
    double error = 0, power = 0;
    size_t n = (b->n + 2 * GUARD) * (half ? 2 : 1);
    if (m->c.n_row > 1 &&
        (which == B_X || which == B_LOGITS)) /* what becomes of the idle row does not matter */
        n = GUARD + b->n / (size_t)m->c.n_row * ((size_t)m->c.n_row - 1);
    for (size_t i = 0; i < n; i++) {
        const double u = value(x, i, half), v = value(y, i, half);
        if (isnan(u) != isnan(v)) {
            CHECK(false, "%s, %s: element %zd %s", label, what,
                  (ptrdiff_t)i - (ptrdiff_t)GUARD * (half ? 2 : 1),
                  isnan(v) ? "not written, or NaN" : "written though the reference did not");
            break;
        }
        if (isnan(u)) continue;
        error += (u - v) * (u - v);
        power += u * u;
    }
    const double nmse = error == 0 ? 0 : error / power;
    CHECK(nmse <= limit, "%s, %s: NMSE %.2e above %.0e", label, what, nmse, limit);
    if (nmse > worst) worst = nmse;
    free(x);
    free(y);
}

static const int left[] = {B_X, B_LOGITS, B_POOL, B_STAT, B_HIST};
enum { N_LEFT = sizeof left / sizeof *left };

static void same_bits(const model *m, float *first[N_LEFT], const char *when) {
    for (int i = 0; i < N_LEFT; i++) {
        float *again = fetch(&m->b[left[i]], DEV);
        CHECK(memcmp(first[i], again, (m->b[left[i]].n + 2 * GUARD) * sizeof(float)) == 0,
              "%s: buffer %d differs %s", label, i, when);
        free(again);
    }
}

/* --- the device -------------------------------------------------------------------------------------------------------------------- */

static bool step(const model *m) {
    const step_case *c = &m->c;
    moa_layer_weights layers[MAX_LAYER];
    moa_kv_view kv = view_of(m, DEV, 0);
    bool taken = true;
    if (c->watch) kv.table += kv.table_seq_stride; /* a watched row is alone: its sequence is the first */
    for (int32_t l = 0; l < c->n_layer; l++)
        layers[l] = m->layer[l][DEV];
    CALL(backend[DEV], step_decode, .layers = layers, .out_norm = m->out_norm[DEV], .output = m->output[DEV],
         .x = m->b[B_X].dev[DEV], .q = m->b[B_Q].dev[DEV], .o = m->b[B_O].dev[DEV],
         .gate = m->b[B_GATE].dev[DEV], .logits = c->no_logits ? NULL : m->b[B_LOGITS].dev[DEV],
         .rope = rope_of(m, DEV, m->b[B_Q].dev[DEV], c->n_head), .kv = kv,
         .table_layer_stride = (int64_t)c->n_head_kv * m->max_pages,
         .seq = c->watch ? NULL : ints(&m->b[B_SEQ], DEV), .span = ints(&m->b[B_SPAN], DEV),
         .span_seq_stride = c->n_layer * c->n_head, .n_tok = c->n_row, .n_layer = c->n_layer,
         .n_head = c->n_head, .eps = 1e-5f, .scale = 0.125f, .probe = probe_of(m, DEV, 0), .taken = &taken);
    return taken;
}

static void all_again(const model *m) {
    for (int i = 0; i < N_BUFFER; i++)
        start_again(&m->b[i], DEV);
}

static void recorded(const model *m, float *first[N_LEFT]) {
    const moa_backend_vtable *vt = backend[DEV]->vt;
    void *recording = NULL;
    moa_err err = {0};
    if (!vt->record_begin) return;
    must(vt->record_begin(backend[DEV], &err), &err, "record_begin");
    (void)step(m);
    must(vt->record_end(backend[DEV], &recording, &err), &err, "record_end");
    for (int i = 0; i < 2; i++) {
        all_again(m);
        must(vt->replay(backend[DEV], recording, &err), &err, "replay");
        same_bits(m, first, "from a recording");
    }
    vt->recording_free(backend[DEV], recording);
}

static void take_way(bool sixteen) {
    cluster = sixteen;
    if (setenv("MOASCOPE_STEP", cluster ? "cluster" : "1", 1) != 0) abort();
}
static bool is_declined(const step_case *c) {
    if (!cluster) return c->declined || c->n_row > 1;
    for (int i = 0; i < N_MATRIX; i++)
        if (c->type[i] == MOA_F32 || c->type[i] == MOA_F16 || c->type[i] == MOA_BF16) return true;
    return c->n_head_kv > 16 || c->n_head_kv * c->d_head % 64 != 0;
}

static void check(const step_case *c, int n) {
    model m;
    float *first[N_LEFT];
    (void)snprintf(label, sizeof label,
                   "%s, case %d: %d layers %d/%d x %d, %d %d %d, %s %s %s %s %s %s, pos %d%s%s%s%s%s",
                   cluster ? "cluster" : "grid", n, c->n_layer, c->n_head, c->n_head_kv, c->d_head,
                   c->d_model, c->d_ff, c->n_vocab, moa_dtype_find((uint32_t)c->type[0])->name,
                   moa_dtype_find((uint32_t)c->type[2])->name, moa_dtype_find((uint32_t)c->type[3])->name,
                   moa_dtype_find((uint32_t)c->type[4])->name, moa_dtype_find((uint32_t)c->type[6])->name,
                   moa_dtype_find((uint32_t)c->type[7])->name, c->pos, c->bias ? " bias" : "",
                   c->factors ? " factors" : "", c->narrow ? " narrow" : "", c->gone ? " gone" : "",
                   c->watch       ? " watched"
                   : c->n_row > 1 ? " rows"
                                  : "");
    block_rng = 0x9e3779b97f4a7c15u + (uint64_t)n * 77;
    open_model(&m, c, OWN_LAYER);
    const bool taken = step(&m);
    CHECK(taken != is_declined(c), "%s: %s", label, taken ? "taken" : "declined");
    if (taken && !is_declined(c)) {
        reference(&m);
        for (int i = 0; i < N_LEFT; i++)
            first[i] = fetch(&m.b[left[i]], DEV);
        if (c->pos >= 0) compare(&m, B_X, false, 1e-5, "x");
        if (c->pos >= 0) compare(&m, B_LOGITS, false, 1e-5, "logits");
        compare(&m, B_POOL, true, 1e-5, "pages");
        compare(&m, B_STAT, false, 5e-5, "statistics");
        compare(&m, B_HIST, false, 5e-5, "histogram");
        all_again(&m);
        (void)step(&m);
        same_bits(&m, first, "in a second run");
        recorded(&m, first);
        for (int i = 0; i < N_LEFT; i++)
            free(first[i]);
    }
    close_model(&m);
}

/* --- cases -------------------------------------------------------------------------------------------------------------------------- */

static void set_types(step_case *c, moa_dtype t) {
    for (int i = 0; i <= N_MATRIX; i++)
        c->type[i] = t;
}

static int all_cases(step_case out[], int most) {
    const step_case base = {.n_layer = 2,
                            .n_head = 9,
                            .n_head_kv = 3,
                            .d_head = 64,
                            .d_model = 576,
                            .d_ff = 1536,
                            .n_vocab = 1001,
                            .pos = 131,
                            .rope_dim = 64,
                            .kind = MOA_ROPE_PAIRS};
    int n = 0;
    for (int d = 0; d < N_DTYPE && n + 2 < most; d++) { /* every type, twice */
        step_case c = base;
        set_types(&c, dtypes[d]);
        c.d_model = 768, c.n_head = 12, c.d_ff = 1280, c.watch = d % 2, c.n_vocab = 515;
        out[n++] = c;
        c.d_model = 512, c.n_head = 4, c.n_head_kv = 1, c.d_head = 128, c.d_ff = 2304, c.pos = 63 + d,
        c.rope_dim = 128, c.kind = MOA_ROPE_HALVES, c.bias = d % 2, c.watch = !c.watch;
        out[n++] = c;
    }
    const struct {
        int32_t n_head, n_head_kv, d_head, d_model, pos;
    } shapes[] = {
        {9, 3, 64, 576, 0},      {9, 3, 64, 576, 63},      {9, 3, 64, 576, 64},    {9, 3, 64, 576, 1500},
        {8, 8, 80, 640, 300},    {7, 1, 64, 512, 2000},    {14, 2, 64, 896, 700},  {8, 1, 96, 768, 520},
        {12, 2, 128, 1536, 333}, {16, 16, 64, 1024, 1000}, {3, 3, 128, 384, 2300}, {9, 3, 64, 576, -1},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && n + 2 < most; i++) {
        step_case c = base;
        set_types(&c, i % 2 ? MOA_Q4_0 : MOA_Q4_1);
        c.n_head = shapes[i].n_head, c.n_head_kv = shapes[i].n_head_kv, c.d_head = shapes[i].d_head;
        c.d_model = shapes[i].d_model, c.pos = shapes[i].pos, c.rope_dim = i % 3 ? c.d_head : c.d_head / 2;
        c.kind = i % 2 ? MOA_ROPE_HALVES : MOA_ROPE_PAIRS;
        c.watch = i % 2, c.n_layer = i % 3 ? 2 : 3;
        c.declined = c.d_head % 64 != 0;
        out[n++] = c;
        if (c.pos < 200) continue;
        c.narrow = true, c.watch = true, c.bias = true, c.factors = i % 2, c.gone = i % 3 == 0;
        out[n++] = c;
    }
    for (int i = 0; i < 3 && n + 4 < most; i++) { /* several rows */
        step_case c = base;
        set_types(&c, i ? MOA_Q5_0 : MOA_Q4_1);
        c.n_row = i == 0   ? 2
                  : i == 1 ? 10
                           : 19,
        c.pos = 300 + i, c.narrow = i != 1, c.bias = i == 1, c.n_vocab = 515;
        if (i == 2) c.n_head = 6, c.n_head_kv = 6, c.d_model = 384;
        out[n++] = c;
    }
    step_case c = base; /* as Q4_K_M has it */
    set_types(&c, MOA_Q4_K);
    c.n_head = 12, c.n_head_kv = 2, c.d_head = 128, c.d_model = 1536, c.d_ff = 2048, c.rope_dim = 128;
    c.type[2] = c.type[6] = c.type[7] = MOA_Q6_K, c.bias = true, c.no_logits = true;
    out[n++] = c;
    set_types(&c, MOA_Q8_0); /* x of the attention's products one way, of the rest another */
    c.type[3] = MOA_F16, c.type[6] = MOA_BF16, c.type[7] = MOA_F32, c.no_logits = false;
    out[n++] = c;
    c.type[1] = MOA_F16, c.declined = true; /* x both ways at once */
    out[n++] = c;
    c = base; /* blocks without products of layers: what they fetch first is of the head, or attention's ten layers on */
    set_types(&c, MOA_Q4_1);
    c.n_layer = 10, c.d_ff = 512, c.n_vocab = 4501, c.pos = 623;
    out[n++] = c;
    return n;
}

/* --- how fast ------------------------------------------------------------------------------------------------------------------------ */

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void bench(const char *name, const step_case *c, int32_t n_own) {
    enum { N = 30 };
    const moa_backend_vtable *vt = backend[DEV]->vt;
    moa_err err = {0};
    model m;
    void *recording = NULL;
    block_rng = 1234567;
    open_model(&m, c, n_own);
    if (!step(&m)) {
        (void)printf("%s, %s: declined\n", name, cluster ? "cluster" : "grid");
        close_model(&m);
        return;
    }
    must(vt->record_begin(backend[DEV], &err), &err, "record_begin");
    (void)step(&m);
    must(vt->record_end(backend[DEV], &recording, &err), &err, "record_end");
    for (int k = 0; k < 3; k++) {
        must(vt->sync(backend[DEV], &err), &err, "sync");
        const double start = now();
        for (int i = 0; i < N; i++)
            must(vt->replay(backend[DEV], recording, &err), &err, "replay");
        must(vt->sync(backend[DEV], &err), &err, "sync");
        (void)printf("%s, %s%s, %d layers, pos %d: %.1f us\n", name, cluster ? "cluster" : "grid",
                     c->watch ? " watched" : "", c->n_layer, c->pos, (now() - start) / N * 1e6);
    }
#ifdef STEP_CLOCK /* as step.cu of the same build leaves them */
    static const char *const phases[] = {"qkv", "attn", "o", "gate_up", "down", "head"};
    float *ticks = fetch(&m.b[B_GATE], DEV);
    const int n_block = 132;
    for (int p = 0; p < 6; p++)
        for (int k = 0; k < 2; k++) {
            double sum = 0, least = 1e30, most = 0;
            for (int b = 0; b < n_block; b++) {
                const double x = (double)ticks[GUARD + b * 16 + p * 2 + k] / (p < 5 ? c->n_layer : 1);
                sum += x;
                least = x < least ? x : least;
                most = x > most ? x : most;
            }
            (void)printf("%s%-8s %s %7.0f (%.0f .. %.0f)", k ? "   " : "    ", k ? "" : phases[p],
                         k ? "work" : "wait", sum / n_block, least, most);
            if (k) (void)printf("\n");
        }
    free(ticks);
#endif
    vt->recording_free(backend[DEV], recording);
    close_model(&m);
}

/* without embedding and argmax; layers beyond n_own have the weights of those before */
static void bench_all(const char *word) {
    static const struct {
        const char *name;
        int32_t n_layer, n_own, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab, pos;
        moa_dtype type, down, head;
        bool bias, watch, no_logits, unequal;
        int32_t n_row;
    } all[] = {
        {"smollm2 Q4_1", 30, 30, 9, 3, 64, 576, 1536, 49152, 40, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false, false,
         false, false, 0},
        {"smollm2 headless", 30, 30, 9, 3, 64, 576, 1536, 49152, 40, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false,
         false, true, false, 0},
        {"smollm2 Q4_1", 30, 30, 9, 3, 64, 576, 1536, 49152, 4000, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false, false,
         false, false, 0},
        {"smollm2 Q4_1", 30, 30, 9, 3, 64, 576, 1536, 49152, 4000, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false, true,
         false, false, 0},
        {"smollm2 rows of 4", 30, 30, 9, 3, 64, 576, 1536, 49152, 200, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false,
         false, false, false, 4},
        {"smollm2 rows of 8", 30, 30, 9, 3, 64, 576, 1536, 49152, 400, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false,
         false, false, false, 8},
        {"smollm2 rows of 8", 30, 30, 9, 3, 64, 576, 1536, 49152, 4000, MOA_Q4_1, MOA_Q4_1, MOA_Q8_0, false,
         false, false, false, 8},
        {"0.5B rows of 8", 24, 8, 14, 2, 64, 896, 4864, 151936, 400, MOA_Q5_0, MOA_Q6_K, MOA_Q8_0, true,
         false, false, false, 8},
        {"0.5B shape Q5_0", 24, 8, 14, 2, 64, 896, 4864, 151936, 40, MOA_Q5_0, MOA_Q6_K, MOA_Q8_0, true,
         false, false, false, 0},
        {"1.5B shape Q4_K", 28, 4, 12, 2, 128, 1536, 8960, 151936, 40, MOA_Q4_K, MOA_Q6_K, MOA_Q6_K, true,
         false, false, false, 0},
        {"8B shape Q4_0", 32, 3, 32, 8, 128, 4096, 14336, 32768, 40, MOA_Q4_0, MOA_Q4_0, MOA_Q4_0, false,
         false, false, false, 0},
        {"8B shape BF16", 32, 2, 32, 8, 128, 4096, 14336, 32768, 40, MOA_BF16, MOA_BF16, MOA_BF16, false,
         false, false, false, 0},
        {"8B long Q4_0", 32, 3, 32, 8, 128, 4096, 14336, 32768, 32768, MOA_Q4_0, MOA_Q4_0, MOA_Q4_0, false,
         false, false, true, 0},
        {"7B long Q4_0", 32, 3, 32, 32, 128, 4096, 11008, 32000, 16384, MOA_Q4_0, MOA_Q4_0, MOA_Q4_0, false,
         false, false, true, 0},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (int way = 0; way < 2; way++) {
            step_case c = {.n_row = all[i].n_row,
                           .n_layer = all[i].n_layer,
                           .n_head = all[i].n_head,
                           .n_head_kv = all[i].n_head_kv,
                           .d_head = all[i].d_head,
                           .d_model = all[i].d_model,
                           .d_ff = all[i].d_ff,
                           .n_vocab = all[i].n_vocab,
                           .pos = all[i].pos,
                           .rope_dim = all[i].d_head,
                           .kind = all[i].bias ? MOA_ROPE_HALVES : MOA_ROPE_PAIRS,
                           .bias = all[i].bias,
                           .watch = all[i].watch,
                           .no_logits = all[i].no_logits,
                           .unequal = all[i].unequal};
            if ((word && !strstr(all[i].name, word)) || (way && c.d_model > 2048)) continue;
            set_types(&c, all[i].type);
            c.type[6] = all[i].down, c.type[7] = all[i].head;
            take_way(way);
            bench(all[i].name, &c, all[i].n_own);
        }
}

int main(int argc, char **argv) {
    const moa_backend_config plain = {.reference = true}, config = {0};
    static step_case cases[80];
    char why[256];
    moa_err err = {0};
    const int n = all_cases(cases, 76), only = argc > 2 ? atoi(argv[2]) : -1;
    must(moa_cpu_open(&backend[REF], &plain, &err), &err, "reference");
    if (moa_backend_open(&backend[DEV], argc > 1 ? argv[1] : "cuda", &config, why, sizeof why, &err) !=
        MOA_OK) {
        (void)printf("skipped: %s\n", err.text);
        moa_backend_close(&backend[REF]);
        return SKIP;
    }
    moa_device_info info = {0};
    must(backend[DEV]->vt->info(backend[DEV], &info, &err), &err, "info");
    const bool there = backend[DEV]->vt->step_decode && info.sm >= 90;
    if (!there)
        (void)printf("skipped: backend %s has no step as one operation on %s\n", backend[DEV]->vt->name,
                     info.name);
    timing = argc > 2 && strcmp(argv[2], "bench") == 0;
    if (timing) fresh_bytes = (size_t)1 << 20;
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    if (there && timing) bench_all(argc > 3 ? argv[3] : NULL);
    for (int i = 0; i < n && there && !timing; i++)
        for (int way = 0; way < 2; way++) {
            take_way(way);
            if ((only < 0 || i == only) && (argc < 4 || strcmp(argv[3], way ? "cluster" : "grid") == 0))
                check(&cases[i], i);
        }
    if (there && !timing)
        (void)printf("%d cases, %d checks, worst NMSE %.1e, %d failed\n", only < 0 ? n : 1, n_check, worst,
                     n_failed);
    moa_backend_close(&backend[DEV]);
    moa_backend_close(&backend[REF]);
    return !there ? SKIP : n_failed != 0;
}
