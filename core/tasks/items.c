#include "core/tasks/items.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/base/text.h"
#include "core/model/chat.h"

/* --- an item ------------------------------------------------------------------------------------------------------------ */

static const char *const form_names[] = {"auto", "chat", "continue"};

const char *moa_form_name(moa_form f) {
    return form_names[f];
}

bool moa_form_parse(const char *text, moa_form *out) {
    for (int f = 0; f < 3; f++)
        if (strcmp(text, form_names[f]) == 0) {
            *out = (moa_form)f;
            return true;
        }
    return false;
}

static char *copy_of(const char *text, size_t n) {
    size_t bytes;
    char *copy = moa_size_add(n, 1, &bytes) ? malloc(bytes) : NULL;
    if (!copy) return NULL;
    if (n) memcpy(copy, text, n);
    copy[n] = 0;
    return copy;
}

bool moa_item_set(char **field, const char *text, size_t n) {
    char *copy = copy_of(text, n);
    if (!copy) return false;
    free(*field);
    *field = copy;
    return true;
}

bool moa_item_add_answer(moa_item *it, const char *text, size_t n) {
    char **answers = realloc(it->answers, ((size_t)it->n_answer + 1) * sizeof *answers);
    if (!answers) return false;
    it->answers = answers;
    answers[it->n_answer] = copy_of(text, n);
    if (!answers[it->n_answer]) return false;
    it->n_answer++;
    return true;
}

void moa_item_free(moa_item *it) {
    free(it->prompt);
    free(it->context);
    free(it->question);
    free(it->source);
    for (int32_t i = 0; i < it->n_answer; i++)
        free(it->answers[i]);
    free(it->answers);
    free(it->ids);
    *it = (moa_item){0};
}

void moa_items_free(moa_items *items) {
    for (int32_t i = 0; i < items->n; i++)
        moa_item_free(&items->data[i]);
    free(items->data);
    *items = (moa_items){0};
}

/* --- writing ------------------------------------------------------------------------------------------------------------ */

static void put_field(moa_buf *out, const char *key, const char *text, bool *first) {
    if (!text) return;
    moa_buf_printf(out, "%s\"%s\": ", *first ? "" : ", ", key);
    moa_text_json(text, strlen(text), out);
    *first = false;
}

void moa_item_print(const moa_item *it, moa_buf *out) {
    bool first = true;
    moa_buf_str(out, "{");
    put_field(out, "question", it->question, &first);
    put_field(out, "answer", it->n_answer > 0 ? it->answers[0] : NULL, &first);
    if (it->n_answer > 1) {
        moa_buf_str(out, ", \"answers\": [");
        for (int32_t i = 1; i < it->n_answer; i++) {
            moa_buf_str(out, i > 1 ? ", " : "");
            moa_text_json(it->answers[i], strlen(it->answers[i]), out);
        }
        moa_buf_str(out, "]");
    }
    put_field(out, "source", it->source, &first);
    if (it->form != MOA_FORM_AUTO) put_field(out, "form", moa_form_name(it->form), &first);
    if (it->length > 0) moa_buf_printf(out, "%s\"length\": %d", first ? "" : ", ", it->length), first = false;
    if (it->ids) {
        moa_buf_printf(out, "%s\"supervise_from\": %d, \"ids\": [", first ? "" : ", ", it->supervise_from);
        for (int32_t i = 0; i < it->n_ids; i++)
            moa_buf_printf(out, "%s%d", i ? "," : "", it->ids[i]);
        moa_buf_str(out, "]");
        first = false;
    }
    put_field(out, "context", it->context, &first);
    put_field(out, "prompt", it->prompt, &first);
    moa_buf_str(out, "}\n");
}

/* --- reading ------------------------------------------------------------------------------------------------------------ */

static bool is_key(const moa_json_member *m, const char *key) {
    return m->key_bytes == strlen(key) && memcmp(m->key, key, m->key_bytes) == 0;
}

/* the member's value as a tree; the text has passed moa_json_members */
static moa_status tree_of(const moa_json_member *m, cJSON **out, moa_err *err) {
    *out = cJSON_ParseWithLength(m->value, m->value_bytes);
    return *out ? MOA_OK
                : moa_fail(err, MOA_E_MEMORY, "\"%.*s\": no memory for its %zu bytes", (int)m->key_bytes,
                           m->key, m->value_bytes);
}

static moa_status need_string(const moa_json_member *m, const cJSON *v, moa_err *err) {
    if (cJSON_IsString(v) && v->valuestring) return MOA_OK;
    return moa_fail(err, MOA_E_INVALID, "\"%.*s\" is not a string", (int)m->key_bytes, m->key);
}

static moa_status no_memory(moa_err *err) {
    return moa_fail(err, MOA_E_MEMORY, "no memory for an item");
}

static moa_status parse_text(const moa_json_member *m, char **field, moa_err *err) {
    cJSON *v = NULL;
    moa_status s = MOA_OK;
    if (m->value_bytes == 4 && memcmp(m->value, "null", 4) == 0) return MOA_OK;
    MOA_TRY(tree_of(m, &v, err));
    MOA_TRY(need_string(m, v, err));
    if (!moa_item_set(field, v->valuestring, strlen(v->valuestring))) s = no_memory(err);
out:
    cJSON_Delete(v);
    return s;
}

/* "answer": "..." or "answers": ["...", ...] */
static moa_status parse_answers(const moa_json_member *m, moa_item *it, moa_err *err) {
    cJSON *v = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(tree_of(m, &v, err));
    const bool list = cJSON_IsArray(v);
    int n = 0;
    for (const cJSON *a = list ? v->child : v; a; a = list ? a->next : NULL) {
        MOA_TRY(need_string(m, a, err));
        if (++n > MOA_ITEM_ANSWERS_MAX)
            MOA_TRY(moa_fail(err, MOA_E_INVALID, "more than %d answers", MOA_ITEM_ANSWERS_MAX));
        if (!moa_item_add_answer(it, a->valuestring, strlen(a->valuestring))) MOA_TRY(no_memory(err));
    }
out:
    cJSON_Delete(v);
    return s;
}

/* a whole number of 0 to 2^31 - 1 at the start of *p; moves behind it */
static bool scan_int(const char **p, const char *end, int32_t *out) {
    int64_t x = 0;
    const char *from = *p;
    for (; *p < end && **p >= '0' && **p <= '9'; (*p)++) {
        x = x * 10 + (**p - '0');
        if (x > INT32_MAX) return false;
    }
    *out = (int32_t)x;
    return *p > from;
}

static void skip_space(const char **p, const char *end) {
    while (*p < end && (**p == ' ' || **p == '\t' || **p == '\r' || **p == '\n'))
        (*p)++;
}

static moa_status parse_count(const moa_json_member *m, int32_t *out, moa_err *err) {
    const char *p = m->value, *const end = m->value + m->value_bytes;
    if (scan_int(&p, end, out) && p == end) return MOA_OK;
    return moa_fail(err, MOA_E_INVALID, "\"%.*s\" is not a whole number from 0 to %d", (int)m->key_bytes,
                    m->key, INT32_MAX);
}

/* Read straight from the text: a tree would take 64 bytes a token. */
static moa_status parse_ids(const moa_json_member *m, moa_item *it, moa_err *err) {
    const char *p = m->value, *const end = m->value + m->value_bytes;
    size_t n_max = 1, n = 0, bytes;
    if (*p != '[') return moa_fail(err, MOA_E_INVALID, "\"ids\" is not an array of token ids");
    for (const char *c = p; c < end; c++)
        n_max += *c == ',';
    if (n_max > MOA_N_IDS_MAX)
        return moa_fail(err, MOA_E_INVALID, "\"ids\" has %zu elements, the limit is %d", n_max,
                        MOA_N_IDS_MAX);
    if (!moa_size_mul(n_max, sizeof *it->ids, &bytes) || !(it->ids = malloc(bytes))) return no_memory(err);
    p++;
    skip_space(&p, end);
    while (p < end && *p != ']') {
        if (n == n_max || !scan_int(&p, end, &it->ids[n])) break;
        n++;
        skip_space(&p, end);
        if (p < end && *p == ',') p++;
        skip_space(&p, end);
    }
    if (p + 1 != end || *p != ']')
        return moa_fail(err, MOA_E_INVALID, "\"ids\": element %zu is not a token id", n);
    it->n_ids = (int32_t)n;
    return MOA_OK;
}

static moa_status parse_form(const moa_json_member *m, moa_item *it, moa_err *err) {
    char *word = NULL;
    moa_status s = parse_text(m, &word, err);
    if (s == MOA_OK && word && !moa_form_parse(word, &it->form))
        s = moa_fail(err, MOA_E_INVALID, "\"form\" is \"%.40s\", not auto, chat or continue", word);
    free(word);
    return s;
}

static moa_status parse_member(const moa_json_member *m, moa_item *it, bool *has_k, moa_err *err) {
    if (is_key(m, "prompt")) return parse_text(m, &it->prompt, err);
    if (is_key(m, "context")) return parse_text(m, &it->context, err);
    if (is_key(m, "question")) return parse_text(m, &it->question, err);
    if (is_key(m, "source")) return parse_text(m, &it->source, err);
    if (is_key(m, "form")) return parse_form(m, it, err);
    if (is_key(m, "length")) return parse_count(m, &it->length, err);
    if (is_key(m, "ids")) return parse_ids(m, it, err);
    if (is_key(m, "supervise_from")) {
        *has_k = true;
        return parse_count(m, &it->supervise_from, err);
    }
    return MOA_OK; /* other members are somebody else's */
}

static moa_status check_item(const moa_item *it, bool has_k, moa_err *err) {
    if (it->ids) {
        if (!has_k) return moa_fail(err, MOA_E_INVALID, "\"ids\" without \"supervise_from\"");
        if (it->n_ids < 2 || it->supervise_from >= it->n_ids)
            return moa_fail(err, MOA_E_INVALID, "\"supervise_from\" is %d of %d ids: no token is supervised",
                            it->supervise_from, it->n_ids);
        return MOA_OK;
    }
    if (!it->prompt && !it->context)
        return moa_fail(err, MOA_E_INVALID, "neither \"prompt\" nor \"context\" nor \"ids\"");
    if (it->n_answer == 0 || !it->answers[0][0])
        return moa_fail(err, MOA_E_INVALID, "there is no \"answer\"");
    return MOA_OK;
}

moa_status moa_item_parse(moa_item *out, const char *line, size_t n, moa_err *err) {
    moa_json_member members[MOA_JSON_MEMBER_MAX];
    size_t n_members;
    bool has_k = false;
    moa_status s = MOA_OK;
    *out = (moa_item){0};
    MOA_TRY(moa_json_members(line, n, members, MOA_JSON_MEMBER_MAX, &n_members, err));
    for (int pass = 0; pass < 2; pass++) /* "answer" comes first, whatever the order in the file */
        for (size_t i = 0; i < n_members; i++)
            if (is_key(&members[i], pass == 0 ? "answer" : "answers"))
                MOA_TRY(parse_answers(&members[i], out, err));
    for (size_t i = 0; i < n_members; i++)
        MOA_TRY(parse_member(&members[i], out, &has_k, err));
    MOA_TRY(check_item(out, has_k, err));
out:
    if (s != MOA_OK) moa_item_free(out);
    return s;
}

static moa_status add_line(moa_items *items, int32_t *capacity, const char *line, size_t n, moa_err *err) {
    if (items->n == MOA_ITEMS_MAX) return moa_fail(err, MOA_E_INVALID, "more than %d items", MOA_ITEMS_MAX);
    if (n > MOA_ITEM_LINE_MAX)
        return moa_fail(err, MOA_E_INVALID, "%zu bytes, the limit is %zu", n, MOA_ITEM_LINE_MAX);
    if (items->n == *capacity) {
        const int32_t more = *capacity ? 2 * *capacity : 64;
        moa_item *data = realloc(items->data, (size_t)more * sizeof *data);
        if (!data) return no_memory(err);
        items->data = data;
        *capacity = more;
    }
    const moa_status s = moa_item_parse(&items->data[items->n], line, n, err);
    if (s == MOA_OK) items->n++;
    return s;
}

moa_status moa_items_parse(moa_items *out, const char *text, size_t n, const char *name, moa_err *err) {
    int32_t capacity = 0, number = 0;
    moa_status s = MOA_OK;
    *out = (moa_items){0};
    for (size_t at = 0; at < n;) {
        const char *line = text + at, *end = memchr(line, '\n', n - at);
        const size_t len = end ? (size_t)(end - line) : n - at;
        const char *p = line;
        at += len + 1;
        number++;
        skip_space(&p, line + len);
        if (p == line + len) continue;
        moa_err why = {0};
        s = add_line(out, &capacity, line, len, &why);
        if (s != MOA_OK) {
            s = moa_fail(err, s, "%s: line %d: %s", name, number, why.text);
            goto out;
        }
        out->data[out->n - 1].line = number;
    }
    if (out->n == 0) s = moa_fail(err, MOA_E_INVALID, "%s: there is no item in it", name);
out:
    if (s != MOA_OK) moa_items_free(out);
    return s;
}

moa_status moa_items_read(moa_items *out, const char *path, moa_err *err) {
    moa_buf text = {0};
    *out = (moa_items){0};
    moa_status s = moa_file_read(path, MOA_ITEMS_FILE_MAX, &text, err);
    if (s == MOA_OK) s = moa_items_parse(out, text.data ? text.data : "", text.size, path, err);
    moa_buf_free(&text);
    return s;
}

/* --- as tokens ---------------------------------------------------------------------------------------------------------- */

void moa_tokens_free(moa_tokens *t) {
    free(t->ids);
    *t = (moa_tokens){0};
}

/* What the model reads, and where in it the context lies. */
typedef struct layout {
    moa_buf text;
    size_t context, context_bytes; /* offset, bytes */
} layout;

static moa_status lay_out(const moa_item *it, layout *l, moa_err *err) {
    const char *prompt = it->prompt ? it->prompt : "", *context = it->context ? it->context : "";
    const char *question = it->question ? it->question : "";
    const char *inside = context[0] ? strstr(prompt, context) : NULL;
    if (context[0] && !inside) {
        moa_buf_str(&l->text, context);
        if (prompt[0]) moa_buf_printf(&l->text, "\n\n%s", prompt);
        l->context_bytes = strlen(context);
    } else {
        moa_buf_str(&l->text, prompt);
        l->context = inside ? (size_t)(inside - prompt) : 0;
        l->context_bytes = inside ? strlen(context) : strlen(prompt);
    }
    if (question[0] && !strstr(prompt, question)) moa_buf_printf(&l->text, "\n\n%s", question);
    return moa_buf_ok(&l->text) && l->text.data ? MOA_OK : no_memory(err);
}

typedef struct coder {
    const moa_model *m;
    moa_form form;
    const int32_t *answer; /* (n_answer) */
    size_t n_answer;
} coder;

static moa_status encode_prompt(const coder *c, const char *text, size_t n, int32_t **ids, size_t *n_ids,
                                moa_err *err) {
    *ids = NULL;
    *n_ids = 0;
    if (c->form == MOA_FORM_CHAT) {
        const moa_message user = {MOA_ROLE_USER, text, n};
        return moa_chat_encode(c->m, &user, 1, true, ids, n_ids, err);
    }
    return moa_tokenizer_encode(c->m->tokenizer, text, n, MOA_TOK_BOS, ids, n_ids, err);
}

static void put_pieces(const moa_model *m, const int32_t *ids, size_t n, moa_buf *out) {
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = moa_tokenizer_piece(m->tokenizer, ids[i], &bytes);
        moa_buf_append(out, piece, bytes);
    }
}

/* The text with just the first and last tokens of the context, `keep` in all; whole characters only. */
static moa_status cut_text(const coder *c, const layout *l, const int32_t *context, size_t n_context,
                           size_t keep, moa_buf *out, moa_err *err) {
    const size_t head = (keep + 1) / 2, tail = keep - head;
    moa_buf end = {0};
    moa_status s = MOA_OK;
    moa_buf_clear(out);
    moa_buf_append(out, l->text.data, l->context);
    put_pieces(c->m, context, head, out);
    if (moa_buf_ok(out) && out->size > l->context)
        out->size -= moa_utf8_tail(out->data + l->context, out->size - l->context);
    put_pieces(c->m, context + n_context - tail, tail, &end);
    size_t skip = 0;
    while (skip < 3 && skip < end.size && ((unsigned char)end.data[skip] & 0xC0) == 0x80)
        skip++;
    if (end.size > skip) moa_buf_append(out, end.data + skip, end.size - skip);
    const size_t after = l->context + l->context_bytes;
    moa_buf_append(out, l->text.data + after, l->text.size - after);
    if (!moa_buf_ok(out) || !moa_buf_ok(&end)) s = no_memory(err);
    moa_buf_free(&end);
    return s;
}

/* Shortens the context until prompt and answer fit n_max. Where tokens merge anew at the seam a try may be some tokens off. */
static moa_status fit(const coder *c, const layout *l, size_t n_max, int32_t **ids, size_t *n_ids,
                      moa_tokens *out, moa_err *err) {
    int32_t *context = NULL;
    size_t n_context = 0;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    const size_t n_before = *n_ids;
    MOA_TRY(moa_tokenizer_encode(c->m->tokenizer, l->text.data + l->context, l->context_bytes, 0, &context,
                                 &n_context, err));
    size_t keep = n_context;
    while (*n_ids + c->n_answer > n_max) {
        const size_t over = *n_ids + c->n_answer - n_max;
        if (over > keep) {
            (void)snprintf(out->why, sizeof out->why,
                           "%zu tokens besides its context, and %zu of the answer: more than %zu",
                           *n_ids - keep, c->n_answer, n_max);
            free(*ids);
            *ids = NULL;
            goto out;
        }
        keep -= over;
        MOA_TRY(cut_text(c, l, context, n_context, keep, &text, err));
        free(*ids);
        MOA_TRY(encode_prompt(c, text.data ? text.data : "", text.size, ids, n_ids, err));
    }
    out->n_cut = (int32_t)(n_before - *n_ids);
out:
    free(context);
    moa_buf_free(&text);
    return s;
}

/* prompt and answer in one array; takes prompt */
static moa_status join(const coder *c, int32_t **prompt, size_t n_prompt, moa_tokens *out, moa_err *err) {
    size_t n, bytes;
    if (n_prompt == 0) {
        (void)snprintf(out->why, sizeof out->why, "the prompt has no tokens");
        return MOA_OK;
    }
    if (!moa_size_add(n_prompt, c->n_answer, &n) || n > MOA_N_IDS_MAX ||
        !moa_size_mul(n, sizeof **prompt, &bytes))
        return moa_fail(err, MOA_E_INVALID, "an item of %zu tokens; the limit is %d", n_prompt,
                        MOA_N_IDS_MAX);
    int32_t *ids = realloc(*prompt, bytes);
    if (!ids) return no_memory(err);
    *prompt = NULL;
    if (c->n_answer) memcpy(ids + n_prompt, c->answer, c->n_answer * sizeof *ids);
    out->ids = ids;
    out->n = (int32_t)n;
    out->supervise_from = (int32_t)n_prompt;
    return MOA_OK;
}

static moa_status encode_text(const moa_model *m, const moa_item *it, const moa_encode *how, moa_tokens *out,
                              moa_err *err) {
    layout l = {0};
    coder c = {.m = m, .form = it->form != MOA_FORM_AUTO ? it->form : how->form};
    int32_t *answer = NULL, *prompt = NULL;
    size_t n_prompt = 0;
    moa_status s = MOA_OK;
    if (c.form == MOA_FORM_AUTO) c.form = moa_chat_template_name(m, NULL) ? MOA_FORM_CHAT : MOA_FORM_CONTINUE;
    if (c.form == MOA_FORM_CHAT && !moa_chat_template_name(m, err)) return MOA_E_UNSUPPORTED;
    MOA_TRY(lay_out(it, &l, err));
    if (how->n_room == 0) {
        MOA_TRY(moa_tokenizer_encode(m->tokenizer, it->answers[0], strlen(it->answers[0]), 0, &answer,
                                     &c.n_answer, err));
        c.answer = answer;
        if (c.n_answer == 0) {
            (void)snprintf(out->why, sizeof out->why, "the answer has no tokens");
            goto out;
        }
    }
    MOA_TRY(encode_prompt(&c, l.text.data, l.text.size, &prompt, &n_prompt, err));
    const size_t n_max = how->n_max > how->n_room ? (size_t)(how->n_max - how->n_room) : 0;
    if (how->n_max > 0 && n_prompt + c.n_answer > n_max) {
        MOA_TRY(fit(&c, &l, n_max, &prompt, &n_prompt, out, err));
        if (!prompt) goto out;
    }
    s = join(&c, &prompt, n_prompt, out, err);
out:
    free(answer);
    free(prompt);
    moa_buf_free(&l.text);
    return s;
}

/* ids as they are: the middle of what comes before the answer is what can be cut */
static moa_status encode_ids(const moa_model *m, const moa_item *it, const moa_encode *how, moa_tokens *out,
                             moa_err *err) {
    for (int32_t i = 0; i < it->n_ids; i++)
        if (it->ids[i] >= m->shape.n_vocab)
            return moa_fail(err, MOA_E_INVALID, "line %d: id %d at %d is not among the model's %d tokens",
                            it->line, it->ids[i], i, m->shape.n_vocab);
    const int32_t from = it->supervise_from > 1 ? it->supervise_from : 1; /* nothing predicts token 0 */
    const int32_t n_answer = how->n_room > 0 ? 0 : it->n_ids - from;
    const int32_t n_max = how->n_max > 0 ? how->n_max - how->n_room - n_answer : INT32_MAX;
    const int32_t n_prompt = from < n_max ? from : n_max;
    if (n_prompt < 1) {
        (void)snprintf(out->why, sizeof out->why, "an answer of %d tokens leaves no room for a prompt in %d",
                       how->n_room > 0 ? how->n_room : n_answer, how->n_max);
        return MOA_OK;
    }
    const int32_t head = (n_prompt + 1) / 2, tail = n_prompt - head;
    out->ids = malloc((size_t)(n_prompt + n_answer) * sizeof *out->ids);
    if (!out->ids) return no_memory(err);
    memcpy(out->ids, it->ids, (size_t)head * sizeof *out->ids);
    memcpy(out->ids + head, it->ids + from - tail, (size_t)(tail + n_answer) * sizeof *out->ids);
    out->n = n_prompt + n_answer;
    out->supervise_from = n_prompt;
    out->n_cut = from - n_prompt;
    return MOA_OK;
}

moa_status moa_item_encode(const moa_model *m, const moa_item *it, const moa_encode *how, moa_tokens *out,
                           moa_err *err) {
    *out = (moa_tokens){0};
    const moa_status s = it->ids ? encode_ids(m, it, how, out, err) : encode_text(m, it, how, out, err);
    if (s != MOA_OK) moa_tokens_free(out);
    return s;
}

void moa_token_items_free(moa_token_items *t) {
    for (int32_t i = 0; i < t->n; i++)
        moa_tokens_free(&t->data[i]);
    free(t->data);
    free(t->item);
    *t = (moa_token_items){0};
}

static void count(moa_token_items *out, moa_tokens *t, int32_t item) {
    if (!t->ids) {
        if (out->n_skipped++ == 0) memcpy(out->why, t->why, sizeof out->why);
        return;
    }
    out->n_cut += t->n_cut > 0;
    out->n_tok += t->n;
    out->n_tok_cut += t->n_cut;
    out->n_supervised += t->n - t->supervise_from;
    out->item[out->n] = item;
    out->data[out->n++] = *t;
}

moa_status moa_items_encode(const moa_model *m, const moa_items *items, const moa_encode *how,
                            int32_t max_items, moa_token_items *out, moa_err *err) {
    moa_status s = MOA_OK;
    bool exact = false;
    *out = (moa_token_items){0};
    for (int32_t i = 0; i < items->n; i++)
        exact = exact || (how->n_max > 0 && items->data[i].length == how->n_max);
    out->data = calloc((size_t)items->n, sizeof *out->data);
    out->item = calloc((size_t)items->n, sizeof *out->item);
    if (!out->data || !out->item) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d items", items->n));
    for (int32_t i = 0; i < items->n && (max_items == 0 || out->n < max_items); i++) {
        moa_tokens t;
        if (exact && items->data[i].length != how->n_max) continue;
        MOA_TRY(moa_item_encode(m, &items->data[i], how, &t, err));
        count(out, &t, i);
    }
out:
    if (s != MOA_OK) moa_token_items_free(out);
    return s;
}
