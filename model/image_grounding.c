/* SPDX-License-Identifier: Apache-2.0
 *
 * Boxes in DeepSeek-VL2's answers: a model's text, so anything may stand there; what is no label
 * with boxes is left out.
 */
#include "model/image_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GRID      999 /* the boxes' coordinates are 0 .. 999 over the picture */
#define BOXES_MAX 1024

struct box {
    uint32_t at[4]; /* x1, y1, x2, y2 */
};

/* White space, then the character: moves behind it. */
static bool take(const char **s, char c)
{
    const char *p = *s + strspn(*s, " \t\r\n");

    if (*p != c)
        return false;
    *s = p + 1;
    return true;
}

static bool take_number(const char **s, uint32_t *out)
{
    const char *p = *s + strspn(*s, " \t\r\n");
    size_t n = strspn(p, "0123456789");

    if (n == 0 || n > 4)
        return false;
    *out = (uint32_t)strtoul(p, NULL, 10);
    *s = p + n;
    return *out <= GRID;
}

static bool take_box(const char **s, struct box *b)
{
    if (!take(s, '['))
        return false;
    for (int i = 0; i < 4; i++)
        if ((i > 0 && !take(s, ',')) || !take_number(s, &b->at[i]))
            return false;
    return take(s, ']');
}

/* [[...], ...] up to end; 0: malformed. */
static size_t take_boxes(const char *s, const char *end, struct box *boxes)
{
    size_t n = 0;

    if (!take(&s, '['))
        return 0;
    do {
        if (n == BOXES_MAX || !take_box(&s, &boxes[n++]))
            return 0;
    } while (take(&s, ','));
    if (!take(&s, ']'))
        return 0;
    s += strspn(s, " \t\r\n");
    return s == end ? n : 0;
}

/* One coordinate list of every box; scaled where width > 0. */
static json_t *boxes_json(const struct box *boxes, size_t n, uint32_t width, uint32_t height)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++) {
        json_t *box = json_array();
        for (int k = 0; k < 4; k++) {
            uint32_t side = k % 2 ? height : width;
            json_int_t v = width ? (json_int_t)lround(boxes[i].at[k] / (double)GRID * side)
                                 : (json_int_t)boxes[i].at[k];
            json_array_append_new(box, json_integer(v));
        }
        json_array_append_new(list, box);
    }
    return list;
}

static void add_object(json_t *all, const char *label, size_t n_label, const struct box *boxes,
                       size_t n, uint32_t width, uint32_t height)
{
    json_t *object =
        json_pack("{s:s%, s:o}", "label", label, n_label, "boxes", boxes_json(boxes, n, 0, 0));

    if (width > 0 && height > 0)
        json_object_set_new(object, "pixels", boxes_json(boxes, n, width, height));
    json_array_append_new(all, object);
}

enum ek_status ek_grounding_parse(const char *text, uint32_t width, uint32_t height, json_t **out)
{
    static const char ref[] = "<|ref|>", end_ref[] = "<|/ref|>";
    static const char det[] = "<|det|>", end_det[] = "<|/det|>";
    struct box *boxes = ek_calloc(BOXES_MAX, sizeof(*boxes));
    json_t *all = json_array();
    const size_t gap = sizeof(end_ref) - 1;
    const char *label, *end_label, *list, *end, *inner;

    if (boxes == NULL || all == NULL) {
        free(boxes);
        json_decref(all);
        return ek_error(EK_ENOMEM, "no memory for an answer's boxes");
    }
    while ((label = strstr(text, ref)) != NULL) {
        text = label + sizeof(ref) - 1;
        end_label = strstr(text, end_ref);
        list = end_label ? strstr(end_label, det) : NULL;
        end = list ? strstr(list, end_det) : NULL;
        if (end == NULL)
            break;
        inner = strstr(text, ref);
        if ((inner && inner < end_label) ||
            end_label + gap + strspn(end_label + gap, " \t\r\n") != list)
            continue; /* a label that is not closed, or has no boxes of its own */
        size_t n = take_boxes(list + sizeof(det) - 1, end, boxes);
        if (n > 0)
            add_object(all, text, (size_t)(end_label - text), boxes, n, width, height);
        text = end;
    }
    free(boxes);
    *out = all;
    return EK_OK;
}
