/* SPDX-License-Identifier: Apache-2.0
 *
 * Routing of the tokens that mixtures of experts are measured with. What a router makes of random
 * hidden states says nothing of real ones, and how many experts a step reaches is most of its time:
 * so the rig's tokens go where tokens go that choose evenly, which is what routers are trained for.
 */
#include "profiler/measure.h"

#include <math.h>
#include <stdlib.h>

struct deck { /* experts in random order: those that were reached already come first */
    int32_t *ids;
    uint32_t n, reached;
    uint64_t seed;
};

static void swap(int32_t *a, int32_t *b)
{
    int32_t t = *a;

    *a = *b;
    *b = t;
}

/* k different ones of ids[0, n), moved to its end. */
static void draw(struct deck *d, int32_t *ids, uint32_t n, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        swap(&ids[ek_random_u64(&d->seed) % (n - i)], &ids[n - i - 1]);
}

/* A token's experts: `fresh` that no token before it had, the others of those that some had. */
static void deal(struct deck *d, uint32_t top_k, uint32_t fresh, int32_t *out)
{
    uint32_t known = top_k - fresh;

    draw(d, d->ids, d->reached, known);
    for (uint32_t i = 0; i < known; i++)
        out[i] = d->ids[d->reached - 1 - i];
    for (uint32_t i = 0; i < fresh; i++) {
        swap(&d->ids[d->reached],
             &d->ids[d->reached + ek_random_u64(&d->seed) % (d->n - d->reached)]);
        out[known + i] = d->ids[d->reached++];
    }
}

/* Of n experts, by t tokens with top_k each. */
static uint32_t expected(uint32_t n, uint32_t top_k, uint32_t t)
{
    return (uint32_t)lround(n * (1 - pow(1 - (double)top_k / n, t)));
}

enum ek_status routing_even(uint32_t n_experts, uint32_t top_k, uint32_t tokens, int32_t **out)
{
    int32_t *ids = ek_calloc(tokens, top_k * sizeof(*ids));
    struct deck d = {.ids = ek_calloc(n_experts, sizeof(*d.ids)), .n = n_experts, .seed = 5};
    enum ek_status st = ids && d.ids ? EK_OK : EK_ENOMEM;

    for (uint32_t e = 0; st == EK_OK && e < n_experts; e++)
        d.ids[e] = (int32_t)e;
    for (uint32_t t = 0; st == EK_OK && t < tokens; t++) {
        uint32_t fresh = expected(n_experts, top_k, t + 1) - d.reached;
        deal(&d, top_k, fresh < top_k ? fresh : top_k, ids + (size_t)t * top_k);
    }
    free(d.ids);
    if (st == EK_OK)
        *out = ids;
    else
        free(ids);
    return st;
}

uint32_t routing_reached(const int32_t *ids, uint32_t n_experts, uint32_t top_k, uint32_t tokens)
{
    uint32_t reached = 0;

    for (uint32_t e = 0; e < n_experts; e++)
        for (size_t i = 0; i < (size_t)tokens * top_k; i++)
            if (ids[i] == (int32_t)e) {
                reached++;
                break;
            }
    return reached;
}
