/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The front of alternatives: no plan is better than a point of it in the slowest stage's prefill,
 * the slowest stage's decode and the fullest memory at once. Thresholds on two of them, least
 * third, each answered by the dynamic program; every point is exact, and all are there unless the
 * time or the room for them ends.
 */
#include "planner/planner.h"
#include "planner/levels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_POINTS 200

struct point {
    double prefill, decode, balance; /* of one group; of one step; used / budget */
    struct ek_answer answer;
};
struct front {
    const struct ek_problem *p;
    struct ek_effort *e;
    uint8_t *deny; /* columns above the decode threshold */
    struct point points[MAX_POINTS];
    size_t n;
    bool whole; /* no point is left out */
};

static struct point point_of(const struct ek_problem *p, const struct ek_answer *a)
{
    struct point t = {.answer = *a};

    for (uint32_t i = 0; i < a->n; i++) {
        const struct ek_column *c = &p->columns[a->columns[i]];
        t.prefill = fmax(t.prefill, c->prefill);
        t.decode = fmax(t.decode, c->decode);
        t.balance = fmax(t.balance, c->ratio);
    }
    return t;
}

static bool covered(const struct point *a, const struct point *b)
{
    return b->prefill <= a->prefill && b->decode <= a->decode && b->balance <= a->balance;
}

static void add_point(struct front *f, const struct point *t)
{
    size_t kept = 0;

    for (size_t i = 0; i < f->n; i++)
        if (covered(t, &f->points[i]))
            return;
    for (size_t i = 0; i < f->n; i++)
        if (!covered(&f->points[i], t))
            f->points[kept++] = f->points[i];
    f->n = kept;
    if (f->n < MAX_POINTS)
        f->points[f->n++] = *t;
}

/* Least decode bottleneck with prefill and memory limited; *found: there is one. */
static enum ek_status least_decode(struct front *f, double prefill, double balance,
                                   struct point *out, bool *found)
{
    const struct ek_problem *p = f->p;
    struct ek_limits l = EK_LIMITS_NONE;
    struct ek_answer a;

    *found = false;
    l.prefill = prefill;
    l.ratio = balance;
    l.enough = INFINITY; /* any plan will do: the threshold does the work */
    memset(f->deny, 0, p->n_columns);
    for (;;) {
        double least;
        EK_TRY(ek_dp_solve(p, &l, f->deny, &a, f->e));
        f->whole = f->whole && a.kind != EK_ANSWER_UNKNOWN;
        if (a.kind != EK_ANSWER_OPTIMAL)
            return EK_OK;
        *out = point_of(p, &a);
        *found = true;
        least = out->decode;
        for (size_t c = 0; c < p->n_columns; c++)
            f->deny[c] = p->columns[c].decode >= least;
    }
}

/* Walks down the prefill bottleneck at one memory limit; *fullest: of the plans on the way. */
static enum ek_status walk(struct front *f, double balance, double *fullest)
{
    double prefill = INFINITY;
    struct point t;
    bool found;

    *fullest = -INFINITY;
    while (f->n < MAX_POINTS && !ek_effort_over(f->e)) {
        EK_TRY(least_decode(f, prefill, balance, &t, &found));
        if (!found)
            return EK_OK;
        add_point(f, &t);
        *fullest = fmax(*fullest, t.balance);
        if (t.prefill <= 0)
            return EK_OK;
        prefill = nextafter(t.prefill, 0);
    }
    f->whole = false;
    return EK_OK;
}

static int by_prefill(const void *a, const void *b)
{
    const struct point *p = a, *q = b;

    if (p->prefill != q->prefill)
        return p->prefill < q->prefill ? -1 : 1;
    return p->decode < q->decode ? -1 : p->decode > q->decode;
}

static json_t *front_json(struct front *f)
{
    json_t *list = json_array();

    qsort(f->points, f->n, sizeof(*f->points), by_prefill);
    for (size_t i = 0; i < f->n; i++) {
        struct ek_placement pl;
        ek_place(f->p, f->points[i].answer.columns, f->points[i].answer.n, &pl);
        json_array_append_new(list,
                              json_pack("{s:f s:f s:f s:o}", "prefill_s",
                                        f->points[i].prefill * f->p->micro_batches, "decode_s",
                                        f->points[i].decode, "balance", f->points[i].balance,
                                        "modules", ek_placement_modules(f->p, &pl)));
    }
    return list;
}

/* The front at a memory limit holds every point of the whole front that is not emptier than all of
 * its own: the next limit is just below its fullest plan. */
enum ek_status ek_pareto(const struct ek_solution *s, const struct ek_request *r, json_t **out,
                         bool *whole)
{
    struct ek_effort e = {.stop = r->stop};
    struct front *f = ek_calloc(1, sizeof(*f));
    double balance = INFINITY, fullest;
    enum ek_status st = EK_OK;

    if (f == NULL)
        return EK_ENOMEM;
    if (r->time_limit > 0)
        e.deadline_ns = ek_now_ns() + (uint64_t)(r->time_limit * 1e9);
    f->p = s->problem;
    f->e = &e;
    f->whole = true;
    f->deny = ek_calloc(f->p->n_columns, 1);
    if (f->deny == NULL)
        st = EK_ENOMEM;
    for (; st == EK_OK && f->whole && balance > 0; balance = nextafter(fullest, 0)) {
        st = walk(f, balance, &fullest);
        if (isinf(fullest)) /* nothing is that empty */
            break;
    }
    if (st == EK_OK)
        *out = front_json(f);
    *whole = f->whole && !e.expired;
    free(f->deny);
    free(f);
    return st;
}
