/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * From columns (device groups) to stages on named devices, with the times and memory predicted.
 */
#include "planner/planner.h"

#include <math.h>
#include <string.h>

const char *ek_pdevice_name(const struct ek_problem *p, uint32_t d)
{
    return p->costs->classes[p->devices[d].cls].devices[p->devices[d].member].name;
}

static void add_use(struct ek_memory_use *a, const struct ek_memory_use *b)
{
    a->weights += b->weights;
    a->kv += b->kv;
    a->activations += b->activations;
    a->workspace += b->workspace;
    a->comm += b->comm;
    a->overhead += b->overhead;
    a->total += b->total;
}

static void stage_times(const struct ek_problem *p, struct ek_placed_stage *s, uint32_t kind)
{
    bool outside = false;

    ek_problem_times(p, kind, s->first, s->last, s->sides, &s->prefill_s, &s->decode_s, &outside);
    s->prefill_s *= p->micro_batches;
}

/* Devices of a group are taken in order, columns in the order of the chain. */
static void take_devices(const struct ek_problem *p, uint32_t kind, uint32_t *next,
                         struct ek_placed_stage *s)
{
    const struct ek_group *g = &p->groups[p->kinds[kind].group];

    for (uint32_t i = 0; i < p->kinds[kind].tp; i++)
        s->devices[s->n_devices++] = g->members[next[p->kinds[kind].group]++];
}

static double step_hop(const struct ek_problem *p, int32_t boundary, uint32_t from, uint32_t to)
{
    size_t k = (size_t)from * p->n_kinds + to;

    return p->hop_alpha[k] + p->group_size * p->boundary[boundary] * p->hop_inv_beta[k];
}

/* A group's next step begins when the host has its ids from the last stage. */
static double returning(const struct ek_problem *p, const struct ek_placement *out)
{
    if (out->n_stages == 0)
        return 0;
    return p->costs->classes[p->devices[out->stages[out->n_stages - 1].devices[0]].cls].return_s;
}

static void predict(const struct ek_problem *p, struct ek_placement *out)
{
    const struct ek_workload *w = &p->workload;
    uint32_t chunk = w->prefill_chunk;
    double chunks = chunk ? (double)w->batch * ((ek_workload_prompt(w) + chunk - 1) / chunk) : 1;
    double prefill = 0, longest = 0, decode = 0, slowest = 0;

    for (size_t i = 0; i < out->n_stages; i++) {
        const struct ek_placed_stage *s = &out->stages[i];
        prefill += s->prefill_s / chunks + (w->prompt ? s->handoff_s : 0);
        longest = fmax(longest, s->prefill_s);
        decode += s->decode_s + s->handoff_s;
        slowest = fmax(slowest, fmax(s->decode_s, s->handoff_s));
    }
    out->prefill_s = prefill + longest * (chunks - 1) / chunks;
    decode += returning(p, out);
    out->decode_s = w->generate ? fmax(slowest * p->micro_batches, decode) : 0;
    out->tokens_per_s = out->decode_s > 0 ? w->batch / out->decode_s : 0;
}

/* The side modules of a column that does not begin the chain are a stage of their own, before it.
 */
static void place_sides(const struct ek_problem *p, const uint32_t *columns, uint32_t n,
                        const struct ek_placed_stage *chain, struct ek_placement *out)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct ek_column *c = &p->columns[columns[i]];
        struct ek_placed_stage s = chain[i];
        if (c->sides == 0 || c->first == 0)
            continue;
        s.first = 0;
        s.last = -1;
        s.sides = c->sides;
        stage_times(p, &s, c->kind);
        s.decode_s = s.handoff_s = 0;
        out->stages[out->n_stages++] = s;
    }
}

void ek_place(const struct ek_problem *p, const uint32_t *columns, uint32_t n,
              struct ek_placement *out)
{
    struct ek_placed_stage chain[EK_PLAN_MAX_DEVICES] = {0};
    uint32_t next[EK_PLAN_MAX_DEVICES] = {0};

    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i < n; i++) {
        const struct ek_column *c = &p->columns[columns[i]];
        struct ek_memory_use u = ek_problem_memory(p, c->kind, c->first, c->last, c->sides);
        struct ek_placed_stage *s = &chain[i];
        *s = (struct ek_placed_stage){.column = columns[i], .first = c->first, .last = c->last};
        s->sides = c->first == 0 ? c->sides : 0;
        take_devices(p, c->kind, next, s);
        stage_times(p, s, c->kind);
        for (uint32_t d = 0; d < s->n_devices; d++) {
            out->used[s->devices[d]] = true;
            add_use(&out->memory[s->devices[d]], &u);
        }
    }
    place_sides(p, columns, n, chain, out);
    for (uint32_t i = 0; i < n; i++) {
        if (chain[i].first > chain[i].last)
            continue;
        if (i + 1 < n && p->columns[columns[i + 1]].first <= p->columns[columns[i + 1]].last)
            chain[i].handoff_s = step_hop(p, chain[i].last, p->columns[columns[i]].kind,
                                          p->columns[columns[i + 1]].kind);
        out->stages[out->n_stages++] = chain[i];
    }
    predict(p, out);
}
