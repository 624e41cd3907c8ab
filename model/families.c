/* SPDX-License-Identifier: Apache-2.0
 *
 * One row per architecture of config.json. A new family is a new row, and new code only where a
 * column takes a value that nobody had before. Sources and traps: docs/models.md.
 */
#include "model/internal.h"

#include <string.h>

/* ---- Tensors ----------------------------------------------------------------------------------*/

#define HIDDEN EK_DIM_HIDDEN

const struct ek_tensor_rule ek_layer_rules[] = {
    {"input_layernorm.weight", "attn_norm.weight", EK_ROLE_NORM, 0, {HIDDEN}},
    {"self_attn.q_proj.weight", "attn_q.weight", EK_ROLE_Q, EK_HAS_Q, {EK_DIM_Q, HIDDEN}},
    {"self_attn.q_proj.bias", "attn_q.bias", EK_ROLE_Q_BIAS, EK_HAS_QKV_BIAS, {EK_DIM_Q}},
    {"self_attn.q_a_proj.weight",
     "attn_q_a.weight",
     EK_ROLE_Q_A,
     EK_HAS_Q_LORA,
     {EK_DIM_Q_LORA, HIDDEN}},
    {"self_attn.q_a_layernorm.weight",
     "attn_q_a_norm.weight",
     EK_ROLE_Q_A_NORM,
     EK_HAS_Q_LORA,
     {EK_DIM_Q_LORA}},
    {"self_attn.q_b_proj.weight",
     "attn_q_b.weight",
     EK_ROLE_Q_B,
     EK_HAS_Q_LORA,
     {EK_DIM_Q, EK_DIM_Q_LORA}},
    {"self_attn.k_proj.weight", "attn_k.weight", EK_ROLE_K, EK_HAS_GQA, {EK_DIM_KV, HIDDEN}},
    {"self_attn.k_proj.bias", "attn_k.bias", EK_ROLE_K_BIAS, EK_HAS_QKV_BIAS, {EK_DIM_KV}},
    {"self_attn.v_proj.weight", "attn_v.weight", EK_ROLE_V, EK_HAS_GQA, {EK_DIM_KV, HIDDEN}},
    {"self_attn.v_proj.bias", "attn_v.bias", EK_ROLE_V_BIAS, EK_HAS_QKV_BIAS, {EK_DIM_KV}},
    {"self_attn.kv_a_proj_with_mqa.weight",
     "attn_kv_a_mqa.weight",
     EK_ROLE_KV_A,
     EK_HAS_MLA,
     {EK_DIM_KV_A, HIDDEN}},
    {"self_attn.kv_a_layernorm.weight",
     "attn_kv_a_norm.weight",
     EK_ROLE_KV_A_NORM,
     EK_HAS_MLA,
     {EK_DIM_KV_LORA}},
    {"self_attn.kv_b_proj.weight",
     "attn_kv_b.weight",
     EK_ROLE_KV_B,
     EK_HAS_MLA,
     {EK_DIM_KV_B, EK_DIM_KV_LORA}},
    {"self_attn.o_proj.weight", "attn_output.weight", EK_ROLE_O, 0, {HIDDEN, EK_DIM_ATTENTION}},
    {"self_attn.o_proj.bias", "attn_output.bias", EK_ROLE_O_BIAS, EK_HAS_O_BIAS, {HIDDEN}},
    {"post_attention_layernorm.weight", "ffn_norm.weight", EK_ROLE_NORM2, 0, {HIDDEN}},
    {"mlp.gate_proj.weight", "ffn_gate.weight", EK_ROLE_GATE, EK_HAS_DENSE, {EK_DIM_FFN, HIDDEN}},
    {"mlp.gate_proj.bias", "ffn_gate.bias", EK_ROLE_GATE_BIAS, EK_HAS_MLP_BIAS, {EK_DIM_FFN}},
    {"mlp.up_proj.weight", "ffn_up.weight", EK_ROLE_UP, EK_HAS_DENSE, {EK_DIM_FFN, HIDDEN}},
    {"mlp.up_proj.bias", "ffn_up.bias", EK_ROLE_UP_BIAS, EK_HAS_MLP_BIAS, {EK_DIM_FFN}},
    {"mlp.down_proj.weight", "ffn_down.weight", EK_ROLE_DOWN, EK_HAS_DENSE, {HIDDEN, EK_DIM_FFN}},
    {"mlp.down_proj.bias", "ffn_down.bias", EK_ROLE_DOWN_BIAS, EK_HAS_MLP_BIAS, {HIDDEN}},
    {"mlp.gate.weight",
     "ffn_gate_inp.weight",
     EK_ROLE_ROUTER,
     EK_HAS_EXPERTS,
     {EK_DIM_EXPERTS, HIDDEN}},
    {"mlp.gate.e_score_correction_bias",
     "exp_probs_b.bias",
     EK_ROLE_ROUTER_BIAS,
     EK_HAS_ROUTER_BIAS,
     {EK_DIM_EXPERTS}},
    {"mlp.experts.%u.gate_proj.weight",
     "ffn_gate_exps.weight",
     EK_ROLE_EXPERT_GATE,
     EK_HAS_EXPERTS,
     {EK_DIM_MOE, HIDDEN}},
    {"mlp.experts.%u.up_proj.weight",
     "ffn_up_exps.weight",
     EK_ROLE_EXPERT_UP,
     EK_HAS_EXPERTS,
     {EK_DIM_MOE, HIDDEN}},
    {"mlp.experts.%u.down_proj.weight",
     "ffn_down_exps.weight",
     EK_ROLE_EXPERT_DOWN,
     EK_HAS_EXPERTS,
     {HIDDEN, EK_DIM_MOE}},
    {"mlp.shared_experts.gate_proj.weight",
     "ffn_gate_shexp.weight",
     EK_ROLE_SHARED_GATE,
     EK_HAS_SHARED,
     {EK_DIM_SHARED, HIDDEN}},
    {"mlp.shared_experts.up_proj.weight",
     "ffn_up_shexp.weight",
     EK_ROLE_SHARED_UP,
     EK_HAS_SHARED,
     {EK_DIM_SHARED, HIDDEN}},
    {"mlp.shared_experts.down_proj.weight",
     "ffn_down_shexp.weight",
     EK_ROLE_SHARED_DOWN,
     EK_HAS_SHARED,
     {HIDDEN, EK_DIM_SHARED}},
    {NULL, NULL, EK_ROLE_OTHER, 0, {0}},
};

/* Rows of towers: all EK_ROLE_OTHER, told apart by name. */
#define ROW(name, ...)                                                                             \
    {                                                                                              \
        name, NULL, EK_ROLE_OTHER, 0,                                                              \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define UNUSED(name, ...)                                                                          \
    {                                                                                              \
        name, NULL, EK_ROLE_UNUSED, 0,                                                             \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define V                   EK_DIM_V_HIDDEN
#define V2                  EK_DIM_V_HIDDEN2
#define V3                  EK_DIM_V_HIDDEN3
#define F                   EK_DIM_V_FFN
#define PAIR(name, out, in) ROW(name ".weight", out, in), ROW(name ".bias", out)
#define VECTORS(name, n)    ROW(name ".weight", n), ROW(name ".bias", n)

static const struct ek_tensor_rule vl2_blocks[] = {
    VECTORS("blocks.%u.norm1", V),       PAIR("blocks.%u.attn.qkv", V3, V),
    PAIR("blocks.%u.attn.proj", V, V),   VECTORS("blocks.%u.norm2", V),
    PAIR("blocks.%u.mlp.fc1", F, V),     PAIR("blocks.%u.mlp.fc2", V, F),
    {NULL, NULL, EK_ROLE_OTHER, 0, {0}},
};

/* attn_pool comes with the tower's checkpoint; the model takes all patches instead. */
static const struct ek_tensor_rule vl2_once[] = {
    ROW("patch_embed.proj.weight", V, EK_DIM_RGB, EK_DIM_V_PATCH, EK_DIM_V_PATCH),
    ROW("patch_embed.proj.bias", V),
    ROW("pos_embed", EK_DIM_ONE, EK_DIM_V_GRID, V),
    VECTORS("norm", V),
    UNUSED("attn_pool.latent", EK_DIM_ONE, EK_DIM_ONE, V),
    UNUSED("attn_pool.q.weight", V, V),
    UNUSED("attn_pool.q.bias", V),
    UNUSED("attn_pool.kv.weight", V2, V),
    UNUSED("attn_pool.kv.bias", V2),
    UNUSED("attn_pool.proj.weight", V, V),
    UNUSED("attn_pool.proj.bias", V),
    UNUSED("attn_pool.norm.weight", V),
    UNUSED("attn_pool.norm.bias", V),
    UNUSED("attn_pool.mlp.fc1.weight", F, V),
    UNUSED("attn_pool.mlp.fc1.bias", F),
    UNUSED("attn_pool.mlp.fc2.weight", V, F),
    UNUSED("attn_pool.mlp.fc2.bias", V),
    {NULL, NULL, EK_ROLE_OTHER, 0, {0}},
};

static const struct ek_tensor_rule qwen25_blocks[] = {
    ROW("blocks.%u.norm1.weight", V),      PAIR("blocks.%u.attn.qkv", V3, V),
    PAIR("blocks.%u.attn.proj", V, V),     ROW("blocks.%u.norm2.weight", V),
    PAIR("blocks.%u.mlp.gate_proj", F, V), PAIR("blocks.%u.mlp.up_proj", F, V),
    PAIR("blocks.%u.mlp.down_proj", V, F), {NULL, NULL, EK_ROLE_OTHER, 0, {0}},
};

static const struct ek_tensor_rule qwen25_once[] = {
    ROW("patch_embed.proj.weight", V, EK_DIM_RGB, EK_DIM_V_TEMPORAL, EK_DIM_V_PATCH,
        EK_DIM_V_PATCH),
    ROW("merger.ln_q.weight", V),
    PAIR("merger.mlp.0", EK_DIM_V_MERGED, EK_DIM_V_MERGED),
    PAIR("merger.mlp.2", HIDDEN, EK_DIM_V_MERGED),
    {NULL, NULL, EK_ROLE_OTHER, 0, {0}},
};

const struct ek_tensor_rule ek_projector_rules[] = {
    PAIR("layers.0", HIDDEN, EK_DIM_V_MERGED),
    PAIR("layers.2", HIDDEN, HIDDEN),
    {NULL, NULL, EK_ROLE_OTHER, 0, {0}},
};

const struct ek_tower ek_towers[] = {
    [EK_VISION_NONE] = {NULL, NULL},
    [EK_VISION_QWEN25] = {qwen25_blocks, qwen25_once},
    [EK_VISION_VL2] = {vl2_blocks, vl2_once},
};

/* ---- Values for absent keys: the classes' defaults --------------------------------------------*/

static const struct ek_config llama_defaults = {
    .max_position = 2048,
    .norm_eps = 1e-6,
    .rope_theta = 1e4,
    .bos = 1,
    .eos = {2},
    .n_eos = 1,
};

static const struct ek_config qwen2_defaults = {
    .max_position = 32768,
    .norm_eps = 1e-6,
    .rope_theta = 1e4,
    .bos = -1,
};

/* The published DeepSeek-VL2 leaves out layers, heads and the MLA sizes where they equal these. */
#define DEEPSEEK_DEFAULTS                                                                          \
    .hidden = 4096, .n_layers = 30, .n_heads = 32, .n_kv_heads = 32, .intermediate = 11008,        \
    .vocab = 102400, .max_position = 2048, .norm_eps = 1e-6, .rope_theta = 1e4, .q_lora = 1536,    \
    .kv_lora = 512, .qk_nope = 128, .qk_rope = 64, .v_head = 128, .moe_intermediate = 1407,        \
    .moe_freq = 1, .router_scale = 1, .bos = 100000, .eos = {100001}, .n_eos = 1

static const struct ek_config deepseek_defaults = {DEEPSEEK_DEFAULTS};

static const struct ek_config vl2_defaults = {
    DEEPSEEK_DEFAULTS,     .vision = EK_VISION_VL2, .vision_layers = 27,
    .vision_hidden = 1152, .vision_heads = 16,      .vision_patch = 14,
    .vision_merge = 2,     .vision_image = 384,     .vision_temporal = 1,
};

static const struct ek_config qwen25_vl_defaults = {
    .max_position = 32768,
    .norm_eps = 1e-5,
    .rope_theta = 1e6,
    .vision = EK_VISION_QWEN25,
    .vision_layers = 32,
    .vision_intermediate = 3420,
    .vision_heads = 16,
    .vision_patch = 14,
    .vision_merge = 2,
    .vision_window = 112,
    .vision_temporal = 2,
    .vision_full_attention = 1u << 7 | 1u << 15 | 1u << 23 | 1u << 31,
    .vision_tokens_per_second = 4,
    .bos = -1,
};

/* ---- Families ---------------------------------------------------------------------------------*/

static const struct ek_family families[] = {
    {
        .architecture = "LlamaForCausalLM",
        .model_type = "llama",
        .gguf = "llama",
        .gguf_permuted = true,
        .spellings = {{"model.", "lm_head", NULL}},
        .defaults = &llama_defaults,
    },
    {
        .architecture = "Qwen2ForCausalLM",
        .model_type = "qwen2",
        .gguf = "qwen2",
        .qkv_bias = true,
        .spellings = {{"model.", "lm_head", NULL}},
        .defaults = &qwen2_defaults,
    },
    {
        .architecture = "DeepseekV2ForCausalLM",
        .model_type = "deepseek_v2",
        .gguf = "deepseek2",
        .deepseek = true,
        .spellings = {{"model.", "lm_head", NULL}},
        .defaults = &deepseek_defaults,
    },
    {
        .architecture = "Qwen2_5_VLForConditionalGeneration",
        .model_type = "qwen2_5_vl",
        .qkv_bias = true,
        .text_key = "text_config",
        .spellings = {{"model.", "lm_head", "visual"},
                      {"model.language_model.", "lm_head", "model.visual"}},
        .defaults = &qwen25_vl_defaults,
    },
    {
        .architecture = "DeepseekVLV2ForCausalLM",
        .model_type = "deepseek_vl_v2",
        .deepseek = true,
        .text_key = "language_config",
        .text_needed = true,
        .spellings = {{"language.model.", "language.lm_head", "vision"}},
        .defaults = &vl2_defaults,
    },
};

const struct ek_family *ek_family_of_architecture(const char *architecture)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(families); i++)
        if (strcmp(families[i].architecture, architecture) == 0)
            return &families[i];
    return NULL;
}

const struct ek_family *ek_family_of_model_type(const char *model_type)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(families); i++)
        if (strcmp(families[i].model_type, model_type) == 0)
            return &families[i];
    return NULL;
}

const struct ek_family *ek_family_of_gguf(const char *architecture)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(families); i++)
        if (families[i].gguf && strcmp(families[i].gguf, architecture) == 0)
            return &families[i];
    return NULL;
}

/* ---- Symbols ----------------------------------------------------------------------------------*/

unsigned ek_layer_features(const struct ek_config *c, uint32_t layer)
{
    bool mla = c->attention == EK_ATTENTION_MLA;
    bool experts = c->n_experts && layer >= c->first_dense && layer % c->moe_freq == 0;
    unsigned has = mla ? EK_HAS_MLA : EK_HAS_GQA;

    has |= mla && c->q_lora ? EK_HAS_Q_LORA : EK_HAS_Q;
    if (c->qkv_bias)
        has |= EK_HAS_QKV_BIAS;
    if (c->o_bias)
        has |= EK_HAS_O_BIAS;
    if (!experts)
        return has | EK_HAS_DENSE | (c->mlp_bias ? EK_HAS_MLP_BIAS : 0);
    if (c->router == EK_ROUTER_NOAUX_TC)
        has |= EK_HAS_ROUTER_BIAS;
    if (c->n_shared)
        has |= EK_HAS_SHARED;
    return has | EK_HAS_EXPERTS;
}

uint64_t ek_dim_value(const struct ek_config *c, enum ek_dim dim)
{
    bool mla = c->attention == EK_ATTENTION_MLA;
    uint64_t heads = c->n_heads, grid = c->vision_patch ? c->vision_image / c->vision_patch : 0;

    switch (dim) {
    case EK_DIM_ONE:
        return 1;
    case EK_DIM_RGB:
        return 3;
    case EK_DIM_VOCAB:
        return c->vocab;
    case EK_DIM_HIDDEN:
        return c->hidden;
    case EK_DIM_Q:
        return heads * c->head_dim;
    case EK_DIM_KV:
        return (uint64_t)c->n_kv_heads * c->head_dim;
    case EK_DIM_ATTENTION:
        return heads * (mla ? c->v_head : c->head_dim);
    case EK_DIM_FFN:
        return c->intermediate;
    case EK_DIM_Q_LORA:
        return c->q_lora;
    case EK_DIM_KV_LORA:
        return c->kv_lora;
    case EK_DIM_KV_A:
        return (uint64_t)c->kv_lora + c->qk_rope;
    case EK_DIM_KV_B:
        return heads * ((uint64_t)c->qk_nope + c->v_head);
    case EK_DIM_EXPERTS:
        return c->n_experts;
    case EK_DIM_MOE:
        return c->moe_intermediate;
    case EK_DIM_SHARED:
        return (uint64_t)c->n_shared * c->moe_intermediate;
    case EK_DIM_V_HIDDEN:
        return c->vision_hidden;
    case EK_DIM_V_HIDDEN2:
        return (uint64_t)c->vision_hidden * 2;
    case EK_DIM_V_HIDDEN3:
        return (uint64_t)c->vision_hidden * 3;
    case EK_DIM_V_FFN:
        return c->vision_intermediate;
    case EK_DIM_V_PATCH:
        return c->vision_patch;
    case EK_DIM_V_TEMPORAL:
        return c->vision_temporal;
    case EK_DIM_V_GRID:
        return grid * grid;
    case EK_DIM_V_MERGED:
        return (uint64_t)c->vision_hidden * c->vision_merge * c->vision_merge;
    case EK_DIM_END:
        break;
    }
    return 0;
}
