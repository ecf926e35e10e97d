/* search_solve.c -- bound, then choice, then certificate. */
#include "plans/search_solve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plans/search_impl.h"

enum { DUAL_STEPS = 160, BRANCH_NODES = 150 };

static double cpu_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double moa_solve_gap(double best, double bound) {
    if (!(best < INFINITY)) return INFINITY;
    const double d = best - bound;
    return d <= 0 ? 0 : d / fmax(fabs(best), 1e-300);
}

/* the feasible picks that pricing comes across */
typedef struct meeting {
    double best;
    int32_t *pick;
    int32_t *all; /* (DUAL_STEPS + 1, n_layer, n_unit) every pick, by price; owned */
} meeting;

static void met(void *to, const moa_pricer *p) {
    meeting *m = to;
    const size_t n = (size_t)p->c->n_layer * (size_t)p->c->n_unit;
    if (p->n_price <= DUAL_STEPS + 1) memcpy(m->all + (size_t)(p->n_price - 1) * n, p->pick, n * sizeof *p->pick);
    if (!(p->at_loss < m->best) || !moa_rows_ok(p, p->at_row) || !moa_choice_ok(p->c, p->pick)) return;
    m->best = p->at_loss;
    memcpy(m->pick, p->pick, n * sizeof *m->pick);
}

/* The relaxation's optimum is a mixture of picks: each unit gets one of them so that the row sums stay near the mixture's. Where prices
 * leave many ties (rows without a price) this, not the cheapest pick, is near the bounds. */
static void round_mix(const moa_pricer *p, const moa_dual *d, const int32_t *all, int32_t *start) {
    const moa_choice *c = p->c;
    const size_t n = (size_t)c->n_layer * (size_t)c->n_unit, n_rule = (size_t)c->n_rule;
    double off[MOA_ROW_MAX] = {0}, total = 0;
    for (int32_t m = 0; m < d->n_mix; m++) total += d->weight[m];
    for (size_t u = 0; u < n; u++) {
        double mean[MOA_ROW_MAX] = {0}, least = INFINITY;
        int32_t chosen = d->price[0];
        for (int32_t m = 0; m < d->n_mix; m++)
            for (int32_t k = 0; k < c->n_row; k++)
                mean[k] += d->weight[m] / total * c->row[k][u * n_rule + (size_t)all[(size_t)(d->price[m] - 1) * n + u]];
        for (int32_t m = 0; m < d->n_mix; m++) {
            const size_t at = u * n_rule + (size_t)all[(size_t)(d->price[m] - 1) * n + u];
            double far = 0;
            for (int32_t k = 0; k < c->n_row; k++) {
                const double x = p->range[k] > 0 ? (off[k] + c->row[k][at] - mean[k]) / p->range[k] : 0;
                far += x * x;
            }
            if (far < least) least = far, chosen = d->price[m];
        }
        start[u] = all[(size_t)(chosen - 1) * n + u];
        for (int32_t k = 0; k < c->n_row; k++) off[k] += c->row[k][u * n_rule + (size_t)start[u]] - mean[k];
    }
}

/* sums that no choice reaches: the simplest proof */
static bool out_of_reach(const moa_pricer *p, moa_solve_result *out) {
    for (int32_t k = 0; k < p->c->n_row; k++) {
        const double miss = p->lo[k] - p->hi[k];
        if (miss <= 1e-10 * (1 + fabs(p->hi[k]))) continue;
        out->weight[k] = p->c->hi[k] <= p->hi[k] ? 1 : -1;
        out->excess = miss;
        return true;
    }
    return false;
}

/* a gap that is the relaxation's own: a better bound by branching */
static moa_status branch(const moa_choice *c, const moa_solve_config *config, moa_primal *p, double t, int32_t *n_price, moa_err *err) {
    const double effort = config->effort > 0 ? config->effort : 1;
    moa_branch b = {.c = c, .y = p->y, .t = t, .bound = p->proven, .best = p->best, .pick = p->pick,
                    .n_node = (int32_t)(effort * BRANCH_NODES)};
    if ((p->pricer->limit != 1 && p->pricer->limit != 2) || p->best == INFINITY || moa_solve_gap(p->best, p->proven) <= config->gap)
        return MOA_OK;
    const moa_status s = moa_branch_solve(&b, config, err);
    p->proven = b.bound, p->best = b.best, p->cancelled = b.cancelled;
    *n_price = b.n_price;
    return s;
}

/* memory in whole steps, from the primal's bound and best; the pricer is at its multipliers */
static moa_status count(const moa_solve_config *config, moa_primal *p, double *too_wide, moa_err *err) {
    moa_count m = {.pricer = p->pricer, .y = p->y, .bound = p->bound, .best = p->best, .pick = p->pick};
    const moa_status s = moa_count_solve(&m, config, err);
    p->best = m.best, p->exact = m.exact, p->cancelled = m.cancelled;
    p->proven = fmax(p->proven, m.bound);
    *too_wide = m.too_wide;
    if (config->report) config->report(config->user, p->best, p->proven);
    return s;
}

/* by counting, by the search among columns, by counting what that leaves, and by branching */
static moa_status choose(const moa_solve_config *config, moa_primal *p, double t, int32_t *n_price, moa_err *err) {
    double too_wide;
    moa_status s = count(config, p, &too_wide, err);
    if (s != MOA_OK || p->exact || p->cancelled || moa_solve_gap(p->best, p->proven) <= config->gap) return s;
    s = moa_primal_solve(p, config, err);
    if (s == MOA_OK && !p->exact && !p->cancelled && p->best - p->bound < too_wide) s = count(config, p, &too_wide, err);
    if (s == MOA_OK && !p->exact && !p->cancelled) s = branch(p->pricer->c, config, p, t, n_price, err);
    return s;
}

moa_status moa_solve(const moa_choice *c, const moa_solve_config *config, int32_t *pick, moa_solve_result *out, moa_err *err) {
    const double begin = cpu_s();
    moa_pricer *p = NULL;
    moa_status s = MOA_OK;
    int32_t n_price = 0, *start = NULL;
    const size_t n = (size_t)c->n_layer * (size_t)c->n_unit;
    meeting m = {INFINITY, pick, NULL};
    *out = (moa_solve_result){.end = MOA_SOLVE_NONE, .best = INFINITY, .bound = -INFINITY};
    MOA_TRY(moa_pricer_open(&p, c, err));
    if (out_of_reach(p, out)) {
        out->end = MOA_SOLVE_INFEASIBLE;
        goto out;
    }
    if (config->start) memcpy(out->y, config->start, (size_t)c->n_row * sizeof *out->y);
    m.all = malloc((DUAL_STEPS + 1) * n * sizeof *m.all);
    start = malloc(n * sizeof *start);
    if (!m.all || !start) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the picks of %zu units", n));
    const moa_dual_config dual = {config, DUAL_STEPS, INFINITY, met, &m};
    double t = 0;
    const moa_dual d = moa_dual_solve(p, out->y, &t, &dual);
    out->bound = d.bound;
    if (d.cancelled) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "the search was interrupted"));
    if (d.infeasible) {
        double sum = 0;
        for (int32_t k = 0; k < c->n_row; k++) sum += fabs(out->y[k]) * p->range[k];
        for (int32_t k = 0; k < c->n_row; k++) out->weight[k] = out->y[k] * p->range[k] / sum;
        out->end = MOA_SOLVE_INFEASIBLE;
        goto out;
    }
    if (config->report) config->report(config->user, m.best, d.bound);
    (void)moa_pricer_bound(p, out->y);
    round_mix(p, &d, m.all, start);
    moa_primal primal = {.pricer = p, .y = out->y, .bound = d.bound, .best = m.best, .proven = d.bound, .pick = pick, .start = start};
    MOA_TRY(choose(config, &primal, t, &n_price, err));
    if (primal.cancelled) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "the search was interrupted"));
    out->bound = primal.proven;
    if (primal.best < INFINITY) {
        out->end = MOA_SOLVE_PLAN;
        out->best = moa_choice_value(c, pick, NULL);
        if (primal.exact) out->bound = out->best;
        if (out->bound > out->best) out->bound = out->best; /* by rounding */
    } else if (primal.exact)
        out->end = MOA_SOLVE_INFEASIBLE;
    if (config->report) config->report(config->user, out->best, out->bound);
out:
    out->n_price = n_price + (p ? p->n_price : 0);
    out->cpu_seconds = cpu_s() - begin;
    moa_pricer_close(&p);
    free(m.all);
    free(start);
    return s;
}
