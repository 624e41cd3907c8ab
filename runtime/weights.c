/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights of a stage: which matrices it makes of the checkpoint's tensors. Matrices that share an
 * input and a type (q, k, v; gate, up) become one. The same walk counts the bytes (dry) and makes
 * the matrices.
 */
#include "runtime/vision.h"
#include "runtime/weights.h"

#include <stdlib.h>
#include <string.h>

enum ek_status walk_load(struct walk *w, const struct ek_tensor *t, struct ek_mat *mat,
                         uint32_t row0, float *vec)
{
    if (w->dry)
        return EK_OK;
    EK_TRY(ek_grow((void **)&w->loads, &w->cap_loads, w->n_loads + 1, sizeof(*w->loads), 1u << 20));
    w->loads[w->n_loads++] = (struct load){.t = t, .mat = mat, .row0 = row0, .vec = vec};
    return EK_OK;
}

float *walk_vector(struct walk *w, size_t n)
{
    float *p = w->dry ? NULL : (float *)(void *)(w->s->vectors + w->vec_at);

    w->vec_at += ek_round_up(n * sizeof(float), STAGE_ALIGN);
    return p;
}

/* A required tensor of [rows][cols], or [rows] when cols is 0; index: expert number, or -1. */
static enum ek_status need_at(const struct ek_module *mod, enum ek_role role, int32_t index,
                              uint64_t rows, uint64_t cols, const struct ek_tensor **out)
{
    const struct ek_tensor *t = ek_module_tensor(mod, role, index);
    uint32_t dims = cols ? 2 : 1;

    if (t == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: no tensor of role %d", mod->name, (int)role);
    if (t->n_dims != dims || t->shape[0] != rows || (cols && t->shape[1] != cols))
        return ek_error(EK_EFORMAT, "%s: %s is %u-dimensional [%llu, %llu], expected [%llu, %llu]",
                        mod->name, t->name, t->n_dims, (unsigned long long)t->shape[0],
                        (unsigned long long)(t->n_dims > 1 ? t->shape[1] : 0),
                        (unsigned long long)rows, (unsigned long long)cols);
    *out = t;
    return EK_OK;
}

static enum ek_status need(const struct ek_module *mod, enum ek_role role, uint64_t rows,
                           uint64_t cols, const struct ek_tensor **out)
{
    return need_at(mod, role, -1, rows, cols, out);
}

static enum ek_status add_vector(struct walk *w, const struct ek_module *mod, enum ek_role role,
                                 uint32_t n, float **out)
{
    const struct ek_tensor *t;
    float *vec;

    EK_TRY(need(mod, role, n, 0, &t));
    vec = walk_vector(w, n);
    EK_TRY(walk_load(w, t, NULL, 0, vec));
    if (!w->dry)
        *out = vec;
    return EK_OK;
}

enum ek_status walk_mat(struct walk *w, enum ek_dtype dtype, uint32_t rows, uint32_t cols,
                        struct ek_mat *out)
{
    struct ek_device *dev = w->s->dev;
    size_t bytes;

    EK_TRY(ek_dtype_bytes(dtype, cols, &bytes));
    w->mat_bytes +=
        dev->ops->mat_bytes ? dev->ops->mat_bytes(dev, dtype, rows, cols) : bytes * rows;
    return w->dry ? EK_OK : dev->ops->mat_new(dev, dtype, rows, cols, out);
}

static enum ek_status add_mat(struct walk *w, const struct ek_module *mod, enum ek_role role,
                              uint32_t rows, uint32_t cols, struct ek_mat *out)
{
    const struct ek_tensor *t;

    EK_TRY(need(mod, role, rows, cols, &t));
    EK_TRY(walk_mat(w, t->dtype, rows, cols, out));
    return walk_load(w, t, out, 0, NULL);
}

struct part {
    enum ek_role role, bias;
    uint32_t rows;
};

/* Biases of parts [0, n) side by side at one vector; rows of a missing one stay zero. */
static enum ek_status add_biases(struct walk *w, const struct ek_module *mod,
                                 const struct part *parts, uint32_t n, const float **out, bool *has)
{
    uint32_t rows = 0;
    float *vec;

    *has = false;
    for (uint32_t i = 0; i < n; i++) {
        rows += parts[i].rows;
        *has |= ek_module_tensor(mod, parts[i].bias, -1) != NULL;
    }
    *out = NULL;
    if (!*has)
        return EK_OK;
    *out = vec = walk_vector(w, rows);
    for (uint32_t i = 0, at = 0; i < n; at += parts[i++].rows) {
        const struct ek_tensor *t;
        if (ek_module_tensor(mod, parts[i].bias, -1) == NULL)
            continue;
        EK_TRY(need(mod, parts[i].bias, parts[i].rows, 0, &t));
        EK_TRY(walk_load(w, t, NULL, 0, vec ? vec + at : NULL));
    }
    return EK_OK;
}

static bool same_order(const struct ek_tensor *a, const struct ek_tensor *b)
{
    if (a->order == NULL || b->order == NULL)
        return a->order == b->order;
    return memcmp(a->order, b->order, a->shape[1] * sizeof(*a->order)) == 0;
}

/* The order of part i's columns, shared with the part before where it is the same. */
static enum ek_status add_order(struct walk *w, const struct ek_tensor *const *t, uint32_t i,
                                struct stage_linear *out)
{
    float *vec;

    out->orders[i] = NULL;
    if (t[i]->order == NULL)
        return EK_OK;
    out->has_order = true;
    if (i > 0 && same_order(t[i - 1], t[i])) {
        out->orders[i] = out->orders[i - 1];
        return EK_OK;
    }
    vec = walk_vector(w, t[i]->shape[1]); /* I32, as large as F32 */
    out->orders[i] = (const int32_t *)(const void *)vec;
    EK_TRY(walk_load(w, t[i], NULL, 0, vec));
    if (!w->dry)
        w->loads[w->n_loads - 1].order = true;
    return EK_OK;
}

/* All parts as one matrix. */
static enum ek_status add_merged(struct walk *w, const struct ek_module *mod,
                                 const struct part *parts, const struct ek_tensor *const *t,
                                 uint32_t n, uint32_t cols, struct stage_linear *out)
{
    uint32_t row0 = 0;

    EK_TRY(walk_mat(w, t[0]->dtype, out->rows, cols, &out->mats[0]));
    out->n = 1;
    EK_TRY(add_order(w, t, 0, out));
    for (uint32_t i = 0; i < n; row0 += parts[i++].rows)
        EK_TRY(walk_load(w, t[i], &out->mats[0], row0, NULL));
    return add_biases(w, mod, parts, n, &out->biases[0], &out->has_bias);
}

static enum ek_status add_linear(struct walk *w, const struct ek_module *mod,
                                 const struct part *parts, uint32_t n, uint32_t cols, bool merge,
                                 struct stage_linear *out)
{
    const struct ek_tensor *t[STAGE_MAX_PARTS];

    out->rows = 0;
    out->has_order = false;
    for (uint32_t i = 0; i < n; i++) {
        EK_TRY(need(mod, parts[i].role, parts[i].rows, cols, &t[i]));
        merge = merge && t[i]->dtype == t[0]->dtype && same_order(t[i], t[0]);
        out->rows += parts[i].rows;
    }
    if (merge)
        return add_merged(w, mod, parts, t, n, cols, out);
    out->n = n;
    out->has_bias = false;
    for (uint32_t i = 0; i < n; i++) {
        bool has;
        EK_TRY(walk_mat(w, t[i]->dtype, parts[i].rows, cols, &out->mats[i]));
        EK_TRY(walk_load(w, t[i], &out->mats[i], 0, NULL));
        EK_TRY(add_order(w, t, i, out));
        EK_TRY(add_biases(w, mod, &parts[i], 1, &out->biases[i], &has));
        out->has_bias |= has;
    }
    return EK_OK;
}

static enum ek_status add_attention(struct walk *w, const struct ek_module *mod,
                                    struct stage_layer *l)
{
    const struct ek_config *c = &w->s->m->config;
    uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    const struct part qkv[] = {{EK_ROLE_Q, EK_ROLE_Q_BIAS, q},
                               {EK_ROLE_K, EK_ROLE_K_BIAS, kv},
                               {EK_ROLE_V, EK_ROLE_V_BIAS, kv}};
    const struct part o = {EK_ROLE_O, EK_ROLE_O_BIAS, c->hidden};

    /* the fused operation takes q, k and v apart */
    EK_TRY(add_linear(w, mod, qkv, 3, c->hidden, w->s->dev->ops->norm_qkv_rope == NULL, &l->qkv));
    return add_linear(w, mod, &o, 1, q, true, &l->o);
}

/* Biases: the official projections have none. */
static enum ek_status add_latent(struct walk *w, const struct ek_module *mod, struct stage_layer *l)
{
    const struct ek_config *c = &w->s->m->config;
    bool low_rank = stage_low_rank_query(w->s);
    uint32_t q = c->n_heads * (c->qk_nope + c->qk_rope), v = c->n_heads * c->v_head;
    const struct part first[] = {{low_rank ? EK_ROLE_Q_A : EK_ROLE_Q, EK_N_ROLES,
                                  low_rank ? c->q_lora : q},
                                 {EK_ROLE_KV_A, EK_N_ROLES, c->kv_lora + c->qk_rope}};
    const struct part q_b = {EK_ROLE_Q_B, EK_N_ROLES, q},
                      o = {EK_ROLE_O, EK_ROLE_O_BIAS, c->hidden};

    EK_TRY(add_linear(w, mod, first, 2, c->hidden, true, &l->qkv));
    if (low_rank) {
        EK_TRY(add_vector(w, mod, EK_ROLE_Q_A_NORM, c->q_lora, &l->q_a_norm));
        EK_TRY(add_linear(w, mod, &q_b, 1, c->q_lora, true, &l->q_b));
    }
    EK_TRY(add_vector(w, mod, EK_ROLE_KV_A_NORM, c->kv_lora, &l->kv_a_norm));
    EK_TRY(
        add_mat(w, mod, EK_ROLE_KV_B, c->n_heads * (c->qk_nope + c->v_head), c->kv_lora, &l->kv_b));
    return add_linear(w, mod, &o, 1, v, true, &l->o);
}

static enum ek_status add_dense(struct walk *w, const struct ek_module *mod, struct stage_layer *l)
{
    const struct ek_config *c = &w->s->m->config;
    uint32_t ff = c->intermediate;
    const struct part gate_up[] = {{EK_ROLE_GATE, EK_ROLE_GATE_BIAS, ff},
                                   {EK_ROLE_UP, EK_ROLE_UP_BIAS, ff}};
    const struct part down = {EK_ROLE_DOWN, EK_ROLE_DOWN_BIAS, c->hidden};

    /* the fused operation takes gate and up apart, and no biases */
    EK_TRY(add_linear(w, mod, gate_up, 2, c->hidden,
                      w->s->dev->ops->norm_gate_up == NULL || c->mlp_bias, &l->gate_up));
    return add_linear(w, mod, &down, 1, ff, true, &l->down);
}

/* Rows of one expert's tensor into a tall matrix of all experts. */
static enum ek_status add_expert(struct walk *w, const struct ek_module *mod, enum ek_role role,
                                 uint32_t expert, uint32_t rows, uint32_t cols, struct ek_mat *mat,
                                 uint32_t row0)
{
    const struct ek_tensor *t;

    EK_TRY(need_at(mod, role, (int32_t)expert, rows, cols, &t));
    if (!w->dry && t->dtype != mat->dtype)
        return ek_error(EK_EUNSUPPORTED, "%s is %s, the first expert's %s", t->name,
                        ek_dtype_name(t->dtype), ek_dtype_name(mat->dtype));
    return walk_load(w, t, mat, row0, NULL);
}

static enum ek_status add_experts(struct walk *w, const struct ek_module *mod,
                                  struct stage_layer *l)
{
    const struct ek_config *c = &w->s->m->config;
    uint32_t n = c->n_experts, inner = c->moe_intermediate, shared = c->n_shared * inner;
    const struct part gate_up[] = {{EK_ROLE_SHARED_GATE, EK_N_ROLES, shared},
                                   {EK_ROLE_SHARED_UP, EK_N_ROLES, shared}};
    const struct part down = {EK_ROLE_SHARED_DOWN, EK_N_ROLES, c->hidden};
    const struct ek_tensor *gate, *first_down;

    EK_TRY(need_at(mod, EK_ROLE_EXPERT_GATE, 0, inner, c->hidden, &gate));
    EK_TRY(need_at(mod, EK_ROLE_EXPERT_DOWN, 0, c->hidden, inner, &first_down));
    EK_TRY(add_mat(w, mod, EK_ROLE_ROUTER, n, c->hidden, &l->router));
    if (ek_module_tensor(mod, EK_ROLE_ROUTER_BIAS, -1) != NULL)
        EK_TRY(add_vector(w, mod, EK_ROLE_ROUTER_BIAS, n, &l->router_bias));
    EK_TRY(walk_mat(w, gate->dtype, 2 * n * inner, c->hidden, &l->experts_gate_up));
    EK_TRY(walk_mat(w, first_down->dtype, n * c->hidden, inner, &l->experts_down));
    for (uint32_t e = 0; e < n; e++) {
        EK_TRY(add_expert(w, mod, EK_ROLE_EXPERT_GATE, e, inner, c->hidden, &l->experts_gate_up,
                          2 * e * inner));
        EK_TRY(add_expert(w, mod, EK_ROLE_EXPERT_UP, e, inner, c->hidden, &l->experts_gate_up,
                          (2 * e + 1) * inner));
        EK_TRY(add_expert(w, mod, EK_ROLE_EXPERT_DOWN, e, c->hidden, inner, &l->experts_down,
                          e * c->hidden));
    }
    if (shared == 0)
        return EK_OK;
    EK_TRY(add_linear(w, mod, gate_up, 2, c->hidden, true, &l->gate_up));
    return add_linear(w, mod, &down, 1, shared, true, &l->down);
}

static enum ek_status add_layer(struct walk *w, const struct ek_module *mod, struct stage_layer *l)
{
    const struct ek_config *c = &w->s->m->config;
    bool experts = ek_module_tensor(mod, EK_ROLE_ROUTER, -1) != NULL;

    EK_TRY(add_vector(w, mod, EK_ROLE_NORM, c->hidden, &l->norm));
    EK_TRY((c->attention == EK_ATTENTION_MLA ? add_latent : add_attention)(w, mod, l));
    EK_TRY(add_vector(w, mod, EK_ROLE_NORM2, c->hidden, &l->norm2));
    return (experts ? add_experts : add_dense)(w, mod, l);
}

/* A tied head takes the embedding that is on its device, else a copy of its own. */
static enum ek_status add_head(struct walk *w, const struct ek_module *mod)
{
    struct ek_stage *s = w->s;
    const struct ek_config *c = &s->m->config;
    bool tied = mod->tied_to >= 0;

    if (tied && s->has_embed)
        s->head = &s->embed;
    else if (tied && s->opt.shared_embed)
        s->head = s->opt.embed_of ? &s->opt.embed_of->embed : NULL;
    else {
        s->head = &s->head_own;
        return add_mat(w, tied ? &s->m->modules[mod->tied_to] : mod,
                       tied ? EK_ROLE_EMBED : EK_ROLE_HEAD, c->vocab, c->hidden, &s->head_own);
    }
    if (!w->dry && s->head == NULL)
        return ek_error(EK_EUSAGE, "%s: shared_embed without embed_of", mod->name);
    return EK_OK;
}

static enum ek_status add_module(struct walk *w, const struct ek_module *mod, size_t *layer)
{
    struct ek_stage *s = w->s;
    const struct ek_config *c = &s->m->config;

    switch (mod->kind) {
    case EK_MODULE_EMBED:
        return add_mat(w, mod, EK_ROLE_EMBED, c->vocab, c->hidden, &s->embed);
    case EK_MODULE_LAYER:
        return add_layer(w, mod, &s->layers[(*layer)++]);
    case EK_MODULE_NORM:
        return add_vector(w, mod, EK_ROLE_NORM, c->hidden, &s->final_norm);
    case EK_MODULE_HEAD:
        return add_head(w, mod);
    default:
        return vision_add_weights(w, mod);
    }
}

static uint32_t rope_dim(const struct ek_stage *s)
{
    const struct ek_config *c = &s->m->config;

    return c->attention == EK_ATTENTION_MLA ? c->qk_rope : c->head_dim;
}

static enum ek_status walk_modules(struct walk *w, const size_t *modules, size_t n)
{
    struct ek_stage *s = w->s;
    size_t layer = 0;

    if (s->n_layers > 0)
        s->rope.inv_freq = walk_vector(w, rope_dim(s) / 2);
    for (size_t i = 0; i < n; i++)
        EK_TRY(add_module(w, &s->m->modules[modules[i]], &layer));
    return EK_OK;
}

enum ek_status stage_weights_count(struct ek_stage *s, const size_t *modules, size_t n,
                                   struct stage_weights *out)
{
    struct walk w = {.s = s, .dry = true};

    EK_TRY(walk_modules(&w, modules, n));
    *out = (struct stage_weights){.vector_bytes = w.vec_at, .mat_bytes = w.mat_bytes};
    return EK_OK;
}

/* ---- loading */
static enum ek_status ready(struct ek_stage *s, struct stage_linear *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        EK_TRY(s->dev->ops->mat_ready(s->dev, &l->mats[i]));
    return EK_OK;
}

static enum ek_status ready_mat(struct ek_stage *s, struct ek_mat *m)
{
    return m->data != NULL ? s->dev->ops->mat_ready(s->dev, m) : EK_OK;
}

static enum ek_status ready_all(struct ek_stage *s)
{
    EK_TRY(ready_mat(s, &s->embed));
    EK_TRY(ready_mat(s, &s->head_own));
    for (size_t i = 0; i < s->n_layers; i++) {
        struct stage_layer *l = &s->layers[i];
        EK_TRY(ready(s, &l->qkv));
        EK_TRY(ready(s, &l->q_b));
        EK_TRY(ready(s, &l->o));
        EK_TRY(ready(s, &l->gate_up));
        EK_TRY(ready(s, &l->down));
        EK_TRY(ready_mat(s, &l->kv_b));
        EK_TRY(ready_mat(s, &l->router));
        EK_TRY(ready_mat(s, &l->experts_gate_up));
        EK_TRY(ready_mat(s, &l->experts_down));
    }
    return vision_each_mat(s, s->dev->ops->mat_ready);
}

static enum ek_status load_rope(struct ek_stage *s)
{
    uint32_t half = rope_dim(s) / 2;
    float *freq;
    enum ek_status st;

    if (s->n_layers == 0)
        return EK_OK;
    if ((freq = ek_calloc(half, sizeof(*freq))) == NULL)
        return EK_ENOMEM;
    ek_config_rope(&s->m->config, freq, &s->rope.amplitude, &s->softmax_scale);
    s->rope.dim = 2 * half;
    s->rope.interleaved = s->m->config.rope_layout == EK_ROPE_INTERLEAVED;
    memcpy(s->rope.sections, s->m->config.mrope_section, sizeof(s->rope.sections));
    st = s->dev->ops->upload(s->dev, (void *)(uintptr_t)s->rope.inv_freq, freq,
                             half * sizeof(*freq)); /* under 64 KiB: taken at once */
    free(freq);
    return st;
}

enum ek_status stage_weights_load(struct ek_stage *s, const size_t *modules, size_t n)
{
    struct walk w = {.s = s};
    enum ek_status st;

    EK_GOTO(walk_modules(&w, modules, n), st, done);
    EK_GOTO(load_rope(s), st, done);
    EK_GOTO(vision_load_rope(s), st, done);
    if (s->opt.load)
        EK_GOTO(load_measured(s->m, s->dev, w.loads, w.n_loads, s->opt.load), st, done);
    else
        EK_GOTO(load_all(s->m, s->dev, w.loads, w.n_loads, LOAD_READ | LOAD_SEND), st, done);
    st = ready_all(s);
done:
    free(w.loads);
    return st;
}

static void mat_free(struct ek_stage *s, struct ek_mat *m)
{
    if (m->data != NULL)
        s->dev->ops->mat_free(s->dev, m);
}

static void linear_free(struct ek_stage *s, struct stage_linear *l)
{
    for (uint32_t i = 0; i < STAGE_MAX_PARTS; i++)
        mat_free(s, &l->mats[i]);
}

void stage_weights_free(struct ek_stage *s)
{
    for (size_t i = 0; s->layers && i < s->n_layers; i++) {
        struct stage_layer *l = &s->layers[i];
        linear_free(s, &l->qkv);
        linear_free(s, &l->q_b);
        linear_free(s, &l->o);
        linear_free(s, &l->gate_up);
        linear_free(s, &l->down);
        mat_free(s, &l->kv_b);
        mat_free(s, &l->router);
        mat_free(s, &l->experts_gate_up);
        mat_free(s, &l->experts_down);
    }
    mat_free(s, &s->embed);
    mat_free(s, &s->head_own);
    (void)vision_each_mat(s, NULL);
}
