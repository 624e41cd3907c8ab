/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A costs file, and where it is accepted and small, a plan made from it.
 */
#include "planner/planner.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static bool small(const struct ek_costs *c)
{
    return ek_costs_devices(c) <= 6 && c->n_modules <= 12 && c->workload.batch <= 64;
}

static void plan(const struct ek_costs *c)
{
    struct ek_request r = EK_REQUEST_INIT;
    struct ek_solution *s = NULL;

    r.workload = c->workload;
    r.time_limit = 2;
    if (r.workload.micro_batches == 0)
        r.workload.micro_batches = 1;
    if (ek_solve(c, &r, &s) == EK_OK) {
        json_decref(ek_plan_json(c, &r, s));
        json_decref(ek_explanation_json(s));
    }
    ek_solution_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_costs *c = NULL;
    json_t *root;

    if (ek_json_parse((const char *)data, n, "fuzz", &root) != EK_OK)
        return 0;
    if (ek_costs_from_json(root, "fuzz", &c) == EK_OK) {
        json_decref(ek_costs_json(c));
        if (small(c))
            plan(c);
    }
    ek_costs_free(c);
    json_decref(root);
    return 0;
}
