#include "core/tasks/loss.h"

#include <math.h>
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
} judge;

static bool on_logits(void *user, int32_t pos, const float *logits) {
    judge *j = user;
    const moa_loss_job *job = j->job;
    const int32_t t = pos + 1;
    if (t < job->from || t >= job->n) return true;
    const double x = moa_loss_of_logits(logits, j->n_vocab, job->ids[t]);
    if (job->each) job->each[t - job->from] = (float)x;
    j->loss.sum += x;
    j->loss.n++;
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

moa_status moa_loss_add(moa_seq *seq, const moa_loss_job *job, moa_loss *out, moa_err *err) {
    const moa_model *model = moa_engine_model(moa_seq_engine(seq));
    judge j = {.job = job, .n_vocab = model->shape.n_vocab};
    moa_status s = MOA_OK;
    if (job->from < 1 || job->from >= job->n)
        return moa_fail(err, MOA_E_INVALID,
                        "the loss of tokens %d to %d: the first has nothing that predicts it", job->from,
                        job->n);
    if (job->n > model->shape.n_ctx)
        return moa_fail(err, MOA_E_INVALID, "%d tokens do not fit the model's context of %d", job->n,
                        model->shape.n_ctx);
    moa_forward f = {
        .ids = job->ids, .n = job->from - 1, .cancelled = on_cancelled, .progress = on_progress, .user = &j};
    moa_seq_reset(seq);
    MOA_TRY(moa_seq_plan(seq, job->rules, NULL, job->n_reserved > job->n ? job->n_reserved : job->n, 0, NULL,
                         0, err));
    if (f.n > 0) MOA_TRY(moa_seq_forward(seq, &f, err));
    j.base = f.n;
    f.ids = job->ids + j.base;
    f.n = job->n - j.base;
    f.each_logits = on_logits;
    MOA_TRY(moa_seq_forward(seq, &f, err));
    if (!isfinite(j.loss.sum))
        MOA_TRY(moa_fail(err, MOA_E_FAILED, "the loss of %lld tokens is not finite", (long long)j.loss.n));
    out->sum += j.loss.sum;
    out->n += j.loss.n;
out:
    return s;
}
