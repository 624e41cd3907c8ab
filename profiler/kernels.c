/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the time of modules goes: a few points of each run again under the device's tracer, whose
 * records of a stage of like modules are the module's own, without names or marks in them. The rows
 * belong to a measurement made without the tracer, and what that costs is said.
 */
#include "profiler/profile.h"
#include "profiler/tracer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COSTS = 512 };

struct tracing {
    struct profile_device *d;
    const struct tracer *tracer;
    double costs[MAX_COSTS]; /* time with the tracer over that without, less 1 */
    size_t n_costs;
    double own_s; /* the tracer at work on the host during traced steps */
};

/* The longest chunk; one sequence and the most of them, as deep as contexts go. */
static size_t points_of(const struct rig_options *rig, const struct rig_group *g,
                        struct ek_point out[3])
{
    struct ek_point corners[4];
    size_t n = 0, k;

    for (int phase = EK_PHASE_PREFILL; phase <= EK_PHASE_DECODE; phase++) {
        struct point_space s = profile_space(rig, g, (enum ek_phase)phase, 1);
        k = points_corners(&s, corners);
        if (phase == EK_PHASE_PREFILL)
            out[n++] = corners[0];
        else if (s.max_width > 1)
            out[n++] = corners[k / 2 - 1];
        if (phase == EK_PHASE_DECODE)
            out[n++] = corners[k - 1];
    }
    return n;
}

/* EK_NO: not measured, so there is nothing to attribute. */
static enum ek_status time_of(struct tracing *t, const struct ek_store_key *key, double *seconds)
{
    struct ek_store_time_row *rows;
    enum ek_status st = EK_NO;
    size_t n;

    EK_TRY(profile_rows(t->d, key->signature, &rows, &n));
    for (size_t i = 0; i < n; i++)
        if (rows[i].key.phase == key->phase && rows[i].key.batch == key->batch &&
            rows[i].key.tokens == key->tokens && rows[i].key.context == key->context) {
            *seconds = rows[i].time.median_s;
            st = EK_OK;
        }
    free(rows);
    return st;
}

static enum ek_status put_rows(struct tracing *t, const struct ek_store_key *key, bool alone,
                               const struct attribution *a, double per)
{
    struct ek_store_kernel *rows;
    enum ek_status st;
    size_t n;

    EK_TRY(attribution_rows(a, alone, per, &rows, &n));
    st = ek_store_put_kernels(t->d->p->store, key, rows, n);
    free(rows);
    return st;
}

static enum ek_status trace_point(struct tracing *t, struct rig *rig, const struct rig_group *g,
                                  const struct ek_point *at)
{
    struct ek_store_key key = profile_key(t->d, g->module->signature, at, 0);
    struct attribution a = {.entries = NULL};
    double per, with, without;
    enum ek_status st;

    EK_TRY(devices_stopped(t->d->p->opt->stop));
    EK_GOTO(time_of(t, &key, &without), st, done);
    EK_GOTO(rig_trace(rig, at, t->tracer, &a, &per, &with), st, done);
    if (t->n_costs < MAX_COSTS && g->run > 1)
        t->costs[t->n_costs++] = with / without - 1;
    t->own_s += (double)a.overhead_ns * 1e-9;
    st = put_rows(t, &key, g->run == 1, &a, per);
done:
    attribution_clear(&a);
    return st == EK_NO ? EK_OK : st;
}

static enum ek_status trace_group(struct tracing *t, const struct rig_group *g)
{
    struct ek_point points[3];
    size_t n = points_of(&t->d->rig, g, points);
    struct rig *rig;
    enum ek_status st = EK_OK;

    if (ek_module_is_visual(g->module)) /* pictures belong to prompts */
        n = 1;
    EK_TRY(rig_new(&t->d->rig, g, &rig));
    for (size_t i = 0; i < n && st == EK_OK; i++)
        st = trace_point(t, rig, g, &points[i]);
    rig_free(rig);
    return st;
}

static void say_cost(struct tracing *t)
{
    size_t n = t->n_costs;
    double median = n ? timing_median(t->costs, n) : 0; /* sorts them */
    char own[EK_UNIT_LEN];

    if (n)
        ek_note("%s: with %s layers take %+.1f %% (median; from %+.1f to %+.1f %%); it was at work "
                "for %s on the host",
                t->d->row.name, t->tracer->name, 100 * median, 100 * t->costs[0],
                100 * t->costs[n - 1], ek_format_seconds(own, t->own_s));
}

static enum ek_status trace_device(struct profile *p, size_t i)
{
    struct profile_device d = {.p = p};
    struct tracing t = {.d = &d, .tracer = tracer_of(p->opt->devices[i].backend)};
    enum ek_status st;

    if (!t.tracer) {
        ek_note("%s: this build has no tracer for it", p->opt->devices[i].name);
        return EK_OK;
    }
    EK_TRY(t.tracer->begin());
    EK_GOTO(profile_open(p, i, &d), st, done);
    d.rig.ceilings = &d.ceilings;
    for (size_t g = 0; g < p->n_groups && st == EK_OK; g++) {
        profile_say(p, p->done, "kernels");
        st = trace_group(&t, &p->groups[g]);
    }
    ek_device_close(d.rig.dev);
    if (st == EK_OK)
        say_cost(&t);
done:
    t.tracer->end();
    return st;
}

enum ek_status profile_kernels(struct profile *p)
{
    for (size_t i = 0; i < p->opt->n_devices; i++)
        EK_TRY(trace_device(p, i));
    return EK_OK;
}
