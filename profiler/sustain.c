/* SPDX-License-Identifier: Apache-2.0
 *
 * What a GPU does when products go on: it draws so much power that it lowers its clocks after some
 * tens of milliseconds, and they come back as slowly. Points are measured with rests between
 * samples, as prompts mostly come; how much longer prefill takes without, and from when on, and how
 * much longer decode steps take right behind it, is measured for the module that a model is made
 * of.
 */
#include "profiler/profile.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 512 };
#define LONG_ENOUGH 0.7  /* seconds of work: clocks have fallen and stay, ... */
#define UNTIL_LOW   0.25 /* ... have fallen, ... */
#define UNTIL_BACK  0.15 /* ... have come back */

static struct ek_store_key key_of(const struct profile_device *d, const char *signature,
                                  const struct ek_point *at)
{
    struct ek_store_key k = profile_key(d, signature, at, 0);

    snprintf(k.launch, sizeof(k.launch), "%s", EK_STORE_SUSTAINED);
    return k;
}

static enum ek_status put(const struct profile_device *d, const char *signature,
                          const struct ek_point *at, double seconds, size_t n)
{
    struct ek_store_key k = key_of(d, signature, at);
    struct ek_store_time t = {.median_s = seconds, .min_s = seconds, .n = (uint32_t)n};

    strcpy(t.stop, "timeout");
    return ek_store_put_time(d->p->store, &k, &t);
}

/* What the point takes with rests before it. */
static enum ek_status rested(const struct profile_device *d, const char *signature,
                             const struct ek_point *at, double *seconds)
{
    struct ek_store_time_row *rows;
    size_t n;

    EK_TRY(profile_rows(d, signature, &rows, &n));
    *seconds = strcmp(signature, EK_STORE_STAGE) == 0 ? ek_typical(rows, n, at->phase)
                                                      : ek_interpolate(rows, n, at, NULL);
    free(rows);
    return EK_OK;
}

/* A ratio to that, and the seconds until it is so, or half gone. */
static enum ek_status put_both(const struct profile_device *d, const struct ek_point *at,
                               double ratio, double seconds, size_t n)
{
    const char *signature = d->p->groups[0].module->signature;
    double module;

    EK_TRY(rested(d, signature, at, &module));
    EK_TRY(put(d, EK_STORE_STAGE, at, seconds, n));
    return module > 0 ? put(d, signature, at, ratio * module, n) : EK_OK;
}

/* How many times a rested module the steps of a rig take, and from when on. */
static enum ek_status go_on(const struct profile_device *d, struct rig *rig, const char *signature,
                            const struct ek_point *at, double *ratio, double *burst, size_t *n)
{
    double seconds[MOST], module, stage;

    EK_TRY(rested(d, signature, at, &module));
    EK_TRY(rested(d, EK_STORE_STAGE, at, &stage));
    EK_TRY(rig_begin(rig, at));
    EK_TRY(rig_rest(rig));
    EK_TRY(rig_go_on(rig, LONG_ENOUGH, seconds, MOST, n));
    sustain_read(seconds, *n, rig_modules(rig) * module + stage, ratio, burst);
    return EK_OK;
}

static enum ek_status measure_prefill(const struct profile_device *d, struct rig *rig,
                                      const struct ek_point *at)
{
    const char *signature = d->p->groups[0].module->signature;
    double ratio, burst;
    size_t n;

    EK_TRY(go_on(d, rig, signature, at, &ratio, &burst, &n));
    return put_both(d, at, ratio, burst, n);
}

/* Pictures draw less power than prompts do: the largest one, over and over. */
static enum ek_status measure_pictures(const struct profile_device *d, const struct rig_group *g)
{
    struct point_space pictures = profile_space(&d->rig, g, EK_PHASE_PREFILL, 1);
    const char *signature = g->module->signature;
    struct ek_point corners[4];
    struct ek_store_key k;
    struct rig *rig = NULL;
    double ratio, burst, module;
    enum ek_status st;
    size_t n;

    points_corners(&pictures, corners);
    k = key_of(d, signature, &corners[0]);
    if (ek_store_has_time(d->p->store, &k))
        return EK_OK;
    EK_TRY(devices_stopped(d->p->opt->stop));
    EK_GOTO(rig_new(&d->rig, g, &rig), st, end);
    EK_GOTO(go_on(d, rig, signature, &corners[0], &ratio, &burst, &n), st, end);
    EK_GOTO(rested(d, signature, &corners[0], &module), st, end);
    if (module > 0)
        st = put(d, signature, &corners[0], ratio * module, n);
end:
    rig_free(rig);
    return st;
}

/* Of the tower, or what most of a cut one is made of. */
static enum ek_status sustained_pictures(const struct profile_device *d)
{
    enum ek_status st = EK_OK;

    for (size_t i = 0; i < d->p->n_groups; i++) {
        enum ek_module_kind kind = d->p->groups[i].module->kind;
        if (kind != EK_MODULE_VISION && kind != EK_MODULE_BLOCK)
            continue;
        st = measure_pictures(d, &d->p->groups[i]);
        break;
    }
    return st == EK_NO ? EK_OK : st;
}

/* Decode steps right behind prefill that went on, beside those of a rested device. */
static enum ek_status measure_behind(const struct profile_device *d, struct rig *prefill,
                                     struct rig *rig, const struct ek_point *at)
{
    double before[MOST], behind[MOST], ratio, half;
    size_t n, all;

    EK_TRY(rig_begin(rig, at));
    EK_TRY(rig_rest(rig));
    EK_TRY(rig_go_on(rig, UNTIL_BACK / 3, before, MOST, &n));
    EK_TRY(rig_go_on(prefill, UNTIL_LOW, behind, MOST, &all));
    EK_TRY(rig_go_on(rig, UNTIL_BACK, behind, MOST, &all));
    recover_read(behind, all, timing_median(before, n), &ratio, &half);
    return put_both(d, at, ratio, half, all);
}

/* Points that are measured anyway: the longest prefill step; the decode step with the most
 * sequences, and a context such as most have (with much more, memory is waited for, and clocks do
 * not matter). */
static void choose_points(const struct profile_device *d, struct ek_point *prefill,
                          struct ek_point *decode)
{
    const struct rig_group *g = &d->p->groups[0];
    struct point_space steps = profile_space(&d->rig, g, EK_PHASE_PREFILL, 1),
                       rounds = profile_space(&d->rig, g, EK_PHASE_DECODE, 1);
    struct ek_point corners[4];

    points_corners(&steps, corners);
    *prefill = corners[0];
    *decode = points_middle(&rounds);
}

/* Whether the rows are there: the last one is put last. */
static bool measured(const struct profile_device *d, const struct ek_point *last)
{
    struct ek_store_key k = key_of(d, d->p->groups[0].module->signature, last);

    return ek_store_has_time(d->p->store, &k);
}

enum ek_status profile_sustained(const struct profile_device *d)
{
    struct rig *prefill = NULL, *decode = NULL;
    const struct rig_group *g = &d->p->groups[0];
    struct ek_point step, round;
    enum ek_status st;

    choose_points(d, &step, &round);
    if (!d->rig.gpu || g->run < 2)
        return EK_OK;
    EK_TRY(sustained_pictures(d));
    if (measured(d, &round))
        return EK_OK;
    EK_TRY(devices_stopped(d->p->opt->stop));
    EK_GOTO(rig_new(&d->rig, g, &prefill), st, end);
    EK_GOTO(rig_new(&d->rig, g, &decode), st, end);
    EK_GOTO(measure_prefill(d, prefill, &step), st, end);
    st = measure_behind(d, prefill, decode, &round);
end:
    rig_free(decode);
    rig_free(prefill);
    return st == EK_NO ? EK_OK : st;
}
