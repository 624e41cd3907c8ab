/* SPDX-License-Identifier: Apache-2.0
 *
 * What a GPU does when products go on: it draws so much power that it lowers its clocks after some
 * tens of milliseconds. Points are measured with rests between samples, as prompts mostly come; how
 * much longer they take without, and from when on, is measured once for the module that a model is
 * made of.
 */
#include "profiler/profile.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 512 };
#define LONG_ENOUGH 0.7 /* seconds of work */

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

static enum ek_status measure(const struct profile_device *d, const struct rig_group *g,
                              const struct ek_point *at)
{
    const char *signature = g->module->signature;
    double seconds[MOST], ratio, burst;
    struct ek_store_time_row *rows;
    struct rig *rig;
    enum ek_status st;
    size_t n = 0, all;

    EK_TRY(rig_new(&d->rig, g, &rig));
    st = rig_sustain(rig, at, LONG_ENOUGH, seconds, MOST, &n);
    rig_free(rig);
    EK_TRY(st);
    sustain_read(seconds, n, &ratio, &burst);
    EK_TRY(profile_rows(d, signature, &rows, &all));
    ratio *= ek_interpolate(rows, all, at, NULL);
    free(rows);
    EK_TRY(put(d, EK_STORE_STAGE, at, burst, n));
    return put(d, signature, at, ratio, n);
}

enum ek_status profile_sustained(const struct profile_device *d)
{
    const struct rig_group *g = &d->p->groups[0];
    struct point_space s = profile_space(&d->rig, g, EK_PHASE_PREFILL, 1);
    struct ek_point corners[4];
    struct ek_store_key k;
    enum ek_status st;

    points_corners(&s, corners); /* the first: the longest step */
    k = key_of(d, g->module->signature, &corners[0]);
    if (d->rig.dev->info.compute_major == 0 || g->run < 2 || ek_store_has_time(d->p->store, &k))
        return EK_OK;
    EK_TRY(devices_stopped(d->p->opt->stop));
    st = measure(d, g, &corners[0]);
    return st == EK_NO ? EK_OK : st;
}
