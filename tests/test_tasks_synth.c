/* core/tasks/synth, calib, docs: the documents are solved again from their text alone, by code that shares nothing with the generator. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/text.h"
#include "core/tasks/calib.h"
#include "core/tasks/cases.h"

#define must(call)                                                                                           \
    do {                                                                                                     \
        moa_err must_err = {0};                                                                              \
        moa_err *const err = &must_err;                                                                      \
        if ((call) != MOA_OK) fail_msg("%s: %s", #call, must_err.text);                                      \
    } while (0)

/* tiny_llama: a byte-level vocabulary, so these documents take about a token a byte */
static moa_model *model;

static int open_model(void **state) {
    (void)state;
    moa_err err = {0};
    const char *path = MOA_SOURCE_DIR "/tests/data/tiny_llama.gguf";
    if (moa_model_open(&model, path, true, NULL, NULL, &err) != MOA_OK) return -1;
    model->shape.n_ctx = 1 << 20; /* nothing is run here */
    return 0;
}
static int close_model(void **state) {
    (void)state;
    moa_model_close(&model);
    return 0;
}

static moa_synth_item make(moa_synth how) {
    moa_synth_item it;
    must(moa_synth_make(model, &how, &it, err));
    return it;
}

/* --- every kind --------------------------------------------------------------------------------------------------------------- */

static void test_deterministic_and_different(void **state) {
    (void)state;
    for (int k = 0; k < MOA_SYNTH_COUNT; k++) {
        const moa_synth how = {
            .kind = (moa_synth_kind)k, .n_tok = 4000, .n_room = 20, .depth = 0.4, .seed = 7, .index = 3};
        moa_synth seed = how, index = how;
        seed.seed = 8, index.index = 4;
        moa_synth_item a = make(how), b = make(how), c = make(seed), d = make(index);
        assert_string_equal(a.item.prompt, b.item.prompt);
        assert_string_equal(a.expected, b.expected);
        assert_string_not_equal(a.item.context, c.item.context);
        assert_string_not_equal(a.item.context, d.item.context);
        moa_synth_free(&a), moa_synth_free(&b), moa_synth_free(&c), moa_synth_free(&d);
    }
}

static void test_fills_the_length(void **state) {
    (void)state;
    for (int k = 0; k < MOA_SYNTH_COUNT; k++)
        for (int form = MOA_FORM_CHAT; form <= MOA_FORM_CONTINUE; form++)
            for (int32_t n = 3000; n < 12000; n = n * 5 / 3) {
                moa_synth_item it = make((moa_synth){.kind = (moa_synth_kind)k,
                                                     .form = (moa_form)form,
                                                     .n_tok = n,
                                                     .n_room = 30,
                                                     .depth = 0.5,
                                                     .seed = 1,
                                                     .index = n});
                moa_tokens t;
                must(moa_item_encode(model, &it.item, &(moa_encode){.n_room = 1}, &t, err));
                assert_int_equal(t.n, it.n_prompt);
                assert_true(t.n <= n - 30);
                assert_true(t.n > n - 30 - 160); /* at most about one unit is missing: a token a byte */
                assert_non_null(strstr(it.item.prompt, it.item.context));
                assert_non_null(strstr(it.item.prompt, it.item.question));
                moa_tokens_free(&t);
                moa_synth_free(&it);
            }
}

static void test_depth_decides_the_place(void **state) {
    (void)state;
    for (int k = 0; k < MOA_SYNTH_COUNT; k++)
        for (int d = 0; d <= 10; d++) {
            moa_synth_item it = make((moa_synth){.kind = (moa_synth_kind)k,
                                                 .n_tok = 8000,
                                                 .n_room = 10,
                                                 .depth = d / 10.0,
                                                 .seed = 3,
                                                 .index = d});
            assert_true(fabs(it.depth - d / 10.0) < 0.03);
            if (k == MOA_SYNTH_PASSKEY || k == MOA_SYNTH_NEEDLE) { /* and by the text's bytes */
                const char *at = strstr(it.item.context, it.expected);
                assert_non_null(at);
                assert_true(
                    fabs((double)(at - it.item.context) / (double)strlen(it.item.context) - d / 10.0) < 0.06);
            }
            moa_synth_free(&it);
        }
}

static void test_refuses(void **state) {
    (void)state;
    moa_synth_item it;
    moa_err err = {0};
    static const moa_synth bad[] = {
        {.n_tok = 100, .n_room = 10},
        {.n_tok = 100, .n_room = 100},
        {.n_tok = 5000, .n_room = 0},
        {.n_tok = 5000, .n_room = 10, .depth = 1.5},
        {.n_tok = 5000, .n_room = 10, .depth = (double)NAN},
        {.n_tok = 5000, .n_room = 10, .index = -1},
        {.n_tok = 1 << 21, .n_room = 10}, /* more lines than names */
        {.kind = MOA_SYNTH_PASSKEY,
         .n_tok = 5000,
         .n_room = 10,
         .filler = " \n\t \0",
         .n_filler = 5}, /* no words */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(moa_synth_make(model, &bad[i], &it, &err), MOA_E_INVALID);
        assert_true(err.text[0] != 0);
        assert_null(it.item.prompt);
    }
}

/* --- solved again ----------------------------------------------------------------------------------------------------------------- */

static void test_lines_are_solvable(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        moa_synth_item it = make((moa_synth){.kind = MOA_SYNTH_RETRIEVAL,
                                             .form = MOA_FORM_CHAT,
                                             .n_tok = 6000 + 3000 * i,
                                             .n_room = 10,
                                             .depth = i / 6.0,
                                             .index = i});
        char asked[64], names[600][64], found[8] = "";
        int n = 0, number;
        assert_int_equal(sscanf(strstr(it.item.question, "in line ") + 8, "%63[^?]", asked), 1);
        char *copy = strdup(it.item.context);
        for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n"), n++) {
            assert_true(n < 600);
            assert_int_equal(sscanf(line, "line %63[^:]: REGISTER_CONTENT is <%5d>", names[n], &number), 2);
            assert_true(number >= 10000 && number <= 99999);
            for (int k = 0; k < n; k++)
                assert_string_not_equal(names[k], names[n]);
            if (strcmp(names[n], asked) == 0) (void)snprintf(found, sizeof found, "%d", number);
        }
        assert_int_equal(n, it.n_unit);
        assert_string_equal(found, it.expected);
        free(copy);
        moa_synth_free(&it);
    }
}

static void test_facts_are_solvable(void **state) {
    (void)state;
    for (int i = 0; i < 12; i++) {
        moa_synth_item it = make(
            (moa_synth){.kind = MOA_SYNTH_FACTS, .n_tok = 4000, .n_room = 10, .depth = i / 12.0, .index = i});
        char name[32], town[32], colour[32], lives[80], door[80];
        assert_int_equal(sscanf(it.item.question, "In which town does %31s live", name), 1);
        (void)snprintf(lives, sizeof lives, "%s lives in ", name);
        const char *first = strstr(it.item.context, lives);
        assert_non_null(first);
        assert_null(strstr(first + 1, lives));
        assert_int_equal(sscanf(first + strlen(lives), "%31[^.]", town), 1);
        (void)snprintf(door, sizeof door, "town hall of %s is ", town);
        const char *second = strstr(it.item.context, door);
        assert_non_null(second);
        assert_null(strstr(second + 1, door));
        assert_int_equal(sscanf(second + strlen(door), "%31[^.]", colour), 1);
        assert_string_equal(colour, it.expected);
        /* far apart: half the document, give or take the other facts */
        assert_true(labs(first - second) > (long)strlen(it.item.context) / 4);
        moa_synth_free(&it);
    }
}

static void test_right_and_wrong(void **state) {
    (void)state;
    assert_true(moa_synth_right(MOA_SYNTH_RETRIEVAL, "12345>", "12345"));
    assert_true(moa_synth_right(MOA_SYNTH_RETRIEVAL, "The content is <12,345>.", "12345"));
    assert_false(moa_synth_right(MOA_SYNTH_RETRIEVAL, "123456", "12345"));
    assert_false(moa_synth_right(MOA_SYNTH_RETRIEVAL, "99999 or 12345", "12345"));
    assert_false(moa_synth_right(MOA_SYNTH_RETRIEVAL, "", "12345"));
    assert_true(moa_synth_right(MOA_SYNTH_FACTS, " Blue.", "blue"));
    assert_false(moa_synth_right(MOA_SYNTH_FACTS, "red, blue", "blue"));
}

/* --- the caller's documents ----------------------------------------------------------------------------------------------------------- */

static void test_filler_of_the_caller(void **state) {
    (void)state;
    static const char text[] =
        "Alpha beta gamma. One \xc3\xa4\xc3\xb6\xc3\xbc two!\n\nThree  four\nfive? NUL\0here. "
        "A_very_long_word_without_any_space_that_goes_on_and_on";
    for (int i = 0; i < 20; i++) {
        moa_synth_item it = make((moa_synth){.kind = MOA_SYNTH_NEEDLE,
                                             .n_tok = 3000,
                                             .n_room = 10,
                                             .depth = 0.5,
                                             .index = i,
                                             .filler = text,
                                             .n_filler = sizeof text - 1});
        assert_true(moa_utf8_valid(it.item.prompt, strlen(it.item.prompt)));
        assert_non_null(strstr(it.item.context, "Three four five?"));
        assert_null(strstr(it.item.context, "  "));
        assert_non_null(strstr(it.item.context, it.expected));
        moa_synth_free(&it);
    }
}

static moa_docs some_docs(size_t n_bytes) {
    moa_docs docs = {0};
    moa_buf b = {0};
    char path[] = "/tmp/moa_docs_XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (int i = 0; b.size < n_bytes; i++)
        moa_buf_printf(&b, "This is sentence %d of a long \xe2\x82\xac text. %s", i, i % 9 ? "" : "\n\n");
    assert_int_equal(write(fd, b.data, b.size), (ssize_t)b.size);
    close(fd);
    must(moa_docs_add(&docs, path, err));
    unlink(path);
    moa_buf_free(&b);
    return docs;
}

static void test_items_about_documents(void **state) {
    (void)state;
    moa_docs docs = some_docs(60000);
    const moa_calib c = {.kinds = {MOA_CALIB_SUMMARY, MOA_CALIB_SPREAD, MOA_CALIB_RETRIEVAL},
                         .n_kind = 3,
                         .n_gen = 100,
                         .seed = 1,
                         .docs = &docs};
    for (int i = 0; i < 9; i++) {
        moa_calib_item a, b;
        must(moa_calib_make(model, &c, 5000, i, &a, err));
        must(moa_calib_make(model, &c, 5000, i, &b, err));
        assert_string_equal(a.item.prompt, b.item.prompt);
        assert_int_equal(a.kind, c.kinds[i % 3]);
        assert_true(a.tokens.n + a.n_gen <= 5000 && a.tokens.n + a.n_gen > 5000 - 160);
        assert_int_equal(a.item.length, 5000);
        if (a.kind == MOA_CALIB_SPREAD) { /* in order, one in each third, and asked for in that order */
            const char *at = a.item.context;
            const double n = (double)strlen(at);
            moa_buf answer = {0};
            for (int f = 0; f < 3; f++) {
                const char *found = strstr(at, a.expected[f]);
                assert_non_null(found);
                assert_true(fabs((double)(found - a.item.context) / n - (f + 0.5) / 3) < 0.25);
                at = found;
                moa_buf_printf(&answer, "%s, ", a.expected[f]);
            }
            assert_true(moa_calib_right(&a, answer.data));
            answer.data[2] ^= 1;
            assert_false(moa_calib_right(&a, answer.data));
            moa_buf_free(&answer);
        }
        moa_calib_free(&a), moa_calib_free(&b);
    }
    moa_calib_item it;
    moa_err err = {0};
    assert_int_equal(moa_calib_make(model, &c, 50000, 0, &it, &err),
                     MOA_E_INVALID); /* no document is that long */
    assert_non_null(strstr(err.text, "long enough"));
    assert_int_equal(moa_calib_make(model, &c, 120, 0, &it, &err), MOA_E_INVALID);
    moa_docs_free(&docs);
}

static void test_docs_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *ending;
    } bad[] = {{"", ".txt"},       {"{\"x\": 1}\n", ".jsonl"},     {"{\"text\": 5}\n", ".jsonl"},
               {"\n\n", ".jsonl"}, {"{\"text\": \"\"}", ".jsonl"}, {"[]", ".jsonl"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[64];
        moa_docs docs = {0};
        moa_err err = {0};
        (void)snprintf(path, sizeof path, "/tmp/moa_docs_XXXXXX%s", bad[i].ending);
        const int fd = mkstemps(path, (int)strlen(bad[i].ending));
        assert_int_equal(write(fd, bad[i].text, strlen(bad[i].text)), (ssize_t)strlen(bad[i].text));
        close(fd);
        assert_int_equal(moa_docs_add(&docs, path, &err), MOA_E_INVALID);
        unlink(path);
        moa_docs_free(&docs);
    }
    moa_docs docs = {0};
    moa_err err = {0};
    assert_int_equal(moa_docs_add(&docs, "/nowhere/at/all.txt", &err), MOA_E_IO);
    moa_docs_free(&docs);
}

/* --- cases -------------------------------------------------------------------------------------------------------------------------------- */

static void test_cases_do_not_depend_on_their_company(void **state) {
    (void)state;
    static const int32_t many[] = {3000, 4000, 5000}, one[] = {4000};
    moa_cases_config c = {
        .task = MOA_TASK_RETRIEVAL, .lengths = many, .n_length = 3, .n_item = 20, .n_depth = 1, .seed = 2};
    moa_cases *a = NULL, *b = NULL;
    must(moa_cases_open(&a, model, &c, err));
    c.lengths = one, c.n_length = 1, c.n_item = 12;
    must(moa_cases_open(&b, model, &c, err));
    int deciles[10] = {0};
    for (int32_t i = 0; i < 10; i++) {
        moa_case x, y, z;
        must(moa_cases_make(a, 1, i, &x, err));
        must(moa_cases_make(b, 0, i, &y, err));
        must(moa_cases_make(a, 2, i, &z, err));
        assert_int_equal(x.tokens.n, y.tokens.n);
        assert_memory_equal(x.tokens.ids, y.tokens.ids, (size_t)x.tokens.n * sizeof(int32_t));
        assert_string_not_equal(x.expected[0], z.expected[0]); /* another length: other documents */
        deciles[x.depth >= 1 ? 9 : (int)(x.depth * 10 + 0.001)]++;
        assert_true(moa_cases_judge(a, &x, x.expected[0]).exact == 1);
        moa_case_free(&x), moa_case_free(&y), moa_case_free(&z);
    }
    for (int d = 0, n = 0; d < 10;
         d++) { /* every tenth of the document is asked about, up to a line at the borders */
        n += deciles[d];
        assert_true(abs(n - (d + 1)) <= 1);
    }
    moa_cases_close(&a), moa_cases_close(&b);
}

static void test_windows_cover_the_documents(void **state) {
    (void)state;
    moa_docs docs = some_docs(9000);
    static const int32_t lengths[] = {1000};
    const moa_cases_config c = {
        .task = MOA_TASK_PPL, .lengths = lengths, .n_length = 1, .n_item = 1000, .n_depth = 1, .docs = &docs};
    moa_cases *x = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    must(moa_cases_open(&x, model, &c, err));
    must(moa_tokenizer_encode(model->tokenizer, docs.data[0].text, docs.data[0].n_bytes, 0, &ids, &n, err));
    const int32_t n_window = moa_cases_n(x, 0);
    moa_case w;
    must(moa_cases_make(x, 0, 0, &w, err));
    const int32_t lead = w.tokens.ids[0] == ids[0] ? 0 : 1; /* BOS */
    assert_int_equal(n_window, n / (size_t)(1000 - lead));
    moa_case_free(&w);
    for (int32_t i = 0; i < n_window; i++) {
        must(moa_cases_make(x, 0, i, &w, err));
        assert_int_equal(w.tokens.n, 1000);
        assert_memory_equal(w.tokens.ids + lead, ids + i * (1000 - lead),
                            (size_t)(1000 - lead) * sizeof *ids);
        moa_case_free(&w);
    }
    free(ids);
    moa_cases_close(&x);
    moa_docs_free(&docs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deterministic_and_different),
        cmocka_unit_test(test_fills_the_length),
        cmocka_unit_test(test_depth_decides_the_place),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_lines_are_solvable),
        cmocka_unit_test(test_facts_are_solvable),
        cmocka_unit_test(test_right_and_wrong),
        cmocka_unit_test(test_filler_of_the_caller),
        cmocka_unit_test(test_items_about_documents),
        cmocka_unit_test(test_docs_refused),
        cmocka_unit_test(test_cases_do_not_depend_on_their_company),
        cmocka_unit_test(test_windows_cover_the_documents),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
