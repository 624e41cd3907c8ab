/* SPDX-License-Identifier: Apache-2.0
 *
 * The rig: the runtime's own stages under the clock. A module's cost is the slope between a stage
 * of n like modules and one of 2 n, run in turns, so that neither what a stage takes once a step
 * nor a slow moment of the machine counts as the module's; the intercept is the stage's own time. n
 * is chosen so that the weights do not stay in the last-level cache between two runs, as they would
 * not in a stage of a real model.
 */
#include "profiler/measure.h"
#include "profiler/tracer.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    WARM_UP = 2, /* a graph is captured at the second run */
    ATTEMPTS = 3,
    TRACED_STEPS = 10,
    HEAVY_TOKENS = 128, /* from so many on a GPU rests between samples, and is woken ... */
    WAKING = 16,        /* ... by so many reads */
    AHEAD = 6,          /* reads on a GPU during which the host queues a step */
    IN_FLIGHT = 2,      /* steps, where they go on */
    HEAVY_LEAST = 5,    /* samples of those: they differ by little */
};
#define REST_LONG     0.5  /* seconds after which clocks have come back for sure, ... */
#define REST_BEFORE   0.05 /* before a point, and ... */
#define REST_BETWEEN  1    /* ... times a sample's own before the next */
#define HEAVY_SECONDS 0.4  /* of sampling, rests included */
#define ROUTED_NOISE  0.01 /* samples that go to other experts differ: ... */
#define ROUTED_LEAST  32   /* ... more of them */
#define GPU_SET       (16.0 * (double)EK_GIB)
#define FAR_SET       64 /* caches: bytes that are read at the speed of memory, and long enough */

struct rig_step {
    struct ek_batch batch;
    const int32_t *rows;
    uint32_t n_rows;
};

struct rig {
    struct rig_options opt;
    struct rig_group group;
    struct ek_ceilings ceilings; /* raised when they prove too low */
    struct ek_stage *stages[2];  /* of n and of 2 n modules; [1] is NULL for a module alone */
    uint32_t n;
    double room; /* bytes for weights and cache */
    struct ek_stage_options cap;
    struct rig_batch *batch;
    void *in;         /* hidden states or normalised rows that every run starts from */
    int32_t *best;    /* of the logits, on the host: [max_logits] */
    int32_t *routing; /* of the tokens at a layer of experts, [max_tokens][top_k]; else NULL */
    uint64_t drawn;   /* state of what they are drawn by */
    void *experts;    /* on the device, routing for each layer of a stage */
    void *flush; /* read before a run, so that weights are cold and a GPU's queue is not empty */
    size_t flush_bytes;
    uint64_t *when;                   /* on the host: before and behind each step in flight */
    struct ek_event *done[IN_FLIGHT]; /* behind both */
    uint32_t tokens;                  /* of the point: a picture's, for visual modules */
    double rest_s;                    /* before the next sample of many tokens */
    double least[2]; /* seconds of the quickest run of either stage at this point */
    bool shortest;   /* stages of one module and of two */
};

static bool alone(const struct rig *r)
{
    return r->group.run == 1;
}

static bool looks(const struct rig *r)
{
    return ek_module_is_visual(r->group.module);
}

static bool per_sequence(const struct rig_group *g)
{
    return g->module->kind == EK_MODULE_NORM || g->module->kind == EK_MODULE_HEAD;
}

/* ---- What a point costs -----------------------------------------------------------------------
 */

static struct ek_stage_options stage_options(const struct rig_options *o, uint32_t tokens)
{
    return (struct ek_stage_options){.page = EK_PAGE,
                                     .n_blocks = 1,
                                     .max_tokens = tokens,
                                     .max_seqs = o->max_batch,
                                     .max_context = o->max_context,
                                     .max_logits = o->max_batch,
                                     .eager = o->eager,
                                     .cache = o->cache};
}

static uint64_t kv_bytes(const struct rig_options *o, const struct rig_group *g)
{
    return ek_module_kv_bytes(o->m, g->module, o->cache);
}

static uint64_t blocks_at(const struct ek_point *at)
{
    return ek_cache_blocks(at->batch, at->context);
}

/* Weights that so many tokens read: of experts, those that the rig sends them to. */
static double weights_read(const struct rig *r, uint64_t tokens)
{
    const struct ek_config *c = &r->opt.m->config;
    double none, all;

    if (!r->routing)
        return ek_module_read_bytes(r->opt.m, r->group.module, tokens);
    none = ek_module_read_bytes(r->opt.m, r->group.module, 0);
    all = ek_module_read_bytes(r->opt.m, r->group.module, UINT32_MAX);
    return none + (all - none) / c->n_experts * routing_reached(c->n_experts, c->top_k, tokens);
}

static struct gate_work work_at(const struct rig *r, const struct ek_point *at)
{
    const struct ek_model *m = r->opt.m;
    uint64_t tokens = per_sequence(&r->group) ? at->batch : (uint64_t)at->batch * at->tokens;
    struct gate_work w = {.bandwidth = r->ceilings.read_bandwidth};

    w.bytes = weights_read(r, tokens) +
              (double)at->batch * at->context * (double)kv_bytes(&r->opt, &r->group);
    w.flops = per_sequence(&r->group)
                  ? ek_module_flops(m, r->group.module, tokens, tokens, false)
                  : at->batch * ek_module_flops(m, r->group.module, at->tokens, at->context, false);
    w.peak = fmax(r->ceilings.peak_f32, fmax(r->ceilings.peak_bf16, r->ceilings.peak_f16));
    return w;
}

/* Weights and cache of one module at a point. */
static uint64_t bytes_at(const struct rig *r, const struct ek_point *at)
{
    return r->group.module->weight_bytes + blocks_at(at) * EK_PAGE * kv_bytes(&r->opt, &r->group);
}

static double model_bytes(const struct ek_model *m)
{
    double sum = 0;

    for (size_t i = 0; i < m->n_modules; i++)
        sum += (double)m->modules[i].weight_bytes;
    return sum;
}

/* Of something else to read before a run. A module alone, in a model that no cache holds, would not
 * find its weights there in a stage. On a GPU the host queues the run meanwhile, as the engine's
 * does, and launches are not waited for; those of a picture are, behind its upload. */
static uint64_t flush_bytes(const struct rig_options *o, const struct rig_group *g)
{
    uint64_t cache = o->dev->info.cache_bytes;

    if (model_bytes(o->m) <= (double)cache || (g->run > 1 && !o->gpu) ||
        (o->gpu && ek_module_is_visual(g->module)))
        return 0;
    return 2 * cache < o->memory / 4 ? 2 * cache : o->memory / 4;
}

/* What two stages' buffers and the rig's own leave of the memory for weights and cache. */
static double room_of(const struct rig_options *o, const struct rig_group *g)
{
    uint32_t tokens = o->max_prompt > o->max_batch ? o->max_prompt : o->max_batch;
    struct ek_stage_options s = stage_options(o, tokens);
    uint64_t by_tag[EK_N_TAGS], buffers;
    size_t in = (size_t)tokens * o->m->config.hidden * ek_dtype_block_bytes(o->dev->act);

    if (ek_stage_memory(o->dev, o->m, &g->first, 1, &s, by_tag) != EK_OK)
        return 0;
    buffers = 2 * by_tag[EK_TAG_ACTIVATIONS] + in + flush_bytes(o, g);
    return 0.9 * ((double)o->memory - (double)buffers); /* the rest: scratch, allocators' padding */
}

/* Bytes that the two stages together are to go round in: what no cache holds, and on a GPU as much
 * as the model has, for its tables of addresses have caches too. */
static double working_set(const struct rig *r)
{
    double caches = 2.0 * (double)r->opt.dev->info.cache_bytes;

    return r->opt.gpu ? fmax(caches, fmin(model_bytes(r->opt.m), GPU_SET)) : caches;
}

/* Modules of the shorter stage; both stages hold 3 n. 0: not even n = 1 fits. */
static uint32_t choose_n(const struct rig *r, const struct ek_point *at)
{
    struct gate_work w = work_at(r, at);
    double bytes = (double)bytes_at(r, at), n;
    double seconds =
        fmax(w.bandwidth > 0 ? w.bytes / w.bandwidth : 0, w.peak > 0 ? w.flops / w.peak : 0);
    uint32_t power = 1;

    if (alone(r))
        return bytes < r->room;
    if (r->shortest)
        return 3 * bytes < r->room;
    n = fmin(working_set(r) / (3 * bytes), (r->opt.thorough ? 0.1 : 0.02) / (3 * seconds));
    n = fmin(fmax(n, 1), r->room / (3 * bytes));
    if (n >= r->group.run / 2)
        return r->group.run / 2;
    while (power * 2 <= n) /* few different values: stages are built anew for each */
        power *= 2;
    return n < 1 ? 0 : power;
}

uint32_t rig_max_cached(const struct rig_options *opt, const struct rig_group *group)
{
    uint64_t kv = kv_bytes(opt, group), all = (uint64_t)opt->max_batch * opt->max_context;
    double room = opt->dev ? room_of(opt, group) : INFINITY;

    room = room / 3 - (double)group->module->weight_bytes;
    if (kv == 0 || room / (double)kv >= (double)all)
        return all > UINT32_MAX ? UINT32_MAX : (uint32_t)all;
    /* whole blocks for each sequence */
    room = room / (double)kv - (double)opt->max_batch * EK_PAGE;
    return room < EK_PAGE ? EK_PAGE : (uint32_t)room;
}

/* ---- Building ---------------------------------------------------------------------------------
 */

static void drop_stages(struct rig *r)
{
    for (int i = 0; i < 2; i++) {
        ek_stage_free(r->stages[i]);
        r->stages[i] = NULL;
    }
}

static enum ek_status build_stage(struct rig *r, uint32_t n, struct ek_stage **out)
{
    size_t *modules = ek_calloc(n, sizeof(*modules));
    enum ek_status st;

    if (!modules)
        return EK_ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        modules[i] = r->group.first + i;
    st = ek_stage_new(r->opt.dev, r->opt.m, modules, n, &r->cap, out);
    free(modules);
    return st;
}

/* Most blocks of the points of this phase that are run with the same n. */
static uint64_t blocks_for(const struct rig *r, const struct ek_point *at, uint32_t n)
{
    uint32_t cached = rig_max_cached(&r->opt, &r->group);
    uint64_t most = blocks_at(at);

    for (uint32_t b = at->phase == EK_PHASE_DECODE ? r->opt.max_batch : 1; b && !r->shortest;
         b /= 2)
        for (int end = 0; end < 2; end++) {
            struct ek_point p = {at->phase, b, at->tokens, end ? cached / b : at->context};
            if (p.context > r->opt.max_context)
                p.context = r->opt.max_context;
            if (choose_n(r, &p) == n && blocks_at(&p) > most)
                most = blocks_at(&p);
        }
    return most;
}

static enum ek_status build(struct rig *r, const struct ek_point *at, uint32_t n)
{
    uint64_t blocks = blocks_for(r, at, n);

    drop_stages(r);
    r->n = n;
    r->cap.n_blocks = blocks > UINT32_MAX ? UINT32_MAX : (uint32_t)blocks;
    EK_TRY(build_stage(r, n, &r->stages[0]));
    return alone(r) ? EK_OK : build_stage(r, 2 * n, &r->stages[1]);
}

/* Stages for a point: those there are, where they will do. */
static enum ek_status prepare(struct rig *r, const struct ek_point *at)
{
    uint32_t n = choose_n(r, at);

    if (n == 0)
        return ek_error(EK_NO, "does not fit into the memory of %s", r->opt.dev->spec.name);
    if (!r->stages[0] || n != r->n || blocks_at(at) > r->cap.n_blocks) {
        enum ek_status st = build(r, at, n);
        if (st != EK_OK)
            drop_stages(r);
        EK_TRY(st == EK_ENOMEM ? EK_NO : st); /* what else the machine runs has the memory */
    }
    r->tokens = at->tokens;
    rig_batch_set(r->batch, at);
    return EK_OK;
}

static enum ek_status make_routing(struct rig *r)
{
    const struct ek_config *c = &r->opt.m->config;
    size_t bytes = (size_t)r->cap.max_tokens * c->top_k * sizeof(int32_t);

    if (ek_module_tensor(r->group.module, EK_ROLE_ROUTER, -1) == NULL)
        return EK_OK;
    if ((r->routing = ek_calloc(1, bytes)) == NULL)
        return EK_ENOMEM;
    EK_TRY(
        r->opt.dev->ops->alloc(r->opt.dev, EK_TAG_ACTIVATIONS, r->group.run * bytes, &r->experts));
    r->cap.experts = r->experts;
    return EK_OK;
}

static enum ek_status make_buffers(struct rig *r)
{
    struct ek_device *dev = r->opt.dev;
    const struct ek_config *c = &r->opt.m->config;
    size_t act = ek_dtype_block_bytes(dev->act);
    size_t in = (size_t)r->cap.max_tokens * c->hidden * act;

    EK_TRY(dev->ops->alloc(dev, EK_TAG_ACTIVATIONS, in, &r->in));
    EK_TRY(rig_fill_random(dev, r->in, in, dev->act));
    EK_TRY(dev->ops->host_alloc(dev, r->cap.max_logits * sizeof(int32_t), (void **)&r->best));
    EK_TRY(dev->ops->host_alloc(dev, 2 * IN_FLIGHT * sizeof(*r->when), (void **)&r->when));
    for (int i = 0; i < IN_FLIGHT; i++)
        EK_TRY(dev->ops->event_order(dev, &r->done[i]));
    r->flush_bytes = (size_t)flush_bytes(&r->opt, &r->group);
    return r->flush_bytes ? dev->ops->alloc(dev, EK_TAG_WORKSPACE, r->flush_bytes, &r->flush)
                          : EK_OK;
}

enum ek_status rig_new(const struct rig_options *opt, const struct rig_group *group,
                       struct rig **out)
{
    struct rig *r = ek_calloc(1, sizeof(*r));
    uint32_t tokens = opt->max_prompt > opt->max_batch ? opt->max_prompt : opt->max_batch;
    enum ek_status st;

    if (!r)
        return EK_ENOMEM;
    r->opt = *opt;
    r->group = *group;
    r->ceilings = *opt->ceilings;
    r->drawn = 5;
    r->cap = stage_options(opt, tokens);
    r->room = room_of(opt, group);
    EK_GOTO(rig_batch_new(opt->m, tokens, opt->max_batch, opt->max_context, &r->batch), st, fail);
    EK_GOTO(make_routing(r), st, fail);
    EK_GOTO(make_buffers(r), st, fail);
    *out = r;
    return EK_OK;
fail:
    rig_free(r);
    return st;
}

void rig_free(struct rig *r)
{
    if (!r)
        return;
    const struct ek_ops *ops = r->opt.dev->ops;
    drop_stages(r);
    for (int i = 0; i < IN_FLIGHT; i++)
        if (r->done[i])
            ops->event_free(r->done[i]);
    void *buffers[] = {r->flush, r->in, r->experts};
    for (size_t i = 0; i < EK_ARRAY_LEN(buffers); i++)
        if (buffers[i])
            ops->release(r->opt.dev, buffers[i]);
    if (r->best)
        ops->host_free(r->opt.dev, r->best);
    if (r->when)
        ops->host_free(r->opt.dev, r->when);
    rig_batch_free(r->batch);
    free(r->routing);
    free(r);
}

/* ---- Running ----------------------------------------------------------------------------------
 */

/* Of one layer. Sequences that a decode batch is padded with go where the first one goes. */
static enum ek_status draw_layer(struct rig *r, uint32_t layer)
{
    const struct ek_config *c = &r->opt.m->config;
    uint32_t used = rig_batch_host(r->batch)->n_tokens, k = c->top_k;
    uint32_t rows = used > r->opt.max_batch ? used : r->opt.max_batch;
    int32_t *to = (int32_t *)r->experts + (size_t)layer * r->cap.max_tokens * k;

    routing_draw(c->n_experts, k, used, &r->drawn, r->routing);
    for (uint32_t i = used * k; i < rows * k; i++)
        r->routing[i] = r->routing[i % k];
    EK_TRY(r->opt.dev->ops->upload(r->opt.dev, to, r->routing, (size_t)rows * k * sizeof(*to)));
    return r->opt.dev->ops->sync(r->opt.dev); /* routing is drawn anew */
}

/* Other experts from layer to layer and from sample to sample, as tokens go to: the weights of the
 * last ones are no warmer. */
static enum ek_status draw_experts(struct rig *r)
{
    uint32_t layers = alone(r) ? 1 : 2 * r->n;

    for (uint32_t i = 0; r->routing && i < layers; i++)
        EK_TRY(draw_layer(r, i));
    return EK_OK;
}

/* A step as the engine's workers run it: the batch to the device ... */
static enum ek_status upload(struct rig *r, struct ek_stage *s, struct rig_step *out)
{
    if (looks(r))
        return EK_OK;
    return ek_stage_upload(s, rig_batch_host(r->batch), &out->batch, &out->rows, &out->n_rows);
}

/* ... and, what counts as the stage's time, the modules and the best ids on their way back. */
static enum ek_status step(struct rig *r, struct ek_stage *s, const struct rig_step *in)
{
    const struct ek_ops *ops = r->opt.dev->ops;
    bool head = ek_stage_has_head(s);

    if (looks(r))
        return ek_stage_look(s, r->tokens);
    EK_TRY(ek_stage_run(s, &in->batch, r->in,
                        head ? (void *)ek_stage_logits(s) : ek_stage_hidden(s), in->rows,
                        in->n_rows));
    return head ? ops->argmax(r->opt.dev, ek_stage_logits(s), in->n_rows, r->opt.m->config.vocab,
                              r->best)
                : EK_OK;
}

/* The i-th of those in flight. Its times are noted as the engine notes them: so a stage takes in a
 * run what it takes here. */
static enum ek_status queue_step(struct rig *r, struct ek_stage *s, size_t i)
{
    const struct ek_ops *ops = r->opt.dev->ops;
    struct rig_step in;

    EK_TRY(upload(r, s, &in));
    EK_TRY(ops->stamp(r->opt.dev, &r->when[2 * i]));
    EK_TRY(step(r, s, &in));
    EK_TRY(ops->stamp(r->opt.dev, &r->when[2 * i + 1]));
    return ops->event_record(r->opt.dev, r->done[i]);
}

/* What is small beside something that it was measured with is not told apart from it well. */
static double less_overhead(double seconds, double overhead_s)
{
    return fmax(seconds - overhead_s, seconds / 8);
}

static enum ek_status wait_step(struct rig *r, size_t i, double *seconds)
{
    const volatile uint64_t *when = &r->when[2 * i];

    EK_TRY(r->opt.dev->ops->event_sync(r->done[i]));
    *seconds = (double)(when[1] - when[0]) * 1e-9;
    return EK_OK;
}

static enum ek_status flush(struct rig *r)
{
    int reads = r->opt.gpu ? AHEAD : 1;

    for (int i = 0; r->flush && i < reads; i++)
        EK_TRY(r->opt.dev->ops->read_bytes(r->opt.dev, r->flush, r->flush_bytes));
    return EK_OK;
}

static enum ek_status timed_step(struct rig *r, struct ek_stage *s, double *seconds)
{
    EK_TRY(flush(r));
    EK_TRY(queue_step(r, s, 0));
    return wait_step(r, 0, seconds);
}

/* A GPU lowers its clocks when products have drawn their power for some tens of milliseconds.
 * Prompts mostly come between steps that draw less: samples of many tokens have rests between them,
 * and pictures (behind one another in a loop they are a tenth quicker than in a run). */
static bool is_heavy(const struct rig *r)
{
    return r->opt.gpu && rig_batch_host(r->batch)->n_tokens >= HEAVY_TOKENS;
}

/* The host stays awake, and the GPU is woken by reads: the first launches after an idle moment take
 * some hundred microseconds longer. A picture finds both asleep. */
static enum ek_status rest(struct rig *r, double seconds)
{
    const struct ek_ops *ops = r->opt.dev->ops;
    size_t bytes = (size_t)r->cap.max_tokens * r->opt.m->config.hidden;
    uint64_t until = ek_now_ns() + (uint64_t)(seconds * 1e9);
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    if (looks(r)) {
        nanosleep(&pause, NULL);
        return EK_OK;
    }
    while (ek_now_ns() < until)
        ;
    for (int i = 0; i < WAKING; i++)
        EK_TRY(ops->read_bytes(r->opt.dev, r->in, bytes));
    return ops->sync(r->opt.dev);
}

/* [0]: of one module; [1]: of a stage without any. */
static enum ek_status sample(void *ctx, double values[TIMING_VALUES])
{
    struct rig *r = ctx;
    double one, two;

    EK_TRY(draw_experts(r));
    if (is_heavy(r))
        EK_TRY(rest(r, r->rest_s));
    EK_TRY(timed_step(r, r->stages[0], &one));
    r->rest_s = REST_BETWEEN * one;
    r->least[0] = fmin(r->least[0], one);
    if (alone(r)) {
        values[0] = one;
        return EK_OK;
    }
    EK_TRY(timed_step(r, r->stages[1], &two));
    r->rest_s += REST_BETWEEN * two;
    r->least[1] = fmin(r->least[1], two);
    values[0] = (two - one) / r->n;
    values[1] = 2 * one - two;
    return EK_OK;
}

static uint64_t clock_of_host(void *ctx)
{
    (void)ctx;
    return ek_now_ns();
}

/* Ten samples and a little more of what the last run to warm up took. */
static enum ek_status warm_up(struct rig *r, struct timing_rule *rule)
{
    double skip[TIMING_VALUES], seconds = 0;

    r->rest_s = 0;
    for (int i = 0; i < WARM_UP; i++) {
        uint64_t begin = ek_now_ns();
        EK_TRY(sample(r, skip));
        seconds = (double)(ek_now_ns() - begin) * 1e-9;
    }
    *rule = (struct timing_rule)TIMING_RULE_INIT;
    rule->timeout_s = r->opt.thorough ? fmin(2 + 50 * seconds, 60) : fmin(0.3 + 12 * seconds, 4);
    rule->noise = r->opt.thorough ? 0.0025 : 0.005;
    if (r->routing) {
        rule->min_n = ROUTED_LEAST;
        rule->noise = fmax(rule->noise, ROUTED_NOISE);
        rule->mean = true;
    }
    if (is_heavy(r)) {
        rule->timeout_s = fmin(rule->timeout_s, HEAVY_SECONDS);
        rule->min_n = r->routing ? ROUTED_LEAST : HEAVY_LEAST;
        r->rest_s = REST_BEFORE;
    }
    return EK_OK;
}

/* The intercept is a small difference of large times. It is below 0 as often as above where a stage
 * takes no time of its own, which the median over points shows. */
static void judge_intercept(const struct rig *r, struct ek_store_time *stage)
{
    stage->median_s = fmax(stage->median_s, 0);
    stage->min_s = fmin(fmax(2 * r->least[0] - r->least[1], 0), stage->median_s);
}

/* Clocks behind the last sample, and why they were lower than they could be before or behind. */
static void note_state(const struct rig *r, const struct ek_device_state *before,
                       struct ek_store_time *t)
{
    struct ek_device_state now = {.clock_mhz = 0};
    struct ek_device *dev = r->opt.dev;

    if (dev->ops->state && dev->ops->state(dev, &now)) {
        t->clock_mhz = now.clock_mhz;
        t->throttle = before->throttle | now.throttle;
    }
}

/* *whole: the time that the gate judges. */
static enum ek_status time_point(struct rig *r, double overhead_s, struct ek_store_time *module,
                                 struct ek_store_time *stage, double *whole)
{
    struct ek_device_state before = {.clock_mhz = 0};
    struct ek_store_time t[TIMING_VALUES];
    struct timing_rule rule;

    EK_TRY(warm_up(r, &rule));
    if (r->opt.dev->ops->state)
        (void)r->opt.dev->ops->state(r->opt.dev, &before);
    r->least[0] = r->least[1] = INFINITY;
    EK_TRY(timing_run(&rule, sample, clock_of_host, r, t));
    for (int i = 0; i < TIMING_VALUES; i++)
        note_state(r, &before, &t[i]);
    *whole = t[0].median_s;
    if (alone(r)) {
        t[1] = t[0];
        t[0].median_s = less_overhead(t[0].median_s, overhead_s);
        t[0].min_s = less_overhead(t[0].min_s, overhead_s);
        t[1].median_s -= t[0].median_s;
        t[1].min_s -= t[0].min_s;
    } else {
        t[0].min_s = fmax((r->least[1] - r->least[0]) / r->n, 0);
        judge_intercept(r, &t[1]);
    }
    *module = t[0];
    *stage = t[1];
    return EK_OK;
}

/* ---- The gate ---------------------------------------------------------------------------------
 */

/* The rate at which the bytes that a run goes round in can be read: from a cache that holds them,
 * faster than from memory; and of many, with less of it launching than the ceiling's. */
static enum ek_status bandwidth_of_set(struct rig *r, const struct ek_point *at, double *rate)
{
    struct ek_device *dev = r->opt.dev;
    double set = (double)bytes_at(r, at) * (alone(r) ? 1 : 3 * r->n);
    double room = (double)dev->ops->memory_free(dev) / 2, cache = (double)dev->info.cache_bytes;

    if (r->flush || set > FAR_SET * cache)
        set = FAR_SET * cache;
    if (room < fmin(set, 4 * cache) || room < 1 << 20)
        return EK_OK;
    EK_TRY(ceilings_read_rate(dev, (uint64_t)fmin(set, room), rate));
    *rate = fmax(*rate, r->ceilings.read_bandwidth);
    return EK_OK;
}

/* Ceilings measured in a slow moment of the machine refuse what is true: look again. */
static enum ek_status look_again(struct rig *r)
{
    struct ek_device *dev = r->opt.dev;
    struct ek_ceilings now;

    drop_stages(r); /* their memory is needed */
    EK_TRY(ek_measure_ceilings(dev, &now));
    r->ceilings.read_bandwidth = fmax(r->ceilings.read_bandwidth, now.read_bandwidth);
    r->ceilings.peak_f32 = fmax(r->ceilings.peak_f32, now.peak_f32);
    r->ceilings.peak_bf16 = fmax(r->ceilings.peak_bf16, now.peak_bf16);
    r->ceilings.peak_f16 = fmax(r->ceilings.peak_f16, now.peak_f16);
    return EK_OK;
}

static enum ek_status pass_gate(struct rig *r, const struct ek_point *at, double seconds)
{
    struct gate_work w = work_at(r, at);
    char what[160];

    if (w.bytes > seconds * w.bandwidth) /* faster than from memory: is it from a cache? */
        EK_TRY(bandwidth_of_set(r, at, &w.bandwidth));
    snprintf(what, sizeof(what), "%s: %s, %s, batch %u, tokens %u, context %u",
             r->opt.dev->spec.name, r->group.module->name,
             at->phase == EK_PHASE_DECODE ? "decode" : "prefill", at->batch, at->tokens,
             at->context);
    return gate_check(&w, seconds, what);
}

enum ek_status rig_measure(struct rig *r, const struct ek_point *at, double overhead_s,
                           struct ek_store_time *module, struct ek_store_time *stage)
{
    enum ek_status st = EK_NO;
    double whole;

    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        EK_TRY(prepare(r, at));
        EK_TRY(time_point(r, overhead_s, module, stage, &whole));
        st = pass_gate(r, at, whole);
        if (st != EK_NO)
            return st;
        if (attempt + 1 < ATTEMPTS)
            EK_TRY(look_again(r));
    }
    return st;
}

enum ek_status rig_measure_own(struct rig *r, const struct ek_point *at,
                               struct ek_store_time *stage)
{
    struct ek_store_time module;
    double whole;
    enum ek_status st;

    r->shortest = true;
    st = prepare(r, at);
    if (st == EK_OK)
        st = time_point(r, 0, &module, stage, &whole);
    r->shortest = false;
    return st;
}

enum ek_status rig_begin(struct rig *r, const struct ek_point *at)
{
    double skip;

    EK_TRY(prepare(r, at));
    EK_TRY(draw_experts(r));
    for (int i = 0; i < WARM_UP; i++)
        EK_TRY(timed_step(r, r->stages[0], &skip));
    return EK_OK;
}

uint32_t rig_modules(const struct rig *r)
{
    return r->n;
}

enum ek_status rig_rest(struct rig *r)
{
    return rest(r, REST_LONG);
}

/* The i-th of steps that go on: the next ones are queued, for pauses would let clocks come back. */
static enum ek_status next_step(struct rig *r, size_t i, double *seconds)
{
    for (size_t k = i ? i + IN_FLIGHT - 1 : 0; k < i + IN_FLIGHT; k++)
        EK_TRY(queue_step(r, r->stages[0], k % IN_FLIGHT));
    return wait_step(r, i % IN_FLIGHT, seconds);
}

enum ek_status rig_go_on(struct rig *r, double seconds, double *out, size_t max, size_t *n)
{
    double spent = 0;

    for (*n = 0; *n < max && spent < seconds; spent += out[(*n)++])
        EK_TRY(next_step(r, *n, &out[*n]));
    return r->opt.dev->ops->sync(r->opt.dev);
}

enum ek_status rig_keep_busy(struct rig *r, const struct ek_point *at, const atomic_bool *stop,
                             atomic_bool *goes)
{
    double skip;

    EK_TRY(rig_begin(r, at));
    for (size_t i = 0; !atomic_load(stop); i++) {
        EK_TRY(next_step(r, i, &skip));
        atomic_store(goes, true);
    }
    return r->opt.dev->ops->sync(r->opt.dev);
}

/* ---- Under a tracer ---------------------------------------------------------------------------
 */

static enum ek_status traced_step(struct rig *r, int which, const struct tracer *t,
                                  struct attribution *out)
{
    const struct ek_ops *ops = r->opt.dev->ops;
    struct trace trace = {.records = NULL};
    struct rig_step in;
    enum ek_status st;

    EK_TRY(flush(r));
    EK_TRY(ops->sync(r->opt.dev));
    EK_TRY(t->collect(NULL));
    EK_TRY(draw_experts(r));
    EK_TRY(upload(r, r->stages[which], &in));
    EK_TRY(step(r, r->stages[which], &in));
    EK_TRY(ops->sync(r->opt.dev));
    EK_GOTO(t->collect(&trace), st, done);
    st = attribution_add(out, which, &trace);
done:
    trace_clear(&trace);
    return st;
}

enum ek_status rig_trace(struct rig *r, const struct ek_point *at, const struct tracer *t,
                         struct attribution *out, double *per, double *seconds)
{
    double times[TRACED_STEPS], both[TIMING_VALUES];

    drop_stages(r); /* so that graphs are captured with the tracer there */
    EK_TRY(prepare(r, at));
    for (int i = 0; i <= WARM_UP; i++)
        EK_TRY(sample(r, both));
    for (int i = 0; i < TRACED_STEPS; i++) {
        EK_TRY(sample(r, both));
        times[i] = both[0];
    }
    for (int i = 0; i < TRACED_STEPS; i++)
        for (int which = 0; which < 2 - alone(r); which++)
            EK_TRY(traced_step(r, which, t, out));
    *per = alone(r) ? TRACED_STEPS : (double)TRACED_STEPS * r->n;
    *seconds = timing_median(times, TRACED_STEPS);
    return EK_OK;
}
