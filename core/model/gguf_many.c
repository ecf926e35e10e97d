/* Reading all weights: in pieces, by several threads, so that a file in the page cache comes at the memory's speed rather than at one
 * core's (4 GB/s, of which half is the kernel clearing the pages it is read into).
 *
 * Threads take the next piece under a lock until there is none, or one has failed, or the caller's progress says stop. The caller
 * reads too, and alone calls progress. Fewer threads than asked for, or none, is no error. */
#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

#include "core/model/gguf.h"

enum { PIECE = 4 << 20, MAX_HELPER = 7 };

typedef struct reading {
    const moa_gguf *g;
    const moa_gguf_part *parts;
    size_t n_part;
    pthread_mutex_t lock;
    size_t part, at; /* where the next piece begins */
    uint64_t done;   /* bytes */
    bool stop;
    moa_status status;
    moa_err err;
} reading;

typedef struct piece {
    size_t part, at, n;
} piece;

static bool take(reading *r, piece *p) {
    bool taken = false;
    (void)pthread_mutex_lock(&r->lock);
    while (!r->stop && r->part < r->n_part && !taken) {
        const size_t bytes = moa_gguf_tensor_at(r->g, r->parts[r->part].tensor).bytes, left = bytes - r->at;
        *p = (piece){r->part, r->at, left < PIECE ? left : PIECE};
        taken = p->n > 0;
        r->at += p->n;
        if (r->at == bytes) r->part++, r->at = 0;
    }
    (void)pthread_mutex_unlock(&r->lock);
    return taken;
}

/* false: nothing left to do */
static bool read_piece(reading *r) {
    moa_err err = {0};
    piece p;
    if (!take(r, &p)) return false;
    const moa_gguf_part *part = &r->parts[p.part];
    const moa_status s = moa_gguf_read(r->g, part->tensor, p.at, p.n, (char *)part->dst + p.at, &err);
    (void)pthread_mutex_lock(&r->lock);
    r->done += p.n;
    if (s != MOA_OK && r->status == MOA_OK) r->status = s, r->err = err;
    r->stop = r->stop || s != MOA_OK;
    (void)pthread_mutex_unlock(&r->lock);
    return true;
}

static void *helper(void *arg) {
    while (read_piece(arg))
        ;
    return NULL;
}

static int n_helper(uint64_t total) {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const uint64_t pieces = total / PIECE;
    const int most = cores <= 1 ? 0 : cores - 1 < MAX_HELPER ? (int)cores - 1 : MAX_HELPER;
    return pieces < (uint64_t)most ? (int)pieces : most;
}

static uint64_t bytes_done(reading *r) {
    (void)pthread_mutex_lock(&r->lock);
    const uint64_t n = r->done;
    (void)pthread_mutex_unlock(&r->lock);
    return n;
}

static void stop(reading *r, uint64_t done, uint64_t total) {
    (void)pthread_mutex_lock(&r->lock);
    r->stop = true;
    if (r->status == MOA_OK)
        r->status = moa_fail(&r->err, MOA_E_CANCELLED, "loading was cancelled after %" PRIu64 " of %" PRIu64 " bytes", done,
                             total);
    (void)pthread_mutex_unlock(&r->lock);
}

moa_status moa_gguf_read_many(const moa_gguf *g, const moa_gguf_part *parts, size_t n_part,
                              bool (*progress)(void *user, uint64_t done, uint64_t total), void *user, moa_err *err) {
    reading r = {.g = g, .parts = parts, .n_part = n_part};
    pthread_t threads[MAX_HELPER];
    uint64_t total = 0, told = 0;
    int n = 0;
    for (size_t i = 0; i < n_part; i++)
        total += moa_gguf_tensor_at(g, parts[i].tensor).bytes;
    if (pthread_mutex_init(&r.lock, NULL) != 0) return moa_fail(err, MOA_E_MEMORY, "no lock for reading the weights");
    while (n < n_helper(total) && pthread_create(&threads[n], NULL, helper, &r) == 0)
        n++;
    while (read_piece(&r)) {
        told = bytes_done(&r);
        if (progress && !progress(user, told, total)) stop(&r, told, total);
    }
    for (int i = 0; i < n; i++)
        (void)pthread_join(threads[i], NULL);
    if (r.status == MOA_OK && told < total && progress && !progress(user, total, total)) stop(&r, total, total);
    (void)pthread_mutex_destroy(&r.lock);
    if (r.status != MOA_OK && err) *err = r.err;
    return r.status;
}
