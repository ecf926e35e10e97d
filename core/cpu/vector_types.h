/* vector_types.h -- V lanes of float and int32; vfu may lie anywhere in memory. Define V first. */
#include <stdint.h>

typedef float vf __attribute__((vector_size(4 * V)));
typedef int32_t vi __attribute__((vector_size(4 * V)));
typedef float vfu __attribute__((vector_size(4 * V), aligned(4), may_alias));
