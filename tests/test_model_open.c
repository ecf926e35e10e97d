/* core/model: valid files. What is read is what the file says; loading can be watched and cancelled; files that are no files, or
 * change while they are read, are errors; names are found where people keep models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/buf.h"
#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/model/gguf.h"
#include "core/model/model.h"
#include "load_watch.h"

#define DATA MOA_SOURCE_DIR "/tests/data/"

static moa_model *must_open(const char *path, bool header_only) {
    moa_model *m = NULL;
    moa_err err = {0};
    if (moa_model_open(&m, path, header_only, NULL, NULL, &err) != MOA_OK) fail_msg("%s: %s", path, err.text);
    return m;
}

/* a weight's shape, type, alignment, and its bytes against the file's */
static void check_weight(const moa_gguf *g, const moa_weight *w, const char *name, int n_out, int n_in) {
    assert_string_equal(w->name, name);
    const size_t i = moa_gguf_find_tensor(g, name);
    assert_int_not_equal(i, SIZE_MAX);
    const moa_gguf_tensor t = moa_gguf_tensor_at(g, i);
    assert_int_equal(w->n_out, n_out);
    assert_int_equal(w->n_in, n_in);
    assert_int_equal(w->type, t.type);
    assert_int_equal(w->bytes, t.bytes);
    assert_int_equal((uintptr_t)w->data % 64, 0);
    void *raw = malloc(t.bytes);
    assert_non_null(raw);
    assert_int_equal(moa_gguf_read(g, i, 0, t.bytes, raw, NULL), MOA_OK);
    assert_memory_equal(raw, w->data, t.bytes);
    free(raw);
}

static void test_tiny_llama(void **state) {
    (void)state;
    moa_gguf *g = NULL;
    moa_model *m = must_open(DATA "tiny_llama.gguf", false);
    assert_int_equal(moa_gguf_open(&g, DATA "tiny_llama.gguf", NULL), MOA_OK);
    const moa_shape *s = &m->shape;
    assert_string_equal(m->name, "Tiny Llama");
    assert_string_equal(m->arch, "llama");
    assert_string_equal(m->quant, "Q4_1");
    assert_true(s->n_layer == 2 && s->n_head == 6 && s->n_head_kv == 2 && s->d_head == 16 &&
                s->d_model == 64);
    assert_true(s->d_ff == 32 && s->n_vocab == 276 && s->n_ctx == 4096 && s->rope_dim == 16);
    assert_true(s->rope_kind == MOA_ROPE_PAIRS && s->rope_theta == 10000 && s->rope_scale == 1 &&
                s->rms_eps == 1e-5f);
    assert_false(m->tied);
    check_weight(g, &m->embed, "token_embd.weight", 276, 64);
    check_weight(g, &m->output, "output.weight", 276, 64);
    check_weight(g, &m->out_norm, "output_norm.weight", 1, 64);
    check_weight(g, &m->layers[0].attn_norm, "blk.0.attn_norm.weight", 1, 64);
    check_weight(g, &m->layers[0].wq, "blk.0.attn_q.weight", 96, 64);
    check_weight(g, &m->layers[0].wk, "blk.0.attn_k.weight", 32, 64);
    check_weight(g, &m->layers[1].wv, "blk.1.attn_v.weight", 32, 64);
    check_weight(g, &m->layers[1].wo, "blk.1.attn_output.weight", 64, 96);
    check_weight(g, &m->layers[1].ffn_norm, "blk.1.ffn_norm.weight", 1, 64);
    check_weight(g, &m->layers[1].gate, "blk.1.ffn_gate.weight", 32, 64);
    check_weight(g, &m->layers[1].up, "blk.1.ffn_up.weight", 32, 64);
    check_weight(g, &m->layers[1].down, "blk.1.ffn_down.weight", 64, 32);
    assert_null(m->layers[0].bq.data);
    assert_null(m->layers[0].bq.name);
    assert_null(m->rope_freqs.data);
    assert_non_null(strstr(m->chat_template, "<|im_start|>"));
    assert_int_equal(moa_tokenizer_n_vocab(m->tokenizer), 276);
    assert_int_equal(moa_tokenizer_bos(m->tokenizer), 1);
    moa_sha256 hash;
    char hex[65];
    moa_sha256_init(&hash);
    moa_sha256_add(&hash, moa_gguf_header(g).data, moa_gguf_header(g).size);
    moa_sha256_hex(&hash, hex);
    assert_string_equal(m->fingerprint, hex);
    moa_gguf_close(&g);
    moa_model_close(&m);
    assert_null(m);
    moa_model_close(&m);
}

static void test_tiny_qwen2(void **state) {
    (void)state;
    moa_gguf *g = NULL;
    moa_model *m = must_open(DATA "tiny_qwen2.gguf", false);
    assert_int_equal(moa_gguf_open(&g, DATA "tiny_qwen2.gguf", NULL), MOA_OK);
    assert_true(m->shape.rope_kind == MOA_ROPE_HALVES && m->shape.d_head == 16 && m->shape.rope_dim == 16);
    assert_true(m->shape.rope_theta == 1000000 && m->shape.n_ctx == 8192);
    assert_true(m->tied && m->output.data == m->embed.data && m->output.n_out == 276);
    check_weight(g, &m->layers[1].bq, "blk.1.attn_q.bias", 1, 96);
    check_weight(g, &m->layers[1].bk, "blk.1.attn_k.bias", 1, 32);
    check_weight(g, &m->layers[0].bv, "blk.0.attn_v.bias", 1, 32);
    moa_gguf_close(&g);
    moa_model_close(&m);
}

static void test_rope_scaling_and_factors(void **state) {
    (void)state;
    moa_model *m = must_open(MOA_SOURCE_DIR "/tests/fuzz/corpus/gguf/ok_llama", false);
    assert_true(m->shape.rope_scale == 0.5f);
    assert_true(m->rope_freqs.n_in == 8 && m->rope_freqs.type == MOA_F32);
    float last = 0;
    memcpy(&last, (const char *)m->rope_freqs.data + 28, 4);
    assert_true(last == 8);
    moa_model_close(&m);
}

static void test_every_type_loads(void **state) {
    (void)state;
    moa_model *m = must_open(DATA "tiny_quants.gguf", false);
    uint64_t seen = (uint64_t)1 << m->embed.type | (uint64_t)1 << m->out_norm.type;
    for (int l = 0; l < 2; l++) {
        const moa_layer *y = &m->layers[l];
        const moa_weight *w[] = {&y->wq, &y->wk, &y->wv, &y->wo, &y->gate, &y->up, &y->down};
        for (int i = 0; i < 7; i++) {
            const moa_dtype_info *type = moa_dtype_find(w[i]->type);
            const size_t n = (size_t)w[i]->n_out * (size_t)w[i]->n_in;
            float *x = malloc(n * sizeof *x);
            double square = 0;
            assert_non_null(x);
            type->decode(w[i]->data, x, n);
            for (size_t k = 0; k < n; k++)
                square += (double)x[k] * (double)x[k];
            const double deviation =
                sqrt(square / (double)n) * sqrt(w[i]->n_in); /* what the generator asked for */
            if (!(deviation > 0.7 && deviation < 2))
                fail_msg("%s (%s): %g", w[i]->name, type->name, deviation);
            free(x);
            seen |= (uint64_t)1 << w[i]->type;
        }
    }
#define X(name, id, len, bytes) assert_true(seen >> (id)&1);
    MOA_DTYPE_MAP(X)
#undef X
    moa_model_close(&m);
}

static void test_header_only(void **state) {
    (void)state;
    moa_model *m = must_open(DATA "tiny_llama.gguf", true);
    assert_null(m->layers[1].down.data);
    assert_string_equal(m->layers[1].down.name, "blk.1.ffn_down.weight");
    assert_int_equal(m->layers[1].down.bytes, 64 * 34);
    assert_non_null(m->tokenizer);
    assert_true(m->weight_bytes > 50000 && m->n_param == 80704);
    moa_model_close(&m);
}

/* Weights that stay in the file are the same bytes, in any pieces; brought to memory, too. */
static void test_lazy(void **state) {
    (void)state;
    static const char *const files[] = {DATA "tiny_llama.gguf", DATA "tiny_qwen2.gguf", MOA_SOURCE_DIR "/tests/fuzz/corpus/gguf/ok_llama"};
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        moa_model *all = must_open(files[f], false), *lazy = NULL;
        moa_err err = {0};
        if (moa_model_open_lazy(&lazy, files[f], &err) != MOA_OK) fail_msg("%s", err.text);
        assert_true(lazy->tied == all->tied && lazy->weight_bytes == all->weight_bytes && !lazy->layers[0].wq.data);
        assert_string_equal(lazy->fingerprint, all->fingerprint);
        for (int round = 0; round < 2; round++) {
            const moa_weight *from[] = {&lazy->embed, &lazy->output, &lazy->out_norm, &lazy->rope_freqs, &lazy->layers[0].down, &lazy->layers[0].bq},
                             *to[] = {&all->embed, &all->output, &all->out_norm, &all->rope_freqs, &all->layers[0].down, &all->layers[0].bq};
            for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
                const moa_weight *w = from[i];
                char *bytes = malloc(w->bytes + 1);
                assert_non_null(bytes);
                assert_true(w->bytes == to[i]->bytes && w->n_out == to[i]->n_out && w->type == to[i]->type);
                assert_true(w->bytes == 0 || (round == 0) == (w->read != NULL));
                assert_true(w->bytes == 0 || (round == 0) == (w->data == NULL));
                for (size_t at = 0; round == 0 && at < w->bytes; at += 1000)
                    assert_int_equal(w->read(w, at, w->bytes - at < 1000 ? w->bytes - at : 1000, bytes + at, &err), MOA_OK);
                if (round == 0 && w->bytes > 0) assert_int_equal(w->read(w, 1, w->bytes, bytes, &err), MOA_E_INVALID);
                if (round == 1 && w->bytes > 0) memcpy(bytes, w->data, w->bytes);
                if (w->bytes > 0) assert_memory_equal(bytes, to[i]->data, w->bytes);
                free(bytes);
            }
            assert_int_equal(moa_model_read(lazy, NULL, NULL, &err), MOA_OK); /* the second time there is nothing to do */
        }
        assert_int_equal((uintptr_t)lazy->layers[0].up.data % 64, 0);
        moa_model_close(&all);
        moa_model_close(&lazy);
    }
}

/* --- loading is watched -------------------------------------------------------------------------------------------------------- */

static void test_progress_and_cancel(void **state) {
    (void)state;
    watcher all = {0}, some = {.stop_at = 3};
    moa_model *m = NULL;
    moa_err err = {0};
    assert_int_equal(moa_model_open(&m, DATA "tiny_llama.gguf", false, watch, &all, &err), MOA_OK);
    assert_true(all.last == all.total && all.total == m->weight_bytes && all.n_calls >= 20);
    moa_model_close(&m);
    assert_int_equal(moa_model_open(&m, DATA "tiny_llama.gguf", false, watch, &some, &err), MOA_E_CANCELLED);
    assert_null(m);
    assert_int_equal(some.n_calls, 3);
    some = (watcher){.stop_at = 3};
    assert_int_equal(moa_model_open_lazy(&m, DATA "tiny_llama.gguf", &err), MOA_OK);
    assert_int_equal(moa_model_read(m, watch, &some, &err), MOA_E_CANCELLED);
    assert_int_equal(some.n_calls, 3);
    moa_model_close(&m);
}

/* --- files that are none, or change under us --------------------------------------------------------------------------------------- */

static void test_not_files(void **state) {
    (void)state;
    moa_gguf *g = NULL;
    moa_err err = {0};
    char folder[] = "/tmp/moa_open_XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/fifo", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(moa_gguf_open(&g, path, &err), MOA_E_INVALID); /* and does not wait for a writer */
    assert_int_equal(moa_gguf_open(&g, folder, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_open(&g, "/dev/zero", &err), MOA_E_INVALID);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(moa_gguf_open(&g, path, &err), MOA_E_IO);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(rmdir(folder), 0);
    moa_gguf_close(&g);
}

static void test_file_cut_while_open(void **state) {
    (void)state;
    moa_buf b = {0};
    moa_gguf *g = NULL;
    moa_err err = {0};
    char path[] = "/tmp/moa_cut_XXXXXX", data[64];
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(moa_file_read(DATA "tiny_llama.gguf", 1 << 20, &b, NULL), MOA_OK);
    assert_int_equal(write(fd, b.data, b.size), b.size);
    assert_int_equal(moa_gguf_open(&g, path, &err), MOA_OK);
    const size_t last = moa_gguf_n_tensors(g) - 1;
    assert_int_equal(moa_gguf_read(g, last, 0, sizeof data, data, &err), MOA_OK);
    assert_int_equal(ftruncate(fd, 20000), 0);
    assert_int_equal(moa_gguf_read(g, last, 0, sizeof data, data, &err), MOA_E_IO);
    assert_non_null(strstr(err.text, "became shorter"));
    assert_true(moa_gguf_has(g, "llama.block_count")); /* the header is ours */
    moa_gguf_close(&g);
    close(fd);
    (void)unlink(path);
    moa_buf_free(&b);
}

/* --- names -------------------------------------------------------------------------------------------------------------------------- */

static void make_file(const char *folder, const char *below, const char *name) {
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, below);
    assert_int_equal(moa_dir_make(path, NULL), MOA_OK);
    (void)snprintf(path, sizeof path, "%s/%s/%s", folder, below, name);
    assert_int_equal(moa_file_save(path, "x", 1, 0600, 0, NULL), MOA_OK);
}

static void expect_found(const char *name, const char *folder, const char *rest) {
    char found[1024] = "", want[512];
    moa_err err = {0};
    (void)snprintf(want, sizeof want, "%s/%s", folder, rest);
    if (moa_model_find(name, found, sizeof found, &err) != MOA_OK) fail_msg("%s: %s", name, err.text);
    assert_string_equal(found, want);
}

static void test_find(void **state) {
    (void)state;
    char folder[] = "/tmp/moa_find_XXXXXX", mine[64], text[1024], command[64];
    moa_err err = {0};
    assert_non_null(mkdtemp(folder));
    (void)snprintf(mine, sizeof mine, "%s/mine", folder);
    assert_int_equal(setenv("HOME", folder, 1), 0);
    assert_int_equal(setenv("MOASCOPE_MODELS", mine, 1), 0);
    static const char *const unset[] = {"XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE",
                                        "LLAMA_CACHE"};
    for (size_t i = 0; i < sizeof unset / sizeof *unset; i++)
        (void)unsetenv(unset[i]);
    make_file(folder, "mine", "Alpha-Q4.gguf");
    make_file(folder, "models", "Alpha-Q4.gguf");
    make_file(folder, "models/deep", "beta-1B-Q8_0.GGUF");
    make_file(folder, "models", "alpha.txt");
    make_file(folder, ".cache/moascope/models", "gamma-7B.gguf");
    make_file(folder, ".cache/huggingface/hub/models--a--b/snapshots/0123", "delta-70B.gguf");
    make_file(folder, ".lmstudio/models/pub/mod", "epsilon-70B.gguf");
    expect_found("Alpha-Q4", mine, "Alpha-Q4.gguf"); /* the first folder wins */
    expect_found("Alpha-Q4.gguf", mine, "Alpha-Q4.gguf");
    expect_found("beta-1B-Q8_0", folder, "models/deep/beta-1B-Q8_0.GGUF");
    expect_found("BETA", folder, "models/deep/beta-1B-Q8_0.GGUF");
    expect_found("gamma", folder, ".cache/moascope/models/gamma-7B.gguf");
    expect_found("delta", folder, ".cache/huggingface/hub/models--a--b/snapshots/0123/delta-70B.gguf");
    expect_found("epsilon", folder, ".lmstudio/models/pub/mod/epsilon-70B.gguf");
    assert_int_equal(moa_model_find("70b", text, sizeof text, &err), MOA_E_USAGE);
    assert_non_null(strstr(err.text, "delta-70B.gguf, epsilon-70B.gguf"));
    assert_int_equal(moa_model_find("nothing", text, sizeof text, &err), MOA_E_IO);
    assert_int_equal(moa_model_find("", text, sizeof text, &err), MOA_E_USAGE);
    assert_int_equal(moa_model_find("/no/such/file", text, sizeof text, &err), MOA_E_IO);
    assert_int_equal(moa_model_find(folder, text, sizeof text, &err), MOA_E_UNSUPPORTED);
    assert_int_equal(moa_model_find("gamma", text, 10, &err), MOA_E_INVALID);
    /* a snapshot links to a blob: one file, one candidate; a circle of links ends */
    char from[512], to[512];
    (void)snprintf(from, sizeof from, "%s/.cache/huggingface/hub/models--a--b/snapshots/0123/delta-70B.gguf",
                   folder);
    (void)snprintf(to, sizeof to, "%s/models/delta-link.gguf", folder);
    assert_int_equal(symlink(from, to), 0);
    (void)snprintf(to, sizeof to, "%s/models/circle", folder);
    assert_int_equal(symlink(".", to), 0);
    expect_found("delta", folder, "models/circle/circle/circle/delta-link.gguf");
    (void)snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

/* --- time: judging a header takes n log n, whatever the names are -------------------------------------------------------------------- */

static double seconds_for(size_t n_tensors) {
    moa_buf b = {0};
    const uint32_t version = 3, one = 1, f32 = 0;
    const uint64_t n = n_tensors, zero = 0, dim = 8;
    moa_buf_append(&b, "GGUF", 4);
    moa_buf_append(&b, &version, 4);
    moa_buf_append(&b, &n, 8);
    moa_buf_append(&b, &zero, 8);
    for (uint64_t i = 0; i < n; i++) {
        char name[64];
        const uint64_t size = (uint64_t)snprintf(name, sizeof name, "the.same.start.for.everyone.%08llu",
                                                 (unsigned long long)(i * 7919 % n)),
                       offset = i * 32;
        moa_buf_append(&b, &size, 8);
        moa_buf_append(&b, name, size);
        moa_buf_append(&b, &one, 4);
        moa_buf_append(&b, &dim, 8);
        moa_buf_append(&b, &f32, 4);
        moa_buf_append(&b, &offset, 8);
    }
    (void)moa_buf_extend(&b, (size_t)n * 32 + 32);
    assert_true(moa_buf_ok(&b));
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        struct timespec from, to;
        moa_gguf *g = NULL;
        moa_err err = {0};
        (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
        if (moa_gguf_open_memory(&g, b.data, b.size, &err) != MOA_OK) fail_msg("%s", err.text);
        (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
        moa_gguf_close(&g);
        const double t = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
        if (t < best) best = t;
    }
    moa_buf_free(&b);
    return best;
}

/* No clock decides: a quadratic search over these names (8e10 comparisons) would run into the test's own time limit. */
static void test_many_alike_names_are_judged(void **state) {
    (void)state;
    /* not multiples of 7919: all names differ */
    const double a = seconds_for(25001), b = seconds_for(400003);
    print_message("25001 tensors %.1f ms, 400003 tensors %.1f ms\n", a * 1e3, b * 1e3);
}

/* --- getters --------------------------------------------------------------------------------------------------------------------------- */

static void test_getters(void **state) {
    (void)state;
    moa_gguf *g = NULL;
    moa_err err = {0};
    assert_int_equal(moa_gguf_open(&g, DATA "tiny_llama.gguf", &err), MOA_OK);
    int64_t integer = -7;
    double real = -7;
    bool truth = true;
    moa_str text = {0}, *strings = NULL;
    int32_t *i32s = NULL;
    float *f32s = NULL;
    size_t n = 0;
    assert_int_equal(moa_gguf_get_int(g, "llama.block_count", 1, 10, &integer, &err), MOA_OK);
    assert_int_equal(integer, 2);
    assert_int_equal(moa_gguf_get_int(g, "llama.block_count", 3, 10, &integer, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_int(g, "no.such", 3, 10, &integer, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_int(g, "llama.rope.freq_base", 0, 100000, &integer, &err), MOA_E_INVALID);
    assert_int_equal(integer, 2);
    assert_int_equal(moa_gguf_get_float(g, "llama.rope.freq_base", 0, 1e9, &real, &err), MOA_OK);
    assert_true(real == 10000);
    assert_int_equal(moa_gguf_get_float(g, "llama.block_count", 0, 1e9, &real, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &truth, &err), MOA_OK);
    assert_false(truth);
    assert_int_equal(moa_gguf_get_bool(g, "llama.block_count", &truth, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_str(g, "general.architecture", 5, &text, &err), MOA_OK);
    assert_memory_equal(text.data, "llama", 5);
    assert_int_equal(moa_gguf_get_str(g, "general.architecture", 4, &text, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_str(g, "tokenizer.ggml.tokens", 4, &text, &err), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_strings(g, "tokenizer.ggml.tokens", &strings, &n, &err), MOA_OK);
    assert_int_equal(n, 276);
    assert_memory_equal(strings[1].data, "<|im_start|>", strings[1].size);
    assert_int_equal(moa_gguf_get_i32s(g, "tokenizer.ggml.token_type", &i32s, &n, &err), MOA_OK);
    assert_true(n == 276 && i32s[0] == 3 && i32s[3] == 1 && i32s[275] == 5);
    assert_int_equal(moa_gguf_get_f32s(g, "tokenizer.ggml.token_type", &f32s, &n, &err), MOA_E_INVALID);
    assert_non_null(strstr(err.text, "an array of I32, expected an array of F32"));
    free(strings);
    free(i32s);
    moa_gguf_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_llama),
        cmocka_unit_test(test_tiny_qwen2),
        cmocka_unit_test(test_rope_scaling_and_factors),
        cmocka_unit_test(test_every_type_loads),
        cmocka_unit_test(test_header_only), cmocka_unit_test(test_lazy),
        cmocka_unit_test(test_progress_and_cancel),
        cmocka_unit_test(test_not_files),
        cmocka_unit_test(test_file_cut_while_open),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_many_alike_names_are_judged),
        cmocka_unit_test(test_getters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
