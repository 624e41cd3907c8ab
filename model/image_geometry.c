/* SPDX-License-Identifier: Apache-2.0
 *
 * Qwen's tower: where a row lies in the picture, and the windows within which most blocks attend.
 */
#include "model/image_internal.h"
#include "model/internal.h"

#include <stdlib.h>

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Rows come block by block: the same order as image_prepare.c's. */
static void fill_positions(const struct ek_visual *v, uint32_t merge, struct ek_vl_geometry *g)
{
    uint32_t in_block = merge * merge, across = v->w / merge;

    for (uint32_t row = 0; row < g->n_rows; row++) {
        uint32_t i = row % g->rows_per_slice, block = i / in_block, inside = i % in_block;
        g->positions[row] = (int32_t)(block / across * merge + inside / merge);
        g->positions[g->n_rows + row] = (int32_t)(block % across * merge + inside % merge);
    }
}

/* One window's cells, ragged at the right and the bottom. */
static uint32_t put_window(uint32_t x, uint32_t y, uint32_t side, uint32_t across, uint32_t down,
                           uint32_t first, uint32_t *order)
{
    uint32_t right = min_u32(x + side, across), bottom = min_u32(y + side, down), n = 0;

    for (uint32_t cy = y; cy < bottom; cy++)
        for (uint32_t cx = x; cx < right; cx++)
            order[n++] = first + cy * across + cx;
    return n;
}

static void fill_windows(const struct ek_visual *v, uint32_t merge, uint32_t side,
                         struct ek_vl_geometry *g)
{
    uint32_t across = v->w / merge, down = v->h / merge, n = 0;

    for (uint32_t t = 0; t < v->t; t++)
        for (uint32_t y = 0; y < down; y += side)
            for (uint32_t x = 0; x < across; x += side) {
                n += put_window(x, y, side, across, down, t * across * down, g->order + n);
                g->windows[++g->n_windows] = n * merge * merge;
            }
}

enum ek_status ek_vl_geometry(const struct ek_vl_rules *rules, const struct ek_visual *v,
                              struct ek_vl_geometry *out)
{
    uint32_t merge = rules->merge, side = rules->window;
    struct ek_vl_geometry g = {.n_rows = (uint32_t)v->n_rows, .rows_per_slice = v->h * v->w};
    size_t windows;

    if (rules->kind != EK_VISION_QWEN25)
        return ek_error(EK_EUNSUPPORTED, "the tower has no windows");
    g.n_cells = g.n_rows / (merge * merge);
    windows =
        (size_t)v->t * ((v->w / merge + side - 1) / side) * ((v->h / merge + side - 1) / side);
    g.positions = ek_calloc((size_t)g.n_rows * 2, sizeof(*g.positions));
    g.order = ek_calloc(g.n_cells, sizeof(*g.order));
    g.windows = ek_calloc(windows + 1, sizeof(*g.windows));
    if (g.positions == NULL || g.order == NULL || g.windows == NULL) {
        ek_vl_geometry_free(&g);
        return EK_ENOMEM;
    }
    fill_positions(v, merge, &g);
    fill_windows(v, merge, side, &g);
    *out = g;
    return EK_OK;
}

void ek_vl_geometry_free(struct ek_vl_geometry *g)
{
    free(g->positions);
    free(g->order);
    free(g->windows);
    *g = (struct ek_vl_geometry){0};
}
