/* serve_task.c -- the search's device work, done by the engine process on the model it has loaded.
 *
 *   TASK -> check -> for each length, for each item: make it, work on it -> RESULT       PROGRESS in between, at most 20 a second
 *
 *   calibrate   a synthetic document and question; the dense model's answer is the supervised part; kept in sv->items
 *   profile     kept items of the length, forward and backward: sums; at the end of the length INFLUENCE, layer by layer; under a plan's
 *               spans, or none
 *   validate    items made as above from another seed, then their loss under every plan
 *   eval        one case under every plan: right or wrong
 *
 * An item is worked on under all plans before the next one is made, so a task that is cut short still compares plans on the same
 * items. A sequence of its own is used: the conversation, its captured q and k, and its maps stay as they are; maps are answered between
 * items. ^C is noticed within a layer; what is done by then is kept and told (state cancelled). */
#include "core/engine/serve_impl.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/profile.h"
#include "core/tasks/answer.h"
#include "core/tasks/calib.h"
#include "core/tasks/cases.h"
#include "core/tasks/loss.h"

enum { INFLUENCE_FRAME = 4 << 20, N_GEN_MAX = 1024, DOCS_PATHS = 64 << 10 };

/* the items calibrated so far, of all lengths */
struct moa_serve_items {
    struct kept {
        moa_tokens tokens; /* owned */
        int32_t length;
    } * data; /* (n), owned */
    int32_t n;
};

typedef struct task {
    moa_serve_state *sv;
    const moa_msg_task *ask;
    moa_wire_task kind;
    int32_t lengths[MOA_WIRE_LENGTHS_MAX], n_length, n_item, n_plan;
    moa_rule *rules; /* (n_plan, n_layer, n_head), owned */
    moa_docs docs;
    moa_seq *seq;
    moa_profile *profile;
    moa_influence sums; /* of the length under way */
    moa_cases *cases;
    /* (n_plan, n_length) */
    int32_t n[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX], right[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX];
    moa_loss loss[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX];
    double done, total, part; /* tokens: finished, of the whole task, of what is under way */
    double start, told;
    char note[200];
} task;

static size_t n_cells(const task *t) {
    return (size_t)t->sv->model->shape.n_layer * (size_t)t->sv->model->shape.n_head;
}
static moa_rule *plan_of(const task *t, int32_t p) {
    return t->rules ? t->rules + (size_t)p * n_cells(t) : NULL;
}
static int cell(const task *t, int32_t plan, int32_t length) {
    return plan * t->n_length + length;
}

void moa_serve_items_close(moa_serve_items **items) {
    for (int32_t i = 0; *items && i < (*items)->n; i++)
        moa_tokens_free(&(*items)->data[i].tokens);
    if (*items) free((*items)->data);
    free(*items);
    *items = NULL;
}

/* --- told while it works ------------------------------------------------------------------------------------------------- */

static void tell_progress(task *t, double done) {
    const double now = moa_serve_now();
    if (now - t->told < 0.05 && done < t->total) return;
    t->told = now;
    moa_wire_msg m = {.type = MOA_WIRE_PROGRESS,
                      .u.progress = {.phase = 2 + (uint32_t)t->kind,
                                     .done = (uint64_t)done,
                                     .total = (uint64_t)t->total,
                                     .seconds = now - t->start}};
    moa_serve_send(t->sv, t->sv->job, &m);
}

static void on_progress(void *user, int32_t done, int32_t total) {
    task *t = user;
    tell_progress(t, t->done + t->part * done / (total > 0 ? total : 1));
}

static bool on_cancelled(void *user) {
    return moa_serve_cancelled(((task *)user)->sv);
}

static void send_result(task *t, moa_wire_result state) {
    double loss[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX];
    const uint32_t n = (uint32_t)(t->n_plan * t->n_length);
    for (uint32_t i = 0; i < n; i++)
        loss[i] = t->loss[i].n > 0 ? t->loss[i].sum / (double)t->loss[i].n : (double)NAN;
    moa_wire_msg m = {.type = MOA_WIRE_RESULT,
                      .u.result = {.kind = t->kind,
                                   .state = state,
                                   .lengths = {t->lengths, (uint32_t)t->n_length},
                                   .n_plan = t->n_plan,
                                   .n_want = t->n_item,
                                   .n = {t->n, n},
                                   .right = {t->right, n},
                                   .loss = {loss, n},
                                   .seconds = moa_serve_now() - t->start,
                                   .note = moa_serve_str(t->note)}};
    moa_serve_send(t->sv, t->sv->job, &m);
}

/* an item is done under all plans */
static void item_done(task *t, double tokens) {
    t->done += tokens;
    t->part = 0;
    tell_progress(t, t->done);
    send_result(t, MOA_WIRE_GOES_ON);
    if (moa_serve_map_ready(t->sv)) moa_serve_map(t->sv);
}

/* --- items answered by the dense model --------------------------------------------------------------------------------------- */

static moa_calib calib_of(const task *t) {
    moa_calib c = {.form = MOA_FORM_AUTO, .n_gen = t->ask->n_gen, .seed = t->ask->seed, .docs = &t->docs};
    for (int k = 0; k < MOA_CALIB_COUNT; k++)
        if (t->ask->item_kinds & 1u << k) c.kinds[c.n_kind++] = (moa_calib_kind)k;
    return c;
}

/* Item i of a length, with the model's answer as what is supervised. *right: the answer was the expected one. tokens->ids NULL: it
 * answered nothing, or what it answered does not fit. */
static moa_status answered(task *t, int32_t length, int32_t i, moa_tokens *tokens, bool *right,
                           moa_err *err) {
    const moa_calib c = calib_of(t);
    moa_calib_item it = {0};
    moa_answer a = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_calib_make(t->sv->model, &c, length, i, &it, err));
    const moa_ask ask = {.ids = it.tokens.ids,
                         .n_ids = it.tokens.n,
                         .n_gen = it.n_gen,
                         .stop = it.stop,
                         .progress = on_progress,
                         .cancelled = on_cancelled,
                         .user = t};
    MOA_TRY(moa_answer_make(t->seq, &ask, &a, err));
    *right = moa_calib_right(&it, a.text.data);
    if (a.text.size == 0) goto out;
    if (!moa_item_add_answer(&it.item, a.text.data, a.text.size))
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for an answer"));
    const moa_encode how = {.form = it.item.form, .n_max = length};
    s = moa_item_encode(t->sv->model, &it.item, &how, tokens, err);
out:
    moa_answer_free(&a);
    moa_calib_free(&it);
    return s;
}

static moa_status keep(task *t, int32_t length, moa_tokens *tokens, moa_err *err) {
    moa_serve_state *sv = t->sv;
    if (!sv->items) sv->items = calloc(1, sizeof *sv->items);
    struct kept *grown =
        sv->items ? realloc(sv->items->data, (size_t)(sv->items->n + 1) * sizeof *grown) : NULL;
    if (!grown) return moa_fail(err, MOA_E_MEMORY, "no memory for an item of %d tokens", tokens->n);
    sv->items->data = grown;
    grown[sv->items->n++] = (struct kept){*tokens, length};
    *tokens = (moa_tokens){0};
    return MOA_OK;
}

static moa_status calibrate(task *t, int32_t l, int32_t i, moa_err *err) {
    moa_tokens tokens = {0};
    bool right = false;
    t->part = t->lengths[l];
    moa_status s = answered(t, t->lengths[l], i, &tokens, &right, err);
    if (s == MOA_OK && tokens.ids) s = keep(t, t->lengths[l], &tokens, err);
    moa_tokens_free(&tokens);
    if (s != MOA_OK) return s;
    t->n[l]++;
    t->right[l] += right;
    item_done(t, t->lengths[l]);
    return MOA_OK;
}

/* --- influence ------------------------------------------------------------------------------------------------------------------ */

static size_t floats_of(const moa_influence *f, bool maps) { /* of one head */
    return (maps ? 2 * (size_t)f->nb * (size_t)f->nb : 0) + (size_t)f->nb + 1;
}

static void means(const moa_influence *f, const double *sums, size_t n, float *out) {
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(sums[i] / f->n_item);
}

/* heads [head0, head0 + n) of a layer; room for all their floats */
static void send_heads(task *t, int32_t layer, int32_t head0, int32_t n, bool maps, float *room) {
    const moa_influence *f = &t->sums;
    const size_t map = (size_t)f->nb * (size_t)f->nb, curve = (size_t)f->nb + 1;
    const size_t first = (size_t)layer * (size_t)f->n_head + (size_t)head0,
                 n_map = maps ? (size_t)n * map : 0;
    float *sum = room + n_map, *joint = sum + n_map;
    means(f, f->abs + first * map, n_map, room);
    means(f, f->sum + first * map, n_map, sum);
    means(f, f->joint + first * curve, (size_t)n * curve, joint);
    moa_wire_msg m = {.type = MOA_WIRE_INFLUENCE,
                      .u.influence = {.n_tok = f->n_tok,
                                      .nb = f->nb,
                                      .layer = layer,
                                      .head0 = head0,
                                      .n_head = n,
                                      .n_item = f->n_item,
                                      .n_supervised = (uint64_t)f->n_supervised,
                                      .n_clamped = (uint64_t)f->n_clamped,
                                      .loss = f->loss / f->n_item,
                                      .abs = {room, (uint32_t)n_map},
                                      .sum = {sum, (uint32_t)n_map},
                                      .joint = {joint, (uint32_t)((size_t)n * curve)}}};
    moa_serve_send(t->sv, t->sv->job, &m);
}

static moa_status send_influence(task *t, moa_err *err) {
    const moa_influence *f = &t->sums;
    const bool fit = floats_of(f, true) * sizeof(float) < MOA_WIRE_MAX - 4096, maps = fit && !t->rules; /* of wider windows they say nothing */
    const size_t each = floats_of(f, maps) * sizeof(float);
    int32_t some = (int32_t)(INFLUENCE_FRAME / each);
    if (some < 1) some = 1;
    if (some > f->n_head) some = f->n_head;
    float *room = malloc((size_t)some * each);
    if (!room) return moa_fail(err, MOA_E_MEMORY, "no memory to send the influence of %d heads", some);
    if (!fit)
        (void)snprintf(t->note, sizeof t->note,
                       "influence maps of %d tokens are too large for a message: curves alone", f->n_tok);
    for (int32_t layer = 0; layer < f->n_layer; layer++)
        for (int32_t h = 0; h < f->n_head; h += some)
            send_heads(t, layer, h, h + some <= f->n_head ? some : f->n_head - h, maps, room);
    free(room);
    return MOA_OK;
}

/* the kept items of this length: the i-th, or NULL */
static const moa_tokens *kept_item(const task *t, int32_t length, int32_t i) {
    const moa_serve_items *items = t->sv->items;
    for (int32_t k = 0; items && k < items->n; k++)
        if (items->data[k].length == length && i-- == 0) return &items->data[k].tokens;
    return NULL;
}

static moa_status profile_item(task *t, int32_t l, const moa_tokens *item, moa_err *err) {
    double loss;
    const moa_profile_item one = {.ids = item->ids,
                                  .n = item->n,
                                  .supervise_from = item->supervise_from,
                                  .cancelled = on_cancelled,
                                  .progress = on_progress,
                                  .user = t,
                                  .rules = plan_of(t, 0),
                                  .margin = t->ask->loss == MOA_WIRE_MARGIN};
    t->part = t->lengths[l];
    const moa_status s = moa_profile_add(t->profile, &one, &t->sums, &loss, err);
    if (s != MOA_OK) return s;
    t->n[l]++;
    t->loss[l].sum += loss;
    t->loss[l].n++;
    item_done(t, t->lengths[l]);
    return MOA_OK;
}

static moa_status profile_length(task *t, int32_t l, moa_err *err) {
    const moa_tokens *item;
    moa_err unsent = {0};
    moa_status s = moa_influence_open(&t->sums, &t->sv->model->shape, t->lengths[l], err);
    for (int32_t i = 0; s == MOA_OK && i < t->n_item && (item = kept_item(t, t->lengths[l], i)) != NULL; i++)
        s = profile_item(t, l, item, err);
    if (t->sums.n_item > 0 && send_influence(t, &unsent) != MOA_OK && s == MOA_OK)
        s = moa_fail(err, unsent.status, "%s", unsent.text);
    moa_influence_free(&t->sums);
    t->sums = (moa_influence){0};
    return s;
}

static moa_status profile(task *t, moa_err *err) {
    int32_t longest = 0;
    moa_status s = MOA_OK;
    for (int32_t l = 0; l < t->n_length; l++) {
        if (!kept_item(t, t->lengths[l], 0))
            return moa_fail(err, MOA_E_USAGE, "there are no calibrated items of %d tokens; calibrate first",
                            t->lengths[l]);
        if (t->lengths[l] > longest) longest = t->lengths[l];
    }
    MOA_TRY(moa_profile_open(&t->profile, t->sv->engine, longest, err));
    for (int32_t l = 0; l < t->n_length; l++)
        MOA_TRY(profile_length(t, l, err));
out:
    return s;
}

/* --- plans compared ----------------------------------------------------------------------------------------------------------------- */

static moa_status validate(task *t, int32_t l, int32_t i, moa_err *err) {
    moa_tokens tokens = {0};
    bool right = false;
    moa_loss each[MOA_WIRE_PLANS_MAX] = {0};
    const double length = t->lengths[l];
    moa_status s = MOA_OK;
    t->part = length;
    MOA_TRY(answered(t, t->lengths[l], i, &tokens, &right, err));
    t->done += length;
    for (int32_t p = 0; p < t->n_plan && tokens.ids; p++) {
        const moa_loss_job job = {.ids = tokens.ids,
                                  .n = tokens.n,
                                  .from = tokens.supervise_from,
                                  .rules = plan_of(t, p),
                                  .progress = on_progress,
                                  .cancelled = on_cancelled,
                                  .user = t};
        MOA_TRY(moa_loss_add(t->seq, &job, &each[p], err));
        t->done += length;
    }
    if (!tokens.ids) t->done += length * t->n_plan;
    for (int32_t p = 0; p < t->n_plan && tokens.ids; p++) {
        moa_loss *sum = &t->loss[cell(t, p, l)];
        sum->sum += each[p].sum;
        sum->n += each[p].n;
        t->n[cell(t, p, l)]++;
    }
    item_done(t, 0);
out:
    moa_tokens_free(&tokens);
    return s;
}

static moa_status evaluate(task *t, int32_t l, int32_t i, moa_err *err) {
    moa_case c = {0};
    bool right[MOA_WIRE_PLANS_MAX] = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_cases_make(t->cases, l, i, &c, err));
    for (int32_t p = 0; p < t->n_plan; p++) {
        moa_answer a = {0};
        const moa_ask ask = {.ids = c.tokens.ids,
                             .n_ids = c.tokens.n,
                             .n_gen = moa_cases_n_gen(t->cases),
                             .rules = plan_of(t, p),
                             .stop = c.stop,
                             .progress = on_progress,
                             .cancelled = on_cancelled,
                             .user = t};
        t->part = t->lengths[l];
        s = moa_answer_make(t->seq, &ask, &a, err);
        if (s == MOA_OK) right[p] = moa_cases_judge(t->cases, &c, a.text.data).exact > 0.5;
        moa_answer_free(&a);
        if (s != MOA_OK) goto out;
        t->done += t->lengths[l];
    }
    for (int32_t p = 0; p < t->n_plan; p++) {
        t->n[cell(t, p, l)]++;
        t->right[cell(t, p, l)] += right[p];
    }
    item_done(t, 0);
out:
    moa_case_free(&c);
    return s;
}

/* --- the message, checked ---------------------------------------------------------------------------------------------------------------- */

static moa_status take_lengths(task *t, moa_err *err) {
    const moa_msg_task *m = t->ask;
    const int32_t n_ctx = t->sv->model->shape.n_ctx;
    if (m->kind < MOA_WIRE_CALIBRATE || m->kind > MOA_WIRE_EVAL)
        return moa_fail(err, MOA_E_INVALID, "task %u: it is 1 to %d", m->kind, MOA_WIRE_EVAL);
    if (m->lengths.n < 1 || m->lengths.n > MOA_WIRE_LENGTHS_MAX)
        return moa_fail(err, MOA_E_INVALID, "%u lengths; from 1 to %d", m->lengths.n, MOA_WIRE_LENGTHS_MAX);
    for (uint32_t i = 0; i < m->lengths.n; i++) {
        if (m->lengths.data[i] < 2 || m->lengths.data[i] > n_ctx)
            return moa_fail(err, MOA_E_INVALID, "length %d: from 2 to the model's context of %d tokens",
                            m->lengths.data[i], n_ctx);
        t->lengths[i] = m->lengths.data[i];
    }
    if (m->n_item < 1 || m->n_item > MOA_WIRE_ITEMS_MAX)
        return moa_fail(err, MOA_E_INVALID, "%d items a length; from 1 to %d", m->n_item, MOA_WIRE_ITEMS_MAX);
    if (m->n_gen < 1 || m->n_gen > N_GEN_MAX)
        return moa_fail(err, MOA_E_INVALID, "answers of %d tokens; from 1 to %d", m->n_gen, N_GEN_MAX);
    t->kind = (moa_wire_task)m->kind;
    t->n_length = (int32_t)m->lengths.n;
    t->n_item = m->n_item;
    return MOA_OK;
}

static moa_status take_plans(task *t, moa_err *err) {
    const moa_msg_task *m = t->ask;
    size_t cells;
    const int32_t most = t->kind == MOA_WIRE_PROFILE ? 1 : MOA_WIRE_PLANS_MAX;
    t->n_plan = 1;
    if (m->loss > MOA_WIRE_MARGIN) return moa_fail(err, MOA_E_INVALID, "loss %u: it is 0 or %d", m->loss, MOA_WIRE_MARGIN);
    if (t->kind == MOA_WIRE_CALIBRATE || (t->kind == MOA_WIRE_PROFILE && m->n_plan == 0)) return MOA_OK;
    if (m->n_plan < 1 || m->n_plan > most) return moa_fail(err, MOA_E_INVALID, "%d plans; from 1 to %d", m->n_plan, most);
    if (!moa_size_mul((size_t)m->n_plan, n_cells(t), &cells) || m->alphas.n != cells || m->betas.n != cells)
        return moa_fail(err, MOA_E_INVALID, "%u alphas and %u betas for %d plans of %zu heads", m->alphas.n,
                        m->betas.n, m->n_plan, n_cells(t));
    t->rules = malloc(cells * sizeof *t->rules);
    if (!t->rules) return moa_fail(err, MOA_E_MEMORY, "no memory for %d plans", m->n_plan);
    for (size_t i = 0; i < cells; i++) {
        if (!isfinite(m->alphas.data[i]) || !isfinite(m->betas.data[i]))
            return moa_fail(err, MOA_E_INVALID, "rule %zu of the plans is not finite", i);
        t->rules[i] = (moa_rule){m->alphas.data[i], m->betas.data[i]};
    }
    t->n_plan = m->n_plan;
    return MOA_OK;
}

static moa_status take_docs(task *t, moa_err *err) {
    const moa_wire_str d = t->ask->docs;
    char path[PATH_MAX];
    if (d.n > DOCS_PATHS || (d.n && memchr(d.data, 0, d.n)))
        return moa_fail(err, MOA_E_INVALID, "the documents' names are %u bytes, or hold a NUL", d.n);
    for (uint32_t at = 0; at < d.n;) {
        const char *end = memchr(d.data + at, '\n', d.n - at);
        const size_t n = end ? (size_t)(end - d.data) - at : d.n - at;
        if (n >= sizeof path) return moa_fail(err, MOA_E_INVALID, "a document's name of %zu bytes", n);
        memcpy(path, d.data + at, n);
        path[n] = 0;
        const moa_status s = n ? moa_docs_add(&t->docs, path, err) : MOA_OK;
        if (s != MOA_OK) return s;
        at += (uint32_t)n + 1;
    }
    return MOA_OK;
}

static moa_status take_kinds(task *t, moa_err *err) {
    const uint32_t k = t->ask->item_kinds;
    if (t->kind == MOA_WIRE_EVAL) {
        if (k >= MOA_TASK_COUNT || !moa_task_synthetic((moa_task)k))
            return moa_fail(err, MOA_E_INVALID, "evaluation %u is not one with right answers", k);
        const moa_cases_config c = {.task = (moa_task)k,
                                    .lengths = t->lengths,
                                    .n_length = t->n_length,
                                    .n_item = t->n_item,
                                    .n_depth = 10,
                                    .seed = t->ask->seed,
                                    .docs = t->docs.n > 0 ? &t->docs : NULL};
        return moa_cases_open(&t->cases, t->sv->model, &c, err);
    }
    if (t->kind == MOA_WIRE_PROFILE) return MOA_OK;
    if (k == 0 || k >= 1u << MOA_CALIB_COUNT)
        return moa_fail(err, MOA_E_INVALID, "kinds of items 0x%x: bits 0 to %d", k, MOA_CALIB_COUNT - 1);
    return MOA_OK;
}

/* of one length */
static int32_t n_items(const task *t, int32_t l) {
    int32_t n = 0;
    if (t->kind == MOA_WIRE_EVAL) return moa_cases_n(t->cases, l);
    if (t->kind != MOA_WIRE_PROFILE) return t->n_item;
    while (n < t->n_item && kept_item(t, t->lengths[l], n))
        n++;
    return n;
}

static moa_status take(task *t, moa_err *err) {
    moa_status s = MOA_OK;
    MOA_TRY(take_lengths(t, err));
    MOA_TRY(take_plans(t, err));
    MOA_TRY(take_docs(t, err));
    MOA_TRY(take_kinds(t, err));
    if (t->kind != MOA_WIRE_PROFILE) MOA_TRY(moa_seq_open(&t->seq, t->sv->engine, err));
    for (int32_t l = 0; l < t->n_length; l++)
        t->total += (double)n_items(t, l) * t->lengths[l] *
                    (t->kind == MOA_WIRE_VALIDATE ? 1 + t->n_plan : t->n_plan); /* it is answered first */
out:
    return s;
}

/* --- in all --------------------------------------------------------------------------------------------------------------------------------- */

static moa_status work(task *t, moa_err *err) {
    moa_status s = MOA_OK;
    if (t->kind == MOA_WIRE_PROFILE) return profile(t, err);
    if (t->kind == MOA_WIRE_CALIBRATE && t->ask->fresh) moa_serve_items_close(&t->sv->items);
    for (int32_t l = 0; l < t->n_length; l++)
        for (int32_t i = 0; i < n_items(t, l); i++)
            MOA_TRY(t->kind == MOA_WIRE_CALIBRATE  ? calibrate(t, l, i, err)
                    : t->kind == MOA_WIRE_VALIDATE ? validate(t, l, i, err)
                                                   : evaluate(t, l, i, err));
out:
    return s;
}

void moa_serve_task(moa_serve_state *sv, const moa_msg_task *ask) {
    moa_err err = {0};
    task *t = calloc(1, sizeof *t);
    if (!t) {
        moa_serve_fail(sv, sv->job, MOA_E_MEMORY, NULL);
        return;
    }
    t->sv = sv;
    t->ask = ask;
    t->start = moa_serve_now();
    moa_status s = take(t, &err);
    if (s == MOA_OK) {
        send_result(t, MOA_WIRE_GOES_ON);
        s = work(t, &err);
    }
    moa_profile_close(&t->profile); /* its memory is free before the next request comes */
    moa_seq_close(&t->seq);
    if (s == MOA_OK || s == MOA_E_CANCELLED)
        send_result(t, s == MOA_OK ? MOA_WIRE_FINISHED : MOA_WIRE_CANCELLED);
    else
        moa_serve_fail(sv, sv->job, s, &err);
    if (s == MOA_E_DEVICE) {
        sv->fatal = true;
        sv->closed_err = err;
    }
    moa_influence_free(&t->sums);
    moa_cases_close(&t->cases);
    moa_docs_free(&t->docs);
    free(t->rules);
    free(t);
}
