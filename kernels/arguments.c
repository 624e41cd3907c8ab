/* SPDX-License-Identifier: Apache-2.0
 *
 * What operations are given, held against itself before anything is computed: one check an
 * operation, of every backend.
 */
#include "kernels/arguments.h"

#define MOST_EXPERTS 1024
#define MOST_CHOSEN  64

/* ---- rows and products --------------------------------------------------------------------------
 */
enum ek_status ek_args_rows(const char *op, uint32_t n, uint64_t dim, size_t ld)
{
    if (n == 0 || (dim > 0 && (n == 1 || ld >= dim)))
        return EK_OK;
    return ek_error(EK_EUSAGE, "%s: %u rows of %llu elements that begin %zu apart", op, n,
                    (unsigned long long)dim, ld);
}

/* A matrix of no rows or columns is none. */
static enum ek_status not_empty(const char *op, const struct ek_mat *m)
{
    if (m->rows == 0 || m->cols == 0)
        return ek_error(EK_EUSAGE, "%s: a matrix of %u x %u", op, m->rows, m->cols);
    return EK_OK;
}

static enum ek_status shaped(const char *op, const char *name, const struct ek_mat *m,
                             uint64_t rows, uint64_t cols)
{
    if (m->rows != rows || m->cols != cols)
        return ek_error(EK_EUSAGE, "%s: %s is %u x %u, not %llu x %llu", op, name, m->rows, m->cols,
                        (unsigned long long)rows, (unsigned long long)cols);
    return not_empty(op, m);
}

enum ek_status ek_args_embed(const struct ek_mat *table)
{
    return not_empty("embed", table);
}

enum ek_status ek_args_linear(uint32_t n, const struct ek_mat *w, size_t ldx, size_t ldo)
{
    EK_TRY(not_empty("linear", w));
    EK_TRY(ek_args_rows("linear", n, w->cols, ldx));
    return ek_args_rows("linear", n, w->rows, ldo);
}

enum ek_status ek_args_norm_linear(uint32_t n, const struct ek_mat *mats, size_t n_mats, size_t ldo)
{
    uint64_t rows = 0;

    for (size_t i = 0; i < n_mats; i++) {
        EK_TRY(not_empty("norm_linear", &mats[i]));
        if (mats[i].cols != mats[0].cols)
            return ek_error(EK_EUSAGE, "norm_linear: matrices of %u x %u and %u x %u", mats[0].rows,
                            mats[0].cols, mats[i].rows, mats[i].cols);
        rows += mats[i].rows;
    }
    return ek_args_rows("norm_linear", n, rows, ldo);
}

enum ek_status ek_args_gate_up(uint32_t n, const struct ek_mat mats[2], size_t ldo)
{
    EK_TRY(not_empty("norm_gate_up", &mats[0]));
    EK_TRY(shaped("norm_gate_up", "up", &mats[1], mats[0].rows, mats[0].cols));
    return ek_args_rows("norm_gate_up", n, mats[0].rows, ldo);
}

enum ek_status ek_args_layer_tail(uint32_t n, size_t ldi, const struct ek_mat *o,
                                  const struct ek_mat gate_up[2], const struct ek_mat *down)
{
    EK_TRY(not_empty("layer_tail", o));
    EK_TRY(shaped("layer_tail", "gate", &gate_up[0], gate_up[0].rows, o->rows));
    EK_TRY(shaped("layer_tail", "up", &gate_up[1], gate_up[0].rows, o->rows));
    EK_TRY(shaped("layer_tail", "down", down, o->rows, gate_up[0].rows));
    return ek_args_rows("layer_tail", n, o->cols, ldi);
}

/* ---- batches and caches -------------------------------------------------------------------------
 */
static enum ek_status check_batch(const char *op, const struct ek_batch *b)
{
    if (b->n_tokens == 0)
        return EK_OK;
    if (b->n_seqs == 0 || b->max_q == 0)
        return ek_error(EK_EUSAGE, "%s: %u tokens of %u sequences, at most %u of one", op,
                        b->n_tokens, b->n_seqs, b->max_q);
    return EK_OK;
}

static enum ek_status check_cache(const char *op, const struct ek_kv *kv)
{
    if (!ek_dtype_is_cache(kv->dtype))
        return ek_error(EK_EUNSUPPORTED, "%s: a cache of type %s", op, ek_dtype_name(kv->dtype));
    if (kv->kv_heads == 0 || kv->head_dim == 0 || kv->v_dim == 0 || kv->page == 0)
        return ek_error(EK_EUSAGE, "%s: a cache of %u heads of %u and %u, pages of %u", op,
                        kv->kv_heads, kv->head_dim, kv->v_dim, kv->page);
    if (kv->v == NULL && (kv->kv_heads != 1 || kv->v_dim > kv->head_dim))
        return ek_error(EK_EUSAGE, "%s: a latent cache of %u heads, values of %u in keys of %u", op,
                        kv->kv_heads, kv->v_dim, kv->head_dim);
    return EK_OK;
}

enum ek_status ek_args_rope(const char *op, const struct ek_rope *rope, uint32_t head_dim)
{
    if (rope->dim % 2 || rope->dim > head_dim)
        return ek_error(EK_EUSAGE, "%s: rope of %u dimensions in a head of %u", op, rope->dim,
                        head_dim);
    return EK_OK;
}

enum ek_status ek_args_rope_append(const struct ek_rope *rope, const struct ek_batch *batch,
                                   uint32_t heads, const struct ek_kv *kv, size_t ld)
{
    const char *op = "rope_append";

    EK_TRY(check_cache(op, kv));
    if (kv->v == NULL)
        return ek_error(EK_EUSAGE, "%s: a latent cache is appended to by latent_append", op);
    EK_TRY(ek_args_rope(op, rope, kv->head_dim));
    return ek_args_rows(
        op, batch->n_tokens,
        ((uint64_t)heads + kv->kv_heads) * kv->head_dim + (uint64_t)kv->kv_heads * kv->v_dim, ld);
}

enum ek_status ek_args_qkv_rope(const struct ek_mat mats[3], const struct ek_rope *rope,
                                const struct ek_batch *batch, const struct ek_kv *kv, size_t ldo)
{
    const char *op = "norm_qkv_rope";

    EK_TRY(check_cache(op, kv));
    EK_TRY(not_empty(op, &mats[0]));
    if (mats[0].rows % kv->head_dim)
        return ek_error(EK_EUSAGE, "%s: %u rows of queries, heads of %u", op, mats[0].rows,
                        kv->head_dim);
    EK_TRY(shaped(op, "k", &mats[1], (uint64_t)kv->kv_heads * kv->head_dim, mats[0].cols));
    EK_TRY(shaped(op, "v", &mats[2], (uint64_t)kv->kv_heads * kv->v_dim, mats[0].cols));
    return ek_args_rope_append(rope, batch, mats[0].rows / kv->head_dim, kv, ldo);
}

enum ek_status ek_args_attention(const struct ek_batch *batch, const struct ek_kv *kv,
                                 uint32_t heads, size_t ldq, size_t ldo)
{
    const char *op = "attention";

    EK_TRY(check_cache(op, kv));
    EK_TRY(check_batch(op, batch));
    if (heads == 0 || heads % kv->kv_heads)
        return ek_error(EK_EUSAGE, "%s: %u heads over %u cached heads", op, heads, kv->kv_heads);
    if ((uint64_t)batch->max_blocks * kv->page < batch->max_kv)
        return ek_error(EK_EUSAGE, "%s: a context of %u in %u blocks of %u", op, batch->max_kv,
                        batch->max_blocks, kv->page);
    EK_TRY(ek_args_rows(op, batch->n_tokens, (uint64_t)heads * kv->head_dim, ldq));
    return ek_args_rows(op, batch->n_tokens, (uint64_t)heads * kv->v_dim, ldo);
}

enum ek_status ek_args_attention_dense(uint32_t n, uint32_t n_segments, uint32_t max_segment,
                                       uint32_t heads, uint32_t head_dim, size_t ld, size_t ldo)
{
    const char *op = "attention_dense";
    uint64_t width = (uint64_t)heads * head_dim;

    if (n_segments > n || max_segment > n || (n > 0 && (n_segments == 0 || max_segment == 0)))
        return ek_error(EK_EUSAGE, "%s: %u rows in %u segments of at most %u", op, n, n_segments,
                        max_segment);
    EK_TRY(ek_args_rows(op, n, 3 * width, ld));
    return ek_args_rows(op, n, width, ldo);
}

/* ---- latent attention ---------------------------------------------------------------------------
 */
enum ek_status ek_args_latent_append(const struct ek_rope *rope, const struct ek_batch *batch,
                                     const struct ek_kv *kv, size_t ld)
{
    const char *op = "latent_append";

    EK_TRY(ek_args_rope(op, rope, rope->dim));
    if ((uint64_t)kv->v_dim + rope->dim != kv->head_dim || kv->kv_heads != 1)
        return ek_error(EK_EUSAGE, "%s: a latent cache of %u heads of %u is not one of %u + %u", op,
                        kv->kv_heads, kv->head_dim, kv->v_dim, rope->dim);
    EK_TRY(check_cache(op, kv));
    return ek_args_rows(op, batch->n_tokens, kv->head_dim, ld);
}

/* kv_b has the rows and columns of these shapes. */
static enum ek_status check_kv_b(const struct ek_latent *l, const struct ek_mat *kv_b)
{
    uint64_t rows = (uint64_t)l->heads * ((uint64_t)l->nope + l->v);

    if (kv_b->rows != rows || kv_b->cols != l->lora || rows == 0 || l->lora == 0 || l->v == 0)
        return ek_error(EK_EUSAGE, "kv_b is %u x %u, %u heads of %u + %u by %u need another",
                        kv_b->rows, kv_b->cols, l->heads, l->nope, l->v, l->lora);
    return EK_OK;
}

static uint64_t query_width(const struct ek_latent *l)
{
    return (uint64_t)l->heads * ((uint64_t)l->nope + l->rope);
}

/* Without the output's rows. */
static enum ek_status check_query(const struct ek_latent *l, const struct ek_mat *kv_b,
                                  const struct ek_rope *rope, uint32_t n, size_t ldq)
{
    EK_TRY(check_kv_b(l, kv_b));
    if (rope->dim != l->rope || rope->dim % 2)
        return ek_error(EK_EUSAGE, "latent_query: rope of %u dimensions, keys of %u", rope->dim,
                        l->rope);
    return ek_args_rows("latent_query", n, query_width(l), ldq);
}

enum ek_status ek_args_latent_query(const struct ek_latent *l, const struct ek_mat *kv_b,
                                    const struct ek_rope *rope, uint32_t n, size_t ldq, size_t ldo)
{
    EK_TRY(check_query(l, kv_b, rope, n, ldq));
    return ek_args_rows("latent_query", n, (uint64_t)l->heads * ((uint64_t)l->lora + l->rope), ldo);
}

enum ek_status ek_args_latent_value(const struct ek_latent *l, const struct ek_mat *kv_b,
                                    uint32_t n, size_t ldx, size_t ldo)
{
    EK_TRY(check_kv_b(l, kv_b));
    EK_TRY(ek_args_rows("latent_value", n, (uint64_t)l->heads * l->lora, ldx));
    return ek_args_rows("latent_value", n, (uint64_t)l->heads * l->v, ldo);
}

enum ek_status ek_args_latent_mix(const struct ek_latent_mix *m)
{
    const struct ek_latent *l = &m->shape;
    uint32_t n = m->batch->n_tokens;

    EK_TRY(ek_args_latent_append(m->rope, m->batch, m->kv, m->ld));
    EK_TRY(check_query(l, m->kv_b, m->rope, n, m->ldq));
    if (m->kv->v_dim != l->lora)
        return ek_error(EK_EUSAGE, "latent_mix: latents of %u in a cache of %u", l->lora,
                        m->kv->v_dim);
    EK_TRY(ek_args_rows("latent_mix", n, (uint64_t)l->heads * l->v, m->ldo));
    return check_batch("latent_mix", m->batch);
}

/* ---- mixtures of experts ------------------------------------------------------------------------
 */
enum ek_status ek_args_route(const struct ek_router *r, const struct ek_mat *gate, uint32_t n,
                             size_t ldx)
{
    bool groups = r->kind != EK_ROUTE_GREEDY && r->n_group > 1;

    if (r->n_experts == 0 || r->n_experts > MOST_EXPERTS || r->top_k == 0 ||
        r->top_k > r->n_experts || gate->rows != r->n_experts || gate->cols == 0 ||
        (groups && (r->n_experts % r->n_group || r->topk_group > r->n_group ||
                    r->topk_group * (r->n_experts / r->n_group) < r->top_k)))
        return ek_error(EK_EUSAGE, "a router of %u experts, best %u, %u of %u groups, %u rows",
                        r->n_experts, r->top_k, r->topk_group, r->n_group, gate->rows);
    return ek_args_rows("route", n, gate->cols, ldx);
}

enum ek_status ek_args_experts(const struct ek_experts *e, uint32_t top_k, uint32_t n, size_t ldx,
                               size_t ldo)
{
    const struct ek_mat *up = e->gate_up, *down = e->down;

    if (e->n == 0 || e->n > MOST_EXPERTS || top_k == 0 || top_k > MOST_CHOSEN || e->inner == 0 ||
        up->cols == 0 || up->rows != 2 * (uint64_t)e->n * e->inner ||
        down->rows != (uint64_t)e->n * up->cols || down->cols != e->inner)
        return ek_error(EK_EUSAGE,
                        "%u experts of %u, best %u, do not fit matrices %u x %u, %u x %u", e->n,
                        e->inner, top_k, up->rows, up->cols, down->rows, down->cols);
    EK_TRY(ek_args_rows("experts", n, up->cols, ldx));
    return ek_args_rows("experts", n, up->cols, ldo);
}

enum ek_status ek_args_mixture(const struct ek_mixture *m)
{
    uint32_t hidden = m->experts->gate_up->cols;

    EK_TRY(ek_args_experts(m->experts, m->router->top_k, m->n, hidden, hidden));
    EK_TRY(ek_args_route(m->router, m->gate, m->n, hidden));
    if (m->router->n_experts != m->experts->n)
        return ek_error(EK_EUSAGE, "mixture: a router of %u experts, %u of them",
                        m->router->n_experts, m->experts->n);
    EK_TRY(shaped("mixture", "the router's gate", m->gate, m->experts->n, hidden));
    EK_TRY(shaped("mixture", "gate and up of the shared layer", &m->shared[0],
                  2 * (uint64_t)m->shared[1].cols, hidden));
    return shaped("mixture", "down of the shared layer", &m->shared[1], hidden, m->shared[1].cols);
}
