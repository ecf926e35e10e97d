/* attn.c -- shades of a pooled attention map; attn.h says what they mean. */
#include "viz/attn.h"

#include <math.h>
#include <stdlib.h>

/* sum of 1/x for x in [a, b), a >= 1: exact for short ranges, else the integral with its first correction (error < 1e-4 of it) */
static double harmonic(int64_t a, int64_t b) {
    if (b <= a) return 0;
    double s = 0;
    if (b - a <= 64 || a < 64) {
        const int64_t end = b - a <= 64 ? b : a < 64 ? 64 : a;
        for (; a < end && a < b; a++) s += 1.0 / (double)a;
    }
    if (b > a) s += log(((double)b - 0.5) / ((double)a - 0.5));
    return s;
}

double viz_attn_uniform(int32_t q0, int32_t q1, int32_t k0, int32_t k1) {
    if (q1 <= q0 || k1 <= k0) return 0;
    double s = 0;
    /* queries that see a part of the keys, one by one; those that see all of them together */
    const int32_t whole = q0 > k1 - 1 ? q0 : k1 - 1;
    for (int32_t q = q0 > k0 ? q0 : k0; q < whole && q < q1; q++) s += (double)(q + 1 - k0) / ((double)q + 1);
    if (whole < q1) s += (double)(k1 - k0) * harmonic((int64_t)whole + 1, (int64_t)q1 + 1);
    return s / (q1 - q0);
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* the known values of t, sorted; NULL: no memory, or none. Caller frees */
static float *sorted_of(const float *t, int n, int *known) {
    float *s = malloc(sizeof *s * (size_t)(n > 0 ? n : 1));
    *known = 0;
    if (!s) return NULL;
    for (int i = 0; i < n; i++)
        if (!isnan(t[i])) s[(*known)++] = t[i];
    qsort(s, (size_t)*known, sizeof *s, by_value);
    return s;
}

static void to_ranks(float *t, int n) {
    int k;
    float *s = sorted_of(t, n, &k);
    if (!s) return;
    for (int i = 0; i < n; i++) {
        if (isnan(t[i])) continue;
        int lo = 0, hi = k; /* how many are smaller: equal values share a rank */
        while (lo < hi) {
            const int mid = (lo + hi) / 2;
            if (s[mid] < t[i]) lo = mid + 1;
            else hi = mid;
        }
        t[i] = k > 1 ? (float)lo / (float)(k - 1) : 1.0f;
    }
    free(s);
}

/* raw figures: lift, or mass; NAN in the future */
static void raw(const viz_attn *a, float *t) {
    const int rows = viz_axis_buckets(&a->q), cols = viz_axis_buckets(&a->k);
    const double even = (double)(a->k.t1 - a->k.t0) / cols;
    for (int r = 0; r < rows; r++) {
        const int32_t qa = viz_axis_bucket_first(&a->q, r), qb = viz_axis_bucket_end(&a->q, r);
        const double factor = a->factor ? (double)a->factor[r] : 1.0, n_q = a->max || qb <= qa ? 1 : qb - qa;
        const double single = a->max ? viz_attn_uniform(qa, qb, 0, 1) : 0;
        for (int c = 0; c < cols; c++) {
            const size_t i = (size_t)r * (size_t)cols + (size_t)c;
            const int32_t ka = viz_axis_bucket_first(&a->k, c), kb = viz_axis_bucket_end(&a->k, c);
            double v = (double)a->v[i] * factor / n_q;
            if (ka >= qb || isnan(a->v[i])) {
                t[i] = NAN;
                continue;
            }
            if (a->scale == VIZ_SCALE_LIFT) {
                const double u = a->max ? single : viz_attn_uniform(qa, qb, ka, kb);
                v = u > 0 ? v / u : 0;
            } else if (!a->max && kb > ka) v *= even / (kb - ka);
            t[i] = (float)v;
        }
    }
}

static void logs(const viz_attn *a, float *t, int n, float top, float *lo, float *hi) {
    *hi = a->scale == VIZ_SCALE_LIFT ? 2 : 0;
    if (a->own && a->scale == VIZ_SCALE_LOG) *hi = top > 0 ? (float)ceil(log10((double)top)) : 0;
    *lo = *hi - 4;
    if (a->own && a->scale == VIZ_SCALE_LIFT) { /* what most cells lie in */
        int k;
        float *s = sorted_of(t, n, &k);
        int first = 0;
        while (s && first < k && s[first] <= 0) first++;
        if (s && k - first >= 2) {
            *lo = (float)log10((double)s[first + (k - first) / 50]);
            *hi = (float)log10((double)s[k - 1 - (k - first) / 50]);
        }
        free(s);
        if (*hi - *lo < 0.1f) *lo = *hi - 0.1f;
    }
    for (int i = 0; i < n; i++) {
        if (isnan(t[i])) continue;
        const double x = t[i] > 0 ? (log10((double)t[i]) - (double)*lo) / ((double)*hi - (double)*lo) : 0;
        t[i] = (float)(x < 0 ? 0 : x > 1 ? 1 : x);
    }
}

void viz_attn_scale(const viz_attn *a, float *t, float lo_hi[2]) {
    const int n = viz_axis_buckets(&a->q) * viz_axis_buckets(&a->k);
    float top = 0, lo = 0, hi = 1;
    raw(a, t);
    for (int i = 0; i < n; i++)
        if (t[i] > top) top = t[i]; /* false for NAN */
    if (a->scale == VIZ_SCALE_RANK) to_ranks(t, n);
    else if (a->scale == VIZ_SCALE_LINEAR) {
        if (a->own && top > 0) hi = top;
        for (int i = 0; i < n; i++)
            if (!isnan(t[i])) t[i] = t[i] > hi ? 1 : t[i] / hi;
    } else logs(a, t, n, top, &lo, &hi);
    if (!lo_hi) return;
    lo_hi[0] = lo;
    lo_hi[1] = hi;
}

void viz_attn_spread(const viz_axis *q, const viz_axis *k, const float *t, float *out) {
    const int cols = viz_axis_buckets(k);
    for (int y = 0; y < q->cells; y++)
        for (int x = 0; x < k->cells; x++)
            out[(size_t)y * (size_t)k->cells + (size_t)x] = t[(size_t)viz_axis_bucket_of_cell(q, y) * (size_t)cols + (size_t)viz_axis_bucket_of_cell(k, x)];
}
