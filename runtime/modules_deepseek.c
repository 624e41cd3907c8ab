/* SPDX-License-Identifier: Apache-2.0
 *
 * Layers of the DeepSeek families: latent attention (the absorbed form: queries are brought into
 * the latent space that the cache is in) and mixtures of experts with shared ones.
 */
#include "runtime/stage.h"

#define LATENT_EPS 1e-6f /* of the norms inside of attention, whatever rms_norm_eps is */

/* ---- Latent attention ------------------------------------------------------------------------ */
/* Offsets into the scratch: [T] rows each. */
struct latent_parts {
    size_t first;  /* q | kv_a, or q_a | kv_a */
    size_t normed; /* q_a normalised; low-rank queries only */
    size_t q;      /* q_b's output; low-rank queries only */
    size_t query;  /* in the latent space, [heads][lora + rope] */
    size_t mixed;  /* attention's output there, [heads][lora] */
    size_t out;    /* [heads][v] */
    size_t bytes;
};

static bool lay_out_latent(const struct ek_stage *s, struct latent_parts *p)
{
    const struct ek_config *c = &s->m->config;
    size_t t = s->opt.max_tokens, a = stage_act_bytes(s), h = c->n_heads;
    size_t q = h * (c->qk_nope + c->qk_rope), kv_a = c->kv_lora + c->qk_rope;

    *p = (struct latent_parts){0};
    if (stage_low_rank_query(s)) {
        if (!stage_take(&p->bytes, t, c->q_lora + kv_a, a, &p->first) ||
            !stage_take(&p->bytes, t, c->q_lora, a, &p->normed) ||
            !stage_take(&p->bytes, t, q, a, &p->q))
            return false;
    } else if (!stage_take(&p->bytes, t, q + kv_a, a, &p->first)) {
        return false;
    }
    return stage_take(&p->bytes, t, h * kv_a, a, &p->query) &&
           stage_take(&p->bytes, t, h * c->kv_lora, a, &p->mixed) &&
           stage_take(&p->bytes, t, h * c->v_head, a, &p->out);
}

bool stage_latent_scratch(const struct ek_stage *s, size_t *out)
{
    struct latent_parts p;

    if (!lay_out_latent(s, &p))
        return false;
    *out = p.bytes;
    return true;
}

/* The queries of all heads: where they lie, and the length of their rows. */
static enum ek_status make_queries(struct ek_stage *s, const struct stage_layer *l, uint32_t n,
                                   const struct latent_parts *p, char *scratch, const void **q,
                                   size_t *ldq)
{
    const struct ek_ops *ops = s->dev->ops;
    uint32_t rank = s->m->config.q_lora;

    *q = scratch + p->first;
    *ldq = l->qkv.rows;
    if (!stage_low_rank_query(s))
        return EK_OK;
    EK_TRY(ops->rms_norm(s->dev, *q, *ldq, l->q_a_norm, LATENT_EPS, n, rank, scratch + p->normed,
                         rank));
    *q = scratch + p->q;
    *ldq = l->q_b.rows;
    return stage_run_linear(s, &l->q_b, scratch + p->normed, rank, n, scratch + p->q, *ldq, 0);
}

/* Latents into the cache, and attention's values of all heads, from the queries. */
static enum ek_status attend(struct ek_stage *s, const struct ek_latent_mix *m, uint32_t n)
{
    const struct ek_latent *l = &m->shape;
    size_t lq = (size_t)l->heads * (l->lora + l->rope), lm = (size_t)l->heads * l->lora;
    const struct ek_ops *ops = s->dev->ops;
    bool taken = false;

    if (ops->latent_prefill)
        EK_TRY(ops->latent_prefill(s->dev, m, &taken));
    if (taken)
        return EK_OK;
    if (ops->latent_mix)
        return ops->latent_mix(s->dev, m);
    EK_TRY(ops->latent_append(s->dev, m->ckv, m->ld, m->norm, m->eps, m->rope, m->batch, m->kv));
    EK_TRY(ops->latent_query(s->dev, m->q, m->ldq, m->rope, m->batch, l, m->kv_b, m->query, lq));
    EK_TRY(ops->attention(s->dev, m->query, lq, m->batch, m->kv, l->heads, m->scale, m->mixed, lm));
    return ops->latent_value(s->dev, m->mixed, lm, n, l, m->kv_b, m->out, m->ldo);
}

enum ek_status stage_run_latent(struct ek_stage *s, const struct stage_layer *l,
                                const struct ek_batch *batch, void *x)
{
    const struct ek_config *c = &s->m->config;
    struct ek_latent_mix m = {.ld = l->qkv.rows,
                              .norm = l->kv_a_norm,
                              .eps = LATENT_EPS,
                              .rope = &s->rope,
                              .batch = batch,
                              .kv = &l->kv,
                              .shape = {c->n_heads, c->kv_lora, c->qk_nope, c->qk_rope, c->v_head},
                              .kv_b = &l->kv_b,
                              .scale = s->softmax_scale,
                              .ldo = (size_t)c->n_heads * c->v_head};
    char *scratch = stage_at(s, s->at.scratch);
    uint32_t n = batch->n_tokens;
    struct latent_parts p;

    lay_out_latent(s, &p); /* did not overflow when the stage was made */
    m.ckv = scratch + p.first + (m.ld - c->kv_lora - c->qk_rope) * stage_act_bytes(s);
    m.query = scratch + p.query;
    m.mixed = scratch + p.mixed;
    m.out = scratch + p.out;
    EK_TRY(stage_run_norm_linear(s, l->norm, &l->qkv, n, x, scratch + p.first));
    EK_TRY(make_queries(s, l, n, &p, scratch, &m.q, &m.ldq));
    EK_TRY(attend(s, &m, n));
    return stage_run_linear(s, &l->o, m.out, m.ldo, n, x, c->hidden, EK_LINEAR_ADD);
}

/* ---- Mixture of experts ---------------------------------------------------------------------- */
struct experts_parts {
    size_t both, inner;  /* of the shared experts: gate|up and their product */
    size_t ids, weights; /* [T][top_k] */
    size_t bytes;
};

static bool lay_out_experts(const struct ek_stage *s, struct experts_parts *p)
{
    const struct ek_config *c = &s->m->config;
    size_t t = s->opt.max_tokens, a = stage_act_bytes(s);
    size_t shared = (size_t)c->n_shared * c->moe_intermediate;

    *p = (struct experts_parts){0};
    return stage_take(&p->bytes, t, 2 * shared, a, &p->both) &&
           stage_take(&p->bytes, t, shared, a, &p->inner) &&
           stage_take(&p->bytes, t, c->top_k, sizeof(int32_t), &p->ids) &&
           stage_take(&p->bytes, t, c->top_k, sizeof(float), &p->weights);
}

bool stage_experts_scratch(const struct ek_stage *s, size_t *out)
{
    struct experts_parts p;

    if (!lay_out_experts(s, &p))
        return false;
    *out = p.bytes;
    return true;
}

static struct ek_router router_of(const struct ek_config *c)
{
    static const enum ek_route kinds[] = {[EK_ROUTER_GREEDY] = EK_ROUTE_GREEDY,
                                          [EK_ROUTER_GROUP_LIMITED] = EK_ROUTE_GROUP_LIMITED,
                                          [EK_ROUTER_NOAUX_TC] = EK_ROUTE_NOAUX_TC};

    return (struct ek_router){.kind = kinds[c->router],
                              .n_experts = c->n_experts,
                              .top_k = c->top_k,
                              .n_group = c->n_group ? c->n_group : 1,
                              .topk_group = c->topk_group ? c->topk_group : 1,
                              .sigmoid = c->router_sigmoid,
                              .normalise = c->router_normalise,
                              .scale = (float)c->router_scale};
}

/* The experts that every token goes to, one feed-forward layer. */
static enum ek_status run_shared(struct ek_stage *s, const struct stage_layer *l, const void *xn,
                                 const struct experts_parts *p, uint32_t n, void *x)
{
    const struct ek_config *c = &s->m->config;
    uint32_t inner = c->n_shared * c->moe_intermediate;
    char *both = (char *)stage_at(s, s->at.scratch) + p->both;
    char *product = (char *)stage_at(s, s->at.scratch) + p->inner;
    size_t ld = 2 * (size_t)inner;

    if (inner == 0)
        return EK_OK;
    EK_TRY(stage_run_linear(s, &l->gate_up, xn, c->hidden, n, both, ld, 0));
    EK_TRY(s->dev->ops->swiglu(s->dev, both, ld, n, inner, product, inner));
    return stage_run_linear(s, &l->down, product, inner, n, x, c->hidden, EK_LINEAR_ADD);
}

enum ek_status stage_run_experts(struct ek_stage *s, const struct stage_layer *l, uint32_t n,
                                 void *x)
{
    const struct ek_ops *ops = s->dev->ops;
    const struct ek_config *c = &s->m->config;
    const struct ek_router router = router_of(c);
    const struct ek_experts experts = {&l->experts_gate_up, &l->experts_down, c->n_experts,
                                       c->moe_intermediate};
    char *scratch = stage_at(s, s->at.scratch);
    void *xn = stage_at(s, s->at.xn);
    struct experts_parts p;
    int32_t *chosen;
    const int32_t *ids;
    float *weights;

    lay_out_experts(s, &p); /* did not overflow when the stage was made */
    chosen = (int32_t *)(void *)(scratch + p.ids);
    ids = chosen;
    if (s->opt.experts)
        ids = s->opt.experts + (size_t)(l - s->layers) * s->opt.max_tokens * c->top_k;
    weights = (float *)(void *)(scratch + p.weights);
    if (ops->mixture && l->gate_up.n == 1 && !l->gate_up.has_order && !l->down.has_order) {
        const struct ek_mat shared[2] = {l->gate_up.mats[0], l->down.mats[0]};
        const struct ek_mixture all = {.x = x,
                                       .n = n,
                                       .norm = l->norm2,
                                       .eps = (float)c->norm_eps,
                                       .gate = &l->router,
                                       .bias = l->router_bias,
                                       .router = &router,
                                       .forced = s->opt.experts ? ids : NULL,
                                       .experts = &experts,
                                       .shared = shared,
                                       .normed = xn,
                                       .ids = chosen,
                                       .weights = weights};
        bool taken;

        EK_TRY(ops->mixture(s->dev, &all, &taken));
        if (taken)
            return EK_OK;
    }
    EK_TRY(ops->rms_norm(s->dev, x, c->hidden, l->norm2, (float)c->norm_eps, n, c->hidden, xn,
                         c->hidden));
    EK_TRY(
        ops->route(s->dev, xn, c->hidden, n, &l->router, l->router_bias, &router, chosen, weights));
    EK_TRY(ops->experts(s->dev, xn, c->hidden, n, ids, weights, c->top_k, &experts, x, c->hidden));
    return run_shared(s, l, xn, &p, n, x);
}
