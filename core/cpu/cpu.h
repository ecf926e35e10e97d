/* cpu.h -- what the files of the CPU backend share.
 *
 * Two tables of operations stand behind one driver part: the reference (ref_*.c: naive loops, double sums, one operation a
 * file, what every other backend is tested against) and the fast one (fast_*.c), which falls back to nothing: it has every
 * operation itself. "Device" memory is host memory. One thread calls the backend; the pool's threads work inside a call. */
#ifndef MOA_CPU_CPU_H
#define MOA_CPU_CPU_H

#include "core/engine/backend.h"

typedef struct moa_cpu_block moa_cpu_block; /* head of an allocation */

struct moa_dev_weight {
    const moa_dtype_info *type;
    int32_t n_out, n_in;
    size_t row_bytes;
    const unsigned char *data; /* n_out rows as stored; borrowed when owned is NULL */
    void *owned;               /* our copy of them, or NULL */
    moa_dev_weight *prev, *next; /* the backend's list, so that close() can free what is left */
};

typedef struct moa_cpu {
    moa_backend base;
    moa_cpu_block *blocks;
    moa_dev_weight *weights;
    int32_t n_threads;
    bool reference;
} moa_cpu;

/* row r of a weight as stored */
static inline const void *moa_weight_row(const moa_dev_weight *w, int64_t r) {
    return w->data + (size_t)r * w->row_bytes;
}

/* Element offset of token t's K row in the pool, seen through the page table; -1: the page is not there. V lies MOA_PAGE_TOK *
 * d_head elements further. */
static inline int64_t moa_kv_row(const moa_kv_view *kv, int64_t seq, int32_t head_kv, int32_t t) {
    const int32_t page = kv->table[seq * kv->table_seq_stride + (int64_t)head_kv * kv->max_pages + t / MOA_PAGE_TOK];
    if (page < 0) return -1;
    return ((int64_t)page * 2 * MOA_PAGE_TOK + t % MOA_PAGE_TOK) * kv->d_head;
}

/* malloc of count elements with checked size; NULL with the message in err */
void *moa_cpu_scratch(size_t count, size_t elem_bytes, moa_err *err);

#define X(name, text) moa_status moa_ref_##name(moa_backend *b, const struct moa_args_##name *a, moa_err *err);
MOA_OP_MAP(X)
#undef X

#endif
