/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Around the best plan: the next-best ones, what more would buy, and what to give up when nothing
 * fits.
 */
#include "planner/planner.h"
#include "planner/levels.h"
#include "planner/problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NODES 512

/* ---- The next-best plans ------------------------------------------------------------------------
 * Lawler's scheme: every plan but the best differs from it first in some column, so the rest falls
 * into classes "these columns as in the best, this one not", each solved on its own. */
struct node {
    uint8_t *deny;
    struct ek_found found;
    uint32_t kept; /* columns of the answer that are fixed */
};

static bool overlaps(const struct ek_column *a, const struct ek_column *b)
{
    return (a->sides & b->sides) || (a->first <= b->last && b->first <= a->last &&
                                     a->first <= a->last && b->first <= b->last);
}

/* Fixes the first columns of a plan and forbids the one behind them. */
static void restrict_to(const struct ek_problem *p, const struct node *from, uint32_t at,
                        uint8_t *deny)
{
    const uint32_t *chosen = from->found.answer.columns;

    memcpy(deny, from->deny, p->n_columns);
    for (size_t c = 0; c < p->n_columns; c++)
        for (uint32_t i = from->kept; i < at; i++)
            if (c != chosen[i] && overlaps(&p->columns[c], &p->columns[chosen[i]]))
                deny[c] = 1;
    deny[chosen[at]] = 1;
}

static enum ek_status best_of(const struct ek_problem *p, enum ek_objective o, struct node *n,
                              struct ek_effort *e)
{
    struct ek_search_state s = {.p = p,
                                .oracle = ek_dp_solve,
                                .effort = e,
                                .deny = n->deny,
                                .limits = EK_LIMITS_NONE,
                                .latency = INFINITY};
    struct ek_found last;

    EK_TRY(ek_level_solve(&s, o, &n->found));
    if (n->found.kind != EK_ANSWER_OPTIMAL)
        return EK_OK;
    EK_TRY(ek_least_latency(&s, s.latency, -INFINITY, &last));
    if (last.kind == EK_ANSWER_OPTIMAL) {
        last.value = n->found.value;
        n->found = last;
    }
    return EK_OK;
}

static enum ek_status split(const struct ek_problem *p, enum ek_objective o,
                            const struct node *best, struct node *nodes, size_t *n,
                            struct ek_effort *e)
{
    for (uint32_t at = best->kept; at < best->found.answer.n && *n < MAX_NODES; at++) {
        struct node *c = &nodes[*n];
        *c = (struct node){.kept = at, .deny = ek_calloc(p->n_columns, 1)};
        if (c->deny == NULL)
            return EK_ENOMEM;
        restrict_to(p, best, at, c->deny);
        (*n)++;
        EK_TRY(best_of(p, o, c, e));
    }
    return EK_OK;
}

/* best: the value that the best plan has. */
static json_t *plan_text(const struct ek_problem *p, const struct ek_answer *a, double value,
                         double best)
{
    struct ek_score sc = ek_score_of(p, a->columns, a->n);
    json_t *o =
        json_pack("{s:f s:f s:f s:f s:f}", "value", value, "times", best > 0 ? value / best : 1,
                  "throughput_s", sc.throughput, "latency_s", sc.latency, "balance", sc.balance);
    struct ek_placement pl;

    ek_place(p, a->columns, a->n, &pl);
    json_object_set_new(o, "modules", ek_placement_modules(p, &pl));
    return o;
}

static enum ek_status next_best(const struct ek_problem *p, enum ek_objective o, struct node *nodes,
                                uint32_t k, struct ek_effort *e, json_t *list)
{
    size_t n = 1;
    enum ek_status st = split(p, o, &nodes[0], nodes, &n, e);

    for (uint32_t i = 0; st == EK_OK && i < k && !ek_effort_over(e); i++) {
        struct node *best = NULL;
        for (size_t j = 1; j < n; j++)
            if (nodes[j].found.kind == EK_ANSWER_OPTIMAL &&
                (best == NULL || nodes[j].found.value < best->found.value))
                best = &nodes[j];
        if (best == NULL)
            break;
        json_array_append_new(list, plan_text(p, &best->found.answer, best->found.value,
                                              nodes[0].found.value));
        st = split(p, o, best, nodes, &n, e);
        best->found.kind = EK_ANSWER_NONE;
    }
    for (size_t j = 0; j < n; j++)
        free(nodes[j].deny);
    return st;
}

enum ek_objective ek_alternatives_by(enum ek_objective o)
{
    return o == EK_OBJ_CONTEXT || o == EK_OBJ_BATCH ? EK_OBJ_LATENCY : o;
}

enum ek_status ek_alternatives(const struct ek_request *r, const struct ek_solution *s, uint32_t k,
                               json_t **out)
{
    struct ek_effort e = {.stop = r->stop};
    enum ek_objective o = ek_alternatives_by(r->objectives[0]);
    struct node *nodes;
    enum ek_status st;

    if (r->time_limit > 0)
        e.deadline_ns = ek_now_ns() + (uint64_t)(r->time_limit * 1e9);
    nodes = ek_calloc(MAX_NODES, sizeof(*nodes));
    if (nodes == NULL)
        return EK_ENOMEM;
    nodes[0].deny = ek_calloc(s->problem->n_columns, 1);
    nodes[0].found.answer = s->answer;
    nodes[0].found.value = ek_score_value(o, &s->score);
    *out = json_array();
    st = nodes[0].deny ? next_best(s->problem, o, nodes, k, &e, *out) : EK_ENOMEM;
    free(nodes);
    return st;
}

/* ---- The same with more of something ------------------------------------------------------------
 */
struct variant { /* costs with other classes; everything else is borrowed */
    struct ek_costs costs;
    struct ek_cost_device *extra;
};

static enum ek_status variant_new(const struct ek_costs *c, struct variant *v)
{
    v->costs = *c;
    v->extra = NULL;
    v->costs.classes = ek_calloc(c->n_classes, sizeof(*c->classes));
    if (v->costs.classes == NULL)
        return EK_ENOMEM;
    memcpy(v->costs.classes, c->classes, c->n_classes * sizeof(*c->classes));
    return EK_OK;
}

static void variant_free(struct variant *v)
{
    free(v->costs.classes);
    free(v->extra);
}

static enum ek_status add_devices(struct variant *v, size_t cls, uint32_t more)
{
    struct ek_cost_class *k = &v->costs.classes[cls];

    v->extra = ek_calloc(k->count + more, sizeof(*v->extra));
    if (v->extra == NULL)
        return EK_ENOMEM;
    memcpy(v->extra, k->devices, k->count * sizeof(*v->extra));
    for (uint32_t i = 0; i < more; i++)
        snprintf(v->extra[k->count + i].name, sizeof(v->extra->name), "%.40s+%u", k->name, i + 1);
    k->devices = v->extra;
    k->count += more;
    return EK_OK;
}

/* The first objective's value by the dynamic program alone. */
static enum ek_status quick(const struct ek_costs *c, const struct ek_request *r, uint32_t m,
                            double *value, uint32_t *context, uint32_t *batch)
{
    struct ek_request q = *r;
    struct ek_solution *s;
    enum ek_status st;

    if (r->deadline_ns && ek_now_ns() > r->deadline_ns)
        return EK_EUNPROVEN;
    q.no_certificate = true;
    q.n_objectives = 1;
    q.time_limit = 10;
    if (m && q.objectives[0] != EK_OBJ_BATCH)
        q.workload.micro_batches = m;
    st = ek_solve(c, &q, &s);
    if (st != EK_OK)
        return st;
    *value = s->values[0];
    if (context)
        *context = s->context;
    if (batch)
        *batch = s->batch;
    ek_solution_free(s);
    return EK_OK;
}

static enum ek_status with_memory(const struct ek_costs *c, const struct ek_request *r, uint32_t m,
                                  uint64_t bytes, double *value)
{
    struct ek_request q = *r;

    q.more_memory = bytes;
    return quick(c, &q, m, value, NULL, NULL);
}

static const char *device_name(const struct ek_costs *c, size_t d, size_t *cls)
{
    for (*cls = 0; d >= c->classes[*cls].count; (*cls)++)
        d -= c->classes[*cls].count;
    return c->classes[*cls].devices[d].name;
}

/* Budgets given one for each device, by name, and for further devices of a class as for its first.
 * *out is freed by the caller. */
static enum ek_status further_budgets(const struct ek_costs *c, const struct ek_request *r,
                                      size_t cls, uint32_t more, struct ek_request *out)
{
    struct ek_budget *b = ek_calloc(r->n_budgets + more, sizeof(*b)), like = {.name = ""};
    size_t of, device = 0, n = r->n_budgets;

    if (b == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        b[i] = r->budgets[i];
        if (b[i].name[0] != '\0')
            continue;
        snprintf(b[i].name, sizeof(b[i].name), "%s", device_name(c, device++, &of));
        if (of == cls && like.name[0] == '\0')
            like = b[i];
    }
    for (uint32_t i = 0; i < more; i++, n++) {
        b[n] = like;
        snprintf(b[n].name, sizeof(b[n].name), "%.40s+%u", c->classes[cls].name, i + 1);
    }
    out->budgets = b;
    out->n_budgets = n;
    return EK_OK;
}

static enum ek_status with_devices(const struct ek_costs *c, const struct ek_request *r, uint32_t m,
                                   size_t cls, uint32_t more, double *value)
{
    size_t unnamed = 0;
    struct variant v;
    struct ek_request q = *r;
    enum ek_status st;

    if (ek_costs_devices(c) + more > EK_PLAN_MAX_DEVICES)
        return EK_NO;
    for (size_t i = 0; i < r->n_budgets; i++)
        unnamed += r->budgets[i].name[0] == '\0';
    EK_TRY(variant_new(c, &v));
    st = add_devices(&v, cls, more);
    if (st == EK_OK && unnamed > 1)
        st = further_budgets(c, r, cls, more, &q);
    if (st == EK_OK)
        st = quick(&v.costs, &q, m, value, NULL, NULL);
    if (q.budgets != r->budgets)
        free(q.budgets);
    variant_free(&v);
    return st;
}

static bool carries_on(enum ek_status st)
{
    return st == EK_OK || st == EK_NO || st == EK_EUNPROVEN;
}

enum ek_status ek_sensitivity(const struct ek_costs *c, const struct ek_request *r,
                              const struct ek_solution *s, json_t **out)
{
    double base = s->values[0], v;
    json_t *list = json_array();
    enum ek_status st = with_memory(c, r, 0, EK_GIB, &v);

    if (st == EK_OK)
        json_array_append_new(list,
                              json_pack("{s:s s:f s:f}", "change", "1 GiB more on every device",
                                        "value", v, "times", base > 0 ? v / base : 1));
    for (size_t k = 0; carries_on(st) && k < c->n_classes; k++) {
        st = with_devices(c, r, 0, k, 1, &v);
        if (st != EK_OK)
            continue;
        json_array_append_new(list, json_pack("{s:o s:f s:f}", "change",
                                              json_sprintf("one more %s", c->classes[k].name),
                                              "value", v, "times", base > 0 ? v / base : 1));
    }
    if (!carries_on(st)) {
        json_decref(list);
        return st;
    }
    *out = list;
    return EK_OK;
}

/* ---- When nothing fits --------------------------------------------------------------------------
 */
static uint64_t all_budgets(const struct ek_problem *p)
{
    uint64_t sum = 0;

    for (uint32_t g = 0; g < p->n_groups; g++)
        sum += p->groups[g].pool < 0 ? p->groups[g].cap * p->groups[g].count : 0;
    for (uint32_t i = 0; i < p->n_pools; i++)
        sum += p->pools[i];
    return sum;
}

bool ek_shortfall(const struct ek_costs *c, const struct ek_request *r, char *out, size_t cap)
{
    struct ek_choice choices[EK_MAX_CHOICES];
    struct ek_request q;
    struct ek_memory_use u;
    struct ek_problem *p;
    char weights[EK_UNIT_LEN], cache[EK_UNIT_LEN], each[EK_UNIT_LEN], have[EK_UNIT_LEN];

    ek_choices(c, r, choices);
    q = ek_request_with(r, &choices[0]);
    if (ek_problem_new(c, &q, choices[0].micro_batches, &p) != EK_OK)
        return false;
    ek_use_begin(p, 0, &u);
    for (uint32_t m = 0; m < c->n_modules; m++)
        ek_use_add(p, 0, m, m >= p->first_item && ek_tied_within(p, m, 0, (int32_t)p->n_items), &u);
    ek_use_end(p, 0, &u);
    snprintf(out, cap,
             "all of it takes %s of weights and %s of cache (%u x %u tokens), and each device in "
             "use up to %s of buffers and overhead; the budgets less margins add up to %s",
             ek_format_bytes(weights, u.weights), ek_format_bytes(cache, u.kv), p->workload.batch,
             p->workload.context, ek_format_bytes(each, u.total - u.weights - u.kv),
             ek_format_bytes(have, all_budgets(p)));
    ek_problem_free(p);
    return true;
}

static enum ek_status advise_size(const struct ek_costs *c, const struct ek_request *r,
                                  enum ek_objective o, json_t *list)
{
    struct ek_request q = *r;
    uint32_t context = 0, batch = 0;
    double v;
    enum ek_status st;

    q.objectives[0] = o;
    if (o == EK_OBJ_CONTEXT)
        q.workload.context = ek_workload_prompt(&q.workload) + q.workload.generate;
    else
        q.workload.batch = 1;
    q.workload.micro_batches = 1;
    st = quick(c, &q, 0, &v, &context, &batch);
    if (st == EK_OK)
        json_array_append_new(
            list, o == EK_OBJ_CONTEXT
                      ? json_sprintf("a context of at most %u tokens fits (asked for: %u)", context,
                                     r->workload.context)
                      : json_sprintf("a batch of at most %u fits (asked for: %u)", batch,
                                     r->workload.batch));
    return carries_on(st) ? EK_OK : st;
}

/* The least equal amount on every device that makes it fit, to 16 MiB. */
static enum ek_status advise_memory(const struct ek_costs *c, const struct ek_request *r,
                                    json_t *list)
{
    uint64_t low = 0, high = (uint64_t)1 << 40;
    char buf[EK_UNIT_LEN];
    double v;

    if (with_memory(c, r, 1, high, &v) != EK_OK)
        return EK_OK;
    while (high - low > 16 * EK_MIB) {
        uint64_t mid = low + (high - low) / 2;
        enum ek_status st = with_memory(c, r, 1, mid, &v);
        if (!carries_on(st))
            return st;
        if (st == EK_OK)
            high = mid;
        else
            low = mid;
    }
    json_array_append_new(list, json_sprintf("%s more on every device would do",
                                             ek_format_bytes(buf, high)));
    return EK_OK;
}

static enum ek_status advise_devices(const struct ek_costs *c, const struct ek_request *r,
                                     json_t *list)
{
    double v;

    for (size_t k = 0; k < c->n_classes; k++)
        for (uint32_t more = 1; more <= 16; more++) {
            enum ek_status st = with_devices(c, r, 1, k, more, &v);
            if (!carries_on(st))
                return st;
            if (st != EK_OK)
                continue;
            json_array_append_new(list,
                                  json_sprintf("%u more %s would do", more, c->classes[k].name));
            break;
        }
    return EK_OK;
}

/* Adds a sentence when the request fits. */
static enum ek_status advise_if(const struct ek_costs *c, const struct ek_request *q, json_t *list,
                                json_t *sentence)
{
    double v;
    enum ek_status st = quick(c, q, 1, &v, NULL, NULL);

    if (st == EK_OK)
        json_array_append(list, sentence);
    json_decref(sentence);
    return carries_on(st) ? EK_OK : st;
}

static enum ek_status advise_one_rule(const struct ek_costs *c, const struct ek_request *r,
                                      json_t *list)
{
    static const char *const options[] = {"pin", "ban", "together"};
    struct ek_request q = *r;
    enum ek_status st = EK_OK;

    q.rules = ek_calloc(r->n_rules + 1, sizeof(*q.rules));
    if (q.rules == NULL)
        return EK_ENOMEM;
    q.n_rules = r->n_rules - 1;
    for (size_t i = 0; st == EK_OK && i < r->n_rules; i++) {
        memcpy(q.rules, r->rules, i * sizeof(*q.rules));
        memcpy(q.rules + i, r->rules + i + 1, (q.n_rules - i) * sizeof(*q.rules));
        st = advise_if(c, &q, list,
                       json_sprintf("without --%s %s=%s it fits", options[r->rules[i].kind],
                                    r->rules[i].module, r->rules[i].other));
    }
    free(q.rules);
    return st;
}

static enum ek_status advise_stages(const struct ek_costs *c, const struct ek_request *r,
                                    json_t *list)
{
    struct ek_request q = *r;
    size_t had = json_array_size(list), devices = ek_costs_devices(c);

    if (r->max_stages == 0)
        return EK_OK;
    for (q.max_stages++; q.max_stages <= devices && json_array_size(list) == had; q.max_stages++)
        EK_TRY(advise_if(c, &q, list, json_sprintf("with --max-stages %u it fits", q.max_stages)));
    return EK_OK;
}

/* Each rule alone, by as little as would do; or all of them. */
static enum ek_status advise_rules(const struct ek_costs *c, const struct ek_request *r,
                                   json_t *list)
{
    struct ek_request q = *r;

    EK_TRY(advise_stages(c, r, list));
    EK_TRY(advise_one_rule(c, r, list));
    q.fixed_order = false;
    if (r->fixed_order)
        EK_TRY(advise_if(c, &q, list, json_string("without --fixed-order it fits")));
    q = *r;
    q.use_all = false;
    if (r->use_all)
        EK_TRY(advise_if(c, &q, list, json_string("without --use-all it fits")));
    q = *r;
    q.sides_first = q.whole_layers = q.no_cpu = q.as_map = q.one_degree = false;
    if (r->whole_layers || r->as_map)
        EK_TRY(advise_if(c, &q, list, json_string("without --for it fits")));
    q = *r;
    if (json_array_size(list) || (r->n_rules == 0 && !r->fixed_order && !r->max_stages))
        return EK_OK;
    q.n_rules = q.max_stages = 0;
    q.fixed_order = false;
    return advise_if(c, &q, list, json_string("without the pins, bans and other rules it fits"));
}

#define ADVICE_SECONDS 20 /* for all of it: what is not found by then is not said */

enum ek_status ek_advice(const struct ek_costs *c, const struct ek_request *r, json_t **out)
{
    struct ek_request q = *r;
    json_t *list = json_array();
    enum ek_status st;

    q.objectives[0] = EK_OBJ_LATENCY;
    q.deadline_ns = ek_now_ns() + (uint64_t)(fmin(r->time_limit, ADVICE_SECONDS) * 1e9);
    EK_GOTO(advise_rules(c, &q, list), st, fail);
    EK_GOTO(advise_size(c, &q, EK_OBJ_CONTEXT, list), st, fail);
    EK_GOTO(advise_size(c, &q, EK_OBJ_BATCH, list), st, fail);
    EK_GOTO(advise_memory(c, &q, list), st, fail);
    EK_GOTO(advise_devices(c, &q, list), st, fail);
    *out = list;
    return EK_OK;
fail:
    json_decref(list);
    return st;
}
