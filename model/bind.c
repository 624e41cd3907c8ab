/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds every tensor that the configuration asks for in the checkpoint's files, and refuses those
 * that are missing, of another shape, or that the family would not use: leaving a bias out would
 * be a wrong answer, not an error.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

struct found { /* one form for both kinds of file */
    enum ek_dtype dtype;
    uint32_t n_dims;
    const uint64_t *shape;
    uint64_t offset, bytes;
    int32_t file;
};

#define SHAPE_LEN 96

static const char *shape_text(const uint64_t *shape, uint32_t n, char buf[SHAPE_LEN])
{
    int at = snprintf(buf, SHAPE_LEN, "[");

    for (uint32_t i = 0; i < n && at < SHAPE_LEN - 24; i++)
        at += snprintf(buf + at, SHAPE_LEN - (size_t)at, "%s%llu", i ? ", " : "",
                       (unsigned long long)shape[i]);
    snprintf(buf + at, SHAPE_LEN - (size_t)at, "]");
    return buf;
}

/* Name in a GGUF of a tensor of a module. */
static void gguf_name(const struct ek_module *mod, const struct ek_tensor *t, char *buf, size_t n)
{
    const struct ek_tensor_rule *r = ek_layer_rules;

    switch (mod->kind) {
    case EK_MODULE_EMBED:
        snprintf(buf, n, "token_embd.weight");
        return;
    case EK_MODULE_NORM:
        snprintf(buf, n, "output_norm.weight");
        return;
    case EK_MODULE_HEAD:
        snprintf(buf, n, mod->tied_to >= 0 ? "token_embd.weight" : "output.weight");
        return;
    default:
        while (r->name && r->role != t->role)
            r++;
        snprintf(buf, n, "blk.%d.%s", mod->layer, r->gguf ? r->gguf : "?");
    }
}

/* Of all experts' matrices in one tensor, that of one. */
static void take_expert(const struct ek_model *m, int32_t index, struct found *f)
{
    if (f->n_dims != 3 || f->shape[0] != m->config.n_experts)
        return; /* its shape will be refused */
    f->bytes /= f->shape[0];
    f->offset += f->bytes * (uint32_t)index;
    f->shape++;
    f->n_dims--;
}

static bool find_tensor(const struct ek_model *m, const struct ek_module *mod,
                        const struct ek_tensor *t, struct found *out)
{
    const struct ek_safetensors_entry *e;
    const struct ek_gguf_tensor *g;
    char name[128];

    if (m->files->gguf) {
        gguf_name(mod, t, name, sizeof(name));
        g = ek_gguf_tensor_find(m->files->gguf, name);
        if (g)
            *out = (struct found){g->dtype, g->n_dims, g->shape, g->offset, g->bytes, 0};
        if (g && t->index >= 0)
            take_expert(m, t->index, out);
        return g != NULL;
    }
    e = ek_shards_find(m->files, t->name, &out->file);
    if (e)
        *out = (struct found){e->dtype, e->n_dims, e->shape, e->offset, e->bytes, out->file};
    return e != NULL;
}

static bool is_weight_type(enum ek_dtype t)
{
    return t == EK_F32 || t == EK_F16 || t == EK_BF16 || t >= EK_Q4_0;
}

static enum ek_status bind_tensor(struct ek_model *m, const struct ek_module *mod,
                                  struct ek_tensor *t)
{
    char want[SHAPE_LEN], got[SHAPE_LEN];
    struct found f = {.file = -1};

    if (!find_tensor(m, mod, t, &f))
        return ek_error(EK_EFORMAT, "%s: tensor '%s' %s is missing", m->path, t->name,
                        shape_text(t->shape, t->n_dims, want));
    if (f.n_dims != t->n_dims || memcmp(f.shape, t->shape, f.n_dims * sizeof(*f.shape)) != 0)
        return ek_error(EK_EFORMAT, "%s: tensor '%s' is %s in the file, %s by the configuration",
                        m->path, t->name, shape_text(f.shape, f.n_dims, got),
                        shape_text(t->shape, t->n_dims, want));
    if (!is_weight_type(f.dtype))
        return ek_error(EK_EUNSUPPORTED, "%s: tensor '%s': dtype %s is not supported for weights",
                        m->path, t->name, ek_dtype_name(f.dtype));
    t->dtype = f.dtype;
    t->bytes = f.bytes;
    t->offset = f.offset;
    t->file = f.file;
    return EK_OK;
}

static uint32_t permuted_heads(const struct ek_config *c, enum ek_role role)
{
    if (role == EK_ROLE_Q || role == EK_ROLE_Q_BIAS)
        return c->n_heads;
    if (role == EK_ROLE_K || role == EK_ROLE_K_BIAS)
        return c->n_kv_heads;
    return 0;
}

/* ---- Tensors that nobody asked for ------------------------------------------------------------*/

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Tables that old savers wrote, GGUF's rope factors (read with the configuration), and the copy
 * that some keep of a tied head. */
static bool may_be_left(const struct ek_model *m, const char *name)
{
    const struct ek_module *head = &m->modules[m->n_modules - 1];
    size_t n = strlen(head->name);

    if (ek_ends_with(name, ".rotary_emb.inv_freq") || strcmp(name, "rope_freqs.weight") == 0)
        return true;
    return head->tied_to >= 0 && strncmp(name, head->name, n) == 0 &&
           strcmp(name + n, ".weight") == 0;
}

static size_t n_in_files(const struct ek_model_files *f)
{
    size_t n = 0;

    if (f->gguf)
        return ek_gguf_n_tensors(f->gguf);
    for (size_t i = 0; i < f->n_shards; i++)
        n += ek_safetensors_count(f->shards[i]);
    return n;
}

static const char *name_in_files(const struct ek_model_files *f, size_t i)
{
    size_t shard = 0;

    if (f->gguf)
        return ek_gguf_tensor_at(f->gguf, i)->name;
    while (i >= ek_safetensors_count(f->shards[shard]))
        i -= ek_safetensors_count(f->shards[shard++]);
    return ek_safetensors_at(f->shards[shard], i)->name;
}

/* Names, as the files spell them, of all that the modules use; sorted. */
static enum ek_status used_names(const struct ek_model *m, struct ek_arena *scratch,
                                 const char ***out, size_t *n_out)
{
    size_t n = 0;
    const char **names;

    for (size_t i = 0; i < m->n_modules; i++)
        n += m->modules[i].n_tensors * EK_QUANT_PARTS;
    if ((names = ek_arena_alloc(scratch, n, sizeof(*names))) == NULL)
        return EK_ENOMEM;
    n = 0;
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; j < m->modules[i].n_tensors; j++) {
            const struct ek_quant *q = m->modules[i].tensors[j].quant;
            char buf[128];
            names[n] = m->modules[i].tensors[j].name;
            for (int k = 0; q && k < EK_QUANT_PARTS; k++)
                if (q->parts[k].name)
                    names[n++] = q->parts[k].name;
            if (q)
                continue;
            if (m->files->gguf) {
                gguf_name(&m->modules[i], &m->modules[i].tensors[j], buf, sizeof(buf));
                names[n] = ek_arena_printf(scratch, "%s", buf);
            }
            if (names[n++] == NULL)
                return EK_ENOMEM;
        }
    qsort(names, n, sizeof(*names), compare_names);
    *out = names;
    *n_out = n;
    return EK_OK;
}

static enum ek_status refuse_leftovers(const struct ek_model *m)
{
    struct ek_arena scratch = {0};
    const char **used = NULL;
    size_t n_used = 0;
    enum ek_status st = used_names(m, &scratch, &used, &n_used);

    for (size_t i = 0; st == EK_OK && i < n_in_files(m->files); i++) {
        const char *name = name_in_files(m->files, i);
        if (!bsearch(&name, used, n_used, sizeof(*used), compare_names) && !may_be_left(m, name))
            st = ek_error(EK_EUNSUPPORTED, "%s: tensor '%s' is not one that %s has", m->path, name,
                          m->config.architecture);
    }
    ek_arena_free(&scratch);
    return st;
}

/* Unused tensors may be absent: they are then left out. */
static enum ek_status bind_module(struct ek_model *m, const struct ek_family *family,
                                  struct ek_module *mod)
{
    struct found f;
    bool quantised = false;
    size_t kept = 0;

    for (size_t i = 0; i < mod->n_tensors; i++) {
        struct ek_tensor t = mod->tensors[i];
        if (t.role == EK_ROLE_UNUSED && !find_tensor(m, mod, &t, &f))
            continue;
        EK_TRY(m->files->gguf ? ek_heads_bind(m, mod->layer, &t, &quantised)
                              : ek_quant_bind(m, &t, &quantised));
        if (!quantised)
            EK_TRY(bind_tensor(m, mod, &t));
        if (m->files->gguf && family->gguf_permuted && mod->kind == EK_MODULE_LAYER)
            t.unpermute_heads = permuted_heads(&m->config, t.role);
        mod->tensors[kept++] = t;
    }
    mod->n_tensors = kept;
    return EK_OK;
}

enum ek_status ek_tensors_bind(struct ek_model *m, const struct ek_family *family)
{
    for (size_t i = 0; i < m->n_modules; i++)
        EK_TRY(bind_module(m, family, &m->modules[i]));
    return refuse_leftovers(m);
}
