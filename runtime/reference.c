/* SPDX-License-Identifier: Apache-2.0
 *
 * reference.safetensors (docs/formats.md): token ids in, logits out. Shapes and values are checked
 * whole before anything is run.
 */
#include "runtime/prompt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IDS  ((uint64_t)1 << 24)
#define MAX_TOPK 1024u

struct source {
    const char *path;
    struct ek_safetensors *file;
};

void ek_reference_free(struct ek_reference *r)
{
    if (r == NULL)
        return;
    reference_free_images(r);
    free(r->ids);
    free(r->positions);
    free(r->logits);
    free(r->topk_ids);
    free(r->topk_logits);
    free(r->logsumexp);
    free(r);
}

/* An entry of a type and shape; dims of 0 are free and are read back. NULL and EK_OK: absent. */
static enum ek_status entry(const struct source *s, const char *name, enum ek_dtype dtype,
                            uint32_t n_dims, uint64_t dims[2],
                            const struct ek_safetensors_entry **out)
{
    const struct ek_safetensors_entry *e = ek_safetensors_find(s->file, name);

    *out = e;
    if (e == NULL)
        return EK_OK;
    if (e->dtype != dtype || e->n_dims != n_dims)
        return ek_error(EK_EFORMAT, "%s: %s must be %s with %u dimensions, got %s with %u", s->path,
                        name, ek_dtype_name(dtype), n_dims, ek_dtype_name(e->dtype), e->n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        if (e->shape[i] == 0 || (dims[i] != 0 && e->shape[i] != dims[i]))
            return ek_error(EK_EFORMAT, "%s: dimension %u of %s is %llu, expected %llu", s->path, i,
                            name, (unsigned long long)e->shape[i], (unsigned long long)dims[i]);
        dims[i] = e->shape[i];
    }
    return EK_OK;
}

static enum ek_status missing(const struct source *s, const char *name)
{
    return ek_error(EK_EFORMAT, "%s: %s is missing", s->path, name);
}

static enum ek_status read_data(const struct source *s, const struct ek_safetensors_entry *e,
                                void **out)
{
    void *p = ek_calloc(1, e->bytes);
    enum ek_status st;

    if (p == NULL)
        return EK_ENOMEM;
    st = ek_safetensors_read(s->file, e, 0, e->bytes, p);
    if (st != EK_OK) {
        free(p);
        return st;
    }
    *out = p;
    return EK_OK;
}

/* I64 values within [0, end), as I32. */
static enum ek_status read_ids(const struct source *s, const struct ek_safetensors_entry *e,
                               uint64_t end, int32_t **out)
{
    size_t n = e->bytes / sizeof(int64_t);
    void *raw;
    int32_t *ids;

    EK_TRY(read_data(s, e, &raw));
    ids = raw; /* narrowed in place, from the front */
    for (size_t i = 0; i < n; i++) {
        int64_t v;
        memcpy(&v, (char *)raw + i * sizeof(v), sizeof(v));
        if (v < 0 || (uint64_t)v >= end) {
            free(raw);
            return ek_error(EK_EFORMAT, "%s: %s[%zu] is %lld, must be from 0 to %llu", s->path,
                            e->name, i, (long long)v, (unsigned long long)end - 1);
        }
        ids[i] = (int32_t)v;
    }
    *out = ids;
    return EK_OK;
}

static enum ek_status read_floats(const struct source *s, const struct ek_safetensors_entry *e,
                                  float **out)
{
    size_t n = e->bytes / sizeof(float);
    void *p;

    EK_TRY(read_data(s, e, &p));
    for (size_t i = 0; i < n; i++)
        if (!isfinite(((float *)p)[i])) {
            free(p);
            return ek_error(EK_EFORMAT, "%s: %s[%zu] is not finite", s->path, e->name, i);
        }
    *out = p;
    return EK_OK;
}

/* Rows of the input that have logits: given, ascending, or all. */
static enum ek_status read_positions(const struct source *s, struct ek_reference *r)
{
    const struct ek_safetensors_entry *e;
    uint64_t dims[2] = {0};
    int32_t *small;

    EK_TRY(entry(s, "positions", EK_I64, 1, dims, &e));
    if (e == NULL) {
        r->n_rows = r->n_ids;
        if ((r->positions = ek_calloc(r->n_rows, sizeof(*r->positions))) == NULL)
            return EK_ENOMEM;
        for (size_t i = 0; i < r->n_rows; i++)
            r->positions[i] = (int64_t)i;
        return EK_OK;
    }
    if (dims[0] > r->n_ids)
        return ek_error(EK_EFORMAT, "%s: %llu positions of %zu ids", s->path,
                        (unsigned long long)dims[0], r->n_ids);
    EK_TRY(read_ids(s, e, r->n_ids, &small));
    r->n_rows = dims[0];
    if ((r->positions = ek_calloc(r->n_rows, sizeof(*r->positions))) != NULL)
        for (size_t i = 0; i < r->n_rows; i++)
            r->positions[i] = small[i];
    free(small);
    if (r->positions == NULL)
        return EK_ENOMEM;
    for (size_t i = 1; i < r->n_rows; i++)
        if (r->positions[i] <= r->positions[i - 1])
            return ek_error(EK_EFORMAT, "%s: positions[%zu] is %lld after %lld: must ascend",
                            s->path, i, (long long)r->positions[i], (long long)r->positions[i - 1]);
    return EK_OK;
}

static enum ek_status refuse_repeats(const struct source *s, const struct ek_reference *r)
{
    for (size_t row = 0; row < r->n_rows; row++)
        for (uint32_t i = 0; i < r->n_topk; i++)
            for (uint32_t k = 0; k < i; k++)
                if (r->topk_ids[row * r->n_topk + i] == r->topk_ids[row * r->n_topk + k])
                    return ek_error(EK_EFORMAT, "%s: topk_ids[%zu] holds %d twice", s->path, row,
                                    r->topk_ids[row * r->n_topk + i]);
    return EK_OK;
}

static enum ek_status read_topk(const struct source *s, struct ek_reference *r)
{
    const struct ek_safetensors_entry *ids, *logits, *sums;
    uint64_t dims[2] = {r->n_rows, 0}, rows[2] = {r->n_rows, 0};

    EK_TRY(entry(s, "topk_ids", EK_I64, 2, dims, &ids));
    if (ids == NULL)
        return missing(s, "logits (or topk_ids)");
    if (dims[1] > MAX_TOPK)
        return ek_error(EK_EFORMAT, "%s: topk_ids has %llu columns, at most %u", s->path,
                        (unsigned long long)dims[1], MAX_TOPK);
    EK_TRY(entry(s, "topk_logits", EK_F32, 2, dims, &logits));
    EK_TRY(entry(s, "logsumexp", EK_F32, 1, rows, &sums));
    if (logits == NULL || sums == NULL)
        return missing(s, logits ? "logsumexp" : "topk_logits");
    r->n_topk = (uint32_t)dims[1];
    EK_TRY(read_ids(s, ids, INT32_MAX, &r->topk_ids));
    EK_TRY(read_floats(s, logits, &r->topk_logits));
    EK_TRY(read_floats(s, sums, &r->logsumexp));
    return refuse_repeats(s, r);
}

static enum ek_status read_logits(const struct source *s, struct ek_reference *r)
{
    const struct ek_safetensors_entry *e;
    uint64_t dims[2] = {r->n_rows, 0};

    EK_TRY(entry(s, "logits", EK_F32, 2, dims, &e));
    if (e == NULL)
        return read_topk(s, r);
    if (dims[1] > INT32_MAX)
        return ek_error(EK_EFORMAT, "%s: logits has %llu columns", s->path,
                        (unsigned long long)dims[1]);
    r->vocab = (uint32_t)dims[1];
    return read_floats(s, e, &r->logits);
}

/* Metadata "bf16": {"mean_kl": ...} as text. */
static enum ek_status read_bf16_noise(const struct source *s, double *mean_kl)
{
    const char *text = ek_safetensors_meta(s->file, "bf16");
    struct ek_json_at at = {s->path, "__metadata__.bf16."};
    json_t *v = NULL;
    enum ek_status st;

    if (text == NULL)
        return EK_OK;
    EK_TRY(ek_json_parse(text, strlen(text), s->path, &v));
    st = ek_json_opt_real(v, at, "mean_kl", 0, 1e3, mean_kl);
    json_decref(v);
    return st;
}

static enum ek_status read_all(const struct source *s, struct ek_reference *r)
{
    const struct ek_safetensors_entry *e;
    const char *dtype = ek_safetensors_meta(s->file, "dtype");
    uint64_t dims[2] = {0};

    EK_TRY(entry(s, "input_ids", EK_I64, 1, dims, &e));
    if (e == NULL)
        return missing(s, "input_ids");
    if (dims[0] > MAX_IDS)
        return ek_error(EK_EFORMAT, "%s: %llu input_ids, at most %llu", s->path,
                        (unsigned long long)dims[0], (unsigned long long)MAX_IDS);
    r->n_ids = dims[0];
    EK_TRY(read_ids(s, e, INT32_MAX, &r->ids));
    EK_TRY(reference_read_images(s->path, s->file, r));
    EK_TRY(read_positions(s, r));
    EK_TRY(read_logits(s, r));
    snprintf(r->dtype, sizeof(r->dtype), "%.15s", dtype ? dtype : "");
    return read_bf16_noise(s, &r->bf16_mean_kl);
}

enum ek_status ek_reference_read(const char *path, struct ek_reference **out)
{
    struct source s = {.path = path};
    struct ek_reference *r = NULL;
    enum ek_status st;

    EK_TRY(ek_safetensors_open(path, &s.file));
    if ((r = ek_calloc(1, sizeof(*r))) == NULL) {
        st = EK_ENOMEM;
        goto done;
    }
    EK_GOTO(read_all(&s, r), st, done);
    *out = r;
    r = NULL;
done:
    ek_reference_free(r);
    ek_safetensors_close(s.file);
    return st;
}
