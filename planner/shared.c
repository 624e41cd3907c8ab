/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Memories that devices share, for the dynamic program: see shared.h.
 */
#include "planner/shared.h"

#include <stdlib.h>
#include <string.h>

/* Of one state: more are joined, which asks for less. As many as are made in a second or so, */
#define MAX_NEEDS 64 /* ... at most */
#define ALL_NEEDS (1u << 18)
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
 * chain be completed, were all devices of a memory as good as the best of them. Memories that are
 * alike stand in one order, most devices left first, then least bytes: no permutation is kept. */
static bool about_equal(uint64_t a, uint64_t b)
{
    return (a < b ? b - a : a - b) <= (a < b ? b : a) / 100;
}

/* Alike: as many devices in about as many bytes that hold about as much. Each counts as the best of
 * them, so that those that differ more had better stay apart. */
static void find_alike(struct ek_shared *s)
{
    const uint64_t *pools = s->b->p->pools;
    uint32_t n = s->b->p->n_pools;

    for (uint32_t i = 0; i <= n; i++)
        for (uint32_t k = s->like[i] = 0; k <= i; k++)
            if (k == i ||
                (i < n && s->like[k] == k && s->devices[k] == s->devices[i] &&
                 about_equal(pools[k], pools[i]) &&
                 about_equal(most_at(s, k, 0)[s->devices[k]], most_at(s, i, 0)[s->devices[i]]))) {
                s->like[i] = k;
                break;
            }
    for (uint32_t i = 0; i < n; i++)
        if (pools[i] > s->room[s->like[i]])
            s->room[s->like[i]] = pools[i];
}

/* Puts the memories that are alike in their order. */
static void put_in_order(const struct ek_shared *s, uint32_t *left, struct ek_shared_bytes *v)
{
    for (uint32_t i = 1; i < s->b->p->n_pools; i++)
        for (uint32_t k = 0; k < i; k++)
            if (s->like[k] == s->like[i] &&
                (left[i] > left[k] || (left[i] == left[k] && v->of[i] < v->of[k]))) {
                uint32_t devices = left[i];
                uint64_t bytes = v->of[i];
                left[i] = left[k];
                left[k] = devices;
                v->of[i] = v->of[k];
                v->of[k] = bytes;
            }
}

static size_t index_of(const struct ek_shared *s, const uint32_t *left)
{
    size_t at = 0;

    for (uint32_t i = 0; i <= s->b->p->n_pools; i++)
        at += (size_t)left[i] * s->stride[i];
    return at;
}

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
        size_t *least = &s->least[least_at(o->end, tp)][s->like[pool]];
        *least = bytes < *least ? bytes : *least;
    }
}

/* A stage that ends there on so many devices of a memory, before what is needed behind it: of those
 * that are alike it may be any that has as many left behind it. */
static void need_behind(struct ek_shared *s, uint32_t end, uint32_t tp, uint32_t pool,
                        const uint32_t *left, struct ek_shared_bytes *list, uint32_t *n)
{
    uint32_t after[EK_PLAN_MAX_POOLS + 1], before[EK_PLAN_MAX_POOLS + 1];
    size_t behind, bytes = s->least[least_at(end, tp)][s->like[pool]];
    struct ek_shared_bytes none = {{0}};

    memcpy(after, left, sizeof(after));
    after[pool] -= tp;
    put_in_order(s, after, &none);
    behind = (size_t)end * s->n_left + index_of(s, after);
    for (uint32_t k = 0; k <= s->b->p->n_pools; k++) {
        if (s->like[k] != s->like[pool] || after[k] != left[pool] - tp)
            continue;
        for (uint32_t i = 0; i < s->n_needs[behind]; i++) {
            struct ek_shared_bytes v = s->needs[behind * s->max_needs + i];
            memcpy(before, after, sizeof(before));
            before[k] += tp;
            if (k < s->b->p->n_pools && (v.of[k] += bytes) > s->room[s->like[k]])
                continue;
            put_in_order(s, before, &v);
            add_need(s, v, list, n);
        }
    }
}

/* Is there one before it that is alike and has as many devices left? */
static bool repeated(const struct ek_shared *s, const uint32_t *left, uint32_t pool)
{
    for (uint32_t k = 0; k < pool; k++)
        if (s->like[k] == s->like[pool] && left[k] == left[pool])
            return true;
    return false;
}

/* Devices left of each memory; false: the same in another order stands for it. */
static bool read_left(const struct ek_shared *s, uint32_t at, uint32_t *left)
{
    uint32_t ordered[EK_PLAN_MAX_POOLS + 1];
    struct ek_shared_bytes none = {{0}};

    for (uint32_t i = 0; i <= s->b->p->n_pools; i++)
        ordered[i] = left[i] = at / s->stride[i] % (s->devices[i] + 1);
    put_in_order(s, ordered, &none);
    return index_of(s, ordered) == at;
}

static void need_from(struct ek_shared *s, uint32_t pos, uint32_t at)
{
    size_t here = (size_t)pos * s->n_left + at;
    uint32_t left[EK_PLAN_MAX_POOLS + 1];

    if (!read_left(s, at, left))
        return;
    for (uint32_t end = pos + 1; end <= s->b->p->n_items; end++)
        for (uint32_t tp = 1; tp <= EK_PLAN_MAX_TP; tp *= 2)
            for (uint32_t pool = 0; pool <= s->b->p->n_pools; pool++)
                if (tp <= left[pool] && !repeated(s, left, pool) &&
                    s->least[least_at(end, tp)][s->like[pool]] != SIZE_MAX)
                    need_behind(s, end, tp, pool, left, s->needs + here * s->max_needs,
                                &s->n_needs[here]);
}

static uint32_t most_needs(const struct ek_shared *s)
{
    uint32_t left[EK_PLAN_MAX_POOLS + 1], n = 0, each;

    if (s->b->p->n_pools == 1)
        return 1;
    for (uint32_t at = 0; at < s->n_left; at++)
        n += read_left(s, at, left);
    each = ALL_NEEDS / (n * s->b->p->n_items);
    return each > MAX_NEEDS ? MAX_NEEDS : each > 0 ? each : 1;
}

enum ek_status ek_shared_need(struct ek_shared *s, struct ek_effort *e)
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
    find_alike(s);
    s->n_left = n;
    s->max_needs = most_needs(s);
    s->n_needs = ek_calloc((size_t)(p->n_items + 1) * n, sizeof(*s->n_needs));
    s->needs = ek_calloc((size_t)(p->n_items + 1) * n * s->max_needs, sizeof(*s->needs));
    s->least = ek_calloc(least_at(p->n_items + 1, 0), sizeof(*s->least));
    if (!s->n_needs || !s->needs || !s->least)
        return EK_ENOMEM;
    for (uint32_t at = 0; at < n; at++)
        s->n_needs[(size_t)p->n_items * n + at] = 1; /* nothing */
    for (uint32_t pos = p->n_items; pos-- > 0;) {
        find_least(s, pos);
        for (uint32_t at = 0; at < n && !ek_effort_over(e); at++)
            need_from(s, pos, at);
    }
    if (ek_effort_over(e)) /* what is missing would look as if nothing fitted */
        s->n_left = 0;
    return EK_OK;
}

static bool fits(const struct ek_shared *s, uint32_t pos, const uint32_t *devices,
                 const struct ek_shared_bytes *used)
{
    const struct ek_problem *p = s->b->p;
    struct ek_shared_bytes room = {{0}};
    uint32_t left[EK_PLAN_MAX_POOLS + 1];
    size_t at;

    memcpy(left, devices, sizeof(left));
    for (uint32_t i = 0; i < p->n_pools; i++)
        room.of[i] = p->pools[i] - used->of[i];
    put_in_order(s, left, &room);
    at = (size_t)pos * s->n_left + index_of(s, left);
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
