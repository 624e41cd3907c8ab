/* SPDX-License-Identifier: Apache-2.0
 *
 * Visual modules of a stage: what they need, and pictures packed for the tower on the host.
 */
#include "runtime/vision.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ROWS  65536u /* of a run, unless asked for: Qwen2.5-VL's published max_pixels */
#define MAX_TILES 10u

enum ek_status vision_scan(struct ek_stage *s, const struct ek_module *mod)
{
    struct stage_vision *v = s->vision;
    bool whole = mod->kind == EK_MODULE_VISION;

    if (v == NULL && (v = s->vision = ek_calloc(1, sizeof(*v))) == NULL)
        return EK_ENOMEM;
    v->patches |= whole || mod->kind == EK_MODULE_PATCHES;
    v->merger |= whole || mod->kind == EK_MODULE_MERGER;
    v->projector |= mod->kind == EK_MODULE_PROJECTOR;
    if (whole)
        v->n_blocks = s->m->config.vision_layers;
    if (mod->kind == EK_MODULE_BLOCK && v->n_blocks++ == 0)
        v->first_block = (uint32_t)mod->layer;
    if (v->n_blocks > 0 && v->blocks == NULL &&
        (v->blocks = ek_calloc(s->m->config.vision_layers, sizeof(*v->blocks))) == NULL)
        return EK_ENOMEM;
    if (mod->kind == EK_MODULE_BLOCK && v->first_block + v->n_blocks != (uint32_t)mod->layer + 1)
        return ek_error(EK_EUSAGE, "stage: %s does not follow block %u", mod->name,
                        v->first_block + v->n_blocks - 2);
    return EK_OK;
}

void vision_free(struct ek_stage *s)
{
    if (s->vision != NULL) {
        free(s->vision->blocks);
        vision_look_free(s->vision->look);
    }
    free(s->vision);
    s->vision = NULL;
}

/* ---- memory */
static enum ek_status check_device(const struct ek_stage *s)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct ek_config *c = &s->m->config;

    if (ops->attention_dense == NULL || ops->rope_rows == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: %s has no operations of vision towers",
                        c->architecture, s->dev->spec.name);
    if (c->vision_heads == 0 || c->vision_hidden % c->vision_heads || c->vision_merge == 0 ||
        c->vision_patch == 0 || (vision_is_qwen(c) && c->vision_hidden / c->vision_heads % 4) ||
        (!vision_is_qwen(c) && vision_grid(c) == 0))
        return ek_error(EK_EUNSUPPORTED,
                        "%s: vision tower of width %u, %u heads, patch %u, merge "
                        "%u, image %u",
                        c->architecture, c->vision_hidden, c->vision_heads, c->vision_patch,
                        c->vision_merge, c->vision_image);
    return EK_OK;
}

/* Rows that a prompt of max_context tokens could need at once, or as many as asked for. */
uint32_t vision_max_rows(const struct ek_config *c, const struct ek_stage_options *o)
{
    uint64_t cell = (uint64_t)c->vision_merge * c->vision_merge, rows;
    uint64_t tile = (uint64_t)vision_grid(c) * vision_grid(c), tiles;

    if (vision_is_qwen(c)) {
        rows = o->max_patches ? o->max_patches : o->max_context * cell;
        rows = !o->max_patches && rows > MAX_ROWS ? MAX_ROWS : rows;
        return (uint32_t)((rows + cell - 1) / cell * cell);
    }
    tiles = o->max_patches ? o->max_patches / tile
                           : o->max_context / ((uint64_t)vision_cells(c) * vision_cells(c));
    tiles = tiles < 1 ? 1 : tiles;
    return (uint32_t)((!o->max_patches && tiles > MAX_TILES ? MAX_TILES : tiles) * tile);
}

size_t ek_picture_message(const struct ek_model *m, const struct ek_stage_options *opt)
{
    return (size_t)vision_max_rows(&m->config, opt) * m->config.vision_hidden;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Parts that are there one after the other: pixels, attention, feed-forward, merged rows. */
static bool scratch_bytes(struct ek_stage *s, size_t features, size_t *out)
{
    const struct ek_config *c = &s->m->config;
    struct stage_vision *v = s->vision;
    size_t r = v->max_rows, a = stage_act_bytes(s), h = c->vision_hidden, skip, part[4] = {0};
    size_t ff = vision_inner(c), merged = h * c->vision_merge * c->vision_merge;
    bool qwen = vision_is_qwen(c), ok = true;

    if (v->patches)
        ok = stage_take(&part[0], r, vision_row_size(c), sizeof(float), &skip) &&
             (a == sizeof(float) || stage_take(&part[0], r, vision_row_size(c), a, &skip));
    if (v->n_blocks > 0)
        ok = ok && stage_take(&part[1], r, 3 * h, a, &skip) &&
             stage_take(&part[1], r, h, a, &skip) &&
             stage_take(&part[2], r, (qwen ? 2 : 1) * ff, a, &skip) &&
             (!qwen || stage_take(&part[2], r, ff, a, &skip));
    if (v->projector || (qwen && v->merger))
        ok = ok &&
             (qwen ? stage_take(&part[3], features, larger(merged, c->hidden), a, &skip)
                   : stage_take(&part[3], features, merged, a, &skip) &&
                         stage_take(&part[3], features, c->hidden, a, &skip)) &&
             (a == sizeof(float) ||
              stage_take(&part[3], features, c->hidden, sizeof(float), &v->at.features));
    *out = larger(larger(part[0], part[1]), larger(part[2], part[3]));
    return ok;
}

/* Most I32 of a pack: positions, order, slices, windows, features (Qwen) or rows of cells (VL2). */
static size_t most_ints(const struct ek_config *c, size_t rows)
{
    size_t cell = (size_t)c->vision_merge * c->vision_merge, tile, tiles;

    if (vision_is_qwen(c))
        return 3 * rows + 3 * (rows / cell + 1);
    tile = (size_t)vision_grid(c) * vision_grid(c);
    tiles = rows / tile;
    return rows + tiles + 1 + tiles * vision_cells(c) * vision_cells(c) * cell;
}

static bool lay_out(struct ek_stage *s)
{
    const struct ek_config *c = &s->m->config;
    struct stage_vision *v = s->vision;
    size_t r = v->max_rows, a = stage_act_bytes(s), h = c->vision_hidden, n = 0, features, scratch;
    size_t cells = (size_t)vision_cells(c) * vision_cells(c), rows_at, features_at;

    features = vision_is_qwen(c) ? r / c->vision_merge / c->vision_merge
                                 : r / vision_grid(c) / vision_grid(c) * cells;
    rows_at = features_at = v->at.x = 0;
    if (!scratch_bytes(s, features, &scratch) || !stage_take(&rows_at, r, h, a, &v->at.x) ||
        !stage_take(&features_at, features, c->hidden, a, &v->at.x))
        return false;
    n = larger(rows_at, features_at);
    if (!stage_take(&n, r, h, a, &v->at.xn) || !stage_take(&n, scratch, 1, 1, &v->at.scratch) ||
        !stage_take(&n, most_ints(c, r), sizeof(int32_t), 1, &v->at.ints))
        return false;
    v->at.features += v->at.scratch;
    v->at.bytes = n;
    return true;
}

enum ek_status vision_lay_out(struct ek_stage *s)
{
    EK_TRY(check_device(s));
    s->vision->max_rows = vision_max_rows(&s->m->config, &s->opt);
    if (!vision_has_tower(s->vision) && !s->vision->projector) /* vectors alone */
        return EK_OK;
    return lay_out(s) ? EK_OK
                      : ek_error(EK_EUSAGE, "vision: activations of %u patches overflow",
                                 s->vision->max_rows);
}

/* ---- packing */
uint32_t vision_n_slices(const struct ek_visual *v)
{
    return v->t;
}

uint32_t vision_slice_rows(const struct ek_visual *v)
{
    return v->t ? (uint32_t)(v->n_rows / v->t) : 0;
}

void vision_pack_free(struct vision_pack *p)
{
    free(p->ints);
    *p = (struct vision_pack){0};
}

/* Windows lie in slices, slices in order: the slices' rows are consecutive in windowed order. */
static enum ek_status pack_qwen(struct vision_pack *p, const struct ek_vl_geometry *g,
                                uint32_t cell)
{
    uint32_t end = p->first_row + p->rows, w = 0;

    p->windows = p->slices + p->n_slices + 1;
    for (uint32_t i = 0; i < p->rows; i++) {
        uint32_t at = p->first_row + i, from = g->order[at / cell] * cell + at % cell;
        if (from < p->first_row || from >= end)
            return ek_error(EK_EUSAGE, "vision: row %u of a window is of another slice", at);
        p->ints[p->order + i] = (int32_t)(from - p->first_row);
        p->ints[i] = g->positions[from];
        p->ints[p->rows + i] = g->positions[g->n_rows + from];
    }
    while (g->windows[w] < p->first_row)
        w++;
    for (; w < g->n_windows && g->windows[w] < end; w++) {
        uint32_t n = g->windows[w + 1] - g->windows[w];
        p->ints[p->windows + p->n_windows++] = (int32_t)(g->windows[w] - p->first_row);
        p->max_window = n > p->max_window ? n : p->max_window;
    }
    p->ints[p->windows + p->n_windows] = (int32_t)p->rows;
    p->back = p->windows + p->n_windows + 1;
    for (uint32_t i = 0; i < p->features; i++)
        p->ints[p->back + (uint32_t)p->ints[p->order + i * cell] / cell] = (int32_t)i;
    p->n_ints = p->back + p->features;
    return EK_OK;
}

/* Cells of merge x merge patches of every tile, -1 where they reach over its edge. */
static void pack_vl2(const struct ek_config *c, struct vision_pack *p)
{
    uint32_t grid = vision_grid(c), cells = vision_cells(c), m = c->vision_merge;
    int32_t *to;

    for (uint32_t i = 0; i < p->rows; i++)
        p->ints[i] = (int32_t)(i % p->slice_rows);
    p->cells = p->slices + p->n_slices + 1;
    to = p->ints + p->cells;
    for (uint32_t tile = 0; tile < p->n_slices; tile++)
        for (uint32_t i = 0; i < cells * cells; i++)
            for (uint32_t k = 0; k < m * m; k++) {
                uint32_t y = i / cells * m + k / m, x = i % cells * m + k % m;
                *to++ = y < grid && x < grid ? (int32_t)(tile * p->slice_rows + y * grid + x) : -1;
            }
    p->n_ints = (size_t)(to - p->ints);
}

enum ek_status vision_pack(const struct ek_config *c, const struct ek_visual *v,
                           const struct ek_vl_geometry *g, uint32_t first, uint32_t n,
                           struct vision_pack *out)
{
    uint32_t cell = c->vision_merge * c->vision_merge;
    struct vision_pack p = {.row_size = v->row_size,
                            .windowed = g != NULL,
                            .slice_rows = vision_slice_rows(v),
                            .n_slices = n};
    enum ek_status st = EK_OK;

    p.first_row = first * p.slice_rows;
    p.rows = n * p.slice_rows;
    p.features = g ? p.rows / cell : n * vision_cells(c) * vision_cells(c);
    p.order = 2 * (size_t)p.rows;
    p.slices = (g ? 3 : 1) * (size_t)p.rows;
    if (v->pixels != NULL)
        p.pixels = v->pixels + (size_t)p.first_row * v->row_size;
    p.ints = ek_calloc(most_ints(c, p.rows), sizeof(*p.ints));
    if (p.ints == NULL) {
        st = EK_ENOMEM;
    } else {
        for (uint32_t i = 0; i <= n; i++)
            p.ints[p.slices + i] = (int32_t)(i * p.slice_rows);
        if (g != NULL)
            st = pack_qwen(&p, g, cell);
        else
            pack_vl2(c, &p);
    }
    if (st != EK_OK)
        vision_pack_free(&p);
    else
        *out = p;
    return st;
}
