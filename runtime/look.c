/* SPDX-License-Identifier: Apache-2.0
 *
 * Visual modules alone, over a picture of a given number of tokens: what the profiler measures.
 */
#include "runtime/vision.h"

#include <stdlib.h>
#include <string.h>

#define COLD_PIXELS ((size_t)48 << 20) /* more than caches of hosts hold: 192 MiB */

struct vision_look { /* kept from one run to the next, for a clock looks on */
    uint32_t tokens;
    float *pixels; /* [n_pixels], of which the picture has those from at on; NULL: it needs none */
    size_t n_pixels, at;
    struct ek_visual v;
    struct ek_vl_geometry g; /* Qwen */
    float *features;         /* [n_features][hidden]: what the host is given ... */
    struct ek_device *dev;   /* ... host memory of this, as the engine's is */
};

/* As square as its number of cells allows. */
static void shape_qwen(const struct ek_config *c, uint32_t tokens, struct ek_visual *v)
{
    uint32_t h = 1;

    for (uint32_t i = 1; (uint64_t)i * i <= tokens; i++)
        h = tokens % i == 0 ? i : h;
    v->t = 1;
    v->h = h * c->vision_merge;
    v->w = tokens / h * c->vision_merge;
    v->n_rows = (uint64_t)v->h * v->w;
    v->n_features = tokens;
}

/* Tiles of a picture of about so many tokens: the view of all of it, whose rows of cells end with a
 * newline, a separator, and tiles whose rows mostly have a newline for two of them. */
static void shape_vl2(const struct ek_config *c, uint32_t tokens, struct ek_visual *v)
{
    uint64_t cells = vision_cells(c), tile = cells * cells + cells / 2;
    uint64_t grid = vision_grid(c), whole = cells * (cells + 1) + 1;

    v->t = tokens <= whole ? 1 : 1 + (uint32_t)((tokens - whole + tile / 2) / tile);
    v->h = v->w = (uint32_t)grid;
    v->n_rows = v->t * grid * grid;
    v->n_features = (uint32_t)(v->t * cells * cells);
}

static enum ek_status run_part(struct ek_stage *s, const struct vision_pack *p)
{
    size_t bytes = (size_t)p->features * s->m->config.hidden * sizeof(float);

    EK_TRY(vision_run(s, p, NULL, NULL));
    if (vision_makes_features(s))
        return s->dev->ops->download(s->dev, s->vision->look->features, s->arena + vision_output(s),
                                     bytes);
    return s->dev->ops->sync(s->dev); /* the pack is freed */
}

static enum ek_status run_all(struct ek_stage *s, const struct ek_visual *v,
                              const struct ek_vl_geometry *g)
{
    uint32_t slice = vision_slice_rows(v), step = s->vision->max_rows / slice;

    if (step == 0)
        return ek_error(EK_EUSAGE, "picture of %u patches, at most %u at once", slice,
                        s->vision->max_rows);
    for (uint32_t at = 0; at < v->t; at += step) {
        struct vision_pack p;
        enum ek_status st;
        EK_TRY(vision_pack(&s->m->config, v, g, at, v->t - at < step ? v->t - at : step, &p));
        st = run_part(s, &p);
        vision_pack_free(&p);
        EK_TRY(st);
    }
    return EK_OK;
}

/* ---- the picture --------------------------------------------------------------------------------
 */
void vision_look_free(struct vision_look *l)
{
    if (l == NULL)
        return;
    ek_vl_geometry_free(&l->g);
    free(l->pixels);
    if (l->features != NULL)
        l->dev->ops->host_free(l->dev, l->features);
    free(l);
}

/* Rows of NOISE numbers over and over: no two rows are alike where it is no multiple of theirs. For
 * a GPU there are more of them, taken in turn: a picture that comes is in no cache of the host. */
static enum ek_status fill(struct ek_device *dev, struct vision_look *l)
{
    enum { NOISE = 8191 };
    size_t n = l->v.n_rows * l->v.row_size, all = n;
    uint64_t seed = 1;

    if (l->n_pixels >= n) /* those of the picture before */
        return EK_OK;
    if (dev->info.compute_major > 0)
        all += COLD_PIXELS;
    free(l->pixels);
    if ((l->pixels = ek_calloc(all, sizeof(*l->pixels))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < all && i < NOISE; i++)
        l->pixels[i] = ek_random_normal(&seed);
    for (size_t i = NOISE; i < all; i += i) /* what is there once more */
        memcpy(l->pixels + i, l->pixels, (all - i < i ? all - i : i) * sizeof(*l->pixels));
    l->n_pixels = all;
    return EK_OK;
}

/* The next picture. */
static void turn(struct vision_look *l)
{
    size_t n = l->v.n_rows * l->v.row_size;

    l->at = l->at + 2 * n <= l->n_pixels ? l->at + n : 0;
    l->v.pixels = l->pixels ? l->pixels + l->at : NULL;
}

static enum ek_status make_look(const struct ek_stage *s, uint32_t tokens, struct vision_look *l)
{
    const struct ek_config *c = &s->m->config;
    struct ek_vl_rules rules = {.kind = c->vision,
                                .patch = c->vision_patch,
                                .merge = c->vision_merge,
                                .temporal = c->vision_temporal};

    l->v.row_size = vision_row_size(c);
    (vision_is_qwen(c) ? shape_qwen : shape_vl2)(c, tokens, &l->v);
    if (vision_is_qwen(c)) {
        rules.window = c->vision_window / c->vision_patch / c->vision_merge;
        EK_TRY(ek_vl_geometry(&rules, &l->v, &l->g));
    }
    if (s->vision->patches)
        EK_TRY(fill(s->dev, l));
    l->dev = s->dev;
    EK_TRY(s->dev->ops->host_alloc(s->dev, l->v.n_features * c->hidden * sizeof(float),
                                   (void **)&l->features));
    l->tokens = tokens;
    return EK_OK;
}

static enum ek_status another_look(struct ek_stage *s, uint32_t tokens)
{
    struct vision_look *l = ek_calloc(1, sizeof(*l)), *old = s->vision->look;

    if (l == NULL)
        return EK_ENOMEM;
    if (old != NULL) {
        l->pixels = old->pixels;
        l->n_pixels = old->n_pixels;
        old->pixels = NULL;
    }
    vision_look_free(old);
    s->vision->look = l;
    return make_look(s, tokens, l);
}

enum ek_status ek_stage_look(struct ek_stage *s, uint32_t tokens)
{
    struct stage_vision *v = s->vision;

    if (v == NULL || tokens == 0)
        return ek_error(EK_EUSAGE, "stage: no visual modules for a picture of %u tokens", tokens);
    if (!vision_has_tower(v) && !v->projector)
        return EK_OK;
    if (v->look == NULL || v->look->tokens != tokens)
        EK_TRY(another_look(s, tokens));
    turn(v->look);
    return run_all(s, &v->look->v, vision_is_qwen(&s->m->config) ? &v->look->g : NULL);
}
