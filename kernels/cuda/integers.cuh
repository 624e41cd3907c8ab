// SPDX-License-Identifier: Apache-2.0
// Integers<W, T>: weights in blocks as tensor cores like them best: the chunk's integers as pairs
// of T, exact, and what they are worth: weight = scale integer + offset. Scales and offsets are
// applied to sums of products, once a block, not to each weight. lo: elements 0..3 of the chunk;
// hi: 4..7. T is bf16, which holds integers up to 256 exactly, or f16.
#ifndef EK_CUDA_INTEGERS_CUH
#define EK_CUDA_INTEGERS_CUH

#include "kernels/cuda/weights.cuh"

// ---- pairs
template <typename T> __device__ __forceinline__ uint32_t subtract2(uint32_t a, uint32_t b);
template <> __device__ __forceinline__ uint32_t subtract2<bf16>(uint32_t a, uint32_t b)
{
    __nv_bfloat162 r =
        __hsub2(*reinterpret_cast<__nv_bfloat162 *>(&a), *reinterpret_cast<__nv_bfloat162 *>(&b));
    return *reinterpret_cast<uint32_t *>(&r);
}
template <> __device__ __forceinline__ uint32_t subtract2<f16>(uint32_t a, uint32_t b)
{
    __half2 r = __hsub2(*reinterpret_cast<__half2 *>(&a), *reinterpret_cast<__half2 *>(&b));
    return *reinterpret_cast<uint32_t *>(&r);
}
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
// The upper byte that makes a number below 128 of the lower one, plus 128 or 1024.
template <typename T> constexpr uint32_t UPPER = std::is_same<T, bf16>::value ? 0x43 : 0x64;

// The bytes of q, below 128, minus zero.
template <typename T> __device__ __forceinline__ uint2 small_pairs(uint32_t q, uint32_t zero)
{
    uint32_t upper = UPPER<T> * 0x01010101u, base = (UPPER<T> << 8 | zero) * 0x00010001u;

    return make_uint2(subtract2<T>(__byte_perm(q, upper, 0x4140), base),
                      subtract2<T>(__byte_perm(q, upper, 0x4342), base));
}
// The same of any bytes.
template <typename T> __device__ __forceinline__ uint2 byte_pairs(uint32_t q, int zero)
{
    float v[4];

#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] =
            __uint_as_float(__byte_perm(q, 0x4b000000u, 0x7440 + i)) - (8388608.0f + (float)zero);
    return make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
}
// Four bits to the lowest bits of four bytes.
__device__ __forceinline__ uint32_t spread(uint32_t bits)
{
    return (bits * 0x00204081u) & 0x01010101u;
}
#define EK_NIBBLES 0x0f0f0f0fu

// ---- the types
// affine: offsets are not 0. split: lo and hi have their own scales.
template <bool AFFINE, bool SPLIT> struct IntegersOf {
    static const bool affine = AFFINE, split = SPLIT;

    // The token's elements in the order of the integers.
    static __device__ __forceinline__ uint4 arrange(uint4 x)
    {
        return x;
    }
    template <typename R> static __device__ __forceinline__ float2 offset(const R &)
    {
        return make_float2(0, 0);
    }
};
__device__ __forceinline__ uint4 join_pairs(uint2 lo, uint2 hi)
{
    return make_uint4(lo.x, lo.y, hi.x, hi.y);
}
__device__ __forceinline__ float2 twice(float v)
{
    return make_float2(v, v);
}

template <int W, typename T> struct Integers;
template <typename T> struct Integers<EK_Q4_0, T> : IntegersOf<false, false> {
    using Raw = typename Weight<EK_Q4_0>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(small_pairs<T>(r.q & EK_NIBBLES, 8),
                          small_pairs<T>(r.q >> 4 & EK_NIBBLES, 8));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(half_value(r.d));
    }
};
template <typename T> struct Integers<EK_Q4_1, T> : IntegersOf<true, false> {
    using Raw = typename Weight<EK_Q4_1>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(small_pairs<T>(r.q & EK_NIBBLES, 0),
                          small_pairs<T>(r.q >> 4 & EK_NIBBLES, 0));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(half_value(r.dm & 0xffff));
    }
    static __device__ __forceinline__ float2 offset(const Raw &r)
    {
        return twice(half_value(r.dm >> 16));
    }
};
template <typename T>
__device__ __forceinline__ uint4 five_bits(uint32_t q, uint32_t fifth, uint32_t zero)
{
    return join_pairs(small_pairs<T>((q & EK_NIBBLES) | spread(fifth & 15) << 4, zero),
                      small_pairs<T>((q >> 4 & EK_NIBBLES) | spread(fifth >> 4 & 15) << 4, zero));
}
template <typename T> struct Integers<EK_Q5_0, T> : IntegersOf<false, false> {
    using Raw = typename Weight<EK_Q5_0>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return five_bits<T>(r.q, r.h, 16);
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(half_value(r.d));
    }
};
template <typename T> struct Integers<EK_Q5_1, T> : IntegersOf<true, false> {
    using Raw = typename Weight<EK_Q5_1>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return five_bits<T>(r.q, r.h, 0);
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(half_value(r.dm & 0xffff));
    }
    static __device__ __forceinline__ float2 offset(const Raw &r)
    {
        return twice(half_value(r.dm >> 16));
    }
};
template <typename T> struct Integers<EK_Q8_0, T> : IntegersOf<false, false> {
    using Raw = typename Weight<EK_Q8_0>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(byte_pairs<T>(r.a ^ 0x80808080u, 128),
                          byte_pairs<T>(r.b ^ 0x80808080u, 128));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(half_value(r.d));
    }
};
struct IntegersK45 : IntegersOf<true, true> {
    static __device__ __forceinline__ float2 scale_of(const BlockK::Scales &s)
    {
        float d = half_value(s.dm & 0xffff);

        return make_float2(d * (float)(s.lo & 255), d * (float)(s.hi & 255));
    }
    static __device__ __forceinline__ float2 offset_of(const BlockK::Scales &s)
    {
        float m = -half_value(s.dm >> 16);

        return make_float2(m * (float)(s.lo >> 8), m * (float)(s.hi >> 8));
    }
};
template <typename T> struct Integers<EK_Q4_K, T> : IntegersK45 {
    using Raw = typename Weight<EK_Q4_K>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(small_pairs<T>(r.q & EK_NIBBLES, 0),
                          small_pairs<T>(r.q >> 4 & EK_NIBBLES, 0));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return scale_of(r.s);
    }
    static __device__ __forceinline__ float2 offset(const Raw &r)
    {
        return offset_of(r.s);
    }
};
template <typename T> struct Integers<EK_Q5_K, T> : IntegersK45 {
    using Raw = typename Weight<EK_Q5_K>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(small_pairs<T>((r.q & EK_NIBBLES) | (r.h & 0x01010101u) << 4, 0),
                          small_pairs<T>((r.q >> 4 & EK_NIBBLES) | (r.h >> 1 & 0x01010101u) << 4,
                                         0));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return scale_of(r.s);
    }
    static __device__ __forceinline__ float2 offset(const Raw &r)
    {
        return offset_of(r.s);
    }
};
template <typename T> struct Integers<EK_Q6_K, T> : IntegersOf<false, true> {
    using Raw = typename Weight<EK_Q6_K>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(small_pairs<T>((r.q & EK_NIBBLES) | (r.h & 0x03030303u) << 4, 32),
                          small_pairs<T>((r.q >> 4 & EK_NIBBLES) | (r.h >> 4 & 0x03030303u) << 4,
                                         32));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        float d = half_value(r.d);

        return make_float2(d * (float)(int8_t)r.s, d * (float)(int8_t)(r.s >> 8));
    }
};
// Low nibbles are the even elements.
template <int N, typename T> struct IntegersG4 : IntegersOf<false, false> {
    using Raw = typename WeightGroup<N, 4>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        uint32_t zero = (uint32_t)group_zero(r.head) & 127; // 16 at most

        return join_pairs(small_pairs<T>(r.a & EK_NIBBLES, zero),
                          small_pairs<T>(r.a >> 4 & EK_NIBBLES, zero));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(group_scale(r.head));
    }
    static __device__ __forceinline__ uint4 arrange(uint4 x)
    {
        return make_uint4(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.z, x.w, 0x5410),
                          __byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x7632));
    }
};
template <int N, typename T> struct IntegersG8 : IntegersOf<false, false> {
    using Raw = typename WeightGroup<N, 8>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(byte_pairs<T>(r.a, group_zero(r.head)),
                          byte_pairs<T>(r.b, group_zero(r.head)));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(group_scale(r.head));
    }
};
// Pairs of E4M3 numbers (NaN apart: 480): exponent and mantissa moved to where T has them, times
// the power of two between the types' exponents.
template <typename T> __device__ __forceinline__ uint2 e4m3_pairs(uint32_t q)
{
    const bool wide = std::is_same<T, bf16>::value;
    uint32_t v[2] = {__byte_perm(q, 0, 0x1404), __byte_perm(q, 0, 0x3424)};

#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t bits = wide ? v[i] >> 4 & 0x07f007f0u : v[i] >> 1 & 0x3f803f80u;
        v[i] = multiply2<T>(bits | (v[i] & 0x80008000u), wide ? 0x1p120f : 0x1p8f);
    }
    return make_uint2(v[0], v[1]);
}
template <int N, typename T>
struct IntegersB8 : IntegersOf<false, false> { // no integers, but exact
    using Raw = typename WeightGroup<N, 8>::Raw;
    static __device__ __forceinline__ uint4 get(const Raw &r)
    {
        return join_pairs(e4m3_pairs<T>(r.a), e4m3_pairs<T>(r.b));
    }
    static __device__ __forceinline__ float2 scale(const Raw &r)
    {
        return twice(__uint_as_float(r.head));
    }
};
template <typename T> struct Integers<EK_G4_32, T> : IntegersG4<32, T> {
};
template <typename T> struct Integers<EK_G4_64, T> : IntegersG4<64, T> {
};
template <typename T> struct Integers<EK_G4_128, T> : IntegersG4<128, T> {
};
template <typename T> struct Integers<EK_G8_32, T> : IntegersG8<32, T> {
};
template <typename T> struct Integers<EK_G8_64, T> : IntegersG8<64, T> {
};
template <typename T> struct Integers<EK_G8_128, T> : IntegersG8<128, T> {
};
template <typename T> struct Integers<EK_B8_32, T> : IntegersB8<32, T> {
};
template <typename T> struct Integers<EK_B8_64, T> : IntegersB8<64, T> {
};
template <typename T> struct Integers<EK_B8_128, T> : IntegersB8<128, T> {
};

#endif
