/* search_count.c -- a bound that counts the memory in whole steps, and with luck the optimum itself.
 *
 * The multipliers' bound lets the memory be split at will. Real rules take whole blocks: with all layers on spans 1/8 and 1 of the length a
 * head more is 7/8 of a head's memory more, and what is left of the budget below that buys nothing, which no multiplier can see.
 *
 *   f(x) = bound + sum_layers rc + sum_k y_k slack_k       rc >= 0: above the layer's cheapest; slack_k >= 0 where the rows are met
 *
 *   point   what a layer can take of the counted rows, as integers, and the least rc it costs: for every pair of rules within the window, and
 *           from its best assignment the units that flip to the other rule while rc stays within the window
 *   state   integers that some layers take together, least rc. Layer by layer:  states' = { s + p },  equal sums keep the least rc
 *   cut     rc + y.slack that can no more be avoided >= window;  rows out of reach of the layers to come
 *
 * At the end the least rc + y.slack of the states that meet the rows is what any choice is above the bound at least; if none is left, the
 * window is. When all rows are counted the least state IS the optimum. The window begins narrow and doubles: states are few (25 after 32
 * layers of 32 heads, 48 rules, 3 rows at a window of 0.17 %), so the first answer is usually had in milliseconds.
 *
 * Counted rows: those whose values are multiples of one step (density; not another length's loss), at most COUNT_MAX, dearest first. The
 * others stay priced: a lower bound all the same. Without a rule limit (or one above 2, whose bound ignores it) a unit stands for a layer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "plans/search_impl.h"

enum { COUNT_MAX = 6, STATE_MAX = 400000, WORK_MAX = 4000000 };
static const double PRICED = 1e-3; /* a row below that share of the dearest one's price has none */

typedef struct state {
    double rc;
    int32_t from; /* the state before, an index of all */
    int32_t by;   /* the point, or rule, that led here */
    int32_t rest; /* of rows of whole steps that are not counted: the sum of their steps */
    int32_t s[COUNT_MAX];
} state;

/* states by their sums; a stage's are consecutive */
typedef struct states {
    state *at; /* owned */
    size_t n, room;
    size_t stage;   /* first of the stage under way */
    uint32_t *slot; /* index + 1 of the stage's states by hash; owned */
    size_t n_slot;  /* power of two */
    int32_t n_row;  /* sums that tell states apart */
    double tie;     /* costs that near are equal */
} states;

typedef struct counter {
    moa_count *m;
    moa_pricer *p;
    const moa_choice *c;
    int32_t n_whole, row[COUNT_MAX];      /* rows of whole steps, dearest first */
    int32_t n_priced, n_row;              /* of them: have a price; are counted now */
    int32_t *value[COUNT_MAX];            /* (n_layer, n_unit, n_rule) in steps, owned */
    int32_t lo[COUNT_MAX], hi[COUNT_MAX]; /* of the sums */
    double price[COUNT_MAX];              /* of a step */
    bool by_layer;                        /* a group is a layer, else a unit */
    int32_t n_group;
    double *floor; /* by_layer: (n_layer) cost of the cheapest pair, owned */
    double window;
    size_t work;
    /* points of the groups, by group; by: i * n_rule + j for a pair, a rule for a unit */
    states points;
    size_t *first;                                 /* (n_group + 1) owned */
    int32_t (*low)[COUNT_MAX], (*high)[COUNT_MAX]; /* (n_group + 1) sums of the groups from here on; owned */
    states inner, outer;
    int32_t *pick; /* (n_layer, n_unit) scratch, owned */
    bool full;     /* the work or the room is used up */
} counter;

/* --- states ------------------------------------------------------------------------------------------------------------------------- */

static size_t hash_of(const int32_t *s, int32_t n) {
    uint64_t h = 0x9E3779B97F4A7C15;
    for (int32_t k = 0; k < n; k++)
        h = (h ^ (uint32_t)s[k]) * 0xD6E8FEB86659FD93, h ^= h >> 32;
    return (size_t)h;
}

static bool grow_slots(states *t) {
    const size_t n = t->n_slot ? 2 * t->n_slot : 256;
    uint32_t *slot = calloc(n, sizeof *slot);
    if (!slot) return false;
    free(t->slot);
    t->slot = slot, t->n_slot = n;
    for (size_t i = t->stage; i < t->n; i++) {
        size_t h = hash_of(t->at[i].s, t->n_row) & (n - 1);
        while (slot[h])
            h = (h + 1) & (n - 1);
        slot[h] = (uint32_t)(i + 1);
    }
    return true;
}

static bool begin_stage(states *t) {
    t->stage = t->n;
    if (t->n_slot == 0) return grow_slots(t);
    memset(t->slot, 0, t->n_slot * sizeof *t->slot);
    return true;
}

/* keeps the cheaper of equal sums, of equal costs the one of less rest; false: no memory */
static bool put(states *t, const state *x) {
    size_t h = hash_of(x->s, t->n_row) & (t->n_slot - 1);
    for (; t->slot[h]; h = (h + 1) & (t->n_slot - 1)) {
        state *there = &t->at[t->slot[h] - 1];
        if (memcmp(there->s, x->s, (size_t)t->n_row * sizeof *x->s) != 0) continue;
        const bool tie = fabs(x->rc - there->rc) <= t->tie;
        if (tie ? x->rest < there->rest : x->rc < there->rc) *there = *x;
        return true;
    }
    if (t->n == t->room) {
        const size_t room = t->room ? 2 * t->room : 256;
        state *at = realloc(t->at, room * sizeof *at);
        if (!at) return false;
        t->at = at, t->room = room;
    }
    t->at[t->n++] = *x;
    t->slot[h] = (uint32_t)t->n;
    return 2 * (t->n - t->stage) < t->n_slot || grow_slots(t);
}

static void states_free(states *t) {
    free(t->at);
    free(t->slot);
}

/* --- rows in whole steps -------------------------------------------------------------------------------------------------------------- */

static bool allowed(const moa_choice *c, int32_t layer, int32_t rule) {
    return c->allow[(size_t)layer * (size_t)c->n_rule + (size_t)rule] != MOA_RULE_NO;
}

static double common(double a, double b, double tiny) { /* Euclid's */
    while (b > tiny) {
        const double rest = fabs(a - b * nearbyint(a / b));
        a = b, b = rest;
    }
    return a;
}

/* the largest step of which all values are multiples; 0: none that is worth counting */
static double step_of(const moa_choice *c, const double *row, double most) {
    double step = 0;
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t u = 0; u < c->n_unit; u++)
            for (int32_t r = 0; r < c->n_rule; r++) {
                if (!allowed(c, l, r)) continue;
                step = common(
                    fabs(row[((size_t)l * (size_t)c->n_unit + (size_t)u) * (size_t)c->n_rule + (size_t)r]),
                    step, 1e-9 * most);
                if (step > 1e-9 * most && step < 1e-5 * most) return 0;
            }
    return step;
}

static double largest(const moa_choice *c, const double *row) {
    double most = 0;
    const size_t n = (size_t)c->n_layer * (size_t)c->n_unit * (size_t)c->n_rule;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs(row[i]));
    return most;
}

static bool whole(const moa_choice *c, const double *row, double step, int32_t *value) {
    for (int32_t l = 0; l < c->n_layer; l++)
        for (int32_t i = 0; i < c->n_unit * c->n_rule; i++) {
            const size_t at = (size_t)l * (size_t)c->n_unit * (size_t)c->n_rule + (size_t)i;
            value[at] = 0;
            if (!allowed(c, l, i % c->n_rule)) continue;
            const double x = row[at] / step;
            if (fabs(x) > 1e6 || fabs(x - nearbyint(x)) > 1e-6) return false;
            value[at] = (int32_t)nearbyint(x);
        }
    return true;
}

/* takes a row if it has whole steps and room is left */
static moa_status take_row(counter *t, int32_t k, moa_err *err) {
    const moa_choice *c = t->c;
    const double most = largest(c, c->row[k]), step = most > 0 ? step_of(c, c->row[k], most) : 0;
    const size_t n = (size_t)c->n_layer * (size_t)c->n_unit * (size_t)c->n_rule;
    if (step <= 0 || t->n_whole == COUNT_MAX || fabs(t->p->hi[k]) / step > 1e9 ||
        fabs(t->p->lo[k]) / step > 1e9)
        return MOA_OK;
    int32_t *value = malloc(n * sizeof *value);
    if (!value) return moa_fail(err, MOA_E_MEMORY, "no memory to count %zu rules", n);
    t->value[t->n_whole] = value;
    if (!whole(c, c->row[k], step, value)) {
        free(value);
        t->value[t->n_whole] = NULL;
        return MOA_OK;
    }
    t->hi[t->n_whole] = (int32_t)floor(t->p->hi[k] / step + 1e-5);
    t->lo[t->n_whole] = (int32_t)ceil(t->p->lo[k] / step - 1e-5);
    t->price[t->n_whole] = t->m->y[k] * step;
    t->row[t->n_whole++] = k;
    return MOA_OK;
}

static moa_status take_rows(counter *t, moa_err *err) {
    const moa_choice *c = t->c;
    bool seen[MOA_ROW_MAX] = {0};
    moa_status s = MOA_OK;
    double dearest = 0;
    for (int32_t i = 0; i < c->n_row && s == MOA_OK; i++) {
        int32_t k = -1;
        for (int32_t j = 0; j < c->n_row; j++)
            if (!seen[j] && (k < 0 || fabs(t->m->y[j]) * t->p->range[j] > fabs(t->m->y[k]) * t->p->range[k]))
                k = j;
        seen[k] = true;
        const double dear = fabs(t->m->y[k]) * t->p->range[k];
        dearest = fmax(dearest, dear);
        s = take_row(t, k, err);
        if (dear > PRICED * dearest) t->n_priced = t->n_whole;
    }
    return s;
}

/* --- points --------------------------------------------------------------------------------------------------------------------------- */

static size_t index_of(const moa_choice *c, int32_t layer, int32_t unit, int32_t rule) {
    return ((size_t)layer * (size_t)c->n_unit + (size_t)unit) * (size_t)c->n_rule + (size_t)rule;
}

static void add_steps(const counter *t, state *x, size_t at, int32_t sign) {
    for (int32_t k = 0; k < t->n_row; k++)
        x->s[k] += sign * t->value[k][at];
    for (int32_t k = t->n_row; k < t->n_whole; k++)
        x->rest += sign * t->value[k][at];
}

static bool spend(counter *t, size_t n) {
    t->work += n;
    t->full |=
        t->work > WORK_MAX || t->outer.n > STATE_MAX || t->points.n > STATE_MAX || t->inner.n > STATE_MAX;
    return !t->full;
}

/* A pair's states: the best assignment, then unit by unit those that also flip it. The last stage is left in t->inner; false: no memory */
static bool pair_states(counter *t, int32_t layer, int32_t i, int32_t j, double rc) {
    const moa_choice *c = t->c;
    const double *a = moa_pricer_costs(t->p, layer, i), *b = moa_pricer_costs(t->p, layer, j);
    states *in = &t->inner;
    state x = {.rc = rc, .from = -1, .by = 0};
    for (int32_t u = 0; u < c->n_unit; u++)
        add_steps(t, &x, index_of(c, layer, u, a[u] <= b[u] ? i : j), 1);
    in->n = 0;
    if (!begin_stage(in) || !put(in, &x)) return false;
    for (int32_t u = 0; u < c->n_unit && i != j; u++) {
        const double more = fabs(a[u] - b[u]);
        const int32_t now = a[u] <= b[u] ? i : j, other = now == i ? j : i;
        const size_t from = in->stage, to = in->n;
        if (!(rc + more < t->window)) continue;
        if (!begin_stage(in)) return false;
        for (size_t k = from; k < to; k++) {
            x = in->at[k];
            x.from = (int32_t)k, x.by = -1;
            if (!put(in, &x)) return false;
            if (!((x.rc += more) < t->window)) continue;
            x.by = u;
            add_steps(t, &x, index_of(c, layer, u, other), 1);
            add_steps(t, &x, index_of(c, layer, u, now), -1);
            if (!put(in, &x)) return false;
        }
        if (!spend(t, 2 * (to - from))) break;
    }
    return true;
}

static double pair_cost(const counter *t, int32_t layer, int32_t i, int32_t j) {
    if (!moa_pricer_pair_ok(t->p, layer, i, j)) return INFINITY;
    return moa_pair_sum(moa_pricer_costs(t->p, layer, i), moa_pricer_costs(t->p, layer, j), t->p->n_pad);
}

/* of a layer's cheapest pair */
static double least_pair(const counter *t, int32_t layer) {
    const int32_t n = t->c->n_rule, one = t->p->limit == 1;
    double least = INFINITY;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = i + !one; j < (one ? i + 1 : n); j++)
            least = fmin(least, pair_cost(t, layer, i, j));
    return least;
}

static bool layer_points(counter *t, int32_t layer) {
    const int32_t n = t->c->n_rule, one = t->p->limit == 1;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = i + !one; j < (one ? i + 1 : n) && !t->full; j++) {
            const double rc = pair_cost(t, layer, i, j) - t->floor[layer];
            if (!(rc < t->window)) continue;
            if (!pair_states(t, layer, i, j, rc)) return false;
            for (size_t k = t->inner.stage; k < t->inner.n; k++) {
                state x = t->inner.at[k];
                x.by = i * n + j;
                if (!put(&t->points, &x)) return false;
            }
        }
    return true;
}

static bool unit_points(counter *t, int32_t group) {
    const moa_choice *c = t->c;
    const int32_t layer = group / c->n_unit, u = group % c->n_unit;
    double floor = INFINITY;
    for (int32_t r = 0; r < c->n_rule; r++)
        floor = fmin(floor, moa_pricer_costs(t->p, layer, r)[u]);
    for (int32_t r = 0; r < c->n_rule; r++) {
        state x = {.rc = moa_pricer_costs(t->p, layer, r)[u] - floor, .by = r};
        if (!(x.rc < t->window)) continue;
        add_steps(t, &x, index_of(c, layer, u, r), 1);
        if (!put(&t->points, &x)) return false;
    }
    return true;
}

/* the points of all groups within the window, and what those from a group on can still take */
static bool make_points(counter *t) {
    t->points.n = 0;
    for (int32_t g = 0; g < t->n_group && !t->full; g++) {
        t->first[g] = t->points.n;
        if (!begin_stage(&t->points)) return false;
        if (!(t->by_layer ? layer_points(t, g) : unit_points(t, g))) return false;
        (void)spend(t, (size_t)t->c->n_rule);
    }
    if (t->full) return true;
    t->first[t->n_group] = t->points.n;
    memset(t->low[t->n_group], 0, sizeof *t->low);
    memset(t->high[t->n_group], 0, sizeof *t->high);
    for (int32_t g = t->n_group; g-- > 0;)
        for (int32_t k = 0; k < t->n_row; k++) {
            int32_t low = INT32_MAX, high = INT32_MIN;
            for (size_t i = t->first[g]; i < t->first[g + 1]; i++) {
                const int32_t x = t->points.at[i].s[k];
                low = x < low ? x : low, high = x > high ? x : high;
            }
            if (low > high) low = high = 0; /* no point: nothing gets past this group anyway */
            t->low[g][k] = t->low[g + 1][k] + low;
            t->high[g][k] = t->high[g + 1][k] + high;
        }
    return true;
}

/* --- the sums ----------------------------------------------------------------------------------------------------------------------------- */

/* the least rc + y.slack that a state can end with before group g; INFINITY: it misses a row */
static double least_end(const counter *t, const state *x, int32_t g) {
    double sum = x->rc;
    for (int32_t k = 0; k < t->n_row; k++) {
        const int32_t low = x->s[k] + t->low[g][k], high = x->s[k] + t->high[g][k];
        if (low > t->hi[k] || high < t->lo[k]) return INFINITY;
        const int32_t slack = t->price[k] > 0 ? t->hi[k] - high : low - t->lo[k];
        if (slack > 0) sum += fabs(t->price[k]) * slack;
    }
    return sum;
}

static bool add_groups(counter *t) {
    states *out = &t->outer;
    const state zero = {.from = -1, .by = -1};
    out->n = 0;
    if (!begin_stage(out) || !put(out, &zero)) return false;
    for (int32_t g = 0; g < t->n_group; g++) {
        const size_t from = out->stage, to = out->n;
        if (!begin_stage(out)) return false;
        for (size_t i = from; i < to; i++) {
            for (size_t j = t->first[g]; j < t->first[g + 1]; j++) {
                const state *p = &t->points.at[j];
                state x = out->at[i];
                if (!((x.rc += p->rc) < t->window)) continue;
                for (int32_t k = 0; k < t->n_row; k++)
                    x.s[k] += p->s[k];
                x.rest += p->rest;
                if (!(least_end(t, &x, g + 1) < t->window)) continue;
                x.from = (int32_t)i, x.by = (int32_t)j;
                if (!put(out, &x)) return false;
            }
            if (!spend(t, t->first[g + 1] - t->first[g])) return true;
        }
    }
    return true;
}

/* --- the choice behind a state ---------------------------------------------------------------------------------------------------------- */

static bool layer_pick(counter *t, int32_t layer, const state *point, int32_t *pick) {
    const int32_t n = t->c->n_rule, i = point->by / n, j = point->by % n;
    const double *a = moa_pricer_costs(t->p, layer, i), *b = moa_pricer_costs(t->p, layer, j);
    const states *in = &t->inner;
    size_t at = SIZE_MAX;
    t->full = false, t->work = 0;
    if (!pair_states(t, layer, i, j, pair_cost(t, layer, i, j) - t->floor[layer])) return false;
    for (size_t k = in->stage; k < in->n; k++)
        if (memcmp(in->at[k].s, point->s, (size_t)t->n_row * sizeof *point->s) == 0) at = k;
    if (at == SIZE_MAX) return false;
    for (int32_t u = 0; u < t->c->n_unit; u++)
        pick[u] = a[u] <= b[u] ? i : j;
    for (const state *x = &in->at[at]; x->from >= 0; x = &in->at[x->from])
        if (x->by >= 0) pick[x->by] = pick[x->by] == i ? j : i;
    return true;
}

static bool rebuild(counter *t, size_t end, int32_t *pick) {
    int32_t k = (int32_t)end;
    for (int32_t g = t->n_group; g-- > 0; k = t->outer.at[k].from) {
        const state *point = &t->points.at[t->outer.at[k].by];
        if (!t->by_layer)
            pick[g] = point->by;
        else if (!layer_pick(t, g, point, pick + (size_t)g * (size_t)t->c->n_unit))
            return false;
    }
    return true;
}

/* --- the ladder of windows ----------------------------------------------------------------------------------------------------------- */

/* All sums within the window. *above: what any choice is above the bound at least. False: no memory. */
static bool count_once(counter *t, double *above, bool *done) {
    size_t end = SIZE_MAX;
    *done = false, *above = t->window;
    t->full = false;
    if (!make_points(t)) return false;
    if (t->full) return true;
    if (!add_groups(t)) return false;
    if (t->full) return true;
    *done = true;
    for (size_t i = t->outer.stage; i < t->outer.n; i++) {
        const double x = least_end(t, &t->outer.at[i], t->n_group);
        if (x < *above) *above = x, end = i;
    }
    if (end == SIZE_MAX) return true;
    moa_count *m = t->m;
    const size_t work = t->work;
    int32_t *pick = t->pick;
    if (!rebuild(t, end, pick)) return false;
    t->work = work;
    const double f = moa_choice_value(t->c, pick, NULL);
    if (f < m->best && moa_choice_ok(t->c, pick)) {
        m->best = f;
        memcpy(m->pick, pick, (size_t)t->c->n_layer * (size_t)t->c->n_unit * sizeof *pick);
    }
    return true;
}

static moa_status counter_open(counter *t, moa_err *err) {
    const moa_choice *c = t->c;
    t->by_layer = t->p->limit == 1 || t->p->limit == 2;
    t->n_group = t->by_layer ? c->n_layer : c->n_layer * c->n_unit;
    const size_t n = (size_t)t->n_group + 1;
    t->first = calloc(n, sizeof *t->first);
    t->low = calloc(n, sizeof *t->low);
    t->high = calloc(n, sizeof *t->high);
    t->pick = malloc((size_t)c->n_layer * (size_t)c->n_unit * sizeof *t->pick);
    bool ok = t->first && t->low && t->high && t->pick;
    if (ok && t->by_layer) ok = (t->floor = malloc((size_t)c->n_layer * sizeof *t->floor)) != NULL;
    if (!ok) return moa_fail(err, MOA_E_MEMORY, "no memory to count the sums of %d groups", t->n_group);
    for (int32_t l = 0; l < c->n_layer && t->by_layer; l++)
        t->floor[l] = least_pair(t, l);
    return take_rows(t, err);
}

static void counter_close(counter *t) {
    states_free(&t->points);
    states_free(&t->inner);
    states_free(&t->outer);
    for (int k = 0; k < COUNT_MAX; k++)
        free(t->value[k]);
    free(t->first);
    free(t->low);
    free(t->high);
    free(t->pick);
    free(t->floor);
}

/* The windows, narrow to wide. */
static moa_status climb(counter *t, double before, const moa_solve_config *config, moa_err *err) {
    moa_count *m = t->m;
    const double size = fmax(fabs(before), 1e-9 * t->p->range_loss);
    const double least = fmax(config->gap, 5e-5) * size,
                 most = m->best < INFINITY ? m->best - before : .02 * size;
    t->work = 0, m->too_wide = 0;
    t->points.n_row = t->inner.n_row = t->outer.n_row = t->n_row;
    t->points.tie = t->inner.tie = t->outer.tie = 1e-13 * size;
    for (double window = least; !m->cancelled; window *= 2) {
        double above;
        bool done;
        m->cancelled = config->cancelled && config->cancelled(config->user);
        t->window = fmin(window, most);
        if (!count_once(t, &above, &done))
            return moa_fail(err, MOA_E_MEMORY, "no memory for %zu sums", t->outer.n);
        if (!done) m->too_wide = t->window;
        if (!done) break;
        m->bound = fmax(m->bound, before + above);
        /* all that could be better was looked at, or the least of all was met */
        m->exact =
            m->best < INFINITY && (above >= t->window ? window >= most : m->best <= m->bound + 1e-12 * size);
        if (above < t->window || window >= most || moa_solve_gap(m->best, m->bound) <= config->gap) break;
    }
    return MOA_OK;
}

moa_status moa_count_solve(moa_count *m, const moa_solve_config *config, moa_err *err) {
    counter t = {.m = m, .p = m->pricer, .c = m->pricer->c};
    moa_status s = MOA_OK;
    const double before = m->bound;
    MOA_TRY(counter_open(&t, err));
    t.n_row = t.n_priced;
    if (t.n_row > 0) MOA_TRY(climb(&t, before, config, err));
    /* the least of the priced rows' sums may miss a row without a price */
    const bool missed =
        m->too_wide == 0 && !m->exact && !m->cancelled && moa_solve_gap(m->best, m->bound) > config->gap;
    t.n_row = t.n_whole;
    if (missed && t.n_whole > t.n_priced) MOA_TRY(climb(&t, before, config, err));
    if (m->bound > m->best) m->bound = m->best;
out:
    counter_close(&t);
    return s;
}
