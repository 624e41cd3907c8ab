// SPDX-License-Identifier: Apache-2.0
// Shared by the kernels of decode attention by parts (attention_parts.cu, attention_boxed.cu):
// which part a block takes, a warp's running state, and how warps' and blocks' sums are joined,
// always in their order.
#ifndef EK_CUDA_PARTS_JOIN_CUH
#define EK_CUDA_PARTS_JOIN_CUH

#include <cooperative_groups.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/parts.h"

#define PART_STEP 16 // tokens of a warp at a time

// The transpose of an 8 x 8 tile whose rows lanes hold as mma() has them.
__device__ __forceinline__ uint32_t turn_tile(uint32_t v)
{
    uint32_t turned;

    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(v));
    return turned;
}

// One warp's sums [dimension][head], of tiles of 16 dimensions, and what they are relative to.
template <int D> struct PartState {
    float o[D / 16][4];
    float peak[2], weight[2]; // heads 2t, 2t + 1; weights of this lane's tokens

    __device__ __forceinline__ void begin()
    {
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        peak[0] = peak[1] = -INFINITY;
        weight[0] = weight[1] = 0;
    }
    // Scores of N times 16 tokens [token][head], in units of log2, to probabilities; rescales what
    // was summed before.
    template <int N> __device__ __forceinline__ void softmax(float (&s)[N][4])
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = peak[h], sum = 0;

#pragma unroll
            for (int i = 0; i < N; i++)
                m = fmaxf(m, fmaxf(s[i][h], s[i][2 + h]));
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
            float shrink = power2(peak[h] - m);
#pragma unroll
            for (int i = 0; i < N; i++) {
                s[i][h] = power2(s[i][h] - m);
                s[i][2 + h] = power2(s[i][2 + h] - m);
                sum += s[i][h] + s[i][2 + h];
            }
            weight[h] = weight[h] * shrink + sum;
            peak[h] = m;
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                o[i][h] *= shrink, o[i][2 + h] *= shrink;
        }
    }
};

// Of a block of WARPS, in clusters of MOST; ROOM: bytes that a warp needs before its sums take
// their place.
template <int D, int WARPS, int MOST, uint32_t ROOM = 0> struct PartShared {
    static constexpr int dim = D, warps = WARPS, most = MOST;
    static constexpr uint32_t SUMS = EK_CU_PART_HEADS * (D + 8) * sizeof(float);

    alignas(16) uint8_t place[WARPS][ROOM > SUMS ? ROOM : SUMS];
    alignas(16) float peak[EK_CU_PART_HEADS][WARPS], weight[EK_CU_PART_HEADS][WARPS];
    union {
        float part_factor[EK_CU_PART_HEADS][EK_CU_MAX_PARTS];
        // of the elements that this block of a cluster finishes, from each of its blocks in turn
        float4 sent[EK_CU_PART_HEADS * (D / 4) + EK_CU_CLUSTER];
    };
    float2 total[EK_CU_CLUSTER][EK_CU_PART_HEADS]; // of a block: maximum and weight of a head
    bool last;

    __device__ __forceinline__ float *sums(uint32_t warp, uint32_t head, uint32_t d) const
    {
        return (float *)(place[warp] + (head * (D + 8) + d) * sizeof(float));
    }
};

// A warp's maxima and weights to shared memory.
template <int D, typename S>
__device__ __forceinline__ void publish_weights(S &s, const PartState<D> &state, uint32_t warp,
                                                uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float l = state.weight[i];

#pragma unroll
        for (int d = 4; d < 32; d *= 2)
            l += __shfl_xor_sync(0xffffffffu, l, d);
        if (lane < 4) {
            s.peak[2 * lane + i][warp] = state.peak[i];
            s.weight[2 * lane + i][warp] = l;
        }
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
template <typename S>
__device__ __forceinline__ float4 sum_warps(const S &s, uint32_t row, uint32_t d, float2 *total)
{
    float4 sum = make_float4(0, 0, 0, 0);
    float m = -INFINITY, l = 0;

#pragma unroll
    for (int w = 0; w < S::warps; w++)
        m = fmaxf(m, s.peak[row][w]);
    float base = m == -INFINITY ? 0.0f : m;
#pragma unroll
    for (int w = 0; w < S::warps; w++) { // a warp without tokens published zeros
        float f = power2(s.peak[row][w] - base);

        l = fmaf(f, s.weight[row][w], l);
        add_scaled(sum, f, *reinterpret_cast<const float4 *>(s.sums(w, row, d)));
    }
    *total = make_float2(m, l);
    return sum;
}

// The block's sums: to the output when the context has one part, else to memory, unnormalised.
template <typename T, typename S>
__device__ __forceinline__ void join_warps(const ek_cu_attention &a, const S &s, uint32_t heads,
                                           size_t first, bool only, T *out)
{
    for (uint32_t i = threadIdx.x; i < heads * (S::dim / 4); i += (32 * S::warps)) {
        uint32_t row = i / (S::dim / 4), d = i % (S::dim / 4) * 4;
        size_t part = first + (size_t)row * a.n_parts + blockIdx.x;
        float2 total; // weight 0: no context at all
        float4 sum = sum_warps(s, row, d, &total);

        if (only) {
            store_scaled(out + row * S::dim + d, sum, total.y > 0 ? 1.0f / total.y : 0.0f);
            continue;
        }
        __stcg(reinterpret_cast<float4 *>(a.partial + part * S::dim + d), sum);
        if (d == 0)
            __stcg(a.totals + part, total);
    }
}

// All parts of the heads, in order.
template <typename T, typename S>
__device__ __forceinline__ void join_parts(const ek_cu_attention &a, S &s, uint32_t heads,
                                           size_t first, uint32_t parts, T *out)
{
    uint32_t lane = threadIdx.x % 32;

    for (uint32_t row = threadIdx.x / 32; row < heads; row += S::warps) {
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
    for (uint32_t i = threadIdx.x; i < heads * (S::dim / 4); i += (32 * S::warps)) {
        uint32_t row = i / (S::dim / 4), d = i % (S::dim / 4) * 4;
        const float *at = a.partial + (first + (size_t)row * a.n_parts) * S::dim + d;
        float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll 8
        for (uint32_t p = 0; p < parts; p++)
            add_scaled(sum, s.part_factor[row][p],
                       __ldcg(reinterpret_cast<const float4 *>(at + (size_t)p * S::dim)));
        store_scaled(out + row * S::dim + d, sum, 1.0f);
    }
}

// True in the block of a sequence and cached head that arrives last.
template <typename S>
__device__ __forceinline__ bool last_to_arrive(const ek_cu_attention &a, S &s, uint32_t parts)
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
template <typename S> __device__ __forceinline__ void send_sums(S &s, uint32_t heads)
{
#if __CUDA_ARCH__ >= 900
    auto cluster = cooperative_groups::this_cluster();
    uint32_t blocks = gridDim.x, each = (heads * (S::dim / 4) + blocks - 1) / blocks;

    cluster.barrier_wait(); // all have begun: their memory may be written
    for (uint32_t i = threadIdx.x; i < heads * (S::dim / 4); i += (32 * S::warps)) {
        uint32_t row = i / (S::dim / 4), d = i % (S::dim / 4);
        float2 total;
        float4 sum = sum_warps(s, row, 4 * d, &total);
        S *to = cluster.map_shared_rank(&s, i % blocks);

        to->sent[blockIdx.x * each + i / blocks] = sum;
        if (d < blocks) // that many neighbours are of as many blocks
            to->total[blockIdx.x][row] = total;
    }
#endif
}
template <typename T, typename S>
__device__ __forceinline__ void join_cluster(S &s, uint32_t heads, T *out)
{
#if __CUDA_ARCH__ >= 900
    uint32_t blocks = gridDim.x, all = heads * (S::dim / 4), each = (all + blocks - 1) / blocks;

    send_sums(s, heads);
    cooperative_groups::this_cluster().sync();
    for (uint32_t i = threadIdx.x; i * blocks + blockIdx.x < all; i += (32 * S::warps)) {
        uint32_t element = i * blocks + blockIdx.x, row = element / (S::dim / 4);
        float4 sum = make_float4(0, 0, 0, 0);
        float m = -INFINITY, l = 0;

#pragma unroll
        for (int p = 0; p < S::most; p++)
            if (p < (int)blocks)
                m = fmaxf(m, s.total[p][row].x);
        m = m == -INFINITY ? 0.0f : m;
#pragma unroll
        for (int p = 0; p < S::most; p++)
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

// Where a block of WARPS stands: a block along x for each part, along y for each cached head's
// tiles of heads, along z for each sequence. A warp takes the tokens first, first + stride, ... and
// the 15 behind each.
template <int WARPS> struct PartSpan {
    uint32_t seq, kv_head, head, heads; // head: the first of the tile's
    uint32_t warp, lane, first, stride;

    __device__ __forceinline__ explicit PartSpan(const ek_cu_attention &a)
    {
        uint32_t group = a.heads / a.kv.kv_heads, tiles = part_tiles(group);
        uint32_t behind = EK_CU_PART_HEADS * (blockIdx.y % tiles);

        seq = blockIdx.z;
        kv_head = blockIdx.y / tiles;
        head = kv_head * group + behind;
        heads = min(group - behind, (uint32_t)EK_CU_PART_HEADS);
        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        first = PART_STEP * (blockIdx.x * WARPS + warp);
        stride = PART_STEP * WARPS * gridDim.x;
    }
    // Blocks that have tokens of a context.
    __device__ __forceinline__ uint32_t parts(uint32_t len) const
    {
        return min((len + PART_STEP * WARPS - 1) / (PART_STEP * WARPS), gridDim.x);
    }
};

static inline dim3 part_grid(const struct ek_cu_attention *a)
{
    return dim3(a->n_parts, a->kv.kv_heads * part_tiles(a->heads / a->kv.kv_heads),
                a->batch.n_seqs);
}

// What a block does when its warps have published their sums; parts: blocks that have any.
template <typename T, bool CLUSTER, int WARPS, typename S>
__device__ __forceinline__ void join(const ek_cu_attention &a, S &s, const PartSpan<WARPS> &span,
                                     uint32_t parts, T *out)
{
    size_t at = ((size_t)span.seq * a.heads + span.head) * a.n_parts;

    __syncthreads();
    if constexpr (CLUSTER) {
        join_cluster(s, span.heads, out);
        return;
    }
    join_warps(a, s, span.heads, at, parts <= 1, out);
    if (parts > 1 && last_to_arrive(a, s, parts))
        join_parts(a, s, span.heads, at, parts, out);
}

#endif
