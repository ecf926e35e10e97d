/* search.h -- plans of bounded density and least predicted loss: a set of them, none better at every length.
 *
 *   influence --> loss[length][unit][rule] --+
 *   grid      --> kept[length][rule]       --+--> one solve per cell (search_solve.h) --> Pareto front (pareto.h) --> plans
 *
 *   unit   a KV group (its heads share one rule), or a query head
 *   cell   minimise the loss of one length (and a thousandth of the mean, which decides ties), those of the others below a level; the
 *          levels split the ranges that the solves without levels leave. One more solve minimises the mean of the lengths.
 *
 * Which density is bounded: BUDGET_KV  mean over KV heads of the tokens kept for the widest head of the group / N
 *                           BUDGET_HEAD mean over query heads (one cache a query head, as the published plans count)
 * Per head under BUDGET_KV every group gets a cap, a rule of the grid, and each head the best rule nowhere wider (free widening).
 *
 * Nothing here prints or reads the clock but for the seconds it reports: the result does not depend on the number of threads. */
#ifndef MOA_PLANS_SEARCH_H
#define MOA_PLANS_SEARCH_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"
#include "plans/influence.h"
#include "plans/plan.h"

enum { MOA_SEARCH_BOUND_MAX = 24, MOA_SEARCH_THREAD_MAX = 256 };

typedef enum moa_search_per { MOA_PER_GROUP, MOA_PER_HEAD } moa_search_per;
typedef enum moa_search_budget { MOA_BUDGET_KV, MOA_BUDGET_HEAD } moa_search_budget;

typedef struct moa_search_progress {
    int32_t done, total;     /* solves */
    double best, bound, gap; /* of the one that reports; best NAN: no plan yet; gap = (best - bound)/|best|, INFINITY: none */
} moa_search_progress;

/* Zero-initialise; what is 0 takes the default named. */
typedef struct moa_search_config {
    double density;         /* upper bound at every length, share; required, in (0, 1] */
    double density_low;     /* lower bound; < 0: none; 0: 0.9 * density */
    const int32_t *extend;  /* further lengths at which the bounds hold */
    int32_t n_extend;
    int32_t alpha_step;     /* grid.h */
    int32_t max_rules;      /* distinct rules a layer, 0: any */
    moa_search_per per;
    moa_search_budget budget;
    const moa_rule *forbid;
    int32_t n_forbid;
    const moa_plan *lock;   /* heads whose rules stay, with */
    const uint8_t *locked;  /* (n_layer, n_head) 1: stays; NULL: none */
    const moa_plan *around; /* stays near this plan: the shares of N that heads keep change by at most */
    double step;            /* in the mean over heads and bounded lengths; NULL: anywhere */
    bool mean_only;         /* one solve, of the mean of the lengths, in place of a front */
    int32_t n_interval;     /* levels a length; 0: 4 */
    int32_t n_plan_max;     /* front thinned to so many; 0: all */
    uint64_t seed;
    int32_t n_thread;       /* 0: 1 */
    double gap;             /* a solve stops there; 0: 2e-4 */
    const char *lp_path;    /* writes the mean-loss solve as an .lp file and goes on; NULL: none */
    /* called from any of the threads, one at a time */
    bool (*cancelled)(void *user);
    void (*progress)(void *user, const moa_search_progress *p);
    void *user;
} moa_search_config;

typedef struct moa_found {
    moa_plan *plan; /* owned; model and n_head_kv set, no provenance */
    double loss[MOA_LOSSES_LENGTH_MAX];    /* predicted change at each profiled length, nats */
    double mean;                           /* of them */
    double density[MOA_SEARCH_BOUND_MAX];  /* bounded one, by bound */
    double density_kv[MOA_SEARCH_BOUND_MAX], density_head[MOA_SEARCH_BOUND_MAX];
    int32_t objective;      /* index of the length that was minimised; -1: the mean */
    double best, bound, gap; /* certificate of that solve; best: what it minimised */
    double level[MOA_LOSSES_LENGTH_MAX]; /* the other lengths' limits in it; INFINITY: none */
    double seconds;         /* CPU of that solve */
} moa_found;

typedef struct moa_search_result {
    int32_t n_found;
    moa_found *found; /* by loss at the longest length, best first; owned */
    int32_t n_bound;
    int32_t bound_at[MOA_SEARCH_BOUND_MAX]; /* lengths of the density bounds, tokens: profiled ones, then further ones */
    double density_low, density_high;
    int32_t n_rule, alpha_step;
    int32_t n_solve, n_infeasible, n_none; /* solves; cells proven empty; cells in which nothing was found */
    double gap_median, gap_worst;          /* of the solves that gave a plan */
    double cpu_seconds;                    /* of all solves */
} moa_search_result;

/* E_FAILED with the numbers when the bounds are proven to exclude every plan. E_CANCELLED leaves nothing in out. */
moa_status moa_search_run(const moa_losses *losses, const moa_search_config *config, moa_search_result *out, moa_err *err);
void moa_search_result_free(moa_search_result *r);

#endif
