/* man.c -- `moascope man`: the manual page, for `moascope man | man -l -`; the build installs it. */
#include "tui/batch/batch.h"
#include "tui/manual.h"

static const int options[] = {MOA_OPT_OUTPUT, MOA_OPT_END};

static moa_status run(const moa_args *args, moa_err *err) {
    const char *path = moa_args_text(args, MOA_OPT_OUTPUT);
    moa_buf text = {0};
    moa_manual_page(&text);
    const moa_status s =
        moa_buf_ok(&text) ? moa_output_save(path ? path : "-", &text, err) : moa_fail(err, MOA_E_MEMORY, "no memory for the manual page");
    moa_buf_free(&text);
    return s;
}

const moa_batch moa_batch_man = {.name = "man",
                                 .help = "the manual page: moascope man | man -l -",
                                 .usage = "[-o FILE]",
                                 .options = options,
                                 .min_words = 0,
                                 .max_words = 0,
                                 .run = run};
