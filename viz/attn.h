/* attn.h -- pooled attention as shades: exact about which tokens a cell covers.
 *
 *   v (queries' parts x keys' parts): the sum of A over a part's queries and keys, or its largest A
 *
 *   mass     mean over the queries, sum over the keys: rows sum to 1, whatever the zoom
 *   lift     mass / what uniform causal attention would put there, log10: 0 is "as uniform", at 100 tokens and at 128k
 *   log      log10 of mass (parts that differ by a token are evened, or they would draw stripes)
 *   linear   mass        rank     its rank among all cells
 *
 * The range is fixed, so that heads can be compared, or the picture's own, so that its shape can be seen. */
#ifndef VIZ_ATTN_H
#define VIZ_ATTN_H

#include <stdbool.h>

#include "viz/axis.h"
#include "viz/heat.h"

typedef struct viz_attn {
    const float *v; /* (buckets of q, buckets of k) */
    viz_axis q, k;
    bool max;        /* v is the largest A, else the sum */
    viz_scale scale;
    bool own;        /* range: this picture's, else fixed */
    const float *factor; /* (buckets of q) each row's values are multiplied by it, or NULL */
} viz_attn;

/* t (buckets of q, buckets of k) 0..1, NAN where no query of the part sees any key of it; lo_hi: what 0 and 1 stand for (log10 for lift
 * and log). NULL: not wanted. */
void viz_attn_scale(const viz_attn *a, float *t, float lo_hi[2]);
/* from parts to cells: out (q->cells, k->cells) */
void viz_attn_spread(const viz_axis *q, const viz_axis *k, const float *t, float *out);
/* mass that uniform causal attention of the queries [q0, q1) puts on keys [k0, k1): mean over the queries */
double viz_attn_uniform(int32_t q0, int32_t q1, int32_t k0, int32_t k1);

#endif
