/* SPDX-License-Identifier: Apache-2.0
 *
 * Signatures say which modules cost the same, the hash says which model it is. Both are made from
 * text lines, so that they are the same on every machine.
 */
#include "model/internal.h"

#include <stdarg.h>
#include <string.h>

static void add(struct ek_hash *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct ek_hash *h, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    ek_hash_add(h, line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1);
}

static void add_shape(struct ek_hash *h, const struct ek_tensor *t)
{
    add(h, "%s%s", ek_dtype_name(t->dtype), t->order ? " ordered" : "");
    for (uint32_t i = 0; i < t->n_dims; i++)
        add(h, " %llu", (unsigned long long)t->shape[i]);
    add(h, "\n");
}

/* Numbers that change what a layer costs beyond its shapes. */
static void add_layer_costs(struct ek_hash *h, const struct ek_config *c)
{
    add(h, "attention %d heads %u %u dim %u rope %d\n", c->attention, c->n_heads, c->n_kv_heads,
        c->head_dim, c->rope_layout);
    add(h, "mla %u %u %u %u %u\n", c->q_lora, c->kv_lora, c->qk_nope, c->qk_rope, c->v_head);
    add(h, "experts %u %u %u router %d %u %u %d %d\n", c->n_experts, c->n_shared, c->top_k,
        c->router, c->n_group, c->topk_group, c->router_sigmoid, c->router_normalise);
}

static void add_vision(struct ek_hash *h, const struct ek_config *c)
{
    add(h, "vision %d layers %u hidden %u heads %u ffn %u\n", c->vision, c->vision_layers,
        c->vision_hidden, c->vision_heads, c->vision_intermediate);
    add(h, "patch %u merge %u window %u image %u temporal %u full %llx\n", c->vision_patch,
        c->vision_merge, c->vision_window, c->vision_image, c->vision_temporal,
        (unsigned long long)c->vision_full_attention);
}

/* Blocks are told apart by what they attend to. */
static void add_block(struct ek_hash *h, const struct ek_config *c, const struct ek_module *mod)
{
    bool full = c->vision != EK_VISION_QWEN25 || (c->vision_full_attention >> mod->layer & 1);

    add(h, "block %d heads %u merge %u window %u image %u\n", c->vision, c->vision_heads,
        c->vision_merge, full ? 0 : c->vision_window / c->vision_patch, c->vision_image);
}

static void sign(struct ek_hash *h, const struct ek_config *c, const struct ek_module *mod)
{
    add(h, "module %d hidden %u\n", mod->kind, c->hidden);
    if (mod->kind == EK_MODULE_LAYER)
        add_layer_costs(h, c);
    if (mod->kind == EK_MODULE_BLOCK)
        add_block(h, c, mod);
    else if (ek_module_is_visual(mod) && mod->kind != EK_MODULE_VECTOR)
        add_vision(h, c);
    for (size_t i = 0; i < mod->n_tensors; i++) {
        add(h, "%d %d ", mod->tensors[i].role, mod->tensors[i].index);
        add_shape(h, &mod->tensors[i]);
    }
}

static void add_config(struct ek_hash *h, const struct ek_config *c)
{
    uint32_t rotary = c->attention == EK_ATTENTION_MLA ? c->qk_rope : c->head_dim;

    add(h, "%s hidden %u layers %u ffn %u vocab %u position %u eps %.9g tied %d\n", c->architecture,
        c->hidden, c->n_layers, c->intermediate, c->vocab, c->max_position, c->norm_eps,
        c->tied_head);
    add_layer_costs(h, c);
    add(h, "theta %.9g scaling %d %.9g low %.9g high %.9g fast %.9g slow %.9g\n", c->rope_theta,
        c->rope_scaling, c->rope_factor, c->rope_low, c->rope_high, c->rope_beta_fast,
        c->rope_beta_slow);
    add(h, "mscale %.9g %.9g %.9g original %u sections %u %u %u\n", c->rope_mscale,
        c->rope_mscale_all_dim, c->rope_attention_factor, c->rope_original_position,
        c->mrope_section[0], c->mrope_section[1], c->mrope_section[2]);
    for (uint32_t i = 0; c->rope_factors && i < rotary / 2; i++)
        add(h, "%.9g ", (double)c->rope_factors[i]);
    add(h, "dense %u every %u ffn %u scale %.9g\n", c->first_dense, c->moe_freq,
        c->moe_intermediate, c->router_scale);
    add_vision(h, c);
}

enum ek_status ek_modules_sign(struct ek_model *m)
{
    for (size_t i = 0; i < m->n_modules; i++) {
        struct ek_hash *h = ek_hash_new();
        if (h == NULL)
            return EK_ENOMEM;
        sign(h, &m->config, &m->modules[i]);
        ek_hash_end(h, m->modules[i].signature);
    }
    return EK_OK;
}

enum ek_status ek_model_identify(struct ek_model *m)
{
    struct ek_hash *h;

    EK_TRY(ek_modules_sign(m));
    if ((h = ek_hash_new()) == NULL)
        return EK_ENOMEM;
    add_config(h, &m->config);
    for (size_t i = 0; i < m->n_modules; i++)
        for (size_t j = 0; j < m->modules[i].n_tensors; j++) {
            const struct ek_tensor *t = &m->modules[i].tensors[j];
            ek_hash_add(h, t->name, strlen(t->name));
            add(h, " ");
            add_shape(h, t);
        }
    ek_hash_end(h, m->hash);
    return EK_OK;
}
