/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A plan close to an earlier one: of those within a slack of the best, one that moves few bytes.
 * Bytes moved take the place of the columns' latency; where latency is what rules the objective, it
 * is mixed in with growing weight until the plan is within the slack.
 */
#include "planner/device_map.h"
#include "planner/levels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double moved_bytes(const struct ek_problem *p, const struct ek_column *c,
                          const struct ek_assignment *old)
{
    uint32_t device = p->groups[p->kinds[c->kind].group].members[0];
    double bytes = 0;

    for (int32_t i = c->first; i <= c->last; i++)
        if (old->device[p->first_item + (uint32_t)i] != device)
            bytes += (double)p->costs->modules[p->first_item + (uint32_t)i].weights;
    for (uint32_t s = 0; s < p->n_sides; s++)
        for (uint32_t j = 0; (c->sides >> s & 1) && j < p->sides[s].n; j++)
            if (old->device[p->sides[s].modules[j]] != device)
                bytes += (double)p->costs->modules[p->sides[s].modules[j]].weights;
    return bytes;
}

static void set_costs(struct ek_problem *p, const struct ek_column *real,
                      const struct ek_assignment *old, double total, double unit, double weight)
{
    for (size_t i = 0; i < p->n_columns; i++)
        p->columns[i].sum = moved_bytes(p, &real[i], old) / total + weight * real[i].sum / unit;
}

static double first_value(const struct ek_request *r, const struct ek_score *sc)
{
    switch (r->objectives[0]) {
    case EK_OBJ_LATENCY:
        return sc->latency;
    case EK_OBJ_BALANCE:
        return sc->balance;
    case EK_OBJ_BALANCE_TIME:
        return sc->balance_time;
    default:
        return sc->throughput;
    }
}

static struct ek_limits limits_for(const struct ek_request *r, const struct ek_problem *p,
                                   double value)
{
    struct ek_limits l = EK_LIMITS_NONE;

    if (r->objectives[0] == EK_OBJ_THROUGHPUT)
        l.work = l.hop = value / p->micro_batches;
    else if (r->objectives[0] == EK_OBJ_BALANCE_TIME)
        l.work = value / p->micro_batches;
    else if (r->objectives[0] == EK_OBJ_BALANCE)
        l.ratio = value;
    return l;
}

/* Hops of a problem that cost so much of what they cost in another. */
static void weigh_hops(struct ek_problem *p, const struct ek_problem *full, double weight)
{
    p->sum_steps = full->sum_steps * weight;
    p->sum_tokens = full->sum_tokens * weight;
    p->picture_steps = full->picture_steps * weight;
    p->picture_tokens = full->picture_tokens * weight;
    p->side_bytes = full->side_bytes * weight;
}

static enum ek_status search(struct ek_problem *p, const struct ek_request *r,
                             const struct ek_assignment *old, double allowed, struct ek_effort *e,
                             struct ek_answer *out, double *moved)
{
    static const double weights[] = {1e-6, 0.01, 0.1, 1, 10, 100, 1e4};
    struct ek_column *real = ek_calloc(p->n_columns, sizeof(*real));
    double total = 1;
    struct ek_problem full = *p;
    enum ek_status st = EK_OK;

    if (real == NULL)
        return EK_ENOMEM;
    memcpy(real, p->columns, p->n_columns * sizeof(*real));
    for (size_t i = 0; i < p->costs->n_modules; i++)
        total += (double)p->costs->modules[i].weights;
    out->kind = EK_ANSWER_INFEASIBLE;
    for (size_t i = 0; i < EK_ARRAY_LEN(weights) && out->kind != EK_ANSWER_OPTIMAL; i++) {
        struct ek_limits l = limits_for(r, p, allowed);
        double unit = allowed > 0 ? allowed : 1;
        set_costs(p, real, old, total, unit, weights[i]);
        weigh_hops(p, &full, weights[i] / unit);
        EK_GOTO(ek_dp_solve(p, &l, NULL, out, e), st, end);
        memcpy(p->columns, real, p->n_columns * sizeof(*real));
        weigh_hops(p, &full, 1);
        if (out->kind == EK_ANSWER_OPTIMAL) {
            struct ek_score sc = ek_score_of(p, out->columns, out->n);
            if (first_value(r, &sc) > ek_widen(allowed))
                out->kind = EK_ANSWER_INFEASIBLE;
        }
    }
    *moved = 0;
    for (uint32_t i = 0; out->kind == EK_ANSWER_OPTIMAL && i < out->n; i++)
        *moved += moved_bytes(p, &p->columns[out->columns[i]], old);
end:
    free(real);
    return st;
}

enum ek_status ek_stay_near(const struct ek_costs *c, const struct ek_request *r, const char *path,
                            double within, struct ek_solution *s)
{
    struct ek_request q = *r;
    struct ek_problem *p;
    struct ek_assignment old;
    struct ek_answer a;
    struct ek_effort e = {.stop = r->stop};
    double moved;
    enum ek_status st;

    q.distinct_devices = true;
    q.workload.context = s->context;
    q.workload.batch = s->batch;
    EK_TRY(ek_problem_new(c, &q, s->problem->micro_batches, &p));
    EK_GOTO(ek_assignment_read(p, path, &old), st, fail);
    EK_GOTO(search(p, r, &old, s->values[0] * (1 + within), &e, &a, &moved), st, fail);
    if (a.kind != EK_ANSWER_OPTIMAL) {
        st = ek_error(EK_NO, "no plan near %s was found within %.1f %% of the best", path,
                      within * 100);
        goto fail;
    }
    ek_problem_free(s->problem);
    s->problem = p;
    s->answer = a;
    s->score = ek_score_of(p, a.columns, a.n);
    s->values[0] = first_value(r, &s->score);
    s->near = true;
    s->moved_bytes = moved;
    return EK_OK;

fail:
    ek_problem_free(p);
    return st;
}
