/* SPDX-License-Identifier: Apache-2.0
 *
 * The plan against memory, before the first weight byte is read: what every device would hold, its
 * budget and what is free, and when it does not fit the largest context that would.
 */
#include "runtime/engine.h"

#include <string.h>

struct need {
    uint64_t tag[EK_N_TAGS], overhead, total; /* total: of all tags */
    uint64_t once;                            /* of the overhead, what a library takes */
    uint64_t budget, free;                    /* budget 0: none */
    uint64_t missing;
};

struct ek_stage_options engine_stage_options(const struct ek_engine *e, size_t i)
{
    struct ek_stage_options o = e->opt;

    for (size_t k = 0; k < i && e->stages[i].head_mod && !o.shared_embed; k++)
        if (e->stages[k].embed && e->stages[k].device == e->stages[i].device) {
            o.shared_embed = true;
            o.embed_of = e->stages[k].stage;
        }
    return o;
}

static enum ek_status add_stages(const struct ek_engine *e, uint32_t context, struct need *needs)
{
    for (size_t i = 0; i < e->n_all; i++) {
        const struct engine_stage *s = &e->stages[i];
        struct ek_stage_options o = engine_stage_options(e, i);
        uint64_t bytes[EK_N_TAGS];

        if (context != o.max_context) {
            o.max_context = context;
            o.n_blocks = (uint32_t)ek_cache_blocks(e->max_seqs, context);
        }
        EK_TRY(
            ek_stage_memory(e->devices[s->device].dev, e->m, s->modules, s->n_modules, &o, bytes));
        for (int t = 0; t < EK_N_TAGS; t++)
            needs[s->device].tag[t] += bytes[t];
    }
    return EK_OK;
}

/* What a library takes once is in the plan's overhead where the plan was made for it. */
static void add_once(const struct ek_engine *e, uint32_t device, uint64_t bytes, struct need *needs)
{
    const struct ek_plan *p = e->plan;

    for (size_t i = 0; i < p->n_links; i++)
        if ((p->links[i].from == device || p->links[i].to == device) &&
            strcmp(p->links[i].mechanism, "nccl") == 0)
            return;
    if (bytes > needs[device].once)
        needs[device].once = bytes;
}

static enum ek_status add_link(const struct ek_engine *e, const struct engine_stage *a,
                               const struct engine_stage *b, size_t n, struct need *needs)
{
    struct ek_link_bytes l;

    EK_TRY(ek_link_memory(e->devices[a->device].dev, e->devices[b->device].dev,
                          engine_mechanism(e, a->device, b->device), n, &l));
    needs[a->device].tag[EK_TAG_COMM] += l.at_from;
    needs[b->device].tag[EK_TAG_COMM] += l.at_to;
    add_once(e, a->device, l.once_from, needs);
    add_once(e, b->device, l.once_to, needs);
    return EK_OK;
}

static enum ek_status add_links(const struct ek_engine *e, struct need *needs)
{
    size_t n = (size_t)e->opt.max_tokens * e->m->config.hidden;

    for (size_t i = 1; i < e->n_stages; i++)
        EK_TRY(add_link(e, &e->stages[i - 1], &e->stages[i], n, needs));
    for (size_t i = 1; i < e->vision.n_path; i++)
        EK_TRY(add_link(e, e->vision.path[i - 1].stage, e->vision.path[i].stage,
                        ek_picture_message(e->m, &e->opt), needs));
    return EK_OK;
}

/* The least of the device's and the plan's; 0: none. */
static uint64_t budget_of(const struct ek_device *dev, const struct ek_plan_memory *plan)
{
    uint64_t b = dev->spec.memory;

    if (b == 0 && dev->spec.memory_fraction > 0)
        b = (uint64_t)(dev->spec.memory_fraction * (double)dev->info.memory_total);
    return b == 0 || (plan->budget > 0 && plan->budget < b) ? plan->budget : b;
}

static uint64_t over(uint64_t need, uint64_t have)
{
    return need > have ? need - have : 0;
}

/* Devices that share one memory must fit into it together. */
static void check_groups(const struct ek_engine *e, struct need *needs)
{
    for (size_t i = 0; i < e->plan->n_devices; i++) {
        const struct ek_device *a = e->devices[i].dev;
        uint64_t sum = 0, most = 0;
        if (a == NULL || a->info.memory_group[0] == '\0')
            continue;
        for (size_t k = 0; k < e->plan->n_devices; k++) {
            const struct ek_device *b = e->devices[k].dev;
            if (b == NULL || strcmp(a->info.memory_group, b->info.memory_group) != 0)
                continue;
            sum += needs[k].total;
            most = b->info.memory_free > most ? b->info.memory_free : most;
        }
        if (over(sum, most) > needs[i].missing)
            needs[i].missing = over(sum, most);
    }
}

/* Fills needs for a context; *fits: on every device. */
static enum ek_status measure(const struct ek_engine *e, uint32_t context, struct need *needs,
                              bool *fits)
{
    size_t n = e->plan->n_devices;

    memset(needs, 0, n * sizeof(*needs));
    EK_TRY(add_stages(e, context, needs));
    EK_TRY(add_links(e, needs));
    for (size_t i = 0; i < n; i++) {
        struct need *d = &needs[i];
        struct ek_device *dev = e->devices[i].dev;
        if (dev == NULL)
            continue;
        d->tag[EK_TAG_WORKSPACE] += e->plan->memory[i].workspace;
        d->overhead = e->plan->memory[i].overhead + d->once;
        for (int t = 0; t < EK_N_TAGS; t++)
            d->total += d->tag[t];
        d->budget = budget_of(dev, &e->plan->memory[i]);
        d->free = dev->ops->memory_free(dev);
        d->missing = over(d->total, d->free);
        if (d->budget > 0 && over(d->total + d->overhead, d->budget) > d->missing)
            d->missing = over(d->total + d->overhead, d->budget);
    }
    check_groups(e, needs);
    *fits = true;
    for (size_t i = 0; i < n; i++)
        *fits &= needs[i].missing == 0;
    return EK_OK;
}

/* Memory grows with the context: bisection. 0 when not even one token fits. */
static enum ek_status largest_context(const struct ek_engine *e, uint32_t *out)
{
    struct need needs[EK_MAX_DEVICES];
    uint32_t low = 0, high = e->opt.max_context;
    bool fits;

    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        EK_TRY(measure(e, mid, needs, &fits));
        if (fits)
            low = mid;
        else
            high = mid;
    }
    *out = low;
    return EK_OK;
}

static void print_table(const struct ek_engine *e, const struct need *needs)
{
    struct ek_table *t = ek_table_new("device|>weights|>kv|>activations|>workspace|>comm|"
                                      ">overhead|>needed|>budget|>free|>missing");
    char b[10][EK_UNIT_LEN];

    for (size_t i = 0; t && i < e->plan->n_devices; i++) {
        const struct need *d = &needs[i];
        if (e->devices[i].dev == NULL)
            continue;
        ek_table_row(t, "%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%s", e->plan->devices[i].name,
                     ek_format_bytes(b[0], d->tag[EK_TAG_WEIGHTS]),
                     ek_format_bytes(b[1], d->tag[EK_TAG_KV]),
                     ek_format_bytes(b[2], d->tag[EK_TAG_ACTIVATIONS]),
                     ek_format_bytes(b[3], d->tag[EK_TAG_WORKSPACE]),
                     ek_format_bytes(b[4], d->tag[EK_TAG_COMM]), ek_format_bytes(b[5], d->overhead),
                     ek_format_bytes(b[6], d->total + d->overhead),
                     d->budget ? ek_format_bytes(b[7], d->budget) : "-",
                     ek_format_bytes(b[8], d->free),
                     d->missing ? ek_format_bytes(b[9], d->missing) : "-");
    }
    if (t)
        ek_table_print(t, stderr);
    ek_table_free(t);
}

enum ek_status engine_preflight(const struct ek_engine *e)
{
    struct need needs[EK_MAX_DEVICES];
    char missing[EK_UNIT_LEN];
    uint32_t context;
    size_t worst = 0;
    bool fits;

    EK_TRY(measure(e, e->opt.max_context, needs, &fits));
    if (fits)
        return EK_OK;
    print_table(e, needs);
    EK_TRY(largest_context(e, &context));
    for (size_t i = 0; i < e->plan->n_devices; i++)
        if (needs[i].missing > needs[worst].missing)
            worst = i;
    ek_format_bytes(missing, needs[worst].missing);
    if (context == 0)
        return ek_error(EK_EENV, "the plan does not fit: %s lacks %s, whatever the context",
                        e->plan->devices[worst].name, missing);
    return ek_error(EK_EENV,
                    "the plan does not fit: %s lacks %s; the largest context that would fit is %u "
                    "tokens (asked for %u)",
                    e->plan->devices[worst].name, missing, context, e->opt.max_context);
}
