/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * GLPK aborts the process on an internal error: here the error becomes a status.
 */
#ifndef EK_PLANNER_GLPK_GUARD_H
#define EK_PLANNER_GLPK_GUARD_H

#include "base/base.h"

/* work(data) may call GLPK, silently. All that it allocates beside GLPK's objects must be reached
 * from data: an error leaves it by a long jump. GLPK's environment, with every object in it, is
 * gone afterwards. EK_ENOMEM for such an error, else work's status. */
enum ek_status ek_glpk_guarded(enum ek_status (*work)(void *data), void *data);

#endif
