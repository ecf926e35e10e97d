#include "core/tasks/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "core/base/buf.h"
#include "core/base/size.h"
#include "core/base/text.h"

/* --- words --------------------------------------------------------------------------------------------------------------- */

typedef struct words {
    moa_buf text;       /* lower-cased, words NUL-terminated */
    const char **words; /* (n), into text; owned array */
    size_t n;
} words;

static void free_words(words *w) {
    moa_buf_free(&w->text);
    free(w->words);
}

static bool is_space(int32_t cp) {
    return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 31) || cp == 0x85 || cp == 0xA0 ||
           cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}

static bool is_punctuation(int32_t cp) {
    return (cp > 32 && cp < '0') || (cp > '9' && cp < 'A') || (cp > 'Z' && cp < 'a') ||
           (cp > 'z' && cp < 127);
}

static bool is_alnum(int32_t cp) {
    return (cp >= '0' && cp <= '9') || (cp >= 'a' && cp <= 'z');
}

/* what a code point is to a rule */
typedef enum piece { LETTER, BREAK, NOTHING } piece;
static piece squad_piece(int32_t cp) {
    return is_space(cp) ? BREAK : is_punctuation(cp) ? NOTHING : LETTER;
}
static piece rouge_piece(int32_t cp) {
    return is_alnum(cp) ? LETTER : BREAK;
}

static bool is_article(const char *w) {
    return strcmp(w, "a") == 0 || strcmp(w, "an") == 0 || strcmp(w, "the") == 0;
}

static bool split(const char *s, piece (*rule)(int32_t), bool articles, words *out) {
    const size_t n = strlen(s);
    size_t bytes, n_word = 0;
    bool inside = false;
    *out = (words){0};
    for (size_t at = 0; at < n;) {
        int32_t cp;
        char utf8[4];
        at += moa_utf8_next(s + at, n - at, &cp, NULL);
        cp = utf8proc_tolower(cp);
        const piece p = rule(cp);
        if (p == LETTER)
            moa_buf_append(&out->text, utf8, moa_utf8_put(cp, utf8));
        else if (p == BREAK && inside)
            moa_buf_append(&out->text, "", 1);
        n_word += p == LETTER && !inside;
        inside = p == LETTER || (inside && p == NOTHING);
    }
    if (!moa_buf_ok(&out->text) || !moa_size_mul(n_word + 1, sizeof *out->words, &bytes) ||
        !(out->words = malloc(bytes)))
        return false;
    const char *at = out->text.data;
    for (size_t i = 0; i < n_word; i++, at += strlen(at) + 1)
        if (articles || !is_article(at)) out->words[out->n++] = at;
    return true;
}

/* --- the scores ----------------------------------------------------------------------------------------------------------- */

static double f_of(double common, size_t n_answer, size_t n_expected) {
    if (n_answer == 0 && n_expected == 0) return 1;
    if (common == 0 || n_answer == 0 || n_expected == 0) return 0;
    const double p = common / (double)n_answer, r = common / (double)n_expected;
    return 2 * p * r / (p + r);
}

static double score(const char *answer, const char *expected, piece (*rule)(int32_t), bool articles,
                    double (*judge)(words *, words *)) {
    words a = {0}, e = {0};
    const double x = split(answer, rule, articles, &a) && split(expected, rule, articles, &e) ? judge(&a, &e)
                                                                                              : (double)NAN;
    free_words(&a);
    free_words(&e);
    return x;
}

static double judge_exact(words *a, words *e) {
    bool equal = a->n == e->n;
    for (size_t i = 0; equal && i < a->n; i++)
        equal = strcmp(a->words[i], e->words[i]) == 0;
    return equal ? 1 : 0;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static double judge_f1(words *a, words *e) {
    size_t common = 0;
    qsort(a->words, a->n, sizeof *a->words, by_text);
    qsort(e->words, e->n, sizeof *e->words, by_text);
    for (size_t i = 0, k = 0; i < a->n && k < e->n;) {
        const int c = strcmp(a->words[i], e->words[k]);
        common += c == 0;
        i += c <= 0;
        k += c >= 0;
    }
    return f_of((double)common, a->n, e->n);
}

static double judge_rouge_l(words *a, words *e) {
    size_t pairs, bytes;
    if (!moa_size_mul(a->n, e->n, &pairs) || pairs > (size_t)1 << 28 ||
        !moa_size_mul(e->n + 1, sizeof(uint32_t), &bytes))
        return (double)NAN;
    uint32_t *row = calloc(1, bytes); /* row[k]: LCS of the words of a so far and the first k of e */
    if (!row) return (double)NAN;
    for (size_t i = 0; i < a->n; i++) {
        uint32_t diagonal = 0;
        for (size_t k = 1; k <= e->n; k++) {
            const uint32_t above = row[k];
            if (strcmp(a->words[i], e->words[k - 1]) == 0)
                row[k] = diagonal + 1;
            else if (row[k - 1] > above)
                row[k] = row[k - 1];
            diagonal = above;
        }
    }
    const double lcs = row[e->n];
    free(row);
    return f_of(lcs, a->n, e->n);
}

double moa_score_exact(const char *answer, const char *expected) {
    return score(answer, expected, squad_piece, false, judge_exact);
}
double moa_score_f1(const char *answer, const char *expected) {
    return score(answer, expected, squad_piece, false, judge_f1);
}
double moa_score_rouge_l(const char *answer, const char *expected) {
    return score(answer, expected, rouge_piece, true, judge_rouge_l);
}

/* --- numbers and words ------------------------------------------------------------------------------------------------------ */

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool moa_score_number(const char *text, char *out, size_t out_bytes) {
    size_t n = 0;
    while (*text && !is_digit(*text))
        text++;
    const bool found = *text != 0;
    for (; is_digit(*text) || (*text == ',' && is_digit(text[1]) && is_digit(text[2]) && is_digit(text[3]));
         text++)
        if (*text != ',' && n + 1 < out_bytes) out[n++] = *text;
    if (out_bytes) out[n] = 0;
    return found;
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

int moa_score_word(const char *text, const char *const *candidates, int n) {
    for (const char *p = text; *p;) {
        size_t len = 0;
        while (is_letter(p[len]))
            len++;
        for (int i = 0; len > 0 && i < n; i++)
            if (strlen(candidates[i]) == len && strncasecmp(p, candidates[i], len) == 0) return i;
        p += len ? len : 1;
    }
    return -1;
}

void moa_score_wilson(int64_t right, int64_t n, double *low, double *high) {
    static const double z = 1.959963984540054; /* of the normal distribution, 97.5 % */
    *low = 0;
    *high = 1;
    if (n <= 0) return;
    const double p = (double)right / (double)n, zz = z * z / (double)n;
    const double middle = (p + zz / 2) / (1 + zz);
    const double half = z / (1 + zz) * sqrt(p * (1 - p) / (double)n + zz / (4 * (double)n));
    if (right > 0) *low = middle - half;
    if (right < n) *high = middle + half;
}
