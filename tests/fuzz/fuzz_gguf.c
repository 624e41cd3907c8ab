/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/memfile.h"

#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void touch_tensors(const struct ek_gguf *g)
{
    for (size_t i = 0; i < ek_gguf_n_tensors(g); i++) {
        const struct ek_gguf_tensor *t = ek_gguf_tensor_at(g, i);
        void *dst = malloc(t->bytes + 1);
        if (ek_gguf_tensor_find(g, t->name) != t ||
            (dst && ek_gguf_read(g, t->offset, t->bytes, dst) != EK_OK))
            __builtin_trap(); /* what opened must be whole */
        free(dst);
    }
}

static void touch_array(const struct ek_gguf *g, const char *key)
{
    enum ek_gguf_type type;
    const char *s;
    size_t n, length;
    int64_t v;

    if (ek_gguf_array(g, key, &type, &n) != EK_OK)
        return;
    for (size_t i = 0; i <= n; i++) {
        if (ek_gguf_array_string(g, key, i, &s, &length) == EK_OK && s[length] != '\0')
            __builtin_trap();
        (void)ek_gguf_array_i64(g, key, i, &v);
    }
}

/* The file as a model, which a name that ends in .gguf makes it; every tensor is read whole. */
static void touch_model(const char *path)
{
    struct ek_model *m = NULL;
    char name[64];

    snprintf(name, sizeof(name), "/tmp/fuzz-gguf-%d.gguf", (int)getpid());
    unlink(name);
    if (symlink(path, name) != 0)
        return;
    if (ek_model_open(name, NULL, &m) == EK_OK)
        for (size_t i = 0; i < m->n_modules; i++)
            for (size_t j = 0; j < m->modules[i].n_tensors; j++) {
                const struct ek_tensor *t = &m->modules[i].tensors[j];
                void *dst = malloc(t->bytes + 1);
                if (dst && ek_model_read(m, t, 0, t->bytes, dst) != EK_OK)
                    __builtin_trap();
                free(dst);
            }
    ek_model_close(m);
    unlink(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const struct ek_family *family;
    struct ek_arena arena = {0};
    struct ek_config config;
    struct ek_gguf *g;
    struct memfile f;

    if (memfile_open(&f, data, n) != 0)
        return 0;
    if (ek_gguf_open(f.path, &g) == EK_OK) {
        touch_tensors(g);
        touch_array(g, "tokenizer.ggml.tokens");
        touch_array(g, "tokenizer.ggml.token_type");
        (void)ek_config_from_gguf(g, &arena, &config, &family);
        ek_gguf_close(g);
        ek_arena_free(&arena);
        touch_model(f.path);
    }
    memfile_close(&f);
    return 0;
}
