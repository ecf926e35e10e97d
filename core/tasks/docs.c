#include "core/tasks/docs.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/base/text.h"

enum { DOCS_MAX = 1 << 20, FOLDER_MAX = 1 << 16, BYTES_A_TOKEN = 8 };

void moa_docs_free(moa_docs *docs) {
    for (int32_t i = 0; i < docs->n; i++) {
        free(docs->data[i].name);
        free(docs->data[i].text);
        free(docs->data[i].question);
    }
    free(docs->data);
    *docs = (moa_docs){0};
}

/* takes text (a buffer's data) and question */
static moa_status add(moa_docs *docs, const char *name, moa_buf *text, char **question, moa_err *err) {
    if (docs->n == DOCS_MAX)
        return moa_fail(err, MOA_E_INVALID, "%s: more than %d documents", name, DOCS_MAX);
    moa_buf_str(text, "");
    if (!moa_buf_ok(text)) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for the document", name);
    if (text->size > MOA_DOCS_MAX_BYTES - docs->n_bytes)
        return moa_fail(err, MOA_E_INVALID, "%s: more than %zu bytes of documents", name, MOA_DOCS_MAX_BYTES);
    moa_doc *data = realloc(docs->data, ((size_t)docs->n + 1) * sizeof *data);
    char *copy = strdup(name);
    if (data) docs->data = data;
    if (!data || !copy) {
        free(copy);
        return moa_fail(err, MOA_E_MEMORY, "%s: no memory for the document", name);
    }
    docs->data[docs->n++] =
        (moa_doc){.name = copy, .text = text->data, .n_bytes = text->size, .question = *question};
    docs->n_bytes += text->size;
    *text = (moa_buf){0};
    *question = NULL;
    return MOA_OK;
}

/* --- plain text --------------------------------------------------------------------------------------------------------------- */

static moa_status add_text(moa_docs *docs, const char *name, const char *path, moa_err *err) {
    moa_buf raw = {0}, text = {0};
    char *question = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(moa_file_read(path, MOA_DOCS_MAX_BYTES, &raw, err));
    for (size_t at = 0; at < raw.size;) { /* between NULs */
        const size_t n = strnlen(raw.data + at, raw.size - at);
        moa_utf8_replace(raw.data + at, n, &text);
        at += n;
        if (at < raw.size) moa_buf_str(&text, "\xEF\xBF\xBD"), at++;
    }
    if (text.size == 0) MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: the document is empty", path));
    MOA_TRY(add(docs, name, &text, &question, err));
out:
    moa_buf_free(&raw);
    moa_buf_free(&text);
    return s;
}

/* --- JSONL ---------------------------------------------------------------------------------------------------------------------- */

/* The string member of this name; *out stays NULL where there is none. */
static moa_status take(const moa_json_member *members, size_t n, const char *key, char **out, moa_err *err) {
    for (size_t i = 0; i < n; i++) {
        if (members[i].key_bytes != strlen(key) || memcmp(members[i].key, key, strlen(key)) != 0) continue;
        cJSON *v = cJSON_ParseWithLength(members[i].value, members[i].value_bytes);
        moa_status s = MOA_OK;
        if (!v)
            s = moa_fail(err, MOA_E_MEMORY, "no memory for \"%s\"", key);
        else if (cJSON_IsString(v) && !(*out = strdup(v->valuestring)))
            s = moa_fail(err, MOA_E_MEMORY, "no memory for \"%s\"", key);
        else if (!cJSON_IsString(v) && !cJSON_IsNull(v))
            s = moa_fail(err, MOA_E_INVALID, "\"%s\" is not a string", key);
        cJSON_Delete(v);
        return s;
    }
    return MOA_OK;
}

static moa_status add_line(moa_docs *docs, const char *name, const char *line, size_t n, moa_err *err) {
    static const char *const keys[] = {"text", "context", "prompt"};
    moa_json_member members[MOA_JSON_MEMBER_MAX];
    size_t n_members;
    char *text = NULL, *question = NULL;
    moa_buf buf = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_json_members(line, n, members, MOA_JSON_MEMBER_MAX, &n_members, err));
    for (int k = 0; k < 3 && !text; k++)
        MOA_TRY(take(members, n_members, keys[k], &text, err));
    MOA_TRY(take(members, n_members, "question", &question, err));
    if (!text || !text[0])
        MOA_TRY(moa_fail(err, MOA_E_INVALID,
                         "there is no \"text\", \"context\" or \"prompt\" that is a document"));
    moa_buf_str(&buf, text);
    MOA_TRY(add(docs, name, &buf, &question, err));
out:
    free(text);
    free(question);
    moa_buf_free(&buf);
    return s;
}

static moa_status add_lines(moa_docs *docs, const char *name, const char *path, moa_err *err) {
    moa_buf raw = {0};
    int32_t number = 0, n = 0;
    moa_status s = MOA_OK;
    MOA_TRY(moa_file_read(path, MOA_DOCS_MAX_BYTES, &raw, err));
    for (size_t at = 0; at < raw.size;) {
        char label[PATH_MAX + 16];
        const char *line = raw.data + at, *end = memchr(line, '\n', raw.size - at);
        const size_t len = end ? (size_t)(end - line) : raw.size - at;
        at += len + 1;
        number++;
        if (strspn(line, " \t\r") >= len) continue;
        (void)snprintf(label, sizeof label, "%s:%d", name, number);
        moa_err why = {0};
        s = add_line(docs, label, line, len, &why);
        if (s != MOA_OK) {
            s = moa_fail(err, s, "%s: line %d: %s", path, number, why.text);
            goto out;
        }
        n++;
    }
    if (n == 0) s = moa_fail(err, MOA_E_INVALID, "%s: there is no document in it", path);
out:
    moa_buf_free(&raw);
    return s;
}

/* --- files and folders ------------------------------------------------------------------------------------------------------------ */

static bool ends_with(const char *name, const char *ending) {
    const size_t n = strlen(name), e = strlen(ending);
    return n > e && strcmp(name + n - e, ending) == 0;
}

static moa_status add_file(moa_docs *docs, const char *path, moa_err *err) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    return ends_with(name, ".jsonl") ? add_lines(docs, name, path, err) : add_text(docs, name, path, err);
}

static int wanted(const struct dirent *e) {
    static const char *const endings[] = {".txt", ".text", ".md", ".jsonl"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (ends_with(e->d_name, endings[i])) return 1;
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name); /* not by the locale */
}

static moa_status add_folder(moa_docs *docs, const char *path, moa_err *err) {
    struct dirent **list = NULL;
    const int n = scandir(path, &list, wanted, by_name);
    moa_status s = MOA_OK;
    int n_file = 0;
    if (n < 0) return moa_fail(err, MOA_E_IO, "%s: cannot list the folder: %s", path, strerror(errno));
    if (n > FOLDER_MAX)
        s = moa_fail(err, MOA_E_INVALID, "%s: %d documents, the limit is %d", path, n, FOLDER_MAX);
    for (int i = 0; i < n && s == MOA_OK; i++) {
        char file[PATH_MAX];
        struct stat st;
        if (snprintf(file, sizeof file, "%s/%s", path, list[i]->d_name) >= (int)sizeof file)
            s = moa_fail(err, MOA_E_INVALID, "%s/%s: the path is too long", path, list[i]->d_name);
        else if (stat(file, &st) == 0 && S_ISREG(st.st_mode))
            s = add_file(docs, file, err), n_file++;
    }
    if (s == MOA_OK && n_file == 0)
        s = moa_fail(err, MOA_E_INVALID, "%s: there is no .txt, .text, .md or .jsonl file in the folder",
                     path);
    for (int i = 0; i < n; i++)
        free(list[i]);
    free(list);
    return s;
}

moa_status moa_docs_add(moa_docs *docs, const char *path, moa_err *err) {
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return add_folder(docs, path, err);
    return add_file(docs, path, err);
}

/* --- a part ------------------------------------------------------------------------------------------------------------------------- */

static bool continues(char c) {
    return ((unsigned char)c & 0xC0) == 0x80;
}

/* where the part begins: behind the first line break, else the first end of a sentence, from `from` on, or a character's beginning */
static size_t begin_at(const moa_doc *doc, size_t from) {
    const size_t reach = doc->n_bytes - from < 4000 ? doc->n_bytes - from : 4000;
    if (from == 0) return 0;
    const char *line = memchr(doc->text + from, '\n', reach);
    if (line) {
        while (*line == '\n' || *line == '\r' || *line == ' ')
            line++;
        return (size_t)(line - doc->text);
    }
    for (size_t i = from; i + 1 < from + reach; i++)
        if (doc->text[i] == '.' && doc->text[i + 1] == ' ') return i + 2;
    while (from < doc->n_bytes && continues(doc->text[from]))
        from++;
    return from;
}

static moa_status text_of(const moa_model *m, const int32_t *ids, size_t n, moa_buf *out, moa_err *err) {
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = moa_tokenizer_piece(m->tokenizer, ids[i], &bytes);
        moa_buf_append(out, piece, bytes);
    }
    if (moa_buf_ok(out) && out->size > 0) out->size -= moa_utf8_tail(out->data, out->size);
    moa_buf_append(out, "", 1);
    return moa_buf_ok(out) ? MOA_OK
                           : moa_fail(err, MOA_E_MEMORY, "no memory for a document of %zu tokens", n);
}

moa_status moa_doc_part(const moa_model *m, const moa_doc *doc, double at, int32_t n_tok, char **text,
                        int32_t *n_out, moa_err *err) {
    const size_t likely = (size_t)n_tok * 5, spare = doc->n_bytes > likely ? doc->n_bytes - likely : 0;
    const size_t from = begin_at(doc, (size_t)(at * (double)spare));
    size_t bytes = doc->n_bytes - from, n = 0;
    int32_t *ids = NULL;
    moa_buf out = {0};
    moa_status s = MOA_OK;
    *text = NULL;
    if (bytes > (size_t)n_tok * BYTES_A_TOKEN) bytes = (size_t)n_tok * BYTES_A_TOKEN;
    bytes -= moa_utf8_tail(doc->text + from, bytes);
    MOA_TRY(moa_tokenizer_encode(m->tokenizer, doc->text + from, bytes, 0, &ids, &n, err));
    if (n > (size_t)n_tok) n = (size_t)n_tok;
    MOA_TRY(text_of(m, ids, n, &out, err));
    *text = out.data;
    *n_out = (int32_t)n;
    out = (moa_buf){0};
out:
    free(ids);
    moa_buf_free(&out);
    return s;
}
