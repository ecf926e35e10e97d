/* select.c -- words that name heads, and words that change their rules.
 *
 *   L14.H13   L14.*   L10-20.H0,4   *.H3   G3 (that KV group in every layer)   L14.G3   *       several, separated by spaces */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plans/plan.h"

typedef struct reader {
    const char *text, *at;
    moa_err *err;
} reader;

static bool refuse(reader *r, const char *what, int32_t limit) {
    (void)moa_fail(r->err, MOA_E_USAGE, "selector '%s', character %d: %s (0 to %d)", r->text, (int)(r->at - r->text) + 1, what,
                   limit - 1);
    return false;
}

static bool number(reader *r, int32_t limit, int32_t *out) {
    if (*r->at < '0' || *r->at > '9') return refuse(r, "a number was expected", limit);
    char *end;
    const long x = strtol(r->at, &end, 10);
    if (x >= limit) return refuse(r, "there is no such one", limit);
    r->at = end;
    *out = (int32_t)x;
    return true;
}

/* "3", "0,4", "10-20,25": marks chosen[0..limit) */
static bool set(reader *r, int32_t limit, uint8_t *chosen) {
    for (;;) {
        int32_t from, to;
        if (!number(r, limit, &from)) return false;
        to = from;
        if (*r->at == '-') {
            r->at++;
            if (!number(r, limit, &to)) return false;
        }
        if (to < from) return refuse(r, "the range runs backwards", limit);
        memset(chosen + from, 1, (size_t)(to - from) + 1);
        if (*r->at != ',') return true;
        r->at++;
    }
}

static bool heads_of(reader *r, int32_t n_head, int32_t n_head_kv, uint8_t *chosen) {
    if (*r->at == '*') {
        r->at++;
        memset(chosen, 1, (size_t)n_head);
        return true;
    }
    if (*r->at == 'H' || *r->at == 'h') {
        r->at++;
        return set(r, n_head, chosen);
    }
    if ((*r->at == 'G' || *r->at == 'g') && n_head_kv > 0) {
        uint8_t groups[MOA_PLAN_HEAD_MAX] = {0};
        r->at++;
        if (!set(r, n_head_kv, groups)) return false;
        for (int32_t h = 0; h < n_head; h++) chosen[h] |= groups[h / (n_head / n_head_kv)];
        return true;
    }
    return refuse(r, "'H', 'G' or '*' was expected", n_head);
}

static bool term(reader *r, int32_t n_layer, int32_t n_head, int32_t n_head_kv, uint8_t *mask) {
    uint8_t layers[MOA_PLAN_LAYER_MAX] = {0}, heads[MOA_PLAN_HEAD_MAX] = {0};
    if (*r->at == 'L' || *r->at == 'l' || *r->at == '*') {
        if (*r->at == '*') {
            r->at++;
            memset(layers, 1, (size_t)n_layer);
        } else {
            r->at++;
            if (!set(r, n_layer, layers)) return false;
        }
        if (*r->at == '.') {
            r->at++;
            if (!heads_of(r, n_head, n_head_kv, heads)) return false;
        } else memset(heads, 1, (size_t)n_head);
    } else {
        memset(layers, 1, (size_t)n_layer);
        if (!heads_of(r, n_head, n_head_kv, heads)) return false;
    }
    for (int32_t l = 0; l < n_layer; l++)
        for (int32_t h = 0; h < n_head; h++)
            if (layers[l] && heads[h]) mask[(int64_t)l * n_head + h] = 1;
    return true;
}

moa_status moa_select(const char *text, int32_t n_layer, int32_t n_head, int32_t n_head_kv, uint8_t *mask, moa_err *err) {
    reader r = {text, text, err};
    if (n_layer > MOA_PLAN_LAYER_MAX || n_head > MOA_PLAN_HEAD_MAX)
        return moa_fail(err, MOA_E_INVALID, "%d layers x %d heads are beyond the limit", n_layer, n_head);
    while (*r.at == ' ') r.at++;
    if (!*r.at) return moa_fail(err, MOA_E_USAGE, "a selector was expected, such as L14.H13, L10-20.*, G3 or *");
    while (*r.at) {
        if (!term(&r, n_layer, n_head, n_head_kv, mask)) return MOA_E_USAGE;
        if (*r.at && *r.at != ' ')
            return moa_fail(err, MOA_E_USAGE, "selector '%s', character %d: unexpected '%c'", text, (int)(r.at - text) + 1, *r.at);
        while (*r.at == ' ') r.at++;
    }
    return MOA_OK;
}

/* --- rule edits ---------------------------------------------------------------------------------------------------------- */

static bool amount(const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0 && isfinite(*out);
}

static bool edit_word(moa_rule *rule, const char *word) {
    static const struct {
        const char *key;
        bool alpha;
    } fields[] = {{"alpha", true}, {"a", true}, {"beta", false}, {"b", false}};
    double x;
    if (strcmp(word, "full") == 0) *rule = (moa_rule){0, 1};
    else if (strcmp(word, "sink") == 0) *rule = (moa_rule){MOA_SPAN_MIN, 0};
    else if (strncmp(word, "w=", 2) == 0 && amount(word + 2, &x) && x > 0) *rule = (moa_rule){x, 0};
    else {
        for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
            const size_t n = strlen(fields[f].key);
            if (strncmp(word, fields[f].key, n) != 0) continue;
            double *value = fields[f].alpha ? &rule->alpha : &rule->beta;
            const char *op = word + n;
            if (*op == '=' && amount(op + 1, &x)) *value = x;
            else if (strncmp(op, "+=", 2) == 0 && amount(op + 2, &x)) *value += x;
            else if (strncmp(op, "-=", 2) == 0 && amount(op + 2, &x)) *value -= x;
            else continue;
            return isfinite(*value);
        }
        return false;
    }
    return true;
}

moa_status moa_rule_edit(moa_rule *rule, const char *text, moa_err *err) {
    moa_rule edited = *rule;
    char copy[256];
    if (strlen(text) >= sizeof copy) return moa_fail(err, MOA_E_USAGE, "a rule of more than 255 characters");
    memcpy(copy, text, strlen(text) + 1);
    int n_word = 0;
    char *save = NULL;
    for (char *word = strtok_r(copy, " \t", &save); word; word = strtok_r(NULL, " \t", &save), n_word++)
        if (!edit_word(&edited, word))
            return moa_fail(err, MOA_E_USAGE, "'%s' is no rule: alpha=TOKENS beta=SHARE (also += -=), w=TOKENS, full, sink", word);
    if (n_word == 0) return moa_fail(err, MOA_E_USAGE, "a rule was expected: alpha=TOKENS beta=SHARE, w=TOKENS, full or sink");
    *rule = edited;
    return MOA_OK;
}
