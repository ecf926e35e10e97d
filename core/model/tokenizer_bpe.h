/* tokenizer_bpe.h -- merges of a byte-pair encoding, and building one word from its bytes. Internal to the tokenizer.
 *
 *   l o w e r   ->   lo w er   ->   low er   ->   lower       always the pair of lowest rank, the leftmost of equals
 *
 * Short words look through all their pairs each time; long ones keep the pairs in a heap (n log n: a megabyte without
 * a space is one word). Both give the same ids, and a test says so. */
#ifndef MOA_MODEL_TOKENIZER_BPE_H
#define MOA_MODEL_TOKENIZER_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/buf.h"

typedef struct moa_bpe_slot {
    uint64_t key; /* (left + 1) << 32 | right; 0: empty */
    int32_t rank, id;
} moa_bpe_slot;

/* open addressing, at most 2/3 full; seeded so that a file cannot choose its collisions */
typedef struct moa_bpe {
    moa_bpe_slot *slots;
    size_t mask; /* slots - 1 */
    uint64_t seed;
} moa_bpe;

bool moa_bpe_init(moa_bpe *b, size_t n_merges, uint64_t seed); /* false: out of memory (or too many) */
void moa_bpe_free(moa_bpe *b);
void moa_bpe_add(moa_bpe *b, int32_t left, int32_t right, int32_t rank,
                 int32_t id); /* n_merges times at most; the last of equals holds */
void moa_bpe_expect(const moa_bpe *b, int32_t left, int32_t right); /* this pair is added or looked for soon: only a hint */
bool moa_bpe_find(const moa_bpe *b, int32_t left, int32_t right, int32_t *rank, int32_t *id);

enum { MOA_BPE_SHORT = 24 }; /* words up to this many symbols are merged without a heap */

/* Merges n symbols in place and returns how many are left. work: scratch that keeps its memory between words; marked
 * failed when there is no memory (and the return is n). */
size_t moa_bpe_merge(const moa_bpe *b, int32_t *symbols, size_t n, moa_buf *work);
size_t moa_bpe_merge_short(const moa_bpe *b, int32_t *symbols, size_t n); /* n <= MOA_BPE_SHORT */
size_t moa_bpe_merge_long(const moa_bpe *b, int32_t *symbols, size_t n, moa_buf *work);

#endif
