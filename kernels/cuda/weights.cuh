// SPDX-License-Identifier: Apache-2.0
// Weight<T>: how a weight row of an ek_dtype is read. A row is a sequence of chunks of 8 elements,
// the unit that one lane reads. Loading (Raw) and decoding are apart so that several loads are in
// flight. Elements 0..3 of chunk c are the columns lo(c)..lo(c)+3, elements 4..7 hi(c)..hi(c)+3.
// Types in blocks lie as blocks.cuh says.
#ifndef EK_CUDA_WEIGHTS_CUH
#define EK_CUDA_WEIGHTS_CUH

#include "kernels/cuda/blocks.cuh"

template <int W> struct Weight : WeightBlocks<W> {
};

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
    static __device__ __forceinline__ Raw load(const WeightRow &row, uint32_t c)
    {
        return {load_stream(row.at + 16 * (size_t)c)};
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
    static __device__ __forceinline__ Raw load(const WeightRow &row, uint32_t c)
    {
        return {load_stream(row.at + 32 * (size_t)c), load_stream(row.at + 32 * (size_t)c + 16)};
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t, float v[8])
    {
        v[0] = __uint_as_float(r.a.x), v[1] = __uint_as_float(r.a.y);
        v[2] = __uint_as_float(r.a.z), v[3] = __uint_as_float(r.a.w);
        v[4] = __uint_as_float(r.b.x), v[5] = __uint_as_float(r.b.y);
        v[6] = __uint_as_float(r.b.z), v[7] = __uint_as_float(r.b.w);
    }
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

#endif
