/* compare -- A beside B: where they part, how far every token is from full attention, which heads are to blame, what it costs.
 *
 * KL and agreement come from A's tokens forced through the plan (c): the same text on both sides, so every position compares. Blame is
 * about one token: Enter asks every head how much of what its query wanted lies outside its span. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tui/internal.h"

enum { V_BLAME_AT }; /* blamed head chosen */
enum { BLAME_MAX = 64 };

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_compare); }

/* --- KL by token ----------------------------------------------------------------------------------------------------------------- */

static void draw_kl(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_run *a = &app->runs[TUI_A];
    char note[96] = "";
    double sum = 0, most = 0;
    int32_t n = 0, at = -1;
    float *v = malloc((size_t)(a->n_token > 0 ? a->n_token : 1) * sizeof *v);
    if (!v) return;
    for (int32_t i = 0; i < a->n_token; i++) {
        const double kl = tui_output_kl(app, i);
        v[i] = isnan(kl) ? NAN : (float)(kl <= 1e-4 ? 0 : log10(kl) + 4);
        if (isnan(kl)) continue;
        n++;
        sum += kl;
        if (kl > most) most = kl, at = i;
    }
    if (n) (void)snprintf(note, sizeof note, rect.w > 90 ? "mean %.4f nats   largest %.3f at token %d   %d tokens" : "mean %.4f, largest %.3f at %d", sum / n, most, at + 1, n);
    viz_pane in = viz_box(viz_pane_of(c, rect), rect.w > 90 ? "KL(A || plan) of A's tokens, log" : "KL(A || plan), log", note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!n) viz_text_cut(in, 0, 0, in.w, viz_fg(VIZ_DIM), "c compares: A's tokens through the plan, token by token.");
    else {
        const int w = in.w - 7 < a->n_token ? in.w - 7 : a->n_token;
        viz_text(in, 0, 0, viz_fg(VIZ_FAINT), "1");
        if (in.h > 2) viz_text(in, in.h - 1, 0, viz_fg(VIZ_FAINT), "1e-4");
        viz_columns(in, 0, 6, in.h, w, viz_fg(VIZ_RUN_A), v, a->n_token, 0, 4.3f);
        const int32_t sel = tui_output_selected(app, tui_output_focused(app));
        if (sel >= 0 && a->n_token > 0) {
            const int x = 6 + (a->n_token <= w ? sel : (int)((int64_t)sel * w / a->n_token));
            viz_restyle(in, 0, x, in.h, 1, VIZ_BG_SELECT, 0);
            if (isnan((double)v[sel < a->n_token ? sel : 0])) viz_text(in, in.h - 1, x, viz_fg(VIZ_DIM), "-");
        }
    }
    free(v);
}

/* --- costs -------------------------------------------------------------------------------------------------------------------------- */

/* of A's tokens: mean log-probability -> perplexity, and how often the plan's first choice is A's token */
static void agreement(const tui_app *app, double *ppl_a, double *ppl_plan, double *top1) {
    const tui_run *a = &app->runs[TUI_A], *f = &app->runs[TUI_F];
    double la = 0, lf = 0, same = 0;
    int32_t n = 0;
    *ppl_a = *ppl_plan = *top1 = (double)NAN;
    for (int32_t i = 0; i < a->n_token && i < f->n_token && !isnan(tui_output_kl(app, i)); i++, n++) {
        la += (double)a->tokens[i].logprob;
        lf += (double)f->tokens[i].logprob;
        same += f->tokens[i].n_top > 0 && a->tokens[i].n_top > 0 && f->tokens[i].top_ids[0] == a->tokens[i].top_ids[0];
    }
    if (n == 0) return;
    *ppl_a = exp(-la / n);
    *ppl_plan = exp(-lf / n);
    *top1 = same / n;
}

static void cost_row(viz_pane in, int y, const char *name, viz_role color, const tui_run *r, uint64_t most) {
    char kv[16], pre[24], dec[24];
    viz_text_cut(in, y, 0, 7, viz_bold(color), name);
    if (!r->number || r->state != TUI_RUN_DONE) {
        viz_text(in, y, 8, viz_fg(VIZ_FAINT), "-");
        return;
    }
    const tui_pages *p = &r->pages;
    viz_text_right(in, y, 7, 9, viz_fg(VIZ_TEXT), viz_bytes_text(kv, p->there ? p->used_bytes : r->result.kv_bytes));
    (void)snprintf(pre, sizeof pre, "%.2f s", r->prefill_s);
    viz_text_right(in, y, 16, 9, viz_fg(VIZ_TEXT), pre);
    (void)snprintf(dec, sizeof dec, "%.1f t/s", r->decode_s > 0 ? r->n_token / r->decode_s : 0.0);
    viz_text_right(in, y, 25, 11, viz_fg(VIZ_TEXT), dec);
    if (in.w > 48) viz_bar(in, y, 39, in.w - 40 > 24 ? 24 : in.w - 40, most ? (double)(p->there ? p->used_bytes : r->result.kv_bytes) / (double)most : (double)NAN, color);
}

static void draw_cost(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    viz_pane in = viz_box(viz_pane_of(c, rect), "What it costs", NULL, focus);
    const tui_run *a = &app->runs[TUI_A], *b = &app->runs[TUI_B], *f = &app->runs[TUI_F];
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    viz_text_right(in, 0, 7, 9, viz_fg(VIZ_DIM), "KV held");
    viz_text_right(in, 0, 16, 9, viz_fg(VIZ_DIM), "prefill");
    viz_text_right(in, 0, 25, 11, viz_fg(VIZ_DIM), "decode");
    const uint64_t most = a->result.kv_bytes > b->result.kv_bytes ? a->result.kv_bytes : b->result.kv_bytes;
    cost_row(in, 1, "A full", VIZ_RUN_A, a, most);
    cost_row(in, 2, "B plan", VIZ_RUN_B, b, most);
    double pa, pf, top;
    char t[16], x[24], y[24];
    agreement(app, &pa, &pf, &top);
    viz_printf(in, 3, 0, viz_fg(VIZ_DIM), "%sperplexity %s full, %s plan", in.w < 48 ? "" : "A's text: ", viz_real_text(x, pa, 2), viz_real_text(y, pf, 2));
    viz_printf(in, 4, 0, viz_fg(VIZ_DIM), in.w < 48 ? "first choice agrees %s%s" : "first choice agrees in %s of tokens%s", viz_percent_text(t, top, 1), f->number && f->state != TUI_RUN_DONE ? " so far" : "");
    const int32_t d = tui_divergence(app);
    if (in.h > 5 && a->number && b->number) {
        if (a->prompt_key != b->prompt_key) viz_text(in, 5, 0, viz_fg(VIZ_WARN), "A and B had different prompts");
        else if (d >= 0) viz_printf(in, 5, 0, viz_fg(VIZ_TEXT), "first difference at token %d", d + 1);
        else viz_text(in, 5, 0, viz_fg(VIZ_GOOD), "no difference so far");
    }
}

/* --- blame ---------------------------------------------------------------------------------------------------------------------------- */

static void draw_blame(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_blame *b = &app->blame;
    int32_t top[BLAME_MAX];
    char title[64] = "Blame", note[40] = "";
    if (b->query >= 0) (void)snprintf(title, sizeof title, "Blame  query %d, token %d", b->query, b->query - app->runs[b->slot].n_prompt + 2);
    if (b->active) (void)snprintf(note, sizeof note, "%d%%", (int)(100 * (int64_t)b->next / (b->n > 0 ? b->n : 1)));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    const int32_t n = tui_blame_top(app, top, BLAME_MAX);
    if (b->query < 0) {
        (void)viz_text_wrap(in, 0, 0, in.w, in.h, viz_fg(VIZ_DIM), "Enter asks every head how much of what this token's query wanted lies outside its span.");
        return;
    }
    if (n == 0 && !b->active) viz_text(in, 0, 0, viz_fg(VIZ_GOOD), "No head lost anything here.");
    int64_t at = vars(app)->v[V_BLAME_AT];
    if (at >= n) at = n - 1;
    if (at < 0) at = 0;
    const int32_t first = at >= in.h ? (int32_t)at - in.h + 1 : 0;
    for (int32_t i = first; i < n && i - first < in.h; i++) {
        tui_head_figures f;
        char t[24], cut[16];
        const int32_t layer = top[i] / app->model.n_head, head = top[i] % app->model.n_head;
        const int y = i - first;
        tui_head_describe(app, layer, head, &f);
        (void)snprintf(t, sizeof t, "L%02d H%02d", layer, head);
        viz_text(in, y, 1, viz_fg(VIZ_TEXT), t);
        viz_text_right(in, y, 9, 7, viz_fg(b->cut[top[i]] > 0.2f ? VIZ_BAD : VIZ_WARN), viz_percent_text(cut, (double)b->cut[top[i]], 1));
        viz_text_right(in, y, 17, 8, viz_fg(VIZ_DIM), viz_count_text(t, f.span));
        char hint[48];
        if (f.group_span > f.span) (void)snprintf(hint, sizeof hint, in.w > 44 ? "free up to %s (its KV group's)" : "free", viz_count_text(t, f.group_span));
        else (void)snprintf(hint, sizeof hint, in.w > 44 ? "wider costs memory" : "costs");
        viz_text_cut(in, y, 27, in.w - 27, viz_fg(f.group_span > f.span ? VIZ_GOOD : VIZ_FAINT), hint);
        if (i != at) continue;
        viz_restyle(in, y, 0, 1, in.w, VIZ_BG_SELECT, 0);
        if (c->caps.depth == VIZ_MONO) viz_text(in, y, 0, viz_bold(VIZ_ACCENT), ">");
    }
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    const tui_run *in_focus = tui_output_focused(app);
    if (!viz_rect_empty(p[TUI_COMPARE_A])) tui_output_draw(app, c, p[TUI_COMPARE_A], &app->runs[TUI_A], in_focus == &app->runs[TUI_A] && focus <= TUI_COMPARE_B);
    if (!viz_rect_empty(p[TUI_COMPARE_B])) tui_output_draw(app, c, p[TUI_COMPARE_B], &app->runs[TUI_B], in_focus == &app->runs[TUI_B] && focus <= TUI_COMPARE_B);
    if (!viz_rect_empty(p[TUI_COMPARE_KL])) draw_kl(app, c, p[TUI_COMPARE_KL], focus == TUI_COMPARE_KL);
    if (!viz_rect_empty(p[TUI_COMPARE_COST])) draw_cost(app, c, p[TUI_COMPARE_COST], focus == TUI_COMPARE_COST);
    if (!viz_rect_empty(p[TUI_COMPARE_BLAME])) draw_blame(app, c, p[TUI_COMPARE_BLAME], focus == TUI_COMPARE_BLAME);
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------------- */

/* the head chosen in the list becomes the cursor, so that every rule key acts on it */
static void choose(tui_app *app, int64_t at) {
    int32_t top[BLAME_MAX];
    const int32_t n = tui_blame_top(app, top, BLAME_MAX);
    if (n == 0) return;
    if (at < 0) at = 0;
    if (at >= n) at = n - 1;
    vars(app)->v[V_BLAME_AT] = at;
    tui_cursor_move(app, top[at] / app->model.n_head, top[at] % app->model.n_head);
}

static bool in_blame(tui_app *app) { return vars(app)->focus == TUI_COMPARE_BLAME; }

static moa_status up(tui_app *app, const tui_args *a, moa_err *err) {
    if (!in_blame(app)) return tui_token_up(app, a, err);
    choose(app, vars(app)->v[V_BLAME_AT] - tui_times(a));
    return MOA_OK;
}
static moa_status down(tui_app *app, const tui_args *a, moa_err *err) {
    if (!in_blame(app)) return tui_token_down(app, a, err);
    choose(app, vars(app)->v[V_BLAME_AT] + tui_times(a));
    return MOA_OK;
}

/* Enter on a token: blame it. Enter on a blamed head: to its rule. */
static moa_status enter(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (in_blame(app) && app->blame.query >= 0) {
        choose(app, vars(app)->v[V_BLAME_AT]);
        return tui_command_line(app, "view plan", err);
    }
    const tui_run *r = tui_output_focused(app);
    const int32_t i = tui_output_selected(app, r);
    if (i < 0) return moa_fail(err, MOA_E_FAILED, "there is no output token to ask about");
    const moa_status s = tui_blame_start(app, r->n_prompt + i - 1, err); /* token i was chosen by the query before it */
    if (s == MOA_OK) {
        vars(app)->focus = TUI_COMPARE_BLAME;
        vars(app)->v[V_BLAME_AT] = 0;
    }
    return s;
}

static bool wider_free(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)user;
    const int32_t n = tui_plan_n(app), g = app->model.n_head / app->model.n_head_kv, own = moa_span(*rule, n);
    int32_t best = own;
    for (int32_t k = head / g * g; k < head / g * g + g; k++) {
        const moa_rule r = *moa_plan_at(app->plan.now, layer, k);
        if (moa_span(r, n) <= best) continue;
        best = moa_span(r, n);
        *rule = r;
    }
    if (best == own) { /* it is the widest already: twice its span */
        rule->alpha += own;
        if (rule->alpha + rule->beta * n > n) *rule = (moa_rule){0, 1};
    }
    return true;
}

static moa_status apply(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    int32_t top[BLAME_MAX];
    const int32_t n = tui_blame_top(app, top, BLAME_MAX);
    if (n == 0 || !app->plan.now) return moa_fail(err, MOA_E_FAILED, "no head is blamed; Enter asks");
    const size_t all = (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head;
    uint8_t *mask = calloc(all, 1);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    int64_t at = vars(app)->v[V_BLAME_AT];
    if (at >= n) at = n - 1;
    mask[top[at]] = 1;
    char what[64];
    (void)snprintf(what, sizeof what, "L%02d H%02d wider, as it lost %.0f%% at %d", top[at] / app->model.n_head, top[at] % app->model.n_head,
                   100 * (double)app->blame.cut[top[at]], app->blame.query);
    const tui_kv before = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    const int32_t changed = tui_plan_edit(app, mask, what, wider_free, NULL);
    const tui_kv after = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    free(mask);
    if (changed) tui_say(app, TUI_INFO, "%s: %+lld bytes of KV; r runs again", what, (long long)after.plan - (long long)before.plan);
    else tui_say(app, TUI_INFO, "It sees everything already");
    return MOA_OK;
}

static const tui_command commands[] = {
    {"compare left", "h Left", NULL, "the token before", NULL, NULL, TUI_CMD_COUNT, tui_token_left, NULL},
    {"compare right", "l Right", NULL, "the token after", NULL, NULL, TUI_CMD_COUNT, tui_token_right, NULL},
    {"compare up", "k Up", NULL, "the token in the line above; the head above", NULL, NULL, TUI_CMD_COUNT, up, NULL},
    {"compare down", "j Down", NULL, "the token in the line below; the head below", NULL, NULL, TUI_CMD_COUNT, down, NULL},
    {"compare first", "gg Home", NULL, "the first token", NULL, NULL, 0, tui_token_first, NULL},
    {"compare last", "G End", NULL, "the last token", NULL, NULL, 0, tui_token_last, NULL},
    {"blame", "Enter", NULL, "which heads lost what this token's query wanted; then to the rule", "blame", NULL, 0, enter, NULL},
    {"blame apply", "a", NULL, "widen the blamed head: to its group's span, or twice its own", "apply", NULL, TUI_CMD_EDIT, apply, NULL},
    {"compare next", "]", NULL, "the next token that stands out, or the first difference", "hot", NULL, 0, tui_token_hot_next, NULL},
    {"compare previous", "[", NULL, "the token before that stands out", NULL, NULL, 0, tui_token_hot_previous, NULL},
    {"compare other", "v", NULL, "the cursor to the other run", "A/B", NULL, 0, tui_token_other_run, NULL},
    {"compare tint", "t", NULL, "tint tokens by KL, surprise, entropy, or not", NULL, NULL, 0, tui_token_tint, NULL},
    {0},
};

static bool search(tui_app *app, const char *needle, int dir, int *n_match) { return tui_view_run.search(app, needle, dir, n_match); }

const tui_view tui_view_compare = {.name = "compare", .title = "Compare", .key = '5', .layout = TUI_LAYOUT_COMPARE, .commands = commands, .draw = draw, .search = search};
