/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * plan --from: what somebody's placement would cost, and that placement as a plan that can be run.
 */
#include "planner/commands.h"
#include "planner/device_map.h"
#include "planner/plan_arguments.h"

#include <stdlib.h>
#include <string.h>

struct given {
    struct ek_problem *p;
    struct ek_assignment map;
    struct ek_assessment cost;
};

/* The file of that name, else a recipe. */
static enum ek_status read_map(const struct ek_problem *p, const char *from,
                               struct ek_assignment *map)
{
    if (ek_file_exists(from) || strchr(from, '/') != NULL || strstr(from, ".json") != NULL)
        return ek_assignment_read(p, from, false, map);
    return ek_recipe_named(p, from, map);
}

/* With one choice; kept when it is the best so far. The map does not depend on it. */
static enum ek_status consider(const struct ek_plan_arguments *a, const struct ek_costs *c,
                               const struct ek_choice *choice, struct given *best)
{
    struct ek_request r = ek_request_with(&a->request, choice);
    struct given g = {.map = best->map};
    enum ek_status st = ek_problem_new(c, &r, choice->micro_batches, &g.p);

    if (st == EK_NO && best->p)
        return EK_OK;
    if (st == EK_OK && best->p == NULL)
        st = read_map(g.p, a->from, &g.map);
    if (st == EK_OK) {
        ek_assess(g.p, &g.map, &g.cost);
        if (best->p == NULL ||
            (g.cost.runnable &&
             (!best->cost.runnable || g.cost.score.throughput < best->cost.score.throughput))) {
            struct given old = *best;
            *best = g;
            g = old;
        }
    }
    ek_problem_free(g.p);
    return st;
}

/* With the micro-batches and the chunk that suit it best, unless they were given. */
static enum ek_status assess(const struct ek_plan_arguments *a, const struct ek_costs *c,
                             struct given *best)
{
    struct ek_choice choices[EK_MAX_CHOICES];
    size_t n = ek_choices(c, &a->request, choices);
    enum ek_status st = EK_OK;

    for (size_t i = 0; st == EK_OK && i < n; i++)
        st = consider(a, c, &choices[i], best);
    return st;
}

static void print_people(const struct ek_plan_arguments *a, const struct given *g)
{
    const struct ek_assessment *v = &g->cost;
    char s[3][EK_UNIT_LEN];

    if (!v->runnable) {
        printf("%s: no times or no link for it\n", a->from);
        return;
    }
    printf(
        "%s: %u stages, a batch in %s, prefill %s, decode %s a token; fullest %s%s at %.1f %%%s\n",
        a->from, v->stages, ek_format_seconds(s[0], v->score.throughput),
        ek_format_seconds(s[1], v->prefill_s), ek_format_seconds(s[2], v->decode_s),
        v->shared ? "what is shared with " : "", ek_pdevice_name(g->p, v->worst),
        v->worst_ratio * 100, v->worst_ratio > 1 ? ": DOES NOT FIT" : "");
}

static enum ek_status print_json(const struct given *g)
{
    const struct ek_assessment *v = &g->cost;
    json_t *o = json_pack("{s:b s:b s:f s:f s:f s:f s:f s:I s:I}", "fits", v->worst_ratio <= 1,
                          "runnable", v->runnable, "throughput_s", v->score.throughput, "latency_s",
                          v->score.latency, "balance", v->score.balance, "prefill_s", v->prefill_s,
                          "decode_s", v->decode_s, "stages", (json_int_t)v->stages, "micro_batches",
                          (json_int_t)g->p->micro_batches);

    return ek_json_print(o);
}

static enum ek_status write_plan(const struct ek_plan_arguments *a, const struct ek_costs *c,
                                 const struct given *g)
{
    struct ek_placement pl;
    json_t *plan;
    enum ek_status st;

    ek_place_assignment(g->p, &g->map, &pl);
    plan = ek_plan_json_given(c, &a->request, g->p, &pl, a->from);
    if (plan == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    st = ek_json_write(a->output, plan, a->force);
    json_decref(plan);
    if (st == EK_OK && strcmp(a->output, "-") != 0)
        ek_note("plan written to %s", a->output);
    return st;
}

enum ek_status ek_plan_given(const struct ek_plan_arguments *a, const struct ek_costs *c, int *code)
{
    struct given g = {0};
    bool to_stdout = a->output && strcmp(a->output, "-") == 0, good = false;
    enum ek_status st = assess(a, c, &g);

    if (st == EK_OK) {
        good = g.cost.runnable && g.cost.worst_ratio <= 1;
        *code = good ? 0 : ek_exit_code(EK_NO);
        if (a->json && !to_stdout)
            st = print_json(&g);
        else if (!to_stdout)
            print_people(a, &g);
    }
    if (st == EK_OK && good && a->output)
        st = write_plan(a, c, &g);
    else if (st == EK_OK && a->output)
        ek_note("%s is not written: that placement cannot run", a->output);
    ek_problem_free(g.p);
    return st;
}
