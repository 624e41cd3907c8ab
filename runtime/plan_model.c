/* SPDX-License-Identifier: Apache-2.0
 *
 * Plans against models: the plan that puts everything on one device, and the check that a plan
 * covers a model exactly.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

#define CPU_CHUNK 512u  /* new tokens of a step: activations stay small */
#define GPU_CHUNK 4096u /* a GPU's products are faster the more tokens they have */

/* Activations that suit a model on a backend; a device that has them not is opened with F32. */
static enum ek_dtype default_act(const struct ek_model *m, const struct ek_device_spec *device)
{
    if (strcmp(device->backend, "cpu") == 0 || m->config.dtype == EK_F32)
        return EK_F32;
    return m->config.dtype == EK_F16 ? EK_F16 : EK_BF16;
}

static enum ek_status single_stage(const struct ek_model *m, struct ek_plan *p)
{
    struct ek_plan_stage *s;

    if ((p->stages = ek_calloc(1, sizeof(*p->stages))) == NULL)
        return EK_ENOMEM;
    p->n_stages = 1;
    s = &p->stages[0];
    if ((s->modules = ek_calloc(m->n_modules, sizeof(*s->modules))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < m->n_modules; i++, s->n_modules++)
        if ((s->modules[i] = ek_strdup(m->modules[i].name)) == NULL)
            return EK_ENOMEM;
    return EK_OK;
}

enum ek_status ek_plan_single(const struct ek_model *m, const struct ek_device_spec *device,
                              uint32_t batch, uint32_t context, struct ek_plan **out)
{
    struct ek_plan *p;
    uint64_t chunk, most = (uint64_t)batch * context;
    enum ek_status st = EK_ENOMEM;

    if (batch == 0 || context == 0)
        return ek_error(EK_EUSAGE, "batch and context must be at least 1, got %u and %u", batch,
                        context);
    if ((p = ek_calloc(1, sizeof(*p))) == NULL)
        return EK_ENOMEM;
    if ((p->devices = ek_calloc(1, sizeof(*p->devices))) == NULL ||
        (p->uuids = ek_calloc(1, sizeof(*p->uuids))) == NULL ||
        (p->memory = ek_calloc(1, sizeof(*p->memory))) == NULL ||
        (p->factors = ek_calloc(1, sizeof(*p->factors))) == NULL)
        goto fail;
    p->factors[0] = (struct ek_plan_factors){1, 1};
    memcpy(p->model_hash, m->hash, sizeof(p->model_hash));
    memcpy(p->model_name, m->name, sizeof(p->model_name));
    p->devices[0] = *device;
    p->n_devices = 1;
    p->batch = batch;
    p->context = context;
    p->prompt = context > 1 ? context / 2 : 1;
    p->generate = context - p->prompt;
    p->micro_batches = 1;
    chunk = strcmp(device->backend, "cpu") == 0 ? CPU_CHUNK : GPU_CHUNK;
    p->prefill_chunk = (uint32_t)(most < chunk ? most : chunk);
    p->act = p->cache = default_act(m, device);
    EK_GOTO(single_stage(m, p), st, fail);
    *out = p;
    return EK_OK;
fail:
    ek_plan_free(p);
    return st;
}

enum ek_status ek_plan_cut_tower(const struct ek_plan *p, struct ek_model *m)
{
    const char *tower = NULL;
    size_t n;

    for (size_t i = 0; i < m->n_modules && tower == NULL; i++)
        if (m->modules[i].kind == EK_MODULE_VISION)
            tower = m->modules[i].name;
    n = tower ? strlen(tower) : 0;
    for (size_t i = 0; tower && i < p->n_stages; i++)
        for (size_t k = 0; k < p->stages[i].n_modules; k++) {
            const char *name = p->stages[i].modules[k];
            if (strncmp(name, tower, n) == 0 && name[n] == '.')
                return ek_model_cut_tower(m);
        }
    return EK_OK;
}

/* Chain modules must come in the model's order; *last is the one before. */
static enum ek_status check_place(const struct ek_model *m, size_t stage, const char *name,
                                  ptrdiff_t *last, bool *seen)
{
    ptrdiff_t at = ek_model_find(m, name);

    if (at < 0)
        return ek_error(EK_EFORMAT, "plan: stages[%zu] holds '%s', which the model %s has not",
                        stage, name, m->name);
    if (seen[at])
        return ek_error(EK_EFORMAT, "plan: module '%s' is assigned twice", name);
    seen[at] = true;
    if (m->modules[at].side)
        return EK_OK;
    if (*last > at)
        return ek_error(EK_EFORMAT, "plan: stages[%zu] holds '%s' after '%s': order broken", stage,
                        name, m->modules[*last].name);
    *last = at;
    return EK_OK;
}

enum ek_status ek_plan_check(const struct ek_plan *p, const struct ek_model *m)
{
    bool *seen = ek_calloc(m->n_modules, sizeof(*seen));
    ptrdiff_t last = -1;
    enum ek_status st = EK_OK;

    if (seen == NULL)
        return EK_ENOMEM;
    if (strcmp(p->model_hash, m->hash) != 0)
        st = ek_error(EK_EFORMAT, "plan: made for model '%s' with hash %s, but '%s' has %s",
                      p->model_name, p->model_hash, m->name, m->hash);
    for (size_t i = 0; i < p->n_stages && st == EK_OK; i++)
        for (size_t k = 0; k < p->stages[i].n_modules && st == EK_OK; k++)
            st = check_place(m, i, p->stages[i].modules[k], &last, seen);
    for (size_t i = 0; i < m->n_modules && st == EK_OK; i++)
        if (!seen[i])
            st = ek_error(EK_EFORMAT, "plan: module '%s' is on no device", m->modules[i].name);
    free(seen);
    return st;
}
