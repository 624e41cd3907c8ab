/* SPDX-License-Identifier: Apache-2.0
 *
 * What a plan predicted beside what its run takes: every stage, the whole, and memory. */
#include "cli/account.h"
#include "cli/cli.h"
#include "cli/load.h"
#include "cli/session.h"
#include "profiler/store.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NOTED_LOSS 0.02 /* of a run's time */
#define LEAST_LOSS 0.05 /* seconds */

static const struct ek_option options[] = {
    {"plan", "FILE", "the plan to run (default: everything on one device, nothing predicted)"},
    {"devices", "DEVICE", "the device when there is no plan"},
    {"cache", "TYPE", "type of the cache when there is no plan (default: of activations; fp8)"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups; +ends: embedding, head too"},
    {"batch", "N", "sequences, when there is no plan (default 1)"},
    {"prompt", "N", "prompt tokens of a sequence (default: the plan's, or 512)"},
    {"generate", "N", "new tokens of a sequence (default: the plan's, or 128)"},
    {"images", "N", "pictures of random pixels before every prompt (default: the plan's, or 0)"},
    {"image-tokens", "N", "about so many tokens each (default: the plan's)"},
    {"image-size", "WxH", "or pictures of exactly so many pixels"},
    {"repeats", "N", "timed runs after one that warms up (default 3)"},
    {"db", "FILE", "store predicted and measured in this profile database"},
    {"output", "FILE", "write the result to this file as --json prints it, beside what is printed"},
    {"force", NULL, "replace the file of --output"},
    {"account", NULL, "GPU memory by our tags, by the driver's allocations (CUPTI) and by NVML"},
    {"load", NULL, "only how fast the weights get to one device, from storage and from memory"},
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
    struct ek_account *account; /* NULL: not asked for */
    struct ek_account_row *rows;
    size_t n_rows;
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

    return r->batch == p->batch && r->prompt == p->prompt && r->generate == p->generate &&
           r->images == p->images && (r->images == 0 || r->image_tokens == p->image_tokens);
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

static enum ek_status add_stage(struct bench *b, uint32_t i)
{
    const struct ek_plan *p = b->session.plan;
    const struct ek_bench_result *r = &b->result;
    const struct ek_plan_stage *s = &p->stages[r->prefill[i].stage];
    struct line fill = time_line(b, s->prefill_s, &r->stage_prefill_s[i], "prefill"),
                see = time_line(b, s->pictures_s, &r->stage_pictures_s[i], "pictures"),
                step = time_line(b, s->decode_s, &r->stage_decode_s[i], "decode");

    fill.device = see.device = step.device = p->devices[s->device].name;
    fill.factor = see.factor = p->factors[s->device].prefill;
    step.factor = p->factors[s->device].decode;
    snprintf(fill.what, sizeof(fill.what), "stage %zu (%s) prefill", r->prefill[i].stage,
             fill.device);
    snprintf(see.what, sizeof(see.what), "stage %zu (%s) pictures", r->prefill[i].stage,
             see.device);
    snprintf(step.what, sizeof(step.what), "stage %zu (%s) decode step", r->prefill[i].stage,
             step.device);
    if (see.measured > 0)
        EK_TRY(add(b, see));
    EK_TRY(add(b, fill));
    return r->decode[i].steps > 0 ? add(b, step) : EK_OK;
}

/* As the planner has it: they follow one another through the stages. */
static double predicted_pictures(const struct ek_plan *p)
{
    double all = 0, longest = 0, n = p->images ? p->images : 1, seeing[EK_MAX_DEVICES] = {0};

    for (size_t i = 0; i < p->n_stages; i++) {
        double *device = &seeing[p->stages[i].device];
        *device += p->stages[i].pictures_s;
        all += p->stages[i].pictures_s;
        longest = *device > longest ? *device : longest;
    }
    return longest + (all - longest) / n;
}

static enum ek_status add_times(struct bench *b)
{
    const struct ek_plan *p = b->session.plan;
    struct line see = time_line(b, predicted_pictures(p), &b->result.pictures_s, "pictures"),
                fill = time_line(b, p->predicted_prefill_s, &b->result.prefill_s, "prefill"),
                step = time_line(b, p->predicted_decode_s, &b->result.decode_s, "decode");

    snprintf(see.what, sizeof(see.what), "pictures");
    snprintf(fill.what, sizeof(fill.what), "prefill");
    snprintf(step.what, sizeof(step.what), "decode, a token of all");
    if (b->result.images > 0)
        EK_TRY(add(b, see));
    EK_TRY(add(b, fill));
    EK_TRY(add(b, step));
    for (size_t stage = 0; stage < p->n_stages; stage++) /* timings are in the order of pipelines */
        for (uint32_t i = 0; i < b->result.n_stages; i++)
            if (b->result.prefill[i].stage == stage)
                EK_TRY(add_stage(b, i));
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
            ek_table_row(t, "%s|%s|%s||%s", l->what,
                         l->predicted > 0 ? ek_format_bytes(p, (uint64_t)l->predicted) : "-",
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

static uint32_t prompt_tokens(const struct ek_bench_result *r)
{
    return r->prompt + r->images * r->image_tokens;
}

static double prefill_rate(const struct ek_bench_result *r)
{
    return (double)prompt_tokens(r) * r->batch / r->prefill_s.median;
}

/* A row of speeds: "pp512 x 4" and tokens a second, as llama-bench has them. */
static void speed_row(const struct bench *b, struct ek_table *t, const char *test, uint32_t tokens,
                      uint32_t times, double rate)
{
    const struct ek_model *m = b->session.model;
    const char *first = b->session.plan->devices[0].name;
    char devices[EK_NAME_LEN + 32];

    if (b->result.n_devices == 1)
        snprintf(devices, sizeof(devices), "%s", first);
    else
        snprintf(devices, sizeof(devices), "%u (%s ..)", b->result.n_devices, first);
    ek_table_row(t, "%s|%.2f M|%s|%s%u x %u|%.1f", m->name, (double)m->n_params * 1e-6, devices,
                 test, tokens, times, rate);
}

static void print_speeds(const struct bench *b)
{
    const struct ek_bench_result *r = &b->result;
    struct ek_table *t = ek_table_new("model|>parameters|devices|test|>tokens/s");
    char prepared[EK_UNIT_LEN];

    if (r->images > 0)
        speed_row(b, t, "img", r->image_tokens, r->images * r->batch,
                  (double)r->image_tokens * r->images * r->batch / r->pictures_s.median);
    speed_row(b, t, "pp", prompt_tokens(r), r->batch, prefill_rate(r));
    speed_row(b, t, "tg", r->generate, r->batch,
              r->decode_s.median > 0 ? r->batch / r->decode_s.median : 0);
    ek_table_print(t, stdout);
    ek_table_free(t);
    if (r->images > 0)
        printf(
            "\npictures of a prompt: %u of %u x %u (%u patches, %u tokens), each prepared in %s\n",
            r->images, r->image_width, r->image_height, r->image_patches, r->image_tokens,
            ek_format_seconds(prepared, r->prepare_s));
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
    return json_pack("{ss ss si si si si si s[ii] sf sf sf so so}", "model", b->session.model->name,
                     "model_hash", b->session.model->hash, "batch", (int)r->batch, "prompt",
                     (int)r->prompt, "generate", (int)r->generate, "images", (int)r->images,
                     "image_tokens", (int)r->image_tokens, "image_size", (int)r->image_width,
                     (int)r->image_height, "prepare_s", r->prepare_s, "prefill_tokens_per_s",
                     prefill_rate(r), "decode_tokens_per_s",
                     r->decode_s.median > 0 ? r->batch / r->decode_s.median : 0.0, "lines", lines,
                     "accounts", ek_account_json(b->rows, b->n_rows));
}

/* Before anything is run, so that no result is lost. Weights that are loaded alone give none. */
static enum ek_status check_output(const struct ek_args *args)
{
    const char *path = ek_arg(args, "output");

    if (path != NULL && ek_arg_flag(args, "load"))
        return ek_error(EK_EUSAGE, "--output: not with --load, whose result --json prints");
    return path ? ek_file_may_write(path, ek_arg_flag(args, "force")) : EK_OK;
}

static enum ek_status write_json(const struct ek_args *args, const struct bench *b)
{
    const char *path = ek_arg(args, "output");
    json_t *json = bench_json(b);
    char *text = json ? ek_json_text(json) : NULL;
    enum ek_status st = text ? ek_file_write(path, text, strlen(text), true) : EK_ENOMEM;

    free(text);
    json_decref(json);
    return st;
}

static enum ek_status store_runs(const struct ek_args *args, const struct bench *b)
{
    struct ek_store_run run = {.batch = b->result.batch,
                               .tokens = prompt_tokens(&b->result),
                               .context = prompt_tokens(&b->result) + b->result.generate};
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

/* "640x480" */
static enum ek_status read_size(const struct ek_args *args, struct ek_bench_options *o)
{
    const char *text = ek_arg(args, "image-size");
    char end;

    if (text == NULL)
        return EK_OK;
    if (strspn(text, "0123456789x") != strlen(text) || strlen(text) > 13 ||
        sscanf(text, "%ux%u%c", &o->image_width, &o->image_height, &end) != 2 ||
        o->image_width == 0 || o->image_height == 0)
        return ek_error(EK_EUSAGE, "--image-size %s: must be WIDTHxHEIGHT in pixels", text);
    return EK_OK;
}

static enum ek_status read_pictures(const struct ek_args *args, struct ek_bench_options *o)
{
    EK_TRY(ek_arg_u32(args, "images", 1, 4096, &o->images));
    EK_TRY(ek_arg_u32(args, "image-tokens", 1, 1u << 20, &o->image_tokens));
    EK_TRY(read_size(args, o));
    if (!ek_arg(args, "plan") && (o->images > 0) != (o->image_tokens > 0 || o->image_width > 0))
        return ek_error(EK_EUSAGE, o->images ? "--images without --image-tokens or --image-size"
                                             : "--image-tokens or --image-size without --images");
    return EK_OK;
}

/* Without a plan, the context is what the workload needs. */
static enum ek_status need_context(const struct ek_args *args, const struct ek_bench_options *o,
                                   struct ek_session *s, struct ek_session_need *need)
{
    uint32_t size[2] = {o->image_width, o->image_height}, tokens = 0;

    if (ek_arg(args, "plan"))
        return EK_OK;
    if (o->images > 0) {
        EK_TRY(ek_session_open_model(args, args->operands[0], s));
        EK_TRY(ek_bench_picture_size(s->model, o->images, o->image_tokens, size, &tokens));
    }
    need->context = o->prompt + o->images * tokens + o->generate;
    return EK_OK;
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
    return read_pictures(args, o);
}

/* Seconds that threads of this process were ready to run and other processes had the cores. */
static double waited(void)
{
    DIR *tasks = opendir("/proc/self/task");
    unsigned long long ran, waits;
    double sum = 0;

    for (struct dirent *d; tasks != NULL && (d = readdir(tasks)) != NULL;) {
        char path[300];
        FILE *f;
        snprintf(path, sizeof(path), "/proc/self/task/%s/schedstat", d->d_name);
        if (d->d_name[0] == '.' || (f = fopen(path, "re")) == NULL)
            continue;
        if (fscanf(f, "%llu %llu", &ran, &waits) == 2)
            sum += (double)waits * 1e-9;
        fclose(f);
    }
    if (tasks != NULL)
        closedir(tasks);
    return sum;
}

/* Times of stages do not have it in them (as a profile's rows), those of the whole do. */
static enum ek_status time_it(struct bench *b, const struct ek_bench_options *opt)
{
    uint64_t begin = ek_now_ns();
    double before = waited(), lost, seconds;

    EK_TRY(ek_bench_run(b->session.engine, opt, &b->result));
    lost = waited() - before;
    seconds = (double)(ek_now_ns() - begin) * 1e-9;
    if (lost > NOTED_LOSS * seconds && lost > LEAST_LOSS)
        ek_note(
            "other processes were at work here: in %.1f s threads waited %.1f s for a core; that "
            "is in the times of the whole, not in those of CPU stages",
            seconds, lost);
    return EK_OK;
}

static enum ek_status run(const struct ek_args *args)
{
    struct ek_bench_options opt = {.repeats = 3, .seed = 1};
    struct ek_session_need need = {0};
    struct bench b = {0};
    enum ek_status st;

    EK_TRY(check_output(args));
    if (ek_arg_flag(args, "load"))
        return ek_bench_load(args);
    EK_TRY(read_workload(args, &opt, &need));
    EK_GOTO(need_context(args, &opt, &b.session, &need), st, done);
    if (ek_arg_flag(args, "account"))
        EK_GOTO(ek_account_begin(&b.account), st, done);
    EK_GOTO(ek_session_open(args, args->operands[0], &need, &b.session), st, done);
    ek_catch_interrupts();
    EK_GOTO(time_it(&b, &opt), st, done);
    if (b.account)
        EK_GOTO(ek_account_of(b.account, b.session.engine, &b.rows, &b.n_rows), st, done);
    EK_GOTO(add_times(&b), st, done);
    EK_GOTO(add_memory(&b), st, done);
    EK_GOTO(store_runs(args, &b), st, done);
    if (ek_arg_flag(args, "json")) {
        st = ek_json_print(bench_json(&b));
    } else {
        print_speeds(&b);
        print_lines(&b);
        if (b.account)
            ek_account_print(b.rows, b.n_rows);
    }
    if (st == EK_OK && ek_arg(args, "output"))
        st = write_json(args, &b);
done:
    ek_account_free(b.account);
    free(b.rows);
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
        "Runs the plan's workload with synthetic token ids (and pictures of random pixels, where\n"
        "it has any): pictures, prefill and decode of the whole, of every stage, and the peak\n"
        "memory of every device, each beside its prediction. Prefill includes the pictures.",
    .run = run,
};
