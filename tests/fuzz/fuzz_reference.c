/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/memfile.h"

#include "runtime/runtime.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_reference *r;
    struct memfile f;

    if (memfile_open(&f, data, n) != 0)
        return 0;
    if (ek_reference_read(f.path, &r) == EK_OK) {
        if (r->n_ids == 0 || r->n_rows == 0 || (r->logits == NULL) == (r->topk_ids == NULL))
            __builtin_trap(); /* what was read must be whole */
        for (size_t i = 0; i < r->n_rows; i++)
            if (r->positions[i] < 0 || (uint64_t)r->positions[i] >= r->n_ids)
                __builtin_trap();
        ek_reference_free(r);
    }
    memfile_close(&f);
    return 0;
}
