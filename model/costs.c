/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes and floating-point operations of modules, from their shapes.
 */
#include "model/internal.h"

#include <math.h>

static uint64_t type_bytes(enum ek_dtype t, uint64_t n)
{
    size_t block = ek_dtype_block(t);

    return (n + block - 1) / block * ek_dtype_block_bytes(t);
}

static uint64_t elements(const struct ek_tensor *t)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->shape[i];
    return n;
}

static uint64_t vision_patches(const struct ek_config *c)
{
    uint64_t side = c->vision_patch ? c->vision_image / c->vision_patch : 0;

    return side * side;
}

/* Tokens that a tile of DeepSeek-VL2 becomes: the grid, padded to whole merged cells. */
static uint64_t tile_tokens(const struct ek_config *c)
{
    uint64_t side = c->vision_image / c->vision_patch;
    uint64_t merged = (side + c->vision_merge - 1) / c->vision_merge;

    return merged * merged;
}

/* Patches behind one token that the language model sees. */
static double patches_a_token(const struct ek_config *c)
{
    if (c->vision == EK_VISION_VL2)
        return (double)vision_patches(c) / (double)tile_tokens(c);
    return (double)c->vision_merge * c->vision_merge;
}

/* ---- Bytes ------------------------------------------------------------------------------------*/

uint64_t ek_module_kv_bytes(const struct ek_model *m, const struct ek_module *mod,
                            enum ek_dtype cache)
{
    const struct ek_config *c = &m->config;
    uint64_t scale = cache == EK_F8_E4M3 ? sizeof(float) : 0; /* of a row of one head */

    if (mod->kind != EK_MODULE_LAYER)
        return 0;
    if (c->attention == EK_ATTENTION_MLA) /* the latent and the shared rotary key */
        return type_bytes(cache, c->kv_lora) + type_bytes(cache, c->qk_rope) + scale;
    return 2 * (type_bytes(cache, ek_dim_value(c, EK_DIM_KV)) + c->n_kv_heads * scale);
}

uint64_t ek_module_boundary_bytes(const struct ek_model *m, const struct ek_module *mod,
                                  enum ek_dtype act)
{
    const struct ek_config *c = &m->config;

    if (mod->kind == EK_MODULE_HEAD)
        return type_bytes(EK_F32, c->vocab);
    if (mod->kind == EK_MODULE_PATCHES || mod->kind == EK_MODULE_BLOCK ||
        ((mod->kind == EK_MODULE_VISION || mod->kind == EK_MODULE_MERGER) &&
         c->vision == EK_VISION_VL2))
        return (uint64_t)ceil((double)type_bytes(act, c->vision_hidden) * patches_a_token(c));
    return type_bytes(act, c->hidden);
}

static bool is_expert(enum ek_role role)
{
    return role == EK_ROLE_EXPERT_GATE || role == EK_ROLE_EXPERT_UP || role == EK_ROLE_EXPERT_DOWN;
}

double ek_module_read_bytes(const struct ek_model *m, const struct ek_module *mod, uint64_t tokens)
{
    const struct ek_config *c = &m->config;
    double experts = 0, rest = 0, rows = (double)tokens, hit;

    for (size_t i = 0; i < mod->n_tensors; i++) {
        const struct ek_tensor *t = &mod->tensors[i];
        if (is_expert(t->role))
            experts += (double)t->bytes;
        else if (t->role != EK_ROLE_UNUSED)
            rest += (double)t->bytes;
    }
    if (mod->kind == EK_MODULE_EMBED)
        return rest / c->vocab * (rows < c->vocab ? rows : c->vocab);
    if (experts == 0)
        return rest;
    hit = 1 - pow(1 - (double)c->top_k / c->n_experts, rows);
    return rest + experts * hit;
}

/* ---- Operations -------------------------------------------------------------------------------*/

/* Elements of the matrices that one token is multiplied with. */
static double matrix_elements(const struct ek_config *c, const struct ek_module *mod)
{
    double n = 0;

    for (size_t i = 0; i < mod->n_tensors; i++) {
        const struct ek_tensor *t = &mod->tensors[i];
        if (t->n_dims < 2 || t->role == EK_ROLE_UNUSED)
            continue;
        n += (double)elements(t) * (is_expert(t->role) ? (double)c->top_k / c->n_experts : 1);
    }
    return n;
}

/* Multiply-adds for one pair of a query and a key, over all heads. */
static double pair_cost(const struct ek_config *c)
{
    if (c->attention == EK_ATTENTION_GQA)
        return 2.0 * c->n_heads * c->head_dim;
    return (double)c->n_heads * ((double)c->head_dim + c->v_head);
}

/* Latent attention: keys and values made again from the whole latent cache, or the absorbed form
 * that multiplies latents directly; whichever is less. Without kv_b for the new tokens, which is
 * among the matrices. */
static double latent_cost(const struct ek_config *c, double pairs, double old)
{
    double again = pairs * pair_cost(c) + old * (double)ek_dim_value(c, EK_DIM_KV_B) * c->kv_lora;
    double absorbed = pairs * c->n_heads * (2.0 * c->kv_lora + c->qk_rope);

    return again < absorbed ? again : absorbed;
}

static double layer_attention(const struct ek_config *c, double tokens, double context)
{
    double old = context > tokens ? context - tokens : 0;
    double pairs = tokens * old + tokens * (tokens + 1) / 2;

    return c->attention == EK_ATTENTION_MLA ? latent_cost(c, pairs, old) : pairs * pair_cost(c);
}

/* Matrices of a tower: the merger works on tokens, all else on patches. */
static double vision_matrices(const struct ek_config *c, const struct ek_module *mod, double tokens)
{
    double per_patch = 0, per_token = 0, merged = (double)ek_dim_value(c, EK_DIM_V_MERGED);

    for (size_t i = 0; i < mod->n_tensors; i++) {
        const struct ek_tensor *t = &mod->tensors[i];
        if (t->n_dims < 2 || t->role == EK_ROLE_UNUSED || t->shape[0] == 1)
            continue;
        if (t->n_dims == 2 && (double)t->shape[1] == merged)
            per_token += (double)elements(t);
        else
            per_patch += (double)elements(t);
    }
    return tokens * (per_token + patches_a_token(c) * per_patch);
}

/* Pairs of patches of one block: a tile attends to itself; Qwen's blocks to a window or to the
 * image. */
static double block_attention(const struct ek_config *c, uint32_t block, double patches)
{
    double side = (double)c->vision_window / c->vision_patch, reach = patches;

    if (c->vision == EK_VISION_VL2)
        reach = (double)vision_patches(c);
    else if (!(c->vision_full_attention >> block & 1) && side * side < patches)
        reach = side * side;
    return 2 * patches * c->vision_hidden * reach;
}

static double vision_attention(const struct ek_config *c, const struct ek_module *mod,
                               double tokens)
{
    double patches = tokens * patches_a_token(c), sum = 0;

    if (mod->kind == EK_MODULE_BLOCK)
        return block_attention(c, (uint32_t)mod->layer, patches);
    for (uint32_t i = 0; mod->kind == EK_MODULE_VISION && i < c->vision_layers; i++)
        sum += block_attention(c, i, patches);
    return sum;
}

double ek_module_flops(const struct ek_model *m, const struct ek_module *mod, uint64_t tokens,
                       uint64_t context, bool linear_only)
{
    const struct ek_config *c = &m->config;
    double n = (double)tokens, linear, attention = 0;

    switch (mod->kind) {
    case EK_MODULE_EMBED:
    case EK_MODULE_VECTOR:
        return 0;
    case EK_MODULE_NORM:
        return 4 * n * c->hidden; /* square, sum, scale, weight */
    case EK_MODULE_VISION:
    case EK_MODULE_PATCHES:
    case EK_MODULE_BLOCK:
    case EK_MODULE_MERGER:
        linear = vision_matrices(c, mod, n);
        attention = vision_attention(c, mod, n);
        break;
    case EK_MODULE_LAYER:
        linear = n * matrix_elements(c, mod);
        attention = layer_attention(c, n, (double)context);
        break;
    default:
        linear = n * matrix_elements(c, mod);
    }
    return 2 * (linear + (linear_only ? 0 : attention));
}
