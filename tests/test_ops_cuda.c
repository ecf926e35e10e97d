/* test_ops_cuda.c -- what only the CUDA backend has, beside the operations that test_ops compares: its driver part.
 *
 *   test_ops_cuda [--only driver|attn_decode|attn_prefill [PART N]]    checks; exits 77 and says why where there is no GPU
 *   test_ops_cuda --bench [attn_decode|matmul|products [TYPE]|attn_prefill]   times them at the shapes of real models, as TSV
 *
 *   fault       MOA_FAULT=illegal@N in a child: the operation after it fails with the CUDA text, and so does all that follows
 *   upload      a burst of uploads out of one buffer that is overwritten at once: all arrive as they were
 *   memory      an impossible request names need and free and leaves the device usable; opening and closing returns the memory
 *   recording   a recorded step, replayed with other positions and spans, gives the bits of direct calls; refuses what has no place in it
 *   shapes      decode and prefill attention at head sizes and group sizes that no demo model has, against the CPU reference
 *   decode      every version of decode attention: edges of the work's division, pages that are gone, poisoned outputs fully written,
 *               the same step twice gives the same bits */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/engine/backend.h"
#include "core/engine/engine.h"
#include "core/engine/sampler.h"
#include "tests/ops_check.h"

enum { SKIP = 77, MAX_MEM = 32 };

static moa_backend *open_device(const char *device, bool reference, moa_err *err) {
    const moa_backend_config config = {.reference = reference};
    moa_backend *b = NULL;
    char why[256];
    return moa_backend_open(&b, device, &config, why, sizeof why, err) == MOA_OK ? b : NULL;
}

static uint64_t state = 88172645463325252u;
static uint32_t random_u32(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}
static float random_float(void) { /* mean 0, variance 1, bounded */
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(random_u32() >> 8) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f;
}

static void update(moa_backend *b, void *dst, const void *host, size_t bytes) {
    moa_err err = {0};
    must(b->vt->upload(b, dst, host, bytes, &err), &err, "upload");
}
static void get(moa_backend *b, void *host, const void *src, size_t bytes) {
    moa_err err = {0};
    must(b->vt->download(b, host, src, bytes, &err), &err, "download");
}
static void wait_for(moa_backend *b) {
    moa_err err = {0};
    must(b->vt->sync(b, &err), &err, "sync");
}

static float *random_floats(size_t n) {
    float *x = malloc(n * sizeof *x);
    if (!x) abort();
    for (size_t i = 0; i < n; i++)
        x[i] = random_float();
    return x;
}

/* --- fault ---------------------------------------------------------------------------------------------- */

/* in a child: 0 when the device was lost in the way it should be, SKIP without a GPU, else 1 */
static int fault_child(void) {
    moa_err err = {0};
    (void)setenv("MOA_FAULT", "illegal@1", 1);
    moa_backend *b = open_device("cuda", false, &err);
    if (!b) return SKIP;
    float *x = take(b, 4096);
    const moa_args_add add = {.x = x, .y = x, .n = 1024};
    moa_status s = b->vt->add(b, &add, &err);
    if (s != MOA_OK || b->vt->sync(b, &err) != MOA_OK) return 1; /* operation 0 is whole */
    s = b->vt->add(b, &add, &err);
    if (s == MOA_OK) s = b->vt->sync(b, &err);
    if (s != MOA_E_DEVICE || !strstr(err.text, "lost") || !strstr(err.text, "illegal")) return 1;
    (void)printf("  said: %s\n", err.text);
    moa_err after = {0};
    void *p = NULL;
    if (b->vt->alloc(b, 1024, &p, &after) != MOA_E_DEVICE || !strstr(after.text, "lost")) return 1;
    moa_backend_close(&b); /* must not hang or crash */
    return 0;
}

static int check_fault(void) {
    (void)fflush(stdout);
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
        const int code = fault_child();
        (void)fflush(stdout);
        _exit(code);
    }
    int how = 0;
    if (waitpid(child, &how, 0) != child || !WIFEXITED(how)) return 1;
    return WEXITSTATUS(how);
}

/* --- upload, memory ------------------------------------------------------------------------------------- */

static void check_upload(moa_backend *b) {
    enum { N = 200, MOST = 100000 };
    static unsigned char host[MOST], back[MOST];
    void *to[N];
    size_t size[N];
    for (int i = 0; i < N; i++)
        to[i] = take(b, MOST);
    for (int i = 0; i < N; i++) {
        size[i] = i % 10 == 9 ? MOST : 1 + random_u32() % 65536;
        memset(host, i, size[i]);
        update(b, to[i], host, size[i]);
    }
    memset(host, 0xee, sizeof host);
    for (int i = 0; i < N; i++) {
        get(b, back, to[i], size[i]);
        size_t wrong = 0;
        for (size_t k = 0; k < size[i]; k++)
            wrong += back[k] != (unsigned char)i;
        CHECK(wrong == 0, "upload %d: %zu of %zu bytes differ", i, wrong, size[i]);
        b->vt->free(b, to[i]);
    }
}

static void check_memory(moa_backend *b) {
    moa_device_info info, after;
    moa_err err = {0};
    must(b->vt->info(b, &info, &err), &err, "info");
    CHECK(info.memory_bytes > 0 && info.free_bytes > 0 && info.free_bytes <= info.memory_bytes &&
              info.sm >= 50,
          "%s: %llu of %llu, sm %d", info.name, (unsigned long long)info.free_bytes,
          (unsigned long long)info.memory_bytes, info.sm);
    void *p = NULL;
    const moa_status s = b->vt->alloc(b, (size_t)info.memory_bytes * 2, &p, &err);
    CHECK(s == MOA_E_MEMORY && !p && strstr(err.text, "needed") && strstr(err.text, "free"), "status %d: %s",
          s, err.text);
    (void)printf("  said: %s\n", err.text);
    wait_for(b);
    for (int i = 0; i < 20; i++) {
        moa_backend *other = open_device("cuda", false, &err);
        if (!other) must(MOA_E_DEVICE, &err, "opening once more");
        (void)take(other, 64 << 20); /* close() frees it */
        const moa_weight w = {.name = "w",
                              .type = MOA_F16,
                              .n_out = 1024,
                              .n_in = 1024,
                              .data = malloc(2 << 20),
                              .bytes = 2 << 20};
        moa_dev_weight *d = NULL;
        if (!w.data) abort();
        memset((void *)(uintptr_t)w.data, 0, w.bytes);
        must(other->vt->weight_load(other, &w, false, &d, &err), &err, "weight_load");
        CHECK(other->vt->alloc(other, (size_t)info.memory_bytes, &p, &err) == MOA_E_MEMORY,
              "a whole card was given");
        moa_backend_close(&other);
        free((void *)(uintptr_t)w.data);
        if (i == 0)
            must(b->vt->info(b, &info, &err), &err, "info"); /* the first time may set up what stays */
    }
    must(b->vt->info(b, &after, &err), &err, "info");
    CHECK(info.free_bytes < after.free_bytes + (1 << 20), "free memory went from %llu to %llu",
          (unsigned long long)info.free_bytes, (unsigned long long)after.free_bytes);
}

/* --- attention: shapes, recording, repeat --------------------------------------------------------------- */

static const char *const decode_versions[] = {"v1", "v2"};
enum { N_DECODE_VERSION = sizeof decode_versions / sizeof *decode_versions };

typedef struct shape {
    int32_t d_head, group, n_head_kv, n_seq, n_tok; /* n_tok: of the longest sequence */
    moa_kv_type type;
} shape;

/* the same problem on one backend */
typedef struct side {
    moa_backend *b;
    float *q, *o, *stat;
    int32_t *pos, *span, *table;
    void *pool;
} side;

typedef struct problem {
    shape s;
    int32_t n_head, max_pages;
    size_t pool_bytes;
    int32_t *pos, *span; /* host */
    side side[2];        /* reference, CUDA */
} problem;

static void choose(problem *p, int round) {
    static const int32_t spans[] = {128, 256, 448, 1024, MOA_N_MAX};
    for (int32_t s = 0; s < p->s.n_seq; s++) {
        p->pos[s] = s == 0 ? p->s.n_tok - 1 - round : (int32_t)(random_u32() % (uint32_t)p->s.n_tok);
        if (s > 1 && s % 3 == 2) p->pos[s] = -1;
        for (int32_t h = 0; h < p->n_head; h++)
            p->span[s * p->n_head + h] = spans[random_u32() % 5];
    }
}

/* large caches repeat, not in step with their pages */
static void random_pool(void *pool, const shape *s, size_t n_pages) {
    const size_t page = moa_kv_page_bytes(s->type, s->d_head), elem = moa_kv_elem_bytes(s->type);
    if (s->type == MOA_KV_Q8) { /* 251 pages of codes and their scales by turns */
        moa_pcg32 g = moa_pcg32_seed(random_u32(), 7);
        for (size_t i = 0; i < n_pages; i++)
            if (i < 251)
                moa_kv_page_random((char *)pool + i * page, s->type, s->d_head, &g);
            else
                memcpy((char *)pool + i * page, (char *)pool + (i - 251) * page, page);
        return;
    }
    const size_t elems = n_pages * page / elem, n_drawn = elems < 3999991 ? elems : 3999991;
    for (size_t i = 0; i < n_drawn; i++) {
        const uint32_t r = random_u32();
        if (s->type == MOA_KV_F32)
            ((float *)pool)[i] = random_float();
        else /* a half of size 1/4 to 2, or a bfloat16 of this size */
            ((uint16_t *)pool)[i] = s->type == MOA_KV_BF16
                                        ? (uint16_t)((r & 0x807fu) | (125u + (r >> 20) % 3u) << 7)
                                        : (uint16_t)((r & 0x83ffu) | (13u + (r >> 20) % 3u) << 10);
    }
    for (size_t i = n_drawn; i < elems; i += n_drawn)
        memcpy((char *)pool + i * elem, pool, (elems - i < n_drawn ? elems - i : n_drawn) * elem);
}

static void problem_open(problem *p, const shape *s, moa_backend *reference, moa_backend *cuda) {
    *p = (problem){.s = *s, .n_head = s->group * s->n_head_kv, .max_pages = (s->n_tok + 63) / 64};
    const int32_t n_pages = s->n_seq * s->n_head_kv * p->max_pages;
    const size_t row = (size_t)p->n_head * (size_t)s->d_head;
    p->pos = calloc((size_t)s->n_seq, sizeof *p->pos);
    p->span = calloc((size_t)s->n_seq * (size_t)p->n_head, sizeof *p->span);
    int32_t *table = calloc((size_t)n_pages, sizeof *table);
    p->pool_bytes = (size_t)n_pages * moa_kv_page_bytes(s->type, s->d_head);
    void *pool = malloc(p->pool_bytes);
    float *q = random_floats((size_t)s->n_seq * row);
    if (!p->pos || !p->span || !table || !pool) abort();
    for (int32_t i = 0; i < n_pages; i++)
        table[i] = n_pages - 1 - i;
    random_pool(pool, s, (size_t)n_pages);
    choose(p, 0);
    for (int i = 0; i < 2; i++) {
        side *d = &p->side[i];
        d->b = i ? cuda : reference;
        if (!d->b) continue;
        d->q = put(d->b, q, (size_t)s->n_seq * row * 4);
        d->o = take(d->b, (size_t)s->n_seq * row * 4);
        d->stat = take(d->b, (size_t)s->n_seq * (size_t)p->n_head * MOA_N_STAT * 4);
        d->pos = put(d->b, p->pos, (size_t)s->n_seq * 4);
        d->span = put(d->b, p->span, (size_t)s->n_seq * (size_t)p->n_head * 4);
        d->table = put(d->b, table, (size_t)n_pages * 4);
        d->pool = put(d->b, pool, p->pool_bytes);
    }
    free(table);
    free(pool);
    free(q);
}

static void problem_close(problem *p) {
    for (int i = 0; i < 2; i++) {
        side *d = &p->side[i];
        if (!d->b) continue;
        void *all[] = {d->q, d->o, d->stat, d->pos, d->span, d->table, d->pool};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            d->b->vt->free(d->b, all[k]);
    }
    free(p->pos);
    free(p->span);
}

static moa_args_attn_decode decode_args(const problem *p, int i, bool probe) {
    const side *d = &p->side[i];
    return (moa_args_attn_decode){.q = d->q,
                                  .o = d->o,
                                  .pos = d->pos,
                                  .span = d->span,
                                  .span_seq_stride = p->n_head,
                                  .n_seq = p->s.n_seq,
                                  .n_head = p->n_head,
                                  .scale = 1 / sqrtf((float)p->s.d_head),
                                  .probe = {.stat = probe ? d->stat : NULL},
                                  .kv = {.pool = d->pool,
                                         .table = d->table,
                                         .table_seq_stride = (int64_t)p->s.n_head_kv * p->max_pages,
                                         .n_head_kv = p->s.n_head_kv,
                                         .d_head = p->s.d_head,
                                         .max_pages = p->max_pages,
                                         .type = p->s.type}};
}

static void decode(const problem *p, int i, bool probe) {
    const moa_args_attn_decode a = decode_args(p, i, probe);
    moa_err err = {0};
    must(a.kv.pool ? p->side[i].b->vt->attn_decode(p->side[i].b, &a, &err) : MOA_E_FAILED, &err,
         "attn_decode");
}

static double nmse(const float *a, const float *b, size_t n) {
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        power += (double)a[i] * a[i];
    }
    return power > 0 ? error / power : error;
}

static float *results(const problem *p, int i, bool stat, size_t *n) {
    *n = (size_t)p->s.n_seq * (size_t)p->n_head * (stat ? (size_t)MOA_N_STAT : (size_t)p->s.d_head);
    float *x = malloc(*n * sizeof *x);
    if (!x) abort();
    get(p->side[i].b, x, stat ? p->side[i].stat : p->side[i].o, *n * sizeof *x);
    return x;
}

static void check_shape(const shape *s, moa_backend *reference, moa_backend *cuda) {
    problem p;
    problem_open(&p, s, reference, cuda);
    for (int i = 0; i < 2; i++)
        decode(&p, i, true);
    for (int k = 0; k < 2; k++) {
        size_t n = 0;
        float *a = results(&p, 0, k, &n), *b = results(&p, 1, k, &n);
        const double e = nmse(a, b, n);
        CHECK(e <= 1e-8, "decode %s: d_head %d group %d heads %d seqs %d tokens %d: NMSE %.2e",
              k ? "stat" : "o", s->d_head, s->group, s->n_head_kv, s->n_seq, s->n_tok,
              e); /* float32 throughout: far inside 1e-5 */
        free(a);
        free(b);
    }
    problem_close(&p);
}

/* --- prefill attention, every version ---------------------------------------------------------------------- */

static const struct prefill_version {
    const char *word;
    double o, stat; /* NMSE allowed */
} prefill_versions[] = {
    {"v1", 1e-8, 1e-8},
    {"v2", 1e-6,
     1e-6}, /* q and p rounded to 11 bits: 7e-8 to 1e-7 on normal data, a single row up to 3 times that */
    {"v2x", 2e-7, 1e-8}, /* p alone: 2e-8 to 5e-8; statistics do not see it */
    {"v3", 1e-6, 1e-6},  /* as v2 */
};
enum { N_PREFILL_VERSION = sizeof prefill_versions / sizeof *prefill_versions, N_PREFILL_BIN = 11 };

/* the last n_tok tokens of sequence 0 as a chunk; out: o, statistics, histogram (malloc'ed), on one backend */
static void prefill(const problem *p, int i, int32_t n_tok, const float *q, float *out[3],
                    const size_t n[3]) {
    moa_backend *b = p->side[i].b;
    const moa_args_attn_decode a = decode_args(p, i, false);
    float *dev[3], *dq = put(b, q, n[0] * 4), *host = malloc(n[0] * 4);
    if (!host) abort();
    memset(host, 0xff, n[0] * 4); /* NaN: what is not written shows */
    for (int k = 0; k < 3; k++) {
        dev[k] = take(b, n[k] * 4);
        out[k] = calloc(n[k], 4);
        if (!out[k]) abort();
        update(b, dev[k], k == 0 ? host : out[k], n[k] * 4);
    }
    CALL(b, attn_prefill, .q = dq, .o = dev[0], .kv = a.kv, .span = p->side[i].span, .span_host = p->span,
         .pos0 = p->s.n_tok - n_tok, .n_tok = n_tok, .n_head = p->n_head, .scale = a.scale,
         .probe = {
             .stat = dev[1], .hist = dev[2], .n_bin = N_PREFILL_BIN, .bucket_tok = (p->s.n_tok + 7) / 8});
    for (int k = 0; k < 3; k++) {
        get(b, out[k], dev[k], n[k] * 4);
        b->vt->free(b, dev[k]);
    }
    b->vt->free(b, dq);
    free(host);
}

static void check_prefill_shape(const shape *s, int32_t n_tok, float q_size, moa_backend *reference,
                                moa_backend *cuda) {
    static const char *const names[] = {"o", "statistics", "histogram"};
    problem p;
    problem_open(&p, s, reference, cuda);
    const size_t rows = (size_t)n_tok * (size_t)p.n_head,
                 n[3] = {rows * (size_t)s->d_head, rows * MOA_N_STAT,
                         (size_t)p.n_head * MOA_HIST_BUCKETS * (1 + N_PREFILL_BIN)};
    float *q = random_floats(n[0]), *expected[3], *out[3];
    for (size_t i = 0; i < n[0]; i++)
        q[i] *= q_size;
    prefill(&p, 0, n_tok, q, expected, n);
    for (int v = 0; v < N_PREFILL_VERSION; v++) {
        (void)setenv("MOASCOPE_CUDA_PREFILL", prefill_versions[v].word, 1);
        prefill(&p, 1, n_tok, q, out, n);
        for (int k = 0; k < 3; k++) {
            const double e = nmse(expected[k], out[k], n[k]);
            CHECK(e <= (k ? prefill_versions[v].stat : prefill_versions[v].o),
                  "prefill %s %s: d_head %d group %d heads %d tokens %d of %d, q of size %g: NMSE %.2e",
                  prefill_versions[v].word, names[k], s->d_head, s->group, s->n_head_kv, n_tok, s->n_tok,
                  (double)q_size, e);
            free(out[k]);
        }
    }
    (void)unsetenv("MOASCOPE_CUDA_PREFILL");
    for (int k = 0; k < 3; k++)
        free(expected[k]);
    free(q);
    problem_close(&p);
}

/* Visible pages that are gone (a plan was widened): the reference refuses, v1 explains what a kernel does, the others agree with it. */
static void check_prefill_gone(moa_backend *cuda) {
    static const struct {
        shape s;
        int32_t n_tok;
    } cases[] = {
        {{64, 3, 3, 1, 1500, MOA_KV_F16}, 700}, {{128, 4, 2, 1, 900, MOA_KV_F16}, 900}, {{128, 4, 2, 1, 3000, MOA_KV_F16}, 9}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p;
        problem_open(&p, &cases[i].s, NULL, cuda);
        const int32_t n_pages = p.s.n_head_kv * p.max_pages;
        int32_t *table = calloc((size_t)n_pages, sizeof *table);
        if (!table) abort();
        for (int32_t k = 0; k < n_pages; k++)
            table[k] = k % p.max_pages == 0 || random_u32() % 3 == 0 ? -1 : n_pages - 1 - k;
        update(cuda, p.side[1].table, table, (size_t)n_pages * 4);
        free(table);
        const size_t rows = (size_t)cases[i].n_tok * (size_t)p.n_head,
                     n[3] = {rows * (size_t)p.s.d_head, rows * MOA_N_STAT,
                             (size_t)p.n_head * MOA_HIST_BUCKETS * (1 + N_PREFILL_BIN)};
        float *q = random_floats(n[0]), *x[N_PREFILL_VERSION][3];
        for (int v = 0; v < N_PREFILL_VERSION; v++) {
            (void)setenv("MOASCOPE_CUDA_PREFILL", prefill_versions[v].word, 1);
            prefill(&p, 1, cases[i].n_tok, q, x[v], n);
            for (int k = 0; k < 3; k++) {
                const double e = nmse(x[0][k], x[v][k], n[k]);
                CHECK(e <= (k ? prefill_versions[v].stat : prefill_versions[v].o),
                      "prefill %s, pages gone, output %d: d_head %d, %d of %d tokens: NMSE %.2e from v1's",
                      prefill_versions[v].word, k, p.s.d_head, cases[i].n_tok, p.s.n_tok, e);
            }
        }
        (void)unsetenv("MOASCOPE_CUDA_PREFILL");
        for (int v = 0; v < N_PREFILL_VERSION; v++)
            for (int k = 0; k < 3; k++)
                free(x[v][k]);
        free(q);
        problem_close(&p);
    }
}

/* every n_part-th case from `part` on */
static void check_prefill(moa_backend *reference, moa_backend *cuda, int part, int n_part) {
    static const struct {
        shape s;
        int32_t n_tok; /* the chunk; up to 128 rows a tile, small tiles while there are few */
    } cases[] = {
        {{96, 5, 2, 1, 700, MOA_KV_F16}, 150},     {{256, 8, 1, 1, 900, MOA_KV_F32}, 150},
        {{256, 1, 2, 1, 400, MOA_KV_F16}, 129},    {{64, 16, 1, 1, 1500, MOA_KV_F16}, 150},
        {{128, 1, 9, 1, 1500, MOA_KV_F16}, 100},   {{128, 8, 2, 1, 900, MOA_KV_F32}, 64},
        {{16, 2, 3, 1, 200, MOA_KV_F16}, 150},     {{8, 3, 1, 1, 64, MOA_KV_F32}, 64},
        {{80, 11, 1, 1, 600, MOA_KV_F16}, 333},    {{200, 2, 1, 1, 333, MOA_KV_F32}, 150},
        {{64, 3, 3, 1, 65, MOA_KV_F16}, 1},        {{128, 6, 2, 1, 640, MOA_KV_F16}, 640},
        {{64, 1, 40, 1, 1100, MOA_KV_F16}, 1100}, /* from here on enough work for the large tiles */
        {{80, 1, 40, 1, 1000, MOA_KV_F16}, 1000},  {{96, 2, 20, 1, 901, MOA_KV_F16}, 901},
        {{128, 4, 10, 1, 1001, MOA_KV_F16}, 1001}, {{256, 5, 4, 1, 1000, MOA_KV_F16}, 990},
        {{128, 4, 2, 1, 5001, MOA_KV_F16}, 20},   /* few queries, many keys */
        {{64, 3, 3, 1, 9000, MOA_KV_F16}, 70},     {{128, 5, 1, 1, 4097, MOA_KV_F16}, 2},
    };
    for (size_t i = (size_t)part; i < sizeof cases / sizeof *cases; i += (size_t)n_part)
        check_prefill_shape(&cases[i].s, cases[i].n_tok, 1, reference, cuda);
    /* sizes that a half cannot hold */
    check_prefill_shape(&(shape){64, 3, 3, 1, 200, MOA_KV_F16}, 200, 1e-6f, reference, cuda);
    check_prefill_shape(&(shape){128, 3, 3, 1, 200, MOA_KV_F16}, 200, 1e-30f, reference, cuda);
    moa_err err = {0};
    problem p;
    problem_open(&p, &(shape){64, 1, 1, 1, 64, MOA_KV_F16}, NULL, cuda);
    const moa_args_attn_decode a = decode_args(&p, 1, false);
    const moa_args_attn_prefill bad = {.q = a.q,
                                       .o = a.o,
                                       .kv = a.kv,
                                       .span = a.span,
                                       .span_host = p.span,
                                       .n_tok = 1,
                                       .n_head = 1,
                                       .scale = 1};
    (void)setenv("MOASCOPE_CUDA_PREFILL", "v9", 1);
    CHECK(cuda->vt->attn_prefill(cuda, &bad, &err) == MOA_E_USAGE && strstr(err.text, "v9"), "%s", err.text);
    (void)unsetenv("MOASCOPE_CUDA_PREFILL");
    problem_close(&p);
}

static void check_shapes(moa_backend *reference, moa_backend *cuda) {
    static const shape shapes[] = {
        {96, 5, 2, 3, 700, MOA_KV_F16},   {256, 8, 1, 2, 900, MOA_KV_F32},  {256, 1, 2, 5, 400, MOA_KV_F16},
        {64, 16, 1, 1, 3000, MOA_KV_F16}, {128, 1, 9, 9, 1500, MOA_KV_F16}, {128, 8, 2, 2, 4100, MOA_KV_F32},
        {16, 2, 3, 4, 200, MOA_KV_F16},   {8, 3, 1, 1, 64, MOA_KV_F32},     {80, 11, 1, 2, 600, MOA_KV_F16},
        {64, 3, 40, 60, 130, MOA_KV_F16}, {128, 4, 8, 1, 6000, MOA_KV_F16}, {200, 2, 1, 1, 333, MOA_KV_F32},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(&shapes[i], reference, cuda);
}

/* whether some head sees a key of page k of the table */
static bool page_is_seen(const problem *p, int32_t k) {
    const int32_t page = k % p->max_pages, head_kv = k / p->max_pages % p->s.n_head_kv,
                  seq = k / p->max_pages / p->s.n_head_kv, pos = p->pos[seq];
    for (int32_t h = head_kv * p->s.group; h < (head_kv + 1) * p->s.group; h++)
        for (int32_t j = page * MOA_PAGE_TOK; j < (page + 1) * MOA_PAGE_TOK; j++)
            if (pos >= 0 && moa_sees(p->span[seq * p->n_head + h], pos, j)) return true;
    return false;
}

/* Visible pages that are gone: the reference refuses, v1 explains what a kernel does (their keys do not count), the others agree with it. */
static void check_decode_gone(moa_backend *reference, moa_backend *cuda) {
    static const shape shapes[] = {{64, 3, 3, 1, 3000, MOA_KV_F16}, {128, 4, 8, 2, 700, MOA_KV_F16}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        problem p;
        moa_err err = {0};
        problem_open(&p, &shapes[i], reference, cuda);
        const int32_t n_pages = p.s.n_seq * p.s.n_head_kv * p.max_pages;
        int32_t *table = calloc((size_t)n_pages, sizeof *table);
        if (!table) abort();
        for (int32_t k = 0; k < n_pages; k++)
            table[k] = k % p.max_pages == 0 || random_u32() % 3 == 0 ? -1 : n_pages - 1 - k;
        for (int b = 0; b < 2; b++)
            update(p.side[b].b, p.side[b].table, table, (size_t)n_pages * 4);
        free(table);
        const moa_args_attn_decode a = decode_args(&p, 0, true);
        CHECK(reference->vt->attn_decode(reference, &a, &err) != MOA_OK && strstr(err.text, "gone"), "%s",
              err.text);
        float *x[N_DECODE_VERSION][2];
        size_t n[2];
        for (int v = 0; v < N_DECODE_VERSION; v++) {
            (void)setenv("MOASCOPE_CUDA_DECODE", decode_versions[v], 1);
            decode(&p, 1, true);
            for (int k = 0; k < 2; k++)
                x[v][k] = results(&p, 1, k, &n[k]);
        }
        for (int v = 1; v < N_DECODE_VERSION; v++)
            for (int k = 0; k < 2; k++) {
                const double e = nmse(x[0][k], x[v][k], n[k]);
                CHECK(e <= 1e-8, "%s, pages gone: %s: NMSE %.2e from v1's", decode_versions[v],
                      k ? "statistics" : "o", e);
            }
        for (int v = 0; v < N_DECODE_VERSION; v++)
            for (int k = 0; k < 2; k++)
                free(x[v][k]);
        problem_close(&p);
    }
}

/* decode attention by version: shapes where the line, the ring of stages and the merging have their edges; pages that are gone. Every n_part-th
 * shape from `part` on */
static void check_decode(moa_backend *reference, moa_backend *cuda, int part, int n_part) {
    static const shape shapes[] = {
        {64, 3, 3, 1, 1, MOA_KV_F16},      {64, 3, 3, 1, 17, MOA_KV_F16},
        {64, 7, 2, 1, 4096, MOA_KV_F16},   {80, 4, 2, 3, 1000, MOA_KV_F16},
        {96, 9, 2, 2, 3000, MOA_KV_F16},   {128, 1, 4, 1, 20000, MOA_KV_F16},
        {128, 8, 1, 1, 30000, MOA_KV_F16}, {256, 2, 2, 2, 2500, MOA_KV_F16},
        {256, 16, 1, 1, 5000, MOA_KV_F16}, {64, 1, 20, 37, 300, MOA_KV_F16},
        {128, 2, 8, 40, 700, MOA_KV_F16},  {128, 5, 3, 2, 63, MOA_KV_F16},
        {128, 4, 8, 1, 4096, MOA_KV_F16},  {128, 1, 32, 1, 3000, MOA_KV_F16},
        {128, 4, 8, 8, 500, MOA_KV_F16},   {64, 2, 25, 5, 300, MOA_KV_F16},
        {64, 2, 8, 1, 40000, MOA_KV_F16},  {128, 4, 8, 1, 9000, MOA_KV_BF16},
        {64, 3, 3, 1, 17, MOA_KV_Q8},      {64, 7, 2, 1, 4096, MOA_KV_Q8},
        {80, 4, 2, 3, 1000, MOA_KV_Q8},    {96, 9, 2, 2, 3000, MOA_KV_Q8},
        {128, 4, 8, 1, 9000, MOA_KV_Q8},   {128, 1, 32, 9, 300, MOA_KV_Q8},
        {256, 16, 1, 1, 5000, MOA_KV_Q8},
    };
    for (size_t i = (size_t)part; i < sizeof shapes / sizeof *shapes; i += (size_t)n_part)
        for (int round = 0; round < 4; round++) {
            problem p;
            problem_open(&p, &shapes[i], reference, cuda);
            if (round) choose(&p, shapes[i].n_tok > 8 ? round : 0);
            const int32_t n_pages = p.s.n_seq * p.s.n_head_kv * p.max_pages;
            int32_t *table = calloc((size_t)n_pages, sizeof *table);
            if (!table) abort();
            for (int32_t k = 0; k < n_pages;
                 k++) /* round 2: half of those that nobody sees are gone; round 3: all */
                table[k] = round >= 2 && (round == 3 || random_u32() % 2) && !page_is_seen(&p, k)
                               ? -1
                               : n_pages - 1 - k;
            for (int i2 = 0; i2 < 2; i2++) {
                update(p.side[i2].b, p.side[i2].pos, p.pos, (size_t)p.s.n_seq * 4);
                update(p.side[i2].b, p.side[i2].span, p.span, (size_t)p.s.n_seq * (size_t)p.n_head * 4);
                update(p.side[i2].b, p.side[i2].table, table, (size_t)n_pages * 4);
            }
            free(table);
            decode(&p, 0, true);
            size_t n[2];
            float *want[2] = {results(&p, 0, false, &n[0]), results(&p, 0, true, &n[1])}, *got[3][2];
            for (int probe = 0; probe < 3; probe++) { /* without statistics, with, and again */
                float *poison = malloc(n[0] * 4);
                if (!poison) abort();
                memset(poison, 0xff, n[0] * 4); /* NaN */
                update(cuda, p.side[1].o, poison, n[0] * 4);
                free(poison);
                decode(&p, 1, probe > 0);
                for (int k = 0; k < 2; k++)
                    got[probe][k] = results(&p, 1, k, &n[k]);
            }
            const double plain = nmse(want[0], got[0][0], n[0]), o = nmse(want[0], got[1][0], n[0]),
                         stat = nmse(want[1], got[1][1], n[1]);
            CHECK(plain <= 1e-8 && o <= 1e-8 && stat <= 1e-8,
                  "d_head %d group %d heads %d seqs %d tokens %d round %d: NMSE %.2e, with statistics %.2e, "
                  "statistics %.2e",
                  p.s.d_head, p.s.group, p.s.n_head_kv, p.s.n_seq, p.s.n_tok, round, plain, o, stat);
            CHECK(memcmp(got[1][0], got[2][0], n[0] * 4) == 0 && memcmp(got[1][1], got[2][1], n[1] * 4) == 0,
                  "d_head %d group %d heads %d seqs %d tokens %d round %d: not the same bits again",
                  p.s.d_head, p.s.group, p.s.n_head_kv, p.s.n_seq, p.s.n_tok, round);
            for (int k = 0; k < 2; k++) {
                free(want[k]);
                for (int probe = 0; probe < 3; probe++)
                    free(got[probe][k]);
            }
            problem_close(&p);
        }
}

/* nobody asks: results are 0, and nobody waits for anybody */
static void check_decode_idle(moa_backend *cuda) {
    problem p;
    size_t n = 0;
    problem_open(&p, &(shape){64, 3, 3, 2, 100, MOA_KV_F16}, NULL, cuda);
    p.pos[0] = p.pos[1] = -1;
    update(cuda, p.side[1].pos, p.pos, 8);
    decode(&p, 1, true);
    for (int k = 0; k < 2; k++) {
        float *x = results(&p, 1, k, &n);
        size_t wrong = 0;
        for (size_t i = 0; i < n; i++)
            wrong += x[i] != 0;
        CHECK(wrong == 0, "all sequences idle: %zu of %zu values of %s are not 0", wrong, n, k ? "statistics" : "o");
        free(x);
    }
    problem_close(&p);
}

static void check_recording(moa_backend *b) {
    const shape s = {64, 3, 3, 4, 2000, MOA_KV_F16};
    problem p;
    moa_err err = {0};
    void *recording = NULL, *none = NULL;
    if (!b->vt->record_begin) {
        CHECK(false, "the CUDA backend records");
        return;
    }
    problem_open(&p, &s, NULL, b);
    must(b->vt->record_begin(b, &err), &err, "record_begin");
    decode(&p, 1, true);
    CHECK(b->vt->upload(b, p.side[1].pos, p.pos, 4, &err) != MOA_OK && strstr(err.text, "recording"),
          "an upload in a recording: %s", err.text);
    must(b->vt->record_end(b, &recording, &err), &err, "record_end");
    CHECK(recording != NULL, "a recording");
    CHECK(b->vt->record_end(b, &none, &err) != MOA_OK && !none, "ending what was not begun");
    for (int round = 0; round < 5; round++) {
        choose(&p, round);
        update(b, p.side[1].pos, p.pos, (size_t)s.n_seq * 4);
        update(b, p.side[1].span, p.span, (size_t)s.n_seq * (size_t)p.n_head * 4);
        float *x[3][2];
        size_t n[2];
        for (int how = 0; how < 3; how++) { /* direct, replayed, replayed again */
            must(b->vt->zero(b, p.side[1].o, (size_t)s.n_seq * (size_t)p.n_head * 64 * 4, &err), &err,
                 "zero");
            if (how == 0)
                decode(&p, 1, true);
            else
                must(b->vt->replay(b, recording, &err), &err, "replay");
            for (int k = 0; k < 2; k++)
                x[how][k] = results(&p, 1, k, &n[k]);
        }
        for (int how = 1; how < 3; how++)
            for (int k = 0; k < 2; k++)
                CHECK(memcmp(x[0][k], x[how][k], n[k] * 4) == 0,
                      "round %d: %s of replay %d differ from the direct call", round,
                      k ? "statistics" : "outputs", how);
        for (int how = 0; how < 3; how++)
            for (int k = 0; k < 2; k++)
                free(x[how][k]);
    }
    b->vt->recording_free(b, recording);
    /* a recording that is left open does not stop what comes after */
    must(b->vt->record_begin(b, &err), &err, "record_begin");
    must(b->vt->record_begin(b, &err), &err, "record_begin after one left open");
    decode(&p, 1, false);
    must(b->vt->record_end(b, &recording, &err), &err, "record_end");
    must(b->vt->replay(b, recording, &err), &err, "replay");
    wait_for(b);
    problem_close(&p); /* the recording is left to close() */
}

/* --- bench ---------------------------------------------------------------------------------------------- */

static double now_us(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* median microseconds of one of the n_inside operations of a recording */
static double time_recording(moa_backend *b, void *recording, int n_inside) {
    enum { N = 31 };
    double t[N];
    moa_err err = {0};
    for (int i = 0; i < 3; i++)
        must(b->vt->replay(b, recording, &err), &err, "replay");
    wait_for(b);
    for (int i = 0; i < N; i++) {
        const double start = now_us();
        must(b->vt->replay(b, recording, &err), &err, "replay");
        wait_for(b);
        t[i] = (now_us() - start) / n_inside;
    }
    qsort(t, N, sizeof *t, by_value);
    return t[N / 2];
}

/* GB/s of y += x over 1 GiB each: 3 bytes moved a byte */
static double bench_ceiling(moa_backend *b) {
    const int64_t n = (int64_t)1 << 28;
    moa_err err = {0};
    void *recording = NULL;
    float *x = take(b, (size_t)n * 4), *y = take(b, (size_t)n * 4);
    must(b->vt->zero(b, x, (size_t)n * 4, &err), &err, "zero");
    must(b->vt->zero(b, y, (size_t)n * 4, &err), &err, "zero");
    must(b->vt->record_begin(b, &err), &err, "record_begin");
    for (int i = 0; i < 4; i++)
        CALL(b, add, .x = x, .y = y, .n = n);
    must(b->vt->record_end(b, &recording, &err), &err, "record_end");
    const double us = time_recording(b, recording, 4);
    b->vt->recording_free(b, recording);
    b->vt->free(b, x);
    b->vt->free(b, y);
    (void)printf("add\t1 GiB + 1 GiB\t%.1f us\t%.0f GB/s\n", us, (double)n * 12 / us * 1e-3);
    return (double)n * 12 / us * 1e-3;
}

/* GB/s of reading 1 GiB: the largest of each of 64 rows */
static double bench_reading(moa_backend *b) {
    enum { ROWS = 64 };
    const int32_t n = 1 << 22, zero[ROWS] = {0};
    int32_t most[ROWS];
    moa_err err = {0};
    void *recording = NULL;
    const size_t bytes = (size_t)ROWS * (size_t)n * 4;
    for (int i = 0; i < ROWS; i++)
        most[i] = INT32_MAX;
    float *x = take(b, bytes);
    must(b->vt->zero(b, x, bytes, &err), &err, "zero");
    int32_t *id = put(b, zero, sizeof zero), *pos = put(b, zero, sizeof zero), *limit = put(b, most, sizeof most),
            *log = put(b, zero, sizeof zero);
    const moa_args_argmax a = {.logits = x, .id = id, .pos = pos, .limit = limit, .log = log, .n_seq = ROWS, .n_vocab = n, .log_stride = 1};
    must(b->vt->argmax(b, &a, &err), &err, "argmax"); /* the workspace grows before the recording */
    must(b->vt->record_begin(b, &err), &err, "record_begin");
    for (int i = 0; i < 4; i++)
        must(b->vt->argmax(b, &a, &err), &err, "argmax");
    must(b->vt->record_end(b, &recording, &err), &err, "record_end");
    const double us = time_recording(b, recording, 4);
    b->vt->recording_free(b, recording);
    void *all[] = {x, id, pos, limit, log};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        b->vt->free(b, all[k]);
    (void)printf("read\t1 GiB\t%.1f us\t%.0f GB/s\n", us, (double)bytes / us * 1e-3);
    return (double)bytes / us * 1e-3;
}

/* spans of a layer with two rules, whole groups, around the density: bytes of K and V that have to be read */
static double set_spans(problem *p, double density) {
    const shape *s = &p->s;
    const double page = (double)moa_kv_page_bytes(s->type, s->d_head);
    double bytes = 0;
    for (int32_t q = 0; q < s->n_seq; q++) {
        p->pos[q] = s->n_tok - 1;
        for (int32_t h = 0; h < p->n_head; h++) {
            const bool wide = h / s->group % 2;
            const double part = density >= 1 ? 1 : wide ? density * 1.6 : density * 0.4;
            const int32_t span = moa_roundup64((int32_t)(part * s->n_tok));
            p->span[q * p->n_head + h] = span < MOA_SPAN_MIN ? MOA_SPAN_MIN : span;
            if (h % s->group == 0)
                bytes += page * (moa_n_seen(p->span[q * p->n_head + h], s->n_tok - 1) / (double)MOA_PAGE_TOK);
        }
    }
    update(p->side[1].b, p->side[1].pos, p->pos, (size_t)s->n_seq * 4);
    update(p->side[1].b, p->side[1].span, p->span, (size_t)s->n_seq * (size_t)p->n_head * 4);
    return bytes;
}

/* decode attention of one layer, every version, without and with statistics; caches are rotated so that none is found in the L2 */
static void bench_decode(moa_backend *b, const char *name, const shape *s, double density, double ceiling) {
    enum { MAX_COPY = 64 };
    static problem p[MAX_COPY];
    moa_err err = {0};
    const double whole =
        (double)moa_kv_page_bytes(s->type, s->d_head) * s->n_seq * s->n_head_kv * ((s->n_tok + 63) / 64);
    double bytes = 0, us[N_DECODE_VERSION][2];
    int copies = whole > 200e6 ? 1 : (int)(200e6 / (whole * (density < 1 ? density : 1))) + 2;
    if (copies > MAX_COPY) copies = MAX_COPY;
    for (int c = 0; c < copies; c++) {
        problem_open(&p[c], s, NULL, b);
        bytes = set_spans(&p[c], density);
    }
    int n_inside = copies;
    while (n_inside * bytes < 9e9 && n_inside < 3 * MAX_COPY) /* 3 ms, beside which a launch and a wait by the host are nothing */
        n_inside += copies;
    for (int v = 0; v < N_DECODE_VERSION; v++)
        for (int probe = 0; probe < 2; probe++) {
            void *recording = NULL;
            (void)setenv("MOASCOPE_CUDA_DECODE", decode_versions[v], 1);
            must(b->vt->record_begin(b, &err), &err, "record_begin");
            for (int i = 0; i < n_inside; i++)
                decode(&p[i % copies], 1, probe);
            must(b->vt->record_end(b, &recording, &err), &err, "record_end");
            us[v][probe] = time_recording(b, recording, n_inside);
            b->vt->recording_free(b, recording);
        }
    (void)unsetenv("MOASCOPE_CUDA_DECODE");
    for (int v = 0; v < N_DECODE_VERSION; v++)
        for (int probe = 0; probe < 2; probe++)
            (void)printf("attn_decode\t%s %d/%d x %d\tB %d\tN %d\tdensity %.2f\t%s\tstatistics %s\t%.1f MB\t%.2f us\t%.0f "
                         "GB/s\t%.0f %%\n",
                         name, s->group * s->n_head_kv, s->n_head_kv, s->d_head, s->n_seq, s->n_tok, density,
                         decode_versions[v], probe ? "on" : "off", bytes * 1e-6, us[v][probe], bytes / us[v][probe] * 1e-3,
                         100 * bytes / us[v][probe] * 1e-3 / ceiling);
    (void)fflush(stdout);
    for (int c = 0; c < copies; c++)
        problem_close(&p[c]);
}

/* one product with n_tok rows of x; w: copies of the weights to rotate through */
static void bench_product(moa_backend *b, moa_dev_weight *const *w, int copies, const moa_weight *m,
                          int32_t n_tok, double ceiling) {
    moa_err err = {0};
    void *recording = NULL;
    float *host = random_floats((size_t)n_tok * (size_t)m->n_in),
          *x = put(b, host, (size_t)n_tok * (size_t)m->n_in * 4),
          *other = put(b, host,
                       (size_t)n_tok * (size_t)m->n_in * 4), /* the same x again would not be rounded again */
              *y = take(b, (size_t)n_tok * (size_t)m->n_out * 4);
    if (n_tok > 64 && copies > 2) copies = 2;
    const int n_inside = n_tok > 64 ? 2 : copies * 4;
    CALL(b, matmul, .x = x, .w = w[0], .y = y, .n_tok = n_tok); /* the workspace grows before the recording */
    must(b->vt->record_begin(b, &err), &err, "record_begin");
    for (int i = 0; i < n_inside; i++)
        CALL(b, matmul, .x = i % 2 ? x : other, .w = w[i % copies], .y = y, .n_tok = n_tok);
    must(b->vt->record_end(b, &recording, &err), &err, "record_end");
    const double us = time_recording(b, recording, n_inside), rate = (double)m->bytes / us * 1e-3;
    (void)printf("matmul\t%s %d x %d\tn_tok %d\t%.1f MB\t%.1f us\t%.0f GB/s\t%.0f %%\t%.1f TFLOP/s\n",
                 moa_dtype_find((uint32_t)m->type)->name, m->n_out, m->n_in, n_tok, (double)m->bytes * 1e-6,
                 us, rate, 100 * rate / ceiling, 2.0 * n_tok * m->n_out * m->n_in / us * 1e-6);
    (void)fflush(stdout);
    b->vt->recording_free(b, recording);
    b->vt->free(b, x);
    b->vt->free(b, other);
    b->vt->free(b, y);
    free(host);
}

enum { OUTPUT_ROWS = 3, MATMUL_ROWS = 12 };

/* how long a matrix takes to load, then its products; `output`: of the model, a row a sequence */
static void bench_matmul(moa_backend *b, moa_dtype type, int32_t n_out, int32_t n_in, bool output,
                         double ceiling) {
    static const int32_t rows[MATMUL_ROWS] = {1, 2, 4, 8, 12, 16, 25, 32, 50, 64, 512, 2048};
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    enum { MAX_COPY = 24 };
    int copies = (int)(200e6 / (double)bytes) + 2;
    if (copies > MAX_COPY) copies = MAX_COPY;
    moa_dev_weight *w[MAX_COPY];
    moa_err err = {0};
    unsigned char *data = malloc(bytes);
    if (!data) abort();
    for (size_t i = 0; i < bytes; i++)
        data[i] = i < 65536 ? (unsigned char)(random_u32() & 0x3fu) : data[i - 65536]; /* finite scales */
    const moa_weight m = {
        .name = "w", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
    must(b->vt->weight_load(b, &m, false, &w[0], &err), &err, "weight_load");
    wait_for(b);
    const double start = now_us(); /* one after the other, as a model's are */
    for (int c = 1; c < copies; c++)
        must(b->vt->weight_load(b, &m, false, &w[c], &err), &err, "weight_load");
    wait_for(b);
    const double load_us = (now_us() - start) / (copies - 1);
    (void)printf("load\t%s %d x %d\t%.1f MB\t%.0f us\t%.1f GB/s\n", info->name, n_out, n_in,
                 (double)bytes * 1e-6, load_us, (double)bytes / load_us * 1e-3);
    for (int t = 0; t < (output ? OUTPUT_ROWS : MATMUL_ROWS); t++)
        bench_product(b, w, copies, &m, rows[t], ceiling);
    for (int c = 0; c < copies; c++)
        b->vt->weight_free(b, w[c]);
    free(data);
}

/* every format at one shape, then the shapes of three models with the formats their usual files have */
static void bench_matmuls(moa_backend *b, double ceiling) {
    static const moa_dtype types[] = {
#define X(name, id, block_len, block_bytes) MOA_##name,
        MOA_DTYPE_MAP(X)
#undef X
    };
    static const struct {
        moa_dtype type;
        int32_t n_out, n_in;
        bool output;
    } shapes[] = {
        {MOA_Q4_1, 576, 576, false},    {MOA_Q4_1, 192, 576, false},    {MOA_Q4_1, 1536, 576, false},
        {MOA_Q4_1, 576, 1536, false},   {MOA_Q8_0, 49152, 576, true},   {MOA_Q4_K, 1536, 1536, false},
        {MOA_Q4_K, 256, 1536, false},   {MOA_Q4_K, 8960, 1536, false},  {MOA_Q6_K, 1536, 8960, false},
        {MOA_Q6_K, 151936, 1536, true}, {MOA_Q4_0, 1024, 4096, false},  {MOA_Q4_0, 14336, 4096, false},
        {MOA_Q4_0, 4096, 14336, false}, {MOA_Q6_K, 128256, 4096, true}, {MOA_BF16, 14336, 4096, false},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        bench_matmul(b, types[i], 4096, 4096, false, ceiling);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bench_matmul(b, shapes[i].type, shapes[i].n_out, shapes[i].n_in, shapes[i].output, ceiling);
}

/* every number of rows at the shapes of an 8B model; `only`: a type's name, or NULL */
static void bench_products(moa_backend *b, const char *only, double ceiling) {
    static const moa_dtype types[] = {MOA_Q4_0, MOA_Q4_K, MOA_F16};
    static const int32_t shapes[][2] = {{4096, 4096}, {14336, 4096}, {4096, 14336}, {1024, 4096}};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!only || strcmp(moa_dtype_find((uint32_t)types[t])->name, only) == 0)
                bench_matmul(b, types[t], shapes[i][0], shapes[i][1], false, ceiling);
}

typedef enum prefill_spans { SPANS_DENSE, SPANS_HALF, SPANS_MIXED, SPANS_SHORT } prefill_spans;

static int32_t prefill_span(prefill_spans kind, int32_t n, int32_t group) {
    if (kind == SPANS_DENSE) return MOA_N_MAX;
    const int32_t span = kind == SPANS_SHORT  ? 512
                         : kind == SPANS_HALF ? n / 2
                         : group % 2          ? n / 4 * 3
                                              : n / 4;
    return moa_roundup64(span < MOA_SPAN_MIN ? MOA_SPAN_MIN : span);
}

/* the last n_tok tokens of s->n_tok, positions before them already there. Mixed: 3/4 and 1/4 of N by turns, whole groups */
static void bench_prefill(moa_backend *b, const char *name, const shape *s, int32_t n_tok, prefill_spans kind,
                          int probe) {
    static const char *const kinds[] = {"dense", "N/2", "N/4, 3N/4", "512"}, *const probes[] = {"", " stat",
                                                                                                " stat hist"};
    problem p;
    moa_err err = {0};
    void *recording = NULL;
    const int n_bin = (s->n_tok + 63) / 64;
    problem_open(&p, s, NULL, b);
    const moa_args_attn_decode a = decode_args(&p, 1, false);
    double pairs = 0;
    for (int32_t h = 0; h < p.n_head; h++) {
        p.span[h] = prefill_span(kind, s->n_tok, h / s->group);
        for (int32_t i = s->n_tok - n_tok; i < s->n_tok; i++)
            pairs += moa_n_seen(p.span[h], i);
    }
    update(b, p.side[1].span, p.span, (size_t)p.n_head * 4);
    const size_t n = (size_t)n_tok * (size_t)p.n_head * (size_t)s->d_head,
                 n_hist = (size_t)p.n_head * MOA_HIST_BUCKETS * (size_t)(1 + n_bin);
    float *host = random_floats(n), *q = put(b, host, n * 4), *o = take(b, n * 4),
          *st = take(b, (size_t)n_tok * (size_t)p.n_head * MOA_N_STAT * 4), *hist = take(b, n_hist * 4);
    must(b->vt->zero(b, hist, n_hist * 4, &err), &err, "zero");
    const moa_args_attn_prefill args = {.q = q,
                                        .o = o,
                                        .kv = a.kv,
                                        .span = p.side[1].span,
                                        .span_host = p.span,
                                        .pos0 = s->n_tok - n_tok,
                                        .n_tok = n_tok,
                                        .n_head = p.n_head,
                                        .scale = a.scale,
                                        .probe = {.stat = probe > 0 ? st : NULL,
                                                  .hist = probe > 1 ? hist : NULL,
                                                  .n_bin = n_bin,
                                                  .bucket_tok = (s->n_tok + 7) / 8}};
    must(b->vt->attn_prefill(b, &args, &err), &err,
         "attn_prefill"); /* the workspace grows outside the recording */
    must(b->vt->record_begin(b, &err), &err, "record_begin");
    must(b->vt->attn_prefill(b, &args, &err), &err, "attn_prefill");
    must(b->vt->record_end(b, &recording, &err), &err, "record_end");
    const double us = time_recording(b, recording, 1);
    const char *version = getenv("MOASCOPE_CUDA_PREFILL");
    (void)printf("attn_prefill\t%s\t%s %d/%d x %d\tN %d\tchunk %d\tspan %s%s\t%.1f us\t%.1f TFLOP/s of "
                 "visible pairs\n",
                 version ? version : "default", name, p.n_head, s->n_head_kv, s->d_head, s->n_tok, n_tok,
                 kinds[kind], probes[probe], us, pairs * 4 * s->d_head / us * 1e-6);
    (void)fflush(stdout);
    b->vt->recording_free(b, recording);
    void *all[] = {q, o, st, hist};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        b->vt->free(b, all[k]);
    free(host);
    problem_close(&p);
}

/* $MOASCOPE_CUDA_PREFILL if it is set, else every version; v1 only where it does not take long */
static void bench_prefills(moa_backend *b) {
    static const struct {
        const char *name;
        int32_t d_head, group, n_head_kv;
    } layers[] = {{"SmolLM2-135M", 64, 3, 3},
                  {"Qwen2.5-0.5B", 64, 7, 2},
                  {"Qwen2.5-1.5B", 128, 6, 2},
                  {"Llama-3-8B", 128, 4, 8}};
    const char *given = getenv("MOASCOPE_CUDA_PREFILL");
    char only[8] = ""; /* setenv() below may free what getenv() gave */
    if (given) (void)snprintf(only, sizeof only, "%s", given);
    for (int v = 0; v < N_PREFILL_VERSION; v++) {
        if (*only && strcmp(only, prefill_versions[v].word) != 0) continue;
        (void)setenv("MOASCOPE_CUDA_PREFILL", prefill_versions[v].word, 1);
        for (size_t l = 0; l < sizeof layers / sizeof *layers; l++)
            for (int32_t n = 2048; n <= 32768; n *= 2) {
                const shape s = {layers[l].d_head, layers[l].group, layers[l].n_head_kv, 1, n, MOA_KV_F16};
                if (v == 0 && n > 8192) break;
                for (int kind = SPANS_DENSE; kind <= SPANS_MIXED; kind++)
                    bench_prefill(b, layers[l].name, &s, n, (prefill_spans)kind, 0);
                if (n != 8192) continue;
                bench_prefill(b, layers[l].name, &s, n, SPANS_SHORT, 0);
                bench_prefill(b, layers[l].name, &s, n, SPANS_DENSE, 1);
                bench_prefill(b, layers[l].name, &s, n, SPANS_DENSE, 2);
                bench_prefill(b, layers[l].name, &s, 512, SPANS_DENSE,
                              0); /* what the engine's default chunk gives */
                bench_prefill(b, layers[l].name, &s, 2048, SPANS_DENSE, 0);
                bench_prefill(b, layers[l].name, &s, 32, SPANS_DENSE, 0); /* a short question about a long text */
            }
    }
    if (!*only) (void)unsetenv("MOASCOPE_CUDA_PREFILL");
}

/* the layers that other libraries' decode kernels were timed on, then those of the models at hand */
static void bench_decodes(moa_backend *b, const char *only, double ceiling) {
    static const struct {
        const char *name;
        shape s;
        bool dense, half;
    } rows[] = {
        {"SmolLM2-135M", {64, 3, 3, 1, 4096, MOA_KV_F16}, true, true},
        {"Qwen2.5-0.5B", {64, 7, 2, 1, 4096, MOA_KV_F16}, true, true},
        {"Qwen2.5-0.5B", {64, 7, 2, 1, 32768, MOA_KV_F16}, true, true},
        {"Qwen2.5-1.5B", {128, 6, 2, 1, 4096, MOA_KV_F16}, true, true},
        {"Qwen2.5-1.5B", {128, 6, 2, 1, 16384, MOA_KV_F16}, true, true},
        {"Llama-3-8B", {128, 4, 8, 1, 4096, MOA_KV_F16}, true, true},
        {"Llama-3-8B", {128, 4, 8, 1, 16384, MOA_KV_F16}, true, true},
        {"Llama-3-8B", {128, 4, 8, 1, 131072, MOA_KV_F16}, true, true},
        {"Llama-3-8B", {128, 4, 8, 8, 16384, MOA_KV_F16}, false, true},
        {"Llama-3-8B", {128, 4, 8, 32, 8192, MOA_KV_F16}, false, true},
        {"Llama-3-8B q8", {128, 4, 8, 1, 16384, MOA_KV_Q8}, true, true},
        {"Llama-3-8B q8", {128, 4, 8, 1, 131072, MOA_KV_Q8}, true, true},
        {"Vicuna-7B", {128, 1, 32, 1, 4096, MOA_KV_F16}, true, true},
        {"Vicuna-7B", {128, 1, 32, 1, 16384, MOA_KV_F16}, true, true},
        {"Vicuna-7B", {128, 1, 32, 1, 131072, MOA_KV_F16}, false, true},
        {"Vicuna-7B", {128, 1, 32, 8, 16384, MOA_KV_F16}, false, true},
        {"Vicuna-7B", {128, 1, 32, 32, 8192, MOA_KV_F16}, false, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (only && strcmp(only, rows[i].name) != 0) continue;
        if (rows[i].dense) bench_decode(b, rows[i].name, &rows[i].s, 1, ceiling);
        if (rows[i].half) bench_decode(b, rows[i].name, &rows[i].s, 0.5, ceiling);
    }
}

static void bench(moa_backend *b, const char *only, const char *type) {
    const bool attn_decode = !only || strcmp(only, "attn_decode") == 0,
               matmul = !only || strcmp(only, "matmul") == 0,
               attn_prefill = !only || strcmp(only, "attn_prefill") == 0;
    const double ceiling = bench_ceiling(b);
    if (attn_decode) bench_decodes(b, type, fmax(ceiling, bench_reading(b)));
    if (matmul) bench_matmuls(b, ceiling);
    if (only && strcmp(only, "products") == 0) bench_products(b, type, ceiling);
    if (!attn_prefill) return;
    bench_prefills(b);
}

/* only: "driver", "attn_decode" or "attn_prefill"; NULL: all. part of n_part: of attention's shapes, for several processes at once */
static void check(moa_backend *reference, moa_backend *cuda, const char *only, int part, int n_part) {
    if (!only || strcmp(only, "driver") == 0) {
        check_upload(cuda);
        check_memory(cuda);
    }
    if (!only || strcmp(only, "attn_decode") == 0) {
        for (int v = 0; v < N_DECODE_VERSION; v++) {
            (void)setenv("MOASCOPE_CUDA_DECODE", decode_versions[v], 1);
            const int before = n_failed;
            check_decode(reference, cuda, part, n_part);
            if (part == 0) check_shapes(reference, cuda);
            if (part == 0) check_decode_idle(cuda);
            if (part == 0) check_recording(cuda);
            (void)printf("decode attention %s: %d failed\n", decode_versions[v], n_failed - before);
        }
        if (part == 0) check_decode_gone(reference, cuda);
        (void)unsetenv("MOASCOPE_CUDA_DECODE");
    }
    if (!only || strcmp(only, "attn_prefill") == 0) {
        const int before = n_failed;
        check_prefill(reference, cuda, part, n_part);
        check_prefill_gone(cuda);
        (void)printf("prefill attention: %d failed\n", n_failed - before);
    }
}

int main(int argc, char **argv) {
    const bool timing = argc > 1 && strcmp(argv[1], "--bench") == 0;
    moa_err err = {0};
    const int fault = timing ? 0 : check_fault(); /* first: a process that has used CUDA cannot fork it */
    if (fault != SKIP) CHECK(fault == 0, "MOA_FAULT=illegal@1 was not answered as it should be");
    moa_backend *cuda = open_device("cuda", false, &err);
    if (!cuda) {
        (void)printf("test_ops_cuda: %s: not run\n", err.text);
        return SKIP;
    }
    moa_device_info info;
    must(cuda->vt->info(cuda, &info, &err), &err, "info");
    (void)printf("device: %s, sm_%d, %.0f MiB\n", info.name, info.sm, (double)info.memory_bytes / 1048576);
    if (timing) {
        bench(cuda, argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : NULL);
    } else {
        moa_backend *reference = open_device("cpu", true, &err);
        if (!reference) must(MOA_E_FAILED, &err, "opening the CPU");
        const int n_part = argc > 4 ? atoi(argv[4]) : 1, part = argc > 4 ? atoi(argv[3]) : 0;
        if (part < 0 || part >= n_part) must(MOA_E_USAGE, &(moa_err){.text = "PART N: 0 to N - 1 of N"}, argv[3]);
        check(reference, cuda, argc > 2 && strcmp(argv[1], "--only") == 0 ? argv[2] : NULL, part, n_part);
        moa_backend_close(&reference);
        (void)printf("test_ops_cuda: %d checks, %d failed\n", n_check, n_failed);
    }
    moa_backend_close(&cuda);
    return n_failed ? 1 : 0;
}
