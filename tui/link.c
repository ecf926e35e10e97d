/* link.c -- the pipe to the engine process: start it, write without waiting, read what is there, notice its end. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tui/app.h"
#include "tui/journal.h"
#include "tui/search.h"
#include "tui/term.h"

/* in the child: standard streams to the pipes, then the program; never returns */
static void become_engine(const char *command, int in, int out) {
    static const int back[] = {SIGTSTP, SIGINT, SIGPIPE, SIGCHLD, SIGWINCH, SIGTERM, SIGHUP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < sizeof back / sizeof *back; i++) (void)signal(back[i], SIG_DFL);
    (void)setsid(); /* keys that make signals are for the screen's process alone */
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0) _exit(126);
    if (*command) (void)execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    else (void)execl("/proc/self/exe", "moascope", "engine", (char *)NULL);
    _exit(127);
}

moa_status tui_link_open(tui_app *app, moa_err *err) {
    tui_link *l = &app->link;
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    tui_link_close(app);
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) {
        const int e = errno;
        if (to[0] >= 0) (void)close(to[0]), (void)close(to[1]);
        return moa_fail(err, MOA_E_FAILED, "no pipe for the engine: %s", strerror(e));
    }
    l->pid = fork();
    if (l->pid == 0) become_engine(app->options.engine, to[0], from[1]);
    (void)close(to[0]);
    (void)close(from[1]);
    if (l->pid < 0) {
        (void)close(to[1]);
        (void)close(from[0]);
        l->pid = 0;
        return moa_fail(err, MOA_E_FAILED, "cannot start the engine process: %s", strerror(errno));
    }
    l->fd_out = to[1];
    l->fd_in = from[0];
    (void)fcntl(l->fd_out, F_SETFL, O_NONBLOCK);
    (void)fcntl(l->fd_in, F_SETFL, O_NONBLOCK);
    l->state = TUI_LINK_HELLO;
    l->why[0] = 0;
    l->asked_at = 0;
    moa_wire_msg hello = {.type = MOA_WIRE_HELLO};
    hello.u.hello.version = MOA_WIRE_VERSION;
    hello.u.hello.client = (moa_wire_str){"moascope", 8};
    const moa_status s = tui_link_send(app, &hello, err);
    return l->state == TUI_LINK_DEAD ? MOA_OK : s; /* it started and died: said already, like a death at any other time */
}

/* To all of its process group: what --engine names runs under a shell, and would outlive it. */
void tui_link_signal(pid_t pid, int sig) {
    if (pid > 0 && kill(-pid, sig) != 0) (void)kill(pid, sig); /* it has no group yet */
}

/* waits up to 300 ms for a child that was told to end, then kills it */
static int reap(pid_t pid) {
    int status = 0;
    for (int i = 0; i < 60; i++) {
        const pid_t r = waitpid(pid, &status, WNOHANG);
        if (r == pid || (r < 0 && errno == ECHILD)) return status;
        (void)usleep(5000);
    }
    tui_link_signal(pid, SIGKILL);
    (void)waitpid(pid, &status, 0);
    return status;
}

/* a run whose engine is taken away on purpose */
static void leave_run(tui_app *app) {
    tui_planner_forget_engine(app, "the engine was stopped");
    if (app->slot_running < 0) return;
    tui_run *r = &app->runs[app->slot_running];
    r->state = TUI_RUN_FAILED;
    (void)snprintf(r->failed, sizeof r->failed, "the engine was stopped");
    journal_run_end(app, r);
    app->slot_running = -1;
    app->map_waiting = app->map_again = app->compare_next = app->blame.active = false;
    app->tokenize_job = 0;
}

void tui_link_close(tui_app *app) {
    tui_link *l = &app->link;
    leave_run(app);
    if (l->fd_out > 0 && l->state != TUI_LINK_DEAD) {
        moa_wire_msg quit = {.type = MOA_WIRE_QUIT};
        (void)tui_link_send(app, &quit, NULL);
        tui_link_flush(app);
    }
    if (l->fd_out > 0) (void)close(l->fd_out);
    if (l->fd_in > 0) (void)close(l->fd_in);
    l->fd_in = l->fd_out = -1;
    if (l->pid > 0) {
        tui_link_signal(l->pid, SIGTERM);
        (void)reap(l->pid);
        (void)kill(-l->pid, SIGKILL); /* who of its group is still there does not listen */
    }
    l->pid = 0;
    l->out_done = 0;
    moa_buf_free(&l->out);
    moa_wire_reader_free(&l->reader);
    l->reader = (moa_wire_reader){0};
    l->state = TUI_LINK_OFF;
}

/* the engine is gone: says why, keeps everything else */
static void died(tui_app *app, const char *what) {
    tui_link *l = &app->link;
    if (l->state == TUI_LINK_DEAD || l->state == TUI_LINK_OFF) return;
    char how[256] = "";
    if (l->fd_out > 0) (void)close(l->fd_out);
    if (l->fd_in > 0) (void)close(l->fd_in);
    l->fd_in = l->fd_out = -1;
    if (l->pid > 0) {
        int status = 0;
        pid_t r = 0;
        for (int i = 0; i < 20 && (r = waitpid(l->pid, &status, WNOHANG)) == 0; i++) (void)usleep(5000);
        if (r == 0) {
            tui_link_signal(l->pid, SIGTERM);
            status = reap(l->pid);
        }
        if (*app->options.engine && WIFEXITED(status) && WEXITSTATUS(status) > 128) status = WEXITSTATUS(status) - 128; /* as sh says it */
        if (WIFSIGNALED(status)) (void)snprintf(how, sizeof how, "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
        else if (WEXITSTATUS(status) == 127) (void)snprintf(how, sizeof how, "it could not be started (exit status 127)");
        else (void)snprintf(how, sizeof how, "exit status %d", WEXITSTATUS(status));
    }
    l->pid = 0;
    const char *last = app->slot_running >= 0 ? app->runs[app->slot_running].failed : "";
    (void)snprintf(l->why, sizeof l->why, "%.120s%s%.90s%s%.200s", what, *how ? ": " : "", how, *last ? ". Last message: " : "", last);
    l->state = TUI_LINK_DEAD;
    if (app->slot_running >= 0) {
        tui_run *r = &app->runs[app->slot_running];
        r->state = TUI_RUN_FAILED;
        if (!*r->failed) (void)snprintf(r->failed, sizeof r->failed, "the engine ended: %.400s", l->why);
        journal_run_end(app, r);
        app->slot_running = -1;
    }
    tui_planner_forget_engine(app, "the engine ended");
    app->map_waiting = app->map_again = app->compare_next = app->blame.active = false;
    app->tokenize_job = 0;
    tui_say(app, TUI_BAD, "The engine ended (%s). Everything is kept: :engine restart, or :engine restart cpu", l->why);
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i)->event) tui_view_at(i)->event(app, TUI_EV_DEAD);
    tui_dirty(app);
}

void tui_link_flush(tui_app *app) {
    tui_link *l = &app->link;
    while (l->fd_out > 0 && l->out_done < l->out.size) {
        const ssize_t n = write(l->fd_out, l->out.data + l->out_done, l->out.size - l->out_done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            tui_link_read(app); /* it may have said why */
            died(app, "it closed its input");
            return;
        }
        l->out_done += (size_t)n;
    }
    moa_buf_clear(&l->out);
    l->out_done = 0;
}

moa_status tui_link_send(tui_app *app, moa_wire_msg *msg, moa_err *err) {
    tui_link *l = &app->link;
    if (l->fd_out <= 0) return moa_fail(err, MOA_E_FAILED, "there is no engine%s%s", l->state == TUI_LINK_DEAD ? ": it ended; :engine restart" : "", "");
    if (msg->type != MOA_WIRE_CANCEL) msg->job = ++l->job;
    const moa_status s = moa_wire_encode(msg, &l->out, err);
    if (s != MOA_OK) return s;
    tui_link_flush(app);
    /* it may be found dead just here: no answer will come, and nobody may wait for one */
    if (l->fd_out <= 0) return moa_fail(err, MOA_E_FAILED, "the engine has ended: :engine restart");
    return MOA_OK;
}

void tui_link_read(tui_app *app) {
    tui_link *l = &app->link;
    moa_err err = {0};
    for (int turns = 0; turns < 64 && l->fd_in > 0; turns++) { /* bounded: keys come first after 4 MiB */
        bool closed = false;
        const size_t before = l->reader.size;
        moa_status s = moa_wire_fill(&l->reader, l->fd_in, &closed, &err);
        const bool none = s == MOA_OK && !closed && l->reader.size == before;
        bool got = true;
        while (s == MOA_OK && got && l->fd_in > 0) {
            moa_wire_msg msg;
            s = moa_wire_next(&l->reader, &msg, &got, &err);
            if (s == MOA_OK && got) tui_message(app, &msg);
        }
        if (s != MOA_OK) {
            char what[400];
            (void)snprintf(what, sizeof what, "it sent what is not a message (%.300s)", err.text);
            died(app, what);
            return;
        }
        if (closed) {
            died(app, "it ended");
            return;
        }
        if (none) return;
    }
}
