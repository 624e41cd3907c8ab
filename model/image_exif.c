/* SPDX-License-Identifier: Apache-2.0
 *
 * EXIF's orientation, and turning a picture by it.
 */
#include "model/image_internal.h"

#include <stdlib.h>
#include <string.h>

#define TAG_ORIENTATION 0x0112
#define TYPE_SHORT      3
#define ENTRY_BYTES     12

static uint32_t read_u16(const uint8_t *p, bool big)
{
    return big ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static uint32_t read_u32(const uint8_t *p, bool big)
{
    return big ? read_u16(p, big) << 16 | read_u16(p + 2, big)
               : read_u16(p + 2, big) << 16 | read_u16(p, big);
}

int ek_exif_orientation(const uint8_t *tiff, size_t n)
{
    bool big = n >= 4 && memcmp(tiff, "MM\0*", 4) == 0;
    size_t at, entries;

    if (n < 8 || (!big && memcmp(tiff, "II*\0", 4) != 0))
        return 1;
    at = read_u32(tiff + 4, big);
    if (at > n - 2)
        return 1;
    entries = read_u16(tiff + at, big);
    at += 2;
    for (size_t i = 0; i < entries && n - at >= ENTRY_BYTES; i++, at += ENTRY_BYTES) {
        uint32_t value = read_u16(tiff + at + 8, big);
        if (read_u16(tiff + at, big) != TAG_ORIENTATION)
            continue;
        return read_u16(tiff + at + 2, big) == TYPE_SHORT && value >= 1 && value <= 8 ? (int)value
                                                                                      : 1;
    }
    return 1;
}

enum ek_status ek_image_turn(struct ek_image *image, int orientation)
{
    /* where the upright picture's pixel (x, y) lies: transposed, then mirrored in the stored one */
    bool swap = orientation >= 5;
    bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    struct ek_image out;

    if (orientation <= 1)
        return EK_OK;
    EK_TRY(ek_image_new(swap ? image->height : image->width, swap ? image->width : image->height,
                        &out));
    for (uint32_t y = 0; y < out.height; y++) {
        for (uint32_t x = 0; x < out.width; x++) {
            size_t sx = swap ? y : x, sy = swap ? x : y;
            sx = mirror_x ? image->width - 1 - sx : sx;
            sy = mirror_y ? image->height - 1 - sy : sy;
            memcpy(out.rgb + 3 * ((size_t)y * out.width + x),
                   image->rgb + 3 * (sy * image->width + sx), 3);
        }
    }
    free(image->rgb);
    *image = out;
    return EK_OK;
}
