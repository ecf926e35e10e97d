#include "core/model/tokenizer_bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"

bool moa_bpe_init(moa_bpe *b, size_t n_merges, uint64_t seed) {
    size_t want, slots = 16, bytes;
    *b = (moa_bpe){.seed = seed};
    if (!moa_size_add(n_merges, n_merges / 2 + 1, &want)) return false;
    while (slots < want)
        if (!moa_size_mul(slots, 2, &slots)) return false;
    if (!moa_size_mul(slots, sizeof *b->slots, &bytes)) return false;
    b->slots = calloc(1, bytes);
    b->mask = slots - 1;
    return b->slots != NULL;
}

void moa_bpe_free(moa_bpe *b) {
    free(b->slots);
    *b = (moa_bpe){0};
}

/* where the search for a pair begins */
static size_t first_slot(const moa_bpe *b, uint64_t key) {
    uint64_t h = (key ^ b->seed) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return (size_t)(h >> 20) & b->mask;
}

static size_t slot_of(const moa_bpe *b, uint64_t key) {
    size_t i = first_slot(b, key);
    while (b->slots[i].key && b->slots[i].key != key)
        i = (i + 1) & b->mask;
    return i;
}

static uint64_t key_of(int32_t left, int32_t right) {
    return ((uint64_t)(uint32_t)left + 1) << 32 | (uint32_t)right;
}

void moa_bpe_expect(const moa_bpe *b, int32_t left, int32_t right) {
    __builtin_prefetch(&b->slots[first_slot(b, key_of(left, right))]);
}

void moa_bpe_add(moa_bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id) {
    const uint64_t key = key_of(left, right);
    b->slots[slot_of(b, key)] = (moa_bpe_slot){key, rank, id};
}

bool moa_bpe_find(const moa_bpe *b, int32_t left, int32_t right, int32_t *rank, int32_t *id) {
    const moa_bpe_slot *slot = &b->slots[slot_of(b, key_of(left, right))];
    if (!slot->key) return false;
    *rank = slot->rank;
    *id = slot->id;
    return true;
}

size_t moa_bpe_merge_short(const moa_bpe *b, int32_t *symbols, size_t n) {
    int32_t rank[MOA_BPE_SHORT], id[MOA_BPE_SHORT]; /* of the pair that begins there */
    assert(n <= MOA_BPE_SHORT);
    for (size_t i = 0; i + 1 < n; i++)
        if (!moa_bpe_find(b, symbols[i], symbols[i + 1], &rank[i], &id[i])) rank[i] = INT32_MAX;
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        symbols[best] = id[best];
        n--;
        memmove(symbols + best + 1, symbols + best + 2, (n - best - 1) * sizeof *symbols);
        if (best + 1 < n) {
            memmove(rank + best + 1, rank + best + 2, (n - best - 1) * sizeof *rank);
            memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
            if (!moa_bpe_find(b, symbols[best], symbols[best + 1], &rank[best], &id[best]))
                rank[best] = INT32_MAX;
        }
        if (best && !moa_bpe_find(b, symbols[best - 1], symbols[best], &rank[best - 1], &id[best - 1]))
            rank[best - 1] = INT32_MAX;
    }
    return n;
}

/* --- long words: a doubly linked list of symbols, and a heap of pairs that may merge ----------------------------------------
 *
 * A heap entry is rank << 32 | position of the left symbol, so that one comparison orders by rank, then from the left.
 * Entries are never removed: one whose rank is no longer that of the pair at its position is skipped (a rank belongs to
 * one pair of ids). Four children a node keep the heap shallow and a step within a cache line. */

typedef struct node {
    int32_t id, prev, next; /* positions, -1: none */
    int32_t rank,
        made; /* of the pair that begins here: -1: it does not merge (or the symbol was merged away) */
} node;

typedef struct heap {
    uint64_t *entries;
    size_t n;
} heap;

static void heap_push(heap *h, uint64_t x) {
    size_t i = h->n++;
    for (; i && x < h->entries[(i - 1) / 4]; i = (i - 1) / 4)
        h->entries[i] = h->entries[(i - 1) / 4];
    h->entries[i] = x;
}

static uint64_t heap_pop(heap *h) {
    const uint64_t top = h->entries[0], x = h->entries[--h->n];
    size_t i = 0;
    for (size_t child; (child = 4 * i + 1) < h->n;) {
        const size_t end = child + 4 < h->n ? child + 4 : h->n;
        size_t least = child;
        for (size_t k = child + 1; k < end; k++)
            if (h->entries[k] < h->entries[least]) least = k;
        if (x <= h->entries[least]) break;
        h->entries[i] = h->entries[least];
        i = least;
    }
    h->entries[i] = x;
    return top;
}

/* the pair that begins at `at` is new: looks it up, and puts it on the heap when it merges */
static void offer(const moa_bpe *b, node *nodes, int32_t at, heap *h) {
    if (at < 0) return;
    node *left = &nodes[at];
    left->rank = -1;
    if (left->next < 0 || !moa_bpe_find(b, left->id, nodes[left->next].id, &left->rank, &left->made)) return;
    heap_push(h, (uint64_t)(uint32_t)left->rank << 32 | (uint32_t)at);
}

size_t moa_bpe_merge_long(const moa_bpe *b, int32_t *symbols, size_t n, moa_buf *work) {
    size_t nodes_bytes, heap_bytes, bytes;
    assert(n <= INT32_MAX / 4);
    moa_buf_clear(work);
    /* every merge pops one entry and pushes two at most: never more than 2n in the heap */
    if (!moa_size_mul(n, sizeof(node), &nodes_bytes) ||
        !moa_size_pad(nodes_bytes, sizeof(uint64_t), &nodes_bytes) ||
        !moa_size_mul(2 * n, sizeof(uint64_t), &heap_bytes) ||
        !moa_size_add(nodes_bytes, heap_bytes, &bytes)) {
        work->failed = true;
        return n;
    }
    char *memory = moa_buf_extend(work, bytes);
    if (!memory) return n;
    node *nodes = (node *)(void *)memory;
    heap h = {(uint64_t *)(void *)(memory + nodes_bytes), 0};
    for (size_t i = 0; i < n; i++)
        nodes[i] = (node){symbols[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1, -1, -1};
    for (size_t i = 0; i < n; i++)
        offer(b, nodes, (int32_t)i, &h);
    while (h.n) {
        const uint64_t x = heap_pop(&h);
        const int32_t at = (int32_t)(x & INT32_MAX);
        node *left = &nodes[at], *right;
        if (left->rank != (int32_t)(x >> 32)) continue;
        right = &nodes[left->next];
        left->id = left->made;
        left->next = right->next;
        right->rank = -1;
        if (left->next >= 0) nodes[left->next].prev = at;
        offer(b, nodes, left->prev, &h);
        offer(b, nodes, at, &h);
    }
    size_t k = 0;
    for (int32_t i = 0; i >= 0; i = nodes[i].next)
        symbols[k++] = nodes[i].id;
    return k;
}

size_t moa_bpe_merge(const moa_bpe *b, int32_t *symbols, size_t n, moa_buf *work) {
    if (n < 2) return n;
    return n <= MOA_BPE_SHORT ? moa_bpe_merge_short(b, symbols, n) : moa_bpe_merge_long(b, symbols, n, work);
}
