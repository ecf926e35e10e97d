/* sessions.c -- `moascope sessions list|show`: what the workbench kept, for scripts and for a look back. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/json.h"
#include "core/base/text.h"
#include "sessions/store.h"
#include "tui/batch/batch.h"

enum { OWN_STORE = MOA_OPT_OWN, OWN_MAX };

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

static void run_json(const moa_run_record *r, moa_buf *b) {
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

static moa_status show(const moa_args *args, moa_store *store, moa_buf *b, moa_err *err) {
    const char *word = moa_args_word(args, 1);
    const bool json = moa_args_text(args, MOA_OPT_JSON) != NULL;
    moa_session x = {0};
    moa_run_record *runs = NULL;
    int32_t n = 0;
    char *end = NULL;
    const long long id = word ? strtoll(word, &end, 10) : 0;
    moa_status s = MOA_OK;
    if (word && (end == word || *end || id < 1))
        return moa_fail(err, MOA_E_USAGE, "session '%s': a number from `moascope sessions list`", word);
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

static moa_status run(const moa_args *args, moa_err *err) {
    const char *word = moa_args_word(args, 0), *json = moa_args_text(args, MOA_OPT_JSON);
    const bool is_list = !word || strcmp(word, "list") == 0;
    char note[512] = "";
    moa_store *store = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    if (word && (strcmp(word, "replay") == 0 || strcmp(word, "export") == 0 || strcmp(word, "prune") == 0))
        return moa_fail(err, MOA_E_UNSUPPORTED, "sessions %s is not there yet; list and show are", word);
    if (!is_list && strcmp(word, "show") != 0) return moa_fail(err, MOA_E_USAGE, "'%s': list or show", word);
    if (is_list && args->n_word > 1)
        return moa_fail(err, MOA_E_USAGE, "usage: moascope sessions list [--json F|-]");
    MOA_TRY(moa_store_open(&store, moa_args_text(args, OWN_STORE), note, sizeof note, err));
    if (note[0]) moa_remark(args, "%s", note);
    MOA_TRY(is_list ? list(args, store, &text, err) : show(args, store, &text, err));
    s = moa_output_save(json ? json : "-", &text, err);
out:
    moa_store_close(&store);
    moa_buf_free(&text);
    return s;
}

static const int options[] = {MOA_OPT_JSON, MOA_OPT_QUIET, MOA_OPT_END};
static const moa_option own[] = {
    {"--store", MOA_OPTION_TEXT, "FILE", NULL, 0, 0, false, "another session store than the usual one"},
    {"--max", MOA_OPTION_INT, "N", "50", 1, 100000, false, "list: the newest N"},
    {0},
};

const moa_batch moa_batch_sessions = {
    .name = "sessions",
    .help = "what the workbench kept: sessions and their runs",
    .usage = "list [--max N] [--json F|-]\nshow [ID] [--json F|-]",
    .options = options,
    .own = own,
    .max_words = 2,
    .more = "Without ID: the newest session that has a run or an edit.",
    .run = run,
};
