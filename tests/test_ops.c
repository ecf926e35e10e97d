/* test_ops.c -- the one parity test: every operation of every backend against the reference.
 *
 *   test_ops [--device cpu|cuda|cuda:N] [--op NAME] [--threads N] [--every N] [--list] [--bench OP]
 *
 * A group of cases belongs to one operation (or to the reference itself, "golden" and "brute"). Each case builds its inputs
 * from a seed, gives the same bytes to both backends, and compares all that may be written:
 *
 *   - shapes are ugly on purpose: 1, 2, 17, 64, 100, 513 tokens, odd row counts, groups of 1, 3, 4, 6, 7 query heads, spans at,
 *     below and above what is there, sequences of ragged length, idle rows, page tables with freed pages;
 *   - inputs are normal, normal with outliers x20, all equal, or one-hot: softmax and sums behave differently on each;
 *   - outputs are NaN before the call and stand between guards that must come back untouched; free pages and the unwritten tail
 *     of the last page hold NaN too, since a recycled page may hold anything;
 *   - the error is NMSE = sum (a-b)^2 / sum a^2 against the limit of the table below; a NaN anywhere fails.
 *
 * --every N leaves out all but each N-th case: the default under the sanitizers, which make the naive loops
 * 20 times slower.
 * The CPU runs every group a second time with 1 thread against 3: the bits must be the same.
 * To add an operation: a group function, a row in `groups`. --bench OP times it and checks nothing. */
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/engine/backend.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOWEST 1
#elif __has_feature(address_sanitizer)
#define SLOW 1
#endif
#endif
#if defined(SLOWEST) || defined(__SANITIZE_THREAD__)
enum { EVERY = 29 }; /* prime to the loops' lengths, so that each value still occurs */
#elif defined(SLOW) || defined(__SANITIZE_ADDRESS__)
enum { EVERY = 7 };
#else
enum { EVERY = 1 };
#endif
enum { GUARD_BYTES = 256, MAX_MEM = 48, MAX_WEIGHT = 8, SKIP = 77 };

/* what is allowed, and why */
typedef enum limit_kind { EXACT, VECTOR, MATMUL, ATTENTION, STATISTIC, N_LIMIT } limit_kind;
static const struct limit {
    double cpu, cuda;
    const char *reason;
} limits[N_LIMIT] = {
    [EXACT] = {0, 0, "copies and roundings: every bit is defined"},
    [VECTOR] = {1e-12, 1e-7, "float32 a value, sums of a few thousand; CUDA: fast exp and float angles"},
    [MATMUL] =
        {3e-8, 1e-6,
         "CPU: float32 products or activations of 16 bits; CUDA: operands of 10 bits of mantissa, 2 x 5e-8"},
    [ATTENTION] = {1e-8, 1e-5, "CPU: float32 on both cache types; CUDA: probabilities rounded to half"},
    [STATISTIC] = {1e-8, 1e-4, "entropy and distance sum what the softmax rounded"},
};

typedef struct mem {
    unsigned char *dev[2]; /* body, behind a guard */
    size_t bytes;
} mem;

typedef struct weight {
    moa_dev_weight *dev[2];
} weight;

typedef struct rig {
    moa_backend *b[2]; /* reference, tested */
    bool cuda, exact;  /* exact: both are the same code, every bit must agree */
    uint64_t rng;
    mem mems[MAX_MEM];
    weight weights[MAX_WEIGHT];
    int n_mem, n_weight;
    char label[160];
    double worst; /* of the group */
    int cases, failed;
    int every, number; /* run every n-th case; cases met */
} rig;

/* --- random numbers and inputs --------------------------------------------------------------------------------------- */

static uint64_t next_u64(rig *r) {
    r->rng ^= r->rng >> 12;
    r->rng ^= r->rng << 25;
    r->rng ^= r->rng >> 27;
    return r->rng * 0x2545f4914f6cdd1dull;
}
static double uniform(rig *r) {
    return (double)(next_u64(r) >> 11) * 0x1p-53;
}
static int32_t below(rig *r, int32_t n) {
    return (int32_t)(next_u64(r) % (uint64_t)n);
}
static float normal(rig *r) {
    return (float)(sqrt(-2 * log(uniform(r) + 1e-300)) * cos(6.283185307179586 * uniform(r)));
}

typedef enum input_kind { NORMAL, OUTLIERS, EQUAL, ONE_HOT, N_INPUT } input_kind;
static const char *const input_names[] = {"normal", "outliers", "equal", "one-hot"};

static float *floats(rig *r, size_t n, input_kind kind) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (!x) abort();
    for (size_t i = 0; i < n; i++) {
        x[i] = kind == EQUAL ? 0.5f : kind == ONE_HOT ? (below(r, 29) == 0 ? 3.0f : 0.0f) : normal(r);
        if (kind == OUTLIERS && below(r, 97) == 0) x[i] *= 20;
    }
    return x;
}

/* --- memory on both sides -------------------------------------------------------------------------------------------- */

static void must(const rig *r, moa_status s, const moa_err *err) {
    if (s == MOA_OK) return;
    (void)fprintf(stderr, "test_ops: %s: %s\n", r->label, err->text);
    exit(1);
}

/* host: initial content, NULL: NaN everywhere */
static mem *mem_new(rig *r, const void *host, size_t bytes) {
    if (r->n_mem == MAX_MEM) abort();
    mem *m = &r->mems[r->n_mem++];
    const size_t total = bytes + 2 * GUARD_BYTES;
    unsigned char *image = malloc(total + 4);
    if (!image) abort();
    for (size_t i = 0; i < total; i += 4)
        memcpy(image + i, &(uint32_t){0x7fc5a5a5u}, 4);
    if (host && bytes) memcpy(image + GUARD_BYTES, host, bytes);
    m->bytes = bytes;
    for (int i = 0; i < 2; i++) {
        moa_err err = {0};
        void *p = NULL;
        must(r, r->b[i]->vt->alloc(r->b[i], total, &p, &err), &err);
        must(r, r->b[i]->vt->upload(r->b[i], p, image, total, &err), &err);
        m->dev[i] = (unsigned char *)p + GUARD_BYTES;
    }
    free(image);
    return m;
}

/* takes x */
static mem *mem_floats(rig *r, float *x, size_t n) {
    mem *m = mem_new(r, x, n * sizeof *x);
    free(x);
    return m;
}

#define F(m, i) ((float *)(void *)((m) ? (m)->dev[i] : NULL))
#define I(m, i) ((const int32_t *)(void *)((m) ? (m)->dev[i] : NULL))

static unsigned char *fetch(rig *r, const mem *m, int side) {
    const size_t total = m->bytes + 2 * GUARD_BYTES;
    unsigned char *image = malloc(total + 4);
    moa_err err = {0};
    if (!image) abort();
    must(r, r->b[side]->vt->download(r->b[side], image, m->dev[side] - GUARD_BYTES, total, &err), &err);
    return image;
}

static bool guards_ok(const unsigned char *image, size_t bytes) {
    for (size_t i = 0; i < GUARD_BYTES; i += 4)
        if (memcmp(image + i, &(uint32_t){0x7fc5a5a5u}, 4) != 0) return false;
    /* the tail guard's words are aligned to the image's start: compare bytes in that phase */
    const uint32_t word = 0x7fc5a5a5u;
    for (size_t i = GUARD_BYTES + bytes; i < bytes + 2 * GUARD_BYTES; i++)
        if (image[i] != ((const unsigned char *)&word)[i % 4]) return false;
    return true;
}

static void fail(rig *r, const char *what) {
    r->failed++;
    (void)printf("  FAILED %s: %s\n", r->label, what);
}

/* Compares a float output; n_part > 1: columns of a row are measured apart (statistics of different size). skip: rows of n_col
 * floats to leave out, may be NULL. */
static void compare(rig *r, const mem *m, limit_kind kind, const char *what, int n_part, const bool *skip,
                    size_t n_col) {
    const double limit = r->exact ? 0 : r->cuda ? limits[kind].cuda : limits[kind].cpu;
    unsigned char *image[2] = {fetch(r, m, 0), fetch(r, m, 1)};
    const float *a = (const float *)(const void *)(image[0] + GUARD_BYTES),
                *b = (const float *)(const void *)(image[1] + GUARD_BYTES);
    const size_t n = m->bytes / sizeof *a;
    char text[200];
    r->cases++;
    if (!guards_ok(image[0], m->bytes)) fail(r, "the reference wrote outside its output");
    if (!guards_ok(image[1], m->bytes)) fail(r, "wrote outside its output");
    for (int part = 0; part < n_part; part++) {
        double error = 0, power = 0;
        size_t bad = SIZE_MAX;
        for (size_t i = (size_t)part; i < n; i += (size_t)n_part) {
            if (skip && skip[i / n_col]) continue;
            if (!isfinite(a[i]) || !isfinite(b[i])) {
                bad = i;
                break;
            }
            error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
            power += (double)a[i] * a[i];
        }
        const double nmse = error == 0 ? 0 : power > 0 ? error / power : error;
        if (bad != SIZE_MAX) {
            (void)snprintf(text, sizeof text, "%s[%zu] is %g, reference %g", what, bad, (double)b[bad],
                           (double)a[bad]);
            fail(r, text);
        } else if (!(nmse <= limit)) {
            (void)snprintf(text, sizeof text, "%s part %d: NMSE %.2e > %.0e (%s)", what, part, nmse, limit,
                           limits[kind].reason);
            fail(r, text);
        }
        if (nmse > r->worst) r->worst = nmse;
    }
    free(image[0]);
    free(image[1]);
}

static void compare_bytes(rig *r, const mem *m, const char *what) {
    unsigned char *image[2] = {fetch(r, m, 0), fetch(r, m, 1)};
    r->cases++;
    if (!guards_ok(image[1], m->bytes)) fail(r, "wrote outside its output");
    for (size_t i = 0; i < m->bytes; i++)
        if (image[0][GUARD_BYTES + i] != image[1][GUARD_BYTES + i]) {
            char text[160];
            (void)snprintf(text, sizeof text, "%s differs from byte %zu on (%02x, reference %02x)", what, i,
                           image[1][GUARD_BYTES + i], image[0][GUARD_BYTES + i]);
            fail(r, text);
            break;
        }
    free(image[0]);
    free(image[1]);
}

static bool case_begin(rig *r, uint64_t seed, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* false: a case to leave out (--every) */
static bool case_begin(rig *r, uint64_t seed, const char *format, ...) {
    va_list list;
    if (r->every > 1 && r->number++ % r->every != 0) return false;
    va_start(list, format);
    (void)vsnprintf(r->label, sizeof r->label, format, list);
    va_end(list);
    r->rng = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
    for (int i = 0; i < 4; i++)
        (void)next_u64(r);
    return true;
}

static void case_end(rig *r) {
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < r->n_mem; k++)
            r->b[i]->vt->free(r->b[i], r->mems[k].dev[i] - GUARD_BYTES);
        for (int k = 0; k < r->n_weight; k++)
            r->b[i]->vt->weight_free(r->b[i], r->weights[k].dev[i]);
    }
    r->n_mem = r->n_weight = 0;
}

#define CALL(op, i, ...)                                                                                     \
    do {                                                                                                     \
        const moa_args_##op args_ = {__VA_ARGS__};                                                           \
        moa_err err_ = {0};                                                                                  \
        must(r, r->b[i]->vt->op(r->b[i], &args_, &err_), &err_);                                             \
    } while (0)

/* --- packed weights -------------------------------------------------------------------------------------------------- */

static uint16_t half_bits(float f) { /* by search in double, apart from the program's own conversion */
    const double x = fabs((double)f);
    int e = 0;
    (void)frexp(x, &e);
    const double unit = ldexp(1, e - 11 < -24 ? -24 : e - 11), units = nearbyint(x / unit);
    const double y = units * unit;
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    if (y >= 65536) return sign | 0x7c00;
    if (y < 0x1p-14) return (uint16_t)(sign | (uint16_t)(y * 0x1p24));
    (void)frexp(y, &e);
    return (uint16_t)(sign | (uint16_t)((e + 14) << 10) | (uint16_t)(ldexp(y, 11 - e) - 1024));
}

static double half_value(uint16_t h) {
    const int e = h >> 10 & 31;
    const double m = h & 1023, v = e == 0 ? ldexp(m, -24) : ldexp(m + 1024, e - 25);
    return h & 0x8000 ? -v : v;
}

/* where a block's half-precision scales lie, so that random bytes become a weight of sane size */
static const struct scale_place {
    moa_dtype type;
    int n;
    struct {
        int at;
        float size;
    } half[2];
} scale_places[] = {
    {MOA_Q4_0, 1, {{0, .01f}}},
    {MOA_Q4_1, 2, {{0, .01f}, {2, .08f}}},
    {MOA_Q5_0, 1, {{0, .005f}}},
    {MOA_Q5_1, 2, {{0, .005f}, {2, .1f}}},
    {MOA_Q8_0, 1, {{0, .001f}}},
    {MOA_Q4_K, 2, {{0, .0003f}, {2, .002f}}},
    {MOA_Q5_K, 2, {{0, .0002f}, {2, .002f}}},
    {MOA_Q6_K, 1, {{208, .0001f}}},
};

static void fill_packed(rig *r, moa_dtype type, unsigned char *out, size_t bytes,
                        const moa_dtype_info *info) {
    if (type == MOA_F32 || type == MOA_F16 || type == MOA_BF16) {
        for (size_t i = 0; i < bytes; i += info->block_bytes) {
            const float x = normal(r) * 0.05f;
            uint32_t bits;
            memcpy(&bits, &x, 4);
            const uint16_t half = type == MOA_F16 ? half_bits(x) : (uint16_t)(bits >> 16);
            memcpy(out + i, type == MOA_F32 ? (const void *)&x : (const void *)&half, info->block_bytes);
        }
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        out[i] = (unsigned char)(next_u64(r) >> 40);
    for (size_t p = 0; p < sizeof scale_places / sizeof *scale_places; p++)
        for (size_t i = 0; scale_places[p].type == type && i < bytes; i += info->block_bytes)
            for (int k = 0; k < scale_places[p].n; k++) {
                /* mins are negative in a _1 format, both signs occur in scales */
                const float size = scale_places[p].half[k].size * (float)(0.5 + uniform(r));
                const uint16_t half = half_bits(below(r, 3) ? size : -size);
                memcpy(out + i + scale_places[p].half[k].at, &half, 2);
            }
}

static weight *weight_new(rig *r, moa_dtype type, int32_t n_out, int32_t n_in) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    if (!info || r->n_weight == MAX_WEIGHT) abort();
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    unsigned char *data = malloc(bytes);
    if (!data) abort();
    fill_packed(r, type, data, bytes, info);
    weight *w = &r->weights[r->n_weight++];
    for (int i = 0; i < 2; i++) {
        moa_err err = {0};
        const moa_weight m = {
            .name = "test", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
        must(r, r->b[i]->vt->weight_load(r->b[i], &m, false, &w->dev[i], &err), &err);
    }
    free(data);
    return w;
}

static const moa_dtype dtypes[] = {
#define X(name, id, block_len, block_bytes) MOA_##name,
    MOA_DTYPE_MAP(X)
#undef X
};
enum { N_DTYPE = sizeof dtypes / sizeof *dtypes };
static const int32_t tok_counts[] = {1, 2, 17, 64, 100, 513};
enum { N_TOK_COUNT = sizeof tok_counts / sizeof *tok_counts };

/* --- embed, rmsnorm, matmul ------------------------------------------------------------------------------------------ */

static void group_embed(rig *r) {
    for (int d = 0; d < N_DTYPE; d++)
        for (int t = 0; t < N_TOK_COUNT; t++) {
            const int32_t n_tok = tok_counts[t], n_vocab = 77, d_model = t % 2 ? 256 : 768;
            if (!case_begin(r, (uint64_t)(d * 10 + t), "embed %s n_tok %d d_model %d",
                            moa_dtype_find(dtypes[d])->name, n_tok, d_model))
                continue;
            const weight *w = weight_new(r, dtypes[d], n_vocab, d_model);
            int32_t ids[513];
            for (int32_t i = 0; i < n_tok; i++)
                ids[i] = i == 0 ? n_vocab - 1 : below(r, n_vocab);
            const mem *id = mem_new(r, ids, sizeof *ids * (size_t)n_tok);
            const mem *y = mem_new(r, NULL, sizeof(float) * (size_t)n_tok * (size_t)d_model);
            for (int i = 0; i < 2; i++)
                CALL(embed, i, .w = w->dev[i], .ids = I(id, i), .y = F(y, i), .n_tok = n_tok);
            compare(r, y, VECTOR, "y", 1, NULL, 1);
            case_end(r);
        }
}

static void group_rmsnorm(rig *r) {
    static const int32_t sizes[] = {1, 64, 576, 896, 1000, 2049};
    for (int s = 0; s < 6; s++)
        for (int t = 0; t < N_TOK_COUNT; t++)
            for (int in_place = 0; in_place < 2; in_place++) {
                const int32_t n = sizes[s], n_tok = tok_counts[t];
                const input_kind kind = (input_kind)((s + t) % N_INPUT);
                if (!case_begin(r, (uint64_t)(s * 10 + t), "rmsnorm n_tok %d n %d %s%s", n_tok, n,
                                input_names[kind], in_place ? " in place" : ""))
                    continue;
                const weight *w = weight_new(r, s % 2 ? MOA_F16 : MOA_F32, 1, n);
                const size_t count = (size_t)n_tok * (size_t)n;
                const mem *x = mem_floats(r, floats(r, count, kind), count);
                const mem *y = in_place ? x : mem_new(r, NULL, count * sizeof(float));
                for (int i = 0; i < 2; i++)
                    CALL(rmsnorm, i, .x = F(x, i), .w = w->dev[i], .y = F(y, i), .n_tok = n_tok, .n = n,
                         .eps = 1e-5f);
                compare(r, y, VECTOR, "y", 1, NULL, 1);
                case_end(r);
            }
}

static void matmul_case(rig *r, moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in, input_kind kind,
                        bool bias, bool accumulate) {
    if (!case_begin(r, (uint64_t)n_tok * 7919 + (uint64_t)n_out * 31 + (uint64_t)type,
                    "matmul %s n_tok %d n_out %d n_in %d %s%s%s", moa_dtype_find(type)->name, n_tok, n_out,
                    n_in, input_names[kind], bias ? " bias" : "", accumulate ? " accumulate" : ""))
        return;
    const weight *w = weight_new(r, type, n_out, n_in);
    const weight *bw = bias ? weight_new(r, MOA_F32, 1, n_out) : NULL;
    const size_t nx = (size_t)n_tok * (size_t)n_in, ny = (size_t)n_tok * (size_t)n_out;
    const mem *x = mem_floats(r, floats(r, nx, kind), nx);
    const mem *y =
        accumulate ? mem_floats(r, floats(r, ny, NORMAL), ny) : mem_new(r, NULL, ny * sizeof(float));
    for (int i = 0; i < 2; i++)
        CALL(matmul, i, .x = F(x, i), .w = w->dev[i], .bias = bw ? bw->dev[i] : NULL, .y = F(y, i),
             .n_tok = n_tok, .accumulate = accumulate);
    compare(r, y, MATMUL, "y", 1, NULL, 1);
    case_end(r);
}

static void group_matmul(rig *r) {
    static const int32_t n_outs[] = {1, 7, 33, 64, 193, 576};
    for (int d = 0; d < N_DTYPE; d++) {
        const int32_t block = (int32_t)moa_dtype_find(dtypes[d])->block_len;
        const int32_t n_ins[] = {block, block == 1 ? 33 : 3 * block, block == 256 ? 1024 : 576,
                                 block == 256 ? 1536 : 896};
        for (int t = 0; t < N_TOK_COUNT; t++)
            for (int o = 0; o < 6; o++)
                matmul_case(r, dtypes[d], tok_counts[t], n_outs[o], n_ins[(t + o) % 4],
                            (input_kind)((t + o + d) % N_INPUT), (t + o) % 3 == 0, (t + d + o) % 2 == 0);
        static const int32_t small[] = {3, 4, 5, 8, 9, 15, 16};
        for (int t = 0; t < 7; t++)
            matmul_case(r, dtypes[d], small[t], 97, n_ins[2], OUTLIERS, t % 2, t % 3 == 0);
        matmul_case(r, dtypes[d], 1, 300, block == 256 ? 4864 : 4864 + 32, NORMAL, false, false);
    }
}

/* --- rope ------------------------------------------------------------------------------------------------------------ */

static void rope_case(rig *r, uint64_t seed, int32_t n_tok, int32_t d_head, int32_t rope_dim,
                      moa_rope_kind kind, bool factors) {
    const int32_t n_head = 1 + (int32_t)(seed % 9);
    const float theta = seed % 2 ? 10000.0f : 1e6f, scale = seed % 5 == 0 ? 0.25f : 1.0f;
    if (!case_begin(r, seed, "rope n_tok %d n_head %d d_head %d rope_dim %d %s theta %g scale %g%s", n_tok,
                    n_head, d_head, rope_dim, kind == MOA_ROPE_PAIRS ? "pairs" : "halves", (double)theta,
                    (double)scale, factors ? " factors" : ""))
        return;
    const size_t n = (size_t)n_tok * (size_t)n_head * (size_t)d_head;
    const mem *x = mem_floats(r, floats(r, n, (input_kind)(seed % N_INPUT)), n);
    int32_t pos[513];
    bool idle[513];
    for (int32_t t = 0; t < n_tok; t++) {
        pos[t] = seed % 3 == 0 ? 1000 + t : below(r, 32768);
        idle[t] = n_tok > 2 && below(r, 9) == 0;
        if (idle[t]) pos[t] = -1;
    }
    const mem *p = mem_new(r, pos, sizeof *pos * (size_t)n_tok);
    weight *fw = factors ? &r->weights[r->n_weight++] : NULL;
    float f[64];
    for (int32_t i = 0; i < rope_dim / 2; i++)
        f[i] = (float)(1 + 7 * uniform(r));
    for (int i = 0; fw && i < 2; i++) {
        moa_err err = {0};
        const moa_weight m = {.name = "f",
                              .type = MOA_F32,
                              .n_out = 1,
                              .n_in = rope_dim / 2,
                              .data = f,
                              .bytes = 4 * (size_t)rope_dim / 2};
        must(r, r->b[i]->vt->weight_load(r->b[i], &m, false, &fw->dev[i], &err), &err);
    }
    for (int i = 0; i < 2; i++)
        CALL(rope, i, .x = F(x, i), .pos = I(p, i), .freq_factors = fw ? fw->dev[i] : NULL, .n_tok = n_tok,
             .n_head = n_head, .d_head = d_head, .rope_dim = rope_dim, .kind = kind, .theta = theta,
             .scale = scale);
    compare(r, x, VECTOR, "x", 1, idle, (size_t)n_head * (size_t)d_head);
    case_end(r);
}

static void group_rope(rig *r) {
    static const int32_t heads[][2] = {{64, 64}, {64, 32}, {80, 80}, {80, 20}, {128, 128}, {128, 96}};
    uint64_t seed = 1;
    for (int t = 0; t < N_TOK_COUNT; t++)
        for (int h = 0; h < 6; h++)
            for (int kind = 0; kind < 2; kind++)
                for (int factors = 0; factors < 2; factors++)
                    rope_case(r, seed++, tok_counts[t], heads[h][0], heads[h][1],
                              kind ? MOA_ROPE_HALVES : MOA_ROPE_PAIRS, factors);
}

/* --- the KV cache of a case ------------------------------------------------------------------------------------------ */

typedef struct cache {
    int32_t n_seq, n_head_kv, group, d_head, max_pages;
    int64_t stride;
    moa_kv_type type;
    int32_t *table; /* host, freed by cache_free */
    int32_t *n_tok; /* (n_seq) tokens stored */
    int32_t n_pages;
    double *k, *v; /* host (n_seq, n_head_kv, max_pages*64, d_head), as the cache rounds them */
    const mem *pool, *dev_table;
} cache;

static void cache_free(cache *c) {
    free(c->table);
    free(c->n_tok);
    free(c->k);
    free(c->v);
}

static moa_kv_view view(const cache *c, int side) {
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

static void encode_page(moa_kv_type type, unsigned char *page, int32_t n, int32_t d_head, double *k, double *v) {
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

static size_t page_size(moa_kv_type type, int32_t d_head) {
    const size_t n = 2 * (size_t)MOA_PAGE_TOK * (size_t)d_head;
    return type == MOA_KV_Q8 ? (n + 4 * MOA_PAGE_TOK + (size_t)d_head + 15) / 16 * 16 : type == MOA_KV_F32 ? 4 * n : 2 * n;
}

static const char *type_name(moa_kv_type type) {
    return (const char *const[]){"f16", "f32", "bf16", "q8"}[type];
}

/* of K's or V's row of token t, head h of sequence s, in c->k or c->v */
static double *host_row(const cache *c, double *x, int32_t s, int32_t h, int32_t t) {
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
static void cache_fill(rig *r, cache *c, const int32_t *n_past, const int32_t *widest, bool empty,
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

/* --- kv_store ------------------------------------------------------------------------------------------------------------ */

/* what all sequences are to hold: (the sequence's tokens, n_head_kv, d_head) one after the other */
typedef struct store_rows {
    float *k, *v;
    size_t first[17]; /* of sequence s, in rows */
    size_t n;
} store_rows;

static store_rows store_rows_of(rig *r, const cache *c, bool broken) {
    store_rows x = {0};
    for (int32_t s = 0; s < c->n_seq; s++) {
        x.first[s] = x.n;
        x.n += (size_t)c->n_tok[s];
    }
    const size_t n = x.n * (size_t)c->n_head_kv * (size_t)c->d_head;
    x.k = floats(r, n, OUTLIERS);
    x.v = floats(r, n, NORMAL);
    for (size_t i = 0; i < n; i += 7)
        x.k[i] *= i % 2 ? 1e-7f : 1000.0f; /* subnormal halves, and some too large for half */
    for (size_t i = 0; i < n; i += 4001) {
        x.k[i] *= i % 2 ? 1e-38f : 1e30f;
        x.v[n - 1 - i] = i % 2 ? 0 : 1e-39f;
    }
    for (size_t i = 0; broken && i < n; i += 5003) {
        x.k[i] = i % 2 ? INFINITY : -INFINITY;
        x.v[i / 2] = INFINITY;
    }
    return x;
}

/* tokens from .. to - 1 of sequence s on one side, `chunk` in a call */
static void store_before(rig *r, const cache *c, const store_rows *x, int side, int32_t s, int32_t to, int32_t chunk) {
    const size_t stride = (size_t)c->n_head_kv * (size_t)c->d_head;
    moa_backend *b = r->b[side];
    for (int32_t t = 0; t < to; t += chunk) {
        const int32_t n = to - t < chunk ? to - t : chunk;
        const size_t bytes = (size_t)n * stride * 4;
        int32_t place[2][200];
        for (int32_t i = 0; i < n; i++)
            place[0][i] = s, place[1][i] = t + i;
        void *dev[4] = {0};
        const void *host[4] = {x->k + (x->first[s] + (size_t)t) * stride, x->v + (x->first[s] + (size_t)t) * stride, place[0],
                               place[1]};
        moa_err err = {0};
        for (int i = 0; i < 4; i++) {
            must(r, b->vt->alloc(b, i < 2 ? bytes : 4 * (size_t)n, &dev[i], &err), &err);
            must(r, b->vt->upload(b, dev[i], host[i], i < 2 ? bytes : 4 * (size_t)n, &err), &err);
        }
        CALL(kv_store, side, .k = dev[0], .v = dev[1], .kv = view(c, side), .seq = dev[2], .pos = dev[3], .n_tok = n);
        for (int i = 0; i < 4; i++)
            b->vt->free(b, dev[i]);
    }
}

/* the reference's pool beside pages encoded here, each from all its tokens at once */
static void store_check(rig *r, const cache *c, const store_rows *x) {
    const size_t bytes = page_size(c->type, c->d_head), row = (size_t)c->d_head * sizeof(double);
    unsigned char *image = fetch(r, c->pool, 0), *page = malloc(bytes);
    double *k = malloc(MOA_PAGE_TOK * row), *v = malloc(MOA_PAGE_TOK * row);
    if (!page || !k || !v) abort();
    for (int32_t s = 0; s < c->n_seq; s++)
        for (int32_t h = 0; h < c->n_head_kv; h++)
            for (int32_t p = 0; p * MOA_PAGE_TOK < c->n_tok[s]; p++) {
                const int32_t slot = c->table[s * c->stride + (int64_t)h * c->max_pages + p];
                if (slot < 0) continue;
                const unsigned char *got = image + GUARD_BYTES + (size_t)slot * bytes;
                const int32_t left = c->n_tok[s] - p * MOA_PAGE_TOK, n = left < MOA_PAGE_TOK ? left : MOA_PAGE_TOK;
                for (int32_t t = 0; t < n; t++)
                    for (int32_t i = 0; i < c->d_head; i++) {
                        const size_t at = ((x->first[s] + (size_t)(p * MOA_PAGE_TOK + t)) * (size_t)c->n_head_kv + (size_t)h) *
                                              (size_t)c->d_head +
                                          (size_t)i;
                        k[t * c->d_head + i] = x->k[at];
                        v[t * c->d_head + i] = x->v[at];
                    }
                memcpy(page, got, bytes); /* what no token owns is as it is */
                encode_page(c->type, page, n, c->d_head, k, v);
                for (size_t i = 0; i < bytes; i++)
                    if (page[i] != got[i]) {
                        char text[200];
                        (void)snprintf(text, sizeof text, "sequence %d head %d page %d of %d tokens: byte %zu is %d, encoded here %d",
                                       s, h, p, n, i, got[i], page[i]);
                        fail(r, text);
                        break;
                    }
            }
    free(image);
    free(page);
    free(k);
    free(v);
}

typedef struct store_shape {
    int32_t n_tok, n_head_kv, d_head;
    moa_kv_type type;
    bool ragged;
} store_shape;

static void kv_store_case(rig *r, uint64_t seed, const store_shape *a) {
    const int32_t n_seq = a->ragged ? (a->n_tok < 17 ? a->n_tok : 17) : 1;
    const bool q8 = a->type == MOA_KV_Q8;
    cache c = {.n_seq = n_seq, .n_head_kv = a->n_head_kv, .d_head = a->d_head, .max_pages = 12, .type = a->type};
    if (!case_begin(r, seed, "kv_store n_tok %d n_seq %d n_head_kv %d d_head %d %s", a->n_tok, n_seq, c.n_head_kv, c.d_head,
                    type_name(c.type)))
        return;
    c.n_tok = malloc(sizeof *c.n_tok * (size_t)n_seq);
    int32_t past[17], widest[17 * 3], seq[513], pos[513], fresh[17] = {0};
    for (int32_t s = 0; s < n_seq; s++) {
        past[s] = below(r, 200);
        for (int32_t h = 0; h < c.n_head_kv; h++)
            widest[s * c.n_head_kv + h] = 1 << 20;
    }
    for (int32_t i = 0; i < a->n_tok; i++) { /* the rows of a page of q8 stand together */
        seq[i] = !a->ragged ? 0 : q8 ? (int32_t)((int64_t)i * n_seq / a->n_tok) : i % n_seq;
        pos[i] = a->ragged && below(r, 5) == 0 ? -1 : past[seq[i]] + fresh[seq[i]]++;
    }
    for (int32_t s = 0; s < n_seq; s++)
        c.n_tok[s] = past[s] + fresh[s];
    cache_fill(r, &c, past, widest, true, NORMAL);
    const store_rows x = store_rows_of(r, &c, q8 && seed % 3 == 0);
    for (int32_t s = 0; s < n_seq; s++) /* the two sides by other chunks: what is held does not tell */
        for (int side = 0; side < 2; side++)
            store_before(r, &c, &x, side, s, past[s], side ? 1 + below(r, 90) : 1 + below(r, 30));
    const size_t stride = (size_t)c.n_head_kv * (size_t)c.d_head, n = (size_t)a->n_tok * stride;
    float *kh = floats(r, n, NORMAL), *vh = floats(r, n, NORMAL);
    for (int32_t i = 0; i < a->n_tok; i++) {
        if (pos[i] < 0) continue;
        const size_t from = (x.first[seq[i]] + (size_t)pos[i]) * stride;
        memcpy(kh + (size_t)i * stride, x.k + from, stride * 4);
        memcpy(vh + (size_t)i * stride, x.v + from, stride * 4);
    }
    const mem *k = mem_floats(r, kh, n), *v = mem_floats(r, vh, n);
    const mem *ds = mem_new(r, seq, sizeof *seq * (size_t)a->n_tok), *dp = mem_new(r, pos, sizeof *pos * (size_t)a->n_tok);
    for (int i = 0; i < 2; i++)
        CALL(kv_store, i, .k = F(k, i), .v = F(v, i), .kv = view(&c, i), .seq = a->ragged ? I(ds, i) : NULL, .pos = I(dp, i),
             .n_tok = a->n_tok);
    compare_bytes(r, c.pool, "pool");
    store_check(r, &c, &x);
    free(x.k);
    free(x.v);
    cache_free(&c);
    case_end(r);
}

static void group_kv_store(rig *r) {
    static const int32_t sizes[] = {64, 80, 128, 96, 256};
    uint64_t seed = 1;
    for (int t = 0; t < N_TOK_COUNT; t++)
        for (int type = 0; type < MOA_N_KV_TYPE; type++)
            for (int ragged = 0; ragged < 2; ragged++, seed++) {
                const store_shape a = {.n_tok = tok_counts[t],
                                       .n_head_kv = 1 + t % 3,
                                       .d_head = sizes[(t + type) % 5],
                                       .type = (moa_kv_type)type,
                                       .ragged = ragged};
                kv_store_case(r, seed, &a);
            }
}

/* --- attention ------------------------------------------------------------------------------------------------------- */

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

enum { N_BIN = 9, MAX_HEADS = 21 };

static const mem *hist_new(rig *r, int32_t n_head) {
    const size_t n = (size_t)n_head * MOA_HIST_BUCKETS * (1 + N_BIN);
    float *x = floats(r, n, NORMAL); /* it is added to */
    return mem_floats(r, x, n);
}

static void attn_compare(rig *r, const mem *o, const mem *stat, const mem *hist) {
    compare(r, o, ATTENTION, "o", 1, NULL, 1);
    if (stat) compare(r, stat, STATISTIC, "stat", MOA_N_STAT, NULL, 1);
    if (hist) compare(r, hist, STATISTIC, "hist", 1, NULL, 1);
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
    for (int i = 0; i < 2; i++)
        CALL(attn_prefill, i, .q = F(q, i), .o = F(o, i), .kv = view(&c, i), .span = I(sp, i),
             .span_host = span, .seq = seq, .pos0 = a->pos0, .n_tok = a->n_tok, .n_head = n_head,
             .scale = 1 / sqrtf((float)a->d_head),
             .probe = {.stat = F(stat, i),
                       .measure_span = seed % 2 ? I(ms, i) : NULL,
                       .hist = F(hist, i),
                       .n_bin = N_BIN,
                       .bucket_tok = (n + 7) / 8});
    attn_compare(r, o, stat, hist);
    cache_free(&c);
    case_end(r);
}

static const int32_t group_sizes[] = {1, 3, 4, 6, 7}, head_sizes[] = {64, 80, 128, 96, 256};

static void group_attn_prefill(rig *r) {
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
    attn_compare(r, o, stat, hist);
    cache_free(&c);
    case_end(r);
}

static void group_attn_decode(rig *r) {
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

/* --- elementwise, capture, map --------------------------------------------------------------------------------------- */

static const int64_t lengths[] = {1, 15, 16, 17, 1000, 4099, 123457};

static void group_silu_mul(rig *r) {
    for (int n = 0; n < 7; n++)
        for (int where = 0; where < 3; where++) {
            if (!case_begin(r, (uint64_t)(n * 3 + where), "silu_mul n %" PRId64 " %s", lengths[n],
                            where == 0   ? ""
                            : where == 1 ? "into gate"
                                         : "into up"))
                continue;
            const size_t count = (size_t)lengths[n];
            float *g = floats(r, count, OUTLIERS);
            for (size_t i = 0; i < count; i += 11)
                g[i] = i % 2 ? -100.0f : 100.0f;
            const mem *gate = mem_floats(r, g, count), *up = mem_floats(r, floats(r, count, NORMAL), count);
            const mem *y = where == 0 ? mem_new(r, NULL, count * sizeof(float)) : where == 1 ? gate : up;
            for (int i = 0; i < 2; i++)
                CALL(silu_mul, i, .gate = F(gate, i), .up = F(up, i), .y = F(y, i), .n = lengths[n]);
            compare(r, y, VECTOR, "y", 1, NULL, 1);
            case_end(r);
        }
}

static void group_add(rig *r) {
    for (int n = 0; n < 7; n++) {
        if (!case_begin(r, (uint64_t)n, "add n %" PRId64, lengths[n])) continue;
        const size_t count = (size_t)lengths[n];
        const mem *x = mem_floats(r, floats(r, count, OUTLIERS), count),
                  *y = mem_floats(r, floats(r, count, NORMAL), count);
        for (int i = 0; i < 2; i++)
            CALL(add, i, .x = F(x, i), .y = F(y, i), .n = lengths[n]);
        compare_bytes(r, y, "y");
        case_end(r);
    }
}

/* q8: what was captured is what the pages hold */
static void capture_check(rig *r, const cache *c, const mem *cap_k, const int32_t *pos, int32_t n_tok, int32_t max_tok) {
    unsigned char *image = fetch(r, cap_k, 0);
    const float *got = (const float *)(const void *)(image + GUARD_BYTES);
    int wrong = 0;
    for (int32_t t = 0; t < n_tok; t++)
        for (int32_t h = 0; h < c->n_head_kv && pos[t] >= 0 && pos[t] < max_tok; h++)
            for (int32_t i = 0; i < c->d_head; i++)
                wrong += got[((int64_t)h * max_tok + pos[t]) * c->d_head + i] != host_row(c, c->k, 0, h, pos[t])[i];
    if (wrong) fail(r, "captured k is not what the page holds");
    free(image);
}

static void group_capture(rig *r) {
    for (int t = 0; t < N_TOK_COUNT; t++)
        for (int type = 0; type < MOA_N_KV_TYPE; type++) {
            const int32_t n_tok = tok_counts[t], n_head = 6, n_head_kv = 2, d_head = head_sizes[(t + type / 3) % 5],
                          max_tok = 600;
            if (!case_begin(r, (uint64_t)(t * 4 + type), "capture n_tok %d d_head %d %s", n_tok, d_head,
                            type_name((moa_kv_type)type)))
                continue;
            const size_t nq = (size_t)n_tok * 6 * (size_t)d_head, nk = (size_t)n_tok * 2 * (size_t)d_head;
            const mem *q = mem_floats(r, floats(r, nq, OUTLIERS), nq),
                      *k = mem_floats(r, floats(r, nk, OUTLIERS), nk);
            const mem *cq = mem_new(r, NULL, sizeof(float) * 6 * (size_t)max_tok * (size_t)d_head);
            const mem *ck = mem_new(r, NULL, sizeof(float) * 2 * (size_t)max_tok * (size_t)d_head);
            int32_t pos[513], widest[] = {1 << 20, 1 << 20};
            for (int32_t i = 0; i < n_tok; i++)
                pos[i] = i % 7 == 3 ? (i % 2 ? -1 : max_tok) : 80 + i;
            const mem *p = mem_new(r, pos, sizeof *pos * (size_t)n_tok);
            cache c = {.n_seq = 1, .n_head_kv = 2, .d_head = d_head, .max_pages = 10, .type = (moa_kv_type)type};
            c.n_tok = calloc(1, sizeof *c.n_tok);
            c.n_tok[0] = max_tok;
            cache_fill(r, &c, (int32_t[]){max_tok}, widest, false, OUTLIERS);
            for (int i = 0; i < 2; i++)
                CALL(capture, i, .q = F(q, i), .k = F(k, i), .cap_q = F(cq, i), .cap_k = F(ck, i),
                     .pos = I(p, i), .n_tok = n_tok, .n_head = n_head, .n_head_kv = n_head_kv,
                     .d_head = d_head, .max_tok = max_tok, .type = (moa_kv_type)type, .kv = view(&c, i));
            compare_bytes(r, cq, "cap_q");
            compare_bytes(r, ck, "cap_k");
            if (type == MOA_KV_Q8) capture_check(r, &c, ck, pos, n_tok, max_tok);
            cache_free(&c);
            case_end(r);
        }
}

static void group_attn_map(rig *r) {
    static const int32_t regions[][6] = {/* q0, q1, k0, k1, rows, cols */
                                         {0, 1, 0, 1, 1, 1},         {0, 100, 0, 100, 100, 100},
                                         {0, 300, 0, 300, 5, 5},     {37, 300, 11, 290, 7, 13},
                                         {200, 201, 0, 201, 1, 20},  {64, 513, 0, 513, 33, 64},
                                         {100, 400, 390, 513, 3, 9}, {0, 513, 0, 64, 9, 1}};
    for (int k = 0; k < 8; k++)
        for (int s = 0; s < 4; s++) {
            const int32_t *g = regions[k], d_head = head_sizes[(k + s) % 5];
            const int32_t span = s == 0 ? 128 : s == 1 ? 192 : s == 2 ? 448 : 1 << 24;
            if (!case_begin(r, (uint64_t)(k * 4 + s),
                            "attn_map q %d..%d k %d..%d cells %dx%d d_head %d span %d", g[0], g[1], g[2],
                            g[3], g[4], g[5], d_head, span))
                continue;
            const size_t n = 513 * (size_t)d_head, cells = (size_t)g[4] * (size_t)g[5];
            const mem *q = mem_floats(r, floats(r, n, (input_kind)(s % N_INPUT)), n),
                      *kk = mem_floats(r, floats(r, n, NORMAL), n);
            const mem *mass = mem_new(r, NULL, cells * sizeof(float)),
                      *max = s % 2 ? mem_new(r, NULL, cells * sizeof(float)) : NULL;
            const mem *stat = s != 1 ? mem_new(r, NULL, sizeof(float) * MOA_N_STAT * (size_t)g[4]) : NULL;
            for (int i = 0; i < 2; i++)
                CALL(attn_map, i, .q = F(q, i), .k = F(kk, i), .d_head = d_head, .span = span, .q0 = g[0],
                     .q1 = g[1], .k0 = g[2], .k1 = g[3], .rows = g[4], .cols = g[5],
                     .scale = 1 / sqrtf((float)d_head), .mass = F(mass, i), .max = F(max, i),
                     .stat = F(stat, i), .measure_span = 256);
            compare(r, mass, ATTENTION, "mass", 1, NULL, 1);
            if (max) compare(r, max, ATTENTION, "max", 1, NULL, 1);
            if (stat) compare(r, stat, STATISTIC, "stat", MOA_N_STAT, NULL, 1);
            case_end(r);
        }
}

/* --- argmax: exact on every backend ---------------------------------------------------------------------------------- */

static void group_argmax(rig *r) {
    static const int32_t vocabs[] = {1, 2, 31, 1000, 8192, 8193, 32000, 128256};
    enum { N_SEQ_MAX = 9, LOG = 5, N_END = 3 };
    for (int k = 0; k < 8 * 4; k++) {
        const int32_t n_vocab = vocabs[k / 4], n_seq = (int32_t[]){1, 2, 9, 4}[k % 4];
        if (!case_begin(r, (uint64_t)k, "argmax n_vocab %d n_seq %d", n_vocab, n_seq)) continue;
        const size_t count = (size_t)n_seq * (size_t)n_vocab;
        float *x = floats(r, count, k % 4 == 3 ? ONE_HOT : NORMAL);
        int32_t pos[N_SEQ_MAX], limit[N_SEQ_MAX], id[N_SEQ_MAX], log[N_SEQ_MAX * LOG], end[N_END];
        for (int32_t s = 0; s < n_seq; s++) {
            float *row = x + (size_t)s * (size_t)n_vocab;
            pos[s] = s % 4 == 3 ? -1 : 100 + s;
            limit[s] = s % 4 == 1 ? pos[s] + 1 : 1000;
            id[s] = 7 + s;
            /* the largest twice, at the ends of the vocabulary; NaN beside it; a row of nothing; a row whose choice is an end */
            if (s % 3 == 0) row[0] = row[n_vocab - 1] = 9;
            if (s == 2 || s == 5) row[n_vocab / 2] = NAN;
            for (int32_t i = 0; s == 4 && i < n_vocab; i++)
                row[i] = i % 2 ? -INFINITY : NAN;
            if (s == 6) row[n_vocab / 3] = 100;
            if (s == 1) row[0] = row[n_vocab / 2] = NAN, row[n_vocab - 1] = 50;
            if (s == 8) row[0] = NAN, row[(n_vocab > 300 ? 256 : 0)] = NAN, row[n_vocab > 300 ? 256 + 16 : 0] = 50;
        }
        for (int i = 0; i < N_SEQ_MAX * LOG; i++)
            log[i] = -5;
        for (int i = 0; i < N_END; i++)
            end[i] = i == 1 ? n_vocab / 3 : n_vocab + i;
        const mem *l = mem_floats(r, x, count), *m = mem_new(r, limit, sizeof *limit * (size_t)n_seq),
                  *e = mem_new(r, end, sizeof end), *i_ = mem_new(r, id, sizeof *id * (size_t)n_seq),
                  *p = mem_new(r, pos, sizeof *pos * (size_t)n_seq),
                  *g = mem_new(r, log, sizeof *log * (size_t)n_seq * LOG);
        for (int i = 0; i < 2; i++)
            CALL(argmax, i, .logits = F(l, i), .id = (int32_t *)(void *)i_->dev[i],
                 .pos = (int32_t *)(void *)p->dev[i], .limit = I(m, i), .log = (int32_t *)(void *)g->dev[i],
                 .end = I(e, i), .n_seq = n_seq, .n_vocab = n_vocab, .log_stride = LOG, .n_end = N_END);
        compare_bytes(r, i_, "id");
        compare_bytes(r, p, "pos");
        compare_bytes(r, g, "log");
        case_end(r);
    }
}

/* --- sample: the same token on every backend, whatever the logits ------------------------------------------------------ */

enum { N_ROW_KIND = 10 };

static void sample_row(rig *r, float *row, int32_t n, int kind) {
    for (int32_t i = 0; i < n; i++)
        switch (kind) {
        case 1: row[i] = 2.5f; break;
        case 2: row[i] = i % 2 ? -INFINITY : NAN; break;
        case 3: row[i] = normal(r) + (i == n / 3 ? 300 : 0); break;
        case 4: row[i] = floorf(4 * normal(r)) / 4; break; /* ties by the thousand */
        case 5: row[i] = below(r, 3) ? normal(r) * 2 : below(r, 2) ? NAN : -INFINITY; break;
        case 6: row[i] = normal(r) * 1000; break;
        case 7: row[i] = below(r, 2) ? 0.0f : -0.0f; break;
        case 8: row[i] = i < 5 ? 1 : i % 7 == 0 ? 0.999999f : -40; break;
        default: row[i] = normal(r) * 3; break;
        }
    if (kind == 9) row[0] = row[n - 1] = 20;
}

/* what is told, as near as float32 exponentials bring it */
static void compare_told(rig *r, const mem *m, size_t n) {
    unsigned char *image[2] = {fetch(r, m, 0), fetch(r, m, 1)};
    const moa_told *a = (const moa_told *)(const void *)(image[0] + GUARD_BYTES),
                   *b = (const moa_told *)(const void *)(image[1] + GUARD_BYTES);
    r->cases++;
    for (size_t i = 0; i < n; i++) {
        bool same = a[i].stamp == b[i].stamp && a[i].id == b[i].id && a[i].pos == b[i].pos && a[i].n_top == b[i].n_top;
        double worst = 0;
        for (int k = -2; k < MOA_TOP_MAX && a[i].stamp != 0x7fc5a5a5u; k++) {
            const double x = (double)(k == -2 ? a[i].logprob : k == -1 ? a[i].entropy : a[i].top[k].logprob),
                         y = (double)(k == -2 ? b[i].logprob : k == -1 ? b[i].entropy : b[i].top[k].logprob);
            if (k >= 0) same = same && a[i].top[k].id == b[i].top[k].id;
            if (isfinite(x) && isfinite(y))
                worst = fmax(worst, fabs(x - y) / (1 + fabs(x)));
            else
                same = same && (isnan(x) ? isnan(y) : x == y);
        }
        if (same && worst <= (r->exact ? 0 : 2e-6)) continue;
        char text[160];
        (void)snprintf(text, sizeof text, "told[%zu]: id %d pos %d stamp %u, reference %d %d %u; numbers off by %.1e", i, b[i].id,
                       b[i].pos, b[i].stamp, a[i].id, a[i].pos, a[i].stamp, worst);
        fail(r, text);
        break;
    }
    free(image[0]);
    free(image[1]);
}

static void group_sample(rig *r) {
    static const int32_t vocabs[] = {1, 2, 31, 1000, 16384, 49153, 128256, 151936};
    static const moa_sampling hows[] = {
        {.temp = .8f, .top_k = 40, .top_p = .95f, .min_p = .05f, .seed = 11},
        {.temp = 1, .top_k = 0, .top_p = 1, .seed = 1},
        {.temp = 0, .top_p = 1},
        {.temp = 1, .top_k = 0, .top_p = .9f, .seed = 77},
        {.temp = .3f, .top_k = 0, .top_p = 1, .min_p = .1f, .seed = 0xfedcba9876543210u},
        {.temp = 2, .top_k = 2000, .top_p = .99f, .seed = 5},
        {.temp = 1, .top_k = 1, .top_p = 1, .seed = 6},
        {.temp = 100, .top_k = 1024, .top_p = .5f, .seed = 7},
        {.temp = 1e-3f, .top_k = 0, .top_p = 1e-6f, .min_p = 1, .seed = 8},
    };
    enum { N_HOW = sizeof hows / sizeof *hows, N_SEQ_MAX = N_ROW_KIND + 1, LOG = 5, RING = 3, N_END = 2 };
    for (int k = 0; k < 8 * N_HOW; k++) {
        const int32_t n_vocab = vocabs[k / N_HOW], n_seq = n_vocab > 20000 ? 3 : N_SEQ_MAX;
        const moa_sampling how = hows[k % N_HOW];
        if (!case_begin(r, (uint64_t)k, "sample n_vocab %d n_seq %d temp %g top_k %d top_p %g min_p %g", n_vocab, n_seq,
                        (double)how.temp, how.top_k, (double)how.top_p, (double)how.min_p))
            continue;
        const size_t count = (size_t)n_seq * (size_t)n_vocab;
        float *x = floats(r, count, NORMAL);
        int32_t pos[N_SEQ_MAX], limit[N_SEQ_MAX], id[N_SEQ_MAX], log[N_SEQ_MAX * LOG], end[N_END] = {n_vocab / 3, n_vocab};
        uint32_t step[N_SEQ_MAX];
        for (int32_t s = 0; s < n_seq; s++) {
            pos[s] = s == N_SEQ_MAX - 1 ? -1 : 100 + s + k;
            limit[s] = s % 4 == 1 ? pos[s] + 1 : 10000;
            id[s] = 7 + s;
            step[s] = (uint32_t)(40 + s);
            sample_row(r, x + (size_t)s * (size_t)n_vocab, n_vocab, n_vocab > 20000 ? (k + s * 3) % N_ROW_KIND : s);
        }
        for (int i = 0; i < N_SEQ_MAX * LOG; i++)
            log[i] = -5;
        const bool told = k % 5 != 4;
        const mem *l = mem_floats(r, x, count), *m = mem_new(r, limit, sizeof *limit * (size_t)n_seq),
                  *e = mem_new(r, end, sizeof end), *i_ = mem_new(r, id, sizeof *id * (size_t)n_seq),
                  *p = mem_new(r, pos, sizeof *pos * (size_t)n_seq), *g = mem_new(r, log, sizeof *log * (size_t)n_seq * LOG),
                  *st = mem_new(r, step, sizeof *step * (size_t)n_seq),
                  *t = mem_new(r, NULL, sizeof(moa_told) * (size_t)n_seq * RING);
        for (int again = 0; again < 4; again++) /* rows that went idle stay as they are */
            for (int i = 0; i < 2; i++)
                CALL(sample, i, .logits = F(l, i), .how = how, .id = (int32_t *)(void *)i_->dev[i],
                     .pos = (int32_t *)(void *)p->dev[i], .limit = I(m, i), .end = I(e, i),
                     .log = k % 2 ? (int32_t *)(void *)g->dev[i] : NULL, .told = told ? (moa_told *)(void *)t->dev[i] : NULL,
                     .step = told ? (uint32_t *)(void *)st->dev[i] : NULL, .n_seq = n_seq, .n_vocab = n_vocab, .n_end = N_END,
                     .log_stride = LOG, .told_stride = RING, .n_top = k % 3 == 2 ? 0 : n_vocab < 5 ? n_vocab : 5);
        compare_bytes(r, i_, "id");
        compare_bytes(r, p, "pos");
        compare_bytes(r, g, "log");
        compare_bytes(r, st, "step");
        if (told) compare_told(r, t, (size_t)n_seq * RING);
        case_end(r);
    }
}

/* --- stat_sum ------------------------------------------------------------------------------------------------------------ */

static void group_stat_sum(rig *r) {
    static const int32_t n_toks[] = {1, 2, 33, 700};
    for (int k = 0; k < 8; k++) {
        const int32_t n_tok = n_toks[k / 2], n_layer = k % 2 ? 3 : 1, n_head = k % 2 ? 9 : 32;
        if (!case_begin(r, (uint64_t)k, "stat_sum n_tok %d n_layer %d n_head %d", n_tok, n_layer, n_head)) continue;
        const size_t n = (size_t)n_layer * (size_t)n_head;
        int32_t pos[700];
        int64_t queries[MOA_HIST_BUCKETS] = {3, 0, 1};
        moa_stat_total total[3 * 32] = {0};
        for (int32_t i = 0; i < n_tok; i++)
            pos[i] = k == 5 && i % 4 == 1 ? -1 : 50 + i;
        for (size_t i = 0; i < n; i++)
            total[i] = i % 2 ? (moa_stat_total){.worst_cover = INFINITY, .worst_query = -1}
                             : (moa_stat_total){1, 2, 3, 4, .1f, 9, 7};
        float *x = floats(r, n * (size_t)n_tok * MOA_N_STAT, NORMAL);
        for (size_t i = 0; i < n * (size_t)n_tok * MOA_N_STAT; i++) /* equal covers among them */
            x[i] = i % MOA_N_STAT == MOA_STAT_DISTANCE ? 100 * fabsf(x[i]) : floorf(8 * fabsf(x[i])) / 32;
        const mem *s = mem_floats(r, x, n * (size_t)n_tok * MOA_N_STAT), *p = mem_new(r, pos, sizeof *pos * (size_t)n_tok),
                  *t = mem_new(r, total, sizeof *total * n), *q = mem_new(r, queries, sizeof queries);
        for (int i = 0; i < 2; i++)
            CALL(stat_sum, i, .stat = F(s, i), .pos = I(p, i), .total = (moa_stat_total *)(void *)t->dev[i],
                 .queries = (int64_t *)(void *)q->dev[i], .n_layer = n_layer, .n_tok = n_tok, .n_head = n_head, .bucket_tok = 40);
        compare_bytes(r, q, "queries");
        unsigned char *image[2] = {fetch(r, t, 0), fetch(r, t, 1)};
        const moa_stat_total *a = (const moa_stat_total *)(const void *)(image[0] + GUARD_BYTES),
                             *b = (const moa_stat_total *)(const void *)(image[1] + GUARD_BYTES);
        for (size_t i = 0; i < n; i++)
            if (fabs(a[i].entropy - b[i].entropy) > 1e-9 * (1 + fabs(a[i].entropy)) || fabs(a[i].sink - b[i].sink) > 1e-9 * (1 + a[i].sink) ||
                fabs(a[i].window - b[i].window) > 1e-9 * (1 + a[i].window) ||
                fabs(a[i].distance - b[i].distance) > 1e-9 * (1 + a[i].distance) || a[i].worst_query != b[i].worst_query ||
                a[i].n_query != b[i].n_query || a[i].worst_cover != b[i].worst_cover)
                fail(r, "a head's sums");
        r->cases++;
        free(image[0]);
        free(image[1]);
        case_end(r);
    }
}

/* --- the reference itself -------------------------------------------------------------------------------------------- */

static void close_to(rig *r, const char *what, size_t i, double got, double expected, double scale) {
    if (fabs(got - expected) <= 2e-7 * scale) return;
    char text[160];
    (void)snprintf(text, sizeof text, "%s[%zu] is %.9g, expected %.9g", what, i, got, expected);
    fail(r, text);
}

static void golden_case(rig *r, const char *label, const mem *m, const double *expected, size_t n) {
    unsigned char *image = fetch(r, m, 0);
    const float *y = (const float *)(const void *)(image + GUARD_BYTES);
    r->cases++;
    for (size_t i = 0; i < n; i++)
        close_to(r, label, i, y[i], expected[i], 1 + fabs(expected[i]));
    free(image);
    case_end(r);
}

/* results that can be worked out by hand */
static void group_golden(rig *r) {
    (void)case_begin(r, 1, "golden rope");
    const int32_t one = 1;
    const double c = cos(1), s = sin(1), c2 = cos(.01), s2 = sin(.01); /* frequencies 1 and 10000^(-2/4) */
    const mem *p = mem_new(r, &one, 4), *x = mem_new(r, (float[]){1, 0, 1, 0, 9}, 20);
    CALL(rope, 0, .x = F(x, 0), .pos = I(p, 0), .n_tok = 1, .n_head = 1, .d_head = 5, .rope_dim = 4,
         .kind = MOA_ROPE_PAIRS, .theta = 10000, .scale = 1);
    golden_case(r, "pairs", x, (double[]){c, s, c2, s2, 9}, 5);
    p = mem_new(r, &one, 4);
    x = mem_new(r, (float[]){1, 0, 0, 1, 9}, 20);
    CALL(rope, 0, .x = F(x, 0), .pos = I(p, 0), .n_tok = 1, .n_head = 1, .d_head = 5, .rope_dim = 4,
         .kind = MOA_ROPE_HALVES, .theta = 10000, .scale = 1);
    golden_case(r, "halves", x, (double[]){c, -s2, s, c2, 9}, 5);

    (void)case_begin(r, 1, "golden rmsnorm, silu_mul");
    x = mem_new(r, (float[]){3, 4}, 8);
    const moa_weight ones = {
        .name = "w", .type = MOA_F32, .n_out = 1, .n_in = 2, .data = (float[]){1, 2}, .bytes = 8};
    weight *w = &r->weights[r->n_weight++];
    moa_err err = {0};
    for (int i = 0; i < 2; i++)
        must(r, r->b[i]->vt->weight_load(r->b[i], &ones, false, &w->dev[i], &err), &err);
    CALL(rmsnorm, 0, .x = F(x, 0), .w = w->dev[0], .y = F(x, 0), .n_tok = 1, .n = 2, .eps = 0);
    golden_case(r, "rmsnorm", x, (double[]){3 / sqrt(12.5), 8 / sqrt(12.5)}, 2);
    const mem *g = mem_new(r, (float[]){1, -2, 0}, 12), *u = mem_new(r, (float[]){2, 3, 5}, 12);
    CALL(silu_mul, 0, .gate = F(g, 0), .up = F(u, 0), .y = F(u, 0), .n = 3);
    golden_case(r, "silu_mul", u, (double[]){2 / (1 + exp(-1)), -6 / (1 + exp(2)), 0}, 3);

    (void)case_begin(r, 1,
                     "golden matmul"); /* a Q8_0 row: 0.5 * (1, 2, ..), against x = e_0 - e_31 and all ones */
    unsigned char row[34] = {0x00, 0x38};
    float xs[64] = {0};
    for (int i = 0; i < 32; i++) {
        row[2 + i] = (unsigned char)(i + 1);
        xs[32 + i] = 1;
    }
    xs[0] = 1;
    xs[31] = -1;
    const moa_weight q8 = {.name = "w", .type = MOA_Q8_0, .n_out = 1, .n_in = 32, .data = row, .bytes = 34};
    w = &r->weights[r->n_weight++];
    for (int i = 0; i < 2; i++)
        must(r, r->b[i]->vt->weight_load(r->b[i], &q8, false, &w->dev[i], &err), &err);
    x = mem_new(r, xs, sizeof xs);
    const mem *y = mem_new(r, (float[]){10, 20}, 8);
    CALL(matmul, 0, .x = F(x, 0), .w = w->dev[0], .y = F(y, 0), .n_tok = 2, .accumulate = true);
    golden_case(r, "matmul", y, (double[]){10 + .5 * (1 - 32), 20 + .5 * 528}, 2);
}

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

static void group_brute(rig *r) {
    uint64_t seed = 1;
    for (int g = 0; g < 5; g++)
        for (int d = 0; d < 3; d++)
            brute_case(r, seed++, group_sizes[g], head_sizes[d]);
}

/* --- bench: no checks, only time --------------------------------------------------------------------------------------- */

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* time of all threads of this program: what a busy machine does not distort much */
static double cpu_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sync_tested(rig *r) {
    moa_err err = {0};
    must(r, r->b[1]->vt->sync(r->b[1], &err), &err);
}

/* one side only: the reference would take minutes */
static float *bench_floats(rig *r, size_t n) {
    float *x = floats(r, n, NORMAL);
    void *p = NULL;
    moa_err err = {0};
    must(r, r->b[1]->vt->alloc(r->b[1], n * 4, &p, &err), &err);
    must(r, r->b[1]->vt->upload(r->b[1], p, x, n * 4, &err), &err);
    free(x);
    return p;
}

static void bench_matmul_one(rig *r, moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in) {
    enum { MOST = 128 };
    moa_dev_weight *w[MOST];
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    int n_w = (int)(((size_t)96 << 20) / bytes); /* beyond the caches, as a model is */
    n_w = n_w < 1 ? 1 : n_w > MOST ? MOST : n_w;
    unsigned char *data = malloc(bytes);
    if (!data) abort();
    fill_packed(r, type, data, bytes, info);
    const moa_weight m = {
        .name = "bench", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
    moa_err err = {0};
    for (int i = 0; i < n_w; i++)
        must(r, r->b[1]->vt->weight_load(r->b[1], &m, false, &w[i], &err), &err);
    free(data);
    float *x = bench_floats(r, (size_t)n_tok * (size_t)n_in),
          *y = bench_floats(r, (size_t)n_tok * (size_t)n_out);
    int calls = 0;
    double best = 1e30, best_cpu = 1e30;
    const double end = now_s() + 0.6;
    while (now_s() < end || calls < 2) { /* the best pass over all weights: the machine is shared */
        const double start = now_s(), start_cpu = cpu_s();
        for (int i = 0; i < n_w; i++)
            CALL(matmul, 1, .x = x, .w = w[i], .y = y, .n_tok = n_tok);
        sync_tested(r);
        best = fmin(best, (now_s() - start) / n_w);
        best_cpu = fmin(best_cpu, (cpu_s() - start_cpu) / n_w);
        calls++;
    }
    const double flop = 2.0 * n_tok * n_out * n_in;
    (void)printf("  matmul %-5s n_tok %4d  %6d x %5d  %9.1f us  %6.2f GB/s  %6.1f GFLOP/s   cpu %9.1f us  "
                 "%6.1f GFLOP/s\n",
                 info->name, n_tok, n_out, n_in, best * 1e6, (double)bytes / best * 1e-9, flop / best * 1e-9,
                 best_cpu * 1e6, flop / best_cpu * 1e-9);
    for (int i = 0; i < n_w; i++)
        r->b[1]->vt->weight_free(r->b[1], w[i]);
    r->b[1]->vt->free(r->b[1], x);
    r->b[1]->vt->free(r->b[1], y);
}

static void bench_matmul(rig *r) {
    static const int32_t toks[] = {1, 2, 4, 8, 16, 64, 512};
    for (int t = 0; t < 7; t++)
        bench_matmul_one(r, MOA_Q4_1, toks[t], 1536, 576);
    bench_matmul_one(r, MOA_Q4_1, 1, 576, 1536);
    bench_matmul_one(r, MOA_Q4_1, 1, 192, 576);
    bench_matmul_one(r, MOA_Q8_0, 1, 49152, 576);
    for (int d = 0; d < N_DTYPE; d++) {
        bench_matmul_one(r, dtypes[d], 1, 2048, 1536);
        bench_matmul_one(r, dtypes[d], 4, 2048, 1536);
        bench_matmul_one(r, dtypes[d], 256, 2048, 1536);
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

static void bench_attn_prefill(rig *r) {
    for (int probe = 0; probe < 2; probe++) {
        bench_attn(r, true, 512, 512, 1 << 20, probe);
        bench_attn(r, true, 512, 4096, 1 << 20, probe);
        bench_attn(r, true, 512, 4096, 1024, probe);
        bench_attn(r, true, 512, 4096, 128, probe);
    }
}

static void bench_attn_decode(rig *r) {
    for (int probe = 0; probe < 2; probe++) {
        bench_attn(r, false, 1, 512, 1 << 20, probe);
        bench_attn(r, false, 1, 4096, 1 << 20, probe);
        bench_attn(r, false, 1, 4096, 256, probe);
        bench_attn(r, false, 8, 4096, 1 << 20, probe);
    }
}

static void bench_rest(rig *r) {
    const int32_t n_tok = 512, d = 576;
    float *x = bench_floats(r, (size_t)n_tok * 1536), *y = bench_floats(r, (size_t)n_tok * 1536);
    int32_t pos[512];
    for (int i = 0; i < n_tok; i++)
        pos[i] = i;
    (void)case_begin(r, 1, "bench");
    const mem *p = mem_new(r, pos, sizeof pos);
    const weight *w = weight_new(r, MOA_F32, 1, d);
    double best[4] = {1, 1, 1, 1};
    for (int k = 0; k < 200; k++) {
        double t[5] = {now_s()};
        CALL(rmsnorm, 1, .x = x, .w = w->dev[1], .y = y, .n_tok = n_tok, .n = d, .eps = 1e-5f);
        sync_tested(r);
        t[1] = now_s();
        CALL(rope, 1, .x = y, .pos = I(p, 1), .n_tok = n_tok, .n_head = 9, .d_head = 64, .rope_dim = 64,
             .kind = MOA_ROPE_PAIRS, .theta = 10000, .scale = 1);
        sync_tested(r);
        t[2] = now_s();
        CALL(silu_mul, 1, .gate = x, .up = y, .y = y, .n = (int64_t)n_tok * 1536);
        sync_tested(r);
        t[3] = now_s();
        CALL(add, 1, .x = x, .y = y, .n = (int64_t)n_tok * d);
        sync_tested(r);
        t[4] = now_s();
        for (int i = 0; i < 4; i++)
            best[i] = t[i + 1] - t[i] < best[i] ? t[i + 1] - t[i] : best[i];
    }
    (void)printf("  512 tokens of SmolLM2: rmsnorm %.0f us, rope %.0f us, silu_mul %.0f us, add %.0f us\n",
                 best[0] * 1e6, best[1] * 1e6, best[2] * 1e6, best[3] * 1e6);
    case_end(r);
}

/* microseconds of a draw from one row and from 16, calls queued one after the other */
static void bench_sample(rig *r) {
    static const int32_t vocabs[] = {49152, 128256, 151936};
    static const moa_sampling hows[] = {{.temp = 0, .top_p = 1},
                                        {.temp = .8f, .top_k = 40, .top_p = .95f, .min_p = .05f},
                                        {.temp = .8f, .top_p = .95f},
                                        {.temp = 1, .top_p = 1}};
    enum { N_SEQ = 16, RING = 4 };
    for (int v = 0; v < 3; v++) {
        const int32_t n_vocab = vocabs[v], n_call = r->cuda ? 200 : 3;
        int32_t pos[N_SEQ] = {0}, limit[N_SEQ];
        (void)case_begin(r, 1, "bench");
        for (int s = 0; s < N_SEQ; s++)
            limit[s] = INT32_MAX;
        float *x = floats(r, (size_t)N_SEQ * (size_t)n_vocab, NORMAL);
        for (size_t i = 0; i < (size_t)N_SEQ * (size_t)n_vocab; i++)
            x[i] *= 3;
        const mem *l = mem_floats(r, x, (size_t)N_SEQ * (size_t)n_vocab), *p = mem_new(r, pos, sizeof pos),
                  *m = mem_new(r, limit, sizeof limit), *id = mem_new(r, pos, sizeof pos), *step = mem_new(r, pos, sizeof pos),
                  *t = mem_new(r, NULL, sizeof(moa_told) * N_SEQ * RING);
        for (int k = 0; k < 8; k++) {
            const int32_t n_seq = k % 2 ? N_SEQ : 1;
            double best = 1;
            for (int i = 0; i < 5; i++) {
                sync_tested(r);
                const double start = now_s();
                for (int c = 0; c < n_call; c++)
                    CALL(sample, 1, .logits = F(l, 1), .how = hows[k / 2], .id = (int32_t *)(void *)id->dev[1],
                         .pos = (int32_t *)(void *)p->dev[1], .limit = I(m, 1), .end = I(id, 1), .told = (moa_told *)(void *)t->dev[1],
                         .step = (uint32_t *)(void *)step->dev[1], .n_seq = n_seq, .n_vocab = n_vocab, .told_stride = RING, .n_top = 5);
                sync_tested(r);
                best = fmin(best, (now_s() - start) / n_call);
            }
            (void)printf("  %6d tokens, %2d rows, temp %.1f top-k %2d top-p %.2f: %7.1f us\n", n_vocab, n_seq,
                         (double)hows[k / 2].temp, hows[k / 2].top_k, (double)hows[k / 2].top_p, best * 1e6);
        }
        case_end(r);
    }
}

/* --- the list -------------------------------------------------------------------------------------------------------- */

static const struct group {
    const char *name;
    void (*run)(rig *r);
    bool reference_only;
    void (*bench)(rig *r);
} groups[] = {
    {"golden", group_golden, true, NULL},
    {"brute", group_brute, true, NULL},
    {"embed", group_embed, false, NULL},
    {"rmsnorm", group_rmsnorm, false, bench_rest},
    {"matmul", group_matmul, false, bench_matmul},
    {"rope", group_rope, false, bench_rest},
    {"kv_store", group_kv_store, false, NULL},
    {"attn_prefill", group_attn_prefill, false, bench_attn_prefill},
    {"attn_decode", group_attn_decode, false, bench_attn_decode},
    {"silu_mul", group_silu_mul, false, bench_rest},
    {"add", group_add, false, bench_rest},
    {"capture", group_capture, false, NULL},
    {"attn_map", group_attn_map, false, NULL},
    {"argmax", group_argmax, false, NULL},
    {"sample", group_sample, false, bench_sample},
    {"stat_sum", group_stat_sum, false, NULL},
};
enum { N_GROUP = sizeof groups / sizeof *groups };

/* every operation has a group of its name */
static bool groups_complete(void) {
    static const char *const ops[] = {
#define X(name, text) #name,
        MOA_OP_MAP(X)
#undef X
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        bool found = false;
        for (int g = 0; g < N_GROUP; g++)
            found = found || strcmp(groups[g].name, ops[i]) == 0;
        if (!found) {
            (void)printf("FAILED: operation %s has no group of cases\n", ops[i]);
            return false;
        }
    }
    return true;
}

static void run_groups(rig *r, const char *only, bool with_reference) {
    for (int g = 0; g < N_GROUP; g++) {
        if ((only && strcmp(only, groups[g].name) != 0) || (groups[g].reference_only && !with_reference))
            continue;
        const int cases = r->cases, failed = r->failed;
        const double start = now_s();
        r->worst = 0;
        groups[g].run(r);
        (void)printf("%-14s %5d comparisons, worst NMSE %.1e, %6.2f s%s\n", groups[g].name, r->cases - cases,
                     r->worst, now_s() - start, r->failed > failed ? "  FAILED" : "");
        (void)fflush(stdout);
    }
}

typedef struct options {
    const char *device, *op, *bench;
    int threads, every;
    bool list;
} options;

static bool parse(int argc, char **argv, options *o) {
    *o = (options){.device = "cpu", .every = EVERY};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--list") == 0) {
            o->list = true;
            continue;
        }
        if (!value) return false;
        if (strcmp(a, "--device") == 0)
            o->device = value;
        else if (strcmp(a, "--op") == 0)
            o->op = value;
        else if (strcmp(a, "--bench") == 0)
            o->bench = value;
        else if (strcmp(a, "--threads") == 0)
            o->threads = atoi(value);
        else if (strcmp(a, "--every") == 0)
            o->every = atoi(value);
        else
            return false;
        i++;
    }
    for (int k = 0; k < 2; k++) {
        const char *name = k ? o->bench : o->op;
        bool known = !name;
        for (int g = 0; g < N_GROUP; g++)
            known = known || (strcmp(groups[g].name, name) == 0 && (!k || groups[g].bench));
        if (!known) return false;
    }
    return true;
}

int main(int argc, char **argv) {
    options o;
    rig r = {.label = "opening"};
    char why[256];
    moa_err err = {0};
    if (!parse(argc, argv, &o)) {
        (void)fprintf(stderr, "usage: test_ops [--device cpu|cuda|cuda:N] [--op NAME] [--threads N] [--every "
                              "N] [--list] [--bench OP]\n");
        return 2;
    }
    for (int g = 0; o.list && g < N_GROUP; g++)
        (void)printf("%s\n", groups[g].name);
    if (o.list) return 0;
    const moa_backend_config reference = {.reference = true}, tested = {.n_threads = o.threads},
                             one = {.n_threads = 1}, three = {.n_threads = 3};
    r.cuda = strncmp(o.device, "cuda", 4) == 0;
    if (moa_backend_open(&r.b[1], o.device, &tested, why, sizeof why, &err) != MOA_OK) {
        (void)printf("test_ops: %s%s\n", err.text, r.cuda ? ": not run" : "");
        return r.cuda ? SKIP : 1;
    }
    (void)printf("tested: %s\n", why);
    r.every = o.bench ? 1 : o.every;
    if (r.every > 1) (void)printf("every %dth case only\n", r.every);
    must(&r, moa_cpu_open(&r.b[0], &reference, &err), &err);
    if (!groups_complete()) r.failed++;
    if (o.bench) {
        for (int g = 0; g < N_GROUP; g++)
            if (strcmp(groups[g].name, o.bench) == 0) groups[g].bench(&r);
    } else {
        run_groups(&r, o.op, true);
    }
    moa_backend_close(&r.b[0]);
    moa_backend_close(&r.b[1]);
    if (!o.bench && !r.cuda) {
        (void)printf("1 thread against 3, bit for bit:\n");
        r.exact = true;
        must(&r, moa_cpu_open(&r.b[0], &one, &err), &err);
        must(&r, moa_cpu_open(&r.b[1], &three, &err), &err);
        run_groups(&r, o.op, false);
        moa_backend_close(&r.b[0]);
        moa_backend_close(&r.b[1]);
    }
    (void)printf("test_ops: %d comparisons, %d failed\n", r.cases, r.failed);
    return r.failed ? 1 : 0;
}
