// SPDX-License-Identifier: Apache-2.0
// Experts token by token: a token's pairs are read at memory speed, each weight once. One launch
// for gate, up and their product, one for down and the weighted sum over the token's experts, whose
// order is fixed. Also the way of fp32 activations.
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/weights.cuh"

#define ONE_THREADS  256
#define ONE_WARPS    (ONE_THREADS / 32)
#define ONE_RESIDENT 2
#define ONE_MOST     64 // experts a token

template <typename T> __device__ __forceinline__ void stage(const T *from, T *to, uint32_t n)
{
    for (uint32_t i = threadIdx.x; i < n * sizeof(T) / 16; i += ONE_THREADS)
        copy16(shared_at((char *)to + 16 * i), (const char *)from + 16 * i);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
}

template <int W, typename T>
__device__ __forceinline__ float multiply(const typename Weight<W>::Raw &raw, const T *x,
                                          uint32_t c, float sum)
{
    float xv[8], wv[8];

    load4(x + Weight<W>::lo(c), xv);
    load4(x + Weight<W>::hi(c), xv + 4);
    Weight<W>::decode(raw, c, wv);
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum = fmaf(xv[j], wv[j], sum);
    return sum;
}

// Gate and up of a pair: a warp takes one element of the inner layer.
template <int W, typename T>
__global__ void __launch_bounds__(ONE_THREADS, ONE_RESIDENT) up_k(const ek_cu_experts e)
{
    const int UNROLL = W == EK_F32 ? 4 : 8;
    extern __shared__ uint4 raw_shared[];
    __shared__ int32_t ids[ONE_MOST];
    T *x = reinterpret_cast<T *>(raw_shared);
    uint32_t lane = threadIdx.x % 32, chunks = e.hidden / 8, token = blockIdx.y;

    pdl_next();
    pdl_wait();
    if (threadIdx.x < e.top_k)
        ids[threadIdx.x] = e.ids[(size_t)token * e.top_k + threadIdx.x];
    stage((const T *)e.x + token * e.ldx, x, e.hidden);
    for (uint32_t u = blockIdx.x + gridDim.x * (threadIdx.x / 32); u < e.top_k * e.inner;
         u += gridDim.x * ONE_WARPS) {
        uint32_t k = u / e.inner, row = u % e.inner;
        const uint8_t *gate = e.gate_up + ((size_t)ids[k] * 2 * e.inner + row) * e.gate_up_row;
        const uint8_t *up = gate + e.inner * e.gate_up_row;
        float g = 0, v = 0;

        for (uint32_t c = lane; c < chunks; c += 32 * UNROLL) {
            typename Weight<W>::Raw a[UNROLL], b[UNROLL];

#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
                bool in = c + 32 * i < chunks;
                a[i] = in ? Weight<W>::load(gate, c + 32 * i) : typename Weight<W>::Raw{};
                b[i] = in ? Weight<W>::load(up, c + 32 * i) : typename Weight<W>::Raw{};
            }
#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
                uint32_t at = c + 32 * i < chunks ? c + 32 * i : 0; // zeros times what is there
                g = multiply<W>(a[i], x, at, g);
                v = multiply<W>(b[i], x, at, v);
            }
        }
        g = warp_sum(g);
        v = warp_sum(v);
        if (lane == 0)
            ((T *)e.inner_x)[((size_t)token * e.top_k + k) * e.inner + row] =
                from_f<T>(silu(round_to<T>(g)) * round_to<T>(v));
    }
}

// Down: a warp takes one element of the token, all of its experts.
template <int W, typename T>
__global__ void __launch_bounds__(ONE_THREADS, ONE_RESIDENT) down_k(const ek_cu_experts e)
{
    const int UNROLL = W == EK_F32 ? 3 : 6; // two experts at a time
    extern __shared__ uint4 raw_shared[];
    __shared__ int32_t ids[ONE_MOST];
    __shared__ float weights[ONE_MOST];
    T *x = reinterpret_cast<T *>(raw_shared);
    uint32_t lane = threadIdx.x % 32, chunks = e.inner / 8, token = blockIdx.y;
    size_t pair = (size_t)token * e.top_k;

    pdl_next();
    pdl_wait();
    if (threadIdx.x < e.top_k) {
        ids[threadIdx.x] = e.ids[pair + threadIdx.x];
        weights[threadIdx.x] = e.weights[pair + threadIdx.x];
    }
    stage((const T *)e.inner_x + pair * e.inner, x, e.top_k * e.inner);
    for (uint32_t row = blockIdx.x + gridDim.x * (threadIdx.x / 32); row < e.hidden;
         row += gridDim.x * ONE_WARPS) {
        float sum = 0;

        for (uint32_t k = 0; k < e.top_k; k += 2) {
            uint32_t second = k + 1 < e.top_k ? k + 1 : k;
            const uint8_t *w0 = e.down + ((size_t)ids[k] * e.hidden + row) * e.down_row;
            const uint8_t *w1 = e.down + ((size_t)ids[second] * e.hidden + row) * e.down_row;
            float f0 = weights[k], f1 = second > k ? weights[second] : 0.0f, s0 = 0, s1 = 0;

            for (uint32_t c = lane; c < chunks; c += 32 * UNROLL) {
                typename Weight<W>::Raw a[UNROLL], b[UNROLL];

#pragma unroll
                for (int i = 0; i < UNROLL; i++) {
                    bool in = c + 32 * i < chunks;
                    a[i] = in ? Weight<W>::load(w0, c + 32 * i) : typename Weight<W>::Raw{};
                    b[i] = in ? Weight<W>::load(w1, c + 32 * i) : typename Weight<W>::Raw{};
                }
#pragma unroll
                for (int i = 0; i < UNROLL; i++) {
                    uint32_t at = c + 32 * i < chunks ? c + 32 * i : 0;
                    s0 = multiply<W>(a[i], x + k * e.inner, at, s0);
                    s1 = multiply<W>(b[i], x + second * e.inner, at, s1);
                }
            }
            sum += f0 * s0 + f1 * s1;
        }
        sum = warp_sum(sum);
        T *out = (T *)e.out + token * e.ldo + row;
        if (lane == 0)
            *out = from_f<T>(to_f(*out) + sum);
    }
}

static dim3 grid_of(const struct ek_cu_queue *q, const struct ek_cu_experts *e, uint32_t units)
{
    uint32_t most = div_up(ONE_RESIDENT * q->n_sm, e->n), blocks = div_up(units, ONE_WARPS);

    return dim3(blocks < most ? blocks : most, e->n);
}

template <int W>
static cudaError_t up_launch(const struct ek_cu_queue *q, enum ek_dtype act,
                             const struct ek_cu_experts *e)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, up_k<W, T>, grid_of(q, e, e->top_k * e->inner), ONE_THREADS,
                                  e->hidden * sizeof(T), *e));
}
template <int W>
static cudaError_t down_launch(const struct ek_cu_queue *q, enum ek_dtype act,
                               const struct ek_cu_experts *e)
{
    EK_DISPATCH_ACT(act, T,
                    return launch(q, down_k<W, T>, grid_of(q, e, e->hidden), ONE_THREADS,
                                  (size_t)e->top_k * e->inner * sizeof(T), *e));
}

#define FOR_WEIGHT(w, CALL)                                                                        \
    switch (w) {                                                                                   \
    case EK_F32:                                                                                   \
        return CALL<EK_F32>(q, act, e);                                                            \
    case EK_BF16:                                                                                  \
        return CALL<EK_BF16>(q, act, e);                                                           \
    case EK_F16:                                                                                   \
        return CALL<EK_F16>(q, act, e);                                                            \
    case EK_Q4_0:                                                                                  \
        return CALL<EK_Q4_0>(q, act, e);                                                           \
    case EK_Q4_1:                                                                                  \
        return CALL<EK_Q4_1>(q, act, e);                                                           \
    case EK_Q5_0:                                                                                  \
        return CALL<EK_Q5_0>(q, act, e);                                                           \
    case EK_Q5_1:                                                                                  \
        return CALL<EK_Q5_1>(q, act, e);                                                           \
    case EK_Q8_0:                                                                                  \
        return CALL<EK_Q8_0>(q, act, e);                                                           \
    case EK_Q4_K:                                                                                  \
        return CALL<EK_Q4_K>(q, act, e);                                                           \
    case EK_Q5_K:                                                                                  \
        return CALL<EK_Q5_K>(q, act, e);                                                           \
    case EK_Q6_K:                                                                                  \
        return CALL<EK_Q6_K>(q, act, e);                                                           \
    default:                                                                                       \
        return cudaErrorNotSupported;                                                              \
    }

static cudaError_t up_any(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                          const struct ek_cu_experts *e)
{
    FOR_WEIGHT(w, up_launch)
}
static cudaError_t down_any(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                            const struct ek_cu_experts *e)
{
    FOR_WEIGHT(w, down_launch)
}

extern "C" cudaError_t ek_cu_experts_one(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                         enum ek_dtype w_down, enum ek_dtype act,
                                         const struct ek_cu_experts *e)
{
    cudaError_t r = up_any(q, w_up, act, e);

    return r == cudaSuccess ? down_any(q, w_down, act, e) : r;
}
