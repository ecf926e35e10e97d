/* app.h -- the state of the workbench, and what may be done with it.
 *
 *   engine process <--wire--> tui_link --> tui_app <--> views (draw only)      one thread, one poll loop:
 *                                            ^            |                     tty, engine pipe, signals (self-pipe), timer
 *                                            +- commands -+
 *
 * The screen never waits for the engine: messages change the state, the state is drawn. The engine may die at any time: everything here
 * stays, `link.state` says so, and it can be started again.
 *
 * One cursor (layer, head, query, key) for all views; one plan with undo; two runs: A, full attention, and B, under the plan.
 * A figure not measured is NAN or a NULL array, never 0. Text from models, prompts, files is moa_clean or drawn through it. */
#ifndef TUI_APP_H
#define TUI_APP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/buf.h"
#include "core/base/status.h"
#include "core/base/text.h"
#include "core/engine/backend.h"
#include "core/engine/sampler.h"
#include "core/engine/spans.h"
#include "core/engine/wire.h"
#include "plans/plan.h"
#include "tui/command.h"
#include "tui/layout.h"
#include "tui/view.h"
#include "viz/canvas.h"
#include "viz/heat.h"

/* --- the engine process -------------------------------------------------------------------------------------------------- */

typedef enum tui_link_state {
    TUI_LINK_OFF,     /* none was started */
    TUI_LINK_HELLO,   /* started, no welcome yet */
    TUI_LINK_IDLE,    /* there, no model */
    TUI_LINK_LOADING,
    TUI_LINK_READY,   /* a model is loaded */
    TUI_LINK_BUSY,    /* a run */
    TUI_LINK_DEAD,    /* it ended; why says how */
} tui_link_state;

typedef struct tui_link {
    tui_link_state state;
    pid_t pid;
    int fd_in, fd_out; /* from and to the engine; non-blocking; -1: closed */
    moa_buf out;       /* bytes not yet written */
    size_t out_done;
    moa_wire_reader reader;
    uint32_t job;      /* number of the job last sent */
    char why[512];     /* of TUI_LINK_DEAD, clean */
    moa_clean *devices, *no_gpu; /* of WELCOME */
    double asked_at;   /* seconds (monotonic) when the last cancel was sent, 0: none */
} tui_link;

/* --- the model ------------------------------------------------------------------------------------------------------------ */

typedef struct tui_model {
    bool loaded;
    moa_clean *name, *path, *arch, *quant, *device, *device_why; /* one line each */
    char fingerprint[65];
    bool has_chat;
    int32_t n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab, n_ctx;
    uint32_t kv_elem_bytes;
    uint64_t weight_bytes, n_param, device_total_bytes, device_free_bytes;
} tui_model;

/* --- runs ------------------------------------------------------------------------------------------------------------------ */

typedef struct tui_token {
    int32_t id, pos;
    uint32_t text_at, text_n; /* raw bytes, in tui_run.pieces */
    bool control;
    float logprob, entropy, kl; /* nats; NAN: not measured */
    int32_t n_top, top_ids[MOA_TOP_MAX];
    float top_logprob[MOA_TOP_MAX];
    uint32_t top_at[MOA_TOP_MAX], top_n[MOA_TOP_MAX]; /* raw bytes in pieces */
} tui_token;

typedef struct tui_hist {
    int32_t n_head, n_bin, bucket_tok;
    double queries[MOA_HIST_BUCKETS];
    float *total;   /* (n_head, 1 + n_bin): all buckets together; [0] sink; owned */
    float *buckets; /* (n_head, MOA_HIST_BUCKETS, 1 + n_bin), owned */
} tui_hist;

typedef struct tui_stats {
    bool there;
    int32_t n_past;
    uint64_t n_query, n_seen; /* queries the means are of; looked at */
    int32_t every;            /* of the prompt's blocks of queries one in so many */
    float *entropy, *sink, *window, *distance, *worst_cover; /* (n_layer, n_head), owned by the one block `entropy` */
    int32_t *worst_query;                                    /* (n_layer, n_head), owned */
} tui_stats;

typedef struct tui_pages {
    bool there;
    int32_t n_past, n_reserved, n_layer, n_head_kv, max_pages, lost;
    uint64_t page_bytes, used_bytes, peak_bytes, pool_bytes, formula_plan, formula_dense, formula_mha;
    uint64_t device_total_bytes, device_free_bytes, capture_bytes, workspace_bytes;
    uint8_t *held; /* (n_layer, n_head_kv, max_pages), owned */
} tui_pages;

/* Snapshots are latest-wins. A: full attention. B: under the plan. F: A's tokens forced through the plan (KL by token). */
typedef enum tui_slot { TUI_A, TUI_B, TUI_F, TUI_SLOTS } tui_slot;

typedef enum tui_run_state { TUI_RUN_EMPTY, TUI_RUN_PREFILL, TUI_RUN_DECODE, TUI_RUN_DONE, TUI_RUN_FAILED } tui_run_state;

typedef struct tui_run {
    tui_run_state state;
    int number;          /* #12; 0: none */
    uint32_t job;
    bool dense;
    bool stale;          /* the prompt, the model or the plan changed since */
    moa_rule *rules;     /* (n_layer, n_head) it ran with, owned; NULL: dense */
    uint64_t prompt_key; /* hash of prompt, chat and model: runs with equal keys may be compared */
    int32_t n_layer, n_head;
    int32_t n_prompt, n_new, n_reserved, n_gen_limit;
    int32_t *ids, *ends; /* (n_prompt); piece t = pieces[ends[t-1] .. ends[t]) ; owned */
    int32_t *spans;      /* (n_layer, n_head), owned */
    moa_buf pieces;      /* raw bytes of prompt and output tokens */
    tui_token *tokens;   /* generated ones, owned */
    int32_t n_token, cap_token;
    moa_clean *text;     /* output so far, for plain reading */
    moa_clean *note;
    uint64_t done, total; /* progress of prefill, tokens */
    double prefill_s, decode_s, ttft_s, started_at, first_token_at; /* seconds; *_at monotonic, 0: not yet */
    char stop[24];
    moa_msg_done result;  /* its `stop` field is not to be read: stop[] is; valid when state is DONE */
    tui_stats stats;
    tui_hist *hists;      /* (n_layer), owned; total NULL: not there */
    tui_pages pages;
    char failed[512];
} tui_run;

/* raw bytes of token at position pos (prompt or output), "" beyond */
const char *tui_run_piece(const tui_run *r, int32_t pos, size_t *n);
/* the same as one line of shown text (⏎ and ␣ visible when `marks`), appended */
void tui_run_piece_shown(const tui_run *r, int32_t pos, bool marks, bool ascii, moa_buf *out);
void tui_bytes_shown(const char *s, size_t n, bool ascii, moa_buf *out); /* any token's bytes, with marks */
const float *tui_run_hist(const tui_run *r, int32_t layer, int32_t head, int32_t *n_bin); /* (1 + n_bin) or NULL */
double tui_run_stat(const tui_run *r, const float *array, int32_t layer, int32_t head);   /* NAN: not there */
/* first output position at which A and B differ; -1: not both there, or no difference so far */
int32_t tui_divergence(const tui_app *app);

/* --- the map of the selected head ------------------------------------------------------------------------------------------ */

typedef struct tui_map {
    bool there, asked;
    tui_slot slot; /* the run it was made from */
    int32_t layer, head, span, measure_span, q0, q1, k0, k1, rows, cols, n_past;
    float *mass, *max; /* (rows, cols), owned */
    float *stat;       /* (rows, MOA_N_STAT), owned */
} tui_map;

/* Asks the engine for a map of the newest run (its captured q and k); ranges as in SELECT_MAP. One is on its way at most: asks in between
 * are kept, newest wins. Nothing happens without a run. */
typedef struct tui_map_ask {
    int32_t layer, head, span, measure_span, q0, q1, k0, k1, rows, cols;
    bool follow;
} tui_map_ask;
void tui_map_request(tui_app *app, const tui_map_ask *ask);
/* The same for app->row: one query, one cell a key (rows 1). It waits behind maps, and never follows. */
void tui_row_request(tui_app *app, const tui_map_ask *ask);

/* --- blame: which heads' spans cut most of what one query wanted ------------------------------------------------------------ */

/* Asked head by head from the captured q and k of the newest run, dense, measured with the plan's span of the head. */
typedef struct tui_blame {
    bool active;      /* asking now */
    tui_slot slot;    /* the run it was asked of */
    int32_t query;    /* position; -1: none was asked */
    int32_t n, next;  /* heads, and how many were answered */
    float *cut;       /* (n_layer*n_head) share of the dense mass outside the span; NAN: not answered; owned */
    uint32_t job;
} tui_blame;
moa_status tui_blame_start(tui_app *app, int32_t query, moa_err *err);
/* heads by cut, largest first: at most max of them into out (layer*n_head + head); returns how many */
int32_t tui_blame_top(const tui_app *app, int32_t *out, int32_t max);

/* --- the plan ------------------------------------------------------------------------------------------------------------ */

typedef struct tui_change { /* one step of the undo list; opaque outside plan_edit.c */
    char what[96];          /* "L14.H12 beta 0.125 -> 0.25" */
    int32_t n;
    int32_t *at;            /* (n) layer*n_head + head, owned */
    moa_rule *before, *after; /* (n), owned */
    uint8_t *marks_before, *marks_after; /* (n_layer*n_head) or NULL, owned */
} tui_change;

typedef struct tui_plan {
    moa_plan *now;  /* NULL: no model and no plan yet */
    moa_plan *disk; /* as read or written last; NULL: never on disk */
    char path[4096]; /* "" : none; raw bytes */
    moa_clean *shown; /* the path's last part, or "full attention", clean */
    int64_t disk_mtime_ns, disk_size; /* to see a change by others */
    bool superset;
    uint8_t *marks; /* (n_layer*n_head) */
    tui_change *changes; /* owned; [0, n_done) are done, the rest can be redone */
    int n_change, n_done, n_saved; /* n_saved: n_done when it was saved, -1: that step is gone */
    bool group_lock;  /* edits apply to whole KV groups */
    uint64_t budget_bytes; /* of KV at n; 0: none */
    moa_rule clip; bool has_clip; /* copied rule */
    char filter[128]; /* of the table: "" shows every head */
    char wanted[4096]; /* what to open once the question about unsaved edits is answered */
} tui_plan;

bool tui_plan_dirty(const tui_app *app);
int tui_plan_edits(const tui_app *app); /* steps since it was saved */
/* Tokens reserved that spans are shown at: the newest run's, else the prompt's estimate, `:set n`. */
int32_t tui_plan_n(const tui_app *app);
/* Marks in mask (n_layer*n_head) what text selects: @marked, @cursor, @shown (by the filter), @targets (the marked ones, else the cursor's), @class:NAME, or the selectors of plan.h. */
moa_status tui_plan_select(const tui_app *app, const char *text, uint8_t *mask, moa_err *err);
/* heads an edit applies to: the marked ones, else the cursor's; with the group lock all of their KV groups. mask (n_layer*n_head), caller's;
 * returns how many */
int32_t tui_plan_targets(const tui_app *app, uint8_t *mask);
/* Changes rules of the masked heads with `fn`; one undo step "what"; nothing if nothing changes. Returns changed heads. */
typedef bool (*tui_rule_fn)(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user);
int32_t tui_plan_edit(tui_app *app, const uint8_t *mask, const char *what, tui_rule_fn fn, void *user);
moa_status tui_plan_set_all(tui_app *app, const moa_plan *to, const char *what, moa_err *err); /* one undo step */
void tui_plan_mark(tui_app *app, const uint8_t *marks, const char *what); /* one undo step */
bool tui_plan_undo(tui_app *app);
bool tui_plan_redo(tui_app *app);
moa_status tui_plan_open(tui_app *app, const char *spec, moa_err *err); /* "full", "uniform:D", "sink", a file; clears the history */
/* path "": where it came from. Refuses when the file changed on disk since (force: not). */
moa_status tui_plan_save(tui_app *app, const char *path, bool force, moa_err *err);
bool tui_plan_disk_changed(const tui_app *app);
/* The plan of an earlier session: base and changes [0, n_change) are taken over, n_done of them are in force. path "": it has no file. */
void tui_plan_restore(tui_app *app, moa_plan *base, tui_change *changes, int n_change, int n_done, const char *path);
void tui_plan_forget(tui_app *app); /* as at the start: full attention of the model, or none */
static inline bool tui_plan_marked(const tui_app *app, int32_t layer, int32_t head);

/* figures of one head under the plan, at n tokens */
typedef struct tui_head_figures {
    moa_rule rule;
    int32_t span, group_span;
    double cover;      /* share of dense mass inside sink and window; NAN: no histogram */
    bool cover_dense;  /* from a full-attention run (else from a windowed one: first order only) */
    double entropy, worst_cover;
    int32_t worst_query;
    int32_t span95, span99; /* smallest spans that cover so much; 0: unknown */
    uint64_t kv_alone_bytes, kv_group_bytes;
    bool is_widest;    /* of its KV group: only then narrowing saves memory */
} tui_head_figures;
/* what kind of head it looks like, from its statistics: a hint, not a fact: sink local wide mixed, "-" unknown (see :help classes) */
const char *tui_head_class(const tui_app *app, int32_t layer, int32_t head);
void tui_head_describe(const tui_app *app, int32_t layer, int32_t head, tui_head_figures *out);
/* the run whose histograms are the best truth: A if it has them, else B; NULL: none */
const tui_run *tui_truth(const tui_app *app);
bool tui_run_saw_all(const tui_run *r); /* full attention, or a plan whose spans are all as long as the run: no key was cut */

typedef struct tui_kv {
    uint64_t plan, dense, mha; /* bytes at n tokens, whole pages; 0 without a model */
} tui_kv;
tui_kv tui_kv_at(const tui_app *app, const moa_plan *plan, int32_t n); /* plan NULL: dense */
moa_kv_type tui_kv_type(const tui_app *app); /* as far as memory goes */
uint64_t tui_kv_page_bytes(const tui_app *app);

/* --- messages, prompts, popups ---------------------------------------------------------------------------------------------- */

typedef enum tui_tone { TUI_INFO, TUI_GOOD, TUI_WARN, TUI_BAD } tui_tone;
typedef struct tui_line { double at; tui_tone tone; char text[256]; } tui_line;

typedef enum tui_popup { TUI_POPUP_NONE, TUI_POPUP_HELP, TUI_POPUP_PALETTE, TUI_POPUP_UNDO, TUI_POPUP_TEXT, TUI_POPUP_ASK, TUI_POPUP_MODELS } tui_popup;
typedef struct tui_picker tui_picker; /* picker.c */

typedef struct tui_options {
    char model[4096], engine[4096], device[64], kv_type[16];
    int n_threads; bool reference; uint64_t capture_limit_bytes;
    int32_t n_gen;
    moa_sampling sampling;
    bool ignore_end, chat;
    int watch; /* MOA_WATCH_* of runs */
    char plan[4096]; /* what the plan was asked for at start: full, uniform:D, sink, a file; raw bytes */
} tui_options;

/* plain integers a view keeps while it is not shown */
enum { TUI_VIEW_VARS = 24 };
typedef struct tui_view_state { int64_t v[TUI_VIEW_VARS]; int focus; } tui_view_state;

typedef struct tui_cursor {
    tui_slot run;
    int32_t layer, head;
    int32_t query, key; /* positions; token of the output = n_prompt + i */
} tui_cursor;

/* what a click on a part of the screen does; y, x count from the part's corner */
typedef void tui_hit_fn(tui_app *app, int y, int x, int64_t value);
typedef struct tui_hit {
    viz_rect rect;
    tui_hit_fn *click; /* NULL: nothing */
    int64_t value;
} tui_hit;

enum { TUI_VIEWS_MAX = 12, TUI_LOG_MAX = 500, TUI_HITS_MAX = 64 };

struct tui_app {
    viz_canvas *canvas;
    viz_caps caps;
    viz_ramp ramp;
    tui_options options;
    tui_link link;
    tui_model model;
    uint64_t load_done, load_total; double load_started;
    tui_run runs[TUI_SLOTS];
    tui_slot newest;   /* the run last started */
    int n_run;         /* runs started so far */
    int slot_running;  /* tui_slot, -1: none */
    bool compare_next; /* after the running dense run: force its tokens through the plan */
    tui_map map;
    tui_map_ask map_ask; bool map_waiting, map_again; uint32_t map_job;
    tui_map row;       /* exact attention of one query, beside the map */
    tui_map_ask row_ask; bool row_again, map_is_row; /* map_is_row: what is on its way is a row */
    bool engine_has_run; /* the engine process holds the newest run's q and k: after a restart or a load it does not */
    tui_blame blame;
    tui_plan plan;
    struct tui_planner *planner; /* the automatic search (search.h), owned */
    tui_cursor cursor;
    int32_t n_user;    /* :set n; 0: automatic */

    moa_buf prompt;    /* raw text of the user's prompt */
    moa_clean *prompt_name; /* of the file it came from, or "" */
    bool prompt_tokens_known; int32_t n_prompt_tok; uint32_t tokenize_job;

    int view, view_before;
    tui_view_state views[TUI_VIEWS_MAX];
    tui_popup popup; int popup_at, popup_scroll; moa_buf popup_text; char popup_title[80]; char popup_query[64];
    moa_status (*ask_yes)(tui_app *app, moa_err *err); /* of TUI_POPUP_ASK */
    char search[128]; bool search_back;
    int pending[4], n_pending, count; /* keys of a sequence typed so far */
    tui_line log[TUI_LOG_MAX]; int n_log; /* newest at (n_log - 1) % TUI_LOG_MAX */
    double said_at;
    int n_seen; /* n_log when the last key came: lines after it may take two rows */
    int n_held; /* n_log at the last warning, while the message line keeps it: until a key, or TUI_HOLD_S; 0: none */
    char sync[64];     /* token of `:sync`, shown in the status line when idle */
    tui_hit hits[TUI_HITS_MAX]; int n_hit; /* of the picture last drawn; the later lies on top */
    double click_at; int click_y, click_x; /* the last click: a second one there soon is Enter */
    int tour; bool tour_placed; /* step of `:tour`, 0: none; its head was chosen */
    bool quit, dirty_screen, resized;
    int exit_code;
    double now, started_at; /* monotonic seconds: of this turn of the loop, of the start */
    double interrupt_at; int n_interrupt;
    struct tui_script *script;
    tui_picker *picker; /* the models found, from its first opening on; NULL before */
    struct tui_journal *journal; /* NULL: nothing is kept (journal.h) */
    bool no_restore;
    bool run_when_loaded; /* --run, until it has been done */
};

static inline bool tui_plan_marked(const tui_app *app, int32_t layer, int32_t head) {
    return app->plan.marks && app->plan.now && app->plan.marks[(int64_t)layer * app->plan.now->n_head + head];
}

/* a line for the user; also kept in the log. The format's text is ours; whatever comes in by %s must be clean already (moa_err.text is) */
void tui_say(tui_app *app, tui_tone tone, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* what the message line shows while n_log > 0: the newest line, or a warning said just before it that nobody may have read yet */
#define TUI_HOLD_S 3.0
const tui_line *tui_said(const tui_app *app);
void tui_ask(tui_app *app, const char *question, moa_status (*yes)(tui_app *app, moa_err *err));
void tui_popup_open(tui_app *app, tui_popup kind, const char *title); /* TEXT: fill app->popup_text (clean text) first */
void tui_popup_close(tui_app *app);
void tui_line_start_command(tui_app *app, const char *initial); /* the `:` prompt */
void tui_view_switch(tui_app *app, int view);
tui_view_state *tui_view_vars(tui_app *app, const tui_view *view);
void tui_dirty(tui_app *app); /* draw again soon */
void tui_hit_add(tui_app *app, viz_rect rect, tui_hit_fn *click, int64_t value); /* while drawing: this part can be clicked */
tui_frame tui_frame_now(const tui_app *app); /* the frame's parts as they are drawn: a tour takes some rows of the body */
void tui_cursor_move(tui_app *app, int32_t layer, int32_t head); /* clamped; asks for what views need */

/* events told to views */
enum { TUI_EV_LOADED = 1, TUI_EV_STARTED, TUI_EV_TOKEN, TUI_EV_STATS, TUI_EV_HIST, TUI_EV_MAP, TUI_EV_PAGES, TUI_EV_DONE, TUI_EV_FAILED, TUI_EV_DEAD, TUI_EV_PLAN, TUI_EV_CURSOR };

/* --- the engine's work (link.c, jobs in runs.c) -------------------------------------------------------------------------- */

moa_status tui_engine_start(tui_app *app, const char *device, moa_err *err); /* and loads options.model */
void tui_engine_stop(tui_app *app);
moa_status tui_load(tui_app *app, const char *model, moa_err *err);
/* Starts a run of the prompt in a slot; TUI_F needs a finished A with the same prompt. E_FAILED says what is missing or busy. */
moa_status tui_run_start(tui_app *app, tui_slot slot, moa_err *err);
void tui_run_cancel(tui_app *app);
bool tui_busy(const tui_app *app); /* loading or running */
/* link.c */
moa_status tui_link_open(tui_app *app, moa_err *err);
void tui_link_close(tui_app *app); /* a run under way ends as failed */
void tui_link_signal(pid_t pid, int sig); /* to the engine and what it started */
moa_status tui_link_send(tui_app *app, moa_wire_msg *msg, moa_err *err); /* numbers it: msg->job; queued, written when the pipe takes it; fails when the engine is gone or found gone */
void tui_link_flush(tui_app *app);
void tui_link_read(tui_app *app); /* all that is there, as messages to tui_message */
void tui_message(tui_app *app, const moa_wire_msg *msg);
void tui_run_free(tui_run *r);

/* draws frame, view, popup, prompt line into app->canvas */
void tui_draw(tui_app *app);
/* one key, from anywhere */
void tui_key_in(tui_app *app, int key);

/* the workbench: argv as of main, without a subcommand */
int tui_workbench(int argc, char **argv);

#endif
