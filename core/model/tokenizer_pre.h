/* tokenizer_pre.h -- what happens to text before the merges: Unicode normalisation and the cut into words.
 *
 * A GGUF file only names its pre-tokeniser (tokenizer.ggml.pre); what the name means is a regular expression that every
 * word of the text must match, one after the other. Merges never cross a word. Internal to the tokenizer. */
#ifndef MOA_MODEL_TOKENIZER_PRE_H
#define MOA_MODEL_TOKENIZER_PRE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/buf.h"
#include "core/base/status.h"

typedef struct moa_pre moa_pre; /* immutable after opening: any thread may use it */

/* E_UNSUPPORTED for a name not known; the message lists those that are */
moa_status moa_pre_open(moa_pre **out, const char *name, moa_err *err);
void moa_pre_close(moa_pre **pre);
void moa_pre_set_limit(moa_pre *pre, unsigned n_steps); /* of one match; before any walk. A test's way to the limit. */
bool moa_pre_is_nfc(const moa_pre *pre);        /* the text is normalised first */
bool moa_pre_is_whole_word(const moa_pre *pre); /* a word that is itself a token is not built up by merges */

/* Appends s (valid UTF-8) in normalisation form C. Linear in n but for runs of combining marks: n log n. */
void moa_pre_nfc(const char *s, size_t n, moa_buf *out);

/* A walk over the words of one text (valid UTF-8, borrowed until the end of the walk). One thread a walk. */
typedef struct moa_pre_walk {
    const moa_pre *pre;
    const char *text;
    size_t n, at;
    int n_over;                /* words that were cut because the expression hit its limits */
    size_t next_from, next_to; /* a match already found behind a gap; next_to 0: none */
    bool failed;               /* the walk ended for want of memory; stays so over moa_pre_walk_start */
    void *match;
} moa_pre_walk;

moa_status moa_pre_walk_open(moa_pre_walk *w, const moa_pre *pre, moa_err *err);
void moa_pre_walk_start(moa_pre_walk *w, const char *text,
                        size_t n); /* may be called again for the next text */
bool moa_pre_walk_next(moa_pre_walk *w, size_t *from,
                       size_t *to); /* words cover the text without holes; see failed */
void moa_pre_walk_close(moa_pre_walk *w);

#endif
