#include "core/base/text.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum {
    CP_BAD = 0xFFFD,
    CP_ZWJ = 0x200D,
    MARK_CAP = 8, /* marks a cell; terminals keep fewer, and unbounded ones are a way to flood them */
    ZWJ_CAP = 8,  /* joiners a cluster */
};

/* --- UTF-8 --------------------------------------------------------------------------------------------------------- */

/* For a lead byte: length of the sequence (0: none begins so) and the range its second byte must lie in; the range is
 * what shuts out overlong forms (E0, F0), surrogates (ED) and values above U+10FFFF (F4). */
static size_t lead_info(unsigned char lead, unsigned char *low, unsigned char *high) {
    *low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    if (lead >= 0xF0 && lead <= 0xF4) return 4;
    return 0;
}

/* Bytes of s that agree with a sequence of *need bytes; == *need: a whole character; 0: no lead byte. */
static size_t match(const unsigned char *s, size_t n, size_t *need) {
    unsigned char low, high;
    *need = lead_info(s[0], &low, &high);
    if (*need == 0) return 0;
    size_t k = 1;
    while (k < *need && k < n) {
        if (s[k] < (k == 1 ? low : 0x80) || s[k] > (k == 1 ? high : 0xBF)) break;
        k++;
    }
    return k;
}

size_t moa_utf8_next(const char *s, size_t n, int32_t *cp, bool *valid) {
    assert(n > 0);
    const unsigned char *b = (const unsigned char *)s;
    if (valid) *valid = true;
    if (b[0] < 0x80) {
        *cp = b[0];
        return 1;
    }
    size_t need;
    const size_t k = match(b, n, &need);
    if (need == 0 || k < need) {
        *cp = CP_BAD;
        if (valid) *valid = false;
        return k ? k : 1;
    }
    *cp = need == 2   ? (b[0] & 0x1F) << 6 | (b[1] & 0x3F)
          : need == 3 ? (b[0] & 0x0F) << 12 | (b[1] & 0x3F) << 6 | (b[2] & 0x3F)
                      : (b[0] & 0x07) << 18 | (b[1] & 0x3F) << 12 | (b[2] & 0x3F) << 6 | (b[3] & 0x3F);
    return need;
}

size_t moa_utf8_tail(const char *s, size_t n) {
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        const unsigned char *b = (const unsigned char *)s + n - k;
        if ((*b & 0xC0) == 0x80) continue; /* not a lead byte: look further left */
        size_t need;
        return match(b, k, &need) == k && need > k ? k : 0;
    }
    return 0;
}

size_t moa_utf8_put(int32_t cp, char out[4]) {
    if (cp < 0 || cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF)) cp = CP_BAD;
    return (size_t)utf8proc_encode_char(cp, (utf8proc_uint8_t *)out);
}

bool moa_utf8_valid(const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        int32_t cp;
        bool valid;
        i += moa_utf8_next(s + i, n - i, &cp, &valid);
        if (!valid) return false;
    }
    return true;
}

static void put_cp(int32_t cp, moa_buf *out) {
    char bytes[4];
    moa_buf_append(out, bytes, moa_utf8_put(cp, bytes));
}

void moa_utf8_replace(const char *s, size_t n, moa_buf *out) {
    size_t done = 0; /* everything before is written; valid runs go in one append */
    for (size_t i = 0; i < n;) {
        int32_t cp;
        bool valid;
        const size_t k = moa_utf8_next(s + i, n - i, &cp, &valid);
        if (!valid) {
            moa_buf_append(out, s + done, i - done);
            put_cp(CP_BAD, out);
            done = i + k;
        }
        i += k;
    }
    moa_buf_append(out, s + done, n - done);
}

/* --- what may be shown ----------------------------------------------------------------------------------------------- */

bool moa_text_unsafe(int32_t cp) {
    if (cp >= 0x20 && cp < 0x7F) return false;
    const utf8proc_property_t *p = utf8proc_get_property(cp);
    switch (p->category) {
    case UTF8PROC_CATEGORY_CC: /* control */
    case UTF8PROC_CATEGORY_CF: /* format: bidi, zero-width, tags, BOM, interlinear, soft hyphen */
    case UTF8PROC_CATEGORY_CS: /* surrogate */
    case UTF8PROC_CATEGORY_CN: /* unassigned: no terminal agrees on its width */
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return true;
    default: return p->ignorable; /* fillers, variation selectors, grapheme joiner */
    }
}

/* The stream's record of what of the output stands for something else; adjacent parts are one. */
static void note_mark(moa_text_stream *s, size_t at, const moa_buf *out) {
    if (!s->marks || !moa_buf_ok(out) || out->size == at) return;
    const size_t n = s->marks->size / sizeof(moa_clean_mark);
    moa_clean_mark *all = (moa_clean_mark *)(void *)s->marks->data;
    if (n && all[n - 1].at + all[n - 1].bytes == at)
        all[n - 1].bytes += out->size - at;
    else
        moa_buf_append(s->marks, &(moa_clean_mark){at, out->size - at}, sizeof(moa_clean_mark));
}

static void put_placeholder(moa_text_stream *s, int32_t cp, moa_buf *out) {
    const size_t at = out->size;
    moa_buf_printf(out, "<U+%04" PRIX32 ">", (uint32_t)cp);
    note_mark(s, at, out);
}

static void put_control(moa_text_stream *s, int32_t cp, moa_buf *out) {
    const size_t at = out->size;
    if (cp >= 0x80) { /* C1 */
        if (s->flags & MOA_TEXT_ASCII)
            moa_buf_str(out, "<U+FFFD>");
        else
            put_cp(CP_BAD, out);
    } else if (s->flags & MOA_TEXT_ASCII) {
        const char bytes[2] = {'^', (char)(cp ^ 0x40)}; /* ESC -> ^[   DEL -> ^? */
        moa_buf_append(out, bytes, 2);
    } else {
        put_cp(cp == 0x7F ? 0x2421 : 0x2400 + cp, out);
    }
    note_mark(s, at, out);
}

/* The cell ends: says how many marks were over the cap, and that a joiner joined nothing. */
static void end_cell(moa_text_stream *s, moa_buf *out) {
    if (s->n_over) {
        const size_t at = out->size;
        moa_buf_printf(out, "<+%" PRIu64 ">", s->n_over);
        note_mark(s, at, out);
    }
    if (s->zwj_held) put_placeholder(s, CP_ZWJ, out);
    s->n_over = 0;
    s->n_mark = s->n_zwj = 0;
    s->has_base = s->pictograph = s->vs_seen = s->zwj_held = false;
}

static void put_mark(moa_text_stream *s, int32_t cp, moa_buf *out) {
    if (s->zwj_held) end_cell(s, out);
    if (s->n_mark >= MARK_CAP) {
        s->n_over++;
        return;
    }
    if (!s->has_base) {
        put_cp(0x25CC, out); /* or it would sit on whatever the screen had there before */
        s->has_base = true;
    }
    s->n_mark++;
    put_cp(cp, out);
}

static void put_base(moa_text_stream *s, int32_t cp, moa_buf *out) {
    const bool pictograph =
        utf8proc_get_property(cp)->boundclass == UTF8PROC_BOUNDCLASS_EXTENDED_PICTOGRAPHIC;
    if (s->zwj_held && pictograph) { /* the joiner joins: the cluster goes on */
        const unsigned char n_zwj = (unsigned char)(s->n_zwj + 1);
        s->zwj_held = false;
        put_cp(CP_ZWJ, out);
        end_cell(s, out);
        s->n_zwj = n_zwj;
    } else {
        end_cell(s, out);
    }
    put_cp(cp, out);
    s->has_base = true;
    s->pictograph = pictograph;
}

/* U+1F3FB..F colour the emoji before them: the cluster may still be joined to */
static bool is_skin_tone(int32_t cp) {
    return cp >= 0x1F3FB && cp <= 0x1F3FF;
}

static void put_clean(moa_text_stream *s, int32_t cp, bool valid, moa_buf *out) {
    const bool ascii = s->flags & MOA_TEXT_ASCII;
    if (cp < 0x20 || (cp >= 0x7F && cp < 0xA0)) {
        end_cell(s, out);
        if ((cp == '\n' || cp == '\t') && !(s->flags & MOA_TEXT_LINE))
            put_cp(cp, out);
        else
            put_control(s, cp, out);
    } else if (cp < 0x7F) {
        end_cell(s, out);
        put_cp(cp, out);
        s->has_base = true;
    } else if (ascii) {
        end_cell(s, out);
        put_placeholder(s, cp, out);
    } else if (!valid) {
        end_cell(s, out);
        const size_t at = out->size;
        put_cp(CP_BAD, out);
        note_mark(s, at, out);
    } else if (cp == CP_ZWJ && s->pictograph && !s->zwj_held && s->n_zwj < ZWJ_CAP && !s->n_over) {
        s->zwj_held = true; /* shown only when an emoji follows */
    } else if (cp >= 0xFE00 && cp <= 0xFE0F && s->has_base && !s->vs_seen && !s->zwj_held) {
        s->vs_seen = true;
        put_cp(cp, out);
    } else if (moa_text_unsafe(cp)) {
        end_cell(s, out);
        put_placeholder(s, cp, out);
    } else if (moa_cp_cells(cp) == 0) {
        put_mark(s, cp, out);
    } else if (is_skin_tone(cp) && s->pictograph && !s->zwj_held) {
        put_cp(cp, out);
    } else {
        put_base(s, cp, out);
    }
}

void moa_text_push(moa_text_stream *s, const char *bytes, size_t n, moa_buf *out) {
    int32_t cp;
    bool valid;
    size_t i = 0;
    while (s->n_held && i < n) { /* finish the character cut by the push before, byte by byte */
        s->held[s->n_held++] = bytes[i++];
        if (moa_utf8_tail(s->held, s->n_held) == s->n_held) continue;
        const size_t k = moa_utf8_next(s->held, s->n_held, &cp, &valid);
        put_clean(s, cp, valid, out);
        i -= s->n_held - k; /* at most the byte just taken, which begins something new */
        s->n_held = 0;
    }
    const size_t tail = moa_utf8_tail(bytes + i, n - i);
    for (const size_t end = n - tail; i < end;) {
        i += moa_utf8_next(bytes + i, end - i, &cp, &valid);
        put_clean(s, cp, valid, out);
    }
    while (i < n)
        s->held[s->n_held++] = bytes[i++];
}

void moa_text_flush(moa_text_stream *s, moa_buf *out) {
    if (s->n_held) put_clean(s, CP_BAD, false, out);
    s->n_held = 0;
    end_cell(s, out);
}

void moa_text_clean(const char *bytes, size_t n, int flags, moa_buf *out) {
    moa_text_stream s = {.flags = flags};
    moa_text_push(&s, bytes, n, out);
    moa_text_flush(&s, out);
}

struct moa_clean {
    moa_text_stream stream;
    moa_buf text, marks;
};

moa_clean *moa_clean_open(int flags) {
    moa_clean *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->stream.flags = flags;
    c->stream.marks = &c->marks;
    return c;
}

moa_clean *moa_clean_of(const char *bytes, size_t n, int flags) {
    moa_clean *c = moa_clean_open(flags);
    if (c && !(moa_clean_push(c, bytes, n) && moa_clean_end(c))) moa_clean_close(&c);
    return c;
}

void moa_clean_close(moa_clean **c) {
    if (!c || !*c) return;
    moa_buf_free(&(*c)->text);
    moa_buf_free(&(*c)->marks);
    free(*c);
    *c = NULL;
}

/* A failed append leaves a shorter text that is still clean; the next push may succeed again. */
static bool settle(moa_clean *c) {
    const bool ok = moa_buf_ok(&c->text) && moa_buf_ok(&c->marks);
    c->text.failed = c->marks.failed = false;
    return ok;
}

bool moa_clean_push(moa_clean *c, const char *bytes, size_t n) {
    moa_text_push(&c->stream, bytes, n, &c->text);
    return settle(c);
}

bool moa_clean_end(moa_clean *c) {
    moa_text_flush(&c->stream, &c->text);
    return settle(c);
}

void moa_clean_clear(moa_clean *c) {
    moa_buf_clear(&c->text);
    moa_buf_clear(&c->marks);
    c->stream = (moa_text_stream){.flags = c->stream.flags, .marks = &c->marks};
}

const char *moa_clean_text(const moa_clean *c) {
    return c && c->text.data ? c->text.data : "";
}
size_t moa_clean_bytes(const moa_clean *c) {
    return c ? c->text.size : 0;
}

const moa_clean_mark *moa_clean_marks(const moa_clean *c, size_t *n) {
    *n = c ? c->marks.size / sizeof(moa_clean_mark) : 0;
    return c ? (const moa_clean_mark *)(const void *)c->marks.data : NULL;
}

/* --- cells ------------------------------------------------------------------------------------------------------------- */

int moa_cp_cells(int32_t cp) {
    if (cp >= 0x20 && cp < 0x7F) return 1;
    /* two corrections towards what terminals and libc do: spacing marks take a cell, trailing Hangul jamo take none */
    if (utf8proc_category(cp) == UTF8PROC_CATEGORY_MC) return 1;
    if ((cp >= 0x1160 && cp <= 0x11FF) || (cp >= 0xD7B0 && cp <= 0xD7FF)) return 0;
    const int cells = utf8proc_charwidth(cp);
    return cells < 0 ? 0 : cells > 2 ? 2 : cells;
}

int moa_text_cells(const char *s, size_t n) {
    int used = 0;
    (void)moa_text_prefix(s, n, INT32_MAX - 2, &used);
    return used;
}

size_t moa_text_prefix(const char *s, size_t n, int cells, int *used) {
    int taken = 0;
    size_t i = 0;
    while (i < n) {
        int32_t cp;
        const size_t k = moa_utf8_next(s + i, n - i, &cp, NULL);
        const int wide = moa_cp_cells(cp);
        if (taken + wide > cells) break;
        taken += wide;
        i += k;
    }
    if (i < n && i >= 3 && memcmp(s + i - 3, "\xE2\x80\x8D", 3) == 0)
        i -= 3; /* no joiner without its second emoji */
    if (used) *used = taken;
    return i;
}

int moa_text_cut(const char *s, size_t n, int cells, moa_buf *out) {
    int used = 0;
    if (cells <= 0) return 0;
    size_t k = moa_text_prefix(s, n, cells, &used);
    if (k < n) k = moa_text_prefix(s, n, cells - 1, &used);
    moa_buf_append(out, s, k);
    if (k == n) return used;
    moa_buf_str(out, "~");
    return used + 1;
}

/* --- for other programs --------------------------------------------------------------------------------------------------- */

void moa_text_json(const char *s, size_t n, moa_buf *out) {
    moa_buf_str(out, "\"");
    for (size_t i = 0; i < n;) {
        int32_t cp;
        const size_t k = moa_utf8_next(s + i, n - i, &cp, NULL);
        if (cp == '"' || cp == '\\')
            moa_buf_printf(out, "\\%c", (int)cp);
        else if (cp == '\n')
            moa_buf_str(out, "\\n");
        else if (cp == '\t')
            moa_buf_str(out, "\\t");
        else if (cp == '\r')
            moa_buf_str(out, "\\r");
        else if (!moa_text_unsafe(cp))
            put_cp(cp, out);
        else if (cp < 0x10000)
            moa_buf_printf(out, "\\u%04x", (unsigned)cp);
        else
            moa_buf_printf(out, "\\u%04x\\u%04x", (unsigned)(0xD7C0 + (cp >> 10)),
                           (unsigned)(0xDC00 | (cp & 0x3FF)));
        i += k;
    }
    moa_buf_str(out, "\"");
}

void moa_text_xml(const char *s, size_t n, moa_buf *out) {
    moa_buf clean = {0};
    moa_text_clean(s, n, 0, &clean);
    for (size_t i = 0; i < clean.size; i++) {
        const char c = clean.data[i];
        if (c == '&')
            moa_buf_str(out, "&amp;");
        else if (c == '<')
            moa_buf_str(out, "&lt;");
        else if (c == '>')
            moa_buf_str(out, "&gt;");
        else if (c == '"')
            moa_buf_str(out, "&quot;");
        else if (c == '\'')
            moa_buf_str(out, "&#39;");
        else
            moa_buf_append(out, &c, 1);
    }
    if (!moa_buf_ok(&clean)) out->failed = true;
    moa_buf_free(&clean);
}

void moa_text_tsv(const char *s, size_t n, moa_buf *out) {
    moa_text_stream t = {0};
    for (size_t i = 0; i < n; i++) {
        const char *as = s[i] == '\\'   ? "\\\\"
                         : s[i] == '\n' ? "\\n"
                         : s[i] == '\t' ? "\\t"
                         : s[i] == '\r' ? "\\r"
                                        : NULL;
        if (as)
            moa_text_push(&t, as, 2, out);
        else
            moa_text_push(&t, s + i, 1, out);
    }
    moa_text_flush(&t, out);
}

/* may s stand between plain single quotes? */
static bool plain_word(const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        int32_t cp;
        bool valid;
        i += moa_utf8_next(s + i, n - i, &cp, &valid);
        if (!valid || moa_text_unsafe(cp)) return false;
    }
    return true;
}

void moa_text_shell(const char *s, size_t n, moa_buf *out) {
    const bool plain = plain_word(s, n);
    moa_buf_str(out, plain ? "'" : "$'");
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)s[i];
        if (plain && c == '\'')
            moa_buf_str(out, "'\\''");
        else if (plain)
            moa_buf_append(out, s + i, 1);
        else if (c == '\'' || c == '\\')
            moa_buf_printf(out, "\\%c", c);
        else if (c < 0x20 || c >= 0x7F)
            moa_buf_printf(out, "\\x%02x", c);
        else
            moa_buf_append(out, s + i, 1);
    }
    moa_buf_str(out, "'");
}
