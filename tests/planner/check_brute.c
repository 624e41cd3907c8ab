/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Brute force against the planner on random tiny instances. EK_BRUTE=N runs N of them.
 */
#include "planner/levels.h"
#include "tests/planner/brute.h"
#include "tests/planner/instances.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-7 * fmax(fabs(a), fabs(b)) + 1e-12;
}

typedef void (*hold_fn)(uint64_t seed, struct ek_costs *c, struct ek_request *r, uint64_t *counts);

/* Holds what is to hold of so many random instances, or EK_BRUTE's number; returns how many. */
static uint64_t each_instance(uint64_t n, hold_fn hold, uint64_t *counts)
{
    const char *env = getenv("EK_BRUTE");

    n = env ? strtoull(env, NULL, 10) : n;
    for (uint64_t seed = 0; seed < n; seed++) {
        struct ek_costs *c;
        struct ek_request r;
        tiny_instance(seed, &c, &r);
        if (c)
            hold(seed, c, &r, counts);
        ek_costs_free(c);
        ek_request_free(&r);
    }
    return n;
}

/* Where a number of them was asked for. */
static void say(const char *what, const uint64_t counts[2])
{
    if (getenv("EK_BRUTE"))
        printf("%s: %llu and %llu\n", what, (unsigned long long)counts[1],
               (unsigned long long)counts[0]);
}

static void hold_against(uint64_t seed, struct ek_costs *c, struct ek_request *r, uint64_t *counts)
{
    struct brute_values b;
    struct ek_request q = *r;
    struct ek_solution *s = NULL;
    enum ek_status st;

    q.early_needs = seed % 2;
    brute_solve(c, r, &b);
    st = ek_solve(c, &q, &s);
    counts[b.feasible]++;
    ck_assert_msg(st == (b.feasible ? EK_OK : EK_NO), "seed %llu: status %d, brute %s: %s",
                  (unsigned long long)seed, st, b.feasible ? "feasible" : "infeasible",
                  ek_last_error());
    if (s) {
        ck_assert_msg(s->proven, "seed %llu: not proven", (unsigned long long)seed);
        ck_assert(s->values[0] == s->bounds[0]);
        ck_assert_msg(r->objectives[0] >= EK_OBJ_CONTEXT ||
                          ek_level_floor(s->problem, r->objectives[0]) <=
                              s->values[0] * (1 + 1e-12),
                      "seed %llu: the floor is above the best", (unsigned long long)seed);
        for (size_t i = 0; i < r->n_objectives; i++)
            ck_assert_msg(near(s->values[i], b.values[i]),
                          "seed %llu, %s: planner %.12g, brute %.12g", (unsigned long long)seed,
                          ek_objective_names[r->objectives[i]], s->values[i], b.values[i]);
        ck_assert_msg(near(s->score.latency, b.latency), "seed %llu: latency %.12g, brute %.12g",
                      (unsigned long long)seed, s->score.latency, b.latency);
    }
    ek_solution_free(s);
}

/* Whether anything fits into the memories that devices share hangs on a few bytes. */
static void hold_nearly_full(uint64_t seed, struct ek_costs *c, struct ek_request *r,
                             uint64_t *counts)
{
    fill_memories(seed, c, r);
    hold_against(seed, c, r, counts);
}

START_TEST(brute_force_agrees_where_shared_memories_are_nearly_full)
{
    uint64_t counts[2] = {0, 0}, n;

    n = each_instance(400, hold_nearly_full, counts);
    say("nearly full, feasible and infeasible instances that agree", counts);
    ck_assert_uint_gt(counts[0], n / 8);
    ck_assert_uint_gt(counts[1], n / 8);
}
END_TEST

static bool is_feasible(const struct ek_costs *c, const struct ek_request *r, uint32_t context,
                        uint32_t batch, struct brute_values *b)
{
    struct ek_request q = *r;

    q.workload.context = context;
    q.workload.batch = batch;
    q.objectives[0] = r->objectives[1];
    q.n_objectives = 1;
    brute_solve(c, &q, b);
    return b->feasible;
}

#define MEASURED 1000000 /* tokens and sequences up to which memory is as the instances say */

/* The longest context or the largest batch: one more does not fit, and of what does it is best. */
static void hold_size(uint64_t seed, struct ek_costs *c, struct ek_request *r, uint64_t *counts)
{
    struct ek_request q;
    struct brute_values b;
    struct ek_solution *s = NULL;
    bool context = seed % 2;
    uint32_t least =
        r->workload.prompt + r->workload.images * r->workload.image_tokens + r->workload.generate;
    enum ek_status st;

    if (seed % 3 == 0)
        fill_memories(seed, c, r);
    q = *r;
    q.objectives[0] = context ? EK_OBJ_CONTEXT : EK_OBJ_BATCH;
    q.objectives[1] = r->objectives[0];
    q.n_objectives = 2;
    st = ek_solve(c, &q, &s);
    counts[st == EK_OK]++;
    if (st != EK_OK) {
        ck_assert_msg(st == EK_NO &&
                          !is_feasible(c, &q, context ? least : q.workload.context,
                                       context ? q.workload.batch : q.workload.micro_batches, &b),
                      "seed %llu: %s", (unsigned long long)seed, ek_last_error());
        return;
    }
    ck_assert(s->proven && (context ? s->context : s->batch) == s->values[0]);
    if (s->values[0] < MEASURED / 100) { /* and what is not bounded by a memory is not sought */
        ck_assert_msg(!is_feasible(c, &q, s->context + context, s->batch + !context, &b),
                      "seed %llu: more than %.0f fits", (unsigned long long)seed, s->values[0]);
        ck_assert(is_feasible(c, &q, s->context, s->batch, &b));
        ck_assert_msg(near(s->values[1], b.values[0]) && near(s->score.latency, b.latency),
                      "seed %llu: %.12g, brute %.12g", (unsigned long long)seed, s->values[1],
                      b.values[0]);
    }
    ek_solution_free(s);
}

START_TEST(the_size_that_fits_is_the_largest_as_brute_force_says)
{
    uint64_t counts[2] = {0, 0}, n;

    n = each_instance(200, hold_size, counts);
    say("sizes found, and where nothing fits", counts);
    ck_assert_uint_gt(counts[1], n / 4);
}
END_TEST

/* Better in the first objective that tells them apart. */
static bool better(const struct ek_request *r, const struct brute_values *a,
                   const struct brute_values *b)
{
    size_t i = 0;

    while (i + 1 < r->n_objectives && near(a->values[i], b->values[i]))
        i++;
    return a->feasible && (!b->feasible || a->values[i] < b->values[i]);
}

/* The planner chooses the groups in flight; brute force takes the best of them all. */
static void hold_choice(uint64_t seed, struct ek_costs *c, struct ek_request *r, uint64_t *counts)
{
    struct ek_choice choices[EK_MAX_CHOICES];
    struct ek_request q = *r;
    struct brute_values best = {0}, b;
    struct ek_solution *s = NULL;
    size_t n;
    enum ek_status st;

    q.workload.micro_batches = 0;
    n = ek_choices(c, &q, choices);
    for (size_t i = 0; i < n; i++) {
        q.workload.micro_batches = choices[i].micro_batches;
        brute_solve(c, &q, &b);
        best = better(r, &b, &best) ? b : best;
    }
    q.workload.micro_batches = 0;
    st = ek_solve(c, &q, &s);
    ck_assert_msg(st == (best.feasible ? EK_OK : EK_NO), "seed %llu: status %d: %s",
                  (unsigned long long)seed, st, ek_last_error());
    for (size_t i = 0; s && i < r->n_objectives; i++)
        ck_assert_msg(s->proven && near(s->values[i], best.values[i]),
                      "seed %llu, %s: planner %.12g, brute %.12g", (unsigned long long)seed,
                      ek_objective_names[r->objectives[i]], s->values[i], best.values[i]);
    counts[n > 1]++;
    ek_solution_free(s);
}

START_TEST(the_choice_of_groups_is_the_best_as_brute_force_says)
{
    uint64_t counts[2] = {0, 0}, n;

    n = each_instance(400, hold_choice, counts);
    say("choices of several, and of one", counts);
    ck_assert_uint_gt(counts[1], n / 4);
}
END_TEST

/* A random device_map, one device of which is not there, as a file and as numbers. */
static void write_map(uint64_t *seed, const struct ek_costs *c, const char *path, uint32_t *old)
{
    json_t *map = json_object();

    for (size_t i = 0; i < c->n_modules; i++) {
        const char *names[EK_PLAN_MAX_DEVICES + 1] = {"gone"};
        uint32_t n = 1;
        for (size_t k = 0; k < c->n_classes; k++)
            for (uint32_t d = 0; d < c->classes[k].count; d++)
                names[n++] = c->classes[k].devices[d].name;
        old[i] = (uint32_t)(ek_random_u64(seed) % n);
        json_object_set_new(map, c->modules[i].name, json_string(names[old[i]]));
        old[i]--;
    }
    ck_assert_int_eq(ek_json_write(path, map, true), EK_OK);
    json_decref(map);
}

static char near_path[] = "near-XXXXXX";

static void hold_near(uint64_t seed, struct ek_costs *c, struct ek_request *r, uint64_t *counts)
{
    struct ek_request one = *r;
    struct ek_solution *s = NULL;
    uint32_t old[EK_PLAN_MAX_MODULES];
    uint64_t numbers = seed;
    double within = (double)(seed % 4) / 10, allowed, moved;

    one.tp = 1;
    if (ek_solve(c, &one, &s) != EK_OK)
        return;
    write_map(&numbers, c, near_path, old);
    allowed = s->values[0] * (1 + within);
    moved = brute_nearest(c, &one, old, allowed);
    ck_assert_msg(ek_stay_near(c, &one, near_path, within, s) == EK_OK, "seed %llu: %s",
                  (unsigned long long)seed, ek_last_error());
    ck_assert(s->proven);
    ck_assert(s->values[0] <= allowed * (1 + 1e-6));
    ck_assert_msg(s->moved_bytes == moved, "seed %llu: planner moves %.0f, brute %.0f",
                  (unsigned long long)seed, s->moved_bytes, moved);
    counts[moved > 0]++;
    ek_solution_free(s);
}

START_TEST(the_closest_plan_moves_as_little_as_brute_force_says)
{
    uint64_t counts[2] = {0, 0}, n;
    int fd = mkstemp(near_path);

    ck_assert_int_ge(fd, 0);
    close(fd);
    n = each_instance(400, hold_near, counts);
    remove(near_path);
    say("closest plans that move something, and nothing", counts);
    ck_assert_uint_gt(counts[1], n / 8);
}
END_TEST

static bool no_worse(const double a[3], const double b[3])
{
    bool yes = true;

    for (int k = 0; k < 3; k++)
        yes = yes && a[k] <= b[k] + 1e-9 * fabs(b[k]) + 1e-15;
    return yes;
}

/* Every point of the front is a plan, and every plan is no better than some point. */
static void hold_front(uint64_t seed, struct ek_costs *c, struct ek_request *r, uint64_t *points)
{
    struct ek_solution *s = NULL;
    double(*all)[3] = NULL, point[200][3];
    size_t n = 0, i;
    json_t *front, *o;
    bool whole;

    if (ek_solve(c, r, &s) != EK_OK)
        return;
    ck_assert_int_eq(ek_pareto(s, r, &front, &whole), EK_OK);
    ck_assert(whole);
    json_array_foreach(front, i, o)
    {
        point[n][0] = json_real_value(json_object_get(o, "prefill_s"));
        point[n][1] = json_real_value(json_object_get(o, "decode_s"));
        point[n++][2] = json_real_value(json_object_get(o, "balance"));
    }
    *points += n;
    i = brute_triples(c, r, &all);
    for (size_t k = 0; k < n; k++) {
        bool there = false;
        for (size_t j = 0; j < i && !there; j++)
            there = no_worse(point[k], all[j]) && no_worse(all[j], point[k]);
        ck_assert_msg(there, "seed %llu: point %zu is of no plan", (unsigned long long)seed, k);
    }
    while (i-- > 0) {
        bool covered = false;
        for (size_t k = 0; k < n && !covered; k++)
            covered = no_worse(point[k], all[i]);
        ck_assert_msg(covered, "seed %llu: a plan is better than the front",
                      (unsigned long long)seed);
    }
    free(all);
    json_decref(front);
    ek_solution_free(s);
}

START_TEST(the_front_is_whole_as_brute_force_says)
{
    uint64_t counts[2] = {0, 0}, n;

    n = each_instance(400, hold_front, counts);
    say("feasible, and points of fronts", counts);
    ck_assert_uint_gt(counts[0], n / 2);
}
END_TEST

START_TEST(brute_force_agrees_on_random_instances)
{
    uint64_t counts[2] = {0, 0}, n;

    n = each_instance(3000, hold_against, counts);
    say("feasible and infeasible instances that agree", counts);
    ck_assert_uint_gt(counts[0], n / 20);
    ck_assert_uint_gt(counts[1], n / 4);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("brute");
    TCase *t = tcase_create("brute");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 0);
    tcase_add_test(t, brute_force_agrees_on_random_instances);
    tcase_add_test(t, brute_force_agrees_where_shared_memories_are_nearly_full);
    tcase_add_test(t, the_size_that_fits_is_the_largest_as_brute_force_says);
    tcase_add_test(t, the_choice_of_groups_is_the_best_as_brute_force_says);
    tcase_add_test(t, the_front_is_whole_as_brute_force_says);
    tcase_add_test(t, the_closest_plan_moves_as_little_as_brute_force_says);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
