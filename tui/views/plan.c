/* plan -- the rules as a table: one head a row, with what its span would keep and cost, live while it is edited.
 *
 * Coverage comes from the distance histograms of the newest dense run (or of a windowed one, said so in the title); without any it is
 * "-". Cost is the KV group's: a head that is not the widest of its group costs nothing of its own. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tui/internal.h"
#include "tui/search.h"

enum { V_SCROLL, V_SORT, V_ONLY, V_DESCEND }; /* first row shown, sort column, 1: only marked heads, 1: largest first */

#define SORT_MAP(X) X(HEAD, "head") X(SPAN, "span") X(COVER, "cover") X(WORST, "worst") X(ENTROPY, "entropy") X(KV, "KV")
enum {
#define X(name, text) SORT_##name,
    SORT_MAP(X)
#undef X
        SORT_COUNT
};
static const char *const sort_names[] = {
#define X(name, text) text,
    SORT_MAP(X)
#undef X
};

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_plan); }

/* --- rows ----------------------------------------------------------------------------------------------------------------------- */

typedef struct row {
    int32_t at; /* layer*n_head + head */
    double key;
} row;

static int by_key(const void *a, const void *b) {
    const row *x = a, *y = b;
    const bool nx = isnan(x->key), ny = isnan(y->key);
    if (nx != ny) return nx - ny; /* unknown last */
    if (!nx && x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->at - y->at;
}

static double key_of(const tui_app *app, int sort, int32_t at) {
    tui_head_figures f;
    if (sort == SORT_HEAD) return at;
    tui_head_describe(app, at / app->plan.now->n_head, at % app->plan.now->n_head, &f);
    switch (sort) {
    case SORT_SPAN: return f.span;
    case SORT_COVER: return f.cover;
    case SORT_WORST: return f.worst_cover;
    case SORT_ENTROPY: return f.entropy;
    default: return (double)f.kv_group_bytes;
    }
}

/* heads in the order shown; malloc'ed, the caller's */
static row *rows_of(tui_app *app, int32_t *n) {
    const tui_view_state *v = vars(app);
    const int32_t all = app->plan.now->n_layer * app->plan.now->n_head;
    row *r = malloc((size_t)all * sizeof *r);
    *n = 0;
    if (!r) return NULL;
    for (int32_t i = 0; i < all; i++) {
        if ((v->v[V_ONLY] && !app->plan.marks[i]) || !tui_plan_shown(app, i)) continue;
        const double k = key_of(app, (int)v->v[V_SORT], i);
        r[(*n)++] = (row){i, v->v[V_DESCEND] ? -k : k};
    }
    if (v->v[V_SORT] != SORT_HEAD || v->v[V_DESCEND]) qsort(r, (size_t)*n, sizeof *r, by_key);
    return r;
}

static int32_t cursor_at(const tui_app *app) { return app->cursor.layer * app->plan.now->n_head + app->cursor.head; }

static int32_t index_of(const row *r, int32_t n, int32_t at) {
    for (int32_t i = 0; i < n; i++)
        if (r[i].at == at) return i;
    return 0;
}

/* --- the table ------------------------------------------------------------------------------------------------------------------ */

static viz_role class_color(const char *class) {
    static const struct {
        const char *name;
        viz_role role;
    } list[] = {{"sink", VIZ_CAT1}, {"distant", VIZ_CAT2}, {"local", VIZ_CAT3}, {"mixed", VIZ_CAT8}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (strcmp(list[i].name, class) == 0) return list[i].role;
    return VIZ_FAINT;
}

static void alpha_text(char out[24], double v) {
    if (v == floor(v) && fabs(v) < 1e9) (void)viz_count_text(out, (int64_t)v);
    else (void)snprintf(out, 24, "%.2f", v);
}

static void beta_text(char out[24], double v) {
    if (v == 0) (void)snprintf(out, 24, "0");
    else (void)snprintf(out, 24, "%.4g", v);
}

enum { X_HEAD = 2, X_ALPHA = 10, X_BETA = 18, X_SPAN = 25, X_COVER = 34, X_ENT = 41, X_KV = 45, X_CLASS = 56, X_NOTE = 64 };
/* further columns where there is room */
enum { X_95 = 82, X_WORST = 92, X_DIST = 101, DIST_W = 24, W_WIDE = X_DIST + DIST_W };

/* with influence the predicted loss of each head stands where its entropy does */
static bool with_loss(const tui_app *app) { return tui_influence_at(app, 0) != NULL; }

static void header(const tui_app *app, viz_pane p) {
    static const struct {
        int x, w;
        const char *text;
    } heads[] = {{X_HEAD, 8, "head"}, {X_CLASS, 8, "class"}, {X_NOTE, 8, "note"}};
    static const struct {
        int x, w;
        const char *text;
    } right[] = {{X_ALPHA, 7, "alpha"}, {X_BETA, 6, "beta"}, {X_SPAN, 8, "span"}, {X_COVER, 6, "cover"}, {X_ENT, 4, "ent"}, {X_KV, 9, "KV/group"}};
    for (size_t i = 0; i < 3; i++) viz_text(p, 0, heads[i].x, viz_fg(VIZ_DIM), heads[i].text);
    for (size_t i = 0; i < 6; i++) viz_text_right(p, 0, right[i].x, right[i].w, viz_fg(VIZ_DIM), right[i].text);
    if (with_loss(app)) {
        viz_text_right(p, 0, X_ENT - 1, 5, viz_fg(VIZ_DIM), "mnat");
    }
    if (p.w < W_WIDE) return;
    viz_text_right(p, 0, X_95, 8, viz_fg(VIZ_DIM), "95% at");
    viz_text_right(p, 0, X_WORST, 7, viz_fg(VIZ_DIM), "worst");
    viz_text(p, 0, X_DIST, viz_fg(VIZ_DIM), "mass: sink, then distance");
}

/* the mass by distance in log2 bins of blocks, the first the sink; how far the span reaches is drawn bright */
static void distance_strip(const tui_app *app, viz_pane p, int y, int32_t layer, int32_t head, int32_t span) {
    int32_t n_bin;
    const float *h = tui_run_hist(tui_truth(app), layer, head, &n_bin);
    float bins[DIST_W];
    if (!h || !moa_coverage_octaves(h, n_bin, bins, DIST_W)) return;
    const int reach = moa_coverage_n_octave(moa_window(span) / MOA_PAGE_TOK);
    int last = moa_coverage_n_octave(n_bin);
    if (last > DIST_W) last = DIST_W;
    for (int i = 0; i < last; i++)
        viz_spark(p, y, X_DIST + i, 1, viz_fg(i == 0 ? VIZ_CAT1 : i < reach ? VIZ_BAR : VIZ_FAINT), &bins[i], 1, 0, 0.5f);
}

static void note_of(const tui_app *app, const tui_head_figures *f, int32_t at, char *out, size_t n) {
    const int32_t len = tui_plan_n(app);
    char t[16];
    out[0] = 0;
    if (f->rule.alpha + f->rule.beta * len <= 0) (void)snprintf(out, n, "<= 0, min 128");
    else if (f->span >= len) (void)snprintf(out, n, "full");
    else if (!isnan(f->worst_cover) && f->worst_cover < 0.5) (void)snprintf(out, n, "worst %s", viz_percent_text(t, f->worst_cover, 0));
    else if (f->is_widest && app->model.loaded && f->group_span > MOA_SPAN_MIN) (void)snprintf(out, n, "sets group");
    (void)at;
}

static double head_loss(const tui_app *app, int32_t layer, int32_t head) {
    const int i = tui_influence_for(app, tui_plan_n(app));
    const tui_influence *f = tui_influence_at(app, i);
    return f ? tui_influence_loss(app, i, layer, head, moa_span(*moa_plan_at(app->plan.now, layer, head), f->n_tok)) : (double)NAN;
}

/* 1/1000 nats in 5 cells */
static const char *milli_text(char out[24], double nats) {
    const double v = 1000 * nats;
    if (isnan(v)) (void)snprintf(out, 24, "-");
    else (void)snprintf(out, 24, fabs(v) < 9.995 ? "%.2f" : fabs(v) < 99.95 ? "%.1f" : "%.0f", v == 0 ? 0.0 : v);
    return out;
}

static void table_row(tui_app *app, viz_pane p, int y, int32_t at, bool here) {
    const int32_t n_head = app->plan.now->n_head, layer = at / n_head, head = at % n_head;
    tui_head_figures f;
    char t[64], note[48];
    tui_head_describe(app, layer, head, &f);
    const moa_rule *disk = app->plan.disk && app->plan.disk->n_layer == app->plan.now->n_layer && app->plan.disk->n_head == n_head ? moa_plan_at(app->plan.disk, layer, head) : NULL;
    const bool edited = disk && (disk->alpha != f.rule.alpha || disk->beta != f.rule.beta), marked = app->plan.marks[at];
    viz_text(p, y, 0, viz_bold(VIZ_ACCENT), marked ? "*" : " ");
    (void)snprintf(t, sizeof t, "L%02d H%02d", layer, head);
    viz_text(p, y, X_HEAD, here ? viz_bold(VIZ_TEXT) : viz_fg(VIZ_TEXT), t);
    const viz_style rule = edited ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_TEXT);
    alpha_text(t, f.rule.alpha);
    viz_text_right(p, y, X_ALPHA, 7, rule, t);
    beta_text(t, f.rule.beta);
    viz_text_right(p, y, X_BETA, 6, rule, t);
    viz_text_right(p, y, X_SPAN, 8, viz_fg(VIZ_TEXT), viz_count_text(t, f.span));
    const viz_role cover = isnan(f.cover) ? VIZ_FAINT : f.cover < 0.8 ? VIZ_BAD : f.cover < 0.95 ? VIZ_WARN : VIZ_GOOD;
    viz_text_right(p, y, X_COVER, 6, viz_fg(cover), viz_percent_text(t, f.cover, 1));
    const bool loss = with_loss(app);
    if (loss) viz_text_right(p, y, X_ENT - 1, 5, viz_fg(VIZ_TEXT), milli_text(t, head_loss(app, layer, head)));
    else viz_text_right(p, y, X_ENT, 4, viz_fg(VIZ_DIM), viz_real_text(t, f.entropy, 1));
    viz_text_right(p, y, X_KV, 9, viz_fg(f.is_widest ? VIZ_TEXT : VIZ_FAINT), f.kv_group_bytes ? viz_bytes_text(t, f.kv_group_bytes) : "-");
    const char *class = tui_head_class(app, layer, head);
    viz_text_cut(p, y, X_CLASS, 8, viz_fg(class_color(class)), class);
    note_of(app, &f, at, note, sizeof note);
    viz_text_cut(p, y, X_NOTE, p.w < W_WIDE ? p.w - X_NOTE : X_95 - X_NOTE - 1, viz_fg(VIZ_DIM), note);
    if (p.w >= W_WIDE) {
        viz_text_right(p, y, X_95, 8, viz_fg(VIZ_DIM), f.span95 ? viz_count_text(t, f.span95) : "-");
        viz_text_right(p, y, X_WORST, 7, viz_fg(VIZ_DIM), viz_percent_text(t, f.worst_cover, 1));
        distance_strip(app, p, y, layer, head, f.span);
    }
    if (!here) return;
    viz_restyle(p, y, 0, 1, p.w, VIZ_BG_SELECT, 0);
    if (p.c->caps.depth == VIZ_MONO) viz_text(p, y, 1, viz_bold(VIZ_ACCENT), ">");
    viz_cursor(p, y, X_HEAD);
}

static void scrollbar(viz_pane box, int32_t first, int32_t shown, int32_t n) {
    if (n <= shown || box.h < 6) return;
    const int h = box.h - 2, len = (int)((int64_t)shown * h / n) > 0 ? (int)((int64_t)shown * h / n) : 1;
    const int at = (int)((int64_t)first * (h - len) / (n - shown > 0 ? n - shown : 1));
    for (int i = 0; i < len; i++) viz_text(box, 1 + at + i, box.w - 1, viz_fg(VIZ_DIM), box.c->caps.utf8 ? "┃" : "#");
}

static void click_row(tui_app *app, int y, int x, int64_t first) {
    int32_t n = 0;
    (void)x;
    row *r = app->plan.now ? rows_of(app, &n) : NULL;
    const int32_t i = (int32_t)first + y;
    if (r && i < n) tui_cursor_move(app, r[i].at / app->plan.now->n_head, r[i].at % app->plan.now->n_head);
    free(r);
}

static void draw_table(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    tui_view_state *v = vars(app);
    char title[192], note[96];
    const tui_run *truth = tui_truth(app);
    (void)snprintf(title, sizeof title, "Rules");
    int32_t n = 0;
    row *r = app->plan.now ? rows_of(app, &n) : NULL;
    if (app->plan.now && app->plan.filter[0])
        (void)snprintf(title, sizeof title, "%d of %d heads  %s", n, app->plan.now->n_layer * app->plan.now->n_head, app->plan.filter);
    else if (app->plan.now) (void)snprintf(title, sizeof title, "Rules  %d layers x %d heads", app->plan.now->n_layer, app->plan.now->n_head);
    (void)snprintf(note, sizeof note, "%s%s sort: %s%s", v->v[V_ONLY] ? "only marked  " : "", !truth ? "nothing measured: r or R runs " : tui_run_saw_all(truth) ? "" : "from a windowed run ",
                   sort_names[v->v[V_SORT]], v->v[V_DESCEND] ? " down" : "");
    viz_pane box = viz_pane_of(c, rect), in = viz_box(box, title, note, focus);
    if (!app->plan.now) {
        viz_text(in, 0, 2, viz_fg(VIZ_DIM), "No plan yet: it comes with the model, or :plan open FILE.");
        return;
    }
    if (!r) return;
    header(app, in);
    const int32_t shown = in.h - 1, at = index_of(r, n, cursor_at(app));
    int32_t first = (int32_t)v->v[V_SCROLL];
    if (first > at) first = at;
    if (first < at - shown + 1) first = at - shown + 1;
    if (first > n - shown) first = n - shown;
    if (first < 0) first = 0;
    v->v[V_SCROLL] = first;
    tui_hit_add(app, (viz_rect){in.y + 1, in.x, shown, in.w}, click_row, first);
    for (int32_t i = 0; i < shown && first + i < n; i++) table_row(app, in, 1 + i, r[first + i].at, r[first + i].at == cursor_at(app));
    if (n == 0) viz_text(in, 1, 2, viz_fg(VIZ_DIM), app->plan.filter[0] ? "No head fits; :filter alone shows all again." : "No head is marked; m shows all again.");
    scrollbar(box, first, shown, n);
    free(r);
}

/* --- budget and checks ---------------------------------------------------------------------------------------------------------- */

static int kv_row(viz_pane in, int y, const char *label, uint64_t bytes, uint64_t most, viz_color color, const char *after) {
    char b[16];
    viz_text_cut(in, y, 0, 12, viz_fg(VIZ_DIM), label);
    viz_text_right(in, y, 12, 9, viz_fg(VIZ_TEXT), viz_bytes_text(b, bytes));
    const int room = in.w - 22 - 12;
    if (room >= 6) viz_bar(in, y, 22, room > 30 ? 30 : room, most ? (double)bytes / (double)most : (double)NAN, color);
    viz_text(in, y, 23 + (room > 30 ? 30 : room > 0 ? room : 0), viz_fg(VIZ_DIM), after);
    return y + 1;
}

static int budget_row(tui_app *app, viz_pane in, int y, uint64_t plan) {
    const uint64_t budget = app->plan.budget_bytes;
    char a[16], text[64];
    if (!budget) return y;
    const double share = (double)plan / (double)budget;
    viz_text_cut(in, y, 0, 12, viz_fg(VIZ_DIM), "budget");
    viz_text_right(in, y, 12, 9, viz_fg(VIZ_TEXT), viz_bytes_text(a, budget));
    const int room = in.w - 34;
    if (room >= 6) viz_bar(in, y, 22, room > 30 ? 30 : room, share, share > 1 ? VIZ_BAD : VIZ_GOOD);
    (void)snprintf(text, sizeof text, "%.0f%%%s", 100 * share, share > 1 ? " over" : "");
    viz_text(in, y, 23 + (room > 30 ? 30 : room > 0 ? room : 0), viz_fg(share > 1 ? VIZ_BAD : VIZ_GOOD), text);
    return y + 1;
}

static void checks(tui_app *app, viz_pane in, int y, const moa_plan_at_n *d) {
    char a[24], b[24], c[24];
    const int32_t n = tui_plan_n(app);
    const bool ascii = !app->caps.utf8;
    if (y < in.h)
        viz_printf(in, y++, 0, viz_fg(VIZ_DIM), "span %s to %s, mean %s", viz_count_text(a, d->span_min), viz_count_text(b, d->span_max),
                   viz_count_text(c, llround(d->span_mean)));
    if (y < in.h) viz_printf(in, y++, 0, viz_fg(VIZ_DIM), "density %.3f   full heads %.0f%%", d->kv_density, 100 * d->dense_share);
    if (y < in.h) {
        const char *yes = ascii ? "ok" : "✓";
        if (d->n_clamped == 0) viz_printf(in, y++, 0, viz_fg(VIZ_DIM), "alpha+beta*N > 0 %s   rules a layer <= %d", yes, moa_plan_max_rules_per_layer(app->plan.now));
        else viz_printf(in, y++, 0, viz_fg(VIZ_WARN), "alpha+beta*N <= 0 for %d heads at N=%s: 128 holds", d->n_clamped, viz_count_text(a, n));
    }
    if (y < in.h && tui_plan_disk_changed(app)) viz_text_cut(in, y++, 0, in.w, viz_fg(VIZ_WARN), "The file changed on disk since it was read: D shows how");
}

/* what the whole plan would cost in loss, by each profiled length: changes as rules are edited */
static int loss_row(tui_app *app, viz_pane in, int y) {
    char a[24], text[96];
    int x = 0;
    if (!with_loss(app) || y >= in.h) return y;
    x += viz_text(in, y, x, viz_fg(VIZ_DIM), "loss, nats ");
    for (int i = 0; tui_influence_at(app, i); i++) {
        (void)snprintf(text, sizeof text, " %s @%d ", tui_loss_text(a, tui_influence_plan(app, i, app->plan.now)), tui_influence_at(app, i)->n_tok);
        if (x + (int)strlen(text) <= in.w) x += viz_text(in, y, x, viz_bold(VIZ_TEXT), text);
    }
    return y + 1;
}

static void draw_budget(tui_app *app, viz_canvas *c, viz_rect rect) {
    char title[64], ratio[24], a[24];
    (void)snprintf(title, sizeof title, "Cost at N = %s", viz_count_text(a, tui_plan_n(app)));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, NULL, false);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!app->plan.now) return;
    const moa_plan_at_n d = moa_plan_describe(app->plan.now, tui_plan_n(app), app->model.loaded ? app->model.n_head_kv : app->plan.now->n_head_kv);
    const tui_kv kv = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    int y = 0;
    if (kv.dense) {
        const uint64_t most = kv.mha > kv.dense ? kv.mha : kv.dense;
        (void)snprintf(ratio, sizeof ratio, "%.2f%s", (double)kv.plan / (double)kv.dense, app->caps.utf8 ? "×" : "x");
        y = kv_row(in, y, "KV plan", kv.plan, most, VIZ_RUN_B, ratio);
        y = kv_row(in, y, "KV full", kv.dense, most, VIZ_RUN_A, app->caps.utf8 ? "1.00×" : "1.00x");
        if (in.h > 5 && kv.mha != kv.dense) {
            (void)snprintf(ratio, sizeof ratio, "%.2f%s", (double)kv.mha / (double)kv.dense, app->caps.utf8 ? "×" : "x");
            y = kv_row(in, y, "if MHA", kv.mha, most, VIZ_CAT8, ratio);
        }
        y = budget_row(app, in, y, kv.plan);
    }
    y = loss_row(app, in, y);
    checks(app, in, y, &d);
}

/* --- classes and history ---------------------------------------------------------------------------------------------------------- */

static void draw_classes(tui_app *app, viz_canvas *c, viz_rect rect) {
    moa_rule_class *list = NULL;
    int32_t n = 0;
    char title[64];
    if (app->plan.now) (void)moa_plan_classes(app->plan.now, &list, &n, NULL);
    (void)snprintf(title, sizeof title, "%d distinct rule%s", n, n == 1 ? "" : "s");
    viz_pane in = viz_box(viz_pane_of(c, rect), title, "* marks alike", false);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    const int32_t all = app->plan.now ? app->plan.now->n_layer * app->plan.now->n_head : 1;
    for (int32_t i = 0; i < n && i < in.h; i++) {
        char a[24], b[24], text[96], cells[24];
        if (i == in.h - 1 && n > in.h) {
            viz_printf(in, i, 0, viz_fg(VIZ_DIM), "… and %d more", n - i);
            break;
        }
        alpha_text(a, list[i].rule.alpha);
        beta_text(b, list[i].rule.beta);
        (void)snprintf(text, sizeof text, "%7s + %sN", a, b);
        const moa_rule here = *moa_plan_at(app->plan.now, app->cursor.layer, app->cursor.head);
        const bool mine = here.alpha == list[i].rule.alpha && here.beta == list[i].rule.beta;
        viz_text_cut(in, i, 0, 16, mine ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_TEXT), text);
        viz_text_right(in, i, 16, 8, viz_fg(VIZ_DIM), viz_count_text(cells, moa_span(list[i].rule, tui_plan_n(app))));
        viz_text_right(in, i, 25, 6, viz_fg(VIZ_TEXT), viz_count_text(cells, list[i].n_head));
        if (in.w > 36) viz_bar(in, i, 32, in.w - 32, (double)list[i].n_head / all, VIZ_BAR);
    }
    free(list);
}

static void draw_undo(tui_app *app, viz_canvas *c, viz_rect rect) {
    viz_pane in = viz_box(viz_pane_of(c, rect), "Edits", "u undo  C-r redo  U list", false);
    const tui_plan *p = &app->plan;
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (p->n_change == 0) {
        viz_text(in, 0, 0, viz_fg(VIZ_DIM), "None yet.");
        return;
    }
    int from = p->n_done - in.h / 2;
    if (from > p->n_change - in.h) from = p->n_change - in.h;
    if (from < 0) from = 0;
    for (int i = from, y = 0; i < p->n_change && y < in.h; i++, y++) {
        viz_printf(in, y, 0, viz_fg(i + 1 == p->n_saved ? VIZ_GOOD : VIZ_FAINT), "%3d%s", i + 1, i + 1 == p->n_saved ? "=" : " ");
        viz_text_cut(in, y, 5, in.w - 5, viz_fg(i < p->n_done ? VIZ_TEXT : VIZ_FAINT), p->changes[i].what);
    }
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    if (!viz_rect_empty(p[TUI_PLAN_TABLE])) draw_table(app, c, p[TUI_PLAN_TABLE], focus == TUI_PLAN_TABLE);
    if (!viz_rect_empty(p[TUI_PLAN_BUDGET])) draw_budget(app, c, p[TUI_PLAN_BUDGET]);
    if (!viz_rect_empty(p[TUI_PLAN_CLASSES])) draw_classes(app, c, p[TUI_PLAN_CLASSES]);
    if (!viz_rect_empty(p[TUI_PLAN_UNDO])) draw_undo(app, c, p[TUI_PLAN_UNDO]);
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------ */

static moa_status go_by(tui_app *app, int32_t by, moa_err *err) {
    int32_t n;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model, or :plan open FILE");
    row *r = rows_of(app, &n);
    if (!r || n == 0) {
        free(r);
        return MOA_OK;
    }
    int64_t to = (int64_t)index_of(r, n, cursor_at(app)) + by;
    if (to < 0) to = 0;
    if (to >= n) to = n - 1;
    tui_cursor_move(app, r[to].at / app->plan.now->n_head, r[to].at % app->plan.now->n_head);
    free(r);
    return MOA_OK;
}

static int page(const tui_app *app) { return app->canvas && app->canvas->rows > 16 ? app->canvas->rows / 2 : 8; }
static moa_status go_up(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, -tui_times(a), err); }
static moa_status go_down(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, tui_times(a), err); }
static moa_status page_up(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, -page(app) * tui_times(a), err); }
static moa_status page_down(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, page(app) * tui_times(a), err); }
static moa_status go_first(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return go_by(app, -(1 << 28), err);
}
static moa_status go_last(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return go_by(app, 1 << 28, err);
}
static moa_status layer_up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    tui_cursor_move(app, app->cursor.layer - tui_times(a), app->cursor.head);
    return MOA_OK;
}
static moa_status layer_down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    tui_cursor_move(app, app->cursor.layer + tui_times(a), app->cursor.head);
    return MOA_OK;
}

static moa_status next_sort(tui_app *app, const tui_args *a, moa_err *err) {
    tui_view_state *v = vars(app);
    if (a->argc > 0) {
        for (int i = 0; i < SORT_COUNT; i++)
            if (strcasecmp(sort_names[i], a->argv[0]) == 0) {
                v->v[V_SORT] = i;
                return MOA_OK;
            }
        return moa_fail(err, MOA_E_USAGE, "sort by head, span, cover, worst, entropy or KV");
    }
    v->v[V_SORT] = (v->v[V_SORT] + 1) % SORT_COUNT;
    tui_say(app, TUI_INFO, "Sorted by %s", sort_names[v->v[V_SORT]]);
    return MOA_OK;
}
static moa_status turn_sort(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    vars(app)->v[V_DESCEND] ^= 1;
    return MOA_OK;
}
static moa_status only_marked(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    vars(app)->v[V_ONLY] ^= 1;
    return MOA_OK;
}

/* one word: "L14", "H3", "L14.H3", its class, its rule; "class==local"; a figure, "cover<95" */
static bool word_matches(const tui_app *app, int32_t at, const char *word) {
    char text[160];
    bool is_figure;
    const int32_t l = at / app->plan.now->n_head, h = at % app->plan.now->n_head;
    const moa_rule r = app->plan.now->rules[at];
    const char *class = tui_head_class(app, l, h);
    if (strncasecmp(word, "class!=", 7) == 0) return strcasecmp(class, word + 7) != 0;
    if (strncasecmp(word, "class=", 6) == 0) return strcasecmp(class, word + 6 + (word[6] == '=')) == 0;
    const bool fits = tui_figure_matches(app, l, h, word, &is_figure);
    if (is_figure) return fits;
    (void)snprintf(text, sizeof text, "L%02d H%02d L%d.H%d %s (%g,%g) %d%s", l, h, l, h, class, r.alpha, r.beta, moa_span(r, tui_plan_n(app)),
                   app->plan.marks[at] ? " marked" : "");
    return strcasestr(text, word) != NULL;
}

/* does the head's row fit every word? !word: not that one; && between them may stand for looks */
static bool row_matches(const tui_app *app, int32_t at, const char *needle) {
    for (const char *w = needle; *w;) {
        char word[64];
        while (*w == ' ') w++;
        const size_t n = strcspn(w, " ");
        if (n == 0) break;
        if (n >= sizeof word) return false;
        memcpy(word, w, n);
        word[n] = 0;
        w += n;
        if (strcmp(word, "&&") == 0) continue;
        const bool invert = word[0] == '!' && word[1];
        if (word_matches(app, at, word + invert) == invert) return false;
    }
    return true;
}

bool tui_plan_shown(const tui_app *app, int32_t at) { return row_matches(app, at, app->plan.filter); }

/* no words: all heads again. The cursor goes to a head that is shown: what is edited is seen. */
static moa_status filter(tui_app *app, const tui_args *a, moa_err *err) {
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    if (strlen(a->rest) >= sizeof app->plan.filter)
        return moa_fail(err, MOA_E_USAGE, "a filter of %zu bytes, at most %zu", strlen(a->rest), sizeof app->plan.filter - 1);
    (void)snprintf(app->plan.filter, sizeof app->plan.filter, "%s", a->rest);
    int32_t n;
    row *r = rows_of(app, &n);
    if (!r) return moa_fail(err, MOA_E_MEMORY, "no memory for the heads");
    if (n > 0) {
        const int32_t to = r[index_of(r, n, cursor_at(app))].at;
        tui_cursor_move(app, to / app->plan.now->n_head, to % app->plan.now->n_head);
    }
    if (app->plan.filter[0]) tui_say(app, n ? TUI_INFO : TUI_WARN, "%d of %d heads fit; @shown selects them", n, app->plan.now->n_layer * app->plan.now->n_head);
    else tui_say(app, TUI_INFO, "All heads are shown");
    free(r);
    return MOA_OK;
}

static bool search(tui_app *app, const char *needle, int dir, int *n_match) {
    int32_t n;
    if (!app->plan.now) return false;
    row *r = rows_of(app, &n);
    int32_t found = -1, count = 0;
    const int32_t here = r ? index_of(r, n, cursor_at(app)) : 0;
    for (int32_t i = 0; r && i < n; i++) count += row_matches(app, r[i].at, needle);
    for (int32_t i = 1; r && i <= n && found < 0; i++) {
        const int32_t k = (int32_t)(((int64_t)here + (int64_t)dir * i % n + n) % n);
        if (row_matches(app, r[k].at, needle)) found = r[k].at;
    }
    free(r);
    *n_match = count;
    if (found < 0) return false;
    tui_cursor_move(app, found / app->plan.now->n_head, found % app->plan.now->n_head);
    return true;
}

static const tui_command commands[] = {
    {"row up", "k Up", NULL, "the row above", NULL, NULL, TUI_CMD_COUNT, go_up, NULL},
    {"row down", "j Down", NULL, "the row below", NULL, NULL, TUI_CMD_COUNT, go_down, NULL},
    {"page up", "PgUp C-b C-u", NULL, "half a screen up", NULL, NULL, TUI_CMD_COUNT, page_up, NULL},
    {"page down", "PgDn C-f C-d", NULL, "half a screen down", NULL, NULL, TUI_CMD_COUNT, page_down, NULL},
    {"row first", "gg Home", NULL, "the first row", NULL, NULL, 0, go_first, NULL},
    {"row last", "G End", NULL, "the last row", NULL, NULL, 0, go_last, NULL},
    {"layer up", "K", NULL, "the same head, one layer up", NULL, NULL, TUI_CMD_COUNT, layer_up, NULL},
    {"layer down", "J", NULL, "the same head, one layer down", NULL, NULL, TUI_CMD_COUNT, layer_down, NULL},
    {"sort", "s", "[head|span|cover|worst|entropy|KV]", "sort by the next column, or by the one named", "sort", NULL, 0, next_sort, NULL},
    {"sort turn", "S", NULL, "largest or smallest first", NULL, NULL, 0, turn_sort, NULL},
    {"filter", "f", "[WORDS]", "show only heads that fit: cover<95 class==local !L00; no words: all", "filter", "filter ", 0, filter, NULL},
    {"only marked", "m", NULL, "show only the marked heads, or all", NULL, NULL, 0, only_marked, NULL},
    {0},
};

const tui_view tui_view_plan = {.name = "plan", .title = "Plan", .key = '4', .layout = TUI_LAYOUT_PLAN, .commands = commands, .draw = draw, .search = search};
