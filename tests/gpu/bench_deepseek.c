/* SPDX-License-Identifier: Apache-2.0
 *
 * Speed of latent attention and mixtures of experts on the shapes of DeepSeek-V2-Lite: layers as
 * the runtime composes them, and their operations alone, as shares of the ceilings measured in the
 * same run (a streaming kernel, an 8192^3 product). Weights rotate over several layers.
 * Usage: bench_deepseek [LAYERS [decode | prefill [TYPE]]]    TYPE: of the experts' weights
 */
#include "tests/gpu/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 2048, HEADS = 16, LORA = 512, NOPE = 128, ROPE = 64, V = 128, PAGE = 32 };
enum { EXPERTS = 64, TOP_K = 6, INNER = 1408, SHARED = 2 * INNER, KEY = LORA + ROPE };
enum { Q = HEADS * (NOPE + ROPE), QKV = Q + KEY, MOST_LAYERS = 26 };

/* ---- a layer -----------------------------------------------------------------------------------
 */
struct layer {
    struct ek_mat qkv, kv_b, o, router, gate_up, down, shared_up, shared_down;
    struct ek_kv kv;
};
struct model {
    enum ek_dtype type; /* of the experts */
    struct layer layers[MOST_LAYERS];
    uint32_t n_layers;
    struct ek_batch batch;
    struct ek_rope rope;
    float *norm, *weights;
    int32_t *ids, *fixed; /* a router of random weights takes the same experts everywhere */
    void *x, *xn, *first, *query, *mixed, *attn, *both, *inner;
    int only; /* a part of the layer, or all */
};
enum {
    ALL,
    APPEND,
    QUERY,
    ATTENTION,
    VALUE,
    MIX,
    PREFILL,
    PROJECT,
    ROUTE,
    EXPERT,
    SHARE,
    MIXTURE,
    N_PARTS
};
static const char *const part_names[] = {"all",       "latent_append",  "latent_query",
                                         "attention", "latent_value",   "these four",
                                         "expanded",  "qkv and o",      "norm, route",
                                         "experts",   "shared experts", "these three"};

static const struct ek_latent shape = {HEADS, LORA, NOPE, ROPE, V};

static void mix_latents(struct model *m, struct layer *l)
{
    struct ek_latent_mix mix = {.ckv = (char *)m->first + Q * 2,
                                .ld = QKV,
                                .norm = m->norm,
                                .eps = 1e-6f,
                                .rope = &m->rope,
                                .batch = &m->batch,
                                .kv = &l->kv,
                                .q = m->first,
                                .ldq = QKV,
                                .shape = shape,
                                .kv_b = &l->kv_b,
                                .scale = 0.1f,
                                .query = m->query,
                                .mixed = m->mixed,
                                .out = m->attn,
                                .ldo = HEADS * V};
    bool all = m->only == ALL, taken = false;

    if ((all || m->only == PREFILL) && m->batch.n_tokens > 1)
        need(ops->latent_prefill(dev, &mix, &taken));
    if ((all && !taken) || m->only == MIX)
        need(ops->latent_mix(dev, &mix));
}

static void run_attention(struct model *m, struct layer *l)
{
    uint32_t n = m->batch.n_tokens;
    bool all = m->only == ALL;

    if (all || m->only == PROJECT)
        need(ops->norm_linear(dev, m->x, m->norm, 1e-6f, n, &l->qkv, 1, NULL, m->first, QKV));
    mix_latents(m, l);
    if (m->only == APPEND)
        need(ops->latent_append(dev, (char *)m->first + Q * 2, QKV, m->norm, 1e-6f, &m->rope,
                                &m->batch, &l->kv));
    if (m->only == QUERY)
        need(ops->latent_query(dev, m->first, QKV, &m->rope, &m->batch, &shape, &l->kv_b, m->query,
                               HEADS * KEY));
    if (m->only == ATTENTION)
        need(ops->attention(dev, m->query, HEADS * KEY, &m->batch, &l->kv, HEADS, 0.1f, m->mixed,
                            HEADS * LORA));
    if (m->only == VALUE)
        need(ops->latent_value(dev, m->mixed, HEADS * LORA, n, &shape, &l->kv_b, m->attn,
                               HEADS * V));
    if (all || m->only == PROJECT)
        need(ops->linear(dev, m->attn, HEADS * V, n, &l->o, NULL, m->x, HIDDEN, EK_LINEAR_ADD));
}

static const struct ek_router router = {EK_ROUTE_GREEDY, EXPERTS, TOP_K, 1, 1, false, false, 1};

static bool mix_experts(struct model *m, struct layer *l, const struct ek_experts *e,
                        const int32_t *forced)
{
    const struct ek_mat shared[2] = {l->shared_up, l->shared_down};
    struct ek_mixture all = {.x = m->x,
                             .n = m->batch.n_tokens,
                             .norm = m->norm,
                             .eps = 1e-6f,
                             .gate = &l->router,
                             .router = &router,
                             .forced = forced,
                             .experts = e,
                             .shared = shared,
                             .normed = m->xn,
                             .ids = m->ids,
                             .weights = m->weights};
    bool taken;

    need(ops->mixture(dev, &all, &taken));
    return taken;
}

static void run_experts(struct model *m, struct layer *l, uint32_t at)
{
    struct ek_experts e = {&l->gate_up, &l->down, EXPERTS, INNER};
    uint32_t n = m->batch.n_tokens;
    bool all = m->only == ALL;

    if ((all || m->only == MIXTURE) && mix_experts(m, l, &e, m->fixed + (size_t)at * n * TOP_K))
        return;
    if (all || m->only == ROUTE) {
        need(ops->rms_norm(dev, m->x, HIDDEN, m->norm, 1e-6f, n, HIDDEN, m->xn, HIDDEN));
        need(ops->route(dev, m->xn, HIDDEN, n, &l->router, NULL, &router, m->ids, m->weights));
    }
    if (all || m->only == EXPERT)
        need(ops->experts(dev, m->xn, HIDDEN, n, m->fixed + (size_t)at * n * TOP_K, m->weights,
                          TOP_K, &e, m->x, HIDDEN));
    if (all || m->only == SHARE) {
        need(ops->linear(dev, m->xn, HIDDEN, n, &l->shared_up, NULL, m->both, 2 * SHARED, 0));
        need(ops->swiglu(dev, m->both, 2 * SHARED, n, SHARED, m->inner, SHARED));
        need(ops->linear(dev, m->inner, SHARED, n, &l->shared_down, NULL, m->x, HIDDEN,
                         EK_LINEAR_ADD));
    }
}

static void run_layers(void *arg)
{
    struct model *m = arg;

    for (uint32_t i = 0; i < m->n_layers; i++) {
        run_attention(m, &m->layers[i]);
        run_experts(m, &m->layers[i], i);
    }
}

/* ---- setting up --------------------------------------------------------------------------------
 */
static void make_model(struct model *m, uint32_t layers, enum ek_dtype type)
{
    float f[ROPE / 2], ones[8192];

    *m = (struct model){.type = type, .n_layers = layers};
    for (uint32_t i = 0; i < layers; i++) {
        struct layer *l = &m->layers[i];

        l->qkv = matrix(EK_BF16, QKV, HIDDEN);
        l->kv_b = matrix(EK_BF16, HEADS * (NOPE + V), LORA);
        l->o = matrix(EK_BF16, HIDDEN, HEADS * V);
        l->router = matrix(EK_BF16, EXPERTS, HIDDEN);
        l->gate_up = matrix(m->type, EXPERTS * 2 * INNER, HIDDEN);
        l->down = matrix(m->type, EXPERTS * HIDDEN, INNER);
        l->shared_up = matrix(m->type, 2 * SHARED, HIDDEN);
        l->shared_down = matrix(m->type, HIDDEN, SHARED);
    }
    for (int i = 0; i < ROPE / 2; i++)
        f[i] = powf(10000, -2.0f * (float)i / ROPE);
    for (int i = 0; i < 8192; i++)
        ones[i] = 1;
    m->norm = take_copy(ones, sizeof(ones));
    m->rope = (struct ek_rope){
        .inv_freq = take_copy(f, sizeof(f)), .dim = ROPE, .interleaved = true, .amplitude = 1};
}

/* Distinct experts for each token, evenly spread. */
static int32_t *random_ids(uint32_t tokens)
{
    int32_t *v = malloc((size_t)tokens * TOP_K * sizeof(*v)), *p;
    uint64_t seed = 7;

    if (v == NULL)
        exit(1);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t k = 0; k < TOP_K;) {
            uint32_t j = 0;
            v[t * TOP_K + k] = (int32_t)(ek_random_u64(&seed) % EXPERTS);
            while (j < k && v[t * TOP_K + j] != v[t * TOP_K + k])
                j++;
            k += j == k;
        }
    p = take_copy(v, (size_t)tokens * TOP_K * sizeof(*v));
    free(v);
    return p;
}

static void make_batch(struct model *m, uint32_t n_seqs, uint32_t past, uint32_t n_new)
{
    uint32_t len = past + n_new, blocks = (len + PAGE - 1) / PAGE, n = n_seqs * n_new;
    int32_t *v = calloc((size_t)n_seqs * blocks + n + n_seqs + 1, sizeof(*v));
    struct ek_batch b = {
        .n_tokens = n, .n_seqs = n_seqs, .max_q = n_new, .max_kv = len, .max_blocks = blocks};

    if (v == NULL)
        exit(1);
    for (uint32_t i = 0; i < n; i++)
        v[i] = (int32_t)(past + i % n_new);
    b.positions = take_copy(v, n * 4);
    for (uint32_t i = 0; i < n; i++)
        v[i] = (int32_t)(i / n_new * blocks * PAGE + past + i % n_new);
    b.slots = take_copy(v, n * 4);
    for (uint32_t i = 0; i <= n_seqs; i++)
        v[i] = (int32_t)(i * n_new);
    b.seq_start = take_copy(v, (n_seqs + 1) * 4);
    for (uint32_t i = 0; i < n_seqs; i++)
        v[i] = (int32_t)len;
    b.kv_len = take_copy(v, n_seqs * 4);
    for (uint32_t i = 0; i < n_seqs * blocks; i++)
        v[i] = (int32_t)i;
    b.block_table = take_copy(v, (size_t)n_seqs * blocks * 4);
    free(v);
    m->batch = b;
}

static void make_buffers(struct model *m)
{
    size_t n = m->batch.n_tokens;

    m->x = take(n * HIDDEN * 2);
    m->xn = take(n * HIDDEN * 2);
    m->first = take(n * QKV * 2);
    m->query = take(n * HEADS * KEY * 2);
    m->mixed = take(n * HEADS * LORA * 2);
    m->attn = take(n * HEADS * V * 2);
    m->both = take(n * 2 * SHARED * 2);
    m->inner = take(n * SHARED * 2);
    m->ids = take(n * TOP_K * 4);
    m->weights = take(n * TOP_K * 4);
    m->fixed = random_ids((uint32_t)n * m->n_layers);
    for (uint32_t i = 0; i < m->n_layers; i++)
        m->layers[i].kv = (struct ek_kv){.k = take((size_t)m->batch.n_seqs * m->batch.max_blocks *
                                                   PAGE * KEY * 2),
                                         .dtype = EK_BF16,
                                         .kv_heads = 1,
                                         .head_dim = KEY,
                                         .v_dim = LORA,
                                         .page = PAGE};
}

static void free_buffers(struct model *m)
{
    void *all[] = {m->x,    m->xn,    m->first, m->query,   m->mixed, m->attn,
                   m->both, m->inner, m->ids,   m->weights, m->fixed};

    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        ops->release(dev, all[i]);
    for (uint32_t i = 0; i < m->n_layers; i++)
        ops->release(dev, m->layers[i].kv.k);
}

/* Experts that n tokens of evenly spread choices go to. */
static double experts_met(double n)
{
    return EXPERTS * (1 - pow(1 - (double)TOP_K / EXPERTS, n));
}

static double attention_params(void)
{
    return (double)QKV * HIDDEN + HEADS * (NOPE + V) * LORA + (double)HIDDEN * HEADS * V +
           EXPERTS * HIDDEN;
}

static void parts(struct model *m, bool graph)
{
    int last = m->batch.n_tokens <= 64 ? MIXTURE : SHARE;

    for (m->only = APPEND; m->only <= last; m->only++)
        if (m->only != PREFILL || m->batch.max_q > 1)
            printf("    %-15s %8.2f us a layer\n", part_names[m->only],
                   seconds(run_layers, m, graph, 9) / m->n_layers * 1e6);
    m->only = ALL;
    fflush(stdout);
}

static void decode(struct model *m, uint32_t n_seqs, uint32_t context)
{
    double expert = 3.0 * HIDDEN * INNER, t;
    double bytes = 2 * attention_params() + (double)n_seqs * context * KEY * 2 +
                   weight_bytes(m->type, (experts_met(n_seqs) + 2) * expert);

    make_batch(m, n_seqs, context - 1, 1);
    make_buffers(m);
    t = seconds(run_layers, m, true, 21) / m->n_layers;
    printf("decode batch %u, context %u: %.2f us a layer, %.0f MB, %.1f %% of read\n", n_seqs,
           context, t * 1e6, bytes / 1e6, 100 * bytes / t / read_rate);
    parts(m, true);
    free_buffers(m);
}

static void prefill(struct model *m, uint32_t past, uint32_t n)
{
    double flops = 2.0 * n * (attention_params() + (TOP_K + 2) * 3.0 * HIDDEN * INNER), t;

    make_batch(m, 1, past, n);
    make_buffers(m);
    t = seconds(run_layers, m, false, 7) / m->n_layers;
    printf("prefill %u after %u: %.2f us a layer, linear %.0f TFLOP/s, %.1f %% of product\n", n,
           past, t * 1e6, flops / t / 1e12, 100 * flops / t / matrix_rate);
    parts(m, false);
    free_buffers(m);
}

static enum ek_dtype type_named(const char *name)
{
    enum ek_dtype t = 0;

    while (t + 1 < EK_N_DTYPES && strcmp(ek_dtype_name(t), name) != 0)
        t++;
    return t;
}

int main(int argc, char **argv)
{
    static const uint32_t prompts[][2] = {{0, 32},    {0, 128},    {0, 512},    {0, 4096},
                                          {3584, 32}, {3584, 128}, {3584, 512}, {16384, 512}};
    int layers = argc > 1 ? atoi(argv[1]) : 8;
    const char *what = argc > 2 ? argv[2] : "all";
    static struct model m;

    if (!bench_open())
        return 77;
    make_model(&m,
               layers < 1             ? 1
               : layers > MOST_LAYERS ? MOST_LAYERS
                                      : (uint32_t)layers,
               type_named(argc > 3 ? argv[3] : "BF16"));
    if (what[0] != 'p') {
        decode(&m, 1, 512);
        decode(&m, 1, 8192);
        decode(&m, 8, 512);
        decode(&m, 32, 512);
    }
    for (size_t i = 0; what[0] != 'd' && i < EK_ARRAY_LEN(prompts); i++)
        prefill(&m, prompts[i][0], prompts[i][1]);
    ek_device_close(dev);
    return 0;
}
