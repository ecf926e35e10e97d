/* draw.c -- the frame around a view: status in fixed columns, tabs, prompt or message, keys. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tui/internal.h"
#include "tui/journal.h"
#include "tui/search.h"

/* --- status line ------------------------------------------------------------------------------------------------------------ */

/* what the engine does now, at most w cells; tone by role */
static viz_role job_text(const tui_app *app, char *out, size_t n) {
    const tui_link *l = &app->link;
    switch (l->state) {
    case TUI_LINK_OFF: (void)snprintf(out, n, "no engine"); return VIZ_DIM;
    case TUI_LINK_HELLO: (void)snprintf(out, n, "starting"); return VIZ_DIM;
    case TUI_LINK_IDLE: (void)snprintf(out, n, "no model"); return VIZ_DIM;
    case TUI_LINK_LOADING:
        if (app->load_total) (void)snprintf(out, n, "loading %2.0f%%", 100.0 * (double)app->load_done / (double)app->load_total);
        else (void)snprintf(out, n, "loading");
        return VIZ_ACCENT;
    case TUI_LINK_READY:
        if (tui_influence_reading(app)) {
            const double share = app->planner->reading_share;
            (void)snprintf(out, n, isnan(share) ? "reading" : "reading %2.0f%%", 100 * share);
            return VIZ_ACCENT;
        }
        (void)snprintf(out, n, "ready");
        return VIZ_GOOD;
    case TUI_LINK_DEAD: (void)snprintf(out, n, "engine ended"); return VIZ_BAD;
    case TUI_LINK_BUSY: break;
    }
    const tui_run *r = &app->runs[app->slot_running < 0 ? 0 : app->slot_running];
    if (tui_planner_engine(app) && l->asked_at <= 0) {
        const tui_step_info *step = &app->planner->steps[app->planner->running];
        (void)snprintf(out, n, isnan(step->share) ? "%s" : "%s %2.0f%%", tui_step_name((tui_step)app->planner->running), 100 * step->share);
        return VIZ_ACCENT;
    }
    if (l->asked_at > 0) (void)snprintf(out, n, "stopping");
    else if (r->state == TUI_RUN_PREFILL)
        (void)snprintf(out, n, "prefill %2.0f%%", r->total ? 100.0 * (double)r->done / (double)r->total : 0.0);
    else {
        const double s = r->first_token_at > 0 ? app->now - r->first_token_at : 0;
        (void)snprintf(out, n, "%d/%d  %.0f tok/s", r->n_token, r->n_gen_limit, s > 0.2 ? (r->n_token - 1) / s : 0.0);
    }
    return VIZ_ACCENT;
}

static void status_line(tui_app *app, viz_pane p) {
    const bool wide = p.w >= 110;
    char text[200], a[16], b[24];
    viz_fill(p, 0, 0, 1, p.w, viz_on(VIZ_TEXT, VIZ_BG_BAR), " ");
    const viz_style s = viz_on(VIZ_TEXT, VIZ_BG_BAR), dim = viz_on(VIZ_DIM, VIZ_BG_BAR);
    const bool large = p.w >= 160;
    const int x_n = large ? 40 : wide ? 28 : 18, x_plan = large ? 55 : wide ? 41 : 26, x_kv = large ? 110 : wide ? 69 : 44; /* a blank before the widest job text */
    const int x_mem = large ? 132 : wide ? 90 : 63, w_job = wide ? 24 : 17;
    const bool loaded = app->model.loaded;
    if (loaded) viz_clean(p, 0, 1, x_n - 2, (viz_style){VIZ_TITLE, VIZ_BG_BAR, VIZ_A_BOLD}, app->model.name);
    else viz_text(p, 0, 1, (viz_style){VIZ_TITLE, VIZ_BG_BAR, VIZ_A_BOLD}, "moascope");
    const int32_t n = tui_plan_n(app);
    (void)snprintf(text, sizeof text, wide ? "N %s" : "N %s", wide ? viz_count_text(b, n) : viz_short_text(a, n));
    viz_text_cut(p, 0, x_n, x_plan - x_n - 1, dim, text);
    if (app->plan.now) {
        const bool dirty = tui_plan_dirty(app);
        const int room = x_kv - x_plan - 6;
        /* what began as full attention and was edited is not that any more */
        int x = x_plan + (dirty && !*app->plan.path ? viz_text(p, 0, x_plan, s, "own plan") : viz_clean(p, 0, x_plan, room, s, app->plan.shown));
        if (dirty) {
            (void)snprintf(text, sizeof text, " ●%d", tui_plan_edits(app));
            x += viz_text(p, 0, x, (viz_style){VIZ_ACCENT, VIZ_BG_BAR, VIZ_A_BOLD}, text);
        }
    }
    if (loaded && app->plan.now) {
        const tui_kv kv = tui_kv_at(app, app->plan.now, n);
        (void)snprintf(text, sizeof text, "KV %s", viz_bytes_text(a, kv.plan));
        int x = x_kv + viz_text(p, 0, x_kv, s, text);
        if (kv.dense) {
            (void)snprintf(text, sizeof text, " %.2f%s", (double)kv.plan / (double)kv.dense, p.c->caps.utf8 ? "×" : "x");
            if (x + 6 < p.w - w_job - 1) viz_text(p, 0, x, dim, text);
        }
        if (app->model.device_total_bytes && x_mem + 12 < p.w - w_job) {
            const double g = 1 << 30;
            (void)snprintf(text, sizeof text, wide ? "%.1f/%.1f GiB" : "%.0f/%.0fG", (double)(app->model.device_total_bytes - app->model.device_free_bytes) / g,
                           (double)app->model.device_total_bytes / g);
            viz_text(p, 0, x_mem, dim, text);
        }
    }
    const viz_role tone = job_text(app, text, sizeof text);
    viz_text_right(p, 0, p.w - w_job - 1, w_job, viz_on(tone, VIZ_BG_BAR), text);
}

/* --- tabs -------------------------------------------------------------------------------------------------------------------- */

static void upper(char *to, const char *from, size_t n) {
    size_t i = 0;
    for (; from[i] && i + 1 < n; i++) to[i] = from[i] >= 'a' && from[i] <= 'z' ? (char)(from[i] - 32) : from[i];
    to[i] = 0;
}

static void click_tab(tui_app *app, int y, int x, int64_t view) {
    (void)y, (void)x;
    tui_view_switch(app, (int)view);
}

/* the head under the cursor; marks and the group lock before it, since edits go to them: as much as there is room for */
static void tabs_right(const tui_app *app, viz_pane p, int x) {
    char head[16], marked[32] = "", text[80];
    int32_t n = 0;
    for (int32_t k = 0; app->plan.marks && k < app->plan.now->n_layer * app->plan.now->n_head; k++) n += app->plan.marks[k];
    (void)snprintf(head, sizeof head, "L%02d H%02d", app->cursor.layer, app->cursor.head);
    if (n) (void)snprintf(marked, sizeof marked, "%d marked", n);
    (void)snprintf(text, sizeof text, "%s%s%s%s", app->plan.group_lock ? "group lock  " : "", marked, n ? "  " : "", head);
    if (x + (int)strlen(text) >= p.w) (void)snprintf(text, sizeof text, "%s", n ? marked : head);
    if (x + (int)strlen(text) >= p.w && n) (void)snprintf(text, sizeof text, "*%d", n);
    const int w = (int)strlen(text);
    if (x + w < p.w) viz_text(p, 0, p.w - 1 - w, n ? viz_fg(VIZ_ACCENT) : viz_fg(VIZ_DIM), text);
}

static void tabs(tui_app *app, viz_pane p) {
    int x = 1, need = 1 + 9; /* the head on the right, too */
    for (int i = 0; i < tui_view_count(); i++) need += 4 + (int)strlen(tui_view_at(i)->title);
    const bool tight = need > p.w; /* then the others are three letters */
    for (int i = 0; i < tui_view_count(); i++) {
        const tui_view *v = tui_view_at(i);
        const bool now = i == app->view;
        char title[32];
        if (now) upper(title, v->title, sizeof title);
        else (void)snprintf(title, sizeof title, tight ? "%.3s" : "%s", v->title);
        const char digit[] = {v->key, now ? ' ' : ' ', 0};
        if (x < p.w) tui_hit_add(app, (viz_rect){p.y, p.x + x, 1, 2 + (int)strlen(title)}, click_tab, i);
        x += viz_text(p, 0, x, now ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_FAINT), digit);
        x += viz_text(p, 0, x, now ? (viz_style){VIZ_ACCENT, VIZ_DEFAULT, VIZ_A_BOLD | VIZ_A_UNDERLINE} : viz_fg(VIZ_DIM), title);
        x += p.w >= 110 ? 3 : tight ? 1 : 2;
    }
    if (*app->sync && tui_idle(app)) {
        moa_buf b = {0};
        moa_text_clean(app->sync, strlen(app->sync), MOA_TEXT_LINE, &b);
        const int w = b.data ? moa_text_cells(b.data, b.size) + 1 : 0; /* a blank before it */
        if (w) viz_text_right(p, 0, p.w - 1 - (w < 24 ? w : 24), w < 24 ? w : 24, viz_bold(VIZ_GOOD), b.data);
        moa_buf_free(&b);
    } else if (app->plan.now) tabs_right(app, p, x);
}

/* --- prompt and footer --------------------------------------------------------------------------------------------------------- */

static void candidates(viz_pane p, int y) {
    const char *c = term_line_candidates();
    if (!*c || y < 0) return;
    viz_fill(p, y, 0, 1, p.w, viz_on(VIZ_TEXT, VIZ_BG_POPUP), " ");
    int x = 1;
    while (*c && x < p.w - 4) {
        const size_t n = strcspn(c, "\n");
        moa_buf b = {0};
        moa_text_clean(c, n, MOA_TEXT_LINE, &b);
        if (b.data && x + moa_text_cells(b.data, b.size) < p.w - 3) x += viz_text(p, y, x, viz_on(VIZ_KEY, VIZ_BG_POPUP), b.data) + 2;
        else {
            viz_text(p, y, x, viz_on(VIZ_DIM, VIZ_BG_POPUP), "…");
            moa_buf_free(&b);
            break;
        }
        moa_buf_free(&b);
        c += n + (c[n] == '\n');
    }
}

static void prompt_line(tui_app *app, viz_pane p, viz_pane all, int y) {
    static const viz_role tones[] = {VIZ_DIM, VIZ_GOOD, VIZ_WARN, VIZ_BAD};
    if (term_line_now() == TERM_LINE_EDITING) {
        term_line_draw(p, 0);
        candidates(all, y - 1);
    } else if (app->popup == TUI_POPUP_ASK) {
        const int x = viz_text(p, 0, 1, viz_bold(VIZ_WARN), app->popup_title);
        viz_text(p, 0, 2 + x, viz_fg(VIZ_KEY), "y yes  n no");
    } else if (app->n_pending || app->count) {
        int x = 1;
        char name[16];
        if (app->count) x += viz_printf(p, 0, x, viz_bold(VIZ_ACCENT), "%d", app->count);
        for (int i = 0; i < app->n_pending; i++) {
            tui_key_name(app->pending[i], name);
            x += viz_text(p, 0, x, viz_bold(VIZ_ACCENT), name);
        }
        viz_text(p, 0, x, viz_fg(VIZ_DIM), " …");
    } else if (*journal_offer(app)) viz_text_cut(p, 0, 1, p.w - 2, viz_fg(VIZ_ACCENT), journal_offer(app));
    else if (app->n_log > 0 && app->said_at > 0) {
        const tui_line *l = tui_said(app);
        const viz_style s = viz_fg(tones[l->tone]);
        if (y > 3 && app->n_log > app->n_seen && moa_text_cells(l->text, strlen(l->text)) > p.w - 2) { /* a sentence is read to its end: the row above is lent to it, until a key comes */
            viz_fill(all, y - 1, 0, 1, all.w, viz_fg(VIZ_TEXT), " ");
            (void)viz_text_wrap(all, y - 1, 1, all.w - 2, 2, s, l->text);
        } else viz_text_cut(p, 0, 1, p.w - 2, s, l->text);
    }
}

static void click_word(tui_app *app, int y, int x, int64_t i) {
    (void)y, (void)x;
    const tui_command *row = tui_command_at(tui_view_at(app->view), (int)i);
    if (row) tui_command_run(app, row, 0, true);
}

static void footer(tui_app *app, viz_pane p) {
    static const char *const always = "?";
    const tui_view *v = tui_view_at(app->view);
    const tui_command *row;
    int x = 1;
    const int room = p.w - 8; /* "? help" always has its place */
    for (int i = 0; (row = tui_command_at(v, i)) != NULL; i++) {
        char key[32];
        tui_command_key(row, key);
        if (!row->footer) continue;
        if (strcmp(key, always) == 0) {
            tui_hit_add(app, (viz_rect){p.y, p.x + p.w - 7, 1, 6}, click_word, i);
            continue;
        }
        const int w = moa_text_cells(key, strlen(key)) + 1 + moa_text_cells(row->footer, strlen(row->footer));
        if (x + w > room) continue;
        tui_hit_add(app, (viz_rect){p.y, p.x + x, 1, w}, click_word, i);
        x += viz_text(p, 0, x, viz_fg(VIZ_KEY), key);
        x += 1 + viz_text(p, 0, x + 1, viz_fg(VIZ_DIM), row->footer);
        x += 2;
    }
    x = p.w - 7;
    x += viz_text(p, 0, x, viz_fg(VIZ_KEY), always);
    viz_text(p, 0, x + 1, viz_fg(VIZ_DIM), "help");
}

/* --- the whole ------------------------------------------------------------------------------------------------------------------- */

static void tiny(tui_app *app, const tui_frame *f, viz_pane all) {
    char text[96];
    (void)snprintf(text, sizeof text, "needs 60x16, have %dx%d; jobs go on", app->canvas->cols, app->canvas->rows);
    if (f->prompt.h > 0) viz_text_cut(all, 0, 0, all.w, viz_fg(VIZ_WARN), text);
    else if (term_line_now() != TERM_LINE_EDITING) viz_text_cut(all, 0, 0, all.w, viz_fg(VIZ_WARN), text);
    if (f->prompt.h > 0) prompt_line(app, viz_pane_of(app->canvas, f->prompt), all, f->prompt.y);
    else if (term_line_now() == TERM_LINE_EDITING) term_line_draw(all, 0);
}

tui_frame tui_frame_now(const tui_app *app) {
    const int lent = tui_tour_rows(app);
    tui_frame f = tui_layout_frame(app->canvas->rows - lent, app->canvas->cols);
    f.prompt.y += lent;
    f.footer.y += lent;
    return f;
}

void tui_draw(tui_app *app) {
    viz_canvas *c = app->canvas;
    const tui_frame f = tui_frame_now(app);
    const tui_view *v = tui_view_at(app->view);
    viz_canvas_clear(c);
    app->n_hit = 0;
    const viz_pane all = viz_pane_all(c);
    if (f.size == TUI_TINY) {
        tiny(app, &f, all);
        return;
    }
    status_line(app, viz_pane_of(c, f.status));
    tabs(app, viz_pane_of(c, f.tabs));
    if (v) {
        viz_rect panes[TUI_PANES_MAX];
        const tui_run *a = &app->runs[TUI_A], *b = &app->runs[TUI_B];
        const tui_layout_ask ask = {v->layout, f.size, f.body, tui_view_vars(app, v)->focus, a->number && b->number};
        (void)tui_layout_panes(&ask, panes);
        v->draw(app, c, panes);
    }
    footer(app, viz_pane_of(c, f.footer));
    const int lent = tui_tour_rows(app);
    if (lent) tui_tour_draw(app, viz_pane_of(c, (viz_rect){f.prompt.y - lent, 0, lent, c->cols}));
    if (app->popup != TUI_POPUP_NONE) {
        c->cursor_y = c->cursor_x = -1;
        app->n_hit = 0; /* what lies below it cannot be clicked */
        tui_popup_draw(app, viz_pane_of(c, f.body));
    }
    prompt_line(app, viz_pane_of(c, f.prompt), all, f.prompt.y);
}
