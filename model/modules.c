/* SPDX-License-Identifier: Apache-2.0
 *
 * Configuration -> modules in execution order, each with its tensors: side modules first (tower,
 * projector, vectors), then the chain from the embedding to the head.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

struct builder {
    struct ek_model *m;
    struct ek_arena *arena;
    const struct ek_spelling *spelling;
};

static enum ek_status overflow(const struct ek_model *m, const char *name)
{
    return ek_error(EK_EFORMAT, "%s: tensor '%s': its size overflows", m->path, name);
}

/* ---- Tensors ----------------------------------------------------------------------------------*/

static enum ek_status set_bytes(const struct ek_model *m, struct ek_tensor *t)
{
    size_t n = 1, bytes;

    for (uint32_t i = 0; i < t->n_dims; i++)
        if (!ek_mul_size(n, t->shape[i], &n))
            return overflow(m, t->name);
    if (ek_dtype_bytes(t->dtype, n, &bytes) != EK_OK)
        return overflow(m, t->name);
    t->bytes = bytes;
    return EK_OK;
}

static enum ek_status add_tensor(struct builder *b, struct ek_module *mod,
                                 const struct ek_tensor_rule *rule, int32_t index, const char *name)
{
    struct ek_tensor *t = &mod->tensors[mod->n_tensors];
    const struct ek_config *c = &b->m->config;

    *t = (struct ek_tensor){
        .name = name, .role = rule->role, .index = index, .dtype = c->dtype, .file = -1};
    if (t->name == NULL)
        return EK_ENOMEM;
    while (t->n_dims < EK_ARRAY_LEN(rule->dims) && rule->dims[t->n_dims] != EK_DIM_END) {
        t->shape[t->n_dims] = ek_dim_value(c, (enum ek_dim)rule->dims[t->n_dims]);
        t->n_dims++;
    }
    mod->n_tensors++;
    return set_bytes(b->m, t);
}

/* How often a rule with a number in its name applies. */
static uint32_t repeats(const struct ek_tensor_rule *rule, uint32_t n)
{
    return strchr(rule->name, '%') ? n : 1;
}

/* The rule's name behind the module's; its one %u is the number. */
static char *tensor_name(struct builder *b, const char *module, const struct ek_tensor_rule *rule,
                         uint32_t number)
{
    const char *hole = strstr(rule->name, "%u");

    if (hole == NULL)
        return ek_arena_printf(b->arena, "%s.%s", module, rule->name);
    return ek_arena_printf(b->arena, "%s.%.*s%u%s", module, (int)(hole - rule->name), rule->name,
                           number, hole + 2);
}

static size_t count_rules(const struct ek_tensor_rule *rules, unsigned has, uint32_t n)
{
    size_t count = 0;

    for (const struct ek_tensor_rule *r = rules; r && r->name; r++)
        if ((r->when & ~has) == 0)
            count += repeats(r, n);
    return count;
}

/* Tensors number by number (expert by expert, block by block), as checkpoints have them. */
static enum ek_status apply_rules(struct builder *b, struct ek_module *mod,
                                  const struct ek_tensor_rule *rules, unsigned has, uint32_t n)
{
    for (uint32_t i = 0; i < (n ? n : 1); i++)
        for (const struct ek_tensor_rule *r = rules; r && r->name; r++) {
            bool numbered = strchr(r->name, '%') != NULL;
            if ((r->when & ~has) || (numbered && n == 0) || (!numbered && i > 0))
                continue;
            EK_TRY(
                add_tensor(b, mod, r, numbered ? (int32_t)i : -1, tensor_name(b, mod->name, r, i)));
        }
    return EK_OK;
}

/* ---- Modules ----------------------------------------------------------------------------------*/

/* A module of at most n_tensors tensors at the end of the list. */
static enum ek_status add_module(struct builder *b, enum ek_module_kind kind, const char *name,
                                 size_t n_tensors, struct ek_module **out)
{
    struct ek_module *mod = &b->m->modules[b->m->n_modules];

    *mod = (struct ek_module){.name = name, .kind = kind, .layer = -1, .tied_to = -1};
    mod->tensors = ek_arena_alloc(b->arena, n_tensors, sizeof(*mod->tensors));
    if (mod->tensors == NULL || name == NULL)
        return EK_ENOMEM;
    mod->side = kind == EK_MODULE_VISION || kind == EK_MODULE_PROJECTOR || kind == EK_MODULE_VECTOR;
    b->m->n_modules++;
    *out = mod;
    return EK_OK;
}

static enum ek_status add_layer(struct builder *b, uint32_t layer)
{
    const struct ek_config *c = &b->m->config;
    unsigned has = ek_layer_features(c, layer);
    struct ek_module *mod = NULL;

    EK_TRY(add_module(b, EK_MODULE_LAYER,
                      ek_arena_printf(b->arena, "%slayers.%u", b->spelling->text, layer),
                      count_rules(ek_layer_rules, has, c->n_experts), &mod));
    mod->layer = (int32_t)layer;
    return apply_rules(b, mod, ek_layer_rules, has, c->n_experts);
}

/* Modules of one matrix or vector called weight. */
static enum ek_status add_single(struct builder *b, enum ek_module_kind kind, const char *name,
                                 const struct ek_tensor_rule *rule)
{
    struct ek_module *mod = NULL;

    EK_TRY(add_module(b, kind, name, 1, &mod));
    return add_tensor(b, mod, rule, -1, tensor_name(b, name, rule, 0));
}

static enum ek_status add_tower(struct builder *b)
{
    const struct ek_tower *tower = &ek_towers[b->m->config.vision];
    uint32_t n = b->m->config.vision_layers;
    struct ek_module *mod = NULL;

    EK_TRY(add_module(b, EK_MODULE_VISION, b->spelling->vision,
                      count_rules(tower->once, 0, 0) + count_rules(tower->blocks, 0, n), &mod));
    EK_TRY(apply_rules(b, mod, tower->once, 0, 0));
    return apply_rules(b, mod, tower->blocks, 0, n);
}

/* What DeepSeek-VL2 has between tower and language model. */
static enum ek_status add_projector(struct builder *b)
{
    static const char *const vectors[] = {"image_newline", "view_seperator"};
    static const struct ek_tensor_rule vector = {"", NULL, EK_ROLE_OTHER, 0, {EK_DIM_HIDDEN}};
    struct ek_module *mod = NULL;

    EK_TRY(add_module(b, EK_MODULE_PROJECTOR, "projector", count_rules(ek_projector_rules, 0, 0),
                      &mod));
    EK_TRY(apply_rules(b, mod, ek_projector_rules, 0, 0));
    for (size_t i = 0; i < EK_ARRAY_LEN(vectors); i++) {
        EK_TRY(add_module(b, EK_MODULE_VECTOR, vectors[i], 1, &mod));
        EK_TRY(add_tensor(b, mod, &vector, -1, vectors[i]));
    }
    return EK_OK;
}

static enum ek_status add_head(struct builder *b, size_t embed)
{
    static const struct ek_tensor_rule rule = {
        "weight", NULL, EK_ROLE_HEAD, 0, {EK_DIM_VOCAB, EK_DIM_HIDDEN}};
    struct ek_module *mod;

    EK_TRY(add_single(b, EK_MODULE_HEAD, b->spelling->head, &rule));
    mod = &b->m->modules[b->m->n_modules - 1];
    if (b->m->config.tied_head) {
        mod->tied_to = (int32_t)embed;
        mod->tensors[0].name = b->m->modules[embed].tensors[0].name;
    }
    return EK_OK;
}

enum ek_status ek_modules_build(struct ek_model *m, const struct ek_spelling *spelling)
{
    static const struct ek_tensor_rule embed_rule = {
        "weight", NULL, EK_ROLE_EMBED, 0, {EK_DIM_VOCAB, EK_DIM_HIDDEN}};
    static const struct ek_tensor_rule norm_rule = {
        "weight", NULL, EK_ROLE_NORM, 0, {EK_DIM_HIDDEN}};
    struct builder b = {m, &m->files->arena, spelling};
    size_t embed;

    /* tower, projector, two vectors, embedding, layers, norm, head */
    if ((m->modules = ek_calloc((size_t)m->config.n_layers + 7, sizeof(*m->modules))) == NULL)
        return EK_ENOMEM;
    if (m->config.vision != EK_VISION_NONE)
        EK_TRY(add_tower(&b));
    if (m->config.vision == EK_VISION_VL2)
        EK_TRY(add_projector(&b));
    embed = m->n_modules;
    EK_TRY(add_single(&b, EK_MODULE_EMBED,
                      ek_arena_printf(b.arena, "%sembed_tokens", spelling->text), &embed_rule));
    for (uint32_t i = 0; i < m->config.n_layers; i++)
        EK_TRY(add_layer(&b, i));
    EK_TRY(add_single(&b, EK_MODULE_NORM, ek_arena_printf(b.arena, "%snorm", spelling->text),
                      &norm_rule));
    return add_head(&b, embed);
}

/* ---- Sums -------------------------------------------------------------------------------------*/

static uint64_t elements(const struct ek_tensor *t)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->shape[i]; /* set_bytes has checked the product */
    return n;
}

static enum ek_status sum_module(const struct ek_model *m, struct ek_module *mod)
{
    mod->weight_bytes = mod->n_params = 0;
    for (size_t i = 0; i < mod->n_tensors; i++) {
        const struct ek_tensor *t = &mod->tensors[i];
        if (!ek_add_size(mod->n_params, elements(t), &mod->n_params) ||
            (t->role != EK_ROLE_UNUSED &&
             !ek_add_size(mod->weight_bytes, t->bytes, &mod->weight_bytes)))
            return overflow(m, t->name);
    }
    return EK_OK;
}

enum ek_status ek_modules_sum(struct ek_model *m)
{
    uint64_t bytes = 0;

    m->n_params = 0;
    for (size_t i = 0; i < m->n_modules; i++) {
        struct ek_module *mod = &m->modules[i];
        EK_TRY(sum_module(m, mod));
        if (!ek_add_size(bytes, mod->weight_bytes, &bytes) || bytes > INT64_MAX)
            return ek_error(EK_EFORMAT, "%s: the weights' size overflows at '%s'", m->path,
                            mod->name);
        m->n_params += mod->tied_to < 0 ? mod->n_params : 0;
    }
    return EK_OK;
}

ptrdiff_t ek_model_find(const struct ek_model *m, const char *name)
{
    for (size_t i = 0; i < m->n_modules; i++)
        if (strcmp(m->modules[i].name, name) == 0)
            return (ptrdiff_t)i;
    return -1;
}

const struct ek_tensor *ek_module_tensor(const struct ek_module *mod, enum ek_role role,
                                         int32_t index)
{
    for (size_t i = 0; i < mod->n_tensors; i++)
        if (mod->tensors[i].role == role && mod->tensors[i].index == index)
            return &mod->tensors[i];
    return NULL;
}
