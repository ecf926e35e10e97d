/* core/model/quant: every block format against what another implementation decodes (tests/data/quant_golden.bin).
 *
 * Equality is of bits, infinities and signed zeros included; NaN equals NaN of any payload. That is fair because both sides
 * round after each multiplication and addition in single precision: ISO C forbids gcc to fuse them, and x86-64 without
 * -mfma has nothing to fuse with. A device that fuses d*q + m may differ by one rounding of the sum. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/model/dtype.h"
#include "core/model/quant/bf16.h"
#include "core/model/quant/f16.h"
#include "quant_include.h"
#include "quant_list.h"

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static bool same(float a, float b) {
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

static uint32_t u32_at(const moa_buf *b, size_t at) {
    uint32_t value;
    assert_true(at + 4 <= b->size);
    memcpy(&value, b->data + at, sizeof value);
    return value;
}

/* decodes the packed blocks at an address of the given misalignment and compares */
static void compare(const moa_dtype_info *type, const char *packed, const char *expected, size_t n_block,
                    size_t shift) {
    const size_t n = n_block * type->block_len, bytes = n_block * type->block_bytes;
    char *copy = malloc(bytes + shift);
    float *out = malloc(n * sizeof *out);
    assert_true(copy && out);
    memcpy(copy + shift, packed, bytes);
    type->decode(copy + shift, out, n);
    for (size_t i = 0; i < n; i++) {
        float want;
        memcpy(&want, expected + i * sizeof want, sizeof want);
        if (!same(out[i], want))
            fail_msg("%s block %zu element %zu: %.9g (%08x), expected %.9g (%08x)", type->name,
                     i / type->block_len, i % type->block_len, (double)out[i], bits_of(out[i]), (double)want,
                     bits_of(want));
    }
    free(copy);
    free(out);
}

static void test_golden(void **state) {
    (void)state;
    moa_buf b = {0};
    moa_err err = {0};
    size_t at = 0;
    uint64_t seen = 0;
    if (moa_file_read(MOA_SOURCE_DIR "/tests/data/quant_golden.bin", 1 << 20, &b, &err) != MOA_OK)
        fail_msg("%s", err.text);
    while (at < b.size) {
        const uint32_t id = u32_at(&b, at), n_block = u32_at(&b, at + 4);
        const moa_dtype_info *type = moa_dtype_find(id);
        assert_non_null(type);
        assert_int_equal(type->block_len, u32_at(&b, at + 8));
        assert_int_equal(type->block_bytes, u32_at(&b, at + 12));
        const size_t packed = (size_t)n_block * type->block_bytes,
                     plain = (size_t)n_block * type->block_len * 4;
        assert_true(at + 16 + packed + plain <= b.size);
        for (size_t shift = 0; shift < 4; shift++)
            compare(type, b.data + at + 16, b.data + at + 16 + packed, n_block, shift);
        at += 16 + packed + plain;
        seen |= (uint64_t)1 << id;
    }
#define X(name, id, len, bytes) assert_true(seen >> (id)&1);
    MOA_DTYPE_MAP(X)
#undef X
    moa_buf_free(&b);
}

/* every one of the 65536 halves against its definition, computed another way */
static void test_every_half(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
        const double sign = h & 0x8000 ? -1 : 1;
        const float f = moa_f16_to_f32((uint16_t)h);
        if (exponent == 31 && mantissa)
            assert_true(isnan(f));
        else if (exponent == 31)
            assert_true(isinf(f) && (f > 0) == (sign > 0));
        else {
            const double want =
                sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
            assert_true((double)f == want && (signbit(f) != 0) == (sign < 0));
        }
    }
}

/* the table of dtype.h, the headers of quant/ and the list of all GGUF types say the same */
static void test_tables_agree(void **state) {
    (void)state;
    uint32_t len = 0, bytes = 0;
#define X(stem)                                                                                              \
    assert_non_null(moa_dtype_find(moa_##stem##_id));                                                        \
    assert_int_equal(moa_dtype_find(moa_##stem##_id)->block_len, moa_##stem##_len);                          \
    assert_int_equal(moa_dtype_find(moa_##stem##_id)->block_bytes, sizeof(moa_block_##stem));
    MOA_QUANT_LIST(X)
#undef X
#define X(type, number, n, size)                                                                             \
    assert_string_equal(moa_dtype_gguf_name(number), #type);                                                 \
    assert_string_equal(moa_dtype_find(number)->name, #type);                                                \
    assert_true(moa_dtype_gguf_block(number, &len, &bytes) && len == (n) && bytes == (size));
    MOA_DTYPE_MAP(X)
#undef X
    assert_string_equal(moa_dtype_gguf_name(17), "IQ2_XS");
    assert_string_equal(moa_dtype_gguf_name(4), "?");
    assert_null(moa_dtype_find(17));
    assert_null(moa_dtype_find(UINT32_MAX));
    assert_false(moa_dtype_gguf_block(5, &len, &bytes));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_tables_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
