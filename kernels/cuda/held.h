/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrices side by side behind a norm, one token, few bytes of weights a multiprocessor
 * (EK_CU_LINEAR): BF16 or F16, weights of the same type, rows 16-byte aligned; Hopper, blocks with
 * so much shared memory.
 */
#ifndef EK_CUDA_HELD_H
#define EK_CUDA_HELD_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif
#define EK_CU_HELD_SHARED (115 * 1024)
bool ek_cu_held_fits(const struct ek_cu_queue *q, const struct ek_cu_product *p);
cudaError_t ek_cu_product_held(const struct ek_cu_queue *q, enum ek_dtype act,
                               const struct ek_cu_product *p);
#ifdef __cplusplus
}
#endif
#endif
