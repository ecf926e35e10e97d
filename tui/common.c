/* common.c -- what subcommands share: their table, ^C, remarks and progress on stderr, saving a result. */
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/text.h"
#include "tui/batch/batch.h"

const moa_batch *const moa_batch_table[] = {
#define X(name) &moa_batch_##name,
    MOA_BATCH_LIST(X)
#undef X
        NULL};

/* --- ^C --------------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupt_flag;
static volatile int64_t interrupt_ms; /* when the flag was set */

static void on_interrupt(int signal_number) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    const int64_t ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    /* who signals the process and then its group (timeout does) means one interruption, not two */
    if (interrupt_flag && ms - interrupt_ms < 200) return;
    if (interrupt_flag && ms - interrupt_ms <= 2000) _exit(128 + signal_number);
    interrupt_flag = 1;
    interrupt_ms = ms;
}

void moa_interrupt_catch(void) {
    struct sigaction act = {.sa_handler = on_interrupt}; /* no SA_RESTART: a read at a prompt comes back */
    (void)sigaction(SIGINT, &act, NULL);
    (void)sigaction(SIGTERM, &act, NULL);
}

bool moa_interrupted(void *unused) {
    (void)unused;
    return interrupt_flag != 0;
}

void moa_interrupt_clear(void) {
    interrupt_flag = 0;
}

/* --- stderr ------------------------------------------------------------------------------------------------------------ */

void moa_remark(const moa_args *args, const char *format, ...) {
    if (moa_option_row(args->command, MOA_OPT_QUIET) && moa_args_has(args, MOA_OPT_QUIET)) return;
    char text[1024];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(text, sizeof text, format, list);
    va_end(list);
    moa_buf line = {0};
    moa_text_clean(text, strlen(text), MOA_TEXT_LINE, &line);
    if (line.data) (void)fprintf(stderr, "moascope %s: %s\n", args->command->name, line.data);
    moa_buf_free(&line);
}

static double between(const struct timespec *a, const struct timespec *b) {
    return (double)(b->tv_sec - a->tv_sec) + 1e-9 * (double)(b->tv_nsec - a->tv_nsec);
}

/* "" until there is something to go by */
static void time_left(double spent, double made, double left, char *out, size_t out_bytes) {
    const double s = made > 0 ? spent / made * left : 0;
    out[0] = 0;
    if (spent < 3 || made <= 0) return;
    if (s < 90)
        (void)snprintf(out, out_bytes, ", %.0f s left", s);
    else if (s < 5400)
        (void)snprintf(out, out_bytes, ", %.0f min left", s / 60);
    else
        (void)snprintf(out, out_bytes, ", %.1f h left", s / 3600);
}

void moa_progress_show(const moa_args *args, const char *label, double done, double total, const char *unit) {
    static struct timespec last; /* one progress line a program: there is one stderr */
    static struct {              /* when the work under way was first heard of, and how far it was */
        char label[32];
        struct timespec at;
        double done, total;
    } first;
    if (!isatty(STDERR_FILENO) || total <= 0) return;
    if (moa_option_row(args->command, MOA_OPT_QUIET) && moa_args_has(args, MOA_OPT_QUIET)) return;
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    if (done < total && between(&last, &now) < 0.1) return;
    last = now;
    if (strncmp(first.label, label, sizeof first.label - 1) != 0 || first.total != total || done < first.done) {
        (void)snprintf(first.label, sizeof first.label, "%s", label);
        first.at = now, first.done = done, first.total = total;
    }
    if (done >= total) {
        (void)fputs("\r\033[K", stderr);
        first.label[0] = 0;
    } else {
        char left[40];
        time_left(between(&first.at, &now), done - first.done, total - done, left, sizeof left);
        (void)fprintf(stderr, "\r%s %3.0f%%  %.0f/%.0f %s%s\033[K", label, 100 * done / total, done, total, unit,
                      left);
    }
    (void)fflush(stderr);
}

moa_status moa_output_save(const char *path, const moa_buf *text, moa_err *err) {
    if (!moa_buf_ok(text)) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for the result", path);
    if (strcmp(path, "-") != 0)
        return moa_file_save(path, text->data ? text->data : "", text->size, 0644, 0, err);
    if (fwrite(text->data ? text->data : "", 1, text->size, stdout) != text->size || fflush(stdout) != 0)
        return moa_fail(err, MOA_E_IO, "writing the result to stdout failed");
    return MOA_OK;
}
