/* SPDX-License-Identifier: Apache-2.0
 *
 * kernels: the operations that a device offers. A backend is a table of operations found when a
 * device is opened; nothing above asks which backend it is. Depends on base alone: no models, no
 * plans. Every operation is issued in order on the device's queue (CPU: done when it returns;
 * CUDA: a stream), takes device pointers, and returns a status for errors found at issue.
 *
 * Threads: one thread issues to one device at a time. Pointers stay valid until released.
 */
#ifndef EK_KERNELS_H
#define EK_KERNELS_H

#include "base/base.h"

/* ---- Devices --------------------------------------------------------------------------------- */
enum ek_tag { /* what memory is for: every allocation carries one */
              EK_TAG_WEIGHTS,
              EK_TAG_KV,
              EK_TAG_ACTIVATIONS,
              EK_TAG_WORKSPACE,
              EK_TAG_COMM,
              EK_N_TAGS
};
extern const char *const ek_tag_names[EK_N_TAGS];

#define EK_MAX_DEVICES 64
#define EK_NAME_LEN    32

/* A device as the user declares it: "cuda:0", "cpu:0/threads=0-3,mem=512MiB",
 * "cuda:0.1/mem=20GiB" (the second device declared on GPU 0). */
struct ek_device_spec {
    char name[EK_NAME_LEN]; /* unique: "cpu:1", "cuda:0", "cuda:0.1" */
    char backend[8];        /* "cpu", "cuda" */
    uint32_t index;         /* CPU: its number; CUDA: the GPU's ordinal */
    char threads[128];      /* CPU: list of cores "0-3,8" ("" = all that the process may use) */
    uint64_t memory;        /* budget in bytes, 0: all there is */
    double memory_fraction; /* of the total, when given so */
};
/* Specs separated by spaces or ';'. "" or NULL: every GPU, or one CPU device where there is none.
 */
enum ek_status ek_device_specs_parse(const char *text, struct ek_device_spec **out, size_t *n);

struct ek_device_info {
    char model[96]; /* "NVIDIA H200", "AMD EPYC" */
    char uuid[48];  /* GPU's UUID; CPU: from the processor's name and its cores */
    char pci[24];
    char driver[64];       /* driver and library versions, in the key of a measurement */
    char kernels[33];      /* hash of the backend's kernel sources (set at build) */
    char memory_group[48]; /* devices with equal groups share one memory */
    uint64_t memory_total, memory_free;
    uint32_t compute_major, compute_minor, n_units; /* CUDA: capability, SMs; CPU: 0, 0, threads */
    uint64_t cache_bytes;                           /* L2 of a GPU, last level of a CPU */
    char simd[16];                                  /* CPU: "avx512", "avx2", "c" */
};

struct ek_device_state { /* of this moment; 0: not known */
    uint32_t clock_mhz, memory_mhz, celsius;
    uint32_t throttle;    /* why clocks are lower than they could be: NVML's bits, idleness aside */
    uint64_t memory_used; /* of the whole device, by every process */
};
/* "power cap, thermal" of the bits of throttle; "" for none. */
const char *ek_throttle_text(uint32_t throttle, char out[64]);

struct ek_channel; /* to another device */
struct ek_channel_bytes {
    uint64_t once[2], each[2]; /* of the sender, of the receiver; once: code, stacks */
};
struct ek_event; /* a point in a device's queue */
struct ek_graph; /* a captured sequence of operations */
struct ek_ops;

struct ek_device { /* backends embed it as their first member */
    const struct ek_ops *ops;
    struct ek_device_spec spec;
    struct ek_device_info info;
    enum ek_dtype act; /* of activations: F32 on CPU; F32, BF16 or F16 on CUDA */
};

/* Opens a device for activations of type act (EK_EUNSUPPORTED when the backend has it not). */
enum ek_status ek_device_open(const struct ek_device_spec *spec, enum ek_dtype act,
                              struct ek_device **out);
void ek_device_close(struct ek_device *dev); /* NULL is fine; everything allocated on it is gone */
/* Devices of this machine without opening them: infos of every GPU, then the host's CPU. */
enum ek_status ek_devices_list(struct ek_device_spec **specs, struct ek_device_info **infos,
                               size_t *n);

struct ek_usage {
    uint64_t now, peak; /* bytes; padding of the allocator included */
};

/* ---- Data on a device ------------------------------------------------------------------------ */
/* A weight matrix, row-major [rows = outputs, cols = inputs]. */
struct ek_mat {
    void *data;
    enum ek_dtype dtype;
    uint32_t rows, cols;
    uint64_t bytes;
};

/* KV cache of one layer: paged, token-major. k: [slot][kv_heads][head_dim], v: [slot][kv_heads]
 * [v_dim]. A slot is block * page + offset. Latent attention (MLA): kv_heads 1, k holds
 * [slot][lora + rope], head_dim = lora + rope, v is NULL: the values are the first v_dim = lora
 * elements of the keys. F8_E4M3: a row (of a token and head) holds its elements divided by its
 * scale, rounded to nearest even; the scale is the row's largest magnitude / 448, 1 where that is
 * below 2^-100. An element x of a row whose largest is m is read back as one within
 * max(|x| / 16, m / 448 / 1024) of it. */
struct ek_kv {
    void *k, *v;
    float *k_scale, *v_scale; /* F8_E4M3 alone: [slot][kv_heads] */
    enum ek_dtype dtype;
    uint32_t kv_heads, head_dim, v_dim, page;
};

/* A ragged batch, described in device memory: n_tokens new tokens of n_seqs sequences, each
 * sequence's tokens consecutive. Counts are host copies (upper bounds under a replayed graph). */
struct ek_batch {
    uint32_t n_tokens, n_seqs;
    uint32_t max_q, max_kv;     /* most new tokens of a sequence; longest context */
    uint32_t max_blocks;        /* row length of block_table */
    const int32_t *tokens;      /* [n_tokens] ids */
    const int32_t *positions;   /* [n_tokens], or rows t, h, w with M-RoPE sections */
    uint32_t position_row;      /* elements from one of these rows to the next; 0: n_tokens */
    const int32_t *slots;       /* [n_tokens] where the token's K and V go */
    const int32_t *seq_start;   /* [n_seqs + 1] first token of each sequence */
    const int32_t *kv_len;      /* [n_seqs] context length with this batch's tokens in it; 0, of one
                                   token that pads the batch: it attends to nothing, gets zeros */
    const int32_t *block_table; /* [n_seqs][max_blocks] blocks of each sequence, in order */
};

struct ek_rope {
    const float *inv_freq; /* device memory, [dim / 2] */
    uint32_t dim;          /* rotated dimensions of a head */
    bool interleaved;      /* pairs (2i, 2i+1); else (i, i + dim/2) */
    uint32_t sections[3];  /* M-RoPE: frequencies of the t, h, w rows; all 0: one row */
    float amplitude;       /* times cos and sin */
};

/* Shapes of multi-head latent attention. kv_b holds [heads][nope + v] rows of lora elements: W_uk
 * (nope rows) and W_uv (v rows) of each head. */
struct ek_latent {
    uint32_t heads, lora, nope, rope, v;
};

enum ek_route { EK_ROUTE_GREEDY, EK_ROUTE_GROUP_LIMITED, EK_ROUTE_NOAUX_TC };
/* Which experts a token goes to (docs/models.md has the three rules). */
struct ek_router {
    enum ek_route kind;
    uint32_t n_experts, top_k, n_group, topk_group;
    bool sigmoid;   /* scores are sigmoids, else a softmax */
    bool normalise; /* weights divided by their sum (+ 1e-20), where top_k > 1 */
    float scale;    /* times the weights */
};
/* Feed-forward experts of one layer as two tall matrices: expert e has rows [2 e inner, 2 (e + 1)
 * inner) of gate_up (gate, then up), and rows [e hidden, (e + 1) hidden) of down. */
struct ek_experts {
    const struct ek_mat *gate_up, *down;
    uint32_t n, inner;
};

/* How the token of a row of logits is drawn: temperature, top-k, top-p, min-p, in this order. What
 * equals the last that a rule keeps is kept too. */
struct ek_draw {
    float scale;     /* log2(e) / temperature; 0: the largest logit, nothing else is looked at */
    uint32_t top_k;  /* 0: all */
    float top_p;     /* 1: all */
    float min_p;     /* 0: all */
    uint64_t random; /* evenly distributed bits */
};
/* Draws from logits on the host: the same token as any device's `sample`. *id: -1 when the largest
 * logit is not finite. */
enum ek_status ek_draw_token(const struct ek_draw *d, const float *logits, uint32_t vocab,
                             int32_t *id);

/* Latent attention of a layer, between its first products and its last. */
struct ek_latent_mix {
    const void *ckv; /* as of latent_append */
    size_t ld;
    const float *norm;
    float eps;
    const struct ek_rope *rope;
    const struct ek_batch *batch;
    const struct ek_kv *kv;
    const void *q; /* as of latent_query */
    size_t ldq;
    struct ek_latent shape;
    const struct ek_mat *kv_b;
    float scale;
    void *query, *mixed; /* memory for [n][heads][lora + rope] and [n][heads][lora] */
    void *out;           /* [n][ldo]: heads of v */
    size_t ldo;
};
/* A mixture of experts of a few tokens, from the norm before it on. */
struct ek_mixture {
    void *x; /* [n][hidden]: the tokens, and what is added to */
    uint32_t n;
    const float *norm;
    float eps;
    const struct ek_mat *gate; /* the router's */
    const float *bias;         /* as of route, or NULL */
    const struct ek_router *router;
    const int32_t *forced; /* [n][top_k] experts to take whatever the router says (not its weights);
                              NULL: none */
    const struct ek_experts *experts;
    const struct ek_mat *shared; /* gate and up (one matrix, gate first) and down of the
                                    feed-forward layer that every token goes to */
    void *normed;                /* memory for [n][hidden] */
    int32_t *ids;                /* memory for [n][top_k]: the experts */
    float *weights;              /* [n][top_k] */
};

enum {                        /* flags of linear */
       EK_LINEAR_ADD = 1,     /* out += instead of out = (the residual) */
       EK_LINEAR_OUT_F32 = 2, /* out is F32 whatever the activations are (logits) */
       EK_LINEAR_GELU = 4,    /* exact (erf) GELU of the result */
       EK_LINEAR_GELU_TANH = 8,
};

/* An RMS norm begun by the operation that makes its rows, for the one that takes them: the rows
 * times the norm's weights, before the factor of each row, which squares of the rows tell. */
struct ek_norm_ahead {
    const float *weight;  /* [dim] */
    void *rows;           /* [n][dim] act, the caller's */
    const float *squares; /* the device's: valid until its next layer_tail */
};

/* ---- The table
 * --------------------------------------------------------------------------------------- x, out,
 * q, ...: activations (dev->act) unless said otherwise, rows of `ld` elements. Norm weights and
 * biases are F32. n: number of tokens (rows). out may not overlap x unless said. An entry under
 * "fused" or "later" may be NULL: the caller composes it from the others. */
struct ek_ops {
    const char *name;
    bool host; /* device memory is the host's: any of its threads may write there */

    /* life and memory */
    enum ek_status (*open)(const struct ek_device_spec *spec, enum ek_dtype act,
                           struct ek_device **out);
    void (*close)(struct ek_device *dev);
    /* infos of every device of this backend, without opening any */
    enum ek_status (*list)(struct ek_device_info **infos, size_t *n);
    enum ek_status (*alloc)(struct ek_device *dev, enum ek_tag tag, size_t bytes, void **out);
    void (*release)(struct ek_device *dev, void *p);
    void (*usage)(struct ek_device *dev, struct ek_usage by_tag[EK_N_TAGS]);
    void (*reset_peaks)(struct ek_device *dev);
    uint64_t (*memory_free)(struct ek_device *dev); /* what could be allocated now */
    /* false: not known. NULL: never */
    bool (*state)(struct ek_device *dev, struct ek_device_state *out);
    /* what lies between two devices of this backend: "NVLink", "PCIe switch", ...; "" where that is
     * not known. NULL: never */
    const char *(*joined)(const struct ek_device *dev, const struct ek_device *to);
    /* host memory that copies at full speed (pinned for a GPU) */
    enum ek_status (*host_alloc)(struct ek_device *dev, size_t bytes, void **out);
    void (*host_free)(struct ek_device *dev, void *p);

    /* copies: upload and copy are queued (src of an upload must stay until the queue passed it,
     * unless n <= 64 KiB, which is taken at once); download returns when dst is filled */
    enum ek_status (*upload)(struct ek_device *dev, void *dst, const void *src, size_t n);
    enum ek_status (*download)(struct ek_device *dev, void *dst, const void *src, size_t n);
    enum ek_status (*copy)(struct ek_device *dev, void *dst, const void *src, size_t n);
    /* queued on dst's device, which must have waited for the source's event; NULL: not possible
     * between these backends, go through the host */
    enum ek_status (*copy_from)(struct ek_device *dev, void *dst, struct ek_device *src_dev,
                                const void *src, size_t n);
    enum ek_status (*zero)(struct ek_device *dev, void *dst, size_t n);
    /* a download that is queued: dst (of host_alloc) is filled when an event recorded after it has
     * passed */
    enum ek_status (*fetch)(struct ek_device *dev, void *dst, const void *src, size_t n);
    /* hand-overs that no host thread takes part in. reaches: dev's store can write to's memory, and
     * to's queue can wait for a flag there. store is queued: n bytes to dst, then *flag = value, so
     * that who sees the flag sees the bytes (flag NULL: only the bytes). flag_wait: the queue of
     * the flag's own device (or of host_alloc) waits until the flag has come to value or beyond,
     * modulo 2^32, or until *stop (of host_alloc, NULL: none) is not 0: so the host ends such waits
     * when the sender is no more. when (NULL: no matter): as stamp, before the bytes go, and behind
     * the wait. All NULL: not possible. */
    bool (*reaches)(const struct ek_device *dev, const struct ek_device *to);
    enum ek_status (*store)(struct ek_device *dev, void *dst, const void *src, size_t n,
                            uint32_t *flag, uint32_t value, uint64_t *when);
    enum ek_status (*flag_wait)(struct ek_device *dev, const uint32_t *flag, uint32_t value,
                                const uint32_t *stop, uint64_t *when);

    /* messages by a library (NCCL). lacks: why there are none between these two devices, here and
     * now (NULL: there are). open may take seconds. send is queued by the thread of dev: n bytes
     * from src, when dev's queue comes there, to dst of `to`, when `before` has passed; `after` is
     * recorded behind their arrival (events of `to`, or NULL). check: why it has failed, from any
     * thread. abort ends what is under way and returns at once. All NULL: not possible. */
    const char *(*channel_lacks)(const struct ek_device *dev, const struct ek_device *to);
    enum ek_status (*channel_open)(struct ek_device *dev, struct ek_device *to,
                                   struct ek_channel **out);
    /* What a channel takes of their memory, as its own allocations are counted under EK_TAG_COMM:
     * the first of a process, and each. Opens some to see, so the first is there from then on. */
    enum ek_status (*channel_bytes)(struct ek_device *dev, struct ek_device *to,
                                    struct ek_channel_bytes *out);
    enum ek_status (*channel_send)(struct ek_channel *c, const void *src, void *dst, size_t n,
                                   struct ek_event *before, struct ek_event *after);
    enum ek_status (*channel_check)(const struct ek_channel *c);
    void (*channel_abort)(struct ek_channel *c);
    void (*channel_close)(struct ek_channel *c); /* both devices are idle */

    /* order */
    enum ek_status (*event_new)(struct ek_device *dev, struct ek_event **out);
    /* The same for order alone, which costs the queue less. */
    enum ek_status (*event_order)(struct ek_device *dev, struct ek_event **out);
    void (*event_free)(struct ek_event *e);
    enum ek_status (*event_record)(struct ek_device *dev, struct ek_event *e);
    enum ek_status (*event_wait)(struct ek_device *dev, struct ek_event *e); /* the queue waits */
    enum ek_status (*event_sync)(struct ek_event *e);                        /* the host waits */
    /* The host looks, and never waits: EK_OK, EK_NO (the queue has not come there), or why not. */
    enum ek_status (*event_passed)(struct ek_event *e);
    /* The queue notes the time in memory of host_alloc: nanoseconds of the device's own clock,
     * never 0. An event with a time takes a GPU's queue three microseconds, this one or none. */
    enum ek_status (*stamp)(struct ek_device *dev, uint64_t *when);
    double (*event_seconds)(struct ek_event *from, struct ek_event *to); /* after a sync of to */
    enum ek_status (*sync)(struct ek_device *dev);
    enum ek_status (*idle)(struct ek_device *dev); /* as event_passed, for all that was queued */
    /* graphs; NULL where the backend has none */
    enum ek_status (*graph_begin)(struct ek_device *dev);
    enum ek_status (*graph_end)(struct ek_device *dev, struct ek_graph **out);
    enum ek_status (*graph_launch)(struct ek_device *dev, struct ek_graph *g);
    void (*graph_free)(struct ek_graph *g);

    /* weights: mat_new allocates; rows are uploaded in the checkpoint's form with upload() to
     * data + row * (bytes / rows); mat_ready lets the backend rearrange them. */
    enum ek_status (*mat_new)(struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                              uint32_t cols, struct ek_mat *out);
    enum ek_status (*mat_ready)(struct ek_device *dev, struct ek_mat *m);
    void (*mat_free)(struct ek_device *dev, struct ek_mat *m);
    /* What alloc and mat_new (with mat_ready, when it is done) will count under their tags, padding
     * included, so that a plan is held against memory before anything is allocated. NULL: exactly
     * the bytes asked for. */
    uint64_t (*alloc_bytes)(const struct ek_device *dev, size_t bytes);
    uint64_t (*mat_bytes)(const struct ek_device *dev, enum ek_dtype dtype, uint32_t rows,
                          uint32_t cols);
    /* Takes bytes for later allocations under tag at once, so that nothing is lost to the driver's
     * granules. NULL: no use. */
    enum ek_status (*reserve)(struct ek_device *dev, enum ek_tag tag, uint64_t bytes);

    /* ---- operations */
    /* out[i] = row ids[i] of table */
    enum ek_status (*embed)(struct ek_device *dev, const struct ek_mat *table, const int32_t *ids,
                            uint32_t n, void *out);
    /* out = x * rsqrt(mean(x^2) + eps), rounded to act, times weight */
    enum ek_status (*rms_norm)(struct ek_device *dev, const void *x, size_t ldx,
                               const float *weight, float eps, uint32_t n, uint32_t dim, void *out,
                               size_t ldo);
    enum ek_status (*layer_norm)(struct ek_device *dev, const void *x, const float *weight,
                                 const float *bias, float eps, uint32_t n, uint32_t dim, void *out);
    /* out[i, r] = sum_c x[i, c] w[r, c] + bias[r]; accumulation in fp32; bias may be NULL */
    enum ek_status (*linear)(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                             const struct ek_mat *w, const float *bias, void *out, size_t ldo,
                             int flags);
    /* qkv rows hold [heads q | kv_heads k | kv_heads v] of head_dim each: rotates q and k in place
     * and stores k and v into the cache at batch->slots */
    enum ek_status (*rope_append)(struct ek_device *dev, void *qkv, size_t ld,
                                  const struct ek_rope *rope, const struct ek_batch *batch,
                                  uint32_t heads, const struct ek_kv *kv);
    /* causal attention of each sequence's new tokens over its whole cached context (this batch's
     * tokens already appended): out[i] = [heads * v_dim]; softmax in fp32, never materialised over
     * the context */
    enum ek_status (*attention)(struct ek_device *dev, const void *q, size_t ldq,
                                const struct ek_batch *batch, const struct ek_kv *kv,
                                uint32_t heads, float scale, void *out, size_t ldo);
    /* x rows hold [dim gate | dim up]: out = silu(gate) * up */
    enum ek_status (*swiglu)(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                             uint32_t dim, void *out, size_t ldo);
    /* out[i] = row rows[i] of x (rows: device memory); zeros where rows[i] < 0 */
    enum ek_status (*gather)(struct ek_device *dev, const void *x, size_t ldx, const int32_t *rows,
                             uint32_t n, uint32_t dim, void *out);
    /* out[i, c] = x[i, order[c]] of n rows of dim elements; order: device memory */
    enum ek_status (*permute)(struct ek_device *dev, const void *x, size_t ldx,
                              const int32_t *order, uint32_t n, uint32_t dim, void *out);
    /* ids[i] = index of the largest of logits (F32) row i, the lowest index on ties; ids: of this
     * device, or of any device's host_alloc */
    enum ek_status (*argmax)(struct ek_device *dev, const float *logits, uint32_t n, uint32_t vocab,
                             int32_t *ids);
    /* ids[i] of row i of logits as draws[i] says; both of any device's host_alloc, draws unchanged
     * until the queue has passed; NULL: see ek_draw_token */
    enum ek_status (*sample)(struct ek_device *dev, const float *logits, uint32_t n, uint32_t vocab,
                             const struct ek_draw *draws, int32_t *ids);
    /* n words from src to dst; of the first n_ids of them those below 0 become ids[-1 - word], or 0
     * where that is below 0 (ids NULL: they stay). src and ids: of any device's host_alloc,
     * unchanged until the queue has passed */
    enum ek_status (*take)(struct ek_device *dev, int32_t *dst, const int32_t *src, size_t n,
                           uint32_t n_ids, const int32_t *ids);
    /* n elements of dtype from (device memory) to dtype to, for hand-overs between unlike devices
     */
    enum ek_status (*convert)(struct ek_device *dev, const void *x, enum ek_dtype from, void *out,
                              enum ek_dtype to, size_t n);

    /* ---- latent attention (MLA, absorbed form) and mixtures of experts; NULL: not supported */
    /* ckv rows hold [lora latent | rope key]: the latent normalised by norm_weight, the key
     * rotated, both stored into the cache at batch->slots */
    enum ek_status (*latent_append)(struct ek_device *dev, const void *ckv, size_t ld,
                                    const float *norm_weight, float eps, const struct ek_rope *rope,
                                    const struct ek_batch *batch, const struct ek_kv *kv);
    /* q rows hold [heads][nope | rope]: out[i][h] = [W_uk(h)^T q_nope | rotated q_rope], ready for
     * attention with kv_heads 1 */
    enum ek_status (*latent_query)(struct ek_device *dev, const void *q, size_t ldq,
                                   const struct ek_rope *rope, const struct ek_batch *batch,
                                   const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                   size_t ldo);
    /* x rows hold [heads][lora]: out[i][h] = W_uv(h) x[i][h], [heads][v] */
    enum ek_status (*latent_value)(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                                   const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                   size_t ldo);
    /* ids and weights: [n][top_k], best first. Scores in fp32. bias: correction [n_experts] or NULL
     */
    enum ek_status (*route)(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                            const struct ek_mat *gate, const float *bias,
                            const struct ek_router *router, int32_t *ids, float *weights);
    /* out[i] += sum_k weights[i][k] expert(ids[i][k])(x[i]), summed in fp32 */
    enum ek_status (*experts)(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                              const int32_t *ids, const float *weights, uint32_t top_k,
                              const struct ek_experts *e, void *out, size_t ldo);

    /* ---- vision; NULL: not supported */
    /* out[rows[i]] = x[i]: F32 rows of dim elements, ld dim, to activations of ld ldo (embeddings
     * of pictures to their places in a prompt); rows: device memory, each at most once */
    enum ek_status (*scatter_rows)(struct ek_device *dev, const float *x, const int32_t *rows,
                                   uint32_t n, uint32_t dim, void *out, size_t ldo);
    /* Rotates the first `heads` heads of n rows in place. positions: [rows][n] (device), a row for
     * every section that rope has */
    enum ek_status (*rope_rows)(struct ek_device *dev, void *x, size_t ld,
                                const struct ek_rope *rope, const int32_t *positions, uint32_t n,
                                uint32_t heads, uint32_t head_dim);
    /* Attention of every row to all rows of its segment, before and behind it. qkv rows hold [heads
     * q | heads k | heads v] of head_dim (72 and 80 are the usual ones); segments (device):
     * [n_segments + 1] first rows, ascending from 0 to n; out rows: [heads][head_dim]. Softmax in
     * fp32, scores never materialised over a segment. */
    enum ek_status (*attention_dense)(struct ek_device *dev, const void *qkv, size_t ld, uint32_t n,
                                      const int32_t *segments, uint32_t n_segments,
                                      uint32_t max_segment, uint32_t heads, uint32_t head_dim,
                                      float scale, void *out, size_t ldo);

    /* ---- fused: NULL where the backend composes them */
    /* rms_norm then one linear a matrix, each into its own columns of out:
     * out[:, at_k .. at_k + mats[k].rows) with at_k the sum of the rows before; biases may be NULL
     */
    enum ek_status (*norm_linear)(struct ek_device *dev, const void *x, const float *norm_weight,
                                  float eps, uint32_t n, const struct ek_mat *mats, size_t n_mats,
                                  const float *const *biases, void *out, size_t ldo);
    /* rms_norm, gate and up products, out = silu(gate) * up. mats: gate, up */
    enum ek_status (*norm_gate_up)(struct ek_device *dev, const void *x, const float *norm_weight,
                                   float eps, uint32_t n, const struct ek_mat mats[2], void *out,
                                   size_t ldo);
    /* latent_append, latent_query, attention, latent_value */
    enum ek_status (*latent_mix)(struct ek_device *dev, const struct ek_latent_mix *m);
    /* The same for batches where keys and values of every head, made of the cached latents by kv_b,
     * cost less than queries in the latent space. Else *taken is false, and nothing was issued. */
    enum ek_status (*latent_prefill)(struct ek_device *dev, const struct ek_latent_mix *m,
                                     bool *taken);
    /* rms_norm, route, experts, and the shared layer. *taken is false, and nothing issued, where
     * the shape is not one for it: then the caller composes them */
    enum ek_status (*mixture)(struct ek_device *dev, const struct ek_mixture *m, bool *taken);
    /* rms_norm, the products of q, k and v (mats, biases: NULL or one a matrix), rotation, and k
     * and v into the cache: rope_append of norm_linear. out gets the rotated q; its columns of k
     * and v may be left as they were. ahead: NULL, or what layer_tail left of this norm of x. */
    enum ek_status (*norm_qkv_rope)(struct ek_device *dev, const void *x, const float *norm_weight,
                                    float eps, const struct ek_batch *batch,
                                    const struct ek_mat mats[3], const float *const biases[3],
                                    const struct ek_rope *rope, const struct ek_kv *kv,
                                    const struct ek_norm_ahead *ahead, void *out, size_t ldo);
    /* What follows attention in a dense layer, for batches and weights where it is faster so:
     * linear of in ([n][ldi]) by o, added to x ([n][o->rows]); norm_gate_up of it; linear of that
     * by down, added to x. next: NULL, or the norm that x goes to next, see there. Else *taken is
     * false, and nothing was issued. */
    enum ek_status (*layer_tail)(struct ek_device *dev, const void *in, size_t ldi, uint32_t n,
                                 const struct ek_mat *o, const float *norm_weight, float eps,
                                 const struct ek_mat gate_up[2], const struct ek_mat *down, void *x,
                                 struct ek_norm_ahead *next, bool *taken);

    /* ---- ceilings, measured by the profiler with the backend's own best kernels */
    /* reads every byte of p once (the sum keeps it honest) */
    enum ek_status (*read_bytes)(struct ek_device *dev, const void *p, size_t n);
};

/* Sum over tags. */
uint64_t ek_usage_total(const struct ek_usage by_tag[EK_N_TAGS], bool peak);

#endif
