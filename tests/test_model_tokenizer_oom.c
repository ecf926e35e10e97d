/* Every allocation of opening a tokenizer, encoding and rendering a chat fails once, and from there on for good: an error
 * that says so or the same result, nothing leaked, nothing half-built left. malloc is this program's own here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"
#include "core/model/chat.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#ifndef OWN_MALLOC
#define OWN_MALLOC 1
#endif

static struct {
    bool on, for_good;
    long fail_at; /* ordinal from 0; -1: none */
    long n, live; /* allocations asked for, and not yet freed, since on */
} heap;

#if OWN_MALLOC
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t n);
extern void __libc_free(void *p);

static bool fails(void) {
    if (!heap.on) return false;
    const long i = heap.n++;
    return heap.fail_at >= 0 && (heap.for_good ? i >= heap.fail_at : i == heap.fail_at);
}
static void *counted(void *p) {
    if (heap.on && p) heap.live++;
    return p;
}
void *malloc(size_t n) {
    return fails() ? NULL : counted(__libc_malloc(n));
}
void *calloc(size_t n, size_t size) {
    return fails() ? NULL : counted(__libc_calloc(n, size));
}
void *realloc(void *old, size_t n) {
    if (fails()) return NULL;
    void *p = __libc_realloc(old, n);
    return old ? p : counted(p);
}
void free(void *p) {
    if (heap.on && p) heap.live--;
    __libc_free(p);
}
#endif

/* --- a small model ---------------------------------------------------------------------------------------------------------- */

static char bytes[256][4];
static moa_tok_entry entries[300], merges[4];
static moa_tok_config config;

static void make_config(const char *pre) {
    int32_t next = 0x100;
    size_t n = 0;
    for (int b = 0; b < 256; b++) {
        const bool self = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        entries[n] = (moa_tok_entry){bytes[b], (uint32_t)moa_utf8_put(self ? b : next++, bytes[b]), 1};
        n++;
    }
    static const char *const more[] = {"ab", "abc", "<|im_start|>", "<|im_end|>"};
    for (size_t i = 0; i < 4; i++)
        entries[n++] = (moa_tok_entry){more[i], (uint32_t)strlen(more[i]), i < 2 ? 1 : 3};
    merges[0] = (moa_tok_entry){"a b", 3, 0};
    merges[1] = (moa_tok_entry){"ab c", 4, 0};
    config = (moa_tok_config){.model = "gpt2",
                              .pre = pre,
                              .entries = entries,
                              .n_vocab = n,
                              .merges = merges,
                              .n_merges = 2,
                              .bos = -1,
                              .eos = (int32_t)n - 1,
                              .eot = -1,
                              .unk = -1,
                              .pad = -1};
}

/* words short and long, marks out of order in a long run, invalid bytes, a special string */
static char text[4096];
static size_t text_n;

static void make_text(void) {
    moa_buf b = {0};
    moa_buf_str(&b, "abcabc x\xff <|im_start|> ");
    for (int i = 0; i < 60; i++)
        moa_buf_str(&b, "abc");
    for (int i = 0; i < 60; i++)
        moa_buf_str(&b, "\xcc\x87\xcc\xa3");
    assert_true(b.size < sizeof text);
    memcpy(text, b.data, b.size);
    text_n = b.size;
    moa_buf_free(&b);
}

typedef struct result {
    moa_status status;
    size_t n;
    int32_t ids[2048];
} result;

/* the whole way once; the result outlives nothing */
static void all(result *r, moa_err *err) {
    moa_status s = MOA_OK;
    moa_tokenizer *t = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    moa_model m = {.chat_template = (char[]){"<|im_start|>system\nBe kind.<|im_end|>"}};
    const moa_message messages[] = {{MOA_ROLE_USER, text, text_n}, {MOA_ROLE_ASSISTANT, "abc", 3}};
    r->n = 0;
    MOA_TRY(moa_tokenizer_open(&t, &config, err));
    MOA_TRY(moa_tokenizer_encode(t, text, text_n, MOA_TOK_SPECIAL, &ids, &n, err));
    for (size_t i = 0; i < n; i++)
        r->ids[r->n++] = ids[i];
    free(ids);
    m.tokenizer = t;
    ids = NULL;
    MOA_TRY(moa_chat_encode(&m, messages, 2, true, &ids, &n, err));
    MOA_TRY(moa_chat_append_end(&m, &ids, &n, err));
    for (size_t i = 0; i < n; i++)
        r->ids[r->n++] = ids[i];
out:
    free(ids);
    moa_tokenizer_close(&t);
    r->status = s;
}

static void every_allocation(const char *pre) {
    static result want, have;
    moa_err err;
    make_config(pre);
    make_text();
    all(&want, &err); /* what libraries keep for good is taken now */
    assert_int_equal(want.status, MOA_OK);
    heap.n = heap.live = 0;
    heap.fail_at = -1;
    heap.on = true;
    all(&want, &err);
    heap.on = false;
    const long n = heap.n;
    assert_int_equal(heap.live, 0);
    assert_true(n > 30);
    long failed = 0;
    for (int for_good = 0; for_good < 2; for_good++)
        for (long i = 0; i < n; i++) {
            err = (moa_err){0};
            heap.n = heap.live = 0;
            heap.fail_at = i;
            heap.for_good = for_good;
            heap.on = true;
            all(&have, &err);
            heap.on = false;
            if (heap.live != 0) fail_msg("%s: allocation %ld: %ld blocks leaked", pre, i, heap.live);
            if (have.status == MOA_OK) { /* a library did without (a JIT, a sort's scratch) */
                assert_int_equal(have.n, want.n);
                assert_memory_equal(have.ids, want.ids, want.n * sizeof *want.ids);
                continue;
            }
            failed++;
            assert_int_equal(have.status, MOA_E_MEMORY);
            assert_non_null(strstr(err.text, "memory"));
        }
    print_message("%s: %ld allocations, %ld of %ld failures became errors, the others the same ids\n", pre, n,
                  failed, 2 * n);
    assert_true(failed > n);
}

static void test_qwen2(void **state) {
    (void)state;
    every_allocation("qwen2");
}
static void test_llama(void **state) {
    (void)state;
    every_allocation("llama-bpe");
}

/* Text without memory: what is there stays clean, and the caller is told. */
static void test_clean(void **state) {
    (void)state;
    for (long i = 0; i < 12; i++) {
        heap.n = heap.live = 0;
        heap.fail_at = i;
        heap.for_good = false;
        heap.on = true;
        moa_clean *c = moa_clean_open(0);
        bool told = c == NULL;
        for (int k = 0; c && k < 40; k++)
            told = !moa_clean_push(c, "\x1b[31m some text \xe2\x80\xae", 18) || told;
        told = c ? !moa_clean_end(c) || told : told;
        const bool valid =
            moa_utf8_valid(moa_clean_text(c), moa_clean_bytes(c)) && !strchr(moa_clean_text(c), 0x1b);
        moa_clean_close(&c);
        heap.on = false;
        assert_int_equal(heap.live, 0);
        assert_true(valid);
        assert_true(told == (i < heap.n));
    }
}

int main(void) {
    if (!OWN_MALLOC) {
        (void)fprintf(stderr, "skipped: a sanitizer owns malloc in this build\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_qwen2), cmocka_unit_test(test_llama),
                                       cmocka_unit_test(test_clean)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
