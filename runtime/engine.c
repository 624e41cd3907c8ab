/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine's life: devices, preflight, workers that load the stages, links, and the end.
 */
#include "runtime/engine.h"

#include <stdlib.h>
#include <string.h>

struct ek_stage_options ek_plan_stage_options(const struct ek_plan *p,
                                              const struct ek_engine_options *opt)
{
    static const struct ek_engine_options none = {0};
    struct ek_stage_options o = {.page = EK_PAGE, .cache = p->cache};
    uint64_t blocks;

    opt = opt ? opt : &none;
    o.max_seqs = opt->max_seqs ? opt->max_seqs : p->batch;
    o.max_context = opt->max_context ? opt->max_context : p->context;
    o.max_tokens = p->prefill_chunk > o.max_seqs ? p->prefill_chunk : o.max_seqs;
    o.max_logits = opt->max_logits ? opt->max_logits : o.max_seqs;
    o.max_patches = opt->max_patches;
    blocks = opt->cache_tokens ? (opt->cache_tokens - 1) / EK_PAGE + 1
                               : ek_cache_blocks(o.max_seqs, o.max_context);
    o.n_blocks = blocks < UINT32_MAX ? (uint32_t)blocks : UINT32_MAX;
    return o;
}

static int ascending(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;

    return x < y ? -1 : x > y;
}

static void note_module(struct ek_engine *e, struct engine_stage *s, size_t module)
{
    enum ek_module_kind kind = e->m->modules[module].kind;

    s->modules[s->n_modules++] = module;
    s->embed |= kind == EK_MODULE_EMBED;
    s->layers |= kind == EK_MODULE_LAYER;
    s->norm |= kind == EK_MODULE_NORM;
    s->head_mod |= kind == EK_MODULE_HEAD;
    s->normed_in = s->head_mod && !s->norm;
}

/* A stage of those modules of a plan's stage that work on tokens or see, or of all (any), from the
 * first-th on, at most n. */
enum pick { PICK_ANY, PICK_TEXT, PICK_VISUAL };

static enum ek_status add_stage(struct ek_engine *e, size_t stage, enum pick pick, size_t first,
                                size_t n)
{
    const struct ek_plan_stage *p = &e->plan->stages[stage];
    struct engine_stage *s = &e->stages[e->n_all];

    if ((s->modules = ek_calloc(p->n_modules, sizeof(*s->modules))) == NULL ||
        (s->queue = ek_calloc(e->max_in_flight, sizeof(*s->queue))) == NULL) {
        free(s->modules);
        return EK_ENOMEM;
    }
    s->device = p->device;
    s->timing.device = p->device;
    s->timing.stage = stage;
    for (size_t k = 0; k < p->n_modules; k++) {
        size_t at = (size_t)ek_model_find(e->m, p->modules[k]);
        bool visual = ek_module_is_visual(&e->m->modules[at]);
        if (pick != PICK_ANY && visual != (pick == PICK_VISUAL))
            continue;
        if (first > 0)
            first--;
        else if (s->n_modules < n)
            note_module(e, s, at);
    }
    qsort(s->modules, s->n_modules, sizeof(*s->modules), ascending);
    e->n_all++;
    return EK_OK;
}

static size_t count_modules(const struct ek_engine *e, const struct ek_plan_stage *p, bool visual)
{
    size_t n = 0;

    for (size_t k = 0; k < p->n_modules; k++)
        n += ek_module_is_visual(&e->m->modules[ek_model_find(e->m, p->modules[k])]) == visual;
    return n;
}

/* Devices that the chain leaves and comes back to. */
static void note_revisits(struct ek_engine *e)
{
    for (size_t i = 1; i < e->n_stages; i++)
        for (size_t k = 0; k + 1 < i && e->stages[i].device != e->stages[i - 1].device; k++)
            if (e->stages[k].device == e->stages[i].device)
                e->devices[e->stages[i].device].revisited = true;
}

/* Stages of the language model as planned, one a module when traced; then those that only see. */
static enum ek_status make_stages(struct ek_engine *e)
{
    const struct ek_plan *p = e->plan;
    size_t most = e->trace ? e->m->n_modules + p->n_stages : p->n_stages;

    if ((e->stages = ek_calloc(most, sizeof(*e->stages))) == NULL)
        return EK_ENOMEM;
    e->max_in_flight = (uint32_t)(2 * most + 1);
    for (size_t i = 0; i < p->n_stages; i++) {
        size_t n = count_modules(e, &p->stages[i], false);
        if (n > 0 && e->trace == NULL)
            EK_TRY(add_stage(e, i, PICK_ANY, 0, SIZE_MAX));
        for (size_t k = 0; e->trace && k < n; k++)
            EK_TRY(add_stage(e, i, PICK_TEXT, k, 1));
    }
    e->n_stages = e->n_all;
    note_revisits(e);
    for (size_t i = 0; i < p->n_stages; i++)
        if (count_modules(e, &p->stages[i], true) > 0 &&
            (e->trace || count_modules(e, &p->stages[i], false) == 0))
            EK_TRY(add_stage(e, i, PICK_VISUAL, 0, SIZE_MAX));
    if (e->n_stages == 0 || !e->stages[0].embed || !e->stages[e->n_stages - 1].head_mod)
        return ek_error(EK_EUNSUPPORTED, "%s: no chain from an embedding to a head", e->m->name);
    return engine_vision_find(e);
}

/* A backend that has not the plan's type of activations takes F32. */
static enum ek_status open_device(struct ek_engine *e, uint32_t i)
{
    struct engine_device *d = &e->devices[i];
    const char *uuid = e->plan->uuids[i];
    enum ek_status st;

    if (d->dev != NULL)
        return EK_OK;
    st = ek_device_open(&e->plan->devices[i], e->plan->act, &d->dev);
    if (st == EK_EUNSUPPORTED && e->plan->act != EK_F32)
        st = ek_device_open(&e->plan->devices[i], EK_F32, &d->dev);
    EK_TRY(st);
    if (uuid[0] != '\0' && d->dev->info.uuid[0] != '\0' && strcmp(uuid, d->dev->info.uuid) != 0)
        return ek_error(EK_EENV, "%s: the plan is for the device with uuid %s, here it is %s",
                        e->plan->devices[i].name, uuid, d->dev->info.uuid);
    return EK_OK;
}

static enum ek_status open_devices(struct ek_engine *e)
{
    for (size_t i = 0; i < e->n_all; i++)
        EK_TRY(open_device(e, e->stages[i].device));
    return EK_OK;
}

/* A device with memory of its own reads the host's only where it was pinned for it. */
static void choose_pins(struct ek_engine *e)
{
    for (size_t i = 0; i < e->plan->n_devices; i++) {
        struct ek_device *dev = e->devices[i].dev;
        if (dev != NULL && (e->pins == NULL || e->pins->ops->host))
            e->pins = dev;
    }
}

/* Waits for `done` end by themselves now and then, by a clock that nobody sets. */
static bool make_done(struct ek_engine *e)
{
    pthread_condattr_t attr;
    bool made;

    if (pthread_condattr_init(&attr) != 0)
        return false;
    made = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0 &&
           pthread_cond_init(&e->done, &attr) == 0;
    pthread_condattr_destroy(&attr);
    return made;
}

static enum ek_status make_locks(struct ek_engine *e)
{
    e->mutex_made = pthread_mutex_init(&e->lock, NULL) == 0;
    e->done_made = make_done(e);
    if (!e->mutex_made || !e->done_made)
        return ek_error(EK_EENV, "no locks for the engine");
    e->devices = ek_calloc(e->plan->n_devices, sizeof(*e->devices));
    if (e->devices == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < e->plan->n_devices; i++) {
        if (pthread_cond_init(&e->devices[i].wake, NULL) != 0)
            return ek_error(EK_EENV, "no locks for the engine");
        e->devices[i].e = e;
        e->devices[i].index = (uint32_t)i;
    }
    return EK_OK;
}

/* Workers load their stages at once; returns when all are there. */
static enum ek_status start_workers(struct ek_engine *e)
{
    enum ek_status st = EK_OK;

    for (size_t i = 0; i < e->plan->n_devices && st == EK_OK; i++) {
        struct engine_device *d = &e->devices[i];
        if (d->dev == NULL)
            continue;
        if (pthread_create(&d->thread, NULL, engine_worker, d) != 0)
            st = ek_error(EK_EENV, "%s: no thread", d->dev->spec.name);
        else
            d->running = true;
    }
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < e->plan->n_devices; i++)
        while (e->devices[i].running && !e->devices[i].loaded)
            pthread_cond_wait(&e->done, &e->lock);
    if (st == EK_OK && e->failed != EK_OK)
        st = ek_error(e->failed, "%s", e->message);
    pthread_mutex_unlock(&e->lock);
    return st;
}

const char *engine_mechanism(const struct ek_engine *e, uint32_t from, uint32_t to)
{
    return ek_link_pick(e->devices[from].dev, e->devices[to].dev,
                        ek_plan_mechanism(e->plan, from, to));
}

enum ek_status engine_link_open(struct ek_engine *e, uint32_t from, uint32_t to,
                                size_t max_elements, struct ek_link **out)
{
    return ek_link_open(e->devices[from].dev, e->devices[to].dev, max_elements,
                        ek_plan_mechanism(e->plan, from, to), out);
}

static enum ek_status open_links(struct ek_engine *e)
{
    size_t most = (size_t)e->opt.max_tokens * e->m->config.hidden;

    for (size_t i = 1; i < e->n_stages; i++) {
        EK_TRY(engine_link_open(e, e->stages[i - 1].device, e->stages[i].device, most,
                                &e->stages[i - 1].out));
        e->stages[i].in = e->stages[i - 1].out;
    }
    return engine_vision_open(e);
}

static enum ek_status open_all(struct ek_engine *e, const struct ek_engine_options *opt)
{
    EK_TRY(ek_plan_check(e->plan, e->m));
    e->opt = ek_plan_stage_options(e->plan, opt);
    e->max_seqs = e->opt.max_seqs;
    EK_TRY(engine_watch_open(e, opt ? opt->deadline_s : 0));
    EK_TRY(make_locks(e));
    EK_TRY(make_stages(e));
    EK_TRY(open_devices(e));
    choose_pins(e);
    EK_TRY(engine_preflight(e));
    EK_TRY(cache_open(&e->cache, e->opt.n_blocks, e->opt.page, e->max_seqs, e->opt.max_context));
    EK_TRY(start_workers(e));
    e->shape = stage_batch_shape(e->stages[0].stage);
    return open_links(e);
}

enum ek_status ek_engine_open(const struct ek_model *m, const struct ek_plan *p,
                              const struct ek_engine_options *opt, struct ek_engine **out)
{
    struct ek_engine *e = ek_calloc(1, sizeof(*e));
    enum ek_status st = EK_ENOMEM;

    if (e == NULL)
        return st;
    e->m = m;
    e->plan = p;
    if (opt != NULL) {
        e->trace = opt->trace;
        e->trace_user = opt->trace_user;
    }
    EK_GOTO(open_all(e, opt), st, fail);
    *out = e;
    return EK_OK;
fail:
    ek_engine_close(e);
    return st;
}

/* False when a worker does not come back after a failure. */
static bool stop_workers(struct ek_engine *e)
{
    bool all = true;

    if (e->devices == NULL)
        return true;
    pthread_mutex_lock(&e->lock);
    e->closing = true;
    for (size_t i = 0; i < e->plan->n_devices; i++)
        engine_wake(&e->devices[i]);
    for (size_t i = 0; i < e->plan->n_devices && e->failed != EK_OK; i++)
        all &= !e->devices[i].running || engine_returns(e, &e->devices[i].ended, true);
    pthread_mutex_unlock(&e->lock);
    for (size_t i = 0; i < e->plan->n_devices; i++)
        if (e->devices[i].running && (all || e->devices[i].ended))
            pthread_join(e->devices[i].thread, NULL);
    return all;
}

/* False when a device does not end what is queued there after a failure. A sender that failed
 * leaves its receiver waiting for ever, if it is not told. */
static bool stop_devices(struct ek_engine *e)
{
    bool all = true;

    for (size_t i = 0; e->devices && i < e->plan->n_devices; i++) {
        struct ek_device *dev = e->devices[i].dev;
        if (dev != NULL && e->failed != EK_OK)
            all &= engine_settles(dev, engine_grace(e));
        else if (dev != NULL)
            stage_drain(dev);
    }
    return all;
}

/* From the last stage, for a head may borrow an earlier one's embedding. */
static void free_stages(struct ek_engine *e)
{
    if (e->stages != NULL && e->devices != NULL)
        engine_steps_free(e);
    engine_vision_close(e);
    for (size_t i = e->n_all; i-- > 0;) {
        ek_link_close(e->stages[i].out);
        ek_stage_free(e->stages[i].stage);
        free(e->stages[i].modules);
        free(e->stages[i].queue);
    }
    free(e->stages);
}

bool ek_engine_close(struct ek_engine *e)
{
    if (e == NULL)
        return true;
    if (!stop_workers(e) || !stop_devices(e))
        return false;
    free_stages(e);
    for (size_t i = 0; e->devices && i < e->plan->n_devices; i++) {
        ek_device_close(e->devices[i].dev);
        if (e->devices[i].e != NULL)
            pthread_cond_destroy(&e->devices[i].wake);
    }
    free(e->devices);
    cache_close(&e->cache);
    if (e->done_made)
        pthread_cond_destroy(&e->done);
    if (e->mutex_made)
        pthread_mutex_destroy(&e->lock);
    free(e);
    return true;
}

/* ---- what it is and has */
size_t ek_engine_timings(struct ek_engine *e, struct ek_stage_timing *out, size_t cap)
{
    pthread_mutex_lock(&e->lock);
    while (e->failed == EK_OK && engine_settle(e))
        ;
    for (size_t i = 0; i < e->n_all && i < cap; i++)
        out[i] = e->stages[i].timing;
    pthread_mutex_unlock(&e->lock);
    return e->n_all;
}

void ek_engine_reset_timings(struct ek_engine *e)
{
    pthread_mutex_lock(&e->lock);
    while (e->failed == EK_OK && engine_settle(e))
        ;
    for (size_t i = 0; i < e->n_all; i++)
        e->stages[i].timing = (struct ek_stage_timing){.device = e->stages[i].device,
                                                       .stage = e->stages[i].timing.stage};
    pthread_mutex_unlock(&e->lock);
}

size_t ek_engine_n_devices(const struct ek_engine *e)
{
    return e->plan->n_devices;
}

void ek_engine_usage(struct ek_engine *e, size_t device, struct ek_usage by_tag[EK_N_TAGS])
{
    memset(by_tag, 0, EK_N_TAGS * sizeof(*by_tag));
    if (device < e->plan->n_devices && e->devices[device].dev != NULL)
        e->devices[device].dev->ops->usage(e->devices[device].dev, by_tag);
}

struct ek_device *ek_engine_device(const struct ek_engine *e, size_t device)
{
    return device < e->plan->n_devices ? e->devices[device].dev : NULL;
}

const struct ek_plan *ek_engine_plan(const struct ek_engine *e)
{
    return e->plan;
}

const struct ek_model *ek_engine_model(const struct ek_engine *e)
{
    return e->m;
}

uint32_t ek_engine_max_seqs(const struct ek_engine *e)
{
    return e->max_seqs;
}

uint32_t ek_engine_max_context(const struct ek_engine *e)
{
    return e->opt.max_context;
}

bool ek_engine_has_room(const struct ek_engine *e)
{
    return e->opt.n_blocks >= ek_cache_blocks(e->max_seqs, e->opt.max_context);
}
