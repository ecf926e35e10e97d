/* search_primal.c -- from the best multipliers to a choice.
 *
 *   group    what the rows alone couple: a layer under a rule limit, else a unit
 *   column   one choice for a whole group; its reduced cost rc = priced cost - the group's least, >= 0
 *   f(x) = bound + sum rc + sum y.slack      slack >= 0 where the rows are met: all that can be won is rc and slack
 *
 * Kept: each group's columns of least rc: under a rule limit rule sets near the best, and from each the assignments in which some units
 * take their second-best rule. Search among them: single moves, pairs of moves (sorted by rc, cut off where rc alone exceeds what can be
 * won), kicks of a few groups; rows not met cost more than their multipliers. Then a depth-first search over the groups with the same
 * cut-off: when it ends, and no column below the cut-off was left out, the best choice is proven. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plans/search_impl.h"

enum { COLUMN_ALL = 8192, UNIT_ALL = 100000, COLUMN_LEAST = 160, UNIT_LEAST = 12, COLUMN_MOST = 2048, MOVE_MAX = 3000, SET_MAX = 16, STALE_MAX = 300 };

typedef struct column {
    double rc, f;
    double a[MOA_ROW_MAX];
    int32_t pick; /* place of its assignment in pool.picks */
} column;

typedef struct move {
    double rc; /* change of the reduced cost */
    int32_t group, column;
} move;

typedef struct pool {
    moa_pricer *p;
    const double *y;
    int32_t n_group, n_unit; /* units of a group */
    int32_t per_group;       /* columns kept for each */
    int32_t *first;          /* (n_group + 1) columns of each, by rc */
    column *columns;
    size_t n_column, column_room;
    int32_t *picks; /* (n_pick, n_unit); more than columns: those of dropped ones stay */
    size_t n_pick, pick_room;
    double complete; /* every column with rc below this is there */
    /* the search */
    int32_t *at, *best_at; /* (n_group) column chosen */
    double f, row[MOA_ROW_MAX], penalty[MOA_ROW_MAX];
    double best;           /* loss of best_at; INFINITY: none */
    move *moves;
    double *move_a[MOA_ROW_MAX], *move_f; /* (MOVE_MAX) changes, by move */
    int32_t n_move;
    double proven, gap;    /* the search ends at this gap from it */
    uint64_t random, work, work_max;
} pool;

static void pool_free(pool *q) {
    free(q->first);
    free(q->columns);
    free(q->picks);
    free(q->at);
    free(q->best_at);
    free(q->moves);
    free(q->move_f);
    for (int k = 0; k < MOA_ROW_MAX; k++) free(q->move_a[k]);
}

/* --- columns ---------------------------------------------------------------------------------------------------------------------- */

typedef struct maker {
    pool *q;
    int32_t layer;
    double limit;   /* rc up to which columns are made */
    int32_t n;      /* made so far */
    bool keep, full; /* write them down, or only count; the cap was reached */
    int32_t *pick;  /* (n_unit) under way */
    /* of the rule set under way, by rising `more` */
    int32_t *unit, *second;
    double *more; /* cost of the second-best rule above the best */
    int32_t n_flip;
} maker;

static bool pool_room(pool *q) {
    if (q->n_column == q->column_room) {
        const size_t room = q->column_room ? 2 * q->column_room : 1024;
        column *columns = realloc(q->columns, room * sizeof *columns);
        if (!columns) return false;
        q->columns = columns, q->column_room = room;
    }
    if (q->n_pick == q->pick_room) {
        const size_t room = q->pick_room ? 2 * q->pick_room : 1024;
        int32_t *picks = realloc(q->picks, room * (size_t)q->n_unit * sizeof *picks);
        if (!picks) return false;
        q->picks = picks, q->pick_room = room;
    }
    return true;
}

static bool put_column(pool *q, int32_t unit0, const int32_t *pick, double rc) {
    const moa_choice *c = q->p->c;
    if (!pool_room(q)) return false;
    column *to = &q->columns[q->n_column];
    *to = (column){.rc = rc, .pick = (int32_t)q->n_pick};
    memcpy(q->picks + q->n_pick++ * (size_t)q->n_unit, pick, (size_t)q->n_unit * sizeof *pick);
    for (int32_t u = 0; u < q->n_unit; u++) {
        const size_t i = (size_t)(unit0 + u) * (size_t)c->n_rule + (size_t)pick[u];
        to->f += c->loss[i];
        for (int32_t k = 0; k < c->n_row; k++) to->a[k] += c->row[k][i];
    }
    q->n_column++;
    return true;
}

/* this assignment, and those that flip some of the units from `from` on */
static bool emit(maker *m, double rc, int32_t from) {
    if (m->n >= 4 * m->q->per_group) {
        m->full = true;
        return true;
    }
    m->n++;
    if (m->keep && !put_column(m->q, m->layer * m->q->p->c->n_unit, m->pick, rc)) return false;
    for (int32_t i = from; i < m->n_flip && rc + m->more[i] <= m->limit && !m->full; i++) {
        const int32_t u = m->unit[i], before = m->pick[u];
        m->pick[u] = m->second[i];
        const bool ok = emit(m, rc + m->more[i], i + 1);
        m->pick[u] = before;
        if (!ok) return false;
    }
    return true;
}

/* all columns of a rule set; its best assignment has reduced cost rc */
static bool emit_set(maker *m, const int32_t *set, int32_t n_set, double rc) {
    const moa_pricer *p = m->q->p;
    m->n_flip = 0;
    for (int32_t u = 0; u < p->c->n_unit; u++) {
        int32_t best = set[0], second = -1;
        for (int32_t i = 1; i < n_set; i++) {
            const double x = moa_pricer_costs(p, m->layer, set[i])[u];
            if (x < moa_pricer_costs(p, m->layer, best)[u]) second = best, best = set[i];
            else if (second < 0 || x < moa_pricer_costs(p, m->layer, second)[u]) second = set[i];
        }
        m->pick[u] = best;
        if (second < 0) continue;
        const double more = moa_pricer_costs(p, m->layer, second)[u] - moa_pricer_costs(p, m->layer, best)[u];
        const size_t b = ((size_t)m->layer * (size_t)p->c->n_unit + (size_t)u) * (size_t)p->c->n_rule;
        bool same = p->c->loss[b + (size_t)best] == p->c->loss[b + (size_t)second];
        for (int32_t k = 0; k < p->c->n_row && same; k++)
            same = p->c->row[k][b + (size_t)best] == p->c->row[k][b + (size_t)second];
        if (same || rc + more > m->limit) continue;
        int32_t i = m->n_flip++;
        for (; i > 0 && m->more[i - 1] > more; i--)
            m->more[i] = m->more[i - 1], m->unit[i] = m->unit[i - 1], m->second[i] = m->second[i - 1];
        m->more[i] = more, m->unit[i] = u, m->second[i] = second;
    }
    return emit(m, rc, 0);
}

typedef struct rule_set {
    double rc;
    int32_t rule[SET_MAX], n;
} rule_set;

static int by_rc_set(const void *a, const void *b) {
    const rule_set *x = a, *y = b;
    return x->rc != y->rc ? (x->rc > y->rc) - (x->rc < y->rc) : memcmp(x->rule, y->rule, sizeof x->rule);
}

/* a pair made larger: the rule that saves most is added until the limit is reached */
static void extend_set(const pool *q, int32_t layer, rule_set *s, double *least, int32_t limit, double floor) {
    const moa_pricer *p = q->p;
    const uint8_t *allow = p->c->allow + (size_t)layer * (size_t)p->c->n_rule;
    for (int32_t u = 0; u < p->n_pad; u++) {
        least[u] = moa_pricer_costs(p, layer, s->rule[0])[u];
        for (int32_t i = 1; i < s->n; i++) least[u] = fmin(least[u], moa_pricer_costs(p, layer, s->rule[i])[u]);
    }
    while (s->n < limit && s->n < SET_MAX) {
        double best = INFINITY;
        int32_t rule = -1;
        bool must = false;
        for (int32_t r = 0; r < p->c->n_rule; r++) {
            bool in = allow[r] == MOA_RULE_NO;
            for (int32_t i = 0; i < s->n; i++) in |= s->rule[i] == r;
            if (in || (must && allow[r] != MOA_RULE_MUST)) continue;
            const double x = moa_pair_sum(least, moa_pricer_costs(p, layer, r), p->n_pad);
            if (x < best || (allow[r] == MOA_RULE_MUST && !must)) best = x, rule = r;
            must |= allow[r] == MOA_RULE_MUST;
        }
        if (rule < 0) break;
        s->rule[s->n++] = rule;
        s->rc = best - floor;
        for (int32_t u = 0; u < p->n_pad; u++) least[u] = fmin(least[u], moa_pricer_costs(p, layer, rule)[u]);
    }
}

/* The rule sets of a layer by reduced cost. floor: the layer's least cost in the bound. Returns how many; *sets (room for all pairs). */
static int32_t layer_sets(const pool *q, int32_t layer, rule_set *sets, double *scratch) {
    const moa_pricer *p = q->p;
    const int32_t n_rule = p->c->n_rule;
    int32_t n = 0;
    double floor = 0, best = INFINITY;
    for (int32_t u = 0; u < p->c->n_unit; u++) {
        double least = INFINITY;
        for (int32_t r = 0; r < n_rule; r++) least = fmin(least, moa_pricer_costs(p, layer, r)[u]);
        floor += least; /* what the bound has where no rule set is exact */
    }
    for (int32_t i = 0; i < n_rule; i++)
        for (int32_t j = p->limit == 1 ? i : i + 1; j < (p->limit == 1 ? i + 1 : n_rule); j++) {
            if (p->limit <= 2 ? !moa_pricer_pair_ok(p, layer, i, j)
                              : p->c->allow[(size_t)layer * (size_t)n_rule + (size_t)i] == MOA_RULE_NO ||
                                    p->c->allow[(size_t)layer * (size_t)n_rule + (size_t)j] == MOA_RULE_NO)
                continue;
            rule_set *s = &sets[n++];
            *s = (rule_set){.rule = {i, j}, .n = p->limit == 1 ? 1 : 2};
            s->rc = moa_pair_sum(moa_pricer_costs(p, layer, i), moa_pricer_costs(p, layer, j), p->n_pad);
            best = fmin(best, s->rc);
        }
    for (int32_t i = 0; i < n; i++) sets[i].rc -= p->limit <= 2 ? best : floor;
    qsort(sets, (size_t)n, sizeof *sets, by_rc_set);
    if (p->limit > 2) {
        if (n > 32) n = 32;
        for (int32_t i = 0; i < n; i++) extend_set(q, layer, &sets[i], scratch, p->limit, floor);
        qsort(sets, (size_t)n, sizeof *sets, by_rc_set);
    }
    return n;
}

static int by_rc_column(const void *a, const void *b) {
    const column *x = a, *y = b;
    return x->rc != y->rc ? (x->rc > y->rc) - (x->rc < y->rc) : (x->pick > y->pick) - (x->pick < y->pick);
}

static bool make_columns(maker *m, const rule_set *sets, int32_t n_set, double limit, bool keep) {
    m->limit = limit, m->keep = keep, m->n = 0, m->full = false;
    for (int32_t i = 0; i < n_set && sets[i].rc <= limit && !m->full; i++)
        if (!emit_set(m, sets[i].rule, sets[i].n, sets[i].rc)) return false;
    return true;
}

/* sorts the columns that a group got, keeps the best of them, and notes below which rc none is missing */
static void close_group(pool *q, int32_t group, double complete) {
    const size_t from = (size_t)q->first[group];
    size_t n = q->n_column - from;
    qsort(q->columns + from, n, sizeof *q->columns, by_rc_column);
    if (n > (size_t)q->per_group) {
        complete = fmin(complete, q->columns[from + (size_t)q->per_group].rc);
        n = (size_t)q->per_group;
    }
    q->complete = fmin(q->complete, complete);
    q->first[group + 1] = (int32_t)(from + n);
}

/* A layer's columns: the limit on rc is widened until there are enough, then halved between too few and too many. */
static bool fill_layer(pool *q, maker *m, rule_set *sets, double *scratch) {
    const int32_t n_set = layer_sets(q, m->layer, sets, scratch);
    double low = 0, high = 1e-7 * (q->p->range_loss + 1e-300), all = q->p->range_loss * 4 + 1e-300;
    if (n_set == 0) return true;
    if (sets[0].rc > 0) low = sets[0].rc; /* greedy sets lie above the bound's least cost */
    high += low, all += low;
    while (high < all) {
        if (!make_columns(m, sets, n_set, high, false)) return false;
        if (m->full || m->n >= q->per_group) break;
        low = high;
        high = low + 2 * (high - (sets[0].rc > 0 ? sets[0].rc : 0));
    }
    for (int i = 0; i < 24 && m->full; i++) {
        const double middle = (low + high) / 2;
        if (!make_columns(m, sets, n_set, middle, false)) return false;
        if (m->full || m->n >= q->per_group) high = middle;
        else low = middle;
    }
    if (!make_columns(m, sets, n_set, high, true)) return false;
    close_group(q, m->layer, q->p->limit > 2 ? 0 : m->full ? low : high >= all ? INFINITY : high);
    return true;
}

static moa_status fill_layers(pool *q, moa_err *err) {
    const moa_choice *c = q->p->c;
    const size_t n_pair = (size_t)c->n_rule * (size_t)(c->n_rule + 1) / 2, n_unit = (size_t)c->n_unit;
    maker m = {.q = q};
    rule_set *sets = malloc(n_pair * sizeof *sets);
    double *scratch = malloc((size_t)q->p->n_pad * sizeof *scratch);
    m.pick = malloc(n_unit * sizeof *m.pick);
    m.unit = malloc(n_unit * sizeof *m.unit);
    m.second = malloc(n_unit * sizeof *m.second);
    m.more = malloc(n_unit * sizeof *m.more);
    bool ok = sets && scratch && m.pick && m.unit && m.second && m.more;
    for (m.layer = 0; ok && m.layer < c->n_layer; m.layer++) {
        q->n_column = (size_t)q->first[m.layer]; /* over what close_group dropped */
        ok = fill_layer(q, &m, sets, scratch);
    }
    free(sets);
    free(scratch);
    free(m.pick);
    free(m.unit);
    free(m.second);
    free(m.more);
    return ok ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the columns of %d layers", c->n_layer);
}

static moa_status fill_units(pool *q, moa_err *err) {
    const moa_choice *c = q->p->c;
    for (int32_t g = 0; g < q->n_group; g++) {
        const int32_t layer = g / c->n_unit, u = g % c->n_unit;
        double least = INFINITY;
        for (int32_t r = 0; r < c->n_rule; r++) least = fmin(least, moa_pricer_costs(q->p, layer, r)[u]);
        for (int32_t r = 0; r < c->n_rule; r++) {
            const double x = moa_pricer_costs(q->p, layer, r)[u];
            if (x < INFINITY && !put_column(q, g, &r, x - least))
                return moa_fail(err, MOA_E_MEMORY, "no memory for the columns of %d units", q->n_group);
        }
        close_group(q, g, INFINITY);
    }
    return MOA_OK;
}

static moa_status pool_open(pool *q, moa_primal *from, moa_err *err) {
    const moa_choice *c = from->pricer->c;
    q->p = from->pricer, q->y = from->y, q->best = INFINITY, q->complete = INFINITY;
    q->n_group = q->p->limit > 0 ? c->n_layer : c->n_layer * c->n_unit;
    q->n_unit = q->p->limit > 0 ? c->n_unit : 1;
    q->per_group = (q->p->limit > 0 ? COLUMN_ALL : UNIT_ALL) / q->n_group;
    const int32_t least_kept = q->p->limit > 0 ? COLUMN_LEAST : UNIT_LEAST;
    if (q->per_group < least_kept) q->per_group = least_kept;
    if (q->per_group > COLUMN_MOST) q->per_group = COLUMN_MOST;
    const size_t n = (size_t)q->n_group;
    q->first = calloc(n + 1, sizeof *q->first);
    q->at = calloc(n, sizeof *q->at);
    q->best_at = calloc(n, sizeof *q->best_at);
    bool ok = q->first && q->at && q->best_at && (q->move_f = malloc(MOVE_MAX * sizeof *q->move_f));
    for (int32_t k = 0; ok && k < c->n_row; k++) ok = (q->move_a[k] = malloc(MOVE_MAX * sizeof(double))) != NULL;
    if (!ok) return moa_fail(err, MOA_E_MEMORY, "no memory for a search over %d groups", q->n_group);
    const moa_status s = q->p->limit > 0 ? fill_layers(q, err) : fill_units(q, err);
    if (s != MOA_OK) return s;
    q->n_column = (size_t)q->first[q->n_group];
    q->moves = malloc((q->n_column + 1) * sizeof *q->moves);
    return q->moves ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the moves among %zu columns", q->n_column);
}

/* --- moves ------------------------------------------------------------------------------------------------------------------------ */

static double missed(const pool *q, const double *row) {
    double sum = 0;
    for (int32_t k = 0; k < q->p->c->n_row; k++)
        sum += q->penalty[k] * (fmax(0, row[k] - q->p->hi[k]) + fmax(0, q->p->lo[k] - row[k]));
    return sum;
}

/* f + missed - (bound + sum of rc): what a choice of no reduced cost could win */
static double to_win(const pool *q) {
    double sum = missed(q, q->row);
    for (int32_t k = 0; k < q->p->c->n_row; k++)
        sum += q->y[k] * ((q->y[k] > 0 ? q->p->hi[k] : q->p->lo[k]) - q->row[k]);
    return sum;
}

static void sum_up(pool *q) {
    q->f = 0;
    memset(q->row, 0, sizeof q->row);
    for (int32_t g = 0; g < q->n_group; g++) {
        const column *x = &q->columns[q->at[g]];
        q->f += x->f;
        for (int32_t k = 0; k < q->p->c->n_row; k++) q->row[k] += x->a[k];
    }
}

static void note_best(pool *q) {
    if (q->f >= q->best || !moa_rows_ok(q->p, q->row)) return;
    q->best = q->f;
    memcpy(q->best_at, q->at, (size_t)q->n_group * sizeof *q->at);
}

static void apply(pool *q, const move *m) {
    const column *from = &q->columns[q->at[m->group]], *to = &q->columns[m->column];
    q->f += to->f - from->f;
    for (int32_t k = 0; k < q->p->c->n_row; k++) q->row[k] += to->a[k] - from->a[k];
    q->at[m->group] = m->column;
}

static int by_rc_move(const void *a, const void *b) {
    const move *x = a, *y = b;
    return x->rc != y->rc ? (x->rc > y->rc) - (x->rc < y->rc) : (x->column > y->column) - (x->column < y->column);
}

/* all single moves that could be part of an improvement, by rc */
static void list_moves(pool *q, double win) {
    double freed[2] = {0}; /* most that one move can free, twice */
    int32_t n = 0;
    for (int32_t g = 0; g < q->n_group; g++) {
        const double rc = q->columns[q->at[g]].rc;
        if (rc > freed[0]) freed[1] = freed[0], freed[0] = rc;
        else if (rc > freed[1]) freed[1] = rc;
    }
    for (int32_t g = 0; g < q->n_group; g++) {
        const double now = q->columns[q->at[g]].rc;
        for (int32_t i = q->first[g]; i < q->first[g + 1]; i++) {
            const double rc = q->columns[i].rc - now;
            if (rc > win + freed[0]) break; /* columns are sorted */
            if (i != q->at[g]) q->moves[n++] = (move){rc, g, i};
        }
    }
    qsort(q->moves, (size_t)n, sizeof *q->moves, by_rc_move);
    q->n_move = n < MOVE_MAX ? n : MOVE_MAX;
    for (int32_t m = 0; m < q->n_move; m++) {
        const column *from = &q->columns[q->at[q->moves[m].group]], *to = &q->columns[q->moves[m].column];
        q->move_f[m] = to->f - from->f;
        for (int32_t k = 0; k < q->p->c->n_row; k++) q->move_a[k][m] = to->a[k] - from->a[k];
    }
    q->work += (uint64_t)n * 2;
}

/* Moves j in [from, to) after the sums `f` and `row`: the best value, its move in *best_j (group other than `not`); -1: none below `than` */
static double best_move(const pool *q, double f, const double *row, int32_t from, int32_t to, int32_t not, double than, int32_t *best_j) {
    enum { PART = 128 };
    double value[PART];
    const int32_t n_row = q->p->c->n_row;
    *best_j = -1;
    for (int32_t at = from; at < to; at += PART) {
        const int32_t n = to - at < PART ? to - at : PART;
        for (int32_t j = 0; j < n; j++) value[j] = f + q->move_f[at + j];
        for (int32_t k = 0; k < n_row; k++) {
            const double over = row[k] - q->p->hi[k], under = q->p->lo[k] - row[k], weight = q->penalty[k];
            const double *a = q->move_a[k] + at;
            for (int32_t j = 0; j < n; j++) {
                const double x = over + a[j], z = under - a[j], m = x > z ? x : z;
                value[j] += weight * (m > 0 ? m : 0);
            }
        }
        for (int32_t j = 0; j < n; j++)
            if (value[j] < than && q->moves[at + j].group != not) than = value[j], *best_j = at + j;
    }
    return than;
}

/* the best single move of all columns; false: none below `than` */
static bool best_single(pool *q, double than, move *best) {
    const int32_t n_row = q->p->c->n_row;
    const double before = than;
    for (int32_t g = 0; g < q->n_group; g++) {
        const column *from = &q->columns[q->at[g]];
        double base[MOA_ROW_MAX];
        for (int32_t k = 0; k < n_row; k++) base[k] = q->row[k] - from->a[k];
        for (int32_t i = q->first[g]; i < q->first[g + 1]; i++) {
            const column *x = &q->columns[i];
            double value = q->f - from->f + x->f;
            for (int32_t k = 0; k < n_row && value < than; k++) {
                const double a = base[k] + x->a[k];
                if (a > q->p->hi[k]) value += q->penalty[k] * (a - q->p->hi[k]);
                else if (a < q->p->lo[k]) value += q->penalty[k] * (q->p->lo[k] - a);
            }
            if (value < than) than = value, *best = (move){0, g, i};
        }
    }
    q->work += q->n_column;
    return than < before;
}

/* one improving move or pair of moves; false: there is none */
static bool improve(pool *q) {
    const double now = q->f + missed(q, q->row), win = to_win(q), least = now - 1e-12 * (fabs(now) + q->p->range_loss);
    int32_t j;
    move single = {0};
    if (best_single(q, least, &single)) {
        apply(q, &single);
        return true;
    }
    list_moves(q, win);
    for (int32_t i = 0, to = q->n_move; i < q->n_move; i++) {
        double row[MOA_ROW_MAX];
        while (to > i + 1 && q->moves[i].rc + q->moves[to - 1].rc >= win) to--;
        if (to <= i + 1) break;
        for (int32_t k = 0; k < q->p->c->n_row; k++) row[k] = q->row[k] + q->move_a[k][i];
        (void)best_move(q, q->f + q->move_f[i], row, i + 1, to, q->moves[i].group, least, &j);
        q->work += (uint64_t)(to - i);
        if (j < 0) {
            if (q->work > q->work_max) return false;
            continue;
        }
        const move a = q->moves[i], b = q->moves[j];
        apply(q, &a);
        apply(q, &b);
        return true;
    }
    return false;
}

static uint64_t draw(pool *q) { /* xorshift64* */
    q->random ^= q->random >> 12;
    q->random ^= q->random << 25;
    q->random ^= q->random >> 27;
    return q->random * 0x2545F4914F6CDD1D;
}

static void descend(pool *q) {
    while (q->work <= q->work_max && improve(q)) {
        note_best(q);
        if (moa_solve_gap(q->best, q->proven) <= q->gap) break;
    }
    sum_up(q); /* rounding of many moves */
    note_best(q);
}

static void kick(pool *q) {
    const int32_t n = 2 + (int32_t)(draw(q) >> 33) % 3;
    for (int32_t i = 0; i < n; i++) {
        const int32_t g = (int32_t)((draw(q) >> 33) % (uint64_t)q->n_group), count = q->first[g + 1] - q->first[g];
        if (count < 2) continue;
        const int32_t among = count < 12 ? count : 12;
        const move m = {0, g, q->first[g] + (int32_t)((draw(q) >> 33) % (uint64_t)among)};
        apply(q, &m);
    }
}

static bool stop(const pool *q, moa_primal *p, const moa_solve_config *c) {
    if (c->cancelled && c->cancelled(c->user)) p->cancelled = true;
    const double best = fmin(q->best, p->best);
    return p->cancelled || q->work > q->work_max || (best < INFINITY && moa_solve_gap(best, p->proven) <= c->gap);
}

static void begin(pool *q, moa_primal *p, const moa_solve_config *config) {
    const double typical = q->p->range_loss > 0 ? q->p->range_loss : 1;
    for (int32_t k = 0; k < q->p->c->n_row; k++)
        q->penalty[k] = 2 * fabs(q->y[k]) + (q->p->range[k] > 0 ? .2 * typical / q->p->range[k] : 0);
    for (int32_t g = 0; g < q->n_group; g++) {
        q->at[g] = q->first[g];
        for (int32_t i = q->first[g]; i < q->first[g + 1] && p->start && q->n_unit == 1; i++)
            if (q->picks[q->columns[i].pick] == p->start[g]) q->at[g] = i;
    }
    sum_up(q);
    note_best(q);
    descend(q);
    for (int i = 0; i < 8 && q->best == INFINITY && !stop(q, p, config); i++) { /* not met yet: make that dearer */
        for (int32_t k = 0; k < q->p->c->n_row; k++) q->penalty[k] *= 4;
        descend(q);
    }
}

static void go_on(pool *q, moa_primal *p, const moa_solve_config *config) {
    int stale = 0;
    for (int i = 1; stale < STALE_MAX && !stop(q, p, config); i++) {
        const double before = q->best;
        if (q->best < INFINITY) memcpy(q->at, q->best_at, (size_t)q->n_group * sizeof *q->at);
        sum_up(q);
        kick(q);
        descend(q);
        stale = q->best < before ? 0 : stale + 1;
        if (config->report && i % 16 == 0) config->report(config->user, fmin(q->best, p->best), p->proven);
    }
}

/* --- the exact end ------------------------------------------------------------------------------------------------------------------ */

typedef struct closer {
    pool *q;
    double bound, than; /* only what is below is looked for */
    const int32_t *order; /* (n_group) widest choice last */
    double *low, *high;   /* (n_group + 1, n_row) least and largest row sums of the groups from here on */
    int64_t nodes;
} closer;

static bool reachable(const closer *c, int32_t depth, const double *row) {
    const int32_t n_row = c->q->p->c->n_row;
    for (int32_t k = 0; k < n_row; k++) {
        const double slack = 1e-10 * (c->q->p->range[k] + fabs(c->q->p->hi[k]));
        if (row[k] + c->low[(size_t)depth * (size_t)n_row + (size_t)k] > c->q->p->hi[k] + slack ||
            row[k] + c->high[(size_t)depth * (size_t)n_row + (size_t)k] < c->q->p->lo[k] - slack)
            return false;
    }
    return true;
}

static void dive(closer *c, int32_t depth, double rc, double f, const double *row) {
    pool *q = c->q;
    if (c->nodes-- <= 0 || !reachable(c, depth, row)) return;
    if (depth == q->n_group) {
        if (f >= c->than) return;
        c->than = q->best = f;
        memcpy(q->best_at, q->at, (size_t)q->n_group * sizeof *q->at);
        return;
    }
    const int32_t g = c->order[depth];
    for (int32_t i = q->first[g]; i < q->first[g + 1] && c->nodes > 0; i++) {
        const column *x = &q->columns[i];
        double next[MOA_ROW_MAX];
        if (c->bound + rc + x->rc >= c->than) break;
        for (int32_t k = 0; k < q->p->c->n_row; k++) next[k] = row[k] + x->a[k];
        q->at[g] = i;
        dive(c, depth + 1, rc + x->rc, f + x->f, next);
    }
}

/* columns of a group that could be in a better choice */
static int32_t live(const pool *q, int32_t g, double win) {
    int32_t n = 0;
    while (q->first[g] + n < q->first[g + 1] && q->columns[q->first[g] + n].rc < win) n++;
    return n;
}

static moa_status close_search(pool *q, moa_primal *p, int64_t nodes, moa_err *err) {
    const int32_t n_row = q->p->c->n_row;
    const size_t n = (size_t)q->n_group;
    closer c = {.q = q, .bound = p->bound, .than = fmin(q->best, p->best), .nodes = nodes};
    int32_t *order = malloc(n * sizeof *order);
    c.low = calloc((n + 1) * (size_t)(n_row + 1), sizeof *c.low);
    c.high = calloc((n + 1) * (size_t)(n_row + 1), sizeof *c.high);
    if (order && c.low && c.high) {
        const double win = c.than - p->bound;
        for (size_t g = 0; g < n; g++) { /* by the number of live columns, few first */
            const int32_t count = live(q, (int32_t)g, win);
            size_t i = g;
            for (; i > 0 && live(q, order[i - 1], win) > count; i--) order[i] = order[i - 1];
            order[i] = (int32_t)g;
        }
        c.order = order;
        for (size_t d = n; d-- > 0;)
            for (int32_t k = 0; k < n_row; k++) {
                double low = INFINITY, high = -INFINITY;
                for (int32_t i = q->first[order[d]]; i < q->first[order[d] + 1]; i++) {
                    low = fmin(low, q->columns[i].a[k]);
                    high = fmax(high, q->columns[i].a[k]);
                }
                c.low[d * (size_t)n_row + (size_t)k] = c.low[(d + 1) * (size_t)n_row + (size_t)k] + low;
                c.high[d * (size_t)n_row + (size_t)k] = c.high[(d + 1) * (size_t)n_row + (size_t)k] + high;
            }
        const double zero[MOA_ROW_MAX] = {0};
        dive(&c, 0, 0, 0, zero);
        p->exact = c.nodes > 0 && c.than - p->bound <= q->complete;
    }
    const bool ok = order && c.low && c.high;
    free(order);
    free(c.low);
    free(c.high);
    return ok ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory to close a search over %d groups", q->n_group);
}

moa_status moa_primal_solve(moa_primal *p, const moa_solve_config *config, moa_err *err) {
    pool q = {.random = config->seed * 0x9E3779B97F4A7C15 + 0x123456789ABCDEF};
    moa_status s = MOA_OK;
    const double effort = config->effort > 0 ? config->effort : 1;
    q.work_max = (uint64_t)(effort * 6e7);
    q.proven = p->proven, q.gap = config->gap;
    if (q.random == 0) q.random = 1;
    MOA_TRY(pool_open(&q, p, err));
    bool empty = false;
    for (int32_t g = 0; g < q.n_group; g++) empty |= q.first[g] == q.first[g + 1];
    if (empty) goto out; /* a layer that no rule set fits */
    begin(&q, p, config);
    /* small problems are proven at once; of large ones little is lost */
    if (!stop(&q, p, config) || q.best == INFINITY) MOA_TRY(close_search(&q, p, (int64_t)(effort * 100000), err));
    if (!p->exact) go_on(&q, p, config);
    if (q.best < p->best) {
        p->best = q.best;
        for (int32_t g = 0; g < q.n_group; g++)
            memcpy(p->pick + (size_t)g * (size_t)q.n_unit, q.picks + (size_t)q.columns[q.best_at[g]].pick * (size_t)q.n_unit,
                   (size_t)q.n_unit * sizeof *p->pick);
    }
out:
    pool_free(&q);
    return s;
}
