/* run.h -- one run: prefill a prompt, generate, tell what happened. The batch commands and the engine process call this. */
#ifndef MOA_ENGINE_RUN_H
#define MOA_ENGINE_RUN_H

#include "core/engine/engine.h"
#include "core/engine/sampler.h"

typedef struct moa_run_token {
    int32_t index; /* 0-based among the generated ones */
    int32_t pos;   /* in the sequence */
    int32_t id;
    float logprob, entropy; /* nats */
    float kl;               /* KL(reference || this run) of this position's distribution, nats; NaN: no reference */
    int32_t n_top;
    moa_top top[MOA_TOP_MAX];
} moa_run_token;

/* Logits of a run's generated positions, kept as the reference that another run is compared with. Caller-owned;
 * zero-initialise; moa_run_reference_free. */
typedef struct moa_run_reference {
    float *logits; /* (n, n_vocab) */
    int32_t n, n_vocab;
    int32_t capacity;
} moa_run_reference;
void moa_run_reference_free(moa_run_reference *r);

typedef struct moa_run_config {
    const int32_t *ids; /* tokens to append to the sequence */
    int32_t n_ids;
    int32_t n_gen;          /* generation limit, 0: prefill only; N = tokens of the sequence + n_ids + n_gen, at most n_ctx */
    const moa_rule *rules;  /* (n_layer, n_head); NULL: dense */
    const moa_rule *measure; /* rules the window statistics are measured with; NULL: rules */
    int watch;              /* MOA_WATCH_* */
    moa_sampling sampling;
    const int32_t *force; /* teacher-forced continuation instead of sampling (n_force <= n_gen), or NULL; it is given whole,
                           * end tokens do not stop it, and what follows is sampled */
    int32_t n_force;
    bool ignore_end;      /* go on after an end-of-text token */
    int32_t chunk;        /* 0: the engine's */
    moa_run_reference *keep;          /* fill with this run's logits, or NULL */
    const moa_run_reference *against; /* compare with, or NULL */
    /* callbacks, each may be NULL; user is passed to all */
    void (*planned)(void *user, const moa_seq *s, const char *note); /* spans are set, prefill is about to start */
    void (*progress)(void *user, int32_t done, int32_t total);   /* prefill, tokens */
    bool (*each_logits)(void *user, int32_t pos, const float *logits); /* prompt positions, teacher-forced */
    bool (*token)(void *user, const moa_run_token *t); /* false stops (counts as cancelled); the token stays */
    bool (*cancelled)(void *user);
    void *user;
} moa_run_config;

#define MOA_STOP_MAP(X)                                                                                      \
    X(END, "end")             /* the model ended its answer */                                               \
    X(LENGTH, "length")       /* the generation limit */                                                     \
    X(CONTEXT, "context")     /* the model's context is full */                                              \
    X(CANCELLED, "cancelled")
typedef enum moa_stop {
#define X(name, text) MOA_STOP_##name,
    MOA_STOP_MAP(X)
#undef X
} moa_stop;
const char *moa_stop_name(moa_stop s);

typedef struct moa_run_result {
    int32_t n_prompt, n_gen; /* tokens taken and made by this run */
    int32_t n_reserved;      /* N */
    moa_stop stop;
    double prefill_s, decode_s, ttft_s;
    moa_kv_bytes kv_formula; /* at the end of the run */
    uint64_t kv_bytes, kv_peak_bytes; /* measured: pages held at the end, most held at any time */
    double kv_density;       /* mean over KV heads of tokens kept / tokens */
    int32_t span_min, span_max;
    double span_mean;
    uint64_t device_bytes;   /* device memory taken by engine and sequences at the end */
    uint64_t device_peak_bytes; /* most of it since the engine was opened */
} moa_run_result;

/* E_CANCELLED is not an error here: the result says stop = CANCELLED and what was made stays in the sequence. */
moa_status moa_run(moa_seq *s, const moa_run_config *config, moa_run_result *result, moa_err *err);

#endif
