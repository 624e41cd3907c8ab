/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to the dynamic program: limits applied to columns and hops, and the Lagrangian bound that
 * prunes it (device counts and shared memories priced instead of enforced, solved as a shortest
 * path).
 */
#ifndef EK_PLANNER_BOUND_H
#define EK_PLANNER_BOUND_H

#include "planner/planner.h"

/* Device groups, the number of stages where it is limited, shared memories. */
#define EK_MAX_RESOURCES (EK_PLAN_MAX_DEVICES + 1 + EK_PLAN_MAX_POOLS)

struct ek_open {  /* a column within the limits: what the passes over all of them read */
    double cost;  /* with what it always brings (uniform side hop) */
    double share; /* of the shared memory that its kind draws from; 0: it has its own */
    uint32_t column, sides;
    uint16_t kind, end; /* the position behind its last item */
};
struct ek_bound {
    const struct ek_problem *p;
    const struct ek_limits *limits;
    struct ek_open *open;  /* grouped by position as start says, then by kind */
    size_t *start;         /* [n_items + 2] */
    uint32_t masks, width; /* side masks; kinds a state tells apart (1 when hops are uniform) */
    uint32_t n_counted, n_resources; /* devices and stages; with the shared memories behind them */
    uint32_t supply[EK_MAX_RESOURCES]; /* 1 of a shared memory: all of it */
    double price[EK_MAX_RESOURCES], best_price[EK_MAX_RESOURCES];
    double *kind_price;  /* [n_kinds] of a stage of the kind, at the prices */
    double *share_price; /* [n_kinds] of the whole shared memory that it draws from */
    double *to_go;       /* [n_items + 1][masks][width] cost of completing, prices included */
    uint32_t *choice;    /* [n_items + 1][masks][width] column that begins the completion */
    double *best_begin;  /* [n_items][masks][n_kinds] cheapest from a position with a kind */
    uint32_t *begin_by;  /* [n_items][masks][n_kinds] its column */
    double bound;        /* proven: no plan within the limits is cheaper; infinite: there is none */
    bool any;            /* whether there is a plan at all is asked: nothing costs anything ... */
    /* ... and whatever follows whatever can be reached: then groups that can hold the same stages
     * count as one */
    bool linked;
    uint32_t like[EK_PLAN_MAX_DEVICES]; /* the group that a group counts with */
};
enum ek_status ek_bound_new(const struct ek_problem *p, const struct ek_limits *l,
                            const uint8_t *deny, struct ek_bound *b);
/* Improves the prices for at most rounds, until the bound exceeds upper. */
void ek_bound_improve(struct ek_bound *b, double upper, uint32_t rounds, struct ek_effort *e);
/* No plan within the limits has a longest prefill of less, whatever its memories; infinite: there
 * is none. */
enum ek_status ek_bound_longest(const struct ek_bound *b, double *least);
/* Leaves out the columns whose prefill is longer. */
void ek_bound_tighten(struct ek_bound *b, double prefill);
/* Columns of groups that count as one, spread over those groups. */
void ek_bound_spread(const struct ek_bound *b, struct ek_answer *a);
void ek_bound_free(struct ek_bound *b);

/* Hop over boundary i within the limits, or infinity. */
double ek_bound_hop(const struct ek_bound *b, int32_t i, uint32_t from, uint32_t to);
static inline size_t ek_bound_at(const struct ek_bound *b, uint32_t i, uint32_t mask, uint32_t kind)
{
    return ((size_t)i * b->masks + mask) * b->width + (b->width > 1 ? kind : 0);
}
/* What the column takes of the resources, at the prices. */
static inline double ek_bound_paid(const struct ek_bound *b, const struct ek_open *o)
{
    return b->kind_price[o->kind] + b->share_price[o->kind] * o->share;
}
/* Least cost of the column and of all behind it, prices included; sides: done before it. */
static inline double ek_bound_through(const struct ek_bound *b, const struct ek_open *o,
                                      uint32_t sides)
{
    return o->cost + ek_bound_paid(b, o) +
           b->to_go[ek_bound_at(b, o->end, sides | o->sides, o->kind)];
}
static inline size_t ek_begin_at(const struct ek_bound *b, uint32_t i, uint32_t mask, uint32_t kind)
{
    return ((size_t)i * b->masks + mask) * b->p->n_kinds + kind;
}

#endif
