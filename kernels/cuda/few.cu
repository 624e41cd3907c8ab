// SPDX-License-Identifier: Apache-2.0
// Products with 2 to 16 tokens: still bound by reading the weights, so they go to the tensor cores
// straight from memory. A block takes 16 output rows, its warps share the columns. The order of k
// within a product is free: each lane reads one chunk (8 columns) of rows g and g + 8, and the same
// columns of token g, which is what two 16x8x16 products need of it.
#include "kernels/cuda/weights.cuh"

#define FEW_UNROLL 4 // chunks of a lane in flight, a row

template <int W, typename T>
constexpr bool SAME_TYPE = (W == EK_BF16 && std::is_same<T, bf16>::value) ||
                           (W == EK_F16 && std::is_same<T, f16>::value);

template <int W, typename T>
__device__ __forceinline__ uint4 to_operand(const typename Weight<W>::Raw &raw, uint32_t c)
{
    if constexpr (SAME_TYPE<W, T>)
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

template <int W, int WARPS> struct FewBatch {
    typename Weight<W>::Raw raw[2][FEW_UNROLL];

    // chunk of unrolled load i from the lane's first one: pairs of segments of 4 chunks, so that
    // a warp reads 128 bytes of a row
    static __device__ __forceinline__ uint32_t chunk(uint32_t c, int i)
    {
        return c + i / 2 * (WARPS * 8) + i % 2 * 4;
    }
    __device__ __forceinline__ void load(const uint8_t *const row[2], uint32_t c, uint32_t chunks)
    {
#pragma unroll
        for (int i = 0; i < FEW_UNROLL; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                raw[r][i] = chunk(c, i) < chunks ? Weight<W>::load(row[r], chunk(c, i))
                                                 : typename Weight<W>::Raw{};
    }
};

template <int W, typename T, int NT, int WARPS>
__global__ void __launch_bounds__((32 * WARPS), 16 / WARPS) few_k(const ek_cu_product p, uint32_t n)
{
    __shared__ float parts[WARPS][NT * 8][17];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    uint32_t first = blockIdx.x * 16, chunks = p.cols / 8, rows = p.mat[0].rows;
    const uint8_t *row[2];
    float sum[NT][4] = {};
    FewBatch<W, WARPS> next;

#pragma unroll
    for (int r = 0; r < 2; r++) { // rows past the end repeat the last
        uint32_t at = first + g + 8 * r;
        row[r] = p.mat[0].data + (at < rows ? at : rows - 1) * p.row_bytes;
    }
    next.load(row, 8 * warp + t, chunks);
    pdl_next();
    pdl_wait();
    for (uint32_t c = 8 * warp + t; c - t < chunks; c += WARPS * 8 * FEW_UNROLL / 2) {
        FewBatch<W, WARPS> now = next;
        uint4 x[NT][FEW_UNROLL];

        next.load(row, c + WARPS * 8 * FEW_UNROLL / 2, chunks);
#pragma unroll
        for (int i = 0; i < FEW_UNROLL; i++)
#pragma unroll
            for (int j = 0; j < NT; j++) {
                uint32_t at = FewBatch<W, WARPS>::chunk(c, i), token = g + 8 * j;
                x[j][i] = make_uint4(0, 0, 0, 0);
                if (at < chunks && token < n)
                    x[j][i] = token_chunk<W>((const T *)p.x + token * p.ldx, at);
            }
#pragma unroll
        for (int i = 0; i < FEW_UNROLL; i++) {
            uint32_t at = FewBatch<W, WARPS>::chunk(c, i);
            uint4 lo = to_operand<W, T>(now.raw[0][i], at),
                  hi = to_operand<W, T>(now.raw[1][i], at);
            uint32_t a[4] = {lo.x, hi.x, lo.y, hi.y}, b[4] = {lo.z, hi.z, lo.w, hi.w};
#pragma unroll
            for (int j = 0; j < NT; j++) {
                mma<T>(sum[j], a, x[j][i].x, x[j][i].y);
                mma<T>(sum[j], b, x[j][i].z, x[j][i].w);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            parts[warp][j * 8 + 2 * t + i % 2][g + i / 2 * 8] = sum[j][i];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * n; i += (32 * WARPS)) {
        uint32_t token = i / 16, r = i % 16;
        float v = 0;

        if (first + r >= rows)
            continue;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            v += parts[w][token][r];
        v += p.mat[0].bias ? p.mat[0].bias[first + r] : 0.0f;
        finish_linear<T>(p, token * p.ldo + first + r, v);
    }
}

// Short matrices have fewer blocks than there is room for: theirs have twice the warps.
template <int W, typename T>
static cudaError_t few_launch(const struct ek_cu_queue *q, uint32_t n,
                              const struct ek_cu_product *p)
{
    uint32_t blocks = div_up(p->mat[0].rows, 16);

    if constexpr (SAME_TYPE<W, T>)
        if (n <= 8 && blocks < 2 * q->n_sm)
            return launch(q, few_k<W, T, 1, 16>, blocks, 512, 0, *p, n);
    return launch(q, n <= 8 ? few_k<W, T, 1, 8> : few_k<W, T, 2, 8>, blocks, 256, 0, *p, n);
}

extern "C" cudaError_t ek_cu_product_few(const struct ek_cu_queue *q, enum ek_dtype w,
                                         enum ek_dtype act, uint32_t n,
                                         const struct ek_cu_product *p)
{
#define FEW_CASE(W)                                                                                \
    case W:                                                                                        \
        return act == EK_BF16  ? few_launch<W, bf16>(q, n, p)                                      \
               : act == EK_F16 ? few_launch<W, f16>(q, n, p)                                       \
                               : cudaErrorNotSupported
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
