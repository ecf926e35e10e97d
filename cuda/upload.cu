/* upload.cu -- host memory and files to the device at the speed of the bus: how a model is loaded.
 *
 *   file's pages  --reading threads-->  ring of pinned slots  --copy engine-->  device  --kernels-->  packed weights
 *
 * The driver copies pageable memory through pinned memory of its own, with one thread, and the caller waits: 7 to 13 GB/s measured on
 * an H100 that takes 55. A file of 4.5 GB in the page cache is on the device in 220 ms so, 20 GB/s; 97 MB of 273 tensors take 15 ms. Here everything is cut into pieces of up to MOA_PIECE_BYTES, whole rows of a weight where it is packed.
 * Threads read pieces into slots (from memory, or from the file without a copy in between), as many at once as there are; in the
 * order in which they were put they land: the copy to the device, and what is done with the bytes there, go to the stream. Nobody waits
 * but for a slot, so that small tensors are read side by side, too.
 *
 *   n_landed          n_taken            n_put
 *   v                 v                  v
 *   [read or being read][ wait for a thread ]          a ring: slot i % N_SLOT
 *
 * The threads sleep when there is nothing to read and end with the backend. The caller reads a piece itself before it would wait for a
 * thread to take it: without threads it does all. */
#include <cstdlib>
#include <cstring>
#include <new>

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda/matmul.cuh"
#include "cuda/upload.cuh"

enum { N_SLOT = 8, MAX_HELPER = 7 };
static const size_t RING_BYTES = N_SLOT * MOA_PIECE_BYTES, HUGE_PAGE = (size_t)2 << 20;

struct slot {
    moa_cuda_piece piece;
    cudaEvent_t unused; /* the copy from here is done */
    bool read;
    moa_status status; /* of reading */
    moa_err err;
};

struct moa_cuda_pump {
    char *stage; /* pinned, RING_BYTES */
    bool registered; /* and it is memory of our own */
    slot slots[N_SLOT];
    pthread_t helper[MAX_HELPER];
    int n_helper;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    bool has_lock, quit;
    uint64_t n_put, n_taken, n_landed; /* changed under the lock */
};

/* --- reading ---------------------------------------------------------------------------------------------- */

static void read_slot(moa_cuda_pump *p, uint64_t i) {
    slot *s = &p->slots[i % N_SLOT];
    const moa_cuda_piece *piece = &s->piece;
    char *to = p->stage + i % N_SLOT * MOA_PIECE_BYTES;
    s->status = MOA_OK;
    if (piece->host)
        memcpy(to, piece->host, piece->bytes);
    else
        s->status = piece->from.read(&piece->from, piece->at, piece->bytes, to, &s->err);
}

static void *helper_main(void *arg) {
    moa_cuda_pump *p = static_cast<moa_cuda_pump *>(arg);
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->quit && p->n_taken == p->n_put)
            pthread_cond_wait(&p->work, &p->lock);
        if (p->quit) break;
        const uint64_t i = p->n_taken++;
        pthread_mutex_unlock(&p->lock);
        read_slot(p, i);
        pthread_mutex_lock(&p->lock);
        p->slots[i % N_SLOT].read = true;
        if (i == p->n_landed) pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return nullptr;
}

/* waits until the oldest piece is read, or reads it */
static slot *oldest(moa_cuda_pump *p) {
    const uint64_t i = p->n_landed;
    slot *s = &p->slots[i % N_SLOT];
    pthread_mutex_lock(&p->lock);
    if (p->n_taken == i) {
        p->n_taken++;
        pthread_mutex_unlock(&p->lock);
        read_slot(p, i);
        return s;
    }
    while (!s->read)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return s;
}

static bool is_oldest_read(moa_cuda_pump *p) {
    pthread_mutex_lock(&p->lock);
    const bool read = p->n_landed < p->n_taken && p->slots[p->n_landed % N_SLOT].read;
    pthread_mutex_unlock(&p->lock);
    return read;
}

/* --- landing ---------------------------------------------------------------------------------------------- */

/* Packing reads rows from the workspace, each slot's from its own part: a piece may land before the one before is packed. */
static moa_status land(moa_cuda *c, moa_cuda_pump *p, slot *s, moa_err *err) {
    const moa_cuda_piece *piece = &s->piece;
    const size_t at = (size_t)(s - p->slots) * MOA_PIECE_BYTES;
    char *dst = piece->dst;
    if (!dst) {
        void *space = nullptr;
        MOA_RETURN(moa_cuda_scratch(c, RING_BYTES, &space, err));
        dst = static_cast<char *>(space) + at;
    }
    MOA_CU(c, cudaMemcpyAsync(dst, p->stage + at, piece->bytes, cudaMemcpyHostToDevice, c->stream));
    MOA_CU(c, cudaEventRecord(s->unused, c->stream));
    if (!piece->dst) MOA_RETURN(moa_cuda_pack_rows(c, dst, piece->w->row_bytes, piece->row0, piece->n_row, piece->w, err));
    return piece->last ? moa_cuda_weight_whole(c, piece->w, err) : MOA_OK;
}

/* drop: it is read, and goes nowhere */
static moa_status land_oldest(moa_cuda *c, moa_cuda_pump *p, bool drop, moa_err *err) {
    slot *s = oldest(p);
    moa_status status = s->status;
    if (status != MOA_OK && err && !drop) *err = s->err;
    if (status == MOA_OK && !drop) status = land(c, p, s, err);
    pthread_mutex_lock(&p->lock);
    p->n_landed++;
    pthread_mutex_unlock(&p->lock);
    return status;
}

moa_status moa_cuda_pump_flush(moa_cuda *c, moa_err *err) {
    moa_cuda_pump *p = c->pump;
    moa_status s = MOA_OK;
    while (p && p->n_landed < p->n_put) {
        const bool drop = s != MOA_OK;
        const moa_status now = land_oldest(c, p, drop, err);
        if (!drop) s = now;
    }
    return s;
}

/* --- starting --------------------------------------------------------------------------------------------- */

/* Pinned memory of huge pages: 16 MiB take 4 ms, mostly the kernel clearing them; the driver's own takes 8, 4 KiB at a time. */
static moa_status pin(moa_cuda *c, moa_cuda_pump *p, moa_err *err) {
    void *memory = aligned_alloc(HUGE_PAGE, RING_BYTES);
    if (memory) {
        (void)madvise(memory, RING_BYTES, MADV_HUGEPAGE); /* only a hint */
        for (size_t at = 0; at < RING_BYTES; at += HUGE_PAGE)
            static_cast<char *>(memory)[at] = 0;
        p->registered = cudaHostRegister(memory, RING_BYTES, cudaHostRegisterDefault) == cudaSuccess;
        if (p->registered) {
            p->stage = static_cast<char *>(memory);
            return MOA_OK;
        }
        (void)cudaGetLastError();
        free(memory);
    }
    MOA_CU(c, cudaMallocHost(reinterpret_cast<void **>(&p->stage), RING_BYTES));
    return MOA_OK;
}

/* as many threads as there are cores to spare; none is no error */
static void start_helpers(moa_cuda_pump *p) {
    const long n_core = sysconf(_SC_NPROCESSORS_ONLN);
    const int n = n_core <= 1 ? 0 : n_core - 1 < MAX_HELPER ? (int)n_core - 1 : (int)MAX_HELPER;
    while (p->n_helper < n && pthread_create(&p->helper[p->n_helper], nullptr, helper_main, p) == 0)
        p->n_helper++;
}

static moa_status start(moa_cuda *c, moa_err *err) {
    moa_cuda_pump *p = new (std::nothrow) moa_cuda_pump();
    if (!p) return moa_fail(err, MOA_E_MEMORY, "no host memory for the record of uploads");
    c->pump = p; /* half-built is fine: moa_cuda_pump_close() */
    if (pthread_mutex_init(&p->lock, nullptr) != 0)
        return moa_fail(err, MOA_E_MEMORY, "no lock for the threads of uploads");
    (void)pthread_cond_init(&p->work, nullptr);
    (void)pthread_cond_init(&p->done, nullptr);
    p->has_lock = true;
    MOA_RETURN(pin(c, p, err));
    for (int i = 0; i < N_SLOT; i++)
        MOA_CU(c, cudaEventCreateWithFlags(&p->slots[i].unused, cudaEventDisableTiming));
    start_helpers(p);
    return MOA_OK;
}

/* The stream is idle, or the device lost. */
void moa_cuda_pump_close(moa_cuda *c) {
    moa_cuda_pump *p = c->pump;
    if (!p) return;
    while (p->n_landed < p->n_put)
        (void)land_oldest(c, p, true, nullptr);
    if (p->has_lock) {
        pthread_mutex_lock(&p->lock);
        p->quit = true;
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
        for (int i = 0; i < p->n_helper; i++)
            (void)pthread_join(p->helper[i], nullptr);
        (void)pthread_cond_destroy(&p->work);
        (void)pthread_cond_destroy(&p->done);
        (void)pthread_mutex_destroy(&p->lock);
    }
    for (int i = 0; i < N_SLOT; i++)
        if (p->slots[i].unused) (void)cudaEventDestroy(p->slots[i].unused);
    if (p->stage && p->registered) {
        (void)cudaHostUnregister(p->stage);
        free(p->stage);
    } else if (p->stage) {
        (void)cudaFreeHost(p->stage);
    }
    delete p;
    c->pump = nullptr;
}

/* --- putting ---------------------------------------------------------------------------------------------- */

moa_status moa_cuda_pump_put(moa_cuda *c, const moa_cuda_piece *piece, moa_err *err) {
    if (!c->pump) {
        const moa_status s = start(c, err);
        if (s != MOA_OK) {
            moa_cuda_pump_close(c);
            return s;
        }
    }
    moa_cuda_pump *p = c->pump;
    while (p->n_put - p->n_landed == N_SLOT || is_oldest_read(p)) {
        const moa_status s = land_oldest(c, p, false, err);
        if (s == MOA_OK) continue;
        while (p->n_landed < p->n_put)
            (void)land_oldest(c, p, true, nullptr);
        return s;
    }
    slot *s = &p->slots[p->n_put % N_SLOT];
    MOA_CU(c, cudaEventSynchronize(s->unused)); /* at once, if it was never recorded */
    s->piece = *piece;
    s->read = false;
    pthread_mutex_lock(&p->lock);
    p->n_put++;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
    return MOA_OK;
}

moa_status moa_cuda_pump_put_all(moa_cuda *c, const moa_weight *from, void *dst, moa_dev_weight *whole, moa_err *err) {
    for (size_t at = 0; at < from->bytes; at += MOA_PIECE_BYTES) {
        moa_cuda_piece piece = {};
        piece.host = from->data ? static_cast<const char *>(from->data) + at : nullptr;
        piece.from = *from;
        piece.at = at;
        piece.bytes = from->bytes - at < MOA_PIECE_BYTES ? from->bytes - at : MOA_PIECE_BYTES;
        piece.dst = static_cast<char *>(dst) + at;
        piece.w = whole;
        piece.last = whole && at + piece.bytes == from->bytes;
        MOA_RETURN(moa_cuda_pump_put(c, &piece, err));
    }
    return MOA_OK;
}

moa_status moa_cuda_pump_send(moa_cuda *c, void *dst, const void *host, size_t bytes, moa_err *err) {
    moa_weight from = {};
    from.data = host;
    from.bytes = bytes;
    MOA_RETURN(moa_cuda_pump_put_all(c, &from, dst, nullptr, err));
    return moa_cuda_pump_flush(c, err);
}
