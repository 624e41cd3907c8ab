// SPDX-License-Identifier: Apache-2.0
// The token of a product with one, in shared memory; normalised there when asked.
#ifndef EK_CUDA_STAGED_CUH
#define EK_CUDA_STAGED_CUH

#include "kernels/cuda/common.cuh"

#define NORM_BYTES ((size_t)64 << 10) // of a token and its norm's weights in shared memory

template <typename T> __host__ __device__ constexpr size_t token_bytes(uint32_t cols, bool norm)
{
    size_t both = cols * (sizeof(T) + sizeof(float));

    return norm && both <= NORM_BYTES ? both : cols * sizeof(T);
}

// The weights of the norm behind the token, while the kernel ahead is at work; they are as cold as
// the matrix. Too many of them stay where they are.
template <typename T>
__device__ __forceinline__ const float *stage_norm(const float *norm, uint32_t cols, T *token)
{
    float *to = reinterpret_cast<float *>(token + cols);

    if (norm == nullptr || token_bytes<T>(cols, true) == cols * sizeof(T))
        return norm;
    for (uint32_t i = threadIdx.x; i < cols / 4; i += blockDim.x)
        copy16(shared_at(to + 4 * i), norm + 4 * i);
    return to;
}

template <typename T> __device__ __forceinline__ void ask_token(const T *x, uint32_t cols, T *to)
{
    for (uint32_t i = threadIdx.x; i < cols * sizeof(T) / 16; i += blockDim.x)
        copy16(shared_at((char *)to + 16 * i), (const char *)x + 16 * i);
    copy_commit();
}

// When it was asked for.
template <typename T>
__device__ __forceinline__ void stage_token(const float *norm, float eps, uint32_t cols, T *to)
{
    __shared__ float tmp[32];
    float v[8], sum = 0;

    copy_wait<0>();
    __syncthreads();
    if (norm) {
        for (uint32_t i = 8 * threadIdx.x; i < cols; i += 8 * blockDim.x) {
            load8(to + i, v);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum += v[j] * v[j];
        }
        float r = rsqrtf(block_sum(sum, tmp) / (float)cols + eps);

        for (uint32_t i = 8 * threadIdx.x; i < cols; i += 8 * blockDim.x) {
            float w[8];

            load8(to + i, v);
            load8(norm + i, w);
#pragma unroll
            for (int j = 0; j < 8; j++)
                v[j] = round_to<T>(v[j] * r) * w[j];
            store8(to + i, v);
        }
        __syncthreads();
    }
}

#endif
