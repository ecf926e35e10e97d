/* serve_run.c -- a run of the engine process, and what is told about it.
 *
 *   RUN -> ids to append -> moa_run() -> STARTED PROGRESS* (snapshots) TOKEN* (snapshots) ... DONE
 *
 *   snapshots: PAGES, STATS, HIST of each layer, MAP if one is followed; after the prefill, every stats_every tokens, at the end
 *
 * The conversation (sv->talk) is kept as ids apart from the sequence. What the sequence does not hold yet (the token sampled last) is
 * simply part of the next run's prompt; if a prefill was cancelled or failed half-way, the sequence is stale and the next run fills it
 * anew. So a turn never continues a prompt that was cut. */
#include "core/engine/serve_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/chat.h"

enum { MAP_CELLS_MAX = 1 << 20, SNAPSHOT_PIPE = 256 << 10, HIST_PIPE = 2 << 20 };

static const moa_shape *shape_of(const moa_serve_state *sv) {
    return &sv->model->shape;
}
static size_t n_cells(const moa_serve_state *sv) {
    return (size_t)shape_of(sv)->n_layer * (size_t)shape_of(sv)->n_head;
}

void moa_serve_forget(moa_serve_state *sv) {
    free(sv->talk.data);
    sv->talk = (moa_ids){0};
    moa_run_reference_free(&sv->reference);
    free(sv->rules);
    free(sv->measure);
    sv->rules = sv->measure = NULL;
    sv->stale = sv->reply_open = sv->map_now = sv->map_follow = false;
    sv->n_prompt = sv->n_reserved = 0;
}

/* --- tokens as bytes --------------------------------------------------------------------------------------------------------- */

typedef struct pieces {
    moa_buf bytes;
    int32_t *ends; /* owned */
    bool failed;
} pieces;

static pieces pieces_of(const moa_serve_state *sv, const int32_t *ids, int32_t n) {
    pieces p = {.ends = malloc(((size_t)n + 1) * sizeof *p.ends)};
    for (int32_t t = 0; p.ends && t < n; t++) {
        size_t bytes;
        const char *piece = moa_tokenizer_piece(sv->model->tokenizer, ids[t], &bytes);
        moa_buf_append(&p.bytes, piece, bytes);
        p.ends[t] = p.bytes.size > INT32_MAX ? INT32_MAX : (int32_t)p.bytes.size;
    }
    p.failed = !p.ends || !moa_buf_ok(&p.bytes);
    return p;
}

static moa_wire_u8s pieces_bytes(const pieces *p) {
    return (moa_wire_u8s){(const uint8_t *)p->bytes.data, (uint32_t)p->bytes.size};
}

static void pieces_free(pieces *p) {
    moa_buf_free(&p->bytes);
    free(p->ends);
}

/* --- from the message to ids ---------------------------------------------------------------------------------------------------- */

/* what the template puts behind the reply that the conversation ends with */
static moa_status append_closing(moa_serve_state *sv, moa_err *err) {
    size_t n = (size_t)sv->talk.n;
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (!ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n);
    memcpy(ids, sv->talk.data, n * sizeof *ids);
    moa_status s = moa_chat_append_end(sv->model, &ids, &n, err);
    if (s == MOA_OK && !moa_ids_append(&sv->talk, ids + sv->talk.n, n - (size_t)sv->talk.n))
        s = moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n);
    free(ids);
    return s;
}

static moa_status append_chat(moa_serve_state *sv, moa_wire_str text, moa_err *err) {
    moa_status s = MOA_OK;
    int32_t *ids = NULL;
    size_t n = 0;
    if (sv->talk.n > 0 && sv->reply_open) MOA_TRY(append_closing(sv, err));
    MOA_TRY(moa_chat_append(sv->model, sv->talk.n == 0, MOA_ROLE_USER, text.data ? text.data : "", text.n,
                            &ids, &n, err));
    MOA_TRY(moa_chat_append_reply(sv->model, &ids, &n, err));
    if (!moa_ids_append(&sv->talk, ids, n)) s = moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n);
out:
    free(ids);
    return s;
}

static moa_status append_prompt(moa_serve_state *sv, const moa_msg_run *r, moa_err *err) {
    const int32_t n_vocab = shape_of(sv)->n_vocab;
    int32_t *ids = NULL;
    size_t n = 0;
    for (uint32_t i = 0; i < r->ids.n; i++)
        if (r->ids.data[i] < 0 || r->ids.data[i] >= n_vocab)
            return moa_fail(err, MOA_E_INVALID, "token %u of the prompt is %d; the vocabulary has %d", i,
                            r->ids.data[i], n_vocab);
    if (r->ids.n == 0 && r->chat) return append_chat(sv, r->text, err);
    moa_status s = MOA_OK;
    if (r->ids.n == 0)
        s = moa_tokenizer_encode(sv->model->tokenizer, r->text.data ? r->text.data : "", r->text.n,
                                 sv->talk.n == 0 ? MOA_TOK_BOS : 0, &ids, &n, err);
    if (s == MOA_OK && !moa_ids_append(&sv->talk, r->ids.n ? r->ids.data : ids, r->ids.n ? r->ids.n : n))
        s = moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n);
    free(ids);
    return s;
}

void moa_serve_tokenize(moa_serve_state *sv, uint32_t job, const moa_msg_tokenize *t) {
    moa_err err = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    pieces p = {0};
    moa_status s = sv->model && sv->seq ? MOA_OK : moa_fail(&err, MOA_E_USAGE, "no model is loaded");
    const char *text = t->text.data ? t->text.data : "";
    if (s == MOA_OK && t->chat)
        s = moa_chat_append(sv->model, true, MOA_ROLE_USER, text, t->text.n, &ids, &n, &err);
    else if (s == MOA_OK)
        s = moa_tokenizer_encode(sv->model->tokenizer, text, t->text.n, MOA_TOK_BOS, &ids, &n, &err);
    if (s == MOA_OK && t->chat) s = moa_chat_append_reply(sv->model, &ids, &n, &err);
    if (s == MOA_OK) {
        p = pieces_of(sv, ids, (int32_t)n);
        if (p.failed) s = moa_fail(&err, MOA_E_MEMORY, "no memory for the text of %zu tokens", n);
    }
    moa_wire_msg m = {
        .type = MOA_WIRE_TOKENS,
        .u.tokens = {.ids = {ids, (uint32_t)n}, .pieces = pieces_bytes(&p), .ends = {p.ends, (uint32_t)n}}};
    if (s == MOA_OK)
        moa_serve_send(sv, job, &m);
    else
        moa_serve_fail(sv, job, s, &err);
    pieces_free(&p);
    free(ids);
}

/* rules of the wire, checked against the model; NULL when there are none */
static moa_status take_rules(const moa_serve_state *sv, moa_wire_f64s alphas, moa_wire_f64s betas,
                             const char *what, moa_rule **out, moa_err *err) {
    const size_t n = n_cells(sv);
    *out = NULL;
    if (alphas.n == 0 && betas.n == 0) return MOA_OK;
    if (alphas.n != n || betas.n != n)
        return moa_fail(err, MOA_E_INVALID, "%s: %u alphas and %u betas; the model has %d layers of %d heads",
                        what, alphas.n, betas.n, shape_of(sv)->n_layer, shape_of(sv)->n_head);
    moa_rule *rules = malloc(n * sizeof *rules);
    if (!rules) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu rules", n);
    for (size_t i = 0; i < n; i++) {
        rules[i] = (moa_rule){alphas.data[i], betas.data[i]};
        if (isfinite(rules[i].alpha) && isfinite(rules[i].beta)) continue;
        free(rules);
        return moa_fail(err, MOA_E_INVALID, "%s: the rule of head %zu is not finite", what, i);
    }
    *out = rules;
    return MOA_OK;
}

/* --- snapshots --------------------------------------------------------------------------------------------------------------------- */

static void send_stats(moa_serve_state *sv) {
    const moa_shape *shape = shape_of(sv);
    const size_t n = n_cells(sv);
    moa_err err = {0};
    moa_head_stats *heads = malloc(n * sizeof *heads);
    float *x = malloc(5 * n * sizeof *x);
    int32_t *worst = malloc(n * sizeof *worst);
    if (!heads || !x || !worst || moa_seq_stats(sv->seq, heads, &err) != MOA_OK) goto out;
    for (size_t i = 0; i < n; i++) {
        const moa_head_stats *h = &heads[i];
        x[i] = h->entropy, x[n + i] = h->sink, x[2 * n + i] = h->window, x[3 * n + i] = h->distance,
        x[4 * n + i] = h->worst_cover;
        worst[i] = h->worst_query;
    }
    const uint32_t count = (uint32_t)n;
    moa_watched watched;
    moa_seq_watched(sv->seq, &watched);
    moa_wire_msg m = {.type = MOA_WIRE_STATS,
                      .u.stats = {.n_past = moa_seq_n_past(sv->seq),
                                  .n_layer = shape->n_layer,
                                  .n_head = shape->n_head,
                                  .n_query = (uint64_t)heads[0].n_query,
                                  .n_seen = (uint64_t)watched.n_seen,
                                  .every = watched.every,
                                  .entropy = {x, count},
                                  .sink = {x + n, count},
                                  .window = {x + 2 * n, count},
                                  .distance = {x + 3 * n, count},
                                  .worst_cover = {x + 4 * n, count},
                                  .worst_query = {worst, count}}};
    moa_serve_send(sv, sv->job, &m);
out:
    free(heads);
    free(x);
    free(worst);
}

static void send_hist(moa_serve_state *sv, int32_t layer) {
    float *hist = NULL;
    int32_t n_bin = 0, bucket_tok = 0;
    int64_t count[MOA_HIST_BUCKETS];
    double queries[MOA_HIST_BUCKETS];
    if (moa_seq_hist(sv->seq, layer, &hist, &n_bin, &bucket_tok, count, NULL) != MOA_OK) return;
    for (int b = 0; b < MOA_HIST_BUCKETS; b++)
        queries[b] = (double)count[b];
    const size_t n = (size_t)shape_of(sv)->n_head * MOA_HIST_BUCKETS * (1 + (size_t)n_bin);
    moa_wire_msg m = {.type = MOA_WIRE_HIST,
                      .u.hist = {.n_past = moa_seq_n_past(sv->seq),
                                 .layer = layer,
                                 .n_head = shape_of(sv)->n_head,
                                 .n_bin = n_bin,
                                 .bucket_tok = bucket_tok,
                                 .queries = {queries, MOA_HIST_BUCKETS},
                                 .hist = {hist, (uint32_t)n}}};
    moa_serve_send(sv, sv->job, &m);
    free(hist);
}

static void send_pages(moa_serve_state *sv) {
    moa_pages p;
    moa_device_info info = {0};
    moa_memory_need need = {0};
    moa_seq_pages(sv->seq, &p);
    const int32_t n_past = moa_seq_n_past(sv->seq);
    const size_t n = (size_t)p.n_layer * (size_t)p.n_head_kv * (size_t)p.max_pages;
    uint8_t *held = malloc(n ? n : 1);
    if (!held) return;
    moa_seq_page_map(sv->seq, held);
    moa_backend *backend = moa_engine_backend(sv->engine);
    (void)backend->vt->info(backend, &info, NULL);
    (void)moa_engine_need(sv->engine, sv->rules, sv->n_reserved, sv->n_prompt,
                          (sv->watch & MOA_WATCH_CAPTURE) != 0, &need, NULL);
    const moa_kv_bytes kv =
        moa_kv_formula(shape_of(sv), moa_engine_kv_type(sv->engine), sv->rules, sv->n_reserved, n_past);
    const int64_t lost = moa_seq_lost(sv->seq);
    moa_wire_msg m = {.type = MOA_WIRE_PAGES,
                      .u.pages = {.n_past = n_past,
                                  .n_reserved = sv->n_reserved,
                                  .n_layer = p.n_layer,
                                  .n_head_kv = p.n_head_kv,
                                  .max_pages = p.max_pages,
                                  .page_bytes = p.page_bytes,
                                  .used_bytes = p.used_bytes,
                                  .peak_bytes = (uint64_t)p.peak * p.page_bytes,
                                  .pool_bytes = p.pool_bytes,
                                  .formula_plan = kv.plan,
                                  .formula_dense = kv.dense,
                                  .formula_mha = kv.mha,
                                  .device_total_bytes = info.memory_bytes,
                                  .device_free_bytes = info.free_bytes,
                                  .capture_bytes = need.capture,
                                  .lost = lost > INT32_MAX ? INT32_MAX : (int32_t)lost,
                                  .workspace_bytes = need.workspace + need.passing,
                                  .held = {held, (uint32_t)n}}};
    moa_serve_send(sv, sv->job, &m);
    free(held);
}

/* Those that are due and fit the pipe now; final: all of them, at the reader's pace. */
static void send_snapshots(moa_serve_state *sv, bool final) {
    if (!final && moa_serve_waiting(sv) > SNAPSHOT_PIPE) return;
    if (sv->hist_next == 0 || final) {
        send_pages(sv);
        if (sv->watch & MOA_WATCH_STATS) send_stats(sv);
        if (sv->map_follow) sv->map_now = true;
        if (final) sv->hist_next = 0;
    }
    if (moa_serve_map_ready(sv) || (final && sv->map_now)) moa_serve_map(sv);
    const int32_t n_layer = sv->watch & MOA_WATCH_STATS ? shape_of(sv)->n_layer : 0;
    while (sv->hist_next < n_layer && !sv->closed) {
        if (moa_serve_waiting(sv) > HIST_PIPE && !final) return; /* goes on where it stopped */
        if (final) moa_serve_drain(sv, HIST_PIPE);
        send_hist(sv, sv->hist_next++);
    }
    sv->hist_next = 0;
    sv->snapshots_due = false;
}

/* --- maps --------------------------------------------------------------------------------------------------------------------------- */

bool moa_serve_map_ready(const moa_serve_state *sv) {
    return sv->map_now && sv->seq && (sv->watch & MOA_WATCH_CAPTURE) && sv->n_prompt > 0 &&
           moa_seq_n_past(sv->seq) > 0 && moa_serve_waiting(sv) == 0;
}

/* the request of the wire, checked; more cells than tokens become as many as there are */
static moa_status map_request(const moa_serve_state *sv, moa_map_request *r, moa_err *err) {
    const moa_msg_select_map *m = &sv->map;
    const int32_t n_past = moa_seq_n_past(sv->seq);
    *r = (moa_map_request){.layer = m->layer,
                           .head = m->head,
                           .span = m->span,
                           .measure_span = m->measure_span,
                           .q0 = m->q0,
                           .q1 = m->q1,
                           .k0 = m->k0,
                           .k1 = m->k1,
                           .rows = m->rows,
                           .cols = m->cols};
    if (r->q1 == 0 || r->q1 > n_past) r->q1 = n_past;
    if (r->k1 == 0 || r->k1 > n_past) r->k1 = n_past;
    if (r->layer < 0 || r->layer >= shape_of(sv)->n_layer || r->head < 0 || r->head >= shape_of(sv)->n_head)
        return moa_fail(err, MOA_E_INVALID, "map of L%d.H%d; the model has %d layers of %d heads", r->layer,
                        r->head, shape_of(sv)->n_layer, shape_of(sv)->n_head);
    if (r->span < 0 || r->span > MOA_N_MAX || r->measure_span < 0 || r->measure_span > MOA_N_MAX)
        return moa_fail(err, MOA_E_INVALID, "map with a span of %d, measured with %d; 0 to %d", r->span,
                        r->measure_span, MOA_N_MAX);
    if (r->q0 < 0 || r->q0 >= r->q1 || r->k0 < 0 || r->k0 >= r->k1)
        return moa_fail(err, MOA_E_INVALID, "map of queries %d to %d and keys %d to %d: there are %d tokens",
                        r->q0, r->q1, r->k0, r->k1, n_past);
    if (r->rows > r->q1 - r->q0) r->rows = r->q1 - r->q0;
    if (r->cols > r->k1 - r->k0) r->cols = r->k1 - r->k0;
    if (r->rows < 1 || r->cols < 1 || (int64_t)r->rows * r->cols > MAP_CELLS_MAX)
        return moa_fail(err, MOA_E_INVALID, "map of %d x %d cells; 1 to %d", r->rows, r->cols, MAP_CELLS_MAX);
    return MOA_OK;
}

void moa_serve_map(moa_serve_state *sv) {
    moa_map_request r;
    moa_err err = {0};
    float *mass = NULL, *max = NULL, *stat = NULL;
    sv->map_now = false;
    moa_status s = map_request(sv, &r, &err);
    if (s != MOA_OK) goto out;
    const size_t cells = (size_t)r.rows * (size_t)r.cols, n_stat = (size_t)r.rows * MOA_N_STAT;
    mass = malloc(cells * sizeof *mass);
    max = malloc(cells * sizeof *max);
    stat = malloc(n_stat * sizeof *stat);
    if (!mass || !max || !stat)
        s = moa_fail(&err, MOA_E_MEMORY, "no memory for a map of %d x %d cells", r.rows, r.cols);
    else
        s = moa_seq_map(sv->seq, &r, mass, max, stat, &err);
    if (s != MOA_OK) goto out;
    const size_t cell = (size_t)r.layer * (size_t)shape_of(sv)->n_head + (size_t)r.head;
    const moa_rule *measure = sv->measure ? sv->measure : sv->rules;
    moa_wire_msg m = {
        .type = MOA_WIRE_MAP,
        .u.map = {.layer = r.layer,
                  .head = r.head,
                  .span = r.span ? r.span : moa_seq_spans(sv->seq)[cell],
                  .measure_span = r.measure_span
                                      ? r.measure_span
                                      : moa_span(measure ? measure[cell] : (moa_rule){0, 1}, sv->n_reserved),
                  .q0 = r.q0,
                  .q1 = r.q1,
                  .k0 = r.k0,
                  .k1 = r.k1,
                  .rows = r.rows,
                  .cols = r.cols,
                  .n_past = moa_seq_n_past(sv->seq),
                  .mass = {mass, (uint32_t)cells},
                  .max = {max, (uint32_t)cells},
                  .stat = {stat, (uint32_t)n_stat}}};
    moa_serve_send(sv, sv->map_job, &m);
out:
    if (s != MOA_OK) {
        sv->map_follow = false;
        moa_serve_fail(sv, sv->map_job, s, &err);
    }
    free(mass);
    free(max);
    free(stat);
}

/* --- the run ------------------------------------------------------------------------------------------------------------------------- */

typedef struct run_state {
    moa_serve_state *sv;
    int32_t before; /* tokens of the conversation before this run */
    moa_ids made;
    bool prefilled, lost; /* lost: no memory for made */
} run_state;

static void on_planned(void *user, const moa_seq *seq, const char *note) {
    run_state *run = user;
    moa_serve_state *sv = run->sv;
    sv->n_reserved = moa_seq_n_reserved(seq);
    pieces p = pieces_of(sv, sv->talk.data, sv->talk.n);
    const uint32_t n = p.failed ? 0 : (uint32_t)sv->talk.n;
    moa_wire_msg m = {.type = MOA_WIRE_STARTED,
                      .u.started = {.ids = {sv->talk.data, n},
                                    .pieces = pieces_bytes(&p),
                                    .ends = {p.ends, n},
                                    .n_new = sv->talk.n - run->before,
                                    .n_reserved = sv->n_reserved,
                                    .spans = {moa_seq_spans(seq), (uint32_t)n_cells(sv)},
                                    .note = moa_serve_str(note ? note : "")}};
    moa_serve_send(sv, sv->job, &m);
    pieces_free(&p);
}

static void on_progress(void *user, int32_t done, int32_t total) {
    moa_serve_state *sv = ((run_state *)user)->sv;
    moa_wire_msg m = {.type = MOA_WIRE_PROGRESS,
                      .u.progress = {.phase = 1,
                                     .done = (uint64_t)done,
                                     .total = (uint64_t)total,
                                     .seconds = moa_serve_now() - sv->phase_start}};
    moa_serve_send(sv, sv->job, &m);
}

static bool on_cancelled(void *user) {
    return moa_serve_cancelled(((run_state *)user)->sv);
}

static void send_token(moa_serve_state *sv, const moa_run_token *t) {
    int32_t ids[MOA_TOP_MAX];
    float logprobs[MOA_TOP_MAX];
    size_t bytes;
    const char *piece = moa_tokenizer_piece(sv->model->tokenizer, t->id, &bytes);
    for (int i = 0; i < t->n_top; i++)
        ids[i] = t->top[i].id, logprobs[i] = t->top[i].logprob;
    pieces p = pieces_of(sv, ids, t->n_top);
    const uint32_t n = p.failed ? 0 : (uint32_t)t->n_top;
    moa_wire_msg m = {.type = MOA_WIRE_TOKEN,
                      .u.token = {.index = t->index,
                                  .pos = t->pos,
                                  .id = t->id,
                                  .piece = {(const uint8_t *)piece, (uint32_t)bytes},
                                  .control = moa_tokenizer_is_control(sv->model->tokenizer, t->id),
                                  .logprob = t->logprob,
                                  .entropy = t->entropy,
                                  .kl = t->kl,
                                  .top_ids = {ids, n},
                                  .top_logprobs = {logprobs, n},
                                  .top_pieces = pieces_bytes(&p),
                                  .top_ends = {p.ends, n}}};
    moa_serve_send(sv, sv->job, &m);
    pieces_free(&p);
}

static bool on_token(void *user, const moa_run_token *t) {
    run_state *run = user;
    moa_serve_state *sv = run->sv;
    run->prefilled = true;
    if (!moa_ids_append(&run->made, &t->id, 1)) run->lost = true;
    send_token(sv, t);
    const bool stopped = moa_serve_cancelled(sv);
    if (t->index == 0 || (sv->stats_every > 0 && t->index % sv->stats_every == 0)) {
        sv->snapshots_due = true;
        sv->hist_next = 0;
    }
    if (stopped) return false;
    if (sv->snapshots_due) send_snapshots(sv, false);
    if (moa_serve_map_ready(sv)) moa_serve_map(sv);
    return true;
}

static void send_done(moa_serve_state *sv, const moa_run_result *r) {
    moa_wire_msg m = {.type = MOA_WIRE_DONE,
                      .u.done = {.stop = moa_serve_str(moa_stop_name(r->stop)),
                                 .n_prompt = r->n_prompt,
                                 .n_gen = r->n_gen,
                                 .n_reserved = r->n_reserved,
                                 .prefill_s = r->prefill_s,
                                 .decode_s = r->decode_s,
                                 .ttft_s = r->ttft_s,
                                 .kv_bytes = r->kv_bytes,
                                 .kv_peak_bytes = r->kv_peak_bytes,
                                 .kv_plan = r->kv_formula.plan,
                                 .kv_dense = r->kv_formula.dense,
                                 .kv_mha = r->kv_formula.mha,
                                 .kv_density = r->kv_density,
                                 .span_min = r->span_min,
                                 .span_mean = r->span_mean,
                                 .span_max = r->span_max,
                                 .device_bytes = r->device_bytes}};
    moa_serve_send(sv, sv->job, &m);
}

/* message -> configuration; what it owns is in sv (rules) and sv->talk */
static moa_status prepare(moa_serve_state *sv, const moa_msg_run *r, moa_run_config *c, moa_err *err) {
    moa_rule *rules = NULL, *measure = NULL;
    const int32_t n_ctx = shape_of(sv)->n_ctx, n_vocab = shape_of(sv)->n_vocab;
    moa_status s = MOA_OK;
    if (r->n_gen > (uint32_t)n_ctx)
        return moa_fail(err, MOA_E_INVALID, "%u tokens to generate; the model's context is %d", r->n_gen,
                        n_ctx);
    if (r->force.n > r->n_gen)
        return moa_fail(err, MOA_E_INVALID, "%u forced tokens, %u to generate", r->force.n, r->n_gen);
    for (uint32_t i = 0; i < r->force.n; i++)
        if (r->force.data[i] < 0 || r->force.data[i] >= n_vocab)
            return moa_fail(err, MOA_E_INVALID, "forced token %u is %d; the vocabulary has %d", i,
                            r->force.data[i], n_vocab);
    if (!isfinite(r->temp) || !isfinite(r->top_p) || !isfinite(r->min_p))
        return moa_fail(err, MOA_E_USAGE, "a sampling parameter is not finite");
    if (r->against_reference && sv->reference.n == 0)
        return moa_fail(err, MOA_E_USAGE, "there is no reference run to compare with");
    *c = (moa_run_config){.n_gen = (int32_t)r->n_gen,
                          .watch = (int)(r->watch & (MOA_WATCH_STATS | MOA_WATCH_CAPTURE | MOA_WATCH_SAMPLED)),
                          .sampling = {.temp = r->temp,
                                       .top_k = r->top_k,
                                       .top_p = r->top_p,
                                       .min_p = r->min_p,
                                       .seed = r->seed},
                          .force = r->force.n ? r->force.data : NULL,
                          .n_force = (int32_t)r->force.n,
                          .ignore_end = r->ignore_end != 0,
                          .planned = on_planned,
                          .progress = on_progress,
                          .token = on_token,
                          .cancelled = on_cancelled};
    MOA_TRY(moa_sampling_check(&c->sampling, err));
    MOA_TRY(take_rules(sv, r->alphas, r->betas, "plan", &rules, err));
    MOA_TRY(take_rules(sv, r->measure_alphas, r->measure_betas, "measured plan", &measure, err));
    if (r->fresh || sv->stale) moa_seq_reset(sv->seq);
    if (r->fresh) sv->talk.n = 0, sv->reply_open = false;
    sv->stale = false;
    free(sv->rules);
    free(sv->measure);
    sv->rules = rules;
    sv->measure = measure;
    c->rules = rules;
    c->measure = measure;
    return MOA_OK;
out:
    free(rules);
    free(measure);
    return s;
}

static moa_status run_job(run_state *run, const moa_msg_run *r, moa_run_config *c, moa_run_result *result,
                          moa_err *err) {
    moa_serve_state *sv = run->sv;
    moa_run_reference kept = {0};
    moa_status s = MOA_OK;
    run->before = sv->talk.n;
    MOA_TRY(append_prompt(sv, r, err));
    const int32_t n_past = moa_seq_n_past(sv->seq);
    if (sv->talk.n <= n_past) {
        s = moa_fail(err, MOA_E_USAGE, "the prompt has no tokens");
        goto out;
    }
    c->ids = sv->talk.data + n_past;
    c->n_ids = sv->talk.n - n_past;
    c->keep = r->keep_reference ? &kept : NULL;
    c->against = r->against_reference ? &sv->reference : NULL;
    c->user = run;
    sv->watch = c->watch;
    sv->n_prompt = c->n_ids;
    sv->n_reserved = sv->talk.n + c->n_gen;
    sv->stats_every = (int32_t)(r->stats_every & INT32_MAX);
    sv->hist_next = 0;
    sv->phase_start = moa_serve_now();
    MOA_TRY(moa_run(sv->seq, c, result, err));
    if (c->keep) {
        moa_run_reference_free(&sv->reference);
        sv->reference = kept;
        kept = (moa_run_reference){0};
    }
out:
    moa_run_reference_free(&kept);
    return s;
}

/* The conversation after a run: what was made belongs to it, unless the prompt was not taken whole. */
static void settle(run_state *run, const moa_msg_run *r, moa_status s) {
    moa_serve_state *sv = run->sv;
    const bool whole = run->prefilled || (s == MOA_OK && moa_seq_n_past(sv->seq) >= sv->talk.n);
    if (!whole) {
        sv->talk.n = run->before;
        sv->stale = moa_seq_n_past(sv->seq) > run->before;
        return;
    }
    sv->stale = run->lost || !moa_ids_append(&sv->talk, run->made.data, (size_t)run->made.n) ||
                moa_seq_n_past(sv->seq) > sv->talk.n;
    sv->reply_open = r->chat && r->ids.n == 0;
}

void moa_serve_run(moa_serve_state *sv, const moa_msg_run *r) {
    moa_err err = {0};
    moa_run_config c;
    moa_run_result result = {0};
    run_state run = {.sv = sv};
    moa_status s = prepare(sv, r, &c, &err);
    if (s == MOA_OK) {
        s = run_job(&run, r, &c, &result, &err);
        settle(&run, r, s);
    }
    if (s == MOA_OK) {
        if (moa_seq_n_past(sv->seq) > 0) send_snapshots(sv, true);
        send_done(sv, &result);
    } else {
        moa_serve_fail(sv, sv->job, s, &err);
        if (s == MOA_E_DEVICE) {
            sv->fatal = true;
            sv->closed_err = err;
        }
    }
    free(run.made.data);
}
