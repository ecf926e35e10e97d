#include "core/tasks/loss.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, BLOCK = 1024 };

/* exp(x) for x <= 0, relative error below 2e-7: 2^i by the exponent bits, 2^f, |f| <= 1/2, by Taylor's polynomial of degree 7. No
 * branches, so that the loop over a vocabulary of 150,000 is vectorised. */
static inline float exp_small(float x) {
    const float t = (x > -87.0f ? x : -87.0f) * 1.44269504f;
    const int32_t i = (int32_t)(t - 0.5f); /* t <= 0: rounds to the nearest */
    const float f = (t - (float)i) * 0.69314718f;
    const float p =
        1 + f * (1 + f * (0.5f + f * (1 / 6.0f +
                                      f * (1 / 24.0f + f * (1 / 120.0f + f * (1 / 720.0f + f / 5040.0f))))));
    const int32_t bits = (i + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x > -87.0f ? p * scale : 0;
}

double moa_loss_of_logits(const float *logits, int32_t n_vocab, int32_t target) {
    float max = logits[0];
    double sum = 0;
    int32_t n_nan = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        max = logits[i] > max ? logits[i] : max;
        n_nan += logits[i] != logits[i];
    }
    if (n_nan > 0) return (double)NAN;
    for (int32_t at = 0; at < n_vocab; at += BLOCK) {
        const int32_t end = n_vocab - at < BLOCK ? n_vocab : at + BLOCK,
                      whole = at + (end - at) / LANES * LANES;
        float lane[LANES] = {0};
        for (int32_t i = at; i < whole; i += LANES)
            for (int32_t l = 0; l < LANES; l++)
                lane[l] += exp_small(logits[i + l] - max);
        for (int32_t l = 0; l < LANES; l++)
            sum += (double)lane[l];
        for (int32_t i = whole; i < end; i++)
            sum += (double)exp_small(logits[i] - max);
    }
    return log(sum) - ((double)logits[target] - (double)max);
}

typedef struct judge {
    const moa_loss_job *job;
    int32_t n_vocab, base; /* base: tokens done before the forward call under way */
    moa_loss loss;
    int32_t *targets; /* (n - base) or NULL: the logits come down; owned */
    float *losses;
} judge;

static void count(judge *j, int32_t t, double x) {
    if (j->job->each) j->job->each[t - j->job->from] = (float)x;
    j->loss.sum += x;
    j->loss.n++;
}

static bool on_logits(void *user, int32_t pos, const float *logits) {
    judge *j = user;
    const moa_loss_job *job = j->job;
    const int32_t t = pos + 1;
    if (t < job->from || t >= job->n) return true;
    count(j, t, moa_loss_of_logits(logits, j->n_vocab, job->ids[t]));
    return true;
}

static bool on_cancelled(void *user) {
    const moa_loss_job *job = ((judge *)user)->job;
    return job->cancelled && job->cancelled(job->user);
}

static void on_progress(void *user, int32_t done, int32_t total) {
    const judge *j = user;
    (void)total;
    if (j->job->progress) j->job->progress(j->job->user, j->base + done, j->job->n);
}

static moa_status check(const moa_shape *shape, const moa_loss_job *job, moa_err *err) {
    if (job->from < 1 || job->from >= job->n)
        return moa_fail(err, MOA_E_INVALID,
                        "the loss of tokens %d to %d: the first has nothing that predicts it", job->from,
                        job->n);
    if (job->n > shape->n_ctx)
        return moa_fail(err, MOA_E_INVALID, "%d tokens do not fit the model's context of %d", job->n,
                        shape->n_ctx);
    return MOA_OK;
}

/* the tokens from base on, by a device that makes losses: each is judged by the one behind it */
static moa_status judge_there(judge *j, moa_seq *seq, moa_forward *f, moa_err *err) {
    const moa_loss_job *job = j->job;
    j->targets = malloc((size_t)f->n * sizeof *j->targets);
    j->losses = malloc((size_t)f->n * sizeof *j->losses);
    if (!j->targets || !j->losses)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the losses of %d tokens", f->n);
    for (int32_t i = 0; i < f->n; i++)
        j->targets[i] = j->base + i + 1 < job->n ? job->ids[j->base + i + 1] : -1;
    f->targets = j->targets;
    f->losses = j->losses;
    const moa_status s = moa_seq_forward(seq, f, err);
    for (int32_t i = 0; s == MOA_OK && i + 1 < f->n; i++)
        count(j, j->base + i + 1, (double)j->losses[i]);
    return s;
}

moa_status moa_loss_add(moa_seq *seq, const moa_loss_job *job, moa_loss *out, moa_err *err) {
    moa_engine *e = moa_seq_engine(seq);
    judge j = {.job = job, .n_vocab = moa_engine_model(e)->shape.n_vocab};
    moa_forward f = {
        .ids = job->ids, .n = job->from - 1, .cancelled = on_cancelled, .progress = on_progress, .user = &j};
    moa_status s = MOA_OK;
    MOA_TRY(check(&moa_engine_model(e)->shape, job, err));
    moa_seq_reset(seq);
    MOA_TRY(moa_seq_plan(seq, job->rules, NULL, job->n_reserved > job->n ? job->n_reserved : job->n, 0, NULL,
                         0, err));
    if (f.n > 0) MOA_TRY(moa_seq_forward(seq, &f, err));
    j.base = f.n;
    f.ids = job->ids + j.base;
    f.n = job->n - j.base;
    if (job->by_logits || !moa_engine_can_judge(e)) {
        f.each_logits = on_logits;
        MOA_TRY(moa_seq_forward(seq, &f, err));
    } else {
        MOA_TRY(judge_there(&j, seq, &f, err));
    }
    if (!isfinite(j.loss.sum))
        MOA_TRY(moa_fail(err, MOA_E_FAILED, "the loss of %lld tokens is not finite", (long long)j.loss.n));
    out->sum += j.loss.sum;
    out->n += j.loss.n;
out:
    free(j.targets);
    free(j.losses);
    return s;
}
