/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A plan in other runtimes' own forms, refused by name where a form cannot say it.
 */
#include "planner/plan_file.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct text {
    char *data;
    size_t n;
    bool failed;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t, const char *fmt, ...)
{
    va_list ap;
    int n;
    char *more;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || t->failed || (more = realloc(t->data, t->n + (size_t)n + 1)) == NULL) {
        t->failed = true;
        return;
    }
    t->data = more;
    va_start(ap, fmt);
    vsnprintf(t->data + t->n, (size_t)n + 1, fmt, ap);
    va_end(ap);
    t->n += (size_t)n;
}

static bool is_cpu(const struct ek_plan_file *f, uint32_t d)
{
    return strcmp(f->devices[d].backend, "cpu") == 0;
}

__attribute__((format(printf, 2, 3))) static enum ek_status cannot(const char *target,
                                                                   const char *fmt, ...)
{
    char why[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    return ek_error(EK_NO, "%s cannot express this plan: %s (`plan --for %s` keeps to what it can)",
                    target, why, target);
}

/* ---- What pipelines of whole layers can say -----------------------------------------------------
 * Stages that hold layers, in order, one degree of tensor parallelism, the embedding and side
 * modules with the first and the norm and head with the last. */
struct pipeline {
    const struct ek_file_stage *stages[EK_FILE_MAX_STAGES];
    size_t n;
    uint32_t tp;
};

static enum ek_status check_ends(const struct ek_plan_file *f, const struct pipeline *p,
                                 const char *target)
{
    for (size_t i = 0; i < f->n_stages; i++) {
        const struct ek_file_stage *s = &f->stages[i];
        bool first = s->devices[0] == p->stages[0]->devices[0];
        if ((s->has_embed || s->has_side) && !first)
            return cannot(target, "\"%s\" must be with the first layers", s->modules[0]);
        if (s->has_head && s->devices[0] != p->stages[p->n - 1]->devices[0])
            return cannot(target, "\"%s\" must be with the last layers",
                          s->modules[s->n_modules - 1]);
    }
    return EK_OK;
}

static enum ek_status as_pipeline(const struct ek_plan_file *f, const char *target,
                                  struct pipeline *p)
{
    memset(p, 0, sizeof(*p));
    for (size_t i = 0; i < f->n_stages; i++) {
        const struct ek_file_stage *s = &f->stages[i];
        if (s->n_layers == 0)
            continue;
        if (is_cpu(f, s->devices[0]))
            return cannot(target, "layer %u is on %s", s->first_layer,
                          f->devices[s->devices[0]].name);
        for (size_t j = 0; j < p->n; j++)
            if (f->devices[p->stages[j]->devices[0]].index == f->devices[s->devices[0]].index)
                return cannot(target, "the GPU of %s is visited twice, at layer %u",
                              f->devices[s->devices[0]].name, s->first_layer);
        if (p->n && s->n_devices != p->stages[0]->n_devices)
            return cannot(target, "tensor-parallel degree changes at layer %u", s->first_layer);
        p->stages[p->n++] = s;
    }
    if (p->n == 0)
        return cannot(target, "it has no layers");
    p->tp = p->stages[0]->n_devices;
    return check_ends(f, p, target);
}

static void add_counts(struct text *t, const struct pipeline *p, const char *separator)
{
    for (size_t i = 0; i < p->n; i++)
        add(t, "%s%u", i ? separator : "", p->stages[i]->n_layers);
}

static void add_visible(struct text *t, const struct ek_plan_file *f, const struct pipeline *p)
{
    add(t, "CUDA_VISIBLE_DEVICES=");
    for (size_t i = 0; i < p->n; i++)
        for (uint32_t d = 0; d < p->stages[i]->n_devices; d++)
            add(t, "%s%u", i || d ? "," : "", f->devices[p->stages[i]->devices[d]].index);
}

/* ---- Targets ------------------------------------------------------------------------------------
 */
static enum ek_status to_vllm(const struct ek_plan_file *f, struct text *t)
{
    struct pipeline p;

    EK_TRY(as_pipeline(f, "vllm", &p));
    add_visible(t, f, &p);
    add(t, " VLLM_PP_LAYER_PARTITION=");
    add_counts(t, &p, ",");
    add(t,
        " vllm serve MODEL --pipeline-parallel-size %zu --tensor-parallel-size %u "
        "--max-model-len %u --max-num-seqs %u\n",
        p.n, p.tp, f->context, f->batch);
    return EK_OK;
}

static enum ek_status to_sglang(const struct ek_plan_file *f, struct text *t)
{
    struct pipeline p;

    EK_TRY(as_pipeline(f, "sglang", &p));
    add_visible(t, f, &p);
    add(t, " SGLANG_PP_LAYER_PARTITION=");
    add_counts(t, &p, ",");
    add(t,
        " python -m sglang.launch_server --model-path MODEL --pp-size %zu --tp-size %u "
        "--context-length %u --max-running-requests %u\n",
        p.n, p.tp, f->context, f->batch);
    return EK_OK;
}

static enum ek_status to_tensorrt(const struct ek_plan_file *f, struct text *t)
{
    struct pipeline p;

    EK_TRY(as_pipeline(f, "tensorrt-llm", &p));
    add(t, "{\"pipeline_parallel_size\": %zu, \"tensor_parallel_size\": %u, \"pp_partition\": [",
        p.n, p.tp);
    add_counts(t, &p, ", ");
    add(t, "], \"max_batch_size\": %u, \"max_seq_len\": %u}\n", f->batch, f->context);
    return EK_OK;
}

static enum ek_status to_deepspeed(const struct ek_plan_file *f, struct text *t)
{
    struct pipeline p;
    uint32_t sum = 0;

    EK_TRY(as_pipeline(f, "deepspeed", &p));
    if (p.tp != 1)
        return cannot("deepspeed", "stage 0 is tensor-parallel");
    add(t, "# boundaries for an override of PipelineModule._partition_layers (layers alone; the\n"
           "# embedding goes with the first stage, norm and head with the last)\nparts = [0");
    for (size_t i = 0; i < p.n; i++)
        add(t, ", %u", sum += p.stages[i]->n_layers);
    add(t, "]\n");
    return EK_OK;
}

/* The output layer counts as one more layer, on the last device; the embedding is always on the
 * CPU there. */
static enum ek_status to_llama(const struct ek_plan_file *f, struct text *t)
{
    struct pipeline p;

    EK_TRY(as_pipeline(f, "llama.cpp", &p));
    if (p.tp != 1)
        return cannot("llama.cpp", "stage 0 is tensor-parallel");
    add(t, "llama-server -m MODEL.gguf -ngl 999 -sm layer -dev ");
    for (size_t i = 0; i < p.n; i++)
        add(t, "%sCUDA%u", i ? "," : "", f->devices[p.stages[i]->devices[0]].index);
    add(t, " -ts ");
    for (size_t i = 0; i < p.n; i++)
        add(t, "%s%u", i ? "," : "", p.stages[i]->n_layers + (i + 1 == p.n));
    add(t, " --fit off -c %u -np %u\n", f->context * f->batch, f->batch);
    return EK_OK;
}

/* Newer transformers call the modules of some checkpoints otherwise; a map may name both, for keys
 * that a model has not are ignored with a warning. */
static const struct {
    const char *architecture, *from, *to;
} renamed[] = {
    {"Qwen2_5_VLForConditionalGeneration", "visual", "model.visual"},
    {"Qwen2_5_VLForConditionalGeneration", "model", "model.language_model"},
};

static enum ek_status add_newer_names(const struct ek_plan_file *f, const json_t *map, json_t *out)
{
    const char *architecture =
        json_string_value(json_object_get(json_object_get(f->root, "model"), "architecture"));
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)map, key, v) for (size_t i = 0; i < EK_ARRAY_LEN(renamed); i++)
    {
        size_t n = strlen(renamed[i].from);
        char *name;
        if (architecture == NULL || strcmp(renamed[i].architecture, architecture) != 0 ||
            strncmp(key, renamed[i].from, n) != 0 || (key[n] != '\0' && key[n] != '.'))
            continue;
        name = ek_asprintf("%s%s", renamed[i].to, key + n);
        if (name == NULL || json_object_set(out, name, v) != 0) {
            free(name);
            return ek_error(EK_ENOMEM, "out of host memory");
        }
        free(name);
    }
    return EK_OK;
}

static enum ek_status write_map(const struct ek_plan_file *f, const json_t *map, struct text *t)
{
    json_t *all = json_copy((json_t *)map);
    char *body = NULL;
    enum ek_status st = all ? add_newer_names(f, map, all) : EK_ENOMEM;

    if (st == EK_OK && (body = ek_json_text(all)) == NULL)
        st = ek_error(EK_ENOMEM, "out of host memory");
    if (st == EK_OK)
        add(t, "%s", body);
    free(body);
    json_decref(all);
    return st;
}

static enum ek_status to_accelerate(const struct ek_plan_file *f, struct text *t)
{
    const json_t *map = json_object_get(f->root, "device_map");
    const struct ek_file_stage *last = &f->stages[f->n_stages - 1];
    uint32_t cpus = 0;

    for (size_t i = 0; i < f->n_stages; i++)
        if (f->stages[i].n_devices > 1)
            return cannot("accelerate", "\"%s\" is tensor-parallel", f->stages[i].modules[0]);
    for (uint32_t i = 0; i < f->n_devices; i++)
        cpus += is_cpu(f, i);
    if (!json_is_object(map) && cpus > 1)
        return cannot("accelerate", "it has %u CPU devices, a device_map knows one", cpus);
    if (!json_is_object(map))
        return cannot("accelerate", "\"%s\" is tied to an embedding on another device",
                      last->modules[last->n_modules - 1]);
    return write_map(f, map, t);
}

static const struct {
    const char *name;
    enum ek_status (*write)(const struct ek_plan_file *f, struct text *t);
} targets[] = {
    {"accelerate", to_accelerate}, {"vllm", to_vllm},       {"sglang", to_sglang},
    {"tensorrt-llm", to_tensorrt}, {"llama.cpp", to_llama}, {"deepspeed", to_deepspeed},
};
const char *const ek_export_targets[] = {"accelerate", "vllm",      "sglang", "tensorrt-llm",
                                         "llama.cpp",  "deepspeed", NULL};

enum ek_status ek_export(const struct ek_plan_file *f, const char *target, char **out)
{
    struct text t = {0};

    for (size_t i = 0; i < EK_ARRAY_LEN(targets); i++) {
        enum ek_status st;
        if (strcmp(targets[i].name, target) != 0)
            continue;
        st = targets[i].write(f, &t);
        if (st == EK_OK && t.failed)
            st = ek_error(EK_ENOMEM, "out of host memory");
        if (st != EK_OK) {
            free(t.data);
            return st;
        }
        *out = t.data;
        return EK_OK;
    }
    return ek_error(EK_EUSAGE,
                    "there is no export to \"%s\"; there are accelerate, vllm, sglang, "
                    "tensorrt-llm, llama.cpp, deepspeed",
                    target);
}
