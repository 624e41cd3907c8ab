/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A plan for people: stages, memory, predictions, proof.
 */
#include "planner/planner.h"

#include <math.h>
#include <string.h>

/* What a stage holds, in words; returns how many modules. */
static int span_text(const struct ek_problem *p, const struct ek_placement *pl, size_t stage,
                     char *out, size_t cap)
{
    const struct ek_cost_module *m = p->costs->modules;
    const struct ek_placed_stage *s = &pl->stages[stage];
    int count = s->last - s->first + 1;
    size_t n = 0;

    out[0] = '\0';
    for (uint32_t k = 0; k < p->first_item; k++) {
        if (pl->side_stage[k] != stage)
            continue;
        count++;
        if (n < cap)
            n += (size_t)snprintf(out + n, cap - n, "%s%s", n ? ", " : "", m[k].name);
    }
    if (s->first > s->last || n >= cap)
        return count;
    n +=
        (size_t)snprintf(out + n, cap - n, "%s%s", n ? ", " : "", m[p->first_item + s->first].name);
    if (s->first < s->last && n < cap)
        snprintf(out + n, cap - n, " .. %s", m[p->first_item + s->last].name);
    return count;
}

static void device_text(const struct ek_problem *p, const struct ek_placed_stage *s, char *out,
                        size_t cap)
{
    size_t n = 0;

    for (uint32_t i = 0; i < s->n_devices && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i ? "+" : "",
                              ek_pdevice_name(p, s->devices[i]));
}

static void print_stages(const struct ek_problem *p, const struct ek_placement *pl, FILE *out)
{
    struct ek_table *t = ek_table_new(">stage|device|modules|>n|>prefill|>decode step|>hand-off");
    char span[512], device[576], a[EK_UNIT_LEN], b[EK_UNIT_LEN], c[EK_UNIT_LEN];

    for (size_t i = 0; i < pl->n_stages; i++) {
        const struct ek_placed_stage *s = &pl->stages[i];
        int n = span_text(p, pl, i, span, sizeof(span));
        device_text(p, s, device, sizeof(device));
        ek_table_row(t, "%zu|%s|%s|%d|%s|%s|%s", i, device, span, n,
                     ek_format_seconds(a, s->prefill_s), ek_format_seconds(b, s->decode_s),
                     i + 1 < pl->n_stages ? ek_format_seconds(c, s->handoff_s) : "");
    }
    ek_table_print(t, out);
    ek_table_free(t);
}

static void print_memory(const struct ek_problem *p, const struct ek_placement *pl, FILE *out)
{
    struct ek_table *t = ek_table_new(
        "device|>weights|>cache|>activations|>workspace|>comm|>overhead|>total|>margin|>budget|>"
        "used");
    char b[9][EK_UNIT_LEN];

    for (uint32_t d = 0; d < p->n_devices; d++) {
        const struct ek_memory_use *u = &pl->memory[d];
        if (!pl->used[d]) {
            ek_table_row(t, "%s|||||||unused||%s|", ek_pdevice_name(p, d),
                         ek_format_bytes(b[0], p->devices[d].memory));
            continue;
        }
        ek_table_row(t, "%s|%s|%s|%s|%s|%s|%s|%s|%s|%s|%.1f %%", ek_pdevice_name(p, d),
                     ek_format_bytes(b[0], u->weights), ek_format_bytes(b[1], u->kv),
                     ek_format_bytes(b[2], u->activations), ek_format_bytes(b[3], u->workspace),
                     ek_format_bytes(b[4], u->comm), ek_format_bytes(b[5], u->overhead),
                     ek_format_bytes(b[6], u->total), ek_format_bytes(b[7], p->devices[d].margin),
                     ek_format_bytes(b[8], p->devices[d].memory),
                     100.0 * (double)(u->total + p->devices[d].margin) /
                         (double)p->devices[d].memory);
    }
    ek_table_print(t, out);
    ek_table_free(t);
}

const char *ek_objective_text(enum ek_objective o, double v, char buf[EK_UNIT_LEN])
{
    switch (o) {
    case EK_OBJ_BALANCE:
        snprintf(buf, EK_UNIT_LEN, "%.1f %%", v * 100);
        return buf;
    case EK_OBJ_CONTEXT:
    case EK_OBJ_BATCH:
        snprintf(buf, EK_UNIT_LEN, "%.0f", v);
        return buf;
    default:
        return ek_format_seconds(buf, v);
    }
}

/* Of the i-th question: an objective or, behind them, the least latency. */
static const char *proof_text(const struct ek_solution *s, size_t i)
{
    if (s->near)
        return i ? "" : ", near the earlier plan on purpose";
    if (s->proven || s->confirmed > i)
        return ", optimal";
    return s->settled > i ? ", optimal by one method: the other's word is missing"
                          : ", NOT proven optimal";
}

static void print_proof(const struct ek_solution *s, const struct ek_request *r, FILE *out)
{
    char v[EK_UNIT_LEN], b[EK_UNIT_LEN];

    for (size_t i = 0; i < r->n_objectives; i++)
        fprintf(out, "objective %zu   %s %s%s%s\n", i + 1, ek_objective_names[r->objectives[i]],
                ek_objective_text(r->objectives[i], s->values[i], v),
                r->objectives[i] == EK_OBJ_THROUGHPUT ? " a batch" : "", proof_text(s, i));
    if (!s->proven && !s->near && s->settled > 0)
        fprintf(out, "tie-break     latency %s, of plans as good as that%s\n",
                ek_format_seconds(v, s->score.latency), proof_text(s, r->n_objectives));
    if (!s->proven || s->near)
        fprintf(out, "bound         %s %s, gap %.3g %%\n", ek_objective_names[r->objectives[0]],
                ek_objective_text(r->objectives[0], s->bounds[0], b), 100 * ek_solution_gap(s));
    fprintf(out,
            "proof         dynamic program %.3f s (%llu solves, %llu states), GLPK %s %.3f s "
            "(%llu solves); cross-check: %s\n",
            s->dp.seconds, (unsigned long long)s->dp.solves, (unsigned long long)s->dp.labels,
            ek_ilp_version(), s->ilp.seconds, (unsigned long long)s->ilp.solves, s->cross_check);
}

static void print_calibration(const struct ek_problem *p, const struct ek_placement *pl, FILE *out)
{
    for (uint32_t d = 0; d < p->n_devices; d++) {
        const struct ek_calibration *f = &p->costs->classes[p->devices[d].cls].calibration;
        if (pl->used[d] && f->n > 0)
            fprintf(out,
                    "calibrated    %s: prefill x %.3f, decode x %.3f, from %u stages that ran\n",
                    ek_pdevice_name(p, d), f->prefill, f->decode, f->n);
    }
}

static void print_workload(const struct ek_costs *c, const struct ek_problem *p, FILE *out)
{
    const struct ek_workload *w = &p->workload;
    uint32_t groups = p->micro_batches;

    fprintf(out, "%s: batch %u, prompt %u", c->model_name[0] ? c->model_name : c->name, w->batch,
            ek_workload_prompt(w));
    if (w->images > 0)
        fprintf(out, " (%u image%s of %u in it)", w->images, w->images == 1 ? "" : "s",
                w->image_tokens);
    fprintf(out, ", generate %u, context %u; %u micro-batch%s, prefill in chunks of %u\n\n",
            w->generate, w->context, groups, groups == 1 ? "" : "es", w->prefill_chunk);
}

static void print_unused(const struct ek_problem *p, const struct ek_placement *pl, FILE *out)
{
    uint32_t n = 0;

    for (uint32_t d = 0; d < p->n_devices; d++)
        if (!pl->used[d])
            fprintf(out, "%s%s", n++ ? ", " : "unused        ", ek_pdevice_name(p, d));
    if (n > 0)
        fprintf(out, ": no plan that uses %s is better\n", n == 1 ? "it" : "them");
}

void ek_plan_print(const struct ek_costs *c, const struct ek_solution *s,
                   const struct ek_request *r, FILE *out)
{
    const struct ek_problem *p = s->problem;
    struct ek_placement pl;
    char a[EK_UNIT_LEN], b[EK_UNIT_LEN];

    ek_place(p, s->answer.columns, s->answer.n, &pl);
    print_workload(c, p, out);
    print_stages(p, &pl, out);
    fputc('\n', out);
    print_memory(p, &pl, out);
    fprintf(out, "\npredicted     prefill %s", ek_format_seconds(a, pl.prefill_s));
    if (p->workload.generate > 0)
        fprintf(out, ", decode %s a token (%.1f tokens/s)", ek_format_seconds(b, pl.decode_s),
                pl.tokens_per_s);
    fprintf(out, "%s%s%s\n", c->estimate ? "; an ESTIMATE" : "",
            c->estimate && c->source[0] ? ": " : "", c->estimate ? c->source : "");
    print_calibration(p, &pl, out);
    if (p->outside)
        fprintf(out, "              some times lie outside of what was measured: extrapolated\n");
    print_proof(s, r, out);
    if (s->proven && !s->near)
        print_unused(p, &pl, out);
}
