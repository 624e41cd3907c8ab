/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of one token of BF16 or F16 and weights in blocks, of any mode and with the norm; cols
 * is a multiple of 32, QKV as products of a few tokens take it. Where a block of threads has shared
 * memory for the token.
 */
#ifndef EK_CUDA_ONE_BLOCKS_H
#define EK_CUDA_ONE_BLOCKS_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif
bool ek_cu_one_blocks_fits(const struct ek_cu_queue *q, enum ek_dtype w,
                           const struct ek_cu_product *p);
cudaError_t ek_cu_product_one_blocks(const struct ek_cu_queue *q, enum ek_dtype w,
                                     enum ek_dtype act, enum ek_cu_mode mode,
                                     const struct ek_cu_product *p);
#ifdef __cplusplus
}
#endif
#endif
