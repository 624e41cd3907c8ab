/* SPDX-License-Identifier: Apache-2.0
 *
 * PNG through libpng; pixels equal those of Pillow's convert("RGB"). Chunks that change no pixel
 * are skipped unread, so that what the library still warns of is damage and refused.
 */
#include "model/image_internal.h"

#include <png.h>

#include <stdlib.h>
#include <string.h>

struct decoder {
    struct ek_image_source source;
    size_t at;
    png_struct *png;
    png_info *info, *end;
    uint8_t *pixels; /* one line, or all of an interlaced picture; owned */
    uint8_t **lines; /* of an interlaced picture; owned */
    bool truncated;
};

static void PNGCBAPI fail(png_struct *png, const char *message)
{
    (void)message; /* the library's text is not for our messages */
    png_longjmp(png, 1);
}

static void PNGCBAPI read_bytes(png_struct *png, uint8_t *out, size_t n)
{
    struct decoder *d = png_get_io_ptr(png);

    if (n > d->source.n - d->at) {
        d->truncated = true;
        png_longjmp(png, 1);
    }
    memcpy(out, d->source.data + d->at, n);
    d->at += n;
}

static enum ek_status begin(struct decoder *d)
{
    d->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, fail, fail);
    d->info = d->png ? png_create_info_struct(d->png) : NULL;
    d->end = d->png ? png_create_info_struct(d->png) : NULL;
    if (d->end == NULL || d->info == NULL)
        return ek_error(EK_ENOMEM, "no memory to read %s", d->source.where);
    return EK_OK;
}

/* Grey samples of 16 bits stay as they are: Pillow clips those and cuts all others to 8. */
static bool is_deep(const struct decoder *d)
{
    return png_get_bit_depth(d->png, d->info) == 16 &&
           png_get_color_type(d->png, d->info) == PNG_COLOR_TYPE_GRAY;
}

static void choose_form(struct decoder *d, bool white)
{
    int type = png_get_color_type(d->png, d->info);

    if (type == PNG_COLOR_TYPE_PALETTE)
        png_set_palette_to_rgb(d->png);
    else if (png_get_bit_depth(d->png, d->info) < 8)
        png_set_expand_gray_1_2_4_to_8(d->png);
    if (white && png_get_valid(d->png, d->info, PNG_INFO_tRNS))
        png_set_tRNS_to_alpha(d->png);
    if (!white)
        png_set_strip_alpha(d->png);
    if (!is_deep(d))
        png_set_strip_16(d->png);
}

/* Composes v of opacity a on white as Pillow's paste does. */
static uint8_t on_white(unsigned v, unsigned a)
{
    unsigned t = 255 * (255 - a) + v * a + 128;

    return (uint8_t)(((t >> 8) + t) >> 8);
}

/* One line of 1 to 4 channels of 1 or 2 bytes; the last of 2 or 4 is opacity. */
static void line_to_rgb(const uint8_t *in, unsigned channels, bool deep, uint32_t width,
                        uint8_t *out)
{
    unsigned size = deep ? 2 : 1, colours = channels >= 3 ? 3 : 1;

    for (uint32_t x = 0; x < width; x++, in += (size_t)channels * size, out += 3) {
        unsigned alpha = channels == colours ? 255 : in[(size_t)colours * size];
        for (unsigned c = 0; c < 3; c++) {
            unsigned v = in[colours == 3 ? c * size : 0];
            if (deep)
                v = v > 0 ? 255 : in[1];
            out[c] = alpha == 255 ? (uint8_t)v : on_white(v, alpha);
        }
    }
}

static enum ek_status read_lines(struct decoder *d, struct ek_image *image, int passes, bool deep)
{
    unsigned channels = png_get_channels(d->png, d->info);
    size_t line = png_get_rowbytes(d->png, d->info), stride = (size_t)image->width * 3;
    uint32_t held = passes > 1 ? image->height : 1;

    d->pixels = ek_calloc(held, line);
    d->lines = ek_calloc(held, sizeof(*d->lines));
    if (d->pixels == NULL || d->lines == NULL)
        return EK_ENOMEM;
    for (uint32_t y = 0; y < held; y++)
        d->lines[y] = d->pixels + y * line;
    if (passes > 1)
        png_read_image(d->png, d->lines);
    for (uint32_t y = 0; y < image->height; y++) {
        if (passes == 1)
            png_read_row(d->png, d->pixels, NULL);
        line_to_rgb(d->lines[passes > 1 ? y : 0], channels, deep, image->width,
                    image->rgb + y * stride);
    }
    return EK_OK;
}

static int orientation_of(struct decoder *d)
{
    uint8_t *exif;
    uint32_t n;

    if (png_get_eXIf_1(d->png, d->info, &n, &exif) || png_get_eXIf_1(d->png, d->end, &n, &exif))
        return ek_exif_orientation(exif, n);
    return 1;
}

/* Behind setjmp: leaves by return or by longjmp. */
static enum ek_status decode(struct decoder *d, bool white, struct ek_image *image,
                             int *orientation)
{
    bool deep;
    int passes;

    png_set_read_fn(d->png, d, read_bytes);
    png_set_user_limits(d->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* ours come with a message */
    png_set_keep_unknown_chunks(d->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(d->png, PNG_HANDLE_CHUNK_AS_DEFAULT, (const uint8_t *)"eXIf", 1);
    png_read_info(d->png, d->info);
    EK_TRY(ek_image_check_size(d->source.where, png_get_image_width(d->png, d->info),
                               png_get_image_height(d->png, d->info)));
    deep = is_deep(d);
    choose_form(d, white);
    passes = png_set_interlace_handling(d->png);
    png_read_update_info(d->png, d->info);
    EK_TRY(ek_image_new(png_get_image_width(d->png, d->info), png_get_image_height(d->png, d->info),
                        image));
    EK_TRY(read_lines(d, image, passes, deep));
    png_read_end(d->png, d->end);
    *orientation = orientation_of(d);
    return EK_OK;
}

enum ek_status ek_png_decode(const struct ek_image_source *s, bool white, struct ek_image *out,
                             int *orientation)
{
    struct decoder *d = ek_calloc(1, sizeof(*d));
    enum ek_status st;

    if (d == NULL)
        return EK_ENOMEM;
    d->source = *s;
    st = begin(d);
    if (st == EK_OK) {
        if (setjmp(png_jmpbuf(d->png)) == 0)
            st = decode(d, white, out, orientation);
        else
            st = ek_error(EK_EFORMAT, "%s: PNG: %s near byte %zu", s->where,
                          d->truncated ? "ends in the middle of a chunk" : "damaged", d->at);
    }
    png_destroy_read_struct(&d->png, &d->info, &d->end);
    free(d->pixels);
    free(d->lines);
    free(d);
    if (st != EK_OK)
        ek_image_free(out);
    return st;
}
