/* SPDX-License-Identifier: Apache-2.0
 *
 * A quantised checkpoint of one layer: a line of quantization_config, then the safetensors file.
 * What opens is read, whole and by a row.
 */
#define _GNU_SOURCE
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define LINE_MAX_BYTES 4096
#define TENSOR_MAX     (1u << 20)

static char dir[] = "/tmp/fuzz_quant.XXXXXX";
static const char *const names[] = {"config.json", "model.safetensors"};

static void put(const char *name, const void *data, size_t n)
{
    char *path = ek_path_join(dir, name);
    FILE *f = path ? fopen(path, "wb") : NULL;

    if (f == NULL || fwrite(data, 1, n, f) != n)
        abort();
    fclose(f);
    free(path);
}

static void remove_all(void)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++) {
        char *path = ek_path_join(dir, names[i]);
        if (path)
            unlink(path);
        free(path);
    }
    rmdir(dir);
}

static void put_config(const uint8_t *line, size_t n, uint32_t hidden)
{
    char *text = ek_asprintf(
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":%u,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"intermediate_size\":64,"
        "\"vocab_size\":8,\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\","
        "\"quantization_config\":%.*s}",
        hidden, (int)n, (const char *)line);

    if (text == NULL)
        abort();
    put(names[0], text, strlen(text));
    free(text);
}

static void read_tensor(const struct ek_model *m, const struct ek_tensor *t)
{
    uint64_t row = t->bytes / t->shape[0];
    void *all = t->bytes < TENSOR_MAX ? malloc(t->bytes) : NULL;

    if (all && ek_model_read(m, t, 0, t->bytes, all) == EK_OK)
        (void)ek_model_read(m, t, t->bytes - row, row, all);
    free(all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *end = n ? memchr(data, '\n', n < LINE_MAX_BYTES ? n : LINE_MAX_BYTES) : NULL;
    static bool made;
    struct ek_model *m;

    if (end == NULL)
        return 0;
    if (!made && mkdtemp(dir) == NULL)
        abort();
    if (!made)
        atexit(remove_all);
    made = true;
    put(names[1], end + 1, n - (size_t)(end - data) - 1);
    for (uint32_t hidden = 32; hidden <= 64; hidden *= 2) {
        put_config(data, (size_t)(end - data), hidden);
        if (ek_model_open(dir, NULL, &m) != EK_OK)
            continue;
        for (size_t i = 0; i < m->n_modules; i++)
            for (size_t j = 0; j < m->modules[i].n_tensors; j++)
                read_tensor(m, &m->modules[i].tensors[j]);
        ek_model_close(m);
    }
    return 0;
}
