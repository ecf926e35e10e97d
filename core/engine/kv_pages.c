/* Lists of page numbers; see kv_pages.h. Every page is in exactly one of three states, and
 * n_free + (retired and not yet taken) + used == capacity at all times. */
#include "core/engine/kv_pages.h"

#include <assert.h>
#include <stdlib.h>

#include "core/base/size.h"

enum { RETIRED = -1 };

static bool resize(int32_t **list, int32_t n) {
    size_t bytes;
    if (!moa_size_mul((size_t)n, sizeof **list, &bytes)) return false;
    int32_t *grown = realloc(*list, bytes);
    if (grown) *list = grown;
    return grown != NULL;
}

moa_status moa_kv_pages_grow(moa_kv_pages *p, int32_t capacity, moa_err *err) {
    if (capacity <= p->capacity) return MOA_OK;
    if (!resize(&p->n_use, capacity) || !resize(&p->free_list, capacity) || !resize(&p->retired, capacity))
        return moa_fail(err, MOA_E_MEMORY, "no memory for the lists of %d KV pages", capacity);
    /* the new pages go below the old ones, lowest number on top: a fresh pool is filled from its beginning */
    const int32_t n_new = capacity - p->capacity;
    for (int32_t i = p->n_free; i > 0; i--)
        p->free_list[i - 1 + n_new] = p->free_list[i - 1];
    for (int32_t i = 0; i < n_new; i++) {
        p->free_list[i] = capacity - 1 - i;
        p->n_use[capacity - 1 - i] = 0;
    }
    p->n_free += n_new;
    p->capacity = capacity;
    return MOA_OK;
}

void moa_kv_pages_close(moa_kv_pages *p) {
    free(p->n_use);
    free(p->free_list);
    free(p->retired);
    *p = (moa_kv_pages){0};
}

int32_t moa_kv_pages_take(moa_kv_pages *p) {
    int32_t page = -1;
    if (p->n_free > 0) page = p->free_list[--p->n_free];
    while (page < 0 && p->retired_first < p->n_retired) {
        page = p->retired[p->retired_first++];
        if (p->n_use[page] != RETIRED) page = -1; /* revived */
    }
    if (page < 0) return -1;
    p->n_use[page] = 1;
    p->used++;
    if (p->used > p->peak) p->peak = p->used;
    return page;
}

void moa_kv_pages_share(moa_kv_pages *p, int32_t page) {
    assert(page >= 0 && page < p->capacity && p->n_use[page] > 0);
    p->n_use[page]++;
}

/* true when that was the last user */
static bool leave(moa_kv_pages *p, int32_t page) {
    assert(page >= 0 && page < p->capacity && p->n_use[page] > 0);
    if (--p->n_use[page] > 0) return false;
    p->used--;
    return true;
}

void moa_kv_pages_drop(moa_kv_pages *p, int32_t page) {
    if (leave(p, page)) p->free_list[p->n_free++] = page;
}

bool moa_kv_pages_retire(moa_kv_pages *p, int32_t page) {
    if (!leave(p, page)) return false;
    if (p->n_retired == p->capacity) { /* some were taken: close the gap they left */
        for (int32_t i = p->retired_first; i < p->n_retired; i++)
            p->retired[i - p->retired_first] = p->retired[i];
        p->n_retired -= p->retired_first;
        p->retired_first = 0;
    }
    p->n_use[page] = RETIRED;
    p->retired[p->n_retired++] = page;
    return true;
}

bool moa_kv_pages_revive(moa_kv_pages *p, int32_t page) {
    assert(page >= 0 && page < p->capacity);
    if (p->n_use[page] != RETIRED) return false;
    p->n_use[page] = 1;
    p->used++;
    if (p->used > p->peak) p->peak = p->used;
    return true;
}

void moa_kv_pages_settle(moa_kv_pages *p) {
    for (int32_t i = p->retired_first; i < p->n_retired; i++) {
        const int32_t page = p->retired[i];
        if (p->n_use[page] != RETIRED) continue; /* revived */
        p->n_use[page] = 0;
        p->free_list[p->n_free++] = page;
    }
    p->n_retired = p->retired_first = 0;
}

void moa_kv_pages_reset_peak(moa_kv_pages *p) {
    p->peak = p->used;
}
