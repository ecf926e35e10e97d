/* tokenizer.c -- byte-level BPE.
 *
 *   text --UTF-8 made valid--> special tokens cut out --NFC (qwen2)--> words --bytes' tokens--> merges --> ids
 *
 * The vocabulary spells bytes as characters (GPT-2's table: 0x20 is U+0120), so that a token's text is printable; it
 * comes from a file and is hostile. Control tokens are kept out of everything that plain text goes through: no byte, no
 * merge and no whole word can produce one; only the search for special strings can, and only with MOA_TOK_SPECIAL.
 * The ids are those of Hugging Face tokenizers, also where that is odd: a byte without a token disappears (SmolLM2 has
 * eight such control bytes), and of equal token texts the last holds. */
#include "core/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "core/base/buf.h"
#include "core/base/size.h"
#include "core/base/text.h"
#include "core/model/tokenizer_bpe.h"
#include "core/model/tokenizer_pre.h"

enum {
    VOCAB_MAX = 1 << 21,
    MERGES_MAX = 1 << 22,
    TOKEN_MAX = 64 << 10, /* bytes of a token's text */
    SPECIAL_MAX = 256,    /* bytes of a token that is searched for in texts; longer ones are never found */
    TEXT_MAX =
        64
        << 20, /* bytes of one text; replacing and normalising make at most three bytes of one: below 2^29 */
    AHEAD = 16, /* look-ups under way at once while the tables are filled */
};
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_BYTE = 6 };

typedef struct slice {
    const char *data;
    size_t size;
} slice;

/* text of a token -> id; open addressing, seeded, at most half full */
typedef struct table {
    struct {
        uint32_t tag, id1; /* hash bits; id + 1, 0: empty */
    } * slots;
    size_t mask;
    uint64_t seed;
} table;

/* strings back to back: string i is bytes[at[i] .. at[i+1]) */
typedef struct strings {
    char *bytes;
    size_t *at;
} strings;

struct moa_tokenizer {
    moa_pre *pre;
    char pre_name[65];
    size_t n_vocab;
    uint8_t *type; /* n_vocab */
    strings text;  /* as in the file */
    strings piece; /* what it decodes to */
    table plain;   /* tokens that text may become */
    table marked;  /* control and unknown tokens: find() only */
    moa_bpe bpe;
    int32_t byte_id[256]; /* -1: none */
    bool repeats;         /* some text is of several tokens */
    int32_t *special;     /* ids of searched tokens, sorted by text, each text once */
    size_t n_special;
    size_t special_from[257]; /* those that begin with byte b: [special_from[b], special_from[b+1]) */
    int32_t bos, eos, eot;
    bool add_bos;
};

static const char *string_of(const strings *s, size_t i, size_t *n) {
    *n = s->at[i + 1] - s->at[i];
    return s->bytes + s->at[i];
}

static bool is_marked(uint8_t type) {
    return type == TYPE_CONTROL || type == TYPE_UNKNOWN;
}

/* --- text -> id ------------------------------------------------------------------------------------------------------------- */

/* the 0 to 8 bytes of a text's end as one number; with its length they say which text it was */
static uint64_t load_tail(const char *s, size_t n) {
    uint64_t x = 0;
    uint32_t low, high;
    if (n == 8) {
        memcpy(&x, s, 8);
    } else if (n >= 4) {
        memcpy(&low, s, 4);
        memcpy(&high, s + n - 4, 4);
        x = low | (uint64_t)high << 32;
    } else if (n > 0) {
        x = (unsigned char)s[0] | (uint64_t)(unsigned char)s[n / 2] << 8 | (uint64_t)(unsigned char)s[n - 1] << 16;
    }
    return x;
}

static uint64_t hash_text(const char *s, size_t n, uint64_t seed) {
    uint64_t h = seed ^ n * 0x9E3779B97F4A7C15u, x;
    for (; n > 8; s += 8, n -= 8) {
        memcpy(&x, s, 8);
        h = (h ^ x) * 0xD6E8FEB86659FD93u;
        h ^= h >> 29;
    }
    h = (h ^ load_tail(s, n)) * 0xD6E8FEB86659FD93u;
    h ^= h >> 29;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
}

static bool table_init(table *t, size_t n, uint64_t seed) {
    size_t slots = 16, bytes;
    while (slots < 2 * n)
        slots *= 2; /* n <= VOCAB_MAX */
    if (!moa_size_mul(slots, sizeof *t->slots, &bytes)) return false;
    t->slots = calloc(1, bytes);
    t->mask = slots - 1;
    t->seed = seed;
    return t->slots != NULL;
}

/* where the text with this hash is, or would be put */
static size_t table_slot(const table *t, const strings *texts, slice text, uint64_t h) {
    const uint32_t tag = (uint32_t)(h >> 32);
    size_t i = (size_t)h & t->mask;
    for (; t->slots[i].id1; i = (i + 1) & t->mask) {
        size_t k;
        if (t->slots[i].tag != tag) continue;
        const char *found = string_of(texts, t->slots[i].id1 - 1, &k);
        if (k == text.size && memcmp(found, text.data, k) == 0) break;
    }
    return i;
}

/* true: a text of an earlier token, which it had until now */
static bool table_add(table *t, const strings *texts, int32_t id, uint64_t h) {
    slice text;
    text.data = string_of(texts, (size_t)id, &text.size);
    if (text.size == 0) return false;
    const size_t i = table_slot(t, texts, text, h);
    const bool again = t->slots[i].id1 != 0;
    t->slots[i].tag = (uint32_t)(h >> 32);
    t->slots[i].id1 = (uint32_t)id + 1;
    return again;
}

static int32_t table_find(const table *t, const strings *texts, const char *s, size_t n) {
    return (int32_t)t->slots[table_slot(t, texts, (slice){s, n}, hash_text(s, n, t->seed))].id1 - 1;
}

/* --- GPT-2's spelling of bytes ------------------------------------------------------------------------------------------------ */

/* Printable bytes are themselves; the other 68 become U+0100, U+0101, ... in order. */
static void spell_bytes(int32_t cp_of[256]) {
    int32_t next = 0x100;
    for (int b = 0; b < 256; b++)
        cp_of[b] = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE ? b : next++;
}

typedef struct spelling {
    int32_t cp_of[256];
    int16_t byte_of[0x180]; /* -1: none */
} spelling;

static void spelling_init(spelling *sp) {
    spell_bytes(sp->cp_of);
    for (size_t i = 0; i < 0x180; i++)
        sp->byte_of[i] = -1;
    for (int b = 0; b < 256; b++)
        sp->byte_of[sp->cp_of[b]] = (int16_t)b;
}

/* Bytes that a text in GPT-2's spelling stands for, into out (n bytes are enough). A text with any other character stands
 * for itself. Its own characters have one or two bytes: decoded here, for a vocabulary has a million of them. */
static size_t unspell(const spelling *sp, const char *s, size_t n, char *out) {
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        const unsigned char a = (unsigned char)s[i], b = i + 1 < n ? (unsigned char)s[i + 1] : 0;
        int32_t cp = a;
        if (a < 0x80)
            i++;
        else if (a >= 0xC2 && a <= 0xDF && (b & 0xC0) == 0x80)
            cp = (a & 0x1F) << 6 | (b & 0x3F), i += 2;
        else
            i += moa_utf8_next(s + i, n - i, &cp, NULL);
        if (cp >= 0x180 || sp->byte_of[cp] < 0) {
            memcpy(out, s, n);
            return n;
        }
        out[k++] = (char)sp->byte_of[cp];
    }
    return k;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* "<0x1F>" and nothing else; -1: not a byte token */
static int byte_token(const char *s, size_t n) {
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    const int high = hex_digit(s[3]), low = hex_digit(s[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* --- opening -------------------------------------------------------------------------------------------------------------------- */

static moa_status check_config(const moa_tok_config *c, moa_err *err) {
    if (!c->model || strcmp(c->model, "gpt2") != 0)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "tokenizer model \"%.64s\" is not supported, only gpt2 (byte-level BPE) is",
                        c->model ? c->model : "");
    if (c->n_vocab == 0 || c->n_vocab > VOCAB_MAX)
        return moa_fail(err, MOA_E_INVALID, "tokenizer: %zu tokens, expected 1 to %d", c->n_vocab, VOCAB_MAX);
    if (c->n_merges > MERGES_MAX)
        return moa_fail(err, MOA_E_INVALID, "tokenizer: %zu merges, at most %d are read", c->n_merges,
                        MERGES_MAX);
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {{"BOS", c->bos}, {"EOS", c->eos}, {"EOT", c->eot}, {"unknown", c->unk}, {"padding", c->pad}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (ids[i].id < -1 || (ids[i].id >= 0 && (size_t)ids[i].id >= c->n_vocab))
            return moa_fail(err, MOA_E_INVALID, "tokenizer: %s token %d is not among the %zu tokens",
                            ids[i].name, ids[i].id, c->n_vocab);
    for (size_t i = 0; i < c->n_vocab; i++)
        if (c->entries[i].bytes > TOKEN_MAX)
            return moa_fail(err, MOA_E_INVALID, "tokenizer: token %zu has %u bytes, at most %d are read", i,
                            c->entries[i].bytes, TOKEN_MAX);
    return MOA_OK;
}

static moa_status out_of_memory(moa_err *err) {
    return moa_fail(err, MOA_E_MEMORY, "tokenizer: out of memory");
}

/* texts, pieces and types: a piece is never longer than its text, so both arenas have the same size */
static moa_status copy_vocab(moa_tokenizer *t, const moa_tok_config *c, moa_err *err) {
    size_t total = 1, at_bytes;
    for (size_t i = 0; i < c->n_vocab; i++)
        if (!moa_size_add(total, c->entries[i].bytes, &total)) return out_of_memory(err);
    if (!moa_size_mul(c->n_vocab + 1, sizeof(size_t), &at_bytes)) return out_of_memory(err);
    t->n_vocab = c->n_vocab;
    t->type = malloc(c->n_vocab);
    t->text = (strings){malloc(total), malloc(at_bytes)};
    t->piece = (strings){malloc(total), malloc(at_bytes)};
    if (!t->type || !t->text.bytes || !t->text.at || !t->piece.bytes || !t->piece.at)
        return out_of_memory(err);
    spelling sp;
    spelling_init(&sp);
    size_t text_at = 0, piece_at = 0;
    for (size_t i = 0; i < c->n_vocab; i++) {
        const moa_tok_entry *e = &c->entries[i];
        char *piece = t->piece.bytes + piece_at;
        t->type[i] = e->type;
        t->text.at[i] = text_at;
        t->piece.at[i] = piece_at;
        if (e->bytes) memcpy(t->text.bytes + text_at, e->text, e->bytes);
        text_at += e->bytes;
        const int byte = e->type == TYPE_BYTE && e->bytes ? byte_token(e->text, e->bytes) : -1;
        if (e->bytes == 0) continue;
        if (byte >= 0)
            *piece = (char)byte, piece_at++;
        else if (is_marked(e->type) || e->type == TYPE_USER)
            memcpy(piece, e->text, e->bytes), piece_at += e->bytes;
        else
            piece_at += unspell(&sp, e->text, e->bytes, piece);
    }
    t->text.at[c->n_vocab] = text_at;
    t->piece.at[c->n_vocab] = piece_at;
    return MOA_OK;
}

static uint64_t hash_of(const moa_tokenizer *t, size_t id) {
    size_t n;
    const char *s = string_of(&t->text, id, &n);
    return hash_text(s, n, t->plain.seed);
}

/* The tables are larger than the nearest cache: each slot is asked for some tokens ahead. */
static void fill_tables(moa_tokenizer *t) {
    uint64_t hash[AHEAD];
    for (size_t i = 0; i < t->n_vocab + AHEAD; i++) {
        if (i >= AHEAD) {
            const size_t id = i - AHEAD;
            table *to = is_marked(t->type[id]) ? &t->marked : &t->plain;
            const bool again = table_add(to, &t->text, (int32_t)id, hash[i % AHEAD]);
            t->repeats = t->repeats || again;
        }
        if (i >= t->n_vocab) continue;
        hash[i % AHEAD] = hash_of(t, i);
        __builtin_prefetch(&t->plain.slots[hash[i % AHEAD] & t->plain.mask], 1);
    }
}

static moa_status index_vocab(moa_tokenizer *t, uint64_t seed, moa_err *err) {
    size_t n_marked = 0;
    for (size_t i = 0; i < t->n_vocab; i++)
        n_marked += is_marked(t->type[i]);
    if (!table_init(&t->plain, t->n_vocab - n_marked, seed) || !table_init(&t->marked, n_marked, seed))
        return out_of_memory(err);
    fill_tables(t);
    spelling sp;
    spelling_init(&sp);
    int n_byte = 0;
    for (int b = 0; b < 256; b++) {
        char utf8[4];
        t->byte_id[b] = table_find(&t->plain, &t->text, utf8, moa_utf8_put(sp.cp_of[b], utf8));
        n_byte += t->byte_id[b] >= 0;
    }
    if (n_byte == 0) return moa_fail(err, MOA_E_INVALID, "tokenizer: none of the 256 bytes has a token");
    return MOA_OK;
}

/* --- merges ---------------------------------------------------------------------------------------------------------------------- */

/* one merge "left right" */
typedef struct merge {
    slice left, right;
    uint64_t left_hash, right_hash;
    int32_t left_id, right_id, id;
} merge;

/* The space that parts them is the first one behind the first byte. False: there is none. */
static bool split_merge(const moa_tokenizer *t, const moa_tok_entry *e, merge *m) {
    const char *space = e->bytes > 2 ? memchr(e->text + 1, ' ', e->bytes - 2) : NULL;
    if (!space) return false;
    m->left = (slice){e->text, (size_t)(space - e->text)};
    m->right = (slice){space + 1, e->bytes - m->left.size - 1};
    m->left_hash = hash_text(m->left.data, m->left.size, t->plain.seed);
    m->right_hash = hash_text(m->right.data, m->right.size, t->plain.seed);
    __builtin_prefetch(&t->plain.slots[m->left_hash & t->plain.mask]);
    __builtin_prefetch(&t->plain.slots[m->right_hash & t->plain.mask]);
    return true;
}

static bool is_joined(const moa_tokenizer *t, int32_t id, const merge *m) {
    size_t n;
    if (id < 0 || (size_t)id >= t->n_vocab || is_marked(t->type[id])) return false;
    const char *s = string_of(&t->text, (size_t)id, &n);
    return n == m->left.size + m->right.size && memcmp(s, m->left.data, m->left.size) == 0 &&
           memcmp(s + m->left.size, m->right.data, m->right.size) == 0;
}

static moa_status find_parts(const moa_tokenizer *t, merge *m, int32_t likely, moa_buf *joined, moa_err *err) {
    m->left_id = (int32_t)t->plain.slots[table_slot(&t->plain, &t->text, m->left, m->left_hash)].id1 - 1;
    m->right_id = (int32_t)t->plain.slots[table_slot(&t->plain, &t->text, m->right, m->right_hash)].id1 - 1;
    m->id = likely;
    if (!t->repeats && is_joined(t, likely, m)) return MOA_OK;
    moa_buf_clear(joined);
    moa_buf_append(joined, m->left.data, m->left.size);
    moa_buf_append(joined, m->right.data, m->right.size);
    if (!moa_buf_ok(joined)) return out_of_memory(err);
    m->id = table_find(&t->plain, &t->text, joined->data, joined->size);
    return MOA_OK;
}

static int short_text(size_t n) {
    return (int)(n < 64 ? n : 64);
}

/* a merge from or into a control token: plain text must not get there, so the merge is left out */
static moa_status check_left_out(const moa_tokenizer *t, const moa_tok_entry *e, const merge *m, size_t rank, moa_buf *joined,
                                 moa_err *err) {
    moa_buf_clear(joined);
    moa_buf_append(joined, m->left.data, m->left.size);
    moa_buf_append(joined, m->right.data, m->right.size);
    if (!moa_buf_ok(joined)) return out_of_memory(err);
    const slice parts[] = {m->left, m->right, {joined->data, joined->size}};
    const int32_t found[] = {m->left_id, m->right_id, m->id};
    for (int i = 0; i < 3; i++)
        if (found[i] < 0 && table_find(&t->marked, &t->text, parts[i].data, parts[i].size) < 0)
            return moa_fail(err, MOA_E_INVALID, "tokenizer: merge %zu \"%.*s\": \"%.*s\" is not a token", rank,
                            short_text(e->bytes), e->text, short_text(parts[i].size), parts[i].data);
    return MOA_OK;
}

/* Merges make tokens in the order of the vocabulary in the files there are: the next token is looked at before the table is asked. */
static moa_status add_merges(moa_tokenizer *t, const moa_tok_config *c, uint64_t seed, moa_err *err) {
    moa_status s = MOA_OK;
    moa_buf joined = {0};
    int32_t likely = -1;
    merge some[AHEAD];
    if (!moa_bpe_init(&t->bpe, c->n_merges, seed)) return out_of_memory(err);
    for (size_t from = 0, n = 0; from < c->n_merges && s == MOA_OK; from += n) {
        const moa_tok_entry *e = &c->merges[from];
        const size_t most = c->n_merges - from < AHEAD ? c->n_merges - from : AHEAD;
        for (n = 0; n < most && split_merge(t, &e[n], &some[n]);)
            n++;
        for (size_t i = 0; i < n && s == MOA_OK; i++) {
            s = find_parts(t, &some[i], likely, &joined, err);
            likely = some[i].id + 1;
            moa_bpe_expect(&t->bpe, some[i].left_id, some[i].right_id);
        }
        for (size_t i = 0; i < n && s == MOA_OK; i++) {
            if (some[i].left_id >= 0 && some[i].right_id >= 0 && some[i].id >= 0)
                moa_bpe_add(&t->bpe, some[i].left_id, some[i].right_id, (int32_t)(from + i), some[i].id);
            else
                s = check_left_out(t, &e[i], &some[i], from + i, &joined, err);
        }
        if (s == MOA_OK && n < most)
            s = moa_fail(err, MOA_E_INVALID, "tokenizer: merge %zu \"%.*s\" is not two tokens with a space between", from + n,
                         short_text(e[n].bytes), e[n].text ? e[n].text : "");
    }
    moa_buf_free(&joined);
    return s;
}

static int compare_text(const moa_tokenizer *t, int32_t a, int32_t b) {
    size_t na, nb;
    const char *x = string_of(&t->text, (size_t)a, &na), *y = string_of(&t->text, (size_t)b, &nb);
    const int order = memcmp(x, y, na < nb ? na : nb);
    return order ? order : (na > nb) - (na < nb);
}

static int by_text(const void *a, const void *b, void *t) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    const int order = compare_text(t, x, y);
    return order ? order : (x > y) - (x < y);
}

/* the tokens searched for in texts, sorted by their bytes so that a search narrows a range byte by byte */
static moa_status index_special(moa_tokenizer *t, moa_err *err) {
    size_t n = 0, kept = 0, bytes;
    if (!moa_size_mul(t->n_vocab, sizeof *t->special, &bytes) || !(t->special = malloc(bytes)))
        return out_of_memory(err);
    for (size_t i = 0; i < t->n_vocab; i++) {
        const size_t k = t->text.at[i + 1] - t->text.at[i];
        if ((is_marked(t->type[i]) || t->type[i] == TYPE_USER) && k > 0 && k <= SPECIAL_MAX)
            t->special[n++] = (int32_t)i;
    }
    qsort_r(t->special, n, sizeof *t->special, by_text, t);
    for (size_t i = 0; i < n; i++) /* of equal texts the last holds */
        if (i + 1 == n || compare_text(t, t->special[i], t->special[i + 1]) != 0)
            t->special[kept++] = t->special[i];
    t->n_special = kept;
    for (size_t i = 0, b = 0; b <= 256; b++) {
        while (i < kept && b > 0 && (unsigned char)t->text.bytes[t->text.at[t->special[i]]] < b)
            i++;
        t->special_from[b] = i;
    }
    return MOA_OK;
}

static uint64_t random_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) == (ssize_t)sizeof seed) return seed;
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u ^ (uint64_t)now.tv_sec;
}

moa_status moa_tokenizer_open(moa_tokenizer **out, const moa_tok_config *config, moa_err *err) {
    moa_status s;
    moa_tokenizer *t = NULL;
    *out = NULL;
    MOA_TRY(check_config(config, err));
    const char *pre = config->pre ? config->pre : "default";
    if (!(t = calloc(1, sizeof *t))) {
        s = out_of_memory(err);
        goto out;
    }
    const uint64_t seed = random_seed();
    MOA_TRY(moa_pre_open(&t->pre, pre, err));
    (void)strncpy(t->pre_name, pre, sizeof t->pre_name - 1);
    MOA_TRY(copy_vocab(t, config, err));
    MOA_TRY(index_vocab(t, seed, err));
    MOA_TRY(add_merges(t, config, seed, err));
    MOA_TRY(index_special(t, err));
    t->bos = config->bos;
    t->eos = config->eos;
    t->eot = config->eot;
    t->add_bos = config->add_bos && config->bos >= 0;
    *out = t;
    return MOA_OK;
out:
    moa_tokenizer_close(&t);
    return s;
}

void moa_tokenizer_close(moa_tokenizer **t) {
    if (!t || !*t) return;
    moa_tokenizer *x = *t;
    moa_pre_close(&x->pre);
    moa_bpe_free(&x->bpe);
    free(x->type);
    free(x->text.bytes), free(x->text.at);
    free(x->piece.bytes), free(x->piece.at);
    free(x->plain.slots), free(x->marked.slots);
    free(x->special);
    free(x);
    *t = NULL;
}

/* --- encoding --------------------------------------------------------------------------------------------------------------------- */

/* what one call of encode works with */
typedef struct work {
    const moa_tokenizer *t;
    moa_pre_walk walk;
    moa_buf ids, symbols, merging, nfc, spelled; /* ids and symbols: int32_t */
    bool failed; /* out of memory somewhere: a buffer forgets it when it is cleared for the next word */
} work;

/* the token whose text is the word itself, -1: none; words are looked up in GPT-2's spelling */
static int32_t whole_word(work *w, const spelling *sp, const char *word, size_t n) {
    if (n > TOKEN_MAX) return -1;
    moa_buf_clear(&w->spelled);
    for (size_t i = 0; i < n; i++) {
        char utf8[4];
        moa_buf_append(&w->spelled, utf8, moa_utf8_put(sp->cp_of[(unsigned char)word[i]], utf8));
    }
    if (!moa_buf_ok(&w->spelled)) w->failed = true;
    return !w->failed ? table_find(&w->t->plain, &w->t->text, w->spelled.data, w->spelled.size) : -1;
}

static void encode_word(work *w, const char *word, size_t n) {
    size_t bytes, k = 0;
    if (!moa_size_mul(n, sizeof(int32_t), &bytes)) bytes = SIZE_MAX;
    moa_buf_clear(&w->symbols);
    int32_t *symbols = moa_buf_extend(&w->symbols, bytes);
    if (!symbols) {
        w->failed = true;
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (w->t->byte_id[(unsigned char)word[i]] >= 0) symbols[k++] = w->t->byte_id[(unsigned char)word[i]];
    k = moa_bpe_merge(&w->t->bpe, symbols, k, &w->merging);
    if (!moa_buf_ok(&w->merging)) w->failed = true;
    moa_buf_append(&w->ids, symbols, k * sizeof *symbols);
}

/* text between special tokens */
static void encode_plain(work *w, const char *text, size_t n) {
    const moa_pre *pre = w->t->pre;
    spelling sp;
    size_t from, to;
    if (n == 0) return;
    if (moa_pre_is_nfc(pre)) {
        moa_buf_clear(&w->nfc);
        moa_pre_nfc(text, n, &w->nfc);
        if (!moa_buf_ok(&w->nfc)) {
            w->failed = true;
            return;
        }
        text = w->nfc.data;
        n = w->nfc.size;
    }
    if (moa_pre_is_whole_word(pre)) spelling_init(&sp);
    moa_pre_walk_start(&w->walk, text, n);
    while (moa_pre_walk_next(&w->walk, &from, &to)) {
        const int32_t id = moa_pre_is_whole_word(pre) ? whole_word(w, &sp, text + from, to - from) : -1;
        if (id >= 0)
            moa_buf_append(&w->ids, &id, sizeof id);
        else
            encode_word(w, text + from, to - from);
    }
}

/* first in [from, to) of the sorted specials whose byte k is >= b (they agree in the k bytes before, and are longer) */
static size_t narrow(const moa_tokenizer *t, size_t from, size_t to, size_t k, int b) {
    while (from < to) {
        const size_t mid = from + (to - from) / 2;
        if ((unsigned char)t->text.bytes[t->text.at[t->special[mid]] + k] < b)
            from = mid + 1;
        else
            to = mid;
    }
    return from;
}

/* the longest special token that text begins with, -1: none */
static int32_t special_at(const moa_tokenizer *t, const char *text, size_t n, size_t *bytes) {
    int32_t best = -1;
    size_t from = t->special_from[(unsigned char)*text], to = t->special_from[(unsigned char)*text + 1];
    for (size_t k = 1; from < to; k++) {
        const int32_t id = t->special[from];
        if (t->text.at[id + 1] - t->text.at[id] ==
            k) { /* the shortest of those with this beginning comes first */
            best = id;
            *bytes = k;
            from++;
        }
        if (k == n) break;
        const int b = (unsigned char)text[k];
        from = narrow(t, from, to, k, b);
        to = narrow(t, from, to, k, b + 1);
    }
    return best;
}

static void encode_text(work *w, const char *text, size_t n, int flags) {
    const moa_tokenizer *t = w->t;
    size_t done = 0; /* everything before is encoded */
    for (size_t i = 0; i < n && !w->failed && moa_buf_ok(&w->ids);) {
        size_t k = 1;
        const int32_t id = special_at(t, text + i, n - i, &k);
        /* a control token that may not be one here stays text, yet nothing else is found inside it */
        if (id >= 0 && (!is_marked(t->type[id]) || (flags & MOA_TOK_SPECIAL))) {
            encode_plain(w, text + done, i - done);
            moa_buf_append(&w->ids, &id, sizeof id);
            done = i + k;
        }
        i += k;
    }
    encode_plain(w, text + done, n - done);
}

moa_status moa_tokenizer_encode(const moa_tokenizer *t, const char *text, size_t n, int flags, int32_t **ids,
                                size_t *n_ids, moa_err *err) {
    moa_status s = MOA_OK;
    work w = {.t = t};
    moa_buf valid = {0};
    *ids = NULL;
    *n_ids = 0;
    if (n > TEXT_MAX)
        return moa_fail(err, MOA_E_INVALID, "a text of %zu bytes: at most %d are tokenised at once", n,
                        TEXT_MAX);
    MOA_TRY(moa_pre_walk_open(&w.walk, t->pre, err));
    if (!moa_utf8_valid(text, n)) {
        moa_utf8_replace(text, n, &valid);
        if (!moa_buf_ok(&valid)) {
            s = out_of_memory(err);
            goto out;
        }
        text = valid.data;
        n = valid.size;
    }
    if ((flags & MOA_TOK_BOS) && t->add_bos) moa_buf_append(&w.ids, &t->bos, sizeof t->bos);
    encode_text(&w, text, n, flags);
    if (w.failed || w.walk.failed || !moa_buf_ok(&w.ids)) {
        s = out_of_memory(err);
        goto out;
    }
    *ids = (int32_t *)(void *)w.ids.data; /* moved; NULL when there are none */
    *n_ids = w.ids.size / sizeof(int32_t);
    w.ids = (moa_buf){0};
out:
    moa_pre_walk_close(&w.walk);
    moa_buf_free(&w.ids), moa_buf_free(&w.symbols), moa_buf_free(&w.merging), moa_buf_free(&w.nfc);
    moa_buf_free(&w.spelled), moa_buf_free(&valid);
    return s;
}

/* --- asking --------------------------------------------------------------------------------------------------------------------------- */

static bool in_range(const moa_tokenizer *t, int32_t id) {
    return id >= 0 && (size_t)id < t->n_vocab;
}

const char *moa_tokenizer_piece(const moa_tokenizer *t, int32_t id, size_t *n) {
    *n = 0;
    return in_range(t, id) ? string_of(&t->piece, (size_t)id, n) : "";
}

size_t moa_tokenizer_n_vocab(const moa_tokenizer *t) {
    return t->n_vocab;
}
bool moa_tokenizer_is_control(const moa_tokenizer *t, int32_t id) {
    return in_range(t, id) && is_marked(t->type[id]);
}
int32_t moa_tokenizer_bos(const moa_tokenizer *t) {
    return t->bos;
}
int32_t moa_tokenizer_eos(const moa_tokenizer *t) {
    return t->eos;
}
const char *moa_tokenizer_pre(const moa_tokenizer *t) {
    return t->pre_name;
}
bool moa_tokenizer_has_byte(const moa_tokenizer *t, unsigned char byte) {
    return t->byte_id[byte] >= 0;
}

/* Files name one EOS; these are what else ends a text or a turn in the families read here. */
bool moa_tokenizer_is_end(const moa_tokenizer *t, int32_t id) {
    static const char *const ends[] = {"<|im_end|>",    "<|endoftext|>", "<|end_of_text|>",
                                       "<|eot_id|>",    "<|eom_id|>",    "<|end|>",
                                       "<|endofturn|>", "<end_of_turn>", "</s>"};
    if (!in_range(t, id)) return false;
    if (id == t->eos || id == t->eot) return true;
    if (!is_marked(t->type[id])) return false;
    size_t n;
    const char *text = string_of(&t->text, (size_t)id, &n);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (n == strlen(ends[i]) && memcmp(text, ends[i], n) == 0) return true;
    return false;
}

int32_t moa_tokenizer_find(const moa_tokenizer *t, const char *text, size_t n) {
    const int32_t id = table_find(&t->marked, &t->text, text, n);
    return id >= 0 ? id : table_find(&t->plain, &t->text, text, n);
}
