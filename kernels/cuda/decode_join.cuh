// SPDX-License-Identifier: Apache-2.0
// How decode attention's sums are joined: a block's warps, then the blocks of a team through each
// other's shared memory, then, where a pair is cut, the teams that have parts of it through memory,
// by the block that arrives last, always in their order: sums do not depend on which it is.
#ifndef EK_CUDA_DECODE_JOIN_CUH
#define EK_CUDA_DECODE_JOIN_CUH

#include <cooperative_groups.h>

#include "kernels/cuda/decode_work.cuh"

#define DEC_WARPS 4
#define DEC_PARTS 8 // of a pair that are joined at once

template <int D, int TILES> struct alignas(16) DecodeShared {
    float o[DEC_WARPS][8 * TILES][D + 4];
    float2 total[DEC_WARPS][8 * TILES]; // maximum and weight; the block's in [0]
    bool last;
};

// Sums of parts that have maxima of their own, one after the other.
struct DecodeSum {
    float4 o;
    float peak, weight;

    __device__ __forceinline__ void add(float2 total, const float4 &v)
    {
        float m = fmaxf(peak, total.x), f = total.x == -INFINITY ? 0.0f : power2(total.x - m);
        float keep = peak == -INFINITY ? 0.0f : power2(peak - m);

        o = make_float4(o.x * keep + f * v.x, o.y * keep + f * v.y, o.z * keep + f * v.z,
                        o.w * keep + f * v.w);
        weight = weight * keep + f * total.y;
        peak = m;
    }
    template <typename T> __device__ __forceinline__ void store(T *to) const
    {
        float f = weight > 0 ? 1.0f / weight : 0.0f; // 0: no context at all
        float v[4] = {o.x * f, o.y * f, o.z * f, o.w * f};

        store4(to, v);
    }
};
__device__ __forceinline__ DecodeSum empty_sum()
{
    return DecodeSum{make_float4(0, 0, 0, 0), -INFINITY, 0};
}

// Where a block stands: which of its team, and which team.
struct DecodeTeam {
    uint32_t rank, size, index;
};

__device__ __forceinline__ void team_sync(const DecodeTeam &team)
{
#if __CUDA_ARCH__ >= 900
    if (team.size > 1) {
        cooperative_groups::this_cluster().sync();
        return;
    }
#endif
    __syncthreads();
}

// Nobody goes on, or leaves, while others read from it; nothing was written for them.
__device__ __forceinline__ void team_leave(const DecodeTeam &team)
{
#if __CUDA_ARCH__ >= 900
    if (team.size > 1) {
        asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

template <int D, int TILES>
__device__ __forceinline__ const DecodeShared<D, TILES> *
shared_of(const DecodeTeam &team, DecodeShared<D, TILES> &s, uint32_t rank)
{
#if __CUDA_ARCH__ >= 900
    if (team.size > 1)
        return cooperative_groups::this_cluster().map_shared_rank(&s, rank);
#endif
    return &s;
}

// The block's warps, into the first one's place.
template <int D, int TILES>
__device__ __forceinline__ void join_warps(DecodeShared<D, TILES> &s, uint32_t heads)
{
    for (uint32_t i = threadIdx.x; i < heads * (D / 4); i += 32 * DEC_WARPS) {
        uint32_t head = i / (D / 4), d = i % (D / 4) * 4;
        float4 sum = make_float4(0, 0, 0, 0);
        float m = -INFINITY;

#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++)
            m = fmaxf(m, s.total[w][head].x);
        m = m == -INFINITY ? 0.0f : m;
#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++) {
            float4 v = *reinterpret_cast<const float4 *>(&s.o[w][head][d]);
            float f = power2(s.total[w][head].x - m);

            sum = make_float4(sum.x + f * v.x, sum.y + f * v.y, sum.z + f * v.z, sum.w + f * v.w);
        }
        *reinterpret_cast<float4 *>(&s.o[0][head][d]) = sum; // read by this thread alone before
    }
    __syncthreads();
    if (threadIdx.x < heads) {
        float2 total = make_float2(-INFINITY, 0);

#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++)
            total.x = fmaxf(total.x, s.total[w][threadIdx.x].x);
#pragma unroll
        for (int w = 0; w < DEC_WARPS; w++)
            if (s.total[w][threadIdx.x].x != -INFINITY)
                total.y += power2(s.total[w][threadIdx.x].x - total.x) * s.total[w][threadIdx.x].y;
        s.total[0][threadIdx.x] = total;
    }
}

// Sums of a part of a pair, in memory: a team has at most two, of the pair that it begins in and of
// the one that it ends in. Each block of a team has its own elements and its own totals:
// a.partial [slot][EK_CU_TILE][D], a.totals [slot][rank][EK_CU_TILE].
__device__ __forceinline__ uint32_t slot_of_part(const DecodeShare &share, const DecodePair &p,
                                                 uint32_t team)
{
    return 2 * team + (team * share.per < p.first);
}

template <int D>
__device__ __forceinline__ void put_part(const ek_cu_attention &a, const DecodeTeam &team,
                                         uint32_t slot, uint32_t head, uint32_t d,
                                         const DecodeSum &sum)
{
    size_t at = (size_t)slot * EK_CU_TILE + head;

    __stcg(reinterpret_cast<float4 *>(a.partial + at * D + d), sum.o);
    __stcg(a.totals + ((size_t)slot * team.size + team.rank) * EK_CU_TILE + head,
           make_float2(sum.peak, sum.weight));
}

// True in the block of a rank that arrives last of its pair's teams.
template <int D, int TILES>
__device__ __forceinline__ bool last_to_arrive(const ek_cu_attention &a, const DecodeTeam &team,
                                               const DecodePair &p, DecodeShared<D, TILES> &s,
                                               uint32_t teams)
{
    __syncthreads();
    if (threadIdx.x == 0) { // releases what the block wrote, acquires what those before it did
        uint32_t *arrived =
            a.arrived + (p.seq * pairs_of_sequence(a) + p.index) * team.size + team.rank;
        uint32_t before;

        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                     : "=r"(before)
                     : "l"(arrived)
                     : "memory");
        s.last = before == teams - 1;
        if (s.last)
            *arrived = 0;
    }
    __syncthreads();
    return s.last;
}

// Parts k, k + stride, ... of one element, as many as are loaded at once.
template <int D>
__device__ __forceinline__ void add_parts(const ek_cu_attention &a, const DecodeTeam &team,
                                          const DecodeShare &share, const DecodePair &p, uint32_t k,
                                          uint32_t stride, uint32_t to, uint32_t head, uint32_t d,
                                          DecodeSum &sum)
{
    float2 total[DEC_PARTS];
    float4 v[DEC_PARTS];

#pragma unroll
    for (int i = 0; i < DEC_PARTS; i++) {
        size_t slot = slot_of_part(share, p, min(k + i * stride, to));

        total[i] = __ldcg(a.totals + (slot * team.size + team.rank) * EK_CU_TILE + head);
        v[i] = __ldcg(
            reinterpret_cast<const float4 *>(a.partial + (slot * EK_CU_TILE + head) * D + d));
    }
#pragma unroll
    for (int i = 0; i < DEC_PARTS; i++)
        sum.add(k + i * stride > to ? make_float2(-INFINITY, 0) : total[i], v[i]);
}

// All teams' sums of the elements that this block has, by the last one to arrive. Where elements
// are few, groups of threads take every so many of the teams.
template <typename T, int D, int TILES>
__device__ __forceinline__ void join_teams(const ek_cu_attention &a, const DecodeTeam &team,
                                           const DecodeShare &share, const DecodePair &p,
                                           DecodeShared<D, TILES> &s, uint32_t heads, T *out)
{
    uint32_t from = p.first / share.per, to = (p.first + p.steps - 1) / share.per;
    uint32_t n = heads * (D / 4) / team.size, lanes = n <= 32 ? 32 : n <= 64 ? 64 : 128;
    uint32_t groups = 32 * DEC_WARPS / lanes, group = threadIdx.x / lanes;
    DecodeSum *sums = reinterpret_cast<DecodeSum *>(&s.o[0][0][0]); // [groups][lanes]

    if (!last_to_arrive(a, team, p, s, to - from + 1))
        return;
    for (uint32_t i = threadIdx.x % lanes; i - threadIdx.x % lanes < n; i += lanes) {
        uint32_t e = team.rank * n + min(i, n - 1), head = e / (D / 4), d = e % (D / 4) * 4;
        DecodeSum sum = empty_sum();

        for (uint32_t k = from + group; k <= to; k += groups * DEC_PARTS)
            add_parts<D>(a, team, share, p, k, groups, to, head, d, sum);
        sums[threadIdx.x] = sum;
        __syncthreads();
        for (uint32_t g = 1; group == 0 && g < groups; g++)
            sum.add(make_float2(sums[g * lanes + i % lanes].peak,
                                sums[g * lanes + i % lanes].weight),
                    sums[g * lanes + i % lanes].o);
        if (group == 0 && i < n)
            sum.store(out + head * D + d);
        __syncthreads();
    }
}

// Blocks from, from + 1, ... of a team, as many as are loaded at once.
template <int D, int TILES>
__device__ __forceinline__ void add_blocks(const DecodeTeam &team, DecodeShared<D, TILES> &s,
                                           uint32_t from, uint32_t head, uint32_t d, DecodeSum &sum)
{
    float4 v[DEC_PARTS];
    float2 total[DEC_PARTS];

#pragma unroll
    for (int b = 0; b < DEC_PARTS; b++) {
        total[b] = make_float2(-INFINITY, 0);
        v[b] = make_float4(0, 0, 0, 0);
        if (from + b < team.size) {
            const DecodeShared<D, TILES> *block = shared_of(team, s, from + b);
            total[b] = block->total[0][head];
            v[b] = *reinterpret_cast<const float4 *>(&block->o[0][head][d]);
        }
    }
#pragma unroll
    for (int b = 0; b < DEC_PARTS; b++)
        sum.add(total[b], v[b]);
}

// A pair's end: the team's sums of it, each block some of the elements, to the output, or to memory
// when other teams have parts of it.
template <typename T, int D, int TILES>
__device__ __forceinline__ void join(const ek_cu_attention &a, const DecodeTeam &team,
                                     const DecodeShare &share, const DecodePair &p,
                                     DecodeShared<D, TILES> &s, uint32_t heads, T *out)
{
    bool whole = share.per == 0 || (share.begin <= p.first && p.first + p.steps <= share.end);
    uint32_t n = heads * (D / 4) / team.size;

    join_warps(s, heads);
    team_sync(team);
    for (uint32_t i = threadIdx.x; i < n; i += 32 * DEC_WARPS) {
        uint32_t e = team.rank * n + i, head = e / (D / 4), d = e % (D / 4) * 4;
        DecodeSum sum = empty_sum();

        for (uint32_t b = 0; b < team.size; b += DEC_PARTS)
            add_blocks(team, s, b, head, d, sum);
        if (whole)
            sum.store(out + head * D + d);
        else
            put_part<D>(a, team, slot_of_part(share, p, team.index), head, d, sum);
    }
    team_leave(team);
    if (!whole)
        join_teams<T>(a, team, share, p, s, heads, out);
}

#endif
