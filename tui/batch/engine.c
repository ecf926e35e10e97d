/* engine.c -- `moascope engine`: the engine process of the workbench. stdin and stdout are the wire, stderr is its log. */
#include <stdio.h>
#include <unistd.h>

#include "core/engine/serve.h"
#include "tui/batch/batch.h"

static moa_status run(const moa_args *args, moa_err *err) {
    if (moa_args_has(args, MOA_OPT_OWN)) {
        moa_buf text = {0};
        moa_serve_devices(&text);
        const moa_status s = moa_output_save("-", &text, err);
        moa_buf_free(&text);
        return s;
    }
    if (isatty(STDIN_FILENO) || isatty(STDOUT_FILENO))
        return moa_fail(
            err, MOA_E_USAGE,
            "the engine process talks in framed messages on stdin and stdout, which is a terminal "
            "here; `moascope` starts it by itself");
    static const char *const devices[] = {"/proc/self/exe", "engine", "--devices", NULL};
    return moa_serve(
        &(moa_serve_config){.in_fd = STDIN_FILENO, .out_fd = STDOUT_FILENO, .devices_command = devices}, err);
}

static const moa_option own[] = {
    {"--devices", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "list the devices to compute on, and leave"},
    {0},
};

const moa_batch moa_batch_engine = {
    .name = "engine",
    .help = "the engine process: framed messages on stdin and stdout (the workbench starts it itself)",
    .usage = "[--devices]",
    .own = own,
    .run = run,
};
