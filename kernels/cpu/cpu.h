/* SPDX-License-Identifier: Apache-2.0
 *
 * Internals of the CPU backend.
 *
 * A device owns a pool: the thread that issues operations takes part in the work, helpers are
 * pinned to the other cores. Work is cut into items that any thread may take; an element of a
 * result is always computed whole by one item and by the same sequence of operations, so results do
 * not depend on the number of threads, nor (for products) on the other rows of the batch.
 *
 * Vector code is written once (simd/) and compiled for each instruction set; the table cpu_simd of
 * the best one is found when the device is opened (EK_SIMD=c|avx2|avx512 overrides).
 */
#ifndef EK_KERNELS_CPU_H
#define EK_KERNELS_CPU_H

#include "config.h" /* _GNU_SOURCE: affinity */

#include "kernels/arguments.h"
#include "kernels/kernels.h"

#include <pthread.h>
#include <sched.h>

/* ---- Cores ----------------------------------------------------------------------------------- */
struct cpu_cores {
    uint16_t id[CPU_SETSIZE];
    uint32_t n;
};
/* The cores of a list "0-3,8"; "": all that the process could use when it first asked. */
enum ek_status cpu_cores_parse(const char *name, const char *list, struct cpu_cores *out);
/* Name, identity, memory and cache of this host's processor. */
void cpu_host_info(struct ek_device_info *info);
uint64_t cpu_host_memory_free(void);
/* Binds the calling thread to a core; core < 0: to all that the process may use. */
void cpu_bind_thread(int core);

/* ---- Pool ------------------------------------------------------------------------------------ */
struct cpu_pool;
/* thread: 0 for the issuing thread, then 1.. */
typedef void (*cpu_item_fn)(void *arg, uint32_t item, uint32_t thread);

enum ek_status cpu_pool_new(const struct cpu_cores *cores, struct cpu_pool **out);
void cpu_pool_free(struct cpu_pool *pool); /* NULL is fine */
/* Calls fn for items 0 .. n_items - 1, each once, in parallel; returns when all are done. */
void cpu_pool_run(struct cpu_pool *pool, uint32_t n_items, cpu_item_fn fn, void *arg);

/* ---- Vector code ----------------------------------------------------------------------------- */
enum { CPU_UNIT = 32 }; /* products and decoders work on 32 weights at a time */

struct cpu_attend; /* attention.h */

struct cpu_simd {
    const char *name;
    uint32_t tile; /* most tokens of one call of dots */
    /* y[t * ldy + r] = sum_c w[r, c] x[t * ldx + c] for n <= tile tokens; cols is a multiple of 32.
     * NULL for types that are decoded first. Every variant of one instruction set adds in the same
     * order, so that a decoded row gives the same bits as the row itself. */
    void (*dots[EK_N_DTYPES])(const void *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                              const float *x, size_t ldx, uint32_t n, float *y, size_t ldy);
    /* n weights (a multiple of the block) to F32; NULL: ek_dequantize */
    void (*decode[EK_N_DTYPES])(const void *src, float *dst, size_t n);
    void (*to_f16)(const float *x, uint16_t *out, size_t n);
    void (*to_bf16)(const float *x, uint16_t *out, size_t n);

    void (*rms_norm)(const float *x, const float *weight, float eps, uint32_t dim, float *out);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float eps,
                       uint32_t dim, float *out);
    void (*swiglu)(const float *gate, const float *up, uint32_t dim, float *out);
    /* out (+)= act(y + bias), the epilogue of linear */
    void (*finish)(float *out, const float *y, const float *bias, uint32_t n, int flags);
    /* cos and sin of position * inv_freq, times amplitude; n <= dim / 2 frequencies */
    void (*angles)(float position, const float *inv_freq, uint32_t n, float amplitude,
                   float *cosine, float *sine);
    void (*rotate)(float *head, const float *cosine, const float *sine, uint32_t dim,
                   bool interleaved);
    uint32_t (*argmax)(const float *x, uint32_t n);
    uint64_t (*read)(const char *p, size_t n); /* reads every byte once; the result is a fold */

    void (*attend_one)(const struct cpu_attend *a, uint32_t seq, uint32_t kv_head, uint32_t from,
                       uint32_t to, float *partial, void *scratch);
    void (*attend_block)(const struct cpu_attend *a, uint32_t seq, uint32_t kv_head, uint32_t first,
                         uint32_t count, void *scratch);
    void (*merge)(const struct cpu_attend *a, uint32_t seq, uint32_t head, const float *partials,
                  uint32_t n_partials, size_t stride);
};
extern const struct ek_ops ek_ops_cpu;
extern const struct cpu_simd cpu_simd_c, cpu_simd_avx2, cpu_simd_avx512;
/* The best table of this processor, or that named by EK_SIMD. */
enum ek_status cpu_simd_find(const struct cpu_simd **out);

/* ---- Attention over the paged cache ---------------------------------------------------------- */
enum {
    CPU_KEYS = 64,   /* keys of one block of the online softmax */
    CPU_SPLIT = 256, /* keys of one part of a single query's context (fixed: results do not move) */
};
struct cpu_attend {
    const float *q;
    float *out;
    size_t ldq, ldo;
    const struct ek_batch *batch;
    const struct ek_kv *kv;
    uint32_t heads, group; /* group: query heads of a K and V head */
    uint32_t block;        /* queries of a block */
    float scale;
    size_t dense_ld; /* not 0: no cache and not causal; rows of K and V lie so many elements apart,
                        those of a sequence from its seq_start on, and page is above any length */
};
/* Scratch bytes that attend_one and attend_block need. */
size_t cpu_attend_scratch(const struct cpu_attend *a);

/* ---- Device ---------------------------------------------------------------------------------- */
struct cpu_block; /* header of an allocation */

struct cpu_device {
    struct ek_device base; /* first */
    const struct cpu_simd *simd;
    struct cpu_pool *pool;
    struct cpu_cores cores;
    uint64_t serial; /* unique in the process: which device a thread is bound to */

    pthread_mutex_t lock; /* of the allocations: usage may be asked by any thread */
    struct cpu_block *blocks;
    struct ek_usage usage[EK_N_TAGS];

    /* Workspace, of one operation after the other, so that a stage takes what its greediest one
     * does: what an operation made of others holds, a thread's scratch each, what threads share. */
    uint8_t *space;
    size_t space_bytes, held_bytes, scratch_bytes;
    uint8_t *held; /* where that is, when space grew meanwhile; else NULL */
};

static inline struct cpu_device *cpu_of(struct ek_device *dev)
{
    return (struct cpu_device *)dev;
}

enum ek_status cpu_alloc(struct ek_device *dev, enum ek_tag tag, size_t bytes, void **out);
uint64_t cpu_alloc_bytes(const struct ek_device *dev, size_t bytes);
void cpu_release(struct ek_device *dev, void *p);
void cpu_release_all(struct cpu_device *dev);
void cpu_usage(struct ek_device *dev, struct ek_usage by_tag[EK_N_TAGS]);
void cpu_reset_peaks(struct ek_device *dev);
uint64_t cpu_memory_free(struct ek_device *dev);
enum ek_status cpu_host_alloc(struct ek_device *dev, size_t bytes, void **out);
void cpu_host_free(struct ek_device *dev, void *p);
/* The workspace of an operation, in the place of the one before: scratch of so many bytes for each
 * thread, and n floats in *shared (NULL: none wanted). */
enum ek_status cpu_workspace(struct cpu_device *dev, size_t scratch, size_t n, float **shared);
/* Bytes that it takes: shared of what all threads share. */
size_t cpu_workspace_bytes(const struct cpu_device *dev, size_t scratch, size_t shared);
/* Of an operation made of others, whose workspaces (`inner` bytes at most, cpu_linear_space) leave
 * it alone: n floats until cpu_let_go. Not within another. */
enum ek_status cpu_hold(struct cpu_device *dev, size_t n, size_t inner, float **out);
void cpu_let_go(struct cpu_device *dev);
static inline void *cpu_scratch_of(const struct cpu_device *dev, uint32_t thread)
{
    return dev->space + dev->held_bytes + thread * dev->scratch_bytes;
}

/* Runs items on the device's pool; the calling thread is bound to the device's first core. */
void cpu_run(struct cpu_device *dev, uint32_t n_items, cpu_item_fn fn, void *arg);
/* As cpu_run over rows 0 .. n - 1; rows of work elements each: little work stays on this thread. */
void cpu_run_rows(struct cpu_device *dev, uint32_t n, size_t work, cpu_item_fn fn, void *arg);

enum ek_status cpu_upload(struct ek_device *dev, void *dst, const void *src, size_t n);
enum ek_status cpu_copy_from(struct ek_device *dev, void *dst, struct ek_device *src_dev,
                             const void *src, size_t n);
enum ek_status cpu_zero(struct ek_device *dev, void *dst, size_t n);
enum ek_status cpu_read_bytes(struct ek_device *dev, const void *p, size_t n);
enum ek_status cpu_event_new(struct ek_device *dev, struct ek_event **out);
void cpu_event_free(struct ek_event *e);
enum ek_status cpu_event_record(struct ek_device *dev, struct ek_event *e);
enum ek_status cpu_event_wait(struct ek_device *dev, struct ek_event *e);
enum ek_status cpu_event_sync(struct ek_event *e);
enum ek_status cpu_event_passed(struct ek_event *e);
enum ek_status cpu_stamp(struct ek_device *dev, uint64_t *when);
double cpu_event_seconds(struct ek_event *from, struct ek_event *to);
enum ek_status cpu_sync(struct ek_device *dev);

enum ek_status cpu_mat_new(struct ek_device *dev, enum ek_dtype dtype, uint32_t rows, uint32_t cols,
                           struct ek_mat *out);
enum ek_status cpu_mat_ready(struct ek_device *dev, struct ek_mat *m);
void cpu_mat_free(struct ek_device *dev, struct ek_mat *m);
uint64_t cpu_mat_bytes(const struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                       uint32_t cols);

enum ek_status cpu_embed(struct ek_device *dev, const struct ek_mat *table, const int32_t *ids,
                         uint32_t n, void *out);
enum ek_status cpu_rms_norm(struct ek_device *dev, const void *x, size_t ldx, const float *weight,
                            float eps, uint32_t n, uint32_t dim, void *out, size_t ldo);
enum ek_status cpu_layer_norm(struct ek_device *dev, const void *x, const float *weight,
                              const float *bias, float eps, uint32_t n, uint32_t dim, void *out);
enum ek_status cpu_linear(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                          const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                          int flags);
/* Most bytes of workspace that cpu_linear takes for n rows or fewer by w. */
size_t cpu_linear_space(const struct ek_device *dev, uint32_t n, const struct ek_mat *w);
enum ek_status cpu_norm_linear(struct ek_device *dev, const void *x, const float *norm_weight,
                               float eps, uint32_t n, const struct ek_mat *mats, size_t n_mats,
                               const float *const *biases, void *out, size_t ldo);
enum ek_status cpu_norm_gate_up(struct ek_device *dev, const void *x, const float *norm_weight,
                                float eps, uint32_t n, const struct ek_mat mats[2], void *out,
                                size_t ldo);
enum ek_status cpu_rope_append(struct ek_device *dev, void *qkv, size_t ld,
                               const struct ek_rope *rope, const struct ek_batch *batch,
                               uint32_t heads, const struct ek_kv *kv);
enum ek_status cpu_attention(struct ek_device *dev, const void *q, size_t ldq,
                             const struct ek_batch *batch, const struct ek_kv *kv, uint32_t heads,
                             float scale, void *out, size_t ldo);
/* ---- Rotary angles of a token's position (attention.c) --------------------------------------- */
/* cos and sin of every frequency; M-RoPE takes each section's own position. dim / 2 floats each. */
void cpu_token_angles(const struct cpu_simd *simd, const struct ek_rope *rope,
                      const struct ek_batch *batch, uint32_t token, float *cosine, float *sine);
/* A slot's keys, or values, of all heads, into the cache. */
void cpu_cache_store(const struct cpu_simd *simd, const struct ek_kv *kv, bool values, size_t slot,
                     const float *rows);

enum ek_status cpu_latent_append(struct ek_device *dev, const void *ckv, size_t ld,
                                 const float *norm_weight, float eps, const struct ek_rope *rope,
                                 const struct ek_batch *batch, const struct ek_kv *kv);
enum ek_status cpu_latent_query(struct ek_device *dev, const void *q, size_t ldq,
                                const struct ek_rope *rope, const struct ek_batch *batch,
                                const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                size_t ldo);
enum ek_status cpu_latent_value(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                                const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                size_t ldo);
enum ek_status cpu_route(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                         const struct ek_mat *gate, const float *bias,
                         const struct ek_router *router, int32_t *ids, float *weights);
enum ek_status cpu_experts(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                           const int32_t *ids, const float *weights, uint32_t top_k,
                           const struct ek_experts *e, void *out, size_t ldo);
enum ek_status cpu_scatter_rows(struct ek_device *dev, const float *x, const int32_t *rows,
                                uint32_t n, uint32_t dim, void *out, size_t ldo);
enum ek_status cpu_rope_rows(struct ek_device *dev, void *x, size_t ld, const struct ek_rope *rope,
                             const int32_t *positions, uint32_t n, uint32_t heads,
                             uint32_t head_dim);
enum ek_status cpu_attention_dense(struct ek_device *dev, const void *qkv, size_t ld, uint32_t n,
                                   const int32_t *segments, uint32_t n_segments,
                                   uint32_t max_segment, uint32_t heads, uint32_t head_dim,
                                   float scale, void *out, size_t ldo);
enum ek_status cpu_swiglu(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                          uint32_t dim, void *out, size_t ldo);
enum ek_status cpu_gather(struct ek_device *dev, const void *x, size_t ldx, const int32_t *rows,
                          uint32_t n, uint32_t dim, void *out);
enum ek_status cpu_permute(struct ek_device *dev, const void *x, size_t ldx, const int32_t *order,
                           uint32_t n, uint32_t dim, void *out);
enum ek_status cpu_argmax(struct ek_device *dev, const float *logits, uint32_t n, uint32_t vocab,
                          int32_t *ids);
enum ek_status cpu_sample(struct ek_device *dev, const float *logits, uint32_t n, uint32_t vocab,
                          const struct ek_draw *draws, int32_t *ids);
enum ek_status cpu_take(struct ek_device *dev, int32_t *dst, const int32_t *src, size_t n,
                        uint32_t n_ids, const int32_t *ids);
enum ek_status cpu_convert(struct ek_device *dev, const void *x, enum ek_dtype from, void *out,
                           enum ek_dtype to, size_t n);

#endif
