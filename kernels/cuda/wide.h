/* SPDX-License-Identifier: Apache-2.0
 *
 * Products with 2 to 64 tokens of BF16 or F16 and weights of the same type on Hopper's
 * asynchronous tensor cores (wide.cu), as launch.h describes others.
 */
#ifndef EK_CUDA_WIDE_H
#define EK_CUDA_WIDE_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EK_CU_WIDE_TOKENS 64
/* Tokens that they sum for where there are n: the pitch of a norm's squares. */
#define EK_CU_WIDE_PITCH(n) ((n) <= 8 ? 8u : (n) <= 16 ? 16u : (n) <= 32 ? 32u : 64u)

/* The current GPU and this build are of that kind, and the shapes fit: rows of whole chunks of 64
 * columns, matrices side by side and heads of whole tiles, gate before up. Rows of x are 16-byte
 * aligned. Of a norm only what was begun ahead is taken along (ek_cu_product). */
bool ek_cu_wide_takes(enum ek_cu_mode mode, const struct ek_cu_product *p);
cudaError_t ek_cu_product_wide(const struct ek_cu_queue *q, enum ek_dtype act, enum ek_cu_mode mode,
                               uint32_t n, const struct ek_cu_product *p);
/* Begins the norm of BF16 rows [n][dim] (dim a multiple of 16, 16-byte aligned) as a product that
 * leaves them does (next_norm), to the bit. */
cudaError_t ek_cu_begin_norm(const struct ek_cu_queue *q, const void *x, const float *weight,
                             uint32_t n, uint32_t dim, void *out, float *squares);

#ifdef __cplusplus
}
#endif
#endif
