/* Pre-tokenisers: one row a meaning, any number of names.
 *
 * The expressions are those of the published tokenizer.json files, written for PCRE2 (UTF and UCP, JIT where there is
 * one), with two changes that do not change their meaning there:
 *
 *  - \s is spelled out. PCRE2 counts U+180E as a space and Hugging Face's Oniguruma does not; both leave out U+001C..1F.
 *  - smollm first isolates every digit, then applies the GPT-2 expression to each part by itself, so that a digit ends a
 *    part: (?!\S) becomes "not followed by what is neither space nor digit", and \p{N}+ becomes \p{N}.
 *
 * No expression nests repeats, so a match is linear; limits are set all the same, and a match that runs into one only
 * cuts the text there. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/model/tokenizer_pre.h"

#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/base/size.h"
#include "core/base/text.h"

#define WS "\\t-\\r \\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define TAIL3(number)                                                                                        \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" number "| ?[^" WS                          \
    "\\p{L}\\p{N}]+[\\r\\n]*|[" WS "]*[\\r\\n]+|[" WS "]+(?![^" WS "])|[" WS "]+"

static const struct row {
    const char *names; /* "a b c" */
    const char *regex;
    bool nfc, whole_word;
} rows[] = {
    {"smollm starcoder refact",
     "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+|[" WS "]+(?![^" WS "\\p{N}])|[" WS
     "]+",
     false, false},
    {"qwen2 deepseek-r1-qwen", TAIL3("\\p{N}"), true, false},
    {"llama-bpe llama3 llama-v3", TAIL3("\\p{N}{1,3}"), false, true},
    {"gpt-2 phi-2 default",
     "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|[" WS "]+(?![^" WS "])|[" WS "]+",
     false, false},
};

enum {
    MATCH_LIMIT = 10000000, /* steps of one match without JIT: seconds at most, far above any word */
    OVER_MAX = 16, /* after so many words over the limit the rest of the text goes without the expression */
    OVER_BYTES = 4096, /* how much text one word over the limit takes */
};

struct moa_pre {
    const struct row *row;
    pcre2_code *code;
    pcre2_match_context *context;
};

static bool name_in(const char *names, const char *name) {
    const size_t n = strlen(name);
    for (const char *p = names; n && (p = strstr(p, name)); p += n)
        if ((p == names || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return true;
    return false;
}

moa_status moa_pre_open(moa_pre **out, const char *name, moa_err *err) {
    moa_status s = MOA_OK;
    moa_pre *pre = NULL;
    const struct row *row = NULL;
    *out = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strchr(name, ' ') && name_in(rows[i].names, name)) row = &rows[i];
    if (!row)
        return moa_fail(err, MOA_E_UNSUPPORTED, "pre-tokenizer \"%.64s\" is not known; known are %s %s %s %s",
                        name, rows[0].names, rows[1].names, rows[2].names, rows[3].names);
    int code;
    PCRE2_SIZE at;
    if (!(pre = calloc(1, sizeof *pre))) goto memory;
    pre->row = row;
    pre->code =
        pcre2_compile((PCRE2_SPTR)row->regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!pre->code && code == PCRE2_ERROR_HEAP_FAILED) goto memory;
    if (!pre->code) {
        s = moa_fail(err, MOA_E_FAILED, "pre-tokenizer %.64s: PCRE2 error %d at byte %zu of its expression",
                     name, code, at);
        goto out;
    }
    (void)pcre2_jit_compile(pre->code, PCRE2_JIT_COMPLETE); /* without a JIT the interpreter does it */
    if (!(pre->context = pcre2_match_context_create(NULL))) goto memory;
    (void)pcre2_set_match_limit(pre->context, MATCH_LIMIT);
    *out = pre;
    return MOA_OK;
memory:
    s = moa_fail(err, MOA_E_MEMORY, "pre-tokenizer %.64s: out of memory", name);
out:
    moa_pre_close(&pre);
    return s;
}

void moa_pre_close(moa_pre **pre) {
    if (!pre || !*pre) return;
    pcre2_match_context_free((*pre)->context);
    pcre2_code_free((*pre)->code);
    free(*pre);
    *pre = NULL;
}

void moa_pre_set_limit(moa_pre *pre, unsigned n_steps) {
    (void)pcre2_set_match_limit(pre->context, n_steps);
}

bool moa_pre_is_nfc(const moa_pre *pre) {
    return pre->row->nfc;
}
bool moa_pre_is_whole_word(const moa_pre *pre) {
    return pre->row->whole_word;
}

/* --- words ------------------------------------------------------------------------------------------------------------- */

moa_status moa_pre_walk_open(moa_pre_walk *w, const moa_pre *pre, moa_err *err) {
    *w = (moa_pre_walk){.pre = pre, .match = pcre2_match_data_create(1, NULL)};
    return w->match ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "pre-tokenizer: out of memory");
}

void moa_pre_walk_start(moa_pre_walk *w, const char *text, size_t n) {
    w->text = text;
    w->n = n;
    w->at = w->next_to = 0;
    w->n_over = 0;
}

void moa_pre_walk_close(moa_pre_walk *w) {
    pcre2_match_data_free(w->match);
    w->match = NULL;
}

/* the end of a piece of at most OVER_BYTES that does not cut a character */
static size_t cut_after(const moa_pre_walk *w) {
    size_t to = w->at + OVER_BYTES;
    if (to >= w->n) return w->n;
    while (((unsigned char)w->text[to] & 0xC0) == 0x80)
        to--;
    return to;
}

bool moa_pre_walk_next(moa_pre_walk *w, size_t *from, size_t *to) {
    if (w->at >= w->n) return false;
    *from = w->at;
    if (w->next_to) { /* the match behind the hole given last time */
        *to = w->next_to;
        w->next_to = 0;
    } else if (w->n_over >= OVER_MAX) {
        *to = cut_after(w);
    } else {
        const int rc = pcre2_match(w->pre->code, (PCRE2_SPTR)w->text, w->n, w->at, PCRE2_NO_UTF_CHECK,
                                   w->match, w->pre->context);
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(w->match);
        if (rc == PCRE2_ERROR_NOMEMORY) {
            w->failed = true;
            return false;
        }
        if (rc == PCRE2_ERROR_NOMATCH) {
            *to = w->n; /* a hole is a word of its own, as in Hugging Face's "isolated" */
        } else if (rc < 0 || v[1] <= v[0]) {
            w->n_over++;
            *to = cut_after(w);
        } else if (v[0] > w->at) {
            *to = v[0];
            w->next_to = v[1];
        } else {
            *to = v[1];
        }
    }
    w->at = *to;
    return true;
}

/* --- normalisation form C -------------------------------------------------------------------------------------------------
 *
 * utf8proc's own string functions order combining marks by insertion, quadratic in the length of a run: a megabyte of
 * marks would take hours. So the text is cut where nothing can compose (before every character below U+0300), marks are
 * ordered by a stable sort here, and utf8proc decomposes single characters and composes. */

/* stable order by combining class of a run of marks: insertion when short, else by counting classes */
static bool sort_marks(int32_t *cp, size_t n) {
    if (n <= 32) {
        for (size_t i = 1; i < n; i++) {
            const int32_t x = cp[i];
            const int class = utf8proc_get_property(x)->combining_class;
            size_t j = i;
            for (; j && utf8proc_get_property(cp[j - 1])->combining_class > class; j--)
                cp[j] = cp[j - 1];
            cp[j] = x;
        }
        return true;
    }
    size_t start[257] = {0};
    int32_t *sorted = malloc(n * sizeof *sorted);
    if (!sorted) return false;
    for (size_t i = 0; i < n; i++)
        start[(utf8proc_get_property(cp[i])->combining_class & 255) + 1]++;
    for (int c = 0; c < 256; c++)
        start[c + 1] += start[c];
    for (size_t i = 0; i < n; i++)
        sorted[start[utf8proc_get_property(cp[i])->combining_class & 255]++] = cp[i];
    memcpy(cp, sorted, n * sizeof *cp);
    free(sorted);
    return true;
}

static bool order_marks(int32_t *cp, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t j = i;
        while (j < n && utf8proc_get_property(cp[j])->combining_class != 0)
            j++;
        if (j - i > 1 && !sort_marks(cp + i, j - i)) return false;
        i = j > i ? j : i + 1;
    }
    return true;
}

/* decomposes s into out->data as int32_t, appending */
static void decompose(const char *s, size_t n, moa_buf *out) {
    for (size_t i = 0; i < n;) {
        int32_t cp, parts[32];
        i += moa_utf8_next(s + i, n - i, &cp, NULL);
        int bound = 0;
        const utf8proc_ssize_t k =
            utf8proc_decompose_char(cp, parts, 32, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &bound);
        if (k < 0 || k > 32)
            moa_buf_append(out, &cp, sizeof cp);
        else
            moa_buf_append(out, parts, (size_t)k * sizeof *parts);
    }
}

static void normalise_part(const char *s, size_t n, moa_buf *work, moa_buf *out) {
    moa_buf_clear(work);
    decompose(s, n, work);
    int32_t *cp = (int32_t *)(void *)work->data;
    const size_t n_cp = work->size / sizeof *cp;
    if (!moa_buf_ok(work) || !order_marks(cp, n_cp)) {
        out->failed = true;
        return;
    }
    const utf8proc_ssize_t k =
        utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n_cp, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < k; i++) {
        char bytes[4];
        moa_buf_append(out, bytes, moa_utf8_put(cp[i], bytes));
    }
}

void moa_pre_nfc(const char *s, size_t n, moa_buf *out) {
    moa_buf work = {0};
    size_t low =
        0; /* where the last character below U+0300 begins, or the next character when there was none */
    size_t done = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        const size_t k = moa_utf8_next(s + i, n - i, &cp, NULL);
        if (cp < 0x300) {
            low = i;
            i += k;
            continue;
        }
        moa_buf_append(out, s + done, low - done); /* what stands before is in form C already */
        size_t end = i;
        while (end < n) {
            const size_t step = moa_utf8_next(s + end, n - end, &cp, NULL);
            if (cp < 0x300) break;
            end += step;
        }
        normalise_part(s + low, end - low, &work, out);
        done = low = i = end;
    }
    moa_buf_append(out, s + done, n - done);
    moa_buf_free(&work);
}
