/* SPDX-License-Identifier: Apache-2.0
 *
 * GGUF metadata -> ek_config: the same values under other names, with llama.cpp's defaults.
 */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIZE     (1u << 24)
#define MAX_HEADS    4096
#define MAX_EXPERTS  1024
#define MAX_POSITION (1u << 30)

struct source {
    const struct ek_gguf *g;
    const char *arch; /* prefix of the keys */
};

#define KEY_BYTES 160

static const char *key_of(const struct source *s, const char *name, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%.64s.%s", s->arch, name);
    return key;
}

/* Absent keys leave *out, unless they are needed. */
static enum ek_status read_u32(const struct source *s, const char *name, bool needed, uint32_t max,
                               uint32_t *out)
{
    char key[KEY_BYTES];
    uint64_t v = *out;

    if (needed || ek_gguf_has(s->g, key_of(s, name, key)))
        EK_TRY(ek_gguf_u64(s->g, key_of(s, name, key), 1, max, &v));
    *out = (uint32_t)v;
    return EK_OK;
}

static enum ek_status read_real(const struct source *s, const char *name, bool needed, double min,
                                double max, double *out)
{
    char key[KEY_BYTES];

    if (!needed && !ek_gguf_has(s->g, key_of(s, name, key)))
        return EK_OK;
    EK_TRY(ek_gguf_real(s->g, key_of(s, name, key), out));
    if (*out < min || *out > max)
        return ek_error(EK_EFORMAT, "%s: key '%s' must be from %g to %g, got %g",
                        ek_gguf_path(s->g), key, min, max, *out);
    return EK_OK;
}

/* As read_u32; a count may be 0. */
static enum ek_status read_count(const struct source *s, const char *name, uint32_t max,
                                 uint32_t *out)
{
    char key[KEY_BYTES];
    uint64_t v = *out;

    if (ek_gguf_has(s->g, key_of(s, name, key)))
        EK_TRY(ek_gguf_u64(s->g, key, 0, max, &v));
    *out = (uint32_t)v;
    return EK_OK;
}

/* Sizes of latent attention. Files of before its absorbed form give the sizes of a head, later ones
 * those in the latent space, and a head's beside them. */
static enum ek_status read_latent(const struct source *s, struct ek_config *c)
{
    uint32_t key = 0;

    c->attention = EK_ATTENTION_MLA;
    c->rope_layout = EK_ROPE_INTERLEAVED;
    c->n_kv_heads = c->n_heads;
    c->q_lora = 0;
    EK_TRY(read_u32(s, "attention.q_lora_rank", false, MAX_SIZE, &c->q_lora));
    EK_TRY(read_u32(s, "attention.kv_lora_rank", true, MAX_SIZE, &c->kv_lora));
    EK_TRY(read_u32(s, "rope.dimension_count", true, MAX_SIZE, &c->qk_rope));
    EK_TRY(read_u32(s, "attention.key_length", true, MAX_SIZE, &key));
    EK_TRY(read_u32(s, "attention.key_length_mla", false, MAX_SIZE, &key));
    EK_TRY(read_u32(s, "attention.value_length", true, MAX_SIZE, &c->v_head));
    EK_TRY(read_u32(s, "attention.value_length_mla", false, MAX_SIZE, &c->v_head));
    if (key <= c->qk_rope)
        return ek_error(EK_EFORMAT, "%s: heads of %u, %u of them rotary", ek_gguf_path(s->g), key,
                        c->qk_rope);
    c->head_dim = key;
    c->qk_nope = key - c->qk_rope;
    return EK_OK;
}

static bool has_router_bias(const struct ek_gguf *g)
{
    for (size_t i = 0; i < ek_gguf_n_tensors(g); i++)
        if (strstr(ek_gguf_tensor_at(g, i)->name, ".exp_probs_b.bias") != NULL)
            return true;
    return false;
}

static enum ek_status read_experts(const struct source *s, struct ek_config *c)
{
    enum { SOFTMAX = 1, SIGMOID = 2 };
    uint32_t gating = SOFTMAX;
    char key[KEY_BYTES];

    c->first_dense = c->n_shared = c->top_k = 0;
    c->n_group = c->topk_group = 1;
    EK_TRY(read_count(s, "expert_count", MAX_EXPERTS, &c->n_experts));
    if (c->n_experts == 0)
        return EK_OK;
    EK_TRY(read_count(s, "leading_dense_block_count", EK_MAX_LAYERS, &c->first_dense));
    EK_TRY(read_count(s, "expert_shared_count", MAX_EXPERTS, &c->n_shared));
    EK_TRY(read_u32(s, "expert_used_count", true, MAX_EXPERTS, &c->top_k));
    EK_TRY(read_u32(s, "expert_feed_forward_length", true, MAX_SIZE, &c->moe_intermediate));
    EK_TRY(read_real(s, "expert_weights_scale", false, 1e-6, 1e6, &c->router_scale));
    if (ek_gguf_has(s->g, key_of(s, "expert_weights_norm", key)))
        EK_TRY(ek_gguf_bool(s->g, key, &c->router_normalise));
    EK_TRY(read_u32(s, "expert_group_count", false, MAX_EXPERTS, &c->n_group));
    EK_TRY(read_u32(s, "expert_group_used_count", false, MAX_EXPERTS, &c->topk_group));
    EK_TRY(read_u32(s, "expert_gating_func", false, SIGMOID, &gating));
    c->router_sigmoid = gating == SIGMOID;
    c->router = has_router_bias(s->g) ? EK_ROUTER_NOAUX_TC
                : c->n_group > 1      ? EK_ROUTER_GROUP_LIMITED
                                      : EK_ROUTER_GREEDY;
    return EK_OK;
}

static enum ek_status read_heads(const struct source *s, struct ek_config *c)
{
    uint32_t rotary;

    c->n_kv_heads = c->n_heads;
    EK_TRY(read_u32(s, "attention.head_count_kv", false, MAX_HEADS, &c->n_kv_heads));
    c->head_dim = c->hidden / c->n_heads;
    EK_TRY(read_u32(s, "attention.key_length", false, MAX_SIZE, &c->head_dim));
    rotary = c->head_dim;
    EK_TRY(read_u32(s, "rope.dimension_count", false, MAX_SIZE, &rotary));
    if (rotary != c->head_dim)
        return ek_error(EK_EUNSUPPORTED,
                        "%s: %u rotary dimensions of a head of %u: partial rope "
                        "is not supported",
                        ek_gguf_path(s->g), rotary, c->head_dim);
    return EK_OK;
}

static enum ek_status read_sizes(const struct source *s, struct ek_config *c)
{
    const struct ek_gguf_tensor *embed = ek_gguf_tensor_find(s->g, "token_embd.weight");

    EK_TRY(read_u32(s, "embedding_length", true, MAX_SIZE, &c->hidden));
    EK_TRY(read_u32(s, "block_count", true, EK_MAX_LAYERS, &c->n_layers));
    EK_TRY(read_u32(s, "feed_forward_length", true, MAX_SIZE, &c->intermediate));
    EK_TRY(read_u32(s, "attention.head_count", true, MAX_HEADS, &c->n_heads));
    EK_TRY(read_u32(s, "context_length", false, MAX_POSITION, &c->max_position));
    EK_TRY(read_real(s, "attention.layer_norm_rms_epsilon", true, 1e-20, 1, &c->norm_eps));
    if (embed == NULL || embed->n_dims != 2 || embed->shape[0] > MAX_SIZE)
        return ek_error(EK_EFORMAT, "%s: no matrix 'token_embd.weight'", ek_gguf_path(s->g));
    c->vocab = (uint32_t)embed->shape[0];
    return EK_OK;
}

static enum ek_status read_scaling(const struct source *s, struct ek_config *c)
{
    const char *type = "none";
    char key[KEY_BYTES];
    size_t n;

    EK_TRY(read_real(s, "rope.freq_base", false, 1, 1e12, &c->rope_theta));
    if (ek_gguf_has(s->g, key_of(s, "rope.scaling.type", key)))
        EK_TRY(ek_gguf_string(s->g, key, &type, &n));
    if (strcmp(type, "none") == 0)
        return EK_OK;
    if (strcmp(type, "linear") != 0 && strcmp(type, "yarn") != 0)
        return ek_error(EK_EUNSUPPORTED, "%s: key '%s': '%.64s' is not supported",
                        ek_gguf_path(s->g), key, type);
    c->rope_scaling = *type == 'l' ? EK_ROPE_LINEAR : EK_ROPE_YARN;
    EK_TRY(read_real(s, "rope.scaling.factor", true, 1e-3, 1e6, &c->rope_factor));
    if (c->rope_scaling == EK_ROPE_LINEAR)
        return EK_OK;
    c->rope_beta_fast = 32;
    c->rope_beta_slow = 1;
    c->rope_original_position = c->max_position;
    EK_TRY(read_real(s, "rope.scaling.yarn_beta_fast", false, 1e-3, 1e6, &c->rope_beta_fast));
    EK_TRY(read_real(s, "rope.scaling.yarn_beta_slow", false, 1e-3, 1e6, &c->rope_beta_slow));
    /* 0.1 of mscale_all_dim, and the files tell of no other mscale */
    EK_TRY(read_real(s, "rope.scaling.yarn_log_multiplier", false, 0, 1e2, &c->rope_mscale));
    c->rope_mscale_all_dim = c->rope_mscale *= 10;
    return read_u32(s, "rope.scaling.original_context_length", false, MAX_POSITION,
                    &c->rope_original_position);
}

/* Llama 3's scaling comes as one divisor a frequency. */
static enum ek_status read_factors(const struct ek_gguf *g, struct ek_arena *arena,
                                   struct ek_config *c)
{
    const struct ek_gguf_tensor *t = ek_gguf_tensor_find(g, "rope_freqs.weight");
    float *factors;

    if (t == NULL)
        return EK_OK;
    if (t->dtype != EK_F32 || t->n_dims != 1 || t->shape[0] != c->head_dim / 2)
        return ek_error(EK_EFORMAT, "%s: rope_freqs.weight must be %u numbers of type F32",
                        ek_gguf_path(g), c->head_dim / 2);
    if ((factors = ek_arena_alloc(arena, t->shape[0], sizeof(*factors))) == NULL)
        return EK_ENOMEM;
    EK_TRY(ek_gguf_read(g, t->offset, t->bytes, factors));
    for (uint64_t i = 0; i < t->shape[0]; i++)
        if (!(factors[i] > 0 && factors[i] < 1e9f))
            return ek_error(EK_EFORMAT, "%s: rope_freqs.weight[%llu] is %g", ek_gguf_path(g),
                            (unsigned long long)i, (double)factors[i]);
    c->rope_factors = factors;
    return EK_OK;
}

static enum ek_status read_token(const struct ek_gguf *g, const char *key, int32_t *out)
{
    uint64_t v;

    *out = -1;
    if (!ek_gguf_has(g, key))
        return EK_OK;
    EK_TRY(ek_gguf_u64(g, key, 0, UINT32_MAX, &v));
    if (v <= INT32_MAX)
        *out = (int32_t)v;
    return EK_OK;
}

static enum ek_status read_tokens(const struct ek_gguf *g, struct ek_config *c)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id",
                                       "tokenizer.ggml.eot_token_id"};
    int32_t id;

    c->n_eos = 0;
    EK_TRY(read_token(g, "tokenizer.ggml.bos_token_id", &c->bos));
    for (size_t i = 0; i < EK_ARRAY_LEN(ends); i++) {
        EK_TRY(read_token(g, ends[i], &id));
        if (id >= 0 && (c->n_eos == 0 || c->eos[0] != id))
            c->eos[c->n_eos++] = id;
    }
    return EK_OK;
}

static void read_biases(const struct ek_gguf *g, struct ek_config *c)
{
    const struct ek_gguf_tensor *largest = ek_gguf_tensor_at(g, 0);

    c->tied_head = ek_gguf_tensor_find(g, "output.weight") == NULL;
    c->qkv_bias = ek_gguf_tensor_find(g, "blk.0.attn_q.bias") != NULL;
    c->o_bias = ek_gguf_tensor_find(g, "blk.0.attn_output.bias") != NULL;
    c->mlp_bias = ek_gguf_tensor_find(g, "blk.0.ffn_gate.bias") != NULL;
    for (size_t i = 1; i < ek_gguf_n_tensors(g); i++)
        if (ek_gguf_tensor_at(g, i)->bytes > largest->bytes)
            largest = ek_gguf_tensor_at(g, i);
    c->dtype = largest->dtype;
}

enum ek_status ek_config_from_gguf(const struct ek_gguf *g, struct ek_arena *arena,
                                   struct ek_config *c, const struct ek_family **family)
{
    struct source s = {.g = g};
    size_t n;

    EK_TRY(ek_gguf_string(g, "general.architecture", &s.arch, &n));
    if ((*family = ek_family_of_gguf(s.arch)) == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: general.architecture '%.64s' is not supported",
                        ek_gguf_path(g), s.arch);
    *c = *(*family)->defaults;
    c->architecture = (*family)->architecture;
    EK_TRY(read_sizes(&s, c));
    EK_TRY(((*family)->deepseek ? read_latent : read_heads)(&s, c));
    if ((*family)->deepseek)
        EK_TRY(read_experts(&s, c));
    EK_TRY(read_scaling(&s, c));
    EK_TRY(read_factors(g, arena, c));
    EK_TRY(read_tokens(g, c));
    read_biases(g, c);
    if (ek_gguf_has(g, "llama.expert_count"))
        return ek_error(EK_EUNSUPPORTED, "%s: llama.expert_count: experts are not supported",
                        ek_gguf_path(g));
    return ek_config_check(c, ek_gguf_path(g));
}
