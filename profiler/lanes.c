/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices with a memory of their own, as GPUs have, are measured at the same time, each by a thread
 * with its own connection to the store; those that share one (all CPU devices, devices declared on
 * one GPU) follow one another, CPU devices last. So eight GPUs take no longer than one.
 */
#include "profiler/profile.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CORES_A_LANE = 2 }; /* a thread that waits for a GPU stays awake */

struct lane {
    struct profile p; /* a copy, with a store of its own */
    profile_device_fn fn;
    size_t at;
    pthread_t thread;
    bool running;
    enum ek_status status;
    char message[1024];
};

void profile_say(struct profile *p, uint64_t done, const char *detail)
{
    pthread_mutex_lock(&p->pace->lock);
    p->pace->done += done - p->done;
    p->done = done;
    ek_progress_set(p->pace->bar, p->pace->done, detail);
    pthread_mutex_unlock(&p->pace->lock);
}

/* Lane 0 is the host's; the others begin with what they share. */
static size_t lane_of(const char *group, char groups[][64], size_t *n)
{
    size_t i = 1;

    if (group[0] == '\0' || strcmp(group, "host") == 0)
        return 0;
    while (i < *n && strcmp(groups[i], group) != 0)
        i++;
    if (i == *n)
        snprintf(groups[(*n)++], sizeof(groups[0]), "%s", group);
    return i;
}

enum ek_status profile_assign_lanes(struct profile *p)
{
    char groups[EK_MAX_DEVICES + 1][64];

    p->n_lanes = 1;
    for (size_t i = 0; i < p->opt->n_devices; i++) {
        struct ek_device *dev;
        EK_TRY(devices_open(&p->opt->devices[i], p->opt->act, true, &dev));
        p->lane_of[i] = lane_of(dev->info.memory_group, groups, &p->n_lanes);
        ek_device_close(dev);
    }
    if (p->n_lanes < 3 || sysconf(_SC_NPROCESSORS_ONLN) < (long)(CORES_A_LANE * p->n_lanes)) {
        memset(p->lane_of, 0, sizeof(p->lane_of));
        p->n_lanes = 1;
    }
    return EK_OK;
}

static enum ek_status run(struct profile *p, profile_device_fn fn, size_t lane)
{
    for (size_t i = 0; i < p->opt->n_devices; i++)
        if (p->lane_of[i] == lane)
            EK_TRY(fn(p, i));
    return EK_OK;
}

static void *run_lane(void *arg)
{
    struct lane *l = arg;

    l->status = run(&l->p, l->fn, l->at);
    if (l->status != EK_OK)
        snprintf(l->message, sizeof(l->message), "%s", ek_last_error());
    return NULL;
}

static enum ek_status start(struct lane *l, const struct profile *p, profile_device_fn fn,
                            size_t at)
{
    *l = (struct lane){.p = *p, .fn = fn, .at = at};
    l->p.store = NULL;
    l->p.left_out = 0;
    EK_TRY(ek_store_open_again(p->store, &l->p.store));
    if (pthread_create(&l->thread, NULL, run_lane, l) != 0)
        return ek_error(EK_EENV, "profile: cannot start a thread");
    l->running = true;
    return EK_OK;
}

/* CPU devices when nobody else needs the cores. */
enum ek_status profile_each(struct profile *p, profile_device_fn fn)
{
    struct lane *lanes = ek_calloc(p->n_lanes, sizeof(*lanes));
    enum ek_status st = lanes ? EK_OK : EK_ENOMEM;

    for (size_t i = 1; i < p->n_lanes && st == EK_OK; i++)
        st = start(&lanes[i], p, fn, i);
    for (size_t i = 1; lanes && i < p->n_lanes; i++) {
        struct lane *l = &lanes[i];
        if (l->running)
            pthread_join(l->thread, NULL);
        if (st == EK_OK && l->status != EK_OK)
            st = ek_error(l->status, "%s", l->message);
        p->left_out += l->p.left_out;
        ek_store_close(l->p.store);
    }
    free(lanes);
    return st == EK_OK ? run(p, fn, 0) : st;
}
