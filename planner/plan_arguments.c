/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan plan: its options become a request.
 */
#include "planner/plan_arguments.h"
#include "planner/commands.h"

#include <config.h>

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

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
    "  --hardware \"8x rtx4090\"  cards that are not at hand (`evenkeel hardware`): estimates, "
    "from\n"
    "                        --db scaled by roofline where that is given\n"
    "  --cards FILE          descriptions of more cards (docs/costs.md)\n"
    "  --devices \"A B\"       plan for these devices of the profile only\n"
    "  --calibrated          times corrected by what `bench --db` stored of this model's runs\n"
    "  --quantize TYPE       int8, int4, with +ends: as the model was profiled, and will be run\n"
    "Workload\n"
    "  --batch N             sequences at once (1)\n"
    "  --prompt N            tokens of a prompt (512)\n"
    "  --generate N          tokens of an answer (128)\n"
    "  --context N           tokens of cache kept for a sequence (prompt + images + answer)\n"
    "  --images N            images in a prompt (0)\n"
    "  --image-tokens N      tokens of one image\n"
    "  --micro-batches N     groups of sequences in flight (chosen)\n"
    "  --prefill-chunk N     most new tokens of one prefill step (chosen)\n"
    "  --cache TYPE          type of the cache: F32, F16, BF16, fp8 (that of the profile)\n"
    "  --act TYPE            type of the activations (that of the profile)\n"
    "Constraints\n"
    "  --max-memory SIZE...  \"15GB 15GB\", 15GiB,15GiB, 0.9, 90%, cuda:0=20GiB: one for all or "
    "one\n"
    "                        for each\n"
    "  --margin SIZE         kept free on every device: bytes or a fraction (0)\n"
    "  --pin MODULE=DEVICE   modules (name, prefix, prefix*) that must be on a device\n"
    "  --ban MODULE=DEVICE   modules that must not\n"
    "  --together A=B        modules that must share a device\n"
    "  --fixed-order         stages follow the order of the devices\n"
    "  --use-all             leave no device unused\n"
    "  --max-stages N        at most so many stages\n"
    "  --tp N                tensor-parallel degree of every stage (free)\n"
    "  --for ENGINE          only what accelerate, vllm, sglang, tensorrt-llm, llama.cpp, "
    "deepspeed "
    "can\n"
    "                        express\n"
    "  --near PLAN.json      of plans within --within of the best, the one that moves fewest "
    "bytes\n"
    "  --within F            slack for --near (0.02)\n"
    "  --split-sides         place vision tower, projector, ... one by one\n"
    "  --cut-tower           let the vision tower be cut between blocks: it begins the chain\n"
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
    "  --from MAP            no search: what a placement costs, written as a plan by -o. A\n"
    "                        device_map or plan file, a split of the layers as [13,14] (all else "
    "on\n"
    "                        the first device), or a recipe: equal split, accelerate balanced, "
    "...\n"
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
    O_CUT_TOWER,
    O_CALIBRATED,
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
    {"calibrated", no_argument, NULL, O_CALIBRATED},
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
    {"cut-tower", no_argument, NULL, O_CUT_TOWER},
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

/* As users and other programs spell types: in any case, with '-', '_' or nothing between. */
static enum ek_status read_type(const char *text, const char *what, bool (*allowed)(enum ek_dtype),
                                const char **name)
{
    static const char *const as_typed[][2] = {
        {"fp8", "F8_E4M3"},       {"f8", "F8_E4M3"},     {"float8", "F8_E4M3"}, {"e4m3", "F8_E4M3"},
        {"fp8e4m3", "F8_E4M3"},   {"f8e4m3", "F8_E4M3"}, {"e4m3fn", "F8_E4M3"}, {"fp16", "F16"},
        {"fp8e4m3fn", "F8_E4M3"}, {"half", "F16"},       {"fp32", "F32"},
    };
    const char *known = text;
    char word[16];
    size_t n = 0;
    enum ek_dtype t;

    for (const char *c = text; *c && n + 1 < sizeof(word); c++)
        if (strchr("-_ ", *c) == NULL)
            word[n++] = *c;
    word[n] = '\0';
    for (size_t i = 0; i < EK_ARRAY_LEN(as_typed); i++)
        if (strcasecmp(word, as_typed[i][0]) == 0)
            known = as_typed[i][1];
    if (!ek_dtype_from_name(known, &t) || !allowed(t))
        return ek_error(EK_EUSAGE, "%s type \"%s\" must be F32, F16%s", what, text,
                        allowed(EK_F8_E4M3) ? ", BF16 or fp8" : " or BF16");
    *name = ek_dtype_name(t);
    return EK_OK;
}

static enum ek_status read_cache(struct ek_plan_arguments *a, const char *text)
{
    const char *name;

    EK_TRY(read_type(text, "cache", ek_dtype_is_cache, &name));
    snprintf(a->given.cache, sizeof(a->given.cache), "%s", name);
    return EK_OK;
}

/* ---- Options ------------------------------------------------------------------------------------
 */
static enum ek_status workload_option(struct ek_plan_arguments *a, int o)
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

static enum ek_status request_option(struct ek_plan_arguments *a, int o, int argc, char **argv)
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

/* What engines can say. Most: one pipeline of whole layers on GPUs, side modules and embedding with
 * its first stage; norm and head on the last hold by the chain's order. accelerate: a device_map.
 */
static enum ek_status read_engine(struct ek_plan_arguments *a, const char *text)
{
    struct ek_request *r = &a->request;
    static const struct {
        const char *name;
        bool pipeline;
        bool tp; /* tensor parallelism beside the pipeline, of one degree */
    } engines[] = {{"accelerate", false, false}, {"vllm", true, true},
                   {"sglang", true, true},       {"tensorrt-llm", true, true},
                   {"llama.cpp", true, false},   {"deepspeed", true, false}};

    for (size_t i = 0; i < EK_ARRAY_LEN(engines); i++)
        if (strcmp(engines[i].name, text) == 0) {
            r->sides_first = r->whole_layers = r->no_cpu = engines[i].pipeline;
            r->as_map = !engines[i].pipeline;
            r->one_degree = engines[i].tp;
            a->no_tp = !engines[i].tp;
            return EK_OK;
        }
    return ek_error(EK_EUSAGE,
                    "--for \"%s\": there are accelerate, vllm, sglang, tensorrt-llm, "
                    "llama.cpp, deepspeed",
                    text);
}

static enum ek_status file_option(struct ek_plan_arguments *a, int o, char **argv)
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
    case O_CALIBRATED:
        a->calibrated = true;
        return EK_OK;
    case O_PARETO:
        a->pareto = true;
        return EK_OK;
    case O_FROM:
        a->from = optarg;
        return EK_OK;
    case O_FOR:
        return read_engine(a, optarg);
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
        return read_type(optarg, "activation", ek_dtype_is_act, &a->act);
    case O_CUT_TOWER:
        a->cut_tower = true;
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
        return ek_option_error(argv);
    }
    a->done = true;
    return EK_OK;
}

enum ek_status ek_plan_arguments_read(struct ek_plan_arguments *a, int argc, char **argv)
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
            EK_TRY(file_option(a, o, argv));
    }
    if (a->done)
        return EK_OK;
    if (optind < argc)
        a->model = argv[optind++];
    if (optind < argc)
        return ek_error(EK_EUSAGE, "plan: unexpected argument \"%s\"", argv[optind]);
    if ((a->costs != NULL) == (a->model != NULL))
        return ek_error(EK_EUSAGE, "plan: give either MODEL with --db or --hardware, or --costs");
    if (a->costs && (a->cut_tower || a->devices))
        return ek_error(EK_EUSAGE, "plan: %s is for a MODEL; costs say what they are of",
                        a->cut_tower ? "--cut-tower" : "--devices");
    if (a->model && a->db == NULL && a->hardware == NULL)
        return ek_error(EK_EUSAGE, "plan: MODEL needs --db PROFILE or --hardware CARDS");
    if (a->costs && (a->db || a->hardware))
        return ek_error(EK_EUSAGE, "plan: --costs has its own devices, without --db or --hardware");
    if (a->no_tp && a->request.tp > 1)
        return ek_error(EK_EUSAGE, "plan: that engine has no --tp %u", a->request.tp);
    if (a->no_tp)
        a->request.tp = 1;
    if (a->calibrated && (a->db == NULL || a->hardware))
        return ek_error(EK_EUSAGE, "plan: --calibrated needs --db PROFILE, whose runs it takes");
    return EK_OK;
}

void ek_plan_arguments_merge(struct ek_plan_arguments *a, const struct ek_costs *c)
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
