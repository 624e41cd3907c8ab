/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Reading a plan.json again, for what is made of plans: exports, reports, simulations.
 */
#include "planner/plan_file.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FILE    ((size_t)64 << 20)
#define MAX_MODULES 8192

int32_t ek_layer_number(const char *module)
{
    const char *p = strstr(module, "layers.");
    uint64_t n;

    if (p == NULL || (p != module && p[-1] != '.') ||
        ek_parse_u64(p + 7, "layer", 0, 100000, &n) != EK_OK)
        return -1;
    return (int32_t)n;
}

static enum ek_status bad(const char *where, size_t i, const char *what)
{
    return ek_error(EK_EFORMAT, "%s: stages[%zu]: %s", where, i, what);
}

static enum ek_status read_devices(struct ek_plan_file *f, const char *where)
{
    const json_t *list, *o;
    uint64_t v;

    EK_TRY(ek_json_array(f->root, (struct ek_json_at){where, ""}, "devices", &list));
    if (json_array_size(list) == 0 || json_array_size(list) > EK_FILE_MAX_DEVICES)
        return ek_error(EK_EFORMAT, "%s: devices must have 1 to %d entries", where,
                        EK_FILE_MAX_DEVICES);
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct ek_file_device *d = &f->devices[i];
        struct ek_json_at at = {where, "devices[]."};
        o = json_array_get(list, i);
        EK_TRY(ek_json_string(o, at, "name", &d->name));
        EK_TRY(ek_json_string(o, at, "backend", &d->backend));
        v = i;
        EK_TRY(ek_json_opt_u64(o, at, "index", 0, 65535, &v));
        d->index = (uint32_t)v;
        EK_TRY(ek_json_opt_u64(o, at, "memory", 0, (uint64_t)1 << 62, &d->memory));
        for (size_t j = 0; j < i; j++)
            if (strcmp(f->devices[j].name, d->name) == 0)
                return ek_error(EK_EFORMAT, "%s: devices: \"%.60s\" is there twice", where,
                                d->name);
        f->n_devices++;
    }
    return EK_OK;
}

static enum ek_status find_device(const struct ek_plan_file *f, const char *where, size_t stage,
                                  const char *name, uint32_t *out)
{
    for (size_t i = 0; name && i < f->n_devices; i++)
        if (strcmp(f->devices[i].name, name) == 0) {
            *out = (uint32_t)i;
            return EK_OK;
        }
    return bad(where, stage, "names an unknown device");
}

static enum ek_status read_group(struct ek_plan_file *f, const char *where, size_t i,
                                 const json_t *o, struct ek_file_stage *s)
{
    const json_t *group = json_object_get(o, "tensor_parallel");
    const char *name;

    EK_TRY(ek_json_string(o, (struct ek_json_at){where, "stages[]."}, "device", &name));
    s->n_devices = 1;
    EK_TRY(find_device(f, where, i, name, &s->devices[0]));
    if (group == NULL)
        return EK_OK;
    if (!json_is_array(group) || json_array_size(group) > 8 || json_array_size(group) < 2)
        return bad(where, i, "tensor_parallel must name 2 to 8 devices");
    for (s->n_devices = 0; s->n_devices < json_array_size(group); s->n_devices++)
        EK_TRY(find_device(f, where, i, json_string_value(json_array_get(group, s->n_devices)),
                           &s->devices[s->n_devices]));
    return EK_OK;
}

/* A module works on tokens when it is the embedding, a layer, the head, or the norm behind layers
 * (a cut tower has one of its own before them). */
static void classify(const char *name, bool layers, struct ek_file_stage *s, bool *chain,
                     int32_t *layer)
{
    const char *last = strrchr(name, '.');

    last = last ? last + 1 : name;
    *layer = ek_layer_number(name);
    *chain = true;
    if (strcmp(last, "embed_tokens") == 0)
        s->has_embed = true;
    else if (strcmp(last, "lm_head") == 0)
        s->has_head = true;
    else if (*layer < 0 && (strcmp(last, "norm") != 0 || !layers)) {
        s->has_side = true;
        *chain = false;
    }
}

static enum ek_status read_modules(struct ek_plan_file *f, const char *where, size_t i,
                                   const json_t *o, struct ek_file_stage *s)
{
    const json_t *list;
    int32_t layer;
    bool chain;

    EK_TRY(ek_json_array(o, (struct ek_json_at){where, "stages[]."}, "modules", &list));
    if (json_array_size(list) == 0 || json_array_size(list) > MAX_MODULES)
        return bad(where, i, "modules must have 1 to 8192 entries");
    s->modules = ek_calloc(json_array_size(list), sizeof(*s->modules));
    if (s->modules == NULL)
        return EK_ENOMEM;
    s->first_layer = f->n_layers;
    for (size_t k = 0; k < json_array_size(list); k++) {
        const char *name = json_string_value(json_array_get(list, k));
        if (name == NULL || *name == '\0' || strlen(name) > 127)
            return bad(where, i, "a module's name must have 1 to 127 characters");
        s->modules[s->n_modules++] = name;
        classify(name, f->n_layers > 0, s, &chain, &layer);
        if (layer < 0)
            continue;
        if ((uint32_t)layer != f->n_layers)
            return ek_error(EK_EFORMAT, "%s: stages[%zu]: \"%.60s\" where layer %u must come",
                            where, i, name, f->n_layers);
        f->n_layers++;
        s->n_layers++;
    }
    return EK_OK;
}

/* What the times were predicted from, and each module's; pairs that are no such are not shown. */
static enum ek_status read_samples(const json_t *o, struct ek_json_at at, struct ek_file_stage *s)
{
    uint64_t n = 0;

    EK_TRY(ek_json_opt_real(o, at, "prefill_mad_s", 0, 1e9, &s->prefill_mad_s));
    EK_TRY(ek_json_opt_real(o, at, "decode_mad_s", 0, 1e9, &s->decode_mad_s));
    EK_TRY(ek_json_opt_u64(o, at, "samples", 0, UINT32_MAX, &n));
    s->samples = (uint32_t)n;
    s->times = json_object_get(o, "modules_s");
    if (json_array_size(s->times) != s->n_modules)
        s->times = NULL;
    return EK_OK;
}

static enum ek_status read_stages(struct ek_plan_file *f, const char *where)
{
    struct ek_json_at at = {where, "stages[]."};
    const json_t *list;

    EK_TRY(ek_json_array(f->root, (struct ek_json_at){where, ""}, "stages", &list));
    if (json_array_size(list) == 0 || json_array_size(list) > EK_FILE_MAX_STAGES)
        return ek_error(EK_EFORMAT, "%s: stages must have 1 to %d entries", where,
                        EK_FILE_MAX_STAGES);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        struct ek_file_stage *s = &f->stages[f->n_stages++];
        EK_TRY(read_group(f, where, i, o, s));
        EK_TRY(read_modules(f, where, i, o, s));
        EK_TRY(ek_json_opt_real(o, at, "prefill_s", 0, 1e9, &s->prefill_s));
        EK_TRY(ek_json_opt_real(o, at, "decode_s", 0, 1e9, &s->decode_s));
        EK_TRY(ek_json_opt_real(o, at, "handoff_s", 0, 1e9, &s->handoff_s));
        EK_TRY(read_samples(o, at, s));
    }
    return EK_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum ek_status check_unique(const struct ek_plan_file *f, const char *where)
{
    const char **all;
    size_t n = 0;
    enum ek_status st = EK_OK;

    for (size_t i = 0; i < f->n_stages; i++)
        n += f->stages[i].n_modules;
    all = ek_calloc(n, sizeof(*all));
    if (all == NULL)
        return EK_ENOMEM;
    n = 0;
    for (size_t i = 0; i < f->n_stages; i++)
        for (size_t k = 0; k < f->stages[i].n_modules; k++)
            all[n++] = f->stages[i].modules[k];
    qsort(all, n, sizeof(*all), by_name);
    for (size_t i = 1; i < n && st == EK_OK; i++)
        if (strcmp(all[i - 1], all[i]) == 0)
            st = ek_error(EK_EFORMAT, "%s: stages: module \"%.60s\" is there twice", where, all[i]);
    free(all);
    return st;
}

static enum ek_status read_return(struct ek_plan_file *f, const char *where)
{
    const json_t *v = json_object_get(f->root, "predicted");

    if (v == NULL || json_is_null(v))
        return EK_OK;
    EK_TRY(ek_json_object(f->root, (struct ek_json_at){where, ""}, "predicted", &v));
    return ek_json_opt_real(v, (struct ek_json_at){where, "predicted."}, "return_s", 0, 1,
                            &f->return_s);
}

static enum ek_status read_head(struct ek_plan_file *f, const char *where)
{
    struct ek_json_at at = {where, ""}, in_model = {where, "model."},
                      in_load = {where, "workload."};
    const json_t *model, *load;
    const char *format;
    uint64_t version, v;

    if (!json_is_object(f->root))
        return ek_error(EK_EFORMAT, "%s: not a JSON object", where);
    EK_TRY(ek_json_string(f->root, at, "format", &format));
    if (strcmp(format, "evenkeel-plan") != 0)
        return ek_error(EK_EFORMAT, "%s: format must be \"evenkeel-plan\", got \"%.40s\"", where,
                        format);
    EK_TRY(ek_json_u64(f->root, at, "version", 1, 1, &version));
    EK_TRY(ek_json_object(f->root, at, "model", &model));
    EK_TRY(ek_json_string(model, in_model, "name", &f->model));
    EK_TRY(ek_json_object(f->root, at, "workload", &load));
    EK_TRY(ek_json_u64(load, in_load, "context", 1, 1u << 28, &v));
    f->context = (uint32_t)v;
    EK_TRY(ek_json_u64(load, in_load, "batch", 1, 65536, &v));
    f->batch = (uint32_t)v;
    EK_TRY(ek_json_u64(load, in_load, "micro_batches", 1, 65536, &v));
    f->micro_batches = (uint32_t)v;
    f->cache = "F16";
    EK_TRY(ek_json_opt_string(load, in_load, "cache", &f->cache));
    return read_return(f, where);
}

enum ek_status ek_plan_file_from_json(json_t *root, const char *where, struct ek_plan_file **out)
{
    struct ek_plan_file *f = ek_calloc(1, sizeof(*f));
    enum ek_status st;

    if (f == NULL)
        return EK_ENOMEM;
    f->root = json_incref(root);
    EK_GOTO(read_head(f, where), st, fail);
    EK_GOTO(read_devices(f, where), st, fail);
    EK_GOTO(read_stages(f, where), st, fail);
    EK_GOTO(check_unique(f, where), st, fail);
    *out = f;
    return EK_OK;

fail:
    ek_plan_file_free(f);
    return st;
}

enum ek_status ek_plan_file_read(const char *path, struct ek_plan_file **out)
{
    json_t *root;
    enum ek_status st;

    EK_TRY(ek_json_read(path, MAX_FILE, &root));
    st = ek_plan_file_from_json(root, path, out);
    json_decref(root);
    return st;
}

void ek_plan_file_free(struct ek_plan_file *f)
{
    if (f == NULL)
        return;
    for (size_t i = 0; i < f->n_stages; i++)
        free(f->stages[i].modules);
    json_decref(f->root);
    free(f);
}
