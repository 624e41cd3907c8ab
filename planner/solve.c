/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Solving a request: the objectives in order for each choice (micro-batches, chunk) by the
 * dynamic program, the best of them held against the integer program, which must find the same
 * values and that nothing is better.
 */
#include "planner/planner.h"
#include "planner/attempt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RACE_COLUMNS ((size_t)1 << 20) /* of all choices: more are not held at once */
#define RACE_ROUNDS  8
#define RACE_CLOSE   1.03

const char *const ek_objective_names[EK_N_OBJECTIVES] = {
    "latency", "throughput", "balance", "balance-time", "context", "batch",
};

void ek_request_free(struct ek_request *r)
{
    free(r->budgets);
    free(r->rules);
}

void ek_solution_free(struct ek_solution *s)
{
    if (s)
        ek_problem_free(s->problem);
    free(s);
}

double ek_solution_gap(const struct ek_solution *s)
{
    if ((s->proven && !s->near) || s->values[0] == 0)
        return 0;
    return fabs(s->values[0] - s->bounds[0]) / fabs(s->values[0]);
}

bool ek_is_searched(enum ek_objective o)
{
    return o == EK_OBJ_CONTEXT || o == EK_OBJ_BATCH;
}

/* ---- The largest context or batch ---------------------------------------------------------------
 */
void ek_set_size(struct ek_request *r, enum ek_objective o, uint32_t v)
{
    if (o == EK_OBJ_CONTEXT)
        r->workload.context = v;
    else
        r->workload.batch = v;
}

uint32_t ek_least_size(const struct ek_workload *w, enum ek_objective o, uint32_t micro_batches)
{
    return o == EK_OBJ_CONTEXT ? ek_workload_prompt(w) + w->generate : micro_batches;
}

/* A recipe that is a plan spares the search for one. */
static enum ek_status any_recipe(const struct ek_problem *p, struct ek_found *f)
{
    struct ek_recipe *recipes = ek_calloc(EK_MAX_RECIPES, sizeof(*recipes));
    size_t n = recipes ? ek_recipes(p, recipes) : 0;

    for (size_t i = 0; i < n && f->answer.n == 0; i++)
        if (ek_plan_of(p, &recipes[i].assignment, &f->answer))
            f->kind = f->answer.kind = EK_ANSWER_OPTIMAL; /* any will do */
        else
            f->answer.n = 0;
    free(recipes);
    return recipes ? EK_OK : EK_ENOMEM;
}

enum ek_status ek_try_size(const struct ek_costs *c, const struct ek_attempt *a,
                           enum ek_objective o, uint32_t v, ek_oracle_fn oracle,
                           struct ek_problem **made, struct ek_found *f)
{
    struct ek_search_state s = a->state;
    struct ek_request r = a->request;
    enum ek_status st;
    *made = NULL;
    *f = (struct ek_found){.kind = EK_ANSWER_INFEASIBLE};
    ek_set_size(&r, o, v);
    st = ek_problem_new(c, &r, a->problem ? a->problem->micro_batches : 1, made);
    if (st == EK_NO)
        return EK_OK;
    EK_TRY(st);
    s.p = *made;
    s.oracle = oracle;
    if (oracle != ek_ilp_solve && o == r.objectives[0])
        st = any_recipe(*made, f);
    if (st == EK_OK && f->answer.n == 0)
        st = ek_least_latency(&s, s.latency, INFINITY, f);
    if (st != EK_OK || f->answer.n == 0) {
        ek_problem_free(*made);
        *made = NULL;
    }
    return st;
}

static enum ek_status grow_size(const struct ek_costs *c, struct ek_attempt *a, enum ek_objective o,
                                struct ek_found *out)
{
    const struct ek_workload *w = &a->problem->workload;
    uint32_t low = ek_least_size(w, o, a->problem->micro_batches);
    uint32_t high = o == EK_OBJ_CONTEXT ? EK_MAX_CONTEXT : EK_MAX_BATCH;
    uint32_t most = high, step = low;
    struct ek_problem *best = NULL, *p;
    struct ek_found f;

    if (a->least > low) { /* little more is likely */
        low = a->least;
        step = 1;
    }
    EK_TRY(ek_try_size(c, a, o, low, a->state.oracle, &best, out));
    out->value = low;
    if (best == NULL)
        return EK_OK;
    while (low < high) { /* low fits, high + 1 does not */
        uint32_t mid = high - (high - low) / 2;
        if (high == most && step < (high - low) / 2) {
            mid = low + step;
            step *= 2;
        }
        EK_TRY(ek_try_size(c, a, o, mid, a->state.oracle, &p, &f));
        if (p == NULL && f.kind == EK_ANSWER_UNKNOWN) {
            out->kind = EK_ANSWER_UNKNOWN;
            break;
        }
        if (p == NULL) {
            high = mid - 1;
            continue;
        }
        low = mid;
        ek_problem_free(best);
        best = p;
        *out = f;
        out->value = low;
    }
    out->bound = high;
    ek_problem_free(a->problem);
    a->problem = best;
    a->state.p = best;
    ek_set_size(&a->request, o, low);
    return EK_OK;
}

/* ---- One number of micro-batches ----------------------------------------------------------------
 */
/* A stopped attempt's plan is worth what it is, whichever objective was being settled. */
static void fill_values(struct ek_attempt *a)
{
    struct ek_score sc = ek_score_of(a->problem, a->found.answer.columns, a->found.answer.n);

    for (size_t i = 0; i < a->request.n_objectives; i++)
        if (!ek_is_searched(a->request.objectives[i]))
            a->values[i] = ek_score_value(a->request.objectives[i], &sc);
}

/* Better by more than rounding in the first objective that tells them apart. */
static bool better(const struct ek_attempt *a, const struct ek_attempt *b)
{
    for (size_t i = 0; i < a->request.n_objectives; i++) {
        double sign = ek_is_searched(a->request.objectives[i]) ? -1 : 1;
        double x = sign * a->values[i], y = sign * b->values[i];
        if (fabs(x - y) > 1e-9 * fmax(fabs(x), fabs(y)))
            return x < y;
    }
    return false;
}

/* Takes a plan of the problem where it is better than the attempt's. */
static void offer(struct ek_attempt *a, const struct ek_answer *plan)
{
    struct ek_attempt other = *a;

    other.found.answer = *plan;
    other.feasible = true;
    fill_values(&other);
    if (!a->feasible || better(&other, a))
        *a = other;
}

/* The best of the recipes that are plans of this problem, if any is. */
static enum ek_status best_recipe(struct ek_attempt *a)
{
    struct ek_recipe *recipes = ek_calloc(EK_MAX_RECIPES, sizeof(*recipes));
    size_t n = recipes ? ek_recipes(a->problem, recipes) : 0;
    struct ek_answer plan;

    for (size_t i = 0; i < n; i++)
        if (ek_plan_of(a->problem, &recipes[i].assignment, &plan))
            offer(a, &plan);
    free(recipes);
    return recipes ? EK_OK : EK_ENOMEM;
}

/* A search that was stopped before it found any plan leaves the one that is there. */
static void take(struct ek_attempt *a, const struct ek_found *f)
{
    struct ek_answer before = a->found.answer;

    a->found = *f;
    a->unknown = f->kind == EK_ANSWER_UNKNOWN;
    if (a->unknown && f->answer.n == 0)
        a->found.answer = before;
    a->feasible = a->found.answer.n > 0 && f->kind != EK_ANSWER_INFEASIBLE;
}

static enum ek_status search_levels(const struct ek_costs *c, struct ek_attempt *a)
{
    const struct ek_request *r = &a->request;
    struct ek_found f;

    for (size_t i = 0; i < r->n_objectives; i++) {
        a->settled = i;
        a->before[i] = a->state;
        f = (struct ek_found){0};
        if (ek_is_searched(r->objectives[i]))
            EK_TRY(grow_size(c, a, r->objectives[i], &f));
        else
            EK_TRY(ek_level_solve(&a->state, r->objectives[i], &f));
        take(a, &f);
        a->values[i] = f.value;
        if (i == 0)
            a->bound = f.bound;
        if (f.kind != EK_ANSWER_OPTIMAL)
            return EK_OK;
    }
    a->settled = r->n_objectives; /* of all plans that are best, the one of least latency */
    EK_TRY(ek_least_latency(&a->state, a->state.latency, -INFINITY, &f));
    take(a, &f);
    a->settled += !a->unknown;
    return EK_OK;
}

/* The best plan that is known, a recipe or the one given (or NULL), is where the search begins:
 * what it finds is never worse, wherever it stops. */
static enum ek_status solve_levels(const struct ek_costs *c, const struct ek_answer *known,
                                   struct ek_attempt *a)
{
    enum ek_objective o = a->request.objectives[0];
    struct ek_attempt start = *a;

    if (!ek_is_searched(o))
        EK_TRY(best_recipe(&start));
    if (known)
        offer(&start, known);
    if (start.feasible && (o == EK_OBJ_LATENCY || o == EK_OBJ_THROUGHPUT))
        a->state.latency = fmin(a->state.latency, ek_widen(start.values[0]));
    EK_TRY(search_levels(c, a));
    if (!a->unknown)
        return EK_OK;
    fill_values(a);
    if (start.feasible && a->problem == start.problem)
        offer(a, &start.found.answer);
    return EK_OK;
}

enum ek_status ek_attempt_new(const struct ek_costs *c, const struct ek_request *r,
                              const struct ek_choice *choice, bool least, ek_oracle_fn oracle,
                              struct ek_effort *e, struct ek_attempt *a)
{
    enum ek_objective o = r->objectives[0];

    *a = (struct ek_attempt){.request = ek_request_with(r, choice), .choice = *choice};
    if (least && ek_is_searched(o))
        ek_set_size(&a->request, o, ek_least_size(&r->workload, o, choice->micro_batches));
    EK_TRY(ek_problem_new(c, &a->request, choice->micro_batches, &a->problem));
    a->state = (struct ek_search_state){.p = a->problem,
                                        .oracle = oracle,
                                        .effort = e,
                                        .limits = EK_LIMITS_NONE,
                                        .latency = INFINITY};
    return EK_OK;
}

/* Nothing of the attempt can be as good as the best in the first objective; where something can,
 * nothing else is looked for. */
static enum ek_status cannot_win(struct ek_attempt *a, const struct ek_attempt *best, bool *sure)
{
    enum ek_objective o = a->request.objectives[0];
    struct ek_found f;
    *sure = false;
    if (!best->feasible || best->unknown || best->values[0] <= 0)
        return EK_OK;
    if (ek_is_searched(o)) {
        a->least = (uint32_t)best->values[0];
        return EK_OK;
    }
    EK_TRY(ek_level_below(&a->state, o, best->values[0] * (1 + 3e-6), &f));
    *sure = f.kind == EK_ANSWER_INFEASIBLE;
    ek_level_settle(&a->state, o, best->values[0] * (1 + 3e-6));
    return EK_OK;
}

/* What is proven of the first objective over all choices: the worst of each one's. */
static void combine_bounds(struct ek_solution *s, const struct ek_attempt *a, double least)
{
    enum ek_objective o = a->request.objectives[0];

    if (!a->feasible && !a->unknown)
        return;
    if (ek_is_searched(o))
        s->bounds[0] = fmax(s->bounds[0], a->bound);
    else
        s->bounds[0] = fmin(s->bounds[0],
                            a->unknown ? fmax(fmax(a->bound, least), ek_level_floor(a->problem, o))
                                       : a->bound);
}

#define GRACE_NS 1000000000u /* for bounds of the choices that are left when the time is over */

static bool out_of_time(const struct ek_solution *s, uint64_t *end)
{
    if (!s->dp.expired)
        return false;
    if (*end == 0)
        *end = ek_now_ns() + GRACE_NS;
    return ek_now_ns() > *end;
}

/* Of two attempts that are as good the choice that comes first. */
static bool replaces(const struct ek_attempt *a, const struct ek_attempt *best)
{
    if (!best->problem || !a->feasible || !best->feasible)
        return !best->problem || (a->feasible && !best->feasible);
    return better(a, best) || (!better(best, a) && a->turn < best->turn);
}

struct turn { /* of a choice: none of its plans is under the floor */
    double floor;
    size_t choice;
};
struct race {
    struct ek_attempt *all; /* of the choices, in their order; without a problem: nothing fits */
    struct turn *turns;
    size_t n, columns;
    size_t leader; /* whose plan (found) is the best so far ... */
    double value;  /* ... and what it is worth; infinite: there is none */
};

static int compare_turns(const void *a, const void *b)
{
    const struct turn *x = a, *y = b;

    if (x->floor != y->floor)
        return x->floor < y->floor ? -1 : 1;
    return x->choice < y->choice ? -1 : 1;
}

/* Floors without solving, and the best recipe of any choice. */
static enum ek_status race_new(const struct ek_costs *c, const struct ek_request *r,
                               struct ek_solution *s, struct race *race)
{
    for (size_t i = 0; i < race->n && race->columns <= RACE_COLUMNS; i++) {
        struct ek_attempt *a = &race->all[i];
        enum ek_status st = ek_attempt_new(c, r, &s->tried[i], true, ek_dp_solve, &s->dp, a);
        race->turns[i].floor = INFINITY;
        if (st == EK_NO)
            continue;
        EK_TRY(st);
        race->columns += a->problem->n_columns;
        race->turns[i].floor = ek_level_floor(a->problem, r->objectives[0]);
        EK_TRY(best_recipe(a));
        if (!a->feasible || a->values[0] >= race->value)
            continue;
        race->value = a->values[0];
        race->leader = i;
    }
    return EK_OK;
}

/* Is there a plan under the value? Who has one leads; who has none has a higher floor. */
static enum ek_status race_to(struct race *race, enum ek_objective o, double value, bool *stopped)
{
    for (size_t k = 0; k < race->n; k++) {
        size_t i = (race->leader + k) % race->n;
        struct ek_found f;
        struct ek_score sc;
        if (race->turns[i].floor >= value)
            continue;
        EK_TRY(ek_level_below(&race->all[i].state, o, value, &f));
        *stopped = f.kind == EK_ANSWER_UNKNOWN;
        if (*stopped)
            return EK_OK;
        if (f.kind == EK_ANSWER_INFEASIBLE) {
            race->turns[i].floor = value * (1 - 1e-6);
            continue;
        }
        sc = ek_score_of(race->all[i].problem, f.answer.columns, f.answer.n);
        race->value = ek_score_value(o, &sc);
        race->leader = i;
        race->all[i].found.answer = f.answer;
        return EK_OK;
    }
    return EK_OK;
}

static enum ek_status race_run(struct race *race, enum ek_objective o)
{
    bool stopped = false;

    for (int round = 0; round < RACE_ROUNDS && !stopped && !isinf(race->value); round++) {
        double least = INFINITY;
        for (size_t i = 0; i < race->n; i++)
            least = fmin(least, race->turns[i].floor);
        if (race->value <= least * RACE_CLOSE)
            break;
        EK_TRY(race_to(race, o, least + (race->value - least) / 2, &stopped));
    }
    return EK_OK;
}

/* Choices, the most promising first, so that what it finds ends the others early: all are asked for
 * plans under a common value, which halves the way to the best. *lead: the plan of the first, if
 * there is one. */
static enum ek_status take_turns(const struct ek_costs *c, const struct ek_request *r,
                                 struct ek_solution *s, struct turn *turns, struct ek_answer *lead)
{
    struct race race = {.turns = turns, .n = s->n_tried, .value = INFINITY};
    enum ek_status st;

    for (size_t i = 0; i < race.n; i++)
        turns[i] = (struct turn){.choice = i};
    if (ek_is_searched(r->objectives[0]))
        return EK_OK;
    race.all = ek_calloc(race.n, sizeof(*race.all));
    if (race.all == NULL)
        return EK_ENOMEM;
    EK_GOTO(race_new(c, r, s, &race), st, end);
    if (race.columns <= RACE_COLUMNS)
        EK_GOTO(race_run(&race, r->objectives[0]), st, end);
    if (!isinf(race.value)) { /* the leader goes first, whatever its floor */
        struct turn leader = turns[race.leader];
        *lead = race.all[race.leader].found.answer;
        memmove(turns + 1, turns, race.leader * sizeof(*turns));
        turns[0] = leader;
        qsort(turns + 1, race.n - 1, sizeof(*turns), compare_turns);
    }
end:
    for (size_t i = 0; i < race.n; i++)
        ek_problem_free(race.all[i].problem);
    free(race.all);
    return st;
}

/* Choices from the i-th on were not tried at all. */
static void bound_the_rest(struct ek_solution *s, enum ek_objective o, const struct turn *turns,
                           size_t i)
{
    if (ek_is_searched(o))
        s->bounds[0] = o == EK_OBJ_CONTEXT ? EK_MAX_CONTEXT : EK_MAX_BATCH;
    for (; !ek_is_searched(o) && i < s->n_tried; i++)
        s->bounds[0] = fmin(s->bounds[0], turns[i].floor);
    s->settled = 0;
}

/* The first objective is settled, too, where the bound over all choices reaches the best. */
static void settle_by_bound(struct ek_solution *s, const struct ek_attempt *best)
{
    if (best->feasible && s->settled == 0 &&
        fabs(best->values[0] - s->bounds[0]) <= 3e-6 * fabs(best->values[0]))
        s->settled = 1;
}

static enum ek_status attempt_best(const struct ek_costs *c, const struct ek_request *r,
                                   struct ek_solution *s, struct ek_attempt *best)
{
    enum ek_status st = EK_OK, first = EK_OK;
    struct turn turns[EK_MAX_CHOICES];
    struct ek_answer lead = {0};
    uint64_t end = 0;

    s->bounds[0] = ek_is_searched(r->objectives[0]) ? 0 : INFINITY;
    s->settled = r->n_objectives + 1;
    EK_TRY(take_turns(c, r, s, turns, &lead));
    for (size_t i = 0; i < s->n_tried; i++) {
        struct ek_attempt a;
        bool skip = false;
        if (out_of_time(s, &end)) {
            bound_the_rest(s, r->objectives[0], turns, i);
            break;
        }
        if (best->feasible && !best->unknown && turns[i].floor > best->values[0] * (1 + 3e-6))
            continue;
        st = ek_attempt_new(c, r, &s->tried[turns[i].choice], true, ek_dp_solve, &s->dp, &a);
        if (st == EK_NO) {
            first = st;
            continue;
        }
        a.turn = turns[i].choice;
        if (r->objectives[0] == EK_OBJ_THROUGHPUT)
            a.state.floor = turns[i].floor;
        if (st == EK_OK)
            st = cannot_win(&a, best, &skip);
        if (st == EK_OK && !skip)
            st = solve_levels(c, i == 0 && lead.n > 0 ? &lead : NULL, &a);
        if (st == EK_OK && !skip)
            combine_bounds(s, &a, turns[i].floor);
        if (st == EK_OK && a.unknown && a.settled < s->settled)
            s->settled = a.settled;
        if (st == EK_OK && !skip && replaces(&a, best)) {
            struct ek_problem *old = best->problem;
            *best = a;
            a.problem = old;
        }
        ek_problem_free(a.problem);
        EK_TRY(st);
    }
    settle_by_bound(s, best);
    return best->problem ? EK_OK : first;
}

/* ---- The whole ----------------------------------------------------------------------------------
 */
static enum ek_status check_request(const struct ek_request *r)
{
    if (r->n_objectives == 0)
        return ek_error(EK_EUSAGE, "no objective");
    for (size_t i = 0; i < r->n_objectives; i++) {
        if (r->objectives[i] == EK_OBJ_BATCH && i > 0)
            return ek_error(EK_EUSAGE, "the objective batch can only come first");
        for (size_t j = 0; j < i; j++)
            if (r->objectives[i] == r->objectives[j])
                return ek_error(EK_EUSAGE, "the objective %s is there twice",
                                ek_objective_names[r->objectives[i]]);
    }
    return EK_OK;
}

static void fill_solution(struct ek_solution *s, struct ek_attempt *best)
{
    s->problem = best->problem;
    s->answer = best->found.answer;
    s->score = ek_score_of(s->problem, s->answer.columns, s->answer.n);
    memcpy(s->values, best->values, sizeof(s->values));
    if (s->proven)
        memcpy(s->bounds, best->values, sizeof(s->bounds));
    s->context = s->problem->workload.context;
    s->batch = s->problem->workload.batch;
}

static enum ek_status no_plan(const struct ek_solution *s)
{
    if (s->dp.expired)
        return ek_error(EK_EUNPROVEN, "stopped before any plan was found");
    return ek_error(EK_NO, "no plan fits: every module fits on some device, but not all together "
                           "within the budgets, rules and number of devices");
}

/* The dynamic program has too many states: the integer program alone. */
static enum ek_status solve_by_ilp(const struct ek_costs *c, const struct ek_request *r,
                                   struct ek_solution *s, struct ek_attempt *best)
{
    struct ek_attempt a;

    EK_TRY(ek_attempt_new(c, r, &best->choice, true, ek_ilp_solve, &s->ilp, &a));
    EK_TRY(solve_levels(c, NULL, &a));
    if (a.feasible && (!a.unknown || !best->feasible)) {
        ek_problem_free(best->problem);
        *best = a;
        s->proven = !a.unknown && s->n_tried == 1;
        s->settled = s->n_tried == 1 ? a.settled : 0;
    } else {
        ek_problem_free(a.problem);
    }
    s->cross_check = s->proven ? "not made: too many states for the dynamic program"
                               : "not made: stopped before the end";
    return EK_OK;
}

static enum ek_status solve_and_certify(const struct ek_costs *c, const struct ek_request *r,
                                        struct ek_solution *s, struct ek_attempt *best)
{
    EK_TRY(attempt_best(c, r, s, best));
    if (best->unknown && !s->dp.expired) {
        s->ilp.deadline_ns = s->dp.deadline_ns;
        return solve_by_ilp(c, r, s, best);
    }
    if (!best->feasible && !best->unknown && !r->no_certificate) {
        s->ilp.deadline_ns = s->dp.deadline_ns;
        return ek_certify_infeasible(c, r, s);
    }
    if (!best->feasible || best->unknown || s->dp.expired) {
        s->cross_check = "not made: stopped before the end";
        return EK_OK;
    }
    s->cross_check = "not asked for";
    s->proven = true;
    if (r->no_certificate)
        return EK_OK;
    s->ilp.deadline_ns = s->dp.deadline_ns;
    EK_TRY(ek_certify(c, r, best, s));
    s->proven = s->confirmed > r->n_objectives;
    s->cross_check = s->proven ? "equal" : "not finished: stopped";
    return EK_OK;
}

enum ek_status ek_solve(const struct ek_costs *c, const struct ek_request *r,
                        struct ek_solution **out)
{
    struct ek_solution *s;
    struct ek_attempt best = {0};
    enum ek_status st;

    EK_TRY(check_request(r));
    s = ek_calloc(1, sizeof(*s));
    if (s == NULL)
        return EK_ENOMEM;
    s->n_tried = ek_choices(c, r, s->tried);
    s->dp.stop = s->ilp.stop = r->stop;
    s->ilp.whole_program = r->whole_program;
    s->dp.early_needs = r->early_needs;
    if (r->time_limit > 0)
        s->dp.deadline_ns = ek_now_ns() + (uint64_t)(r->time_limit * 1e9);
    if (r->deadline_ns && r->deadline_ns < s->dp.deadline_ns)
        s->dp.deadline_ns = r->deadline_ns;
    EK_GOTO(solve_and_certify(c, r, s, &best), st, fail);
    if (!best.feasible) {
        st = no_plan(s);
        goto fail;
    }
    fill_solution(s, &best);
    s->interrupted = s->dp.expired || s->ilp.expired;
    *out = s;
    return EK_OK;

fail:
    ek_problem_free(best.problem);
    ek_solution_free(s);
    return st;
}
