// SPDX-License-Identifier: Apache-2.0
// Products with a few tokens and weights in groups (GPTQ, AWQ, FP8).
#include "kernels/cuda/stream_blocks.cuh"

extern "C" cudaError_t ek_cu_few_groups(const struct ek_cu_queue *q, enum ek_dtype w,
                                        enum ek_dtype act, enum ek_cu_mode mode, uint32_t n,
                                        const struct ek_cu_product *p)
{
    switch (w) {
        EK_WEIGHT_CASE(EK_G4_32, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_G4_64, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_G4_128, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_G8_32, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_G8_64, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_G8_128, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_B8_32, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_B8_64, return pack_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_B8_128, return pack_any<W>(q, act, mode, n, p))
    default:
        return cudaErrorNotSupported;
    }
}
