/* store.h -- everything a user did, kept: sessions, runs, plan edits, in one SQLite database that survives kill -9.
 *
 *   session   one model, one plan being edited: where the work left off
 *   run       prompt, plan, seed, output as it streams, timings, summary of statistics
 *   edit      one undoable change of rules; session.undo_pos says how many of them are in force
 *
 * WAL mode: streaming commits at most every 250 ms cost tens of microseconds and survive the death of the process; the end of a
 * run and every plan edit are synced to disk as well. One store, one thread. The database is as untrusted as any file: it is
 * opened in SQLite's defensive mode, sizes are checked, and a damaged one is moved aside (path.damaged-N), never overwritten. */
#ifndef MOA_SESSIONS_STORE_H
#define MOA_SESSIONS_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "core/base/status.h"
#include "plans/plan.h"

typedef struct moa_store moa_store;

/* path NULL: $XDG_STATE_HOME/moascope/sessions.db, made with mode 0600 in a folder of mode 0700. note (may be NULL): what the user
 * should know, "" usually ("the session store was damaged and was moved to ..."). */
moa_status moa_store_open(moa_store **out, const char *path, char *note, size_t note_bytes, moa_err *err);
void moa_store_close(moa_store **s);

/* --- sessions ------------------------------------------------------------------------------------------------------------- */

typedef struct moa_session {
    int64_t id;
    double started, changed; /* seconds since 1970 */
    char *model_path, *model_name, *fingerprint;
    int32_t n_layer, n_head, n_head_kv;
    char *plan_path;  /* where the plan was opened or saved, "" if nowhere */
    char *plan;       /* the plan the edits start from, as a plan file; "" = full attention */
    char *prompt;     /* the prompt as it was left, else the one last run, "" if none */
    int32_t undo_pos; /* edits in force */
    int32_t n_run, n_edit;
    int32_t owner_pid; /* the process that has it open, 0: none. It may be dead */
} moa_session;
void moa_session_free(moa_session *s); /* the strings; NULL is fine */

/* Makes a session owned by this process; fills in->id. Strings may be NULL (taken as ""). */
moa_status moa_store_session_begin(moa_store *s, moa_session *in, moa_err *err);
/* Takes over an earlier session. *mine = false when a living process has it: then nothing is changed. */
moa_status moa_store_session_claim(moa_store *s, int64_t id, bool *mine, moa_err *err);
moa_status moa_store_session_release(moa_store *s, int64_t id, moa_err *err);
/* One session; id 0: the newest that has a run or an edit. E_INVALID when there is none. */
moa_status moa_store_session_get(moa_store *s, int64_t id, moa_session *out, moa_err *err);
/* What the workbench may go on with: the newest session with an edit or a run of the workbench (not a subcommand's "run" or "chat"), of that
 * model path (NULL: any). E_INVALID when there is none. */
moa_status moa_store_session_last(moa_store *s, const char *model_path, moa_session *out, moa_err *err);
/* Newest first, at most max; *out malloc'ed, each to be freed. */
moa_status moa_store_session_list(moa_store *s, int32_t max, moa_session **out, int32_t *n, moa_err *err);
/* What prune takes away: a session that is both older than that and not one of the newest `keep` (by last change). */
typedef struct moa_prune {
    double older_s; /* seconds since the last change, >= 0; 0: any age */
    int32_t keep;   /* 0: none for its being new */
    bool dry_run;   /* only list */
} moa_prune;
/* Sessions with their runs, edits and drafts, in one transaction; never one whose owner lives, this process included (*n_open of those
 * it would have taken otherwise). *gone malloc'ed, newest first, each to be freed: what went, or would go. */
moa_status moa_store_prune(moa_store *s, const moa_prune *what, moa_session **gone, int32_t *n, int32_t *n_open, moa_err *err);
/* Gives the space of what was pruned back to the disk. E_IO when another process is in the way: nothing is lost by that. */
moa_status moa_store_compact(moa_store *s, moa_err *err);
/* Where the plan was saved or opened; the base the edits start from (drops all edits). */
moa_status moa_store_session_plan(moa_store *s, int64_t id, const char *plan_path, const char *plan, moa_err *err);
moa_status moa_store_session_plan_path(moa_store *s, int64_t id, const char *plan_path, moa_err *err);
/* The prompt as it stands, run or not. */
moa_status moa_store_session_prompt(moa_store *s, int64_t id, const char *prompt, size_t n, moa_err *err);

/* --- edits ---------------------------------------------------------------------------------------------------------------- */

/* A change of rule, or of a mark: layer -1 - L, alpha 1 or 0 for marked or not, beta 0. */
typedef struct moa_change {
    int32_t layer, head;
    moa_rule before, after;
} moa_change;

/* Appends an edit after undo_pos (what was undone beyond it is dropped, as an editor does) and moves undo_pos past it. */
moa_status moa_store_edit_push(moa_store *s, int64_t session, const char *label, const moa_change *changes, int32_t n, moa_err *err);
moa_status moa_store_undo_pos(moa_store *s, int64_t session, int32_t pos, moa_err *err);
/* Each edit in order, also the undone ones. return false to stop. changes borrowed during the call. */
typedef bool (*moa_edit_fn)(void *user, const char *label, const moa_change *changes, int32_t n);
moa_status moa_store_edits(moa_store *s, int64_t session, moa_edit_fn each, void *user, moa_err *err);

/* --- runs ----------------------------------------------------------------------------------------------------------------- */

typedef struct moa_run_record {
    int64_t id, session;
    double started;
    char *kind;   /* "plan", "full", "compare" of the workbench; "run", "chat" of the subcommands */
    char *prompt; /* as typed, raw */
    char *plan;   /* plan file text, "" = full attention */
    char *sampling; /* JSON: temp, top_k, top_p, min_p */
    uint64_t seed;
    char *output; /* text so far */
    int32_t n_prompt, n_gen, n_reserved;
    char *stop;  /* "" while running or when it died with the process */
    char *stats; /* JSON summary, "" if none */
    double prefill_s, decode_s, ttft_s;
    int64_t kv_bytes, kv_plan, kv_dense, kv_mha;
    char *device;
} moa_run_record;
void moa_run_record_free(moa_run_record *r);

moa_status moa_store_run_begin(moa_store *s, moa_run_record *in, moa_err *err); /* fills in->id; strings may be NULL */
/* Output as it comes; committed when 250 ms have passed since the last commit (moa_store_tick commits what waits). */
moa_status moa_store_run_output(moa_store *s, int64_t run, const char *text, size_t n, int32_t n_token, moa_err *err);
moa_status moa_store_tick(moa_store *s, moa_err *err);
/* The figures of a run that ended: n_prompt .. kv_mha, stop, stats, device of r; synced to disk. */
moa_status moa_store_run_end(moa_store *s, const moa_run_record *r, moa_err *err);
/* The tokens behind a run, for replay. Kept apart from it: programs of before do not know them, runs of before lack them. */
typedef struct moa_run_tokens {
    int32_t n_past;      /* tokens of the sequence that ids come after; -1: ids are not known */
    int32_t *ids, *made; /* (n_ids) given, (n_made) generated; owned */
    int32_t n_ids, n_made; /* n_made -1: not known */
} moa_run_tokens;
void moa_run_tokens_free(moa_run_tokens *t);
moa_status moa_store_run_given(moa_store *s, int64_t run, int32_t n_past, const int32_t *ids, int32_t n, moa_err *err);
moa_status moa_store_run_made(moa_store *s, int64_t run, const int32_t *ids, int32_t n, moa_err *err);
/* moa_run_tokens_free in any case */
moa_status moa_store_run_tokens(moa_store *s, int64_t run, moa_run_tokens *out, moa_err *err);
moa_status moa_store_run_list(moa_store *s, int64_t session, moa_run_record **out, int32_t *n, moa_err *err);

#endif
