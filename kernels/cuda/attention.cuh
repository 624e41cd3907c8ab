// SPDX-License-Identifier: Apache-2.0
// Shared by the attention kernels: where a context's token lies in the paged cache.
#ifndef EK_CUDA_ATTENTION_CUH
#define EK_CUDA_ATTENTION_CUH

#include "kernels/cuda/common.cuh"

#define LOG2E 1.44269504f

// Pages are powers of two in practice: then no division.
__device__ __forceinline__ int32_t block_of(const struct ek_cu_attention &a, uint32_t seq,
                                            uint32_t token)
{
    uint32_t page = a.kv.page;
    const int32_t *table = a.batch.block_table + (size_t)seq * a.batch.max_blocks;

    return table[(page & (page - 1)) == 0 ? token >> (31 - __clz((int)page)) : token / page];
}
__device__ __forceinline__ uint32_t offset_of(const struct ek_cu_attention &a, uint32_t token)
{
    uint32_t page = a.kv.page;

    return (page & (page - 1)) == 0 ? token & (page - 1) : token % page;
}
__device__ __forceinline__ size_t slot_of(const struct ek_cu_attention &a, uint32_t seq,
                                          uint32_t token)
{
    return (size_t)(uint32_t)block_of(a, seq, token) * a.kv.page + offset_of(a, token);
}

#endif
