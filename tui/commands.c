/* commands.c -- the rows that hold on every screen. A view's own rows are in its file. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/path.h"
#include "tui/internal.h"
#include "tui/search.h"

/* --- words -------------------------------------------------------------------------------------------------------------------- */

static moa_status need(const tui_args *a, int n, const char *usage, moa_err *err) {
    return a->argc >= n ? MOA_OK : moa_fail(err, MOA_E_USAGE, "usage: %s", usage);
}

/* "~/plans/x.json" -> the home folder's; out PATH_MAX-like */
void tui_path_expand(const char *path, char *out, size_t n) {
    const char *home = getenv("HOME");
    if (path[0] == '~' && path[1] == '/' && home) (void)snprintf(out, n, "%s%s", home, path + 1);
    else (void)snprintf(out, n, "%s", path);
}

static bool number(const char *text, double lo, double hi, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0 && *out >= lo && *out <= hi;
}

/* 2.5G, 300M, 1048576 */
static bool bytes_of(const char *text, uint64_t *out) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || !(v >= 0)) return false;
    static const char unit[] = "KMGT";
    const char *u = *end ? strchr(unit, *end >= 'a' ? *end - 32 : *end) : NULL;
    if (*end && !u) return false;
    for (ptrdiff_t i = 0; u && i <= u - unit; i++) v *= 1024;
    if (v > 1e18) return false;
    *out = (uint64_t)v;
    return true;
}

static void offer(moa_buf *out, const char *prefix, const char *const *words) {
    for (; *words; words++)
        if (strncmp(*words, prefix, strlen(prefix)) == 0) moa_buf_printf(out, "%s\n", *words);
}

/* names of a folder that begin with the last part of prefix; suffix NULL: all files; folders end in "/" */
static void offer_files(moa_buf *out, const char *prefix, const char *suffix) {
    char folder[4096];
    tui_path_expand(prefix, folder, sizeof folder);
    char *slash = strrchr(folder, '/');
    const char *base = strrchr(prefix, '/') ? strrchr(prefix, '/') + 1 : prefix;
    if (slash) slash[1] = 0;
    else (void)snprintf(folder, sizeof folder, "./");
    DIR *d = opendir(folder);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strncmp(e->d_name, base, strlen(base)) != 0 || (e->d_name[0] == '.' && base[0] != '.')) continue;
        if (strpbrk(e->d_name, " \t\n\"'")) continue; /* would not survive as a word */
        const size_t n = strlen(e->d_name), k = suffix ? strlen(suffix) : 0;
        const bool is_dir = e->d_type == DT_DIR;
        if (!is_dir && suffix && (n < k || strcmp(e->d_name + n - k, suffix) != 0)) continue;
        moa_buf_printf(out, "%.*s%s%s\n", (int)(base - prefix), prefix, e->d_name, is_dir ? "/" : "");
    }
    (void)closedir(d);
}

/* --- screens, help, ends --------------------------------------------------------------------------------------------------------- */

static moa_status run_help(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    if (strcmp(a->rest, "classes") == 0) {
        moa_buf_clear(&app->popup_text);
        moa_buf_str(&app->popup_text, "What a head looks like, from where its attention goes (newest run, dense if there is one).\n"
                                      "A hint, not a fact.\n\n"
                                      "  sink      more than 60% of its mass on the first 64 tokens\n"
                                      "  distant   more than 25% farther away than a quarter of the prompt\n"
                                      "  local     more than 60% on the newest 256 tokens\n"
                                      "  mixed     none of these\n"
                                      "  -         nothing was measured yet: r or R runs");
        tui_popup_open(app, TUI_POPUP_TEXT, "Classes of heads");
        return MOA_OK;
    }
    if (strcmp(a->rest, "search") == 0) {
        moa_buf_clear(&app->popup_text);
        moa_buf_str(&app->popup_text,
                    "1 calibrate  long synthetic documents with a question, answered by\n"
                    "             the model itself with full attention; only the answer\n"
                    "             counts in what follows\n"
                    "2 profile    forward and backward: how the loss changes, to first\n"
                    "             order, when a head sees less, for every window at once.\n"
                    "             Of the margin log((1 - p)/p) of the answer: tokens that are\n"
                    "             nearly certain have no cross-entropy to lose to first order\n"
                    "3 search     a rule for every KV group (or head): KV kept within the\n"
                    "             density at every length, no plan better at all lengths;\n"
                    "             gap: distance to the proven bound. The longest curve,\n"
                    "             stretched, stands for the lengths of steps 4 and 6\n"
                    "4 validate   cross-entropy on new, longer items under each plan\n"
                    "5 rounds     o: profile under the best plan, search near it, validate,\n"
                    "             and again; a: by that round's influence, b: by the mean.\n"
                    "             Heads stand in for one another: influence at full\n"
                    "             attention does not add up\n"
                    "6 try        passkey: best plan, uniform windows as large, full\n"
                    "\n"
                    "@512         predicted change of the loss at 512 tokens, nats; below\n"
                    "             0 it would fall (with few items that is noise, too)\n"
                    "measure      abs, signed: sums over blocks of 64 x 64; joint: whole\n"
                    "             windows. abs needs the fewest items\n"
                    "KV           memory kept: a KV group keeps its widest head's\n"
                    "\n"
                    "Enter opens a plan as one edit (u takes it back); then < > { }\n"
                    "change it and the predicted loss follows on screens 2 and 4.\n"
                    "gL locks heads: their rules stay when you search again.");
        tui_popup_open(app, TUI_POPUP_TEXT, "The search");
        return MOA_OK;
    }
    tui_popup_open(app, TUI_POPUP_HELP, "Keys and commands");
    return MOA_OK;
}

static moa_status run_palette(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    tui_popup_open(app, TUI_POPUP_PALETTE, "Commands");
    return MOA_OK;
}

static moa_status run_command(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    tui_line_start_command(app, NULL);
    return MOA_OK;
}

static moa_status start_search(tui_app *app, const tui_args *a, bool backwards) {
    app->search_back = backwards;
    if (a->argc > 0) {
        (void)snprintf(app->search, sizeof app->search, "%s", a->rest);
        tui_search(app, backwards ? -1 : 1);
        return MOA_OK;
    }
    const term_line_ask ask = {.kind = TERM_LINE_SEARCH, .label = "/"};
    term_line_start(&ask);
    return MOA_OK;
}

static moa_status run_search(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return start_search(app, a, false);
}
static moa_status run_next(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    tui_search(app, app->search_back ? -1 : 1);
    return MOA_OK;
}
static moa_status run_previous(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    tui_search(app, app->search_back ? 1 : -1);
    return MOA_OK;
}

static moa_status run_view(tui_app *app, const tui_args *a, moa_err *err) {
    for (int i = 0; a->argc > 0 && i < tui_view_count(); i++)
        if (strcasecmp(tui_view_at(i)->name, a->argv[0]) == 0 || (a->argv[0][0] == tui_view_at(i)->key && !a->argv[0][1])) {
            tui_view_switch(app, i);
            return MOA_OK;
        }
    return moa_fail(err, MOA_E_USAGE, "usage: view run|heads|map|plan|compare|memory|log|search, those that this build has");
}

static void complete_view(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    for (int i = 0; i < tui_view_count(); i++)
        if (strncmp(tui_view_at(i)->name, prefix, strlen(prefix)) == 0) moa_buf_printf(out, "%s\n", tui_view_at(i)->name);
}

static moa_status turn_pane(tui_app *app, int dir) {
    const tui_view *v = tui_view_at(app->view);
    if (!v) return MOA_OK;
    viz_rect panes[TUI_PANES_MAX];
    const tui_frame f = tui_frame_now(app);
    tui_view_state *s = tui_view_vars(app, v);
    tui_layout_ask ask = {v->layout, f.size == TUI_SMALL ? TUI_NORMAL : f.size, f.body, s->focus, app->runs[TUI_A].number && app->runs[TUI_B].number};
    const int n = tui_layout_panes(&ask, panes);
    for (int i = 0; i < n; i++) {
        ask.focus = s->focus = (s->focus + dir + n) % n;
        (void)tui_layout_panes(&ask, panes); /* a pane may be there only while it has the focus */
        if (f.size == TUI_SMALL || !viz_rect_empty(panes[s->focus])) break;
    }
    return MOA_OK;
}

static moa_status run_next_pane(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    return turn_pane(app, 1);
}
static moa_status run_previous_pane(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    return turn_pane(app, -1);
}

static moa_status quit_now(tui_app *app, moa_err *err) {
    (void)err;
    app->quit = true;
    return MOA_OK;
}

moa_status tui_quit(tui_app *app) {
    if (!tui_plan_dirty(app)) return quit_now(app, NULL);
    tui_ask(app, "The plan has edits that are not saved (W saves). Quit without them?", quit_now);
    return MOA_OK;
}

static moa_status run_quit(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    return tui_quit(app);
}
static moa_status run_quit_now(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return quit_now(app, err);
}

static moa_status run_back(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    if (app->view_before >= 0 && app->view_before != app->view) {
        const int to = app->view_before;
        tui_view_switch(app, to);
        app->view_before = -1;
        return MOA_OK;
    }
    return tui_quit(app);
}

/* --- model and runs ---------------------------------------------------------------------------------------------------------------- */

static moa_status run_load(tui_app *app, const tui_args *a, moa_err *err) {
    if (a->argc < 1) return tui_picker_open(app, err);
    char path[4096];
    tui_path_expand(a->rest, path, sizeof path);
    const moa_status s = tui_load(app, path, err);
    if (s == MOA_OK) tui_remember_model(app);
    return s;
}

typedef struct model_offer {
    moa_buf *out;
    const char *prefix;
} model_offer;

static bool offer_model(void *user, const char *path) {
    const model_offer *o = user;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strncmp(name, o->prefix, strlen(o->prefix)) == 0) moa_buf_printf(o->out, "%s\n", name);
    return true;
}

static void complete_model(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    offer_files(out, prefix, ".gguf");
    if (!strchr(prefix, '/')) moa_model_each_file(offer_model, &(model_offer){out, prefix});
}

static moa_status run_engine(tui_app *app, const tui_args *a, moa_err *err) {
    const char *what = a->argc > 0 ? a->argv[0] : "restart", *device = a->argc > 1 ? a->argv[1] : NULL;
    if (strcmp(what, "stop") == 0) {
        tui_engine_stop(app);
        return MOA_OK;
    }
    if (strcmp(what, "devices") == 0) {
        moa_buf_clear(&app->popup_text);
        moa_buf_str(&app->popup_text, moa_clean_text(app->link.devices));
        if (moa_clean_bytes(app->link.no_gpu)) moa_buf_printf(&app->popup_text, "\nNo GPU: %s", moa_clean_text(app->link.no_gpu));
        tui_popup_open(app, TUI_POPUP_TEXT, "Devices of the engine");
        return MOA_OK;
    }
    if (strcmp(what, "restart") != 0) return moa_fail(err, MOA_E_USAGE, "usage: engine restart [cpu|cuda|cuda:I] | stop | devices");
    return tui_engine_start(app, device, err);
}
static void complete_engine(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    static const char *const words[] = {"restart", "stop", "devices", "auto", "cpu", "cuda", NULL};
    offer(out, prefix, words);
}

moa_status tui_kill_engine(tui_app *app, moa_err *err) {
    (void)err;
    if (app->link.pid > 0) tui_link_signal(app->link.pid, SIGKILL);
    return MOA_OK;
}

static moa_status start_again(tui_app *app, moa_err *err) { return tui_engine_start(app, NULL, err); }

/* a run is wanted and the engine has ended: a key asks, a typed command is told */
static bool offer_engine(tui_app *app, const tui_args *a) {
    if (app->link.state != TUI_LINK_DEAD || !a->from_key) return false;
    tui_ask(app, "The engine ended. Start it again?", start_again);
    return true;
}

static moa_status run_run(tui_app *app, const tui_args *a, moa_err *err) {
    if (offer_engine(app, a)) return MOA_OK;
    return tui_run_start(app, TUI_B, err);
}
static moa_status run_full(tui_app *app, const tui_args *a, moa_err *err) {
    if (offer_engine(app, a)) return MOA_OK;
    return tui_run_start(app, TUI_A, err);
}

/* A's tokens through the plan: needs A's logits in the engine, so a dense run comes first when there is none of this prompt */
static moa_status run_compare(tui_app *app, const tui_args *a, moa_err *err) {
    if (offer_engine(app, a)) return MOA_OK;
    moa_err why = {0};
    if (tui_run_start(app, TUI_F, &why) == MOA_OK) return MOA_OK;
    const tui_run *full = &app->runs[TUI_A];
    if (tui_busy(app) || (full->state == TUI_RUN_DONE && !full->stale)) return moa_fail(err, why.status, "%s", why.text);
    const moa_status s = tui_run_start(app, TUI_A, err);
    if (s == MOA_OK) {
        app->compare_next = true;
        tui_say(app, TUI_INFO, "First a run with full attention, then its tokens through the plan");
    }
    return s;
}

static moa_status run_stop(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (app->slot_running < 0) return moa_fail(err, MOA_E_FAILED, "nothing is running");
    tui_run_cancel(app);
    return MOA_OK;
}

/* --- prompts --------------------------------------------------------------------------------------------------------------------- */

static moa_status run_prompt(tui_app *app, const tui_args *a, moa_err *err) {
    if (a->argc < 1) return moa_fail(err, MOA_E_USAGE, "usage: prompt TEXT");
    moa_buf_clear(&app->prompt);
    moa_buf_str(&app->prompt, a->rest);
    tui_prompt_changed(app, "");
    return moa_buf_ok(&app->prompt) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the prompt");
}

static moa_status run_prompt_open(tui_app *app, const tui_args *a, moa_err *err) {
    moa_status s = need(a, 1, "prompt open FILE", err);
    char path[4096];
    if (s != MOA_OK) return s;
    tui_path_expand(a->rest, path, sizeof path);
    s = tui_prompt_open(app, path, err);
    return s;
}
static void complete_file(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    offer_files(out, prefix, NULL);
}

/* the prompt as a file in $EDITOR */
static moa_status run_prompt_edit(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    char path[] = "/tmp/moascope-prompt-XXXXXX.txt";
    const int fd = mkstemps(path, 4);
    if (fd < 0) return moa_fail(err, MOA_E_IO, "cannot make a file for the editor: %s", strerror(errno));
    const bool wrote = app->prompt.size == 0 || write(fd, app->prompt.data, app->prompt.size) == (ssize_t)app->prompt.size;
    (void)close(fd);
    moa_status s = wrote ? term_edit_file(path, err) : moa_fail(err, MOA_E_IO, "cannot write %s: %s", path, strerror(errno));
    moa_buf b = {0};
    if (s == MOA_OK) s = moa_file_read(path, 8 << 20, &b, err);
    (void)unlink(path);
    if (s != MOA_OK) return s;
    if (b.size > 0 && b.data[b.size - 1] == '\n') b.data[--b.size] = 0; /* editors end files so */
    if (b.size != app->prompt.size || (b.size && memcmp(b.data, app->prompt.data, b.size) != 0)) {
        moa_buf_free(&app->prompt);
        app->prompt = b;
        tui_prompt_changed(app, "");
    } else moa_buf_free(&b);
    return MOA_OK;
}

/* --- plans --------------------------------------------------------------------------------------------------------------------------- */

static moa_status open_wanted(tui_app *app, moa_err *err) {
    const moa_status s = tui_plan_open(app, app->plan.wanted, err);
    if (s == MOA_OK) tui_say(app, TUI_GOOD, "Opened %s", moa_clean_text(app->plan.shown));
    return s;
}

static moa_status run_plan_open(tui_app *app, const tui_args *a, moa_err *err) {
    const moa_status s = need(a, 1, "plan open FILE|full|uniform:D|sink", err);
    if (s != MOA_OK) return s;
    tui_path_expand(a->rest, app->plan.wanted, sizeof app->plan.wanted);
    if (tui_plan_dirty(app)) {
        tui_ask(app, "The plan has edits that are not saved. Open another without them?", open_wanted);
        return MOA_OK;
    }
    return open_wanted(app, err);
}
static void complete_plan(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    static const char *const words[] = {"full", "uniform:0.5", "sink", NULL};
    offer(out, prefix, words);
    offer_files(out, prefix, ".json");
}

static moa_status save_plan(tui_app *app, const tui_args *a, bool force, moa_err *err) {
    char path[4096];
    tui_path_expand(a->rest, path, sizeof path);
    if (!*path && !*app->plan.path && a->from_key) {
        tui_line_start_command(app, "plan save ");
        return MOA_OK;
    }
    return tui_plan_save(app, path, force, err);
}
static moa_status run_plan_save(tui_app *app, const tui_args *a, moa_err *err) { return save_plan(app, a, false, err); }
static moa_status run_plan_save_force(tui_app *app, const tui_args *a, moa_err *err) { return save_plan(app, a, true, err); }

static moa_status run_plan_reload(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!*app->plan.path) return moa_fail(err, MOA_E_FAILED, "this plan has no file");
    (void)snprintf(app->plan.wanted, sizeof app->plan.wanted, "%s", app->plan.path);
    if (tui_plan_dirty(app)) tui_ask(app, "Read the file again and lose the edits?", open_wanted);
    else return open_wanted(app, err);
    return MOA_OK;
}

/* every head whose rule differs, in runs of equal change */
static void list_diff(const moa_plan *from, const moa_plan *to, moa_buf *out) {
    int32_t n = 0;
    for (int32_t l = 0; l < to->n_layer; l++)
        for (int32_t h = 0; h < to->n_head; h++) {
            const moa_rule a = *moa_plan_at(from, l, h), b = *moa_plan_at(to, l, h);
            if (a.alpha == b.alpha && a.beta == b.beta) continue;
            if (n < 400) moa_buf_printf(out, "L%02d H%02d   %8g %+7gN   →   %8g %+7gN\n", l, h, a.alpha, a.beta, b.alpha, b.beta);
            n++;
        }
    if (n > 400) moa_buf_printf(out, "… and %d more\n", n - 400);
    moa_buf_printf(out, "%d head%s differ%s", n, n == 1 ? "" : "s", n == 1 ? "s" : "");
}

static moa_status run_plan_diff(tui_app *app, const tui_args *a, moa_err *err) {
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    char path[4096];
    moa_plan *other = NULL;
    tui_path_expand(*a->rest ? a->rest : app->plan.path, path, sizeof path);
    if (!*path) return moa_fail(err, MOA_E_FAILED, "this plan has no file to compare with; plan diff FILE");
    const moa_status s = moa_plan_open(&other, path, app->plan.now->n_layer, app->plan.now->n_head, err);
    if (s != MOA_OK) return s;
    moa_buf_clear(&app->popup_text);
    list_diff(other, app->plan.now, &app->popup_text);
    tui_popup_open(app, TUI_POPUP_TEXT, "On disk → on the screen");
    moa_plan_close(&other);
    return MOA_OK;
}

static moa_status run_plan_set(tui_app *app, const tui_args *a, moa_err *err) {
    moa_status s = need(a, 1, "plan set full|uniform:D|sink|FILE", err);
    moa_plan *to = NULL;
    char what[96], path[4096];
    if (s != MOA_OK) return s;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    tui_path_expand(a->rest, path, sizeof path);
    s = moa_plan_open(&to, path, app->plan.now->n_layer, app->plan.now->n_head, err);
    if (s != MOA_OK) return s;
    moa_buf shown = {0};
    moa_text_clean(a->rest, strlen(a->rest), MOA_TEXT_LINE, &shown);
    (void)snprintf(what, sizeof what, "all heads: %.60s", shown.data ? shown.data : "");
    moa_buf_free(&shown);
    s = tui_plan_set_all(app, to, what, err);
    moa_plan_close(&to);
    return s;
}

static bool edit_by_text(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)app;
    (void)layer;
    (void)head;
    return moa_rule_edit(rule, user, NULL) == MOA_OK;
}

static moa_status run_set_rule(tui_app *app, const tui_args *a, moa_err *err) {
    moa_status s = need(a, 2, "set-rule SELECTOR alpha=A beta=B | w=SPAN | full | sink", err);
    if (s != MOA_OK) return s;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    const char *words = strpbrk(a->rest, " \t");
    moa_rule probe = {0, 1};
    char what[96];
    uint8_t *mask = malloc((size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    if (!words) words = "";
    while (*words == ' ' || *words == '\t') words++;
    MOA_TRY(tui_plan_select(app, a->argv[0], mask, err));
    MOA_TRY(moa_rule_edit(&probe, words, err)); /* says what is wrong before anything changes */
    (void)snprintf(what, sizeof what, "%.30s %.50s", a->argv[0], words);
    const int32_t n = tui_plan_edit(app, mask, what, edit_by_text, (void *)(uintptr_t)words);
    if (n) tui_say(app, TUI_INFO, "%d head%s changed; u undoes", n, n == 1 ? "" : "s");
    else tui_say(app, TUI_INFO, "Nothing changed: the rule was that already");
out:
    free(mask);
    return s;
}
static void complete_selector(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    static const char *const words[] = {"@marked", "@cursor", "@shown", "@class:local", "@class:sink", "@class:distant", "@class:mixed", "alpha=", "beta=", "w=", "full", "sink", NULL};
    offer(out, prefix, words);
}

static moa_status mark(tui_app *app, const tui_args *a, bool on, moa_err *err) {
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    const size_t n = (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head;
    uint8_t *mask = malloc(n);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    moa_status s = tui_plan_select(app, *a->rest ? a->rest : on ? "@cursor" : "@marked", mask, err);
    if (s == MOA_OK) {
        for (size_t i = 0; i < n; i++) mask[i] = on ? mask[i] | app->plan.marks[i] : app->plan.marks[i] & !mask[i];
        tui_plan_mark(app, mask, on ? "mark" : "unmark");
    }
    free(mask);
    return s;
}
static moa_status run_mark(tui_app *app, const tui_args *a, moa_err *err) { return mark(app, a, true, err); }
static moa_status run_unmark(tui_app *app, const tui_args *a, moa_err *err) {
    const size_t n = app->plan.now ? (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head : 0;
    if (n && a->argc == 0 && !(app->plan.marks && memchr(app->plan.marks, 1, n))) {
        tui_say(app, TUI_INFO, "No head is marked"); /* what was asked for is so */
        return MOA_OK;
    }
    return mark(app, a, false, err);
}

static moa_status run_undo(tui_app *app, const tui_args *a, moa_err *err) {
    for (int i = 0; i < (a->count > 1 ? a->count : 1); i++)
        if (!tui_plan_undo(app)) return i ? MOA_OK : moa_fail(err, MOA_E_FAILED, "nothing to undo");
    return MOA_OK;
}
static moa_status run_redo(tui_app *app, const tui_args *a, moa_err *err) {
    for (int i = 0; i < (a->count > 1 ? a->count : 1); i++)
        if (!tui_plan_redo(app)) return i ? MOA_OK : moa_fail(err, MOA_E_FAILED, "nothing to redo");
    return MOA_OK;
}
static moa_status run_undo_list(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    tui_popup_open(app, TUI_POPUP_UNDO, "Undo list");
    app->popup_at = app->plan.n_done;
    return MOA_OK;
}

/* --- settings --------------------------------------------------------------------------------------------------------------------------- */

/* name, lowest, highest value, help */
#define SETTINGS(X)                                                                                          \
    X(n, 0, MOA_N_MAX) X(gen, 0, MOA_N_MAX) X(temp, 0, 100) X(top_k, 0, MOA_N_MAX) X(top_p, 0, 1) X(min_p, 0, 1) X(seed, 0, 9007199254740992.0)      \
    X(chat, 0, 1) X(ignore_end, 0, 1) X(group_lock, 0, 1)

enum {
#define X(name, lo, hi) SET_##name,
    SETTINGS(X)
#undef X
        SET_COUNT
};
static const struct {
    const char *name;
    double lo, hi;
} settings[] = {
#define X(name, lo, hi) {#name, lo, hi},
    SETTINGS(X)
#undef X
};

static void apply_setting(tui_app *app, int which, double v) {
    tui_options *o = &app->options;
    switch (which) {
    case SET_n: app->n_user = (int32_t)v; break;
    case SET_gen: o->n_gen = (int32_t)v; break;
    case SET_temp: o->sampling.temp = (float)v; break;
    case SET_top_k: o->sampling.top_k = (int32_t)v; break;
    case SET_top_p: o->sampling.top_p = (float)v; break;
    case SET_min_p: o->sampling.min_p = (float)v; break;
    case SET_seed: o->sampling.seed = (uint64_t)v; break;
    case SET_chat:
        o->chat = v > 0;
        app->prompt_tokens_known = false;
        break;
    case SET_ignore_end: o->ignore_end = v > 0; break;
    case SET_group_lock: app->plan.group_lock = v > 0; break;
    default: break;
    }
}

static moa_status run_set(tui_app *app, const tui_args *a, moa_err *err) {
    moa_status s = need(a, 2, "set n|gen|temp|top_k|top_p|min_p|seed|chat|ignore_end|group_lock|budget|ramp|mouse VALUE", err);
    double v;
    viz_ramp ramp;
    if (s != MOA_OK) return s;
    tui_dirty(app);
    if (strcmp(a->argv[0], "budget") == 0)
        return bytes_of(a->argv[1], &app->plan.budget_bytes) ? MOA_OK : moa_fail(err, MOA_E_USAGE, "budget %s: bytes, as 2.5G or 300M; 0: none", a->argv[1]);
    if (strcmp(a->argv[0], "mouse") == 0) {
        const bool on = strcmp(a->argv[1], "on") == 0;
        if (!on && strcmp(a->argv[1], "off") != 0) return moa_fail(err, MOA_E_USAGE, "mouse %s: on or off", a->argv[1]);
        term_mouse(on);
        tui_say(app, TUI_INFO, on ? "Clicks select, twice is Enter, the wheel scrolls; Shift-drag marks text to copy" : "The mouse is the terminal's");
        return MOA_OK;
    }
    if (strcmp(a->argv[0], "ramp") == 0) {
        if (!viz_ramp_find(a->argv[1], &ramp) || ramp == VIZ_RAMP_DIVERGE) return moa_fail(err, MOA_E_USAGE, "ramp %s: cividis, magma or grey", a->argv[1]);
        app->ramp = ramp;
        return MOA_OK;
    }
    const char *value = strcmp(a->argv[1], "on") == 0 ? "1" : strcmp(a->argv[1], "off") == 0 ? "0" : a->argv[1];
    for (int i = 0; i < SET_COUNT; i++) {
        if (strcmp(settings[i].name, a->argv[0]) != 0) continue;
        if (!number(value, settings[i].lo, settings[i].hi, &v)) return moa_fail(err, MOA_E_USAGE, "%s %s: %g to %g", a->argv[0], value, settings[i].lo, settings[i].hi);
        apply_setting(app, i, v);
        return MOA_OK;
    }
    return moa_fail(err, MOA_E_USAGE, "there is no setting %s", a->argv[0]);
}
static void complete_setting(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    static const char *const words[] = {"budget", "ramp", "cividis", "magma", "grey", "mouse", "on", "off", NULL};
    for (int i = 0; i < SET_COUNT; i++)
        if (strncmp(settings[i].name, prefix, strlen(prefix)) == 0) moa_buf_printf(out, "%s\n", settings[i].name);
    offer(out, prefix, words);
}

/* --- what leaves the program --------------------------------------------------------------------------------------------------------------- */

static moa_status run_dump(tui_app *app, const tui_args *a, moa_err *err) {
    moa_status s = need(a, 1, "dump FILE [txt|names|ansi|svg]", err);
    if (s != MOA_OK) return s;
    char path[4096];
    tui_path_expand(a->argv[0], path, sizeof path);
    const char *dot = strrchr(path, '.'), *form = a->argc > 1 ? a->argv[1] : dot && strchr(dot, '/') == NULL ? dot + 1 : "txt";
    moa_buf b = {0};
    tui_draw(app);
    if (strcmp(form, "txt") == 0 || strcmp(form, "screen") == 0) viz_sink_text(app->canvas, &b);
    else if (strcmp(form, "names") == 0) viz_sink_names(app->canvas, &b);
    else if (strcmp(form, "ansi") == 0) viz_sink_ansi(app->canvas, &b);
    else if (strcmp(form, "svg") == 0) viz_sink_svg(app->canvas, "moascope", &b);
    else s = moa_fail(err, MOA_E_USAGE, "dump as %s: txt, names, ansi or svg are possible", form);
    if (s == MOA_OK && !moa_buf_ok(&b)) s = moa_fail(err, MOA_E_MEMORY, "no memory for the picture");
    if (s == MOA_OK && strcmp(path, "-") == 0) (void)fwrite(b.data, 1, b.size, stdout);
    else if (s == MOA_OK) s = moa_file_save(path, b.data, b.size, 0644, 0, err);
    if (s == MOA_OK && !a->from_key && !term_headless()) tui_say(app, TUI_GOOD, "Wrote the screen as %s", form);
    moa_buf_free(&b);
    return s;
}

static moa_status run_sync(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    (void)snprintf(app->sync, sizeof app->sync, "%s", a->rest);
    tui_script_sync(app);
    return MOA_OK;
}

static moa_status run_wait(tui_app *app, const tui_args *a, moa_err *err) {
    double v;
    if (a->argc != 1 || !number(a->argv[0], 0, 3600, &v)) return moa_fail(err, MOA_E_USAGE, "usage: wait SECONDS");
    tui_script_wait(app, v);
    return MOA_OK;
}

static moa_status run_resize(tui_app *app, const tui_args *a, moa_err *err) {
    int cols, rows;
    (void)app;
    if (a->argc != 1 || sscanf(a->argv[0], "%dx%d", &cols, &rows) != 2) return moa_fail(err, MOA_E_USAGE, "usage: resize COLSxROWS (only without a terminal)");
    term_resize(rows, cols);
    return MOA_OK;
}

static moa_status run_paste(tui_app *app, const tui_args *a, moa_err *err) {
    (void)app;
    (void)err;
    term_push_paste(a->rest, strlen(a->rest));
    return MOA_OK;
}

static moa_status run_mouse(tui_app *app, const tui_args *a, moa_err *err) {
    double y, x;
    static const char *const what[] = {"click", "up", "down"};
    static const int keys[] = {TUI_KEY_CLICK, TUI_KEY_WHEEL_UP, TUI_KEY_WHEEL_DOWN};
    for (int i = 0; i < 3; i++)
        if (a->argc == 3 && strcmp(a->argv[0], what[i]) == 0 && number(a->argv[1], 0, VIZ_ROWS_MAX, &y) && number(a->argv[2], 0, VIZ_COLS_MAX, &x)) {
            tui_draw(app); /* a click is on what is drawn */
            tui_mouse(app, keys[i], (int)y, (int)x);
            return MOA_OK;
        }
    return moa_fail(err, MOA_E_USAGE, "usage: mouse click|up|down ROW COLUMN");
}

static moa_status run_tour(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return tui_tour_start(app, err);
}

static moa_status run_crash(tui_app *app, const tui_args *a, moa_err *err) {
    (void)app;
    if (strcmp(a->rest, "yes") != 0) return moa_fail(err, MOA_E_USAGE, "usage: crash yes (ends the program by a signal, to test that the terminal is put back)");
    (void)raise(SIGSEGV);
    return MOA_OK;
}

static moa_status run_go(tui_app *app, const tui_args *a, moa_err *err) {
    int layer = -1, head = -1, used = 0;
    if (a->argc != 1 || sscanf(a->argv[0], "L%d.H%d%n", &layer, &head, &used) < 2 || a->argv[0][used])
        return moa_fail(err, MOA_E_USAGE, "usage: go L14.H13");
    tui_cursor_move(app, layer, head);
    return MOA_OK;
}

/* the head under the cursor in one sentence: for screen readers, papers and colleagues */
static moa_status run_describe(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    tui_head_figures f;
    char cover[16], worst[16], own[16];
    tui_head_describe(app, app->cursor.layer, app->cursor.head, &f);
    tui_say(app, TUI_INFO, "L%d H%d: rule %g %+gN, span %d of %d tokens; covers %s of its attention, worst query %s; %s of KV%s; looks %s", app->cursor.layer,
            app->cursor.head, f.rule.alpha, f.rule.beta, f.span, tui_plan_n(app), viz_percent_text(cover, f.cover, 1), viz_percent_text(worst, f.worst_cover, 1),
            viz_bytes_text(own, f.kv_alone_bytes), f.is_widest ? "" : " (not the widest of its group: narrowing saves nothing)",
            tui_head_class(app, app->cursor.layer, app->cursor.head));
    return MOA_OK;
}

/* --- the search ------------------------------------------------------------------------------------------------------------------- */

static moa_status run_step(tui_app *app, const tui_args *a, moa_err *err) {
    const char *what = a->argc > 0 ? a->argv[0] : "next";
    if (strcmp(what, "next") == 0) return tui_planner_next(app, err);
    if (strcmp(what, "all") == 0) return tui_planner_all(app, err);
    if (strcmp(what, "stop") == 0) {
        if (!tui_planner_busy(app)) return moa_fail(err, MOA_E_FAILED, "no step is running");
        tui_planner_stop(app);
        return MOA_OK;
    }
    if (strcmp(what, "rounds") == 0) {
        const moa_status st = a->argc > 1 ? tui_setting_set(app, TUI_SET_ROUNDS, a->argv[1], err) : MOA_OK;
        return st == MOA_OK ? tui_planner_rounds(app, err) : st;
    }
    for (int s = 0; s < TUI_STEP_COUNT; s++)
        if (strcasecmp(what, tui_step_name((tui_step)s)) == 0) return tui_planner_start(app, (tui_step)s, err);
    return moa_fail(err, MOA_E_USAGE, "usage: step next|all|stop|calibrate|profile|search|validate|rounds [N]|try");
}
static void complete_step(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    static const char *const words[] = {"next", "all", "stop", "set", "calibrate", "profile", "search", "validate", "rounds", "try", NULL};
    offer(out, prefix, words);
}

static moa_status run_step_set(tui_app *app, const tui_args *a, moa_err *err) {
    tui_setting s;
    if (a->argc < 2) return moa_fail(err, MOA_E_USAGE, "usage: step set NAME VALUE, as in step set density 50%%");
    if (!tui_setting_find(a->argv[0], &s)) return moa_fail(err, MOA_E_USAGE, "no setting of the search is named so; Tab lists them");
    const char *value = a->rest + strcspn(a->rest, " ");
    return tui_setting_set(app, s, value + strspn(value, " "), err);
}
static void complete_step_set(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    for (int s = 0; s < TUI_SETTING_COUNT; s++) {
        char key[48];
        tui_setting_key((tui_setting)s, key, sizeof key);
        if (strncmp(key, prefix, strlen(prefix)) == 0) moa_buf_printf(out, "%s\n", key);
    }
}

static moa_status run_step_docs(tui_app *app, const tui_args *a, moa_err *err) {
    if (a->argc == 0) return moa_fail(err, MOA_E_USAGE, "usage: step docs FILE|FOLDER..., or step docs none");
    const bool none = a->argc == 1 && strcmp(a->argv[0], "none") == 0;
    return tui_planner_docs(app, a->argv, none ? 0 : a->argc, err);
}

static moa_status lock_heads(tui_app *app, const tui_args *a, bool lock, moa_err *err) {
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    uint8_t *mask = calloc((size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head, 1);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection of heads");
    const moa_status s = tui_plan_select(app, a->argc > 0 ? a->rest : lock ? "@targets" : "*", mask, err);
    if (s == MOA_OK) tui_planner_lock(app, mask, lock);
    free(mask);
    return s;
}
static moa_status run_lock(tui_app *app, const tui_args *a, moa_err *err) { return lock_heads(app, a, true, err); }
static moa_status run_unlock(tui_app *app, const tui_args *a, moa_err *err) { return lock_heads(app, a, false, err); }

static moa_status run_influence_open(tui_app *app, const tui_args *a, moa_err *err) {
    char path[4096];
    const moa_status s = need(a, 1, "influence open FILE.npz", err);
    if (s != MOA_OK) return s;
    tui_path_expand(a->rest, path, sizeof path);
    return tui_influence_load(app, path, err);
}
static moa_status run_influence_save(tui_app *app, const tui_args *a, moa_err *err) {
    char path[4096];
    moa_status s = need(a, 1, "influence save FILE.npz", err);
    if (s != MOA_OK) return s;
    tui_path_expand(a->rest, path, sizeof path);
    if (access(path, F_OK) == 0) return moa_fail(err, MOA_E_FAILED, "that file exists; choose another name");
    s = tui_influence_save(app, path, err);
    if (s == MOA_OK) tui_say(app, TUI_GOOD, "Wrote the influence of %d length%s", app->planner->n_influence, app->planner->n_influence == 1 ? "" : "s");
    return s;
}
static void complete_npz(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    offer_files(out, prefix, ".npz");
}

/* --- the table ------------------------------------------------------------------------------------------------------------------------------ */

const tui_command tui_commands[] = {
    {"run", "r", NULL, "run the prompt under the plan (run B)", "run", NULL, 0, run_run, NULL},
    {"run full", "R", NULL, "run the prompt with full attention (run A)", "full", NULL, 0, run_full, NULL},
    {"compare", "c", NULL, "A's tokens through the plan: KL divergence of every token", "compare", NULL, 0, run_compare, NULL},
    {"stop", NULL, NULL, "stop the run (also C-c)", NULL, NULL, 0, run_stop, NULL},
    {"undo", "u", NULL, "take back the last edit of rules or marks", "undo", NULL, TUI_CMD_COUNT | TUI_CMD_EDIT, run_undo, NULL},
    {"redo", "C-r", NULL, "do again what was undone", "redo", NULL, TUI_CMD_COUNT | TUI_CMD_EDIT, run_redo, NULL},
    {"undo-list", "U", NULL, "all edits; Enter goes to that point", NULL, NULL, 0, run_undo_list, NULL},
    {"widen", ">", NULL, "span +64 tokens", "wider", NULL, TUI_CMD_COUNT | TUI_CMD_EDIT, tui_rule_widen, NULL},
    {"narrow", "<", NULL, "span -64 tokens", "narrower", NULL, TUI_CMD_COUNT | TUI_CMD_EDIT, tui_rule_narrow, NULL},
    {"beta-up", "}", NULL, "beta +0.125", NULL, NULL, TUI_CMD_COUNT | TUI_CMD_EDIT, tui_rule_beta_up, NULL},
    {"beta-down", "{", NULL, "beta -0.125", NULL, NULL, TUI_CMD_COUNT | TUI_CMD_EDIT, tui_rule_beta_down, NULL},
    {"rule", "=", NULL, "type the rule of the marked heads, or of this one", "rule", "set-rule @targets ", TUI_CMD_EDIT, tui_rule_ask, NULL},
    {"span", "w", NULL, "type the span of the marked heads, or of this one", NULL, "set-rule @targets w=", TUI_CMD_EDIT, tui_rule_ask, NULL},
    {"full", "gf", NULL, "full attention: alpha 0, beta 1", NULL, NULL, TUI_CMD_EDIT, tui_rule_full, NULL},
    {"sink", "gs", NULL, "sink and the newest block only", NULL, NULL, TUI_CMD_EDIT, tui_rule_sink, NULL},
    {"free-widen", "F", NULL, "widen to the widest of the KV group: costs no memory", "free-widen", NULL, TUI_CMD_EDIT, tui_rule_free_widen, NULL},
    {"group-lock", "gl", NULL, "edits apply to whole KV groups, or not", NULL, NULL, 0, tui_rule_group_lock, NULL},
    {"copy-rule", "y", NULL, "copy the rule under the cursor", NULL, NULL, 0, tui_rule_copy, NULL},
    {"paste-rule", "p", NULL, "give the copied rule to the marked heads, or to this one", NULL, NULL, TUI_CMD_EDIT, tui_rule_paste, NULL},
    {"toggle-mark", "Space", NULL, "mark this head or take its mark away", "mark", NULL, TUI_CMD_EDIT, tui_mark_toggle, NULL},
    {"mark-alike", "*", NULL, "mark every head with the rule of this one", NULL, NULL, TUI_CMD_EDIT, tui_mark_alike, NULL},
    {"command", ":", NULL, "type a command; Tab completes", "command", NULL, 0, run_command, NULL},
    {"palette", "C-p", NULL, "find a command by words", "palette", NULL, 0, run_palette, NULL},
    {"search", "/", "TEXT", "search on this screen", "search", NULL, 0, run_search, NULL},
    {"next", "n", NULL, "next match", NULL, NULL, 0, run_next, NULL},
    {"previous", "N", NULL, "previous match", NULL, NULL, 0, run_previous, NULL},
    {"next-pane", "Tab", NULL, "focus the next pane", NULL, NULL, 0, run_next_pane, NULL},
    {"previous-pane", "S-Tab", NULL, "focus the pane before", NULL, NULL, 0, run_previous_pane, NULL},
    {"view", NULL, "NAME", "go to a screen (also its digit, or F1 to F8)", NULL, NULL, 0, run_view, complete_view},
    {"go", NULL, "L14.H13", "put the cursor on a head", NULL, NULL, 0, run_go, NULL},
    {"describe", "\"", NULL, "the head under the cursor in one sentence", NULL, NULL, 0, run_describe, NULL},
    {"load", NULL, "[MODEL]", "load a model: a file, or a name in the usual folders; alone: a list", NULL, NULL, 0, run_load, complete_model},
    {"engine", NULL, "restart [DEVICE]|stop|devices", "the engine process", NULL, NULL, 0, run_engine, complete_engine},
    {"prompt", NULL, "TEXT", "set the prompt", NULL, NULL, 0, run_prompt, NULL},
    {"prompt open", NULL, "FILE", "read the prompt from a file", NULL, NULL, 0, run_prompt_open, complete_file},
    {"prompt edit", NULL, NULL, "edit the prompt in $EDITOR", NULL, NULL, 0, run_prompt_edit, NULL},
    {"plan open", NULL, "FILE|full|uniform:D|sink", "open a plan; its edits start anew", NULL, NULL, 0, run_plan_open, complete_plan},
    {"plan save", "W", "[FILE]", "write the plan (atomically; the old file is kept as FILE~)", NULL, NULL, 0, run_plan_save, complete_file},
    {"plan save!", NULL, "[FILE]", "write it even if the file is there or was changed", NULL, NULL, 0, run_plan_save_force, complete_file},
    {"plan reload", NULL, NULL, "read the plan's file again", NULL, NULL, 0, run_plan_reload, NULL},
    {"plan diff", "D", "[FILE]", "what differs from the file on disk", NULL, NULL, 0, run_plan_diff, complete_file},
    {"plan set", NULL, "full|uniform:D|sink|FILE", "rules of all heads at once, as one edit", NULL, NULL, TUI_CMD_EDIT, run_plan_set, complete_plan},
    {"set-rule", NULL, "SELECTOR RULE", "rules of selected heads: set-rule L14.H0-3 alpha=0 beta=0.25", NULL, NULL, TUI_CMD_EDIT, run_set_rule, complete_selector},
    {"mark", NULL, "[SELECTOR]", "mark heads: edits then apply to the marked ones", NULL, NULL, TUI_CMD_EDIT, run_mark, complete_selector},
    {"unmark", NULL, "[SELECTOR]", "take marks away, all of them without a selector", NULL, NULL, TUI_CMD_EDIT, run_unmark, complete_selector},
    {"set", NULL, "NAME VALUE", "settings: n gen temp top_k top_p min_p seed chat budget ramp mouse", NULL, NULL, 0, run_set, complete_setting},
    {"step", NULL, "[next|all|stop|NAME]", "run a step of the search, as screen 8 does; stop keeps what it has", NULL, NULL, 0, run_step, complete_step},
    {"step set", NULL, "NAME VALUE", "settings of the search: lengths items kinds loss measure density per rounds", NULL, NULL, 0, run_step_set, complete_step_set},
    {"step docs", NULL, "FILE...|none", "documents that calibration items are made of: .txt, .md, .jsonl, folders", NULL, NULL, 0, run_step_docs, complete_file},
    {"lock", "gL", "[SELECTOR]", "the search keeps the rules of these heads (the marked ones, or this one)", NULL, NULL, 0, run_lock, complete_selector},
    {"unlock", "gU", "[SELECTOR]", "the search may choose their rules again; all heads without a selector", NULL, NULL, 0, run_unlock, complete_selector},
    {"influence open", NULL, "FILE.npz", "read the heads' influence from a file, as `moascope profile` writes it", NULL, NULL, 0, run_influence_open, complete_npz},
    {"influence save", NULL, "FILE.npz", "write the influence that was measured", NULL, NULL, 0, run_influence_save, complete_npz},
    {"dump", "E", "FILE [txt|names|ansi|svg]", "write the screen to a file", NULL, "dump ", 0, run_dump, complete_file},
    {"help", "?", "[classes|search]", "keys and commands of this screen", "help", NULL, 0, run_help, NULL},
    {"tour", NULL, NULL, "spans, sink, window, plan and KV memory on your model, in five steps", NULL, NULL, 0, run_tour, NULL},
    {"back", "q", NULL, "close what is on top; from the first screen: quit", NULL, NULL, 0, run_back, NULL},
    {"quit", "Q", NULL, "quit (asks if the plan is not saved)", NULL, NULL, 0, run_quit, NULL},
    {"quit!", NULL, NULL, "quit without asking", NULL, NULL, TUI_CMD_HIDDEN, run_quit_now, NULL},
    {"sync", NULL, "TOKEN", "for scripts: wait until the engine is idle", NULL, NULL, TUI_CMD_HIDDEN, run_sync, NULL},
    {"wait", NULL, "SECONDS", "for scripts: let time pass", NULL, NULL, TUI_CMD_HIDDEN, run_wait, NULL},
    {"resize", NULL, "COLSxROWS", "for scripts: another size of the screen", NULL, NULL, TUI_CMD_HIDDEN, run_resize, NULL},
    {"paste", NULL, "TEXT", "for scripts: a paste", NULL, NULL, TUI_CMD_HIDDEN, run_paste, NULL},
    {"mouse", NULL, "click|up|down ROW COLUMN", "for scripts: the mouse", NULL, NULL, TUI_CMD_HIDDEN, run_mouse, NULL},
    {"crash", NULL, "yes", "end by a signal", NULL, NULL, TUI_CMD_HIDDEN, run_crash, NULL},
    {0},
};
