/* SPDX-License-Identifier: Apache-2.0
 *
 * Multi-head latent attention in its absorbed form: the cache holds one latent and one rotated key
 * a token, queries are brought into the latent space, and attention's output out of it again.
 * Between the two, attention runs with a single K and V head.
 */
#include "kernels/cpu/cpu.h"

#include <string.h>

/* ---- Append ---------------------------------------------------------------------------------- */
struct append_job {
    const struct cpu_device *dev;
    const float *x, *weight;
    size_t ld;
    float eps;
    const struct ek_rope *rope;
    const struct ek_batch *batch;
    const struct ek_kv *kv;
};

static void append_item(void *arg, uint32_t token, uint32_t thread)
{
    const struct append_job *a = arg;
    const struct ek_kv *kv = a->kv;
    uint32_t lora = kv->v_dim, dim = a->rope->dim;
    const float *x = a->x + token * a->ld;
    float *row = cpu_scratch_of(a->dev, thread), *cosine = row + kv->head_dim;

    a->dev->simd->rms_norm(x, a->weight, a->eps, lora, row);
    memcpy(row + lora, x + lora, dim * sizeof(float));
    cpu_token_angles(a->dev->simd, a->rope, a->batch, token, cosine, cosine + dim / 2);
    a->dev->simd->rotate(row + lora, cosine, cosine + dim / 2, dim, a->rope->interleaved);
    cpu_cache_store(a->dev->simd, kv, false, (size_t)a->batch->slots[token], row);
}

enum ek_status cpu_latent_append(struct ek_device *dev, const void *ckv, size_t ld,
                                 const float *norm_weight, float eps, const struct ek_rope *rope,
                                 const struct ek_batch *batch, const struct ek_kv *kv)
{
    struct append_job a = {.dev = cpu_of(dev),
                           .x = ckv,
                           .weight = norm_weight,
                           .ld = ld,
                           .eps = eps,
                           .rope = rope,
                           .batch = batch,
                           .kv = kv};

    EK_TRY(ek_args_latent_append(rope, batch, kv, ld));
    EK_TRY(cpu_workspace(cpu_of(dev), ((size_t)kv->head_dim + rope->dim) * sizeof(float), 0, NULL));
    cpu_run_rows(cpu_of(dev), batch->n_tokens, (size_t)kv->head_dim * 4, append_item, &a);
    return EK_OK;
}

/* ---- Into the latent space and out of it: one head is one item ------------------------------- */
struct latent_job {
    const struct cpu_device *dev;
    const float *x;
    float *out;
    size_t ldx, ldo;
    uint32_t n;
    const struct ek_latent *l;
    const struct ek_mat *kv_b;
    const struct ek_rope *rope;
    const struct ek_batch *batch;
};

/* Row r of kv_b as F32. */
static void kv_b_row(const struct latent_job *a, uint32_t r, float *out)
{
    const struct ek_mat *m = a->kv_b;
    const uint8_t *src = (const uint8_t *)m->data + r * (m->bytes / m->rows);

    if (a->dev->simd->decode[m->dtype])
        a->dev->simd->decode[m->dtype](src, out, m->cols);
    else
        (void)ek_dequantize(m->dtype, src, out, m->cols); /* checked by mat_new */
}

static void query_item(void *arg, uint32_t head, uint32_t thread)
{
    const struct latent_job *a = arg;
    const struct ek_latent *l = a->l;
    float *row = cpu_scratch_of(a->dev, thread), *cosine = row + l->lora;
    size_t in = (size_t)head * (l->nope + l->rope), to = (size_t)head * (l->lora + l->rope);

    for (uint32_t t = 0; t < a->n; t++)
        memset(a->out + t * a->ldo + to, 0, l->lora * sizeof(float));
    for (uint32_t d = 0; d < l->nope; d++) {
        kv_b_row(a, head * (l->nope + l->v) + d, row);
        for (uint32_t t = 0; t < a->n; t++) {
            float q = a->x[t * a->ldx + in + d], *out = a->out + t * a->ldo + to;
            for (uint32_t i = 0; i < l->lora; i++)
                out[i] += q * row[i];
        }
    }
    for (uint32_t t = 0; t < a->n; t++) {
        float *out = a->out + t * a->ldo + to + l->lora;
        memcpy(out, a->x + t * a->ldx + in + l->nope, l->rope * sizeof(float));
        cpu_token_angles(a->dev->simd, a->rope, a->batch, t, cosine, cosine + l->rope / 2);
        a->dev->simd->rotate(out, cosine, cosine + l->rope / 2, l->rope, a->rope->interleaved);
    }
}

static void value_item(void *arg, uint32_t head, uint32_t thread)
{
    const struct latent_job *a = arg;
    const struct ek_latent *l = a->l;
    float *row = cpu_scratch_of(a->dev, thread);

    for (uint32_t d = 0; d < l->v; d++) {
        kv_b_row(a, head * (l->nope + l->v) + l->nope + d, row);
        for (uint32_t t = 0; t < a->n; t++) {
            const float *x = a->x + t * a->ldx + (size_t)head * l->lora;
            float sum = 0.0f;
            for (uint32_t i = 0; i < l->lora; i++)
                sum += x[i] * row[i];
            a->out[t * a->ldo + (size_t)head * l->v + d] = sum;
        }
    }
}

enum ek_status cpu_latent_query(struct ek_device *dev, const void *q, size_t ldq,
                                const struct ek_rope *rope, const struct ek_batch *batch,
                                const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                size_t ldo)
{
    struct latent_job a = {.dev = cpu_of(dev),
                           .x = q,
                           .out = out,
                           .ldx = ldq,
                           .ldo = ldo,
                           .n = batch->n_tokens,
                           .l = l,
                           .kv_b = kv_b,
                           .rope = rope,
                           .batch = batch};

    EK_TRY(ek_args_latent_query(l, kv_b, rope, batch->n_tokens, ldq, ldo));
    EK_TRY(cpu_workspace(cpu_of(dev), ((size_t)l->lora + l->rope) * sizeof(float), 0, NULL));
    cpu_run(cpu_of(dev), l->heads, query_item, &a);
    return EK_OK;
}

enum ek_status cpu_latent_value(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                                const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                size_t ldo)
{
    struct latent_job a = {.dev = cpu_of(dev),
                           .x = x,
                           .out = out,
                           .ldx = ldx,
                           .ldo = ldo,
                           .n = n,
                           .l = l,
                           .kv_b = kv_b};

    EK_TRY(ek_args_latent_value(l, kv_b, n, ldx, ldo));
    EK_TRY(cpu_workspace(cpu_of(dev), (size_t)l->lora * sizeof(float), 0, NULL));
    cpu_run(cpu_of(dev), l->heads, value_item, &a);
    return EK_OK;
}
