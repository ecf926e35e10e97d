/* items.h -- DATA.jsonl: long prompts with an answer, what calibrate writes and profile, validate and `eval --task jsonl` read.
 *
 * One JSON object a line:
 *
 *     {"prompt": "...", "answer": "..."}        optional: "answers": [...] (further accepted ones; the first is the answer if there is no "answer"),
 *                                               "context", "question", "source", "form": "chat"|"continue", "length": N
 *     {"ids": [...], "supervise_from": K}       already tokenised: the loss is the mean over ids[K..]
 *
 *     what the model reads     prompt; in front of it the context, behind it the question, where the prompt does not hold them
 *     where a cut is made      in the middle of the context (of the prompt where there is no context), never in the answer:
 *
 *         template | before | context a ... b | after | template | answer         ids[supervise_from..] = the answer
 *                             |<- kept ->|.....|<- kept ->|
 *
 *   The cut is made in the text and the whole is tokenised again, so the template and the seam are real text of this model. Items
 *   that do not fit even without their context are skipped and counted, never shortened silently.
 *
 * Everything in such a file is untrusted: strict JSON (json.h), bounded lines, ids checked against the vocabulary. */
#ifndef MOA_TASKS_ITEMS_H
#define MOA_TASKS_ITEMS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "core/base/status.h"
#include "core/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MOA_ITEMS_MAX = 1 << 20, MOA_ITEM_ANSWERS_MAX = 64, MOA_N_IDS_MAX = 1 << 24 };
#define MOA_ITEMS_FILE_MAX ((size_t)512 << 20) /* bytes */
#define MOA_ITEM_LINE_MAX ((size_t)32 << 20)   /* bytes */

typedef enum moa_form {
    MOA_FORM_AUTO,     /* chat where the model has a template we know, else continue */
    MOA_FORM_CHAT,     /* the prompt is the user's turn, the answer the assistant's */
    MOA_FORM_CONTINUE, /* raw text (BOS if the model asks for it), the answer goes on where the prompt ends */
} moa_form;
const char *moa_form_name(moa_form f);                /* "auto", "chat", "continue" */
bool moa_form_parse(const char *text, moa_form *out); /* false: another word */

typedef struct moa_item {
    char *prompt, *context, *question, *source; /* UTF-8, owned; NULL: not given */
    char **answers;                             /* (n_answer), owned; [0] is the supervised one */
    int32_t n_answer;
    int32_t *ids; /* (n_ids), owned; NULL: the item is text */
    int32_t n_ids, supervise_from;
    moa_form form;
    int32_t length; /* tokens it was made for, prompt and answer; 0: not said */
    int32_t line;   /* 1-based, in the file */
} moa_item;
void moa_item_free(moa_item *it);
/* sets a text field to a copy of text[0..n); false without memory */
bool moa_item_set(char **field, const char *text, size_t n);
bool moa_item_add_answer(moa_item *it, const char *text, size_t n);
/* Appends the item as one line with its line break. */
void moa_item_print(const moa_item *it, moa_buf *out);

typedef struct moa_items {
    moa_item *data; /* (n), owned */
    int32_t n;
} moa_items;
/* E_INVALID names the line. At least one item. moa_items_free in any case. */
moa_status moa_items_read(moa_items *out, const char *path, moa_err *err);
/* the same from memory; name: for messages */
moa_status moa_items_parse(moa_items *out, const char *text, size_t n, const char *name, moa_err *err);
/* one line, without its line break; the item is the caller's, freed on failure */
moa_status moa_item_parse(moa_item *out, const char *line, size_t n, moa_err *err);
void moa_items_free(moa_items *items);

/* --- as tokens -------------------------------------------------------------------------------------------------------- */

typedef struct moa_tokens {
    int32_t *ids; /* (n), owned; NULL: skipped */
    int32_t n;
    int32_t supervise_from; /* ids[supervise_from..n) is the answer, >= 1 */
    int32_t n_cut;          /* tokens the item is shorter than it was */
    char why[160];          /* why it is skipped, "" otherwise */
} moa_tokens;
void moa_tokens_free(moa_tokens *t);

typedef struct moa_encode {
    moa_form form; /* for items that do not say theirs */
    int32_t n_max; /* most tokens, prompt and answer; 0: no limit */
    int32_t
        n_room; /* of n_max, tokens to leave free for an answer yet to be generated; the answer given is then left out */
} moa_encode;
/* A skip is not an error: out->ids is NULL and out->why says it. E_INVALID for ids that the model does not have; E_UNSUPPORTED for
 * the chat form where the model has no template we know. moa_tokens_free in any case. */
moa_status moa_item_encode(const moa_model *m, const moa_item *it, const moa_encode *how, moa_tokens *out,
                           moa_err *err);

/* All items for one length. Where the file has items made for exactly n_max tokens those alone are taken, else all; longer ones are
 * cut. At most max_items (0: all) are used. */
typedef struct moa_token_items {
    moa_tokens *data; /* (n), none skipped, owned */
    int32_t *item;    /* (n) index in items, owned */
    int32_t n;
    int32_t n_cut, n_skipped; /* items cut, items skipped */
    int64_t n_tok, n_tok_cut, n_supervised;
    char why[160]; /* of the first that was skipped */
} moa_token_items;
moa_status moa_items_encode(const moa_model *m, const moa_items *items, const moa_encode *how,
                            int32_t max_items, moa_token_items *out, moa_err *err);
void moa_token_items_free(moa_token_items *t);

#ifdef __cplusplus
}
#endif
#endif
