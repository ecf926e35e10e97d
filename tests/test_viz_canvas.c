/* viz: cells, clipping, text that must not reach a terminal, charts, sinks */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "viz/canvas.h"

static const viz_caps rich = {VIZ_24BIT, true}, plain = {VIZ_MONO, false};

static viz_canvas *canvas(int rows, int cols, viz_caps caps) {
    viz_canvas *c;
    moa_err err = {0};
    assert_int_equal(viz_canvas_open(&c, rows, cols, caps, &err), MOA_OK);
    return c;
}

static void check_text(const viz_canvas *c, const char *want) {
    moa_buf b = {0};
    viz_sink_text(c, &b);
    assert_true(moa_buf_ok(&b));
    assert_string_equal(b.data, want);
    moa_buf_free(&b);
}

static void test_sizes(void **state) {
    (void)state;
    viz_canvas *c = NULL;
    moa_err err = {0};
    assert_int_equal(viz_canvas_open(&c, 0, 10, rich, &err), MOA_E_USAGE);
    assert_null(c);
    assert_int_equal(viz_canvas_open(&c, VIZ_ROWS_MAX + 1, 10, rich, &err), MOA_E_USAGE);
    viz_canvas_close(&c);
    c = canvas(2, 3, rich);
    assert_int_equal(viz_canvas_resize(c, 4, -1, &err), MOA_E_USAGE);
    assert_int_equal(c->rows, 2); /* untouched */
    viz_canvas_close(&c);
    viz_canvas_close(&c);
}

static void test_wrap(void **state) {
    (void)state;
    viz_canvas *c = canvas(4, 9, rich);
    viz_pane p = viz_pane_all(c);
    assert_int_equal(viz_text_wrap(p, 0, 0, 9, 4, viz_fg(VIZ_TEXT), "one two three, 作作作作作 four"), 4);
    check_text(c, "one two\nthree,\n作作作作\n作 four\n");
    assert_int_equal(viz_text_wrap(p, 0, 0, 9, 0, viz_fg(VIZ_TEXT), "unbreakable"), 2); /* 0: nothing is drawn */
    viz_fill(p, 0, 0, 4, 9, viz_fg(VIZ_TEXT), " ");
    assert_int_equal(viz_text_wrap(p, 1, 0, 9, 2, viz_fg(VIZ_TEXT), "one two three four five"), 3);
    check_text(c, "\none two\nthree fo~\n\n");
    assert_int_equal(viz_text_wrap(p, 0, 0, 1, 0, viz_fg(VIZ_TEXT), "作作"), 2); /* wider than the line: one each */
    assert_int_equal(viz_text_wrap(p, 0, 0, 9, 0, viz_fg(VIZ_TEXT), ""), 1);
    viz_canvas_close(&c);
}

/* whatever is drawn into a pane stays in it: canaries all around survive random drawing */
static void test_clipping(void **state) {
    (void)state;
    static const char *const words[] = {"hello world", "日本語テキスト", "e\xcc\x81\xcc\x82", "█▁▂▃", "\x1b[31m", "a\xff\xfe"};
    unsigned seed = 7;
    for (int round = 0; round < 400; round++) {
        viz_canvas *c = canvas(12, 40, round % 2 ? rich : plain);
        for (int i = 0; i < 12 * 40; i++) {
            c->cells[i].text[0] = '!';
            c->cells[i].n = 1;
        }
        seed = seed * 1103515245u + 12345u;
        const viz_rect r = {(int)(seed >> 8 & 7), (int)(seed >> 12 & 15), 1 + (int)(seed >> 16 & 3), 1 + (int)(seed >> 20 & 15)};
        viz_pane p = viz_pane_of(c, r);
        for (int k = 0; k < 30; k++) {
            seed = seed * 1103515245u + 12345u;
            const int y = (int)(seed >> 10 & 15) - 4, x = (int)(seed >> 15 & 63) - 20, w = (int)(seed >> 21 & 31);
            const float values[] = {1, 2, NAN, 4};
            (void)viz_text(p, y, x, viz_fg(VIZ_TEXT), words[k % 6]);
            (void)viz_text_cut(p, y, x, w, viz_fg(VIZ_TEXT), words[k % 6]);
            (void)viz_text_wrap(p, y, x, w, 1 + k % 3, viz_fg(VIZ_TEXT), words[(k + 1) % 6]);
            (void)viz_text_right(p, y, x, w, viz_fg(VIZ_TEXT), words[k % 6]);
            viz_bar(p, y, x, w, (double)k / 30, VIZ_BAR);
            viz_spark(p, y, x, w, viz_fg(VIZ_BAR), values, 4, 0, 0);
            viz_columns(p, y, x, 3, w, viz_fg(VIZ_BAR), values, 4, 0, 0);
            viz_restyle(p, y, x, 3, w, VIZ_BG_SELECT, 0);
            viz_cursor(p, y, x);
            (void)viz_box(viz_pane_sub(p, y, x, 5, w), "title", "note", k % 2);
        }
        for (int y = 0; y < 12; y++)
            for (int x = 0; x < 40; x++) {
                const bool in = y >= r.y && y < r.y + r.h && x >= r.x && x < r.x + r.w;
                const viz_cell *cell = viz_canvas_at(c, y, x);
                if (in) { /* whole characters only, none of them a control */
                    assert_true(cell->width <= 2);
                    if (cell->width == 2) assert_int_equal(viz_canvas_at(c, y, x + 1)->width, 0);
                    if (cell->width == 0) assert_int_equal(viz_canvas_at(c, y, x - 1)->width, 2);
                    assert_true(cell->n == 0 || (unsigned char)cell->text[0] >= 32);
                } else {
                    assert_int_equal(cell->text[0], '!');
                    assert_int_equal(cell->style.fg, VIZ_DEFAULT);
                    assert_int_equal(cell->style.bg, VIZ_DEFAULT);
                }
            }
        assert_true(c->cursor_y == -1 || (c->cursor_y >= r.y && c->cursor_y < r.y + r.h));
        viz_canvas_close(&c);
    }
}

static void test_hostile_text(void **state) {
    (void)state;
    viz_canvas *c = canvas(1, 40, rich);
    viz_pane p = viz_pane_all(c);
    assert_int_equal(viz_text(p, 0, 0, viz_fg(VIZ_TEXT), "a\x1b]52;c;x\x07z\xe2\x80\xae" "b"), 13);
    check_text(c, "a\xef\xbf\xbd]52;c;x\xef\xbf\xbdz\xef\xbf\xbd" "b\n");
    viz_canvas_clear(c);
    moa_clean *clean = moa_clean_of("x\x1by", 3, MOA_TEXT_LINE);
    assert_non_null(clean);
    assert_int_equal(viz_clean(p, 0, 0, 10, viz_fg(VIZ_TEXT), clean), 3);
    assert_true(viz_canvas_at(c, 0, 1)->style.attr & VIZ_A_DIM);
    assert_false(viz_canvas_at(c, 0, 2)->style.attr & VIZ_A_DIM);
    assert_int_equal(viz_clean(p, 0, 0, 2, viz_fg(VIZ_TEXT), clean), 2);
    assert_memory_equal(viz_canvas_at(c, 0, 1)->text, "~", 1);
    moa_clean_close(&clean);
    viz_canvas_close(&c);
}

static void test_wide(void **state) {
    (void)state;
    viz_canvas *c = canvas(1, 6, rich);
    viz_pane p = viz_pane_all(c);
    (void)viz_text(p, 0, 0, viz_fg(VIZ_TEXT), "作作作");
    (void)viz_text(p, 0, 1, viz_fg(VIZ_TEXT), "x"); /* the first half goes too */
    check_text(c, " x作作\n");
    (void)viz_text(p, 0, 4, viz_fg(VIZ_TEXT), "y");
    check_text(c, " x作y\n");
    (void)viz_text(p, 0, 5, viz_fg(VIZ_TEXT), "作"); /* only half would fit */
    check_text(c, " x作y\n");
    assert_int_equal(viz_text_cut(p, 0, 0, 4, viz_fg(VIZ_TEXT), "作作作"), 4);
    check_text(c, "作 ~y\n");
    viz_canvas_close(&c);
}

static void test_frames_and_charts(void **state) {
    (void)state;
    const float v[] = {0, 1, 2, 3, 4, 5, 6, 7};
    viz_canvas *c = canvas(5, 24, rich);
    viz_pane in = viz_box(viz_pane_all(c), "Heads", "32x32", false);
    assert_int_equal(in.h, 3);
    assert_int_equal(in.w, 22);
    viz_bar(in, 0, 0, 10, 0.55, VIZ_BAR);
    viz_spark(in, 1, 0, 8, viz_fg(VIZ_BAR), v, 8, 0, 7);
    (void)viz_text(in, 2, 0, viz_fg(VIZ_TEXT), "≥95% → 4,096");
    check_text(c, "╭─ Heads ────── 32x32 ─╮\n│━━━━━╸────            │\n│▁▂▃▄▅▆▇█              │\n│≥95% → 4,096          │\n"
                  "╰──────────────────────╯\n");
    viz_canvas_close(&c);
    c = canvas(5, 24, plain);
    in = viz_box(viz_pane_all(c), "Heads", "a note that has no room", true);
    viz_bar(in, 0, 0, 10, 0.5, VIZ_BAR);
    viz_spark(in, 1, 0, 8, viz_fg(VIZ_BAR), v, 8, 0, 7);
    (void)viz_text(in, 2, 0, viz_fg(VIZ_TEXT), "≥95% → 4,096 作");
    check_text(c, "#= Heads ==============#\n#[####    ]            #\n# .-=+*%@              #\n#>95% > 4,096 ?        #\n"
                  "#======================#\n");
    viz_canvas_close(&c);
    c = canvas(1, 12, rich);
    viz_bar(viz_pane_all(c), 0, 0, 9, (double)NAN, VIZ_BAR);
    check_text(c, "────-────\n"); /* unknown is not zero */
    viz_canvas_close(&c);
}

static void test_numbers(void **state) {
    (void)state;
    char t[24];
    assert_string_equal(viz_bytes_text(t, 512), "512 B");
    assert_string_equal(viz_bytes_text(t, 1536), "1.50 KiB");
    assert_string_equal(viz_bytes_text(t, (uint64_t)1 << 20), "1.00 MiB");
    assert_string_equal(viz_bytes_text(t, 1048575), "1.00 MiB"); /* never 1024 KiB */
    assert_string_equal(viz_bytes_text(t, 2931315179ull), "2.73 GiB");
    assert_string_equal(viz_bytes_text(t, UINT64_MAX), "16.0 EiB");
    assert_string_equal(viz_count_text(t, 31744), "31,744");
    assert_string_equal(viz_count_text(t, -1024), "-1,024");
    assert_string_equal(viz_count_text(t, 7), "7");
    assert_string_equal(viz_count_text(t, INT64_MIN), "-9223372036854775808");
    assert_string_equal(viz_percent_text(t, 0.913, 1), "91.3%");
    assert_string_equal(viz_percent_text(t, (double)NAN, 1), "-");
    assert_string_equal(viz_real_text(t, (double)NAN, 2), "-");
    assert_string_equal(viz_short_text(t, 32768), "32.8k");
}

static void test_sinks(void **state) {
    (void)state;
    viz_canvas *c = canvas(1, 8, rich);
    viz_pane p = viz_pane_all(c);
    (void)viz_text(p, 0, 0, viz_bold(VIZ_WARN), "a<b");
    (void)viz_text(p, 0, 4, viz_on(viz_heat_color(0, 63, false), viz_heat_color(0, 0, true)), "▀");
    moa_buf b = {0};
    viz_sink_names(c, &b);
    assert_string_equal(b.data, "a<b ▀\n0 0 3 warn default b\n0 4 1 heat:0:63 heat:0:0:dim -\n");
    moa_buf_clear(&b);
    viz_sink_ansi(c, &b);
    assert_string_equal(b.data, "\x1b[0;1;38;2;240;199;94ma<b\x1b[0m \x1b[0;38;2;254;232;56;48;2;7;22;42m▀\x1b[0m\n");
    moa_buf_clear(&b);
    c->caps.depth = VIZ_MONO;
    viz_sink_ansi(c, &b);
    assert_null(strstr(b.data, "38;")); /* bold stays, colours go */
    assert_non_null(strstr(b.data, "\x1b[0;1m"));
    moa_buf_clear(&b);
    viz_sink_svg(c, "<t>", &b);
    assert_non_null(strstr(b.data, "<title>&lt;t&gt;</title>"));
    assert_non_null(strstr(b.data, ">a&lt;b</text>"));
    assert_null(strstr(b.data, "▀")); /* half blocks are rectangles */
    moa_buf_free(&b);
    viz_canvas_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrap),     cmocka_unit_test(test_sizes),    cmocka_unit_test(test_clipping),          cmocka_unit_test(test_hostile_text),
        cmocka_unit_test(test_wide),     cmocka_unit_test(test_frames_and_charts), cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_sinks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
