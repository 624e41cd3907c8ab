/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/kernels.h"
#include "profiler/profiler.h"

#include <stdlib.h>
#include <string.h>

static const struct ek_option options[] = {
    {"db", "FILE", "the profile database (made when absent, resumed when present)"},
    {"devices", "LIST", "devices to measure (default: every GPU, or one CPU device)"},
    {"cut-tower", NULL, "measure a vision tower block by block, for plans that cut it"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups; +ends: embedding, head too"},
    {"act", "TYPE", "data type of activations: F32, BF16, F16 (default F32; CUDA: BF16)"},
    {"cache", "TYPE", "data type of the KV cache (default: that of the activations; fp8)"},
    {"max-batch", "N", "most sequences at once (default 8)"},
    {"max-prompt", "N", "longest prompt chunk (default 512; GPUs alone: 4096)"},
    {"max-context", "N", "longest context (default 2048; GPUs alone: 4096)"},
    {"target-error", "F", "of interpolation between points (default 0.03)"},
    {"kernels", NULL, "trace which kernels a few points of each module go to (GPUs)"},
    {"thorough", NULL,
     "more points, longer sampling; of GPUs decode steps launched one by one, too"},
    {NULL, NULL, NULL},
};

#define GPU_CHUNK 4096u /* the products of a GPU are faster the more tokens they have */

static bool gpus_alone(const struct ek_profile_options *o)
{
    for (size_t i = 0; i < o->n_devices; i++)
        if (strcmp(o->devices[i].backend, "cpu") == 0)
            return false;
    return true;
}

/* A plan's chunks are at most as long as the longest that was measured. */
static enum ek_status read_lengths(const struct ek_args *a, struct ek_profile_options *o)
{
    bool gpus = gpus_alone(o);

    if (gpus)
        o->max_context = GPU_CHUNK;
    EK_TRY(ek_arg_u32(a, "max-context", 2, 1u << 22, &o->max_context));
    if (gpus)
        o->max_prompt = o->max_context < GPU_CHUNK ? o->max_context : GPU_CHUNK;
    return ek_arg_u32(a, "max-prompt", 1, 1u << 20, &o->max_prompt);
}

static enum ek_status read_options(const struct ek_args *a, const struct ek_device_spec *devices,
                                   size_t n, struct ek_profile_options *o)
{
    o->devices = devices;
    o->n_devices = n;
    o->stop = &ek_interrupted;
    o->thorough = ek_arg_flag(a, "thorough");
    o->kernels = ek_arg_flag(a, "kernels");
    o->act = devices[0].backend[1] == 'u' ? EK_BF16 : EK_F32; /* "cuda" or "cpu" */
    EK_TRY(ek_arg_dtype(a, "act", ek_dtype_is_act, &o->act));
    o->cache = o->act;
    EK_TRY(ek_arg_dtype(a, "cache", ek_dtype_is_cache, &o->cache));
    EK_TRY(ek_arg_u32(a, "max-batch", 1, 4096, &o->max_batch));
    EK_TRY(read_lengths(a, o));
    return ek_arg_double(a, "target-error", 0.001, 1, &o->target_error);
}

/* ---- What the database now holds for this model ---------------------------------------------- */
struct summary {
    const struct ek_model *model;
    struct ek_store *store;
    const char *path;
    char identity[33];
    struct ek_store_device *devices;
    size_t n_devices;
};

static bool is_declared(const struct ek_profile_options *o, const char *name)
{
    for (size_t i = 0; i < o->n_devices; i++)
        if (strcmp(o->devices[i].name, name) == 0)
            return true;
    return false;
}

static bool seen_before(const struct ek_model *m, size_t module)
{
    for (size_t i = 0; i < module; i++)
        if (strcmp(m->modules[i].signature, m->modules[module].signature) == 0)
            return true;
    return false;
}

/* Rows of a device for this model, and the clocks that its times were taken at. */
struct counts {
    size_t times, memories, slowed; /* slowed: with clocks lower than they could have been */
    uint32_t low_mhz, high_mhz, reasons;
};

static void count_clocks(const struct ek_store_time *t, struct counts *c)
{
    if (t->clock_mhz > 0 && (c->low_mhz == 0 || t->clock_mhz < c->low_mhz))
        c->low_mhz = t->clock_mhz;
    if (t->clock_mhz > c->high_mhz)
        c->high_mhz = t->clock_mhz;
    c->slowed += t->throttle != 0;
    c->reasons |= t->throttle;
}

static enum ek_status count_signature(const struct summary *s, int64_t device,
                                      const char *signature, struct counts *c)
{
    struct ek_store_time_row *rows = NULL;
    struct ek_store_memory *bytes = NULL;
    size_t n;

    EK_TRY(ek_store_times(s->store, device, signature, &rows, &n));
    for (size_t i = 0; i < n; i++)
        count_clocks(&rows[i].time, c);
    free(rows);
    c->times += n;
    EK_TRY(ek_store_memories(s->store, device, signature, &bytes, &n));
    free(bytes);
    c->memories += n;
    return EK_OK;
}

static enum ek_status count_rows(const struct summary *s, int64_t device, struct counts *c)
{
    *c = (struct counts){.times = 0};
    for (size_t i = 0; i < s->model->n_modules; i++)
        if (!seen_before(s->model, i))
            EK_TRY(count_signature(s, device, s->model->modules[i].signature, c));
    return count_signature(s, device, EK_STORE_STAGE, c);
}

static void add_device(struct ek_table *t, json_t *list, const char *name, const struct counts *c)
{
    char clocks[40] = "", slowed[96] = "", reasons[64];

    if (c->high_mhz)
        snprintf(clocks, sizeof(clocks), "%u to %u MHz", c->low_mhz, c->high_mhz);
    if (c->slowed)
        snprintf(slowed, sizeof(slowed), "%zu: %s", c->slowed,
                 ek_throttle_text(c->reasons, reasons));
    ek_table_row(t, "%s|%zu|%zu|%s|%s", name, c->times, c->memories, clocks, slowed);
    json_array_append_new(list,
                          json_pack("{ss sI sI si si sI si}", "name", name, "times",
                                    (json_int_t)c->times, "memories", (json_int_t)c->memories,
                                    "low_mhz", (int)c->low_mhz, "high_mhz", (int)c->high_mhz,
                                    "slowed", (json_int_t)c->slowed, "throttle", (int)c->reasons));
}

static enum ek_status summarize(const struct summary *s, const struct ek_profile_options *o,
                                bool as_json)
{
    json_t *list = json_array(), *kernels = json_array();
    struct ek_table *t = ek_table_new("device|>times|>memory rows|clocks|slowed");
    enum ek_status st = list && kernels && t ? EK_OK : EK_ENOMEM;
    struct counts c;

    for (size_t i = 0; i < s->n_devices && st == EK_OK; i++) {
        if (!is_declared(o, s->devices[i].name))
            continue;
        st = count_rows(s, s->devices[i].id, &c);
        add_device(t, list, s->devices[i].name, &c);
        if (st == EK_OK && o->kernels)
            st = ek_kernels_json(s->store, s->model, &s->devices[i], kernels);
    }
    if (st == EK_OK && as_json)
        st = ek_json_print(json_pack("{ss ss ss ss sO sO}", "db", s->path, "model", s->model->name,
                                     "model_hash", s->model->hash, "identity", s->identity,
                                     "devices", list, "kernels", kernels));
    else if (st == EK_OK)
        ek_table_print(t, stdout);
    for (size_t i = 0; o->kernels && !as_json && i < s->n_devices && st == EK_OK; i++)
        if (is_declared(o, s->devices[i].name))
            st = ek_print_kernels(s->store, s->model, &s->devices[i]);
    json_decref(list);
    json_decref(kernels);
    ek_table_free(t);
    return st;
}

static enum ek_status print_summary(struct summary *s, const struct ek_profile_options *o,
                                    bool as_json)
{
    enum ek_status st;

    EK_TRY(ek_store_identity(s->store, s->identity));
    EK_TRY(ek_store_devices(s->store, &s->devices, &s->n_devices));
    st = summarize(s, o, as_json);
    free(s->devices);
    return st;
}

static enum ek_status run(const struct ek_args *args)
{
    struct ek_model_options model_options = EK_MODEL_OPTIONS_INIT;
    struct ek_profile_options opt = EK_PROFILE_OPTIONS_INIT;
    struct ek_device_spec *devices = NULL;
    struct ek_model *m = NULL;
    struct ek_store *store = NULL;
    const char *path = NULL;
    size_t n = 0;
    enum ek_status st;

    EK_TRY(ek_arg_required(args, "db", &path));
    EK_TRY(ek_quantize_parse(ek_arg(args, "quantize"), &model_options.quantize));
    EK_TRY(ek_device_specs_parse(ek_arg(args, "devices"), &devices, &n));
    EK_GOTO(read_options(args, devices, n, &opt), st, done);
    EK_GOTO(ek_model_open(args->operands[0], &model_options, &m), st, done);
    if (ek_arg_flag(args, "cut-tower"))
        EK_GOTO(ek_model_cut_tower(m), st, done);
    EK_GOTO(ek_store_open(path, EK_STORE_WRITE, &store), st, done);
    ek_catch_interrupts();
    EK_GOTO(ek_profile(m, store, &opt), st, done);
    st = print_summary(&(struct summary){.model = m, .store = store, .path = path}, &opt,
                       ek_arg_flag(args, "json"));
done:
    ek_store_close(store);
    ek_model_close(m);
    free(devices);
    return st;
}

const struct ek_command ek_cmd_profile = {
    .name = "profile",
    .summary = "measure every distinct module of a model on every device",
    .operands = "MODEL",
    .n_operands = 1,
    .options = options,
    .description =
        "Measures devices, links and modules into a SQLite database. Each finished\n"
        "measurement is committed at once: a profile that was stopped, or killed, resumes\n"
        "where it was. A config.json without weights is profiled with synthetic ones.",
    .run = run,
};
