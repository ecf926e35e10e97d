/* kv_pages.h -- which pages of the device's pool are in use. Host bookkeeping only: a page is a number, its bytes lie elsewhere.
 *
 *   free list (a stack)   ->  take()  ->  in use, counted   ->  drop()    ->  free list
 *                                                           ->  retire()  ->  free, but handed out last, oldest first
 *
 * Retired pages are what makes cancelling exact: a layer that has finished a prefill chunk gives back pages that only the
 * tokens before the chunk needed. Should the chunk be abandoned, revive() returns those that nobody has taken meanwhile;
 * should it be completed, settle() makes them ordinary free pages. They never make the pool larger.
 * A page has a use count so that sequences can share a prefix. */
#ifndef MOA_ENGINE_KV_PAGES_H
#define MOA_ENGINE_KV_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"

typedef struct moa_kv_pages {
    int32_t capacity;   /* pages of the pool */
    int32_t *n_use;     /* (capacity) use count; 0: free; -1: retired. Owned, as the following */
    int32_t *free_list; /* (capacity) the first n_free are free pages, the last is given out first */
    int32_t
        *retired; /* (capacity) pages retired since the last settle, in order; taken from retired_first on */
    int32_t n_free, n_retired, retired_first;
    int64_t used, peak; /* pages in use now; most since the last moa_kv_pages_reset_peak */
} moa_kv_pages;

/* Zero-initialise. Makes room for capacity pages (never fewer than now); the new ones are free. On failure nothing changed. */
moa_status moa_kv_pages_grow(moa_kv_pages *p, int32_t capacity, moa_err *err);
void moa_kv_pages_close(moa_kv_pages *p); /* frees the lists; p is empty and usable again */

int32_t moa_kv_pages_take(moa_kv_pages *p);             /* a page with use count 1; -1: none is left */
void moa_kv_pages_share(moa_kv_pages *p, int32_t page); /* one more user */
void moa_kv_pages_drop(moa_kv_pages *p, int32_t page);  /* one user less; free when it was the last */
bool moa_kv_pages_retire(moa_kv_pages *p,
                         int32_t page); /* as drop, but given out last; false: others still use it */
bool moa_kv_pages_revive(moa_kv_pages *p,
                         int32_t page); /* undoes a retire that was true; false: it was taken meanwhile */
void moa_kv_pages_settle(moa_kv_pages *p);
void moa_kv_pages_reset_peak(moa_kv_pages *p);

#endif
