/* upload.cuh -- bytes on their way to the device: of host memory, or of weights that are still in their file (upload.cu). */
#ifndef MOA_CUDA_UPLOAD_CUH
#define MOA_CUDA_UPLOAD_CUH

#include "cuda/cuda_common.cuh"

static const size_t MOA_PIECE_BYTES = (size_t)2 << 20;

/* Where bytes are, and what becomes of them on the device. */
struct moa_cuda_piece {
    const char *host; /* NULL: `from` reads them, from `at` on. Both must be there until the piece has landed */
    moa_weight from;
    size_t at, bytes; /* 1 to MOA_PIECE_BYTES */
    char *dst;        /* device; NULL: rows row0 .. row0 + n_row - 1 of w as stored, which are packed */
    moa_dev_weight *w;
    int32_t row0, n_row;
    bool last; /* w is whole with this one: moa_cuda_weight_whole() */
};

/* Starts reading the piece and returns; pieces land in order, on the stream, some of them in this call. What fails may be told by a
 * later call, and no piece after it lands. */
moa_status moa_cuda_pump_put(moa_cuda *c, const moa_cuda_piece *piece, moa_err *err);
/* All bytes of a weight as they are, from its data or its file, to dst; whole: told so when the last has landed, or NULL. */
moa_status moa_cuda_pump_put_all(moa_cuda *c, const moa_weight *from, void *dst, moa_dev_weight *whole, moa_err *err);
/* Returns when everything has landed: sources may go, and what comes next on the stream finds it. */
moa_status moa_cuda_pump_flush(moa_cuda *c, moa_err *err);
/* module.cu: what is to be known of a weight's values is asked for, on the stream. */
moa_status moa_cuda_weight_whole(moa_cuda *c, moa_dev_weight *w, moa_err *err);

#endif
