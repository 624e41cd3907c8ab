/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures to patches, against the official processors' vectors
 * (tests/reference/make_images.py, make_vl2.py, make_qwen25vl.py).
 */
#include "model/image_internal.h"
#include "tests/model/pictures.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX ((size_t)1 << 20)

static uint32_t number(const json_t *list, size_t i)
{
    return (uint32_t)json_integer_value(json_array_get(list, i));
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

static json_t *vectors(const char *name)
{
    char path[512];
    json_t *root;

    ck_assert_int_eq(ek_json_read(fixture(name, path), FILE_MAX, &root), EK_OK);
    return root;
}

START_TEST(ten_thousand_sizes_have_the_official_tokens)
{
    static const char *const names[] = {"images/deepseek-vl2.json", "images/qwen2.5-vl.json"};
    json_t *root = vectors(names[_i]);
    struct ek_vl_rules r = published(_i == 0 ? EK_VISION_VL2 : EK_VISION_QWEN25);
    uint32_t crc = 0, w, h;

    for (uint32_t i = 0; i < 10000; i++) {
        struct ek_visual v;
        char line[64];
        random_size(i, &w, &h);
        if (ek_vl_measure(&r, w, h, 1, false, 1, &v) == EK_OK)
            snprintf(line, sizeof(line), "%u %u %u %u %u\n", w, h, v.to_width, v.to_height,
                     v.n_tokens);
        else
            snprintf(line, sizeof(line), "%u %u refused\n", w, h);
        crc = crc32_of(crc, line, strlen(line));
    }
    ck_assert_uint_eq(crc,
                      (uint32_t)json_integer_value(json_object_get(root, "lines_10000_crc32")));
    json_decref(root);
}
END_TEST

START_TEST(qwens_sizes_and_tokens)
{
    json_t *root = vectors("images/qwen2.5-vl.json");
    struct ek_vl_rules r = published(EK_VISION_QWEN25);
    const json_t *c;
    size_t i;

    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        const json_t *size = json_object_get(c, "size"), *to = json_object_get(c, "to");
        struct ek_visual v;
        enum ek_status st = ek_vl_measure(&r, number(size, 0), number(size, 1), 1, false, 1, &v);
        if (json_is_null(to)) {
            ck_assert_int_eq(st, EK_EUNSUPPORTED);
            continue;
        }
        ck_assert_int_eq(st, EK_OK);
        ck_assert_uint_eq(v.to_width, number(to, 0));
        ck_assert_uint_eq(v.to_height, number(to, 1));
        ck_assert_int_eq(v.n_tokens, json_integer_value(json_object_get(c, "tokens")));
        ck_assert_uint_eq(v.n_rows, 4 * v.n_tokens);
    }
    json_decref(root);
}
END_TEST

/* Two candidates that hold the picture and waste the same: the one listed first. A side that
 * shrinks to nothing stays one cell. */
START_TEST(ties_and_vanishing_sides_are_decided_as_officially)
{
    static const uint32_t tied[2][3][2] = {{{384, 384}, {384, 2304}, {768, 1152}},
                                           {{384, 384}, {768, 1152}, {384, 2304}}};
    struct ek_vl_rules vl2 = published(EK_VISION_VL2), qwen = published(EK_VISION_QWEN25);
    struct ek_visual v;

    vl2.n_candidates = 3;
    for (int order = 0; order < 2; order++) {
        memcpy(vl2.candidates, tied[order], sizeof(tied[order]));
        ck_assert_int_eq(ek_vl_measure(&vl2, 300, 1100, 1, false, 1, &v), EK_OK);
        ck_assert_uint_eq(v.to_width, tied[order][1][0]);
    }
    qwen.max_pixels = 50000;
    ck_assert_int_eq(ek_vl_measure(&qwen, 5600, 28, 1, false, 1, &v), EK_OK);
    ck_assert_uint_eq(v.to_height, 28);
    ck_assert_uint_eq(v.to_width, 3136);
}
END_TEST

/* CRC of the tiles in the official order, each a picture of its own. */
static uint32_t tiles_crc(const struct ek_vl_rules *r, const struct ek_image *image,
                          const struct ek_visual *v)
{
    struct ek_image global, local;
    uint32_t crc, tile = r->tile;

    ck_assert_int_eq(ek_vl2_views(r, image, v, &global, &local), EK_OK);
    crc = crc32_picture(&global);
    for (uint32_t i = 0; i < v->w * v->h; i++) {
        const struct ek_image *from = v->t > 1 ? &local : &global;
        for (uint32_t y = 0; y < tile; y++)
            crc = crc32_of(crc,
                           from->rgb + 3 * ((size_t)(i / v->w * tile + y) * from->width +
                                            (size_t)(i % v->w) * tile),
                           (size_t)3 * tile);
    }
    ek_image_free(&global);
    ek_image_free(&local);
    return crc;
}

START_TEST(vl2s_tiles_equal_the_official_processors)
{
    json_t *root = vectors("images/deepseek-vl2.json");
    struct ek_vl_rules r = published(EK_VISION_VL2);
    const json_t *c;
    size_t i;

    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        const json_t *size = json_object_get(c, "size"), *tiles = json_object_get(c, "tiles");
        uint32_t seed = (uint32_t)json_integer_value(json_object_get(c, "seed"));
        struct ek_image image = formula(number(size, 0), number(size, 1), seed);
        struct ek_visual v;
        size_t n_items = json_is_true(json_object_get(c, "alone")) ? 1 : 3;
        ck_assert_int_eq(ek_vl_measure(&r, image.width, image.height, 1, false, n_items, &v),
                         EK_OK);
        ck_assert_uint_eq(v.w, number(tiles, 0));
        ck_assert_uint_eq(v.h, number(tiles, 1));
        ck_assert_int_eq(v.n_tokens, json_integer_value(json_object_get(c, "tokens")));
        ck_assert_msg(tiles_crc(&r, &image, &v) ==
                          (uint32_t)json_integer_value(json_object_get(c, "crc32")),
                      "case %zu", i);
        ek_image_free(&image);
    }
    json_decref(root);
}
END_TEST

/* ---- Patches --------------------------------------------------------------------------------- */

static float level(const struct ek_vl_rules *r, uint8_t v, uint32_t c)
{
    return ((float)v / 255.0f - r->mean[c]) / r->std[c];
}

/* Rows [t * g*g] of [3][patch][patch] against the u8 tiles [n, S, S, 3]. */
static void check_vl2_rows(const struct ek_vl_rules *r, const struct ek_visual *v,
                           const uint8_t *tiles)
{
    uint32_t p = r->patch, g = r->tile / p;

    for (uint64_t row = 0; row < v->n_rows; row++) {
        uint32_t tile = (uint32_t)row / (g * g), at = (uint32_t)row % (g * g);
        for (uint32_t i = 0; i < v->row_size; i++) {
            uint32_t c = i / (p * p), y = at / g * p + i / p % p, x = at % g * p + i % p;
            uint8_t u8 = tiles[((size_t)(tile * r->tile + y) * r->tile + x) * 3 + c];
            ck_assert(v->pixels[row * v->row_size + i] == level(r, u8, c));
        }
    }
}

START_TEST(vl2s_patches_are_the_official_tiles)
{
    static const char *const names[] = {"deepseek-vl2", "deepseek-vl2-small", "deepseek-vl2-tiny"};
    struct subject s = open_subject(names[_i], "reference");
    const struct ek_safetensors_entry *e = ek_safetensors_find(s.reference, "tiles");
    uint8_t *tiles = malloc(e->bytes), *at = tiles;
    struct ek_vl_item items[8];
    struct ek_image images[8];
    size_t n = read_items(&s, images, items);

    ck_assert_int_eq(ek_safetensors_read(s.reference, e, 0, e->bytes, tiles), EK_OK);
    s.rules.repeat_tiles = true;
    for (size_t i = 0; i < n; i++) {
        struct ek_visual v;
        ck_assert_int_eq(ek_vl_prepare(&s.rules, &items[i], n, &v), EK_OK);
        check_vl2_rows(&s.rules, &v, at);
        at += (size_t)v.t * s.rules.tile * s.rules.tile * 3;
        ek_visual_free(&v);
        ek_image_free(&images[i]);
    }
    ck_assert_int_eq(at - tiles, (ptrdiff_t)e->bytes);
    free(tiles);
    close_subject(&s);
}
END_TEST

/* Every element of the rows, by its coordinates: slice, block, place in the block; channel, frame.
 */
static void check_qwen_rows(const struct ek_vl_rules *r, const struct ek_visual *v,
                            const struct ek_image *frames, size_t n_frames)
{
    uint32_t p = r->patch, m = r->merge, blocks = v->w / m;

    for (uint64_t row = 0; row < v->n_rows; row++) {
        uint32_t slice = (uint32_t)(row / (v->h * v->w)), in = (uint32_t)(row % (v->h * v->w));
        uint32_t block = in / (m * m), py = block / blocks * m + in % (m * m) / m;
        uint32_t px = block % blocks * m + in % m;
        for (uint32_t i = 0; i < v->row_size; i++) {
            uint32_t c = i / (r->temporal * p * p), frame = slice * r->temporal + i / (p * p) % 2;
            const struct ek_image *f = &frames[frame < n_frames ? frame : n_frames - 1];
            uint32_t y = py * p + i / p % p, x = px * p + i % p;
            ck_assert(v->pixels[row * v->row_size + i] ==
                      level(r, f->rgb[((size_t)y * f->width + x) * 3 + c], c));
        }
    }
}

START_TEST(qwens_patches_are_the_official_resized_pictures)
{
    struct subject s = open_subject("qwen2.5-vl", "reference");
    struct ek_vl_item items[8];
    struct ek_image images[8];
    size_t n = read_items(&s, images, items);

    ck_assert_uint_eq(n, 2);
    for (size_t i = 0; i < n; i++) {
        struct ek_image resized;
        struct ek_visual v;
        char name[32];
        snprintf(name, sizeof(name), "resized.%zu", i);
        resized = picture_entry(s.reference, name);
        ck_assert_int_eq(ek_vl_prepare(&s.rules, &items[i], n, &v), EK_OK);
        ck_assert_uint_eq(v.to_width, resized.width);
        ck_assert_uint_eq(v.to_height, resized.height);
        check_qwen_rows(&s.rules, &v, &resized, 1);
        ek_visual_free(&v);
        ek_image_free(&resized);
        ek_image_free(&images[i]);
    }
    close_subject(&s);
}
END_TEST

START_TEST(a_videos_last_frame_fills_up_its_last_slice)
{
    struct subject s = open_subject("qwen2.5-vl", "reference-video");
    struct ek_image frames[3];
    struct ek_vl_item item = read_video(&s, frames);
    struct ek_visual v;

    ck_assert_int_eq(ek_vl_prepare(&s.rules, &item, 1, &v), EK_OK);
    ck_assert_uint_eq(v.t, 2);
    ck_assert_uint_eq(v.n_rows, 80);
    check_qwen_rows(&s.rules, &v, frames, 3);
    ek_visual_free(&v);
    for (int i = 0; i < 3; i++)
        ek_image_free(&frames[i]);
    close_subject(&s);
}
END_TEST

/* ---- Geometry of Qwen's tower ---------------------------------------------------------------- */

START_TEST(windows_are_ragged_and_stay_within_a_slice)
{
    struct ek_vl_rules r = published(EK_VISION_QWEN25);
    struct ek_visual v = {.t = 2, .h = 10, .w = 12, .n_rows = 240};
    static const uint32_t sizes[] = {16, 8, 4, 2}; /* 5 x 6 cells: 4x4, 4x2, 1x4, 1x2 */
    static const uint32_t order[] = {0,  1, 2, 3,  6,  7,  8,  9,  12, 13, 14, 15, 18, 19, 20,
                                     21, 4, 5, 10, 11, 16, 17, 22, 23, 24, 25, 26, 27, 28, 29};
    struct ek_vl_geometry g;

    ck_assert_int_eq(ek_vl_geometry(&r, &v, &g), EK_OK);
    ck_assert_uint_eq(g.n_windows, 8);
    ck_assert_uint_eq(g.rows_per_slice, 120);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_uint_eq(g.windows[i + 1] - g.windows[i], 4 * sizes[i % 4]);
    for (uint32_t i = 0; i < 60; i++)
        ck_assert_uint_eq(g.order[i], order[i % 30] + i / 30 * 30);
    for (uint32_t i = 0; i < 240; i++) { /* blocks of 2 x 2, then places in the block */
        uint32_t at = i % 120, block = at / 4;
        ck_assert_int_eq(g.positions[i], (int32_t)(block / 6 * 2 + at % 4 / 2));
        ck_assert_int_eq(g.positions[240 + i], (int32_t)(block % 6 * 2 + at % 2));
    }
    ek_vl_geometry_free(&g);
}
END_TEST

/* ---- Processor files ------------------------------------------------------------------------- */

START_TEST(processor_settings_are_read_and_checked)
{
    static const struct {
        enum ek_vision_kind kind;
        const char *config, *processor, *text; /* text NULL: fine */
    } cases[] = {
        {EK_VISION_VL2, "{}", "{}", NULL},
        {EK_VISION_VL2, "{\"candidate_resolutions\": [[384, 384]]}", NULL, NULL},
        {EK_VISION_VL2, "{\"global_view_pos\": \"tail\"}", NULL, NULL},
        {EK_VISION_VL2, "{\"global_view_pos\": \"left\"}", NULL, "head or tail"},
        {EK_VISION_VL2, "{}", "{\"candidate_resolutions\": []}", "must be 1 to 256"},
        {EK_VISION_VL2, "{}", "{\"candidate_resolutions\": [[384, 100]]}", "multiples"},
        {EK_VISION_VL2, "{}", "{\"candidate_resolutions\": [[384, -384]]}", "multiples"},
        {EK_VISION_VL2, "{}", "{\"candidate_resolutions\": [[384]]}", "multiples"},
        {EK_VISION_VL2, "{}", "{\"candidate_resolutions\": [[768, 384]]}", "one tile"},
        {EK_VISION_VL2, "{}", "{\"candidate_resolutions\": [[384, 384], [3840, 3840]]}", "100"},
        {EK_VISION_VL2, "{}", "{\"patch_size\": 16}", "config.json says 14"},
        {EK_VISION_VL2, "{}", "{\"image_mean\": [0.5, 0.5]}", "image_mean"},
        {EK_VISION_VL2, "{}", "{\"image_std\": [0.5, 0, 0.5]}", "image_std"},
        {EK_VISION_QWEN25, "{}", "{\"size\": {\"shortest_edge\": 784}}", NULL},
        {EK_VISION_QWEN25, "{}", "{\"min_pixels\": 100, \"max_pixels\": 99}", "99"},
        {EK_VISION_QWEN25, "{}", "{\"max_pixels\": 1e9}", "max_pixels"},
        {EK_VISION_QWEN25, "{}", "{\"max_pixels\": 1000000000000}", "max_pixels"},
        {EK_VISION_QWEN25, "{}", "{\"merge_size\": 4}", "config.json says 2"},
        {EK_VISION_QWEN25, "{\"image_token_id\": -1}", NULL, "image_token_id"},
        {EK_VISION_NONE, "{}", NULL, "takes no pictures"},
    };
    struct ek_config c = {.architecture = "X",
                          .vision = cases[_i].kind,
                          .vision_patch = 14,
                          .vision_merge = 2,
                          .vision_temporal = 2,
                          .vision_window = 112,
                          .vision_image = 384};
    json_t *config = json_loads(cases[_i].config, 0, NULL);
    json_t *processor = cases[_i].processor ? json_loads(cases[_i].processor, 0, NULL) : NULL;
    struct ek_vl_files files = {config, processor, "config.json", "processor.json"};
    struct ek_vl_rules r;
    enum ek_status st = ek_vl_rules_parse(&c, &files, &r);

    ck_assert_msg((st == EK_OK) == (cases[_i].text == NULL), "%s", ek_last_error());
    if (cases[_i].text)
        ck_assert_msg(strstr(ek_last_error(), cases[_i].text) != NULL, "%s", ek_last_error());
    json_decref(config);
    json_decref(processor);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("visual");
    TCase *t = tcase_create("visual");

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, ten_thousand_sizes_have_the_official_tokens, 0, 2);
    tcase_add_test(t, qwens_sizes_and_tokens);
    tcase_add_test(t, ties_and_vanishing_sides_are_decided_as_officially);
    tcase_add_test(t, vl2s_tiles_equal_the_official_processors);
    tcase_add_loop_test(t, vl2s_patches_are_the_official_tiles, 0, 3);
    tcase_add_test(t, qwens_patches_are_the_official_resized_pictures);
    tcase_add_test(t, a_videos_last_frame_fills_up_its_last_slice);
    tcase_add_test(t, windows_are_ragged_and_stay_within_a_slice);
    tcase_add_loop_test(t, processor_settings_are_read_and_checked, 0, 20);
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
