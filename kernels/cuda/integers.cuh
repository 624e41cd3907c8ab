// SPDX-License-Identifier: Apache-2.0
// Weights in blocks as tensor cores like them best: the integers of a chunk as pairs of T, exact,
// by a mask alone, which leaves them above their value by a constant. The constant times the sum of
// a token's elements is what products of a sub-block begin with; scales and offsets are applied to
// their sums, once a sub-block, not to each weight. T is bf16, which holds integers up to 256
// exactly, or f16.
#ifndef EK_CUDA_INTEGERS_CUH
#define EK_CUDA_INTEGERS_CUH

#include "kernels/cuda/blocks.cuh"

template <typename T> __device__ __forceinline__ uint32_t multiply2(uint32_t a, float by);
template <> __device__ __forceinline__ uint32_t multiply2<bf16>(uint32_t a, float by)
{
    __nv_bfloat162 r = __hmul2(*reinterpret_cast<__nv_bfloat162 *>(&a), __float2bfloat162_rn(by));
    return *reinterpret_cast<uint32_t *>(&r);
}
template <> __device__ __forceinline__ uint32_t multiply2<f16>(uint32_t a, float by)
{
    __half2 r = __hmul2(*reinterpret_cast<__half2 *>(&a), __float2half2_rn(by));
    return *reinterpret_cast<uint32_t *>(&r);
}

// parts: pairs of BF16 hold 7 bits, so that bytes are two of them, the second worth 16 times the
// first. bias: what pairs are above the integers' value.
template <int W, typename T> struct Integers {
    using B = Blocks<W>;
    static const bool wide = std::is_same<T, bf16>::value, floats = W >= EK_B8_32;
    static const int parts = wide && B::low == 8 && !floats ? 2 : 1;
    static const int base = wide ? 128 : 1024; // with 1 as its last bit
    static const int bias = floats ? 0 : base * (parts == 2 ? 17 : 1) + B::zero;
    static const uint32_t magic = wide ? 0x43004300u : 0x64006400u;

    // Columns 2 i and 2 i + 1; part 1: the upper half of bytes.
    static __device__ __forceinline__ uint32_t pair(const Chunk &c, int i, int part)
    {
        if (floats)
            return e4m3_pair(pair_bits<W>(c, i));
        if (parts == 2)
            return mask_or<0x000f000fu>((i < 2 ? c.q : c.b) >> (8 * (i % 2) + 4 * part), magic);
        if (B::low == 8)
            return mask_or<0x00ff00ffu>((i < 2 ? c.q : c.b) >> 8 * (i % 2), magic);
        return high_bits(c, i, mask_or<0x000f000fu>(c.q >> 4 * pair_place(i), magic));
    }

  private:
    static __device__ __forceinline__ uint32_t high_bits(const Chunk &c, int i, uint32_t v)
    {
        if (B::high == 1) {
            uint32_t h = c.h | c.h << 12; // other bits do not come to be where the masks are
            return mask_or<0x00100010u>(i < 4 ? h << (4 - i) : h, v);
        }
        if (B::high == 2) {
            uint32_t h = __byte_perm(c.h, 0, 0x4140);
            return mask_or<0x00300030u>(i < 3 ? h << (4 - 2 * i) : h >> 2, v);
        }
        return v;
    }
    // E4M3 (NaN apart: 480): exponent and mantissa moved to where T has them, times the power of
    // two between the types' exponents.
    static __device__ __forceinline__ uint32_t e4m3_pair(uint32_t v)
    {
        uint32_t bits = wide ? v << 4 & 0x07f007f0u : v << 7 & 0x3f803f80u;

        return multiply2<T>(bits | (v << 8 & 0x80008000u), wide ? 0x1p120f : 0x1p8f);
    }
};

// The bias' products with a sub-block's columns of NT tiles of tokens, which all rows have; of the
// upper half apart where that has its own scale.
template <int W, typename T, int NT> struct BiasSums {
    using I = Integers<W, T>;
    float sum[NT][Blocks<W>::split ? 2 : 1][4];

    __device__ __forceinline__ BiasSums(const uint4 (&x)[NT])
    {
        const uint32_t k = pack2<T>(-(float)I::bias, -(float)I::bias), a[4] = {k, k, k, k};
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[j][0][i] = sum[j][Blocks<W>::split ? 1 : 0][i] = 0;
            if (I::bias) {
                mma<T>(sum[j][0], a, x[j].x, x[j].y);
                mma<T>(sum[j][Blocks<W>::split ? 1 : 0], a, x[j].z, x[j].w);
            }
        }
    }
};

__device__ __forceinline__ void add_scaled(float (&sum)[4], float s0, float s8, const float (&v)[4])
{
    sum[0] += s0 * v[0], sum[1] += s0 * v[1];
    sum[2] += s8 * v[2], sum[3] += s8 * v[3];
}

// sum += rows g and g + 8 of a sub-block, c and s, times the tokens: x holds the columns of the
// lane's chunk.
template <int W, typename T, int NT>
__device__ __forceinline__ void add_sub_block(float (&sum)[NT][4], const Chunk (&c)[2],
                                              const Scale (&s)[2], const uint4 (&x)[NT],
                                              const BiasSums<W, T, NT> &bias)
{
    using B = Blocks<W>;
    using I = Integers<W, T>;
    float low[NT][4], high[NT][4]; // of the second part of bytes, or of the upper half

#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            low[j][i] = bias.sum[j][0][i], high[j][i] = B::split ? bias.sum[j][B::split][i] : 0;
#pragma unroll
    for (int part = 0; part < I::parts; part++) {
        uint32_t a[4], b[4];

#pragma unroll
        for (int r = 0; r < 2; r++) {
            a[r] = I::pair(c[r], 0, part), a[r + 2] = I::pair(c[r], 1, part);
            b[r] = I::pair(c[r], 2, part), b[r + 2] = I::pair(c[r], 3, part);
        }
#pragma unroll
        for (int j = 0; j < NT; j++) {
            mma<T>(part ? high[j] : low[j], a, x[j].x, x[j].y);
            mma<T>(part || B::split ? high[j] : low[j], b, x[j].z, x[j].w);
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++) {
        if (I::parts == 2)
            add_scaled(low[j], 16, 16, high[j]);
        add_scaled(sum[j], s[0].s, s[1].s, low[j]);
        if (B::split)
            add_scaled(sum[j], s[0].t, s[1].t, high[j]);
        if (B::affine) {
            const float by = -1.0f / (float)(I::bias ? I::bias : 1);
            add_scaled(sum[j], by * s[0].o, by * s[1].o, bias.sum[j][0]);
        }
    }
}

#endif
