/* cpu.c -- the CPU backend's driver part: host memory stands for the device's, so that everything is a copy or a no-op.
 *
 * Allocations carry a 256-byte head that links them, so close() frees what the engine left behind; weights are linked likewise.
 * Every operation has finished when its call returns: sync() has nothing to wait for. */
#include <cblas.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"
#include "core/cpu/slab.h"

enum { HEAD_BYTES = 256, HUGE_PAGE = 2 << 20, LARGE_BYTES = 8 << 20 };

struct moa_cpu_block {
    moa_cpu_block *prev, *next;
};

static moa_cpu *self(moa_backend *b) {
    return (moa_cpu *)b;
}

void *moa_cpu_scratch(size_t count, size_t elem_bytes, moa_err *err) {
    size_t bytes;
    void *p = moa_size_mul(count ? count : 1, elem_bytes, &bytes) ? malloc(bytes) : NULL;
    if (!p) (void)moa_fail(err, MOA_E_MEMORY, "no memory for %zu x %zu bytes of scratch", count, elem_bytes);
    return p;
}

void *moa_cpu_room(moa_cpu *cpu, size_t bytes, moa_err *err) {
    size_t padded;
    if (bytes <= cpu->room.bytes) return cpu->room.memory;
    free(cpu->room.memory);
    cpu->room.memory = moa_size_pad(bytes, 4096, &padded) ? aligned_alloc(64, padded) : NULL;
    cpu->room.bytes = cpu->room.memory ? padded : 0;
    if (!cpu->room.memory) (void)moa_fail(err, MOA_E_MEMORY, "no memory for %zu bytes of scratch", bytes);
    return cpu->room.memory;
}

/* --- memory ---------------------------------------------------------------------------------------------------------- */

static moa_status cpu_alloc(moa_backend *b, size_t bytes, void **out, moa_err *err) {
    moa_cpu *cpu = self(b);
    size_t total;
    *out = NULL;
    if (!moa_size_add(bytes, HEAD_BYTES, &total) || !moa_size_pad(total, HEAD_BYTES, &total))
        return moa_fail(err, MOA_E_MEMORY, "%zu bytes do not fit the address space", bytes);
    const bool large = total >= LARGE_BYTES && moa_size_pad(total, HUGE_PAGE, &total);
    moa_cpu_block *block = aligned_alloc(large ? HUGE_PAGE : HEAD_BYTES, total);
    if (block && large) (void)madvise(block, total, MADV_HUGEPAGE); /* see slab.h */
    if (!block)
        return moa_fail(err, MOA_E_MEMORY, "no memory for %zu bytes (%.1f MiB)", bytes,
                        (double)bytes / 1048576);
    block->prev = NULL;
    block->next = cpu->blocks;
    if (cpu->blocks) cpu->blocks->prev = block;
    cpu->blocks = block;
    *out = (char *)block + HEAD_BYTES;
    return MOA_OK;
}

static void cpu_free(moa_backend *b, void *memory) {
    if (!memory) return;
    moa_cpu_block *block = (moa_cpu_block *)(void *)((char *)memory - HEAD_BYTES);
    if (block->prev)
        block->prev->next = block->next;
    else
        self(b)->blocks = block->next;
    if (block->next) block->next->prev = block->prev;
    free(block);
}

static moa_status cpu_upload(moa_backend *b, void *dst, const void *host, size_t bytes, moa_err *err) {
    (void)b, (void)err;
    if (bytes) memcpy(dst, host, bytes);
    return MOA_OK;
}

static moa_status cpu_download(moa_backend *b, void *host, const void *src, size_t bytes, moa_err *err) {
    return cpu_upload(b, host, src, bytes, err);
}

static moa_status cpu_zero(moa_backend *b, void *dst, size_t bytes, moa_err *err) {
    (void)b, (void)err;
    if (bytes) memset(dst, 0, bytes);
    return MOA_OK;
}

static moa_status cpu_copy(moa_backend *b, void *dst, const void *src, size_t bytes, moa_err *err) {
    return cpu_upload(b, dst, src, bytes, err);
}

static moa_status cpu_sync(moa_backend *b, moa_err *err) {
    (void)b, (void)err;
    return MOA_OK;
}

static moa_status cpu_share(moa_backend *b, size_t bytes, void **host, void **device, moa_err *err) {
    (void)b;
    *host = *device = calloc(1, bytes ? bytes : 1);
    return *host ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for %zu shared bytes", bytes);
}

static void cpu_unshare(moa_backend *b, void *host) {
    (void)b;
    free(host);
}

/* --- weights --------------------------------------------------------------------------------------------------------- */

/* bytes of w's rows; fails when its shape, type and size disagree */
static moa_status weight_check(const moa_weight *w, const moa_dtype_info **type, size_t *row_bytes,
                               moa_err *err) {
    const char *name = w->name ? w->name : "?";
    *type = moa_dtype_find((uint32_t)w->type);
    if (!*type)
        return moa_fail(err, MOA_E_UNSUPPORTED, "weight %s: type %s is not supported", name,
                        moa_dtype_gguf_name((uint32_t)w->type));
    if (!w->data) return moa_fail(err, MOA_E_INVALID, "weight %s has no data", name);
    size_t bytes;
    if (w->n_out <= 0 || w->n_in <= 0 || (uint32_t)w->n_in % (*type)->block_len != 0)
        return moa_fail(err, MOA_E_INVALID, "weight %s: shape %dx%d does not divide into %s blocks of %u",
                        name, w->n_out, w->n_in, (*type)->name, (*type)->block_len);
    if (!moa_size_mul((size_t)w->n_in / (*type)->block_len, (*type)->block_bytes, row_bytes) ||
        !moa_size_mul(*row_bytes, (size_t)w->n_out, &bytes) || bytes != w->bytes)
        return moa_fail(err, MOA_E_INVALID, "weight %s: %zu bytes for %dx%d of %s", name, w->bytes, w->n_out,
                        w->n_in, (*type)->name);
    return MOA_OK;
}

static void weight_drop(moa_cpu *cpu, moa_dev_weight *w) {
    if (!w) return;
    moa_slab_give(&cpu->slabs, w->pack.memory);
    free(w->values);
    free(w->owned);
    free(w);
}

static void cpu_weight_free(moa_backend *b, moa_dev_weight *w) {
    if (!w) return;
    if (w->prev)
        w->prev->next = w->next;
    else if (self(b)->weights == w)
        self(b)->weights = w->next;
    if (w->next) w->next->prev = w->prev;
    moa_rope_table_forget(self(b)->rope, w);
    weight_drop(self(b), w);
}

typedef struct pack_job {
    const moa_dev_weight *w;
} pack_job;

static void pack_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const moa_dev_weight *w = ((const pack_job *)ctx)->w;
    moa_pack_fill(&w->pack, task, w->data, w->row_bytes, w->n_out);
}

/* the forms the fast path computes with */
static moa_status weight_prepare(moa_cpu *cpu, moa_dev_weight *w, moa_err *err) {
    if (w->n_out == 1) {
        w->values = moa_cpu_scratch((size_t)w->n_in, sizeof *w->values, err);
        if (!w->values) return MOA_E_MEMORY;
        w->type->decode(w->data, w->values, (size_t)w->n_in);
    }
    if (!moa_pack_has(w->type->id)) return MOA_OK;
    if (moa_pack_plan(&w->pack, w->type->id, w->n_out, w->n_in))
        w->pack.memory = moa_slab_take(&cpu->slabs, w->pack.bytes);
    if (!w->pack.memory)
        return moa_fail(err, MOA_E_MEMORY, "no memory to pack %dx%d of %s", w->n_out, w->n_in, w->type->name);
    pack_job j = {.w = w};
    moa_pool_run(cpu->pool, pack_task, &j, w->pack.n_group);
    return MOA_OK;
}

static moa_status cpu_weight_load(moa_backend *b, const moa_weight *w, bool keep_host, moa_dev_weight **out,
                                  moa_err *err) {
    moa_cpu *cpu = self(b);
    moa_dev_weight *d = NULL;
    const moa_dtype_info *type = NULL;
    size_t row_bytes = 0;
    moa_status s = MOA_OK;
    *out = NULL;
    MOA_TRY(weight_check(w, &type, &row_bytes, err));
    d = calloc(1, sizeof *d);
    if (!d) {
        s = moa_fail(err, MOA_E_MEMORY, "no memory for weight %s", w->name ? w->name : "?");
        goto out;
    }
    *d = (moa_dev_weight){
        .type = type, .n_out = w->n_out, .n_in = w->n_in, .row_bytes = row_bytes, .data = w->data};
    /* rows of floats are read in place: they must lie where floats may */
    const bool misplaced = type->block_len == 1 && (uintptr_t)w->data % type->block_bytes != 0;
    if (!keep_host || misplaced) {
        d->owned = malloc(w->bytes);
        if (!d->owned) {
            s = moa_fail(err, MOA_E_MEMORY, "no memory for the %zu bytes of weight %s", w->bytes,
                         w->name ? w->name : "?");
            goto out;
        }
        memcpy(d->owned, w->data, w->bytes);
        d->data = d->owned;
    }
    if (!cpu->reference) MOA_TRY(weight_prepare(cpu, d, err));
    d->next = cpu->weights;
    if (cpu->weights) cpu->weights->prev = d;
    cpu->weights = d;
    *out = d;
    d = NULL;
out:
    weight_drop(cpu, d);
    return s;
}

/* --- the device ------------------------------------------------------------------------------------------------------ */

/* "AMD EPYC" from /proc/cpuinfo, or the machine's word for itself */
static void cpu_name(char *out, size_t bytes) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");
    (void)snprintf(out, bytes, "%s", "processor");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        line[strcspn(line, "\n")] = 0;
        (void)snprintf(out, bytes, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (f) (void)fclose(f);
}

static int32_t usable_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < 4096 ? (int32_t)n : 1;
}

static moa_status cpu_info(moa_backend *b, moa_device_info *out, moa_err *err) {
    (void)err;
    const moa_cpu *cpu = self(b);
    char name[64];
    cpu_name(name, sizeof name);
    *out = (moa_device_info){0};
    (void)snprintf(out->name, sizeof out->name, "CPU %s, %d thread%s, %s", name, cpu->n_threads,
                   cpu->n_threads == 1 ? "" : "s", cpu->reference ? "reference" : cpu->kern->name);
    const long page = sysconf(_SC_PAGESIZE), all = sysconf(_SC_PHYS_PAGES),
               unused = sysconf(_SC_AVPHYS_PAGES);
    if (page > 0 && all > 0) out->memory_bytes = (uint64_t)page * (uint64_t)all;
    if (page > 0 && unused > 0) out->free_bytes = (uint64_t)page * (uint64_t)unused;
    return MOA_OK;
}

static void cpu_close(moa_backend *b) {
    moa_cpu *cpu = self(b);
    while (cpu->weights)
        cpu_weight_free(b, cpu->weights);
    while (cpu->blocks)
        cpu_free(b, (char *)cpu->blocks + HEAD_BYTES);
    moa_pool_close(&cpu->pool);
    moa_rope_table_free(cpu->rope);
    free(cpu->room.memory);
    free(cpu);
}

#define DRIVER                                                                                               \
    .abi = MOA_BACKEND_ABI, .name = "cpu", .close = cpu_close, .info = cpu_info, .alloc = cpu_alloc,         \
    .free = cpu_free, .upload = cpu_upload, .download = cpu_download, .zero = cpu_zero, .copy = cpu_copy,    \
    .sync = cpu_sync, .share = cpu_share, .unshare = cpu_unshare, .weight_load = cpu_weight_load, .weight_free = cpu_weight_free

static const moa_backend_vtable reference_table = {DRIVER,
#define X(name, text) .name = moa_ref_##name,
                                                   MOA_OP_MAP(X) MOA_BWD_MAP(X)
#undef X
};

static const moa_backend_vtable fast_table = {DRIVER,
#define X(name, text) .name = moa_fast_##name,
                                              MOA_OP_MAP(X) MOA_BWD_MAP(X)
#undef X
};

moa_status moa_cpu_open(moa_backend **out, const moa_backend_config *config, moa_err *err) {
    moa_status s = MOA_OK;
    *out = NULL;
    moa_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return moa_fail(err, MOA_E_MEMORY, "no memory for the CPU backend");
    cpu->reference = config && config->reference;
    cpu->base.vt = cpu->reference ? &reference_table : &fast_table;
    cpu->n_threads = cpu->reference                    ? 1
                     : config && config->n_threads > 0 ? config->n_threads
                                                       : usable_cores();
    if (!cpu->reference) {
        cpu->kern = moa_kern_choose();
        openblas_set_num_threads(1); /* the pool is the only source of threads */
        MOA_TRY(moa_pool_open(&cpu->pool, cpu->n_threads, err));
    }
    *out = &cpu->base;
    cpu = NULL;
out:
    if (cpu) cpu_close(&cpu->base);
    return s;
}
