/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * GLPK aborts the process on an internal error: here the error becomes a status. And what its
 * callbacks of both integer programs do.
 */
#ifndef EK_PLANNER_GLPK_GUARD_H
#define EK_PLANNER_GLPK_GUARD_H

#include "base/base.h"

#include <glpk.h>

/* work(data) may call GLPK, silently. All that it allocates beside GLPK's objects must be reached
 * from data: an error leaves it by a long jump. GLPK's environment, with every object in it, is
 * gone afterwards. EK_ENOMEM for such an error, else work's status. */
enum ek_status ek_glpk_guarded(enum ek_status (*work)(void *data), void *data);

/* Milliseconds until a deadline of ek_now_ns (0: none), one at least: a tm_lim. */
int ek_glpk_time_left(uint64_t deadline_ns);
/* GLPK takes no cutoff, but an incumbent from a heuristic, without asking whether it is feasible:
 * one whose only cost is the cutoff prunes everything above. variable: without rows, fixed at 0, of
 * that cost. Where it stays, there is no plan. */
void ek_glpk_offer_cutoff(glp_tree *tree, int variable);
/* Of n variables from one on, which is furthest from a whole number and can be branched upon; 0:
 * all are whole. */
int ek_glpk_most_fractional(glp_tree *tree, int from, int n);

#endif
