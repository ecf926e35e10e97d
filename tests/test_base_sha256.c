/* core/base/sha256: the vectors of FIPS 180-4 and what sha256sum says at every padding edge, in one piece and in many, with this
 * processor's instructions where it has them and without */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "core/base/sha256.h"

static void hash(const char *bytes, size_t n, size_t piece, char out[65]) {
    char plain[65];
    for (int by_hand = 1; by_hand >= 0; by_hand--) {
        moa_sha256 h;
        moa_sha256_init(&h);
        if (by_hand) h.instructions = false;
        for (size_t at = 0; at < n; at += piece)
            moa_sha256_add(&h, bytes + at, n - at < piece ? n - at : piece);
        moa_sha256_hex(&h, by_hand ? plain : out);
    }
    assert_string_equal(plain, out);
}

static void test_vectors(void **state) {
    (void)state;
    static const struct {
        const char *text, *digest;
    } rows[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    char hex[65];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        hash(rows[i].text, strlen(rows[i].text), 1000, hex);
        assert_string_equal(hex, rows[i].digest);
        hash(rows[i].text, strlen(rows[i].text), 1, hex);
        assert_string_equal(hex, rows[i].digest);
    }
}

static void test_million(void **state) {
    (void)state;
    static char a[1000000];
    char hex[65];
    memset(a, 'a', sizeof a);
    static const size_t pieces[] = {1000000, 63, 64, 65, 1};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        hash(a, sizeof a, pieces[i], hex);
        assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}

static void test_padding_edges(void **state) {
    (void)state;
    static const struct {
        size_t n;
        const char *start; /* of the digest of n times 'x' */
    } rows[] = {{54, "45f316e10b2c99ab"},  {55, "d5e285683cd4efc0"},  {56, "04c26261370ee754"},
                {57, "ae14a2563ccf969d"},  {63, "75220b47218278e6"},  {64, "7ce100971f64e700"},
                {65, "9537c5fdf120482f"},  {118, "d4fc3f146a19ae04"}, {119, "000b48d4edf0fa7b"},
                {120, "13f05a0b594787f5"}, {127, "70156a14adbabf98"}, {128, "24da1b81d0b16df6"},
                {129, "0ec9eb33e74510bc"}};
    char text[130], hex[65];
    memset(text, 'x', sizeof text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        hash(text, rows[i].n, 7, hex);
        assert_memory_equal(hex, rows[i].start, 16);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors), cmocka_unit_test(test_million),
                                       cmocka_unit_test(test_padding_edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
