/* Any bytes, cut anywhere: the text that comes out is valid UTF-8 without a control, bidi or zero-width character, and does not
 * depend on where the stream was cut. Byte 0: flags; byte 1: length of the pieces; the rest: the text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cjson/cJSON.h>

#include "core/base/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int condition) {
    if (!condition) abort();
}

/* from the Unicode data files, not from the code under test */
static int forbidden(int32_t c) {
    return (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7F && c < 0xA0) || c == 0x61C || c == 0x200B ||
           c == 0x200C || c == 0x200E || c == 0x200F || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFB) ||
           (c >= 0xE0000 && c <= 0xE0FFF);
}

static void check_alphabet(const moa_buf *b) {
    for (size_t i = 0; i < b->size;) {
        int32_t cp;
        bool valid;
        i += moa_utf8_next(b->data + i, b->size - i, &cp, &valid);
        check(valid && !forbidden(cp));
    }
}

static void check_sinks(const char *s, size_t n) {
    moa_buf json = {0}, xml = {0}, tsv = {0}, shell = {0}, cut = {0};
    moa_text_json(s, n, &json);
    moa_text_xml(s, n, &xml);
    moa_text_tsv(s, n, &tsv);
    moa_text_shell(s, n, &shell);
    check_alphabet(&json), check_alphabet(&xml), check_alphabet(&tsv), check_alphabet(&shell);
    cJSON *o = cJSON_ParseWithLength(json.data, json.size);
    check(cJSON_IsString(o));
    cJSON_Delete(o);
    check(!xml.data || !strpbrk(xml.data, "<>\"'"));
    for (int cells = 0; cells < 12; cells++) {
        moa_buf_clear(&cut);
        const int used = moa_text_cut(xml.data ? xml.data : "", xml.size, cells, &cut);
        check(used <= cells && used == moa_text_cells(cut.data ? cut.data : "", cut.size));
        check(moa_utf8_valid(cut.data ? cut.data : "", cut.size));
    }
    moa_buf_free(&json), moa_buf_free(&xml), moa_buf_free(&tsv), moa_buf_free(&shell), moa_buf_free(&cut);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const int flags = data[0] & 3;
    const size_t piece = data[1] % 16 + 1, n = size - 2;
    const char *s = (const char *)data + 2;
    moa_buf whole = {0}, parts = {0};
    moa_text_stream t = {.flags = flags};
    moa_text_clean(s, n, flags, &whole);
    for (size_t i = 0; i < n; i += piece)
        moa_text_push(&t, s + i, n - i < piece ? n - i : piece, &parts);
    moa_text_flush(&t, &parts);
    check(whole.size == parts.size && (whole.size == 0 || memcmp(whole.data, parts.data, whole.size) == 0));
    check_alphabet(&whole);
    if (whole.data && (flags & MOA_TEXT_LINE)) check(!strpbrk(whole.data, "\n\t"));
    if (flags & MOA_TEXT_ASCII)
        for (size_t i = 0; i < whole.size; i++)
            check((unsigned char)whole.data[i] < 0x80);
    check_sinks(s, n);
    moa_buf_free(&whole), moa_buf_free(&parts);
    return 0;
}
