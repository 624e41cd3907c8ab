/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A problem: costs evaluated for one workload and one number of micro-batches, as stage columns and
 * hops. Everything behind this file sees numbers alone.
 */
#include "planner/problem.h"
#include "planner/planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COLUMNS ((size_t)4 << 20)

static uint32_t tp_index(uint32_t tp)
{
    return tp >= 8 ? 3 : tp >= 4 ? 2 : tp >= 2 ? 1 : 0;
}

static struct ek_modcost *slot(const struct ek_problem *p, uint32_t cls, uint32_t tp, uint32_t m)
{
    return &p->cost[((size_t)cls * EK_N_TP + tp_index(tp)) *
                        (p->costs->n_modules + EK_N_STAGE_SIGS) +
                    m];
}

const struct ek_modcost *ek_modcost_of(const struct ek_problem *p, uint32_t cls, uint32_t tp,
                                       uint32_t module)
{
    return slot(p, cls, tp, module);
}

const struct ek_modcost *ek_stage_cost(const struct ek_problem *p, uint32_t cls, uint32_t tp)
{
    return slot(p, cls, tp, (uint32_t)p->costs->n_modules);
}

const struct ek_modcost *ek_ending_cost(const struct ek_problem *p, uint32_t cls, uint32_t tp)
{
    const struct ek_modcost *c =
        ek_modcost_of(p, cls, tp, (uint32_t)p->costs->n_modules + EK_SIG_ENDING);

    return c->known ? c : NULL;
}

const struct ek_cost_space *ek_stage_space(const struct ek_problem *p, uint32_t cls, uint32_t tp,
                                           uint32_t sig)
{
    return &slot(p, cls, tp, (uint32_t)p->costs->n_modules + sig)->space;
}

/* ---- Workload -----------------------------------------------------------------------------------
 */
static enum ek_status fill_workload(struct ek_problem *p, const struct ek_request *r, uint32_t m)
{
    struct ek_workload *w = &p->workload;
    uint64_t need;

    *w = r->workload;
    need = (uint64_t)ek_workload_prompt(w) + w->generate;
    if (need == 0 || need > (1u << 26))
        return ek_error(EK_EUSAGE, "the workload has %llu tokens a sequence",
                        (unsigned long long)need);
    if (w->context == 0)
        w->context = (uint32_t)need;
    if (w->context < need)
        return ek_error(EK_EUSAGE,
                        "context %u is less than prompt and images %u + generate %u = %llu tokens",
                        w->context, ek_workload_prompt(w), w->generate, (unsigned long long)need);
    if (w->prefill_chunk == 0)
        w->prefill_chunk = EK_DEFAULT_CHUNK;
    w->micro_batches = p->micro_batches = m;
    p->group_size = (w->batch + m - 1) / m;
    w->prefill_chunk = ek_chunk_of_group(w, w->prefill_chunk, p->group_size);
    p->chunks = (uint32_t)fmin(fmax((double)ek_prefill_chunks(w, p->group_size), 1), UINT32_MAX);
    return EK_OK;
}

/* ---- Costs of modules ---------------------------------------------------------------------------
 */
static void price_memory(struct ek_problem *p, uint32_t n)
{
    const struct ek_workload *w = &p->workload;
    uint32_t tokens = w->prefill_chunk > w->batch ? w->prefill_chunk : w->batch;

    for (size_t i = 0; i < p->costs->n_memory; i++) {
        const struct ek_cost_memory *m = &p->costs->memory[i];
        struct ek_cost_space text = ek_space_at(m, tokens, w->batch, w->context);
        struct ek_cost_space seen =
            ek_picture_space_at(m, w->images ? w->image_tokens : tokens, w->context);
        for (uint32_t k = 0; k < n + EK_N_STAGE_SIGS; k++) {
            struct ek_modcost *c = slot(p, m->cls, m->tp, k);
            if ((k < n ? p->costs->modules[k].sig : k - n) != m->sig)
                continue;
            c->space = k < n && ek_cost_module_sees(&p->costs->modules[k]) ? seen : text;
            c->weights = m->weights;
            c->kv_block = m->kv_block;
        }
    }
}

static void price_one(struct ek_problem *p, const struct ek_cost_times *t,
                      enum ek_prefill_pass pass, struct ek_modcost *c)
{
    bool side = pass == EK_PICTURES;

    *c = (struct ek_modcost){.known = true};
    c->prefill = ek_prefill_seconds(p, &t->prefill, pass, &c->outside);
    c->decode = side ? 0 : ek_decode_seconds(p, &t->decode, &c->outside);
    c->prefill_mad = c->prefill * t->prefill.spread;
    c->decode_mad = c->decode * t->decode.spread;
    c->samples = t->prefill.samples;
    if (!side && t->decode.samples < c->samples)
        c->samples = t->decode.samples;
}

static bool reaches(const struct ek_cost_curve *c, uint32_t tokens)
{
    bool yes = c->constant;

    for (size_t i = 0; i < c->n && !yes; i++)
        yes = c->rows[i].key.tokens >= tokens;
    return yes;
}

/* Rows of the final norm and the head are made for the last token of a prompt alone. */
static enum ek_prefill_pass pass_of(const struct ek_cost_module *m)
{
    if (ek_cost_module_sees(m))
        return EK_PICTURES;
    return m->kind == EK_MODULE_NORM || m->kind == EK_MODULE_HEAD ? EK_LAST_CHUNK : EK_EVERY_CHUNK;
}

static enum ek_status price_modules(struct ek_problem *p, bool measured_chunk)
{
    const struct ek_costs *c = p->costs;
    uint32_t n = (uint32_t)c->n_modules;

    p->cost = ek_calloc(c->n_classes * EK_N_TP * (n + EK_N_STAGE_SIGS), sizeof(*p->cost));
    if (p->cost == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < c->n_times; i++) {
        const struct ek_cost_times *t = &c->times[i];
        struct ek_modcost cost[EK_PICTURES + 1];
        for (int pass = EK_EVERY_CHUNK; pass <= EK_PICTURES; pass++)
            price_one(p, t, (enum ek_prefill_pass)pass, &cost[pass]);
        if (t->sig == EK_SIG_STAGE || t->sig == EK_SIG_ENDING)
            *slot(p, t->cls, t->tp, n + t->sig) = cost[EK_EVERY_CHUNK];
        for (uint32_t m = 0; m < n; m++)
            if (c->modules[m].sig == t->sig &&
                (!measured_chunk || c->modules[m].kind != EK_MODULE_LAYER ||
                 reaches(&t->prefill, p->workload.prefill_chunk)))
                *slot(p, t->cls, t->tp, m) = cost[pass_of(&c->modules[m])];
    }
    price_memory(p, n);
    return EK_OK;
}

/* ---- Side groups and kinds ----------------------------------------------------------------------
 */
static bool same_bans(const struct ek_problem *p, uint32_t a, uint32_t b)
{
    for (uint32_t d = 0; d < p->n_devices; d++)
        if (p->devices[d].banned[a] != p->devices[d].banned[b])
            return false;
    return true;
}

static enum ek_status make_sides(struct ek_problem *p, const struct ek_request *r)
{
    for (uint32_t m = 0; m < p->first_item; m++) {
        uint32_t s = 0;
        while (s < p->n_sides && (r->split_sides || !same_bans(p, p->sides[s].modules[0], m)))
            s++;
        if (s == EK_PLAN_MAX_SIDES || p->sides[s].n == EK_ARRAY_LEN(p->sides[s].modules))
            return ek_error(EK_EUNSUPPORTED, "%s: more than %d groups of side modules",
                            p->costs->file, EK_PLAN_MAX_SIDES);
        if (s == p->n_sides)
            p->n_sides++;
        p->sides[s].modules[p->sides[s].n++] = m;
        if (p->costs->modules[m].kind != EK_MODULE_VECTOR)
            p->exit_side = s;
    }
    return EK_OK;
}

static bool has_degree(const struct ek_costs *c, uint32_t cls, uint32_t tp)
{
    for (size_t i = 0; i < c->n_times; i++)
        if (c->times[i].cls == cls && c->times[i].tp == tp && c->times[i].sig != 0)
            return true;
    for (size_t i = 0; i < c->n_stages; i++)
        if (c->stages[i].cls == cls && c->stages[i].tp == tp)
            return true;
    return false;
}

static enum ek_status make_kinds(struct ek_problem *p, const struct ek_request *r)
{
    p->kinds = ek_calloc((size_t)p->n_groups * EK_N_TP, sizeof(*p->kinds));
    if (p->kinds == NULL)
        return EK_ENOMEM;
    for (uint32_t g = 0; g < p->n_groups; g++)
        for (uint32_t tp = 1; tp <= EK_PLAN_MAX_TP && tp <= p->groups[g].count; tp *= 2)
            if ((r->tp == 0 || r->tp == tp) && has_degree(p->costs, p->groups[g].cls, tp))
                p->kinds[p->n_kinds++] = (struct ek_kind){.group = g, .tp = tp};
    if (p->n_kinds == 0)
        return ek_error(EK_NO, "no device has times at tensor-parallel degree %u", r->tp);
    return EK_OK;
}

/* ---- Hops ---------------------------------------------------------------------------------------
 */
static void set_hop(struct ek_problem *p, uint32_t a, uint32_t b)
{
    const struct ek_group *ga = &p->groups[p->kinds[a].group], *gb = &p->groups[p->kinds[b].group];
    const struct ek_cost_link *l = ek_costs_link(p->costs, ga->cls, gb->cls);
    size_t i = (size_t)a * p->n_kinds + b;

    if (l) {
        p->hop_alpha[i] = l->alpha;
        p->hop_inv_beta[i] = 1 / l->beta;
    } else if (p->costs->n_links) {
        p->hop_alpha[i] = INFINITY;
    }
    if (ga == gb && p->kinds[a].tp + p->kinds[b].tp > ga->count)
        p->hop_alpha[i] = INFINITY;
}

/* Impossible pairs within one group do not make the hops unlike: counts forbid them already. */
static bool all_alike(const struct ek_problem *p, bool fixed)
{
    double alpha = -1, beta = -1;

    for (size_t i = 0; !fixed && i < (size_t)p->n_kinds * p->n_kinds; i++) {
        uint32_t ga = p->kinds[i / p->n_kinds].group, gb = p->kinds[i % p->n_kinds].group;
        if (ga == gb && isinf(p->hop_alpha[i]) &&
            ek_costs_link(p->costs, p->groups[ga].cls, p->groups[gb].cls) != NULL)
            continue;
        if (ga == gb && p->groups[ga].count == 1)
            continue;
        if (alpha < 0) {
            alpha = p->hop_alpha[i];
            beta = p->hop_inv_beta[i];
        }
        if (p->hop_alpha[i] != alpha || p->hop_inv_beta[i] != beta)
            return false;
    }
    return !fixed && !isinf(alpha);
}

static void level_hops(struct ek_problem *p)
{
    double alpha = 0, beta = 0;

    for (size_t i = 0; i < (size_t)p->n_kinds * p->n_kinds; i++)
        if (!isinf(p->hop_alpha[i]) && p->hop_alpha[i] >= alpha) {
            alpha = p->hop_alpha[i];
            beta = p->hop_inv_beta[i];
        }
    for (size_t i = 0; i < (size_t)p->n_kinds * p->n_kinds; i++) {
        p->hop_alpha[i] = alpha;
        p->hop_inv_beta[i] = beta;
    }
}

static enum ek_status make_hops(struct ek_problem *p, const struct ek_request *r)
{
    const struct ek_workload *w = &p->workload;
    uint32_t prompt = ek_workload_prompt(w);
    size_t n = (size_t)p->n_kinds * p->n_kinds;

    p->hop_alpha = ek_calloc(n, sizeof(double));
    p->hop_inv_beta = ek_calloc(n, sizeof(double));
    p->boundary = ek_calloc(p->n_items, sizeof(double));
    if (!p->hop_alpha || !p->hop_inv_beta || !p->boundary)
        return EK_ENOMEM;
    for (uint32_t a = 0; a < p->n_kinds; a++)
        for (uint32_t b = 0; b < p->n_kinds; b++)
            set_hop(p, a, b);
    p->uniform = all_alike(p, r->fixed_order);
    if (p->uniform)
        level_hops(p);
    for (uint32_t i = 0; i < p->n_items; i++)
        p->boundary[i] = (double)p->costs->modules[p->first_item + i].boundary;
    p->sum_steps = (prompt ? 1.0 : 0.0) + w->generate;
    p->sum_tokens = (double)w->prefill_chunk + (double)w->generate * p->group_size;
    p->work_steps = (prompt ? (double)p->chunks : 0) + w->generate;
    p->work_tokens =
        (double)w->batch / p->micro_batches * prompt + (double)w->generate * p->group_size;
    if (p->n_seeing) {
        p->picture_steps = (double)w->images * p->group_size;
        p->picture_tokens = p->picture_steps * w->image_tokens;
    } else if (p->first_item && w->images > 0) {
        p->side_steps = 1;
        p->side_bytes = p->boundary[0] * w->images * w->image_tokens * p->group_size;
    }
    return EK_OK;
}

static bool backwards(const struct ek_problem *p, uint32_t from, uint32_t to)
{
    return p->fixed_order &&
           p->groups[p->kinds[to].group].members[0] <= p->groups[p->kinds[from].group].members[0];
}

double ek_problem_picture_hop(const struct ek_problem *p, int32_t i, uint32_t from, uint32_t to)
{
    size_t k = (size_t)from * p->n_kinds + to;

    if (i >= (int32_t)p->n_seeing)
        return 0;
    if (isinf(p->hop_alpha[k]))
        return INFINITY;
    return p->picture_steps * p->hop_alpha[k] +
           p->picture_tokens * p->boundary[i] * p->hop_inv_beta[k];
}

double ek_problem_hop(const struct ek_problem *p, int32_t i, uint32_t from, uint32_t to)
{
    size_t k = (size_t)from * p->n_kinds + to;

    if (backwards(p, from, to))
        return INFINITY;
    if (i < (int32_t)p->n_seeing)
        return ek_problem_picture_hop(p, i, from, to);
    return p->sum_steps * p->hop_alpha[k] + p->sum_tokens * p->boundary[i] * p->hop_inv_beta[k];
}

double ek_problem_hop_work(const struct ek_problem *p, int32_t i, uint32_t from, uint32_t to)
{
    size_t k = (size_t)from * p->n_kinds + to;

    if (i < (int32_t)p->n_seeing)
        return ek_problem_picture_hop(p, i, from, to);
    return p->work_steps * p->hop_alpha[k] + p->work_tokens * p->boundary[i] * p->hop_inv_beta[k];
}

double ek_problem_side_hop(const struct ek_problem *p, uint32_t from, uint32_t first)
{
    size_t k = (size_t)from * p->n_kinds + first;

    if (p->workload.images == 0 || p->n_seeing)
        return 0;
    return p->side_steps * p->hop_alpha[k] + p->side_bytes * p->hop_inv_beta[k];
}

/* ---- Columns ------------------------------------------------------------------------------------
 */
static enum ek_status add_column(struct ek_problem *p, size_t *cap, const struct ek_column *shape,
                                 uint64_t total, bool *known)
{
    struct ek_column c = *shape;
    const struct ek_group *g = &p->groups[p->kinds[c.kind].group];
    double chunks = p->chunks ? p->chunks : 1;
    struct ek_stage_times t;

    *known = ek_problem_times(p, c.kind, c.first, c.last, c.sides, &t, &p->outside);
    if (!*known)
        return EK_OK;
    c.prefill = t.prefill;
    c.decode = t.decode;
    c.total = total;
    c.work = c.prefill + p->workload.generate * c.decode;
    c.sum = t.passing / chunks + p->workload.generate * c.decode;
    c.ratio = (double)total / (double)(g->cap ? g->cap : 1);
    EK_TRY(ek_grow((void **)&p->columns, cap, p->n_columns + 1, sizeof(c), MAX_COLUMNS));
    p->columns[p->n_columns++] = c;
    return EK_OK;
}

static void use_sides(const struct ek_problem *p, uint32_t kind, uint32_t sides,
                      struct ek_memory_use *u)
{
    for (uint32_t s = 0; s < p->n_sides; s++)
        for (uint32_t j = 0; (sides >> s & 1) && j < p->sides[s].n; j++)
            ek_use_add(p, kind, p->sides[s].modules[j], false, u);
}

/* Columns of a kind that begin at an item with a set of side modules, longer and longer until the
 * memory is full: it never shrinks with length. */
static enum ek_status columns_from(struct ek_problem *p, size_t *cap, uint32_t kind, int32_t first,
                                   uint32_t sides)
{
    uint64_t limit = p->groups[p->kinds[kind].group].cap;
    bool apart = ek_sides_apart(first, (int32_t)p->n_items, sides);
    struct ek_memory_use u, whole, beside = {0};
    struct ek_column c = {.kind = kind, .first = first, .sides = sides};
    bool known = true;

    ek_use_begin(p, kind, &u);
    if (apart)
        beside = ek_problem_memory(p, kind, (int32_t)p->n_items, (int32_t)p->n_items - 1, sides);
    else
        use_sides(p, kind, sides, &u);
    for (c.last = first; c.last < (int32_t)p->n_items; c.last++) {
        uint32_t m = p->first_item + (uint32_t)c.last;
        ek_use_add(p, kind, m, ek_tied_within(p, m, first, c.last), &u);
        whole = u;
        ek_use_cross(p, kind, first, (int32_t)p->n_items, &whole);
        ek_use_end(p, kind, &whole);
        ek_use_join(&whole, &beside);
        if (whole.total > limit) /* even with nothing behind it */
            break;
        whole = u;
        ek_use_cross(p, kind, first, c.last, &whole);
        ek_use_end(p, kind, &whole);
        ek_use_join(&whole, &beside);
        if (whole.total > limit)
            continue;
        if (!ek_rules_allow(p, kind, first, c.last, sides))
            continue;
        EK_TRY(add_column(p, cap, &c, whole.total, &known));
        if (!known && p->costs->n_stages == 0)
            break;
    }
    return EK_OK;
}

static enum ek_status side_column(struct ek_problem *p, size_t *cap, uint32_t kind, uint32_t sides)
{
    struct ek_column c = {.kind = kind,
                          .first = (int32_t)p->n_items,
                          .last = (int32_t)p->n_items - 1,
                          .sides = sides};
    struct ek_memory_use u = ek_problem_memory(p, kind, c.first, c.last, sides);
    bool known;

    if (u.total > p->groups[p->kinds[kind].group].cap ||
        !ek_rules_allow(p, kind, c.first, c.last, sides))
        return EK_OK;
    return add_column(p, cap, &c, u.total, &known);
}

static enum ek_status make_columns(struct ek_problem *p)
{
    size_t cap = 0;

    p->start = ek_calloc(p->n_items + 2, sizeof(*p->start));
    if (p->start == NULL)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < p->n_items; i++) {
        p->start[i] = p->n_columns;
        for (uint32_t k = 0; k < p->n_kinds; k++)
            for (uint32_t s = 0; s < 1u << p->n_sides; s++)
                if (s == 0 || i == 0 || !p->sides_first)
                    EK_TRY(columns_from(p, &cap, k, (int32_t)i, s));
    }
    p->start[p->n_items] = p->n_columns;
    for (uint32_t k = 0; k < p->n_kinds && !p->sides_first; k++)
        for (uint32_t s = 1; s < 1u << p->n_sides; s++)
            EK_TRY(side_column(p, &cap, k, s));
    p->start[p->n_items + 1] = p->n_columns;
    return EK_OK;
}

/* ---- What fits nowhere --------------------------------------------------------------------------
 */
static enum ek_status nowhere(const struct ek_problem *p, uint32_t m, int32_t item)
{
    char need[EK_UNIT_LEN], have[EK_UNIT_LEN];
    uint64_t least = UINT64_MAX, most = 0;

    for (uint32_t k = 0; k < p->n_kinds; k++) {
        uint64_t cap = p->groups[p->kinds[k].group].cap;
        struct ek_memory_use u = {0};
        if (item >= 0)
            u = ek_problem_memory(p, k, item, item, 0);
        least = item >= 0 && u.total < least ? u.total : least;
        most = cap > most ? cap : most;
    }
    if (item < 0 || least <= most)
        return ek_error(EK_NO,
                        "module \"%s\" has no device: pins, bans, colocation, missing times "
                        "and memory leave none",
                        p->costs->modules[m].name);
    return ek_error(EK_NO,
                    "module \"%s\" needs %s (weights, cache of %u x %u tokens, buffers and "
                    "overhead) and the largest budget less margin is %s",
                    p->costs->modules[m].name, ek_format_bytes(need, least), p->workload.batch,
                    p->workload.context, ek_format_bytes(have, most));
}

static enum ek_status check_cover(const struct ek_problem *p)
{
    bool covered[EK_PLAN_MAX_MODULES] = {false};
    uint32_t sides = 0;

    for (size_t i = 0; i < p->n_columns; i++) {
        sides |= p->columns[i].sides;
        for (int32_t k = p->columns[i].first; k <= p->columns[i].last; k++)
            covered[k] = true;
    }
    for (uint32_t i = 0; i < p->n_items; i++)
        if (!covered[i])
            return nowhere(p, p->first_item + i, (int32_t)i);
    for (uint32_t s = 0; s < p->n_sides; s++)
        if (!(sides >> s & 1))
            return nowhere(p, p->sides[s].modules[0], -1);
    return EK_OK;
}

enum ek_status ek_problem_new(const struct ek_costs *c, const struct ek_request *r, uint32_t m,
                              struct ek_problem **out)
{
    struct ek_problem *p = ek_calloc(1, sizeof(*p));
    enum ek_status st;

    if (p == NULL)
        return EK_ENOMEM;
    p->costs = c;
    p->micro_batches = m;
    p->first_item = (uint32_t)c->n_sides;
    p->n_items = (uint32_t)(c->n_modules - c->n_sides);
    while (p->n_seeing < p->n_items &&
           ek_cost_module_sees(&c->modules[p->first_item + p->n_seeing]))
        p->n_seeing++;
    p->use_all = r->use_all;
    p->fixed_order = r->fixed_order;
    p->max_stages = r->max_stages;
    p->sides_first = r->sides_first;
    p->whole_layers = r->whole_layers;
    EK_GOTO(fill_workload(p, r, m), st, fail);
    EK_GOTO(ek_problem_devices(p, r), st, fail);
    EK_GOTO(make_sides(p, r), st, fail);
    EK_GOTO(make_kinds(p, r), st, fail);
    EK_GOTO(price_modules(p, r->measured_chunk), st, fail);
    ek_price_chain(p);
    EK_GOTO(make_hops(p, r), st, fail);
    EK_GOTO(make_columns(p), st, fail);
    EK_GOTO(check_cover(p), st, fail);
    *out = p;
    return EK_OK;

fail:
    ek_problem_free(p);
    return st;
}

void ek_problem_free(struct ek_problem *p)
{
    if (p == NULL)
        return;
    for (uint32_t d = 0; d < p->n_devices; d++)
        free(p->devices[d].banned);
    free(p->kinds);
    free(p->columns);
    free(p->start);
    free(p->hop_alpha);
    free(p->hop_inv_beta);
    free(p->boundary);
    free(p->together);
    free(p->cost);
    free(p);
}
