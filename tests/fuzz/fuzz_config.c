/* SPDX-License-Identifier: Apache-2.0
 *
 * config.json and, where it is accepted and small, the modules made from it.
 */
#include "tests/fuzz/memfile.h"

#include "model/internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define TENSORS_MAX 4096u

static void build(struct ek_config *config, const struct ek_family *family)
{
    struct ek_model_files files = {.seed = 1, .synthetic = true};
    char path[] = "fuzz";
    struct ek_model m = {.path = path, .config = *config, .files = &files};
    char bytes[64];

    if (ek_modules_build(&m, &family->spellings[0]) == EK_OK && ek_modules_sum(&m) == EK_OK &&
        ek_model_identify(&m) == EK_OK) {
        for (size_t i = 0; i < m.n_modules; i++) {
            const struct ek_tensor *t = &m.modules[i].tensors[0];
            (void)ek_model_read(&m, t, 0, t->bytes < sizeof(bytes) ? t->bytes : sizeof(bytes),
                                bytes);
        }
        json_decref(ek_model_json(&m));
    }
    free(m.modules);
    ek_arena_free(&files.arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const struct ek_family *family;
    struct ek_config config;
    float frequencies[4096], amplitude, scale;
    json_t *root;

    if (ek_json_parse((const char *)data, n, "fuzz", &root) != EK_OK)
        return 0;
    if (ek_config_parse(root, "fuzz", &config, &family) == EK_OK) {
        if (config.head_dim <= 8192 && config.qk_rope <= 8192)
            ek_config_rope(&config, frequencies, &amplitude, &scale);
        if ((config.n_experts + 16) * config.n_layers < TENSORS_MAX)
            build(&config, family);
    }
    json_decref(root);
    return 0;
}
