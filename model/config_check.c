/* SPDX-License-Identifier: Apache-2.0
 *
 * What must hold between the values of a configuration, whatever file stated them.
 */
#include "model/internal.h"

#include <math.h>

#define MAX_HEAD_DIM 8192

#define FAIL(fmt, ...) ek_error(EK_EFORMAT, "%s: " fmt, where, __VA_ARGS__)

static enum ek_status check_attention(const struct ek_config *c, const char *where)
{
    uint32_t rotary = c->attention == EK_ATTENTION_MLA ? c->qk_rope : c->head_dim;

    if (c->n_kv_heads == 0 || c->n_heads % c->n_kv_heads)
        return FAIL("%u attention heads are no multiple of %u key-value heads", c->n_heads,
                    c->n_kv_heads);
    if (c->head_dim == 0)
        return FAIL("head_dim is 0 (hidden_size %u, %u heads)", c->hidden, c->n_heads);
    if (c->head_dim > MAX_HEAD_DIM || c->v_head > MAX_HEAD_DIM)
        return FAIL("heads of %u and %u values, at most %d", c->head_dim, c->v_head, MAX_HEAD_DIM);
    if (rotary == 0 || rotary % 2)
        return FAIL("%u rotary dimensions a head, an even number expected", rotary);
    if (c->attention == EK_ATTENTION_MLA && (c->kv_lora == 0 || c->v_head == 0))
        return FAIL("kv_lora_rank %u, v_head_dim %u: latent attention needs both", c->kv_lora,
                    c->v_head);
    return EK_OK;
}

static enum ek_status check_rope(const struct ek_config *c, const char *where)
{
    uint64_t sections = (uint64_t)c->mrope_section[0] + c->mrope_section[1] + c->mrope_section[2];

    if (!(c->norm_eps > 0) || !isfinite(c->norm_eps))
        return FAIL("rms_norm_eps %g must be a positive number", c->norm_eps);
    if (!(c->rope_theta > 0) || !isfinite(c->rope_theta))
        return FAIL("rope_theta %g must be a positive number", c->rope_theta);
    if (sections && sections != c->head_dim / 2)
        return FAIL("mrope_section adds up to %llu, half of head_dim is %u",
                    (unsigned long long)sections, c->head_dim / 2);
    if (c->rope_scaling == EK_ROPE_YARN && c->rope_theta == 1)
        return FAIL("rope_theta %g has no yarn", c->rope_theta);
    return EK_OK;
}

static enum ek_status check_experts(const struct ek_config *c, const char *where)
{
    uint64_t tensors = ((uint64_t)c->n_experts * 3 + 32) * c->n_layers;

    if (tensors > EK_MAX_TENSORS)
        return FAIL("%u layers of %u experts: over %u tensors", c->n_layers, c->n_experts,
                    EK_MAX_TENSORS);
    if (c->n_experts == 0)
        return EK_OK;
    if (c->top_k == 0 || c->top_k > c->n_experts)
        return FAIL("num_experts_per_tok %u of n_routed_experts %u", c->top_k, c->n_experts);
    if (c->router == EK_ROUTER_GREEDY)
        return EK_OK;
    if (c->n_group == 0 || c->n_experts % c->n_group)
        return FAIL("n_routed_experts %u is no multiple of n_group %u", c->n_experts, c->n_group);
    if (c->topk_group == 0 || c->topk_group > c->n_group)
        return FAIL("topk_group %u of n_group %u", c->topk_group, c->n_group);
    if ((uint64_t)c->topk_group * (c->n_experts / c->n_group) < c->top_k)
        return FAIL("num_experts_per_tok %u from %u groups of %u", c->top_k, c->topk_group,
                    c->n_experts / c->n_group);
    return EK_OK;
}

static enum ek_status check_vision(const struct ek_config *c, const char *where)
{
    if (c->vision == EK_VISION_NONE)
        return EK_OK;
    if (c->vision_heads == 0 || c->vision_hidden % c->vision_heads)
        return FAIL("vision_config: width %u is no multiple of %u heads", c->vision_hidden,
                    c->vision_heads);
    if (c->vision_intermediate == 0)
        return FAIL("vision_config: a feed-forward width of %u", c->vision_intermediate);
    if (c->vision == EK_VISION_VL2 && c->vision_image < c->vision_patch)
        return FAIL("vision_config: image_size %u below patch_size %u", c->vision_image,
                    c->vision_patch);
    if (c->vision == EK_VISION_QWEN25 && c->vision_window < c->vision_patch * c->vision_merge)
        return FAIL("vision_config: window_size %u below %u merged patches of %u", c->vision_window,
                    c->vision_merge, c->vision_patch);
    return EK_OK;
}

enum ek_status ek_config_check(const struct ek_config *c, const char *where)
{
    EK_TRY(check_attention(c, where));
    EK_TRY(check_rope(c, where));
    EK_TRY(check_experts(c, where));
    return check_vision(c, where);
}
