/* search_solve.c -- bound, then choice, then certificate. */
#include "plans/search_solve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plans/search_impl.h"

enum { DUAL_STEPS = 160 };

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
} meeting;

static void met(void *to, const moa_pricer *p) {
    meeting *m = to;
    const size_t n = (size_t)p->c->n_layer * (size_t)p->c->n_unit;
    if (!(p->at_loss < m->best) || !moa_rows_ok(p, p->at_row) || !moa_choice_ok(p->c, p->pick)) return;
    m->best = p->at_loss;
    memcpy(m->pick, p->pick, n * sizeof *m->pick);
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

moa_status moa_solve(const moa_choice *c, const moa_solve_config *config, int32_t *pick, moa_solve_result *out, moa_err *err) {
    const double begin = cpu_s();
    moa_pricer *p = NULL;
    moa_status s = MOA_OK;
    *out = (moa_solve_result){.end = MOA_SOLVE_NONE, .best = INFINITY, .bound = -INFINITY};
    MOA_TRY(moa_pricer_open(&p, c, err));
    if (out_of_reach(p, out)) {
        out->end = MOA_SOLVE_INFEASIBLE;
        goto out;
    }
    if (config->start) memcpy(out->y, config->start, (size_t)c->n_row * sizeof *out->y);
    meeting m = {INFINITY, pick};
    const moa_dual d = moa_dual_solve(p, out->y, DUAL_STEPS, config, met, &m);
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
    moa_primal primal = {.pricer = p, .y = out->y, .bound = d.bound, .best = m.best, .pick = pick};
    MOA_TRY(moa_primal_solve(&primal, config, err));
    if (primal.cancelled) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "the search was interrupted"));
    if (primal.best < INFINITY) {
        out->end = MOA_SOLVE_PLAN;
        out->best = moa_choice_value(c, pick, NULL);
        if (primal.exact) out->bound = out->best;
        if (out->bound > out->best) out->bound = out->best; /* by rounding */
    } else if (primal.exact)
        out->end = MOA_SOLVE_INFEASIBLE;
    if (config->report) config->report(config->user, out->best, out->bound);
out:
    out->n_price = p ? p->n_price : 0;
    out->cpu_seconds = cpu_s() - begin;
    moa_pricer_close(&p);
    return s;
}
