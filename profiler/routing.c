/* SPDX-License-Identifier: Apache-2.0
 *
 * Routing of the tokens that mixtures of experts are measured with. What a router makes of random
 * hidden states says nothing of real ones, and how many experts a step reaches is most of its time:
 * so the rig's tokens go where tokens go that choose evenly and independently, which is what
 * routers are trained for.
 */
#include "profiler/measure.h"

#include <math.h>

static bool among(const int32_t *ids, uint32_t n, int32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

void routing_draw(uint32_t n_experts, uint32_t top_k, uint32_t tokens, uint64_t *seed, int32_t *ids)
{
    for (uint32_t t = 0; t < tokens; t++, ids += top_k)
        for (uint32_t k = 0; k < top_k; k++)
            do
                ids[k] = (int32_t)(ek_random_u64(seed) % n_experts);
            while (among(ids, k, ids[k]));
}

double routing_reached(uint32_t n_experts, uint32_t top_k, uint64_t tokens)
{
    return n_experts * (1 - pow(1 - (double)top_k / n_experts, (double)tokens));
}
