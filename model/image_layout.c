/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures in a prompt: placeholders expanded, where each of their rows comes from, and the
 * positions of Qwen's three-rowed rotary embedding.
 */
#include "model/image_internal.h"
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

#define POSITION_MAX (INT32_MAX / 4) /* of tokens and of rotary positions */

struct layout {
    const struct ek_vl_rules *rules;
    const struct ek_visual *visuals;
    size_t n_visuals, total; /* total: tokens of the expanded prompt */
    bool expanded[2];        /* pictures, videos: ids has them in full */
    size_t next[2];          /* visual that the next placeholder of a kind belongs to */
    int32_t position;        /* Qwen: of the next token */
    struct ek_vl_prompt out; /* n_ids and n_rows grow */
};

/* ---- Which placeholders there are --------------------------------------------------------------
 */

static bool is_placeholder(const struct ek_vl_rules *r, int32_t id, bool *video)
{
    *video = id == r->video_id && r->video_id >= 0;
    return *video || (id == r->image_id && r->image_id >= 0);
}

/* The first visual of a kind from i on. */
static size_t visual_from(const struct layout *l, bool video, size_t i)
{
    while (i < l->n_visuals && l->visuals[i].video != video)
        i++;
    return i;
}

/* One placeholder for each, or as many as they have tokens. */
static enum ek_status count_kind(struct layout *l, const int32_t *ids, size_t n, bool video,
                                 uint64_t *tokens)
{
    const char *what = video ? "video" : "picture";
    uint64_t found = 0, visuals = 0, full = 0;
    bool kind;

    for (size_t i = 0; i < n; i++)
        found += is_placeholder(l->rules, ids[i], &kind) && kind == video;
    for (size_t i = 0; i < l->n_visuals; i++) {
        visuals += l->visuals[i].video == video;
        full += l->visuals[i].video == video ? l->visuals[i].n_tokens : 0;
    }
    if (found != visuals && found != full)
        return ek_error(EK_EUSAGE,
                        "the prompt has %llu %s placeholders for %llu %ss (%llu tokens in full)",
                        (unsigned long long)found, what, (unsigned long long)visuals, what,
                        (unsigned long long)full);
    l->expanded[video] = found == full;
    *tokens += full - found;
    return EK_OK;
}

static enum ek_status count_tokens(struct layout *l, const int32_t *ids, size_t n,
                                   uint64_t max_tokens)
{
    uint64_t total = n, of_visuals = 0;

    EK_TRY(count_kind(l, ids, n, false, &total));
    EK_TRY(count_kind(l, ids, n, true, &total));
    for (size_t i = 0; i < l->n_visuals; i++)
        of_visuals += l->visuals[i].n_tokens;
    if (max_tokens > 0 && total > max_tokens)
        return ek_error(EK_EUSAGE,
                        "a prompt of %llu tokens, %llu of them pictures, is over the context of "
                        "%llu",
                        (unsigned long long)total, (unsigned long long)of_visuals,
                        (unsigned long long)max_tokens);
    if (total > POSITION_MAX)
        return ek_error(EK_EUNSUPPORTED, "a prompt of %llu tokens, at most %d",
                        (unsigned long long)total, POSITION_MAX);
    l->total = (size_t)total;
    return EK_OK;
}

/* ---- Tokens ------------------------------------------------------------------------------------
 */

/* position: rows t, h, w; unused where the model has ordinary positions. */
static void put_token(struct layout *l, int32_t id, const int32_t position[3])
{
    size_t at = l->out.n_ids++;

    l->out.ids[at] = id;
    for (size_t row = 0; l->out.positions != NULL && row < 3; row++)
        l->out.positions[row * l->total + at] = position[row];
}

static void put_text(struct layout *l, int32_t id)
{
    put_token(l, id, (const int32_t[3]){l->position, l->position, l->position});
    l->position++;
}

/* A placeholder at the position, fed from a row. */
static void put_row(struct layout *l, int32_t id, enum ek_vl_source source, size_t row,
                    const int32_t position[3])
{
    l->out.rows[l->out.n_rows++] = (struct ek_vl_row){
        .token = (uint32_t)l->out.n_ids, .source = (uint8_t)source, .row = (uint32_t)row};
    put_token(l, id, position);
}

/* ---- VL2: rows of features, each ended by the newline ------------------------------------------
 */

static void put_vector(struct layout *l, enum ek_vl_source source)
{
    put_row(l, l->rules->image_id, source, 0, (const int32_t[3]){0});
}

/* h x w tiles, the first of which is tile `first`, as one mosaic. */
static void put_mosaic(struct layout *l, size_t first, uint32_t h, uint32_t w)
{
    size_t side = ek_vl2_side(l->rules);

    for (size_t y = 0; y < h * side; y++) {
        for (size_t x = 0; x < w * side; x++) {
            size_t tile = first + y / side * w + x / side;
            put_row(l, l->rules->image_id, EK_VL_FEATURE,
                    (tile * side + y % side) * side + x % side, (const int32_t[3]){0});
        }
        put_vector(l, EK_VL_NEWLINE);
    }
}

/* first: of the picture's tiles among those of all pictures. */
static void put_vl2(struct layout *l, const struct ek_visual *v, size_t first)
{
    size_t local = v->t > 1 ? first + 1 : first;

    if (l->rules->global_last)
        put_mosaic(l, local, v->h, v->w);
    else
        put_mosaic(l, first, 1, 1);
    put_vector(l, EK_VL_SEPARATOR);
    if (l->rules->global_last)
        put_mosaic(l, first, 1, 1);
    else
        put_mosaic(l, local, v->h, v->w);
}

/* ---- Qwen: a grid of merged cells --------------------------------------------------------------
 */

/* Position of slice t behind the first: in fp32 and in this order, as the models' releases. */
static float slice_offset(const struct layout *l, const struct ek_visual *v, uint32_t t)
{
    return (float)t * (float)v->seconds_per_slice * (float)l->rules->tokens_per_second;
}

/* The text goes on behind the greatest position of any row (transformers 4.49 to 4.57, with which
 * the models came). first: of the visual's features. */
static enum ek_status put_qwen(struct layout *l, const struct ek_visual *v, size_t first)
{
    int32_t id = v->video ? l->rules->video_id : l->rules->image_id, p = l->position;
    uint32_t h = v->h / l->rules->merge, w = v->w / l->rules->merge, longer = h > w ? h : w;
    float last = slice_offset(l, v, v->t - 1);

    if (!(p + (double)last + longer < POSITION_MAX))
        return ek_error(EK_EUNSUPPORTED, "a video reaches position %g, at most %d",
                        p + (double)last, POSITION_MAX);
    for (uint32_t t = 0; t < v->t; t++) {
        int32_t at = p + (int32_t)slice_offset(l, v, t);
        for (uint32_t i = 0; i < h * w; i++)
            put_row(l, id, EK_VL_FEATURE, first++,
                    (const int32_t[3]){at, p + (int32_t)(i / w), p + (int32_t)(i % w)});
    }
    l->position = p + ((uint32_t)last >= longer ? (int32_t)last + 1 : (int32_t)longer);
    return EK_OK;
}

/* ---- The whole ---------------------------------------------------------------------------------
 */

/* Features of the visuals before i. */
static size_t features_before(const struct layout *l, size_t i)
{
    size_t n = 0;

    for (size_t k = 0; k < i; k++)
        n += l->visuals[k].n_features;
    return n;
}

/* The visual of the placeholder ids[at]; *used: how many placeholders stand for it. */
static enum ek_status put_visual(struct layout *l, const int32_t *ids, size_t n, size_t at,
                                 bool video, size_t *used)
{
    size_t i = visual_from(l, video, l->next[video]), features = features_before(l, i);
    const struct ek_visual *v = &l->visuals[i];
    uint32_t side = ek_vl2_side(l->rules);

    l->next[video] = i + 1;
    *used = l->expanded[video] ? v->n_tokens : 1;
    for (size_t k = 0; k < *used; k++)
        if (at + k >= n || ids[at + k] != ids[at])
            return ek_error(EK_EUSAGE,
                            "the placeholders at token %zu are %zu in a row, the %s has %u tokens",
                            at, k, video ? "video" : "picture", v->n_tokens);
    if (l->rules->kind == EK_VISION_QWEN25)
        return put_qwen(l, v, features);
    put_vl2(l, v, features / side / side);
    return EK_OK;
}

static enum ek_status fill(struct layout *l, const int32_t *ids, size_t n)
{
    size_t used;
    bool video;

    for (size_t i = 0; i < n; i += used) {
        used = 1;
        if (is_placeholder(l->rules, ids[i], &video))
            EK_TRY(put_visual(l, ids, n, i, video, &used));
        else
            put_text(l, ids[i]);
    }
    return EK_OK;
}

static enum ek_status allocate(struct layout *l)
{
    size_t rows = 0;

    for (size_t i = 0; i < l->n_visuals; i++)
        rows += l->visuals[i].n_tokens;
    l->out.ids = ek_calloc(l->total, sizeof(*l->out.ids));
    l->out.rows = ek_calloc(rows ? rows : 1, sizeof(*l->out.rows));
    if (l->out.ids == NULL || l->out.rows == NULL)
        return EK_ENOMEM;
    if (l->rules->kind != EK_VISION_QWEN25)
        return EK_OK;
    l->out.positions = ek_calloc(l->total, 3 * sizeof(*l->out.positions));
    return l->out.positions ? EK_OK : EK_ENOMEM;
}

enum ek_status ek_vl_layout(const struct ek_vl_rules *rules, const int32_t *ids, size_t n_ids,
                            const struct ek_visual *visuals, size_t n_visuals, uint64_t max_tokens,
                            struct ek_vl_prompt *out)
{
    struct layout l = {.rules = rules, .visuals = visuals, .n_visuals = n_visuals};
    enum ek_status st;

    if (n_ids == 0 || n_visuals > EK_VL_ITEMS_MAX)
        return ek_error(EK_EUSAGE,
                        "%zu tokens with %zu pictures, must be at least 1 and at most %d", n_ids,
                        n_visuals, EK_VL_ITEMS_MAX);
    EK_TRY(count_tokens(&l, ids, n_ids, max_tokens));
    st = allocate(&l);
    if (st == EK_OK)
        st = fill(&l, ids, n_ids);
    if (st != EK_OK) {
        ek_vl_prompt_free(&l.out);
        return st;
    }
    l.out.delta = l.out.positions ? l.position - (int32_t)l.total : 0;
    *out = l.out;
    return EK_OK;
}

/* Sizes alone, so that a prompt that does not fit costs no pixels. */
static enum ek_status measure_all(const struct ek_vl_rules *rules, const struct ek_vl_item *items,
                                  size_t n, struct ek_visual *visuals)
{
    for (size_t i = 0; i < n; i++) {
        const struct ek_vl_item *item = &items[i];
        if (item->n_frames == 0)
            return ek_error(EK_EUSAGE, "picture %zu has no frames", i);
        EK_TRY(ek_vl_measure(rules, item->frames[0].width, item->frames[0].height, item->n_frames,
                             item->video, n, &visuals[i]));
        if (item->video)
            visuals[i].seconds_per_slice = item->seconds_per_frame * rules->temporal;
    }
    return EK_OK;
}

enum ek_status ek_vl_prompt(const struct ek_vl_rules *rules, const int32_t *ids, size_t n_ids,
                            const struct ek_vl_item *items, size_t n_items, uint64_t max_tokens,
                            struct ek_vl_prompt *out)
{
    struct ek_vl_prompt p = {0};
    struct ek_visual *visuals;
    enum ek_status st;

    if (n_items > EK_VL_ITEMS_MAX)
        return ek_error(EK_EUSAGE, "%zu pictures, at most %d", n_items, EK_VL_ITEMS_MAX);
    if ((visuals = ek_calloc(n_items + 1, sizeof(*visuals))) == NULL)
        return EK_ENOMEM;
    st = measure_all(rules, items, n_items, visuals);
    if (st == EK_OK)
        st = ek_vl_layout(rules, ids, n_ids, visuals, n_items, max_tokens, &p);
    p.visuals = visuals;
    p.n_visuals = n_items;
    for (size_t i = 0; i < n_items && st == EK_OK; i++)
        st = ek_vl_prepare(rules, &items[i], n_items, &visuals[i]);
    if (st == EK_OK)
        *out = p;
    else
        ek_vl_prompt_free(&p);
    return st;
}

void ek_vl_prompt_free(struct ek_vl_prompt *p)
{
    for (size_t i = 0; p->visuals != NULL && i < p->n_visuals; i++)
        ek_visual_free(&p->visuals[i]);
    free(p->visuals);
    free(p->ids);
    free(p->positions);
    free(p->rows);
    *p = (struct ek_vl_prompt){0};
}
