/* replay.c -- see replay.h. */
#include "tui/replay.h"

#include <cjson/cJSON.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/size.h"
#include "core/base/text.h"
#include "core/engine/run.h"
#include "core/model/chat.h"
#include "tui/batch/batch.h"
#include "tui/load.h"

enum { WATCH_ALL = MOA_WATCH_STATS | MOA_WATCH_CAPTURE, WATCH_MOST = WATCH_ALL | MOA_WATCH_SAMPLED, AROUND = 40 };

typedef struct settings {
    moa_sampling sampling;
    int32_t n_gen;
    int watch;
    bool chat, ignore_end;
    char kv[16]; /* "" not known */
} settings;

typedef struct player {
    const moa_args *args;
    moa_store *store;
    moa_loaded loaded;
    moa_seq *seq;
    moa_id_list talk; /* what the sequence holds or is about to */
    bool reply_open;  /* talk ends within a reply */
    /* the run under way */
    const moa_run_record *was;
    moa_run_tokens tokens;
    moa_buf text;     /* made now */
    int32_t n_want;   /* tokens to compare; made then */
    int32_t n_made;
    bool cut;         /* it was interrupted then: ends with its last token */
    bool differs;
} player;

static bool is_kind(const player *p, const char *kind) {
    return strcmp(p->was->kind, kind) == 0;
}

/* --- what was kept ----------------------------------------------------------------------------------------------------------- */

static double number(const cJSON *o, const char *key, double low, double high, double otherwise) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsNumber(x) && x->valuedouble >= low && x->valuedouble <= high ? x->valuedouble : otherwise;
}

static moa_status read_settings(const moa_run_record *r, settings *out, moa_err *err) {
    const size_t n = strlen(r->sampling);
    const bool screen = strcmp(r->kind, "plan") == 0 || strcmp(r->kind, "full") == 0;
    cJSON *o = moa_json_check(r->sampling, n, NULL) == MOA_OK ? cJSON_ParseWithLength(r->sampling, n) : NULL;
    *out = (settings){.sampling = moa_sampling_default()};
    out->sampling.temp = (float)number(o, "temp", 0, 1e6, -1);
    out->sampling.top_k = (int32_t)number(o, "top_k", 0, INT32_MAX, -1);
    out->sampling.top_p = (float)number(o, "top_p", 0, 1, -1);
    out->sampling.min_p = (float)number(o, "min_p", 0, 1, -1);
    out->sampling.seed = r->seed;
    out->n_gen = (int32_t)number(o, "n_gen", 0, INT32_MAX, -1);
    out->watch = (int)number(o, "watch", 0, WATCH_MOST, screen ? WATCH_ALL : 0);
    out->chat = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, "chat"));
    out->ignore_end = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, "ignore_end"));
    const cJSON *kv = cJSON_GetObjectItemCaseSensitive(o, "kv");
    if (cJSON_IsString(kv)) (void)snprintf(out->kv, sizeof out->kv, "%s", kv->valuestring);
    cJSON_Delete(o);
    if (out->n_gen < 0 || moa_sampling_check(&out->sampling, NULL) != MOA_OK)
        return moa_fail(err, MOA_E_INVALID, "run %lld: its settings cannot be read", (long long)r->id);
    return MOA_OK;
}

static moa_status plan_of(const player *p, moa_plan **out, moa_err *err) {
    const moa_shape *shape = &p->loaded.model->shape;
    if (!*p->was->plan) return moa_plan_uniform(out, shape->n_layer, shape->n_head, (moa_rule){0, 1}, err);
    moa_status s = moa_plan_parse(out, p->was->plan, strlen(p->was->plan), err);
    if (s == MOA_OK) s = moa_plan_fits(*out, shape->n_layer, shape->n_head, err);
    return s;
}

/* --- the prompt's tokens ------------------------------------------------------------------------------------------------------- */

static moa_status set_talk(player *p, size_t keep, const int32_t *ids, size_t n, moa_err *err) {
    size_t total, bytes;
    const bool fits = moa_size_add(keep, n, &total) && moa_size_mul(total + 1, sizeof *ids, &bytes);
    int32_t *data = fits ? malloc(bytes) : NULL;
    if (!data) return moa_fail(err, MOA_E_MEMORY, "no memory for a conversation of %zu tokens", keep + n);
    if (keep > 0) memcpy(data, p->talk.data, keep * sizeof *data);
    if (n > 0) memcpy(data + keep, ids, n * sizeof *data);
    free(p->talk.data);
    p->talk = (moa_id_list){data, keep + n};
    return MOA_OK;
}

/* as it was given: behind the first n_past tokens, which must still be the sequence's */
static moa_status given(player *p, moa_err *err) {
    const moa_run_tokens *t = &p->tokens;
    if (t->n_past == 0) moa_seq_reset(p->seq);
    for (int32_t i = 0; i < t->n_ids; i++)
        if (t->ids[i] < 0 || t->ids[i] >= p->loaded.model->shape.n_vocab)
            return moa_fail(err, MOA_E_INVALID, "run %lld: a token of it has id %d; the vocabulary has %d",
                            (long long)p->was->id, t->ids[i], p->loaded.model->shape.n_vocab);
    if (moa_seq_n_past(p->seq) != t->n_past)
        return moa_fail(err, MOA_E_INVALID, "run %lld goes on after %d tokens of its conversation; replayed are %d",
                        (long long)p->was->id, t->n_past, moa_seq_n_past(p->seq));
    return set_talk(p, (size_t)t->n_past, t->ids, (size_t)t->n_ids, err);
}

/* a chat's next turn, as the chat command puts it; *ids (malloc'ed) is the whole conversation */
static moa_status next_turn(player *p, int32_t **ids, size_t *n, moa_err *err) {
    const moa_model *m = p->loaded.model;
    const char *text = p->was->prompt;
    moa_status s = MOA_OK;
    *ids = malloc((p->talk.n + 1) * sizeof **ids);
    if (!*ids) return moa_fail(err, MOA_E_MEMORY, "no memory for a conversation of %zu tokens", p->talk.n);
    memcpy(*ids, p->talk.data, p->talk.n * sizeof **ids);
    *n = p->talk.n;
    if (p->reply_open) MOA_TRY(moa_chat_append_end(m, ids, n, err));
    MOA_TRY(moa_chat_append(m, false, MOA_ROLE_USER, text, strlen(text), ids, n, err));
    MOA_TRY(moa_chat_append_reply(m, ids, n, err));
out:
    return s;
}

/* made anew of the text; *how says of what kind it was */
static moa_status encoded(player *p, const settings *how, moa_err *err) {
    const moa_model *m = p->loaded.model;
    const char *text = p->was->prompt;
    const moa_message turn = {MOA_ROLE_USER, text, strlen(text)};
    const bool follows = is_kind(p, "chat") && p->talk.n > 0;
    int32_t *ids = NULL;
    size_t n = 0;
    moa_status s = MOA_OK;
    if (follows) {
        MOA_TRY(next_turn(p, &ids, &n, err));
    } else if (is_kind(p, "chat") || how->chat) {
        MOA_TRY(moa_chat_encode(m, &turn, 1, true, &ids, &n, err));
    } else {
        MOA_TRY(moa_tokenizer_encode(m->tokenizer, text, strlen(text), MOA_TOK_BOS, &ids, &n, err));
        if (is_kind(p, "run") && n != (size_t)p->was->n_prompt && moa_chat_template_name(m, NULL)) { /* --chat was not kept */
            free(ids);
            ids = NULL;
            MOA_TRY(moa_chat_encode(m, &turn, 1, true, &ids, &n, err));
        }
    }
    if (!follows) moa_seq_reset(p->seq);
    const size_t n_past = (size_t)moa_seq_n_past(p->seq);
    if (n < n_past || n - n_past != (size_t)p->was->n_prompt)
        MOA_TRY(moa_fail(err, MOA_E_INVALID,
                         "run %lld: its tokens were not kept, and its prompt makes %zu tokens, not the %d it had (a system message is "
                         "not kept)",
                         (long long)p->was->id, n - (n < n_past ? n : n_past), p->was->n_prompt));
    s = set_talk(p, 0, ids, n, err);
out:
    free(ids);
    return s;
}

/* --- the run ---------------------------------------------------------------------------------------------------------------------- */

static bool same_so_far(const player *p, int32_t id) {
    if (p->tokens.n_made >= 0) return p->n_made < p->tokens.n_made && p->tokens.made[p->n_made] == id;
    const size_t n = strlen(p->was->output);
    return p->text.size <= n && memcmp(p->text.data ? p->text.data : "", p->was->output, p->text.size) == 0;
}

static bool on_token(void *user, const moa_run_token *t) {
    player *p = user;
    const moa_tokenizer *tok = p->loaded.model->tokenizer;
    size_t n;
    const char *piece = moa_tokenizer_piece(tok, t->id, &n);
    if (!moa_tokenizer_is_control(tok, t->id)) moa_buf_append(&p->text, piece, n);
    p->differs = p->n_made >= p->n_want || !same_so_far(p, t->id) ||
                 set_talk(p, p->talk.n, &t->id, 1, NULL) != MOA_OK;
    if (p->differs) return false;
    p->n_made++;
    return !p->cut || p->n_made < p->n_want;
}

static void on_progress(void *user, int32_t done, int32_t total) {
    moa_progress_show(((player *)user)->args, "prefill", done, total, "tokens");
}

/* some bytes of both texts from where they part */
static void put_difference(const player *p, moa_buf *was, moa_buf *is) {
    const char *a = p->was->output, *b = p->text.data ? p->text.data : "";
    const size_t n_a = strlen(a), n_b = p->text.size;
    size_t at = 0;
    while (at < n_a && at < n_b && a[at] == b[at])
        at++;
    at = at > AROUND / 2 ? at - AROUND / 2 : 0;
    while (at > 0 && ((unsigned char)a[at] & 0xC0) == 0x80)
        at--;
    moa_text_clean(a + at, n_a - at < AROUND ? n_a - at : AROUND, MOA_TEXT_LINE, was);
    if (at < n_b) moa_text_clean(b + at, n_b - at < AROUND ? n_b - at : AROUND, MOA_TEXT_LINE, is);
    moa_buf_str(was, "");
    moa_buf_str(is, "");
}

static moa_status difference(const player *p, const moa_run_result *r, moa_err *err) {
    moa_buf was = {0}, is = {0};
    const bool elsewhere = *p->was->device && strcmp(p->was->device, p->loaded.device) != 0 &&
                           strncmp(p->was->device, p->loaded.why, strlen(p->was->device)) != 0;
    char note[200] = "";
    if (elsewhere)
        (void)snprintf(note, sizeof note, "; it was made on another device (%.60s), which may round otherwise", p->was->device);
    put_difference(p, &was, &is);
    const moa_status s =
        p->differs ? moa_fail(err, MOA_E_FAILED, "run %lld differs at token %d of %d: it was \"%.100s\", it is \"%.100s\"%s",
                              (long long)p->was->id, p->n_made + 1, p->n_want, was.data ? was.data : "", is.data ? is.data : "", note)
                   : moa_fail(err, MOA_E_FAILED, "run %lld ends after %d tokens (%s); it made %d (%.40s)%s", (long long)p->was->id, p->n_made,
                              moa_stop_name(r->stop), p->n_want, p->was->stop, note);
    moa_buf_free(&was);
    moa_buf_free(&is);
    return s;
}

static bool ended_by_itself(const char *stop) {
    return strcmp(stop, moa_stop_name(MOA_STOP_END)) == 0 || strcmp(stop, moa_stop_name(MOA_STOP_LENGTH)) == 0 ||
           strcmp(stop, moa_stop_name(MOA_STOP_CONTEXT)) == 0;
}

static moa_status play(player *p, const settings *how, const moa_plan *plan, moa_err *err) {
    const size_t n_past = (size_t)moa_seq_n_past(p->seq), n_prompt = p->talk.n - n_past;
    moa_run_result r;
    moa_status s = MOA_OK;
    int32_t *ids = malloc((n_prompt + 1) * sizeof *ids); /* talk grows under way */
    if (!ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n_prompt);
    memcpy(ids, p->talk.data + n_past, n_prompt * sizeof *ids);
    const moa_run_config c = {.ids = ids,
                              .n_ids = (int32_t)n_prompt,
                              .n_gen = how->n_gen,
                              .rules = plan->rules,
                              .watch = how->watch,
                              .sampling = how->sampling,
                              .ignore_end = how->ignore_end,
                              .progress = on_progress,
                              .token = on_token,
                              .cancelled = moa_interrupted,
                              .user = p};
    moa_buf_clear(&p->text);
    p->n_made = 0;
    p->differs = false;
    p->cut = !ended_by_itself(p->was->stop);
    p->n_want = p->tokens.n_made >= 0 ? p->tokens.n_made : p->was->n_gen;
    MOA_TRY(moa_run(p->seq, &c, &r, err));
    p->reply_open = p->n_made > 0;
    if (moa_interrupted(NULL)) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted in run %lld", (long long)p->was->id));
    if (!moa_buf_ok(&p->text)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the text of run %lld", (long long)p->was->id));
    const bool whole = p->tokens.n_made >= 0 || p->text.size == strlen(p->was->output);
    if (p->differs || p->n_made != p->n_want || !whole || (!p->cut && strcmp(moa_stop_name(r.stop), p->was->stop) != 0))
        s = difference(p, &r, err);
out:
    free(ids);
    return s;
}

/* --- one after the other -------------------------------------------------------------------------------------------------------------- */

/* why a run is left out; "" it is not */
static const char *left_out(const player *p) {
    if (is_kind(p, "compare")) return "it was given the tokens of another run";
    if (!is_kind(p, "run") && !is_kind(p, "chat") && !is_kind(p, "plan") && !is_kind(p, "full")) return "of a kind this program does not know";
    if (p->was->n_gen < 1 && p->tokens.n_made < 1) return "it made no tokens";
    return "";
}

static void tell(const player *p, const char *why, moa_status s, const moa_err *err, moa_buf *out) {
    const bool json = moa_args_text(p->args, MOA_OPT_JSON) != NULL;
    const char *prompt = p->tokens.n_past >= 0 ? "ids" : "text", *output = p->tokens.n_made >= 0 ? "ids" : "text";
    if (!json && *why) {
        moa_buf_printf(out, "run %lld: not replayed: %s\n", (long long)p->was->id, why);
    } else if (!json) {
        moa_buf_printf(out, "run %lld: %d of %d tokens the same%s%s\n", (long long)p->was->id, p->n_made, p->n_want,
                       p->tokens.n_past < 0 ? "; its prompt was made into tokens again" : "",
                       p->tokens.n_made < 0 ? "; compared by its text" : "");
    } else {
        moa_buf_printf(out, "%s{\"id\": %lld, ", out->data && out->data[out->size - 1] == '}' ? ",\n  " : "\n  ", (long long)p->was->id);
        if (*why) moa_buf_printf(out, "\"left_out\": \"%s\"}", why);
        else
            moa_buf_printf(out, "\"same\": %s, \"n_same\": %d, \"n_made\": %d, \"prompt_by\": \"%s\", \"compared_by\": \"%s\"",
                           s == MOA_OK ? "true" : "false", p->n_made, p->n_want, prompt, output);
        if (!*why && s != MOA_OK) {
            moa_buf_str(out, ", \"error\": ");
            moa_text_json(err->text, strlen(err->text), out);
        }
        if (!*why) moa_buf_str(out, "}");
    }
}

static moa_status one_run(player *p, moa_buf *out, moa_err *err) {
    settings how;
    moa_plan *plan = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(moa_store_run_tokens(p->store, p->was->id, &p->tokens, err));
    const char *why = left_out(p);
    if (*why) {
        tell(p, why, MOA_OK, NULL, out);
        goto out;
    }
    MOA_TRY(read_settings(p->was, &how, err));
    if (*how.kv && strcmp(how.kv, moa_load_kv_type(p->args)) != 0)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "run %lld kept keys and values as %s, this replay as %s: say --kv %s", (long long)p->was->id,
                         how.kv, moa_load_kv_type(p->args), how.kv));
    MOA_TRY(plan_of(p, &plan, err));
    MOA_TRY(p->tokens.n_past >= 0 ? given(p, err) : encoded(p, &how, err));
    s = play(p, &how, plan, err);
    if (s == MOA_OK || s == MOA_E_FAILED) tell(p, "", s, err, out);
out:
    moa_plan_close(&plan);
    moa_run_tokens_free(&p->tokens);
    return s;
}

static moa_status check_model(const player *p, const moa_session *x, moa_err *err) {
    const moa_model *m = p->loaded.model;
    if (*x->fingerprint && strcmp(x->fingerprint, m->fingerprint) != 0)
        return moa_fail(err, MOA_E_INVALID, "%s has the fingerprint %.16s; the session's model had %.16s", p->loaded.path, m->fingerprint,
                        x->fingerprint);
    return MOA_OK;
}

static moa_status session_of(const player *p, moa_session *x, moa_err *err) {
    const char *word = moa_args_word(p->args, 1);
    char *end = NULL;
    const int64_t id = word ? strtoll(word, &end, 10) : 0;
    if (word && (end == word || *end || id < 1))
        return moa_fail(err, MOA_E_USAGE, "session '%s': a number from `moascope sessions list`", word);
    return moa_store_session_get(p->store, id, x, err);
}

static moa_status all_runs(player *p, const moa_session *x, const moa_run_record *runs, int32_t n, moa_buf *out, moa_err *err) {
    const bool json = moa_args_text(p->args, MOA_OPT_JSON) != NULL;
    moa_status s = MOA_OK;
    if (json) moa_buf_printf(out, "{\"session\": %lld, \"device\": \"%s\", \"runs\": [", (long long)x->id, p->loaded.device);
    for (int32_t i = 0; i < n && s == MOA_OK; i++) {
        p->was = &runs[i];
        s = one_run(p, out, err);
    }
    if (json) moa_buf_str(out, "\n]}\n");
    else if (s == MOA_OK) moa_buf_printf(out, "session %lld: %d run%s\n", (long long)x->id, n, n == 1 ? "" : "s");
    return s;
}

moa_status moa_replay(const moa_args *args, moa_store *store, moa_buf *out, moa_err *err) {
    player p = {.args = args, .store = store};
    moa_session x = {0};
    moa_run_record *runs = NULL;
    int32_t n = 0;
    moa_status s = MOA_OK;
    const char *model = moa_args_text(args, MOA_OPT_MODEL);
    moa_interrupt_catch();
    MOA_TRY(session_of(&p, &x, err));
    MOA_TRY(moa_store_run_list(store, x.id, &runs, &n, err));
    if (n == 0) MOA_TRY(moa_fail(err, MOA_E_INVALID, "session %lld has no runs", (long long)x.id));
    MOA_TRY(moa_load_named(&p.loaded, args, model ? model : x.model_path, err));
    MOA_TRY(check_model(&p, &x, err));
    MOA_TRY(moa_seq_open(&p.seq, p.loaded.engine, err));
    s = all_runs(&p, &x, runs, n, out, err);
out:
    moa_seq_close(&p.seq);
    moa_load_close(&p.loaded);
    for (int32_t i = 0; i < n; i++)
        moa_run_record_free(&runs[i]);
    free(runs);
    free(p.talk.data);
    moa_buf_free(&p.text);
    moa_session_free(&x);
    return s;
}
