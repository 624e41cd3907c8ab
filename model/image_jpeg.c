/* SPDX-License-Identifier: Apache-2.0
 *
 * JPEG through libjpeg-turbo, with the settings of Pillow: accurate integer transform, smooth
 * upsampling. Pixels equal Pillow's bit for bit. Whatever the library warns of is damage: a picture
 * that the model sees half of is worse than a refusal.
 */
#include "model/image_internal.h"

#include <jpeglib.h>

#include <jerror.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_MAX ((long)1 << 30) /* of the library: a progressive picture's coefficients */

enum fault { FAULT_NONE, FAULT_LIBRARY, FAULT_SCANS };

struct decoder {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf out;
    enum fault fault;
    int code;      /* of the library's message */
    uint8_t *line; /* as the library writes it; owned */
};

static void fail(j_common_ptr jpeg)
{
    struct decoder *d = jpeg->client_data;

    d->fault = FAULT_LIBRARY;
    d->code = jpeg->err->msg_code;
    longjmp(d->out, 1);
}

/* Level -1: the data are damaged. What stands before the first scan harms no pixel. */
static void warn(j_common_ptr jpeg, int level)
{
    const struct decoder *d = jpeg->client_data;
    int code = jpeg->err->msg_code;
    bool harmless = code == JWRN_ADOBE_XFORM || code == JWRN_JFIF_MAJOR || code == JWRN_BOGUS_ICC ||
                    (code == JWRN_EXTRANEOUS_DATA && d->jpeg.input_scan_number == 0);

    if (level < 0 && !harmless)
        fail(jpeg);
}

static void print_nothing(j_common_ptr jpeg)
{
    (void)jpeg;
}

static void watch_scans(j_common_ptr jpeg)
{
    struct decoder *d = jpeg->client_data;

    if (d->jpeg.input_scan_number <= EK_IMAGE_SCANS_MAX)
        return;
    d->fault = FAULT_SCANS;
    longjmp(d->out, 1);
}

/* The library's codes in our words; its own text is not for our messages. */
static enum ek_status refuse(const struct decoder *d, const char *where)
{
    if (d->fault == FAULT_SCANS)
        return ek_error(EK_EUNSUPPORTED, "%s: JPEG: more than %d scans", where, EK_IMAGE_SCANS_MAX);
    switch (d->code) {
    case JWRN_JPEG_EOF:
    case JERR_INPUT_EOF:
    case JERR_INPUT_EMPTY:
        return ek_error(EK_EFORMAT, "%s: JPEG: ends in the middle of the picture", where);
    case JERR_OUT_OF_MEMORY:
    case JERR_NO_BACKING_STORE:
    case JERR_TFILE_CREATE:
        return ek_error(EK_EUNSUPPORTED, "%s: JPEG: decoding takes more than %ld MiB", where,
                        MEMORY_MAX >> 20);
    case JERR_SOF_UNSUPPORTED:
        return ek_error(EK_EUNSUPPORTED, "%s: JPEG: lossless or hierarchical coding", where);
    case JERR_BAD_PRECISION:
        return ek_error(EK_EUNSUPPORTED, "%s: JPEG: not 8 bits a sample", where);
    case JERR_IMAGE_TOO_BIG:
        return ek_error(EK_EUNSUPPORTED, "%s: JPEG: more than %u pixels a side", where,
                        EK_IMAGE_SIDE_MAX);
    case JERR_NO_SOI:
    case JERR_NO_IMAGE:
    case JERR_SOF_NO_SOS:
    case JERR_SOS_NO_SOF:
        return ek_error(EK_EFORMAT, "%s: JPEG: holds no picture", where);
    default:
        return ek_error(EK_EFORMAT, "%s: JPEG: damaged (libjpeg's message %d)", where, d->code);
    }
}

static void begin(struct decoder *d, const struct ek_image_source *s)
{
    d->jpeg.err = jpeg_std_error(&d->errors);
    d->jpeg.client_data = d;
    d->errors.error_exit = fail;
    d->errors.emit_message = warn;
    d->errors.output_message = print_nothing;
    jpeg_create_decompress(&d->jpeg);
    d->jpeg.mem->max_memory_to_use = MEMORY_MAX;
    d->progress.progress_monitor = watch_scans;
    d->jpeg.progress = &d->progress;
    jpeg_mem_src(&d->jpeg, s->data, s->n);
    jpeg_save_markers(&d->jpeg, JPEG_APP0 + 1, 0xffff);
}

static int orientation_of(const struct jpeg_decompress_struct *jpeg)
{
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m != NULL; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > 6 && memcmp(m->data, "Exif\0\0", 6) == 0)
            return ek_exif_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

/* Grey, RGB or CMYK (Adobe's, which is inverted). */
static enum ek_status choose_colours(struct decoder *d, const char *where)
{
    switch (d->jpeg.num_components) {
    case 1:
        d->jpeg.out_color_space = JCS_GRAYSCALE;
        break;
    case 3:
        d->jpeg.out_color_space = JCS_RGB;
        break;
    case 4:
        d->jpeg.out_color_space = JCS_CMYK;
        break;
    default:
        return ek_error(EK_EUNSUPPORTED, "%s: JPEG: %d colour components, must be 1, 3 or 4", where,
                        d->jpeg.num_components);
    }
    d->jpeg.dct_method = JDCT_ISLOW;
    d->jpeg.do_fancy_upsampling = TRUE;
    d->jpeg.do_block_smoothing = TRUE;
    return EK_OK;
}

static void line_to_rgb(const uint8_t *in, int components, uint32_t width, uint8_t *out)
{
    for (uint32_t x = 0; x < width; x++, in += components, out += 3) {
        if (components == 3)
            memcpy(out, in, 3);
        else if (components == 1)
            memset(out, in[0], 3);
        else
            for (int c = 0; c < 3; c++) {
                int v = in[3] - ek_mul_div_255(255u - in[c], in[3]);
                out[c] = v < 0 ? 0 : (uint8_t)v;
            }
    }
}

/* Behind setjmp: leaves by return or by longjmp. */
static enum ek_status decode(struct decoder *d, const struct ek_image_source *s,
                             struct ek_image *image, int *orientation)
{
    begin(d, s);
    jpeg_read_header(&d->jpeg, TRUE);
    EK_TRY(ek_image_check_size(s->where, d->jpeg.image_width, d->jpeg.image_height));
    EK_TRY(choose_colours(d, s->where));
    *orientation = orientation_of(&d->jpeg);
    EK_TRY(ek_image_new(d->jpeg.image_width, d->jpeg.image_height, image));
    if ((d->line = ek_calloc(image->width, 4)) == NULL)
        return EK_ENOMEM;
    jpeg_start_decompress(&d->jpeg);
    while (d->jpeg.output_scanline < image->height) {
        uint8_t *rgb = image->rgb + (size_t)d->jpeg.output_scanline * image->width * 3;
        jpeg_read_scanlines(&d->jpeg, &d->line, 1);
        line_to_rgb(d->line, d->jpeg.output_components, image->width, rgb);
    }
    jpeg_finish_decompress(&d->jpeg);
    return EK_OK;
}

enum ek_status ek_jpeg_decode(const struct ek_image_source *s, struct ek_image *out,
                              int *orientation)
{
    struct decoder *d = ek_calloc(1, sizeof(*d));
    enum ek_status st;

    if (d == NULL)
        return EK_ENOMEM;
    if (setjmp(d->out) == 0)
        st = decode(d, s, out, orientation);
    else
        st = refuse(d, s->where);
    jpeg_destroy_decompress(&d->jpeg);
    free(d->line);
    free(d);
    if (st != EK_OK)
        ek_image_free(out);
    return st;
}
