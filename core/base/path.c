#include "core/base/path.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *variable, *under_home;
} places[] = {
    [MOA_PLACE_CONFIG] = {"XDG_CONFIG_HOME", ".config"},
    [MOA_PLACE_STATE] = {"XDG_STATE_HOME", ".local/state"},
    [MOA_PLACE_CACHE] = {"XDG_CACHE_HOME", ".cache"},
};

moa_status moa_path_place(moa_place place, const char *name, char *out, size_t out_bytes, moa_err *err) {
    const char *base = getenv(places[place].variable), *home = getenv("HOME");
    int n;
    const char *slash = *name ? "/" : "";
    if (base && base[0] == '/') n = snprintf(out, out_bytes, "%s/moascope%s%s", base, slash, name);
    else if (home && home[0] == '/')
        n = snprintf(out, out_bytes, "%s/%s/moascope%s%s", home, places[place].under_home, slash, name);
    else return moa_fail(err, MOA_E_IO, "neither %s nor HOME is set to an absolute path", places[place].variable);
    if (n < 0 || (size_t)n >= out_bytes) return moa_fail(err, MOA_E_INVALID, "the path for %s is too long", name);
    return MOA_OK;
}

bool moa_path_name_ok(const char *name) {
    const size_t n = strlen(name);
    if (n < 1 || n > 100 || !isalnum((unsigned char)name[0])) return false;
    for (size_t i = 1; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i])) return false;
    return true;
}
