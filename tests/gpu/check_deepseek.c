/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention and mixtures of experts of the CUDA backend against the CPU backend: decode,
 * ragged prefill and long contexts, growing ones under one captured graph; every router rule;
 * experts for one, a few and many tokens and every weight type. Skips without a GPU.
 */
#include "tests/gpu/gpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#define MAX_SEQS    4
#define SPANS_HEADS 128 /* so many that a context is expanded in three spans */

static struct pair pr;
static uint64_t seed;
static const enum ek_dtype acts[] = {EK_F32, EK_BF16, EK_F16};
#define N_ACTS 3

static void need(enum ek_status st)
{
    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
}

static void need_close(const char *what, double error, double allowed)
{
    ck_assert_msg(error <= allowed, "%s (%s): error %.3g, allowed %.3g", what,
                  ek_dtype_name(pr.act), error, allowed);
}

static void open_act(int i)
{
    const char *why = pair_open(&pr, acts[i % N_ACTS]);

    seed = 5000 + (uint64_t)i;
    ck_assert_msg(why == NULL, "%s", why);
}

/* ---- latent attention ---------------------------------------------------------------------------
 */
struct shape {
    struct ek_latent l;
    uint32_t page, n_seqs;
    uint32_t past[MAX_SEQS], n_new[MAX_SEQS];
    bool interleaved;
    enum ek_dtype kv_b;
    bool expanded; /* the cheaper form of its prefill, where activations are not F32 */
};
static const struct shape shapes[] = {
    {{16, 512, 128, 64, 128}, 32, 1, {511}, {1}, true, EK_BF16, false},             /* V2-Lite */
    {{16, 512, 128, 64, 128}, 32, 3, {0, 700, 63}, {1, 1, 1}, true, EK_F32, false}, /* several */
    {{16, 512, 128, 64, 128}, 16, 2, {0, 37}, {150, 65}, true, EK_BF16, true},      /* prefill */
    {{16, 512, 128, 64, 128}, 32, 1, {300}, {40}, true, EK_BF16, false},
    {{16, 512, 128, 64, 128}, 32, 1, {300}, {70}, true, EK_F16, true},
    {{20, 512, 128, 64, 128}, 64, 3, {0, 130, 5}, {70, 120, 1}, false, EK_Q8_0, true},
    {{SPANS_HEADS, 512, 128, 64, 128},
     32,
     4,
     {150, 0, 0, 3},
     {150, 40, 40, 40},
     true,
     EK_BF16,
     true},
    {{16, 512, 128, 64, 128}, 32, 4, {9, 0, 300, 64}, {1, 40, 3, 1}, true, EK_F16, false},
    {{20, 512, 128, 64, 128}, 24, 2, {2000, 5}, {1, 1}, true, EK_BF16, false}, /* two tiles */
    {{128, 512, 32, 64, 32}, 32, 2, {130, 1}, {1, 1}, true, EK_BF16, false},   /* V2's heads */
    {{5, 512, 16, 64, 16}, 32, 1, {4010}, {3}, false, EK_BF16, false},         /* parts and rows */
    {{4, 32, 16, 8, 16}, 16, 3, {0, 20, 3}, {9, 1, 5}, true, EK_F32, false},   /* small */
    {{4, 64, 32, 16, 24}, 16, 1, {70}, {1}, false, EK_Q8_0, false},
    {{16, 512, 128, 64, 128}, 32, 1, {1777}, {1}, false, EK_F16, false}, /* steps of a block */
    {{3, 512, 64, 64, 24}, 24, 2, {0, 4}, {1, 1}, true, EK_BF16, false}, /* blocks of no token */
};

struct setup {
    const struct shape *s;
    struct both ckv, q, weight, inv_freq, cache, query, mixed, out;
    struct paged batch;
    struct ek_mat gpu_kv_b, cpu_kv_b;
    uint32_t ld;
};

static void setup_open(struct setup *u, const struct shape *s)
{
    const struct ek_latent *l = &s->l;
    uint32_t key = l->lora + l->rope, rows = l->heads * (l->nope + l->v);

    *u = (struct setup){.s = s, .ld = key + 16};
    u->batch = paged_new(&pr, s->page, s->n_seqs, s->past, s->n_new, &seed);
    u->ckv = both_random(&pr, (size_t)u->batch.n * u->ld, 1, &seed);
    u->q = both_random(&pr, (size_t)u->batch.n * l->heads * (l->nope + l->rope), 1, &seed);
    u->weight = both_floats(&pr, l->lora, 1, 0.1f, &seed);
    u->inv_freq = frequencies(&pr, l->rope);
    u->cache = both_random(&pr, paged_slots(&u->batch) * key, 1, &seed);
    u->query = both_new(&pr, (size_t)u->batch.n * l->heads * key);
    u->mixed = both_new(&pr, (size_t)u->batch.n * l->heads * l->lora);
    u->out = both_new(&pr, (size_t)u->batch.n * l->heads * l->v);
    mats_random(&pr, s->kv_b, rows, l->lora, 1 / sqrtf((float)l->nope), &seed, &u->gpu_kv_b,
                &u->cpu_kv_b);
}

static void setup_close(struct setup *u)
{
    struct both *all[] = {&u->ckv,   &u->q,     &u->weight, &u->inv_freq,
                          &u->cache, &u->query, &u->mixed,  &u->out};

    paged_free(&pr, &u->batch);
    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        both_free(&pr, all[i]);
    mats_free(&pr, &u->gpu_kv_b, &u->cpu_kv_b);
}

static struct ek_kv cache_of(const struct setup *u, bool gpu)
{
    const struct ek_latent *l = &u->s->l;

    return (struct ek_kv){.k = SIDE(u->cache),
                          .dtype = gpu ? pr.act : EK_F32,
                          .kv_heads = 1,
                          .head_dim = l->lora + l->rope,
                          .v_dim = l->lora,
                          .page = u->s->page};
}

enum form { PARTS, NO_APPEND, FUSED, PREFILL };

static void run_latent(struct setup *u, bool gpu, enum form form)
{
    struct ek_device *dev = gpu ? pr.gpu : pr.cpu;
    const struct ek_latent *l = &u->s->l;
    const struct ek_mat *kv_b = gpu ? &u->gpu_kv_b : &u->cpu_kv_b;
    struct ek_rope rope = {.inv_freq = SIDE(u->inv_freq),
                           .dim = l->rope,
                           .interleaved = u->s->interleaved,
                           .amplitude = 1.1f};
    struct ek_batch b = paged_batch(&u->batch, gpu);
    struct ek_kv kv = cache_of(u, gpu);
    size_t key = l->lora + l->rope, lq = l->heads * (l->nope + l->rope);
    float scale = 0.5f / sqrtf((float)key);
    struct ek_latent_mix m = {.ckv = SIDE(u->ckv),
                              .ld = u->ld,
                              .norm = SIDE(u->weight),
                              .eps = 1e-6f,
                              .rope = &rope,
                              .batch = &b,
                              .kv = &kv,
                              .q = SIDE(u->q),
                              .ldq = lq,
                              .shape = *l,
                              .kv_b = kv_b,
                              .scale = scale,
                              .query = SIDE(u->query),
                              .mixed = SIDE(u->mixed),
                              .out = SIDE(u->out),
                              .ldo = (size_t)l->heads * l->v};
    bool taken = false;

    if (form == PREFILL) {
        need(dev->ops->latent_prefill(dev, &m, &taken));
        ck_assert(!taken || (u->s->expanded && pr.act != EK_F32));
        if (getenv("EK_CUDA_CAPABILITY") == NULL) /* others may have too little shared memory */
            ck_assert_int_eq(taken, u->s->expanded && pr.act != EK_F32);
    }
    if (form >= FUSED) {
        if (!taken)
            need(dev->ops->latent_mix(dev, &m));
        return;
    }
    if (form == PARTS)
        need(dev->ops->latent_append(dev, SIDE(u->ckv), u->ld, SIDE(u->weight), 1e-6f, &rope, &b,
                                     &kv));
    need(dev->ops->latent_query(dev, SIDE(u->q), lq, &rope, &b, l, kv_b, SIDE(u->query),
                                l->heads * key));
    need(dev->ops->attention(dev, SIDE(u->query), l->heads * key, &b, &kv, l->heads, scale,
                             SIDE(u->mixed), (size_t)l->heads * l->lora));
    need(dev->ops->latent_value(dev, SIDE(u->mixed), (size_t)l->heads * l->lora, u->batch.n, l,
                                kv_b, SIDE(u->out), (size_t)l->heads * l->v));
}

START_TEST(latent_attention_agrees_with_the_cpu)
{
    enum form form = _i / N_ACTS == 0 ? PARTS : _i / N_ACTS == 1 ? FUSED : PREFILL;

    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(shapes); c++) {
        struct setup u;
        char what[64];

        if (shapes[c].l.heads == SPANS_HEADS && (form != PREFILL || pr.act == EK_F32))
            continue; /* its other forms are as everywhere, and slow on the CPU */
        setup_open(&u, &shapes[c]);
        run_latent(&u, true, form);
        run_latent(&u, false, PARTS);
        snprintf(what, sizeof(what), "shape %zu, cache", c);
        need_close(what, both_error(&pr, &u.cache), tolerance(pr.act));
        if (form == PARTS) { /* else memory that it may leave as it was */
            snprintf(what, sizeof(what), "shape %zu, query", c);
            need_close(what, both_error(&pr, &u.query), tolerance(pr.act));
            snprintf(what, sizeof(what), "shape %zu, attention", c);
            need_close(what, both_error(&pr, &u.mixed), 2 * tolerance(pr.act));
        }
        snprintf(what, sizeof(what), "shape %zu, value", c);
        need_close(what, both_error(&pr, &u.out), 2 * tolerance(pr.act));
        setup_close(&u);
    }
    pair_close(&pr);
}
END_TEST

static void *bytes_of(const struct both *b)
{
    size_t n = b->n * element(pr.act);
    void *v = malloc(n);

    ck_assert(v != NULL);
    need(pr.gpu->ops->download(pr.gpu, v, b->gpu, n));
    return v;
}

START_TEST(expanded_prefill_gives_the_same_bits_again)
{
    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(shapes); c++) {
        void *first, *again;
        struct setup u;

        if (!shapes[c].expanded)
            continue;
        setup_open(&u, &shapes[c]);
        run_latent(&u, true, PREFILL);
        first = bytes_of(&u.out);
        need(pr.gpu->ops->zero(pr.gpu, u.out.gpu, u.out.n * element(pr.act)));
        run_latent(&u, true, PREFILL);
        again = bytes_of(&u.out);
        ck_assert_mem_eq(first, again, u.out.n * element(pr.act));
        free(first), free(again);
        setup_close(&u);
    }
    pair_close(&pr);
}
END_TEST

/* One graph, captured at the grid of a longer context, replayed as the context grows. */
START_TEST(a_captured_graph_serves_growing_contexts)
{
    static const int32_t grown[] = {1, 64, 0, 65, 500, 512};
    struct shape s = shapes[0];
    struct ek_graph *g = NULL;
    struct setup u;

    open_act(_i);
    s.kv_b = pr.act;
    setup_open(&u, &s);
    run_latent(&u, true, PARTS); /* scratch memory is there before the capture */
    run_latent(&u, false, PARTS);
    need(pr.gpu->ops->graph_begin(pr.gpu));
    run_latent(&u, true, _i < N_ACTS ? NO_APPEND : FUSED);
    need(pr.gpu->ops->graph_end(pr.gpu, &g));
    for (size_t i = 0; i < EK_ARRAY_LEN(grown); i++) {
        void *first, *again;

        need(pr.gpu->ops->upload(pr.gpu, u.batch.lens.gpu, &grown[i], sizeof(grown[i])));
        need(pr.cpu->ops->upload(pr.cpu, u.batch.lens.cpu, &grown[i], sizeof(grown[i])));
        need(pr.gpu->ops->graph_launch(pr.gpu, g));
        run_latent(&u, false, NO_APPEND);
        need_close("grown", both_error(&pr, &u.out), 2 * tolerance(pr.act));
        first = bytes_of(&u.out);
        need(pr.gpu->ops->graph_launch(pr.gpu, g));
        again = bytes_of(&u.out);
        ck_assert_mem_eq(first, again, u.out.n * element(pr.act));
        free(first), free(again);
    }
    pr.gpu->ops->graph_free(g);
    setup_close(&u);
    pair_close(&pr);
}
END_TEST

/* ---- router -------------------------------------------------------------------------------------
 */
static const struct {
    struct ek_router r;
    bool biased;
} routers[] = {
    {{EK_ROUTE_GREEDY, 64, 6, 1, 1, false, false, 1}, false}, /* V2-Lite, VL2 */
    {{EK_ROUTE_GREEDY, 8, 3, 1, 1, false, true, 2.5f}, false},
    {{EK_ROUTE_GROUP_LIMITED, 160, 6, 8, 3, false, false, 16}, false}, /* V2 */
    {{EK_ROUTE_NOAUX_TC, 256, 8, 8, 4, true, true, 2.5f}, true},       /* V3 */
    {{EK_ROUTE_NOAUX_TC, 72, 6, 1, 1, true, true, 2}, true},           /* VL2 base */
    {{EK_ROUTE_GREEDY, 1000, 40, 1, 1, true, false, 1}, false},
};

static void check_route(size_t c, uint32_t n)
{
    const struct ek_router *r = &routers[c].r;
    uint32_t hidden = 256;
    size_t pairs = (size_t)n * r->top_k;
    struct both x = both_random(&pr, (size_t)n * hidden, 1, &seed);
    struct both bias = both_floats(&pr, r->n_experts, 0, 0.1f, &seed);
    struct both weights = both_floats(&pr, pairs, 0, 0, &seed);
    struct both ids = both_floats(&pr, pairs, 0, 0, &seed);
    int32_t *got = malloc(pairs * sizeof(*got)), *want = malloc(pairs * sizeof(*want));
    struct ek_mat g, h;
    char what[64];
    size_t equal = 0;

    ck_assert(got && want);
    mats_random(&pr, EK_BF16, r->n_experts, hidden, 0.1f, &seed, &g, &h);
    need(pr.gpu->ops->route(pr.gpu, x.gpu, hidden, n, &g, routers[c].biased ? bias.gpu : NULL, r,
                            ids.gpu, weights.gpu));
    need(pr.cpu->ops->route(pr.cpu, x.cpu, hidden, n, &h, routers[c].biased ? bias.cpu : NULL, r,
                            ids.cpu, weights.cpu));
    need(pr.gpu->ops->download(pr.gpu, got, ids.gpu, pairs * sizeof(*got)));
    need(pr.cpu->ops->download(pr.cpu, want, ids.cpu, pairs * sizeof(*want)));
    for (size_t i = 0; i < pairs; i++)
        equal += got[i] == want[i];
    snprintf(what, sizeof(what), "router %zu, %u tokens: %zu of %zu ids", c, n, equal, pairs);
    /* sums in another order may turn a near tie */
    ck_assert_msg(equal + 2 + pairs / 200 >= pairs, "%s", what);
    need_close(what, float_error(&pr, &weights), equal == pairs ? 1e-4 : 5e-2);
    mats_free(&pr, &g, &h);
    both_free(&pr, &x);
    both_free(&pr, &bias);
    both_free(&pr, &weights);
    both_free(&pr, &ids);
    free(got), free(want);
}

START_TEST(routers_choose_as_on_the_cpu)
{
    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(routers); c++) {
        check_route(c, 1);
        check_route(c, 5);
        check_route(c, 77);
    }
    pair_close(&pr);
}
END_TEST

/* ---- experts ------------------------------------------------------------------------------------
 */
/* Each token's experts are distinct, as a router's are; low numbers come more often. */
static void choose(int32_t *ids, uint32_t n, uint32_t top_k, uint32_t n_experts)
{
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t k = 0; k < top_k;) {
            double u = ek_random_unit(&seed);
            int32_t e = (int32_t)(u * u * n_experts);
            uint32_t j = 0;

            while (j < k && ids[t * top_k + j] != e)
                j++;
            if (j == k)
                ids[t * top_k + k++] = e;
        }
}

struct experts_case {
    uint32_t n_experts, top_k, hidden, inner;
};

/* Experts on the GPU, which give the same bits again. */
static void run_twice(const struct ek_experts *e, const struct both *x, size_t ldx, uint32_t n,
                      const struct both *ids, const struct both *weights, uint32_t top_k,
                      const struct both *out, size_t ldo)
{
    void *before = bytes_of(out), *first;

    need(pr.gpu->ops->experts(pr.gpu, x->gpu, ldx, n, ids->gpu, weights->gpu, top_k, e, out->gpu,
                              ldo));
    first = bytes_of(out);
    need(pr.gpu->ops->upload(pr.gpu, out->gpu, before, out->n * element(pr.act)));
    need(pr.gpu->ops->experts(pr.gpu, x->gpu, ldx, n, ids->gpu, weights->gpu, top_k, e, out->gpu,
                              ldo));
    free(before);
    before = bytes_of(out);
    ck_assert_mem_eq(before, first, out->n * element(pr.act));
    free(before), free(first);
}

static void check_experts(const struct experts_case *c, enum ek_dtype up, enum ek_dtype down,
                          const uint32_t *tokens, size_t n_tokens)
{
    struct ek_mat g[2], h[2];
    char what[128];

    mats_random(&pr, up, c->n_experts * 2 * c->inner, c->hidden, 1 / sqrtf((float)c->hidden), &seed,
                &g[0], &h[0]);
    mats_random(&pr, down, c->n_experts * c->hidden, c->inner, 1 / sqrtf((float)c->inner), &seed,
                &g[1], &h[1]);
    for (size_t i = 0; i < n_tokens; i++) {
        struct ek_experts eg = {&g[0], &g[1], c->n_experts, c->inner};
        struct ek_experts eh = {&h[0], &h[1], c->n_experts, c->inner};
        uint32_t n = tokens[i];
        size_t ldx = c->hidden + 16, ldo = c->hidden + 8;
        struct both x = both_random(&pr, n * ldx, 1, &seed);
        struct both out = both_random(&pr, n * ldo, 0.5f, &seed), ids;
        struct both weights = both_floats(&pr, (size_t)n * c->top_k, 0.5f, 0.2f, &seed);
        int32_t *chosen = malloc((size_t)n * c->top_k * sizeof(*chosen));

        ck_assert(chosen != NULL);
        choose(chosen, n, c->top_k, c->n_experts);
        ids = both_ints(&pr, chosen, (size_t)n * c->top_k);
        run_twice(&eg, &x, ldx, n, &ids, &weights, c->top_k, &out, ldo);
        need(pr.cpu->ops->experts(pr.cpu, x.cpu, ldx, n, ids.cpu, weights.cpu, c->top_k, &eh,
                                  out.cpu, ldo));
        snprintf(what, sizeof(what), "%u experts %ux%u, best %u, %s/%s, %u tokens", c->n_experts,
                 c->hidden, c->inner, c->top_k, ek_dtype_name(up), ek_dtype_name(down), n);
        need_close(what, both_error(&pr, &out), 2 * tolerance(pr.act));
        both_free(&pr, &x);
        both_free(&pr, &out);
        both_free(&pr, &ids);
        both_free(&pr, &weights);
        free(chosen);
    }
    mats_free(&pr, &g[0], &h[0]);
    mats_free(&pr, &g[1], &h[1]);
}

static const enum ek_dtype weights[] = {EK_F32,  EK_BF16, EK_F16,  EK_Q4_0, EK_Q4_1, EK_Q5_0,
                                        EK_Q5_1, EK_Q8_0, EK_Q4_K, EK_Q5_K, EK_Q6_K};
#define N_WEIGHTS 11

START_TEST(experts_agree_for_every_weight_type_and_number_of_tokens)
{
    static const uint32_t tokens[] = {1, 2, 9, 40, 130, 700};
    enum ek_dtype t = weights[_i / N_ACTS];
    struct experts_case c = {8, 3, t >= EK_Q4_K ? 256 : 96, t >= EK_Q4_K ? 512 : 160};

    open_act(_i);
    check_experts(&c, t, t, tokens, EK_ARRAY_LEN(tokens));
    if (t == EK_BF16 || t == EK_F16) { /* mixed types, and sizes that fill no tile */
        struct experts_case odd = {5, 2, 72, 24};
        check_experts(&odd, t, EK_Q8_0 == t ? t : EK_F32, tokens, EK_ARRAY_LEN(tokens));
        check_experts(&odd, t, t, tokens, EK_ARRAY_LEN(tokens));
    }
    pair_close(&pr);
}
END_TEST

START_TEST(experts_of_full_size_agree)
{
    static const struct experts_case lite = {10, 6, 2048, 1408}, ends = {5, 2, 128, 192};
    static const uint32_t tokens[] = {1, 32, 120}, many[] = {60, 900};
    enum ek_dtype t = acts[_i];

    open_act(_i);
    check_experts(&lite, t, t, tokens, EK_ARRAY_LEN(tokens));
    check_experts(&ends, t, t, many,
                  EK_ARRAY_LEN(many)); /* tiles that are full, and that are not */
    pair_close(&pr);
}
END_TEST

struct mixture_case {
    uint32_t n_experts, top_k, hidden, inner, shared;
    enum ek_dtype gate;
    bool forced;
    uint32_t n;
};

/* The GPU's choice for the CPU as well: a rounded token may turn near ties, two places each, whose
 * weights differ little. */
static void take_choice(const struct mixture_case *c, struct both *weight, struct both *ids)
{
    size_t pairs = (size_t)c->n * c->top_k, equal = 0;
    int32_t *got = malloc(pairs * sizeof(*got)), *want = malloc(pairs * sizeof(*want));
    float *w = malloc(pairs * sizeof(*w));

    ck_assert(got && want && w);
    need_close("weights", float_error(&pr, weight), 5e-2);
    need(pr.gpu->ops->download(pr.gpu, got, ids->gpu, pairs * sizeof(*got)));
    need(pr.cpu->ops->download(pr.cpu, want, ids->cpu, pairs * sizeof(*want)));
    need(pr.gpu->ops->download(pr.gpu, w, weight->gpu, pairs * sizeof(*w)));
    for (size_t i = 0; i < pairs; i++)
        equal += got[i] == want[i];
    ck_assert_msg(equal + 4 + pairs / 10 >= pairs, "%zu of %zu ids", equal, pairs);
    need(pr.cpu->ops->upload(pr.cpu, ids->cpu, got, pairs * sizeof(*got)));
    need(pr.cpu->ops->upload(pr.cpu, weight->cpu, w, pairs * sizeof(*w)));
    free(got), free(want), free(w);
}

static void mixture_on_the_cpu(const struct mixture_case *c, struct both *x, struct both *norm,
                               struct both *weight, struct both *ids, const struct ek_mixture *m)
{
    struct both both = both_new(&pr, (size_t)2 * c->n * c->shared);
    struct both inner = both_new(&pr, (size_t)c->n * c->shared);
    const struct ek_ops *ops = pr.cpu->ops;

    need(ops->rms_norm(pr.cpu, x->cpu, c->hidden, norm->cpu, m->eps, c->n, c->hidden, m->normed,
                       c->hidden));
    need(ops->route(pr.cpu, m->normed, c->hidden, c->n, m->gate, m->bias, m->router, m->ids,
                    m->weights));
    if (!m->forced)
        take_choice(c, weight, ids);
    need(ops->experts(pr.cpu, m->normed, c->hidden, c->n, m->forced ? m->forced : m->ids,
                      m->weights, c->top_k, m->experts, x->cpu, c->hidden));
    need(ops->linear(pr.cpu, m->normed, c->hidden, c->n, &m->shared[0], NULL, both.cpu,
                     (size_t)2 * c->shared, 0));
    need(ops->swiglu(pr.cpu, both.cpu, (size_t)2 * c->shared, c->n, c->shared, inner.cpu,
                     c->shared));
    need(ops->linear(pr.cpu, inner.cpu, c->shared, c->n, &m->shared[1], NULL, x->cpu, c->hidden,
                     EK_LINEAR_ADD));
    both_free(&pr, &both);
    both_free(&pr, &inner);
}

/* The same tokens again give the same bits, whatever blocks came first. */
static void need_same_again(const struct ek_mixture *m, struct both *x, const void *before)
{
    void *first = bytes_of(x), *again;
    bool taken;

    need(pr.gpu->ops->upload(pr.gpu, x->gpu, before, x->n * element(pr.act)));
    need(pr.gpu->ops->mixture(pr.gpu, m, &taken));
    again = bytes_of(x);
    ck_assert_mem_eq(first, again, x->n * element(pr.act));
    free(first), free(again);
}

/* False: the device leaves this one to its caller. */
static bool check_mixture(const struct mixture_case *c, enum ek_dtype t)
{
    uint32_t rows[5] = {c->n_experts * 2 * c->inner, c->n_experts * c->hidden, 2 * c->shared,
                        c->hidden, c->n_experts};
    uint32_t cols[5] = {c->hidden, c->inner, c->hidden, c->shared, c->hidden};
    struct ek_router router = {EK_ROUTE_GREEDY, c->n_experts, c->top_k, 1, 1, false, true, 1.5f};
    struct ek_mat g[5], h[5];
    struct ek_experts eg = {&g[0], &g[1], c->n_experts, c->inner};
    struct ek_experts eh = {&h[0], &h[1], c->n_experts, c->inner};
    struct both x = both_random(&pr, (size_t)c->n * c->hidden, 1, &seed);
    struct both normed = both_new(&pr, (size_t)c->n * c->hidden);
    struct both norm = both_floats(&pr, c->hidden, 1, 0.1f, &seed), forced;
    struct both weight = both_floats(&pr, (size_t)c->n * c->top_k, 0, 0, &seed);
    struct both ids = both_floats(&pr, (size_t)c->n * c->top_k, 0, 0, &seed);
    struct both *all[] = {&x, &normed, &norm, &weight, &ids, &forced};
    int32_t *chosen = malloc((size_t)c->n * c->top_k * sizeof(*chosen));
    void *before = bytes_of(&x);
    char what[128];
    bool taken;

    ck_assert(chosen != NULL);
    choose(chosen, c->n, c->top_k, c->n_experts);
    forced = both_ints(&pr, chosen, (size_t)c->n * c->top_k);
    for (int i = 0; i < 5; i++)
        mats_random(&pr, i < 4 ? t : c->gate, rows[i], cols[i], 1 / sqrtf((float)cols[i]), &seed,
                    &g[i], &h[i]);
    struct ek_mixture mg = {.x = x.gpu,
                            .n = c->n,
                            .norm = norm.gpu,
                            .eps = 1e-6f,
                            .gate = &g[4],
                            .router = &router,
                            .forced = c->forced ? forced.gpu : NULL,
                            .experts = &eg,
                            .shared = &g[2],
                            .normed = normed.gpu,
                            .ids = ids.gpu,
                            .weights = weight.gpu};
    struct ek_mixture mh = mg;
    mh.gate = &h[4], mh.forced = c->forced ? forced.cpu : NULL, mh.experts = &eh, mh.shared = &h[2];
    mh.normed = normed.cpu, mh.ids = ids.cpu, mh.weights = weight.cpu;
    need(pr.gpu->ops->mixture(pr.gpu, &mg, &taken));
    if (taken) {
        mixture_on_the_cpu(c, &x, &norm, &weight, &ids, &mh);
        snprintf(what, sizeof(what), "%u of %u experts, %u tokens, %s", c->top_k, c->n_experts,
                 c->n, ek_dtype_name(t));
        need_close(what, both_error(&pr, &x), 2 * tolerance(pr.act));
        need_same_again(&mg, &x, before);
    }
    for (int i = 0; i < 5; i++)
        mats_free(&pr, &g[i], &h[i]);
    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        both_free(&pr, all[i]);
    free(before), free(chosen);
    return taken;
}

START_TEST(a_tokens_mixture_agrees_for_every_weight_type)
{
    static const struct mixture_case cases[] = {
        {8, 3, 256, 256, 256, EK_BF16, true, 1},
        {8, 3, 256, 256, 1280, EK_F16, true, 1},
        {8, 3, 256, 256, 512, EK_F32, false, 1},
    };
    static const struct mixture_case odd = {8, 3, 256, 256, 384, EK_BF16, true, 1};
    enum ek_dtype t = weights[_i / N_ACTS];

    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(cases); c++)
        ck_assert(check_mixture(&cases[c], t));
    if (t < EK_Q4_0) /* not a multiple of the experts' size */
        ck_assert(!check_mixture(&odd, t));
    pair_close(&pr);
}
END_TEST

/* Of the activations' type, with everything in the fewest launches. */
START_TEST(mixtures_of_a_few_tokens_agree)
{
    static const struct mixture_case cases[] = {
        {3, 2, 2048, 1408, 2816, EK_BF16, true, 1}, /* V2-Lite's sizes */
        {3, 2, 2048, 1408, 2816, EK_BF16, true, 8}, {72, 6, 640, 96, 192, EK_F32, false, 1},
        {160, 6, 256, 104, 208, EK_BF16, true, 1},  {8, 3, 512, 256, 512, EK_F32, true, 2},
        {72, 6, 640, 96, 192, EK_F32, false, 5},    {6, 4, 264, 280, 560, EK_F16, true, 33},
        {64, 6, 512, 128, 256, EK_BF16, false, 64}, {6, 1, 512, 72, 72, EK_BF16, true, 17},
    };

    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(cases); c++)
        check_mixture(&cases[c], pr.act);
    pair_close(&pr);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu: DeepSeek");
    SRunner *sr;
    TCase *tc;
    int failed;

    if (!pair_present())
        return 77;
    sr = srunner_create(s);
    tc = add_case(s, "latent");
    tcase_add_loop_test(tc, latent_attention_agrees_with_the_cpu, 0, 2 * N_ACTS);
    tcase_add_loop_test(tc, a_captured_graph_serves_growing_contexts, 0, 2 * N_ACTS);
    tc = add_case(s, "expanded");
    tcase_add_loop_test(tc, latent_attention_agrees_with_the_cpu, 2 * N_ACTS, 3 * N_ACTS);
    tcase_add_loop_test(tc, expanded_prefill_gives_the_same_bits_again, 1, N_ACTS);
    tc = add_case(s, "router");
    tcase_add_loop_test(tc, routers_choose_as_on_the_cpu, 0, N_ACTS);
    tc = add_case(s, "experts");
    tcase_add_loop_test(tc, experts_agree_for_every_weight_type_and_number_of_tokens, 0,
                        N_ACTS * N_WEIGHTS);
    tc = add_case(s, "mixture");
    tcase_add_loop_test(tc, mixtures_of_a_few_tokens_agree, 0, N_ACTS);
    tc = add_case(s, "types");
    tcase_add_loop_test(tc, a_tokens_mixture_agrees_for_every_weight_type, 0, N_ACTS * N_WEIGHTS);
    tc = add_case(s, "full-size");
    tcase_add_loop_test(tc, experts_of_full_size_agree, 0, N_ACTS);
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    pair_report();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
