/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention and mixtures of experts: launchers of the .cu files, and the entries of the
 * table that deepseek.c makes of them.
 */
#ifndef EK_CUDA_DEEPSEEK_H
#define EK_CUDA_DEEPSEEK_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- latent.cu ---------------------------------------------------------------------------------
 */
#define EK_CU_LATENT_FEW 8 /* tokens up to which W_uk and W_uv are read by our own kernels */

cudaError_t ek_cu_latent_append(const struct ek_cu_queue *q, enum ek_dtype act, const void *ckv,
                                size_t ld, const float *weight, float eps,
                                const struct ek_rope *rope, const struct ek_batch *batch,
                                const struct ek_kv *kv);
struct ek_cu_latent {
    const void *x; /* query: [n][ldx] heads of nope | rope; value: heads of lora */
    size_t ldx;
    struct ek_latent shape;
    const uint8_t *kv_b; /* F32, BF16 or F16, rows of lora elements, 16-byte aligned */
    struct ek_rope rope; /* query alone, as are the positions */
    const int32_t *positions;
    uint32_t n;
    /* query: the tokens' latents into the cache by the same launch, unless ckv is NULL; the cache
     * is of the activations' type */
    const void *ckv;
    size_t ld_ckv;
    const float *norm;
    float eps;
    struct ek_kv kv;
    const int32_t *slots;
    void *out; /* query: heads of lora | rope; value: heads of v */
    size_t ldo;
};
/* Up to EK_CU_LATENT_FEW tokens; lora is a multiple of 8. */
cudaError_t ek_cu_latent_query(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                               const struct ek_cu_latent *a);
/* The rotated part alone, any number of tokens. */
cudaError_t ek_cu_latent_rotate(const struct ek_cu_queue *q, enum ek_dtype act,
                                const struct ek_cu_latent *a);
/* Up to EK_CU_LATENT_FEW tokens; lora is a multiple of 8, v of 2. */
cudaError_t ek_cu_latent_value(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                               const struct ek_cu_latent *a);

/* ---- latent_attention.cu -----------------------------------------------------------------------
 * BF16 or F16, the cache of the same type, one cached head of 512 + 64. The rows of a sequence are
 * its new tokens' heads. a->partial [n_tokens][heads][n_parts][512] and a->totals beside it are
 * needed when n_parts > 1. */
#define EK_CU_LATENT_DIM   576
#define EK_CU_LATENT_VALUE 512
#define EK_CU_LATENT_PART  32  /* context tokens: parts are multiples of it */
#define EK_CU_LATENT_STEP  64  /* context tokens at a time */
#define EK_CU_LATENT_PARTS 128 /* of a context, at most */
bool ek_cu_latent_attention_fits(const struct ek_cu_queue *q);
/* Rows of a block: 16, 32 or 64. */
uint32_t ek_cu_latent_rows(uint32_t max_q, uint32_t heads);
cudaError_t ek_cu_latent_attention(const struct ek_cu_queue *q, enum ek_dtype act,
                                   const struct ek_cu_attention *a);

/* ---- attention_expanded.cu ---------------------------------------------------------------------
 * Prefill by keys (128 and 64 rotated elements) and values (128) of every head, made of the latents
 * of a cache of 512 + 64. BF16 or F16, the cache of the same type. */
#define EK_CU_EXPANDED_NOPE 128
#define EK_CU_EXPANDED_ROPE 64
#define EK_CU_EXPANDED_V    128
bool ek_cu_attention_expanded_fits(const struct ek_cu_queue *q);
/* The cached rows of tokens [from, from + span) of every sequence to out, [n_seqs * span]
 * [latent_row]; zeros behind a sequence's end. */
cudaError_t ek_cu_latent_gather(const struct ek_cu_queue *q, const struct ek_cu_attention *a,
                                void *out);
/* Over those tokens: kv.v is [n_seqs * span][row], a row [heads][nope | v]. q is rotated on the
 * way; sums go from one launch to the next until every row has seen its context. */
cudaError_t ek_cu_attention_expanded(const struct ek_cu_queue *q, enum ek_dtype act,
                                     const struct ek_cu_attention *a);

/* ---- latent_one.cu: one new token a sequence and short contexts, in one launch ------------------
 * BF16 or F16, kv_b and the cache of the same type, latents of 512 and keys of 64 more, Hopper.
 * nope and v are multiples of 8, at most EK_CU_LATENT_ONE_HEAD; ckv and x rows of any alignment. */
#define EK_CU_LATENT_ONE_HEAD 128
struct ek_cu_latent_step {
    struct ek_cu_latent l;
    struct ek_cu_attention attention; /* of it: batch, kv, heads, scale */
};
bool ek_cu_latent_one_fits(const struct ek_cu_queue *q);
cudaError_t ek_cu_latent_one(const struct ek_cu_queue *q, enum ek_dtype act,
                             const struct ek_cu_latent_step *a);

/* ---- route.cu ----------------------------------------------------------------------------------
 */
cudaError_t ek_cu_route(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                        const float *bias, const struct ek_router *router, int32_t *ids,
                        float *weights);

struct ek_cu_experts {
    const void *x; /* [n][ldx] act */
    size_t ldx;
    uint32_t n, top_k;
    const int32_t *ids;   /* [n][top_k] */
    const float *weights; /* [n][top_k] */
    const uint8_t *gate_up, *down;
    size_t gate_up_row, down_row; /* bytes of a weight row */
    uint32_t n_experts, hidden, inner;
    /* experts_one, _token and _stream: feed-forward layers of the experts' size that every token
     * goes to, or 0 */
    uint32_t n_shared;
    const uint8_t *shared_up,
        *shared_down; /* [2][n_shared inner][hidden], [hidden][n_shared inner] */
    void *out;        /* [n][ldo] act, added to */
    size_t ldo;
    /* A pair is a token and one of its experts: token * top_k + k. Grouped by expert they lie in
     * places: */
    int32_t *order; /* [pairs] the pair at a place */
    int32_t *first; /* [n_experts + 1] an expert's first place */
    void *inner_x;  /* [pairs][inner] act: by place when grouped, else by pair, shared ones first */
    void *each;     /* [pairs][hidden] act, by pair: what the experts answered */
};
/* A mixture from the norm before it on. */
#define EK_CU_TOKEN_EXPERTS 256
#define EK_CU_TOKEN_CHOSEN  16
struct ek_cu_mixture {
    struct ek_cu_experts e; /* out is the token as well, before its norm; neither x nor ids */
    const float *norm;
    float eps;
    const uint8_t *gate; /* F32, BF16 or F16, rows of gate_row bytes */
    enum ek_dtype gate_type;
    size_t gate_row;
    const float *bias; /* or NULL */
    struct ek_router router;
    const int32_t *forced; /* taken instead of the router's choice; or NULL */
    void *normed;          /* [n][e.ldx]; unless it is one token */
    int32_t *ids;          /* [n][top_k] of the router (one token: those that were taken) ... */
    float *weights;        /* ... and their weights, the router's in any case */
    float *logits;         /* one token: [n_experts], zero before and after */
    uint32_t slots, rows;  /* the launcher's own */
};
/* Norm and router of a few tokens of BF16 or F16, in clusters. */
bool ek_cu_norm_route_fits(const struct ek_cu_queue *q, const struct ek_cu_mixture *a);
cudaError_t ek_cu_norm_route(const struct ek_cu_queue *q, enum ek_dtype act,
                             const struct ek_cu_mixture *a);
/* order and first from ids: places keep the order of pairs. */
cudaError_t ek_cu_experts_group(const struct ek_cu_queue *q, const struct ek_cu_experts *e);
/* out += weighted sum of each, in the order of k. */
cudaError_t ek_cu_experts_sum(const struct ek_cu_queue *q, enum ek_dtype act,
                              const struct ek_cu_experts *e);

/* ---- experts_one.cu: token by token, no grouping; hidden and inner multiples of 8 ---------------
 */
cudaError_t ek_cu_experts_one(const struct ek_cu_queue *q, enum ek_dtype w_up, enum ek_dtype w_down,
                              enum ek_dtype act, const struct ek_cu_experts *e);
/* ---- experts_blocks.cu: the same for one token of BF16 or F16 and weights in blocks, rows of
 * whole blocks and bands; where a block of threads has shared memory for the token */
bool ek_cu_experts_blocks_fits(const struct ek_cu_queue *q, enum ek_dtype w_up,
                               enum ek_dtype w_down, enum ek_dtype act,
                               const struct ek_cu_experts *e);
cudaError_t ek_cu_experts_blocks(const struct ek_cu_queue *q, enum ek_dtype w_up,
                                 enum ek_dtype w_down, enum ek_dtype act,
                                 const struct ek_cu_experts *e);
/* ---- token.cu: one token, its norm and router as well; BF16 or F16, experts of the same type, on
 * Hopper */
bool ek_cu_token_fits(const struct ek_cu_queue *q, const struct ek_cu_mixture *a);
cudaError_t ek_cu_token(const struct ek_cu_queue *q, enum ek_dtype act,
                        const struct ek_cu_mixture *a);
/* ---- experts_stream.cu: a few tokens, shared layers with them; BF16 or F16, weights of the same
 * type, on Hopper. Of e: inner_x by place, shared ones last; each by token, shared ones first */
#define EK_CU_STREAM_PAIRS 512 /* tokens times top_k, at most */
bool ek_cu_experts_stream_fits(const struct ek_cu_queue *q);
cudaError_t ek_cu_experts_stream(const struct ek_cu_queue *q, enum ek_dtype act,
                                 const struct ek_cu_experts *e);
/* ---- experts_few.cu: grouped, a few tokens an expert; BF16 or F16, all weight types -------------
 */
cudaError_t ek_cu_experts_few(const struct ek_cu_queue *q, enum ek_dtype w_up, enum ek_dtype w_down,
                              enum ek_dtype act, const struct ek_cu_experts *e);
/* ---- experts_many.cu: grouped, tiles of tensor cores; weights of the activations' type ----------
 */
bool ek_cu_experts_many_fits(const struct ek_cu_queue *q);
cudaError_t ek_cu_experts_many(const struct ek_cu_queue *q, enum ek_dtype act,
                               const struct ek_cu_experts *e);
/* ---- experts_wide.cu: the same in larger tiles by wgmma, where rows are whole steps -------------
 */
bool ek_cu_experts_wide_fits(const struct ek_cu_experts *e);
cudaError_t ek_cu_experts_wide(const struct ek_cu_queue *q, enum ek_dtype act,
                               const struct ek_cu_experts *e);

#ifdef __cplusplus
}
#endif

/* ---- entries of the table, declared as kernels.h describes them ---------------------------------
 */
#ifndef __cplusplus
struct ek_cuda;
enum ek_status ek_cuda_latent_append(struct ek_device *dev, const void *ckv, size_t ld,
                                     const float *norm_weight, float eps,
                                     const struct ek_rope *rope, const struct ek_batch *batch,
                                     const struct ek_kv *kv);
enum ek_status ek_cuda_latent_query(struct ek_device *dev, const void *q, size_t ldq,
                                    const struct ek_rope *rope, const struct ek_batch *batch,
                                    const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                    size_t ldo);
enum ek_status ek_cuda_latent_prefill(struct ek_device *dev, const struct ek_latent_mix *m,
                                      bool *taken);
enum ek_status ek_cuda_latent_value(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                                    const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                    size_t ldo);
enum ek_status ek_cuda_route(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                             const struct ek_mat *gate, const float *bias,
                             const struct ek_router *router, int32_t *ids, float *weights);
enum ek_status ek_cuda_experts(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                               const int32_t *ids, const float *weights, uint32_t top_k,
                               const struct ek_experts *e, void *out, size_t ldo);
enum ek_status ek_cuda_mixture(struct ek_device *dev, const struct ek_mixture *m, bool *taken);
enum ek_status ek_cuda_latent_mix(struct ek_device *dev, const struct ek_latent_mix *m);
/* Attention over a latent cache by the tensor cores, where the shape is theirs; else *taken is
 * false and nothing was issued. */
enum ek_status ek_cuda_latent_attention(struct ek_cuda *d, struct ek_cu_attention *a, bool *taken);
#endif

#endif
