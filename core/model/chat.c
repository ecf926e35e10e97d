/* chat.c -- the families of chat templates, and how a file's Jinja text is told to be of one.
 *
 * A template is a program in a file from strangers, so it is read like a label, never run. Its markers say the family;
 * two details are read from the text, since files of one family differ in them: the system message that stands in when
 * the user gives none, and whether messages are trimmed.
 *
 *   pen     text gathers until a control token comes; then it is tokenised as one piece, as Hugging Face tokenisers see the
 *           rendered template. Markers become control ids by their own name; everything else is tokenised as plain text,
 *           so nothing a user writes can become a marker.
 */
#include "core/model/chat.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/buf.h"
#include "core/base/size.h"

enum { TEXT_MAX = 64 << 20 }; /* bytes of one message */

typedef struct pen {
    const moa_model *m;
    moa_buf text; /* plain text not yet tokenised */
    moa_buf ids;  /* int32_t */
    bool in_inst; /* llama2, mistral: a system message has begun the user's */
    moa_status status;
    moa_err *err;
} pen;

typedef struct family {
    const char *name;
    const char *all_of[3];  /* strings that the Jinja text holds */
    const char *control[2]; /* tokens that the vocabulary must have as control tokens */
    enum {
        TRIM_IF_SAID,
        TRIM_ALWAYS,
        TRIM_ITSELF
    } trim;            /* spaces around messages: by the Jinja text, always, in message() */
    bool joins_system; /* a system message is part of the user's: conversations are rendered as a whole */
    void (*message)(pen *p, bool first, const moa_message *msg);
    void (*reply)(pen *p);
    const char *end;       /* the marker behind a reply; NULL: the model's EOS */
    const char *after_end; /* text behind that */
} family;

/* --- the pen --------------------------------------------------------------------------------------------------------------- */

static void pen_flush(pen *p) {
    int32_t *ids = NULL;
    size_t n = 0;
    if (p->status == MOA_OK && !moa_buf_ok(&p->text)) /* before the buffer is cleared and forgets it */
        p->status = moa_fail(p->err, MOA_E_MEMORY, "chat template: out of memory");
    if (p->status != MOA_OK || p->text.size == 0) return;
    p->status = moa_tokenizer_encode(p->m->tokenizer, p->text.data, p->text.size, 0, &ids, &n, p->err);
    if (p->status == MOA_OK) moa_buf_append(&p->ids, ids, n * sizeof *ids);
    free(ids);
    moa_buf_clear(&p->text);
}

static void pen_id(pen *p, int32_t id) {
    pen_flush(p);
    if (id >= 0) moa_buf_append(&p->ids, &id, sizeof id);
}

static void pen_text(pen *p, const char *text, size_t n) {
    moa_buf_append(&p->text, text, n);
}
static void pen_str(pen *p, const char *text) {
    moa_buf_str(&p->text, text);
}

/* a marker: the control token of that name where there is one, else its text */
static void pen_mark(pen *p, const char *marker) {
    const int32_t id = moa_tokenizer_find(p->m->tokenizer, marker, strlen(marker));
    if (moa_tokenizer_is_control(p->m->tokenizer, id))
        pen_id(p, id);
    else
        pen_str(p, marker);
}

static bool has_text(const pen *p, const char *needle) {
    return strstr(p->m->chat_template, needle) != NULL;
}

/* BOS is the template's own doing here, not the tokenizer's add_bos */
static void pen_bos(pen *p) {
    if (has_text(p, "bos_token") || has_text(p, "<|begin_of_text|>"))
        pen_id(p, moa_tokenizer_bos(p->m->tokenizer));
}

/* --- read from the Jinja text ------------------------------------------------------------------------------------------------ */

/* what Jinja's trim takes away: the spaces of Python's str.strip() that a byte can show, and U+0085, U+00A0, ... */
static size_t space_at(const char *s, size_t n) {
    static const char *const wide[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8",
                                       "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    if ((*s >= '\t' && *s <= '\r') || (*s >= 0x1c && *s <= ' ')) return 1;
    if (n >= 3 && memcmp(s, "\xe2\x80", 2) == 0 && (unsigned char)s[2] >= 0x80 && (unsigned char)s[2] <= 0x8a)
        return 3;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (n >= strlen(wide[i]) && memcmp(s, wide[i], strlen(wide[i])) == 0) return strlen(wide[i]);
    return 0;
}

static moa_message trimmed(moa_message msg) {
    while (msg.n) {
        const size_t k = space_at(msg.text, msg.n);
        if (!k) break;
        msg.text += k;
        msg.n -= k;
    }
    for (size_t k = 1; k <= 3 && k <= msg.n;) {
        if (space_at(msg.text + msg.n - k, k) == k) {
            msg.n -= k;
            k = 1;
        } else {
            k++;
        }
    }
    return msg;
}

/* "content'] | trim", "content|trim", "content.strip()", "content'].strip()" */
static bool text_trims(const char *jinja) {
    for (const char *p = jinja; (p = strstr(p, "content")); p++) {
        const char *q = p + strlen("content");
        while (*q && strchr("'\"]) ", *q))
            q++;
        if (strncmp(q, ".strip()", 8) == 0) return true;
        if (*q != '|') continue;
        q++;
        while (*q == ' ')
            q++;
        if (strncmp(q, "trim", 4) == 0) return true;
    }
    return false;
}

/* The literal between `opening`, a line break (either spelling) and `ending`, without quotes, braces or operators in it: the
 * system message that the template puts in by itself. NULL: none. */
static const char *default_system(const char *jinja, const char *opening, const char *ending, size_t *n) {
    for (const char *p = jinja; (p = strstr(p, opening)); p++) {
        const char *from = p + strlen(opening);
        if (*from == '\n')
            from++;
        else if (strncmp(from, "\\n", 2) == 0)
            from += 2;
        else
            continue;
        const char *to = strstr(from, ending);
        if (!to) return NULL;
        *n = (size_t)(to - from);
        if (*n && *n <= 4096 && strcspn(from, "'\"{}\\") >= *n) return from;
    }
    return NULL;
}

/* --- the families ---------------------------------------------------------------------------------------------------------------- */

static const char *role_name(moa_role role) {
    return role == MOA_ROLE_SYSTEM ? "system" : role == MOA_ROLE_USER ? "user" : "assistant";
}

static void chatml_part(pen *p, const char *role, const char *text, size_t n) {
    pen_mark(p, "<|im_start|>");
    pen_str(p, role);
    pen_str(p, "\n");
    pen_text(p, text, n);
    pen_mark(p, "<|im_end|>");
    pen_str(p, "\n");
}

static void chatml_message(pen *p, bool first, const moa_message *msg) {
    if (first) {
        size_t n = 0;
        pen_bos(p);
        const char *system = default_system(p->m->chat_template, "<|im_start|>system", "<|im_end|>", &n);
        if (system && msg->role != MOA_ROLE_SYSTEM) chatml_part(p, "system", system, n);
    }
    chatml_part(p, role_name(msg->role), msg->text, msg->n);
}

static void chatml_reply(pen *p) {
    pen_mark(p, "<|im_start|>");
    pen_str(p, "assistant\n");
}

static void llama3_head(pen *p, const char *role) {
    pen_mark(p, "<|start_header_id|>");
    pen_str(p, role);
    pen_mark(p, "<|end_header_id|>");
    pen_str(p, "\n\n");
}

static void llama3_message(pen *p, bool first, const moa_message *msg) {
    /* 3.1 and later put dates before every system message, and make one when there is none; the second date is the one the
     * template falls back to, so that the same conversation gives the same ids on any day */
    const bool dates = has_text(p, "Cutting Knowledge Date");
    if (first) {
        pen_bos(p);
        if (dates) {
            llama3_head(p, "system");
            pen_str(p, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
            if (msg->role == MOA_ROLE_SYSTEM) pen_text(p, msg->text, msg->n);
            pen_mark(p, "<|eot_id|>");
            if (msg->role == MOA_ROLE_SYSTEM) return;
        }
    }
    llama3_head(p, role_name(msg->role));
    pen_text(p, msg->text, msg->n);
    pen_mark(p, "<|eot_id|>");
}

static void llama3_reply(pen *p) {
    llama3_head(p, "assistant");
}

/* llama2 and mistral: a system message belongs to the user message behind it, so the pen stays inside the instruction. */
static void llama2_message(pen *p, bool first, const moa_message *msg) {
    (void)first;
    const moa_message cut = trimmed(*msg);
    if (msg->role == MOA_ROLE_ASSISTANT) {
        pen_str(p, " ");
        pen_text(p, cut.text, cut.n);
        pen_str(p, " ");
        pen_id(p, moa_tokenizer_eos(p->m->tokenizer));
        return;
    }
    if (!p->in_inst) {
        pen_bos(p);
        pen_str(p, "[INST] ");
    }
    if (msg->role == MOA_ROLE_SYSTEM) {
        pen_str(p, "<<SYS>>\n");
        pen_text(p, msg->text, msg->n);
        pen_str(p, "\n<</SYS>>\n\n");
    } else { /* both are trimmed as one: spaces between them stay */
        const char *from = p->in_inst ? msg->text : cut.text;
        pen_text(p, from, (size_t)(cut.text - from) + cut.n);
        pen_str(p, " [/INST]");
    }
    p->in_inst = msg->role == MOA_ROLE_SYSTEM;
}

/* versions of this family differ in the spaces, which stand in the Jinja text as they are */
static void mistral_message(pen *p, bool first, const moa_message *msg) {
    if (msg->role == MOA_ROLE_ASSISTANT) {
        if (has_text(p, "' ' + message") || has_text(p, "\" \" + message")) pen_str(p, " ");
        pen_text(p, msg->text, msg->n);
        pen_id(p, moa_tokenizer_eos(p->m->tokenizer));
        return;
    }
    if (first) pen_bos(p);
    if (!p->in_inst) {
        pen_mark(p, "[INST]");
        if (has_text(p, "[INST] ")) pen_str(p, " ");
    }
    pen_text(p, msg->text, msg->n);
    if (msg->role == MOA_ROLE_SYSTEM) {
        pen_str(p, "\n\n");
    } else {
        if (has_text(p, " [/INST]")) pen_str(p, " ");
        pen_mark(p, "[/INST]");
    }
    p->in_inst = msg->role == MOA_ROLE_SYSTEM;
}

static void no_reply_marker(pen *p) {
    (void)p;
}

static void zephyr_part(pen *p, const moa_message *msg, bool eos) {
    char marker[32] = "<|";
    (void)strcat(strcat(marker, role_name(msg->role)), "|>");
    pen_mark(p, marker);
    pen_str(p, "\n");
    pen_text(p, msg->text, msg->n);
    if (eos)
        pen_id(p, moa_tokenizer_eos(p->m->tokenizer));
    else
        pen_mark(p, "<|end|>");
    pen_str(p, "\n");
}

static void zephyr_message(pen *p, bool first, const moa_message *msg) {
    if (first) pen_bos(p);
    zephyr_part(p, msg, true);
}

static void phi3_message(pen *p, bool first, const moa_message *msg) {
    if (first) pen_bos(p);
    zephyr_part(p, msg, false);
}

static void zephyr_reply(pen *p) {
    pen_mark(p, "<|assistant|>");
    pen_str(p, "\n");
}

/* in the order they are tried */
static const family families[] = {
    {"chatml",
     {"<|im_start|>", "<|im_end|>"},
     {"<|im_start|>", "<|im_end|>"},
     TRIM_IF_SAID,
     false,
     chatml_message,
     chatml_reply,
     "<|im_end|>",
     "\n"},
    {"llama3",
     {"<|start_header_id|>", "<|eot_id|>"},
     {"<|start_header_id|>", "<|eot_id|>"},
     TRIM_ALWAYS,
     false,
     llama3_message,
     llama3_reply,
     "<|eot_id|>",
     ""},
    {"phi3",
     {"<|end|>", "<|assistant|>"},
     {"<|end|>"},
     TRIM_IF_SAID,
     false,
     phi3_message,
     zephyr_reply,
     "<|end|>",
     "\n"},
    {"zephyr",
     {"<|user|>", "<|assistant|>", "eos_token"},
     {NULL},
     TRIM_IF_SAID,
     false,
     zephyr_message,
     zephyr_reply,
     NULL,
     "\n"},
    {"llama2", {"[INST]", "<<SYS>>"}, {NULL}, TRIM_ITSELF, true, llama2_message, no_reply_marker, NULL, ""},
    {"mistral",
     {"[INST]", "[/INST]"},
     {NULL},
     TRIM_IF_SAID,
     true,
     mistral_message,
     no_reply_marker,
     NULL,
     ""},
};

static const family *family_of(const moa_model *m, moa_err *err) {
    if (!m->tokenizer || !m->chat_template || !*m->chat_template) {
        (void)moa_fail(err, MOA_E_UNSUPPORTED, "the model file has no chat template; use it without --chat");
        return NULL;
    }
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        const family *x = &families[f];
        bool is = true;
        for (size_t i = 0; i < 3 && x->all_of[i]; i++)
            is = is && strstr(m->chat_template, x->all_of[i]);
        if (!is) continue;
        for (size_t i = 0; i < 2 && x->control[i]; i++) {
            const int32_t id = moa_tokenizer_find(m->tokenizer, x->control[i], strlen(x->control[i]));
            if (moa_tokenizer_is_control(m->tokenizer, id)) continue;
            (void)moa_fail(err, MOA_E_UNSUPPORTED,
                           "the chat template is %s, but %s is not a control token of the vocabulary",
                           x->name, x->control[i]);
            return NULL;
        }
        return x;
    }
    (void)moa_fail(err, MOA_E_UNSUPPORTED,
                   "the chat template (%zu bytes) is of no known family; known are chatml llama3 phi3 zephyr "
                   "llama2 mistral",
                   strlen(m->chat_template));
    return NULL;
}

/* --- the calls ----------------------------------------------------------------------------------------------------------------------- */

const char *moa_chat_template_name(const moa_model *m, moa_err *err) {
    const family *f = family_of(m, err);
    return f ? f->name : NULL;
}

/* moves what was written behind *ids and puts the pen away */
static moa_status pen_close(pen *p, int32_t **ids, size_t *n_ids) {
    pen_flush(p);
    if (p->status == MOA_OK && !moa_buf_ok(&p->ids))
        p->status = moa_fail(p->err, MOA_E_MEMORY, "chat template: out of memory");
    if (p->status == MOA_OK && p->ids.size) {
        size_t bytes;
        int32_t *grown = NULL;
        if (moa_size_mul(*n_ids, sizeof **ids, &bytes) && moa_size_add(bytes, p->ids.size, &bytes))
            grown = realloc(*ids, bytes);
        if (grown) {
            memcpy(grown + *n_ids, p->ids.data, p->ids.size);
            *ids = grown;
            *n_ids += p->ids.size / sizeof *grown;
        } else {
            p->status = moa_fail(p->err, MOA_E_MEMORY, "chat template: out of memory");
        }
    }
    moa_buf_free(&p->ids);
    moa_buf_free(&p->text);
    return p->status;
}

static void write_message(pen *p, const family *f, bool first, const moa_message *msg) {
    if (p->status != MOA_OK) return;
    if (msg->n > TEXT_MAX) {
        p->status =
            moa_fail(p->err, MOA_E_INVALID, "a message of %zu bytes: at most %d are read", msg->n, TEXT_MAX);
        return;
    }
    const bool trim = f->trim == TRIM_ALWAYS || (f->trim == TRIM_IF_SAID && text_trims(p->m->chat_template));
    const moa_message shown = trim ? trimmed(*msg) : *msg;
    f->message(p, first, &shown);
}

moa_status moa_chat_append(const moa_model *m, bool first, moa_role role, const char *text, size_t n,
                           int32_t **ids, size_t *n_ids, moa_err *err) {
    const family *f = family_of(m, err);
    if (!f) return MOA_E_UNSUPPORTED;
    if (f->joins_system && role == MOA_ROLE_SYSTEM)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "in the %s template a system message is part of the user's first message", f->name);
    pen p = {.m = m, .err = err};
    write_message(&p, f, first, &(moa_message){role, text, n});
    return pen_close(&p, ids, n_ids);
}

moa_status moa_chat_append_reply(const moa_model *m, int32_t **ids, size_t *n_ids, moa_err *err) {
    const family *f = family_of(m, err);
    if (!f) return MOA_E_UNSUPPORTED;
    pen p = {.m = m, .err = err};
    f->reply(&p);
    return pen_close(&p, ids, n_ids);
}

moa_status moa_chat_append_end(const moa_model *m, int32_t **ids, size_t *n_ids, moa_err *err) {
    const family *f = family_of(m, err);
    if (!f) return MOA_E_UNSUPPORTED;
    pen p = {.m = m, .err = err};
    const int32_t end =
        f->end ? moa_tokenizer_find(m->tokenizer, f->end, strlen(f->end)) : moa_tokenizer_eos(m->tokenizer);
    if (*n_ids == 0 || (*ids)[*n_ids - 1] != end) pen_id(&p, end);
    pen_str(&p, f->after_end);
    return pen_close(&p, ids, n_ids);
}

moa_status moa_chat_encode(const moa_model *m, const moa_message *messages, size_t n_messages, bool reply,
                           int32_t **ids, size_t *n_ids, moa_err *err) {
    *ids = NULL;
    *n_ids = 0;
    const family *f = family_of(m, err);
    if (!f) return MOA_E_UNSUPPORTED;
    pen p = {.m = m, .err = err};
    for (size_t i = 0; i < n_messages; i++)
        write_message(&p, f, i == 0, &messages[i]);
    if (reply) f->reply(&p);
    return pen_close(&p, ids, n_ids);
}
