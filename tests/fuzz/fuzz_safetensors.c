/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/memfile.h"

#include "model/model.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_safetensors *s;
    struct memfile f;

    if (memfile_open(&f, data, n) != 0)
        return 0;
    if (ek_safetensors_open(f.path, &s) == EK_OK) {
        for (size_t i = 0; i < ek_safetensors_count(s); i++) {
            const struct ek_safetensors_entry *e = ek_safetensors_at(s, i);
            void *dst = malloc(e->bytes + 1);
            if (ek_safetensors_find(s, e->name) != e ||
                (dst && ek_safetensors_read(s, e, 0, e->bytes, dst) != EK_OK))
                __builtin_trap(); /* what opened must be whole */
            free(dst);
        }
        (void)ek_safetensors_meta(s, "format");
        ek_safetensors_close(s);
    }
    memfile_close(&f);
    return 0;
}
