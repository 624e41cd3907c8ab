// SPDX-License-Identifier: Apache-2.0
// Elements of the cache: those of activations, or E4M3 with a scale a row (a token's keys, or
// values, of one head): its largest magnitude / 448.
#ifndef EK_CUDA_CACHE_CUH
#define EK_CUDA_CACHE_CUH

#include <cuda_fp8.h>

#include <type_traits>

#include "kernels/cuda/common.cuh"

struct f8 {
    uint8_t bits;
};
template <typename C> constexpr bool SCALED = std::is_same<C, f8>::value;

// 2^120 times the float that has its exponent and mantissa; NaN for the all-ones.
__device__ __forceinline__ float to_f(f8 x)
{
    float v = __uint_as_float((uint32_t)(x.bits & 127) << 20 | (uint32_t)(x.bits & 128) << 24);

    return (x.bits & 127) == 127 ? NAN : v * 0x1p120f;
}

// Four E4M3 numbers (NaN apart: 480) times WIDENED<T>: bytes 0 and 2, and bytes 1 and 3. Exponent
// and mantissa move to where T has them, and T's smaller exponents are what they are.
template <typename T> constexpr float WIDENED = std::is_same<T, bf16>::value ? 0x1p-120f : 0x1p-8f;
template <typename T> __device__ __forceinline__ uint32_t widen_high(uint32_t q)
{
    uint32_t bits = std::is_same<T, bf16>::value ? q >> 4 & 0x07f007f0u : q >> 1 & 0x3f803f80u;

    return bits | (q & 0x80008000u);
}
template <typename T> __device__ __forceinline__ uint2 widen4(uint32_t q)
{
    return make_uint2(widen_high<T>(q << 8), widen_high<T>(q));
}

// What a row of that largest magnitude is multiplied by when it is read.
__device__ __forceinline__ float scale_of_row(float largest)
{
    return largest <= 0x1p-100f ? 1.0f : largest / 448.0f;
}
__device__ __forceinline__ f8 to_e4m3(float x, float scale)
{
    return f8{(uint8_t)__nv_cvt_float_to_fp8(x / scale, __NV_SATFINITE, __NV_E4M3)};
}

// A row of n elements into the cache, by one warp.
template <typename T>
__device__ __forceinline__ void store_scaled_row(const T *row, uint32_t n, f8 *to, float *scale)
{
    uint32_t largest = 0; // as bits: NaN is the largest of all
    float s;

    for (uint32_t i = threadIdx.x % 32; i < n; i += 32)
        largest = max(largest, __float_as_uint(fabsf(to_f(row[i]))));
#pragma unroll
    for (int d = 16; d; d /= 2)
        largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    s = scale_of_row(__uint_as_float(largest));
    for (uint32_t i = threadIdx.x % 32; i < n; i += 32)
        to[i] = to_e4m3(to_f(row[i]), s);
    if (threadIdx.x % 32 == 0)
        *scale = s;
}

// As EK_DISPATCH_ACT, of a cache.
#define EK_DISPATCH_CACHE(dtype, C, ...)                                                           \
    if ((dtype) == EK_F8_E4M3) {                                                                   \
        using C = f8;                                                                              \
        __VA_ARGS__;                                                                               \
    }                                                                                              \
    EK_DISPATCH_ACT(dtype, C, __VA_ARGS__)

#endif
