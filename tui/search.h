/* search.h -- the automatic search on the screen: settings, steps, what was measured, the plans found.
 *
 *   1 calibrate ---> 2 profile ---> 3 search ---> 4 validate ---> 5 rounds     6 try: passkey under the best plan, uniform, full
 *     engine: TASK     engine         a thread      engine          both          engine
 *        |               |            of ours                       (search_rounds.c)
 *        +- items        +- influence (kept here: maps, curves)  -> predicted loss of any plan, live while it is edited
 *     stay there                      +- plans by Pareto front -> + cross-entropy -> the best one
 *
 * The screen never waits: the engine's messages and the solver's pipe change this state. A step that is stopped keeps what it has; a
 * setting that changes makes the steps behind it old, not gone. */
#ifndef TUI_SEARCH_H
#define TUI_SEARCH_H

#include "plans/influence.h"
#include "plans/rounds.h"
#include "tui/app.h"

enum { TUI_FIND_LENGTHS = 8, TUI_FIND_PLANS = 32, TUI_ROUNDS_MAX = 12 };

#define TUI_STEP_MAP(X)                                                                                      \
    X(CALIBRATE, "calibrate", "Calibrate") X(PROFILE, "profile", "Profile") X(SEARCH, "search", "Search")      \
    X(VALIDATE, "validate", "Validate") X(ROUNDS, "rounds", "Rounds") X(TRY, "try", "Try")
typedef enum tui_step {
#define X(NAME, name, title) TUI_STEP_##NAME,
    TUI_STEP_MAP(X)
#undef X
        TUI_STEP_COUNT
} tui_step;
const char *tui_step_name(tui_step s);  /* "calibrate" */
const char *tui_step_title(tui_step s); /* "Calibrate" */

typedef enum tui_step_state {
    TUI_STEP_TODO,
    TUI_STEP_RUNS,
    TUI_STEP_DONE,
    TUI_STEP_PART, /* stopped; what it has is kept and used */
    TUI_STEP_OLD,  /* done, with other settings than the present ones */
    TUI_STEP_FAILED,
} tui_step_state;

typedef struct tui_step_info {
    tui_step_state state;
    double share;               /* done, 0..1; NAN: unknown */
    double started_at, seconds; /* monotonic; of the step so far or in all */
    char text[96];              /* what came of it, one line, clean */
} tui_step_info;

/* row of the settings, its step, name, unit or meaning */
#define TUI_SETTING_MAP(X)                                                                                   \
    X(LENGTHS, CALIBRATE, "lengths") X(ITEMS, CALIBRATE, "items") X(KINDS, CALIBRATE, "kinds") X(LOSS, PROFILE, "loss") \
    X(MEASURE, SEARCH, "measure") X(DENSITY, SEARCH, "density") X(PER, SEARCH, "rules per")                    \
    X(RULES, SEARCH, "rules/layer") X(VALID_AT, VALIDATE, "length") X(VALID_ITEMS, VALIDATE, "items") X(ROUNDS, ROUNDS, "at most") \
    X(TRY_AT, TRY, "passkey at") X(TRY_ITEMS, TRY, "items")
typedef enum tui_setting {
#define X(NAME, step, name) TUI_SET_##NAME,
    TUI_SETTING_MAP(X)
#undef X
        TUI_SETTING_COUNT
} tui_setting;
tui_step tui_setting_step(tui_setting s);
const char *tui_setting_name(tui_setting s); /* as shown; two steps have "items" */

/* influence of every head at one length (profile.h). abs, sum NULL: the maps are not there */
typedef struct tui_influence {
    int32_t n_tok, nb, n_layer, n_head, n_item;
    uint64_t n_supervised, n_clamped;
    double loss;       /* of the dense model, nats a token; NAN: unknown */
    float *abs, *sum;  /* (n_layer, n_head, nb, nb), owned */
    float *joint;      /* (n_layer, n_head, nb + 1), owned; NULL: the file has maps alone */
    uint8_t *have;     /* (n_layer, n_head) while it comes in, owned */
    int32_t n_have;
    /* loss change, nats, when a head's rows keep the sink and the newest w blocks: (n_layer, n_head, nb + 1), entry 0 unused; owned;
     * NULL: this measure is not there */
    float *curve[MOA_MEASURE_COUNT];
} tui_influence;

typedef struct tui_found {
    moa_plan *plan;                 /* owned */
    char name[24];                  /* "plan 3", "uniform", "full" */
    double density[TUI_FIND_LENGTHS]; /* KV kept, by length of the search */
    double loss[TUI_FIND_LENGTHS];    /* predicted change, nats */
    double gap;                     /* certificate of the solver, share; NAN: none */
    double valid;                   /* cross-entropy on held-out items, nats; NAN: not yet */
    int32_t n_try, n_right;         /* passkey */
    double predicted;               /* by its round's influence, mean over the lengths, nats; NAN: not of a round */
} tui_found;

/* rounds: the way goes on from the best plan of the front, whose influence, of full attention, is the first of the mean */
typedef enum tui_round_phase { TUI_ROUND_PROFILE, TUI_ROUND_SEARCH, TUI_ROUND_VALIDATE } tui_round_phase;
typedef struct tui_rounds {
    moa_rounds way; /* points to the following */
    int32_t lengths[TUI_FIND_LENGTHS], extend[2];
    moa_losses *now, *sum; /* of this round; of n_sum measurements, full attention's too; owned */
    int32_t n_sum, n_in;   /* n_in: lengths of this round that have come */
    int32_t round, first, last; /* under way, and of this start */
    tui_round_phase phase;
    int at, now_of;  /* found[at] is what is profiled; now is of found[now_of], -1: of none */
    int from, n_new; /* found[from ..) are of this round */
    bool there;
} tui_rounds;

typedef struct tui_solver tui_solver;   /* search_solve.c */
typedef struct tui_reading tui_reading; /* search_file.c */

typedef struct tui_planner {
    /* settings */
    int32_t lengths[TUI_FIND_LENGTHS];
    int n_length;
    int32_t n_item, n_gen;
    uint32_t kinds; /* bits of moa_calib_kind */
    uint64_t seed;
    moa_measure measure;
    double density; /* share of KV kept, at every length */
    bool per_head;  /* a rule for every query head, else for every KV group */
    int32_t max_rules; /* a layer; 0: any */
    int32_t valid_at, valid_items, try_at, try_items;
    bool margin;      /* influence is on the margin of the answers, else on their cross-entropy (profile.h) */
    int32_t n_round;  /* at most, 1 .. TUI_ROUNDS_MAX */
    char docs[4096]; /* documents to calibrate on, of the engine's machine: one path a line; "" : none. Raw bytes */
    uint8_t *locked; /* (n_layer, n_head) of the model, owned; NULL: none */

    tui_step_info steps[TUI_STEP_COUNT];
    int running;  /* tui_step, -1: none */
    int run_to;   /* steps go on by themselves up to this one; -1: no */
    uint32_t job; /* of the engine; 0: none */
    int32_t valid_plans, try_plans[3]; /* found[0..valid_plans) are being validated; tried ones, index in found, -1 */
    double rate; /* tokens a second of the dense model while calibrating; 0: unknown */

    tui_influence *influence[TUI_FIND_LENGTHS]; /* (n_influence), by length, owned */
    int n_influence;
    tui_influence *incoming;   /* owned; NULL: none */
    char source[96];           /* of the influence: "measured", or a file's name, clean */
    tui_found found[TUI_FIND_PLANS + 2]; /* (n_found) Pareto plans by loss at the longest length; then uniform, full (n_reference) */
    int n_found, n_reference;
    int selected, best; /* best: -1: none */
    int32_t found_lengths[TUI_FIND_LENGTHS]; /* lengths the figures of `found` are of */
    int n_found_length;
    tui_rounds *rounds; /* NULL: none began with these plans; owned */
    tui_solver *solver; /* NULL: not at work */
    double solver_best, solver_bound; /* of the solve under way; NAN */
    int solver_done, solver_total;    /* solves of the front */
    tui_reading *reading; /* NULL: no file is being read */
    double reading_share; /* done of it, 0..1; NAN: unknown */
} tui_planner;

moa_status tui_planner_open(tui_planner **out, moa_err *err);
void tui_planner_close(tui_planner **p);
void tui_planner_fit(tui_app *app, bool same); /* a model was loaded; not the same one: all that was found goes */
void tui_planner_forget_engine(tui_app *app, const char *why); /* it is gone, or another model is in it: its items are no more */
bool tui_planner_busy(const tui_app *app);    /* a step runs */
bool tui_planner_engine(const tui_app *app);  /* and it is the engine that runs it */

/* Starts one step. E_FAILED says what is missing or busy. */
moa_status tui_planner_start(tui_app *app, tui_step step, moa_err *err);
moa_status tui_planner_next(tui_app *app, moa_err *err); /* the first that is not done, at most TRY */
moa_status tui_planner_all(tui_app *app, moa_err *err);  /* all that are not done, to validate */
moa_status tui_planner_rounds(tui_app *app, moa_err *err); /* all that are not done, then rounds; when they are done, more */
void tui_planner_lock(tui_app *app, const uint8_t *mask, bool lock); /* mask (n_layer, n_head) of the plan */
void tui_planner_stop(tui_app *app);
double tui_planner_left(const tui_app *app);  /* seconds the running step will take yet; NAN: unknown */
double tui_planner_whole(const tui_app *app); /* seconds of all steps up to validate, from the speed of the first items; NAN */

void tui_setting_text(const tui_planner *p, tui_setting s, char *out, size_t n);
moa_status tui_setting_set(tui_app *app, tui_setting s, const char *text, moa_err *err);
void tui_setting_turn(tui_app *app, tui_setting s, int by); /* to the next sensible value */
moa_status tui_planner_docs(tui_app *app, char *const *paths, int n, moa_err *err); /* n 0: none */
bool tui_setting_find(const char *name, tui_setting *out); /* "density", "validate items" ... */
void tui_setting_key(tui_setting s, char *out, size_t n);  /* what tui_setting_find takes */

/* engine to planner (runs.c): false: not its job */
bool tui_planner_progress(tui_app *app, uint32_t job, const moa_msg_progress *m);
bool tui_planner_result(tui_app *app, uint32_t job, const moa_msg_result *m);
bool tui_planner_influence(tui_app *app, uint32_t job, const moa_msg_influence *m);
bool tui_planner_failed(tui_app *app, uint32_t job, const char *text);

/* --- rounds (search_rounds.c) --------------------------------------------------------------------------------------------------- */

moa_status tui_rounds_start(tui_app *app, moa_err *err);
void tui_rounds_influence(tui_app *app, const tui_influence *f); /* of one length, under the plan */
/* the solver is done: found (n) are taken over; n 0: s and text say why */
void tui_rounds_solved(tui_app *app, moa_status s, const char *text, moa_found *found, int n);
void tui_rounds_result(tui_app *app, const moa_msg_result *m); /* of its task, checked */
double tui_rounds_share(const tui_planner *p, double part);    /* done, when the phase is done to `part` */
void tui_rounds_close(tui_rounds **r);

/* search.c, for it: the step under way is over; a task of the engine, whose job and state are noted, began; one ended, the step goes on */
void tui_planner_end(tui_app *app, tui_step_state state);
moa_status tui_planner_task(tui_app *app, moa_msg_task *task, const moa_plan *const *plans, int n_plan, moa_err *err);
void tui_planner_task_over(tui_app *app);
int tui_planner_extend(const tui_planner *p, int32_t out[2]); /* lengths beyond the profiled ones at which the density holds */
bool tui_planner_add(tui_app *app, const tui_found *f);       /* behind the other plans; false: there is no room */

/* --- influence ------------------------------------------------------------------------------------------------------------ */

const tui_influence *tui_influence_at(const tui_app *app, int i); /* i-th length; NULL */
/* the length that N is judged by: the longest not above n, else the shortest; -1: no influence */
int tui_influence_for(const tui_app *app, int32_t n);
/* loss change of a head with this span, by the planner's measure; NAN: unknown */
double tui_influence_loss(const tui_app *app, int i, int32_t layer, int32_t head, int32_t span);
/* of a whole plan */
double tui_influence_plan(const tui_app *app, int i, const moa_plan *plan);
void tui_influence_close(tui_influence **f);
moa_status tui_influence_open(tui_influence **out, int32_t n_layer, int32_t n_head, int32_t n_tok, bool maps, moa_err *err);
bool tui_influence_curves(tui_influence *f); /* makes them; false: no memory */
/* takes f over, replacing one of the same length */
void tui_influence_put(tui_planner *p, tui_influence *f);
/* search_file.c: a file's influence, by a thread. It takes the place of what is there when it has come whole, and that, or why not, is said;
 * until then nothing changes. E_FAILED: not now. */
moa_status tui_influence_load(tui_app *app, const char *path, moa_err *err);
bool tui_influence_reading(const tui_app *app);
void tui_influence_cancel(tui_app *app);
int tui_influence_fd(const tui_app *app);  /* to poll; -1: none */
void tui_influence_read(tui_app *app);     /* takes what it reports */
void tui_reading_close(tui_reading **r);   /* it ends by itself, soon, and nobody waits */
moa_status tui_influence_save(const tui_app *app, const char *path, moa_err *err);

/* the influence map of the head under the cursor, in a frame (search_map.c) */
void tui_influence_draw(tui_app *app, viz_canvas *c, viz_rect rect, bool focus, bool is_signed);

/* --- the solver's thread ------------------------------------------------------------------------------------------------------ */

moa_status tui_solver_start(tui_app *app, moa_err *err);
/* One plan of the least predicted loss for each of losses (n at most 2, taken over also on failure), within step of around. */
typedef struct tui_solve_near {
    moa_losses *losses[2];
    int n;
    const moa_plan *around;
    double density, step;
} tui_solve_near;
moa_status tui_solver_near(tui_app *app, const tui_solve_near *ask, moa_err *err);
void tui_solver_cancel(tui_planner *p);
int tui_solver_fd(const tui_app *app);   /* to poll; -1: none */
void tui_solver_read(tui_app *app);      /* takes what it reports; the step ends when it has */
void tui_solver_close(tui_solver **s);   /* cancels: it ends by itself, soon, and nobody waits */
/* search_solve.c to search.c: the step is over. plans (n) are taken over, gaps (n) shares; n 0: s and text say why */
void tui_planner_solved(tui_app *app, moa_status s, const char *text, moa_plan **plans, const double *gaps, int n);
char *tui_loss_text(char out[24], double nats); /* "+0.0123", "+3e-05", "-" */

#endif
