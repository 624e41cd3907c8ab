/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices of a profile: their rows, ceilings, and the links between them.
 */
#include "profiler/profile.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLEARLY 0.9

void ek_profile_device_row(const struct ek_device *dev, struct ek_store_device *out)
{
    const struct ek_device_info *info = &dev->info;
    struct ek_store_device d = {.memory_total = info->memory_total,
                                .memory_free = info->memory_free,
                                .cache_bytes = info->cache_bytes,
                                .budget = dev->spec.memory};

    snprintf(d.name, sizeof(d.name), "%s", dev->spec.name);
    snprintf(d.backend, sizeof(d.backend), "%s", dev->spec.backend);
    snprintf(d.model, sizeof(d.model), "%s", info->model);
    snprintf(d.uuid, sizeof(d.uuid), "%s", info->uuid);
    snprintf(d.driver, sizeof(d.driver), "%s", info->driver);
    snprintf(d.kernels, sizeof(d.kernels), "%s", info->kernels);
    snprintf(d.memory_group, sizeof(d.memory_group), "%s", info->memory_group);
    snprintf(d.threads, sizeof(d.threads), "%s", dev->spec.threads);
    if (gethostname(d.host, sizeof(d.host) - 1) != 0)
        strcpy(d.host, "localhost");
    *out = d;
}

enum ek_status devices_find(struct ek_store *store, int64_t id, struct ek_store_device *out)
{
    struct ek_store_device *all;
    enum ek_status st;
    size_t n;

    EK_TRY(ek_store_devices(store, &all, &n));
    st = ek_error(EK_EENV, "the profile lost device %lld", (long long)id);
    for (size_t i = 0; i < n; i++)
        if (all[i].id == id) {
            *out = all[i];
            st = EK_OK;
        }
    free(all);
    return st;
}

enum ek_status devices_open(const struct ek_device_spec *spec, enum ek_dtype act, bool budget,
                            struct ek_device **out)
{
    struct ek_device_spec s = *spec;

    if (!budget) {
        s.memory = 0;
        s.memory_fraction = 0;
    }
    return ek_device_open(&s, act, out);
}

/* Puts the row with its declared budget, and ceilings where they are missing. */
static enum ek_status put_device(struct ek_store *store, const struct ek_device_spec *spec,
                                 enum ek_dtype act, bool again)
{
    struct ek_store_device d;
    struct ek_device *dev;
    struct ek_ceilings c;
    enum ek_status st;

    EK_TRY(devices_open(spec, act, true, &dev)); /* fractions become bytes */
    ek_profile_device_row(dev, &d);
    ek_device_close(dev);
    EK_TRY(ek_store_put_device(store, &d));
    EK_TRY(devices_find(store, d.id, &d));
    if (!again && d.read_bandwidth == 0) {
        EK_TRY(twins_ceilings(store, &d));
        EK_TRY(ek_store_put_device(store, &d));
    }
    if (d.read_bandwidth > 0 && !again)
        return EK_OK;
    EK_TRY(devices_open(spec, act, false, &dev));
    EK_GOTO(ek_measure_ceilings(dev, &c), st, done);
    d.read_bandwidth = c.read_bandwidth;
    d.copy_bandwidth = c.copy_bandwidth;
    d.peak_f32 = c.peak_f32;
    d.peak_bf16 = c.peak_bf16;
    d.peak_f16 = c.peak_f16;
    d.overhead = c.overhead;
    st = ek_store_put_device(store, &d);
done:
    ek_device_close(dev);
    return st;
}

static bool has_link(const struct ek_store_link *links, size_t n, const char *from, const char *to)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(links[i].from, from) == 0 && strcmp(links[i].to, to) == 0)
            return true;
    return false;
}

/* Where GPUs reach each other, messages by a library are never faster, and it takes seconds and
 * memory to begin with: `devices --measure` looks all the same. */
static bool worth_a_look(const char *const *names, size_t n, size_t i)
{
    return strcmp(names[i], "nccl") != 0 || n == 0 || strcmp(names[0], "peer-store") != 0;
}

/* The usual mechanism, unless another is clearly faster. */
static enum ek_status measure_fastest(struct ek_device *from, struct ek_device *to,
                                      struct ek_store_link *out)
{
    const char *names[EK_LINK_MECHANISMS];
    size_t n = ek_link_mechanisms(from, to, names);

    if (getenv("EVENKEEL_LINK"))
        return ek_measure_link(from, to, out);
    for (size_t i = 0; i < n; i++) {
        struct ek_store_link l;
        if (!worth_a_look(names, n, i))
            continue;
        EK_TRY(ek_measure_link_as(from, to, names[i], &l));
        if (i == 0 || link_typical(&l) < CLEARLY * link_typical(out))
            *out = l;
    }
    return EK_OK;
}

static enum ek_status put_link(struct ek_store *store, const struct ek_device_spec *from,
                               const struct ek_device_spec *to, enum ek_dtype act)
{
    struct ek_device *a = NULL, *b = NULL;
    struct ek_store_link l;
    enum ek_status st;

    EK_GOTO(devices_open(from, act, false, &a), st, done);
    EK_GOTO(devices_open(to, act, false, &b), st, done);
    EK_GOTO(measure_fastest(a, b, &l), st, done);
    st = ek_store_put_link(store, &l);
done:
    ek_device_close(a);
    ek_device_close(b);
    return st;
}

/* Only where steps are queued: else the host's part is in the stage's own time. */
static enum ek_status put_return(struct ek_store *store, const struct ek_device_spec *spec,
                                 enum ek_dtype act)
{
    struct ek_device *dev;
    struct ek_store_link l;
    bool queued;

    EK_TRY(devices_open(spec, act, false, &dev));
    queued = dev->ops->graph_begin != NULL;
    act = dev->act;
    ek_device_close(dev);
    if (!queued)
        return EK_OK;
    EK_TRY(ek_measure_return(spec, act, &l));
    return ek_store_put_link(store, &l);
}

enum ek_status devices_stopped(const atomic_bool *stop)
{
    if (stop && *stop)
        return ek_error(EK_EINTR, "interrupted; what was measured is kept, the same command goes "
                                  "on from there");
    return EK_OK;
}

static enum ek_status put_links(struct ek_store *store, const struct ek_device_spec *specs,
                                size_t n, enum ek_dtype act, bool again, const atomic_bool *stop)
{
    struct ek_store_link *links;
    enum ek_status st = EK_OK;
    size_t n_links;

    EK_TRY(ek_store_links(store, &links, &n_links));
    for (size_t i = 0; i < n * n && st == EK_OK; i++) {
        const struct ek_device_spec *from = &specs[i / n], *to = &specs[i % n];
        size_t copied = 0;
        if (!again && has_link(links, n_links, from->name, to->name))
            continue;
        st = devices_stopped(stop);
        if (st == EK_OK && !again)
            st = twins_links(store, from->name, to->name, &copied);
        if (st == EK_OK && copied == 0)
            st = from == to ? put_return(store, from, act) : put_link(store, from, to, act);
    }
    free(links);
    return st;
}

enum ek_status ek_profile_devices(struct ek_store *store, const struct ek_device_spec *specs,
                                  size_t n, enum ek_dtype act, bool again, const atomic_bool *stop)
{
    for (size_t i = 0; i < n; i++) {
        EK_TRY(devices_stopped(stop));
        EK_TRY(put_device(store, &specs[i], act, again));
    }
    return put_links(store, specs, n, act, again, stop);
}
