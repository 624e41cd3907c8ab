/* SPDX-License-Identifier: Apache-2.0
 *
 * Profiling a model: which modules are distinct, in what order they are measured, and the way of
 * each row into the store. Everything asked for is looked up there first, so a profile that was
 * stopped at any instant goes on where it was.
 */
#include "profiler/profile.h"

#include <stdlib.h>
#include <string.h>

/* ---- Distinct modules -------------------------------------------------------------------------
 */

static bool seen(const struct ek_model *m, size_t i)
{
    for (size_t j = 0; j < i; j++)
        if (strcmp(m->modules[j].signature, m->modules[i].signature) == 0)
            return true;
    return false;
}

/* The longest run of neighbours of module i's signature. */
static struct rig_group longest_run(const struct ek_model *m, size_t i)
{
    const char *signature = m->modules[i].signature;
    struct rig_group best = {.first = i, .run = 0};
    uint32_t run = 0;

    for (size_t j = i; j < m->n_modules; j++) {
        run = strcmp(m->modules[j].signature, signature) == 0 ? run + 1 : 0;
        if (run > best.run)
            best = (struct rig_group){.first = j + 1 - run, .run = run};
    }
    best.module = &m->modules[best.first];
    return best;
}

static int by_run(const void *a, const void *b)
{
    const struct rig_group *x = a, *y = b;

    if (ek_module_is_visual(x->module) != ek_module_is_visual(y->module))
        return ek_module_is_visual(x->module) ? 1 : -1;
    if (x->run != y->run)
        return x->run < y->run ? 1 : -1;
    return x->first < y->first ? -1 : 1;
}

enum ek_status profile_groups(const struct ek_model *m, struct rig_group **out, size_t *n)
{
    struct rig_group *groups = ek_calloc(m->n_modules, sizeof(*groups));
    size_t k = 0;

    if (!groups)
        return EK_ENOMEM;
    for (size_t i = 0; i < m->n_modules; i++)
        if (!seen(m, i)) {
            groups[k] = longest_run(m, i);
            /* nothing is gained by several towers a picture; blocks follow one another */
            if (ek_module_is_visual(groups[k].module) && groups[k].module->kind != EK_MODULE_BLOCK)
                groups[k].run = 1;
            k++;
        }
    qsort(groups, k, sizeof(*groups), by_run); /* the first one tells the stage's own time */
    *out = groups;
    *n = k;
    return EK_OK;
}

#define LARGE_PICTURE 2048u /* tokens */

/* ---- Points of a module -----------------------------------------------------------------------
 */

/* Of the largest picture to measure: it is looked at whole, however long a step of the prefill is.
 * (A CPU would take minutes.) */
static uint32_t picture_tokens(const struct rig_options *rig)
{
    uint32_t most = rig->max_context < LARGE_PICTURE ? rig->max_context : LARGE_PICTURE;

    return rig->gpu && most > rig->max_prompt ? most : rig->max_prompt;
}

/* Pictures of DeepSeek-VL2 are of whole tiles; so many tokens the first takes, and another. */
static void whole_tiles(const struct ek_config *c, struct point_space *s)
{
    uint32_t cells = (c->vision_image / c->vision_patch + c->vision_merge - 1) / c->vision_merge;

    s->first = cells * (cells + 1) + 1;
    s->step = cells * cells + cells / 2;
    if (s->max_width > s->first)
        s->max_width -= (s->max_width - s->first) % s->step;
}

/* Products do on a GPU. (Of experts, reading them is most; tiles of DeepSeek-VL2 are points.) */
static bool goes_up_and_down(const struct rig_options *rig, const struct rig_group *g)
{
    enum ek_module_kind kind = g->module->kind;

    if (!rig->gpu || ek_module_tensor(g->module, EK_ROLE_ROUTER, -1) != NULL)
        return false;
    if (kind == EK_MODULE_VISION || kind == EK_MODULE_BLOCK)
        return rig->m->config.vision != EK_VISION_VL2;
    return kind == EK_MODULE_LAYER && g->run > 1;
}

struct point_space profile_space(const struct rig_options *rig, const struct rig_group *g,
                                 enum ek_phase phase, double target)
{
    bool decode = phase == EK_PHASE_DECODE, deep = g->module->kind == EK_MODULE_LAYER;
    bool per_sequence = g->module->kind == EK_MODULE_NORM || g->module->kind == EK_MODULE_HEAD;
    bool visual = ek_module_is_visual(g->module);
    uint32_t batches = rig->max_batch > 16 ? 10 : 6; /* with kernels for few and for many */
    uint32_t widths = rig->thorough ? 12 : deep ? (decode ? batches : 8) : visual ? 6 : 5;
    uint32_t longest = visual ? picture_tokens(rig) : rig->max_prompt;

    struct point_space s = {.phase = phase,
                            .max_width = decode ? rig->max_batch : longest,
                            .max_context = rig->max_context,
                            .max_cached = rig_max_cached(rig, g),
                            .deep = deep,
                            .target = target,
                            .max_widths = !decode && per_sequence ? 2 : widths,
                            .picture = visual,
                            .sweep = !decode && goes_up_and_down(rig, g),
                            .choosy = decode && rig->gpu};

    if (visual && rig->m->config.vision == EK_VISION_VL2)
        whole_tiles(&rig->m->config, &s);
    return s;
}

static const char *launch_of(const struct rig_options *o, enum ek_phase phase)
{
    return o->dev->ops->graph_begin && !o->eager && phase == EK_PHASE_DECODE ? "graph" : "eager";
}

struct ek_store_key profile_key(const struct profile_device *d, const char *signature,
                                const struct ek_point *at, uint32_t busy)
{
    struct ek_store_key k = {.device = d->row.id,
                             .phase = at->phase,
                             .batch = at->batch,
                             .tokens = at->tokens,
                             .context = at->context,
                             .busy = busy};

    snprintf(k.signature, sizeof(k.signature), "%s", signature);
    snprintf(k.act, sizeof(k.act), "%s", ek_dtype_name(d->rig.dev->act));
    snprintf(k.cache, sizeof(k.cache), "%s", ek_dtype_name(d->rig.cache));
    snprintf(k.launch, sizeof(k.launch), "%s", launch_of(&d->rig, at->phase));
    return k;
}

/* Rows of a signature under this device's types and launch modes alone. */
enum ek_status profile_rows(const struct profile_device *d, const char *signature,
                            struct ek_store_time_row **out, size_t *n)
{
    struct ek_store_time_row *rows;
    size_t all, kept = 0;

    EK_TRY(ek_store_times(d->p->store, d->row.id, signature, &rows, &all));
    for (size_t i = 0; i < all; i++) {
        const struct ek_store_key *k = &rows[i].key;
        if (strcmp(k->act, ek_dtype_name(d->rig.dev->act)) == 0 &&
            strcmp(k->cache, ek_dtype_name(d->rig.cache)) == 0 &&
            strcmp(k->launch, launch_of(&d->rig, k->phase)) == 0)
            rows[kept++] = rows[i];
    }
    *out = rows;
    *n = kept;
    return EK_OK;
}

static bool same_point(const struct ek_store_key *k, const struct ek_point *at)
{
    return k->phase == at->phase && k->batch == at->batch && k->tokens == at->tokens &&
           k->context == at->context;
}

/* EK_NO: not measured yet. */
static enum ek_status find_row(const struct profile_device *d, const char *signature,
                               const struct ek_point *at, struct ek_store_time *out)
{
    struct ek_store_time_row *rows;
    enum ek_status st = EK_NO;
    size_t n;

    EK_TRY(profile_rows(d, signature, &rows, &n));
    for (size_t i = 0; i < n; i++)
        if (same_point(&rows[i].key, at)) {
            *out = rows[i].time;
            st = EK_OK;
        }
    free(rows);
    return st;
}

struct visit { /* of one module on one device */
    struct profile_device *d;
    const struct rig_group *group;
    struct rig *rig; /* made when the first point is really measured */
};

static enum ek_status stage_overhead(const struct profile_device *d, const struct ek_point *at,
                                     double *seconds)
{
    struct ek_store_time_row *rows;
    size_t n;

    EK_TRY(profile_rows(d, EK_STORE_STAGE, &rows, &n));
    *seconds = ek_typical(rows, n, at->phase);
    free(rows);
    return EK_OK;
}

/* The stage's own time is of the module that a model is made of. */
static bool tells_own(const struct visit *v)
{
    return v->group == &v->d->p->groups[0] && v->group->run > 1;
}

/* The module's row last: without it the point is measured again, and the stage's row stays. */
static enum ek_status put_rows(const struct visit *v, const struct ek_point *at,
                               const struct ek_store_time *module,
                               const struct ek_store_time *stage)
{
    struct ek_store_key k = profile_key(v->d, EK_STORE_STAGE, at, 0);

    if (tells_own(v) && !v->d->rig.gpu)
        EK_TRY(ek_store_put_time(v->d->p->store, &k, stage));
    if (v->group->module->kind == EK_MODULE_NORM) { /* of a stage that ends the chain */
        k = profile_key(v->d, EK_STORE_ENDING, at, 0);
        EK_TRY(ek_store_put_time(v->d->p->store, &k, stage));
    }
    k = profile_key(v->d, v->group->module->signature, at, 0);
    return ek_store_put_time(v->d->p->store, &k, module);
}

static void say_point(const struct visit *v, const struct ek_point *at)
{
    struct profile *p = v->d->p;
    char detail[160];

    snprintf(detail, sizeof(detail), "%s %s, %s %u x %u of %u", v->d->row.name,
             v->group->module->name, at->phase == EK_PHASE_DECODE ? "decode" : "prefill", at->batch,
             at->tokens, at->context);
    profile_say(p, p->done + 1, detail);
}

static enum ek_status measure_point(void *ctx, const struct ek_point *at, struct ek_store_time *out)
{
    struct visit *v = ctx;
    struct profile *p = v->d->p;
    struct ek_store_time stage;
    double overhead = 0;
    enum ek_status st;

    say_point(v, at);
    st = find_row(v->d, v->group->module->signature, at, out);
    if (st != EK_NO)
        return st;
    EK_TRY(devices_stopped(p->opt->stop));
    if (!v->rig)
        EK_TRY(rig_new(&v->d->rig, v->group, &v->rig));
    if (v->group->run == 1)
        EK_TRY(stage_overhead(v->d, at, &overhead));
    st = rig_measure(v->rig, at, overhead, out, &stage);
    if (st == EK_NO) {
        ek_note("left out: %s", ek_last_error());
        p->left_out++;
    }
    EK_TRY(st);
    return put_rows(v, at, out, &stage);
}

/* Pictures belong to prompts. */
static int last_phase(const struct rig_group *g)
{
    return ek_module_is_visual(g->module) ? EK_PHASE_PREFILL : EK_PHASE_DECODE;
}

/* Latent attention brings every token of a context out of the latent space, however few of a
 * sequence's are new: a chunk with the end of one prompt and the beginning of the next takes longer
 * than one that attends to as much. Ends of a half and of a sixteenth of the chunk show by how
 * much.
 */
static enum ek_status measure_two(struct visit *v)
{
    const struct rig_options *o = &v->d->rig;
    uint32_t most = rig_max_cached(o, v->group) / 2, middle = (o->max_prompt + o->max_context) / 2;

    if (o->m->config.attention != EK_ATTENTION_MLA || v->group->module->kind != EK_MODULE_LAYER ||
        o->max_batch < 2 || o->max_batch > o->max_prompt || most <= o->max_prompt)
        return EK_OK;
    for (uint32_t share = 2; share <= 16 && share <= o->max_prompt; share *= 8) {
        struct ek_point at = {EK_PHASE_PREFILL, 2, o->max_prompt / share,
                              middle < most ? middle : most};
        struct ek_store_time t;
        enum ek_status st = measure_point(v, &at, &t);
        EK_TRY(st == EK_NO ? EK_OK : st);
    }
    return EK_OK;
}

static enum ek_status measure_own(struct visit *v, const struct ek_point *at)
{
    struct ek_store_key k = profile_key(v->d, EK_STORE_STAGE, at, 0);
    struct ek_store_time t;
    enum ek_status st;

    if (ek_store_has_time(v->d->p->store, &k))
        return EK_OK;
    EK_TRY(devices_stopped(v->d->p->opt->stop));
    if (!v->rig)
        EK_TRY(rig_new(&v->d->rig, v->group, &v->rig));
    st = rig_measure_own(v->rig, at, &t);
    if (st == EK_OK)
        st = ek_store_put_time(v->d->p->store, &k, &t);
    return st == EK_NO ? EK_OK : st;
}

/* What a stage of a GPU takes once a step, at the longest steps and half and a quarter of them. (A
 * CPU's caches would keep so few modules.) */
static enum ek_status measure_owns(struct visit *v, const struct point_space *s)
{
    struct ek_point corners[4];

    if (!tells_own(v) || !v->d->rig.gpu)
        return EK_OK;
    points_corners(s, corners);
    for (uint32_t share = 1; share <= 4 && share <= s->max_width; share *= 2) {
        struct ek_point at = corners[0];
        if (s->phase == EK_PHASE_DECODE)
            at.batch /= share;
        else
            at.context = at.tokens /= share;
        EK_TRY(measure_own(v, &at));
    }
    return EK_OK;
}

/* Decode steps that are launched, beside those that are replayed: what graphs save, for the record
 * (plans take what is replayed). One sequence and the most, deep. */
static enum ek_status measure_launched(const struct profile_device *d, const struct rig_group *g)
{
    const struct rig_options *o = &d->rig;
    struct profile_device eager = *d;
    struct visit v = {.d = &eager, .group = g};
    struct ek_store_time t;
    enum ek_status st = EK_OK;

    if (!o->thorough || o->dev->ops->graph_begin == NULL || last_phase(g) != EK_PHASE_DECODE)
        return EK_OK;
    eager.rig.eager = true;
    for (int i = 0; i < 2 && st == EK_OK; i++) {
        uint32_t batch = i ? o->max_batch : 1, most = rig_max_cached(o, g) / batch;
        struct ek_point at = {EK_PHASE_DECODE, batch, 1,
                              most < o->max_context ? most : o->max_context};

        st = at.context > 0 ? measure_point(&v, &at, &t) : EK_NO;
        if (st == EK_OK && tells_own(&v))
            st = measure_own(&v, &at);
        if (st == EK_NO)
            st = EK_OK;
    }
    rig_free(v.rig);
    return st;
}

static enum ek_status measure_group(struct profile_device *d, const struct rig_group *g)
{
    struct visit v = {.d = d, .group = g};
    enum ek_status st = EK_OK;

    for (int phase = EK_PHASE_PREFILL; phase <= last_phase(g) && st == EK_OK; phase++) {
        struct profile *p = d->p;
        struct point_space s =
            profile_space(&d->rig, g, (enum ek_phase)phase, p->opt->target_error);
        uint64_t begin = p->done;
        st = points_measure(&s, measure_point, &v);
        if (st == EK_OK && phase == EK_PHASE_PREFILL)
            st = measure_two(&v);
        if (st == EK_OK)
            st = measure_owns(&v, &s);
        profile_say(p, begin + points_most(&s), d->row.name);
    }
    rig_free(v.rig);
    return st == EK_OK ? measure_launched(d, g) : st;
}

/* ---- Devices ----------------------------------------------------------------------------------
 */

enum ek_status profile_open(struct profile *p, size_t i, struct profile_device *out)
{
    const struct ek_profile_options *o = p->opt;
    struct profile_device d = {.p = p};
    struct ek_device *dev;
    enum ek_status st;

    EK_TRY(devices_open(&o->devices[i], o->act, true, &dev));
    ek_profile_device_row(dev, &d.row);
    EK_GOTO(ek_store_put_device(p->store, &d.row), st, fail);
    EK_GOTO(devices_find(p->store, d.row.id, &d.row), st, fail);
    d.ceilings = (struct ek_ceilings){.read_bandwidth = d.row.read_bandwidth,
                                      .copy_bandwidth = d.row.copy_bandwidth,
                                      .peak_f32 = d.row.peak_f32,
                                      .peak_bf16 = d.row.peak_bf16,
                                      .peak_f16 = d.row.peak_f16};
    d.rig = profile_rig_options(p->m, o, dev);
    *out = d;
    out->rig.ceilings = &out->ceilings;
    return EK_OK;
fail:
    ek_device_close(dev);
    return st;
}

struct rig_options profile_rig_options(const struct ek_model *m, const struct ek_profile_options *o,
                                       struct ek_device *dev)
{
    uint64_t total = dev ? dev->info.memory_total : 0;

    return (struct rig_options){.dev = dev,
                                .m = m,
                                .cache = o->cache,
                                .max_batch = o->max_batch,
                                .max_prompt = o->max_prompt,
                                .max_context = o->max_context,
                                .memory = dev && dev->spec.memory ? dev->spec.memory : total / 2,
                                .gpu = dev ? dev->info.compute_major > 0
                                           : strcmp(o->devices[0].backend, "cpu") != 0,
                                .thorough = o->thorough};
}

/* Scratch stays with a device, so each module sees a fresh one. */
static enum ek_status measure_memory_of(struct profile *p, size_t i, size_t g,
                                        const char *signature)
{
    struct profile_device d;
    enum ek_status st;

    EK_TRY(devices_stopped(p->opt->stop));
    EK_TRY(profile_open(p, i, &d));
    st = g == 0 ? twins_memory(&d) : EK_OK;
    if (st == EK_OK)
        st = memory_measure(&d.rig, &p->groups[g], signature, p->store, d.row.id);
    ek_device_close(d.rig.dev);
    return st;
}

static enum ek_status measure_memory(struct profile *p, size_t i)
{
    for (size_t g = 0; g < p->n_groups; g++) {
        EK_TRY(measure_memory_of(p, i, g, p->groups[g].module->signature));
        if (p->groups[g].module->kind == EK_MODULE_HEAD)
            EK_TRY(measure_memory_of(p, i, g, EK_STORE_ENDING));
        profile_say(p, p->done + 1, p->opt->devices[i].name);
    }
    return EK_OK;
}

static enum ek_status measure_times(struct profile *p, size_t i)
{
    struct profile_device d;
    enum ek_status st;

    EK_TRY(profile_open(p, i, &d));
    st = twins_times(&d);
    for (size_t g = 0; g < p->n_groups && st == EK_OK; g++)
        st = measure_group(&d, &p->groups[g]);
    if (st == EK_OK)
        st = profile_sustained(&d);
    ek_device_close(d.rig.dev);
    return st;
}

static enum ek_status measure_links(struct profile *p, const struct profile_device *d,
                                    struct ek_device *const *devices, size_t i)
{
    size_t n = p->opt->n_devices;

    EK_TRY(memory_of_links(&d->rig, devices, n, i, p->store, d->row.id));
    for (size_t g = 0; g < p->n_groups; g++) {
        const struct ek_module *mod = p->groups[g].module;
        if (ek_module_is_visual(mod) && !mod->side)
            EK_TRY(memory_of_cuts(&d->rig, devices, n, i, mod->signature, p->store, d->row.id));
    }
    return EK_OK;
}

/* What hand-overs take, which depends on the other devices. */
static enum ek_status measure_hand_overs(struct profile *p)
{
    size_t n = p->opt->n_devices;
    struct profile_device *d = ek_calloc(n, sizeof(*d));
    struct ek_device **devices = ek_calloc(n, sizeof(*devices));
    enum ek_status st = d && devices ? EK_OK : EK_ENOMEM;

    for (size_t i = 0; i < n && st == EK_OK; i++) {
        st = profile_open(p, i, &d[i]);
        if (st == EK_OK)
            devices[i] = d[i].rig.dev;
    }
    for (size_t i = 0; i < n && st == EK_OK; i++)
        st = measure_links(p, &d[i], devices, i);
    for (size_t i = 0; devices && i < n; i++)
        ek_device_close(devices[i]);
    free(devices);
    free(d);
    return st;
}

static enum ek_status measure_all(struct profile *p)
{
    const struct ek_profile_options *o = p->opt;

    EK_TRY(ek_profile_devices(p->store, o->devices, o->n_devices, o->act, false, o->stop));
    EK_TRY(profile_assign_lanes(p));
    EK_TRY(profile_each(p, measure_memory));
    EK_TRY(measure_hand_overs(p));
    EK_TRY(profile_each(p, measure_times));
    EK_TRY(profile_busy(p));
    return o->kernels ? profile_kernels(p) : EK_OK;
}

/* ---- The whole --------------------------------------------------------------------------------
 */

static enum ek_status check_options(const struct ek_profile_options *o)
{
    if (o->n_devices == 0 || o->n_devices > EK_MAX_DEVICES)
        return ek_error(EK_EUSAGE, "profile: %zu devices, between 1 and %d can be measured",
                        o->n_devices, EK_MAX_DEVICES);
    if (!o->max_batch || !o->max_prompt || o->max_context < o->max_prompt || o->max_batch > 4096 ||
        o->max_context > 1 << 20)
        return ek_error(EK_EUSAGE,
                        "profile: batch %u, prompt %u, context %u: batch and prompt must be at "
                        "least 1, the prompt within the context, batch <= 4096, context <= 2^20",
                        o->max_batch, o->max_prompt, o->max_context);
    if (!(o->target_error > 0 && o->target_error < 1))
        return ek_error(EK_EUSAGE, "profile: a target error of %g is not between 0 and 1",
                        o->target_error);
    return EK_OK;
}

static enum ek_status put_model(struct profile *p)
{
    json_t *json = ek_model_json(p->m);
    char *text = json ? ek_json_text(json) : NULL;
    enum ek_status st =
        text ? ek_store_put_model(p->store, p->m->hash, p->m->name, text) : EK_ENOMEM;

    free(text);
    json_decref(json);
    return st;
}

size_t ek_profile_most(const struct ek_model *m, const struct ek_profile_options *opt)
{
    struct rig_options rig = profile_rig_options(m, opt, NULL);
    struct rig_group *groups;
    size_t n, most = 0;

    rig.memory = UINT64_MAX;
    if (profile_groups(m, &groups, &n) != EK_OK)
        return 0;
    for (size_t g = 0; g < n; g++)
        for (int phase = EK_PHASE_PREFILL; phase <= last_phase(&groups[g]); phase++) {
            struct point_space s = profile_space(&rig, &groups[g], (enum ek_phase)phase, 1);
            most += points_most(&s);
        }
    free(groups);
    return most * opt->n_devices;
}

enum ek_status ek_profile(const struct ek_model *m, struct ek_store *store,
                          const struct ek_profile_options *opt)
{
    struct profile_pace pace = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct profile p = {.m = m, .store = store, .opt = opt, .pace = &pace};
    enum ek_status st;

    EK_TRY(check_options(opt));
    EK_TRY(profile_groups(m, &p.groups, &p.n_groups));
    EK_GOTO(ek_store_session_begin(store, m->hash), st, done);
    EK_GOTO(put_model(&p), st, done);
    pace.bar = ek_progress_new("profile", ek_profile_most(m, opt) + p.n_groups * opt->n_devices);
    st = measure_all(&p);
    ek_progress_free(pace.bar);
    if (st == EK_OK)
        st = ek_store_session_end(store, "complete");
    else /* the message is the failure's */
        (void)ek_store_session_end(store, st == EK_EINTR ? "interrupted" : "failed");
    if (st == EK_OK && p.left_out)
        ek_note("%u points could not be measured; plans interpolate without them", p.left_out);
done:
    free(p.groups);
    return st;
}
