/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "planner/planner.h"
#include "planner/cluster.h"
#include "planner/device_map.h"
#include "planner/hardware.h"
#include "planner/plan_file.h"
#include "planner/problem.h"
#include "planner/simulate.h"
#include "tests/planner/instances.h"
#include "tests/planner/small.h"

#include <check.h>
#include <glpk.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Files --------------------------------------------------------------------------------------
 */
START_TEST(costs_survive_being_written_and_read)
{
    struct ek_costs *c = small_costs(), *again = NULL;
    json_t *a = ek_costs_json(c), *b;
    char *x, *y;

    ck_assert_int_eq(ek_costs_from_json(a, "again", &again), EK_OK);
    b = ek_costs_json(again);
    x = ek_json_text(a);
    y = ek_json_text(b);
    ck_assert_str_eq(x, y);
    free(x);
    free(y);
    json_decref(a);
    json_decref(b);
    ek_costs_free(c);
    ek_costs_free(again);
}
END_TEST

static const struct {
    const char *from, *to, *says;
} hostile_costs[] = {
    {"'version':1", "'version':2", "version"},
    {"evenkeel-costs", "evenkeel-plan", "format"},
    {"'memory':1000", "'memory':-1", "classes[0].memory"},
    {"'memory':1000", "'memory':1e300", "classes[0].memory"},
    {"'memory':1000", "'memory':'many'", "classes[0].memory"},
    {"'count':2", "'count':0", "classes[0].count"},
    {"'count':2", "'count':100", "classes[0].count"},
    {"'name':'slow'", "'name':'fast'", "unknown class"},
    {"'name':'slow'", "'name':''", "classes[1].name"},
    {"'weights':100", "'weights':1.5", "modules[0].weights"},
    {"'weights':100", "'weights':9223372036854775807", "modules[0].weights"},
    {"'kind':'norm'", "'kind':'attention'", "kind"},
    {"'tied_to':'model.embed_tokens'", "'tied_to':'nothing'", "tied_to"},
    {"'tied_to':'model.embed_tokens'", "'tied_to':'lm_head'", "no earlier module"},
    {"'kind':'embed'", "'kind':'embed','tied_to':'lm_head'", "no earlier module"}, /* a cycle */
    {"'kv':1", "'kv':1e18", "modules[1].kv"},
    {"'kv':1", "'kv':1099511627776", "modules[1].kv"},
    {"'boundary':8", "'boundary':1125899906842624", "modules[0].boundary"},
    {"'alpha_s':1e-5", "'alpha_s':-1", "links[0].alpha_s"},
    {"'from':'fast','to':'slow'", "'from':'none','to':'slow'", "unknown class"},
    {"'overhead':10}", "'overhead':10,'calibration':{'prefill':0,'decode':1,'n':1}}", "prefill"},
    {"'overhead':10}", "'overhead':10,'calibration':[1]}", "calibration"},
    {"'overhead':10}", "'overhead':10,'return_s':-1}", "classes[0].return_s"},
    {"'prompt':64", "'prompt':2147483648", "workload.prompt"},
    {"model.layers.1'", "model.layers.0'", "twice"},
    {"'prefill':0.5", "'prefill':-0.5", "times[5].prefill"},
    {"'prefill':0.5", "'prefill':[]", "times[5].prefill"},
    {"'prefill':0.5", "'prefill':[[1,2]]", "times[5].prefill"},
    {"'prefill':0.5", "'prefill':[[1,2,0.1],[1,2,0.2]]", "same point"},
    {"'prefill':0.5", "'prefill':'NaN'", "times[5].prefill"},
    {"'decode':0.004", "'decode':1e7", "times[5].decode"},
    {"{'class':'slow','signature':'layer'", "{'class':'none','signature':'layer'", "unknown class"},
    {"{'class':'slow','signature':'layer'", "{'class':'slow','signature':'none'", "of no module"},
    {"{'class':'slow','signature':'layer'", "{'class':'fast','signature':'layer'", "twice"},
    {"'signature':'lm_head','prefill':0.001", "'signature':'model.norm','prefill':0.001", "twice"},
    {"'beta_bytes_s':1e9", "'beta_bytes_s':0", "links[0].beta_bytes_s"},
    {"{'from':'fast','to':'slow'", "{'from':'fast','to':'fast'", "twice"},
    {"'batch':2", "'batch':0", "workload.batch"},
    {"'kind':'embed'", "'side':1", "side"},
};

START_TEST(hostile_costs_are_refused_by_field)
{
    char *text = with(small, hostile_costs[_i].from, hostile_costs[_i].to);
    json_t *root = parse(text);
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_from_json(root, "bad.json", &c) == EK_EFORMAT, "%s was taken",
                  hostile_costs[_i].to);
    ck_assert_msg(strstr(ek_last_error(), hostile_costs[_i].says) != NULL, "%s: %s",
                  hostile_costs[_i].to, ek_last_error());
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "bad.json"));
    ck_assert_ptr_null(c);
    json_decref(root);
    free(text);
}
END_TEST

START_TEST(the_same_input_gives_the_same_bytes)
{
    char *text[2];

    for (int i = 0; i < 2; i++) {
        struct ek_costs *c = small_costs();
        struct ek_request r = request_for(c);
        struct ek_solution *s = solve(c, &r);
        json_t *plan = ek_plan_json(c, &r, s);
        json_object_set_new(plan, "explanation", ek_explanation_json(s));
        text[i] = ek_json_text(plan);
        json_decref(plan);
        ek_solution_free(s);
        ek_costs_free(c);
    }
    ck_assert_str_eq(text[0], text[1]);
    free(text[0]);
    free(text[1]);
}
END_TEST

/* ---- Constraints --------------------------------------------------------------------------------
 */
static uint32_t device_of(const struct ek_solution *s, const char *module)
{
    struct ek_assignment a;

    ek_assignment_of(s->problem, &s->answer, &a);
    for (size_t i = 0; i < s->problem->costs->n_modules; i++)
        if (strcmp(s->problem->costs->modules[i].name, module) == 0)
            return a.device[i];
    ck_abort_msg("no module %s", module);
    return 0;
}

static struct ek_solution *solve_rule(enum ek_rule_kind kind, const char *module, const char *other)
{
    static struct ek_costs *c; /* freed by the next call; the problem borrows it */
    struct ek_rule rule = {.kind = kind};
    struct ek_request r;

    ek_costs_free(c);
    c = NULL;
    if (module == NULL)
        return NULL;
    c = small_costs();
    r = request_for(c);
    strcpy(rule.module, module);
    strcpy(rule.other, other);
    r.rules = &rule;
    r.n_rules = 1;
    return solve(c, &r);
}

START_TEST(pins_bans_and_colocation_are_kept)
{
    struct ek_solution *s = solve_rule(EK_RULE_PIN, "model.layers.2", "slow:0");

    ck_assert_uint_eq(device_of(s, "model.layers.2"), 2);
    ek_solution_free(s);
    s = solve_rule(EK_RULE_PIN, "model.layers.*", "slow");
    for (int i = 0; i < 4; i++) {
        char name[32];
        snprintf(name, sizeof(name), "model.layers.%d", i);
        ck_assert_uint_eq(device_of(s, name), 2);
    }
    ek_solution_free(s);
    s = solve_rule(EK_RULE_BAN, "lm_head", "fast");
    ck_assert_uint_eq(device_of(s, "lm_head"), 2);
    ek_solution_free(s);
    s = solve_rule(EK_RULE_TOGETHER, "model.layers.0", "lm_head");
    ck_assert_uint_eq(device_of(s, "model.layers.0"), device_of(s, "lm_head"));
    ek_solution_free(s);
    solve_rule(EK_RULE_PIN, NULL, NULL);
}
END_TEST

START_TEST(budgets_come_in_every_form)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_budget all = {.bytes = 800}, named = {.name = "slow:0", .bytes = 1500},
                     part = {.name = "fast", .fraction = 0.9},
                     three[3] = {{.bytes = 900}, {.bytes = 800}, {.bytes = 700}};
    struct ek_solution *s;

    r.n_budgets = 1;
    r.budgets = &all;
    s = solve(c, &r);
    for (int d = 0; d < 3; d++)
        ck_assert_uint_eq(s->problem->devices[d].memory, 800);
    ek_solution_free(s);
    r.budgets = &named;
    s = solve(c, &r);
    ck_assert_uint_eq(s->problem->devices[2].memory, 1500);
    ck_assert_uint_eq(s->problem->devices[0].memory, 1000);
    ek_solution_free(s);
    r.budgets = &part;
    s = solve(c, &r);
    ck_assert_uint_eq(s->problem->devices[1].memory, 900);
    ek_solution_free(s);
    r.budgets = three;
    r.n_budgets = 3;
    s = solve(c, &r);
    for (int d = 0; d < 3; d++)
        ck_assert_uint_eq(s->problem->devices[d].memory, 900 - 100 * d);
    ek_solution_free(s);
    r.n_budgets = 2;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_EUSAGE);
    r.n_budgets = 1;
    strcpy(named.name, "tpu:0");
    r.budgets = &named;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_EUSAGE);
    ek_costs_free(c);
}
END_TEST

START_TEST(no_device_is_over_its_budget_less_margin)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s;
    struct ek_placement pl;

    r.margin = 150;
    s = solve(c, &r);
    ek_place(s->problem, s->answer.columns, s->answer.n, &pl);
    for (int d = 0; d < 3; d++)
        if (pl.used[d])
            ck_assert_uint_le(pl.memory[d].total + 150, s->problem->devices[d].memory);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

START_TEST(the_longest_context_fits_and_one_more_token_does_not)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s;
    uint32_t context;

    r.objectives[0] = EK_OBJ_CONTEXT;
    r.n_objectives = 1;
    s = solve(c, &r);
    context = s->context;
    ck_assert_double_eq(s->values[0], context);
    ek_solution_free(s);
    r.objectives[0] = EK_OBJ_LATENCY;
    r.workload.context = context;
    ek_solution_free(solve(c, &r));
    r.workload.context = context + 1;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_NO);
    ek_costs_free(c);
}
END_TEST

START_TEST(the_largest_batch_fits_and_one_more_does_not)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s;
    uint32_t batch;

    r.objectives[0] = EK_OBJ_BATCH;
    r.n_objectives = 1;
    s = solve(c, &r);
    batch = s->batch;
    ek_solution_free(s);
    ck_assert_uint_ge(batch, 4);
    r.objectives[0] = EK_OBJ_LATENCY;
    r.workload.batch = batch + 1;
    r.workload.micro_batches = 1;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_NO);
    ek_costs_free(c);
}
END_TEST

START_TEST(what_does_not_fit_says_what_would)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s;
    json_t *advice;

    r.workload.context = 400;
    r.workload.batch = 4;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_NO);
    ck_assert_int_eq(ek_advice(c, &r, &advice), EK_OK);
    ck_assert_uint_ge(json_array_size(advice), 3);
    ck_assert_ptr_nonnull(strstr(json_string_value(json_array_get(advice, 0)), "context"));
    json_decref(advice);
    r.workload.context = 100000;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "model.layers.0"));
    ek_costs_free(c);
}
END_TEST

/* ---- Explanations -------------------------------------------------------------------------------
 */
START_TEST(a_plan_costed_as_a_map_costs_the_same)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);
    json_t *plan = ek_plan_json(c, &r, s);
    struct ek_assignment a;
    struct ek_assessment v;

    ck_assert_int_eq(ek_assignment_from_json(s->problem, plan, "plan", false, &a), EK_OK);
    ek_assess(s->problem, &a, &v);
    ck_assert(v.runnable && v.worst_ratio <= 1);
    ck_assert_double_eq_tol(v.score.throughput, s->score.throughput, 1e-9);
    ck_assert_double_eq_tol(v.score.latency, s->score.latency, 1e-9);
    ck_assert_double_eq_tol(v.score.balance, s->score.balance, 1e-9);
    json_decref(plan);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

static const struct {
    const char *map, *says;
} hostile_maps[] = {
    {"[]", "object"},
    {"{'model.embed_tokens':0}", "on no device"},
    {"{'':99}", "unknown device"},
    {"{'':-1}", "unknown device"},
    {"{'':1.5}", "unknown device"},
    {"{'':'tpu:0'}", "unknown device"},
    {"{'':0,'model.layers.9':0}", "no module"},
    {"{'device_map':null}", "device_map"},
    {"{'stages':[{'modules':['lm_head']}]}", "without a"},
    {"{'stages':[{'device':'fast:0','tensor_parallel':['fast:0','fast:1'],'modules':['lm_head']}]}",
     "tensor-parallel"},
    {"{'stages':[{'device':'fast:0','modules':['lm_head','lm_head']}]}", "twice"},
};

START_TEST(hostile_device_maps_are_refused)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);
    json_t *v = parse(hostile_maps[_i].map);
    struct ek_assignment a;

    ck_assert_int_eq(ek_exit_code(ek_assignment_from_json(s->problem, v, "map", false, &a)), 4);
    ck_assert_msg(strstr(ek_last_error(), hostile_maps[_i].says) != NULL, "%s: %s",
                  hostile_maps[_i].map, ek_last_error());
    json_decref(v);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* A layer and a head as an H200 reports them: logits by the sequence, hidden states by the token.
 */
START_TEST(memory_beyond_the_measured_points_grows_as_the_last_ones_do)
{
    struct ek_cost_space p[] = {{4, 8, 2048, 2000, 500, 0},     {8, 8, 2048, 3000, 900, 0},
                                {4, 512, 2048, 50000, 700, 64}, {8, 512, 2048, 51000, 700, 64},
                                {4, 256, 2048, 26000, 600, 32}, {8, 256, 2048, 27000, 600, 32}};
    struct ek_cost_memory m = {.points = p, .n = EK_ARRAY_LEN(p)}, one = {.points = p, .n = 1};
    static const struct {
        uint32_t tokens, batch, context;
        uint64_t activations, workspace, comm;
    } at[] = {
        {512, 8, 2048, 51000, 700, 64},   /* measured */
        {512, 64, 2048, 65000, 6500, 64}, /* 250 a sequence; scratch of decode steps, 100 each */
        {1024, 8, 2048, 99000, 900, 128}, /* 24000 for 256 tokens */
        {512, 8, 4096, 102000, 1800, 64}, /* in proportion to the context */
        {1024, 64, 4096, 226000, 13000, 128},
    };

    for (size_t i = 0; i < EK_ARRAY_LEN(at); i++) {
        struct ek_cost_space s = ek_space_at(&m, at[i].tokens, at[i].batch, at[i].context);
        ck_assert_uint_eq(s.activations, at[i].activations);
        ck_assert_uint_eq(s.workspace, at[i].workspace);
        ck_assert_uint_eq(s.comm, at[i].comm);
    }
    ck_assert_uint_eq(ek_space_at(&one, 16, 8, 2048).activations, 8000); /* in proportion to both */
}
END_TEST

START_TEST(next_best_plans_are_worse_in_order_and_unlike)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);
    double before = s->values[0];
    json_t *list, *o;
    bool whole;
    size_t i;

    ck_assert_int_eq(ek_alternatives(&r, s, 6, &list), EK_OK);
    ck_assert_uint_eq(json_array_size(list), 6);
    json_array_foreach(list, i, o)
    {
        double v = json_number_value(json_object_get(o, "value"));
        ck_assert_double_ge(v, before * (1 - 1e-9));
        before = v;
    }
    json_decref(list);
    ck_assert_int_eq(ek_pareto(s, &r, &list, &whole), EK_OK);
    ck_assert_uint_ge(json_array_size(list), 1);
    ck_assert(whole);
    json_decref(list);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Layers on the fast cards were measured with steps of 2048 tokens, on the slow one with 512. */
static struct ek_costs *long_prompts(const char *slow)
{
    char *prompt =
        with(small, "'prompt':64,'generate':16,'prefill_chunk':32", "'prompt':2048,'generate':16");
    char *fast = with(prompt, "[[1,1,0.001],[32,32,0.01],[32,64,0.012]]",
                      "[[1,1,0.001],[512,512,0.1],[512,2048,0.1],[2048,2048,0.2]]");
    char *memory = with(fast, "'memory':1000,", "'memory':100000,");
    char *times = with(memory, "'prefill':0.5,", slow), *room = with(times, "2000B", "100kB");
    json_t *root = parse(room);
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_from_json(root, "long", &c) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    free(prompt);
    free(fast);
    free(memory);
    free(times);
    free(room);
    return c;
}

static const struct {
    const char *slow; /* its times of a layer */
    uint32_t given, chosen;
    const char *device;
} chunks[] = {
    {"'prefill':[[1,1,0.001],[512,512,0.06],[512,2048,0.06]],", 0, 2048, "fast:0"},
    {"'prefill':[[1,1,0.001],[512,512,0.06],[512,2048,0.06]],", 512, 512, "slow:0"},
    {"'prefill':[[1,1,0.001],[512,512,0.001],[512,2048,0.001]],", 0, 512, "slow:0"},
    {"'prefill':[[1,1,0.001],[512,512,0.001],[512,2048,0.001]],", 2048, 2048, "slow:0"},
};

START_TEST(the_prefill_chunk_is_chosen_among_what_was_measured)
{
    struct ek_costs *c = long_prompts(chunks[_i].slow);
    struct ek_request r = request_for(c);
    struct ek_solution *s;
    struct ek_placement pl;
    json_t *plan;

    r.objectives[0] = EK_OBJ_LATENCY;
    r.n_objectives = 1;
    r.max_stages = 1;
    r.workload.prefill_chunk = chunks[_i].given;
    s = solve(c, &r);
    ck_assert_uint_eq(s->problem->workload.prefill_chunk, chunks[_i].chosen);
    ek_place(s->problem, s->answer.columns, s->answer.n, &pl);
    ck_assert_str_eq(ek_pdevice_name(s->problem, pl.stages[0].devices[0]), chunks[_i].device);
    plan = ek_plan_json(c, &r, s);
    ck_assert_int_eq(json_integer_value(
                         json_object_get(json_object_get(plan, "workload"), "prefill_chunk")),
                     chunks[_i].chosen);
    json_decref(plan);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Steps of 256 tokens leave more room for the cache than the usual ones of 512: what the longest
 * context is said to be, no plan goes beyond. */
START_TEST(the_longest_context_is_that_of_the_shortest_chunk)
{
    char *prompt =
        with(small, "'prompt':64,'generate':16,'prefill_chunk':32", "'prompt':512,'generate':16");
    char *times = with(prompt, "[[1,1,0.001],[32,32,0.01],[32,64,0.012]]",
                       "[[1,1,0.001],[512,512,0.1],[512,4096,0.1]]");
    char *room = with(times, "'memory':1000,", "'memory':9000,");
    char *text = with(room, "'links':[",
                      "'memory':[{'class':'fast','signature':'layer','points':"
                      "[[2,256,4096,50,0,0],[2,512,4096,900,0,0]]}],'links':[");
    json_t *root = parse(text);
    struct ek_costs *c = NULL;
    struct ek_solution *s;
    struct ek_request r;

    ck_assert_msg(ek_costs_from_json(root, "room", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.objectives[0] = EK_OBJ_CONTEXT;
    r.objectives[1] = EK_OBJ_LATENCY;
    s = solve(c, &r);
    ck_assert_uint_eq(s->problem->workload.prefill_chunk, 256);
    ck_assert(s->proven);
    r.workload.context = s->context;
    ek_solution_free(s);
    r.objectives[0] = EK_OBJ_THROUGHPUT;
    r.n_objectives = 1;
    ek_solution_free(solve(c, &r));
    r.workload.context++;
    ck_assert_int_eq(ek_solve(c, &r, &s), EK_NO);
    ek_costs_free(c);
    json_decref(root);
    free(prompt);
    free(times);
    free(room);
    free(text);
}
END_TEST

/* A layer takes 1 s a step and the head 1 s, whatever is in it. */
static const struct {
    uint32_t batch, prompt, chunk;
    double layer, head; /* steps of a layer, and those with the end of a prompt */
} streams[] = {
    {3, 300, 256, 4, 3},      /* 256, 44 + 212, 88 + 168, 132 */
    {3, 700, 512, 5, 3},      /* 4 whole steps and one of 52 */
    {4, 512, 512, 4, 4},      /* one each */
    {4, 1024, 512, 8, 4},     /* two each */
    {2, 100, 512, 1, 1},      /* both in one step */
    {6, 90, 256, 3, 3},       /* 256, 256, 28: 2, 3 and 1 end */
    {8, 96, 64, 12, 8},       /* two of three begin inside of a prompt */
    {2, 200000, 512, 782, 2}, /* sampled */
};

START_TEST(prompts_follow_one_another_in_chunks)
{
    static const char flat[] = "'prefill':[[1,1,1],[512,512,1],[512,400000,1]]";
    char *layer = with(small, "'prefill':[[1,1,0.001],[32,32,0.01],[32,64,0.012]]", flat);
    char *head = with(layer, "'signature':'lm_head','prefill':0.001",
                      "'signature':'lm_head','prefill':[[1,1,1],[512,512,1]]");
    char *room = with(head, "'memory':1000,", "'memory':100000000,");
    json_t *root = parse(room);
    struct ek_costs *c = NULL;
    struct ek_solution *s;
    struct ek_request r;
    struct ek_stage_times layers, end;
    bool outside = false;

    ck_assert_msg(ek_costs_from_json(root, "chunks", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.workload.batch = streams[_i].batch;
    r.workload.prompt = streams[_i].prompt;
    r.workload.prefill_chunk = streams[_i].chunk;
    r.workload.micro_batches = 1;
    s = solve(c, &r);
    ck_assert(ek_problem_times(s->problem, 0, 1, 2, 0, &layers, &outside));
    ck_assert(ek_problem_times(s->problem, 0, 6, 6, 0, &end, &outside));
    ck_assert_double_eq_tol(layers.prefill, 2 * streams[_i].layer, 1e-9 * layers.prefill);
    ck_assert_double_eq_tol(end.prefill, streams[_i].head, 1e-9);
    ek_solution_free(s);
    ek_costs_free(c);
    json_decref(root);
    free(layer);
    free(head);
    free(room);
}
END_TEST

/* The small machine, whose fast cards lower their clocks; one micro-batch. */
static struct ek_solution *on_falling_clocks(const char *clocks, uint32_t generate,
                                             struct ek_costs **c)
{
    char *more = ek_asprintf("'name':'fast','count':2,'memory':1000,%s", clocks);
    char *text = with(small, "'name':'fast','count':2,'memory':1000", more);
    json_t *root = parse(text);
    struct ek_request r;

    ck_assert_msg(ek_costs_from_json(root, "clocks", c) == EK_OK, "%s", ek_last_error());
    r = request_for(*c);
    r.workload.micro_batches = 1;
    r.workload.generate = generate;
    json_decref(root);
    free(text);
    free(more);
    return solve(*c, &r);
}

/* 64 tokens in two chunks of 10 and 12 ms a layer: a stage of four takes 44 ms a prompt. */
START_TEST(prefill_that_goes_on_takes_longer_than_its_points)
{
    struct ek_costs *c;
    struct ek_solution *s = on_falling_clocks("'sustained':1.1,'burst_s':0.028", 16, &c);
    struct ek_stage_times t;
    bool outside = false;

    ck_assert_uint_eq(s->problem->kinds[0].tp, 1);
    ck_assert(ek_problem_times(s->problem, 0, 1, 4, 0, &t, &outside));
    ck_assert_double_eq_tol(t.prefill, 2 * 0.088 + 0.1 * (2 * 0.088 - 0.028), 1e-9);
    ck_assert_double_eq_tol(t.rested_prefill, 2 * 0.088, 1e-9);
    ck_assert(ek_problem_times(s->problem, 0, 0, 0, 0, &t, &outside));
    ck_assert_double_eq_tol(t.prefill, 0.001, 1e-9); /* over before clocks fall */
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

START_TEST(a_burst_is_written_whatever_it_delays)
{
    char *text = with(small, "'count':2,'memory':1000",
                      "'count':2,'memory':1000,'looking':1.2,'burst_s':0.02");
    json_t *root = parse(text), *again, *class;
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_from_json(root, "burst", &c) == EK_OK, "%s", ek_last_error());
    again = ek_costs_json(c);
    class = json_array_get(json_object_get(again, "classes"), 0);
    ck_assert_double_eq(json_real_value(json_object_get(class, "burst_s")), 0.02);
    json_decref(again);
    json_decref(root);
    ek_costs_free(c);
    free(text);
}
END_TEST

/* Pictures of a batch take 50 ms, draw another power than its text, and leave that no burst. */
START_TEST(pictures_that_go_on_take_longer_and_come_first)
{
    char *seen = with(small, "'modules':[", "'modules':[{'name':'vision','kind':'vision'},");
    char *timed = with(seen, "'times':[",
                       "'times':[{'class':'fast','signature':'vision','prefill':0.05,'decode':0},"
                       "{'class':'slow','signature':'vision','prefill':0.05,'decode':0},");
    char *text = with(timed, "'count':2,'memory':1000",
                      "'count':2,'memory':1000,'sustained':1.1,'looking':1.2,'burst_s':0.02");
    json_t *root = parse(text);
    struct ek_costs *c = NULL;
    struct ek_stage_times t;
    struct ek_solution *s;
    struct ek_request r;
    bool outside = false;

    ck_assert_msg(ek_costs_from_json(root, "pictures", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.workload.images = 1;
    r.workload.image_tokens = 16;
    r.workload.micro_batches = 1;
    s = solve(c, &r);
    ck_assert(ek_problem_times(s->problem, 0, 0, 0, 1, &t, &outside));
    ck_assert_double_eq_tol(t.rested_looking, 0.05, 1e-9);
    ck_assert_double_eq_tol(t.looking, 0.05 + 0.2 * 0.03, 1e-9);
    ck_assert_double_eq_tol(t.prefill - t.looking, 1.1 * 0.001, 1e-9);
    ek_solution_free(s);
    ek_costs_free(c);
    json_decref(root);
    free(seen);
    free(timed);
    free(text);
}
END_TEST

/* Half of it is gone after as long as all rounds but the first take: decoding starts with all, ends
 * with half of it, and prefill of the next batch finds the other half of its burst. */
START_TEST(decode_steps_behind_prefill_begin_at_its_clocks)
{
    struct ek_costs *c;
    struct ek_solution *s = on_falling_clocks("'sustained':1.1,'burst_s':0.028", 16, &c);
    double round = s->problem->kinds[0].round_s, half = 16 * round, step;
    char clocks[160];
    struct ek_stage_times t;
    bool outside = false;

    ck_assert(ek_problem_times(s->problem, 0, 1, 4, 0, &t, &outside));
    step = t.decode;
    ek_solution_free(s);
    ek_costs_free(c);
    snprintf(clocks, sizeof(clocks),
             "'sustained':1.1,'burst_s':0.028,'behind':1.05,'recovery_s':%.17g", half);
    s = on_falling_clocks(clocks, 16, &c);
    ck_assert(ek_problem_times(s->problem, 0, 1, 4, 0, &t, &outside));
    ck_assert_double_eq_tol(t.prefill, 2 * 0.088 + 0.1 * (2 * 0.088 - 0.014), 1e-9);
    ck_assert_double_eq_tol(t.decode, step * (1 + 0.05 * 0.5 / log(2)), 1e-9);
    ck_assert_double_eq_tol(t.rested_decode, step, 1e-12);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Of the share of time that a device works, the square counts; scores are of one that does not
 * rest. */
START_TEST(a_device_that_waits_keeps_its_clocks)
{
    struct ek_costs *c;
    struct ek_solution *s = on_falling_clocks("'sustained':1.1,'burst_s':0", 16, &c);
    struct ek_placement pl;
    double most = 0;

    ek_place(s->problem, s->answer.columns, s->answer.n, &pl);
    ck_assert_uint_ge(pl.n_stages, 2);
    for (size_t i = 0; i < pl.n_stages; i++)
        most = fmax(most, pl.stages[i].times.prefill);
    for (size_t i = 0; i < pl.n_stages; i++) {
        const struct ek_placed_stage *p = &pl.stages[i];
        double share = p->times.prefill / most;
        ck_assert_double_eq_tol(p->prefill_s / p->times.rested_prefill - 1,
                                share * share * (p->times.prefill / p->times.rested_prefill - 1),
                                1e-9);
    }
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Chunks of 256, of three prompts of 300: [256], [44 behind 256 + 212], [88 behind 212 + 168], [132
 * behind 168]. */
START_TEST(contexts_of_several_sequences_in_a_step_take_time)
{
    static const double extra[] = {0, 300 + 212 - (44 * 278.0 + 212 * 106.0) / 256 - 128,
                                   300 + 168 - (88 * 256.0 + 168 * 84.0) / 256 - 128, 0};
    char *text = with(small, "'prefill':[[1,1,0.001],[32,32,0.01],[32,64,0.012]]",
                      "'context_s':0.01,'prefill':[[1,1,1],[512,512,1],[512,1024,1]]");
    char *room = with(text, "'memory':1000,", "'memory':100000000,");
    json_t *root = parse(room);
    struct ek_costs *c = NULL;
    struct ek_stage_times t;
    struct ek_solution *s;
    struct ek_request r;
    bool outside = false;

    ck_assert_msg(ek_costs_from_json(root, "contexts", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.workload.batch = 3;
    r.workload.prompt = 300;
    r.workload.prefill_chunk = 256;
    r.workload.micro_batches = 1;
    s = solve(c, &r);
    ck_assert(ek_problem_times(s->problem, 0, 1, 1, 0, &t, &outside));
    ck_assert_double_eq_tol(t.prefill, 4 + 0.01 * (extra[1] + extra[2]), 1e-6);
    ek_solution_free(s);
    ek_costs_free(c);
    json_decref(root);
    free(text);
    free(room);
}
END_TEST

static const struct {
    uint32_t stages;
    double jobs, others;
} besides[] = {{1, 9, 0},       {3, 1, 0},        {2, 2, 0.5},        {2, 100, 0.99},
               {3, 2, 2.0 / 3}, {3, 3, 10.0 / 9}, {3, 300, 1.9911111}};

/* Two stages and two chunks: each of four slots' work has a neighbour in one of two. */
START_TEST(few_chunks_leave_stages_alone)
{
    ck_assert_double_eq_tol(ek_stages_beside(besides[_i].stages, besides[_i].jobs),
                            besides[_i].others, 1e-6);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("planner");
    TCase *t = tcase_create("planner");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 300);
    tcase_add_test(t, costs_survive_being_written_and_read);
    tcase_add_loop_test(t, the_prefill_chunk_is_chosen_among_what_was_measured, 0,
                        EK_ARRAY_LEN(chunks));
    tcase_add_test(t, the_longest_context_is_that_of_the_shortest_chunk);
    tcase_add_loop_test(t, prompts_follow_one_another_in_chunks, 0, EK_ARRAY_LEN(streams));
    tcase_add_test(t, contexts_of_several_sequences_in_a_step_take_time);
    tcase_add_test(t, prefill_that_goes_on_takes_longer_than_its_points);
    tcase_add_test(t, a_burst_is_written_whatever_it_delays);
    tcase_add_test(t, pictures_that_go_on_take_longer_and_come_first);
    tcase_add_test(t, decode_steps_behind_prefill_begin_at_its_clocks);
    tcase_add_test(t, a_device_that_waits_keeps_its_clocks);
    tcase_add_loop_test(t, few_chunks_leave_stages_alone, 0, EK_ARRAY_LEN(besides));
    tcase_add_loop_test(t, hostile_costs_are_refused_by_field, 0, EK_ARRAY_LEN(hostile_costs));
    tcase_add_test(t, the_same_input_gives_the_same_bytes);
    tcase_add_test(t, pins_bans_and_colocation_are_kept);
    tcase_add_test(t, budgets_come_in_every_form);
    tcase_add_test(t, no_device_is_over_its_budget_less_margin);
    tcase_add_test(t, the_longest_context_fits_and_one_more_token_does_not);
    tcase_add_test(t, the_largest_batch_fits_and_one_more_does_not);
    tcase_add_test(t, what_does_not_fit_says_what_would);
    tcase_add_test(t, a_plan_costed_as_a_map_costs_the_same);
    tcase_add_loop_test(t, hostile_device_maps_are_refused, 0, EK_ARRAY_LEN(hostile_maps));
    tcase_add_test(t, memory_beyond_the_measured_points_grows_as_the_last_ones_do);
    tcase_add_test(t, next_best_plans_are_worse_in_order_and_unlike);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
