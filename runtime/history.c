/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/history.h"

#include <string.h>

/* Leading tokens of a prompt that are neither pictures' nor behind them. */
static size_t plain(const struct ek_prompt *p)
{
    if (p->embeds != NULL && p->embeds->n > 0)
        return p->embeds->tokens[0];
    return p->positions == NULL && p->delta == 0 ? p->n : 0;
}

enum ek_status history_keep(struct history *h, const struct ek_prompt *p,
                            const struct ek_completion *out)
{
    size_t n = plain(p), more = n == p->n && out->n > 0 ? out->n - 1 : 0;

    h->n = 0;
    EK_TRY(ek_grow((void **)&h->ids, &h->cap, n + more + 1, sizeof(*h->ids), (size_t)1 << 28));
    memcpy(h->ids, p->ids, n * sizeof(*h->ids));
    if (more > 0)
        memcpy(h->ids + n, out->ids, more * sizeof(*h->ids));
    h->n = n + more;
    return EK_OK;
}

static size_t common(const int32_t *ids, size_t n, const struct ek_prompt *p)
{
    size_t most = plain(p), i = 0;

    most = most < p->n ? most : p->n - 1;
    most = n < most ? n : most;
    while (i < most && ids[i] == p->ids[i])
        i++;
    return i;
}

size_t history_common(const struct history *h, const struct ek_prompt *p)
{
    return h->open ? common(h->ids, h->n, p) : 0;
}

size_t prompt_common(const struct ek_prompt *other, size_t held, const struct ek_prompt *p)
{
    return common(other->ids, held < plain(other) ? held : plain(other), p);
}
