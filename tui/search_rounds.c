/* search_rounds.c -- step 5: the best plan of the front made better in rounds, by itself, in the background.
 *
 *   influence of full attention (step 2), best validated plan (step 4)
 *   round   profile under the plan      engine: TASK  -> influence of this round, and the mean with those before
 *           search within a step        a thread      -> a: least predicted loss by the one, b: by the other
 *           validate what is new        engine: TASK  -> cross-entropy on the items of step 4; the better of them is profiled next
 *
 * What is added up, searched and decided is plans/rounds.h, as in `moascope refine`. Candidates stand behind the front's plans, "round 2b",
 * and are plans like these: their columns are of full attention's influence, by the measure set; what their round's predicts, the log says. C-c keeps the rounds that are done; the same step goes on from them
 * as long as the front is the same. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tui/internal.h"
#include "tui/search.h"

static const double FIRST_STEP = 0.25; /* as refine's */

void tui_rounds_close(tui_rounds **out) {
    tui_rounds *r = *out;
    if (!r) return;
    moa_losses_close(&r->now);
    moa_losses_close(&r->sum);
    free(r);
    *out = NULL;
}

/* cost of a round's parts in passes over tokens; a profiled token is about three of prefill */
double tui_rounds_share(const tui_planner *p, double part) {
    const tui_rounds *r = p->rounds;
    double profile = 0;
    const double validate = 3.0 * p->valid_at * p->valid_items;
    for (int i = 0; i < p->n_length; i++) profile += 3.2 * p->lengths[i] * p->n_item;
    const double done = r->phase == TUI_ROUND_PROFILE ? part * profile : r->phase == TUI_ROUND_SEARCH ? profile : profile + part * validate;
    return (r->round - r->first + done / (profile + validate)) / (r->last - r->first + 1);
}

static void tell(tui_app *app, const char *what) {
    tui_planner *p = app->planner;
    (void)snprintf(p->steps[TUI_STEP_ROUNDS].text, sizeof p->steps[0].text, "round %d of %d: %s", p->rounds->round, p->rounds->last, what);
    p->steps[TUI_STEP_ROUNDS].share = tui_rounds_share(p, 0);
    tui_dirty(app);
}

/* --- a round -------------------------------------------------------------------------------------------------------------------- */

static void end(tui_app *app, tui_step_state state, const char *text) {
    tui_planner *p = app->planner;
    if (state == TUI_STEP_FAILED) {
        (void)snprintf(p->steps[TUI_STEP_ROUNDS].text, sizeof p->steps[0].text, "%.90s", text);
        tui_say(app, TUI_BAD, "%s", text);
    } else {
        const tui_found *best = &p->found[p->best];
        (void)snprintf(p->steps[TUI_STEP_ROUNDS].text, sizeof p->steps[0].text, "%s: %s, %.3f", text, best->name, best->valid);
        tui_say(app, state == TUI_STEP_DONE ? TUI_GOOD : TUI_INFO, "Rounds: %s. Best: %s, cross-entropy %.3f on held-out items of %d tokens (uniform %.3f, full %.3f)", text,
                best->name, best->valid, p->valid_at, p->found[p->n_found].valid, p->found[p->n_found + 1].valid);
    }
    if (state == TUI_STEP_PART && p->rounds->n_sum <= 1) state = TUI_STEP_TODO; /* nothing of a round is there */
    if (state != TUI_STEP_FAILED && !isnan(p->found[p->best].predicted) && p->steps[TUI_STEP_TRY].state == TUI_STEP_DONE) p->steps[TUI_STEP_TRY].state = TUI_STEP_OLD;
    tui_planner_end(app, state);
}

static void search(tui_app *app);

static void begin_round(tui_app *app) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds;
    moa_err err = {0};
    moa_msg_task task = {.kind = MOA_WIRE_PROFILE, .lengths = {p->lengths, (uint32_t)p->n_length}, .n_item = p->n_item, .seed = p->seed, .item_kinds = p->kinds,
                         .loss = p->margin ? MOA_WIRE_MARGIN : MOA_WIRE_CROSS_ENTROPY};
    const moa_plan *at = p->found[r->at].plan;
    r->phase = TUI_ROUND_PROFILE;
    r->n_in = 0;
    r->n_new = 0;
    r->from = p->n_found;
    if (r->now_of == r->at) { /* nothing new was found near it, or it was stopped: its influence is known */
        search(app);
        return;
    }
    tell(app, "profile");
    if (tui_planner_task(app, &task, &at, 1, &err) != MOA_OK) end(app, TUI_STEP_FAILED, err.text);
}

void tui_rounds_influence(tui_app *app, const tui_influence *f) {
    tui_rounds *r = app->planner->rounds;
    for (int32_t i = 0; i < r->now->n_length; i++) {
        if (r->now->length[i] != f->n_tok) continue;
        const size_t n = (size_t)f->n_layer * (size_t)f->n_head * ((size_t)f->nb + 1);
        for (size_t k = 0; k < n; k++) r->now->curve[i][k] = (double)f->joint[k];
        moa_losses_rebase(r->now, i);
        r->n_in++;
    }
}

static void search(tui_app *app) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds;
    moa_err err = {0};
    const moa_rounds_aim aim = moa_rounds_aim_from(&r->way, moa_rounds_density(&r->way, p->found[r->at].plan));
    tui_solve_near ask = {.around = p->found[p->best].plan, .density = aim.density, .step = r->way.step};
    if (r->now_of != r->at) {
        moa_rounds_add(r->sum, r->now);
        r->n_sum++;
        r->now_of = r->at;
    }
    r->there = aim.there;
    r->phase = TUI_ROUND_SEARCH;
    tell(app, "search");
    moa_status s = moa_rounds_losses(r->now, 1, r->extend, r->way.n_extend, &ask.losses[0], &err);
    ask.n = ask.losses[0] != NULL;
    if (s == MOA_OK) s = moa_rounds_losses(r->sum, 1.0 / r->n_sum, r->extend, r->way.n_extend, &ask.losses[1], &err);
    ask.n += ask.losses[1] != NULL;
    if (s == MOA_OK) s = tui_solver_near(app, &ask, &err);
    else
        for (int i = 0; i < 2; i++) moa_losses_close(&ask.losses[i]);
    if (s != MOA_OK) end(app, TUI_STEP_FAILED, err.text);
}

/* after a round: the next one, or it is over */
static void go_on(tui_app *app, bool better) {
    tui_rounds *r = app->planner->rounds;
    const bool more = moa_rounds_next(&r->way, r->there, better), room = app->planner->n_found + 2 <= TUI_FIND_PLANS;
    if (!more) end(app, TUI_STEP_DONE, "no better plan is near");
    else if (r->round == r->last || !room) end(app, TUI_STEP_DONE, room ? "done" : "the list of plans is full");
    else {
        r->round++;
        begin_round(app);
    }
}

static void validate(tui_app *app) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds;
    moa_err err = {0};
    const moa_plan *plans[2] = {NULL};
    moa_msg_task task = {.kind = MOA_WIRE_VALIDATE, .lengths = {&p->valid_at, 1}, .n_item = p->valid_items, .seed = p->seed + 1000, .item_kinds = p->kinds};
    for (int i = 0; i < r->n_new; i++) plans[i] = p->found[r->from + i].plan;
    r->phase = TUI_ROUND_VALIDATE;
    tell(app, "validate");
    if (tui_planner_task(app, &task, plans, r->n_new, &err) != MOA_OK) end(app, TUI_STEP_FAILED, err.text);
}

static bool is_new(const tui_planner *p, const moa_plan *plan) {
    for (int i = 0; i < p->n_found; i++)
        if (moa_plan_equal(p->found[i].plan, plan)) return false;
    return true;
}

void tui_rounds_solved(tui_app *app, moa_status s, const char *text, moa_found *found, int n) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds;
    const bool ours = p->running == TUI_STEP_ROUNDS && r && r->phase == TUI_ROUND_SEARCH;
    for (int i = 0; i < n; i++) {
        tui_found f = {.plan = found[i].plan, .gap = found[i].gap, .valid = (double)NAN, .predicted = found[i].mean};
        found[i].plan = NULL;
        if (ours) (void)snprintf(f.name, sizeof f.name, r->round < 10 ? "round %d%c" : "round%d%c", r->round, i == 0 ? 'a' : 'b');
        if (s == MOA_OK && ours && is_new(p, f.plan) && tui_planner_add(app, &f)) r->n_new++;
        else moa_plan_close(&f.plan);
    }
    if (!ours) return;
    if (s == MOA_E_CANCELLED) end(app, TUI_STEP_PART, "stopped");
    else if (s != MOA_OK) end(app, TUI_STEP_FAILED, text);
    else if (r->n_new == 0) go_on(app, false); /* what was found is known */
    else validate(app);
}

/* --- what the engine's tasks come to ------------------------------------------------------------------------------------------------- */

static void profiled(tui_app *app, bool whole) {
    const tui_rounds *r = app->planner->rounds;
    if (!whole) end(app, TUI_STEP_PART, "stopped");
    else if (r->n_in != r->now->n_length) end(app, TUI_STEP_FAILED, "the engine did not send the influence of every length");
    else search(app);
}

static void judged(tui_app *app, bool whole) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds;
    char list[96] = "", t[24];
    int next = -1;
    const int best = p->best;
    for (int i = r->from; i < r->from + r->n_new; i++) {
        tui_found *f = &p->found[i];
        const size_t at = strlen(list);
        if (!whole) f->valid = (double)NAN; /* of other items than those it would be compared with */
        if (isnan(f->valid)) continue;
        (void)snprintf(list + at, sizeof list - at, "%s%d%c %.3f (predicted %s)", at ? ", " : "", r->round, f->name[strlen(f->name) - 1], f->valid, tui_loss_text(t, f->predicted));
        if (next < 0 || f->valid < p->found[next].valid) next = i;
        if (isnan(p->found[p->best].valid) || f->valid < p->found[p->best].valid) p->best = p->selected = i;
    }
    if (!whole) {
        end(app, TUI_STEP_PART, "stopped");
        return;
    }
    if (next >= 0) r->at = next; /* also where it is worse: its influence goes into the mean */
    tui_say(app, p->best != best ? TUI_GOOD : TUI_INFO, "Round %d of %d: %s; best %s, %.3f", r->round, r->last, *list ? list : "nothing judged", p->found[p->best].name,
            p->found[p->best].valid);
    go_on(app, p->best != best);
}

void tui_rounds_result(tui_app *app, const moa_msg_result *m) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds;
    for (int i = 0; r->phase == TUI_ROUND_VALIDATE && i < r->n_new; i++)
        p->found[r->from + i].valid = isfinite(m->loss.data[i]) ? m->loss.data[i] : (double)NAN;
    tui_dirty(app);
    if (m->state == MOA_WIRE_GOES_ON) return;
    tui_planner_task_over(app);
    if (r->phase == TUI_ROUND_PROFILE) profiled(app, m->state == MOA_WIRE_FINISHED);
    else judged(app, m->state == MOA_WIRE_FINISHED);
}

/* --- the start --------------------------------------------------------------------------------------------------------------------------- */

/* full attention's influence is the first of the mean */
static moa_status first_influence(tui_app *app, tui_rounds *r, moa_err *err) {
    const tui_planner *p = app->planner;
    moa_status s = MOA_OK;
    for (int i = 0; i < p->n_influence; i++) {
        r->lengths[i] = p->influence[i]->n_tok;
        if (i >= p->n_length || p->lengths[i] != r->lengths[i] || !p->influence[i]->joint)
            return moa_fail(err, MOA_E_FAILED, "rounds need the joint influence at the lengths set: step 2 again");
    }
    if (p->n_influence != p->n_length) return moa_fail(err, MOA_E_FAILED, "rounds need the influence at all %d lengths: step 2 again", p->n_length);
    MOA_TRY(moa_losses_open(&r->now, app->model.n_layer, app->model.n_head, app->model.n_head_kv, r->lengths, p->n_influence, err));
    MOA_TRY(moa_losses_open(&r->sum, app->model.n_layer, app->model.n_head, app->model.n_head_kv, r->lengths, p->n_influence, err));
    for (int i = 0; i < p->n_influence; i++) tui_rounds_influence(app, p->influence[i]);
    moa_rounds_add(r->sum, r->now);
    r->n_sum = 1;
out:
    return s;
}

static moa_status rounds_open(tui_app *app, moa_err *err) {
    tui_planner *p = app->planner;
    tui_rounds *r = p->rounds = calloc(1, sizeof *r);
    if (!r) return moa_fail(err, MOA_E_MEMORY, "no memory for the rounds");
    const moa_status s = first_influence(app, r, err);
    if (s != MOA_OK) {
        tui_rounds_close(&p->rounds);
        return s;
    }
    r->way = (moa_rounds){.density = p->density, .step = FIRST_STEP, .step_first = FIRST_STEP, .length = r->lengths, .n_length = p->n_influence, .extend = r->extend,
                          .n_extend = tui_planner_extend(p, r->extend), .n_head_kv = app->model.n_head_kv};
    r->at = p->best;
    r->now_of = -1;
    return MOA_OK;
}

moa_status tui_rounds_start(tui_app *app, moa_err *err) {
    tui_planner *p = app->planner;
    if (p->best < 0 || p->steps[TUI_STEP_VALIDATE].state != TUI_STEP_DONE) return moa_fail(err, MOA_E_FAILED, "rounds go on from a validated plan: step 4 first");
    if (p->steps[TUI_STEP_SEARCH].state == TUI_STEP_OLD || p->steps[TUI_STEP_PROFILE].state == TUI_STEP_OLD)
        return moa_fail(err, MOA_E_FAILED, "the plans are of other settings: search again first");
    if (p->n_found + 2 > TUI_FIND_PLANS) return moa_fail(err, MOA_E_FAILED, "the list of %d plans is full: search again first", TUI_FIND_PLANS);
    if (!p->rounds) {
        const moa_status s = rounds_open(app, err);
        if (s != MOA_OK) return s;
    }
    tui_rounds *r = p->rounds;
    if (r->way.step < FIRST_STEP / 16) r->way.step = FIRST_STEP / 4; /* it had ended: once more, near the best */
    r->first = ++r->round;
    r->last = r->round + p->n_round - 1;
    p->running = TUI_STEP_ROUNDS;
    p->steps[TUI_STEP_ROUNDS] = (tui_step_info){.state = TUI_STEP_RUNS, .share = 0, .started_at = app->now};
    begin_round(app); /* what goes wrong in it ends the step */
    return MOA_OK;
}
