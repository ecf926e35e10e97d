/* y[t] = row ids[t] of the table.
 * w (n_vocab, d_model) packed, ids (n_tok) -> y (n_tok, d_model) */
#include "core/cpu/cpu.h"

moa_status moa_ref_embed(moa_backend *b, const moa_args_embed *a, moa_err *err) {
    (void)b;
    const int32_t d_model = a->w->n_in;
    for (int32_t t = 0; t < a->n_tok; t++) {
        const int32_t id = a->ids[t];
        if (id < 0 || id >= a->w->n_out)
            return moa_fail(err, MOA_E_INVALID, "token id %d at row %d is outside the vocabulary of %d", id,
                            t, a->w->n_out);
        a->w->type->decode(moa_weight_row(a->w, id), a->y + (int64_t)t * d_model, (size_t)d_model);
    }
    return MOA_OK;
}
