/* SPDX-License-Identifier: Apache-2.0
 *
 * What becomes of a picture's size: VL2's candidate and tiles, Qwen's smart_resize; the rows and
 * tokens that follow.
 */
#include "model/image_internal.h"
#include "model/internal.h"

#include <math.h>

#define QWEN_RATIO_MAX   200
#define ROWS_MAX         ((uint64_t)1 << 19) /* patches of one picture or video */
#define VL2_TILED_IMAGES 2                   /* prompts of more pictures take one tile of each */

uint32_t ek_vl2_candidate(const struct ek_vl_rules *rules, uint32_t width, uint32_t height)
{
    uint64_t best = 0, best_waste = 0;
    uint32_t chosen = 0;

    for (uint32_t i = 0; i < rules->n_candidates; i++) {
        double w = rules->candidates[i][0], h = rules->candidates[i][1];
        double x = w / width, y = h / height, s = x < y ? x : y;
        uint64_t inside = (uint64_t)(width * s) * (uint64_t)(height * s);
        uint64_t whole = (uint64_t)width * height;
        uint64_t kept = inside < whole ? inside : whole;
        uint64_t waste = (uint64_t)w * (uint64_t)h - kept;
        if (i == 0 || kept > best || (kept == best && waste < best_waste)) {
            best = kept;
            best_waste = waste;
            chosen = i;
        }
    }
    return chosen;
}

uint32_t ek_vl2_side(const struct ek_vl_rules *rules)
{
    return (rules->tile / rules->patch + rules->merge - 1) / rules->merge;
}

/* nearbyint rounds halves to even, as Python does. */
bool ek_qwen_size(const struct ek_vl_rules *rules, uint32_t width, uint32_t height,
                  uint32_t *to_width, uint32_t *to_height)
{
    double f = rules->patch * rules->merge, w = width, h = height;
    double low = (double)rules->min_pixels, high = (double)rules->max_pixels;
    double wb = nearbyint(w / f) * f, hb = nearbyint(h / f) * f, beta;

    if ((w > h ? w / h : h / w) > QWEN_RATIO_MAX)
        return false;
    if (hb * wb > high) {
        beta = sqrt(h * w / high);
        hb = fmax(f, floor(h / beta / f) * f);
        wb = fmax(f, floor(w / beta / f) * f);
    } else if (hb * wb < low) {
        beta = sqrt(low / (h * w));
        hb = ceil(h * beta / f) * f;
        wb = ceil(w * beta / f) * f;
    }
    *to_width = (uint32_t)wb;
    *to_height = (uint32_t)hb;
    return true;
}

static void measure_vl2(const struct ek_vl_rules *r, size_t n_items, struct ek_visual *v)
{
    uint32_t i = n_items <= VL2_TILED_IMAGES ? ek_vl2_candidate(r, v->width, v->height) : 0;
    uint32_t grid = r->tile / r->patch, side = ek_vl2_side(r);

    v->to_width = r->candidates[i][0];
    v->to_height = r->candidates[i][1];
    v->w = v->to_width / r->tile;
    v->h = v->to_height / r->tile;
    v->t = v->w * v->h == 1 && !r->repeat_tiles ? 1 : 1 + v->w * v->h;
    v->row_size = 3 * r->patch * r->patch;
    v->n_rows = (uint64_t)v->t * grid * grid;
    v->n_features = v->t * side * side;
    v->n_tokens = side * (side + 1) + 1 + side * v->h * (side * v->w + 1);
}

static enum ek_status measure_qwen(const struct ek_vl_rules *r, size_t n_frames,
                                   struct ek_visual *v)
{
    if (!ek_qwen_size(r, v->width, v->height, &v->to_width, &v->to_height))
        return ek_error(EK_EUNSUPPORTED,
                        "a picture of %u x %u pixels: one side is more than %d times the other",
                        v->width, v->height, QWEN_RATIO_MAX);
    EK_TRY(ek_image_check_size("resizing", v->to_width, v->to_height));
    v->t = (uint32_t)((n_frames + r->temporal - 1) / r->temporal);
    v->w = v->to_width / r->patch;
    v->h = v->to_height / r->patch;
    v->row_size = 3 * r->temporal * r->patch * r->patch;
    v->n_rows = (uint64_t)v->t * v->h * v->w;
    if (v->n_rows > ROWS_MAX)
        return ek_error(EK_EUNSUPPORTED,
                        "%zu frames of %u x %u pixels are %llu patches, at most %llu", n_frames,
                        v->to_width, v->to_height, (unsigned long long)v->n_rows,
                        (unsigned long long)ROWS_MAX);
    v->n_features = v->n_tokens = (uint32_t)(v->n_rows / (r->merge * r->merge));
    return EK_OK;
}

enum ek_status ek_vl_measure(const struct ek_vl_rules *rules, uint32_t width, uint32_t height,
                             size_t n_frames, bool video, size_t n_items, struct ek_visual *out)
{
    struct ek_visual v = {.video = video, .width = width, .height = height};

    EK_TRY(ek_image_check_size("picture", width, height));
    if (n_frames == 0 || n_frames > (video ? EK_VL_FRAMES_MAX : 1))
        return ek_error(EK_EUSAGE, "%zu frames, must be 1 to %d", n_frames,
                        video ? EK_VL_FRAMES_MAX : 1);
    if (video && rules->kind != EK_VISION_QWEN25)
        return ek_error(EK_EUNSUPPORTED, "the model takes pictures, no videos");
    if (rules->kind == EK_VISION_QWEN25)
        EK_TRY(measure_qwen(rules, n_frames, &v));
    else
        measure_vl2(rules, n_items, &v);
    *out = v;
    return EK_OK;
}
