/* SPDX-License-Identifier: Apache-2.0 */
#include "server/text.h"

#include <string.h>

enum ek_status text_add(struct text *t, const char *data, size_t n, size_t max)
{
    EK_TRY(ek_grow((void **)&t->data, &t->cap, t->n + n + 1, 1, max));
    memcpy(t->data + t->n, data, n);
    t->n += n;
    t->data[t->n] = '\0';
    return EK_OK;
}
