/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The third opinion: every plan of a tiny instance, priced by formulas written again from
 * docs/planner.md, sharing no code with the planner.
 */
#ifndef EK_TESTS_BRUTE_H
#define EK_TESTS_BRUTE_H

#include "planner/planner.h"

struct brute_values {
    bool feasible;
    double values[EK_N_OBJECTIVES];
    double latency; /* least of all plans that are best in every objective */
    uint64_t plans; /* that were priced */
};
/* Instances have constant times and at most one memory point a signature. */
void brute_solve(const struct ek_costs *c, const struct ek_request *r, struct brute_values *out);
/* Of every plan: slowest stage's prefill of the batch, its decode step, fullest memory. Freed by
 * the caller; returns how many. */
size_t brute_triples(const struct ek_costs *c, const struct ek_request *r, double (**out)[3]);
/* Fewest bytes of modules that leave their device (index in the order of the classes; any other
 * number: gone) in a plan whose first objective is at most allowed; infinite: there is none. */
double brute_nearest(const struct ek_costs *c, const struct ek_request *r, const uint32_t *old,
                     double allowed);

#endif
