/* SPDX-License-Identifier: Apache-2.0
 *
 * A vision tower as one module (as built), or as a prefix of the chain: what makes patches rows,
 * every block, what comes behind the last block. Only modules change, never tensors: the model's
 * hash stays.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

size_t ek_module_tower_length(const struct ek_module *mod)
{
    size_t n = strlen(mod->name), dots = 0;

    if (mod->kind == EK_MODULE_BLOCK)
        dots = 2; /* TOWER.blocks.N */
    else if (mod->kind == EK_MODULE_PATCHES || mod->kind == EK_MODULE_MERGER)
        dots = 1;
    while (dots > 0 && n > 0)
        dots -= mod->name[--n] == '.';
    return n;
}

static size_t find_kind(const struct ek_model *m, enum ek_module_kind kind)
{
    size_t i = 0;

    while (i < m->n_modules && m->modules[i].kind != kind)
        i++;
    return i;
}

/* Which part a tensor of the tower is of: 0, 1 + its block, or behind the last block. */
static uint32_t part_of(const struct ek_config *c, const char *rest)
{
    if (strncmp(rest, "blocks.", 7) == 0)
        return 1 + (uint32_t)strtoul(rest + 7, NULL, 10);
    if (strncmp(rest, "patch_embed.", 12) == 0 || strcmp(rest, "pos_embed") == 0)
        return 0;
    return c->vision_layers + 1;
}

static char *part_name(struct ek_model *m, const char *tower, uint32_t part)
{
    const struct ek_config *c = &m->config;
    struct ek_arena *a = &m->files->arena;

    if (part == 0)
        return ek_arena_printf(a, "%s.patch_embed", tower);
    if (part <= c->vision_layers)
        return ek_arena_printf(a, "%s.blocks.%u", tower, part - 1);
    return ek_arena_printf(a, "%s.%s", tower, c->vision == EK_VISION_QWEN25 ? "merger" : "norm");
}

static enum ek_module_kind part_kind(const struct ek_config *c, uint32_t part)
{
    if (part == 0)
        return EK_MODULE_PATCHES;
    return part <= c->vision_layers ? EK_MODULE_BLOCK : EK_MODULE_MERGER;
}

/* Every part's tensors, in their order, copied out of the tower's. */
static enum ek_status fill_part(struct ek_model *m, const struct ek_module *tower, uint32_t part,
                                struct ek_module *out)
{
    const struct ek_config *c = &m->config;
    size_t skip = strlen(tower->name) + 1, n = 0;

    for (size_t i = 0; i < tower->n_tensors; i++)
        n += part_of(c, tower->tensors[i].name + skip) == part;
    *out =
        (struct ek_module){.name = part_name(m, tower->name, part),
                           .kind = part_kind(c, part),
                           .layer = -1,
                           .tied_to = -1,
                           .tensors = ek_arena_alloc(&m->files->arena, n, sizeof(*out->tensors))};
    if (out->name == NULL || out->tensors == NULL)
        return EK_ENOMEM;
    if (out->kind == EK_MODULE_BLOCK)
        out->layer = (int32_t)part - 1;
    for (size_t i = 0; i < tower->n_tensors; i++)
        if (part_of(c, tower->tensors[i].name + skip) == part) {
            struct ek_tensor *t = &out->tensors[out->n_tensors++];
            *t = tower->tensors[i];
            t->index = -1; /* the module's name says which block it is */
        }
    return EK_OK;
}

/* Vectors, which stay side modules, then the parts, then everything behind the tower. */
static enum ek_status regroup(struct ek_model *m, size_t tower, struct ek_module *out, size_t *n)
{
    uint32_t parts = m->config.vision_layers + 2;

    for (size_t i = 0; i < m->n_modules; i++)
        if (m->modules[i].kind == EK_MODULE_VECTOR)
            out[(*n)++] = m->modules[i];
    for (uint32_t i = 0; i < parts; i++)
        EK_TRY(fill_part(m, &m->modules[tower], i, &out[(*n)++]));
    for (size_t i = 0; i < m->n_modules; i++)
        if (i != tower && m->modules[i].kind != EK_MODULE_VECTOR) {
            out[*n] = m->modules[i];
            out[(*n)++].side = false;
        }
    return EK_OK;
}

enum ek_status ek_model_cut_tower(struct ek_model *m)
{
    size_t tower = find_kind(m, EK_MODULE_VISION), n = 0;
    struct ek_module *modules;
    enum ek_status st;

    if (find_kind(m, EK_MODULE_BLOCK) < m->n_modules)
        return EK_OK;
    if (tower == m->n_modules)
        return ek_error(EK_EUNSUPPORTED, "%s has no vision tower that could be cut", m->name);
    modules = ek_calloc(m->n_modules + m->config.vision_layers + 1, sizeof(*modules));
    if (modules == NULL)
        return EK_ENOMEM;
    if ((st = regroup(m, tower, modules, &n)) != EK_OK) {
        free(modules);
        return st;
    }
    free(m->modules);
    m->modules = modules;
    m->n_modules = n;
    for (size_t i = 0; i < n; i++) /* the head, behind the embedding */
        if (modules[i].tied_to >= 0)
            modules[i].tied_to = (int32_t)find_kind(m, EK_MODULE_EMBED);
    EK_TRY(ek_modules_sum(m));
    return ek_modules_sign(m);
}
