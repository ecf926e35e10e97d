/* hd.h -- for the few headers that are compiled for host and device alike: plain C, also valid CUDA C++. */
#ifndef MOA_BASE_HD_H
#define MOA_BASE_HD_H

#ifdef __CUDACC__
#define MOA_HD __host__ __device__
#else
#define MOA_HD
#endif

#ifdef __cplusplus
#define MOA_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define MOA_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif

#endif
