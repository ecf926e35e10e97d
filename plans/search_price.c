/* search_price.c -- what the rows cost at given multipliers, and every layer's cheapest choice: exact, and so a lower bound.
 *
 *   cost = loss + sum_k y_k row_k
 *   no limit     each unit its cheapest rule
 *   one rule     min_i    sum_u cost[u][i]
 *   two rules    min_i<j  sum_u min(cost[u][i], cost[u][j])       1128 pairs of 48 rules: a sweep along memory each */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "plans/search_impl.h"

bool moa_rows_ok(const moa_pricer *p, const double *row) {
    for (int32_t k = 0; k < p->c->n_row; k++) {
        const double slack = 1e-10 * (p->range[k] + fabs(p->hi[k]));
        if (row[k] > p->hi[k] + slack || row[k] < p->lo[k] - slack) return false;
    }
    return true;
}

static const uint8_t *allowed(const moa_choice *c, int32_t layer) { return c->allow + (size_t)layer * (size_t)c->n_rule; }

static void transpose(const moa_pricer *p, const double *from, double *to, bool is_loss) {
    const moa_choice *c = p->c;
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t r = 0; r < c->n_rule; r++) {
            double *t = to + ((size_t)l * (size_t)c->n_rule + (size_t)r) * (size_t)p->n_pad;
            const bool no = allowed(c, l)[r] == MOA_RULE_NO;
            for (int32_t u = 0; u < p->n_pad; u++)
                t[u] = u >= c->n_unit ? 0
                       : no           ? (is_loss ? INFINITY : 0)
                                      : from[((size_t)l * (size_t)c->n_unit + (size_t)u) * (size_t)c->n_rule + (size_t)r];
        }
}

/* sums over units of the least and largest value of allowed rules */
static void extremes(const moa_choice *c, const double *x, double *least, double *most) {
    *least = *most = 0;
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t u = 0; u < c->n_unit; u++) {
            const double *v = x + ((size_t)l * (size_t)c->n_unit + (size_t)u) * (size_t)c->n_rule;
            double a = INFINITY, b = -INFINITY;
            for (int32_t r = 0; r < c->n_rule; r++) {
                if (allowed(c, l)[r] == MOA_RULE_NO) continue;
                a = fmin(a, v[r]);
                b = fmax(b, v[r]);
            }
            *least += a;
            *most += b;
        }
}

static int32_t limit_of(const moa_choice *c) {
    int32_t most = 0;
    for (int32_t l = 0; l < c->n_layer; l++) {
        int32_t n = 0;
        for (int32_t r = 0; r < c->n_rule; r++) n += allowed(c, l)[r] == MOA_RULE_MUST;
        if (n > most) most = n;
    }
    return c->max_rules >= c->n_unit + most || c->max_rules >= c->n_rule ? 0 : c->max_rules;
}

moa_status moa_pricer_open(moa_pricer **out, const moa_choice *c, moa_err *err) {
    *out = NULL;
    moa_pricer *p = calloc(1, sizeof *p);
    if (!p) return moa_fail(err, MOA_E_MEMORY, "no memory for the search");
    p->c = c;
    p->n_pad = (c->n_unit + 3) & ~3;
    p->limit = limit_of(c);
    size_t bytes;
    const bool fits = moa_size_mul((size_t)c->n_layer * (size_t)c->n_rule, (size_t)p->n_pad, &p->n) &&
                      moa_size_mul(p->n, sizeof(double), &bytes);
    p->pick = malloc((size_t)c->n_layer * (size_t)c->n_unit * sizeof *p->pick);
    bool ok = fits && p->pick && (p->loss = malloc(bytes)) && (p->cost = malloc(bytes));
    for (int32_t k = 0; ok && k < c->n_row; k++) ok = (p->row[k] = malloc(bytes)) != NULL;
    if (!ok) {
        moa_pricer_close(&p);
        return moa_fail(err, MOA_E_MEMORY, "no memory for a search over %d x %d units and %d rules", c->n_layer, c->n_unit,
                        c->n_rule);
    }
    double least, most;
    transpose(p, c->loss, p->loss, true);
    extremes(c, c->loss, &least, &most);
    p->range_loss = most - least;
    p->loss_max = most;
    for (int32_t k = 0; k < c->n_row; k++) {
        transpose(p, c->row[k], p->row[k], false);
        extremes(c, c->row[k], &least, &most);
        p->range[k] = most - least;
        /* an open side becomes one that every choice meets; a closed one stays, reachable or not */
        p->lo[k] = c->lo[k] > least ? c->lo[k] : least;
        p->hi[k] = c->hi[k] < most ? c->hi[k] : most;
    }
    *out = p;
    return MOA_OK;
}

void moa_pricer_close(moa_pricer **out) {
    moa_pricer *p = *out;
    if (!p) return;
    for (int k = 0; k < MOA_ROW_MAX; k++) free(p->row[k]);
    free(p->loss);
    free(p->cost);
    free(p->pick);
    free(p);
    *out = NULL;
}

double moa_pair_sum(const double *a, const double *b, int32_t n_pad) {
    double s[4] = {0};
    for (int32_t u = 0; u < n_pad; u += 4)
        for (int32_t i = 0; i < 4; i++) s[i] += a[u + i] < b[u + i] ? a[u + i] : b[u + i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

bool moa_pricer_pair_ok(const moa_pricer *p, int32_t layer, int32_t i, int32_t j) {
    const uint8_t *allow = allowed(p->c, layer);
    if (allow[i] == MOA_RULE_NO || allow[j] == MOA_RULE_NO) return false;
    for (int32_t r = 0; r < p->c->n_rule; r++)
        if (allow[r] == MOA_RULE_MUST && r != i && r != j) return false;
    return true;
}

static double layer_free(moa_pricer *p, int32_t layer, int32_t *pick) {
    double sum = 0;
    for (int32_t u = 0; u < p->c->n_unit; u++) {
        double least = INFINITY;
        pick[u] = 0;
        for (int32_t r = 0; r < p->c->n_rule; r++) {
            const double x = moa_pricer_costs(p, layer, r)[u];
            if (x < least) least = x, pick[u] = r;
        }
        sum += least;
    }
    return sum;
}

static double layer_limited(moa_pricer *p, int32_t layer, int32_t *pick) {
    double least = INFINITY;
    int32_t best_i = 0, best_j = 0;
    int32_t must[2] = {-1, -1}, n_must = 0;
    const uint8_t *allow = allowed(p->c, layer);
    for (int32_t r = 0; r < p->c->n_rule; r++)
        if (allow[r] == MOA_RULE_MUST && n_must++ < 2) must[n_must - 1] = r;
    if (n_must > p->limit) return INFINITY;
    for (int32_t i = 0; i < p->c->n_rule; i++) {
        const int32_t to = p->limit == 1 ? i + 1 : p->c->n_rule;
        if (allow[i] == MOA_RULE_NO) continue;
        for (int32_t j = p->limit == 1 ? i : i + 1; j < to; j++) {
            if (allow[j] == MOA_RULE_NO || (n_must > 0 && i != must[0] && j != must[0]) ||
                (n_must > 1 && i != must[1] && j != must[1]))
                continue;
            const double x = moa_pair_sum(moa_pricer_costs(p, layer, i), moa_pricer_costs(p, layer, j), p->n_pad);
            if (x < least) least = x, best_i = i, best_j = j;
        }
    }
    const double *a = moa_pricer_costs(p, layer, best_i), *b = moa_pricer_costs(p, layer, best_j);
    for (int32_t u = 0; u < p->c->n_unit; u++) pick[u] = a[u] <= b[u] ? best_i : best_j;
    return least;
}

double moa_pricer_bound(moa_pricer *p, const double *y) {
    const moa_choice *c = p->c;
    double value = 0;
    memcpy(p->cost, p->loss, p->n * sizeof *p->cost);
    for (int32_t k = 0; k < c->n_row; k++) {
        if (y[k] == 0) continue;
        for (size_t i = 0; i < p->n; i++) p->cost[i] += y[k] * p->row[k][i];
        value -= y[k] * (y[k] > 0 ? p->hi[k] : p->lo[k]);
    }
    for (int32_t l = 0; l < c->n_layer; l++) {
        int32_t *pick = p->pick + (size_t)l * (size_t)c->n_unit;
        value += p->limit == 1 || p->limit == 2 ? layer_limited(p, l, pick) : layer_free(p, l, pick);
    }
    p->at_loss = moa_choice_value(c, p->pick, p->at_row);
    p->n_price++;
    return value;
}

double moa_choice_value(const moa_choice *c, const int32_t *pick, double *row_sum) {
    const size_t n = (size_t)c->n_layer * (size_t)c->n_unit;
    double sum = 0;
    for (size_t u = 0; u < n; u++) sum += c->loss[u * (size_t)c->n_rule + (size_t)pick[u]];
    for (int32_t k = 0; row_sum && k < c->n_row; k++) {
        row_sum[k] = 0;
        for (size_t u = 0; u < n; u++) row_sum[k] += c->row[k][u * (size_t)c->n_rule + (size_t)pick[u]];
    }
    return sum;
}

bool moa_choice_ok(const moa_choice *c, const int32_t *pick) {
    double row[MOA_ROW_MAX];
    (void)moa_choice_value(c, pick, row);
    for (int32_t k = 0; k < c->n_row; k++) {
        const double slack = 1e-9 * (1 + fabs(row[k]));
        if (row[k] > c->hi[k] + slack || row[k] < c->lo[k] - slack) return false;
    }
    for (int32_t l = 0; l < c->n_layer; l++) {
        int32_t n = 0;
        for (int32_t r = 0; r < c->n_rule; r++) {
            bool used = allowed(c, l)[r] == MOA_RULE_MUST;
            for (int32_t u = 0; u < c->n_unit; u++) {
                const bool here = pick[(size_t)l * (size_t)c->n_unit + (size_t)u] == r;
                if (here && allowed(c, l)[r] == MOA_RULE_NO) return false;
                used |= here;
            }
            n += used;
        }
        if (c->max_rules > 0 && n > c->max_rules) return false;
    }
    return true;
}
