/* store.c -- the SQLite side of store.h: schema, statements, the streaming commit. */
#include "sessions/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/path.h"

enum { SCHEMA_VERSION = 1, COMMIT_MS = 250, TEXT_MAX = 64 << 20, CHANGE_BYTES = 40, EDIT_MAX = 1 << 20 };

struct moa_store {
    sqlite3 *db;
    int64_t run;       /* whose output waits in pending, 0: none */
    moa_buf pending;   /* output not yet committed */
    int32_t pending_tokens;
    int64_t committed_ms; /* monotonic time of the last commit of output */
};

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS session("
    " id INTEGER PRIMARY KEY, started REAL NOT NULL, changed REAL NOT NULL, model_path TEXT NOT NULL,"
    " model_name TEXT NOT NULL, fingerprint TEXT NOT NULL, n_layer INTEGER NOT NULL, n_head INTEGER NOT NULL,"
    " n_head_kv INTEGER NOT NULL, plan_path TEXT NOT NULL, plan TEXT NOT NULL, undo_pos INTEGER NOT NULL DEFAULT 0,"
    " owner_pid INTEGER NOT NULL DEFAULT 0) STRICT;"
    "CREATE TABLE IF NOT EXISTS edit("
    " session INTEGER NOT NULL REFERENCES session(id), seq INTEGER NOT NULL, at REAL NOT NULL, label TEXT NOT NULL,"
    " changes BLOB NOT NULL, PRIMARY KEY(session, seq)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS run("
    " id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES session(id), started REAL NOT NULL, kind TEXT NOT NULL,"
    " prompt BLOB NOT NULL, plan TEXT NOT NULL, sampling TEXT NOT NULL, seed INTEGER NOT NULL, output BLOB NOT NULL,"
    " n_prompt INTEGER NOT NULL DEFAULT 0, n_gen INTEGER NOT NULL DEFAULT 0, n_reserved INTEGER NOT NULL DEFAULT 0,"
    " stop TEXT NOT NULL DEFAULT '', stats TEXT NOT NULL DEFAULT '', prefill_s REAL NOT NULL DEFAULT 0,"
    " decode_s REAL NOT NULL DEFAULT 0, ttft_s REAL NOT NULL DEFAULT 0, kv_bytes INTEGER NOT NULL DEFAULT 0,"
    " kv_plan INTEGER NOT NULL DEFAULT 0, kv_dense INTEGER NOT NULL DEFAULT 0, kv_mha INTEGER NOT NULL DEFAULT 0,"
    " device TEXT NOT NULL DEFAULT '') STRICT;"
    "CREATE INDEX IF NOT EXISTS run_session ON run(session);";

/* came later, and older programs need not know it: made whenever a store is opened */
static const char draft_schema[] =
    "CREATE TABLE IF NOT EXISTS draft(session INTEGER PRIMARY KEY REFERENCES session(id), prompt BLOB NOT NULL) STRICT;"
    "CREATE TABLE IF NOT EXISTS run_tokens(run INTEGER PRIMARY KEY REFERENCES run(id) ON DELETE CASCADE,"
    " n_past INTEGER NOT NULL DEFAULT -1, ids BLOB NOT NULL DEFAULT x'', made BLOB) STRICT;";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static moa_status sql_fail(moa_store *s, const char *doing, moa_err *err) {
    const int code = sqlite3_errcode(s->db);
    const moa_status status = code == SQLITE_NOMEM ? MOA_E_MEMORY : MOA_E_IO;
    return moa_fail(err, status, "session store: %s: %s", doing, sqlite3_errmsg(s->db));
}

static moa_status exec(moa_store *s, const char *sql, const char *doing, moa_err *err) {
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? MOA_OK : sql_fail(s, doing, err);
}

/* --- opening ------------------------------------------------------------------------------------------------------------- */

static moa_status default_path(char *path, size_t bytes, moa_err *err) {
    moa_status s = moa_path_place(MOA_PLACE_STATE, "", path, bytes, err);
    if (s == MOA_OK) s = moa_dir_make(path, err);
    if (s == MOA_OK) s = moa_path_place(MOA_PLACE_STATE, "sessions.db", path, bytes, err);
    return s;
}

static bool harden(sqlite3 *db) {
    sqlite3_busy_timeout(db, 2000);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_limit(db, SQLITE_LIMIT_LENGTH, TEXT_MAX + (1 << 16));
    return sqlite3_exec(db, "PRAGMA cell_size_check=ON; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
                        NULL, NULL, NULL) == SQLITE_OK;
}

static int schema_version(sqlite3 *db) {
    sqlite3_stmt *q = NULL;
    int version = -1;
    if (sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &q, NULL) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW)
        version = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    return version;
}

/* Opens and brings the schema up; false: the file is damaged (or not a database) and may be moved aside. */
static moa_status try_open(moa_store *s, const char *path, bool *damaged, moa_err *err) {
    *damaged = false;
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return moa_fail(err, MOA_E_IO, "%s: cannot open the session store: %s", path, strerror(errno));
    close(fd);
    if (sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK || !harden(s->db) ||
        schema_version(s->db) < 0) {
        const int code = sqlite3_errcode(s->db);
        *damaged = code == SQLITE_NOTADB || code == SQLITE_CORRUPT;
        return sql_fail(s, "opening", err);
    }
    const int version = schema_version(s->db);
    if (version > SCHEMA_VERSION)
        return moa_fail(err, MOA_E_UNSUPPORTED, "%s: written by a newer moascope (schema %d, this one knows %d)", path, version,
                        SCHEMA_VERSION);
    if (version == SCHEMA_VERSION) return exec(s, draft_schema, "making its tables", err);
    moa_status status = exec(s, schema, "making its tables", err);
    if (status == MOA_OK) status = exec(s, draft_schema, "making its tables", err);
    if (status == MOA_OK) status = exec(s, "PRAGMA user_version=1", "making its tables", err);
    *damaged = status != MOA_OK && (sqlite3_errcode(s->db) == SQLITE_CORRUPT || sqlite3_errcode(s->db) == SQLITE_NOTADB);
    return status;
}

static bool move_aside(const char *path, char *to, size_t bytes) {
    static const char *const tails[] = {"", "-wal", "-shm"};
    for (int k = 1; k < 1000; k++) {
        if (snprintf(to, bytes, "%s.damaged-%d", path, k) >= (int)bytes) return false;
        if (access(to, F_OK) != 0) break;
    }
    for (size_t t = 0; t < sizeof tails / sizeof *tails; t++) {
        char from[PATH_MAX], target[PATH_MAX];
        if (snprintf(from, sizeof from, "%s%s", path, tails[t]) >= (int)sizeof from ||
            snprintf(target, sizeof target, "%s%s", to, tails[t]) >= (int)sizeof target)
            return false;
        if (rename(from, target) != 0 && t == 0) return false;
    }
    return true;
}

moa_status moa_store_open(moa_store **out, const char *path, char *note, size_t note_bytes, moa_err *err) {
    char own[PATH_MAX], aside[PATH_MAX];
    bool damaged;
    *out = NULL;
    if (note && note_bytes) note[0] = 0;
    moa_status status = MOA_OK;
    if (!path) {
        status = default_path(own, sizeof own, err);
        if (status != MOA_OK) return status;
        path = own;
    }
    moa_store *s = calloc(1, sizeof *s);
    if (!s) return moa_fail(err, MOA_E_MEMORY, "no memory for the session store");
    status = try_open(s, path, &damaged, err);
    if (status != MOA_OK && damaged) {
        sqlite3_close(s->db);
        s->db = NULL;
        if (move_aside(path, aside, sizeof aside)) {
            status = try_open(s, path, &damaged, err);
            if (status == MOA_OK && note)
                (void)snprintf(note, note_bytes, "the session store was damaged; it was moved to %s and a new one begun", aside);
        }
    }
    if (status != MOA_OK) moa_store_close(&s);
    *out = s;
    return status;
}

void moa_store_close(moa_store **store) {
    if (!store || !*store) return;
    moa_store *s = *store;
    if (s->db) (void)moa_store_tick(s, NULL);
    sqlite3_close(s->db);
    moa_buf_free(&s->pending);
    free(s);
    *store = NULL;
}

/* --- small helpers around statements --------------------------------------------------------------------------------------- */

static sqlite3_stmt *prepare(moa_store *s, const char *sql) {
    sqlite3_stmt *q = NULL;
    return sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) == SQLITE_OK ? q : NULL;
}

static void bind_text(sqlite3_stmt *q, int at, const char *text) {
    (void)sqlite3_bind_text(q, at, text ? text : "", -1, SQLITE_STATIC);
}

static void bind_blob(sqlite3_stmt *q, int at, const void *data, size_t n) {
    if (n == 0) (void)sqlite3_bind_zeroblob(q, at, 0);
    else (void)sqlite3_bind_blob64(q, at, data, n, SQLITE_STATIC);
}

/* Runs a statement that returns no rows, and finalises it. */
static moa_status finish(moa_store *s, sqlite3_stmt *q, const char *doing, moa_err *err) {
    const int code = q ? sqlite3_step(q) : SQLITE_ERROR;
    moa_status status = MOA_OK;
    if (code != SQLITE_DONE && code != SQLITE_ROW) status = sql_fail(s, doing, err);
    sqlite3_finalize(q);
    return status;
}

static char *column_text(sqlite3_stmt *q, int at, bool *ok) {
    const void *bytes = sqlite3_column_blob(q, at);
    const int n = sqlite3_column_bytes(q, at);
    char *copy = malloc((size_t)n + 1);
    if (!copy) {
        *ok = false;
        return NULL;
    }
    if (n) memcpy(copy, bytes, (size_t)n);
    copy[n] = 0;
    return copy;
}

/* What must reach the disk now: the commit that follows waits for it. */
static moa_status synced(moa_store *s, bool on, moa_err *err) {
    return exec(s, on ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", "choosing durability", err);
}

/* --- sessions ---------------------------------------------------------------------------------------------------------------- */

void moa_session_free(moa_session *s) {
    if (!s) return;
    free(s->model_path);
    free(s->model_name);
    free(s->fingerprint);
    free(s->plan_path);
    free(s->plan);
    free(s->prompt);
    *s = (moa_session){0};
}

moa_status moa_store_session_begin(moa_store *s, moa_session *in, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "INSERT INTO session(started, changed, model_path, model_name, fingerprint, n_layer, n_head,"
                                 " n_head_kv, plan_path, plan, owner_pid) VALUES(?1,?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)");
    if (q) {
        sqlite3_bind_double(q, 1, now());
        bind_text(q, 2, in->model_path);
        bind_text(q, 3, in->model_name);
        bind_text(q, 4, in->fingerprint);
        sqlite3_bind_int(q, 5, in->n_layer);
        sqlite3_bind_int(q, 6, in->n_head);
        sqlite3_bind_int(q, 7, in->n_head_kv);
        bind_text(q, 8, in->plan_path);
        bind_text(q, 9, in->plan);
        sqlite3_bind_int(q, 10, (int)getpid());
    }
    const moa_status status = finish(s, q, "beginning a session", err);
    if (status == MOA_OK) in->id = sqlite3_last_insert_rowid(s->db);
    return status;
}

/* the program's name as the system knows it; false where it does not tell */
static bool name_of(int32_t pid, char name[32]) {
    char file[48];
    (void)snprintf(file, sizeof file, "/proc/%d/comm", pid);
    const int fd = open(file, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, name, 31);
    if (fd >= 0) (void)close(fd);
    name[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* Numbers of processes come round again (in a container soon): one that runs another program is not the owner. */
static bool alive(int32_t pid) {
    char theirs[32], ours[32];
    if (pid <= 0 || pid == (int32_t)getpid() || (kill(pid, 0) != 0 && errno != EPERM)) return false;
    return !name_of(pid, theirs) || !name_of((int32_t)getpid(), ours) || strcmp(theirs, ours) == 0;
}

moa_status moa_store_session_claim(moa_store *s, int64_t id, bool *mine, moa_err *err) {
    *mine = false;
    moa_status status = exec(s, "BEGIN IMMEDIATE", "claiming a session", err);
    if (status != MOA_OK) return status;
    sqlite3_stmt *q = prepare(s, "SELECT owner_pid FROM session WHERE id=?1");
    int32_t owner = -1;
    if (q) {
        sqlite3_bind_int64(q, 1, id);
        if (sqlite3_step(q) == SQLITE_ROW) owner = sqlite3_column_int(q, 0);
    }
    sqlite3_finalize(q);
    if (owner < 0) status = moa_fail(err, MOA_E_INVALID, "session store: there is no session %lld", (long long)id);
    else if (!alive(owner)) {
        q = prepare(s, "UPDATE session SET owner_pid=?2 WHERE id=?1");
        if (q) {
            sqlite3_bind_int64(q, 1, id);
            sqlite3_bind_int(q, 2, (int)getpid());
        }
        status = finish(s, q, "claiming a session", err);
        *mine = status == MOA_OK;
    }
    const moa_status end = exec(s, status == MOA_OK ? "COMMIT" : "ROLLBACK", "claiming a session", status == MOA_OK ? err : NULL);
    return status != MOA_OK ? status : end;
}

moa_status moa_store_session_release(moa_store *s, int64_t id, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "UPDATE session SET owner_pid=0 WHERE id=?1 AND owner_pid=?2");
    if (q) {
        sqlite3_bind_int64(q, 1, id);
        sqlite3_bind_int(q, 2, (int)getpid());
    }
    return finish(s, q, "leaving a session", err);
}

#define SESSION_COLUMNS                                                                                      \
    "s.id, s.started, s.changed, s.model_path, s.model_name, s.fingerprint, s.n_layer, s.n_head, s.n_head_kv, s.plan_path,"      \
    " s.plan, s.undo_pos, s.owner_pid, (SELECT count(*) FROM run WHERE session=s.id),"                                          \
    " (SELECT count(*) FROM edit WHERE session=s.id),"                                                                        \
    " coalesce((SELECT prompt FROM draft WHERE session=s.id),"                                                                \
    " (SELECT prompt FROM run WHERE session=s.id ORDER BY id DESC LIMIT 1), '')"

static bool read_session(sqlite3_stmt *q, moa_session *out) {
    bool ok = true;
    *out = (moa_session){.id = sqlite3_column_int64(q, 0),
                         .started = sqlite3_column_double(q, 1),
                         .changed = sqlite3_column_double(q, 2),
                         .model_path = column_text(q, 3, &ok),
                         .model_name = column_text(q, 4, &ok),
                         .fingerprint = column_text(q, 5, &ok),
                         .n_layer = sqlite3_column_int(q, 6),
                         .n_head = sqlite3_column_int(q, 7),
                         .n_head_kv = sqlite3_column_int(q, 8),
                         .plan_path = column_text(q, 9, &ok),
                         .plan = column_text(q, 10, &ok),
                         .undo_pos = sqlite3_column_int(q, 11),
                         .owner_pid = sqlite3_column_int(q, 12),
                         .n_run = sqlite3_column_int(q, 13),
                         .n_edit = sqlite3_column_int(q, 14),
                         .prompt = column_text(q, 15, &ok)};
    if (!ok) moa_session_free(out);
    return ok;
}

static moa_status get_row(moa_store *s, sqlite3_stmt *q, int64_t id, moa_session *out, moa_err *err) {
    moa_status status = MOA_OK;
    const int code = sqlite3_step(q);
    if (code == SQLITE_DONE)
        status = id ? moa_fail(err, MOA_E_INVALID, "there is no session %lld", (long long)id)
                    : moa_fail(err, MOA_E_INVALID, "there is no earlier session");
    else if (code != SQLITE_ROW) status = sql_fail(s, "looking up a session", err);
    else if (!read_session(q, out)) status = moa_fail(err, MOA_E_MEMORY, "no memory to read a session");
    sqlite3_finalize(q);
    return status;
}

moa_status moa_store_session_get(moa_store *s, int64_t id, moa_session *out, moa_err *err) {
    *out = (moa_session){0};
    sqlite3_stmt *q =
        id ? prepare(s, "SELECT " SESSION_COLUMNS " FROM session s WHERE s.id=?1")
           : prepare(s, "SELECT " SESSION_COLUMNS " FROM session s WHERE EXISTS(SELECT 1 FROM run WHERE session=s.id)"
                        " OR EXISTS(SELECT 1 FROM edit WHERE session=s.id) ORDER BY s.changed DESC, s.id DESC LIMIT 1");
    if (!q) return sql_fail(s, "looking up a session", err);
    if (id) sqlite3_bind_int64(q, 1, id);
    return get_row(s, q, id, out, err);
}

moa_status moa_store_session_last(moa_store *s, const char *model_path, moa_session *out, moa_err *err) {
    *out = (moa_session){0};
    sqlite3_stmt *q = prepare(s, "SELECT " SESSION_COLUMNS " FROM session s WHERE (?1 IS NULL OR s.model_path=?1) AND"
                                 " (EXISTS(SELECT 1 FROM run WHERE session=s.id AND kind NOT IN ('run', 'chat'))"
                                 " OR EXISTS(SELECT 1 FROM edit WHERE session=s.id)) ORDER BY s.changed DESC, s.id DESC LIMIT 1");
    if (!q) return sql_fail(s, "looking up a session", err);
    if (model_path) bind_text(q, 1, model_path);
    return get_row(s, q, 0, out, err);
}

moa_status moa_store_session_list(moa_store *s, int32_t max, moa_session **out, int32_t *n, moa_err *err) {
    moa_buf rows = {0};
    moa_status status = MOA_OK;
    *out = NULL;
    *n = 0;
    sqlite3_stmt *q = prepare(s, "SELECT " SESSION_COLUMNS " FROM session s ORDER BY s.changed DESC, s.id DESC LIMIT ?1");
    if (!q) return sql_fail(s, "listing sessions", err);
    sqlite3_bind_int(q, 1, max);
    int code;
    while (status == MOA_OK && (code = sqlite3_step(q)) != SQLITE_DONE) {
        moa_session *row = code == SQLITE_ROW ? moa_buf_extend(&rows, sizeof *row) : NULL;
        if (code != SQLITE_ROW) status = sql_fail(s, "listing sessions", err);
        else if (!row || !read_session(q, row)) status = moa_fail(err, MOA_E_MEMORY, "no memory to list sessions");
        else ++*n;
    }
    sqlite3_finalize(q);
    *out = (moa_session *)(void *)rows.data;
    if (status == MOA_OK) return MOA_OK;
    for (int32_t i = 0; i < *n; i++) moa_session_free(&(*out)[i]);
    moa_buf_free(&rows);
    *out = NULL;
    *n = 0;
    return status;
}

/* --- taking sessions away ------------------------------------------------------------------------------------------------------- */

static moa_status drop(moa_store *s, int64_t id, moa_err *err) {
    static const char *const sql[] = {"DELETE FROM draft WHERE session=?1", "DELETE FROM run WHERE session=?1",
                                      "DELETE FROM edit WHERE session=?1", "DELETE FROM session WHERE id=?1"};
    moa_status status = MOA_OK;
    for (size_t i = 0; i < sizeof sql / sizeof *sql && status == MOA_OK; i++) {
        sqlite3_stmt *q = prepare(s, sql[i]);
        if (q) sqlite3_bind_int64(q, 1, id);
        status = finish(s, q, "pruning", err);
    }
    return status;
}

/* moves what goes to the front of all and frees the rest */
static int32_t sift(const moa_prune *what, moa_session *all, int32_t n, int32_t *n_open) {
    const double before = now() - what->older_s;
    int32_t n_gone = 0;
    for (int32_t i = 0; i < n; i++) {
        const bool goes = i >= what->keep && (what->older_s <= 0 || all[i].changed < before);
        const bool in_use = goes && (all[i].owner_pid == (int32_t)getpid() || alive(all[i].owner_pid));
        *n_open += in_use;
        if (goes && !in_use) all[n_gone++] = all[i];
        else moa_session_free(&all[i]);
    }
    return n_gone;
}

moa_status moa_store_prune(moa_store *s, const moa_prune *what, moa_session **gone, int32_t *n, int32_t *n_open, moa_err *err) {
    int32_t n_all = 0;
    *gone = NULL;
    *n = *n_open = 0;
    moa_status status = moa_store_tick(s, err);
    if (status == MOA_OK) status = exec(s, "BEGIN IMMEDIATE", "pruning", err); /* nobody claims one meanwhile */
    if (status != MOA_OK) return status;
    status = moa_store_session_list(s, INT32_MAX, gone, &n_all, err);
    if (status == MOA_OK) *n = sift(what, *gone, n_all, n_open);
    for (int32_t i = 0; i < *n && status == MOA_OK && !what->dry_run; i++) status = drop(s, (*gone)[i].id, err);
    const moa_status end = exec(s, status == MOA_OK ? "COMMIT" : "ROLLBACK", "pruning", status == MOA_OK ? err : NULL);
    if (status == MOA_OK) status = end;
    if (status == MOA_OK) return MOA_OK;
    if (end != MOA_OK) (void)exec(s, "ROLLBACK", "pruning", NULL); /* a COMMIT that failed leaves its transaction open */
    for (int32_t i = 0; i < *n; i++) moa_session_free(&(*gone)[i]);
    free(*gone);
    *gone = NULL;
    *n = 0;
    return status;
}

moa_status moa_store_compact(moa_store *s, moa_err *err) {
    moa_status status = exec(s, "VACUUM", "compacting", err);
    if (status == MOA_OK) status = exec(s, "PRAGMA wal_checkpoint(TRUNCATE)", "compacting", err);
    return status;
}

static moa_status touch(moa_store *s, int64_t id, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "UPDATE session SET changed=?2 WHERE id=?1");
    if (q) {
        sqlite3_bind_int64(q, 1, id);
        sqlite3_bind_double(q, 2, now());
    }
    return finish(s, q, "noting the time", err);
}

moa_status moa_store_session_plan_path(moa_store *s, int64_t id, const char *plan_path, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "UPDATE session SET plan_path=?2 WHERE id=?1");
    if (q) {
        sqlite3_bind_int64(q, 1, id);
        bind_text(q, 2, plan_path);
    }
    return finish(s, q, "noting the plan's file", err);
}

moa_status moa_store_session_prompt(moa_store *s, int64_t id, const char *prompt, size_t n, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "INSERT OR REPLACE INTO draft(session, prompt) VALUES(?1, ?2)");
    if (n > TEXT_MAX) n = TEXT_MAX;
    if (q) {
        sqlite3_bind_int64(q, 1, id);
        bind_blob(q, 2, prompt, n);
    }
    return finish(s, q, "storing the prompt", err);
}

moa_status moa_store_session_plan(moa_store *s, int64_t id, const char *plan_path, const char *plan, moa_err *err) {
    moa_status status = exec(s, "BEGIN IMMEDIATE", "storing a plan", err);
    if (status != MOA_OK) return status;
    sqlite3_stmt *q = prepare(s, "UPDATE session SET plan_path=?2, plan=?3, undo_pos=0, changed=?4 WHERE id=?1");
    if (q) {
        sqlite3_bind_int64(q, 1, id);
        bind_text(q, 2, plan_path);
        bind_text(q, 3, plan);
        sqlite3_bind_double(q, 4, now());
    }
    status = finish(s, q, "storing a plan", err);
    if (status == MOA_OK) {
        q = prepare(s, "DELETE FROM edit WHERE session=?1");
        if (q) sqlite3_bind_int64(q, 1, id);
        status = finish(s, q, "storing a plan", err);
    }
    const moa_status end = exec(s, status == MOA_OK ? "COMMIT" : "ROLLBACK", "storing a plan", status == MOA_OK ? err : NULL);
    return status != MOA_OK ? status : end;
}

/* --- edits ----------------------------------------------------------------------------------------------------------------- */

/* one change on disk: layer, head as 32-bit, then the four doubles, little-endian (the only order we run on) */
static void pack(const moa_change *c, uint8_t *to) {
    const double values[4] = {c->before.alpha, c->before.beta, c->after.alpha, c->after.beta};
    memcpy(to, &c->layer, 4);
    memcpy(to + 4, &c->head, 4);
    memcpy(to + 8, values, 32);
}

static moa_change unpack(const uint8_t *from) {
    moa_change c;
    double values[4];
    memcpy(&c.layer, from, 4);
    memcpy(&c.head, from + 4, 4);
    memcpy(values, from + 8, 32);
    c.before = (moa_rule){values[0], values[1]};
    c.after = (moa_rule){values[2], values[3]};
    return c;
}

static moa_status edit_rows(moa_store *s, int64_t session, const char *label, const moa_buf *packed, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "DELETE FROM edit WHERE session=?1 AND seq >= (SELECT undo_pos FROM session WHERE id=?1)");
    if (q) sqlite3_bind_int64(q, 1, session);
    moa_status status = finish(s, q, "storing an edit", err);
    if (status != MOA_OK) return status;
    q = prepare(s, "INSERT INTO edit(session, seq, at, label, changes) SELECT ?1, undo_pos, ?2, ?3, ?4 FROM session WHERE id=?1");
    if (q) {
        sqlite3_bind_int64(q, 1, session);
        sqlite3_bind_double(q, 2, now());
        bind_text(q, 3, label);
        bind_blob(q, 4, packed->data, packed->size);
    }
    status = finish(s, q, "storing an edit", err);
    if (status != MOA_OK) return status;
    q = prepare(s, "UPDATE session SET undo_pos=undo_pos+1, changed=?2 WHERE id=?1");
    if (q) {
        sqlite3_bind_int64(q, 1, session);
        sqlite3_bind_double(q, 2, now());
    }
    return finish(s, q, "storing an edit", err);
}

moa_status moa_store_edit_push(moa_store *s, int64_t session, const char *label, const moa_change *changes, int32_t n, moa_err *err) {
    moa_buf packed = {0};
    moa_status status = MOA_OK;
    for (int32_t i = 0; i < n; i++) {
        uint8_t row[CHANGE_BYTES];
        pack(&changes[i], row);
        moa_buf_append(&packed, row, sizeof row);
    }
    if (!moa_buf_ok(&packed)) {
        moa_buf_free(&packed);
        return moa_fail(err, MOA_E_MEMORY, "no memory to store an edit of %d heads", n);
    }
    status = synced(s, true, err);
    if (status == MOA_OK) status = exec(s, "BEGIN IMMEDIATE", "storing an edit", err);
    if (status == MOA_OK) {
        status = edit_rows(s, session, label, &packed, err);
        const moa_status end = exec(s, status == MOA_OK ? "COMMIT" : "ROLLBACK", "storing an edit", status == MOA_OK ? err : NULL);
        if (status == MOA_OK) status = end;
    }
    (void)synced(s, false, NULL);
    moa_buf_free(&packed);
    return status;
}

moa_status moa_store_undo_pos(moa_store *s, int64_t session, int32_t pos, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "UPDATE session SET undo_pos=?2, changed=?3 WHERE id=?1"
                                 " AND ?2 BETWEEN 0 AND (SELECT count(*) FROM edit WHERE session=?1)");
    if (q) {
        sqlite3_bind_int64(q, 1, session);
        sqlite3_bind_int(q, 2, pos);
        sqlite3_bind_double(q, 3, now());
    }
    const moa_status status = finish(s, q, "noting an undo", err);
    if (status == MOA_OK && sqlite3_changes(s->db) != 1)
        return moa_fail(err, MOA_E_INVALID, "session %lld has no undo position %d", (long long)session, pos);
    return status;
}

moa_status moa_store_edits(moa_store *s, int64_t session, moa_edit_fn each, void *user, moa_err *err) {
    sqlite3_stmt *q = prepare(s, "SELECT label, changes FROM edit WHERE session=?1 ORDER BY seq");
    if (!q) return sql_fail(s, "reading edits", err);
    sqlite3_bind_int64(q, 1, session);
    moa_status status = MOA_OK;
    bool more = true;
    while (status == MOA_OK && more) {
        const int code = sqlite3_step(q);
        if (code == SQLITE_DONE) break;
        if (code != SQLITE_ROW) {
            status = sql_fail(s, "reading edits", err);
            break;
        }
        const uint8_t *bytes = sqlite3_column_blob(q, 1);
        const int n_bytes = sqlite3_column_bytes(q, 1), n = n_bytes / CHANGE_BYTES;
        if (n_bytes % CHANGE_BYTES != 0 || n > EDIT_MAX) {
            status = moa_fail(err, MOA_E_INVALID, "session %lld: an edit of %d bytes is damaged", (long long)session, n_bytes);
            break;
        }
        moa_change *changes = malloc((size_t)n * sizeof *changes + 1);
        if (!changes) {
            status = moa_fail(err, MOA_E_MEMORY, "no memory to read an edit of %d heads", n);
            break;
        }
        for (int i = 0; i < n; i++) changes[i] = unpack(bytes + (size_t)i * CHANGE_BYTES);
        const char *label = (const char *)sqlite3_column_text(q, 0);
        more = each(user, label ? label : "", changes, n);
        free(changes);
    }
    sqlite3_finalize(q);
    return status;
}

/* --- runs -------------------------------------------------------------------------------------------------------------------- */

void moa_run_record_free(moa_run_record *r) {
    if (!r) return;
    free(r->kind);
    free(r->prompt);
    free(r->plan);
    free(r->sampling);
    free(r->output);
    free(r->stop);
    free(r->stats);
    free(r->device);
    *r = (moa_run_record){0};
}

moa_status moa_store_run_begin(moa_store *s, moa_run_record *in, moa_err *err) {
    moa_status status = moa_store_tick(s, err);
    if (status != MOA_OK) return status;
    sqlite3_stmt *q = prepare(s, "INSERT INTO run(session, started, kind, prompt, plan, sampling, seed, output, n_prompt,"
                                 " n_reserved, device) VALUES(?1,?2,?3,?4,?5,?6,?7,x'',?8,?9,?10)");
    if (q) {
        sqlite3_bind_int64(q, 1, in->session);
        sqlite3_bind_double(q, 2, now());
        bind_text(q, 3, in->kind);
        bind_blob(q, 4, in->prompt, in->prompt ? strlen(in->prompt) : 0);
        bind_text(q, 5, in->plan);
        bind_text(q, 6, in->sampling);
        sqlite3_bind_int64(q, 7, (int64_t)in->seed);
        sqlite3_bind_int(q, 8, in->n_prompt);
        sqlite3_bind_int(q, 9, in->n_reserved);
        bind_text(q, 10, in->device);
    }
    status = finish(s, q, "beginning a run", err);
    if (status != MOA_OK) return status;
    in->id = sqlite3_last_insert_rowid(s->db);
    s->committed_ms = now_ms();
    return touch(s, in->session, err);
}

moa_status moa_store_run_output(moa_store *s, int64_t run, const char *text, size_t n, int32_t n_token, moa_err *err) {
    moa_status status = MOA_OK;
    if (s->run != run) status = moa_store_tick(s, err);
    if (status != MOA_OK) return status;
    s->run = run;
    moa_buf_append(&s->pending, text, n);
    s->pending_tokens += n_token;
    if (!moa_buf_ok(&s->pending)) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu bytes of output", n);
    return now_ms() - s->committed_ms >= COMMIT_MS ? moa_store_tick(s, err) : MOA_OK;
}

moa_status moa_store_tick(moa_store *s, moa_err *err) {
    if (s->pending_tokens == 0 && s->pending.size == 0) return MOA_OK;
    sqlite3_stmt *q = prepare(s, "UPDATE run SET output=CAST(output || ?2 AS BLOB), n_gen=n_gen+?3 WHERE id=?1"
                                 " AND length(output) + length(?2) <= ?4");
    if (q) {
        sqlite3_bind_int64(q, 1, s->run);
        bind_blob(q, 2, s->pending.data, s->pending.size);
        sqlite3_bind_int(q, 3, s->pending_tokens);
        sqlite3_bind_int(q, 4, TEXT_MAX);
    }
    const moa_status status = finish(s, q, "storing output", err);
    if (status == MOA_OK) { /* kept for another try otherwise: a full disk may get room again */
        moa_buf_clear(&s->pending);
        s->pending_tokens = 0;
    }
    s->committed_ms = now_ms();
    return status;
}

moa_status moa_store_run_end(moa_store *s, const moa_run_record *r, moa_err *err) {
    moa_status status = moa_store_tick(s, err);
    if (status == MOA_OK) status = synced(s, true, err);
    if (status != MOA_OK) return status;
    sqlite3_stmt *q = prepare(s, "UPDATE run SET n_prompt=?2, n_gen=?3, n_reserved=?4, stop=?5, stats=?6, prefill_s=?7,"
                                 " decode_s=?8, ttft_s=?9, kv_bytes=?10, kv_plan=?11, kv_dense=?12, kv_mha=?13, device=?14"
                                 " WHERE id=?1");
    if (q) {
        sqlite3_bind_int64(q, 1, r->id);
        sqlite3_bind_int(q, 2, r->n_prompt);
        sqlite3_bind_int(q, 3, r->n_gen);
        sqlite3_bind_int(q, 4, r->n_reserved);
        bind_text(q, 5, r->stop);
        bind_text(q, 6, r->stats);
        sqlite3_bind_double(q, 7, r->prefill_s);
        sqlite3_bind_double(q, 8, r->decode_s);
        sqlite3_bind_double(q, 9, r->ttft_s);
        sqlite3_bind_int64(q, 10, r->kv_bytes);
        sqlite3_bind_int64(q, 11, r->kv_plan);
        sqlite3_bind_int64(q, 12, r->kv_dense);
        sqlite3_bind_int64(q, 13, r->kv_mha);
        bind_text(q, 14, r->device);
    }
    status = finish(s, q, "ending a run", err);
    (void)synced(s, false, NULL);
    return status;
}

void moa_run_tokens_free(moa_run_tokens *t) {
    free(t->ids);
    free(t->made);
    *t = (moa_run_tokens){.n_past = -1, .n_made = -1};
}

static moa_status put_ids(moa_store *s, const char *sql, int64_t run, const int32_t *ids, int32_t n, int32_t n_past, moa_err *err) {
    if (n < 0 || (size_t)n > TEXT_MAX / sizeof *ids)
        return moa_fail(err, MOA_E_INVALID, "session store: %d tokens of a run; at most %zu", n, TEXT_MAX / sizeof *ids);
    sqlite3_stmt *q = prepare(s, sql);
    if (q) {
        sqlite3_bind_int64(q, 1, run);
        bind_blob(q, 2, ids, (size_t)n * sizeof *ids);
        if (sqlite3_bind_parameter_count(q) > 2) sqlite3_bind_int(q, 3, n_past);
    }
    return finish(s, q, "storing a run's tokens", err);
}

moa_status moa_store_run_given(moa_store *s, int64_t run, int32_t n_past, const int32_t *ids, int32_t n, moa_err *err) {
    return put_ids(s, "INSERT INTO run_tokens(run, ids, n_past) VALUES(?1,?2,?3)"
                      " ON CONFLICT(run) DO UPDATE SET ids=excluded.ids, n_past=excluded.n_past", run, ids, n, n_past, err);
}

moa_status moa_store_run_made(moa_store *s, int64_t run, const int32_t *ids, int32_t n, moa_err *err) {
    return put_ids(s, "INSERT INTO run_tokens(run, made) VALUES(?1,?2) ON CONFLICT(run) DO UPDATE SET made=excluded.made", run, ids, n, 0,
                   err);
}

/* a blob of ids; what is none is as if it were not there */
static bool column_ids(sqlite3_stmt *q, int at, int32_t **ids, int32_t *n) {
    const int bytes = sqlite3_column_bytes(q, at);
    const void *data = sqlite3_column_blob(q, at);
    if (sqlite3_column_type(q, at) != SQLITE_BLOB || bytes < 0 || bytes > TEXT_MAX || bytes % (int)sizeof **ids != 0) return true;
    *ids = malloc((size_t)bytes + 1);
    if (!*ids) return false;
    if (bytes > 0) memcpy(*ids, data, (size_t)bytes);
    *n = bytes / (int)sizeof **ids;
    return true;
}

moa_status moa_store_run_tokens(moa_store *s, int64_t run, moa_run_tokens *out, moa_err *err) {
    *out = (moa_run_tokens){.n_past = -1, .n_made = -1};
    moa_status status = moa_store_tick(s, err);
    sqlite3_stmt *q = status == MOA_OK ? prepare(s, "SELECT n_past, ids, made FROM run_tokens WHERE run=?1") : NULL;
    if (status != MOA_OK) return status;
    if (!q) return sql_fail(s, "reading a run's tokens", err);
    sqlite3_bind_int64(q, 1, run);
    const int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        out->n_past = sqlite3_column_int(q, 0);
        if (!column_ids(q, 1, &out->ids, &out->n_ids) || !column_ids(q, 2, &out->made, &out->n_made))
            status = moa_fail(err, MOA_E_MEMORY, "no memory for a run's tokens");
        if (out->n_past < 0 || out->n_ids < 1) out->n_past = -1;
    } else if (code != SQLITE_DONE) {
        status = sql_fail(s, "reading a run's tokens", err);
    }
    sqlite3_finalize(q);
    return status;
}

static bool read_run(sqlite3_stmt *q, moa_run_record *out) {
    bool ok = true;
    *out = (moa_run_record){.id = sqlite3_column_int64(q, 0),
                            .session = sqlite3_column_int64(q, 1),
                            .started = sqlite3_column_double(q, 2),
                            .kind = column_text(q, 3, &ok),
                            .prompt = column_text(q, 4, &ok),
                            .plan = column_text(q, 5, &ok),
                            .sampling = column_text(q, 6, &ok),
                            .seed = (uint64_t)sqlite3_column_int64(q, 7),
                            .output = column_text(q, 8, &ok),
                            .n_prompt = sqlite3_column_int(q, 9),
                            .n_gen = sqlite3_column_int(q, 10),
                            .n_reserved = sqlite3_column_int(q, 11),
                            .stop = column_text(q, 12, &ok),
                            .stats = column_text(q, 13, &ok),
                            .prefill_s = sqlite3_column_double(q, 14),
                            .decode_s = sqlite3_column_double(q, 15),
                            .ttft_s = sqlite3_column_double(q, 16),
                            .kv_bytes = sqlite3_column_int64(q, 17),
                            .kv_plan = sqlite3_column_int64(q, 18),
                            .kv_dense = sqlite3_column_int64(q, 19),
                            .kv_mha = sqlite3_column_int64(q, 20),
                            .device = column_text(q, 21, &ok)};
    if (!ok) moa_run_record_free(out);
    return ok;
}

moa_status moa_store_run_list(moa_store *s, int64_t session, moa_run_record **out, int32_t *n, moa_err *err) {
    moa_buf rows = {0};
    moa_status status = MOA_OK;
    *out = NULL;
    *n = 0;
    sqlite3_stmt *q = prepare(s, "SELECT id, session, started, kind, prompt, plan, sampling, seed, output, n_prompt, n_gen,"
                                 " n_reserved, stop, stats, prefill_s, decode_s, ttft_s, kv_bytes, kv_plan, kv_dense, kv_mha,"
                                 " device FROM run WHERE session=?1 ORDER BY id");
    if (!q) return sql_fail(s, "listing runs", err);
    sqlite3_bind_int64(q, 1, session);
    int code;
    while (status == MOA_OK && (code = sqlite3_step(q)) != SQLITE_DONE) {
        moa_run_record *row = code == SQLITE_ROW ? moa_buf_extend(&rows, sizeof *row) : NULL;
        if (code != SQLITE_ROW) status = sql_fail(s, "listing runs", err);
        else if (!row || !read_run(q, row)) status = moa_fail(err, MOA_E_MEMORY, "no memory to list runs");
        else ++*n;
    }
    sqlite3_finalize(q);
    *out = (moa_run_record *)(void *)rows.data;
    if (status == MOA_OK) return MOA_OK;
    for (int32_t i = 0; i < *n; i++) moa_run_record_free(&(*out)[i]);
    moa_buf_free(&rows);
    *out = NULL;
    *n = 0;
    return status;
}
