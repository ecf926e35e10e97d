/* test_ops_gemm.c -- products of many rows and uploads on the GPU, where their work is divided: what test_ops's small shapes do not reach.
 *
 *   upload   every length around a slot and a slice, out of memory that is overwritten at once: all bytes arrive
 *   rows     rows of x of every length that is rounded in another way, aligned or not, with rows that need a scale
 *   same x   products that follow one another with the same x, and with an x that something changed in between
 *   parts    a matrix that is decoded in parts, against itself multiplied by a few rows at a time
 *   scales   more matrices than wait for their scale at once, some freed before anyone asks
 *
 * Exits 77 and says why where there is no GPU. A --device word as argument takes that device: "cpu" checks the checks. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/backend.h"
#include "tests/ops_check.h"

enum { SKIP = 77, N_ROW = 70 };
static const double LIMIT = 1e-6; /* NMSE, of test_ops's products */

static uint64_t state = 88172645463325252u;
static uint32_t random_u32(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}
static float *random_floats(size_t n) {
    float *x = malloc(n * sizeof *x);
    if (!x) abort();
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(random_u32() >> 8) * 0x1p-23f - 1.0f;
    return x;
}
static float *get(moa_backend *b, const void *src, size_t n) {
    moa_err err = {0};
    float *host = malloc(n * sizeof *host);
    if (!host) abort();
    must(b->vt->download(b, host, src, n * sizeof *host, &err), &err, "download");
    return host;
}
static double nmse(const float *a, const float *b, size_t n) {
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        power += (double)a[i] * a[i];
    }
    return isnan(error) ? INFINITY : power > 0 ? error / power : error;
}
static moa_dev_weight *load(moa_backend *b, moa_dtype type, int32_t n_out, int32_t n_in, const void *data) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const moa_weight m = {.name = "w",
                          .type = type,
                          .n_out = n_out,
                          .n_in = n_in,
                          .data = data,
                          .bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes};
    moa_dev_weight *w = NULL;
    moa_err err = {0};
    must(b->vt->weight_load(b, &m, true, &w, &err), &err, "weight_load");
    return w;
}

static void check_upload(moa_backend *b) {
    static const size_t sizes[] = {(64 << 10) + 1, 256 << 10,      (512 << 10) + 3,  (4 << 20) - 1,
                                   4 << 20,        (4 << 20) + 17, (37 << 20) + 101, 100 << 20};
    enum { N = sizeof sizes / sizeof *sizes };
    unsigned char *host = malloc(sizes[N - 1]), *kept = malloc(sizes[N - 1]), *back = malloc(sizes[N - 1]);
    void *to[N];
    moa_err err = {0};
    if (!host || !kept || !back) abort();
    for (size_t i = 0; i < sizes[N - 1]; i++)
        kept[i] = (unsigned char)(random_u32() >> 3);
    for (int i = 0; i < N; i++) {
        memcpy(host, kept, sizes[i]);
        to[i] = put(b, host, sizes[i]);
        memset(host, 0xee, sizes[i]);
    }
    for (int i = 0; i < N; i++) {
        must(b->vt->download(b, back, to[i], sizes[i], &err), &err, "download");
        CHECK(memcmp(back, kept, sizes[i]) == 0, "an upload of %zu bytes", sizes[i]);
        b->vt->free(b, to[i]);
    }
    free(host), free(kept), free(back);
}

/* every third row times a power of ten that float16 does not hold */
static void stretch_rows(float *x, int32_t n_in) {
    static const float powers[] = {1e9f, 1e-7f, 0};
    for (int32_t r = 0; r < N_ROW; r += 3)
        for (int32_t i = 0; i < n_in; i++)
            x[(int64_t)r * n_in + i] *= powers[r / 3 % 3];
}

/* x W^T (+ bias) (+ y) on both */
static void check_rows(moa_backend *const b[2], moa_dtype type, int32_t n_in, int shift, bool accumulate) {
    enum { N_OUT = 40 };
    const size_t nx = (size_t)N_ROW * (size_t)n_in, ny = (size_t)N_ROW * N_OUT;
    float *x = random_floats(nx + 1), *w = random_floats((size_t)N_OUT * (size_t)n_in), *y = random_floats(ny);
    float *bias = random_floats(N_OUT), *out[2];
    uint16_t *half = malloc((size_t)N_OUT * (size_t)n_in * sizeof *half);
    if (!half) abort();
    for (size_t i = 0; i < (size_t)N_OUT * (size_t)n_in; i++) { /* BF16: the upper bits */
        uint32_t bits;
        memcpy(&bits, w + i, 4);
        half[i] = (uint16_t)(bits >> 16);
    }
    stretch_rows(x + shift, n_in);
    for (int i = 0; i < 2; i++) {
        float *dx = put(b[i], x, (nx + 1) * sizeof *x), *dy = put(b[i], y, ny * sizeof *y);
        moa_dev_weight *dw = load(b[i], type, N_OUT, n_in, type == MOA_F32 ? (void *)w : (void *)half);
        moa_dev_weight *db = load(b[i], MOA_F32, 1, N_OUT, bias);
        CALL(b[i], matmul, .x = dx + shift, .w = dw, .bias = db, .y = dy, .n_tok = N_ROW, .accumulate = accumulate);
        out[i] = get(b[i], dy, ny);
        b[i]->vt->weight_free(b[i], dw), b[i]->vt->weight_free(b[i], db);
        b[i]->vt->free(b[i], dx), b[i]->vt->free(b[i], dy);
    }
    for (int r = 0; r < N_ROW; r++) { /* row by row: the large ones must not hide the small */
        const double e = nmse(out[0] + r * N_OUT, out[1] + r * N_OUT, N_OUT);
        CHECK(e <= 10 * LIMIT, "%s n_in %d shifted %d row %d: NMSE %.2e", moa_dtype_find((uint32_t)type)->name, n_in, shift, r, e);
    }
    free(x), free(w), free(y), free(bias), free(half), free(out[0]), free(out[1]);
}

/* y = x W, z = x V; x += x; u = x V: 3 results of both */
static void check_same_x(moa_backend *const b[2]) {
    enum { N_IN = 192, N_OUT = 56, NX = N_ROW * N_IN, NY = N_ROW * N_OUT };
    float *x = random_floats(NX), *w = random_floats(N_OUT * N_IN), *v = random_floats(N_OUT * N_IN), *out[2][3];
    for (int i = 0; i < 2; i++) {
        float *dx = put(b[i], x, NX * sizeof *x), *dy[3];
        moa_dev_weight *dw = load(b[i], MOA_F32, N_OUT, N_IN, w), *dv = load(b[i], MOA_F32, N_OUT, N_IN, v);
        for (int k = 0; k < 3; k++)
            dy[k] = take(b[i], NY * sizeof(float));
        CALL(b[i], matmul, .x = dx, .w = dw, .y = dy[0], .n_tok = N_ROW);
        CALL(b[i], matmul, .x = dx, .w = dv, .y = dy[1], .n_tok = N_ROW);
        CALL(b[i], add, .x = dx, .y = dx, .n = NX);
        CALL(b[i], matmul, .x = dx, .w = dv, .y = dy[2], .n_tok = N_ROW);
        for (int k = 0; k < 3; k++) {
            out[i][k] = get(b[i], dy[k], NY);
            b[i]->vt->free(b[i], dy[k]);
        }
        b[i]->vt->free(b[i], dx);
        b[i]->vt->weight_free(b[i], dw), b[i]->vt->weight_free(b[i], dv);
    }
    for (int k = 0; k < 3; k++) {
        const double e = nmse(out[0][k], out[1][k], NY);
        CHECK(e <= LIMIT, "same x, product %d: NMSE %.2e", k, e);
        free(out[0][k]), free(out[1][k]);
    }
    free(x), free(w), free(v);
}

/* 135 MiB of float16, in two parts: the first 3 and the last 3 of 70 rows, alone too */
static void check_parts(moa_backend *b) {
    enum { N_IN = 16384, N_OUT = 4331, FEW = 3 };
    const size_t n_block = (size_t)N_OUT * N_IN / 32, nx = (size_t)N_ROW * N_IN;
    unsigned char *q = malloc(n_block * 18);
    float *x = random_floats(nx), *dx = put(b, x, nx * sizeof *x);
    float *all = take(b, (size_t)N_ROW * N_OUT * sizeof *all), *few = take(b, (size_t)FEW * N_OUT * sizeof *few);
    if (!q) abort();
    for (size_t i = 0; i < n_block; i++) {
        const uint16_t d = (uint16_t)(0x2000u + random_u32() % 0x400u); /* 2^-7 .. 2^-6 */
        memcpy(q + 18 * i, &d, 2);
        for (int k = 2; k < 18; k++)
            q[18 * i + (size_t)k] = (unsigned char)(random_u32() >> 7);
    }
    moa_dev_weight *w = load(b, MOA_Q4_0, N_OUT, N_IN, q);
    CALL(b, matmul, .x = dx, .w = w, .y = all, .n_tok = N_ROW);
    float *whole = get(b, all, (size_t)N_ROW * N_OUT);
    for (int end = 0; end < 2; end++) {
        const int64_t row = end ? N_ROW - FEW : 0;
        CALL(b, matmul, .x = dx + row * N_IN, .w = w, .y = few, .n_tok = FEW);
        float *part = get(b, few, (size_t)FEW * N_OUT);
        const double e = nmse(part, whole + row * N_OUT, (size_t)FEW * N_OUT);
        CHECK(e <= LIMIT, "in parts, rows from %lld: NMSE %.2e", (long long)row, e);
        free(part);
    }
    b->vt->weight_free(b, w);
    b->vt->free(b, dx), b->vt->free(b, all), b->vt->free(b, few);
    free(q), free(x), free(whole);
}

/* weights of size 1e-6 need their scale: without it float16 makes them 6 % wrong */
static void check_scales(moa_backend *b) {
    enum { N = 1100, N_IN = 64, N_OUT = 8, NW = N_IN * N_OUT };
    moa_dev_weight **w = calloc(N, sizeof *w);
    float *data = random_floats(NW), *ones = malloc(N_ROW * N_IN * sizeof *ones);
    if (!w || !ones) abort();
    for (int i = 0; i < NW; i++)
        data[i] *= 1e-6f;
    for (int i = 0; i < N_ROW * N_IN; i++)
        ones[i] = 1;
    for (int i = 0; i < N; i++) {
        w[i] = load(b, MOA_F32, N_OUT, N_IN, data);
        if (i % 5 != 4) continue;
        b->vt->weight_free(b, w[i]);
        w[i] = NULL;
    }
    float *x = put(b, ones, N_ROW * N_IN * sizeof *ones), *y = take(b, N_ROW * N_OUT * sizeof *y), expected[N_OUT] = {0};
    for (int o = 0; o < N_OUT; o++)
        for (int i = 0; i < N_IN; i++)
            expected[o] += data[o * N_IN + i];
    for (int i = 0; i < N; i++) {
        if (!w[i]) continue;
        if (i % 97 == 0 || i > N - 5) {
            CALL(b, matmul, .x = x, .w = w[i], .y = y, .n_tok = N_ROW);
            float *out = get(b, y, N_ROW * N_OUT);
            const double e = nmse(expected, out + (N_ROW - 1) * N_OUT, N_OUT);
            CHECK(e <= 10 * LIMIT, "weight %d of %d: NMSE %.2e", i, N, e);
            free(out);
        }
        b->vt->weight_free(b, w[i]);
    }
    b->vt->free(b, x), b->vt->free(b, y);
    free(w), free(data), free(ones);
}

int main(int argc, char **argv) {
    static const int32_t lengths[] = {8, 33, 576, 2048, 2052, 4096, 8192, 14336, 16384, 16388, 20000};
    const moa_backend_config exact = {.reference = true};
    moa_backend *b[2] = {NULL, NULL};
    char why[256];
    moa_err err = {0};
    if (moa_backend_open(&b[1], argc > 1 ? argv[1] : "cuda", NULL, why, sizeof why, &err) != MOA_OK) {
        (void)printf("test_ops_gemm: %s: not run\n", err.text);
        return SKIP;
    }
    must(moa_backend_open(&b[0], "cpu", &exact, why, sizeof why, &err), &err, "opening the CPU");
    check_upload(b[1]);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int k = 0; k < 4; k++)
            check_rows(b, k % 2 ? MOA_BF16 : MOA_F32, lengths[i], k / 2, (k + (int)i) % 3 == 0);
    check_same_x(b);
    check_parts(b[1]);
    check_scales(b[1]);
    moa_backend_close(&b[0]);
    moa_backend_close(&b[1]);
    (void)printf("test_ops_gemm: %d checks, %d failed\n", n_check, n_failed);
    return n_failed ? 1 : 0;
}
