/* plan.c -- making, copying, comparing plans, and the words that stand for common ones. */
#include "plans/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"

static moa_status plan_alloc(moa_plan **out, int32_t n_layer, int32_t n_head, moa_err *err) {
    *out = NULL;
    if (n_layer < 1 || n_layer > MOA_PLAN_LAYER_MAX || n_head < 1 || n_head > MOA_PLAN_HEAD_MAX)
        return moa_fail(err, MOA_E_INVALID, "a plan of %d layers x %d heads: the limits are 1..%d and 1..%d", n_layer, n_head,
                        MOA_PLAN_LAYER_MAX, MOA_PLAN_HEAD_MAX);
    moa_plan *p = calloc(1, sizeof *p);
    if (p) p->rules = calloc((size_t)n_layer * (size_t)n_head, sizeof *p->rules);
    if (!p || !p->rules) {
        free(p);
        return moa_fail(err, MOA_E_MEMORY, "no memory for a plan of %d x %d rules", n_layer, n_head);
    }
    p->n_layer = n_layer;
    p->n_head = n_head;
    *out = p;
    return MOA_OK;
}

moa_status moa_plan_uniform(moa_plan **out, int32_t n_layer, int32_t n_head, moa_rule rule, moa_err *err) {
    const moa_status s = plan_alloc(out, n_layer, n_head, err);
    if (s != MOA_OK) return s;
    for (int64_t i = 0; i < (int64_t)n_layer * n_head; i++) (*out)->rules[i] = rule;
    return MOA_OK;
}

moa_status moa_plan_copy(moa_plan **out, const moa_plan *from, moa_err *err) {
    const moa_status s = plan_alloc(out, from->n_layer, from->n_head, err);
    if (s != MOA_OK) return s;
    moa_plan *p = *out;
    moa_rule *rules = p->rules;
    *p = *from;
    p->rules = rules;
    memcpy(rules, from->rules, (size_t)from->n_layer * (size_t)from->n_head * sizeof *rules);
    p->extra = from->extra ? strdup(from->extra) : NULL;
    p->model_extra = from->model_extra ? strdup(from->model_extra) : NULL;
    if ((from->extra && !p->extra) || (from->model_extra && !p->model_extra)) {
        moa_plan_close(out);
        return moa_fail(err, MOA_E_MEMORY, "no memory to copy a plan");
    }
    return MOA_OK;
}

void moa_plan_close(moa_plan **plan) {
    if (!plan || !*plan) return;
    free((*plan)->rules);
    free((*plan)->extra);
    free((*plan)->model_extra);
    free(*plan);
    *plan = NULL;
}

bool moa_plan_equal(const moa_plan *a, const moa_plan *b) {
    if (a->n_layer != b->n_layer || a->n_head != b->n_head) return false;
    for (int64_t i = 0; i < (int64_t)a->n_layer * a->n_head; i++)
        if (a->rules[i].alpha != b->rules[i].alpha || a->rules[i].beta != b->rules[i].beta) return false;
    return true;
}

moa_status moa_plan_fits(const moa_plan *p, int32_t n_layer, int32_t n_head, moa_err *err) {
    if (p->n_layer == n_layer && p->n_head == n_head) return MOA_OK;
    return moa_fail(err, MOA_E_INVALID, "the plan is for %d layers x %d heads, the model has %d x %d", p->n_layer, p->n_head,
                    n_layer, n_head);
}

moa_status moa_plan_open(moa_plan **out, const char *spec, int32_t n_layer, int32_t n_head, moa_err *err) {
    *out = NULL;
    if (strcmp(spec, "full") == 0) return moa_plan_uniform(out, n_layer, n_head, (moa_rule){0, 1}, err);
    if (strcmp(spec, "sink") == 0) return moa_plan_uniform(out, n_layer, n_head, (moa_rule){MOA_SPAN_MIN, 0}, err);
    if (strncmp(spec, "uniform:", 8) == 0) {
        char *end;
        const double density = strtod(spec + 8, &end);
        if (end == spec + 8 || *end || !(density > 0 && density <= 1))
            return moa_fail(err, MOA_E_USAGE, "plan %s: the density after 'uniform:' must be a number above 0 and at most 1", spec);
        return moa_plan_uniform(out, n_layer, n_head, (moa_rule){0, density}, err);
    }
    moa_status s = moa_plan_load(out, spec, err);
    if (s == MOA_OK) s = moa_plan_fits(*out, n_layer, n_head, err);
    if (s != MOA_OK) moa_plan_close(out);
    return s;
}
