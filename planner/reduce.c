/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Makes large integer programs small: a column that cannot be in any plan of at most the cutoff is
 * left out. Given any prices of the devices, a column's bound is the cheapest way to reach it, its
 * own cost and the cheapest way on, prices included, less the price of all there is. The prices are
 * a hint from the dynamic program's bound and any prices give valid bounds; the passes below are
 * the integer program's own, so that the two methods still share no code that decides.
 */
#include "planner/reduce.h"

#include <math.h>
#include <stdlib.h>

struct passes {
    const struct ek_problem *p;
    const struct ek_limits *l;
    const uint8_t *deny;
    const double *prices; /* as reduce.h has them */
    const double *shared; /* of them, those of the shared memories */
    uint32_t masks, kinds;
    double *into;   /* [n_items][masks][kinds] cheapest way to begin a stage of the kind there */
    double *ending; /* [n_items + 1][masks][kinds] cheapest way to have ended one there */
    double *onward; /* [n_items + 1][masks][kinds] cheapest way on from there */
    double *begin;  /* [n_items][masks][kinds] cheapest way on with a stage of the kind there */
};

static size_t at(const struct passes *s, uint32_t i, uint32_t mask, uint32_t kind)
{
    return ((size_t)i * s->masks + mask) * s->kinds + kind;
}

static bool allowed(const struct passes *s, size_t i)
{
    const struct ek_column *c = &s->p->columns[i];

    return c->work <= s->l->work && c->prefill <= s->l->prefill && c->ratio <= s->l->ratio &&
           !(s->deny && s->deny[i]);
}

static double priced(const struct passes *s, const struct ek_column *c)
{
    const struct ek_kind *k = &s->p->kinds[c->kind];
    int32_t pool = s->p->groups[k->group].pool;
    double bytes = (double)c->total * k->tp;

    return c->sum + s->prices[k->group] * k->tp +
           (s->p->max_stages ? s->prices[s->p->n_groups] : 0) +
           (pool >= 0 ? s->shared[pool] * bytes / fmax(1, (double)s->p->pools[pool]) : 0);
}

static double hop(const struct passes *s, uint32_t boundary, uint32_t from, uint32_t to)
{
    if (ek_problem_hop_work(s->p, (int32_t)boundary, from, to) > s->l->hop)
        return INFINITY;
    return ek_problem_hop(s->p, (int32_t)boundary, from, to);
}

static void lower(double *v, double to)
{
    if (to < *v)
        *v = to;
}

static void enter_position(struct passes *s, uint32_t i)
{
    for (uint32_t to = 0; to < s->kinds; to++) {
        if (i == 0)
            s->into[at(s, 0, 0, to)] = 0;
        for (uint32_t from = 0; i > 0 && from < s->kinds; from++) {
            double h = hop(s, i - 1, from, to);
            for (uint32_t mask = 0; mask < s->masks; mask++)
                lower(&s->into[at(s, i, mask, to)], s->ending[at(s, i, mask, from)] + h);
        }
    }
}

static void forward(struct passes *s)
{
    for (uint32_t i = 0; i < s->p->n_items; i++) {
        enter_position(s, i);
        for (size_t q = s->p->start[i]; q < s->p->start[i + 1]; q++) {
            const struct ek_column *c = &s->p->columns[q];
            if (!allowed(s, q))
                continue;
            for (uint32_t mask = 0; mask < s->masks; mask++)
                if (!(c->sides & mask))
                    lower(&s->ending[at(s, (uint32_t)c->last + 1, mask | c->sides, c->kind)],
                          s->into[at(s, i, mask, c->kind)] + priced(s, c));
        }
    }
}

/* Side groups left at the end get stages of their own. */
static void backward_end(struct passes *s)
{
    uint32_t n = s->p->n_items;

    for (uint32_t mask = s->masks; mask-- > 0;) {
        double best = mask == s->masks - 1 ? 0 : INFINITY;
        for (size_t q = s->p->start[n]; q < s->p->start[n + 1]; q++)
            if (allowed(s, q) && !(s->p->columns[q].sides & mask))
                lower(&best, priced(s, &s->p->columns[q]) +
                                 s->onward[at(s, n, mask | s->p->columns[q].sides, 0)]);
        for (uint32_t k = 0; k < s->kinds; k++)
            s->onward[at(s, n, mask, k)] = best;
    }
}

static void backward_position(struct passes *s, uint32_t i)
{
    double *begin = s->begin + at(s, i, 0, 0);

    for (size_t k = 0; k < (size_t)s->masks * s->kinds; k++)
        begin[k] = INFINITY;
    for (size_t q = s->p->start[i]; q < s->p->start[i + 1]; q++) {
        const struct ek_column *c = &s->p->columns[q];
        if (!allowed(s, q))
            continue;
        for (uint32_t mask = 0; mask < s->masks; mask++)
            if (!(c->sides & mask))
                lower(&begin[(size_t)mask * s->kinds + c->kind],
                      priced(s, c) +
                          s->onward[at(s, (uint32_t)c->last + 1, mask | c->sides, c->kind)]);
    }
    for (uint32_t from = 0; i > 0 && from < s->kinds; from++)
        for (uint32_t to = 0; to < s->kinds; to++) {
            double h = hop(s, i - 1, from, to);
            for (uint32_t mask = 0; mask < s->masks; mask++)
                lower(&s->onward[at(s, i, mask, from)], h + begin[(size_t)mask * s->kinds + to]);
        }
}

static double price_of_all(const struct passes *s)
{
    double all = s->p->max_stages ? s->prices[s->p->n_groups] * s->p->max_stages : 0;

    for (uint32_t g = 0; g < s->p->n_groups; g++)
        all += s->prices[g] * s->p->groups[g].count;
    for (uint32_t i = 0; i < s->p->n_pools; i++)
        all += s->shared[i];
    return all;
}

static void drop_columns(const struct passes *s, double cutoff, double filled, uint8_t *drop)
{
    const struct ek_problem *p = s->p;
    double all = price_of_all(s);

    for (size_t q = 0; q < p->n_columns; q++) {
        const struct ek_column *c = &p->columns[q];
        double best = c->first > c->last ? -INFINITY : INFINITY;
        for (uint32_t mask = 0; c->first <= c->last && mask < s->masks; mask++)
            if (!(c->sides & mask))
                lower(&best, s->into[at(s, (uint32_t)c->first, mask, c->kind)] + priced(s, c) +
                                 s->onward[at(s, (uint32_t)c->last + 1, mask | c->sides, c->kind)]);
        drop[q] =
            !allowed(s, q) || best - all > cutoff || best - all + s->l->fill * c->prefill > filled;
    }
}

static bool allocate(struct passes *s, size_t n)
{
    double **all[] = {&s->into, &s->ending, &s->onward, &s->begin};

    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++) {
        *all[i] = ek_calloc(n, sizeof(double));
        if (*all[i] == NULL)
            return false;
        for (size_t k = 0; k < n; k++)
            (*all[i])[k] = INFINITY;
    }
    return true;
}

enum ek_status ek_reduce(const struct ek_problem *p, const struct ek_limits *l, double filled,
                         const uint8_t *deny, const double *prices, uint8_t *drop, double *least)
{
    struct passes s = {.p = p,
                       .l = l,
                       .deny = deny,
                       .prices = prices,
                       .shared = prices + p->n_groups + (p->max_stages ? 1 : 0)};
    double cutoff = l->sum + fabs(l->sum) * 1e-6 + 1e-12;
    bool made;

    s.masks = 1u << p->n_sides;
    s.kinds = p->n_kinds;
    made = allocate(&s, (size_t)(p->n_items + 1) * s.masks * s.kinds);
    if (made) {
        forward(&s);
        backward_end(&s);
        for (uint32_t i = p->n_items; i-- > 0;)
            backward_position(&s, i);
        drop_columns(&s, cutoff, filled + fabs(filled) * 1e-6 + 1e-12, drop);
        *least = INFINITY;
        for (uint32_t k = 0; k < s.kinds; k++)
            lower(least, s.begin[at(&s, 0, 0, k)]);
        *least -= price_of_all(&s);
    }
    free(s.into);
    free(s.ending);
    free(s.onward);
    free(s.begin);
    return made ? EK_OK : EK_ENOMEM;
}
