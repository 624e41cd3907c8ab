/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/history.h"

/* Leading tokens of a prompt that names tell apart. */
static size_t named(const struct ek_prompt *p)
{
    if (p->names != NULL)
        return p->n;
    if (p->embeds != NULL && p->embeds->n > 0)
        return p->embeds->tokens[0];
    return p->positions == NULL && p->delta == 0 ? p->n : 0;
}

static uint64_t name_of(const struct ek_prompt *p, size_t i)
{
    return p->names ? p->names[i] : (uint32_t)p->ids[i];
}

enum ek_status history_keep(struct history *h, const struct ek_prompt *p,
                            const struct ek_completion *out)
{
    size_t n = named(p), more = n == p->n && out->n > 0 ? out->n - 1 : 0;

    h->n = 0;
    EK_TRY(ek_grow((void **)&h->names, &h->cap, n + more + 1, sizeof(*h->names), (size_t)1 << 28));
    for (size_t i = 0; i < n; i++)
        h->names[i] = name_of(p, i);
    for (size_t i = 0; i < more; i++)
        h->names[n + i] = (uint32_t)out->ids[i];
    h->n = n + more;
    return EK_OK;
}

/* Tokens of the prompt that can be had from elsewhere: all but the last. */
static size_t most_of(const struct ek_prompt *p, size_t there)
{
    size_t most = named(p) < p->n ? named(p) : p->n - 1;

    return there < most ? there : most;
}

size_t history_common(const struct history *h, const struct ek_prompt *p)
{
    size_t most = h->open ? most_of(p, h->n) : 0, i = 0;

    while (i < most && h->names[i] == name_of(p, i))
        i++;
    return i;
}

size_t prompt_common(const struct ek_prompt *other, size_t held, const struct ek_prompt *p)
{
    size_t most = most_of(p, held < named(other) ? held : named(other)), i = 0;

    while (i < most && name_of(other, i) == name_of(p, i))
        i++;
    return i;
}
