/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to the integer program: leaving out columns that no plan within the cutoff can hold.
 */
#ifndef EK_PLANNER_REDUCE_H
#define EK_PLANNER_REDUCE_H

#include "planner/planner.h"

/* drop: one byte a column, set where it can be left out (may be deny itself). prices: of each
 * group's devices, of a stage where their number is limited, of the shared memories. l->sum is the
 * cutoff of the sum alone, filled of the sum with its fill. *least: no plan's sum is less. */
enum ek_status ek_reduce(const struct ek_problem *p, const struct ek_limits *l, double filled,
                         const uint8_t *deny, const double *prices, uint8_t *drop, double *least);

#endif
