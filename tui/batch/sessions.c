/* sessions.c -- `moascope sessions list|show|replay|export|prune`: what the workbench kept, for scripts and for a look back.
 *
 * An export is one JSON document of everything kept:
 *
 *   {"format": "moa-sessions", "version": 1, "program": "moascope ...", "sessions": [
 *     {as of list --json, "plan": the plan file the edits start from, or null for full attention,
 *      "edits": [{"label", "in_force", "changes": [{"layer", "head", "before": [alpha, beta], "after": [alpha, beta]}],
 *                 "marks": [{"layer", "head", "marked"}]}],
 *      "runs": [{as of show --json, "kv_bytes_plan", "plan", "sampling", "stats"}]}]}
 *
 * plan, sampling and stats are JSON values; a stored text that is not JSON comes as a string. Times are seconds since 1970, sizes
 * bytes. Prompts and outputs are whole: whatever could command a terminal is \u-escaped, invalid UTF-8 becomes U+FFFD. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/json.h"
#include "core/base/text.h"
#include "sessions/store.h"
#include "tui/batch/batch.h"
#include "tui/replay.h"
#include "version.h"

enum { OWN_STORE = MOA_OPT_OWN, OWN_MAX, OWN_OLDER, OWN_KEEP, OWN_DRY_RUN };

static void put_time(moa_buf *b, double seconds) {
    char text[32] = "-";
    const time_t t = (time_t)seconds;
    struct tm tm;
    if (isfinite(seconds) && localtime_r(&t, &tm)) (void)strftime(text, sizeof text, "%Y-%m-%d %H:%M", &tm);
    moa_buf_str(b, text);
}

static void put_clean(moa_buf *b, const char *text) {
    if (text) moa_text_clean(text, strlen(text), MOA_TEXT_LINE, b);
}

static void put_cut(moa_buf *b, const char *text, int cells) {
    moa_buf clean = {0};
    put_clean(&clean, text);
    (void)moa_text_cut(clean.data ? clean.data : "", clean.size, cells, b);
    moa_buf_free(&clean);
}

static void put_key(moa_buf *b, const char *lead, const char *key, const char *text) {
    moa_buf_printf(b, "%s\"%s\": ", lead, key);
    moa_text_json(text ? text : "", text ? strlen(text) : 0, b);
}

static void put_number(moa_buf *b, const char *key, double x) {
    moa_buf_printf(b, ", \"%s\": ", key);
    if (x == floor(x) && fabs(x) < 1e15)
        moa_buf_printf(b, "%.0f", x);
    else
        moa_json_number(b, x);
}

static void session_json(const moa_session *x, moa_buf *b) {
    moa_buf_printf(b, "{\"id\": %lld", (long long)x->id);
    put_number(b, "started", x->started);
    put_number(b, "changed", x->changed);
    put_key(b, ", ", "model", x->model_path);
    put_key(b, ", ", "model_name", x->model_name);
    put_key(b, ", ", "fingerprint", x->fingerprint);
    moa_buf_printf(b, ", \"n_layer\": %d, \"n_head\": %d, \"n_head_kv\": %d", x->n_layer, x->n_head,
                   x->n_head_kv);
    put_key(b, ", ", "plan_path", x->plan_path);
    put_key(b, ", ", "prompt", x->prompt);
    moa_buf_printf(b, ", \"undo_pos\": %d, \"n_run\": %d, \"n_edit\": %d", x->undo_pos, x->n_run, x->n_edit);
}

/* --- list ------------------------------------------------------------------------------------------------------------------------- */

static moa_status list(const moa_args *args, moa_store *store, moa_buf *b, moa_err *err) {
    moa_session *all = NULL;
    int32_t n = 0;
    const bool json = moa_args_text(args, MOA_OPT_JSON) != NULL;
    const moa_status s = moa_store_session_list(store, (int32_t)moa_args_int(args, OWN_MAX), &all, &n, err);
    if (s != MOA_OK) return s;
    if (json)
        moa_buf_str(b, "{\"sessions\": [");
    else if (n > 0)
        moa_buf_printf(b, "%6s  %-16s %5s %6s  %-28s %s\n", "id", "changed", "runs", "edits", "model",
                       "prompt");
    else
        moa_buf_str(b, "no sessions yet\n");
    for (int32_t i = 0; i < n; i++) {
        if (json) {
            moa_buf_str(b, i ? ",\n  " : "\n  ");
            session_json(&all[i], b);
            moa_buf_str(b, "}");
        } else {
            moa_buf_printf(b, "%6lld  ", (long long)all[i].id);
            put_time(b, all[i].changed);
            moa_buf_printf(b, " %5d %6d  ", all[i].n_run, all[i].n_edit);
            moa_buf name = {0};
            put_cut(&name, all[i].model_name, 28);
            moa_buf_printf(b, "%s%*s ", name.data ? name.data : "",
                           28 - moa_text_cells(name.data ? name.data : "", name.size), "");
            moa_buf_free(&name);
            put_cut(b, all[i].prompt, 60);
            moa_buf_str(b, "\n");
        }
        moa_session_free(&all[i]);
    }
    if (json) moa_buf_str(b, "\n]}\n");
    free(all);
    return MOA_OK;
}

/* --- show ------------------------------------------------------------------------------------------------------------------------- */

static void run_members(const moa_run_record *r, moa_buf *b) {
    moa_buf_printf(b, "{\"id\": %lld", (long long)r->id);
    put_number(b, "started", r->started);
    put_key(b, ", ", "kind", r->kind);
    put_key(b, ", ", "prompt", r->prompt);
    put_key(b, ", ", "output", r->output);
    put_key(b, ", ", "stop", r->stop);
    put_key(b, ", ", "device", r->device);
    moa_buf_printf(b, ", \"seed\": %llu", (unsigned long long)r->seed);
    put_number(b, "n_prompt", r->n_prompt);
    put_number(b, "n_gen", r->n_gen);
    put_number(b, "n_reserved", r->n_reserved);
    put_number(b, "prefill_s", r->prefill_s);
    put_number(b, "decode_s", r->decode_s);
    put_number(b, "ttft_s", r->ttft_s);
    put_number(b, "kv_bytes", (double)r->kv_bytes);
    put_number(b, "kv_bytes_dense", (double)r->kv_dense);
    put_number(b, "kv_bytes_mha", (double)r->kv_mha);
}

static void run_json(const moa_run_record *r, moa_buf *b) {
    run_members(r, b);
    moa_buf_str(b, "}");
}

static void run_text(const moa_run_record *r, moa_buf *b) {
    moa_buf_printf(b, "\nrun %lld  ", (long long)r->id);
    put_time(b, r->started);
    moa_buf_str(b, "  ");
    put_clean(b, r->kind);
    moa_buf_printf(b, "  %d + %d of %d tokens, KV %.2f of %.2f MiB, seed %llu, ", r->n_prompt, r->n_gen,
                   r->n_reserved, (double)r->kv_bytes / 1048576, (double)r->kv_dense / 1048576,
                   (unsigned long long)r->seed);
    put_clean(b, r->stop && r->stop[0] ? r->stop : "not finished");
    moa_buf_str(b, "\n  > ");
    put_cut(b, r->prompt, 100);
    moa_buf_str(b, "\n    ");
    put_cut(b, r->output, 200);
    moa_buf_str(b, "\n");
}

static moa_status id_of(const char *word, int64_t *id, moa_err *err) {
    char *end = NULL;
    *id = strtoll(word, &end, 10);
    if (end == word || *end || *id < 1)
        return moa_fail(err, MOA_E_USAGE, "session '%s': a number from `moascope sessions list`", word);
    return MOA_OK;
}

static moa_status show(const moa_args *args, moa_store *store, moa_buf *b, moa_err *err) {
    const char *word = moa_args_word(args, 1);
    const bool json = moa_args_text(args, MOA_OPT_JSON) != NULL;
    moa_session x = {0};
    moa_run_record *runs = NULL;
    int32_t n = 0;
    int64_t id = 0;
    moa_status s = MOA_OK;
    if (word) MOA_TRY(id_of(word, &id, err));
    MOA_TRY(moa_store_session_get(store, id, &x, err));
    MOA_TRY(moa_store_run_list(store, x.id, &runs, &n, err));
    if (json) {
        session_json(&x, b);
        put_key(b, ", ", "plan", x.plan);
        moa_buf_str(b, ", \"runs\": [");
    } else {
        moa_buf_printf(b, "session %lld  ", (long long)x.id);
        put_time(b, x.started);
        moa_buf_str(b, " to ");
        put_time(b, x.changed);
        moa_buf_str(b, "\n");
        put_clean(b, x.model_name);
        moa_buf_printf(b, ", %d layers x %d heads on %d KV heads\n", x.n_layer, x.n_head, x.n_head_kv);
        put_clean(b, x.model_path);
        moa_buf_str(b, "\nplan: ");
        put_clean(b, x.plan_path && x.plan_path[0] ? x.plan_path
                     : x.plan && x.plan[0]         ? "in the session"
                                                   : "full attention");
        moa_buf_printf(b, ", %d of %d edits in force\n", x.undo_pos, x.n_edit);
    }
    for (int32_t i = 0; i < n; i++) {
        if (json)
            moa_buf_str(b, i ? ",\n  " : "\n  "), run_json(&runs[i], b);
        else
            run_text(&runs[i], b);
    }
    if (json) moa_buf_str(b, "\n]}\n");
out:
    for (int32_t i = 0; i < n; i++)
        moa_run_record_free(&runs[i]);
    free(runs);
    moa_session_free(&x);
    return s;
}

/* --- export ----------------------------------------------------------------------------------------------------------------------- */

/* Stored JSON as it stands, "" as null, anything else as a string. Characters that could command a terminal are only in strings of
 * valid JSON, where an escape says the same. */
static void put_value(const char *key, const char *text, moa_buf *b) {
    size_t n = text ? strlen(text) : 0;
    while (n > 0 && text[n - 1] == '\n') n--;
    moa_buf_printf(b, ", \"%s\": ", key);
    if (n == 0) {
        moa_buf_str(b, "null");
        return;
    }
    if (moa_json_check(text, n, NULL) != MOA_OK) {
        moa_text_json(text, n, b);
        return;
    }
    for (size_t at = 0, took; at < n; at += took) {
        int32_t cp;
        took = moa_utf8_next(text + at, n - at, &cp, NULL);
        if (cp < 0x20 || !moa_text_unsafe(cp))
            moa_buf_append(b, text + at, took);
        else if (cp > 0xFFFF)
            moa_buf_printf(b, "\\u%04x\\u%04x", 0xD800u + (unsigned)((cp - 0x10000) >> 10),
                           0xDC00u + (unsigned)((cp - 0x10000) & 0x3FF));
        else
            moa_buf_printf(b, "\\u%04x", (unsigned)cp);
    }
}

typedef struct edit_sink {
    moa_buf *b;
    int32_t n, undo_pos;
} edit_sink;

static void put_rule(moa_buf *b, const char *key, moa_rule rule) {
    moa_buf_printf(b, ", \"%s\": [", key);
    moa_json_number(b, rule.alpha);
    moa_buf_str(b, ", ");
    moa_json_number(b, rule.beta);
    moa_buf_str(b, "]");
}

static bool put_edit(void *user, const char *label, const moa_change *changes, int32_t n) {
    edit_sink *e = user;
    int32_t done = 0;
    put_key(e->b, e->n ? ",\n    {" : "\n    {", "label", label);
    moa_buf_printf(e->b, ", \"in_force\": %s, \"changes\": [", e->n < e->undo_pos ? "true" : "false");
    for (int32_t i = 0; i < n; i++) {
        if (changes[i].layer < 0) continue;
        moa_buf_printf(e->b, "%s{\"layer\": %d, \"head\": %d", done++ ? ", " : "", changes[i].layer, changes[i].head);
        put_rule(e->b, "before", changes[i].before);
        put_rule(e->b, "after", changes[i].after);
        moa_buf_str(e->b, "}");
    }
    moa_buf_str(e->b, "], \"marks\": [");
    done = 0;
    for (int32_t i = 0; i < n; i++)
        if (changes[i].layer < 0)
            moa_buf_printf(e->b, "%s{\"layer\": %d, \"head\": %d, \"marked\": %s}", done++ ? ", " : "",
                           -1 - changes[i].layer, changes[i].head, changes[i].after.alpha != 0 ? "true" : "false");
    moa_buf_str(e->b, "]}");
    e->n++;
    return moa_buf_ok(e->b);
}

static moa_status export_one(moa_store *store, const moa_session *x, moa_buf *b, moa_err *err) {
    edit_sink edits = {b, 0, x->undo_pos};
    moa_run_record *runs = NULL;
    int32_t n = 0;
    moa_status s = MOA_OK;
    session_json(x, b);
    put_value("plan", x->plan, b);
    moa_buf_str(b, ", \"edits\": [");
    MOA_TRY(moa_store_edits(store, x->id, put_edit, &edits, err));
    moa_buf_str(b, "],\n  \"runs\": [");
    MOA_TRY(moa_store_run_list(store, x->id, &runs, &n, err));
    for (int32_t i = 0; i < n; i++) {
        moa_buf_str(b, i ? ",\n    " : "\n    ");
        run_members(&runs[i], b);
        put_number(b, "kv_bytes_plan", (double)runs[i].kv_plan);
        put_value("plan", runs[i].plan, b);
        put_value("sampling", runs[i].sampling, b);
        put_value("stats", runs[i].stats, b);
        moa_buf_str(b, "}");
    }
    moa_buf_str(b, "]}");
out:
    for (int32_t i = 0; i < n; i++) moa_run_record_free(&runs[i]);
    free(runs);
    return s;
}

static moa_status export_sessions(const moa_args *args, moa_store *store, moa_buf *b, moa_err *err) {
    const char *word = moa_args_word(args, 1);
    moa_session *all = NULL;
    int32_t n = 0;
    int64_t id = 0;
    moa_status s = MOA_OK;
    if (!word) return moa_fail(err, MOA_E_USAGE, "usage: moascope sessions export ID|all [--json F|-]");
    if (strcmp(word, "all") == 0) {
        MOA_TRY(moa_store_session_list(store, INT32_MAX, &all, &n, err));
    } else {
        MOA_TRY(id_of(word, &id, err));
        all = calloc(1, sizeof *all);
        if (!all) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a session"));
        MOA_TRY(moa_store_session_get(store, id, all, err));
        n = 1;
    }
    moa_buf_str(b, "{\"format\": \"moa-sessions\", \"version\": 1, \"program\": \"moascope " MOA_VERSION
                   "\", \"sessions\": [");
    for (int32_t i = 0; i < n; i++) {
        moa_buf_str(b, i ? ",\n  " : "\n  ");
        MOA_TRY(export_one(store, &all[i], b, err));
    }
    moa_buf_str(b, "\n]}\n");
out:
    for (int32_t i = 0; i < n; i++) moa_session_free(&all[i]);
    free(all);
    return s;
}

/* --- prune ------------------------------------------------------------------------------------------------------------------------ */

/* "30d", "12h", "45m", "90s"; seconds */
static moa_status age_of(const char *text, double *out, moa_err *err) {
    static const struct {
        char unit;
        double seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 604800}};
    char *end = NULL;
    const double x = strtod(text, &end);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++)
        if (end != text && *end == units[u].unit && !end[1] && x > 0 && x <= 1e9) {
            *out = x * units[u].seconds;
            return MOA_OK;
        }
    return moa_fail(err, MOA_E_USAGE, "--older-than %s: a number above 0 and its unit s, m, h, d or w, like 30d", text);
}

static moa_status prune(const moa_args *args, moa_store *store, moa_buf *b, moa_err *err) {
    const char *older = moa_args_text(args, OWN_OLDER), *json = moa_args_text(args, MOA_OPT_JSON);
    moa_prune what = {.keep = (int32_t)moa_args_int(args, OWN_KEEP), .dry_run = moa_args_has(args, OWN_DRY_RUN)};
    moa_session *gone = NULL;
    int32_t n = 0, n_open = 0;
    moa_status s = MOA_OK;
    moa_err busy = {0};
    if (args->n_word > 1 || (!older && !moa_args_has(args, OWN_KEEP)))
        return moa_fail(err, MOA_E_USAGE, "usage: moascope sessions prune --older-than 30d and/or --keep N [--dry-run]");
    if (older) MOA_TRY(age_of(older, &what.older_s, err));
    MOA_TRY(moa_store_prune(store, &what, &gone, &n, &n_open, err));
    if (json) moa_buf_printf(b, "{\"dry_run\": %s, \"n_open\": %d, \"gone\": [", what.dry_run ? "true" : "false", n_open);
    for (int32_t i = 0; i < n; i++) {
        if (json) {
            moa_buf_str(b, i ? ",\n  " : "\n  ");
            session_json(&gone[i], b);
            moa_buf_str(b, "}");
            continue;
        }
        moa_buf_printf(b, "session %lld  ", (long long)gone[i].id);
        put_time(b, gone[i].changed);
        moa_buf_printf(b, "  %d runs, %d edits  ", gone[i].n_run, gone[i].n_edit);
        put_cut(b, gone[i].model_name, 28);
        moa_buf_str(b, "  ");
        put_cut(b, gone[i].prompt, 60);
        moa_buf_str(b, "\n");
    }
    if (json) moa_buf_str(b, "\n]}\n");
    else moa_buf_printf(b, "%d session%s %s\n", n, n == 1 ? "" : "s", what.dry_run ? "would go" : "gone");
    if (n_open > 0) moa_remark(args, "%d more stay: a running moascope has them open", n_open);
    if (n > 0 && !what.dry_run && moa_store_compact(store, &busy) != MOA_OK)
        moa_remark(args, "the sessions are gone, but the file keeps its size for now: %s", busy.text);
out:
    for (int32_t i = 0; i < n; i++) moa_session_free(&gone[i]);
    free(gone);
    return s;
}

/* --- the verbs -------------------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    moa_status (*run)(const moa_args *args, moa_store *store, moa_buf *out, moa_err *err);
} verbs[] = {{"list", list}, {"show", show}, {"replay", moa_replay}, {"export", export_sessions}, {"prune", prune}};

static moa_status run(const moa_args *args, moa_err *err) {
    const char *word = moa_args_word(args, 0), *json = moa_args_text(args, MOA_OPT_JSON);
    char note[512] = "";
    size_t verb = 0;
    moa_store *store = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    while (word && verb < sizeof verbs / sizeof *verbs && strcmp(word, verbs[verb].name) != 0) verb++;
    if (verb == sizeof verbs / sizeof *verbs)
        return moa_fail(err, MOA_E_USAGE, "'%s': list, show, replay, export or prune", word);
    if (verb == 0 && args->n_word > 1)
        return moa_fail(err, MOA_E_USAGE, "usage: moascope sessions list [--json F|-]");
    MOA_TRY(moa_store_open(&store, moa_args_text(args, OWN_STORE), note, sizeof note, err));
    if (note[0]) moa_remark(args, "%s", note);
    s = verbs[verb].run(args, store, &text, err);
    if (s == MOA_OK || (s == MOA_E_FAILED && verbs[verb].run == moa_replay)) /* how far it was the same */
        MOA_TRY(moa_output_save(json ? json : "-", &text, s == MOA_OK ? err : NULL) == MOA_OK ? s : MOA_E_IO);
out:
    moa_store_close(&store);
    moa_buf_free(&text);
    return s;
}

static const int options[] = {MOA_OPT_JSON,      MOA_OPT_QUIET, MOA_OPT_MODEL,   MOA_OPT_DEVICE, MOA_OPT_KV,
                              MOA_OPT_REFERENCE, MOA_OPT_CHUNK, MOA_OPT_THREADS, MOA_OPT_END};
static const moa_option own[] = {
    {"--store", MOA_OPTION_TEXT, "FILE", NULL, 0, 0, false, "another session store than the usual one"},
    {"--max", MOA_OPTION_INT, "N", "50", 1, 100000, false, "list: the newest N"},
    {"--older-than", MOA_OPTION_TEXT, "AGE", NULL, 0, 0, false, "prune: not changed for 30d, 12h, ..."},
    {"--keep", MOA_OPTION_INT, "N", NULL, 0, 1000000, false, "prune: the newest N stay"},
    {"--dry-run", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "prune: only say what would go"},
    {0},
};

const moa_batch moa_batch_sessions = {
    .name = "sessions",
    .help = "what the workbench kept: sessions and their runs",
    .usage = "list [--max N] [--json F|-]\nshow [ID] [--json F|-]\nreplay [ID] [--model FILE] [--json F|-]\nexport ID|all [--json F|-]\n"
             "prune --older-than AGE|--keep N [--dry-run] [--json F|-]",
    .options = options,
    .own = own,
    .max_words = 2,
    .more = "replay: the session's runs once more, with the same model, plans, settings and seeds; exit 1 at the first token that "
            "differs.\n--model, --device, --kv, --reference, --chunk and --threads are of replay.\n"
            "show without ID: the newest session that has a run or an edit. With both rules, prune takes what is old and not among "
            "the newest;\nnever a session that a running moascope has open.",
    .run = run,
};
