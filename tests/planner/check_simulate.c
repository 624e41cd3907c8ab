/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The simulator against the formulas, and against runs that were measured (results/); stages that
 * take turns on one bus.
 */
#include "planner/plan_file.h"
#include "planner/simulate.h"
#include "planner/turns.h"
#include "tests/planner/small.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct ek_plan_file *plan_file(const char *text)
{
    json_t *root = parse(text);
    struct ek_plan_file *f = NULL;

    ck_assert_msg(ek_plan_file_from_json(root, "plan", &f) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    return f;
}

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

START_TEST(the_ids_return_to_the_host_between_two_steps)
{
    struct ek_plan_file *f = plan_file(pipe_text);
    struct ek_load load = {.requests = 1, .prompt = 64, .generate = 101, .seed = 1};
    struct ek_simulated s;

    f->return_s = 0.001;
    ck_assert_int_eq(ek_simulate(f, &load, &s), EK_OK);
    ck_assert_double_eq_tol(s.per_token[0], 0.005 + 0.001, 1e-9);
    ek_plan_file_free(f);
}
END_TEST

/* Stages as bench measured them, and the whole that it measured. */
static const struct {
    const char *what;
    uint32_t batch, prompt, chunk, groups;
    double alpha;
    size_t n;
    double stages[4][2];    /* prefill, decode step */
    double prefill, decode; /* until the last first token; a token of all */
} measured[] = {
    {"results/h200x4: 3B, 64 sequences",
     64,
     512,
     512,
     2,
     34e-6,
     4,
     {{.102831, 760.73e-6}, {.100100, 745.85e-6}, {.112481, 842.47e-6}, {.097822, 861.94e-6}},
     .119608,
     3.476e-3},
    {"results/h200x4: 3B, 16 sequences",
     16,
     512,
     512,
     3,
     34e-6,
     4,
     {{.024678, 628.82e-6}, {.024319, 615.51e-6}, {.026803, 679.99e-6}, {.024221, 725.15e-6}},
     .032275,
     2.853e-3},
    {"results/h200x2: 7B, 8 sequences, peer stores",
     8,
     1024,
     512,
     2,
     11e-6,
     2,
     {{.103241, 2.316e-3}, {.085981, 2.290e-3}},
     .110105,
     4.641e-3},
};

static struct ek_plan_file *measured_plan(size_t which)
{
    json_t *stages = json_array(), *devices = json_array(), *links = json_array(), *root;
    struct ek_plan_file *f = NULL;

    for (size_t i = 0; i < measured[which].n; i++) {
        char name[32], next[32], module[40];
        snprintf(name, sizeof(name), "cuda:%zu", i);
        snprintf(next, sizeof(next), "cuda:%zu", i + 1);
        snprintf(module, sizeof(module), "model.layers.%zu", i);
        json_array_append_new(devices, json_pack("{s:s s:s}", "name", name, "backend", "cuda"));
        json_array_append_new(
            stages, json_pack("{s:s s:[s] s:f s:f s:f}", "device", name, "modules", module,
                              "prefill_s", measured[which].stages[i][0], "decode_s",
                              measured[which].stages[i][1], "handoff_s", measured[which].alpha));
        json_array_append_new(links,
                              json_pack("{s:s s:s s:f s:f}", "from", name, "to", next, "alpha_s",
                                        measured[which].alpha, "beta_bytes_s", 3e11));
    }
    root = json_pack("{s:s s:i s:{s:s} s:{s:i s:i s:i s:i s:i s:i} s:o s:o s:o}", "format",
                     "evenkeel-plan", "version", 1, "model", "name", "m", "workload", "batch",
                     (int)measured[which].batch, "prompt", (int)measured[which].prompt,
                     "prefill_chunk", (int)measured[which].chunk, "generate", 16, "context", 2048,
                     "micro_batches", (int)measured[which].groups, "devices", devices, "stages",
                     stages, "links", links);
    ck_assert_msg(ek_plan_file_from_json(root, "plan", &f) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    return f;
}

START_TEST(the_simulator_agrees_with_measured_runs)
{
    struct ek_plan_file *f = measured_plan((size_t)_i);
    struct ek_load load = {
        .requests = measured[_i].batch, .prompt = measured[_i].prompt, .generate = 1, .seed = 1};
    struct ek_simulated s;
    double prefill, decode;

    ck_assert_int_eq(ek_simulate(f, &load, &s), EK_OK);
    prefill = s.last_first_token / measured[_i].prefill - 1;
    load.generate = 4001; /* decode alone rules */
    ck_assert_int_eq(ek_simulate(f, &load, &s), EK_OK);
    decode = s.per_token[1] / measured[_i].decode - 1;
    ck_assert_msg(fabs(prefill) < 0.03, "%s: prefill %+.1f %%", measured[_i].what, 100 * prefill);
    ck_assert_msg(fabs(decode) < 0.06, "%s: decode %+.1f %%", measured[_i].what, 100 * decode);
    if (getenv("EK_VERBOSE"))
        printf("%s: prefill %+.2f %%, decode %+.2f %%\n", measured[_i].what, 100 * prefill,
               100 * decode);
    ek_plan_file_free(f);
}
END_TEST

#define ALONE(device, seconds)                                                                     \
    {                                                                                              \
        device, device, seconds, 1, 0                                                              \
    }
#define ON_BUS(device, seconds)                                                                    \
    {                                                                                              \
        device, 0, seconds, 1, 0                                                                   \
    }

/* slow 1: two at work take twice as long, and get done no more than one after the other. */
static const struct {
    struct ek_turn stages[3];
    size_t n;
    struct ek_jobs jobs;
    double ended, busy[3]; /* of all jobs */
} turns[] = {
    {{ALONE(0, 1), ALONE(1, 1)}, 2, {10, 0, 0}, 11, {10, 10}},
    {{ON_BUS(0, 1), ON_BUS(1, 1)}, 2, {10, 0, 0}, 20, {19, 19}},
    {{ON_BUS(0, 1), ON_BUS(0, 1)}, 2, {10, 0, 0}, 20, {10, 10}},
    {{ALONE(0, 1), ALONE(1, 4)}, 2, {10, 0, 0}, 41, {10, 40}},
    {{{0, 0, 1, 1, 0.25}, ALONE(1, 1)}, 2, {4, 1, 0.5}, 10.5, {4, 4}}, /* one behind the other */
    {{ALONE(0, 1), ALONE(1, 1)}, 2, {4, 2, 0}, 5, {4, 4}},             /* two groups */
    {{ALONE(0, 1), ON_BUS(1, 1), ON_BUS(2, 1)}, 3, {1, 0, 0}, 3, {1, 1, 1}},
};

START_TEST(stages_on_one_bus_take_turns)
{
    double busy[3], ended[16];

    ek_take_turns(turns[_i].stages, turns[_i].n, &turns[_i].jobs, busy, ended);
    ck_assert_double_eq_tol(ended[turns[_i].jobs.n - 1], turns[_i].ended, 1e-9);
    for (size_t i = 0; i < turns[_i].n; i++)
        ck_assert_double_eq_tol(busy[i], turns[_i].busy[i], 1e-9);
    for (uint32_t k = 1; k < turns[_i].jobs.n; k++)
        ck_assert_double_ge(ended[k], ended[k - 1]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("simulate");
    TCase *t = tcase_create("simulate");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_test(t, the_simulator_agrees_with_the_formulas);
    tcase_add_test(t, a_light_load_waits_for_nothing_and_a_heavy_one_fills_the_slowest_stage);
    tcase_add_test(t, the_ids_return_to_the_host_between_two_steps);
    tcase_add_loop_test(t, stages_on_one_bus_take_turns, 0, EK_ARRAY_LEN(turns));
    tcase_add_loop_test(t, the_simulator_agrees_with_measured_runs, 0, EK_ARRAY_LEN(measured));
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
