/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "planner/planner.h"
#include "planner/cluster.h"
#include "planner/device_map.h"
#include "planner/hardware.h"
#include "planner/plan_file.h"
#include "planner/simulate.h"
#include "tests/planner/instances.h"

#include <check.h>
#include <glpk.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Four layers between embedding and head on two fast and one slow card. */
static const char small[] =
    "{'format':'evenkeel-costs','version':1,'name':'small',"
    "'workload':{'batch':2,'prompt':64,'generate':16,'prefill_chunk':32},"
    "'classes':[{'name':'fast','count':2,'memory':1000,'overhead':10},"
    "           {'name':'slow','memory':'2000B','overhead':10}],"
    "'modules':[{'name':'model.embed_tokens','kind':'embed','weights':100,'boundary':8},"
    " {'name':'model.layers.0','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.layers.1','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.layers.2','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.layers.3','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.norm','kind':'norm','weights':1,'boundary':8},"
    " {'name':'lm_head','kind':'head','weights':100,'tied_to':'model.embed_tokens'}],"
    "'times':["
    " {'class':'fast','signature':'model.embed_tokens','prefill':0.001,'decode':0.0001},"
    " {'class':'fast','signature':'layer','prefill':[[1,1,0.001],[32,32,0.01],[32,64,0.012]],"
    "  'decode':[[1,1,0.001],[4,80,0.0015]]},"
    " {'class':'fast','signature':'model.norm','prefill':0.0001,'decode':0.0001},"
    " {'class':'fast','signature':'lm_head','prefill':0.001,'decode':0.0003},"
    " {'class':'slow','signature':'model.embed_tokens','prefill':0.002,'decode':0.0002},"
    " {'class':'slow','signature':'layer','prefill':0.5,'decode':0.004},"
    " {'class':'slow','signature':'model.norm','prefill':0.0002,'decode':0.0002},"
    " {'class':'slow','signature':'lm_head','prefill':0.002,'decode':0.0006}],"
    "'links':[{'from':'fast','to':'fast','alpha_s':1e-5,'beta_bytes_s':1e9},"
    " {'from':'fast','to':'slow','alpha_s':2e-5,'beta_bytes_s':5e8},"
    " {'from':'slow','to':'fast','alpha_s':2e-5,'beta_bytes_s':5e8}]}";

static json_t *parse(const char *text)
{
    char *copy = ek_strdup(text);
    json_t *v = NULL;

    for (char *p = copy; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    ck_assert_msg(ek_json_parse(copy, strlen(copy), "test", &v) == EK_OK, "%s", ek_last_error());
    free(copy);
    return v;
}

static struct ek_costs *small_costs(void)
{
    json_t *root = parse(small);
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_from_json(root, "small", &c) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    return c;
}

static struct ek_request request_for(const struct ek_costs *c)
{
    struct ek_request r = EK_REQUEST_INIT;

    r.workload = c->workload;
    return r;
}

static struct ek_solution *solve(const struct ek_costs *c, const struct ek_request *r)
{
    struct ek_solution *s = NULL;

    ck_assert_msg(ek_solve(c, r, &s) == EK_OK, "%s", ek_last_error());
    ck_assert(s->proven);
    return s;
}

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

static char *with(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);

    ck_assert_msg(at != NULL, "the test looks for %s in vain", from);
    return ek_asprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

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
START_TEST(no_recipe_that_fits_beats_the_plan)
{
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct ek_costs *c;
        struct ek_request r;
        struct ek_solution *s = NULL;
        tiny_instance(seed, &c, &r);
        r.objectives[0] = EK_OBJ_THROUGHPUT;
        r.n_objectives = 1;
        r.n_rules = 0;
        r.fixed_order = r.use_all = false;
        r.max_stages = 0;
        r.no_certificate = true;
        if (c && ek_solve(c, &r, &s) == EK_OK && s->problem->n_pools == 0) {
            struct ek_recipe *recipes = ek_calloc(EK_MAX_RECIPES, sizeof(*recipes));
            size_t n = ek_recipes(s->problem, recipes);
            for (size_t i = 0; i < n; i++) {
                struct ek_assessment v;
                ek_assess(s->problem, &recipes[i].assignment, &v);
                if (v.runnable && v.worst_ratio <= 1 && v.stages <= s->problem->n_devices)
                    ck_assert_msg(v.score.throughput >= s->score.throughput * (1 - 1e-6),
                                  "seed %llu: %s %.9g, plan %.9g", (unsigned long long)seed,
                                  recipes[i].name, v.score.throughput, s->score.throughput);
            }
            free(recipes);
        }
        ek_solution_free(s);
        ek_costs_free(c);
        ek_request_free(&r);
    }
}
END_TEST

START_TEST(a_plan_costed_as_a_map_costs_the_same)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);
    json_t *plan = ek_plan_json(c, &r, s);
    struct ek_assignment a;
    struct ek_assessment v;

    ck_assert_int_eq(ek_assignment_from_json(s->problem, plan, "plan", &a), EK_OK);
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
    {"{'stages':[{'device':'fast:0','modules':['lm_head','lm_head']}]}", "twice"},
};

START_TEST(hostile_device_maps_are_refused)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);
    json_t *v = parse(hostile_maps[_i].map);
    struct ek_assignment a;

    ck_assert_int_eq(ek_assignment_from_json(s->problem, v, "map", &a), EK_EFORMAT);
    ck_assert_msg(strstr(ek_last_error(), hostile_maps[_i].says) != NULL, "%s: %s",
                  hostile_maps[_i].map, ek_last_error());
    json_decref(v);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

START_TEST(next_best_plans_are_worse_in_order_and_unlike)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);
    double before = s->values[0];
    json_t *list, *o;
    size_t i;

    ck_assert_int_eq(ek_alternatives(c, &r, s, 6, &list), EK_OK);
    ck_assert_uint_eq(json_array_size(list), 6);
    json_array_foreach(list, i, o)
    {
        double v = json_number_value(json_object_get(o, "value"));
        ck_assert_double_ge(v, before * (1 - 1e-9));
        before = v;
    }
    json_decref(list);
    ck_assert_int_eq(ek_pareto(s, &r, &list), EK_OK);
    ck_assert_uint_ge(json_array_size(list), 1);
    json_decref(list);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* ---- Exports and the report ---------------------------------------------------------------------
 */
static const char plan_text[] =
    "{'format':'evenkeel-plan','version':1,'model':{'name':'m <b>','hash':''},"
    "'workload':{'batch':2,'context':128,'micro_batches':2},"
    "'devices':[{'name':'cuda:0','backend':'cuda','index':2},"
    "           {'name':'cuda:1','backend':'cuda','index':5}],"
    "'stages':[{'device':'cuda:0','modules':['vision','model.embed_tokens','model.layers.0'],"
    "           'prefill_s':0.1,'decode_s':0.01},"
    "          {'device':'cuda:1','modules':['model.layers.1','model.layers.2','model.norm',"
    "           'lm_head'],'prefill_s':0.2,'decode_s':0.02}],"
    "'memory':[{'device':'cuda:0','weights':100,'total':100,'budget':200}],"
    "'links':[{'from':'cuda:0','to':'cuda:1','alpha_s':1e-5,'beta_bytes_s':1e9}],"
    "'device_map':{'vision':2}}";

static const struct {
    const char *target, *holds;
} exports[] = {
    {"vllm", "CUDA_VISIBLE_DEVICES=2,5 VLLM_PP_LAYER_PARTITION=1,2 "},
    {"sglang", "SGLANG_PP_LAYER_PARTITION=1,2 "},
    {"tensorrt-llm", "\"pp_partition\": [1, 2]"},
    {"llama.cpp", "-dev CUDA2,CUDA5 -ts 1,3 --fit off -c 256"},
    {"deepspeed", "parts = [0, 1, 3]"},
    {"accelerate", "\"vision\": 2"},
};

static struct ek_plan_file *plan_file(const char *text)
{
    json_t *root = parse(text);
    struct ek_plan_file *f = NULL;

    ek_plan_file_from_json(root, "plan", &f);
    json_decref(root);
    return f;
}

START_TEST(exports_have_the_targets_own_form)
{
    struct ek_plan_file *f = plan_file(plan_text);
    char *text;

    ck_assert_msg(f != NULL, "%s", ek_last_error());
    ck_assert_msg(ek_export(f, exports[_i].target, &text) == EK_OK, "%s", ek_last_error());
    ck_assert_msg(strstr(text, exports[_i].holds) != NULL, "%s", text);
    free(text);
    ek_plan_file_free(f);
}
END_TEST

START_TEST(an_export_that_cannot_express_the_plan_names_the_module)
{
    char *moved = with(plan_text, "'modules':['vision','model.embed", "'modules':['model.embed");
    char *late = with(moved, "'modules':['model.layers.1'", "'modules':['vision','model.layers.1'");
    struct ek_plan_file *f = plan_file(late);
    char *text;

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(ek_export(f, "vllm", &text), EK_NO);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "vision"));
    ck_assert_int_eq(ek_export(f, "tgi", &text), EK_EUSAGE);
    ek_plan_file_free(f);
    free(moved);
    free(late);
}
END_TEST

static const struct {
    const char *from, *to;
} hostile_plans[] = {
    {"evenkeel-plan", "evenkeel-costs"},
    {"'version':1", "'version':7"},
    {"'batch':2", "'batch':-2"},
    {"'micro_batches':2", "'micro_batches':0"},
    {"'name':'cuda:1'", "'name':'cuda:0'"},
    {"'device':'cuda:1'", "'device':'cuda:7'"},
    {"'model.layers.1','model.layers.2'", "'model.layers.2','model.layers.1'"},
    {"'model.layers.1','model.layers.2'", "'model.layers.1','model.layers.1'"},
    {"'model.norm'", "'lm_head'"},
    {"'model.norm'", "7"},
    {"'decode_s':0.02", "'decode_s':-1"},
};

START_TEST(hostile_plans_are_refused)
{
    char *text = with(plan_text, hostile_plans[_i].from, hostile_plans[_i].to);

    ck_assert_msg(plan_file(text) == NULL, "%s was taken", hostile_plans[_i].to);
    free(text);
}
END_TEST

START_TEST(the_report_is_one_page_without_network_and_escapes_names)
{
    struct ek_plan_file *f = plan_file(plan_text);
    char *page = ek_report_html(f);

    ck_assert_ptr_nonnull(page);
    ck_assert_ptr_nonnull(strstr(page, "m &lt;b&gt;"));
    ck_assert_ptr_null(strstr(page, "m <b>"));
    ck_assert_ptr_null(strstr(page, "http"));
    ck_assert_ptr_null(strstr(page, "<script"));
    ck_assert_ptr_nonnull(strstr(page, "prefers-color-scheme:dark"));
    ck_assert_ptr_nonnull(strstr(page, "width=device-width"));
    ck_assert_ptr_nonnull(strstr(page, "Memory of each device"));
    ck_assert_ptr_nonnull(strstr(page, "Pipeline"));
    ck_assert_ptr_nonnull(strstr(page, "Links"));
    ck_assert_ptr_nonnull(strstr(page, "</html>"));
    free(page);
    ek_plan_file_free(f);
}
END_TEST

/* ---- Hardware -----------------------------------------------------------------------------------
 */
static const struct {
    const char *text;
    enum ek_status status;
    uint32_t devices;
} fleets[] = {
    {"8x rtx4090", EK_OK, 8},        {"8xrtx4090", EK_OK, 8},  {"rtx4090 t4", EK_OK, 2},
    {"2x A100-80, 1x l4", EK_OK, 3}, {"", EK_EUSAGE, 0},       {"3x abacus", EK_EUSAGE, 0},
    {"0x t4", EK_EUSAGE, 0},         {"65x t4", EK_EUSAGE, 0}, {"40x t4 40x l4", EK_EUSAGE, 0},
};

START_TEST(fleets_are_read_as_people_type_them)
{
    struct ek_fleet f;
    uint32_t n = 0;

    ck_assert_int_eq(ek_hardware_parse(fleets[_i].text, NULL, 0, &f), fleets[_i].status);
    for (size_t i = 0; fleets[_i].status == EK_OK && i < f.n; i++)
        n += f.counts[i];
    ck_assert_uint_eq(n, fleets[_i].devices);
}
END_TEST

static const struct {
    const char *text;
    bool good;
} card_files[] = {
    {"{'format':'evenkeel-hardware','version':1,'cards':[{'name':'x','memory':1000,"
     "'bandwidth':1e9,'peak_f32':1e12}]}",
     true},
    {"{'format':'evenkeel-hardware','version':1,'cards':[]}", false},
    {"{'format':'evenkeel-hardware','version':1,'cards':[{'name':'x','memory':0,"
     "'bandwidth':1e9,'peak_f32':1e12}]}",
     false},
    {"{'format':'evenkeel-hardware','version':1,'cards':[{'name':'x','memory':1000,"
     "'bandwidth':-1,'peak_f32':1e12}]}",
     false},
    {"{'format':'evenkeel-hardware','version':1,'cards':[{'name':'x y','memory':1000,"
     "'bandwidth':1e9,'peak_f32':1e12}]}",
     false},
    {"{'format':'evenkeel-hardware','version':1,'cards':[{'name':'x','memory':1000,"
     "'bandwidth':1e9,'peak_f32':1e12},{'name':'X','memory':1000,'bandwidth':1e9,"
     "'peak_f32':1e12}]}",
     false},
    {"{'format':'evenkeel-costs','version':1,'cards':[]}", false},
};

START_TEST(descriptions_of_cards_are_checked)
{
    json_t *root = parse(card_files[_i].text);
    struct ek_card *cards = NULL;
    size_t n = 0;
    enum ek_status st = ek_cards_from_json(root, "cards", &cards, &n);

    ck_assert_int_eq(st, card_files[_i].good ? EK_OK : EK_EFORMAT);
    free(cards);
    json_decref(root);
}
END_TEST

/* ---- Under load ---------------------------------------------------------------------------------
 */
/* Two stages of 20 and 30 ms for two prompts of two chunks; 2 and 3 ms a decode step. */
static const char pipe_text[] =
    "{'format':'evenkeel-plan','version':1,'model':{'name':'pipe','hash':''},"
    "'workload':{'batch':2,'prompt':64,'prefill_chunk':32,'generate':9,'context':128,"
    "'micro_batches':2},"
    "'devices':[{'name':'cuda:0','backend':'cuda'},{'name':'cuda:1','backend':'cuda'}],"
    "'stages':[{'device':'cuda:0','modules':['model.embed_tokens','model.layers.0'],"
    "           'prefill_s':0.08,'decode_s':0.002},"
    "          {'device':'cuda:1','modules':['model.layers.1','lm_head'],'prefill_s':0.12,"
    "           'decode_s':0.003}]}";

START_TEST(the_simulator_agrees_with_the_formulas)
{
    struct ek_plan_file *f = plan_file(pipe_text);
    struct ek_load load = {.requests = 2, .prompt = 64, .generate = 1, .seed = 1};
    struct ek_simulated s;

    ck_assert_int_eq(ek_simulate(f, &load, &s), EK_OK);
    /* sum P / K + (K - 1) / K * max P, K = 4 chunks */
    ck_assert_double_eq_tol(s.last_first_token, 0.2 / 4 + 0.75 * 0.12, 1e-12);
    load.generate = 2001; /* decode alone rules: the slowest stage once a group */
    ck_assert_int_eq(ek_simulate(f, &load, &s), EK_OK);
    ck_assert_double_eq_tol(s.per_token[0], 2 * 0.003, 2e-5);
    load.requests = 1; /* one group in flight: the sum of the stages */
    ck_assert_int_eq(ek_simulate(f, &load, &s), EK_OK);
    ck_assert_double_eq_tol(s.per_token[0], 0.005, 1e-9);
    ek_plan_file_free(f);
}
END_TEST

START_TEST(a_light_load_waits_for_nothing_and_a_heavy_one_fills_the_slowest_stage)
{
    struct ek_plan_file *f = plan_file(pipe_text);
    struct ek_load load = {.requests = 500, .prompt = 64, .generate = 9, .seed = 3, .rate = 0.05};
    struct ek_simulated light, heavy, again;

    ck_assert_int_eq(ek_simulate(f, &load, &light), EK_OK);
    ck_assert_double_lt(light.queued, 1e-3);
    load.rate = 1000;
    ck_assert_int_eq(ek_simulate(f, &load, &heavy), EK_OK);
    ck_assert_double_gt(heavy.stage_busy[1], 0.85);
    ck_assert_double_gt(heavy.stage_busy[1], heavy.stage_busy[0]);
    ck_assert_int_eq(ek_simulate(f, &load, &again), EK_OK);
    ck_assert_double_eq(again.seconds, heavy.seconds);
    ek_plan_file_free(f);
}
END_TEST

START_TEST(a_cluster_takes_the_cheapest_nodes_for_a_load)
{
    const char *dir = getenv("srcdir");
    char *path = ek_asprintf("%s/tests/planner/machines/cluster.json", dir ? dir : ".");
    struct ek_request r = EK_REQUEST_INIT;
    struct ek_cluster *c = NULL;
    double most, price;

    ck_assert_msg(ek_cluster_read(path, &c) == EK_OK, "%s", ek_last_error());
    ck_assert_int_eq(ek_cluster_plan(c, &r, 0), EK_OK);
    most = c->tokens_per_s;
    ck_assert_int_eq(ek_cluster_plan(c, &r, most / 3), EK_OK);
    ck_assert(c->proven);
    ck_assert_double_ge(c->tokens_per_s, most / 3);
    price = c->price;
    ck_assert_int_eq(ek_cluster_plan(c, &r, most / 2), EK_OK);
    ck_assert_double_gt(c->price, price);
    ck_assert_int_eq(ek_cluster_plan(c, &r, most * 1.01), EK_NO);
    ek_cluster_free(c);
    free(path);
}
END_TEST

/* ---- Solvers ------------------------------------------------------------------------------------
 */
static const char *const machines[] = {
    "1x-h100-llama-8b",        "rtx4090-and-t4-qwen-7b",      "4x-t4-qwen-vl-3b",
    "8x-rtx4090-vl2-base",     "8x-h100-llama-70b-tp",        "16-of-4-kinds-qwen-72b",
    "2x-cpu-smollm2-measured", "2x-h200-qwen2.5-3b-measured",
    "4x-h200-qwen2.5-3b-measured",
};

START_TEST(recorded_machines_are_planned_and_proven)
{
    const char *dir = getenv("srcdir");
    char *path = ek_asprintf("%s/tests/planner/machines/%s.json", dir ? dir : ".", machines[_i]);
    struct ek_costs *c = NULL;
    struct ek_request r;
    struct ek_solution *s;

    ck_assert_msg(ek_costs_read(path, &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.workload.micro_batches = r.workload.batch > 4 ? 4 : 0;
    s = solve(c, &r);
    ck_assert_str_eq(s->cross_check, "equal");
    ek_solution_free(s);
    ek_costs_free(c);
    free(path);
}
END_TEST

START_TEST(a_large_program_is_the_same_with_every_column)
{
    json_t *root = large_instance(30, 8, 4, true, true, 3);
    struct ek_costs *c = NULL;
    struct ek_request r;
    double values[2][2];

    ck_assert_msg(ek_costs_from_json(root, "large", &c) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    r = request_for(c);
    r.workload.micro_batches = 4;
    for (int whole = 0; whole < 2; whole++) {
        struct ek_solution *s;
        r.whole_program = whole;
        s = solve(c, &r);
        ck_assert_uint_gt(s->problem->n_columns, 6000);
        memcpy(values[whole], s->values, sizeof(values[whole]));
        ek_solution_free(s);
    }
    ck_assert_double_eq(values[0][0], values[1][0]);
    ck_assert_double_eq(values[0][1], values[1][1]);
    ek_costs_free(c);
}
END_TEST

START_TEST(a_time_limit_gives_the_best_so_far_unproven)
{
    json_t *root = large_instance(80, 16, 16, true, true, 5);
    struct ek_costs *c = NULL;
    struct ek_request r;
    struct ek_solution *s = NULL;
    enum ek_status st;

    ck_assert_int_eq(ek_costs_from_json(root, "large", &c), EK_OK);
    json_decref(root);
    r = request_for(c);
    r.time_limit = 0.2;
    st = ek_solve(c, &r, &s);
    ck_assert(st == EK_OK || st == EK_EUNPROVEN);
    if (s)
        ck_assert(!s->proven && s->interrupted);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

START_TEST(an_interrupt_stops_the_solve)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = NULL;
    bool stop = true;
    enum ek_status st;

    r.stop = &stop;
    st = ek_solve(c, &r, &s);
    ck_assert(st == EK_EUNPROVEN || (st == EK_OK && !s->proven));
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

START_TEST(an_error_inside_glpk_becomes_a_status)
{
    json_t *root = large_instance(80, 16, 4, true, false, 5);
    struct ek_costs *c = NULL;
    struct ek_request r;
    struct ek_problem *p;
    struct ek_limits l = EK_LIMITS_NONE;
    struct ek_effort e = {.whole_program = true};
    struct ek_answer a;

    ck_assert_int_eq(ek_costs_from_json(root, "large", &c), EK_OK);
    json_decref(root);
    r = request_for(c);
    ck_assert_int_eq(ek_problem_new(c, &r, 4, &p), EK_OK);
    glp_mem_limit(1); /* MiB: far too little */
    ck_assert_int_eq(ek_ilp_solve(p, &l, NULL, &a, &e), EK_ENOMEM);
    ck_assert_int_eq(ek_ilp_solve(p, &l, NULL, &a, &e), EK_OK); /* and goes on afterwards */
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

START_TEST(a_thousand_plans_in_one_process)
{
    struct ek_costs *c = small_costs();

    for (int i = 0; i < 1000; i++) {
        struct ek_request r = request_for(c);
        r.workload.batch = 1 + (uint32_t)i % 4;
        r.workload.generate = 1 + (uint32_t)i % 17;
        ek_solution_free(solve(c, &r));
    }
    ek_costs_free(c);
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
    tcase_add_loop_test(t, hostile_costs_are_refused_by_field, 0, EK_ARRAY_LEN(hostile_costs));
    tcase_add_test(t, the_same_input_gives_the_same_bytes);
    tcase_add_test(t, pins_bans_and_colocation_are_kept);
    tcase_add_test(t, budgets_come_in_every_form);
    tcase_add_test(t, no_device_is_over_its_budget_less_margin);
    tcase_add_test(t, the_longest_context_fits_and_one_more_token_does_not);
    tcase_add_test(t, the_largest_batch_fits_and_one_more_does_not);
    tcase_add_test(t, what_does_not_fit_says_what_would);
    tcase_add_test(t, no_recipe_that_fits_beats_the_plan);
    tcase_add_test(t, a_plan_costed_as_a_map_costs_the_same);
    tcase_add_loop_test(t, hostile_device_maps_are_refused, 0, EK_ARRAY_LEN(hostile_maps));
    tcase_add_test(t, next_best_plans_are_worse_in_order_and_unlike);
    tcase_add_loop_test(t, exports_have_the_targets_own_form, 0, EK_ARRAY_LEN(exports));
    tcase_add_test(t, an_export_that_cannot_express_the_plan_names_the_module);
    tcase_add_loop_test(t, hostile_plans_are_refused, 0, EK_ARRAY_LEN(hostile_plans));
    tcase_add_test(t, the_report_is_one_page_without_network_and_escapes_names);
    tcase_add_loop_test(t, fleets_are_read_as_people_type_them, 0, EK_ARRAY_LEN(fleets));
    tcase_add_loop_test(t, descriptions_of_cards_are_checked, 0, EK_ARRAY_LEN(card_files));
    tcase_add_test(t, the_simulator_agrees_with_the_formulas);
    tcase_add_test(t, a_light_load_waits_for_nothing_and_a_heavy_one_fills_the_slowest_stage);
    tcase_add_test(t, a_cluster_takes_the_cheapest_nodes_for_a_load);
    tcase_add_loop_test(t, recorded_machines_are_planned_and_proven, 0, EK_ARRAY_LEN(machines));
    tcase_add_test(t, a_large_program_is_the_same_with_every_column);
    tcase_add_test(t, a_time_limit_gives_the_best_so_far_unproven);
    tcase_add_test(t, an_interrupt_stops_the_solve);
    tcase_add_test(t, an_error_inside_glpk_becomes_a_status);
    tcase_add_test(t, a_thousand_plans_in_one_process);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
