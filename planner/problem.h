/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to problem.c and memory.c: the costs of modules evaluated for one workload.
 */
#ifndef EK_PLANNER_PROBLEM_H
#define EK_PLANNER_PROBLEM_H

#include "planner/planner.h"

#define EK_N_TP 4 /* degrees 1, 2, 4, 8 */

struct ek_modcost {
    bool known, outside;
    double prefill, decode; /* of one group: all its prompts, one step */
    double prefill_mad, decode_mad;
    uint32_t samples; /* 0: unknown */
    struct ek_cost_space space;
    uint64_t weights, kv_block; /* measured on the class; 0: the module's own figures */
};
/* A module's, and (index n_modules) the stage's own overhead. */
const struct ek_modcost *ek_modcost_of(const struct ek_problem *p, uint32_t cls, uint32_t tp,
                                       uint32_t module);
const struct ek_modcost *ek_stage_cost(const struct ek_problem *p, uint32_t cls, uint32_t tp);
/* So of one that ends the chain and has no layer; NULL: not known. */
const struct ek_modcost *ek_ending_cost(const struct ek_problem *p, uint32_t cls, uint32_t tp);
/* Of a signature below EK_N_STAGE_SIGS. */
const struct ek_cost_space *ek_stage_space(const struct ek_problem *p, uint32_t cls, uint32_t tp,
                                           uint32_t sig);

struct ek_cost_space ek_space_at(const struct ek_cost_memory *m, uint32_t tokens, uint32_t batch,
                                 uint32_t context);
/* The same of a module that sees: scratch by a picture's tokens, buffers by the context that
 * pictures may fill. */
struct ek_cost_space ek_picture_space_at(const struct ek_cost_memory *m, uint32_t tokens,
                                         uint32_t context);
enum ek_prefill_pass { EK_EVERY_CHUNK, EK_LAST_CHUNK /* of a prompt */, EK_PICTURES };
double ek_prefill_seconds(const struct ek_problem *p, const struct ek_cost_curve *c,
                          enum ek_prefill_pass pass, bool *outside);
/* Others at work beside a stage, on average while it works: of `stages` like ones that so many jobs
 * pass through in order. */
double ek_stages_beside(uint32_t stages, double jobs);
/* Others that the first of the jobs meets at each stage, so that latencies add up: it has the empty
 * pipeline before it. */
double ek_stages_passed(uint32_t stages, double jobs);
/* What kinds take for the whole chain, once modules have their costs. */
void ek_price_chain(struct ek_problem *p);
double ek_decode_seconds(const struct ek_problem *p, const struct ek_cost_curve *c, bool *outside);

/* Memory of a stage, module by module. */
void ek_use_begin(const struct ek_problem *p, uint32_t kind, struct ek_memory_use *u);
void ek_use_add(const struct ek_problem *p, uint32_t kind, uint32_t module, bool tied_here,
                struct ek_memory_use *u);
void ek_use_end(const struct ek_problem *p, uint32_t kind, struct ek_memory_use *u);
/* Another stage on the same device: its overhead counts once, an operation's workspace is the
 * device's, all else is its own. */
void ek_use_join(struct ek_memory_use *u, const struct ek_memory_use *other);
/* Side modules are one stage with the chain's first items, and one of their own before any other.
 */
bool ek_sides_apart(int32_t first, int32_t last, uint32_t sides);
/* Buffers of hand-overs before and behind the chain's items first .. last, cuts of the tower
 * included: before ek_use_end. */
void ek_use_cross(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                  struct ek_memory_use *u);
/* Whether the module shares the weights of one of the chain's items first .. last. */
bool ek_tied_within(const struct ek_problem *p, uint32_t module, int32_t first, int32_t last);

/* Devices, budgets, rules and groups (groups.c). */
enum ek_status ek_problem_devices(struct ek_problem *p, const struct ek_request *r);
/* May all modules of a stage stand on that kind's group? */
bool ek_rules_allow(const struct ek_problem *p, uint32_t kind, int32_t first, int32_t last,
                    uint32_t sides);

#endif
