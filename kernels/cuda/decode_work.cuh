// SPDX-License-Identifier: Apache-2.0
// How decode attention's work is dealt out. A pair is a sequence and a tile of heads that share a
// cached head; its context is cut into steps of 16 tokens. The steps of all pairs, in order, are
// dealt to teams: one block, or the blocks of a cluster. Lengths come from device memory, so that a
// captured graph serves growing contexts, and teams get equal shares of the tokens that there are,
// however they are spread over the sequences.
#ifndef EK_CUDA_DECODE_WORK_CUH
#define EK_CUDA_DECODE_WORK_CUH

#include "kernels/cuda/attention.cuh"

#define DEC_STEP 16u // tokens

struct DecodePair {
    uint32_t seq, index;   // the sequence and its pair
    uint32_t first, steps; // of all pairs' steps, and how many
    uint32_t len, token;   // tokens of its context; its new token's row
};

// A sequence without a new token has no steps, any other at least one.
__device__ __forceinline__ void decode_sequence(const ek_cu_attention &a, DecodePair &p)
{
    int32_t token = a.batch.seq_start[p.seq];
    bool none = token == a.batch.seq_start[p.seq + 1];

    p.token = (uint32_t)token;
    p.len = (uint32_t)max(a.batch.kv_len[p.seq], 0);
    p.steps = none ? 0 : max((p.len + DEC_STEP - 1) / DEC_STEP, 1u);
}

// Steps of 32 sequences, one a lane.
__device__ __forceinline__ uint32_t steps_of_lane(const ek_cu_attention &a, uint32_t chunk,
                                                  uint32_t lane)
{
    DecodePair p;

    p.seq = min(chunk + lane, a.batch.n_seqs - 1);
    decode_sequence(a, p);
    return chunk + lane < a.batch.n_seqs ? p.steps : 0;
}

__device__ __forceinline__ uint32_t pairs_of_sequence(const ek_cu_attention &a)
{
    return a.kv.kv_heads * a.tiles;
}

// The pair that has step u of all; by a whole warp.
__device__ __forceinline__ DecodePair find_pair(const ek_cu_attention &a, uint32_t u, uint32_t lane)
{
    uint32_t before = 0, n = pairs_of_sequence(a);
    DecodePair p = {};

    for (uint32_t chunk = 0; chunk < a.batch.n_seqs; chunk += 32) {
        uint32_t mine = steps_of_lane(a, chunk, lane) * n, sum = mine;
#pragma unroll
        for (uint32_t d = 1; d < 32; d *= 2) {
            uint32_t other = __shfl_up_sync(0xffffffffu, sum, d);
            sum += lane >= d ? other : 0;
        }
        uint32_t behind = __ballot_sync(0xffffffffu, before + sum > u);
        if (behind) {
            uint32_t at = (uint32_t)__ffs((int)behind) - 1;
            p.seq = chunk + at;
            p.first = before + __shfl_sync(0xffffffffu, sum - mine, at);
            break;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    decode_sequence(a, p);
    p.index = p.steps ? (u - p.first) / p.steps : 0;
    p.first += p.index * p.steps;
    return p;
}

__device__ __forceinline__ void next_pair(const ek_cu_attention &a, DecodePair &p)
{
    p.first += p.steps;
    if (++p.index < pairs_of_sequence(a))
        return;
    p.index = 0;
    do {
        p.seq++;
        decode_sequence(a, p);
    } while (p.steps == 0 && p.seq + 1 < a.batch.n_seqs);
}

// What this block's team does: steps [begin, end) of all. Where there is one team a pair and
// contexts are nearly equal, each has a pair of its own: then nothing is joined through memory.
struct DecodeShare {
    uint32_t begin, end, per; // per: steps of a team, or 0: whole pairs
    DecodePair pair;          // that begin lies in
};

__device__ __forceinline__ DecodeShare decode_share(const ek_cu_attention &a, uint32_t team,
                                                    uint32_t lane)
{
    uint32_t n = pairs_of_sequence(a), all = 0, most = 0;
    DecodeShare s;

    for (uint32_t chunk = 0; chunk < a.batch.n_seqs; chunk += 32) {
        uint32_t mine = steps_of_lane(a, chunk, lane);
        all += warp_total(mine) * n;
        most = max(most, warp_most(mine));
    }
    if (a.teams == a.batch.n_seqs * n && (uint64_t)most * a.teams <= all + all / 4) {
        s.pair = DecodePair{.seq = team / n, .index = team % n};
        decode_sequence(a, s.pair);
        s.begin = s.per = 0;
        s.end = s.pair.steps;
        return s;
    }
    s.per = (all + a.teams - 1) / a.teams;
    s.begin = min(team * s.per, all);
    s.end = min(s.begin + s.per, all);
    s.pair = find_pair(a, min(s.begin, all ? all - 1 : 0), lane);
    return s;
}

#endif
