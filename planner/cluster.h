/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Clusters of many nodes: each class of node is planned once for replicas on 1, 2, 4, ... and all
 * of its devices, then an integer program chooses how many replicas of which plan stand on how many
 * nodes.
 */
#ifndef EK_PLANNER_CLUSTER_H
#define EK_PLANNER_CLUSTER_H

#include "planner/planner.h"

#define EK_CLUSTER_CLASSES 32
#define EK_CLUSTER_OPTIONS 8 /* replica sizes of a class of node */

struct ek_node_class {
    char name[EK_PLAN_NAME];
    uint32_t count;         /* nodes there are */
    double price;           /* of one node, in any unit */
    struct ek_costs *costs; /* owned */
};
struct ek_replica { /* one way to run a replica on a class of node */
    uint32_t cls, devices;
    double tokens_per_s;
    uint32_t chosen; /* replicas */
};
struct ek_cluster {
    struct ek_node_class classes[EK_CLUSTER_CLASSES];
    size_t n_classes;
    struct ek_replica replicas[EK_CLUSTER_CLASSES * EK_CLUSTER_OPTIONS];
    size_t n_replicas;
    uint32_t nodes[EK_CLUSTER_CLASSES]; /* used */
    double tokens_per_s, price;
    bool proven;
};
/* A cluster file; costs files it names are read beside it. Freed with ek_cluster_free. */
enum ek_status ek_cluster_read(const char *path, struct ek_cluster **out);
void ek_cluster_free(struct ek_cluster *c);
/* The cheapest nodes that give at least load tokens a second; load 0: the most that all give.
 * EK_NO: all nodes together give less. */
enum ek_status ek_cluster_plan(struct ek_cluster *c, const struct ek_request *r, double load);

#endif
