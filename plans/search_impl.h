/* search_impl.h -- the solver's parts, for each other. Costs are kept transposed, (n_layer, n_rule, n_pad): the units of a layer side by
 * side, padded with zeros to a multiple of four, so that pricing a pair of rules runs along memory. */
#ifndef MOA_PLANS_SEARCH_IMPL_H
#define MOA_PLANS_SEARCH_IMPL_H

#include "plans/search_solve.h"

/* The rules a layer may choose together: its sets of max_rules rules under a rule limit of 1 or 2. */
typedef struct moa_pricer {
    const moa_choice *c;
    int32_t n_pad;
    int32_t limit;                /* 0: none that binds; else max_rules */
    size_t n;                     /* n_layer * n_rule * n_pad */
    double *loss, *row[MOA_ROW_MAX], *cost; /* (n_layer, n_rule, n_pad); cost: priced at the last y; INFINITY where not allowed */
    double range_loss, range[MOA_ROW_MAX];  /* sum over units of largest - smallest */
    double loss_max;                        /* no choice costs more */
    double lo[MOA_ROW_MAX], hi[MOA_ROW_MAX]; /* the choice's bounds, made finite by what rows can reach */
    int32_t *pick;                /* (n_layer, n_unit) of the last price */
    double at_loss, at_row[MOA_ROW_MAX]; /* of that pick */
    int32_t n_price;
} moa_pricer;

moa_status moa_pricer_open(moa_pricer **out, const moa_choice *c, moa_err *err);
void moa_pricer_close(moa_pricer **p);
/* L(y), the lower bound at y; fills cost, pick, at_loss, at_row. */
double moa_pricer_bound(moa_pricer *p, const double *y);
static inline const double *moa_pricer_costs(const moa_pricer *p, int32_t layer, int32_t rule) {
    return p->cost + ((size_t)layer * (size_t)p->c->n_rule + (size_t)rule) * (size_t)p->n_pad;
}
/* sum over the units of the cheaper of two rows of costs */
double moa_pair_sum(const double *a, const double *b, int32_t n_pad);
/* may rules i <= j (i == j: one) be all a layer uses? */
bool moa_pricer_pair_ok(const moa_pricer *p, int32_t layer, int32_t i, int32_t j);

enum { MOA_CUT_MAX = 64 };

/* search_dual.c: the best bound. y (n_row) in: where to begin, out: the best found; t: length of the steps, in and out (0: the default).
 * infeasible: the bound exceeds any loss, or `enough` (INFINITY: none), which ends the work early. met is called after every price. */
typedef struct moa_dual {
    double bound;
    bool infeasible, cancelled;
    /* the prices (pricer.n_price after each) whose mixture is the relaxation's optimum, with their weights */
    int32_t n_mix, price[MOA_CUT_MAX];
    double weight[MOA_CUT_MAX];
} moa_dual;
typedef struct moa_dual_config {
    const moa_solve_config *solve;
    int32_t n_step;
    double enough; /* a bound that ends the work; INFINITY: none */
    void (*met)(void *to, const moa_pricer *p);
    void *to;
} moa_dual_config;
moa_dual moa_dual_solve(moa_pricer *p, double *y, double *t, const moa_dual_config *config);

/* search_branch.c: closes the gap between *bound and *best (pick's loss) by branching on which rules a layer may use, as far as
 * n_node prices of the relaxation allow. Only under a limit of one or two rules, where the relaxation is exact in them. */
typedef struct moa_branch {
    const moa_choice *c;
    const double *y; /* multipliers of *bound */
    double t;
    double bound, best;
    int32_t *pick;
    int32_t n_node, n_price; /* n_price: out */
    bool cancelled;
} moa_branch;
moa_status moa_branch_solve(moa_branch *b, const moa_solve_config *config, moa_err *err);

/* search_count.c: a better bound, and perhaps the best choice, by counting rows in whole steps. The pricer was just priced at y, where the
 * bound is `bound`. best in: INFINITY or pick's loss; out: the same or less. True in *exact: pick is the best choice. */
typedef struct moa_count {
    moa_pricer *pricer;
    const double *y;
    double bound, best;
    int32_t *pick;    /* (n_layer, n_unit) */
    double too_wide;  /* out: what is so far above the bound was too much to count; 0: it was not */
    bool exact, cancelled;
} moa_count;
moa_status moa_count_solve(moa_count *c, const moa_solve_config *config, moa_err *err);

/* search_primal.c: from the costs at y (just priced, bound is L(y)) to a choice. best in: INFINITY or pick's loss; out: the same or less.
 * True in *exact: nothing below *best exists. */
typedef struct moa_primal {
    moa_pricer *pricer;
    const double *y;
    double bound, best;
    double proven;        /* >= bound: a better one, at which the search ends too */
    int32_t *pick;        /* (n_layer, n_unit) */
    const int32_t *start; /* (n_layer, n_unit) a choice near the rows' bounds to begin with, not yet feasible; NULL: the cheapest */
    bool exact, cancelled;
} moa_primal;
moa_status moa_primal_solve(moa_primal *p, const moa_solve_config *config, moa_err *err);

bool moa_rows_ok(const moa_pricer *p, const double *row);

#endif
