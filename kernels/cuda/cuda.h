/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's own header: the device, and what its C files offer to each other.
 * Threads: one issues to a device at a time; several devices may stand for one GPU, each with its
 * own stream, budget and tags.
 */
#ifndef EK_CUDA_CUDA_H
#define EK_CUDA_CUDA_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include "kernels/arguments.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/nvml.h"

#define EK_CU_ALIGN      256         /* of every allocation, so that wide loads are aligned */
#define EK_CU_TAKEN      (64 * 1024) /* uploads up to this size are taken at once ... */
#define EK_CU_N_STAGING  32          /* ... into a ring of so many pinned buffers */
#define EK_CU_KEPT       (32u << 20) /* bytes of pinned memory kept: what loading takes */
#define EK_CU_CARRIERS   4           /* threads that carry larger ones to pinned memory, ... */
#define EK_CU_CARRIED    (1 << 20)   /* ... so much at a time, two pieces each */
#define EK_CU_N_PLANS    256         /* products whose algorithm is remembered */
#define EK_CU_GEMM_WORK  (32u << 20) /* bytes of cuBLASLt's workspace */
#define EK_CU_FEW        8           /* tokens up to which a product is our own; */
#define EK_CU_FEW_BLOCKS 16          /* the same of block types, which cuBLASLt cannot read */

extern const struct ek_ops ek_ops_cuda;

struct ek_cu_slab; /* memory.c: device memory that allocations are cut from */

struct ek_cu_memory {
    struct ek_cu_slab *slabs;
    struct ek_usage usage[EK_N_TAGS];
    uint64_t total, budget;
};

/* Device memory that grows to the largest shape seen. EK_CU_OP is every operation's own, from its
 * first launch to its last, so that a device takes the most of any of them and not their sum; what
 * operations use inside of others has slots of its own, of one size wherever it matters: small ones
 * are there for any usual batch as soon as the device is open. */
enum ek_cu_scratch {
    EK_CU_OP,      /* asked for once an operation */
    EK_CU_WEIGHTS, /* a dequantised tile of a matrix */
    EK_CU_LT,      /* cuBLASLt's */
    EK_CU_BIAS,    /* from here on small ones: a bias in the type of the activations, ... */
    EK_CU_SQUARES, /* of rows on their way to a norm */
    EK_CU_ARRIVED, /* counters of decode attention's parts, zero between operations */
    EK_CU_COUNTED, /* the same of argmax */
    EK_CU_STORED,  /* blocks of a store that have arrived, zero between stores */
    EK_CU_ROUTED,  /* a token's logits, zero between operations */
    EK_CU_SINK,
    EK_CU_UNPACKED, /* a batch's contexts out of a cache of E4M3 */
    EK_CU_N_SCRATCH
};

struct ek_cu_key { /* everything that chooses an algorithm */
    enum ek_dtype in, out;
    uint32_t rows, cols, n, align;
    size_t ldx, ldo, steps[3];
    uint32_t batch;
    bool add, bias, turned, gelu;
};
struct ek_cu_plan {
    struct ek_cu_key key;
    bool used;
    cublasLtMatmulAlgo_t algo;
    size_t work;
};

struct ek_cuda {
    struct ek_device base;
    int gpu;
    struct ek_cu_queue queue;
    struct ek_cu_memory memory;
    struct {
        void *p;
        size_t bytes;
    } scratch[EK_CU_N_SCRATCH];
    struct {
        void *host; /* EK_CU_N_STAGING * EK_CU_TAKEN, pinned */
        cudaEvent_t passed[EK_CU_N_STAGING];
        uint32_t next;
    } staging;
    struct { /* pinned memory that is made beside the device's opening, and kept */
        pthread_mutex_t lock;
        pthread_t thread;
        bool making, taken;
        void *p; /* EK_CU_KEPT bytes; NULL: there is none */
    } kept;
    struct {
        void
            *host; /* [EK_CU_CARRIERS][2][EK_CU_CARRIED], pinned; NULL until there is a large one */
        cudaEvent_t passed[EK_CU_CARRIERS][2];
    } carried;
    cublasLtHandle_t lt;
    bool captured;            /* a graph was: scratch memory keeps its address */
    struct ek_cu_plan *plans; /* [EK_CU_N_PLANS], open addressing */
};

/* Bytes of a block's shared memory that a launch may ask for. */
static inline size_t ek_cuda_room(const struct ek_cuda *d)
{
    return d->queue.shared - EK_CU_OWN_SHARED;
}
static inline struct ek_cuda *ek_cuda(struct ek_device *dev)
{
    return (struct ek_cuda *)dev;
}
/* Makes the device's GPU current in this thread. */
void ek_cuda_use(const struct ek_cuda *d);
/* The status of a failed call, its message recorded: out of memory is told apart and cleared. */
enum ek_status ek_cuda_failed(const struct ek_cuda *d, cudaError_t e, const char *what);
/* Runs a CUDA call; on failure returns from the enclosing function. */
#define EK_CU_TRY(d, call)                                                                         \
    do {                                                                                           \
        cudaError_t ek_cu_e_ = (call);                                                             \
        if (ek_cu_e_ != cudaSuccess)                                                               \
            return ek_cuda_failed((d), ek_cu_e_, #call);                                           \
    } while (0)
/* The same for launchers, named by the operation. */
enum ek_status ek_cuda_issued(const struct ek_cuda *d, cudaError_t e, const char *op);

/* memory.c */
/* Memory that a library took (or gave back) is counted as ours; what the driver says is free. */
void ek_cuda_count(struct ek_cuda *d, enum ek_tag tag, int64_t bytes);
uint64_t ek_cuda_avail(const struct ek_cuda *d);
enum ek_status ek_cuda_alloc(struct ek_device *dev, enum ek_tag tag, size_t bytes, void **out);
void ek_cuda_release(struct ek_device *dev, void *p);
enum ek_status ek_cuda_reserve(struct ek_device *dev, enum ek_tag tag, uint64_t bytes);
uint64_t ek_cuda_alloc_bytes(const struct ek_device *dev, size_t bytes);
void ek_cuda_usage(struct ek_device *dev, struct ek_usage by_tag[EK_N_TAGS]);
void ek_cuda_reset_peaks(struct ek_device *dev);
uint64_t ek_cuda_memory_free(struct ek_device *dev);
void ek_cuda_memory_close(struct ek_cuda *d);
/* *out: at least bytes, valid until the next larger request; zeroed when fresh. */
enum ek_status ek_cuda_scratch(struct ek_cuda *d, enum ek_cu_scratch which, size_t bytes,
                               void **out);
enum ek_status ek_cuda_small_scratch(struct ek_cuda *d);
/* Begins to make what is kept, in another thread: loading need not wait the 3 ms that it takes. */
void ek_cuda_kept_begin(struct ek_cuda *d);
void ek_cuda_kept_end(struct ek_cuda *d);
/* Pinned memory; host_alloc takes what is kept where that fits, so this is for what stays as long
 * as the device. Both are freed with host_free. */
enum ek_status ek_cuda_pages_new(struct ek_cuda *d, size_t bytes, void **out);
enum ek_status ek_cuda_host_alloc(struct ek_device *dev, size_t bytes, void **out);
void ek_cuda_host_free(struct ek_device *dev, void *p);

/* queue.c: copies, events, graphs */
enum ek_status ek_cuda_queue_open(struct ek_cuda *d);
void ek_cuda_queue_close(struct ek_cuda *d);
enum ek_status ek_cuda_upload(struct ek_device *dev, void *dst, const void *src, size_t n);
enum ek_status ek_cuda_download(struct ek_device *dev, void *dst, const void *src, size_t n);
enum ek_status ek_cuda_copy(struct ek_device *dev, void *dst, const void *src, size_t n);
enum ek_status ek_cuda_copy_from(struct ek_device *dev, void *dst, struct ek_device *src_dev,
                                 const void *src, size_t n);
enum ek_status ek_cuda_fetch(struct ek_device *dev, void *dst, const void *src, size_t n);
enum ek_status ek_cuda_zero(struct ek_device *dev, void *dst, size_t n);
enum ek_status ek_cuda_event_new(struct ek_device *dev, struct ek_event **out);
enum ek_status ek_cuda_event_order(struct ek_device *dev, struct ek_event **out);
void ek_cuda_event_free(struct ek_event *e);
enum ek_status ek_cuda_event_record(struct ek_device *dev, struct ek_event *e);
enum ek_status ek_cuda_event_wait(struct ek_device *dev, struct ek_event *e);
enum ek_status ek_cuda_event_sync(struct ek_event *e);
enum ek_status ek_cuda_event_passed(struct ek_event *e);
cudaEvent_t ek_cuda_event_of(const struct ek_event *e);
enum ek_status ek_cuda_idle(struct ek_device *dev);
double ek_cuda_event_seconds(struct ek_event *from, struct ek_event *to);
enum ek_status ek_cuda_sync(struct ek_device *dev);
enum ek_status ek_cuda_graph_begin(struct ek_device *dev);
enum ek_status ek_cuda_graph_end(struct ek_device *dev, struct ek_graph **out);
enum ek_status ek_cuda_graph_launch(struct ek_device *dev, struct ek_graph *g);
void ek_cuda_graph_free(struct ek_graph *g);

/* peer.c: stores into other GPUs' memory, and flags */
bool ek_cuda_reaches(const struct ek_device *dev, const struct ek_device *to);
enum ek_status ek_cuda_store(struct ek_device *dev, void *dst, const void *src, size_t n,
                             uint32_t *flag, uint32_t value, uint64_t *when);
enum ek_status ek_cuda_flag_wait(struct ek_device *dev, const uint32_t *flag, uint32_t value,
                                 const uint32_t *stop, uint64_t *when);
enum ek_status ek_cuda_stamp(struct ek_device *dev, uint64_t *when);

/* nccl.c */
const char *ek_cuda_channel_lacks(const struct ek_device *dev, const struct ek_device *to);
enum ek_status ek_cuda_channel_open(struct ek_device *dev, struct ek_device *to,
                                    struct ek_channel **out);
enum ek_status ek_cuda_channel_bytes(struct ek_device *dev, struct ek_device *to,
                                     struct ek_channel_bytes *out);
enum ek_status ek_cuda_channel_send(struct ek_channel *c, const void *src, void *dst, size_t n,
                                    struct ek_event *before, struct ek_event *after);
enum ek_status ek_cuda_channel_check(const struct ek_channel *c);
void ek_cuda_channel_abort(struct ek_channel *c);
void ek_cuda_channel_close(struct ek_channel *c);

/* matrix.c: weights and products */
enum ek_status ek_cuda_mat_new(struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                               uint32_t cols, struct ek_mat *out);
enum ek_status ek_cuda_mat_ready(struct ek_device *dev, struct ek_mat *m);
void ek_cuda_mat_free(struct ek_device *dev, struct ek_mat *m);
uint64_t ek_cuda_mat_bytes(const struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                           uint32_t cols);
enum ek_status ek_cuda_linear(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                              const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                              int flags);
enum ek_status ek_cuda_norm_linear(struct ek_device *dev, const void *x, const float *norm_weight,
                                   float eps, uint32_t n, const struct ek_mat *mats, size_t n_mats,
                                   const float *const *biases, void *out, size_t ldo);
enum ek_status ek_cuda_norm_gate_up(struct ek_device *dev, const void *x, const float *norm_weight,
                                    float eps, uint32_t n, const struct ek_mat mats[2], void *out,
                                    size_t ldo);
enum ek_status ek_cuda_norm_qkv_rope(struct ek_device *dev, const void *x, const float *norm_weight,
                                     float eps, const struct ek_batch *batch,
                                     const struct ek_mat mats[3], const float *const biases[3],
                                     const struct ek_rope *rope, const struct ek_kv *kv,
                                     const struct ek_norm_ahead *ahead, void *out, size_t ldo);
enum ek_status ek_cuda_layer_tail(struct ek_device *dev, const void *in, size_t ldi, uint32_t n,
                                  const struct ek_mat *o, const float *norm_weight, float eps,
                                  const struct ek_mat gate_up[2], const struct ek_mat *down,
                                  void *x, struct ek_norm_ahead *next, bool *taken);
/* gemm.c: large products by cuBLASLt. w: [rows][cols] of type in, x: [n][ldx] of type in. A batch
 * of them: each begins so many elements after the one before. turned: w is [cols][rows]. */
struct ek_cu_gemm {
    const void *w, *x;
    enum ek_dtype in, out_type;
    uint32_t rows, cols, n;
    size_t ldx, ldo;
    const void *bias; /* of out_type, or NULL */
    void *out;
    bool add, turned;
    bool gelu;      /* the tanh form, of the result with its bias */
    uint32_t batch; /* 0: one */
    size_t w_step, x_step, out_step;
};
enum ek_status ek_cuda_gemm_open(struct ek_cuda *d);
void ek_cuda_gemm_close(struct ek_cuda *d);
enum ek_status ek_cuda_gemm(struct ek_cuda *d, const struct ek_cu_gemm *g);

/* ops.c: entries of the table, declared as kernels.h describes them */
enum ek_status ek_cuda_embed(struct ek_device *dev, const struct ek_mat *table, const int32_t *ids,
                             uint32_t n, void *out);
enum ek_status ek_cuda_rms_norm(struct ek_device *dev, const void *x, size_t ldx,
                                const float *weight, float eps, uint32_t n, uint32_t dim, void *out,
                                size_t ldo);
enum ek_status ek_cuda_layer_norm(struct ek_device *dev, const void *x, const float *weight,
                                  const float *bias, float eps, uint32_t n, uint32_t dim,
                                  void *out);
enum ek_status ek_cuda_swiglu(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                              uint32_t dim, void *out, size_t ldo);
enum ek_status ek_cuda_gather(struct ek_device *dev, const void *x, size_t ldx, const int32_t *rows,
                              uint32_t n, uint32_t dim, void *out);
enum ek_status ek_cuda_permute(struct ek_device *dev, const void *x, size_t ldx,
                               const int32_t *order, uint32_t n, uint32_t dim, void *out);
enum ek_status ek_cuda_argmax(struct ek_device *dev, const float *logits, uint32_t n,
                              uint32_t vocab, int32_t *ids);
enum ek_status ek_cuda_sample(struct ek_device *dev, const float *logits, uint32_t n,
                              uint32_t vocab, const struct ek_draw *draws, int32_t *ids);
enum ek_status ek_cuda_take(struct ek_device *dev, int32_t *dst, const int32_t *src, size_t n,
                            uint32_t n_ids, const int32_t *ids);
enum ek_status ek_cuda_convert(struct ek_device *dev, const void *x, enum ek_dtype from, void *out,
                               enum ek_dtype to, size_t n);
enum ek_status ek_cuda_rope_append(struct ek_device *dev, void *qkv, size_t ld,
                                   const struct ek_rope *rope, const struct ek_batch *batch,
                                   uint32_t heads, const struct ek_kv *kv);
enum ek_status ek_cuda_attention(struct ek_device *dev, const void *q, size_t ldq,
                                 const struct ek_batch *batch, const struct ek_kv *kv,
                                 uint32_t heads, float scale, void *out, size_t ldo);
enum ek_status ek_cuda_scatter_rows(struct ek_device *dev, const float *x, const int32_t *rows,
                                    uint32_t n, uint32_t dim, void *out, size_t ldo);
enum ek_status ek_cuda_rope_rows(struct ek_device *dev, void *x, size_t ld,
                                 const struct ek_rope *rope, const int32_t *positions, uint32_t n,
                                 uint32_t heads, uint32_t head_dim);
enum ek_status ek_cuda_attention_dense(struct ek_device *dev, const void *qkv, size_t ld,
                                       uint32_t n, const int32_t *segments, uint32_t n_segments,
                                       uint32_t max_segment, uint32_t heads, uint32_t head_dim,
                                       float scale, void *out, size_t ldo);

#endif
