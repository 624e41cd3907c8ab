/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to the dynamic program: what is known of memories that devices share before a search.
 * Bytes used of one tell states apart only while what its devices that are left could still hold
 * would fill it; and a state is of no use where what is left of the chain fits in no way into what
 * is left of the memories, even were the devices of each alike.
 */
#ifndef EK_PLANNER_SHARED_H
#define EK_PLANNER_SHARED_H

#include "planner/bound.h"

struct ek_shared_bytes {
    uint64_t of[EK_PLAN_MAX_POOLS];
};
struct ek_shared {
    const struct ek_bound *b;
    uint32_t devices[EK_PLAN_MAX_POOLS + 1]; /* of each memory; behind them, of none */
    uint64_t *most[EK_PLAN_MAX_POOLS]; /* [n_items + 1][devices + 1] that columns from a position on
                                          hold, by how many of its devices are left */
    uint32_t like[EK_PLAN_MAX_POOLS + 1]; /* the first memory that is as good as this one, ... */
    uint64_t room[EK_PLAN_MAX_POOLS];     /* ... and of such the bytes of the largest */
    uint32_t max_needs;
    uint32_t stride[EK_PLAN_MAX_POOLS + 1], n_left; /* devices left of all, in mixed radix */
    struct ek_shared_bytes
        *needs;        /* what is enough for the rest of the chain, none less than ... */
    uint32_t *n_needs; /* another: [n_items + 1][n_left]; 0: it fits in no way */
    size_t (*least)[EK_PLAN_MAX_POOLS + 1]; /* while needs are made */
};
/* Borrows b. The second makes what ek_shared_settle goes by, unless time is up meanwhile;
 * without it everything fits. */
enum ek_status ek_shared_new(const struct ek_bound *b, struct ek_shared *s);
enum ek_status ek_shared_need(struct ek_shared *s, struct ek_effort *e);
void ek_shared_free(struct ek_shared *s);
/* left: devices of each memory, and of none, that a state has left. Forgets bytes that no longer
 * tell it apart. False: what is behind pos does not fit. */
bool ek_shared_settle(const struct ek_shared *s, uint32_t pos, const uint32_t *left,
                      struct ek_shared_bytes *used);

#endif
