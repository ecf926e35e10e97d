/* y = silu(gate) * up = gate / (1 + exp(-gate)) * up
 * gate, up (n) -> y (n), which may be either of them */
#include <math.h>

#include "core/cpu/cpu.h"

moa_status moa_ref_silu_mul(moa_backend *b, const moa_args_silu_mul *a, moa_err *err) {
    (void)b, (void)err;
    for (int64_t i = 0; i < a->n; i++) {
        const double gate = a->gate[i];
        a->y[i] = (float)(gate / (1 + exp(-gate)) * a->up[i]);
    }
    return MOA_OK;
}
