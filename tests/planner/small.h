/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Shared by the planner's suites: a small machine and model, solved.
 */
#ifndef EK_TESTS_PLANNER_SMALL_H
#define EK_TESTS_PLANNER_SMALL_H

#include "planner/planner.h"

/* JSON with ' for ". */
json_t *parse(const char *text);
/* Four layers between embedding and head on two fast and one slow card. */
extern const char small[];
struct ek_costs *small_costs(void);
struct ek_request request_for(const struct ek_costs *c);
/* text with its first `from` replaced by `to`; freed by the caller. */
char *with(const char *text, const char *from, const char *to);
/* Solved, or the test fails. */
struct ek_solution *solve(const struct ek_costs *c, const struct ek_request *r);

#endif
