/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Memories that devices share, for the dynamic program: see shared.h.
 */
#include "planner/shared.h"

#include <stdlib.h>
#include <string.h>

/* Of one state, over all memories but one: more are joined, which asks for less. */
#define MAX_NEEDS 24
#define MAX_LEFT  4096

static uint32_t pool_of(const struct ek_shared *s, const struct ek_open *o)
{
    int32_t pool = s->b->p->groups[s->b->p->kinds[o->kind].group].pool;

    return pool < 0 ? s->b->p->n_pools : (uint32_t)pool;
}

static uint64_t *most_at(const struct ek_shared *s, uint32_t pool, uint32_t pos)
{
    return s->most[pool] + (size_t)pos * (s->devices[pool] + 1);
}

/* ---- The most that could still come -------------------------------------------------------------
 */
static void most_from(const struct ek_shared *s, uint32_t pool, uint32_t pos)
{
    const struct ek_bound *b = s->b;
    uint64_t *here = most_at(s, pool, pos);

    for (uint32_t left = 0; left <= s->devices[pool]; left++)
        for (size_t i = b->start[pos]; i < b->start[pos + 1]; i++) {
            const struct ek_open *o = &b->open[i];
            uint32_t tp = pool_of(s, o) == pool ? b->p->kinds[o->kind].tp : 0;
            uint64_t bytes;
            if (tp > left || (tp == 0 && o->end == pos))
                continue;
            bytes = b->p->columns[o->column].total * tp + most_at(s, pool, o->end)[left - tp];
            here[left] = bytes > here[left] ? bytes : here[left];
        }
}

enum ek_status ek_shared_new(const struct ek_bound *b, struct ek_shared *s)
{
    const struct ek_problem *p = b->p;
    size_t n = p->n_items + 1;

    *s = (struct ek_shared){.b = b};
    for (uint32_t g = 0; g < p->n_groups; g++)
        s->devices[p->groups[g].pool < 0 ? (int32_t)p->n_pools : p->groups[g].pool] +=
            p->groups[g].count;
    for (uint32_t pool = 0; pool < p->n_pools; pool++) {
        s->most[pool] = ek_calloc(n * (s->devices[pool] + 1), sizeof(uint64_t));
        if (s->most[pool] == NULL)
            return EK_ENOMEM;
        for (size_t pos = n; pos-- > 0;)
            most_from(s, pool, (uint32_t)pos);
    }
    return EK_OK;
}

void ek_shared_free(struct ek_shared *s)
{
    for (uint32_t i = 0; i < EK_PLAN_MAX_POOLS; i++)
        free(s->most[i]);
    free(s->needs);
    free(s->n_needs);
    free(s->least);
}

/* ---- What the rest needs ------------------------------------------------------------------------
 * Of each position and number of devices left of each memory the combinations of bytes that let the
 * chain be completed, were all devices of a memory as good as the best of them. */
static bool within(const struct ek_shared *s, const struct ek_shared_bytes *a,
                   const struct ek_shared_bytes *b)
{
    for (uint32_t i = 0; i < s->b->p->n_pools; i++)
        if (a->of[i] > b->of[i])
            return false;
    return true;
}

/* What has to be given up of a and b when one stands for both, as parts of the memories. */
static double apart(const struct ek_shared *s, const struct ek_shared_bytes *a,
                    const struct ek_shared_bytes *b)
{
    double sum = 0;

    for (uint32_t i = 0; i < s->b->p->n_pools; i++) {
        double d = (double)a->of[i] - (double)b->of[i];
        sum += (d < 0 ? -d : d) / ((double)s->b->p->pools[i] + 1);
    }
    return sum;
}

/* Takes it in among n unless one as good is there; those that it beats go. */
static void add_need(const struct ek_shared *s, struct ek_shared_bytes v,
                     struct ek_shared_bytes *list, uint32_t *n)
{
    uint32_t kept = 0, close = 0;

    for (uint32_t i = 0; i < *n; i++)
        if (within(s, &list[i], &v))
            return;
    for (uint32_t i = 0; i < *n; i++)
        if (!within(s, &v, &list[i]))
            list[kept++] = list[i];
    *n = kept;
    if (kept < s->max_needs) {
        list[(*n)++] = v;
        return;
    }
    for (uint32_t i = 1; i < kept; i++)
        close = apart(s, &v, &list[i]) < apart(s, &v, &list[close]) ? i : close;
    for (uint32_t i = 0; i < s->b->p->n_pools; i++)
        v.of[i] = v.of[i] < list[close].of[i] ? v.of[i] : list[close].of[i];
    list[close] = list[--*n];
    add_need(s, v, list, n);
}

/* Least bytes of a stage from pos on by where it ends, what it draws from, and its degree. */
static size_t least_at(uint32_t end, uint32_t tp)
{
    return (size_t)end * (EK_PLAN_MAX_TP + 1) + tp;
}

static void find_least(struct ek_shared *s, uint32_t pos)
{
    const struct ek_bound *b = s->b;

    memset(s->least, 0xff, least_at(b->p->n_items + 1, 0) * sizeof(*s->least));
    for (size_t i = b->start[pos]; i < b->start[pos + 1]; i++) {
        const struct ek_open *o = &b->open[i];
        uint32_t pool = pool_of(s, o), tp = b->p->kinds[o->kind].tp;
        size_t bytes = pool < b->p->n_pools ? b->p->columns[o->column].total * tp : 0;
        size_t *least = &s->least[least_at(o->end, tp)][pool];
        *least = bytes < *least ? bytes : *least;
    }
}

/* Stages of one kind of end and degree, with so many devices left. */
static void need_behind(struct ek_shared *s, uint32_t end, uint32_t tp, uint32_t pool, uint32_t at,
                        struct ek_shared_bytes *list, uint32_t *n)
{
    const struct ek_problem *p = s->b->p;
    size_t behind = (size_t)end * s->n_left + at - tp * s->stride[pool];
    size_t bytes = s->least[least_at(end, tp)][pool];

    for (uint32_t i = 0; i < s->n_needs[behind]; i++) {
        struct ek_shared_bytes v = s->needs[behind * s->max_needs + i];
        if (pool < p->n_pools)
            v.of[pool] += bytes;
        if (pool == p->n_pools || v.of[pool] <= p->pools[pool])
            add_need(s, v, list, n);
    }
}

static void need_from(struct ek_shared *s, uint32_t pos, uint32_t at)
{
    size_t here = (size_t)pos * s->n_left + at;

    for (uint32_t end = pos + 1; end <= s->b->p->n_items; end++)
        for (uint32_t tp = 1; tp <= EK_PLAN_MAX_TP; tp *= 2)
            for (uint32_t pool = 0; pool <= s->b->p->n_pools; pool++) {
                uint32_t left = at / s->stride[pool] % (s->devices[pool] + 1);
                if (tp <= left && s->least[least_at(end, tp)][pool] != SIZE_MAX)
                    need_behind(s, end, tp, pool, at, s->needs + here * s->max_needs,
                                &s->n_needs[here]);
            }
}

enum ek_status ek_shared_need(struct ek_shared *s)
{
    const struct ek_problem *p = s->b->p;
    uint32_t n = 1;
    bool full = false;

    for (uint32_t i = 0; i < p->n_pools; i++)
        full = full || most_at(s, i, 0)[s->devices[i]] > p->pools[i];
    if (!full)
        return EK_OK;
    for (uint32_t i = 0; i <= p->n_pools; i++) {
        s->stride[i] = n;
        n *= s->devices[i] + 1;
        if (n > MAX_LEFT)
            return EK_OK;
    }
    s->n_left = n;
    s->max_needs = p->n_pools > 1 ? MAX_NEEDS / (p->n_pools - 1) : 1;
    s->n_needs = ek_calloc((size_t)(p->n_items + 1) * n, sizeof(*s->n_needs));
    s->needs = ek_calloc((size_t)(p->n_items + 1) * n * s->max_needs, sizeof(*s->needs));
    s->least = ek_calloc(least_at(p->n_items + 1, 0), sizeof(*s->least));
    if (!s->n_needs || !s->needs || !s->least)
        return EK_ENOMEM;
    for (uint32_t at = 0; at < n; at++)
        s->n_needs[(size_t)p->n_items * n + at] = 1; /* nothing */
    for (uint32_t pos = p->n_items; pos-- > 0;) {
        find_least(s, pos);
        for (uint32_t at = 0; at < n; at++)
            need_from(s, pos, at);
    }
    return EK_OK;
}

static bool fits(const struct ek_shared *s, uint32_t pos, const uint32_t *left,
                 const struct ek_shared_bytes *used)
{
    const struct ek_problem *p = s->b->p;
    struct ek_shared_bytes room = {{0}};
    size_t at = (size_t)pos * s->n_left;

    for (uint32_t i = 0; i <= p->n_pools; i++)
        at += left[i] * s->stride[i];
    for (uint32_t i = 0; i < p->n_pools; i++)
        room.of[i] = p->pools[i] - used->of[i];
    for (uint32_t i = 0; i < s->n_needs[at]; i++)
        if (within(s, &s->needs[at * s->max_needs + i], &room))
            return true;
    return false;
}

bool ek_shared_settle(const struct ek_shared *s, uint32_t pos, const uint32_t *left,
                      struct ek_shared_bytes *used)
{
    if (s->n_left && !fits(s, pos, left, used))
        return false;
    for (uint32_t i = 0; i < s->b->p->n_pools; i++)
        if (used->of[i] + most_at(s, i, pos)[left[i]] <= s->b->p->pools[i])
            used->of[i] = 0;
    return true;
}
