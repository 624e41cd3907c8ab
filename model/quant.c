/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantised matrices: which tensors of the files make one up, and which type it is read as. A
 * matrix of groups of whole blocks of at least 32 inputs keeps its size: where the groups do not
 * follow each other along the row, its columns are read in the groups' order, which the tensor
 * tells. Any other (odd widths and groups) is decoded as it is read.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

#define LLU(x) ((unsigned long long)(x))

/* Matrices of layers that methods quantise; the router is never one. */
static bool is_linear(enum ek_role role)
{
    switch (role) {
    case EK_ROLE_Q:
    case EK_ROLE_K:
    case EK_ROLE_V:
    case EK_ROLE_O:
    case EK_ROLE_GATE:
    case EK_ROLE_UP:
    case EK_ROLE_DOWN:
    case EK_ROLE_Q_A:
    case EK_ROLE_Q_B:
    case EK_ROLE_KV_A:
    case EK_ROLE_KV_B:
    case EK_ROLE_EXPERT_GATE:
    case EK_ROLE_EXPERT_UP:
    case EK_ROLE_EXPERT_DOWN:
    case EK_ROLE_SHARED_GATE:
    case EK_ROLE_SHARED_UP:
    case EK_ROLE_SHARED_DOWN:
        return true;
    default:
        return false;
    }
}

/* Matrices whose columns may be in another order than their inputs: those of plain products. */
static bool may_order(enum ek_role role)
{
    return is_linear(role) && role != EK_ROLE_KV_B && role != EK_ROLE_EXPERT_GATE &&
           role != EK_ROLE_EXPERT_UP && role != EK_ROLE_EXPERT_DOWN;
}

/* The type with the longest block that divides the row and its groups; fallback: none does. */
static enum ek_dtype group_type(enum ek_dtype of32, uint64_t cols, uint64_t group,
                                enum ek_dtype fallback)
{
    for (int i = 2; i >= 0; i--) {
        uint64_t n = 32u << i;
        if (cols % n == 0 && (group % n == 0 || group == cols))
            return (enum ek_dtype)(of32 + i);
    }
    return fallback;
}

static enum ek_status set_type(const struct ek_model *m, struct ek_tensor *t, enum ek_dtype dtype)
{
    size_t row, bytes;

    EK_TRY(ek_dtype_bytes(dtype, t->shape[1], &row));
    if (!ek_mul_size(row, t->shape[0], &bytes))
        return ek_error(EK_EFORMAT, "%s: tensor '%s': its size overflows", m->path, t->name);
    t->dtype = dtype;
    t->bytes = bytes;
    return EK_OK;
}

/* ---- Parts ------------------------------------------------------------------------------------*/

struct want { /* a part as it must be in the files */
    enum ek_quant_part_kind kind;
    const char *suffix;  /* instead of ".weight" */
    uint64_t rows, cols; /* cols 0: a vector */
    bool optional;
};

static const struct ek_safetensors_entry *find(struct ek_model *m, const struct ek_tensor *t,
                                               const char *suffix, int32_t *file)
{
    size_t stem = strlen(t->name) - strlen(".weight");
    char *name = ek_arena_printf(&m->files->arena, "%.*s%s", (int)stem, t->name, suffix);

    return name ? ek_shards_find(m->files, name, file) : NULL;
}

static bool is_type(enum ek_quant_method method, enum ek_quant_part_kind kind, enum ek_dtype t)
{
    if (method == EK_QUANT_FP8)
        return t == (kind == EK_PART_WEIGHTS ? EK_F8_E4M3 : EK_F32);
    return kind == EK_PART_SCALES ? t == EK_F16 || t == EK_BF16 : t == EK_I32;
}

static enum ek_status take_part(struct ek_model *m, const struct ek_tensor *t, struct ek_quant *q,
                                const struct want *w)
{
    struct ek_quant_part *p = &q->parts[w->kind];
    const struct ek_safetensors_entry *e = find(m, t, w->suffix, &p->file);

    if (e == NULL && w->optional)
        return EK_OK;
    if (e == NULL)
        return ek_error(EK_EFORMAT, "%s: tensor '%s' is quantised, but has no '%s'", m->path,
                        t->name, w->suffix + 1);
    if (!is_type(q->method, w->kind, e->dtype))
        return ek_error(EK_EUNSUPPORTED, "%s: tensor '%s': dtype %s is not supported here", m->path,
                        e->name, ek_dtype_name(e->dtype));
    if (e->n_dims != (w->cols ? 2 : 1) || e->shape[0] != w->rows ||
        (w->cols && e->shape[1] != w->cols))
        return ek_error(EK_EFORMAT,
                        "%s: tensor '%s' is %u-dimensional [%llu, %llu] in the file, [%llu, %llu] "
                        "by the configuration",
                        m->path, e->name, e->n_dims, LLU(e->n_dims > 0 ? e->shape[0] : 0),
                        LLU(e->n_dims > 1 ? e->shape[1] : 0), LLU(w->rows), LLU(w->cols));
    p->name = e->name;
    p->offset = e->offset;
    p->dtype = e->dtype;
    p->cols = w->cols ? w->cols : w->rows;
    return EK_OK;
}

static enum ek_status take_parts(struct ek_model *m, const struct ek_tensor *t, struct ek_quant *q)
{
    uint64_t out = t->shape[0], in = t->shape[1], per = 32 / (q->bits ? q->bits : 32);
    uint64_t blocks = q->block ? (out + q->block - 1) / q->block : 0;
    const struct want gptq[] = {{EK_PART_WEIGHTS, ".qweight", in / per, out, false},
                                {EK_PART_ZEROS, ".qzeros", q->groups, out / per, false},
                                {EK_PART_SCALES, ".scales", q->groups, out, false},
                                {EK_PART_GROUPS, ".g_idx", in, 0, true}};
    const struct want awq[] = {{EK_PART_WEIGHTS, ".qweight", in, out / per, false},
                               {EK_PART_ZEROS, ".qzeros", q->groups, out / per, false},
                               {EK_PART_SCALES, ".scales", q->groups, out, false}};
    const struct want fp8[] = {{EK_PART_WEIGHTS, ".weight", out, in, false},
                               {EK_PART_SCALES, ".weight_scale_inv", blocks, q->groups, false}};
    const struct want *w = q->method == EK_QUANT_GPTQ  ? gptq
                           : q->method == EK_QUANT_AWQ ? awq
                                                       : fp8;
    size_t n = q->method == EK_QUANT_GPTQ ? 4 : q->method == EK_QUANT_AWQ ? 3 : 2;

    if (q->method != EK_QUANT_FP8 && (out % per || (q->method == EK_QUANT_GPTQ && in % per)))
        return ek_error(EK_EFORMAT, "%s: tensor '%s': [%llu, %llu] are not whole words of %llu",
                        m->path, t->name, LLU(out), LLU(in), LLU(per));
    for (size_t i = 0; i < n; i++)
        EK_TRY(take_part(m, t, q, &w[i]));
    return EK_OK;
}

/* g_idx is kept where it is not i / group. */
static enum ek_status read_groups(struct ek_model *m, struct ek_quant *q)
{
    const struct ek_quant_part *p = &q->parts[EK_PART_GROUPS];
    bool plain = true;
    int32_t *g;

    if (p->name == NULL)
        return EK_OK;
    if ((g = ek_arena_alloc(&m->files->arena, p->cols, sizeof(*g))) == NULL)
        return EK_ENOMEM;
    EK_TRY(ek_safetensors_pread(m->files->shards[p->file], p->offset, p->cols * sizeof(*g), g));
    for (uint64_t i = 0; i < p->cols; i++) {
        if (g[i] < 0 || (uint64_t)g[i] >= q->groups)
            return ek_error(EK_EFORMAT, "%s: tensor '%s': group %d of input %llu, there are %llu",
                            m->path, p->name, g[i], LLU(i), LLU(q->groups));
        plain = plain && (uint64_t)g[i] == i / q->group;
    }
    if (!plain)
        q->group_of = g;
    return EK_OK;
}

/* ---- Types ------------------------------------------------------------------------------------*/

static void set_method(const struct ek_config *c, const struct ek_tensor *t, struct ek_quant *q)
{
    q->method = c->quant;
    q->bits = c->quant_bits;
    q->group = c->quant_group ? c->quant_group : t->shape[1];
    q->groups = (t->shape[1] + q->group - 1) / q->group;
    q->block = c->quant_block;
    q->zero_add = c->quant == EK_QUANT_GPTQ && !c->quant_v2;
}

static enum ek_dtype type_of(const struct ek_tensor *t, const struct ek_quant *q)
{
    enum ek_dtype plain = q->parts[EK_PART_SCALES].name ? q->parts[EK_PART_SCALES].dtype : EK_F16;

    if (q->method == EK_QUANT_FP8)
        return group_type(EK_B8_32, t->shape[1], q->group, EK_F32);
    return group_type(q->bits == 4 ? EK_G4_32 : EK_G8_32, t->shape[1], q->group, plain);
}

/* first[g]: inputs in groups before g; the greatest common divisor of the groups' sizes. */
static uint64_t count_groups(const struct ek_quant *q, uint64_t inputs, uint32_t *first)
{
    uint64_t common = 0;

    for (uint64_t i = 0; i < inputs; i++)
        first[q->group_of[i] + 1]++;
    for (uint64_t g = 0; g < q->groups; g++) {
        uint64_t a = first[g + 1], b;
        for (; common; common = b) {
            b = a % common;
            a = common;
        }
        common = a;
        first[g + 1] += first[g];
    }
    return common;
}

/* The type of a matrix with group_of, and its columns' order: by group, inputs of one in their own
 * order. */
static enum ek_status set_ordered(struct ek_model *m, struct ek_tensor *t, struct ek_quant *q)
{
    enum ek_dtype plain = q->parts[EK_PART_SCALES].dtype, dtype = plain;
    uint32_t *first = ek_calloc(q->groups + 1, sizeof(*first));
    int32_t *order = ek_arena_alloc(&m->files->arena, t->shape[1], sizeof(*order));
    uint64_t common;
    enum ek_status st = first && order ? EK_OK : EK_ENOMEM;

    if (st == EK_OK && may_order(t->role)) {
        common = count_groups(q, t->shape[1], first);
        dtype = group_type(q->bits == 4 ? EK_G4_32 : EK_G8_32, common, common, plain);
    }
    if (st == EK_OK && dtype != plain) {
        for (uint64_t i = 0; i < t->shape[1]; i++)
            order[first[q->group_of[i]]++] = (int32_t)i;
        t->order = order;
    }
    free(first);
    return st == EK_OK ? set_type(m, t, dtype) : st;
}

static bool is_packed(struct ek_model *m, const struct ek_tensor *t)
{
    const struct ek_safetensors_entry *e;
    int32_t file;

    if (m->config.quant != EK_QUANT_FP8)
        return find(m, t, ".qweight", &file) != NULL;
    e = ek_shards_find(m->files, t->name, &file);
    return e && e->dtype == EK_F8_E4M3;
}

enum ek_status ek_quant_bind(struct ek_model *m, struct ek_tensor *t, bool *bound)
{
    struct ek_quant *q;

    *bound = false;
    if (m->config.quant == EK_QUANT_NONE || !(is_linear(t->role) || t->role == EK_ROLE_HEAD) ||
        !is_packed(m, t))
        return EK_OK;
    if ((q = ek_arena_alloc(&m->files->arena, 1, sizeof(*q))) == NULL)
        return EK_ENOMEM;
    set_method(&m->config, t, q);
    EK_TRY(take_parts(m, t, q));
    EK_TRY(read_groups(m, q));
    EK_TRY(q->group_of ? set_ordered(m, t, q) : set_type(m, t, type_of(t, q)));
    t->file = q->parts[EK_PART_WEIGHTS].file;
    t->offset = q->parts[EK_PART_WEIGHTS].offset;
    t->quant = q;
    *bound = true;
    return EK_OK;
}

static enum ek_status assign(struct ek_model *m, struct ek_tensor *t)
{
    struct ek_quant q = {.method = EK_QUANT_NONE};
    enum ek_dtype dtype;
    int32_t *order;

    set_method(&m->config, t, &q);
    dtype = type_of(t, &q);
    if (dtype < EK_G4_32)
        return EK_OK;
    if (m->config.quant_act && q.groups > 1 && may_order(t->role)) {
        if ((order = ek_arena_alloc(&m->files->arena, t->shape[1], sizeof(*order))) == NULL)
            return EK_ENOMEM;
        for (uint64_t i = 0; i < t->shape[1]; i++)
            order[i] = (int32_t)i; /* any costs the same */
        t->order = order;
    }
    return set_type(m, t, dtype);
}

enum ek_status ek_quant_assign(struct ek_model *m)
{
    for (size_t i = 0; m->config.quant != EK_QUANT_NONE && i < m->n_modules; i++)
        for (size_t j = 0; j < m->modules[i].n_tensors; j++)
            if (is_linear(m->modules[i].tensors[j].role))
                EK_TRY(assign(m, &m->modules[i].tensors[j]));
    return EK_OK;
}

/* ---- At load ----------------------------------------------------------------------------------*/

static enum ek_status quantise_tensor(struct ek_model *m, struct ek_tensor *t, uint32_t bits,
                                      size_t *n)
{
    enum ek_dtype dtype =
        group_type(bits == 4 ? EK_G4_32 : EK_G8_32, t->shape[1], t->shape[1], t->dtype);
    struct ek_tensor *source;
    struct ek_quant *q;

    if ((t->dtype != EK_F32 && t->dtype != EK_F16 && t->dtype != EK_BF16) || dtype == t->dtype)
        return EK_OK;
    source = ek_arena_alloc(&m->files->arena, 1, sizeof(*source));
    q = ek_arena_alloc(&m->files->arena, 1, sizeof(*q));
    if (source == NULL || q == NULL)
        return EK_ENOMEM;
    *source = *t;
    q->bits = bits;
    q->source = source;
    t->quant = q;
    ++*n;
    return set_type(m, t, dtype);
}

enum ek_status ek_quantize_parse(const char *text, uint32_t *bits)
{
    const char *ends = text ? strstr(text, "+ends") : NULL;
    size_t n = ends && strcmp(ends, "+ends") == 0 ? (size_t)(ends - text) : text ? strlen(text) : 0;

    *bits = 0;
    if (text == NULL)
        return EK_OK;
    if (n == 4 && (memcmp(text, "int4", 4) == 0 || memcmp(text, "int8", 4) == 0))
        *bits = (text[3] == '4' ? 4 : 8) | (text[n] ? EK_QUANTIZE_ENDS : 0);
    return *bits
               ? EK_OK
               : ek_error(EK_EUSAGE,
                          "--quantize: '%s' is none of int8, int4, int8+ends and int4+ends", text);
}

static bool is_end(enum ek_role role)
{
    return role == EK_ROLE_EMBED || role == EK_ROLE_HEAD;
}

enum ek_status ek_quant_at_load(struct ek_model *m, uint32_t bits)
{
    bool ends = bits & EK_QUANTIZE_ENDS;
    size_t n = 0;

    bits &= ~EK_QUANTIZE_ENDS;
    if (bits == 0)
        return EK_OK;
    if (bits != 4 && bits != 8)
        return ek_error(EK_EUSAGE, "quantising to %u bits: 4 and 8 are supported", bits);
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; j < m->modules[i].n_tensors; j++)
            if (is_linear(m->modules[i].tensors[j].role) ||
                (ends && is_end(m->modules[i].tensors[j].role)))
                EK_TRY(quantise_tensor(m, &m->modules[i].tensors[j], bits, &n));
    if (n == 0)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: nothing to quantise: no linear layer is F32, F16 or BF16 with a "
                        "multiple of 32 inputs",
                        m->path);
    return EK_OK;
}
