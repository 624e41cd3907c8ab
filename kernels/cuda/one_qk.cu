// SPDX-License-Identifier: Apache-2.0
// One-token products with weights in ggml blocks of 256.
#include "kernels/cuda/one.cuh"

extern "C" cudaError_t ek_cu_one_qk(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                                    enum ek_cu_mode mode, const struct ek_cu_product *p)
{
    switch (w) {
    case EK_Q4_K:
        return one_any<EK_Q4_K>(q, act, mode, p);
    case EK_Q5_K:
        return one_any<EK_Q5_K>(q, act, mode, p);
    case EK_Q6_K:
        return one_any<EK_Q6_K>(q, act, mode, p);
    default:
        return cudaErrorNotSupported;
    }
}
