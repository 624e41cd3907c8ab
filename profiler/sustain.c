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

static enum ek_status put_under(const struct profile_device *d, const struct ek_store_key *key,
                                double seconds, size_t n)
{
    struct ek_store_time t = {.median_s = seconds, .min_s = seconds, .n = (uint32_t)n};

    strcpy(t.stop, "timeout");
    return ek_store_put_time(d->p->store, key, &t);
}

static enum ek_status put(const struct profile_device *d, const char *signature,
                          const struct ek_point *at, double seconds, size_t n)
{
    struct ek_store_key k = key_of(d, signature, at);

    return put_under(d, &k, seconds, n);
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

/* A rig's steps, and what comes of them when they go on: each is longer than a rested one, from
 * some time on. */
struct steps {
    struct rig *rig;
    struct ek_point at;
    double rested, ratio, burst;
    size_t n;
};

/* Makes them ready. */
static enum ek_status begin(const struct profile_device *d, const char *signature, struct steps *s)
{
    double module, stage;

    EK_TRY(rested(d, signature, &s->at, &module));
    EK_TRY(rested(d, EK_STORE_STAGE, &s->at, &stage));
    EK_TRY(rig_begin(s->rig, &s->at));
    s->rested = rig_modules(s->rig) * module + stage;
    return EK_OK;
}

static enum ek_status go_on(const struct profile_device *d, const char *signature, struct steps *s)
{
    double seconds[MOST];

    EK_TRY(begin(d, signature, s));
    EK_TRY(rig_rest(s->rig));
    EK_TRY(rig_go_on(s->rig, LONG_ENOUGH, seconds, MOST, &s->n));
    sustain_read(seconds, s->n, s->rested, &s->ratio, &s->burst);
    return EK_OK;
}

static enum ek_status measure_prefill(const struct profile_device *d, struct steps *s)
{
    EK_TRY(go_on(d, d->p->groups[0].module->signature, s));
    return put_both(d, &s->at, s->ratio, s->burst, s->n);
}

/* Pictures draw less power than prompts do: the largest one, over and over. */
static enum ek_status measure_pictures(const struct profile_device *d, const struct rig_group *g)
{
    struct point_space pictures = profile_space(&d->rig, g, EK_PHASE_PREFILL, 1);
    const char *signature = g->module->signature;
    struct ek_point corners[4];
    struct ek_store_key k;
    struct steps s = {.rig = NULL};
    double module;
    enum ek_status st;

    points_corners(&pictures, corners);
    s.at = corners[0];
    k = key_of(d, signature, &s.at);
    if (ek_store_has_time(d->p->store, &k))
        return EK_OK;
    EK_TRY(devices_stopped(d->p->opt->stop));
    EK_GOTO(rig_new(&d->rig, g, &s.rig), st, end);
    EK_GOTO(go_on(d, signature, &s), st, end);
    EK_GOTO(rested(d, signature, &s.at, &module), st, end);
    if (module > 0)
        st = put_under(d, &k, s.ratio * module, s.n);
end:
    rig_free(s.rig);
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

static double sum(const double *v, size_t n)
{
    double all = 0;

    for (size_t i = 0; i < n; i++)
        all += v[i];
    return all;
}

/* How much of its burst prefill has again behind so many seconds of decoding. */
static enum ek_status measure_refill(const struct profile_device *d, const struct steps *prefill,
                                     double decoding)
{
    struct ek_store_key k = key_of(d, EK_STORE_STAGE, &prefill->at);
    double again[MOST];
    size_t n;

    EK_TRY(rig_go_on(prefill->rig, UNTIL_LOW, again, MOST, &n));
    if (!(prefill->burst > 0))
        return EK_OK;
    snprintf(k.launch, sizeof(k.launch), "%s", EK_STORE_REFILLED);
    return put_under(
        d, &k, refill_read(again, n, prefill->rested, prefill->ratio, prefill->burst, decoding), n);
}

/* Decode steps right behind prefill that went on, beside those of a rested device. */
static enum ek_status measure_behind(const struct profile_device *d, const struct steps *prefill,
                                     struct steps *s)
{
    double behind[MOST];
    size_t n;

    EK_TRY(begin(d, d->p->groups[0].module->signature, s));
    EK_TRY(rig_go_on(prefill->rig, UNTIL_LOW, behind, MOST, &n));
    EK_TRY(rig_go_on(s->rig, UNTIL_BACK, behind, MOST, &s->n));
    recover_read(behind, s->n, s->rested, &s->ratio, &s->burst);
    EK_TRY(measure_refill(d, prefill, sum(behind, s->n)));
    return put_both(d, &s->at, s->ratio, s->burst, s->n);
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
    const struct rig_group *g = &d->p->groups[0];
    struct steps prefill = {.rig = NULL}, decode = {.rig = NULL};
    enum ek_status st;

    choose_points(d, &prefill.at, &decode.at);
    if (!d->rig.gpu || g->run < 2)
        return EK_OK;
    EK_TRY(sustained_pictures(d));
    if (measured(d, &decode.at))
        return EK_OK;
    EK_TRY(devices_stopped(d->p->opt->stop));
    EK_GOTO(rig_new(&d->rig, g, &prefill.rig), st, end);
    EK_GOTO(rig_new(&d->rig, g, &decode.rig), st, end);
    EK_GOTO(measure_prefill(d, &prefill), st, end);
    st = measure_behind(d, &prefill, &decode);
end:
    rig_free(decode.rig);
    rig_free(prefill.rig);
    return st == EK_NO ? EK_OK : st;
}
