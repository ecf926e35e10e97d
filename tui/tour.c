/* tour.c -- `:tour`: what a span, the sink, a window, a plan and the KV memory are, on the user's own model.
 *
 *   Enter next, Backspace back, Esc leaves; every other key does what it always does
 *
 * A step goes to the screen that shows the thing, puts the cursor on a head of this model that shows it best by what was measured,
 * and says in a few lines what is seen there; figures in the text are of that head, under the plan as it is now, so that pressing `<`
 * changes picture and sentence together. The text stands below the screen, which is drawn smaller: nothing is covered. What was edited
 * on the way are edits like any others: u takes them back. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tui/internal.h"

enum { STEP_SPAN = 1, STEP_SINK, STEP_WINDOW, STEP_PLAN, STEP_MEMORY, STEP_LAST = STEP_MEMORY, TOUR_H = 8, ROWS_MIN = 16 };

static const struct {
    const char *title, *view;
    int focus;
} steps[] = {[STEP_SPAN] = {"A span", "heads", TUI_HEADS_GRID},   [STEP_SINK] = {"The sink", "map", TUI_MAP_MAP},
             [STEP_WINDOW] = {"The window", "map", TUI_MAP_MAP},  [STEP_PLAN] = {"A plan", "plan", TUI_PLAN_TABLE},
             [STEP_MEMORY] = {"KV memory", "memory", TUI_MEMORY_TOTAL}};

/* read when there is no prompt; what is said early is asked for at the end, so that some heads look far back */
static const char sample[] =
    "The harbour master keeps a book of small things. The lamp of the north pier is lit by Anna Berg, who hangs its key behind the blue "
    "barometer. Bread comes on Tuesdays, coal on Fridays, letters when the wind allows. On the third of March a schooner lay at the quay "
    "with a broken mast, and her captain played draughts with the cook until the carpenter came. The carpenter asked for eleven planks "
    "of larch and got nine of spruce. Nobody complained, since the beer was good. On the fourth it rained, and the clerk copied all the "
    "lists of the old year: ropes, tar, sailcloth, lamp oil, two bells, one of them cracked. On the fifth the schooner left with the tide. "
    "The dog of the pilot swam after her as far as the buoy and came back with a glove. In the evening the lamp went out, and somebody had "
    "to fetch the key in the dark.\nQuestion: Where does Anna Berg hang the key of the north pier's lamp?\nAnswer: Behind the";

int tui_tour_rows(const tui_app *app) { return app->tour && app->canvas && app->canvas->rows >= ROWS_MIN + TOUR_H && app->canvas->cols >= 60 ? TOUR_H : 0; }

/* there are statistics of a run to point at */
static bool measured(const tui_app *app) {
    const tui_run *t = tui_truth(app);
    return t && t->stats.there && app->plan.now && t->n_layer == app->plan.now->n_layer && t->n_head == app->plan.now->n_head;
}

/* the head that shows the step best: most on the sink; nearest, farthest by the span for 95 % */
static bool find_head(tui_app *app, bool sink, bool far, int32_t *layer, int32_t *head) {
    double best = -1;
    const tui_run *t = tui_truth(app);
    tui_head_figures f;
    if (!measured(app)) return false;
    for (int32_t l = 0; l < t->n_layer; l++)
        for (int32_t h = 0; h < t->n_head; h++) {
            double score = tui_run_stat(t, t->stats.sink, l, h);
            if (isnan(score)) continue;
            if (!sink) {
                tui_head_describe(app, l, h, &f);
                if (f.span95 == 0) continue;
                score = far ? f.span95 : (1 - score) * 1e6 / f.span95; /* near, and not only to the sink */
            }
            if (score > best) best = score, *layer = l, *head = h;
        }
    return best >= 0;
}

static void enter_step(tui_app *app, int step) {
    const tui_view *v = tui_view_find(steps[step].view);
    app->tour = step;
    app->tour_placed = false;
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i) == v) tui_view_switch(app, i);
    tui_view_vars(app, v)->focus = steps[step].focus;
    if (step == STEP_SPAN) (void)tui_command_line(app, "metric need95", NULL);
    app->resized = true; /* the view asks for what it needs at this size */
    tui_dirty(app);
}

void tui_tour_turn(tui_app *app) {
    int32_t layer = 0, head = 0;
    if (app->tour_placed || !measured(app)) return;
    app->tour_placed = app->slot_running < 0; /* until then better ones may come */
    if (app->tour <= STEP_WINDOW && find_head(app, app->tour == STEP_SINK, false, &layer, &head)) tui_cursor_move(app, layer, head);
}

moa_status tui_tour_start(tui_app *app, moa_err *err) {
    if (!app->model.loaded) return moa_fail(err, MOA_E_FAILED, "the tour is on a model of yours: load one first");
    if (app->canvas->rows < ROWS_MIN + TOUR_H || app->canvas->cols < 60)
        return moa_fail(err, MOA_E_FAILED, "the tour needs a screen of 60x%d, this one has %dx%d", ROWS_MIN + TOUR_H, app->canvas->cols, app->canvas->rows);
    if (!measured(app) && app->slot_running < 0) {
        if (app->prompt.size == 0) {
            moa_buf_str(&app->prompt, sample);
            tui_prompt_changed(app, "a text of the tour");
        }
        const moa_status s = tui_run_start(app, TUI_A, err);
        if (s != MOA_OK) return s;
    }
    enter_step(app, STEP_SPAN);
    return MOA_OK;
}

static void leave(tui_app *app) {
    app->tour = 0;
    app->resized = true;
    tui_say(app, TUI_INFO, "The tour is over; 8 then A searches a plan of half the memory, r runs it, 5 compares. u takes edits back");
}

bool tui_tour_key(tui_app *app, int key) {
    if (key == TUI_KEY_ESC) leave(app);
    else if (tui_tour_rows(app) == 0) return false; /* it is not to be seen */
    else if (key == TUI_KEY_ENTER && app->tour == STEP_LAST) leave(app);
    else if (key == TUI_KEY_ENTER) enter_step(app, app->tour + 1);
    else if (key == TUI_KEY_BACKSPACE && app->tour > STEP_SPAN) enter_step(app, app->tour - 1);
    else return key == TUI_KEY_BACKSPACE;
    return true;
}

/* --- the texts -------------------------------------------------------------------------------------------------------------- */

static void span_text(tui_app *app, const tui_head_figures *f, char *out, size_t n) {
    int32_t l = 0, h = 0;
    tui_head_figures far;
    char need[24] = "-", b[24];
    (void)snprintf(out, n, "Each cell is one of %d attention heads. ", app->plan.now->n_layer * app->plan.now->n_head);
    size_t at = strlen(out);
    if (!find_head(app, false, true, &l, &h)) {
        (void)snprintf(out + at, n - at, "The model reads a text with full attention now; what it looked at is then measured.");
        return;
    }
    tui_head_describe(app, l, h, &far);
    if (f->span95) (void)viz_count_text(need, f->span95);
    (void)snprintf(out + at, n - at,
                   "Its colour says how many tokens back it has to see to keep 95 %% of its attention: %s for L%d H%d, where the cursor is, but %s for L%d H%d. "
                   "Heads that look near need no more than a short memory. How far a head may see is its span; now that is %d of %d tokens. h j k l go to others.",
                   need, app->cursor.layer, app->cursor.head, viz_count_text(b, far.span95), l, h, f->span < tui_plan_n(app) ? f->span : tui_plan_n(app), tui_plan_n(app));
}

static void sink_text(tui_app *app, const tui_head_figures *f, char *out, size_t n) {
    const tui_run *t = tui_truth(app);
    char share[16];
    (void)f;
    (void)snprintf(out, n,
                   "A map: a row for each query, a column for each token that it may look at. L%d H%d gives %s of its attention to the first 64 tokens, whatever they "
                   "say: the narrow column at the left, under \"sink\". It is called the sink: where a head looks when it has nothing to find. Every span keeps these 64. S shows them "
                   "in the map; H and L go to the heads beside it.",
                   app->cursor.layer, app->cursor.head, viz_percent_text(share, t ? tui_run_stat(t, t->stats.sink, app->cursor.layer, app->cursor.head) : (double)NAN, 0));
}

static void window_text(tui_app *app, const tui_head_figures *f, char *out, size_t n) {
    char cover[16], need[24];
    (void)snprintf(out, n,
                   "L%d H%d looks near: the light lies along the diagonal, and 95 %% of it within %s tokens. Press < some times: the span gets 64 tokens shorter each time, "
                   "and a line shows the edge of the window; what is left of it is cut. Its span is %d now and keeps %s of what the head looks at. > widens, u takes back.",
                   app->cursor.layer, app->cursor.head, f->span95 ? viz_count_text(need, f->span95) : "-", f->span, viz_percent_text(cover, f->cover, 1));
}

static void plan_text(tui_app *app, const tui_head_figures *f, char *out, size_t n) {
    const tui_kv kv = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    char a[16], b[16];
    (void)snprintf(out, n,
                   "All spans together are a plan: a rule alpha + beta*N a head, N being prompt and answer. L%d H%d has %g %+g N, that is %d tokens at N = %d. Press = to "
                   "type another, or type :plan set uniform:0.5 and Enter to halve all of them. cover says what a head still sees, and the whole plan keeps %s, full "
                   "attention %s. W saves it; u takes back.",
                   app->cursor.layer, app->cursor.head, f->rule.alpha, f->rule.beta, f->span, tui_plan_n(app), viz_bytes_text(a, kv.plan), viz_bytes_text(b, kv.dense));
}

static void memory_text(tui_app *app, const tui_head_figures *f, char *out, size_t n) {
    const tui_kv kv = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    const int group = app->model.n_head_kv > 0 ? app->model.n_head / app->model.n_head_kv : 1;
    char a[16], b[16], c[16];
    (void)f;
    (void)snprintf(out, n,
                   "A token that some head may still look at is kept as a key and a value: %s for 64 of them in one KV group. Full attention would keep %s here, the "
                   "plan keeps %s; what no head sees again is freed. %s r runs under the plan and measures it; c then says what it changed in the answer.",
                   viz_bytes_text(a, tui_kv_page_bytes(app)), viz_bytes_text(b, kv.dense), viz_bytes_text(c, kv.plan),
                   group > 1 ? "Heads of a group share them, so its widest head decides: F widens the others for nothing." : "Every head has its own here.");
}

void tui_tour_draw(tui_app *app, viz_pane p) {
    static void (*const texts[])(tui_app *, const tui_head_figures *, char *, size_t) = {
        [STEP_SPAN] = span_text, [STEP_SINK] = sink_text, [STEP_WINDOW] = window_text, [STEP_PLAN] = plan_text, [STEP_MEMORY] = memory_text};
    char title[64], text[800] = "";
    tui_head_figures f;
    if (app->tour < STEP_SPAN || app->tour > STEP_LAST) return;
    (void)snprintf(title, sizeof title, "Tour %d of %d: %s", app->tour, STEP_LAST, steps[app->tour].title);
    viz_pane in = viz_box(p, title, app->tour == STEP_LAST ? "Enter ends  Backspace back" : "Enter next  Backspace back  Esc leaves", true);
    if (!app->plan.now) return;
    tui_head_describe(app, app->cursor.layer, app->cursor.head, &f);
    texts[app->tour](app, &f, text, sizeof text);
    (void)viz_text_wrap(in, 0, 1, in.w - 2, in.h, viz_fg(VIZ_TEXT), text);
}
