/* core/base: status, sizes, buffers, files, paths */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/buf.h"
#include "core/base/file.h"
#include "core/base/path.h"
#include "core/base/size.h"
#include "core/base/status.h"
#include "core/engine/spans.h"

static void test_fail_escapes_control_bytes(void **state) {
    (void)state;
    moa_err err = {0};
    assert_int_equal(moa_fail(&err, MOA_E_INVALID, "tensor %s", "a\x1b[31m\n"), MOA_E_INVALID);
    assert_string_equal(err.text, "tensor a?[31m?");
    assert_int_equal(moa_status_exit_code(MOA_E_INVALID), 3);
    assert_int_equal(moa_status_exit_code(MOA_E_CANCELLED), 130);
}

static void test_sizes_never_wrap(void **state) {
    (void)state;
    size_t r;
    assert_false(moa_size_add(SIZE_MAX, 1, &r));
    assert_false(moa_size_mul(SIZE_MAX / 2, 3, &r));
    assert_false(moa_size_pad(SIZE_MAX - 3, 32, &r));
    assert_false(moa_size_pad(5, 0, &r));
    assert_false(moa_size_pad(5, 24, &r));
    assert_true(moa_size_pad(33, 32, &r));
    assert_int_equal(r, 64);
    assert_true(moa_size_inside(10, 5, 15));
    assert_false(moa_size_inside(10, 6, 15));
    assert_false(moa_size_inside(16, SIZE_MAX, 15));
}

static void test_save_keeps_old_file_on_failure(void **state) {
    (void)state;
    char folder[] = "/tmp/moa_base_XXXXXX", path[128], backup[160];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/plan.json", folder);
    (void)snprintf(backup, sizeof backup, "%s~", path);
    moa_err err = {0};
    assert_int_equal(moa_file_save(path, "one", 3, 0600, 1, &err), MOA_OK);
    assert_int_equal(moa_file_save(path, "two!", 4, 0600, 1, &err), MOA_OK);
    moa_buf b = {0};
    assert_int_equal(moa_file_read(path, 100, &b, &err), MOA_OK);
    assert_string_equal(b.data, "two!");
    moa_buf_clear(&b);
    assert_int_equal(moa_file_read(backup, 100, &b, &err), MOA_OK);
    assert_string_equal(b.data, "one");
    moa_buf_clear(&b);
    assert_int_equal(moa_file_read(path, 3, &b, &err), MOA_E_INVALID);
    assert_int_equal(moa_file_read(folder, 100, &b, &err), MOA_E_INVALID);
    assert_int_equal(moa_file_read("/dev/zero", 100, &b, &err), MOA_E_INVALID);
    moa_buf_free(&b);
    (void)unlink(path);
    (void)unlink(backup);
    (void)snprintf(path, sizeof path, "%s/none/plan.json", folder);
    assert_int_equal(moa_file_save(path, "x", 1, 0600, 0, &err), MOA_E_IO);
    assert_int_equal(rmdir(folder), 0); /* no temporary was left */
}

static void test_names(void **state) {
    (void)state;
    assert_true(moa_path_name_ok("llama-3.json"));
    assert_false(moa_path_name_ok("../etc"));
    assert_false(moa_path_name_ok(".hidden"));
    assert_false(moa_path_name_ok("a/b"));
    assert_false(moa_path_name_ok(""));
}

/* The worked spans of the method, and the page formula against the definition of keep(). */
static void test_spans(void **state) {
    (void)state;
    static const struct {
        double alpha, beta;
        int32_t span[3];
    } rows[] = {
        {0, .125, {640, 1152, 2176}},         {-1024, 1, {4096, 8192, 16384}}, {1024, 0, {1024, 1024, 1024}},
        {0, .875, {4480, 8064, 15232}},       {2048, .5, {4608, 6656, 10752}}, {8192, 0, {5120, 8192, 8192}},
    };
    static const int32_t n[] = {5120, 9216, 17408};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (int c = 0; c < 3; c++)
            assert_int_equal(moa_span((moa_rule){rows[r].alpha, rows[r].beta}, n[c]), rows[r].span[c]);
    assert_int_equal(moa_span((moa_rule){0, .125}, 1536), 192);
    assert_int_equal(moa_span((moa_rule){-1024, 1}, 1536), 512);
    assert_int_equal(moa_span((moa_rule){1e300, 0}, 100), 128);
    assert_int_equal(moa_span((moa_rule){-1e300, 1e300}, 100), 128);
    for (int32_t span = 128; span <= 640; span += 64)
        for (int32_t past = 0; past < 900; past += 7) {
            int32_t pages = 0;
            for (int32_t p = 0; p * MOA_PAGE_TOK < past; p++) pages += moa_keep(span, past, p);
            assert_int_equal(pages, moa_n_pages(span, past));
            if (past == 0) continue;
            int32_t seen = 0;
            for (int32_t j = 0; j < past; j++) {
                const bool sees = moa_sees(span, past - 1, j);
                seen += sees;
                /* a key the next query sees is never on a freed page */
                if (moa_sees(span, past, j)) assert_true(moa_keep(span, past, j / MOA_PAGE_TOK));
            }
            assert_int_equal(seen, moa_n_seen(span, past - 1));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail_escapes_control_bytes), cmocka_unit_test(test_sizes_never_wrap),
        cmocka_unit_test(test_save_keeps_old_file_on_failure), cmocka_unit_test(test_names),
        cmocka_unit_test(test_spans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
