/* tui map and memory: edges are spans.h's, rows say what brute force says, page states are moa_keep's, pictures stay in their panes */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tui/app.h"
#include "tui/mapview.h"
#include "tui/memview.h"

enum { LAYERS = 3, HEADS = 4, KV = 2, PROMPT = 700, RESERVED = 716 };

static void must(moa_status s) { assert_int_equal(s, MOA_OK); }

/* a workbench with a model and a finished run under a windowed plan, as messages would have left it */
static tui_app *app_open(bool run) {
    tui_app *app = calloc(1, sizeof *app);
    assert_non_null(app);
    app->caps = (viz_caps){VIZ_24BIT, true};
    app->slot_running = -1;
    app->link.state = TUI_LINK_READY;
    app->newest = TUI_B;
    app->model = (tui_model){.loaded = true, .n_layer = LAYERS, .n_head = HEADS, .n_head_kv = KV, .d_head = 16, .n_ctx = 4096, .kv_elem_bytes = 2, .weight_bytes = 1 << 20};
    must(moa_plan_uniform(&app->plan.now, LAYERS, HEADS, (moa_rule){256, 0}, NULL));
    app->plan.marks = calloc(LAYERS * HEADS, 1);
    if (!run) return app;
    tui_run *r = &app->runs[TUI_B];
    *r = (tui_run){.state = TUI_RUN_DONE, .number = 1, .n_layer = LAYERS, .n_head = HEADS, .n_prompt = PROMPT, .n_reserved = RESERVED};
    r->ends = malloc(PROMPT * sizeof *r->ends);
    r->spans = malloc(LAYERS * HEADS * sizeof *r->spans);
    for (int i = 0; i < PROMPT; i++) {
        moa_buf_printf(&r->pieces, i % 50 == 0 ? "\n\n" : " t%d", i);
        r->ends[i] = (int32_t)r->pieces.size;
    }
    for (int i = 0; i < LAYERS * HEADS; i++) r->spans[i] = 192;
    return app;
}

static void map_close(tui_map *m) { free(m->mass), free(m->max), free(m->stat); }

static void app_close(tui_app *app) {
    tui_run_free(&app->runs[TUI_B]);
    map_close(&app->map);
    map_close(&app->row);
    moa_plan_close(&app->plan.now);
    free(app->plan.marks);
    viz_canvas_close(&app->canvas);
    free(app);
}

/* --- edges ------------------------------------------------------------------------------------------------------------------------- */

static void test_edges(void **state) {
    (void)state;
    srand(5);
    for (int round = 0; round < 400; round++) {
        const int32_t n = 70 + rand() % 3000, k0 = rand() % 2 ? 64 : 0, span = 128 + 64 * (rand() % 30);
        const int32_t q0 = rand() % n, nq = 1 + rand() % (n - q0), kb = k0 + rand() % (n - k0), nk = 1 + rand() % (n - kb);
        const int rq = 1 + rand() % 80, rk = 1 + rand() % 120;
        const viz_axis q = viz_axis_of(q0, q0 + nq, nq < rq ? nq : rq, rq, 2), k = viz_axis_of(kb, kb + nk, nk < rk ? nk : rk, rk, 6);
        float edge[400];
        assert_true(q.cells <= 400);
        tui_map_edges(span, &q, &k, edge);
        for (int r = 0; r < q.cells; r++)
            for (int c = 0; c < k.cells; c++) {
                /* dimmed is just what no query of the row sees, whatever the sink keeps */
                bool seen = false;
                for (int32_t i = viz_axis_first(&q, r); i < viz_axis_end(&q, r) && !seen; i++)
                    for (int32_t j = viz_axis_first(&k, c); j < viz_axis_end(&k, c) && !seen; j++) seen = j >= moa_window_first(span, i);
                const bool dim = (float)(c + 1) <= edge[r];
                if (viz_axis_end(&k, c) <= MOA_SINK_TOK) continue; /* the sink: the picture keeps it bright */
                if (moa_window_first(span, viz_axis_first(&q, r)) == MOA_SINK_TOK) assert_true(edge[r] == 0);
                else assert_int_equal(dim, !seen);
            }
        if (nq == 1 && nk <= rk && edge[0] > 0 && edge[0] < (float)k.cells) /* single tokens: the edge is the first visible key */
            assert_int_equal(viz_axis_first(&k, (int)edge[0]), moa_window_first(span, q0));
    }
}

/* --- the exact row ---------------------------------------------------------------------------------------------------------------------- */

static void row_make(tui_app *app, int32_t q, unsigned seed) {
    tui_map *m = &app->row;
    map_close(m);
    *m = (tui_map){.there = true, .slot = app->newest, .layer = app->cursor.layer, .head = app->cursor.head, .span = MOA_N_MAX, .q0 = q, .q1 = q + 1, .k1 = q + 1,
                   .rows = 1, .cols = q + 1, .n_past = PROMPT};
    m->mass = malloc((size_t)(q + 1) * sizeof *m->mass);
    double sum = 0;
    srand(seed);
    for (int32_t j = 0; j <= q; j++) sum += (double)(m->mass[j] = (float)(1 + rand() % 1000));
    for (int32_t j = 0; j <= q; j++) m->mass[j] = (float)((double)m->mass[j] / sum);
}

static void test_row(void **state) {
    (void)state;
    tui_app *app = app_open(true);
    const int32_t queries[] = {0, 63, 64, 130, 200, 699};
    for (int i = 0; i < 6; i++) {
        const int32_t q = queries[i];
        app->cursor = (tui_cursor){TUI_B, 1, 2, q, 0};
        row_make(app, q, (unsigned)i);
        for (int32_t key = 0; key <= q; key += q < 5 ? 1 : q / 5) {
            tui_row_figures f;
            app->cursor.key = key;
            assert_true(tui_map_row_figures(app, &f));
            double cut = 0, own = 0, sink = 0;
            int rank = 1;
            for (int32_t j = 0; j <= q; j++) {
                const double a = (double)app->row.mass[j];
                const bool plan_sees = j < 64 || q - j < 256 - 64, run_sees = j < 64 || q - j < 192 - 64;
                if (!plan_sees) cut += a;
                if (run_sees) own += a;
                if (j < 64) sink += a;
                rank += app->row.mass[j] > app->row.mass[key];
            }
            assert_true(fabs(f.cut - cut) < 1e-5 && fabs(f.sink - sink) < 1e-5 && fabs(f.run_cut - (1 - own)) < 1e-5);
            assert_int_equal(f.rank, rank);
            const bool sees = key < 64 || q - key < 192 - 64;
            assert_true(fabs(f.a_run - (sees ? (double)app->row.mass[key] / own : 0)) < 1e-6);
        }
        int32_t top[9];
        const int32_t k = tui_map_top(app->row.mass, q + 1, top, 9);
        assert_int_equal(k, q + 1 < 9 ? q + 1 : 9);
        for (int32_t j = 1; j < k; j++) assert_true(app->row.mass[top[j - 1]] >= app->row.mass[top[j]]);
        for (int32_t j = 0, larger = 0; j <= q; j++) { /* nothing larger was left out */
            larger += app->row.mass[j] > app->row.mass[top[k - 1]];
            assert_true(larger < 9);
        }
    }
    tui_row_figures f;
    int32_t n;
    app->cursor.head = 3; /* a row of another head is not this one's */
    assert_null(tui_map_row(app, &n));
    assert_false(tui_map_row_figures(app, &f));
    assert_true(isnan(f.a) && isnan(f.cut));
    app_close(app);
}

/* --- geometry and windows -------------------------------------------------------------------------------------------------------------------- */

static void test_geometry(void **state) {
    (void)state;
    for (int h = 8; h <= 80; h++)
        for (int w = 30; w <= 240; w += 7)
            for (int k = 0; k < 8; k++) {
                const viz_rect pane = {2, 5, h, w};
                const tui_map_geo g = tui_map_geometry(pane, (viz_caps){k & 1 ? VIZ_24BIT : VIZ_MONO, true}, k & 2, k & 4, 6);
                const viz_rect in = g.in;
                assert_true(in.y >= pane.y && in.x >= pane.x && in.y + in.h <= pane.y + h && in.x + in.w <= pane.x + w);
                assert_true(g.plot.h >= 1 && g.plot.w >= 1);
                assert_true(g.plot.y - g.top >= in.y && g.plot.x - g.gutter - g.left >= in.x && g.plot.x + g.plot.w <= in.x + in.w);
                assert_true(g.plot.y + g.plot.h + g.n_strip + 1 + g.whose <= in.y + in.h);
                assert_int_equal(g.half, k & 1 ? 2 : 1);
            }
}

static void test_windows(void **state) {
    (void)state;
    tui_app *app = app_open(true);
    tui_view_state v = {0};
    tui_map_window w;
    const viz_rect pane = {2, 0, 36, 86};
    for (int sink = 0; sink < TUI_SINK_N; sink++) {
        v.v[V_SINK] = sink;
        v.v[V_LEVEL] = 1000;
        assert_true(tui_map_window_of(app, &v, pane, &w));
        assert_int_equal(v.v[V_LEVEL], w.last); /* as close as can be, no closer */
        assert_int_equal(w.n_k, w.k.cells / TUI_MAP_VALUE_CELLS);
        assert_int_equal(w.n_q, w.q.cells / w.geo.half);
        v.v[V_LEVEL] = w.levels;
        assert_true(tui_map_window_of(app, &v, pane, &w));
        assert_int_equal(w.n_k, w.k.cells);
        v.v[V_LEVEL] = 0;
        assert_true(tui_map_window_of(app, &v, pane, &w));
        assert_int_equal(w.n_q, PROMPT);
        assert_int_equal(w.n_k, PROMPT - (sink == TUI_SINK_SHOW ? 0 : 64));
        assert_int_equal(w.geo.gutter, sink == TUI_SINK_SPLIT ? 3 : 0);
    }
    app->runs[TUI_B].number = 0;
    assert_false(tui_map_window_of(app, &v, pane, &w));
    app->runs[TUI_B].number = 1;
    app_close(app);
}

/* --- pages ----------------------------------------------------------------------------------------------------------------------------------- */

static void pages_make(tui_app *app, int32_t n_past) {
    tui_pages *g = &app->runs[TUI_B].pages;
    free(g->held);
    const int32_t max_pages = (RESERVED + 63) / 64;
    *g = (tui_pages){.there = true, .n_past = n_past, .n_reserved = RESERVED, .n_layer = LAYERS, .n_head_kv = KV, .max_pages = max_pages, .page_bytes = 4096};
    g->held = calloc((size_t)LAYERS * KV * (size_t)max_pages, 1);
    for (int i = 0; i < LAYERS * KV; i++)
        for (int32_t p = 0; p < max_pages; p++) {
            g->held[i * max_pages + p] = (int64_t)p * 64 < n_past && moa_keep(192, n_past, p);
            g->used_bytes += g->held[i * max_pages + p] ? g->page_bytes : 0;
        }
    g->formula_plan = g->used_bytes;
}

static void test_pages(void **state) {
    (void)state;
    for (int32_t n_past = 1; n_past < 900; n_past++)
        for (int32_t p = 0; p < 16; p++)
            for (int held = 0; held < 2; held++) {
                assert_int_equal(tui_page_of(held, p, n_past, 0) == TUI_PAGE_LOST, false); /* without a plan nothing is missing */
                const tui_page s = tui_page_of(held, p, n_past, 256);
                if (!held && p * 64 >= n_past) assert_int_equal(s, TUI_PAGE_NONE);
                else if (held && p == 0) assert_int_equal(s, TUI_PAGE_SINK);
                else if (moa_keep(256, n_past, p)) assert_int_equal(s, held ? TUI_PAGE_HELD : TUI_PAGE_LOST);
                else assert_int_equal(s, held ? TUI_PAGE_SPARE : TUI_PAGE_FREED);
            }
    tui_app *app = app_open(true);
    for (int32_t n_past = 60; n_past <= 700; n_past += 64) {
        pages_make(app, n_past);
        tui_mem_unit u;
        uint64_t held = 0, predicted = 0;
        for (int32_t l = 0; l < LAYERS; l++) {
            tui_mem_describe(app, l, -1, &u);
            held += u.held;
            predicted += u.predicted;
            /* the plan (256) wants just what the run (192) lacks, and frees nothing of it */
            assert_int_equal((int64_t)(u.predicted - u.held), (int64_t)u.n_lost * 4096);
            assert_int_equal(u.n_spare, 0);
        }
        assert_int_equal(held, app->runs[TUI_B].pages.used_bytes);
        assert_int_equal(predicted, (uint64_t)LAYERS * KV * (uint64_t)moa_n_pages(256, n_past) * tui_kv_page_bytes(app));
    }
    app->plan.now->rules[HEADS + 1] = (moa_rule){0, 1}; /* one head of layer 1 sees everything: its group is the largest */
    int32_t n;
    tui_mem_unit *list = tui_mem_list(app, 1, true, &n);
    assert_int_equal(n, KV);
    assert_int_equal(list[0].kv, 0);
    assert_true(list[0].n_lost > list[1].n_lost);
    assert_int_equal(list[0].span_max, moa_roundup64(RESERVED));
    free(list);
    list = tui_mem_list(app, -1, true, &n);
    assert_int_equal(n, LAYERS);
    assert_int_equal(list[0].layer, 1);
    free(list);
    app_close(app);
}

/* --- drawing ------------------------------------------------------------------------------------------------------------------------------------ */

static void map_make(tui_app *app, int32_t q0, int32_t q1, int32_t k0, int32_t k1, int32_t rows, int32_t cols) {
    tui_map *m = &app->map;
    map_close(m);
    rows = rows < q1 - q0 ? rows : q1 - q0;
    cols = cols < k1 - k0 ? cols : k1 - k0;
    *m = (tui_map){.there = true, .slot = TUI_B, .layer = app->cursor.layer, .head = app->cursor.head, .span = 192, .measure_span = 256, .q0 = q0, .q1 = q1, .k0 = k0,
                   .k1 = k1, .rows = rows, .cols = cols, .n_past = PROMPT};
    m->mass = malloc((size_t)rows * (size_t)cols * sizeof *m->mass);
    m->max = malloc((size_t)rows * (size_t)cols * sizeof *m->max);
    m->stat = calloc((size_t)rows * MOA_N_STAT, sizeof *m->stat);
    for (int32_t i = 0; i < rows * cols; i++) m->mass[i] = m->max[i] = (float)(rand() % 1000) / 1000;
    for (int32_t i = 0; i < rows; i++) m->stat[i * MOA_N_STAT + MOA_STAT_SINK] = (float)(rand() % 1000) / 1000;
}

/* draws with every cell outside the panes marked, and looks whether the marks are still there */
static void draw_in_panes(tui_app *app, const tui_view *view, int rows, int cols) {
    viz_rect panes[TUI_PANES_MAX];
    const tui_frame f = tui_layout_frame(rows, cols);
    const int focus = tui_view_vars(app, view)->focus;
    const tui_layout_ask ask = {view->layout, f.size, f.body, focus, false};
    const int n = tui_layout_panes(&ask, panes);
    if (f.size == TUI_TINY) return;
    if (app->canvas) must(viz_canvas_resize(app->canvas, rows, cols, NULL));
    else must(viz_canvas_open(&app->canvas, rows, cols, app->caps, NULL));
    app->canvas->caps = app->caps;
    viz_canvas_clear(app->canvas);
    viz_fill(viz_pane_all(app->canvas), 0, 0, rows, cols, viz_fg(VIZ_TEXT), "@");
    for (int i = 0; i < n; i++) viz_fill(viz_pane_of(app->canvas, panes[i]), 0, 0, panes[i].h, panes[i].w, viz_fg(VIZ_TEXT), " ");
    view->draw(app, app->canvas, panes);
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < cols; x++) {
            bool in = false;
            for (int i = 0; i < n; i++) in = in || (y >= panes[i].y && y < panes[i].y + panes[i].h && x >= panes[i].x && x < panes[i].x + panes[i].w);
            const viz_cell *c = viz_canvas_at(app->canvas, y, x);
            if (!in) assert_true(c->n == 1 && c->text[0] == '@');
        }
}

static const int sizes[][2] = {{16, 60}, {17, 61}, {22, 76}, {24, 80}, {30, 110}, {40, 120}, {50, 200}, {46, 180}, {30, 300}, {100, 110}, {10, 40}};
static const viz_caps modes[] = {{VIZ_24BIT, true}, {VIZ_256, true}, {VIZ_8, true}, {VIZ_MONO, true}, {VIZ_MONO, false}, {VIZ_24BIT, false}};

static void both_views(tui_app *app) {
    const tui_view *map = tui_view_find("map"), *memory = tui_view_find("memory");
    assert_non_null(map);
    assert_non_null(memory);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
            for (int focus = 0; focus < 3; focus++) {
                app->caps = modes[m];
                tui_view_vars(app, map)->focus = tui_view_vars(app, memory)->focus = focus;
                draw_in_panes(app, map, sizes[s][0], sizes[s][1]);
                draw_in_panes(app, memory, sizes[s][0], sizes[s][1]);
            }
}

/* what the map pane says when there is nothing to show */
static bool says(tui_app *app, const char *text) {
    moa_buf b = {0};
    app->caps = modes[0];
    tui_view_vars(app, tui_view_find("map"))->focus = 0;
    draw_in_panes(app, tui_view_find("map"), 40, 120);
    viz_sink_text(app->canvas, &b);
    const bool found = b.data && strstr(b.data, text) != NULL;
    moa_buf_free(&b);
    return found;
}

static void test_nothing_loaded(void **state) {
    (void)state;
    tui_app *app = app_open(false);
    moa_plan_close(&app->plan.now);
    app->model.loaded = false;
    app->link.state = TUI_LINK_IDLE;
    both_views(app);
    assert_true(says(app, "No model is loaded"));
    app->link.state = TUI_LINK_LOADING;
    assert_true(says(app, "loading"));
    app->link.state = TUI_LINK_DEAD;
    assert_true(says(app, "engine ended"));
    app->model.loaded = true;
    app->link.state = TUI_LINK_READY;
    both_views(app); /* a model and no plan */
    assert_true(says(app, "No prompt"));
    moa_buf_str(&app->prompt, "x");
    assert_true(says(app, "Nothing has run yet"));
    moa_buf_free(&app->prompt);
    app_close(app);
}

static void test_pictures_stay_inside(void **state) {
    (void)state;
    srand(11);
    tui_app *app = app_open(true);
    pages_make(app, 700);
    tui_view_state *v = tui_view_vars(app, tui_view_find("map"));
    for (int round = 0; round < 12; round++) {
        const int32_t q0 = rand() % PROMPT, k0 = rand() % PROMPT;
        app->cursor = (tui_cursor){TUI_B, round % LAYERS, round % HEADS, rand() % PROMPT, 0};
        app->cursor.key = rand() % (app->cursor.query + 1);
        if (round % 3 == 0) map_make(app, 0, PROMPT, round & 1 ? 64 : 0, PROMPT, 20 + rand() % 200, 20 + rand() % 400); /* of other sizes than asked */
        else map_make(app, q0, q0 + 1 + rand() % (PROMPT - q0), k0, k0 + 1 + rand() % (PROMPT - k0), 1 + rand() % 80, 1 + rand() % 180);
        row_make(app, app->cursor.query, (unsigned)round);
        v->v[V_LEVEL] = rand() % 7, v->v[V_SCALE] = round % 4, v->v[V_SINK] = rand() % 4, v->v[V_MAX] = round & 1;
        v->v[V_NO_MASK] = rand() % 2, v->v[V_SIDE] = rand() % 2, v->v[V_ROW_AT] = rand() % 90, v->v[V_OVERLAY_OFF] = round == 5;
        both_views(app);
    }
    app_close(app);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edges),  cmocka_unit_test(test_row),            cmocka_unit_test(test_geometry),
        cmocka_unit_test(test_windows), cmocka_unit_test(test_pages),         cmocka_unit_test(test_nothing_loaded),
        cmocka_unit_test(test_pictures_stay_inside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
