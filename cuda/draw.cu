/* draw.cu -- the end of a step that draws a token (backend.h: sample), and the sums of the probe's statistics.
 *
 *   row of logits (n_vocab)   one team of blocks each: a cluster of 8 on sm_90, else one block
 *
 *   pass 1   the best: its key
 *   pass 2   a histogram of best - logit, eighths of a nat: how many and how much each bin holds;  sum and entropy of the softmax
 *   pass 3   the bins down to the one that holds the k-th best -> a list in block 0's shared memory, sorted: top-k is done
 *   then     top-k of at most K_MAX: block 0 goes on alone with its list: top-p, min-p, temperature, draw
 *            without: two passes more for top-p and two for the draw, each a search for the candidate where a running sum of weights
 *            passes a target: histogram, then the list of the one bin where it does
 *
 * A bin or a list that is too full (equal logits by the thousand) is narrowed down by the digits of the key, eight more passes. Weights
 * are integers (sample.h): whatever the order of the atomic additions, the token is the same, and the CPU's. Shared memory adds 32 bits
 * natively, 64 by a loop of compare and swap: a weight's 40 bits go in three parts of 14, which 2^18 elements a block cannot overflow.
 *
 *   H100, us, one row of 49,152 | 128,256 | 151,936 tokens            top-k 40           off, top-p 0.95
 *   v1   64-bit atomics, remote shared memory read by single threads   30 |  46 |  52     86 | 161 | 202
 *   v2   32-bit atomics, remote reads side by side                     20 |  25 |  27     61 | 104 | 137
 *   Of v2's 20 about 14 do not depend on the vocabulary: six waits of the team, the launch, the sorted list. */
#include <cooperative_groups.h>

#include "core/engine/sample.h"
#include "cuda/cuda_common.cuh"
#include "cuda/launch.cuh"

enum {
    THREADS = 1024,
    N_BIN = 256,
    K_MAX = 1024,
    LIST_MAX = 2 * THREADS,
    TEAM = 8,
    TEAM_FROM = 16384,
    LIMB = 14,
    SHARE_MAX = 1 << (32 - LIMB), /* elements of a block */
};
static const uint64_t NO_KEY = 0;

/* the blocks of a row; one block where there are no clusters */
struct team {
#if __CUDA_ARCH__ >= 900
    cooperative_groups::cluster_group g = cooperative_groups::this_cluster();
    __device__ int rank() const { return (int)g.block_rank(); }
    __device__ int size() const { return (int)g.num_blocks(); }
    __device__ void sync() const { g.sync(); }
    template <typename T> __device__ T *at(T *p, int block) const { return g.map_shared_rank(p, block); }
#else
    __device__ int rank() const { return 0; }
    __device__ int size() const { return 1; }
    __device__ void sync() const { __syncthreads(); }
    template <typename T> __device__ T *at(T *p, int) const { return p; }
#endif
};

struct board { /* shared memory of a block */
    uint32_t count[4][N_BIN]; /* of this block: elements, and the three parts of their weights */
    uint64_t total[N_BIN];    /* of the team */
    uint32_t total_count[N_BIN], quarter[4][4][N_BIN], far[3][4][N_BIN];
    uint64_t list[LIST_MAX], sorted[LIST_MAX];
    uint64_t warp[32];
    double soft[32][2], soft_of_block[2], soft_of_team[TEAM][2];
    uint64_t key, best, found; /* this block's best; the team's; of block 0, the answer */
    uint64_t before;     /* running sum in front of the bin that is looked into */
    uint32_t n_list, n_all;
    int bin;
};

struct part { /* this block's share of a row */
    const float *x;
    int first, end;
};

/* --- sums over the threads of a block ------------------------------------------------------------------- */

/* inclusive; all threads call it */
__device__ static uint64_t scan(uint64_t x, board *s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t y = __shfl_up_sync(0xffffffffu, x, d);
        if (lane >= d) x += y;
    }
    __syncthreads();
    if (lane == 31) s->warp[warp] = x;
    __syncthreads();
    if (warp == 0) {
        uint64_t w = s->warp[lane];
        for (int d = 1; d < 32; d *= 2) {
            const uint64_t y = __shfl_up_sync(0xffffffffu, w, d);
            if (lane >= d) w += y;
        }
        s->warp[lane] = w;
    }
    __syncthreads();
    return x + (warp ? s->warp[warp - 1] : 0);
}

__device__ static uint64_t max_key(uint64_t x, board *s) {
    for (int d = 16; d > 0; d /= 2)
        x = max(x, (uint64_t)__shfl_xor_sync(0xffffffffu, x, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) s->warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = s->warp[threadIdx.x % 32];
    for (int d = 16; d > 0; d /= 2)
        x = max(x, (uint64_t)__shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* the keys of the list, best first, into sorted: everyone counts who is better */
__device__ static void sort_list(board *s, int n) {
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const uint64_t mine = s->list[i];
        int better = 0;
        for (int k = 0; k < n; k++)
            better += s->list[k] > mine;
        s->sorted[better] = mine;
    }
    __syncthreads();
}

/* --- the search for the candidate where a running sum passes a target ---------------------------------------- */

/* monotone in the logit: smaller logits never come to an earlier bin */
__device__ static inline int bin_of(float logit, float best) {
    const float d = (best - logit) * 8.0f;
    return d < (float)(N_BIN - 1) ? (int)d : N_BIN - 1; /* NaN (-inf beside -inf) too */
}

__device__ static inline void put(board *s, int bin) {
    atomicAdd(&s->count[0][bin], 1u);
}
__device__ static inline void put(board *s, int bin, uint64_t weight) {
    const uint32_t mask = (1u << LIMB) - 1;
    put(s, bin);
    atomicAdd(&s->count[1][bin], (uint32_t)weight & mask);
    atomicAdd(&s->count[2][bin], (uint32_t)(weight >> LIMB) & mask);
    atomicAdd(&s->count[3][bin], (uint32_t)(weight >> 2 * LIMB));
}

__device__ static void clear(board *s) {
    __syncthreads();
    s->count[threadIdx.x / N_BIN][threadIdx.x % N_BIN] = 0;
    if (threadIdx.x == 0) s->n_list = 0;
    __syncthreads();
}

/* the bins of the team, in every block; returns the sum of all. WEIGHTS: else an element weighs 1 */
template <bool WEIGHTS> __device__ static uint64_t gather(const team &t, board *s) {
    const int bin = threadIdx.x % N_BIN, quarter = threadIdx.x / N_BIN;
    t.sync();
#pragma unroll
    for (int k = 0; k < (WEIGHTS ? 4 : 1); k++) {
        uint32_t near = 0, far = 0; /* a thread reads two blocks */
        if (quarter < t.size()) near = t.at(s->count[k], quarter)[bin];
        if (quarter + 4 < t.size()) far = t.at(s->count[k], quarter + 4)[bin];
        if (k == 0)
            s->quarter[0][quarter][bin] = near + far;
        else { /* parts of up to 8 blocks, each below 2^32 */
            s->quarter[k][quarter][bin] = near;
            s->far[k - 1][quarter][bin] = far;
        }
    }
    t.sync();
    if (threadIdx.x < N_BIN) {
        uint64_t part[4] = {0, 0, 0, 0};
        for (int k = 0; k < (WEIGHTS ? 4 : 1); k++)
            for (int q = 0; q < 4; q++)
                part[k] += (uint64_t)s->quarter[k][q][bin] + (k > 0 ? s->far[k - 1][q][bin] : 0);
        s->total_count[bin] = (uint32_t)part[0];
        s->total[bin] = WEIGHTS ? part[1] + (part[2] << LIMB) + (part[3] << 2 * LIMB) : part[0];
    }
    __syncthreads();
    (void)scan(threadIdx.x < N_BIN ? s->total[threadIdx.x] : 0, s);
    return s->warp[31];
}

/* the bin where the running sum passes target (< the sum of all): bin, before, n_all elements up to its end */
__device__ static void find_bin(board *s, uint64_t target) {
    const uint64_t mine = threadIdx.x < N_BIN ? s->total[threadIdx.x] : 0, up_to = scan(mine, s);
    const uint64_t n = scan(threadIdx.x < N_BIN ? s->total_count[threadIdx.x] : 0, s);
    if (mine > 0 && up_to > target && up_to - mine <= target) {
        s->bin = threadIdx.x;
        s->before = up_to - mine;
        s->n_all = (uint32_t)n;
    }
    __syncthreads();
}

template <typename F> __device__ static inline void each(const part &p, F f) {
    const int n = p.end - p.first;
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += THREADS)
        f(p.x[p.first + i], p.first + i);
}

__device__ static inline void add_to_list(const team &t, board *s, uint64_t key) {
    const uint32_t at = atomicAdd(t.at(&s->n_list, 0), 1u);
    if (at < LIST_MAX) t.at(s->list, 0)[at] = key;
}

/* block 0: of the n sorted keys the first at which before + the running sum passes target */
template <typename W> __device__ static void walk(board *s, int n, uint64_t target, const W &weight) {
    const int a = 2 * threadIdx.x;
    const uint64_t w0 = a < n ? weight(s->sorted[a]) : 0, w1 = a + 1 < n ? weight(s->sorted[a + 1]) : 0;
    const uint64_t up_to = s->before + scan(w0 + w1, s), from = up_to - w0 - w1;
    if (w0 > 0 && from <= target && from + w0 > target) s->found = s->sorted[a];
    if (w1 > 0 && from + w0 <= target && up_to > target) s->found = s->sorted[a + 1];
    __syncthreads();
}

/* among those of a full bin, digit by digit of the key from the top */
template <typename W>
__device__ static uint64_t by_digits(const team &t, board *s, const part &p, float best, int bin, uint64_t target,
                                     const W &weight) {
    uint64_t prefix = 0, before = s->before;
    for (int shift = 56; shift >= 0; shift -= 8) {
        clear(s);
        each(p, [&](float logit, int id) {
            const uint64_t key = moa_rank_key(logit, id);
            if (bin_of(moa_rank_logit(key), best) == bin && (shift == 56 || key >> (shift + 8) == prefix))
                put(s, N_BIN - 1 - (int)(key >> shift & 255), weight(key));
        });
        (void)gather<true>(t, s);
        find_bin(s, target - before);
        before += s->before;
        prefix = prefix << 8 | (uint64_t)(N_BIN - 1 - s->bin);
        __syncthreads();
    }
    return prefix;
}

/* The bins hold the weights. The key at which the running sum passes target, in every block. */
template <typename W>
__device__ static uint64_t search(const team &t, board *s, const part &p, float best, uint64_t target,
                                  const W &weight) {
    find_bin(s, target);
    const int bin = s->bin;
    if (s->total_count[bin] > LIST_MAX) return by_digits(t, s, p, best, bin, target, weight);
    each(p, [&](float logit, int id) {
        const uint64_t key = moa_rank_key(logit, id);
        if (bin_of(moa_rank_logit(key), best) == bin && weight(key) > 0) add_to_list(t, s, key);
    });
    t.sync();
    if (t.rank() == 0) {
        sort_list(s, (int)s->n_list);
        walk(s, (int)s->n_list, target, weight);
    }
    t.sync();
    return *t.at(&s->found, 0);
}

/* fills the bins with weights; returns their sum */
template <typename W>
__device__ static uint64_t fill(const team &t, board *s, const part &p, float best, const W &weight) {
    clear(s);
    each(p, [&](float logit, int id) {
        const uint64_t key = moa_rank_key(logit, id), w = weight(key);
        if (w > 0) put(s, bin_of(moa_rank_logit(key), best), w);
    });
    return gather<true>(t, s);
}

/* --- the steps ------------------------------------------------------------------------------------------------ */

/* every block knows the best afterwards */
__device__ static uint64_t find_best(const team &t, board *s, const part &p) {
    uint64_t key = NO_KEY;
    each(p, [&](float logit, int id) { key = max(key, moa_rank_key(logit, id)); });
    key = max_key(key, s);
    if (threadIdx.x == 0) s->key = key;
    t.sync();
    if (threadIdx.x < 32) {
        key = (int)threadIdx.x < t.size() ? *t.at(&s->key, threadIdx.x) : NO_KEY;
        for (int d = TEAM / 2; d > 0; d /= 2)
            key = max(key, (uint64_t)__shfl_xor_sync(0xffffffffu, key, d));
        if (threadIdx.x == 0) s->best = key;
    }
    __syncthreads();
    return s->best;
}

/* sum of e^x and of x e^x, x = logit - best, of this block into soft_of_block, beside the bins of counts */
__device__ static void soften(board *s, const part &p, float best) {
    double sum = 0, weighted = 0;
    clear(s);
    each(p, [&](float logit, int id) {
        const float clean = moa_rank_logit(moa_rank_key(logit, id)), x = clean - best, e = expf(x);
        if (e > 0.0f) {
            sum += (double)e;
            weighted += (double)e * (double)x;
        }
        put(s, bin_of(clean, best));
    });
    for (int d = 16; d > 0; d /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, d);
        weighted += __shfl_xor_sync(0xffffffffu, weighted, d);
    }
    if (threadIdx.x % 32 == 0) s->soft[threadIdx.x / 32][0] = sum, s->soft[threadIdx.x / 32][1] = weighted;
    __syncthreads();
    if (threadIdx.x < 2) {
        double all = 0;
        for (int w = 0; w < THREADS / 32; w++)
            all += s->soft[w][threadIdx.x];
        s->soft_of_block[threadIdx.x] = all;
    }
}

/* The n best, sorted, in block 0. The bins hold the counts. */
__device__ static void take_best(const team &t, board *s, const part &p, float best, int n) {
    const auto one = [](uint64_t) { return (uint64_t)1; };
    find_bin(s, (uint64_t)n - 1);
    const int bin = s->bin;
    uint64_t least = NO_KEY;
    if (s->n_all > LIST_MAX) { /* n <= K_MAX of them fit */
        least = search(t, s, p, best, (uint64_t)n - 1, one);
        clear(s);
        t.sync();
    }
    each(p, [&](float logit, int id) {
        const uint64_t key = moa_rank_key(logit, id);
        if (least ? key >= least : bin_of(moa_rank_logit(key), best) <= bin) add_to_list(t, s, key);
    });
    t.sync();
    if (t.rank() == 0) sort_list(s, (int)s->n_list);
}

/* block 0: one of the n sorted keys, n <= THREADS */
__device__ static uint64_t draw_of_list(board *s, int n, const moa_sampling &how, uint64_t random) {
    const float best = moa_rank_logit(s->sorted[0]);
    const int i = threadIdx.x;
    const uint64_t key = i < n ? s->sorted[i] : NO_KEY;
    const uint64_t plain = i < n ? moa_weight_of(moa_rank_logit(key), best, 1) : 0, up_to = scan(plain, s);
    const uint64_t reach = moa_top_p_reach(s->warp[31], how.top_p);
    const bool kept = i < n && (i == 0 || ((how.top_p >= 1 || up_to - plain < reach) &&
                                           moa_min_p_keeps(plain, how.min_p)));
    const uint64_t w = kept ? moa_weight_of(moa_rank_logit(key), best, (double)how.temp) : 0;
    const uint64_t sum_to = scan(w, s), target = moa_scale64(random, s->warp[31]);
    if (w > 0 && sum_to > target && sum_to - w <= target) s->found = key;
    __syncthreads();
    return s->found;
}

/* all blocks: any number of candidates */
__device__ static uint64_t draw_of_all(const team &t, board *s, const part &p, uint64_t best_key, const moa_sampling &how,
                                       uint64_t random) {
    const float best = moa_rank_logit(best_key), top_p = how.top_p, min_p = how.min_p;
    const double temp = (double)how.temp;
    uint64_t least = NO_KEY;
    const auto one = [](uint64_t) { return (uint64_t)1; };
    if (how.top_k > 0) {
        (void)fill(t, s, p, best, one);
        least = search(t, s, p, best, (uint64_t)how.top_k - 1, one);
    }
    const auto plain = [&](uint64_t key) {
        return key >= least ? moa_weight_of(moa_rank_logit(key), best, 1) : (uint64_t)0;
    };
    if (top_p < 1) {
        const uint64_t sum = fill(t, s, p, best, plain);
        least = max(least, search(t, s, p, best, moa_top_p_reach(sum, top_p) - 1, plain));
    }
    const auto warm = [&](uint64_t key) {
        const float logit = moa_rank_logit(key);
        const bool kept = key >= least && (min_p <= 0 || key == best_key ||
                                           moa_min_p_keeps(moa_weight_of(logit, best, 1), min_p));
        return kept ? moa_weight_of(logit, best, temp) : (uint64_t)0;
    };
    const uint64_t sum = fill(t, s, p, best, warm);
    return search(t, s, p, best, moa_scale64(random, sum), warm);
}

__device__ static void tell(const moa_args_sample &a, const team &t, board *s, int row, int pos, uint64_t best_key, int id) {
    const uint32_t step = a.step[row];
    moa_told *told = a.told + (int64_t)row * a.told_stride + step % (uint32_t)a.told_stride;
    double sum = 0, weighted = 0;
    for (int b = 0; b < t.size(); b++)
        sum += s->soft_of_team[b][0], weighted += s->soft_of_team[b][1];
    const double log_sum = log(sum), best = (double)moa_rank_logit(best_key);
    const float chosen = moa_rank_logit(moa_rank_key(a.logits[(int64_t)row * a.n_vocab + id], id));
    told->id = id;
    told->pos = pos + 1;
    told->logprob = (float)((double)chosen - best - log_sum);
    told->entropy = sum > 0 ? (float)(log_sum - weighted / sum) : 0.0f;
    told->n_top = a.n_top;
    for (int i = 0; i < MOA_TOP_MAX; i++) {
        told->top[i].id = i < a.n_top ? moa_rank_id(s->sorted[i]) : -1;
        told->top[i].logprob = i < a.n_top ? (float)((double)moa_rank_logit(s->sorted[i]) - best - log_sum) : -INFINITY;
    }
    __threadfence_system();
    *reinterpret_cast<volatile uint32_t *>(&told->stamp) = step + 1;
    a.step[row] = step + 1;
}

/* one thread a row */
__device__ static void move_on(const moa_args_sample &a, int row, int pos, int id) {
    bool done = pos + 1 >= a.limit[row];
    for (int i = 0; i < a.n_end; i++)
        done = done || a.end[i] == id;
    if (a.log) a.log[(int64_t)row * a.log_stride + pos % a.log_stride] = id;
    a.id[row] = id;
    a.pos[row] = done ? -1 : pos + 1;
}

__global__ static void __launch_bounds__(THREADS) sample_kernel(moa_args_sample a) {
    extern __shared__ __align__(16) unsigned char memory[];
    board *s = reinterpret_cast<board *>(memory);
    const team t = {};
    const int row = blockIdx.x / t.size(), pos = a.pos[row], n_vocab = a.n_vocab;
    if (pos < 0) return; /* all blocks of the row */
    const int share = (n_vocab + t.size() - 1) / t.size();
    const part p = {a.logits + (int64_t)row * n_vocab, min(t.rank() * share, n_vocab), min((t.rank() + 1) * share, n_vocab)};
    const uint64_t best_key = find_best(t, s, p);
    const float best = moa_rank_logit(best_key);
    const bool greedy = a.how.temp == 0 || best == -INFINITY;
    const int k = greedy ? 1 : a.how.top_k > 0 && a.how.top_k < n_vocab ? a.how.top_k : n_vocab;
    const bool short_list = k <= K_MAX;
    const int n_list = min(max(short_list ? k : 1, a.n_top), n_vocab);
    uint64_t chosen = best_key;
    soften(s, p, best);
    (void)gather<false>(t, s);
    if (!greedy && !short_list) {
        chosen = draw_of_all(t, s, p, best_key, a.how, moa_random_at(a.how.seed + (uint64_t)row, pos + 1));
        if (a.told) (void)fill(t, s, p, best, [](uint64_t) { return (uint64_t)1; });
    }
    if (a.told || (!greedy && short_list)) take_best(t, s, p, best, n_list);
    if (t.rank() == 0) {
        if ((int)threadIdx.x < 2 * t.size())
            s->soft_of_team[threadIdx.x / 2][threadIdx.x % 2] = t.at(s->soft_of_block, threadIdx.x / 2)[threadIdx.x % 2];
        __syncthreads();
        if (!greedy && short_list)
            chosen = draw_of_list(s, k, a.how, moa_random_at(a.how.seed + (uint64_t)row, pos + 1));
        if (threadIdx.x == 0) {
            const int id = moa_rank_id(chosen);
            if (a.told) tell(a, t, s, row, pos, best_key, id);
            move_on(a, row, pos, id);
        }
    }
    t.sync(); /* nobody leaves while others read its memory */
}

moa_status moa_cuda_sample(moa_backend *b, const moa_args_sample *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    int major = 0;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_seq <= 0) return MOA_OK;
    if (a->n_vocab > MOA_SAMPLE_VOCAB_MAX)
        return moa_fail(err, MOA_E_UNSUPPORTED, "a draw of %d tokens; %d at most", a->n_vocab,
                        (int)MOA_SAMPLE_VOCAB_MAX);
    MOA_CU(c, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device));
    const int team_size = major >= 9 && a->n_vocab >= TEAM_FROM ? (int)TEAM : 1;
    if (moa_ceil_div(a->n_vocab, team_size) > SHARE_MAX)
        return moa_fail(err, MOA_E_UNSUPPORTED, "a draw of %d tokens; %d at most on this GPU", a->n_vocab, team_size * SHARE_MAX);
    MOA_CU(c, moa_allow_shared(sample_kernel, sizeof(board)));
    const moa_launch l = {dim3((unsigned)(a->n_seq * team_size)), dim3(THREADS), sizeof(board), team_size, false, c->stream};
    MOA_CU(c, moa_launch_kernel(l, sample_kernel, *a));
    return MOA_OK;
}

/* --- sums of statistics ------------------------------------------------------------------------------------------ */

/* one warp a head of a layer: lanes take every 32nd query */
__global__ static void stat_sum_kernel(moa_args_stat_sum a) {
    const int head = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (head >= a.n_layer * a.n_head) return;
    const int layer = head / a.n_head, h = head % a.n_head;
    moa_stat_total t = {0, 0, 0, 0, INFINITY, 0x7fffffff, 0};
    for (int i = lane; i < a.n_tok; i += 32) {
        const int weight = a.pos[i] < 0 ? 0 : moa_probe_weight(&a.rows, a.pos[i]);
        if (weight == 0) continue;
        const float *x = a.stat + (((int64_t)layer * a.n_tok + i) * a.n_head + h) * MOA_N_STAT;
        const float cover = x[MOA_STAT_SINK] + x[MOA_STAT_WINDOW];
        t.entropy += weight * (double)x[MOA_STAT_ENTROPY], t.sink += weight * (double)x[MOA_STAT_SINK];
        t.window += weight * (double)x[MOA_STAT_WINDOW], t.distance += weight * (double)x[MOA_STAT_DISTANCE];
        t.n_query += weight;
        if (cover < t.worst_cover) t.worst_cover = cover, t.worst_query = a.pos[i];
    }
    for (int d = 16; d > 0; d /= 2) {
        t.entropy += __shfl_xor_sync(0xffffffffu, t.entropy, d);
        t.sink += __shfl_xor_sync(0xffffffffu, t.sink, d);
        t.window += __shfl_xor_sync(0xffffffffu, t.window, d);
        t.distance += __shfl_xor_sync(0xffffffffu, t.distance, d);
        t.n_query += __shfl_xor_sync(0xffffffffu, t.n_query, d);
        const float cover = __shfl_xor_sync(0xffffffffu, t.worst_cover, d);
        const int query = __shfl_xor_sync(0xffffffffu, t.worst_query, d);
        if (cover < t.worst_cover || (cover == t.worst_cover && query < t.worst_query))
            t.worst_cover = cover, t.worst_query = query;
    }
    if (lane > 0) return;
    moa_stat_total *out = a.total + head;
    out->entropy += t.entropy, out->sink += t.sink, out->window += t.window, out->distance += t.distance;
    out->n_query += t.n_query;
    if (t.worst_cover < out->worst_cover) out->worst_cover = t.worst_cover, out->worst_query = t.worst_query;
}

/* one warp */
__global__ static void stat_count_kernel(moa_args_stat_sum a) {
    for (int i = threadIdx.x; i < a.n_tok; i += 32)
        if (a.pos[i] >= 0 && moa_probe_weight(&a.rows, a.pos[i]) > 0)
            atomicAdd(reinterpret_cast<unsigned long long *>(&a.queries[min(a.pos[i] / a.bucket_tok, MOA_HIST_BUCKETS - 1)]),
                      (unsigned long long)moa_probe_weight(&a.rows, a.pos[i]));
}

moa_status moa_cuda_stat_sum(moa_backend *b, const moa_args_stat_sum *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    const int warps = 4;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    stat_sum_kernel<<<moa_ceil_div(a->n_layer * a->n_head, warps), 32 * warps, 0, c->stream>>>(*a);
    MOA_LAUNCHED(c, "stat_sum");
    stat_count_kernel<<<1, 32, 0, c->stream>>>(*a);
    MOA_LAUNCHED(c, "stat_sum");
    return MOA_OK;
}
