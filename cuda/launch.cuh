/* launch.cuh -- launches that may begin before the kernel in front of them has ended (programmatic dependent launch, sm_90).
 *
 *   front kernel   ---- wait ---- go ------------------ end            go: the next may be placed beside it
 *   next kernel                     [ launch, what is old ] wait ----  wait: the front kernel has ended, all it wrote is there
 *
 * Every kernel launched early waits, so after its wait all kernels in front have ended. Before it a kernel writes nothing global and
 * reads only what no kernel launched early writes: weights, page tables, spans, positions, rows of K and V that earlier steps
 * stored. Those come from copies and ordinary launches, and behind one of these nothing begins before it has ended; nor does anything at
 * the start of a recording. What kernels launched early do write (activations, the newest rows of K and V) is read after the wait, and
 * not through the read-only path (__ldg, __restrict__): the compiler may move such loads in front of it. */
#ifndef MOA_CUDA_LAUNCH_CUH
#define MOA_CUDA_LAUNCH_CUH

#include <cstdlib>
#include <cstring>

#include <cuda_runtime.h>

struct moa_launch {
    dim3 grid, block;
    size_t shared_bytes;
    int cluster; /* blocks along x that form one; 1: none */
    bool early;  /* may begin before the kernel in front has ended */
    cudaStream_t stream;
};

/* whether launches on this device may be early: sm_90, and $MOASCOPE_CUDA_PDL is not "off" */
static inline cudaError_t moa_launch_may_be_early(int device, bool *early) {
    const char *word = getenv("MOASCOPE_CUDA_PDL");
    int major = 0;
    const cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    *early = major >= 9 && !(word && strcmp(word, "off") == 0);
    return e;
}

/* attributes: room for 2 */
static inline cudaLaunchConfig_t moa_launch_config(const moa_launch &l, cudaLaunchAttribute *attributes) {
    cudaLaunchConfig_t c = {};
    c.gridDim = l.grid, c.blockDim = l.block;
    c.dynamicSmemBytes = l.shared_bytes;
    c.stream = l.stream;
    c.attrs = attributes;
    if (l.cluster > 1) {
        cudaLaunchAttribute *a = &attributes[c.numAttrs++];
        a->id = cudaLaunchAttributeClusterDimension;
        a->val.clusterDim.x = (unsigned)l.cluster, a->val.clusterDim.y = a->val.clusterDim.z = 1;
    }
    if (l.early) {
        cudaLaunchAttribute *a = &attributes[c.numAttrs++];
        a->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        a->val.programmaticStreamSerializationAllowed = 1;
    }
    return c;
}

template <typename... P, typename... A>
static inline cudaError_t moa_launch_kernel(const moa_launch &l, void (*kernel)(P...), A... arguments) {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t c = moa_launch_config(l, attributes);
    return cudaLaunchKernelEx(&c, kernel, arguments...);
}

__device__ static inline void moa_launch_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ static inline void moa_launch_go() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
