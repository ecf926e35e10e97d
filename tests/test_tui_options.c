/* tui/options: the one table of options: spellings, ranges, lists, the environment, help */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tui/batch/batch.h"

static moa_status never_run(const moa_args *args, moa_err *err) {
    (void)args;
    return moa_fail(err, MOA_E_FAILED, "not to be called");
}

static const int options[] = {MOA_OPT_MODEL, MOA_OPT_DEVICE, MOA_OPT_N,    MOA_OPT_TEMP,
                              MOA_OPT_SEED,  MOA_OPT_KV,     MOA_OPT_CHAT, MOA_OPT_THREADS,
                              MOA_OPT_AT,    MOA_OPT_CTX,    MOA_OPT_END};
static const moa_option own[] = {{"--docs", MOA_OPTION_LIST, "FILE...", NULL, 0, 0, false, "texts"},
                                 {"--items -i", MOA_OPTION_INT, "N", "50", 1, 1e6, false, "items"},
                                 {0}};
static const moa_batch command = {.name = "test",
                                  .help = "a test",
                                  .usage = "MODEL [options]",
                                  .options = options,
                                  .own = own,
                                  .min_words = 1,
                                  .max_words = 2,
                                  .run = never_run};

enum { WORDS_MAX = 16 };
static moa_status parse(moa_args *a, const char *line, moa_err *err) {
    static char copy[512];
    static char *argv[WORDS_MAX];
    int argc = 1;
    argv[0] = copy; /* not looked at */
    (void)strcpy(copy, line);
    for (char *word = strtok(copy, " "); word && argc < WORDS_MAX; word = strtok(NULL, " "))
        argv[argc++] = word;
    *err = (moa_err){0};
    return moa_args_parse(a, &command, argc, argv, err);
}

static void test_values(void **state) {
    (void)state;
    moa_args a;
    moa_err err;
    assert_int_equal(parse(&a, "m.gguf -n 7 --temp=0.25 -s -1 -ctk f32 --items 9 second", &err), MOA_OK);
    assert_int_equal(moa_args_int(&a, MOA_OPT_N), 7);
    assert_true(moa_args_real(&a, MOA_OPT_TEMP) == 0.25);
    assert_int_equal(moa_args_int(&a, MOA_OPT_SEED), -1);
    assert_string_equal(moa_args_text(&a, MOA_OPT_KV), "f32");
    assert_string_equal(moa_args_text(&a, MOA_OPT_DEVICE), "auto"); /* default */
    assert_int_equal(moa_args_int(&a, MOA_OPT_OWN + 1), 9);
    assert_false(moa_args_has(&a, MOA_OPT_CHAT));
    assert_string_equal(moa_args_word(&a, 0), "m.gguf");
    assert_string_equal(moa_args_word(&a, 1), "second");
    assert_null(moa_args_word(&a, 2));
    moa_args_free(&a);
    assert_int_equal(parse(&a, "m --n-predict 1 --predict 2 -dev cpu --chat", &err),
                     MOA_OK); /* the last one holds */
    assert_int_equal(moa_args_int(&a, MOA_OPT_N), 2);
    assert_string_equal(moa_args_text(&a, MOA_OPT_DEVICE), "cpu");
    assert_true(moa_args_has(&a, MOA_OPT_CHAT));
    moa_args_free(&a);
    assert_int_equal(parse(&a, "--docs a b c -i 3 -- -m --docs", &err),
                     MOA_OK); /* words after -- are no options */
    assert_string_equal(moa_args_list(&a, MOA_OPT_OWN, 2), "c");
    assert_null(moa_args_list(&a, MOA_OPT_OWN, 3));
    assert_string_equal(moa_args_word(&a, 0), "-m");
    moa_args_free(&a);
    int32_t at[2];
    assert_int_equal(parse(&a, "m --at 4096,8192,16384", &err), MOA_OK);
    assert_int_equal(moa_args_ints(&a, MOA_OPT_AT, at, 2), 3);
    assert_int_equal(at[1], 8192);
    moa_args_free(&a);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *line, *says;
    } rows[] = {
        {"", "usage: moascope test MODEL"},
        {"a b c", "one word too many"},
        {"m -n", "needs a value"},
        {"m -n x", "'x' is not an integer from 0"},
        {"m -n 12x", "not an integer"},
        {"m -n -1", "not an integer"},
        {"m -n 99999999999999999999", "not an integer"},
        {"m --temp nan", "not a number"},
        {"m --temp 1e999", "not a number"},
        {"m --temp -0.1", "not a number from 0 to 100"},
        {"m --at 1,,2", "comma-separated"},
        {"m --at 1,2,", "comma-separated"},
        {"m --at 0", "comma-separated"},
        {"m --chat=yes", "takes no value"},
        {"m --nonsense", "unknown option"},
        {"m --prompt x", "does not take this option"},
        {"m -ngl 99", "--device"},
        {"m --repeat-penalty 1.1", "penalties"},
        {"m -hf a/b", "nothing is downloaded"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        moa_args a;
        moa_err err;
        assert_int_equal(parse(&a, rows[i].line, &err), MOA_E_USAGE);
        if (!strstr(err.text, rows[i].says)) fail_msg("'%s' says: %s", rows[i].line, err.text);
        moa_args_free(&a); /* nothing is left, and it may be called */
    }
}

static void test_environment(void **state) {
    (void)state;
    moa_args a;
    moa_err err;
    assert_int_equal(setenv("LLAMA_ARG_THREADS", "3", 1), 0);
    assert_int_equal(setenv("LLAMA_ARG_CTX_SIZE", "512", 1), 0);
    assert_int_equal(setenv("MOASCOPE_CTX_SIZE", "1024", 1), 0);
    assert_int_equal(setenv("MOASCOPE_MODEL", "from_env", 1), 0);
    assert_int_equal(parse(&a, "", &err), MOA_OK);
    assert_int_equal(moa_args_int(&a, MOA_OPT_THREADS), 3);
    assert_int_equal(moa_args_int(&a, MOA_OPT_CTX), 1024); /* ours before theirs */
    assert_string_equal(moa_args_model(&a, 0), "from_env");
    moa_args_free(&a);
    assert_int_equal(parse(&a, "word -t 1", &err), MOA_OK); /* the command line before both */
    assert_int_equal(moa_args_int(&a, MOA_OPT_THREADS), 1);
    assert_string_equal(moa_args_model(&a, 0), "word");
    moa_args_free(&a);
    assert_int_equal(setenv("LLAMA_ARG_THREADS", "many", 1), 0);
    assert_int_equal(parse(&a, "m", &err), MOA_E_USAGE);
    assert_non_null(strstr(err.text, "LLAMA_ARG_THREADS"));
    (void)unsetenv("LLAMA_ARG_THREADS");
    (void)unsetenv("LLAMA_ARG_CTX_SIZE");
    (void)unsetenv("MOASCOPE_CTX_SIZE");
    (void)unsetenv("MOASCOPE_MODEL");
}

/* every spelling of the table is there once, has a dash, and every default is in its row's own range */
static void test_table(void **state) {
    (void)state;
    static int all[MOA_N_OPT + 1];
    for (int i = 0; i < MOA_N_OPT; i++)
        all[i] = i;
    all[MOA_N_OPT] = MOA_OPT_END;
    const moa_batch every = {
        .name = "every", .help = "h", .usage = "u", .options = all, .max_words = 0, .run = never_run};
    char seen[4096] = " ";
    for (int i = 0; i < MOA_N_OPT; i++) {
        const moa_option *row = moa_option_row(&every, i);
        char spellings[256];
        assert_true(strlen(row->help) > 3);
        assert_int_equal(row->kind == MOA_OPTION_FLAG, row->arg == NULL);
        (void)strcpy(spellings, row->spellings);
        for (char *s = strtok(spellings, " "); s; s = strtok(NULL, " ")) {
            char with[64];
            (void)snprintf(with, sizeof with, " %s ", s);
            assert_int_equal(s[0], '-');
            if (strstr(seen, with)) fail_msg("%s is there twice", s);
            (void)strcat(seen, with);
            if (!row->value) continue;
            char name[64], value[64];
            (void)snprintf(name, sizeof name, "%s", s);
            (void)snprintf(value, sizeof value, "%s", row->value);
            char *argv[] = {name, name, value};
            moa_args a;
            moa_err err = {0};
            if (moa_args_parse(&a, &every, 3, argv, &err) != MOA_OK) fail_msg("%s", err.text);
            moa_args_free(&a);
        }
    }
}

static void test_help(void **state) {
    (void)state;
    moa_args a;
    moa_err err;
    moa_buf help = {0};
    assert_int_equal(parse(&a, "-h", &err), MOA_OK); /* without the words it needs */
    assert_true(moa_args_has(&a, MOA_OPT_HELP));
    moa_args_free(&a);
    moa_args_help(&command, &help);
    assert_non_null(strstr(help.data, "usage: moascope test MODEL [options]\n"));
    assert_non_null(strstr(help.data, "-t, --threads N"));
    assert_non_null(strstr(help.data, "items [50]\n"));
    moa_buf_free(&help);
}

/* the subcommands of the build: named as their files, each with what the table needs */
static void test_commands(void **state) {
    (void)state;
    int n = 0;
    for (const moa_batch *const *c = moa_batch_table; *c; c++, n++) {
        assert_non_null((*c)->run);
        assert_true(strlen((*c)->help) > 3 && strlen((*c)->usage) > 0);
        assert_true((*c)->min_words <= (*c)->max_words);
        if (n > 0) assert_true(strcmp(moa_batch_table[n - 1]->name, (*c)->name) < 0);
    }
    assert_true(n >= 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values), cmocka_unit_test(test_refused), cmocka_unit_test(test_environment),
        cmocka_unit_test(test_table),  cmocka_unit_test(test_help),    cmocka_unit_test(test_commands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
