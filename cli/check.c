/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/session.h"

#include <stdlib.h>

static const struct ek_option options[] = {
    {"plan", "FILE", "run under this plan (default: everything on one device)"},
    {"devices", "DEVICE", "the device when there is no plan"},
    {"cache", "TYPE", "type of the cache when there is no plan (default: of activations; fp8)"},
    {"prefill-chunk", "N", "tokens of a step when there is no plan (1: as answers are made)"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups; +ends: embedding, head too"},
    {"reference", "FILE", "reference.safetensors: ids in, logits out"},
    {"tolerance", "F", "largest |difference| as a share of the largest |logit| (F32: 1e-4)"},
    {"kl", "F", "largest mean KL divergence (BF16, F16: 1e-3, or the official BF16 run's own)"},
    {"trace", NULL, "name the first module whose output departs from the reference's"},
    {NULL, NULL, NULL},
};

/* Weights quantised at load are not the reference's: their error is shown, and judged only by a
 * tolerance that was asked for. */
static bool shows_error_only(const struct ek_args *args)
{
    return ek_arg(args, "quantize") && !ek_arg(args, "tolerance") && !ek_arg(args, "kl");
}

static json_t *comparison_json(const struct ek_comparison *c, bool ok)
{
    return json_pack("{sb sI sf sf sf sf sf sI sI sI sI sI}", "ok", ok, "rows", (json_int_t)c->rows,
                     "max_abs", c->max_abs, "max_logit", c->max_logit, "relative",
                     c->max_logit > 0 ? c->max_abs / c->max_logit : 0.0, "mean_kl", c->mean_kl,
                     "max_kl", c->max_kl, "top1_equal", (json_int_t)c->top1_equal, "top1_decided",
                     (json_int_t)c->top1_decided, "top1_decided_equal",
                     (json_int_t)c->top1_decided_equal, "worst_row", (json_int_t)c->worst_row,
                     "not_finite", (json_int_t)c->not_finite);
}

static void print_comparison(const struct ek_args *args, const struct ek_comparison *c, bool ok)
{
    const char *said = ok ? "equal" : "DIFFERENT";

    if (ok && shows_error_only(args))
        said = ek_arg(args, "quantize");
    printf(
        "%s: %zu rows, max |difference| %.3g of max |logit| %.4g (%.2e), mean KL %.2e, best token "
        "equal in %zu of %zu (%zu of %zu where the margin decides)\n",
        said, c->rows, c->max_abs, c->max_logit, c->max_logit > 0 ? c->max_abs / c->max_logit : 0.0,
        c->mean_kl, c->top1_equal, c->rows, c->top1_decided_equal, c->top1_decided);
}

/* ---- Traces ------------------------------------------------------------------------------------
 */
#define ROUGH_TRACE 0.05 /* of a module's largest value, for activations in BF16 or F16 */

struct trace {
    struct ek_trace_module *modules;
    size_t n;
    double tolerance;
};

/* Module by module, in an engine of its own: the session's is closed, for two may not fit. */
static enum ek_status run_trace(const struct ek_args *args, struct ek_session *s, const char *path,
                                const struct ek_reference *r, struct trace *t)
{
    struct ek_comparison c;
    enum ek_status st;

    if (!ek_arg_flag(args, "trace"))
        return EK_OK;
    t->tolerance = ek_tolerance_for(s->model, s->plan->act, r).relative;
    if (t->tolerance == 0)
        t->tolerance = ROUGH_TRACE;
    EK_TRY(ek_arg_double(args, "tolerance", 0, 1, &t->tolerance));
    if (!ek_engine_close(s->engine))
        return ek_error(EK_EDEVICE, "a device did not end its work");
    s->engine = NULL;
    st = ek_trace(s->model, s->plan, path, r, t->tolerance, &t->modules, &t->n, &c);
    if (st == EK_EENV && ek_arg(args, "plan"))
        ek_note("a trace makes every module a stage, which takes more memory than the plan: give "
                "larger budgets, or no --plan");
    return st;
}

static const struct ek_trace_module *first_departing(const struct trace *t)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->modules[i].departs)
            return &t->modules[i];
    return NULL;
}

static bool any_traced(const struct trace *t)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->modules[i].rows > 0)
            return true;
    return false;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static void print_trace(const struct trace *t)
{
    struct ek_table *table = ek_table_new("module|>rows|>difference|>largest|>relative|");
    const struct ek_trace_module *first = first_departing(t);

    for (size_t i = 0; table && i < t->n; i++) {
        const struct ek_trace_module *m = &t->modules[i];
        if (m->rows > 0)
            ek_table_row(table, "%s|%zu|%.3g|%.4g|%.2e|%s", m->name, m->rows, m->max_abs,
                         m->largest, share(m->max_abs, m->largest), m->departs ? "departs" : "");
    }
    if (table && any_traced(t))
        ek_table_print(table, stdout);
    ek_table_free(table);
    if (!any_traced(t))
        printf("trace: the reference has none (tools/make-reference.py --trace puts it there)\n");
    else if (first != NULL)
        printf("trace: %s is the first to depart (%.2e of its largest value, allowed %.2e)\n",
               first->name, share(first->max_abs, first->largest), t->tolerance);
    else
        printf("trace: no module departs by more than %.2e of its largest value\n", t->tolerance);
}

static void add_trace(json_t *out, const struct trace *t)
{
    const struct ek_trace_module *first = first_departing(t);
    json_t *all = json_array();

    for (size_t i = 0; i < t->n; i++)
        if (t->modules[i].rows > 0)
            json_array_append_new(
                all, json_pack("{ss sI sf sf sb}", "module", t->modules[i].name, "rows",
                               (json_int_t)t->modules[i].rows, "max_abs", t->modules[i].max_abs,
                               "largest", t->modules[i].largest, "departs", t->modules[i].departs));
    json_object_set_new(out, "trace", all);
    json_object_set_new(out, "first_departing", first ? json_string(first->name) : json_null());
}

/* Prints the comparison and, when asked for, the trace; judged: what the comparison came to. */
static enum ek_status report(const struct ek_args *args, struct ek_session *s, const char *path,
                             const struct ek_reference *r, const struct ek_comparison *c,
                             enum ek_status judged)
{
    char *why = judged == EK_OK ? NULL : ek_strdup(ek_last_error());
    struct trace t = {0};
    enum ek_status st = run_trace(args, s, path, r, &t);
    json_t *json;

    if (st == EK_OK && ek_arg_flag(args, "json")) {
        json = comparison_json(c, judged == EK_OK);
        if (json != NULL)
            json_object_set_new(json, "reason", why ? json_string(why) : json_null());
        if (json != NULL && shows_error_only(args))
            json_object_set_new(json, "judged", json_false());
        if (json != NULL && ek_arg_flag(args, "trace"))
            add_trace(json, &t);
        st = ek_json_print(json);
    } else if (st == EK_OK) {
        print_comparison(args, c, judged == EK_OK);
        if (ek_arg_flag(args, "trace"))
            print_trace(&t);
    }
    if (st == EK_OK && why != NULL)
        st = ek_error(judged, "%s", why);
    free(why);
    free(t.modules);
    return st;
}

static enum ek_status compare(const struct ek_args *args, struct ek_session *s, const char *path,
                              const struct ek_reference *r)
{
    struct ek_tolerance tolerance = ek_tolerance_for(s->model, s->plan->act, r);
    struct ek_comparison c = {0};
    enum ek_status st;

    if (ek_arg(args, "tolerance") || ek_arg(args, "kl"))
        tolerance = (struct ek_tolerance){0};
    EK_TRY(ek_arg_double(args, "tolerance", 0, 1, &tolerance.relative));
    EK_TRY(ek_arg_double(args, "kl", 0, 100, &tolerance.mean_kl));
    EK_TRY(ek_compare(s->engine, r, &c));
    st = shows_error_only(args) && c.not_finite == 0 ? EK_OK : ek_comparison_judge(&c, &tolerance);
    if (st != EK_OK && st != EK_NO)
        return st;
    return report(args, s, path, r, &c, st);
}

static enum ek_status run(const struct ek_args *args)
{
    struct ek_reference *r = NULL;
    struct ek_session s = {0};
    const char *path = NULL;
    enum ek_status st;

    EK_TRY(ek_arg_required(args, "reference", &path));
    EK_TRY(ek_reference_read(path, &r));
    struct ek_session_need need = {.context = (uint32_t)r->n_ids};
    st = ek_arg_u32(args, "prefill-chunk", 1, 1u << 22, &need.chunk);
    if (st == EK_OK)
        st = ek_session_open(args, args->operands[0], &need, &s);
    if (st == EK_OK)
        st = compare(args, &s, path, r);
    ek_session_close(&s);
    ek_reference_free(r);
    return st;
}

const struct ek_command ek_cmd_check = {
    .name = "check",
    .summary = "compare the planned run's logits with reference logits",
    .operands = "MODEL",
    .n_operands = 1,
    .options = options,
    .description =
        "Exit code 0 when they agree, 1 when they do not. With --quantize the error that it makes\n"
        "is shown, and judged only by --tolerance or --kl. The reference holds token ids, so\n"
        "no tokenizer is needed; pictures in it go through the whole way. docs/references.md says\n"
        "how to make one.",
    .run = run,
};
