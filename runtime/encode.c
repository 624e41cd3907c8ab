/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures through the tower and what projects its output, stage by stage, to rows of embeddings on
 * the host. A picture goes in parts of whole slices; the workers of the devices run them between
 * steps, as many parts at once as there are stages, in the order in which they came.
 */
#include "runtime/engine.h"

#include <stdlib.h>
#include <string.h>

/* ---- where the visual modules are */
static struct engine_stage *stage_of(const struct ek_engine *e, size_t module)
{
    for (size_t i = 0; i < e->n_all; i++)
        for (size_t k = 0; k < e->stages[i].n_modules; k++)
            if (e->stages[i].modules[k] == module)
                return &e->stages[i];
    return NULL; /* not in a plan that was checked */
}

/* The model's order is that of execution. */
enum ek_status engine_vision_find(struct ek_engine *e)
{
    struct engine_vision *v = &e->vision;

    if ((v->path = ek_calloc(e->n_all, sizeof(*v->path))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < e->m->n_modules; i++) {
        const struct ek_module *mod = &e->m->modules[i];
        struct engine_stage *s = stage_of(e, i);
        if (!ek_module_is_visual(mod) || mod->kind == EK_MODULE_VECTOR)
            continue;
        if (v->n_path == 0)
            snprintf(v->tower, sizeof(v->tower), "%.*s", (int)ek_module_tower_length(mod),
                     mod->name);
        v->features = mod->kind == EK_MODULE_PROJECTOR ? mod->name : v->tower;
        if (v->n_path == 0 || v->path[v->n_path - 1].stage != s)
            v->path[v->n_path++].stage = s;
    }
    return EK_OK;
}

enum ek_status engine_vision_open(struct ek_engine *e)
{
    struct engine_hop *path = e->vision.path;

    for (size_t i = 0; i < e->vision.n_path; i++) {
        struct ek_device *dev = e->devices[path[i].stage->device].dev;
        EK_TRY(dev->ops->event_new(dev, &path[i].began));
        EK_TRY(dev->ops->event_new(dev, &path[i].ended));
        if (i > 0)
            EK_TRY(engine_link_open(e, path[i - 1].stage->device, path[i].stage->device,
                                    ek_picture_message(e->m, &e->opt), &path[i].in));
    }
    return EK_OK;
}

static void job_free(struct engine_encode *job)
{
    vision_pack_free(&job->pack);
    engine_block_give(job->block);
    free(job->pixels);
    free(job);
}

void engine_vision_close(struct ek_engine *e)
{
    for (struct engine_encode *job = e->vision.jobs, *next; job != NULL; job = next) {
        next = job->next;
        job_free(job);
    }
    for (size_t i = 0; i < e->vision.n_path; i++) {
        struct engine_hop *hop = &e->vision.path[i];
        ek_link_close(hop->in);
        if (hop->began != NULL)
            e->devices[hop->stage->device].dev->ops->event_free(hop->began);
        if (hop->ended != NULL)
            e->devices[hop->stage->device].dev->ops->event_free(hop->ended);
    }
    engine_blocks_free(e);
    free(e->vision.path);
    for (int i = 0; i < N_VISION_VECTORS; i++)
        free(e->vision.vectors[i]);
}

enum ek_status engine_vision_fetch(struct ek_engine *e, struct ek_stage *s)
{
    size_t hidden = e->m->config.hidden;

    for (int i = 0; s->vision && i < N_VISION_VECTORS; i++) {
        if (s->vision->vectors[i] == NULL)
            continue;
        if ((e->vision.vectors[i] = ek_calloc(hidden, sizeof(float))) == NULL)
            return EK_ENOMEM;
        EK_TRY(s->dev->ops->download(s->dev, e->vision.vectors[i], s->vision->vectors[i],
                                     hidden * sizeof(float)));
    }
    return EK_OK;
}

/* ---- the workers' side */
static bool can_run(const struct ek_engine *e, const struct engine_encode *job, uint32_t device)
{
    const struct engine_hop *hop = &e->vision.path[job->at];
    bool last = job->at + 1 == e->vision.n_path;

    return hop->stage->device == device && (last || ek_link_ready(hop[1].in));
}

/* A job passes the stages in order, and none overtakes another: an older one at the same stage is
 * found first. */
struct engine_encode *engine_vision_ready(const struct ek_engine *e, uint32_t device)
{
    struct engine_encode *job = e->vision.jobs;

    while (job != NULL && (job->running || job->done || !can_run(e, job, device)))
        job = job->next;
    return job;
}

/* Rows of patches on the device, in windowed order, to host memory in the picture's. */
static enum ek_status fetch_patches(struct ek_stage *s, const struct vision_pack *p, size_t offset,
                                    float *out)
{
    size_t dim = s->m->config.vision_hidden;
    float *sorted;
    enum ek_status st;

    if (!p->windowed)
        return stage_fetch(s, s->arena + offset, p->rows * dim, out);
    if ((sorted = ek_calloc(p->rows, dim * sizeof(*sorted))) == NULL)
        return EK_ENOMEM;
    st = stage_fetch(s, s->arena + offset, p->rows * dim, sorted);
    for (uint32_t i = 0; st == EK_OK && i < p->rows; i++)
        memcpy(out + (uint32_t)p->ints[p->order + i] * dim, sorted + i * dim, dim * sizeof(*out));
    free(sorted);
    return st;
}

struct tracing {
    struct ek_engine *e;
    struct engine_encode *job;
};

static enum ek_status trace_patches(const struct tracing *t, struct ek_stage *s, size_t offset,
                                    const char *name)
{
    const struct vision_pack *p = &t->job->pack;
    uint32_t width = t->e->m->config.vision_hidden;
    float *rows = ek_calloc(p->rows, width * sizeof(*rows));
    enum ek_status st = EK_ENOMEM;

    if (rows != NULL)
        st = fetch_patches(s, p, offset, rows);
    if (st == EK_OK)
        t->e->trace(t->e->trace_user, name, rows, p->rows, width);
    free(rows);
    return st;
}

/* Behind a block, or behind VL2's tower: a CPU may need the deadline's time for all of them. */
static enum ek_status behind_part(void *user, struct ek_stage *s, uint32_t block)
{
    const struct tracing *t = user;
    const char *tower = t->e->vision.tower;
    char name[160];

    pthread_mutex_lock(&t->e->lock);
    engine_moved(t->e);
    pthread_mutex_unlock(&t->e->lock);
    if (t->e->trace == NULL)
        return EK_OK;
    if (block == t->e->m->config.vision_layers)
        return trace_patches(t, s, s->vision->at.xn, tower);
    snprintf(name, sizeof(name), "%s.blocks.%u", tower, block);
    return trace_patches(t, s, s->vision->at.x, name);
}

/* Features to the host: the end of a part. */
static enum ek_status finish(struct ek_engine *e, struct engine_encode *job, struct ek_stage *s)
{
    uint32_t hidden = e->m->config.hidden;

    EK_TRY(s->dev->ops->download(s->dev, job->out, s->arena + vision_output(s),
                                 (size_t)job->pack.features * hidden * sizeof(*job->out)));
    if (e->trace != NULL)
        e->trace(e->trace_user, e->vision.features, job->out, job->pack.features, hidden);
    return EK_OK;
}

static enum ek_status receive(struct ek_engine *e, size_t at, struct ek_stage *s, size_t message)
{
    const struct engine_hop *hop = &e->vision.path[at];

    if (hop->in == NULL)
        return EK_OK;
    EK_TRY(ek_link_wait(hop->in, NULL));
    EK_TRY(ek_link_recv(hop->in, s->arena + s->vision->at.x, message));
    pthread_mutex_lock(&e->lock); /* a slot is free: the sender may go on */
    engine_wake(&e->devices[hop[-1].stage->device]);
    pthread_mutex_unlock(&e->lock);
    return EK_OK;
}

enum ek_status engine_vision_run(struct ek_engine *e, struct engine_encode *job)
{
    const struct engine_hop *hop = &e->vision.path[job->at];
    struct ek_stage *s = hop->stage->stage;
    const struct ek_ops *ops = s->dev->ops;
    size_t message = (size_t)job->pack.rows * e->m->config.vision_hidden;
    struct tracing t = {e, job};

    EK_TRY(receive(e, job->at, s, message));
    EK_TRY(ops->event_record(s->dev, hop->began));
    EK_TRY(vision_run(s, &job->pack, behind_part, &t));
    if (job->at + 1 == e->vision.n_path)
        EK_TRY(finish(e, job, s));
    else
        EK_TRY(ek_link_send(hop[1].in, s->arena + vision_output(s), message, NULL));
    EK_TRY(ops->event_record(s->dev, hop->ended));
    return ops->event_sync(hop->ended); /* the pack is freed when the last one is done */
}

void engine_vision_pass(struct ek_engine *e, struct engine_encode *job, enum ek_status st)
{
    struct engine_hop *hop = &e->vision.path[job->at];

    job->running = false;
    if (st == EK_OK)
        hop->stage->timing.pictures_s +=
            e->devices[hop->stage->device].dev->ops->event_seconds(hop->began, hop->ended);
    if (st != EK_OK)
        engine_fail(e, st);
    else if (++job->at == e->vision.n_path)
        job->done = true;
    else
        engine_wake(&e->devices[e->vision.path[job->at].stage->device]);
    pthread_cond_broadcast(&e->done);
}

/* ---- the caller's side */
/* Parts under way: as many as there are stages, so that all of them work, and one that is laid out
 * on the host meanwhile. */
struct encoder {
    struct ek_engine *e;
    struct ek_vl_geometry *geometries; /* of every picture of the prompt (Qwen) */
    struct engine_encode **ring;       /* [n_ring] */
    size_t n_ring;
    size_t put, got;
    float *out;                 /* where the next part's features go */
    struct engine_encode *lost; /* a part that did not come back, and may yet write there */
};

static enum ek_status submit(struct ek_engine *e, struct engine_encode *job)
{
    struct engine_hop *first = &e->vision.path[0];
    struct engine_encode **end = &e->vision.jobs;
    enum ek_status st = EK_OK;

    pthread_mutex_lock(&e->lock);
    if (e->failed != EK_OK) {
        st = engine_failed(e);
    } else {
        while (*end != NULL)
            end = &(*end)->next;
        *end = job;
        first->stage->timing.pictures_s += job->packing_s;
        engine_wake(&e->devices[first->stage->device]);
        engine_moved(e);
    }
    pthread_mutex_unlock(&e->lock);
    return st;
}

/* Waits for the oldest part; a worker that has begun it ends its stage even when the engine fails.
 * A job that does not come back stays in the list, with the pixels that it reads: the engine's,
 * freed when it closes. */
static enum ek_status collect(struct encoder *c)
{
    struct ek_engine *e = c->e;
    struct engine_encode *job = c->ring[c->got++ % c->n_ring], **at = &e->vision.jobs;
    enum ek_status st = EK_OK;
    bool returned;

    pthread_mutex_lock(&e->lock);
    while (!job->done && e->failed == EK_OK)
        engine_sleep(e);
    if (!job->done)
        st = engine_failed(e);
    returned = engine_returns(e, &job->running, false);
    while (returned && *at != job)
        at = &(*at)->next;
    if (returned)
        *at = job->next;
    pthread_mutex_unlock(&e->lock);
    if (returned) {
        job_free(job);
    } else {
        c->lost = job;
        job->pixels = job->visual->pixels;
        job->visual->pixels = NULL;
    }
    return st;
}

static enum ek_status collect_all(struct encoder *c)
{
    enum ek_status st = EK_OK;

    while (c->got < c->put) {
        enum ek_status one = collect(c);
        st = st == EK_OK ? one : st;
    }
    return st;
}

/* Slices [at, at + n) of a picture on their way. */
static enum ek_status encode_slices(struct encoder *c, struct ek_visual *v,
                                    const struct ek_vl_geometry *g, uint32_t at, uint32_t n)
{
    const struct ek_config *config = &c->e->m->config;
    struct engine_encode *job;
    uint64_t begin;
    enum ek_status st;

    if ((job = ek_calloc(1, sizeof(*job))) == NULL)
        return EK_ENOMEM;
    job->out = c->out;
    job->visual = v;
    begin = ek_now_ns();
    EK_GOTO(vision_pack(config, v, g, at, n, &job->pack), st, fail);
    job->packing_s = (double)(ek_now_ns() - begin) * 1e-9;
    c->out += (size_t)job->pack.features * config->hidden;
    if (c->put - c->got == c->n_ring)
        EK_GOTO(collect(c), st, fail);
    EK_GOTO(submit(c->e, job), st, fail);
    c->ring[c->put++ % c->n_ring] = job;
    return EK_OK;
fail:
    job_free(job);
    return st;
}

/* All slices of a picture, as many at once as fit. */
static enum ek_status encode_visual(struct encoder *c, struct ek_visual *v,
                                    const struct ek_vl_geometry *g)
{
    uint32_t most = vision_max_rows(&c->e->m->config, &c->e->opt), slice = vision_slice_rows(v);
    uint32_t step = slice ? most / slice : 0, n = vision_n_slices(v);

    if (step == 0)
        return ek_error(EK_EUSAGE, "picture of %u x %u: %u patches at once, at most %u", v->width,
                        v->height, slice, most);
    for (uint32_t at = 0; at < n; at += step)
        EK_TRY(encode_slices(c, v, g, at, n - at < step ? n - at : step));
    return EK_OK;
}

static enum ek_status check_visual(const struct ek_engine *e, const struct ek_visual *v)
{
    const struct ek_config *c = &e->m->config;
    uint64_t slice = vision_slice_rows(v), cell = (uint64_t)c->vision_merge * c->vision_merge;
    uint64_t grid = vision_grid(c), cells = vision_cells(c), features;

    features = vision_is_qwen(c) ? v->n_rows / cell : v->t * cells * cells;
    if (v->pixels == NULL || v->t == 0 || v->row_size != vision_row_size(c) ||
        v->n_rows != slice * v->t || v->n_features != features ||
        (vision_is_qwen(c) ? slice % cell != 0 : slice != grid * grid))
        return ek_error(EK_EUSAGE,
                        "picture of %llu rows of %u in %u slices does not suit the tower of %s",
                        (unsigned long long)v->n_rows, v->row_size, v->t, e->m->name);
    return EK_OK;
}

static enum ek_status encode_visuals(struct encoder *c, const struct ek_vl_rules *rules,
                                     struct ek_vl_prompt *p)
{
    bool qwen = vision_is_qwen(&c->e->m->config);

    for (size_t i = 0; i < p->n_visuals; i++) {
        struct ek_vl_geometry *g = &c->geometries[i];
        EK_TRY(check_visual(c->e, &p->visuals[i]));
        if (qwen)
            EK_TRY(ek_vl_geometry(rules, &p->visuals[i], g));
        EK_TRY(encode_visual(c, &p->visuals[i], qwen ? g : NULL));
    }
    return EK_OK;
}

/* *features: room for [n_features][hidden]; NULL afterwards where a part may yet write there: the
 * engine's then. */
static enum ek_status encode_all(struct ek_engine *e, const struct ek_vl_rules *rules,
                                 struct ek_vl_prompt *p, struct engine_block **features)
{
    struct encoder c = {.e = e, .out = (*features)->data, .n_ring = e->vision.n_path + 1};
    enum ek_status st = EK_ENOMEM, ended;

    c.geometries = ek_calloc(p->n_visuals + 1, sizeof(*c.geometries));
    c.ring = ek_calloc(c.n_ring, sizeof(*c.ring));
    if (c.geometries != NULL && c.ring != NULL)
        st = encode_visuals(&c, rules, p);
    ended = collect_all(&c);
    st = st == EK_OK ? ended : st;
    for (size_t i = 0; c.geometries && i < p->n_visuals; i++)
        ek_vl_geometry_free(&c.geometries[i]);
    free(c.geometries);
    free(c.ring);
    if (c.lost != NULL) {
        c.lost->block = *features;
        *features = NULL;
    }
    return st;
}

/* Every row of the prompt from its source. */
static enum ek_status lay_out(const struct ek_engine *e, const struct ek_vl_prompt *p,
                              const float *features, size_t n_features, struct ek_embeds *out)
{
    size_t hidden = e->m->config.hidden;

    for (size_t i = 0; i < p->n_rows; i++) {
        const struct ek_vl_row *r = &p->rows[i];
        const float *from = NULL;
        if (r->source != EK_VL_FEATURE)
            from =
                e->vision.vectors[r->source == EK_VL_NEWLINE ? VISION_NEWLINE : VISION_SEPARATOR];
        else if (r->row < n_features)
            from = features + r->row * hidden;
        if (from == NULL)
            return ek_error(EK_EUSAGE, "token %u: the model %s has no row %u of source %u",
                            r->token, e->m->name, r->row, r->source);
        out->rows[i] = from;
        out->tokens[i] = r->token;
    }
    out->n = p->n_rows;
    return EK_OK;
}

/* Memory for copies from the device that the features come from. */
static enum ek_status take_rows(struct ek_engine *e, size_t n, struct engine_block **out)
{
    const struct engine_hop *last = &e->vision.path[e->vision.n_path - 1];

    return engine_block_take(e, e->devices[last->stage->device].dev,
                             (n ? n : 1) * e->m->config.hidden * sizeof(float), out);
}

enum ek_status ek_engine_encode(struct ek_engine *e, const struct ek_vl_rules *rules,
                                struct ek_vl_prompt *p, struct ek_embeds *out)
{
    struct engine_block *features = NULL;
    struct ek_embeds x = {0};
    enum ek_status st;
    size_t n = 0;

    if (e->vision.n_path == 0)
        return ek_error(EK_EUNSUPPORTED, "%s takes no pictures", e->m->name);
    for (size_t i = 0; i < p->n_visuals; i++)
        n += p->visuals[i].n_features;
    EK_TRY(take_rows(e, n, &features));
    EK_GOTO(encode_all(e, rules, p, &features), st, done);
    x.tokens = ek_calloc(p->n_rows, sizeof(*x.tokens));
    x.rows = ek_calloc(p->n_rows, sizeof(*x.rows));
    st = x.tokens && x.rows ? lay_out(e, p, features->data, n, &x) : EK_ENOMEM;
done:
    x.block = features;
    if (st == EK_OK)
        *out = x;
    else
        ek_embeds_free(&x);
    return st;
}

void ek_embeds_free(struct ek_embeds *x)
{
    free(x->tokens);
    free((void *)x->rows);
    engine_block_give(x->block);
    *x = (struct ek_embeds){0};
}
