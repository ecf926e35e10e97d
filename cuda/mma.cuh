/* mma.cuh -- the few instructions of tensor-core kernels: asynchronous copies to shared memory, matrix fragments, products.
 *
 *   mma16816   c (16 x 8, float32) += a (16 x 16, half) b (16 x 8, half), over a warp. Lane t of it, g = t / 4, k = 2 (t % 4):
 *                a[0]: row g, columns k, k+1    a[1]: row g+8    a[2]: row g, columns k+8, k+9    a[3]: row g+8 of those
 *                b[0]: rows k, k+1, column g    b[1]: rows k+8, k+9, column g
 *                c[0], c[1]: row g, columns k, k+1            c[2], c[3]: row g+8
 *   ldsm4      four 8 x 8 matrices of halves; lane t gives the address of row t % 8 of matrix t / 8 (16 bytes, 16-byte aligned) and
 *              gets of each matrix row g, columns k, k+1 -- or, transposed, rows k, k+1 of column g
 *
 * Compute capability 8.0 or later. */
#ifndef MOA_CUDA_MMA_CUH
#define MOA_CUDA_MMA_CUH

#include <cuda_fp16.h>
#include <stdint.h>

__device__ static inline uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes of global memory to shared memory, or 16 zero bytes; both 16-byte aligned */
__device__ static inline void copy16_async(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
__device__ static inline void copies_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/* until all groups but the n newest have arrived, for this thread; the others of the block need a barrier */
template <int N> __device__ static inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

__device__ static inline void ldsm4(uint32_t r[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ static inline void ldsm4_transposed(uint32_t r[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ static inline void mma16816(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 2^x; 0 for -inf */
__device__ static inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ static inline uint32_t pack_halves(float low, float high) {
    const __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&h);
}
__device__ static inline float2 unpack_halves(uint32_t x) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&x));
}

#endif
