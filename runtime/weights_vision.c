/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights of the visual modules. Their tensors have no roles: they are found by name.
 */
#include "runtime/vision.h"
#include "runtime/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NAME_LEN 64

/* The tensor called TOWER.name and ending (TOWER: the projector's name in its module), or NULL. */
static const struct ek_tensor *find(const struct ek_module *mod, const char *name,
                                    const char *ending)
{
    size_t skip = ek_module_tower_length(mod) + 1, n = strlen(name);

    for (size_t i = 0; i < mod->n_tensors; i++) {
        const char *at = mod->tensors[i].name;
        if (strlen(at) >= skip + n && strncmp(at + skip, name, n) == 0 &&
            strcmp(at + skip + n, ending) == 0)
            return &mod->tensors[i];
    }
    return NULL;
}

/* A required tensor of rows * cols elements, the first dimension rows. */
static enum ek_status need(const struct ek_module *mod, const char *name, const char *ending,
                           uint64_t rows, uint64_t cols, const struct ek_tensor **out)
{
    const struct ek_tensor *t = find(mod, name, ending);
    uint64_t n = 1;

    if (t == NULL)
        return ek_error(EK_EFORMAT, "%s: no tensor %s%s", mod->name, name, ending);
    for (uint32_t i = 1; i < t->n_dims; i++)
        n *= t->shape[i]; /* the model has checked the product */
    if (t->shape[0] != rows || n != cols)
        return ek_error(EK_EFORMAT, "%s: %llu x %llu elements, expected %llu x %llu", t->name,
                        (unsigned long long)t->shape[0], (unsigned long long)n,
                        (unsigned long long)rows, (unsigned long long)cols);
    *out = t;
    return EK_OK;
}

static enum ek_status add_vector(struct walk *w, const struct ek_module *mod, const char *name,
                                 const char *ending, uint32_t n, float **out)
{
    const struct ek_tensor *t;
    float *vec;

    EK_TRY(need(mod, name, ending, n, 1, &t));
    vec = walk_vector(w, n);
    if (!w->dry)
        *out = vec;
    return walk_load(w, t, NULL, 0, vec);
}

/* A matrix of rows x cols, and what the device makes of it by zeros below and to the right. */
struct shape {
    uint32_t rows, cols, to_rows, to_cols;
};

/* Part i of a matrix, and the zeros below it. */
static enum ek_status add_part(struct walk *w, const struct ek_tensor *t, const struct shape *s,
                               uint32_t i, struct ek_mat *mat)
{
    struct ek_device *dev = w->s->dev;
    size_t row = mat->rows ? mat->bytes / mat->rows : 0;

    if (s->to_cols != s->cols && ek_dtype_block(t->dtype) != 1)
        return ek_error(EK_EUNSUPPORTED, "%s: rows of %u of %s cannot be made longer", t->name,
                        s->cols, ek_dtype_name(t->dtype));
    EK_TRY(walk_load(w, t, mat, i * s->to_rows, NULL));
    if (w->dry)
        return EK_OK;
    w->loads[w->n_loads - 1].cols = s->cols;
    if (s->to_rows == s->rows)
        return EK_OK;
    return dev->ops->zero(dev, (char *)mat->data + ((size_t)i * s->to_rows + s->rows) * row,
                          (s->to_rows - s->rows) * row);
}

/* The biases of n matrices; NULL in *out: there are none. */
static enum ek_status add_biases(struct walk *w, const struct ek_module *mod,
                                 const char *const *names, uint32_t n, const struct shape *s,
                                 float **out)
{
    float *vec = walk_vector(w, (size_t)n * s->to_rows);
    const struct ek_tensor *t;

    if (!w->dry && s->to_rows > s->rows)
        EK_TRY(w->s->dev->ops->zero(w->s->dev, vec, (size_t)n * s->to_rows * sizeof(*vec)));
    for (uint32_t i = 0; i < n; i++) {
        EK_TRY(need(mod, names[i], ".bias", s->rows, 1, &t));
        EK_TRY(walk_load(w, t, NULL, 0, vec ? vec + (size_t)i * s->to_rows : NULL));
    }
    *out = vec;
    return EK_OK;
}

/* n matrices over one input, each with its bias where there is one: one matrix when the types
 * agree. */
static enum ek_status add_linear(struct walk *w, const struct ek_module *mod,
                                 const char *const *names, uint32_t n, const struct shape *s,
                                 struct stage_linear *out)
{
    const struct ek_tensor *t[STAGE_MAX_PARTS];
    bool one = true;
    float *vec = NULL;

    for (uint32_t i = 0; i < n; i++) {
        EK_TRY(need(mod, names[i], ".weight", s->rows, s->cols, &t[i]));
        one = one && t[i]->dtype == t[0]->dtype;
    }
    out->n = one ? 1 : n;
    out->rows = n * s->to_rows;
    out->has_bias = find(mod, names[0], ".bias") != NULL;
    if (out->has_bias)
        EK_TRY(add_biases(w, mod, names, n, s, &vec));
    for (uint32_t i = 0; i < n; i++) {
        if (i < out->n)
            EK_TRY(walk_mat(w, t[i]->dtype, one ? n * s->to_rows : s->to_rows, s->to_cols,
                            &out->mats[i]));
        EK_TRY(add_part(w, t[i], s, one ? i : 0, &out->mats[one ? 0 : i]));
        if (vec != NULL && i < out->n)
            out->biases[i] = vec + (size_t)i * s->to_rows;
    }
    return EK_OK;
}

static enum ek_status add_one(struct walk *w, const struct ek_module *mod, const char *name,
                              uint32_t rows, uint32_t cols, struct stage_linear *out)
{
    const struct shape s = {rows, cols, rows, cols};

    return add_linear(w, mod, &name, 1, &s, out);
}

static enum ek_status add_norm(struct walk *w, const struct ek_module *mod, const char *name,
                               uint32_t n, float **weight, float **bias)
{
    EK_TRY(add_vector(w, mod, name, ".weight", n, weight));
    return vision_is_qwen(&w->s->m->config) ? EK_OK : add_vector(w, mod, name, ".bias", n, bias);
}

static enum ek_status add_feed_forward(struct walk *w, const struct ek_module *mod, uint32_t block,
                                       struct vision_block *b)
{
    const struct ek_config *c = &w->s->m->config;
    bool qwen = vision_is_qwen(c);
    char first[NAME_LEN], second[NAME_LEN], third[NAME_LEN];
    const char *const names[] = {first, second}, *const down = third;
    uint32_t ff = c->vision_intermediate, inner = vision_inner(c), width = c->vision_hidden;
    const struct shape up = {ff, width, inner, width}, back = {width, ff, width, inner};

    snprintf(first, sizeof(first), "blocks.%u.mlp.%s", block, qwen ? "gate_proj" : "fc1");
    snprintf(second, sizeof(second), "blocks.%u.mlp.up_proj", block);
    snprintf(third, sizeof(third), "blocks.%u.mlp.%s", block, qwen ? "down_proj" : "fc2");
    EK_TRY(add_linear(w, mod, names, qwen ? 2 : 1, &up, &b->up));
    return add_linear(w, mod, &down, 1, &back, &b->down);
}

static enum ek_status add_block(struct walk *w, const struct ek_module *mod, uint32_t block,
                                struct vision_block *b)
{
    const struct ek_config *c = &w->s->m->config;
    uint32_t width = c->vision_hidden;
    char name[NAME_LEN];

    if (block == w->s->vision->first_block && vision_is_qwen(c))
        w->s->vision->rope.inv_freq = walk_vector(w, width / c->vision_heads / 2);
    snprintf(name, sizeof(name), "blocks.%u.norm1", block);
    EK_TRY(add_norm(w, mod, name, width, &b->norm1, &b->bias1));
    snprintf(name, sizeof(name), "blocks.%u.attn.qkv", block);
    EK_TRY(add_one(w, mod, name, 3 * width, width, &b->qkv));
    snprintf(name, sizeof(name), "blocks.%u.attn.proj", block);
    EK_TRY(add_one(w, mod, name, width, width, &b->o));
    snprintf(name, sizeof(name), "blocks.%u.norm2", block);
    EK_TRY(add_norm(w, mod, name, width, &b->norm2, &b->bias2));
    return add_feed_forward(w, mod, block, b);
}

static enum ek_status add_patches(struct walk *w, const struct ek_module *mod)
{
    const struct ek_config *c = &w->s->m->config;
    struct stage_vision *v = w->s->vision;
    const struct ek_tensor *t;

    EK_TRY(add_one(w, mod, "patch_embed.proj", c->vision_hidden, vision_row_size(c), &v->patch));
    if (vision_is_qwen(c))
        return EK_OK;
    if ((t = find(mod, "pos_embed", "")) == NULL || t->shape[t->n_dims - 1] != c->vision_hidden ||
        t->n_dims < 2 || t->shape[t->n_dims - 2] != (uint64_t)vision_grid(c) * vision_grid(c))
        return ek_error(EK_EFORMAT, "%s: no pos_embed of %u x %u places of %u", mod->name,
                        vision_grid(c), vision_grid(c), c->vision_hidden);
    EK_TRY(walk_mat(w, t->dtype, vision_grid(c) * vision_grid(c), c->vision_hidden, &v->pos));
    return walk_load(w, t, &v->pos, 0, NULL);
}

static enum ek_status add_merger(struct walk *w, const struct ek_module *mod)
{
    const struct ek_config *c = &w->s->m->config;
    struct stage_vision *v = w->s->vision;
    uint32_t merged = c->vision_hidden * c->vision_merge * c->vision_merge;

    if (!vision_is_qwen(c))
        return add_norm(w, mod, "norm", c->vision_hidden, &v->norm, &v->norm_bias);
    EK_TRY(add_norm(w, mod, "merger.ln_q", c->vision_hidden, &v->norm, NULL));
    EK_TRY(add_one(w, mod, "merger.mlp.0", merged, merged, &v->merge[0]));
    return add_one(w, mod, "merger.mlp.2", c->hidden, merged, &v->merge[1]);
}

static enum ek_status add_tower(struct walk *w, const struct ek_module *mod)
{
    EK_TRY(add_patches(w, mod));
    for (uint32_t i = 0; i < w->s->m->config.vision_layers; i++)
        EK_TRY(add_block(w, mod, i, &w->s->vision->blocks[i]));
    return add_merger(w, mod);
}

/* The rows of a cell lie behind one another here, in the checkpoint value by value. */
static enum ek_status add_projector(struct walk *w, const struct ek_module *mod)
{
    const struct ek_config *c = &w->s->m->config;
    struct stage_vision *v = w->s->vision;
    uint32_t cell = c->vision_merge * c->vision_merge;

    EK_TRY(add_one(w, mod, "layers.0", c->hidden, c->vision_hidden * cell, &v->merge[0]));
    for (size_t i = 0; i < w->n_loads; i++)
        if (w->loads[i].mat == &v->merge[0].mats[0])
            w->loads[i].interleaved = cell;
    return add_one(w, mod, "layers.2", c->hidden, c->hidden, &v->merge[1]);
}

enum ek_status vision_add_weights(struct walk *w, const struct ek_module *mod)
{
    struct stage_vision *v = w->s->vision;
    uint32_t hidden = w->s->m->config.hidden;
    size_t which = strcmp(mod->name, "view_seperator") == 0 ? VISION_SEPARATOR : VISION_NEWLINE;
    float *vec;

    switch (mod->kind) {
    case EK_MODULE_VISION:
        return add_tower(w, mod);
    case EK_MODULE_PATCHES:
        return add_patches(w, mod);
    case EK_MODULE_BLOCK:
        return add_block(w, mod, (uint32_t)mod->layer, &v->blocks[mod->layer]);
    case EK_MODULE_MERGER:
        return add_merger(w, mod);
    case EK_MODULE_PROJECTOR:
        return add_projector(w, mod);
    default:
        break;
    }
    if (mod->n_tensors != 1 || mod->tensors[0].shape[0] != hidden)
        return ek_error(EK_EFORMAT, "%s: not one vector of %u", mod->name, hidden);
    vec = walk_vector(w, hidden);
    if (!w->dry)
        v->vectors[which] = vec;
    return walk_load(w, &mod->tensors[0], NULL, 0, vec);
}

enum ek_status vision_part_columns(const struct load *l, char *piece, size_t bytes)
{
    size_t size = ek_dtype_block_bytes(l->mat->dtype), k = l->interleaved;
    size_t row = l->mat->cols * size, n = l->mat->cols / k;
    char *copy;

    if (ek_dtype_block(l->mat->dtype) != 1)
        return ek_error(EK_EUNSUPPORTED, "%s: columns of %s cannot be put in order", l->t->name,
                        ek_dtype_name(l->mat->dtype));
    if ((copy = ek_calloc(1, row)) == NULL)
        return EK_ENOMEM;
    for (char *at = piece; at < piece + bytes; at += row) {
        memcpy(copy, at, row);
        for (size_t c = 0; c < n; c++)
            for (size_t i = 0; i < k; i++)
                memcpy(at + (i * n + c) * size, copy + (c * k + i) * size, size);
    }
    free(copy);
    return EK_OK;
}

/* Angles of the h position, then of the w position: 10000^(-2 i / (dim / 2)) for both. */
enum ek_status vision_load_rope(struct ek_stage *s)
{
    const struct ek_config *c = &s->m->config;
    struct stage_vision *v = s->vision;
    uint32_t quarter;
    float *freq;
    enum ek_status st;

    if (v == NULL || v->n_blocks == 0 || !vision_is_qwen(c))
        return EK_OK;
    quarter = c->vision_hidden / c->vision_heads / 4;
    if ((freq = ek_calloc(2 * (size_t)quarter, sizeof(*freq))) == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < quarter; i++)
        freq[i] = freq[quarter + i] = 1.0f / powf(10000.0f, (float)(2 * i) / (float)(2 * quarter));
    v->rope.dim = 4 * quarter;
    v->rope.sections[0] = v->rope.sections[1] = quarter;
    v->rope.amplitude = 1;
    st = s->dev->ops->upload(s->dev, (void *)(uintptr_t)v->rope.inv_freq, freq,
                             2 * (size_t)quarter * sizeof(*freq)); /* taken at once */
    free(freq);
    return st;
}

static enum ek_status on_mat(struct ek_stage *s, struct ek_mat *m,
                             enum ek_status (*fn)(struct ek_device *dev, struct ek_mat *m))
{
    if (m->data == NULL)
        return EK_OK;
    if (fn != NULL)
        return fn(s->dev, m);
    s->dev->ops->mat_free(s->dev, m);
    return EK_OK;
}

static enum ek_status on_linear(struct ek_stage *s, struct stage_linear *l,
                                enum ek_status (*fn)(struct ek_device *dev, struct ek_mat *m))
{
    for (uint32_t i = 0; i < STAGE_MAX_PARTS; i++)
        EK_TRY(on_mat(s, &l->mats[i], fn));
    return EK_OK;
}

enum ek_status vision_each_mat(struct ek_stage *s,
                               enum ek_status (*fn)(struct ek_device *dev, struct ek_mat *m))
{
    struct stage_vision *v = s->vision;

    if (v == NULL)
        return EK_OK;
    EK_TRY(on_mat(s, &v->pos, fn));
    EK_TRY(on_linear(s, &v->patch, fn));
    EK_TRY(on_linear(s, &v->merge[0], fn));
    EK_TRY(on_linear(s, &v->merge[1], fn));
    for (uint32_t i = 0; v->blocks && i < s->m->config.vision_layers; i++) {
        EK_TRY(on_linear(s, &v->blocks[i].qkv, fn));
        EK_TRY(on_linear(s, &v->blocks[i].o, fn));
        EK_TRY(on_linear(s, &v->blocks[i].up, fn));
        EK_TRY(on_linear(s, &v->blocks[i].down, fn));
    }
    return EK_OK;
}
