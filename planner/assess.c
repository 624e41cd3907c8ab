/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What any placement would cost, whether it fits or not: the same costs, links and memory as a
 * plan's own, for placements that others made.
 */
#include "planner/planner.h"
#include "planner/problem.h"

#include <math.h>
#include <string.h>

struct walk {
    const struct ek_problem *p;
    const struct ek_assignment *a;
    struct ek_assessment *out;
    double work[EK_PLAN_MAX_DEVICES], prefill[EK_PLAN_MAX_DEVICES], slowest, link, decode;
};

/* The kind of one device of a group, or UINT32_MAX when it has no times on its own. */
static uint32_t kind_of(const struct ek_problem *p, uint32_t device)
{
    for (uint32_t k = 0; k < p->n_kinds; k++)
        if (p->kinds[k].group == p->devices[device].group && p->kinds[k].tp == 1)
            return k;
    return UINT32_MAX;
}

static void add_memory(struct walk *w, uint32_t device, uint32_t kind, uint32_t module, bool tied)
{
    ek_use_add(w->p, kind, module, tied, &w->out->memory[device]);
}

static bool tied_on_device(const struct walk *w, uint32_t m)
{
    int32_t t = w->p->costs->modules[m].tied_to;

    return t >= 0 && w->a->device[t] == w->a->device[m];
}

static double chunks_of(const struct ek_problem *p)
{
    return p->chunks ? p->chunks : 1;
}

static bool add_stage(struct walk *w, uint32_t device, int32_t first, int32_t last, uint32_t before)
{
    const struct ek_problem *p = w->p;
    uint32_t kind = kind_of(p, device);
    double prefill, decode, hop = 0;
    bool outside = false;

    if (kind == UINT32_MAX ||
        !ek_problem_times(p, kind, first, last, 0, &prefill, &decode, &outside))
        return false;
    if (first > 0) {
        hop = ek_problem_hop(p, first - 1, before, kind);
        if (isinf(hop) && p->fixed_order) /* others need not keep our order */
            hop = 0;
        w->link = fmax(w->link, ek_problem_hop_work(p, first - 1, before, kind));
    }
    w->work[device] += prefill + p->workload.generate * decode;
    w->prefill[device] += prefill;
    w->slowest = fmax(w->slowest, decode);
    w->decode += decode;
    w->out->score.latency += prefill / chunks_of(p) + p->workload.generate * decode + hop;
    w->out->prefill_s += prefill / chunks_of(p);
    w->out->stages++;
    return !isinf(hop);
}

static bool add_sides(struct walk *w)
{
    const struct ek_problem *p = w->p;
    uint32_t first = kind_of(p, w->a->device[p->first_item]), exit = 0;

    for (uint32_t m = 0; m < p->first_item; m++)
        exit = p->costs->modules[m].kind == EK_MODULE_VECTOR ? exit : m;
    for (uint32_t m = 0; m < p->first_item; m++) {
        uint32_t d = w->a->device[m], kind = kind_of(p, d);
        const struct ek_modcost *c;
        if (kind == UINT32_MAX || first == UINT32_MAX)
            return false;
        c = ek_modcost_of(p, p->groups[p->kinds[kind].group].cls, 1, m);
        if (!c->known)
            return false;
        w->work[d] += c->prefill;
        w->prefill[d] += c->prefill;
        w->out->score.latency += c->prefill / chunks_of(p);
        w->out->prefill_s += c->prefill / chunks_of(p);
        if (m == exit && d != w->a->device[p->first_item])
            w->out->score.latency += ek_problem_side_hop(p, kind, first);
    }
    return true;
}

static bool add_chain(struct walk *w)
{
    const struct ek_problem *p = w->p;
    int32_t n = (int32_t)p->n_items, first = 0;
    uint32_t before = 0;

    while (first < n) {
        uint32_t d = w->a->device[p->first_item + (uint32_t)first];
        int32_t last = first;
        while (last + 1 < n && w->a->device[p->first_item + (uint32_t)last + 1] == d)
            last++;
        if (!add_stage(w, d, first, last, before))
            return false;
        before = kind_of(p, d);
        first = last + 1;
    }
    return true;
}

static void add_up_memory(struct walk *w)
{
    const struct ek_problem *p = w->p;
    bool used[EK_PLAN_MAX_DEVICES] = {false};

    for (uint32_t m = 0; m < p->costs->n_modules; m++) {
        uint32_t d = w->a->device[m], kind = kind_of(p, d);
        if (kind == UINT32_MAX)
            continue;
        if (!used[d])
            ek_use_begin(p, kind, &w->out->memory[d]);
        used[d] = true;
        add_memory(w, d, kind, m, tied_on_device(w, m));
    }
    for (uint32_t d = 0; d < p->n_devices; d++) {
        double ratio, cap;
        if (!used[d])
            continue;
        ek_use_end(p, kind_of(p, d), &w->out->memory[d]);
        cap = (double)p->groups[p->devices[d].group].cap;
        ratio = (double)w->out->memory[d].total / fmax(cap, 1);
        w->out->score.balance = fmax(w->out->score.balance, ratio);
        if (ratio > w->out->worst_ratio) {
            w->out->worst_ratio = ratio;
            w->out->worst = d;
        }
    }
}

/* The ids of a step go to the host before the next one begins. */
static double returning(const struct walk *w)
{
    uint32_t last = w->p->first_item + w->p->n_items - 1;

    return w->p->costs->classes[w->p->devices[w->a->device[last]].cls].return_s;
}

void ek_assess(const struct ek_problem *p, const struct ek_assignment *a, struct ek_assessment *out)
{
    struct walk w = {.p = p, .a = a, .out = out};
    double m = p->micro_batches, busiest = 0, longest = 0;

    memset(out, 0, sizeof(*out));
    add_up_memory(&w);
    out->runnable = add_chain(&w) && add_sides(&w);
    for (uint32_t d = 0; d < p->n_devices; d++) {
        busiest = fmax(busiest, w.work[d]);
        longest = fmax(longest, w.prefill[d]);
    }
    out->score.latency += longest * (chunks_of(p) - 1) / chunks_of(p);
    out->score.balance_time = busiest * m;
    out->score.throughput = fmax(fmax(busiest, w.link) * m, out->score.latency);
    out->prefill_s = out->prefill_s + longest * (m * chunks_of(p) - 1) / chunks_of(p);
    out->decode_s = fmax(w.slowest * m, w.decode + returning(&w));
}
