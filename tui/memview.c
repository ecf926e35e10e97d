/* memview.c -- figures of the memory screen; memview.h says which. */
#include "tui/memview.h"

#include <stdlib.h>
#include <string.h>

const char *tui_page_name(tui_page p) {
    static const char *const names[] = {
#define X(name, text) text,
        TUI_PAGE_MAP(X)
#undef X
    };
    return names[p];
}

tui_page tui_page_of(bool held, int32_t page, int32_t n_past, int32_t span) {
    if (!held && (int64_t)page * MOA_PAGE_TOK >= n_past) return TUI_PAGE_NONE;
    if (held && page == 0) return TUI_PAGE_SINK;
    const bool wanted = span == 0 ? held : moa_keep(span, n_past, page);
    if (held) return wanted ? TUI_PAGE_HELD : TUI_PAGE_SPARE;
    return wanted ? TUI_PAGE_LOST : TUI_PAGE_FREED;
}

const tui_run *tui_mem_run(const tui_app *app) {
    const tui_slot order[] = {app->newest, TUI_B, TUI_A, TUI_F};
    for (int i = 0; i < 4; i++) {
        const tui_run *r = &app->runs[order[i]];
        if (r->number && r->pages.there && r->pages.n_layer == app->model.n_layer && r->pages.n_head_kv == app->model.n_head_kv) return r;
    }
    return NULL;
}

void tui_mem_n(const tui_app *app, int32_t *n_reserved, int32_t *n_past) {
    const tui_run *r = tui_mem_run(app);
    *n_reserved = r && r->pages.n_reserved > 0 ? r->pages.n_reserved : tui_plan_n(app);
    *n_past = r && r->pages.n_past > 0 ? r->pages.n_past : tui_plan_n(app);
}

int32_t tui_mem_span(const tui_app *app, int32_t layer, int32_t kv) {
    const moa_plan *p = app->plan.now;
    const int32_t n_kv = app->model.n_head_kv;
    int32_t n, n_past;
    if (!p || !app->model.loaded || p->n_layer != app->model.n_layer || p->n_head != app->model.n_head || layer < 0 || layer >= p->n_layer || kv < 0 || kv >= n_kv) return 0;
    tui_mem_n(app, &n, &n_past);
    return moa_plan_group_span(p, layer, kv * (p->n_head / n_kv), n_kv, n);
}

static void add_group(const tui_app *app, int32_t layer, int32_t kv, int32_t n_past, tui_mem_unit *u) {
    const tui_run *r = tui_mem_run(app);
    const uint64_t page = tui_kv_page_bytes(app);
    const int32_t span = tui_mem_span(app, layer, kv);
    u->dense += (uint64_t)((n_past + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK) * page;
    if (span) {
        u->predicted += (uint64_t)moa_n_pages(span, n_past) * page;
        if (u->span_min == 0 || span < u->span_min) u->span_min = span;
        if (span > u->span_max) u->span_max = span;
    }
    if (!r) return;
    const tui_pages *g = &r->pages;
    const uint8_t *held = g->held + ((size_t)layer * (size_t)g->n_head_kv + (size_t)kv) * (size_t)g->max_pages;
    u->has_held = true;
    for (int32_t p = 0; p < g->max_pages; p++) {
        const tui_page s = tui_page_of(held[p] != 0, p, g->n_past, span);
        if (held[p]) u->held += g->page_bytes;
        u->n_lost += s == TUI_PAGE_LOST;
        u->n_spare += s == TUI_PAGE_SPARE;
    }
}

void tui_mem_describe(const tui_app *app, int32_t layer, int32_t kv, tui_mem_unit *out) {
    int32_t n, n_past;
    *out = (tui_mem_unit){.layer = layer, .kv = kv};
    if (!app->model.loaded || layer < 0 || layer >= app->model.n_layer || kv >= app->model.n_head_kv) return;
    tui_mem_n(app, &n, &n_past);
    if (kv >= 0) add_group(app, layer, kv, n_past, out);
    else
        for (int32_t k = 0; k < app->model.n_head_kv; k++) add_group(app, layer, k, n_past, out);
}

static int by_size_down(const void *a, const void *b) {
    const tui_mem_unit *x = a, *y = b;
    const uint64_t p = tui_mem_size(x), q = tui_mem_size(y);
    if (p != q) return p < q ? 1 : -1;
    if (x->predicted != y->predicted) return x->predicted < y->predicted ? 1 : -1;
    return x->layer != y->layer ? (x->layer > y->layer) - (x->layer < y->layer) : (x->kv > y->kv) - (x->kv < y->kv);
}

tui_mem_unit *tui_mem_list(const tui_app *app, int32_t layer, bool by_size, int32_t *n) {
    *n = 0;
    if (!app->model.loaded) return NULL;
    const int32_t count = layer >= 0 ? app->model.n_head_kv : app->model.n_layer;
    tui_mem_unit *u = malloc((size_t)count * sizeof *u);
    if (!u) return NULL;
    for (int32_t i = 0; i < count; i++) tui_mem_describe(app, layer >= 0 ? layer : i, layer >= 0 ? i : -1, &u[i]);
    if (by_size) qsort(u, (size_t)count, sizeof *u, by_size_down);
    *n = count;
    return u;
}
