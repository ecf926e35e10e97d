/* describe.c -- what a plan means at a length: spans, density, classes of rules. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plans/plan.h"

int32_t moa_plan_group_span(const moa_plan *p, int32_t layer, int32_t head, int32_t n_head_kv, int32_t n) {
    const int32_t group = p->n_head / n_head_kv, first = head / group * group;
    int32_t widest = 0;
    for (int32_t h = first; h < first + group; h++) {
        const int32_t span = moa_span(*moa_plan_at(p, layer, h), n);
        if (span > widest) widest = span;
    }
    return widest;
}

static double kept(int32_t span, int32_t n) { return span < n ? span : n; }

/* sum over queries of the keys each sees */
static double pairs(int32_t span, int32_t n) {
    const double s = kept(span, n);
    return s * (s + 1) / 2 + (n - s) * s;
}

moa_plan_at_n moa_plan_describe(const moa_plan *p, int32_t n, int32_t n_head_kv) {
    const double heads = (double)p->n_layer * p->n_head;
    moa_plan_at_n d = {.n = n, .span_min = INT32_MAX, .kv_density_grouped = NAN, .mha_ratio = NAN};
    double group_kept = 0;
    int32_t n_dense = 0; /* counted: a sum of 1/heads may end below 1 */
    for (int32_t l = 0; l < p->n_layer; l++)
        for (int32_t h = 0; h < p->n_head; h++) {
            const moa_rule rule = *moa_plan_at(p, l, h);
            const int32_t span = moa_span(rule, n);
            if (span < d.span_min) d.span_min = span;
            if (span > d.span_max) d.span_max = span;
            d.span_mean += span / heads;
            d.kv_density += kept(span, n) / n / heads;
            d.attn_density += pairs(span, n) / pairs(n, n) / heads;
            n_dense += span >= n;
            d.n_clamped += rule.alpha + rule.beta * n <= 0;
            if (n_head_kv > 0 && h % (p->n_head / n_head_kv) == 0)
                group_kept += kept(moa_plan_group_span(p, l, h, n_head_kv, n), n);
        }
    d.dense_share = n_dense / heads;
    if (n_head_kv > 0) {
        d.kv_density_grouped = group_kept / n / ((double)p->n_layer * n_head_kv);
        d.mha_ratio = d.kv_density * p->n_head / n_head_kv;
    }
    return d;
}

static int by_rule(const void *a, const void *b) {
    const moa_rule *x = a, *y = b;
    if (x->alpha != y->alpha) return x->alpha < y->alpha ? -1 : 1;
    return (x->beta > y->beta) - (x->beta < y->beta);
}

static int by_count(const void *a, const void *b) {
    const moa_rule_class *x = a, *y = b;
    if (x->n_head != y->n_head) return x->n_head > y->n_head ? -1 : 1;
    return by_rule(&x->rule, &y->rule);
}

moa_status moa_plan_classes(const moa_plan *p, moa_rule_class **out, int32_t *n_out, moa_err *err) {
    const size_t n = (size_t)p->n_layer * (size_t)p->n_head;
    moa_rule *sorted = malloc(n * sizeof *sorted);
    moa_rule_class *classes = malloc(n * sizeof *classes);
    *out = NULL;
    *n_out = 0;
    if (!sorted || !classes) {
        free(sorted);
        free(classes);
        return moa_fail(err, MOA_E_MEMORY, "no memory to list the rules of %zu heads", n);
    }
    memcpy(sorted, p->rules, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_rule);
    int32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || by_rule(&sorted[i - 1], &sorted[i]) != 0) classes[count++] = (moa_rule_class){sorted[i], 0};
        classes[count - 1].n_head++;
    }
    qsort(classes, (size_t)count, sizeof *classes, by_count);
    free(sorted);
    *out = classes;
    *n_out = count;
    return MOA_OK;
}

int32_t moa_plan_max_rules_per_layer(const moa_plan *p) {
    int32_t most = 0;
    for (int32_t l = 0; l < p->n_layer; l++) {
        int32_t distinct = 0;
        for (int32_t h = 0; h < p->n_head; h++) {
            int32_t earlier = 0;
            while (earlier < h && by_rule(moa_plan_at(p, l, earlier), moa_plan_at(p, l, h)) != 0) earlier++;
            distinct += earlier == h;
        }
        if (distinct > most) most = distinct;
    }
    return most;
}
