/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan plan: the options become a request, the request a plan.
 */
#include "planner/commands.h"
#include "planner/device_map.h"
#include "planner/hardware.h"

#include <config.h>

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: evenkeel plan MODEL --db PROFILE [OPTION]...\n"
    "       evenkeel plan MODEL --hardware CARDS [OPTION]...\n"
    "       evenkeel plan --costs COSTS.json [OPTION]...\n"
    "Finds the best placement of a model's layers on the devices that were measured, and proves "
    "it.\n"
    "\n"
    "Input\n"
    "  --db FILE             profile made by `evenkeel profile`\n"
    "  --costs FILE          costs file instead of a model and a profile (docs/costs.md)\n"
    "  --hardware \"8x rtx4090\"  cards that are not at hand: estimates (`evenkeel-plan "
    "hardware`)\n"
    "  --cards FILE          descriptions of more cards (docs/costs.md)\n"
    "  --devices \"A B\"       plan for these devices of the profile only\n"
    "  --quantize TYPE       int8 or int4: as the model was profiled, and will be run\n"
    "Workload\n"
    "  --batch N             sequences at once (1)\n"
    "  --prompt N            tokens of a prompt (512)\n"
    "  --generate N          tokens of an answer (128)\n"
    "  --context N           tokens of cache kept for a sequence (prompt + images + answer)\n"
    "  --images N            images in a prompt (0)\n"
    "  --image-tokens N      tokens of one image\n"
    "  --micro-batches N     groups of sequences in flight (chosen)\n"
    "  --prefill-chunk N     most new tokens of one prefill step (512)\n"
    "  --cache TYPE          type of the cache: F32, F16, BF16, ... (that of the profile)\n"
    "  --act TYPE            type of the activations (that of the profile)\n"
    "Constraints\n"
    "  --max-memory SIZE...  \"15GB 15GB\", 15GiB,15GiB, 0.9, cuda:0=20GiB: one for all or one for "
    "each\n"
    "  --margin SIZE         kept free on every device: bytes or a fraction (0)\n"
    "  --pin MODULE=DEVICE   modules (name, prefix, prefix*) that must be on a device\n"
    "  --ban MODULE=DEVICE   modules that must not\n"
    "  --together A=B        modules that must share a device\n"
    "  --fixed-order         stages follow the order of the devices\n"
    "  --use-all             leave no device unused\n"
    "  --max-stages N        at most so many stages\n"
    "  --tp N                tensor-parallel degree of every stage (free)\n"
    "  --for ENGINE          only what vllm, sglang, tensorrt-llm, llama.cpp, deepspeed can "
    "express\n"
    "  --near PLAN.json      of plans within --within of the best, the one that moves fewest "
    "bytes\n"
    "  --within F            slack for --near (0.02)\n"
    "  --split-sides         place vision tower, projector, ... one by one\n"
    "Solving\n"
    "  --objective LIST      latency, throughput, balance, balance-time, context, batch; in order\n"
    "                        (throughput,balance)\n"
    "  --time-limit S        seconds of solving (60); then the best so far, exit code 5\n"
    "Output\n"
    "  -o, --output FILE     write the plan there (- is standard output)\n"
    "  --force               replace FILE\n"
    "  --explain             the next-best plans, and what more memory or devices would buy\n"
    "  --alternatives K      so many next-best plans (3 with --explain)\n"
    "  --pareto              the front of prefill, decode and memory\n"
    "  --from MAP.json       what a device_map or an earlier plan would cost; no search\n"
    "  --write-costs FILE    write the costs that were planned from\n"
    "  --json                the plan on standard output instead of the table\n"
    "  --quiet, --help, --version\n";

enum {
    O_DB = 256,
    O_COSTS,
    O_DEVICES,
    O_BATCH,
    O_PROMPT,
    O_GENERATE,
    O_CONTEXT,
    O_QUANTIZE,
    O_IMAGES,
    O_IMAGE_TOKENS,
    O_MICRO,
    O_CHUNK,
    O_CACHE,
    O_MAX_MEMORY,
    O_MARGIN,
    O_PIN,
    O_BAN,
    O_TOGETHER,
    O_ORDER,
    O_USE_ALL,
    O_MAX_STAGES,
    O_TP,
    O_SPLIT,
    O_OBJECTIVE,
    O_TIME_LIMIT,
    O_FORCE,
    O_WRITE_COSTS,
    O_ACT,
    O_HARDWARE,
    O_EXPLAIN,
    O_PARETO,
    O_FROM,
    O_FOR,
    O_NEAR,
    O_WITHIN,
    O_ALTERNATIVES,
    O_CARDS,
    O_JSON,
    O_QUIET,
    O_HELP,
    O_VERSION,
};

static const struct option options[] = {
    {"db", required_argument, NULL, O_DB},
    {"costs", required_argument, NULL, O_COSTS},
    {"devices", required_argument, NULL, O_DEVICES},
    {"hardware", required_argument, NULL, O_HARDWARE},
    {"cards", required_argument, NULL, O_CARDS},
    {"batch", required_argument, NULL, O_BATCH},
    {"prompt", required_argument, NULL, O_PROMPT},
    {"generate", required_argument, NULL, O_GENERATE},
    {"context", required_argument, NULL, O_CONTEXT},
    {"quantize", required_argument, NULL, O_QUANTIZE},
    {"images", required_argument, NULL, O_IMAGES},
    {"image-tokens", required_argument, NULL, O_IMAGE_TOKENS},
    {"micro-batches", required_argument, NULL, O_MICRO},
    {"prefill-chunk", required_argument, NULL, O_CHUNK},
    {"cache", required_argument, NULL, O_CACHE},
    {"act", required_argument, NULL, O_ACT},
    {"max-memory", required_argument, NULL, O_MAX_MEMORY},
    {"margin", required_argument, NULL, O_MARGIN},
    {"pin", required_argument, NULL, O_PIN},
    {"ban", required_argument, NULL, O_BAN},
    {"together", required_argument, NULL, O_TOGETHER},
    {"fixed-order", no_argument, NULL, O_ORDER},
    {"use-all", no_argument, NULL, O_USE_ALL},
    {"max-stages", required_argument, NULL, O_MAX_STAGES},
    {"tp", required_argument, NULL, O_TP},
    {"split-sides", no_argument, NULL, O_SPLIT},
    {"objective", required_argument, NULL, O_OBJECTIVE},
    {"time-limit", required_argument, NULL, O_TIME_LIMIT},
    {"output", required_argument, NULL, 'o'},
    {"force", no_argument, NULL, O_FORCE},
    {"explain", no_argument, NULL, O_EXPLAIN},
    {"pareto", no_argument, NULL, O_PARETO},
    {"from", required_argument, NULL, O_FROM},
    {"for", required_argument, NULL, O_FOR},
    {"near", required_argument, NULL, O_NEAR},
    {"within", required_argument, NULL, O_WITHIN},
    {"alternatives", required_argument, NULL, O_ALTERNATIVES},
    {"write-costs", required_argument, NULL, O_WRITE_COSTS},
    {"json", no_argument, NULL, O_JSON},
    {"quiet", no_argument, NULL, O_QUIET},
    {"help", no_argument, NULL, O_HELP},
    {"version", no_argument, NULL, O_VERSION},
    {NULL, 0, NULL, 0},
};

struct arguments {
    struct ek_request request;
    struct ek_workload given; /* fields that the command line set; 0 elsewhere */
    bool given_generate, given_prompt;
    const char *model, *db, *costs, *devices, *output, *write_costs, *act, *hardware, *cards, *from,
        *near;
    double within;
    bool force, json, done, explain, pareto;
    uint32_t alternatives, quantize;
};

/* ---- Values -------------------------------------------------------------------------------------
 */
static enum ek_status parse_u32(const char *text, const char *what, uint32_t min, uint32_t max,
                                uint32_t *out)
{
    uint64_t v;

    EK_TRY(ek_parse_u64(text, what, min, max, &v));
    *out = (uint32_t)v;
    return EK_OK;
}

static enum ek_status add_budgets(struct ek_request *r, const char *text)
{
    struct ek_size_item *items;
    size_t n, cap = r->n_budgets;
    enum ek_status st;

    EK_TRY(ek_parse_size_list(text, &items, &n));
    st = ek_grow((void **)&r->budgets, &cap, r->n_budgets + n, sizeof(*r->budgets), 4096);
    for (size_t i = 0; st == EK_OK && i < n; i++) {
        struct ek_budget *b = &r->budgets[r->n_budgets++];
        *b = (struct ek_budget){.bytes = items[i].bytes, .fraction = items[i].fraction};
        memcpy(b->name, items[i].name, sizeof(b->name));
    }
    free(items);
    return st;
}

/* "--max-memory 15GB 15GB": the arguments behind it that are sizes, and no files, belong to it. */
static enum ek_status read_budgets(struct ek_request *r, int argc, char **argv)
{
    struct ek_size_item *items;
    size_t n;

    EK_TRY(add_budgets(r, optarg));
    while (optind < argc && argv[optind][0] != '-' && !ek_file_exists(argv[optind]) &&
           ek_parse_size_list(argv[optind], &items, &n) == EK_OK) {
        free(items);
        EK_TRY(add_budgets(r, argv[optind++]));
    }
    return EK_OK;
}

static enum ek_status add_rule(struct ek_request *r, enum ek_rule_kind kind, const char *text)
{
    const char *eq = strrchr(text, '=');
    size_t cap = r->n_rules;
    struct ek_rule rule = {.kind = kind};

    if (eq == NULL || eq == text || eq[1] == '\0' || (size_t)(eq - text) >= sizeof(rule.module) ||
        strlen(eq + 1) >= sizeof(rule.other))
        return ek_error(EK_EUSAGE, "rule \"%s\" must be MODULE=DEVICE (--together: MODULE=MODULE)",
                        text);
    memcpy(rule.module, text, (size_t)(eq - text));
    strcpy(rule.other, eq + 1);
    EK_TRY(ek_grow((void **)&r->rules, &cap, r->n_rules + 1, sizeof(rule), 4096));
    r->rules[r->n_rules++] = rule;
    return EK_OK;
}

static enum ek_status read_objectives(struct ek_request *r, const char *text)
{
    r->n_objectives = 0;
    while (*text) {
        size_t n = strcspn(text, ", "), o = 0;
        while (o < EK_N_OBJECTIVES &&
               (strlen(ek_objective_names[o]) != n || strncmp(ek_objective_names[o], text, n) != 0))
            o++;
        if (o == EK_N_OBJECTIVES || r->n_objectives == EK_N_OBJECTIVES)
            return ek_error(EK_EUSAGE,
                            "objective \"%.*s\" is unknown; there are latency, "
                            "throughput, balance, balance-time, context, batch",
                            (int)n, text);
        r->objectives[r->n_objectives++] = (enum ek_objective)o;
        text += n;
        text += strspn(text, ", ");
    }
    return EK_OK;
}

static enum ek_status read_margin(struct ek_request *r, const char *text)
{
    struct ek_size_item *items;
    size_t n;

    EK_TRY(ek_parse_u64(text, "margin", 0, 0, &r->margin) == EK_OK
               ? EK_OK
               : ek_parse_size_list(text, &items, &n));
    if (strcmp(text, "0") == 0)
        return EK_OK;
    r->margin = items[0].bytes;
    r->margin_fraction = items[0].fraction;
    n = items[0].name[0] ? 2 : n;
    free(items);
    if (n != 1 || r->margin_fraction >= 1)
        return ek_error(EK_EUSAGE, "margin \"%s\" must be one size or a fraction below 1", text);
    return EK_OK;
}

static enum ek_status read_cache(struct arguments *a, const char *text)
{
    enum ek_dtype t;

    if (!ek_dtype_from_name(text, &t) || ek_dtype_block(t) != 1)
        return ek_error(EK_EUSAGE, "cache type \"%s\" is unknown", text);
    snprintf(a->given.cache, sizeof(a->given.cache), "%s", ek_dtype_name(t));
    return EK_OK;
}

/* ---- Options ------------------------------------------------------------------------------------
 */
static enum ek_status workload_option(struct arguments *a, int o)
{
    struct ek_workload *w = &a->given;

    switch (o) {
    case O_BATCH:
        return parse_u32(optarg, "--batch", 1, 65536, &w->batch);
    case O_PROMPT:
        a->given_prompt = true;
        return parse_u32(optarg, "--prompt", 0, 1 << 24, &w->prompt);
    case O_GENERATE:
        a->given_generate = true;
        return parse_u32(optarg, "--generate", 0, 1 << 24, &w->generate);
    case O_QUANTIZE:
        return ek_quantize_parse(optarg, &a->quantize);
    case O_CONTEXT:
        return parse_u32(optarg, "--context", 1, 1 << 24, &w->context);
    case O_IMAGES:
        return parse_u32(optarg, "--images", 0, 4096, &w->images);
    case O_IMAGE_TOKENS:
        return parse_u32(optarg, "--image-tokens", 1, 1 << 20, &w->image_tokens);
    case O_MICRO:
        return parse_u32(optarg, "--micro-batches", 1, 65536, &w->micro_batches);
    case O_CHUNK:
        return parse_u32(optarg, "--prefill-chunk", 1, 1 << 20, &w->prefill_chunk);
    default:
        return read_cache(a, optarg);
    }
}

static enum ek_status request_option(struct arguments *a, int o, int argc, char **argv)
{
    struct ek_request *r = &a->request;

    switch (o) {
    case O_MAX_MEMORY:
        return read_budgets(r, argc, argv);
    case O_MARGIN:
        return read_margin(r, optarg);
    case O_PIN:
        return add_rule(r, EK_RULE_PIN, optarg);
    case O_BAN:
        return add_rule(r, EK_RULE_BAN, optarg);
    case O_TOGETHER:
        return add_rule(r, EK_RULE_TOGETHER, optarg);
    case O_ORDER:
        r->fixed_order = true;
        return EK_OK;
    case O_USE_ALL:
        r->use_all = true;
        return EK_OK;
    case O_MAX_STAGES:
        return parse_u32(optarg, "--max-stages", 1, EK_PLAN_MAX_DEVICES, &r->max_stages);
    case O_TP:
        return parse_u32(optarg, "--tp", 1, EK_PLAN_MAX_TP, &r->tp);
    case O_SPLIT:
        r->split_sides = true;
        return EK_OK;
    case O_OBJECTIVE:
        return read_objectives(r, optarg);
    default:
        return ek_parse_double(optarg, "--time-limit", 0.001, 1e6, &r->time_limit);
    }
}

/* What these engines can say: one pipeline of whole layers, side modules and embedding with its
 * first stage. Norm and head on the last, and one tensor-parallel degree, hold by the chain's order
 * and --tp. */
static enum ek_status read_engine(struct ek_request *r, const char *text)
{
    static const char *const engines[] = {"vllm", "sglang", "tensorrt-llm", "llama.cpp",
                                          "deepspeed"};

    for (size_t i = 0; i < EK_ARRAY_LEN(engines); i++)
        if (strcmp(engines[i], text) == 0) {
            r->sides_first = r->whole_layers = true;
            r->tp = r->tp ? r->tp : 1;
            return EK_OK;
        }
    return ek_error(EK_EUSAGE,
                    "--for \"%s\": there are vllm, sglang, tensorrt-llm, llama.cpp, "
                    "deepspeed",
                    text);
}

static enum ek_status file_option(struct arguments *a, int o)
{
    switch (o) {
    case O_DB:
        a->db = optarg;
        return EK_OK;
    case O_COSTS:
        a->costs = optarg;
        return EK_OK;
    case O_DEVICES:
        a->devices = optarg;
        return EK_OK;
    case 'o':
        a->output = optarg;
        return EK_OK;
    case O_PARETO:
        a->pareto = true;
        return EK_OK;
    case O_FROM:
        a->from = optarg;
        return EK_OK;
    case O_FOR:
        return read_engine(&a->request, optarg);
    case O_NEAR:
        a->near = optarg;
        return EK_OK;
    case O_WITHIN:
        return ek_parse_double(optarg, "--within", 0, 10, &a->within);
    case O_EXPLAIN:
        a->explain = true;
        a->alternatives = a->alternatives ? a->alternatives : 3;
        return EK_OK;
    case O_ALTERNATIVES:
        return parse_u32(optarg, "--alternatives", 1, 32, &a->alternatives);
    case O_HARDWARE:
        a->hardware = optarg;
        return EK_OK;
    case O_CARDS:
        a->cards = optarg;
        return EK_OK;
    case O_ACT:
        a->act = optarg;
        return EK_OK;
    case O_WRITE_COSTS:
        a->write_costs = optarg;
        return EK_OK;
    case O_FORCE:
        a->force = true;
        return EK_OK;
    case O_JSON:
        a->json = true;
        return EK_OK;
    case O_QUIET:
        ek_set_quiet(true);
        return EK_OK;
    case O_HELP:
        fputs(help, stdout);
        break;
    case O_VERSION:
        printf("evenkeel-plan %s\n", PACKAGE_VERSION);
        break;
    default:
        return ek_error(EK_EUSAGE, "plan: unknown or incomplete option; see `plan --help`");
    }
    a->done = true;
    return EK_OK;
}

static enum ek_status read_arguments(struct arguments *a, int argc, char **argv)
{
    int o;

    optind = 0;
    opterr = 0;
    while (!a->done && (o = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
        if (o >= O_BATCH && o <= O_CACHE)
            EK_TRY(workload_option(a, o));
        else if (o >= O_MAX_MEMORY && o <= O_TIME_LIMIT)
            EK_TRY(request_option(a, o, argc, argv));
        else
            EK_TRY(file_option(a, o));
    }
    if (a->done)
        return EK_OK;
    if (optind < argc)
        a->model = argv[optind++];
    if (optind < argc)
        return ek_error(EK_EUSAGE, "plan: unexpected argument \"%s\"", argv[optind]);
    if ((a->costs != NULL) == (a->model != NULL))
        return ek_error(EK_EUSAGE, "plan: give either MODEL with --db, or --costs");
    if (a->model && (a->db == NULL) == (a->hardware == NULL))
        return ek_error(EK_EUSAGE, "plan: MODEL needs --db PROFILE or --hardware CARDS");
    return EK_OK;
}

/* What the command line did not say comes from the costs file. */
static void merge_workload(struct arguments *a, const struct ek_costs *c)
{
    struct ek_workload *w = &a->request.workload;
    const struct ek_workload *g = &a->given;

    *w = c->workload;
    w->batch = g->batch ? g->batch : w->batch;
    w->prompt = a->given_prompt ? g->prompt : w->prompt;
    w->generate = a->given_generate ? g->generate : w->generate;
    if (g->context || a->given_prompt || a->given_generate || g->images)
        w->context = g->context;
    w->images = g->images ? g->images : w->images;
    w->image_tokens = g->image_tokens ? g->image_tokens : w->image_tokens;
    w->micro_batches = g->micro_batches ? g->micro_batches : w->micro_batches;
    w->prefill_chunk = g->prefill_chunk ? g->prefill_chunk : w->prefill_chunk;
}

/* ---- The command --------------------------------------------------------------------------------
 */
static enum ek_status estimate(const struct arguments *a, const struct ek_model *m,
                               struct ek_costs **c)
{
    struct ek_card *more = NULL;
    struct ek_fleet fleet;
    size_t n = 0;
    uint32_t tp = a->request.tp ? a->request.tp : 1;
    enum ek_status st = EK_OK;

    if (a->cards)
        EK_TRY(ek_cards_read(a->cards, &more, &n));
    st = ek_hardware_parse(a->hardware, more, n, &fleet);
    if (st == EK_OK)
        st = ek_costs_estimate(m, &fleet, a->act, a->given.cache[0] ? a->given.cache : NULL, tp, c);
    free(more);
    return st;
}

static enum ek_status get_costs(struct arguments *a, struct ek_costs **c)
{
    const struct ek_model_options o = {.seed = 1, .quantize = a->quantize};
    struct ek_profile_choice choice = {
        .devices = a->devices, .act = a->act, .cache = a->given.cache[0] ? a->given.cache : NULL};
    struct ek_model *m = NULL;
    struct ek_store *store = NULL;
    enum ek_status st;

    if (a->costs)
        return ek_costs_read(a->costs, c);
    EK_TRY(ek_model_open(a->model, &o, &m));
    if (a->hardware) {
        st = estimate(a, m, c);
        goto end;
    }
    EK_GOTO(ek_store_open(a->db, EK_STORE_READ, &store), st, end);
    st = ek_costs_from_profile(m, store, &choice, c);
end:
    ek_store_close(store);
    ek_model_close(m);
    return st;
}

/* Adds what was asked for beyond the plan itself. */
static enum ek_status add_explanations(const struct arguments *a, const struct ek_costs *c,
                                       const struct ek_solution *s, json_t *plan)
{
    json_t *e = ek_explanation_json(s), *v;

    if (e == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    json_object_set_new(plan, "explanation", e);
    if (a->alternatives) {
        EK_TRY(ek_alternatives(c, &a->request, s, a->alternatives, &v));
        json_object_set_new(e, "next_best", v);
    }
    if (a->pareto) {
        EK_TRY(ek_pareto(s, &a->request, &v));
        json_object_set_new(plan, "pareto", v);
    }
    if (a->explain) {
        EK_TRY(ek_sensitivity(c, &a->request, s, &v));
        json_object_set_new(e, "sensitivity", v);
    }
    return EK_OK;
}

static void print_list(const json_t *list, const char *title, FILE *out)
{
    json_t *o, *m;
    size_t i, k;

    json_array_foreach((json_t *)list, i, o)
    {
        const char *change = json_string_value(json_object_get(o, "change"));
        fprintf(out, "%-13s %.6g", i ? "" : title, json_number_value(json_object_get(o, "value")));
        if (change)
            fprintf(out, " (%.3f x) with %s", json_number_value(json_object_get(o, "times")),
                    change);
        json_array_foreach(json_object_get(o, "modules"), k, m)
            fprintf(out, "%s%s", k ? ", " : " as ", json_string_value(m));
        fputc('\n', out);
    }
}

static void show_for_people(const struct arguments *a, const struct ek_costs *c,
                            const struct ek_solution *s, const json_t *plan)
{
    const json_t *e = json_object_get(plan, "explanation");

    ek_plan_print(c, s, &a->request, stdout);
    ek_explanation_print(s, stdout);
    if (a->alternatives)
        fputc('\n', stdout);
    print_list(json_object_get(e, "next_best"), "next best", stdout);
    print_list(json_object_get(e, "sensitivity"), "would buy", stdout);
}

static enum ek_status deliver(const struct arguments *a, const struct ek_costs *c,
                              const struct ek_solution *s, json_t *plan, int *code)
{
    bool to_stdout = a->output && strcmp(a->output, "-") == 0;
    char moved[EK_UNIT_LEN];

    EK_TRY(add_explanations(a, c, s, plan));
    if (a->output)
        EK_TRY(ek_json_write(a->output, plan, a->force));
    if (a->json && !to_stdout)
        EK_TRY(ek_json_write("-", plan, true));
    if (!a->json && !to_stdout)
        show_for_people(a, c, s, plan);
    if (a->output && !to_stdout)
        ek_note("plan written to %s", a->output);
    if (s->near)
        ek_note("%s of weights change their device",
                ek_format_bytes(moved, (uint64_t)s->moved_bytes));
    if (!s->proven) {
        ek_note("stopped before the proof: this is the best plan so far");
        *code = ek_exit_code(EK_EUNPROVEN);
    }
    return EK_OK;
}

static enum ek_status show(const struct arguments *a, const struct ek_costs *c,
                           const struct ek_solution *s, int *code)
{
    json_t *plan = ek_plan_json(c, &a->request, s);
    enum ek_status st;

    if (plan == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    st = deliver(a, c, s, plan, code);
    json_decref(plan);
    return st;
}

/* Nothing fits: the reason on one line, then what would help. */
static enum ek_status refuse(const struct arguments *a, const struct ek_costs *c, int *code)
{
    char reason[1024];
    json_t *advice, *line;
    size_t i;

    snprintf(reason, sizeof(reason), "%s", ek_last_error());
    EK_TRY(ek_advice(c, &a->request, &advice));
    fprintf(stderr, "evenkeel: %s\n", reason);
    json_array_foreach(advice, i, line) fprintf(stderr, "evenkeel: %s\n", json_string_value(line));
    if (a->json) {
        json_t *o =
            json_pack("{s:b s:s s:O}", "feasible", false, "reason", reason, "advice", advice);
        enum ek_status st = ek_json_write("-", o, true);
        json_decref(o);
        json_decref(advice);
        EK_TRY(st);
    } else {
        json_decref(advice);
    }
    *code = ek_exit_code(EK_NO);
    return EK_OK;
}

static enum ek_status write_costs(const char *path, const struct ek_costs *c, bool force)
{
    json_t *v = ek_costs_json(c);
    enum ek_status st;

    if (v == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    st = ek_json_write(path, v, force);
    json_decref(v);
    return st;
}

/* The placement with the number of micro-batches that suits it best, unless one was given. */
static enum ek_status best_assessment(const struct arguments *a, const struct ek_costs *c,
                                      struct ek_problem **out, struct ek_assessment *best)
{
    uint32_t given = a->request.workload.micro_batches, batch = a->request.workload.batch;
    uint32_t m = given && given < batch ? given : given ? batch : 1;

    *out = NULL;
    for (; m <= batch && m <= 64; m *= 2) {
        struct ek_problem *p = NULL;
        struct ek_assignment map;
        struct ek_assessment v;
        enum ek_status st = ek_problem_new(c, &a->request, m, &p);
        if (st == EK_OK)
            st = ek_assignment_read(p, a->from, &map);
        if (st != EK_OK) {
            ek_problem_free(p);
            ek_problem_free(*out);
            *out = NULL;
            return st;
        }
        ek_assess(p, &map, &v);
        if (*out == NULL || v.score.throughput < best->score.throughput) {
            struct ek_problem *old = *out;
            *out = p;
            p = old;
            *best = v;
        }
        ek_problem_free(p);
        if (given)
            break;
    }
    return EK_OK;
}

/* --from: what somebody's placement would cost; exit code 1 when it does not fit. */
static enum ek_status cost_map(const struct arguments *a, const struct ek_costs *c, int *code)
{
    struct ek_problem *p = NULL;
    struct ek_assessment v = {0};
    char s[3][EK_UNIT_LEN];
    enum ek_status st = best_assessment(a, c, &p, &v);

    if (st == EK_OK) {
        *code = v.worst_ratio > 1 || !v.runnable ? ek_exit_code(EK_NO) : 0;
        if (a->json)
            printf("{\"fits\": %s, \"runnable\": %s, \"throughput_s\": %.9g, \"latency_s\": %.9g, "
                   "\"balance\": %.9g, \"prefill_s\": %.9g, \"decode_s\": %.9g, \"stages\": %u}\n",
                   v.worst_ratio <= 1 ? "true" : "false", v.runnable ? "true" : "false",
                   v.score.throughput, v.score.latency, v.score.balance, v.prefill_s, v.decode_s,
                   v.stages);
        else
            printf("%s: %u stages, a batch in %s, prefill %s, decode %s a token; fullest %s at "
                   "%.1f %%%s\n",
                   a->from, v.stages, ek_format_seconds(s[0], v.score.throughput),
                   ek_format_seconds(s[1], v.prefill_s), ek_format_seconds(s[2], v.decode_s),
                   ek_pdevice_name(p, v.worst), v.worst_ratio * 100,
                   v.worst_ratio > 1 ? ": DOES NOT FIT" : "");
    }
    ek_problem_free(p);
    return st;
}

static enum ek_status make_plan(struct arguments *a, int *code)
{
    struct ek_costs *c = NULL;
    struct ek_solution *s = NULL;
    enum ek_status st;

    EK_GOTO(get_costs(a, &c), st, end);
    merge_workload(a, c);
    c->workload = a->request.workload;
    if (a->write_costs)
        EK_GOTO(write_costs(a->write_costs, c, a->force), st, end);
    if (a->from) {
        st = cost_map(a, c, code);
        goto end;
    }
    st = ek_solve(c, &a->request, &s);
    if (st == EK_OK && a->near)
        st = ek_stay_near(c, &a->request, a->near, a->within, s);
    if (st == EK_OK)
        st = show(a, c, s, code);
    else if (st == EK_NO)
        st = refuse(a, c, code);
end:
    ek_solution_free(s);
    ek_costs_free(c);
    return st;
}

static enum ek_status run(int argc, char **argv, int *code)
{
    struct arguments a = {.request = EK_REQUEST_INIT, .within = 0.02};
    enum ek_status st;

    a.request.stop = &ek_stopped;
    st = read_arguments(&a, argc, argv);
    if (st == EK_OK && !a.done)
        st = make_plan(&a, code);
    ek_request_free(&a.request);
    return st;
}

const struct ek_command ek_command_plan = {"plan", "find the best placement, and prove it", run};
