/* core/engine/wire: every message there and back, cut and damaged frames, streams in pieces */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/engine/wire.h"

/* --- random messages, made from the table as well -------------------------------------------------------------------- */

static uint64_t seed = 1;
static uint32_t rnd(void) { /* xorshift */
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)(seed >> 16);
}

static _Alignas(8) char noise[8 * 64]; /* what arrays point into; 64 elements at most */

#define FILL_u32 rnd()
#define FILL_i32 (int32_t) rnd()
#define FILL_u64 ((uint64_t)rnd() << 32 | rnd())
#define FILL_f32 (float)rnd() / 7.0f
#define FILL_f64 (double)rnd() / 7.0
#define FILL_str                                                                                             \
    { noise, rnd() % 65 }
#define FILL_u8s                                                                                             \
    { (const uint8_t *)noise, rnd() % 65 }
#define FILL_i32s                                                                                            \
    { (const int32_t *)noise, rnd() % 65 }
#define FILL_f32s                                                                                            \
    { (const float *)noise, rnd() % 65 }
#define FILL_f64s                                                                                            \
    { (const double *)noise, rnd() % 65 }

static moa_wire_msg random_msg(moa_wire_type type) {
    moa_wire_msg m = {.type = type, .job = rnd()};
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)rnd();
    switch (type) {
#define FIELD(kind, field) .field = FILL_##kind,
#define X(NAME, name, number)                                                                                \
    case MOA_WIRE_##NAME: m.u.name = (moa_msg_##name){MOA_MSG_##NAME(FIELD)}; break;
        MOA_WIRE_MAP(X)
#undef X
    }
    return m;
}

/* compares by value, field by field */
static bool same_str(moa_wire_str a, moa_wire_str b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.data, b.data, a.n) == 0);
}
#define SAME_SCALAR(a, b) (memcmp(&(a), &(b), sizeof(a)) == 0)
#define SAME_ARRAY(a, b)                                                                                     \
    ((a).n == (b).n && ((a).n == 0 || memcmp((a).data, (b).data, (a).n * sizeof *(a).data) == 0))
#define SAME_u32 SAME_SCALAR
#define SAME_i32 SAME_SCALAR
#define SAME_u64 SAME_SCALAR
#define SAME_f32 SAME_SCALAR
#define SAME_f64 SAME_SCALAR
#define SAME_str same_str
#define SAME_u8s SAME_ARRAY
#define SAME_i32s SAME_ARRAY
#define SAME_f32s SAME_ARRAY
#define SAME_f64s SAME_ARRAY

static bool same_msg(const moa_wire_msg *a, const moa_wire_msg *b) {
    if (a->type != b->type || a->job != b->job) return false;
    switch (a->type) {
#define CHECK(kind, field) &&SAME_##kind(x->field, y->field)
#define X(NAME, name, number)                                                                                \
    case MOA_WIRE_##NAME: {                                                                                  \
        const moa_msg_##name *x = &a->u.name, *y = &b->u.name;                                               \
        return true MOA_MSG_##NAME(CHECK);                                                                   \
    }
        MOA_WIRE_MAP(X)
#undef X
    }
    return false;
}

static const moa_wire_type types[] = {
#define X(NAME, name, number) MOA_WIRE_##NAME,
    MOA_WIRE_MAP(X)
#undef X
};
enum { N_TYPES = sizeof types / sizeof *types };

/* --- tests ---------------------------------------------------------------------------------------------------------------- */

static void test_there_and_back(void **state) {
    (void)state;
    for (int round = 0; round < 200; round++)
        for (int t = 0; t < N_TYPES; t++) {
            moa_buf a = {0}, b = {0};
            moa_wire_msg m = random_msg(types[t]), back;
            moa_err err = {0};
            assert_int_equal(moa_wire_encode(&m, &a, &err), MOA_OK);
            assert_int_equal(a.size % 8, 0);
            assert_int_equal(moa_wire_decode(a.data, a.size, &back, &err), MOA_OK);
            assert_true(same_msg(&m, &back));
            assert_int_equal(moa_wire_encode(&back, &b, &err), MOA_OK);
            assert_int_equal(a.size, b.size);
            assert_memory_equal(a.data, b.data, a.size);
            moa_buf_free(&a);
            moa_buf_free(&b);
        }
}

/* the bytes themselves, so that the format cannot change unnoticed */
static void test_golden(void **state) {
    (void)state;
    static const unsigned char golden[] = {16, 0, 0, 0, 1, 0, 0, 0, 7,   0,   0,   0, 0, 0, 0, 0,
                                           1,  0, 0, 0, 3, 0, 0, 0, 'a', 'b', 'c', 0, 0, 0, 0, 0};
    const moa_wire_msg m = {
        .type = MOA_WIRE_HELLO, .job = 7, .u.hello = {.version = 1, .client = {"abc", 3}}};
    moa_buf b = {0};
    moa_err err = {0};
    assert_int_equal(moa_wire_encode(&m, &b, &err), MOA_OK);
    assert_int_equal(b.size, sizeof golden);
    assert_memory_equal(b.data, golden, sizeof golden);
    moa_buf_free(&b);
    assert_string_equal(moa_wire_name(MOA_WIRE_SELECT_MAP), "SELECT_MAP");
    assert_string_equal(moa_wire_name((moa_wire_type)999), "?");
}

/* a frame cut anywhere is not whole; a payload declared shorter or longer is refused */
static void test_cut(void **state) {
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        moa_buf a = {0};
        moa_err err = {0};
        moa_wire_msg m = random_msg(types[t]), back;
        assert_int_equal(moa_wire_encode(&m, &a, &err), MOA_OK);
        for (size_t n = 0; n < a.size; n++) {
            size_t frame = 1;
            assert_int_equal(moa_wire_peek(a.data, n, &frame, &err), MOA_OK);
            assert_int_equal(frame, 0);
            assert_int_equal(moa_wire_decode(a.data, n, &back, &err), MOA_E_INVALID);
        }
        for (size_t n = MOA_WIRE_HEADER; n < a.size; n += 8) {
            const uint32_t payload = (uint32_t)(n - MOA_WIRE_HEADER);
            char *copy = malloc(n); /* exactly so much memory: a read beyond is seen by the sanitizer */
            memcpy(copy, a.data, n);
            memcpy(copy, &payload, sizeof payload);
            assert_int_equal(moa_wire_decode(copy, n, &back, &err), MOA_E_INVALID);
            free(copy);
        }
        const uint32_t longer = (uint32_t)(a.size - MOA_WIRE_HEADER + 8);
        memset(moa_buf_extend(&a, 8), 0, 8);
        memcpy(a.data, &longer, sizeof longer);
        assert_int_equal(moa_wire_decode(a.data, a.size, &back, &err), MOA_E_INVALID);
        moa_buf_free(&a);
    }
}

static void test_bad_headers(void **state) {
    (void)state;
    static const struct {
        uint32_t payload;
        uint16_t type, zero16;
        uint32_t zero32;
    } rows[] = {{8, 0, 0, 0},          {8, 9, 0, 0}, {8, 999, 0, 0},
                {8, 5, 1, 0},          {8, 5, 0, 1}, {MOA_WIRE_MAX + 8, 5, 0, 0},
                {UINT32_MAX, 5, 0, 0}, {7, 5, 0, 0}, {4, 5, 0, 0}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        _Alignas(8) char frame[24] = {0};
        size_t n = 1;
        moa_err err = {0};
        memcpy(frame, &rows[r].payload, 4);
        memcpy(frame + 4, &rows[r].type, 2);
        memcpy(frame + 6, &rows[r].zero16, 2);
        memcpy(frame + 12, &rows[r].zero32, 4);
        assert_int_equal(moa_wire_peek(frame, sizeof frame, &n, &err), MOA_E_INVALID);
        assert_true(strlen(err.text) > 10);
    }
}

/* counts that lie, paddings that carry something */
static void test_bad_fields(void **state) {
    (void)state;
    moa_buf a = {0};
    moa_err err = {0};
    const float three[] = {1, 2, 3};
    moa_wire_msg m = {.type = MOA_WIRE_HIST, .u.hist = {.n_head = 1, .hist = {three, 3}}}, back;
    assert_int_equal(moa_wire_encode(&m, &a, &err), MOA_OK);
    /* header 16, five i32 to 36, count of queries at 36 (padded to 40), count of hist at 40, elements at 48 */
    static const uint32_t lies[] = {0, 2, 5, 1000, 0x40000000u, 0x40000003u, 0x80000001u, UINT32_MAX};
    uint32_t count = 0;
    memcpy(&count, a.data + 40, 4);
    assert_int_equal(count, 3);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        memcpy(a.data + 40, &lies[i], 4);
        assert_int_equal(moa_wire_decode(a.data, a.size, &back, &err), MOA_E_INVALID);
    }
    memcpy(a.data + 40, &count, 4);
    for (size_t at = 44; at < 48; at++) {
        a.data[at] = 1;
        assert_int_equal(moa_wire_decode(a.data, a.size, &back, &err), MOA_E_INVALID);
        a.data[at] = 0;
    }
    assert_int_equal(moa_wire_decode(a.data, a.size, &back, &err), MOA_OK);
    a.data[a.size - 1] = 1; /* the padding at the end */
    assert_int_equal(moa_wire_decode(a.data, a.size, &back, &err), MOA_E_INVALID);
    moa_buf_free(&a);
}

static void test_limit(void **state) {
    (void)state;
    moa_buf a = {0};
    moa_err err = {0};
    /* NOTE: count 4, padding 4, text */
    const uint32_t most = MOA_WIRE_MAX - 8;
    char *text = calloc(1, most + 8);
    moa_wire_msg m = {.type = MOA_WIRE_NOTE, .u.note = {.text = {text, most}}}, back;
    moa_buf_str(&a, "12345678");
    assert_int_equal(moa_wire_encode(&m, &a, &err), MOA_OK);
    assert_int_equal(a.size, 8 + MOA_WIRE_HEADER + MOA_WIRE_MAX);
    assert_int_equal(moa_wire_decode(a.data + 8, a.size - 8, &back, &err), MOA_OK);
    a.size = 8;
    m.u.note.text.n = most + 1;
    assert_int_equal(moa_wire_encode(&m, &a, &err), MOA_E_INVALID);
    assert_int_equal(a.size, 8);
    m.type = (moa_wire_type)999;
    assert_int_equal(moa_wire_encode(&m, &a, &err), MOA_E_INVALID);
    free(text);
    moa_buf_free(&a);
}

/* frames through a pipe in pieces of every size; the reader hands out each once, in order, and keeps its memory bounded */
static void test_stream(void **state) {
    (void)state;
    static const size_t steps[] = {1, 3, 7, 16, 61, 1000, 60000};
    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        int fds[2];
        moa_buf sent = {0}, back = {0};
        moa_wire_reader r = {0};
        moa_err err = {0};
        bool closed = false;
        int n = 0;
        assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
        assert_int_equal(moa_wire_fill(&r, fds[0], &closed, &err), MOA_OK); /* EAGAIN */
        assert_false(closed);
        for (int t = 0; t < N_TYPES; t++) {
            moa_wire_msg m = random_msg(types[t]);
            assert_int_equal(moa_wire_encode(&m, &sent, &err), MOA_OK);
        }
        for (size_t at = 0; !closed;) {
            const size_t len = sent.size - at < steps[k] ? sent.size - at : steps[k];
            if (len > 0) {
                assert_int_equal(write(fds[1], sent.data + at, len), (ssize_t)len);
                at += len;
            } else if (fds[1] >= 0) {
                close(fds[1]);
                fds[1] = -1;
            }
            assert_int_equal(moa_wire_fill(&r, fds[0], &closed, &err), MOA_OK);
            for (;;) {
                moa_wire_msg m;
                bool got;
                assert_int_equal(moa_wire_next(&r, &m, &got, &err), MOA_OK);
                if (!got) break;
                assert_int_equal(m.type, types[n++]);
                assert_int_equal(moa_wire_encode(&m, &back, &err), MOA_OK);
            }
        }
        assert_int_equal(n, N_TYPES);
        assert_int_equal(back.size, sent.size);
        assert_memory_equal(back.data, sent.data, sent.size);
        assert_true(r.capacity <= MOA_WIRE_HEADER + MOA_WIRE_MAX + 65536);
        close(fds[0]);
        moa_wire_reader_free(&r);
        moa_buf_free(&sent);
        moa_buf_free(&back);
    }
}

/* what a shell profile prints on the way is refused at the first header, and stays refused */
static void test_stream_garbage(void **state) {
    (void)state;
    int fds[2];
    moa_wire_reader r = {0};
    moa_wire_msg m;
    moa_err err = {0};
    bool closed, got;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(write(fds[1], "Welcome to gpu-box, last login Tuesday", 38), 38);
    assert_int_equal(moa_wire_fill(&r, fds[0], &closed, &err), MOA_OK);
    assert_int_equal(moa_wire_next(&r, &m, &got, &err), MOA_E_INVALID);
    assert_false(got);
    assert_int_equal(moa_wire_next(&r, &m, &got, &err), MOA_E_INVALID);
    close(fds[0]);
    assert_int_equal(moa_wire_fill(&r, fds[0], &closed, &err), MOA_E_IO);
    close(fds[1]);
    moa_wire_reader_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_bad_fields),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
