#include "tui/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tui/batch/batch.h"

static const moa_option shared_rows[MOA_N_OPT] = {
#define X(id, spellings, kind, arg, value, min, max, env, help)                                              \
    [MOA_OPT_##id] = {spellings, MOA_OPTION_##kind, arg, value, min, max, env, help},
    MOA_OPTION_MAP(X)
#undef X
};

/* What llama.cpp has under a name that means something else here, or not at all: a sentence instead of a guess. */
static const struct {
    const char *spellings, *advice;
} foreign_rows[] = {
    {"-ngl --gpu-layers --n-gpu-layers",
     "a model lies whole on one device: choose it with --device cpu|cuda"},
    {"-hf -hfr --hf-repo -hff --hf-file",
     "nothing is downloaded: fetch the file yourself and give its path as MODEL"},
    {"-b --batch-size", "prefill steps are set with --chunk; --batch is the number of copies of the prompt"},
    {"-fa --flash-attn", "attention is always computed without an N x N matrix; leave it out"},
    {"-tb --threads-batch", "--threads holds for prefill and decode"},
    {"-cnv --conversation", "use `moascope chat MODEL`"},
    {"--repeat-penalty --presence-penalty --frequency-penalty --repeat-last-n",
     "penalties are not supported"},
    {"--samplers --typical --xtc-probability --dry-multiplier --mirostat",
     "the samplers are top-k, top-p, min-p, temp"},
    {"--chat-template --chat-template-file --jinja", "the model's own template is used; --chat turns it on"},
    {"--no-mmap --mlock -lm --load-mode", "there is one way to load a model; leave it out"},
    {"--swa-full --override-kv", "spans come from --plan"},
    {"--list-devices", "use `moascope engine --devices`"},
};

/* --- rows ------------------------------------------------------------------------------------------------------------- */

static bool spelled(const char *spellings, const char *word, size_t n) {
    for (const char *s = spellings; s && *s; s += strspn(s, " ")) {
        const size_t len = strcspn(s, " ");
        if (len == n && memcmp(s, word, n) == 0) return true;
        s += len;
    }
    return false;
}

const moa_option *moa_option_row(const moa_batch *command, int id) {
    if (id == MOA_OPT_HELP) return &shared_rows[MOA_OPT_HELP];
    if (id >= MOA_OPT_OWN) {
        for (int i = 0; command->own && command->own[i].spellings; i++)
            if (i == id - MOA_OPT_OWN) return &command->own[i];
        return NULL;
    }
    for (const int *o = command->options; o && *o != MOA_OPT_END; o++)
        if (*o == id) return &shared_rows[id];
    return NULL;
}

const moa_option *moa_option_shared(int id) {
    return &shared_rows[id];
}

/* the id whose row has this spelling, -1: none */
static int find_id(const moa_batch *command, const char *word, size_t n) {
    for (int i = 0; command->own && command->own[i].spellings; i++)
        if (spelled(command->own[i].spellings, word, n)) return MOA_OPT_OWN + i;
    for (const int *o = command->options; o && *o != MOA_OPT_END; o++)
        if (spelled(shared_rows[*o].spellings, word, n)) return *o;
    return spelled(shared_rows[MOA_OPT_HELP].spellings, word, n) ? MOA_OPT_HELP : -1;
}

static moa_status unknown(const moa_batch *command, const char *word, size_t n, moa_err *err) {
    for (size_t i = 0; i < sizeof foreign_rows / sizeof *foreign_rows; i++)
        if (spelled(foreign_rows[i].spellings, word, n))
            return moa_fail(err, MOA_E_USAGE, "%.*s: %s", (int)n, word, foreign_rows[i].advice);
    for (int id = 0; id < MOA_N_OPT; id++)
        if (spelled(shared_rows[id].spellings, word, n))
            return moa_fail(err, MOA_E_USAGE, "%.*s: `moascope %s` does not take this option", (int)n, word,
                            command->name);
    return moa_fail(err, MOA_E_USAGE, "%.*s: unknown option; `moascope %s --help` lists what there is",
                    (int)n, word, command->name);
}

/* --- checking ---------------------------------------------------------------------------------------------------------- */

static bool parse_int(const char *text, const char **end, const moa_option *row, int64_t *out) {
    char *stop;
    errno = 0;
    const long long v = strtoll(text, &stop, 10);
    *end = stop;
    *out = v;
    return errno == 0 && stop != text && (double)v >= row->min && (double)v <= row->max;
}

static bool value_ok(const moa_option *row, const char *text) {
    const char *end;
    int64_t v;
    switch (row->kind) {
    case MOA_OPTION_FLAG:
    case MOA_OPTION_TEXT:
    case MOA_OPTION_LIST: return true;
    case MOA_OPTION_INT: return parse_int(text, &end, row, &v) && *end == 0;
    case MOA_OPTION_INTS:
        while (parse_int(text, &end, row, &v) && *end == ',')
            text = end + 1;
        return parse_int(text, &end, row, &v) && *end == 0;
    case MOA_OPTION_REAL: {
        char *stop;
        const double x = strtod(text, &stop);
        return stop != text && *stop == 0 && isfinite(x) && x >= row->min && x <= row->max;
    }
    }
    return false;
}

static moa_status give(moa_args *a, int id, const char *name, const char *text, moa_err *err) {
    const moa_option *row = moa_option_row(a->command, id);
    if (!value_ok(row, text))
        return moa_fail(err, MOA_E_USAGE, "%s: '%s' is not %s from %.10g to %.10g", name, text,
                        row->kind == MOA_OPTION_REAL  ? "a number"
                        : row->kind == MOA_OPTION_INT ? "an integer"
                                                      : "a list of comma-separated integers",
                        row->min, row->max);
    moa_given *given = realloc(a->given, ((size_t)a->n_given + 1) * sizeof *given);
    if (!given) return moa_fail(err, MOA_E_MEMORY, "no memory for %d options", a->n_given + 1);
    a->given = given;
    given[a->n_given++] = (moa_given){id, text};
    return MOA_OK;
}

/* MOASCOPE_CTX_SIZE for "--ctx-size", then LLAMA_ARG_CTX_SIZE */
static moa_status give_env(moa_args *a, int id, moa_err *err) {
    static const char *const prefixes[] = {"MOASCOPE_", "LLAMA_ARG_"};
    const moa_option *row = moa_option_row(a->command, id);
    if (!row || !row->env || moa_args_has(a, id)) return MOA_OK;
    for (int p = 0; p < 2; p++) {
        char name[64];
        size_t n = strlen(strcpy(name, prefixes[p]));
        for (const char *s = row->spellings + 2; *s && *s != ' ' && n + 1 < sizeof name; s++)
            name[n++] = *s == '-' ? '_' : (char)(*s >= 'a' && *s <= 'z' ? *s - 'a' + 'A' : *s);
        name[n] = 0;
        const char *text = getenv(name);
        if (text && *text) return give(a, id, name, text, err);
    }
    return MOA_OK;
}

static bool is_option(const char *word) {
    return word[0] == '-' && word[1] != 0;
}

/* the option at argv[*i] with its values; moves *i to the last word it used */
static moa_status parse_option(moa_args *a, int argc, char **argv, int *i, moa_err *err) {
    const char *word = argv[*i], *equals = word[1] == '-' ? strchr(word, '=') : NULL;
    const size_t n = equals ? (size_t)(equals - word) : strlen(word);
    const int id = find_id(a->command, word, n);
    if (id < 0) return unknown(a->command, word, n, err);
    const moa_option *row = moa_option_row(a->command, id);
    if (row->kind == MOA_OPTION_FLAG)
        return equals ? moa_fail(err, MOA_E_USAGE, "%.*s takes no value", (int)n, word)
                      : give(a, id, word, "", err);
    if (equals) return give(a, id, row->spellings, equals + 1, err);
    if (*i + 1 >= argc) return moa_fail(err, MOA_E_USAGE, "%s needs a value: %s", word, row->arg);
    moa_status s = give(a, id, word, argv[++*i], err);
    while (s == MOA_OK && row->kind == MOA_OPTION_LIST && *i + 1 < argc && !is_option(argv[*i + 1]))
        s = give(a, id, word, argv[++*i], err);
    return s;
}

moa_status moa_args_place(const char *path, moa_err *err) {
    char folder[4096];
    struct stat st;
    if (!path || strcmp(path, "-") == 0) return MOA_OK;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return S_ISDIR(st.st_mode) ? moa_fail(err, MOA_E_IO, "%s: cannot write there: it is a folder", path) : MOA_OK;
    const char *slash = strrchr(path, '/');
    const size_t n = !slash ? 0 : slash == path ? 1 : (size_t)(slash - path);
    if (n >= sizeof folder) return moa_fail(err, MOA_E_IO, "cannot write to a path of more than %zu bytes", sizeof folder - 1);
    (void)snprintf(folder, sizeof folder, "%.*s", n ? (int)n : 1, n ? path : ".");
    return access(folder, W_OK | X_OK) == 0 ? MOA_OK : moa_fail(err, MOA_E_IO, "%s: cannot write there: %s", path, strerror(errno));
}

moa_status moa_args_parse(moa_args *a, const moa_batch *command, int argc, char **argv, moa_err *err) {
    moa_status s = MOA_OK;
    *a = (moa_args){.command = command};
    a->words = calloc((size_t)argc + 1, sizeof *a->words);
    if (!a->words) return moa_fail(err, MOA_E_MEMORY, "no memory for %d words", argc);
    bool options = true;
    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0)
            options = false;
        else if (options && is_option(argv[i]))
            MOA_TRY(parse_option(a, argc, argv, &i, err));
        else
            a->words[a->n_word++] = argv[i];
    }
    if (moa_args_has(a, MOA_OPT_HELP)) goto out;
    for (const int *o = command->options; o && *o != MOA_OPT_END; o++)
        MOA_TRY(give_env(a, *o, err));
    const int n = a->n_word + (a->n_word < command->min_words && moa_args_has(a, MOA_OPT_MODEL) ? 1 : 0);
    if (n < command->min_words)
        s = moa_fail(err, MOA_E_USAGE, "usage: moascope %s %.*s", command->name,
                     (int)strcspn(command->usage, "\n"), command->usage);
    else if (n > command->max_words)
        s = moa_fail(err, MOA_E_USAGE, "%s: one word too many; usage: moascope %s %.*s",
                     a->words[a->n_word - 1], command->name, (int)strcspn(command->usage, "\n"),
                     command->usage);
    static const int files[] = {MOA_OPT_JSON, MOA_OPT_LOGITS, MOA_OPT_MAPS, MOA_OPT_STATS};
    for (size_t i = 0; s == MOA_OK && i < sizeof files / sizeof *files; i++)
        if (moa_args_has(a, files[i])) s = moa_args_place(moa_args_text(a, files[i]), err);
out:
    if (s != MOA_OK) moa_args_free(a);
    return s;
}

void moa_args_free(moa_args *a) {
    free(a->given);
    free(a->words);
    *a = (moa_args){0};
}

/* --- getters ------------------------------------------------------------------------------------------------------------ */

bool moa_args_has(const moa_args *a, int id) {
    for (int i = 0; i < a->n_given; i++)
        if (a->given[i].id == id) return true;
    return false;
}

const char *moa_args_text(const moa_args *a, int id) {
    for (int i = a->n_given - 1; i >= 0; i--)
        if (a->given[i].id == id) return a->given[i].text;
    const moa_option *row = moa_option_row(a->command, id);
    return row ? row->value : NULL;
}

int64_t moa_args_int(const moa_args *a, int id) {
    const char *text = moa_args_text(a, id);
    return text ? strtoll(text, NULL, 10) : 0;
}

double moa_args_real(const moa_args *a, int id) {
    const char *text = moa_args_text(a, id);
    return text ? strtod(text, NULL) : 0;
}

int moa_args_ints(const moa_args *a, int id, int32_t *out, int n_max) {
    const char *text = moa_args_text(a, id);
    int n = 0;
    while (text && *text) {
        char *end;
        const long long v = strtoll(text, &end, 10);
        if (n < n_max) out[n] = (int32_t)v;
        n++;
        text = *end == ',' ? end + 1 : NULL;
    }
    return n;
}

const char *moa_args_list(const moa_args *a, int id, int i) {
    for (int g = 0; g < a->n_given; g++)
        if (a->given[g].id == id && i-- == 0) return a->given[g].text;
    return NULL;
}

const char *moa_args_word(const moa_args *a, int i) {
    return i >= 0 && i < a->n_word ? a->words[i] : NULL;
}

const char *moa_args_model(const moa_args *a, int i) {
    for (int g = a->n_given - 1; g >= 0; g--)
        if (a->given[g].id == MOA_OPT_MODEL && !moa_args_word(a, i)) return a->given[g].text;
    return moa_args_word(a, i);
}

/* --- help ---------------------------------------------------------------------------------------------------------------- */

static void help_row(const moa_option *row, moa_buf *out) {
    char left[96];
    int n = 0;
    /* "-t, --threads N": the canonical spelling and the short one */
    const char *first = row->spellings;
    const int n_first = (int)strcspn(first, " ");
    for (const char *s = first + n_first; *s; s += strcspn(s, " ")) {
        s += strspn(s, " ");
        if (strcspn(s, " ") == 2) n = snprintf(left, sizeof left, "%.2s, ", s);
    }
    if (n == 0 && n_first > 2) n = snprintf(left, sizeof left, "    ");
    (void)snprintf(left + n, sizeof left - (size_t)n, "%.*s%s%s", n_first, first, row->arg ? " " : "",
                   row->arg ? row->arg : "");
    moa_buf_printf(out, strlen(left) > 30 ? "  %s\n%34s%s" : "  %-30s%2s%s", left, "", row->help);
    if (row->value) moa_buf_printf(out, " [%s]", row->value);
    moa_buf_str(out, "\n");
}

void moa_args_help(const moa_batch *command, moa_buf *out) {
    const char *sep = command->name[0] ? " " : "";
    const char *lead = "usage: ";
    for (const char *line = command->usage; *line; lead = "       ") {
        const size_t n = strcspn(line, "\n");
        moa_buf_printf(out, "%smoascope%s%s %.*s\n", lead, sep, command->name, (int)n, line);
        line += n + (line[n] == '\n');
    }
    moa_buf_printf(out, "\n%s\n\n", command->help);
    for (int i = 0; command->own && command->own[i].spellings; i++)
        help_row(&command->own[i], out);
    for (const int *o = command->options; o && *o != MOA_OPT_END; o++)
        help_row(&shared_rows[*o], out);
    help_row(&shared_rows[MOA_OPT_HELP], out);
    if (command->more) moa_buf_printf(out, "\n%s\n", command->more);
}
