// SPDX-License-Identifier: Apache-2.0
// Products with a few tokens and plain weights.
#include "kernels/cuda/few.cuh"

static cudaError_t few_plain(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                             enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p)
{
    switch (w) {
        EK_WEIGHT_CASE(EK_F32, return few_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_BF16, return few_any<W>(q, act, mode, n, p))
        EK_WEIGHT_CASE(EK_F16, return few_any<W>(q, act, mode, n, p))
    default:
        return cudaErrorNotSupported;
    }
}

extern "C" cudaError_t ek_cu_product_few(const struct ek_cu_queue *q, enum ek_dtype w,
                                         enum ek_dtype act, enum ek_cu_mode mode, uint32_t n,
                                         const struct ek_cu_product *p)
{
    if (w >= EK_G4_32)
        return ek_cu_few_groups(q, w, act, mode, n, p);
    if (w >= EK_Q4_K)
        return ek_cu_few_qk(q, w, act, mode, n, p);
    return w >= EK_Q4_0 ? ek_cu_few_q32(q, w, act, mode, n, p) : few_plain(q, w, act, mode, n, p);
}
