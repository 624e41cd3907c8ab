/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of a stage: what its weights, cache and activations are and where they lie. Only runtime/
 * includes this.
 */
#ifndef EK_RUNTIME_STAGE_H
#define EK_RUNTIME_STAGE_H

#include "runtime/runtime.h"

#define STAGE_ALIGN     ((size_t)256) /* of every part of an allocation, bytes */
#define STAGE_MAX_PARTS 3

/* A product of one or more matrices over the same input, side by side in the output. Matrices of
 * equal type are one (rows concatenated). */
struct stage_linear {
    struct ek_mat mats[STAGE_MAX_PARTS];
    const float *biases[STAGE_MAX_PARTS];   /* device; NULL: none */
    const int32_t *orders[STAGE_MAX_PARTS]; /* device: inputs of the columns; NULL: as they are */
    uint32_t n, rows;                       /* matrices, sum of their rows */
    bool has_bias, has_order;
};

struct stage_layer {
    float *norm, *norm2; /* device, [hidden] */
    /* Latent attention: qkv is [q | kv_a], or [q_a | kv_a] with a low-rank query, whose q_b
     * follows. A mixture of experts: gate_up and down are those of the shared experts (n 0: none).
     */
    struct stage_linear qkv, o, gate_up, down;
    struct ek_kv kv;
    /* latent attention */
    float *q_a_norm, *kv_a_norm;
    struct stage_linear q_b;
    struct ek_mat kv_b;
    /* mixture of experts; router.data NULL: a dense layer */
    struct ek_mat router, experts_gate_up, experts_down;
    float *router_bias; /* device, [n_experts], or NULL */
};

/* Byte offsets into the activation arena; parts that a stage has not are SIZE_MAX. */
struct stage_arena {
    size_t x;       /* [T][hidden]: the residual stream */
    size_t xn;      /* [T][hidden]: normalised, or rows gathered for the head */
    size_t ordered; /* [T][max_ordered]: inputs in the order of a matrix's columns */
    size_t scratch; /* qkv and attention's output, or gate|up and their product */
    size_t rows;    /* [L][hidden]: normalised rows for the head */
    size_t logits;  /* F32 [L][vocab] */
    size_t embeds; /* F32 [T][hidden]: rows that take the place of embeddings, with the embedding of
                    * a model that sees */
    size_t places; /* I32 [T]: whose place */
    size_t batch;  /* I32: the batch (batch.c) */
    size_t bytes;
};

struct stage_graphs; /* graph.c */
struct stage_vision; /* vision.h */

struct ek_stage {
    struct ek_device *dev;
    const struct ek_model *m;
    struct ek_stage_options opt; /* max_seqs and max_logits cut to max_tokens */
    uint32_t max_blocks;         /* of max_context */
    bool has_embed, has_norm, has_head;
    bool has_dense, has_experts; /* kinds of feed-forward among the layers */
    uint32_t max_ordered;        /* most columns of a matrix that has an order; 0: none has */
    bool has_chain;              /* modules that work on tokens */
    struct ek_mat embed;         /* data NULL: none, or borrowed */
    struct ek_mat head_own;      /* data NULL: tied to an embedding on this device */
    const struct ek_mat *head;   /* head_own, embed, or the embed of another stage */
    struct stage_layer *layers;
    size_t n_layers;
    float *final_norm;
    struct ek_rope rope;
    float softmax_scale;
    struct stage_arena at;
    void *x; /* [T][hidden]: the residual stream, in the arena or a link's slot */
    char *vectors, *kv, *arena; /* device allocations: F32 vectors, cache, activations */
    struct stage_graphs *graphs;
    struct stage_vision *vision; /* visual modules; NULL: none */
    uint32_t n_replaced;         /* rows that replace embeddings of the next run */
};

/* Latent attention's queries are made through a low-rank projection. */
static inline bool stage_low_rank_query(const struct ek_stage *s)
{
    return s->m->config.attention == EK_ATTENTION_MLA && s->m->config.q_lora > 0;
}

/* ---- weights.c */
/* Counts (dry) or makes and loads every weight of the stage. */
struct stage_weights {
    uint64_t vector_bytes; /* of the one allocation of norms, biases and frequencies */
    uint64_t mat_bytes;    /* of all matrices, padding included */
};
/* s: dev, m, opt, has_*, layers, n_layers set. */
enum ek_status stage_weights_count(struct ek_stage *s, const size_t *modules, size_t n,
                                   struct stage_weights *out);
enum ek_status stage_weights_load(struct ek_stage *s, const size_t *modules, size_t n);
void stage_weights_free(struct ek_stage *s);

/* ---- batch.c: a batch as one array of I32, uploaded in one go */
struct batch_shape {
    uint32_t max_tokens, max_seqs, max_blocks, page;
    uint32_t position_rows; /* 3 with M-RoPE, else 1 */
};
struct batch_counts {
    uint32_t n_tokens, n_seqs, n_logits, max_q, max_kv;
    uint32_t padded; /* sequences with the padding of decode batches; n_seqs when there is none */
    uint32_t cap;    /* row length of the image's first arrays */
    size_t words;    /* of the image in use */
};
size_t batch_words(const struct batch_shape *shape); /* of the largest image */
/* EK_EUSAGE when the batch is over the shape's bounds. image: batch_words long. */
enum ek_status batch_pack(const struct batch_shape *shape, const struct ek_batch_host *h,
                          int32_t *image, struct batch_counts *out);
struct batch_shape stage_batch_shape(const struct ek_stage *s);
/* As ek_stage_upload, from a packed image in host memory that the device reads, unchanged until its
 * queue has passed; tokens that are EK_TOKEN_OF_ROW come from ids (NULL: they are not looked at).
 */
enum ek_status stage_take_image(struct ek_stage *s, const int32_t *image, const int32_t *ids,
                                const struct batch_counts *c, struct ek_batch *out,
                                const int32_t **rows, uint32_t *n_rows);

/* ---- stage.c */
/* Waits for all that is queued, before what it works on is freed. What had gone wrong before stays
 * this thread's message. */
void stage_drain(struct ek_device *dev);
/* Appends a part of rows x cols x size bytes, aligned, to *at; false on overflow. */
bool stage_take(size_t *at, size_t rows, size_t cols, size_t size, size_t *offset);

/* The residual stream is at x, NULL: at its own place. */
void stage_work_at(struct ek_stage *s, void *x);

/* ---- modules.c: issues operations, no graphs */
/* One product a matrix, side by side in out. */
enum ek_status stage_run_linear(struct ek_stage *s, const struct stage_linear *l, const void *x,
                                size_t ldx, uint32_t n, void *out, size_t ldo, int flags);
/* The same of normalised x, [n][hidden]. */
enum ek_status stage_run_norm_linear(struct ek_stage *s, const float *norm,
                                     const struct stage_linear *l, uint32_t n, const void *x,
                                     void *out);
/* The next run's embeddings are replaced: n F32 rows of hidden elements go to the tokens `places`
 * of its batch. Values and places stay until the queue has passed. n 0: none. */
enum ek_status stage_replace(struct ek_stage *s, const struct ek_embed_row *rows,
                             const int32_t *places, uint32_t n);
/* n activations to F32 on the host; returns when they are there. */
enum ek_status stage_fetch(struct ek_stage *s, const void *from, size_t n, float *out);
/* Embedding and layers, from in to the stage's x. */
enum ek_status stage_run_layers(struct ek_stage *s, const struct ek_batch *batch, const void *in);
/* Final norm and head over n <= max_logits rows of `from` (x; or normalised rows without a norm);
 * rows NULL: the first n. */
enum ek_status stage_run_head(struct ek_stage *s, const void *from, const int32_t *rows, uint32_t n,
                              float *logits);
/* Everything, as ek_stage_run. */
enum ek_status stage_run_eager(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                               void *out, const int32_t *rows, uint32_t n_rows);

/* ---- modules_deepseek.c: latent attention and mixtures of experts */
/* Bytes of their scratch for T = max_tokens; false on overflow. */
bool stage_latent_scratch(const struct ek_stage *s, size_t *out);
bool stage_experts_scratch(const struct ek_stage *s, size_t *out);
enum ek_status stage_run_latent(struct ek_stage *s, const struct stage_layer *l,
                                const struct ek_batch *batch, void *x);
enum ek_status stage_run_experts(struct ek_stage *s, const struct stage_layer *l, uint32_t n,
                                 void *x);

/* ---- graph.c */
enum ek_status stage_graphs_run(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                                void *out, const int32_t *rows, uint32_t n_rows);
void stage_graphs_free(struct ek_stage *s);

static inline size_t stage_act_bytes(const struct ek_stage *s)
{
    return ek_dtype_block_bytes(s->dev->act);
}
static inline void *stage_at(const struct ek_stage *s, size_t offset)
{
    return offset == SIZE_MAX ? NULL : s->arena + offset;
}

#endif
