/* buf.h -- a growing byte buffer: what writers of text, messages and files append to.
 *
 * Appending never fails half-way: on lack of memory the buffer is marked `failed`, stays as it was, and the one check
 * at the end (moa_buf_ok) tells. Zero-initialise it: `moa_buf b = {0};` */
#ifndef MOA_BASE_BUF_H
#define MOA_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

typedef struct moa_buf {
    char *data;      /* owned; NUL-terminated whenever data is not NULL (the NUL is not counted in size) */
    size_t size;     /* bytes */
    size_t capacity; /* bytes */
    bool failed;
} moa_buf;

void moa_buf_append(moa_buf *b, const void *bytes, size_t n);
void moa_buf_str(moa_buf *b, const char *text);
void moa_buf_printf(moa_buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* makes room for n more bytes and returns where they go (size grows by n), NULL when failed */
void *moa_buf_extend(moa_buf *b, size_t n);
static inline bool moa_buf_ok(const moa_buf *b) { return !b->failed; }
void moa_buf_clear(moa_buf *b); /* keeps the memory */
void moa_buf_free(moa_buf *b);

#endif
