/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What a plan says of itself: what binds, what recipes would have cost; and among what it was
 * chosen.
 */
#include "planner/planner.h"
#include "tests/planner/instances.h"
#include "tests/planner/small.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* ---- What binds ---------------------------------------------------------------------------------
 */
static void pin(struct ek_request *r, const char *module, const char *device)
{
    struct ek_rule *rule = &r->rules[r->n_rules++];

    rule->kind = EK_RULE_PIN;
    snprintf(rule->module, sizeof(rule->module), "%s", module);
    snprintf(rule->other, sizeof(rule->other), "%s", device);
}

/* Stages [embedding, layer 0], [layers 1, 2], [layer 3, norm, head], the last on the slow card; a
 * layer's cache is 160 bytes. */
static struct ek_solution *three_stages(const char *weights_0, const char *weights_3,
                                        const char *fast, const char *group, struct ek_costs **c,
                                        struct ek_request *r)
{
    static const char *const at[][2] = {
        {"model.embed_tokens", "fast:0"}, {"model.layers.0", "fast:0"},
        {"model.layers.1", "fast:1"},     {"model.layers.2", "fast:1"},
        {"model.layers.3", "slow:0"},     {"lm_head", "slow:0"},
    };
    char *x = with(small, "'name':'model.layers.0','signature':'layer','weights':200", weights_0);
    char *y = with(x, "'name':'model.layers.3','signature':'layer','weights':200", weights_3);
    char *z = with(y, "'count':2,'memory':1000,", fast);
    char *last = with(z, "'memory':'2000B',", group);
    json_t *root = parse(last);

    ck_assert_msg(ek_costs_from_json(root, "three", c) == EK_OK, "%s", ek_last_error());
    *r = request_for(*c);
    r->rules = ek_calloc(EK_ARRAY_LEN(at), sizeof(*r->rules));
    for (size_t i = 0; i < EK_ARRAY_LEN(at); i++)
        pin(r, at[i][0], at[i][1]);
    json_decref(root);
    free(x);
    free(y);
    free(z);
    free(last);
    return solve(*c, r);
}

#define LAYER(n, w) "'name':'model.layers." n "','signature':'layer','weights':" w
#define FAST(bytes) "'count':2,'memory':" bytes ","
#define SLOW        "'memory':'2000B',"
/* Of the stage in the middle, which holds 10 + 2 * (200 + 160) = 730 bytes. */
static const struct {
    const char *layer_0, *layer_3, *fast, *slow;
    int64_t grow, left;
    bool binds;
} middles[] = {
    {LAYER("0", "150"), LAYER("3", "90"), FAST("1000"), SLOW, 250, 270, false},
    {LAYER("0", "60"), LAYER("3", "90"), FAST("1000"), SLOW, 220, 270, false},
    {LAYER("0", "60"), LAYER("3", "90"), FAST("950"), SLOW, 220, 220, false},
    {LAYER("0", "60"), LAYER("3", "90"), FAST("949"), SLOW, 220, 219, true},
    /* 730, 330 and 401 of one memory */
    {LAYER("0", "60"), LAYER("3", "130"), "'count':2,'memory_group':'m','memory':1700,",
     "'memory_group':'m','memory':1700,", 220, 239, false},
    {LAYER("0", "60"), LAYER("3", "130"), "'count':2,'memory_group':'m','memory':1680,",
     "'memory_group':'m','memory':1680,", 220, 219, true},
};

START_TEST(what_binds_is_what_is_left_beside_the_cheapest_neighbour)
{
    struct ek_costs *c;
    struct ek_request r;
    struct ek_solution *s = three_stages(middles[_i].layer_0, middles[_i].layer_3, middles[_i].fast,
                                         middles[_i].slow, &c, &r);
    json_t *e = ek_explanation_json(s), *list = json_object_get(e, "memory");
    json_t *middle = json_array_get(list, 1);

    ck_assert_uint_eq(json_array_size(list), 3);
    ck_assert_str_eq(json_string_value(json_object_get(middle, "device")), "fast:1");
    ck_assert_int_eq(json_integer_value(json_object_get(middle, "one_more_module_takes")),
                     middles[_i].grow);
    ck_assert_int_eq(json_integer_value(json_object_get(middle, "headroom")), middles[_i].left);
    ck_assert_int_eq(json_is_true(json_object_get(middle, "memory_binds")), middles[_i].binds);
    for (size_t i = 0; i < 3; i += 2) /* the ends have one neighbour each, of 360 */
        ck_assert_int_eq(json_integer_value(
                             json_object_get(json_array_get(list, i), "one_more_module_takes")),
                         360);
    json_decref(e);
    ek_solution_free(s);
    ek_costs_free(c);
    ek_request_free(&r);
}
END_TEST

/* A stage that holds all has no neighbour. */
START_TEST(nothing_binds_where_one_device_holds_the_chain)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s;
    json_t *e, *only;

    r.max_stages = 1;
    s = solve(c, &r);
    e = ek_explanation_json(s);
    only = json_array_get(json_object_get(e, "memory"), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(e, "memory")), 1);
    ck_assert_int_eq(json_integer_value(json_object_get(only, "one_more_module_takes")), 0);
    ck_assert(json_is_false(json_object_get(only, "memory_binds")));
    json_decref(e);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* The stages above, with links of so many bytes a second. */
static const struct {
    const char *beta;
    uint32_t batch, micro_batches;
    const char *bottleneck;
} bottlenecks[] = {
    {"1e9", 8, 8, "stage"},
    {"1e9", 8, 1, "latency"},
    {"1e2", 8, 8, "link"},
    {"1e2", 2, 1, "link"}, /* of two chunks */
};

START_TEST(the_bottleneck_is_named)
{
    char *links =
        ek_asprintf("'to':'slow','alpha_s':2e-5,'beta_bytes_s':%s}", bottlenecks[_i].beta);
    char *text = with(small, "'to':'slow','alpha_s':2e-5,'beta_bytes_s':5e8}", links);
    char *room = with(text, "'count':2,'memory':1000,", "'count':2,'memory':100000,");
    char *all = with(room, "'memory':'2000B',", "'memory':100000,");
    json_t *root = parse(all), *e;
    struct ek_costs *c = NULL;
    struct ek_request r;
    struct ek_solution *s;

    ck_assert_msg(ek_costs_from_json(root, "links", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.rules = ek_calloc(2, sizeof(*r.rules));
    pin(&r, "model.embed_tokens", "fast:0");
    pin(&r, "lm_head", "slow:0");
    r.workload.batch = bottlenecks[_i].batch;
    r.workload.micro_batches = bottlenecks[_i].micro_batches;
    s = solve(c, &r);
    e = ek_explanation_json(s);
    ck_assert_str_eq(json_string_value(json_object_get(e, "bottleneck")),
                     bottlenecks[_i].bottleneck);
    ck_assert_int_eq(json_object_get(e, "busiest_stage") != NULL,
                     strcmp(bottlenecks[_i].bottleneck, "stage") == 0);
    json_decref(e);
    json_decref(root);
    ek_solution_free(s);
    ek_costs_free(c);
    ek_request_free(&r);
    free(links);
    free(text);
    free(room);
    free(all);
}
END_TEST

/* ---- Recipes ------------------------------------------------------------------------------------
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
        if (c && ek_solve(c, &r, &s) == EK_OK) {
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

/* Each device by itself has room for its third, and all three share one memory that has not. */
START_TEST(a_recipe_that_fills_a_shared_memory_does_not_fit)
{
    struct ek_costs *c;
    struct ek_request r;
    struct ek_solution *s = three_stages(LAYER("0", "60"), LAYER("3", "130"),
                                         "'count':2,'memory_group':'m','memory':1700,",
                                         "'memory_group':'m','memory':1700,", &c, &r);
    struct ek_assignment a;
    struct ek_assessment v;

    ck_assert_uint_eq(s->problem->n_pools, 1);
    for (size_t m = 0; m < c->n_modules; m++)
        a.device[m] = m < 2 ? 0 : m < 4 ? 1 : 2;
    ek_assess(s->problem, &a, &v);
    ck_assert(v.worst_ratio <= 1 && !v.shared && v.lacks == 0);
    s->problem->pools[0] = 1450; /* 1461 are used */
    ek_assess(s->problem, &a, &v);
    ck_assert(v.worst_ratio > 1 && v.shared);
    ck_assert_uint_eq(v.lacks, 11);
    ck_assert_uint_eq(v.worst, 0);
    ck_assert_double_eq_tol(v.score.balance, s->score.balance, 1e-9);
    ek_solution_free(s);
    ek_costs_free(c);
    ek_request_free(&r);
}
END_TEST

/* A device_map cannot say that a tied head is held twice: it stays with its embedding. */
START_TEST(a_map_keeps_a_tied_head_with_its_embedding)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_solution *s = solve(c, &r);

    ck_assert_uint_gt(s->answer.n, 1);
    ek_solution_free(s);
    r.as_map = true;
    s = solve(c, &r);
    ck_assert_uint_eq(s->answer.n, 1);
    ek_solution_free(s);
    ek_costs_free(c);
}
END_TEST

/* ---- Among what is chosen -----------------------------------------------------------------------
 */
static const struct {
    enum ek_objective first;
    uint32_t batch, prompt, given_groups, given_chunk, measured; /* tokens of the longest step */
    const char *choices;                                         /* groups x chunk */
} choices[] = {
    /* groups: no two of one size, no more than twice the devices, which are three */
    {EK_OBJ_THROUGHPUT, 1, 64, 0, 32, 64, "1x32"},
    {EK_OBJ_THROUGHPUT, 6, 64, 0, 32, 64, "1x32 2x32 3x32 6x32"},
    {EK_OBJ_THROUGHPUT, 64, 64, 0, 32, 64, "1x32 2x32 3x32 4x32 6x32"},
    {EK_OBJ_LATENCY, 6, 64, 0, 32, 64, "1x32"},
    {EK_OBJ_LATENCY, 6, 64, 9, 32, 64, "6x32"},
    {EK_OBJ_LATENCY, 6, 64, 4, 32, 64, "4x32"},
    /* chunks: 512, then those that were measured, up to one that holds all prompts */
    {EK_OBJ_LATENCY, 2, 2048, 1, 0, 2048, "1x512 1x256 1x1024 1x2048"},
    {EK_OBJ_LATENCY, 2, 2048, 1, 0, 2047, "1x512 1x256 1x1024"},
    {EK_OBJ_LATENCY, 1, 2048, 1, 0, 4096, "1x512 1x256 1x1024 1x2048"},
    {EK_OBJ_LATENCY, 2, 2048, 1, 0, 4096, "1x512 1x256 1x1024 1x2048 1x4096"},
    {EK_OBJ_LATENCY, 2, 700, 1, 0, 2048, "1x512 1x256 1x1024 1x2048 1x700"},
    {EK_OBJ_LATENCY, 1, 700, 1, 0, 2048, "1x512 1x256 1x1024"},
    {EK_OBJ_LATENCY, 1, 700, 1, 0, 699, "1x512 1x256"},
    {EK_OBJ_LATENCY, 1, 512, 1, 0, 700, "1x512 1x256"},
    {EK_OBJ_LATENCY, 1, 9000, 1, 0, 9000, "1x512 1x256 1x1024 1x2048 1x4096 1x8192"},
    {EK_OBJ_LATENCY, 1, 8192, 1, 0, 9000, "1x512 1x256 1x1024 1x2048 1x4096 1x8192"},
    {EK_OBJ_LATENCY, 2, 100, 1, 0, 2048, "1x512"},
    {EK_OBJ_LATENCY, 1, 2048, 1, 0, 100, "1x100"},
    {EK_OBJ_LATENCY, 1, 2048, 1, 0, 64, "1x64"},
    {EK_OBJ_LATENCY, 1, 2048, 1, 0, 63, "1x512"},
    {EK_OBJ_LATENCY, 1, 2048, 1, 1000, 2048, "1x1000"},
    {EK_OBJ_BALANCE, 2, 2048, 1, 0, 2048, "1x0"}, /* the usual one */
    {EK_OBJ_BALANCE_TIME, 2, 600, 1, 0, 600, "1x512 1x256 1x600"},
    /* how much fits is most with the shortest */
    {EK_OBJ_CONTEXT, 2, 2048, 1, 0, 2048, "1x512 1x256"},
    {EK_OBJ_BATCH, 2, 2048, 1, 0, 2048, "1x512 1x256"},
    {EK_OBJ_BATCH, 1, 100, 1, 0, 2048, "1x512 1x256"},
    {EK_OBJ_CONTEXT, 1, 100, 1, 0, 2048, "1x512"},
};

START_TEST(choices_are_those_worth_trying)
{
    char *rows =
        ek_asprintf("[[1,1,0.001],[%u,%u,0.01]]", choices[_i].measured, choices[_i].measured);
    char *text = with(small, "[[1,1,0.001],[32,32,0.01],[32,64,0.012]]", rows), got[256] = "";
    json_t *root = parse(text);
    struct ek_costs *c = NULL;
    struct ek_choice out[EK_MAX_CHOICES];
    struct ek_request r;
    size_t n;

    ck_assert_msg(ek_costs_from_json(root, "choices", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.objectives[0] = choices[_i].first;
    r.n_objectives = 1;
    r.workload.batch = choices[_i].batch;
    r.workload.prompt = choices[_i].prompt;
    r.workload.micro_batches = choices[_i].given_groups;
    r.workload.prefill_chunk = choices[_i].given_chunk;
    n = ek_choices(c, &r, out);
    for (size_t i = 0; i < n; i++) {
        snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%ux%u", i ? " " : "",
                 out[i].micro_batches, out[i].chunk);
        ck_assert_int_eq(out[i].measured, choices[_i].given_chunk == 0 && out[i].chunk > 512);
    }
    ck_assert_str_eq(got, choices[_i].choices);
    json_decref(root);
    ek_costs_free(c);
    free(rows);
    free(text);
}
END_TEST

/* An engine of one degree: each that some class has times of, once. */
START_TEST(one_degree_is_chosen_among_those_with_times)
{
    char *text = with(small, "'times':[",
                      "'times':[{'class':'fast','signature':'layer','tp':4,'prefill':0.1,"
                      "'decode':0.1},{'class':'slow','signature':'layer','tp':4,'prefill':0.1,"
                      "'decode':0.1},");
    json_t *root = parse(text);
    struct ek_choice out[EK_MAX_CHOICES];
    struct ek_costs *c = NULL;
    struct ek_request r;

    ck_assert_msg(ek_costs_from_json(root, "degrees", &c) == EK_OK, "%s", ek_last_error());
    r = request_for(c);
    r.workload.micro_batches = 1;
    ck_assert_uint_eq(ek_choices(c, &r, out), 1);
    ck_assert_uint_eq(out[0].tp, 0);
    r.one_degree = true;
    ck_assert_uint_eq(ek_choices(c, &r, out), 2);
    ck_assert_uint_eq(out[0].tp, 1);
    ck_assert_uint_eq(out[1].tp, 4);
    r.tp = 4;
    ck_assert_uint_eq(ek_choices(c, &r, out), 1);
    ck_assert_uint_eq(out[0].tp, 4);
    json_decref(root);
    ek_costs_free(c);
    free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("explain");
    TCase *t = tcase_create("explain");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(t, what_binds_is_what_is_left_beside_the_cheapest_neighbour, 0,
                        EK_ARRAY_LEN(middles));
    tcase_add_test(t, nothing_binds_where_one_device_holds_the_chain);
    tcase_add_loop_test(t, the_bottleneck_is_named, 0, EK_ARRAY_LEN(bottlenecks));
    tcase_add_test(t, no_recipe_that_fits_beats_the_plan);
    tcase_add_test(t, a_recipe_that_fills_a_shared_memory_does_not_fit);
    tcase_add_test(t, a_map_keeps_a_tied_head_with_its_embedding);
    tcase_add_loop_test(t, choices_are_those_worth_trying, 0, EK_ARRAY_LEN(choices));
    tcase_add_test(t, one_degree_is_chosen_among_those_with_times);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
