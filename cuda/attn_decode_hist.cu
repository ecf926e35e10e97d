/* attn_decode_hist.cu -- the histogram of distances out of what each unit of 16 tokens left (attn_decode_mma.cuh): for kernels that attend by
 * units, the whole step of one row among them. That of attn_decode_v2.cu goes by pages and stands there. */
#include "cuda/attn_decode_mma.cuh"

/* A of head's keys in a unit that lie in a bin; bin < 0: all of them. 0 where the head sees none of them or they are not there */
__device__ static float mass_of_unit(const mma_job &j, int seq, int head, int pos, int span, int unit,
                                     int bin, float lse2) {
    const int last = min(unit * UNIT_TOK + UNIT_TOK - 1, pos);
    if (unit * UNIT_TOK > pos || (unit >= SINK_UNITS && !moa_sees(span, pos, last))) return 0;
    if (!j.kv.page(seq, head / j.group, unit / UNITS_PAGE)) return 0;
    const float4 x = j.mass[((int64_t)seq * j.n_head + head) * (j.kv.max_pages * UNITS_PAGE) + unit];
    const int first = mass_bin(pos, unit);
    const float sum = bin < 0 ? x.y + x.z : bin == first ? x.y : bin == first + 1 ? x.z : 0.0f;
    return sum > 0.0f ? sum * exp2_fast(x.x - lse2) : 0.0f;
}

/* grid: (ceil((1 + n_bin) / WARPS_HIST), n_head). A warp a bin: 0 the sink, 1 + b keys from 64 on at distances of bin b, the last all beyond.
 * Summed over the sequences in order. */
static constexpr int WARPS_HIST = 4;
__global__ static void __launch_bounds__(WARPS_HIST * 32) hist_units(const mma_job j) {
    const int slot = (int)blockIdx.x * WARPS_HIST + (int)threadIdx.x / 32, lane = threadIdx.x % 32,
              head = blockIdx.y, n_bin = j.probe.n_bin;
    if (slot > n_bin) return;
    for (int seq = 0; seq < j.n_seq; seq++) {
        const int pos = j.pos[seq], bin = slot - 1;
        if (pos < 0) continue;
        const int span = j.span[seq * j.span_stride + head];
        const float lse2 = j.lse[(int64_t)seq * j.n_head + head] * LOG2E;
        float mass = 0;
        if (slot == 0) {
            if (lane < SINK_UNITS) mass = mass_of_unit(j, seq, head, pos, span, lane, -1, lse2);
        } else { /* keys at distances bin * 64 and more; the last bin's go back to the sink */
            const int newest = pos - bin * MOA_PAGE_TOK,
                      oldest = slot == n_bin ? MOA_SINK_TOK : newest - MOA_PAGE_TOK + 1;
            for (int unit = max(max(oldest, 0) / UNIT_TOK, SINK_UNITS) + lane; unit * UNIT_TOK <= newest;
                 unit += 32) {
                if (slot < n_bin)
                    mass += mass_of_unit(j, seq, head, pos, span, unit, bin, lse2);
                else
                    for (int b = max(mass_bin(pos, unit), bin); b <= mass_bin(pos, unit) + 1; b++)
                        mass += mass_of_unit(j, seq, head, pos, span, unit, b, lse2);
            }
        }
        mass = warp_sum(mass);
        const int bucket = min(pos / j.probe.bucket_tok, (int)MOA_HIST_BUCKETS - 1);
        if (lane == 0) j.probe.hist[((int64_t)head * MOA_HIST_BUCKETS + bucket) * (1 + n_bin) + slot] += mass;
    }
}

moa_status moa_cuda_decode_hist(moa_cuda *c, const mma_job *j, moa_err *err) {
    if (!j->probe.hist) return MOA_OK;
    const dim3 bins((unsigned)moa_ceil_div(j->probe.n_bin + 1, WARPS_HIST), (unsigned)j->n_head);
    hist_units<<<bins, WARPS_HIST * 32, 0, c->stream>>>(*j);
    MOA_LAUNCHED(c, "attn_decode's histogram");
    return MOA_OK;
}
