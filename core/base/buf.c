#include "core/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"

static bool reserve(moa_buf *b, size_t extra) {
    size_t need;
    if (b->failed) return false;
    if (!moa_size_add(b->size, extra, &need) || !moa_size_add(need, 1, &need)) {
        b->failed = true;
        return false;
    }
    if (need <= b->capacity) return true;
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need)
        if (!moa_size_mul(capacity, 2, &capacity)) capacity = need;
    char *data = realloc(b->data, capacity);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->capacity = capacity;
    return true;
}

void *moa_buf_extend(moa_buf *b, size_t n) {
    if (!reserve(b, n)) return NULL;
    void *at = b->data + b->size;
    b->size += n;
    b->data[b->size] = 0;
    return at;
}

void moa_buf_append(moa_buf *b, const void *bytes, size_t n) {
    void *at = moa_buf_extend(b, n);
    if (at && n) memcpy(at, bytes, n);
}

void moa_buf_str(moa_buf *b, const char *text) { moa_buf_append(b, text, strlen(text)); }

void moa_buf_printf(moa_buf *b, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) b->failed = true;
    else if (reserve(b, (size_t)n)) {
        (void)vsnprintf(b->data + b->size, (size_t)n + 1, format, again);
        b->size += (size_t)n;
    }
    va_end(again);
}

void moa_buf_clear(moa_buf *b) {
    b->size = 0;
    b->failed = false;
    if (b->data) b->data[0] = 0;
}

void moa_buf_free(moa_buf *b) {
    free(b->data);
    *b = (moa_buf){0};
}
