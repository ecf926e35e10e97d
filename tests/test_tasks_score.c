/* core/tasks/score, answer's stop rules: against plain Python from the definitions (tests/oracle/task_scores.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/tasks/answer.h"
#include "core/tasks/score.h"

static double number(const cJSON *o, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    assert_true(cJSON_IsNumber(x));
    return x->valuedouble;
}

static void near(double got, double want, const char *what, const char *a, const char *b) {
    if (!(fabs(got - want) <= 1e-12))
        fail_msg("%s of \"%s\" and \"%s\": %.17g, expected %.17g", what, a, b, got, want);
}

static void test_against_the_oracle(void **state) {
    (void)state;
    moa_buf text = {0};
    moa_err err = {0};
    int n_score = 0, n_interval = 0;
    assert_int_equal(moa_file_read(MOA_SOURCE_DIR "/tests/data/task_scores.jsonl", 1 << 20, &text, &err),
                     MOA_OK);
    for (char *line = strtok(text.data, "\n"); line; line = strtok(NULL, "\n")) {
        cJSON *o = cJSON_Parse(line);
        assert_non_null(o);
        if (cJSON_HasObjectItem(o, "n")) {
            double low, high;
            moa_score_wilson((int64_t)number(o, "right"), (int64_t)number(o, "n"), &low, &high);
            assert_true(fabs(low - number(o, "low")) < 1e-9 && fabs(high - number(o, "high")) < 1e-9);
            n_interval++;
        } else {
            const char *a = cJSON_GetObjectItem(o, "answer")->valuestring,
                       *b = cJSON_GetObjectItem(o, "expected")->valuestring;
            near(moa_score_exact(a, b), number(o, "exact"), "exact", a, b);
            near(moa_score_f1(a, b), number(o, "f1"), "F1", a, b);
            near(moa_score_rouge_l(a, b), number(o, "rouge_l"), "ROUGE-L", a, b);
            n_score++;
        }
        cJSON_Delete(o);
    }
    assert_true(n_score > 100 && n_interval > 5);
    moa_buf_free(&text);
}

static void test_edges(void **state) {
    (void)state;
    double low, high;
    moa_score_wilson(0, 0, &low, &high);
    assert_true(low == 0 && high == 1);
    assert_true(moa_score_exact("\xff\xfe x", "\xff\xfe X") == 1); /* invalid UTF-8 is U+FFFD on both sides */
    /* two texts of 20,000 words: 4e8 pairs are more than the limit, and that is said, not guessed */
    moa_buf b = {0};
    for (int i = 0; i < 20000; i++)
        moa_buf_str(&b, "w ");
    assert_true(isnan(moa_score_rouge_l(b.data, b.data)));
    assert_true(moa_score_f1(b.data, b.data) == 1);
    moa_buf_free(&b);
}

static void test_numbers_and_words(void **state) {
    (void)state;
    static const struct {
        const char *text, *number; /* NULL: none */
    } some[] = {{"12345", "12345"},
                {"The number is <48213>.", "48213"},
                {"12,345 and 7", "12345"},
                {"7, 8", "7"},
                {"1,23", "1"},
                {"", NULL},
                {"none", NULL},
                {"007", "007"},
                {"5,", "5"}};
    static const char *const colours[] = {"red", "blue"};
    char out[16], tiny[3];
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        assert_int_equal(moa_score_number(some[i].text, out, sizeof out), some[i].number != NULL);
        assert_string_equal(out, some[i].number ? some[i].number : "");
    }
    assert_true(moa_score_number("98765", tiny, sizeof tiny));
    assert_string_equal(tiny, "98");
    assert_int_equal(moa_score_word("It is Blue, not red.", colours, 2), 1);
    assert_int_equal(moa_score_word("reddish, bluered", colours, 2), -1);
    assert_int_equal(moa_score_word("", colours, 2), -1);
}

static void test_stop_rules(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int stop;
        bool done;
    } some[] = {
        {"12345", MOA_STOP_AT_NUMBER, false},
        {"12345>", MOA_STOP_AT_NUMBER, true},
        {"it is 12345 ", MOA_STOP_AT_NUMBER, true},
        {"12,", MOA_STOP_AT_NUMBER, false},
        {"12, ", MOA_STOP_AT_NUMBER, true},
        {"12,345", MOA_STOP_AT_NUMBER, false},
        {"\n\n", MOA_STOP_AT_LINE, false},
        {"\n x\n", MOA_STOP_AT_LINE, true},
        {"x", MOA_STOP_AT_LINE, false},
        {" blue.", MOA_STOP_AT_SENTENCE, true},
        {" blue", MOA_STOP_AT_SENTENCE, false},
        {"12345>\n.", 0, false},
        {"", 7, false},
    };
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        if (moa_answer_done(some[i].text, strlen(some[i].text), some[i].stop) != some[i].done)
            fail_msg("\"%s\" with %d", some[i].text, some[i].stop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_the_oracle),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_numbers_and_words),
        cmocka_unit_test(test_stop_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
