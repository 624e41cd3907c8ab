/* SPDX-License-Identifier: Apache-2.0
 *
 * The metadata is read once into memory and stays there: strings are spans of it. When all is
 * parsed, the byte behind each string (part of a field that has been read by then) becomes NUL.
 */
#define _GNU_SOURCE
#include "model/gguf.h"
#include "model/datafile.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define METADATA_MAX ((uint64_t)1 << 30)
#define KV_MAX       65536u
#define TENSORS_MAX  ((uint64_t)1 << 20)
#define NAME_BYTES   1024u
#define STRING_BYTES ((uint64_t)1 << 28)
#define ALIGNMENT    32u
#define FIRST_READ   ((uint64_t)1 << 20)

struct span {
    uint64_t at, n; /* in the metadata */
};

struct kv {
    struct span key;
    enum ek_gguf_type type, item; /* item: of an array */
    uint64_t n;                   /* items: 1 unless an array */
    uint64_t at;                  /* payload in the metadata (numbers) */
    size_t first;                 /* first of its strings in ek_gguf.strings */
};

struct ek_gguf {
    struct ek_datafile file;
    char *meta; /* [meta_n + 1] */
    uint64_t meta_n, at;
    struct kv *kvs; /* sorted by key once read */
    size_t n_kvs;
    struct span *strings; /* values only */
    size_t n_strings, cap_strings;
    struct ek_gguf_tensor *tensors; /* file order */
    size_t n_tensors;
    size_t *by_name; /* tensors sorted by name */
};

#define FAIL(g, st, fmt, ...) ek_error(st, "%s: " fmt, (g)->file.path, __VA_ARGS__)
#define LLU(x)                ((unsigned long long)(x))

/* ---- Reading the metadata ---------------------------------------------------------------------*/

/* Makes the next n bytes of metadata present in memory. */
static enum ek_status need(struct ek_gguf *g, uint64_t n, const char *what)
{
    uint64_t want = g->meta_n ? g->meta_n : FIRST_READ;
    char *p;

    if (n > g->file.size - g->at)
        return FAIL(g, EK_EFORMAT, "byte %llu: %s needs %llu bytes, %llu remain", LLU(g->at), what,
                    LLU(n), LLU(g->file.size - g->at));
    if (g->at + n <= g->meta_n)
        return EK_OK;
    if (g->at + n > METADATA_MAX)
        return FAIL(g, EK_EFORMAT, "byte %llu: metadata over %llu bytes", LLU(g->at),
                    LLU(METADATA_MAX));
    while (want < g->at + n)
        want *= 2;
    if (want > g->file.size)
        want = g->file.size;
    if ((p = realloc(g->meta, want + 1)) == NULL)
        return FAIL(g, EK_ENOMEM, "out of host memory for %llu bytes of metadata", LLU(want));
    g->meta = p;
    EK_TRY(ek_datafile_read(&g->file, g->meta_n, want - g->meta_n, g->meta + g->meta_n));
    g->meta_n = want;
    return EK_OK;
}

/* Little-endian whatever the host. */
static uint64_t load_le(const char *p, size_t n)
{
    uint64_t v = 0;

    for (size_t i = n; i-- > 0;)
        v = v << 8 | (unsigned char)p[i];
    return v;
}

static enum ek_status take(struct ek_gguf *g, size_t n, const char *what, uint64_t *out)
{
    EK_TRY(need(g, n, what));
    *out = load_le(g->meta + g->at, n);
    g->at += n;
    return EK_OK;
}

static enum ek_status take_string(struct ek_gguf *g, const char *what, uint64_t max,
                                  struct span *out)
{
    uint64_t n;

    EK_TRY(take(g, 8, what, &n));
    if (n > max)
        return FAIL(g, EK_EFORMAT, "byte %llu: %s of %llu bytes, at most %llu", LLU(g->at - 8),
                    what, LLU(n), LLU(max));
    EK_TRY(need(g, n, what));
    *out = (struct span){g->at, n};
    g->at += n;
    return EK_OK;
}

static enum ek_status take_name(struct ek_gguf *g, const char *what, struct span *out)
{
    uint64_t from = g->at;

    EK_TRY(take_string(g, what, NAME_BYTES, out));
    if (out->n == 0)
        return FAIL(g, EK_EFORMAT, "byte %llu: empty %s", LLU(from), what);
    if (memchr(g->meta + out->at, '\0', out->n))
        return FAIL(g, EK_EFORMAT, "byte %llu: NUL inside a %s", LLU(from), what);
    return EK_OK;
}

/* Bytes of one number of a type; 0 for strings and arrays. */
static size_t type_bytes(enum ek_gguf_type type)
{
    static const uint8_t bytes[] = {
        [EK_GGUF_U8] = 1,     [EK_GGUF_I8] = 1,    [EK_GGUF_U16] = 2, [EK_GGUF_I16] = 2,
        [EK_GGUF_U32] = 4,    [EK_GGUF_I32] = 4,   [EK_GGUF_F32] = 4, [EK_GGUF_BOOL] = 1,
        [EK_GGUF_STRING] = 0, [EK_GGUF_ARRAY] = 0, [EK_GGUF_U64] = 8, [EK_GGUF_I64] = 8,
        [EK_GGUF_F64] = 8};
    return bytes[type];
}

static enum ek_status take_type(struct ek_gguf *g, const struct kv *kv, enum ek_gguf_type *out)
{
    uint64_t type;

    EK_TRY(take(g, 4, "value type", &type));
    if (type > EK_GGUF_F64)
        return FAIL(g, EK_EFORMAT, "key '%.*s': unknown value type %llu", (int)kv->key.n,
                    g->meta + kv->key.at, LLU(type));
    *out = (enum ek_gguf_type)type;
    return EK_OK;
}

static enum ek_status take_array_head(struct ek_gguf *g, struct kv *kv)
{
    uint64_t least;

    EK_TRY(take_type(g, kv, &kv->item));
    if (kv->item == EK_GGUF_ARRAY)
        return FAIL(g, EK_EUNSUPPORTED, "key '%.*s': arrays inside arrays", (int)kv->key.n,
                    g->meta + kv->key.at);
    EK_TRY(take(g, 8, "array length", &kv->n));
    least = kv->item == EK_GGUF_STRING ? 8 : type_bytes(kv->item);
    if (kv->n > (g->file.size - g->at) / least)
        return FAIL(g, EK_EFORMAT, "key '%.*s': array of %llu items, %llu bytes remain",
                    (int)kv->key.n, g->meta + kv->key.at, LLU(kv->n), LLU(g->file.size - g->at));
    return EK_OK;
}

static enum ek_status take_value(struct ek_gguf *g, struct kv *kv)
{
    EK_TRY(take_type(g, kv, &kv->type));
    kv->item = kv->type;
    kv->n = 1;
    if (kv->type == EK_GGUF_ARRAY)
        EK_TRY(take_array_head(g, kv));
    if (kv->item != EK_GGUF_STRING) {
        kv->at = g->at;
        EK_TRY(need(g, kv->n * type_bytes(kv->item), "value"));
        g->at += kv->n * type_bytes(kv->item);
        return EK_OK;
    }
    kv->first = g->n_strings;
    EK_TRY(ek_grow((void **)&g->strings, &g->cap_strings, g->n_strings + kv->n, sizeof(struct span),
                   METADATA_MAX / 8));
    for (uint64_t i = 0; i < kv->n; i++, g->n_strings++)
        EK_TRY(take_string(g, "string", STRING_BYTES, &g->strings[g->n_strings]));
    return EK_OK;
}

static const char *key_of(const struct ek_gguf *g, const struct kv *kv)
{
    return g->meta + kv->key.at;
}

static int compare_span(const struct ek_gguf *g, struct span a, const char *b, size_t n)
{
    int c = memcmp(g->meta + a.at, b, a.n < n ? a.n : n);

    return c ? c : (a.n > n) - (a.n < n);
}

static int compare_kv(const void *a, const void *b, void *g)
{
    const struct kv *y = b;

    return compare_span(g, ((const struct kv *)a)->key, key_of(g, y), y->key.n);
}

static enum ek_status read_kvs(struct ek_gguf *g)
{
    for (size_t i = 0; i < g->n_kvs; i++) {
        EK_TRY(take_name(g, "key", &g->kvs[i].key));
        EK_TRY(take_value(g, &g->kvs[i]));
    }
    if (g->n_kvs > 1)
        qsort_r(g->kvs, g->n_kvs, sizeof(*g->kvs), compare_kv, g);
    for (size_t i = 1; i < g->n_kvs; i++)
        if (compare_kv(&g->kvs[i - 1], &g->kvs[i], g) == 0)
            return FAIL(g, EK_EFORMAT, "key '%.*s' twice", (int)g->kvs[i].key.n,
                        key_of(g, &g->kvs[i]));
    return EK_OK;
}

/* ---- Tensor directory -------------------------------------------------------------------------*/

/* ggml's type numbers; those without a dtype are refused by name. */
static const struct {
    const char *name;
    int dtype; /* enum ek_dtype, -1: not supported */
} ggml_types[] = {
    [0] = {"F32", EK_F32},    [1] = {"F16", EK_F16},    [2] = {"Q4_0", EK_Q4_0},
    [3] = {"Q4_1", EK_Q4_1},  [6] = {"Q5_0", EK_Q5_0},  [7] = {"Q5_1", EK_Q5_1},
    [8] = {"Q8_0", EK_Q8_0},  [9] = {"Q8_1", -1},       [10] = {"Q2_K", -1},
    [11] = {"Q3_K", -1},      [12] = {"Q4_K", EK_Q4_K}, [13] = {"Q5_K", EK_Q5_K},
    [14] = {"Q6_K", EK_Q6_K}, [15] = {"Q8_K", -1},      [16] = {"IQ2_XXS", -1},
    [17] = {"IQ2_XS", -1},    [18] = {"IQ3_XXS", -1},   [19] = {"IQ1_S", -1},
    [20] = {"IQ4_NL", -1},    [21] = {"IQ3_S", -1},     [22] = {"IQ2_S", -1},
    [23] = {"IQ4_XS", -1},    [24] = {"I8", EK_I8},     [25] = {"I16", EK_I16},
    [26] = {"I32", EK_I32},   [27] = {"I64", EK_I64},   [28] = {"F64", EK_F64},
    [29] = {"IQ1_M", -1},     [30] = {"BF16", EK_BF16}, [34] = {"TQ1_0", -1},
    [35] = {"TQ2_0", -1},     [39] = {"MXFP4", -1},
};

static enum ek_status take_dtype(struct ek_gguf *g, struct ek_gguf_tensor *t)
{
    uint64_t type;

    EK_TRY(take(g, 4, "tensor type", &type));
    if (type >= EK_ARRAY_LEN(ggml_types) || ggml_types[type].name == NULL)
        return FAIL(g, EK_EFORMAT, "tensor '%s': unknown type %llu", t->name, LLU(type));
    if (ggml_types[type].dtype < 0)
        return FAIL(g, EK_EUNSUPPORTED, "tensor '%s': type %s is not supported", t->name,
                    ggml_types[type].name);
    t->dtype = (enum ek_dtype)ggml_types[type].dtype;
    return EK_OK;
}

static enum ek_status take_shape(struct ek_gguf *g, struct ek_gguf_tensor *t, size_t *n)
{
    uint64_t n_dims, dim;

    EK_TRY(take(g, 4, "tensor dimensions", &n_dims));
    if (n_dims < 1 || n_dims > 4)
        return FAIL(g, EK_EFORMAT, "tensor '%s': %llu dimensions, from 1 to 4 expected", t->name,
                    LLU(n_dims));
    t->n_dims = (uint32_t)n_dims;
    *n = 1;
    for (uint64_t i = 0; i < n_dims; i++) {
        EK_TRY(take(g, 8, "tensor dimension", &dim));
        if (dim == 0 || dim > INT64_MAX)
            return FAIL(g, EK_EFORMAT, "tensor '%s': dimension %llu is %lld", t->name, LLU(i),
                        (long long)dim);
        if (!ek_mul_size(*n, dim, n))
            return FAIL(g, EK_EFORMAT, "tensor '%s': its number of elements overflows", t->name);
        t->shape[n_dims - 1 - i] = dim;
    }
    return EK_OK;
}

static enum ek_status take_tensor(struct ek_gguf *g, struct ek_gguf_tensor *t)
{
    struct span name;
    size_t n, bytes;

    EK_TRY(take_name(g, "tensor name", &name));
    if ((t->name = ek_calloc(name.n + 1, 1)) == NULL)
        return EK_ENOMEM;
    memcpy(t->name, g->meta + name.at, name.n);
    EK_TRY(take_shape(g, t, &n));
    EK_TRY(take_dtype(g, t));
    EK_TRY(take(g, 8, "tensor offset", &t->offset));
    if (t->shape[t->n_dims - 1] % ek_dtype_block(t->dtype))
        return FAIL(g, EK_EFORMAT, "tensor '%s': row of %llu elements, no multiple of %s's %zu",
                    t->name, LLU(t->shape[t->n_dims - 1]), ek_dtype_name(t->dtype),
                    ek_dtype_block(t->dtype));
    if (ek_dtype_bytes(t->dtype, n, &bytes) != EK_OK)
        return FAIL(g, EK_EFORMAT, "tensor '%s': its size in bytes overflows", t->name);
    t->bytes = bytes;
    return EK_OK;
}

/* Offsets are relative and follow each other without holes, as every writer makes them. */
static enum ek_status place_tensors(struct ek_gguf *g, uint64_t alignment)
{
    uint64_t base = ek_round_up(g->at, alignment), expected = 0;

    for (size_t i = 0; i < g->n_tensors; i++) {
        struct ek_gguf_tensor *t = &g->tensors[i];
        if (t->offset != expected)
            return FAIL(g, EK_EFORMAT, "tensor '%s': offset %llu, expected %llu%s", t->name,
                        LLU(t->offset), LLU(expected),
                        t->offset % alignment ? " (misaligned)" : "");
        if (base > g->file.size || t->offset > g->file.size - base ||
            t->bytes > g->file.size - base - t->offset)
            return FAIL(g, EK_EFORMAT, "tensor '%s': ends at %llu, the file at %llu (truncated?)",
                        t->name, LLU(base + t->offset + t->bytes), LLU(g->file.size));
        expected = ek_round_up(t->offset + t->bytes, alignment);
        t->offset += base;
    }
    return EK_OK;
}

static int compare_names(const void *a, const void *b, void *tensors)
{
    const struct ek_gguf_tensor *t = tensors;

    return strcmp(t[*(const size_t *)a].name, t[*(const size_t *)b].name);
}

static enum ek_status index_tensors(struct ek_gguf *g)
{
    if ((g->by_name = ek_calloc(g->n_tensors, sizeof(*g->by_name))) == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < g->n_tensors; i++)
        g->by_name[i] = i;
    if (g->n_tensors > 1)
        qsort_r(g->by_name, g->n_tensors, sizeof(*g->by_name), compare_names, g->tensors);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (compare_names(&g->by_name[i - 1], &g->by_name[i], g->tensors) == 0)
            return FAIL(g, EK_EFORMAT, "tensor '%s' twice", g->tensors[g->by_name[i]].name);
    return EK_OK;
}

/* ---- Opening ----------------------------------------------------------------------------------*/

static enum ek_status read_header(struct ek_gguf *g)
{
    uint64_t magic, version, n_tensors, n_kvs;

    EK_TRY(take(g, 4, "magic", &magic));
    if (magic != 0x46554747u)
        return FAIL(g, EK_EFORMAT, "magic %08llx is not GGUF's", LLU(magic));
    EK_TRY(take(g, 4, "version", &version));
    if (version && (version & 0xffffu) == 0)
        return FAIL(g, EK_EUNSUPPORTED, "version %08llx: a big-endian file", LLU(version));
    if (version != 2 && version != 3)
        return FAIL(g, EK_EUNSUPPORTED, "GGUF version %llu, 2 or 3 expected", LLU(version));
    EK_TRY(take(g, 8, "number of tensors", &n_tensors));
    EK_TRY(take(g, 8, "number of keys", &n_kvs));
    if (n_tensors > TENSORS_MAX)
        return FAIL(g, EK_EFORMAT, "%llu tensors, at most %llu", LLU(n_tensors), LLU(TENSORS_MAX));
    if (n_kvs > KV_MAX)
        return FAIL(g, EK_EFORMAT, "%llu keys, at most %u", LLU(n_kvs), KV_MAX);
    /* the least that they take in the file: hostile counts allocate nothing */
    if (n_kvs * 13 + n_tensors * 33 > g->file.size)
        return FAIL(g, EK_EFORMAT, "%llu keys and %llu tensors do not fit into %llu bytes",
                    LLU(n_kvs), LLU(n_tensors), LLU(g->file.size));
    g->kvs = ek_calloc(n_kvs, sizeof(*g->kvs));
    g->tensors = ek_calloc(n_tensors, sizeof(*g->tensors));
    if (g->kvs == NULL || g->tensors == NULL)
        return EK_ENOMEM;
    g->n_kvs = n_kvs;
    g->n_tensors = n_tensors;
    return EK_OK;
}

static void terminate_strings(struct ek_gguf *g)
{
    for (size_t i = 0; i < g->n_kvs; i++)
        g->meta[g->kvs[i].key.at + g->kvs[i].key.n] = '\0';
    for (size_t i = 0; i < g->n_strings; i++)
        g->meta[g->strings[i].at + g->strings[i].n] = '\0';
}

static enum ek_status read_all(struct ek_gguf *g)
{
    uint64_t alignment = ALIGNMENT;

    EK_TRY(read_header(g));
    EK_TRY(read_kvs(g));
    for (size_t i = 0; i < g->n_tensors; i++)
        EK_TRY(take_tensor(g, &g->tensors[i]));
    terminate_strings(g);
    if (ek_gguf_has(g, "general.alignment"))
        EK_TRY(ek_gguf_u64(g, "general.alignment", 0, UINT32_MAX, &alignment));
    if (alignment == 0 || (alignment & (alignment - 1)))
        return FAIL(g, EK_EFORMAT, "general.alignment %llu is no power of two", LLU(alignment));
    EK_TRY(place_tensors(g, alignment));
    return index_tensors(g);
}

enum ek_status ek_gguf_open(const char *path, struct ek_gguf **out)
{
    struct ek_gguf *g = ek_calloc(1, sizeof(*g));
    enum ek_status st;

    if (g == NULL)
        return EK_ENOMEM;
    g->file = (struct ek_datafile)EK_DATAFILE_INIT;
    EK_GOTO(ek_datafile_open(&g->file, path), st, fail);
    EK_GOTO(read_all(g), st, fail);
    *out = g;
    return EK_OK;
fail:
    ek_gguf_close(g);
    return st;
}

void ek_gguf_close(struct ek_gguf *g)
{
    if (g == NULL)
        return;
    for (size_t i = 0; g->tensors && i < g->n_tensors; i++)
        free(g->tensors[i].name);
    ek_datafile_close(&g->file);
    free(g->meta);
    free(g->kvs);
    free(g->strings);
    free(g->tensors);
    free(g->by_name);
    free(g);
}

/* ---- Access -----------------------------------------------------------------------------------*/

const char *ek_gguf_path(const struct ek_gguf *g)
{
    return g->file.path;
}

size_t ek_gguf_n_tensors(const struct ek_gguf *g)
{
    return g->n_tensors;
}

const struct ek_gguf_tensor *ek_gguf_tensor_at(const struct ek_gguf *g, size_t i)
{
    return &g->tensors[i];
}

const struct ek_gguf_tensor *ek_gguf_tensor_find(const struct ek_gguf *g, const char *name)
{
    size_t lo = 0, hi = g->n_tensors;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, g->tensors[g->by_name[mid]].name);
        if (c == 0)
            return &g->tensors[g->by_name[mid]];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

static const struct kv *find(const struct ek_gguf *g, const char *key)
{
    size_t lo = 0, hi = g->n_kvs, n = strlen(key);

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = compare_span(g, g->kvs[mid].key, key, n);
        if (c == 0)
            return &g->kvs[mid];
        if (c > 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

bool ek_gguf_has(const struct ek_gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

static const char *type_name(enum ek_gguf_type type)
{
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return names[type];
}

/* The value of a key, an array or a scalar as asked for. */
static enum ek_status lookup(const struct ek_gguf *g, const char *key, bool array,
                             const struct kv **out)
{
    const struct kv *kv = find(g, key);

    if (kv == NULL)
        return FAIL(g, EK_EFORMAT, "key '%s' is missing", key);
    if ((kv->type == EK_GGUF_ARRAY) != array)
        return FAIL(g, EK_EFORMAT, "key '%s': %s where %s is expected", key, type_name(kv->type),
                    array ? "an array" : "one value");
    *out = kv;
    return EK_OK;
}

static enum ek_status wrong_type(const struct ek_gguf *g, const char *key, const struct kv *kv,
                                 const char *want)
{
    return FAIL(g, EK_EFORMAT, "key '%s': %s where %s is expected", key, type_name(kv->item), want);
}

/* Item i as a signed number; u64 above INT64_MAX is refused as out of range. */
static enum ek_status integer(const struct ek_gguf *g, const char *key, const struct kv *kv,
                              uint64_t i, int64_t *out)
{
    size_t n = type_bytes(kv->item);
    uint64_t raw;

    if (n == 0 || kv->item == EK_GGUF_F32 || kv->item == EK_GGUF_F64 || kv->item == EK_GGUF_BOOL)
        return wrong_type(g, key, kv, "a whole number");
    raw = load_le(g->meta + kv->at + i * n, n);
    switch (kv->item) {
    case EK_GGUF_I8:
        *out = (int8_t)raw;
        break;
    case EK_GGUF_I16:
        *out = (int16_t)raw;
        break;
    case EK_GGUF_I32:
        *out = (int32_t)raw;
        break;
    default:
        if (kv->item == EK_GGUF_U64 && raw > INT64_MAX)
            return FAIL(g, EK_EFORMAT, "key '%s': %llu is too large", key, LLU(raw));
        *out = (int64_t)raw;
    }
    return EK_OK;
}

enum ek_status ek_gguf_u64(const struct ek_gguf *g, const char *key, uint64_t min, uint64_t max,
                           uint64_t *out)
{
    const struct kv *kv = NULL;
    int64_t v;

    EK_TRY(lookup(g, key, false, &kv));
    EK_TRY(integer(g, key, kv, 0, &v));
    if (v < 0 || (uint64_t)v < min || (uint64_t)v > max)
        return FAIL(g, EK_EFORMAT, "key '%s' must be from %llu to %llu, got %lld", key, LLU(min),
                    LLU(max), (long long)v);
    *out = (uint64_t)v;
    return EK_OK;
}

enum ek_status ek_gguf_real(const struct ek_gguf *g, const char *key, double *out)
{
    const struct kv *kv = NULL;
    uint64_t raw;
    double d;

    EK_TRY(lookup(g, key, false, &kv));
    if (kv->item != EK_GGUF_F32 && kv->item != EK_GGUF_F64) {
        int64_t v;
        EK_TRY(integer(g, key, kv, 0, &v));
        *out = (double)v;
        return EK_OK;
    }
    raw = load_le(g->meta + kv->at, type_bytes(kv->item));
    if (kv->item == EK_GGUF_F32) {
        uint32_t bits = (uint32_t)raw;
        float f;
        memcpy(&f, &bits, sizeof(f));
        d = f;
    } else {
        memcpy(&d, &raw, sizeof(d));
    }
    if (!isfinite(d))
        return FAIL(g, EK_EFORMAT, "key '%s' is not a finite number", key);
    *out = d;
    return EK_OK;
}

enum ek_status ek_gguf_bool(const struct ek_gguf *g, const char *key, bool *out)
{
    const struct kv *kv = NULL;
    unsigned char raw;

    EK_TRY(lookup(g, key, false, &kv));
    if (kv->item != EK_GGUF_BOOL)
        return wrong_type(g, key, kv, "a bool");
    raw = (unsigned char)g->meta[kv->at];
    if (raw > 1)
        return FAIL(g, EK_EFORMAT, "key '%s': bool of value %u", key, raw);
    *out = raw;
    return EK_OK;
}

static void string_at(const struct ek_gguf *g, const struct kv *kv, uint64_t i, const char **s,
                      size_t *n)
{
    struct span span = g->strings[kv->first + i];

    *s = g->meta + span.at;
    *n = span.n;
}

enum ek_status ek_gguf_string(const struct ek_gguf *g, const char *key, const char **s, size_t *n)
{
    const struct kv *kv = NULL;

    EK_TRY(lookup(g, key, false, &kv));
    if (kv->item != EK_GGUF_STRING)
        return wrong_type(g, key, kv, "a string");
    string_at(g, kv, 0, s, n);
    return EK_OK;
}

enum ek_status ek_gguf_array(const struct ek_gguf *g, const char *key, enum ek_gguf_type *type,
                             size_t *n)
{
    const struct kv *kv = NULL;

    EK_TRY(lookup(g, key, true, &kv));
    *type = kv->item;
    *n = kv->n;
    return EK_OK;
}

static enum ek_status array_item(const struct ek_gguf *g, const char *key, size_t i,
                                 const struct kv **out)
{
    EK_TRY(lookup(g, key, true, out));
    if (i >= (*out)->n)
        return FAIL(g, EK_EFORMAT, "key '%s': item %zu of %llu", key, i, LLU((*out)->n));
    return EK_OK;
}

enum ek_status ek_gguf_array_string(const struct ek_gguf *g, const char *key, size_t i,
                                    const char **s, size_t *n)
{
    const struct kv *kv = NULL;

    EK_TRY(array_item(g, key, i, &kv));
    if (kv->item != EK_GGUF_STRING)
        return wrong_type(g, key, kv, "strings");
    string_at(g, kv, i, s, n);
    return EK_OK;
}

enum ek_status ek_gguf_array_i64(const struct ek_gguf *g, const char *key, size_t i, int64_t *out)
{
    const struct kv *kv = NULL;

    EK_TRY(array_item(g, key, i, &kv));
    return integer(g, key, kv, i, out);
}

enum ek_status ek_gguf_cache(const struct ek_gguf *g, bool in)
{
    return ek_datafile_cache(&g->file, in);
}

enum ek_status ek_gguf_read(const struct ek_gguf *g, uint64_t offset, uint64_t n, void *dst)
{
    return ek_datafile_read(&g->file, offset, n, dst);
}
