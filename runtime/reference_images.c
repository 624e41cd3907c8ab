/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures of a reference file: pixels, as decoded, and the positions of the prompt around them.
 */
#include "runtime/prompt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct source {
    const char *path;
    struct ek_safetensors *file;
};

static const struct ek_safetensors_entry *numbered(const struct source *s, const char *kind,
                                                   size_t n)
{
    char name[32];

    snprintf(name, sizeof(name), "%s.%zu", kind, n);
    return ek_safetensors_find(s->file, name);
}

static size_t count(const struct source *s, const char *kind)
{
    size_t n = 0;

    while (numbered(s, kind, n) != NULL)
        n++;
    return n;
}

/* U8 [frames (videos)][height][width][3] within the limits of pictures. */
static enum ek_status check(const struct source *s, const struct ek_safetensors_entry *e,
                            bool video)
{
    uint32_t dims = video ? 4 : 3;

    if (e->dtype != EK_U8 || e->n_dims != dims || e->shape[dims - 1] != 3)
        return ek_error(EK_EFORMAT,
                        "%s: %s must be U8 [%sheight, width, 3], got %s with %u "
                        "dimensions",
                        s->path, e->name, video ? "frames, " : "", ek_dtype_name(e->dtype),
                        e->n_dims);
    for (uint32_t i = dims - 3; i < dims - 1; i++)
        if (e->shape[i] == 0 || e->shape[i] > EK_IMAGE_SIDE_MAX)
            return ek_error(EK_EFORMAT, "%s: dimension %u of %s is %llu, from 1 to %u possible",
                            s->path, i, e->name, (unsigned long long)e->shape[i],
                            EK_IMAGE_SIDE_MAX);
    if (video && (e->shape[0] == 0 || e->shape[0] > EK_VL_FRAMES_MAX))
        return ek_error(EK_EFORMAT, "%s: %s has %llu frames, from 1 to %u possible", s->path,
                        e->name, (unsigned long long)e->shape[0], EK_VL_FRAMES_MAX);
    return EK_OK;
}

/* The frames of one entry into r->frames from r->n_frames on. */
static enum ek_status read_frames(const struct source *s, const struct ek_safetensors_entry *e,
                                  bool video, struct ek_reference *r)
{
    const uint64_t *size = e->shape + (video ? 1 : 0);
    uint64_t n = video ? e->shape[0] : 1, bytes = e->bytes / n;

    for (uint64_t i = 0; i < n; i++) {
        struct ek_image *to = &r->frames[r->n_frames];
        EK_TRY(ek_image_new((uint32_t)size[1], (uint32_t)size[0], to));
        r->n_frames++;
        EK_TRY(ek_safetensors_read(s->file, e, i * bytes, bytes, to->rgb));
    }
    return EK_OK;
}

static enum ek_status seconds_per_frame(const struct source *s, double *out)
{
    const char *text = ek_safetensors_meta(s->file, "seconds_per_grid");
    char *end = NULL;
    double v = text ? strtod(text, &end) : 0;

    if (text == NULL || *end != '\0' || !(v > 0) || !isfinite(v))
        return ek_error(EK_EFORMAT, "%s: a video, but seconds_per_grid is %s", s->path,
                        text ? text : "missing");
    *out = v / 2; /* a grid is two frames */
    return EK_OK;
}

static enum ek_status read_items(const struct source *s, const char *kind, bool video,
                                 struct ek_reference *r)
{
    size_t n = count(s, kind);

    for (size_t i = 0; i < n; i++) {
        const struct ek_safetensors_entry *e = numbered(s, kind, i);
        struct ek_vl_item *item = &r->items[r->n_items];
        *item = (struct ek_vl_item){
            .frames = r->frames + r->n_frames, .n_frames = video ? e->shape[0] : 1, .video = video};
        if (video)
            EK_TRY(seconds_per_frame(s, &item->seconds_per_frame));
        EK_TRY(read_frames(s, e, video, r));
        r->n_items++;
    }
    return EK_OK;
}

/* Checks every entry and counts frames. */
static enum ek_status measure(const struct source *s, const char *kind, bool video, size_t *items,
                              size_t *frames)
{
    size_t n = count(s, kind);

    for (size_t i = 0; i < n; i++) {
        const struct ek_safetensors_entry *e = numbered(s, kind, i);
        EK_TRY(check(s, e, video));
        *frames += video ? e->shape[0] : 1;
    }
    *items += n;
    if (*items > EK_VL_ITEMS_MAX)
        return ek_error(EK_EFORMAT, "%s: %zu pictures, at most %u", s->path, *items,
                        EK_VL_ITEMS_MAX);
    return EK_OK;
}

static enum ek_status read_position_ids(const struct source *s, struct ek_reference *r)
{
    const struct ek_safetensors_entry *e = ek_safetensors_find(s->file, "position_ids");
    size_t n = 3 * r->n_ids;
    enum ek_status st = EK_OK;
    int64_t *raw;

    if (e == NULL)
        return EK_OK;
    if (e->dtype != EK_I64 || e->n_dims != 2 || e->shape[0] != 3 || e->shape[1] != r->n_ids)
        return ek_error(EK_EFORMAT, "%s: position_ids must be I64 [3, %zu]", s->path, r->n_ids);
    raw = ek_calloc(n, sizeof(*raw));
    r->position_ids = ek_calloc(n, sizeof(*r->position_ids));
    if (raw == NULL || r->position_ids == NULL)
        st = EK_ENOMEM;
    else
        st = ek_safetensors_read(s->file, e, 0, e->bytes, raw);
    for (size_t i = 0; st == EK_OK && i < n; i++) {
        if (raw[i] < 0 || raw[i] > INT32_MAX)
            st = ek_error(EK_EFORMAT, "%s: position_ids[%zu] is %lld", s->path, i,
                          (long long)raw[i]);
        else
            r->position_ids[i] = (int32_t)raw[i];
    }
    free(raw);
    return st;
}

enum ek_status reference_read_images(const char *path, struct ek_safetensors *file,
                                     struct ek_reference *r)
{
    struct source s = {path, file};
    size_t items = 0, frames = 0;

    EK_TRY(measure(&s, "image", false, &items, &frames));
    EK_TRY(measure(&s, "video", true, &items, &frames));
    if (items > 0 && ((r->items = ek_calloc(items, sizeof(*r->items))) == NULL ||
                      (r->frames = ek_calloc(frames, sizeof(*r->frames))) == NULL))
        return EK_ENOMEM;
    EK_TRY(read_items(&s, "image", false, r));
    EK_TRY(read_items(&s, "video", true, r));
    return read_position_ids(&s, r);
}

void reference_free_images(struct ek_reference *r)
{
    for (size_t i = 0; i < r->n_frames; i++)
        ek_image_free(&r->frames[i]);
    free(r->frames);
    free(r->items);
    free(r->position_ids);
}

enum ek_status ek_reference_trace(const char *path, const char *module, float **rows, size_t *n,
                                  uint32_t *dim)
{
    struct ek_safetensors *file = NULL;
    const struct ek_safetensors_entry *e;
    char name[160];
    enum ek_status st;

    *rows = NULL;
    EK_TRY(ek_safetensors_open(path, &file));
    snprintf(name, sizeof(name), "trace.%s", module);
    e = ek_safetensors_find(file, name);
    if (e == NULL) {
        st = EK_OK;
    } else if (e->dtype != EK_F32 || e->n_dims < 2 || e->shape[e->n_dims - 1] == 0 ||
               e->shape[e->n_dims - 1] > UINT32_MAX) {
        st = ek_error(EK_EFORMAT, "%s: %s must be F32 rows", path, name);
    } else if ((*rows = ek_calloc(1, e->bytes ? e->bytes : 1)) == NULL) {
        st = EK_ENOMEM;
    } else {
        *dim = (uint32_t)e->shape[e->n_dims - 1];
        *n = e->bytes / sizeof(float) / *dim;
        st = ek_safetensors_read(file, e, 0, e->bytes, *rows);
    }
    ek_safetensors_close(file);
    if (st != EK_OK) {
        free(*rows);
        *rows = NULL;
    }
    return st;
}
