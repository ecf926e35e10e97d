/* main.c -- one executable: `moascope [MODEL]` opens the workbench, `moascope NAME ...` runs a subcommand of the table. */
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "core/base/text.h"
#include "tui/app.h"
#include "tui/batch/batch.h"
#include "version.h"

static int say_error(const char *name, const moa_err *err, moa_status s) {
    moa_buf line = {0};
    const char *text = err->text[0] ? err->text : moa_status_text(s);
    moa_text_clean(text, strlen(text), MOA_TEXT_LINE, &line);
    (void)fprintf(stderr, "moascope %s: %s\n", name, line.data ? line.data : moa_status_text(s));
    moa_buf_free(&line);
    return moa_status_exit_code(s);
}

static int run_command(const moa_batch *command, int argc, char **argv) {
    moa_err err = {0};
    moa_args args = {0};
    moa_status s = moa_args_parse(&args, command, argc, argv, &err);
    if (s == MOA_OK && moa_args_has(&args, MOA_OPT_HELP)) {
        moa_buf help = {0};
        moa_args_help(command, &help);
        (void)fputs(help.data ? help.data : "", stdout);
        moa_buf_free(&help);
    } else if (s == MOA_OK)
        s = command->run(&args, &err);
    moa_args_free(&args);
    int code = s == MOA_OK ? 0 : say_error(command->name, &err, s);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0) {
        (void)fprintf(stderr, "moascope %s: writing the result to stdout failed\n", command->name);
        code = 1;
    }
    return code;
}

static void print_help(void) {
    (void)printf("usage: moascope [MODEL] [options]       the workbench (full screen)\n"
                 "       moascope COMMAND ...             the same work without a screen\n\n");
    for (const moa_batch *const *c = moa_batch_table; *c; c++)
        (void)printf("  %-10s  %s\n", (*c)->name, (*c)->help);
    (void)printf(
        "\n`moascope COMMAND --help` tells a command's options, `moascope --version` what was built.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 input not valid or not supported, 4 out of memory,\n"
        "5 device failed, 130 interrupted.\n");
}

int main(int argc, char **argv) {
    /* only character types: numbers stay as JSON and options spell them */
    (void)setlocale(LC_CTYPE, "");
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || (strcmp(word, "help") == 0 && argc == 2)) {
        print_help();
        return fflush(stdout) == 0 ? 0 : 1;
    }
    if (strcmp(word, "--version") == 0) {
        (void)printf("moascope %s (%s)\n", MOA_VERSION, MOA_COMMIT);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    const bool help = strcmp(word, "help") == 0;
    for (const moa_batch *const *c = moa_batch_table; *c; c++) {
        char ask[] = "--help", *help_argv[] = {argv[0], ask};
        if (help && strcmp(argv[2], (*c)->name) == 0) return run_command(*c, 2, help_argv);
        if (strcmp(word, (*c)->name) == 0) return run_command(*c, argc - 1, argv + 1);
    }
    if (help) {
        (void)fprintf(stderr, "moascope help: there is no command '%s'\n", argv[2]);
        return 2;
    }
    return tui_workbench(argc, argv);
}
