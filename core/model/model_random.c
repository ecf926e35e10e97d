/* Models of known shapes with random weights: what is measured when the weights themselves cannot be had.
 *
 *   shape -> moa_model without data -> an engine asks for each tensor as it loads it -> one buffer at a time
 *
 * An element has a root mean square of about 1/sqrt(n_in), so that a product of a normalised row stays of size 1. Packed types get
 * random codes and one scale that gives this; floats get random sign and mantissa and one exponent: magnitudes in [x, 2x), so that
 * none is zero. A tensor's numbers follow from the seed and its name alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/sha256.h"
#include "core/base/size.h"
#include "core/model/arch.h"
#include "core/model/model.h"
#include "core/model/quant/f16.h"

enum { N_CTX = 1 << 18, NAME_BYTES = 32, LAYER_TENSORS = 12 };

typedef struct random_shape {
    const char *name, *arch;
    int32_t n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab;
    float theta;
    bool tied, bias;
} random_shape;

/* Shapes as published. llama3-70b-layer: one layer of the 70B model and a small vocabulary, so that the layer is what is measured. */
static const random_shape shapes[] = {
    {"llama3-8b", "llama", 32, 32, 8, 128, 4096, 14336, 128256, 500000, false, false},
    {"llama3-70b-layer", "llama", 1, 64, 8, 128, 8192, 28672, 1024, 500000, false, false},
    {"vicuna-7b", "llama", 32, 32, 32, 128, 4096, 11008, 32000, 10000, false, false},
    {"smollm2", "llama", 30, 9, 3, 64, 576, 1536, 49152, 100000, true, false},
    {"qwen2.5-1.5b", "qwen2", 28, 12, 2, 128, 1536, 8960, 151936, 1000000, true, true},
    {"qwen2.5-0.5b", "qwen2", 24, 14, 2, 64, 896, 4864, 151936, 1000000, true, true},
};

static const struct {
    const char *name;
    moa_dtype type;
    bool mixed; /* as llama.cpp mixes them: an output of its own and half of the layers' v and down in Q6_K */
} types[] = {{"q4_0", MOA_Q4_0, false}, {"q4_1", MOA_Q4_1, false}, {"q4_k", MOA_Q4_K, false}, {"q4_k_m", MOA_Q4_K, true},
             {"q8_0", MOA_Q8_0, false}, {"f16", MOA_F16, false},   {"bf16", MOA_BF16, false}};
enum { N_SHAPE = sizeof shapes / sizeof *shapes, N_TYPE = sizeof types / sizeof *types };

const char *moa_model_random_shapes(void) {
    return "llama3-8b, llama3-70b-layer, vicuna-7b, smollm2, qwen2.5-1.5b, qwen2.5-0.5b";
}

/* --- random numbers ---------------------------------------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014): fast, and any seed is a good one */
static inline uint64_t next_u64(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* bytes of random bits with some of them fixed: (r & mask) | set, 8 bytes at a time */
static void fill(void *out, size_t bytes, uint64_t *state, uint64_t mask, uint64_t set) {
    char *to = out;
    size_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        const uint64_t r = (next_u64(state) & mask) | set;
        memcpy(to + at, &r, 8);
    }
    if (at < bytes) {
        const uint64_t r = (next_u64(state) & mask) | set;
        memcpy(to + at, &r, bytes - at);
    }
}

/* a positive normal or subnormal half, to nearest */
static uint16_t half_of(double x) {
    int e;
    const double f = frexp(x, &e); /* x = f 2^e, f in [1/2, 1) */
    if (e < -13) return (uint16_t)lrint(ldexp(x, 24));
    return (uint16_t)(((uint32_t)(e + 14) << 10) + ((uint32_t)lrint(ldexp(f, 11)) - 1024));
}

static void put_half(unsigned char *at, double x) {
    const uint16_t h = half_of(x);
    at[0] = (unsigned char)(h & 255);
    at[1] = (unsigned char)(h >> 8);
}

/* --- one tensor ---------------------------------------------------------------------------------------------------------------- */

/* Root mean squares of what the random codes decode to, for a scale of 1:
 *   q4_0   q - 8, q in 0..15                   sqrt(21.5)
 *   q4_1   q - 7.5 (minimum -7.5 d)            sqrt(21.25)
 *   q8_0   -128..127                           sqrt(5461.5)
 *   q4_k   s q - 7.5 m, s and m in 0..63       sqrt(E s^2 E q^2 - (E s E q)^2 + 7.5^2 var m) = 258.1   (dmin = 7.5 d)
 *   q6_k   s (q - 32), s in -128..127, q in 0..63    sqrt(5461.5 * 341.5); the scale comes last in its block
 * The first and the third have a mean of -1/2: their scale takes either sign, as it does in files, or all rows would share it. */
static void scale_blocks(unsigned char *out, const moa_weight *w, double size) {
    const size_t block_bytes = moa_dtype_find((uint32_t)w->type)->block_bytes;
    const bool minimum = w->type == MOA_Q4_1 || w->type == MOA_Q4_K;
    const double unit = w->type == MOA_Q4_0   ? sqrt(21.5)
                        : w->type == MOA_Q8_0 ? sqrt(5461.5)
                        : w->type == MOA_Q4_1 ? sqrt(21.25)
                        : w->type == MOA_Q6_K ? sqrt(5461.5 * 341.5)
                                              : 258.1;
    unsigned char halves[4]; /* scale and minimum, the same in all blocks but for signs */
    put_half(halves, size / unit);
    put_half(halves + 2, 7.5 * size / unit);
    if (w->type == MOA_Q4_1) halves[3] |= 0x80; /* negative */
    for (size_t at = 0; at < w->bytes; at += block_bytes) {
        if (w->type == MOA_Q6_K) {
            memcpy(out + at + block_bytes - 2, halves, 2);
            continue;
        }
        memcpy(out + at, halves, minimum ? 4 : 2);
        if (!minimum) out[at + 1] |= (unsigned char)(out[at + 2] & 1) << 7;
    }
}

/* float16 or bfloat16: sign and mantissa are random, [1, 2) times a power of two has a root mean square of 1.5275 */
static void make_floats(unsigned char *out, const moa_weight *w, double size, uint64_t *state) {
    const int exponent = (int)lrint(log2(size / 1.5275));
    const bool half = w->type == MOA_F16;
    const uint64_t set = half ? (uint64_t)(exponent + 15) << 10 : (uint64_t)(exponent + 127) << 7;
    const uint64_t mask = half ? 0x83ff : 0x807f, each = 0x0001000100010001u;
    fill(out, w->bytes, state, mask * each, set * each);
}

/* norms near 1, biases near 0: float32 */
static void make_vector(float *out, const moa_weight *w, uint64_t *state) {
    const bool bias = strstr(w->name, ".bias") != NULL;
    for (int32_t i = 0; i < w->n_in; i++) {
        const float x = (float)((double)(next_u64(state) >> 11) * 0x1p-53) + 0x1p-20f; /* 0 < x */
        out[i] = bias ? (i % 2 ? .1f : -.1f) * x : 0.9f + 0.2f * x;
    }
}

static void make(const moa_model *m, const moa_weight *w, void *out) {
    const double size = 1 / sqrt((double)w->n_in);
    uint64_t state = m->make_seed;
    for (const char *c = w->name; *c; c++)
        state = (state ^ (unsigned char)*c) * 0x100000001b3u; /* FNV-1a's step */
    if (w->type == MOA_F32) {
        make_vector(out, w, &state);
    } else if (w->type == MOA_F16 || w->type == MOA_BF16) {
        make_floats(out, w, size, &state);
    } else {
        fill(out, w->bytes, &state, UINT64_MAX, 0);
        scale_blocks(out, w, size);
    }
}

/* --- the model ------------------------------------------------------------------------------------------------------------------ */

typedef struct building {
    moa_model *m;
    char *names; /* what is left of the store */
    moa_dtype type;
    bool mixed;
    moa_err *err;
} building;

/* mixed: the first and last eighth of the layers, and every third between */
static bool finer(const building *b, const char *name) {
    const int n = b->m->shape.n_layer;
    int layer = -1;
    if (!b->mixed) return false;
    if (sscanf(name, "blk.%d.", &layer) != 1) return strcmp(name, "output.weight") == 0;
    return (strstr(name, ".attn_v.") || strstr(name, ".ffn_down.")) &&
           (layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2);
}

static moa_status add(building *b, moa_weight *w, const char *name, int32_t n_out, int32_t n_in) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)(n_out == 1 ? MOA_F32 : finer(b, name) ? MOA_Q6_K : b->type));
    size_t blocks, bytes;
    if ((uint32_t)n_in % info->block_len != 0)
        return moa_fail(b->err, MOA_E_UNSUPPORTED, "%s: rows of %d do not divide into %s blocks of %u", name,
                        n_in, info->name, info->block_len);
    if (!moa_size_mul((size_t)n_out, (size_t)n_in / info->block_len, &blocks) ||
        !moa_size_mul(blocks, info->block_bytes, &bytes))
        return moa_fail(b->err, MOA_E_MEMORY, "%s: %dx%d is more than can be counted", name, n_out, n_in);
    (void)snprintf(b->names, NAME_BYTES, "%s", name);
    *w = (moa_weight){.name = b->names, .type = info->id, .n_out = n_out, .n_in = n_in, .bytes = bytes};
    b->names += NAME_BYTES;
    b->m->weight_bytes += bytes;
    b->m->n_param += (uint64_t)n_out * (uint64_t)n_in;
    return MOA_OK;
}

static moa_status add_layer(building *b, int32_t layer, bool bias) {
    const moa_shape *s = &b->m->shape;
    moa_layer *y = &b->m->layers[layer];
    const int32_t n_q = s->n_head * s->d_head, n_kv = s->n_head_kv * s->d_head;
    const struct {
        moa_weight *w;
        const char *name;
        int32_t n_out, n_in;
    } parts[LAYER_TENSORS] = {{&y->attn_norm, "attn_norm.weight", 1, s->d_model},
                              {&y->wq, "attn_q.weight", n_q, s->d_model},
                              {&y->wk, "attn_k.weight", n_kv, s->d_model},
                              {&y->wv, "attn_v.weight", n_kv, s->d_model},
                              {&y->wo, "attn_output.weight", s->d_model, n_q},
                              {&y->ffn_norm, "ffn_norm.weight", 1, s->d_model},
                              {&y->gate, "ffn_gate.weight", s->d_ff, s->d_model},
                              {&y->up, "ffn_up.weight", s->d_ff, s->d_model},
                              {&y->down, "ffn_down.weight", s->d_model, s->d_ff},
                              {&y->bq, "attn_q.bias", 1, n_q},
                              {&y->bk, "attn_k.bias", 1, n_kv},
                              {&y->bv, "attn_v.bias", 1, n_kv}};
    for (int i = 0; i < (bias ? LAYER_TENSORS : LAYER_TENSORS - 3); i++) {
        char name[NAME_BYTES];
        (void)snprintf(name, sizeof name, "blk.%d.%s", layer, parts[i].name);
        const moa_status status = add(b, parts[i].w, name, parts[i].n_out, parts[i].n_in);
        if (status != MOA_OK) return status;
    }
    return MOA_OK;
}

static moa_status add_weights(building *b, const random_shape *r) {
    moa_model *m = b->m;
    moa_status s = MOA_OK;
    MOA_TRY(add(b, &m->embed, "token_embd.weight", r->n_vocab, r->d_model));
    for (int32_t l = 0; l < r->n_layer; l++)
        MOA_TRY(add_layer(b, l, r->bias));
    MOA_TRY(add(b, &m->out_norm, "output_norm.weight", 1, r->d_model));
    m->tied = r->tied && !b->mixed;
    if (m->tied)
        m->output = m->embed;
    else
        MOA_TRY(add(b, &m->output, "output.weight", r->n_vocab, r->d_model));
out:
    return s;
}

static moa_status describe(moa_model *m, const random_shape *r, const char *type, moa_err *err) {
    char text[128];
    moa_sha256 hash;
    (void)snprintf(text, sizeof text, "random:%s:%s", r->name, type);
    m->path = strdup(text);
    m->name = strdup(text);
    m->arch = strdup(r->arch);
    m->quant = strdup(type);
    m->layers = calloc((size_t)r->n_layer, sizeof *m->layers);
    m->store = calloc((size_t)r->n_layer * LAYER_TENSORS + 3, NAME_BYTES);
    if (!m->path || !m->name || !m->arch || !m->quant || !m->layers || !m->store)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the tables of %d layers", r->n_layer);
    moa_sha256_init(&hash);
    moa_sha256_add(&hash, text, strlen(text));
    moa_sha256_hex(&hash, m->fingerprint);
    return MOA_OK;
}

moa_status moa_model_random(moa_model **out, const char *shape, const char *type, uint64_t seed,
                            moa_err *err) {
    const random_shape *r = NULL;
    moa_status s = MOA_OK;
    building b = {.err = err};
    bool known = false;
    *out = NULL;
    for (int i = 0; i < N_SHAPE; i++)
        if (strcmp(shapes[i].name, shape) == 0) r = &shapes[i];
    if (!r)
        return moa_fail(err, MOA_E_USAGE, "shape %s is not known; known are %s", shape,
                        moa_model_random_shapes());
    for (int i = 0; i < N_TYPE && !known; i++)
        if (strcmp(types[i].name, type) == 0) {
            b.type = types[i].type;
            b.mixed = types[i].mixed;
            known = true;
        }
    if (!known)
        return moa_fail(err, MOA_E_USAGE, "type %s: known are q4_0, q4_1, q4_k, q4_k_m, q8_0, bf16 and f16", type);
    moa_model *m = calloc(1, sizeof *m);
    if (!m) return moa_fail(err, MOA_E_MEMORY, "no memory for a model");
    m->shape = (moa_shape){.n_layer = r->n_layer,
                           .n_head = r->n_head,
                           .n_head_kv = r->n_head_kv,
                           .d_head = r->d_head,
                           .d_model = r->d_model,
                           .d_ff = r->d_ff,
                           .n_vocab = r->n_vocab,
                           .n_ctx = N_CTX,
                           .rope_dim = r->d_head,
                           .rope_kind = r->bias ? MOA_ROPE_HALVES : MOA_ROPE_PAIRS,
                           .rope_theta = r->theta,
                           .rope_scale = 1,
                           .rms_eps = 1e-5f};
    m->make = make;
    m->make_seed = seed;
    MOA_TRY(describe(m, r, type, err));
    b.m = m;
    b.names = m->store;
    MOA_TRY(add_weights(&b, r));
    *out = m;
    return MOA_OK;
out:
    moa_model_close(&m);
    return s;
}
