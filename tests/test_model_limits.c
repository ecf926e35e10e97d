/* The limits of gguf.h, each at the limit accepted and one beyond refused; every value type read back; and, with this file's own
 * memory and pread under core/model/gguf.c, model.c and core/base/buf.c: each allocation and each read failed once (no crash, no leak under ASan,
 * E_MEMORY or E_IO), interrupted and short reads, and the most memory that judging a header takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/buf.h"
#include "core/base/file.h"
#include "core/base/size.h"

/* --- memory and reads that can be made to fail -------------------------------------------------------------------------- */

static struct {
    long n_alloc, fail_alloc; /* ordinal that fails, 0: none */
    long n_read, fail_read;
    int read_error;       /* errno of the failing read; 0: the file has ended */
    size_t most_per_read; /* short counts; 0: whole */
    size_t now, peak;     /* bytes */
} fault;

static bool alloc_fails(void) {
    return ++fault.n_alloc == fault.fail_alloc;
}

static void *counted(void *p) {
    if (p) fault.now += malloc_usable_size(p);
    if (fault.now > fault.peak) fault.peak = fault.now;
    return p;
}

static void *fault_malloc(size_t n) {
    return alloc_fails() ? NULL : counted(malloc(n));
}
static void *fault_calloc(size_t n, size_t each) {
    return alloc_fails() ? NULL : counted(calloc(n, each));
}
static void *fault_aligned(size_t align, size_t n) {
    return alloc_fails() ? NULL : counted(aligned_alloc(align, n));
}
static char *fault_strdup(const char *s) {
    return alloc_fails() ? NULL : counted(strdup(s));
}

static void fault_free(void *p) {
    if (p) fault.now -= malloc_usable_size(p);
    free(p);
}

static void *fault_realloc(void *p, size_t n) {
    if (alloc_fails()) return NULL;
    const size_t before = p ? malloc_usable_size(p) : 0;
    void *q = realloc(p, n);
    if (q) fault.now -= before;
    return counted(q);
}

static ssize_t fault_pread(int fd, void *dst, size_t n, off_t at) {
    if (++fault.n_read == fault.fail_read) {
        errno = fault.read_error;
        return fault.read_error ? -1 : 0;
    }
    return pread(fd, dst, fault.most_per_read && n > fault.most_per_read ? fault.most_per_read : n, at);
}

#define malloc fault_malloc
#define calloc fault_calloc
#define realloc fault_realloc
#define aligned_alloc fault_aligned
#define strdup fault_strdup
#define free fault_free
#define pread fault_pread
#include "core/base/buf.c"
#include "core/model/gguf.c"
#include "core/model/model.c"
#undef malloc
#undef calloc
#undef realloc
#undef aligned_alloc
#undef strdup
#undef free
#undef pread

#define TINY MOA_SOURCE_DIR "/tests/data/tiny_llama.gguf"

static void reset(void) {
    memset(&fault, 0, sizeof fault);
}

static moa_status open_once(const char *path, moa_err *err) {
    moa_model *m = NULL;
    *err = (moa_err){0};
    const moa_status s = moa_model_open(&m, path, false, NULL, NULL, err);
    assert_true((s == MOA_OK) == (m != NULL));
    moa_model_close(&m);
    return s;
}

static void test_every_allocation_fails_once(void **state) {
    (void)state;
    moa_err err;
    reset();
    assert_int_equal(open_once(TINY, &err), MOA_OK);
    const long n = fault.n_alloc;
    assert_true(n > 15);
    assert_int_equal(fault.now, 0); /* all given back */
    for (long i = 1; i <= n; i++) {
        reset();
        fault.fail_alloc = i;
        const moa_status s = open_once(TINY, &err);
        /* giving back what was read beyond the header may fail without harm */
        if (s != MOA_OK && (s != MOA_E_MEMORY || !strstr(err.text, "memory")))
            fail_msg("allocation %ld of %ld: status %d %s", i, n, s, err.text);
        if (s == MOA_OK) assert_true(fault.n_alloc >= n);
        assert_int_equal(fault.now, 0);
    }
}

static void test_every_read_fails_once(void **state) {
    (void)state;
    static const int errors[] = {EIO, 0};
    moa_err err;
    reset();
    assert_int_equal(open_once(TINY, &err), MOA_OK);
    const long n = fault.n_read;
    assert_true(n > 20);
    for (size_t e = 0; e < 2; e++)
        for (long i = 1; i <= n; i++) {
            reset();
            fault.fail_read = i;
            fault.read_error = errors[e];
            const moa_status s = open_once(TINY, &err);
            if (s != MOA_E_IO) fail_msg("read %ld of %ld: status %d %s", i, n, s, err.text);
            assert_non_null(strstr(err.text, errors[e] ? "failed" : "became shorter"));
            assert_int_equal(fault.now, 0);
        }
    reset(); /* an interrupted read is repeated, a short one continued */
    fault.fail_read = 2;
    fault.read_error = EINTR;
    fault.most_per_read = 777;
    assert_int_equal(open_once(TINY, &err), MOA_OK);
}

/* --- building headers -------------------------------------------------------------------------------------------------------- */

static void put(moa_buf *b, const void *bytes, size_t n) {
    moa_buf_append(b, bytes, n);
}
static void put_u32(moa_buf *b, uint32_t v) {
    put(b, &v, 4);
}
static void put_u64(moa_buf *b, uint64_t v) {
    put(b, &v, 8);
}

static void put_filled(moa_buf *b, char c, size_t n) {
    char *to = moa_buf_extend(b, n);
    assert_non_null(to);
    memset(to, c, n);
}

static void put_string(moa_buf *b, const char *s) {
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static moa_buf start(uint64_t n_tensors, uint64_t n_kv) {
    moa_buf b = {0};
    put(&b, "GGUF\3\0\0", 8);
    put_u64(&b, n_tensors);
    put_u64(&b, n_kv);
    return b;
}

static void put_tensor(moa_buf *b, const char *name, uint32_t n_dims, uint64_t first, uint64_t offset) {
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(b, i ? 1 : first);
    put_u32(b, MOA_F32);
    put_u64(b, offset);
}

/* frees b */
static void expect(moa_buf *b, bool accepted, const char *what) {
    moa_gguf *g = NULL;
    moa_err err = {0};
    assert_true(moa_buf_ok(b));
    const moa_status s = moa_gguf_open_memory(&g, b->data, b->size, &err);
    if ((s == MOA_OK) != accepted) fail_msg("%s: %s", what, s == MOA_OK ? "accepted" : err.text);
    moa_gguf_close(&g);
    moa_buf_free(b);
}

static void test_limits(void **state) {
    (void)state;
    char name[80];
    reset();
    for (int over = 0; over < 2; over++) {
        moa_buf b = start(0, 1); /* key */
        put_u64(&b, (uint64_t)MOA_GGUF_MAX_KEY + (uint64_t)over);
        put_filled(&b, 'k', (size_t)MOA_GGUF_MAX_KEY + (size_t)over);
        put_u32(&b, MOA_GGUF_U8);
        put_filled(&b, 0, 1);
        expect(&b, !over, "key");
        b = start(0, 1); /* string */
        put_string(&b, "k");
        put_u32(&b, MOA_GGUF_STRING);
        put_u64(&b, (uint64_t)MOA_GGUF_MAX_STRING + (uint64_t)over);
        put_filled(&b, 's', (size_t)MOA_GGUF_MAX_STRING + (size_t)over);
        expect(&b, !over, "string");
        b = start(0, 1); /* array */
        put_string(&b, "k");
        put_u32(&b, MOA_GGUF_ARRAY);
        put_u32(&b, MOA_GGUF_U8);
        put_u64(&b, (uint64_t)MOA_GGUF_MAX_ARRAY + (uint64_t)over);
        put_filled(&b, 1, (size_t)MOA_GGUF_MAX_ARRAY + (size_t)over);
        expect(&b, !over, "array");
        const uint64_t n_kv = (uint64_t)MOA_GGUF_MAX_KV + (uint64_t)over; /* entries */
        b = start(0, n_kv);
        for (uint64_t i = 0; i < n_kv; i++) {
            (void)snprintf(name, sizeof name, "k%" PRIu64, i);
            put_string(&b, name);
            put_u32(&b, MOA_GGUF_U8);
            put_filled(&b, 0, 1);
        }
        expect(&b, !over, "metadata entries");
        b = start(1, 0); /* tensor name */
        memset(name, 't', sizeof name);
        name[MOA_GGUF_MAX_NAME + over] = 0;
        put_tensor(&b, name, 1, 8, 0);
        put_filled(&b, 0, 128);
        expect(&b, !over, "tensor name");
        b = start(1, 0); /* dimensions */
        put_tensor(&b, "t", MOA_GGUF_MAX_DIMS + (uint32_t)over, 8, 0);
        put_filled(&b, 0, 128);
        expect(&b, !over, "dimensions");
        for (int high = 0; high < 2; high++) { /* alignment */
            const uint32_t align =
                high ? (uint32_t)MOA_GGUF_MAX_ALIGN << over : (uint32_t)MOA_GGUF_MIN_ALIGN >> over;
            b = start(1, 1);
            put_string(&b, "general.alignment");
            put_u32(&b, MOA_GGUF_U32);
            put_u32(&b, align);
            put_tensor(&b, "t", 1, 8, 0);
            put_filled(&b, 0, ((size_t)align << 1) + 64);
            expect(&b, !over, "alignment");
        }
        const uint64_t n = (uint64_t)MOA_GGUF_MAX_TENSORS + (uint64_t)over; /* tensors */
        b = start(n, 0);
        for (uint64_t i = 0; i < n; i++) {
            (void)snprintf(name, sizeof name, "%" PRIu64, i);
            put_tensor(&b, name, 1, 1, i * 32);
        }
        put_filled(&b, 0, (size_t)n * 32);
        expect(&b, !over, "tensors");
    }
}

/* a header of 400k tensors in a file: the buffer, two tables and the sorting; most 4 x header + 16 MiB */
static void test_memory_is_bounded(void **state) {
    (void)state;
    enum { N = 400000 };
    moa_buf b = start(N, 0);
    char name[32], path[] = "/tmp/moa_memory_XXXXXX";
    for (uint64_t i = 0; i < N; i++) {
        (void)snprintf(name, sizeof name, "%" PRIu64, i);
        put_tensor(&b, name, 1, 1, i * 32);
    }
    const size_t header = b.size;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b.data, b.size), b.size);
    assert_int_equal(ftruncate(fd, (off_t)(header + N * 32 + 32)), 0); /* the data is a hole */
    close(fd);
    moa_buf_free(&b);
    moa_gguf *g = NULL;
    moa_err err = {0};
    reset();
    if (moa_gguf_open(&g, path, &err) != MOA_OK) fail_msg("%s", err.text);
    print_message("header %.1f MB, most memory %.1f MB\n", (double)header / 1e6, (double)fault.peak / 1e6);
    assert_true(fault.peak <= 4 * header + (16 << 20));
    moa_gguf_close(&g);
    assert_int_equal(fault.now, 0);
    /* a liar: a small header that claims the most a large file would allow takes next to nothing */
    const int liar = open(path, O_WRONLY | O_TRUNC);
    assert_true(liar >= 0);
    b = start(MOA_GGUF_MAX_TENSORS, 0);
    assert_int_equal(write(liar, b.data, b.size), b.size);
    assert_int_equal(ftruncate(liar, (off_t)1 << 30), 0);
    close(liar);
    moa_buf_free(&b);
    reset();
    assert_int_equal(moa_gguf_open(&g, path, &err), MOA_E_INVALID);
    assert_true(fault.peak < (1 << 20));
    (void)unlink(path);
}

static void put_entry(moa_buf *b, const char *key, uint32_t type, const void *value, size_t bytes) {
    put_string(b, key);
    put_u32(b, type);
    put(b, value, bytes);
}

static void expect_int(const moa_gguf *g, const char *key, int64_t want) {
    int64_t got = 0;
    char text[32], wanted[32];
    if (moa_gguf_get_int(g, key, INT64_MIN, INT64_MAX, &got, NULL) != MOA_OK || got != want)
        fail_msg("%s: %lld, expected %lld", key, (long long)got, (long long)want);
    for (size_t i = 0; i < moa_gguf_n_kv(g); i++)
        if (moa_gguf_kv_at(g, i).key.size == strlen(key) &&
            memcmp(moa_gguf_kv_at(g, i).key.data, key, strlen(key)) == 0)
            moa_gguf_kv_text(g, i, text, sizeof text);
    (void)snprintf(wanted, sizeof wanted, "%lld", (long long)want);
    assert_string_equal(text, wanted);
}

static void test_every_value_type(void **state) {
    (void)state;
    const uint64_t big = UINT64_MAX;
    const int64_t least = INT64_MIN;
    const double pi = 3.25;
    const float third = 0.375f, nan = NAN;
    moa_buf b = start(0, 13);
    put_entry(&b, "u8", MOA_GGUF_U8, "\xff", 1);
    put_entry(&b, "i8", MOA_GGUF_I8, "\xff", 1);
    put_entry(&b, "u16", MOA_GGUF_U16, "\xfe\xff", 2);
    put_entry(&b, "i16", MOA_GGUF_I16, "\xfe\xff", 2);
    put_entry(&b, "u32", MOA_GGUF_U32, "\xfd\xff\xff\xff", 4);
    put_entry(&b, "i32", MOA_GGUF_I32, "\xfd\xff\xff\xff", 4);
    put_entry(&b, "u64", MOA_GGUF_U64, &big, 8);
    put_entry(&b, "i64", MOA_GGUF_I64, &least, 8);
    put_entry(&b, "f64", MOA_GGUF_F64, &pi, 8);
    put_entry(&b, "f32", MOA_GGUF_F32, &third, 4);
    put_entry(&b, "nan", MOA_GGUF_F32, &nan, 4);
    put_string(&b, "floats");
    put_u32(&b, MOA_GGUF_ARRAY), put_u32(&b, MOA_GGUF_F32), put_u64(&b, 2), put(&b, &third, 4),
        put(&b, &nan, 4);
    put_string(&b, "none");
    put_u32(&b, MOA_GGUF_ARRAY), put_u32(&b, MOA_GGUF_STRING), put_u64(&b, 0);
    moa_gguf *g = NULL;
    moa_err err = {0};
    reset();
    if (moa_gguf_open_memory(&g, b.data, b.size, &err) != MOA_OK) fail_msg("%s", err.text);
    expect_int(g, "u8", 255);
    expect_int(g, "i8", -1);
    expect_int(g, "u16", 65534);
    expect_int(g, "i16", -2);
    expect_int(g, "u32", 4294967293);
    expect_int(g, "i32", -3);
    expect_int(g, "i64", INT64_MIN);
    int64_t integer = 0;
    double real = 0;
    float *floats = NULL;
    moa_str *strings = (moa_str *)&integer;
    size_t n = 0;
    assert_int_equal(moa_gguf_get_int(g, "u64", 0, INT64_MAX, &integer, &err), MOA_E_INVALID);
    assert_non_null(strstr(err.text, "18446744073709551615"));
    assert_int_equal(moa_gguf_get_float(g, "f64", 0, 10, &real, NULL), MOA_OK);
    assert_true(real == 3.25);
    assert_int_equal(moa_gguf_get_float(g, "f32", 0, 10, &real, NULL), MOA_OK);
    assert_true(real == 0.375);
    assert_int_equal(moa_gguf_get_float(g, "nan", -1e300, 1e300, &real, NULL), MOA_E_INVALID);
    assert_int_equal(moa_gguf_get_f32s(g, "floats", &floats, &n, NULL), MOA_OK);
    assert_true(n == 2 && floats[0] == 0.375f && isnan(floats[1]));
    assert_int_equal(moa_gguf_get_strings(g, "none", &strings, &n, NULL), MOA_OK);
    assert_true(n == 0 && strings == NULL);
    assert_int_equal(moa_gguf_version(g), 3);
    fault_free(floats);
    moa_gguf_close(&g);
    assert_int_equal(fault.now, 0);
    moa_buf_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_fails_once),
        cmocka_unit_test(test_every_read_fails_once),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_memory_is_bounded),
        cmocka_unit_test(test_every_value_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
