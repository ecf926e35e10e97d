/* tokenize.c -- `moascope tokenize`: text to tokens, one a line, and back.
 *
 *     1234<TAB> the          a token's bytes: printable characters as they are, \\ \n \t \r, other bytes \xE4 (a token may be
 *                            part of a character); the line can be read back, --detokenize takes it
 *
 * --ids writes the ids alone as a JSON array, which `run --ids` takes. Text comes from stdin, --prompt or --prompt-file;
 * its special strings stay text unless --special is given, as everywhere. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "core/base/text.h"
#include "core/model/chat.h"
#include "core/model/model.h"
#include "tui/batch/batch.h"

enum { TEXT_MAX = 64 << 20 };
enum { OWN_IDS = MOA_OPT_OWN, OWN_DETOKENIZE, OWN_SPECIAL, OWN_BOS };

static const int options[] = {MOA_OPT_MODEL,  MOA_OPT_PROMPT, MOA_OPT_PROMPT_FILE,
                              MOA_OPT_CHAT,   MOA_OPT_SYSTEM, MOA_OPT_JSON,
                              MOA_OPT_OUTPUT, MOA_OPT_QUIET,  MOA_OPT_END};
static const moa_option own[] = {
    {"--ids", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "the ids alone, as a JSON array"},
    {"--detokenize", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "the other way: ids (a JSON array, or one a line) to text"},
    {"--special", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "strings of control tokens in the text become those tokens"},
    {"--bos", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "begin with BOS if the model asks for it"},
    {0},
};

/* --- input -------------------------------------------------------------------------------------------------------------- */

static moa_status read_input(const moa_args *args, moa_buf *out, moa_err *err) {
    const char *text = moa_args_text(args, MOA_OPT_PROMPT), *file = moa_args_text(args, MOA_OPT_PROMPT_FILE);
    if (text && file)
        return moa_fail(err, MOA_E_USAGE, "--prompt and --prompt-file are two inputs; give one");
    if (!text) return moa_file_read(file ? file : "-", TEXT_MAX, out, err);
    moa_buf_str(out, text);
    return moa_buf_ok(out) ? MOA_OK
                           : moa_fail(err, MOA_E_MEMORY, "no memory for a prompt of %zu bytes", strlen(text));
}

typedef struct ids {
    int32_t *data; /* owned */
    size_t n;
} ids;

/* The numbers of a JSON array, or the first of each line ("1234<TAB>..." as written here). */
static moa_status parse_ids(const moa_buf *in, size_t n_vocab, ids *out, moa_err *err) {
    const char *p = in->data ? in->data : "", *const end = p + in->size;
    size_t line = 1, bytes;
    while (p < end && strchr(" \t\r\n", *p) && *p)
        p++;
    const bool array = p < end && *p == '[';
    if (!moa_size_mul(in->size / 2 + 2, sizeof *out->data, &bytes) || !(out->data = malloc(bytes)))
        return moa_fail(err, MOA_E_MEMORY, "no memory for the ids of %zu bytes", in->size);
    if (array) p++;
    while (p < end) {
        if (*p == '\n') line++;
        if (*p == '\n' || *p == ' ' || *p == '\r' || *p == '\t' || (array && (*p == ',' || *p == ']'))) {
            p++;
            continue;
        }
        int64_t id = 0;
        size_t digits = 0;
        for (; p < end && *p >= '0' && *p <= '9' && digits < 10; p++, digits++)
            id = id * 10 + (*p - '0');
        if (digits == 0 || (p < end && *p >= '0' && *p <= '9'))
            return moa_fail(err, MOA_E_INVALID, "line %zu: \"%.*s\" is not a token id", line,
                            (int)(end - p < 16 ? end - p : 16), p);
        if ((uint64_t)id >= n_vocab)
            return moa_fail(err, MOA_E_INVALID,
                            "line %zu: id %" PRId64 " is not among the model's %zu tokens", line, id,
                            n_vocab);
        out->data[out->n++] = (int32_t)id;
        if (!array && p < end && *p == '\t') /* the rest of the line is the token's text */
            while (p < end && *p != '\n')
                p++;
    }
    return MOA_OK;
}

/* --- output --------------------------------------------------------------------------------------------------------------- */

static void put_piece(const char *s, size_t n, moa_buf *out) {
    for (size_t i = 0; i < n;) {
        int32_t cp;
        bool valid;
        const size_t k = moa_utf8_next(s + i, n - i, &cp, &valid);
        if (cp == '\\')
            moa_buf_str(out, "\\\\");
        else if (cp == '\n')
            moa_buf_str(out, "\\n");
        else if (cp == '\t')
            moa_buf_str(out, "\\t");
        else if (cp == '\r')
            moa_buf_str(out, "\\r");
        else if (valid && !moa_text_unsafe(cp))
            moa_buf_append(out, s + i, k);
        else
            for (size_t j = 0; j < k; j++)
                moa_buf_printf(out, "\\x%02X", (unsigned char)s[i + j]);
        i += k;
    }
}

static void put_lines(const moa_tokenizer *t, const ids *x, moa_buf *out) {
    for (size_t i = 0; i < x->n; i++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(t, x->data[i], &n);
        moa_buf_printf(out, "%" PRId32 "\t", x->data[i]);
        put_piece(piece, n, out);
        moa_buf_str(out, "\n");
    }
}

static void put_array(const ids *x, moa_buf *out) {
    moa_buf_str(out, "[");
    for (size_t i = 0; i < x->n; i++)
        moa_buf_printf(out, "%s%" PRId32, i ? "," : "", x->data[i]);
    moa_buf_str(out, "]");
}

/* pieces as text (a part of a character becomes U+FFFD) and as hex: both, since JSON cannot hold any bytes */
static void put_json(const moa_model *m, const ids *x, const moa_buf *text, moa_buf *out) {
    moa_buf_str(out, "{\"model\":");
    moa_text_json(m->name, strlen(m->name), out);
    moa_buf_printf(out, ",\"pre\":\"%s\",\"n_bytes\":%zu,\"n_tokens\":%zu,\"ids\":",
                   moa_tokenizer_pre(m->tokenizer), text->size, x->n);
    put_array(x, out);
    moa_buf_str(out, ",\"tokens\":[");
    for (size_t i = 0; i < x->n; i++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(m->tokenizer, x->data[i], &n);
        moa_buf_str(out, i ? ",{\"text\":" : "{\"text\":");
        moa_text_json(piece, n, out);
        moa_buf_str(out, ",\"hex\":\"");
        for (size_t k = 0; k < n; k++)
            moa_buf_printf(out, "%02x", (unsigned char)piece[k]);
        moa_buf_printf(out, "\",\"control\":%s}",
                       moa_tokenizer_is_control(m->tokenizer, x->data[i]) ? "true" : "false");
    }
    moa_buf_str(out, "]}\n");
}

/* What a tokenisation loses is said, never silent. */
static void remark_losses(const moa_args *args, const moa_tokenizer *t, const moa_buf *text) {
    size_t n_bad = 0, n_gone = 0;
    for (size_t i = 0; i < text->size;) {
        int32_t cp;
        bool valid;
        const size_t k = moa_utf8_next(text->data + i, text->size - i, &cp, &valid);
        n_bad += !valid;
        for (size_t j = 0; valid && j < k; j++)
            n_gone += !moa_tokenizer_has_byte(t, (unsigned char)text->data[i + j]);
        i += k;
    }
    if (n_bad) moa_remark(args, "%zu places of invalid UTF-8 became U+FFFD", n_bad);
    if (n_gone) moa_remark(args, "%zu bytes have no token in this vocabulary and are left out", n_gone);
}

/* --- the work ----------------------------------------------------------------------------------------------------------------- */

static moa_status encode(const moa_args *args, const moa_model *m, const moa_buf *text, ids *out,
                         moa_err *err) {
    const char *in = text->data ? text->data : "", *system = moa_args_text(args, MOA_OPT_SYSTEM);
    if (system && !moa_args_has(args, MOA_OPT_CHAT))
        return moa_fail(err, MOA_E_USAGE, "--system belongs to --chat");
    if (moa_args_has(args, MOA_OPT_CHAT)) {
        if (moa_args_has(args, OWN_SPECIAL) || moa_args_has(args, OWN_BOS))
            return moa_fail(err, MOA_E_USAGE,
                            "--chat places control tokens itself; --special and --bos do not go with it");
        const moa_message all[] = {{MOA_ROLE_SYSTEM, system, system ? strlen(system) : 0},
                                   {MOA_ROLE_USER, in, text->size}};
        return moa_chat_encode(m, system ? all : all + 1, system ? 2 : 1, true, &out->data, &out->n, err);
    }
    const int flags = (moa_args_has(args, OWN_SPECIAL) ? MOA_TOK_SPECIAL : 0) |
                      (moa_args_has(args, OWN_BOS) ? MOA_TOK_BOS : 0);
    return moa_tokenizer_encode(m->tokenizer, in, text->size, flags, &out->data, &out->n, err);
}

/* bytes to a file or pipe as they are; a terminal gets them cleaned */
static void decode(const moa_tokenizer *t, const ids *x, bool raw, moa_buf *out) {
    moa_text_stream s = {0};
    for (size_t i = 0; i < x->n; i++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(t, x->data[i], &n);
        if (raw)
            moa_buf_append(out, piece, n);
        else
            moa_text_push(&s, piece, n, out);
    }
    if (!raw) moa_text_flush(&s, out);
}

static moa_status run(const moa_args *args, moa_err *err) {
    moa_status s = MOA_OK;
    char path[4096];
    moa_model *m = NULL;
    moa_buf in = {0}, out = {0}, json = {0};
    ids x = {0};
    const char *to = moa_args_text(args, MOA_OPT_OUTPUT), *json_to = moa_args_text(args, MOA_OPT_JSON);
    const char *name = moa_args_model(args, 0);
    if (!name) return moa_fail(err, MOA_E_USAGE, "tokenize needs a MODEL");
    MOA_TRY(moa_model_find(name, path, sizeof path, err));
    MOA_TRY(moa_model_open(&m, path, true, NULL, NULL, err));
    MOA_TRY(read_input(args, &in, err));
    if (moa_args_has(args, OWN_DETOKENIZE)) {
        MOA_TRY(parse_ids(&in, moa_tokenizer_n_vocab(m->tokenizer), &x, err));
        decode(m->tokenizer, &x, to || !isatty(STDOUT_FILENO), &out);
    } else {
        MOA_TRY(encode(args, m, &in, &x, err));
        remark_losses(args, m->tokenizer, &in);
        if (moa_args_has(args, OWN_IDS))
            put_array(&x, &out), moa_buf_str(&out, "\n");
        else
            put_lines(m->tokenizer, &x, &out);
    }
    if (json_to) {
        put_json(m, &x, &in, &json);
        MOA_TRY(moa_output_save(json_to, &json, err));
    }
    if (!json_to || strcmp(json_to, "-") != 0 || to) MOA_TRY(moa_output_save(to ? to : "-", &out, err));
out:
    free(x.data);
    moa_buf_free(&in), moa_buf_free(&out), moa_buf_free(&json);
    moa_model_close(&m);
    return s;
}

const moa_batch moa_batch_tokenize = {
    .name = "tokenize",
    .help = "text to tokens, one a line (id, bytes), and back",
    .usage = "MODEL [--ids] < TEXT\nMODEL --detokenize < IDS",
    .options = options,
    .own = own,
    .min_words = 0,
    .max_words = 1,
    .more = "A line is the id, a tab, and the token's bytes: printable characters as they are, \\\\ \\n \\t "
            "\\r, other bytes \\xE4.\n"
            "Text that looks like a control token (<|im_end|>) stays text unless --special is given.",
    .run = run,
};
