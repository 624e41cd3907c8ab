// SPDX-License-Identifier: Apache-2.0
// Decode attention by parts of contexts: one new token a sequence. The blocks of a sequence take
// turns at its tokens, for the heads that share a cached head (8 of them, the columns of a
// tensor-core tile), so the cache is read once, straight to the operands' registers: the order of a
// head's dimensions is free, and lanes read 16 bytes of it. Two steps are under way before the
// kernel ahead has ended. Blocks want little shared memory, so that they start beside those of the
// kernel ahead, with the same split of a multiprocessor's memory. Where two or up to 8 parts
// are a cluster, its blocks send each other what they summed; else the last block to arrive joins
// the parts, always in their order, so that sums do not depend on which it is. Lengths come from
// device memory: a captured graph serves growing contexts up to the grid's.
#include <cooperative_groups.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/parts.h"
#include "kernels/cuda/split.cuh"

#define PART_STEP 16 // tokens of a warp at a time

// Parts that are joined through memory; clusters of up to 8 with few warps or many, and of two. Few
// fit beside blocks of the kernel ahead and start early, where a step each is all of the context;
// many have more loads in flight.
enum { APART, FEW_WARPS, MANY_WARPS, PAIR };
template <int FORM> constexpr int WARPS = FORM == FEW_WARPS ? 4 : 8;
template <int FORM> constexpr int MOST = FORM == PAIR ? 2 : EK_CU_CLUSTER; // parts of a cluster

template <int D> struct PartLoads { // K and V of 16 tokens
    uint4 k[2][D / 32], v[4][D / 64];
};

// A step's tokens first .. first + 15; past the end, the first again. place: of token lane % 16.
// The row of the token `newest` comes by itself, all others without it.
template <typename T, int D>
__device__ __forceinline__ void load_step(PartLoads<D> &to, const ek_cu_attention &a,
                                          uint32_t kv_head, uint32_t first, uint32_t end,
                                          uint32_t newest, bool late, uint32_t place, uint32_t lane)
{
    uint32_t g = lane / 4, t = lane % 4, begin = __shfl_sync(0xffffffffu, place, 0);
    bool inside = first + lane % 16 < end;
    uint32_t row = (inside ? place : begin) * a.kv.kv_heads + kv_head;
    // (where the first of the step is the newest, those past the end are late, too)
    uint32_t is_late = __ballot_sync(0xffffffffu, (inside ? first + lane % 16 : first) == newest);
    uint32_t mine = late ? is_late : ~is_late;

#pragma unroll
    for (int j = 0; j < 2; j++) {
        const T *at =
            (const T *)a.kv.k + (size_t)__shfl_sync(0xffffffffu, row, g + 8 * j) * D + 8 * t;
        if (mine >> (g + 8 * j) & 1)
#pragma unroll
            for (int i = 0; i < D / 32; i++)
                to.k[j][i] = load_once(at + 32 * i);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) { // tokens 2t, 2t+1, 2t+8, 2t+9
        uint32_t token = 2 * t + j % 2 + j / 2 * 8;
        const T *at = (const T *)a.kv.v + (size_t)__shfl_sync(0xffffffffu, row, token) * D + 8 * g;

        if (mine >> token & 1)
#pragma unroll
            for (int h = 0; h < D / 64; h++)
                to.v[j][h] = load_once(at + 64 * h);
    }
}

// The transpose of an 8 x 8 tile whose rows lanes hold as mma() has them.
__device__ __forceinline__ uint32_t turn_tile(uint32_t v)
{
    uint32_t turned;

    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(v));
    return turned;
}

// One warp's running state: scores are [token][head], sums [dimension][head].
template <typename T, int D> struct PartWarp {
    uint4 q[D / 32];          // of head g: elements 32 i + 8 t ...
    float o[D / 16][4];       // tile 4 h + j, row g + 8 c: dimension 64 h + 8 g + 2 j + c
    float peak[2], weight[2]; // heads 2t, 2t + 1; weights of this lane's tokens

    __device__ __forceinline__ void load_q(const ek_cu_attention &a, uint32_t token,
                                           uint32_t first_head, uint32_t heads, uint32_t lane)
    {
        uint32_t g = lane / 4, t = lane % 4;
        const T *base = (const T *)a.q + token * a.ldq + (first_head + g) * D + 8 * t;

#pragma unroll
        for (int i = 0; i < D / 32; i++)
            q[i] = g < heads ? *reinterpret_cast<const uint4 *>(base + 32 * i)
                             : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
    }

    // Scores of 16 tokens, in units of log2, to probabilities; rescales what was summed before.
    __device__ __forceinline__ void softmax(float s[4])
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = fmaxf(s[h], s[2 + h]);
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
            m = fmaxf(m, peak[h]);
            float shrink = power2(peak[h] - m);
            s[h] = power2(s[h] - m);
            s[2 + h] = power2(s[2 + h] - m);
            weight[h] = weight[h] * shrink + s[h] + s[2 + h];
            peak[h] = m;
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                o[i][h] *= shrink, o[i][2 + h] *= shrink;
        }
    }

    // Tokens first .. first + 15, those from end on masked.
    __device__ __forceinline__ void step(const ek_cu_attention &a, const PartLoads<D> &now,
                                         uint32_t first, uint32_t end, uint32_t lane)
    {
        float s[4] = {};

#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            const uint4 k[2] = {now.k[0][i], now.k[1][i]};
            const uint32_t low[4] = {k[0].x, k[1].x, k[0].y, k[1].y};
            const uint32_t high[4] = {k[0].z, k[1].z, k[0].w, k[1].w};

            mma<T>(s, low, q[i].x, q[i].y);
            mma<T>(s, high, q[i].z, q[i].w);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[i] = first + lane / 4 + i / 2 * 8 < end ? s[i] * (a.scale * LOG2E) : -INFINITY;
        softmax(s);
        accumulate(turn_tile(pack2<T>(s[0], s[1])), turn_tile(pack2<T>(s[2], s[3])), now);
    }

    __device__ __forceinline__ void accumulate(uint32_t p0, uint32_t p1, const PartLoads<D> &now)
    {
#pragma unroll
        for (int h = 0; h < D / 64; h++) {
            const uint4 vv[4] = {now.v[0][h], now.v[1][h], now.v[2][h], now.v[3][h]};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t w[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[i] = j == 0 ? vv[i].x : j == 1 ? vv[i].y : j == 2 ? vv[i].z : vv[i].w;
                const uint32_t v[4] = {__byte_perm(w[0], w[1], 0x5410),
                                       __byte_perm(w[0], w[1], 0x7632),
                                       __byte_perm(w[2], w[3], 0x5410),
                                       __byte_perm(w[2], w[3], 0x7632)};
                mma<T>(o[4 * h + j], v, p0, p1);
            }
        }
    }
};

template <int D, int FORM> struct PartShared {
    alignas(16) float o[WARPS<FORM>][EK_CU_PART_HEADS][D + 8]; // sums of each warp
    alignas(16) float peak[EK_CU_PART_HEADS][WARPS<FORM>], weight[EK_CU_PART_HEADS][WARPS<FORM>];
    union {
        float part_factor[EK_CU_PART_HEADS][EK_CU_MAX_PARTS];
        // of the elements that this block of a cluster finishes, from each of its blocks in turn
        float4 sent[EK_CU_PART_HEADS * (D / 4) + EK_CU_CLUSTER];
    };
    float2 total[EK_CU_CLUSTER][EK_CU_PART_HEADS]; // of a block: maximum and weight of a head
    bool last;
};

// From registers to shared memory.
template <typename T, int D, int FORM>
__device__ __forceinline__ void publish(PartShared<D, FORM> &s, const PartWarp<T, D> &state,
                                        uint32_t warp, uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t head = 2 * (lane % 4) + i;
        float l = state.weight[i];

#pragma unroll
        for (int d = 4; d < 32; d *= 2)
            l += __shfl_xor_sync(0xffffffffu, l, d);
        if (lane < 4) {
            s.peak[head][warp] = state.peak[i];
            s.weight[head][warp] = l;
        }
#pragma unroll
        for (int j = 0; j < D / 16; j += 2)
            *reinterpret_cast<float4 *>(&s.o[warp][head][j / 4 * 64 + lane / 4 * 8 + j % 4 * 2]) =
                make_float4(state.o[j][i], state.o[j][2 + i], state.o[j + 1][i],
                            state.o[j + 1][2 + i]);
    }
}

__device__ __forceinline__ void add_scaled(float4 &a, float f, const float4 &b)
{
    a.x = fmaf(f, b.x, a.x);
    a.y = fmaf(f, b.y, a.y);
    a.z = fmaf(f, b.z, a.z);
    a.w = fmaf(f, b.w, a.w);
}
template <typename T> __device__ __forceinline__ void store_scaled(T *to, const float4 &a, float f)
{
    float v[4] = {a.x * f, a.y * f, a.z * f, a.w * f};

    store4(to, v);
}

// The block's sums of 4 elements of a head, and the head's maximum and weight.
template <int D, int FORM>
__device__ __forceinline__ float4 sum_warps(const PartShared<D, FORM> &s, uint32_t row, uint32_t d,
                                            float2 *total)
{
    float4 sum = make_float4(0, 0, 0, 0);
    float m = -INFINITY, l = 0;

#pragma unroll
    for (int w = 0; w < WARPS<FORM>; w++)
        m = fmaxf(m, s.peak[row][w]);
    float base = m == -INFINITY ? 0.0f : m;
#pragma unroll
    for (int w = 0; w < WARPS<FORM>; w++) { // a warp without tokens published zeros
        float f = power2(s.peak[row][w] - base);

        l = fmaf(f, s.weight[row][w], l);
        add_scaled(sum, f, *reinterpret_cast<const float4 *>(&s.o[w][row][d]));
    }
    *total = make_float2(m, l);
    return sum;
}

// The block's sums: to the output when the context has one part, else to memory, unnormalised.
template <typename T, int D, int FORM>
__device__ __forceinline__ void join_warps(const ek_cu_attention &a, const PartShared<D, FORM> &s,
                                           uint32_t heads, size_t first, bool only, T *out)
{
    for (uint32_t i = threadIdx.x; i < heads * (D / 4); i += (32 * WARPS<FORM>)) {
        uint32_t row = i / (D / 4), d = i % (D / 4) * 4;
        size_t part = first + (size_t)row * a.n_parts + blockIdx.x;
        float2 total; // weight 0: no context at all
        float4 sum = sum_warps(s, row, d, &total);

        if (only) {
            store_scaled(out + row * D + d, sum, total.y > 0 ? 1.0f / total.y : 0.0f);
            continue;
        }
        __stcg(reinterpret_cast<float4 *>(a.partial + part * D + d), sum);
        if (d == 0)
            __stcg(a.totals + part, total);
    }
}

// All parts of the heads, in order.
template <typename T, int D, int FORM>
__device__ __forceinline__ void join_parts(const ek_cu_attention &a, PartShared<D, FORM> &s,
                                           uint32_t heads, size_t first, uint32_t parts, T *out)
{
    uint32_t lane = threadIdx.x % 32;

    for (uint32_t row = threadIdx.x / 32; row < heads; row += WARPS<FORM>) {
        const float2 *totals = a.totals + first + (size_t)row * a.n_parts;
        float2 part[2]; // of this lane
        float f[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            part[i] =
                lane + 32 * i < parts ? __ldcg(totals + lane + 32 * i) : make_float2(-INFINITY, 0);
        float m = warp_max(fmaxf(part[0].x, part[1].x));
#pragma unroll
        for (int i = 0; i < 2; i++)
            f[i] = power2(part[i].x - m);
        float l = warp_sum(f[0] * part[0].y + f[1] * part[1].y);
        s.part_factor[row][lane] = f[0] / l;
        s.part_factor[row][lane + 32] = f[1] / l;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < heads * (D / 4); i += (32 * WARPS<FORM>)) {
        uint32_t row = i / (D / 4), d = i % (D / 4) * 4;
        const float *at = a.partial + (first + (size_t)row * a.n_parts) * D + d;
        float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll 8
        for (uint32_t p = 0; p < parts; p++)
            add_scaled(sum, s.part_factor[row][p],
                       __ldcg(reinterpret_cast<const float4 *>(at + (size_t)p * D)));
        store_scaled(out + row * D + d, sum, 1.0f);
    }
}

// True in the block of a sequence and cached head that arrives last.
template <int D, int FORM>
__device__ __forceinline__ bool last_to_arrive(const ek_cu_attention &a, PartShared<D, FORM> &s,
                                               uint32_t parts)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *arrived = a.arrived + (size_t)blockIdx.z * gridDim.y + blockIdx.y;
        s.last = atomicAdd(arrived, 1u) == parts - 1;
        if (s.last)
            *arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return s.last;
}

// The parts of a cluster's blocks: each sends what it has of an element to the block that finishes
// it, which adds them in their order. A part without tokens has the weight 0.
template <int D, int FORM>
__device__ __forceinline__ void send_sums(PartShared<D, FORM> &s, uint32_t heads)
{
#if __CUDA_ARCH__ >= 900
    auto cluster = cooperative_groups::this_cluster();
    uint32_t blocks = gridDim.x, each = (heads * (D / 4) + blocks - 1) / blocks;

    cluster.barrier_wait(); // all have begun: their memory may be written
    for (uint32_t i = threadIdx.x; i < heads * (D / 4); i += (32 * WARPS<FORM>)) {
        uint32_t row = i / (D / 4), d = i % (D / 4);
        float2 total;
        float4 sum = sum_warps(s, row, 4 * d, &total);
        PartShared<D, FORM> *to = cluster.map_shared_rank(&s, i % blocks);

        to->sent[blockIdx.x * each + i / blocks] = sum;
        if (d < blocks) // that many neighbours are of as many blocks
            to->total[blockIdx.x][row] = total;
    }
#endif
}
template <typename T, int D, int FORM>
__device__ __forceinline__ void join_cluster(PartShared<D, FORM> &s, uint32_t heads, T *out)
{
#if __CUDA_ARCH__ >= 900
    uint32_t blocks = gridDim.x, all = heads * (D / 4), each = (all + blocks - 1) / blocks;

    send_sums(s, heads);
    cooperative_groups::this_cluster().sync();
    for (uint32_t i = threadIdx.x; i * blocks + blockIdx.x < all; i += (32 * WARPS<FORM>)) {
        uint32_t element = i * blocks + blockIdx.x, row = element / (D / 4);
        float4 sum = make_float4(0, 0, 0, 0);
        float m = -INFINITY, l = 0;

#pragma unroll
        for (int p = 0; p < MOST<FORM>; p++)
            if (p < (int)blocks)
                m = fmaxf(m, s.total[p][row].x);
        m = m == -INFINITY ? 0.0f : m;
#pragma unroll
        for (int p = 0; p < MOST<FORM>; p++)
            if (p < (int)blocks) {
                float2 total = s.total[p][row];
                float f = power2(total.x - m);

                l = fmaf(f, total.y, l);
                add_scaled(sum, f, s.sent[p * each + i]);
            }
        store_scaled(out + 4 * element, sum, l > 0 ? 1.0f / l : 0.0f);
    }
#endif
}

// Where a token is in the cache, whatever the length of the context: nowhere behind it.
__device__ __forceinline__ uint32_t place_of(const ek_cu_attention &a, uint32_t seq, uint32_t token)
{
    return (uint32_t)slot_of(a, seq, min(token, a.batch.max_blocks * a.kv.page - 1));
}
__host__ __device__ __forceinline__ uint32_t part_tiles(uint32_t group)
{
    return (group + EK_CU_PART_HEADS - 1) / EK_CU_PART_HEADS;
}

// The batch's description was uploaded, and the cache of earlier tokens written, before the kernels
// of this step: both are read before the end of the kernel ahead is awaited. The new token's row is
// read after it.
template <typename T, int D, int FORM>
__global__ void __launch_bounds__((32 * WARPS<FORM>)) parts_k(const ek_cu_attention a)
{
    extern __shared__ uint4 raw[];
    PartShared<D, FORM> &shared = *reinterpret_cast<PartShared<D, FORM> *>(raw);
    const uint32_t round = PART_STEP * WARPS<FORM>, stride = round * gridDim.x;
    uint32_t group = a.heads / a.kv.kv_heads, tiles = part_tiles(group), seq = blockIdx.z;
    uint32_t kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles, lane = threadIdx.x % 32;
    uint32_t warp = threadIdx.x / 32, head = kv_head * group + EK_CU_PART_HEADS * tile;
    uint32_t first = blockIdx.x * round + PART_STEP * warp;
    uint32_t places[2] = {place_of(a, seq, first + lane % 16),
                          place_of(a, seq, first + stride + lane % 16)};

#if __CUDA_ARCH__ >= 900
    if (FORM != APART)
        cooperative_groups::this_cluster().barrier_arrive();
#endif
    pdl_next();
    uint32_t heads = min(group - EK_CU_PART_HEADS * tile, (uint32_t)EK_CU_PART_HEADS);
    uint32_t token = (uint32_t)a.batch.seq_start[seq];
    uint32_t len = (uint32_t)max(a.batch.kv_len[seq], 0);
    uint32_t parts = min((len + round - 1) / round, gridDim.x);
    bool none = (int32_t)token == a.batch.seq_start[seq + 1];
    T *out = (T *)a.out + token * a.ldo + head * D;
    PartWarp<T, D> state;
    PartLoads<D> even, odd;
    auto load = [&](auto &to, uint32_t at, uint32_t place, bool late) {
        if (at < len && (!late || at + PART_STEP >= len))
            load_step<T, D>(to, a, kv_head, at, len, len - 1, late, place, lane);
    };
    load(even, first, places[0], false);
    load(odd, first + stride, places[1], false);
    pdl_wait();
    if (none)
        return; // a sequence without a new token
    if (FORM == APART && blockIdx.x >= max(parts, 1u))
        return;
    load(even, first, places[0], true);
    load(odd, first + stride, places[1], true);
    state.load_q(a, token, head, heads, lane);
    auto step = [&](auto &now, uint32_t at) {
        uint32_t next = at + 2 * stride;

        if (at >= len)
            return;
        state.step(a, now, at, len, lane);
        if (next < len)
            load_step<T, D>(now, a, kv_head, next, len, ~0u, false,
                            place_of(a, seq, next + lane % 16), lane);
    };
    for (uint32_t at = first; at < len; at += 2 * stride) {
        step(even, at);
        step(odd, at + stride);
    }
    publish(shared, state, warp, lane);
    __syncthreads();
    if constexpr (FORM != APART) {
        join_cluster(shared, heads, out);
        return;
    }
    size_t at = ((size_t)seq * a.heads + head) * a.n_parts;
    join_warps(a, shared, heads, at, parts <= 1, out);
    if (parts > 1 && last_to_arrive(a, shared, parts))
        join_parts(a, shared, heads, at, parts, out);
}

template <typename T, int D, int FORM>
static cudaError_t form_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t tiles = part_tiles(a->heads / a->kv.kv_heads);
    dim3 grid(a->n_parts, a->kv.kv_heads * tiles, a->batch.n_seqs);
    cudaError_t r = split_memory(parts_k<T, D, FORM>, SPLIT_LOADS);

    return r == cudaSuccess
               ? launch_cluster(q, parts_k<T, D, FORM>, grid, 32 * WARPS<FORM>,
                                sizeof(PartShared<D, FORM>), a->team > 1 ? a->n_parts : 1, *a)
               : r;
}

template <typename T, int D>
static cudaError_t parts_launch(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    uint32_t blocks = a->batch.n_seqs * a->kv.kv_heads * part_tiles(a->heads / a->kv.kv_heads);

    if (a->team <= 1 || a->n_parts <= 1)
        return form_launch<T, D, APART>(q, a);
    if (a->team == 2)
        return form_launch<T, D, PAIR>(q, a);
    if (a->part == PART_STEP * WARPS<FEW_WARPS> || 2 * blocks * a->n_parts > q->n_sm)
        return form_launch<T, D, FEW_WARPS>(q, a);
    return form_launch<T, D, MANY_WARPS>(q, a);
}

extern "C" cudaError_t ek_cu_attention_parts(const struct ek_cu_queue *q, enum ek_dtype act,
                                             const struct ek_cu_attention *a)
{
    bool narrow = a->kv.head_dim == 64;

    if (act == EK_BF16)
        return narrow ? parts_launch<bf16, 64>(q, a) : parts_launch<bf16, 128>(q, a);
    if (act == EK_F16)
        return narrow ? parts_launch<f16, 64>(q, a) : parts_launch<f16, 128>(q, a);
    return cudaErrorNotSupported;
}
