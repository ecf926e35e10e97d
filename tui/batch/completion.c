/* completion.c -- `moascope completion bash|zsh|fish`: what the shell reads to complete commands, options and their values; the build
 * installs all three. */
#include "tui/batch/batch.h"
#include "tui/manual.h"

static const int options[] = {MOA_OPT_OUTPUT, MOA_OPT_END};

static moa_status run(const moa_args *args, moa_err *err) {
    const char *path = moa_args_text(args, MOA_OPT_OUTPUT);
    moa_buf text = {0};
    moa_status s = moa_manual_completion(moa_args_word(args, 0), &text, err);
    if (s == MOA_OK && !moa_buf_ok(&text)) s = moa_fail(err, MOA_E_MEMORY, "no memory for the completions");
    if (s == MOA_OK) s = moa_output_save(path ? path : "-", &text, err);
    moa_buf_free(&text);
    return s;
}

const moa_batch moa_batch_completion = {.name = "completion",
                                        .help = "what bash, zsh or fish read to complete our command lines",
                                        .usage = "bash [-o FILE]\nzsh [-o FILE]\nfish [-o FILE]",
                                        .options = options,
                                        .min_words = 1,
                                        .max_words = 1,
                                        .more = "bash: eval \"$(moascope completion bash)\" in ~/.bashrc\n"
                                                "zsh:  moascope completion zsh -o ~/.zfunc/_moascope, with that folder in fpath\n"
                                                "fish: moascope completion fish -o ~/.config/fish/completions/moascope.fish",
                                        .run = run};
