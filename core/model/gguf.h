/* gguf.h -- GGUF files (version 2 and 3, little-endian) as a typed dictionary and a table of tensors.
 *
 *      0  "GGUF" | version u32 | n_tensors u64 | n_kv u64                                        24 bytes
 *     24  n_kv entries:      key | type u32 | value                      a string is: length u64, bytes, no
 * NUL an array value: element type u32 | count u64 | elements n_tensors entries: name | n_dims u32 | n_dims x
 * u64 (fastest first) | type u32 | offset u64
 *         ----- header ends here: this much is read into memory and hashed (moa_gguf_header)
 * --------------------- padding to general.alignment (a power of two, 32 if absent) data: tensors one after
 * the other in table order, each padded to the alignment; offsets count from here
 *
 * The file is hostile: everything is judged before open() returns, every length against the bytes the file
 * still has before memory is taken for it, all sizes through core/base/size.h. What is refused: other
 * versions and byte orders, nested arrays, names twice, values out of the limits below, tensors that overlap,
 * leave holes, lie outside the file or are not aligned. Messages name the entry, where it stands in the file
 * and the numbers.
 *
 * Only the header is kept; data is read on request with pread, so that a file cut short while we run is an
 * error and never a SIGBUS. Duplicates are found by sorting (n log n whatever the names are; a hash table can
 * be fed collisions). */
#ifndef MOA_MODEL_GGUF_H
#define MOA_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MOA_GGUF_MAX_KV = 65536,
    MOA_GGUF_MAX_TENSORS = 1 << 20,
    MOA_GGUF_MAX_KEY = 65535,        /* bytes, of A-Z a-z 0-9 _ . - */
    MOA_GGUF_MAX_NAME = 63,          /* bytes of a tensor name, printable ASCII; llama.cpp's limit too */
    MOA_GGUF_MAX_STRING = 16 << 20,  /* bytes */
    MOA_GGUF_MAX_ARRAY = 64 << 20,   /* elements */
    MOA_GGUF_MAX_HEADER = 128 << 20, /* bytes; a vocabulary of 150k tokens makes 6 MB */
    MOA_GGUF_MIN_ALIGN = 8,
    MOA_GGUF_MAX_ALIGN = 1 << 20,
    MOA_GGUF_MAX_DIMS = 4,
};

/* name, GGUF's number, bytes of one value (0: it varies) */
#define MOA_GGUF_TYPE_MAP(X)                                                                                 \
    X(U8, 0, 1)                                                                                              \
    X(I8, 1, 1)                                                                                              \
    X(U16, 2, 2)                                                                                             \
    X(I16, 3, 2)                                                                                             \
    X(U32, 4, 4)                                                                                             \
    X(I32, 5, 4)                                                                                             \
    X(F32, 6, 4)                                                                                             \
    X(BOOL, 7, 1)                                                                                            \
    X(STRING, 8, 0)                                                                                          \
    X(ARRAY, 9, 0)                                                                                           \
    X(U64, 10, 8)                                                                                            \
    X(I64, 11, 8)                                                                                            \
    X(F64, 12, 8)

typedef enum moa_gguf_type {
#define X(name, id, bytes) MOA_GGUF_##name = id,
    MOA_GGUF_TYPE_MAP(X)
#undef X
} moa_gguf_type;

typedef struct moa_gguf moa_gguf; /* immutable after opening: any thread may use it */

/* text of the file: not NUL-terminated, may hold any byte; borrowed until moa_gguf_close */
typedef struct moa_str {
    const char *data;
    size_t size; /* bytes */
} moa_str;

typedef struct moa_gguf_kv {
    moa_str key;
    moa_gguf_type type, elem_type; /* elem_type of an array, else equal to type */
    uint64_t n;                    /* elements of an array, else 1 */
    uint64_t file_offset;          /* of the value */
} moa_gguf_kv;

typedef struct moa_gguf_tensor {
    moa_str name;
    uint32_t type; /* GGUF's number; known to moa_dtype_gguf_block, not necessarily to moa_dtype_find */
    uint32_t n_dims;
    uint64_t dims[MOA_GGUF_MAX_DIMS]; /* fastest first, each >= 1, 1 beyond n_dims; dims[0] a multiple of the
                                         type's block */
    uint64_t n_elem;
    size_t bytes;         /* as stored */
    uint64_t file_offset; /* of the data; file_offset + bytes <= size of the file */
} moa_gguf_tensor;

/* path must be a regular file */
moa_status moa_gguf_open(moa_gguf **out, const char *path, moa_err *err);
/* a whole file in memory, borrowed until close */
moa_status moa_gguf_open_memory(moa_gguf **out, const void *bytes, size_t n, moa_err *err);
void moa_gguf_close(moa_gguf **g); /* accepts NULL and half-built; nulls the pointer */

uint32_t moa_gguf_version(const moa_gguf *g);
uint64_t moa_gguf_file_bytes(const moa_gguf *g);
/* metadata and tensor table as they stand in the file: what a model's fingerprint is made of */
moa_str moa_gguf_header(const moa_gguf *g);

size_t moa_gguf_n_kv(const moa_gguf *g);
moa_gguf_kv moa_gguf_kv_at(const moa_gguf *g, size_t i); /* in file order */
bool moa_gguf_has(const moa_gguf *g, const char *key);

/* Getters. A missing key, another type or a value outside [low, high] is MOA_E_INVALID; *out is then
 * untouched. get_int takes any integer type, get_float f32 and f64 and refuses NaN and infinity. */
moa_status moa_gguf_get_int(const moa_gguf *g, const char *key, int64_t low, int64_t high, int64_t *out,
                            moa_err *err);
moa_status moa_gguf_get_float(const moa_gguf *g, const char *key, double low, double high, double *out,
                              moa_err *err);
moa_status moa_gguf_get_bool(const moa_gguf *g, const char *key, bool *out, moa_err *err);
moa_status moa_gguf_get_str(const moa_gguf *g, const char *key, size_t max_bytes, moa_str *out, moa_err *err);
/* one value of scalar type as text, an array as "[n of TYPE]": for listings; text is not sanitised */
void moa_gguf_kv_text(const moa_gguf *g, size_t i, char *out, size_t out_bytes);

/* Arrays. *out is malloc'ed (the caller frees it; NULL when the array is empty); the element type must be the
 * one named. */
moa_status moa_gguf_get_strings(const moa_gguf *g, const char *key, moa_str **out, size_t *n, moa_err *err);
moa_status moa_gguf_get_i32s(const moa_gguf *g, const char *key, int32_t **out, size_t *n, moa_err *err);
moa_status moa_gguf_get_f32s(const moa_gguf *g, const char *key, float **out, size_t *n, moa_err *err);

size_t moa_gguf_n_tensors(const moa_gguf *g);
moa_gguf_tensor moa_gguf_tensor_at(const moa_gguf *g, size_t i); /* in file order */
/* index of the tensor with this name, SIZE_MAX if there is none */
size_t moa_gguf_find_tensor(const moa_gguf *g, const char *name);

/* n bytes of a tensor's data from offset on. A file that has become shorter since it was opened is MOA_E_IO.
 */
moa_status moa_gguf_read(const moa_gguf *g, size_t tensor, size_t offset, size_t n, void *dst, moa_err *err);
/* Whole tensors, by several threads. progress, or NULL: called by this thread between pieces, bytes of all of them; false:
 * E_CANCELLED. On failure dst are undefined. */
typedef struct moa_gguf_part {
    size_t tensor;
    void *dst;
} moa_gguf_part;
moa_status moa_gguf_read_many(const moa_gguf *g, const moa_gguf_part *parts, size_t n_part,
                              bool (*progress)(void *user, uint64_t done, uint64_t total), void *user, moa_err *err);

#ifdef __cplusplus
}
#endif
#endif
