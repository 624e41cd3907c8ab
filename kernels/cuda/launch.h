/* SPDX-License-Identifier: Apache-2.0
 *
 * What the .cu files offer to the C side of the CUDA backend: thin launchers. Each issues its
 * kernels on a queue and returns the launch's error. Shapes are checked by the callers.
 */
#ifndef EK_CUDA_LAUNCH_H
#define EK_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/kernels.h"

struct ek_cu_queue {
    cudaStream_t stream;
    uint32_t n_sm;
    uint32_t shared; /* bytes of shared memory that a block may have */
    bool less;       /* that is less than the GPU has (tests): every launch is held against it */
    bool pdl;   /* programmatic dependent launch and clusters: compute capability 9.0 and later */
    bool wgmma; /* Hopper's asynchronous tensor cores: 9.0, and this build has code for it */
};
/* Bytes of shared memory that a kernel has besides those it asks for at its launch, at most. */
#define EK_CU_OWN_SHARED 3072
/* Whether the code that this build has for the current GPU is Hopper's own. An error: it has none
 * at all. */
cudaError_t ek_cu_built_for_hopper(bool *yes);

/* ---- few-token products: weights are read once, at memory speed --------------------------------
 */
enum ek_cu_mode {
    EK_CU_LINEAR,  /* up to 3 matrices side by side */
    EK_CU_GATE_UP, /* mats 0, 1: out = silu(x gate) * (x up) */
    EK_CU_QKV,     /* mats 0..2: q rotated to out, k rotated and v to the cache */
};
struct ek_cu_product {
    const void *x;     /* [n][ldx] act; ldx is used by products of several tokens alone */
    const float *norm; /* RMS norm weight [cols] applied to x first, or NULL */
    float eps;
    uint32_t cols;
    size_t row_bytes; /* of a weight row: the same for all mats */
    struct {
        const uint8_t *data;
        const float *bias; /* or NULL */
        uint32_t rows;
    } mat[3];
    uint32_t n_mats;
    void *out;
    int flags; /* EK_LINEAR_* */
    size_t ldx, ldo;
    /* EK_CU_QKV */
    struct ek_rope rope;
    struct ek_kv kv;
    const int32_t *positions, *slots;
    uint32_t position_row; /* elements from one row of positions to the next */
    /* A norm between two products, or NULL: of the second x are rows times the norm's weights, and
     * squares tell their factors; the first leaves both besides its sums, rows of ldo elements. */
    const float *squares; /* [cols / 16][EK_CU_WIDE_PITCH]: sums of 16 columns' squares */
    const float *next_norm;
    void *next_x;
    float *next_squares; /* the same of rows */
};
/* One token, plain weights. cols is a multiple of 8, rows 16-byte aligned. */
cudaError_t ek_cu_product_one(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                              enum ek_cu_mode mode, const struct ek_cu_product *p);
/* 2 to 16 tokens of BF16 or F16 with weights of the same type, on tensor cores, any mode, where it
 * fits: Hopper's shared memory and clusters. For shapes and GPUs that are not for wide.h. cols is a
 * multiple of 8, rows of weights and of x 16-byte aligned. */
#define EK_CU_STREAM_TOKENS 16
bool ek_cu_stream_fits(const struct ek_cu_queue *q);
cudaError_t ek_cu_product_stream(const struct ek_cu_queue *q, enum ek_dtype act,
                                 enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p);
/* 1 to 16 tokens of BF16 or F16 on tensor cores (plain weights: up to 8), any type of weights. cols
 * is a multiple of 32, rows of x are 16-byte aligned. Blocks (as ek_cu_arrange leaves them):
 * EK_CU_QKV takes heads of 32 elements or a multiple, rotated whole or interleaved, and
 * EK_CU_BLOCKS_SHARED bytes of shared memory. */
#define EK_CU_BLOCKS_SHARED (98 * 1024)
cudaError_t ek_cu_product_few(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                              enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p);
cudaError_t ek_cu_few_q32(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                          enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p);
cudaError_t ek_cu_few_qk(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                         enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p);
cudaError_t ek_cu_few_groups(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                             enum ek_cu_mode mode, uint32_t n, const struct ek_cu_product *p);

/* ---- weights ------------------------------------------------------------------------------------
 */
/* Weights in blocks from the checkpoint's form at src, rows x cols, to the device's (blocks.cuh) at
 * out: bands of 16 rows, the last one filled up with zeros. */
cudaError_t ek_cu_arrange(const struct ek_cu_queue *q, enum ek_dtype w, const void *src,
                          size_t row_bytes, uint32_t rows, uint32_t cols, void *out);
/* rows x cols of a matrix to act, [rows][cols]; blocks: src begins a band */
cudaError_t ek_cu_dequantize(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                             const void *src, size_t row_bytes, uint32_t rows, uint32_t cols,
                             void *out);
cudaError_t ek_cu_embed(const struct ek_cu_queue *q, enum ek_dtype w, enum ek_dtype act,
                        const void *table, size_t row_bytes, uint32_t rows, uint32_t cols,
                        const int32_t *ids, uint32_t n, void *out);

/* ---- rows and elements --------------------------------------------------------------------------
 */
cudaError_t ek_cu_rms_norm(const struct ek_cu_queue *q, enum ek_dtype act, const void *x,
                           size_t ldx, const float *weight, float eps, uint32_t n, uint32_t dim,
                           void *out, size_t ldo);
cudaError_t ek_cu_layer_norm(const struct ek_cu_queue *q, enum ek_dtype act, const void *x,
                             const float *weight, const float *bias, float eps, uint32_t n,
                             uint32_t dim, void *out);
cudaError_t ek_cu_swiglu(const struct ek_cu_queue *q, enum ek_dtype act, const void *x, size_t ldx,
                         uint32_t n, uint32_t dim, void *out, size_t ldo);
cudaError_t ek_cu_gelu(const struct ek_cu_queue *q, enum ek_dtype act, void *x, size_t ldx,
                       uint32_t n, uint32_t dim, bool tanh_form);
cudaError_t ek_cu_gather(const struct ek_cu_queue *q, enum ek_dtype act, const void *x, size_t ldx,
                         const int32_t *rows, uint32_t n, uint32_t dim, void *out);
cudaError_t ek_cu_permute(const struct ek_cu_queue *q, enum ek_dtype act, const void *x, size_t ldx,
                          const int32_t *order, uint32_t n, uint32_t dim, void *out);
/* out[rows[i]] = x[i] */
cudaError_t ek_cu_scatter(const struct ek_cu_queue *q, enum ek_dtype act, const float *x,
                          const int32_t *rows, uint32_t n, uint32_t dim, void *out, size_t ldo);
cudaError_t ek_cu_convert(const struct ek_cu_queue *q, const void *x, enum ek_dtype from, void *out,
                          enum ek_dtype to, size_t n);
/* partial: [n][EK_CU_ARGMAX] 8 bytes each; arrived: [n], zero before and after */
#define EK_CU_ARGMAX 64
cudaError_t ek_cu_argmax(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                         uint32_t vocab, void *partial, uint32_t *arrived, int32_t *ids);
/* sample.cu: see kernels.h */
cudaError_t ek_cu_sample(const struct ek_cu_queue *q, const float *logits, uint32_t n,
                         uint32_t vocab, const struct ek_draw *draws, int32_t *ids);
cudaError_t ek_cu_take(const struct ek_cu_queue *q, int32_t *dst, const int32_t *src, size_t n,
                       uint32_t n_ids, const int32_t *ids);
/* sink: 4 bytes of device memory that are written only if the sum of all words is a magic number */
cudaError_t ek_cu_read(const struct ek_cu_queue *q, const void *p, size_t n, uint32_t *sink);

/* ---- attention ----------------------------------------------------------------------------------
 */
cudaError_t ek_cu_rope_append(const struct ek_cu_queue *q, enum ek_dtype act, void *qkv, size_t ld,
                              const struct ek_rope *rope, const struct ek_batch *batch,
                              uint32_t heads, const struct ek_kv *kv);
/* positions: a row of n for every section */
cudaError_t ek_cu_rope_rows(const struct ek_cu_queue *q, enum ek_dtype act, void *x, size_t ld,
                            const struct ek_rope *rope, const int32_t *positions, uint32_t n,
                            uint32_t heads, uint32_t head_dim);
struct ek_cu_attention {
    const void *q; /* [n_tokens][ldq] act */
    size_t ldq;
    struct ek_batch batch;
    struct ek_kv kv;
    uint32_t heads;
    float scale;
    void *out; /* [n_tokens][ldo] act */
    size_t ldo;
    size_t row;     /* dense: elements from one row of k and v to the next */
    float *partial; /* unnormalised sums of a part of a context ... */
    float2 *totals; /* ... and their maximum and weight */
    /* latent attention, and decode by parts (parts.h) */
    uint32_t part, n_parts; /* tokens a part, or a turn of one; parts of the longest context */
    /* decode: decode_work.cuh */
    uint32_t tiles;       /* of at most EK_CU_TILE heads to a cached head */
    uint32_t team, teams; /* blocks of a team: 1, 2, 4 or 8; how many teams */
    uint32_t stages;      /* steps of a warp that are under way, 2 or 3 */
    uint32_t *arrived;    /* [n_seqs * kv_heads * tiles][team] zero before and after */
    /* expanded: keys and values made of latents, of the tokens [from, from + span) of every
     * sequence. Sums so far go by partial [n_tokens][heads][v_dim] and totals [n_tokens][heads]. */
    uint32_t from, span;
    const void *latents; /* [seqs * span][head_dim of the cache]: the rotated keys are their last */
    size_t latent_row;   /* elements of such a row */
    struct ek_rope rope; /* of q's last elements */
};
#define EK_CU_CLUSTER 8  /* blocks of the largest cluster */
#define EK_CU_TILE    16 /* heads */
/* The contexts of a batch from a cache of E4M3 to k and v (NULL: none) of type act:
 * [n_seqs][blocks] blocks, and their table. blocks: of max_kv tokens. Rows are multiples of 16
 * elements. */
cudaError_t ek_cu_unpack(const struct ek_cu_queue *q, enum ek_dtype act,
                         const struct ek_cu_attention *a, void *k, void *v, int32_t *table,
                         uint32_t blocks);
/* Any shape and cache type: one block a token and head. */
cudaError_t ek_cu_attention_any(const struct ek_cu_queue *q, enum ek_dtype act,
                                const struct ek_cu_attention *a);
/* BF16 or F16, head_dim = v_dim = 64 or 128: one token a sequence, a cache of E4M3 ... */
cudaError_t ek_cu_attention_decode(const struct ek_cu_queue *q, enum ek_dtype act,
                                   const struct ek_cu_attention *a);
/* ... and many, the cache of the activations' type. */
cudaError_t ek_cu_attention_prefill(const struct ek_cu_queue *q, enum ek_dtype act,
                                    const struct ek_cu_attention *a);

/* Every row to all rows of its segment [seq_start[i], seq_start[i + 1]), the longest of max_q rows;
 * q, k and v are rows, at most 65535 segments. Any shape and type ... */
cudaError_t ek_cu_attention_dense_any(const struct ek_cu_queue *q, enum ek_dtype act,
                                      const struct ek_cu_attention *a);
/* ... and BF16 or F16, heads of 8, 16, ... 128 elements, rows aligned to 16 bytes. */
cudaError_t ek_cu_attention_dense(const struct ek_cu_queue *q, enum ek_dtype act,
                                  const struct ek_cu_attention *a);

/* ---- store.cu: n bytes to dst, of any device that this one reaches, then *flag = value unless it
 * is NULL; arrived: a zero in this device's memory, left so. when, here and below, of the host's
 * memory or NULL: nanoseconds before the bytes go, or behind the wait */
cudaError_t ek_cu_store(const struct ek_cu_queue *q, void *dst, const void *src, size_t n,
                        uint32_t *flag, uint32_t value, uint32_t *arrived, uint64_t *when);
/* The queue goes on when *flag, of this device's memory, has come to value or beyond, or *stop, of
 * the host's (NULL: none), is not 0. */
cudaError_t ek_cu_await(const struct ek_cu_queue *q, const uint32_t *flag, uint32_t value,
                        const uint32_t *stop, uint64_t *when);
cudaError_t ek_cu_stamp(const struct ek_cu_queue *q, uint64_t *when);

#ifdef __cplusplus
}
#endif
#endif
