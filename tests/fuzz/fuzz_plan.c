/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/runtime.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_plan *p;

    if (ek_plan_parse((const char *)data, n, "plan", &p) != EK_OK)
        return 0;
    if (p->n_devices == 0 || p->n_devices > EK_MAX_DEVICES || p->n_stages == 0 ||
        p->micro_batches == 0 || p->micro_batches > p->batch || p->prefill_chunk == 0)
        __builtin_trap(); /* what was read must be usable */
    for (size_t i = 0; i < p->n_stages; i++)
        if (p->stages[i].device >= p->n_devices || p->stages[i].n_modules == 0)
            __builtin_trap();
    (void)ek_plan_stage_options(p, NULL);
    ek_plan_free(p);
    return 0;
}
