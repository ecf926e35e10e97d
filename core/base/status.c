#include "core/base/status.h"

#include <stdarg.h>
#include <stdio.h>

static const struct {
    int exit_code;
    const char *text;
} status_rows[MOA_STATUS_COUNT] = {
#define X(name, code, text) [MOA_##name] = {code, text},
    MOA_STATUS_MAP(X)
#undef X
};

moa_status moa_fail(moa_err *err, moa_status status, const char *format, ...) {
    if (!err) return status;
    err->status = status;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    for (char *c = err->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return status;
}

const char *moa_status_text(moa_status status) {
    return (unsigned)status < MOA_STATUS_COUNT ? status_rows[status].text : "unknown status";
}

int moa_status_exit_code(moa_status status) {
    return (unsigned)status < MOA_STATUS_COUNT ? status_rows[status].exit_code : 1;
}
