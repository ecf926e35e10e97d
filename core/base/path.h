/* path.h -- where files live (XDG base directories), and which names may become file names. */
#ifndef MOA_BASE_PATH_H
#define MOA_BASE_PATH_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/status.h"

typedef enum moa_place {
    MOA_PLACE_CONFIG, /* $XDG_CONFIG_HOME/moascope, else ~/.config/moascope */
    MOA_PLACE_STATE,  /* $XDG_STATE_HOME/moascope,  else ~/.local/state/moascope */
    MOA_PLACE_CACHE,  /* $XDG_CACHE_HOME/moascope,  else ~/.cache/moascope */
} moa_place;

/* Writes PLACE/name (name may be "" for the folder itself) into out. Fails without HOME and when it does not fit.
 * Makes nothing on disk. */
moa_status moa_path_place(moa_place place, const char *name, char *out, size_t out_bytes, moa_err *err);

/* [A-Za-z0-9][A-Za-z0-9._-]{0,99}: the only names from outside that may become part of a path */
bool moa_path_name_ok(const char *name);

#endif
