/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices that share a memory bus, a cache or a power budget slow each other. How much is measured
 * for the module that a model is made of, at one point of either phase, with a stage of it running
 * on every other device of the machine meanwhile.
 */
#include "profiler/profile.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct neighbour {
    struct profile_device d;
    struct rig *rig;
    struct ek_point at;
    volatile bool *stop;
    pthread_t thread;
    bool running;
    enum ek_status status;
    char message[1024];
};

static void *be_busy(void *arg)
{
    struct neighbour *n = arg;

    n->status = rig_keep_busy(n->rig, &n->at, n->stop);
    if (n->status != EK_OK)
        snprintf(n->message, sizeof(n->message), "%s", ek_last_error());
    return NULL;
}

/* Points that are in every profile: corners of the spaces. */
static struct ek_point point_of(const struct rig_options *rig, const struct rig_group *g,
                                enum ek_phase phase)
{
    struct point_space s = profile_space(rig, g, phase, 1);
    struct ek_point corners[4];
    size_t n = points_corners(&s, corners);

    /* decode: one sequence and the least context, as most steps are; prefill: the largest step */
    return phase == EK_PHASE_DECODE ? corners[n > 2 ? 2 : 0] : corners[0];
}

static enum ek_status start(struct profile *p, size_t i, const struct ek_point *at,
                            volatile bool *stop, struct neighbour *n)
{
    EK_TRY(profile_open(p, i, &n->d));
    n->d.rig.ceilings = &n->d.ceilings;
    EK_TRY(rig_new(&n->d.rig, &p->groups[0], &n->rig));
    n->at = *at;
    n->stop = stop;
    if (pthread_create(&n->thread, NULL, be_busy, n) != 0)
        return ek_error(EK_EENV, "cannot start a thread for %s", p->opt->devices[i].name);
    n->running = true;
    return EK_OK;
}

/* *st: the first failure of a neighbour, where it was EK_OK. */
static void finish(struct neighbour *n, enum ek_status *st)
{
    if (n->running)
        pthread_join(n->thread, NULL);
    if (*st == EK_OK && n->running && n->status != EK_OK)
        *st = ek_error(n->status, "%s", n->message);
    rig_free(n->rig);
    ek_device_close(n->d.rig.dev);
}

static enum ek_status measure_beside(struct profile *p, struct profile_device *d,
                                     const struct ek_point *at, const struct ek_store_key *key)
{
    struct ek_store_time module, stage;
    struct rig *rig;
    enum ek_status st;

    EK_TRY(rig_new(&d->rig, &p->groups[0], &rig));
    st = rig_measure(rig, at, 0, &module, &stage);
    rig_free(rig);
    EK_TRY(st);
    return ek_store_put_time(p->store, key, &module);
}

static enum ek_status measure_one(struct profile *p, size_t i, enum ek_phase phase)
{
    size_t n = p->opt->n_devices;
    struct neighbour *others = ek_calloc(n, sizeof(*others));
    struct profile_device d = {.p = p};
    struct ek_store_key key;
    struct ek_point at;
    volatile bool stop = false;
    enum ek_status st = EK_ENOMEM;

    if (!others)
        return st;
    EK_GOTO(profile_open(p, i, &d), st, done);
    d.rig.ceilings = &d.ceilings;
    at = point_of(&d.rig, &p->groups[0], phase);
    key = profile_key(&d, p->groups[0].module->signature, &at, (uint32_t)n - 1);
    if (ek_store_has_time(p->store, &key))
        goto done;
    for (size_t j = 0; j < n && st == EK_OK; j++)
        if (j != i)
            st = start(p, j, &at, &stop, &others[j]);
    if (st == EK_OK)
        st = measure_beside(p, &d, &at, &key);
done:
    stop = true;
    for (size_t j = 0; others && j < n; j++)
        finish(&others[j], &st);
    ek_device_close(d.rig.dev);
    free(others);
    return st;
}

enum ek_status profile_busy(struct profile *p)
{
    if (p->opt->n_devices < 2 || p->groups[0].run < 2)
        return EK_OK;
    for (size_t i = 0; i < p->opt->n_devices; i++)
        for (int phase = EK_PHASE_PREFILL; phase <= EK_PHASE_DECODE; phase++) {
            EK_TRY(devices_stopped(p->opt->stop));
            enum ek_status st = measure_one(p, i, (enum ek_phase)phase);
            if (st == EK_NO)
                ek_note("left out: %s", ek_last_error());
            EK_TRY(st == EK_NO ? EK_OK : st);
        }
    return EK_OK;
}
