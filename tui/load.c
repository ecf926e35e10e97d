#include "tui/load.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/model/chat.h"
#include "tui/batch/batch.h"

enum { IDS_FILE_MAX = 256 << 20 };

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool on_progress(void *user, uint64_t done, uint64_t total) {
    moa_progress_show(user, "loading", (double)done / 1e6, (double)total / 1e6, "MB");
    return !moa_interrupted(NULL);
}

/* the value if the command takes the option and it has one, else otherwise */
static const char *text_or(const moa_args *args, int id, const char *otherwise) {
    const char *text = moa_option_row(args->command, id) ? moa_args_text(args, id) : NULL;
    return text ? text : otherwise;
}

static int64_t int_of(const moa_args *args, int id) {
    return moa_option_row(args->command, id) ? moa_args_int(args, id) : 0;
}

static moa_status check_options(const moa_args *args, moa_err *err) {
    const char *kv = text_or(args, MOA_OPT_KV, "f16");
    moa_kv_type type;
    if (!moa_kv_type_find(kv, &type))
        return moa_fail(err, MOA_E_USAGE, "--kv %s: K and V are cached as " MOA_KV_TYPE_NAMES, kv);
    for (int i = 0; i < args->n_given; i++)
        if (args->given[i].id == MOA_OPT_KV && strcmp(args->given[i].text, kv) != 0)
            return moa_fail(err, MOA_E_USAGE, "K as %s and V as %s: both are cached in one type",
                            args->given[i].text, kv);
    if (moa_option_row(args->command, MOA_OPT_REFERENCE) && moa_args_has(args, MOA_OPT_REFERENCE) &&
        strncmp(text_or(args, MOA_OPT_DEVICE, "auto"), "cuda", 4) == 0)
        return moa_fail(err, MOA_E_USAGE,
                        "--reference is of the CPU; leave --device out or say --device cpu");
    return MOA_OK;
}

/* the reference is there to be exact: it does not round keys and values unless asked to */
moa_status moa_load_probe(const moa_args *args, int usual, int *watch, moa_err *err) {
    static const struct {
        const char *name;
        int watch;
    } kinds[] = {{"sampled", MOA_WATCH_STATS | MOA_WATCH_SAMPLED}, {"exact", MOA_WATCH_STATS}, {"off", 0}};
    const char *word = moa_args_text(args, MOA_OPT_PROBE);
    *watch = usual;
    if (!word) return MOA_OK;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        *watch = kinds[i].watch;
        if (strcmp(word, kinds[i].name) == 0) return MOA_OK;
    }
    return moa_fail(err, MOA_E_USAGE, "--probe %s: sampled, exact or off", word);
}

const char *moa_load_kv_type(const moa_args *args) {
    const bool reference = moa_option_row(args->command, MOA_OPT_REFERENCE) && moa_args_has(args, MOA_OPT_REFERENCE);
    return reference && !moa_args_has(args, MOA_OPT_KV) ? "f32" : text_or(args, MOA_OPT_KV, "f16");
}

static moa_status open_all(moa_loaded *l, const moa_args *args, const char *name, moa_err *err) {
    moa_backend *backend = NULL;
    moa_status s = MOA_OK;
    const moa_backend_config device = {.n_threads = (int32_t)int_of(args, MOA_OPT_THREADS),
                                       .reference = moa_option_row(args->command, MOA_OPT_REFERENCE) &&
                                                    moa_args_has(args, MOA_OPT_REFERENCE)};
    moa_engine_config config = {
        .chunk = (int32_t)int_of(args, MOA_OPT_CHUNK),
        .capture_limit_bytes = (uint64_t)int_of(args, MOA_OPT_CAPTURE_LIMIT) << 20};
    MOA_TRY(check_options(args, err));
    (void)moa_kv_type_find(moa_load_kv_type(args), &config.kv_type); /* checked */
    MOA_TRY(moa_model_find(name, l->path, sizeof l->path, err));
    MOA_TRY(moa_model_open_lazy(&l->model, l->path, err));
    MOA_TRY(moa_plan_open(&l->plan, text_or(args, MOA_OPT_PLAN, "full"), l->model->shape.n_layer,
                          l->model->shape.n_head, err));
    MOA_TRY(moa_backend_open(&backend, text_or(args, MOA_OPT_DEVICE, "auto"), &device, l->why, sizeof l->why,
                             err));
    const bool cuda = strncmp(l->why, "cuda:", 5) == 0;
    (void)snprintf(l->device, sizeof l->device, "%.*s", cuda ? (int)strcspn(l->why, " ") : 31,
                   cuda ? l->why : backend->vt->name);
    moa_remark(args, "%s", l->why);
    if (!backend->vt->reads_files) MOA_TRY(moa_model_read(l->model, on_progress, (void *)(uintptr_t)args, err));
    MOA_TRY(
        moa_engine_open(&l->engine, l->model, backend, &config, on_progress, (void *)(uintptr_t)args, err));
out:
    return s;
}

moa_status moa_load(moa_loaded *out, const moa_args *args, int word, moa_err *err) {
    *out = (moa_loaded){0};
    const char *name = moa_args_model(args, word);
    if (!name) return moa_fail(err, MOA_E_USAGE, "which model? give a GGUF file or a name");
    return moa_load_named(out, args, name, err);
}

moa_status moa_load_named(moa_loaded *out, const moa_args *args, const char *name, moa_err *err) {
    *out = (moa_loaded){0};
    const double start = now_s();
    const moa_status s = open_all(out, args, name, err);
    out->load_s = now_s() - start;
    if (s != MOA_OK) moa_load_close(out);
    return s;
}

void moa_load_close(moa_loaded *l) {
    moa_engine_close(&l->engine);
    moa_model_close(&l->model);
    moa_plan_close(&l->plan);
}

moa_status moa_load_sampling(const moa_args *args, moa_sampling *out, moa_err *err) {
    *out = moa_sampling_default();
    out->temp = (float)moa_args_real(args, MOA_OPT_TEMP);
    out->top_k = (int32_t)moa_args_int(args, MOA_OPT_TOP_K);
    out->top_p = (float)moa_args_real(args, MOA_OPT_TOP_P);
    out->min_p = (float)moa_args_real(args, MOA_OPT_MIN_P);
    const int64_t seed = moa_args_int(args, MOA_OPT_SEED);
    out->seed = (uint64_t)seed;
    if (seed < 0) {
        if (getrandom(&out->seed, sizeof out->seed, 0) != sizeof out->seed) out->seed = (uint64_t)time(NULL);
        out->seed &= UINT32_MAX;
    }
    return moa_sampling_check(out, err);
}

/* --- input ------------------------------------------------------------------------------------------------------------------- */

static moa_status take_ids(const cJSON *list, const char *path, const moa_model *model, moa_id_list *out,
                           moa_err *err) {
    const int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (n < 1) return moa_fail(err, MOA_E_INVALID, "%s: not a JSON array of token ids", path);
    out->data = malloc((size_t)n * sizeof *out->data);
    if (!out->data) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for %d ids", path, n);
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        const double x = cJSON_IsNumber(item) ? item->valuedouble : NAN;
        if (!(x >= 0 && x < model->shape.n_vocab) || x != floor(x))
            return moa_fail(err, MOA_E_INVALID, "%s: entry %zu is not a token id from 0 to %d", path, out->n,
                            model->shape.n_vocab - 1);
        out->data[out->n++] = (int32_t)x;
    }
    return MOA_OK;
}

moa_status moa_load_ids(const char *path, const moa_model *model, moa_id_list *out, moa_err *err) {
    moa_buf text = {0};
    cJSON *list = NULL;
    moa_status s = MOA_OK;
    *out = (moa_id_list){0};
    MOA_TRY(moa_file_read(path, IDS_FILE_MAX, &text, err));
    MOA_TRY(moa_json_check(text.data ? text.data : "", text.size, err));
    list = cJSON_ParseWithLength(text.data ? text.data : "", text.size);
    if (!list) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%s: no memory for its JSON", path));
    MOA_TRY(take_ids(list, path, model, out, err));
out:
    cJSON_Delete(list);
    moa_buf_free(&text);
    if (s != MOA_OK) {
        free(out->data);
        *out = (moa_id_list){0};
    }
    return s;
}

moa_status moa_load_text(const moa_args *args, const moa_model *model, const char *text, size_t n,
                         moa_id_list *out, moa_err *err) {
    const char *system = text_or(args, MOA_OPT_SYSTEM, NULL);
    moa_status s;
    *out = (moa_id_list){0};
    if (!moa_args_has(args, MOA_OPT_CHAT)) {
        if (system) return moa_fail(err, MOA_E_USAGE, "--system is of a chat: add --chat");
        s = moa_tokenizer_encode(model->tokenizer, text, n, MOA_TOK_BOS, &out->data, &out->n, err);
    } else {
        const moa_message messages[] = {{MOA_ROLE_SYSTEM, system ? system : "", system ? strlen(system) : 0},
                                        {MOA_ROLE_USER, text, n}};
        s = moa_chat_encode(model, messages + !system, system ? 2 : 1, true, &out->data, &out->n, err);
    }
    const bool given = moa_args_has(args, MOA_OPT_PROMPT) || moa_args_has(args, MOA_OPT_PROMPT_FILE) || moa_args_has(args, MOA_OPT_PROMPTS);
    if (s == MOA_OK && out->n == 0)
        s = moa_fail(err, MOA_E_USAGE, given ? "the prompt has no tokens" : "no prompt: --prompt TEXT, --prompt-file FILE (-: standard input) or --ids FILE");
    if (s != MOA_OK) {
        free(out->data);
        *out = (moa_id_list){0};
    }
    return s;
}
