/* search_solve.h -- the solver: one rule for every unit, least loss, a few sums bounded, perhaps few rules a layer.
 *
 *   minimise    sum_u loss[u][x_u]                         u: units, x_u: rule of unit u
 *   subject to  lo_k <= sum_u row[k][u][x_u] <= hi_k       k: the few coupling rows (density at each length, losses of other lengths)
 *               at most max_rules distinct rules in a layer
 *
 * Only the rows couple the layers. Priced by multipliers y they leave  L(y) = sum_layers min_x (loss + y.row) - y.bound, a lower bound
 * for every y: price (search_price.c) finds each layer's exact minimum: per unit without the rule limit, over all pairs for two rules.
 * The best y comes from a proximal bundle method (search_dual.c: tens of prices). Then the rows are counted in whole steps
 * (search_count.c): mostly that gives the optimum at once. Where it does not, the primal (search_primal.c) keeps, for every layer, the
 * cheapest columns (choices of a whole layer) at that y, and chooses among them by 1-opt, 2-opt and kicks, closing with a depth-first
 * search that is exact when it ends. bound and best make the certificate. For max_rules > 2 the bound is that without the limit, and
 * columns come from greedily extended pairs. */
#ifndef MOA_PLANS_SEARCH_SOLVE_H
#define MOA_PLANS_SEARCH_SOLVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "core/base/status.h"

enum { MOA_ROW_MAX = 32 };

enum { MOA_RULE_NO = 0, MOA_RULE_MAY = 1, MOA_RULE_MUST = 2 }; /* in a layer; MUST counts toward max_rules even if unused */

typedef struct moa_choice {
    int32_t n_layer, n_unit, n_rule, n_row; /* n_unit: of a layer */
    int32_t max_rules;                      /* 0: any */
    const double *loss;                     /* (n_layer, n_unit, n_rule) */
    const double *row[MOA_ROW_MAX];         /* each (n_layer, n_unit, n_rule) */
    double lo[MOA_ROW_MAX], hi[MOA_ROW_MAX]; /* of the sum over all units; -INFINITY, INFINITY: open */
    const uint8_t *allow;                   /* (n_layer, n_rule) MOA_RULE_* */
} moa_choice;

typedef struct moa_solve_config {
    uint64_t seed;
    double gap;      /* good enough; 0: go on to the end of the effort */
    double effort;   /* 1: the default amount of work */
    const double *start; /* (n_row) multipliers to begin with; NULL: 0 */
    bool (*cancelled)(void *user);
    void (*report)(void *user, double best, double bound); /* best INFINITY: none yet */
    void *user;
} moa_solve_config;

typedef enum moa_solve_end {
    MOA_SOLVE_PLAN,       /* pick holds one */
    MOA_SOLVE_INFEASIBLE, /* proven: no choice meets the rows */
    MOA_SOLVE_NONE,       /* neither found nor excluded */
} moa_solve_end;

typedef struct moa_solve_result {
    moa_solve_end end;
    double best, bound; /* loss of pick; no choice is below bound */
    double y[MOA_ROW_MAX];
    double excess;      /* INFEASIBLE: the weighted rows miss their bounds by this at least */
    double weight[MOA_ROW_MAX]; /* INFEASIBLE: weights of the rows in that proof (of row / its range) */
    int32_t n_price;
    double cpu_seconds;
} moa_solve_result;

/* pick (n_layer, n_unit): written when end is PLAN. E_CANCELLED, E_MEMORY; the rest is in out. */
moa_status moa_solve(const moa_choice *c, const moa_solve_config *config, int32_t *pick, moa_solve_result *out, moa_err *err);

/* The same problem as a CPLEX .lp file, for other solvers. */
moa_status moa_solve_lp(const moa_choice *c, moa_buf *out, moa_err *err);

/* (best - bound) / |best| */
double moa_solve_gap(double best, double bound);
/* loss and row sums of a choice; row_sum (n_row) may be NULL */
double moa_choice_value(const moa_choice *c, const int32_t *pick, double *row_sum);
/* every row inside its bounds to 1e-9 of its size, rules allowed, at most max_rules a layer */
bool moa_choice_ok(const moa_choice *c, const int32_t *pick);

#endif
