/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Stages on named devices with the times and memory predicted: from the columns of a solution, or
 * from an assignment that somebody else made, which may visit a device more than once.
 */
#include "planner/planner.h"
#include "planner/problem.h"
#include "planner/turns.h"

#include <math.h>
#include <string.h>

const char *ek_pdevice_name(const struct ek_problem *p, uint32_t d)
{
    return p->costs->classes[p->devices[d].cls].devices[p->devices[d].member].name;
}

static double step_hop(const struct ek_problem *p, int32_t boundary, uint32_t from, uint32_t to)
{
    size_t k = (size_t)from * p->n_kinds + to;

    if (boundary < (int32_t)p->n_seeing)
        return isinf(p->hop_alpha[k]) ? INFINITY : 0; /* no step of decoding passes it */
    return p->hop_alpha[k] + p->group_size * p->boundary[boundary] * p->hop_inv_beta[k];
}

/* A group's next step begins when the host has its ids from the last stage. */
static double returning(const struct ek_problem *p, const struct ek_placement *out)
{
    if (out->n_stages == 0)
        return 0;
    return p->costs->classes[p->devices[out->stages[out->n_stages - 1].devices[0]].cls].return_s;
}

static double most(const double v[EK_PLAN_MAX_DEVICES])
{
    double m = 0;

    for (size_t d = 0; d < EK_PLAN_MAX_DEVICES; d++)
        m = fmax(m, v[d]);
    return m;
}

/* ---- Modules of a stage -------------------------------------------------------------------------
 * The samples behind a stage's times: like modules share their samples, so spreads add up. */
static void add_module(const struct ek_problem *p, uint32_t m, struct ek_placed_stage *s)
{
    const struct ek_kind *k = &p->kinds[s->kind];
    const struct ek_modcost *c = ek_modcost_of(p, p->groups[k->group].cls, k->tp, m);

    s->prefill_mad_s += c->prefill_mad * p->micro_batches;
    s->decode_mad_s += c->decode_mad;
    s->samples = c->samples < s->samples ? c->samples : s->samples;
}

static void note_modules(const struct ek_problem *p, struct ek_placement *out, size_t stage)
{
    struct ek_placed_stage *s = &out->stages[stage];

    s->samples = UINT32_MAX;
    for (int32_t i = s->first; i <= s->last; i++)
        add_module(p, p->first_item + (uint32_t)i, s);
    for (uint32_t m = 0; m < p->first_item; m++)
        if (out->side_stage[m] == stage)
            add_module(p, m, s);
}

static double share_of(const double all[EK_PLAN_MAX_DEVICES], uint32_t bus)
{
    double longest = most(all);

    return longest > 0 ? pow(all[bus] / longest, 2) : 0;
}

static double between(double rested, double going_on, double share)
{
    return rested + share * (going_on - rested);
}

/* Clocks fall with the work of some tens of milliseconds, rests included: a device that waits for
 * the one with the most to do keeps more of them. (Scores are of devices that do not wait, as the
 * one that counts does not.) */
static void share_time(const struct ek_problem *p, struct ek_placement *out, bool meet)
{
    double seeing[EK_PLAN_MAX_DEVICES] = {0}, filling[EK_PLAN_MAX_DEVICES] = {0};

    for (size_t i = 0; i < out->n_stages; i++) {
        const struct ek_placed_stage *s = &out->stages[i];
        uint32_t bus = ek_bus_of(p, s->devices[0]);
        seeing[bus] += s->times.looking;
        filling[bus] += s->times.prefill - s->times.looking;
    }
    for (size_t i = 0; i < out->n_stages; i++) {
        struct ek_placed_stage *s = &out->stages[i];
        const struct ek_stage_times *t = &s->times;
        uint32_t bus = ek_bus_of(p, s->devices[0]);
        double look = share_of(seeing, bus), fill = share_of(filling, bus);
        double rested = t->rested_prefill - t->rested_looking;
        double text = between(rested, t->prefill - t->looking, fill);
        text *= meet && rested > 0 ? t->alone_prefill / rested : 1;
        s->pictures_s = between(t->rested_looking, t->looking, look) * p->micro_batches;
        s->prefill_s = text * p->micro_batches + s->pictures_s;
        s->decode_s = between(t->rested_decode, t->decode, fill);
    }
}

/* The pictures of a prompt follow one another through the stages of the tower, before their prompt.
 */
static double pictures_through(const struct ek_problem *p, const struct ek_placement *out)
{
    double all = 0, hops = 0, n = p->workload.images ? p->workload.images : 1;
    double seeing[EK_PLAN_MAX_DEVICES] = {0};

    for (size_t i = 0; i < out->n_stages; i++) {
        const struct ek_placed_stage *s = &out->stages[i];
        if (s->first <= s->last && i + 1 < out->n_stages)
            hops += ek_problem_picture_hop(p, s->last, s->kind, s[1].kind);
        all += s->pictures_s;
        seeing[s->devices[0]] += s->pictures_s;
    }
    return hops + most(seeing) + (all - most(seeing)) / n;
}

/* A device works on one of its stages at a time. */
static double prompts_through(const struct ek_problem *p, const struct ek_placement *out)
{
    double chunks = fmax((double)ek_prefill_chunks(&p->workload, p->workload.batch), 1), first = 0;
    double filling[EK_PLAN_MAX_DEVICES] = {0};

    for (size_t i = 0; i < out->n_stages; i++) {
        const struct ek_placed_stage *s = &out->stages[i];
        double text = s->times.prefill - s->times.looking, filled = s->prefill_s - s->pictures_s;
        double pace = text > 0 ? (s->times.passing - s->times.looking) / text : 1;
        first += pace * filled / chunks + (p->workload.prompt ? s->handoff_s : 0);
        filling[s->devices[0]] += filled;
    }
    return first + most(filling) * (chunks - 1) / chunks;
}

/* A token of every group. */
static double round_through(const struct ek_problem *p, const struct ek_placement *out)
{
    double one = out->return_s, hop = 0;
    double stepping[EK_PLAN_MAX_DEVICES] = {0};

    for (size_t i = 0; i < out->n_stages; i++) {
        const struct ek_placed_stage *s = &out->stages[i];
        one += s->decode_s + s->handoff_s;
        hop = fmax(hop, s->handoff_s);
        stepping[s->devices[0]] += s->decode_s;
    }
    return fmax(fmax(most(stepping), hop) * p->micro_batches, one);
}

static void predict(const struct ek_problem *p, struct ek_placement *out)
{
    const struct ek_workload *w = &p->workload;
    bool meet = ek_buses_meet(p, out);
    double prompts;

    share_time(p, out, meet);
    for (size_t i = 0; i < out->n_stages; i++)
        note_modules(p, out, i);
    out->return_s = returning(p, out);
    prompts = meet ? ek_meet(p, out) : prompts_through(p, out);
    out->prefill_s = pictures_through(p, out) + prompts;
    out->decode_s = w->generate ? round_through(p, out) : 0;
    out->tokens_per_s = out->decode_s > 0 ? w->batch / out->decode_s : 0;
}

/* ---- From columns -------------------------------------------------------------------------------
 */
static void stage_times(const struct ek_problem *p, struct ek_placed_stage *s, uint32_t sides)
{
    bool outside = false;

    (void)ek_problem_times(p, s->kind, s->first, s->last, sides, &s->times, &outside);
}

/* Devices of a group are taken in order, columns in the order of the chain. */
static void take_devices(const struct ek_problem *p, uint32_t *next, struct ek_placed_stage *s)
{
    const struct ek_group *g = &p->groups[p->kinds[s->kind].group];

    for (uint32_t i = 0; i < p->kinds[s->kind].tp; i++)
        s->devices[s->n_devices++] = g->members[next[p->kinds[s->kind].group]++];
}

static void note_sides(const struct ek_problem *p, uint32_t sides, size_t stage,
                       struct ek_placement *out)
{
    for (uint32_t g = 0; g < p->n_sides; g++)
        for (uint32_t j = 0; (sides >> g & 1) && j < p->sides[g].n; j++)
            out->side_stage[p->sides[g].modules[j]] = (uint16_t)stage;
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
        stage_times(p, &s, c->sides);
        s.times.decode = s.times.rested_decode = s.handoff_s = 0;
        note_sides(p, c->sides, out->n_stages, out);
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
        *s = (struct ek_placed_stage){
            .column = columns[i], .kind = c->kind, .first = c->first, .last = c->last};
        take_devices(p, next, s);
        stage_times(p, s, c->first == 0 ? c->sides : 0);
        for (uint32_t d = 0; d < s->n_devices; d++) {
            out->used[s->devices[d]] = true;
            ek_use_join(&out->memory[s->devices[d]], &u);
        }
    }
    place_sides(p, columns, n, chain, out);
    for (uint32_t i = 0; i < n; i++) {
        if (chain[i].first > chain[i].last)
            continue;
        if (i + 1 < n && p->columns[columns[i + 1]].first <= p->columns[columns[i + 1]].last)
            chain[i].handoff_s =
                step_hop(p, chain[i].last, chain[i].kind, p->columns[columns[i + 1]].kind);
        if (chain[i].first == 0)
            note_sides(p, p->columns[columns[i]].sides, out->n_stages, out);
        out->stages[out->n_stages++] = chain[i];
    }
    predict(p, out);
}

/* ---- From an assignment -------------------------------------------------------------------------
 */
struct mapper {
    const struct ek_problem *p;
    const struct ek_assignment *a;
    struct ek_placement *out;
    bool runnable;
};

/* The kind of one device of a group, or UINT32_MAX when it has no times on its own. */
static uint32_t kind_of(const struct ek_problem *p, uint32_t device)
{
    for (uint32_t k = 0; k < p->n_kinds; k++)
        if (p->kinds[k].group == p->devices[device].group && p->kinds[k].tp == 1)
            return k;
    return UINT32_MAX;
}

static bool open_stage(struct mapper *m, uint32_t device, int32_t first, int32_t last)
{
    struct ek_placement *out = m->out;
    uint32_t kind = kind_of(m->p, device);

    if (kind == UINT32_MAX || out->n_stages == EK_PLAN_MAX_STAGES)
        return false;
    out->used[device] = true;
    out->stages[out->n_stages++] = (struct ek_placed_stage){.column = UINT32_MAX,
                                                            .devices = {device},
                                                            .n_devices = 1,
                                                            .kind = kind,
                                                            .first = first,
                                                            .last = last};
    return true;
}

static uint32_t device_of(const struct mapper *m, int32_t item)
{
    return m->a->device[m->p->first_item + (uint32_t)item];
}

/* Side modules that are not with the first stage: one stage a device. */
static bool open_sides(struct mapper *m)
{
    const struct ek_problem *p = m->p;

    for (uint32_t i = 0; i < p->first_item; i++) {
        uint32_t j = 0;
        if (m->a->device[i] == device_of(m, 0))
            continue;
        while (j < i && m->a->device[j] != m->a->device[i])
            j++;
        if (j == i && !open_stage(m, m->a->device[i], 0, -1))
            return false;
        m->out->side_stage[i] = j < i ? m->out->side_stage[j] : (uint16_t)(m->out->n_stages - 1);
    }
    return true;
}

static bool open_chain(struct mapper *m)
{
    int32_t n = (int32_t)m->p->n_items, last;
    size_t begin = m->out->n_stages;

    for (int32_t first = 0; first < n; first = last + 1) {
        for (last = first; last + 1 < n && device_of(m, last + 1) == device_of(m, first);)
            last++;
        if (!open_stage(m, device_of(m, first), first, last))
            return false;
    }
    for (uint32_t i = 0; i < m->p->first_item; i++)
        if (m->a->device[i] == device_of(m, 0))
            m->out->side_stage[i] = (uint16_t)begin;
    return true;
}

static bool tied_here(const struct mapper *m, uint32_t module)
{
    int32_t t = m->p->costs->modules[module].tied_to;

    return t >= 0 && m->a->device[t] == m->a->device[module];
}

static void add_memory(struct mapper *m, size_t i)
{
    const struct ek_problem *p = m->p;
    const struct ek_placed_stage *s = &m->out->stages[i];
    struct ek_memory_use u;

    ek_use_begin(p, s->kind, &u);
    for (int32_t k = s->first; k <= s->last; k++) {
        uint32_t module = p->first_item + (uint32_t)k;
        ek_use_add(p, s->kind, module, tied_here(m, module), &u);
    }
    for (uint32_t k = 0; k < p->first_item; k++)
        if (m->out->side_stage[k] == i)
            ek_use_add(p, s->kind, k, tied_here(m, k), &u);
    ek_use_cross(p, s->kind, s->first, s->last, &u);
    ek_use_end(p, s->kind, &u);
    ek_use_join(&m->out->memory[s->devices[0]], &u);
}

/* A link's time for one step to the next stage; a fixed order binds our plans, not others'. */
static bool add_hop(struct mapper *m, size_t i)
{
    struct ek_placed_stage *s = &m->out->stages[i];

    if (s->first > s->last || i + 1 == m->out->n_stages)
        return true;
    s->handoff_s = step_hop(m->p, s->last, s->kind, s[1].kind);
    return !isinf(s->handoff_s);
}

static bool add_times(struct mapper *m, size_t i)
{
    const struct ek_problem *p = m->p;
    struct ek_placed_stage *s = &m->out->stages[i];
    struct ek_stage_times *t = &s->times;
    bool outside = false;

    if (!ek_problem_times(p, s->kind, s->first, s->last, 0, t, &outside))
        return false;
    for (uint32_t k = 0; k < p->first_item; k++) {
        const struct ek_modcost *c = ek_modcost_of(p, p->groups[p->kinds[s->kind].group].cls, 1, k);
        if (m->out->side_stage[k] != i)
            continue;
        if (!c->known)
            return false;
        t->prefill += c->prefill;
        t->rested_prefill += c->prefill;
        t->passing += c->prefill;
        if (ek_cost_module_sees(&p->costs->modules[k])) {
            t->looking += c->prefill;
            t->rested_looking += c->prefill;
        }
    }
    return add_hop(m, i);
}

bool ek_place_assignment(const struct ek_problem *p, const struct ek_assignment *a,
                         struct ek_placement *out)
{
    struct mapper m = {.p = p, .a = a, .out = out};
    bool ok;

    memset(out, 0, sizeof(*out));
    ok = open_sides(&m) && open_chain(&m);
    for (size_t i = 0; i < out->n_stages; i++)
        add_memory(&m, i);
    for (size_t i = 0; i < out->n_stages && ok; i++)
        ok = add_times(&m, i);
    if (ok)
        predict(p, out);
    return ok;
}

json_t *ek_placement_modules(const struct ek_problem *p, const struct ek_placement *pl)
{
    json_t *list = json_array();

    for (size_t i = 0; i < pl->n_stages; i++) {
        const struct ek_placed_stage *s = &pl->stages[i];
        int n = s->last - s->first + 1;
        for (uint32_t m = 0; m < p->first_item; m++)
            n += pl->side_stage[m] == i;
        json_array_append_new(list, json_sprintf("%s%s: %d", ek_pdevice_name(p, s->devices[0]),
                                                 s->n_devices > 1 ? "+" : "", n));
    }
    return list;
}
