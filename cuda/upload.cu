/* upload.cu -- host memory to the device at the speed of the bus: how a model is loaded.
 *
 *   file's pages  --copy threads-->  ring of pinned slots  --copy engine-->  device
 *
 * The driver copies pageable memory through pinned memory of its own, with one thread, and the caller waits: 7 to 13 GB/s measured on
 * an H100 that takes 55. Here a piece of SLOT bytes is copied by several threads at once (a mapped file's pages are then also
 * faulted in by several), while the pieces before it are on their way; nobody waits but for a slot. What is done with the
 * bytes next (repacking) follows on the same stream.
 *
 * The threads sleep between pieces and end with the backend. Short pieces are copied by the caller alone. */
#include <atomic>
#include <cstring>
#include <new>

#include <pthread.h>
#include <unistd.h>

#include "cuda/cuda_common.cuh"

static const size_t SLOT = (size_t)4 << 20, SLICE = (size_t)256 << 10, ALONE = (size_t)512 << 10;
enum { N_SLOT = 8, MAX_HELPER = 5 };

struct moa_cuda_pump {
    char *stage; /* pinned, N_SLOT x SLOT */
    cudaEvent_t unused[N_SLOT];
    int next;

    pthread_t helper[MAX_HELPER];
    int n_helper;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    bool has_lock, quit;
    /* the piece under way; changed only while no helper is at it */
    uint64_t number;
    int n_busy; /* helpers at it */
    char *to;
    const char *from;
    size_t bytes;
    std::atomic<size_t> taken; /* bytes that some thread copies or has copied */
};

static void copy_slices(moa_cuda_pump *p) {
    for (;;) {
        const size_t at = p->taken.fetch_add(SLICE);
        if (at >= p->bytes) return;
        memcpy(p->to + at, p->from + at, p->bytes - at < SLICE ? p->bytes - at : SLICE);
    }
}

static void *helper_main(void *arg) {
    moa_cuda_pump *p = static_cast<moa_cuda_pump *>(arg);
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->quit && p->number == seen)
            pthread_cond_wait(&p->work, &p->lock);
        if (p->quit) break;
        seen = p->number;
        p->n_busy++;
        pthread_mutex_unlock(&p->lock);
        copy_slices(p);
        pthread_mutex_lock(&p->lock);
        if (--p->n_busy == 0) pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return nullptr;
}

/* Returns when all is copied: all slices are taken then, and no helper is still at one. */
static void copy_piece(moa_cuda_pump *p, char *to, const char *from, size_t bytes) {
    if (p->n_helper == 0 || bytes <= ALONE) {
        memcpy(to, from, bytes);
        return;
    }
    pthread_mutex_lock(&p->lock);
    while (p->n_busy > 0) /* one that woke late, for the piece before */
        pthread_cond_wait(&p->done, &p->lock);
    p->to = to, p->from = from, p->bytes = bytes;
    p->taken = 0;
    p->number++;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    copy_slices(p);
    pthread_mutex_lock(&p->lock);
    while (p->n_busy > 0)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
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
    MOA_CU(c, cudaMallocHost(reinterpret_cast<void **>(&p->stage), N_SLOT * SLOT));
    for (int i = 0; i < N_SLOT; i++)
        MOA_CU(c, cudaEventCreateWithFlags(&p->unused[i], cudaEventDisableTiming));
    start_helpers(p);
    return MOA_OK;
}

void moa_cuda_pump_close(moa_cuda *c) {
    moa_cuda_pump *p = c->pump;
    if (!p) return;
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
        if (p->unused[i]) (void)cudaEventDestroy(p->unused[i]);
    if (p->stage) (void)cudaFreeHost(p->stage);
    delete p;
    c->pump = nullptr;
}

moa_status moa_cuda_pump_send(moa_cuda *c, void *dst, const void *host, size_t bytes, moa_err *err) {
    if (!c->pump) {
        const moa_status s = start(c, err);
        if (s != MOA_OK) {
            moa_cuda_pump_close(c);
            return s;
        }
    }
    moa_cuda_pump *p = c->pump;
    for (size_t at = 0; at < bytes; at += SLOT) {
        const size_t n = bytes - at < SLOT ? bytes - at : SLOT;
        const int slot = p->next;
        char *const stage = p->stage + (size_t)slot * SLOT;
        p->next = (slot + 1) % N_SLOT;
        MOA_CU(c, cudaEventSynchronize(p->unused[slot])); /* at once, if it was never recorded */
        copy_piece(p, stage, static_cast<const char *>(host) + at, n);
        MOA_CU(c, cudaMemcpyAsync(static_cast<char *>(dst) + at, stage, n, cudaMemcpyHostToDevice, c->stream));
        MOA_CU(c, cudaEventRecord(p->unused[slot], c->stream));
    }
    return MOA_OK;
}
