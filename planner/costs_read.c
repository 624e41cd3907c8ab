/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Reading a costs file (docs/costs.md). Everything in it is checked here or in ek_costs_check.
 */
#include "planner/planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE    ((size_t)256 << 20)
#define MAX_POINTS  4096
#define MAX_ROWS    1000000
#define MAX_SECONDS 1e6

struct reader {
    struct ek_costs *c;
    char prefix[64]; /* "classes[3]." */
};

static struct ek_json_at at(struct reader *r)
{
    return (struct ek_json_at){r->c->file, r->prefix};
}

static enum ek_status field_error(struct reader *r, const char *key, const char *what)
{
    return ek_error(EK_EFORMAT, "%s: %s%s %s", r->c->file, r->prefix, key, what);
}

static enum ek_status copy_string(struct reader *r, const char *key, const char *s, char *out,
                                  size_t cap)
{
    if (strlen(s) >= cap)
        return ek_error(EK_EFORMAT, "%s: %s%s is longer than %zu characters", r->c->file, r->prefix,
                        key, cap - 1);
    strcpy(out, s);
    return EK_OK;
}

static enum ek_status read_string(struct reader *r, const json_t *o, const char *key, bool optional,
                                  char *out, size_t cap)
{
    const char *s = NULL;

    if (optional)
        EK_TRY(ek_json_opt_string(o, at(r), key, &s));
    else
        EK_TRY(ek_json_string(o, at(r), key, &s));
    return s ? copy_string(r, key, s, out, cap) : EK_OK;
}

/* Bytes: a whole number, or a text with a unit such as "24GiB". */
static enum ek_status read_bytes(struct reader *r, const json_t *o, const char *key, bool optional,
                                 uint64_t min, uint64_t *out)
{
    const json_t *v = json_object_get(o, key);

    if (json_is_string(v)) {
        if (ek_parse_size(json_string_value(v), 0, out) != EK_OK || *out > EK_PLAN_MAX_MEMORY)
            return field_error(r, key, "is not a size");
        return EK_OK;
    }
    if (optional)
        return ek_json_opt_u64(o, at(r), key, min, EK_PLAN_MAX_MEMORY, out);
    return ek_json_u64(o, at(r), key, min, EK_PLAN_MAX_MEMORY, out);
}

static enum ek_status read_u32(struct reader *r, const json_t *o, const char *key, uint32_t min,
                               uint32_t max, uint32_t *out)
{
    uint64_t v = *out;

    EK_TRY(ek_json_opt_u64(o, at(r), key, min, max, &v));
    *out = (uint32_t)v;
    return EK_OK;
}

static enum ek_status read_class_name(struct reader *r, const json_t *o, const char *key,
                                      uint32_t *out)
{
    const char *s;

    EK_TRY(ek_json_string(o, at(r), key, &s));
    for (size_t i = 0; i < r->c->n_classes; i++)
        if (strcmp(r->c->classes[i].name, s) == 0) {
            *out = (uint32_t)i;
            return EK_OK;
        }
    return ek_error(EK_EFORMAT, "%s: %s%s names the unknown class \"%.60s\"", r->c->file, r->prefix,
                    key, s);
}

static enum ek_status read_tp(struct reader *r, const json_t *o, uint32_t *out)
{
    *out = 1;
    EK_TRY(read_u32(r, o, "tp", 1, EK_PLAN_MAX_TP, out));
    if ((*out & (*out - 1)) != 0)
        return field_error(r, "tp", "must be 1, 2, 4 or 8");
    return EK_OK;
}

/* A signature that some module has (or "stage"). */
static enum ek_status read_signature(struct reader *r, const json_t *o, uint32_t *out)
{
    const char *s;

    EK_TRY(ek_json_string(o, at(r), "signature", &s));
    for (size_t i = 0; i < r->c->n_signatures; i++)
        if (strcmp(r->c->signatures[i], s) == 0) {
            *out = (uint32_t)i;
            return EK_OK;
        }
    return ek_error(EK_EFORMAT, "%s: %ssignature \"%.60s\" is of no module", r->c->file, r->prefix,
                    s);
}

/* ---- Classes ------------------------------------------------------------------------------------
 */
static enum ek_status read_devices(struct reader *r, const json_t *o, struct ek_cost_class *k)
{
    const json_t *list = json_object_get(o, "devices"), *d;
    char prefix[64];

    k->devices = ek_calloc(k->count, sizeof(*k->devices));
    if (k->devices == NULL)
        return EK_ENOMEM;
    if (list && (!json_is_array(list) || json_array_size(list) != k->count))
        return field_error(r, "devices", "must be an array of count entries");
    strcpy(prefix, r->prefix);
    for (uint32_t i = 0; i < k->count; i++) {
        struct ek_cost_device *dev = &k->devices[i];
        if (list == NULL) {
            snprintf(dev->name, sizeof(dev->name), "%.50s:%u", k->name, i);
            dev->index = i;
            continue;
        }
        d = json_array_get(list, i);
        snprintf(r->prefix, sizeof(r->prefix), "%.40sdevices[%u].", prefix, i);
        if (!json_is_object(d))
            return field_error(r, "", "must be an object");
        EK_TRY(read_string(r, d, "name", false, dev->name, sizeof(dev->name)));
        EK_TRY(read_string(r, d, "uuid", true, dev->uuid, sizeof(dev->uuid)));
        EK_TRY(read_string(r, d, "threads", true, dev->threads, sizeof(dev->threads)));
        EK_TRY(read_u32(r, d, "index", 0, 65535, &dev->index));
        if (dev->name[0] == '\0')
            return field_error(r, "name", "is empty");
    }
    strcpy(r->prefix, prefix);
    return EK_OK;
}

static enum ek_status read_calibration(struct reader *r, const json_t *o, struct ek_calibration *f)
{
    const json_t *v = json_object_get(o, "calibration");

    if (v == NULL)
        return EK_OK;
    EK_TRY(ek_json_object(o, at(r), "calibration", &v));
    EK_TRY(ek_json_real(v, at(r), "prefill", 1e-3, 1e3, &f->prefill));
    EK_TRY(ek_json_real(v, at(r), "decode", 1e-3, 1e3, &f->decode));
    return read_u32(r, v, "n", 1, UINT32_MAX, &f->n);
}

static enum ek_status read_class(struct reader *r, const json_t *o)
{
    struct ek_cost_class *k = &r->c->classes[r->c->n_classes];
    uint32_t count = 1;

    EK_TRY(read_string(r, o, "name", false, k->name, sizeof(k->name)));
    if (k->name[0] == '\0')
        return field_error(r, "name", "is empty");
    EK_TRY(read_u32(r, o, "count", 1, EK_PLAN_MAX_DEVICES, &count));
    EK_TRY(read_bytes(r, o, "memory", false, 1, &k->memory));
    EK_TRY(read_bytes(r, o, "overhead", true, 0, &k->overhead));
    EK_TRY(read_bytes(r, o, "tp_reserve", true, 0, &k->tp_reserve));
    strcpy(k->backend, "cuda");
    EK_TRY(read_string(r, o, "backend", true, k->backend, sizeof(k->backend)));
    EK_TRY(read_string(r, o, "model", true, k->model, sizeof(k->model)));
    EK_TRY(read_string(r, o, "memory_group", true, k->memory_group, sizeof(k->memory_group)));
    k->slow_prefill = k->slow_decode = 1;
    EK_TRY(ek_json_opt_real(o, at(r), "slow_prefill", 1, 1000, &k->slow_prefill));
    EK_TRY(ek_json_opt_real(o, at(r), "slow_decode", 1, 1000, &k->slow_decode));
    k->sustained = 1;
    EK_TRY(ek_json_opt_real(o, at(r), "sustained", 1, 1000, &k->sustained));
    EK_TRY(ek_json_opt_real(o, at(r), "burst_s", 0, 1000, &k->burst_s));
    k->looking = 1;
    EK_TRY(ek_json_opt_real(o, at(r), "looking", 1, 1000, &k->looking));
    k->behind = 1;
    EK_TRY(ek_json_opt_real(o, at(r), "behind", 1, 1000, &k->behind));
    EK_TRY(ek_json_opt_real(o, at(r), "recovery_s", 0, 1000, &k->recovery_s));
    k->refill_s = k->recovery_s;
    EK_TRY(ek_json_opt_real(o, at(r), "refill_s", 0, 1000, &k->refill_s));
    EK_TRY(ek_json_opt_real(o, at(r), "return_s", 0, 1, &k->return_s));
    EK_TRY(ek_json_opt_bool(o, at(r), "budgeted", &k->budgeted));
    EK_TRY(ek_json_opt_bool(o, at(r), "estimate", &k->estimate));
    EK_TRY(read_calibration(r, o, &k->calibration));
    k->count = count;
    r->c->n_classes++;
    return read_devices(r, o, k);
}

/* ---- Modules ------------------------------------------------------------------------------------
 */
static enum ek_status read_kind(struct reader *r, const json_t *o, struct ek_cost_module *m)
{
    const char *s = "layer";

    EK_TRY(ek_json_opt_string(o, at(r), "kind", &s));
    for (size_t i = 0; i < EK_N_MODULE_KINDS; i++)
        if (strcmp(ek_module_kind_names[i], s) == 0) {
            m->kind = (enum ek_module_kind)i;
            m->side = m->kind >= EK_MODULE_VISION && m->kind <= EK_MODULE_VECTOR;
            return EK_OK;
        }
    return ek_error(EK_EFORMAT, "%s: %skind \"%.40s\" is unknown", r->c->file, r->prefix, s);
}

static enum ek_status read_tied(struct reader *r, const json_t *o, struct ek_cost_module *m)
{
    const char *s = NULL;

    m->tied_to = -1;
    EK_TRY(ek_json_opt_string(o, at(r), "tied_to", &s));
    if (s == NULL)
        return EK_OK;
    for (size_t i = 0; i < r->c->n_modules; i++)
        if (strcmp(r->c->modules[i].name, s) == 0) {
            m->tied_to = (int32_t)i;
            return EK_OK;
        }
    return field_error(r, "tied_to", "names no earlier module");
}

static enum ek_status read_module(struct reader *r, const json_t *o)
{
    struct ek_cost_module *m = &r->c->modules[r->c->n_modules];
    const char *signature;
    const char *dot;
    uint64_t layer = 0;

    EK_TRY(read_string(r, o, "name", false, m->name, sizeof(m->name)));
    if (m->name[0] == '\0')
        return field_error(r, "name", "is empty");
    EK_TRY(read_kind(r, o, m));
    EK_TRY(ek_json_opt_bool(o, at(r), "side", &m->side));
    EK_TRY(read_bytes(r, o, "weights", true, 0, &m->weights));
    EK_TRY(ek_json_opt_u64(o, at(r), "kv", 0, (uint64_t)1 << 32, &m->kv));
    EK_TRY(ek_json_opt_u64(o, at(r), "boundary", 0, (uint64_t)1 << 32, &m->boundary));
    EK_TRY(read_tied(r, o, m));
    signature = m->name;
    EK_TRY(ek_json_opt_string(o, at(r), "signature", &signature));
    EK_TRY(ek_costs_signature(r->c, signature, &m->sig));
    m->layer = -1;
    dot = strrchr(m->name, '.');
    if (m->kind == EK_MODULE_LAYER && dot &&
        ek_parse_u64(dot + 1, "layer", 0, EK_MAX_LAYERS, &layer) == EK_OK)
        m->layer = (int32_t)layer;
    r->c->n_modules++;
    return EK_OK;
}

/* ---- Times and memory ---------------------------------------------------------------------------
 */
static enum ek_status number(struct reader *r, const json_t *v, const char *key, double min,
                             double max, double *out)
{
    double d;

    if (!json_is_number(v))
        return field_error(r, key, "must hold numbers");
    d = json_number_value(v);
    if (!isfinite(d) || d < min || d > max)
        return ek_error(EK_EFORMAT, "%s: %s%s holds %g, which is not from %g to %g", r->c->file,
                        r->prefix, key, d, min, max);
    *out = d;
    return EK_OK;
}

static int compare_rows(const void *a, const void *b)
{
    const struct ek_store_key *p = &((const struct ek_store_time_row *)a)->key;
    const struct ek_store_key *q = &((const struct ek_store_time_row *)b)->key;

    if (p->batch != q->batch)
        return p->batch < q->batch ? -1 : 1;
    if (p->tokens != q->tokens)
        return p->tokens < q->tokens ? -1 : 1;
    return p->context < q->context ? -1 : p->context > q->context;
}

/* [tokens, context, seconds] in prefill, [sequences, context, seconds] in decode. */
static enum ek_status read_row(struct reader *r, const json_t *v, const char *key,
                               enum ek_phase phase, struct ek_store_time_row *row)
{
    double x, context;

    if (!json_is_array(v) || json_array_size(v) != 3)
        return field_error(r, key, "must be a number or arrays of [tokens, context, seconds]");
    EK_TRY(number(r, json_array_get(v, 0), key, 1, 1e9, &x));
    EK_TRY(number(r, json_array_get(v, 1), key, 0, 1e9, &context));
    row->key.phase = phase;
    row->key.batch = phase == EK_PHASE_DECODE ? (uint32_t)x : 1;
    row->key.tokens = phase == EK_PHASE_DECODE ? 1 : (uint32_t)x;
    row->key.context = (uint32_t)context;
    return number(r, json_array_get(v, 2), key, 0, MAX_SECONDS, &row->time.median_s);
}

/* A number is the time whatever the shape. */
static enum ek_status read_curve(struct reader *r, const json_t *o, const char *key,
                                 enum ek_phase phase, struct ek_cost_curve *c)
{
    const json_t *v = json_object_get(o, key);
    size_t n = json_is_array(v) ? json_array_size(v) : 1;

    if (n == 0 || n > MAX_POINTS)
        return field_error(r, key, "must have 1 to 4096 points");
    c->rows = ek_calloc(n, sizeof(*c->rows));
    if (c->rows == NULL)
        return EK_ENOMEM;
    c->n = n;
    c->constant = !json_is_array(v);
    if (c->constant)
        return number(r, v, key, 0, MAX_SECONDS, &c->rows[0].time.median_s);
    for (size_t i = 0; i < n; i++)
        EK_TRY(read_row(r, json_array_get(v, i), key, phase, &c->rows[i]));
    qsort(c->rows, n, sizeof(*c->rows), compare_rows);
    for (size_t i = 1; i < n; i++)
        if (compare_rows(&c->rows[i - 1], &c->rows[i]) == 0)
            return field_error(r, key, "holds the same point twice");
    return EK_OK;
}

static enum ek_status read_times(struct reader *r, const json_t *o)
{
    struct ek_cost_times *t = &r->c->times[r->c->n_times++];

    EK_TRY(read_class_name(r, o, "class", &t->cls));
    EK_TRY(read_signature(r, o, &t->sig));
    EK_TRY(read_tp(r, o, &t->tp));
    EK_TRY(read_curve(r, o, "prefill", EK_PHASE_PREFILL, &t->prefill));
    EK_TRY(ek_json_opt_real(o, at(r), "context_s", 0, MAX_SECONDS, &t->prefill.context_s));
    t->prefill.short_context_s = t->prefill.context_s;
    EK_TRY(
        ek_json_opt_real(o, at(r), "short_context_s", 0, MAX_SECONDS, &t->prefill.short_context_s));
    return read_curve(r, o, "decode", EK_PHASE_DECODE, &t->decode);
}

static enum ek_status read_space(struct reader *r, const json_t *row, struct ek_cost_space *s)
{
    double v[6] = {0};

    if (!json_is_array(row) || json_array_size(row) != 6)
        return field_error(r, "points",
                           "must be arrays of [batch, tokens, context, activations, workspace, "
                           "comm]");
    for (size_t i = 0; i < 6; i++)
        EK_TRY(number(r, json_array_get(row, i), "points", i < 2 ? 1 : 0,
                      i < 3 ? 1e9 : (double)EK_PLAN_MAX_MEMORY, &v[i]));
    s->batch = (uint32_t)v[0];
    s->tokens = (uint32_t)v[1];
    s->context = (uint32_t)v[2];
    s->activations = (uint64_t)ceil(v[3]);
    s->workspace = (uint64_t)ceil(v[4]);
    s->comm = (uint64_t)ceil(v[5]);
    return EK_OK;
}

static enum ek_status read_memory(struct reader *r, const json_t *o)
{
    struct ek_cost_memory *m = &r->c->memory[r->c->n_memory++];
    const json_t *list;
    size_t n;

    EK_TRY(read_class_name(r, o, "class", &m->cls));
    EK_TRY(read_signature(r, o, &m->sig));
    EK_TRY(read_tp(r, o, &m->tp));
    EK_TRY(read_bytes(r, o, "weights", true, 0, &m->weights));
    EK_TRY(ek_json_opt_u64(o, at(r), "kv_block", 0, (uint64_t)1 << 32, &m->kv_block));
    EK_TRY(ek_json_array(o, at(r), "points", &list));
    n = json_array_size(list);
    if (n == 0 || n > MAX_POINTS)
        return field_error(r, "points", "must have 1 to 4096 entries");
    m->points = ek_calloc(n, sizeof(*m->points));
    if (m->points == NULL)
        return EK_ENOMEM;
    for (; m->n < n; m->n++)
        EK_TRY(read_space(r, json_array_get(list, m->n), &m->points[m->n]));
    return EK_OK;
}

/* ---- Stages and links ---------------------------------------------------------------------------
 */
static enum ek_status read_stage(struct reader *r, const json_t *o)
{
    struct ek_cost_stage *s = &r->c->stages[r->c->n_stages++];
    uint32_t chain = 0;
    uint64_t v;

    for (size_t i = 0; i < r->c->n_modules; i++)
        chain += !r->c->modules[i].side;
    EK_TRY(read_class_name(r, o, "class", &s->cls));
    EK_TRY(read_tp(r, o, &s->tp));
    EK_TRY(ek_json_u64(o, at(r), "first", 0, chain ? chain - 1 : 0, &v));
    s->first = (uint32_t)v;
    EK_TRY(ek_json_u64(o, at(r), "last", s->first, chain ? chain - 1 : 0, &v));
    s->last = (uint32_t)v;
    EK_TRY(ek_json_real(o, at(r), "prefill_s", 0, MAX_SECONDS, &s->prefill_s));
    return ek_json_real(o, at(r), "decode_s", 0, MAX_SECONDS, &s->decode_s);
}

static enum ek_status read_link(struct reader *r, const json_t *o)
{
    struct ek_cost_link *l = &r->c->links[r->c->n_links++];

    EK_TRY(read_class_name(r, o, "from", &l->from));
    EK_TRY(read_class_name(r, o, "to", &l->to));
    EK_TRY(ek_json_real(o, at(r), "alpha_s", 0, 1e3, &l->alpha));
    EK_TRY(ek_json_real(o, at(r), "beta_bytes_s", 1, 1e18, &l->beta));
    EK_TRY(read_string(r, o, "mechanism", true, l->mechanism, sizeof(l->mechanism)));
    for (size_t i = 0; i + 1 < r->c->n_links; i++)
        if (r->c->links[i].from == l->from && r->c->links[i].to == l->to)
            return field_error(r, "", "is there twice");
    return EK_OK;
}

/* ---- The file -----------------------------------------------------------------------------------
 */
struct section {
    const char *key;
    enum ek_status (*read)(struct reader *r, const json_t *o);
    size_t array; /* offset of the pointer in ek_costs */
    size_t size, max;
    bool optional;
};
#define SECTION(field, type, fn, limit, opt)                                                       \
    {                                                                                              \
        .key = #field, .read = fn, .array = offsetof(struct ek_costs, field),                      \
        .size = sizeof(type), .max = limit, .optional = opt                                        \
    }
static const struct section sections[] = {
    SECTION(classes, struct ek_cost_class, read_class, EK_PLAN_MAX_CLASSES, false),
    SECTION(modules, struct ek_cost_module, read_module, EK_PLAN_MAX_MODULES, false),
    SECTION(times, struct ek_cost_times, read_times, MAX_ROWS, false),
    SECTION(memory, struct ek_cost_memory, read_memory, MAX_ROWS, true),
    SECTION(stages, struct ek_cost_stage, read_stage, MAX_ROWS, true),
    SECTION(links, struct ek_cost_link, read_link, EK_PLAN_MAX_CLASSES *EK_PLAN_MAX_CLASSES, true),
};

static enum ek_status read_section(struct reader *r, const json_t *root, const struct section *s)
{
    const json_t *list = json_object_get(root, s->key), *o;
    size_t n;
    void *items;

    r->prefix[0] = '\0';
    if (list == NULL && s->optional)
        return EK_OK;
    EK_TRY(ek_json_array(root, at(r), s->key, &list));
    n = json_array_size(list);
    if ((n == 0 && !s->optional) || n > s->max)
        return ek_error(EK_EFORMAT, "%s: %s must have %d to %zu entries, got %zu", r->c->file,
                        s->key, !s->optional, s->max, n);
    if (n == 0)
        return EK_OK;
    items = ek_calloc(n, s->size);
    if (items == NULL)
        return EK_ENOMEM;
    memcpy((char *)r->c + s->array, &items, sizeof(items));
    for (size_t i = 0; i < n; i++) {
        o = json_array_get(list, i);
        snprintf(r->prefix, sizeof(r->prefix), "%.20s[%zu].", s->key, i);
        if (!json_is_object(o))
            return field_error(r, "", "must be an object");
        EK_TRY(s->read(r, o));
    }
    r->prefix[0] = '\0';
    return EK_OK;
}

static enum ek_status read_workload(struct reader *r, const json_t *root)
{
    const json_t *o = json_object_get(root, "workload");
    struct ek_workload *w = &r->c->workload;
    enum ek_dtype dtype;

    if (o == NULL)
        return EK_OK;
    if (!json_is_object(o))
        return field_error(r, "workload", "must be an object");
    strcpy(r->prefix, "workload.");
    EK_TRY(read_u32(r, o, "batch", 1, 65536, &w->batch));
    EK_TRY(read_u32(r, o, "prompt", 0, 1 << 24, &w->prompt));
    EK_TRY(read_u32(r, o, "generate", 0, 1 << 24, &w->generate));
    EK_TRY(read_u32(r, o, "context", 0, 1 << 25, &w->context));
    EK_TRY(read_u32(r, o, "micro_batches", 0, 65536, &w->micro_batches));
    EK_TRY(read_u32(r, o, "prefill_chunk", 0, 1 << 24, &w->prefill_chunk));
    EK_TRY(read_u32(r, o, "images", 0, 4096, &w->images));
    EK_TRY(read_u32(r, o, "image_tokens", 0, 1 << 20, &w->image_tokens));
    EK_TRY(read_string(r, o, "cache", true, w->cache, sizeof(w->cache)));
    EK_TRY(read_string(r, o, "act", true, w->act, sizeof(w->act)));
    if (!ek_dtype_from_name(w->cache, &dtype) || !ek_dtype_is_cache(dtype))
        return field_error(r, "cache", "must be F32, F16, BF16 or F8_E4M3");
    if (!ek_dtype_from_name(w->act, &dtype) || !ek_dtype_is_act(dtype))
        return field_error(r, "act", "must be F32, F16 or BF16");
    r->prefix[0] = '\0';
    return EK_OK;
}

static int compare_stages(const void *a, const void *b)
{
    const struct ek_cost_stage *p = a, *q = b;
    uint32_t x[] = {p->cls, p->tp, p->first, p->last}, y[] = {q->cls, q->tp, q->first, q->last};

    for (size_t i = 0; i < EK_ARRAY_LEN(x); i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

static enum ek_status sort_stages(struct ek_costs *c)
{
    if (c->n_stages)
        qsort(c->stages, c->n_stages, sizeof(*c->stages), compare_stages);
    for (size_t i = 1; i < c->n_stages; i++)
        if (compare_stages(&c->stages[i - 1], &c->stages[i]) == 0)
            return ek_error(EK_EFORMAT, "%s: stages: %u to %u of class \"%s\" is there twice",
                            c->file, c->stages[i].first, c->stages[i].last,
                            c->classes[c->stages[i].cls].name);
    return EK_OK;
}

static enum ek_status read_head(struct reader *r, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const char *format;
    uint64_t version;

    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: not a JSON object", r->c->file);
    EK_TRY(ek_json_string(root, at(r), "format", &format));
    if (strcmp(format, "evenkeel-costs") != 0)
        return ek_error(EK_EFORMAT, "%s: format must be \"evenkeel-costs\", got \"%.40s\"",
                        r->c->file, format);
    EK_TRY(ek_json_u64(root, at(r), "version", 1, 1, &version));
    EK_TRY(read_string(r, root, "name", true, r->c->name, sizeof(r->c->name)));
    EK_TRY(read_string(r, root, "source", true, r->c->source, sizeof(r->c->source)));
    EK_TRY(read_string(r, root, "profile", true, r->c->profile_identity,
                       sizeof(r->c->profile_identity)));
    EK_TRY(ek_json_opt_bool(root, at(r), "estimate", &r->c->estimate));
    r->c->page = 1;
    EK_TRY(read_u32(r, root, "page", 1, 65536, &r->c->page));
    if (model == NULL)
        return EK_OK;
    if (!json_is_object(model))
        return field_error(r, "model", "must be an object");
    EK_TRY(read_string(r, model, "name", true, r->c->model_name, sizeof(r->c->model_name)));
    EK_TRY(read_string(r, model, "hash", true, r->c->model_hash, sizeof(r->c->model_hash)));
    return read_string(r, model, "architecture", true, r->c->architecture,
                       sizeof(r->c->architecture));
}

enum ek_status ek_costs_from_json(const json_t *root, const char *where, struct ek_costs **out)
{
    struct ek_costs *c = ek_calloc(1, sizeof(*c));
    struct reader r = {.c = c};
    enum ek_status st;

    if (c == NULL)
        return EK_ENOMEM;
    snprintf(c->file, sizeof(c->file), "%s", where);
    c->workload = (struct ek_workload)EK_WORKLOAD_INIT;
    EK_GOTO(ek_costs_stage_signatures(c), st, fail);
    EK_GOTO(read_head(&r, root), st, fail);
    EK_GOTO(read_workload(&r, root), st, fail);
    for (size_t i = 0; i < EK_ARRAY_LEN(sections); i++)
        EK_GOTO(read_section(&r, root, &sections[i]), st, fail);
    EK_GOTO(sort_stages(c), st, fail);
    EK_GOTO(ek_costs_check(c), st, fail);
    *out = c;
    return EK_OK;

fail:
    ek_costs_free(c);
    return st;
}

enum ek_status ek_costs_read(const char *path, struct ek_costs **out)
{
    json_t *root;
    enum ek_status st;

    EK_TRY(ek_json_read(path, MAX_FILE, &root));
    st = ek_costs_from_json(root, path, out);
    json_decref(root);
    return st;
}
