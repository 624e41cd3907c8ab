/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Placements that were handed in: Hugging Face's device_map, or an earlier plan.
 */
#ifndef EK_PLANNER_DEVICE_MAP_H
#define EK_PLANNER_DEVICE_MAP_H

#include "planner/planner.h"

#define EK_GONE UINT32_MAX /* the device of an assignment that there is no longer */

/* {"model.layers.0": 0, "lm_head": "cpu", ...}, {"device_map": {...}}, or a plan.json. Every module
 * on a known device, or, with gone, on EK_GONE; every key a known module. */
enum ek_status ek_assignment_from_json(const struct ek_problem *p, const json_t *root,
                                       const char *where, bool gone, struct ek_assignment *a);
enum ek_status ek_assignment_read(const struct ek_problem *p, const char *path, bool gone,
                                  struct ek_assignment *a);
/* The first device of each module's stage. */
void ek_assignment_of(const struct ek_problem *p, const struct ek_answer *answer,
                      struct ek_assignment *a);

#endif
