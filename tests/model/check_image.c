/* SPDX-License-Identifier: Apache-2.0
 *
 * Decoding and resizing against Pillow (tests/reference/make_images.py), and hostile files.
 */
#include "model/image_internal.h"
#include "tests/model/pictures.h"

#include <check.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX ((size_t)1 << 20)

static const char *const files[] = {
    "rgb.png",     "grey.png",    "grey-alpha.png",          "rgba.png",       "palette.png",
    "one-bit.png", "grey-16.png", "palette-transparent.png", "one-column.png", "420.jpg",
    "422.jpg",     "444.jpg",     "progressive.jpg",         "grey.jpg",       "cmyk.jpg",
    "rotated.jpg", "one-row.jpg",
};

/* ---- Decoding ----------------------------------------------------------------------------------
 */

static struct bytes file_bytes(const char *name)
{
    char path[512], local[64];
    struct bytes b = {0};

    snprintf(local, sizeof(local), "images/files/%s", name);
    ck_assert_int_eq(ek_file_read(fixture(local, path), FILE_MAX, &b.p, &b.n), EK_OK);
    return b;
}

static struct ek_image decoded(const struct bytes *b, const struct ek_image_options *options)
{
    struct ek_image image;

    ck_assert_msg(ek_image_decode(b->p, b->n, "test", options, &image) == EK_OK, "%s",
                  ek_last_error());
    return image;
}

static void check_decoded(const struct ek_safetensors *s, const char *name, const char *suffix,
                          struct ek_image_options options)
{
    struct bytes b = file_bytes(name);
    struct ek_image image = decoded(&b, &options), expected;
    char key[64];

    snprintf(key, sizeof(key), "%s.%s", name, suffix);
    if (ek_safetensors_find(s, key) == NULL) /* not stored where the option changes nothing */
        snprintf(key, sizeof(key), "%s.rgb", name);
    expected = picture_entry(s, key);
    ck_assert_msg(same_picture(&image, &expected), "%s", key);
    ek_image_free(&image);
    ek_image_free(&expected);
    put_free(&b);
}

START_TEST(files_decode_as_pillow_decodes_them)
{
    struct ek_safetensors *s;
    char path[512];

    ck_assert_int_eq(ek_safetensors_open(fixture("images/files.safetensors", path), &s), EK_OK);
    check_decoded(s, files[_i], "rgb", (struct ek_image_options){0});
    check_decoded(s, files[_i], "white", (struct ek_image_options){.white = true});
    check_decoded(s, files[_i], "upright", (struct ek_image_options){.upright = true});
    ek_safetensors_close(s);
}
END_TEST

START_TEST(a_file_is_read_by_its_content)
{
    struct bytes b = file_bytes("420.jpg");
    struct ek_image image, expected = decoded(&b, NULL);

    temp_begin();
    ck_assert_int_eq(ek_image_read(temp_write("x.png", b.p, b.n), NULL, &image), EK_OK);
    ck_assert(same_picture(&image, &expected));
    ck_assert_int_ne(ek_image_read(temp_path("none.png"), NULL, &image), EK_OK);
    temp_end();
    ek_image_free(&image);
    ek_image_free(&expected);
    put_free(&b);
}
END_TEST

/* Samples of every depth and colour type, interlaced and not, say the same picture. */
START_TEST(interlaced_and_deep_pngs_decode)
{
    static const struct {
        int bits, type, channels;
    } forms[] = {{8, PNG_COLOR_TYPE_RGB, 3},        {8, PNG_COLOR_TYPE_RGB_ALPHA, 4},
                 {16, PNG_COLOR_TYPE_RGB, 3},       {16, PNG_COLOR_TYPE_RGB_ALPHA, 4},
                 {8, PNG_COLOR_TYPE_GRAY, 1},       {8, PNG_COLOR_TYPE_GRAY_ALPHA, 2},
                 {16, PNG_COLOR_TYPE_GRAY_ALPHA, 2}};
    const uint32_t w = 21, h = 13;
    int bytes = forms[_i].bits / 8, channels = forms[_i].channels;
    size_t n = (size_t)w * h * (size_t)channels;
    uint8_t *samples = ek_calloc(n, (size_t)bytes);

    for (size_t i = 0; i < n * (size_t)bytes; i++)
        samples[i] = (uint8_t)scrambled((uint32_t)i);
    for (int interlaced = 0; interlaced < 2; interlaced++) {
        struct bytes b = png_file(samples, w, h, forms[_i].bits, forms[_i].type, interlaced);
        struct ek_image image = decoded(&b, NULL);
        for (size_t i = 0; i < (size_t)w * h; i++)
            for (size_t c = 0; c < 3; c++) /* 16 bits: the high byte, as Pillow */
                ck_assert_uint_eq(
                    image.rgb[3 * i + c],
                    samples[(i * (size_t)channels + (channels >= 3 ? c : 0)) * (size_t)bytes]);
        ek_image_free(&image);
        put_free(&b);
    }
    free(samples);
}
END_TEST

START_TEST(every_exif_orientation_turns_as_pillow_does)
{
    static const struct {
        uint32_t width;
        const char *upright;
    } turned[] = {{3, "abcdef"}, {3, "cbafed"}, {3, "fedcba"}, {3, "defabc"},
                  {2, "adbecf"}, {2, "daebfc"}, {2, "fcebda"}, {2, "cfbead"}};
    struct ek_image image;

    ck_assert_int_eq(ek_image_new(3, 2, &image), EK_OK);
    for (int i = 0; i < 18; i++)
        image.rgb[i] = (uint8_t) "abcdef"[i / 3];
    ck_assert_int_eq(ek_image_turn(&image, _i + 1), EK_OK);
    ck_assert_uint_eq(image.width, turned[_i].width);
    ck_assert_uint_eq(image.width * image.height, 6);
    for (int i = 0; i < 18; i++)
        ck_assert_int_eq(image.rgb[i], turned[_i].upright[i / 3]);
    ek_image_free(&image);
}
END_TEST

START_TEST(exif_is_read_in_both_byte_orders_and_rubbish_is_ignored)
{
    static const uint8_t little[] = "II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0";
    static const uint8_t big[] = "MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x08\0\0";
    static const uint8_t far[] = "II*\0\xff\xff\xff\xff\1\0\x12\1\3\0\1\0\0\0\6\0\0\0";
    static const uint8_t many[] = "II*\0\x08\0\0\0\xff\xff\0\1\3\0\1\0\0\0\6\0\0\0";
    static const uint8_t nine[] = "II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0";

    ck_assert_int_eq(ek_exif_orientation(little, 22), 6);
    ck_assert_int_eq(ek_exif_orientation(big, 22), 8);
    ck_assert_int_eq(ek_exif_orientation(far, 22), 1);
    ck_assert_int_eq(ek_exif_orientation(many, 22), 1);
    ck_assert_int_eq(ek_exif_orientation(nine, 22), 1);
    for (size_t n = 0; n < 22; n++)
        ck_assert_int_eq(ek_exif_orientation(little, n), 1);
}
END_TEST

/* ---- Hostile files -----------------------------------------------------------------------------
 */

/* Refused with the status, the file's name and the text in the message, on one line. */
static void refused(const void *data, size_t n, enum ek_status st, const char *text)
{
    struct ek_image image = {0};
    enum ek_status got = ek_image_decode(data, n, "evil", NULL, &image);

    ck_assert_msg(got == st, "%s: %d", text, got);
    ck_assert_ptr_null(image.rgb);
    ck_assert_msg(strstr(ek_last_error(), text) != NULL, "%s / %s", ek_last_error(), text);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "evil"));
    ck_assert_ptr_null(strchr(ek_last_error(), '\n'));
}

START_TEST(what_is_no_jpeg_or_png_is_refused_by_name)
{
    static const struct {
        const char *data;
        size_t n;
        enum ek_status st;
        const char *text;
    } cases[] = {
        {"", 0, EK_EFORMAT, "is no picture"},
        {"\xff\xd8", 2, EK_EFORMAT, "is no picture"},
        {"\x89PNG\r\n\x1a", 7, EK_EFORMAT, "is no picture"},
        {"hello, world", 12, EK_EFORMAT, "is no picture"},
        {"GIF89a......", 12, EK_EUNSUPPORTED, "GIF"},
        {"RIFF....WEBPVP8 ", 16, EK_EUNSUPPORTED, "WebP"},
        {"BM......", 8, EK_EUNSUPPORTED, "BMP"},
        {"II*\0....", 8, EK_EUNSUPPORTED, "TIFF"},
        {"\0\0\0\x18"
         "ftypavif",
         12, EK_EUNSUPPORTED, "AVIF"},
        {"<svg xmlns", 10, EK_EUNSUPPORTED, "SVG"},
        {"\xff\xd8\xff", 3, EK_EFORMAT, "ends in the middle"},
        {"\x89PNG\r\n\x1a\n", 8, EK_EFORMAT, "ends in the middle"},
        {"\xff\xd8\xff\xd9", 4, EK_EFORMAT, "holds no picture"},
    };

    refused(cases[_i].data, cases[_i].n, cases[_i].st, cases[_i].text);
}
END_TEST

START_TEST(every_truncation_is_refused)
{
    struct bytes b = file_bytes(files[_i]);

    for (size_t n = 0; n < b.n; n++) {
        struct ek_image image;
        char *cut = malloc(n ? n : 1); /* of exactly that size, for the sanitizer */
        memcpy(cut, b.p, n);
        ck_assert_msg(ek_image_decode(cut, n, "evil", NULL, &image) != EK_OK, "%zu of %zu", n, b.n);
        free(cut);
    }
    put_free(&b);
}
END_TEST

START_TEST(damaged_bytes_are_refused_or_harmless)
{
    static const uint8_t flips[] = {0x01, 0x80, 0xff};
    struct ek_image_options both = {.white = true, .upright = true};
    struct bytes b = file_bytes(files[_i]);

    for (size_t at = 0; at < b.n; at++) {
        for (size_t k = 0; k < EK_ARRAY_LEN(flips); k++) {
            struct ek_image image = {0};
            b.p[at] ^= (char)flips[k];
            if (ek_image_decode(b.p, b.n, "evil", &both, &image) == EK_OK)
                ck_assert_uint_gt(image.width, 0);
            else
                ck_assert_ptr_null(strchr(ek_last_error(), '\n'));
            ek_image_free(&image);
            b.p[at] ^= (char)flips[k];
        }
    }
    put_free(&b);
}
END_TEST

static const struct {
    uint32_t width, height;
    enum ek_status st;
    const char *text;
} sizes[] = {
    {0, 5, EK_EFORMAT, ""},
    {5, 0, EK_EFORMAT, ""},
    {16385, 1, EK_EUNSUPPORTED, "16385 x 1"},
    {1, 16385, EK_EUNSUPPORTED, "at most 16384"},
    {16384, 16384, EK_EUNSUPPORTED, "at most 67108864"},
    {65500, 65500, EK_EUNSUPPORTED, "65500 x 65500"},
};

static void big_endian(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

START_TEST(sizes_of_pngs_are_checked_before_decoding)
{
    uint8_t header[13] = {[8] = 8, [9] = PNG_COLOR_TYPE_RGB};
    struct bytes b = {0};

    big_endian(header, sizes[_i].width);
    big_endian(header + 4, sizes[_i].height);
    put(&b, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(&b, "IHDR", header, 13);
    put_chunk(&b, "IDAT", "\x78\x9c", 2);
    refused(b.p, b.n, sizes[_i].st, sizes[_i].text);
    put_free(&b);
}
END_TEST

/* Byte of a JPEG's frame header (its marker is at 0). */
static uint8_t *frame(struct bytes *b)
{
    for (size_t i = 2; i + 9 < b->n;
         i += 2 + ((size_t)(uint8_t)b->p[i + 2] << 8 | (uint8_t)b->p[i + 3]))
        if ((uint8_t)b->p[i + 1] >= 0xc0 && (uint8_t)b->p[i + 1] <= 0xc2)
            return (uint8_t *)b->p + i;
    ck_abort_msg("no frame");
    return NULL;
}

START_TEST(sizes_of_jpegs_are_checked_before_decoding)
{
    struct bytes b = file_bytes("444.jpg");
    uint8_t *f = frame(&b);

    f[5] = (uint8_t)(sizes[_i].height >> 8);
    f[6] = (uint8_t)sizes[_i].height;
    f[7] = (uint8_t)(sizes[_i].width >> 8);
    f[8] = (uint8_t)sizes[_i].width;
    refused(b.p, b.n, sizes[_i].st, sizes[_i].text);
    put_free(&b);
}
END_TEST

START_TEST(kinds_of_jpeg_that_are_not_decoded_are_named)
{
    struct bytes deep = file_bytes("444.jpg"), lossless = file_bytes("444.jpg");
    struct bytes two = jpeg_file(9, 9, 2, 0);

    frame(&deep)[4] = 12;
    refused(deep.p, deep.n, EK_EUNSUPPORTED, "8 bits");
    frame(&lossless)[1] = 0xc3;
    refused(lossless.p, lossless.n, EK_EUNSUPPORTED, "lossless");
    refused(two.p, two.n, EK_EUNSUPPORTED, "2 colour components");
    put_free(&deep);
    put_free(&lossless);
    put_free(&two);
}
END_TEST

START_TEST(a_progressive_jpeg_may_have_a_hundred_scans)
{
    struct bytes fine = jpeg_file(9, 9, 3, 100), many = jpeg_file(9, 9, 3, 101);
    struct ek_image image = decoded(&fine, NULL);

    ck_assert_uint_eq(image.width, 9);
    refused(many.p, many.n, EK_EUNSUPPORTED, "more than 100 scans");
    ek_image_free(&image);
    put_free(&fine);
    put_free(&many);
}
END_TEST

/* A header of 1 x 1 before the data of many rows, and a header of many rows before those of one. */
START_TEST(pngs_with_too_much_or_too_little_data_are_refused)
{
    static const uint32_t claimed[] = {1, 16000};
    uint8_t samples[3 * 100] = {0}, header[13] = {[3] = 1, [8] = 8, [9] = PNG_COLOR_TYPE_RGB};
    struct bytes whole = png_file(samples, 1, 100, 8, PNG_COLOR_TYPE_RGB, false), b = {0};

    big_endian(header + 4, claimed[_i]);
    put(&b, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(&b, "IHDR", header, 13);
    put(&b, whole.p + 33, whole.n - 33);
    refused(b.p, b.n, EK_EFORMAT, "PNG");
    put_free(&whole);
    put_free(&b);
}
END_TEST

/* 64 MPix of zeros in 66 kB: decoded, since the limits allow it. */
START_TEST(a_picture_at_the_limit_decodes)
{
    const uint32_t side = 8192;
    uint8_t *samples = ek_calloc((size_t)side * side, 1);
    struct bytes b = png_file(samples, side, side, 8, PNG_COLOR_TYPE_GRAY, false);
    struct ek_image image = decoded(&b, NULL);

    free(samples);
    ck_assert_uint_eq(image.width, side);
    ek_image_free(&image);
    put_free(&b);
}
END_TEST

/* Text, colour profile and wrong checksums of chunks that change no pixel. */
START_TEST(chunks_that_change_no_pixel_are_skipped)
{
    struct bytes whole = file_bytes("rgb.png"), b = {0};
    struct ek_image image, expected = decoded(&whole, NULL);

    put(&b, whole.p, 33);
    put_chunk(&b, "iCCP", "broken", 6);
    put_chunk(&b, "tEXt", "k\0v", 3);
    put_chunk(&b, "vpAg", "", 0);
    put(&b, whole.p + 33, whole.n - 33);
    image = decoded(&b, NULL);
    ck_assert(same_picture(&image, &expected));
    ek_image_free(&image);
    ek_image_free(&expected);
    put_free(&whole);
    put_free(&b);
}
END_TEST

/* ---- Resizing ----------------------------------------------------------------------------------
 */

static uint32_t number(const json_t *list, size_t i)
{
    return (uint32_t)json_integer_value(json_array_get(list, i));
}

START_TEST(resizing_equals_pillows_bit_for_bit)
{
    static const char *const names[] = {"images/resize.json", "images/qwen2.5-vl.json"};
    char path[512];
    json_t *root;
    const json_t *c;
    size_t i, n = 0;

    ck_assert_int_eq(ek_json_read(fixture(names[_i], path), FILE_MAX, &root), EK_OK);
    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        const json_t *size = json_object_get(c, "size"), *to = json_object_get(c, "to");
        uint32_t seed = (uint32_t)json_integer_value(json_object_get(c, "seed"));
        struct ek_image in, out;
        if (json_object_get(c, "crc32") == NULL)
            continue;
        in = formula(number(size, 0), number(size, 1), seed);
        ck_assert_int_eq(ek_image_resize(&in, number(to, 0), number(to, 1), &out), EK_OK);
        ck_assert_msg(crc32_picture(&out) ==
                          (uint32_t)json_integer_value(json_object_get(c, "crc32")),
                      "%s: case %zu", names[_i], i);
        ek_image_free(&in);
        ek_image_free(&out);
        n++;
    }
    ck_assert_uint_ge(n, 8);
    json_decref(root);
}
END_TEST

START_TEST(sizes_to_resize_to_are_checked)
{
    struct ek_image in = formula(4, 4, 1), out;
    const uint8_t grey[3] = {127, 127, 127};

    ck_assert_int_eq(ek_image_resize(&in, 0, 4, &out), EK_EFORMAT);
    ck_assert_int_eq(ek_image_resize(&in, 16385, 4, &out), EK_EUNSUPPORTED);
    ck_assert_int_eq(ek_image_resize(&in, 16384, 16384, &out), EK_EUNSUPPORTED);
    ek_image_free(&in);
    in = formula(1, 16384, 1);
    ck_assert_int_eq(ek_image_pad(&in, 384, 384, grey, &out), EK_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "1 x 16384"));
    ek_image_free(&in);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("image");
    TCase *t = tcase_create("image");
    int n_files = EK_ARRAY_LEN(files), n_sizes = EK_ARRAY_LEN(sizes);

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, files_decode_as_pillow_decodes_them, 0, n_files);
    tcase_add_test(t, a_file_is_read_by_its_content);
    tcase_add_loop_test(t, interlaced_and_deep_pngs_decode, 0, 7);
    tcase_add_loop_test(t, every_exif_orientation_turns_as_pillow_does, 0, 8);
    tcase_add_test(t, exif_is_read_in_both_byte_orders_and_rubbish_is_ignored);
    tcase_add_loop_test(t, what_is_no_jpeg_or_png_is_refused_by_name, 0, 13);
    tcase_add_loop_test(t, every_truncation_is_refused, 0, n_files);
    tcase_add_loop_test(t, damaged_bytes_are_refused_or_harmless, 0, n_files);
    tcase_add_loop_test(t, sizes_of_pngs_are_checked_before_decoding, 0, n_sizes);
    tcase_add_loop_test(t, sizes_of_jpegs_are_checked_before_decoding, 0, n_sizes);
    tcase_add_test(t, kinds_of_jpeg_that_are_not_decoded_are_named);
    tcase_add_test(t, a_progressive_jpeg_may_have_a_hundred_scans);
    tcase_add_loop_test(t, pngs_with_too_much_or_too_little_data_are_refused, 0, 2);
    tcase_add_test(t, a_picture_at_the_limit_decodes);
    tcase_add_test(t, chunks_that_change_no_pixel_are_skipped);
    tcase_add_loop_test(t, resizing_equals_pillows_bit_for_bit, 0, 2);
    tcase_add_test(t, sizes_to_resize_to_are_checked);
    suite_add_tcase(s, t);
    return s;
}

int main(void)
{
    SRunner *r = srunner_create(suite());
    int failed;

    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
