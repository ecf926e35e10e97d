/* core/model/tokenizer: ids equal to Hugging Face tokenizers', hostile vocabularies, time.
 *
 * The goldens in tests/data come from tests/oracle/tokenizer_ids.py; the vocabularies from the model files of the cache
 * (scripts/fetch_model.py). Without a file its cases say so and are skipped; with none the program exits 77. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include <pthread.h>
#include <time.h>

#include "core/base/buf.h"
#include "core/base/text.h"
#include "core/model/tokenizer_bpe.h"
#include "core/model/tokenizer_pre.h"
#include "tests/thread_cases.h"
#include "tests/tokenizer_gguf.h"

#define SMOLLM2 "SmolLM2-135M-Instruct-Q4_1.gguf"
/* the figures hold for optimised builds; sanitizers and debug builds only have to end */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define MOA_SLOW 20
#else
#define MOA_SLOW 1
#endif
#define QWEN2 "Qwen2.5-Coder-0.5B-Instruct.gguf"

/* of this thread's work: what else the machine does is not our time */
static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t rng_state = 1;
static uint32_t rng(uint32_t below) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng_state >> 33) % below);
}

/* opened once a file and pre-tokenizer; NULL: not in the cache */
static moa_tokenizer *open_model(const char *file, const char *pre) {
    char path[512];
    moa_tokenizer *t = NULL;
    moa_err err = {0};
    if (!model_in_cache(file, path)) return NULL;
    if (tokenizer_from_gguf(&t, path, &(changes){.pre = pre}, NULL, &err) != MOA_OK) fail_msg("%s", err.text);
    return t;
}

static void decode(const moa_tokenizer *t, const int32_t *ids, size_t n, moa_buf *out) {
    for (size_t i = 0; i < n; i++) {
        size_t k;
        const char *piece = moa_tokenizer_piece(t, ids[i], &k);
        moa_buf_append(out, piece, k);
    }
}

/* --- against Hugging Face ---------------------------------------------------------------------------------------------- */

static size_t unhex(const char *hex, char *out) {
    size_t n = 0;
    for (; hex[0] && hex[1]; hex += 2) {
        unsigned byte;
        assert_int_equal(sscanf(hex, "%2x", &byte), 1);
        out[n++] = (char)byte;
    }
    return n;
}

static bool same_ids(const cJSON *want, const int32_t *ids, size_t n) {
    size_t i = 0;
    const cJSON *x;
    cJSON_ArrayForEach(x, want) {
        if (i >= n || ids[i] != (int32_t)x->valuedouble) return false;
        i++;
    }
    return i == n;
}

static size_t check_line(const moa_tokenizer *t, const char *line, size_t number) {
    cJSON *o = cJSON_Parse(line);
    assert_non_null(o);
    const char *hex = cJSON_GetObjectItem(o, "bytes_hex")->valuestring;
    char *bytes = malloc(strlen(hex) / 2 + 1);
    const size_t n = unhex(hex, bytes);
    size_t wrong = 0;
    for (int flags = 0; flags <= MOA_TOK_SPECIAL; flags++) {
        int32_t *ids;
        size_t n_ids;
        moa_err err = {0};
        if (moa_tokenizer_encode(t, bytes, n, flags, &ids, &n_ids, &err) != MOA_OK) fail_msg("%s", err.text);
        if (!same_ids(cJSON_GetObjectItem(o, flags ? "ids" : "ids_nospecial"), ids, n_ids)) {
            wrong++;
            print_error("line %zu, flags %d: %s\n  want:", number, flags, hex);
            const cJSON *x;
            cJSON_ArrayForEach(x, cJSON_GetObjectItem(o, flags ? "ids" : "ids_nospecial"))
                print_error(" %d", x->valueint);
            print_error("\n  have:");
            for (size_t i = 0; i < n_ids; i++)
                print_error(" %d", (int)ids[i]);
            print_error("\n");
        }
        free(ids);
    }
    free(bytes);
    cJSON_Delete(o);
    return wrong;
}

static void check_golden(const char *file, const char *pre, const char *golden, size_t least) {
    moa_tokenizer *t = open_model(file, pre);
    if (!t) skip();
    char command[512];
    (void)snprintf(command, sizeof command, "gzip -dc '%s/tests/data/%s'", MOA_SOURCE_DIR, golden);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    char *line = NULL;
    size_t room = 0, n = 0, wrong = 0;
    while (getline(&line, &room, f) > 0)
        wrong += check_line(t, line, ++n) != 0;
    free(line);
    assert_int_equal(pclose(f), 0);
    moa_tokenizer_close(&t);
    print_message("%s: %zu strings, %zu differ\n", golden, n, wrong);
    assert_int_equal(wrong, 0);
    assert_true(n >= least);
}

static void test_golden_smollm2(void **state) {
    (void)state;
    check_golden(SMOLLM2, NULL, "tokenizer_smollm2.jsonl.gz", 2000);
}
static void test_golden_qwen2(void **state) {
    (void)state;
    check_golden(QWEN2, NULL, "tokenizer_qwen2.jsonl.gz", 2000);
}
/* the other two expressions on SmolLM2's vocabulary: the strings whose ids they change */
static void test_golden_llama_bpe(void **state) {
    (void)state;
    check_golden(SMOLLM2, "llama-bpe", "tokenizer_pre_llama-bpe.jsonl.gz", 500);
}
static void test_golden_gpt2(void **state) {
    (void)state;
    check_golden(SMOLLM2, "gpt-2", "tokenizer_pre_gpt-2.jsonl.gz", 500);
}

/* --- properties --------------------------------------------------------------------------------------------------------------- */

/* what comes back: valid UTF-8, without the bytes that have no token, in form C where the model wants it */
static void expected_back(const moa_tokenizer *t, const char *s, size_t n, moa_buf *out) {
    moa_buf valid = {0}, nfc = {0};
    moa_utf8_replace(s, n, &valid);
    if (strcmp(moa_tokenizer_pre(t), "qwen2") == 0)
        moa_pre_nfc(valid.data ? valid.data : "", valid.size, &nfc);
    else
        moa_buf_append(&nfc, valid.data ? valid.data : "", valid.size);
    for (size_t i = 0; i < nfc.size; i++)
        if (moa_tokenizer_has_byte(t, (unsigned char)nfc.data[i])) moa_buf_append(out, nfc.data + i, 1);
    moa_buf_free(&valid), moa_buf_free(&nfc);
}

static void random_text(char *s, size_t n, int kind) {
    static const char *const bits[] = {" ",
                                       "\n",
                                       "a",
                                       "the",
                                       "0",
                                       "'s",
                                       "\xc3\xa9",
                                       "\xe4\xbd\x9c",
                                       "\xf0\x9f\x98\x80",
                                       "\xcc\x81",
                                       "<|im_end|>",
                                       "<tool_call>",
                                       "\xff",
                                       "\t",
                                       "  ",
                                       "..",
                                       "\xe2\x80\xae",
                                       "\x04",
                                       "\xea\xb0\x80"};
    for (size_t i = 0; i < n;) {
        const char *b = bits[rng(sizeof bits / sizeof *bits)];
        if (kind == 0)
            s[i++] = (char)rng(256);
        else
            for (; *b && i < n; b++)
                s[i++] = *b;
    }
}

static void round_trips(const char *file) {
    moa_tokenizer *t = open_model(file, NULL);
    if (!t) skip();
    rng_state = 3;
    for (int round = 0; round < 10000; round++) {
        char text[200];
        const size_t n = rng(sizeof text + 1);
        random_text(text, n, round & 1);
        int32_t *ids;
        size_t n_ids;
        moa_buf back = {0}, want = {0};
        assert_int_equal(
            moa_tokenizer_encode(t, text, n, round & 2 ? MOA_TOK_SPECIAL : 0, &ids, &n_ids, NULL), MOA_OK);
        decode(t, ids, n_ids, &back);
        if (!(round & 2) ||
            strcmp(moa_tokenizer_pre(t), "qwen2") != 0) { /* a special string parts what NFC would join */
            expected_back(t, text, n, &want);
            assert_int_equal(back.size, want.size);
            if (want.size) assert_memory_equal(back.data, want.data, want.size);
        }
        if (!(round & 2))
            for (size_t i = 0; i < n_ids; i++)
                assert_false(moa_tokenizer_is_control(t, ids[i]));
        free(ids);
        moa_buf_free(&back), moa_buf_free(&want);
    }
    moa_tokenizer_close(&t);
}

static void test_round_trip_smollm2(void **state) {
    (void)state;
    round_trips(SMOLLM2);
}
static void test_round_trip_qwen2(void **state) {
    (void)state;
    round_trips(QWEN2);
}

/* Text that holds every special string of the vocabulary gives no control id; with MOA_TOK_SPECIAL it gives each. */
static void no_injection(const char *file, const char *pre) {
    moa_tokenizer *t = open_model(file, pre);
    if (!t) skip();
    moa_buf text = {0};
    size_t n_control = 0, found = 0;
    for (int32_t id = 0; id < (int32_t)moa_tokenizer_n_vocab(t); id++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(t, id, &n);
        if (!moa_tokenizer_is_control(t, id)) continue;
        n_control++;
        moa_buf_append(&text, piece, n);
        moa_buf_str(&text, n_control % 2 ? " x" : "");
    }
    int32_t *ids;
    size_t n_ids;
    assert_true(n_control > 10);
    assert_int_equal(moa_tokenizer_encode(t, text.data, text.size, MOA_TOK_BOS, &ids, &n_ids, NULL), MOA_OK);
    for (size_t i = 0; i < n_ids; i++)
        assert_false(moa_tokenizer_is_control(t, ids[i]));
    moa_buf back = {0};
    decode(t, ids, n_ids, &back);
    assert_int_equal(back.size, text.size);
    assert_memory_equal(back.data, text.data, text.size);
    free(ids);
    assert_int_equal(moa_tokenizer_encode(t, text.data, text.size, MOA_TOK_SPECIAL, &ids, &n_ids, NULL),
                     MOA_OK);
    for (size_t i = 0; i < n_ids; i++)
        found += moa_tokenizer_is_control(t, ids[i]);
    assert_int_equal(found, n_control);
    free(ids);
    moa_buf_free(&text), moa_buf_free(&back);
    moa_tokenizer_close(&t);
}

static void test_no_injection_smollm2(void **state) {
    (void)state;
    no_injection(SMOLLM2, NULL);
    no_injection(SMOLLM2, "llama-bpe"); /* where whole words are looked up in the vocabulary */
}
static void test_no_injection_qwen2(void **state) {
    (void)state;
    no_injection(QWEN2, NULL);
}

/* --- small vocabularies made here ------------------------------------------------------------------------------------------------- */

typedef struct vocab {
    moa_tok_entry entries[600], merges[64];
    char bytes[256][4];
    moa_tok_config config;
} vocab;

static int32_t vocab_add(vocab *v, const char *text, int type) {
    v->entries[v->config.n_vocab] = (moa_tok_entry){text, (uint32_t)strlen(text), (uint8_t)type};
    return (int32_t)v->config.n_vocab++;
}
static void vocab_merge(vocab *v, const char *text) {
    v->merges[v->config.n_merges++] = (moa_tok_entry){text, (uint32_t)strlen(text), 0};
}

/* ids 0..255: the bytes in order, in GPT-2's spelling */
static void vocab_init(vocab *v, const char *pre) {
    *v = (vocab){
        .config = {.model = "gpt2", .pre = pre, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1}};
    v->config.entries = v->entries;
    v->config.merges = v->merges;
    int32_t next = 0x100;
    for (int b = 0; b < 256; b++) {
        const bool self = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        const size_t n = moa_utf8_put(self ? b : next++, v->bytes[b]);
        v->entries[b] = (moa_tok_entry){v->bytes[b], (uint32_t)n, 1};
    }
    v->config.n_vocab = 256;
}

static moa_tokenizer *vocab_open(vocab *v) {
    moa_tokenizer *t = NULL;
    moa_err err = {0};
    if (moa_tokenizer_open(&t, &v->config, &err) != MOA_OK) fail_msg("%s", err.text);
    return t;
}

static void assert_ids(const moa_tokenizer *t, const char *text, size_t n, int flags, const int32_t *want,
                       size_t n_want) {
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(moa_tokenizer_encode(t, text, n, flags, &ids, &n_ids, NULL), MOA_OK);
    assert_int_equal(n_ids, n_want);
    if (n_want) assert_memory_equal(ids, want, n_want * sizeof *want);
    free(ids);
}
#define IDS(t, text, flags, ...)                                                                             \
    assert_ids(t, text, sizeof(text) - 1, flags, (const int32_t[]){__VA_ARGS__},                             \
               sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* merges, whole words and bytes that lead to a control token are all shut */
static void test_hostile_ways_to_control(void **state) {
    (void)state;
    static vocab v;
    for (int llama = 0; llama < 2; llama++) {
        vocab_init(&v, llama ? "llama-bpe" : "gpt-2");
        const int32_t ab = vocab_add(&v, "ab", 1), abc = vocab_add(&v, "abc", 3), s = vocab_add(&v, "<s>", 3);
        const int32_t user = vocab_add(&v, "<u>", 4), twice = vocab_add(&v, "ab", 1);
        v.entries['z'].type = 3; /* a byte's token that is a control token */
        vocab_merge(&v, "a b");
        vocab_merge(&v, "ab c");
        moa_tokenizer *t = vocab_open(&v);
        assert_int_equal(moa_tokenizer_find(t, "ab", 2), twice); /* of equals the last */
        IDS(t, "ab", 0, twice);
        (void)ab;
        IDS(t, "abc", 0, twice, 'c');
        IDS(t, "abc", MOA_TOK_SPECIAL, abc);
        IDS(t, "<s><u>", 0, '<', 's', '>', user);
        IDS(t, "<s><u>", MOA_TOK_SPECIAL, s, user);
        IDS(t, "azb", 0, twice); /* no token for z: as if it were not there */
        assert_false(moa_tokenizer_has_byte(t, 'z'));
        IDS(t, "z", MOA_TOK_SPECIAL, 'z');
        moa_tokenizer_close(&t);
    }
}

/* the markers of six families as control tokens: text that holds them all gives none of their ids, unless asked to */
static void test_six_families(void **state) {
    (void)state;
    static const char *const families[6][8] = {
        {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
         "<|repo_name|>", "<|file_sep|>"},
        {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
         "<|eom_id|>", "<|python_tag|>", "<|reserved_special_token_0|>"},
        {"<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]"},
        {"<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|placeholder1|>", "<|endoftext|>",
         "<|function_call|>", "<|x|>"},
        {"<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<unused0>",
         "<mask>"},
        {"<\xef\xbd\x9c"
         "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
         "<\xef\xbd\x9cUser\xef\xbd\x9c>", "<think>", "</think>", "[PAD]", "[CLS]", "a", "\xc4\xa0the"},
    };
    static const char *const pres[] = {"smollm", "qwen2", "llama-bpe", "gpt-2"};
    static vocab v;
    for (int f = 0; f < 6; f++)
        for (int p = 0; p < 4; p++) {
            moa_buf text = {0};
            vocab_init(&v, pres[p]);
            for (int i = 0; i < 8; i++) {
                (void)vocab_add(&v, families[f][i], i == 2 ? 2 : 3); /* unknown tokens count as control */
                moa_buf_printf(&text, "%s %s\n x%s", families[f][i], families[f][i], families[f][i]);
            }
            vocab_merge(&v, "< |"); /* made below: a way towards the markers that plain text may go */
            (void)vocab_add(&v, "<|", 1);
            moa_tokenizer *t = vocab_open(&v);
            for (int flags = 0; flags < 2; flags++) {
                int32_t *ids;
                size_t n, n_control = 0;
                assert_int_equal(moa_tokenizer_encode(t, text.data, text.size, flags, &ids, &n, NULL),
                                 MOA_OK);
                for (size_t i = 0; i < n; i++)
                    n_control += moa_tokenizer_is_control(t, ids[i]);
                if (flags)
                    assert_true(n_control >= 24); /* "a" is also found inside the others */
                else
                    assert_int_equal(n_control, 0);
                free(ids);
            }
            moa_tokenizer_close(&t);
            moa_buf_free(&text);
        }
}

static void test_longest_special_wins(void **state) {
    (void)state;
    static vocab v;
    vocab_init(&v, "gpt-2");
    /* "<" stands twice: the user-defined one comes last, so it is the byte's token too */
    const int32_t a = vocab_add(&v, "<a>", 3), ab = vocab_add(&v, "<a><b>", 3), b = vocab_add(&v, "<b>", 4),
                  x = vocab_add(&v, "<", 4);
    static char huge[70000];
    memset(huge, 'h', sizeof huge);
    huge[65536] = 0;
    const int32_t long_one = vocab_add(&v, huge, 3); /* 64 KiB: accepted, too long to be looked for */
    const int32_t empty = vocab_add(&v, "", 3);
    v.config.bos = a;
    v.config.add_bos = true;
    moa_tokenizer *t = vocab_open(&v);
    IDS(t, "<a><b>", MOA_TOK_SPECIAL, ab);
    IDS(t, "<a><b", MOA_TOK_SPECIAL | MOA_TOK_BOS, a, a, x, 'b');
    IDS(t, "<b><", MOA_TOK_BOS, a, b, x);
    IDS(t, "<a><b>", 0, x, 'a', '>', x, 'b',
        '>'); /* found as one control string, so nothing inside it is looked for */
    IDS(t, "<a>", 0, x, 'a', '>');
    size_t n;
    (void)moa_tokenizer_piece(t, long_one, &n);
    assert_int_equal(n, 65536);
    (void)moa_tokenizer_piece(t, empty, &n);
    assert_int_equal(n, 0);
    assert_string_equal(moa_tokenizer_piece(t, -5, &n), "");
    assert_string_equal(moa_tokenizer_piece(t, 1 << 30, &n), "");
    assert_false(moa_tokenizer_is_control(t, -1));
    assert_false(moa_tokenizer_is_end(t, 1 << 30));
    assert_int_equal(moa_tokenizer_find(t, "", 0), -1);
    moa_tokenizer_close(&t);
    moa_tokenizer_close(&t);
    moa_tokenizer_close(NULL);
    huge[65536] = 'h';
    huge[65537] = 0;
    v.entries[long_one].bytes = 65537;
    moa_err err = {0};
    assert_int_equal(moa_tokenizer_open(&t, &v.config, &err), MOA_E_INVALID);
    assert_null(t);
    assert_non_null(strstr(err.text, "65537"));
}

static void test_pieces(void **state) {
    (void)state;
    static vocab v;
    vocab_init(&v, "gpt-2");
    const int32_t space = vocab_add(&v, "\xc4\xa0the", 1), odd = vocab_add(&v, "\xe4\xbd\x9cx", 1),
                  byte = vocab_add(&v, "<0x0A>", 6);
    const int32_t sign = vocab_add(&v, "<0x-1>", 6), raw = vocab_add(&v, "\xc4\xa0", 4),
                  bad = vocab_add(&v, "\xff\xc4", 1);
    const int32_t end = vocab_add(&v, "<|im_end|>", 3), lookalike = vocab_add(&v, "<|end|>", 1);
    v.config.eos = space;
    moa_tokenizer *t = vocab_open(&v);
    static const struct {
        const char *text;
        size_t n;
    } want[] = {{" the", 4},   {"\xe4\xbd\x9cx", 4}, {"\n", 1},
                {"<0x-1>", 6}, {"\xc4\xa0", 2},      {"\xff\xc4", 2}};
    const int32_t ids[] = {space, odd, byte, sign, raw, bad};
    for (size_t i = 0; i < 6; i++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(t, ids[i], &n);
        assert_int_equal(n, want[i].n);
        assert_memory_equal(piece, want[i].text, n);
    }
    for (int b = 0; b < 256; b++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(t, b, &n);
        assert_int_equal(n, 1);
        assert_int_equal((unsigned char)*piece, b);
    }
    assert_true(moa_tokenizer_is_end(t, end));
    assert_true(moa_tokenizer_is_end(t, space));
    assert_false(moa_tokenizer_is_end(t, lookalike));
    moa_tokenizer_close(&t);
}

static void assert_refused(vocab *v, moa_status status, const char *says) {
    moa_tokenizer *t = (moa_tokenizer *)(void *)v;
    moa_err err = {0};
    assert_int_equal(moa_tokenizer_open(&t, &v->config, &err), status);
    assert_null(t);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void test_refused(void **state) {
    (void)state;
    static vocab v;
    vocab_init(&v, "no-such-pre");
    assert_refused(&v, MOA_E_UNSUPPORTED, "\"no-such-pre\" is not known; known are smollm");
    vocab_init(&v, "smollm starcoder");
    assert_refused(&v, MOA_E_UNSUPPORTED, "not known");
    vocab_init(&v, "");
    assert_refused(&v, MOA_E_UNSUPPORTED, "not known");
    vocab_init(&v, "smol");
    assert_refused(&v, MOA_E_UNSUPPORTED, "not known");
    vocab_init(&v, "gpt-2");
    v.config.model = "llama";
    assert_refused(&v, MOA_E_UNSUPPORTED, "\"llama\"");
    v.config.model = NULL;
    assert_refused(&v, MOA_E_UNSUPPORTED, "gpt2");
    vocab_init(&v, "gpt-2");
    v.config.n_vocab = 0;
    assert_refused(&v, MOA_E_INVALID, "0 tokens");
    v.config.n_vocab = ((size_t)1 << 21) + 1;
    assert_refused(&v, MOA_E_INVALID, "2097153 tokens");
    vocab_init(&v, "gpt-2");
    v.config.n_merges = SIZE_MAX;
    assert_refused(&v, MOA_E_INVALID, "merges");
    static const char *const merges[] = {"", " ", "a", "ab", "a ", " b", "a q~~", "q~~ a", "a b"};
    static const char *const says[] = {"merge 0",
                                       "merge 0",
                                       "merge 0",
                                       "merge 0",
                                       "merge 0",
                                       "merge 0",
                                       "\"q~~\" is not a token",
                                       "\"q~~\" is not a token",
                                       "\"ab\" is not a token"};
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        vocab_init(&v, "gpt-2");
        vocab_merge(&v, merges[i]);
        assert_refused(&v, MOA_E_INVALID, says[i]);
    }
    int32_t *const ids[] = {&v.config.bos, &v.config.eos, &v.config.eot, &v.config.unk, &v.config.pad};
    for (size_t i = 0; i < 5; i++)
        for (int k = 0; k < 2; k++) {
            vocab_init(&v, "gpt-2");
            *ids[i] = k ? 256 : -2;
            assert_refused(&v, MOA_E_INVALID, k ? "256" : "-2");
        }
    vocab_init(&v, "gpt-2");
    for (int b = 0; b < 256; b++)
        v.entries[b].type = 3;
    assert_refused(&v, MOA_E_INVALID, "none of the 256 bytes");
}

/* --- merging ------------------------------------------------------------------------------------------------------------------------------ */

/* the definition: while any pair has a rank, merge the leftmost of lowest rank */
static size_t naive_merge(const moa_bpe *b, int32_t *x, size_t n) {
    for (;;) {
        size_t best = SIZE_MAX;
        int32_t best_rank = 0, best_id = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            int32_t rank, id;
            if (moa_bpe_find(b, x[i], x[i + 1], &rank, &id) && (best == SIZE_MAX || rank < best_rank))
                best = i, best_rank = rank, best_id = id;
        }
        if (best == SIZE_MAX) return n;
        x[best] = best_id;
        memmove(x + best + 1, x + best + 2, (n - best - 2) * sizeof *x);
        n--;
    }
}

static void test_short_and_long_merges_agree(void **state) {
    (void)state;
    rng_state = 11;
    moa_buf work = {0};
    for (int round = 0; round < 400;
         round++) { /* random grammars: pairs of symbols 0..5 and of what they made */
        moa_bpe b;
        const int32_t n_rules = 1 + (int32_t)rng(60);
        assert_true(moa_bpe_init(&b, (size_t)n_rules, round));
        for (int32_t r = 0; r < n_rules; r++)
            moa_bpe_add(&b, (int32_t)rng(6 + (uint32_t)r), (int32_t)rng(6 + (uint32_t)r), r, 6 + r);
        for (int word = 0; word < 40; word++) {
            int32_t naive[200], small[200], large[200];
            const size_t n = 1 + rng(word & 1 ? MOA_BPE_SHORT : 200);
            for (size_t i = 0; i < n; i++)
                naive[i] = small[i] = large[i] = (int32_t)rng(6);
            const size_t k = naive_merge(&b, naive, n);
            assert_int_equal(moa_bpe_merge_long(&b, large, n, &work), k);
            assert_memory_equal(large, naive, k * sizeof *naive);
            if (n > MOA_BPE_SHORT) continue;
            assert_int_equal(moa_bpe_merge_short(&b, small, n), k);
            assert_memory_equal(small, naive, k * sizeof *naive);
        }
        moa_bpe_free(&b);
    }
    moa_buf_free(&work);
}

/* --- normalisation --------------------------------------------------------------------------------------------------------------------------- */

static void assert_nfc(const char *in, const char *want) {
    moa_buf out = {0};
    moa_pre_nfc(in, strlen(in), &out);
    assert_string_equal(out.data ? out.data : "", want);
    moa_buf_free(&out);
}

static void test_nfc(void **state) {
    (void)state;
    assert_nfc("", "");
    assert_nfc("plain \xc3\xa9", "plain \xc3\xa9");
    assert_nfc("e\xcc\x81", "\xc3\xa9");
    assert_nfc("xe\xcc\x81y", "x\xc3\xa9y");
    assert_nfc("\xcc\x81", "\xcc\x81");
    assert_nfc("\xe2\x84\xab", "\xc3\x85");                             /* angstrom sign */
    assert_nfc("q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87");               /* reordered, nothing composes */
    assert_nfc("\xe1\xb8\x8b\xcc\xa3", "\xe1\xb8\x8d\xcc\x87");         /* decomposed, reordered, composed */
    assert_nfc("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"); /* Hangul */
    assert_nfc("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");             /* composition exclusion */
    /* long runs are ordered the same as short ones, by another route */
    moa_buf in = {0}, out = {0};
    moa_buf_str(&in, "z");
    for (int i = 0; i < 50; i++)
        moa_buf_str(&in, "\xcc\x87\xcc\xa3"); /* classes 230, 220 */
    moa_pre_nfc(in.data, in.size, &out);
    assert_int_equal(out.size, 3 + 2 * 99); /* z and the first U+0323 make U+1E93 (3 bytes) */
    assert_memory_equal(out.data, "\xe1\xba\x93\xcc\xa3", 5);
    assert_memory_equal(out.data + out.size - 4, "\xcc\x87\xcc\x87", 4);
    moa_buf_free(&in), moa_buf_free(&out);
}

/* --- words ----------------------------------------------------------------------------------------------- */

/* whatever the expression does, words cover the text without holes and do not cut a character */
static size_t check_walk(const moa_pre *pre, const char *text, size_t n) {
    moa_pre_walk w;
    size_t at = 0, from, to, words = 0;
    assert_int_equal(moa_pre_walk_open(&w, pre, NULL), MOA_OK);
    moa_pre_walk_start(&w, text, n);
    while (moa_pre_walk_next(&w, &from, &to)) {
        assert_int_equal(from, at);
        assert_true(to > from && to <= n);
        assert_true(to == n || ((unsigned char)text[to] & 0xC0) != 0x80);
        at = to;
        words++;
    }
    assert_int_equal(at, n);
    assert_false(w.failed);
    moa_pre_walk_close(&w);
    return words;
}

/* A match that runs into its limit cuts the text there and the walk goes on; in bounded time. */
static void test_match_limit(void **state) {
    (void)state;
    static const char *const pres[] = {"smollm", "qwen2", "llama-bpe", "gpt-2"};
    const size_t n = 3 * 300000;
    char *text = malloc(n);
    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        text[i] = "\xe4\xbd\x9c"[i % 3];
    for (int p = 0; p < 4; p++) {
        moa_pre *pre = NULL;
        assert_int_equal(moa_pre_open(&pre, pres[p], NULL), MOA_OK);
        assert_int_equal(check_walk(pre, text, n), 1);
        moa_pre_set_limit(pre, 0);
        const double start = now_s();
        const size_t words = check_walk(pre, text, n);
        assert_true(words > 200 && words < 230); /* 4096 bytes each */
        assert_true(now_s() - start < 0.5 * MOA_SLOW);
        moa_pre_close(&pre);
    }
    free(text);
}

/* --- threads ------------------------------------------------------------------------------------------------------------------------------------------ */

typedef struct thread_job {
    const moa_tokenizer *t;
    const char *text;
    size_t n, n_ids;
    int32_t *ids;
} thread_job;

static void *thread_encode(void *user) {
    thread_job *job = user;
    for (int round = 0; round < 20; round++) {
        free(job->ids);
        if (moa_tokenizer_encode(job->t, job->text, job->n, 0, &job->ids, &job->n_ids, NULL) != MOA_OK)
            job->n_ids = 0;
    }
    return NULL;
}

/* one tokenizer, several threads (a thread sanitizer's case) */
static void test_threads(void **state) {
    (void)state;
    static vocab v;
    static char text[20000];
    vocab_init(&v, "qwen2");
    (void)vocab_add(&v, "ab", 1);
    vocab_merge(&v, "a b");
    rng_state = 9;
    random_text(text, sizeof text, 1);
    moa_tokenizer *t = vocab_open(&v);
    thread_job jobs[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        jobs[i] = (thread_job){t, text, sizeof text, 0, NULL};
        assert_int_equal(pthread_create(&threads[i], NULL, thread_encode, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_true(jobs[0].n_ids > 1000);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(jobs[i].n_ids, jobs[0].n_ids);
        assert_memory_equal(jobs[i].ids, jobs[0].ids, jobs[0].n_ids * sizeof(int32_t));
    }
    for (int i = 0; i < 4; i++)
        free(jobs[i].ids);
    moa_tokenizer_close(&t);
}

/* --- time --------------------------------------------------------------------------------------------------------------------------------------- */

static void fill(char *s, size_t n, const char *with) {
    const size_t k = strlen(with);
    for (size_t i = 0; i < n; i++)
        s[i] = with[i % k];
}

static void check_time(const moa_tokenizer *t, const char *what, const char *text, size_t n, double limit_s) {
    int32_t *ids;
    size_t n_ids;
    const double start = now_s();
    assert_int_equal(moa_tokenizer_encode(t, text, n, MOA_TOK_SPECIAL, &ids, &n_ids, NULL), MOA_OK);
    const double seconds = now_s() - start;
    free(ids);
    print_message("%-8s %-28s %7zu bytes %7zu tokens %.3f s\n", moa_tokenizer_pre(t), what, n, n_ids,
                  seconds);
    if (seconds > limit_s) fail_msg("%s: %.2f s, at most %.2f", what, seconds, limit_s);
}

static void times(const char *file) {
    char path[512];
    moa_err err = {0};
    moa_tokenizer *t = NULL;
    if (!model_in_cache(file, path)) skip();
    const double start = now_s();
    assert_int_equal(tokenizer_from_gguf(&t, path, NULL, NULL, &err), MOA_OK);
    print_message("%s: file and tokenizer opened in %.3f s\n", file, now_s() - start);
    const size_t n = 1000000;
    char *s = malloc(n);
    static const char *const units[] = {"a",
                                        "ab",
                                        " ",
                                        "\n",
                                        " \n",
                                        "0",
                                        "-",
                                        "\xe4\xbd\x9c",
                                        "\xcc\x87\xcc\xa3",
                                        "<",
                                        "<|im_start",
                                        "'",
                                        "\xff",
                                        "\xea\xb0\x80\xe1\x86\xa8",
                                        "the quick brown fox jumps over the lazy dog. "};
    static const char *const names[] = {"a",
                                        "ab",
                                        "spaces",
                                        "newlines",
                                        "space, newline",
                                        "digits",
                                        "-",
                                        "CJK",
                                        "marks out of order",
                                        "<",
                                        "<|im_start",
                                        "'",
                                        "bytes 0xff",
                                        "Hangul",
                                        "English"};
    rng_state = 5;
    for (size_t i = 0; i < n; i++)
        s[i] = (char)('a' + rng(26));
    check_time(t, "random letters, no space", s, n, 1.0 * MOA_SLOW);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        fill(s, n, units[u]);
        check_time(t, names[u], s, n, 1.0 * MOA_SLOW);
    }
    free(s);
    moa_tokenizer_close(&t);
}

static void test_time_smollm2(void **state) {
    (void)state;
    times(SMOLLM2);
}
static void test_time_qwen2(void **state) {
    (void)state;
    times(QWEN2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_and_long_merges_agree),
        cmocka_unit_test(test_hostile_ways_to_control),
        cmocka_unit_test(test_six_families),
        cmocka_unit_test(test_longest_special_wins),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_match_limit),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_golden_smollm2),
        cmocka_unit_test(test_golden_qwen2),
        cmocka_unit_test(test_golden_llama_bpe),
        cmocka_unit_test(test_golden_gpt2),
        cmocka_unit_test(test_round_trip_smollm2),
        cmocka_unit_test(test_round_trip_qwen2),
        cmocka_unit_test(test_no_injection_smollm2),
        cmocka_unit_test(test_no_injection_qwen2),
        cmocka_unit_test(test_time_smollm2),
        cmocka_unit_test(test_time_qwen2),
    };
    char path[512];
    thread_cases("test_model_tokenizer", "test_threads");
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed == 0 && !model_in_cache(SMOLLM2, path) && !model_in_cache(QWEN2, path)) return 77;
    return failed;
}
