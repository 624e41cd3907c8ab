/* SPDX-License-Identifier: Apache-2.0
 *
 * A model as JSON, for `model --json`.
 */
#include "model/internal.h"

const char *const ek_module_kind_names[EK_N_MODULE_KINDS] = {
    [EK_MODULE_EMBED] = "embed",   [EK_MODULE_LAYER] = "layer",
    [EK_MODULE_NORM] = "norm",     [EK_MODULE_HEAD] = "head",
    [EK_MODULE_VISION] = "vision", [EK_MODULE_PROJECTOR] = "projector",
    [EK_MODULE_VECTOR] = "vector", [EK_MODULE_PATCHES] = "patches",
    [EK_MODULE_BLOCK] = "block",   [EK_MODULE_MERGER] = "merger",
};

static json_t *whole(uint64_t v)
{
    return json_integer((json_int_t)v);
}

static json_t *module_json(const struct ek_model *m, const struct ek_module *mod)
{
    json_t *o = json_object();

    json_object_set_new(o, "name", json_string(mod->name));
    json_object_set_new(o, "kind", json_string(ek_module_kind_names[mod->kind]));
    if (mod->layer >= 0)
        json_object_set_new(o, "layer", json_integer(mod->layer));
    json_object_set_new(o, "side", json_boolean(mod->side));
    if (mod->tied_to >= 0)
        json_object_set_new(o, "tied_to", json_string(m->modules[mod->tied_to].name));
    json_object_set_new(o, "signature", json_string(mod->signature));
    json_object_set_new(o, "tensors", whole(mod->n_tensors));
    json_object_set_new(o, "params", whole(mod->n_params));
    json_object_set_new(o, "weight_bytes", whole(mod->weight_bytes));
    json_object_set_new(o, "kv_bytes_f16", whole(ek_module_kv_bytes(m, mod, EK_F16)));
    json_object_set_new(o, "boundary_bytes_f32", whole(ek_module_boundary_bytes(m, mod, EK_F32)));
    json_object_set_new(o, "flops_decode", json_real(ek_module_flops(m, mod, 1, 1, false)));
    return o;
}

static json_t *config_json(const struct ek_config *c)
{
    json_t *o = json_object(), *eos = json_array();

    json_object_set_new(o, "hidden", whole(c->hidden));
    json_object_set_new(o, "layers", whole(c->n_layers));
    json_object_set_new(o, "heads", whole(c->n_heads));
    json_object_set_new(o, "kv_heads", whole(c->n_kv_heads));
    json_object_set_new(o, "head_dim", whole(c->head_dim));
    json_object_set_new(o, "intermediate", whole(c->intermediate));
    json_object_set_new(o, "vocab", whole(c->vocab));
    json_object_set_new(o, "max_position", whole(c->max_position));
    json_object_set_new(o, "attention",
                        json_string(c->attention == EK_ATTENTION_MLA ? "mla" : "gqa"));
    if (c->n_experts) {
        json_object_set_new(o, "experts", whole(c->n_experts));
        json_object_set_new(o, "experts_used", whole(c->top_k));
    }
    json_object_set_new(o, "tied_head", json_boolean(c->tied_head));
    json_object_set_new(o, "dtype", json_string(ek_dtype_name(c->dtype)));
    for (uint32_t i = 0; i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos[i]));
    json_object_set_new(o, "eos", eos);
    return o;
}

json_t *ek_model_json(const struct ek_model *m)
{
    json_t *o = json_object(), *modules = json_array();
    uint64_t bytes = 0, kv = 0;

    for (size_t i = 0; i < m->n_modules; i++) {
        const struct ek_module *mod = &m->modules[i];
        bytes += mod->tied_to < 0 ? mod->weight_bytes : 0;
        kv += ek_module_kv_bytes(m, mod, EK_F16);
        json_array_append_new(modules, module_json(m, mod));
    }
    json_object_set_new(o, "name", json_string(m->name));
    json_object_set_new(o, "architecture", json_string(m->config.architecture));
    json_object_set_new(o, "hash", json_string(m->hash));
    json_object_set_new(o, "has_weights", json_boolean(m->has_weights));
    json_object_set_new(o, "params", whole(m->n_params));
    json_object_set_new(o, "weight_bytes", whole(bytes));
    json_object_set_new(o, "kv_bytes_per_token_f16", whole(kv));
    json_object_set_new(o, "config", config_json(&m->config));
    json_object_set_new(o, "modules", modules);
    return o;
}
