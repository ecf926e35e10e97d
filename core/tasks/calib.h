/* calib.h -- calibration items before they are answered: a long document and a question that needs all of it.
 *
 *   synthetic   retrieval, passkey, needle, facts (synth.h), at depths spread evenly
 *   summary     a part of a document of the user's, "what is it about at its beginning, in its middle, at its end?"
 *   spread      the same with three facts put in, one in each third, all three asked for: retrieval from far apart in real text
 *   own         a document that brings its question (.jsonl)
 *
 * The answer then comes from the dense model itself (method.md: its own answers make far better calibration data than human ones), and
 * only the answer carries loss. The kinds given take turns; item i of a length is the same whatever else is asked for. */
#ifndef MOA_TASKS_CALIB_H
#define MOA_TASKS_CALIB_H

#include "core/tasks/docs.h"
#include "core/tasks/synth.h"

typedef enum moa_calib_kind {
    MOA_CALIB_RETRIEVAL = MOA_SYNTH_RETRIEVAL,
    MOA_CALIB_PASSKEY = MOA_SYNTH_PASSKEY,
    MOA_CALIB_NEEDLE = MOA_SYNTH_NEEDLE,
    MOA_CALIB_FACTS = MOA_SYNTH_FACTS,
    MOA_CALIB_SUMMARY,
    MOA_CALIB_SPREAD,
    MOA_CALIB_COUNT
} moa_calib_kind;
enum { MOA_CALIB_KINDS_MAX = 16, MOA_CALIB_N_SPREAD = 3 };
const char *moa_calib_name(moa_calib_kind k);
/* "retrieval,passkey": adds to kinds (n_kind, at most MOA_CALIB_KINDS_MAX). E_USAGE names the word. */
moa_status moa_calib_parse(const char *text, moa_calib_kind *kinds, int *n_kind, moa_err *err);
bool moa_calib_needs_docs(moa_calib_kind k);

typedef struct moa_calib {
    moa_calib_kind kinds[MOA_CALIB_KINDS_MAX];
    int n_kind;
    moa_form form; /* AUTO: chat for summaries where the model has a template, MOA_SYNTH_FORM else */
    int32_t n_gen; /* answer tokens at most, >= 1 */
    uint64_t seed;
    const moa_docs
        *docs; /* borrowed; may be empty when no kind needs them. They also fill passkey, needle and facts */
} moa_calib;

typedef struct moa_calib_item {
    moa_item item;     /* without an answer; owned */
    moa_tokens tokens; /* the prompt; owned */
    moa_calib_kind kind;
    char expected[MOA_CALIB_N_SPREAD][32]; /* (n_expected) what a right answer holds, in this order */
    int n_expected;
    int32_t n_gen; /* answer tokens at most */
    int stop;      /* MOA_STOP_AT_* */
} moa_calib_item;
/* Item i made for `length` tokens. E_INVALID when no document is long enough. moa_calib_free on success. */
moa_status moa_calib_make(const moa_model *m, const moa_calib *c, int32_t length, int32_t i,
                          moa_calib_item *out, moa_err *err);
void moa_calib_free(moa_calib_item *it);
bool moa_calib_right(const moa_calib_item *it, const char *answer); /* true when nothing is expected */

#endif
