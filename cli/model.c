/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "model/model.h"

static const struct ek_option options[] = {
    {"cache", "TYPE", "data type of the KV cache for the bytes a token (default F32)"},
    {"cut-tower", NULL, "the parts of a vision tower as modules of their own"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups; +ends: embedding, head too"},
    {"write", "FILE", "all weights into a safetensors file; synthetic ones of a config.json alone"},
    {"force", NULL, "replace that file"},
    {NULL, NULL, NULL},
};

static void print_modules(const struct ek_model *m, enum ek_dtype cache)
{
    struct ek_table *t = ek_table_new("module|>parameters|>weights|>KV a token|>GFLOP a token");
    char bytes[EK_UNIT_LEN];

    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        ek_table_row(t, "%s|%llu|%s|%llu B|%.4f", mod->name, (unsigned long long)mod->n_params,
                     ek_format_bytes(bytes, mod->weight_bytes),
                     (unsigned long long)ek_module_kv_bytes(m, mod, cache),
                     ek_module_flops(m, mod, 1, 1, true) * 1e-9);
    }
    ek_table_print(t, stdout);
    ek_table_free(t);
}

static void print_totals(const struct ek_model *m, enum ek_dtype cache)
{
    uint64_t weights = 0, kv = 0;
    char a[EK_UNIT_LEN], b[EK_UNIT_LEN];

    for (size_t i = 0; i < m->n_modules; i++) {
        if (m->modules[i].tied_to < 0)
            weights += m->modules[i].weight_bytes;
        kv += ek_module_kv_bytes(m, &m->modules[i], cache);
    }
    printf("\n%s: %s, %llu parameters, %s of weights, %s of cache a token (%s)%s\n", m->name,
           m->config.architecture, (unsigned long long)m->n_params, ek_format_bytes(a, weights),
           ek_format_bytes(b, kv), ek_dtype_name(cache),
           m->has_weights ? "" : ", no weights here (synthetic)");
}

static enum ek_status run(const struct ek_args *args)
{
    struct ek_model_options opt = EK_MODEL_OPTIONS_INIT;
    struct ek_model *m = NULL;
    enum ek_dtype cache = EK_F32;
    enum ek_status st = EK_OK;

    EK_TRY(ek_arg_dtype(args, "cache", ek_dtype_is_cache, &cache));
    EK_TRY(ek_quantize_parse(ek_arg(args, "quantize"), &opt.quantize));
    EK_TRY(ek_model_open(args->operands[0], &opt, &m));
    if (ek_arg_flag(args, "cut-tower"))
        EK_GOTO(ek_model_cut_tower(m), st, done);
    if (ek_arg(args, "write")) {
        ek_catch_interrupts();
        EK_GOTO(ek_model_write(m, ek_arg(args, "write"), ek_arg_flag(args, "force"),
                               &ek_interrupted),
                st, done);
    }
    if (ek_arg_flag(args, "json")) {
        st = ek_json_print(ek_model_json(m));
    } else {
        print_modules(m, cache);
        print_totals(m, cache);
    }
done:
    ek_model_close(m);
    return st;
}

const struct ek_command ek_cmd_model = {
    .name = "model",
    .summary = "the modules of a model: parameters, bytes, cache, FLOPs",
    .operands = "MODEL",
    .n_operands = 1,
    .options = options,
    .description =
        "MODEL is a directory (config.json and, where they exist, *.safetensors), a GGUF\n"
        "file, or a config.json alone. No weight is read.",
    .run = run,
};
