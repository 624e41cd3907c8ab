/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "profiler/profiler.h"

#include <stdlib.h>

static const struct ek_option options[] = {
    {"db", "FILE", "the profile database (made when absent, resumed when present)"},
    {"devices", "LIST", "devices to measure (default: every GPU, or one CPU device)"},
    {"act", "TYPE", "data type of activations: F32, BF16, F16 (default F32; CUDA: BF16)"},
    {"cache", "TYPE", "data type of the KV cache (default: that of the activations)"},
    {"max-batch", "N", "most sequences at once (default 8)"},
    {"max-prompt", "N", "longest prompt chunk (default 512)"},
    {"max-context", "N", "longest context (default 2048)"},
    {"target-error", "F", "of interpolation between points (default 0.03)"},
    {"thorough", NULL, "more points, longer sampling"},
    {NULL, NULL, NULL},
};

static enum ek_status read_options(const struct ek_args *a, const struct ek_device_spec *devices,
                                   size_t n, struct ek_profile_options *o)
{
    o->devices = devices;
    o->n_devices = n;
    o->stop = &ek_interrupted;
    o->thorough = ek_arg_flag(a, "thorough");
    o->act = devices[0].backend[1] == 'u' ? EK_BF16 : EK_F32; /* "cuda" or "cpu" */
    EK_TRY(ek_arg_dtype(a, "act", &o->act));
    o->cache = o->act;
    EK_TRY(ek_arg_dtype(a, "cache", &o->cache));
    EK_TRY(ek_arg_u32(a, "max-batch", 1, 4096, &o->max_batch));
    EK_TRY(ek_arg_u32(a, "max-prompt", 1, 1u << 20, &o->max_prompt));
    EK_TRY(ek_arg_u32(a, "max-context", 2, 1u << 22, &o->max_context));
    return ek_arg_double(a, "target-error", 0.001, 1, &o->target_error);
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
    EK_TRY(ek_device_specs_parse(ek_arg(args, "devices"), &devices, &n));
    EK_GOTO(read_options(args, devices, n, &opt), st, done);
    EK_GOTO(ek_model_open(args->operands[0], &model_options, &m), st, done);
    EK_GOTO(ek_store_open(path, EK_STORE_WRITE, &store), st, done);
    ek_catch_interrupts();
    st = ek_profile(m, store, &opt);
    if (st == EK_EINTR)
        ek_note("interrupted: every finished measurement is in %s; the same command resumes", path);
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
