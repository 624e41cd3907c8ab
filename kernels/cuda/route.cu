// SPDX-License-Identifier: Apache-2.0
// Mixtures of experts beside the experts: the router's choice, pairs of tokens and experts grouped
// by expert, and the weighted sum of what the experts answered. Everything in a fixed order.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/deepseek.h"

#define ROUTE_WARPS 4
#define ROUTE_MOST  1024 // experts
#define GROUP_MOST  1024 // threads

// ---- the router: one warp a token, its scores in shared memory
struct choice {
    float score[ROUTE_MOST], bid[ROUTE_MOST], worth[ROUTE_MOST];
};

// Index of the largest of n values, the lowest on ties; 0 where there is none.
__device__ __forceinline__ uint32_t largest(const float *v, uint32_t n, uint32_t lane)
{
    float best = -INFINITY;
    uint32_t at = 0xffffffffu;

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

__device__ __forceinline__ void to_scores(const ek_router &r, const float *logits, choice &c,
                                          uint32_t lane)
{
    float most = -INFINITY, sum = 0;

    if (r.sigmoid) {
        for (uint32_t i = lane; i < r.n_experts; i += 32)
            c.score[i] = 1.0f / (1.0f + expf(-logits[i]));
        return;
    }
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        most = fmaxf(most, logits[i]);
    most = warp_max(most);
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        sum += c.score[i] = expf(logits[i] - most);
    sum = warp_sum(sum);
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        c.score[i] /= sum;
}

// Experts outside of the best topk_group groups are out of the choice. A group's worth: its best
// bid, or with a correction bias the sum of its best two.
__device__ __forceinline__ void limit_groups(const ek_router &r, choice &c, uint32_t lane)
{
    uint32_t size = r.n_experts / r.n_group;

    for (uint32_t g = lane; g < r.n_group; g += 32) {
        float best = -INFINITY, second = -INFINITY;

        for (uint32_t i = g * size; i < (g + 1) * size; i++) {
            float v = c.bid[i];
            second = v > best ? best : fmaxf(second, v);
            best = fmaxf(best, v);
        }
        c.worth[g] = r.kind == EK_ROUTE_NOAUX_TC && size > 1 ? best + second : best;
    }
    __syncwarp();
    for (uint32_t k = 0; k < r.topk_group; k++) {
        uint32_t g = largest(c.worth, r.n_group, lane);

        __syncwarp();
        if (lane == 0)
            c.worth[g] = NAN; // kept, and out of the next choice
        __syncwarp();
    }
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        if (!isnan(c.worth[i / size]))
            c.bid[i] = -INFINITY;
    __syncwarp();
}

__global__ void __launch_bounds__(32 * ROUTE_WARPS)
    route_k(const float *logits, uint32_t n, const float *bias, const ek_router r, int32_t *ids,
            float *weights)
{
    extern __shared__ choice choices[];
    choice &c = choices[threadIdx.x / 32];
    uint32_t token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0;

    pdl_next();
    pdl_wait();
    if (token >= n)
        return;
    ids += (size_t)token * r.top_k;
    weights += (size_t)token * r.top_k;
    to_scores(r, logits + (size_t)token * r.n_experts, c, lane);
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        c.bid[i] = c.score[i] + (bias ? bias[i] : 0.0f);
    __syncwarp();
    if (r.kind != EK_ROUTE_GREEDY && r.n_group > 1)
        limit_groups(r, c, lane);
    for (uint32_t k = 0; k < r.top_k; k++) {
        uint32_t i = largest(c.bid, r.n_experts, lane);

        sum += c.score[i]; // without the bias
        __syncwarp();
        if (lane == 0) {
            c.bid[i] = -INFINITY;
            ids[k] = (int32_t)i;
        }
        __syncwarp();
    }
    float factor = r.scale / (r.normalise && r.top_k > 1 ? sum + 1e-20f : 1.0f);
    __syncwarp();
    for (uint32_t k = lane; k < r.top_k; k += 32)
        weights[k] = c.score[ids[k]] * factor;
}

extern "C" cudaError_t ek_cu_route(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                                   const float *bias, const struct ek_router *router, int32_t *ids,
                                   float *weights)
{
    uint32_t warps = n < ROUTE_WARPS ? 1 : ROUTE_WARPS;

    return launch(q, route_k, div_up(n, warps), 32 * warps, warps * sizeof(choice), logits, n, bias,
                  *router, ids, weights);
}

// ---- grouping: one block an expert; places keep the order of pairs
__global__ void __launch_bounds__(GROUP_MOST) group_k(const ek_cu_experts e, uint32_t pairs)
{
    __shared__ int32_t before, count[33];
    int32_t expert = (int32_t)blockIdx.x, less = 0;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;

    if (threadIdx.x == 0)
        before = 0;
    pdl_next();
    pdl_wait();
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x)
        less += e.ids[i] < expert;
    atomicAdd(&before, less); // whole numbers: any order
    __syncthreads();
    int32_t place = before;
    if (threadIdx.x == 0)
        e.first[expert] = place;
    for (uint32_t start = 0; start < pairs; start += blockDim.x) {
        uint32_t i = start + threadIdx.x;
        bool mine = i < pairs && e.ids[i] == expert;
        uint32_t votes = __ballot_sync(0xffffffffu, mine);

        if (lane == 0)
            count[warp] = __popc(votes);
        __syncthreads();
        int32_t at = place, all = 0;
        for (uint32_t w = 0; w < warps; w++) {
            at += w < warp ? count[w] : 0;
            all += count[w];
        }
        if (mine)
            e.order[at + __popc(votes & ((1u << lane) - 1))] = (int32_t)i;
        place += all;
        __syncthreads();
    }
    if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1)
        e.first[expert + 1] = place;
}

extern "C" cudaError_t ek_cu_experts_group(const struct ek_cu_queue *q,
                                           const struct ek_cu_experts *e)
{
    uint32_t pairs = e->n * e->top_k,
             threads = pairs < GROUP_MOST ? div_up(pairs, 32) * 32 : GROUP_MOST;

    return launch(q, group_k, e->n_experts, threads, 0, *e, pairs);
}

// ---- the sum
template <typename T> __global__ void __launch_bounds__(256) sum_k(const ek_cu_experts e)
{
    uint32_t c = 8 * (blockIdx.x * 256 + threadIdx.x), token = blockIdx.y;
    float sum[8] = {}, v[8];

    pdl_next();
    pdl_wait();
    if (c >= e.hidden)
        return;
    for (uint32_t k = 0; k < e.top_k; k++) {
        size_t pair = (size_t)token * e.top_k + k;
        float w = e.weights[pair];

        load8((const T *)e.each + pair * e.hidden + c, v);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum[j] = fmaf(w, v[j], sum[j]);
    }
    T *out = (T *)e.out + token * e.ldo + c;
#pragma unroll
    for (int j = 0; j < 8; j++)
        out[j] = from_f<T>(to_f(out[j]) + sum[j]);
}

extern "C" cudaError_t ek_cu_experts_sum(const struct ek_cu_queue *q, enum ek_dtype act,
                                         const struct ek_cu_experts *e)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, sum_k<T>, dim3(div_up(e->hidden, 8 * 256), e->n), 256, 0, *e));
}
