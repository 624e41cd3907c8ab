// SPDX-License-Identifier: Apache-2.0
// Prefill attention on tensor cores: causal, ragged, over the paged cache.
#include "kernels/cuda/attention_tiles.cuh"

template <typename T>
static cudaError_t prefill(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    return a->kv.head_dim == 64 ? tiles_launch<T, 64, 8, 2, PagedSource<64>>(q, a)
                                : tiles_launch<T, 128, 8, 2, PagedSource<128>>(q, a);
}

extern "C" cudaError_t ek_cu_attention_prefill(const struct ek_cu_queue *q, enum ek_dtype act,
                                               const struct ek_cu_attention *a)
{
    return act == EK_BF16  ? prefill<bf16>(q, a)
           : act == EK_F16 ? prefill<f16>(q, a)
                           : cudaErrorNotSupported;
}
