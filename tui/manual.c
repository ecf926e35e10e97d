/* manual.c -- the manual page and the completions of bash, zsh and fish.
 *
 * All walk the same way: the workbench's rows, then each subcommand's (moa_batch_workbench, moa_batch_table). What can be said of a value
 * comes from the argument as --help shows it:
 *
 *     auto|cpu|cuda|cuda:I    words in small letters between bars are offered: auto, cpu, cuda
 *     FILE  PATH  DIR  MODEL  F.npz  DATA.jsonl  ...                        files are
 *     N  T  K  TEXT                                                         nothing is
 *
 * and the verbs of a subcommand (`plan show`) from the first words of its usage lines. Help is put between quotes of each language. */
#include "tui/manual.h"

#include <stdio.h>
#include <string.h>

#include "tui/batch/batch.h"
#include "version.h"

/* --- walking ---------------------------------------------------------------------------------------------------------- */

/* the i-th row that a command takes, its own first, --help last; NULL: no more */
static const moa_option *row_at(const moa_batch *command, int i) {
    int n_own = 0, n = 0;
    while (command->own && command->own[n_own].spellings) n_own++;
    if (i < n_own) return &command->own[i];
    for (const int *o = command->options; o && *o != MOA_OPT_END; o++, n++)
        if (n == i - n_own) return moa_option_row(command, *o);
    return i == n_own + n ? moa_option_row(command, MOA_OPT_HELP) : NULL;
}

/* moves *text behind its next piece between `stops`; false at the end */
static bool next_piece(const char **text, const char *stops, const char **piece, int *n) {
    *text += strspn(*text, stops);
    *piece = *text;
    *n = (int)strcspn(*text, stops);
    *text += *n;
    return *n > 0;
}

static bool is_word(const char *p, int n) { /* what is typed as it stands */
    for (int i = 0; i < n; i++)
        if (!((p[i] >= 'a' && p[i] <= 'z') || (p[i] >= '0' && p[i] <= '9') || (i > 0 && (p[i] == '_' || p[i] == '-')))) return false;
    return n > 0;
}

/* the words among the values of a row, a space before each; how many */
static int put_words(const moa_option *row, moa_buf *out) {
    int n_word = 0, n;
    const char *p;
    for (const char *a = row->arg; a && next_piece(&a, "|", &p, &n);)
        if (is_word(p, n)) {
            moa_buf_printf(out, "%s%.*s", n_word ? " " : "", n, p);
            n_word++;
        }
    return n_word;
}

static bool takes_files(const moa_option *row) {
    static const char *const names[] = {"FILE", "PATH", "DIR", "MODEL", "PLAN", "F.np", ".json", ".npz", "F|-"};
    for (size_t i = 0; row->arg && i < sizeof names / sizeof *names; i++)
        if (strstr(row->arg, names[i])) return true;
    return false;
}

/* "show check diff": the verbs of a command whose usage lines begin with them */
static void put_verbs(const moa_batch *command, moa_buf *out) {
    const char *line, *p;
    int n_line, n;
    size_t start = out->size;
    for (const char *u = command->usage; next_piece(&u, "\n", &line, &n_line);) {
        const char *word = line;
        if (!next_piece(&word, " \n", &p, &n) || !is_word(p, n)) continue;
        bool there = false;
        for (size_t at = start; at + (size_t)n <= out->size && !there; at++) there = memcmp(out->data + at, p, (size_t)n) == 0;
        if (!there) moa_buf_printf(out, "%s%.*s", out->size > start ? " " : "", n, p);
    }
}

/* text with a backslash before each of `marks`; for one line */
static void put_escaped(moa_buf *out, const char *text, const char *marks) {
    for (; *text; text++) moa_buf_printf(out, strchr(marks, *text) ? "\\%c" : "%c", *text);
}

/* --- man ---------------------------------------------------------------------------------------------------------------- */

/* plain text for troff: no line begins with a request, no hyphen of an option is broken or made a dash */
static void put_troff(moa_buf *out, const char *text, size_t n) {
    bool start = true;
    for (size_t i = 0; i < n; i++) {
        if (start && (text[i] == '.' || text[i] == '\'')) moa_buf_str(out, "\\&");
        start = text[i] == '\n';
        if (text[i] == '\\')
            moa_buf_str(out, "\\e");
        else if (text[i] == '-')
            moa_buf_str(out, "\\-");
        else
            moa_buf_append(out, text + i, 1);
    }
}
static void put_line(moa_buf *out, const char *before, const char *text, const char *after) {
    moa_buf_str(out, before);
    put_troff(out, text, strlen(text));
    moa_buf_str(out, after);
}

static void man_rows(const moa_batch *command, moa_buf *out) {
    const moa_option *row;
    const char *p;
    int n;
    for (int i = 0; (row = row_at(command, i)); i++) {
        moa_buf_str(out, ".TP\n");
        const char *lead = "";
        for (const char *s = row->spellings; next_piece(&s, " ", &p, &n); lead = ", ") {
            moa_buf_printf(out, "%s\\fB", lead);
            put_troff(out, p, (size_t)n);
            moa_buf_str(out, "\\fR");
        }
        if (row->arg) put_line(out, " \\fI", row->arg, "\\fR");
        put_line(out, "\n", row->help, "");
        if (row->value) put_line(out, " [", row->value, "]");
        moa_buf_str(out, "\n");
    }
}

static void man_command(const moa_batch *command, moa_buf *out) {
    const char *line;
    int n;
    if (command->name[0]) {
        put_line(out, ".SS moascope ", command->name, "\n");
        moa_buf_str(out, ".nf\n");
        for (const char *u = command->usage; next_piece(&u, "\n", &line, &n);) {
            put_line(out, "\\fBmoascope ", command->name, "\\fR ");
            put_troff(out, line, (size_t)n);
            moa_buf_str(out, "\n");
        }
        moa_buf_str(out, ".fi\n");
        put_line(out, ".PP\n", command->help, ".\n");
    }
    man_rows(command, out);
    if (command->more) put_line(out, ".PP\n", command->more, "\n");
}

void moa_manual_page(moa_buf *out) {
    moa_buf_str(out, ".\\\" made by `moascope man` from the option table\n.TH MOASCOPE 1 \"\" \"moascope " MOA_VERSION "\" \"User Commands\"\n"
                     ".SH NAME\nmoascope \\- attention spans of language models, head by head, in a terminal\n"
                     ".SH SYNOPSIS\n.nf\n\\fBmoascope\\fR [\\fIMODEL\\fR] [\\fIoptions\\fR]\n\\fBmoascope\\fR \\fICOMMAND\\fR ...\n.fi\n"
                     ".SH DESCRIPTION\nWithout a command the workbench opens: a full screen that loads a model, runs it under a span rule for each "
                     "head, shows what every head attends to, and what a change of a rule costs and saves. \\fB?\\fR tells its keys, "
                     "\\fB:tour\\fR shows on the model itself what spans, sink, windows, plans and the KV memory are. Clicks select, twice on the same "
                     "place is Enter, the wheel scrolls and zooms the map; Shift with the button stays the terminal's, to mark text and copy it; "
                     "\\fB:set mouse off\\fR or \\fB\\-\\-mouse off\\fR leaves all of it to the terminal. The commands do the same work without a screen.\n.PP\nMODEL is a GGUF file, a folder of config.json, *.safetensors and "
                     "tokenizer.json, or a name found in the usual model folders.\n.SH OPTIONS OF THE WORKBENCH\n");
    man_command(&moa_batch_workbench, out);
    moa_buf_str(out, ".SH COMMANDS\n");
    for (const moa_batch *const *c = moa_batch_table; *c; c++) man_command(*c, out);
    moa_buf_str(out, ".SH ENVIRONMENT\nMOASCOPE_\\fINAME\\fR, then LLAMA_ARG_\\fINAME\\fR, where the option is not given:\n");
    for (int id = 0; id < MOA_N_OPT; id++) {
        const moa_option *row = moa_option_shared(id);
        if (!row->env) continue;
        moa_buf_str(out, ".TP\n\\fBMOASCOPE_");
        for (const char *s = row->spellings + 2; *s && *s != ' '; s++)
            moa_buf_printf(out, "%c", *s == '-' ? '_' : *s >= 'a' && *s <= 'z' ? *s - 'a' + 'A' : *s);
        put_line(out, "\\fR\n", row->help, "\n");
    }
    moa_buf_str(out, ".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n1\nthe work failed: one sentence on stderr\n.TP\n2\nwrong usage\n.TP\n3\nthe input is "
                     "not valid or not supported\n.TP\n4\nout of memory, of the host or the device\n.TP\n5\nthe device failed\n.TP\n130\n"
                     "interrupted\n");
}

/* --- bash --------------------------------------------------------------------------------------------------------------- */

static void bash_values(const moa_batch *command, moa_buf *out) {
    const moa_option *row;
    const char *p;
    int n;
    for (int i = 0; (row = row_at(command, i)); i++) {
        if (!row->arg) continue;
        moa_buf words = {0};
        const bool some = put_words(row, &words) > 0, files = takes_files(row);
        moa_buf_str(out, "    ");
        const char *lead = "";
        for (const char *s = row->spellings; next_piece(&s, " ", &p, &n); lead = "|")
            moa_buf_printf(out, "%s%s:%.*s", lead, command->name, n, p);
        moa_buf_printf(out, ") words='%.*s'; files=%d;;\n", some ? (int)words.size : 0, some ? words.data : "", files);
        moa_buf_free(&words);
    }
}

static void bash_options(const moa_batch *command, moa_buf *out) {
    const moa_option *row;
    moa_buf_printf(out, "    %s) words=\"", command->name[0] ? command->name : "''");
    for (int i = 0; (row = row_at(command, i)); i++) moa_buf_printf(out, "%s%s", i ? " " : "", row->spellings);
    moa_buf_str(out, "\"; verbs='");
    put_verbs(command, out);
    moa_buf_str(out, "';;\n");
}

static void completion_bash(moa_buf *out) {
    moa_buf_str(out, "# bash completion of moascope, made by `moascope completion bash` from the option table\n"
                     "_moascope() {\n"
                     "  local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' words='' verbs='' files=1\n"
                     "  COMPREPLY=()\n"
                     "  local commands='");
    for (const moa_batch *const *c = moa_batch_table; *c; c++) moa_buf_printf(out, "%s%s", c == moa_batch_table ? "" : " ", (*c)->name);
    moa_buf_str(out, "'\n"
                     "  [ \"$COMP_CWORD\" -gt 1 ] && [[ \" $commands \" == *\" ${COMP_WORDS[1]} \"* ]] && command=${COMP_WORDS[1]}\n"
                     "  case $command:$before in\n");
    bash_values(&moa_batch_workbench, out);
    for (const moa_batch *const *c = moa_batch_table; *c; c++) bash_values(*c, out);
    moa_buf_str(out, "    *)\n    case $command in\n");
    bash_options(&moa_batch_workbench, out);
    for (const moa_batch *const *c = moa_batch_table; *c; c++) bash_options(*c, out);
    moa_buf_str(out, "    esac\n"
                     "    if [[ $cur == -* ]]; then files=0\n"
                     "    elif [ \"$COMP_CWORD\" = 1 ]; then words=$commands\n"
                     "    elif [ \"$COMP_CWORD\" = 2 ] && [ -n \"$verbs\" ]; then words=$verbs; files=0\n"
                     "    else words=''; fi;;\n"
                     "  esac\n"
                     "  [ -n \"$words\" ] && COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
                     "  if [ $files = 1 ]; then\n"
                     "    compopt -o filenames 2> /dev/null\n"
                     "    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- \"$cur\")\n"
                     "  fi\n"
                     "  return 0\n"
                     "}\n"
                     "complete -F _moascope moascope\n");
}

/* --- zsh ---------------------------------------------------------------------------------------------------------------- */

static void zsh_rows(const moa_batch *command, moa_buf *out) {
    const moa_option *row;
    const char *p;
    int n;
    for (int i = 0; (row = row_at(command, i)); i++)
        for (const char *s = row->spellings; next_piece(&s, " ", &p, &n);) {
            moa_buf_printf(out, " \\\n      \"*%.*s[", n, p);
            put_escaped(out, row->help, "[]:\"\\$`");
            moa_buf_str(out, "]");
            if (row->arg) {
                moa_buf words = {0};
                moa_buf_str(out, ":");
                put_escaped(out, row->arg, "[]:\"\\$`");
                const bool some = put_words(row, &words) > 0;
                if (some && !takes_files(row))
                    moa_buf_printf(out, ":(%.*s)", (int)words.size, words.data);
                else
                    moa_buf_str(out, takes_files(row) ? ":_files" : ": ");
                moa_buf_free(&words);
            }
            moa_buf_str(out, "\"");
        }
}

static void completion_zsh(moa_buf *out) {
    moa_buf_str(out, "#compdef moascope\n# made by `moascope completion zsh` from the option table\n"
                     "local -a commands=(\n");
    for (const moa_batch *const *c = moa_batch_table; *c; c++) {
        moa_buf_printf(out, "  \"%s:", (*c)->name);
        put_escaped(out, (*c)->help, ":\"\\$`");
        moa_buf_str(out, "\"\n");
    }
    moa_buf_str(out, ")\n"
                     "if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n  _describe command commands\n  _files\n  return\nfi\n"
                     "case $words[2] in\n");
    for (const moa_batch *const *c = moa_batch_table; *c; c++) {
        moa_buf verbs = {0};
        put_verbs(*c, &verbs);
        moa_buf_printf(out, "  %s)\n    _arguments", (*c)->name);
        zsh_rows(*c, out);
        if (verbs.size > 0)
            moa_buf_printf(out, " \\\n      \"2:what:(%.*s)\"", (int)verbs.size, verbs.data);
        moa_buf_str(out, " \\\n      \"*:file:_files\";;\n");
        moa_buf_free(&verbs);
    }
    moa_buf_str(out, "  *)\n    _arguments");
    zsh_rows(&moa_batch_workbench, out);
    moa_buf_str(out, " \\\n      \"*:file:_files\";;\nesac\n");
}

/* --- fish --------------------------------------------------------------------------------------------------------------- */

static void fish_rows(const moa_batch *command, const char *when, moa_buf *out) {
    const moa_option *row;
    const char *p;
    int n;
    for (int i = 0; (row = row_at(command, i)); i++) {
        moa_buf words = {0};
        moa_buf_printf(out, "complete -c moascope -n '%s'", when);
        for (const char *s = row->spellings; next_piece(&s, " ", &p, &n);) {
            const bool longer = p[1] == '-';
            moa_buf_printf(out, " -%s %.*s", longer ? "l" : n == 2 ? "s" : "o", n - 1 - longer, p + 1 + longer);
        }
        if (row->arg && put_words(row, &words) > 0) moa_buf_printf(out, " -a '%.*s'", (int)words.size, words.data);
        if (row->arg) moa_buf_str(out, takes_files(row) ? " -r -F" : " -x");
        moa_buf_str(out, " -d '");
        put_escaped(out, row->help, "'\\");
        moa_buf_str(out, "'\n");
        moa_buf_free(&words);
    }
}

static void completion_fish(moa_buf *out) {
    moa_buf_str(out, "# fish completion of moascope, made by `moascope completion fish` from the option table\n");
    for (const moa_batch *const *c = moa_batch_table; *c; c++) {
        moa_buf_printf(out, "complete -c moascope -n __fish_use_subcommand -a %s -d '", (*c)->name);
        put_escaped(out, (*c)->help, "'\\");
        moa_buf_str(out, "'\n");
    }
    fish_rows(&moa_batch_workbench, "__fish_use_subcommand", out);
    for (const moa_batch *const *c = moa_batch_table; *c; c++) {
        char when[96];
        moa_buf verbs = {0};
        (void)snprintf(when, sizeof when, "__fish_seen_subcommand_from %s", (*c)->name);
        put_verbs(*c, &verbs);
        if (verbs.size > 0) moa_buf_printf(out, "complete -c moascope -n '%s' -a '%.*s'\n", when, (int)verbs.size, verbs.data);
        fish_rows(*c, when, out);
        moa_buf_free(&verbs);
    }
}

moa_status moa_manual_completion(const char *shell, moa_buf *out, moa_err *err) {
    static const struct {
        const char *name;
        void (*write)(moa_buf *out);
    } shells[] = {{"bash", completion_bash}, {"zsh", completion_zsh}, {"fish", completion_fish}};
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++)
        if (strcmp(shell, shells[i].name) == 0) {
            shells[i].write(out);
            return MOA_OK;
        }
    return moa_fail(err, MOA_E_USAGE, "'%s': bash, zsh or fish", shell);
}
