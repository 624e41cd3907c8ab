// SPDX-License-Identifier: Apache-2.0
// Shared by the kernels that route: a warp chooses a token's experts from its logits, once a
// launch. Instructions come from memory then, so that loops are kept short rather than unrolled.
#ifndef EK_CUDA_ROUTE_CUH
#define EK_CUDA_ROUTE_CUH

#include "kernels/cuda/common.cuh"

template <int MOST> struct Choice { // of up to MOST experts
    float score[MOST], bid[MOST], worth[MOST];
};

// Index of the largest of n values, the lowest on ties; 0 where there is none.
__device__ __forceinline__ uint32_t largest(const float *v, uint32_t n, uint32_t lane)
{
    float best = -INFINITY;
    uint32_t at = 0xffffffffu;

#pragma unroll 1
    for (uint32_t i = lane; i < n; i += 32)
        if (v[i] > best)
            best = v[i], at = i;
#pragma unroll
    for (int d = 16; d; d /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, d);
        uint32_t other_at = __shfl_xor_sync(0xffffffffu, at, d);
        if (other > best || (other == best && other_at < at))
            best = other, at = other_at;
    }
    return at == 0xffffffffu ? 0 : at;
}

// Logits to scores, each lane those of its own experts.
__device__ __forceinline__ void to_scores(const ek_router &r, float *score, uint32_t lane)
{
    float most = -INFINITY, sum = 0;

    if (r.sigmoid) {
#pragma unroll 1
        for (uint32_t i = lane; i < r.n_experts; i += 32)
            score[i] = 1.0f / (1.0f + expf(-score[i]));
        return;
    }
#pragma unroll 1
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        most = fmaxf(most, score[i]);
    most = warp_max(most);
#pragma unroll 1
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        sum += score[i] = expf(score[i] - most);
    sum = warp_sum(sum);
#pragma unroll 1
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        score[i] /= sum;
}

// Experts outside of the best topk_group groups are out of the choice. A group's worth: its best
// bid, or with a correction bias the sum of its best two.
template <int MOST>
__device__ __forceinline__ void limit_groups(const ek_router &r, Choice<MOST> &c, uint32_t lane)
{
    uint32_t size = r.n_experts / r.n_group;

#pragma unroll 1
    for (uint32_t g = lane; g < r.n_group; g += 32) {
        float best = -INFINITY, second = -INFINITY;

#pragma unroll 1
        for (uint32_t i = g * size; i < (g + 1) * size; i++) {
            float v = c.bid[i];
            second = v > best ? best : fmaxf(second, v);
            best = fmaxf(best, v);
        }
        c.worth[g] = r.kind == EK_ROUTE_NOAUX_TC && size > 1 ? best + second : best;
    }
    __syncwarp();
#pragma unroll 1
    for (uint32_t k = 0; k < r.topk_group; k++) {
        uint32_t g = largest(c.worth, r.n_group, lane);

        __syncwarp();
        if (lane == 0)
            c.worth[g] = NAN; // kept, and out of the next choice
        __syncwarp();
    }
#pragma unroll 1
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        if (!isnan(c.worth[i / size]))
            c.bid[i] = -INFINITY;
    __syncwarp();
}

// A number's bits in its order.
__device__ __forceinline__ uint32_t ordered(float v)
{
    uint32_t bits = __float_as_uint(v + 0.0f); // no negative zero

    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The best top_k bids, the lowest expert on ties; each lane keeps in mind which of its own are
// taken.
template <int MOST>
__device__ __forceinline__ void take_best(const ek_router &r, const Choice<MOST> &c, uint32_t lane,
                                          int32_t *ids)
{
    const uint32_t none = 0xffffffffu;
    uint32_t taken = 0;

#pragma unroll 1
    for (uint32_t k = 0; k < r.top_k; k++) {
        uint32_t best = 0, at = none;

#pragma unroll 1
        for (uint32_t i = lane, j = 0; i < r.n_experts; i += 32, j++) {
            uint32_t v = ordered(c.bid[i]);

            if (!(taken >> j & 1) && v > best)
                best = v, at = i;
        }
        uint32_t least = warp_most(best) == best ? none - at : 0; // the lowest expert's is the most
        least = none - warp_most(least);
        if (least == at)
            taken |= 1u << (at / 32);
        if (lane == 0)
            ids[k] = (int32_t)least;
    }
    __syncwarp();
}

// c.score holds the logits, each written by the lane that reads it: expert i by lane i % 32. ids
// and weights: [top_k], best first, of all lanes to read.
template <int MOST>
__device__ __forceinline__ void choose(const ek_router &r, const float *bias, Choice<MOST> &c,
                                       uint32_t lane, int32_t *ids, float *weights)
{
    float sum = 0;

    to_scores(r, c.score, lane);
#pragma unroll 1
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        c.bid[i] = fmaxf(c.score[i] + (bias ? bias[i] : 0.0f), -INFINITY); // which is no NaN
    __syncwarp();
    if (r.kind != EK_ROUTE_GREEDY && r.n_group > 1)
        limit_groups(r, c, lane);
    take_best(r, c, lane, ids);
    bool normalise = r.normalise && r.top_k > 1;

#pragma unroll 1
    for (uint32_t k = 0; normalise && k < r.top_k; k++)
        sum += c.score[ids[k]]; // without the bias
    float factor = r.scale / (normalise ? sum + 1e-20f : 1.0f);
#pragma unroll 1
    for (uint32_t k = lane; k < r.top_k; k += 32)
        weights[k] = c.score[ids[k]] * factor;
    __syncwarp();
}

#endif
