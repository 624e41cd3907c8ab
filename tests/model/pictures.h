/* SPDX-License-Identifier: Apache-2.0
 *
 * What the suites of pictures share: the pictures that tests/reference/make_images.py describes by
 * a formula, CRC-32, files made with the libraries' writers.
 */
#ifndef EK_TESTS_MODEL_PICTURES_H
#define EK_TESTS_MODEL_PICTURES_H

#include "model/model.h"
#include "tests/model/files.h"

uint32_t scrambled(uint32_t v);
/* Byte i is (3x + 5y + 40c + scrambled(i + 1000003 seed) % 64) % 256. */
struct ek_image formula(uint32_t width, uint32_t height, uint32_t seed);
/* Size i of the 10 000. */
void random_size(uint32_t i, uint32_t *width, uint32_t *height);
uint32_t crc32_of(uint32_t crc, const void *data, size_t n); /* crc: of what came before, or 0 */
uint32_t crc32_picture(const struct ek_image *image);
bool same_picture(const struct ek_image *a, const struct ek_image *b);
/* A U8 [H, W, 3] entry as a picture. */
struct ek_image picture_entry(const struct ek_safetensors *s, const char *name);

/* A model, its processor and a reference. */
struct subject {
    struct ek_model *model;
    struct ek_vl_rules rules;
    struct ek_safetensors *reference;
};
struct subject open_subject(const char *name, const char *reference);
void close_subject(struct subject *s);
/* Published rules of a family without a checkpoint. */
struct ek_vl_rules published(enum ek_vision_kind kind);
/* What the reference's pictures become; room for 8 of each. */
size_t read_items(const struct subject *s, struct ek_image *images, struct ek_vl_item *items);
/* The frames of the video reference, which are the patches' own size. */
struct ek_vl_item read_video(const struct subject *s, struct ek_image frames[3]);

/* A PNG of the picture's samples; type: libpng's colour type (channels of one byte, two where bits
 * is 16), interlaced or not. */
struct bytes png_file(const uint8_t *samples, uint32_t width, uint32_t height, int bits, int type,
                      bool interlaced);
/* A JPEG with n components of noise in scans of the given number (0: sequential). */
struct bytes jpeg_file(uint32_t width, uint32_t height, int components, int scans);
/* One PNG chunk with its CRC. */
void put_chunk(struct bytes *b, const char *name, const void *data, uint32_t n);

#endif
