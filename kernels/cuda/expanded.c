/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefill of latent attention by expanded keys and values: when that is the cheaper form, and its
 * memory, which does not grow with the context.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/deepseek.h"

#define LEAST_NEW      16u                /* tokens a sequence, on average */
#define EXPANDED_BYTES ((size_t)64 << 20) /* of gathered latents and what is made of them */
#define SPAN_STEP      128u               /* tokens: few shapes of products, whole steps */

struct expansion {
    const struct ek_latent *l;
    const struct ek_mat *kv_b;
    size_t element, row; /* bytes of an activation, and of a token's latent, keys and values */
    uint32_t span;       /* tokens of every sequence at a time */
    void *weights;       /* kv_b in the activations' type */
    char *latents, *made;
};

static bool shape_fits(const struct ek_cuda *d, const struct ek_cu_attention *a,
                       const struct ek_latent *l)
{
    const struct ek_kv *kv = &a->kv;

    return d->base.act != EK_F32 && kv->dtype == d->base.act && kv->kv_heads == 1 &&
           kv->head_dim == EK_CU_LATENT_DIM && kv->v_dim == EK_CU_LATENT_VALUE &&
           l->lora == EK_CU_LATENT_VALUE && l->nope == EK_CU_EXPANDED_NOPE &&
           l->rope == EK_CU_EXPANDED_ROPE && l->v == EK_CU_EXPANDED_V && a->rope.dim == l->rope &&
           a->rope.sections[0] == 0 && a->ldq % 8 == 0 && a->ldo % 2 == 0 &&
           (uintptr_t)a->q % 16 == 0 && (uintptr_t)a->out % 4 == 0 &&
           ek_cu_attention_expanded_fits(&d->queue);
}

/* Multiplications a head of both forms, those of attention weighed by how much slower they are than
 * a large product: absorbed attention reaches 2/5 of its speed, attention over expanded keys and
 * values 1/2. The absorbed form brings each new token's query into the latent space and its value
 * out of it, the other expands each token of the context: without a past that is the same, and
 * attention is 3.4 times cheaper; with one it pays from about 60 new tokens a sequence on.
 * Lengths on the host are the batch's longest: sequences that differ much lean to the absorbed
 * form. */
static bool cheaper(const struct ek_batch *b, const struct ek_latent *l)
{
    double width = (double)l->lora * (l->nope + l->v), context = b->max_kv;
    double pairs = b->n_tokens * (context - 0.5 * b->n_tokens / b->n_seqs);
    double absorbed = pairs * (2 * l->lora + l->rope) * 2.5 + b->n_tokens * width;
    double expanded = pairs * (l->nope + l->rope + l->v) * 2.0 + b->n_seqs * context * width;

    return expanded < absorbed;
}

/* Equal spans of the context that fit; 0: there are too many sequences. */
static uint32_t span_of(const struct ek_batch *b, size_t row)
{
    size_t most = EXPANDED_BYTES / row / b->n_seqs / SPAN_STEP * SPAN_STEP, passes;

    if (most == 0)
        return 0;
    passes = (b->max_kv + most - 1) / most;
    return (uint32_t)ek_round_up((b->max_kv + passes - 1) / passes, SPAN_STEP);
}

/* Memory of the same size whatever the form and the context, so that a profile of one shows what
 * another takes. */
static enum ek_status take_memory(struct ek_cuda *d, struct ek_cu_attention *a, struct expansion *e)
{
    size_t sums = (size_t)a->batch.n_tokens * a->heads, mine, partial, weights = 0;
    void *p;

    mine = ek_round_up(sums * sizeof(float2), EK_CU_ALIGN);
    partial = ek_round_up(sums * e->l->v * sizeof(float), EK_CU_ALIGN);
    if (e->kv_b->dtype != d->base.act)
        weights = ek_round_up((size_t)e->kv_b->rows * e->kv_b->cols * e->element, EK_CU_ALIGN);
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, EXPANDED_BYTES + partial + mine + weights, &p));
    e->latents = p;
    a->partial = (float *)(void *)(e->latents + EXPANDED_BYTES);
    a->totals = (float2 *)(void *)((char *)a->partial + partial);
    e->weights = (char *)a->totals + mine;
    return EK_OK;
}

static enum ek_status readable(struct ek_cuda *d, struct expansion *e)
{
    const struct ek_mat *m = e->kv_b;

    if (m->dtype == d->base.act) {
        e->weights = m->data;
        return EK_OK;
    }
    return ek_cuda_issued(d,
                          ek_cu_dequantize(&d->queue, m->dtype, d->base.act, m->data,
                                           (size_t)(m->bytes / m->rows), m->rows, m->cols,
                                           e->weights),
                          "latent_prefill");
}

/* Keys and values of one span, and attention over them. */
static enum ek_status run_span(struct ek_cuda *d, const struct ek_cu_attention *a,
                               const struct expansion *e)
{
    enum ek_dtype act = d->base.act;
    struct ek_cu_gemm g = {.w = e->weights,
                           .x = e->latents,
                           .in = act,
                           .out_type = act,
                           .rows = e->kv_b->rows,
                           .cols = e->l->lora,
                           .n = a->batch.n_seqs * a->span,
                           .ldx = a->latent_row,
                           .ldo = a->row,
                           .out = a->kv.v};

    EK_TRY(ek_cuda_issued(d, ek_cu_latent_gather(&d->queue, a, e->latents), "latent_prefill"));
    EK_TRY(ek_cuda_gemm(d, &g));
    return ek_cuda_issued(d, ek_cu_attention_expanded(&d->queue, act, a), "latent_prefill");
}

static enum ek_status run(struct ek_cuda *d, struct ek_cu_attention *a, struct expansion *e)
{
    uint32_t longest = a->batch.max_kv;

    EK_TRY(readable(d, e));
    a->span = e->span;
    a->latents = e->latents;
    a->latent_row = EK_CU_LATENT_DIM;
    a->row = e->kv_b->rows;
    a->kv.v = e->latents + (size_t)a->batch.n_seqs * e->span * EK_CU_LATENT_DIM * e->element;
    for (a->from = 0; a->from < longest; a->from += a->span)
        EK_TRY(run_span(d, a, e));
    return EK_OK;
}

enum ek_status ek_cuda_latent_prefill(struct ek_device *dev, const struct ek_latent_mix *m,
                                      bool *taken)
{
    const struct ek_batch *batch = m->batch;
    const struct ek_latent *l = &m->shape;
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_attention a = {.q = m->q,
                                .ldq = m->ldq,
                                .batch = *batch,
                                .kv = *m->kv,
                                .heads = l->heads,
                                .scale = m->scale,
                                .out = m->out,
                                .ldo = m->ldo,
                                .rope = *m->rope};
    struct expansion e = {.l = l, .kv_b = m->kv_b, .element = 2};

    *taken = false;
    EK_TRY(ek_args_latent_mix(m));
    if (batch->n_seqs == 0 || batch->n_tokens / batch->n_seqs < LEAST_NEW || !shape_fits(d, &a, l))
        return EK_OK;
    e.row = ((size_t)m->kv_b->rows + EK_CU_LATENT_DIM) * e.element;
    e.span = span_of(batch, e.row);
    if (e.span == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(take_memory(d, &a, &e));
    if (!cheaper(batch, l))
        return EK_OK;
    *taken = true;
    EK_TRY(ek_cuda_latent_append(dev, m->ckv, m->ld, m->norm, m->eps, m->rope, batch, m->kv));
    return run(d, &a, &e);
}
