/* matmul_few.cu -- y = x W^T for 2 to 64 rows of x: tensor cores, every weight read and decoded once for all rows.
 *
 *   mma m16n8k16     16 outputs x 16 of n_in (W, decoded in registers)  times  16 of n_in x 8 rows of x  ->  float32
 *
 *   Which of n_in stand where in an instruction is free as long as W and x agree. So lane 4 g + t (g = 0..7, t = 0..3) of a warp takes
 *   from rows g and g + 8 of its 16 the whole unit t of four (128 of n_in), and eight instructions eat them, four weights a time (fragment.cuh):
 *
 *      x as the same lane needs it, made by tile_x_v2 from float32, 16 bytes for two instructions:
 *           [n_in / 128][rows / 8][4][32 lanes] 16 bytes
 *      F16, BF16: 16 bytes a load are 8 of n_in, two instructions: lane t has 32 c + 8 t .. + 7 of the 128, c = 0..3
 *
 *   block            16 MT outputs, all rows of x; its warps share n_in by turns and add up at the end, in order of their numbers
 *
 * NMSE 9e-8, of formats with a minimum up to 3e-7, where the limit is 1e-6. Where rows are whole stages matmul_ring.cu is taken instead.
 * Sums are float32. */
#include "cuda/fragment.cuh"

static constexpr int X_THREADS = 256;
/* of a block; with all 64 rows of x a thread needs more than 128 registers */
template <int NT> struct warps_of { static constexpr int value = NT >= 8 ? 8 : 16; };

/* --- x, as the tensor cores read it ----------------------------------------------------------------------- */

struct tile_x_job {
    const float *x; /* (n_tok, n_in) */
    uint4 *to;
    float *back; /* (8 n_nt): what undoes the scale of each row */
    int n_tok, n_in, n_kt, n_nt;
    bool coded; /* order of packed units, else of single elements */
};

/* grid: rows, padded to 8 */
__global__ static void __launch_bounds__(X_THREADS) tile_x_v2(tile_x_job j) {
    __shared__ uint32_t s[32];
    const int tok = (int)blockIdx.x, g = tok % 8, nt = tok / 8;
    const bool inside = tok < j.n_tok;
    const float *x = j.x + (int64_t)(inside ? tok : 0) * j.n_in;
    uint32_t most = 0;
    for (int i = threadIdx.x; inside && i < j.n_in; i += X_THREADS)
        most = max(most, magnitude(x[i]));
    most = block_max_bits(most, s);
    const float scale = fragment_x_scale(most);
    for (int q = threadIdx.x; q < j.n_kt * 16; q += X_THREADS) {
        const int kt = q / 16, t = q / 4 % 4, c = q % 4;
        const int k = 128 * kt + (j.coded ? 32 * t + 8 * c : 32 * c + 8 * t);
        float v[8];
#pragma unroll
        for (int e = 0; e < 8; e++)
            v[e] = inside && k + e < j.n_in ? x[k + e] : 0.0f;
        j.to[(((int64_t)kt * j.n_nt + nt) * 4 + c) * 32 + 4 * g + t] =
            fragment_x(v, scale, j.coded);
    }
    if (threadIdx.x == 0) j.back[tok] = 1.0f / scale;
}

/* --- W, as the tensor cores read it ----------------------------------------------------------------------- */

struct few_job {
    packed_view w; /* plain types: low is the matrix, n_unit its 16-byte vectors a row */
    const uint4 *x;
    const float *back;
    matmul_out out;
    float scale; /* of the weights */
    int n_kt, n_nt;
};

template <typename F> struct few_packed {
    static constexpr bool AHEAD = true; /* the next part is on its way while one is used */
    struct raw {
        packed_raw<F> r;
    };
    typedef fragment_scale ready;
    __device__ static inline void load(const few_job &j, int row, int kt, int t, raw &r) {
        const int u = 4 * kt + t;
        if (row < j.out.n_out && u < j.w.n_unit)
            packed_load<F>(j.w, row, u, r.r);
        else
            packed_none<F>(r.r);
    }
    __device__ static inline ready prepare(const few_job &j, const raw &r, int kt, int t) {
        return fragment_prepare<F>(r.r, 4 * kt + t, j.scale);
    }
    __device__ static inline void get(const raw &r, const ready &p, float, int i, uint32_t out[2]) {
        fragment_packed<F>(r.r, p, i, out);
    }
};

template <int ID> struct few_plain {
    static constexpr bool AHEAD = false; /* a part is four times as long */
    struct raw {
        uint32_t q[16];
    };
    struct ready {};
    __device__ static inline void load(const few_job &j, int row, int kt, int t, raw &r) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int u = 16 * kt + 4 * c + t;
            const bool inside = row < j.out.n_out && u < j.w.n_unit;
            store4(r.q + 4 * c, inside ? load_stream(j.w.low + 16 * ((int64_t)row * j.w.n_unit + u))
                                       : make_uint4(0, 0, 0, 0));
        }
    }
    __device__ static inline ready prepare(const few_job &, const raw &, int, int) {
        return {};
    }
    __device__ static inline void get(const raw &r, const ready &, float scale, int i, uint32_t out[2]) {
#pragma unroll
        for (int k = 0; k < 2; k++)
            out[k] = fragment_plain<ID>(r.q[2 * i + k], scale);
    }
};

/* d += a b, 16 x 8 += 16 x 16 times 16 x 8 */
__device__ static inline void mma16816(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* --- the product ------------------------------------------------------------------------------------------ */

template <typename T, int MT, int NT> struct few_part {
    typename T::raw w[MT][2]; /* rows g and g + 8 of each 16 */

    __device__ inline void load(const few_job &j, int row0, int kt) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                T::load(j, row0 + 16 * m + 8 * k + g, kt, t, w[m][k]);
    }
    __device__ inline void use(const few_job &j, int kt, float acc[MT][NT][4]) const {
        const int lane = threadIdx.x % 32, t = threadIdx.x % 4;
        typename T::ready p[MT][2];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                p[m][k] = T::prepare(j, w[m][k], kt, t);
        const uint4 *x = j.x + (int64_t)kt * j.n_nt * 128 + lane;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            uint4 b[NT];
#pragma unroll
            for (int n = 0; n < NT; n++)
                b[n] = n < j.n_nt ? __ldg(x + (n * 4 + c) * 32) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    uint32_t top[2], bottom[2];
                    T::get(w[m][0], p[m][0], j.scale, 2 * c + i, top);
                    T::get(w[m][1], p[m][1], j.scale, 2 * c + i, bottom);
                    const uint32_t a[4] = {top[0], bottom[0], top[1], bottom[1]};
#pragma unroll
                    for (int n = 0; n < NT; n++)
                        mma16816(acc[m][n], a, i ? b[n].z : b[n].x, i ? b[n].w : b[n].y);
                }
        }
    }
};

/* adds up the warps' parts of 8 rows of x and writes them; s: [warps][MT][4][32] */
template <int MT>
__device__ static inline void few_write(const few_job &j, int row0, int n, float acc[MT][4], float *s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warp = (int)blockDim.x / 32;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[((warp * MT + m) * 4 + i) * 32 + lane] = acc[m][i];
    __syncthreads();
    for (int e = threadIdx.x; e < 16 * MT * 8; e += (int)blockDim.x) {
        const int r = e % (16 * MT), col = e / (16 * MT), o = row0 + r, tok = 8 * n + col;
        if (o >= j.out.n_out || tok >= j.out.n_tok) continue;
        const int at = ((r / 16) * 4 + (r % 16 / 8 * 2 + col % 2)) * 32 + r % 8 * 4 + col / 2;
        float sum = 0;
        for (int w = 0; w < n_warp; w++)
            sum += s[w * MT * 128 + at];
        matmul_write(j.out, tok, o, sum * j.back[tok] * (1.0f / j.scale));
    }
}

template <typename T, int MT, int NT>
__global__ static void __launch_bounds__(warps_of<NT>::value * 32, 1) few_v2(few_job j) {
    __shared__ float s[warps_of<NT>::value * MT * 128];
    const int row0 = (int)blockIdx.x * 16 * MT, n_warp = (int)blockDim.x / 32;
    float acc[MT][NT][4] = {};
    int kt = (int)threadIdx.x / 32;
    if constexpr (NT <= 2 && T::AHEAD) {
        few_part<T, MT, NT> a, b;
        if (kt < j.n_kt) a.load(j, row0, kt);
        while (kt < j.n_kt) {
            if (kt + n_warp < j.n_kt) b.load(j, row0, kt + n_warp);
            a.use(j, kt, acc);
            kt += n_warp;
            if (kt >= j.n_kt) break;
            if (kt + n_warp < j.n_kt) a.load(j, row0, kt + n_warp);
            b.use(j, kt, acc);
            kt += n_warp;
        }
    } else {
        few_part<T, MT, NT> a;
        for (; kt < j.n_kt; kt += n_warp) {
            a.load(j, row0, kt);
            a.use(j, kt, acc);
        }
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
        if (n >= j.n_nt) break;
        float part[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                part[m][i] = acc[m][n][i];
        few_write<MT>(j, row0, n, part, s);
    }
}

/* --- launchers ------------------------------------------------------------------------------------------ */

template <typename T, int MT, int NT>
static moa_status few_launch_as(moa_cuda *c, const few_job &j, moa_err *err) {
    const unsigned grid = (unsigned)moa_ceil_div(j.out.n_out, 16 * MT);
    constexpr int MOST = warps_of<NT>::value;
    const unsigned threads = 32u * (unsigned)(j.n_kt < MOST ? j.n_kt : MOST);
    few_v2<T, MT, NT><<<grid, threads, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "product of a few rows");
    return MOA_OK;
}

template <typename T> static moa_status few_launch(moa_cuda *c, const few_job &j, moa_err *err) {
    if (j.n_nt == 1 && j.out.n_out < 32 * c->n_sm * 7 / 8) return few_launch_as<T, 1, 1>(c, j, err);
    if (j.n_nt == 1) return few_launch_as<T, 2, 1>(c, j, err);
    if (j.n_nt == 2) return few_launch_as<T, 2, 2>(c, j, err);
    if (j.n_nt <= 4) return few_launch_as<T, 2, 4>(c, j, err);
    return few_launch_as<T, 2, 8>(c, j, err);
}

bool moa_cuda_few_fits(const moa_dev_weight *w) {
    return w->packed || ((w->type == MOA_F16 || w->type == MOA_BF16) && w->n_in % 8 == 0);
}

moa_status moa_cuda_matmul_few(moa_cuda *c, const moa_args_matmul *a, moa_err *err) {
    const moa_dev_weight *w = a->w;
    const int n_nt = moa_ceil_div(a->n_tok, 8), n_kt = moa_ceil_div(w->n_in, 128);
    const size_t x_bytes = (size_t)n_kt * (size_t)n_nt * 4 * 32 * 16;
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, x_bytes + (size_t)n_nt * 8 * sizeof(float),
                                reinterpret_cast<void **>(&space), err));
    float *const back = reinterpret_cast<float *>(space + x_bytes);
    const tile_x_job x = {a->x,     reinterpret_cast<uint4 *>(space), back, a->n_tok, w->n_in, n_kt, n_nt,
                          w->packed};
    const unsigned rows = (unsigned)n_nt * 8;
    tile_x_v2<<<rows, X_THREADS, 0, c->stream>>>(x);
    MOA_LAUNCHED(c, "x for the tensor cores");
    few_job j = {{}, x.to, back, matmul_out_of(a), w->f16_scale, n_kt, n_nt};
    uint8_t *const data = static_cast<uint8_t *>(w->data);
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id:                                                                                    \
        (void)packed_place<packed_##stem>(data, w->n_out, w->n_in / 32, &j.w);                               \
        return few_launch<few_packed<packed_##stem>>(c, j, err);
        MOA_PACKED_MAP(X)
#undef X
    default: break;
    }
    j.w.low = data;
    j.w.n_unit = w->n_in / 8;
    if (w->type == MOA_F16) return few_launch<few_plain<moa_f16_id>>(c, j, err);
    if (w->type == MOA_BF16) return few_launch<few_plain<moa_bf16_id>>(c, j, err);
    return moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no CUDA product", (int)w->type);
}
