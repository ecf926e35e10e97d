/* grid.h -- the candidate rules of a search.
 *
 *   alpha   multiples of `step` from -(shortest length) to the longest profiled length
 *   beta    0, 1/8, ..., 1
 *   kept    0 < alpha + beta*N at the shortest length; alpha + beta*N <= N at the longest profiled and the longest target length
 *
 * (2k, 4k, 8k profiled, 16k target, step 1024, as in the paper: 48 rules.) Rules that have the same span at every length in use are one:
 * the first stays. The step is an eighth of the shortest length, rounded to 64, at least 64: a step of 1024 leaves a head that looks nearby no
 * less than an eighth of every length, and that is what plans lost most by (docs/proof.md). Where the lengths are so far apart that this makes
 * more than MOA_GRID_ALPHA_MAX values of alpha, the step is their range by that number, so that a default never has too many rules. */
#ifndef MOA_PLANS_GRID_H
#define MOA_PLANS_GRID_H

#include "core/base/status.h"
#include "core/engine/spans.h"

enum { MOA_GRID_RULE_MAX = 4096, MOA_GRID_ALPHA_MAX = 256 };

typedef struct moa_grid_config {
    const int32_t *length; /* profiled, ascending */
    int32_t n_length;
    const int32_t *extend; /* further lengths the plan has to serve, any order */
    int32_t n_extend;
    int32_t step;           /* tokens; 0: by the lengths */
    const moa_rule *forbid; /* left out */
    int32_t n_forbid;
} moa_grid_config;

int32_t moa_grid_step(const moa_grid_config *c);
/* *out malloc'ed, the caller's; E_INVALID when none or more than MOA_GRID_RULE_MAX are left. Order: alpha, then beta. */
moa_status moa_grid_make(const moa_grid_config *c, moa_rule **out, int32_t *n_out, moa_err *err);

#endif
