/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices that share a memory bus, a cache or a power budget slow each other. How much is measured
 * for the module that a model is made of, at one point of either phase, with a stage of it running
 * on every other device of the machine meanwhile.
 */
#include "profiler/profile.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A device, at work whenever another one is measured. */
struct neighbour {
    struct profile_device d;
    struct rig *rig;
    struct ek_point at;
    struct ek_store_key key; /* of the row with the others at work */
    atomic_bool stop, goes;  /* it is asked to end; it works, or has failed */
    atomic_bool ended;       /* it works no more */
    pthread_t thread;
    bool running;
    enum ek_status status;
    char message[1024];
};

static void *be_busy(void *arg)
{
    struct neighbour *n = arg;

    n->status = rig_keep_busy(n->rig, &n->at, &n->stop, &n->goes);
    atomic_store(&n->goes, true);
    if (n->status != EK_OK)
        snprintf(n->message, sizeof(n->message), "%s", ek_last_error());
    atomic_store(&n->ended, true);
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

static enum ek_status start(struct neighbour *n)
{
    atomic_store(&n->stop, false);
    atomic_store(&n->goes, false);
    atomic_store(&n->ended, false);
    if (pthread_create(&n->thread, NULL, be_busy, n) != 0)
        return ek_error(EK_EENV, "cannot start a thread for %s", n->d.row.name);
    n->running = true;
    return EK_OK;
}

static enum ek_status halt(struct neighbour *n)
{
    bool ran = n->running;

    atomic_store(&n->stop, true);
    if (ran)
        pthread_join(n->thread, NULL);
    n->running = false;
    return ran && n->status != EK_OK ? ek_error(n->status, "%s", n->message) : EK_OK;
}

static enum ek_status open_neighbour(struct profile *p, size_t i, enum ek_phase phase,
                                     struct neighbour *n)
{
    EK_TRY(profile_open(p, i, &n->d));
    n->d.rig.ceilings = &n->d.ceilings;
    n->at = point_of(&n->d.rig, &p->groups[0], phase);
    n->key =
        profile_key(&n->d, p->groups[0].module->signature, &n->at, (uint32_t)p->opt->n_devices - 1);
    return EK_OK;
}

/* A stage is made before it works, which takes longer than a measurement. */
static void await(struct neighbour *all, size_t n)
{
    static const struct timespec moment = {.tv_nsec = 1000000};

    for (size_t i = 0; i < n; i++)
        while (!atomic_load(&all[i].goes))
            nanosleep(&moment, NULL);
}

/* A row counts where all others worked to its end: none is kept beside one that failed. */
static enum ek_status others_worked(struct neighbour *all, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (all[i].running && atomic_load(&all[i].ended))
            EK_TRY(halt(&all[i]));
    return EK_OK;
}

/* One of n, while the others work. */
static enum ek_status measure_one(struct profile *p, struct neighbour *all, size_t i, size_t n)
{
    struct neighbour *one = &all[i];
    struct ek_store_time module, stage;
    enum ek_status st;

    if (ek_store_has_time(p->store, &one->key))
        return EK_OK;
    EK_TRY(devices_stopped(p->opt->stop));
    EK_TRY(halt(one));
    st = rig_measure(one->rig, &one->at, 0, &module, &stage);
    if (st == EK_NO)
        ek_note("left out: %s", ek_last_error());
    else if (st == EK_OK && (st = others_worked(all, n)) == EK_OK)
        st = ek_store_put_time(p->store, &one->key, &module);
    EK_TRY(st == EK_NO ? EK_OK : st);
    return start(one);
}

static enum ek_status measure_all(struct profile *p, struct neighbour *all, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        EK_TRY(rig_new(&all[i].d.rig, &p->groups[0], &all[i].rig));
        EK_TRY(start(&all[i]));
    }
    for (size_t i = 0; i < n; i++) {
        await(all, n);
        EK_TRY(measure_one(p, all, i, n));
    }
    return EK_OK;
}

static enum ek_status measure_phase(struct profile *p, enum ek_phase phase)
{
    size_t n = p->opt->n_devices, known = 0;
    struct neighbour *all = ek_calloc(n, sizeof(*all));
    enum ek_status st = all ? EK_OK : EK_ENOMEM, halted;

    for (size_t i = 0; i < n && st == EK_OK; i++)
        if ((st = open_neighbour(p, i, phase, &all[i])) == EK_OK)
            known += ek_store_has_time(p->store, &all[i].key);
    if (st == EK_OK && known < n)
        st = measure_all(p, all, n);
    for (size_t i = 0; all && i < n; i++) {
        halted = halt(&all[i]);
        st = st == EK_OK ? halted : st;
        rig_free(all[i].rig);
        ek_device_close(all[i].d.rig.dev);
    }
    free(all);
    return st;
}

enum ek_status profile_busy(struct profile *p)
{
    enum ek_status st;

    if (p->opt->n_devices < 2 || p->groups[0].run < 2)
        return EK_OK;
    for (int phase = EK_PHASE_PREFILL; phase <= EK_PHASE_DECODE; phase++) {
        EK_TRY(devices_stopped(p->opt->stop));
        st = measure_phase(p, (enum ek_phase)phase);
        if (st == EK_NO) /* a neighbour does not fit */
            ek_note("left out: %s", ek_last_error());
        EK_TRY(st == EK_NO ? EK_OK : st);
    }
    return EK_OK;
}
