/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast a checkpoint is loaded onto a device: from storage and from the page cache, beside what
 * reading alone and sending alone take.
 */
#include "cli/load.h"

#include <stdlib.h>

/* Everything of the model in one stage that holds no tokens to speak of. */
static enum ek_status measure(const struct ek_model *m, struct ek_device *dev,
                              struct ek_load_times *times)
{
    struct ek_stage_options o = {.page = EK_PAGE,
                                 .n_blocks = 1,
                                 .max_tokens = EK_PAGE,
                                 .max_seqs = 1,
                                 .max_context = EK_PAGE,
                                 .max_logits = 1,
                                 .max_patches = 1,
                                 .cache = dev->act,
                                 .load = times};
    size_t *modules = ek_calloc(m->n_modules, sizeof(*modules));
    struct ek_stage *stage = NULL;
    enum ek_status st;

    if (!modules)
        return EK_ENOMEM;
    for (size_t i = 0; i < m->n_modules; i++)
        modules[i] = i;
    st = ek_stage_new(dev, m, modules, m->n_modules, &o, &stage);
    ek_stage_free(stage);
    free(modules);
    return st;
}

static const char *name_of(const struct ek_load_times *t)
{
    return t->cold ? "storage" : "page cache";
}

static double slower(const struct ek_load_times *t)
{
    return t->read_s > t->send_s ? t->read_s : t->send_s;
}

static void print_times(const struct ek_load_times *times, size_t n)
{
    struct ek_table *t = ek_table_new("from|>bytes|>loaded in|>rate|>reading alone|>sending alone|"
                                      ">of the slower");
    char b[5][EK_UNIT_LEN];

    for (size_t i = 0; t && i < n; i++) {
        double bytes = (double)times[i].bytes;
        ek_table_row(t, "%s|%s|%s|%s|%s|%s|%.0f %%", name_of(&times[i]),
                     ek_format_bytes(b[0], times[i].bytes),
                     ek_format_seconds(b[1], times[i].load_s),
                     ek_format_rate(b[2], bytes / times[i].load_s),
                     ek_format_rate(b[3], bytes / times[i].read_s),
                     ek_format_rate(b[4], bytes / times[i].send_s),
                     100 * slower(&times[i]) / times[i].load_s);
    }
    ek_table_print(t, stdout);
    ek_table_free(t);
}

static enum ek_status print_json(const char *device, const struct ek_load_times *times, size_t n)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(list,
                              json_pack("{ss sI sf sf sf}", "from", name_of(&times[i]), "bytes",
                                        (json_int_t)times[i].bytes, "load_s", times[i].load_s,
                                        "read_s", times[i].read_s, "send_s", times[i].send_s));
    return ek_json_print(json_pack("{ss so}", "device", device, "loads", list));
}

enum ek_status ek_bench_load(const struct ek_args *args)
{
    struct ek_model_options opt = EK_MODEL_OPTIONS_INIT;
    struct ek_load_times times[2] = {{.cold = true}, {.cold = false}};
    struct ek_device_spec *specs = NULL;
    struct ek_device *dev = NULL;
    struct ek_model *m = NULL;
    enum ek_status st;
    size_t n;

    EK_TRY(ek_quantize_parse(ek_arg(args, "quantize"), &opt.quantize));
    EK_TRY(ek_device_specs_parse(ek_arg(args, "devices"), &specs, &n));
    EK_GOTO(ek_model_open(args->operands[0], &opt, &m), st, done);
    if (!m->has_weights) {
        st = ek_error(EK_EUSAGE, "%s has no weights to load (evenkeel model --write makes some)",
                      args->operands[0]);
        goto done;
    }
    EK_GOTO(ek_device_open(&specs[0], specs[0].backend[1] == 'u' ? EK_BF16 : EK_F32, &dev), st,
            done);
    for (size_t i = 0; i < EK_ARRAY_LEN(times); i++)
        EK_GOTO(measure(m, dev, &times[i]), st, done);
    if (ek_arg_flag(args, "json"))
        st = print_json(specs[0].name, times, EK_ARRAY_LEN(times));
    else
        print_times(times, EK_ARRAY_LEN(times));
done:
    ek_device_close(dev);
    ek_model_close(m);
    free(specs);
    return st;
}
