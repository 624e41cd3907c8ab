/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Placements that others made as plans of ours, where they are: what a stopped search must not be
 * worse than.
 */
#include "planner/levels.h"

#include <math.h>
#include <string.h>

struct stage { /* what an assignment has on one device */
    int32_t first, last;
    uint32_t sides;
};

/* Runs of the chain by device; false where a device is visited twice. order: devices as the chain
 * visits them, then those of side modules alone. */
static bool visit_chain(const struct ek_problem *p, const struct ek_assignment *a,
                        struct stage stages[EK_PLAN_MAX_DEVICES],
                        uint32_t order[EK_PLAN_MAX_DEVICES], uint32_t *n)
{
    int32_t items = (int32_t)p->n_items;

    for (uint32_t d = 0; d < p->n_devices; d++)
        stages[d] = (struct stage){.first = items, .last = items - 1};
    for (int32_t i = 0; i < items; i++) {
        uint32_t d = a->device[p->first_item + (uint32_t)i];
        bool begins = *n == 0 || order[*n - 1] != d;
        if (begins && stages[d].first < items)
            return false;
        if (begins) {
            stages[d].first = i;
            order[(*n)++] = d;
        }
        stages[d].last = i;
    }
    return true;
}

/* False where a group of side modules is parted. */
static bool visit_sides(const struct ek_problem *p, const struct ek_assignment *a,
                        struct stage stages[EK_PLAN_MAX_DEVICES],
                        uint32_t order[EK_PLAN_MAX_DEVICES], uint32_t *n)
{
    for (uint32_t s = 0; s < p->n_sides; s++) {
        uint32_t d = a->device[p->sides[s].modules[0]];
        for (uint32_t j = 1; j < p->sides[s].n; j++)
            if (a->device[p->sides[s].modules[j]] != d)
                return false;
        if (stages[d].sides == 0 && stages[d].first > stages[d].last)
            order[(*n)++] = d;
        stages[d].sides |= 1u << s;
    }
    return true;
}

/* The column of one device, or n_columns: it does not fit, a rule forbids it, or it has no times.
 */
static size_t column_of(const struct ek_problem *p, uint32_t device, const struct stage *s)
{
    for (size_t i = p->start[s->first]; i < p->start[s->first + 1]; i++) {
        const struct ek_column *c = &p->columns[i];
        const struct ek_kind *k = &p->kinds[c->kind];
        if (c->last == s->last && c->sides == s->sides && k->tp == 1 &&
            k->group == p->devices[device].group)
            return i;
    }
    return p->n_columns;
}

/* What columns share: memories, the number of stages, devices that must be used, and links. */
static bool holds(const struct ek_problem *p, const struct ek_answer *a)
{
    uint64_t pools[EK_PLAN_MAX_POOLS] = {0};

    if ((p->max_stages && a->n > p->max_stages) || (p->use_all && a->n < p->n_devices))
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        const struct ek_column *c = &p->columns[a->columns[i]];
        int32_t pool = p->groups[p->kinds[c->kind].group].pool;
        if (pool >= 0 && (pools[pool] += c->total) > p->pools[pool])
            return false;
    }
    return !isinf(ek_score_of(p, a->columns, a->n).latency);
}

bool ek_plan_of(const struct ek_problem *p, const struct ek_assignment *a, struct ek_answer *out)
{
    struct stage stages[EK_PLAN_MAX_DEVICES];
    uint32_t order[EK_PLAN_MAX_DEVICES], n = 0;

    *out = (struct ek_answer){.kind = EK_ANSWER_UNKNOWN};
    if (!visit_chain(p, a, stages, order, &n) || !visit_sides(p, a, stages, order, &n))
        return false;
    for (; out->n < n; out->n++) {
        size_t c = column_of(p, order[out->n], &stages[order[out->n]]);
        if (c == p->n_columns)
            return false;
        out->columns[out->n] = (uint32_t)c;
    }
    return holds(p, out);
}
