/* rounds.h -- a plan found in rounds, each of which measures the influence of spans under the plan it has come to: what a round adds up,
 * searches and decides. Measuring influence and judging plans are the caller's (tui/batch/refine.c, tui/search_rounds.c).
 *
 *   influence of this round ----------------+--> a: least predicted loss within a step of the best plan
 *   + those before --> mean over the rounds +--> b: the same of the mean      --> both judged by the true loss; none better: half the step
 *
 * Why: influence at full attention does not add up, heads stand in for one another. Under a plan the gradient sees what is already gone; the
 * mean over the way from full attention to the plan shares the whole loss of that way out among the heads, where one end of it sees either
 * nothing or too late. */
#ifndef MOA_PLANS_ROUNDS_H
#define MOA_PLANS_ROUNDS_H

#include "plans/search.h"

/* Zero-initialise. What it points to is borrowed. */
typedef struct moa_rounds {
    double density;            /* share of the KV to come to, at all lengths, in (0, 1] */
    double step, step_first;   /* how far a round may go (moa_search_config), and what that was at first */
    bool path;                 /* down to the density by three quarters of a step a round, not at once */
    const int32_t *length, *extend; /* profiled lengths, further ones; tokens */
    int32_t n_length, n_extend, n_head_kv;
} moa_rounds;

/* the largest density of a plan at all these lengths, the widest head of a KV group counted */
double moa_rounds_density(const moa_rounds *r, const moa_plan *plan);
bool moa_rounds_within(const moa_rounds *r, double density);

/* what a round looks for when the plan it measured has this density */
typedef struct moa_rounds_aim {
    bool there;     /* at the density: stay within a step of the best plan */
    bool anywhere;  /* without a step, of this round's influence alone: the first round, unless it is a path */
    double density; /* bound of its searches */
} moa_rounds_aim;
moa_rounds_aim moa_rounds_aim_from(const moa_rounds *r, double density_now);

/* The round is judged; better: it has a new best plan. False: the steps have become a sixteenth, nothing is left to try. */
bool moa_rounds_next(moa_rounds *r, bool there, bool better);

/* sum += now (times `by`), whose names it takes; of the same heads and lengths */
void moa_rounds_add(moa_losses *sum, const moa_losses *now);
void moa_rounds_add_times(moa_losses *sum, const moa_losses *now, double by);

/* What these curves say that a plan of their heads costs: mean over their lengths of the sum over heads, nats. */
double moa_rounds_predict(const moa_losses *l, const moa_plan *plan);

/* What a search is given, opened in *out: curves times `by`, gains of cuts counted as nothing, the longest one stretched to further lengths.
 * Model and names are from's. */
moa_status moa_rounds_losses(const moa_losses *from, double by, const int32_t *extend, int32_t n_extend, moa_losses **out, moa_err *err);

/* The plan of the least predicted mean loss: *out is moved to the caller, its plan to be closed. */
moa_status moa_rounds_find(const moa_losses *losses, const moa_search_config *config, moa_found *out, moa_err *err);

#endif
