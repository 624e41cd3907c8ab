// SPDX-License-Identifier: Apache-2.0
// Products with a few tokens and weights in ggml blocks of 256.
#include "kernels/cuda/stream_blocks.cuh"

extern "C" cudaError_t ek_cu_few_qk(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                                    enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p)
{
    switch (w) {
        EK_WEIGHT_CASE(EK_Q4_K, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_Q5_K, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_Q6_K, return pack_any<W>(q, act, mode, n, p))
    default:
        return cudaErrorNotSupported;
    }
}
