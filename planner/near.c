/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The plan closest to an earlier one: of those within a slack of the best, the one that moves the
 * fewest bytes of weights. Bytes moved take the place of the columns' latency. The dynamic program
 * finds such a plan; where latency is what rules the objective, it is mixed in with growing weight
 * until the plan is within the slack. The integer program, which holds the latency as a row, finds
 * what moves less, or proves that nothing does.
 */
#include "planner/device_map.h"
#include "planner/levels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TIE                                                                                        \
    1e-8           /* weight of latency beside the share of bytes moved, where it only breaks ties \
                    */
#define CLOSE 1e-6 /* relative: shares and latencies closer than this are the same */

struct near {
    const struct ek_request *request;
    const struct ek_problem *p; /* as it is */
    struct ek_problem *moves;   /* the same, but its columns' sums and hops are what is minimised */
    double *latency, *bytes;    /* [n_columns] p's sums; moved by a column */
    double total, allowed;      /* bytes of all weights; most of the first objective */
    double slack;               /* what allowed leaves a group's latency; infinite: anything */
    struct ek_effort *dp, *ilp;
    struct ek_answer best; /* n 0: none */
    double moved, least;   /* by best; by any plan, were latency free */
    bool proven;
};

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

static struct ek_limits limits_of(const struct near *n)
{
    struct ek_limits l = EK_LIMITS_NONE;

    if (n->request->objectives[0] == EK_OBJ_THROUGHPUT)
        l.work = l.hop = ek_widen(n->allowed / n->p->micro_batches);
    else if (n->request->objectives[0] == EK_OBJ_BALANCE_TIME)
        l.work = ek_widen(n->allowed / n->p->micro_batches);
    else if (n->request->objectives[0] == EK_OBJ_BALANCE)
        l.ratio = ek_widen(n->allowed);
    return l;
}

static double moved_by(const struct near *n, const struct ek_answer *a)
{
    double bytes = 0;

    for (uint32_t i = 0; i < a->n; i++)
        bytes += n->bytes[a->columns[i]];
    return bytes;
}

/* Takes an answer that is within the slack and moves less than the best so far. */
static bool take(struct near *n, const struct ek_answer *a)
{
    struct ek_score sc = ek_score_of(n->p, a->columns, a->n);

    if (a->n == 0 || ek_score_value(n->request->objectives[0], &sc) > n->allowed * (1 + CLOSE))
        return false;
    if (n->best.n == 0 || moved_by(n, a) < n->moved) {
        n->best = *a;
        n->moved = moved_by(n, a);
    }
    return true;
}

/* ---- Finding ------------------------------------------------------------------------------------
 */
/* What is minimised: the share of bytes moved + weight * latency. */
static void weigh(struct near *n, double weight)
{
    double w = weight / (isinf(n->slack) || n->slack <= 0 ? 1 : n->slack);
    struct ek_problem *m = n->moves;

    for (size_t i = 0; i < m->n_columns; i++)
        m->columns[i].sum = n->bytes[i] / n->total + w * n->latency[i];
    m->sum_steps = n->p->sum_steps * w;
    m->sum_tokens = n->p->sum_tokens * w;
    m->picture_steps = n->p->picture_steps * w;
    m->picture_tokens = n->p->picture_tokens * w;
    m->side_steps = n->p->side_steps * w;
    m->side_bytes = n->p->side_bytes * w;
}

static enum ek_status find(struct near *n)
{
    static const double weights[] = {TIE, 0.01, 0.1, 1, 10, 100, 1e4};
    struct ek_limits l = limits_of(n);
    struct ek_answer a;

    for (size_t i = 0; i < EK_ARRAY_LEN(weights); i++) {
        weigh(n, weights[i]);
        n->dp->priced = NULL; /* of other costs */
        EK_TRY(ek_dp_solve(n->moves, &l, NULL, &a, n->dp));
        if (a.kind != EK_ANSWER_OPTIMAL)
            return EK_OK;
        if (i == 0)
            n->least = moved_by(n, &a);
        if (take(n, &a))
            return EK_OK;
    }
    return EK_OK;
}

/* ---- Proving ------------------------------------------------------------------------------------
 * A group's latency is a sum and a part of its longest prefill, which is enumerated: plans whose
 * longest prefill lies in low .. high have at most slack - part * low for the sum. An answer that
 * breaks this with its own longest prefill splits the range there. */
static enum ek_status prove(struct near *n, double low, double high)
{
    double part = n->p->chunks > 1 ? (double)(n->p->chunks - 1) / n->p->chunks : 0, longest = 0;
    struct ek_limits l = limits_of(n);
    struct ek_answer a;

    l.prefill = high;
    if (n->best.n > 0)
        l.sum = n->moved / n->total * (1 - CLOSE);
    if (!isinf(n->slack))
        l.second = (struct ek_second_sum){n->latency, n->p, n->slack - part * low};
    if (l.second.columns && l.second.most <= 0)
        return EK_OK;
    EK_TRY(ek_ilp_solve(n->moves, &l, NULL, &a, n->ilp));
    n->proven = n->proven && a.kind != EK_ANSWER_UNKNOWN;
    if (a.kind != EK_ANSWER_OPTIMAL || take(n, &a))
        return EK_OK;
    for (uint32_t i = 0; i < a.n; i++)
        longest = fmax(longest, n->p->columns[a.columns[i]].prefill);
    if (longest <= low) { /* rounding: it broke the row itself */
        n->proven = false;
        return EK_OK;
    }
    EK_TRY(prove(n, low, nextafter(longest, 0)));
    return prove(n, longest, high);
}

static enum ek_status closest(struct near *n)
{
    EK_TRY(find(n));
    weigh(n, TIE);
    n->proven = true;
    if (n->best.n == 0 || n->moved > 0)
        EK_TRY(prove(n, 0, INFINITY));
    if (n->best.n > 0 && n->proven && n->moved < n->least * (1 - CLOSE) - 1)
        return ek_error(EK_EENV,
                        "internal error, no plan is made: integer program and dynamic program "
                        "disagree on the bytes moved (%.17g and %.17g); please report the costs "
                        "file",
                        n->moved, n->least);
    return EK_OK;
}

/* ---- The whole ----------------------------------------------------------------------------------
 */
static enum ek_status prepare(struct near *n, const struct ek_assignment *old)
{
    n->latency = ek_calloc(n->p->n_columns, sizeof(double));
    n->bytes = ek_calloc(n->p->n_columns, sizeof(double));
    if (n->latency == NULL || n->bytes == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n->p->n_columns; i++) {
        n->latency[i] = n->p->columns[i].sum;
        n->bytes[i] = moved_bytes(n->p, &n->p->columns[i], old);
    }
    n->total = 1;
    for (size_t i = 0; i < n->p->costs->n_modules; i++)
        n->total += (double)n->p->costs->modules[i].weights;
    n->slack = n->request->objectives[0] == EK_OBJ_LATENCY ||
                       n->request->objectives[0] == EK_OBJ_THROUGHPUT
                   ? n->allowed
                   : INFINITY;
    return EK_OK;
}

/* The closest plan of one choice replaces *best when it moves less. */
static enum ek_status try_choice(const struct ek_costs *c, const struct ek_request *r,
                                 const struct ek_choice *choice, const char *path, struct near *n,
                                 struct ek_problem **best)
{
    struct ek_request q = ek_request_with(r, choice);
    struct near at = *n;
    struct ek_problem *p = NULL;
    struct ek_assignment old;
    enum ek_status st;

    st = ek_problem_new(c, &q, choice->micro_batches, &p);
    if (st == EK_NO)
        return EK_OK;
    EK_TRY(st);
    at.p = p;
    at.best.n = 0;
    EK_GOTO(ek_problem_new(c, &q, choice->micro_batches, &at.moves), st, end);
    EK_GOTO(ek_assignment_read(p, path, true, &old), st, end);
    EK_GOTO(prepare(&at, &old), st, end);
    EK_GOTO(closest(&at), st, end);
    n->proven = n->proven && at.proven;
    if (at.best.n > 0 && (n->best.n == 0 || at.moved < n->moved)) {
        n->best = at.best;
        n->moved = at.moved;
        ek_problem_free(*best);
        *best = p;
        p = NULL;
    }
end:
    free(at.latency);
    free(at.bytes);
    ek_problem_free(at.moves);
    ek_problem_free(p);
    return st;
}

static enum ek_status refuse_tensor_parallel(const struct ek_solution *s)
{
    for (uint32_t i = 0; i < s->answer.n; i++) {
        const struct ek_problem *p = s->problem;
        uint32_t tp = p->kinds[p->columns[s->answer.columns[i]].kind].tp;
        if (tp > 1)
            return ek_error(EK_EUNSUPPORTED,
                            "--near tells devices apart, and the best plan has a stage on %u "
                            "devices at once; try --tp 1",
                            tp);
    }
    return EK_OK;
}

enum ek_status ek_stay_near(const struct ek_costs *c, const struct ek_request *r, const char *path,
                            double within, struct ek_solution *s)
{
    struct ek_request q = *r;
    struct ek_problem *p = NULL;
    struct near n = {.request = r,
                     .allowed = s->values[0] * (1 + within),
                     .dp = &s->dp,
                     .ilp = &s->ilp,
                     .proven = s->proven};
    enum ek_status st = EK_OK;

    EK_TRY(refuse_tensor_parallel(s));
    q.distinct_devices = true;
    q.workload.context = s->context;
    q.workload.batch = s->batch;
    if (r->time_limit > 0) /* as long again */
        s->dp.deadline_ns = s->ilp.deadline_ns = ek_now_ns() + (uint64_t)(r->time_limit * 1e9);
    for (size_t i = 0; st == EK_OK && i < s->n_tried; i++)
        st = try_choice(c, &q, &s->tried[i], path, &n, &p);
    if (st == EK_OK && n.best.n == 0)
        st = ek_error(EK_NO, "no plan near %s was found within %.1f %% of the best", path,
                      within * 100);
    if (st != EK_OK) {
        ek_problem_free(p);
        return st;
    }
    ek_problem_free(s->problem);
    s->problem = p;
    s->answer = n.best;
    s->score = ek_score_of(p, n.best.columns, n.best.n);
    for (size_t i = 0; i < r->n_objectives; i++)
        if (r->objectives[i] < EK_OBJ_CONTEXT)
            s->values[i] = ek_score_value(r->objectives[i], &s->score);
    s->near = true;
    s->proven = n.proven;
    s->moved_bytes = n.moved;
    return EK_OK;
}
