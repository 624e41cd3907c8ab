/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What any placement would cost, whether it fits or not: the same costs, links and memory as a
 * plan's own, for placements that others made.
 */
#include "planner/planner.h"

#include <math.h>
#include <string.h>

static void judge(struct ek_assessment *out, uint32_t device, bool shared, uint64_t used,
                  uint64_t cap)
{
    double ratio = (double)used / fmax((double)cap, 1);

    if (ratio <= out->worst_ratio)
        return;
    out->worst_ratio = ratio;
    out->worst = device;
    out->shared = shared;
    out->lacks = used > cap ? used - cap : 0;
}

/* Each device by itself, then the memories that devices share. */
static void judge_memory(const struct ek_problem *p, const struct ek_placement *pl,
                         struct ek_assessment *out)
{
    uint64_t used[EK_PLAN_MAX_POOLS] = {0};
    uint32_t first[EK_PLAN_MAX_POOLS] = {0};

    for (uint32_t d = p->n_devices; d-- > 0;) {
        const struct ek_group *g = &p->groups[p->devices[d].group];
        out->memory[d] = pl->memory[d];
        if (!pl->used[d])
            continue;
        judge(out, d, false, pl->memory[d].total, g->cap);
        if (g->pool >= 0) {
            used[g->pool] += pl->memory[d].total;
            first[g->pool] = d;
        }
    }
    out->score.balance = out->worst_ratio;
    for (uint32_t i = 0; i < p->n_pools; i++)
        if (used[i] > p->pools[i])
            judge(out, first[i], true, used[i], p->pools[i]);
}

/* What the image features need to reach the embedding's device, when they are made elsewhere. */
static double side_hop(const struct ek_problem *p, const struct ek_placement *pl)
{
    uint32_t exit = 0, first = 0;

    if (p->first_item == 0)
        return 0;
    for (uint32_t m = 0; m < p->first_item; m++)
        exit = p->costs->modules[m].kind == EK_MODULE_VECTOR ? exit : m;
    while (pl->stages[first].first > pl->stages[first].last)
        first++;
    if (pl->side_stage[exit] == first)
        return 0;
    return ek_problem_side_hop(p, pl->stages[pl->side_stage[exit]].kind, pl->stages[first].kind);
}

static double hop_seconds(const struct ek_problem *p, const struct ek_placed_stage *s)
{
    double hop = ek_problem_hop(p, s->last, s->kind, s[1].kind);

    return isinf(hop) && p->fixed_order ? 0 : hop; /* others need not keep our order */
}

static void score(const struct ek_problem *p, const struct ek_placement *pl,
                  struct ek_assessment *out)
{
    double m = p->micro_batches, chunks = p->chunks ? p->chunks : 1, link = 0;
    double work[EK_PLAN_MAX_DEVICES] = {0}, prefill[EK_PLAN_MAX_DEVICES] = {0};
    double busiest = 0, longest = 0;

    out->score.latency = side_hop(p, pl);
    for (size_t i = 0; i < pl->n_stages; i++) {
        const struct ek_placed_stage *s = &pl->stages[i];
        double steps = p->workload.generate * s->times.decode;
        bool hops = s->first <= s->last && i + 1 < pl->n_stages;
        work[s->devices[0]] += s->times.prefill + steps;
        prefill[s->devices[0]] += s->times.prefill;
        out->score.latency += s->times.passing / chunks + steps + (hops ? hop_seconds(p, s) : 0);
        link = hops ? fmax(link, ek_problem_hop_work(p, s->last, s->kind, s[1].kind)) : link;
    }
    for (uint32_t d = 0; d < p->n_devices; d++) {
        busiest = fmax(busiest, work[d]);
        longest = fmax(longest, prefill[d]);
    }
    out->score.latency += longest * (chunks - 1) / chunks;
    out->score.balance_time = busiest * m;
    out->score.throughput = fmax(fmax(busiest, link) * m, out->score.latency);
}

static bool revisits(const struct ek_problem *p, const struct ek_placement *pl)
{
    uint32_t parts[EK_PLAN_MAX_DEVICES] = {0}, most = 0;

    for (size_t i = 0; i < pl->n_stages; i++)
        parts[pl->stages[i].devices[0]] += pl->stages[i].first <= pl->stages[i].last;
    for (uint32_t d = 0; d < p->n_devices; d++)
        most = parts[d] > most ? parts[d] : most;
    return most > 1;
}

void ek_assess(const struct ek_problem *p, const struct ek_assignment *a, struct ek_assessment *out)
{
    struct ek_placement pl;

    memset(out, 0, sizeof(*out));
    out->runnable = ek_place_assignment(p, a, &pl);
    judge_memory(p, &pl, out);
    if (!out->runnable)
        return;
    score(p, &pl, out);
    out->prefill_s = pl.prefill_s;
    out->decode_s = pl.decode_s;
    out->stages = (uint32_t)pl.n_stages;
    out->revisits = revisits(p, &pl);
}
