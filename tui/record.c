/* record.c -- see record.h. */
#include "tui/record.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "sessions/store.h"
#include "tui/batch/batch.h"

struct moa_record {
    const moa_args *args;
    const moa_loaded *loaded;
    moa_store *store;
    char kind[8];
    int64_t session, run; /* 0: not begun */
    moa_id_list made;     /* by the run under way */
    size_t room;          /* of made */
};

/* the one warning; nothing is written after it */
static void give_up(moa_record *r, const moa_err *err) {
    moa_remark(r->args, "not kept as a session: %s", err->text);
    moa_store_close(&r->store);
    r->run = 0;
}

moa_record *moa_record_open(const moa_args *args, const moa_loaded *loaded, const char *kind) {
    moa_err err = {0};
    char note[512] = "";
    if (moa_args_has(args, MOA_OPT_NO_SESSION)) return NULL;
    moa_record *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->args = args;
    r->loaded = loaded;
    (void)snprintf(r->kind, sizeof r->kind, "%s", kind);
    if (moa_store_open(&r->store, NULL, note, sizeof note, &err) != MOA_OK) give_up(r, &err);
    if (*note) moa_remark(args, "%s", note);
    return r;
}

static moa_status begin_session(moa_record *r, char *plan, moa_err *err) {
    const moa_model *m = r->loaded->model;
    char *whole = realpath(r->loaded->path, NULL);
    moa_session in = {.model_path = whole ? whole : (char *)(uintptr_t)r->loaded->path, .model_name = (char *)(uintptr_t)m->name,
                      .fingerprint = (char *)(uintptr_t)m->fingerprint, .n_layer = m->shape.n_layer, .n_head = m->shape.n_head,
                      .n_head_kv = m->shape.n_head_kv, .plan = plan};
    const moa_status s = moa_store_session_begin(r->store, &in, err);
    r->session = in.id;
    free(whole);
    return s;
}

static void settings_json(const moa_record *r, const moa_run_config *c, moa_buf *out) {
    const moa_sampling *s = &c->sampling;
    moa_buf_printf(out, "{\"temp\": %.9g, \"top_k\": %d, \"top_p\": %.9g, \"min_p\": %.9g, \"n_gen\": %d", (double)s->temp, s->top_k,
                   (double)s->top_p, (double)s->min_p, c->n_gen);
    moa_buf_printf(out, ", \"ignore_end\": %s, \"watch\": %d, \"kv\": \"%s\"}", c->ignore_end ? "true" : "false", c->watch,
                   moa_load_kv_type(r->args));
}

void moa_record_begin(moa_record *r, const char *text, size_t n_text, const moa_seq *seq, const moa_run_config *c) {
    if (!r || !r->store) return;
    moa_buf plan = {0}, how = {0}, prompt = {0};
    moa_err err = {0};
    moa_status s = MOA_OK;
    moa_buf_append(&prompt, text, n_text);
    settings_json(r, c, &how);
    MOA_TRY(moa_plan_print(r->loaded->plan, true, &plan, &err));
    if (!r->session) MOA_TRY(begin_session(r, plan.data, &err));
    moa_run_record in = {.session = r->session, .kind = r->kind, .prompt = prompt.data, .plan = plan.data, .sampling = how.data,
                         .seed = c->sampling.seed, .device = (char *)(uintptr_t)r->loaded->device};
    MOA_TRY(moa_store_run_begin(r->store, &in, &err));
    r->run = in.id;
    r->made.n = 0;
    MOA_TRY(moa_store_run_given(r->store, r->run, moa_seq_n_past(seq), c->ids, c->n_ids, &err));
out:
    if (s != MOA_OK) give_up(r, &err);
    moa_buf_free(&plan);
    moa_buf_free(&how);
    moa_buf_free(&prompt);
}

static moa_status keep_id(moa_record *r, int32_t id, moa_err *err) {
    if (r->made.n == r->room) {
        const size_t room = r->room ? 2 * r->room : 256;
        int32_t *data = realloc(r->made.data, room * sizeof *data);
        if (!data) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", room);
        r->made.data = data, r->room = room;
    }
    r->made.data[r->made.n++] = id;
    return MOA_OK;
}

void moa_record_output(moa_record *r, int32_t id, const char *bytes, size_t n) {
    moa_err err = {0};
    if (!r || !r->store || !r->run) return;
    moa_status s = keep_id(r, id, &err);
    if (s == MOA_OK) s = moa_store_run_output(r->store, r->run, bytes, n, 1, &err);
    if (s != MOA_OK) give_up(r, &err);
}

void moa_record_end(moa_record *r, const moa_run_result *result) {
    if (!r || !r->store || !r->run) return;
    moa_buf stats = {0};
    moa_err err = {0};
    moa_run_record end = {.id = r->run, .stop = (char *)(uintptr_t)(result ? moa_stop_name(result->stop) : "failed"), .device = (char *)(uintptr_t)r->loaded->device};
    if (result) {
        moa_buf_printf(&stats, "{\"span_min\": %d, \"span_mean\": ", result->span_min);
        moa_json_number(&stats, result->span_mean);
        moa_buf_printf(&stats, ", \"span_max\": %d, \"kv_density\": ", result->span_max);
        moa_json_number(&stats, result->kv_density);
        moa_buf_printf(&stats, ", \"kv_peak_bytes\": %llu, \"device_bytes\": %llu}", (unsigned long long)result->kv_peak_bytes,
                       (unsigned long long)result->device_peak_bytes);
        end.n_prompt = result->n_prompt, end.n_gen = result->n_gen, end.n_reserved = result->n_reserved;
        end.prefill_s = result->prefill_s, end.decode_s = result->decode_s, end.ttft_s = result->ttft_s;
        end.kv_bytes = (int64_t)result->kv_bytes, end.kv_plan = (int64_t)result->kv_formula.plan;
        end.kv_dense = (int64_t)result->kv_formula.dense, end.kv_mha = (int64_t)result->kv_formula.mha;
        end.stats = stats.data;
    }
    moa_status s = moa_store_run_made(r->store, r->run, r->made.data, (int32_t)r->made.n, &err);
    if (s == MOA_OK) s = moa_store_run_end(r->store, &end, &err);
    if (s != MOA_OK) give_up(r, &err);
    r->run = 0;
    moa_buf_free(&stats);
}

void moa_record_close(moa_record **record) {
    if (!record || !*record) return;
    moa_record *r = *record;
    if (r->run) moa_record_end(r, NULL);
    if (r->store && r->session) (void)moa_store_session_release(r->store, r->session, NULL);
    moa_store_close(&r->store);
    free(r->made.data);
    free(r);
    *record = NULL;
}
