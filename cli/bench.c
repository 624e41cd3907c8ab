/* SPDX-License-Identifier: Apache-2.0
 *
 * What a plan predicted beside what its run takes: every stage, the whole, and memory. */
#include "cli/cli.h"
#include "cli/session.h"
#include "profiler/store.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct ek_option options[] = {
    {"plan", "FILE", "the plan to run (default: everything on one device, nothing predicted)"},
    {"devices", "DEVICE", "the device when there is no plan"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups, as they are read"},
    {"batch", "N", "sequences, when there is no plan (default 1)"},
    {"prompt", "N", "prompt tokens of a sequence (default: the plan's, or 512)"},
    {"generate", "N", "new tokens of a sequence (default: the plan's, or 128)"},
    {"repeats", "N", "timed runs after one that warms up (default 3)"},
    {"db", "FILE", "store predicted and measured in this profile database"},
    {NULL, NULL, NULL},
};

/* One line of the result: a predicted and a measured value, in seconds or bytes. */
struct line {
    char what[80];
    double predicted, measured, spread; /* spread: MAD of times, 0 for bytes */
    bool bytes;
    uint32_t n;           /* samples */
    const char *device;   /* of a stage or a memory, borrowed from the plan; NULL: the whole */
    const char *quantity; /* "prefill", "decode", "memory" */
    double factor;        /* that a calibrated plan's prediction has in it */
};

struct bench {
    struct ek_session session;
    struct ek_bench_result result;
    struct line *lines;
    size_t n, cap;
};

static enum ek_status add(struct bench *b, struct line l)
{
    EK_TRY(ek_grow((void **)&b->lines, &b->cap, b->n + 1, sizeof(*b->lines), 4096));
    b->lines[b->n++] = l;
    return EK_OK;
}

/* Does the workload that ran equal the plan's? Else nothing was predicted of its times. */
static bool foretold(const struct bench *b)
{
    const struct ek_plan *p = b->session.plan;
    const struct ek_bench_result *r = &b->result;

    return r->batch == p->batch && r->prompt == p->prompt && r->generate == p->generate;
}

static struct line time_line(const struct bench *b, double predicted, const struct ek_spread *s,
                             const char *quantity)
{
    return (struct line){.predicted = foretold(b) ? predicted : 0,
                         .measured = s->median,
                         .spread = s->mad,
                         .n = s->n,
                         .quantity = quantity,
                         .factor = 1};
}

static enum ek_status add_stage(struct bench *b, size_t stage, uint32_t engine_stage)
{
    const struct ek_plan *p = b->session.plan;
    const struct ek_plan_stage *s = &p->stages[stage];
    struct line fill =
                    time_line(b, s->prefill_s, &b->result.stage_prefill_s[engine_stage], "prefill"),
                step = time_line(b, s->decode_s, &b->result.stage_decode_s[engine_stage], "decode");

    fill.device = step.device = p->devices[s->device].name;
    fill.factor = p->factors[s->device].prefill;
    step.factor = p->factors[s->device].decode;
    snprintf(fill.what, sizeof(fill.what), "stage %zu (%s) prefill", stage, fill.device);
    snprintf(step.what, sizeof(step.what), "stage %zu (%s) decode step", stage, step.device);
    EK_TRY(add(b, fill));
    return add(b, step);
}

/* Of modules that only see? The engine times stages of the language model. */
static bool beside_the_chain(const struct bench *b, const struct ek_plan_stage *s)
{
    const struct ek_model *m = b->session.model;

    for (size_t k = 0; k < s->n_modules; k++)
        if (!ek_module_is_visual(&m->modules[ek_model_find(m, s->modules[k])]))
            return false;
    return true;
}

static enum ek_status add_times(struct bench *b)
{
    const struct ek_plan *p = b->session.plan;
    struct line fill = time_line(b, p->predicted_prefill_s, &b->result.prefill_s, "prefill"),
                step = time_line(b, p->predicted_decode_s, &b->result.decode_s, "decode");
    uint32_t timed = 0;

    snprintf(fill.what, sizeof(fill.what), "prefill");
    snprintf(step.what, sizeof(step.what), "decode, a token of all");
    EK_TRY(add(b, fill));
    EK_TRY(add(b, step));
    for (size_t i = 0; i < p->n_stages && timed < b->result.n_stages; i++)
        if (!beside_the_chain(b, &p->stages[i]))
            EK_TRY(add_stage(b, i, timed++));
    return EK_OK;
}

static enum ek_status add_memory(struct bench *b)
{
    const struct ek_plan *p = b->session.plan;

    for (size_t d = 0; d < b->result.n_devices; d++) {
        const struct ek_plan_memory *m = &p->memory[d];
        const uint64_t predicted[EK_N_TAGS] = {m->weights, m->kv, m->activations, m->workspace,
                                               m->comm};
        struct line l = {
            .bytes = true, .n = 1, .device = p->devices[d].name, .quantity = "memory", .factor = 1};
        for (int t = 0; t < EK_N_TAGS; t++) {
            snprintf(l.what, sizeof(l.what), "memory %s %s", l.device, ek_tag_names[t]);
            l.predicted = (double)predicted[t];
            l.measured = (double)b->result.usage[d][t].peak;
            if (l.predicted > 0 || l.measured > 0)
                EK_TRY(add(b, l));
        }
        snprintf(l.what, sizeof(l.what), "memory %s total", l.device);
        l.predicted = (double)(m->total > m->overhead ? m->total - m->overhead : 0);
        l.measured = (double)ek_usage_total(b->result.usage[d], true);
        EK_TRY(add(b, l));
    }
    return EK_OK;
}

static double error_of(const struct line *l)
{
    return l->predicted > 0 && l->measured > 0 ? l->predicted / l->measured - 1 : NAN;
}

static void print_lines(const struct bench *b)
{
    struct ek_table *t = ek_table_new("what|>predicted|>measured|>spread|>error");
    char p[EK_UNIT_LEN], m[EK_UNIT_LEN], s[EK_UNIT_LEN], e[16];

    for (size_t i = 0; i < b->n; i++) {
        const struct line *l = &b->lines[i];
        if (isnan(error_of(l)))
            snprintf(e, sizeof(e), "-");
        else
            snprintf(e, sizeof(e), "%+.1f %%", 100 * error_of(l));
        if (l->bytes)
            ek_table_row(t, "%s|%s|%s||%s", l->what, ek_format_bytes(p, (uint64_t)l->predicted),
                         ek_format_bytes(m, (uint64_t)l->measured), e);
        else
            ek_table_row(t, "%s|%s|%s|%s|%s", l->what,
                         l->predicted > 0 ? ek_format_seconds(p, l->predicted) : "-",
                         ek_format_seconds(m, l->measured),
                         l->spread > 0 ? ek_format_seconds(s, l->spread) : "", e);
    }
    ek_table_print(t, stdout);
    ek_table_free(t);
}

static void print_speeds(const struct bench *b)
{
    const struct ek_bench_result *r = &b->result;
    const struct ek_model *m = b->session.model;
    struct ek_table *t = ek_table_new("model|>parameters|devices|test|>tokens/s");
    const char *first = b->session.plan->devices[0].name;

    ek_table_row(t, "%s|%.2f M|%u (%s ..)|pp%u x %u|%.1f", m->name, (double)m->n_params * 1e-6,
                 r->n_devices, first, r->prompt, r->batch,
                 (double)r->prompt * r->batch / r->prefill_s.median);
    ek_table_row(t, "%s|%.2f M|%u (%s ..)|tg%u x %u|%.1f", m->name, (double)m->n_params * 1e-6,
                 r->n_devices, first, r->generate, r->batch,
                 r->decode_s.median > 0 ? r->batch / r->decode_s.median : 0);
    ek_table_print(t, stdout);
    ek_table_free(t);
    puts("");
}

static json_t *bench_json(const struct bench *b)
{
    const struct ek_bench_result *r = &b->result;
    json_t *lines = json_array();

    for (size_t i = 0; i < b->n; i++) {
        const struct line *l = &b->lines[i];
        json_t *v = json_pack("{ss ss sf sf sf sI}", "what", l->what, "unit",
                              l->bytes ? "bytes" : "s", "predicted", l->predicted, "measured",
                              l->measured, "mad", l->spread, "n", (json_int_t)l->n);
        if (v && !isnan(error_of(l)))
            json_object_set_new(v, "error", json_real(error_of(l)));
        json_array_append_new(lines, v);
    }
    return json_pack("{ss ss si si si sf sf so}", "model", b->session.model->name, "model_hash",
                     b->session.model->hash, "batch", (int)r->batch, "prompt", (int)r->prompt,
                     "generate", (int)r->generate, "prefill_tokens_per_s",
                     (double)r->prompt * r->batch / r->prefill_s.median, "decode_tokens_per_s",
                     r->decode_s.median > 0 ? r->batch / r->decode_s.median : 0.0, "lines", lines);
}

static enum ek_status store_runs(const struct ek_args *args, const struct bench *b)
{
    struct ek_store_run run = {.batch = b->result.batch,
                               .tokens = b->result.prompt,
                               .context = b->result.prompt + b->result.generate};
    struct ek_store *store = NULL;
    char *text = NULL;
    size_t n = 0;
    enum ek_status st;

    if (!ek_arg(args, "db") || !ek_arg(args, "plan"))
        return EK_OK;
    EK_TRY(ek_file_read(ek_arg(args, "plan"), 64u << 20, &text, &n));
    ek_hash_hex(text, n, run.plan_hash);
    free(text);
    memcpy(run.model_hash, b->session.model->hash, sizeof(run.model_hash));
    EK_TRY(ek_store_open(ek_arg(args, "db"), EK_STORE_WRITE, &store));
    st = EK_OK;
    for (size_t i = 0; st == EK_OK && i < b->n; i++) {
        const struct line *l = &b->lines[i];
        snprintf(run.what, sizeof(run.what), "%.*s", (int)sizeof(run.what) - 1, l->what);
        snprintf(run.device, sizeof(run.device), "%s", l->device ? l->device : "");
        snprintf(run.quantity, sizeof(run.quantity), "%s", l->quantity);
        run.predicted = l->predicted;
        run.measured = l->measured;
        run.mad = l->spread;
        run.n = l->n;
        run.factor = l->factor;
        st = ek_store_put_run(store, &run);
    }
    ek_store_close(store);
    return st;
}

static enum ek_status read_workload(const struct ek_args *args, struct ek_bench_options *o,
                                    struct ek_session_need *need)
{
    bool planned = ek_arg(args, "plan") != NULL;

    o->cancel = &ek_interrupted;
    o->batch = planned ? 0 : 1;
    o->prompt = planned ? 0 : 512;
    o->generate = planned ? 0 : 128;
    EK_TRY(ek_arg_u32(args, "batch", 1, 4096, &o->batch));
    EK_TRY(ek_arg_u32(args, "prompt", 1, 1u << 22, &o->prompt));
    EK_TRY(ek_arg_u32(args, "generate", 1, 1u << 22, &o->generate));
    EK_TRY(ek_arg_u32(args, "repeats", 1, 1000, &o->repeats));
    need->batch = o->batch;
    if (!planned)
        need->context = o->prompt + o->generate;
    return EK_OK;
}

static enum ek_status run(const struct ek_args *args)
{
    struct ek_bench_options opt = {.repeats = 3, .seed = 1};
    struct ek_session_need need = {0};
    struct bench b = {0};
    enum ek_status st;

    EK_TRY(read_workload(args, &opt, &need));
    EK_GOTO(ek_session_open(args, args->operands[0], &need, &b.session), st, done);
    ek_catch_interrupts();
    EK_GOTO(ek_bench_run(b.session.engine, &opt, &b.result), st, done);
    EK_GOTO(add_times(&b), st, done);
    EK_GOTO(add_memory(&b), st, done);
    EK_GOTO(store_runs(args, &b), st, done);
    if (ek_arg_flag(args, "json")) {
        st = ek_print_json(bench_json(&b));
    } else {
        print_speeds(&b);
        print_lines(&b);
    }
done:
    free(b.lines);
    ek_bench_result_clear(&b.result);
    ek_session_close(&b.session);
    return st;
}

const struct ek_command ek_cmd_bench = {
    .name = "bench",
    .summary = "what a plan predicted beside what its run takes",
    .operands = "MODEL",
    .n_operands = 1,
    .options = options,
    .description =
        "Runs the plan's workload with synthetic token ids: prefill and decode of the whole,\n"
        "of every stage, and the peak memory of every device, each beside its prediction.",
    .run = run,
};
