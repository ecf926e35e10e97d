#include "core/cpu/slab.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "core/base/size.h"

enum { HUGE_PAGE = 2 << 20, USUAL_BYTES = 64 << 20 };

struct moa_slab {
    moa_slab *next;
    char *memory, *map; /* memory: map rounded up to a huge page */
    size_t bytes, map_bytes, used, n_live;
};

static moa_slab *slab_new(size_t bytes) {
    moa_slab *s = calloc(1, sizeof *s);
    size_t whole;
    if (!s || !moa_size_pad(bytes > USUAL_BYTES ? bytes : USUAL_BYTES, HUGE_PAGE, &whole) ||
        !moa_size_add(whole, HUGE_PAGE, &s->map_bytes)) {
        free(s);
        return NULL;
    }
    s->map = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->map == MAP_FAILED) {
        free(s);
        return NULL;
    }
    s->memory = s->map + (HUGE_PAGE - (uintptr_t)s->map % HUGE_PAGE) % HUGE_PAGE;
    s->bytes = whole;
    (void)madvise(s->memory, whole, MADV_HUGEPAGE); /* without them it is only slower */
    return s;
}

void *moa_slab_take(moa_slab **list, size_t bytes) {
    size_t padded;
    if (!moa_size_pad(bytes ? bytes : 1, 64, &padded)) return NULL;
    moa_slab *s = *list;
    if (!s || padded > s->bytes - s->used) {
        s = slab_new(padded);
        if (!s) return NULL;
        s->next = *list;
        *list = s;
    }
    void *piece = s->memory + s->used;
    s->used += padded;
    s->n_live++;
    return piece;
}

void moa_slab_give(moa_slab **list, void *piece) {
    if (!piece) return;
    for (moa_slab **at = list; *at; at = &(*at)->next) {
        moa_slab *s = *at;
        if ((uintptr_t)piece < (uintptr_t)s->memory || (uintptr_t)piece >= (uintptr_t)s->memory + s->bytes)
            continue;
        if (--s->n_live == 0) {
            *at = s->next;
            (void)munmap(s->map, s->map_bytes);
            free(s);
        }
        return;
    }
}
