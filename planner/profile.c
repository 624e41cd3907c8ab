/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Costs from a model and a profile: what docs/measurement.md says of its rows.
 */
#include "planner/planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_PAGE 32 /* tokens a block of the runtime's cache */

struct importer {
    const struct ek_model *m;
    struct ek_store *store;
    const struct ek_profile_choice *choice;
    struct ek_costs *c;
    struct ek_store_device *devices; /* of classes, in their order */
    size_t n_devices;
    enum ek_dtype act, cache;
};

/* ---- Devices ------------------------------------------------------------------------------------
 */
/* "a b", "a,b": is name one of them? */
static bool listed(const char *list, const char *name)
{
    size_t n;

    for (; list && *list; list += n + (list[n] != '\0')) {
        n = strcspn(list, " ,;");
        if (n == strlen(name) && strncmp(list, name, n) == 0)
            return true;
    }
    return false;
}

static bool wanted(const struct importer *im, const struct ek_store_device *d)
{
    return im->choice->devices == NULL || listed(im->choice->devices, d->name);
}

/* Has the device a time for any module of the model? */
static enum ek_status measured(struct importer *im, const struct ek_store_device *d, bool *yes)
{
    struct ek_store_time_row *rows;
    size_t n;

    *yes = false;
    for (size_t i = 0; i < im->m->n_modules && !*yes; i++) {
        EK_TRY(ek_store_times(im->store, d->id, im->m->modules[i].signature, &rows, &n));
        free(rows);
        *yes = n > 0;
    }
    return EK_OK;
}

static enum ek_status choose_devices(struct importer *im)
{
    size_t n, kept = 0;
    bool yes;

    EK_TRY(ek_store_devices(im->store, &im->devices, &n));
    for (size_t i = 0; i < n; i++) {
        if (!wanted(im, &im->devices[i]))
            continue;
        EK_TRY(measured(im, &im->devices[i], &yes));
        if (yes)
            im->devices[kept++] = im->devices[i];
        else
            ek_note("%s has no measurements of %s and is left out", im->devices[i].name,
                    im->m->name);
    }
    im->n_devices = kept;
    if (kept == 0)
        return ek_error(EK_EENV,
                        "the profile has no measurements of %s on %s; run `evenkeel "
                        "profile` first",
                        im->m->name, im->choice->devices ? im->choice->devices : "any device");
    if (kept > EK_PLAN_MAX_DEVICES)
        return ek_error(EK_EUNSUPPORTED, "the profile has %zu devices; one plan holds at most %d",
                        kept, EK_PLAN_MAX_DEVICES);
    return EK_OK;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return b && b < a ? b : a;
}

/* A declared budget, or what was free (a GPU: with what our own context takes of it). */
static uint64_t budget_of(const struct ek_store_device *d)
{
    bool gpu = strcmp(d->backend, "cpu") != 0;

    if (d->budget)
        return least(d->budget, EK_PLAN_MAX_MEMORY);
    return least(least(d->memory_total, d->memory_free + (gpu ? d->overhead : 0)),
                 EK_PLAN_MAX_MEMORY);
}

static void copy(char *out, size_t cap, const char *s)
{
    snprintf(out, cap, "%.*s", (int)cap - 1, s);
}

static bool of_types(const struct importer *im, const char *act, const char *cache)
{
    return strcmp(act, ek_dtype_name(im->act)) == 0 && strcmp(cache, ek_dtype_name(im->cache)) == 0;
}

/* Others that share the memory of a device. */
static size_t sharing(const struct ek_store_device *all, size_t n, const struct ek_store_device *d)
{
    size_t k = 0;

    for (size_t i = 0; i < n; i++)
        k += all[i].id != d->id && d->memory_group[0] != '\0' &&
             strcmp(all[i].memory_group, d->memory_group) == 0 && strcmp(all[i].host, d->host) == 0;
    return k;
}

/* With all the other devices of these costs at work. Of those that it was measured with, the ones
 * that share its memory slow a device, or, where none does, all of them. */
static enum ek_status slow_factor(const struct importer *im, const struct ek_store_device *d,
                                  enum ek_phase phase, double *factor)
{
    size_t n, sharers, here = sharing(im->devices, im->n_devices, d);
    struct ek_store_device *all;
    uint32_t busy;

    EK_TRY(ek_store_slowdown(im->store, d->id, phase, factor, &busy));
    EK_TRY(ek_store_devices(im->store, &all, &n));
    sharers = sharing(all, n, d);
    free(all);
    if (sharers == 0)
        here = im->n_devices - 1;
    if (sharers > 0 && sharers < busy)
        busy = (uint32_t)sharers;
    if (busy > 0)
        *factor = 1 + (*factor - 1) * (double)here / busy;
    return EK_OK;
}

#define MOST_SUSTAINED 1000.0 /* that costs may say */

/* How many times a row of the same point, measured with rests: 1 where there is none. */
static double times_rested(const struct importer *im, const struct ek_store_time_row *rows,
                           size_t n, const struct ek_store_time_row *row)
{
    const struct ek_store_key *a = &row->key;

    for (size_t i = 0; i < n; i++) {
        const struct ek_store_key *b = &rows[i].key;
        if (strcmp(b->launch, a->launch) != 0 && b->phase == a->phase && b->batch == a->batch &&
            b->tokens == a->tokens && b->context == a->context && of_types(im, b->act, b->cache) &&
            rows[i].time.median_s > 0)
            return fmin(fmax(row->time.median_s / rows[i].time.median_s, 1), MOST_SUSTAINED);
    }
    return 1;
}

static const struct ek_module *module_with(const struct importer *im, const char *signature)
{
    for (size_t i = 0; i < im->m->n_modules; i++)
        if (strcmp(im->m->modules[i].signature, signature) == 0)
            return &im->m->modules[i];
    return NULL;
}

/* From rows of one signature: the ratios to those with rests, or (a stage's) the seconds. */
static void read_sustained(const struct importer *im, const char *signature,
                           const struct ek_store_time_row *rows, size_t n, struct ek_cost_class *k)
{
    const struct ek_module *of = module_with(im, signature);
    double *prefill = of && ek_module_is_visual(of) ? &k->looking : &k->sustained;

    for (size_t i = 0; i < n; i++) {
        bool decode = rows[i].key.phase == EK_PHASE_DECODE;
        double *seconds = decode ? &k->recovery_s : &k->burst_s;
        double *ratio = decode ? &k->behind : prefill;
        if (of == NULL && strcmp(rows[i].key.launch, EK_STORE_REFILLED) == 0 &&
            of_types(im, rows[i].key.act, rows[i].key.cache))
            k->refill_s = fmin(rows[i].time.median_s, MOST_SUSTAINED);
        if (strcmp(rows[i].key.launch, EK_STORE_SUSTAINED) != 0 ||
            !of_types(im, rows[i].key.act, rows[i].key.cache))
            continue;
        if (of == NULL) /* a stage's */
            *seconds = fmin(rows[i].time.median_s, MOST_SUSTAINED);
        else
            *ratio = times_rested(im, rows, n, &rows[i]);
    }
}

static enum ek_status sustained(const struct importer *im, const struct ek_store_device *d,
                                struct ek_cost_class *k)
{
    struct ek_store_time_row *rows;
    size_t n;

    k->sustained = k->looking = k->behind = 1;
    for (uint32_t s = 0; s < im->c->n_signatures; s++) {
        EK_TRY(ek_store_times(im->store, d->id, im->c->signatures[s], &rows, &n));
        read_sustained(im, im->c->signatures[s], rows, n, k);
        free(rows);
    }
    if (k->refill_s == 0)
        k->refill_s = k->recovery_s;
    return EK_OK;
}

static enum ek_status add_class(struct importer *im, const struct ek_store_device *d)
{
    struct ek_cost_class *k = &im->c->classes[im->c->n_classes++];
    const char *colon = strrchr(d->name, ':');

    copy(k->name, sizeof(k->name), d->name);
    copy(k->backend, sizeof(k->backend), d->backend);
    copy(k->model, sizeof(k->model), d->model);
    copy(k->memory_group, sizeof(k->memory_group), d->memory_group);
    k->memory = budget_of(d);
    k->overhead = d->overhead;
    k->budgeted = d->budget > 0;
    k->count = 1;
    EK_TRY(slow_factor(im, d, EK_PHASE_PREFILL, &k->slow_prefill));
    EK_TRY(slow_factor(im, d, EK_PHASE_DECODE, &k->slow_decode));
    EK_TRY(sustained(im, d, k));
    k->devices = ek_calloc(1, sizeof(*k->devices));
    if (k->devices == NULL)
        return EK_ENOMEM;
    copy(k->devices->name, sizeof(k->devices->name), d->name);
    copy(k->devices->uuid, sizeof(k->devices->uuid), d->uuid);
    copy(k->devices->threads, sizeof(k->devices->threads), d->threads);
    k->devices->index = colon ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
    if (k->memory == 0)
        return ek_error(EK_EENV, "the profile does not say how much memory %s has", d->name);
    return EK_OK;
}

/* ---- Modules ------------------------------------------------------------------------------------
 */
enum ek_status ek_costs_add_modules(struct ek_costs *c, const struct ek_model *m, enum ek_dtype act,
                                    enum ek_dtype cache)
{
    c->modules = ek_calloc(m->n_modules, sizeof(*c->modules));
    if (c->modules == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        struct ek_cost_module *o = &c->modules[i];
        if (strlen(mod->name) >= sizeof(o->name))
            return ek_error(EK_EUNSUPPORTED, "%s: module name \"%.60s...\" is too long", m->name,
                            mod->name);
        strcpy(o->name, mod->name);
        EK_TRY(ek_costs_signature(c, mod->signature, &o->sig));
        o->kind = mod->kind;
        o->weights = mod->weight_bytes;
        o->kv = ek_module_kv_bytes(m, mod, cache);
        o->boundary = ek_module_boundary_bytes(m, mod, act);
        o->side = mod->side;
        o->tied_to = mod->tied_to;
        o->layer = mod->layer;
        c->n_modules++;
    }
    copy(c->model_name, sizeof(c->model_name), m->name);
    copy(c->model_hash, sizeof(c->model_hash), m->hash);
    copy(c->architecture, sizeof(c->architecture), m->config.architecture);
    snprintf(c->workload.act, sizeof(c->workload.act), "%s", ek_dtype_name(act));
    snprintf(c->workload.cache, sizeof(c->workload.cache), "%s", ek_dtype_name(cache));
    return EK_OK;
}

/* ---- Types --------------------------------------------------------------------------------------
 */
/* Some row has the types. */
static enum ek_status check_types(const struct importer *im, const struct ek_store_time_row *rows,
                                  size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (of_types(im, rows[i].key.act, rows[i].key.cache))
            return EK_OK;
    return ek_error(EK_EENV,
                    "the profile has no times of %s's layers on %s with --act %s --cache %s, only "
                    "such as --act %s --cache %s",
                    im->m->name, im->devices[0].name, ek_dtype_name(im->act),
                    ek_dtype_name(im->cache), rows[0].key.act, rows[0].key.cache);
}

/* The types of activations and cache: those asked for, else those of the first rows. */
static enum ek_status choose_types(struct importer *im)
{
    struct ek_store_time_row *rows = NULL;
    size_t n = 0;
    enum ek_status st = EK_OK;

    for (size_t i = 0; i < im->m->n_modules && n == 0; i++) {
        if (im->m->modules[i].kind != EK_MODULE_LAYER)
            continue;
        free(rows);
        EK_TRY(
            ek_store_times(im->store, im->devices[0].id, im->m->modules[i].signature, &rows, &n));
    }
    if (n == 0)
        st = ek_error(EK_EENV, "the profile has no times of %s's layers on %s", im->m->name,
                      im->devices[0].name);
    else if (!ek_dtype_from_name(im->choice->act ? im->choice->act : rows[0].key.act, &im->act) ||
             !ek_dtype_from_name(im->choice->cache ? im->choice->cache : rows[0].key.cache,
                                 &im->cache))
        st = ek_error(EK_EFORMAT, "the profile has rows of unknown types");
    else
        st = check_types(im, rows, n);
    free(rows);
    return st;
}

/* ---- Times --------------------------------------------------------------------------------------
 */
static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* How far the samples behind a curve lie apart, and how many they are. */
static enum ek_status note_spread(struct ek_cost_curve *c)
{
    double *v = c->constant ? NULL : ek_calloc(c->n, sizeof(*v));

    if (c->constant)
        return EK_OK;
    if (v == NULL)
        return EK_ENOMEM;
    c->samples = UINT32_MAX;
    for (size_t i = 0; i < c->n; i++) {
        const struct ek_store_time *t = &c->rows[i].time;
        v[i] = t->median_s > 0 ? t->mad_s / t->median_s : 0;
        c->samples = t->n < c->samples ? t->n : c->samples;
    }
    qsort(v, c->n, sizeof(*v), by_value);
    c->spread = v[c->n / 2];
    free(v);
    return EK_OK;
}

/* Is it a row of the curve of a phase? Of prefill those of one sequence. */
static bool of_curve(const struct importer *im, const struct ek_store_key *k, enum ek_phase phase,
                     const char *launch)
{
    return k->phase == phase && strcmp(k->launch, launch) == 0 && of_types(im, k->act, k->cache) &&
           (phase == EK_PHASE_DECODE || k->batch == 1);
}

/* Seconds for each token of context that a step of two sequences has over one that attends to as
 * much: the first is the end of a prompt, and the other begins, with what is left of the longest
 * step. */
static double seconds_of_context(const struct ek_cost_curve *c, const struct ek_store_time_row *row,
                                 double width)
{
    double tokens = row->key.tokens, context = row->key.context, rest = width - tokens;
    double attended = tokens * (context - tokens / 2) + rest * rest / 2;
    double one = attended / width + width / 2, more = context + rest - one;
    struct ek_point at = {EK_PHASE_PREFILL, 1, (uint32_t)width, (uint32_t)lround(one)};

    if (more < 1)
        return 0;
    return fmax((row->time.median_s - ek_interpolate(c->rows, c->n, &at, NULL)) / more, 0);
}

static void note_contexts(const struct importer *im, const struct ek_store_time_row *rows, size_t n,
                          struct ek_cost_curve *c)
{
    uint32_t width = 0;

    for (size_t i = 0; i < c->n; i++)
        width = c->rows[i].key.tokens > width ? c->rows[i].key.tokens : width;
    for (size_t i = 0; i < n; i++) {
        const struct ek_store_key *k = &rows[i].key;
        if (k->phase != EK_PHASE_PREFILL || k->batch != 2 || k->tokens >= width ||
            !of_types(im, k->act, k->cache))
            continue;
        *(k->tokens < width / 4 ? &c->short_context_s : &c->context_s) =
            seconds_of_context(c, &rows[i], width);
    }
}

/* Rows of one phase; decode as it is run: replayed from a graph where that was measured. */
static enum ek_status pick(const struct importer *im, const struct ek_store_time_row *rows,
                           size_t n, enum ek_phase phase, struct ek_cost_curve *c)
{
    const char *launch = "eager";

    for (size_t i = 0; i < n; i++)
        if (of_curve(im, &rows[i].key, phase, "graph"))
            launch = "graph";
    c->rows = ek_calloc(n ? n : 1, sizeof(*c->rows));
    if (c->rows == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++)
        if (of_curve(im, &rows[i].key, phase, launch))
            c->rows[c->n++] = rows[i];
    if (c->n == 0) { /* a phase without rows costs nothing (decode of a vision tower) */
        c->n = 1;
        c->constant = true;
    } else if (phase == EK_PHASE_PREFILL) {
        note_contexts(im, rows, n, c);
    }
    return note_spread(c);
}

static void level(struct ek_cost_curve *c, enum ek_phase phase)
{
    double s = ek_typical(c->rows, c->n, phase);

    for (size_t i = 0; !c->constant && i < c->n; i++)
        c->rows[i].time.median_s = s;
    c->context_s = c->short_context_s = 0;
}

static bool has_rows(const struct importer *im, const struct ek_store_time_row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (of_types(im, rows[i].key.act, rows[i].key.cache))
            return true;
    return false;
}

static const char *module_of(const struct importer *im, uint32_t sig)
{
    size_t i = 0;

    while (i + 1 < im->c->n_modules && im->c->modules[i].sig != sig)
        i++;
    return im->c->modules[i].name;
}

/* Of the modules that are part of both phases, one without times of either was not measured. */
static bool is_half(const struct importer *im, uint32_t sig, const struct ek_cost_times *t)
{
    bool text = false;

    for (size_t i = 0; i < im->c->n_modules; i++)
        text = text || (im->c->modules[i].sig == sig && !ek_cost_module_sees(&im->c->modules[i]));
    return text && t->prefill.constant != t->decode.constant;
}

static enum ek_status add_times(struct importer *im, uint32_t cls, uint32_t sig)
{
    size_t cap = im->c->n_times, n;
    struct ek_store_time_row *rows;
    struct ek_cost_times *t;
    enum ek_status st;

    EK_TRY(ek_store_times(im->store, im->devices[cls].id, im->c->signatures[sig], &rows, &n));
    if (!has_rows(im, rows, n)) {
        free(rows);
        return EK_OK;
    }
    EK_GOTO(ek_grow((void **)&im->c->times, &cap, im->c->n_times + 1, sizeof(*im->c->times),
                    (size_t)1 << 20),
            st, end);
    t = &im->c->times[im->c->n_times++];
    *t = (struct ek_cost_times){.cls = cls, .sig = sig, .tp = 1};
    EK_GOTO(pick(im, rows, n, EK_PHASE_PREFILL, &t->prefill), st, end);
    EK_GOTO(pick(im, rows, n, EK_PHASE_DECODE, &t->decode), st, end);
    if (is_half(im, sig, t)) {
        ek_note("%s has no times of %s for a %s: profile again, or it is not planned there",
                im->devices[cls].name, module_of(im, sig),
                t->prefill.constant ? "prefill" : "decode step");
        im->c->n_times--;
        free(t->prefill.rows);
        free(t->decode.rows);
    }
    if (sig == EK_SIG_STAGE || sig == EK_SIG_ENDING) {
        level(&t->prefill, EK_PHASE_PREFILL);
        level(&t->decode, EK_PHASE_DECODE);
    }
    st = EK_OK;
end:
    free(rows);
    return st;
}

/* ---- Memory -------------------------------------------------------------------------------------
 */
static uint64_t blocks(const struct ek_store_memory *m)
{
    return (uint64_t)m->batch * ((m->context + CACHE_PAGE - 1) / CACHE_PAGE);
}

static enum ek_status fill_memory(const struct importer *im, const struct ek_store_memory *rows,
                                  size_t n, struct ek_cost_memory *m)
{
    m->points = ek_calloc(n, sizeof(*m->points));
    if (m->points == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        const struct ek_store_memory *r = &rows[i];
        uint64_t b = blocks(r), kv = b ? (r->kv + b - 1) / b : 0;
        if (!of_types(im, r->act, r->cache))
            continue;
        m->points[m->n++] = (struct ek_cost_space){r->batch,       r->tokens,    r->context,
                                                   r->activations, r->workspace, r->comm};
        m->weights = r->weights > m->weights ? r->weights : m->weights;
        if (m->kv_block == 0 || (kv && kv < m->kv_block)) /* of the largest cache: least padding */
            m->kv_block = kv;
    }
    return EK_OK;
}

static enum ek_status add_memory(struct importer *im, uint32_t cls, uint32_t sig)
{
    size_t cap = im->c->n_memory, n;
    struct ek_store_memory *rows;
    struct ek_cost_memory *m;
    enum ek_status st;

    EK_TRY(ek_store_memories(im->store, im->devices[cls].id, im->c->signatures[sig], &rows, &n));
    EK_GOTO(ek_grow((void **)&im->c->memory, &cap, im->c->n_memory + 1, sizeof(*im->c->memory),
                    (size_t)1 << 20),
            st, end);
    m = &im->c->memory[im->c->n_memory];
    *m = (struct ek_cost_memory){.cls = cls, .sig = sig, .tp = 1};
    if (n) {
        EK_GOTO(fill_memory(im, rows, n, m), st, end);
        im->c->n_memory += m->n > 0;
        if (m->n == 0)
            free(m->points);
    }
end:
    free(rows);
    return st;
}

/* ---- Links --------------------------------------------------------------------------------------
 */
static ptrdiff_t class_named(const struct ek_costs *c, const char *name)
{
    for (size_t i = 0; i < c->n_classes; i++)
        if (strcmp(c->classes[i].name, name) == 0)
            return (ptrdiff_t)i;
    return -1;
}

static double typical(double alpha, double beta)
{
    return alpha + 65536 / beta;
}

/* Of several mechanisms the fastest for a hand-over of ordinary size. */
static enum ek_status add_links(struct importer *im)
{
    struct ek_store_link *links;
    size_t n, cap = 0;
    enum ek_status st;

    EK_TRY(ek_store_links(im->store, &links, &n));
    for (size_t i = 0; i < n; i++) {
        ptrdiff_t from = class_named(im->c, links[i].from), to = class_named(im->c, links[i].to);
        struct ek_cost_link *l;
        if (from >= 0 && from == to && strcmp(links[i].mechanism, EK_STORE_RETURN) == 0)
            im->c->classes[from].return_s = links[i].alpha_s;
        if (from < 0 || to < 0 || from == to || links[i].beta_bytes_s <= 0 ||
            strchr(links[i].mechanism, ' ') != NULL)
            continue;
        l = (struct ek_cost_link *)ek_costs_link(im->c, (uint32_t)from, (uint32_t)to);
        if (l && typical(l->alpha, l->beta) <= typical(links[i].alpha_s, links[i].beta_bytes_s))
            continue;
        if (l == NULL) {
            EK_GOTO(ek_grow((void **)&im->c->links, &cap, im->c->n_links + 1, sizeof(*l), 65536),
                    st, end);
            l = &im->c->links[im->c->n_links++];
        }
        *l = (struct ek_cost_link){.from = (uint32_t)from,
                                   .to = (uint32_t)to,
                                   .alpha = links[i].alpha_s > 0 ? links[i].alpha_s : 0,
                                   .beta = links[i].beta_bytes_s};
        copy(l->mechanism, sizeof(l->mechanism), links[i].mechanism);
    }
    st = EK_OK;
end:
    free(links);
    return st;
}

/* Stages send at the same time: a link has the bandwidth that its mechanism kept with all pairs at
 * work, where that was measured and is less. */
static enum ek_status slow_links(struct importer *im)
{
    struct ek_store_link *links;
    size_t n;

    EK_TRY(ek_store_links(im->store, &links, &n));
    for (size_t i = 0; i < n; i++) {
        ptrdiff_t from = class_named(im->c, links[i].from), to = class_named(im->c, links[i].to);
        const char *all = strstr(links[i].mechanism, EK_STORE_ALL);
        struct ek_cost_link *l;
        if (from < 0 || to < 0 || all == NULL)
            continue;
        l = (struct ek_cost_link *)ek_costs_link(im->c, (uint32_t)from, (uint32_t)to);
        if (l && strlen(l->mechanism) == (size_t)(all - links[i].mechanism) &&
            strncmp(l->mechanism, links[i].mechanism, strlen(l->mechanism)) == 0 &&
            links[i].beta_bytes_s > 0 && links[i].beta_bytes_s < l->beta)
            l->beta = links[i].beta_bytes_s;
    }
    free(links);
    return EK_OK;
}

/* ---- The whole ----------------------------------------------------------------------------------
 */
static enum ek_status import(struct importer *im)
{
    struct ek_costs *c = im->c;

    EK_TRY(choose_devices(im));
    EK_TRY(choose_types(im));
    EK_TRY(ek_costs_stage_signatures(c));
    EK_TRY(ek_costs_add_modules(c, im->m, im->act, im->cache));
    c->classes = ek_calloc(im->n_devices, sizeof(*c->classes));
    if (c->classes == NULL)
        return EK_ENOMEM;
    for (size_t d = 0; d < im->n_devices; d++)
        EK_TRY(add_class(im, &im->devices[d]));
    for (uint32_t d = 0; d < im->n_devices; d++)
        for (uint32_t s = 0; s < c->n_signatures; s++) {
            EK_TRY(add_times(im, d, s));
            EK_TRY(add_memory(im, d, s));
        }
    EK_TRY(add_links(im));
    EK_TRY(slow_links(im));
    EK_TRY(ek_store_identity(im->store, c->profile_identity));
    return ek_costs_check(c);
}

enum ek_status ek_costs_from_profile(const struct ek_model *m, struct ek_store *store,
                                     const struct ek_profile_choice *choice, struct ek_costs **out)
{
    struct importer im = {.m = m, .store = store, .choice = choice};
    enum ek_status st;

    im.c = ek_calloc(1, sizeof(*im.c));
    if (im.c == NULL)
        return EK_ENOMEM;
    im.c->workload = (struct ek_workload)EK_WORKLOAD_INIT;
    im.c->page = CACHE_PAGE;
    copy(im.c->file, sizeof(im.c->file), "profile");
    copy(im.c->source, sizeof(im.c->source), "measured profile");
    st = import(&im);
    free(im.devices);
    if (st != EK_OK) {
        ek_costs_free(im.c);
        return st;
    }
    *out = im.c;
    return EK_OK;
}
