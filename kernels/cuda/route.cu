// SPDX-License-Identifier: Apache-2.0
// Mixtures of experts beside the experts: the router's choice, pairs of tokens and experts grouped
// by expert, and the weighted sum of what the experts answered. Everything in a fixed order.
#include <cooperative_groups.h>

#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/weights.cuh"

#define ROUTE_WARPS 4
#define ROUTE_MOST  1024 // experts
#define GROUP_MOST  1024 // threads

// ---- the router: one warp a token, its scores in shared memory
__global__ void __launch_bounds__(32 * ROUTE_WARPS)
    route_k(const float *logits, uint32_t n, const float *bias, const ek_router r, int32_t *ids,
            float *weights)
{
    extern __shared__ Choice<ROUTE_MOST> choices[];
    Choice<ROUTE_MOST> &c = choices[threadIdx.x / 32];
    uint32_t token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;

    pdl_next();
    pdl_wait();
    if (token >= n)
        return;
    for (uint32_t i = lane; i < r.n_experts; i += 32)
        c.score[i] = logits[(size_t)token * r.n_experts + i];
    choose(r, bias, c, lane, ids + (size_t)token * r.top_k, weights + (size_t)token * r.top_k);
}

extern "C" cudaError_t ek_cu_route(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                                   const float *bias, const struct ek_router *router, int32_t *ids,
                                   float *weights)
{
    uint32_t warps = n < ROUTE_WARPS ? 1 : ROUTE_WARPS;

    return launch(q, route_k, div_up(n, warps), 32 * warps, warps * sizeof(Choice<ROUTE_MOST>),
                  logits, n, bias, *router, ids, weights);
}

// ---- the norm before it as well, for a few tokens: a cluster takes a token, each of its warps
// some of the router's rows; its first block chooses, its last one keeps the normalised token
#define NORMED_THREADS 256
#define NORMED_BLOCKS  4

template <typename T>
__device__ __forceinline__ void normalise(const ek_cu_mixture &a, const T *x, T *to, float *tmp)
{
    float v[8], w[8], sum = 0;

    for (uint32_t i = 8 * threadIdx.x; i < a.e.hidden; i += 8 * NORMED_THREADS) {
        load8(x + i, v);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += v[j] * v[j];
    }
    float r = rsqrtf(block_sum(sum, tmp) / (float)a.e.hidden + a.eps);
    for (uint32_t i = 8 * threadIdx.x; i < a.e.hidden; i += 8 * NORMED_THREADS) {
        load8(x + i, v);
        load8(a.norm + i, w);
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = round_to<T>(v[j] * r) * w[j];
        store8(to + i, v);
    }
    __syncthreads();
}

template <typename T, int G>
__global__ void __launch_bounds__(NORMED_THREADS) norm_route_k(const ek_cu_mixture a)
{
#if __CUDA_ARCH__ >= 900
    const int LOADS = 8;
    extern __shared__ uint4 raw_shared[];
    __shared__ Choice<EK_CU_TOKEN_EXPERTS> choice;
    __shared__ float tmp[32];
    T *x = reinterpret_cast<T *>(raw_shared);
    auto cluster = cooperative_groups::this_cluster();
    uint32_t token = blockIdx.y, lane = threadIdx.x % 32, chunks = a.e.hidden / 8;
    uint32_t row = blockIdx.x + gridDim.x * (threadIdx.x / 32);
    typename Weight<G>::Raw raw[LOADS];
    auto load = [&](uint32_t first) {
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (row < a.router.n_experts && first + 32 * i < chunks)
                raw[i] = Weight<G>::load(a.gate + row * a.gate_row, first + 32 * i);
    };

    load(lane);
    pdl_next();
    pdl_wait();
    normalise(a, (const T *)a.e.out + token * a.e.ldo, x, tmp);
    cluster.sync(); // the first block has begun: its memory may be written
    for (; row < a.router.n_experts; row += gridDim.x * (NORMED_THREADS / 32)) {
        float sum = 0, w[8], v[8];

        for (uint32_t c = lane; c < chunks; c += 32 * LOADS) {
            if (c != lane || row >= gridDim.x * (NORMED_THREADS / 32))
                load(c);
#pragma unroll
            for (int i = 0; i < LOADS; i++) {
                if (c + 32 * i >= chunks)
                    continue;
                Weight<G>::decode(raw[i], c + 32 * i, w);
                load8(x + 8 * (c + 32 * i), v);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sum = fmaf(v[j], w[j], sum);
            }
        }
        sum = warp_sum(sum);
        if (lane == 0)
            cluster.map_shared_rank(choice.score, 0)[row] = sum;
    }
    cluster.sync();
    if (blockIdx.x == 0 && threadIdx.x < 32)
        choose(a.router, a.bias, choice, lane, a.ids + (size_t)token * a.router.top_k,
               a.weights + (size_t)token * a.router.top_k);
    if (blockIdx.x == gridDim.x - 1)
        for (uint32_t i = threadIdx.x; i < chunks * sizeof(T) / 2; i += NORMED_THREADS)
            ((uint4 *)((T *)a.normed + token * a.e.ldx))[i] = raw_shared[i];
#endif
}

template <typename T>
static cudaError_t norm_route_any(const struct ek_cu_queue *q, const struct ek_cu_mixture *a)
{
    dim3 grid(NORMED_BLOCKS, a->e.n);

    switch (a->gate_type) {
    case EK_F32:
        return launch_cluster(q, norm_route_k<T, EK_F32>, grid, NORMED_THREADS,
                              a->e.hidden * sizeof(T), NORMED_BLOCKS, *a);
    case EK_BF16:
        return launch_cluster(q, norm_route_k<T, EK_BF16>, grid, NORMED_THREADS,
                              a->e.hidden * sizeof(T), NORMED_BLOCKS, *a);
    case EK_F16:
        return launch_cluster(q, norm_route_k<T, EK_F16>, grid, NORMED_THREADS,
                              a->e.hidden * sizeof(T), NORMED_BLOCKS, *a);
    default:
        return cudaErrorNotSupported;
    }
}

extern "C" bool ek_cu_norm_route_fits(const struct ek_cu_queue *q, const struct ek_cu_mixture *a)
{
    size_t own = sizeof(Choice<EK_CU_TOKEN_EXPERTS>) + 32 * sizeof(float);

    return q->pdl && a->e.hidden * sizeof(bf16) + own <= q->shared;
}

extern "C" cudaError_t ek_cu_norm_route(const struct ek_cu_queue *q, enum ek_dtype act,
                                        const struct ek_cu_mixture *a)
{
    return act == EK_BF16  ? norm_route_any<bf16>(q, a)
           : act == EK_F16 ? norm_route_any<f16>(q, a)
                           : cudaErrorNotSupported;
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
    for (uint32_t k = 0; k < e.n_shared + e.top_k; k++) {
        size_t pair = (size_t)token * (e.n_shared + e.top_k) + k;
        float w = k < e.n_shared ? 1.0f : e.weights[(size_t)token * e.top_k + k - e.n_shared];

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
