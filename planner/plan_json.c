/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * plan.json. No clock time in it: the same input gives the same bytes.
 */
#include "planner/planner.h"
#include "planner/problem.h"

#include <math.h>
#include <string.h>

static const struct ek_cost_device *cost_device(const struct ek_problem *p, uint32_t d)
{
    return &p->costs->classes[p->devices[d].cls].devices[p->devices[d].member];
}

static const struct ek_cost_class *cost_class(const struct ek_problem *p, uint32_t d)
{
    return &p->costs->classes[p->devices[d].cls];
}

static json_t *workload_json(const struct ek_problem *p)
{
    const struct ek_workload *w = &p->workload;

    return json_pack("{s:I s:I s:I s:I s:s s:s s:I s:I s:I s:I}", "batch", (json_int_t)w->batch,
                     "prompt", (json_int_t)w->prompt, "generate", (json_int_t)w->generate,
                     "context", (json_int_t)w->context, "cache", w->cache, "act", w->act,
                     "micro_batches", (json_int_t)p->micro_batches, "prefill_chunk",
                     (json_int_t)(w->prefill_chunk ? w->prefill_chunk : 1), "images",
                     (json_int_t)w->images, "image_tokens", (json_int_t)w->image_tokens);
}

static json_t *objectives_json(const struct ek_request *r)
{
    json_t *list = json_array();

    for (size_t i = 0; i < r->n_objectives; i++)
        json_array_append_new(list, json_string(ek_objective_names[r->objectives[i]]));
    return list;
}

/* The value of an objective or, behind them, of what breaks ties; and what is proven of it. */
static json_t *value_json(const struct ek_solution *s, size_t i, const char *name, double value)
{
    return json_pack("{s:s s:f s:b s:b}", "objective", name, "value", value, "proven",
                     !s->near && s->settled > i, "cross_checked", !s->near && s->confirmed > i);
}

static json_t *optimality_json(const struct ek_request *r, const struct ek_solution *s)
{
    json_t *values = json_array(), *tried = json_array(), *chunks = json_array(), *o;
    bool optimal = s->proven && !s->near;

    for (size_t i = 0; i < r->n_objectives; i++)
        json_array_append_new(values,
                              value_json(s, i, ek_objective_names[r->objectives[i]], s->values[i]));
    for (size_t i = 0; i < s->n_tried; i++) { /* for the first chunk all numbers, ... */
        if (s->tried[i].tp != s->tried[0].tp)
            break;
        if (s->tried[i].chunk == s->tried[0].chunk)
            json_array_append_new(tried, json_integer(s->tried[i].micro_batches));
        if (s->tried[i].micro_batches == s->tried[0].micro_batches)
            json_array_append_new(chunks, json_integer(s->tried[i].chunk));
    }
    o = json_pack("{s:s s:f s:f s:f s:s s:s s:b s:o s:o s:o}", "status",
                  optimal ? "optimal" : "feasible", "value", s->values[0], "bound", s->bounds[0],
                  "gap", ek_solution_gap(s), "solver", "", "cross_check", s->cross_check, "proven",
                  optimal, "values", values, "micro_batches_tried", tried, "prefill_chunks_tried",
                  chunks);
    if (o)
        json_object_set_new(o, "solver", json_sprintf("GLPK %s", ek_ilp_version()));
    if (o)
        json_object_set_new(o, "tie_break",
                            value_json(s, r->n_objectives, "latency", s->score.latency));
    if (o && s->near)
        json_object_set_new(o, "near",
                            json_pack("{s:I s:b}", "moved_bytes", (json_int_t)s->moved_bytes,
                                      "proven", s->proven));
    return o;
}

static json_t *devices_json(const struct ek_problem *p, const struct ek_placement *pl)
{
    json_t *list = json_array();

    for (uint32_t d = 0; d < p->n_devices; d++) {
        const struct ek_cost_device *dev = cost_device(p, d);
        const struct ek_cost_class *k = cost_class(p, d);
        json_t *o;
        if (!pl->used[d])
            continue;
        o = json_pack("{s:s s:s s:I s:s s:s s:s s:I s:s}", "name", dev->name, "backend", k->backend,
                      "index", (json_int_t)dev->index, "threads", dev->threads, "uuid", dev->uuid,
                      "model", k->model, "memory", (json_int_t)p->devices[d].memory, "memory_group",
                      k->memory_group);
        if (o && k->calibration.n > 0)
            json_object_set_new(o, "calibration", ek_calibration_json(&k->calibration));
        json_array_append_new(list, o);
    }
    return list;
}

static void append_modules(const struct ek_problem *p, const struct ek_placement *pl, size_t stage,
                           json_t *list)
{
    const struct ek_costs *c = p->costs;
    const struct ek_placed_stage *s = &pl->stages[stage];

    for (uint32_t m = 0; m < p->first_item; m++)
        if (pl->side_stage[m] == stage)
            json_array_append_new(list, json_string(c->modules[m].name));
    for (int32_t i = s->first; i <= s->last; i++)
        json_array_append_new(list, json_string(c->modules[p->first_item + (uint32_t)i].name));
}

/* [prefill, decode] of each module, in the order of append_modules: all prompts; one step of a
 * group.
 */
static json_t *module_times(const struct ek_problem *p, const struct ek_placement *pl, size_t stage)
{
    const struct ek_placed_stage *s = &pl->stages[stage];
    const struct ek_kind *k = &p->kinds[s->kind];
    json_t *list = json_array();

    for (uint32_t m = 0; m < p->costs->n_modules; m++) {
        const struct ek_modcost *c = ek_modcost_of(p, p->groups[k->group].cls, k->tp, m);
        int32_t item = (int32_t)m - (int32_t)p->first_item;
        if (item < 0 ? pl->side_stage[m] == stage : item >= s->first && item <= s->last)
            json_array_append_new(list,
                                  json_pack("[f f]", c->prefill * p->micro_batches, c->decode));
    }
    return list;
}

static json_t *stage_json(const struct ek_problem *p, const struct ek_placement *pl, size_t stage)
{
    const struct ek_placed_stage *s = &pl->stages[stage];
    json_t *modules = json_array(), *group, *o;

    append_modules(p, pl, stage, modules);
    o = json_pack("{s:s s:o s:f s:f s:f s:f}", "device", ek_pdevice_name(p, s->devices[0]),
                  "modules", modules, "prefill_s", s->prefill_s, "pictures_s", s->pictures_s,
                  "decode_s", s->decode_s, "handoff_s", s->handoff_s);
    if (o == NULL)
        return NULL;
    json_object_set_new(o, "modules_s", module_times(p, pl, stage));
    if (s->samples > 0) {
        json_object_set_new(o, "prefill_mad_s", json_real(s->prefill_mad_s));
        json_object_set_new(o, "decode_mad_s", json_real(s->decode_mad_s));
        json_object_set_new(o, "samples", json_integer(s->samples));
    }
    if (s->n_devices < 2)
        return o;
    group = json_array();
    for (uint32_t i = 0; i < s->n_devices; i++)
        json_array_append_new(group, json_string(ek_pdevice_name(p, s->devices[i])));
    json_object_set_new(o, "tensor_parallel", group);
    return o;
}

static json_t *memory_json(const struct ek_problem *p, const struct ek_placement *pl)
{
    json_t *list = json_array();

    for (uint32_t d = 0; d < p->n_devices; d++) {
        const struct ek_memory_use *u = &pl->memory[d];
        if (pl->used[d])
            json_array_append_new(
                list, json_pack("{s:s s:I s:I s:I s:I s:I s:I s:I s:I s:I}", "device",
                                ek_pdevice_name(p, d), "weights", (json_int_t)u->weights, "kv",
                                (json_int_t)u->kv, "activations", (json_int_t)u->activations,
                                "workspace", (json_int_t)u->workspace, "comm", (json_int_t)u->comm,
                                "overhead", (json_int_t)u->overhead, "margin",
                                (json_int_t)p->devices[d].margin, "total", (json_int_t)u->total,
                                "budget", (json_int_t)p->devices[d].memory));
    }
    return list;
}

/* ---- Hugging Face's map -------------------------------------------------------------------------
 */
/* GPUs are numbers and the only CPU device is "cpu"; several CPU devices, tensor-parallel stages
 * and a head held twice cannot be said. */
static bool expressible(const struct ek_problem *p, const struct ek_placement *pl)
{
    uint32_t cpus = 0;
    int32_t where[EK_PLAN_MAX_MODULES];

    for (uint32_t d = 0; d < p->n_devices; d++)
        cpus += pl->used[d] && strcmp(cost_class(p, d)->backend, "cpu") == 0;
    for (size_t i = 0; i < pl->n_stages; i++) {
        const struct ek_placed_stage *s = &pl->stages[i];
        if (s->n_devices > 1)
            return false;
        for (int32_t k = s->first; k <= s->last; k++)
            where[p->first_item + (uint32_t)k] = (int32_t)s->devices[0];
    }
    for (uint32_t m = p->first_item; m < p->costs->n_modules; m++)
        if (p->costs->modules[m].tied_to >= 0 && where[m] != where[p->costs->modules[m].tied_to])
            return false;
    return cpus <= 1;
}

static json_t *device_value(const struct ek_problem *p, uint32_t d)
{
    return strcmp(cost_class(p, d)->backend, "cpu") == 0 ? json_string("cpu")
                                                         : json_integer(cost_device(p, d)->index);
}

/* Parameters beside the modules of a cut tower that Hugging Face's map must name as well. */
static void add_companion(json_t *map, const char *module, json_t *device)
{
    static const char *const pairs[][2] = {{"vision.patch_embed", "vision.pos_embed"},
                                           {"vision.norm", "vision.attn_pool"}};

    for (size_t i = 0; i < EK_ARRAY_LEN(pairs); i++)
        if (strcmp(module, pairs[i][0]) == 0)
            json_object_set(map, pairs[i][1], device);
}

static json_t *device_map_json(const struct ek_problem *p, const struct ek_placement *pl)
{
    json_t *map;

    if (!expressible(p, pl))
        return json_null();
    map = json_object();
    for (size_t i = 0; i < pl->n_stages; i++) {
        json_t *names = json_array();
        append_modules(p, pl, i, names);
        for (size_t k = 0; k < json_array_size(names); k++) {
            const char *name = json_string_value(json_array_get(names, k));
            json_object_set_new(map, name, device_value(p, pl->stages[i].devices[0]));
            add_companion(map, name, json_object_get(map, name));
        }
        json_decref(names);
    }
    return map;
}

static json_t *predicted_json(const struct ek_costs *c, const struct ek_problem *p,
                              const struct ek_placement *pl)
{
    bool estimate = c->estimate || p->outside;

    for (uint32_t d = 0; d < p->n_devices; d++)
        estimate = estimate || (pl->used[d] && cost_class(p, d)->estimate);
    return json_pack("{s:f s:f s:f s:f s:b s:b}", "prefill_s", pl->prefill_s, "decode_s",
                     pl->decode_s, "tokens_per_s", pl->tokens_per_s, "return_s", pl->return_s,
                     "estimate", estimate, "extrapolated", p->outside);
}

/* Between the devices that the plan uses. */
static json_t *links_json(const struct ek_problem *p, const struct ek_placement *pl)
{
    json_t *list = json_array();

    for (uint32_t a = 0; a < p->n_devices; a++)
        for (uint32_t b = 0; b < p->n_devices; b++) {
            const struct ek_cost_link *l =
                ek_costs_link(p->costs, p->devices[a].cls, p->devices[b].cls);
            if (a != b && l && pl->used[a] && pl->used[b])
                json_array_append_new(
                    list, json_pack("{s:s s:s s:f s:f s:s}", "from", ek_pdevice_name(p, a), "to",
                                    ek_pdevice_name(p, b), "alpha_s", l->alpha, "beta_bytes_s",
                                    l->beta, "mechanism", l->mechanism));
        }
    return list;
}

static json_t *placement_json(const struct ek_costs *c, const struct ek_request *r,
                              const struct ek_problem *p, const struct ek_placement *pl,
                              json_t *optimality)
{
    json_t *root, *stages = json_array();

    for (size_t i = 0; i < pl->n_stages; i++)
        json_array_append_new(stages, stage_json(p, pl, i));
    root = json_pack("{s:s s:i s:{s:s s:s s:s s:I}}", "format", "evenkeel-plan", "version", 1,
                     "model", "name", c->model_name, "hash", c->model_hash, "architecture",
                     c->architecture, "modules", (json_int_t)c->n_modules);
    if (root == NULL)
        return NULL;
    json_object_set_new(root, "workload", workload_json(p));
    json_object_set_new(root, "objective", objectives_json(r));
    json_object_set_new(root, "optimality", optimality);
    json_object_set_new(root, "devices", devices_json(p, pl));
    json_object_set_new(root, "stages", stages);
    json_object_set_new(root, "device_map", device_map_json(p, pl));
    json_object_set_new(root, "memory", memory_json(p, pl));
    json_object_set_new(root, "predicted", predicted_json(c, p, pl));
    json_object_set_new(root, "links", links_json(p, pl));
    json_object_set_new(root, "profile",
                        json_pack("{s:s s:s}", "identity", c->profile_identity, "source",
                                  c->source));
    return root;
}

json_t *ek_plan_json(const struct ek_costs *c, const struct ek_request *r,
                     const struct ek_solution *s)
{
    struct ek_placement pl;

    ek_place(s->problem, s->answer.columns, s->answer.n, &pl);
    return placement_json(c, r, s->problem, &pl, optimality_json(r, s));
}

json_t *ek_plan_json_given(const struct ek_costs *c, const struct ek_request *r,
                           const struct ek_problem *p, const struct ek_placement *pl,
                           const char *from)
{
    json_t *o = json_pack("{s:s s:s s:b s:s}", "status", "given", "from", from, "proven", false,
                          "cross_check", "not made: this placement was handed in");

    return placement_json(c, r, p, pl, o);
}
