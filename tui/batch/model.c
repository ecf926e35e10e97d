/* model.c -- `moascope model info MODEL` says what a file is, what it needs, and if it cannot be run, why; `moascope model list`
 * says the same in a line for every file in the usual folders. Only headers are read.
 *
 * A file that is refused is still described as far as its header can be trusted, and the command ends with exit code 3. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/text.h"
#include "core/engine/engine.h"
#include "core/model/gguf.h"
#include "core/model/model.h"
#include "tui/batch/batch.h"

enum { OWN_METADATA = MOA_OPT_OWN, OWN_TENSORS, N_TYPE = 64, VALUE_CELLS = 80 };

/* what the file is, whether or not it can be run */
typedef struct facts {
    char path[4096];
    moa_gguf *g;  /* NULL: not even a GGUF file */
    moa_model *m; /* NULL: refused, `refusal` says why */
    moa_err refusal;
    struct {
        uint64_t n, bytes;
    } by_type[N_TYPE];
    uint64_t tensor_bytes;
} facts;

static void close_facts(facts *f) {
    moa_model_close(&f->m);
    moa_gguf_close(&f->g);
}

/* MOA_OK also for a refused file; an error: nothing can be said at all */
static moa_status open_facts(facts *f, moa_err *err) {
    const moa_status s = moa_model_open(&f->m, f->path, true, NULL, NULL, &f->refusal);
    if (s != MOA_OK && moa_status_exit_code(s) != 3) {
        if (err) *err = f->refusal;
        return s;
    }
    if (moa_gguf_open(&f->g, f->path, NULL) != MOA_OK) return MOA_OK;
    for (size_t i = 0; i < moa_gguf_n_tensors(f->g); i++) {
        const moa_gguf_tensor t = moa_gguf_tensor_at(f->g, i);
        f->by_type[t.type % N_TYPE].n++;
        f->by_type[t.type % N_TYPE].bytes += t.bytes;
        f->tensor_bytes += t.bytes;
    }
    return MOA_OK;
}

/* --- text --------------------------------------------------------------------------------------------------------------- */

static void put_clean(moa_buf *out, const char *text, size_t n) {
    moa_text_clean(text, n, MOA_TEXT_LINE, out);
}

static void put_bytes(moa_buf *out, uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)bytes;
    size_t u = 0;
    for (; x >= 1024 && u < 4; u++)
        x /= 1024;
    moa_buf_printf(out, u ? "%.1f %s" : "%.0f %s", x, units[u]);
}

static void put_label(moa_buf *out, const char *label) {
    moa_buf_printf(out, "%-14s", label);
}

static void put_shape(moa_buf *out, const moa_model *m) {
    const moa_shape *s = &m->shape;
    put_label(out, "architecture");
    moa_buf_printf(out, "%s: %d layers, %d heads over %d KV heads (%d a group) of %d, d_model %d, d_ff %d\n",
                   m->arch, s->n_layer, s->n_head, s->n_head_kv, s->n_head / s->n_head_kv, s->d_head,
                   s->d_model, s->d_ff);
    put_label(out, "rotary");
    moa_buf_printf(out, "%d of %d elements, %s, theta %g, ", s->rope_dim, s->d_head,
                   s->rope_kind == MOA_ROPE_PAIRS ? "neighbours" : "halves", (double)s->rope_theta);
    if (s->rope_scale != 1)
        moa_buf_printf(out, "positions scaled by %g\n", (double)s->rope_scale);
    else
        moa_buf_str(out, m->rope_freqs.name ? "frequencies divided by rope_freqs.weight\n" : "unscaled\n");
    put_label(out, "context");
    moa_buf_printf(out, "%d tokens\n", s->n_ctx);
}

static void put_types(moa_buf *out, const facts *f) {
    put_label(out, "weights");
    put_bytes(out, f->tensor_bytes);
    if (f->m) moa_buf_printf(out, ", %.1f M parameters, mostly %s", (double)f->m->n_param / 1e6, f->m->quant);
    moa_buf_str(out, f->m && f->m->tied ? ", output tied to the embedding\n" : "\n");
    for (uint32_t t = 0; t < N_TYPE; t++) {
        if (!f->by_type[t].n) continue;
        put_label(out, "");
        moa_buf_printf(out, "%-8s %5" PRIu64 " tensors  ", moa_dtype_gguf_name(t), f->by_type[t].n);
        put_bytes(out, f->by_type[t].bytes);
        moa_buf_str(out, moa_dtype_find(t) ? "\n" : "  (not supported)\n");
    }
}

static void put_tokenizer(moa_buf *out, const moa_model *m) {
    const int32_t bos = moa_tokenizer_bos(m->tokenizer);
    put_label(out, "tokenizer");
    moa_buf_str(out, "byte-level BPE, pre-tokenizer ");
    put_clean(out, moa_tokenizer_pre(m->tokenizer), strlen(moa_tokenizer_pre(m->tokenizer)));
    moa_buf_printf(out, ", %zu tokens", moa_tokenizer_n_vocab(m->tokenizer));
    if (bos >= 0) moa_buf_printf(out, ", BOS %d", bos);
    moa_buf_str(out, "\n");
    put_label(out, "chat template");
    if (m->chat_template)
        moa_buf_printf(out, "%zu bytes\n", strlen(m->chat_template));
    else
        moa_buf_str(out, "-\n");
}

static void put_memory(moa_buf *out, const moa_shape *s) {
    const moa_kv_bytes kv = moa_kv_formula(s, MOA_KV_F16, NULL, s->n_ctx, s->n_ctx),
                       q8 = moa_kv_formula(s, MOA_KV_Q8, NULL, s->n_ctx, s->n_ctx);
    put_label(out, "KV memory");
    moa_buf_printf(out, "at %d tokens in f16, dense: ", s->n_ctx);
    put_bytes(out, kv.dense);
    moa_buf_str(out, " (one KV head for every head: ");
    put_bytes(out, kv.mha);
    moa_buf_str(out, ")\n");
    put_label(out, "  --kv q8");
    put_bytes(out, q8.dense);
    moa_buf_printf(out, ", %.1f %% of f16; on the models measured the logits' mean KL from f32 was 4e-4 to 7e-4 (f16 4e-7 to 2e-6)\n",
                   100.0 * (double)q8.dense / (double)kv.dense);
    put_label(out, "  --kv bf16");
    moa_buf_str(out, "as f16, with the range of f32; mean KL 3e-5 to 1.5e-4\n");
}

/* what can be said of a file that was refused */
static void put_refused(moa_buf *out, const facts *f) {
    moa_str arch = {0};
    if (!f->g) return;
    put_label(out, "architecture");
    if (moa_gguf_get_str(f->g, "general.architecture", 64, &arch, NULL) == MOA_OK)
        put_clean(out, arch.data, arch.size);
    else
        moa_buf_str(out, "-");
    moa_buf_str(out, "\n");
    put_types(out, f);
}

static void put_metadata(moa_buf *out, const moa_gguf *g) {
    char value[512];
    for (size_t i = 0; i < moa_gguf_n_kv(g); i++) {
        moa_buf clean = {0};
        const moa_gguf_kv kv = moa_gguf_kv_at(g, i);
        moa_gguf_kv_text(g, i, value, sizeof value);
        put_clean(&clean, value, strlen(value));
        moa_buf_printf(out, "%.*s = ", (int)kv.key.size, kv.key.data); /* letters, digits, _ . - */
        if (clean.data) (void)moa_text_cut(clean.data, clean.size, VALUE_CELLS, out);
        moa_buf_str(out, "\n");
        moa_buf_free(&clean);
    }
}

static void put_tensors(moa_buf *out, const moa_gguf *g) {
    for (size_t i = 0; i < moa_gguf_n_tensors(g); i++) {
        const moa_gguf_tensor t = moa_gguf_tensor_at(g, i);
        char shape[96];
        int at = 0;
        for (int k = (int)t.n_dims - 1; k >= 0; k--)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%" PRIu64 "%s", t.dims[k], k ? "x" : "");
        moa_buf_printf(out, "%-40.*s %16s  %-8s %12zu bytes at %" PRIu64 "\n", (int)t.name.size, t.name.data,
                       shape, moa_dtype_gguf_name(t.type), t.bytes,
                       t.file_offset); /* names are printable ASCII */
    }
}

static void put_text(moa_buf *out, const facts *f, const moa_args *args) {
    put_label(out, "file");
    put_clean(out, f->path, strlen(f->path));
    if (f->g) {
        moa_buf_printf(out, "\n%-14sGGUF version %u, %zu metadata entries, %zu tensors, ", "format",
                       moa_gguf_version(f->g), moa_gguf_n_kv(f->g), moa_gguf_n_tensors(f->g));
        put_bytes(out, moa_gguf_file_bytes(f->g));
    }
    moa_buf_str(out, "\n");
    if (f->m) {
        put_label(out, "name");
        put_clean(out, f->m->name, strlen(f->m->name));
        moa_buf_str(out, "\n");
        put_shape(out, f->m);
        put_types(out, f);
        put_tokenizer(out, f->m);
        put_memory(out, &f->m->shape);
        moa_buf_printf(out, "%-14s%s\n%-14syes\n", "fingerprint", f->m->fingerprint, "supported");
    } else {
        put_refused(out, f);
        put_label(out, "supported");
        moa_buf_printf(out, "no: %s\n", f->refusal.text); /* messages are clean */
    }
    if (f->g && moa_args_has(args, OWN_METADATA)) put_metadata(out, f->g);
    if (f->g && moa_args_has(args, OWN_TENSORS)) put_tensors(out, f->g);
}

/* --- JSON ----------------------------------------------------------------------------------------------------------------- */

static void put_json_text(moa_buf *out, const char *key, const char *text) {
    moa_buf_printf(out, ", \"%s\": ", key);
    moa_text_json(text, strlen(text), out);
}

static void put_json_model(moa_buf *out, const moa_model *m) {
    const moa_shape *s = &m->shape;
    const moa_kv_bytes kv = moa_kv_formula(s, MOA_KV_F16, NULL, s->n_ctx, s->n_ctx);
    put_json_text(out, "name", m->name);
    put_json_text(out, "architecture", m->arch);
    put_json_text(out, "quant", m->quant);
    put_json_text(out, "fingerprint", m->fingerprint);
    moa_buf_printf(out,
                   ", \"n_layer\": %d, \"n_head\": %d, \"n_head_kv\": %d, \"d_head\": %d, \"d_model\": %d, "
                   "\"d_ff\": %d, "
                   "\"n_vocab\": %d, \"n_ctx\": %d, \"rope_dim\": %d, \"rope_kind\": \"%s\"",
                   s->n_layer, s->n_head, s->n_head_kv, s->d_head, s->d_model, s->d_ff, s->n_vocab, s->n_ctx,
                   s->rope_dim, s->rope_kind == MOA_ROPE_PAIRS ? "neighbours" : "halves");
    moa_buf_str(out, ", \"rope_theta\": ");
    moa_json_number(out, (double)s->rope_theta);
    moa_buf_str(out, ", \"rope_scale\": ");
    moa_json_number(out, (double)s->rope_scale);
    moa_buf_str(out, ", \"rms_eps\": ");
    moa_json_number(out, (double)s->rms_eps);
    moa_buf_printf(
        out, ", \"rope_factors\": %s, \"tied\": %s, \"n_param\": %" PRIu64 ", \"weight_bytes\": %" PRIu64,
        m->rope_freqs.name ? "true" : "false", m->tied ? "true" : "false", m->n_param, m->weight_bytes);
    moa_buf_printf(out, ", \"kv_bytes_dense\": %" PRIu64 ", \"kv_bytes_mha\": %" PRIu64, kv.dense, kv.mha);
    moa_buf_printf(out, ", \"kv_bytes_dense_q8\": %" PRIu64, moa_kv_formula(s, MOA_KV_Q8, NULL, s->n_ctx, s->n_ctx).dense);
    put_json_text(out, "tokenizer_pre", moa_tokenizer_pre(m->tokenizer));
    moa_buf_printf(out, ", \"bos\": %d, \"chat_template\": %s", moa_tokenizer_bos(m->tokenizer),
                   m->chat_template ? "true" : "false");
}

static void put_json(moa_buf *out, const facts *f) {
    moa_buf_str(out, "{\"path\": ");
    moa_text_json(f->path, strlen(f->path), out);
    moa_buf_printf(out, ", \"supported\": %s", f->m ? "true" : "false");
    if (f->m)
        put_json_model(out, f->m);
    else
        put_json_text(out, "reason", f->refusal.text);
    if (f->g) {
        const char *between = "";
        moa_buf_printf(out,
                       ", \"gguf_version\": %u, \"file_bytes\": %" PRIu64
                       ", \"n_tensors\": %zu, \"bytes_by_type\": {",
                       moa_gguf_version(f->g), moa_gguf_file_bytes(f->g), moa_gguf_n_tensors(f->g));
        for (uint32_t t = 0; t < N_TYPE; t++) {
            if (!f->by_type[t].n) continue;
            moa_buf_printf(out, "%s\"%s\": %" PRIu64, between, moa_dtype_gguf_name(t), f->by_type[t].bytes);
            between = ", ";
        }
        moa_buf_str(out, "}");
    }
    moa_buf_str(out, "}");
}

/* --- the two commands -------------------------------------------------------------------------------------------------------- */

static moa_status save(const moa_args *args, const moa_buf *text, const moa_buf *json, moa_err *err) {
    const char *to = moa_args_text(args, MOA_OPT_JSON);
    moa_status s = MOA_OK;
    if (!moa_buf_ok(text) || !moa_buf_ok(json))
        return moa_fail(err, MOA_E_MEMORY, "no memory for the description");
    if (to) MOA_TRY(moa_output_save(to, json, err));
    if (!to || strcmp(to, "-") != 0) MOA_TRY(moa_output_save("-", text, err));
out:
    return s;
}

static moa_status info(const moa_args *args, moa_err *err) {
    const char *name = moa_args_model(args, 1);
    moa_buf text = {0}, json = {0};
    moa_status s = MOA_OK;
    if (!name) return moa_fail(err, MOA_E_USAGE, "info needs a MODEL");
    facts *f = calloc(1, sizeof *f);
    if (!f) return moa_fail(err, MOA_E_MEMORY, "no memory to describe a model");
    MOA_TRY(moa_model_find(name, f->path, sizeof f->path, err));
    MOA_TRY(open_facts(f, err));
    put_text(&text, f, args);
    put_json(&json, f);
    moa_buf_str(&json, "\n");
    MOA_TRY(save(args, &text, &json, err));
    if (!f->m) {
        s = f->refusal.status;
        if (err) *err = f->refusal;
    }
out:
    close_facts(f);
    free(f);
    moa_buf_free(&text);
    moa_buf_free(&json);
    return s;
}

typedef struct listing {
    moa_buf text, json;
    int n;
} listing;

static void put_line(listing *l, const facts *f) {
    moa_buf name = {0};
    const char *slash = strrchr(f->path, '/');
    put_clean(&name, slash ? slash + 1 : f->path, strlen(slash ? slash + 1 : f->path));
    int cells = name.data ? moa_text_cut(name.data, name.size, 44, &l->text) : 0;
    for (; cells < 45; cells++)
        moa_buf_str(&l->text, " ");
    if (f->m) {
        moa_buf_printf(&l->text, "%-8s %-6s %8d tokens  ", f->m->arch, f->m->quant, f->m->shape.n_ctx);
        put_bytes(&l->text, f->m->weight_bytes);
    } else
        moa_buf_printf(&l->text, "- %s", f->refusal.text);
    moa_buf_str(&l->text, "\n");
    moa_buf_free(&name);
    moa_buf_str(&l->json, l->n++ ? ",\n " : "");
    put_json(&l->json, f);
}

static bool list_file(void *user, const char *path) {
    listing *l = user;
    facts *f = calloc(1, sizeof *f);
    if (!f) return false;
    (void)snprintf(f->path, sizeof f->path, "%s", path);
    if (open_facts(f, NULL) == MOA_OK || f->refusal.text[0]) put_line(l, f);
    close_facts(f);
    free(f);
    return !moa_interrupted(NULL);
}

static moa_status list(const moa_args *args, moa_err *err) {
    listing l = {0};
    moa_buf_str(&l.json, "[");
    moa_model_each_file(list_file, &l);
    moa_buf_str(&l.json, "]\n");
    if (l.n == 0)
        moa_remark(args, "no model files in the usual folders; scripts/fetch_model.py smollm2 fetches one");
    const moa_status s = save(args, &l.text, &l.json, err);
    moa_buf_free(&l.text);
    moa_buf_free(&l.json);
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    const char *what = moa_args_word(args, 0);
    if (what && strcmp(what, "info") == 0) return info(args, err);
    if (what && strcmp(what, "list") == 0 && args->n_word == 1) return list(args, err);
    return moa_fail(err, MOA_E_USAGE, "\"%s\" is not known; it is `info MODEL` or `list`", what ? what : "");
}

static const int options[] = {MOA_OPT_MODEL, MOA_OPT_JSON, MOA_OPT_QUIET, MOA_OPT_END};
static const moa_option own[] = {
    {"--metadata", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "also every metadata entry"},
    {"--tensors", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "also every tensor: shape, type, place"},
    {0},
};

const moa_batch moa_batch_model = {
    .name = "model",
    .help = "what a model file is, what it needs, and what is unsupported and why",
    .usage = "info MODEL [--json FILE|-] [--metadata] [--tensors]\nlist [--json FILE|-]",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 2,
    .run = run,
};
