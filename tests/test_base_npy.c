/* core/base/npy: files NumPy reads, the same bytes each time, nothing half-written; and reading of files that lie */
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

#include "core/base/file.h"
#include "core/base/npy.h"

static char folder[] = "/tmp/moa_npy_XXXXXX";
static char path[128];

static int set_up(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    (void)snprintf(path, sizeof path, "%s/a.npz", folder);
    return 0;
}

static int tear_down(void **state) { /* fails when a test left a file behind */
    (void)state;
    (void)unlink(path);
    return rmdir(folder);
}

static const float mass[] = {1, 2, 3, 4, 5, 6};
static const moa_npy_shape mass_shape = {MOA_NPY_F32, 2, {2, 3}};

static void write_npz(void) {
    static const int32_t span[] = {128, 192};
    static const moa_npy_shape span_shape = {MOA_NPY_I32, 1, {2}};
    moa_npy_writer *w = NULL;
    moa_err err = {0};
    assert_int_equal(moa_npy_open(&w, path, NULL, &err), MOA_OK);
    assert_int_equal(moa_npz_begin(w, "mass", &mass_shape, &err), MOA_OK);
    assert_int_equal(moa_npy_append(w, mass, 8, &err), MOA_OK);
    assert_int_equal(moa_npy_append(w, mass + 2, 16, &err), MOA_OK);
    assert_int_equal(moa_npz_add(w, "span", &span_shape, span, &err), MOA_OK);
    assert_int_equal(moa_npz_text(w, "README", "units", &err), MOA_OK);
    assert_int_equal(moa_npz_text(w, "empty", "", &err), MOA_OK);
    assert_int_equal(access(path, F_OK), -1); /* not there before the commit */
    assert_int_equal(moa_npy_commit(&w, &err), MOA_OK);
    assert_null(w);
}

static void read_file(const char *name, moa_buf *out) {
    moa_err err = {0};
    assert_int_equal(moa_file_read(name, 1 << 20, out, &err), MOA_OK);
}

static void test_npz_there_and_back(void **state) {
    (void)state;
    static const char *const only_span[] = {"span", NULL};
    moa_buf one = {0}, two = {0};
    moa_npz z;
    moa_err err = {0};
    write_npz();
    read_file(path, &one);
    assert_int_equal(unlink(path), 0);
    write_npz();
    read_file(path, &two);
    assert_int_equal(one.size, two.size);
    assert_memory_equal(one.data, two.data, one.size); /* no clock, no temporary name in it */
    assert_int_equal(moa_npz_read(&z, path, NULL, 1 << 20, &err), MOA_OK);
    assert_int_equal(z.n, 4);
    const moa_npy_array *a = moa_npz_find(&z, "mass"), *readme = moa_npz_find(&z, "README");
    assert_non_null(a);
    assert_int_equal(a->shape.n_dim, 2);
    assert_int_equal(a->shape.shape[1], 3);
    assert_memory_equal(a->data, mass, sizeof mass);
    assert_string_equal(readme->data, "units");
    assert_string_equal(moa_npz_find(&z, "empty")->data, "");
    assert_null(moa_npz_find(&z, "none"));
    moa_npz_free(&z);
    assert_int_equal(moa_npz_read(&z, path, only_span, 8, &err), MOA_OK);
    assert_int_equal(z.n, 1);
    moa_npz_free(&z);
    assert_int_equal(moa_npz_read(&z, path, only_span, 7, &err), MOA_E_INVALID); /* the limit */
    moa_buf_free(&one);
    moa_buf_free(&two);
}

/* every byte of an archive damaged in turn: read as it was (a byte nobody looks at) or refused; never something else, never a crash */
static void test_damage(void **state) {
    (void)state;
    moa_buf file = {0};
    int refused = 0;
    moa_err err = {0};
    (void)unlink(path);
    write_npz();
    read_file(path, &file);
    for (size_t at = 0; at < file.size; at++) {
        moa_npz z;
        file.data[at] ^= 0x41;
        assert_int_equal(moa_file_save(path, file.data, file.size, 0600, 0, &err), MOA_OK);
        if (moa_npz_read(&z, path, NULL, 1 << 20, &err) != MOA_OK)
            refused++;
        else if (moa_npz_find(&z, "mass"))
            assert_memory_equal(moa_npz_find(&z, "mass")->data, mass, sizeof mass);
        moa_npz_free(&z);
        file.data[at] ^= 0x41;
    }
    assert_true(refused > 400);
    for (size_t n = 0; n < file.size; n += 13) {
        moa_npz z;
        assert_int_equal(moa_file_save(path, file.data, n, 0600, 0, &err), MOA_OK);
        assert_int_not_equal(moa_npz_read(&z, path, NULL, 1 << 20, &err), MOA_OK);
    }
    moa_buf_free(&file);
}

static void test_npy(void **state) {
    (void)state;
    moa_npy_writer *w = NULL;
    moa_npz z;
    moa_buf file = {0};
    moa_err err = {0};
    (void)unlink(path);
    assert_int_equal(moa_npy_open(&w, path, &mass_shape, &err), MOA_OK);
    assert_int_equal(moa_npy_append(w, mass, sizeof mass, &err), MOA_OK);
    assert_int_equal(moa_npy_append(w, mass, 4, &err), MOA_E_FAILED); /* too many */
    assert_int_equal(moa_npy_commit(&w, &err), MOA_OK);
    read_file(path, &file);
    static const char header[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    assert_int_equal((file.size - sizeof mass) % 64, 0);
    assert_memory_equal(file.data + 10, header, sizeof header - 1);
    assert_int_equal(moa_npz_read(&z, path, NULL, 1 << 20, &err), MOA_OK);
    assert_memory_equal(z.arrays[0].data, mass, sizeof mass);
    moa_npz_free(&z);
    moa_buf_free(&file);
}

typedef struct watched {
    int n_left; /* looks until it is stopped */
    uint64_t done, total;
} watched;
static bool look(void *user, uint64_t done, uint64_t total) {
    watched *w = user;
    assert_true(done > w->done);
    w->done = done, w->total = total;
    return w->n_left-- > 0;
}

/* a reader that watches sees all of it go by, and may stop at any look; nothing is left then */
static void test_watched(void **state) {
    (void)state;
    moa_err err = {0};
    moa_npz z;
    watched w = {1000, 0, 0};
    const moa_npz_watch watch = {look, &w};
    (void)unlink(path);
    write_npz();
    assert_int_equal(moa_npz_read_watched(&z, path, NULL, 1 << 20, &watch, &err), MOA_OK);
    const int n_look = 1000 - w.n_left;
    assert_true(n_look > 4 && w.done == w.total && w.total > sizeof mass);
    moa_npz_free(&z);
    for (int n = 0; n < n_look; n++) {
        w = (watched){n, 0, 0};
        assert_int_equal(moa_npz_read_watched(&z, path, NULL, 1 << 20, &watch, &err), MOA_E_CANCELLED);
        assert_int_equal(z.n, 0);
        assert_non_null(strstr(err.text, "interrupted"));
    }
}

static void test_unfinished(void **state) {
    (void)state;
    moa_npy_writer *w = NULL;
    moa_err err = {0};
    moa_buf before = {0}, after = {0};
    (void)unlink(path);
    write_npz();
    read_file(path, &before);
    assert_int_equal(moa_npy_open(&w, path, &mass_shape, &err), MOA_OK);
    assert_int_equal(moa_npy_append(w, mass, 4, &err), MOA_OK);
    assert_int_equal(moa_npy_commit(&w, &err), MOA_E_FAILED); /* 20 bytes are lacking */
    assert_int_equal(moa_npy_open(&w, path, NULL, &err), MOA_OK);
    assert_int_equal(moa_npz_begin(w, "mass", &mass_shape, &err), MOA_OK);
    moa_npy_close(&w);
    moa_npy_close(&w);
    read_file(path, &after);
    assert_int_equal(before.size, after.size);
    assert_memory_equal(before.data, after.data,
                        before.size); /* the old file is as it was; tear_down sees that no other is left */
    assert_int_equal(moa_npy_open(&w, "/nowhere/at/all.npy", &mass_shape, &err), MOA_E_IO);
    assert_null(w);
    moa_buf_free(&before);
    moa_buf_free(&after);
}

static void test_lying_headers(void **state) {
    (void)state;
    static const char *const headers[] = {
        "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551615, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,6), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': '|S', 'fortran_order': False, 'shape': (), }",
        "{'descr': '|S999999999999', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<f4', 'shape': (2, 3), }",
        "{'descr': '<f4', 'fortran_order': False, }",
        "",
    };
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        moa_buf b = {0};
        moa_npz z;
        moa_err err = {0};
        moa_buf_append(&b, "\x93NUMPY\x01\0v\0", 10);
        moa_buf_printf(&b, "%-117s\n", headers[i]);
        moa_buf_append(&b, mass, sizeof mass);
        assert_int_equal(moa_file_save(path, b.data, b.size, 0600, 0, &err), MOA_OK);
        assert_int_equal(moa_status_exit_code(moa_npz_read(&z, path, NULL, 1 << 20, &err)), 3);
        assert_int_equal(z.n, 0);
        assert_true(strlen(err.text) > 10);
        moa_buf_free(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_npz_there_and_back),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_npy), cmocka_unit_test(test_watched),
        cmocka_unit_test(test_unfinished),
        cmocka_unit_test(test_lying_headers),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
