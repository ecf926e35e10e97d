/* search.c -- the search's settings and steps; what the engine tells about them becomes state. */
#include "tui/search.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/base/size.h"
#include "core/engine/engine.h"
#include "core/tasks/calib.h"
#include "core/tasks/cases.h"
#include "tui/internal.h"

enum { N_GEN = 48, ALL_SYNTHETIC = 1 << MOA_CALIB_RETRIEVAL | 1 << MOA_CALIB_PASSKEY | 1 << MOA_CALIB_NEEDLE | 1 << MOA_CALIB_FACTS };
#define PROFILE_COST 3.2 /* passes of a profiled token in those of a prefill, measured on SmolLM2 on two cores */

static const struct {
    const char *name, *title;
} steps[] = {
#define X(NAME, name, title) {name, title},
    TUI_STEP_MAP(X)
#undef X
};
static const struct {
    tui_step step;
    const char *name;
} settings[] = {
#define X(NAME, step, name) {TUI_STEP_##step, name},
    TUI_SETTING_MAP(X)
#undef X
};

const char *tui_step_name(tui_step s) { return steps[s].name; }
const char *tui_step_title(tui_step s) { return steps[s].title; }
tui_step tui_setting_step(tui_setting s) { return settings[s].step; }
const char *tui_setting_name(tui_setting s) { return settings[s].name; }

static size_t n_heads(const tui_app *app) { return (size_t)app->model.n_layer * (size_t)app->model.n_head; }

moa_status tui_planner_open(tui_planner **out, moa_err *err) {
    tui_planner *p = *out = calloc(1, sizeof *p);
    if (!p) return moa_fail(err, MOA_E_MEMORY, "no memory for the search");
    p->lengths[0] = 512, p->lengths[1] = 1024, p->n_length = 2;
    p->n_item = 4;
    p->n_gen = N_GEN;
    p->kinds = ALL_SYNTHETIC;
    p->seed = 1;
    p->measure = MOA_MEASURE_ABS; /* with few items the others minimise noise: SmolLM2, 4 items a length, 50 %: held-out 0.43 against 0.88 nats */
    p->density = 0.5;
    p->valid_at = 1536, p->valid_items = 3;
    p->try_at = 2048, p->try_items = 5;
    p->margin = true;
    p->n_round = 4;
    p->running = p->run_to = p->best = -1;
    p->solver_best = p->solver_bound = (double)NAN;
    return MOA_OK;
}

static void found_clear(tui_planner *p) {
    tui_rounds_close(&p->rounds);
    for (int i = 0; i < p->n_found + p->n_reference; i++) moa_plan_close(&p->found[i].plan);
    p->n_found = p->n_reference = p->selected = 0;
    p->best = -1;
}

static void influence_clear(tui_planner *p) {
    for (int i = 0; i < p->n_influence; i++) tui_influence_close(&p->influence[i]);
    p->n_influence = 0;
    p->source[0] = 0;
}

void tui_planner_close(tui_planner **out) {
    tui_planner *p = *out;
    if (!p) return;
    tui_solver_close(&p->solver);
    tui_reading_close(&p->reading);
    found_clear(p);
    influence_clear(p);
    tui_influence_close(&p->incoming);
    free(p->locked);
    free(p);
    *out = NULL;
}

/* --- influence ------------------------------------------------------------------------------------------------------------ */

void tui_influence_close(tui_influence **out) {
    tui_influence *f = *out;
    if (!f) return;
    free(f->abs);
    free(f->sum);
    free(f->joint);
    free(f->have);
    for (int m = 0; m < MOA_MEASURE_COUNT; m++)
        if (f->curve[m] != f->joint) free(f->curve[m]);
    free(f);
    *out = NULL;
}

moa_status tui_influence_open(tui_influence **out, int32_t n_layer, int32_t n_head, int32_t n_tok, bool maps, moa_err *err) {
    const size_t heads = (size_t)n_layer * (size_t)n_head, nb = ((size_t)n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
    size_t n_map = 0, n_curve;
    tui_influence *f = *out = calloc(1, sizeof *f);
    if (!f || !moa_size_mul(heads, nb * nb, &n_map) || !moa_size_mul(heads, nb + 1, &n_curve) || n_map > SIZE_MAX / 8 || n_curve > SIZE_MAX / 8) goto none;
    *f = (tui_influence){.n_tok = n_tok, .nb = (int32_t)nb, .n_layer = n_layer, .n_head = n_head, .loss = (double)NAN};
    f->joint = calloc(n_curve, sizeof *f->joint);
    f->have = calloc(heads, 1);
    if (maps) {
        f->abs = calloc(n_map, sizeof *f->abs);
        f->sum = calloc(n_map, sizeof *f->sum);
    }
    if (f->joint && f->have && (!maps || (f->abs && f->sum))) return MOA_OK;
none:
    tui_influence_close(out);
    return moa_fail(err, MOA_E_MEMORY, "no memory for the influence of %zu heads at %d tokens", heads, n_tok);
}

static float *curve_of_map(const tui_influence *f, const float *map) {
    const size_t heads = (size_t)f->n_layer * (size_t)f->n_head, nb = (size_t)f->nb;
    float *curve = calloc(heads * (nb + 1), sizeof *curve);
    double *one = malloc((nb + 1) * sizeof *one);
    for (size_t h = 0; curve && one && h < heads; h++) {
        moa_losses_from_map(map + h * nb * nb, f->nb, one);
        for (size_t w = 1; w <= nb; w++) curve[h * (nb + 1) + w] = (float)one[w];
    }
    if (!one) free(curve), curve = NULL;
    free(one);
    return curve;
}

bool tui_influence_curves(tui_influence *f) {
    f->curve[MOA_MEASURE_JOINT] = f->joint;
    if (f->abs) f->curve[MOA_MEASURE_ABS] = curve_of_map(f, f->abs);
    if (f->sum) f->curve[MOA_MEASURE_SIGNED] = curve_of_map(f, f->sum);
    return (!f->abs || f->curve[MOA_MEASURE_ABS]) && (!f->sum || f->curve[MOA_MEASURE_SIGNED]);
}

void tui_influence_put(tui_planner *p, tui_influence *f) {
    int at = 0;
    while (at < p->n_influence && p->influence[at]->n_tok < f->n_tok) at++;
    if (at < p->n_influence && p->influence[at]->n_tok == f->n_tok) tui_influence_close(&p->influence[at]);
    else if (p->n_influence == TUI_FIND_LENGTHS) { /* cannot be: there are no more lengths */
        tui_influence_close(&f);
        return;
    } else {
        memmove(&p->influence[at + 1], &p->influence[at], (size_t)(p->n_influence - at) * sizeof *p->influence);
        p->n_influence++;
    }
    p->influence[at] = f;
}

const tui_influence *tui_influence_at(const tui_app *app, int i) {
    const tui_planner *p = app->planner;
    return p && i >= 0 && i < p->n_influence ? p->influence[i] : NULL;
}

int tui_influence_for(const tui_app *app, int32_t n) {
    const tui_planner *p = app->planner;
    int at = p && p->n_influence > 0 ? 0 : -1;
    for (int i = 1; p && i < p->n_influence; i++)
        if (p->influence[i]->n_tok <= n) at = i;
    return at;
}

double tui_influence_loss(const tui_app *app, int i, int32_t layer, int32_t head, int32_t span) {
    const tui_influence *f = tui_influence_at(app, i);
    if (!f || layer < 0 || layer >= f->n_layer || head < 0 || head >= f->n_head) return (double)NAN;
    const float *curve = f->curve[app->planner->measure];
    if (!curve) return (double)NAN;
    int32_t w = moa_window(span) / MOA_PAGE_TOK;
    if (w < 1) w = 1;
    if (span >= f->n_tok || w >= f->nb) return 0;
    return (double)curve[((size_t)layer * (size_t)f->n_head + (size_t)head) * (size_t)(f->nb + 1) + (size_t)w];
}

double tui_influence_plan(const tui_app *app, int i, const moa_plan *plan) {
    const tui_influence *f = tui_influence_at(app, i);
    if (!f || !plan || plan->n_layer != f->n_layer || plan->n_head != f->n_head) return (double)NAN;
    double sum = 0;
    for (int32_t l = 0; l < f->n_layer; l++)
        for (int32_t h = 0; h < f->n_head; h++) {
            const double x = tui_influence_loss(app, i, l, h, moa_span(*moa_plan_at(plan, l, h), f->n_tok));
            sum += x < 0 ? 0 : x; /* gains count as 0, as in the search (moa_losses_drop_gains); unknown stays unknown */
        }
    return sum;
}

char *tui_loss_text(char out[24], double nats) {
    if (isnan(nats)) (void)snprintf(out, 24, "-");
    else if (nats == 0) (void)snprintf(out, 24, "0");
    else if (fabs(nats) >= 99.5) (void)snprintf(out, 24, "%+.0f", nats);
    else if (fabs(nats) >= 0.00095) (void)snprintf(out, 24, "%+.3f", nats);
    else (void)snprintf(out, 24, "%+.0e", nats);
    return out;
}

/* --- settings --------------------------------------------------------------------------------------------------------------- */

static void kinds_text(uint32_t kinds, char *out, size_t n) {
    size_t at = 0;
    out[0] = 0;
    if (kinds == ALL_SYNTHETIC) {
        (void)snprintf(out, n, "all synthetic");
        return;
    }
    for (int k = 0; k < MOA_CALIB_COUNT && at < n; k++)
        if (kinds & 1u << k) at += (size_t)snprintf(out + at, n - at, "%s%s", at ? "," : "", moa_calib_name((moa_calib_kind)k));
}

void tui_setting_text(const tui_planner *p, tui_setting s, char *out, size_t n) {
    char a[24];
    size_t at = 0;
    switch (s) {
    case TUI_SET_LENGTHS:
        out[0] = 0;
        for (int i = 0; i < p->n_length && at < n; i++) at += (size_t)snprintf(out + at, n - at, "%s%d", i ? "," : "", p->lengths[i]);
        break;
    case TUI_SET_ITEMS: (void)snprintf(out, n, "%d a length", p->n_item); break;
    case TUI_SET_KINDS: kinds_text(p->kinds, out, n); break;
    case TUI_SET_LOSS: (void)snprintf(out, n, "%s", p->margin ? "margin" : "cross-entropy"); break;
    case TUI_SET_MEASURE: (void)snprintf(out, n, "%s", moa_measure_name(p->measure)); break;
    case TUI_SET_DENSITY: (void)snprintf(out, n, "%.3g %% of KV", 100 * p->density); break;
    case TUI_SET_PER: (void)snprintf(out, n, "%s", p->per_head ? "query head" : "KV group"); break;
    case TUI_SET_RULES:
        if (p->max_rules) (void)snprintf(out, n, "at most %d", p->max_rules);
        else (void)snprintf(out, n, "any");
        break;
    case TUI_SET_VALID_AT: (void)snprintf(out, n, "%s", viz_count_text(a, p->valid_at)); break;
    case TUI_SET_VALID_ITEMS: (void)snprintf(out, n, "%d", p->valid_items); break;
    case TUI_SET_ROUNDS: (void)snprintf(out, n, "%d more", p->n_round); break;
    case TUI_SET_TRY_AT: (void)snprintf(out, n, "%s", viz_count_text(a, p->try_at)); break;
    default: (void)snprintf(out, n, "%d", p->try_items); break;
    }
}

void tui_setting_key(tui_setting s, char *out, size_t n) {
    const char *name = settings[s].name;
    if (s == TUI_SET_VALID_AT || s == TUI_SET_VALID_ITEMS || s == TUI_SET_TRY_ITEMS) (void)snprintf(out, n, "%s-%s", steps[settings[s].step].name, name);
    else if (s == TUI_SET_TRY_AT) (void)snprintf(out, n, "try-length");
    else if (s == TUI_SET_ROUNDS) (void)snprintf(out, n, "rounds");
    else if (s == TUI_SET_PER) (void)snprintf(out, n, "per");
    else if (s == TUI_SET_RULES) (void)snprintf(out, n, "rules");
    else (void)snprintf(out, n, "%s", name);
}

bool tui_setting_find(const char *name, tui_setting *out) {
    char key[48];
    for (int s = 0; s < TUI_SETTING_COUNT; s++) {
        tui_setting_key((tui_setting)s, key, sizeof key);
        if (strcasecmp(name, key) != 0) continue;
        *out = (tui_setting)s;
        return true;
    }
    return false;
}

static bool whole(const char *text, int32_t lo, int32_t hi, int32_t *out) {
    char *end;
    const long v = strtol(text, &end, 10);
    if (end == text || (*end && *end != ' ') || v < lo || v > hi) return false;
    *out = (int32_t)v;
    return true;
}

static moa_status set_lengths(tui_planner *p, const char *text, moa_err *err) {
    int32_t list[TUI_FIND_LENGTHS];
    int n = 0;
    for (const char *c = text; *c;) {
        char *end;
        const long v = strtol(c, &end, 10);
        if (end == c || v < MOA_SPAN_MIN || v > MOA_N_MAX || n == TUI_FIND_LENGTHS)
            return moa_fail(err, MOA_E_USAGE, "lengths %s: at most %d whole numbers from %d on, as in 256,512", text, TUI_FIND_LENGTHS, MOA_SPAN_MIN);
        list[n++] = (int32_t)v;
        while (*end == ',' || *end == ' ') end++;
        c = end;
    }
    if (n == 0) return moa_fail(err, MOA_E_USAGE, "which lengths? 256,512");
    for (int i = 1; i < n; i++) /* rising, each once */
        for (int k = i; k > 0 && list[k] < list[k - 1]; k--) {
            const int32_t t = list[k];
            list[k] = list[k - 1], list[k - 1] = t;
        }
    p->n_length = 0;
    for (int i = 0; i < n; i++)
        if (i == 0 || list[i] != list[i - 1]) p->lengths[p->n_length++] = list[i];
    return MOA_OK;
}

static moa_status set_kinds(tui_planner *p, const char *text, moa_err *err) {
    moa_calib_kind kinds[MOA_CALIB_KINDS_MAX];
    uint32_t bits = 0;
    int n = 0;
    if (strcmp(text, "all") == 0 || strcmp(text, "all synthetic") == 0) bits = ALL_SYNTHETIC;
    else {
        const moa_status s = moa_calib_parse(text, kinds, &n, err);
        if (s != MOA_OK) return s;
    }
    for (int i = 0; i < n; i++) {
        if (moa_calib_needs_docs(kinds[i]) && !*p->docs) return moa_fail(err, MOA_E_USAGE, "%s needs documents: step docs FILE", moa_calib_name(kinds[i]));
        bits |= 1u << kinds[i];
    }
    p->kinds = bits;
    return MOA_OK;
}

static moa_status set_one(tui_planner *p, tui_setting s, const char *text, moa_err *err) {
    char *end;
    double v;
    switch (s) {
    case TUI_SET_LENGTHS: return set_lengths(p, text, err);
    case TUI_SET_KINDS: return set_kinds(p, text, err);
    case TUI_SET_ITEMS: return whole(text, 1, MOA_WIRE_ITEMS_MAX, &p->n_item) ? MOA_OK : moa_fail(err, MOA_E_USAGE, "items: from 1 to %d", MOA_WIRE_ITEMS_MAX);
    case TUI_SET_VALID_ITEMS:
    case TUI_SET_TRY_ITEMS:
        return whole(text, 1, MOA_WIRE_ITEMS_MAX, s == TUI_SET_TRY_ITEMS ? &p->try_items : &p->valid_items) ? MOA_OK
                                                                                                            : moa_fail(err, MOA_E_USAGE, "items: from 1 to %d", MOA_WIRE_ITEMS_MAX);
    case TUI_SET_VALID_AT:
    case TUI_SET_TRY_AT:
        return whole(text, MOA_SPAN_MIN, MOA_N_MAX, s == TUI_SET_TRY_AT ? &p->try_at : &p->valid_at) ? MOA_OK : moa_fail(err, MOA_E_USAGE, "a length of at least %d tokens", MOA_SPAN_MIN);
    case TUI_SET_LOSS:
        if (strcasecmp(text, "margin") != 0 && strcasecmp(text, "cross-entropy") != 0) return moa_fail(err, MOA_E_USAGE, "loss: margin or cross-entropy");
        p->margin = strcasecmp(text, "margin") == 0;
        return MOA_OK;
    case TUI_SET_ROUNDS: return whole(text, 1, TUI_ROUNDS_MAX, &p->n_round) ? MOA_OK : moa_fail(err, MOA_E_USAGE, "rounds: from 1 to %d", TUI_ROUNDS_MAX);
    case TUI_SET_MEASURE:
        for (int m = 0; m < MOA_MEASURE_COUNT; m++)
            if (strcasecmp(text, moa_measure_name((moa_measure)m)) == 0) {
                p->measure = (moa_measure)m;
                return MOA_OK;
            }
        return moa_fail(err, MOA_E_USAGE, "measure: joint, abs or signed");
    case TUI_SET_DENSITY:
        v = strtod(text, &end);
        while (*end == ' ') end++;
        if (*end == '%' || v > 1) v /= 100;
        if (end == text || !(v > 0 && v <= 1)) return moa_fail(err, MOA_E_USAGE, "density: a share of full attention's KV memory, 0.5 or 50%%");
        p->density = v;
        return MOA_OK;
    case TUI_SET_PER:
        if (strcasecmp(text, "head") != 0 && strcasecmp(text, "query head") != 0 && strcasecmp(text, "group") != 0 && strcasecmp(text, "KV group") != 0)
            return moa_fail(err, MOA_E_USAGE, "rules per group or per head");
        p->per_head = strcasestr(text, "head") != NULL;
        return MOA_OK;
    default:
        if (strcasecmp(text, "any") == 0) p->max_rules = 0;
        else if (!whole(text, 0, 64, &p->max_rules)) return moa_fail(err, MOA_E_USAGE, "rules a layer: a number, or any");
        return MOA_OK;
    }
}

/* steps from this one on were done with other settings */
static void make_old(tui_planner *p, tui_step from) {
    for (int s = (int)from; s < TUI_STEP_COUNT; s++)
        if (p->steps[s].state == TUI_STEP_DONE || p->steps[s].state == TUI_STEP_PART) p->steps[s].state = TUI_STEP_OLD;
}

static void refigure(tui_app *app); /* predicted losses of the plans found, by the present measure */

moa_status tui_setting_set(tui_app *app, tui_setting s, const char *text, moa_err *err) {
    tui_planner *p = app->planner;
    char before[160], after[160];
    if (p->running >= 0) return moa_fail(err, MOA_E_FAILED, "%s is at work; C-c stops it", steps[p->running].title);
    tui_setting_text(p, s, before, sizeof before);
    const moa_status st = set_one(p, s, text, err);
    if (st != MOA_OK) return st;
    tui_setting_text(p, s, after, sizeof after);
    if (strcmp(before, after) != 0 && s != TUI_SET_ROUNDS) make_old(p, settings[s].step); /* how many does not change any */
    if (s == TUI_SET_MEASURE) refigure(app);
    tui_dirty(app);
    return MOA_OK;
}

moa_status tui_planner_docs(tui_app *app, char *const *paths, int n, moa_err *err) {
    tui_planner *p = app->planner;
    char list[sizeof p->docs] = "", full[4096];
    size_t at = 0;
    if (p->running >= 0) return moa_fail(err, MOA_E_FAILED, "%s is at work; C-c stops it", steps[p->running].title);
    for (int i = 0; i < n; i++) {
        const char *path = !*app->options.engine && realpath(paths[i], full) ? full : paths[i]; /* a remote engine has files of its own */
        if (strchr(path, '\n')) return moa_fail(err, MOA_E_USAGE, "a document's name with a line break");
        const int k = snprintf(list + at, sizeof list - at, "%s%s", at ? "\n" : "", path);
        if (k < 0 || (size_t)k >= sizeof list - at) return moa_fail(err, MOA_E_USAGE, "the names of %d documents are longer than %zu bytes; name their folder", n, sizeof list - 1);
        at += (size_t)k;
    }
    memcpy(p->docs, list, sizeof list);
    for (int k = 0; n == 0 && k < MOA_CALIB_COUNT; k++)
        if (moa_calib_needs_docs((moa_calib_kind)k)) p->kinds &= ~(1u << k);
    if (p->kinds == 0) p->kinds = ALL_SYNTHETIC;
    make_old(p, TUI_STEP_CALIBRATE);
    if (n > 0) tui_say(app, TUI_INFO, "Documents fill the items; kinds summary and spread are about them: step set kinds summary,spread");
    else tui_say(app, TUI_INFO, "Items without documents");
    tui_dirty(app);
    return MOA_OK;
}

void tui_planner_lock(tui_app *app, const uint8_t *mask, bool lock) {
    tui_planner *p = app->planner;
    const size_t n = n_heads(app);
    int32_t count = 0, all = 0;
    if (!app->model.loaded || !app->plan.now || (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head != n) return;
    if (!p->locked) p->locked = calloc(n, 1);
    for (size_t i = 0; p->locked && i < n; i++) {
        count += mask[i] && p->locked[i] != lock;
        if (mask[i]) p->locked[i] = lock;
        all += p->locked[i];
    }
    if (count > 0) make_old(p, TUI_STEP_SEARCH);
    if (lock) tui_say(app, TUI_INFO, "%d head%s locked: the search keeps their rules (%d in all)", count, count == 1 ? "" : "s", all);
    else tui_say(app, TUI_INFO, "%d head%s unlocked (%d still locked)", count, count == 1 ? "" : "s", all);
    tui_dirty(app);
}

static int32_t twice(int32_t v, int by, int32_t lo, int32_t hi) {
    v = by > 0 ? (v < hi / 2 ? 2 * v : hi) : v / 2;
    return v < lo ? lo : v;
}

static const char *turned_lengths(const tui_planner *p, int by, char *out, size_t n) {
    const int32_t n_ctx = 1 << 20;
    size_t at = 0;
    for (int i = 0; i < p->n_length; i++) at += (size_t)snprintf(out + at, at < n ? n - at : 0, "%s%d", i ? "," : "", twice(p->lengths[i], by, MOA_SPAN_MIN, n_ctx));
    return out;
}

void tui_setting_turn(tui_app *app, tui_setting s, int by) {
    static const char *const kinds[] = {"all", "passkey", "retrieval", "needle", "facts"};
    const tui_planner *p = app->planner;
    char text[160], now[160];
    int at = 0;
    moa_err err = {0};
    switch (s) {
    case TUI_SET_LENGTHS: (void)turned_lengths(p, by, text, sizeof text); break;
    case TUI_SET_ITEMS: (void)snprintf(text, sizeof text, "%d", p->n_item + by > 1 ? p->n_item + by : 1); break;
    case TUI_SET_KINDS:
        tui_setting_text(p, s, now, sizeof now);
        for (int i = 1; i < 5; i++)
            if (strcmp(now, kinds[i]) == 0) at = i;
        (void)snprintf(text, sizeof text, "%s", kinds[(at + (by > 0 ? 1 : 4)) % 5]);
        break;
    case TUI_SET_LOSS: (void)snprintf(text, sizeof text, "%s", p->margin ? "cross-entropy" : "margin"); break;
    case TUI_SET_ROUNDS: (void)snprintf(text, sizeof text, "%d", p->n_round + by > 1 ? p->n_round + by < TUI_ROUNDS_MAX ? p->n_round + by : TUI_ROUNDS_MAX : 1); break;
    case TUI_SET_MEASURE: (void)snprintf(text, sizeof text, "%s", moa_measure_name((moa_measure)(((int)p->measure + MOA_MEASURE_COUNT + (by > 0 ? 1 : -1)) % MOA_MEASURE_COUNT))); break;
    case TUI_SET_DENSITY: (void)snprintf(text, sizeof text, "%.4g", fmin(1, fmax(0.05, round((p->density + 0.05 * by) * 100) / 100))); break;
    case TUI_SET_PER: (void)snprintf(text, sizeof text, "%s", p->per_head ? "group" : "head"); break;
    case TUI_SET_RULES: (void)snprintf(text, sizeof text, "%d", p->max_rules + by < 0 ? 4 : (p->max_rules + by) % 5); break;
    case TUI_SET_VALID_AT: (void)snprintf(text, sizeof text, "%d", twice(p->valid_at, by, MOA_SPAN_MIN, 1 << 20)); break;
    case TUI_SET_TRY_AT: (void)snprintf(text, sizeof text, "%d", twice(p->try_at, by, MOA_SPAN_MIN, 1 << 20)); break;
    case TUI_SET_VALID_ITEMS: (void)snprintf(text, sizeof text, "%d", p->valid_items + by > 1 ? p->valid_items + by : 1); break;
    default: (void)snprintf(text, sizeof text, "%d", p->try_items + by > 1 ? p->try_items + by : 1); break;
    }
    if (tui_setting_set(app, s, text, &err) != MOA_OK) tui_say(app, TUI_WARN, "%s", err.text);
}

/* --- the plans found ---------------------------------------------------------------------------------------------------------- */

static void figure(tui_app *app, tui_found *f) {
    tui_planner *p = app->planner;
    for (int i = 0; i < p->n_influence; i++) {
        f->density[i] = moa_plan_describe(f->plan, p->influence[i]->n_tok, app->model.n_head_kv).kv_density_grouped;
        f->loss[i] = tui_influence_plan(app, i, f->plan);
    }
}

static void name_lengths(tui_planner *p) {
    p->n_found_length = p->n_influence;
    for (int k = 0; k < p->n_influence; k++) p->found_lengths[k] = p->influence[k]->n_tok;
}

static void refigure(tui_app *app) {
    tui_planner *p = app->planner;
    for (int i = 0; i < p->n_found + p->n_reference; i++) figure(app, &p->found[i]);
    name_lengths(p); /* influence of other lengths may have come since the search */
}

static bool add_reference(tui_app *app, const char *name, moa_rule rule) {
    tui_planner *p = app->planner;
    tui_found *f = &p->found[p->n_found + p->n_reference];
    *f = (tui_found){.gap = (double)NAN, .valid = (double)NAN, .predicted = (double)NAN};
    (void)snprintf(f->name, sizeof f->name, "%s", name);
    if (moa_plan_uniform(&f->plan, app->model.n_layer, app->model.n_head, rule, NULL) != MOA_OK) return false;
    p->n_reference++;
    figure(app, f);
    return true;
}

static void take_found(tui_app *app, moa_plan **plans, const double *gaps, int n) {
    tui_planner *p = app->planner;
    found_clear(p);
    for (int k = 0; k < n; k++) {
        tui_found *f = &p->found[p->n_found++];
        *f = (tui_found){.plan = plans[k], .gap = gaps[k], .valid = (double)NAN, .predicted = (double)NAN};
        (void)snprintf(f->name, sizeof f->name, "plan %d", k + 1);
        figure(app, f);
    }
    (void)add_reference(app, "uniform", (moa_rule){0, p->density});
    (void)add_reference(app, "full", (moa_rule){0, 1});
    name_lengths(p);
}

bool tui_planner_add(tui_app *app, const tui_found *f) {
    tui_planner *p = app->planner;
    if (p->n_found == TUI_FIND_PLANS) return false;
    tui_found *at = &p->found[p->n_found];
    memmove(at + 1, at, (size_t)p->n_reference * sizeof *at);
    *at = *f;
    figure(app, at);
    if (p->selected >= p->n_found) p->selected++; /* a reference */
    for (int k = 0; k < 3; k++) p->try_plans[k] += p->try_plans[k] >= p->n_found;
    p->n_found++;
    tui_dirty(app);
    return true;
}

void tui_planner_solved(tui_app *app, moa_status s, const char *text, moa_plan **plans, const double *gaps, int n) {
    tui_planner *p = app->planner;
    tui_step_info *i = &p->steps[TUI_STEP_SEARCH];
    double gap = (double)NAN;
    const int to = p->run_to;
    i->seconds = app->now - i->started_at;
    p->running = p->run_to = -1;
    if (n == 0) {
        i->state = s == MOA_E_CANCELLED ? TUI_STEP_TODO : TUI_STEP_FAILED;
        (void)snprintf(i->text, sizeof i->text, "%.90s", s == MOA_E_CANCELLED ? "stopped" : text);
        tui_say(app, s == MOA_E_CANCELLED ? TUI_INFO : TUI_BAD, "%s", s == MOA_E_CANCELLED ? "Search stopped before it had a plan" : text);
        return;
    }
    take_found(app, plans, gaps, n);
    for (int k = 0; k < n; k++)
        if (!isnan(gaps[k])) gap = fmax(isnan(gap) ? 0 : gap, gaps[k]);
    char g[24];
    i->state = s == MOA_OK ? TUI_STEP_DONE : TUI_STEP_PART;
    (void)snprintf(i->text, sizeof i->text, "%d plan%s, gap %s", n, n == 1 ? "" : "s", viz_percent_text(g, gap, 2));
    make_old(p, TUI_STEP_VALIDATE);
    tui_say(app, TUI_GOOD, "Found %d plan%s at %.3g%% of the KV memory in %.1f s; largest gap to the proven bound %s", n, n == 1 ? "" : "s", 100 * p->density, i->seconds,
            viz_percent_text(g, gap, 2));
    for (int v = 0; v < tui_view_count(); v++)
        if (tui_view_at(v)->event) tui_view_at(v)->event(app, TUI_EV_PLAN);
    tui_dirty(app);
    moa_err err = {0};
    if (s != MOA_OK || to <= TUI_STEP_SEARCH) return;
    if (tui_planner_start(app, TUI_STEP_VALIDATE, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
    else if (to > TUI_STEP_VALIDATE) p->run_to = to;
}

/* --- starting ------------------------------------------------------------------------------------------------------------------ */

bool tui_planner_busy(const tui_app *app) { return app->planner && app->planner->running >= 0; }
bool tui_planner_engine(const tui_app *app) { return tui_planner_busy(app) && app->planner->running != TUI_STEP_SEARCH; }

static moa_status may_start(tui_app *app, tui_step step, moa_err *err) {
    const tui_planner *p = app->planner;
    if (p->running >= 0) return moa_fail(err, MOA_E_FAILED, "%s is at work; C-c stops it", steps[p->running].title);
    if (p->reading) return moa_fail(err, MOA_E_FAILED, "influence is being read from a file; C-c stops it");
    if (app->link.state == TUI_LINK_LOADING) return moa_fail(err, MOA_E_FAILED, "the model is still loading");
    if (!app->model.loaded) return moa_fail(err, MOA_E_FAILED, "no model is loaded; :load MODEL");
    if (step != TUI_STEP_SEARCH && app->link.state == TUI_LINK_DEAD) return moa_fail(err, MOA_E_FAILED, "the engine ended; :engine restart starts it again");
    if (step != TUI_STEP_SEARCH && app->slot_running >= 0) return moa_fail(err, MOA_E_FAILED, "run #%d is not done; C-c stops it", app->runs[app->slot_running].number);
    if ((step == TUI_STEP_PROFILE || step == TUI_STEP_ROUNDS) && p->steps[TUI_STEP_CALIBRATE].state != TUI_STEP_DONE && p->steps[TUI_STEP_CALIBRATE].state != TUI_STEP_PART)
        return moa_fail(err, MOA_E_FAILED, "profiling needs calibrated items of these lengths: step 1 first");
    if (step == TUI_STEP_SEARCH && p->n_influence == 0) return moa_fail(err, MOA_E_FAILED, "searching needs the influence of the heads: step 2 first, or :influence open FILE.npz");
    if (step >= TUI_STEP_VALIDATE && p->n_found == 0 && (step != TUI_STEP_TRY || !app->plan.now)) return moa_fail(err, MOA_E_FAILED, "there is no plan yet: step 3 first");
    for (int i = 0; i < p->n_length; i++)
        if ((step <= TUI_STEP_PROFILE || step == TUI_STEP_ROUNDS) && p->lengths[i] > app->model.n_ctx)
            return moa_fail(err, MOA_E_FAILED, "length %d is beyond the model's context of %d tokens", p->lengths[i], app->model.n_ctx);
    return MOA_OK;
}

/* rules of plans one after the other, as two arrays; *alphas is the one block to free */
static moa_status arrays_of(const tui_app *app, const moa_plan *const *plans, int n, double **alphas, double **betas, moa_err *err) {
    const size_t cells = n_heads(app);
    *alphas = malloc(2 * cells * (size_t)n * sizeof **alphas);
    if (!*alphas) return moa_fail(err, MOA_E_MEMORY, "no memory for %d plans", n);
    *betas = *alphas + cells * (size_t)n;
    for (int k = 0; k < n; k++)
        for (size_t i = 0; i < cells; i++) {
            (*alphas)[(size_t)k * cells + i] = plans[k]->rules[i].alpha;
            (*betas)[(size_t)k * cells + i] = plans[k]->rules[i].beta;
        }
    return MOA_OK;
}

moa_status tui_planner_task(tui_app *app, moa_msg_task *task, const moa_plan *const *plans, int n_plan, moa_err *err) {
    tui_planner *p = app->planner;
    double *alphas = NULL, *betas = NULL;
    moa_status s = MOA_OK;
    if (n_plan > 0) MOA_TRY(arrays_of(app, plans, n_plan, &alphas, &betas, err));
    const uint32_t n = (uint32_t)(n_heads(app) * (size_t)n_plan);
    moa_wire_msg m = {.type = MOA_WIRE_TASK, .u.task = *task};
    m.u.task.n_gen = p->n_gen;
    m.u.task.docs = (moa_wire_str){p->docs, (uint32_t)strlen(p->docs)};
    m.u.task.n_plan = n_plan;
    m.u.task.alphas = (moa_wire_f64s){alphas, n};
    m.u.task.betas = (moa_wire_f64s){betas, n};
    MOA_TRY(tui_link_send(app, &m, err));
    p->job = m.job;
    app->link.state = TUI_LINK_BUSY;
out:
    free(alphas);
    return s;
}

static moa_status start_validate(tui_app *app, moa_err *err) {
    tui_planner *p = app->planner;
    const moa_plan *plans[TUI_FIND_PLANS + 2] = {NULL};
    const int n = p->n_found + p->n_reference;
    moa_msg_task task = {.kind = MOA_WIRE_VALIDATE, .lengths = {&p->valid_at, 1}, .n_item = p->valid_items, .seed = p->seed + 1000, .item_kinds = p->kinds};
    for (int i = 0; i < n; i++) plans[i] = p->found[i].plan;
    const moa_status s = tui_planner_task(app, &task, plans, n, err);
    for (int i = 0; s == MOA_OK && i < n; i++) p->found[i].valid = (double)NAN;
    if (s == MOA_OK) p->best = -1;
    p->valid_plans = n;
    return s;
}

/* the best plan (else the selected one), uniform of the same memory at that length, full attention */
static moa_status start_try(tui_app *app, moa_err *err) {
    tui_planner *p = app->planner;
    moa_plan *uniform = NULL;
    moa_status s = MOA_OK;
    const int which = p->best >= 0 ? p->best : p->selected < p->n_found ? p->selected : 0;
    const moa_plan *plan = p->n_found > 0 ? p->found[which].plan : app->plan.now;
    const double density = moa_plan_describe(plan, p->try_at, app->model.n_head_kv).kv_density_grouped;
    moa_msg_task task = {.kind = MOA_WIRE_EVAL, .lengths = {&p->try_at, 1}, .n_item = p->try_items, .seed = p->seed + 2000, .item_kinds = MOA_TASK_PASSKEY};
    MOA_TRY(moa_plan_uniform(&uniform, app->model.n_layer, app->model.n_head, (moa_rule){0, isnan(density) ? p->density : density}, err));
    if (p->n_found == 0) MOA_TRY(moa_fail(err, MOA_E_FAILED, "there is no plan yet: step 3 first"));
    const moa_plan *plans[] = {plan, uniform, p->found[p->n_found + p->n_reference - 1].plan};
    MOA_TRY(tui_planner_task(app, &task, plans, 3, err));
    for (int i = 0; i < p->n_found + p->n_reference; i++) p->found[i].n_try = p->found[i].n_right = 0;
    p->try_plans[0] = which, p->try_plans[1] = p->n_found, p->try_plans[2] = p->n_found + 1;
out:
    moa_plan_close(&uniform);
    return s;
}

static moa_status start(tui_app *app, tui_step step, moa_err *err) {
    tui_planner *p = app->planner;
    moa_msg_task task = {.lengths = {p->lengths, (uint32_t)p->n_length}, .n_item = p->n_item, .seed = p->seed, .item_kinds = p->kinds, .fresh = 1};
    switch (step) {
    case TUI_STEP_CALIBRATE: task.kind = MOA_WIRE_CALIBRATE; return tui_planner_task(app, &task, NULL, 0, err);
    case TUI_STEP_PROFILE:
        task.kind = MOA_WIRE_PROFILE;
        task.loss = p->margin ? MOA_WIRE_MARGIN : MOA_WIRE_CROSS_ENTROPY;
        return tui_planner_task(app, &task, NULL, 0, err);
    case TUI_STEP_SEARCH: return tui_solver_start(app, err);
    case TUI_STEP_VALIDATE: return start_validate(app, err);
    default: return start_try(app, err);
    }
}

moa_status tui_planner_start(tui_app *app, tui_step step, moa_err *err) {
    tui_planner *p = app->planner;
    moa_status s = may_start(app, step, err);
    if (s == MOA_OK) s = step == TUI_STEP_ROUNDS ? tui_rounds_start(app, err) : start(app, step, err);
    if (s != MOA_OK) {
        p->run_to = -1;
        return s;
    }
    if (step == TUI_STEP_ROUNDS) return MOA_OK; /* it may even have ended */
    if (step <= TUI_STEP_PROFILE) make_old(p, (tui_step)(step + 1));
    p->running = (int)step;
    p->steps[step] = (tui_step_info){.state = TUI_STEP_RUNS, .share = (double)NAN, .started_at = app->now};
    tui_dirty(app);
    return MOA_OK;
}

static int first_undone(const tui_planner *p, tui_step last) {
    for (int s = 0; s <= (int)last; s++) {
        const tui_step_state t = p->steps[s].state;
        if (t != TUI_STEP_DONE) return s;
    }
    return -1;
}

moa_status tui_planner_next(tui_app *app, moa_err *err) {
    const int s = first_undone(app->planner, TUI_STEP_TRY);
    if (s < 0) return moa_fail(err, MOA_E_FAILED, "all steps are done with these settings");
    return tui_planner_start(app, (tui_step)s, err);
}

moa_status tui_planner_all(tui_app *app, moa_err *err) {
    tui_planner *p = app->planner;
    const int s = first_undone(p, TUI_STEP_VALIDATE);
    if (s < 0) return moa_fail(err, MOA_E_FAILED, "all steps are done with these settings");
    const moa_status st = tui_planner_start(app, (tui_step)s, err);
    if (st == MOA_OK) p->run_to = TUI_STEP_VALIDATE;
    return st;
}

moa_status tui_planner_rounds(tui_app *app, moa_err *err) {
    tui_planner *p = app->planner;
    const int s = first_undone(p, TUI_STEP_VALIDATE);
    const moa_status st = tui_planner_start(app, s < 0 ? TUI_STEP_ROUNDS : (tui_step)s, err);
    if (st == MOA_OK && s >= 0) p->run_to = TUI_STEP_ROUNDS;
    return st;
}

void tui_planner_stop(tui_app *app) {
    tui_planner *p = app->planner;
    if (!p || p->running < 0) return;
    p->run_to = -1;
    if (p->solver) tui_solver_cancel(p);
    else {
        moa_wire_msg m = {.type = MOA_WIRE_CANCEL, .job = p->job};
        if (tui_link_send(app, &m, NULL) != MOA_OK) return;
        app->link.asked_at = app->now;
    }
    tui_say(app, TUI_INFO, "Stopping: %s; what is done is kept", steps[p->running].title);
}

double tui_planner_left(const tui_app *app) {
    const tui_planner *p = app->planner;
    if (!p || p->running < 0) return (double)NAN;
    const tui_step_info *i = &p->steps[p->running];
    const double spent = app->now - i->started_at;
    return i->share > 0.01 && spent > 0.5 ? spent * (1 - i->share) / i->share : (double)NAN;
}

double tui_planner_whole(const tui_app *app) {
    const tui_planner *p = app->planner;
    if (!p || !(p->rate > 0)) return (double)NAN;
    double calibrate = 0;
    for (int i = 0; i < p->n_length; i++) calibrate += (double)p->lengths[i] * p->n_item;
    const int plans = p->n_found > 0 ? p->n_found + p->n_reference : 8;
    return (calibrate * (1 + PROFILE_COST) + (double)p->valid_at * p->valid_items * (1 + plans)) / p->rate;
}

/* --- hearing ---------------------------------------------------------------------------------------------------------------------- */

static bool ours(const tui_planner *p, uint32_t job) { return p && p->running >= 0 && job != 0 && p->job == job; }

bool tui_planner_progress(tui_app *app, uint32_t job, const moa_msg_progress *m) {
    tui_planner *p = app->planner;
    if (!ours(p, job)) return false;
    const double share = m->total > 0 && m->done <= m->total ? (double)m->done / (double)m->total : (double)NAN;
    p->steps[p->running].share = p->running == TUI_STEP_ROUNDS ? tui_rounds_share(p, isnan(share) ? 0 : share) : share;
    if (p->running == TUI_STEP_CALIBRATE && m->seconds > 0.5 && m->done > 0) p->rate = (double)m->done / m->seconds;
    return true;
}

static void take_valid(tui_planner *p, const moa_msg_result *m) {
    for (int i = 0; i < p->valid_plans; i++) p->found[i].valid = isfinite(m->loss.data[i]) ? m->loss.data[i] : (double)NAN;
    p->best = -1;
    for (int i = 0; i < p->n_found; i++)
        if (!isnan(p->found[i].valid) && (p->best < 0 || p->found[i].valid < p->found[p->best].valid)) p->best = i;
}

static void take_try(tui_planner *p, const moa_msg_result *m) {
    for (int k = 0; k < 3; k++) {
        tui_found *f = &p->found[p->try_plans[k]];
        f->n_try = m->n.data[k];
        f->n_right = m->right.data[k];
    }
}

/* counts as the task was asked for, each in its range */
static bool result_ok(const tui_planner *p, const moa_msg_result *m) {
    const bool round = p->running == TUI_STEP_ROUNDS, judges = round && p->rounds->phase == TUI_ROUND_VALIDATE;
    const uint32_t plans = judges ? (uint32_t)p->rounds->n_new : p->running == TUI_STEP_VALIDATE ? (uint32_t)p->valid_plans : p->running == TUI_STEP_TRY ? 3 : 1;
    const uint32_t lengths = p->running <= TUI_STEP_PROFILE || (round && !judges) ? (uint32_t)p->n_length : 1, n = plans * lengths;
    if (m->kind < MOA_WIRE_CALIBRATE || m->kind > MOA_WIRE_EVAL || m->lengths.n != lengths || m->n_plan != (int32_t)plans || m->n.n != n || m->right.n != n || m->loss.n != n ||
        m->n_want < 0 || m->n_want > MOA_WIRE_ITEMS_MAX)
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (m->n.data[i] < 0 || m->n.data[i] > MOA_WIRE_ITEMS_MAX || m->right.data[i] < 0 || m->right.data[i] > m->n.data[i]) return false;
    return true;
}

static void result_text(tui_planner *p, const moa_msg_result *m) {
    char *out = p->steps[p->running].text;
    const size_t size = sizeof p->steps[p->running].text;
    int n = 0, right = 0;
    for (uint32_t i = 0; i < m->n.n; i++) n += m->n.data[i], right += m->right.data[i];
    switch (p->running) {
    case TUI_STEP_CALIBRATE: (void)snprintf(out, size, "%d of %d items, %d right", n, m->n_want * (int)m->lengths.n, right); break;
    case TUI_STEP_PROFILE: (void)snprintf(out, size, "%d item%s profiled", n, n == 1 ? "" : "s"); break;
    case TUI_STEP_VALIDATE: (void)snprintf(out, size, "%d of %d items", m->n.data[0], m->n_want); break;
    default: (void)snprintf(out, size, "%d of %d items", m->n.data[0], m->n_want); break;
    }
}

void tui_planner_task_over(tui_app *app) {
    tui_planner *p = app->planner;
    p->job = 0;
    tui_influence_close(&p->incoming);
    app->link.asked_at = 0;
    if (app->link.state == TUI_LINK_BUSY) app->link.state = TUI_LINK_READY;
}

void tui_planner_end(tui_app *app, tui_step_state state) {
    tui_planner *p = app->planner;
    const int step = p->running;
    tui_step_info *i = &p->steps[step];
    i->state = state;
    i->seconds = app->now - i->started_at;
    p->running = -1;
    tui_planner_task_over(app);
    if (state == TUI_STEP_DONE && p->run_to > step) {
        moa_err err = {0};
        const int to = p->run_to;
        int next = step + 1;
        if (tui_planner_start(app, (tui_step)next, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
        else p->run_to = to > next ? to : -1;
    } else p->run_to = -1;
    tui_dirty(app);
}

static void say_end(tui_app *app, tui_step step, bool whole_step) {
    const tui_planner *p = app->planner;
    const tui_step_info *i = &p->steps[step];
    if (!whole_step) tui_say(app, TUI_INFO, "%s stopped: %s", steps[step].title, i->text);
    else if (step == TUI_STEP_VALIDATE && p->best >= 0)
        tui_say(app, TUI_GOOD, "Best: %s, cross-entropy %.3f on held-out items of %d tokens (uniform %.3f, full %.3f)", p->found[p->best].name, p->found[p->best].valid, p->valid_at,
                p->found[p->n_found].valid, p->found[p->n_found + 1].valid);
    else if (step == TUI_STEP_TRY) {
        const tui_found *f = &p->found[p->try_plans[0]], *u = &p->found[p->try_plans[1]], *d = &p->found[p->try_plans[2]];
        tui_say(app, TUI_GOOD, "Passkey at %d tokens: %s %d of %d, uniform of the same memory %d, full attention %d", p->try_at, f->name, f->n_right, f->n_try, u->n_right, d->n_right);
    } else tui_say(app, TUI_GOOD, "%s done: %s", steps[step].title, i->text);
}

bool tui_planner_result(tui_app *app, uint32_t job, const moa_msg_result *m) {
    tui_planner *p = app->planner;
    if (!ours(p, job)) return false;
    if (!result_ok(p, m)) {
        tui_say(app, TUI_WARN, "The engine sent a result that does not fit the task; it was left out");
        if (m->state != MOA_WIRE_GOES_ON) {
            (void)snprintf(p->steps[p->running].text, sizeof p->steps[p->running].text, "its result does not fit");
            p->run_to = -1;
            tui_planner_end(app, TUI_STEP_FAILED);
        }
        return true;
    }
    if (p->running == TUI_STEP_ROUNDS) {
        tui_rounds_result(app, m);
        return true;
    }
    if (p->running == TUI_STEP_VALIDATE) take_valid(p, m);
    if (p->running == TUI_STEP_VALIDATE && m->state != MOA_WIRE_GOES_ON && p->best >= 0) p->selected = p->best;
    if (p->running == TUI_STEP_TRY) take_try(p, m);
    result_text(p, m);
    if (m->state != MOA_WIRE_GOES_ON) {
        const tui_step step = (tui_step)p->running;
        int n = 0;
        for (uint32_t i = 0; i < m->n.n; i++) n += m->n.data[i];
        tui_planner_end(app, m->state == MOA_WIRE_FINISHED ? TUI_STEP_DONE : n > 0 ? TUI_STEP_PART : TUI_STEP_TODO);
        say_end(app, step, m->state == MOA_WIRE_FINISHED);
    }
    tui_dirty(app);
    return true;
}

static bool finite_all(moa_wire_f32s x) {
    for (uint32_t i = 0; i < x.n; i++)
        if (!isfinite(x.data[i])) return false;
    return true;
}

static bool influence_ok(const tui_app *app, const moa_msg_influence *m) {
    const tui_planner *p = app->planner;
    bool asked = false;
    size_t map, curve;
    for (int i = 0; i < p->n_length; i++) asked = asked || p->lengths[i] == m->n_tok;
    if (!asked || m->nb != (m->n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK || m->layer < 0 || m->layer >= app->model.n_layer || m->head0 < 0 || m->n_head < 1 ||
        m->n_head > app->model.n_head - m->head0 || m->n_item < 1)
        return false;
    if (!moa_size_mul((size_t)m->nb * (size_t)m->nb, (size_t)m->n_head, &map) || !moa_size_mul((size_t)m->nb + 1, (size_t)m->n_head, &curve)) return false;
    if (m->joint.n != curve || m->abs.n != m->sum.n || (m->abs.n != 0 && m->abs.n != map)) return false;
    /* all heads of a length have maps, or none: a head without would be one that nothing costs */
    if (p->incoming && p->incoming->n_tok == m->n_tok && (p->incoming->abs != NULL) != (m->abs.n > 0)) return false;
    return finite_all(m->abs) && finite_all(m->sum) && finite_all(m->joint);
}

static void take_heads(tui_influence *f, const moa_msg_influence *m) {
    const size_t first = (size_t)m->layer * (size_t)f->n_head + (size_t)m->head0, nb = (size_t)f->nb;
    for (int32_t h = 0; h < m->n_head; h++) f->n_have += !f->have[first + (size_t)h], f->have[first + (size_t)h] = 1;
    if (f->abs) {
        memcpy(f->abs + first * nb * nb, m->abs.data, m->abs.n * sizeof(float));
        memcpy(f->sum + first * nb * nb, m->sum.data, m->sum.n * sizeof(float));
    }
    memcpy(f->joint + first * (nb + 1), m->joint.data, m->joint.n * sizeof(float));
    f->n_item = m->n_item;
    f->n_supervised = m->n_supervised;
    f->n_clamped = m->n_clamped;
    f->loss = isfinite(m->loss) ? m->loss : (double)NAN;
}

/* Influence of lengths that are no longer asked for goes with the first of the new ones. */
static void whole_length(tui_app *app) {
    tui_planner *p = app->planner;
    tui_influence *f = p->incoming;
    p->incoming = NULL;
    if (!tui_influence_curves(f)) {
        tui_influence_close(&f);
        tui_say(app, TUI_BAD, "No memory for the influence curves");
        return;
    }
    if (p->running == TUI_STEP_ROUNDS) {
        tui_rounds_influence(app, f);
        tui_influence_close(&f);
        return;
    }
    tui_rounds_close(&p->rounds); /* its mean begins with what goes */
    for (int i = p->n_influence - 1; i >= 0; i--) {
        bool asked = false;
        for (int k = 0; k < p->n_length; k++) asked = asked || p->lengths[k] == p->influence[i]->n_tok;
        if (asked) continue;
        tui_influence_close(&p->influence[i]);
        memmove(&p->influence[i], &p->influence[i + 1], (size_t)(p->n_influence - i - 1) * sizeof *p->influence);
        p->n_influence--;
    }
    tui_influence_put(p, f);
    (void)snprintf(p->source, sizeof p->source, "measured");
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i)->event) tui_view_at(i)->event(app, TUI_EV_PLAN);
}

bool tui_planner_influence(tui_app *app, uint32_t job, const moa_msg_influence *m) {
    tui_planner *p = app->planner;
    moa_err err = {0};
    if (!ours(p, job) || (p->running != TUI_STEP_PROFILE && p->running != TUI_STEP_ROUNDS)) return false;
    if (p->running == TUI_STEP_ROUNDS && p->rounds->phase != TUI_ROUND_PROFILE) return true;
    if (!influence_ok(app, m)) {
        tui_say(app, TUI_WARN, "The engine sent influence that does not fit the model; it was left out");
        return true;
    }
    if (p->incoming && p->incoming->n_tok != m->n_tok) tui_influence_close(&p->incoming);
    if (!p->incoming && tui_influence_open(&p->incoming, app->model.n_layer, app->model.n_head, m->n_tok, m->abs.n > 0, &err) != MOA_OK) {
        tui_say(app, TUI_BAD, "%s", err.text);
        return true;
    }
    take_heads(p->incoming, m);
    if ((size_t)p->incoming->n_have == n_heads(app)) whole_length(app);
    tui_dirty(app);
    return true;
}

bool tui_planner_failed(tui_app *app, uint32_t job, const char *text) {
    tui_planner *p = app->planner;
    if (!ours(p, job) || p->running == TUI_STEP_SEARCH) return false;
    (void)snprintf(p->steps[p->running].text, sizeof p->steps[p->running].text, "%.90s", text);
    p->run_to = -1;
    tui_planner_end(app, TUI_STEP_FAILED);
    tui_say(app, TUI_BAD, "%s", text);
    return true;
}

void tui_planner_forget_engine(tui_app *app, const char *why) {
    tui_planner *p = app->planner;
    if (!p) return;
    if (tui_planner_engine(app)) {
        if (p->running == TUI_STEP_ROUNDS) tui_solver_close(&p->solver);
        (void)snprintf(p->steps[p->running].text, sizeof p->steps[p->running].text, "%.90s", why);
        p->run_to = -1;
        p->steps[p->running].state = TUI_STEP_FAILED;
        p->running = -1;
        p->job = 0;
        tui_influence_close(&p->incoming);
    }
    if (strncmp(p->steps[TUI_STEP_CALIBRATE].text, "from ", 5) == 0) return; /* there were none: influence is from a file */
    if (p->steps[TUI_STEP_CALIBRATE].state == TUI_STEP_DONE || p->steps[TUI_STEP_CALIBRATE].state == TUI_STEP_PART) p->steps[TUI_STEP_CALIBRATE].state = TUI_STEP_OLD;
}

void tui_planner_fit(tui_app *app, bool same) {
    tui_planner *p = app->planner;
    if (!p) return;
    tui_planner_forget_engine(app, "another model was loaded");
    if (same) return;
    tui_solver_close(&p->solver);
    tui_reading_close(&p->reading);
    p->running = -1;
    found_clear(p);
    influence_clear(p);
    free(p->locked);
    p->locked = NULL;
    for (int i = 0; i < TUI_STEP_COUNT; i++) p->steps[i] = (tui_step_info){0};
}
