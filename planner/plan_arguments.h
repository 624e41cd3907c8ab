/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to evenkeel-plan: what the command line of plan says.
 */
#ifndef EK_PLANNER_PLAN_ARGUMENTS_H
#define EK_PLANNER_PLAN_ARGUMENTS_H

#include "planner/planner.h"

struct ek_plan_arguments {
    struct ek_request request; /* freed with ek_request_free */
    struct ek_workload given;  /* fields that the command line set; 0 elsewhere */
    bool given_generate, given_prompt;
    const char *model, *db, *costs, *devices, *output, *write_costs, *act, *hardware, *cards, *from,
        *near;
    double within;
    bool force, json, done, explain, pareto, calibrated, cut_tower;
    bool no_tp; /* --for an engine without tensor parallelism */
    uint32_t alternatives, quantize;
};
/* Reads argv; texts are borrowed from it. done: --help or --version was answered. */
enum ek_status ek_plan_arguments_read(struct ek_plan_arguments *a, int argc, char **argv);
/* What the command line did not say of the workload comes from the costs. */
void ek_plan_arguments_merge(struct ek_plan_arguments *a, const struct ek_costs *c);
/* --from: costs a given placement, and writes it as a plan where it fits. */
enum ek_status ek_plan_given(const struct ek_plan_arguments *a, const struct ek_costs *c,
                             int *code);

#endif
