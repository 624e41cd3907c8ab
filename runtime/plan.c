/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading plan.json (docs/formats.md). A plan is hostile until it has been read whole: every name
 * is bounded, every number has a range, and what can be checked without the model is checked here.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PLAN_BYTES ((size_t)64 << 20)
#define MAX_TOKENS     ((uint64_t)1 << 28)
#define MAX_BATCH      ((uint64_t)1 << 16)
#define MAX_IMAGES     ((uint64_t)4096)
#define MAX_MODULES    ((size_t)8192)
#define MAX_NAME       255
#define MAX_BYTES      ((uint64_t)1 << 62)
#define MAX_SECONDS    1e9

static void stages_free(struct ek_plan *p)
{
    for (size_t i = 0; p->stages && i < p->n_stages; i++) {
        for (size_t k = 0; p->stages[i].modules && k < p->stages[i].n_modules; k++)
            free(p->stages[i].modules[k]);
        free(p->stages[i].modules);
    }
    free(p->stages);
}

void ek_plan_free(struct ek_plan *p)
{
    if (p == NULL)
        return;
    stages_free(p);
    free(p->devices);
    free(p->uuids);
    free(p->memory);
    free(p->factors);
    free(p->links);
    free(p);
}

/* A required string of at most cap - 1 bytes, printable. */
static enum ek_status read_text(const json_t *obj, struct ek_json_at at, const char *key, char *out,
                                size_t cap)
{
    const char *s;

    EK_TRY(ek_json_string(obj, at, key, &s));
    if (strlen(s) >= cap)
        return ek_error(EK_EFORMAT, "%s: %s%s is too long: %zu bytes, at most %zu", at.file,
                        at.prefix, key, strlen(s), cap - 1);
    for (const char *c = s; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return ek_error(EK_EFORMAT, "%s: %s%s has a control character", at.file, at.prefix,
                            key);
    memcpy(out, s, strlen(s) + 1);
    return EK_OK;
}

static enum ek_status read_opt_text(const json_t *obj, struct ek_json_at at, const char *key,
                                    char *out, size_t cap)
{
    const json_t *v = json_object_get(obj, key);

    return v == NULL || json_is_null(v) ? EK_OK : read_text(obj, at, key, out, cap);
}

static enum ek_status read_u32(const json_t *obj, struct ek_json_at at, const char *key,
                               uint64_t min, uint64_t max, uint32_t *out)
{
    uint64_t v;

    EK_TRY(ek_json_u64(obj, at, key, min, max, &v));
    *out = (uint32_t)v;
    return EK_OK;
}

static bool is_hex32(const char *s)
{
    return strlen(s) == 32 && strspn(s, "0123456789abcdef") == 32;
}

static enum ek_status read_hash(const json_t *obj, struct ek_json_at at, const char *key,
                                char out[33])
{
    EK_TRY(read_text(obj, at, key, out, 33));
    if (!is_hex32(out))
        return ek_error(EK_EFORMAT, "%s: %s%s must be 32 hex digits, got '%s'", at.file, at.prefix,
                        key, out);
    return EK_OK;
}

/* Activations are of one of three types; caches may be of a fourth. */
static enum ek_status read_float_type(const json_t *obj, struct ek_json_at at, const char *key,
                                      bool scaled, enum ek_dtype *out)
{
    const char *s;

    EK_TRY(ek_json_string(obj, at, key, &s));
    if (!ek_dtype_from_name(s, out) || !(scaled ? ek_dtype_is_cache(*out) : ek_dtype_is_act(*out)))
        return ek_error(EK_EFORMAT, "%s: %s%s must be F32, F16%s BF16%s, got '%.32s'", at.file,
                        at.prefix, key, scaled ? "," : " or", scaled ? " or F8_E4M3" : "", s);
    return EK_OK;
}

static enum ek_status read_head(const json_t *root, const char *where, struct ek_plan *p)
{
    struct ek_json_at at = {where, ""}, at_model = {where, "model."};
    const json_t *model;
    const char *format;
    uint64_t version;

    EK_TRY(ek_json_string(root, at, "format", &format));
    if (strcmp(format, "evenkeel-plan") != 0)
        return ek_error(EK_EFORMAT, "%s: format must be 'evenkeel-plan', got '%.64s'", where,
                        format);
    EK_TRY(ek_json_u64(root, at, "version", 0, INT32_MAX, &version));
    if (version != 1)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: version %llu of the plan format, this program reads 1", where,
                        (unsigned long long)version);
    EK_TRY(ek_json_object(root, at, "model", &model));
    EK_TRY(read_text(model, at_model, "name", p->model_name, sizeof(p->model_name)));
    return read_hash(model, at_model, "hash", p->model_hash);
}

static enum ek_status read_workload(const json_t *root, const char *where, struct ek_plan *p)
{
    struct ek_json_at at = {where, "workload."};
    const json_t *w;
    uint64_t images = 0, tokens = 0;

    EK_TRY(ek_json_object(root, (struct ek_json_at){where, ""}, "workload", &w));
    EK_TRY(read_u32(w, at, "batch", 1, MAX_BATCH, &p->batch));
    EK_TRY(read_u32(w, at, "prompt", 1, MAX_TOKENS, &p->prompt));
    EK_TRY(read_u32(w, at, "generate", 0, MAX_TOKENS, &p->generate));
    EK_TRY(read_u32(w, at, "context", 1, MAX_TOKENS, &p->context));
    EK_TRY(read_u32(w, at, "micro_batches", 1, p->batch, &p->micro_batches));
    EK_TRY(read_u32(w, at, "prefill_chunk", 1, MAX_TOKENS, &p->prefill_chunk));
    EK_TRY(read_float_type(w, at, "cache", true, &p->cache));
    EK_TRY(read_float_type(w, at, "act", false, &p->act));
    EK_TRY(ek_json_opt_u64(w, at, "images", 0, MAX_IMAGES, &images));
    EK_TRY(ek_json_opt_u64(w, at, "image_tokens", 0, MAX_TOKENS, &tokens));
    p->images = (uint32_t)images;
    p->image_tokens = (uint32_t)tokens;
    if ((uint64_t)p->prompt + p->generate > p->context)
        return ek_error(EK_EFORMAT,
                        "%s: workload.context is %u, less than prompt + generate = %u + %u", where,
                        p->context, p->prompt, p->generate);
    return EK_OK;
}

static ptrdiff_t device_by_name(const struct ek_plan *p, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(p->devices[i].name, name) == 0)
            return (ptrdiff_t)i;
    return -1;
}

static enum ek_status read_factors(const json_t *device, struct ek_json_at at,
                                   struct ek_plan_factors *f)
{
    const json_t *v = json_object_get(device, "calibration");
    char prefix[64];
    struct ek_json_at inside = {at.file, prefix};

    f->prefill = f->decode = 1;
    if (v == NULL || json_is_null(v))
        return EK_OK;
    EK_TRY(ek_json_object(device, at, "calibration", &v));
    snprintf(prefix, sizeof(prefix), "%scalibration.", at.prefix);
    EK_TRY(ek_json_opt_real(v, inside, "prefill", 1e-3, 1e3, &f->prefill));
    return ek_json_opt_real(v, inside, "decode", 1e-3, 1e3, &f->decode);
}

static enum ek_status read_device(const json_t *d, const char *where, struct ek_plan *p, size_t i)
{
    struct ek_device_spec *spec = &p->devices[i];
    char prefix[48];
    struct ek_json_at at = {where, prefix};
    uint64_t index = 0;

    snprintf(prefix, sizeof(prefix), "devices[%zu].", i);
    if (!json_is_object(d))
        return ek_error(EK_EFORMAT, "%s: devices[%zu] must be an object", where, i);
    EK_TRY(read_text(d, at, "name", spec->name, sizeof(spec->name)));
    EK_TRY(read_text(d, at, "backend", spec->backend, sizeof(spec->backend)));
    EK_TRY(ek_json_opt_u64(d, at, "index", 0, UINT16_MAX, &index));
    spec->index = (uint32_t)index;
    EK_TRY(read_opt_text(d, at, "threads", spec->threads, sizeof(spec->threads)));
    EK_TRY(read_opt_text(d, at, "uuid", p->uuids[i], sizeof(p->uuids[i])));
    EK_TRY(ek_json_opt_u64(d, at, "memory", 0, MAX_BYTES, &spec->memory));
    EK_TRY(read_factors(d, at, &p->factors[i]));
    if (spec->name[0] == '\0' || spec->backend[0] == '\0')
        return ek_error(EK_EFORMAT, "%s: devices[%zu] needs a name and a backend", where, i);
    if (device_by_name(p, i, spec->name) >= 0)
        return ek_error(EK_EFORMAT, "%s: devices[%zu].name '%s' is declared twice", where, i,
                        spec->name);
    return EK_OK;
}

static enum ek_status read_devices(const json_t *root, const char *where, struct ek_plan *p)
{
    const json_t *list;

    EK_TRY(ek_json_array(root, (struct ek_json_at){where, ""}, "devices", &list));
    p->n_devices = json_array_size(list);
    if (p->n_devices == 0 || p->n_devices > EK_MAX_DEVICES)
        return ek_error(EK_EFORMAT, "%s: devices must hold from 1 to %d items, got %zu", where,
                        EK_MAX_DEVICES, p->n_devices);
    if ((p->devices = ek_calloc(p->n_devices, sizeof(*p->devices))) == NULL ||
        (p->uuids = ek_calloc(p->n_devices, sizeof(*p->uuids))) == NULL ||
        (p->memory = ek_calloc(p->n_devices, sizeof(*p->memory))) == NULL ||
        (p->factors = ek_calloc(p->n_devices, sizeof(*p->factors))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < p->n_devices; i++)
        EK_TRY(read_device(json_array_get(list, i), where, p, i));
    return EK_OK;
}

static enum ek_status read_modules(const json_t *list, const char *where, size_t stage,
                                   struct ek_plan_stage *s)
{
    size_t n = json_array_size(list);

    if (n == 0 || n > MAX_MODULES)
        return ek_error(EK_EFORMAT,
                        "%s: stages[%zu].modules must hold from 1 to %zu names, got %zu", where,
                        stage, MAX_MODULES, n);
    if ((s->modules = ek_calloc(n, sizeof(*s->modules))) == NULL)
        return EK_ENOMEM;
    s->n_modules = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_string(v) || json_string_length(v) == 0 || json_string_length(v) > MAX_NAME)
            return ek_error(EK_EFORMAT,
                            "%s: stages[%zu].modules[%zu] must be a name of 1 to %d bytes", where,
                            stage, i, MAX_NAME);
        if ((s->modules[i] = ek_strdup(json_string_value(v))) == NULL)
            return EK_ENOMEM;
    }
    return EK_OK;
}

static enum ek_status read_stage(const json_t *v, const char *where, struct ek_plan *p, size_t i)
{
    struct ek_plan_stage *s = &p->stages[i];
    char prefix[48];
    struct ek_json_at at = {where, prefix};
    const char *name;
    const json_t *modules;
    ptrdiff_t device;

    snprintf(prefix, sizeof(prefix), "stages[%zu].", i);
    if (!json_is_object(v))
        return ek_error(EK_EFORMAT, "%s: stages[%zu] must be an object", where, i);
    EK_TRY(ek_json_string(v, at, "device", &name));
    if ((device = device_by_name(p, p->n_devices, name)) < 0)
        return ek_error(EK_EFORMAT, "%s: stages[%zu].device '%.64s' is not among devices", where, i,
                        name);
    s->device = (uint32_t)device;
    if (json_array_size(json_object_get(v, "tensor_parallel")) > 1)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: stages[%zu] is tensor-parallel over %zu devices, which is planned and "
                        "exported but not run here; plan with --tp 1",
                        where, i, json_array_size(json_object_get(v, "tensor_parallel")));
    EK_TRY(ek_json_array(v, at, "modules", &modules));
    EK_TRY(read_modules(modules, where, i, s));
    EK_TRY(ek_json_opt_real(v, at, "prefill_s", 0, MAX_SECONDS, &s->prefill_s));
    EK_TRY(ek_json_opt_real(v, at, "pictures_s", 0, MAX_SECONDS, &s->pictures_s));
    return ek_json_opt_real(v, at, "decode_s", 0, MAX_SECONDS, &s->decode_s);
}

struct place {
    const char *name;
    size_t stage;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct place *)a)->name, ((const struct place *)b)->name);
}

static enum ek_status refuse_repeats(const char *where, const struct ek_plan *p)
{
    size_t n = 0, at = 0;
    struct place *all;
    enum ek_status st = EK_OK;

    for (size_t i = 0; i < p->n_stages; i++)
        n += p->stages[i].n_modules;
    if ((all = ek_calloc(n, sizeof(*all))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < p->n_stages; i++)
        for (size_t k = 0; k < p->stages[i].n_modules; k++)
            all[at++] = (struct place){p->stages[i].modules[k], i};
    qsort(all, n, sizeof(*all), by_name);
    for (size_t i = 1; i < n && st == EK_OK; i++)
        if (strcmp(all[i - 1].name, all[i].name) == 0)
            st = ek_error(EK_EFORMAT, "%s: module '%s' is in stages[%zu] and in stages[%zu]", where,
                          all[i].name, all[i - 1].stage, all[i].stage);
    free(all);
    return st;
}

static enum ek_status read_stages(const json_t *root, const char *where, struct ek_plan *p)
{
    const json_t *list;

    EK_TRY(ek_json_array(root, (struct ek_json_at){where, ""}, "stages", &list));
    if (json_array_size(list) == 0 || json_array_size(list) > MAX_MODULES)
        return ek_error(EK_EFORMAT, "%s: stages must hold from 1 to %zu items, got %zu", where,
                        MAX_MODULES, json_array_size(list));
    if ((p->stages = ek_calloc(json_array_size(list), sizeof(*p->stages))) == NULL)
        return EK_ENOMEM;
    p->n_stages = json_array_size(list);
    for (size_t i = 0; i < p->n_stages; i++)
        EK_TRY(read_stage(json_array_get(list, i), where, p, i));
    return refuse_repeats(where, p);
}

static enum ek_status check_memory(const char *where, const struct ek_plan *p, size_t d)
{
    const struct ek_plan_memory *m = &p->memory[d];
    uint64_t sum = 0;
    const uint64_t parts[] = {m->weights,   m->kv,   m->activations,
                              m->workspace, m->comm, m->overhead};

    for (size_t i = 0; i < EK_ARRAY_LEN(parts); i++)
        if (__builtin_add_overflow(sum, parts[i], &sum))
            return ek_error(EK_EFORMAT, "%s: memory of %s overflows", where, p->devices[d].name);
    if (sum != m->total)
        return ek_error(EK_EFORMAT, "%s: memory of %s: total is %llu, its parts add up to %llu",
                        where, p->devices[d].name, (unsigned long long)m->total,
                        (unsigned long long)sum);
    if (m->margin > m->budget || m->total > m->budget - m->margin)
        return ek_error(EK_EFORMAT,
                        "%s: memory of %s: total %llu + margin %llu is above the budget %llu",
                        where, p->devices[d].name, (unsigned long long)m->total,
                        (unsigned long long)m->margin, (unsigned long long)m->budget);
    if (p->devices[d].memory != 0 && m->budget > p->devices[d].memory)
        return ek_error(EK_EFORMAT, "%s: memory of %s: budget %llu is above the device's %llu",
                        where, p->devices[d].name, (unsigned long long)m->budget,
                        (unsigned long long)p->devices[d].memory);
    return EK_OK;
}

static enum ek_status read_memory_row(const json_t *v, const char *where, struct ek_plan *p,
                                      size_t i, bool *seen)
{
    char prefix[48];
    struct ek_json_at at = {where, prefix};
    struct ek_plan_memory m = {0};
    const struct {
        const char *key;
        uint64_t *to;
    } fields[] = {{"weights", &m.weights},     {"kv", &m.kv},       {"activations", &m.activations},
                  {"workspace", &m.workspace}, {"comm", &m.comm},   {"overhead", &m.overhead},
                  {"margin", &m.margin},       {"total", &m.total}, {"budget", &m.budget}};
    const char *name;
    ptrdiff_t d;

    snprintf(prefix, sizeof(prefix), "memory[%zu].", i);
    if (!json_is_object(v))
        return ek_error(EK_EFORMAT, "%s: memory[%zu] must be an object", where, i);
    EK_TRY(ek_json_string(v, at, "device", &name));
    if ((d = device_by_name(p, p->n_devices, name)) < 0)
        return ek_error(EK_EFORMAT, "%s: memory[%zu].device '%.64s' is not among devices", where, i,
                        name);
    if (seen[d])
        return ek_error(EK_EFORMAT, "%s: memory[%zu].device '%s' is there twice", where, i, name);
    for (size_t k = 0; k < EK_ARRAY_LEN(fields); k++)
        EK_TRY(ek_json_u64(v, at, fields[k].key, 0, MAX_BYTES, fields[k].to));
    seen[d] = true;
    p->memory[d] = m;
    return check_memory(where, p, (size_t)d);
}

static enum ek_status read_memory(const json_t *root, const char *where, struct ek_plan *p)
{
    bool seen[EK_MAX_DEVICES] = {false};
    const json_t *list = json_object_get(root, "memory");

    if (list == NULL || json_is_null(list))
        return EK_OK;
    EK_TRY(ek_json_array(root, (struct ek_json_at){where, ""}, "memory", &list));
    if (json_array_size(list) != p->n_devices)
        return ek_error(EK_EFORMAT, "%s: memory has %zu items for %zu devices", where,
                        json_array_size(list), p->n_devices);
    for (size_t i = 0; i < p->n_devices; i++)
        EK_TRY(read_memory_row(json_array_get(list, i), where, p, i, seen));
    return EK_OK;
}

static enum ek_status read_link(const json_t *v, const char *where, struct ek_plan *p, size_t i)
{
    struct ek_plan_link *l = &p->links[i];
    char prefix[48];
    struct ek_json_at at = {where, prefix};
    const char *from, *to;
    ptrdiff_t a, b;

    snprintf(prefix, sizeof(prefix), "links[%zu].", i);
    if (!json_is_object(v))
        return ek_error(EK_EFORMAT, "%s: links[%zu] must be an object", where, i);
    EK_TRY(ek_json_string(v, at, "from", &from));
    EK_TRY(ek_json_string(v, at, "to", &to));
    EK_TRY(read_opt_text(v, at, "mechanism", l->mechanism, sizeof(l->mechanism)));
    a = device_by_name(p, p->n_devices, from);
    b = device_by_name(p, p->n_devices, to);
    if (a < 0 || b < 0)
        return ek_error(EK_EFORMAT, "%s: links[%zu]: '%.64s' is not among devices", where, i,
                        a < 0 ? from : to);
    l->from = (uint32_t)a;
    l->to = (uint32_t)b;
    return EK_OK;
}

static enum ek_status read_links(const json_t *root, const char *where, struct ek_plan *p)
{
    const json_t *list = json_object_get(root, "links");
    size_t n;

    if (list == NULL || json_is_null(list))
        return EK_OK;
    EK_TRY(ek_json_array(root, (struct ek_json_at){where, ""}, "links", &list));
    n = json_array_size(list);
    if (n > p->n_devices * p->n_devices)
        return ek_error(EK_EFORMAT, "%s: %zu links between %zu devices", where, n, p->n_devices);
    if (n > 0 && (p->links = ek_calloc(n, sizeof(*p->links))) == NULL)
        return EK_ENOMEM;
    for (; p->n_links < n; p->n_links++)
        EK_TRY(read_link(json_array_get(list, p->n_links), where, p, p->n_links));
    return EK_OK;
}

const char *ek_plan_mechanism(const struct ek_plan *p, uint32_t from, uint32_t to)
{
    for (size_t i = 0; i < p->n_links; i++)
        if (p->links[i].from == from && p->links[i].to == to && p->links[i].mechanism[0] != '\0')
            return p->links[i].mechanism;
    return NULL;
}

static enum ek_status read_predicted(const json_t *root, const char *where, struct ek_plan *p)
{
    struct ek_json_at at = {where, "predicted."}, at_profile = {where, "profile."};
    const json_t *v = json_object_get(root, "predicted");

    if (v != NULL && !json_is_null(v)) {
        EK_TRY(ek_json_object(root, (struct ek_json_at){where, ""}, "predicted", &v));
        EK_TRY(ek_json_opt_real(v, at, "prefill_s", 0, MAX_SECONDS, &p->predicted_prefill_s));
        EK_TRY(ek_json_opt_real(v, at, "decode_s", 0, MAX_SECONDS, &p->predicted_decode_s));
    }
    v = json_object_get(root, "profile");
    if (v == NULL || json_is_null(v))
        return EK_OK;
    EK_TRY(ek_json_object(root, (struct ek_json_at){where, ""}, "profile", &v));
    if (json_string_length(json_object_get(v, "identity")) == 0) /* made without a profile */
        return EK_OK;
    return read_hash(v, at_profile, "identity", p->profile);
}

static enum ek_status read_all(const json_t *root, const char *where, struct ek_plan *p)
{
    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: a plan must be a JSON object", where);
    EK_TRY(read_head(root, where, p));
    EK_TRY(read_workload(root, where, p));
    EK_TRY(read_devices(root, where, p));
    EK_TRY(read_stages(root, where, p));
    EK_TRY(read_memory(root, where, p));
    EK_TRY(read_links(root, where, p));
    return read_predicted(root, where, p);
}

enum ek_status ek_plan_parse(const char *text, size_t n, const char *where, struct ek_plan **out)
{
    struct ek_plan *p = NULL;
    json_t *root = NULL;
    enum ek_status st;

    EK_GOTO(ek_json_parse(text, n, where, &root), st, done);
    if ((p = ek_calloc(1, sizeof(*p))) == NULL) {
        st = EK_ENOMEM;
        goto done;
    }
    EK_GOTO(read_all(root, where, p), st, done);
    *out = p;
    p = NULL;
done:
    ek_plan_free(p);
    json_decref(root);
    return st;
}

enum ek_status ek_plan_read(const char *path, struct ek_plan **out)
{
    char *text;
    size_t n;
    enum ek_status st;

    EK_TRY(ek_file_read(path, MAX_PLAN_BYTES, &text, &n));
    st = ek_plan_parse(text, n, path, out);
    free(text);
    return st;
}
