/* ops.h -- what the groups of test_ops share. A group of cases belongs to one operation and runs on two backends at once:
 *
 *   rig.c        inputs from a seed, memory between guards on both sides, comparisons        weights.c, kv_cache.c   packed weights, pages
 *   rows.c       embed, rmsnorm, silu_mul, add        matmul.c   matmul        rope.c   rope        kv_store.c   kv_store
 *   attention.c  attn_prefill, attn_decode            probe.c    capture, attn_map, stat_sum        sample.c     argmax, sample
 *   golden.c, brute.c   the reference itself, by hand and by the whole N x N matrix
 *
 * A case: case_begin (false: left out), mem_new and weight_new, CALL on side 0 (reference) and 1 (tested), compare, case_end. */
#ifndef MOA_TESTS_OPS_OPS_H
#define MOA_TESTS_OPS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/engine/backend.h"

enum { GUARD_BYTES = 256, MAX_MEM = 48, MAX_WEIGHT = 8 };

/* what is allowed, and why: rig.c */
typedef enum limit_kind { EXACT, VECTOR, MATMUL, ATTENTION, STATISTIC, N_LIMIT } limit_kind;

typedef struct mem {
    unsigned char *dev[2]; /* body, behind a guard */
    size_t bytes;
} mem;

typedef struct weight {
    moa_dev_weight *dev[2];
} weight;

typedef struct rig {
    moa_backend *b[2]; /* reference, tested */
    bool cuda, exact;  /* exact: both are the same code, every bit must agree */
    uint64_t rng;
    mem mems[MAX_MEM];
    weight weights[MAX_WEIGHT];
    int n_mem, n_weight;
    char label[160];
    double worst; /* of the group */
    int cases, failed;
    int every, number; /* run every n-th case; cases met */
} rig;

/* --- rig.c ----------------------------------------------------------------------------------------------------------- */

uint64_t next_u64(rig *r);
double uniform(rig *r);           /* 0 .. 1 */
int32_t below(rig *r, int32_t n); /* 0 .. n-1 */
float normal(rig *r);

typedef enum input_kind { NORMAL, OUTLIERS, EQUAL, ONE_HOT, N_INPUT } input_kind;
extern const char *const input_names[N_INPUT];
float *floats(rig *r, size_t n, input_kind kind); /* to be freed */

void must(const rig *r, moa_status s, const moa_err *err); /* ends the program */
mem *mem_new(rig *r, const void *host, size_t bytes);      /* of the case; host NULL: NaN everywhere */
mem *mem_floats(rig *r, float *x, size_t n);               /* takes x */
#define F(m, i) ((float *)(void *)((m) ? (m)->dev[i] : NULL))
#define I(m, i) ((const int32_t *)(void *)((m) ? (m)->dev[i] : NULL))
unsigned char *fetch(rig *r, const mem *m, int side); /* guard, body, guard; to be freed */

void fail(rig *r, const char *what);
/* n_part > 1: columns of a row are measured apart (statistics of different size). skip: rows of n_col floats to leave out, may be NULL */
void compare(rig *r, const mem *m, limit_kind kind, const char *what, int n_part, const bool *skip, size_t n_col);
void compare_bytes(rig *r, const mem *m, const char *what);

/* false: a case to leave out (--every) */
bool case_begin(rig *r, uint64_t seed, const char *format, ...) __attribute__((format(printf, 3, 4)));
void case_end(rig *r);

#define CALL(op, i, ...)                                                                                     \
    do {                                                                                                     \
        const moa_args_##op args_ = {__VA_ARGS__};                                                           \
        moa_err err_ = {0};                                                                                  \
        must(r, r->b[i]->vt->op(r->b[i], &args_, &err_), &err_);                                             \
    } while (0)

double now_s(void);
double cpu_s(void); /* of all threads of this program: what a busy machine does not distort much */
void sync_tested(rig *r);
float *bench_floats(rig *r, size_t n); /* of the tested side alone: the reference would take minutes */

/* --- weights.c ------------------------------------------------------------------------------------------------------- */

#define X(name, id, block_len, block_bytes) +1
enum { N_DTYPE = 0 MOA_DTYPE_MAP(X), N_TOK_COUNT = 6 };
#undef X
extern const moa_dtype dtypes[N_DTYPE];
extern const int32_t tok_counts[N_TOK_COUNT];
uint16_t half_bits(float f);
double half_value(uint16_t h);
void fill_packed(rig *r, moa_dtype type, unsigned char *out, size_t bytes, const moa_dtype_info *info);
weight *weight_new(rig *r, moa_dtype type, int32_t n_out, int32_t n_in); /* of the case */

/* --- kv_cache.c ------------------------------------------------------------------------------------------------------ */

typedef struct cache {
    int32_t n_seq, n_head_kv, group, d_head, max_pages;
    int64_t stride;
    moa_kv_type type;
    int32_t *table; /* host, freed by cache_free */
    int32_t *n_tok; /* (n_seq) tokens stored */
    int32_t n_pages;
    double *k, *v; /* host (n_seq, n_head_kv, max_pages*64, d_head), as the cache rounds them */
    const mem *pool, *dev_table;
} cache;

void cache_free(cache *c);
moa_kv_view view(const cache *c, int side);
/* One page as its type has it, said again in double: k, v (n, d_head) become what the page then gives back. Only what belongs to
 * the n tokens is written. */
void encode_page(moa_kv_type type, unsigned char *page, int32_t n, int32_t d_head, double *k, double *v);
size_t page_size(moa_kv_type type, int32_t d_head);
const char *type_name(moa_kv_type type);
double *host_row(const cache *c, double *x, int32_t s, int32_t h, int32_t t); /* K's or V's row of a token, in c->k or c->v */
void cache_fill(rig *r, cache *c, const int32_t *n_past, const int32_t *widest, bool empty, input_kind kind);

/* --- attention.c ----------------------------------------------------------------------------------------------------- */

enum { N_BIN = 9, MAX_HEADS = 21 };
extern const int32_t group_sizes[5], head_sizes[5];

/* --- the groups, and what times them: the list is test_ops.c's --------------------------------------------------------- */

void group_golden(rig *r);
void group_brute(rig *r);
void group_embed(rig *r);
void group_rmsnorm(rig *r);
void group_matmul(rig *r);
void group_rope(rig *r);
void group_kv_store(rig *r);
void group_attn_prefill(rig *r);
void group_attn_decode(rig *r);
void group_silu_mul(rig *r);
void group_add(rig *r);
void group_capture(rig *r);
void group_attn_map(rig *r);
void group_argmax(rig *r);
void group_sample(rig *r);
void group_stat_sum(rig *r);
void bench_rest(rig *r);
void bench_matmul(rig *r);
void bench_attn_prefill(rig *r);
void bench_attn_decode(rig *r);
void bench_sample(rig *r);

#endif
