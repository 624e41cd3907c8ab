/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of GPUs by three accounts that share nothing.
 */
#include "profiler/tracer.h"

#include <stdlib.h>
#include <string.h>

struct ek_account { /* free memory of every GPU before it began */
    struct ek_device_spec *specs;
    struct ek_device_info *infos;
    size_t n;
};

enum ek_status ek_account_begin(struct ek_account **out)
{
    struct ek_account *a = ek_calloc(1, sizeof(*a));
    bool any = false;
    enum ek_status st = EK_ENOMEM;

    if (!a)
        return st;
    EK_GOTO(ek_devices_list(&a->specs, &a->infos, &a->n), st, fail);
    for (size_t i = 0; i < a->n && !any; i++) {
        const struct tracer *t = tracer_of(a->specs[i].backend);
        if (t)
            EK_GOTO(t->memory_begin(), st, fail);
        any = t != NULL;
    }
    if (!any) {
        st = ek_error(EK_EUNSUPPORTED, "no device here whose memory can be traced");
        goto fail;
    }
    *out = a;
    return EK_OK;
fail:
    ek_account_free(a);
    return st;
}

void ek_account_free(struct ek_account *a)
{
    if (!a)
        return;
    free(a->specs);
    free(a->infos);
    free(a);
}

/* The GPU of a declared device, in the list of those that there are. */
static size_t gpu_of(const struct ek_account *a, const struct ek_device_spec *d)
{
    size_t i = 0;

    while (i < a->n &&
           (strcmp(a->specs[i].backend, d->backend) != 0 || a->specs[i].index != d->index))
        i++;
    return i;
}

static enum ek_status fill_row(const struct ek_account *a, const struct ek_device_info *now,
                               size_t gpu, const struct ek_device_spec *devices,
                               const uint64_t *tags, size_t n, struct ek_account_row *row)
{
    uint64_t before = a->infos[gpu].memory_free, left = now[gpu].memory_free;

    *row = (struct ek_account_row){.gone = before > left ? before - left : 0};
    snprintf(row->gpu, sizeof(row->gpu), "%s", a->specs[gpu].name);
    for (size_t i = 0; i < n; i++)
        if (gpu_of(a, &devices[i]) == gpu)
            row->tags += tags[i];
    return tracer_of(a->specs[gpu].backend)->memory_now(a->specs[gpu].index, &row->traced);
}

static bool is_used(const struct ek_account *a, size_t gpu, const struct ek_device_spec *devices,
                    size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (gpu_of(a, &devices[i]) == gpu)
            return tracer_of(a->specs[gpu].backend) != NULL;
    return false;
}

enum ek_status ek_account_read(const struct ek_account *a, const struct ek_device_spec *devices,
                               const uint64_t *tags, size_t n, struct ek_account_row **rows,
                               size_t *n_rows)
{
    struct ek_account_row *out = ek_calloc(a->n, sizeof(*out));
    struct ek_device_spec *specs = NULL;
    struct ek_device_info *now = NULL;
    size_t k = 0, n_now;
    enum ek_status st = EK_ENOMEM;

    if (!out)
        return st;
    EK_GOTO(ek_devices_list(&specs, &now, &n_now), st, fail);
    for (size_t i = 0; i < a->n && i < n_now; i++)
        if (is_used(a, i, devices, n))
            EK_GOTO(fill_row(a, now, i, devices, tags, n, &out[k++]), st, fail);
    free(specs);
    free(now);
    *rows = out;
    *n_rows = k;
    return EK_OK;
fail:
    free(specs);
    free(now);
    free(out);
    return st;
}
