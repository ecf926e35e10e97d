/* search_branch.c -- branch and bound over "layer l may use rule r", for the gap that the multipliers alone cannot close.
 *
 *   node    some (layer, rule) pairs fixed to MUST or NO; its bound: the bundle method again, begun at its parent's multipliers
 *   branch  the pair whose use in the relaxation's mixture of choices is nearest to one half
 *   next    the open node of the least bound: that is the bound of all
 *
 * Every price is a choice too: feasible ones may improve the best. A node is done when its bound reaches best less the gap wanted. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plans/search_impl.h"

enum { NODE_STEPS = 14 };

typedef struct node {
    int32_t parent, layer, rule; /* -1: the root */
    uint8_t value;
    bool open;
    double bound, t;
    double y[MOA_ROW_MAX];
} node;

typedef struct tree {
    moa_branch *b;
    moa_choice c; /* the problem with the allowed rules of the node at work */
    moa_pricer *p;
    uint8_t *allow; /* of c, owned */
    node *nodes;
    int32_t n, room;
    int32_t *pick[NODE_STEPS + 1]; /* of the node's prices, by order; owned */
    int32_t first_price;
    double *use; /* (n_layer, n_rule) share of the mixture that uses the rule, owned */
} tree;

static void met(void *to, const moa_pricer *p) {
    tree *t = to;
    const size_t n = (size_t)p->c->n_layer * (size_t)p->c->n_unit;
    const int32_t i = p->n_price - t->first_price - 1;
    if (i >= 0 && i <= NODE_STEPS) memcpy(t->pick[i], p->pick, n * sizeof *p->pick);
    if (!(p->at_loss < t->b->best) || !moa_rows_ok(p, p->at_row) || !moa_choice_ok(t->b->c, p->pick)) return;
    t->b->best = p->at_loss;
    memcpy(t->b->pick, p->pick, n * sizeof *p->pick);
}

static void set_allowed(tree *t, int32_t at) {
    memcpy(t->allow, t->b->c->allow, (size_t)t->c.n_layer * (size_t)t->c.n_rule);
    for (; at >= 0; at = t->nodes[at].parent)
        if (t->nodes[at].rule >= 0)
            t->allow[(size_t)t->nodes[at].layer * (size_t)t->c.n_rule + (size_t)t->nodes[at].rule] = t->nodes[at].value;
}

/* the (layer, rule) to branch on; false: the mixture agrees on all of them */
static bool most_divided(tree *t, const moa_dual *d, int32_t *layer, int32_t *rule) {
    const moa_choice *c = &t->c;
    double best = 1e-3;
    memset(t->use, 0, (size_t)c->n_layer * (size_t)c->n_rule * sizeof *t->use);
    for (int32_t m = 0; m < d->n_mix; m++) {
        const int32_t i = d->price[m] - t->first_price - 1;
        if (i < 0 || i > NODE_STEPS) continue;
        for (int32_t l = 0; l < c->n_layer; l++)
            for (int32_t u = 0; u < c->n_unit; u++) {
                const int32_t *x = t->pick[i] + (size_t)l * (size_t)c->n_unit;
                bool again = false;
                for (int32_t k = 0; k < u && !again; k++) again = x[k] == x[u];
                if (!again) t->use[(size_t)l * (size_t)c->n_rule + (size_t)x[u]] += d->weight[m];
            }
    }
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t r = 0; r < c->n_rule; r++) {
            const size_t at = (size_t)l * (size_t)c->n_rule + (size_t)r;
            const double split = fmin(t->use[at], 1 - t->use[at]);
            if (t->allow[at] != MOA_RULE_MAY || split <= best) continue;
            best = split, *layer = l, *rule = r;
        }
    return best > 1e-3;
}

static double wanted(const tree *t, const moa_solve_config *config) { return t->b->best - config->gap * fabs(t->b->best); }

/* prices one node; its children are added, or it stays as a leaf whose bound counts */
static void work_on(tree *t, int32_t at, const moa_solve_config *config) {
    const double enough = wanted(t, config);
    const moa_dual_config dual = {config, NODE_STEPS, enough > t->b->best ? INFINITY : enough, met, t};
    double y[MOA_ROW_MAX], step = t->nodes[at].t;
    int32_t layer = 0, rule = 0;
    set_allowed(t, at);
    t->first_price = t->p->n_price;
    memcpy(y, t->nodes[at].y, sizeof y);
    const moa_dual d = moa_dual_solve(t->p, y, &step, &dual);
    t->nodes[at].open = false;
    t->b->cancelled |= d.cancelled;
    t->nodes[at].bound = fmax(t->nodes[at].bound, d.bound);
    if (t->b->cancelled || d.infeasible || t->n + 2 > t->room || !most_divided(t, &d, &layer, &rule)) return;
    for (int32_t side = 0; side < 2; side++) {
        node *x = &t->nodes[t->n++];
        *x = (node){at, layer, rule, side ? MOA_RULE_MUST : MOA_RULE_NO, true, t->nodes[at].bound, step, {0}};
        memcpy(x->y, y, sizeof y);
    }
    t->nodes[at].bound = INFINITY; /* its children stand for it */
}

/* the least bound of what is not replaced by children; *next: the open node that has it, -1: a leaf has it, or none */
static double least_bound(const tree *t, int32_t *next) {
    double least = INFINITY;
    *next = -1;
    for (int32_t i = 0; i < t->n; i++)
        if (t->nodes[i].bound < least) least = t->nodes[i].bound, *next = t->nodes[i].open ? i : -1;
    return least;
}

static moa_status tree_open(tree *t, moa_err *err) {
    const moa_choice *c = t->b->c;
    const size_t rules = (size_t)c->n_layer * (size_t)c->n_rule, units = (size_t)c->n_layer * (size_t)c->n_unit;
    t->room = 2 * t->b->n_node + 1;
    t->c = *c;
    t->allow = malloc(rules);
    t->use = malloc(rules * sizeof *t->use);
    t->nodes = malloc((size_t)t->room * sizeof *t->nodes);
    bool ok = t->allow && t->use && t->nodes;
    for (int i = 0; i <= NODE_STEPS && ok; i++) ok = (t->pick[i] = malloc(units * sizeof **t->pick)) != NULL;
    if (!ok) return moa_fail(err, MOA_E_MEMORY, "no memory for a tree of %d nodes", t->room);
    memcpy(t->allow, c->allow, rules);
    t->c.allow = t->allow;
    return moa_pricer_open(&t->p, &t->c, err);
}

moa_status moa_branch_solve(moa_branch *b, const moa_solve_config *config, moa_err *err) {
    tree t = {.b = b};
    moa_status s = MOA_OK;
    int32_t next = 0;
    MOA_TRY(tree_open(&t, err));
    t.nodes[t.n++] = (node){-1, -1, -1, 0, true, b->bound, b->t, {0}};
    memcpy(t.nodes[0].y, b->y, (size_t)b->c->n_row * sizeof *b->y);
    for (int32_t i = 0; i < b->n_node && next >= 0 && !b->cancelled && b->bound < wanted(&t, config); i++) {
        work_on(&t, next, config);
        b->bound = fmin(b->best, least_bound(&t, &next));
        if (config->report && i % 8 == 0) config->report(config->user, b->best, b->bound);
    }
    b->n_price = t.p->n_price;
out:
    moa_pricer_close(&t.p);
    for (int i = 0; i <= NODE_STEPS; i++) free(t.pick[i]);
    free(t.allow);
    free(t.use);
    free(t.nodes);
    return s;
}
