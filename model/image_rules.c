/* SPDX-License-Identifier: Apache-2.0
 *
 * The processors' settings: config.json, and processor_config.json (VL2) or
 * preprocessor_config.json (Qwen) beside it. What they leave out has the published value.
 */
#include "model/image_internal.h"
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_MAX       ((size_t)4 << 20)
#define TILES_MAX      64 /* of one candidate */
#define VL2_TILE       384
#define QWEN_IMAGE_PAD 151655
#define QWEN_VIDEO_PAD 151656

/* In the published order, which decides ties; in tiles. */
static const uint8_t vl2_candidates[][2] = {
    {1, 1}, {1, 2}, {2, 1}, {1, 3}, {3, 1}, {1, 4}, {4, 1}, {2, 2}, {1, 5}, {5, 1}, {1, 6}, {6, 1},
    {2, 3}, {3, 2}, {1, 7}, {7, 1}, {1, 8}, {8, 1}, {2, 4}, {4, 2}, {1, 9}, {9, 1}, {3, 3},
};

/* ---- Values ------------------------------------------------------------------------------------
 */

/* Three numbers, one a colour. Absent: left as they are. */
static enum ek_status read_colours(const json_t *obj, struct ek_json_at at, const char *key,
                                   double min, double max, float out[3])
{
    const json_t *list, *item;

    if (json_object_get(obj, key) == NULL || json_is_null(json_object_get(obj, key)))
        return EK_OK;
    EK_TRY(ek_json_array(obj, at, key, &list));
    for (size_t i = 0; i < 3; i++) {
        item = json_array_get(list, i);
        if (json_array_size(list) != 3 || !json_is_number(item) ||
            !(json_number_value(item) >= min && json_number_value(item) <= max))
            return ek_error(EK_EFORMAT, "%s: %s%s must be 3 numbers of %g to %g", at.file,
                            at.prefix, key, min, max);
        out[i] = (float)json_number_value(item);
    }
    return EK_OK;
}

/* A number that config.json also says: refused where they differ. */
static enum ek_status same_number(const json_t *obj, struct ek_json_at at, const char *key,
                                  uint32_t config)
{
    uint64_t v = config;

    EK_TRY(ek_json_opt_u64(obj, at, key, 1, UINT32_MAX, &v));
    return v == config ? EK_OK
                       : ek_error(EK_EFORMAT, "%s: %s%s %llu, config.json says %u", at.file,
                                  at.prefix, key, (unsigned long long)v, config);
}

/* ---- VL2 ---------------------------------------------------------------------------------------
 */

static enum ek_status read_candidate(const json_t *pair, size_t i, struct ek_json_at at,
                                     struct ek_vl_rules *r)
{
    uint64_t tiles = 1;

    for (size_t side = 0; side < 2; side++) {
        json_int_t v = json_integer_value(json_array_get(pair, side));
        if (json_array_size(pair) != 2 || v < r->tile || v > EK_IMAGE_SIDE_MAX || v % r->tile != 0)
            return ek_error(EK_EFORMAT,
                            "%s: candidate_resolutions[%zu] must be two multiples of the tower's "
                            "%u",
                            at.file, i, r->tile);
        r->candidates[i][side] = (uint32_t)v;
        tiles *= (uint64_t)v / r->tile;
    }
    if (tiles > TILES_MAX)
        return ek_error(EK_EUNSUPPORTED, "%s: candidate_resolutions[%zu] is %llu tiles, at most %d",
                        at.file, i, (unsigned long long)tiles, TILES_MAX);
    return EK_OK;
}

static enum ek_status read_candidates(const json_t *obj, struct ek_json_at at,
                                      struct ek_vl_rules *r)
{
    const json_t *list, *pair;
    size_t i;

    EK_TRY(ek_json_array(obj, at, "candidate_resolutions", &list));
    if (json_array_size(list) == 0 || json_array_size(list) > EK_VL_CANDIDATES_MAX)
        return ek_error(EK_EFORMAT, "%s: %zu candidate_resolutions, must be 1 to %d", at.file,
                        json_array_size(list), EK_VL_CANDIDATES_MAX);
    json_array_foreach(list, i, pair)
    {
        EK_TRY(read_candidate(pair, i, at, r));
    }
    r->n_candidates = (uint32_t)i;
    if (r->candidates[0][0] != r->tile || r->candidates[0][1] != r->tile)
        return ek_error(EK_EFORMAT,
                        "%s: candidate_resolutions[0] is %u x %u, must be one tile of %u x %u",
                        at.file, r->candidates[0][0], r->candidates[0][1], r->tile, r->tile);
    return EK_OK;
}

static enum ek_status published_candidates(const char *where, struct ek_vl_rules *r)
{
    if (r->tile != VL2_TILE)
        return ek_error(EK_EFORMAT, "%s: candidate_resolutions are missing, and image_size is %u",
                        where, r->tile);
    for (size_t i = 0; i < EK_ARRAY_LEN(vl2_candidates); i++)
        for (size_t side = 0; side < 2; side++)
            r->candidates[i][side] = r->tile * vl2_candidates[i][side];
    r->n_candidates = EK_ARRAY_LEN(vl2_candidates);
    return EK_OK;
}

static enum ek_status read_order(const json_t *config, struct ek_json_at at, struct ek_vl_rules *r)
{
    const char *position = "head";

    EK_TRY(ek_json_opt_string(config, at, "global_view_pos", &position));
    if (strcmp(position, "head") != 0 && strcmp(position, "tail") != 0)
        return ek_error(EK_EUNSUPPORTED, "%s: global_view_pos \"%.20s\", must be head or tail",
                        at.file, position);
    r->global_last = position[0] == 't';
    return EK_OK;
}

static enum ek_status parse_vl2(const struct ek_vl_files *f, struct ek_vl_rules *r)
{
    struct ek_json_at config = {f->config_path, ""}, own = {f->processor_path, ""};
    const json_t *p = f->processor;
    bool normalise = true;

    for (int c = 0; c < 3; c++)
        r->mean[c] = r->std[c] = 0.5f;
    if (p) {
        EK_TRY(same_number(p, own, "patch_size", r->patch));
        EK_TRY(same_number(p, own, "downsample_ratio", r->merge));
        EK_TRY(read_colours(p, own, "image_mean", 0, 1, r->mean));
        EK_TRY(read_colours(p, own, "image_std", 1e-3, 1e3, r->std));
        EK_TRY(ek_json_opt_bool(p, own, "normalize", &normalise));
    }
    for (int c = 0; c < 3; c++) {
        r->fill[c] = (uint8_t)(r->mean[c] * 255);
        r->mean[c] = normalise ? r->mean[c] : 0;
        r->std[c] = normalise ? r->std[c] : 1;
    }
    EK_TRY(read_order(f->config, config, r));
    if (p && json_object_get(p, "candidate_resolutions"))
        return read_candidates(p, own, r);
    if (json_object_get(f->config, "candidate_resolutions"))
        return read_candidates(f->config, config, r);
    return published_candidates(f->config_path, r);
}

/* The published ids, for a configuration without a tokenizer. */
static int32_t published_vl2_token(uint32_t vocab)
{
    return vocab == 129280 ? 128815 : vocab == 102400 ? 100003 : -1;
}

/* The processor adds the tokens that the tokenizer lacks, the padding token first. */
static enum ek_status find_vl2_token(const struct ek_model *m, const char *dir,
                                     struct ek_vl_rules *r)
{
    char *path = ek_path_join(dir, "tokenizer.json");
    struct ek_tokenizer *t;
    enum ek_status st;

    if (path == NULL)
        return EK_ENOMEM;
    r->image_id = published_vl2_token(m->config.vocab);
    if (!ek_file_exists(path)) {
        free(path);
        return EK_OK;
    }
    st = ek_tokenizer_open(path, &t);
    free(path);
    if (st != EK_OK)
        return st;
    r->image_id = ek_tokenizer_id(t, "<image>");
    if (r->image_id < 0)
        r->image_id =
            (int32_t)ek_tokenizer_size(t) + (ek_tokenizer_id(t, "<｜▁pad▁｜>") < 0 ? 1 : 0);
    ek_tokenizer_free(t);
    return EK_OK;
}

/* ---- Qwen --------------------------------------------------------------------------------------
 */

static enum ek_status read_pixels(const json_t *p, struct ek_json_at at, struct ek_vl_rules *r)
{
    struct ek_json_at inner = {at.file, "size."};
    const json_t *size = json_object_get(p, "size");

    if (json_is_object(size)) { /* the newer spelling; the older one decides where both stand */
        EK_TRY(
            ek_json_opt_u64(size, inner, "shortest_edge", 1, EK_IMAGE_PIXELS_MAX, &r->min_pixels));
        EK_TRY(
            ek_json_opt_u64(size, inner, "longest_edge", 1, EK_IMAGE_PIXELS_MAX, &r->max_pixels));
    }
    EK_TRY(ek_json_opt_u64(p, at, "min_pixels", 1, EK_IMAGE_PIXELS_MAX, &r->min_pixels));
    EK_TRY(ek_json_opt_u64(p, at, "max_pixels", 1, EK_IMAGE_PIXELS_MAX, &r->max_pixels));
    if (r->min_pixels > r->max_pixels)
        return ek_error(EK_EFORMAT, "%s: min_pixels %llu, max_pixels %llu", at.file,
                        (unsigned long long)r->min_pixels, (unsigned long long)r->max_pixels);
    return EK_OK;
}

static enum ek_status read_id(const json_t *config, struct ek_json_at at, const char *key,
                              int32_t otherwise, int32_t *out)
{
    uint64_t v = (uint64_t)otherwise;

    EK_TRY(ek_json_opt_u64(config, at, key, 0, INT32_MAX, &v));
    *out = (int32_t)v;
    return EK_OK;
}

static enum ek_status parse_qwen(const struct ek_vl_files *f, struct ek_vl_rules *r)
{
    static const float mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
    static const float std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
    struct ek_json_at config = {f->config_path, ""}, own = {f->processor_path, ""};
    const json_t *p = f->processor;

    memcpy(r->mean, mean, sizeof(mean));
    memcpy(r->std, std, sizeof(std));
    r->min_pixels = 3136;
    r->max_pixels = 12845056;
    r->decode.upright = true;
    EK_TRY(read_id(f->config, config, "image_token_id", QWEN_IMAGE_PAD, &r->image_id));
    EK_TRY(read_id(f->config, config, "video_token_id", QWEN_VIDEO_PAD, &r->video_id));
    if (p == NULL)
        return EK_OK;
    EK_TRY(same_number(p, own, "patch_size", r->patch));
    EK_TRY(same_number(p, own, "merge_size", r->merge));
    EK_TRY(same_number(p, own, "temporal_patch_size", r->temporal));
    EK_TRY(read_colours(p, own, "image_mean", 0, 1, r->mean));
    EK_TRY(read_colours(p, own, "image_std", 1e-3, 1e3, r->std));
    return read_pixels(p, own, r);
}

/* ---- Both --------------------------------------------------------------------------------------
 */

enum ek_status ek_vl_rules_parse(const struct ek_config *c, const struct ek_vl_files *files,
                                 struct ek_vl_rules *out)
{
    struct ek_vl_rules r = {
        .kind = (int)c->vision,
        .patch = c->vision_patch,
        .merge = c->vision_merge,
        .temporal = c->vision_temporal,
        .tile = c->vision_image,
        .image_id = -1,
        .video_id = -1,
        .tokens_per_second = c->vision_tokens_per_second,
    };

    if (c->vision == EK_VISION_NONE)
        return ek_error(EK_EUNSUPPORTED, "a %s takes no pictures", c->architecture);
    if (c->vision == EK_VISION_VL2 && r.tile < r.patch)
        return ek_error(EK_EFORMAT, "%s: vision_config.image_size %u, patch_size %u",
                        files->config_path, r.tile, r.patch);
    if (c->vision == EK_VISION_QWEN25)
        r.window = c->vision_window / r.patch / r.merge;
    if (c->vision == EK_VISION_QWEN25 && r.window == 0)
        return ek_error(EK_EFORMAT, "%s: vision_config.window_size %u, a merged cell has %u",
                        files->config_path, c->vision_window, r.patch * r.merge);
    EK_TRY(c->vision == EK_VISION_VL2 ? parse_vl2(files, &r) : parse_qwen(files, &r));
    *out = r;
    return EK_OK;
}

static enum ek_status read_object(const char *path, json_t **out)
{
    if (!ek_file_exists(path))
        return EK_OK;
    EK_TRY(ek_json_read(path, FILE_MAX, out));
    return json_is_object(*out) ? EK_OK : ek_error(EK_EFORMAT, "%s: must be an object", path);
}

/* The folder of whatever ek_model_open was given. */
static char *directory_of(const char *path)
{
    struct stat sb;
    char *dir = ek_strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;

    if (dir == NULL || (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode)))
        return dir;
    if (slash == NULL) {
        free(dir);
        return ek_strdup(".");
    }
    slash[slash == dir ? 1 : 0] = '\0';
    return dir;
}

enum ek_status ek_vl_rules_open(const struct ek_model *m, struct ek_vl_rules *out)
{
    bool vl2 = m->config.vision == EK_VISION_VL2;
    char *dir = directory_of(m->path);
    char *config_path = dir ? ek_path_join(dir, "config.json") : NULL;
    char *processor_path =
        dir ? ek_path_join(dir, vl2 ? "processor_config.json" : "preprocessor_config.json") : NULL;
    json_t *config = NULL, *processor = NULL;
    struct ek_vl_files files = {.config_path = config_path, .processor_path = processor_path};
    struct ek_vl_rules r;
    enum ek_status st = config_path && processor_path ? EK_OK : EK_ENOMEM;

    if (st == EK_OK)
        st = read_object(config_path, &config);
    if (st == EK_OK)
        st = read_object(processor_path, &processor);
    files.config = config;
    files.processor = processor;
    if (st == EK_OK)
        st = ek_vl_rules_parse(&m->config, &files, &r);
    if (st == EK_OK && vl2)
        st = find_vl2_token(m, dir, &r);
    if (st == EK_OK)
        *out = r;
    json_decref(config);
    json_decref(processor);
    free(processor_path);
    free(config_path);
    free(dir);
    return st;
}
