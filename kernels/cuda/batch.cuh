// SPDX-License-Identifier: Apache-2.0
// Rows of weights on their way from memory to registers, a warp's: 4 KiB of R rows at a time.
#ifndef EK_CUDA_BATCH_CUH
#define EK_CUDA_BATCH_CUH

#include "kernels/cuda/weights.cuh"

// Loads in flight a row and lane.
template <int W, int R> constexpr int UNROLL = (W == EK_F32 ? 4 : 8) / R;

template <int W, int R> struct Batch { // loads in flight
    typename Weight<W>::Raw raw[R][UNROLL<W, R>];

    __device__ __forceinline__ void load(const uint8_t *const row[R], uint32_t c, uint32_t chunks)
    {
#pragma unroll
        for (int i = 0; i < UNROLL<W, R>; i++)
#pragma unroll
            for (int r = 0; r < R; r++)
                raw[r][i] = c + 32 * i < chunks ? Weight<W>::load(row[r], c + 32 * i)
                                                : typename Weight<W>::Raw{};
    }
    template <typename T>
    __device__ __forceinline__ void multiply(const T *x, uint32_t c, uint32_t chunks,
                                             float sum[R]) const
    {
#pragma unroll
        for (int i = 0; i < UNROLL<W, R>; i++) {
            uint32_t at = c + 32 * i < chunks ? c + 32 * i : 0; // zeros times what is there
            float xv[8], wv[8];

            load8(x + 8 * at, xv);
#pragma unroll
            for (int r = 0; r < R; r++) {
                Weight<W>::decode(raw[r][i], at, wv);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sum[r] = fmaf(xv[j], wv[j], sum[r]);
            }
        }
    }
};

#endif
