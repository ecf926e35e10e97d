/* The demo model as people get it (scripts/fetch_model.py smollm2). Exit 77 where it has not been fetched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <unistd.h>

#include "core/base/path.h"
#include "core/model/model.h"

static char path[1024];

static void test_smollm2(void **state) {
    (void)state;
    moa_model *m = NULL;
    moa_err err = {0};
    if (moa_model_open(&m, path, false, NULL, NULL, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_true(m->shape.n_layer == 30 && m->shape.n_head == 9 && m->shape.n_head_kv == 3 &&
                m->shape.d_head == 64);
    assert_true(m->shape.d_model == 576 && m->shape.d_ff == 1536 && m->shape.n_vocab == 49152 &&
                m->shape.n_ctx == 8192);
    assert_true(m->tied && m->shape.rope_kind == MOA_ROPE_PAIRS && m->shape.rope_theta == 100000);
    assert_true(m->n_param == 134515008 && m->weight_bytes == 96576768);
    assert_string_equal(m->quant, "Q4_1");
    assert_int_equal(m->embed.type, MOA_Q8_0);
    for (int l = 0; l < m->shape.n_layer; l++) /* its heads fill d_model: nothing left over */
        assert_true(m->layers[l].wq.n_out == 576 && m->layers[l].wk.n_out == 192 && m->layers[l].down.data);
    moa_model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_smollm2)};
    if (moa_path_place(MOA_PLACE_CACHE, "models/SmolLM2-135M-Instruct-Q4_1.gguf", path, sizeof path, NULL) !=
            MOA_OK ||
        access(path, R_OK) != 0) {
        (void)printf("skipped: SmolLM2 is not in the cache; scripts/fetch_model.py smollm2 fetches it\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
