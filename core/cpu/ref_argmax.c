/* The next token of each row: argmax of its logits, the smallest id of several; then the row's position moves on, or the row
 * goes idle: an end token, or no room.
 * logits (n_seq, n_vocab) -> id (n_seq), pos (n_seq), log (n_seq, log_stride) */
#include <math.h>

#include "core/cpu/cpu.h"

static bool is_end(const moa_args_argmax *a, int32_t id) {
    for (int32_t i = 0; i < a->n_end; i++)
        if (a->end[i] == id) return true;
    return false;
}

moa_status moa_ref_argmax(moa_backend *b, const moa_args_argmax *a, moa_err *err) {
    (void)b, (void)err;
    for (int32_t s = 0; s < a->n_seq; s++) {
        const float *row = a->logits + (int64_t)s * a->n_vocab;
        const int32_t pos = a->pos[s];
        float best = -INFINITY;
        int32_t id = 0;
        if (pos < 0) continue;
        for (int32_t i = 0; i < a->n_vocab; i++)
            if (row[i] > best) {
                best = row[i];
                id = i;
            }
        a->id[s] = id;
        a->log[(int64_t)s * a->log_stride + pos % a->log_stride] = id;
        a->pos[s] = is_end(a, id) || pos + 1 >= a->limit[s] ? -1 : pos + 1;
    }
    return MOA_OK;
}
