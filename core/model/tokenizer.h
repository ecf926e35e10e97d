/* tokenizer.h -- text to token ids and back: byte-level BPE as GGUF files describe it.
 *
 * Every byte string has a tokenisation, with the ids that Hugging Face tokenizers gives. decode(encode(x)) is x, but for
 * what the model's own tokenizer loses: invalid UTF-8 becomes U+FFFD, qwen2 normalises to NFC, and bytes that the
 * vocabulary has no token for disappear (moa_tokenizer_has_byte; SmolLM2 lacks eight control and never-valid ones).
 * User text never yields control ids unless MOA_TOK_SPECIAL is given. */
#ifndef MOA_MODEL_TOKENIZER_H
#define MOA_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moa_tokenizer moa_tokenizer; /* immutable after opening: any thread may use it */

/* One vocabulary entry as the file gives it: bytes of the (byte-level encoded) token text, borrowed during open */
typedef struct moa_tok_entry {
    const char *text;
    uint32_t bytes;
    uint8_t type; /* GGUF: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte */
} moa_tok_entry;

typedef struct moa_tok_config {
    const char *model; /* tokenizer.ggml.model: "gpt2" is supported */
    const char *pre;   /* tokenizer.ggml.pre: smollm, qwen2, llama-bpe (llama3 ...), gpt-2, default */
    const moa_tok_entry *entries;
    size_t n_vocab;
    const moa_tok_entry *merges; /* "left right", in rank order; type unused */
    size_t n_merges;
    int32_t bos, eos, eot, unk, pad; /* -1: none */
    bool add_bos;
} moa_tok_config;

moa_status moa_tokenizer_open(moa_tokenizer **out, const moa_tok_config *config,
                              moa_err *err); /* copies config */
void moa_tokenizer_close(moa_tokenizer **t);

enum {
    MOA_TOK_SPECIAL =
        1, /* text of control tokens in the input becomes their ids (of user-defined ones it always does) */
    MOA_TOK_BOS = 2, /* put BOS in front if the model asks for it (add_bos) */
};

/* Encodes n bytes of any content (invalid UTF-8 is first replaced by U+FFFD). *ids is malloc'ed, the caller's; *n_ids may be 0. */
moa_status moa_tokenizer_encode(const moa_tokenizer *t, const char *text, size_t n, int flags, int32_t **ids,
                                size_t *n_ids, moa_err *err);

/* Raw bytes of a token (a token may be part of a UTF-8 character; control tokens give their marker text).
 * Borrowed from the tokenizer; "" with *n = 0 for ids out of range. */
const char *moa_tokenizer_piece(const moa_tokenizer *t, int32_t id, size_t *n);

size_t moa_tokenizer_n_vocab(const moa_tokenizer *t);
bool moa_tokenizer_is_control(const moa_tokenizer *t, int32_t id);
bool moa_tokenizer_is_end(const moa_tokenizer *t,
                          int32_t id);             /* EOS, EOT and their kin: generation stops here */
int32_t moa_tokenizer_bos(const moa_tokenizer *t); /* -1: none */
int32_t moa_tokenizer_eos(const moa_tokenizer *t); /* -1: none */
int32_t moa_tokenizer_find(const moa_tokenizer *t, const char *text,
                           size_t n); /* exact token text, -1: none */
const char *moa_tokenizer_pre(const moa_tokenizer *t);
bool moa_tokenizer_has_byte(const moa_tokenizer *t,
                            unsigned char byte); /* false: that byte is left out of the ids */

#ifdef __cplusplus
}
#endif
#endif
