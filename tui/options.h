/* options.h -- the command line's options: one table feeds parsing, checking, defaults, --help, and whatever lists them
 * (manual page, completions).
 *
 *   row       spellings (the first is the name the documentation uses; the others are what llama.cpp users type and mean the
 *             same), kind, argument as shown, default, range, help
 *   command   says which rows it takes (moa_batch.options) and may bring rows of its own (moa_batch.own), so that a
 *             new subcommand stays one new file
 *   args      what was given, checked against the rows: getters cannot fail
 *
 * A value not given comes from MOASCOPE_NAME, then LLAMA_ARG_NAME of the environment for rows marked ENV, then from the default. */
#ifndef MOA_TUI_OPTIONS_H
#define MOA_TUI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/buf.h"
#include "core/base/status.h"

typedef enum moa_option_kind {
    MOA_OPTION_FLAG, /* no argument */
    MOA_OPTION_TEXT,
    MOA_OPTION_INT,  /* decimal integer in [min, max] */
    MOA_OPTION_REAL, /* finite number in [min, max] */
    MOA_OPTION_INTS, /* comma-separated integers in [min, max] */
    MOA_OPTION_LIST, /* texts: this and the words after it, up to the next option; may be repeated */
} moa_option_kind;

typedef struct moa_option {
    const char *spellings; /* "--device -dev" */
    moa_option_kind kind;
    const char *arg;   /* shown in the help: "auto|cpu|cuda|cuda:I"; NULL for flags */
    const char *value; /* default, as it would be typed; NULL: none */
    double min, max;   /* of INT, REAL, INTS */
    bool env;          /* also from the environment */
    const char *help;  /* one line */
} moa_option;

/* id, spellings, kind, argument, default, min, max, env, help */
#define MOA_OPTION_MAP(X)                                                                                    \
    X(HELP, "--help -h", FLAG, NULL, NULL, 0, 0, false, "this text")                                         \
    X(MODEL, "--model -m", TEXT, "MODEL", NULL, 0, 0, true, "the model, as an option instead of a word")     \
    X(DEVICE, "--device -dev", TEXT, "auto|cpu|cuda|cuda:I", "auto", 0, 0, true,                             \
      "where to compute; auto: the first usable GPU, else the CPU")                                          \
    X(PLAN, "--plan", TEXT, "FILE|full|uniform:D|sink", "full", 0, 0, false,                                 \
      "span rules; uniform:0.5 = alpha 0, beta 0.5 for every head")                                          \
    X(PROMPT, "--prompt -p", TEXT, "TEXT", NULL, 0, 0, false, "the input as text")                           \
    X(PROMPT_FILE, "--prompt-file -f --file", TEXT, "FILE|-", NULL, 0, 0, false,                             \
      "the input from a file or a pipe")                                                                     \
    X(PROMPTS, "--prompts", TEXT, "FILE|-", NULL, 0, 0, false, "one prompt a line, each run by itself")      \
    X(IDS, "--ids", TEXT, "FILE", NULL, 0, 0, false,                                                         \
      "the input as a JSON array of token ids (no template, no BOS)")                                        \
    X(CHAT, "--chat", FLAG, NULL, NULL, 0, 0, false, "wrap the input in the model's chat template")          \
    X(SYSTEM, "--system -sys --system-prompt", TEXT, "TEXT", NULL, 0, 0, false,                              \
      "system message of the chat")                                                                          \
    X(N, "-n --predict --n-predict", INT, "N", "128", 0, 16777216, false,                                    \
      "tokens to generate at most; part of N in the span formula")                                           \
    X(TEMP, "--temp --temperature", REAL, "T", "0.8", 0, 100, false, "temperature; 0: greedy")               \
    X(TOP_K, "--top-k", INT, "K", "40", 0, 16777216, false, "keep the K likeliest tokens; 0: off")           \
    X(TOP_P, "--top-p", REAL, "P", "0.95", 0, 1, false, "keep the likeliest tokens of mass P; 1: off")       \
    X(MIN_P, "--min-p", REAL, "P", "0.05", 0, 1, false, "drop tokens below P times the likeliest; 0: off")   \
    X(SEED, "--seed -s", INT, "S", "-1", -1, 9007199254740992.0, false,                                      \
      "of the sampler; -1: random, and reported")                                                            \
    X(PROBE, "--probe", TEXT, "sampled|exact|off", NULL, 0, 0, false,                                        \
      "head statistics of a prompt: of one block of 64 queries in 16, or of all")                            \
    X(IGNORE_EOS, "--ignore-eos", FLAG, NULL, NULL, 0, 0, false, "go on after an end-of-text token")         \
    X(KV, "--kv -ctk --cache-type-k -ctv --cache-type-v", TEXT, "f16|bf16|q8|f32", "f16", 0, 0, false,       \
      "type of cached K and V; q8: a byte an element, `moascope model info` tells the cost")                                                                              \
    X(CTX, "--ctx-size -c", INT, "N", "0", 0, 16777216, true,                                                \
      "refuse runs longer than N tokens; 0: the model's context")                                            \
    X(CHUNK, "--chunk -ub --ubatch-size", INT, "N", "0", 0, 1048576, false,                                  \
      "tokens of a prefill step; 0: 512")                                                                    \
    X(THREADS, "--threads -t", INT, "N", "0", 0, 1024, true,                                                 \
      "CPU threads; 0: all cores this process may use")                                                      \
    X(REFERENCE, "--reference", FLAG, NULL, NULL, 0, 0, false,                                               \
      "CPU: the double-accumulating reference operations")                                                   \
    X(CAPTURE_LIMIT, "--capture-limit", INT, "MIB", "1024", 0, 1048576, false,                               \
      "memory that captured q and k may take")                                                               \
    X(BATCH, "--batch", INT, "B", "1", 1, 4096, false, "copies of the prompt that run together")             \
    X(JSON, "--json", TEXT, "FILE|-", NULL, 0, 0, false, "machine-readable result")                          \
    X(LOGITS, "--logits", TEXT, "F.npy", NULL, 0, 0, false, "float32 [n_tokens][n_vocab] of the prompt")     \
    X(MAPS, "--maps", TEXT, "F.npz", NULL, 0, 0, false,                                                      \
      "attention of every head over the prompt, 64x64 blocks")                                               \
    X(STATS, "--stats", TEXT, "F.npz", NULL, 0, 0, false, "per-head statistics of the prompt")               \
    X(OUTPUT, "--output -o", TEXT, "PATH", NULL, 0, 0, false, "where the result goes")                       \
    X(FORCE, "--force", FLAG, NULL, NULL, 0, 0, false, "overwrite what is there")                            \
    X(NO_SESSION, "--no-session", FLAG, NULL, NULL, 0, 0, false, "keep nothing of it in the session store")  \
    X(QUIET, "--quiet -q", FLAG, NULL, NULL, 0, 0, false, "no progress, no remarks")                         \
    X(DATA, "--data", TEXT, "DATA.jsonl", NULL, 0, 0, false, "calibration or evaluation items, one a line")  \
    X(LENGTHS, "--lengths", INTS, "N,N,...", NULL, 1, 16777216, false, "sequence lengths, tokens")           \
    X(LENGTH, "--length", INT, "N", NULL, 1, 16777216, false, "sequence length, tokens")                     \
    X(AT, "--at", INTS, "N,N,...", "4096,8192,16384", 1, 16777216, false,                                    \
      "lengths to describe a plan at, tokens")                                                               \
    X(MODEL_HEADS_KV, "--model-heads-kv", INT, "K", NULL, 1, 1024, false,                                    \
      "KV heads of the model, for the grouped figures")

typedef enum moa_option_id {
#define X(id, ...) MOA_OPT_##id,
    MOA_OPTION_MAP(X)
#undef X
        MOA_N_OPT,
    MOA_OPT_END = -1,  /* ends a command's list */
    MOA_OPT_OWN = 1000 /* MOA_OPT_OWN + i: row i of the command's own table */
} moa_option_id;

typedef struct moa_batch moa_batch;

typedef struct moa_given {
    int id;           /* MOA_OPT_*, or MOA_OPT_OWN + i */
    const char *text; /* borrowed from argv or the environment; "" for flags */
} moa_given;

/* A checked command line. Zero-initialise; moa_args_free. Texts are borrowed from argv. */
typedef struct moa_args {
    const moa_batch *command;
    moa_given *given; /* in order, owned */
    int n_given;
    const char **words; /* what is not an option: MODEL, files; owned array */
    int n_word;
} moa_args;

/* argv[0] is not looked at. E_USAGE with a sentence for what is unknown, missing or out of range. `--` ends the options.
 * min and max of words are checked against the command's, unless --help is given. */
moa_status moa_args_parse(moa_args *a, const moa_batch *command, int argc, char **argv, moa_err *err);
void moa_args_free(moa_args *a);
/* Could a file be made there? Asked before work of hours, not after it: parse asks it for --json, --logits, --maps and --stats. "-" and NULL: yes.
 * E_IO else. */
moa_status moa_args_place(const char *path, moa_err *err);

/* Given on the command line (or in the environment)? */
bool moa_args_has(const moa_args *a, int id);
/* The value last given, else the default, else NULL. The id must be of a row the command takes. */
const char *moa_args_text(const moa_args *a, int id);
int64_t moa_args_int(const moa_args *a, int id); /* 0 without value and default */
double moa_args_real(const moa_args *a, int id); /* 0 without value and default */
int moa_args_ints(const moa_args *a, int id, int32_t *out,
                  int n_max); /* how many there are; fills at most n_max */
/* i-th text of a LIST, NULL at the end */
const char *moa_args_list(const moa_args *a, int id, int i);
const char *moa_args_word(const moa_args *a, int i); /* NULL beyond the last */
/* the model: word i, else --model, else $MOASCOPE_MODEL, else NULL */
const char *moa_args_model(const moa_args *a, int i);

const moa_option *moa_option_row(const moa_batch *command, int id); /* NULL: the command does not take it */
const moa_option *moa_option_shared(int id);                        /* id < MOA_N_OPT, whoever takes it */
/* the help of a command, from the tables */
void moa_args_help(const moa_batch *command, moa_buf *out);

#endif
