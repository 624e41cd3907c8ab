/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "tests/planner/brute.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STAGES 8
#define MAX_PLANS  400000

struct stage {
    uint32_t device, tp, cls;
    int first, last; /* chain items; first > last: none */
    uint32_t sides;
};
struct dev {
    uint32_t cls;
    uint64_t memory;
    bool budgeted;
    const char *name;
};
struct brute {
    double (*triples)[3]; /* of every plan, where they are wanted (front) */
    bool front;
    const uint32_t *old; /* device of each module, or NULL: fewest bytes moved are sought ... */
    double allowed, least_moved; /* ... with at most that first objective */
    const struct ek_costs *c;
    const struct ek_request *r;
    struct dev devices[16];
    uint32_t n_devices, n_items, n_sides, m, group, chunks, prompt;
    uint32_t side_of[32]; /* side group of each side module */
    struct stage stages[MAX_STAGES];
    uint32_t n_stages;
    bool used[16];
    double (*found)[EK_N_OBJECTIVES + 1]; /* objective values and latency of each plan */
    size_t n, cap;
};

static bool named(const struct brute *b, uint32_t d, const char *name)
{
    return strcmp(b->devices[d].name, name) == 0 ||
           strcmp(b->c->classes[b->devices[d].cls].name, name) == 0;
}

static bool matches(const char *pattern, const char *name)
{
    size_t n = strlen(pattern);

    return pattern[n - 1] == '*' ? strncmp(pattern, name, n - 1) == 0 : strcmp(pattern, name) == 0;
}

static bool holds(const struct brute *b, const struct stage *s, uint32_t module)
{
    int item = (int)module - (int)b->c->n_sides;

    if (module < b->c->n_sides)
        return s->sides >> b->side_of[module] & 1;
    return item >= s->first && item <= s->last;
}

static bool allowed(const struct brute *b, const struct stage *s, uint32_t module)
{
    for (size_t i = 0; i < b->r->n_rules; i++) {
        const struct ek_rule *rule = &b->r->rules[i];
        if (!matches(rule->module, b->c->modules[module].name))
            continue;
        for (uint32_t k = 0; k < s->tp; k++) {
            bool here = named(b, s->device + k, rule->other);
            if (rule->kind == EK_RULE_PIN ? !here : rule->kind == EK_RULE_BAN && here)
                return false;
        }
        for (uint32_t o = 0; rule->kind == EK_RULE_TOGETHER && o < b->c->n_modules; o++)
            if (matches(rule->other, b->c->modules[o].name) && !holds(b, s, o))
                return false;
    }
    for (size_t i = 0; i < b->r->n_rules; i++)
        if (b->r->rules[i].kind == EK_RULE_TOGETHER &&
            matches(b->r->rules[i].other, b->c->modules[module].name))
            for (uint32_t o = 0; o < b->c->n_modules; o++)
                if (matches(b->r->rules[i].module, b->c->modules[o].name) && !holds(b, s, o))
                    return false;
    return true;
}

static const struct ek_cost_times *times(const struct brute *b, const struct stage *s, uint32_t sig)
{
    for (size_t i = 0; i < b->c->n_times; i++)
        if (b->c->times[i].cls == s->cls && b->c->times[i].tp == s->tp && b->c->times[i].sig == sig)
            return &b->c->times[i];
    return NULL;
}

/* Parts of a cut tower begin the chain; they see, as side modules do. */
static bool is_part(const struct brute *b, int item)
{
    return item >= 0 && item < (int)b->n_items &&
           b->c->modules[(int)b->c->n_sides + item].kind >= EK_MODULE_VISION;
}

/* Messages of pictures that a cut of the tower holds at one end, a device of a stage. */
static uint64_t crossings(const struct brute *b, const struct stage *s, uint64_t message)
{
    if (s->first > s->last)
        return 0;
    return message * ((s->first > 0 && is_part(b, s->first)) +
                      (is_part(b, s->last) && is_part(b, s->last + 1)));
}

/* What a stage takes whatever its modules, and for hand-overs before it and behind it. */
static uint64_t of_no_module(const struct brute *b, const struct stage *s)
{
    const char *const names[] = {"stage", s->first > 0 && s->first <= s->last ? "incoming" : "",
                                 s->first <= s->last && s->last + 1 < (int)b->n_items ? "outgoing"
                                                                                      : ""};
    uint64_t sum = 0;

    for (size_t p = 0; p < b->c->n_memory; p++)
        for (size_t k = 0; k < 3; k++)
            if (b->c->memory[p].cls == s->cls && b->c->memory[p].tp == s->tp &&
                strcmp(b->c->signatures[b->c->memory[p].sig], names[k]) == 0)
                sum += b->c->memory[p].points[0].comm;
    return sum;
}

/* Buffers of the modules at hand: those of norms and heads are of a stage with a layer; without one
 * the rows of "ending" stand for them, where there are any. */
static void add_ending(const struct brute *b, const struct stage *s, bool layers,
                       const uint64_t end[2], uint64_t *act, uint64_t *work)
{
    uint64_t use[2] = {end[0], end[1]};

    for (size_t p = 0; p < b->c->n_memory; p++) {
        const struct ek_cost_memory *m = &b->c->memory[p];
        if (m->cls == s->cls && m->tp == s->tp && !layers && end[0] > 0 &&
            strcmp(b->c->signatures[m->sig], "ending") == 0 && m->points[0].activations > 0) {
            use[0] = m->points[0].activations;
            use[1] = m->points[0].workspace;
        }
    }
    *act = use[0] > *act ? use[0] : *act;
    *work = use[1] > *work ? use[1] : *work;
}

static uint32_t stages(const struct brute *b)
{
    return b->n_devices < b->n_items ? b->n_devices : b->n_items;
}

static double others(const struct brute *b)
{
    return b->n_devices > 1 ? b->n_devices - 1 : 1;
}

/* Neighbours of a decoding stage, where a round never ends. */
static double at_once(const struct brute *b)
{
    return (stages(b) < b->m ? stages(b) : b->m) - 1;
}

/* Shares of all others, slot by slot: that are at work while a stage is; and that the first job
 * meets at each stage, so that its way and the other jobs at the longest stage add up to the whole.
 */
static void beside(const struct brute *b, uint32_t jobs, double *while_working, double *passing)
{
    double busy = 0, pairs = 0, slots = 0;

    for (uint32_t slot = 0; slot < stages(b) + jobs; slot++) {
        double n = 0;
        for (uint32_t s = 0; s < stages(b); s++)
            n += slot >= s && slot - s < jobs;
        busy += n;
        pairs += n * (n - 1);
        slots += n > 0 ? n - 1 : 0;
    }
    *while_working = busy > 0 ? pairs / busy / others(b) : 0;
    *passing = (slots / others(b) - (jobs - 1.0) * *while_working) / stages(b);
}

/* The chain's prompts on devices of a class alone. */
static double whole_chain(const struct brute *b, uint32_t cls, uint32_t tp)
{
    struct stage s = {.cls = cls, .tp = tp};
    double sum = 0;

    for (uint32_t i = b->c->n_sides; b->prompt && i < b->c->n_modules; i++) {
        const struct ek_cost_times *t = times(b, &s, b->c->modules[i].sig);
        if (t && b->c->modules[i].kind < EK_MODULE_VISION)
            sum += t->prefill.rows[0].time.median_s / b->m;
    }
    return sum;
}

/* How much of its time a stage has neighbours, who share what it leaves of the chain. */
static double accompanied(const struct brute *b, const struct stage *s, double seconds)
{
    double own = whole_chain(b, s->cls, s->tp), others = 0, left;

    if (seconds <= 0 || stages(b) < 2)
        return 1;
    for (uint32_t d = 0; d < b->n_devices; d++)
        others += whole_chain(b, b->devices[d].cls, 1);
    others -= s->tp * whole_chain(b, s->cls, 1);
    others = others > 0 && b->n_devices > s->tp ? others / (b->n_devices - s->tp) : 0;
    left = own > seconds ? 1 - seconds / own : 0;
    return fmin(left * others / (stages(b) - 1) / seconds, 1);
}

/* Memory, prefill of a group and decode step of one stage; false where it cannot be. */
static bool price(const struct brute *b, const struct stage *s, double *prefill, double *passing,
                  double *decode, double *total)
{
    const struct ek_cost_class *k = &b->c->classes[s->cls];
    const struct ek_workload *w = &b->r->workload;
    const struct ek_cost_times *stage = times(b, s, 0);
    uint64_t act = 0, work = 0, message = 0, sum = k->overhead + (s->tp > 1 ? k->tp_reserve : 0);
    uint64_t side_act = 0, own_comm = of_no_module(b, s), end[2] = {0, 0};
    bool apart = s->sides && s->first > 0 && s->first <= s->last; /* a stage before its own */
    bool alone = s->first == 0 && s->last == (int)b->n_items - 1;
    bool layers = false;
    double seen = 0; /* nobody else works meanwhile */
    double slow, busy, met, slowed = 0;

    *prefill = stage && b->prompt ? stage->prefill.rows[0].time.median_s / b->m : 0;
    *decode = stage && s->first <= s->last && !is_part(b, s->last)
                  ? stage->decode.rows[0].time.median_s
                  : 0;
    *prefill += apart && stage && b->prompt ? stage->prefill.rows[0].time.median_s / b->m : 0;
    if (w->generate == 0)
        *decode = 0;
    for (uint32_t i = 0; i < b->c->n_modules; i++) {
        const struct ek_cost_module *m = &b->c->modules[i];
        const struct ek_cost_times *t = times(b, s, m->sig);
        bool tied, sees = m->side || m->kind >= EK_MODULE_VISION;
        if (!holds(b, s, i))
            continue;
        if (t == NULL || !allowed(b, s, i))
            return false;
        if (sees && w->images)
            seen += t->prefill.rows[0].time.median_s / b->m;
        if (!sees && b->prompt && m->kind == EK_MODULE_LAYER)
            slowed += t->prefill.rows[0].time.median_s / b->m;
        if (!sees && b->prompt)
            *prefill += t->prefill.rows[0].time.median_s / b->m;
        if (!sees && w->generate)
            *decode += t->decode.rows[0].time.median_s;
        layers |= m->kind == EK_MODULE_LAYER;
        tied = m->tied_to >= 0 && holds(b, s, (uint32_t)m->tied_to);
        sum += tied ? 0 : (m->weights + s->tp - 1) / s->tp;
        sum += (m->kv * w->batch * w->context + s->tp - 1) / s->tp;
        for (size_t p = 0; p < b->c->n_memory; p++)
            if (b->c->memory[p].cls == s->cls && b->c->memory[p].tp == s->tp &&
                b->c->memory[p].sig == m->sig) {
                bool ends = m->kind == EK_MODULE_NORM || m->kind == EK_MODULE_HEAD;
                uint64_t *most = ends ? &end[0] : apart && m->side ? &side_act : &act;
                uint64_t *scratch = ends ? &end[1] : &work;
                *most = *most > b->c->memory[p].points[0].activations
                            ? *most
                            : b->c->memory[p].points[0].activations;
                *scratch = *scratch > b->c->memory[p].points[0].workspace
                               ? *scratch
                               : b->c->memory[p].points[0].workspace;
                if (sees && !m->side && b->c->memory[p].points[0].comm > message)
                    message = b->c->memory[p].points[0].comm;
            }
    }
    add_ending(b, s, layers, end, &act, &work);
    slow = alone ? 0 : (k->slow_prefill - 1) * accompanied(b, s, *prefill);
    beside(b, b->chunks * b->m, &busy, &met);
    *passing = *prefill + slowed * slow * met + seen;
    *prefill += slowed * slow * busy + seen;
    *decode *= alone ? 1 : 1 + (k->slow_decode - 1) * at_once(b) / others(b);
    if (apart) { /* what a stage takes whatever its modules, once more */
        struct stage beside = *s;
        beside.first = 0;
        beside.last = -1;
        own_comm += of_no_module(b, &beside);
    }
    *total = (double)(sum + act + side_act + work + crossings(b, s, message) + own_comm);
    return *total <= (double)b->devices[s->device].memory;
}

static double hop(const struct brute *b, uint32_t from, uint32_t to, double steps, double bytes)
{
    if (b->c->n_links == 0)
        return 0;
    for (size_t i = 0; i < b->c->n_links; i++)
        if (b->c->links[i].from == from && b->c->links[i].to == to)
            return steps * b->c->links[i].alpha + bytes / b->c->links[i].beta;
    return INFINITY;
}

/* A shared memory holds all stages of its devices that have no budget of their own. */
static bool pools_hold(const struct brute *b, const double *totals)
{
    for (uint32_t d = 0; d < b->n_devices; d++) {
        const char *name = b->c->classes[b->devices[d].cls].memory_group;
        double used = 0, cap = INFINITY;
        if (name[0] == '\0' || b->devices[d].budgeted)
            continue;
        for (uint32_t e = 0; e < b->n_devices; e++)
            if (strcmp(b->c->classes[b->devices[e].cls].memory_group, name) == 0 &&
                !b->devices[e].budgeted)
                cap = fmin(cap, (double)b->devices[e].memory);
        for (uint32_t s = 0; s < b->n_stages; s++)
            if (strcmp(b->c->classes[b->stages[s].cls].memory_group, name) == 0 &&
                !b->devices[b->stages[s].device].budgeted)
                used += totals[s] * b->stages[s].tp;
        if (used > cap)
            return false;
    }
    return true;
}

/* Bytes of the modules that are not where they were. */
static double moved(const struct brute *b)
{
    double bytes = 0;

    for (uint32_t i = 0; i < b->n_stages; i++)
        for (uint32_t m = 0; m < b->c->n_modules; m++)
            if (holds(b, &b->stages[i], m) && b->old[m] != b->stages[i].device)
                bytes += (double)b->c->modules[m].weights;
    return bytes;
}

static void record_triple(struct brute *b, double prefill, double decode, double ratio)
{
    if (b->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 256;
        b->triples = realloc(b->triples, b->cap * sizeof(*b->triples));
    }
    b->triples[b->n][0] = prefill;
    b->triples[b->n][1] = decode;
    b->triples[b->n++][2] = ratio;
}

static void record(struct brute *b, const double v[4])
{
    double *row;

    if (b->old) {
        if (v[b->r->objectives[0]] <= b->allowed * (1 + 1e-6))
            b->least_moved = fmin(b->least_moved, moved(b));
        return;
    }
    if (b->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 256;
        b->found = realloc(b->found, b->cap * sizeof(*b->found));
    }
    row = b->found[b->n++];
    for (size_t i = 0; i < b->r->n_objectives; i++)
        row[i] = v[b->r->objectives[i]];
    row[EK_N_OBJECTIVES] = v[EK_OBJ_LATENCY];
}

static uint32_t exit_group(const struct brute *b)
{
    uint32_t g = 0;

    for (uint32_t i = 0; i < b->c->n_sides; i++)
        if (b->c->modules[i].kind != EK_MODULE_VECTOR)
            g = b->side_of[i];
    return g;
}

static void evaluate(struct brute *b)
{
    const struct ek_workload *w = &b->r->workload;
    double latency = 0, longest = 0, step = 0, work = 0, ratio = 0, links = 0, v[4],
           totals[MAX_STAGES];
    double kept = b->chunks > 1 ? (double)(b->chunks - 1) / b->chunks : 0;

    for (uint32_t i = 0; i < b->n_stages; i++) {
        const struct stage *s = &b->stages[i], *before = i ? &b->stages[i - 1] : NULL;
        double p, passing, d;
        if (!price(b, s, &p, &passing, &d, &totals[i]))
            return;
        latency += passing / b->chunks + w->generate * d;
        longest = fmax(longest, p);
        step = fmax(step, d);
        work = fmax(work, p + w->generate * d);
        ratio = fmax(ratio, totals[i] / (double)b->devices[s->device].memory);
        if (before && s->first <= s->last && is_part(b, s->first - 1)) {
            double bytes = (double)b->c->modules[(int)b->c->n_sides + s->first - 1].boundary;
            double t = hop(b, before->cls, s->cls, w->images * b->group,
                           bytes * w->images * w->image_tokens * b->group);
            latency += t;
            links = fmax(links, t);
        } else if (before && s->first <= s->last) {
            double bytes = (double)b->c->modules[b->c->n_sides + (uint32_t)s->first - 1].boundary;
            double all = (double)b->prompt * b->group;
            double chunk = w->prefill_chunk < all ? w->prefill_chunk : all;
            latency += hop(b, before->cls, s->cls, (b->prompt ? 1 : 0) + w->generate,
                           bytes * (chunk + (double)w->generate * b->group));
            links =
                fmax(links, hop(b, before->cls, s->cls, (b->prompt ? b->chunks : 0) + w->generate,
                                bytes * ((double)w->batch / b->m * b->prompt +
                                         (double)w->generate * b->group)));
        }
        if (b->n_sides && (s->sides >> exit_group(b) & 1) && s->first != 0 && w->images &&
            !is_part(b, 0))
            latency += hop(b, s->cls, b->stages[0].cls, 1,
                           (double)b->c->modules[b->c->n_sides].boundary * w->images *
                               w->image_tokens * b->group);
    }
    if (!pools_hold(b, totals) || isinf(latency) || isinf(links))
        return;
    if (b->front) {
        record_triple(b, longest * b->m, step, ratio);
        return;
    }
    v[EK_OBJ_LATENCY] = latency + kept * longest;
    v[EK_OBJ_BALANCE] = ratio;
    v[EK_OBJ_BALANCE_TIME] = work * b->m;
    v[EK_OBJ_THROUGHPUT] = fmax(fmax(work, links) * b->m, v[EK_OBJ_LATENCY]);
    record(b, v);
}

static bool enough(const struct brute *b)
{
    for (uint32_t d = 0; d < b->n_devices; d++)
        if (b->r->use_all && !b->used[d])
            return false;
    return !b->r->max_stages || b->n_stages <= b->r->max_stages;
}

/* Stages may take tp neighbouring devices of a class (they are alike; order does not matter). */
static bool take(struct brute *b, uint32_t d, uint32_t tp, bool on)
{
    for (uint32_t k = 0; k < tp; k++)
        if (on && (d + k >= b->n_devices || b->used[d + k] ||
                   b->devices[d + k].cls != b->devices[d].cls ||
                   b->devices[d + k].memory != b->devices[d].memory))
            return false;
    for (uint32_t k = 0; k < tp; k++)
        b->used[d + k] = on;
    return true;
}

static void place_sides(struct brute *b, uint32_t group)
{
    uint32_t n = b->n_stages;

    if (group == b->n_sides) {
        if (enough(b))
            evaluate(b);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        b->stages[i].sides |= 1u << group;
        place_sides(b, group + 1);
        b->stages[i].sides &= ~(1u << group);
    }
    for (uint32_t tp = 1; tp <= 2; tp *= 2)
        for (uint32_t d = 0; d < b->n_devices; d++) {
            if ((b->r->tp && b->r->tp != tp) || n == MAX_STAGES || !take(b, d, tp, true))
                continue;
            b->stages[b->n_stages++] = (struct stage){
                d, tp, b->devices[d].cls, (int)b->n_items, (int)b->n_items - 1, 1u << group};
            place_sides(b, group + 1);
            b->n_stages--;
            take(b, d, tp, false);
        }
}

static void place_chain(struct brute *b, int first)
{
    if (first == (int)b->n_items) {
        place_sides(b, 0);
        return;
    }
    for (uint32_t tp = 1; tp <= 2; tp *= 2)
        for (uint32_t d = 0; d < b->n_devices; d++) {
            if ((b->r->tp && b->r->tp != tp) || b->n_stages == MAX_STAGES ||
                (b->r->fixed_order &&
                 (tp > 1 || (b->n_stages && d <= b->stages[b->n_stages - 1].device))) ||
                !take(b, d, tp, true))
                continue;
            for (int last = first; last < (int)b->n_items; last++) {
                b->stages[b->n_stages++] = (struct stage){d, tp, b->devices[d].cls, first, last, 0};
                place_chain(b, last + 1);
                b->n_stages--;
            }
            take(b, d, tp, false);
        }
}

static void set_devices(struct brute *b)
{
    size_t next = 0;

    for (uint32_t k = 0; k < b->c->n_classes; k++)
        for (uint32_t i = 0; i < b->c->classes[k].count; i++) {
            const struct ek_cost_class *cls = &b->c->classes[k];
            b->devices[b->n_devices++] =
                (struct dev){k, cls->memory, cls->budgeted, cls->devices[i].name};
        }
    for (size_t i = 0; i < b->r->n_budgets; i++)
        for (uint32_t d = 0; d < b->n_devices; d++)
            if (b->r->budgets[i].name[0] ? named(b, d, b->r->budgets[i].name)
                                         : b->r->n_budgets == 1 || d == next + i) {
                uint64_t v = b->r->budgets[i].bytes;
                b->devices[d].memory = v < b->devices[d].memory ? v : b->devices[d].memory;
                b->devices[d].budgeted = true;
            }
    for (uint32_t d = 0; d < b->n_devices; d++) {
        uint64_t part = (uint64_t)(b->r->margin_fraction * (double)b->devices[d].memory);
        uint64_t margin = part > b->r->margin ? part : b->r->margin;
        b->devices[d].memory -= margin < b->devices[d].memory ? margin : b->devices[d].memory;
    }
}

static void enumerate(struct brute *b)
{
    const struct ek_workload *w = &b->r->workload;
    uint32_t chunk;

    b->n_items = (uint32_t)(b->c->n_modules - b->c->n_sides);
    b->m = w->micro_batches;
    b->group = (w->batch + b->m - 1) / b->m;
    b->prompt = w->prompt + w->images * w->image_tokens;
    chunk = w->prefill_chunk < b->group * b->prompt ? w->prefill_chunk : b->group * b->prompt;
    b->chunks = chunk ? (b->group * b->prompt + chunk - 1) / chunk : 1;
    for (uint32_t i = 0; i < b->c->n_sides; i++)
        b->side_of[i] = b->r->split_sides ? i : 0;
    b->n_sides = b->c->n_sides == 0 ? 0 : b->r->split_sides ? (uint32_t)b->c->n_sides : 1;
    set_devices(b);
    place_chain(b, 0);
}

size_t brute_triples(const struct ek_costs *c, const struct ek_request *r, double (**out)[3])
{
    struct brute b = {.c = c, .r = r, .front = true};

    enumerate(&b);
    *out = b.triples;
    return b.n;
}

double brute_nearest(const struct ek_costs *c, const struct ek_request *r, const uint32_t *old,
                     double allowed)
{
    struct brute b = {.c = c, .r = r, .old = old, .allowed = allowed, .least_moved = INFINITY};

    enumerate(&b);
    return b.least_moved;
}

void brute_solve(const struct ek_costs *c, const struct ek_request *r, struct brute_values *out)
{
    struct brute b = {.c = c, .r = r};

    memset(out, 0, sizeof(*out));
    enumerate(&b);
    out->plans = b.n;
    out->feasible = b.n > 0;
    for (size_t o = 0; o <= r->n_objectives && b.n; o++) {
        size_t at = o < r->n_objectives ? o : EK_N_OBJECTIVES, n = 0;
        double best = INFINITY;
        for (size_t i = 0; i < b.n; i++)
            best = fmin(best, b.found[i][at]);
        if (o < r->n_objectives)
            out->values[o] = best;
        else
            out->latency = best;
        for (size_t i = 0; i < b.n; i++)
            if (b.found[i][at] <= best + fabs(best) * 2e-9 + 1e-15)
                memcpy(b.found[n++], b.found[i], sizeof(*b.found));
        b.n = n;
    }
    free(b.found);
}
