/* wgmma.cuh -- the instructions of Hopper's matrix kernels (compute capability 9.0 alone, built as sm_90a): products of a warpgroup
 * whose operands lie in shared memory, copies by tensor maps, barriers that count bytes.
 *
 *   product     128 threads (4 consecutive warps, the first divisible by 4) multiply 64 x 16 by 16 x N. B lies in shared memory; A too, or
 *               in registers as the left operand of mma16816 (mma.cuh), 16 rows a warp. Sums are as mma16816's c: of columns 8 n + 2 (t %
 *               4) + {0, 1}, rows t / 4 and t / 4 + 8 of the warp's 16, at [4 n + {0, 1}] and [4 n + {2, 3}]
 *   tile        rows of 128 bytes (64 halves), 8 of them a group of 1024; its 16-byte pieces are exchanged: piece c of row r lies at c ^ (r % 8).
 *               That is what a tensor map with CU_TENSOR_MAP_SWIZZLE_128B writes; tiles begin at multiples of 1024
 *   operand     where it begins, how far apart groups of 8 rows are (1024) and, transposed, how far 64 columns are
 *
 *          rows are what is summed over (transposed: V of P V)           columns are what is summed over (K of Q K^T)
 *              16 rows further: + 2048 bytes                                  16 columns further: + 32 bytes
 *
 * Products run on while the warps do other things; between issuing and wgmma_wait() nobody touches their sums or register operands.
 * Shared memory written by ordinary stores needs async_fence() in the writing threads, then a barrier, before a product reads it. */
#ifndef MOA_CUDA_WGMMA_CUH
#define MOA_CUDA_WGMMA_CUH

#include <cuda.h>
#include <stdint.h>

#include "cuda/mma.cuh"

static constexpr int WG_TILE_ROW = 128, WG_TILE_COLUMNS = 64, WG_TILE_GROUP = 1024; /* bytes, halves, bytes */

/* --- operands ------------------------------------------------------------------------------------------- */

/* at: shared address; next64: bytes from 64 columns to the next 64, looked at in a transposed operand alone */
__device__ static inline uint64_t wgmma_operand(uint32_t at, uint32_t next64) {
    const uint64_t swizzled_128 = (uint64_t)1 << 62;
    return swizzled_128 | (uint64_t)(WG_TILE_GROUP >> 4) << 32 | (uint64_t)(next64 >> 4) << 16 |
           (uint64_t)((at & 0x3ffff) >> 4);
}
__device__ static inline uint64_t wgmma_ahead(uint64_t operand, uint32_t bytes) {
    return operand + (bytes >> 4);
}

/* where column c (a multiple of 8) of row r lies in a tile of 64 columns, bytes */
__device__ static inline uint32_t wgmma_place(int r, int c) {
    return (uint32_t)(r * WG_TILE_ROW + ((c / 8) ^ (r % 8)) * 16);
}

/* --- products ------------------------------------------------------------------------------------------- */

__device__ static inline void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ static inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/* until all groups but the n newest are done */
template <int N> __device__ static inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
/* keeps the compiler from moving uses of registers across it */
template <int N> __device__ static inline void wgmma_hold(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> __device__ static inline void wgmma_hold(uint32_t (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(x[i])::"memory");
}

#define WG_8(c, i)                                                                                           \
    "+f"((c)[i]), "+f"((c)[i + 1]), "+f"((c)[i + 2]), "+f"((c)[i + 3]), "+f"((c)[i + 4]), "+f"((c)[i + 5]),  \
        "+f"((c)[i + 6]), "+f"((c)[i + 7])
#define WG_32(c, i) WG_8(c, i), WG_8(c, i + 8), WG_8(c, i + 16), WG_8(c, i + 24)
#define WG_NAMES_32                                                                                          \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define WG_NAMES_64                                                                                          \
    WG_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"  \
                "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* c (64 x 128) = a b^T, or += with `add`; a (64 x 16) and b (128 x 16) in shared memory */
__device__ static inline void wgmma_128_shared(float (&c)[64], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" WG_NAMES_64
                 "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
                 : WG_32(c, 0), WG_32(c, 32)
                 : "l"(a), "l"(b), "r"(add));
}
/* c (64 x 128 or 64) = a b, or += with `add`; a (64 x 16) in registers, b (16 x 128 or 64) in shared memory, transposed */
__device__ static inline void wgmma_registers(float (&c)[64], const uint32_t *a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" WG_NAMES_64
                 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}\n"
                 : WG_32(c, 0), WG_32(c, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
__device__ static inline void wgmma_registers(float (&c)[32], const uint32_t *a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" WG_NAMES_32
                 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}\n"
                 : WG_32(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef WG_8
#undef WG_32
#undef WG_NAMES_32
#undef WG_NAMES_64

/* --- barriers in shared memory, copies ------------------------------------------------------------------- */

/* ordinary stores of this thread before what products and copies read */
__device__ static inline void async_fence() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
/* n arrivals complete a phase */
__device__ static inline void barrier_open(uint32_t at, int n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(at), "r"(n) : "memory");
}
__device__ static inline void barriers_opened() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ static inline void barrier_arrive(uint32_t at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(at) : "memory");
}
/* arrives, and the phase also waits for so many bytes of copies */
__device__ static inline void barrier_expect(uint32_t at, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(at), "r"(bytes) : "memory");
}
/* until the phase of that parity (0: the first) is complete */
__device__ static inline void barrier_wait(uint32_t at, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE;\nbra AGAIN;\nDONE:\n}\n" ::"r"(at),
                 "r"(parity)
                 : "memory");
}
/* a box of the map's tensor, from element (x, y, z) on, to shared memory; what lies outside the tensor is zero and counts as bytes */
__device__ static inline void copy_box(uint32_t to, const CUtensorMap *map, int x, int y, int z,
                                       uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
        "{%3, %4, %5}], [%2];\n" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

/* --- registers and turns of warpgroups ------------------------------------------------------------------- */

template <int N> __device__ static inline void registers_fewer() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N> __device__ static inline void registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}
/* named barrier: n threads, those that wait and those that only arrive */
__device__ static inline void turn_wait(int name, int n) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(name), "r"(n) : "memory");
}
__device__ static inline void turn_give(int name, int n) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(name), "r"(n) : "memory");
}

/* --- host side ------------------------------------------------------------------------------------------- */

/* Halves (size[2], size[1], size[0]) as a tensor whose boxes are tiles of 64 x 64, swizzled; strides of the two outer sizes in bytes. */
static inline moa_status wg_tensor_map(moa_cuda *c, void *base, const cuuint64_t size[3], const cuuint64_t stride[2],
                                       CUtensorMap *out, moa_err *err) {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    MOA_CU(c, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                               &found));
    if (found != cudaDriverEntryPointSuccess || !entry)
        return moa_fail(err, MOA_E_DEVICE, "GPU %d (%s): the driver has no cuTensorMapEncodeTiled", c->device,
                        c->name);
    const cuuint32_t box[3] = {WG_TILE_COLUMNS, MOA_PAGE_TOK, 1}, step[3] = {1, 1, 1};
    const CUresult e = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
        out, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, base, size, stride, box, step,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e == CUDA_SUCCESS) return MOA_OK;
    return moa_fail(err, MOA_E_DEVICE, "GPU %d (%s): no tensor map of heads of %d elements: CUDA driver error %d",
                    c->device, c->name, (int)size[0], (int)e);
}

#endif
