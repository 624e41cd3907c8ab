/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of a module alone. What a stage allocates at its making is asked of the runtime for every
 * shape and held against the device's own account at the largest; the backend's scratch, which
 * appears when a module runs, is read from that account after running ever larger steps.
 */
#include "profiler/measure.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SIZES = 34 };

struct sizes { /* ascending */
    uint32_t at[MAX_SIZES];
    size_t n;
};

/* 1, then powers of two from least, then max itself. */
static struct sizes ladder(uint32_t least, uint32_t max)
{
    struct sizes s = {.at = {1}, .n = 1};

    for (uint64_t v = least; v < max; v *= 2)
        if (v > 1)
            s.at[s.n++] = (uint32_t)v;
    if (max > 1)
        s.at[s.n++] = max;
    return s;
}

struct subject { /* the stages that show a module's memory */
    const struct rig_options *opt;
    const struct rig_group *group;
    const char *signature; /* of the rows: the module's, or EK_STORE_ENDING */
    size_t company[8];     /* a layer and everything up to the module; or the module alone */
    size_t n_company;
    uint32_t max_tokens;
    uint64_t workspace[MAX_SIZES]; /* after steps of tokens.at[i] and all smaller ones */
    struct sizes tokens, batches, contexts;
};

static bool sees(const struct subject *s)
{
    return ek_module_is_visual(s->group->module);
}

/* What a picture may take at once grows with the context, not with batches and chunks: in
 * proportion (Qwen2.5-VL), or by the tile (DeepSeek-VL2). */
static struct sizes contexts_of(const struct subject *s)
{
    const struct ek_config *c = &s->opt->m->config;
    uint32_t max = s->opt->max_context, cells, tile;
    struct sizes out = {.at = {max}, .n = 1};

    if (!sees(s))
        return out;
    if (c->vision != EK_VISION_VL2)
        return ladder(64, max);
    cells = (c->vision_image / c->vision_patch + c->vision_merge - 1) / c->vision_merge;
    tile = cells * cells;
    out.n = 0;
    for (uint32_t t = tile; t < max && out.n + 1 < MAX_SIZES; t += tile)
        out.at[out.n++] = t;
    out.at[out.n++] = max;
    return out;
}

static struct ek_stage_options options_at(const struct subject *s, uint32_t batch, uint32_t tokens)
{
    return (struct ek_stage_options){.page = EK_PAGE,
                                     .n_blocks =
                                         (uint32_t)ek_cache_blocks(batch, s->opt->max_context),
                                     .max_tokens = tokens,
                                     .max_seqs = batch,
                                     .max_context = s->opt->max_context,
                                     .max_logits = batch,
                                     .cache = s->opt->cache};
}

/* Bytes of activations of a stage of one module. */
static uint64_t activations_of(const struct subject *s, size_t module)
{
    struct ek_stage_options o = options_at(s, s->opt->max_batch, s->max_tokens);
    uint64_t by_tag[EK_N_TAGS];

    if (ek_stage_memory(s->opt->dev, s->opt->m, &module, 1, &o, by_tag) != EK_OK)
        return 0;
    return by_tag[EK_TAG_ACTIVATIONS];
}

/* The layer with the most activations; SIZE_MAX: there is none. */
static size_t largest_layer(const struct subject *s)
{
    const struct ek_model *m = s->opt->m;
    size_t best = SIZE_MAX;
    uint64_t most = 0, bytes;

    for (size_t i = 0; i < m->n_modules; i++)
        if (m->modules[i].kind == EK_MODULE_LAYER && (bytes = activations_of(s, i)) > most) {
            most = bytes;
            best = i;
        }
    return best;
}

static bool is_ending(const struct subject *s)
{
    return strcmp(s->signature, EK_STORE_ENDING) == 0;
}

/* Logits come on top of a layer's buffers: the norm and the head are looked at behind the layer
 * that has the most of them, the head behind the norm; and both without a layer. */
static void find_company(struct subject *s)
{
    const struct ek_model *m = s->opt->m;
    size_t at = s->group->first, first = at, layer;

    if (s->group->module->kind == EK_MODULE_NORM || s->group->module->kind == EK_MODULE_HEAD) {
        while (first > 0 && m->modules[first - 1].kind == EK_MODULE_NORM)
            first--;
        if (!is_ending(s) && (layer = largest_layer(s)) < first)
            s->company[s->n_company++] = layer;
    }
    for (size_t i = first; i <= at && s->n_company < EK_ARRAY_LEN(s->company); i++)
        s->company[s->n_company++] = i;
}

/* ---- Scratch ----------------------------------------------------------------------------------
 */

static uint64_t workspace_now(struct ek_device *dev)
{
    struct ek_usage u[EK_N_TAGS];

    dev->ops->usage(dev, u);
    return u[EK_TAG_WORKSPACE].peak;
}

static enum ek_status run_step(struct subject *s, struct ek_stage *stage, struct rig_batch *b,
                               const struct ek_point *at)
{
    struct ek_batch batch;
    const int32_t *rows;
    uint32_t n_rows;

    if (sees(s)) {
        EK_TRY(ek_stage_look(stage, at->tokens));
        return s->opt->dev->ops->sync(s->opt->dev);
    }
    rig_batch_set(b, at);
    EK_TRY(ek_stage_upload(stage, rig_batch_host(b), &batch, &rows, &n_rows));
    EK_TRY(ek_stage_run(stage, &batch, ek_stage_hidden(stage),
                        ek_stage_has_head(stage) ? (void *)ek_stage_logits(stage)
                                                 : ek_stage_hidden(stage),
                        rows, n_rows));
    return s->opt->dev->ops->sync(s->opt->dev);
}

/* Decode steps first, then prefill steps of ever more tokens, all as deep as the cache goes. */
static enum ek_status run_all(struct subject *s, struct ek_stage *stage, struct rig_batch *b,
                              uint32_t n_blocks)
{
    uint32_t deepest = n_blocks * EK_PAGE;

    for (size_t i = 0; !sees(s) && i < s->batches.n; i++) {
        struct ek_point p = {EK_PHASE_DECODE, s->batches.at[i], 1, deepest / s->batches.at[i]};
        if (p.context > s->opt->max_context)
            p.context = s->opt->max_context;
        EK_TRY(run_step(s, stage, b, &p));
    }
    for (size_t i = 0; i < s->tokens.n; i++) {
        struct ek_point p = {EK_PHASE_PREFILL, 1, s->tokens.at[i], s->opt->max_context};
        if (p.context > deepest)
            p.context = deepest;
        if (p.context < p.tokens)
            p.context = p.tokens;
        EK_TRY(run_step(s, stage, b, &p));
        s->workspace[i] = workspace_now(s->opt->dev);
    }
    return EK_OK;
}

/* What the runtime says it will take, and what the device says it took. */
static enum ek_status compare(const struct subject *s, const uint64_t said[EK_N_TAGS])
{
    struct ek_device *dev = s->opt->dev;
    struct ek_usage u[EK_N_TAGS];

    dev->ops->usage(dev, u);
    for (int tag = 0; tag < EK_N_TAGS; tag++)
        if (tag != EK_TAG_WORKSPACE && u[tag].now != said[tag])
            return ek_error(EK_EDEVICE,
                            "%s: %s: the runtime counts %llu bytes of %s, the device %llu",
                            dev->spec.name, s->group->module->name, (unsigned long long)said[tag],
                            ek_tag_names[tag], (unsigned long long)u[tag].now);
    return EK_OK;
}

/* A cache that fits: the whole workload, or less where the device cannot hold it. */
static uint32_t fitting_blocks(const struct subject *s)
{
    uint64_t all = ek_cache_blocks(s->opt->max_batch, s->opt->max_context);
    uint64_t cached = rig_max_cached(s->opt, s->group) / EK_PAGE;
    uint64_t least = ek_cache_blocks(1, s->max_tokens);

    if (least < s->opt->max_batch)
        least = s->opt->max_batch;
    return (uint32_t)(all < cached ? all : cached > least ? cached : least);
}

static enum ek_status measure_workspace(struct subject *s)
{
    struct ek_stage_options o = options_at(s, s->opt->max_batch, s->max_tokens);
    struct rig_batch *b = NULL;
    struct ek_stage *stage = NULL;
    uint64_t said[EK_N_TAGS];
    enum ek_status st;

    o.n_blocks = fitting_blocks(s);
    EK_TRY(ek_stage_memory(s->opt->dev, s->opt->m, s->company, s->n_company, &o, said));
    EK_TRY(rig_batch_new(s->opt->m, s->max_tokens, o.max_seqs,
                         o.max_context > s->max_tokens ? o.max_context : s->max_tokens, &b));
    EK_GOTO(ek_stage_new(s->opt->dev, s->opt->m, s->company, s->n_company, &o, &stage), st, done);
    EK_GOTO(compare(s, said), st, done);
    st = run_all(s, stage, b, o.n_blocks);
done:
    ek_stage_free(stage);
    rig_batch_free(b);
    return st;
}

/* ---- Rows -------------------------------------------------------------------------------------
 */

static struct ek_store_memory row_at(const struct rig_options *o, int64_t device,
                                     const char *signature, uint32_t batch, uint32_t tokens)
{
    struct ek_store_memory m = {
        .device = device, .batch = batch, .tokens = tokens, .context = o->max_context};

    snprintf(m.signature, sizeof(m.signature), "%s", signature);
    snprintf(m.act, sizeof(m.act), "%s", ek_dtype_name(o->dev->act));
    snprintf(m.cache, sizeof(m.cache), "%s", ek_dtype_name(o->cache));
    return m;
}

struct shape { /* of a row */
    uint32_t batch, context;
    size_t t; /* index into the tokens */
};

static struct ek_store_memory row_of(const struct subject *s, int64_t device,
                                     const struct shape *at)
{
    struct ek_store_memory row =
        row_at(s->opt, device, s->signature, at->batch, s->tokens.at[at->t]);

    row.context = at->context;
    return row;
}

static enum ek_status put_row(const struct subject *s, struct ek_store *store, int64_t device,
                              const struct shape *at)
{
    struct ek_store_memory row = row_of(s, device, at);
    struct ek_stage_options o = options_at(s, at->batch, s->tokens.at[at->t]);
    uint64_t own[EK_N_TAGS], with[EK_N_TAGS];

    o.max_context = at->context;
    EK_TRY(ek_stage_memory(s->opt->dev, s->opt->m, &s->group->first, 1, &o, own));
    EK_TRY(ek_stage_memory(s->opt->dev, s->opt->m, s->company, s->n_company, &o, with));
    row.weights = is_ending(s) ? 0 : own[EK_TAG_WEIGHTS]; /* the head's row says them */
    row.kv = own[EK_TAG_KV];
    row.activations = with[EK_TAG_ACTIVATIONS];
    row.comm = own[EK_TAG_COMM];
    row.workspace = s->workspace[at->t];
    return ek_store_put_memory(store, &row);
}

static struct shape shape_at(const struct subject *s, size_t i)
{
    return (struct shape){.t = i % s->tokens.n,
                          .batch = s->batches.at[i / s->tokens.n % s->batches.n],
                          .context = s->contexts.at[i / s->tokens.n / s->batches.n]};
}

enum ek_status memory_measure(const struct rig_options *opt, const struct rig_group *group,
                              const char *signature, struct ek_store *store, int64_t device)
{
    struct subject s = {.opt = opt, .group = group, .signature = signature};
    bool there = true;
    size_t n;

    s.max_tokens = opt->max_prompt > opt->max_batch ? opt->max_prompt : opt->max_batch;
    s.tokens = ladder(16, s.max_tokens);
    s.batches = ladder(2, sees(&s) ? 1 : opt->max_batch);
    s.contexts = contexts_of(&s);
    find_company(&s);
    n = s.tokens.n * s.batches.n * s.contexts.n;
    for (size_t i = 0; i < n && there; i++) {
        struct shape at = shape_at(&s, i);
        struct ek_store_memory row = row_of(&s, device, &at);
        there = ek_store_has_memory(store, &row);
    }
    if (there)
        return EK_OK;
    EK_TRY(measure_workspace(&s));
    for (size_t i = 0; i < n; i++) {
        struct shape at = shape_at(&s, i);
        EK_TRY(put_row(&s, store, device, &at));
    }
    return EK_OK;
}

/* Devices that exchange messages, and how. */
struct peers {
    struct ek_device *const *devices;
    size_t n;
    struct ek_store_link *links; /* of the store, owned */
    size_t n_links;
};
struct message_bytes {
    uint64_t in, out, once; /* of a device; once: what a library takes there for good */
};

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* By the mechanism that plans will name. */
static enum ek_status bytes_between(const struct peers *p, size_t from, size_t to, size_t elements,
                                    struct ek_link_bytes *out)
{
    const struct ek_store_link *l =
        link_fastest(p->links, p->n_links, p->devices[from]->spec.name, p->devices[to]->spec.name);

    return ek_link_memory(p->devices[from], p->devices[to], l ? l->mechanism : NULL, elements, out);
}

/* Most bytes that messages of so many elements take on device i: to one other and from one. */
static enum ek_status bytes_at(const struct peers *p, size_t i, size_t elements,
                               struct message_bytes *m)
{
    struct ek_link_bytes to, from;

    *m = (struct message_bytes){.in = 0};
    for (size_t j = 0; j < p->n; j++) {
        if (j == i)
            continue;
        EK_TRY(bytes_between(p, i, j, elements, &to));
        EK_TRY(bytes_between(p, j, i, elements, &from));
        m->out = larger(m->out, to.at_from);
        m->in = larger(m->in, from.at_to);
        m->once = larger(m->once, larger(to.once_from, from.once_to));
    }
    return EK_OK;
}

enum ek_status memory_of_links(const struct rig_options *opt, struct ek_device *const *devices,
                               size_t n, size_t i, struct ek_store *store, int64_t device)
{
    uint32_t max = opt->max_prompt > opt->max_batch ? opt->max_prompt : opt->max_batch;
    struct sizes tokens = ladder(16, max);
    struct peers p = {.devices = devices, .n = n};
    struct message_bytes m;
    enum ek_status st;

    EK_TRY(ek_store_links(store, &p.links, &p.n_links));
    st = EK_OK;
    for (size_t t = 0; t < tokens.n && st == EK_OK; t++) {
        struct ek_store_memory row =
            row_at(opt, device, EK_STORE_INCOMING, opt->max_batch, tokens.at[t]);
        EK_GOTO(bytes_at(&p, i, (size_t)tokens.at[t] * opt->m->config.hidden, &m), st, done);
        row.comm = m.in;
        row.workspace = m.once;
        EK_GOTO(ek_store_put_memory(store, &row), st, done);
        strcpy(row.signature, EK_STORE_OUTGOING);
        row.comm = m.out;
        st = ek_store_put_memory(store, &row);
    }
done:
    free(p.links);
    return st;
}

enum ek_status memory_of_cuts(const struct rig_options *opt, struct ek_device *const *devices,
                              size_t n, size_t i, const char *signature, struct ek_store *store,
                              int64_t device)
{
    struct peers p = {.devices = devices, .n = n};
    struct ek_stage_options o = {0};
    struct ek_store_memory *rows = NULL;
    struct message_bytes m;
    enum ek_status st;
    size_t count;

    EK_TRY(ek_store_links(store, &p.links, &p.n_links));
    EK_GOTO(ek_store_memories(store, device, signature, &rows, &count), st, done);
    for (size_t k = 0; k < count; k++) {
        if (strcmp(rows[k].act, ek_dtype_name(opt->dev->act)) != 0)
            continue;
        o.max_context = rows[k].context;
        EK_GOTO(bytes_at(&p, i, ek_picture_message(opt->m, &o), &m), st, done);
        rows[k].comm = larger(m.out, m.in);
        EK_GOTO(ek_store_put_memory(store, &rows[k]), st, done);
    }
    st = EK_OK;
done:
    free(p.links);
    free(rows);
    return st;
}
