/* SPDX-License-Identifier: Apache-2.0
 *
 * From a path to an open model, and the reading of its weights.
 */
#define _GNU_SOURCE
#include "model/internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- What the path is -------------------------------------------------------------------------*/

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcasecmp(s + n - k, end) == 0;
}

enum ek_status ek_directory_gguf(const char *dir, char **out)
{
    DIR *d = opendir(dir);
    enum ek_status st = EK_OK;
    struct dirent *e;

    if (d == NULL)
        return ek_error(EK_EENV, "%s: %s", dir, strerror(errno));
    while (st == EK_OK && (e = readdir(d)) != NULL) {
        if (!ends_with(e->d_name, ".gguf"))
            continue;
        if (*out)
            st = ek_error(EK_EUSAGE, "%s: several .gguf files, name one", dir);
        else if ((*out = ek_path_join(dir, e->d_name)) == NULL)
            st = EK_ENOMEM;
    }
    closedir(d);
    return st;
}

/* Last part of the path as plain text, without what says only its form. */
static void set_name(struct ek_model *m)
{
    const char *end = m->path + strlen(m->path), *base;
    size_t n;

    if (ends_with(m->path, "/config.json"))
        end -= strlen("/config.json");
    else if (ends_with(m->path, ".gguf"))
        end -= strlen(".gguf");
    while (end > m->path && end[-1] == '/')
        end--;
    for (base = end; base > m->path && base[-1] != '/'; base--)
        ;
    n = (size_t)(end - base) < sizeof(m->name) ? (size_t)(end - base) : sizeof(m->name) - 1;
    memcpy(m->name, base, n);
    m->name[n] = '\0';
    ek_plain_text(m->name); /* it is shown, and goes into files */
}

/* ---- Opening ----------------------------------------------------------------------------------*/

static enum ek_status open_gguf(struct ek_model *m, const char *path,
                                const struct ek_family **family)
{
    m->gguf = true;
    EK_TRY(ek_gguf_open(path, &m->files->gguf));
    EK_TRY(ek_config_from_gguf(m->files->gguf, &m->files->arena, &m->config, family));
    return ek_modules_build(m, &(*family)->spellings[0]);
}

/* The spelling whose embedding is in the files; the hub's where there are none. */
static const struct ek_spelling *choose_spelling(const struct ek_model *m,
                                                 const struct ek_family *family)
{
    for (size_t i = 0; i < EK_MAX_SPELLINGS && family->spellings[i].text; i++) {
        char name[128];
        int32_t shard;
        snprintf(name, sizeof(name), "%sembed_tokens.weight", family->spellings[i].text);
        if (ek_shards_find(m->files, name, &shard))
            return &family->spellings[i];
    }
    return &family->spellings[0];
}

/* Pickles run code when they are read: never by us. */
static void note_pickle(const char *dir)
{
    static const char *const names[] = {"pytorch_model.bin", "pytorch_model.bin.index.json"};

    for (size_t i = 0; i < EK_ARRAY_LEN(names); i++) {
        char *path = ek_path_join(dir, names[i]);
        if (path && ek_file_exists(path))
            ek_note("%s is not read, only safetensors are: the weights will be synthetic", path);
        free(path);
    }
}

static enum ek_status open_directory(struct ek_model *m, const char *dir,
                                     const struct ek_family **family)
{
    char *config = ek_path_join(dir, "config.json"), *gguf = NULL;
    enum ek_status st = config ? EK_OK : EK_ENOMEM;

    if (st == EK_OK && !ek_file_exists(config)) {
        st = ek_directory_gguf(dir, &gguf);
        if (st == EK_OK)
            st = gguf ? open_gguf(m, gguf, family)
                      : ek_error(EK_EFORMAT, "%s: neither config.json nor a .gguf file", dir);
    } else if (st == EK_OK) {
        EK_GOTO(ek_config_read(config, dir, &m->config, family), st, done);
        EK_GOTO(ek_shards_open(m->files, dir), st, done);
        if (m->files->n_shards == 0)
            note_pickle(dir);
        st = ek_modules_build(m, choose_spelling(m, *family));
    }
done:
    free(config);
    free(gguf);
    return st;
}

static enum ek_status open_any(struct ek_model *m, const char *path,
                               const struct ek_family **family)
{
    struct stat sb;

    if (stat(path, &sb) != 0)
        return ek_error(EK_EENV, "%s: %s", path, strerror(errno));
    if (S_ISDIR(sb.st_mode))
        return open_directory(m, path, family);
    if (ends_with(path, ".gguf"))
        return open_gguf(m, path, family);
    if (!ends_with(path, ".json"))
        return ek_error(EK_EUSAGE, "%s: neither a directory, a .gguf file nor a config.json", path);
    EK_TRY(ek_config_read(path, NULL, &m->config, family));
    return ek_modules_build(m, &(*family)->spellings[0]);
}

static enum ek_status open_into(struct ek_model *m, const char *path, uint32_t quantize)
{
    const struct ek_family *family = NULL;

    EK_TRY(open_any(m, path, &family));
    set_name(m);
    if (m->files->gguf || m->files->n_shards) {
        EK_TRY(ek_tensors_bind(m, family));
        m->has_weights = !m->files->synthetic;
    } else {
        m->files->synthetic = true;
        EK_TRY(ek_quant_assign(m));
    }
    EK_TRY(ek_quant_at_load(m, quantize));
    EK_TRY(ek_modules_sum(m));
    return ek_model_identify(m);
}

enum ek_status ek_model_open(const char *path, const struct ek_model_options *options,
                             struct ek_model **out)
{
    static const struct ek_model_options init = EK_MODEL_OPTIONS_INIT;
    struct ek_model *m = ek_calloc(1, sizeof(*m));
    enum ek_status st = EK_ENOMEM;

    if (m == NULL)
        return EK_ENOMEM;
    options = options ? options : &init;
    if ((m->files = ek_calloc(1, sizeof(*m->files))) == NULL)
        goto fail;
    m->files->seed = options->seed;
    m->files->synthetic = options->synthetic;
    if ((m->path = ek_strdup(path)) == NULL)
        goto fail;
    EK_GOTO(open_into(m, path, options->quantize), st, fail);
    *out = m;
    return EK_OK;
fail:
    ek_model_close(m);
    return st;
}

void ek_model_close(struct ek_model *m)
{
    if (m == NULL)
        return;
    if (m->files) {
        ek_gguf_close(m->files->gguf);
        ek_shards_close(m->files);
        ek_arena_free(&m->files->arena);
    }
    free(m->files);
    free(m->modules);
    free(m->path);
    free(m);
}

enum ek_status ek_model_cache(const struct ek_model *m, bool in)
{
    if (m->files->gguf)
        return ek_gguf_cache(m->files->gguf, in);
    for (size_t i = 0; i < m->files->n_shards; i++)
        EK_TRY(ek_safetensors_cache(m->files->shards[i], in));
    return EK_OK;
}

/* ---- Reading ----------------------------------------------------------------------------------*/

static enum ek_status read_file(const struct ek_model *m, const struct ek_tensor *t, uint64_t at,
                                uint64_t n, void *dst)
{
    if (m->files->gguf)
        return ek_gguf_read(m->files->gguf, t->offset + at, n, dst);
    return ek_safetensors_pread(m->files->shards[t->file], t->offset + at, n, dst);
}

/* Rows of a GGUF's q and k: within a head, row 2i + j of the file is Hugging Face's j * (hd/2) + i.
 * Whole heads are read, so that the file is read in large pieces. */
static enum ek_status read_unpermuted(const struct ek_model *m, const struct ek_tensor *t,
                                      uint64_t at, uint64_t n, char *dst)
{
    uint64_t row = t->bytes / t->shape[0], head_rows = t->shape[0] / t->unpermute_heads;
    uint64_t from = at / row, to = from + n / row, half = head_rows / 2;
    char *head;
    enum ek_status st = EK_OK;

    if (at % row || n % row)
        return ek_error(EK_EUSAGE, "%s: tensor '%s': bytes %llu to %llu are not whole rows of %llu",
                        m->path, t->name, (unsigned long long)at, (unsigned long long)(at + n),
                        (unsigned long long)row);
    if ((head = ek_calloc(head_rows, row)) == NULL)
        return EK_ENOMEM;
    for (uint64_t h = from / head_rows; st == EK_OK && h * head_rows < to; h++) {
        uint64_t first = h * head_rows;
        st = read_file(m, t, first * row, head_rows * row, head);
        for (uint64_t r = 0; st == EK_OK && r < head_rows; r++)
            if (first + r >= from && first + r < to)
                memcpy(dst + (first + r - from) * row, head + (r % half * 2 + r / half) * row, row);
    }
    free(head);
    return st;
}

enum ek_status ek_model_read(const struct ek_model *m, const struct ek_tensor *t, uint64_t at,
                             uint64_t n, void *dst)
{
    if (at > t->bytes || n > t->bytes - at)
        return ek_error(EK_EUSAGE, "%s: tensor '%s': bytes %llu and %llu more of %llu", m->path,
                        t->name, (unsigned long long)at, (unsigned long long)n,
                        (unsigned long long)t->bytes);
    if (t->quant && (t->quant->source || !m->files->synthetic))
        return ek_quant_read(m, t, at, n, dst);
    if (m->files->synthetic)
        return ek_synthetic_read(m->files->seed, m->config.n_experts > 0, t, at, n, dst);
    if (t->unpermute_heads)
        return read_unpermuted(m, t, at, n, dst);
    return read_file(m, t, at, n, dst);
}
