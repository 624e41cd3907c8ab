/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A cluster file beside one costs file, "costs.json", and the replicas chosen for what is accepted.
 */
#define _GNU_SOURCE
#include "planner/cluster.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char dir[] = "/tmp/fuzz_cluster.XXXXXX";
static char *costs_path, *cluster_path;

static const char costs[] =
    "{\"format\":\"evenkeel-costs\",\"version\":1,"
    "\"workload\":{\"batch\":2,\"prompt\":8,\"generate\":8},"
    "\"classes\":[{\"name\":\"gpu\",\"count\":4,\"memory\":1000}],"
    "\"modules\":[{\"name\":\"model.layers.0\",\"weights\":700},"
    "{\"name\":\"model.layers.1\",\"weights\":700}],"
    "\"times\":[{\"class\":\"gpu\",\"signature\":\"model.layers.0\",\"prefill\":1,\"decode\":1},"
    "{\"class\":\"gpu\",\"signature\":\"model.layers.1\",\"prefill\":1,\"decode\":1}]}";

static void put(const char *path, const void *data, size_t n)
{
    FILE *f = path ? fopen(path, "wb") : NULL;

    if (f == NULL || fwrite(data, 1, n, f) != n)
        abort();
    fclose(f);
}

static void remove_all(void)
{
    unlink(costs_path);
    unlink(cluster_path);
    rmdir(dir);
    free(costs_path);
    free(cluster_path);
}

static void begin(void)
{
    if (costs_path)
        return;
    if (mkdtemp(dir) == NULL)
        abort();
    costs_path = ek_path_join(dir, "costs.json");
    cluster_path = ek_path_join(dir, "cluster.json");
    put(costs_path, costs, strlen(costs));
    atexit(remove_all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_request r = EK_REQUEST_INIT;
    struct ek_cluster *c;

    begin();
    put(cluster_path, data, n);
    if (ek_cluster_read(cluster_path, &c) != EK_OK)
        return 0;
    r.time_limit = 2;
    if (c->n_classes <= 3 && ek_cluster_plan(c, &r, 10) == EK_OK)
        for (size_t i = 0; i < c->n_classes; i++)
            if (c->nodes[i] > c->classes[i].count)
                __builtin_trap(); /* more nodes than there are */
    ek_cluster_free(c);
    return 0;
}
