/* y += x
 * x, y (n) */
#include "core/cpu/cpu.h"

moa_status moa_ref_add(moa_backend *b, const moa_args_add *a, moa_err *err) {
    (void)b, (void)err;
    for (int64_t i = 0; i < a->n; i++)
        a->y[i] += a->x[i];
    return MOA_OK;
}
