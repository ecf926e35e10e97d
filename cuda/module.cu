/* module.cu -- the loadable CUDA backend: the module's entry, the driver part, and what is said when a device fails.
 *
 *   libmoascope-cuda.so  ->  moa_backend_module  { n_devices, device_info, open }      the only symbol it exports
 *
 *   memory      cudaMalloc, every block in one list, so that close() returns all of it. cudaMalloc aligns to 256 bytes at least
 *   upload      up to 64 KiB through a ring of pinned slots, more through upload.cu; without waiting
 *   weights     nobody waits for one: its bytes are read and sent while the next is asked for; what is to be known of its values (its
 *               largest) is fetched behind it and looked at before the first operation. Small ones share blocks
 *   recording   the stream is captured into a graph; a replay is one launch. Uploads, downloads and allocations have no place
 *               in a recording and are refused there
 *   failure     out of memory: what was needed and what is free. A sticky error: the backend is lost, every later call says
 *               why. Before a device is opened: core/engine/cuda_fault.h
 *
 * $MOA_FAULT breaks the device on purpose, for tests: illegal@N (an illegal address in operation N), hang@N (operation N
 * runs for two minutes). */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/base/size.h"
#include "core/engine/cuda_fault.h"
#include "cuda/attn_decode.cuh"
#include "cuda/attn_prefill.cuh"
#include "cuda/bwd.cuh"
#include "cuda/matmul.cuh"
#include "cuda/upload.cuh"
#include "cuda/step_pick.cuh"

struct moa_cuda_block {
    void *memory;
    size_t bytes;
    moa_cuda_block *prev, *next;
};

struct moa_cuda_recording {
    cudaGraphExec_t exec;
    moa_cuda_recording *prev, *next;
};

static const double MIB = 1048576.0;
static const size_t SCRATCH_BYTES = (size_t)32 << 20, BLAS_BYTES = (size_t)32 << 20,
                    GEMM_TILE_BYTES = (size_t)64 << 20, SLAB_BYTES = (size_t)32 << 20, SHARED_MOST = (size_t)8 << 20,
                    ALIGN = 256; /* cudaMalloc's */
enum { CHUNK = 2048, N_SCALE = 1024 }; /* tokens that a prefill likes at once; weights that wait for their scale */

/* device memory that weights share: a call of the driver takes 25 us, and a small model has hundreds */
struct moa_cuda_slab {
    char *memory;
    size_t used;
    int n_weight;
    moa_cuda_slab *prev, *next;
};

/* weights whose largest value is on its way */
struct moa_cuda_scales {
    uint32_t *device, *host; /* (N_SCALE), host pinned */
    moa_dev_weight *of[N_SCALE];
    int n;
    moa_cuda_slab *slabs; /* the first is the one that is filled */
};
enum { FAULT_NONE, FAULT_ILLEGAL, FAULT_HANG };

/* doubly linked lists of blocks, weights, recordings */
template <typename T> static void link(T **head, T *x) {
    x->prev = nullptr;
    x->next = *head;
    if (*head) (*head)->prev = x;
    *head = x;
}
template <typename T> static void unlink(T **head, T *x) {
    if (x->prev)
        x->prev->next = x->next;
    else
        *head = x->next;
    if (x->next) x->next->prev = x->prev;
}

/* --- failure -------------------------------------------------------------------------------------------- */

/* does this error poison the context, so that only a new process helps? */
static bool is_sticky(cudaError_t e) {
    switch (e) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorExternalDevice:
    case cudaErrorContextIsDestroyed: return true;
    default: return false;
    }
}

static void leave_recording(moa_cuda *c) {
    cudaGraph_t graph = nullptr;
    if (!c->recording) return;
    c->recording = false;
    (void)cudaStreamEndCapture(c->stream, &graph);
    if (graph) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();
}

static moa_status out_of_memory(moa_cuda *c, size_t bytes, const char *what, moa_err *err) {
    size_t unused = 0, total = 0;
    (void)cudaGetLastError();
    if (cudaMemGetInfo(&unused, &total) != cudaSuccess) {
        (void)cudaGetLastError();
        return moa_fail(err, MOA_E_MEMORY, "GPU %d (%s): out of memory for %s", c->device, c->name, what);
    }
    if (bytes == 0)
        return moa_fail(err, MOA_E_MEMORY, "GPU %d (%s): out of memory for %s; %.1f MiB free of %.1f",
                        c->device, c->name, what, (double)unused / MIB, (double)total / MIB);
    return moa_fail(err, MOA_E_MEMORY, "GPU %d (%s): %.1f MiB needed for %s, %.1f MiB free of %.1f",
                    c->device, c->name, (double)bytes / MIB, what, (double)unused / MIB, (double)total / MIB);
}

moa_status moa_cuda_fail(moa_cuda *c, cudaError_t e, const char *what, moa_err *err) {
    (void)cudaGetLastError(); /* clears it when it is not sticky */
    if (e == cudaErrorMemoryAllocation) return out_of_memory(c, 0, what, err);
    if (e == cudaErrorNoKernelImageForDevice)
        return moa_fail(err, MOA_E_DEVICE, "GPU %d (%s) cannot run this build, which was made for %s",
                        c->device, c->name, MOA_CUDA_BUILT_FOR);
    if (is_sticky(e) && !c->lost) {
        c->lost = true;
        (void)snprintf(c->lost_text, sizeof c->lost_text, "%s (CUDA error %d) in or before %s",
                       cudaGetErrorString(e), (int)e, what);
    }
    if (c->lost)
        return moa_fail(err, MOA_E_DEVICE,
                        "GPU %d (%s) is lost to this process: %s; the engine has to be started again",
                        c->device, c->name, c->lost_text);
    return moa_fail(err, MOA_E_DEVICE, "GPU %d (%s): %s (CUDA error %d) in %s", c->device, c->name,
                    cudaGetErrorString(e), (int)e, what);
}

moa_status moa_cuda_enter(moa_cuda *c, moa_err *err) {
    if (c->lost)
        return moa_fail(err, MOA_E_DEVICE,
                        "GPU %d (%s) is lost to this process: %s; the engine has to be started again",
                        c->device, c->name, c->lost_text);
    c->half.x = nullptr; /* whatever comes may change it */
    MOA_CU(c, cudaSetDevice(c->device));
    return MOA_OK;
}

/* what the weights loaded so far are multiplied with where they become float16 */
static moa_status take_scales(moa_cuda *c, moa_err *err) {
    moa_cuda_scales *s = c->scales;
    if (!s || s->n == 0) return MOA_OK;
    MOA_CU(c, cudaStreamSynchronize(c->stream));
    for (int i = 0; i < s->n; i++)
        if (s->of[i]) moa_cuda_pack_scale(s->of[i], s->host[i]);
    s->n = 0;
    MOA_CU(c, cudaMemsetAsync(s->device, 0, N_SCALE * sizeof *s->device, c->stream));
    return MOA_OK;
}

/* weights are all there, and what is to be known of them */
static moa_status settle_weights(moa_cuda *c, moa_err *err) {
    if (c->pump) MOA_RETURN(moa_cuda_pump_flush(c, err));
    return take_scales(c, err);
}

__global__ static void fault_kernel(int fault, int64_t seconds) {
    if (fault == FAULT_ILLEGAL) *reinterpret_cast<volatile int *>(16) = 1;
    uint64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (fault == FAULT_HANG && now - start < (uint64_t)seconds * 1000000000u);
}

moa_status moa_cuda_enter_op(moa_cuda *c, moa_err *err) {
    MOA_RETURN(moa_cuda_enter(c, err));
    if (!c->recording) MOA_RETURN(settle_weights(c, err));
    if (c->fault == FAULT_NONE || c->n_op++ != c->fault_at) return MOA_OK;
    fault_kernel<<<1, 1, 0, c->stream>>>(c->fault, 120);
    MOA_LAUNCHED(c, "the fault that MOA_FAULT asked for");
    return MOA_OK;
}

/* --- memory --------------------------------------------------------------------------------------------- */

static moa_status allocate(moa_cuda *c, size_t bytes, const char *what, void **out, moa_err *err) {
    *out = nullptr;
    moa_cuda_block *block = new (std::nothrow) moa_cuda_block();
    if (!block) return moa_fail(err, MOA_E_MEMORY, "no host memory for the record of a device block");
    block->bytes = bytes ? bytes : 1;
    /* allocating is no stream operation and never part of a graph: scratch may grow during a recording, so lift the ban */
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    const cudaError_t e = cudaMalloc(&block->memory, block->bytes);
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    if (e != cudaSuccess) {
        delete block;
        return e == cudaErrorMemoryAllocation ? out_of_memory(c, bytes, what, err)
                                              : moa_cuda_fail(c, e, what, err);
    }
    link(&c->blocks, block);
    *out = block->memory;
    return MOA_OK;
}

static void release(moa_cuda *c, void *memory) {
    for (moa_cuda_block *block = c->blocks; block; block = block->next) {
        if (block->memory != memory) continue;
        unlink(&c->blocks, block);
        (void)cudaFree(block->memory); /* waits for the work that uses it */
        delete block;
        return;
    }
}

moa_status moa_cuda_scratch(moa_cuda *c, size_t bytes, void **out, moa_err *err) {
    if (bytes > c->scratch_bytes) {
        void *larger = nullptr;
        MOA_RETURN(allocate(c, bytes, "the workspace", &larger, err));
        /* recordings may still use the old block: it stays until close() then */
        if (c->scratch && !c->recordings && !c->recording) release(c, c->scratch);
        c->scratch = larger;
        c->scratch_bytes = bytes;
    }
    *out = c->scratch;
    return MOA_OK;
}

static moa_status not_recording(moa_cuda *c, const char *what, moa_err *err) {
    if (!c->recording) return MOA_OK;
    return moa_fail(err, MOA_E_FAILED, "%s inside a recording", what);
}

static moa_status cuda_alloc(moa_backend *b, size_t bytes, void **out, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    *out = nullptr;
    MOA_RETURN(moa_cuda_enter(c, err));
    return allocate(c, bytes, "a buffer", out, err);
}

static void cuda_free(moa_backend *b, void *memory) {
    moa_cuda *c = moa_cuda_self(b);
    if (!memory) return;
    (void)cudaSetDevice(c->device);
    release(c, memory);
    (void)cudaGetLastError();
}

static moa_status upload_small(moa_cuda *c, void *dst, const void *host, size_t bytes, moa_err *err) {
    const int slot = c->stage_next;
    c->stage_next = (slot + 1) % MOA_STAGE_SLOTS;
    char *stage = c->stage + (size_t)slot * MOA_STAGE_BYTES;
    if (cudaEventQuery(c->stage_free[slot]) != cudaSuccess) { /* 16 uploads ago: hardly ever */
        (void)cudaGetLastError();
        MOA_CU(c, cudaEventSynchronize(c->stage_free[slot]));
    }
    memcpy(stage, host, bytes);
    MOA_CU(c, cudaMemcpyAsync(dst, stage, bytes, cudaMemcpyHostToDevice, c->stream));
    MOA_CU(c, cudaEventRecord(c->stage_free[slot], c->stream));
    return MOA_OK;
}

static moa_status cuda_upload(moa_backend *b, void *dst, const void *host, size_t bytes, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_RETURN(not_recording(c, "an upload", err));
    if (bytes == 0) return MOA_OK;
    if (bytes <= MOA_STAGE_BYTES) return upload_small(c, dst, host, bytes, err);
    return moa_cuda_pump_send(c, dst, host, bytes, err);
}

static moa_status cuda_download(moa_backend *b, void *host, const void *src, size_t bytes, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_RETURN(not_recording(c, "a download", err));
    if (bytes) MOA_CU(c, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, c->stream));
    MOA_CU(c, cudaStreamSynchronize(c->stream));
    return MOA_OK;
}

static moa_status cuda_zero(moa_backend *b, void *dst, size_t bytes, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter(c, err));
    if (bytes) MOA_CU(c, cudaMemsetAsync(dst, 0, bytes, c->stream));
    return MOA_OK;
}

static moa_status cuda_copy(moa_backend *b, void *dst, const void *src, size_t bytes, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter(c, err));
    if (bytes) MOA_CU(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, c->stream));
    return MOA_OK;
}

static moa_status cuda_sync(moa_backend *b, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_RETURN(not_recording(c, "a wait", err));
    MOA_RETURN(settle_weights(c, err));
    MOA_CU(c, cudaStreamSynchronize(c->stream));
    return MOA_OK;
}

/* pinned memory that kernels write to through the bus */
static moa_status cuda_share(moa_backend *b, size_t bytes, void **host, void **device, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    *host = *device = nullptr;
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_RETURN(not_recording(c, "sharing memory", err));
    MOA_CU(c, cudaHostAlloc(host, bytes ? bytes : 1, cudaHostAllocMapped));
    memset(*host, 0, bytes);
    const cudaError_t e = cudaHostGetDevicePointer(device, *host, 0);
    if (e == cudaSuccess) return MOA_OK;
    (void)cudaFreeHost(*host);
    *host = nullptr;
    return moa_cuda_fail(c, e, "sharing memory", err);
}

static void cuda_unshare(moa_backend *b, void *host) {
    moa_cuda *c = moa_cuda_self(b);
    if (!host) return;
    (void)cudaSetDevice(c->device);
    (void)cudaStreamSynchronize(c->stream);
    (void)cudaFreeHost(host);
    (void)cudaGetLastError();
}

/* --- weights -------------------------------------------------------------------------------------------- */

static moa_status weight_check(const moa_weight *w, size_t *row_bytes, moa_err *err) {
    const char *name = w->name ? w->name : "?";
    size_t len = 0, block = 0, bytes = 0;
    switch ((int)w->type) {
#define X(type_name, id, block_len, block_bytes)                                                             \
    case id: len = block_len, block = block_bytes; break;
        MOA_DTYPE_MAP(X)
#undef X
    default:
        return moa_fail(err, MOA_E_UNSUPPORTED, "weight %s: type %d is not supported", name, (int)w->type);
    }
    if (!w->data && !w->read) return moa_fail(err, MOA_E_INVALID, "weight %s has no data", name);
    if (w->n_out <= 0 || w->n_in <= 0 || (size_t)w->n_in % len != 0)
        return moa_fail(err, MOA_E_INVALID, "weight %s: shape %dx%d does not divide into blocks of %zu", name,
                        w->n_out, w->n_in, len);
    if (!moa_size_mul((size_t)w->n_in / len, block, row_bytes) ||
        !moa_size_mul(*row_bytes, (size_t)w->n_out, &bytes) || bytes != w->bytes)
        return moa_fail(err, MOA_E_INVALID, "weight %s: %zu bytes for %dx%d", name, w->bytes, w->n_out,
                        w->n_in);
    if ((size_t)w->n_in * sizeof(float) > GEMM_TILE_BYTES)
        return moa_fail(err, MOA_E_UNSUPPORTED, "weight %s: rows of %d are longer than the %zu MiB workspace",
                        name, w->n_in, GEMM_TILE_BYTES >> 20);
    return MOA_OK;
}

/* memory for a weight, its own or a part of a slab */
static moa_status allocate_weight(moa_cuda *c, size_t bytes, const char *name, void **out, moa_err *err) {
    moa_cuda_slab *first = c->scales->slabs;
    const char *what = name ? name : "a weight";
    if (bytes > SHARED_MOST) return allocate(c, bytes, what, out, err);
    const size_t need = moa_ceil_div(bytes ? bytes : 1, ALIGN) * ALIGN;
    if (!first || SLAB_BYTES - first->used < need) {
        void *memory = nullptr;
        MOA_RETURN(allocate(c, SLAB_BYTES, what, &memory, err));
        first = new (std::nothrow) moa_cuda_slab();
        if (!first) {
            release(c, memory);
            return moa_fail(err, MOA_E_MEMORY, "no host memory for the record of weight %s", what);
        }
        first->memory = static_cast<char *>(memory);
        link(&c->scales->slabs, first);
    }
    *out = first->memory + first->used;
    first->used += need;
    first->n_weight++;
    return MOA_OK;
}

/* a slab goes with its last weight */
static void release_weight(moa_cuda *c, void *memory) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory);
    for (moa_cuda_slab *s = c->scales ? c->scales->slabs : nullptr; s; s = s->next) {
        const uintptr_t from = reinterpret_cast<uintptr_t>(s->memory);
        if (at < from || at >= from + SLAB_BYTES) continue;
        if (--s->n_weight > 0) return;
        release(c, s->memory);
        unlink(&c->scales->slabs, s);
        delete s;
        return;
    }
    release(c, memory);
}

/* a vector becomes float32, through the workspace */
static moa_status load_vector(moa_cuda *c, const moa_weight *w, moa_dev_weight *d, moa_err *err) {
    moa_dev_weight packed = *d;
    d->type = MOA_F32;
    d->row_bytes = sizeof(float) * (size_t)w->n_in;
    MOA_RETURN(allocate_weight(c, d->row_bytes, w->name, &d->data, err));
    if (w->type == MOA_F32) return moa_cuda_pump_put_all(c, w, d->data, nullptr, err);
    MOA_RETURN(moa_cuda_pump_flush(c, err)); /* pieces that have landed may be packed from the workspace */
    MOA_RETURN(moa_cuda_scratch(c, w->bytes, &packed.data, err));
    MOA_RETURN(moa_cuda_pump_put_all(c, w, packed.data, nullptr, err));
    MOA_RETURN(moa_cuda_pump_flush(c, err));
    return moa_cuda_decode_rows(c, &packed, 0, 1, d->data, MOA_ELEM_F32, err);
}

/* rows longer than a piece: one at a time */
static moa_status load_long_rows(moa_cuda *c, const moa_weight *w, moa_dev_weight *d, moa_err *err) {
    void *space = nullptr;
    MOA_RETURN(moa_cuda_pump_flush(c, err));
    MOA_RETURN(moa_cuda_scratch(c, d->row_bytes, &space, err));
    for (int32_t row = 0; row < w->n_out; row++) {
        const size_t start = (size_t)row * d->row_bytes;
        for (size_t at = 0; at < d->row_bytes; at += MOA_PIECE_BYTES) {
            moa_cuda_piece p = {};
            p.host = w->data ? static_cast<const char *>(w->data) + start + at : nullptr;
            p.from = *w;
            p.at = start + at;
            p.bytes = d->row_bytes - at < MOA_PIECE_BYTES ? d->row_bytes - at : MOA_PIECE_BYTES;
            p.dst = static_cast<char *>(space) + at;
            MOA_RETURN(moa_cuda_pump_put(c, &p, err));
        }
        MOA_RETURN(moa_cuda_pump_flush(c, err));
        MOA_RETURN(moa_cuda_pack_rows(c, space, d->row_bytes, row, 1, d, err));
    }
    return moa_cuda_weight_whole(c, d, err);
}

/* GGUF's bytes go through the workspace, a piece at a time, and are repacked there by the device */
static moa_status load_packed(moa_cuda *c, const moa_weight *w, moa_dev_weight *d, moa_err *err) {
    const int32_t most = (int32_t)(MOA_PIECE_BYTES / d->row_bytes);
    d->packed = true;
    MOA_RETURN(allocate_weight(c, moa_cuda_packed_bytes(d), w->name, &d->data, err));
    if (most < 1) return load_long_rows(c, w, d, err);
    for (int32_t row = 0; row < w->n_out; row += most) {
        moa_cuda_piece p = {};
        p.at = (size_t)row * d->row_bytes;
        p.host = w->data ? static_cast<const char *>(w->data) + p.at : nullptr;
        p.from = *w;
        p.w = d;
        p.row0 = row;
        p.n_row = w->n_out - row < most ? w->n_out - row : most;
        p.bytes = (size_t)p.n_row * d->row_bytes;
        p.last = row + p.n_row == w->n_out;
        MOA_RETURN(moa_cuda_pump_put(c, &p, err));
    }
    return MOA_OK;
}

/* asks for the largest value of w, which take_scales() looks at */
moa_status moa_cuda_weight_whole(moa_cuda *c, moa_dev_weight *w, moa_err *err) {
    moa_cuda_scales *s = c->scales;
    if (s->n == N_SCALE) MOA_RETURN(take_scales(c, err));
    MOA_RETURN(moa_cuda_pack_largest(c, w, s->device + s->n, err));
    MOA_CU(c, cudaMemcpyAsync(s->host + s->n, s->device + s->n, sizeof *s->host, cudaMemcpyDeviceToHost,
                              c->stream));
    s->of[s->n++] = w;
    return MOA_OK;
}

static moa_status load_matrix(moa_cuda *c, const moa_weight *w, moa_dev_weight *d, moa_err *err) {
    void *unused = nullptr;
    if (c->matmul == 2 && moa_cuda_packed_bytes(d) > 0) {
        MOA_RETURN(load_packed(c, w, d, err));
    } else {
        MOA_RETURN(allocate_weight(c, w->bytes, w->name, &d->data, err));
        MOA_RETURN(moa_cuda_pump_put_all(c, w, d->data, d, err));
    }
    /* what its product will want, so that no operation has to grow the workspace */
    if (c->gemm == MOA_GEMM_F16) return moa_cuda_scratch(c, moa_cuda_gemm_bytes(d, CHUNK), &unused, err);
    if (w->type == MOA_F32 && c->gemm != MOA_GEMM_BF16) return MOA_OK;
    const size_t whole = (size_t)w->n_out * (size_t)w->n_in * sizeof(float);
    return moa_cuda_scratch(c, whole < GEMM_TILE_BYTES ? whole : GEMM_TILE_BYTES, &unused, err);
}

static void cuda_weight_free(moa_backend *b, moa_dev_weight *w) {
    moa_cuda *c = moa_cuda_self(b);
    if (!w) return;
    (void)cudaSetDevice(c->device);
    (void)moa_cuda_pump_flush(c, nullptr); /* some piece may be on its way to it */
    for (int i = 0; c->scales && i < c->scales->n; i++)
        if (c->scales->of[i] == w) c->scales->of[i] = nullptr;
    unlink(&c->weights, w);
    if (w->data) release_weight(c, w->data);
    (void)cudaGetLastError();
    delete w;
}

static moa_status cuda_weight_load(moa_backend *b, const moa_weight *w, bool keep_host, moa_dev_weight **out,
                                   moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    (void)keep_host; /* the device always has its own copy */
    *out = nullptr;
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_RETURN(not_recording(c, "loading a weight", err));
    size_t row_bytes = 0;
    MOA_RETURN(weight_check(w, &row_bytes, err));
    moa_dev_weight *d = new (std::nothrow) moa_dev_weight();
    if (!d)
        return moa_fail(err, MOA_E_MEMORY, "no host memory for the record of weight %s",
                        w->name ? w->name : "?");
    d->type = w->type;
    d->n_out = w->n_out;
    d->n_in = w->n_in;
    d->row_bytes = row_bytes;
    d->f16_scale = 1;
    link(&c->weights, d);
    moa_status s = w->n_out == 1 ? load_vector(c, w, d, err) : load_matrix(c, w, d, err);
    if (s == MOA_OK && w->data) s = moa_cuda_pump_flush(c, err); /* the caller's memory may go */
    if (s == MOA_OK)
        *out = d;
    else
        cuda_weight_free(b, d);
    return s;
}

/* --- recording ------------------------------------------------------------------------------------------ */

static moa_status cuda_record_begin(moa_backend *b, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter(c, err));
    leave_recording(c); /* one that an error left open */
    MOA_RETURN(settle_weights(c, err));
    MOA_CU(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal));
    c->recording = true;
    return MOA_OK;
}

static moa_status cuda_record_end(moa_backend *b, void **recording, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    cudaGraph_t graph = nullptr;
    *recording = nullptr;
    if (!c->recording) return moa_fail(err, MOA_E_FAILED, "no recording to end");
    c->recording = false;
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_CU(c, cudaStreamEndCapture(c->stream, &graph));
    moa_cuda_recording *r = new (std::nothrow) moa_cuda_recording();
    cudaError_t e = r ? cudaGraphInstantiate(&r->exec, graph, 0) : cudaErrorMemoryAllocation;
    (void)cudaGraphDestroy(graph);
    if (e != cudaSuccess) {
        delete r;
        return moa_cuda_fail(c, e, "making a recording", err);
    }
    link(&c->recordings, r);
    e = cudaGraphUpload(r->exec, c->stream);
    *recording = r;
    return e == cudaSuccess ? MOA_OK : moa_cuda_fail(c, e, "placing a recording", err);
}

static moa_status cuda_replay(moa_backend *b, void *recording, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    MOA_RETURN(not_recording(c, "a replay", err));
    MOA_CU(c, cudaGraphLaunch(static_cast<moa_cuda_recording *>(recording)->exec, c->stream));
    return MOA_OK;
}

static void cuda_recording_free(moa_backend *b, void *recording) {
    moa_cuda *c = moa_cuda_self(b);
    moa_cuda_recording *r = static_cast<moa_cuda_recording *>(recording);
    if (!r) return;
    (void)cudaSetDevice(c->device);
    (void)cudaStreamSynchronize(c->stream);
    (void)cudaGraphExecDestroy(r->exec);
    unlink(&c->recordings, r);
    delete r;
}

/* --- devices -------------------------------------------------------------------------------------------- */

/* why there is no device to use, in the words that the program itself uses of the driver */
static void driver_text(cudaError_t e, moa_err *err) {
    int driver = 0;
    char clause[256];
    (void)cudaDriverGetVersion(&driver);
    (void)cudaGetLastError();
    moa_cuda_fault_text((int)e, driver, MOA_CUDA_BUILT_FOR, cudaGetErrorString(e), clause, sizeof clause);
    (void)moa_fail(err, MOA_E_DEVICE, "%s", clause);
}

static int32_t module_n_devices(moa_err *err) {
    int n = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) {
        driver_text(e, err);
        return 0;
    }
    if (n == 0) driver_text(cudaErrorNoDevice, err);
    return n;
}

static moa_status module_device_info(int32_t device, moa_device_info *out, moa_err *err) {
    cudaDeviceProp p;
    memset(out, 0, sizeof *out);
    const cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        driver_text(e, err);
        return MOA_E_DEVICE;
    }
    (void)snprintf(out->name, sizeof out->name, "%.*s", (int)sizeof out->name - 1, p.name);
    out->memory_bytes = p.totalGlobalMem;
    out->free_bytes = 0; /* asking would make a context, which takes memory and a quarter of a second */
    out->sm = p.major * 10 + p.minor;
    out->chunk = CHUNK;
    return MOA_OK;
}

static moa_status cuda_info(moa_backend *b, moa_device_info *out, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    size_t unused = 0, total = 0;
    MOA_RETURN(moa_cuda_enter(c, err));
    MOA_RETURN(module_device_info(c->device, out, err));
    MOA_CU(c, cudaMemGetInfo(&unused, &total));
    out->memory_bytes = total;
    out->free_bytes = unused;
    out->prefill_halves = moa_cuda_prefill_copies(c);
    return MOA_OK;
}

static void cuda_close(moa_backend *b) {
    moa_cuda *c = moa_cuda_self(b);
    (void)cudaSetDevice(c->device);
    leave_recording(c);
    if (c->stream) (void)cudaStreamSynchronize(c->stream);
    while (c->recordings)
        cuda_recording_free(b, c->recordings);
    while (c->weights)
        cuda_weight_free(b, c->weights);
    while (c->blocks)
        release(c, c->blocks->memory);
    if (c->blas && !c->lost) (void)cublasDestroy(c->blas);
    for (int i = 0; i < MOA_STAGE_SLOTS; i++)
        if (c->stage_free[i]) (void)cudaEventDestroy(c->stage_free[i]);
    moa_cuda_pump_close(c);
    if (c->scales && c->scales->host) (void)cudaFreeHost(c->scales->host);
    delete c->scales;
    if (c->stage) (void)cudaFreeHost(c->stage);
    if (c->stream) (void)cudaStreamDestroy(c->stream);
    (void)cudaGetLastError();
    delete c;
}

/* --- opening -------------------------------------------------------------------------------------------- */

static moa_backend_vtable make_table() {
    moa_backend_vtable t = {};
    t.abi = MOA_BACKEND_ABI;
    t.name = "cuda";
    t.reads_files = true;
    t.close = cuda_close;
    t.info = cuda_info;
    t.alloc = cuda_alloc;
    t.free = cuda_free;
    t.upload = cuda_upload;
    t.download = cuda_download;
    t.zero = cuda_zero;
    t.copy = cuda_copy;
    t.sync = cuda_sync;
    t.share = cuda_share;
    t.unshare = cuda_unshare;
    t.weight_load = cuda_weight_load;
    t.weight_free = cuda_weight_free;
    t.record_begin = cuda_record_begin;
    t.record_end = cuda_record_end;
    t.replay = cuda_replay;
    t.recording_free = cuda_recording_free;
#define X(name, text) t.name = moa_cuda_##name;
    MOA_OP_MAP(X)
    MOA_BWD_MAP(X)
    MOA_FUSED_MAP(X)
#undef X
    t.step_decode = moa_cuda_step_pick; /* step.cu's, or that of small models */
    return t;
}
static const moa_backend_vtable table = make_table();

/* $MOASCOPE_CUDA_MATMUL: v3, v2, v1, or v3:N, v2:N, N the most rows of x (2 to 64, 1: none) that are multiplied without cuBLAS. v3 is v2 but
 * for these rows (matmul_ring.cu). */
static moa_status read_matmul(moa_cuda *c, moa_err *err) {
    const char *text = getenv("MOASCOPE_CUDA_MATMUL");
    char end = 0;
    c->matmul = c->precise ? 1 : 2;
    c->few_max = 64;
    if (!text || !*text) return MOA_OK;
    c->matmul = strcmp(text, "v1") == 0 ? 1 : 2;
    if (c->matmul == 1 || strcmp(text, "v2") == 0 || strcmp(text, "v3") == 0) return MOA_OK;
    const bool read = sscanf(text, "v2:%d%c", &c->few_max, &end) == 1 || sscanf(text, "v3:%d%c", &c->few_max, &end) == 1;
    if (!read || c->few_max < 1 || c->few_max > 64)
        return moa_fail(err, MOA_E_USAGE,
                        "MOASCOPE_CUDA_MATMUL is \"%s\": v1, v2, v3, or v2:N, v3:N with N 1 to 64", text);
    return MOA_OK;
}

/* $MOASCOPE_CUDA_PRECISE=1: float32 throughout, as on the CPU: what a difference is looked for with. The words of single
 * operations overrule it. */
static moa_status read_precise(moa_cuda *c, moa_err *err) {
    const char *text = getenv("MOASCOPE_CUDA_PRECISE");
    c->precise = text && strcmp(text, "1") == 0;
    if (c->precise || !text || !*text || strcmp(text, "0") == 0) return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "MOASCOPE_CUDA_PRECISE is \"%s\": 0 or 1", text);
}

static moa_status read_settings(moa_cuda *c, moa_err *err) {
    const char *gemm = getenv("MOASCOPE_CUDA_GEMM"), *fault = getenv("MOA_FAULT");
    MOA_RETURN(read_precise(c, err));
    MOA_RETURN(read_matmul(c, err));
    c->gemm = c->matmul == 2 && !c->precise ? MOA_GEMM_F16 : MOA_GEMM_F32;
    if (gemm && strcmp(gemm, "tf32") == 0)
        c->gemm = MOA_GEMM_TF32;
    else if (gemm && strcmp(gemm, "bf16") == 0)
        c->gemm = MOA_GEMM_BF16;
    else if (gemm && strcmp(gemm, "f16") == 0)
        c->gemm = MOA_GEMM_F16;
    else if (gemm && strcmp(gemm, "f32") == 0)
        c->gemm = MOA_GEMM_F32;
    else if (gemm && *gemm)
        return moa_fail(err, MOA_E_USAGE, "MOASCOPE_CUDA_GEMM is \"%s\": f32, tf32, bf16 or f16", gemm);
    long long at = -1;
    c->fault = FAULT_NONE;
    c->fault_at = -1;
    if (fault && (sscanf(fault, "hang@kernel:%lld", &at) == 1 || sscanf(fault, "hang@%lld", &at) == 1))
        c->fault = FAULT_HANG;
    else if (fault && sscanf(fault, "illegal@%lld", &at) == 1)
        c->fault = FAULT_ILLEGAL;
    c->fault_at = at;
    return MOA_OK;
}

static moa_status start_scales(moa_cuda *c, moa_err *err) {
    const size_t bytes = N_SCALE * sizeof(uint32_t);
    void *device = nullptr;
    moa_cuda_scales *s = c->scales = new (std::nothrow) moa_cuda_scales();
    if (!s) return moa_fail(err, MOA_E_MEMORY, "no host memory for the record of scales");
    MOA_RETURN(allocate(c, bytes, "scales", &device, err));
    s->device = static_cast<uint32_t *>(device);
    MOA_CU(c, cudaMallocHost(reinterpret_cast<void **>(&s->host), bytes));
    MOA_CU(c, cudaMemsetAsync(s->device, 0, bytes, c->stream));
    return MOA_OK;
}

static moa_status start(moa_cuda *c, moa_err *err) {
    cudaDeviceProp p;
    MOA_CU(c, cudaSetDevice(c->device));
    MOA_CU(c, cudaGetDeviceProperties(&p, c->device));
    (void)snprintf(c->name, sizeof c->name, "%.*s", (int)sizeof c->name - 1, p.name);
    c->n_sm = p.multiProcessorCount;
    cudaFuncAttributes
        attributes; /* fails here, not in the middle of a run, when there is no code for this GPU */
    MOA_CU(c, cudaFuncGetAttributes(&attributes, fault_kernel));
    MOA_CU(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    MOA_CU(c,
           cudaMallocHost(reinterpret_cast<void **>(&c->stage), (size_t)MOA_STAGE_SLOTS * MOA_STAGE_BYTES));
    for (int i = 0; i < MOA_STAGE_SLOTS; i++)
        MOA_CU(c, cudaEventCreateWithFlags(&c->stage_free[i], cudaEventDisableTiming));
    MOA_RETURN(start_scales(c, err));
    void *unused = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, SCRATCH_BYTES, &unused, err));
    MOA_RETURN(allocate(c, BLAS_BYTES, "cuBLAS's workspace", &c->blas_space, err));
    MOA_RETURN(allocate(c, MOA_N_TICKET * sizeof *c->ticket + MOA_MAIL_BYTES, "counters and parts of attention",
                        reinterpret_cast<void **>(&c->ticket), err));
    MOA_CU(c, cudaMemsetAsync(c->ticket, 0, MOA_N_TICKET * sizeof *c->ticket, c->stream));
    MOA_CU(c, cudaMemsetAsync(moa_cuda_mail(c), 0xff, MOA_MAIL_BYTES, c->stream));
    cublasStatus_t s = cublasCreate(&c->blas);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasSetStream(c->blas, c->stream);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasSetWorkspace(c->blas, c->blas_space, BLAS_BYTES);
    if (s != CUBLAS_STATUS_SUCCESS)
        return moa_fail(err, s == CUBLAS_STATUS_ALLOC_FAILED ? MOA_E_MEMORY : MOA_E_DEVICE,
                        "GPU %d (%s): cuBLAS did not start: %s", c->device, c->name,
                        cublasGetStatusString(s));
    return MOA_OK;
}

static moa_status module_open(moa_backend **out, const moa_backend_config *config, moa_err *err) {
    *out = nullptr;
    const int32_t n = module_n_devices(err), device = config ? config->device : 0;
    if (n <= 0) return MOA_E_DEVICE; /* the reason is in err */
    if (device < 0 || device >= n)
        return moa_fail(err, MOA_E_USAGE, "there is no GPU %d: this machine shows %d (0 to %d)", device, n,
                        n - 1);
    moa_cuda *c = new (std::nothrow) moa_cuda();
    if (!c) return moa_fail(err, MOA_E_MEMORY, "no host memory for the CUDA backend");
    c->base.vt = &table;
    c->device = device;
    (void)snprintf(c->name, sizeof c->name, "%s", "CUDA");
    moa_status s = read_settings(c, err);
    if (s == MOA_OK) s = start(c, err);
    if (s == MOA_OK)
        *out = &c->base;
    else
        cuda_close(&c->base);
    return s;
}

/* The symbol carries the type's own name, which C++ does not let a variable have: hence the label. */
extern "C" {
extern const struct moa_backend_module module_entry __asm__("moa_backend_module")
    __attribute__((visibility("default"), used));
const struct moa_backend_module module_entry = {MOA_BACKEND_ABI, MOA_CUDA_BUILT_FOR, module_n_devices,
                                                module_device_info, module_open};
}
