#include "core/base/json.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

typedef struct slice {
    const char *at;
    size_t n;
} slice;

typedef struct scan {
    const char *text;
    size_t n, pos;
    int depth;
    moa_err *err;
    moa_json_member *members; /* of the top-level object, or NULL */
    size_t max, n_members;
    bool failed;
} scan;

static bool bad(scan *s, const char *what) {
    if (!s->failed) (void)moa_fail(s->err, MOA_E_INVALID, "not valid JSON: byte %zu: %s", s->pos, what);
    s->failed = true;
    return false;
}

static void skip_space(scan *s) {
    while (s->pos < s->n && strchr(" \t\r\n", s->text[s->pos]) && s->text[s->pos]) s->pos++;
}

static int peek(const scan *s) { return s->pos < s->n ? (unsigned char)s->text[s->pos] : -1; }

static bool hex4(scan *s, unsigned *out) {
    *out = 0;
    for (int i = 0; i < 4; i++, s->pos++) {
        const int c = peek(s);
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return bad(s, "\\u needs four hexadecimal digits");
        *out = *out << 4 | (unsigned)digit;
    }
    return true;
}

static bool escape(scan *s) {
    const int c = peek(s);
    if (c <= 0 || !strchr("\"\\/bfnrtu", c)) return bad(s, "unknown escape in a string");
    s->pos++;
    if (c != 'u') return true;
    unsigned unit, low;
    if (!hex4(s, &unit)) return false;
    if (unit == 0) return bad(s, "\\u0000 in a string");
    if (unit >= 0xDC00 && unit <= 0xDFFF) return bad(s, "lone low surrogate");
    if (unit < 0xD800 || unit > 0xDBFF) return true;
    if (s->n - s->pos < 6 || s->text[s->pos] != '\\' || s->text[s->pos + 1] != 'u') return bad(s, "lone high surrogate");
    s->pos += 2;
    if (!hex4(s, &low)) return false;
    return low >= 0xDC00 && low <= 0xDFFF ? true : bad(s, "lone high surrogate");
}

/* at the opening quote; inside: the bytes between the quotes */
static bool string(scan *s, slice *inside) {
    s->pos++;
    const size_t start = s->pos;
    for (;;) {
        const int c = peek(s);
        if (c < 0) return bad(s, "a string does not end");
        if (c == '"') break;
        if (c < 0x20 || c == 0x7f) return bad(s, "control byte in a string");
        if (c == '\\') {
            s->pos++;
            if (!escape(s)) return false;
            continue;
        }
        if (c < 0x80) {
            s->pos++;
            continue;
        }
        utf8proc_int32_t cp;
        const utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s->text + s->pos,
                                                    (utf8proc_ssize_t)(s->n - s->pos), &cp);
        if (n <= 0) return bad(s, "invalid UTF-8");
        s->pos += (size_t)n;
    }
    *inside = (slice){s->text + start, s->pos - start};
    s->pos++;
    return true;
}

static bool digits(scan *s) {
    const size_t start = s->pos;
    while (peek(s) >= '0' && peek(s) <= '9') s->pos++;
    return s->pos > start ? true : bad(s, "a digit was expected");
}

static bool number(scan *s) {
    const size_t start = s->pos;
    if (peek(s) == '-') s->pos++;
    if (peek(s) == '0') s->pos++;
    else if (!digits(s)) return false;
    if (peek(s) == '.') {
        s->pos++;
        if (!digits(s)) return false;
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        s->pos++;
        if (peek(s) == '+' || peek(s) == '-') s->pos++;
        if (!digits(s)) return false;
    }
    char copy[64];
    const size_t n = s->pos - start;
    if (n >= sizeof copy) return bad(s, "a number of more than 63 characters");
    memcpy(copy, s->text + start, n);
    copy[n] = 0;
    return isfinite(strtod(copy, NULL)) ? true : bad(s, "a number beyond what a double can hold");
}

static int by_bytes(const void *a, const void *b) {
    const slice *x = a, *y = b;
    const int c = memcmp(x->at, y->at, x->n < y->n ? x->n : y->n);
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

/* Keys are compared as written: an escaped spelling of a plain key is refused, so that no two spellings are one key. */
static bool keys_differ(scan *s, slice *keys, size_t n) {
    for (size_t k = 0; k < n; k++)
        if (memchr(keys[k].at, '\\', keys[k].n)) return bad(s, "an escape in the key of an object");
    if (n > 1) qsort(keys, n, sizeof *keys, by_bytes);
    for (size_t k = 1; k < n; k++)
        if (by_bytes(&keys[k - 1], &keys[k]) == 0) return bad(s, "the same key twice in one object");
    return true;
}

static bool value(scan *s);

static bool note_member(scan *s, slice key, size_t start) {
    if (s->depth != 1 || !s->members) return true;
    if (s->n_members == s->max) return bad(s, "too many members in the top-level object");
    s->members[s->n_members++] = (moa_json_member){key.at, s->text + start, key.n, s->pos - start};
    return true;
}

static bool object(scan *s) {
    moa_buf keys = {0};
    bool ok = false;
    s->pos++;
    skip_space(s);
    if (peek(s) == '}') {
        s->pos++;
        return true;
    }
    for (;;) {
        slice key;
        skip_space(s);
        if (peek(s) != '"') {
            (void)bad(s, "a key was expected");
            break;
        }
        if (!string(s, &key)) break;
        moa_buf_append(&keys, &key, sizeof key);
        skip_space(s);
        if (peek(s) != ':') {
            (void)bad(s, "':' was expected");
            break;
        }
        s->pos++;
        skip_space(s);
        const size_t start = s->pos;
        if (!value(s) || !note_member(s, key, start)) break;
        skip_space(s);
        const int c = peek(s);
        if (c != ',' && c != '}') {
            (void)bad(s, "',' or '}' was expected");
            break;
        }
        s->pos++;
        if (c == ',') continue;
        ok = moa_buf_ok(&keys) ? keys_differ(s, (slice *)(void *)keys.data, keys.size / sizeof(slice))
                               : bad(s, "no memory for its keys");
        break;
    }
    moa_buf_free(&keys);
    return ok;
}

static bool array(scan *s) {
    s->pos++;
    skip_space(s);
    if (peek(s) == ']') {
        s->pos++;
        return true;
    }
    for (;;) {
        if (!value(s)) return false;
        skip_space(s);
        const int c = peek(s);
        if (c != ',' && c != ']') return bad(s, "',' or ']' was expected");
        s->pos++;
        if (c == ']') return true;
    }
}

static bool word(scan *s, const char *text) {
    const size_t n = strlen(text);
    if (s->n - s->pos < n || memcmp(s->text + s->pos, text, n) != 0) return bad(s, "a value was expected");
    s->pos += n;
    return true;
}

static bool value(scan *s) {
    slice unused;
    skip_space(s);
    const int c = peek(s);
    if (c == '"') return string(s, &unused);
    if (c == 't') return word(s, "true");
    if (c == 'f') return word(s, "false");
    if (c == 'n') return word(s, "null");
    if (c == '-' || (c >= '0' && c <= '9')) return number(s);
    if (c != '{' && c != '[') return bad(s, c < 0 ? "the text ends early" : "a value was expected");
    if (s->depth == MOA_JSON_DEPTH_MAX) return bad(s, "nested deeper than 64");
    s->depth++;
    const bool ok = c == '{' ? object(s) : array(s);
    s->depth--;
    return ok;
}

static moa_status run(scan *s) {
    if (!value(s)) return MOA_E_INVALID;
    skip_space(s);
    if (s->pos == s->n) return MOA_OK;
    (void)bad(s, "text after the end of the document");
    return MOA_E_INVALID;
}

moa_status moa_json_check(const char *text, size_t n, moa_err *err) {
    scan s = {.text = text, .n = n, .err = err};
    return run(&s);
}

moa_status moa_json_members(const char *text, size_t n, moa_json_member *members, size_t max, size_t *n_members, moa_err *err) {
    scan s = {.text = text, .n = n, .err = err, .members = members, .max = max};
    *n_members = 0;
    skip_space(&s);
    if (peek(&s) != '{') return moa_fail(err, MOA_E_INVALID, "not valid JSON: an object {...} was expected at byte %zu", s.pos);
    const moa_status status = run(&s);
    if (status == MOA_OK) *n_members = s.n_members;
    return status;
}

void moa_json_number(moa_buf *out, double x) {
    if (!isfinite(x)) {
        moa_buf_str(out, "null");
        return;
    }
    char text[40];
    for (int precision = 1; precision <= 17; precision++) {
        (void)snprintf(text, sizeof text, "%.*g", precision, x);
        if (strtod(text, NULL) == x) break;
    }
    moa_buf_str(out, text);
}
