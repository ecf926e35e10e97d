/* heat.c -- pooling, scaling and drawing of maps; heat.h has the picture. */
#include "viz/heat.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const scale_names[VIZ_SCALE_COUNT] = {
#define X(name, text) text,
    VIZ_SCALE_MAP(X)
#undef X
};
const char *viz_scale_name(viz_scale s) { return scale_names[s]; }

/* --- pooling ------------------------------------------------------------------------------------------------------------ */

/* share of source cell `i` (of n_in) that lies in target cell `o` (of n_out), both cut from the same length */
static double overlap(int i, int n_in, int o, int n_out) {
    const double a = (double)i / n_in, b = (double)(i + 1) / n_in, c = (double)o / n_out, d = (double)(o + 1) / n_out;
    const double lo = a > c ? a : c, hi = b < d ? b : d;
    return hi > lo ? (hi - lo) * n_in : 0;
}

static void range_of(int o, int n_out, int n_in, int *first, int *last) {
    *first = (int)((int64_t)o * n_in / n_out);
    *last = (int)(((int64_t)(o + 1) * n_in + n_out - 1) / n_out);
    if (*last > n_in) *last = n_in;
}

void viz_pool(const float *in, int rows, int cols, float *out, int out_rows, int out_cols, bool use_max) {
    for (int r = 0; r < out_rows; r++) {
        int r0, r1;
        range_of(r, out_rows, rows, &r0, &r1);
        for (int c = 0; c < out_cols; c++) {
            int c0, c1;
            range_of(c, out_cols, cols, &c0, &c1);
            double sum = 0, best = -INFINITY, weight = 0;
            bool known = false;
            for (int i = r0; i < r1; i++) {
                const double wr = overlap(i, rows, r, out_rows);
                if (wr <= 0) continue;
                weight += wr; /* of all the row's queries: a masked part is mass 0 */
                for (int j = c0; j < c1; j++) {
                    const float v = in[(size_t)i * (size_t)cols + (size_t)j];
                    const double wc = overlap(j, cols, c, out_cols);
                    if (isnan(v) || wc <= 0) continue;
                    known = true;
                    sum += wr * wc * (double)v;
                    if ((double)v > best) best = (double)v;
                }
            }
            out[(size_t)r * (size_t)out_cols + (size_t)c] = !known ? NAN : use_max ? (float)best : (float)(sum / weight);
        }
    }
}

/* --- scaling ------------------------------------------------------------------------------------------------------------ */

/* mass that uniform causal attention of the row's middle query would put on keys [a, b) */
static double uniform_mass(double q, double a, double b) {
    const double seen = q + 1, hi = b < seen ? b : seen;
    return hi > a ? (hi - a) / seen : 0;
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* t holds raw values (NAN masked); replaces each by its rank among the known ones */
static void to_ranks(float *t, int n) {
    float *sorted = malloc(sizeof *sorted * (size_t)(n > 0 ? n : 1));
    if (!sorted) return;
    int k = 0;
    for (int i = 0; i < n; i++)
        if (!isnan(t[i])) sorted[k++] = t[i];
    qsort(sorted, (size_t)k, sizeof *sorted, by_value);
    for (int i = 0; i < n; i++) {
        if (isnan(t[i])) continue;
        int lo = 0, hi = k; /* how many are smaller: equal values share a rank */
        while (lo < hi) {
            const int mid = (lo + hi) / 2;
            if (sorted[mid] < t[i]) lo = mid + 1;
            else hi = mid;
        }
        t[i] = k > 1 ? (float)lo / (float)(k - 1) : 1.0f;
    }
    free(sorted);
}

void viz_scale_map(const float *mass, int rows, int cols, viz_extent e, viz_scale scale, int skip_first, float *t, float lo_hi[2]) {
    const double dq = ((double)e.q1 - e.q0) / (rows > 0 ? rows : 1), dk = ((double)e.k1 - e.k0) / (cols > 0 ? cols : 1);
    double top = 0;
    for (int r = 0; r < rows; r++) {
        const double q_last = e.q0 + dq * (r + 1) - 1, q_mid = e.q0 + dq * (r + 0.5) - 0.5;
        for (int c = 0; c < cols; c++) {
            const size_t i = (size_t)r * (size_t)cols + (size_t)c;
            const double a = e.k0 + dk * c, b = a + dk;
            if (a > q_last || isnan(mass[i])) {
                t[i] = NAN;
                continue;
            }
            double v = (double)mass[i];
            if (scale == VIZ_SCALE_LIFT) {
                double u = uniform_mass(q_mid, a, b);
                if (u <= 0) u = uniform_mass(q_last, a, b);
                v = u > 0 ? v / u : 0;
            }
            t[i] = (float)v;
            if (c >= skip_first && v > top) top = v;
        }
    }
    const int n = rows * cols;
    float lo = 0, hi = (float)top;
    if (scale == VIZ_SCALE_RANK) {
        to_ranks(t, n);
        hi = 1;
    } else if (scale == VIZ_SCALE_LINEAR) {
        for (int i = 0; i < n; i++)
            if (!isnan(t[i])) t[i] = top > 0 ? (float)fmin(1, (double)t[i] / top) : 0;
    } else { /* log10: lift from -2 to +2, mass over the four decades below the largest */
        hi = scale == VIZ_SCALE_LIFT ? 2 : top > 0 ? (float)ceil(log10(top)) : 0;
        lo = hi - 4;
        for (int i = 0; i < n; i++) {
            if (isnan(t[i])) continue;
            const double v = t[i] > 0 ? (log10((double)t[i]) - (double)lo) / 4 : 0;
            t[i] = (float)(v < 0 ? 0 : v > 1 ? 1 : v);
        }
    }
    if (lo_hi) {
        lo_hi[0] = lo;
        lo_hi[1] = hi;
    }
}

/* --- drawing -------------------------------------------------------------------------------------------------------------- */

static float value_at(const viz_heat *h, int r, int c) {
    return r < h->rows && c < h->cols ? h->t[(size_t)r * (size_t)h->cols + (size_t)c] : NAN;
}

static bool dimmed(const viz_heat *h, int r, int c) {
    return h->edge && r < h->rows && c >= h->keep_cols && (float)(c + 1) <= h->edge[r];
}

static bool edge_here(const float *edge, int rows, int r, int c) {
    return edge && r >= 0 && r < rows && edge[r] > 0 && (int)edge[r] == c;
}

/* sparse dots where the future is; the lattice does not depend on the zoom, so it does not shimmer */
static const char *future_glyph(int y, int c) { return (c + 2 * (y & 1)) % 4 == 0 ? "·" : " "; }

static void half_cell(viz_pane p, const viz_heat *h, int y, int x, int c) {
    const int r = 2 * y;
    const float up = value_at(h, r, c), down = value_at(h, r + 1, c);
    const viz_color cu = isnan(up) ? (viz_color)VIZ_DEFAULT : viz_ramp_color(h->ramp, (double)up, dimmed(h, r, c));
    const viz_color cd = isnan(down) ? (viz_color)VIZ_DEFAULT : viz_ramp_color(h->ramp, (double)down, dimmed(h, r + 1, c));
    const bool edge = edge_here(h->edge, h->rows, r, c), old = edge_here(h->edge2, h->rows, r, c);
    if (isnan(up) && isnan(down)) {
        viz_text(p, y, x, viz_fg(VIZ_FAINT), r < h->rows ? future_glyph(y, c) : " ");
        return;
    }
    if (edge || old) { /* the edge over the mean of both halves' ground */
        viz_text(p, y, x, viz_on(edge ? VIZ_EDGE : VIZ_ACCENT, isnan(down) ? cu : cd), edge ? "▏" : "┊");
        return;
    }
    if (isnan(up)) viz_text(p, y, x, viz_on(cd, VIZ_DEFAULT), "▄");
    else if (isnan(down)) viz_text(p, y, x, viz_on(cu, VIZ_DEFAULT), "▀");
    else if (cu == cd) viz_text(p, y, x, viz_on(cu, cu), " ");
    else viz_text(p, y, x, viz_on(cu, cd), "▀");
}

static void glyph_cell(viz_pane p, const viz_heat *h, int y, int x, int c) {
    const float v = value_at(h, y, c);
    const bool edge = edge_here(h->edge, h->rows, y, c), old = edge_here(h->edge2, h->rows, y, c);
    if (isnan(v)) {
        viz_text(p, y, x, viz_fg(VIZ_FAINT), y < h->rows ? future_glyph(y, c) : " ");
        return;
    }
    if (edge || old) {
        viz_text(p, y, x, viz_fg(edge ? VIZ_EDGE : VIZ_ACCENT), edge ? "▏" : "┊");
        return;
    }
    const char one[2] = {viz_ramp_glyph(h->ramp, (double)v), 0};
    const bool out = dimmed(h, y, c);
    const viz_style s = {out ? VIZ_FAINT : VIZ_TEXT, VIZ_DEFAULT, out ? VIZ_A_DIM : h->edge ? VIZ_A_BOLD : 0};
    viz_text(p, y, x, s, one);
}

static void gutter(viz_pane p, const viz_heat *h, bool half, int y) {
    for (int c = 0; c < 2; c++) {
        const int r = half ? 2 * y : y;
        if (r >= h->rows) return;
        if (half) {
            const viz_color cu = viz_ramp_color(h->ramp, (double)h->sink[r], false);
            const viz_color cd = r + 1 < h->rows ? viz_ramp_color(h->ramp, (double)h->sink[r + 1], false) : cu;
            viz_text(p, y, c, viz_on(cu, cd), "▀");
        } else {
            const char one[2] = {viz_ramp_glyph(h->ramp, (double)h->sink[r]), 0};
            viz_text(p, y, c, viz_fg(VIZ_TEXT), one);
        }
    }
    viz_text(p, y, 2, viz_fg(VIZ_FRAME), "│");
}

void viz_heat_draw(viz_pane p, const viz_heat *h) {
    const bool half = viz_caps_half(p.c->caps);
    const int cell_rows = half ? (h->rows + 1) / 2 : h->rows, x0 = viz_heat_gutter(h->sink != NULL);
    for (int y = 0; y < cell_rows && y < p.h; y++) {
        if (h->sink) gutter(p, h, half, y);
        for (int c = 0; c < h->cols && x0 + c < p.w; c++) {
            if (half) half_cell(p, h, y, x0 + c, c);
            else glyph_cell(p, h, y, x0 + c, c);
        }
    }
    if (h->cursor_row < 0 || h->cursor_col < 0) return;
    const int y = half ? h->cursor_row / 2 : h->cursor_row, x = x0 + h->cursor_col;
    const viz_style s = viz_on(VIZ_ACCENT, VIZ_DEFAULT);
    if (h->cursor_col > 0 || x0 > 0) viz_text(p, y, x - 1, (viz_style){s.fg, s.bg, VIZ_A_BOLD}, "[");
    viz_text(p, y, x + 1, (viz_style){s.fg, s.bg, VIZ_A_BOLD}, "]");
    viz_cursor(p, y, x);
}

int viz_legend(viz_pane p, int y, int x, viz_ramp ramp, const char *lo, const char *hi, const char *unit) {
    const int x0 = x;
    x += viz_text(p, y, x, viz_fg(VIZ_DIM), lo);
    x += viz_text(p, y, x, viz_fg(VIZ_DIM), " ");
    if (viz_caps_half(p.c->caps)) {
        for (int i = 0; i < 12; i++) {
            const viz_color c = viz_ramp_color(ramp, (i + 0.5) / 12, false);
            x += viz_text(p, y, x, viz_on(c, c), " ");
        }
    } else {
        x += viz_text(p, y, x, viz_fg(VIZ_DIM), "[");
        for (int i = 0; i < 10; i++) {
            const char one[2] = {viz_ramp_glyph(ramp, (i + 0.5) / 10), 0};
            x += viz_text(p, y, x, viz_fg(VIZ_TEXT), one);
        }
        x += viz_text(p, y, x, viz_fg(VIZ_DIM), "]");
    }
    x += viz_text(p, y, x, viz_fg(VIZ_DIM), " ");
    x += viz_text(p, y, x, viz_fg(VIZ_DIM), hi);
    if (unit && *unit) {
        x += viz_text(p, y, x, viz_fg(VIZ_DIM), " ");
        x += viz_text(p, y, x, viz_fg(VIZ_DIM), unit);
    }
    return x - x0;
}

void viz_grid_draw(viz_pane p, const viz_grid *g) {
    const bool half = g->half && viz_caps_half(p.c->caps), color = p.c->caps.depth >= VIZ_256;
    for (int r = 0; r < g->rows; r += half ? 2 : 1) {
        const int y = half ? r / 2 : r;
        if (y >= p.h) break;
        for (int c = 0; c < g->cols; c++) {
            const float up = g->t[(size_t)r * (size_t)g->cols + (size_t)c];
            const float down = half && r + 1 < g->rows ? g->t[(size_t)(r + 1) * (size_t)g->cols + (size_t)c] : NAN;
            const viz_color cu = isnan(up) ? (viz_color)VIZ_DEFAULT : viz_ramp_color(g->ramp, (double)up, false);
            const viz_color cd = isnan(down) ? (viz_color)VIZ_DEFAULT : viz_ramp_color(g->ramp, (double)down, false);
            for (int k = 0; k < g->cell_w; k++) {
                const int x = c * g->cell_w + k;
                if (half && isnan(up) && isnan(down)) viz_text(p, y, x, viz_fg(VIZ_FAINT), "·");
                else if (half && isnan(up)) viz_text(p, y, x, viz_fg(cd), "▄");
                else if (half) viz_text(p, y, x, viz_on(cu, cd), "▀");
                else if (isnan(up)) viz_text(p, y, x, viz_fg(VIZ_FAINT), k == 0 ? "·" : " ");
                else if (color && p.c->caps.utf8) viz_text(p, y, x, viz_on(cu, cu), " ");
                else {
                    const char one[2] = {viz_ramp_glyph(g->ramp, (double)up), 0};
                    viz_text(p, y, x, viz_fg(VIZ_TEXT), one);
                }
            }
        }
    }
}
