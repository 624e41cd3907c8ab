/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Somebody's device_map (Hugging Face's form: names to device numbers, "cpu", or device names) or
 * an earlier plan, as an assignment that can be costed.
 */
#include "planner/device_map.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)64 << 20)

/* A device by its name, its class's name, "cuda:N" or its ordinal among all. */
static ptrdiff_t find_device(const struct ek_problem *p, const json_t *v)
{
    char name[EK_PLAN_NAME];

    if (json_is_integer(v))
        snprintf(name, sizeof(name), "cuda:%lld", (long long)json_integer_value(v));
    else if (json_is_string(v))
        snprintf(name, sizeof(name), "%.60s", json_string_value(v));
    else
        return -1;
    for (uint32_t d = 0; d < p->n_devices; d++)
        if (strcmp(ek_pdevice_name(p, d), name) == 0)
            return (ptrdiff_t)d;
    for (uint32_t d = 0; d < p->n_devices; d++) { /* "cpu", or numbers where no GPU is named so */
        const struct ek_cost_class *k = &p->costs->classes[p->devices[d].cls];
        if (strcmp(k->backend, name) == 0)
            return (ptrdiff_t)d;
    }
    if (json_is_integer(v) && json_integer_value(v) >= 0 &&
        json_integer_value(v) < (json_int_t)p->n_devices)
        return (ptrdiff_t)json_integer_value(v);
    return -1;
}

/* Does a key cover a module? "" covers all, "model.layers.1" not "model.layers.10". */
static bool covers(const char *key, const char *module)
{
    size_t n = strlen(key);

    return n == 0 || (strncmp(key, module, n) == 0 && (module[n] == '\0' || module[n] == '.'));
}

static enum ek_status from_map(const struct ek_problem *p, const json_t *map, const char *where,
                               bool gone, struct ek_assignment *a)
{
    const struct ek_cost_module *m = p->costs->modules;
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)map, key, v)
    {
        bool used = false;
        if (!gone && find_device(p, v) < 0)
            return ek_error(EK_EFORMAT, "%s: \"%.60s\" is on an unknown device", where, key);
        for (size_t i = 0; i < p->costs->n_modules; i++)
            used = used || covers(key, m[i].name) || covers(m[i].name, key);
        if (!used)
            return ek_error(EK_EFORMAT, "%s: the model has no module \"%.60s\"", where, key);
    }
    for (size_t i = 0; i < p->costs->n_modules; i++) {
        size_t best = 0;
        bool found = false;
        json_object_foreach((json_t *)map, key,
                            v) if (covers(key, m[i].name) && (!found || strlen(key) >= best))
        {
            found = true;
            best = strlen(key);
            a->device[i] = find_device(p, v) < 0 ? EK_GONE : (uint32_t)find_device(p, v);
        }
        if (!found)
            return ek_error(EK_EFORMAT, "%s: module \"%s\" is on no device", where, m[i].name);
    }
    return EK_OK;
}

/* A plan's stages, as such a map; gone: of an earlier plan, whose groups count as their first. */
static enum ek_status map_of_plan(const json_t *root, const char *where, bool gone, json_t **out)
{
    const json_t *stages = json_object_get(root, "stages");
    json_t *map = json_object(), *stage, *name;
    size_t i, k;

    json_array_foreach((json_t *)stages, i, stage)
    {
        const json_t *device = json_object_get(stage, "device");
        if (!gone && json_array_size(json_object_get(stage, "tensor_parallel")) > 1) {
            json_decref(map);
            return ek_error(EK_EUNSUPPORTED,
                            "%s: stages[%zu] is tensor-parallel: a placement has one device a "
                            "module",
                            where, i);
        }
        json_array_foreach(json_object_get(stage, "modules"), k, name)
        {
            const char *s = json_string_value(name);
            if (s == NULL || !json_is_string(device) || json_object_get(map, s)) {
                json_decref(map);
                return ek_error(EK_EFORMAT,
                                "%s: stages[%zu]: a module without a name, without a "
                                "device, or there twice",
                                where, i);
            }
            json_object_set(map, s, (json_t *)device);
        }
    }
    *out = map;
    return EK_OK;
}

enum ek_status ek_assignment_from_json(const struct ek_problem *p, const json_t *root,
                                       const char *where, bool gone, struct ek_assignment *a)
{
    const json_t *inner = json_object_get(root, "device_map");
    json_t *map = NULL;
    enum ek_status st;

    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: not a JSON object", where);
    if (json_object_get(root, "stages")) {
        EK_TRY(map_of_plan(root, where, gone, &map));
        st = from_map(p, map, where, gone, a);
        json_decref(map);
        return st;
    }
    if (inner && !json_is_object(inner))
        return ek_error(EK_EFORMAT, "%s: device_map must be an object", where);
    return from_map(p, inner ? inner : root, where, gone, a);
}

enum ek_status ek_assignment_read(const struct ek_problem *p, const char *path, bool gone,
                                  struct ek_assignment *a)
{
    json_t *root;
    enum ek_status st;

    EK_TRY(ek_json_read(path, MAX_FILE, &root));
    st = ek_assignment_from_json(p, root, path, gone, a);
    json_decref(root);
    return st;
}

void ek_assignment_of(const struct ek_problem *p, const struct ek_answer *answer,
                      struct ek_assignment *a)
{
    struct ek_placement pl;

    ek_place(p, answer->columns, answer->n, &pl);
    memset(a, 0, sizeof(*a));
    for (size_t i = 0; i < pl.n_stages; i++) {
        const struct ek_placed_stage *s = &pl.stages[i];
        for (int32_t k = s->first; k <= s->last; k++)
            a->device[p->first_item + (uint32_t)k] = s->devices[0];
    }
    for (uint32_t m = 0; m < p->first_item; m++)
        a->device[m] = pl.stages[pl.side_stage[m]].devices[0];
}
