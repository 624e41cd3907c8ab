/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/session.h"

#include <stdlib.h>

#define DEFAULT_CONTEXT 2048
#define SINGLE_LOGITS   32 /* rows of logits computed at once without a plan */

static enum ek_status single_plan(const struct ek_args *args, const struct ek_model *m,
                                  const struct ek_session_need *need, struct ek_plan **out)
{
    struct ek_device_spec *devices = NULL;
    uint32_t context = need->context;
    size_t n = 0;
    enum ek_status st;

    if (context == 0)
        context =
            m->config.max_position < DEFAULT_CONTEXT ? m->config.max_position : DEFAULT_CONTEXT;
    EK_TRY(ek_device_specs_parse(ek_arg(args, "devices"), &devices, &n));
    st = ek_plan_single(m, &devices[0], need->batch ? need->batch : 1, context, out);
    free(devices);
    EK_TRY(st);
    if (need->chunk > 0 && need->chunk < (*out)->prefill_chunk)
        (*out)->prefill_chunk = need->chunk;
    return ek_arg_dtype(args, "cache", ek_dtype_is_cache, &(*out)->cache);
}

enum ek_status ek_session_open_model(const struct ek_args *args, const char *model_path,
                                     struct ek_session *s)
{
    struct ek_model_options options = EK_MODEL_OPTIONS_INIT;

    EK_TRY(ek_quantize_parse(ek_arg(args, "quantize"), &options.quantize));
    return s->model ? EK_OK : ek_model_open(model_path, &options, &s->model);
}

/* Options that a plan answers. */
static void note_overruled(const struct ek_args *args, const char *plan)
{
    static const char *const names[] = {"devices", "cache", "context", "prefill-chunk"};

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++)
        if (ek_arg(args, names[i]) != NULL)
            ek_note("--%s %s is not looked at: %s says it", names[i], ek_arg(args, names[i]), plan);
}

enum ek_status ek_session_open(const struct ek_args *args, const char *model_path,
                               const struct ek_session_need *need, struct ek_session *s)
{
    struct ek_engine_options opt = {0};
    const char *path = ek_arg(args, "plan");

    EK_TRY(ek_session_open_model(args, model_path, s));
    if (need->tokenizer)
        EK_TRY(ek_tokenizer_fits(need->tokenizer, s->model->config.vocab));
    if (path) {
        EK_TRY(ek_plan_read(path, &s->plan));
        note_overruled(args, path);
    } else {
        EK_TRY(single_plan(args, s->model, need, &s->plan));
    }
    EK_TRY(ek_plan_cut_tower(s->plan, s->model));
    EK_TRY(ek_plan_check(s->plan, s->model));
    if (need->context > s->plan->context)
        return ek_error(EK_EUSAGE, "%s: planned for a context of %u tokens, %u are needed",
                        path ? path : "plan", s->plan->context, need->context);
    if (need->batch > s->plan->batch)
        return ek_error(EK_EUSAGE, "%s: planned for a batch of %u, %u are needed",
                        path ? path : "plan", s->plan->batch, need->batch);
    opt.max_logits = path ? 0 : SINGLE_LOGITS; /* a plan's memory has room for its own rows only */
    return ek_engine_open(s->model, s->plan, &opt, &s->engine);
}

static bool left_alone;

bool ek_session_left_alone(void)
{
    return left_alone;
}

void ek_session_close(struct ek_session *s)
{
    left_alone = !ek_engine_close(s->engine);
    if (left_alone)
        return; /* a thread that does not come back may still read the rest */
    ek_plan_free(s->plan);
    ek_model_close(s->model);
}
