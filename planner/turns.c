/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Jobs that pass stages, one event after the other: a stage works at the pace that its neighbours
 * on the bus leave it, begins when a job and room for its result are there, and a device does one
 * job at a time.
 */
#include "planner/turns.h"
#include "planner/problem.h"

#include <math.h>
#include <string.h>

#define ROOM      3 /* for jobs between two stages: a link's slots, and where one waits for them */
#define MOST_JOBS 256

struct worker {
    bool at_work;
    uint32_t done;         /* jobs */
    double left;           /* of the one at work, alone */
    double came[ROOM + 1]; /* when a job came, by its number */
};
struct turns {
    const struct ek_turn *stages;
    size_t n;
    const struct ek_jobs *jobs;
    struct worker workers[EK_PLAN_MAX_STAGES];
    double now, *busy, *ended;
};

/* When the next job of a stage is there; INFINITY: nobody knows yet. */
static double coming(const struct turns *t, size_t i)
{
    const struct worker *w = &t->workers[i];
    uint32_t before = t->jobs->again;

    if (w->at_work || w->done == t->jobs->n)
        return INFINITY;
    if (i > 0)
        return t->workers[i - 1].done > w->done ? w->came[w->done % (ROOM + 1)] : INFINITY;
    if (before == 0 || w->done < before)
        return 0;
    before = w->done - before;
    return t->workers[t->n - 1].done > before ? t->ended[before] + t->jobs->return_s : INFINITY;
}

static bool has_room(const struct turns *t, size_t i)
{
    return i + 1 == t->n || t->workers[i].done < t->workers[i + 1].done + ROOM;
}

static bool device_works(const struct turns *t, uint32_t device)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->workers[i].at_work && t->stages[i].device == device)
            return true;
    return false;
}

/* Of the stages that can begin, the one with the oldest job: whose device has nothing else to do.
 */
static bool begin_one(struct turns *t)
{
    size_t best = t->n;

    for (size_t i = 0; i < t->n; i++)
        if (coming(t, i) <= t->now && has_room(t, i) && !device_works(t, t->stages[i].device) &&
            (best == t->n || t->workers[i].done < t->workers[best].done))
            best = i;
    if (best == t->n)
        return false;
    t->workers[best].at_work = true;
    t->workers[best].left = t->stages[best].seconds;
    return true;
}

/* How many times as long the stage takes now. */
static double pace(const struct turns *t, size_t i)
{
    double others = 0;

    for (size_t k = 0; k < t->n; k++)
        others += t->workers[k].at_work && t->stages[k].bus == t->stages[i].bus &&
                  t->stages[k].device != t->stages[i].device;
    return 1 + t->stages[i].slow * others;
}

static void end_job(struct turns *t, size_t i)
{
    struct worker *w = &t->workers[i];

    w->at_work = false;
    if (i + 1 < t->n)
        w[1].came[w->done % (ROOM + 1)] = t->now + t->stages[i].handoff_s;
    else
        t->ended[w->done] = t->now;
    w->done++;
}

/* To the next end of a job, or the next one that comes. False: there is none. */
static bool go_on(struct turns *t)
{
    double next = INFINITY, paces[EK_PLAN_MAX_STAGES], passed;
    size_t first = t->n;

    for (size_t i = 0; i < t->n; i++) {
        double at = coming(t, i);
        paces[i] = t->workers[i].at_work ? pace(t, i) : 0;
        if (t->workers[i].at_work && t->now + t->workers[i].left * paces[i] < next) {
            next = t->now + t->workers[i].left * paces[i];
            first = i;
        }
        if (at > t->now && at < next) {
            next = at;
            first = t->n;
        }
    }
    if (isinf(next))
        return false;
    passed = next - t->now;
    t->now = next;
    for (size_t i = 0; i < t->n; i++)
        if (t->workers[i].at_work) {
            t->workers[i].left = fmax(t->workers[i].left - passed / paces[i], 0);
            t->busy[i] += passed;
        }
    if (first < t->n)
        end_job(t, first);
    return true;
}

void ek_take_turns(const struct ek_turn *stages, size_t n, const struct ek_jobs *jobs, double *busy,
                   double *ended)
{
    struct turns t = {.stages = stages, .n = n, .jobs = jobs, .busy = busy, .ended = ended};

    memset(busy, 0, n * sizeof(*busy));
    while (t.workers[n - 1].done < jobs->n) {
        while (begin_one(&t))
            ;
        if (!go_on(&t))
            break;
    }
}

/* ---- A placement --------------------------------------------------------------------------------
 */
static const struct ek_cost_class *class_of(const struct ek_problem *p, uint32_t device)
{
    return &p->costs->classes[p->devices[device].cls];
}

static bool same_bus(const struct ek_problem *p, uint32_t a, uint32_t b)
{
    const char *group = class_of(p, a)->memory_group;

    return a == b || (group[0] != '\0' && strcmp(group, class_of(p, b)->memory_group) == 0);
}

uint32_t ek_bus_of(const struct ek_problem *p, uint32_t device)
{
    uint32_t d = 0;

    while (!same_bus(p, d, device))
        d++;
    return d;
}

bool ek_buses_meet(const struct ek_problem *p, const struct ek_placement *pl)
{
    for (size_t i = 0; i < pl->n_stages; i++)
        for (size_t k = 0; k < i; k++) {
            uint32_t a = pl->stages[i].devices[0], b = pl->stages[k].devices[0];
            if (a != b && same_bus(p, a, b))
                return true;
        }
    return false;
}

/* For each other device on the bus at work, of the factor with all of them. */
static double slow_of(const struct ek_problem *p, uint32_t device)
{
    const struct ek_cost_class *k = class_of(p, device);
    uint32_t others = 0;

    for (uint32_t d = 0; d < p->n_devices; d++)
        others += d != device && same_bus(p, d, device);
    return others ? (k->slow_prefill - 1) / others : 0;
}

static void fill(const struct ek_problem *p, const struct ek_placement *pl, uint32_t jobs,
                 struct ek_turn *out)
{
    for (size_t i = 0; i < pl->n_stages; i++) {
        const struct ek_placed_stage *s = &pl->stages[i];
        out[i] = (struct ek_turn){.device = s->devices[0],
                                  .bus = ek_bus_of(p, s->devices[0]),
                                  .slow = slow_of(p, s->devices[0]),
                                  .seconds = (s->prefill_s - s->pictures_s) / jobs,
                                  .handoff_s = s->handoff_s};
    }
}

double ek_meet(const struct ek_problem *p, struct ek_placement *pl)
{
    double chunks = (double)ek_prefill_chunks(&p->workload, p->workload.batch);
    double busy[EK_PLAN_MAX_STAGES], ended[MOST_JOBS];
    struct ek_turn turns[EK_PLAN_MAX_STAGES];
    struct ek_jobs jobs = {.n = (uint32_t)fmin(fmax(chunks, 1), MOST_JOBS)};

    fill(p, pl, jobs.n, turns);
    ek_take_turns(turns, pl->n_stages, &jobs, busy, ended);
    for (size_t i = 0; i < pl->n_stages; i++)
        pl->stages[i].prefill_s = pl->stages[i].pictures_s + busy[i];
    return ended[jobs.n - 1];
}
