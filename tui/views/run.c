/* run -- the prompt, the answer token by token, and how it differs between full attention (A) and the plan (B).
 *
 * Every token carries a tint: KL(A‖plan) when c compared, else how unlikely the token was. The token under the cursor is told
 * exactly: probabilities, entropy, what else was likely. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tui/flow.h"
#include "tui/internal.h"

enum { V_TINT, V_AT, V_FOLLOW_OFF, V_WIDTH }; /* tint, selected output token, 1: the selection was moved, width of the output last drawn */

#define TINT_MAP(X) X(AUTO, "auto") X(KL, "KL") X(LOGPROB, "surprise") X(ENTROPY, "entropy") X(NONE, "none")
enum {
#define X(name, text) TINT_##name,
    TINT_MAP(X)
#undef X
        TINT_COUNT
};
static const char *const tint_names[] = {
#define X(name, text) text,
    TINT_MAP(X)
#undef X
};

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_run); }

static bool both(const tui_app *app) { return app->runs[TUI_A].number && app->runs[TUI_B].number; }

/* the run whose output has the cursor */
tui_run *tui_output_focused(tui_app *app) {
    tui_slot s = app->cursor.run;
    if (s == TUI_F || !app->runs[s].number) s = app->runs[TUI_B].number ? TUI_B : TUI_A;
    return &app->runs[s];
}

static bool is_a(const tui_app *app, const tui_run *r) { return r == &app->runs[TUI_A]; }

/* KL of A's i-th token under the plan, from the forced run; NAN: not compared */
double tui_output_kl(const tui_app *app, int32_t i) {
    const tui_run *f = &app->runs[TUI_F], *a = &app->runs[TUI_A];
    if (!f->number || f->prompt_key != a->prompt_key || i >= f->n_token || i >= a->n_token || f->tokens[i].id != a->tokens[i].id) return (double)NAN;
    return (double)f->tokens[i].kl;
}

static int tint_of(const tui_app *app, int tint, const tui_run *r) {
    if (tint != TINT_AUTO) return tint;
    return is_a(app, r) && !isnan(tui_output_kl(app, 0)) ? TINT_KL : TINT_LOGPROB;
}

/* 0..1, NAN: unknown. KL 0.01 .. 2 nats on a log scale; surprise up to 5 nats; entropy up to 4 nats */
static double tint_value(const tui_app *app, int tint, const tui_run *r, int32_t i) {
    const tui_token *t = &r->tokens[i];
    double v;
    switch (tint) {
    case TINT_KL:
        v = is_a(app, r) ? tui_output_kl(app, i) : (double)NAN;
        return isnan(v) ? v : v <= 1e-2 ? 0 : fmin(1, (log10(v) + 2) / 2.3);
    case TINT_LOGPROB: return isnan(t->logprob) ? (double)NAN : fmin(1, -(double)t->logprob / 5);
    case TINT_ENTROPY: return isnan(t->entropy) ? (double)NAN : fmin(1, (double)t->entropy / 4);
    default: return (double)NAN;
    }
}

typedef struct ink {
    tui_app *app;
    const tui_run *r;
    int tint;
    int32_t at, diverged;
    viz_depth depth;
} ink;

static uint32_t warm(double t) { /* from the ground to a dark amber: text stays legible on all of it */
    const double u = t < 0 ? 0 : t > 1 ? 1 : t;
    const uint32_t r = (uint32_t)(24 + u * 126), g = (uint32_t)(28 + u * 34), b = (uint32_t)(36 - u * 6);
    return r << 16 | g << 8 | b;
}

static viz_style style_of(void *user, int32_t token) {
    const ink *k = user;
    viz_style s = viz_fg(VIZ_TEXT);
    if (token >= k->r->n_token) return s;
    if (k->r->tokens[token].control) s.fg = VIZ_FAINT;
    const double t = tint_value(k->app, k->tint, k->r, token);
    if (!isnan(t) && t > 0.12) {
        if (k->depth >= VIZ_256) s.bg = viz_rgb(warm(t));
        if (t > 0.6 || k->depth < VIZ_256) s.attr |= t > 0.6 ? VIZ_A_BOLD | VIZ_A_UNDERLINE : 0;
    }
    if (k->diverged >= 0 && token == k->diverged) s = (viz_style){VIZ_TEXT, VIZ_BG_DIFF, VIZ_A_BOLD | VIZ_A_UNDERLINE};
    if (token == k->at) s = (viz_style){VIZ_TEXT, VIZ_BG_SELECT, VIZ_A_BOLD};
    return s;
}

/* --- panes ------------------------------------------------------------------------------------------------------------------------ */

static void draw_prompt(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char note[64] = "", number[24];
    const bool ascii = !app->caps.utf8;
    if (app->prompt_tokens_known) (void)snprintf(note, sizeof note, "%s tokens%s", viz_count_text(number, app->n_prompt_tok), app->options.chat ? ", chat" : "");
    else if (app->prompt.size) (void)snprintf(note, sizeof note, "%s bytes%s", viz_count_text(number, (int64_t)app->prompt.size), app->options.chat ? ", chat" : "");
    char title[96];
    (void)snprintf(title, sizeof title, "Prompt%s%.70s", moa_clean_bytes(app->prompt_name) ? "  " : "", moa_clean_text(app->prompt_name));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (app->prompt.size == 0) {
        viz_text(in, 0, 0, viz_fg(VIZ_DIM), "No prompt yet.");
        if (in.h > 1) viz_text(in, 1, 0, viz_fg(VIZ_DIM), "i types one, o opens $EDITOR, :prompt open FILE reads one.");
        return;
    }
    /* the end matters most: the question is there. A long prompt shows its first line and its last ones. */
    const size_t want = (size_t)in.h * (size_t)in.w * 4 + 64;
    size_t from = app->prompt.size > want ? app->prompt.size - want : 0;
    while (from > 0 && from < app->prompt.size && ((unsigned char)app->prompt.data[from] & 0xc0) == 0x80) from++;
    moa_buf clean = {0};
    tui_flow f = {0};
    moa_text_clean(app->prompt.data + from, app->prompt.size - from, ascii ? MOA_TEXT_ASCII : 0, &clean);
    if (clean.data && tui_flow_text(&f, clean.data, clean.size) && tui_flow_wrap(&f, in.w)) {
        const bool cut = from > 0 || f.n_line > in.h;
        ink k = {.app = app, .r = &app->runs[TUI_A], .at = -1, .diverged = -1};
        tui_run none = {0};
        k.r = &none;
        if (!cut) tui_flow_draw(&f, in, 0, style_of, &k);
        else {
            viz_text(in, 0, 0, viz_fg(VIZ_DIM), "… the end of it:");
            tui_flow_draw(&f, viz_pane_sub(in, 1, 0, in.h - 1, in.w), f.n_line - (in.h - 1), style_of, &k);
        }
    }
    tui_flow_free(&f);
    moa_buf_free(&clean);
}

static void run_title(const tui_app *app, const tui_run *r, char *out, size_t n) {
    (void)snprintf(out, n, "%s  #%d", is_a(app, r) ? "A full attention" : "B plan", r->number);
}

static void select_token(tui_app *app, int32_t at);

/* value: the run's slot, first line shown, cells of a line */
static void click_token(tui_app *app, int y, int x, int64_t value) {
    const tui_slot slot = (tui_slot)(value >> 56);
    const tui_run *r = &app->runs[slot];
    tui_flow f = {0};
    if (slot != app->cursor.run && app->runs[TUI_A].number && app->runs[TUI_B].number) app->cursor.run = slot;
    if (tui_flow_tokens(&f, r, r->n_prompt, r->n_token, true, !app->caps.utf8) && tui_flow_wrap(&f, (int)(value & 0xffff))) {
        const int32_t at = tui_flow_token_under(&f, (int32_t)(value >> 16 & 0x7fffffff) + y, x);
        if (at >= 0 && at < r->n_token) select_token(app, at);
    }
    tui_flow_free(&f);
}

void tui_output_draw(tui_app *app, viz_canvas *c, viz_rect rect, const tui_run *r, bool focus) {
    tui_view_state *v = vars(app);
    char title[64] = "Output", note[96] = "";
    const int tint = tint_of(app, (int)v->v[V_TINT], r);
    const bool pair = tui_view_at(app->view) == &tui_view_compare; /* each side is one run's, there or not */
    if (pair && !r->number) (void)snprintf(title, sizeof title, "%s", is_a(app, r) ? "A full attention" : "B plan");
    if (r->number) {
        run_title(app, r, title, sizeof title);
        if (r->stale) (void)snprintf(note, sizeof note, "of another prompt");
        else if (rect.w > 56) (void)snprintf(note, sizeof note, "tint: %s%s%s", tint_names[tint], r->state == TUI_RUN_DONE ? "  stop: " : "", r->stop);
        else (void)snprintf(note, sizeof note, "%s", tint_names[tint]);
    }
    viz_pane box = viz_pane_of(c, rect), in = viz_box(box, title, note, focus);
    if (r->number) viz_text(box, 0, 3, viz_bold(is_a(app, r) ? VIZ_RUN_A : VIZ_RUN_B), is_a(app, r) ? "A" : "B");
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!r->number) {
        viz_text_wrap(in, 0, 0, in.w, in.h, viz_fg(VIZ_DIM), !pair ? "r runs under the plan, R with full attention, c compares. New here? :tour shows on this model, in five steps, what spans are." :
                      is_a(app, r) ? "R runs the prompt with full attention." : "r runs it under the plan.");
        return;
    }
    tui_flow f = {0};
    if (tui_flow_tokens(&f, r, r->n_prompt, r->n_token, true, !app->caps.utf8) && tui_flow_wrap(&f, in.w)) {
        int32_t at = v->v[V_FOLLOW_OFF] ? (int32_t)v->v[V_AT] : r->n_token - 1;
        if (at >= r->n_token) at = r->n_token - 1;
        const int32_t line = tui_flow_line_of(&f, at);
        int32_t first = f.n_line - in.h;
        if (v->v[V_FOLLOW_OFF] && first > line - in.h / 2) first = line - in.h / 2;
        if (first < 0) first = 0;
        const ink k = {app, r, tint, v->v[V_FOLLOW_OFF] ? at : -1, tui_divergence(app), app->caps.depth};
        tui_flow_draw(&f, in, first, style_of, (void *)(uintptr_t)&k);
        if (focus) v->v[V_WIDTH] = in.w;
        tui_hit_add(app, viz_pane_rect(in), click_token, (int64_t)(r - app->runs) << 56 | (int64_t)first << 16 | in.w);
    }
    tui_flow_free(&f);
    if (r->state == TUI_RUN_FAILED) viz_text_cut(in, in.h - 1, 0, in.w, viz_bold(VIZ_BAD), r->failed);
    else if (r->state == TUI_RUN_PREFILL) viz_text(in, 0, 0, viz_fg(VIZ_DIM), "reading the prompt …");
}

/* "‘ memo’ .62" of the n likeliest tokens, as a list with bars when there is room */
static void draw_top(tui_app *app, viz_pane in, int y, const tui_run *r, const tui_token *t) {
    for (int32_t i = 0; i < t->n_top && y < in.h; i++, y++) {
        moa_buf b = {0};
        tui_bytes_shown(r->pieces.data + t->top_at[i], t->top_n[i], !app->caps.utf8, &b);
        const double p = exp((double)t->top_logprob[i]);
        const bool chosen = t->top_ids[i] == t->id;
        viz_text_cut(in, y, 0, 14, (viz_style){chosen ? VIZ_TEXT : VIZ_DIM, VIZ_DEFAULT, chosen ? VIZ_A_BOLD : 0}, b.data ? b.data : "");
        viz_printf(in, y, 15, viz_fg(chosen ? VIZ_TEXT : VIZ_DIM), "%5.1f%%", 100 * p);
        viz_bar(in, y, 22, in.w - 22, p, is_a(app, r) ? VIZ_RUN_A : VIZ_RUN_B);
        moa_buf_free(&b);
    }
}

int32_t tui_output_selected(tui_app *app, const tui_run *r) {
    const tui_view_state *v = vars(app);
    int32_t at = v->v[V_FOLLOW_OFF] ? (int32_t)v->v[V_AT] : r->n_token - 1;
    return at >= r->n_token ? r->n_token - 1 : at;
}

static void draw_token(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    tui_run *r = tui_output_focused(app);
    const int32_t at = tui_output_selected(app, r);
    const bool framed = rect.h > 4;
    char title[64];
    (void)snprintf(title, sizeof title, at >= 0 ? "Token %d of %d" : "Token", at + 1, r->n_token);
    viz_pane in = viz_pane_of(c, rect);
    if (framed) in = viz_box(in, title, NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (at < 0) {
        if (framed) viz_text(in, 0, 0, viz_fg(VIZ_DIM), "h l move over the output.");
        return;
    }
    const tui_token *t = &r->tokens[at];
    char lp[24], en[24], kl[24];
    moa_buf b = {0};
    tui_run_piece_shown(r, r->n_prompt + at, true, !app->caps.utf8, &b);
    if (!framed) { /* two lines */
        int x = viz_printf(in, 0, 0, viz_fg(VIZ_DIM), "token %d  ", at + 1);
        x += viz_text_cut(in, 0, x, 14, viz_bold(VIZ_TEXT), b.data ? b.data : "");
        viz_printf(in, 0, x + 1, viz_fg(VIZ_DIM), "p %.1f%%  entropy %s  KL %s", 100 * exp((double)t->logprob), viz_real_text(en, (double)t->entropy, 2),
                   viz_real_text(kl, tui_output_kl(app, at), 4));
        x = viz_text(in, 1, 0, viz_fg(VIZ_DIM), "next  ");
        for (int32_t i = 0; i < t->n_top && x < in.w - 16; i++) {
            moa_buf one = {0};
            tui_bytes_shown(r->pieces.data + t->top_at[i], t->top_n[i], !app->caps.utf8, &one);
            x += viz_text(in, 1, x, viz_fg(t->top_ids[i] == t->id ? VIZ_TEXT : VIZ_DIM), one.data ? one.data : "");
            x += viz_printf(in, 1, x, viz_fg(VIZ_DIM), " %.0f%%  ", 100 * exp((double)t->top_logprob[i]));
            moa_buf_free(&one);
        }
        moa_buf_free(&b);
        return;
    }
    viz_text_cut(in, 0, 0, in.w, viz_bold(VIZ_TEXT), b.data ? b.data : "");
    moa_buf_free(&b);
    viz_printf(in, 1, 0, viz_fg(VIZ_DIM), "id %d   position %d", t->id, t->pos);
    viz_printf(in, 2, 0, viz_fg(VIZ_DIM), "log p %s   entropy %s nats", viz_real_text(lp, (double)t->logprob, 3), viz_real_text(en, (double)t->entropy, 2));
    viz_printf(in, 3, 0, viz_fg(VIZ_DIM), "KL(A|plan) %s nats", viz_real_text(kl, tui_output_kl(app, at), 4));
    draw_top(app, in, 5, r, t);
    const tui_run *other = is_a(app, r) ? &app->runs[TUI_B] : &app->runs[TUI_A];
    if (other->number && at < other->n_token && in.h > 5 + t->n_top + 3) {
        const int y = 6 + t->n_top;
        viz_printf(in, y, 0, viz_bold(is_a(app, other) ? VIZ_RUN_A : VIZ_RUN_B), "%s at the same place", is_a(app, other) ? "A" : "B");
        draw_top(app, in, y + 1, other, &other->tokens[at]);
    }
}

static void bar_row(viz_pane in, int y, const char *label, double share, viz_color color, const char *text) {
    const int w = in.w >= 90 ? 28 : 18;
    viz_text_cut(in, y, 0, 9, viz_fg(VIZ_DIM), label);
    viz_bar(in, y, 9, w, share, color);
    viz_text_cut(in, y, 11 + w, in.w - 11 - w, viz_fg(VIZ_TEXT), text);
}

static void progress_text(const tui_app *app, const tui_run *r, char *prefill, char *decode, size_t n) {
    char a[24], b[24];
    const double s = r->prefill_s;
    (void)snprintf(prefill, n, "%s / %s tokens  %.0f tok/s  %.2f s", viz_count_text(a, (int64_t)r->done), viz_count_text(b, (int64_t)r->total),
                   s > 0 ? (double)r->done / s : 0, s);
    const double d = r->state == TUI_RUN_DONE ? r->decode_s : r->first_token_at > 0 ? app->now - r->first_token_at : 0;
    const double rate = d > 0.05 ? r->n_token / d : 0;
    if (r->state == TUI_RUN_DECODE && rate > 0)
        (void)snprintf(decode, n, "%d / %d tokens  %.1f tok/s  %.0f s left at most", r->n_token, r->n_gen_limit, rate, (r->n_gen_limit - r->n_token) / rate);
    else (void)snprintf(decode, n, "%d / %d tokens  %.1f tok/s  %s", r->n_token, r->n_gen_limit, rate, r->stop);
}

/* KL, or surprise, of every output token: one strip */
static void strip(tui_app *app, viz_pane in, int y, const tui_run *r) {
    const int tint = tint_of(app, (int)vars(app)->v[V_TINT], r);
    if (r->n_token < 1 || tint == TINT_NONE) return;
    float *v = malloc((size_t)r->n_token * sizeof *v);
    if (!v) return;
    for (int32_t i = 0; i < r->n_token; i++) v[i] = (float)tint_value(app, tint, r, i);
    viz_text_cut(in, y, 0, 9, viz_fg(VIZ_DIM), tint_names[tint]);
    viz_spark(in, y, 9, in.w - 9, viz_fg(is_a(app, r) ? VIZ_RUN_A : VIZ_RUN_B), v, r->n_token, 0, 1);
    free(v);
}

static void draw_progress(tui_app *app, viz_canvas *c, viz_rect rect) {
    const bool framed = rect.h > 4;
    const tui_run *r = app->slot_running >= 0 ? &app->runs[app->slot_running] : tui_output_focused(app);
    viz_pane in = viz_pane_of(c, rect);
    char prefill[96] = "", decode[96] = "", kv[96] = "", a[16], b[16];
    if (framed) in = viz_box(in, "Progress", r->number && !is_a(app, r) && r == &app->runs[TUI_F] ? "A's tokens through the plan" : NULL, false);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (app->link.state == TUI_LINK_LOADING) {
        const double share = app->load_total ? (double)app->load_done / (double)app->load_total : (double)NAN;
        const double s = app->now - app->load_started;
        (void)snprintf(prefill, sizeof prefill, "%s / %s  %.0f MiB/s", viz_bytes_text(a, app->load_done), viz_bytes_text(b, app->load_total),
                       s > 0.05 ? (double)app->load_done / s / (1 << 20) : 0);
        bar_row(in, 0, "loading", share, VIZ_ACCENT, prefill);
        return;
    }
    if (!r->number) {
        if (app->link.state == TUI_LINK_DEAD) viz_text_cut(in, 0, 0, in.w, viz_fg(VIZ_BAD), app->link.why);
        else if (app->model.loaded) viz_printf(in, 0, 0, viz_fg(VIZ_DIM), "temp %g  seed %llu  at most %d tokens  %s", (double)app->options.sampling.temp,
                                               (unsigned long long)app->options.sampling.seed, app->options.n_gen, app->options.chat ? "chat template" : "raw text");
        return;
    }
    progress_text(app, r, prefill, decode, sizeof prefill);
    bar_row(in, 0, "prefill", r->total ? (double)r->done / (double)r->total : 0, is_a(app, r) ? VIZ_RUN_A : VIZ_RUN_B, prefill);
    bar_row(in, 1, "decode", r->n_gen_limit ? (double)r->n_token / r->n_gen_limit : 0, is_a(app, r) ? VIZ_RUN_A : VIZ_RUN_B, decode);
    int y = 2;
    if (framed && r->pages.there) {
        (void)snprintf(kv, sizeof kv, "%s held, %s with full attention", viz_bytes_text(a, r->pages.used_bytes), viz_bytes_text(b, r->pages.formula_dense));
        bar_row(in, y, "KV", r->pages.formula_dense ? (double)r->pages.used_bytes / (double)r->pages.formula_dense : (double)NAN, VIZ_BAR, kv);
        y++;
    }
    if (y < in.h) strip(app, in, y, tui_output_focused(app));
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    const bool two = both(app) && !viz_rect_empty(p[TUI_RUN_OUT_B]);
    const tui_run *in_focus = tui_output_focused(app);
    if (!viz_rect_empty(p[TUI_RUN_PROMPT])) draw_prompt(app, c, p[TUI_RUN_PROMPT], focus == TUI_RUN_PROMPT);
    if (!viz_rect_empty(p[TUI_RUN_OUT])) {
        const tui_run *r = two ? &app->runs[TUI_A] : in_focus;
        tui_output_draw(app, c, p[TUI_RUN_OUT], r, r == in_focus && focus != TUI_RUN_PROMPT);
    }
    if (!viz_rect_empty(p[TUI_RUN_OUT_B])) tui_output_draw(app, c, p[TUI_RUN_OUT_B], &app->runs[TUI_B], &app->runs[TUI_B] == in_focus && focus != TUI_RUN_PROMPT);
    if (!viz_rect_empty(p[TUI_RUN_TOKEN])) draw_token(app, c, p[TUI_RUN_TOKEN], false);
    if (!viz_rect_empty(p[TUI_RUN_PROGRESS])) draw_progress(app, c, p[TUI_RUN_PROGRESS]);
}

/* --- keys ---------------------------------------------------------------------------------------------------------------------------- */

static void select_token(tui_app *app, int32_t at) {
    const tui_run *r = tui_output_focused(app);
    tui_view_state *v = vars(app);
    if (r->n_token == 0) return;
    if (at < 0) at = 0;
    v->v[V_FOLLOW_OFF] = at < r->n_token - 1 || r->state == TUI_RUN_DONE;
    if (at >= r->n_token) at = r->n_token - 1;
    v->v[V_AT] = at;
    app->cursor.query = r->n_prompt + at;
    tui_dirty(app);
}

moa_status tui_token_left(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    select_token(app, tui_output_selected(app, tui_output_focused(app)) - tui_times(a));
    return MOA_OK;
}
moa_status tui_token_right(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    select_token(app, tui_output_selected(app, tui_output_focused(app)) + tui_times(a));
    return MOA_OK;
}

/* the token under or over the one selected, as the output is wrapped now */
static moa_status by_line(tui_app *app, int dir) {
    const tui_run *r = tui_output_focused(app);
    const int w = (int)vars(app)->v[V_WIDTH];
    tui_flow f = {0};
    if (w > 0 && tui_flow_tokens(&f, r, r->n_prompt, r->n_token, true, !app->caps.utf8) && tui_flow_wrap(&f, w) && f.n_line > 0) {
        const int32_t at = tui_output_selected(app, r), line = tui_flow_line_of(&f, at);
        int32_t to = line + dir;
        if (to < 0) to = 0;
        if (to >= f.n_line) to = f.n_line - 1;
        const uint32_t begin = at > 0 ? f.ends[at - 1] : 0;
        uint32_t column = begin > f.lines[line].at ? begin - f.lines[line].at : 0;
        if (column >= f.lines[to].n) column = f.lines[to].n ? f.lines[to].n - 1 : 0;
        if (to != line) select_token(app, tui_flow_token_at(&f, f.lines[to].at + column));
    }
    tui_flow_free(&f);
    return MOA_OK;
}
moa_status tui_token_up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return by_line(app, -tui_times(a));
}
moa_status tui_token_down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return by_line(app, tui_times(a));
}
moa_status tui_token_first(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    select_token(app, 0);
    return MOA_OK;
}
moa_status tui_token_last(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    select_token(app, tui_output_focused(app)->n_token - 1);
    vars(app)->v[V_FOLLOW_OFF] = 0;
    return MOA_OK;
}

/* the next token that is hot: the divergence, or tinted above one half */
static moa_status hot(tui_app *app, int dir, moa_err *err) {
    const tui_run *r = tui_output_focused(app);
    const int tint = tint_of(app, (int)vars(app)->v[V_TINT], r);
    const int32_t from = tui_output_selected(app, r);
    for (int32_t k = 1; k <= r->n_token; k++) { /* round the end, as the search goes: after a run the cursor is on the last token */
        const int32_t i = (int32_t)(((int64_t)from + (int64_t)dir * k + r->n_token) % r->n_token);
        const double t = tint_value(app, tint, r, i);
        if (i == tui_divergence(app) || (!isnan(t) && t > 0.5)) {
            select_token(app, i);
            if (i == from) tui_say(app, TUI_INFO, "No other token stands out");
            else if ((i - from) * dir < 0) tui_say(app, TUI_INFO, dir > 0 ? "Past the end: from the first token on" : "Past the beginning: from the last token back");
            return MOA_OK;
        }
    }
    return moa_fail(err, MOA_E_FAILED, "no token stands out");
}
moa_status tui_token_hot_next(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return hot(app, 1, err);
}
moa_status tui_token_hot_previous(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return hot(app, -1, err);
}

moa_status tui_token_tint(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    tui_view_state *v = vars(app);
    v->v[V_TINT] = (v->v[V_TINT] + 1) % TINT_COUNT;
    tui_say(app, TUI_INFO, "Tokens are tinted by: %s", tint_names[v->v[V_TINT]]);
    return MOA_OK;
}

moa_status tui_token_other_run(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    const tui_slot to = is_a(app, tui_output_focused(app)) ? TUI_B : TUI_A;
    if (!app->runs[to].number) return moa_fail(err, MOA_E_FAILED, to == TUI_A ? "there is no run with full attention; R makes one" : "there is no run under the plan; r makes one");
    app->cursor.run = to;
    return MOA_OK;
}

static moa_status type_prompt(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (app->prompt.size && memchr(app->prompt.data, '\n', app->prompt.size)) return moa_fail(err, MOA_E_FAILED, "this prompt has several lines; o opens it in $EDITOR");
    if (app->prompt.size > 4000) return moa_fail(err, MOA_E_FAILED, "this prompt has %zu bytes; o opens it in $EDITOR", app->prompt.size);
    char *text = strndup(app->prompt.data ? app->prompt.data : "", app->prompt.size);
    if (!text) return moa_fail(err, MOA_E_MEMORY, "no memory for the prompt");
    const term_line_ask ask = {.kind = TERM_LINE_PROMPT, .label = "prompt> ", .initial = text};
    term_line_start(&ask);
    free(text);
    return MOA_OK;
}
static moa_status open_editor(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return tui_command_line(app, "prompt edit", err);
}

static bool search(tui_app *app, const char *needle, int dir, int *n_match) {
    const tui_run *r = tui_output_focused(app);
    const size_t n = strlen(needle);
    tui_flow f = {0};
    int32_t found = -1, count = 0;
    if (!n || !tui_flow_tokens(&f, r, r->n_prompt, r->n_token, true, !app->caps.utf8)) {
        tui_flow_free(&f);
        return false;
    }
    const int32_t at = tui_output_selected(app, r);
    int32_t first = -1, last = -1, before = -1, after = -1;
    for (const char *s = f.text.data; s && (s = memmem(s, f.text.size - (size_t)(s - f.text.data), needle, n)) != NULL; s++) {
        const int32_t token = tui_flow_token_at(&f, (uint32_t)(s - f.text.data));
        if (first < 0) first = token;
        last = token;
        if (token < at) before = token;
        if (token > at && after < 0) after = token;
        count++;
    }
    found = dir > 0 ? (after >= 0 ? after : first) : before >= 0 ? before : last;
    tui_flow_free(&f);
    *n_match = count;
    if (found < 0) return false;
    select_token(app, found);
    return true;
}

static void event(tui_app *app, int what) {
    tui_view_state *v = vars(app);
    if (what != TUI_EV_STARTED) return;
    v->v[V_FOLLOW_OFF] = 0;
    if (v->focus == TUI_RUN_PROMPT) v->focus = TUI_RUN_OUT; /* the answer is what one looks at now */
}

static const tui_command commands[] = {
    {"token left", "h Left", NULL, "the token before", NULL, NULL, TUI_CMD_COUNT, tui_token_left, NULL},
    {"token right", "l Right", NULL, "the token after", NULL, NULL, TUI_CMD_COUNT, tui_token_right, NULL},
    {"token up", "k Up", NULL, "the token in the line above", NULL, NULL, TUI_CMD_COUNT, tui_token_up, NULL},
    {"token down", "j Down", NULL, "the token in the line below", NULL, NULL, TUI_CMD_COUNT, tui_token_down, NULL},
    {"token first", "gg Home", NULL, "the first token of the output", NULL, NULL, 0, tui_token_first, NULL},
    {"token last", "G End", NULL, "the last token, and follow the output", NULL, NULL, 0, tui_token_last, NULL},
    {"prompt type", "i", NULL, "edit the prompt in one line", "prompt", NULL, 0, type_prompt, NULL},
    {"prompt file", "o", NULL, "edit the prompt in $EDITOR", "editor", NULL, 0, open_editor, NULL},
    {"hot next", "]", NULL, "the next token that stands out, or the divergence", NULL, NULL, 0, tui_token_hot_next, NULL},
    {"hot previous", "[", NULL, "the token before that stands out", NULL, NULL, 0, tui_token_hot_previous, NULL},
    {"tint", "t", NULL, "tint tokens by KL, surprise, entropy, or not", "tint", NULL, 0, tui_token_tint, NULL},
    {"other run", "v", NULL, "the cursor to the other run: A or B", "A/B", NULL, 0, tui_token_other_run, NULL},
    {0},
};

const tui_view tui_view_run = {.name = "run", .title = "Run", .key = '1', .layout = TUI_LAYOUT_RUN, .commands = commands, .draw = draw, .search = search,
                                .event = event};
