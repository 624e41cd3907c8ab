/* SPDX-License-Identifier: Apache-2.0
 *
 * The safetensors files of a checkpoint directory: model.safetensors, or the shards that
 * model.safetensors.index.json names.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

#define INDEX_MAX  ((size_t)256 << 20)
#define SHARDS_MAX 4096

static const json_t *weight_map(const struct ek_model_files *f)
{
    return json_object_get(f->index, "weight_map");
}

/* A shard is a plain file name: nothing outside the directory is ever opened. */
static enum ek_status check_shard_name(const char *index, const char *tensor, const json_t *v)
{
    const char *name = json_string_value(v);

    if (name == NULL)
        return ek_error(EK_EFORMAT, "%s: weight_map of '%.128s' is no string", index, tensor);
    if (*name == '\0' || strchr(name, '/') || strstr(name, "..") || strlen(name) > 255)
        return ek_error(EK_EFORMAT, "%s: weight_map of '%.128s' names '%.128s', not a plain file",
                        index, tensor, name);
    return EK_OK;
}

static ptrdiff_t find_shard(const struct ek_model_files *f, const char *name)
{
    for (size_t i = f->n_shards; i-- > 0;)
        if (strcmp(f->shard_names[i], name) == 0)
            return (ptrdiff_t)i;
    return -1;
}

/* Adds and opens one file. */
static enum ek_status open_shard(struct ek_model_files *f, const char *dir, const char *name)
{
    char *path = ek_path_join(dir, name);
    struct ek_safetensors *s;
    enum ek_status st = path ? ek_safetensors_open(path, &s) : EK_ENOMEM;

    free(path);
    if (st != EK_OK)
        return st;
    f->shards[f->n_shards] = s;
    if ((f->shard_names[f->n_shards++] = ek_strdup(name)) == NULL)
        return EK_ENOMEM;
    return EK_OK;
}

/* A file that the index names; one that is not there is the index's fault. */
static enum ek_status open_named(struct ek_model_files *f, const char *dir, const char *index,
                                 const char *tensor, const char *name)
{
    char *path = ek_path_join(dir, name);
    bool there;

    if (path == NULL)
        return EK_ENOMEM;
    there = ek_file_exists(path);
    free(path);
    if (!there)
        return ek_error(EK_EFORMAT, "%s: weight_map of '%.128s' names '%s', which is missing",
                        index, tensor, name);
    return open_shard(f, dir, name);
}

static enum ek_status reserve(struct ek_model_files *f, size_t n)
{
    f->shards = ek_calloc(n, sizeof(*f->shards));
    f->shard_names = ek_calloc(n, sizeof(*f->shard_names));
    return f->shards && f->shard_names ? EK_OK : EK_ENOMEM;
}

/* Every tensor of every shard must be where the map says, so none is in two shards. */
static enum ek_status check_map(const struct ek_model_files *f, const char *index)
{
    for (size_t i = 0; i < f->n_shards; i++)
        for (size_t j = 0; j < ek_safetensors_count(f->shards[i]); j++) {
            const char *name = ek_safetensors_at(f->shards[i], j)->name;
            const char *want = json_string_value(json_object_get(weight_map(f), name));
            if (want == NULL)
                return ek_error(EK_EFORMAT, "%s: tensor '%s' of %s is not in weight_map", index,
                                name, f->shard_names[i]);
            if (strcmp(want, f->shard_names[i]) != 0)
                return ek_error(EK_EFORMAT, "%s: tensor '%s' is in %s, weight_map says %s", index,
                                name, f->shard_names[i], want);
        }
    return EK_OK;
}

static enum ek_status open_index(struct ek_model_files *f, const char *dir, const char *index)
{
    const char *tensor;
    json_t *v;
    const json_t *map;

    EK_TRY(ek_json_read(index, INDEX_MAX, &f->index));
    EK_TRY(ek_json_object(f->index, (struct ek_json_at){index, ""}, "weight_map", &map));
    EK_TRY(reserve(f, SHARDS_MAX));
    json_object_foreach((json_t *)map, tensor, v)
    {
        EK_TRY(check_shard_name(index, tensor, v));
        if (find_shard(f, json_string_value(v)) >= 0)
            continue;
        if (f->n_shards == SHARDS_MAX)
            return ek_error(EK_EFORMAT, "%s: more than %d files", index, SHARDS_MAX);
        EK_TRY(open_named(f, dir, index, tensor, json_string_value(v)));
    }
    return check_map(f, index);
}

enum ek_status ek_shards_open(struct ek_model_files *f, const char *dir)
{
    char *index = ek_path_join(dir, "model.safetensors.index.json");
    char *single = ek_path_join(dir, "model.safetensors");
    enum ek_status st = EK_OK;

    if (index == NULL || single == NULL)
        st = EK_ENOMEM;
    else if (ek_file_exists(index))
        st = open_index(f, dir, index);
    else if (ek_file_exists(single) && (st = reserve(f, 1)) == EK_OK)
        st = open_shard(f, dir, "model.safetensors");
    free(index);
    free(single);
    return st;
}

const struct ek_safetensors_entry *ek_shards_find(const struct ek_model_files *f, const char *name,
                                                  int32_t *shard)
{
    const char *file;
    ptrdiff_t i = 0;

    if (f->index) {
        file = json_string_value(json_object_get(weight_map(f), name));
        i = file ? find_shard(f, file) : -1;
    }
    if (i < 0 || f->n_shards == 0)
        return NULL;
    *shard = (int32_t)i;
    return ek_safetensors_find(f->shards[i], name);
}

void ek_shards_close(struct ek_model_files *f)
{
    for (size_t i = 0; i < f->n_shards; i++) {
        ek_safetensors_close(f->shards[i]);
        free(f->shard_names[i]);
    }
    free(f->shards);
    free(f->shard_names);
    json_decref(f->index);
    f->shards = NULL;
    f->shard_names = NULL;
    f->index = NULL;
    f->n_shards = 0;
}
