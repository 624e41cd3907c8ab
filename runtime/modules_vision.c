/* SPDX-License-Identifier: Apache-2.0
 *
 * Module functions of the visual modules: what parts of a tower, merger or projector issue to a
 * device.
 */
#include "runtime/vision.h"

#include <math.h>

#define UPLOAD_PIECE ((size_t)64 << 10) /* taken at once by upload(), see kernels.h */
#define EPS          1e-6f              /* of every norm of both towers, whatever the config says */

static void *at(const struct ek_stage *s, size_t offset)
{
    return s->arena + offset;
}

static enum ek_status upload_ints(struct ek_stage *s, const struct vision_pack *p)
{
    size_t bytes = p->n_ints * sizeof(*p->ints);

    for (size_t i = 0; i < bytes; i += UPLOAD_PIECE)
        EK_TRY(s->dev->ops->upload(s->dev, s->arena + s->vision->at.ints + i,
                                   (const char *)p->ints + i,
                                   bytes - i < UPLOAD_PIECE ? bytes - i : UPLOAD_PIECE));
    return EK_OK;
}

static const int32_t *ints_at(const struct ek_stage *s, size_t offset)
{
    return (const int32_t *)at(s, s->vision->at.ints) + offset;
}

/* Patches to rows of the tower, at x. */
static enum ek_status run_patches(struct ek_stage *s, const struct vision_pack *p)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct stage_vision *v = s->vision;
    size_t n = (size_t)p->rows * p->row_size;
    uint32_t width = s->m->config.vision_hidden;
    char *pixels = at(s, v->at.scratch);
    void *x = at(s, v->at.x), *xn = at(s, v->at.xn);
    int flags = 0;

    EK_TRY(ops->upload(s->dev, pixels, p->pixels, n * sizeof(float)));
    if (s->dev->act != EK_F32) {
        char *to =
            pixels + ek_round_up((size_t)v->max_rows * p->row_size * sizeof(float), STAGE_ALIGN);
        EK_TRY(ops->convert(s->dev, pixels, EK_F32, to, s->dev->act, n));
        pixels = to;
    }
    if (v->pos.data != NULL) {
        EK_TRY(ops->embed(s->dev, &v->pos, ints_at(s, p->positions), p->rows, x));
        flags = EK_LINEAR_ADD;
    }
    EK_TRY(stage_run_linear(s, &v->patch, pixels, p->row_size, p->rows, p->windowed ? xn : x, width,
                            flags));
    if (!p->windowed)
        return EK_OK;
    return ops->gather(s->dev, xn, width, ints_at(s, p->order), p->rows, width, x);
}

static enum ek_status run_norm(struct ek_stage *s, const float *weight, const float *bias,
                               uint32_t n, const void *x, void *out)
{
    const struct ek_ops *ops = s->dev->ops;
    uint32_t width = s->m->config.vision_hidden;

    if (bias != NULL)
        return ops->layer_norm(s->dev, x, weight, bias, EPS, n, width, out);
    return ops->rms_norm(s->dev, x, width, weight, EPS, n, width, out, width);
}

static enum ek_status run_attention(struct ek_stage *s, const struct vision_block *b,
                                    const struct vision_pack *p, bool whole)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct ek_config *c = &s->m->config;
    const struct stage_vision *v = s->vision;
    uint32_t width = c->vision_hidden, dim = width / c->vision_heads;
    size_t ld = 3 * (size_t)width;
    char *qkv = at(s, v->at.scratch);
    void *out = qkv + ek_round_up(v->max_rows * ld * stage_act_bytes(s), STAGE_ALIGN);
    void *x = at(s, v->at.x), *xn = at(s, v->at.xn);

    EK_TRY(run_norm(s, b->norm1, b->bias1, p->rows, x, xn));
    EK_TRY(stage_run_linear(s, &b->qkv, xn, width, p->rows, qkv, ld, 0));
    if (v->rope.inv_freq != NULL)
        EK_TRY(ops->rope_rows(s->dev, qkv, ld, &v->rope, ints_at(s, p->positions), p->rows,
                              2 * c->vision_heads, dim));
    EK_TRY(ops->attention_dense(
        s->dev, qkv, ld, p->rows, ints_at(s, whole ? p->slices : p->windows),
        whole ? p->n_slices : p->n_windows, whole ? p->slice_rows : p->max_window, c->vision_heads,
        dim, 1.0f / sqrtf((float)dim), out, width));
    return stage_run_linear(s, &b->o, out, width, p->rows, x, width, EK_LINEAR_ADD);
}

static enum ek_status run_feed_forward(struct ek_stage *s, const struct vision_block *b, uint32_t n)
{
    const struct ek_config *c = &s->m->config;
    const struct stage_vision *v = s->vision;
    uint32_t width = c->vision_hidden, ff = vision_inner(c);
    char *up = at(s, v->at.scratch), *h = up;
    void *x = at(s, v->at.x), *xn = at(s, v->at.xn);
    bool qwen = vision_is_qwen(c);

    EK_TRY(run_norm(s, b->norm2, b->bias2, n, x, xn));
    EK_TRY(
        stage_run_linear(s, &b->up, xn, width, n, up, b->up.rows, qwen ? 0 : EK_LINEAR_GELU_TANH));
    if (qwen) {
        h += ek_round_up((size_t)v->max_rows * 2 * ff * stage_act_bytes(s), STAGE_ALIGN);
        EK_TRY(s->dev->ops->swiglu(s->dev, up, b->up.rows, n, ff, h, ff));
    }
    return stage_run_linear(s, &b->down, h, ff, n, x, width, EK_LINEAR_ADD);
}

/* Two products with an exact GELU between them, to features in the place of x. */
static enum ek_status run_merge(struct ek_stage *s, const void *x, uint32_t n, void *middle)
{
    const struct stage_vision *v = s->vision;
    size_t in = v->merge[0].mats[0].cols, hidden = v->merge[0].rows;

    EK_TRY(stage_run_linear(s, &v->merge[0], x, in, n, middle, hidden, EK_LINEAR_GELU));
    return stage_run_linear(s, &v->merge[1], middle, hidden, n, at(s, v->at.x), s->m->config.hidden,
                            0);
}

static enum ek_status run_blocks(struct ek_stage *s, const struct vision_pack *p,
                                 vision_after_fn after, void *user)
{
    const struct ek_config *c = &s->m->config;
    const struct stage_vision *v = s->vision;

    for (uint32_t i = v->first_block; i < v->first_block + v->n_blocks; i++) {
        bool whole = !vision_is_qwen(c) || (c->vision_full_attention >> i & 1);
        EK_TRY(run_attention(s, &v->blocks[i], p, whole));
        EK_TRY(run_feed_forward(s, &v->blocks[i], p->rows));
        if (after != NULL)
            EK_TRY(after(user, s, i));
    }
    return EK_OK;
}

static enum ek_status run_merger(struct ek_stage *s, const struct vision_pack *p,
                                 vision_after_fn after, void *user)
{
    const struct ek_config *c = &s->m->config;
    const struct stage_vision *v = s->vision;
    void *xn = at(s, v->at.xn);

    EK_TRY(run_norm(s, v->norm, v->norm_bias, p->rows, at(s, v->at.x), xn));
    if (!vision_is_qwen(c))
        return after != NULL ? after(user, s, c->vision_layers) : EK_OK;
    EK_TRY(run_merge(s, xn, p->features, at(s, v->at.scratch)));
    return s->dev->ops->gather(s->dev, at(s, v->at.x), c->hidden, ints_at(s, p->back), p->features,
                               c->hidden, at(s, v->at.scratch));
}

static enum ek_status run_projector(struct ek_stage *s, const struct vision_pack *p)
{
    const struct ek_config *c = &s->m->config;
    const struct stage_vision *v = s->vision;
    uint32_t cell = c->vision_merge * c->vision_merge, width = c->vision_hidden;
    char *merged = at(s, v->at.scratch);
    size_t bytes = (size_t)p->features * cell * width * stage_act_bytes(s);

    EK_TRY(s->dev->ops->gather(s->dev, at(s, v->merger ? v->at.xn : v->at.x), width,
                               ints_at(s, p->cells), p->features * cell, width, merged));
    return run_merge(s, merged, p->features, merged + ek_round_up(bytes, STAGE_ALIGN));
}

/* Where the last product or Qwen's gather leaves features. */
static size_t made_at(const struct ek_stage *s)
{
    return vision_is_qwen(&s->m->config) ? s->vision->at.scratch : s->vision->at.x;
}

enum ek_status vision_run(struct ek_stage *s, const struct vision_pack *p, vision_after_fn after,
                          void *user)
{
    const struct stage_vision *v = s->vision;

    EK_TRY(upload_ints(s, p));
    if (v->patches)
        EK_TRY(run_patches(s, p));
    EK_TRY(run_blocks(s, p, after, user));
    if (v->merger)
        EK_TRY(run_merger(s, p, after, user));
    if (v->projector)
        EK_TRY(run_projector(s, p));
    if (!vision_makes_features(s) || s->dev->act == EK_F32)
        return EK_OK;
    return s->dev->ops->convert(s->dev, at(s, made_at(s)), s->dev->act, at(s, v->at.features),
                                EK_F32, (size_t)p->features * s->m->config.hidden);
}

size_t vision_output(const struct ek_stage *s)
{
    const struct stage_vision *v = s->vision;

    if (vision_makes_features(s))
        return s->dev->act == EK_F32 ? made_at(s) : v->at.features;
    return v->merger ? v->at.xn : v->at.x;
}
