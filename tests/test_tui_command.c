/* tui commands: keys, words, the tables' consistency, completion, colour options, the line editor without a terminal */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tui/app.h"
#include "tui/term.h"

static void test_keys(void **state) {
    (void)state;
    int k[4];
    assert_int_equal(tui_key_parse("C-r", 3, k, 4), 1);
    assert_int_equal(k[0], 18);
    assert_int_equal(tui_key_parse("Up", 2, k, 4), 1);
    assert_int_equal(k[0], TUI_KEY_UP);
    assert_int_equal(tui_key_parse("gg", 2, k, 4), 2);
    assert_true(k[0] == 'g' && k[1] == 'g');
    assert_int_equal(tui_key_parse("abcde", 5, k, 4), 0);
    assert_int_equal(tui_key_parse("M-x", 3, k, 4), 1);
    assert_int_equal(k[0], TUI_KEY_ALT | 'x');
    char name[16];
    tui_key_name(18, name);
    assert_string_equal(name, "C-r");
    tui_key_name(TUI_KEY_PGDN, name);
    assert_string_equal(name, "PgDn");
    tui_key_name(TUI_KEY_ALT | 'f', name);
    assert_string_equal(name, "M-f");
    tui_key_name(0x1f600, name);
    assert_string_equal(name, "\xf0\x9f\x98\x80");
}

static void test_words(void **state) {
    (void)state;
    char **argv;
    int argc;
    moa_err err = {0};
    assert_int_equal(tui_words("  L14.H12  alpha=0 'a b'\"c\" ", &argv, &argc, &err), MOA_OK);
    assert_int_equal(argc, 3);
    assert_string_equal(argv[0], "L14.H12");
    assert_string_equal(argv[2], "a bc");
    free(argv);
    assert_int_equal(tui_words("", &argv, &argc, &err), MOA_OK);
    assert_int_equal(argc, 0);
    free(argv);
    assert_int_equal(tui_words("a b c d e f", &argv, &argc, &err), MOA_OK);
    assert_int_equal(argc, 6);
    free(argv);
}

/* Every row can be found by its name and by each of its keys; no key of a table hides behind the beginning of another; texts are there. */
static void check_table(const tui_view *view, const tui_command *table) {
    for (const tui_command *row = table; row && row->name; row++) {
        const char *rest;
        assert_ptr_equal(tui_command_find(view, row->name, &rest), row);
        assert_string_equal(rest, "");
        assert_non_null(row->run);
        assert_non_null(row->help);
        assert_true(strlen(row->help) > 3 && strlen(row->help) <= 76);
        assert_true(row->help[strlen(row->help) - 1] != '.');
        for (const char *w = row->keys; w && *w;) {
            const size_t len = strcspn(w, " ");
            int keys[8];
            bool more;
            const int n = tui_key_parse(w, len, keys, 8);
            assert_true(n > 0 && n <= 4);
            const tui_command *found = tui_command_by_keys(view, keys, n, &more);
            if (table != tui_commands || !view || !view->commands) assert_ptr_equal(found, row);
            assert_non_null(found);
            assert_false(more); /* a whole sequence that also begins a longer one could never be both */
            w += len;
            while (*w == ' ') w++;
        }
    }
}

static void test_tables(void **state) {
    (void)state;
    check_table(NULL, tui_commands);
    assert_true(tui_view_count() >= 2);
    for (int i = 0; i < tui_view_count(); i++) {
        const tui_view *v = tui_view_at(i);
        check_table(v, v->commands);
        assert_ptr_equal(tui_view_find(v->name), v);
        if (i > 0) assert_true(v->key > tui_view_at(i - 1)->key);
        int footers = 0;
        const tui_command *row;
        for (int k = 0; (row = tui_command_at(v, k)) != NULL; k++) footers += row->footer != NULL;
        assert_true(footers >= 4);
    }
    const tui_command *found[8];
    const int n = tui_command_search(NULL, "plan save", found, 8);
    assert_true(n >= 1);
    assert_string_equal(found[0]->name, "plan save");
    assert_int_equal(tui_command_search(NULL, "xyzzy", found, 8), 0);
}

static void test_completion(void **state) {
    (void)state;
    tui_app *app = calloc(1, sizeof *app);
    assert_non_null(app);
    moa_buf b = {0};
    size_t at = 99;
    tui_command_complete(app, "plan sa", 7, &at, &b);
    assert_int_equal(at, 5);
    assert_non_null(b.data);
    assert_non_null(strstr(b.data, "save\n"));
    moa_buf_clear(&b);
    tui_command_complete(app, "und", 3, &at, &b);
    assert_int_equal(at, 0);
    assert_non_null(strstr(b.data, "undo\n"));
    moa_err err = {0};
    assert_int_equal(tui_command_line(app, "undoo", &err), MOA_E_USAGE);
    assert_non_null(strstr(err.text, "near: undo"));
    moa_buf_free(&b);
    free(app);
}

static void test_colors(void **state) {
    (void)state;
    static const struct {
        term_color_ask ask;
        viz_depth want;
    } rows[] = {
        {{"auto", NULL, "truecolor", "xterm-256color", 256, false}, VIZ_24BIT}, {{NULL, NULL, NULL, "xterm-256color", 256, false}, VIZ_256},
        {{"auto", "1", "truecolor", "xterm-256color", 256, true}, VIZ_MONO},    {{"auto", "", "24bit", "xterm", 8, false}, VIZ_24BIT},
        {{"256", "1", NULL, "xterm", 8, false}, VIZ_256},                        {{"never", NULL, "truecolor", "xterm", 256, true}, VIZ_MONO},
        {{"auto", NULL, NULL, "linux", 8, false}, VIZ_8},                        {{"auto", NULL, "truecolor", "vt100", -1, false}, VIZ_MONO},
        {{"16", NULL, NULL, "xterm", 256, false}, VIZ_8},                        {{"auto", NULL, NULL, "xterm-direct", 1 << 24, true}, VIZ_24BIT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        viz_depth d;
        assert_int_equal(term_color_depth(&rows[i].ask, &d, NULL), MOA_OK);
        assert_int_equal(d, rows[i].want);
    }
    viz_depth d;
    moa_err err = {0};
    assert_int_equal(term_color_depth(&(term_color_ask){.option = "pink"}, &d, &err), MOA_E_USAGE);
}

static void offer(void *user, const char *line, size_t point, size_t *word_at, moa_buf *out) {
    (void)user;
    (void)line;
    (void)point;
    *word_at = 0;
    moa_buf_str(out, "apple\napricot\nbanana\n");
}

static void type(const char *text) {
    for (; *text; text++) (void)term_line_key(*text == ' ' ? TUI_KEY_SPACE : *text);
}

static void test_line_editor(void **state) {
    (void)state;
    moa_err err = {0};
    const term_config config = {.headless = true, .rows = 24, .cols = 80};
    assert_int_equal(term_open(&config, &err), MOA_OK);
    assert_null(getenv("COLUMNS")); /* readline exports nothing */
    const term_line_ask ask = {.kind = TERM_LINE_COMMAND, .label = ":", .complete = offer};
    term_line_start(&ask);
    type("one two");
    (void)term_line_key(TUI_KEY_ALT | 'b');
    type("x");
    assert_string_equal(term_line_text(), "one xtwo");
    (void)term_line_key(0x65e5); /* 日, a whole character at once */
    (void)term_line_key(TUI_KEY_BACKSPACE);
    assert_string_equal(term_line_text(), "one xtwo");
    assert_int_equal(term_line_key(TUI_KEY_ENTER), TERM_LINE_DONE);
    assert_string_equal(term_line_text(), "one xtwo");
    term_line_start(&ask); /* history, and search in it with a wide character */
    (void)term_line_key(TUI_KEY_UP);
    assert_string_equal(term_line_text(), "one xtwo");
    assert_int_equal(term_line_key(TUI_KEY_ESC), TERM_LINE_CANCELLED);
    term_line_start(&ask);
    (void)term_line_key(0x65e5);
    (void)term_line_key(TUI_KEY_ENTER);
    term_line_start(&ask);
    (void)term_line_key(tui_ctrl('r'));
    (void)term_line_key(0x65e5);
    assert_int_equal(term_line_key(TUI_KEY_ENTER), TERM_LINE_DONE);
    assert_string_equal(term_line_text(), "\xe6\x97\xa5");
    term_line_start(&ask); /* completion: common beginning, candidates, unique */
    type("ap");
    (void)term_line_key(TUI_KEY_TAB);
    assert_string_equal(term_line_candidates(), "apple\napricot\n");
    type("r");
    assert_string_equal(term_line_candidates(), "");
    (void)term_line_key(TUI_KEY_TAB);
    assert_string_equal(term_line_text(), "apricot ");
    term_push_paste("two\nlines\x1b", 10); /* a paste never runs anything */
    bool gone;
    assert_int_equal(term_key(&gone), TUI_KEY_PASTE);
    assert_int_equal(term_line_key(TUI_KEY_PASTE), TERM_LINE_EDITING);
    assert_string_equal(term_line_text(), "apricot two lines\x1b");
    viz_canvas *c; /* drawn without raw control bytes, the cursor where it belongs, scrolled sideways */
    assert_int_equal(viz_canvas_open(&c, 1, 12, term_caps(), &err), MOA_OK);
    term_line_draw(viz_pane_all(c), 0);
    assert_int_equal(c->cursor_x, 11);
    for (int x = 0; x < 12; x++) assert_true((unsigned char)viz_canvas_at(c, 0, x)->text[0] >= 32);
    viz_canvas_close(&c);
    (void)term_line_key(tui_ctrl('c'));
    assert_int_equal(term_line_now(), TERM_LINE_CANCELLED);
    term_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),       cmocka_unit_test(test_words),  cmocka_unit_test(test_tables),
        cmocka_unit_test(test_completion), cmocka_unit_test(test_colors), cmocka_unit_test(test_line_editor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
