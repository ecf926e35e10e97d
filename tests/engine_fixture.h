/* engine_fixture.h -- what the engine's tests share.
 *
 *   rig        a tiny model, an engine on it through a spying backend, one sequence
 *   spy        a backend that passes everything on, counts what is alive, fails the n-th call on request, and can record and
 *              replay (by keeping copies of the arguments), so that this path is tested without a GPU
 *              MOA_TEST_DEVICE=cuda (or any --device word) puts the whole suite on that device, its own recording included
 *   brute      an independent forward pass in double: whole N x N masks, nothing paged, nothing dropped */
#ifndef MOA_TESTS_ENGINE_FIXTURE_H
#define MOA_TESTS_ENGINE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/engine.h"
#include "core/engine/run.h"

#define must(call)                                                                                           \
    do {                                                                                                     \
        moa_err must_err = {0};                                                                              \
        moa_err *const err = &must_err;                                                                      \
        if ((call) != MOA_OK) fail_msg("%s: %s", #call, must_err.text);                                      \
    } while (0)

/* Loops over every call or question try each n-th in sanitized builds, where one turn costs ten times as much: those look at memory
 * and threads, and the loop bodies repeat; results of every single one are the release build's to check. Prime, to meet all kinds. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MOA_TSAN 1
#endif
#endif
#if defined(MOA_TSAN) || defined(__SANITIZE_THREAD__)
enum { EVERY = 11 };
#elif defined(__SANITIZE_ADDRESS__)
enum { EVERY = 3 };
#else
enum { EVERY = 1 };
#endif

/* --- random -------------------------------------------------------------------------------------------------------------- */

static inline uint32_t random_below(moa_pcg32 *g, uint32_t n) { return (uint32_t)(((uint64_t)moa_pcg32_next(g) * n) >> 32); }

static inline void random_ids(moa_pcg32 *g, int32_t *ids, int32_t n, int32_t n_vocab) {
    for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)random_below(g, (uint32_t)n_vocab);
}

/* a mixture: minimum, fixed, elastic and dense heads; what: 0 mixed, 1 dense, 2 every head the minimum */
static inline void random_rules(moa_pcg32 *g, moa_rule *rules, int32_t n, int what) {
    static const moa_rule some[] = {{0, 0}, {0, 1}, {192, 0}, {256, 0}, {0, .5}, {64, .25}, {-64, .875}, {320, 0}};
    for (int32_t i = 0; i < n; i++)
        rules[i] = what == 1 ? (moa_rule){0, 1} : what == 2 ? (moa_rule){0, 0} : some[random_below(g, 8)];
}

/* --- spy ------------------------------------------------------------------------------------------------------------------- */

#define X(name, text) SPY_##name,
typedef enum spy_op { MOA_OP_MAP(X) SPY_N_OP } spy_op;
#undef X

typedef struct spy_call {
    spy_op op;
    union {
#define X(name, text) moa_args_##name name;
        MOA_OP_MAP(X)
#undef X
    } u;
} spy_call;

enum { SPY_CALLS_MAX = 256 };
typedef struct spy_recording {
    spy_call calls[SPY_CALLS_MAX];
    int n;
} spy_recording;

typedef struct spy {
    moa_backend base;
    moa_backend_vtable table;
    moa_backend *inner;
    long n_calls, fail_at; /* the fail_at-th fallible call from now fails, once; 0: none */
    bool failed, halves;
    long n_op[SPY_N_OP], n_replay, n_record, n_alloc;
    int64_t live, live_bytes, live_weights, live_recordings;
    spy_recording *recording; /* under way */
    struct spy_block {
        void *p;
        size_t bytes;
    } blocks[256];
    int n_block;
} spy;

static inline const char *test_device(void) { return getenv("MOA_TEST_DEVICE"); }

/* On a GPU the products and the prefill's attention round their operands to 11 bits unless $MOASCOPE_CUDA_PRECISE says otherwise. */
static inline bool device_is_coarse(void) {
    const char *precise = getenv("MOASCOPE_CUDA_PRECISE");
    return test_device() && strncmp(test_device(), "cuda", 4) == 0 && !(precise && strcmp(precise, "1") == 0);
}

/* what the last spy left behind when it was closed */
static struct {
    int64_t live, live_weights, live_recordings;
} spy_left;

static inline spy *spy_of(moa_backend *b) { return (spy *)b; }

static inline bool spy_fails(spy *s) {
    s->n_calls++;
    if (s->fail_at == 0 || s->n_calls != s->fail_at) return false;
    s->fail_at = 0;
    s->failed = true;
    return true;
}
#define SPY_FAIL(s, status)                                                                                  \
    if (spy_fails(s)) return moa_fail(err, status, "the test makes call %ld fail", (s)->n_calls)

static inline void spy_close(moa_backend *b) {
    spy *s = spy_of(b);
    spy_left.live = s->live;
    spy_left.live_weights = s->live_weights;
    spy_left.live_recordings = s->live_recordings;
    moa_backend_close(&s->inner);
    free(s);
}
static inline moa_status spy_info(moa_backend *b, moa_device_info *out, moa_err *err) {
    const moa_status s = spy_of(b)->inner->vt->info(spy_of(b)->inner, out, err);
    if (s == MOA_OK && spy_of(b)->halves) out->prefill_halves = true;
    return s;
}
static inline moa_status spy_alloc(moa_backend *b, size_t bytes, void **out, moa_err *err) {
    spy *s = spy_of(b);
    char nan[4096];
    SPY_FAIL(s, MOA_E_MEMORY);
    assert_true(s->n_block < (int)(sizeof s->blocks / sizeof *s->blocks));
    moa_status status = s->inner->vt->alloc(s->inner, bytes, out, err);
    memset(nan, 0xff, sizeof nan); /* content is undefined, and whoever reads it shall see */
    for (size_t at = 0; status == MOA_OK && at < bytes; at += sizeof nan)
        status = s->inner->vt->upload(s->inner, (char *)*out + at, nan, bytes - at < sizeof nan ? bytes - at : sizeof nan, err);
    if (status != MOA_OK) return status;
    s->blocks[s->n_block++] = (struct spy_block){*out, bytes};
    s->live++;
    s->n_alloc++;
    s->live_bytes += (int64_t)bytes;
    return MOA_OK;
}
static inline void spy_free(moa_backend *b, void *memory) {
    spy *s = spy_of(b);
    int i = 0;
    if (!memory) return;
    while (i < s->n_block && s->blocks[i].p != memory) i++;
    assert_true(i < s->n_block); /* freed twice, or never given */
    s->live--;
    s->live_bytes -= (int64_t)s->blocks[i].bytes;
    s->blocks[i] = s->blocks[--s->n_block];
    s->inner->vt->free(s->inner, memory);
}
static inline moa_status spy_upload(moa_backend *b, void *dst, const void *host, size_t bytes, moa_err *err) {
    SPY_FAIL(spy_of(b), MOA_E_DEVICE);
    return spy_of(b)->inner->vt->upload(spy_of(b)->inner, dst, host, bytes, err);
}
static inline moa_status spy_download(moa_backend *b, void *host, const void *src, size_t bytes, moa_err *err) {
    SPY_FAIL(spy_of(b), MOA_E_DEVICE);
    return spy_of(b)->inner->vt->download(spy_of(b)->inner, host, src, bytes, err);
}
static inline moa_status spy_zero(moa_backend *b, void *dst, size_t bytes, moa_err *err) {
    SPY_FAIL(spy_of(b), MOA_E_DEVICE);
    return spy_of(b)->inner->vt->zero(spy_of(b)->inner, dst, bytes, err);
}
static inline moa_status spy_copy(moa_backend *b, void *dst, const void *src, size_t bytes, moa_err *err) {
    SPY_FAIL(spy_of(b), MOA_E_DEVICE);
    return spy_of(b)->inner->vt->copy(spy_of(b)->inner, dst, src, bytes, err);
}
static inline moa_status spy_sync(moa_backend *b, moa_err *err) {
    SPY_FAIL(spy_of(b), MOA_E_DEVICE);
    return spy_of(b)->inner->vt->sync(spy_of(b)->inner, err);
}
static inline moa_status spy_share(moa_backend *b, size_t bytes, void **host, void **device, moa_err *err) {
    spy *s = spy_of(b);
    *host = NULL;
    SPY_FAIL(s, MOA_E_MEMORY);
    const moa_status status = s->inner->vt->share(s->inner, bytes, host, device, err);
    s->live += status == MOA_OK;
    return status;
}
static inline void spy_unshare(moa_backend *b, void *host) {
    spy_of(b)->live -= host != NULL;
    spy_of(b)->inner->vt->unshare(spy_of(b)->inner, host);
}
static inline moa_status spy_weight_load(moa_backend *b, const moa_weight *w, bool keep, moa_dev_weight **out, moa_err *err) {
    SPY_FAIL(spy_of(b), MOA_E_MEMORY);
    spy_of(b)->live_weights++;
    return spy_of(b)->inner->vt->weight_load(spy_of(b)->inner, w, keep, out, err);
}
static inline void spy_weight_free(moa_backend *b, moa_dev_weight *w) {
    if (w) spy_of(b)->live_weights--;
    spy_of(b)->inner->vt->weight_free(spy_of(b)->inner, w);
}

static inline moa_status spy_run(spy *s, const spy_call *c, moa_err *err) {
    switch (c->op) {
#define X(name, text)                                                                                        \
    case SPY_##name: return s->inner->vt->name(s->inner, &c->u.name, err);
        MOA_OP_MAP(X)
#undef X
    case SPY_N_OP: break;
    }
    return MOA_E_FAILED;
}
#define X(name, text)                                                                                        \
    static inline moa_status spy_op_##name(moa_backend *b, const moa_args_##name *args, moa_err *err) {             \
        spy *s = spy_of(b);                                                                                  \
        spy_call c = {.op = SPY_##name};                                                                     \
        c.u.name = *args;                                                                                    \
        SPY_FAIL(s, MOA_E_DEVICE);                                                                           \
        if (s->recording) {                                                                                  \
            if (s->recording->n == SPY_CALLS_MAX) return moa_fail(err, MOA_E_FAILED, "too long a recording"); \
            s->recording->calls[s->recording->n++] = c;                                                      \
            return MOA_OK;                                                                                   \
        }                                                                                                    \
        s->n_op[SPY_##name]++;                                                                               \
        return spy_run(s, &c, err);                                                                          \
    }
MOA_OP_MAP(X)
#undef X

static inline moa_status spy_record_begin(moa_backend *b, moa_err *err) {
    spy *s = spy_of(b);
    SPY_FAIL(s, MOA_E_DEVICE);
    if (s->inner->vt->record_begin) return s->inner->vt->record_begin(s->inner, err);
    s->recording = calloc(1, sizeof *s->recording);
    return s->recording ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for a recording");
}
static inline moa_status spy_record_end(moa_backend *b, void **recording, moa_err *err) {
    spy *s = spy_of(b);
    spy_recording *r = s->recording;
    s->recording = NULL;
    if (s->inner->vt->record_end) {
        const moa_status status = s->inner->vt->record_end(s->inner, recording, err);
        s->live_recordings += status == MOA_OK;
        s->n_record += status == MOA_OK;
        return status;
    }
    if (spy_fails(s)) {
        free(r);
        return moa_fail(err, MOA_E_DEVICE, "the test makes the end of a recording fail");
    }
    *recording = r;
    s->live_recordings++;
    s->n_record++;
    return MOA_OK;
}
static inline moa_status spy_replay(moa_backend *b, void *recording, moa_err *err) {
    spy *s = spy_of(b);
    const spy_recording *r = recording;
    SPY_FAIL(s, MOA_E_DEVICE);
    s->n_replay++;
    if (s->inner->vt->replay) return s->inner->vt->replay(s->inner, recording, err);
    for (int i = 0; i < r->n; i++) {
        const moa_status status = spy_run(s, &r->calls[i], err);
        if (status != MOA_OK) return status;
    }
    return MOA_OK;
}
static inline void spy_recording_free(moa_backend *b, void *recording) {
    spy *s = spy_of(b);
    s->live_recordings--;
    if (s->inner->vt->recording_free) s->inner->vt->recording_free(s->inner, recording);
    else free(recording);
}

static inline moa_backend *spy_open(bool reference, bool recording) {
    const moa_backend_config config = {.n_threads = 2, .reference = reference};
    spy *s = calloc(1, sizeof *s);
    assert_non_null(s);
    if (test_device()) {
        char why[256];
        must(moa_backend_open(&s->inner, test_device(), &config, why, sizeof why, err));
    } else must(moa_cpu_open(&s->inner, &config, err));
    s->table = (moa_backend_vtable){
        .abi = MOA_BACKEND_ABI, .name = "spy", .close = spy_close, .info = spy_info, .alloc = spy_alloc, .free = spy_free,
        .upload = spy_upload, .download = spy_download, .zero = spy_zero, .copy = spy_copy, .sync = spy_sync,
        .share = spy_share, .unshare = spy_unshare,
        .weight_load = spy_weight_load, .weight_free = spy_weight_free,
#define X(name, text) .name = spy_op_##name,
        MOA_OP_MAP(X)
#undef X
    };
    if (recording) {
        s->table.record_begin = spy_record_begin;
        s->table.record_end = spy_record_end;
        s->table.replay = spy_replay;
        s->table.recording_free = spy_recording_free;
    }
    s->base.vt = &s->table;
    return &s->base;
}

/* --- rig --------------------------------------------------------------------------------------------------------------------- */

static const char *const tiny_models[] = {"tiny_llama", "tiny_qwen2"};

typedef struct rig_config {
    const char *model; /* "tiny_llama" */
    bool fast;         /* the fast CPU operations instead of the reference */
    bool recording;
    bool halves; /* the backend says that it copies pages in halves */
    moa_engine_config engine;
} rig_config;

typedef struct rig {
    moa_model *model;
    const moa_shape *shape;
    moa_engine *e;
    moa_seq *s;
    spy *spy;
    int32_t n_span; /* n_layer * n_head */
} rig;

static inline moa_model *open_model(const char *name) {
    char path[512];
    moa_model *m = NULL;
    (void)snprintf(path, sizeof path, "%s/tests/data/%s.gguf", MOA_SOURCE_DIR, name);
    must(moa_model_open(&m, path, false, NULL, NULL, err));
    return m;
}

static inline rig rig_open(rig_config c) {
    rig r = {.model = open_model(c.model)};
    r.shape = &r.model->shape;
    r.n_span = r.shape->n_layer * r.shape->n_head;
    moa_backend *b = spy_open(!c.fast, c.recording);
    r.spy = spy_of(b);
    r.spy->halves = c.halves;
    must(moa_engine_open(&r.e, r.model, b, &c.engine, NULL, NULL, err));
    must(moa_seq_open(&r.s, r.e, err));
    return r;
}

static inline void rig_close(rig *r) {
    moa_seq_close(&r->s);
    moa_engine_close(&r->e);
    moa_model_close(&r->model);
    assert_int_equal(spy_left.live, 0);
    assert_int_equal(spy_left.live_weights, 0);
    assert_int_equal(spy_left.live_recordings, 0);
}

static inline void *take(size_t n, size_t elem) {
    void *p = calloc(n ? n : 1, elem);
    assert_non_null(p);
    return p;
}

typedef struct collect {
    float *rows; /* (n, n_vocab), row 0 is position first */
    int32_t first, n_vocab;
} collect;
static inline bool collect_row(void *user, int32_t pos, const float *logits) {
    collect *c = user;
    memcpy(c->rows + (int64_t)(pos - c->first) * c->n_vocab, logits, (size_t)c->n_vocab * sizeof *logits);
    return true;
}

/* appends n ids; every token's logits into rows (n, n_vocab), or NULL */
static inline void feed(rig *r, const int32_t *ids, int32_t n, int32_t chunk, float *rows) {
    collect c = {rows, moa_seq_n_past(r->s), r->shape->n_vocab};
    const moa_forward f = {.ids = ids, .n = n, .chunk = chunk, .each_logits = rows ? collect_row : NULL, .user = &c};
    must(moa_seq_forward(r->s, &f, err));
}

/* plans a run of N = n and appends all ids in chunks; returns every token's logits (n, n_vocab), the caller's */
static inline float *whole(rig *r, const moa_rule *rules, const int32_t *ids, int32_t n, int32_t chunk) {
    float *rows = take((size_t)n * (size_t)r->shape->n_vocab, sizeof *rows);
    moa_seq_reset(r->s);
    must(moa_seq_plan(r->s, rules, NULL, n, 0, NULL, 0, err));
    feed(r, ids, n, chunk, rows);
    return rows;
}

/* |a - b| / |a|, as vectors */
static inline double relative_error(const float *a, const float *b, int64_t n) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = (double)a[i] - (double)b[i];
        error += x * x;
        norm += (double)a[i] * (double)a[i];
    }
    return isnan(error) ? INFINITY : sqrt(error / (norm > 0 ? norm : 1));
}

/* largest difference; NaN counts as infinite */
static inline double max_diff(const float *a, const float *b, int64_t n) {
    double d = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = fabs((double)a[i] - (double)b[i]);
        if (!(x <= d)) d = isnan(x) ? INFINITY : x;
    }
    return d;
}

/* --- brute ------------------------------------------------------------------------------------------------------------------- */

typedef bool (*brute_sees)(void *user, int32_t layer, int32_t head, int32_t i, int32_t j);

typedef struct brute {
    const moa_model *m;
    const int32_t *ids;
    int32_t n;
    moa_kv_type type; /* K and V are rounded as the cache rounds them */
    brute_sees sees;
    void *user;
    double *x, *h, *t, *u; /* (n, widest row) */
    double *q, *k, *v, *o;
    double *a;   /* (n_layer, n_head, n, n): the attention, when wanted; else NULL */
    float *logits; /* (n, n_vocab) */
} brute;

/* half precision by its definition: 11 bits, to nearest even, a grain of 2^-24 at least (clang 14 has no _Float16 on x86-64); bfloat16:
 * 8 bits */
static inline double brute_round(double x, moa_kv_type type) {
    const double f = (double)(float)x;
    if (type == MOA_KV_F32 || !isfinite(f)) return f;
    int e;
    (void)frexp(f, &e);
    if (type == MOA_KV_BF16) return nearbyint(f / ldexp(1, e - 8)) * ldexp(1, e - 8);
    const double grain = ldexp(1, e - 11 > -24 ? e - 11 : -24), y = nearbyint(f / grain) * grain;
    return fabs(y) > 65504 ? copysign(INFINITY, y) : y;
}

/* y (n, n_out) = x (n, n_in) W^T + b */
static inline void brute_matmul(const double *x, const moa_weight *w, const moa_weight *bias, double *y, int32_t n) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)w->type);
    float *row = take((size_t)w->n_in, sizeof *row), *b = NULL;
    const size_t row_bytes = (size_t)w->n_in / info->block_len * info->block_bytes;
    if (bias && bias->data) {
        b = take((size_t)w->n_out, sizeof *b);
        moa_dtype_find((uint32_t)bias->type)->decode(bias->data, b, (size_t)w->n_out);
    }
    for (int32_t r = 0; r < w->n_out; r++) {
        info->decode((const char *)w->data + (size_t)r * row_bytes, row, (size_t)w->n_in);
        for (int32_t i = 0; i < n; i++) {
            double sum = b ? (double)b[r] : 0;
            for (int32_t c = 0; c < w->n_in; c++) sum += x[(int64_t)i * w->n_in + c] * (double)row[c];
            y[(int64_t)i * w->n_out + r] = sum;
        }
    }
    free(row);
    free(b);
}

static inline void brute_norm(const double *x, const moa_weight *w, double *y, int32_t n, double eps) {
    float *g = take((size_t)w->n_in, sizeof *g);
    moa_dtype_find((uint32_t)w->type)->decode(w->data, g, (size_t)w->n_in);
    for (int32_t i = 0; i < n; i++) {
        double sum = 0;
        for (int32_t c = 0; c < w->n_in; c++) sum += x[(int64_t)i * w->n_in + c] * x[(int64_t)i * w->n_in + c];
        for (int32_t c = 0; c < w->n_in; c++)
            y[(int64_t)i * w->n_in + c] = x[(int64_t)i * w->n_in + c] / sqrt(sum / w->n_in + eps) * (double)g[c];
    }
    free(g);
}

static inline void brute_rope(double *x, const moa_shape *s, int32_t n, int32_t n_head) {
    const int32_t half = s->rope_dim / 2;
    for (int32_t i = 0; i < n; i++)
        for (int32_t h = 0; h < n_head; h++)
            for (int32_t p = 0; p < half; p++) {
                double *row = x + ((int64_t)i * n_head + h) * s->d_head;
                double *a = row + (s->rope_kind == MOA_ROPE_PAIRS ? 2 * p : p);
                double *b = row + (s->rope_kind == MOA_ROPE_PAIRS ? 2 * p + 1 : p + half);
                const double angle = i * (double)s->rope_scale * pow((double)s->rope_theta, -2.0 * p / s->rope_dim);
                const double c = cos(angle), d = sin(angle), a0 = *a, b0 = *b;
                *a = a0 * c - b0 * d;
                *b = a0 * d + b0 * c;
            }
}

/* 8 bits: K by a power of two for each channel of 64 tokens, rounded down to a half; V by the largest of a token's row */
static inline void brute_round_q8(brute *b) {
    const int32_t d = b->m->shape.d_head, row = b->m->shape.n_head_kv * d;
    for (int32_t c = 0; c < row; c++)
        for (int32_t from = 0; from < b->n; from += 64) {
            const int32_t end = from + 64 < b->n ? from + 64 : b->n;
            double top = 0;
            int e;
            for (int32_t t = from; t < end; t++) top = fmax(top, fabs(b->k[(int64_t)t * row + c]));
            (void)frexp(top, &e);
            for (int32_t t = from; t < end && top > 0; t++)
                b->k[(int64_t)t * row + c] = (floor(b->k[(int64_t)t * row + c] / ldexp(1, e - 7)) + 0.5) * ldexp(1, e - 7);
        }
    for (int32_t i = 0; i < b->n * row / d; i++) {
        double top = 0;
        for (int32_t c = 0; c < d; c++) top = fmax(top, fabs(b->v[(int64_t)i * d + c]));
        for (int32_t c = 0; c < d && top > 0; c++)
            b->v[(int64_t)i * d + c] = nearbyint(b->v[(int64_t)i * d + c] / (top / 127)) * (top / 127);
    }
}

static inline void brute_attention(brute *b, int32_t layer, int32_t head) {
    const moa_shape *s = &b->m->shape;
    const int32_t n = b->n, d = s->d_head, kv = head / (s->n_head / s->n_head_kv);
    double *row = take((size_t)n, sizeof *row);
    for (int32_t i = 0; i < n; i++) {
        double sum = 0;
        double *o = b->o + ((int64_t)i * s->n_head + head) * d;
        for (int32_t j = 0; j < n; j++) {
            double dot = 0;
            row[j] = 0;
            if (!b->sees(b->user, layer, head, i, j)) continue;
            for (int32_t c = 0; c < d; c++)
                dot += b->q[((int64_t)i * s->n_head + head) * d + c] * b->k[((int64_t)j * s->n_head_kv + kv) * d + c];
            row[j] = exp(dot / sqrt(d));
            sum += row[j];
        }
        for (int32_t c = 0; c < d; c++) o[c] = 0;
        for (int32_t j = 0; j < n; j++) {
            row[j] /= sum;
            for (int32_t c = 0; c < d && row[j] != 0; c++) o[c] += row[j] * b->v[((int64_t)j * s->n_head_kv + kv) * d + c];
            if (b->a) b->a[(((int64_t)layer * s->n_head + head) * n + i) * n + j] = row[j];
        }
    }
    free(row);
}

static inline void brute_layer(brute *b, int32_t l) {
    const moa_shape *s = &b->m->shape;
    const moa_layer *w = &b->m->layers[l];
    const int32_t n = b->n, n_kv = n * s->n_head_kv * s->d_head;
    brute_norm(b->x, &w->attn_norm, b->h, n, (double)s->rms_eps);
    brute_matmul(b->h, &w->wq, &w->bq, b->q, n);
    brute_matmul(b->h, &w->wk, &w->bk, b->k, n);
    brute_matmul(b->h, &w->wv, &w->bv, b->v, n);
    brute_rope(b->q, s, n, s->n_head);
    brute_rope(b->k, s, n, s->n_head_kv);
    for (int32_t i = 0; i < n_kv && b->type != MOA_KV_Q8; i++) {
        b->k[i] = brute_round(b->k[i], b->type);
        b->v[i] = brute_round(b->v[i], b->type);
    }
    if (b->type == MOA_KV_Q8) brute_round_q8(b);
    for (int32_t h = 0; h < s->n_head; h++) brute_attention(b, l, h);
    brute_matmul(b->o, &w->wo, NULL, b->t, n);
    for (int32_t i = 0; i < n * s->d_model; i++) b->x[i] += b->t[i];
    brute_norm(b->x, &w->ffn_norm, b->h, n, (double)s->rms_eps);
    brute_matmul(b->h, &w->gate, NULL, b->t, n);
    brute_matmul(b->h, &w->up, NULL, b->u, n);
    for (int32_t i = 0; i < n * s->d_ff; i++) b->t[i] = b->t[i] / (1 + exp(-b->t[i])) * b->u[i];
    brute_matmul(b->t, &w->down, NULL, b->u, n);
    for (int32_t i = 0; i < n * s->d_model; i++) b->x[i] += b->u[i];
}

/* fills logits, and a when maps is set; brute_free */
static inline brute brute_run(const moa_model *m, const int32_t *ids, int32_t n, moa_kv_type type, brute_sees sees, void *user,
                              bool maps) {
    const moa_shape *s = &m->shape;
    const size_t rows = (size_t)n;
    size_t wide = (size_t)(s->d_model > s->d_ff ? s->d_model : s->d_ff);
    brute b = {.m = m, .ids = ids, .n = n, .type = type, .sees = sees, .user = user};
    b.x = take(rows * wide, sizeof *b.x);
    b.h = take(rows * wide, sizeof *b.h);
    b.t = take(rows * wide, sizeof *b.t);
    b.u = take(rows * wide, sizeof *b.u);
    b.q = take(rows * (size_t)(s->n_head * s->d_head), sizeof *b.q);
    b.k = take(rows * (size_t)(s->n_head_kv * s->d_head), sizeof *b.k);
    b.v = take(rows * (size_t)(s->n_head_kv * s->d_head), sizeof *b.v);
    b.o = take(rows * (size_t)(s->n_head * s->d_head), sizeof *b.o);
    b.logits = take(rows * (size_t)s->n_vocab, sizeof *b.logits);
    if (maps) b.a = take((size_t)(s->n_layer * s->n_head) * rows * rows, sizeof *b.a);
    const moa_dtype_info *info = moa_dtype_find((uint32_t)m->embed.type);
    float *row = take(wide, sizeof *row);
    for (int32_t i = 0; i < n; i++) {
        const size_t row_bytes = (size_t)s->d_model / info->block_len * info->block_bytes;
        info->decode((const char *)m->embed.data + (size_t)ids[i] * row_bytes, row, (size_t)s->d_model);
        for (int32_t c = 0; c < s->d_model; c++) b.x[(int64_t)i * s->d_model + c] = (double)row[c];
    }
    free(row);
    for (int32_t l = 0; l < s->n_layer; l++) brute_layer(&b, l);
    brute_norm(b.x, &m->out_norm, b.h, n, (double)s->rms_eps);
    double *y = take(rows * (size_t)s->n_vocab, sizeof *y);
    brute_matmul(b.h, &m->output, NULL, y, n);
    for (int64_t i = 0; i < (int64_t)n * s->n_vocab; i++) b.logits[i] = (float)y[i];
    free(y);
    return b;
}

static inline void brute_free(brute *b) {
    free(b->x), free(b->h), free(b->t), free(b->u), free(b->q), free(b->k), free(b->v), free(b->o), free(b->a), free(b->logits);
    *b = (brute){0};
}

/* sees under one plan: user is int32 (n_layer, n_head), n_head in front */
typedef struct plan_sees {
    const int32_t *span;
    int32_t n_head;
} plan_sees;
static inline bool sees_by_plan(void *user, int32_t layer, int32_t head, int32_t i, int32_t j) {
    const plan_sees *p = user;
    const int32_t span = p->span[(int64_t)layer * p->n_head + head];
    return j <= i && (j < 64 || i - j < span - 64); /* said again, not moa_sees() */
}

/* the span formula, said again */
static inline int32_t brute_span(moa_rule r, int32_t n) {
    double x = trunc(r.alpha + r.beta * n);
    x = x < n ? x : n;
    x = x > 128 ? x : 128;
    return (int32_t)(ceil(x / 64) * 64);
}

#endif
