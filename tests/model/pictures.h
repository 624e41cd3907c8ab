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

/* A PNG of the picture's samples; type: libpng's colour type (channels of one byte, two where bits
 * is 16), interlaced or not. */
struct bytes png_file(const uint8_t *samples, uint32_t width, uint32_t height, int bits, int type,
                      bool interlaced);
/* A JPEG with n components of noise in scans of the given number (0: sequential). */
struct bytes jpeg_file(uint32_t width, uint32_t height, int components, int scans);
/* One PNG chunk with its CRC. */
void put_chunk(struct bytes *b, const char *name, const void *data, uint32_t n);

#endif
