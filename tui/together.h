/* together.h -- several prompts generated in step: what `run --batch` does.
 *
 *   prompts   prefilled one after the other; one equal to the one before it is forked from it
 *   steps     one token of each a pass (lanes, core/engine/engine.h): greedy ones follow each other on the device, others are
 *             sampled here, sequence i with seed + i */
#ifndef MOA_TUI_TOGETHER_H
#define MOA_TUI_TOGETHER_H

#include "core/base/buf.h"
#include "core/engine/run.h"
#include "tui/load.h"

typedef struct moa_together {
    const moa_args *args;      /* for progress and remarks */
    const moa_loaded *loaded;
    moa_sampling sampling;
    int32_t n_gen;             /* tokens to generate at most, each */
    bool ignore_end;
    const moa_id_list *prompts; /* (n), borrowed */
    int32_t n;
} moa_together;

typedef struct moa_together_seq {
    int32_t n_prompt, n_gen, n_reserved;
    int32_t *ids; /* (n_gen) generated, owned */
    moa_stop stop;
} moa_together_seq;

typedef struct moa_together_result {
    moa_together_seq *seqs; /* (n), owned */
    int32_t n;
    int64_t n_prefilled, n_prompt, n_gen; /* tokens in all; n_prefilled: without forked prompts */
    double prefill_s, decode_s;
    uint64_t kv_bytes, kv_bytes_dense, kv_bytes_mha; /* pages held at the end, shared ones once; by formula, each by itself */
    uint64_t device_peak_bytes;
} moa_together_result;

/* ^C is no error here: what was made by then stands in the result, stop is CANCELLED. moa_together_free in any case. */
moa_status moa_together_run(const moa_together *t, moa_together_result *out, moa_err *err);
void moa_together_free(moa_together_result *r);

/* text of a sequence's ids, without control tokens, appended */
void moa_together_text(const moa_together *t, const moa_together_seq *s, moa_buf *out);
void moa_together_json(const moa_together *t, const moa_together_result *r, const char *plan, moa_buf *out);

#endif
