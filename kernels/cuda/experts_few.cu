// SPDX-License-Identifier: Apache-2.0
// Experts with a few tokens each, grouped by expert: bound by reading the weights, which go to the
// tensor cores straight from memory. A block takes 16 rows of one expert (of gate and up 8 each, so
// that both of an element meet in a lane), its warps share the columns; tokens come 16 at a time.
#include "kernels/cuda/chunks.cuh"
#include "kernels/cuda/deepseek.h"

#define FEW_THREADS 256
#define FEW_WARPS   (FEW_THREADS / 32)
#define FEW_TOKENS  16

__device__ __forceinline__ float joined(const float (*parts)[FEW_TOKENS][17], uint32_t token,
                                        uint32_t row)
{
    float v = 0;

#pragma unroll
    for (int w = 0; w < FEW_WARPS; w++)
        v += parts[w][token][row];
    return v;
}

// Places first .. first + n - 1, n <= 8 NT.
template <int W, typename T, bool UP, int NT>
__device__ __forceinline__ void few_places(const ek_cu_experts &e, const WeightRow (&row)[2],
                                           uint32_t first, uint32_t n,
                                           float (*parts)[FEW_TOKENS][17])
{
    uint32_t g = threadIdx.x % 32 / 4;
    const T *x[NT];
    float sum[NT][4] = {};

#pragma unroll
    for (int j = 0; j < NT; j++) {
        uint32_t at = g + 8 * j;
        x[j] = NULL;
        if (at < n && UP)
            x[j] = (const T *)e.x + (uint32_t)e.order[first + at] / e.top_k * e.ldx;
        else if (at < n)
            x[j] = (const T *)e.inner_x + (size_t)(first + at) * e.inner;
    }
    multiply_rows<W, T, NT, FEW_WARPS>(sum, row, (UP ? e.hidden : e.inner) / 8, x, [] {});
    publish(parts[threadIdx.x / 32], sum);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < (UP ? 8 : 16) * n; i += FEW_THREADS) {
        uint32_t at = UP ? i / 8 : i / 16, r = UP ? i % 8 : i % 16;
        uint32_t to = blockIdx.x * (UP ? 8 : 16) + r;
        float v = joined(parts, at, r);

        if (to >= (UP ? e.inner : e.hidden))
            continue;
        if (UP)
            ((T *)e.inner_x)[(size_t)(first + at) * e.inner + to] =
                from_f<T>(silu(round_to<T>(v)) * round_to<T>(joined(parts, at, r + 8)));
        else
            ((T *)e.each)[(size_t)e.order[first + at] * e.hidden + to] = from_f<T>(v);
    }
    __syncthreads();
}

template <int W, typename T, bool UP>
__global__ void __launch_bounds__(FEW_THREADS, 2) few_experts_k(const ek_cu_experts e)
{
    __shared__ float parts[FEW_WARPS][FEW_TOKENS][17];
    uint32_t expert = blockIdx.y, g = threadIdx.x % 32 / 4;
    WeightRow row[2];

#pragma unroll
    for (int r = 0; r < 2; r++) { // rows past the end repeat the last
        uint32_t at = UP ? min(8 * blockIdx.x + g, e.inner - 1)
                         : min(16 * blockIdx.x + g + 8 * r, e.hidden - 1);
        row[r] = UP ? row_of<W>(e.gate_up, (size_t)(2 * expert + r) * e.inner + at, e.gate_up_row)
                    : row_of<W>(e.down, (size_t)expert * e.hidden + at, e.down_row);
    }
    pdl_next();
    pdl_wait();
    uint32_t first = (uint32_t)e.first[expert], end = (uint32_t)e.first[expert + 1];
    for (; first < end; first += FEW_TOKENS) {
        uint32_t n = min(end - first, (uint32_t)FEW_TOKENS);

        if (n <= 8)
            few_places<W, T, UP, 1>(e, row, first, n, parts);
        else
            few_places<W, T, UP, 2>(e, row, first, n, parts);
    }
}

template <int W, bool UP>
static cudaError_t few_launch(const struct ek_cu_queue *q, enum ek_dtype act,
                              const struct ek_cu_experts *e)
{
    dim3 grid(UP ? div_up(e->inner, 8) : div_up(e->hidden, 16), e->n_experts);

    if (act == EK_BF16)
        return launch(q, few_experts_k<W, bf16, UP>, grid, FEW_THREADS, 0, *e);
    if (act == EK_F16)
        return launch(q, few_experts_k<W, f16, UP>, grid, FEW_THREADS, 0, *e);
    return cudaErrorNotSupported;
}

template <bool UP>
static cudaError_t few_any(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                           const struct ek_cu_experts *e)
{
    EK_DISPATCH_WEIGHT(w, return few_launch<W, UP>(q, act, e));
}

extern "C" cudaError_t ek_cu_experts_few(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                         enum ek_dtype w_down, enum ek_dtype act,
                                         const struct ek_cu_experts *e)
{
    cudaError_t r = few_any<true>(q, w_up, act, e);

    return r == cudaSuccess ? few_any<false>(q, w_down, act, e) : r;
}
