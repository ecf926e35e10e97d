/* batch.h -- subcommands: `moascope NAME ...` does the work of the workbench without a screen.
 *
 * One file a subcommand: tui/batch/NAME.c defines `const moa_batch moa_batch_NAME`; the build puts it in the table. main() parses the
 * command line by the option table, answers --help, calls run, prints the error and turns the status into the exit code, so a
 * subcommand holds just its work:
 *
 *     static moa_status run(const moa_args *args, moa_err *err) { ... }
 *     static const int options[] = {MOA_OPT_DEVICE, MOA_OPT_JSON, MOA_OPT_END};
 *     static const moa_option own[] = {{"--items", MOA_OPTION_INT, "N", "50", 1, 1e6, false, "items to take"}, {0}};
 *     const moa_batch moa_batch_NAME = {.name = "NAME", .help = "...", .usage = "MODEL --data F", .options = options,
 *                                       .own = own, .min_words = 1, .max_words = 1, .run = run};
 *
 * Results go to stdout, progress and remarks to stderr; nothing half-written under a final name. */
#ifndef MOA_TUI_BATCH_BATCH_H
#define MOA_TUI_BATCH_BATCH_H

#include "core/base/status.h"
#include "tui/options.h"

struct moa_batch {
    const char *name;
    const char *help;         /* one line */
    const char *usage;        /* what follows the name; several lines for several forms */
    const int *options;       /* MOA_OPT_* up to MOA_OPT_END; --help is always taken */
    const moa_option *own;    /* rows of its own up to one without spellings, or NULL */
    int min_words, max_words; /* words that are not options (MODEL, files); a given --model counts as one */
    const char *more;         /* paragraphs after the options of --help, or NULL */
    moa_status (*run)(const moa_args *args, moa_err *err);
};

#include "batch_list.h"
#define X(name) extern const moa_batch moa_batch_##name;
MOA_BATCH_LIST(X)
#undef X

/* tui/app.c: the options of the workbench itself, which has no name and is not in the table */
extern const moa_batch moa_batch_workbench;

/* NULL-terminated, in order of name */
extern const moa_batch *const moa_batch_table[];

/* --- what several subcommands share (tui/common.c) ------------------------------------------------------------------------ */

/* ^C: after moa_interrupt_catch() SIGINT and SIGTERM only set a flag; a second one 0.2 to 2 s later ends the program (exit 130). */
void moa_interrupt_catch(void);
bool moa_interrupted(void *unused); /* fits moa_run_config.cancelled and moa_forward.cancelled */
void moa_interrupt_clear(void);

/* Remarks on stderr: one line "moascope NAME: ...", cleaned; nothing with --quiet. */
void moa_remark(const moa_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Progress on stderr when it is a terminal: "label 45%  230/512 unit, 3 min left", overwritten in place; done >= total
 * ends it; a no-op otherwise. */
void moa_progress_show(const moa_args *args, const char *label, double done, double total, const char *unit);

/* Writes text to FILE, or to stdout for "-". */
moa_status moa_output_save(const char *path, const moa_buf *text, moa_err *err);

#endif
