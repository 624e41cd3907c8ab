/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices declared on one piece of hardware (a GPU as cuda:0 and cuda:0.1): what was measured on
 * one of them, alone, holds for the others, and is not measured again.
 */
#include "profiler/profile.h"

#include <stdlib.h>
#include <string.h>

static bool same_hardware(const struct ek_store_device *a, const struct ek_store_device *b)
{
    return a->uuid[0] != '\0' && strcmp(a->uuid, b->uuid) == 0 && strcmp(a->host, b->host) == 0 &&
           strcmp(a->backend, b->backend) == 0 && strcmp(a->driver, b->driver) == 0 &&
           strcmp(a->kernels, b->kernels) == 0 && strcmp(a->threads, b->threads) == 0;
}

static bool alike(const struct ek_store_device *a, const struct ek_store_device *b)
{
    return a->id != b->id && same_hardware(a, b);
}

/* Every device of the profile that is like d; *out is freed with free(). */
static enum ek_status find(struct ek_store *store, const struct ek_store_device *d,
                           struct ek_store_device **out, size_t *n)
{
    size_t all, kept = 0;

    EK_TRY(ek_store_devices(store, out, &all));
    for (size_t i = 0; i < all; i++)
        if (alike(&(*out)[i], d))
            (*out)[kept++] = (*out)[i];
    *n = kept;
    return EK_OK;
}

enum ek_status twins_ceilings(struct ek_store *store, struct ek_store_device *d)
{
    struct ek_store_device *twins;
    size_t n;

    EK_TRY(find(store, d, &twins, &n));
    for (size_t i = 0; i < n && d->read_bandwidth == 0; i++) {
        d->read_bandwidth = twins[i].read_bandwidth;
        d->copy_bandwidth = twins[i].copy_bandwidth;
        d->peak_f32 = twins[i].peak_f32;
        d->peak_bf16 = twins[i].peak_bf16;
        d->peak_f16 = twins[i].peak_f16;
        d->overhead = twins[i].overhead;
    }
    free(twins);
    return EK_OK;
}

typedef enum ek_status (*copy_fn)(struct ek_store *store, int64_t from, int64_t to,
                                  const char *signature);

static enum ek_status copy_times(struct ek_store *store, int64_t from, int64_t to,
                                 const char *signature)
{
    struct ek_store_time_row *rows;
    enum ek_status st = EK_OK;
    size_t n;

    EK_TRY(ek_store_times(store, from, signature, &rows, &n));
    for (size_t i = 0; i < n && st == EK_OK; i++) {
        rows[i].key.device = to;
        st = ek_store_put_time(store, &rows[i].key, &rows[i].time);
    }
    free(rows);
    return st;
}

static enum ek_status copy_memory(struct ek_store *store, int64_t from, int64_t to,
                                  const char *signature)
{
    struct ek_store_memory *rows;
    enum ek_status st = EK_OK;
    size_t n;

    EK_TRY(ek_store_memories(store, from, signature, &rows, &n));
    for (size_t i = 0; i < n && st == EK_OK; i++) {
        rows[i].device = to;
        st = ek_store_put_memory(store, &rows[i]);
    }
    free(rows);
    return st;
}

/* Of the modules, and of a signature that belongs to none. */
static enum ek_status copy_all(const struct profile_device *d, copy_fn copy, const char *own)
{
    const struct profile *p = d->p;
    struct ek_store_device *twins;
    enum ek_status st = EK_OK;
    size_t n;

    EK_TRY(find(p->store, &d->row, &twins, &n));
    for (size_t i = 0; i < n && st == EK_OK; i++) {
        st = copy(p->store, twins[i].id, d->row.id, own);
        for (size_t g = 0; g < p->n_groups && st == EK_OK; g++)
            st = copy(p->store, twins[i].id, d->row.id, p->groups[g].module->signature);
    }
    free(twins);
    return st;
}

enum ek_status twins_times(const struct profile_device *d)
{
    EK_TRY(copy_all(d, copy_times, EK_STORE_STAGE));
    return copy_all(d, copy_times, EK_STORE_ENDING);
}

enum ek_status twins_memory(const struct profile_device *d)
{
    return copy_all(d, copy_memory, EK_STORE_ENDING);
}

static const struct ek_store_device *named(const struct ek_store_device *all, size_t n,
                                           const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(all[i].name, name) == 0)
            return &all[i];
    return NULL;
}

/* A row of a pair that is no device twice holds for every such pair of the same two pieces. */
static bool holds_for(const struct ek_store_link *l, const struct ek_store_device *all, size_t n,
                      const struct ek_store_device *from, const struct ek_store_device *to)
{
    const struct ek_store_device *a = named(all, n, l->from), *b = named(all, n, l->to);

    return a && b && (a == b) == (from == to) && same_hardware(a, from) && same_hardware(b, to) &&
           strstr(l->mechanism, EK_STORE_BOTH) == NULL &&
           strstr(l->mechanism, EK_STORE_ALL) == NULL;
}

enum ek_status twins_links(struct ek_store *store, const char *from, const char *to, size_t *copied)
{
    struct ek_store_device *all;
    struct ek_store_link *links = NULL;
    const struct ek_store_device *a, *b;
    size_t n, n_links = 0;
    enum ek_status st;

    *copied = 0;
    EK_TRY(ek_store_devices(store, &all, &n));
    EK_GOTO(ek_store_links(store, &links, &n_links), st, done);
    a = named(all, n, from);
    b = named(all, n, to);
    for (size_t i = 0; a && b && st == EK_OK && i < n_links; i++) {
        if (!holds_for(&links[i], all, n, a, b))
            continue;
        snprintf(links[i].from, sizeof(links[i].from), "%s", from);
        snprintf(links[i].to, sizeof(links[i].to), "%s", to);
        st = ek_store_put_link(store, &links[i]);
        *copied += st == EK_OK;
    }
done:
    free(links);
    free(all);
    return st;
}
