/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Writing costs as the file that ek_costs_read reads.
 */
#include "planner/planner.h"

#include <string.h>

json_t *ek_calibration_json(const struct ek_calibration *f)
{
    return json_pack("{s:f s:f s:I}", "prefill", f->prefill, "decode", f->decode, "n",
                     (json_int_t)f->n);
}

static json_t *class_json(const struct ek_cost_class *k)
{
    json_t *devices = json_array();
    json_t *o = json_pack("{s:s s:s s:s s:I s:I s:I s:I s:s s:b s:b s:f s:f}", "name", k->name,
                          "backend", k->backend, "model", k->model, "count", (json_int_t)k->count,
                          "memory", (json_int_t)k->memory, "overhead", (json_int_t)k->overhead,
                          "tp_reserve", (json_int_t)k->tp_reserve, "memory_group", k->memory_group,
                          "budgeted", k->budgeted, "estimate", k->estimate, "slow_prefill",
                          k->slow_prefill, "slow_decode", k->slow_decode);

    if (k->sustained > 1)
        json_object_set_new(o, "sustained", json_real(k->sustained));
    if (k->burst_s > 0)
        json_object_set_new(o, "burst_s", json_real(k->burst_s));
    if (k->looking > 1)
        json_object_set_new(o, "looking", json_real(k->looking));
    if (k->recovery_s > 0) {
        json_object_set_new(o, "behind", json_real(k->behind));
        json_object_set_new(o, "recovery_s", json_real(k->recovery_s));
    }
    if (k->refill_s != k->recovery_s)
        json_object_set_new(o, "refill_s", json_real(k->refill_s));

    for (uint32_t i = 0; i < k->count; i++) {
        const struct ek_cost_device *d = &k->devices[i];
        json_array_append_new(devices, json_pack("{s:s s:I s:s s:s}", "name", d->name, "index",
                                                 (json_int_t)d->index, "uuid", d->uuid, "threads",
                                                 d->threads));
    }
    json_object_set_new(o, "devices", devices);
    if (k->return_s > 0)
        json_object_set_new(o, "return_s", json_real(k->return_s));
    if (k->calibration.n > 0)
        json_object_set_new(o, "calibration", ek_calibration_json(&k->calibration));
    return o;
}

static json_t *module_json(const struct ek_costs *c, const struct ek_cost_module *m)
{
    json_t *o = json_pack("{s:s s:s s:s s:I s:I s:I s:b}", "name", m->name, "kind",
                          ek_module_kind_names[m->kind], "signature", c->signatures[m->sig],
                          "weights", (json_int_t)m->weights, "kv", (json_int_t)m->kv, "boundary",
                          (json_int_t)m->boundary, "side", m->side);

    if (m->tied_to >= 0)
        json_object_set_new(o, "tied_to", json_string(c->modules[m->tied_to].name));
    return o;
}

static json_t *curve_json(const struct ek_cost_curve *c)
{
    json_t *list;

    if (c->constant)
        return json_real(c->rows[0].time.median_s);
    list = json_array();
    for (size_t i = 0; i < c->n; i++) {
        const struct ek_store_key *k = &c->rows[i].key;
        uint32_t x = k->phase == EK_PHASE_DECODE ? k->batch : k->batch * k->tokens;
        json_array_append_new(list, json_pack("[I I f]", (json_int_t)x, (json_int_t)k->context,
                                              c->rows[i].time.median_s));
    }
    return list;
}

static json_t *times_json(const struct ek_costs *c, const struct ek_cost_times *t)
{
    json_t *o = json_pack("{s:s s:s s:I s:o s:o}", "class", c->classes[t->cls].name, "signature",
                          c->signatures[t->sig], "tp", (json_int_t)t->tp, "prefill",
                          curve_json(&t->prefill), "decode", curve_json(&t->decode));

    if (t->prefill.context_s > 0)
        json_object_set_new(o, "context_s", json_real(t->prefill.context_s));
    if (t->prefill.short_context_s != t->prefill.context_s)
        json_object_set_new(o, "short_context_s", json_real(t->prefill.short_context_s));
    return o;
}

static json_t *memory_json(const struct ek_costs *c, const struct ek_cost_memory *m)
{
    json_t *list = json_array();

    for (size_t i = 0; i < m->n; i++)
        json_array_append_new(
            list, json_pack("[I I I I I I]", (json_int_t)m->points[i].batch,
                            (json_int_t)m->points[i].tokens, (json_int_t)m->points[i].context,
                            (json_int_t)m->points[i].activations,
                            (json_int_t)m->points[i].workspace, (json_int_t)m->points[i].comm));
    return json_pack("{s:s s:s s:I s:I s:I s:o}", "class", c->classes[m->cls].name, "signature",
                     c->signatures[m->sig], "tp", (json_int_t)m->tp, "weights",
                     (json_int_t)m->weights, "kv_block", (json_int_t)m->kv_block, "points", list);
}

static json_t *stage_json(const struct ek_costs *c, const struct ek_cost_stage *s)
{
    return json_pack("{s:s s:I s:I s:I s:f s:f}", "class", c->classes[s->cls].name, "tp",
                     (json_int_t)s->tp, "first", (json_int_t)s->first, "last", (json_int_t)s->last,
                     "prefill_s", s->prefill_s, "decode_s", s->decode_s);
}

static json_t *link_json(const struct ek_costs *c, const struct ek_cost_link *l)
{
    return json_pack("{s:s s:s s:f s:f s:s}", "from", c->classes[l->from].name, "to",
                     c->classes[l->to].name, "alpha_s", l->alpha, "beta_bytes_s", l->beta,
                     "mechanism", l->mechanism);
}

static json_t *workload_json(const struct ek_workload *w)
{
    return json_pack("{s:I s:I s:I s:I s:I s:I s:I s:I s:s s:s}", "batch", (json_int_t)w->batch,
                     "prompt", (json_int_t)w->prompt, "generate", (json_int_t)w->generate,
                     "context", (json_int_t)w->context, "micro_batches",
                     (json_int_t)w->micro_batches, "prefill_chunk", (json_int_t)w->prefill_chunk,
                     "images", (json_int_t)w->images, "image_tokens", (json_int_t)w->image_tokens,
                     "cache", w->cache, "act", w->act);
}

#define ROWS(root, key, count, row)                                                                \
    do {                                                                                           \
        json_t *list_ = json_array();                                                              \
        for (size_t i = 0; i < (count); i++)                                                       \
            json_array_append_new(list_, (row));                                                   \
        json_object_set_new(root, key, list_);                                                     \
    } while (0)

json_t *ek_costs_json(const struct ek_costs *c)
{
    json_t *root = json_pack("{s:s s:i s:s s:s s:b s:I s:{s:s s:s s:s}}", "format",
                             "evenkeel-costs", "version", 1, "name", c->name, "source", c->source,
                             "estimate", c->estimate, "page", (json_int_t)c->page, "model", "name",
                             c->model_name, "hash", c->model_hash, "architecture", c->architecture);

    if (root == NULL)
        return NULL;
    if (c->profile_identity[0])
        json_object_set_new(root, "profile", json_string(c->profile_identity));
    json_object_set_new(root, "workload", workload_json(&c->workload));
    ROWS(root, "classes", c->n_classes, class_json(&c->classes[i]));
    ROWS(root, "modules", c->n_modules, module_json(c, &c->modules[i]));
    ROWS(root, "times", c->n_times, times_json(c, &c->times[i]));
    ROWS(root, "memory", c->n_memory, memory_json(c, &c->memory[i]));
    if (c->n_stages)
        ROWS(root, "stages", c->n_stages, stage_json(c, &c->stages[i]));
    if (c->n_links)
        ROWS(root, "links", c->n_links, link_json(c, &c->links[i]));
    return root;
}
