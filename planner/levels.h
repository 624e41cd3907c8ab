/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to solving: one objective at a time, by questions to an oracle.
 */
#ifndef EK_PLANNER_LEVELS_H
#define EK_PLANNER_LEVELS_H

#include "planner/planner.h"

struct ek_search_state { /* what earlier objectives have settled */
    const struct ek_problem *p;
    ek_oracle_fn oracle;
    struct ek_effort *effort;
    const uint8_t *deny;
    struct ek_limits limits; /* of columns and hops; sum is unused */
    double latency;          /* most that a group's latency may be */
    double floor;            /* of the throughput: no plan is under it */
};
struct ek_found {
    enum ek_answer_kind kind; /* OPTIMAL: found; INFEASIBLE; UNKNOWN: the oracle gave up */
    struct ek_answer answer;
    double value;
    double bound; /* proven: no plan's value is less; -INFINITY: nothing is known */
};
/* Least latency (sum + fill of the prefill pipeline) within the limits and at most cutoff; stops
 * early when it is at most enough. */
enum ek_status ek_least_latency(const struct ek_search_state *s, double cutoff, double enough,
                                struct ek_found *out);
/* Settles one objective: finds its best value and tightens the limits to it. */
enum ek_status ek_level_solve(struct ek_search_state *s, enum ek_objective o, struct ek_found *out);
/* Can the objective be under value (by more than rounding) within the limits of before it was
 * settled? INFEASIBLE proves that it cannot. */
enum ek_status ek_level_below(const struct ek_search_state *before, enum ek_objective o,
                              double value, struct ek_found *out);
/* Tightens the limits to a value of the objective. */
void ek_level_settle(struct ek_search_state *s, enum ek_objective o, double value);
/* What no plan can be under in an objective that is minimised: every stage that holds an item pays
 * its share of the cheapest stage that could, and devices share the sum evenly. Weak, and sure. */
double ek_level_floor(const struct ek_problem *p, enum ek_objective o);
double ek_score_value(enum ek_objective o, const struct ek_score *s); /* 0: not of a plan alone */
/* An assignment as columns of the problem: false where it is no plan of it (a device visited twice,
 * a module or a shared memory that does not fit, a rule against it, no times or links). */
bool ek_plan_of(const struct ek_problem *p, const struct ek_assignment *a, struct ek_answer *out);
double ek_widen(double v); /* room for rounding above a limit */

#endif
