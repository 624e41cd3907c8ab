/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Random instances for the tests: everything from a seed.
 */
#ifndef EK_TESTS_INSTANCES_H
#define EK_TESTS_INSTANCES_H

#include "planner/planner.h"

/* A tiny one with any feature, and a request for it; both are the caller's to free. */
void tiny_instance(uint64_t seed, struct ek_costs **c, struct ek_request *r);
/* Makes the memories that classes share so small that weights and cache just fit, or just do not.
 */
void fill_memories(uint64_t seed, struct ek_costs *c, const struct ek_request *r);
/* layers + 3 chain items on n devices in so many classes, pairwise links when unlike_links; with a
 * vision tower and tensor-parallel degrees when full. */
json_t *large_instance(uint32_t layers, uint32_t devices, uint32_t classes, bool unlike_links,
                       bool full, uint64_t seed);

#endif
