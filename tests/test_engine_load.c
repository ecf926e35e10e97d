/* Loading: weights in memory, in their file, and brought from there are the same weights, on any device (MOA_TEST_DEVICE); a file that
 * becomes shorter and a reader who stops it leave nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/buf.h"
#include "core/base/file.h"
#include "core/engine/engine.h"
#include "core/model/model.h"
#include "load_watch.h"

#define DATA MOA_SOURCE_DIR "/tests/data/"

static moa_backend *device(void) {
    const char *name = getenv("MOA_TEST_DEVICE");
    char why[256];
    moa_backend *b = NULL;
    moa_err err = {0};
    if (moa_backend_open(&b, name ? name : "cpu", NULL, why, sizeof why, &err) != MOA_OK) fail_msg("%s", err.text);
    return b;
}

/* (n_vocab) logits behind a few tokens; the caller's */
static float *logits_of(const moa_model *m) {
    static const int32_t ids[] = {5, 17, 40, 9, 5};
    moa_engine *e = NULL;
    moa_seq *s = NULL;
    moa_err err = {0};
    float *logits = malloc((size_t)m->shape.n_vocab * sizeof *logits);
    assert_non_null(logits);
    if (moa_engine_open(&e, m, device(), NULL, NULL, NULL, &err) != MOA_OK || moa_seq_open(&s, e, &err) != MOA_OK ||
        moa_seq_plan(s, NULL, NULL, 16, 0, NULL, 0, &err) != MOA_OK ||
        moa_seq_forward(s, &(moa_forward){.ids = ids, .n = 5, .logits = logits}, &err) != MOA_OK)
        fail_msg("%s", err.text);
    moa_seq_close(&s);
    moa_engine_close(&e);
    return logits;
}

static void compare_ways(const char *path) {
    float *logits[3];
    size_t bytes = 0;
    for (int way = 0; way < 3; way++) {
        moa_model *m = NULL;
        moa_err err = {0};
        moa_status s = way == 0 ? moa_model_open(&m, path, false, NULL, NULL, &err) : moa_model_open_lazy(&m, path, &err);
        if (s == MOA_OK && way == 2) s = moa_model_read(m, NULL, NULL, &err);
        if (s != MOA_OK) fail_msg("%s: %s", path, err.text);
        bytes = (size_t)m->shape.n_vocab * sizeof(float);
        logits[way] = logits_of(m);
        moa_model_close(&m);
    }
    if (memcmp(logits[0], logits[1], bytes) != 0 || memcmp(logits[0], logits[2], bytes) != 0)
        fail_msg("%s: logits of weights in memory, in the file and brought from it differ", path);
    for (int way = 0; way < 3; way++)
        free(logits[way]);
}

static void test_tiny(void **state) {
    (void)state;
    compare_ways(DATA "tiny_llama.gguf");
    compare_ways(DATA "tiny_qwen2.gguf");
    compare_ways(DATA "tiny_quants.gguf");
}

/* tensors of many pieces, and more of them than there is room for at once */
static void test_real(void **state) {
    char path[512];
    moa_err err = {0};
    (void)state;
    if (moa_model_find("SmolLM2-135M-Instruct-Q4_1", path, sizeof path, &err) != MOA_OK) {
        print_message("SmolLM2 is not there: %s\n", err.text);
        skip();
    }
    compare_ways(path);
}

static void test_cut(void **state) {
    (void)state;
    for (int from = 0; from < 3; from++) { /* cut behind the header, in the middle of the weights, in the last one */
        moa_buf b = {0};
        moa_model *m = NULL;
        moa_engine *e = NULL;
        moa_err err = {0};
        char path[] = "/tmp/moa_load_XXXXXX";
        const int fd = mkstemp(path);
        assert_true(fd >= 0);
        assert_int_equal(moa_file_read(DATA "tiny_llama.gguf", 1 << 20, &b, NULL), MOA_OK);
        assert_int_equal(write(fd, b.data, b.size), b.size);
        if (moa_model_open_lazy(&m, path, &err) != MOA_OK) fail_msg("%s", err.text);
        const size_t weights = (size_t)m->weight_bytes;
        assert_int_equal(ftruncate(fd, (off_t)(from == 0 ? b.size - weights : from == 1 ? b.size - weights / 2 : b.size - 40)), 0);
        assert_int_equal(moa_engine_open(&e, m, device(), NULL, NULL, NULL, &err), MOA_E_IO);
        assert_non_null(strstr(err.text, "became shorter"));
        assert_null(e);
        moa_model_close(&m);
        close(fd);
        (void)unlink(path);
        moa_buf_free(&b);
    }
}

static void test_progress_and_cancel(void **state) {
    (void)state;
    for (int stop_at = 0; stop_at < 8; stop_at++) {
        watcher w = {.stop_at = stop_at};
        moa_model *m = NULL;
        moa_engine *e = NULL;
        moa_err err = {0};
        if (moa_model_open_lazy(&m, DATA "tiny_llama.gguf", &err) != MOA_OK) fail_msg("%s", err.text);
        const moa_status s = moa_engine_open(&e, m, device(), NULL, watch, &w, &err);
        assert_int_equal(s, stop_at ? MOA_E_CANCELLED : MOA_OK);
        assert_true(stop_at ? w.n_calls == stop_at : w.last == m->weight_bytes && w.total == m->weight_bytes);
        moa_engine_close(&e);
        moa_model_close(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiny), cmocka_unit_test(test_real), cmocka_unit_test(test_cut),
                                       cmocka_unit_test(test_progress_and_cancel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
