/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What binds a plan, and what the usual recipes would have cost.
 */
#include "planner/planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- What binds ---------------------------------------------------------------------------------
 */
/* *column: of the stage that works longest (stages of side modules alone share their column with
 * the stage that they ride with). */
static const char *bottleneck_of(const struct ek_problem *p, const struct ek_solution *s,
                                 uint32_t *column)
{
    double busiest = 0, m = p->micro_batches;

    for (uint32_t i = 0; i < s->answer.n; i++) {
        const struct ek_column *c = &p->columns[s->answer.columns[i]];
        if (c->work * m > busiest) {
            busiest = c->work * m;
            *column = s->answer.columns[i];
        }
    }
    if (busiest >= s->score.throughput * (1 - 1e-9))
        return "stage";
    return s->score.latency >= s->score.throughput * (1 - 1e-9) ? "latency" : "link";
}

/* Bytes of the cheapest module that would make the stage one longer, 0 when none would. */
static uint64_t least_growth(const struct ek_problem *p, const struct ek_column *c)
{
    uint64_t before = UINT64_MAX, behind = UINT64_MAX, least;

    if (c->first > 0)
        before = ek_problem_memory(p, c->kind, c->first - 1, c->last, c->sides).total;
    if (c->last + 1 < (int32_t)p->n_items)
        behind = ek_problem_memory(p, c->kind, c->first, c->last + 1, c->sides).total;
    least = before < behind ? before : behind;
    if (least == UINT64_MAX)
        return 0;
    return least > c->total ? least - c->total : 1; /* buffers of a head alone may be larger */
}

/* Bytes that are left on the stage's devices, and in the memory that they share with others. */
static uint64_t headroom(const struct ek_solution *s, const struct ek_column *c)
{
    const struct ek_problem *p = s->problem;
    const struct ek_group *g = &p->groups[p->kinds[c->kind].group];
    uint64_t own = g->cap - c->total, used = 0;

    if (g->pool < 0)
        return own;
    for (uint32_t i = 0; i < s->answer.n; i++) {
        const struct ek_column *o = &p->columns[s->answer.columns[i]];
        if (p->groups[p->kinds[o->kind].group].pool == g->pool)
            used += o->total * p->kinds[o->kind].tp;
    }
    used = p->pools[g->pool] - used; /* left */
    return used < own ? used : own;
}

static json_t *binding_json(const struct ek_solution *s)
{
    const struct ek_problem *p = s->problem;
    json_t *list = json_array();
    struct ek_placement pl;

    ek_place(p, s->answer.columns, s->answer.n, &pl);
    for (size_t i = 0; i < pl.n_stages; i++) {
        const struct ek_column *c = &p->columns[pl.stages[i].column];
        uint64_t left = headroom(s, c), grow;
        if (pl.stages[i].first > pl.stages[i].last)
            continue;
        grow = least_growth(p, c);
        json_array_append_new(list, json_pack("{s:s s:I s:I s:b}", "device",
                                              ek_pdevice_name(p, pl.stages[i].devices[0]),
                                              "headroom", (json_int_t)left, "one_more_module_takes",
                                              (json_int_t)grow, "memory_binds", grow > left));
    }
    return list;
}

/* ---- Recipes ------------------------------------------------------------------------------------
 */
static json_t *recipe_json(const struct ek_problem *p, const struct ek_recipe *r,
                           const struct ek_solution *s)
{
    struct ek_assessment a;
    json_t *o;

    ek_assess(p, &r->assignment, &a);
    o = json_pack("{s:s s:b s:b}", "recipe", r->name, "fits", a.worst_ratio <= 1, "runnable",
                  a.runnable);
    if (a.worst_ratio > 1)
        json_object_set_new(o, "over",
                            json_pack("{s:s s:I s:b}", "device", ek_pdevice_name(p, a.worst),
                                      "bytes", (json_int_t)a.lacks, "shared", a.shared));
    if (a.runnable) {
        json_object_set_new(o, "throughput_s", json_real(a.score.throughput));
        json_object_set_new(o, "latency_s", json_real(a.score.latency));
        json_object_set_new(o, "balance", json_real(a.score.balance));
        if (s->score.throughput > 0)
            json_object_set_new(o, "times_ours",
                                json_real(a.score.throughput / s->score.throughput));
    }
    if (a.revisits)
        json_object_set_new(o, "revisits", json_true());
    if (r->note[0])
        json_object_set_new(o, "note", json_string(r->note));
    return o;
}

static json_t *recipes_json(const struct ek_solution *s)
{
    struct ek_recipe *r = ek_calloc(EK_MAX_RECIPES, sizeof(*r));
    json_t *list = json_array();
    size_t n = r ? ek_recipes(s->problem, r) : 0;

    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, recipe_json(s->problem, &r[i], s));
    free(r);
    return list;
}

json_t *ek_explanation_json(const struct ek_solution *s)
{
    uint32_t column = 0;
    const char *what = bottleneck_of(s->problem, s, &column);
    struct ek_placement pl;
    json_t *o =
        json_pack("{s:s s:f s:f s:f}", "bottleneck", what, "throughput_s", s->score.throughput,
                  "latency_s", s->score.latency, "balance", s->score.balance);

    if (o == NULL)
        return NULL;
    ek_place(s->problem, s->answer.columns, s->answer.n, &pl);
    for (size_t i = 0; strcmp(what, "stage") == 0 && i < pl.n_stages; i++)
        if (pl.stages[i].column == column) /* the last such: behind its side modules' */
            json_object_set_new(o, "busiest_stage", json_integer((json_int_t)i));
    json_object_set_new(o, "memory", binding_json(s));
    json_object_set_new(o, "recipes", recipes_json(s));
    return o;
}

/* ---- For people ---------------------------------------------------------------------------------
 */
static void print_recipe(struct ek_table *t, const struct ek_problem *p, const struct ek_recipe *r,
                         const struct ek_solution *s)
{
    struct ek_assessment a;
    char v[3][EK_UNIT_LEN], fits[160], note[192];

    ek_assess(p, &r->assignment, &a);
    if (a.worst_ratio > 1)
        snprintf(fits, sizeof(fits), "no: %s%.64s lacks %s", a.shared ? "what is shared with " : "",
                 ek_pdevice_name(p, a.worst), ek_format_bytes(v[0], a.lacks));
    else
        snprintf(fits, sizeof(fits), "%s", a.runnable ? "yes" : "no times or links for it");
    snprintf(note, sizeof(note), "%s%s%s", r->note, r->note[0] && a.revisits ? "; " : "",
             a.revisits ? "uses a device twice: no plan here does" : "");
    if (!a.runnable) {
        ek_table_row(t, "%s|%s|||||%s", r->name, fits, note);
        return;
    }
    ek_table_row(t, "%s|%s|%s|%s|%.0f %%|%.2f x|%s", r->name, fits,
                 ek_format_seconds(v[1], a.score.throughput),
                 ek_format_seconds(v[2], a.score.latency), a.score.balance * 100,
                 a.score.throughput / s->score.throughput, note);
}

static const char *device_of(const struct ek_problem *p, const struct ek_placed_stage *s)
{
    return ek_pdevice_name(p, s->devices[0]);
}

/* The stage before the link that is kept busy longest. */
static size_t busiest_link(const struct ek_problem *p, const struct ek_placement *pl)
{
    double most = -1;
    size_t best = 0;

    for (size_t i = 0; i + 1 < pl->n_stages; i++) {
        const struct ek_placed_stage *s = &pl->stages[i];
        double busy = s->first <= s->last && s[1].first <= s[1].last
                          ? ek_problem_hop_work(p, s->last, s->kind, s[1].kind)
                          : 0;
        best = busy > most ? i : best;
        most = fmax(most, busy);
    }
    return best;
}

static void print_bottleneck(const struct ek_solution *s, FILE *out)
{
    const struct ek_problem *p = s->problem;
    uint32_t column = 0, m = p->micro_batches;
    const char *what = bottleneck_of(p, s, &column), *before = "stage";
    struct ek_placement pl;
    size_t link;

    ek_place(p, s->answer.columns, s->answer.n, &pl);
    link = busiest_link(p, &pl);
    if (strcmp(what, "link") == 0)
        fprintf(out, "bottleneck    the link from %s to %s", device_of(p, &pl.stages[link]),
                device_of(p, &pl.stages[link + 1]));
    else if (strcmp(what, "latency") == 0)
        fprintf(out,
                "bottleneck    stages wait for each other: %u group%s of sequences in %zu stages "
                "do%s not keep all at work; a larger batch may",
                m, m == 1 ? "" : "s", pl.n_stages, m == 1 ? "es" : "");
    else
        fprintf(out, "bottleneck    the work of");
    for (size_t i = 0; strcmp(what, "stage") == 0 && i < pl.n_stages; i++)
        if (pl.stages[i].column == column) {
            fprintf(out, " %s %zu (%s)", before, i, device_of(p, &pl.stages[i]));
            before = "and";
        }
    fputc('\n', out);
}

/* Recipes place modules on single devices: nothing to price where stages are groups of them. */
static bool has_single_devices(const struct ek_problem *p)
{
    for (uint32_t k = 0; k < p->n_kinds; k++)
        if (p->kinds[k].tp == 1)
            return true;
    return false;
}

void ek_explanation_print(const struct ek_solution *s, FILE *out)
{
    const struct ek_problem *p = s->problem;
    struct ek_recipe *r = ek_calloc(EK_MAX_RECIPES, sizeof(*r));
    struct ek_table *t =
        ek_table_new("same profile, other recipes|fits|>a batch|>latency|>fullest|>against ours|");
    size_t n = r && p->n_devices > 1 && has_single_devices(p) ? ek_recipes(p, r) : 0;
    char v[2][EK_UNIT_LEN];

    ek_table_row(t, "this plan|yes|%s|%s|%.0f %%|1.00 x|",
                 ek_format_seconds(v[0], s->score.throughput),
                 ek_format_seconds(v[1], s->score.latency), s->score.balance * 100);
    for (size_t i = 0; i < n; i++)
        print_recipe(t, p, &r[i], s);
    print_bottleneck(s, out);
    if (n) {
        fputc('\n', out);
        ek_table_print(t, out);
    }
    ek_table_free(t);
    free(r);
}
