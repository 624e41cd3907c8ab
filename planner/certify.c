/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The integer program's word on what the dynamic program found: see attempt.h.
 */
#include "planner/attempt.h"

#include <math.h>

static enum ek_status disagree(const char *what, double a, double b)
{
    return ek_error(EK_EENV,
                    "internal error, no plan is made: integer program and dynamic program "
                    "disagree on %s (%.17g and %.17g); please report the costs file",
                    what, a, b);
}

static enum ek_status size_certified(const struct ek_costs *c, struct ek_attempt *a,
                                     enum ek_objective o, double value, struct ek_effort *e,
                                     enum ek_answer_kind *kind)
{
    struct ek_problem *p;
    struct ek_found f;
    struct ek_attempt at = *a;

    *kind = EK_ANSWER_INFEASIBLE;
    if (value + 1 > (o == EK_OBJ_CONTEXT ? EK_MAX_CONTEXT : EK_MAX_BATCH))
        return EK_OK;
    at.state.effort = e;
    EK_TRY(ek_try_size(c, &at, o, (uint32_t)value + 1, ek_ilp_solve, &p, &f));
    ek_problem_free(p);
    *kind = f.kind;
    return EK_OK;
}

static enum ek_status certify_level(const struct ek_costs *c, struct ek_attempt *a, size_t i,
                                    struct ek_effort *e, enum ek_answer_kind *kind)
{
    enum ek_objective o = a->request.objectives[i];
    struct ek_search_state before = a->before[i];
    struct ek_found f;

    if (ek_is_searched(o)) {
        EK_TRY(size_certified(c, a, o, a->values[i], e, kind));
    } else {
        before.p = a->problem;
        before.oracle = ek_ilp_solve;
        before.effort = e;
        EK_TRY(ek_level_below(&before, o, a->values[i], &f));
        *kind = f.kind;
    }
    if (*kind == EK_ANSWER_OPTIMAL)
        return disagree(ek_objective_names[o], a->values[i], f.value);
    return EK_OK;
}

/* Nothing is better at any objective: of how many that is so. */
static enum ek_status certify_levels(const struct ek_costs *c, struct ek_attempt *a,
                                     struct ek_effort *e, size_t *confirmed)
{
    enum ek_answer_kind kind;

    for (*confirmed = 0; *confirmed < a->request.n_objectives; ++*confirmed) {
        EK_TRY(certify_level(c, a, *confirmed, e, &kind));
        if (kind == EK_ANSWER_UNKNOWN)
            return EK_OK;
    }
    return EK_OK;
}

/* The same least latency of the plans that are best. */
static enum ek_status certify_plan(const struct ek_attempt *a, struct ek_effort *e,
                                   size_t *confirmed)
{
    struct ek_search_state s = a->state;
    struct ek_found f;

    s.oracle = ek_ilp_solve;
    s.effort = e;
    EK_TRY(
        ek_least_latency(&s, fmin(s.latency, a->found.value * (1 + 1e-6) + 1e-12), -INFINITY, &f));
    if (f.kind == EK_ANSWER_UNKNOWN)
        return EK_OK;
    if (f.kind != EK_ANSWER_OPTIMAL || fabs(f.value - a->found.value) > 1e-6 * f.value + 1e-12)
        return disagree("the plan's latency", f.value, a->found.value);
    ++*confirmed;
    return EK_OK;
}

enum ek_status ek_certify_infeasible(const struct ek_costs *c, const struct ek_request *r,
                                     struct ek_solution *s)
{
    for (size_t i = 0; i < s->n_tried; i++) {
        struct ek_attempt a;
        struct ek_found f;
        enum ek_status st = ek_attempt_new(c, r, &s->tried[i], true, ek_ilp_solve, &s->ilp, &a);
        if (st == EK_NO)
            continue;
        EK_TRY(st);
        st = ek_least_latency(&a.state, INFINITY, INFINITY, &f);
        ek_problem_free(a.problem);
        EK_TRY(st);
        if (f.kind == EK_ANSWER_OPTIMAL)
            return disagree("whether anything fits", 1, 0);
    }
    return EK_OK;
}

/* Another choice does not reach the best's first value; or where it does, it is no better in any
 * objective when those before are as good. */
static enum ek_status certify_other(const struct ek_attempt *best, struct ek_attempt *a,
                                    size_t *confirmed)
{
    struct ek_search_state reach = a->state;
    size_t n = a->request.n_objectives;
    struct ek_found f;

    ek_level_settle(&reach, a->request.objectives[0], best->values[0]);
    EK_TRY(ek_least_latency(&reach, reach.latency, INFINITY, &f));
    if (f.kind != EK_ANSWER_OPTIMAL)
        *confirmed = f.kind == EK_ANSWER_INFEASIBLE ? n : *confirmed;
    for (; f.kind == EK_ANSWER_OPTIMAL && *confirmed < n; ++*confirmed) {
        enum ek_objective o = a->request.objectives[*confirmed];
        struct ek_found below;
        if (ek_is_searched(o)) {
            *confirmed = n;
            break;
        }
        EK_TRY(ek_level_below(&a->state, o, best->values[*confirmed], &below));
        if (below.kind == EK_ANSWER_OPTIMAL)
            return disagree("the micro-batches or the chunk", below.value,
                            best->values[*confirmed]);
        if (below.kind == EK_ANSWER_UNKNOWN)
            break;
        ek_level_settle(&a->state, o, best->values[*confirmed]);
    }
    return EK_OK;
}

/* Where the size is sought: no more fits, and at the best's size nothing else is better. */
static enum ek_status certify_choice(const struct ek_costs *c, const struct ek_request *r,
                                     const struct ek_choice *choice, const struct ek_attempt *best,
                                     struct ek_effort *e, size_t *confirmed)
{
    enum ek_objective o = r->objectives[0];
    enum ek_answer_kind kind = EK_ANSWER_INFEASIBLE;
    struct ek_request q = *r;
    double size = best->values[0];
    struct ek_attempt a;
    enum ek_status st;

    *confirmed = r->n_objectives;
    if (o == EK_OBJ_BATCH) /* a group of sequences has one at least */
        size = fmax(size, choice->micro_batches - 1.0);
    if (ek_is_searched(o))
        ek_set_size(&q, o, (uint32_t)size);
    st = ek_attempt_new(c, &q, choice, false, ek_ilp_solve, e, &a);
    if (st == EK_NO)
        return EK_OK;
    EK_TRY(st);
    *confirmed = 0;
    if (ek_is_searched(o))
        EK_GOTO(size_certified(c, &a, o, size, e, &kind), st, done);
    if (kind == EK_ANSWER_OPTIMAL)
        st = disagree("the chunk", size + 1, best->values[0]);
    if (kind == EK_ANSWER_INFEASIBLE && ek_is_searched(o) && size > best->values[0]) {
        *confirmed = r->n_objectives;
    } else if (kind == EK_ANSWER_INFEASIBLE) {
        *confirmed = ek_is_searched(o);
        st = certify_other(best, &a, confirmed);
    }
done:
    ek_problem_free(a.problem);
    return st;
}

static enum ek_status certify_others(const struct ek_costs *c, const struct ek_request *r,
                                     struct ek_solution *s, const struct ek_attempt *best)
{
    for (size_t i = 0; s->confirmed > 0 && i < s->n_tried; i++) {
        size_t confirmed;
        if (s->tried[i].micro_batches == best->choice.micro_batches &&
            s->tried[i].chunk == best->choice.chunk && s->tried[i].tp == best->choice.tp)
            continue;
        EK_TRY(certify_choice(c, r, &s->tried[i], best, &s->ilp, &confirmed));
        s->confirmed = confirmed < s->confirmed ? confirmed : s->confirmed;
    }
    return EK_OK;
}

enum ek_status ek_certify(const struct ek_costs *c, const struct ek_request *r,
                          struct ek_attempt *best, struct ek_solution *s)
{
    EK_TRY(certify_levels(c, best, &s->ilp, &s->confirmed));
    EK_TRY(certify_others(c, r, s, best));
    if (s->confirmed == r->n_objectives)
        EK_TRY(certify_plan(best, &s->ilp, &s->confirmed));
    return EK_OK;
}
