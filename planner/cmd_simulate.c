/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan simulate: a plan under load.
 */
#include "planner/commands.h"
#include "planner/simulate.h"

#include <getopt.h>
#include <string.h>

static const char help[] =
    "usage: evenkeel simulate PLAN.json [OPTION]...\n"
    "Simulates the pipelined runtime under a load, from the plan's predicted times.\n"
    "\n"
    "  --rate R          requests a second, arriving at random (0: all at the start)\n"
    "  --requests N      how many (200)\n"
    "  --prompt N        tokens of a prompt (the plan's)\n"
    "  --generate N      tokens of an answer (the plan's)\n"
    "  --seed N          of the arrivals (1)\n"
    "  --json, --help\n";

enum { O_RATE = 256, O_REQUESTS, O_PROMPT, O_GENERATE, O_SEED, O_JSON, O_HELP };
static const struct option options[] = {
    {"rate", required_argument, NULL, O_RATE},
    {"requests", required_argument, NULL, O_REQUESTS},
    {"prompt", required_argument, NULL, O_PROMPT},
    {"generate", required_argument, NULL, O_GENERATE},
    {"seed", required_argument, NULL, O_SEED},
    {"json", no_argument, NULL, O_JSON},
    {"help", no_argument, NULL, O_HELP},
    {NULL, 0, NULL, 0},
};

struct arguments {
    struct ek_load load;
    uint64_t requests, prompt, generate;
    const char *plan;
    bool json, done;
};

static enum ek_status read_option(struct arguments *a, int o, char **argv)
{
    switch (o) {
    case O_RATE:
        return ek_parse_double(optarg, "--rate", 0, 1e9, &a->load.rate);
    case O_REQUESTS:
        return ek_parse_u64(optarg, "--requests", 1, 1000000, &a->requests);
    case O_PROMPT:
        return ek_parse_u64(optarg, "--prompt", 1, 1 << 24, &a->prompt);
    case O_GENERATE:
        return ek_parse_u64(optarg, "--generate", 1, 1 << 24, &a->generate);
    case O_SEED:
        return ek_parse_u64(optarg, "--seed", 0, UINT64_MAX, &a->load.seed);
    case O_JSON:
        a->json = true;
        return EK_OK;
    case O_HELP:
        fputs(help, stdout);
        a->done = true;
        return EK_OK;
    default:
        return ek_option_error(argv);
    }
}

static void merge_load(struct arguments *a, const struct ek_plan_file *f)
{
    const json_t *w = json_object_get(f->root, "workload");
    double prompt = json_number_value(json_object_get(w, "prompt"));
    double answer = json_number_value(json_object_get(w, "generate"));

    a->load.requests = (uint32_t)a->requests;
    a->load.prompt = (uint32_t)(a->prompt ? a->prompt : prompt > 0 && prompt < 1e8 ? prompt : 0);
    a->load.generate = (uint32_t)(a->generate                  ? a->generate
                                  : answer > 0 && answer < 1e8 ? answer
                                                               : 1);
}

static void print_spread(const char *what, const double v[3])
{
    char b[3][EK_UNIT_LEN];

    printf("%-16s mean %s, median %s, p99 %s\n", what, ek_format_seconds(b[0], v[0]),
           ek_format_seconds(b[1], v[1]), ek_format_seconds(b[2], v[2]));
}

static void print_people(const struct ek_plan_file *f, const struct arguments *a,
                         const struct ek_simulated *s)
{
    char b[EK_UNIT_LEN];

    printf("%u requests of %u + %u tokens, done after %s: %.1f tokens/s\n", a->load.requests,
           a->load.prompt, a->load.generate, ek_format_seconds(b, s->seconds), s->tokens_per_s);
    printf("%-16s mean %s\n", "wait for a slot", ek_format_seconds(b, s->queued));
    print_spread("first token", s->first_token);
    print_spread("between tokens", s->per_token);
    print_spread("end to end", s->end_to_end);
    for (size_t i = 0; i < f->n_stages; i++)
        printf("stage %-3zu %-14s busy %5.1f %%\n", i, f->devices[f->stages[i].devices[0]].name,
               100 * s->stage_busy[i]);
    for (size_t i = 0; i + 1 < f->n_stages; i++)
        printf("%slink %zu %.1f %%", i ? ", " : "links busy: ", i, 100 * s->link_busy[i]);
    putchar('\n');
}

static json_t *spread_json(const double v[3])
{
    return json_pack("{s:f s:f s:f}", "mean", v[0], "median", v[1], "p99", v[2]);
}

static json_t *shares(const double *v, size_t n)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_real(v[i]));
    return list;
}

static enum ek_status print_json(const struct ek_plan_file *f, const struct ek_simulated *s)
{
    json_t *o = json_pack("{s:f s:f s:f s:o s:o s:o s:o s:o}", "seconds", s->seconds,
                          "tokens_per_s", s->tokens_per_s, "queued_s", s->queued, "first_token_s",
                          spread_json(s->first_token), "per_token_s", spread_json(s->per_token),
                          "end_to_end_s", spread_json(s->end_to_end), "stage_busy",
                          shares(s->stage_busy, f->n_stages), "link_busy",
                          shares(s->link_busy, f->n_stages ? f->n_stages - 1 : 0));

    return ek_json_print(o);
}

static enum ek_status run(int argc, char **argv, int *code)
{
    struct arguments a = {.requests = 200, .load = {.seed = 1}};
    struct ek_plan_file *f;
    struct ek_simulated s;
    enum ek_status st;
    int o;

    (void)code;
    optind = 0;
    opterr = 0;
    while (!a.done && (o = getopt_long(argc, argv, "", options, NULL)) != -1)
        EK_TRY(read_option(&a, o, argv));
    if (a.done)
        return EK_OK;
    if (optind + 1 != argc)
        return ek_error(EK_EUSAGE, "simulate: give one PLAN.json");
    EK_TRY(ek_plan_file_read(argv[optind], &f));
    merge_load(&a, f);
    st = ek_simulate(f, &a.load, &s);
    if (st == EK_OK && a.json)
        st = print_json(f, &s);
    else if (st == EK_OK)
        print_people(f, &a, &s);
    ek_plan_file_free(f);
    return st;
}

const struct ek_command ek_command_simulate = {"simulate", "a plan under load", run};
