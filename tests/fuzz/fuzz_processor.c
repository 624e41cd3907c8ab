/* SPDX-License-Identifier: Apache-2.0
 *
 * Processor files, {"config": ..., "processor": ..., "size": [w, h], "ids": [...]}: settings that
 * are accepted must serve every size and prompt. Answers with boxes: any other text.
 */
#include "model/image_internal.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define IDS_MAX    64
#define ROWS_MAX   20000u
#define TOKENS_MAX 20000u

static uint32_t size_of(const json_t *root, size_t i)
{
    return (uint32_t)json_integer_value(json_array_get(json_object_get(root, "size"), i));
}

static void lay_out(const struct ek_vl_rules *r, const struct ek_visual *v, const json_t *list)
{
    int32_t ids[IDS_MAX];
    struct ek_vl_prompt p;
    size_t n = json_array_size(list);

    if (n > IDS_MAX)
        return;
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    if (ek_vl_layout(r, ids, n, v, 1, TOKENS_MAX, &p) != EK_OK)
        return;
    for (size_t i = 0; i < p.n_rows; i++)
        if (p.rows[i].token >= p.n_ids || p.rows[i].row >= v->n_features)
            __builtin_trap();
    ek_vl_prompt_free(&p);
}

static void use(const struct ek_vl_rules *r, const json_t *root)
{
    struct ek_vl_geometry g;
    struct ek_image image;
    struct ek_vl_item item = {.frames = &image, .n_frames = 1};
    struct ek_visual v;

    if (ek_vl_measure(r, size_of(root, 0), size_of(root, 1), 1, false, 1, &v) != EK_OK)
        return;
    lay_out(r, &v, json_object_get(root, "ids"));
    if (v.n_rows > ROWS_MAX || (uint64_t)v.to_width * v.to_height > ROWS_MAX * 196ull ||
        ek_image_new(v.width, v.height, &image) != EK_OK)
        return;
    if (ek_vl_geometry(r, &v, &g) == EK_OK)
        ek_vl_geometry_free(&g);
    if (ek_vl_prepare(r, &item, 1, &v) == EK_OK)
        ek_visual_free(&v);
    ek_image_free(&image);
}

static void parse_answer(const uint8_t *data, size_t n)
{
    char *text = malloc(n + 1);
    json_t *out;

    if (text == NULL)
        return;
    memcpy(text, data, n);
    text[n] = '\0';
    if (ek_grounding_parse(text, 640, 480, &out) == EK_OK)
        json_decref(out);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_config c = {.architecture = "fuzz",
                          .vision_patch = 14,
                          .vision_merge = 2,
                          .vision_temporal = 2,
                          .vision_window = 112,
                          .vision_image = 384,
                          .vision_tokens_per_second = 2};
    struct ek_vl_files files = {.config_path = "config", .processor_path = "processor"};
    struct ek_vl_rules r;
    json_t *root;

    if (ek_json_parse((const char *)data, n, "fuzz", &root) != EK_OK) {
        parse_answer(data, n);
        return 0;
    }
    files.config = json_object_get(root, "config");
    files.processor = json_object_get(root, "processor");
    for (int kind = EK_VISION_QWEN25; kind <= EK_VISION_VL2; kind++) {
        c.vision = (enum ek_vision_kind)kind;
        if (json_is_object(files.config) && (!files.processor || json_is_object(files.processor)) &&
            ek_vl_rules_parse(&c, &files, &r) == EK_OK) {
            r.image_id = 7;
            use(&r, root);
        }
    }
    json_decref(root);
    return 0;
}
