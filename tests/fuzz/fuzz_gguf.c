/* A GGUF file from an enemy: header, every getter, tensor data, then the whole way to a model with its tokenizer.
 * Besides not crashing: what was accepted lies inside the file, and what was refused says why. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/gguf.h"
#include "core/model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int condition) {
    if (!condition) abort();
}

static void ask_key(const moa_gguf *g, size_t i) {
    const moa_gguf_kv kv = moa_gguf_kv_at(g, i);
    char key[256], text[128] = "";
    check(kv.key.size > 0 && kv.file_offset <= moa_gguf_file_bytes(g));
    moa_gguf_kv_text(g, i, text, sizeof text);
    if (kv.key.size >= sizeof key) return;
    memcpy(key, kv.key.data, kv.key.size);
    key[kv.key.size] = 0;
    check(moa_gguf_has(g, key));
    int64_t integer = 0;
    double real = 0;
    bool truth = false;
    moa_str string = {0}, *strings = NULL;
    int32_t *i32s = NULL;
    float *f32s = NULL;
    size_t n = 0;
    (void)moa_gguf_get_int(g, key, INT64_MIN, INT64_MAX, &integer, NULL);
    (void)moa_gguf_get_float(g, key, -1e30, 1e30, &real, NULL);
    (void)moa_gguf_get_bool(g, key, &truth, NULL);
    (void)moa_gguf_get_str(g, key, 1 << 20, &string, NULL);
    if (moa_gguf_get_strings(g, key, &strings, &n, NULL) == MOA_OK && n)
        check(strings[n - 1].data + strings[n - 1].size <= moa_gguf_header(g).data + moa_gguf_header(g).size);
    (void)moa_gguf_get_i32s(g, key, &i32s, &n, NULL);
    (void)moa_gguf_get_f32s(g, key, &f32s, &n, NULL);
    free(strings);
    free(i32s);
    free(f32s);
}

static void ask_tensor(const moa_gguf *g, size_t i) {
    const moa_gguf_tensor t = moa_gguf_tensor_at(g, i);
    char name[MOA_GGUF_MAX_NAME + 1], byte = 0;
    check(t.bytes > 0 && t.n_elem > 0 && t.file_offset + t.bytes <= moa_gguf_file_bytes(g));
    memcpy(name, t.name.data, t.name.size);
    name[t.name.size] = 0;
    check(moa_gguf_find_tensor(g, name) == i);
    check(moa_gguf_read(g, i, t.bytes - 1, 1, &byte, NULL) == MOA_OK);
    check(moa_gguf_read(g, i, t.bytes, 1, &byte, NULL) != MOA_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    moa_gguf *g = NULL;
    moa_model *m = NULL;
    moa_err err = {0};
    const moa_status s = moa_gguf_open_memory(&g, data, size, &err);
    check((s == MOA_OK) == (g != NULL) && (s == MOA_OK) == (err.text[0] == 0));
    if (s != MOA_OK) return 0;
    for (size_t i = 0; i < moa_gguf_n_kv(g); i++)
        ask_key(g, i);
    for (size_t i = 0; i < moa_gguf_n_tensors(g); i++)
        ask_tensor(g, i);
    moa_gguf_close(&g);
    const moa_status opened = moa_model_open_memory(&m, data, size, false, &err);
    check((opened == MOA_OK) == (m != NULL) && (opened == MOA_OK) == (err.text[0] == 0));
    if (m) check(moa_tokenizer_n_vocab(m->tokenizer) == (size_t)m->shape.n_vocab && m->layers[0].wq.data);
    moa_model_close(&m);
    return 0;
}
