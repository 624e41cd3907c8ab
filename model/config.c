/* SPDX-License-Identifier: Apache-2.0
 *
 * config.json -> ek_config. Dialects: flat or nested text keys, rope_theta + rope_scaling or
 * rope_parameters, torch_dtype or dtype, eos_token_id as a number or a list.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX   ((size_t)4 << 20)
#define MAX_SIZE     (1u << 24) /* of a width or a vocabulary */
#define MAX_HEADS    4096
#define MAX_EXPERTS  4096
#define MAX_POSITION (1u << 30)
#define MAX_TOKEN    (1u << 30)

/* ---- Whole numbers, by table ------------------------------------------------------------------*/

struct field {
    const char *key;
    size_t offset; /* of a uint32_t in ek_config */
    uint32_t min, max;
    bool null_is_zero; /* null says "has none"; else it is as good as absent */
};
#define FIELD(key, member, min, max)                                                               \
    {                                                                                              \
        key, offsetof(struct ek_config, member), min, max, false                                   \
    }
#define NULL_FIELD(key, member, min, max)                                                          \
    {                                                                                              \
        key, offsetof(struct ek_config, member), min, max, true                                    \
    }

static const struct field text_fields[] = {
    FIELD("hidden_size", hidden, 1, MAX_SIZE),
    FIELD("num_hidden_layers", n_layers, 1, EK_MAX_LAYERS),
    FIELD("num_attention_heads", n_heads, 1, MAX_HEADS),
    FIELD("intermediate_size", intermediate, 1, MAX_SIZE),
    FIELD("vocab_size", vocab, 1, MAX_SIZE),
    FIELD("max_position_embeddings", max_position, 1, MAX_POSITION),
    {0},
};

static const struct field deepseek_fields[] = {
    NULL_FIELD("q_lora_rank", q_lora, 0, MAX_SIZE),
    NULL_FIELD("kv_lora_rank", kv_lora, 0, MAX_SIZE),
    FIELD("qk_nope_head_dim", qk_nope, 0, MAX_SIZE),
    FIELD("qk_rope_head_dim", qk_rope, 0, MAX_SIZE),
    FIELD("v_head_dim", v_head, 0, MAX_SIZE),
    NULL_FIELD("n_routed_experts", n_experts, 0, MAX_EXPERTS),
    NULL_FIELD("n_shared_experts", n_shared, 0, MAX_EXPERTS),
    NULL_FIELD("num_experts_per_tok", top_k, 0, MAX_EXPERTS),
    FIELD("moe_intermediate_size", moe_intermediate, 1, MAX_SIZE),
    FIELD("first_k_dense_replace", first_dense, 0, EK_MAX_LAYERS),
    FIELD("moe_layer_freq", moe_freq, 1, EK_MAX_LAYERS),
    NULL_FIELD("n_group", n_group, 0, MAX_EXPERTS),
    NULL_FIELD("topk_group", topk_group, 0, MAX_EXPERTS),
    {0},
};

static const struct field qwen25_vision_fields[] = {
    FIELD("depth", vision_layers, 1, EK_MAX_LAYERS),
    FIELD("hidden_size", vision_hidden, 1, MAX_SIZE),
    FIELD("num_heads", vision_heads, 1, MAX_HEADS),
    FIELD("intermediate_size", vision_intermediate, 1, MAX_SIZE),
    FIELD("patch_size", vision_patch, 1, 1024),
    FIELD("spatial_merge_size", vision_merge, 1, 64),
    FIELD("window_size", vision_window, 1, MAX_SIZE),
    FIELD("temporal_patch_size", vision_temporal, 1, 64),
    {0},
};

static const struct field vl2_vision_fields[] = {
    FIELD("layers", vision_layers, 1, EK_MAX_LAYERS), FIELD("width", vision_hidden, 1, MAX_SIZE),
    FIELD("heads", vision_heads, 1, MAX_HEADS),       FIELD("patch_size", vision_patch, 1, 1024),
    FIELD("image_size", vision_image, 1, 16384),      {0},
};

/* Absent keys leave the default; a field that must not be 0 and still is has no default. */
static enum ek_status read_fields(const json_t *obj, struct ek_json_at at,
                                  const struct field *fields, struct ek_config *c)
{
    for (const struct field *f = fields; f->key; f++) {
        uint32_t *slot = (uint32_t *)((char *)c + f->offset);
        const json_t *v = json_object_get(obj, f->key);
        uint64_t value = *slot;
        if (f->null_is_zero && json_is_null(v))
            value = 0;
        else if (v == NULL || json_is_null(v)) {
            if (value < f->min)
                EK_TRY(ek_json_u64(obj, at, f->key, f->min, f->max, &value)); /* "must be" */
        } else {
            EK_TRY(ek_json_u64(obj, at, f->key, f->min, f->max, &value));
        }
        *slot = (uint32_t)value;
    }
    return EK_OK;
}

static enum ek_status opt_u32(const json_t *obj, struct ek_json_at at, const char *key,
                              uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t v = *out;

    EK_TRY(ek_json_opt_u64(obj, at, key, min, max, &v));
    *out = (uint32_t)v;
    return EK_OK;
}

static enum ek_status unsupported(struct ek_json_at at, const char *key, const char *value)
{
    return ek_error(EK_EUNSUPPORTED, "%s: %s%s '%.64s' is not supported", at.file, at.prefix, key,
                    value);
}

/* A key that must be absent, null or false: it would change what is computed. */
static enum ek_status must_be_off(const json_t *obj, struct ek_json_at at, const char *key)
{
    bool on = false;

    EK_TRY(ek_json_opt_bool(obj, at, key, &on));
    return on ? unsupported(at, key, "true") : EK_OK;
}

/* ---- Rope -------------------------------------------------------------------------------------*/

static enum ek_status read_mrope(const json_t *rope, struct ek_json_at at, struct ek_config *c)
{
    const json_t *section = json_object_get(rope, "mrope_section");

    if (section == NULL)
        return EK_OK;
    if (json_array_size(section) != 3)
        return ek_error(EK_EFORMAT, "%s: %smrope_section must be three whole numbers", at.file,
                        at.prefix);
    for (size_t i = 0; i < 3; i++) {
        const json_t *v = json_array_get(section, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > MAX_SIZE)
            return ek_error(EK_EFORMAT, "%s: %smrope_section must be three whole numbers", at.file,
                            at.prefix);
        c->mrope_section[i] = (uint32_t)json_integer_value(v);
    }
    return EK_OK;
}

static enum ek_status read_llama3(const json_t *rope, struct ek_json_at at, struct ek_config *c)
{
    uint64_t original;

    EK_TRY(ek_json_real(rope, at, "low_freq_factor", 1e-6, 1e6, &c->rope_low));
    EK_TRY(ek_json_real(rope, at, "high_freq_factor", 1e-6, 1e6, &c->rope_high));
    EK_TRY(ek_json_u64(rope, at, "original_max_position_embeddings", 1, MAX_POSITION, &original));
    if (c->rope_high <= c->rope_low)
        return ek_error(EK_EFORMAT, "%s: %shigh_freq_factor %g must be above low_freq_factor %g",
                        at.file, at.prefix, c->rope_high, c->rope_low);
    c->rope_original_position = (uint32_t)original;
    return EK_OK;
}

static enum ek_status read_yarn(const json_t *rope, struct ek_json_at at, struct ek_config *c)
{
    bool truncate = true;

    c->rope_beta_fast = 32;
    c->rope_beta_slow = 1;
    c->rope_original_position = c->max_position;
    EK_TRY(ek_json_opt_real(rope, at, "beta_fast", 1e-3, 1e6, &c->rope_beta_fast));
    EK_TRY(ek_json_opt_real(rope, at, "beta_slow", 1e-3, 1e6, &c->rope_beta_slow));
    EK_TRY(ek_json_opt_real(rope, at, "mscale", 0, 1e3, &c->rope_mscale));
    EK_TRY(ek_json_opt_real(rope, at, "mscale_all_dim", 0, 1e3, &c->rope_mscale_all_dim));
    EK_TRY(ek_json_opt_real(rope, at, "attention_factor", 1e-3, 1e3, &c->rope_attention_factor));
    EK_TRY(opt_u32(rope, at, "original_max_position_embeddings", 1, MAX_POSITION,
                   &c->rope_original_position));
    EK_TRY(ek_json_opt_bool(rope, at, "truncate", &truncate));
    return truncate ? EK_OK : unsupported(at, "truncate", "false");
}

static const struct {
    const char *name;
    enum ek_rope_scaling scaling;
    enum ek_status (*read)(const json_t *rope, struct ek_json_at at, struct ek_config *c);
} rope_types[] = {
    {"default", EK_ROPE_PLAIN, NULL},  {"mrope", EK_ROPE_PLAIN, NULL},
    {"linear", EK_ROPE_LINEAR, NULL},  {"llama3", EK_ROPE_LLAMA3, read_llama3},
    {"yarn", EK_ROPE_YARN, read_yarn},
};

static enum ek_status read_scaling(const json_t *rope, struct ek_json_at at, struct ek_config *c)
{
    const char *type = "default";
    size_t i = 0;

    EK_TRY(ek_json_opt_string(rope, at, "type", &type));
    EK_TRY(ek_json_opt_string(rope, at, "rope_type", &type));
    while (i < EK_ARRAY_LEN(rope_types) && strcmp(rope_types[i].name, type) != 0)
        i++;
    if (i == EK_ARRAY_LEN(rope_types))
        return unsupported(at, "rope_type", type);
    c->rope_scaling = rope_types[i].scaling;
    EK_TRY(read_mrope(rope, at, c));
    if (c->rope_scaling != EK_ROPE_PLAIN)
        EK_TRY(ek_json_real(rope, at, "factor", 1e-3, 1e6, &c->rope_factor));
    return rope_types[i].read ? rope_types[i].read(rope, at, c) : EK_OK;
}

static enum ek_status read_rope(const json_t *text, struct ek_json_at at, struct ek_config *c)
{
    const char *key = json_is_object(json_object_get(text, "rope_parameters")) ? "rope_parameters"
                                                                               : "rope_scaling";
    const json_t *rope = json_object_get(text, key);
    char prefix[96];
    struct ek_json_at inner = {at.file, prefix};
    double rotary = 1;

    EK_TRY(ek_json_opt_real(text, at, "rope_theta", 1, 1e12, &c->rope_theta));
    EK_TRY(ek_json_opt_real(text, at, "partial_rotary_factor", 0, 1, &rotary));
    if (rope == NULL || json_is_null(rope))
        return rotary == 1 ? EK_OK : unsupported(at, "partial_rotary_factor", "below 1");
    if (!json_is_object(rope))
        return ek_error(EK_EFORMAT, "%s: %s%s must be an object", at.file, at.prefix, key);
    snprintf(prefix, sizeof(prefix), "%.48s%s.", at.prefix, key);
    EK_TRY(ek_json_opt_real(rope, inner, "rope_theta", 1, 1e12, &c->rope_theta));
    EK_TRY(ek_json_opt_real(rope, inner, "partial_rotary_factor", 0, 1, &rotary));
    if (rotary != 1)
        return unsupported(at, "partial_rotary_factor", "below 1");
    return read_scaling(rope, inner, c);
}

/* ---- Experts and latent attention -------------------------------------------------------------*/

static enum ek_status read_router(const json_t *text, struct ek_json_at at, struct ek_config *c)
{
    static const struct {
        const char *name;
        enum ek_router_kind kind;
    } methods[] = {
        {"greedy", EK_ROUTER_GREEDY},
        {"group_limited_greedy", EK_ROUTER_GROUP_LIMITED},
        {"noaux_tc", EK_ROUTER_NOAUX_TC},
    };
    const char *method = "gready", *scoring = "softmax"; /* the class's own, misspelt default */
    size_t i = 0;

    EK_TRY(ek_json_opt_string(text, at, "topk_method", &method));
    EK_TRY(ek_json_opt_string(text, at, "scoring_func", &scoring));
    EK_TRY(ek_json_opt_bool(text, at, "norm_topk_prob", &c->router_normalise));
    EK_TRY(ek_json_opt_real(text, at, "routed_scaling_factor", 1e-6, 1e6, &c->router_scale));
    while (i < EK_ARRAY_LEN(methods) && strcmp(methods[i].name, method) != 0)
        i++;
    if (i == EK_ARRAY_LEN(methods))
        return unsupported(at, "topk_method", method);
    c->router = methods[i].kind;
    c->router_sigmoid = strcmp(scoring, "sigmoid") == 0;
    if (!c->router_sigmoid && strcmp(scoring, "softmax") != 0)
        return unsupported(at, "scoring_func", scoring);
    return EK_OK;
}

static enum ek_status read_deepseek(const json_t *text, struct ek_json_at at, struct ek_config *c)
{
    bool mla = true;

    EK_TRY(read_fields(text, at, deepseek_fields, c));
    EK_TRY(ek_json_opt_bool(text, at, "use_mla", &mla));
    EK_TRY(must_be_off(text, at, "attention_bias"));
    if (c->n_experts)
        EK_TRY(read_router(text, at, c));
    else
        c->n_shared = c->top_k = 0;
    if (!mla) {
        c->q_lora = c->kv_lora = c->qk_nope = c->qk_rope = c->v_head = 0;
        return EK_OK;
    }
    c->attention = EK_ATTENTION_MLA;
    c->rope_layout = EK_ROPE_INTERLEAVED;
    c->head_dim = c->qk_nope + c->qk_rope;
    c->n_kv_heads = c->n_heads;
    return EK_OK;
}

/* ---- Text -------------------------------------------------------------------------------------*/

static enum ek_status add_eos(const json_t *v, struct ek_json_at at, struct ek_config *c)
{
    json_int_t id = json_integer_value(v);

    if (!json_is_integer(v) || id < 0 || id > MAX_TOKEN)
        return ek_error(EK_EFORMAT, "%s: %seos_token_id must be token numbers", at.file, at.prefix);
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id)
            return EK_OK;
    if (c->n_eos == EK_MAX_EOS)
        return ek_error(EK_EFORMAT, "%s: %seos_token_id: more than %d numbers", at.file, at.prefix,
                        EK_MAX_EOS);
    c->eos[c->n_eos++] = (int32_t)id;
    return EK_OK;
}

/* Stated ids replace the default; keep: they are added to those that are there. */
static enum ek_status read_ends(const json_t *obj, struct ek_json_at at, bool keep,
                                struct ek_config *c)
{
    const json_t *eos = json_object_get(obj, "eos_token_id"), *item;
    uint32_t bos = 0;
    size_t i;

    EK_TRY(opt_u32(obj, at, "bos_token_id", 0, MAX_TOKEN, &bos));
    if (json_is_integer(json_object_get(obj, "bos_token_id")))
        c->bos = (int32_t)bos;
    if (eos == NULL || json_is_null(eos))
        return EK_OK;
    if (!keep)
        c->n_eos = 0;
    if (!json_is_array(eos))
        return add_eos(eos, at, c);
    json_array_foreach(eos, i, item) EK_TRY(add_eos(item, at, c));
    return EK_OK;
}

static enum ek_status read_attention(const json_t *text, struct ek_json_at at,
                                     const struct ek_family *f, struct ek_config *c)
{
    bool bias = false;

    if (c->n_kv_heads == 0)
        c->n_kv_heads = c->n_heads;
    EK_TRY(opt_u32(text, at, "num_key_value_heads", 1, MAX_HEADS, &c->n_kv_heads));
    c->head_dim = c->hidden / c->n_heads;
    if (!f->deepseek) /* there the class has no such key */
        EK_TRY(opt_u32(text, at, "head_dim", 1, MAX_SIZE, &c->head_dim));
    EK_TRY(ek_json_opt_bool(text, at, "mlp_bias", &c->mlp_bias));
    if (f->qkv_bias || f->deepseek) {
        c->qkv_bias = f->qkv_bias;
        return EK_OK;
    }
    EK_TRY(ek_json_opt_bool(text, at, "attention_bias", &bias));
    c->qkv_bias = c->o_bias = bias;
    return EK_OK;
}

static enum ek_status read_text(const json_t *text, struct ek_json_at at, const struct ek_family *f,
                                struct ek_config *c)
{
    const char *act = "silu";

    EK_TRY(read_fields(text, at, text_fields, c));
    EK_TRY(ek_json_opt_real(text, at, "rms_norm_eps", 1e-20, 1, &c->norm_eps));
    EK_TRY(ek_json_opt_string(text, at, "hidden_act", &act));
    if (strcmp(act, "silu") != 0)
        return unsupported(at, "hidden_act", act);
    EK_TRY(must_be_off(text, at, "use_sliding_window"));
    EK_TRY(must_be_off(text, at, "rope_interleaved"));
    EK_TRY(read_attention(text, at, f, c));
    if (f->deepseek)
        EK_TRY(read_deepseek(text, at, c));
    EK_TRY(ek_json_opt_bool(text, at, "tie_word_embeddings", &c->tied_head));
    EK_TRY(read_ends(text, at, false, c));
    return read_rope(text, at, c);
}

/* ---- Vision -----------------------------------------------------------------------------------*/

static enum ek_status read_full_blocks(const json_t *v, struct ek_json_at at, struct ek_config *c)
{
    const json_t *list = json_object_get(v, "fullatt_block_indexes"), *item;
    size_t i;

    if (c->vision_layers > 64)
        return ek_error(EK_EUNSUPPORTED, "%s: %sdepth %u, at most 64", at.file, at.prefix,
                        c->vision_layers);
    if (list == NULL)
        return EK_OK;
    c->vision_full_attention = 0;
    json_array_foreach(list, i, item)
    {
        json_int_t block = json_integer_value(item);
        if (!json_is_integer(item) || block < 0 || block >= c->vision_layers)
            return ek_error(EK_EFORMAT, "%s: %sfullatt_block_indexes names no block of %u", at.file,
                            at.prefix, c->vision_layers);
        c->vision_full_attention |= (uint64_t)1 << block;
    }
    return EK_OK;
}

static enum ek_status read_qwen25_vision(const json_t *root, struct ek_json_at at,
                                         struct ek_config *c)
{
    struct ek_json_at inner = {at.file, "vision_config."};
    uint32_t out = c->hidden;
    const json_t *v;
    const char *act = "silu";

    EK_TRY(ek_json_object(root, at, "vision_config", &v));
    EK_TRY(read_fields(v, inner, qwen25_vision_fields, c));
    EK_TRY(opt_u32(v, inner, "out_hidden_size", 1, MAX_SIZE, &out));
    EK_TRY(
        ek_json_opt_real(v, inner, "tokens_per_second", 1e-3, 1e6, &c->vision_tokens_per_second));
    EK_TRY(ek_json_opt_string(v, inner, "hidden_act", &act));
    if (strcmp(act, "silu") != 0)
        return unsupported(inner, "hidden_act", act);
    if (out != c->hidden)
        return ek_error(EK_EFORMAT, "%s: vision_config.out_hidden_size %u, hidden_size %u", at.file,
                        out, c->hidden);
    return read_full_blocks(v, inner, c);
}

static enum ek_status read_projector(const json_t *root, struct ek_json_at at, struct ek_config *c)
{
    struct ek_json_at inner = {at.file, "projector_config."};
    const char *type = "downsample_mlp_gelu";
    uint32_t width = c->hidden, depth = 2, input = c->vision_hidden;
    double ratio = 1;
    const json_t *p = json_object_get(root, "projector_config");

    if (p == NULL)
        return EK_OK;
    EK_TRY(ek_json_object(root, at, "projector_config", &p));
    EK_TRY(ek_json_opt_string(p, inner, "projector_type", &type));
    EK_TRY(opt_u32(p, inner, "n_embed", 1, MAX_SIZE, &width));
    EK_TRY(opt_u32(p, inner, "input_dim", 1, MAX_SIZE, &input));
    EK_TRY(opt_u32(p, inner, "depth", 1, 64, &depth));
    EK_TRY(opt_u32(p, inner, "downsample_ratio", 1, 64, &c->vision_merge));
    EK_TRY(ek_json_opt_real(p, inner, "mlp_ratio", 1e-3, 64, &ratio));
    if (strcmp(type, "downsample_mlp_gelu") != 0)
        return unsupported(inner, "projector_type", type);
    if (depth != 2 || ratio != 1)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: projector_config: depth %u, mlp_ratio %g; 2 and 1 "
                        "are supported",
                        at.file, depth, ratio);
    EK_TRY(must_be_off(p, inner, "token_pooling"));
    if (width != c->hidden || input != c->vision_hidden)
        return ek_error(EK_EFORMAT, "%s: projector_config maps %u to %u, the model has %u and %u",
                        at.file, input, width, c->vision_hidden, c->hidden);
    return EK_OK;
}

static enum ek_status read_vl2_vision(const json_t *root, struct ek_json_at at, struct ek_config *c)
{
    struct ek_json_at inner = {at.file, "vision_config."};
    const char *tag = "2D";
    double ratio = 3.7362;
    const json_t *v;

    EK_TRY(ek_json_object(root, at, "vision_config", &v));
    EK_TRY(read_fields(v, inner, vl2_vision_fields, c));
    EK_TRY(ek_json_opt_real(v, inner, "mlp_ratio", 1e-3, 64, &ratio));
    c->vision_intermediate = (uint32_t)(c->vision_hidden * ratio);
    EK_TRY(ek_json_opt_string(root, at, "tile_tag", &tag));
    if (strcmp(tag, "2D") != 0)
        return unsupported(at, "tile_tag", tag);
    return read_projector(root, at, c);
}

/* ---- The whole --------------------------------------------------------------------------------*/

static enum ek_status find_family(const json_t *root, struct ek_json_at at,
                                  const struct ek_family **out)
{
    const char *name = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    const char *key = name ? "architectures" : "model_type";

    if (name == NULL)
        EK_TRY(ek_json_string(root, at, "model_type", &name));
    *out = key[0] == 'a' ? ek_family_of_architecture(name) : ek_family_of_model_type(name);
    return *out ? EK_OK : unsupported(at, key, name);
}

static enum ek_status read_dtype(const json_t *root, const json_t *text, struct ek_json_at at,
                                 struct ek_config *c)
{
    const char *name = "float32";

    EK_TRY(ek_json_opt_string(text, at, "torch_dtype", &name));
    EK_TRY(ek_json_opt_string(text, at, "dtype", &name));
    EK_TRY(ek_json_opt_string(root, at, "torch_dtype", &name));
    EK_TRY(ek_json_opt_string(root, at, "dtype", &name));
    if (!ek_dtype_from_name(name, &c->dtype) ||
        (c->dtype != EK_F32 && c->dtype != EK_F16 && c->dtype != EK_BF16))
        return unsupported(at, "torch_dtype", name);
    return EK_OK;
}

static enum ek_status read_quantised(const json_t *root, struct ek_json_at at, struct ek_config *c)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};

    for (size_t i = 0; i < EK_ARRAY_LEN(keys); i++) {
        const json_t *q = json_object_get(root, keys[i]);
        if (q && !json_is_null(q))
            EK_TRY(ek_config_quant(q, at, keys[i], NULL, c));
    }
    return EK_OK;
}

enum ek_status ek_config_parse(const json_t *root, const char *where, struct ek_config *c,
                               const struct ek_family **family)
{
    struct ek_json_at at = {where, ""}, inner = {where, ""};
    const json_t *text = root;
    char prefix[64];

    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: must be an object", where);
    EK_TRY(find_family(root, at, family));
    *c = *(*family)->defaults;
    c->architecture = (*family)->architecture;
    EK_TRY(read_quantised(root, at, c));
    if ((*family)->text_key &&
        ((*family)->text_needed || json_object_get(root, (*family)->text_key))) {
        EK_TRY(ek_json_object(root, at, (*family)->text_key, &text));
        EK_TRY(read_quantised(text, at, c));
        snprintf(prefix, sizeof(prefix), "%s.", (*family)->text_key);
        inner.prefix = prefix;
    }
    EK_TRY(read_dtype(root, text, at, c));
    EK_TRY(read_text(text, inner, *family, c));
    if (text != root) {
        EK_TRY(ek_json_opt_bool(root, at, "tie_word_embeddings", &c->tied_head));
        EK_TRY(read_ends(root, at, false, c));
    }
    if (c->vision == EK_VISION_QWEN25)
        EK_TRY(read_qwen25_vision(root, at, c));
    else if (c->vision == EK_VISION_VL2)
        EK_TRY(read_vl2_vision(root, at, c));
    return ek_config_check(c, where);
}

static enum ek_status read_generation(const char *dir, struct ek_config *c)
{
    char *path = ek_path_join(dir, "generation_config.json");
    json_t *root = NULL;
    enum ek_status st = EK_OK;

    if (path == NULL)
        return EK_ENOMEM;
    if (ek_file_exists(path)) {
        EK_GOTO(ek_json_read(path, CONFIG_MAX, &root), st, done);
        st = json_is_object(root) ? read_ends(root, (struct ek_json_at){path, ""}, true, c)
                                  : ek_error(EK_EFORMAT, "%s: must be an object", path);
    }
done:
    json_decref(root);
    free(path);
    return st;
}

/* Where GPTQ's first savers put it. */
static enum ek_status read_quantize_config(const char *dir, struct ek_config *c)
{
    char *path = ek_path_join(dir, "quantize_config.json");
    json_t *root = NULL;
    enum ek_status st = path ? EK_OK : EK_ENOMEM;

    if (st == EK_OK && c->quant == EK_QUANT_NONE && ek_file_exists(path)) {
        EK_GOTO(ek_json_read(path, CONFIG_MAX, &root), st, done);
        st = ek_config_quant(root, (struct ek_json_at){path, ""}, "quant_method", "gptq", c);
    }
done:
    json_decref(root);
    free(path);
    return st;
}

enum ek_status ek_config_read(const char *path, const char *dir, struct ek_config *c,
                              const struct ek_family **family)
{
    json_t *root;
    enum ek_status st;

    EK_TRY(ek_json_read(path, CONFIG_MAX, &root));
    st = ek_config_parse(root, path, c, family);
    json_decref(root);
    if (st == EK_OK && dir)
        st = read_quantize_config(dir, c);
    return st == EK_OK && dir ? read_generation(dir, c) : st;
}
