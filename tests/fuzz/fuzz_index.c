/* SPDX-License-Identifier: Apache-2.0
 *
 * model.safetensors.index.json beside two whole shards, "a" (tensor x) and "b" (tensors y, z).
 */
#define _GNU_SOURCE
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char dir[] = "/tmp/fuzz_index.XXXXXX";

static void put(const char *name, const void *data, size_t n)
{
    char *path = ek_path_join(dir, name);
    FILE *f = path ? fopen(path, "wb") : NULL;

    if (f == NULL || fwrite(data, 1, n, f) != n)
        abort();
    fclose(f);
    free(path);
}

static void put_shard(const char *name, const char *const *tensors, size_t n)
{
    struct ek_safetensors_entry entries[2] = {0};
    const void *bytes[2] = {"", ""};
    char *path = ek_path_join(dir, name);

    for (size_t i = 0; i < n; i++)
        entries[i] = (struct ek_safetensors_entry){
            .name = tensors[i], .dtype = EK_U8, .n_dims = 1, .shape = {1}, .bytes = 1};
    if (path == NULL || ek_safetensors_write(path, entries, bytes, n, NULL, true) != EK_OK)
        abort();
    free(path);
}

static void remove_all(void)
{
    static const char *const names[] = {"a", "b", "model.safetensors.index.json"};

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++) {
        char *path = ek_path_join(dir, names[i]);
        if (path)
            unlink(path);
        free(path);
    }
    rmdir(dir);
}

static void make_directory(void)
{
    if (mkdtemp(dir) == NULL)
        abort();
    atexit(remove_all);
    put_shard("a", (const char *const[]){"x"}, 1);
    put_shard("b", (const char *const[]){"y", "z"}, 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static bool made;
    struct ek_model_files f = {0};
    int32_t shard = -1;

    if (!made)
        make_directory();
    made = true;
    put("model.safetensors.index.json", data, n);
    if (ek_shards_open(&f, dir) == EK_OK && f.n_shards == 2 &&
        (ek_shards_find(&f, "x", &shard) == NULL || ek_shards_find(&f, "z", &shard) == NULL))
        abort(); /* every tensor of an opened shard is where the map says */
    ek_shards_close(&f);
    return 0;
}
