/* SPDX-License-Identifier: Apache-2.0
 *
 * Internal to model/: the pieces of decoding (image_decode.c, image_jpeg.c, image_png.c,
 * image_exif.c) and of the processors (image_measure.c, image_prepare.c).
 */
#ifndef EK_MODEL_IMAGE_INTERNAL_H
#define EK_MODEL_IMAGE_INTERNAL_H

#include "model/image.h"

/* A file in memory, under the name that messages call it. */
struct ek_image_source {
    const uint8_t *data;
    size_t n;
    const char *where;
};
/* Refuses sizes beyond the limits, both values named. */
enum ek_status ek_image_check_size(const char *where, uint64_t width, uint64_t height);
/* As stored. *orientation: EXIF's 1..8, 1 where the file has none. */
enum ek_status ek_jpeg_decode(const struct ek_image_source *s, struct ek_image *out,
                              int *orientation);
enum ek_status ek_png_decode(const struct ek_image_source *s, bool white, struct ek_image *out,
                             int *orientation);
/* Orientation in n bytes of TIFF structure; 1 where it is absent or not readable. */
int ek_exif_orientation(const uint8_t *tiff, size_t n);
/* Turns and mirrors so that the picture stands upright. */
enum ek_status ek_image_turn(struct ek_image *image, int orientation);

/* round(a * b / 255) as Pillow computes it. */
static inline uint8_t ek_mul_div_255(unsigned a, unsigned b)
{
    unsigned t = a * b + 128;

    return (uint8_t)(((t >> 8) + t) >> 8);
}

/* VL2: the official processor's candidate for a picture; index into rules->candidates. */
uint32_t ek_vl2_candidate(const struct ek_vl_rules *rules, uint32_t width, uint32_t height);
/* VL2: the padded u8 pictures that tiles are cut from; local stays zeroed where v->t is 1. */
enum ek_status ek_vl2_views(const struct ek_vl_rules *rules, const struct ek_image *image,
                            const struct ek_visual *v, struct ek_image *global,
                            struct ek_image *local);
/* Qwen: width and height after smart_resize; false where the ratio is over 200. */
bool ek_qwen_size(const struct ek_vl_rules *rules, uint32_t width, uint32_t height,
                  uint32_t *to_width, uint32_t *to_height);
/* Rows that the projector makes of a tile, a side. */
uint32_t ek_vl2_side(const struct ek_vl_rules *rules);

/* What the processor's files say; json NULL: the file is absent. */
struct ek_vl_files {
    const json_t *config, *processor;
    const char *config_path, *processor_path;
};
/* All of the rules but VL2's placeholder token, which the tokenizer knows. */
struct ek_config;
enum ek_status ek_vl_rules_parse(const struct ek_config *c, const struct ek_vl_files *files,
                                 struct ek_vl_rules *out);

#endif
