/* axis.c -- tokens to cells and back; axis.h has the picture. */
#include "viz/axis.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

viz_axis viz_axis_of(int32_t t0, int32_t t1, int buckets, int room, int per_max) {
    viz_axis a = {.t0 = t0, .t1 = t1 > t0 ? t1 : t0 + 1};
    const int32_t n = a.t1 - a.t0;
    if (buckets < n) {
        a.cells = buckets > 0 ? buckets : 1;
        return a;
    }
    a.per = room / n;
    if (a.per > per_max) a.per = per_max;
    if (a.per < 1) a.per = 1;
    a.cells = n * a.per;
    return a;
}

int viz_axis_cell(const viz_axis *a, int32_t t) {
    if (t < a->t0 || t >= a->t1) return -1;
    const int64_t d = (int64_t)t - a->t0;
    if (a->per) return (int)(d * a->per);
    /* the largest c with floor(c*n/cells) <= d */
    return (int)(((d + 1) * a->cells - 1) / (a->t1 - a->t0));
}

/* --- zoom ------------------------------------------------------------------------------------------------------------------ */

static int32_t at_tokens(const viz_zoom *z, int per) {
    const int n = z->cells / (per > 0 ? per : 1);
    return n > 0 ? n : 1;
}

static int levels_of(const viz_zoom *z) {
    const double r = (double)(z->hi - z->lo) / at_tokens(z, z->unit);
    return r > 1 ? (int)ceil(log2(r) - 1e-9) : 0;
}

int viz_zoom_levels(const viz_zoom *a, const viz_zoom *b) {
    const int x = levels_of(a), y = levels_of(b);
    return x > y ? x : y;
}

int32_t viz_zoom_count(const viz_zoom *z, int level, int levels) {
    const int32_t all = z->hi - z->lo, single = at_tokens(z, z->unit);
    int32_t n = all;
    if (level > levels && z->wide > z->unit) n = at_tokens(z, z->wide);
    else if (level >= levels) n = single;
    else if (level > 0 && all > single) {
        const double g = all * pow((double)single / all, (double)level / levels);
        n = (int32_t)(ceil(g / z->cells - 1e-9) * z->cells); /* a whole number of tokens a cell */
    }
    return n < 1 ? 1 : n < all ? n : all;
}

static int32_t inside(const viz_zoom *z, int32_t count, int64_t t0) {
    if (t0 > (int64_t)z->hi - count) t0 = (int64_t)z->hi - count;
    if (t0 < z->lo) t0 = z->lo;
    return (int32_t)t0;
}

int32_t viz_zoom_scroll(const viz_zoom *z, int32_t count, int32_t t0, int32_t at) {
    const int32_t margin = count / 8;
    int64_t to = inside(z, count, t0);
    if (at < z->lo) at = z->lo;
    if (at >= z->hi) at = z->hi - 1;
    if (at < to + margin) to = (int64_t)at - margin;
    if (at >= to + count - margin) to = (int64_t)at - count + margin + 1;
    return inside(z, count, to);
}

int32_t viz_zoom_around(const viz_zoom *z, int32_t count, int32_t t0, int32_t old, int32_t at) {
    double f = old > 0 ? ((double)at - t0) / old : 0.5;
    if (f < 0 || f > 1) f = 0.5;
    return inside(z, count, (int64_t)at - (int64_t)floor(f * count));
}

/* --- labels ------------------------------------------------------------------------------------------------------------------ */

static void label_of(char out[16], int32_t token, int64_t step) {
    if (step % 1000 == 0 && token != 0) (void)snprintf(out, 16, "%dk", token / 1000);
    else (void)snprintf(out, 16, "%d", token);
}

/* 1 2 5 10 20 50 ... */
static int64_t next_step(int64_t step) {
    int64_t ten = 1;
    while (ten * 10 <= step) ten *= 10;
    return step / ten == 1 ? 2 * ten : step / ten == 2 ? 5 * ten : 10 * ten;
}

static int place(const viz_axis *a, bool across, int gap, int64_t step, viz_tick *out, int max) {
    int n = 0, free_from = 0;
    for (int64_t t = ((int64_t)a->t0 + step - 1) / step * step; t < a->t1; t += step) {
        viz_tick k = {.cell = viz_axis_cell(a, (int32_t)t), .token = (int32_t)t};
        label_of(k.label, k.token, step);
        const int size = across ? (int)strlen(k.label) : 1;
        if (k.cell < free_from || n == max) return -1; /* too dense */
        if (k.cell + size > a->cells) break;
        free_from = k.cell + size + gap;
        out[n++] = k;
    }
    return n;
}

int viz_axis_ticks(const viz_axis *a, bool across, int gap, viz_tick *out, int max) {
    if (max < 1) return 0;
    for (int64_t step = 1; step <= 2 * (int64_t)a->t1 + 10; step = next_step(step)) {
        const int n = place(a, across, gap, step, out, max);
        if (n >= 0) return n;
    }
    return 0;
}
