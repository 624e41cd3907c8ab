// SPDX-License-Identifier: Apache-2.0
// An RMS norm begun: rows times the norm's weights, and sums of their squares by 16 columns. A
// product that makes rows and a kernel that finds them there do it alike, so that the same rows
// give the same bits.
#ifndef EK_CUDA_BEGUN_CUH
#define EK_CUDA_BEGUN_CUH

#include "kernels/cuda/common.cuh"

// Eight elements, the first n of them where there are fewer.
template <typename E>
__device__ __forceinline__ void load_some(const E *from, uint32_t n, float v[8])
{
    if (n >= 8 && (uintptr_t)from % 16 == 0)
        return load8(from, v);
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        v[i] = i < n ? to_f(from[i]) : 0.0f;
}
template <typename E>
__device__ __forceinline__ void store_some(E *to, uint32_t n, const float v[8])
{
    if (n >= 8 && (uintptr_t)to % 16 == 0)
        return store8(to, v);
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        if (i < n)
            to[i] = from_f<E>(v[i]);
}

// Of 16 columns of a row: their sum is returned.
template <typename T>
__device__ __forceinline__ float begin_norm(const float (&v)[16], const float (&weight)[16],
                                            float (&scaled)[16])
{
    float sum = 0;

#pragma unroll
    for (int i = 0; i < 16; i++) {
        float x = round_to<T>(v[i]);

        scaled[i] = x * weight[i];
        sum += x * x;
    }
    return sum;
}

#endif
