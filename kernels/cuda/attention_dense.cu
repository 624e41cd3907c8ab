// SPDX-License-Identifier: Apache-2.0
// Attention of vision towers on tensor cores: every row to all rows of its segment. Segments of at
// most 64 rows (windows) take a block of 64 rows and one step.
#include "kernels/cuda/attention_tiles.cuh"

template <typename T, int D>
static cudaError_t dense(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    return a->batch.max_q <= TILE_KV ? tiles_launch<T, 4, 1, RowSource<D, 1>>(q, a)
                                     : tiles_launch<T, 8, 2, RowSource<D, 2>>(q, a);
}

template <typename T>
static cudaError_t dense_of(const struct ek_cu_queue *q, const struct ek_cu_attention *a)
{
    if (a->kv.head_dim <= 64)
        return dense<T, 64>(q, a);
    return a->kv.head_dim <= 80 ? dense<T, 80>(q, a) : dense<T, 128>(q, a);
}

extern "C" cudaError_t ek_cu_attention_dense(const struct ek_cu_queue *q, enum ek_dtype act,
                                             const struct ek_cu_attention *a)
{
    return act == EK_BF16  ? dense_of<bf16>(q, a)
           : act == EK_F16 ? dense_of<f16>(q, a)
                           : cudaErrorNotSupported;
}
