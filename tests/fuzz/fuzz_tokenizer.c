/* A tokenizer whose vocabulary, merges, special tokens and text all come from the enemy, and the chat template on top of it.
 *
 *   byte 0      bits 0-1 pre-tokenizer, 2 the 256 bytes are tokens, 3 entries may be of any type, 4 add_bos, 5 a chat template,
 *               6 the configuration itself is strange: a byte says how
 *   entries     (type, length <= 63, text) ... until a length of 64 or more
 *   merges      (left, right) as indices of tokens ... until left == 255; what they make is added as a token
 *   template    bit 5: length, text
 *   text        the rest
 *
 * Besides not crashing: ids are in range; no control id without MOA_TOK_SPECIAL; with all bytes as tokens and nothing of
 * another type the bytes come back, and both ways of merging agree. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/buf.h"
#include "core/base/text.h"
#include "core/model/chat.h"
#include "core/model/tokenizer_pre.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ENTRY_MAX = 700, MERGE_MAX = 128, TEXT_MAX = 512 };
enum { ALL_BYTES = 4, ANY_TYPE = 8, ADD_BOS = 16, TEMPLATE = 32, STRANGE = 64 };

typedef struct input {
    const uint8_t *data;
    size_t size;
} input;

static void check(int condition) {
    if (!condition) abort();
}

static unsigned take(input *in) {
    if (in->size == 0) return 255;
    in->size--;
    return *in->data++;
}

typedef struct vocab {
    moa_tok_entry entries[ENTRY_MAX], merges[MERGE_MAX];
    size_t n, n_merges;
    char texts[ENTRY_MAX][TEXT_MAX],
        merge_texts[MERGE_MAX][TEXT_MAX]; /* a result as long as TEXT_MAX is not made */
} vocab;

static void add_entry(vocab *v, unsigned type, const void *text, size_t n) {
    if (v->n == ENTRY_MAX || n > TEXT_MAX) return;
    memcpy(v->texts[v->n], text, n);
    v->entries[v->n] = (moa_tok_entry){v->texts[v->n], (uint32_t)n, (uint8_t)type};
    v->n++;
}

static void add_merge(vocab *v, size_t left, size_t right) {
    const moa_tok_entry *a = &v->entries[left], *b = &v->entries[right];
    if (v->n_merges == MERGE_MAX || (size_t)a->bytes + b->bytes + 1 > TEXT_MAX) return;
    char *text = v->merge_texts[v->n_merges];
    memcpy(text, a->text, a->bytes);
    memcpy(text + a->bytes, b->text, b->bytes);
    add_entry(v, 1, text, (size_t)a->bytes + b->bytes);
    text[a->bytes] = ' ';
    memcpy(text + a->bytes + 1, b->text, b->bytes);
    v->merges[v->n_merges++] = (moa_tok_entry){text, a->bytes + b->bytes + 1, 0};
}

static void make_vocab(vocab *v, unsigned flags, input *in) {
    v->n = v->n_merges = 0;
    if (flags & ALL_BYTES)
        for (int b = 0, next = 0x100; b < 256; b++) {
            char utf8[4];
            const int self = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
            add_entry(v, 1, utf8, moa_utf8_put(self ? b : next++, utf8));
        }
    for (;;) {
        const unsigned type = take(in), n = take(in);
        if (n > 63 || n > in->size) break;
        add_entry(v, flags & ANY_TYPE ? type : 1, in->data, n);
        in->data += n;
        in->size -= n;
    }
    for (unsigned left; v->n && (left = take(in)) != 255;)
        add_merge(v, left % v->n, take(in) % v->n);
}

static void encode(const moa_tokenizer *t, const input *text, unsigned flags, bool whole) {
    moa_err err = {0};
    for (int special = 0; special < 2; special++) {
        int32_t *ids;
        size_t n;
        moa_buf back = {0}, want = {0};
        check(moa_tokenizer_encode(t, (const char *)text->data, text->size,
                                   special | (flags & ADD_BOS ? MOA_TOK_BOS : 0), &ids, &n, &err) == MOA_OK);
        for (size_t i = 0; i < n; i++) {
            size_t k;
            check(ids[i] >= 0 && (size_t)ids[i] < moa_tokenizer_n_vocab(t));
            const bool bos = i == 0 && (flags & ADD_BOS) && ids[0] == moa_tokenizer_bos(t);
            if (!special && !bos) check(!moa_tokenizer_is_control(t, ids[i]));
            const char *piece = moa_tokenizer_piece(t, ids[i], &k);
            if (!bos) moa_buf_append(&back, piece, k);
        }
        if (whole) {
            moa_buf valid = {0};
            moa_utf8_replace((const char *)text->data, text->size, &valid);
            if (strcmp(moa_tokenizer_pre(t), "qwen2") == 0)
                moa_pre_nfc(valid.data ? valid.data : "", valid.size, &want);
            else
                moa_buf_append(&want, valid.data ? valid.data : "", valid.size);
            check(back.size == want.size && (want.size == 0 || memcmp(back.data, want.data, want.size) == 0));
            moa_buf_free(&valid);
        }
        free(ids);
        moa_buf_free(&back), moa_buf_free(&want);
    }
}

static void chat(moa_tokenizer *t, char *template, const input *text) {
    const moa_model m = {.tokenizer = t, .chat_template = template};
    int32_t *ids = NULL;
    size_t n = 0;
    moa_err err = {0};
    if (!moa_chat_template_name(&m, &err)) {
        check(err.status == MOA_E_UNSUPPORTED && err.text[0]);
        return;
    }
    const char *in = (const char *)text->data;
    const moa_message all[] = {{MOA_ROLE_SYSTEM, in, text->size / 2},
                               {MOA_ROLE_USER, in, text->size},
                               {MOA_ROLE_ASSISTANT, in, text->size}};
    for (size_t from = 0; from < 2; from++) {
        check(moa_chat_encode(&m, all + from, 3 - from, true, &ids, &n, &err) == MOA_OK);
        for (size_t i = 0; i < n; i++)
            check(ids[i] >= 0 && (size_t)ids[i] < moa_tokenizer_n_vocab(t));
        check(moa_chat_append_end(&m, &ids, &n, &err) == MOA_OK);
        free(ids);
    }
}

/* what no file of ours says, but some file may */
static void make_strange(moa_tok_config *c, unsigned how) {
    static moa_tok_entry raw; /* a merge that is any text */
    int32_t *const ids[] = {&c->bos, &c->eos, &c->eot, &c->unk, &c->pad};
    switch (how & 7) {
    case 0: c->pre = "unheard-of"; break;
    case 1: c->model = how & 8 ? "llama" : NULL; break;
    case 2: c->pre = NULL; break; /* no such key in the file */
    case 3: *ids[how / 8 % 5] = how & 128 ? (int32_t)c->n_vocab : INT32_MIN; break;
    case 4: c->n_merges = (size_t)1 << 40; break;
    case 5: c->n_vocab = how & 8 ? 0 : (size_t)1 << 22; break;
    case 6:
        raw = (moa_tok_entry){"a b c", how / 8 % 6, 0};
        c->merges = &raw;
        c->n_merges = 1;
        break;
    default: c->add_bos = true; break; /* without a BOS */
    }
}

static void ask(const moa_tokenizer *t, const input *text) {
    const size_t n = moa_tokenizer_n_vocab(t);
    for (int32_t id = -2; id < (int32_t)n + 2; id++) {
        size_t k, again;
        const char *piece = moa_tokenizer_piece(t, id, &k);
        check(piece != NULL && (k == 0 || (id >= 0 && (size_t)id < n)));
        if (moa_tokenizer_is_end(t, id)) check(id == moa_tokenizer_eos(t) || moa_tokenizer_is_control(t, id));
        const int32_t found = moa_tokenizer_find(t, piece, k);
        check(found < (int32_t)n);
        if (found >= 0) (void)moa_tokenizer_piece(t, found, &again);
    }
    (void)moa_tokenizer_find(t, (const char *)text->data, text->size);
    check(moa_tokenizer_bos(t) < (int32_t)n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static vocab v; /* one thread, and large */
    static const char *const pres[] = {"smollm", "qwen2", "llama-bpe", "gpt-2"};
    input in = {data, size};
    const unsigned flags = take(&in);
    moa_tokenizer *t = NULL;
    moa_err err = {0};
    char template[256] = "";
    make_vocab(&v, flags, &in);
    moa_tok_config config = {
        .model = "gpt2",
        .pre = pres[flags & 3],
        .entries = v.entries,
        .n_vocab = v.n,
        .merges = v.merges,
        .n_merges = v.n_merges,
        .bos = flags & ADD_BOS ? (int32_t)v.n - 1 : -1,
        .eos = (int32_t)v.n - 1,
        .eot = -1,
        .unk = -1,
        .pad = -1,
        .add_bos = flags & ADD_BOS,
    };
    if (flags & STRANGE) make_strange(&config, take(&in));
    const moa_status s = moa_tokenizer_open(&t, &config, &err);
    check((s == MOA_OK) == (t != NULL));
    if (s != MOA_OK) {
        check(err.text[0] != 0);
        return 0;
    }
    if (flags & TEMPLATE) {
        size_t n = take(&in);
        if (n > in.size) n = in.size;
        memcpy(template, in.data, n);
        in.data += n;
        in.size -= n;
    }
    ask(t, &in);
    encode(t, &in, flags, (flags & ALL_BYTES) && !(flags & ANY_TYPE));
    if (flags & TEMPLATE) chat(t, template, &in);
    moa_tokenizer_close(&t);
    return 0;
}
