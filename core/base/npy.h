/* npy.h -- arrays for other programs: NumPy's .npy and .npz files, written and read.
 *
 *   .npy   \x93NUMPY 1 0, u16 length, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" padded to 64 bytes, elements in C order
 *   .npz   a zip archive of .npy files, stored, not compressed (maps have to be mapped and diffed, not to be small), all dated 1980-01-01:
 *          same content, same bytes
 *
 * Written under a temporary name and put in place by the commit, so that nothing half-written lies under the final name.
 * Texts ("README", "meta") are 0-dimensional byte strings ('|S17'): numpy.load(f)["README"].item().decode() */
#ifndef MOA_BASE_NPY_H
#define MOA_BASE_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

/* name, NumPy's descr, bytes an element */
#define MOA_NPY_MAP(X)                                                                                       \
    X(F32, "<f4", 4)                                                                                         \
    X(F64, "<f8", 8)                                                                                         \
    X(I32, "<i4", 4)                                                                                         \
    X(I64, "<i8", 8)                                                                                         \
    X(U8, "|u1", 1)                                                                                          \
    X(TEXT, "|S", 1)
typedef enum moa_npy_type {
#define X(name, descr, bytes) MOA_NPY_##name,
    MOA_NPY_MAP(X)
#undef X
} moa_npy_type;

enum { MOA_NPY_DIM_MAX = 8, MOA_NPY_NAME_MAX = 128 };

/* An array's shape: shape[0] is the slowest. n_dim 0: one element. TEXT: its bytes are shape[0], n_dim 1 here. */
typedef struct moa_npy_shape {
    moa_npy_type type;
    int n_dim;
    size_t shape[MOA_NPY_DIM_MAX];
} moa_npy_shape;
/* bytes of the elements; false when they do not fit a size_t */
bool moa_npy_bytes(const moa_npy_shape *s, size_t *bytes);

/* --- writing ------------------------------------------------------------------------------------------------------------- */

/* One writer for both: an .npy file is one array, an .npz file any number of named ones.
 *   npy: open, append..., commit          npz: open, (begin, append...)..., commit */
typedef struct moa_npy_writer moa_npy_writer;
/* shape: of the one array of an .npy file; NULL: an .npz file */
moa_status moa_npy_open(moa_npy_writer **out, const char *path, const moa_npy_shape *shape, moa_err *err);
moa_status moa_npz_begin(moa_npy_writer *w, const char *name, const moa_npy_shape *shape, moa_err *err);
moa_status moa_npy_append(moa_npy_writer *w, const void *bytes, size_t n, moa_err *err);
/* begin and append at once */
moa_status moa_npz_add(moa_npy_writer *w, const char *name, const moa_npy_shape *shape, const void *data,
                       moa_err *err);
moa_status moa_npz_text(moa_npy_writer *w, const char *name, const char *text, moa_err *err);
/* Checks that every array is whole, syncs, puts the file in place. The writer is closed in any case. */
moa_status moa_npy_commit(moa_npy_writer **w, moa_err *err);
void moa_npy_close(moa_npy_writer **w); /* drops what was not committed */

/* --- reading ------------------------------------------------------------------------------------------------------------- */

typedef struct moa_npy_array {
    char name[MOA_NPY_NAME_MAX]; /* without .npy; "" in an .npy file */
    moa_npy_shape shape;
    void *data; /* owned; TEXT has a NUL behind it */
    size_t bytes;
} moa_npy_array;
typedef struct moa_npz {
    moa_npy_array *arrays;
    int n;
} moa_npz;
/* Reads an .npz or .npy file whole; names keep only what is wanted (NULL-terminated; NULL: everything). Refuses Fortran order, other
 * types, more than max_bytes of elements, damaged archives. */
moa_status moa_npz_read(moa_npz *out, const char *path, const char *const *names, size_t max_bytes,
                        moa_err *err);
/* The same, told of in between: done of about total bytes of elements; false stops it: E_CANCELLED. */
typedef struct moa_npz_watch {
    bool (*go_on)(void *user, uint64_t done, uint64_t total);
    void *user;
} moa_npz_watch;
moa_status moa_npz_read_watched(moa_npz *out, const char *path, const char *const *names, size_t max_bytes,
                                const moa_npz_watch *watch, moa_err *err);
const moa_npy_array *moa_npz_find(const moa_npz *z, const char *name); /* NULL: none */
void moa_npz_free(moa_npz *z);

#endif
