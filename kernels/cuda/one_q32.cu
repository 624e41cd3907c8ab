// SPDX-License-Identifier: Apache-2.0
// One-token products with weights in ggml blocks of 32.
#include "kernels/cuda/one.cuh"

extern "C" cudaError_t ek_cu_one_q32(const struct ek_cu_queue *q, enum ek_dtype w,
                                     enum ek_dtype act, enum ek_cu_mode mode,
                                     const struct ek_cu_product *p)
{
    switch (w) {
    case EK_Q4_0:
        return one_any<EK_Q4_0>(q, act, mode, p);
    case EK_Q4_1:
        return one_any<EK_Q4_1>(q, act, mode, p);
    case EK_Q5_0:
        return one_any<EK_Q5_0>(q, act, mode, p);
    case EK_Q5_1:
        return one_any<EK_Q5_1>(q, act, mode, p);
    case EK_Q8_0:
        return one_any<EK_Q8_0>(q, act, mode, p);
    default:
        return cudaErrorNotSupported;
    }
}
