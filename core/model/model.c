/* Opening a model: from a judged GGUF file (gguf.c) and a family's list of tensors (arch/NAME.c) to shapes,
 * weights and tokenizer.
 *
 *   metadata -> shape            each value in its range, then against the others
 *   metadata -> nothing left     a key of the family that is not known is refused: it may change the
 * mathematics tensors  -> weights          each in its place with its shape and type; a tensor without a
 * place is refused data     -> one allocation   64-byte aligned weights in file order, read in pieces so that
 * it can be cancelled; or nothing: the engine of a GPU reads them where they are
 *
 * The weights' memory is asked for only after the header's sizes were found to lie inside the file. */
#include "core/model/model.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch_list.h"
#include "core/base/buf.h"
#include "core/base/sha256.h"
#include "core/base/size.h"
#include "core/base/text.h"
#include "core/model/arch.h"
#include "core/model/gguf.h"

enum {
    MAX_LAYER = 1024,
    MAX_HEAD = 1024,
    MAX_D_HEAD = 1024,
    MAX_D_MODEL = 1 << 17,
    MAX_D_FF = 1 << 20,
    MAX_VOCAB = 1 << 21,
    MAX_CTX = 1 << 24,
    MAX_TOKEN_BYTES = 64 << 10,
    MAX_NAME_BYTES = 4096,
    MAX_TEMPLATE_BYTES = 1 << 20,
    WEIGHT_ALIGN = 64,
    HUGE_PAGE = 2 << 20,
};

#define X(stem) extern const moa_arch moa_arch_##stem;
MOA_ARCH_LIST(X)
#undef X

#define X(stem) &moa_arch_##stem,
static const moa_arch *const archs[] = {MOA_ARCH_LIST(X)};
#undef X

/* what is known while a model is being opened */
typedef struct opening {
    moa_model *m;
    const moa_gguf *g;
    const moa_arch *arch;
    bool header_only, lazy; /* lazy: the weights stay where they are, in m->file */
    struct {
        bool placed;             /* some weight is this tensor */
        size_t data_at, name_at; /* in the store */
    } * tensors;                 /* one per tensor of the file */
    size_t store_bytes;
    moa_progress_fn progress;
    void *user;
    moa_err *err;
} opening;

/* --- metadata
 * ---------------------------------------------------------------------------------------------------------
 */

/* "llama.attention.head_count" from "attention.head_count" */
static const char *family_key(const opening *o, const char *suffix, char out[128]) {
    (void)snprintf(out, 128, "%s.%s", o->arch->name, suffix);
    return out;
}

/* an integer of the family; fallback < 0: it must be there */
static moa_status get_count(const opening *o, const char *suffix, int32_t low, int32_t high, int32_t fallback,
                            int32_t *out) {
    char key[128];
    int64_t value = fallback;
    (void)family_key(o, suffix, key);
    if (fallback < 0 || moa_gguf_has(o->g, key)) {
        const moa_status s = moa_gguf_get_int(o->g, key, low, high, &value, o->err);
        if (s != MOA_OK) return s;
    }
    *out = (int32_t)value;
    return MOA_OK;
}

/* fallback NaN: it must be there */
static moa_status get_real(const opening *o, const char *suffix, double low, double high, double fallback,
                           float *out) {
    char key[128];
    double value = fallback;
    (void)family_key(o, suffix, key);
    if (isnan(fallback) || moa_gguf_has(o->g, key)) {
        const moa_status s = moa_gguf_get_float(o->g, key, low, high, &value, o->err);
        if (s != MOA_OK) return s;
    }
    *out = (float)value;
    return MOA_OK;
}

static moa_status choose_arch(opening *o) {
    moa_str name = {0};
    char known[256] = "";
    const moa_status s = moa_gguf_get_str(o->g, "general.architecture", 64, &name, o->err);
    if (s != MOA_OK) return s;
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        if (strlen(archs[i]->name) == name.size && memcmp(archs[i]->name, name.data, name.size) == 0) {
            o->arch = archs[i];
            return MOA_OK;
        }
        (void)snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                       archs[i]->name);
    }
    return moa_fail(o->err, MOA_E_UNSUPPORTED, "architecture %.*s is not supported; known are %s",
                    (int)name.size, name.data, known);
}

/* is this an ordinary, whole model file? */
static moa_status check_general(const opening *o) {
    moa_str type = {0};
    int64_t n = 0;
    moa_status s = MOA_OK;
    if (moa_gguf_has(o->g, "general.type")) {
        MOA_TRY(moa_gguf_get_str(o->g, "general.type", 64, &type, o->err));
        if (type.size != 5 || memcmp(type.data, "model", 5) != 0)
            return moa_fail(o->err, MOA_E_UNSUPPORTED, "general.type is %.*s, expected model", (int)type.size,
                            type.data);
    }
    if (moa_gguf_has(o->g, "split.count")) {
        MOA_TRY(moa_gguf_get_int(o->g, "split.count", 0, 65535, &n, o->err));
        if (n > 1)
            return moa_fail(o->err, MOA_E_UNSUPPORTED,
                            "the model is split into %lld files; join them first (llama-gguf-split --merge)",
                            (long long)n);
    }
    if (moa_gguf_has(o->g, "general.quantization_version")) {
        MOA_TRY(moa_gguf_get_int(o->g, "general.quantization_version", 0, INT64_MAX, &n, o->err));
        if (n != 2)
            return moa_fail(o->err, MOA_E_UNSUPPORTED,
                            "general.quantization_version is %lld; only 2 is supported", (long long)n);
    }
out:
    return s;
}

/* Keys of a family: read into the shape, without influence here, or harmless with one value only. All others
 * are refused. */
typedef enum key_rule { KEY_READ, KEY_IGNORED, KEY_INT, KEY_FLOAT, KEY_BOOL, KEY_REFUSED } key_rule;
static const struct {
    const char *suffix;
    key_rule rule;
    double value; /* the one that changes nothing */
    const char *reason;
} key_rows[] = {
    {"block_count", KEY_READ},
    {"context_length", KEY_READ},
    {"embedding_length", KEY_READ},
    {"feed_forward_length", KEY_READ},
    {"vocab_size", KEY_READ},
    {"attention.head_count", KEY_READ},
    {"attention.head_count_kv", KEY_READ},
    {"attention.key_length", KEY_READ},
    {"attention.value_length", KEY_READ},
    {"attention.layer_norm_rms_epsilon", KEY_READ},
    {"rope.dimension_count", KEY_READ},
    {"rope.freq_base", KEY_READ},
    {"rope.scaling.type", KEY_READ},
    {"rope.scaling.factor", KEY_READ},
    {"rope.scale_linear", KEY_READ},
    {"rope.scaling.original_context_length", KEY_IGNORED},
    {"rope.scaling.finetuned", KEY_IGNORED},
    {"tensor_data_layout", KEY_IGNORED},
    {"attention.sliding_window", KEY_INT, 0, "trained sliding windows are not supported yet"},
    {"attention.sliding_window_pattern", KEY_REFUSED, 0, "trained sliding windows are not supported yet"},
    {"expert_count", KEY_INT, 0, "mixtures of experts are not supported"},
    {"expert_used_count", KEY_INT, 0, "mixtures of experts are not supported"},
    {"pooling_type", KEY_INT, 0, "embedding models are not supported"},
    {"attention.causal", KEY_BOOL, 1, "only causal attention is supported"},
    {"use_parallel_residual", KEY_BOOL, 0, "parallel residuals are not supported"},
    {"rope.scaling.attn_factor", KEY_FLOAT, 1, "scaled attention is not supported"},
    {"attention.scale", KEY_FLOAT, 0, "another attention scale than 1/sqrt(d_head) is not supported"},
    {"attention.clamp_kqv", KEY_FLOAT, 0, "clamped q, k and v are not supported"},
    {"attention.max_alibi_bias", KEY_FLOAT, 0, "ALiBi is not supported"},
    {"attn_logit_softcapping", KEY_FLOAT, 0, "soft-capped attention is not supported"},
    {"final_logit_softcapping", KEY_FLOAT, 0, "soft-capped logits are not supported"},
    {"logit_scale", KEY_FLOAT, 1, "scaled logits are not supported"},
    {"embedding_scale", KEY_FLOAT, 1, "scaled embeddings are not supported"},
    {"residual_scale", KEY_FLOAT, 1, "scaled residuals are not supported"},
};

static moa_status check_family_key(const opening *o, const char *key, const char *suffix, size_t i) {
    char text[64] = "";
    int64_t integer = 0;
    double real = 0;
    bool truth = false, harmless = false;
    for (size_t r = 0; r < sizeof key_rows / sizeof *key_rows; r++) {
        if (strcmp(key_rows[r].suffix, suffix) != 0) continue;
        switch (key_rows[r].rule) {
        case KEY_READ:
        case KEY_IGNORED: return MOA_OK;
        case KEY_INT:
            harmless = moa_gguf_get_int(o->g, key, INT64_MIN, INT64_MAX, &integer, NULL) == MOA_OK &&
                       (double)integer == key_rows[r].value;
            break;
        case KEY_FLOAT:
            harmless = moa_gguf_get_float(o->g, key, -INFINITY, INFINITY, &real, NULL) == MOA_OK &&
                       real == key_rows[r].value;
            break;
        case KEY_BOOL:
            harmless = moa_gguf_get_bool(o->g, key, &truth, NULL) == MOA_OK &&
                       (truth ? 1 : 0) == (int)key_rows[r].value;
            break;
        case KEY_REFUSED: break;
        }
        if (harmless) return MOA_OK;
        moa_gguf_kv_text(o->g, i, text, sizeof text);
        return moa_fail(o->err, MOA_E_UNSUPPORTED, "metadata key %s is %s: %s", key, text,
                        key_rows[r].reason);
    }
    return moa_fail(o->err, MOA_E_UNSUPPORTED,
                    "metadata key %s is not known; it may change what the model computes", key);
}

static moa_status check_family_keys(const opening *o) {
    const size_t prefix = strlen(o->arch->name) + 1;
    for (size_t i = 0; i < moa_gguf_n_kv(o->g); i++) {
        const moa_gguf_kv kv = moa_gguf_kv_at(o->g, i);
        char key[256];
        if (kv.key.size <= prefix || memcmp(kv.key.data, o->arch->name, prefix - 1) != 0 ||
            kv.key.data[prefix - 1] != '.')
            continue;
        if (kv.key.size >= sizeof key)
            return moa_fail(o->err, MOA_E_UNSUPPORTED, "metadata key %.80s... is not known", kv.key.data);
        memcpy(key, kv.key.data, kv.key.size);
        key[kv.key.size] = 0;
        const moa_status s = check_family_key(o, key, key + prefix, i);
        if (s != MOA_OK) return s;
    }
    return MOA_OK;
}

static moa_status read_rope(const opening *o, moa_shape *shape) {
    char key[128];
    moa_str type = {"linear", 6}; /* a factor without a type has always meant this */
    float factor = 0;
    moa_status s;
    shape->rope_kind = o->arch->rope_kind;
    MOA_TRY(get_count(o, "rope.dimension_count", 2, MAX_D_HEAD, shape->d_head, &shape->rope_dim));
    if (shape->rope_dim > shape->d_head || shape->rope_dim % 2 != 0)
        return moa_fail(
            o->err, MOA_E_INVALID,
            "%d elements of a head rotate (rope.dimension_count), expected an even number up to d_head = %d",
            shape->rope_dim, shape->d_head);
    MOA_TRY(get_real(o, "rope.freq_base", 1, 1e12, 10000, &shape->rope_theta));
    if (moa_gguf_has(o->g, family_key(o, "rope.scaling.type", key))) {
        MOA_TRY(moa_gguf_get_str(o->g, key, 64, &type, o->err));
        const bool linear = type.size == 6 && memcmp(type.data, "linear", 6) == 0;
        const bool none = type.size == 4 && memcmp(type.data, "none", 4) == 0;
        if (!linear && !none)
            return moa_fail(o->err, MOA_E_UNSUPPORTED,
                            "rotary scaling of type %.*s is not supported; known are none, linear and "
                            "factors in rope_freqs.weight",
                            (int)type.size, type.data);
        if (none) type.size = 0;
    }
    const bool old = !moa_gguf_has(o->g, family_key(o, "rope.scaling.factor", key));
    MOA_TRY(get_real(o, old ? "rope.scale_linear" : "rope.scaling.factor", 0, 1e6, 0, &factor));
    if (factor != 0 && factor < 1e-3f)
        return moa_fail(o->err, MOA_E_INVALID,
                        "rotary scaling factor %g, expected 0.001 to 1000000, or 0 for none", (double)factor);
    shape->rope_scale = type.size == 0 || factor == 0 ? 1 : 1 / factor;
out:
    return s;
}

static moa_status read_heads(const opening *o, moa_shape *shape) {
    moa_status s;
    int32_t value_length = 0;
    MOA_TRY(get_count(o, "attention.head_count", 1, MAX_HEAD, -1, &shape->n_head));
    MOA_TRY(get_count(o, "attention.head_count_kv", 1, MAX_HEAD, shape->n_head, &shape->n_head_kv));
    if (shape->n_head_kv > shape->n_head || shape->n_head % shape->n_head_kv != 0)
        return moa_fail(o->err, MOA_E_INVALID,
                        "%d heads (attention.head_count) are not a multiple of %d KV heads", shape->n_head,
                        shape->n_head_kv);
    MOA_TRY(get_count(o, "attention.key_length", 1, MAX_D_HEAD, 0, &shape->d_head));
    if (shape->d_head == 0) {
        if (shape->d_model % shape->n_head != 0)
            return moa_fail(o->err, MOA_E_INVALID,
                            "d_model %d (embedding_length) is not a multiple of %d heads, and "
                            "attention.key_length is missing",
                            shape->d_model, shape->n_head);
        shape->d_head = shape->d_model / shape->n_head;
        if (shape->d_head > MAX_D_HEAD)
            return moa_fail(o->err, MOA_E_INVALID, "heads of %d elements (%d / %d), the limit is %d",
                            shape->d_head, shape->d_model, shape->n_head, MAX_D_HEAD);
    }
    MOA_TRY(get_count(o, "attention.value_length", 1, MAX_D_HEAD, shape->d_head, &value_length));
    if (value_length != shape->d_head)
        return moa_fail(o->err, MOA_E_UNSUPPORTED,
                        "values of %d elements a head (attention.value_length) but keys of %d", value_length,
                        shape->d_head);
out:
    return s;
}

static moa_status read_shape(const opening *o) {
    moa_shape *shape = &o->m->shape;
    moa_status s;
    int32_t vocab_size = 0;
    MOA_TRY(get_count(o, "block_count", 1, MAX_LAYER, -1, &shape->n_layer));
    MOA_TRY(get_count(o, "context_length", 1, MAX_CTX, -1, &shape->n_ctx));
    MOA_TRY(get_count(o, "embedding_length", 1, MAX_D_MODEL, -1, &shape->d_model));
    MOA_TRY(get_count(o, "feed_forward_length", 1, MAX_D_FF, -1, &shape->d_ff));
    MOA_TRY(read_heads(o, shape));
    MOA_TRY(get_real(o, "attention.layer_norm_rms_epsilon", 1e-12, 0.1, NAN, &shape->rms_eps));
    MOA_TRY(read_rope(o, shape));
    const size_t embed = moa_gguf_find_tensor(o->g, "token_embd.weight");
    if (embed == SIZE_MAX) return moa_fail(o->err, MOA_E_INVALID, "tensor token_embd.weight is missing");
    const moa_gguf_tensor t = moa_gguf_tensor_at(o->g, embed);
    if (t.dims[1] > MAX_VOCAB)
        return moa_fail(o->err, MOA_E_INVALID, "tensor token_embd.weight: %" PRIu64 " rows, the limit is %d",
                        t.dims[1], MAX_VOCAB);
    shape->n_vocab = (int32_t)t.dims[1];
    MOA_TRY(get_count(o, "vocab_size", 1, MAX_VOCAB, shape->n_vocab, &vocab_size));
    if (vocab_size != shape->n_vocab)
        return moa_fail(o->err, MOA_E_INVALID, "vocab_size is %d but token_embd.weight has %d rows",
                        vocab_size, shape->n_vocab);
    MOA_TRY(check_family_keys(o));
out:
    return s;
}

/* --- tensors
 * ------------------------------------------------------------------------------------------------------------
 */

static int32_t dim_value(const moa_shape *shape, moa_dim dim) {
    switch (dim) {
#define X(name, value, text)                                                                                 \
    case MOA_DIM_##name: return value;
        MOA_DIM_MAP(X)
#undef X
    }
    return 0;
}

static const char *dim_text(moa_dim dim) {
    switch (dim) {
#define X(name, value, text)                                                                                 \
    case MOA_DIM_##name: return text;
        MOA_DIM_MAP(X)
#undef X
    }
    return "";
}

static moa_status check_shape(const opening *o, const moa_arch_tensor *row, const moa_gguf_tensor *t) {
    const uint64_t n_out = (uint64_t)dim_value(&o->m->shape, row->n_out),
                   n_in = (uint64_t)dim_value(&o->m->shape, row->n_in);
    if (t->dims[0] == n_in && t->dims[1] == n_out && t->dims[2] == 1 && t->dims[3] == 1) return MOA_OK;
    char found[96];
    int at = 0;
    for (int i = (int)t->n_dims - 1; i >= 0; i--)
        at += snprintf(found + at, sizeof found - (size_t)at, "%" PRIu64 "%s", t->dims[i], i ? "x" : "");
    if (row->n_out == MOA_DIM_ONE)
        return moa_fail(o->err, MOA_E_INVALID, "tensor %.*s: shape %s, expected %" PRIu64 " (%s)",
                        (int)t->name.size, t->name.data, found, n_in, dim_text(row->n_in));
    return moa_fail(o->err, MOA_E_INVALID,
                    "tensor %.*s: shape %s, expected %" PRIu64 "x%" PRIu64 " (%s x %s)", (int)t->name.size,
                    t->name.data, found, n_out, n_in, dim_text(row->n_out), dim_text(row->n_in));
}

/* fills one weight of the model: name, type, shape; data holds no memory yet, data_at says where it will lie
 */
static moa_status place(opening *o, const moa_arch_tensor *row, const char *name, moa_weight *w) {
    const size_t i = moa_gguf_find_tensor(o->g, name);
    if (i == SIZE_MAX) {
        if (row->optional) return MOA_OK;
        return moa_fail(o->err, MOA_E_INVALID, "tensor %s is missing (the model has %d layers)", name,
                        o->m->shape.n_layer);
    }
    const moa_gguf_tensor t = moa_gguf_tensor_at(o->g, i);
    const moa_dtype_info *type = moa_dtype_find(t.type);
    if (!type)
        return moa_fail(o->err, MOA_E_UNSUPPORTED,
                        "tensor %s is stored as %s (type %u), which is not supported", name,
                        moa_dtype_gguf_name(t.type), t.type);
    const moa_status s = check_shape(o, row, &t);
    if (s != MOA_OK) return s;
    if (row->n_out == MOA_DIM_ONE && t.type != MOA_F32)
        return moa_fail(o->err, MOA_E_UNSUPPORTED, "tensor %s is stored as %s, expected F32 for a vector",
                        name, type->name);
    o->tensors[i].placed = true;
    *w = (moa_weight){
        .type = type->id, .n_out = (int32_t)t.dims[1], .n_in = (int32_t)t.dims[0], .bytes = t.bytes};
    return MOA_OK;
}

/* one weight of the model and how the file calls it */
typedef moa_status (*weight_fn)(opening *o, const moa_arch_tensor *row, const char *name, moa_weight *w);

static moa_status each_weight(opening *o, weight_fn fn) {
    char name[MOA_GGUF_MAX_NAME + 1];
    moa_status s = MOA_OK;
    for (const moa_arch_tensor *row = o->arch->model; row->name; row++)
        MOA_TRY(fn(o, row, row->name, (moa_weight *)((char *)o->m + row->field)));
    for (int32_t l = 0; l < o->m->shape.n_layer; l++)
        for (const moa_arch_tensor *row = o->arch->layer; row->name; row++) {
            (void)snprintf(name, sizeof name, "blk.%d.%s", l, row->name);
            MOA_TRY(fn(o, row, name, (moa_weight *)((char *)&o->m->layers[l] + row->field)));
        }
out:
    return s;
}

static moa_status check_all_placed(const opening *o) {
    for (size_t i = 0; i < moa_gguf_n_tensors(o->g); i++) {
        if (o->tensors[i].placed) continue;
        const moa_str name = moa_gguf_tensor_at(o->g, i).name;
        return moa_fail(
            o->err, MOA_E_UNSUPPORTED,
            "tensor %.*s has no place in a %s model of %d layers; without it the results would be wrong",
            (int)name.size, name.data, o->arch->name, o->m->shape.n_layer);
    }
    return MOA_OK;
}

/* --- weights
 * --------------------------------------------------------------------------------------------------------------
 */

static bool make_room(size_t *total, size_t bytes, size_t align, size_t *at) {
    return moa_size_pad(*total, align, at) && moa_size_add(*at, bytes, total);
}

static bool with_data(const opening *o) {
    return !o->header_only && !o->lazy;
}

/* The store: the weights (none with header_only or lazy), then the tensors' names. */
static moa_status lay_out(opening *o) {
    const size_t n = moa_gguf_n_tensors(o->g);
    bool fits = true;
    o->store_bytes = 0;
    for (size_t i = 0; i < n && with_data(o); i++)
        fits = fits && make_room(&o->store_bytes, moa_gguf_tensor_at(o->g, i).bytes, WEIGHT_ALIGN,
                                 &o->tensors[i].data_at);
    for (size_t i = 0; i < n; i++)
        fits = fits && make_room(&o->store_bytes, moa_gguf_tensor_at(o->g, i).name.size + 1, 1,
                                 &o->tensors[i].name_at);
    return fits ? MOA_OK : moa_fail(o->err, MOA_E_MEMORY, "the weights do not fit an address space");
}

/* weight_bytes, n_param, and the type that most bytes of matrices have */
static moa_status sum_up(opening *o) {
    uint64_t by_type[64] = {0}; /* the numbers of supported types are below */
    uint32_t most = MOA_F32;
    for (size_t i = 0; i < moa_gguf_n_tensors(o->g); i++) {
        const moa_gguf_tensor t = moa_gguf_tensor_at(o->g, i);
        o->m->weight_bytes += t.bytes; /* all inside the file: no overflow */
        o->m->n_param += t.n_elem;
        by_type[t.type] += t.dims[1] > 1 ? t.bytes : 0;
        if (by_type[t.type] > by_type[most]) most = t.type;
    }
    o->m->quant = strdup(moa_dtype_gguf_name(most));
    return o->m->quant ? MOA_OK : moa_fail(o->err, MOA_E_MEMORY, "no memory for a name");
}

static moa_status make_store(opening *o) {
    const size_t align = o->store_bytes >= HUGE_PAGE ? HUGE_PAGE : WEIGHT_ALIGN;
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t bytes;
    if (!moa_size_pad(o->store_bytes, align, &bytes))
        return moa_fail(o->err, MOA_E_MEMORY, "the weights do not fit an address space");
    if (pages > 0 && page > 0 && bytes / (size_t)page >= (size_t)pages)
        return moa_fail(o->err, MOA_E_MEMORY, "the weights need %zu MiB, this machine has %zu MiB of memory",
                        bytes >> 20, ((size_t)pages * (size_t)page) >> 20);
    free(o->m->store); /* of names alone */
    o->m->store = aligned_alloc(align, bytes);
    if (!o->m->store)
        return moa_fail(o->err, MOA_E_MEMORY, "no memory for the weights: %zu MiB", bytes >> 20);
    if (align == HUGE_PAGE) (void)madvise(o->m->store, bytes, MADV_HUGEPAGE); /* only a hint */
    for (size_t i = 0; i < moa_gguf_n_tensors(o->g); i++) {
        const moa_str name = moa_gguf_tensor_at(o->g, i).name;
        char *to = (char *)o->m->store + o->tensors[i].name_at;
        memcpy(to, name.data, name.size);
        to[name.size] = 0;
    }
    return MOA_OK;
}

static moa_status read_weight(const moa_weight *w, size_t at, size_t n, void *out, moa_err *err) {
    return moa_gguf_read(w->file, w->tensor, at, n, out, err);
}

/* points a weight at its part of the store, or at its tensor */
static moa_status point(opening *o, const moa_arch_tensor *row, const char *name, moa_weight *w) {
    (void)row;
    const size_t i = moa_gguf_find_tensor(o->g, name);
    if (i == SIZE_MAX) return MOA_OK; /* optional */
    w->name = (const char *)o->m->store + o->tensors[i].name_at;
    w->data = with_data(o) ? (const char *)o->m->store + o->tensors[i].data_at : NULL;
    w->read = o->lazy ? read_weight : NULL;
    w->file = o->lazy ? o->g : NULL;
    w->tensor = i;
    return MOA_OK;
}

static moa_status read_weights(opening *o) {
    const size_t n = moa_gguf_n_tensors(o->g);
    moa_gguf_part *parts = calloc(n + 1, sizeof *parts);
    if (!parts) return moa_fail(o->err, MOA_E_MEMORY, "no memory for a list of %zu tensors", n);
    for (size_t i = 0; i < n; i++)
        parts[i] = (moa_gguf_part){i, (char *)o->m->store + o->tensors[i].data_at};
    const moa_status s = moa_gguf_read_many(o->g, parts, n, o->progress, o->user, o->err);
    free(parts);
    return s;
}

/* the frequencies are divided by these */
static moa_status check_rope_freqs(const opening *o) {
    const moa_weight *w = &o->m->rope_freqs;
    float f[MAX_D_HEAD];
    moa_status s = MOA_OK;
    if (!w->data && !w->read) return MOA_OK;
    assert(w->bytes == sizeof *f * (size_t)w->n_in && w->n_in <= MAX_D_HEAD); /* of read_rope and check_shape */
    if (w->data)
        memcpy(f, w->data, w->bytes);
    else
        s = w->read(w, 0, w->bytes, f, o->err);
    for (int32_t i = 0; i < w->n_in && s == MOA_OK; i++)
        if (!isfinite(f[i]) || f[i] <= 0)
            s = moa_fail(o->err, MOA_E_INVALID, "tensor %s: element %d is %g, expected a positive number", w->name, i, (double)f[i]);
    return s;
}

/* the weights' places, and their data unless it stays in the file */
static moa_status bring_weights(opening *o) {
    moa_status s;
    MOA_TRY(lay_out(o));
    MOA_TRY(make_store(o));
    MOA_TRY(each_weight(o, point));
    if (o->m->tied) o->m->output = o->m->embed;
    if (o->header_only) goto out;
    if (!o->lazy) MOA_TRY(read_weights(o));
    MOA_TRY(check_rope_freqs(o));
out:
    return s;
}

static moa_status open_weights(opening *o) {
    moa_status s;
    o->m->layers = calloc((size_t)o->m->shape.n_layer, sizeof *o->m->layers);
    o->tensors = calloc(moa_gguf_n_tensors(o->g) + 1, sizeof *o->tensors);
    if (!o->m->layers || !o->tensors)
        return moa_fail(o->err, MOA_E_MEMORY, "no memory for the tables of %d layers", o->m->shape.n_layer);
    MOA_TRY(each_weight(o, place));
    MOA_TRY(check_all_placed(o));
    MOA_TRY(sum_up(o));
    o->m->tied = o->m->output.bytes == 0;
    MOA_TRY(bring_weights(o));
out:
    return s;
}

/* --- tokenizer
 * --------------------------------------------------------------------------------------------------------------
 */

static moa_status get_entries(const opening *o, const char *key, moa_tok_entry **out, size_t *n) {
    moa_str *text = NULL;
    moa_status s = moa_gguf_get_strings(o->g, key, &text, n, o->err);
    if (s != MOA_OK) return s;
    *out = calloc(*n + 1, sizeof **out);
    if (!*out) s = moa_fail(o->err, MOA_E_MEMORY, "metadata key %s: no memory for %zu entries", key, *n);
    for (size_t i = 0; s == MOA_OK && i < *n; i++) {
        if (text[i].size > MAX_TOKEN_BYTES)
            s = moa_fail(o->err, MOA_E_INVALID, "metadata key %s: entry %zu has %zu bytes, the limit is %d",
                         key, i, text[i].size, MAX_TOKEN_BYTES);
        else
            (*out)[i] = (moa_tok_entry){text[i].data, (uint32_t)text[i].size, 1};
    }
    free(text);
    return s;
}

static moa_status get_token_types(const opening *o, moa_tok_entry *entries, size_t n_vocab) {
    static const char key[] = "tokenizer.ggml.token_type";
    int32_t *types = NULL;
    size_t n = 0;
    if (!moa_gguf_has(o->g, key)) return MOA_OK; /* all normal */
    moa_status s = moa_gguf_get_i32s(o->g, key, &types, &n, o->err);
    if (s != MOA_OK) return s;
    if (n != n_vocab)
        s = moa_fail(o->err, MOA_E_INVALID, "metadata key %s: %zu entries for %zu tokens", key, n, n_vocab);
    for (size_t i = 0; s == MOA_OK && i < n; i++) {
        if (types[i] < 1 || types[i] > 6)
            s = moa_fail(o->err, MOA_E_INVALID, "metadata key %s: token %zu has type %d, expected 1 to 6",
                         key, i, types[i]);
        else
            entries[i].type = (uint8_t)types[i];
    }
    free(types);
    return s;
}

/* tokenizer.ggml.NAME_token_id, or -1 */
static moa_status get_token_id(const opening *o, const char *name, int32_t *out) {
    char key[64];
    int64_t id = -1;
    (void)snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", name);
    *out = -1;
    if (!moa_gguf_has(o->g, key)) return MOA_OK;
    const moa_status s = moa_gguf_get_int(o->g, key, 0, o->m->shape.n_vocab - 1, &id, o->err);
    if (s == MOA_OK) *out = (int32_t)id;
    return s;
}

static moa_status get_name(const opening *o, const char *key, const char *fallback, char out[64]) {
    moa_str text = {fallback, strlen(fallback)};
    if (!*fallback || moa_gguf_has(o->g, key)) {
        const moa_status s = moa_gguf_get_str(o->g, key, 63, &text, o->err);
        if (s != MOA_OK) return s;
    }
    if (memchr(text.data, 0, text.size))
        return moa_fail(o->err, MOA_E_INVALID, "metadata key %s holds a zero byte", key);
    (void)snprintf(out, 64, "%.*s", (int)text.size, text.data);
    return MOA_OK;
}

static moa_status open_tokenizer(const opening *o) {
    char model[64], pre[64];
    moa_tok_entry *entries = NULL, *merges = NULL;
    moa_tok_config config = {.model = model, .pre = pre};
    moa_status s;
    MOA_TRY(get_name(o, "tokenizer.ggml.model", "", model));
    MOA_TRY(get_name(o, "tokenizer.ggml.pre", "default", pre));
    MOA_TRY(get_entries(o, "tokenizer.ggml.tokens", &entries, &config.n_vocab));
    if (config.n_vocab != (size_t)o->m->shape.n_vocab) {
        s = moa_fail(o->err, MOA_E_INVALID, "the tokenizer has %zu tokens but token_embd.weight has %d rows",
                     config.n_vocab, o->m->shape.n_vocab);
        goto out;
    }
    MOA_TRY(get_token_types(o, entries, config.n_vocab));
    if (moa_gguf_has(o->g, "tokenizer.ggml.merges"))
        MOA_TRY(get_entries(o, "tokenizer.ggml.merges", &merges, &config.n_merges));
    MOA_TRY(get_token_id(o, "bos", &config.bos));
    MOA_TRY(get_token_id(o, "eos", &config.eos));
    MOA_TRY(get_token_id(o, "eot", &config.eot));
    MOA_TRY(get_token_id(o, "unknown", &config.unk));
    MOA_TRY(get_token_id(o, "padding", &config.pad));
    config.add_bos = strncmp(pre, "llama", 5) == 0; /* Llama 3 files before the key existed */
    if (moa_gguf_has(o->g, "tokenizer.ggml.add_bos_token"))
        MOA_TRY(moa_gguf_get_bool(o->g, "tokenizer.ggml.add_bos_token", &config.add_bos, o->err));
    config.entries = entries;
    config.merges = merges;
    MOA_TRY(moa_tokenizer_open(&o->m->tokenizer, &config, o->err));
out:
    free(entries);
    free(merges);
    return s;
}

/* --- all of it
 * ----------------------------------------------------------------------------------------------------------------
 */

/* a copy of text of the file as UTF-8 without zero bytes, NULL without memory */
static char *copy_text(moa_str text) {
    moa_buf b = {0};
    moa_utf8_replace(text.data, text.size, &b);
    moa_buf_append(&b, "", 0);
    for (size_t i = 0; i < b.size; i++)
        if (b.data[i] == 0) b.data[i] = ' ';
    if (!moa_buf_ok(&b)) moa_buf_free(&b);
    return b.data;
}

/* "Model-Q4_1" from "/models/Model-Q4_1.gguf" */
static moa_str stem_of(const char *path) {
    const char *slash = strrchr(path, '/'), *start = slash ? slash + 1 : path;
    size_t n = strlen(start);
    if (n > 5 && strcmp(start + n - 5, ".gguf") == 0) n -= 5;
    return (moa_str){start, n};
}

static moa_status read_texts(const opening *o, const char *path) {
    moa_str name = stem_of(path), template = {0};
    moa_status s = MOA_OK;
    moa_sha256 hash;
    if (moa_gguf_has(o->g, "general.name"))
        MOA_TRY(moa_gguf_get_str(o->g, "general.name", MAX_NAME_BYTES, &name, o->err));
    const bool has_template = moa_gguf_has(o->g, "tokenizer.chat_template");
    if (has_template)
        MOA_TRY(moa_gguf_get_str(o->g, "tokenizer.chat_template", MAX_TEMPLATE_BYTES, &template, o->err));
    o->m->path = strdup(path);
    o->m->name = copy_text(name.size ? name : stem_of(path));
    o->m->arch = strdup(o->arch->name);
    o->m->chat_template = has_template ? copy_text(template) : NULL;
    if (!o->m->path || !o->m->name || !o->m->arch || (has_template && !o->m->chat_template))
        return moa_fail(o->err, MOA_E_MEMORY, "no memory for the model's names");
    const moa_str header = moa_gguf_header(o->g);
    moa_sha256_init(&hash);
    moa_sha256_add(&hash, header.data, header.size);
    moa_sha256_hex(&hash, o->m->fingerprint);
out:
    return s;
}

static moa_status open_model(opening *o, moa_model **out, const char *path) {
    moa_status s = MOA_OK;
    *out = NULL;
    o->m = calloc(1, sizeof *o->m);
    if (!o->m) return moa_fail(o->err, MOA_E_MEMORY, "no memory to open a model");
    MOA_TRY(choose_arch(o));
    MOA_TRY(check_general(o));
    MOA_TRY(read_shape(o));
    MOA_TRY(read_texts(o, path));
    MOA_TRY(open_tokenizer(o)); /* before the weights: cheaper to refuse */
    MOA_TRY(open_weights(o));
    *out = o->m;
    o->m = NULL;
out:
    free(o->tensors);
    moa_model_close(&o->m);
    return s;
}

moa_status moa_model_open(moa_model **out, const char *path, bool header_only, moa_progress_fn progress,
                          void *user, moa_err *err) {
    moa_gguf *g = NULL;
    *out = NULL;
    moa_status s = moa_gguf_open(&g, path, err);
    if (s != MOA_OK) return s;
    opening o = {.g = g, .header_only = header_only, .progress = progress, .user = user, .err = err};
    s = open_model(&o, out, path);
    moa_gguf_close(&g);
    return s;
}

moa_status moa_model_open_lazy(moa_model **out, const char *path, moa_err *err) {
    moa_gguf *g = NULL;
    *out = NULL;
    moa_status s = moa_gguf_open(&g, path, err);
    if (s != MOA_OK) return s;
    opening o = {.g = g, .lazy = true, .err = err};
    s = open_model(&o, out, path);
    if (s == MOA_OK)
        (*out)->file = g;
    else
        moa_gguf_close(&g);
    return s;
}

moa_status moa_model_read(moa_model *m, moa_progress_fn progress, void *user, moa_err *err) {
    opening o = {.m = m, .g = m->file, .progress = progress, .user = user, .err = err};
    moa_status s = MOA_OK;
    if (!m->file) return MOA_OK;
    o.tensors = calloc(moa_gguf_n_tensors(o.g) + 1, sizeof *o.tensors);
    if (!o.tensors) return moa_fail(err, MOA_E_MEMORY, "no memory for the tables of %d layers", m->shape.n_layer);
    MOA_TRY(choose_arch(&o));
    MOA_TRY(bring_weights(&o));
    moa_gguf_close(&m->file);
out:
    free(o.tensors);
    return s;
}

moa_status moa_model_open_memory(moa_model **out, const void *bytes, size_t n, bool header_only,
                                 moa_err *err) {
    moa_gguf *g = NULL;
    *out = NULL;
    moa_status s = moa_gguf_open_memory(&g, bytes, n, err);
    if (s != MOA_OK) return s;
    opening o = {.g = g, .header_only = header_only, .err = err};
    s = open_model(&o, out, "(memory)");
    moa_gguf_close(&g);
    return s;
}

void moa_model_close(moa_model **model) {
    if (!model || !*model) return;
    moa_model *m = *model;
    moa_tokenizer_close(&m->tokenizer);
    moa_gguf_close(&m->file);
    free(m->path);
    free(m->name);
    free(m->arch);
    free(m->quant);
    free(m->chat_template);
    free(m->layers);
    free(m->store);
    free(m);
    *model = NULL;
}
