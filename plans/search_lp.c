/* search_lp.c -- the same program for other solvers, in the CPLEX .lp format that HiGHS, Gurobi, SCIP, CBC and GLPK read.
 *
 *   x_L_U_R  unit U of layer L takes rule R        y_L_R  layer L may use rule R (under a rule limit): x <= y, sum y <= limit */
#include <math.h>

#include "plans/search_solve.h"

enum { TERMS_PER_LINE = 6 }; /* some readers have short lines */

static bool allowed(const moa_choice *c, int32_t layer, int32_t rule) {
    return c->allow[(size_t)layer * (size_t)c->n_rule + (size_t)rule] != MOA_RULE_NO;
}

/* sum of a row over all x */
static void put_sum(const moa_choice *c, const double *x, moa_buf *out) {
    int32_t n = 0;
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t u = 0; u < c->n_unit; u++)
            for (int32_t r = 0; r < c->n_rule; r++) {
                const double v = x[((size_t)l * (size_t)c->n_unit + (size_t)u) * (size_t)c->n_rule + (size_t)r];
                if (!allowed(c, l, r)) continue;
                moa_buf_printf(out, "%s%s%.17g x_%d_%d_%d", n % TERMS_PER_LINE ? " " : "\n ", v < 0 ? "" : "+", v, l, u, r);
                n++;
            }
}

static void put_rows(const moa_choice *c, moa_buf *out) {
    for (int32_t k = 0; k < c->n_row; k++) {
        if (c->hi[k] < INFINITY) {
            moa_buf_printf(out, "high_%d:", k);
            put_sum(c, c->row[k], out);
            moa_buf_printf(out, " <= %.17g\n", c->hi[k]);
        }
        if (c->lo[k] > -INFINITY) {
            moa_buf_printf(out, "low_%d:", k);
            put_sum(c, c->row[k], out);
            moa_buf_printf(out, " >= %.17g\n", c->lo[k]);
        }
    }
}

static void put_units(const moa_choice *c, int32_t l, moa_buf *out) {
    for (int32_t u = 0; u < c->n_unit; u++) {
        moa_buf_printf(out, "one_%d_%d:", l, u);
        for (int32_t r = 0, n = 0; r < c->n_rule; r++)
            if (allowed(c, l, r)) moa_buf_printf(out, "%s+ x_%d_%d_%d", n++ % TERMS_PER_LINE ? " " : "\n ", l, u, r);
        moa_buf_str(out, " = 1\n");
    }
}

static void put_limit(const moa_choice *c, int32_t l, moa_buf *out) {
    for (int32_t u = 0; u < c->n_unit; u++)
        for (int32_t r = 0; r < c->n_rule; r++)
            if (allowed(c, l, r)) moa_buf_printf(out, "use_%d_%d_%d: x_%d_%d_%d - y_%d_%d <= 0\n", l, u, r, l, u, r, l, r);
    moa_buf_printf(out, "few_%d:", l);
    for (int32_t r = 0, n = 0; r < c->n_rule; r++)
        if (allowed(c, l, r)) moa_buf_printf(out, "%s+ y_%d_%d", n++ % TERMS_PER_LINE ? " " : "\n ", l, r);
    moa_buf_printf(out, " <= %d\n", c->max_rules);
    for (int32_t r = 0; r < c->n_rule; r++)
        if (c->allow[(size_t)l * (size_t)c->n_rule + (size_t)r] == MOA_RULE_MUST)
            moa_buf_printf(out, "must_%d_%d: y_%d_%d = 1\n", l, r, l, r);
}

moa_status moa_solve_lp(const moa_choice *c, moa_buf *out, moa_err *err) {
    moa_buf_printf(out, "\\ %d layers x %d units, %d rules, %d rows\nMinimize\n loss:", c->n_layer, c->n_unit, c->n_rule, c->n_row);
    put_sum(c, c->loss, out);
    moa_buf_str(out, "\nSubject To\n");
    put_rows(c, out);
    for (int32_t l = 0; l < c->n_layer; l++) {
        put_units(c, l, out);
        if (c->max_rules > 0) put_limit(c, l, out);
    }
    moa_buf_str(out, "Binary\n");
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t r = 0; r < c->n_rule; r++) {
            if (!allowed(c, l, r)) continue;
            for (int32_t u = 0; u < c->n_unit; u++) moa_buf_printf(out, " x_%d_%d_%d\n", l, u, r);
            if (c->max_rules > 0) moa_buf_printf(out, " y_%d_%d\n", l, r);
        }
    moa_buf_str(out, "End\n");
    return moa_buf_ok(out) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the .lp text of %d x %d units", c->n_layer, c->n_unit);
}
