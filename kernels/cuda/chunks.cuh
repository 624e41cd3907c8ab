// SPDX-License-Identifier: Apache-2.0
// Weights decoded on their way from memory to the tensor cores, for products with a few tokens that
// do not stream. The order of k within a product is free: each lane reads one chunk (8 columns) of
// rows g and g + 8, and the same columns of token g, which is what two 16x8x16 products need of it.
// The four chunks of a row that a product takes lie in one block of a block type, so that its scale
// is applied to the product.
#ifndef EK_CUDA_CHUNKS_CUH
#define EK_CUDA_CHUNKS_CUH

#include "kernels/cuda/integers.cuh"
#include "kernels/cuda/weights.cuh"

// Chunks of a lane in flight, a row.
template <int W>
constexpr int FEW_UNROLL = W == EK_Q4_0 || W == EK_Q4_1 || (W >= EK_G4_32 && W <= EK_G4_128) ? 6
                                                                                             : 4;
template <int W, typename T>
constexpr bool SAME_TYPE = (W == EK_BF16 && std::is_same<T, bf16>::value) ||
                           (W == EK_F16 && std::is_same<T, f16>::value);

// Operands of two products from a chunk of a plain type.
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

// The token's elements that chunk c of a row meets.
template <int W, typename T> __device__ __forceinline__ uint4 token_chunk(const T *x, uint32_t c)
{
    if constexpr (W >= EK_Q4_0) {
        if constexpr (Blocks<W>::split) {
            uint2 lo = *reinterpret_cast<const uint2 *>(x + Weight<W>::lo(c));
            uint2 hi = *reinterpret_cast<const uint2 *>(x + Weight<W>::hi(c));

            return make_uint4(lo.x, lo.y, hi.x, hi.y);
        }
    }
    return *reinterpret_cast<const uint4 *>(x + 8 * c);
}

// ---- sum += the chunks' rows times the tokens
template <typename T>
__device__ __forceinline__ void product(float (&sum)[4], uint32_t r0, uint32_t r8, uint32_t s0,
                                        uint32_t s8, uint32_t x0, uint32_t x1)
{
    uint32_t a[4] = {r0, r8, s0, s8};

    mma<T>(sum, a, x0, x1);
}

template <int W, typename T, int NT>
__device__ __forceinline__ void add_chunk(float (&sum)[NT][4], const typename Weight<W>::Raw &r0,
                                          const typename Weight<W>::Raw &r8, uint32_t c,
                                          const uint4 (&x)[NT])
{
    if constexpr (W < EK_Q4_0) {
        uint4 p = to_operand<W, T>(r0, c), q = to_operand<W, T>(r8, c);
#pragma unroll
        for (int j = 0; j < NT; j++) {
            product<T>(sum[j], p.x, q.x, p.y, q.y, x[j].x, x[j].y);
            product<T>(sum[j], p.z, q.z, p.w, q.w, x[j].z, x[j].w);
        }
    } else {
        const uint32_t j = c % (Blocks<W>::cols / 8) / 4;
        const Chunk chunks[2] = {r0.c, r8.c};
        const Scale scales[2] = {Blocks<W>::scale(r0.head, j), Blocks<W>::scale(r8.head, j)};

        add_sub_block<W, T, NT>(sum, chunks, scales, x, BiasSums<W, T, NT>(x));
    }
}

// ---- loads
// Bytes of 64 chunks, which all blocks divide: from one pair of a warp's loads to its next.
template <int W> constexpr uint32_t bytes_64()
{
    if constexpr (W >= EK_Q4_0)
        return 512 / Blocks<W>::cols * Blocks<W>::bytes;
    return W == EK_F32 ? 2048 : 1024;
}

// Loads of a lane: chunk `first` (of its warp's first 8: its lane % 4) and the one 4 behind it, so
// that a warp reads 64 or 128 bytes of a row; then those of WARPS * 8 chunks on. What depends on
// `first` alone the compiler takes out of the loop: rows advance instead.
template <int W, int WARPS> struct FewBatch {
    typename Weight<W>::Raw raw[2][FEW_UNROLL<W>];
    static const uint32_t STRIDE = WARPS / 8 * bytes_64<W>();

    static __device__ __forceinline__ uint32_t chunk(uint32_t c, int i)
    {
        return c + i / 2 * (WARPS * 8) + i % 2 * 4;
    }
    // row: advanced by as many bytes as c is behind first
    __device__ __forceinline__ void load(const WeightRow (&row)[2], uint32_t first, uint32_t c,
                                         uint32_t chunks)
    {
#pragma unroll
        for (int i = 0; i < FEW_UNROLL<W>; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                raw[r][i] = chunk(c, i) < chunks
                                ? Weight<W>::load(WeightRow(row[r].at + i / 2 * STRIDE, row[r].r),
                                                  first + i % 2 * 4)
                                : typename Weight<W>::Raw{};
    }
};

// parts[token][row] of a warp from its sums.
template <int NT, int TOKENS>
__device__ __forceinline__ void publish(float (&parts)[TOKENS][17], const float (&sum)[NT][4])
{
    uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            parts[j * 8 + 2 * t + i % 2][g + i / 2 * 8] = sum[j][i];
}

// sum += rows row[0], row[1] (of the lane's g and g + 8) times tokens x[j] (of the lane's g + 8 j,
// or NULL). ready() is called when the first weights are on their way.
template <int W, typename T, int NT, int WARPS, typename F>
__device__ __forceinline__ void multiply_rows(float (&sum)[NT][4], const WeightRow (&row)[2],
                                              uint32_t chunks, const T *(&x)[NT], F ready)
{
    const int PASS = WARPS * 8 * FEW_UNROLL<W> / 2; // chunks
    uint32_t t = threadIdx.x % 4, first = 8 * (threadIdx.x / 32) + t;
    WeightRow at[2] = {row[0], row[1]};
    FewBatch<W, WARPS> next;

    next.load(at, first, first, chunks);
    ready();
    for (uint32_t c = first; c - t < chunks; c += PASS) {
        FewBatch<W, WARPS> now = next;

        at[0].at += FEW_UNROLL<W> / 2 * FewBatch<W, WARPS>::STRIDE;
        at[1].at += FEW_UNROLL<W> / 2 * FewBatch<W, WARPS>::STRIDE;
        next.load(at, first, c + PASS, chunks);
#pragma unroll
        for (int i = 0; i < FEW_UNROLL<W>; i++) {
            bool there = FewBatch<W, WARPS>::chunk(c, i) < chunks;
            uint4 v[NT];
#pragma unroll
            for (int j = 0; j < NT; j++)
                v[j] = there && x[j] ? token_chunk<W>(x[j] + (c - first + i / 2 * (WARPS * 8)) * 8,
                                                      first + i % 2 * 4)
                                     : make_uint4(0, 0, 0, 0);
            add_chunk<W, T, NT>(sum, now.raw[0][i], now.raw[1][i], first + i % 2 * 4, v);
        }
    }
}

#endif
