/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention and mixtures of experts: which kernels a shape goes to, and the memory between
 * them.
 */
#include "kernels/cuda/deepseek.h"

#include "kernels/cuda/cuda.h"

#define MOST_CHOSEN        64
#define LATENT_ONE_CONTEXT 2048 /* tokens: each head reads the context for itself */
#define FEW_AVERAGE        8 /* tokens an expert: few have over 16 then, which are read once more */
#define MOST_APART         8 /* tokens whose experts in blocks run one by one */

static size_t element(enum ek_dtype t)
{
    return t == EK_F32 ? 4 : 2;
}

static bool plain(enum ek_dtype t)
{
    return t == EK_F32 || t == EK_BF16 || t == EK_F16;
}

/* ---- latent attention ---------------------------------------------------------------------------
 */
enum ek_status ek_cuda_latent_append(struct ek_device *dev, const void *ckv, size_t ld,
                                     const float *norm_weight, float eps,
                                     const struct ek_rope *rope, const struct ek_batch *batch,
                                     const struct ek_kv *kv)
{
    struct ek_cuda *d = ek_cuda(dev);

    EK_TRY(ek_args_latent_append(rope, batch, kv, ld));
    if (batch->n_tokens == 0)
        return EK_OK;
    ek_cuda_use(d);
    return ek_cuda_issued(
        d, ek_cu_latent_append(&d->queue, dev->act, ckv, ld, norm_weight, eps, rope, batch, kv),
        "latent_append");
}

/* kv_b in a type that kernels and cuBLASLt read: itself, or converted to the activations'. */
static enum ek_status readable_kv_b(struct ek_cuda *d, const struct ek_mat *kv_b, bool few,
                                    const void **data, enum ek_dtype *type)
{
    enum ek_dtype act = d->base.act;
    void *p;

    *data = kv_b->data;
    *type = kv_b->dtype;
    if (kv_b->dtype == act || (few && plain(kv_b->dtype)))
        return EK_OK;
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, (size_t)kv_b->rows * kv_b->cols * element(act), &p));
    *data = p;
    *type = act;
    return ek_cuda_issued(d,
                          ek_cu_dequantize(&d->queue, kv_b->dtype, act, kv_b->data,
                                           (size_t)(kv_b->bytes / kv_b->rows), kv_b->rows,
                                           kv_b->cols, p),
                          "latent attention");
}

/* Kernels read weights before the one ahead has ended, unless that one has only just made them. */
static struct ek_cu_queue behind(const struct ek_cuda *d, const void *data,
                                 const struct ek_mat *kv_b)
{
    struct ek_cu_queue q = d->queue;

    q.pdl = q.pdl && data == kv_b->data;
    return q;
}

/* A product a head: of W_uk, which is turned, or of W_uv. */
static enum ek_status per_head(struct ek_cuda *d, const struct ek_cu_latent *a, const void *kv_b,
                               bool query)
{
    const struct ek_latent *l = &a->shape;
    size_t e = element(d->base.act), head = (size_t)(l->nope + l->v) * l->lora;
    struct ek_cu_gemm g = {.w = kv_b,
                           .x = a->x,
                           .in = d->base.act,
                           .out_type = d->base.act,
                           .rows = query ? l->lora : l->v,
                           .cols = query ? l->nope : l->lora,
                           .n = a->n,
                           .ldx = a->ldx,
                           .ldo = a->ldo,
                           .out = a->out,
                           .batch = l->heads,
                           .turned = query,
                           .w_step = head,
                           .x_step = query ? l->nope + l->rope : l->lora,
                           .out_step = query ? l->lora + l->rope : l->v};

    if (!query)
        g.w = (const char *)kv_b + (size_t)l->nope * l->lora * e;
    return ek_cuda_gemm(d, &g);
}

static struct ek_cu_latent latent_of(const struct ek_latent_mix *m)
{
    return (struct ek_cu_latent){.x = m->q,
                                 .ldx = m->ldq,
                                 .shape = m->shape,
                                 .kv_b = m->kv_b->data,
                                 .rope = *m->rope,
                                 .positions = m->batch->positions,
                                 .n = m->batch->n_tokens,
                                 .ckv = m->ckv,
                                 .ld_ckv = m->ld,
                                 .norm = m->norm,
                                 .eps = m->eps,
                                 .kv = *m->kv,
                                 .slots = m->batch->slots,
                                 .out = m->out,
                                 .ldo = m->ldo};
}

/* The cache is of the latents' shape and of the activations' type. */
static bool own_cache(const struct ek_cuda *d, const struct ek_latent_mix *m)
{
    const struct ek_latent *l = &m->shape;
    const struct ek_kv *kv = m->kv;

    return kv->dtype == d->base.act && kv->kv_heads == 1 && kv->v_dim == l->lora &&
           kv->head_dim == l->lora + l->rope && m->rope->dim == l->rope;
}

static bool few_fit(const struct ek_cuda *d, const struct ek_cu_latent *a, const void *x, size_t ld,
                    enum ek_dtype w)
{
    const struct ek_latent *l = &a->shape;
    bool aligned = (uintptr_t)x % 16 == 0 && ld * element(d->base.act) % 16 == 0;

    return a->n <= EK_CU_LATENT_FEW && l->lora % 8 == 0 && l->v % 2 == 0 && aligned &&
           (plain(w) || w >= EK_Q4_0);
}

enum ek_status ek_cuda_latent_query(struct ek_device *dev, const void *q, size_t ldq,
                                    const struct ek_rope *rope, const struct ek_batch *batch,
                                    const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                    size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_latent a = {.x = q,
                             .ldx = ldq,
                             .shape = *l,
                             .rope = *rope,
                             .positions = batch->positions,
                             .n = batch->n_tokens,
                             .out = out,
                             .ldo = ldo};
    bool few = a.n <= EK_CU_LATENT_FEW && l->lora % 8 == 0;
    struct ek_cu_queue queue;
    enum ek_dtype type;
    const void *data;

    EK_TRY(ek_args_latent_query(l, kv_b, rope, a.n, ldq, ldo));
    if (a.n == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(readable_kv_b(d, kv_b, few, &data, &type));
    a.kv_b = data;
    queue = behind(d, data, kv_b);
    if (few)
        return ek_cuda_issued(d, ek_cu_latent_query(&queue, type, dev->act, &a), "latent_query");
    EK_TRY(per_head(d, &a, data, true));
    return ek_cuda_issued(d, ek_cu_latent_rotate(&d->queue, dev->act, &a), "latent_query");
}

enum ek_status ek_cuda_latent_value(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                                    const struct ek_latent *l, const struct ek_mat *kv_b, void *out,
                                    size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_latent a = {.x = x, .ldx = ldx, .shape = *l, .n = n, .out = out, .ldo = ldo};
    bool few = few_fit(d, &a, x, ldx, kv_b->dtype);
    struct ek_cu_queue queue;
    enum ek_dtype type;
    const void *data;

    EK_TRY(ek_args_latent_value(l, kv_b, n, ldx, ldo));
    if (n == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(readable_kv_b(d, kv_b, few, &data, &type));
    a.kv_b = data;
    if (!few)
        return per_head(d, &a, data, false);
    queue = behind(d, data, kv_b);
    return ek_cuda_issued(d, ek_cu_latent_value(&queue, type, dev->act, &a), "latent_value");
}

/* latent_append and latent_query in one launch, where they fit. */
static enum ek_status append_and_query(struct ek_device *dev, const struct ek_latent_mix *m)
{
    const struct ek_latent *l = &m->shape;
    const struct ek_kv *kv = m->kv;
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_latent a = latent_of(m);
    size_t ldo = (size_t)l->heads * (l->lora + l->rope);

    a.out = m->query;
    a.ldo = ldo;
    if (a.n > EK_CU_LATENT_FEW || l->lora % 8 || !plain(m->kv_b->dtype) || !own_cache(d, m)) {
        EK_TRY(ek_cuda_latent_append(dev, m->ckv, m->ld, m->norm, m->eps, m->rope, m->batch, kv));
        return ek_cuda_latent_query(dev, m->q, m->ldq, m->rope, m->batch, l, m->kv_b, m->query,
                                    ldo);
    }
    ek_cuda_use(d);
    return ek_cuda_issued(d, ek_cu_latent_query(&d->queue, m->kv_b->dtype, dev->act, &a),
                          "latent attention");
}

/* One new token a sequence, few of them, contexts that a cluster has at hand. */
static bool one_fits(const struct ek_cuda *d, const struct ek_latent_mix *m)
{
    const struct ek_latent *l = &m->shape;
    const struct ek_batch *b = m->batch;

    return ek_cu_latent_one_fits(&d->queue) && d->base.act != EK_F32 &&
           m->kv_b->dtype == d->base.act && own_cache(d, m) && l->lora == EK_CU_LATENT_VALUE &&
           l->lora + l->rope == EK_CU_LATENT_DIM && l->nope % 8 == 0 && l->v % 8 == 0 &&
           l->nope <= EK_CU_LATENT_ONE_HEAD && l->v <= EK_CU_LATENT_ONE_HEAD && b->max_q == 1 &&
           b->n_tokens == b->n_seqs && b->max_kv <= LATENT_ONE_CONTEXT &&
           b->n_seqs * l->heads * EK_CU_CLUSTER <= 2 * d->queue.n_sm;
}

static enum ek_status run_one(struct ek_cuda *d, const struct ek_latent_mix *m)
{
    struct ek_cu_latent_step a = {.l = latent_of(m),
                                  .attention = {.batch = *m->batch,
                                                .kv = *m->kv,
                                                .heads = m->shape.heads,
                                                .scale = m->scale}};

    return ek_cuda_issued(d, ek_cu_latent_one(&d->queue, d->base.act, &a), "latent_mix");
}

enum ek_status ek_cuda_latent_mix(struct ek_device *dev, const struct ek_latent_mix *m)
{
    const struct ek_latent *l = &m->shape;
    struct ek_cuda *d = ek_cuda(dev);
    size_t lq = (size_t)l->heads * (l->lora + l->rope), lm = (size_t)l->heads * l->lora;

    EK_TRY(ek_args_latent_mix(m));
    if (m->batch->n_tokens == 0)
        return EK_OK;
    ek_cuda_use(d);
    if (one_fits(d, m))
        return run_one(d, m);
    EK_TRY(append_and_query(dev, m));
    EK_TRY(ek_cuda_attention(dev, m->query, lq, m->batch, m->kv, l->heads, m->scale, m->mixed, lm));
    return ek_cuda_latent_value(dev, m->mixed, lm, m->batch->n_tokens, l, m->kv_b, m->out, m->ldo);
}

/* ---- attention over a latent cache --------------------------------------------------------------
 */
static bool attention_fits(const struct ek_cuda *d, const struct ek_cu_attention *a)
{
    const struct ek_kv *kv = &a->kv;

    return kv->v == NULL && kv->kv_heads == 1 && kv->head_dim == EK_CU_LATENT_DIM &&
           kv->v_dim == EK_CU_LATENT_VALUE && d->base.act != EK_F32 && kv->dtype == d->base.act &&
           a->ldq % 8 == 0 && a->ldo % 2 == 0 && (uintptr_t)a->q % 16 == 0 &&
           (uintptr_t)a->out % 4 == 0 && ek_cu_latent_attention_fits(&d->queue);
}

/* Parts of the context, where there are fewer blocks than multiprocessors, and their memory. The
 * split depends on shapes alone: the same batch gives the same bits. */
static enum ek_status plan_parts(struct ek_cuda *d, struct ek_cu_attention *a)
{
    uint32_t rows = ek_cu_latent_rows(a->batch.max_q, a->heads);
    uint32_t blocks = a->batch.n_seqs * ((a->batch.max_q * a->heads + rows - 1) / rows);
    uint32_t wanted = d->queue.n_sm / blocks, step = EK_CU_LATENT_PART;
    uint32_t longest = a->batch.max_kv ? a->batch.max_kv : 1;
    size_t parts;
    void *p;

    wanted = wanted > EK_CU_LATENT_PARTS ? EK_CU_LATENT_PARTS : wanted ? wanted : 1;
    a->part = ((longest + wanted - 1) / wanted + step - 1) / step * step;
    a->n_parts = (longest + a->part - 1) / a->part;
    if (a->n_parts == 1)
        return EK_OK;
    parts = (size_t)a->batch.n_tokens * a->heads * a->n_parts;
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, parts * (a->kv.v_dim + 2) * sizeof(float), &p));
    a->partial = p;
    a->totals = (float2 *)(a->partial + parts * a->kv.v_dim);
    return EK_OK;
}

enum ek_status ek_cuda_latent_attention(struct ek_cuda *d, struct ek_cu_attention *a, bool *taken)
{
    *taken = attention_fits(d, a);
    if (!*taken)
        return EK_OK;
    EK_TRY(plan_parts(d, a));
    return ek_cuda_issued(d, ek_cu_latent_attention(&d->queue, d->base.act, a), "attention");
}

/* ---- mixtures of experts ------------------------------------------------------------------------
 */
enum ek_status ek_cuda_route(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                             const struct ek_mat *gate, const float *bias,
                             const struct ek_router *router, int32_t *ids, float *weights)
{
    struct ek_cuda *d = ek_cuda(dev);
    void *logits;

    EK_TRY(ek_args_route(router, gate, n, ldx));
    if (n == 0)
        return EK_OK;
    ek_cuda_use(d);
    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, (size_t)n * router->n_experts * 4, &logits));
    EK_TRY(
        ek_cuda_linear(dev, x, ldx, n, gate, NULL, logits, router->n_experts, EK_LINEAR_OUT_F32));
    return ek_cuda_issued(d, ek_cu_route(&d->queue, logits, n, bias, router, ids, weights),
                          "route");
}

static size_t rounded(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* What lies between the launches. */
static enum ek_status take_memory(struct ek_cuda *d, struct ek_cu_experts *e)
{
    size_t pairs = (size_t)e->n * e->top_k, act = element(d->base.act);
    size_t order = rounded(pairs * 4), first = rounded((e->n_experts + 1) * sizeof(int32_t));
    size_t inner = rounded(pairs * e->inner * act), each = rounded(pairs * e->hidden * act);
    void *p;

    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, order + first + inner + each, &p));
    e->order = p;
    e->first = (int32_t *)(void *)((char *)p + order);
    e->inner_x = (char *)p + order + first;
    e->each = (char *)p + order + first + inner;
    return EK_OK;
}

/* What this backend needs besides. */
static enum ek_status check_experts(const struct ek_cuda *d, const struct ek_experts *e,
                                    const struct ek_cu_experts *a)
{
    const struct ek_mat *mats[] = {e->gate_up, e->down};
    size_t act = element(d->base.act);

    for (int i = 0; i < 2; i++)
        if (mats[i]->cols % 8 || (mats[i]->dtype < EK_Q4_0 && mats[i]->bytes / mats[i]->rows % 16))
            return ek_error(EK_EUNSUPPORTED, "%s: experts with rows of %u %s", d->base.spec.name,
                            mats[i]->cols, ek_dtype_name(mats[i]->dtype));
    if ((uintptr_t)a->x % 16 || a->ldx * act % 16 ||
        (size_t)a->top_k * a->inner * act > ek_cuda_room(d) || a->hidden * act > ek_cuda_room(d))
        return ek_error(EK_EUNSUPPORTED, "%s: experts over rows of %u, inner %u, best %u",
                        d->base.spec.name, a->hidden, a->inner, a->top_k);
    return EK_OK;
}

/* Token by token, no grouping. */
static enum ek_status run_ungrouped(struct ek_cuda *d, const struct ek_cu_experts *a,
                                    const struct ek_experts *e)
{
    enum ek_dtype act = d->base.act, up = e->gate_up->dtype, down = e->down->dtype;

    return ek_cuda_issued(d,
                          ek_cu_experts_blocks_fits(&d->queue, up, down, act, a)
                              ? ek_cu_experts_blocks(&d->queue, up, down, act, a)
                              : ek_cu_experts_one(&d->queue, up, down, act, a),
                          "experts");
}

/* Weights in blocks: a few tokens are faster one by one. */
static bool apart(const struct ek_cuda *d, const struct ek_cu_experts *a,
                  const struct ek_experts *e)
{
    struct ek_cu_experts one = *a;

    one.n = 1;
    return ek_cu_experts_blocks_fits(&d->queue, e->gate_up->dtype, e->down->dtype, d->base.act,
                                     &one);
}

static enum ek_status run_apart(struct ek_cuda *d, const struct ek_cu_experts *a,
                                const struct ek_experts *e)
{
    size_t act = element(d->base.act);

    for (uint32_t i = 0; i < a->n; i++) {
        struct ek_cu_experts one = *a;

        one.n = 1;
        one.x = (const char *)a->x + i * a->ldx * act;
        one.out = (char *)a->out + i * a->ldo * act;
        one.ids = a->ids + (size_t)i * a->top_k;
        one.weights = a->weights + (size_t)i * a->top_k;
        EK_TRY(run_ungrouped(d, &one, e));
    }
    return EK_OK;
}

static enum ek_status run_grouped(struct ek_cuda *d, const struct ek_cu_experts *a,
                                  const struct ek_experts *e)
{
    enum ek_dtype act = d->base.act, up = e->gate_up->dtype, down = e->down->dtype;
    bool many = ek_cu_experts_many_fits(&d->queue) && up == act && down == act &&
                (size_t)a->n * a->top_k > (size_t)FEW_AVERAGE * e->n;
    bool wide = many && d->queue.wgmma && ek_cu_experts_wide_fits(a);

    EK_TRY(ek_cuda_issued(d, ek_cu_experts_group(&d->queue, a), "experts"));
    EK_TRY(ek_cuda_issued(d,
                          !many  ? ek_cu_experts_few(&d->queue, up, down, act, a)
                          : wide ? ek_cu_experts_wide(&d->queue, act, a)
                                 : ek_cu_experts_many(&d->queue, act, a),
                          "experts"));
    return ek_cuda_issued(d, ek_cu_experts_sum(&d->queue, act, a), "experts");
}

static struct ek_cu_experts describe(const void *x, size_t ldx, uint32_t n, const int32_t *ids,
                                     const float *weights, uint32_t top_k,
                                     const struct ek_experts *e, void *out, size_t ldo)
{
    const struct ek_mat *up = e->gate_up, *down = e->down;

    return (struct ek_cu_experts){.x = x,
                                  .ldx = ldx,
                                  .n = n,
                                  .top_k = top_k,
                                  .ids = ids,
                                  .weights = weights,
                                  .gate_up = up->data,
                                  .down = down->data,
                                  .gate_up_row = (size_t)(up->bytes / up->rows),
                                  .down_row = (size_t)(down->bytes / down->rows),
                                  .n_experts = e->n,
                                  .hidden = up->cols,
                                  .inner = e->inner,
                                  .out = out,
                                  .ldo = ldo};
}

enum ek_status ek_cuda_experts(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                               const int32_t *ids, const float *weights, uint32_t top_k,
                               const struct ek_experts *e, void *out, size_t ldo)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_experts a;

    EK_TRY(ek_args_experts(e, top_k, n, ldx, ldo));
    if (n == 0)
        return EK_OK;
    a = describe(x, ldx, n, ids, weights, top_k, e, out, ldo);
    EK_TRY(check_experts(d, e, &a));
    ek_cuda_use(d);
    EK_TRY(take_memory(d, &a));
    if (n > 1 && n <= MOST_APART && apart(d, &a, e))
        return run_apart(d, &a, e);
    if (n > 1 && dev->act != EK_F32)
        return run_grouped(d, &a, e);
    return run_ungrouped(d, &a, e);
}

/* The shared layer as layers of the experts' size, in the same launches. */
static bool share_launches(const struct ek_cuda *d, const struct ek_experts *e, uint32_t top_k,
                           const struct ek_mat shared[2], uint32_t *n)
{
    uint32_t inner = shared[1].cols;

    *n = inner / e->inner;
    return inner % e->inner == 0 && shared[0].dtype == e->gate_up->dtype &&
           shared[1].dtype == e->down->dtype && shared[0].rows == 2 * inner &&
           *n + top_k <= MOST_CHOSEN &&
           shared[1].bytes / shared[1].rows == e->down->bytes / e->down->rows * *n &&
           (size_t)(*n + top_k) * e->inner * element(d->base.act) <= ek_cuda_room(d);
}

static struct ek_cu_mixture describe_mixture(const struct ek_mixture *m)
{
    const int32_t *ids = m->forced ? m->forced : m->ids;
    size_t hidden = m->experts->gate_up->cols;
    struct ek_cu_mixture a = {.e = describe(m->normed, hidden, m->n, ids, m->weights,
                                            m->router->top_k, m->experts, m->x, hidden),
                              .norm = m->norm,
                              .eps = m->eps,
                              .gate = m->gate->data,
                              .gate_type = m->gate->dtype,
                              .gate_row = m->gate->bytes / m->gate->rows,
                              .bias = m->bias,
                              .router = *m->router,
                              .forced = m->forced,
                              .normed = m->normed,
                              .ids = m->ids,
                              .weights = m->weights};

    a.e.shared_up = m->shared[0].data;
    a.e.shared_down = m->shared[1].data;
    return a;
}

/* One token, any type: norm, router and experts in launches of their own. */
static enum ek_status token_apart(struct ek_device *dev, const struct ek_mixture *m,
                                  struct ek_cu_mixture *a)
{
    const struct ek_experts *e = m->experts;
    struct ek_cuda *d = ek_cuda(dev);
    size_t hidden = a->e.hidden;
    void *p;

    EK_TRY(ek_cuda_rms_norm(dev, m->x, hidden, m->norm, m->eps, 1, a->e.hidden, m->normed, hidden));
    EK_TRY(
        ek_cuda_route(dev, m->normed, hidden, 1, m->gate, m->bias, m->router, m->ids, m->weights));
    EK_TRY(ek_cuda_scratch(
        d, EK_CU_OP, (size_t)(a->e.n_shared + a->e.top_k) * e->inner * element(dev->act), &p));
    a->e.inner_x = p;
    return run_ungrouped(d, &a->e, e);
}

static enum ek_status run_token(struct ek_cuda *d, struct ek_cu_mixture *a)
{
    size_t act = element(d->base.act);
    size_t inner = rounded((size_t)(a->e.n_shared + a->e.top_k) * a->e.inner * act);
    void *p, *routed;

    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, inner, &p));
    EK_TRY(ek_cuda_scratch(d, EK_CU_ROUTED, (size_t)a->e.n_experts * 4, &routed));
    a->e.inner_x = p;
    a->logits = routed;
    return ek_cuda_issued(d, ek_cu_token(&d->queue, d->base.act, a), "mixture");
}

static enum ek_status run_few(struct ek_cuda *d, struct ek_cu_mixture *a)
{
    size_t act = element(d->base.act), rows = (size_t)a->e.n * (a->e.n_shared + a->e.top_k);
    size_t inner = rounded(rows * a->e.inner * act);
    void *p;

    EK_TRY(ek_cuda_scratch(d, EK_CU_OP, inner + rows * a->e.hidden * act, &p));
    a->e.inner_x = p;
    a->e.each = (char *)p + inner;
    EK_TRY(ek_cuda_issued(d, ek_cu_norm_route(&d->queue, d->base.act, a), "mixture"));
    EK_TRY(ek_cuda_issued(d, ek_cu_experts_stream(&d->queue, d->base.act, &a->e), "mixture"));
    return ek_cuda_issued(d, ek_cu_experts_sum(&d->queue, d->base.act, &a->e), "mixture");
}

/* Kernels that take the norm and the router along. */
static bool streams(const struct ek_cuda *d, const struct ek_mixture *m)
{
    enum ek_dtype act = d->base.act;

    return act != EK_F32 && m->experts->gate_up->dtype == act && m->experts->down->dtype == act &&
           plain(m->gate->dtype) && m->experts->n <= EK_CU_TOKEN_EXPERTS;
}

/* In the fewest launches: one token, or a few that fit. */
static bool takes(const struct ek_cuda *d, const struct ek_mixture *m, struct ek_cu_mixture *a,
                  bool fits)
{
    if (m->n == 0 || !share_launches(d, m->experts, a->e.top_k, m->shared, &a->e.n_shared))
        return false;
    return m->n == 1 ||
           (fits && m->n * a->e.top_k <= EK_CU_STREAM_PAIRS &&
            ek_cu_norm_route_fits(&d->queue, a) && ek_cu_experts_stream_fits(&d->queue));
}

enum ek_status ek_cuda_mixture(struct ek_device *dev, const struct ek_mixture *m, bool *taken)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cu_mixture a;
    bool fits;

    EK_TRY(ek_args_mixture(m));
    a = describe_mixture(m);
    fits = streams(d, m);
    *taken = takes(d, m, &a, fits);
    if (!*taken)
        return EK_OK;
    EK_TRY(check_experts(d, m->experts, &a.e));
    ek_cuda_use(d);
    if (m->n > 1)
        return run_few(d, &a);
    return fits && ek_cu_token_fits(&d->queue, &a) ? run_token(d, &a) : token_apart(dev, m, &a);
}
