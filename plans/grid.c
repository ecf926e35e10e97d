/* grid.c -- the candidate rules. */
#include "plans/grid.h"

#include <stdbool.h>
#include <stdlib.h>

int32_t moa_grid_step(const moa_grid_config *c) {
    if (c->step > 0) return c->step;
    const int32_t eighth = (c->length[0] / 8 + 32) / 64 * 64;
    const int32_t range = moa_roundup64((c->length[0] + c->length[c->n_length - 1]) / MOA_GRID_ALPHA_MAX); /* of a wide range a coarser grid */
    const int32_t step = eighth > range ? eighth : range;
    return step < 64 ? 64 : step;
}

static bool wanted(const moa_grid_config *c, moa_rule r, int32_t target) {
    const int32_t longest = c->length[c->n_length - 1];
    if (!(r.alpha + r.beta * c->length[0] > 0)) return false;
    if (r.alpha + r.beta * longest > longest || r.alpha + r.beta * target > target) return false;
    for (int32_t f = 0; f < c->n_forbid; f++)
        if (c->forbid[f].alpha == r.alpha && c->forbid[f].beta == r.beta) return false;
    return true;
}

static bool same_spans(const moa_grid_config *c, moa_rule a, moa_rule b) {
    for (int32_t i = 0; i < c->n_length; i++)
        if (moa_span(a, c->length[i]) != moa_span(b, c->length[i])) return false;
    for (int32_t i = 0; i < c->n_extend; i++)
        if (moa_span(a, c->extend[i]) != moa_span(b, c->extend[i])) return false;
    return true;
}

moa_status moa_grid_make(const moa_grid_config *c, moa_rule **out, int32_t *n_out, moa_err *err) {
    const int32_t step = moa_grid_step(c);
    int32_t target = c->length[c->n_length - 1], n = 0;
    for (int32_t i = 0; i < c->n_extend; i++)
        if (c->extend[i] > target) target = c->extend[i];
    *out = NULL;
    *n_out = 0;
    moa_rule *rules = malloc(MOA_GRID_RULE_MAX * sizeof *rules);
    if (!rules) return moa_fail(err, MOA_E_MEMORY, "no memory for %d candidate rules", MOA_GRID_RULE_MAX);
    for (int32_t a = -(c->length[0] / step); (int64_t)a * step <= c->length[c->n_length - 1]; a++)
        for (int32_t b = 0; b <= 8; b++) {
            const moa_rule r = {(double)a * step, b / 8.0};
            bool twin = false;
            if (!wanted(c, r, target)) continue;
            for (int32_t i = 0; i < n && !twin; i++) twin = same_spans(c, rules[i], r);
            if (twin) continue;
            if (n == MOA_GRID_RULE_MAX) {
                free(rules);
                return moa_fail(err, MOA_E_INVALID, "a step of %d tokens gives more than %d candidate rules", step,
                                MOA_GRID_RULE_MAX);
            }
            rules[n++] = r;
        }
    if (n == 0) {
        free(rules);
        return moa_fail(err, MOA_E_INVALID, "a step of %d tokens leaves no candidate rule for lengths %d to %d", step, c->length[0],
                        target);
    }
    *out = rules;
    *n_out = n;
    return MOA_OK;
}
