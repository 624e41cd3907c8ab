/* SPDX-License-Identifier: Apache-2.0 */
#include "server/text.h"

#include <stdlib.h>
#include <string.h>

enum ek_status text_add(struct text *t, const char *data, size_t n, size_t max)
{
    if (n >= max - t->n)
        return ek_error(EK_EFORMAT, "a text of more than %zu bytes", max);
    EK_TRY(ek_grow((void **)&t->data, &t->cap, t->n + n + 1, 1, max));
    memcpy(t->data + t->n, data, n);
    t->n += n;
    t->data[t->n] = '\0';
    return EK_OK;
}

enum ek_status text_add_json(struct text *t, json_t *v, size_t open, size_t max)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    enum ek_status st = text ? text_add(t, text, strlen(text) - open, max)
                             : ek_error(EK_ENOMEM, "no memory for an answer");

    free(text);
    json_decref(v);
    return st;
}
