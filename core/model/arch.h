/* arch.h -- what a model family must say about its files. One family = one file core/model/arch/NAME.c that defines
 * `const moa_arch moa_arch_NAME`; the build collects them (gen/arch_list.h), model.c does the rest.
 *
 * A family is a list of tensors: the name in the file, the field of moa_model or moa_layer it fills, its shape in the
 * model's own terms. What a file has beyond the list is refused: a weight left out silently would change the mathematics. */
#ifndef MOA_MODEL_ARCH_H
#define MOA_MODEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>

#include "core/model/model.h"

/* symbol, its value, how messages call it */
#define MOA_DIM_MAP(X)                                                                                       \
    X(ONE, 1, "1")                                                                                           \
    X(MODEL, shape->d_model, "d_model")                                                                      \
    X(FF, shape->d_ff, "d_ff")                                                                               \
    X(HEADS, shape->n_head * shape->d_head, "n_head*d_head")                                                 \
    X(KV, shape->n_head_kv * shape->d_head, "n_head_kv*d_head")                                              \
    X(VOCAB, shape->n_vocab, "n_vocab")                                                                      \
    X(ROPE_HALF, shape->rope_dim / 2, "rope_dim/2")

typedef enum moa_dim {
#define X(name, value, text) MOA_DIM_##name,
    MOA_DIM_MAP(X)
#undef X
} moa_dim;

typedef struct moa_arch_tensor {
    const char *name;    /* in the file; of a layer's tensors what follows "blk.N." */
    size_t field;        /* offsetof(moa_model, x) or offsetof(moa_layer, x), a moa_weight */
    moa_dim n_out, n_in; /* a vector: n_out is ONE, and its type must be F32 */
    bool optional;       /* may be missing: the weight's data and name are then NULL */
} moa_arch_tensor;

typedef struct moa_arch {
    const char *name; /* general.architecture, and the prefix of its metadata keys */
    moa_rope_kind rope_kind;
    const moa_arch_tensor *model, *layer; /* both end with name NULL */
} moa_arch;

/* what a pre-norm decoder with grouped queries and a gated SiLU has; output is optional: without it the model is tied */
#define MOA_ARCH_MODEL_TENSORS                                                                               \
    {"token_embd.weight", offsetof(moa_model, embed), MOA_DIM_VOCAB, MOA_DIM_MODEL, false},                  \
        {"output_norm.weight", offsetof(moa_model, out_norm), MOA_DIM_ONE, MOA_DIM_MODEL, false},            \
        {"output.weight", offsetof(moa_model, output), MOA_DIM_VOCAB, MOA_DIM_MODEL, true}, {                \
        "rope_freqs.weight", offsetof(moa_model, rope_freqs), MOA_DIM_ONE, MOA_DIM_ROPE_HALF, true           \
    }

#define MOA_ARCH_LAYER_TENSORS                                                                               \
    {"attn_norm.weight", offsetof(moa_layer, attn_norm), MOA_DIM_ONE, MOA_DIM_MODEL, false},                 \
        {"attn_q.weight", offsetof(moa_layer, wq), MOA_DIM_HEADS, MOA_DIM_MODEL, false},                     \
        {"attn_k.weight", offsetof(moa_layer, wk), MOA_DIM_KV, MOA_DIM_MODEL, false},                        \
        {"attn_v.weight", offsetof(moa_layer, wv), MOA_DIM_KV, MOA_DIM_MODEL, false},                        \
        {"attn_output.weight", offsetof(moa_layer, wo), MOA_DIM_MODEL, MOA_DIM_HEADS, false},                \
        {"ffn_norm.weight", offsetof(moa_layer, ffn_norm), MOA_DIM_ONE, MOA_DIM_MODEL, false},               \
        {"ffn_gate.weight", offsetof(moa_layer, gate), MOA_DIM_FF, MOA_DIM_MODEL, false},                    \
        {"ffn_up.weight", offsetof(moa_layer, up), MOA_DIM_FF, MOA_DIM_MODEL, false}, {                      \
        "ffn_down.weight", offsetof(moa_layer, down), MOA_DIM_MODEL, MOA_DIM_FF, false                       \
    }

#define MOA_ARCH_QKV_BIAS(optional)                                                                          \
    {"attn_q.bias", offsetof(moa_layer, bq), MOA_DIM_ONE, MOA_DIM_HEADS, optional},                          \
        {"attn_k.bias", offsetof(moa_layer, bk), MOA_DIM_ONE, MOA_DIM_KV, optional}, {                       \
        "attn_v.bias", offsetof(moa_layer, bv), MOA_DIM_ONE, MOA_DIM_KV, optional                            \
    }

#endif
