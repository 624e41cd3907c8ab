// SPDX-License-Identifier: Apache-2.0
// One-token products with plain weights.
#include "kernels/cuda/one.cuh"

extern "C" cudaError_t ek_cu_one_plain(const struct ek_cu_queue *q, enum ek_dtype w,
                                       enum ek_dtype act, enum ek_cu_mode mode,
                                       const struct ek_cu_product *p)
{
    switch (w) {
    case EK_F32:
        return one_any<EK_F32>(q, act, mode, p);
    case EK_BF16:
        return one_any<EK_BF16>(q, act, mode, p);
    case EK_F16:
        return one_any<EK_F16>(q, act, mode, p);
    default:
        return cudaErrorNotSupported;
    }
}

extern "C" cudaError_t ek_cu_product_one(const struct ek_cu_queue *q, enum ek_dtype w,
                                         enum ek_dtype act, enum ek_cu_mode mode,
                                         const struct ek_cu_product *p)
{
    if (w >= EK_Q4_K)
        return ek_cu_one_qk(q, w, act, mode, p);
    return w >= EK_Q4_0 ? ek_cu_one_q32(q, w, act, mode, p) : ek_cu_one_plain(q, w, act, mode, p);
}
