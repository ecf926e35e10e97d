/* core/tasks/items: DATA.jsonl read, refused, written and turned into tokens. The cuts are checked by what must hold of any
 * right cut (nothing but the context's middle is missing, no token of room is wasted without need), not against our own output. */
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
#include "core/tasks/items.h"

#define must(call)                                                                                           \
    do {                                                                                                     \
        moa_err must_err = {0};                                                                              \
        moa_err *const err = &must_err;                                                                      \
        if ((call) != MOA_OK) fail_msg("%s: %s", #call, must_err.text);                                      \
    } while (0)

static moa_model *model; /* tiny_llama: a byte-level vocabulary, chatml */

static int open_model(void **state) {
    (void)state;
    moa_err err = {0};
    return moa_model_open(&model, MOA_SOURCE_DIR "/tests/data/tiny_llama.gguf", true, NULL, NULL, &err) ==
                   MOA_OK
               ? 0
               : -1;
}
static int close_model(void **state) {
    (void)state;
    moa_model_close(&model);
    return 0;
}

static moa_items parse(const char *text) {
    moa_items items;
    must(moa_items_parse(&items, text, strlen(text), "test", err));
    return items;
}

/* --- reading -------------------------------------------------------------------------------------------------------------- */

static void test_reads_every_form(void **state) {
    (void)state;
    moa_items x =
        parse("{\"prompt\": \"p \\u00e9\", \"answer\": \"a\"}\r\n"
              "\n   \n"
              "{\"answers\": [\"one\", \"two\"], \"context\": \"c\", \"question\": \"q\", \"source\": \"s\", "
              "\"form\": \"continue\", \"length\": 512, \"other\": {\"x\": [1, 2]}}\n"
              "{\"ids\": [ 1,2 , 3,\t4], \"supervise_from\": 2}\n"
              "{\"answers\": [\"b\"], \"answer\": \"a\", \"prompt\": \"p\", \"context\": null}");
    assert_int_equal(x.n, 4);
    assert_string_equal(x.data[0].prompt, "p \xc3\xa9");
    assert_string_equal(x.data[0].answers[0], "a");
    assert_int_equal(x.data[0].line, 1);
    assert_int_equal(x.data[1].line, 4);
    assert_int_equal(x.data[1].n_answer, 2);
    assert_string_equal(x.data[1].answers[1], "two");
    assert_string_equal(x.data[1].context, "c");
    assert_string_equal(x.data[1].source, "s");
    assert_int_equal(x.data[1].form, MOA_FORM_CONTINUE);
    assert_int_equal(x.data[1].length, 512);
    assert_int_equal(x.data[2].n_ids, 4);
    assert_int_equal(x.data[2].ids[3], 4);
    assert_int_equal(x.data[2].supervise_from, 2);
    assert_string_equal(x.data[3].answers[0], "a"); /* "answer" first, whatever the order */
    assert_int_equal(x.data[3].n_answer, 2);
    assert_null(x.data[3].context);
    moa_items_free(&x);
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "no item"},
        {"\n \n", "no item"},
        {"{\"prompt\": \"p\", \"answer\": \"a\"}\n[1]\n", "line 2"},
        {"{\"prompt\": \"p\"}", "no \"answer\""},
        {"{\"prompt\": \"p\", \"answer\": \"\"}", "no \"answer\""},
        {"{\"answer\": \"a\"}", "neither"},
        {"{\"prompt\": 5, \"answer\": \"a\"}", "not a string"},
        {"{\"prompt\": \"p\", \"answer\": [\"a\", 1]}", "not a string"},
        {"{\"prompt\": \"p\", \"answer\": {\"a\": 1}}", "not a string"},
        {"{\"prompt\": \"p\", \"answer\": \"a\", \"answer\": \"b\"}", "same key twice"},
        {"{\"prompt\": \"p\", \"answer\": \"a\", \"form\": \"poem\"}", "not auto, chat or continue"},
        {"{\"prompt\": \"p\", \"answer\": \"a\", \"length\": -1}", "whole number"},
        {"{\"prompt\": \"p\", \"answer\": \"a\", \"length\": 1.5}", "whole number"},
        {"{\"prompt\": \"p\", \"answer\": \"a\", \"length\": 2147483648}", "whole number"},
        {"{\"prompt\": \"\\u0000\", \"answer\": \"a\"}", "u0000"},
        {"{\"prompt\": \"\xff\", \"answer\": \"a\"}", "UTF-8"},
        {"{\"prompt\": \"p\", \"answer\": \"a\"} x", "after the end"},
        {"{\"ids\": [1, 2, 3]}", "without \"supervise_from\""},
        {"{\"ids\": [1, 2, 3], \"supervise_from\": 3}", "no token is supervised"},
        {"{\"ids\": [1], \"supervise_from\": 0}", "no token is supervised"},
        {"{\"ids\": [], \"supervise_from\": 0}", "no token is supervised"},
        {"{\"ids\": [1, -2], \"supervise_from\": 1}", "element 1"},
        {"{\"ids\": [1, 2.5], \"supervise_from\": 1}", "element 2"},
        {"{\"ids\": [1, 99999999999], \"supervise_from\": 1}", "element 1"},
        {"{\"ids\": [1, \"2\"], \"supervise_from\": 1}", "element 1"},
        {"{\"ids\": [[1], 2], \"supervise_from\": 1}", "element 0"},
        {"{\"ids\": 7, \"supervise_from\": 1}", "not an array"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        moa_items x;
        moa_err err = {0};
        const moa_status s = moa_items_parse(&x, bad[i].text, strlen(bad[i].text), "test", &err);
        if (s != MOA_E_INVALID || !strstr(err.text, bad[i].says))
            fail_msg("%s: status %d, \"%s\" does not say \"%s\"", bad[i].text, (int)s, err.text, bad[i].says);
        assert_null(x.data);
    }
}

static void test_written_and_read_again(void **state) {
    (void)state;
    moa_item it = {.form = MOA_FORM_CHAT, .length = 1024};
    moa_buf out = {0};
    static const char text[] = "a \"quote\", a \\, a line\nbreak, \xe2\x80\xae and \xf0\x9f\x98\x80";
    assert_true(moa_item_set(&it.prompt, text, sizeof text - 1));
    assert_true(moa_item_set(&it.context, "a line", 6));
    assert_true(moa_item_add_answer(&it, text, sizeof text - 1));
    assert_true(moa_item_add_answer(&it, "two", 3));
    moa_item_print(&it, &out);
    assert_ptr_equal(memchr(out.data, '\n', out.size), out.data + out.size - 1);
    moa_items x = parse(out.data);
    assert_int_equal(x.n, 1);
    assert_string_equal(x.data[0].prompt, text);
    assert_string_equal(x.data[0].context, "a line");
    assert_int_equal(x.data[0].n_answer, 2);
    assert_string_equal(x.data[0].answers[0], text);
    assert_int_equal(x.data[0].form, MOA_FORM_CHAT);
    assert_int_equal(x.data[0].length, 1024);
    assert_null(x.data[0].question);
    moa_items_free(&x);
    moa_item_free(&it);
    moa_buf_clear(&out);
    it = (moa_item){.n_ids = 3, .supervise_from = 1, .ids = malloc(3 * sizeof *it.ids)};
    memcpy(it.ids, (int32_t[]){7, 0, 2147483647}, 3 * sizeof *it.ids);
    moa_item_print(&it, &out);
    x = parse(out.data);
    assert_int_equal(x.data[0].n_ids, 3);
    assert_int_equal(x.data[0].ids[2], 2147483647);
    moa_items_free(&x);
    moa_item_free(&it);
    moa_buf_free(&out);
}

/* --- as tokens ------------------------------------------------------------------------------------------------------------ */

static void decode(const int32_t *ids, int32_t n, moa_buf *out) {
    moa_buf_clear(out);
    for (int32_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = moa_tokenizer_piece(model->tokenizer, ids[i], &bytes);
        moa_buf_append(out, piece, bytes);
    }
    moa_buf_str(out, "");
}

static moa_tokens encode(const moa_item *it, moa_encode how) {
    moa_tokens t;
    must(moa_item_encode(model, it, &how, &t, err));
    return t;
}

static void test_layout_of_the_prompt(void **state) {
    (void)state;
    static const struct {
        const char *line, *text;
    } some[] = {
        {"{\"prompt\": \"read: CCC what?\", \"context\": \"CCC\", \"question\": \"what?\", \"answer\": \" "
         "a\"}",
         "read: CCC what?"},
        {"{\"prompt\": \"what?\", \"context\": \"CCC\", \"answer\": \" a\"}", "CCC\n\nwhat?"},
        {"{\"context\": \"CCC\", \"question\": \"what?\", \"answer\": \" a\"}", "CCC\n\nwhat?"},
        {"{\"prompt\": \"read\", \"question\": \"what?\", \"answer\": \" a\"}", "read\n\nwhat?"},
        {"{\"prompt\": \"read\", \"answer\": \" a\"}", "read"},
    };
    moa_buf text = {0};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        moa_items x = parse(some[i].line);
        moa_tokens t = encode(&x.data[0], (moa_encode){.form = MOA_FORM_CONTINUE});
        decode(t.ids, t.supervise_from, &text);
        assert_string_equal(text.data, some[i].text);
        decode(t.ids + t.supervise_from, t.n - t.supervise_from, &text);
        assert_string_equal(text.data, " a");
        moa_tokens_free(&t);
        /* the chat form is the model's template around the same text */
        const moa_message user = {MOA_ROLE_USER, some[i].text, strlen(some[i].text)};
        int32_t *ids = NULL;
        size_t n = 0;
        must(moa_chat_encode(model, &user, 1, true, &ids, &n, err));
        t = encode(&x.data[0], (moa_encode){0});
        assert_int_equal(t.supervise_from, n);
        assert_memory_equal(t.ids, ids, n * sizeof *ids);
        free(ids);
        moa_tokens_free(&t);
        moa_items_free(&x);
    }
    moa_buf_free(&text);
}

/* text = before + head + tail + after with head a beginning and tail an end of the context */
static void check_cut(const moa_item *it, const char *text, const char *before, const char *after) {
    const size_t n = strlen(text), nb = strlen(before), na = strlen(after), nc = strlen(it->context);
    assert_true(n >= nb + na);
    assert_memory_equal(text, before, nb);
    assert_string_equal(text + n - na, after);
    const size_t kept = n - nb - na;
    assert_true(kept <= nc);
    size_t head = 0, tail = 0;
    while (head < kept && text[nb + head] == it->context[head])
        head++;
    while (tail < kept && text[n - na - 1 - tail] == it->context[nc - 1 - tail])
        tail++;
    assert_true(head + tail >= kept);
    assert_true(moa_utf8_valid(text, n));
    /* in the middle: neither end lost more than the other by far (tokens of 1 to 4 bytes here) */
    if (kept > 40 && kept < nc) assert_true(head > kept / 4 && tail > kept / 4);
}

static void test_cuts_the_middle_of_the_context(void **state) {
    (void)state;
    moa_item it = {.form = MOA_FORM_CONTINUE};
    moa_buf context = {0}, prompt = {0}, text = {0};
    for (int i = 0; i < 60; i++)
        moa_buf_printf(&context, "%d \xc3\xa4\xe2\x82\xac the\xf0\x9f\x98\x80 thing%s", i,
                       i % 7 ? " " : "\n\n");
    moa_buf_printf(&prompt, "Read this: %s.\nNow tell me: why?", context.data);
    assert_true(moa_item_set(&it.context, context.data, context.size));
    assert_true(moa_item_set(&it.prompt, prompt.data, prompt.size));
    assert_true(moa_item_add_answer(&it, " because", 8));
    moa_tokens whole = encode(&it, (moa_encode){0});
    assert_int_equal(whole.n_cut, 0);
    const int32_t fixed = whole.n - 150; /* far below what is fixed there are skips */
    int n_fit = 0, n_skip = 0, slack_worst = 0;
    for (int32_t n_max = 1; n_max <= whole.n + 1; n_max += 1 + n_max / 16) {
        moa_tokens t = encode(&it, (moa_encode){.n_max = n_max});
        if (!t.ids) {
            assert_true(t.why[0] != 0);
            assert_true(n_max < fixed);
            n_skip++;
            continue;
        }
        n_fit++;
        assert_true(t.n <= n_max);
        assert_int_equal(t.n_cut, whole.n - t.n);
        if (t.n_cut && n_max - t.n > slack_worst) slack_worst = n_max - t.n;
        decode(t.ids + t.supervise_from, t.n - t.supervise_from, &text);
        assert_string_equal(text.data, " because");
        decode(t.ids, t.supervise_from, &text);
        check_cut(&it, text.data, "Read this: ", ".\nNow tell me: why?");
        moa_tokens_free(&t);
    }
    assert_true(n_fit > 10 && n_skip > 3);
    assert_true(slack_worst <= 12); /* whole characters at both sides of the seam, and merges there */
    moa_tokens_free(&whole);
    moa_item_free(&it);
    moa_buf_free(&context), moa_buf_free(&prompt), moa_buf_free(&text);
}

static void test_the_template_survives_a_cut(void **state) {
    (void)state;
    moa_item it = {.form = MOA_FORM_CHAT};
    moa_buf prompt = {0};
    int32_t *open = NULL;
    size_t n_open = 0;
    for (int i = 0; i < 200; i++)
        moa_buf_printf(&prompt, "word%d ", i);
    assert_true(moa_item_set(&it.prompt, prompt.data, prompt.size));
    assert_true(moa_item_add_answer(&it, "yes", 3));
    must(moa_chat_append_reply(model, &open, &n_open, err));
    moa_tokens t = encode(&it, (moa_encode){.n_max = 100});
    assert_non_null(t.ids);
    assert_true(t.n <= 100 && t.n > 90);
    assert_memory_equal(t.ids + t.supervise_from - n_open, open, n_open * sizeof *open);
    assert_int_equal(t.ids[0], moa_tokenizer_find(model->tokenizer, "<|im_start|>", 12));
    moa_tokens_free(&t);
    /* room for an answer yet to come: the answer given is left out */
    t = encode(&it, (moa_encode){.n_max = 100, .n_room = 30});
    assert_true(t.n <= 70 && t.n > 60);
    assert_int_equal(t.supervise_from, t.n);
    moa_tokens_free(&t);
    t = encode(&it, (moa_encode){.n_max = 30, .n_room = 30});
    assert_null(t.ids);
    free(open);
    moa_item_free(&it);
    moa_buf_free(&prompt);
}

static void test_ids_are_cut_before_the_answer(void **state) {
    (void)state;
    enum { N = 50, K = 42 };
    moa_item it = {.n_ids = N, .supervise_from = K, .ids = malloc(N * sizeof *it.ids)};
    for (int32_t i = 0; i < N; i++)
        it.ids[i] = i;
    for (int32_t n_max = 1; n_max <= N + 1; n_max++) {
        moa_tokens t = encode(&it, (moa_encode){.n_max = n_max});
        if (n_max <= N - K) {
            assert_null(t.ids);
            continue;
        }
        const int32_t n = n_max < N ? n_max : N, n_prompt = n - (N - K), head = (n_prompt + 1) / 2;
        assert_int_equal(t.n, n);
        assert_int_equal(t.supervise_from, n_prompt);
        assert_int_equal(t.n_cut, N - n);
        for (int32_t i = 0; i < n; i++)
            assert_int_equal(t.ids[i], i < head ? i : N - n + i);
        moa_tokens_free(&t);
    }
    it.supervise_from = 0; /* nothing predicts token 0 */
    moa_tokens t = encode(&it, (moa_encode){0});
    assert_int_equal(t.supervise_from, 1);
    assert_int_equal(t.n, N);
    moa_tokens_free(&t);
    it.ids[7] = model->shape.n_vocab;
    moa_err err = {0};
    assert_int_equal(moa_item_encode(model, &it, &(moa_encode){0}, &t, &err), MOA_E_INVALID);
    assert_non_null(strstr(err.text, "at 7"));
    moa_item_free(&it);
}

static void test_items_of_one_length(void **state) {
    (void)state;
    moa_items x = parse("{\"ids\": [1,2,3,4,5,6,7,8], \"supervise_from\": 6}\n"
                        "{\"ids\": [1,2,3,4,5,6,7,8], \"supervise_from\": 2}\n"
                        "{\"ids\": [1,2,3], \"supervise_from\": 2, \"length\": 6}\n"
                        "{\"ids\": [1,2,3,4], \"supervise_from\": 2, \"length\": 6}\n");
    moa_token_items t;
    must(moa_items_encode(model, &x, &(moa_encode){.n_max = 5}, 0, &t, err));
    assert_int_equal(t.n, 3); /* the second's answer is 6 tokens */
    assert_int_equal(t.n_cut, 1);
    assert_int_equal(t.n_skipped, 1);
    assert_int_equal(t.n_tok, 5 + 3 + 4);
    assert_int_equal(t.n_tok_cut, 3);
    assert_int_equal(t.n_supervised, 2 + 1 + 2);
    assert_int_equal(t.item[1], 2);
    assert_true(t.why[0] != 0);
    moa_token_items_free(&t);
    must(moa_items_encode(model, &x, &(moa_encode){.n_max = 6}, 0, &t, err)); /* those made for 6 */
    assert_int_equal(t.n, 2);
    assert_int_equal(t.item[0], 2);
    moa_token_items_free(&t);
    must(moa_items_encode(model, &x, &(moa_encode){0}, 2, &t, err));
    assert_int_equal(t.n, 2);
    assert_int_equal(t.n_skipped, 0);
    moa_token_items_free(&t);
    moa_items_free(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_every_form),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_written_and_read_again),
        cmocka_unit_test(test_layout_of_the_prompt),
        cmocka_unit_test(test_cuts_the_middle_of_the_context),
        cmocka_unit_test(test_the_template_survives_a_cut),
        cmocka_unit_test(test_ids_are_cut_before_the_answer),
        cmocka_unit_test(test_items_of_one_length),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
