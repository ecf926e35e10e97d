/* tokenizer_gguf.h -- for tests: a tokenizer and the chat template straight from a GGUF file's metadata, no weights. */
#ifndef MOA_TESTS_TOKENIZER_GGUF_H
#define MOA_TESTS_TOKENIZER_GGUF_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/model/gguf.h"
#include "core/model/model.h"
#include "core/model/tokenizer.h"

/* the model file of the cache, or NULL with a sentence saying what is not tested */
static inline const char *model_in_cache(const char *file, char out[512]) {
    const char *home = getenv("HOME"), *cache = getenv("XDG_CACHE_HOME");
    (void)snprintf(out, 512, "%s%s/moascope/models/%s",
                   cache && *cache ? cache
                   : home          ? home
                                   : "",
                   cache && *cache ? "" : "/.cache", file);
    if (access(out, R_OK) == 0) return out;
    (void)fprintf(stderr, "skipped: no %s (scripts/fetch_model.py fetches it)\n", out);
    return NULL;
}

static inline int32_t gguf_id(const moa_gguf *g, const char *key) {
    int64_t id = -1;
    if (moa_gguf_has(g, key)) (void)moa_gguf_get_int(g, key, -1, 1 << 21, &id, NULL);
    return (int32_t)id;
}

/* a token whose text is another in this test than in the file */
typedef struct renamed {
    int32_t id;
    const char *text;
} renamed;

/* changes to what the file says; zero: none */
typedef struct changes {
    const char *pre;
    const renamed *rename;
    size_t n_rename;
    const int32_t *bos, *eos;
} changes;

/* template: malloc'ed text, or NULL when not asked for */
static inline moa_status tokenizer_from_gguf(moa_tokenizer **out, const char *path, const changes *change,
                                             char **template, moa_err *err) {
    const char *pre = change ? change->pre : NULL;
    moa_status s = MOA_OK;
    moa_gguf *g = NULL;
    moa_str *tokens = NULL, *merges = NULL, name = {0}, model = {0}, jinja = {0};
    int32_t *types = NULL;
    moa_tok_entry *entries = NULL, *pairs = NULL;
    size_t n = 0, n_types = 0, n_merges = 0;
    char pre_name[65] = "", model_name[65] = "";
    MOA_TRY(moa_gguf_open(&g, path, err));
    MOA_TRY(moa_gguf_get_strings(g, "tokenizer.ggml.tokens", &tokens, &n, err));
    MOA_TRY(moa_gguf_get_i32s(g, "tokenizer.ggml.token_type", &types, &n_types, err));
    MOA_TRY(moa_gguf_get_strings(g, "tokenizer.ggml.merges", &merges, &n_merges, err));
    MOA_TRY(moa_gguf_get_str(g, "tokenizer.ggml.pre", 64, &name, err));
    MOA_TRY(moa_gguf_get_str(g, "tokenizer.ggml.model", 64, &model, err));
    memcpy(pre_name, name.data, name.size);
    memcpy(model_name, model.data, model.size);
    if (template) {
        MOA_TRY(moa_gguf_get_str(g, "tokenizer.chat_template", 1 << 20, &jinja, err));
        *template = calloc(1, jinja.size + 1);
        memcpy(*template, jinja.data, jinja.size);
    }
    entries = calloc(n, sizeof *entries);
    pairs = calloc(n_merges, sizeof *pairs);
    for (size_t i = 0; i < n; i++)
        entries[i] =
            (moa_tok_entry){tokens[i].data, (uint32_t)tokens[i].size, (uint8_t)(i < n_types ? types[i] : 1)};
    for (size_t i = 0; i < n_merges; i++)
        pairs[i] = (moa_tok_entry){merges[i].data, (uint32_t)merges[i].size, 0};
    for (size_t i = 0; change && i < change->n_rename; i++) {
        entries[change->rename[i].id].text = change->rename[i].text;
        entries[change->rename[i].id].bytes = (uint32_t)strlen(change->rename[i].text);
    }
    bool add_bos = false;
    if (moa_gguf_has(g, "tokenizer.ggml.add_bos_token"))
        MOA_TRY(moa_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add_bos, err));
    const moa_tok_config config = {
        .model = model_name,
        .pre = pre ? pre : pre_name,
        .entries = entries,
        .n_vocab = n,
        .merges = pairs,
        .n_merges = n_merges,
        .bos = change && change->bos ? *change->bos : gguf_id(g, "tokenizer.ggml.bos_token_id"),
        .eos = change && change->eos ? *change->eos : gguf_id(g, "tokenizer.ggml.eos_token_id"),
        .eot = gguf_id(g, "tokenizer.ggml.eot_token_id"),
        .unk = gguf_id(g, "tokenizer.ggml.unknown_token_id"),
        .pad = gguf_id(g, "tokenizer.ggml.padding_token_id"),
        .add_bos = add_bos,
    };
    s = moa_tokenizer_open(out, &config, err);
out:
    free(tokens), free(merges), free(types), free(entries), free(pairs);
    moa_gguf_close(&g);
    return s;
}

#endif
