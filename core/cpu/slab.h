/* slab.h -- memory for packed weights: large mappings that ask for huge pages.
 *
 * A decode step streams all weights once. On 4 KiB pages the hardware's prefetcher stops at each page and the walk to the next
 * address translation is waited for: 30 MB of Q8_0 took 1.4 ms with 2 threads, on huge pages 0.7 ms. Weights are smaller than a
 * huge page (2 MiB), so they share mappings: pieces are handed out one after the other, never reused; a mapping goes when its
 * last piece does. */
#ifndef MOA_CPU_SLAB_H
#define MOA_CPU_SLAB_H

#include <stddef.h>

typedef struct moa_slab moa_slab;

/* bytes of zeroed, 64-byte aligned memory; NULL: none to be had */
void *moa_slab_take(moa_slab **list, size_t bytes);
void moa_slab_give(moa_slab **list, void *piece); /* NULL is fine */

#endif
