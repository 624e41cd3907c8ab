/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/pictures.h"

#include <stdlib.h>
#include <string.h>

static size_t count(const struct ek_args *a, const char *name)
{
    size_t n = 0;

    for (size_t i = 0; i < a->n_values; i++)
        n += strcmp(a->values[i].option->name, name) == 0;
    return n;
}

bool ek_pictures_given(const struct ek_args *args)
{
    return ek_arg(args, "image") != NULL || ek_arg(args, "frame") != NULL;
}

/* Files of an option to frames from p->n_frames on. */
static enum ek_status read_files(const struct ek_args *a, const char *name, struct ek_pictures *p)
{
    for (size_t i = 0; i < a->n_values; i++)
        if (strcmp(a->values[i].option->name, name) == 0) {
            EK_TRY(ek_image_read(a->values[i].value, &p->rules.decode, &p->frames[p->n_frames]));
            p->n_frames++;
        }
    return EK_OK;
}

/* All --frame as one video. */
static enum ek_status add_video(const struct ek_args *args, size_t n, struct ek_pictures *p)
{
    const struct ek_image *first = &p->frames[p->n_frames];
    double fps = 2;

    if (n == 0)
        return EK_OK;
    EK_TRY(ek_arg_double(args, "fps", 0.001, 1000, &fps));
    EK_TRY(read_files(args, "frame", p));
    for (size_t i = 1; i < n; i++)
        if (first[i].width != first->width || first[i].height != first->height)
            return ek_error(EK_EUSAGE, "--frame: frame %zu is %u x %u, the first is %u x %u", i,
                            first[i].width, first[i].height, first->width, first->height);
    p->items[p->n_items++] = (struct ek_vl_item){
        .frames = first, .n_frames = n, .video = true, .seconds_per_frame = 1 / fps};
    p->n_videos = 1;
    return EK_OK;
}

/* Instead of what the model's processor does with transparency and EXIF. */
static enum ek_status read_form(const struct ek_args *args, struct ek_image_options *o)
{
    const char *form = ek_arg(args, "image-as");

    if (form == NULL)
        return EK_OK;
    *o = (struct ek_image_options){.white = strcmp(form, "white") == 0,
                                   .upright = strcmp(form, "upright") == 0};
    return o->white || o->upright || strcmp(form, "stored") == 0
               ? EK_OK
               : ek_error(EK_EUSAGE, "--image-as %s: must be stored, upright or white", form);
}

enum ek_status ek_pictures_open(const struct ek_args *args, const struct ek_model *m,
                                struct ek_pictures *p)
{
    size_t n = count(args, "image"), n_frames = count(args, "frame");

    *p = (struct ek_pictures){.n_images = n};
    EK_TRY(ek_vl_rules_open(m, &p->rules));
    EK_TRY(read_form(args, &p->rules.decode));
    if ((p->frames = ek_calloc(n + n_frames, sizeof(*p->frames))) == NULL)
        return EK_ENOMEM;
    EK_TRY(read_files(args, "image", p));
    for (size_t i = 0; i < n; i++)
        p->items[p->n_items++] = (struct ek_vl_item){.frames = &p->frames[i], .n_frames = 1};
    return add_video(args, n_frames, p);
}

enum ek_status ek_pictures_tokens(const struct ek_pictures *p, size_t n_ids, uint64_t *out)
{
    *out = n_ids;
    for (size_t i = 0; i < p->n_items; i++) {
        const struct ek_vl_item *item = &p->items[i];
        struct ek_visual v;
        EK_TRY(ek_vl_measure(&p->rules, item->frames->width, item->frames->height, item->n_frames,
                             item->video, p->n_items, &v));
        *out += v.n_tokens;
    }
    return EK_OK;
}

enum ek_status ek_pictures_encode(struct ek_pictures *p, struct ek_engine *e, const int32_t *ids,
                                  size_t n_ids)
{
    uint64_t from = ek_now_ns();

    EK_TRY(ek_vision_prompt_open(e, &p->rules, ids, n_ids, p->items, p->n_items, &p->prompt));
    p->seconds = (double)(ek_now_ns() - from) * 1e-9;
    return EK_OK;
}

json_t *ek_pictures_json(const struct ek_pictures *p)
{
    json_t *all = json_array();

    for (size_t i = 0; i < p->prompt.vl.n_visuals; i++) {
        const struct ek_visual *v = &p->prompt.vl.visuals[i];
        json_array_append_new(all, json_pack("{sI sI s[II] sI}", "width", (json_int_t)v->width,
                                             "height", (json_int_t)v->height, "resized",
                                             (json_int_t)v->to_width, (json_int_t)v->to_height,
                                             "tokens", (json_int_t)v->n_tokens));
    }
    return all;
}

void ek_pictures_close(struct ek_pictures *p)
{
    ek_vision_prompt_close(&p->prompt);
    for (size_t i = 0; i < p->n_frames; i++)
        ek_image_free(&p->frames[i]);
    free(p->frames);
    *p = (struct ek_pictures){0};
}
