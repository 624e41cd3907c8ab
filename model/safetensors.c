/* SPDX-License-Identifier: Apache-2.0
 *
 * safetensors: u64 LE header length N, N bytes of JSON, data. The header is checked as the official
 * reader does: every byte of the data belongs to exactly one tensor.
 */
#define _GNU_SOURCE
#include "model/datafile.h"
#include "model/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_MAX   100000000u
#define NAME_BYTES   1024u
#define MAX_DEPTH    3 /* header { tensor { shape [ ] } } */
#define MAX_DIMS     5
#define STREAM_PIECE ((uint64_t)4 << 20)
#define LLU(x)       ((unsigned long long)(x))

struct ek_safetensors {
    struct ek_datafile file;
    json_t *header;                       /* owns the names and the metadata */
    struct ek_safetensors_entry *entries; /* in order of their data */
    size_t n;
    size_t *by_name;
};

static enum ek_status bad_entry(const struct ek_safetensors *s,
                                const struct ek_safetensors_entry *e, const char *reason)
{
    return ek_error(EK_EFORMAT, "%s: tensor '%s': %s", s->file.path, e->name, reason);
}

static bool deeper_than(const json_t *v, int left)
{
    const char *key;
    json_t *item;
    size_t i;

    if (!json_is_object(v) && !json_is_array(v))
        return false;
    if (left == 0)
        return true;
    json_object_foreach((json_t *)v, key, item)
    {
        if (deeper_than(item, left - 1))
            return true;
    }
    json_array_foreach(v, i, item)
    {
        if (deeper_than(item, left - 1))
            return true;
    }
    return false;
}

static enum ek_status read_header(struct ek_safetensors *s, uint64_t *data_at)
{
    unsigned char raw[8];
    uint64_t n = 0;
    char *text;
    enum ek_status st;

    if (s->file.size < sizeof(raw))
        return ek_error(EK_EFORMAT, "%s: %llu bytes, a safetensors file has at least 8",
                        s->file.path, LLU(s->file.size));
    EK_TRY(ek_datafile_read(&s->file, 0, sizeof(raw), raw));
    for (int i = 7; i >= 0; i--)
        n = n << 8 | raw[i];
    if (n == 0 || n > HEADER_MAX || n > s->file.size - 8)
        return ek_error(EK_EFORMAT, "%s: header of %llu bytes in a file of %llu (at most %u)",
                        s->file.path, LLU(n), LLU(s->file.size), HEADER_MAX);
    if ((text = ek_calloc(n, 1)) == NULL)
        return EK_ENOMEM;
    EK_GOTO(ek_datafile_read(&s->file, 8, n, text), st, done);
    if (text[0] != '{')
        st = ek_error(EK_EFORMAT, "%s: the header starts with byte 0x%02x, not with '{'",
                      s->file.path, (unsigned char)text[0]);
    else
        st = ek_json_parse(text, n, s->file.path, &s->header);
    *data_at = 8 + n;
done:
    free(text);
    return st;
}

static enum ek_status read_dtype(const struct ek_safetensors *s, const json_t *v,
                                 struct ek_safetensors_entry *e)
{
    const char *name = json_string_value(json_object_get(v, "dtype"));

    if (name == NULL)
        return bad_entry(s, e, "no dtype");
    for (int t = 0; t < EK_Q4_0; t++)
        if (strcmp(name, ek_dtype_name((enum ek_dtype)t)) == 0) {
            e->dtype = (enum ek_dtype)t;
            return EK_OK;
        }
    return ek_error(EK_EUNSUPPORTED, "%s: tensor '%s': dtype '%.32s' is not known", s->file.path,
                    e->name, name);
}

/* A whole number >= 0 of an array. */
static bool item_u64(const json_t *array, size_t i, uint64_t *out)
{
    const json_t *v = json_array_get(array, i);

    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static enum ek_status read_shape(const struct ek_safetensors *s, const json_t *v,
                                 struct ek_safetensors_entry *e)
{
    const json_t *shape = json_object_get(v, "shape");
    size_t n = 1, bytes;

    if (!json_is_array(shape))
        return bad_entry(s, e, "no shape");
    if (json_array_size(shape) > MAX_DIMS)
        return bad_entry(s, e, "more than 5 dimensions");
    e->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < e->n_dims; i++) {
        if (!item_u64(shape, i, &e->shape[i]))
            return bad_entry(s, e, "a dimension is no whole number >= 0");
        if (!ek_mul_size(n, e->shape[i], &n))
            return bad_entry(s, e, "its number of elements overflows");
    }
    if (ek_dtype_bytes(e->dtype, n, &bytes) != EK_OK)
        return bad_entry(s, e, "its size in bytes overflows");
    e->bytes = bytes;
    return EK_OK;
}

static enum ek_status read_offsets(const struct ek_safetensors *s, const json_t *v,
                                   uint64_t data_at, struct ek_safetensors_entry *e)
{
    const json_t *offsets = json_object_get(v, "data_offsets");
    uint64_t begin, end, size = s->file.size - data_at;

    if (json_array_size(offsets) != 2 || !item_u64(offsets, 0, &begin) ||
        !item_u64(offsets, 1, &end))
        return bad_entry(s, e, "data_offsets must be two whole numbers >= 0");
    if (end < begin || end > size)
        return ek_error(EK_EFORMAT, "%s: tensor '%s': data_offsets [%llu, %llu] of %llu bytes%s",
                        s->file.path, e->name, LLU(begin), LLU(end), LLU(size),
                        end < begin ? "" : " (truncated?)");
    if (end - begin != e->bytes)
        return ek_error(EK_EFORMAT, "%s: tensor '%s': %llu bytes of data, its shape needs %llu",
                        s->file.path, e->name, LLU(end - begin), LLU(e->bytes));
    e->offset = data_at + begin;
    return EK_OK;
}

static enum ek_status read_entry(struct ek_safetensors *s, const char *name, const json_t *v,
                                 uint64_t data_at)
{
    struct ek_safetensors_entry *e = &s->entries[s->n];

    if (*name == '\0' || strlen(name) > NAME_BYTES)
        return ek_error(EK_EFORMAT, "%s: tensor name of %zu bytes, from 1 to %u expected",
                        s->file.path, strlen(name), NAME_BYTES);
    e->name = name;
    if (!json_is_object(v))
        return bad_entry(s, e, "its entry is no object");
    EK_TRY(read_dtype(s, v, e));
    EK_TRY(read_shape(s, v, e));
    EK_TRY(read_offsets(s, v, data_at, e));
    s->n++;
    return EK_OK;
}

static enum ek_status check_metadata(const struct ek_safetensors *s, const json_t *meta)
{
    const char *key;
    json_t *v;

    if (!json_is_object(meta))
        return ek_error(EK_EFORMAT, "%s: __metadata__ is no object", s->file.path);
    json_object_foreach((json_t *)meta, key, v)
    {
        if (!json_is_string(v))
            return ek_error(EK_EFORMAT, "%s: __metadata__ key '%.64s' is no string", s->file.path,
                            key);
    }
    return EK_OK;
}

static int compare_offset(const void *a, const void *b)
{
    const struct ek_safetensors_entry *x = a, *y = b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static enum ek_status check_cover(const struct ek_safetensors *s, uint64_t data_at)
{
    uint64_t at = data_at;

    for (size_t i = 0; i < s->n; i++) {
        const struct ek_safetensors_entry *e = &s->entries[i];
        if (e->offset != at)
            return ek_error(EK_EFORMAT, "%s: tensor '%s' starts at byte %llu of the data, %s %llu",
                            s->file.path, e->name, LLU(e->offset - data_at),
                            e->offset < at ? "overlapping the one that ends at"
                                           : "leaving a hole behind",
                            LLU(at - data_at));
        at += e->bytes;
    }
    if (at != s->file.size)
        return ek_error(EK_EFORMAT, "%s: %llu bytes behind the last tensor", s->file.path,
                        LLU(s->file.size - at));
    return EK_OK;
}

static int compare_name(const void *a, const void *b, void *entries)
{
    const struct ek_safetensors_entry *e = entries;

    return strcmp(e[*(const size_t *)a].name, e[*(const size_t *)b].name);
}

static enum ek_status index_names(struct ek_safetensors *s)
{
    if ((s->by_name = ek_calloc(s->n, sizeof(*s->by_name))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < s->n; i++)
        s->by_name[i] = i;
    if (s->n > 1)
        qsort_r(s->by_name, s->n, sizeof(*s->by_name), compare_name, s->entries);
    return EK_OK;
}

static enum ek_status read_all(struct ek_safetensors *s)
{
    uint64_t data_at = 0;
    const char *name;
    json_t *v;

    EK_TRY(read_header(s, &data_at));
    if (deeper_than(s->header, MAX_DEPTH))
        return ek_error(EK_EFORMAT, "%s: header nested deeper than %d", s->file.path, MAX_DEPTH);
    s->entries = ek_calloc(json_object_size(s->header), sizeof(*s->entries));
    if (s->entries == NULL)
        return EK_ENOMEM;
    json_object_foreach(s->header, name, v)
    {
        if (strcmp(name, "__metadata__") == 0)
            EK_TRY(check_metadata(s, v));
        else
            EK_TRY(read_entry(s, name, v, data_at));
    }
    if (s->n > 1)
        qsort(s->entries, s->n, sizeof(*s->entries), compare_offset);
    EK_TRY(check_cover(s, data_at));
    return index_names(s);
}

enum ek_status ek_safetensors_open(const char *path, struct ek_safetensors **out)
{
    struct ek_safetensors *s = ek_calloc(1, sizeof(*s));
    enum ek_status st;

    if (s == NULL)
        return EK_ENOMEM;
    s->file = (struct ek_datafile)EK_DATAFILE_INIT;
    EK_GOTO(ek_datafile_open(&s->file, path), st, fail);
    EK_GOTO(read_all(s), st, fail);
    *out = s;
    return EK_OK;
fail:
    ek_safetensors_close(s);
    return st;
}

void ek_safetensors_close(struct ek_safetensors *s)
{
    if (s == NULL)
        return;
    ek_datafile_close(&s->file);
    json_decref(s->header);
    free(s->entries);
    free(s->by_name);
    free(s);
}

size_t ek_safetensors_count(const struct ek_safetensors *s)
{
    return s->n;
}

const struct ek_safetensors_entry *ek_safetensors_at(const struct ek_safetensors *s, size_t i)
{
    return &s->entries[i];
}

const struct ek_safetensors_entry *ek_safetensors_find(const struct ek_safetensors *s,
                                                       const char *name)
{
    size_t lo = 0, hi = s->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct ek_safetensors_entry *e = &s->entries[s->by_name[mid]];
        int c = strcmp(name, e->name);
        if (c == 0)
            return e;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const char *ek_safetensors_meta(const struct ek_safetensors *s, const char *key)
{
    return json_string_value(json_object_get(json_object_get(s->header, "__metadata__"), key));
}

enum ek_status ek_safetensors_read(const struct ek_safetensors *s,
                                   const struct ek_safetensors_entry *e, uint64_t at, uint64_t n,
                                   void *dst)
{
    if (at > e->bytes || n > e->bytes - at)
        return ek_error(EK_EUSAGE, "%s: tensor '%s': bytes %llu to %llu of %llu", s->file.path,
                        e->name, LLU(at), LLU(at + n), LLU(e->bytes));
    return ek_datafile_read(&s->file, e->offset + at, n, dst);
}

enum ek_status ek_safetensors_pread(const struct ek_safetensors *s, uint64_t offset, uint64_t n,
                                    void *dst)
{
    return ek_datafile_read(&s->file, offset, n, dst);
}

enum ek_status ek_safetensors_cache(const struct ek_safetensors *s, bool in)
{
    return ek_datafile_cache(&s->file, in);
}

/* ---- Writing ----------------------------------------------------------------------------------*/

static json_t *entry_json(const struct ek_safetensors_entry *e, uint64_t begin)
{
    json_t *shape = json_array();

    for (uint32_t i = 0; i < e->n_dims; i++)
        json_array_append_new(shape, json_integer((json_int_t)e->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", ek_dtype_name(e->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)(begin + e->bytes));
}

/* Header text, padded with spaces so that the data starts at a multiple of 8. */
static char *header_text(const struct ek_safetensors_entry *entries, size_t n, const json_t *meta,
                         size_t *length)
{
    json_t *header = json_object();
    uint64_t at = 0;
    char *text, *padded = NULL;

    if (meta)
        json_object_set(header, "__metadata__", (json_t *)meta);
    for (size_t i = 0; i < n; at += entries[i++].bytes)
        json_object_set_new(header, entries[i].name, entry_json(&entries[i], at));
    text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (text) {
        *length = ek_round_up(strlen(text), 8);
        padded = ek_asprintf("%-*s", (int)*length, text);
    }
    free(text);
    return padded;
}

static enum ek_status put(const char *path, FILE *f, const void *data, size_t n)
{
    return fwrite(data, 1, n, f) == n ? EK_OK : ek_error(EK_EENV, "%s: %s", path, strerror(errno));
}

static enum ek_status stream_into(FILE *f, const char *path,
                                  const struct ek_safetensors_entry *entries, size_t n,
                                  const json_t *meta, ek_tensor_fn read, void *ctx)
{
    size_t length = 0;
    char *header = header_text(entries, n, meta, &length), *piece = ek_calloc(1, STREAM_PIECE);
    uint8_t first[8];
    enum ek_status st = header && piece ? EK_OK : ek_error(EK_ENOMEM, "%s: no memory", path);

    for (int i = 0; i < 8; i++)
        first[i] = (uint8_t)(length >> 8 * i & 0xff);
    if (st == EK_OK)
        st = put(path, f, first, sizeof(first));
    if (st == EK_OK)
        st = put(path, f, header, length);
    for (size_t i = 0; i < n; i++)
        for (uint64_t at = 0, k; st == EK_OK && at < entries[i].bytes; at += k) {
            k = entries[i].bytes - at < STREAM_PIECE ? entries[i].bytes - at : STREAM_PIECE;
            st = read(ctx, i, at, k, piece);
            if (st == EK_OK)
                st = put(path, f, piece, (size_t)k);
        }
    free(piece);
    free(header);
    return st;
}

enum ek_status ek_safetensors_stream(const char *path, const struct ek_safetensors_entry *entries,
                                     size_t n, const json_t *meta, ek_tensor_fn read, void *ctx,
                                     bool force)
{
    struct ek_new_file f;

    EK_TRY(ek_file_begin(path, force, &f));
    return ek_file_end(&f, stream_into(f.stream, path, entries, n, meta, read, ctx));
}

static enum ek_status from_memory(void *ctx, size_t entry, uint64_t at, uint64_t n, void *dst)
{
    const void *const *data = ctx;

    memcpy(dst, (const char *)data[entry] + at, n);
    return EK_OK;
}

enum ek_status ek_safetensors_write(const char *path, const struct ek_safetensors_entry *entries,
                                    const void *const *data, size_t n, const json_t *meta,
                                    bool force)
{
    return ek_safetensors_stream(path, entries, n, meta, from_memory, (void *)data, force);
}
