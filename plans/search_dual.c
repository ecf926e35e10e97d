/* search_dual.c -- the best lower bound: a proximal bundle method on the multipliers.
 *
 *   h(z)      the bound, concave and piecewise linear; z the multipliers in units in which rows and losses have range 1
 *   cuts      h(z) <= v_i + g_i.z, one from every price
 *   step      max_d  min_i (v_i + g_i.(z + d)) - |d|^2 / 2t     solved on its dual: theta in the simplex,
 *             min  t/2 |sum theta g|^2 + theta.e,  e_i = v_i + g_i.z - h(z) >= 0;   d = t sum theta g
 *   serious   h grew by a tenth of what the cuts promised: move there, t larger; else only a cut is won, t smaller
 *
 * With 3 to 8 rows 30 to 100 prices do. When h passes the largest loss that any choice has, there is no feasible one: that is a proof. */
#include <math.h>
#include <string.h>

#include "plans/search_impl.h"

enum { CUT_MAX = MOA_CUT_MAX };

typedef struct bundle {
    int32_t n_row, n;
    double g[CUT_MAX][MOA_ROW_MAX], v[CUT_MAX], e[CUT_MAX], theta[CUT_MAX];
    int32_t price[CUT_MAX]; /* which price gave the cut */
    double gram[CUT_MAX][CUT_MAX];
    double z[MOA_ROW_MAX], h; /* the centre */
    double t;
} bundle;

static double dot(const double *a, const double *b, int32_t n) {
    double s = 0;
    for (int32_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

/* the price at z: its value, and the slope that goes with it, in scaled units */
static double price_at(moa_pricer *p, const double *z, double unit, double *y, double *g) {
    for (int32_t k = 0; k < p->c->n_row; k++) y[k] = p->range[k] > 0 ? z[k] * unit / p->range[k] : 0;
    const double h = moa_pricer_bound(p, y) / unit;
    for (int32_t k = 0; k < p->c->n_row; k++) {
        const double x = p->at_row[k], over = x - p->hi[k], under = x - p->lo[k];
        g[k] = p->range[k] <= 0 ? 0 : (y[k] > 0 ? over : y[k] < 0 ? under : over > 0 ? over : under < 0 ? under : 0) / p->range[k];
    }
    return h;
}

static void drop_cut(bundle *b) {
    int32_t out = 0;
    double worst = -1;
    for (int32_t i = 0; i < b->n; i++)
        if (b->theta[i] < 1e-12 && b->e[i] > worst) worst = b->e[i], out = i;
    const int32_t last = --b->n;
    if (out == last) return;
    memcpy(b->g[out], b->g[last], sizeof b->g[out]);
    b->v[out] = b->v[last], b->e[out] = b->e[last], b->theta[out] = b->theta[last], b->price[out] = b->price[last];
    for (int32_t i = 0; i < b->n; i++) b->gram[out][i] = b->gram[i][out] = i == out ? b->gram[last][last] : b->gram[last][i];
}

static void add_cut(bundle *b, const double *z, double h, const double *g, int32_t price) {
    if (b->n == CUT_MAX) drop_cut(b);
    const int32_t i = b->n++;
    memcpy(b->g[i], g, sizeof b->g[i]);
    b->v[i] = h - dot(g, z, b->n_row);
    b->theta[i] = 0;
    b->price[i] = price;
    for (int32_t j = 0; j <= i; j++) b->gram[i][j] = b->gram[j][i] = dot(g, b->g[j], b->n_row);
}

/* theta, by moving weight between the two cuts that gain most from it */
static void weigh(bundle *b) {
    double slope[CUT_MAX], sum = 0;
    for (int32_t i = 0; i < b->n; i++) {
        b->e[i] = fmax(0, b->v[i] + dot(b->g[i], b->z, b->n_row) - b->h);
        sum += b->theta[i];
    }
    if (!(sum > .5)) b->theta[b->n - 1] = 1, sum = 1;
    for (int32_t i = 0; i < b->n; i++) b->theta[i] /= sum;
    for (int32_t i = 0; i < b->n; i++) slope[i] = b->t * dot(b->gram[i], b->theta, b->n) + b->e[i];
    for (int32_t turn = 0; turn < 2000; turn++) {
        int32_t to = 0, from = -1;
        for (int32_t i = 0; i < b->n; i++) {
            if (slope[i] < slope[to]) to = i;
            if (b->theta[i] > 0 && (from < 0 || slope[i] > slope[from])) from = i;
        }
        const double gain = slope[from] - slope[to];
        if (gain <= 1e-13 + 1e-10 * fabs(slope[to])) return;
        const double bend = b->t * (b->gram[to][to] + b->gram[from][from] - 2 * b->gram[to][from]);
        double move = bend > 0 ? gain / bend : b->theta[from];
        if (move >= b->theta[from]) move = b->theta[from];
        b->theta[to] += move;
        b->theta[from] = move == b->theta[from] ? 0 : b->theta[from] - move;
        for (int32_t i = 0; i < b->n; i++) slope[i] += b->t * move * (b->gram[i][to] - b->gram[i][from]);
    }
}

/* where the cuts point to; returns the gain they promise */
static double step_of(bundle *b, double *z) {
    double sum[MOA_ROW_MAX] = {0}, promised = 0;
    for (int32_t i = 0; i < b->n; i++) {
        for (int32_t k = 0; k < b->n_row; k++) sum[k] += b->theta[i] * b->g[i][k];
        promised += b->theta[i] * b->e[i];
    }
    for (int32_t k = 0; k < b->n_row; k++) z[k] = b->z[k] + b->t * sum[k];
    return promised + b->t * dot(sum, sum, b->n_row);
}

static bool one_step(bundle *b, moa_pricer *p, double unit, double *y_best, moa_dual *d) {
    double z[MOA_ROW_MAX] = {0}, y[MOA_ROW_MAX] = {0}, g[MOA_ROW_MAX] = {0};
    weigh(b);
    const double promised = step_of(b, z);
    if (promised <= 2e-6 * fabs(b->h) + 1e-13) {
        if (b->t >= 1e4 || promised <= 1e-15) return false;
        b->t *= 10; /* nothing to win nearby: look farther before believing it */
        weigh(b);
        if (step_of(b, z) <= 2e-6 * fabs(b->h) + 1e-13) return false;
    }
    const double h = price_at(p, z, unit, y, g), gain = h - b->h;
    add_cut(b, z, h, g, p->n_price);
    if (gain >= .1 * promised) {
        b->t *= gain >= .5 * promised ? 2.5 : 1;
        memcpy(b->z, z, sizeof b->z);
        b->h = h;
        d->bound = h * unit;
        memcpy(y_best, y, (size_t)b->n_row * sizeof *y);
    } else if (b->t > 1e-4) b->t *= .7;
    return true;
}

/* the cuts that hold the optimum, and their shares */
static void tell_mix(bundle *b, moa_dual *d) {
    weigh(b);
    for (int32_t i = 0; i < b->n; i++) {
        if (b->theta[i] < 1e-9) continue;
        d->price[d->n_mix] = b->price[i];
        d->weight[d->n_mix++] = b->theta[i];
    }
}

moa_dual moa_dual_solve(moa_pricer *p, double *y, double *t, const moa_dual_config *config) {
    bundle b = {.n_row = p->c->n_row, .t = *t > 0 ? *t : .1};
    double g[MOA_ROW_MAX] = {0}, start[MOA_ROW_MAX] = {0};
    const double unit = p->range_loss > 0 ? p->range_loss : 1;
    const double most = fmin(config->enough, p->loss_max + 1e-7 * (unit + fabs(p->loss_max)));
    const moa_solve_config *solve = config->solve;
    moa_dual d = {0};
    for (int32_t k = 0; k < b.n_row; k++) b.z[k] = y[k] * p->range[k] / unit;
    b.h = price_at(p, b.z, unit, start, g);
    memcpy(y, start, (size_t)b.n_row * sizeof *y);
    d.bound = b.h * unit;
    add_cut(&b, b.z, b.h, g, p->n_price);
    config->met(config->to, p);
    for (int32_t i = 0; i < config->n_step; i++) {
        if (solve->cancelled && solve->cancelled(solve->user)) d.cancelled = true;
        if (d.bound > most) d.infeasible = true;
        if (d.cancelled || d.infeasible || !one_step(&b, p, unit, y, &d)) break;
        config->met(config->to, p);
    }
    d.infeasible |= d.bound > most;
    tell_mix(&b, &d);
    *t = b.t;
    return d;
}
