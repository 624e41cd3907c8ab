/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to the integer program: what shared memories alone rule out.
 */
#ifndef EK_PLANNER_ILP_MEMORY_H
#define EK_PLANNER_ILP_MEMORY_H

#include "planner/planner.h"

struct ek_prefill_range { /* of the longest prefill */
    double low, high;
    bool none;
};
/* Where plans within the limits can be, if anywhere. */
enum ek_status ek_ilp_memory(const struct ek_problem *p, const struct ek_limits *l,
                             const uint8_t *deny, struct ek_effort *e,
                             struct ek_prefill_range *out);

#endif
