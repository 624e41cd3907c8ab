/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures to the towers' patches: resized, cut, normalised.
 */
#include "model/image_internal.h"
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

/* Normalised value of every byte of every colour: u8 / 255, then (x - mean) / std, in fp32. */
struct levels {
    float of[3][256];
};

static void levels_fill(const struct ek_vl_rules *rules, struct levels *l)
{
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++)
            l->of[c][v] = ((float)v / 255.0f - rules->mean[c]) / rules->std[c];
}

/* The patch whose first pixel is (x, y), every colour's plane at out + colour * stride. */
static void cut_patch(const struct levels *l, const struct ek_image *image, uint32_t x, uint32_t y,
                      uint32_t patch, size_t stride, float *out)
{
    for (uint32_t row = 0; row < patch; row++) {
        const uint8_t *p = image->rgb + ((size_t)(y + row) * image->width + x) * 3;
        float *to = out + (size_t)row * patch;
        for (uint32_t i = 0; i < patch; i++, p += 3)
            for (int c = 0; c < 3; c++)
                to[i + (size_t)c * stride] = l->of[c][p[c]];
    }
}

/* ---- VL2 ---------------------------------------------------------------------------------------
 */

enum ek_status ek_vl2_views(const struct ek_vl_rules *rules, const struct ek_image *image,
                            const struct ek_visual *v, struct ek_image *global,
                            struct ek_image *local)
{
    enum ek_status st;

    *local = (struct ek_image){0};
    EK_TRY(ek_image_pad(image, rules->tile, rules->tile, rules->fill, global));
    if (v->t == 1)
        return EK_OK;
    st = ek_image_pad(image, v->to_width, v->to_height, rules->fill, local);
    if (st != EK_OK)
        ek_image_free(global);
    return st;
}

/* The patches of the tile whose first pixel is (x, y); pixels beyond the last whole patch are never
 * seen. Returns where the next tile's go. */
static float *cut_tile(const struct ek_vl_rules *r, const struct levels *l,
                       const struct ek_image *image, uint32_t x, uint32_t y, float *out)
{
    uint32_t grid = r->tile / r->patch, plane = r->patch * r->patch;

    for (uint32_t i = 0; i < grid * grid; i++, out += (size_t)3 * plane)
        cut_patch(l, image, x + i % grid * r->patch, y + i / grid * r->patch, r->patch, plane, out);
    return out;
}

static enum ek_status fill_vl2(const struct ek_vl_rules *r, const struct ek_vl_item *item,
                               const struct levels *l, struct ek_visual *v)
{
    struct ek_image global, local;
    float *out;

    EK_TRY(ek_vl2_views(r, item->frames, v, &global, &local));
    out = cut_tile(r, l, &global, 0, 0, v->pixels);
    for (uint32_t i = 0; i + 1 < v->t; i++)
        out = cut_tile(r, l, &local, i % v->w * r->tile, i / v->w * r->tile, out);
    ek_image_free(&global);
    ek_image_free(&local);
    return EK_OK;
}

/* ---- Qwen --------------------------------------------------------------------------------------
 */

/* Patch (px, py)'s row within a slice: blocks of merge x merge patches follow one another. */
static uint64_t row_of(const struct ek_vl_rules *r, const struct ek_visual *v, uint32_t px,
                       uint32_t py)
{
    uint32_t m = r->merge;
    uint64_t block = (uint64_t)(py / m) * (v->w / m) + px / m;

    return block * m * m + (uint64_t)(py % m) * m + px % m;
}

/* One resized frame into all patches of a slice, at one of their places. */
static void fill_frame(const struct ek_vl_rules *r, const struct levels *l,
                       const struct ek_image *frame, size_t slice, uint32_t place,
                       struct ek_visual *v)
{
    size_t plane = (size_t)r->patch * r->patch;
    float *base = v->pixels + slice * v->h * v->w * v->row_size + place * plane;

    for (uint32_t y = 0; y < v->h; y++)
        for (uint32_t x = 0; x < v->w; x++)
            cut_patch(l, frame, x * r->patch, y * r->patch, r->patch, plane * r->temporal,
                      base + row_of(r, v, x, y) * v->row_size);
}

/* The frame of the place before is shown once more. */
static void repeat_frame(const struct ek_vl_rules *r, size_t slice, uint32_t place,
                         struct ek_visual *v)
{
    size_t plane = (size_t)r->patch * r->patch, rows = (size_t)v->h * v->w;
    float *at = v->pixels + slice * rows * v->row_size + place * plane;

    for (size_t i = 0; i < 3 * rows; i++, at += plane * r->temporal) /* of all colours */
        memcpy(at, at - plane, plane * sizeof(*at));
}

/* The last frame fills up the last slice; a picture is one frame. */
static enum ek_status fill_qwen(const struct ek_vl_rules *r, const struct ek_vl_item *item,
                                const struct levels *l, struct ek_visual *v)
{
    struct ek_image small;

    for (size_t i = 0; i < item->n_frames; i++) {
        size_t slots = (size_t)v->t * r->temporal, last = i + 1 == item->n_frames ? slots : i + 1;
        EK_TRY(ek_image_resize(&item->frames[i], v->to_width, v->to_height, &small));
        for (size_t slot = i; slot < last; slot++) {
            uint32_t place = (uint32_t)(slot % r->temporal);
            if (slot > i && place > 0)
                repeat_frame(r, slot / r->temporal, place, v);
            else
                fill_frame(r, l, &small, slot / r->temporal, place, v);
        }
        ek_image_free(&small);
    }
    return EK_OK;
}

/* ---- Both --------------------------------------------------------------------------------------
 */

static enum ek_status check_item(const struct ek_vl_item *item)
{
    for (size_t i = 1; i < item->n_frames; i++)
        if (item->frames[i].width != item->frames[0].width ||
            item->frames[i].height != item->frames[0].height)
            return ek_error(EK_EUSAGE, "frame %zu has %u x %u pixels, the first has %u x %u", i,
                            item->frames[i].width, item->frames[i].height, item->frames[0].width,
                            item->frames[0].height);
    if (item->video && !(item->seconds_per_frame > 0 && item->seconds_per_frame <= 86400))
        return ek_error(EK_EUSAGE, "%g seconds a frame, must be over 0 and at most 86400",
                        item->seconds_per_frame);
    return EK_OK;
}

enum ek_status ek_vl_prepare(const struct ek_vl_rules *rules, const struct ek_vl_item *item,
                             size_t n_items, struct ek_visual *out)
{
    struct levels l;
    struct ek_visual v;
    enum ek_status st;

    if (item->n_frames == 0)
        return ek_error(EK_EUSAGE, "a picture without frames");
    EK_TRY(ek_vl_measure(rules, item->frames[0].width, item->frames[0].height, item->n_frames,
                         item->video, n_items, &v));
    EK_TRY(check_item(item));
    if (item->video)
        v.seconds_per_slice = item->seconds_per_frame * rules->temporal;
    if ((v.pixels = ek_calloc((size_t)v.n_rows * v.row_size, sizeof(*v.pixels))) == NULL)
        return EK_ENOMEM;
    levels_fill(rules, &l);
    st = rules->kind == EK_VISION_QWEN25 ? fill_qwen(rules, item, &l, &v)
                                         : fill_vl2(rules, item, &l, &v);
    if (st == EK_OK)
        *out = v;
    else
        ek_visual_free(&v);
    return st;
}

void ek_visual_free(struct ek_visual *v)
{
    free(v->pixels);
    *v = (struct ek_visual){0};
}
