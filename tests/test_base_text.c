/* core/base/text: strict UTF-8, what may reach a terminal, cells, escaping.
 *
 * The alphabet of clean text is checked against ranges written down here from the Unicode data files, not against the
 * library's own predicate. Every payload is cut at every byte, and fed byte by byte: the output must not change. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cjson/cJSON.h>

#include "core/base/status.h"
#include "core/base/text.h"

#define LIT(s) s, sizeof(s) - 1

/* --- independent definitions ------------------------------------------------------------------------------------------- */

static bool in_forbidden_range(int32_t c) {
    static const struct {
        int32_t from, to;
    } ranges[] = {
        {0x0000, 0x0008}, {0x000B, 0x001F},   {0x007F, 0x009F},                     /* C0, DEL, C1 */
        {0x061C, 0x061C}, {0x200E, 0x200F},   {0x202A, 0x202E},   {0x2066, 0x2069}, /* bidi */
        {0x00AD, 0x00AD}, {0x034F, 0x034F},   {0x180B, 0x180F},   {0x200B, 0x200C},
        {0x2060, 0x2064}, /* zero width */
        {0x206A, 0x206F}, {0xFEFF, 0xFEFF},   {0x115F, 0x1160},   {0x3164, 0x3164},
        {0xFFA0, 0xFFA0}, /* and fillers */
        {0x17B4, 0x17B5}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0x2028, 0x2029},
        {0xFFF9, 0xFFFB}, {0xE0000, 0xE0FFF}, /* separators, interlinear, tags and selectors */
        {0xD800, 0xDFFF}, {0xFDD0, 0xFDEF},   {0xFFFE, 0xFFFF},
    };
    for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++)
        if (c >= ranges[r].from && c <= ranges[r].to) return true;
    return false;
}

/* decoder by the arithmetic definition: decode, then reject what is not the shortest form of a scalar value */
static int naive_decode(const unsigned char *s, size_t n, int32_t *cp) {
    const int len = s[0] < 0x80         ? 1
                    : (s[0] >> 5) == 6  ? 2
                    : (s[0] >> 4) == 14 ? 3
                    : (s[0] >> 3) == 30 ? 4
                                        : 0;
    static const int32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (len == 0 || (size_t)len > n) return 0;
    int32_t c = len == 1 ? s[0] : s[0] & (0x7F >> len);
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3F);
    }
    if (c < least[len] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return 0;
    *cp = c;
    return len;
}

static void assert_clean(const char *s, size_t n, int flags, const char *what) {
    int32_t before = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp = -1;
        const int k = naive_decode((const unsigned char *)s + i, n - i, &cp);
        if (k == 0) fail_msg("%s: output is not UTF-8 at byte %zu", what, i);
        if (in_forbidden_range(cp)) fail_msg("%s: U+%04X in the output", what, (unsigned)cp);
        if ((flags & MOA_TEXT_ASCII) && cp >= 0x80)
            fail_msg("%s: U+%04X in ASCII output", what, (unsigned)cp);
        if ((flags & MOA_TEXT_LINE) && cp < 0x20) fail_msg("%s: control %d in a line", what, (int)cp);
        if (before == 0x200D && cp < 0x2190) fail_msg("%s: joiner before U+%04X", what, (unsigned)cp);
        if (cp == 0x200D && before < 0xA9) fail_msg("%s: joiner after U+%04X", what, (unsigned)before);
        if (cp >= 0xFE00 && cp <= 0xFE0F && before >= 0xFE00 && before <= 0xFE0F)
            fail_msg("%s: two selectors", what);
        before = cp;
        i += (size_t)k;
    }
    if (before == 0x200D) fail_msg("%s: ends in a joiner", what);
}

/* --- payloads ------------------------------------------------------------------------------------------------------------ */

typedef struct payload {
    char bytes[96];
    size_t n;
} payload;

static payload payloads[1400];
static size_t n_payload;

static void add(const char *bytes, size_t n) {
    assert_true(n_payload < sizeof payloads / sizeof *payloads);
    assert_true(n <= sizeof payloads->bytes);
    payload *p = &payloads[n_payload++];
    memcpy(p->bytes, bytes, n);
    p->n = n;
}

static void add_cp(const char *before, int32_t cp, const char *after) {
    char bytes[96], one[4];
    const size_t k = moa_utf8_put(cp, one);
    const int n = snprintf(bytes, sizeof bytes, "%s%.*s%s", before, (int)k, one, after);
    if (cp == 0) { /* printf stops at NUL */
        add("a\0b", 3);
        return;
    }
    add(bytes, (size_t)n);
}

static void make_payloads(void) {
    static const struct {
        const char *bytes;
        size_t n;
    } fixed[] = {
        {LIT("\x1b[2J\x1b[H")},
        {LIT("\x1b[31mred\x1b[0m")},
        {LIT("\x1b]0;title\a")},
        {LIT("\x1b]0;title\x1b\\")},
        {LIT("\x1b]52;c;ZXZpbA==\a")},
        {LIT("\x1b]52;c;ZXZpbA==\x1b\\")},
        {LIT("\x1b]8;;http://x\x1b\\y\x1b]8;;\x1b\\")},
        {LIT("\x1bP$q\"p\x1b\\")},
        {LIT("\x1bPq#0;2;0;0;0~\x1b\\")},
        {LIT("\x1b_Gf=24;AAAA\x1b\\")},
        {LIT("\x1b^pm\x1b\\")},
        {LIT("\x1bXsos\x1b\\")},
        {LIT("\x1b"
             "c")},
        {LIT("\x1b[?1049h")},
        {LIT("\x1b[?1000h")},
        {LIT("\x1b[6n")},
        {LIT("\x1b[c")},
        {LIT("\x1b[21t")},
        {LIT("\x1b]4;1;?\a")},
        {LIT("\x1b]10;?\a")},
        {LIT("\x1b]1337;File=:AA\a")},
        {LIT("\x1b#8")},
        {LIT("\x1b(0lqk\x1b(B")},
        {LIT("\x1bN")},
        {LIT("\x1b[200~rm -rf\n\x1b[201~")},
        {LIT("\x1b\x1b\x1b[A")},
        {LIT("\xc2\x9b"
             "31m")},
        {LIT("\xc2\x9d"
             "0;t\xc2\x9c")},
        {LIT("\xc2\x90q\xc2\x9c")},
        {LIT("\x9b"
             "31m")},
        {LIT("\x9d"
             "0;t\x9c")},
        {LIT("\x90q\x9c")},
        {LIT("\xe0\x9b\x1b[m")},
        {LIT("\xc1\x9b"
             "31m")},
        {LIT("\xe0\x82\x9b"
             "31m")},
        {LIT("\xf0\x80\x82\x9b"
             "31m")},
        {LIT("\xc0\x9b")},
        {LIT("\xc0\x80")},
        {LIT("\xc0\xaf")},
        {LIT("\xe0\x80\xaf")},
        {LIT("\xf0\x80\x80\xaf")},
        {LIT("\xf8\x80\x80\x80\xaf")},
        {LIT("\xfc\x80\x80\x80\x80\xaf")},
        {LIT("\xed\xa0\x80")},
        {LIT("\xed\xbf\xbf")},
        {LIT("\xed\xa0\xbd\xed\xb8\x80")},
        {LIT("\xf4\x90\x80\x80")},
        {LIT("\xf5\x80\x80\x80")},
        {LIT("\xff\xfe")},
        {LIT("\xfe\xff")},
        {LIT("\xe2\x82")},
        {LIT("\xf0\x9f\x98")},
        {LIT("\xf0\x9f")},
        {LIT("\xf0")},
        {LIT("\xe2")},
        {LIT("\xc2")},
        {LIT("\x80")},
        {LIT("\xbf\xbf\xbf\xbf")},
        {LIT("\xe2\x82\xe2\x82\xac")},
        {LIT("\xf0\x9f\xf0\x9f\x98\x80")},
        {LIT("\xef\xbb\xbfhello")},
        {LIT("a\r\nb\rc")},
        {LIT("x\by\bz")},
        {LIT("abc\rXYZ")},
        {LIT("\v\f\a\0")},
        {LIT("\x0e\x0f")},
        {LIT("access \xe2\x80\xae\xe2\x81\xa6// check\xe2\x81\xa9 \xe2\x81\xa6")},
        {LIT("exe.\xe2\x80\xaegpj")},
        {LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7")}, /* family */
        {LIT("\xf0\x9f\x91\xa9\xf0\x9f\x8f\xbd\xe2\x80\x8d\xf0\x9f\x9a\x80")}, /* skin tone, joiner */
        {LIT("\xe2\x9d\xa4\xef\xb8\x8f\xe2\x80\x8d\xf0\x9f\x94\xa5")},         /* selector, joiner */
        {LIT("a\xe2\x80\x8d"
             "b")},
        {LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d")},
        {LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d\xe2\x80\x8d\xf0\x9f\x91\xa9")},
        {LIT("\xe2\x80\x8d\xf0\x9f\x91\xa8")},
        {LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d"
             "a")},
        {LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d\n\xf0\x9f\x91\xa8")},
        {LIT("\xe2\x9d\xa4\xef\xb8\x8f\xef\xb8\x8f")},
        {LIT("\xef\xb8\x8f")},
        {LIT("a\xef\xb8\x8e\xef\xb8\x8f")},
        {LIT("\xcc\x81")},
        {LIT("e\xcc\x81")},
        {LIT("\n\xcc\x81")},
        {LIT("\x1b\xcc\x81")},
        {LIT("a\xcc\x81\xcc\x82\xcc\x83\xcc\x84\xcc\x85\xcc\x86\xcc\x87\xcc\x88\xcc\x89\xcc\x8a\xcc\x8b z")},
        {LIT("\xf0\x9f\x87\xa9\xf0\x9f\x87\xaa")},
        {LIT("\xe4\xbd\x9c\xe8\x80\x85")},
        {LIT("plain text, nothing else")},
        {LIT("%s%n%x")},
        {LIT("\"</script><svg onload=x>&amp;'")},
        {LIT("")},
        {LIT("\n\t\n")},
        {LIT("<U+202E>")},
    };
    n_payload = 0;
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        add(fixed[i].bytes, fixed[i].n);
    for (int c = 0; c < 256; c++) { /* every byte, alone in text and after ESC */
        const char alone[] = {'a', (char)c, 'b'}, esc[] = {0x1b, (char)c, 'x'};
        add(alone, sizeof alone);
        add(esc, sizeof esc);
    }
    for (int32_t c = 0x80; c < 0xA0; c++)
        add_cp("a", c, "31m");
    static const int32_t odd[] = {
        0x061C, 0x200B,  0x200C, 0x200D, 0x200E, 0x200F, 0x2028,  0x2029,   0x202A,  0x202B,  0x202C, 0x202D,
        0x202E, 0x2060,  0x2061, 0x2062, 0x2063, 0x2064, 0x2066,  0x2067,   0x2068,  0x2069,  0x206A, 0x206F,
        0xFEFF, 0xFFF9,  0xFFFA, 0xFFFB, 0x00AD, 0x034F, 0x115F,  0x1160,   0x3164,  0xFFA0,  0x180B, 0x180E,
        0x17B4, 0x1D173, 0xE000, 0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0x10FFFF, 0xE0100, 0xE01EF, 0x0378};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        add_cp("a", odd[i], "b");
        add_cp("\xf0\x9f\x98\x80", odd[i], "\xf0\x9f\x98\x80");
    }
    for (int32_t c = 0xE0000; c < 0xE0080; c++)
        add_cp("\xf0\x9f\x8f\xb4", c, "");
}

static void feed(const char *s, size_t n, size_t cut, int flags, moa_buf *out) {
    moa_text_stream t = {.flags = flags};
    moa_text_push(&t, s, cut, out);
    moa_text_push(&t, s + cut, n - cut, out);
    moa_text_flush(&t, out);
}

static void test_payloads_at_every_cut(void **state) {
    (void)state;
    make_payloads();
    assert_true(n_payload >= 300);
    for (size_t p = 0; p < n_payload; p++)
        for (int flags = 0; flags < 4; flags++) {
            const payload *x = &payloads[p];
            moa_buf whole = {0}, cut = {0}, bytes = {0};
            char what[40];
            (void)snprintf(what, sizeof what, "payload %zu, flags %d", p, flags);
            moa_text_clean(x->bytes, x->n, flags, &whole);
            assert_clean(whole.data ? whole.data : "", whole.size, flags, what);
            for (size_t at = 0; at <= x->n; at++) {
                moa_buf_clear(&cut);
                feed(x->bytes, x->n, at, flags, &cut);
                if (cut.size != whole.size || (whole.size && memcmp(cut.data, whole.data, whole.size) != 0))
                    fail_msg("%s: cut at byte %zu gives other text", what, at);
            }
            moa_text_stream t = {.flags = flags};
            for (size_t i = 0; i < x->n; i++) {
                moa_text_push(&t, x->bytes + i, 1, &bytes);
                assert_true(moa_utf8_valid(bytes.data ? bytes.data : "", bytes.size));
            }
            moa_text_flush(&t, &bytes);
            assert_int_equal(bytes.size, whole.size);
            if (whole.size) assert_memory_equal(bytes.data, whole.data, whole.size);
            moa_buf_free(&whole), moa_buf_free(&cut), moa_buf_free(&bytes);
        }
}

/* The same payload reaching other sinks: no raw control, bidi or zero-width byte in any of them. */
static void test_payloads_in_other_sinks(void **state) {
    (void)state;
    make_payloads();
    for (size_t p = 0; p < n_payload; p++) {
        const payload *x = &payloads[p];
        moa_buf json = {0}, xml = {0}, tsv = {0}, shell = {0}, valid = {0};
        moa_text_json(x->bytes, x->n, &json);
        moa_text_xml(x->bytes, x->n, &xml);
        moa_text_tsv(x->bytes, x->n, &tsv);
        moa_text_shell(x->bytes, x->n, &shell);
        assert_clean(json.data, json.size, MOA_TEXT_LINE, "json");
        assert_clean(xml.data ? xml.data : "", xml.size, 0, "xml");
        assert_clean(tsv.data ? tsv.data : "", tsv.size, MOA_TEXT_LINE, "tsv");
        assert_clean(shell.data, shell.size, MOA_TEXT_LINE, "shell");
        if (xml.data) assert_null(strpbrk(xml.data, "<>\"'"));
        moa_utf8_replace(x->bytes, x->n, &valid);
        if (!memchr(x->bytes, 0, x->n)) { /* lossless, by another reader */
            cJSON *back = cJSON_Parse(json.data);
            assert_non_null(back);
            assert_string_equal(back->valuestring, valid.data ? valid.data : "");
            cJSON_Delete(back);
        }
        moa_err err = {0};
        (void)moa_fail(&err, MOA_E_INVALID, "tensor %.*s", (int)x->n, x->bytes);
        assert_clean(err.text, strlen(err.text), MOA_TEXT_LINE, "error message");
        moa_buf_free(&json), moa_buf_free(&xml), moa_buf_free(&tsv), moa_buf_free(&shell),
            moa_buf_free(&valid);
    }
}

static void test_random_streams(void **state) {
    (void)state;
    uint64_t seed = 7;
    static const char *const bits[] = {"\x1b",
                                       "[",
                                       "31m",
                                       "\xe2\x80\x8d",
                                       "\xf0\x9f\x91\xa8",
                                       "\xef\xb8\x8f",
                                       "\xcc\x81",
                                       "a",
                                       "\n",
                                       "\xc2",
                                       "\x9b",
                                       "\xf0\x9f",
                                       "\xe2\x80\xae",
                                       "\xed\xa0\x80",
                                       "\xf0\x9f\x8f\xbd",
                                       "\xff",
                                       "]52;",
                                       "\a"};
    for (int round = 0; round < 4000; round++) {
        char text[512];
        size_t n = 0;
        for (int k = 0; k < 40; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const char *b = bits[(seed >> 33) % (sizeof bits / sizeof *bits)];
            memcpy(text + n, b, strlen(b));
            n += strlen(b);
        }
        moa_buf whole = {0}, parts = {0};
        moa_text_clean(text, n, round & 3, &whole);
        moa_text_stream t = {.flags = round & 3};
        for (size_t i = 0; i < n;) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size_t k = 1 + (seed >> 33) % 7;
            if (k > n - i) k = n - i;
            moa_text_push(&t, text + i, k, &parts);
            i += k;
        }
        moa_text_flush(&t, &parts);
        assert_clean(whole.data, whole.size, round & 3, "random");
        assert_int_equal(whole.size, parts.size);
        assert_memory_equal(whole.data, parts.data, whole.size);
        moa_buf_free(&whole), moa_buf_free(&parts);
    }
}

static void assert_cleaned(const char *in, size_t n, int flags, const char *want) {
    moa_buf out = {0};
    moa_text_clean(in, n, flags, &out);
    assert_string_equal(out.data ? out.data : "", want);
    moa_buf_free(&out);
}

static void test_what_is_shown(void **state) {
    (void)state;
    assert_cleaned(LIT("\x1b[2J"), 0, "\xe2\x90\x9b[2J");
    assert_cleaned(LIT("\x1b[2J\x7f"), MOA_TEXT_ASCII, "^[[2J^?");
    assert_cleaned(LIT("a\0b"), 0,
                   "a\xe2\x90\x80"
                   "b");
    assert_cleaned(LIT("a\n\tb\r\n"), 0, "a\n\tb\xe2\x90\x8d\n");
    assert_cleaned(LIT("a\n\tb"), MOA_TEXT_LINE,
                   "a\xe2\x90\x8a\xe2\x90\x89"
                   "b");
    assert_cleaned(LIT("\xc2\x9b"
                       "31m"),
                   0,
                   "\xef\xbf\xbd"
                   "31m");
    assert_cleaned(LIT("exe\xe2\x80\xaegpj"), 0, "exe<U+202E>gpj");
    assert_cleaned(LIT("\xc3\xa9"), 0, "\xc3\xa9");
    assert_cleaned(LIT("\xc3\xa9"), MOA_TEXT_ASCII, "<U+00E9>");
    assert_cleaned(LIT("\xef\xbb\xbfx"), 0, "<U+FEFF>x");
    assert_cleaned(LIT("\xf3\xa0\x81\xa1"), 0, "<U+E0061>");
    assert_cleaned(LIT("a\xe2\x80\x8d"
                       "b"),
                   0, "a<U+200D>b");
    assert_cleaned(LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9"), 0,
                   "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9");
    assert_cleaned(LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d"), 0, "\xf0\x9f\x91\xa8<U+200D>");
    assert_cleaned(LIT("\xe2\x9d\xa4\xef\xb8\x8f\xef\xb8\x8f"), 0, "\xe2\x9d\xa4\xef\xb8\x8f<U+FE0F>");
    assert_cleaned(LIT("\xcc\x81"), 0, "\xe2\x97\x8c\xcc\x81");
    moa_buf in = {0}, out = {0};
    moa_buf_str(&in, "a");
    for (int i = 0; i < 1000; i++)
        moa_buf_str(&in, "\xcc\x81");
    moa_buf_str(&in, "b");
    moa_text_clean(in.data, in.size, 0, &out);
    assert_string_equal(out.data, "a\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81\xcc\x81<+992>b");
    moa_buf_free(&in), moa_buf_free(&out);
}

static void test_clean_type(void **state) {
    (void)state;
    moa_clean *c = moa_clean_open(0);
    assert_non_null(c);
    assert_string_equal(moa_clean_text(c), "");
    assert_true(moa_clean_push(c, LIT("x\xe2\x80")));
    assert_string_equal(moa_clean_text(c), "x");
    assert_true(moa_clean_push(c, LIT("\xae\x1b[m")));
    assert_string_equal(moa_clean_text(c), "x<U+202E>\xe2\x90\x9b[m");
    size_t n;
    const moa_clean_mark *marks = moa_clean_marks(c, &n);
    assert_int_equal(n, 1); /* adjacent parts are one */
    assert_int_equal(marks[0].at, 1);
    assert_int_equal(marks[0].bytes, 8 + 3);
    assert_true(moa_clean_push(c, LIT("\xf0\x9f")));
    assert_true(moa_clean_end(c));
    marks = moa_clean_marks(c, &n);
    assert_int_equal(n, 2);
    assert_int_equal(marks[1].at + marks[1].bytes, moa_clean_bytes(c));
    moa_clean_clear(c);
    assert_int_equal(moa_clean_bytes(c), 0);
    moa_clean_close(&c);
    assert_null(c);
    moa_clean_close(&c);
    moa_clean_close(NULL);
    assert_string_equal(moa_clean_text(NULL), "");
    c = moa_clean_of(LIT("<U+202E>"), 0); /* the user's own text is no placeholder */
    (void)moa_clean_marks(c, &n);
    assert_int_equal(n, 0);
    moa_clean_close(&c);
}

/* --- UTF-8 -------------------------------------------------------------------------------------------------------------------- */

static void test_every_code_point_round_trips(void **state) {
    (void)state;
    for (int32_t c = 0; c <= 0x10FFFF; c++) {
        char bytes[4];
        const size_t k = moa_utf8_put(c, bytes);
        int32_t mine = -1, theirs = -1;
        bool valid;
        assert_int_equal(moa_utf8_next(bytes, k, &mine, &valid), k);
        assert_int_equal(naive_decode((unsigned char *)bytes, k, &theirs), k);
        assert_true(valid);
        const int32_t want = c >= 0xD800 && c <= 0xDFFF ? 0xFFFD : c;
        if (mine != want || theirs != want) fail_msg("U+%04X decodes to U+%04X", (unsigned)c, (unsigned)mine);
        for (size_t cut = 1; cut < k; cut++)
            assert_int_equal(moa_utf8_tail(bytes, cut), cut);
        assert_int_equal(moa_utf8_tail(bytes, k), 0);
    }
}

/* all strings of 1 to 3 bytes, and many of 4, agree with the arithmetic definition */
static void test_strict_against_definition(void **state) {
    (void)state;
    static const unsigned char edge[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                         0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
                                         0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF8, 0xFF};
    const size_t ne = sizeof edge;
    for (size_t x = 0; x < ne * ne * ne * ne; x++) {
        const unsigned char s[4] = {edge[x % ne], edge[x / ne % ne], edge[x / ne / ne % ne],
                                    edge[x / ne / ne / ne]};
        int32_t mine, theirs = 0xFFFD;
        bool valid;
        const size_t k = moa_utf8_next((const char *)s, 4, &mine, &valid);
        const int want = naive_decode(s, 4, &theirs);
        assert_int_equal(valid, want != 0);
        assert_int_equal(mine, want ? theirs : 0xFFFD);
        if (want)
            assert_int_equal(k, want);
        else
            assert_in_range(k, 1, 3);
    }
}

static void assert_replaced(const char *in, size_t n, const char *want) {
    moa_buf out = {0};
    moa_utf8_replace(in, n, &out);
    assert_string_equal(out.data, want);
    moa_buf_free(&out);
}

/* the examples of the Unicode standard (tables 3-8 to 3-11): one U+FFFD a maximal part */
static void test_replacement_practice(void **state) {
    (void)state;
#define R "\xef\xbf\xbd"
    assert_replaced(LIT("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), R R R R R R R R "A");
    assert_replaced(LIT("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), R R R R R R R R "A");
    assert_replaced(LIT("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), R R R R R "A" R R "B");
    assert_replaced(LIT("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), R R R R "A");
#undef R
}

/* --- cells ------------------------------------------------------------------------------------------------------------------------ */

static void test_cells(void **state) {
    (void)state;
    assert_int_equal(moa_cp_cells('a'), 1);
    assert_int_equal(moa_cp_cells(0x4F5C), 2);
    assert_int_equal(moa_cp_cells(0x1F600), 2);
    assert_int_equal(moa_cp_cells(0x0301), 0);
    assert_int_equal(moa_cp_cells(0x2580), 1);
    assert_int_equal(moa_cp_cells(0x2400), 1);
    assert_int_equal(moa_cp_cells(0x28FF), 1);
    assert_int_equal(moa_text_cells(LIT("e\xcc\x81\xe4\xbd\x9c!")), 4);
    moa_buf b = {0};
    assert_int_equal(moa_text_cut(LIT("abcdef"), 6, &b), 6);
    assert_string_equal(b.data, "abcdef");
    moa_buf_clear(&b);
    assert_int_equal(moa_text_cut(LIT("abcdef"), 4, &b), 4);
    assert_string_equal(b.data, "abc~");
    moa_buf_clear(&b);
    assert_int_equal(moa_text_cut(LIT("\xe4\xbd\x9c\xe4\xbd\x9c\xe4\xbd\x9c"), 4, &b),
                     3); /* a wide one is not halved */
    assert_string_equal(b.data, "\xe4\xbd\x9c~");
    moa_buf_clear(&b);
    assert_int_equal(moa_text_cut(LIT("e\xcc\x81\xcc\x81xyz"), 2, &b), 2); /* marks stay with their letter */
    assert_string_equal(b.data, "e\xcc\x81\xcc\x81~");
    moa_buf_clear(&b);
    assert_int_equal(moa_text_cut(LIT("\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9"), 3, &b),
                     3); /* no joiner left over */
    assert_string_equal(b.data, "\xf0\x9f\x91\xa8~");
    moa_buf_clear(&b);
    assert_int_equal(moa_text_cut(LIT("abc"), 0, &b), 0);
    assert_int_equal(moa_text_cut(LIT(""), 5, &b), 0);
    assert_int_equal(b.size, 0);
    moa_buf_free(&b);
}

static void test_escapes(void **state) {
    (void)state;
    moa_buf b = {0};
    moa_text_json(LIT("a\"\\\n\x1b\xf3\xa0\x81\xa1\xff"), &b);
    assert_string_equal(b.data, "\"a\\\"\\\\\\n\\u001b\\udb40\\udc61\xef\xbf\xbd\"");
    moa_buf_clear(&b);
    moa_text_xml(LIT("<a b='c'>&\"\xe2\x80\xae"), &b);
    assert_string_equal(b.data, "&lt;a b=&#39;c&#39;&gt;&amp;&quot;&lt;U+202E&gt;");
    moa_buf_clear(&b);
    moa_text_tsv(LIT("a\tb\nc\\d\r"), &b);
    assert_string_equal(b.data, "a\\tb\\nc\\\\d\\r");
    moa_buf_clear(&b);
    moa_text_shell(LIT("it's"), &b);
    assert_string_equal(b.data, "'it'\\''s'");
    moa_buf_clear(&b);
    moa_text_shell(LIT("a\nb'\xff"), &b);
    assert_string_equal(b.data, "$'a\\x0ab\\'\\xff'");
    moa_buf_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_payloads_at_every_cut),
        cmocka_unit_test(test_payloads_in_other_sinks),
        cmocka_unit_test(test_random_streams),
        cmocka_unit_test(test_what_is_shown),
        cmocka_unit_test(test_clean_type),
        cmocka_unit_test(test_every_code_point_round_trips),
        cmocka_unit_test(test_strict_against_definition),
        cmocka_unit_test(test_replacement_practice),
        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_escapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
