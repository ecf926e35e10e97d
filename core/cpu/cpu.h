/* cpu.h -- what the files of the CPU backend share.
 *
 * Two tables of operations stand behind one driver part: the reference (ref_*.c: naive loops, double sums, one operation a
 * file, what every other backend is tested against) and the fast one (fast_*.c), which falls back to nothing: it has every
 * operation itself. "Device" memory is host memory. One thread calls the backend; the pool's threads work inside a call. */
#ifndef MOA_CPU_CPU_H
#define MOA_CPU_CPU_H

#include "core/cpu/kern.h"
#include "core/cpu/pool.h"
#include "core/engine/backend.h"

typedef struct moa_cpu_block moa_cpu_block; /* head of an allocation */

struct moa_dev_weight {
    const moa_dtype_info *type;
    int32_t n_out, n_in;
    size_t row_bytes;
    const unsigned char *data;   /* n_out rows as stored; borrowed when owned is NULL */
    void *owned;                 /* our copy of them, or NULL */
    moa_pack pack;               /* the fast path's form, memory NULL: none */
    float *values;               /* a vector (n_out = 1) as float, or NULL */
    moa_dev_weight *prev, *next; /* the backend's list, so that close() can free what is left */
};

typedef struct moa_cpu {
    moa_backend base;
    moa_cpu_block *blocks;
    moa_dev_weight *weights;
    int32_t n_threads;
    bool reference;
    /* the fast path; NULL in the reference */
    moa_pool *pool;
    const moa_kern *kern;
    struct {
        void *memory;
        size_t bytes;
    } room;                 /* scratch of an operation, grows only; see moa_cpu_room() */
    struct moa_slab *slabs; /* packed weights */
    struct moa_rope_table *rope;
} moa_cpu;

/* row r of a weight as stored */
static inline const void *moa_weight_row(const moa_dev_weight *w, int64_t r) {
    return w->data + (size_t)r * w->row_bytes;
}

/* The page of token t, seen through the page table; NULL: it is not there. */
static inline unsigned char *moa_kv_page_of(const moa_kv_view *kv, int64_t seq, int32_t head_kv, int32_t t) {
    const int32_t page =
        kv->table[seq * kv->table_seq_stride + (int64_t)head_kv * kv->max_pages + t / MOA_PAGE_TOK];
    if (page < 0) return NULL;
    return (unsigned char *)kv->pool + (size_t)page * moa_kv_page_bytes(kv->type, kv->d_head);
}
/* parts of a page of q8 */
static inline uint8_t *moa_kv_k_exponents(unsigned char *page, int32_t d_head) {
    return page + moa_kv_k_exponent_at(d_head);
}
static inline float *moa_kv_v_scales(unsigned char *page, int32_t d_head) {
    return (float *)(void *)(page + moa_kv_v_scale_at(d_head));
}

/* q8: are the pages there that k is read back from? */
moa_status moa_cpu_capture_check(const moa_args_capture *a, moa_err *err);

/* Scratch that stays with the backend: 64-byte aligned, content undefined, valid until the next call. NULL: no memory. */
void *moa_cpu_room(moa_cpu *cpu, size_t bytes, moa_err *err);

/* malloc of count elements with checked size; NULL with the message in err */
void *moa_cpu_scratch(size_t count, size_t elem_bytes, moa_err *err);

#define X(name, text)                                                                                        \
    moa_status moa_ref_##name(moa_backend *b, const struct moa_args_##name *a, moa_err *err);                \
    moa_status moa_fast_##name(moa_backend *b, const struct moa_args_##name *a, moa_err *err);
MOA_OP_MAP(X)
MOA_BWD_MAP(X)
#undef X

/* fast_rope.c: the angles of the last positions; forget: these factors go, and others may come to lie where they lay */
void moa_rope_table_free(struct moa_rope_table *t);
void moa_rope_table_forget(struct moa_rope_table *t, const moa_dev_weight *factors);

#endif
