// SPDX-License-Identifier: Apache-2.0
// Products with a few tokens and weights in ggml blocks of 32.
#include "kernels/cuda/stream_blocks.cuh"

extern "C" cudaError_t ek_cu_few_q32(const struct ek_cu_queue *q, enum ek_dtype w,
                                     enum ek_dtype act, enum ek_cu_mode mode, uint32_t n,
                                     const struct ek_cu_product *p)
{
    switch (w) {
        EK_WEIGHT_CASE(EK_Q4_0, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_Q4_1, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_Q5_0, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_Q5_1, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_Q8_0, return pack_any<W>(q, act, mode, n, p))
    default:
        return cudaErrorNotSupported;
    }
}
