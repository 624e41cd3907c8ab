/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures from files and bytes: the limits, what kind of file it is, composition and turning.
 */
#include "model/image_internal.h"

#include <stdlib.h>
#include <string.h>

enum ek_status ek_image_check_size(const char *where, uint64_t width, uint64_t height)
{
    if (width == 0 || height == 0)
        return ek_error(EK_EFORMAT, "%s: %llu x %llu pixels, must be at least 1 x 1", where,
                        (unsigned long long)width, (unsigned long long)height);
    if (width > EK_IMAGE_SIDE_MAX || height > EK_IMAGE_SIDE_MAX)
        return ek_error(EK_EUNSUPPORTED, "%s: %llu x %llu pixels, at most %u a side", where,
                        (unsigned long long)width, (unsigned long long)height, EK_IMAGE_SIDE_MAX);
    if (width * height > EK_IMAGE_PIXELS_MAX)
        return ek_error(EK_EUNSUPPORTED, "%s: %llu x %llu pixels, at most %llu in all", where,
                        (unsigned long long)width, (unsigned long long)height,
                        (unsigned long long)EK_IMAGE_PIXELS_MAX);
    return EK_OK;
}

enum ek_status ek_image_new(uint32_t width, uint32_t height, struct ek_image *out)
{
    uint8_t *rgb;

    EK_TRY(ek_image_check_size("picture", width, height));
    if ((rgb = ek_calloc((size_t)width * height, 3)) == NULL)
        return EK_ENOMEM;
    *out = (struct ek_image){.rgb = rgb, .width = width, .height = height};
    return EK_OK;
}

void ek_image_free(struct ek_image *image)
{
    free(image->rgb);
    *image = (struct ek_image){0};
}

/* Formats that people hand in, to refuse them by name. */
static const char *other_format(const uint8_t *data, size_t n)
{
    static const struct {
        const char *name;
        uint32_t at, n;
        const char *magic;
    } formats[] = {
        {"a GIF", 0, 4, "GIF8"},       {"a WebP", 8, 4, "WEBP"},
        {"a BMP", 0, 2, "BM"},         {"a TIFF", 0, 4, "II*\0"},
        {"a TIFF", 0, 4, "MM\0*"},     {"a HEIF or AVIF", 4, 4, "ftyp"},
        {"a JPEG 2000", 4, 4, "jP  "}, {"a JPEG XL", 0, 2, "\xff\x0a"},
        {"an MNG", 0, 4, "\x8aMNG"},   {"a PDF", 0, 4, "%PDF"},
        {"an SVG or XML", 0, 1, "<"},
    };

    for (size_t i = 0; i < EK_ARRAY_LEN(formats); i++)
        if (n >= formats[i].at + formats[i].n &&
            memcmp(data + formats[i].at, formats[i].magic, formats[i].n) == 0)
            return formats[i].name;
    return NULL;
}

static enum ek_status decode_stored(const struct ek_image_source *s, bool white,
                                    struct ek_image *out, int *orientation)
{
    static const uint8_t png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const char *other;

    if (s->n >= 3 && s->data[0] == 0xff && s->data[1] == 0xd8 && s->data[2] == 0xff)
        return ek_jpeg_decode(s, out, orientation);
    if (s->n >= sizeof(png) && memcmp(s->data, png, sizeof(png)) == 0)
        return ek_png_decode(s, white, out, orientation);
    if ((other = other_format(s->data, s->n)) != NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: is %s file; JPEG and PNG are read", s->where, other);
    return ek_error(EK_EFORMAT, "%s: is no picture: begins like neither JPEG nor PNG", s->where);
}

enum ek_status ek_image_decode(const void *data, size_t n, const char *where,
                               const struct ek_image_options *options, struct ek_image *out)
{
    struct ek_image_source s = {.data = data, .n = n, .where = where};
    struct ek_image image = {0};
    int orientation = 1;
    enum ek_status st;

    st = decode_stored(&s, options && options->white, &image, &orientation);
    if (st == EK_OK && options && options->upright)
        st = ek_image_turn(&image, orientation);
    if (st == EK_OK)
        *out = image;
    else
        ek_image_free(&image);
    return st;
}

enum ek_status ek_image_read(const char *path, const struct ek_image_options *options,
                             struct ek_image *out)
{
    enum ek_status st;
    char *data;
    size_t n;

    EK_TRY(ek_file_read(path, EK_IMAGE_FILE_MAX, &data, &n));
    st = ek_image_decode(data, n, path, options, out);
    free(data);
    return st;
}
