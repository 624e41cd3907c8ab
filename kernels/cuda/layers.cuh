// SPDX-License-Identifier: Apache-2.0
// The feed-forward layers that a token of a mixture goes to.
#ifndef EK_CUDA_LAYERS_CUH
#define EK_CUDA_LAYERS_CUH

#include "kernels/cuda/deepseek.h"
#include "kernels/cuda/weights.cuh"

#define LAYERS_MOST 64 // experts a token

// A token's layers by number: the shared ones, which weigh 1, then its experts. A shared layer has
// inner rows of gate and of up, and inner columns of down.
struct Layers {
    int32_t ids[LAYERS_MOST];
    float weights[LAYERS_MOST];

    __device__ __forceinline__ void read(const ek_cu_experts &e, uint32_t token)
    {
        if (threadIdx.x < e.top_k) {
            ids[threadIdx.x] = e.ids[(size_t)token * e.top_k + threadIdx.x];
            weights[threadIdx.x] = e.weights[(size_t)token * e.top_k + threadIdx.x];
        }
    }
    // *up: the row of up that belongs to the row of gate that is returned
    template <int W>
    __device__ __forceinline__ WeightRow gate(const ek_cu_experts &e, uint32_t layer, uint32_t row,
                                              WeightRow *up) const
    {
        bool shared = layer < e.n_shared;
        const uint8_t *data = shared ? e.shared_up : e.gate_up;
        size_t at = shared ? (size_t)layer * e.inner + row
                           : (size_t)ids[layer - e.n_shared] * 2 * e.inner + row;

        *up = row_of<W>(data, at + (shared ? e.n_shared : 1) * (size_t)e.inner, e.gate_up_row);
        return row_of<W>(data, at, e.gate_up_row);
    }
    template <int W>
    __device__ __forceinline__ WeightRow down(const ek_cu_experts &e, uint32_t layer,
                                              uint32_t row) const
    {
        if (layer < e.n_shared)
            return row_of<W>(e.shared_down, row, e.n_shared * e.down_row, layer * e.down_row);
        return row_of<W>(e.down, (size_t)ids[layer - e.n_shared] * e.hidden + row, e.down_row);
    }
    __device__ __forceinline__ float weight(const ek_cu_experts &e, uint32_t layer) const
    {
        return layer < e.n_shared ? 1.0f : weights[layer - e.n_shared];
    }
};

#endif
