/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "planner/planner.h"
#include "planner/cluster.h"
#include "planner/device_map.h"
#include "planner/hardware.h"
#include "planner/plan_file.h"
#include "tests/planner/instances.h"
#include "tests/planner/small.h"

#include <check.h>
#include <glpk.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    char *page = ek_report_html(f, NULL, 0);

    ck_assert_ptr_nonnull(page);
    ck_assert_ptr_nonnull(strstr(page, "m &lt;b&gt;"));
    ck_assert_ptr_null(strstr(page, "m <b>"));
    ck_assert_ptr_null(strstr(page, "http"));
    ck_assert_ptr_null(strstr(page, "<script"));
    ck_assert_ptr_nonnull(strstr(page, "prefers-color-scheme:dark"));
    ck_assert_ptr_nonnull(strstr(page, "width=device-width"));
    ck_assert_ptr_nonnull(strstr(page, "Memory of each device"));
    ck_assert_ptr_nonnull(strstr(page, "The pipeline over time"));
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

START_TEST(every_built_in_card_is_complete_and_says_from_where)
{
    const struct ek_card *c;
    size_t n = ek_cards(&c);
    static const char *const names[] = {"t4",      "rtx4090", "a10",  "a40",  "l4",   "l40s",
                                        "a100-40", "a100-80", "h100", "h200", "b200", "orin"};

    ck_assert_uint_eq(n, EK_ARRAY_LEN(names));
    for (size_t i = 0; i < n; i++) {
        ck_assert_str_eq(c[i].name, names[i]);
        ck_assert_ptr_nonnull(strstr(c[i].source, "NVIDIA"));
        ck_assert_ptr_nonnull(strstr(c[i].source, "B/s")); /* at least its bandwidth */
        ck_assert_uint_gt(c[i].memory, c[i].overhead);
        ck_assert_double_gt(c[i].bandwidth, 1e11);
        ck_assert_double_ge(c[i].peak_f16, c[i].peak_f32);
        ck_assert(c[i].peak_bf16 == c[i].peak_f16 || strcmp(c[i].name, "t4") == 0);
        ck_assert(c[i].link_alpha > 0 && c[i].link_beta > 1e9 && c[i].link != NULL);
    }
}
END_TEST

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

/* ---- Clusters -----------------------------------------------------------------------------------
 */
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
    "1x-h100-qwen2.5-vl-7b-measured",
    "1x-h200-qwen2.5-vl-3b-measured",
    "rtx4090-and-t4-qwen-7b",
    "4x-t4-qwen-vl-3b",
    "8x-rtx4090-vl2-base",
    "8x-h100-llama-70b-tp",
    "16-of-4-kinds-qwen-72b",
    "2x-cpu-smollm2-measured",
    "2x-h200-qwen2.5-3b-measured",
    "4x-h200-qwen2.5-3b-measured",
};

static struct ek_costs *recorded(const char *machine)
{
    const char *dir = getenv("srcdir");
    char *path = ek_asprintf("%s/tests/planner/machines/%s.json", dir ? dir : ".", machine);
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_read(path, &c) == EK_OK, "%s", ek_last_error());
    free(path);
    return c;
}

START_TEST(recorded_machines_are_planned_and_proven)
{
    struct ek_costs *c = recorded(machines[_i]);
    struct ek_request r = request_for(c);
    struct ek_solution *s;

    r.workload.micro_batches = r.workload.batch > 4 ? 4 : 0;
    s = solve(c, &r);
    ck_assert_str_eq(s->cross_check, "equal");
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Groups in flight are chosen whatever comes behind throughput. */
START_TEST(throughput_alone_is_as_good_as_with_others_behind)
{
    struct ek_costs *c = recorded("8x-rtx4090-vl2-base");
    struct ek_request r = request_for(c);
    struct ek_solution *both, *alone;

    r.objectives[0] = EK_OBJ_THROUGHPUT;
    r.objectives[1] = EK_OBJ_BALANCE;
    r.n_objectives = 2;
    both = solve(c, &r);
    r.n_objectives = 1;
    alone = solve(c, &r);
    ck_assert_double_eq_tol(alone->values[0], both->values[0], 1e-9 * both->values[0]);
    ck_assert_uint_gt(alone->problem->micro_batches, 1);
    ek_solution_free(both);
    ek_solution_free(alone);
    ek_costs_free(c);
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
    if (s) {
        ck_assert(!s->proven && s->interrupted);
        ck_assert(s->bounds[0] > 0 && s->bounds[0] <= s->values[0]);
    }
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Cards, none like another, with memories of their own or in turn on so many shared ones, each so
 * many bytes larger than the one before; the layers are alike in bytes. */
static struct ek_costs *cards(uint32_t layers, uint32_t n, uint32_t memories, uint64_t bytes,
                              uint64_t more)
{
    static const char *const names[] = {"a", "b", "c", "d"};
    json_t *root = large_instance(layers, n, n, false, false, 9), *class, *module;
    struct ek_costs *c = NULL;
    size_t k;

    json_array_foreach(json_object_get(root, "classes"), k, class)
    {
        uint64_t memory = bytes + (memories ? k % memories * more : 0);
        json_object_set_new(class, "memory", json_integer((json_int_t)memory));
        if (memories)
            json_object_set_new(class, "memory_group", json_string(names[k % memories]));
    }
    json_array_foreach(json_object_get(root, "modules"), k,
                       module) if (strcmp(json_string_value(json_object_get(module, "kind")),
                                          "layer") == 0)
        json_object_set_new(module, "weights", json_integer((json_int_t)1700 << 20));
    ck_assert_msg(ek_costs_from_json(root, "cards", &c) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    return c;
}

static struct ek_costs *eight_cards(uint32_t memories, uint64_t bytes)
{
    return cards(20, 8, memories, bytes, 0);
}

static struct ek_request all_eight(const struct ek_costs *c)
{
    struct ek_request r = request_for(c);

    r.workload.batch = 4;
    r.workload.micro_batches = 4;
    r.workload.prefill_chunk = 512;
    r.use_all = true;
    return r;
}

START_TEST(a_shared_memory_that_cannot_fill_up_adds_no_states)
{
    struct ek_costs *c[] = {eight_cards(0, (uint64_t)1 << 40), eight_cards(2, (uint64_t)1 << 40)};
    struct ek_solution *s[2];

    for (int shared = 0; shared < 2; shared++) {
        struct ek_request r = all_eight(c[shared]);
        s[shared] = solve(c[shared], &r);
        ck_assert_uint_eq(s[shared]->problem->n_pools, shared ? 2 : 0);
    }
    ck_assert_double_eq(s[1]->values[0], s[0]->values[0]);
    ck_assert_uint_eq(s[1]->dp.labels, s[0]->dp.labels);
    for (int shared = 0; shared < 2; shared++) {
        ek_solution_free(s[shared]);
        ek_costs_free(c[shared]);
    }
}
END_TEST

/* Little more than weights, cache and what every stage takes: not all devices can be used. */
static const struct {
    uint32_t memories, gib; /* of each */
    bool fits;
} nearly_full[] = {{1, 43, true}, {2, 22, true}, {2, 21, true}, {2, 20, true}, {2, 19, false}};

START_TEST(shared_memories_that_are_nearly_full_are_proven)
{
    struct ek_costs *c = eight_cards(nearly_full[_i].memories, nearly_full[_i].gib * EK_GIB);
    struct ek_request r = request_for(c);
    struct ek_solution *s = NULL;
    enum ek_status st;

    r.workload.batch = 4;
    st = ek_solve(c, &r, &s);
    ck_assert_msg(st == (nearly_full[_i].fits ? EK_OK : EK_NO), "%s", ek_last_error());
    ck_assert(s == NULL || s->proven);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* What memories still hold is looked at in thousands of states here. */
START_TEST(shared_memories_of_many_devices_keep_the_time_limit)
{
    struct ek_costs *c = cards(40, 28, 4, 24 * EK_GIB, EK_GIB / 2);
    struct ek_request r = request_for(c);
    struct ek_solution *s = NULL;
    uint64_t begin = ek_now_ns();

    r.workload.batch = r.workload.micro_batches = 4;
    r.workload.prefill_chunk = 512;
    r.time_limit = 1;
    r.early_needs = true;
    ck_assert_msg(ek_solve(c, &r, &s) == EK_OK, "%s", ek_last_error());
    ck_assert_double_lt((double)(ek_now_ns() - begin) * 1e-9, 15); /* without: minutes */
    ck_assert_double_le(s->bounds[0], s->values[0]);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Even when it was over before it began. */
START_TEST(a_stopped_solve_is_never_worse_than_a_recipe)
{
    static const double limits[] = {1e-9, 0.001, 0.003, 0.01, 0.03};
    struct ek_costs *c = eight_cards(2, (uint64_t)1 << 40);
    struct ek_request r = all_eight(c);
    struct ek_recipe *recipes = ek_calloc(EK_MAX_RECIPES, sizeof(*recipes));
    struct ek_solution *s = NULL;
    size_t n;

    r.time_limit = limits[_i];
    ck_assert_msg(ek_solve(c, &r, &s) == EK_OK, "%s", ek_last_error());
    ck_assert(!s->proven || _i > 0);
    ck_assert_double_le(s->bounds[0], s->values[0]);
    n = ek_recipes(s->problem, recipes);
    ck_assert_uint_gt(n, 0);
    for (size_t i = 0; i < n; i++) {
        struct ek_assessment v;
        ek_assess(s->problem, &recipes[i].assignment, &v);
        ck_assert_msg(v.score.throughput >= s->score.throughput * (1 - 1e-9), "%s: %.9g, plan %.9g",
                      recipes[i].name, v.score.throughput, s->score.throughput);
    }
    free(recipes);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Of a stopped solution: what is called settled is as good as the optimum. */
static void holds_what_it_claims(const struct ek_solution *s, const struct ek_solution *best,
                                 size_t n)
{
    ck_assert_uint_le(s->settled, n + 1);
    ck_assert_uint_le(s->confirmed, s->settled);
    ck_assert_int_eq(s->proven, s->confirmed == n + 1);
    for (size_t i = 0; i < n && i < s->settled; i++)
        ck_assert_double_eq_tol(s->values[i], best->values[i], 5e-6 * best->values[i]);
    if (s->settled == n + 1)
        ck_assert_double_eq_tol(s->score.latency, best->score.latency, 1e-5 * best->score.latency);
}

/* Stopped after more and more states: plan, values and bound always belong together. */
START_TEST(a_stopped_solve_bounds_what_it_could_not_settle)
{
    static const enum ek_objective firsts[] = {EK_OBJ_THROUGHPUT, EK_OBJ_LATENCY, EK_OBJ_BALANCE,
                                               EK_OBJ_BALANCE_TIME};
    json_t *root = large_instance(40, 8, 4, true, true, 3);
    struct ek_costs *c = NULL;
    struct ek_request r;
    struct ek_solution *best, *s;

    ck_assert_int_eq(ek_costs_from_json(root, "large", &c), EK_OK);
    json_decref(root);
    r = request_for(c);
    r.workload.micro_batches = 4;
    r.objectives[0] = firsts[_i];
    r.objectives[1] = _i == 2 ? EK_OBJ_THROUGHPUT : EK_OBJ_BALANCE;
    best = solve(c, &r);
    for (r.time_limit = 0.002; r.time_limit < 0.3; r.time_limit *= 1.5) {
        if (ek_solve(c, &r, &s) != EK_OK)
            continue;
        ck_assert_double_le(s->bounds[0], best->values[0] * (1 + 1e-9));
        ck_assert_double_ge(s->values[0], best->values[0] * (1 - 1e-9));
        holds_what_it_claims(s, best, r.n_objectives);
        ck_assert_double_eq_tol(s->values[1], _i == 2 ? s->score.throughput : s->score.balance,
                                1e-9);
        ek_solution_free(s);
    }
    ek_solution_free(best);
    ek_costs_free(c);
}
END_TEST

START_TEST(an_interrupt_stops_the_solve)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = NULL;
    atomic_bool stop = true;
    enum ek_status st;

    r.stop = &stop;
    st = ek_solve(c, &r, &s);
    ck_assert(st == EK_EUNPROVEN || (st == EK_OK && !s->proven));
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* Each replica needs four devices, of which a node of six holds one. */
START_TEST(replicas_do_not_straddle_nodes)
{
    json_t *root = parse(
        "{'format':'evenkeel-costs','version':1,'workload':{'prompt':1,'generate':1},"
        "'classes':[{'name':'card','count':6,'memory':100}],"
        "'modules':[{'name':'model.embed_tokens','kind':'embed','weights':90,'signature':'m'},"
        "{'name':'model.layers.0','weights':90,'signature':'m'},"
        "{'name':'model.layers.1','weights':90,'signature':'m'},"
        "{'name':'lm_head','kind':'head','weights':90,'signature':'m'}],"
        "'times':[{'class':'card','signature':'m','prefill':0.1,'decode':0.1}],"
        "'links':[{'from':'card','to':'card','alpha_s':0,'beta_bytes_s':1e9}]}");
    struct ek_cluster *c = ek_calloc(1, sizeof(*c));
    struct ek_request r = EK_REQUEST_INIT;

    c->n_classes = 1;
    c->classes[0] = (struct ek_node_class){.name = "node", .count = 4, .price = 1};
    ck_assert_msg(ek_costs_from_json(root, "six", &c->classes[0].costs) == EK_OK, "%s",
                  ek_last_error());
    json_decref(root);
    ck_assert_int_eq(ek_cluster_plan(c, &r, 0), EK_OK);
    ck_assert_uint_eq(c->n_replicas, 2); /* on four devices, on all */
    ck_assert_uint_eq(c->replicas[0].chosen + c->replicas[1].chosen, 4);
    ck_assert_int_eq(ek_cluster_plan(c, &r, c->replicas[0].tokens_per_s * 3), EK_OK);
    ck_assert_uint_eq(c->nodes[0], 3);
    ck_assert_int_eq(ek_cluster_plan(c, &r, c->replicas[0].tokens_per_s * 4.5), EK_NO);
    ek_cluster_free(c);
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
    Suite *s = suite_create("planner: outputs and solvers");
    TCase *t = tcase_create("planner");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, exports_have_the_targets_own_form, 0, EK_ARRAY_LEN(exports));
    tcase_add_test(t, an_export_that_cannot_express_the_plan_names_the_module);
    tcase_add_loop_test(t, hostile_plans_are_refused, 0, EK_ARRAY_LEN(hostile_plans));
    tcase_add_test(t, the_report_is_one_page_without_network_and_escapes_names);
    tcase_add_test(t, every_built_in_card_is_complete_and_says_from_where);
    tcase_add_loop_test(t, fleets_are_read_as_people_type_them, 0, EK_ARRAY_LEN(fleets));
    tcase_add_loop_test(t, descriptions_of_cards_are_checked, 0, EK_ARRAY_LEN(card_files));
    tcase_add_test(t, a_cluster_takes_the_cheapest_nodes_for_a_load);
    tcase_add_test(t, replicas_do_not_straddle_nodes);
    tcase_add_loop_test(t, recorded_machines_are_planned_and_proven, 0, EK_ARRAY_LEN(machines));
    tcase_add_test(t, a_large_program_is_the_same_with_every_column);
    tcase_add_test(t, a_time_limit_gives_the_best_so_far_unproven);
    tcase_add_test(t, a_shared_memory_that_cannot_fill_up_adds_no_states);
    tcase_add_test(t, shared_memories_of_many_devices_keep_the_time_limit);
    tcase_add_loop_test(t, shared_memories_that_are_nearly_full_are_proven, 0,
                        EK_ARRAY_LEN(nearly_full));
    tcase_add_test(t, throughput_alone_is_as_good_as_with_others_behind);
    tcase_add_loop_test(t, a_stopped_solve_is_never_worse_than_a_recipe, 0, 5);
    tcase_add_loop_test(t, a_stopped_solve_bounds_what_it_could_not_settle, 0, 4);
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
