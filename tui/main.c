/* main.c -- one executable: `moascope [MODEL]` opens the workbench, `moascope NAME ...` runs a subcommand of the table. */
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

/* how many letters must be changed, added or left out to make one word of the other; words of at most 15 letters, else 15 */
static int letters_apart(const char *a, const char *b) {
    int row[17];
    const int n = (int)strlen(b);
    if (n > 15 || strlen(a) > 15) return 15;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int above = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = above + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            above = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

/* the command that was meant by a word that is none and names no file: a full screen that looks for such a model would be no answer */
static const char *meant(const char *word) {
    const char *best = NULL;
    int apart = 3;
    if (strlen(word) < 3 || *word == '-' || strpbrk(word, "./") || access(word, F_OK) == 0) return NULL;
    for (const moa_batch *const *c = moa_batch_table; *c; c++) {
        const int k = letters_apart(word, (*c)->name);
        if (k < apart && k * 2 <= (int)strlen(word)) apart = k, best = (*c)->name;
    }
    return best;
}

static void print_help(void) {
    (void)printf("usage: moascope [MODEL] [options]       the workbench (full screen)\n"
                 "       moascope COMMAND ...             the same work without a screen\n\n");
    for (const moa_batch *const *c = moa_batch_table; *c; c++)
        (void)printf("  %-10s  %s\n", (*c)->name, (*c)->help);
    (void)printf(
        "\n`moascope COMMAND --help` tells a command's options, `moascope man` all of them, `moascope --version` what was built.\n"
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
    const char *near = meant(word);
    if (near) {
        (void)fprintf(stderr, "moascope: there is no command '%s'; did you mean '%s'? (a model of that name: --model %s)\n", word, near, word);
        return 2;
    }
    return tui_workbench(argc, argv);
}
