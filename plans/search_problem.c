/* search_problem.c -- the model's heads as units, their losses and their share of the memory. */
#include "plans/search_problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "plans/grid.h"

static bool is_locked(const moa_problem *p, int32_t layer, int32_t head) {
    return p->config->locked && p->config->locked[(size_t)layer * (size_t)p->losses->n_head + (size_t)head];
}

static moa_rule locked_rule(const moa_problem *p, int32_t layer, int32_t head) {
    return *moa_plan_at(p->config->lock, layer, head);
}

static size_t at(const moa_problem *p, int32_t layer, int32_t unit, int32_t rule) {
    return ((size_t)layer * (size_t)p->n_unit + (size_t)unit) * (size_t)p->n_rule + (size_t)rule;
}

static double share(int32_t span, int32_t n) { return span >= n ? 1 : (double)span / n; }

/* --- settings ----------------------------------------------------------------------------------------------------------------- */

static moa_status check(const moa_problem *p, moa_err *err) {
    const moa_search_config *c = p->config;
    const moa_losses *l = p->losses;
    if (!(c->density > 0 && c->density <= 1)) return moa_fail(err, MOA_E_USAGE, "density %g: above 0 and at most 1", c->density);
    if (c->density_low > c->density)
        return moa_fail(err, MOA_E_USAGE, "the lower bound %g of the density is above the upper one, %g", c->density_low, c->density);
    if (l->n_length + c->n_extend > MOA_SEARCH_BOUND_MAX)
        return moa_fail(err, MOA_E_USAGE, "%d profiled and %d further lengths; at most %d in all", l->n_length, c->n_extend,
                        MOA_SEARCH_BOUND_MAX);
    for (int32_t i = 0; i < c->n_extend; i++)
        if (c->extend[i] < 1 || c->extend[i] > MOA_N_MAX)
            return moa_fail(err, MOA_E_USAGE, "length %d: from 1 to %d tokens", c->extend[i], MOA_N_MAX);
    if (c->max_rules < 0 || c->max_rules > 16)
        return moa_fail(err, MOA_E_USAGE, "%d rules a layer: from 1 to 16, or 0 for any", c->max_rules);
    if (c->per == MOA_PER_GROUP && c->budget == MOA_BUDGET_HEAD && l->n_head_kv < l->n_head)
        return MOA_OK; /* one rule a group: both densities are the same */
    if (c->per == MOA_PER_HEAD && c->budget == MOA_BUDGET_KV && c->max_rules > 0 && l->n_head_kv < l->n_head)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "a limit of %d rules a layer needs one rule a KV group, or the density counted over query heads", c->max_rules);
    if (c->around && !(c->step > 0)) return moa_fail(err, MOA_E_USAGE, "a step of %g from a plan: above 0", c->step);
    if (c->around) {
        const moa_status s = moa_plan_fits(c->around, l->n_layer, l->n_head, err);
        if (s != MOA_OK) return s;
    }
    if (c->locked && !c->lock) return moa_fail(err, MOA_E_USAGE, "locked heads need the plan whose rules they keep");
    return c->lock ? moa_plan_fits(c->lock, l->n_layer, l->n_head, err) : MOA_OK;
}

static void set_bounds(moa_problem *p) {
    const moa_search_config *c = p->config;
    for (int32_t i = 0; i < p->losses->n_length; i++) p->bound_at[p->n_bound++] = p->losses->length[i];
    for (int32_t i = 0; i < c->n_extend; i++) {
        bool there = false;
        for (int32_t b = 0; b < p->n_bound; b++) there |= p->bound_at[b] == c->extend[i];
        if (!there) p->bound_at[p->n_bound++] = c->extend[i];
    }
    p->high = c->density;
    p->low = c->density_low < 0 ? 0 : c->density_low == 0 ? .9 * c->density : c->density_low;
}

/* --- rules -------------------------------------------------------------------------------------------------------------------- */

static int32_t rule_index(const moa_problem *p, moa_rule r) {
    for (int32_t i = 0; i < p->n_rule; i++)
        if (p->rules[i].alpha == r.alpha && p->rules[i].beta == r.beta) return i;
    return -1;
}

static moa_status add_locked_rules(moa_problem *p, moa_err *err) {
    for (int32_t l = 0; l < p->losses->n_layer; l++)
        for (int32_t h = 0; h < p->losses->n_head; h++) {
            if (!is_locked(p, l, h) || rule_index(p, locked_rule(p, l, h)) >= 0) continue;
            if (p->n_rule == MOA_GRID_RULE_MAX)
                return moa_fail(err, MOA_E_INVALID, "more than %d rules with the locked ones", MOA_GRID_RULE_MAX);
            moa_rule *more = realloc(p->rules, ((size_t)p->n_rule + 1) * sizeof *more);
            if (!more) return moa_fail(err, MOA_E_MEMORY, "no memory for %d rules", p->n_rule + 1);
            p->rules = more;
            p->rules[p->n_rule++] = locked_rule(p, l, h);
        }
    return MOA_OK;
}

static moa_status set_rules(moa_problem *p, moa_err *err) {
    const moa_search_config *c = p->config;
    const moa_grid_config grid = {.length = p->losses->length, .n_length = p->losses->n_length, .extend = c->extend,
                                  .n_extend = c->n_extend, .step = c->alpha_step, .forbid = c->forbid, .n_forbid = c->n_forbid};
    p->alpha_step = moa_grid_step(&grid);
    moa_status s = moa_grid_make(&grid, &p->rules, &p->n_rule, err);
    p->n_grid = p->n_rule;
    if (s == MOA_OK && c->locked) s = add_locked_rules(p, err);
    return s;
}

/* a locked rule outside the grid may be used in its own layers only, and counts there */
static moa_status set_allowed(moa_problem *p, moa_err *err) {
    const moa_losses *l = p->losses;
    for (int32_t layer = 0; layer < l->n_layer; layer++) {
        uint8_t *allow = p->allow + (size_t)layer * (size_t)p->n_rule;
        int32_t n = 0;
        for (int32_t r = 0; r < p->n_grid; r++) allow[r] = MOA_RULE_MAY;
        for (int32_t h = 0; h < l->n_head; h++) {
            if (!is_locked(p, layer, h)) continue;
            uint8_t *a = &allow[rule_index(p, locked_rule(p, layer, h))];
            n += *a != MOA_RULE_MUST;
            *a = MOA_RULE_MUST;
        }
        if (p->config->max_rules > 0 && n > p->config->max_rules)
            return moa_fail(err, MOA_E_FAILED, "layer %d: its locked heads have %d rules, the limit is %d", layer, n,
                            p->config->max_rules);
    }
    return MOA_OK;
}

/* --- losses and memory ----------------------------------------------------------------------------------------------------------- */

static moa_status make_arrays(moa_problem *p, moa_err *err) {
    const moa_losses *l = p->losses;
    size_t n, bytes, heads;
    const bool fits = moa_size_mul((size_t)l->n_layer * (size_t)p->n_unit, (size_t)p->n_rule, &n) &&
                      moa_size_mul(n, sizeof(double), &bytes) &&
                      moa_size_mul((size_t)l->n_layer * (size_t)l->n_head, (size_t)p->n_rule, &heads);
    bool ok = fits && (p->mean = calloc(1, bytes)) && (p->allow = calloc((size_t)l->n_layer, (size_t)p->n_rule));
    for (int32_t i = 0; ok && i < l->n_length; i++) ok = (p->loss[i] = calloc(1, bytes)) && (p->goal[i] = calloc(1, bytes));
    if (ok && p->config->around) ok = (p->moved = calloc(1, bytes)) != NULL;
    for (int32_t b = 0; ok && b < p->n_bound; b++) ok = (p->kept[b] = calloc(1, bytes)) != NULL;
    if (ok && p->config->per == MOA_PER_HEAD && p->n_head_of_unit > 1)
        ok = (p->under = calloc(heads, sizeof *p->under)) != NULL;
    return ok ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for %d x %d units and %d rules", l->n_layer, p->n_unit, p->n_rule);
}

/* nowhere wider, at any length in use */
static bool fits_under(const moa_problem *p, moa_rule r, moa_rule cap) {
    for (int32_t b = 0; b < p->n_bound; b++)
        if (moa_span(r, p->bound_at[b]) > moa_span(cap, p->bound_at[b])) return false;
    return true;
}

/* what a head does when its unit is given a rule: that rule, its lock, or the best rule under it as a cap */
static moa_rule head_rule(const moa_problem *p, int32_t layer, int32_t head, int32_t rule) {
    if (is_locked(p, layer, head)) return locked_rule(p, layer, head);
    if (!p->under) return p->rules[rule];
    return p->rules[p->under[((size_t)layer * (size_t)p->losses->n_head + (size_t)head) * (size_t)p->n_rule + (size_t)rule]];
}

static void set_under(moa_problem *p) {
    const moa_losses *l = p->losses;
    if (!p->under) return;
    for (int32_t cap = 0; cap < p->n_rule; cap++)
        for (int32_t r = 0; r < p->n_grid; r++) {
            if (!fits_under(p, p->rules[r], p->rules[cap])) continue;
            for (int32_t layer = 0; layer < l->n_layer; layer++)
                for (int32_t h = 0; h < l->n_head; h++) {
                    uint16_t *u = &p->under[((size_t)layer * (size_t)l->n_head + (size_t)h) * (size_t)p->n_rule + (size_t)cap];
                    double gain = 0;
                    if (*u == 0) *u = (uint16_t)(cap + 1); /* one more than the rule, until all are seen */
                    for (int32_t i = 0; i < l->n_length; i++)
                        gain += moa_losses_rule(l, i, layer, h, p->rules[*u - 1]) - moa_losses_rule(l, i, layer, h, p->rules[r]);
                    if (gain > 0) *u = (uint16_t)(r + 1);
                }
        }
    const size_t n = (size_t)l->n_layer * (size_t)l->n_head * (size_t)p->n_rule;
    for (size_t i = 0; i < n; i++) p->under[i] = p->under[i] ? (uint16_t)(p->under[i] - 1) : (uint16_t)(i % (size_t)p->n_rule);
}

static void fill(moa_problem *p) {
    const moa_losses *l = p->losses;
    const double units = (double)l->n_layer * p->n_unit;
    for (int32_t layer = 0; layer < l->n_layer; layer++)
        for (int32_t u = 0; u < p->n_unit; u++)
            for (int32_t r = 0; r < p->n_rule; r++) {
                const size_t to = at(p, layer, u, r);
                const bool mean = p->config->budget == MOA_BUDGET_HEAD; /* over the unit's heads; else the widest counts */
                bool open = false;                                       /* some head follows the unit's rule */
                for (int32_t k = 0; k < p->n_head_of_unit; k++) {
                    const int32_t h = u * p->n_head_of_unit + k;
                    const moa_rule rule = head_rule(p, layer, h, r);
                    open |= !is_locked(p, layer, h);
                    for (int32_t i = 0; i < l->n_length; i++) p->loss[i][to] += moa_losses_rule(l, i, layer, h, rule);
                    for (int32_t b = 0; b < p->n_bound; b++) {
                        const double x = share(moa_span(rule, p->bound_at[b]), p->bound_at[b]) / units;
                        p->kept[b][to] = mean ? p->kept[b][to] + x / p->n_head_of_unit : fmax(p->kept[b][to], x);
                    }
                }
                for (int32_t b = 0; b < p->n_bound && p->under && open; b++)
                    p->kept[b][to] = fmax(p->kept[b][to], share(moa_span(p->rules[r], p->bound_at[b]), p->bound_at[b]) / units);
                for (int32_t i = 0; i < l->n_length; i++) p->mean[to] += p->loss[i][to] / l->n_length;
                /* ties of one length, and there are many, are decided by the others */
                for (int32_t i = 0; i < l->n_length; i++)
                    p->goal[i][to] = p->loss[i][to] + (l->n_length > 1 ? 1e-3 * p->mean[to] : 0);
            }
}

/* how far each rule is from what its heads have in the plan to stay near */
static void set_moved(moa_problem *p) {
    const moa_losses *l = p->losses;
    if (!p->moved) return;
    for (int32_t layer = 0; layer < l->n_layer; layer++)
        for (int32_t h = 0; h < l->n_head; h++)
            for (int32_t r = 0; r < p->n_rule; r++) {
                const moa_rule now = head_rule(p, layer, h, r), was = *moa_plan_at(p->config->around, layer, h);
                double sum = 0;
                for (int32_t b = 0; b < p->n_bound; b++)
                    sum += fabs(share(moa_span(now, p->bound_at[b]), p->bound_at[b]) - share(moa_span(was, p->bound_at[b]), p->bound_at[b]));
                p->moved[at(p, layer, h / p->n_head_of_unit, r)] += sum / p->n_bound / l->n_layer / l->n_head;
            }
}

moa_status moa_problem_open(moa_problem *p, const moa_losses *l, const moa_search_config *c, moa_err *err) {
    moa_status s = MOA_OK;
    *p = (moa_problem){.losses = l, .config = c};
    MOA_TRY(check(p, err));
    /* per head under a KV budget the unit is the group too: its rule is the heads' cap */
    const bool by_head = c->per == MOA_PER_HEAD && c->budget == MOA_BUDGET_HEAD;
    p->n_unit = by_head ? l->n_head : l->n_head_kv;
    p->n_head_of_unit = l->n_head / p->n_unit;
    set_bounds(p);
    MOA_TRY(set_rules(p, err));
    MOA_TRY(make_arrays(p, err));
    MOA_TRY(set_allowed(p, err));
    set_under(p);
    fill(p);
    set_moved(p);
out:
    return s;
}

void moa_problem_free(moa_problem *p) {
    free(p->rules);
    free(p->mean);
    free(p->moved);
    free(p->allow);
    free(p->under);
    for (int i = 0; i < MOA_LOSSES_LENGTH_MAX; i++) free(p->loss[i]), free(p->goal[i]);
    for (int b = 0; b < MOA_SEARCH_BOUND_MAX; b++) free(p->kept[b]);
    *p = (moa_problem){0};
}

void moa_problem_choice(const moa_problem *p, int32_t objective, const double *level, moa_choice *c) {
    *c = (moa_choice){.n_layer = p->losses->n_layer, .n_unit = p->n_unit, .n_rule = p->n_rule, .max_rules = p->config->max_rules,
                      .loss = objective < 0 ? p->mean : p->goal[objective], .allow = p->allow};
    for (int32_t b = 0; b < p->n_bound; b++) {
        c->row[c->n_row] = p->kept[b];
        c->lo[c->n_row] = p->low > 0 ? p->low : -INFINITY;
        c->hi[c->n_row++] = p->high;
    }
    if (p->moved) {
        c->row[c->n_row] = p->moved;
        c->lo[c->n_row] = -INFINITY;
        c->hi[c->n_row++] = p->config->step;
    }
    for (int32_t i = 0; i < p->losses->n_length && level; i++) {
        if (i == objective || level[i] == INFINITY || c->n_row == MOA_ROW_MAX) continue;
        c->row[c->n_row] = p->loss[i];
        c->lo[c->n_row] = -INFINITY;
        c->hi[c->n_row++] = level[i];
    }
}

moa_status moa_problem_plan(const moa_problem *p, const int32_t *pick, moa_plan **out, moa_err *err) {
    const moa_losses *l = p->losses;
    const moa_status s = moa_plan_uniform(out, l->n_layer, l->n_head, (moa_rule){0, 1}, err);
    if (s != MOA_OK) return s;
    moa_plan *plan = *out;
    plan->n_head_kv = l->kv_known ? l->n_head_kv : 0;
    memcpy(plan->model, l->model, sizeof plan->model);
    memcpy(plan->arch, l->arch, sizeof plan->arch);
    memcpy(plan->fingerprint, l->fingerprint, sizeof plan->fingerprint);
    for (int32_t layer = 0; layer < l->n_layer; layer++)
        for (int32_t h = 0; h < l->n_head; h++)
            *moa_plan_at(plan, layer, h) =
                head_rule(p, layer, h, pick[(size_t)layer * (size_t)p->n_unit + (size_t)(h / p->n_head_of_unit)]);
    return MOA_OK;
}
