/* tui layout: at every size, for every view, panes lie in the body, never overlap; the frame's bars are where they belong */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "tui/layout.h"

static unsigned char taken[300][400];

static void claim(viz_rect r, viz_rect in, int rows, int cols) {
    if (viz_rect_empty(r)) {
        assert_true(r.h <= 0 || r.w <= 0);
        return;
    }
    assert_true(r.y >= in.y && r.x >= in.x && r.y + r.h <= in.y + in.h && r.x + r.w <= in.x + in.w);
    assert_true(r.y + r.h <= rows && r.x + r.w <= cols);
    for (int y = r.y; y < r.y + r.h; y++)
        for (int x = r.x; x < r.x + r.w; x++) {
            assert_int_equal(taken[y][x], 0);
            taken[y][x] = 1;
        }
}

static void one_size(int rows, int cols) {
    const viz_rect screen = {0, 0, rows, cols};
    const tui_frame f = tui_layout_frame(rows, cols);
    memset(taken, 0, sizeof taken);
    claim(f.status, screen, rows, cols);
    claim(f.tabs, screen, rows, cols);
    claim(f.body, screen, rows, cols);
    claim(f.prompt, screen, rows, cols);
    claim(f.footer, screen, rows, cols);
    assert_false(viz_rect_empty(f.body));
    if (f.size != TUI_TINY) { /* every cell belongs to somebody */
        for (int y = 0; y < rows; y++)
            for (int x = 0; x < cols; x++) assert_int_equal(taken[y][x], 1);
        assert_int_equal(f.status.y, 0);
        assert_int_equal(f.footer.y, rows - 1);
        assert_int_equal(f.prompt.y, rows - 2);
    }
    for (int v = 0; v < TUI_LAYOUT_COUNT; v++)
        for (int focus = 0; focus < TUI_PANES_MAX; focus += 3)
            for (int two = 0; two < 2; two++) {
                viz_rect panes[TUI_PANES_MAX];
                const tui_layout_ask ask = {(tui_layout)v, f.size, f.body, focus, two};
                const int n = tui_layout_panes(&ask, panes);
                assert_true(n > 0 && n <= TUI_PANES_MAX);
                memset(taken, 0, sizeof taken);
                int shown = 0;
                for (int i = 0; i < n; i++) {
                    claim(panes[i], f.body, rows, cols);
                    shown += !viz_rect_empty(panes[i]);
                }
                if (f.size == TUI_TINY) assert_int_equal(shown, 0);
                else if (f.size == TUI_SMALL) assert_int_equal(shown, 1);
                else {
                    assert_true(shown >= (v == TUI_LAYOUT_LOG ? 1 : 2));
                    assert_false(viz_rect_empty(panes[0])); /* the main pane is never the one without room */
                    assert_true(panes[0].h >= 4 && panes[0].w >= 30);
                }
            }
}

static void test_every_size(void **state) {
    (void)state;
    for (int rows = 1; rows <= 110; rows += rows < 60 ? 1 : 7)
        for (int cols = 1; cols <= 310; cols += cols < 130 ? 1 : 11) one_size(rows, cols);
}

static void test_classes(void **state) {
    (void)state;
    assert_int_equal(tui_layout_size(24, 80), TUI_NORMAL);
    assert_int_equal(tui_layout_size(40, 120), TUI_WIDE);
    assert_int_equal(tui_layout_size(50, 200), TUI_LARGE);
    assert_int_equal(tui_layout_size(17, 61), TUI_SMALL);
    assert_int_equal(tui_layout_size(16, 60), TUI_SMALL);
    assert_int_equal(tui_layout_size(15, 60), TUI_TINY);
    assert_int_equal(tui_layout_size(16, 59), TUI_TINY);
}

static void test_cuts(void **state) {
    (void)state;
    viz_rect r = {2, 3, 4, 5};
    viz_rect a = tui_cut_top(&r, 10, 1); /* more than there is */
    assert_int_equal(a.h, 4);
    assert_int_equal(r.h, 0);
    r = (viz_rect){0, 0, 10, 10};
    a = tui_cut_right(&r, 4, 1);
    assert_int_equal(a.x, 6);
    assert_int_equal(r.w, 5);
    a = tui_cut_bottom(&r, -3, 0);
    assert_int_equal(a.h, 0);
    assert_int_equal(r.h, 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_size),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
