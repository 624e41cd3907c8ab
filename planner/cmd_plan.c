/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan plan: costs, a plan of them, and its explanations.
 */
#include "planner/commands.h"
#include "planner/device_map.h"
#include "planner/hardware.h"
#include "planner/plan_arguments.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Cards that are not at hand: from a profile where there is one, else from FLOPs and bytes. */
static enum ek_status estimate(const struct ek_plan_arguments *a, const struct ek_model *m,
                               struct ek_store *store, struct ek_costs **c)
{
    const struct ek_profile_choice choice = {.devices = a->devices};
    const char *cache = a->given.cache[0] ? a->given.cache : NULL;

    struct ek_card *more = NULL;
    struct ek_fleet fleet;
    size_t n = 0;
    uint32_t tp = a->request.tp ? a->request.tp : a->request.one_degree ? EK_PLAN_MAX_TP : 1;
    enum ek_status st = EK_OK;

    if (a->cards)
        EK_TRY(ek_cards_read(a->cards, &more, &n));
    st = ek_hardware_parse(a->hardware, more, n, &fleet);
    if (st == EK_OK && store)
        st = ek_costs_scale(m, store, &choice, &fleet, a->act, cache, tp, c);
    else if (st == EK_OK)
        st = ek_costs_estimate(m, &fleet, a->act, cache, tp, c);
    free(more);
    return st;
}

/* Costs are of one type of cache and activations: others would take other times. */
static enum ek_status same_types(const struct ek_plan_arguments *a, const struct ek_costs *c)
{
    if (a->given.cache[0] && strcmp(a->given.cache, c->workload.cache) != 0)
        return ek_error(EK_EUSAGE, "--cache %s: the costs are of a cache of %s", a->given.cache,
                        c->workload.cache);
    if (a->act && strcasecmp(a->act, c->workload.act) != 0)
        return ek_error(EK_EUSAGE, "--act %s: the costs are of activations of %s", a->act,
                        c->workload.act);
    return EK_OK;
}

static enum ek_status get_costs(struct ek_plan_arguments *a, struct ek_costs **c)
{
    const struct ek_model_options o = {.seed = 1, .quantize = a->quantize};
    struct ek_profile_choice choice = {
        .devices = a->devices, .act = a->act, .cache = a->given.cache[0] ? a->given.cache : NULL};
    struct ek_model *m = NULL;
    struct ek_store *store = NULL;
    enum ek_status st;

    if (a->costs) {
        EK_TRY(ek_costs_read(a->costs, c));
        return same_types(a, *c);
    }
    EK_TRY(ek_model_open(a->model, &o, &m));
    if (a->cut_tower)
        EK_GOTO(ek_model_cut_tower(m), st, end);
    if (a->db)
        EK_GOTO(ek_store_open(a->db, EK_STORE_READ, &store), st, end);
    if (a->hardware) {
        st = estimate(a, m, store, c);
        goto end;
    }
    st = ek_costs_from_profile(m, store, &choice, c);
    if (st == EK_OK && a->calibrated)
        st = ek_costs_calibrate(*c, store);
end:
    ek_store_close(store);
    ek_model_close(m);
    return st;
}

/* Adds what was asked for beyond the plan itself. */
static enum ek_status add_explanations(const struct ek_plan_arguments *a, const struct ek_costs *c,
                                       const struct ek_solution *s, json_t *plan)
{
    json_t *e = ek_explanation_json(s), *v;
    bool whole;

    if (e == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    json_object_set_new(plan, "explanation", e);
    if (a->alternatives) {
        EK_TRY(ek_alternatives(&a->request, s, a->alternatives, &v));
        json_object_set_new(e, "next_best", v);
    }
    if (a->pareto) {
        EK_TRY(ek_pareto(s, &a->request, &v, &whole));
        json_object_set_new(plan, "pareto", v);
        json_object_set_new(plan, "pareto_whole", json_boolean(whole));
    }
    if (a->explain) {
        EK_TRY(ek_sensitivity(c, &a->request, s, &v));
        json_object_set_new(e, "sensitivity", v);
    }
    return EK_OK;
}

/* Values are of the objective, beside the plan's own. */
static void print_list(const json_t *list, const char *title, enum ek_objective o, FILE *out)
{
    char value[EK_UNIT_LEN], change[32];
    json_t *v, *m;
    size_t i, k;

    json_array_foreach((json_t *)list, i, v)
    {
        double more = json_number_value(json_object_get(v, "times")) - 1;
        const json_t *modules = json_object_get(v, "modules");
        snprintf(change, sizeof(change), "%+.2f %%", 100 * more);
        fprintf(out, "%-13s %s (%s) with ", i ? "" : title,
                ek_objective_text(o, json_number_value(json_object_get(v, "value")), value),
                fabs(more) < 5e-5 ? "the same" : change);
        json_array_foreach((json_t *)modules, k, m)
            fprintf(out, "%s%s", k ? ", " : "", json_string_value(m));
        fprintf(out, "%s\n",
                modules ? " modules" : json_string_value(json_object_get(v, "change")));
    }
}

static void print_binding(const json_t *list, FILE *out)
{
    char a[EK_UNIT_LEN], b[EK_UNIT_LEN];
    json_t *o;
    size_t i;

    json_array_foreach((json_t *)list, i, o)
    {
        uint64_t more = (uint64_t)json_integer_value(json_object_get(o, "one_more_module_takes"));
        uint64_t left = (uint64_t)json_integer_value(json_object_get(o, "headroom"));
        fprintf(out, "%-13s %s: ", i ? "" : "memory",
                json_string_value(json_object_get(o, "device")));
        if (more == 0)
            fprintf(out, "holds the whole chain, %s left\n", ek_format_bytes(b, left));
        else
            fprintf(out, "%s; one more module takes %s, %s left\n",
                    json_is_true(json_object_get(o, "memory_binds")) ? "binds" : "does not bind",
                    ek_format_bytes(a, more), ek_format_bytes(b, left));
    }
}

static void print_front(const json_t *list, bool whole, FILE *out)
{
    struct ek_table *t = ek_table_new(">prefill|>decode step|>fullest|modules of each stage");
    char a[EK_UNIT_LEN], b[EK_UNIT_LEN];
    json_t *o, *m;
    size_t i, k;

    json_array_foreach((json_t *)list, i, o)
    {
        char stages[1024] = "";
        json_array_foreach(json_object_get(o, "modules"), k, m)
        {
            size_t n = strlen(stages);
            snprintf(stages + n, sizeof(stages) - n, "%s%s", k ? ", " : "", json_string_value(m));
        }
        ek_table_row(t, "%s|%s|%.1f %%|%s",
                     ek_format_seconds(a, json_number_value(json_object_get(o, "prefill_s"))),
                     ek_format_seconds(b, json_number_value(json_object_get(o, "decode_s"))),
                     100 * json_number_value(json_object_get(o, "balance")), stages);
    }
    fprintf(out, "\nfront of the slowest stage's prefill, its decode step, the fullest memory%s\n",
            whole ? "" : " (stopped: not all of it)");
    ek_table_print(t, out);
    ek_table_free(t);
}

static void show_for_people(const struct ek_plan_arguments *a, const struct ek_costs *c,
                            const struct ek_solution *s, const json_t *plan)
{
    const json_t *e = json_object_get(plan, "explanation");
    enum ek_objective o = a->request.objectives[0];

    ek_plan_print(c, s, &a->request, stdout);
    ek_explanation_print(s, stdout);
    if (a->alternatives)
        fputc('\n', stdout);
    print_list(json_object_get(e, "next_best"), "next best", ek_alternatives_by(o), stdout);
    print_list(json_object_get(e, "sensitivity"), "would buy", o, stdout);
    if (a->explain)
        print_binding(json_object_get(e, "memory"), stdout);
    if (a->pareto)
        print_front(json_object_get(plan, "pareto"),
                    json_is_true(json_object_get(plan, "pareto_whole")), stdout);
}

static void note_unproven(const struct ek_request *r, const struct ek_solution *s)
{
    size_t sure = s->near ? 0 : s->settled;
    const char *name = ek_objective_names[r->objectives[sure ? sure - 1 : 0]];

    if (sure == 0)
        ek_note("stopped before the proof: this is the best plan so far");
    else if (sure > r->n_objectives)
        ek_note("stopped before the second method had checked all of the first's proof");
    else if (sure == r->n_objectives)
        ek_note("stopped before the whole proof: %s is the best there is, but other plans as good "
                "as that may have less latency",
                name);
    else
        ek_note("stopped before the whole proof: %s is the best there is, %s may not be", name,
                ek_objective_names[r->objectives[sure]]);
}

static enum ek_status deliver(const struct ek_plan_arguments *a, const struct ek_costs *c,
                              const struct ek_solution *s, json_t *plan, int *code)
{
    bool to_stdout = a->output && strcmp(a->output, "-") == 0;
    char moved[EK_UNIT_LEN];

    EK_TRY(add_explanations(a, c, s, plan));
    if (a->output)
        EK_TRY(ek_json_write(a->output, plan, a->force));
    if (a->json && !to_stdout)
        EK_TRY(ek_json_write("-", plan, true));
    if (!a->json && !to_stdout)
        show_for_people(a, c, s, plan);
    if (a->output && !to_stdout)
        ek_note("plan written to %s", a->output);
    if (s->near)
        ek_note("%s of weights change their device; %s within %g %% of the best moves less",
                ek_format_bytes(moved, (uint64_t)s->moved_bytes),
                s->proven ? "no plan" : "it is not proven that no plan", a->within * 100);
    if (!s->proven) {
        note_unproven(&a->request, s);
        *code = ek_exit_code(EK_EUNPROVEN);
    }
    return EK_OK;
}

static enum ek_status show(const struct ek_plan_arguments *a, const struct ek_costs *c,
                           const struct ek_solution *s, int *code)
{
    json_t *plan = ek_plan_json(c, &a->request, s);
    enum ek_status st;

    if (plan == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    st = deliver(a, c, s, plan, code);
    json_decref(plan);
    return st;
}

/* Whether smaller weights fit, where there are costs of them. */
static void advise_weights(const struct ek_plan_arguments *a, json_t *advice)
{
    static const char *const types[] = {"int8", "int4"};
    size_t n = json_array_size(advice);

    for (size_t i = 0; i < EK_ARRAY_LEN(types) && a->model && !a->quantize; i++) {
        struct ek_plan_arguments q = *a;
        struct ek_costs *c = NULL;
        struct ek_solution *s = NULL;
        q.request.no_certificate = true;
        q.request.objectives[0] = EK_OBJ_LATENCY;
        q.request.n_objectives = 1;
        q.request.time_limit = fmin(a->request.time_limit, 5);
        if (ek_quantize_parse(types[i], &q.quantize) == EK_OK && get_costs(&q, &c) == EK_OK &&
            ek_solve(c, &q.request, &s) == EK_OK)
            json_array_append_new(advice, json_sprintf("with --quantize %s it fits", types[i]));
        ek_solution_free(s);
        ek_costs_free(c);
        if (json_array_size(advice) > n)
            return;
    }
}

/* Nothing fits: the reason on one line, then what would help. */
static enum ek_status refuse(const struct ek_plan_arguments *a, const struct ek_costs *c, int *code)
{
    char reason[1024], takes[512];
    json_t *advice, *line;
    size_t i;

    snprintf(reason, sizeof(reason), "%s", ek_last_error());
    if (ek_shortfall(c, &a->request, takes, sizeof(takes)))
        snprintf(reason + strlen(reason), sizeof(reason) - strlen(reason), "; %s", takes);
    EK_TRY(ek_advice(c, &a->request, &advice));
    advise_weights(a, advice);
    fprintf(stderr, "evenkeel: %s\n", reason);
    json_array_foreach(advice, i, line) fprintf(stderr, "evenkeel: %s\n", json_string_value(line));
    if (a->json) {
        json_t *o =
            json_pack("{s:b s:s s:O}", "feasible", false, "reason", reason, "advice", advice);
        enum ek_status st = ek_json_print(o);
        json_decref(advice);
        EK_TRY(st);
    } else {
        json_decref(advice);
    }
    *code = ek_exit_code(EK_NO);
    return EK_OK;
}

static enum ek_status write_costs(const char *path, const struct ek_costs *c, bool force)
{
    json_t *v = ek_costs_json(c);
    enum ek_status st;

    if (v == NULL)
        return ek_error(EK_ENOMEM, "out of host memory");
    st = ek_json_write(path, v, force);
    json_decref(v);
    return st;
}

/* Pictures that are asked for are some that the run can be given. */
static enum ek_status check_pictures(const struct ek_plan_arguments *a, const struct ek_costs *c)
{
    bool sees = false;

    for (size_t i = 0; i < c->n_modules; i++)
        sees = sees || ek_cost_module_sees(&c->modules[i]);
    if (a->given.images > 0 && !sees)
        return ek_error(EK_EUSAGE, "plan: --images %u: the model takes no pictures",
                        a->given.images);
    if (a->given.images > 0 && c->workload.image_tokens == 0)
        return ek_error(EK_EUSAGE, "plan: --images %u of how many --image-tokens each?",
                        a->given.images);
    return EK_OK;
}

static enum ek_status make_plan(struct ek_plan_arguments *a, int *code)
{
    struct ek_costs *c = NULL;
    struct ek_solution *s = NULL;
    enum ek_status st;

    if (a->output) /* before the work, so that no plan is lost */
        EK_TRY(ek_file_may_write(a->output, a->force));
    EK_GOTO(get_costs(a, &c), st, end);
    ek_plan_arguments_merge(a, c);
    c->workload = a->request.workload;
    EK_GOTO(check_pictures(a, c), st, end);
    if (a->write_costs)
        EK_GOTO(write_costs(a->write_costs, c, a->force), st, end);
    if (a->from) {
        st = ek_plan_given(a, c, code);
        goto end;
    }
    st = ek_solve(c, &a->request, &s);
    if (st == EK_OK && a->near)
        st = ek_stay_near(c, &a->request, a->near, a->within, s);
    if (st == EK_OK)
        st = show(a, c, s, code);
    else if (st == EK_NO)
        st = refuse(a, c, code);
end:
    ek_solution_free(s);
    ek_costs_free(c);
    return st;
}

static enum ek_status run(int argc, char **argv, int *code)
{
    struct ek_plan_arguments a = {.request = EK_REQUEST_INIT, .within = 0.02};
    enum ek_status st;

    a.request.stop = &ek_stopped;
    st = ek_plan_arguments_read(&a, argc, argv);
    if (st == EK_OK && !a.done)
        st = make_plan(&a, code);
    ek_request_free(&a.request);
    return st;
}

const struct ek_command ek_command_plan = {"plan", "find the best placement, and prove it", run};
