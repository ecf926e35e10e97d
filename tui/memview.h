/* memview.h -- figures of the memory screen: what the plan needs by formula, what the run held by its page map.
 *
 *   unit      a layer, or a KV group of one layer; bytes in whole pages (64 tokens of one KV head)
 *   predicted the plan now, with the run's N and the tokens the run had when it told its pages: so that both columns may be compared
 *   held      counted in the page map of that run
 *
 * Without a run only predictions are there, at the N of the plan screen. Unknown is unknown: has_held says so. */
#ifndef TUI_MEMVIEW_H
#define TUI_MEMVIEW_H

#include "tui/app.h"

/* one page of one KV head, by what a run did and what the plan now would do */
#define TUI_PAGE_MAP(X)                                                                                      \
    X(NONE, "not yet")      /* no token came so far */                                                       \
    X(SINK, "sink")         /* page 0, always held */                                                        \
    X(HELD, "held")                                                                                          \
    X(SPARE, "plan frees")  /* held, but the plan now would have freed it */                                 \
    X(FREED, "freed")                                                                                        \
    X(LOST, "plan wants")   /* freed, but the plan now would still need it: gone until the prompt is read again */
typedef enum tui_page {
#define X(name, text) TUI_PAGE_##name,
    TUI_PAGE_MAP(X)
#undef X
        TUI_PAGE_COUNT
} tui_page;
const char *tui_page_name(tui_page p);
/* span: the widest of the KV head's group under the plan now; 0: no plan, nothing to compare with */
tui_page tui_page_of(bool held, int32_t page, int32_t n_past, int32_t span);

/* the run whose pages are shown: the newest that told them; NULL: none */
const tui_run *tui_mem_run(const tui_app *app);
/* tokens reserved and passed that predictions are made for */
void tui_mem_n(const tui_app *app, int32_t *n_reserved, int32_t *n_past);
/* widest span of a KV group under the plan now; 0: no plan or no model */
int32_t tui_mem_span(const tui_app *app, int32_t layer, int32_t kv);

typedef struct tui_mem_unit {
    int32_t layer, kv; /* kv -1: the whole layer */
    uint64_t predicted, held, dense; /* bytes; dense: full attention, same tokens */
    bool has_held;
    int32_t n_lost, n_spare; /* pages, see above */
    int32_t span_min, span_max;
} tui_mem_unit;
void tui_mem_describe(const tui_app *app, int32_t layer, int32_t kv, tui_mem_unit *out);
/* the units of a list (all layers; or the groups of one layer, layer >= 0), by_size: largest first, ties in their order.
 * malloc'ed, the caller's; NULL: no model, or no memory */
tui_mem_unit *tui_mem_list(const tui_app *app, int32_t layer, bool by_size, int32_t *n);
static inline uint64_t tui_mem_size(const tui_mem_unit *u) { return u->has_held ? u->held : u->predicted; }

#endif
