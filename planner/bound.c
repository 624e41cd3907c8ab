/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The bound that prunes the dynamic program. With a price on each device instead of a count, and on
 * the bytes of a shared memory instead of a limit, the cheapest plan is a shortest path over (item,
 * side mask, kind of the last stage); less the price of all there is, its length bounds every plan
 * from below. A subgradient method seeks the prices
 * that bound best; on these problems that is the bound of the linear relaxation.
 */
#include "planner/bound.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool within(const struct ek_limits *l, const struct ek_column *c)
{
    return c->work <= l->work && c->prefill <= l->prefill && c->ratio <= l->ratio;
}

static double column_cost(const struct ek_bound *b, const struct ek_column *c)
{
    const struct ek_problem *p = b->p;
    bool sends = p->uniform && p->n_sides && (c->sides >> p->exit_side & 1) && c->first > 0;
    if (b->any)
        return 0;
    return c->sum + (sends ? ek_problem_side_hop(p, c->kind, c->kind) : 0);
}

double ek_bound_hop(const struct ek_bound *b, int32_t i, uint32_t from, uint32_t to)
{
    double hop;

    if (b->linked)
        return 0;
    if (ek_problem_hop_work(b->p, i, from, to) > b->limits->hop)
        return INFINITY;
    hop = ek_problem_hop(b->p, i, from, to);
    return b->any && !isinf(hop) ? 0 : hop;
}

/* There are links between all kinds that can be used together. */
static bool all_linked(const struct ek_problem *p, const struct ek_limits *l)
{
    for (size_t i = 0; i < (size_t)p->n_kinds * p->n_kinds; i++) {
        const struct ek_kind *a = &p->kinds[i / p->n_kinds], *b = &p->kinds[i % p->n_kinds];
        bool apart = a->group == b->group && a->tp + b->tp > p->groups[a->group].count;
        if (isinf(p->hop_alpha[i]) && !apart)
            return false;
    }
    return !p->fixed_order && isinf(l->hop);
}

static void set_kind_prices(struct ek_bound *b)
{
    double stage = b->n_counted > b->p->n_groups ? b->price[b->p->n_groups] : 0;

    for (uint32_t k = 0; k < b->p->n_kinds; k++) {
        int32_t pool = b->p->groups[b->p->kinds[k].group].pool;
        b->kind_price[k] = b->price[b->p->kinds[k].group] * b->p->kinds[k].tp + stage;
        b->share_price[k] = pool < 0 ? 0 : b->price[b->n_counted + (uint32_t)pool];
    }
}

static void set_supplies(struct ek_bound *b)
{
    b->n_resources = b->p->n_groups;
    for (uint32_t g = 0; g < b->p->n_groups; g++)
        b->supply[b->like[g]] += b->p->groups[g].count;
    if (b->p->max_stages)
        b->supply[b->n_resources++] = b->p->max_stages;
    b->n_counted = b->n_resources;
    for (uint32_t i = 0; i < b->p->n_pools; i++)
        b->supply[b->n_resources++] = 1;
}

/* Of the shared memory that it draws from. */
static double share_of(const struct ek_problem *p, const struct ek_column *c)
{
    const struct ek_kind *k = &p->kinds[c->kind];
    int32_t pool = p->groups[k->group].pool;

    return pool < 0 ? 0 : (double)c->total * k->tp / fmax(1, (double)p->pools[pool]);
}

static struct ek_open opened(const struct ek_bound *b, uint32_t column)
{
    const struct ek_problem *p = b->p;
    const struct ek_column *c = &p->columns[column];

    return (struct ek_open){.cost = column_cost(b, c),
                            .share = share_of(p, c),
                            .column = column,
                            .sides = c->sides,
                            .kind = (uint16_t)c->kind,
                            .end = (uint16_t)(c->last + 1)};
}

/* ---- Groups that are alike but for their times --------------------------------------------------
 */
static uint32_t group_of(const struct ek_problem *p, size_t column)
{
    return p->kinds[p->columns[column].kind].group;
}

/* The next column of a group within the limits, or n_columns. */
static size_t next_of(const struct ek_bound *b, const uint8_t *deny, uint32_t group, size_t from)
{
    const struct ek_problem *p = b->p;

    while (from < p->n_columns && (group_of(p, from) != group || (deny && deny[from]) ||
                                   !within(b->limits, &p->columns[from])))
        from++;
    return from;
}

static bool same_stage(const struct ek_column *a, const struct ek_column *b)
{
    return a->first == b->first && a->last == b->last && a->sides == b->sides;
}

/* Devices of theirs hold the same stages in the same bytes, each on its own. */
static bool hold_the_same(const struct ek_bound *b, const uint8_t *deny, uint32_t g, uint32_t h)
{
    const struct ek_problem *p = b->p;
    size_t i = next_of(b, deny, g, 0), j = next_of(b, deny, h, 0);

    if (p->groups[g].pool != p->groups[h].pool)
        return false;
    while (i < p->n_columns && j < p->n_columns) {
        const struct ek_column *x = &p->columns[i], *y = &p->columns[j];
        if (!same_stage(x, y) || x->total != y->total || p->kinds[x->kind].tp != 1 ||
            p->kinds[y->kind].tp != 1)
            return false;
        i = next_of(b, deny, g, i + 1);
        j = next_of(b, deny, h, j + 1);
    }
    return i == p->n_columns && j == p->n_columns;
}

static void find_like(struct ek_bound *b, const uint8_t *deny)
{
    for (uint32_t g = 0; g < b->p->n_groups; g++) {
        uint32_t h = 0;
        while (h < g && !(b->linked && b->like[h] == h && hold_the_same(b, deny, h, g)))
            h++;
        b->like[g] = h;
    }
}

void ek_bound_spread(const struct ek_bound *b, struct ek_answer *a)
{
    const struct ek_problem *p = b->p;
    uint32_t left[EK_PLAN_MAX_DEVICES];

    for (uint32_t g = 0; g < p->n_groups; g++)
        left[g] = p->groups[g].count;
    for (uint32_t i = 0; i < a->n; i++) {
        uint32_t like = group_of(p, a->columns[i]), g = like;
        uint32_t tp = p->kinds[p->columns[a->columns[i]].kind].tp;
        size_t c = p->start[p->columns[a->columns[i]].first];
        while (b->like[g] != like || left[g] < tp)
            g++;
        while (group_of(p, c) != g || p->kinds[p->columns[c].kind].tp != tp ||
               !same_stage(&p->columns[c], &p->columns[a->columns[i]]))
            c++;
        left[g] -= tp;
        a->columns[i] = (uint32_t)c;
    }
}

enum ek_status ek_bound_new(const struct ek_problem *p, const struct ek_limits *l,
                            const uint8_t *deny, struct ek_bound *b)
{
    size_t n = 0, states;

    *b = (struct ek_bound){.p = p, .limits = l, .masks = 1u << p->n_sides};
    b->any = isinf(l->sum) && isinf(l->enough) && l->enough > 0;
    b->linked = b->any && all_linked(p, l);
    b->width = p->uniform ? 1 : p->n_kinds;
    states = (size_t)(p->n_items + 1) * b->masks * b->width;
    b->open = ek_calloc(p->n_columns, sizeof(*b->open));
    b->kind_price = ek_calloc(p->n_kinds, sizeof(double));
    b->share_price = ek_calloc(p->n_kinds, sizeof(double));
    b->start = ek_calloc(p->n_items + 2, sizeof(*b->start));
    b->to_go = ek_calloc(states, sizeof(double));
    b->choice = ek_calloc(states, sizeof(uint32_t));
    b->best_begin = ek_calloc((size_t)p->n_items * b->masks * p->n_kinds, sizeof(double));
    b->begin_by = ek_calloc((size_t)p->n_items * b->masks * p->n_kinds, sizeof(uint32_t));
    if (!b->open || !b->kind_price || !b->share_price || !b->start || !b->to_go || !b->choice ||
        !b->best_begin || !b->begin_by) {
        ek_bound_free(b);
        return EK_ENOMEM;
    }
    find_like(b, deny);
    for (uint32_t i = 0; i <= p->n_items; i++) {
        b->start[i] = n;
        for (size_t c = p->start[i]; c < p->start[i + 1]; c++)
            if (b->like[group_of(p, c)] == group_of(p, c) && within(l, &p->columns[c]) &&
                !(deny && deny[c]))
                b->open[n++] = opened(b, (uint32_t)c);
    }
    b->start[p->n_items + 1] = n;
    set_supplies(b);
    return EK_OK;
}

void ek_bound_tighten(struct ek_bound *b, double prefill)
{
    size_t kept = 0, from = 0;

    for (uint32_t i = 0; i <= b->p->n_items; i++) {
        size_t end = b->start[i + 1];
        b->start[i] = kept;
        for (; from < end; from++)
            if (b->p->columns[b->open[from].column].prefill <= prefill)
                b->open[kept++] = b->open[from];
    }
    b->start[b->p->n_items + 1] = kept;
}

/* ---- The longest prefill ------------------------------------------------------------------------
 * The longest is at least any weighted mean, with a weight on each device: the cheapest chain of
 * columns by weighted prefill, over the weight of all devices. Weights are speeds, so that in a
 * plan that is balanced all count alike. */
/* Cheapest chain over columns of one kind (or all: UINT32_MAX), an item that none has for nothing.
 */
static double cheapest_chain(const struct ek_bound *b, uint32_t kind, const double *weight,
                             double *to_go)
{
    for (uint32_t i = b->p->n_items; i-- > 0;) {
        double best = INFINITY;
        for (size_t a = b->start[i]; a < b->start[i + 1]; a++) {
            const struct ek_open *o = &b->open[a];
            if (kind == UINT32_MAX || o->kind == kind)
                best =
                    fmin(best, weight[o->kind] * b->p->columns[o->column].prefill + to_go[o->end]);
        }
        to_go[i] = isinf(best) && kind != UINT32_MAX ? to_go[i + 1] : best;
    }
    return to_go[0];
}

enum ek_status ek_bound_longest(const struct ek_bound *b, double *least)
{
    const struct ek_problem *p = b->p;
    double *weight = ek_calloc(p->n_kinds, sizeof(double)), whole, all = 0;
    double *to_go = ek_calloc(p->n_items + 1, sizeof(double));

    *least = 0;
    if (weight && to_go) {
        for (uint32_t k = 0; k < p->n_kinds; k++) {
            weight[k] = p->kinds[k].tp;
            whole = cheapest_chain(b, k, weight, to_go);
            weight[k] = whole > 0 ? p->kinds[k].tp / whole : 0;
        }
        for (uint32_t g = 0; g < p->n_groups; g++) {
            double most = 0; /* of one of its devices */
            for (uint32_t k = 0; k < p->n_kinds; k++)
                if (p->kinds[k].group == g)
                    most = fmax(most, weight[k] / p->kinds[k].tp);
            all += most * p->groups[g].count;
        }
        if (all > 0)
            *least = cheapest_chain(b, UINT32_MAX, weight, to_go) / all;
    }
    free(weight);
    free(to_go);
    return weight && to_go ? EK_OK : EK_ENOMEM;
}

void ek_bound_free(struct ek_bound *b)
{
    free(b->open);
    free(b->kind_price);
    free(b->share_price);
    free(b->start);
    free(b->to_go);
    free(b->choice);
    free(b->best_begin);
    free(b->begin_by);
}

/* ---- One shortest path --------------------------------------------------------------------------
 */
/* Behind the last item: side groups that are still to be placed get stages of their own. */
static void finish_sides(struct ek_bound *b)
{
    const struct ek_problem *p = b->p;

    for (uint32_t mask = b->masks; mask-- > 0;) {
        double best = mask == b->masks - 1 ? 0 : INFINITY;
        uint32_t by = UINT32_MAX;
        for (size_t i = b->start[p->n_items]; i < b->start[p->n_items + 1]; i++) {
            double v = b->open[i].sides & mask ? INFINITY : ek_bound_through(b, &b->open[i], mask);
            if (v < best) {
                best = v;
                by = b->open[i].column;
            }
        }
        for (uint32_t k = 0; k < b->width; k++) {
            b->to_go[ek_bound_at(b, p->n_items, mask, k)] = best;
            b->choice[ek_bound_at(b, p->n_items, mask, k)] = by;
        }
    }
}

static void cheapest_begins(struct ek_bound *b, uint32_t i)
{
    const struct ek_problem *p = b->p;

    for (size_t k = 0; k < (size_t)b->masks * p->n_kinds; k++)
        b->best_begin[ek_begin_at(b, i, 0, 0) + k] = INFINITY;
    for (size_t a = b->start[i]; a < b->start[i + 1]; a++) {
        const struct ek_open *o = &b->open[a];
        for (uint32_t mask = 0; mask < b->masks; mask++) {
            size_t at = ek_begin_at(b, i, mask, o->kind);
            double v = o->sides & mask ? INFINITY : ek_bound_through(b, o, mask);
            if (v < b->best_begin[at]) {
                b->best_begin[at] = v;
                b->begin_by[at] = o->column;
            }
        }
    }
}

static void cheapest_hops(struct ek_bound *b, uint32_t i)
{
    const struct ek_problem *p = b->p;
    int32_t boundary = (int32_t)i - 1;

    for (uint32_t k = 0; k < b->width; k++) {
        for (uint32_t mask = 0; mask < b->masks; mask++)
            b->to_go[ek_bound_at(b, i, mask, k)] = INFINITY;
        for (uint32_t to = 0; to < p->n_kinds; to++) {
            double hop = i == 0 ? 0 : ek_bound_hop(b, boundary, k, to);
            for (uint32_t mask = 0; mask < b->masks && !isinf(hop); mask++) {
                size_t at = ek_bound_at(b, i, mask, k);
                double v = hop + b->best_begin[ek_begin_at(b, i, mask, to)];
                if (v < b->to_go[at]) {
                    b->to_go[at] = v;
                    b->choice[at] = b->begin_by[ek_begin_at(b, i, mask, to)];
                }
            }
        }
    }
}

static double shortest_path(struct ek_bound *b)
{
    double all = 0;

    set_kind_prices(b);
    finish_sides(b);
    for (uint32_t i = b->p->n_items; i-- > 0;) {
        cheapest_begins(b, i);
        cheapest_hops(b, i);
    }
    for (uint32_t r = 0; r < b->n_resources; r++)
        all += b->price[r] * b->supply[r];
    return b->to_go[0] - all;
}

/* What the path just found takes of each resource, less the supply. */
static void excess(const struct ek_bound *b, double g[EK_MAX_RESOURCES])
{
    const struct ek_problem *p = b->p;
    uint32_t i = 0, mask = 0, kind = 0;

    for (uint32_t r = 0; r < b->n_resources; r++)
        g[r] = -(double)b->supply[r];
    while (i < p->n_items || mask != b->masks - 1) {
        const struct ek_column *c = &p->columns[b->choice[ek_bound_at(b, i, mask, kind)]];
        uint32_t group = p->kinds[c->kind].group;
        g[group] += p->kinds[c->kind].tp;
        if (b->n_counted > p->n_groups)
            g[p->n_groups] += 1;
        if (p->groups[group].pool >= 0)
            g[b->n_counted + (uint32_t)p->groups[group].pool] += share_of(p, c);
        mask |= c->sides;
        kind = c->kind;
        i = (uint32_t)c->last + 1;
    }
}

/* ---- Prices -------------------------------------------------------------------------------------
 */
/* Above every plan: as many stages as items, each as dear as can be. */
static double natural_upper(const struct ek_bound *b)
{
    const struct ek_problem *p = b->p;
    double column = 0, hop = 0, bytes = 0;

    for (size_t i = 0; i < b->start[p->n_items + 1]; i++)
        column = fmax(column, b->open[i].cost);
    for (uint32_t i = 0; i < p->n_items; i++)
        bytes = fmax(bytes, p->boundary[i]);
    bytes = fmax(p->sum_tokens, p->picture_tokens) * bytes + p->side_bytes;
    for (size_t i = 0; i < (size_t)p->n_kinds * p->n_kinds; i++)
        if (!isinf(p->hop_alpha[i]))
            hop = fmax(hop, (fmax(p->sum_steps, p->picture_steps) + 1) * p->hop_alpha[i] +
                                bytes * p->hop_inv_beta[i]);
    return (column + hop) * fmin(p->n_items + p->n_sides, p->n_devices) * 1.01 + 1e-9;
}

/* Shor's r-algorithm: subgradient steps in a space that is stretched, step by step, along the
 * difference of successive subgradients, which takes the zigzag out of them. */
struct ascent {
    double x[EK_MAX_RESOURCES], g[EK_MAX_RESOURCES]; /* free variables; subgradient at them */
    double space[EK_MAX_RESOURCES][EK_MAX_RESOURCES];
    uint32_t n, rounds;
    double step, target;
    bool over;
};

static bool is_free(const struct ek_bound *b, uint32_t r)
{
    return b->p->use_all && r < b->p->n_groups;
}

/* Value and subgradient at x; a price that may not be negative is |x|. */
static void evaluate(struct ek_bound *b, struct ascent *a, struct ek_effort *e)
{
    double v;

    for (uint32_t r = 0; r < a->n; r++)
        b->price[r] = is_free(b, r) ? a->x[r] : fabs(a->x[r]);
    v = shortest_path(b);
    if (v > b->bound) {
        b->bound = v;
        memcpy(b->best_price, b->price, sizeof(b->price));
    }
    a->over = isinf(v) || v > a->target || a->rounds-- == 0 || ek_effort_over(e);
    if (a->over)
        return;
    excess(b, a->g);
    for (uint32_t r = 0; r < a->n; r++)
        if (!is_free(b, r) && (a->x[r] < 0 || (a->x[r] == 0 && a->g[r] < 0)))
            a->g[r] = a->x[r] == 0 ? 0 : -a->g[r];
}

static double normalise(double *v, uint32_t n)
{
    double norm = 0;

    for (uint32_t i = 0; i < n; i++)
        norm += v[i] * v[i];
    norm = sqrt(norm);
    for (uint32_t i = 0; i < n && norm > 0; i++)
        v[i] /= norm;
    return norm;
}

/* out = transposed space * v. */
static void into_space(const struct ascent *a, const double *v, double *out)
{
    for (uint32_t j = 0; j < a->n; j++) {
        out[j] = 0;
        for (uint32_t i = 0; i < a->n; i++)
            out[j] += a->space[i][j] * v[i];
    }
}

static bool direction(const struct ascent *a, double *d)
{
    double in[EK_MAX_RESOURCES];

    into_space(a, a->g, in);
    if (normalise(in, a->n) < 1e-12)
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        d[i] = 0;
        for (uint32_t j = 0; j < a->n; j++)
            d[i] += a->space[i][j] * in[j];
    }
    return true;
}

static void stretch(struct ascent *a, const double *old)
{
    double diff[EK_MAX_RESOURCES], r[EK_MAX_RESOURCES];

    for (uint32_t i = 0; i < a->n; i++)
        diff[i] = a->g[i] - old[i];
    into_space(a, diff, r);
    if (normalise(r, a->n) == 0)
        return;
    for (uint32_t i = 0; i < a->n; i++) {
        double along = 0;
        for (uint32_t j = 0; j < a->n; j++)
            along += a->space[i][j] * r[j];
        for (uint32_t j = 0; j < a->n; j++)
            a->space[i][j] -= 0.55 * along * r[j];
    }
}

static void ascend(struct ek_bound *b, struct ascent *a, struct ek_effort *e)
{
    double d[EK_MAX_RESOURCES], old[EK_MAX_RESOURCES], along;
    uint32_t steps;

    while (!a->over && a->step > 1e-9 * fabs(a->target) && direction(a, d)) {
        memcpy(old, a->g, sizeof(old));
        steps = 0;
        do {
            along = 0;
            for (uint32_t r = 0; r < a->n; r++)
                a->x[r] += a->step * d[r];
            evaluate(b, a, e);
            if (a->over)
                return;
            for (uint32_t r = 0; r < a->n; r++)
                along += a->g[r] * d[r];
            if (++steps % 3 == 0)
                a->step *= 1.5;
        } while (along > 0 && steps < 50);
        if (steps == 1)
            a->step *= 0.85;
        stretch(a, old);
    }
}

void ek_bound_improve(struct ek_bound *b, double upper, uint32_t rounds, struct ek_effort *e)
{
    struct ascent a = {.n = b->n_resources, .rounds = rounds};
    double target = isinf(upper) ? natural_upper(b) : upper;

    if (e->priced == b->p)
        memcpy(b->price, e->prices, sizeof(b->price));
    b->bound = -INFINITY;
    a.target = target * (1 + 1e-9) + 1e-15;
    memcpy(a.x, b->price, sizeof(a.x));
    for (uint32_t r = 0; r < a.n; r++)
        a.space[r][r] = 1;
    evaluate(b, &a, e);
    a.step = fmax(target - b->bound, 0.1 * fabs(target)) / (2.0 * b->p->n_devices);
    if (!a.over)
        ascend(b, &a, e);
    if (isinf(upper) && b->bound > target) /* above every plan: there is none */
        b->bound = INFINITY;
    memcpy(b->price, b->best_price, sizeof(b->price));
    if (!isinf(b->bound)) {
        b->bound = shortest_path(b);
        memcpy(e->prices, b->price, sizeof(b->price));
        e->priced = b->p;
    }
}
