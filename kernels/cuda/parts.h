/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention that cuts a context into parts, a block each: attention_parts.cu.
 */
#ifndef EK_CUDA_PARTS_H
#define EK_CUDA_PARTS_H

#include "kernels/cuda/launch.h"

#define EK_CU_MAX_PARTS  64  /* of a sequence's context */
#define EK_CU_PART       64u /* tokens of a turn, or twice as many */
#define EK_CU_PART_HEADS 8   /* that share a cached head, of a block */

#ifdef __cplusplus
extern "C" {
#endif
/* BF16 or F16, the cache of the same type, head_dim = v_dim = 64 or 128: one token a sequence.
 * n_parts, taking turns at part = 64 or 128 tokens each; team: 8 or 2 where so many parts at most
 * are a cluster, else 1; partial [seqs][heads][n_parts][v_dim], totals [seqs][heads][n_parts],
 * arrived [seqs * kv_heads * tiles] zero before and after. */
cudaError_t ek_cu_attention_parts(const struct ek_cu_queue *q, enum ek_dtype act,
                                  const struct ek_cu_attention *a);
/* The same for teams of at most 2 of several sequences whose contexts are more than registers take
 * at once, where the current GPU and this build are Hopper's: attention_boxed.cu. */
bool ek_cu_boxed_takes(const struct ek_cu_queue *q, const struct ek_cu_attention *a);
cudaError_t ek_cu_attention_boxed(const struct ek_cu_queue *q, enum ek_dtype act,
                                  const struct ek_cu_attention *a);
#ifdef __cplusplus
}
#endif

#endif
