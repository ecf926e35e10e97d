/* search.c -- `moascope search`: plans of a bounded KV density and the least predicted loss, from an influence profile.
 *
 *   INFLUENCE.npz --> candidate rules, losses, memory --> solves with a certificate each --> DIR/plan_01.json ... and DIR/pareto.json
 *
 *   plan_NN.json   our plan files; "provenance" holds settings, objective, bound, gap, time, predicted loss and density by length
 *   pareto.json    the same as one table: {"settings", "solves", "plans": [...]}
 *
 * Several densities are searched one after the other and numbered through. ^C leaves nothing: files are written once all is solved. */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/text.h"
#include "plans/search.h"
#include "tui/batch/batch.h"
#include "version.h"

enum { DENSITY_MAX = 16, FORBID_MAX = 256, PATH_BYTES = 4096 };

/* rows of `own` below, in its order */
enum {
    OWN_DENSITY = MOA_OPT_OWN, OWN_DENSITY_LOW, OWN_EXTEND, OWN_MEASURE, OWN_PER, OWN_BUDGET, OWN_MAX_RULES, OWN_ALPHA_STEP, OWN_FORBID,
    OWN_LOCK, OWN_LOCKED, OWN_INTERVALS, OWN_PLANS, OWN_GAP, OWN_GAINS, OWN_STRETCH, OWN_AROUND, OWN_STEP, OWN_LP, OWN_SEED,
    OWN_THREADS
};

typedef struct job {
    const moa_args *args;
    moa_losses *losses;
    moa_measure measure;
    double density[DENSITY_MAX];
    int n_density;
    int32_t extend[MOA_SEARCH_BOUND_MAX];
    moa_rule forbid[FORBID_MAX];
    moa_plan *lock, *around;
    uint8_t *locked;
    moa_search_config config;
    moa_search_result result[DENSITY_MAX];
    double seconds;
} job;

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- settings ----------------------------------------------------------------------------------------------------------------------- */

static moa_status take_densities(job *j, moa_err *err) {
    const char *text = moa_args_text(j->args, OWN_DENSITY), *at = text;
    for (;;) {
        char *end;
        const double x = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(x > 0 && x <= 1))
            return moa_fail(err, MOA_E_USAGE, "--density %s: numbers above 0 and at most 1, with commas", text);
        if (j->n_density == DENSITY_MAX) return moa_fail(err, MOA_E_USAGE, "--density: more than %d", DENSITY_MAX);
        j->density[j->n_density++] = x;
        if (!*end) return MOA_OK;
        at = end + 1;
    }
}

static moa_status take_forbidden(job *j, moa_err *err) {
    const char *text;
    for (int i = 0; (text = moa_args_list(j->args, OWN_FORBID, i)); i++) {
        moa_rule r;
        char *end;
        r.alpha = strtod(text, &end);
        const char *second = *end == ',' ? end + 1 : NULL;
        r.beta = second ? strtod(second, &end) : 0;
        if (!second || end == second || *end || !isfinite(r.alpha) || !isfinite(r.beta))
            return moa_fail(err, MOA_E_USAGE, "--forbid %s: ALPHA,BETA such as 0,1", text);
        if (j->config.n_forbid == FORBID_MAX) return moa_fail(err, MOA_E_USAGE, "--forbid: more than %d rules", FORBID_MAX);
        j->forbid[j->config.n_forbid++] = r;
    }
    j->config.forbid = j->forbid;
    return MOA_OK;
}

static moa_status one_of(const job *j, int option, const char *name, const char *const *words, int *out, moa_err *err) {
    const char *text = moa_args_text(j->args, option);
    char all[128] = "";
    for (int i = 0; words[i]; i++) {
        if (strcmp(text, words[i]) == 0) return *out = i, MOA_OK;
        (void)snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", words[i]);
    }
    return moa_fail(err, MOA_E_USAGE, "%s %s: one of %s", name, text, all);
}

/* "3.0-3.8,5.*": layer.head, a range of heads of one layer, or all heads of a layer, as numbers alone */
static moa_status select_plain(const char *text, int32_t n_layer, int32_t n_head, uint8_t *mask, moa_err *err) {
    for (const char *at = text; *at;) {
        char *end;
        const long layer = strtol(at, &end, 10);
        long from = 0, to = n_head - 1;
        bool ok = end != at && *end == '.' && layer >= 0 && layer < n_layer;
        if (ok && end[1] == '*') end += 2;
        else if (ok) {
            at = end + 1;
            from = to = strtol(at, &end, 10);
            ok = end != at;
            if (ok && *end == '-') {
                at = end + 1;
                ok = strtol(at, &end, 10) == layer && *end == '.';
                at = end + 1;
                if (ok) to = strtol(at, &end, 10);
                ok = ok && end != at;
            }
        }
        if (!ok || from < 0 || to < from || to >= n_head || (*end && *end != ','))
            return moa_fail(err, MOA_E_USAGE, "--locked %s: LAYER.HEAD, LAYER.HEAD-LAYER.HEAD or LAYER.* below %d.%d, with commas", text,
                            n_layer, n_head);
        memset(mask + layer * n_head + from, 1, (size_t)(to - from + 1));
        at = *end ? end + 1 : end;
    }
    return MOA_OK;
}

static moa_status take_lock(job *j, moa_err *err) {
    const char *plan = moa_args_text(j->args, OWN_LOCK), *heads = moa_args_text(j->args, OWN_LOCKED);
    const moa_losses *l = j->losses;
    if (!plan && !heads) return MOA_OK;
    if (!plan || !heads) return moa_fail(err, MOA_E_USAGE, "--lock PLAN and --locked HEADS belong together");
    const moa_status s = moa_plan_open(&j->lock, plan, l->n_layer, l->n_head, err);
    if (s != MOA_OK) return s;
    j->locked = calloc((size_t)l->n_layer, (size_t)l->n_head);
    if (!j->locked) return moa_fail(err, MOA_E_MEMORY, "no memory for %d x %d heads", l->n_layer, l->n_head);
    j->config.lock = j->lock, j->config.locked = j->locked;
    if (heads[0] >= '0' && heads[0] <= '9') return select_plain(heads, l->n_layer, l->n_head, j->locked, err);
    return moa_select(heads, l->n_layer, l->n_head, l->n_head_kv, j->locked, err);
}

static moa_status take_losses(job *j, moa_err *err) {
    static const char *const measures[] = {
#define X(NAME, name) name,
        MOA_MEASURE_MAP(X)
#undef X
            NULL};
    int32_t lengths[MOA_LOSSES_LENGTH_MAX];
    int measure;
    moa_status s = one_of(j, OWN_MEASURE, "--measure", measures, &measure, err);
    if (s != MOA_OK) return s;
    const int n = moa_args_ints(j->args, MOA_OPT_LENGTHS, lengths, MOA_LOSSES_LENGTH_MAX);
    const moa_losses_config c = {.path = moa_args_word(j->args, 0), .measure = (moa_measure)measure, .length = lengths, .n_length = n,
                                 .n_head_kv = (int32_t)moa_args_int(j->args, MOA_OPT_MODEL_HEADS_KV)};
    j->measure = (moa_measure)measure;
    s = moa_losses_load(&j->losses, &c, err);
    if (s != MOA_OK) return s;
    if (!moa_args_has(j->args, OWN_GAINS)) moa_losses_drop_gains(j->losses);
    if (moa_args_has(j->args, OWN_STRETCH)) {
        s = moa_losses_stretch(j->losses, j->config.extend, j->config.n_extend, err);
        if (s != MOA_OK) return s;
    }
    if (!j->losses->kv_known)
        moa_remark(j->args, "%s does not say how many KV heads there are: taken as %d, one a query head; --model-heads-kv says otherwise",
                   c.path, j->losses->n_head);
    return MOA_OK;
}

static void on_progress(void *user, const moa_search_progress *p) {
    const job *j = user;
    moa_progress_show(j->args, "search", p->done, p->total, "solves");
}

static moa_status take_settings(job *j, moa_err *err) {
    static const char *const per[] = {"group", "head", NULL}, *const budget[] = {"kv", "head", NULL};
    const moa_args *a = j->args;
    moa_search_config *c = &j->config;
    moa_status s = MOA_OK;
    int word;
    MOA_TRY(take_densities(j, err));
    MOA_TRY(take_forbidden(j, err));
    MOA_TRY(one_of(j, OWN_PER, "--per", per, &word, err));
    c->per = word ? MOA_PER_HEAD : MOA_PER_GROUP;
    MOA_TRY(one_of(j, OWN_BUDGET, "--budget", budget, &word, err));
    c->budget = word ? MOA_BUDGET_HEAD : MOA_BUDGET_KV;
    c->n_extend = moa_args_ints(a, OWN_EXTEND, j->extend, MOA_SEARCH_BOUND_MAX);
    if (c->n_extend > MOA_SEARCH_BOUND_MAX)
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "--extend: %d lengths, at most %d", c->n_extend, MOA_SEARCH_BOUND_MAX));
    c->extend = j->extend;
    c->max_rules = (int32_t)moa_args_int(a, OWN_MAX_RULES);
    c->alpha_step = (int32_t)moa_args_int(a, OWN_ALPHA_STEP);
    c->n_interval = (int32_t)moa_args_int(a, OWN_INTERVALS);
    c->n_plan_max = (int32_t)moa_args_int(a, OWN_PLANS);
    c->gap = moa_args_real(a, OWN_GAP);
    c->seed = (uint64_t)moa_args_int(a, OWN_SEED);
    c->n_thread = (int32_t)moa_args_int(a, OWN_THREADS);
    if (c->n_thread == 0) c->n_thread = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    if (c->n_thread > MOA_SEARCH_THREAD_MAX) c->n_thread = MOA_SEARCH_THREAD_MAX;
    c->lp_path = moa_args_text(a, OWN_LP);
    c->cancelled = moa_interrupted, c->progress = on_progress, c->user = j;
    MOA_TRY(take_losses(j, err));
    MOA_TRY(take_lock(j, err));
    if (moa_args_has(a, OWN_AROUND))
        MOA_TRY(moa_plan_open(&j->around, moa_args_text(a, OWN_AROUND), j->losses->n_layer, j->losses->n_head, err));
    c->around = j->around;
    c->step = moa_args_real(a, OWN_STEP);
out:
    return s;
}

/* --- files -------------------------------------------------------------------------------------------------------------------------- */

static void put_number(moa_buf *out, const char *before, double x) {
    moa_buf_str(out, before);
    moa_json_number(out, x);
}

static void put_settings(const job *j, const moa_search_result *r, moa_buf *out) {
    const moa_search_config *c = &j->config;
    const char *path = moa_args_word(j->args, 0);
    moa_buf_str(out, "{\"program\": \"" MOA_VERSION "\", \"influence\": ");
    moa_text_json(path, strlen(path), out);
    moa_buf_printf(out, ", \"measure\": \"%s\", \"per\": \"%s\", \"budget\": \"%s\", \"gains\": %s, \"stretch\": %s", moa_measure_name(j->measure),
                   c->per == MOA_PER_HEAD ? "head" : "group", c->budget == MOA_BUDGET_HEAD ? "head" : "kv",
                   moa_args_has(j->args, OWN_GAINS) ? "true" : "false", moa_args_has(j->args, OWN_STRETCH) ? "true" : "false");
    put_number(out, ", \"density\": ", r->density_high);
    put_number(out, ", \"density_low\": ", r->density_low);
    if (c->around) {
        moa_buf_str(out, ", \"around\": ");
        moa_text_json(moa_args_text(j->args, OWN_AROUND), strlen(moa_args_text(j->args, OWN_AROUND)), out);
        put_number(out, ", \"step\": ", c->step);
    }
    moa_buf_printf(out, ", \"max_rules\": %d, \"alpha_step\": %d, \"rules\": %d, \"locked\": %s, \"forbidden\": %d, \"seed\": %llu}",
                   c->max_rules, r->alpha_step, r->n_rule, c->locked ? "true" : "false", c->n_forbid, (unsigned long long)c->seed);
}

/* the members of one plan's record */
static void put_found(const job *j, const moa_search_result *r, const moa_found *f, moa_buf *out) {
    const moa_losses *l = j->losses;
    if (f->objective < 0) moa_buf_str(out, "\"objective\": \"mean\"");
    else moa_buf_printf(out, "\"objective\": \"%d\"", l->length[f->objective]);
    put_number(out, ", \"best\": ", f->best);
    put_number(out, ", \"bound\": ", f->bound);
    put_number(out, ", \"gap\": ", f->gap);
    put_number(out, ", \"cpu_seconds\": ", f->seconds);
    put_number(out, ", \"mean_loss\": ", f->mean);
    moa_buf_str(out, ", \"loss\": {");
    for (int32_t i = 0; i < l->n_length; i++) {
        moa_buf_printf(out, "%s\"%d\": ", i ? ", " : "", l->length[i]);
        moa_json_number(out, f->loss[i]);
    }
    const struct {
        const char *key;
        const double *x;
    } densities[] = {{"kv_density", f->density_kv}, {"head_density", f->density_head}};
    for (size_t k = 0; k < 2; k++) {
        moa_buf_printf(out, "}, \"%s\": {", densities[k].key);
        for (int32_t b = 0; b < r->n_bound; b++) {
            moa_buf_printf(out, "%s\"%d\": ", b ? ", " : "", r->bound_at[b]);
            moa_json_number(out, densities[k].x[b]);
        }
    }
    moa_buf_str(out, "}");
}

static moa_status add_provenance(const job *j, const moa_search_result *r, const moa_found *f, moa_err *err) {
    moa_buf b = {0};
    moa_buf_str(&b, "\"provenance\": {\"search\": ");
    put_settings(j, r, &b);
    moa_buf_str(&b, ", ");
    put_found(j, r, f, &b);
    moa_buf_str(&b, "}");
    if (!moa_buf_ok(&b)) {
        moa_buf_free(&b);
        return moa_fail(err, MOA_E_MEMORY, "no memory for a plan's provenance");
    }
    free(f->plan->extra);
    f->plan->extra = b.data; /* moved */
    return MOA_OK;
}

static bool is_plan_file(const char *name) {
    const size_t n = strlen(name);
    return strncmp(name, "plan_", 5) == 0 && n > 10 && strcmp(name + n - 5, ".json") == 0;
}

/* plan files of an earlier search: refused, or removed with --force (they would be validated with ours) */
static moa_status clear_folder(const job *j, const char *dir, bool remove, moa_err *err) {
    DIR *d = opendir(dir);
    char path[PATH_BYTES];
    int n = 0;
    if (!d) return MOA_OK; /* not there yet */
    for (const struct dirent *e; (e = readdir(d));) {
        if (!is_plan_file(e->d_name)) continue;
        n++;
        if (remove && snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < (int)sizeof path) (void)unlink(path);
    }
    (void)closedir(d);
    if (n == 0 || moa_args_has(j->args, MOA_OPT_FORCE)) return MOA_OK;
    return moa_fail(err, MOA_E_FAILED, "%s: %d plan file%s there already; --force replaces them", dir, n, n == 1 ? " is" : "s are");
}

static void put_table(const job *j, moa_buf *out) {
    int n = 0;
    moa_buf_str(out, "{\"format\": \"moa-pareto\", \"version\": 1, \"plans\": [");
    for (int d = 0; d < j->n_density; d++)
        for (int32_t i = 0; i < j->result[d].n_found; i++) {
            moa_buf_printf(out, "%s\n {\"file\": \"plan_%02d.json\", ", n ? "," : "", n + 1);
            put_number(out, "\"density\": ", j->result[d].density_high);
            moa_buf_str(out, ", ");
            put_found(j, &j->result[d], &j->result[d].found[i], out);
            moa_buf_printf(out, ", \"rules_per_layer\": %d}", moa_plan_max_rules_per_layer(j->result[d].found[i].plan));
            n++;
        }
    moa_buf_str(out, "],\n\"searches\": [");
    for (int d = 0; d < j->n_density; d++) {
        const moa_search_result *r = &j->result[d];
        moa_buf_printf(out, "%s\n {\"settings\": ", d ? "," : "");
        put_settings(j, r, out);
        moa_buf_printf(out, ", \"solves\": %d, \"proven_empty\": %d, \"nothing_found\": %d", r->n_solve, r->n_infeasible, r->n_none);
        put_number(out, ", \"gap_median\": ", r->gap_median);
        put_number(out, ", \"gap_worst\": ", r->gap_worst);
        put_number(out, ", \"cpu_seconds\": ", r->cpu_seconds);
        moa_buf_str(out, "}");
    }
    put_number(out, "],\n\"seconds\": ", j->seconds);
    moa_buf_str(out, "}\n");
}

static moa_status save(const job *j, const char *dir, moa_err *err) {
    const char *json = moa_args_text(j->args, MOA_OPT_JSON);
    char path[PATH_BYTES];
    moa_buf table = {0};
    moa_status s = MOA_OK;
    int n = 0;
    MOA_TRY(moa_dir_make(dir, err));
    MOA_TRY(clear_folder(j, dir, moa_args_has(j->args, MOA_OPT_FORCE), err));
    for (int d = 0; d < j->n_density; d++)
        for (int32_t i = 0; i < j->result[d].n_found; i++) {
            const moa_found *f = &j->result[d].found[i];
            if (snprintf(path, sizeof path, "%s/plan_%02d.json", dir, ++n) >= (int)sizeof path)
                MOA_TRY(moa_fail(err, MOA_E_USAGE, "the folder's name is longer than %d bytes", PATH_BYTES - 32));
            MOA_TRY(add_provenance(j, &j->result[d], f, err));
            MOA_TRY(moa_plan_save(f->plan, path, true, err));
        }
    put_table(j, &table);
    if (!moa_buf_ok(&table)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a table of %d plans", n));
    if (snprintf(path, sizeof path, "%s/pareto.json", dir) >= (int)sizeof path)
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "the folder's name is longer than %d bytes", PATH_BYTES - 32));
    MOA_TRY(moa_file_save(path, table.data, table.size, 0644, 0, err));
    if (json) s = moa_output_save(json, &table, err);
out:
    moa_buf_free(&table);
    return s;
}

/* --- the table ------------------------------------------------------------------------------------------------------------------------ */

static moa_status show(const job *j, moa_err *err) {
    const char *json = moa_args_text(j->args, MOA_OPT_JSON);
    const moa_losses *l = j->losses;
    moa_buf b = {0};
    int n = 0;
    if (json && strcmp(json, "-") == 0) return MOA_OK;
    moa_buf_str(&b, "plan     minimises      gap  rules |");
    for (int32_t i = 0; i < l->n_length; i++) moa_buf_printf(&b, "  loss@%-6d", l->length[i]);
    moa_buf_str(&b, "|");
    for (int32_t k = 0; k < j->result[0].n_bound; k++) moa_buf_printf(&b, " %s@%-6d", j->config.budget == MOA_BUDGET_HEAD ? "hd" : "kv", j->result[0].bound_at[k]);
    moa_buf_str(&b, "\n");
    for (int d = 0; d < j->n_density; d++)
        for (int32_t i = 0; i < j->result[d].n_found; i++) {
            const moa_found *f = &j->result[d].found[i];
            moa_buf_printf(&b, "plan_%02d  ", ++n);
            if (f->objective < 0) moa_buf_str(&b, "     mean");
            else moa_buf_printf(&b, "%9d", l->length[f->objective]);
            moa_buf_printf(&b, " %7.4f%%  %5d |", 100 * f->gap, moa_plan_max_rules_per_layer(f->plan));
            for (int32_t k = 0; k < l->n_length; k++) moa_buf_printf(&b, " %11.5g ", f->loss[k]);
            moa_buf_str(&b, "|");
            for (int32_t k = 0; k < j->result[d].n_bound; k++) moa_buf_printf(&b, "   %.4f ", f->density[k]);
            moa_buf_str(&b, "\n");
        }
    const moa_status s = moa_output_save("-", &b, err);
    moa_buf_free(&b);
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    const char *dir = moa_args_text(args, MOA_OPT_OUTPUT);
    job j = {.args = args};
    moa_status s = MOA_OK;
    if (!dir) return moa_fail(err, MOA_E_USAGE, "where to? -o DIR takes plan_01.json ... and pareto.json");
    MOA_TRY(take_settings(&j, err));
    MOA_TRY(clear_folder(&j, dir, false, err));
    moa_interrupt_catch();
    const double begin = now_s();
    for (int d = 0; d < j.n_density; d++) {
        j.config.density = j.density[d];
        j.config.density_low = !moa_args_has(args, OWN_DENSITY_LOW)           ? 0
                               : moa_args_real(args, OWN_DENSITY_LOW) == 0 ? -1
                                                                           : moa_args_real(args, OWN_DENSITY_LOW);
        if (d > 0) j.config.lp_path = NULL; /* the first density's */
        MOA_TRY(moa_search_run(j.losses, &j.config, &j.result[d], err));
        const moa_search_result *r = &j.result[d];
        moa_progress_show(args, "search", 1, 1, "solves");
        moa_remark(args,
                   "density %g to %g of %s: %d rules (step %d), %d solves, %d cells proven empty, %d open; gap median %.4f %%, worst "
                   "%.4f %%; %d plans; %.2f CPU s",
                   r->density_low, r->density_high, j.config.budget == MOA_BUDGET_HEAD ? "query heads" : "KV heads", r->n_rule,
                   r->alpha_step, r->n_solve, r->n_infeasible, r->n_none, 100 * r->gap_median, 100 * r->gap_worst, r->n_found,
                   r->cpu_seconds);
    }
    j.seconds = now_s() - begin;
    MOA_TRY(save(&j, dir, err));
    s = show(&j, err);
out:
    for (int d = 0; d < j.n_density; d++) moa_search_result_free(&j.result[d]);
    moa_losses_close(&j.losses);
    moa_plan_close(&j.lock);
    moa_plan_close(&j.around);
    free(j.locked);
    return s;
}

static const int options[] = {MOA_OPT_LENGTHS, MOA_OPT_MODEL_HEADS_KV, MOA_OPT_JSON, MOA_OPT_OUTPUT,
                              MOA_OPT_FORCE,   MOA_OPT_QUIET,          MOA_OPT_END};
static const moa_option own[] = {
    {"--density", MOA_OPTION_TEXT, "D[,D...]", "0.5", 0, 0, false, "share of the KV kept at every length, at most"},
    {"--density-low", MOA_OPTION_REAL, "D", NULL, 0, 1, false, "and at least; 0: no bound (default: 0.9 times the other)"},
    {"--extend", MOA_OPTION_INTS, "N,N,...", NULL, 1, 16777216, false, "further lengths at which the bounds hold, tokens"},
    {"--measure", MOA_OPTION_TEXT, "joint|abs|signed", "joint", 0, 0, false, "which influence to minimise"},
    {"--per", MOA_OPTION_TEXT, "group|head", "group", 0, 0, false, "one rule a KV group, or one a query head"},
    {"--budget", MOA_OPTION_TEXT, "kv|head", "kv", 0, 0, false,
     "the density counts the widest head of each group, or every query head"},
    {"--max-rules", MOA_OPTION_INT, "K", "0", 0, 16, false, "distinct rules a layer at most; 0: any"},
    {"--alpha-step", MOA_OPTION_INT, "T", "0", 0, 16777216, false,
     "grid of alpha, tokens; 0: an eighth of the shortest length, rounded to 64"},
    {"--forbid", MOA_OPTION_LIST, "A,B", NULL, 0, 0, false, "rules (alpha,beta) to leave out"},
    {"--lock", MOA_OPTION_TEXT, "PLAN", NULL, 0, 0, false, "a plan of which some heads keep their rules"},
    {"--locked", MOA_OPTION_TEXT, "HEADS", NULL, 0, 0, false, "those heads: \"3.0-3.8,5.*\" or a selector, \"L3.H0-8 L5.*\""},
    {"--intervals", MOA_OPTION_INT, "I", "4", 1, 16, false, "levels of loss by which a length is bounded for the others"},
    {"--plans", MOA_OPTION_INT, "P", "24", 0, 900, false, "plans to keep of a density's front, spread out; 0: all"},
    {"--gap", MOA_OPTION_REAL, "G", "0.0002", 0, 1, false, "a solve stops at this certified gap"},
    {"--gains", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "count the loss that a cut head is predicted to save, too"},
    {"--stretch", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "the lengths of --extend have losses too: the longest profile, stretched"},
    {"--around", MOA_OPTION_TEXT, "PLAN", NULL, 0, 0, false, "stay near this plan: the one that was profiled, or the last round's"},
    {"--step", MOA_OPTION_REAL, "S", "0.25", 0, 1, false, "how near: the mean change of the share that a head keeps"},
    {"--lp", MOA_OPTION_TEXT, "FILE", NULL, 0, 0, false, "also write the mean-loss problem for other solvers"},
    {"--seed -s", MOA_OPTION_INT, "S", "1", 0, 9007199254740992.0, false, "same seed, same plans, whatever the threads"},
    {"--threads -t", MOA_OPTION_INT, "N", "0", 0, 256, false, "solves at a time; 0: all cores"},
    {0},
};

const moa_batch moa_batch_search = {
    .name = "search",
    .help = "find plans: least predicted loss at a bounded density, with a certificate",
    .usage = "INFLUENCE.npz --density D [--lengths N,N] [--extend N,N] -o DIR",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 1,
    .more = "Writes DIR/plan_01.json ... and DIR/pareto.json. INFLUENCE.npz comes from `profile`; a file of one array "
            "[layers][heads][blocks][blocks] is taken too.\n"
            "gap is (best - bound) / best of the solve that found the plan: no plan within its bounds is better by more.",
    .run = run,
};
