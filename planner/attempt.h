/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to solving: one choice (micro-batches, chunk, degree) as it is tried, and what certifies
 * the best of them.
 */
#ifndef EK_PLANNER_ATTEMPT_H
#define EK_PLANNER_ATTEMPT_H

#include "planner/levels.h"

#define EK_MAX_CONTEXT ((uint32_t)1 << 24)
#define EK_MAX_BATCH   ((uint32_t)1 << 16)

struct ek_attempt { /* one choice */
    struct ek_choice choice;
    size_t turn; /* its place among the choices */
    struct ek_request request;
    struct ek_problem *problem;
    struct ek_search_state state;
    struct ek_search_state before[EK_N_OBJECTIVES]; /* limits before each objective was settled */
    struct ek_found found;
    double values[EK_N_OBJECTIVES], bound; /* of the first objective */
    uint32_t least; /* smaller sizes are of no interest: another choice has a plan of this one */
    size_t settled; /* questions answered: ek_solution.settled */
    bool feasible, unknown;
};

bool ek_is_searched(enum ek_objective o); /* a size: context or batch */
void ek_set_size(struct ek_request *r, enum ek_objective o, uint32_t v);
/* That is worth asking for: a group of sequences has one at least. */
uint32_t ek_least_size(const struct ek_workload *w, enum ek_objective o, uint32_t micro_batches);
/* least: of a size that is sought the least; else that of the request. */
enum ek_status ek_attempt_new(const struct ek_costs *c, const struct ek_request *r,
                              const struct ek_choice *choice, bool least, ek_oracle_fn oracle,
                              struct ek_effort *e, struct ek_attempt *a);
/* Is there a plan at size v within the limits? *made: its problem, or NULL. */
enum ek_status ek_try_size(const struct ek_costs *c, const struct ek_attempt *a,
                           enum ek_objective o, uint32_t v, ek_oracle_fn oracle,
                           struct ek_problem **made, struct ek_found *f);

/* The integer program must find that nothing is better than the best, of this choice or another,
 * and the same least latency: how far it came is s->confirmed. Where it finds otherwise there is no
 * plan (EK_EENV). */
enum ek_status ek_certify(const struct ek_costs *c, const struct ek_request *r,
                          struct ek_attempt *best, struct ek_solution *s);
/* Nothing fits, whatever is chosen: it must say so too. */
enum ek_status ek_certify_infeasible(const struct ek_costs *c, const struct ek_request *r,
                                     struct ek_solution *s);

#endif
