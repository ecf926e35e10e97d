/* calibrate.c -- `moascope calibrate`: long items answered by the dense model itself, as DATA.jsonl for profile and validate.
 *
 *   for each length: for each item: document and question (calib.h) -> greedy answer under full attention -> one line
 *
 * Every finished item goes to DATA.jsonl.part at once; ^C keeps it, and the same command goes on from there. Items that the model does not
 * answer (or, with --only-right, answers wrongly) are left out and counted; nothing is dropped silently. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/sha256.h"
#include "core/tasks/answer.h"
#include "core/tasks/calib.h"
#include "core/tasks/part.h"
#include "tui/batch/batch.h"
#include "tui/load.h"

enum { LENGTH_MAX = 64 };
enum {
    OWN_DOCS = MOA_OPT_OWN,
    OWN_SYNTHETIC,
    OWN_ASK,
    OWN_ITEMS,
    OWN_FORM,
    OWN_SEED,
    OWN_ONLY_RIGHT,
};
static const moa_option own[] = {
    {"--docs", MOA_OPTION_LIST, "FILE...", NULL, 0, 0, false, "long texts, .jsonl or folders to ask about"},
    {"--synthetic", MOA_OPTION_TEXT, "retrieval,passkey,...", NULL, 0, 0, false,
     "made-up documents: retrieval, passkey, needle, facts"},
    {"--ask", MOA_OPTION_TEXT, "summary,spread", "summary,spread", 0, 0, false,
     "what to ask about --docs: a summary; facts put in each third of it"},
    {"--items", MOA_OPTION_INT, "N", "50", 1, 100000, false, "items a length; the kinds take turns"},
    {"--form", MOA_OPTION_TEXT, "auto|chat|continue", "auto", 0, 0, false,
     "the model's chat template, or plain text that the answer goes on from"},
    {"--seed -s", MOA_OPTION_INT, "S", "1", 0, 4294967295.0, false, "of the items (eval's is 2)"},
    {"--only-right", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "leave out items whose answer is known and was missed"},
    {0},
};
static const int options[] = {MOA_OPT_LENGTHS, MOA_OPT_N,     MOA_OPT_OUTPUT,  MOA_OPT_DEVICE,
                              MOA_OPT_KV,      MOA_OPT_CHUNK, MOA_OPT_THREADS, MOA_OPT_REFERENCE,
                              MOA_OPT_FORCE,   MOA_OPT_QUIET, MOA_OPT_MODEL,   MOA_OPT_END};

/* of one length */
typedef struct tally {
    int32_t n, n_known, n_right, n_empty,
        n_wrong;                /* items kept; of all: answer known, right; left out: no answer, missed */
    int64_t n_prompt, n_answer; /* tokens */
} tally;

typedef struct job {
    const moa_args *args;
    moa_loaded loaded;
    moa_seq *seq;
    moa_docs docs;
    moa_calib calib;
    int32_t lengths[LENGTH_MAX];
    int n_length;
    int32_t n_item;
    moa_part *part;
    moa_buf out; /* the lines of the file to be */
    tally tallies[LENGTH_MAX];
    double tok_done, tok_total;
} job;

/* --- what is asked for ------------------------------------------------------------------------------------------------------------- */

static moa_status parse_kinds(job *j, moa_err *err) {
    const char *synthetic = moa_args_text(j->args, OWN_SYNTHETIC), *ask = moa_args_text(j->args, OWN_ASK);
    const bool docs = moa_args_has(j->args, OWN_DOCS);
    moa_status s = MOA_OK;
    if (!docs && !synthetic)
        return moa_fail(err, MOA_E_USAGE,
                        "items of what? give --docs FILE... or --synthetic retrieval,passkey,facts");
    if (!docs && moa_args_has(j->args, OWN_ASK)) return moa_fail(err, MOA_E_USAGE, "--ask is about --docs");
    if (synthetic) MOA_TRY(moa_calib_parse(synthetic, j->calib.kinds, &j->calib.n_kind, err));
    for (int k = 0; k < j->calib.n_kind; k++)
        if (moa_calib_needs_docs(j->calib.kinds[k]))
            return moa_fail(err, MOA_E_USAGE, "--synthetic %s: that is asked about documents, with --ask",
                            moa_calib_name(j->calib.kinds[k]));
    const int n_synthetic = j->calib.n_kind;
    /* --docs beside --synthetic alone: they fill the made-up documents */
    if (docs && (!synthetic || moa_args_has(j->args, OWN_ASK)))
        MOA_TRY(moa_calib_parse(ask, j->calib.kinds, &j->calib.n_kind, err));
    for (int k = n_synthetic; k < j->calib.n_kind; k++)
        if (!moa_calib_needs_docs(j->calib.kinds[k]))
            return moa_fail(err, MOA_E_USAGE, "--ask %s: that is --synthetic",
                            moa_calib_name(j->calib.kinds[k]));
out:
    return s;
}

static moa_status parse_options(job *j, moa_err *err) {
    const moa_args *a = j->args;
    const char *out = moa_args_text(a, MOA_OPT_OUTPUT), *form = moa_args_text(a, OWN_FORM);
    if (!out) return moa_fail(err, MOA_E_USAGE, "-o DATA.jsonl: where do the items go?");
    if (access(out, F_OK) == 0 && !moa_args_has(a, MOA_OPT_FORCE))
        return moa_fail(err, MOA_E_USAGE, "%s is there already; --force replaces it", out);
    if (!moa_form_parse(form, &j->calib.form))
        return moa_fail(err, MOA_E_USAGE, "--form %s: it is auto, chat or continue", form);
    j->calib.n_gen = (int32_t)moa_args_int(a, MOA_OPT_N);
    if (j->calib.n_gen < 1) return moa_fail(err, MOA_E_USAGE, "-n 0: an answer has at least one token");
    j->calib.seed = (uint64_t)moa_args_int(a, OWN_SEED);
    j->n_item = (int32_t)moa_args_int(a, OWN_ITEMS);
    j->n_length = moa_args_ints(a, MOA_OPT_LENGTHS, j->lengths, LENGTH_MAX);
    if (j->n_length > LENGTH_MAX)
        return moa_fail(err, MOA_E_USAGE, "%d lengths, at most %d", j->n_length, LENGTH_MAX);
    if (j->n_length == 0) j->lengths[0] = 512, j->lengths[1] = 1024, j->lengths[2] = 2048, j->n_length = 3;
    return parse_kinds(j, err);
}

static moa_status open_all(job *j, moa_err *err) {
    moa_status s = MOA_OK;
    for (int i = 0; moa_args_list(j->args, OWN_DOCS, i); i++)
        MOA_TRY(moa_docs_add(&j->docs, moa_args_list(j->args, OWN_DOCS, i), err));
    j->calib.docs = &j->docs;
    MOA_TRY(moa_load(&j->loaded, j->args, 0, err));
    MOA_TRY(moa_seq_open(&j->seq, j->loaded.engine, err));
    for (int l = 0; l < j->n_length; l++) {
        if (j->lengths[l] > j->loaded.model->shape.n_ctx)
            MOA_TRY(moa_fail(err, MOA_E_USAGE, "a length of %d tokens; the model's context is %d",
                             j->lengths[l], j->loaded.model->shape.n_ctx));
        j->tok_total += (double)j->lengths[l] * j->n_item;
    }
out:
    return s;
}

/* --- resumed ------------------------------------------------------------------------------------------------------------------------------ */

/* What the items depend on. */
static moa_status make_key(const job *j, moa_buf *key, moa_err *err) {
    moa_sha256 h;
    char hex[65];
    moa_sha256_init(&h);
    for (int32_t i = 0; i < j->docs.n; i++)
        moa_sha256_add(&h, j->docs.data[i].text, j->docs.data[i].n_bytes);
    moa_sha256_hex(&h, hex);
    moa_buf_printf(key, "calibrate, model %s, KV %s, form %s, -n %d, seed %llu, %d items, docs %s%s, kinds",
                   j->loaded.model->fingerprint, moa_load_kv_type(j->args), moa_form_name(j->calib.form),
                   j->calib.n_gen, (unsigned long long)j->calib.seed, j->n_item, hex,
                   moa_args_has(j->args, OWN_ONLY_RIGHT) ? ", only right" : "");
    for (int k = 0; k < j->calib.n_kind; k++)
        moa_buf_printf(key, " %s", moa_calib_name(j->calib.kinds[k]));
    moa_buf_str(key, ", lengths");
    for (int l = 0; l < j->n_length; l++)
        moa_buf_printf(key, " %d", j->lengths[l]);
    return moa_buf_ok(key) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the key of the items");
}

/* A line of the part is `N-RIGHT-KNOWN PROMPT ANSWER ITEM`: four numbers for the tally, then the item's line or "-" when it is left out. */
static moa_status tell(job *j, int l, const tally *t, const char *item, size_t n, bool add, moa_err *err) {
    tally *sum = &j->tallies[l];
    moa_buf line = {0};
    moa_status s = MOA_OK;
    sum->n += t->n, sum->n_known += t->n_known, sum->n_right += t->n_right;
    sum->n_empty += t->n_empty, sum->n_wrong += t->n_wrong;
    sum->n_prompt += t->n_prompt, sum->n_answer += t->n_answer;
    j->tok_done += j->lengths[l];
    if (t->n > 0) moa_buf_append(&j->out, item, n), moa_buf_str(&j->out, "\n");
    if (!add) return MOA_OK;
    moa_buf_printf(&line, "%d %d %d %d %d %lld %lld ", t->n, t->n_known, t->n_right, t->n_empty, t->n_wrong,
                   (long long)t->n_prompt, (long long)t->n_answer);
    moa_buf_append(&line, item, t->n > 0 ? n : 0);
    s = moa_buf_ok(&line) && moa_buf_ok(&j->out) ? moa_part_add(j->part, line.data, line.size, err)
                                                 : moa_fail(err, MOA_E_MEMORY, "no memory for an item");
    moa_buf_free(&line);
    return s;
}

static bool take_flag(const char **p, int32_t *out) {
    if ((**p != '0' && **p != '1') || (*p)[1] != ' ') return false;
    *out = **p - '0';
    *p += 2;
    return true;
}

static bool take_count(const char **p, int64_t *out) {
    *out = 0;
    if (**p < '0' || **p > '9') return false;
    for (; **p >= '0' && **p <= '9'; (*p)++) {
        *out = *out * 10 + (**p - '0');
        if (*out > 1 << 30) return false;
    }
    return *(*p)++ == ' ';
}

/* lines end in a line break, so a scan stops there */
static moa_status resume_line(job *j, int32_t number, moa_err *err) {
    size_t n;
    const char *line = moa_part_line(j->part, number, &n), *p = line;
    tally t = {0};
    moa_item it = {0};
    const bool ok = number < j->n_length * j->n_item && take_flag(&p, &t.n) && take_flag(&p, &t.n_known) &&
                    take_flag(&p, &t.n_right) && take_flag(&p, &t.n_empty) && take_flag(&p, &t.n_wrong) &&
                    take_count(&p, &t.n_prompt) && take_count(&p, &t.n_answer) && p <= line + n &&
                    (t.n == 0 || moa_item_parse(&it, p, n - (size_t)(p - line), NULL) == MOA_OK);
    moa_item_free(&it);
    if (!ok)
        return moa_fail(err, MOA_E_INVALID,
                        "%s: line %d is not an item of this run; remove the file, or say --force",
                        moa_part_path(j->part), number + 2);
    return tell(j, number / j->n_item, &t, p, n - (size_t)(p - line), false, err);
}

static moa_status resume(job *j, moa_err *err) {
    moa_buf key = {0};
    moa_status s = MOA_OK;
    MOA_TRY(make_key(j, &key, err));
    MOA_TRY(moa_part_open(&j->part, moa_args_text(j->args, MOA_OPT_OUTPUT), key.data,
                          moa_args_has(j->args, MOA_OPT_FORCE), err));
    for (int32_t i = 0; i < moa_part_n(j->part); i++)
        MOA_TRY(resume_line(j, i, err));
    if (moa_part_n(j->part) > 0)
        moa_remark(j->args, "%s: %d of %d items are there already", moa_part_path(j->part),
                   moa_part_n(j->part), j->n_length * j->n_item);
out:
    moa_buf_free(&key);
    return s;
}

/* --- run -------------------------------------------------------------------------------------------------------------------------------------- */

static void on_progress(void *user, int32_t done, int32_t total) {
    const job *j = user;
    (void)total;
    moa_progress_show(j->args, "calibrate", j->tok_done + done, j->tok_total, "tokens");
}

static moa_status put_answer(job *j, int l, moa_calib_item *it, const moa_answer *a, moa_err *err) {
    tally t = {.n_prompt = it->tokens.n, .n_answer = a->n_gen, .n_known = it->n_expected > 0};
    moa_buf line = {0};
    t.n_right = t.n_known && moa_calib_right(it, a->text.data);
    t.n_empty = strspn(a->text.data, " \t\r\n") == a->text.size;
    t.n_wrong = !t.n_empty && t.n_known && !t.n_right && moa_args_has(j->args, OWN_ONLY_RIGHT);
    t.n = !t.n_empty && !t.n_wrong;
    size_t n = a->text.size; /* the line break that ended it is not of the answer */
    while (n > 0 && strchr(" \t\r\n", a->text.data[n - 1]))
        n--;
    if (!moa_item_add_answer(&it->item, a->text.data, n))
        return moa_fail(err, MOA_E_MEMORY, "no memory for an answer");
    moa_item_print(&it->item, &line);
    const moa_status s = moa_buf_ok(&line) ? tell(j, l, &t, line.data, line.size - 1, true, err)
                                           : moa_fail(err, MOA_E_MEMORY, "no memory for an item");
    moa_buf_free(&line);
    return s;
}

static moa_status run_item(job *j, int l, int32_t i, moa_err *err) {
    moa_calib_item it;
    moa_answer a = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_calib_make(j->loaded.model, &j->calib, j->lengths[l], i, &it, err));
    const moa_ask ask = {.ids = it.tokens.ids,
                         .n_ids = it.tokens.n,
                         .n_gen = it.n_gen,
                         .stop = it.stop,
                         .progress = on_progress,
                         .cancelled = moa_interrupted,
                         .user = j};
    MOA_TRY(moa_answer_make(j->seq, &ask, &a, err));
    MOA_TRY(put_answer(j, l, &it, &a, err));
out:
    moa_answer_free(&a);
    moa_calib_free(&it);
    return s;
}

static moa_status run_all(job *j, moa_err *err) {
    moa_status s = MOA_OK;
    const int32_t from = moa_part_n(j->part), n = j->n_length * j->n_item;
    int32_t k = from;
    for (; k < n && s == MOA_OK; k++)
        s = moa_interrupted(NULL) ? moa_fail(err, MOA_E_CANCELLED, "interrupted")
                                  : run_item(j, k / j->n_item, k % j->n_item, err);
    moa_progress_show(j->args, "calibrate", 1, 1, "tokens");
    if (s == MOA_E_CANCELLED)
        s = moa_fail(err, s, "interrupted after %d of %d items; the same command goes on from there", k - 1,
                     n);
    return s;
}

static void say_tally(const job *j) {
    for (int l = 0; l < j->n_length; l++) {
        const tally *t = &j->tallies[l];
        const double n = t->n + t->n_empty + t->n_wrong;
        moa_remark(j->args,
                   "%d tokens: %d items, %d left out (%d without an answer, %d missed); of %d with a known "
                   "answer %d right; %.0f "
                   "prompt and %.1f answer tokens on average",
                   j->lengths[l], t->n, t->n_empty + t->n_wrong, t->n_empty, t->n_wrong, t->n_known,
                   t->n_right, (double)t->n_prompt / n, (double)t->n_answer / n);
    }
}

static moa_status run(const moa_args *args, moa_err *err) {
    job j = {.args = args};
    moa_status s = MOA_OK;
    moa_interrupt_catch();
    MOA_TRY(parse_options(&j, err));
    MOA_TRY(open_all(&j, err));
    MOA_TRY(resume(&j, err));
    MOA_TRY(run_all(&j, err));
    say_tally(&j);
    if (j.out.size == 0) MOA_TRY(moa_fail(err, MOA_E_FAILED, "no item is left: none was answered"));
    MOA_TRY(moa_output_save(moa_args_text(args, MOA_OPT_OUTPUT), &j.out, err));
    moa_part_remove(&j.part);
out:
    moa_part_close(&j.part);
    moa_buf_free(&j.out);
    moa_docs_free(&j.docs);
    moa_seq_close(&j.seq);
    moa_load_close(&j.loaded);
    return s;
}

const moa_batch moa_batch_calibrate = {
    .name = "calibrate",
    .help = "long items answered by the dense model itself: what profile and validate read",
    .usage = "MODEL --docs FILE... [--ask summary,spread] -o DATA.jsonl\nMODEL --synthetic "
             "retrieval,passkey,facts -o DATA.jsonl",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 1,
    .more = "--docs beside --synthetic without --ask: the documents fill passkey, needle and facts.\n"
            "^C keeps what is done in DATA.jsonl.part; the same command goes on from there.",
    .run = run,
};
