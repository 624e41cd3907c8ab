/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/model/pictures.h"

#include "model/image_internal.h"

#include <jpeglib.h>

#include <check.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

uint32_t scrambled(uint32_t v)
{
    v *= 2654435761u;
    v ^= v >> 15;
    v *= 2246822519u;
    return v ^ v >> 13;
}

struct ek_image formula(uint32_t width, uint32_t height, uint32_t seed)
{
    struct ek_image image;
    uint32_t i = 0;

    ck_assert_msg(ek_image_new(width, height, &image) == EK_OK, "%s", ek_last_error());
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++)
            for (uint32_t c = 0; c < 3; c++, i++)
                image.rgb[i] =
                    (uint8_t)(3 * x + 5 * y + 40 * c + scrambled(i + 1000003u * seed) % 64);
    return image;
}

void random_size(uint32_t i, uint32_t *width, uint32_t *height)
{
    *width = scrambled(2 * i) % 4000 + 1;
    *height = scrambled(2 * i + 1) % (i % 4 == 3 ? 64 : 4000) + 1;
}

uint32_t crc32_of(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;

    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

uint32_t crc32_picture(const struct ek_image *image)
{
    return crc32_of(0, image->rgb, (size_t)image->width * image->height * 3);
}

bool same_picture(const struct ek_image *a, const struct ek_image *b)
{
    return a->width == b->width && a->height == b->height &&
           memcmp(a->rgb, b->rgb, (size_t)a->width * a->height * 3) == 0;
}

struct ek_image picture_entry(const struct ek_safetensors *s, const char *name)
{
    const struct ek_safetensors_entry *e = ek_safetensors_find(s, name);
    struct ek_image image;

    ck_assert_msg(e && e->n_dims == 3 && e->dtype == EK_U8, "%s", name);
    ck_assert_int_eq(ek_image_new((uint32_t)e->shape[1], (uint32_t)e->shape[0], &image), EK_OK);
    ck_assert_int_eq(ek_safetensors_read(s, e, 0, e->bytes, image.rgb), EK_OK);
    return image;
}

/* ---- Models and references
 * -----------------------------------------------------------------------
 */

struct subject open_subject(const char *name, const char *reference)
{
    struct subject s = {0};
    char path[512], local[128];

    snprintf(local, sizeof(local), "reference/%s", name);
    ck_assert_msg(ek_model_open(fixture(local, path), NULL, &s.model) == EK_OK, "%s",
                  ek_last_error());
    ck_assert_msg(ek_vl_rules_open(s.model, &s.rules) == EK_OK, "%s", ek_last_error());
    snprintf(local, sizeof(local), "reference/%s/%s.safetensors", name, reference);
    ck_assert_int_eq(ek_safetensors_open(fixture(local, path), &s.reference), EK_OK);
    return s;
}

void close_subject(struct subject *s)
{
    ek_safetensors_close(s->reference);
    ek_model_close(s->model);
}

struct ek_vl_rules published(enum ek_vision_kind kind)
{
    struct ek_config c = {.vision = kind,
                          .vision_patch = 14,
                          .vision_merge = 2,
                          .vision_temporal = 2,
                          .vision_window = 112,
                          .vision_image = 384,
                          .vision_tokens_per_second = 2};
    json_t *config = json_object();
    struct ek_vl_files files = {.config = config, .config_path = "config.json"};
    struct ek_vl_rules r;

    ck_assert_msg(ek_vl_rules_parse(&c, &files, &r) == EK_OK, "%s", ek_last_error());
    json_decref(config);
    if (kind == EK_VISION_VL2)
        r.image_id = 128815;
    return r;
}

size_t read_items(const struct subject *s, struct ek_image *images, struct ek_vl_item *items)
{
    char name[32];
    size_t n = 0;

    for (;; n++) {
        snprintf(name, sizeof(name), "image.%zu", n);
        if (ek_safetensors_find(s->reference, name) == NULL)
            return n;
        images[n] = picture_entry(s->reference, name);
        items[n] = (struct ek_vl_item){.frames = &images[n], .n_frames = 1};
    }
}

struct ek_vl_item read_video(const struct subject *s, struct ek_image frames[3])
{
    const struct ek_safetensors_entry *e = ek_safetensors_find(s->reference, "video.0");
    double seconds = atof(ek_safetensors_meta(s->reference, "seconds_per_grid"));

    ck_assert_uint_eq(e->shape[0], 3);
    for (uint64_t i = 0; i < 3; i++) {
        ck_assert_int_eq(ek_image_new((uint32_t)e->shape[2], (uint32_t)e->shape[1], &frames[i]),
                         EK_OK);
        ck_assert_int_eq(ek_safetensors_read(s->reference, e, i * e->bytes / 3, e->bytes / 3,
                                             frames[i].rgb),
                         EK_OK);
    }
    return (struct ek_vl_item){
        .frames = frames, .n_frames = 3, .video = true, .seconds_per_frame = seconds / 2};
}

/* ---- Files -------------------------------------------------------------------------------------
 */

static void write_png(png_struct *png, uint8_t *data, size_t n)
{
    put(png_get_io_ptr(png), data, n);
}

static void flush_nothing(png_struct *png)
{
    (void)png;
}

struct bytes png_file(const uint8_t *samples, uint32_t width, uint32_t height, int bits, int type,
                      bool interlaced)
{
    png_struct *png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_info *info = png_create_info_struct(png);
    struct bytes b = {0};
    size_t line;

    ck_assert(setjmp(png_jmpbuf(png)) == 0);
    png_set_write_fn(png, &b, write_png, flush_nothing);
    png_set_IHDR(png, info, width, height, bits, type,
                 interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    line = png_get_rowbytes(png, info);
    for (int pass = png_set_interlace_handling(png); pass > 0; pass--)
        for (uint32_t y = 0; y < height; y++)
            png_write_row(png, samples + y * line);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    return b;
}

void put_chunk(struct bytes *b, const char *name, const void *data, uint32_t n)
{
    uint32_t crc = crc32_of(crc32_of(0, name, 4), data, n);
    uint8_t word[4] = {(uint8_t)(n >> 24), (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n};

    put(b, word, 4);
    put(b, name, 4);
    put(b, data, n);
    for (int i = 0; i < 4; i++)
        word[i] = (uint8_t)(crc >> (24 - 8 * i));
    put(b, word, 4);
}

/* One scan of all DC, then bands of AC one scan each: valid up to 190 of three components. */
static void script(struct jpeg_compress_struct *jpeg, jpeg_scan_info *scans, int n)
{
    scans[0] =
        (jpeg_scan_info){.comps_in_scan = jpeg->num_components, .component_index = {0, 1, 2}};
    for (int i = 1; i < n; i++)
        scans[i] = (jpeg_scan_info){.comps_in_scan = 1,
                                    .component_index = {(i - 1) / 63},
                                    .Ss = (i - 1) % 63 + 1,
                                    .Se = (i - 1) % 63 + 1};
    jpeg->scan_info = scans;
    jpeg->num_scans = n;
}

struct bytes jpeg_file(uint32_t width, uint32_t height, int components, int scans)
{
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    jpeg_scan_info infos[190];
    unsigned char *out = NULL;
    unsigned long n = 0;
    struct bytes b = {0};
    uint8_t *line = ek_calloc(width, (size_t)components);

    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &out, &n);
    jpeg.image_width = width;
    jpeg.image_height = height;
    jpeg.input_components = components;
    jpeg.in_color_space = components == 3 ? JCS_RGB : components == 1 ? JCS_GRAYSCALE : JCS_UNKNOWN;
    jpeg_set_defaults(&jpeg);
    if (scans > 0)
        script(&jpeg, infos, scans);
    jpeg_start_compress(&jpeg, TRUE);
    for (uint32_t y = 0; y < height; y++) {
        for (uint32_t i = 0; i < width * (uint32_t)components; i++)
            line[i] = (uint8_t)scrambled(y * 7919u + i);
        jpeg_write_scanlines(&jpeg, &line, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    put(&b, out, n);
    free(out);
    free(line);
    return b;
}
