#include "core/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/base/text.h"

static const struct {
    int exit_code;
    const char *text;
} status_rows[MOA_STATUS_COUNT] = {
#define X(name, code, text) [MOA_##name] = {code, text},
    MOA_STATUS_MAP(X)
#undef X
};

/* Copies text of any bytes as UTF-8 that is safe to show: control bytes become ?, what else is unsafe <U+202E>; cut at
 * a whole character when it does not fit. No memory is asked for: it must work when there is none. */
static void copy_safe(const char *text, char *out, size_t out_bytes) {
    size_t at = 0;
    const size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        int32_t cp;
        char one[16];
        i += moa_utf8_next(text + i, n - i, &cp, NULL);
        size_t k = 1;
        if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0)) one[0] = '?';
        else if (moa_text_unsafe(cp)) k = (size_t)snprintf(one, sizeof one, "<U+%04X>", (unsigned)cp);
        else k = moa_utf8_put(cp, one);
        if (at + k >= out_bytes) break;
        memcpy(out + at, one, k);
        at += k;
    }
    out[at] = 0;
}

moa_status moa_fail(moa_err *err, moa_status status, const char *format, ...) {
    if (!err) return status;
    err->status = status;
    char raw[sizeof err->text];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(raw, sizeof raw, format, args);
    va_end(args);
    copy_safe(raw, err->text, sizeof err->text);
    return status;
}

const char *moa_status_text(moa_status status) {
    return (unsigned)status < MOA_STATUS_COUNT ? status_rows[status].text : "unknown status";
}

int moa_status_exit_code(moa_status status) {
    return (unsigned)status < MOA_STATUS_COUNT ? status_rows[status].exit_code : 1;
}
