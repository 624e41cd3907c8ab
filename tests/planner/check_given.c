/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Placements that were handed in, and plans corrected by runs.
 */
#include "planner/device_map.h"
#include "planner/plan_file.h"
#include "planner/planner.h"
#include "tests/planner/small.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct ek_problem *problem_of(const struct ek_costs *c, uint32_t m)
{
    struct ek_request r = request_for(c);
    struct ek_problem *p = NULL;

    ck_assert_msg(ek_problem_new(c, &r, m, &p) == EK_OK, "%s", ek_last_error());
    return p;
}

/* ---- Given placements ---------------------------------------------------------------------------
 */
static const struct {
    const char *map;
    size_t n;
    uint32_t devices[8];
} maps[] = {
    {"{'':0}", 1, {0}},
    {"{'':0,'model.layers.2':1,'model.layers.3':1}", 3, {0, 1, 0}},
    {"{'':0,'model.layers.1':2,'model.layers.3':2}", 5, {0, 2, 0, 2, 0}},
    {"{'model':1,'lm_head':0}", 2, {1, 0}},
};

START_TEST(a_map_becomes_stages_in_the_order_of_the_chain)
{
    struct ek_costs *c = small_costs();
    struct ek_problem *p = problem_of(c, 1);
    json_t *v = parse(maps[_i].map);
    struct ek_assignment a;
    struct ek_placement pl;
    int32_t next = 0;

    ck_assert_int_eq(ek_assignment_from_json(p, v, "map", false, &a), EK_OK);
    ck_assert(ek_place_assignment(p, &a, &pl));
    ck_assert_uint_eq(pl.n_stages, maps[_i].n);
    for (size_t i = 0; i < pl.n_stages; i++) {
        ck_assert_uint_eq(pl.stages[i].devices[0], maps[_i].devices[i]);
        ck_assert_int_eq(pl.stages[i].first, next);
        next = pl.stages[i].last + 1;
        ck_assert_int_eq(pl.stages[i].handoff_s > 0, i + 1 < pl.n_stages);
    }
    ck_assert_int_eq(next, (int32_t)p->n_items);
    json_decref(v);
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

START_TEST(a_device_that_is_visited_twice_works_on_one_stage_at_a_time)
{
    struct ek_costs *c = small_costs();
    struct ek_problem *p = problem_of(c, 2);
    struct ek_assignment a = {.device = {0, 1, 0, 1, 0, 0, 0}};
    struct ek_placement pl;
    double first = 0;

    ck_assert(ek_place_assignment(p, &a, &pl));
    for (size_t i = 0; i < pl.n_stages; i++)
        first += pl.stages[i].devices[0] == 0 ? pl.stages[i].decode_s : 0;
    ck_assert_double_ge(pl.decode_s, 2 * first * (1 - 1e-12));
    ck_assert_uint_eq(pl.memory[0].overhead, 10);               /* once, however many stages */
    ck_assert_uint_eq(pl.memory[0].weights, 100 + 2 * 200 + 1); /* the head is tied, and at home */
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

/* What accelerate 1.15 made of such modules, blocks not to be split, by infer_auto_device_map with
 * max_memory as it is and as get_balanced_memory makes it. */
static const struct {
    uint64_t memory[3], embed, layers[4], head;
    bool tied;
    uint32_t filled[7], balanced[7];
} accelerates[] = {
    {{1000, 1000, 2000}, 100, {200, 200, 200, 200}, 100, true, {0}, {0, 0, 1, 1, 2, 2, 0}},
    {{1000, 1000, 2000},
     100,
     {200, 200, 200, 200},
     100,
     false,
     {0, 0, 0, 0, 0, 1, 1},
     {0, 0, 1, 1, 2, 2, 2}},
    {{520, 520, 2000},
     100,
     {200, 200, 200, 200},
     100,
     true,
     {0, 0, 1, 1, 2, 2, 0},
     {0, 0, 1, 1, 2, 2, 0}},
    {{520, 520, 2000},
     100,
     {200, 200, 200, 200},
     100,
     false,
     {0, 0, 1, 1, 2, 2, 2},
     {0, 0, 1, 1, 2, 2, 2}},
    {{600, 600, 600},
     100,
     {200, 200, 200, 200},
     100,
     false,
     {0, 0, 1, 1, 1, 2, 2},
     {0, 0, 1, 1, 2, 2, 2}},
    {{700, 700, 2000},
     20,
     {100, 240, 240, 240},
     20,
     false,
     {0, 0, 0, 1, 1, 1, 1},
     {0, 0, 1, 2, 2, 2, 2}},
    {{700, 700, 2000},
     20,
     {100, 240, 240, 240},
     20,
     true,
     {0, 0, 0, 1, 1, 1, 0},
     {0, 0, 1, 2, 2, 2, 0}},
    {{600, 600, 600},
     20,
     {240, 240, 100, 100},
     120,
     false,
     {0, 0, 1, 1, 1, 1, 1},
     {0, 0, 1, 1, 1, 1, 1}},
};

START_TEST(accelerates_maps_are_those_that_it_makes)
{
    struct ek_costs *c = small_costs();
    struct ek_problem *p = problem_of(c, 1);
    struct ek_assignment a;

    for (uint32_t d = 0; d < 3; d++)
        p->devices[d].memory = accelerates[_i].memory[d];
    c->modules[0].weights = accelerates[_i].embed;
    for (int i = 0; i < 4; i++)
        c->modules[1 + i].weights = accelerates[_i].layers[i];
    c->modules[6].weights = accelerates[_i].head;
    if (!accelerates[_i].tied)
        c->modules[6].tied_to = -1;
    ck_assert_int_eq(ek_recipe_named(p, "accelerate auto", &a), EK_OK);
    ck_assert_mem_eq(a.device, accelerates[_i].filled, sizeof(accelerates[_i].filled));
    ck_assert_int_eq(ek_recipe_named(p, "accelerate balanced", &a), EK_OK);
    ck_assert_mem_eq(a.device, accelerates[_i].balanced, sizeof(accelerates[_i].balanced));
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

/* Four layers of 200 bytes and 160 of cache between an embedding and a head (100 each); a stage
 * takes 10. */
static const struct {
    uint64_t memory[3];
    const char *recipe;
    uint32_t device[7];
} usual[] = {
    {{1000, 1000, 2000}, "equal split", {0, 0, 0, 1, 2, 2, 2}},
    {{1000, 1000, 2000}, "vLLM's default", {0, 0, 1, 1, 2, 2, 2}},
    {{1000, 1000, 2000}, "proportional", {0, 0, 1, 2, 2, 2, 2}},
    {{1000, 1000, 1000}, "proportional", {0, 0, 0, 1, 2, 2, 2}},
    {{600, 1000, 1000}, "proportional", {0, 0, 1, 1, 2, 2, 2}},
    {{1000, 1000, 10}, "proportional", {0, 0, 0, 1, 1, 1, 1}},
    {{1000, 1000, 2000}, "llama.cpp", {2, 2, 2, 2, 2, 2, 2}},
    {{1000, 1000, 1000}, "llama.cpp", {1, 1, 1, 2, 2, 2, 2}},
    {{1000, 1000, 923}, "llama.cpp", {1, 1, 1, 2, 2, 2, 2}}, /* 831 and a tenth */
    {{1000, 1000, 922}, "llama.cpp", {0, 0, 1, 1, 2, 2, 2}},
    {{10, 10, 10}, "llama.cpp", {0, 0, 0, 0, 0, 0, 0}},
};

START_TEST(the_usual_recipes_go_by_their_rules)
{
    struct ek_costs *c = small_costs();
    struct ek_problem *p = problem_of(c, 1);
    struct ek_assignment a;

    for (uint32_t d = 0; d < 3; d++)
        p->devices[d].memory = usual[_i].memory[d];
    ck_assert_int_eq(ek_recipe_named(p, usual[_i].recipe, &a), EK_OK);
    ck_assert_mem_eq(a.device, usual[_i].device, sizeof(usual[_i].device));
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

START_TEST(a_given_placement_is_a_plan_that_says_so)
{
    struct ek_costs *c = small_costs();
    struct ek_request r = request_for(c);
    struct ek_problem *p = problem_of(c, 1);
    struct ek_assignment a = {.device = {0, 1, 1, 2, 2, 0, 0}}, again;
    struct ek_plan_file *f = NULL;
    struct ek_placement pl;
    json_t *plan;

    ck_assert(ek_place_assignment(p, &a, &pl));
    plan = ek_plan_json_given(c, &r, p, &pl, "mine.json");
    ck_assert_int_eq(ek_plan_file_from_json(plan, "plan", &f), EK_OK);
    ck_assert_uint_eq(f->n_stages, 4);
    ck_assert_str_eq(f->devices[f->stages[3].devices[0]].name, "fast:0");
    ck_assert_str_eq(
        json_string_value(json_object_get(json_object_get(plan, "optimality"), "status")), "given");
    ck_assert_int_eq(ek_assignment_from_json(p, plan, "plan", false, &again), EK_OK);
    ck_assert_mem_eq(a.device, again.device, 7 * sizeof(*a.device));
    json_decref(plan);
    ek_plan_file_free(f);
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

static const struct {
    const char *text;
    enum ek_status status;
    uint32_t devices[7];
} splits[] = {
    {"[2,2]", EK_OK, {0, 0, 0, 1, 1, 0, 0}},
    {"1, 2, 1", EK_OK, {0, 0, 1, 1, 2, 0, 0}},
    {"[0,4]", EK_OK, {0, 1, 1, 1, 1, 0, 0}},
    {"[3,9]", EK_OK, {0, 0, 0, 0, 1, 0, 0}},
    {"equal", EK_OK, {0, 0, 0, 1, 2, 2, 2}},
    {"[2,1]", EK_EUSAGE, {0}},
    {"[1,1,1,1]", EK_EUSAGE, {0}},
    {"[]", EK_EUSAGE, {0}},
    {"", EK_EUSAGE, {0}},
    {"[99999999999999999999]", EK_EUSAGE, {0}},
    {"guide", EK_EUSAGE, {0}},
};

START_TEST(splits_and_recipes_are_understood_or_refused)
{
    struct ek_costs *c = small_costs();
    struct ek_problem *p = problem_of(c, 1);
    struct ek_assignment a = {.device = {0}};

    ek_set_quiet(true);
    ck_assert_msg(ek_recipe_named(p, splits[_i].text, &a) == splits[_i].status, "%s: %s",
                  splits[_i].text, ek_last_error());
    if (splits[_i].status == EK_OK)
        ck_assert_mem_eq(a.device, splits[_i].devices, sizeof(splits[_i].devices));
    ek_problem_free(p);
    ek_costs_free(c);
}
END_TEST

/* ---- Calibration --------------------------------------------------------------------------------
 */
static char path[] = "calibrate-XXXXXX.db";

static struct ek_store *new_store(void)
{
    struct ek_store *s = NULL;
    int fd = mkstemps(path, 3);

    ck_assert_int_ge(fd, 0);
    close(fd);
    unlink(path);
    ck_assert_msg(ek_store_open(path, EK_STORE_WRITE, &s) == EK_OK, "%s", ek_last_error());
    return s;
}

static void end_store(struct ek_store *s)
{
    ek_store_close(s);
    unlink(path);
    strcpy(path, "calibrate-XXXXXX.db");
}

static void ran(struct ek_store *s, const char *device, const char *quantity, double predicted,
                double measured, double factor)
{
    struct ek_store_run r = {
        .what = "stage", .predicted = predicted, .measured = measured, .n = 3, .factor = factor};

    strcpy(r.device, device);
    strcpy(r.quantity, quantity);
    ck_assert_msg(ek_store_put_run(s, &r) == EK_OK, "%s", ek_last_error());
}

/* The same machine, but its true times are these multiples of what was profiled. */
static void slow_truth(struct ek_costs *c, double prefill, double decode)
{
    for (size_t i = 0; i < c->n_times; i++) {
        for (size_t k = 0; k < c->times[i].prefill.n; k++)
            c->times[i].prefill.rows[k].time.median_s *= prefill;
        for (size_t k = 0; k < c->times[i].decode.n; k++)
            c->times[i].decode.rows[k].time.median_s *= decode;
    }
}

static struct ek_placement placed(const struct ek_costs *c, const struct ek_request *r)
{
    struct ek_assignment a = {.device = {0, 0, 0, 2, 2, 2, 2}};
    struct ek_problem *p = NULL;
    struct ek_placement pl;

    ck_assert_int_eq(ek_problem_new(c, r, 1, &p), EK_OK);
    ck_assert(ek_place_assignment(p, &a, &pl));
    ek_problem_free(p);
    return pl;
}

START_TEST(what_one_workload_took_corrects_another)
{
    struct ek_costs *c = small_costs(), *truth = small_costs();
    struct ek_request here = request_for(c), there = here;
    struct ek_store *s = new_store();
    struct ek_placement said, took;

    slow_truth(truth, 1.4, 1.25);
    there.workload.batch = 4;
    there.workload.prompt = 20;
    said = placed(c, &here);
    took = placed(truth, &here);
    for (size_t i = 0; i < 2; i++) {
        const char *device = i ? "slow:0" : "fast:0";
        ran(s, device, "prefill", said.stages[i].prefill_s, took.stages[i].prefill_s, 1);
        ran(s, device, "decode", said.stages[i].decode_s, took.stages[i].decode_s, 1);
    }
    ck_assert_int_eq(ek_costs_calibrate(c, s), EK_OK);
    ck_assert_double_eq_tol(c->classes[0].calibration.prefill, 1.4, 1e-9);
    ck_assert_double_eq_tol(c->classes[1].calibration.decode, 1.25, 1e-9);
    ck_assert_uint_eq(c->classes[1].calibration.n, 2);
    said = placed(c, &there);
    took = placed(truth, &there);
    for (size_t i = 0; i < 2; i++) {
        ck_assert_double_eq_tol(said.stages[i].prefill_s, took.stages[i].prefill_s, 1e-12);
        ck_assert_double_eq_tol(said.stages[i].decode_s, took.stages[i].decode_s, 1e-12);
    }
    end_store(s);
    ek_costs_free(c);
    ek_costs_free(truth);
}
END_TEST

START_TEST(a_calibration_is_the_median_and_not_made_twice)
{
    struct ek_costs *c = small_costs(), *other = small_costs();
    struct ek_store *s = new_store();
    json_t *v;
    struct ek_costs *again = NULL;

    strcpy(other->model_hash, "another");
    ck_assert_int_eq(ek_costs_calibrate(c, s), EK_EENV); /* nothing ran */
    ran(s, "fast:0", "decode", 1, 1.2, 1);
    ran(s, "fast:0", "decode", 1.2, 1.2, 1.2); /* predicted with that 1.2 in it */
    ran(s, "fast:0", "decode", 1, 7, 1);
    ran(s, "fast:0", "decode", 0, 7, 1); /* not predicted at all */
    ran(s, "fast:0", "memory", 1, 2, 1);
    ck_assert_int_eq(ek_costs_calibrate(other, s), EK_EENV);
    ck_assert_int_eq(ek_costs_calibrate(c, s), EK_OK);
    ck_assert_double_eq_tol(c->classes[0].calibration.decode, 1.2, 1e-12);
    ck_assert_double_eq(c->classes[0].calibration.prefill, 1);
    ck_assert_uint_eq(c->classes[0].calibration.n, 3);
    ck_assert_uint_eq(c->classes[1].calibration.n, 0);
    v = ek_costs_json(c);
    ck_assert_int_eq(ek_costs_from_json(v, "again", &again), EK_OK);
    ck_assert_double_eq_tol(again->classes[0].calibration.decode, 1.2, 1e-12);
    ck_assert_uint_eq(again->classes[0].calibration.n, 3);
    json_decref(v);
    ran(s, "slow:0", "prefill", 1, 40, 1);
    ck_assert_int_eq(ek_costs_calibrate(c, s), EK_EENV); /* that is no calibration */
    end_store(s);
    ek_costs_free(c);
    ek_costs_free(other);
    ek_costs_free(again);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("given");
    TCase *t = tcase_create("given");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(t, a_map_becomes_stages_in_the_order_of_the_chain, 0, EK_ARRAY_LEN(maps));
    tcase_add_test(t, a_device_that_is_visited_twice_works_on_one_stage_at_a_time);
    tcase_add_loop_test(t, the_usual_recipes_go_by_their_rules, 0, EK_ARRAY_LEN(usual));
    tcase_add_test(t, a_given_placement_is_a_plan_that_says_so);
    tcase_add_loop_test(t, splits_and_recipes_are_understood_or_refused, 0, EK_ARRAY_LEN(splits));
    tcase_add_loop_test(t, accelerates_maps_are_those_that_it_makes, 0, EK_ARRAY_LEN(accelerates));
    tcase_add_test(t, what_one_workload_took_corrects_another);
    tcase_add_test(t, a_calibration_is_the_median_and_not_made_twice);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
