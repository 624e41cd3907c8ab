// SPDX-License-Identifier: Apache-2.0
// Weight<T>: how a weight row of an ek_dtype is read. A row is a sequence of chunks of 8 elements,
// the unit that one lane reads. Loading (Raw) and decoding are apart so that several loads are in
// flight. Elements 0..3 of chunk c are the columns lo(c)..lo(c)+3, elements 4..7 hi(c)..hi(c)+3:
// the block types keep the two nibbles of a byte 16 or more columns apart. A zeroed Raw decodes to
// zeros. Block formats: ggml's.
#ifndef EK_CUDA_WEIGHTS_CUH
#define EK_CUDA_WEIGHTS_CUH

#include "kernels/cuda/common.cuh"

template <int T> struct Weight;

// ---- plain types
template <typename T> struct WeightHalf {
    struct Raw {
        uint4 v;
    };
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return 8 * c;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return 8 * c + 4;
    }
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        return {load_stream(row + 16 * (size_t)c)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float2 a = unpack2<T>(r.v.x), b = unpack2<T>(r.v.y);
        float2 c = unpack2<T>(r.v.z), d = unpack2<T>(r.v.w);
        v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
        v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
    }
};
template <> struct Weight<EK_BF16> : WeightHalf<bf16> {
};
template <> struct Weight<EK_F16> : WeightHalf<f16> {
};
template <> struct Weight<EK_F32> {
    struct Raw {
        uint4 a, b;
    };
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return 8 * c;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return 8 * c + 4;
    }
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        return {load_stream(row + 32 * (size_t)c), load_stream(row + 32 * (size_t)c + 16)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        v[0] = __uint_as_float(r.a.x), v[1] = __uint_as_float(r.a.y);
        v[2] = __uint_as_float(r.a.z), v[3] = __uint_as_float(r.a.w);
        v[4] = __uint_as_float(r.b.x), v[5] = __uint_as_float(r.b.y);
        v[6] = __uint_as_float(r.b.z), v[7] = __uint_as_float(r.b.w);
    }
};

// ---- unaligned pieces of blocks
__device__ __forceinline__ uint32_t word2(const uint8_t *p) // 2-byte aligned
{
    const uint16_t *h = reinterpret_cast<const uint16_t *>(p);
    return __ldg(h) | (uint32_t)__ldg(h + 1) << 16;
}
__device__ __forceinline__ uint32_t word4(const uint8_t *p) // 4-byte aligned
{
    return __ldg(reinterpret_cast<const uint32_t *>(p));
}
__device__ __forceinline__ uint32_t half2_bits(const uint8_t *p)
{
    return __ldg(reinterpret_cast<const uint16_t *>(p));
}
__device__ __forceinline__ float half_value(uint32_t bits)
{
    return __half2float(__ushort_as_half((unsigned short)bits));
}

// u - zero as a float, u < 2^23: by the exponent of 2^23, as conversions run at an eighth of the
// rate of other instructions.
__device__ __forceinline__ float small_float(uint32_t u, int zero = 0)
{
    return __uint_as_float(0x4b000000u | u) - (8388608.0f + (float)zero);
}

// Blocks of 32 columns: lanes 0..3 of a block take 4 bytes of nibbles each.
struct Block32 {
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return c / 4 * 32 + c % 4 * 4;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return lo(c) + 16;
    }
};
template <> struct Weight<EK_Q4_0> : Block32 {
    struct Raw {
        uint32_t q, d;
    };
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 4 * (size_t)18;
        return {word2(b + 2 + c % 4 * 4), half2_bits(b)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float d = half_value(r.d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d * small_float(r.q >> 8 * i & 15, 8);
            v[i + 4] = d * small_float(r.q >> (8 * i + 4) & 15, 8);
        }
    }
};
template <> struct Weight<EK_Q4_1> : Block32 {
    struct Raw {
        uint32_t q, dm;
    };
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 4 * (size_t)20;
        return {word4(b + 4 + c % 4 * 4), word4(b)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float d = half_value(r.dm & 0xffff), m = half_value(r.dm >> 16);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d * small_float(r.q >> 8 * i & 15) + m;
            v[i + 4] = d * small_float(r.q >> (8 * i + 4) & 15) + m;
        }
    }
};
// The fifth bits of a lane's 8 elements: columns j..j+3 in bits 0..3, j+16..j+19 in bits 4..7.
__device__ __forceinline__ uint32_t fifth_bits(uint32_t qh, uint32_t j)
{
    return (qh >> j & 15) | (qh >> (j + 16) & 15) << 4;
}
template <> struct Weight<EK_Q5_0> : Block32 {
    struct Raw {
        uint32_t q, h, d;
    };
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 4 * (size_t)22;
        return {word2(b + 6 + c % 4 * 4), fifth_bits(word2(b + 2), c % 4 * 4), half2_bits(b)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float d = half_value(r.d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d * small_float((r.q >> 8 * i & 15) | (r.h >> i & 1) << 4, 16);
            v[i + 4] = d * small_float((r.q >> (8 * i + 4) & 15) | (r.h >> (i + 4) & 1) << 4, 16);
        }
    }
};
template <> struct Weight<EK_Q5_1> : Block32 {
    struct Raw {
        uint32_t q, h, dm;
    };
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 4 * (size_t)24;
        return {word4(b + 8 + c % 4 * 4), fifth_bits(word4(b + 4), c % 4 * 4), word4(b)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float d = half_value(r.dm & 0xffff), m = half_value(r.dm >> 16);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d * small_float((r.q >> 8 * i & 15) | (r.h >> i & 1) << 4) + m;
            v[i + 4] = d * small_float((r.q >> (8 * i + 4) & 15) | (r.h >> (i + 4) & 1) << 4) + m;
        }
    }
};
template <> struct Weight<EK_Q8_0> {
    struct Raw {
        uint32_t a, b, d;
    };
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return 8 * c;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return 8 * c + 4;
    }
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 4 * (size_t)34;
        return {word2(b + 2 + c % 4 * 8), word2(b + 6 + c % 4 * 8), half2_bits(b)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float d = half_value(r.d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d * small_float((r.a >> 8 * i & 255) ^ 128, 128);
            v[i + 4] = d * small_float((r.b >> 8 * i & 255) ^ 128, 128);
        }
    }
};

// Blocks of 256 columns, 32 chunks; Q4_K and Q5_K: four groups of 64 columns, whose low nibbles are
// the first 32 and high nibbles the last 32.
struct BlockK {
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return c / 32 * 256 + c % 32 / 8 * 64 + c % 8 * 4;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return lo(c) + 32;
    }
    struct Scales {
        uint32_t dm, lo, hi; // d and dmin as halves; 6-bit scale (low byte) and minimum (second
                             // byte) of the two sub-blocks
    };
    // Scales and minima of sub-blocks j and j + 1, packed with those of the others in 12 bytes.
    static __device__ __forceinline__ Scales scales(const uint8_t *b, uint32_t c)
    {
        uint32_t j = c % 32 / 8 * 2, shift = 8 * (j % 4);
        uint32_t low = word4(b + 4) >> shift, high = word4(b + 8) >> shift;
        uint32_t last = word4(b + 12) >> shift, scale = low & 0x3f3f, min = high & 0x3f3f;

        if (j >= 4) {
            scale = (last & 0x0f0f) | (low >> 2 & 0x3030);
            min = (last >> 4 & 0x0f0f) | (high >> 2 & 0x3030);
        }
        return {word4(b), __byte_perm(scale, min, 0x7740) & 0xffff,
                __byte_perm(scale, min, 0x7751) & 0xffff};
    }
    static __device__ __forceinline__ void apply(const Scales &s, float v[8])
    {
        float d = half_value(s.dm & 0xffff), m = half_value(s.dm >> 16);
        float d0 = d * (float)(s.lo & 255), m0 = m * (float)(s.lo >> 8);
        float d1 = d * (float)(s.hi & 255), m1 = m * (float)(s.hi >> 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d0 * v[i] - m0;
            v[i + 4] = d1 * v[i + 4] - m1;
        }
    }
};
template <> struct Weight<EK_Q4_K> : BlockK {
    struct Raw {
        uint32_t q;
        Scales s;
    };
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 32 * (size_t)144;
        return {word4(b + 16 + c % 32 * 4), scales(b, c)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = small_float(r.q >> 8 * i & 15);
            v[i + 4] = small_float(r.q >> (8 * i + 4) & 15);
        }
        apply(r.s, v);
    }
};
template <> struct Weight<EK_Q5_K> : BlockK {
    struct Raw {
        uint32_t q, h;
        Scales s;
    };
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 32 * (size_t)176;
        return {word4(b + 48 + c % 32 * 4), word4(b + 16 + c % 8 * 4) >> c % 32 / 8 * 2,
                scales(b, c)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = small_float((r.q >> 8 * i & 15) | (r.h >> 8 * i & 1) << 4);
            v[i + 4] = small_float((r.q >> (8 * i + 4) & 15) | (r.h >> (8 * i + 1) & 1) << 4);
        }
        apply(r.s, v);
    }
};
// Two halves of 128 columns: 64 bytes of low nibbles, 32 of upper bit pairs, 8 scales.
template <> struct Weight<EK_Q6_K> {
    struct Raw {
        uint32_t q, h, d, s; // s: the two int8 scales
    };
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return c / 16 * 128 + c % 16 / 8 * 32 + c % 8 * 4;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return lo(c) + 64;
    }
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *b = row + c / 32 * (size_t)210;
        uint32_t half = c % 32 / 16, p = c % 16 / 8, l = c % 8 * 4;
        const uint8_t *sc = b + 192 + half * 8 + l / 16 + 2 * p;
        return {word2(b + half * 64 + p * 32 + l), word2(b + 128 + half * 32 + l) >> 2 * p,
                half2_bits(b + 208), __ldg(sc) | (uint32_t)__ldg(sc + 4) << 8};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        float d = half_value(r.d);
        float d0 = d * (float)(int8_t)r.s, d1 = d * (float)(int8_t)(r.s >> 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = d0 * small_float((r.q >> 8 * i & 15) | (r.h >> 8 * i & 3) << 4, 32);
            v[i + 4] =
                d1 * small_float((r.q >> (8 * i + 4) & 15) | (r.h >> (8 * i + 4) & 3) << 4, 32);
        }
    }
};

// Groups of N columns: GPTQ, AWQ and FP8 weights, and those quantised at load. A head of 4 bytes,
// then nibbles (low first) or bytes.
template <int N, int BITS> struct WeightGroup {
    struct Raw {
        uint32_t head, a, b;
    };
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return 8 * c;
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return 8 * c + 4;
    }
    static __device__ __forceinline__ Raw load(const uint8_t *row, uint32_t c)
    {
        const uint8_t *group = row + c / (N / 8) * (size_t)(4 + N * BITS / 8);
        const uint8_t *at = group + 4 + c % (N / 8) * BITS;

        return {word4(group), word4(at), BITS == 8 ? word4(at + 4) : 0};
    }
};
// The scale of a group of integers: F16, or BF16 when the head's last byte is not 0.
__device__ __forceinline__ float group_scale(uint32_t head)
{
    return head >> 24 ? __uint_as_float(head << 16) : half_value(head & 0xffff);
}
__device__ __forceinline__ int group_zero(uint32_t head)
{
    return (int)(head >> 16 & 255);
}
// A group's number, rounded to the scale's type as those who made it do.
__device__ __forceinline__ float grouped(uint32_t head, float scale, uint32_t q)
{
    float v = scale * small_float(q, group_zero(head));

    return head >> 24 ? round_to<bf16>(v) : round_to<f16>(v);
}
template <int N> struct WeightG4 : WeightGroup<N, 4> {
    static __device__ __forceinline__ void decode(const typename WeightGroup<N, 4>::Raw &r,
                                                  uint32_t, float v[8])
    {
        float scale = group_scale(r.head);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = grouped(r.head, scale, r.a >> 4 * i & 15);
    }
};
template <int N> struct WeightG8 : WeightGroup<N, 8> {
    static __device__ __forceinline__ void decode(const typename WeightGroup<N, 8>::Raw &r,
                                                  uint32_t, float v[8])
    {
        float scale = group_scale(r.head);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = grouped(r.head, scale, (i < 4 ? r.a : r.b) >> 8 * (i % 4) & 255);
    }
};
// An E4M3 number: 2^120 times the float that has its exponent and mantissa; NaN for the all-ones.
__device__ __forceinline__ float e4m3(uint32_t b)
{
    float v = __uint_as_float((b & 127) << 20 | (b & 128) << 24) * 0x1p120f;

    return (b & 127) == 127 ? NAN : v;
}
template <int N> struct WeightB8 : WeightGroup<N, 8> {
    static __device__ __forceinline__ void decode(const typename WeightGroup<N, 8>::Raw &r,
                                                  uint32_t, float v[8])
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = __uint_as_float(r.head) * e4m3((i < 4 ? r.a : r.b) >> 8 * (i % 4) & 255);
    }
};
template <> struct Weight<EK_G4_32> : WeightG4<32> {
};
template <> struct Weight<EK_G4_64> : WeightG4<64> {
};
template <> struct Weight<EK_G4_128> : WeightG4<128> {
};
template <> struct Weight<EK_G8_32> : WeightG8<32> {
};
template <> struct Weight<EK_G8_64> : WeightG8<64> {
};
template <> struct Weight<EK_G8_128> : WeightG8<128> {
};
template <> struct Weight<EK_B8_32> : WeightB8<32> {
};
template <> struct Weight<EK_B8_64> : WeightB8<64> {
};
template <> struct Weight<EK_B8_128> : WeightB8<128> {
};

// Runs the statement with W as the weight type, of all that products take; the other one for types
// in blocks alone.
#define EK_WEIGHT_CASE(X, ...)                                                                     \
    case X: {                                                                                      \
        constexpr int W = X;                                                                       \
        __VA_ARGS__;                                                                               \
    }
#define EK_DISPATCH_BLOCKS(w, ...)                                                                 \
    switch (w) {                                                                                   \
        EK_WEIGHT_CASE(EK_Q4_0, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q4_1, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q5_0, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q5_1, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q8_0, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q4_K, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q5_K, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_Q6_K, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_G4_32, __VA_ARGS__)                                                      \
        EK_WEIGHT_CASE(EK_G4_64, __VA_ARGS__)                                                      \
        EK_WEIGHT_CASE(EK_G4_128, __VA_ARGS__)                                                     \
        EK_WEIGHT_CASE(EK_G8_32, __VA_ARGS__)                                                      \
        EK_WEIGHT_CASE(EK_G8_64, __VA_ARGS__)                                                      \
        EK_WEIGHT_CASE(EK_G8_128, __VA_ARGS__)                                                     \
        EK_WEIGHT_CASE(EK_B8_32, __VA_ARGS__)                                                      \
        EK_WEIGHT_CASE(EK_B8_64, __VA_ARGS__)                                                      \
        EK_WEIGHT_CASE(EK_B8_128, __VA_ARGS__)                                                     \
    default:                                                                                       \
        return cudaErrorNotSupported;                                                              \
    }
#define EK_DISPATCH_WEIGHT(w, ...)                                                                 \
    switch (w) {                                                                                   \
        EK_WEIGHT_CASE(EK_F32, __VA_ARGS__)                                                        \
        EK_WEIGHT_CASE(EK_BF16, __VA_ARGS__)                                                       \
        EK_WEIGHT_CASE(EK_F16, __VA_ARGS__)                                                        \
    default:                                                                                       \
        EK_DISPATCH_BLOCKS(w, __VA_ARGS__)                                                         \
    }

// ---- elements of a product
__device__ __forceinline__ float activate(int flags, float v)
{
    if (flags & EK_LINEAR_GELU)
        v = 0.5f * v * (1.0f + erff(v * 0.7071067812f));
    if (flags & EK_LINEAR_GELU_TANH)
        v = 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    return v;
}
template <typename T>
__device__ __forceinline__ void store_linear(const ek_cu_product &p, size_t at, float v)
{
    if (p.flags & EK_LINEAR_OUT_F32)
        ((float *)p.out)[at] = v;
    else
        ((T *)p.out)[at] = from_f<T>(v);
}
// Bias added: activation, residual, type.
template <typename T>
__device__ __forceinline__ void finish_linear(const ek_cu_product &p, size_t at, float v)
{
    v = activate(p.flags, v);
    if (p.flags & EK_LINEAR_ADD)
        v +=
            p.flags & EK_LINEAR_OUT_F32 ? ((const float *)p.out)[at] : to_f(((const T *)p.out)[at]);
    store_linear<T>(p, at, v);
}

#endif
