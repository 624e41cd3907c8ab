/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/session.h"

#include <stdlib.h>

static const struct ek_option options[] = {
    {"plan", "FILE", "run under this plan (default: everything on one device)"},
    {"devices", "DEVICE", "the device when there is no plan"},
    {"reference", "FILE", "reference.safetensors: ids in, logits out"},
    {"tolerance", "F", "largest |difference| as a share of the largest |logit| (F32: 1e-4)"},
    {"kl", "F", "largest mean KL divergence (BF16, F16: 1e-3, or the official BF16 run's own)"},
    {NULL, NULL, NULL},
};

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

static void print_comparison(const struct ek_comparison *c, bool ok)
{
    printf(
        "%s: %zu rows, max |difference| %.3g of max |logit| %.4g (%.2e), mean KL %.2e, best token "
        "equal in %zu of %zu (%zu of %zu where the margin decides)\n",
        ok ? "equal" : "DIFFERENT", c->rows, c->max_abs, c->max_logit,
        c->max_logit > 0 ? c->max_abs / c->max_logit : 0.0, c->mean_kl, c->top1_equal, c->rows,
        c->top1_decided_equal, c->top1_decided);
}

static enum ek_status compare(const struct ek_args *args, struct ek_session *s,
                              const struct ek_reference *r)
{
    struct ek_tolerance tolerance = ek_tolerance_for(s->plan->act, r);
    struct ek_comparison c = {0};
    enum ek_status st;

    if (ek_arg(args, "tolerance") || ek_arg(args, "kl"))
        tolerance = (struct ek_tolerance){0};
    EK_TRY(ek_arg_double(args, "tolerance", 0, 1, &tolerance.relative));
    EK_TRY(ek_arg_double(args, "kl", 0, 100, &tolerance.mean_kl));
    EK_TRY(ek_compare(s->engine, r, &c));
    st = ek_comparison_judge(&c, &tolerance);
    if (st != EK_OK && st != EK_NO)
        return st;
    if (ek_arg_flag(args, "json"))
        EK_TRY(ek_print_json(comparison_json(&c, st == EK_OK)));
    else
        print_comparison(&c, st == EK_OK);
    return st;
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
    st = ek_session_open(args, args->operands[0], &need, &s);
    if (st == EK_OK)
        st = compare(args, &s, r);
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
        "Exit code 0 when they agree, 1 when they do not. The reference holds token ids, so\n"
        "no tokenizer is needed. docs/references.md says how to make one.",
    .run = run,
};
