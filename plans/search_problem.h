/* search_problem.h -- influence, grid and settings made into the solver's arrays, and its choices made into plans. */
#ifndef MOA_PLANS_SEARCH_PROBLEM_H
#define MOA_PLANS_SEARCH_PROBLEM_H

#include "plans/search.h"
#include "plans/search_solve.h"

typedef struct moa_problem {
    const moa_losses *losses;
    const moa_search_config *config;
    int32_t n_unit;             /* a layer */
    int32_t n_head_of_unit;     /* query heads of a unit */
    moa_rule *rules;            /* (n_rule) the grid, then locked rules that are not in it; owned */
    int32_t n_rule, n_grid;
    int32_t alpha_step;
    int32_t n_bound, bound_at[MOA_SEARCH_BOUND_MAX];
    double low, high;
    double *loss[MOA_LOSSES_LENGTH_MAX]; /* (n_layer, n_unit, n_rule) at each profiled length, owned */
    double *mean;                        /* of them, owned */
    double *goal[MOA_LOSSES_LENGTH_MAX]; /* what is minimised for a length: its loss and a thousandth of the mean, owned */
    double *kept[MOA_SEARCH_BOUND_MAX];  /* (n_layer, n_unit, n_rule) share of density a unit takes, owned */
    double *moved;                       /* (n_layer, n_unit, n_rule) of config->step, owned; NULL without `around` */
    uint8_t *allow;                      /* (n_layer, n_rule), owned */
    /* per head under a KV budget: the rule each head takes under a cap; (n_layer, n_head, n_rule), owned; else NULL */
    uint16_t *under;
} moa_problem;

moa_status moa_problem_open(moa_problem *p, const moa_losses *l, const moa_search_config *c, moa_err *err);
void moa_problem_free(moa_problem *p);
/* objective: index of a length, -1 the mean; level (n_length) limits of the others, INFINITY: none. Borrows p's arrays. */
void moa_problem_choice(const moa_problem *p, int32_t objective, const double *level, moa_choice *c);
moa_status moa_problem_plan(const moa_problem *p, const int32_t *pick, moa_plan **out, moa_err *err);

#endif
