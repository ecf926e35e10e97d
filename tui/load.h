/* load.h -- from a command line to a model on a device with a plan: what run, chat and the other model commands begin with. */
#ifndef MOA_TUI_LOAD_H
#define MOA_TUI_LOAD_H

#include <limits.h>

#include "core/engine/engine.h"
#include "core/engine/sampler.h"
#include "plans/plan.h"
#include "tui/options.h"

typedef struct moa_loaded {
    char path[PATH_MAX];
    moa_model *model;   /* owned */
    moa_engine *engine; /* owned */
    moa_plan *plan;     /* owned; as --plan says, of the model's shape */
    char device[32];    /* "cpu", "cuda:0" */
    char why[256];      /* which device was taken and why */
    double load_s;
} moa_loaded;

/* Loads by --model or word `word`, --device, --kv, --threads, --reference, --chunk, --capture-limit, --plan: those of them that
 * the command takes, the others by default. Says the device on stderr, shows progress, ^C cancels. moa_load_close in any case. */
moa_status moa_load(moa_loaded *out, const moa_args *args, int word, moa_err *err);
/* the same of the model `name`, whatever the words say */
moa_status moa_load_named(moa_loaded *out, const moa_args *args, const char *name, moa_err *err);
void moa_load_close(moa_loaded *l);

/* --probe as MOA_WATCH_* of statistics; not given: usual */
moa_status moa_load_probe(const moa_args *args, int usual, int *watch, moa_err *err);
/* a name of moa_kv_type: as --kv says, else f32 for --reference and f16 otherwise; borrowed from args */
const char *moa_load_kv_type(const moa_args *args);

/* --temp, --top-k, --top-p, --min-p, --seed (-1: a random one, below 2^53 so that JSON carries it) */
moa_status moa_load_sampling(const moa_args *args, moa_sampling *out, moa_err *err);

/* A growing list of token ids; zero-initialise, free(data). */
typedef struct moa_id_list {
    int32_t *data; /* owned */
    size_t n;
} moa_id_list;
/* A JSON array of token ids of this model's vocabulary. */
moa_status moa_load_ids(const char *path, const moa_model *model, moa_id_list *out, moa_err *err);
/* Text -> ids: as the user's first turn with --chat (--system before it), else raw with BOS if the model asks for it. */
moa_status moa_load_text(const moa_args *args, const moa_model *model, const char *text, size_t n,
                         moa_id_list *out, moa_err *err);

#endif
