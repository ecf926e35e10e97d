/* model.h -- a language model as read from a file: shapes, weights still packed as stored, tokenizer.
 *
 *   x = embed[id]                                                     (n_tok, d_model)
 *   for each layer:  x += Wo attn(rope(Wq n), rope(Wk n), Wv n)       n = rmsnorm(x, attn_norm)
 *                    x += Wdown (silu(Wgate m) * (Wup m))             m = rmsnorm(x, ffn_norm)
 *   logits = Wout rmsnorm(x, out_norm)                                (n_tok, n_vocab)
 *
 * A family (core/model/arch/NAME.c) says how its file spells the hyper-parameters and tensors. */
#ifndef MOA_MODEL_MODEL_H
#define MOA_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/model/dtype.h"
#include "core/model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum moa_rope_kind {
    MOA_ROPE_PAIRS,  /* rotates (x[2i], x[2i+1]): llama files */
    MOA_ROPE_HALVES, /* rotates (x[i], x[i + rope_dim/2]): qwen2 files ("NEOX") */
} moa_rope_kind;

typedef struct moa_shape {
    int32_t n_layer, n_head, n_head_kv; /* n_head a multiple of n_head_kv */
    int32_t d_head;                     /* elements of one head's q, k, v */
    int32_t d_model, d_ff, n_vocab;
    int32_t n_ctx;    /* tokens the model was trained for */
    int32_t rope_dim; /* elements of a head that rotate, even, <= d_head */
    moa_rope_kind rope_kind;
    float rope_theta;
    float rope_scale; /* positions are multiplied by this (linear scaling); 1 = none */
    float rms_eps;
} moa_shape;

/* A matrix or vector as stored: n_out rows of n_in elements, rows packed one after the other. Vectors are always F32.
 * data is borrowed from the model, 64-byte aligned. NULL: the bytes are still in the file and read() fetches them, or the model has
 * no such tensor (a bias, say): name is NULL too. */
typedef struct moa_weight {
    const char *name; /* "blk.3.attn_q.weight" */
    moa_dtype type;
    int32_t n_out, n_in; /* a vector: n_out = 1 */
    const void *data;
    size_t bytes;
    /* n of its bytes, from `at` on, to out; any thread may call it as long as the model is open. NULL: they are at data */
    moa_status (*read)(const struct moa_weight *w, size_t at, size_t n, void *out, moa_err *err);
    const struct moa_gguf *file; /* of read(): where, */
    size_t tensor;               /* and the how many-th there */
} moa_weight;

typedef struct moa_layer {
    moa_weight attn_norm;     /* (d_model) */
    moa_weight wq, wk, wv;    /* (n_head*d_head, d_model), (n_head_kv*d_head, d_model) twice */
    moa_weight bq, bk, bv;    /* vectors, or absent */
    moa_weight wo;            /* (d_model, n_head*d_head) */
    moa_weight ffn_norm;      /* (d_model) */
    moa_weight gate, up;      /* (d_ff, d_model) */
    moa_weight down;          /* (d_model, d_ff) */
} moa_layer;

typedef struct moa_model {
    char *path;        /* owned, as given */
    char *name;        /* general.name, or the file's stem; owned; untrusted text */
    char *arch;        /* "llama", "qwen2"; owned */
    char *quant;       /* most used weight type by bytes, "Q4_1"; owned */
    char fingerprint[65]; /* SHA-256 of the file's header (metadata and tensor table), hex */
    uint64_t weight_bytes; /* bytes of all tensors as stored */
    uint64_t n_param;
    moa_shape shape;
    moa_weight embed;      /* (n_vocab, d_model) */
    moa_weight rope_freqs; /* (rope_dim/2) float factors that divide the frequencies, or absent */
    moa_layer *layers;     /* n_layer, owned */
    moa_weight out_norm;   /* (d_model) */
    moa_weight output;     /* (n_vocab, d_model); the same data as embed when tied */
    bool tied;
    char *chat_template;   /* Jinja text of the file or NULL; owned; untrusted */
    moa_tokenizer *tokenizer; /* owned */
    void *store;           /* owned: the memory the weights lie in */
    struct moa_gguf *file; /* owned: the open file of weights that are still in it, or NULL */
    /* weights that are made when they are loaded instead of read (their data is NULL): writes w->bytes to out. NULL: a file's */
    void (*make)(const struct moa_model *m, const moa_weight *w, void *out);
    uint64_t make_seed;
} moa_model;

/* Called during long loading; return false to cancel. done and total in bytes. */
typedef bool (*moa_progress_fn)(void *user, uint64_t done, uint64_t total);

/* Opens a GGUF file (v2/v3). Refuses what is not supported and says what: the architecture, the tensor, the type.
 * header_only: everything but the weights' data (weights have name, type, shape; data NULL, bytes set). */
moa_status moa_model_open(moa_model **out, const char *path, bool header_only, moa_progress_fn progress, void *user,
                          moa_err *err);
/* Opens a file and leaves the weights in it (data NULL, read set): for a device with memory of its own, which takes them straight from
 * the file as an engine loads them. The file must not change until then. */
moa_status moa_model_open_lazy(moa_model **out, const char *path, moa_err *err);
/* Brings weights that are still in the file to memory, for devices that work on them there. Nothing to do: MOA_OK. After an error the
 * model can only be closed. No engine may use the model yet. */
moa_status moa_model_read(moa_model *model, moa_progress_fn progress, void *user, moa_err *err);
/* moa_model_open from a whole file in memory (tests, fuzzing); bytes may go when it returns. */
moa_status moa_model_open_memory(moa_model **out, const void *bytes, size_t n, bool header_only, moa_err *err);
/* For measuring: a model of a known shape ("llama3-8b", moa_model_random_shapes() lists them) with random weights of one type
 * ("q4_0", "q4_k", "q4_k_m", "q8_0", "q4_1", "bf16", "f16"), made tensor by tensor while an engine loads them, never zero, scaled so that activations
 * stay of size 1. No tokenizer. E_USAGE: no such shape or type; E_UNSUPPORTED: rows that do not divide into the type's blocks. */
moa_status moa_model_random(moa_model **out, const char *shape, const char *type, uint64_t seed, moa_err *err);
const char *moa_model_random_shapes(void); /* "llama3-8b, vicuna-7b, ..." */

void moa_model_close(moa_model **model); /* accepts NULL and half-built; nulls the pointer */

/* Calls fn with every model file in the usual folders, in the order they are searched, until it returns false. */
typedef bool (*moa_model_file_fn)(void *user, const char *path);
void moa_model_each_file(moa_model_file_fn fn, void *user);

/* MODEL of the command line -> path: a file, or a name in the usual folders (./models, the program's cache, ~/models, ...) */
moa_status moa_model_find(const char *name_or_path, char *out, size_t out_bytes, moa_err *err);

#ifdef __cplusplus
}
#endif
#endif
