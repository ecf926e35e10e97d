/* ops_half.h -- what a float16 or a float32 buffer holds, for programs that compare operations. */
#ifndef MOA_TESTS_OPS_HALF_H
#define MOA_TESTS_OPS_HALF_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline double half_value(uint16_t h) {
    const int e = h >> 10 & 31;
    const double v = e == 31 ? NAN : e == 0 ? ldexp(h & 1023, -24) : ldexp((h & 1023) + 1024, e - 25);
    return h & 0x8000 ? -v : v;
}
/* element i of x, which holds float16 when half is set */
static inline double value(const float *x, size_t i, bool half) {
    if (!half) return (double)x[i];
    uint16_t h;
    memcpy(&h, (const char *)x + 2 * i, 2);
    return half_value(h);
}

#endif
