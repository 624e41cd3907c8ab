/* SPDX-License-Identifier: Apache-2.0
 *
 * Prompts with pictures: placeholders, where their rows come from, positions and conversations
 * against the references (tests/reference/make_vl2.py, make_qwen25vl.py); boxes in answers.
 */
#include "tests/model/pictures.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static int64_t *read_i64(const struct ek_safetensors *s, const char *name, size_t *n)
{
    const struct ek_safetensors_entry *e = ek_safetensors_find(s, name);
    int64_t *v;

    ck_assert_ptr_nonnull(e);
    v = malloc(e->bytes);
    ck_assert_int_eq(ek_safetensors_read(s, e, 0, e->bytes, v), EK_OK);
    *n = e->bytes / sizeof(*v);
    return v;
}

/* ---- Tokens ---------------------------------------------------------------------------------- */

/* The reference's ids with every run of n_tokens placeholders as one. */
static size_t collapse(const struct ek_vl_prompt *p, int32_t *out)
{
    size_t n = 0, visual = 0, row = 0, left = 0;

    for (size_t i = 0; i < p->n_ids; i++) {
        bool is_row = row < p->n_rows && p->rows[row].token == i;
        if (!is_row || left == 0)
            out[n++] = p->ids[i];
        if (is_row && left == 0)
            left = p->visuals[visual++].n_tokens;
        left -= is_row;
        row += is_row;
    }
    return n;
}

static void check_same_prompt(const struct ek_vl_prompt *a, const struct ek_vl_prompt *b)
{
    ck_assert_uint_eq(a->n_ids, b->n_ids);
    ck_assert_uint_eq(a->n_rows, b->n_rows);
    ck_assert_mem_eq(a->ids, b->ids, a->n_ids * sizeof(*a->ids));
    for (size_t i = 0; i < a->n_rows; i++) {
        ck_assert_uint_eq(a->rows[i].token, b->rows[i].token);
        ck_assert_uint_eq(a->rows[i].source, b->rows[i].source);
        ck_assert_uint_eq(a->rows[i].row, b->rows[i].row);
    }
    if (a->positions)
        ck_assert_mem_eq(a->positions, b->positions, 3 * a->n_ids * sizeof(*a->positions));
}

static const struct {
    const char *model, *reference;
    const char *messages[4]; /* user first */
} references[] = {
    {"deepseek-vl2-tiny", "reference", {"<image>\n<image>\nSame?"}},
    {"deepseek-vl2-small", "reference", {"Hi <image> there.", "Yes!", "Why?"}},
    {"deepseek-vl2", "reference", {"A<image>B<image>C<image>?"}},
    {"qwen2.5-vl", "reference", {"<image>or<image>?"}},
    {"qwen2.5-vl", "reference-video", {"<video>Go on?"}},
};

/* Ids as the reference has them, from full and from single placeholders; Qwen's positions. */
START_TEST(expanded_prompts_equal_the_references)
{
    struct subject s = open_subject(references[_i].model, references[_i].reference);
    struct ek_vl_item items[8];
    struct ek_image images[8];
    size_t n_items = read_items(&s, images, items), n, n_positions, n_short;
    int64_t *ids64 = read_i64(s.reference, "input_ids", &n), *positions;
    int32_t *ids = malloc(n * sizeof(*ids)), *one_each = malloc(n * sizeof(*ids));
    struct ek_vl_prompt full, expanded;
    bool video = n_items == 0;

    if (video)
        items[n_items++] = read_video(&s, images);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)ids64[i];
    ck_assert_msg(ek_vl_prompt(&s.rules, ids, n, items, n_items, n, &full) == EK_OK, "%s",
                  ek_last_error());
    ck_assert_uint_eq(full.n_ids, n);
    ck_assert_mem_eq(full.ids, ids, n * sizeof(*ids));
    n_short = collapse(&full, one_each);
    ck_assert_uint_lt(n_short, n);
    ck_assert_int_eq(ek_vl_prompt(&s.rules, one_each, n_short, items, n_items, 0, &expanded),
                     EK_OK);
    check_same_prompt(&full, &expanded);
    ck_assert_int_eq(full.positions != NULL, s.rules.kind == EK_VISION_QWEN25);
    if (full.positions) {
        positions = read_i64(s.reference, "position_ids", &n_positions);
        ck_assert_uint_eq(n_positions, 3 * n);
        for (size_t i = 0; i < 3 * n; i++)
            ck_assert_int_eq(full.positions[i], positions[i]);
        ck_assert_int_eq(full.delta + (int64_t)n, positions[n - 1] + 1); /* the text's last */
        free(positions);
    }
    ck_assert_int_eq(ek_vl_prompt(&s.rules, ids, n, items, n_items, n - 1, &expanded), EK_EUSAGE);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "over the context"));
    ek_vl_prompt_free(&full);
    ek_vl_prompt_free(&expanded);
    for (size_t i = 0; i < (video ? 3 : n_items); i++)
        ek_image_free(&images[i]);
    free(ids);
    free(one_each);
    free(ids64);
    close_subject(&s);
}
END_TEST

/* Rows as own_vl2.py's rows_of stitches them: every feature of every tile once, in mosaic order. */
START_TEST(vl2s_rows_come_from_features_newlines_and_separator)
{
    struct ek_vl_rules r = published(EK_VISION_VL2);
    struct ek_visual v[2];
    const int32_t ids[] = {0, 128815, 5, 128815};
    struct ek_vl_prompt p;
    size_t at = 0;

    ck_assert_int_eq(ek_vl_measure(&r, 100, 100, 1, false, 2, &v[0]), EK_OK);  /* 1 x 1: one tile */
    ck_assert_int_eq(ek_vl_measure(&r, 1024, 768, 1, false, 2, &v[1]), EK_OK); /* 3 x 2 */
    ck_assert_uint_eq(v[0].t, 1);
    ck_assert_uint_eq(v[1].t, 7);
    ck_assert_int_eq(ek_vl_layout(&r, ids, 4, v, 2, 4096, &p), EK_OK);
    ck_assert_uint_eq(p.n_ids, 2 + 421 + 1415);
    ck_assert_uint_eq(p.n_rows, 421 + 1415);
    ck_assert_ptr_null(p.positions);
    for (uint32_t view = 0; view < 4; view++) { /* global, local, global, local */
        uint32_t w = view == 3 ? 3 : 1, h = view == 3 ? 2 : 1;
        for (uint32_t y = 0; y < 14 * h; y++, at++) {
            for (uint32_t x = 0; x < 14 * w; x++, at++) {
                uint32_t tile = view < 2 ? 0 : view == 2 ? 1 : 2 + y / 14 * 3 + x / 14;
                ck_assert_uint_eq(p.rows[at].source, EK_VL_FEATURE);
                ck_assert_uint_eq(p.rows[at].row, tile * 196 + y % 14 * 14 + x % 14);
                ck_assert_uint_eq(p.rows[at].token, 1 + at + (at >= 421 ? 1 : 0));
            }
            ck_assert_uint_eq(p.rows[at].source, EK_VL_NEWLINE);
        }
        if (view % 2 == 0)
            ck_assert_uint_eq(p.rows[at++].source, EK_VL_SEPARATOR);
    }
    ck_assert_uint_eq(at, p.n_rows);
    ek_vl_prompt_free(&p);
    r.global_last = true;
    ck_assert_int_eq(ek_vl_layout(&r, ids, 2, &v[1], 1, 0, &p), EK_OK);
    ck_assert_uint_eq(p.rows[0].row, 196);
    ck_assert_uint_eq(p.rows[14 * 2 * 43].source, EK_VL_SEPARATOR);
    ck_assert_uint_eq(p.rows[14 * 2 * 43 + 1].row, 0);
    ek_vl_prompt_free(&p);
}
END_TEST

START_TEST(placeholders_must_match_the_pictures)
{
    struct ek_vl_rules r = published(EK_VISION_QWEN25);
    const int32_t image = r.image_id, video = r.video_id;
    const struct {
        int32_t ids[6];
        size_t n, n_visuals;
        const char *text; /* NULL: fine */
    } cases[] = {
        {{1, 2, 3}, 3, 0, NULL},
        {{1, image, 3}, 3, 1, NULL},
        {{image, image, image, image, 3}, 5, 1, NULL},
        {{1, 2, 3}, 3, 1, "0 picture placeholders for 1 pictures (4 tokens in full)"},
        {{1, image, 3}, 3, 0, "1 picture placeholders for 0 pictures"},
        {{image, image}, 2, 1, "2 picture placeholders for 1 pictures"},
        {{image, image, 1, image, image}, 5, 1, "2 in a row, the picture has 4 tokens"},
        {{1, video, 3}, 3, 1, "0 picture placeholders"},
        {{1, image, video}, 3, 1, "1 video placeholders for 0 videos"},
        {{0}, 0, 0, "at least 1"},
    };
    struct ek_visual v[2];
    struct ek_vl_prompt p;

    ck_assert_int_eq(ek_vl_measure(&r, 56, 56, 1, false, 1, &v[0]), EK_OK);
    ck_assert_uint_eq(v[0].n_tokens, 4);
    if (cases[_i].text == NULL) {
        ck_assert_int_eq(
            ek_vl_layout(&r, cases[_i].ids, cases[_i].n, v, cases[_i].n_visuals, 0, &p), EK_OK);
        ek_vl_prompt_free(&p);
        return;
    }
    ck_assert_int_eq(ek_vl_layout(&r, cases[_i].ids, cases[_i].n, v, cases[_i].n_visuals, 0, &p),
                     EK_EUSAGE);
    ck_assert_msg(strstr(ek_last_error(), cases[_i].text) != NULL, "%s", ek_last_error());
}
END_TEST

START_TEST(a_video_that_outlasts_its_sides_moves_the_text_on)
{
    struct ek_vl_rules r = published(EK_VISION_QWEN25);
    const int32_t ids[] = {7, r.video_id, 8, r.image_id, 9};
    struct ek_visual v[2];
    struct ek_vl_prompt p;

    ck_assert_int_eq(ek_vl_measure(&r, 56, 84, 1, false, 2, &v[1]), EK_OK);
    ck_assert_int_eq(ek_vl_measure(&r, 56, 56, 5, true, 2, &v[0]), EK_OK);
    v[0].seconds_per_slice = 2.5;
    ck_assert_uint_eq(v[0].t, 3);
    ck_assert_int_eq(ek_vl_layout(&r, ids, 5, v, 2, 0, &p), EK_OK);
    ck_assert_uint_eq(p.n_ids, 3 + 12 + 6);
    ck_assert_int_eq(p.positions[1], 1);
    ck_assert_int_eq(p.positions[5], 6);            /* the second slice: 1 + 5 */
    ck_assert_int_eq(p.positions[9], 11);           /* the third */
    ck_assert_int_eq(p.positions[p.n_ids + 12], 2); /* rows and columns start at 1 again */
    ck_assert_int_eq(p.positions[13], 12);          /* text behind the greatest, 11 */
    ck_assert_int_eq(p.positions[14], 13);          /* the picture of 3 x 2 cells */
    ck_assert_int_eq(p.positions[p.n_ids + 19], 15);
    ck_assert_int_eq(p.positions[2 * p.n_ids + 19], 14);
    ck_assert_int_eq(p.positions[20], 16);
    ck_assert_int_eq(p.delta, 17 - 21);
    ek_vl_prompt_free(&p);
    v[0].seconds_per_slice = 1e12;
    ck_assert_int_eq(ek_vl_layout(&r, ids, 5, v, 2, 0, &p), EK_EUNSUPPORTED);
}
END_TEST

START_TEST(items_are_checked_before_pixels_are_made)
{
    struct ek_vl_rules qwen = published(EK_VISION_QWEN25), vl2 = published(EK_VISION_VL2);
    struct ek_image frames[2] = {formula(56, 56, 1), formula(56, 28, 1)};
    struct ek_vl_item none = {.frames = frames},
                      uneven = {
                          .frames = frames, .n_frames = 2, .video = true, .seconds_per_frame = 1};
    struct ek_vl_item timeless = {.frames = frames, .n_frames = 1, .video = true};
    struct ek_visual v;

    ck_assert_int_eq(ek_vl_prepare(&qwen, &none, 1, &v), EK_EUSAGE);
    ck_assert_int_eq(ek_vl_prepare(&qwen, &uneven, 1, &v), EK_EUSAGE);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "56 x 28"));
    ck_assert_int_eq(ek_vl_prepare(&qwen, &timeless, 1, &v), EK_EUSAGE);
    ck_assert_int_eq(ek_vl_prepare(&vl2, &uneven, 1, &v), EK_EUNSUPPORTED);
    ck_assert_int_eq(ek_vl_measure(&qwen, 3500, 3500, 4096, true, 1, &v), EK_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "patches, at most"));
    ck_assert_int_eq(ek_vl_measure(&qwen, 201, 1, 1, false, 1, &v), EK_EUNSUPPORTED);
    ck_assert_int_eq(ek_vl_measure(&qwen, 0, 1, 1, false, 1, &v), EK_EFORMAT);
    ck_assert_int_eq(ek_vl_measure(&vl2, 1, 1, 1, false, 1, &v), EK_OK);
    ek_image_free(&frames[0]);
    ek_image_free(&frames[1]);
}
END_TEST

/* ---- Conversations --------------------------------------------------------------------------- */

/* The references' ids from their conversations, placeholders single. */
START_TEST(conversations_with_pictures_equal_the_references)
{
    struct subject s = open_subject(references[_i].model, references[_i].reference);
    struct ek_message messages[5];
    struct ek_tokenizer *t;
    struct ek_vl_item items[8];
    struct ek_image images[8];
    size_t n = 0, n_ids, n_items = read_items(&s, images, items), n_expected;
    int64_t *expected = read_i64(s.reference, "input_ids", &n_expected);
    bool video = n_items == 0;
    struct ek_vl_prompt p;
    int32_t *ids;

    if (video)
        items[n_items++] = read_video(&s, images);
    for (; references[_i].messages[n]; n++)
        messages[n] = (struct ek_message){n % 2 ? "assistant" : "user", references[_i].messages[n]};
    ck_assert_int_eq(ek_tokenizer_open(s.model->path, &t), EK_OK);
    ck_assert_msg(ek_vl_chat_encode(t, &s.rules, messages, n, video ? 0 : n_items, video, &ids,
                                    &n_ids) == EK_OK,
                  "%s", ek_last_error());
    ck_assert_msg(ek_vl_prompt(&s.rules, ids, n_ids, items, n_items, 0, &p) == EK_OK, "%s",
                  ek_last_error());
    ck_assert_uint_eq(p.n_ids, n_expected);
    for (size_t i = 0; i < n_expected; i++)
        ck_assert_int_eq(p.ids[i], expected[i]);
    ek_vl_prompt_free(&p);
    ek_tokenizer_free(t);
    for (size_t i = 0; i < (video ? 3 : n_items); i++)
        ek_image_free(&images[i]);
    free(expected);
    free(ids);
    close_subject(&s);
}
END_TEST

static char *render(const struct ek_tokenizer *t, const struct ek_vl_rules *r,
                    const struct ek_message *messages, size_t n, size_t images, size_t videos)
{
    int32_t *ids;
    size_t n_ids;
    char *text;

    if (ek_vl_chat_encode(t, r, messages, n, images, videos, &ids, &n_ids) != EK_OK)
        return NULL;
    ck_assert_int_eq(ek_tokenizer_decode(t, ids, n_ids, false, &text), EK_OK);
    free(ids);
    return text;
}

START_TEST(pictures_stand_where_messages_name_them)
{
    static const struct {
        const char *model;
        struct ek_message messages[3];
        size_t n, images, videos;
        const char *text; /* NULL: refused, with message */
        const char *message;
    } cases[] = {
        {"qwen2.5-vl",
         {{"user", "What?"}},
         1,
         2,
         0,
         "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|>"
         "<|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n",
         NULL},
        {"qwen2.5-vl",
         {{"system", "S <image>"}, {"user", "a <video> b"}},
         2,
         0,
         1,
         "<|im_start|>system\nS <image><|im_end|>\n<|im_start|>user\na <|vision_start|>"
         "<|video_pad|><|vision_end|> b<|im_end|>\n<|im_start|>assistant\n",
         NULL},
        {"deepseek-vl2",
         {{"user", " What? "}},
         1,
         1,
         0,
         "<｜begin▁of▁sentence｜><|User|>: <image>\nWhat?\n\n<|Assistant|>:",
         NULL},
        {"deepseek-vl2",
         {{"user", "<image><|ref|>x<|/ref|> <|User|> <video>"}},
         1,
         1,
         0,
         "<｜begin▁of▁sentence｜><|User|>: <image><|ref|>x<|/ref|> <|User|> "
         "<video>\n\n<|Assistant|>:",
         NULL},
        {"qwen2.5-vl", {{"user", "<image>"}}, 1, 2, 0, NULL, "name 1 pictures, 2 are given"},
        {"qwen2.5-vl", {{"user", "<image>"}}, 1, 0, 0, NULL, "name 1 pictures, 0 are given"},
        {"qwen2.5-vl", {{"user", "<image>"}}, 1, 1, 1, NULL, "name 0 videos, 1 are given"},
        {"qwen2.5-vl", {{"system", "x"}}, 1, 1, 0, NULL, "no user's message"},
        {"deepseek-vl2", {{"user", "x"}}, 1, 0, 1, NULL, "no videos"},
    };
    struct subject s = open_subject(cases[_i].model, "reference");
    struct ek_tokenizer *t;
    char *text;

    ck_assert_int_eq(ek_tokenizer_open(s.model->path, &t), EK_OK);
    text = render(t, &s.rules, cases[_i].messages, cases[_i].n, cases[_i].images, cases[_i].videos);
    if (cases[_i].text)
        ck_assert_str_eq(text, cases[_i].text);
    else
        ck_assert_msg(text == NULL && strstr(ek_last_error(), cases[_i].message), "%s",
                      ek_last_error());
    free(text);
    ek_tokenizer_free(t);
    close_subject(&s);
}
END_TEST

/* ---- Memory ---------------------------------------------------------------------------------- */

/* A conversation with a picture file, from the model's folder to patches and boxes. */
static enum ek_status whole_way(const char *model, const char *file)
{
    static const struct ek_message what = {"user", "<image> What?"};
    struct ek_model *m = NULL;
    struct ek_tokenizer *t = NULL;
    struct ek_image image = {0};
    struct ek_vl_item item = {.frames = &image, .n_frames = 1};
    struct ek_vl_prompt p = {0};
    struct ek_vl_geometry g = {0};
    struct ek_vl_rules r;
    int32_t *ids = NULL;
    json_t *boxes = NULL;
    size_t n;
    enum ek_status st;

    EK_GOTO(ek_model_open(model, NULL, &m), st, done);
    EK_GOTO(ek_vl_rules_open(m, &r), st, done);
    EK_GOTO(ek_tokenizer_open(model, &t), st, done);
    EK_GOTO(ek_vl_chat_encode(t, &r, &what, 1, 1, 0, &ids, &n), st, done);
    EK_GOTO(ek_image_read(file, &(struct ek_image_options){true, true}, &image), st, done);
    EK_GOTO(ek_vl_prompt(&r, ids, n, &item, 1, 0, &p), st, done);
    if (r.kind == EK_VISION_QWEN25)
        EK_GOTO(ek_vl_geometry(&r, &p.visuals[0], &g), st, done);
    st = ek_grounding_parse("<|ref|>a<|/ref|><|det|>[[1,2,3,4]]<|/det|>", 1, 1, &boxes);
done:
    json_decref(boxes);
    ek_vl_geometry_free(&g);
    ek_vl_prompt_free(&p);
    ek_image_free(&image);
    free(ids);
    ek_tokenizer_free(t);
    ek_model_close(m);
    return st;
}

/* Each test runs in its own process, so that the count of allocations begins anew. */
START_TEST(failing_allocations_are_reported_and_nothing_leaks)
{
    static const char *const models[] = {"reference/deepseek-vl2-tiny", "reference/qwen2.5-vl"};
    static const char *const files[] = {"images/files/rotated.jpg", "images/files/rgba.png"};
    char number[16], model[512], file[512];
    enum ek_status st;

    snprintf(number, sizeof(number), "%d", _i / 2 + 1);
    setenv("EK_FAIL_ALLOC", number, 1);
    fixture(models[_i % 2], model);
    fixture(files[_i % 2], file);
    st = whole_way(model, file);
    ck_assert_msg(st == EK_ENOMEM || _i > 120, "allocation %s: %d %s", number, (int)st,
                  ek_last_error());
    ck_assert_msg(st == EK_OK || st == EK_ENOMEM, "allocation %s: %d %s", number, (int)st,
                  ek_last_error());
}
END_TEST

/* ---- Grounding ------------------------------------------------------------------------------- */

#define REF(label) "<|ref|>" label "<|/ref|>"
#define DET(boxes) "<|det|>" boxes "<|/det|>"

START_TEST(boxes_become_json)
{
    static const struct {
        const char *text, *json;
    } cases[] = {
        {"no boxes", "[]"},
        {" " REF("the cat") DET("[[0, 10, 999, 20]]") ".",
         "[{\"label\":\"the cat\",\"boxes\":[[0,10,999,20]],\"pixels\":[[0,5,1998,10]]}]"},
        {REF("a") DET("[[1,2,3,4], [5, 6, 7, 8]]") "and" REF("b") " \n" DET("[[9,9,9,9]]"),
         "[{\"label\":\"a\",\"boxes\":[[1,2,3,4],[5,6,7,8]],\"pixels\":[[2,1,6,2],[10,3,14,4]]},"
         "{\"label\":\"b\",\"boxes\":[[9,9,9,9]],\"pixels\":[[18,5,18,5]]}]"},
        {REF("a") DET("[[1,2,3]]") REF("b") DET("[[1,2,3,1000]]") REF("c") DET("[]"), "[]"},
        {REF("a") DET("[[1,2,3,4]"), "[]"},
        {REF("a") " is here " DET("[[1,2,3,4]]"), "[]"},
        {"<|ref|>open " REF("a") DET("[[0,0,0,0]]"),
         "[{\"label\":\"a\",\"boxes\":[[0,0,0,0]],\"pixels\":[[0,0,0,0]]}]"},
        {"<|ref|>a<|/ref|><|det|>[[1,2,3,4]]", "[]"},
        {REF("a") DET("[[1,2,3,4]]]"), "[]"},
        {REF("a") DET("[[1,2,3,99999999999999999999]]"), "[]"},
        {REF("a") DET("[[-1,2,3,4]]"), "[]"},
    };
    json_t *out;
    char *text;

    ck_assert_int_eq(ek_grounding_parse(cases[_i].text, 1998, 500, &out), EK_OK);
    text = json_dumps(out, JSON_COMPACT);
    ck_assert_str_eq(text, cases[_i].json);
    free(text);
    json_decref(out);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("prompt");
    TCase *t = tcase_create("prompt");

    tcase_add_loop_test(t, expanded_prompts_equal_the_references, 0, EK_ARRAY_LEN(references));
    tcase_add_test(t, vl2s_rows_come_from_features_newlines_and_separator);
    tcase_add_loop_test(t, placeholders_must_match_the_pictures, 0, 10);
    tcase_add_test(t, a_video_that_outlasts_its_sides_moves_the_text_on);
    tcase_add_test(t, items_are_checked_before_pixels_are_made);
    tcase_add_loop_test(t, conversations_with_pictures_equal_the_references, 0,
                        EK_ARRAY_LEN(references));
    tcase_add_loop_test(t, pictures_stand_where_messages_name_them, 0, 9);
    tcase_add_loop_test(t, boxes_become_json, 0, 11);
    tcase_add_loop_test(t, failing_allocations_are_reported_and_nothing_leaks, 0, 300);
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
