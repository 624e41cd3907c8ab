/* SPDX-License-Identifier: Apache-2.0
 *
 * What every backend asks of an operation's arguments before it computes with them: shapes that fit
 * each other. Counts may be 0 (nothing is done then), sizes not. Messages begin with the operation
 * and name both values. EK_EUSAGE, but for types that are not supported.
 */
#ifndef EK_ARGUMENTS_H
#define EK_ARGUMENTS_H

#include "kernels/kernels.h"

/* n rows of dim elements that begin ld elements apart. */
enum ek_status ek_args_rows(const char *op, uint32_t n, uint64_t dim, size_t ld);
enum ek_status ek_args_embed(const struct ek_mat *table);
enum ek_status ek_args_linear(uint32_t n, const struct ek_mat *w, size_t ldx, size_t ldo);
/* Matrices side by side: norm_linear. */
enum ek_status ek_args_norm_linear(uint32_t n, const struct ek_mat *mats, size_t n_mats,
                                   size_t ldo);
enum ek_status ek_args_gate_up(uint32_t n, const struct ek_mat mats[2], size_t ldo);
enum ek_status ek_args_layer_tail(uint32_t n, size_t ldi, const struct ek_mat *o,
                                  const struct ek_mat gate_up[2], const struct ek_mat *down);
enum ek_status ek_args_rope(const char *op, const struct ek_rope *rope, uint32_t head_dim);
enum ek_status ek_args_rope_append(const struct ek_rope *rope, const struct ek_batch *batch,
                                   uint32_t heads, const struct ek_kv *kv, size_t ld);
enum ek_status ek_args_qkv_rope(const struct ek_mat mats[3], const struct ek_rope *rope,
                                const struct ek_batch *batch, const struct ek_kv *kv, size_t ldo);
enum ek_status ek_args_attention(const struct ek_batch *batch, const struct ek_kv *kv,
                                 uint32_t heads, size_t ldq, size_t ldo);
enum ek_status ek_args_attention_dense(uint32_t n, uint32_t n_segments, uint32_t max_segment,
                                       uint32_t heads, uint32_t head_dim, size_t ld, size_t ldo);
enum ek_status ek_args_latent_append(const struct ek_rope *rope, const struct ek_batch *batch,
                                     const struct ek_kv *kv, size_t ld);
enum ek_status ek_args_latent_query(const struct ek_latent *l, const struct ek_mat *kv_b,
                                    const struct ek_rope *rope, uint32_t n, size_t ldq, size_t ldo);
enum ek_status ek_args_latent_value(const struct ek_latent *l, const struct ek_mat *kv_b,
                                    uint32_t n, size_t ldx, size_t ldo);
enum ek_status ek_args_latent_mix(const struct ek_latent_mix *m);
enum ek_status ek_args_route(const struct ek_router *r, const struct ek_mat *gate, uint32_t n,
                             size_t ldx);
enum ek_status ek_args_experts(const struct ek_experts *e, uint32_t top_k, uint32_t n, size_t ldx,
                               size_t ldo);
enum ek_status ek_args_mixture(const struct ek_mixture *m);

#endif
