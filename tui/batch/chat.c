/* chat.c -- `moascope chat`: a conversation line by line, for plain terminals, screen readers and pipes.
 *
 *   > a line is the user's turn; a line that ends in \ goes on in the next
 *   > :command as in the workbench: plan, set-rule, set, stats, describe, run, reset, help, quit
 *
 * The conversation is kept as ids; the sequence holds a beginning of them. What it lacks is part of the next turn's prompt, and when a
 * prefill was cut by ^C it is filled anew, so that a turn never continues half a prompt. A changed plan holds from the next turn on: narrowing frees
 * pages at once, but keys that are gone come back only with `:run`, which prefills everything again. */
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <readline/history.h>
#include <readline/readline.h>

#include "core/base/text.h"
#include "core/engine/run.h"
#include "core/model/chat.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "tui/record.h"

typedef struct chat {
    const moa_args *args;
    moa_loaded loaded;
    moa_seq *seq;
    moa_sampling sampling;
    int32_t n_gen;
    bool stats; /* watch heads */
    bool tty_in, tty_out, quit;
    moa_record *record; /* in the session store, or NULL */
    moa_buf last_turn;  /* the user's, raw */
    moa_id_list talk;
    size_t turn;     /* ids before the last user's turn's reply: where `run` begins again */
    bool stale;      /* the sequence does not hold a beginning of talk */
    bool reply_open; /* talk ends in a reply of the model */
    bool prefilled;  /* of the run under way */
    moa_run_result last;
    moa_text_stream stream;
    bool failed; /* a callback could not go on */
} chat;

/* --- output: what a person reads goes to stdout cleaned, remarks to stderr ------------------------------------------------------------- */

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
    char text[2048];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(text, sizeof text, format, list);
    va_end(list);
    moa_buf clean = {0};
    moa_text_clean(text, strlen(text), 0, &clean);
    (void)fprintf(stderr, "%s\n", clean.data ? clean.data : "");
    moa_buf_free(&clean);
}

static void show(chat *c, const char *bytes, size_t n, bool end) {
    if (!c->tty_out) {
        (void)fwrite(bytes, 1, n, stdout);
    } else {
        moa_buf clean = {0};
        moa_text_push(&c->stream, bytes, n, &clean);
        if (end) moa_text_flush(&c->stream, &clean);
        (void)fwrite(clean.data ? clean.data : "", 1, clean.size, stdout);
        moa_buf_free(&clean);
    }
    if (end) (void)fputc('\n', stdout);
    (void)fflush(stdout);
}

/* --- a turn ------------------------------------------------------------------------------------------------------------------------------ */

static bool append(chat *c, const int32_t *ids, size_t n) {
    int32_t *data = realloc(c->talk.data, (c->talk.n + n + 1) * sizeof *data);
    if (!data) return false;
    c->talk.data = data;
    memcpy(data + c->talk.n, ids, n * sizeof *ids);
    c->talk.n += n;
    return true;
}

static void on_planned(void *user, const moa_seq *seq, const char *note) {
    chat *c = user;
    const int64_t lost = moa_seq_lost(seq);
    if (note && *note) moa_remark(c->args, "%s", note);
    if (lost > 0)
        moa_remark(c->args, "%lld keys inside the spans are gone; `:run` brings them back", (long long)lost);
}

static void on_progress(void *user, int32_t done, int32_t total) {
    moa_progress_show(((chat *)user)->args, "prefill", done, total, "tokens");
}

static bool on_token(void *user, const moa_run_token *t) {
    chat *c = user;
    c->prefilled = true;
    if (!append(c, &t->id, 1)) {
        c->failed = true;
        return false;
    }
    if (!moa_tokenizer_is_control(c->loaded.model->tokenizer, t->id)) {
        size_t n;
        const char *piece = moa_tokenizer_piece(c->loaded.model->tokenizer, t->id, &n);
        show(c, piece, n, false);
        moa_record_output(c->record, t->id, piece, n);
    } else
        moa_record_output(c->record, t->id, "", 0);
    return true;
}

/* Answers what talk ends with (a user's turn and the template's request for a reply). */
static moa_status answer(chat *c, moa_err *err) {
    const size_t before = c->talk.n;
    if (c->stale) moa_seq_reset(c->seq);
    c->stale = false;
    c->prefilled = c->failed = false;
    const size_t n_past = (size_t)moa_seq_n_past(c->seq);
    const moa_shape *shape = &c->loaded.model->shape;
    if (before >= (size_t)shape->n_ctx)
        return moa_fail(err, MOA_E_INVALID,
                        "the conversation has %zu tokens, the model's context %d; `:reset` begins a new one",
                        before, shape->n_ctx);
    int32_t *ids = malloc((before - n_past) * sizeof *ids); /* talk grows while the run reads its prompt */
    if (!ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", before - n_past);
    memcpy(ids, c->talk.data + n_past, (before - n_past) * sizeof *ids);
    const moa_run_config config = {.ids = ids,
                                   .n_ids = (int32_t)(before - n_past),
                                   .n_gen = c->n_gen,
                                   .rules = c->loaded.plan->rules,
                                   .watch = c->stats ? MOA_WATCH_STATS : 0,
                                   .sampling = c->sampling,
                                   .planned = on_planned,
                                   .progress = on_progress,
                                   .token = on_token,
                                   .cancelled = moa_interrupted,
                                   .user = c};
    c->stream = (moa_text_stream){0};
    moa_record_begin(c->record, c->last_turn.data ? c->last_turn.data : "", c->last_turn.size, c->seq,
                     &config);
    moa_status s = moa_run(c->seq, &config, &c->last, err);
    moa_record_end(c->record, s == MOA_OK ? &c->last : NULL);
    free(ids);
    if (c->prefilled) show(c, "", 0, true);
    c->stale = (size_t)moa_seq_n_past(c->seq) > c->talk.n || (s != MOA_OK && !c->prefilled) ||
               (!c->prefilled && (size_t)moa_seq_n_past(c->seq) < before);
    c->reply_open = c->prefilled;
    c->sampling.seed++; /* the next turn draws anew, and still reproducibly */
    if (s == MOA_OK && c->failed) s = moa_fail(err, MOA_E_MEMORY, "no memory for the reply");
    if (s == MOA_OK && c->last.stop == MOA_STOP_CANCELLED)
        moa_remark(c->args, "interrupted");
    else if (s == MOA_OK)
        moa_remark(c->args, "%d + %d of %d tokens, %.1f tok/s, KV %.2f of %.2f MiB, %s", c->last.n_prompt,
                   c->last.n_gen, c->last.n_reserved,
                   c->last.decode_s > 0 ? c->last.n_gen / c->last.decode_s : 0,
                   (double)c->last.kv_bytes / 1048576, (double)c->last.kv_formula.dense / 1048576,
                   moa_stop_name(c->last.stop));
    return s;
}

static moa_status user_turn(chat *c, const char *text, size_t n, moa_err *err) {
    const moa_model *m = c->loaded.model;
    const char *system = moa_args_text(c->args, MOA_OPT_SYSTEM);
    const size_t before = c->talk.n;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    moa_status s = MOA_OK;
    if (before == 0) {
        const moa_message messages[] = {{MOA_ROLE_SYSTEM, system ? system : "", system ? strlen(system) : 0},
                                        {MOA_ROLE_USER, text, n}};
        MOA_TRY(moa_chat_encode(m, messages + !system, system ? 2 : 1, true, &ids, &n_ids, err));
        if (!append(c, ids, n_ids)) s = moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n_ids);
    } else {
        ids = malloc(before * sizeof *ids);
        if (!ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", before);
        memcpy(ids, c->talk.data, before * sizeof *ids);
        n_ids = before;
        if (c->reply_open) MOA_TRY(moa_chat_append_end(m, &ids, &n_ids, err));
        MOA_TRY(moa_chat_append(m, false, MOA_ROLE_USER, text, n, &ids, &n_ids, err));
        MOA_TRY(moa_chat_append_reply(m, &ids, &n_ids, err));
        if (!append(c, ids + before, n_ids - before))
            s = moa_fail(err, MOA_E_MEMORY, "no memory for %zu tokens", n_ids);
    }
    if (s != MOA_OK) goto out;
    c->turn = c->talk.n;
    moa_buf_clear(&c->last_turn);
    moa_buf_append(&c->last_turn, text, n);
    s = answer(c, err);
    if (!c->prefilled) { /* nothing was answered: the turn did not take place */
        c->talk.n = before;
        c->turn = 0;
        c->reply_open = before > 0;
        c->stale = (size_t)moa_seq_n_past(c->seq) > before;
    }
out:
    free(ids);
    return s;
}

/* --- commands ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct command {
    const char *name, *usage, *help;
    moa_status (*run)(chat *c, char *rest, moa_err *err);
} command;

static moa_status cmd_plan(chat *c, char *rest, moa_err *err) {
    const moa_shape *m = &c->loaded.model->shape;
    if (strncmp(rest, "save ", 5) == 0) return moa_plan_save(c->loaded.plan, rest + 5, true, err);
    if (strncmp(rest, "open ", 5) == 0) rest += 5;
    if (*rest) {
        moa_plan *p = NULL;
        const moa_status s = moa_plan_open(&p, rest, m->n_layer, m->n_head, err);
        if (s != MOA_OK) return s;
        moa_plan_close(&c->loaded.plan);
        c->loaded.plan = p;
    }
    int64_t n = (int64_t)c->talk.n + c->n_gen;
    if (n < 1 || n > m->n_ctx) n = m->n_ctx;
    const moa_plan_at_n d = moa_plan_describe(c->loaded.plan, (int32_t)n, m->n_head_kv);
    say("at %d tokens: spans %d to %d, mean %.0f; KV %.1f %% of dense; %.0f %% of the heads see everything; "
        "at most %d rules a layer",
        d.n, d.span_min, d.span_max, d.span_mean, 100 * d.kv_density_grouped, 100 * d.dense_share,
        moa_plan_max_rules_per_layer(c->loaded.plan));
    return MOA_OK;
}

static moa_status cmd_set_rule(chat *c, char *rest, moa_err *err) {
    const moa_shape *m = &c->loaded.model->shape;
    const int32_t n = m->n_layer * m->n_head;
    char *edit = rest + strcspn(rest, " ");
    int32_t selected = 0;
    if (!*edit) return moa_fail(err, MOA_E_USAGE, "usage: :set-rule SELECTOR RULE");
    *edit++ = 0;
    edit += strspn(edit, " ");
    uint8_t *mask = calloc((size_t)n, 1);
    moa_plan *p = NULL;
    moa_status s = mask ? moa_plan_copy(&p, c->loaded.plan, err)
                        : moa_fail(err, MOA_E_MEMORY, "no memory for a selection of %d heads", n);
    if (s == MOA_OK) s = moa_select(rest, m->n_layer, m->n_head, m->n_head_kv, mask, err);
    for (int32_t i = 0; i < n && s == MOA_OK; i++)
        if (mask[i]) selected++, s = moa_rule_edit(&p->rules[i], edit, err);
    if (s == MOA_OK) { /* all of them or none */
        moa_plan_close(&c->loaded.plan);
        c->loaded.plan = p;
        p = NULL;
        say("%d heads", selected);
    }
    moa_plan_close(&p);
    free(mask);
    return s;
}

static moa_status set_number(chat *c, const char *name, const char *value, moa_err *err) {
    moa_sampling next = c->sampling;
    char *end;
    const double x = strtod(value, &end);
    if (end == value || *end || !isfinite(x) || fabs(x) > 9007199254740992.0)
        return moa_fail(err, MOA_E_USAGE, "%s: '%s' is not a number", name, value);
    if (strcmp(name, "temp") == 0)
        next.temp = (float)x;
    else if (strcmp(name, "top_k") == 0)
        next.top_k = fabs(x) < 1e9 ? (int32_t)x : -1;
    else if (strcmp(name, "top_p") == 0)
        next.top_p = (float)x;
    else if (strcmp(name, "min_p") == 0)
        next.min_p = (float)x;
    else if (strcmp(name, "seed") == 0 && x >= 0)
        next.seed = (uint64_t)x;
    else if (strcmp(name, "n") == 0 && x >= 1 && x <= c->loaded.model->shape.n_ctx)
        c->n_gen = (int32_t)x;
    else
        return moa_fail(err, MOA_E_USAGE, "set: '%s %s'; settings are n temp top_k top_p min_p seed stats",
                        name, value);
    const moa_status s = moa_sampling_check(&next, err);
    if (s == MOA_OK) c->sampling = next;
    return s;
}

static moa_status cmd_set(chat *c, char *rest, moa_err *err) {
    char *value = rest + strcspn(rest, " =");
    if (*value) *value++ = 0;
    value += strspn(value, " =");
    if (!*rest) {
        say("n %d  temp %g  top_k %d  top_p %g  min_p %g  seed %llu  stats %s", c->n_gen,
            (double)c->sampling.temp, c->sampling.top_k, (double)c->sampling.top_p, (double)c->sampling.min_p,
            (unsigned long long)c->sampling.seed, c->stats ? "on" : "off");
        return MOA_OK;
    }
    if (strcmp(rest, "stats") == 0 && (strcmp(value, "on") == 0 || strcmp(value, "off") == 0)) {
        c->stats = strcmp(value, "on") == 0;
        return MOA_OK;
    }
    return set_number(c, rest, value, err);
}

/* one head in a sentence */
static void describe(const chat *c, const moa_head_stats *heads, int32_t layer, int32_t head) {
    const moa_head_stats *h = &heads[(int64_t)layer * c->loaded.model->shape.n_head + head];
    const moa_rule r = *moa_plan_at(c->loaded.plan, layer, head);
    say("L%d H%d: alpha %g, beta %g, span %d tokens. %.1f %% on the first 64 tokens, %.1f %% in its window; "
        "looks back %.0f tokens on average, "
        "entropy %.2f nats. Worst query %d, %.1f %% covered.",
        layer, head, r.alpha, r.beta,
        moa_seq_spans(c->seq)[(int64_t)layer * c->loaded.model->shape.n_head + head], 100 * (double)h->sink,
        100 * (double)h->window, (double)h->distance, (double)h->entropy, h->worst_query,
        100 * (double)h->worst_cover);
}

static moa_status watched(chat *c, moa_head_stats **heads, moa_err *err) {
    const moa_shape *m = &c->loaded.model->shape;
    if (!c->stats)
        return moa_fail(err, MOA_E_USAGE,
                        "nothing was watched: `:set stats on`, then the next turn (or `:run`) is");
    *heads = malloc((size_t)m->n_layer * (size_t)m->n_head * sizeof **heads);
    return *heads ? moa_seq_stats(c->seq, *heads, err)
                  : moa_fail(err, MOA_E_MEMORY, "no memory for the statistics");
}

static moa_status cmd_stats(chat *c, char *rest, moa_err *err) {
    const moa_shape *m = &c->loaded.model->shape;
    moa_head_stats *heads = NULL;
    (void)rest;
    if (c->last.n_prompt > 0)
        say("last turn: %d tokens prefilled at %.1f tok/s, %d made at %.1f tok/s, first after %.0f ms; KV "
            "%.2f MiB, dense %.2f MiB, without grouping %.2f MiB",
            c->last.n_prompt, c->last.prefill_s > 0 ? c->last.n_prompt / c->last.prefill_s : 0, c->last.n_gen,
            c->last.decode_s > 0 ? c->last.n_gen / c->last.decode_s : 0, 1e3 * c->last.ttft_s,
            (double)c->last.kv_bytes / 1048576, (double)c->last.kv_formula.dense / 1048576,
            (double)c->last.kv_formula.mha / 1048576);
    const moa_status s = watched(c, &heads, err);
    for (int32_t l = 0; l < m->n_layer && s == MOA_OK; l++) {
        double sink = 0, window = 0, distance = 0, entropy = 0;
        for (int32_t h = 0; h < m->n_head; h++) {
            const moa_head_stats *x = &heads[(int64_t)l * m->n_head + h];
            sink += (double)x->sink / m->n_head, window += (double)x->window / m->n_head;
            distance += (double)x->distance / m->n_head, entropy += (double)x->entropy / m->n_head;
        }
        say("L%-3d sink %5.1f %%  window %5.1f %%  distance %6.0f tokens  entropy %.2f nats", l, 100 * sink,
            100 * window, distance, entropy);
    }
    free(heads);
    return s;
}

static moa_status cmd_describe(chat *c, char *rest, moa_err *err) {
    const moa_shape *m = &c->loaded.model->shape;
    moa_head_stats *heads = NULL;
    uint8_t *mask = calloc((size_t)m->n_layer * (size_t)m->n_head, 1);
    moa_status s = mask ? moa_select(*rest ? rest : "L0.*", m->n_layer, m->n_head, m->n_head_kv, mask, err)
                        : moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    if (s == MOA_OK) s = watched(c, &heads, err);
    for (int32_t i = 0; i < m->n_layer * m->n_head && s == MOA_OK; i++)
        if (mask[i]) describe(c, heads, i / m->n_head, i % m->n_head);
    free(heads);
    free(mask);
    return s;
}

static moa_status cmd_run(chat *c, char *rest, moa_err *err) {
    (void)rest;
    if (c->turn == 0) return moa_fail(err, MOA_E_USAGE, "there is no turn to answer again");
    c->talk.n = c->turn;
    c->stale = true;
    return answer(c, err);
}

static moa_status cmd_reset(chat *c, char *rest, moa_err *err) {
    (void)rest, (void)err;
    moa_seq_reset(c->seq);
    c->talk.n = c->turn = 0;
    c->stale = c->reply_open = false;
    return MOA_OK;
}

static moa_status cmd_quit(chat *c, char *rest, moa_err *err) {
    (void)rest, (void)err;
    c->quit = true;
    return MOA_OK;
}

static moa_status cmd_help(chat *c, char *rest, moa_err *err);

static const command commands[] = {
    {"plan", "[open PLAN | save FILE]", "what the plan means now; another one: a file, full, uniform:D, sink",
     cmd_plan},
    {"set-rule", "SELECTOR RULE", "rules of selected heads: set-rule L14.* w=1024", cmd_set_rule},
    {"set", "[NAME VALUE]", "n, temp, top_k, top_p, min_p, seed, stats on|off", cmd_set},
    {"stats", "", "figures of the last turn, and what the heads of each layer did", cmd_stats},
    {"describe", "[SELECTOR]", "heads in sentences", cmd_describe},
    {"run", "", "prefill everything again under the plan and answer the last turn again", cmd_run},
    {"reset", "", "a new conversation", cmd_reset},
    {"help", "", "this text", cmd_help},
    {"quit", "", "leave (also ^D)", cmd_quit},
};

static moa_status cmd_help(chat *c, char *rest, moa_err *err) {
    (void)c, (void)rest, (void)err;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        say(":%-9s %-24s %s", commands[i].name, commands[i].usage, commands[i].help);
    say("anything else is said to the model; a line that ends in \\ goes on in the next; ^C stops an answer");
    return MOA_OK;
}

/* any unambiguous beginning of a name */
static moa_status do_command(chat *c, char *line, moa_err *err) {
    char *rest = line + strcspn(line, " ");
    const size_t n = (size_t)(rest - line);
    const command *found = NULL;
    rest += strspn(rest, " ");
    for (char *end = rest + strlen(rest); end > rest && isspace((unsigned char)end[-1]);)
        *--end = 0;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (n == 0 || strncmp(line, commands[i].name, n) != 0) continue;
        if (commands[i].name[n] == 0) {
            found = &commands[i];
            break;
        }
        if (found)
            return moa_fail(err, MOA_E_USAGE, ":%.*s is %s or %s", (int)n, line, found->name,
                            commands[i].name);
        found = &commands[i];
    }
    if (!found) return moa_fail(err, MOA_E_USAGE, ":%.*s is no command; :help lists them", (int)n, line);
    return found->run(c, rest, err);
}

/* --- lines ------------------------------------------------------------------------------------------------------------------------------------ */

/* ^C at the prompt: the line is dropped, the prompt stays */
static int drop_line_when_interrupted(void) {
    if (!moa_interrupted(NULL)) return 0;
    moa_interrupt_clear();
    (void)rl_crlf();
    rl_replace_line("", 1);
    (void)rl_on_new_line();
    rl_redisplay();
    return 0;
}

/* The next line without its end, malloc'ed; NULL at the end of input. */
static char *next_line(const chat *c, const char *prompt) {
    if (c->tty_in && c->tty_out) {
        char *line = readline(prompt);
        if (line && *line) add_history(line);
        return line;
    }
    char *line = NULL;
    size_t room = 0;
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    if (n > 0 && line[n - 1] == '\n') line[--n] = 0;
    if (n > 0 && line[n - 1] == '\r') line[--n] = 0;
    return line;
}

/* lines up to one that does not end in a backslash */
static bool next_turn(const chat *c, moa_buf *turn) {
    moa_buf_clear(turn);
    for (const char *prompt = "> ";; prompt = "... ") {
        char *line = next_line(c, prompt);
        if (!line) return turn->size > 0;
        size_t n = strlen(line);
        const bool more = n > 0 && line[n - 1] == '\\' && (turn->size > 0 || line[0] != ':');
        if (more) line[n - 1] = '\n';
        moa_buf_append(turn, line, n);
        free(line);
        if (!more) return true;
    }
}

static moa_status converse(chat *c, moa_err *err) {
    moa_buf turn = {0};
    moa_status s = MOA_OK;
    while (!c->quit && next_turn(c, &turn)) {
        char *text = turn.data ? turn.data : NULL;
        if (!text || turn.size == 0) continue;
        if (!moa_buf_ok(&turn)) {
            s = moa_fail(err, MOA_E_MEMORY, "no memory for a line");
            break;
        }
        moa_err e = {0};
        s = text[0] == ':' ? do_command(c, text + 1 + strspn(text + 1, " "), &e)
                           : user_turn(c, text, turn.size, &e);
        const bool interrupted = moa_interrupted(NULL);
        moa_interrupt_clear();
        if (s != MOA_OK) say("%s", e.text[0] ? e.text : moa_status_text(s));
        if (s == MOA_E_DEVICE) {
            if (err) *err = e;
            break;
        }
        if (interrupted && !c->tty_in) { /* a script was meant, not a turn */
            s = moa_fail(err, MOA_E_CANCELLED, "interrupted");
            break;
        }
        if (!c->tty_in && s != MOA_OK) { /* a script goes on only if all is well */
            if (err) *err = e;
            break;
        }
        s = MOA_OK;
    }
    moa_buf_free(&turn);
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    chat c = {.args = args,
              .tty_in = isatty(STDIN_FILENO),
              .tty_out = isatty(STDOUT_FILENO),
              .n_gen = (int32_t)moa_args_int(args, MOA_OPT_N)};
    moa_status s = MOA_OK;
    moa_interrupt_catch();
    rl_readline_name = "moascope";
    rl_signal_event_hook = drop_line_when_interrupted;
    (void)rl_variable_bind("enable-bracketed-paste", "on");
    MOA_TRY(moa_load_sampling(args, &c.sampling, err));
    MOA_TRY(moa_load(&c.loaded, args, 0, err));
    if (!moa_chat_template_name(c.loaded.model, err)) {
        s = MOA_E_UNSUPPORTED;
        goto out;
    }
    MOA_TRY(moa_seq_open(&c.seq, c.loaded.engine, err));
    c.record = moa_record_open(args, &c.loaded, "chat");
    if (c.tty_in) say(":help lists the commands, ^D leaves");
    s = converse(&c, err);
out:
    moa_record_close(&c.record);
    moa_buf_free(&c.last_turn);
    moa_seq_close(&c.seq);
    moa_load_close(&c.loaded);
    free(c.talk.data);
    return s;
}

static const int options[] = {
    MOA_OPT_SYSTEM,    MOA_OPT_N,          MOA_OPT_TEMP,   MOA_OPT_TOP_K, MOA_OPT_TOP_P, MOA_OPT_MIN_P,
    MOA_OPT_SEED,      MOA_OPT_PLAN,       MOA_OPT_DEVICE, MOA_OPT_KV,    MOA_OPT_CHUNK, MOA_OPT_THREADS,
    MOA_OPT_REFERENCE, MOA_OPT_NO_SESSION, MOA_OPT_QUIET,  MOA_OPT_MODEL, MOA_OPT_END};

const moa_batch moa_batch_chat = {
    .name = "chat",
    .help = "a conversation line by line",
    .usage = "MODEL [options]",
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .more = "Lines are turns; lines that begin with : are commands (:help). Answers go to stdout, everything "
            "else to stderr, so that a\n"
            "conversation can be piped. A command that fails ends a piped conversation.",
    .run = run,
};
