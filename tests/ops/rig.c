/* rig.c -- the two backends of a case: inputs from a seed, memory on both sides between guards, comparisons, clocks. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/ops/ops.h"

uint64_t next_u64(rig *r) {
    r->rng ^= r->rng >> 12;
    r->rng ^= r->rng << 25;
    r->rng ^= r->rng >> 27;
    return r->rng * 0x2545f4914f6cdd1dull;
}
double uniform(rig *r) {
    return (double)(next_u64(r) >> 11) * 0x1p-53;
}
int32_t below(rig *r, int32_t n) {
    return (int32_t)(next_u64(r) % (uint64_t)n);
}
float normal(rig *r) {
    return (float)(sqrt(-2 * log(uniform(r) + 1e-300)) * cos(6.283185307179586 * uniform(r)));
}

const char *const input_names[N_INPUT] = {"normal", "outliers", "equal", "one-hot"};

float *floats(rig *r, size_t n, input_kind kind) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (!x) abort();
    for (size_t i = 0; i < n; i++) {
        x[i] = kind == EQUAL ? 0.5f : kind == ONE_HOT ? (below(r, 29) == 0 ? 3.0f : 0.0f) : normal(r);
        if (kind == OUTLIERS && below(r, 97) == 0) x[i] *= 20;
    }
    return x;
}

/* --- memory on both sides -------------------------------------------------------------------------------------------- */

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

void must(const rig *r, moa_status s, const moa_err *err) {
    if (s == MOA_OK) return;
    (void)fprintf(stderr, "test_ops: %s: %s\n", r->label, err->text);
    exit(1);
}

/* host: initial content, NULL: NaN everywhere */
mem *mem_new(rig *r, const void *host, size_t bytes) {
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
mem *mem_floats(rig *r, float *x, size_t n) {
    mem *m = mem_new(r, x, n * sizeof *x);
    free(x);
    return m;
}

unsigned char *fetch(rig *r, const mem *m, int side) {
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

void fail(rig *r, const char *what) {
    r->failed++;
    (void)printf("  FAILED %s: %s\n", r->label, what);
}

/* Compares a float output; n_part > 1: columns of a row are measured apart (statistics of different size). skip: rows of n_col
 * floats to leave out, may be NULL. */
void compare(rig *r, const mem *m, limit_kind kind, const char *what, int n_part, const bool *skip,
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

void compare_bytes(rig *r, const mem *m, const char *what) {
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

/* false: a case to leave out (--every) */
bool case_begin(rig *r, uint64_t seed, const char *format, ...) {
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

void case_end(rig *r) {
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < r->n_mem; k++)
            r->b[i]->vt->free(r->b[i], r->mems[k].dev[i] - GUARD_BYTES);
        for (int k = 0; k < r->n_weight; k++)
            r->b[i]->vt->weight_free(r->b[i], r->weights[k].dev[i]);
    }
    r->n_mem = r->n_weight = 0;
}

/* --- bench ----------------------------------------------------------------------------------------------------------- */

double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* time of all threads of this program: what a busy machine does not distort much */
double cpu_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void sync_tested(rig *r) {
    moa_err err = {0};
    must(r, r->b[1]->vt->sync(r->b[1], &err), &err);
}

/* one side only: the reference would take minutes */
float *bench_floats(rig *r, size_t n) {
    float *x = floats(r, n, NORMAL);
    void *p = NULL;
    moa_err err = {0};
    must(r, r->b[1]->vt->alloc(r->b[1], n * 4, &p, &err), &err);
    must(r, r->b[1]->vt->upload(r->b[1], p, x, n * 4, &err), &err);
    free(x);
    return p;
}
