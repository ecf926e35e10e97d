/* pareto.h -- of several points those that no other one beats in every coordinate, and a spread-out few of them. */
#ifndef MOA_PLANS_PARETO_H
#define MOA_PLANS_PARETO_H

#include <stdint.h>

/* point (n, n_dim), less is better. keep[i] = 1 where no other point is at least as good everywhere and better somewhere; of equal points
 * (to a relative 1e-9 of the coordinate's range) the first stays. Returns how many. */
int32_t moa_pareto_front(const double *point, int32_t n, int32_t n_dim, uint8_t *keep);
/* Clears keep until `most` are left: the best in each coordinate stay first, then always the point farthest from those that stay. */
int32_t moa_pareto_thin(const double *point, int32_t n, int32_t n_dim, int32_t most, uint8_t *keep);

#endif
