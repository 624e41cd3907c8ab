/* SPDX-License-Identifier: Apache-2.0
 *
 * Module functions: what an embedding, a layer, the final norm and the head issue to a device. The
 * profiler times these and the engine runs them.
 */
#include "runtime/stage.h"

#include <stdlib.h>

enum ek_status stage_run_linear(struct ek_stage *s, const struct stage_linear *l, const void *x,
                                size_t ldx, uint32_t n, void *out, size_t ldo, int flags)
{
    const struct ek_ops *ops = s->dev->ops;
    void *ordered = stage_at(s, s->at.ordered);
    char *to = out;

    for (uint32_t i = 0; i < l->n; i++) {
        const int32_t *order = l->orders[i];
        uint32_t cols = l->mats[i].cols;
        if (order != NULL && (i == 0 || order != l->orders[i - 1]))
            EK_TRY(ops->permute(s->dev, x, ldx, order, n, cols, ordered));
        EK_TRY(ops->linear(s->dev, order ? ordered : x, order ? cols : ldx, n, &l->mats[i],
                           l->biases[i], to, ldo, flags));
        to += l->mats[i].rows * stage_act_bytes(s);
    }
    return EK_OK;
}

enum ek_status stage_run_norm_linear(struct ek_stage *s, const float *norm,
                                     const struct stage_linear *l, uint32_t n, const void *x,
                                     void *out)
{
    const struct ek_ops *ops = s->dev->ops;
    uint32_t hidden = s->m->config.hidden;
    float eps = (float)s->m->config.norm_eps;
    void *xn = stage_at(s, s->at.xn);

    if (ops->norm_linear != NULL && !l->has_order)
        return ops->norm_linear(s->dev, x, norm, eps, n, l->mats, l->n,
                                l->has_bias ? l->biases : NULL, out, l->rows);
    EK_TRY(ops->rms_norm(s->dev, x, hidden, norm, eps, n, hidden, xn, hidden));
    return stage_run_linear(s, l, xn, hidden, n, out, l->rows, 0);
}

/* q, k and v of a layer: rotated, k and v in the cache. ahead: NULL, or of its norm. */
static enum ek_status run_qkv(struct ek_stage *s, const struct stage_layer *l,
                              const struct ek_batch *batch, const struct ek_norm_ahead *ahead,
                              const void *x, void *qkv)
{
    const struct ek_ops *ops = s->dev->ops;
    size_t ld = l->qkv.rows;

    if (ops->norm_qkv_rope != NULL && l->qkv.n == 3 && !l->qkv.has_order)
        return ops->norm_qkv_rope(s->dev, x, l->norm, (float)s->m->config.norm_eps, batch,
                                  l->qkv.mats, l->qkv.has_bias ? l->qkv.biases : NULL, &s->rope,
                                  &l->kv, ahead, qkv, ld);
    EK_TRY(stage_run_norm_linear(s, l->norm, &l->qkv, batch->n_tokens, x, qkv));
    return ops->rope_append(s->dev, qkv, ld, &s->rope, batch, s->m->config.n_heads, &l->kv);
}

/* *heads: what attention makes, [n][heads * v_dim]. */
static enum ek_status run_attention(struct ek_stage *s, const struct stage_layer *l,
                                    const struct ek_batch *batch, const struct ek_norm_ahead *ahead,
                                    const void *x, void **heads)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct ek_config *c = &s->m->config;
    size_t ld = l->qkv.rows;
    char *qkv = stage_at(s, s->at.scratch);

    *heads = qkv + ek_round_up(s->opt.max_tokens * ld * stage_act_bytes(s), STAGE_ALIGN);
    EK_TRY(run_qkv(s, l, batch, ahead, x, qkv));
    return ops->attention(s->dev, qkv, ld, batch, &l->kv, c->n_heads, s->softmax_scale, *heads,
                          (size_t)c->n_heads * l->kv.v_dim);
}

static enum ek_status run_feed_forward(struct ek_stage *s, const struct stage_layer *l, uint32_t n,
                                       void *x)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct ek_config *c = &s->m->config;
    size_t inner = c->intermediate;
    char *both = stage_at(s, s->at.scratch);
    void *h = both + ek_round_up(s->opt.max_tokens * 2 * inner * stage_act_bytes(s), STAGE_ALIGN);

    if (ops->norm_gate_up != NULL && !l->gate_up.has_bias && !l->gate_up.has_order) {
        EK_TRY(ops->norm_gate_up(s->dev, x, l->norm2, (float)c->norm_eps, n, l->gate_up.mats, h,
                                 inner));
    } else {
        EK_TRY(stage_run_norm_linear(s, l->norm2, &l->gate_up, n, x, both));
        EK_TRY(ops->swiglu(s->dev, both, 2 * inner, n, c->intermediate, h, inner));
    }
    return stage_run_linear(s, &l->down, h, inner, n, x, c->hidden, EK_LINEAR_ADD);
}

static bool bare(const struct stage_linear *l)
{
    return !l->has_bias && !l->has_order;
}

/* What follows attention in a layer. next: the norm that comes then, or weight NULL; rows become
 * NULL where nothing of it was done ahead. */
static enum ek_status run_tail(struct ek_stage *s, const struct stage_layer *l, uint32_t n,
                               const void *heads, struct ek_norm_ahead *next, void *x)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct ek_config *c = &s->m->config;
    size_t ld = (size_t)c->n_heads * l->kv.v_dim;
    bool taken = false;

    if (ops->layer_tail != NULL && l->router.data == NULL && l->gate_up.n == 2 && bare(&l->o) &&
        bare(&l->gate_up) && bare(&l->down))
        EK_TRY(ops->layer_tail(s->dev, heads, ld, n, l->o.mats, l->norm2, (float)c->norm_eps,
                               l->gate_up.mats, l->down.mats, x, next->weight ? next : NULL,
                               &taken));
    if (taken)
        return EK_OK;
    next->rows = NULL;
    EK_TRY(stage_run_linear(s, &l->o, heads, ld, n, x, c->hidden, EK_LINEAR_ADD));
    return (l->router.data ? stage_run_experts : run_feed_forward)(s, l, n, x);
}

static enum ek_status run_layers(struct ek_stage *s, const struct ek_batch *batch, void *x)
{
    struct ek_norm_ahead norm = {0};
    void *heads;

    for (size_t i = 0; i < s->n_layers; i++) {
        EK_TRY(run_attention(s, &s->layers[i], batch, norm.rows ? &norm : NULL, x, &heads));
        norm = (struct ek_norm_ahead){0};
        if (i + 1 < s->n_layers) {
            norm.weight = s->layers[i + 1].norm;
            norm.rows = stage_at(s, s->at.xn);
        }
        EK_TRY(run_tail(s, &s->layers[i], batch->n_tokens, heads, &norm, x));
    }
    return EK_OK;
}

static enum ek_status run_latent_layers(struct ek_stage *s, const struct ek_batch *batch, void *x)
{
    for (size_t i = 0; i < s->n_layers; i++) {
        const struct stage_layer *l = &s->layers[i];
        EK_TRY(stage_run_latent(s, l, batch, x));
        EK_TRY((l->router.data ? stage_run_experts : run_feed_forward)(s, l, batch->n_tokens, x));
    }
    return EK_OK;
}

/* Rows that follow one another in memory go in one piece: a picture's do. */
static enum ek_status upload_rows(struct ek_stage *s, const struct ek_embed_row *rows, uint32_t n)
{
    size_t hidden = s->m->config.hidden;
    float *to = stage_at(s, s->at.embeds);

    for (uint32_t i = 0, k; i < n; i += k) {
        for (k = 1; i + k < n && rows[i + k].values == rows[i].values + k * hidden;)
            k++;
        EK_TRY(
            s->dev->ops->upload(s->dev, to + i * hidden, rows[i].values, k * hidden * sizeof(*to)));
    }
    return EK_OK;
}

enum ek_status stage_replace(struct ek_stage *s, const struct ek_embed_row *rows,
                             const int32_t *places, uint32_t n)
{
    s->n_replaced = n;
    if (n == 0)
        return EK_OK;
    if (s->at.embeds == SIZE_MAX || n > s->opt.max_tokens)
        return ek_error(EK_EUSAGE, "stage: %u embeddings to replace, at most %u", n,
                        s->at.embeds == SIZE_MAX ? 0 : s->opt.max_tokens);
    if (s->dev->ops->scatter_rows == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s cannot put pictures into a prompt", s->dev->spec.name);
    EK_TRY(upload_rows(s, rows, n));
    return s->dev->ops->upload(s->dev, stage_at(s, s->at.places), places, n * sizeof(*places));
}

enum ek_status stage_fetch(struct ek_stage *s, const void *from, size_t n, float *out)
{
    void *raw;
    enum ek_status st;

    if (s->dev->act == EK_F32)
        return s->dev->ops->download(s->dev, out, from, n * sizeof(*out));
    if ((raw = ek_calloc(n, stage_act_bytes(s))) == NULL)
        return EK_ENOMEM;
    st = s->dev->ops->download(s->dev, raw, from, n * stage_act_bytes(s));
    if (st == EK_OK)
        st = ek_dequantize(s->dev->act, raw, out, n);
    free(raw);
    return st;
}

enum ek_status stage_run_layers(struct ek_stage *s, const struct ek_batch *batch, const void *in)
{
    const struct ek_ops *ops = s->dev->ops;
    bool latent = s->m->config.attention == EK_ATTENTION_MLA;
    uint32_t n = batch->n_tokens;
    void *x = s->x;

    if (s->has_embed) {
        EK_TRY(ops->embed(s->dev, &s->embed, batch->tokens, n, x));
        if (s->n_replaced > 0)
            EK_TRY(ops->scatter_rows(s->dev, stage_at(s, s->at.embeds), stage_at(s, s->at.places),
                                     s->n_replaced, s->m->config.hidden, x, s->m->config.hidden));
    } else if (in != x && (s->n_layers > 0 || s->has_norm))
        EK_TRY(ops->copy(s->dev, x, in, (size_t)n * s->m->config.hidden * stage_act_bytes(s)));
    return (latent ? run_latent_layers : run_layers)(s, batch, x);
}

/* The rows asked for (NULL: the first n), normalised, to out. The norm is of each row alone:
 * gathered first. */
static enum ek_status run_norm(struct ek_stage *s, const void *from, const int32_t *rows,
                               uint32_t n, void *out)
{
    const struct ek_ops *ops = s->dev->ops;
    uint32_t hidden = s->m->config.hidden;
    void *picked = stage_at(s, s->at.xn);

    if (rows != NULL) {
        EK_TRY(ops->gather(s->dev, from, hidden, rows, n, hidden, picked));
        from = picked;
    }
    return ops->rms_norm(s->dev, from, hidden, s->final_norm, (float)s->m->config.norm_eps, n,
                         hidden, out, hidden);
}

enum ek_status stage_run_head(struct ek_stage *s, const void *from, const int32_t *rows, uint32_t n,
                              float *logits)
{
    const struct ek_config *c = &s->m->config;
    void *normed = stage_at(s, s->at.rows);

    if (s->has_norm) {
        EK_TRY(run_norm(s, from, rows, n, normed));
        from = normed;
    }
    return s->dev->ops->linear(s->dev, from, c->hidden, n, s->head, NULL, logits, s->head->rows,
                               EK_LINEAR_OUT_F32);
}

enum ek_status stage_run_eager(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                               void *out, const int32_t *rows, uint32_t n_rows)
{
    void *x = s->x;
    size_t row = s->m->config.hidden * stage_act_bytes(s);
    const void *hidden = s->has_embed || s->n_layers > 0 || s->has_norm ? x : in;

    if (n_rows == batch->n_tokens)
        rows = NULL; /* they ascend: these are all */
    EK_TRY(stage_run_layers(s, batch, in));
    if (s->has_head)
        return n_rows ? stage_run_head(s, hidden, rows, n_rows, out) : EK_OK;
    if (s->has_norm)
        return n_rows ? run_norm(s, x, rows, n_rows, out) : EK_OK;
    return out == x ? EK_OK : s->dev->ops->copy(s->dev, out, x, batch->n_tokens * row);
}

enum ek_status ek_stage_run(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                            void *out, const int32_t *logit_rows, uint32_t n_logits)
{
    if (s->has_head && n_logits > s->opt.max_logits)
        return ek_error(EK_EUSAGE, "stage: %u rows of logits asked for, at most %u", n_logits,
                        s->opt.max_logits);
    if (batch->n_tokens > s->opt.max_tokens || batch->n_seqs > s->opt.max_seqs)
        return ek_error(EK_EUSAGE, "stage: batch of %u tokens, %u sequences; at most %u and %u",
                        batch->n_tokens, batch->n_seqs, s->opt.max_tokens, s->opt.max_seqs);
    if (s->dev->ops->graph_begin != NULL && !s->opt.eager && batch->n_tokens == batch->n_seqs &&
        s->n_replaced == 0)
        return stage_graphs_run(s, batch, in, out, logit_rows, n_logits);
    return stage_run_eager(s, batch, in, out, logit_rows, n_logits);
}
