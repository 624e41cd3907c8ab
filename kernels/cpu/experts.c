/* SPDX-License-Identifier: Apache-2.0
 *
 * Mixtures of experts: which experts a token goes to, and their feed-forward layers. Tokens are
 * grouped by expert, so that each expert's matrices are read once; a token's sum runs over its
 * experts in the order of their numbers, whatever the batch.
 */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

#define MAX_EXPERTS 1024

/* ---- Router ---------------------------------------------------------------------------------- */
struct route_job {
    const struct ek_router *r;
    const float *bias;
    float *scores; /* [n][n_experts]: logits, then scores */
    int32_t *ids;
    float *weights;
};

static void to_scores(const struct ek_router *r, float *s)
{
    float most = s[0], sum = 0.0f;

    if (r->sigmoid) {
        for (uint32_t e = 0; e < r->n_experts; e++)
            s[e] = 1.0f / (1.0f + expf(-s[e]));
        return;
    }
    for (uint32_t e = 1; e < r->n_experts; e++)
        most = s[e] > most ? s[e] : most;
    for (uint32_t e = 0; e < r->n_experts; e++)
        sum += s[e] = expf(s[e] - most);
    for (uint32_t e = 0; e < r->n_experts; e++)
        s[e] /= sum;
}

/* A group's worth: its best score, or with a correction bias the sum of its best two. */
static float group_score(const struct ek_router *r, const float *choice, uint32_t group)
{
    uint32_t size = r->n_experts / r->n_group;
    float best = -INFINITY, second = -INFINITY;

    for (uint32_t e = group * size; e < (group + 1) * size; e++) {
        if (choice[e] > best) {
            second = best;
            best = choice[e];
        } else if (choice[e] > second) {
            second = choice[e];
        }
    }
    return r->kind == EK_ROUTE_NOAUX_TC && size > 1 ? best + second : best;
}

/* Index of the largest of n values, the lowest on ties. */
static uint32_t largest(const float *v, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[best])
            best = i;
    return best;
}

/* Experts outside of the best topk_group groups are out of the choice. */
static void limit_groups(const struct ek_router *r, float *choice)
{
    float worth[MAX_EXPERTS];
    bool keep[MAX_EXPERTS] = {false};
    uint32_t size = r->n_experts / r->n_group;

    for (uint32_t g = 0; g < r->n_group; g++)
        worth[g] = group_score(r, choice, g);
    for (uint32_t k = 0; k < r->topk_group; k++) {
        uint32_t g = largest(worth, r->n_group);
        keep[g] = true;
        worth[g] = -INFINITY;
    }
    for (uint32_t e = 0; e < r->n_experts; e++)
        if (!keep[e / size])
            choice[e] = -INFINITY;
}

static void route_item(void *arg, uint32_t token, uint32_t thread)
{
    const struct route_job *a = arg;
    const struct ek_router *r = a->r;
    float *s = a->scores + (size_t)token * r->n_experts, choice[MAX_EXPERTS], sum = 0.0f, factor;
    int32_t *ids = a->ids + (size_t)token * r->top_k;
    float *weights = a->weights + (size_t)token * r->top_k;

    (void)thread;
    to_scores(r, s);
    for (uint32_t e = 0; e < r->n_experts; e++)
        choice[e] = s[e] + (a->bias ? a->bias[e] : 0.0f);
    if (r->kind != EK_ROUTE_GREEDY && r->n_group > 1)
        limit_groups(r, choice);
    for (uint32_t k = 0; k < r->top_k; k++) {
        uint32_t e = largest(choice, r->n_experts);
        choice[e] = -INFINITY;
        ids[k] = (int32_t)e;
        weights[k] = s[e]; /* without the bias */
        sum += s[e];
    }
    factor = r->scale / (r->normalise && r->top_k > 1 ? sum + 1e-20f : 1.0f);
    for (uint32_t k = 0; k < r->top_k; k++)
        weights[k] *= factor;
}

enum ek_status cpu_route(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                         const struct ek_mat *gate, const float *bias,
                         const struct ek_router *router, int32_t *ids, float *weights)
{
    struct route_job a = {.r = router, .bias = bias, .ids = ids, .weights = weights};
    enum ek_status st;

    EK_TRY(ek_args_route(router, gate, n, ldx));
    EK_TRY(cpu_hold(cpu_of(dev), (size_t)n * router->n_experts, cpu_linear_space(dev, n, gate),
                    &a.scores));
    st = cpu_linear(dev, x, ldx, n, gate, NULL, a.scores, router->n_experts, 0);
    if (st == EK_OK)
        cpu_run_rows(cpu_of(dev), n, (size_t)router->n_experts * router->top_k, route_item, &a);
    cpu_let_go(cpu_of(dev));
    return st;
}

/* ---- Experts --------------------------------------------------------------------------------- */
struct experts_job {
    const float *x;
    size_t ldx, ldo;
    uint32_t n, top_k, hidden;
    const int32_t *ids;
    const float *weights;
    const struct ek_experts *e;
    float *picked, *both, *inner, *y, *sum; /* [n] rows of hidden, 2 inner, inner, hidden, hidden */
    float *out;
};

/* Rows [first, first + rows) of m as a matrix of their own. */
static struct ek_mat rows_of(const struct ek_mat *m, uint32_t first, uint32_t rows)
{
    size_t row = m->bytes / m->rows;
    struct ek_mat part = *m;

    part.data = (uint8_t *)m->data + first * row;
    part.rows = rows;
    part.bytes = rows * row;
    return part;
}

/* The weight of expert e for a token, or 0 when it does not go there. */
static float weight_of(const struct experts_job *a, uint32_t token, uint32_t e)
{
    for (uint32_t k = 0; k < a->top_k; k++)
        if (a->ids[(size_t)token * a->top_k + k] == (int32_t)e)
            return a->weights[(size_t)token * a->top_k + k];
    return 0.0f;
}

static uint32_t pick(const struct experts_job *a, uint32_t e)
{
    uint32_t m = 0;

    for (uint32_t t = 0; t < a->n; t++)
        if (weight_of(a, t, e) != 0.0f)
            memcpy(a->picked + (size_t)m++ * a->hidden, a->x + t * a->ldx,
                   a->hidden * sizeof(float));
    return m;
}

static void add_back(const struct experts_job *a, uint32_t e)
{
    const float *y = a->y;

    for (uint32_t t = 0; t < a->n; t++) {
        float w = weight_of(a, t, e), *sum = a->sum + (size_t)t * a->hidden;
        if (w == 0.0f)
            continue;
        for (uint32_t i = 0; i < a->hidden; i++)
            sum[i] += w * y[i];
        y += a->hidden;
    }
}

static struct ek_mat gate_up_of(const struct experts_job *a, uint32_t e)
{
    return rows_of(a->e->gate_up, e * 2 * a->e->inner, 2 * a->e->inner);
}

static struct ek_mat down_of(const struct experts_job *a, uint32_t e)
{
    return rows_of(a->e->down, e * a->hidden, a->hidden);
}

static enum ek_status run_expert(struct ek_device *dev, const struct experts_job *a, uint32_t e)
{
    uint32_t inner = a->e->inner, m = pick(a, e);
    struct ek_mat gate_up = gate_up_of(a, e), down = down_of(a, e);

    if (m == 0)
        return EK_OK;
    EK_TRY(cpu_linear(dev, a->picked, a->hidden, m, &gate_up, NULL, a->both, (size_t)2 * inner, 0));
    EK_TRY(cpu_swiglu(dev, a->both, (size_t)2 * inner, m, inner, a->inner, inner));
    EK_TRY(cpu_linear(dev, a->inner, inner, m, &down, NULL, a->y, a->hidden, 0));
    add_back(a, e);
    return EK_OK;
}

static void give_out(void *arg, uint32_t token, uint32_t thread)
{
    const struct experts_job *a = arg;
    const float *sum = a->sum + (size_t)token * a->hidden;
    float *out = a->out + token * a->ldo;

    (void)thread;
    for (uint32_t i = 0; i < a->hidden; i++)
        out[i] += sum[i];
}

/* All tokens may go to one expert: what an operation takes follows from shapes alone, so that a
 * profile, whose tokens go where it sends them, has seen the most. */
static size_t space_of_parts(const struct ek_device *dev, const struct experts_job *a)
{
    struct ek_mat gate_up = gate_up_of(a, 0), down = down_of(a, 0);
    size_t up = cpu_linear_space(dev, a->n, &gate_up), back = cpu_linear_space(dev, a->n, &down);

    return up > back ? up : back;
}

static enum ek_status run_all(struct ek_device *dev, struct experts_job *a)
{
    size_t rows = a->n;

    a->both = a->picked + rows * a->hidden;
    a->inner = a->both + rows * 2 * a->e->inner;
    a->y = a->inner + rows * a->e->inner;
    a->sum = a->y + rows * a->hidden;
    memset(a->sum, 0, rows * a->hidden * sizeof(float));
    for (uint32_t i = 0; i < a->e->n; i++)
        EK_TRY(run_expert(dev, a, i));
    cpu_run_rows(cpu_of(dev), a->n, a->hidden, give_out, a);
    return EK_OK;
}

enum ek_status cpu_experts(struct ek_device *dev, const void *x, size_t ldx, uint32_t n,
                           const int32_t *ids, const float *weights, uint32_t top_k,
                           const struct ek_experts *e, void *out, size_t ldo)
{
    struct experts_job a = {.x = x,
                            .ldx = ldx,
                            .ldo = ldo,
                            .n = n,
                            .top_k = top_k,
                            .hidden = e->n ? e->down->rows / e->n : 0,
                            .ids = ids,
                            .weights = weights,
                            .e = e,
                            .out = out};
    enum ek_status st;

    EK_TRY(ek_args_experts(e, top_k, n, ldx, ldo));
    EK_TRY(cpu_hold(cpu_of(dev), (size_t)n * (3 * (size_t)a.hidden + 3 * (size_t)e->inner),
                    space_of_parts(dev, &a), &a.picked));
    st = run_all(dev, &a);
    cpu_let_go(cpu_of(dev));
    return st;
}
