/* sessions/: what is stored comes back, dies with nobody, and a damaged store harms nobody */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "sessions/store.h"

static char folder[64], path[128];

static int set_up(void **state) {
    (void)state;
    (void)snprintf(folder, sizeof folder, "/tmp/moa_sessions_XXXXXX");
    if (!mkdtemp(folder)) return 1;
    (void)snprintf(path, sizeof path, "%s/s.db", folder);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static moa_store *open_store(void) {
    moa_store *s;
    moa_err err = {0};
    char note[256];
    if (moa_store_open(&s, path, note, sizeof note, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_string_equal(note, "");
    return s;
}

static int64_t begin(moa_store *s) {
    moa_session session = {.model_path = (char *)"/m.gguf", .model_name = (char *)"m", .fingerprint = (char *)"ff",
                           .n_layer = 2, .n_head = 6, .n_head_kv = 2, .plan = (char *)"{}"};
    moa_err err = {0};
    if (moa_store_session_begin(s, &session, &err) != MOA_OK) fail_msg("%s", err.text);
    return session.id;
}

typedef struct seen {
    char labels[256];
    moa_change last;
    int32_t n;
} seen;

static bool note_edit(void *user, const char *label, const moa_change *changes, int32_t n) {
    seen *s = user;
    (void)snprintf(s->labels + strlen(s->labels), sizeof s->labels - strlen(s->labels), "%s;", label);
    if (n > 0) s->last = changes[n - 1];
    s->n++;
    return true;
}

static void test_edits_and_undo_survive(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    const int64_t id = begin(s);
    const moa_change change[] = {{0, 1, {0, 1}, {0.1, 1.0 / 3}}, {1, 5, {-1024, 1}, {64, 0}}};
    assert_int_equal(moa_store_edit_push(s, id, "a", change, 2, &err), MOA_OK);
    assert_int_equal(moa_store_edit_push(s, id, "b", change, 1, &err), MOA_OK);
    assert_int_equal(moa_store_edit_push(s, id, "c", change, 2, &err), MOA_OK);
    assert_int_equal(moa_store_undo_pos(s, id, 1, &err), MOA_OK);
    assert_int_equal(moa_store_undo_pos(s, id, 4, &err), MOA_E_INVALID);
    moa_store_close(&s);
    s = open_store();
    moa_session session;
    assert_int_equal(moa_store_session_get(s, 0, &session, &err), MOA_OK);
    assert_int_equal(session.id, id);
    assert_int_equal(session.undo_pos, 1);
    assert_int_equal(session.n_edit, 3);
    assert_string_equal(session.model_path, "/m.gguf");
    moa_session_free(&session);
    seen all = {0};
    assert_int_equal(moa_store_edits(s, id, note_edit, &all, &err), MOA_OK);
    assert_string_equal(all.labels, "a;b;c;");
    assert_memory_equal(&all.last, &change[1], sizeof all.last);
    /* a new edit after an undo drops what was undone */
    assert_int_equal(moa_store_edit_push(s, id, "d", change, 2, &err), MOA_OK);
    all = (seen){0};
    assert_int_equal(moa_store_edits(s, id, note_edit, &all, &err), MOA_OK);
    assert_string_equal(all.labels, "a;d;");
    assert_int_equal(moa_store_session_plan(s, id, "/p.json", "{1}", &err), MOA_OK);
    assert_int_equal(moa_store_session_get(s, id, &session, &err), MOA_OK);
    assert_int_equal(session.n_edit, 0);
    assert_int_equal(session.undo_pos, 0);
    assert_string_equal(session.plan, "{1}");
    moa_session_free(&session);
    moa_store_close(&s);
}

static void test_runs_come_back(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    moa_run_record run = {.session = begin(s), .kind = (char *)"plan", .prompt = (char *)"caf\xc3\xa9 \xff", .plan = (char *)"{}",
                          .sampling = (char *)"{}", .seed = UINT64_MAX};
    assert_int_equal(moa_store_run_begin(s, &run, &err), MOA_OK);
    assert_int_equal(moa_store_run_output(s, run.id, "one ", 4, 1, &err), MOA_OK);
    assert_int_equal(moa_store_run_output(s, run.id, "t\xff", 2, 1, &err), MOA_OK);
    run.n_prompt = 600;
    run.n_gen = 2;
    run.stop = (char *)"end";
    run.stats = (char *)"{\"entropy\":1}";
    run.decode_s = .5;
    run.kv_dense = 5000000000;
    assert_int_equal(moa_store_run_end(s, &run, &err), MOA_OK);
    moa_store_close(&s);
    s = open_store();
    moa_run_record *runs;
    int32_t n;
    assert_int_equal(moa_store_run_list(s, run.session, &runs, &n, &err), MOA_OK);
    assert_int_equal(n, 1);
    assert_string_equal(runs[0].output, "one t\xff");
    assert_string_equal(runs[0].prompt, "caf\xc3\xa9 \xff");
    assert_true(runs[0].seed == UINT64_MAX);
    assert_int_equal(runs[0].n_prompt, 600);
    assert_true(runs[0].kv_dense == 5000000000);
    assert_string_equal(runs[0].stop, "end");
    moa_run_record_free(&runs[0]);
    free(runs);
    moa_store_close(&s);
}

/* A writer that streams is killed; at most the last half second of what it said it had written may be gone. */
static void test_kill_loses_at_most_half_a_second(void **state) {
    (void)state;
    for (int round = 0; round < 8; round++) {
        int pipes[2];
        assert_int_equal(pipe(pipes), 0);
        const pid_t child = fork();
        if (child == 0) {
            moa_store *s;
            if (moa_store_open(&s, path, NULL, 0, NULL) != MOA_OK) _exit(1);
            moa_session session = {.n_layer = 1, .n_head = 1, .n_head_kv = 1};
            if (moa_store_session_begin(s, &session, NULL) != MOA_OK) _exit(1);
            moa_run_record run = {.session = session.id};
            if (moa_store_run_begin(s, &run, NULL) != MOA_OK) _exit(1);
            for (int64_t k = 0;; k++) {
                struct timespec t, pause = {0, 2000000};
                if (moa_store_run_output(s, run.id, "x", 1, 1, NULL) != MOA_OK) _exit(1);
                clock_gettime(CLOCK_MONOTONIC, &t);
                const int64_t row[2] = {k + 1, (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000};
                if (write(pipes[1], row, sizeof row) != sizeof row) _exit(1);
                nanosleep(&pause, NULL);
            }
        }
        assert_true(child > 0);
        close(pipes[1]);
        const struct timespec life = {0, 300000000 + round * 70000000};
        nanosleep(&life, NULL);
        kill(child, SIGKILL);
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        const int64_t died = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        int64_t row[2], said = 0;
        while (read(pipes[0], row, sizeof row) == sizeof row)
            if (row[1] <= died - 500) said = row[0];
        close(pipes[0]);
        moa_store *s = open_store();
        moa_session last;
        moa_run_record *runs;
        int32_t n;
        moa_err err = {0};
        assert_int_equal(moa_store_session_get(s, 0, &last, &err), MOA_OK);
        assert_int_equal(moa_store_run_list(s, last.id, &runs, &n, &err), MOA_OK);
        assert_int_equal(n, 1);
        if ((int64_t)strlen(runs[0].output) < said)
            fail_msg("round %d: %zu of %lld tokens kept", round, strlen(runs[0].output), (long long)said);
        assert_int_equal(runs[0].n_gen, strlen(runs[0].output));
        assert_string_equal(runs[0].stop, "");
        /* the dead owner does not keep the session */
        bool mine;
        assert_int_equal(moa_store_session_claim(s, last.id, &mine, &err), MOA_OK);
        assert_true(mine);
        assert_int_equal(moa_store_session_release(s, last.id, &err), MOA_OK);
        moa_session_free(&last);
        moa_run_record_free(&runs[0]);
        free(runs);
        moa_store_close(&s);
    }
}

static void test_a_living_owner_keeps_its_session(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    const int64_t id = begin(s);
    const pid_t child = fork();
    if (child == 0) {
        moa_store *other;
        bool mine = true;
        if (moa_store_open(&other, path, NULL, 0, NULL) != MOA_OK) _exit(2);
        if (moa_store_session_claim(other, id, &mine, NULL) != MOA_OK) _exit(3);
        _exit(mine ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 0);
    bool mine = false;
    assert_int_equal(moa_store_session_claim(s, id, &mine, &err), MOA_OK);
    assert_true(mine); /* our own */
    assert_int_equal(moa_store_session_claim(s, id + 99, &mine, &err), MOA_E_INVALID);
    moa_store_close(&s);
}

static void run_of_kind(moa_store *s, int64_t session, const char *kind) {
    moa_run_record run = {.session = session, .kind = (char *)(uintptr_t)kind, .prompt = (char *)"as run"};
    moa_err err = {0};
    assert_int_equal(moa_store_run_begin(s, &run, &err), MOA_OK);
}

static void test_the_last_session_is_one_of_the_workbench(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    moa_session last;
    const moa_change change = {0, 1, {0, 1}, {0, 0.5}};
    assert_int_equal(moa_store_session_last(s, NULL, &last, &err), MOA_E_INVALID);
    const int64_t edited = begin(s), ran = begin(s), batch = begin(s), idle = begin(s);
    run_of_kind(s, batch, "run");
    run_of_kind(s, batch, "chat");
    assert_true(idle > batch);
    assert_int_equal(moa_store_session_last(s, NULL, &last, &err), MOA_E_INVALID); /* no edit, no run of the workbench */
    assert_int_equal(moa_store_edit_push(s, edited, "a", &change, 1, &err), MOA_OK);
    assert_int_equal(moa_store_session_last(s, NULL, &last, &err), MOA_OK);
    assert_int_equal(last.id, edited);
    moa_session_free(&last);
    run_of_kind(s, ran, "compare");
    assert_int_equal(moa_store_session_last(s, "/m.gguf", &last, &err), MOA_OK);
    assert_int_equal(last.id, ran);
    assert_string_equal(last.prompt, "as run");
    moa_session_free(&last);
    assert_int_equal(moa_store_session_last(s, "/other.gguf", &last, &err), MOA_E_INVALID);
    /* a prompt that was not run goes before the one that was */
    assert_int_equal(moa_store_session_prompt(s, ran, "typed", 5, &err), MOA_OK);
    assert_int_equal(moa_store_session_prompt(s, ran, "typed since", 11, &err), MOA_OK);
    moa_store_close(&s);
    s = open_store();
    assert_int_equal(moa_store_session_last(s, NULL, &last, &err), MOA_OK);
    assert_string_equal(last.prompt, "typed since");
    moa_session_free(&last);
    moa_store_close(&s);
}

/* a number that another program has by now */
static void test_another_program_owns_nothing(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    bool mine = false;
    const int64_t id = begin(s);
    char text[96];
    sqlite3 *db;
    const pid_t other = fork();
    if (other == 0) {
        (void)execlp("sleep", "sleep", "60", (char *)NULL);
        _exit(127);
    }
    assert_true(other > 0);
    char comm[64], name[32] = "";
    (void)snprintf(comm, sizeof comm, "/proc/%d/comm", (int)other);
    for (int i = 0; i < 5000 && strncmp(name, "sleep", 5) != 0; i++) { /* until it is another program */
        FILE *f = fopen(comm, "re");
        if (f) {
            if (!fgets(name, sizeof name, f)) name[0] = 0;
            (void)fclose(f);
        }
        (void)usleep(1000);
    }
    (void)snprintf(text, sizeof text, "UPDATE session SET owner_pid=%d", (int)other);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(moa_store_session_claim(s, id, &mine, &err), MOA_OK);
    assert_true(mine);
    (void)kill(other, SIGKILL);
    (void)waitpid(other, NULL, 0);
    moa_store_close(&s);
}

static void test_damaged_store_is_moved_aside(void **state) {
    (void)state;
    moa_err err = {0};
    char note[512], aside[160];
    moa_buf junk = {0};
    for (int i = 0; i < 5000; i++) moa_buf_str(&junk, "not a database ");
    assert_int_equal(moa_file_save(path, junk.data, junk.size, 0600, 0, &err), MOA_OK);
    moa_store *s;
    if (moa_store_open(&s, path, note, sizeof note, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_non_null(strstr(note, "damaged-1"));
    (void)begin(s);
    moa_store_close(&s);
    (void)snprintf(aside, sizeof aside, "%s.damaged-1", path);
    moa_buf kept = {0};
    assert_int_equal(moa_file_read(aside, 1 << 20, &kept, &err), MOA_OK);
    assert_int_equal(kept.size, junk.size);
    assert_memory_equal(kept.data, junk.data, junk.size);
    moa_buf_free(&kept);
    moa_buf_free(&junk);
}

static void test_newer_schema_is_refused(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_store_close(&s);
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    moa_err err = {0};
    assert_int_equal(moa_store_open(&s, path, NULL, 0, &err), MOA_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "schema 99"));
    assert_null(s);
}

static void sql(const char *text) {
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static int rows_left(const char *query) {
    sqlite3 *db;
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, query, -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    const int n = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return n;
}

/* prunes and writes down which went, newest first */
static void pruned(moa_store *s, moa_prune what, const char *want, int32_t want_open) {
    moa_session *gone;
    int32_t n, n_open;
    char ids[64] = "";
    moa_err err = {0};
    if (moa_store_prune(s, &what, &gone, &n, &n_open, &err) != MOA_OK) fail_msg("%s", err.text);
    for (int32_t i = 0; i < n; i++) {
        (void)snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%lld;", (long long)gone[i].id);
        moa_session_free(&gone[i]);
    }
    free(gone);
    assert_string_equal(ids, want);
    assert_int_equal(n_open, want_open);
}

static void test_prune_takes_the_old_and_leaves_the_open(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    const moa_change change = {0, 1, {0, 1}, {0, 0.5}};
    for (int i = 1; i <= 6; i++) { /* session 1 is the oldest */
        const int64_t id = begin(s);
        assert_int_equal(id, i);
        run_of_kind(s, id, "run");
        assert_int_equal(moa_store_session_prompt(s, id, "draft", 5, &err), MOA_OK);
        assert_int_equal(moa_store_edit_push(s, id, "a", &change, 1, &err), MOA_OK);
        if (i != 2) assert_int_equal(moa_store_session_release(s, id, &err), MOA_OK); /* 2 stays this process's */
    }
    sql("UPDATE session SET changed = unixepoch('now') - (7 - id) * 86400.0");
    pruned(s, (moa_prune){.older_s = 3.5 * 86400, .dry_run = true}, "3;1;", 1);
    assert_int_equal(rows_left("SELECT count(*) FROM session"), 6); /* only said */
    pruned(s, (moa_prune){.older_s = 3.5 * 86400, .keep = 5}, "1;", 0); /* 1 alone is both old and beyond the newest 5 */
    pruned(s, (moa_prune){.older_s = 3.5 * 86400}, "3;", 1);
    pruned(s, (moa_prune){.keep = 1}, "5;4;", 1);
    assert_int_equal(rows_left("SELECT count(*) FROM session"), 2);
    assert_int_equal(rows_left("SELECT count(*) FROM run WHERE session NOT IN (2, 6)"), 0);
    assert_int_equal(rows_left("SELECT count(*) FROM edit WHERE session NOT IN (2, 6)"), 0);
    assert_int_equal(rows_left("SELECT count(*) FROM draft WHERE session NOT IN (2, 6)"), 0);
    assert_int_equal(rows_left("SELECT (SELECT count(*) FROM run) + (SELECT count(*) FROM edit) + (SELECT count(*) FROM draft)"), 6);
    moa_store_close(&s);
}

/* what cannot go whole stays whole */
static void test_prune_is_one_transaction(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_session *gone;
    int32_t n, n_open;
    moa_err err = {0};
    for (int i = 0; i < 3; i++) {
        const int64_t id = begin(s);
        run_of_kind(s, id, "run");
        assert_int_equal(moa_store_session_release(s, id, &err), MOA_OK);
    }
    sql("CREATE TRIGGER stop BEFORE DELETE ON session WHEN old.id=1 BEGIN SELECT raise(ABORT, 'not this one'); END");
    const moa_prune all = {0};
    assert_int_equal(moa_store_prune(s, &all, &gone, &n, &n_open, &err), MOA_E_IO);
    assert_non_null(strstr(err.text, "not this one"));
    assert_null(gone);
    assert_int_equal(n, 0);
    assert_int_equal(rows_left("SELECT count(*) FROM session"), 3);
    assert_int_equal(rows_left("SELECT count(*) FROM run"), 3);
    sql("DROP TRIGGER stop");
    pruned(s, all, "3;2;1;", 0); /* the failed one left no transaction open */
    moa_store_close(&s);
}

static void test_compacting_gives_the_space_back(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_err err = {0};
    struct stat before, after;
    const int64_t id = begin(s);
    char *text = calloc(1, 2000001);
    assert_non_null(text);
    memset(text, 'x', 2000000);
    moa_run_record run = {.session = id, .prompt = text};
    assert_int_equal(moa_store_run_begin(s, &run, &err), MOA_OK);
    free(text);
    assert_int_equal(moa_store_session_release(s, id, &err), MOA_OK);
    assert_int_equal(moa_store_compact(s, &err), MOA_OK);
    assert_int_equal(stat(path, &before), 0);
    assert_true(before.st_size > 2000000);
    pruned(s, (moa_prune){0}, "1;", 0);
    assert_int_equal(moa_store_compact(s, &err), MOA_OK);
    assert_int_equal(stat(path, &after), 0);
    assert_true(after.st_size < 200000);
    moa_store_close(&s);
}

/* Random bytes flipped in a real store: every call returns, and says so or works. */
static void test_flipped_bytes_never_crash(void **state) {
    (void)state;
    moa_store *s = open_store();
    moa_run_record run = {.session = begin(s), .prompt = (char *)"hello"};
    const moa_change change = {0, 1, {0, 1}, {0, .5}};
    assert_int_equal(moa_store_edit_push(s, run.session, "a", &change, 1, NULL), MOA_OK);
    assert_int_equal(moa_store_run_begin(s, &run, NULL), MOA_OK);
    moa_store_close(&s);
    moa_buf good = {0};
    assert_int_equal(moa_file_read(path, 1 << 24, &good, NULL), MOA_OK);
    uint32_t seed = 7;
    for (int round = 0; round < 200; round++) {
        moa_buf b = {0};
        moa_buf_append(&b, good.data, good.size);
        for (int k = 0; k < 12; k++) {
            seed = seed * 1664525u + 1013904223u;
            b.data[(seed >> 8) % b.size] ^= (char)(1 << (seed >> 5 & 7));
        }
        assert_int_equal(moa_file_save(path, b.data, b.size, 0600, 0, NULL), MOA_OK);
        moa_buf_free(&b);
        if (moa_store_open(&s, path, NULL, 0, NULL) != MOA_OK) continue;
        moa_session *sessions;
        int32_t n;
        seen all = {0};
        if (moa_store_session_list(s, 100, &sessions, &n, NULL) == MOA_OK) {
            for (int32_t i = 0; i < n; i++) {
                moa_run_record *runs;
                int32_t n_run;
                (void)moa_store_edits(s, sessions[i].id, note_edit, &all, NULL);
                if (moa_store_run_list(s, sessions[i].id, &runs, &n_run, NULL) == MOA_OK) {
                    for (int32_t r = 0; r < n_run; r++) moa_run_record_free(&runs[r]);
                    free(runs);
                }
                moa_session_free(&sessions[i]);
            }
            free(sessions);
        }
        moa_store_close(&s);
    }
    moa_buf_free(&good);
}

static void test_files_are_private(void **state) {
    (void)state;
    moa_store *s = open_store();
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    moa_store_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(test_edits_and_undo_survive),       T(test_runs_come_back),
        T(test_kill_loses_at_most_half_a_second), T(test_a_living_owner_keeps_its_session), T(test_the_last_session_is_one_of_the_workbench),
        T(test_another_program_owns_nothing),
        T(test_prune_takes_the_old_and_leaves_the_open), T(test_prune_is_one_transaction),
        T(test_compacting_gives_the_space_back),
        T(test_damaged_store_is_moved_aside), T(test_newer_schema_is_refused),
        T(test_flipped_bytes_never_crash),    T(test_files_are_private),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
