// SPDX-License-Identifier: Apache-2.0
// Experts with a few tokens each, grouped by expert: bound by reading the weights, which go to the
// tensor cores straight from memory. A block takes 16 rows of one expert (of gate and up 8 each, so
// that both of an element meet in a lane), its warps share the columns; tokens come 16 at a time.
#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/weights.cuh"

#define FEW_THREADS 256
#define FEW_WARPS   (FEW_THREADS / 32)
#define FEW_UNROLL  4 // chunks of a lane in flight, a row
#define FEW_TOKENS  16
#define FEW_PASS    (FEW_WARPS * 8 * FEW_UNROLL / 2) // chunks of all warps at a time

template <int W, typename T>
__device__ __forceinline__ uint4 to_operand(const typename Weight<W>::Raw &raw, uint32_t c)
{
    if constexpr ((W == EK_BF16 && std::is_same<T, bf16>::value) ||
                  (W == EK_F16 && std::is_same<T, f16>::value))
        return raw.v;
    float v[8];

    Weight<W>::decode(raw, c, v);
    return make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]),
                      pack2<T>(v[6], v[7]));
}

template <int W, typename T> __device__ __forceinline__ uint4 token_chunk(const T *x, uint32_t c)
{
    uint2 lo = *reinterpret_cast<const uint2 *>(x + Weight<W>::lo(c));
    uint2 hi = *reinterpret_cast<const uint2 *>(x + Weight<W>::hi(c));

    return make_uint4(lo.x, lo.y, hi.x, hi.y);
}

// chunk of unrolled load i from the lane's first: a warp reads 128 bytes of a row at a time
__device__ __forceinline__ uint32_t chunk_at(uint32_t c, int i)
{
    return c + i / 2 * (FEW_WARPS * 8) + i % 2 * 4;
}

template <int W> struct FewBatch {
    typename Weight<W>::Raw raw[2][FEW_UNROLL];

    __device__ __forceinline__ void load(const uint8_t *const row[2], uint32_t c, uint32_t chunks)
    {
#pragma unroll
        for (int i = 0; i < FEW_UNROLL; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                raw[r][i] = chunk_at(c, i) < chunks ? Weight<W>::load(row[r], chunk_at(c, i))
                                                    : typename Weight<W>::Raw{};
    }
};

// The block's 16 rows times tokens of rows x[j], into parts: [token][row] of each warp.
template <int W, typename T, int NT>
__device__ __forceinline__ void products(const uint8_t *const row[2], const T *const x[NT],
                                         uint32_t chunks, float (*parts)[FEW_TOKENS][17])
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float sum[NT][4] = {};
    FewBatch<W> next;

    next.load(row, 8 * warp + t, chunks);
    for (uint32_t c = 8 * warp + t; c - t < chunks; c += FEW_PASS) {
        FewBatch<W> now = next;
        uint4 v[NT][FEW_UNROLL];

        next.load(row, c + FEW_PASS, chunks);
#pragma unroll
        for (int i = 0; i < FEW_UNROLL; i++)
#pragma unroll
            for (int j = 0; j < NT; j++)
                v[j][i] = chunk_at(c, i) < chunks && x[j] ? token_chunk<W>(x[j], chunk_at(c, i))
                                                          : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < FEW_UNROLL; i++) {
            uint32_t at = chunk_at(c, i);
            uint4 lo = to_operand<W, T>(now.raw[0][i], at);
            uint4 hi = to_operand<W, T>(now.raw[1][i], at);
            uint32_t a[4] = {lo.x, hi.x, lo.y, hi.y}, b[4] = {lo.z, hi.z, lo.w, hi.w};
#pragma unroll
            for (int j = 0; j < NT; j++) {
                mma<T>(sum[j], a, v[j][i].x, v[j][i].y);
                mma<T>(sum[j], b, v[j][i].z, v[j][i].w);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            parts[warp][j * 8 + 2 * t + i % 2][g + i / 2 * 8] = sum[j][i];
}

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
__device__ __forceinline__ void few_places(const ek_cu_experts &e, const uint8_t *const row[2],
                                           uint32_t first, uint32_t n,
                                           float (*parts)[FEW_TOKENS][17])
{
    uint32_t g = threadIdx.x % 32 / 4;
    const T *x[NT];

#pragma unroll
    for (int j = 0; j < NT; j++) {
        uint32_t at = g + 8 * j;
        x[j] = NULL;
        if (at < n && UP)
            x[j] = (const T *)e.x + (uint32_t)e.order[first + at] / e.top_k * e.ldx;
        else if (at < n)
            x[j] = (const T *)e.inner_x + (size_t)(first + at) * e.inner;
    }
    products<W, T, NT>(row, x, (UP ? e.hidden : e.inner) / 8, parts);
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
    const uint8_t *row[2];

#pragma unroll
    for (int r = 0; r < 2; r++) { // rows past the end repeat the last
        uint32_t at = UP ? min(8 * blockIdx.x + g, e.inner - 1)
                         : min(16 * blockIdx.x + g + 8 * r, e.hidden - 1);
        row[r] = UP ? e.gate_up + ((size_t)(2 * expert + r) * e.inner + at) * e.gate_up_row
                    : e.down + ((size_t)expert * e.hidden + at) * e.down_row;
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
#define FEW_CASE(W)                                                                                \
    case W:                                                                                        \
        return few_launch<W, UP>(q, act, e)
    switch (w) {
        FEW_CASE(EK_F32);
        FEW_CASE(EK_BF16);
        FEW_CASE(EK_F16);
        FEW_CASE(EK_Q4_0);
        FEW_CASE(EK_Q4_1);
        FEW_CASE(EK_Q5_0);
        FEW_CASE(EK_Q5_1);
        FEW_CASE(EK_Q8_0);
        FEW_CASE(EK_Q4_K);
        FEW_CASE(EK_Q5_K);
        FEW_CASE(EK_Q6_K);
    default:
        return cudaErrorNotSupported;
    }
#undef FEW_CASE
}

extern "C" cudaError_t ek_cu_experts_few(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                         enum ek_dtype w_down, enum ek_dtype act,
                                         const struct ek_cu_experts *e)
{
    cudaError_t r = few_any<true>(q, w_up, act, e);

    return r == cudaSuccess ? few_any<false>(q, w_down, act, e) : r;
}
