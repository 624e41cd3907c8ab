/* SPDX-License-Identifier: Apache-2.0
 *
 * Speed of the CUDA backend's operations as shares of the ceilings measured in the same run: the
 * read bandwidth of a streaming kernel and the rate of an 8192^3 product. Random data; weights
 * rotate past twice the L2; medians of several runs. Also whole decode steps and prefills of the
 * shapes of published models, composed from the operations and replayed as a graph.
 * Usage: bench_kernels [all|ceilings|products|formats [MODEL]|attention|steps|block-steps|one]
 *        bench_kernels batches MODEL N...    decode steps of N sequences; of the 67B 8 layers
 *        bench_kernels largest [LAYERS]      DeepSeek LLM 67B at batch 1, or its first layers alone
 * one: one token alone
 */
#include "tests/gpu/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct product {
    struct ek_mat w[64];
    uint32_t copies, n;
    void *x, *out;
    size_t ldx, ldo;
    int flags;
};
static void run_product(void *arg)
{
    struct product *p = arg;

    for (uint32_t i = 0; i < p->copies; i++)
        need(ops->linear(dev, p->x, p->ldx, p->n, &p->w[i], NULL, p->out, p->ldo, p->flags));
}

/* ---- products ----------------------------------------------------------------------------------
 */
/* Seconds of a product with tokens[i] tokens. */
static void time_product(enum ek_dtype t, uint32_t rows, uint32_t cols, int flags,
                         const uint32_t *tokens, size_t n, double *s)
{
    struct product p = {.ldx = cols, .ldo = rows, .flags = flags};
    uint32_t most = tokens[n - 1];

    p.w[0] = matrix(t, rows, cols);
    p.copies = (uint32_t)((256 << 20) / p.w[0].bytes) + 1;
    p.copies = p.copies > 64 ? 64 : p.copies < 2 ? 2 : p.copies;
    for (uint32_t i = 1; i < p.copies; i++)
        p.w[i] = matrix(t, rows, cols);
    p.x = take((size_t)most * cols * 2);
    p.out = take((size_t)most * rows * 4);
    for (size_t i = 0; i < n; i++) {
        p.n = tokens[i];
        s[i] = seconds(run_product, &p, true, 21) / p.copies;
    }
    for (uint32_t i = 0; i < p.copies; i++)
        ops->release(dev, p.w[i].data);
    ops->release(dev, p.x);
    ops->release(dev, p.out);
}

static void one_product(const char *name, enum ek_dtype t, uint32_t rows, uint32_t cols, uint32_t n,
                        int flags)
{
    double s, bytes = weight_bytes(t, (double)rows * cols);

    time_product(t, rows, cols, flags, &n, 1, &s);
    printf("%-10s %-5s %6u x %5u  n %2u  %8.2f us  %6.0f GB/s  %5.1f %% of read\n", name,
           ek_dtype_name(t), rows, cols, n, s * 1e6, bytes / s / 1e9, 100 * bytes / s / read_rate);
    fflush(stdout);
}

static void products(bool one)
{
    static const uint32_t tokens[] = {1, 2, 8, 16, 32};

    for (size_t i = 0; i < (one ? 1 : EK_ARRAY_LEN(tokens)); i++) {
        uint32_t n = tokens[i];

        one_product("3B qkv", EK_BF16, 2560, 2048, n, 0);
        one_product("3B o", EK_BF16, 2048, 2048, n, EK_LINEAR_ADD);
        one_product("3B gate+up", EK_BF16, 22016, 2048, n, 0);
        one_product("3B down", EK_BF16, 2048, 11008, n, EK_LINEAR_ADD);
        one_product("3B head", EK_BF16, 151936, 2048, n, EK_LINEAR_OUT_F32);
        one_product("7B gate+up", EK_BF16, 37888, 3584, n, 0);
        one_product("7B down", EK_BF16, 3584, 18944, n, EK_LINEAR_ADD);
    }
    printf("\n");
}

/* ---- a model's layers --------------------------------------------------------------------------
 */
struct shape {
    const char *name;
    uint32_t hidden, layers, heads, kv_heads, dim, ffn, vocab;
    double bar; /* share of the read rate at batch 1, context 512 */
};
static const struct shape models[] = {
    {"Qwen2.5-VL-3B", 2048, 36, 16, 2, 128, 11008, 151936, 0.75},
    {"Qwen2.5-VL-7B", 3584, 28, 28, 4, 128, 18944, 152064, 0.80},
};
static const struct shape largest = {"DeepSeek-67B", 8192, 95, 64, 8, 128, 22016, 102400, 0.88};

struct layer {
    struct ek_mat qkv[3], o, gate_up[2], down;
    struct ek_kv kv;
    float *norms[2], *bias; /* as cold as the matrices */
};
struct model {
    const struct shape *s;
    enum ek_dtype type; /* of the weights */
    struct layer *layers;
    struct ek_mat head;
    struct ek_batch batch;
    struct ek_rope rope;
    float *norm;
    void *x, *rows, *qkv, *attn, *act, *last;
    struct ek_norm_ahead ahead; /* of the layer at hand */
    float *logits;
    int32_t *ids;
    bool separate; /* rope_append by itself */
};

static uint32_t qkv_rows(const struct shape *s)
{
    return (s->heads + 2 * s->kv_heads) * s->dim;
}

/* ---- formats of weights
 */
/* The products of a layer, and their sum, by the format of the weights and the tokens. */
static void one_format(const struct shape *s, enum ek_dtype t)
{
    static const uint32_t tokens[] = {1, 4, 8};
    const uint32_t hd = s->heads * s->dim;
    const struct {
        uint32_t rows, cols;
        int flags;
    } parts[] = {{qkv_rows(s), s->hidden, 0},
                 {s->hidden, hd, EK_LINEAR_ADD},
                 {2 * s->ffn, s->hidden, 0},
                 {s->hidden, s->ffn, EK_LINEAR_ADD}};
    double times[4][EK_ARRAY_LEN(tokens)], bytes[4], all = 0;

    for (size_t i = 0; i < 4; i++) {
        time_product(t, parts[i].rows, parts[i].cols, parts[i].flags, tokens, EK_ARRAY_LEN(tokens),
                     times[i]);
        bytes[i] = weight_bytes(t, (double)parts[i].rows * parts[i].cols);
        all += bytes[i];
    }
    for (size_t k = 0; k < EK_ARRAY_LEN(tokens); k++) {
        double sum = 0;

        printf("%-14s %-7s n %u ", s->name, ek_dtype_name(t), tokens[k]);
        for (size_t i = 0; i < 4; i++) {
            sum += times[i][k];
            printf(" %6.2f us %5.1f %%", times[i][k] * 1e6,
                   100 * bytes[i] / times[i][k] / read_rate);
        }
        printf("  layer %6.1f us %5.1f %% of read\n", sum * 1e6, 100 * all / sum / read_rate);
    }
    fflush(stdout);
}

/* Of models whose name contains `name`. */
static void formats(const char *name)
{
    static const enum ek_dtype types[] = {EK_BF16,  EK_F16,    EK_Q4_0,   EK_Q4_1,  EK_Q5_0,
                                          EK_Q5_1,  EK_Q8_0,   EK_Q4_K,   EK_Q5_K,  EK_Q6_K,
                                          EK_G4_32, EK_G4_128, EK_G8_128, EK_B8_128};
    const struct shape *shapes[] = {&models[0], &models[1], &largest};

    printf("products of a layer: qkv, o, gate and up, down\n");
    for (size_t i = 0; i < EK_ARRAY_LEN(shapes); i++)
        for (size_t k = 0; strstr(shapes[i]->name, name) && k < EK_ARRAY_LEN(types); k++)
            one_format(shapes[i], types[k]);
    printf("\n");
}

/* ---- steps of a model
 */
static void run_tail(struct model *m, struct layer *l, const float *next)
{
    const struct shape *s = m->s;
    uint32_t n = m->batch.n_tokens, hd = s->heads * s->dim;
    bool taken;

    m->ahead = (struct ek_norm_ahead){.weight = next, .rows = m->rows};
    need(ops->layer_tail(dev, m->attn, hd, n, &l->o, l->norms[1], 1e-6f, l->gate_up, &l->down, m->x,
                         next ? &m->ahead : NULL, &taken));
    if (taken)
        return;
    m->ahead.rows = NULL;
    need(ops->linear(dev, m->attn, hd, n, &l->o, NULL, m->x, s->hidden, EK_LINEAR_ADD));
    need(ops->norm_gate_up(dev, m->x, l->norms[1], 1e-6f, n, l->gate_up, m->act, s->ffn));
    need(ops->linear(dev, m->act, s->ffn, n, &l->down, NULL, m->x, s->hidden, EK_LINEAR_ADD));
}

/* next: the norm of the layer behind it, or NULL. */
static void run_layer(struct model *m, struct layer *l, const float *next)
{
    const struct shape *s = m->s;
    uint32_t n = m->batch.n_tokens, hd = s->heads * s->dim;
    const float *biases[3] = {l->bias, l->bias + hd, l->bias + hd};

    if (!m->separate) {
        need(ops->norm_qkv_rope(dev, m->x, l->norms[0], 1e-6f, &m->batch, l->qkv, biases, &m->rope,
                                &l->kv, m->ahead.rows ? &m->ahead : NULL, m->qkv, qkv_rows(s)));
    } else {
        need(ops->norm_linear(dev, m->x, l->norms[0], 1e-6f, n, l->qkv, 3, biases, m->qkv,
                              qkv_rows(s)));
        need(ops->rope_append(dev, m->qkv, qkv_rows(s), &m->rope, &m->batch, s->heads, &l->kv));
    }
    need(ops->attention(dev, m->qkv, qkv_rows(s), &m->batch, &l->kv, s->heads, 0.0884f, m->attn,
                        hd));
    run_tail(m, l, next);
}

static void run_model(void *arg)
{
    struct model *m = arg;
    uint32_t n = m->batch.n_seqs;

    m->ahead.rows = NULL;
    for (uint32_t i = 0; i < m->s->layers; i++)
        run_layer(m, &m->layers[i], i + 1 < m->s->layers ? m->layers[i + 1].norms[0] : NULL);
    if (m->head.data == NULL)
        return;
    need(ops->rms_norm(dev, m->x, m->s->hidden, m->norm, 1e-6f, n, m->s->hidden, m->last,
                       m->s->hidden));
    need(ops->linear(dev, m->last, m->s->hidden, n, &m->head, NULL, m->logits, m->s->vocab,
                     EK_LINEAR_OUT_F32));
    need(ops->argmax(dev, m->logits, n, m->s->vocab, m->ids));
}

/* n_seqs sequences of n_new tokens after `past` each. */
static void make_batch(struct model *m, uint32_t n_seqs, uint32_t past, uint32_t n_new)
{
    uint32_t len = past + n_new, blocks = (len + 31) / 32, n = n_seqs * n_new;
    int32_t *v = calloc((size_t)n_seqs * blocks + n + n_seqs + 1, sizeof(*v));
    struct ek_batch b = {
        .n_tokens = n, .n_seqs = n_seqs, .max_q = n_new, .max_kv = len, .max_blocks = blocks};

    if (v == NULL)
        exit(1);
    for (uint32_t i = 0; i < n; i++)
        v[i] = (int32_t)(past + i % n_new);
    b.positions = take_ints(v, n);
    for (uint32_t i = 0; i < n; i++)
        v[i] = (int32_t)(i / n_new * blocks * 32 + past + i % n_new);
    b.slots = take_ints(v, n);
    for (uint32_t i = 0; i <= n_seqs; i++)
        v[i] = (int32_t)(i * n_new);
    b.seq_start = take_ints(v, n_seqs + 1);
    for (uint32_t i = 0; i < n_seqs; i++)
        v[i] = (int32_t)len;
    b.kv_len = take_ints(v, n_seqs);
    for (uint32_t i = 0; i < n_seqs * blocks; i++)
        v[i] = (int32_t)i;
    b.block_table = take_ints(v, (size_t)n_seqs * blocks);
    need(ops->sync(dev));
    free(v);
    m->batch = b;
}

static void make_buffers(struct model *m, uint32_t n, uint32_t n_seqs, uint32_t len)
{
    const struct shape *s = m->s;
    size_t cache = (size_t)n_seqs * ((len + 31) / 32) * 32 * s->kv_heads * s->dim * 2;

    m->x = take((size_t)n * s->hidden * 2);
    m->rows = take((size_t)n * s->hidden * 2);
    m->qkv = take((size_t)n * qkv_rows(s) * 2);
    m->attn = take((size_t)n * s->heads * s->dim * 2);
    m->act = take((size_t)n * s->ffn * 2);
    for (uint32_t i = 0; i < s->layers; i++)
        m->layers[i].kv = (struct ek_kv){.k = take(cache),
                                         .v = take(cache),
                                         .dtype = EK_BF16,
                                         .kv_heads = s->kv_heads,
                                         .head_dim = s->dim,
                                         .v_dim = s->dim,
                                         .page = 32};
}

static void free_buffers(struct model *m)
{
    void *all[] = {m->x, m->rows, m->qkv, m->attn, m->act};

    for (size_t i = 0; i < EK_ARRAY_LEN(all); i++)
        ops->release(dev, all[i]);
    for (uint32_t i = 0; i < m->s->layers; i++) {
        ops->release(dev, m->layers[i].kv.k);
        ops->release(dev, m->layers[i].kv.v);
    }
}

static double linear_params(const struct shape *s)
{
    double attn = (double)s->hidden * (qkv_rows(s) + s->heads * s->dim);

    return s->layers * (attn + 3.0 * s->hidden * s->ffn);
}

static void make_model(struct model *m, const struct shape *s, enum ek_dtype type)
{
    uint32_t hd = s->heads * s->dim, kd = s->kv_heads * s->dim;
    float f[128];

    *m = (struct model){.s = s, .type = type, .layers = calloc(s->layers, sizeof(struct layer))};
    if (ops->reserve) /* as a stage does: matrices lie behind each other */
        need(ops->reserve(dev, EK_TAG_WEIGHTS, (uint64_t)weight_bytes(type, linear_params(s))));
    for (uint32_t i = 0; i < s->layers; i++) {
        struct layer *l = &m->layers[i];

        l->qkv[0] = matrix(type, hd, s->hidden);
        l->qkv[1] = matrix(type, kd, s->hidden);
        l->qkv[2] = matrix(type, kd, s->hidden);
        l->o = matrix(type, s->hidden, hd);
        l->gate_up[0] = matrix(type, s->ffn, s->hidden);
        l->gate_up[1] = matrix(type, s->ffn, s->hidden);
        l->down = matrix(type, s->hidden, s->ffn);
        l->norms[0] = take_ones(s->hidden);
        l->norms[1] = take_ones(s->hidden);
        l->bias = take_ones(qkv_rows(s));
    }
    for (uint32_t i = 0; i < s->dim / 2; i++)
        f[i] = powf(1e6f, -2.0f * (float)i / (float)s->dim);
    m->norm = take_ones(s->ffn);
    m->rope = (struct ek_rope){
        .inv_freq = take_ints((int32_t *)f, s->dim / 2), .dim = s->dim, .amplitude = 1};
    need(ops->sync(dev));
}

static void decode_step(struct model *m, uint32_t n_seqs, uint32_t context, bool separate)
{
    const struct shape *s = m->s;
    double params = linear_params(s) + (double)s->hidden * s->vocab;
    double bytes = weight_bytes(m->type, params) +
                   (double)n_seqs * context * s->layers * 2 * s->kv_heads * s->dim * 2;
    double t;

    m->separate = separate;
    make_batch(m, n_seqs, context - 1, 1);
    make_buffers(m, n_seqs, n_seqs, context);
    m->head = matrix(m->type, s->vocab, s->hidden);
    m->last = take((size_t)n_seqs * s->hidden * 2);
    m->logits = take((size_t)n_seqs * s->vocab * 4);
    m->ids = take(n_seqs * 4);
    t = seconds(run_model, m, true, 31);
    printf("decode  %-14s %-5s batch %2u context %5u%s: %.3f ms, %.1f tok/s, %.1f %% of read",
           s->name, ek_dtype_name(m->type), n_seqs, context, separate ? ", rope apart" : "",
           t * 1e3, n_seqs / t, 100 * bytes / t / read_rate);
    if (n_seqs == 1 && context == 512 && m->type == EK_BF16)
        printf(" (bar %.0f %%)", 100 * s->bar);
    printf("\n");
    fflush(stdout);
    free_buffers(m);
    ops->release(dev, m->head.data);
    ops->release(dev, m->last);
    ops->release(dev, m->logits);
    ops->release(dev, m->ids);
    m->head.data = NULL;
}

static void prefill(struct model *m, uint32_t n)
{
    double flops = 2 * linear_params(m->s) * n, t;

    make_batch(m, 1, 0, n);
    make_buffers(m, n, 1, n);
    t = seconds(run_model, m, false, 7);
    printf("prefill %-14s %5u tokens: %.2f ms, %.0f tok/s, linear %.0f TFLOP/s, %.1f %% of product "
           "(bar 65 %%)\n",
           m->s->name, n, t * 1e3, n / t, flops / t / 1e12, 100 * flops / t / matrix_rate);
    fflush(stdout);
    free_buffers(m);
}

static void free_model(struct model *m)
{
    for (uint32_t l = 0; l < m->s->layers; l++) {
        struct ek_mat *all[] = {&m->layers[l].qkv[0],     &m->layers[l].qkv[1],
                                &m->layers[l].qkv[2],     &m->layers[l].o,
                                &m->layers[l].gate_up[0], &m->layers[l].gate_up[1],
                                &m->layers[l].down};
        for (size_t j = 0; j < EK_ARRAY_LEN(all); j++)
            ops->release(dev, all[j]->data);
    }
    free(m->layers);
}

static void more_steps(struct model *m)
{
    decode_step(m, 1, 4096, false);
    decode_step(m, 1, 32768, false);
    for (uint32_t n = 2; n < 64; n *= 2)
        decode_step(m, n, 512, false);
    prefill(m, 512);
    prefill(m, 4096);
}

static void steps(bool one)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(models); i++) {
        struct model m;

        make_model(&m, &models[i], EK_BF16);
        decode_step(&m, 1, 512, true);
        decode_step(&m, 1, 512, false);
        if (!one)
            more_steps(&m);
        free_model(&m);
    }
}

/* The largest model at batch 1, or no more than its first layers. */
static void largest_step(uint32_t most)
{
    struct shape s = largest;
    struct model m;

    s.layers = most && most < s.layers ? most : s.layers;
    printf("%u of %u layers and the head\n", s.layers, largest.layers);
    make_model(&m, &s, EK_BF16);
    decode_step(&m, 1, 512, false);
    free_model(&m);
}

/* Steps of argv[3], ... sequences of the models whose names contain argv[2]. */
static void batches(int argc, char **argv)
{
    struct shape s = largest;
    const struct shape *shapes[] = {&models[0], &models[1], &s};

    s.layers = 8;
    for (size_t i = 0; i < EK_ARRAY_LEN(shapes); i++) {
        struct model m;

        if (argc < 4 || !strstr(shapes[i]->name, argv[2]))
            continue;
        make_model(&m, shapes[i], EK_BF16);
        for (int k = 3; k < argc; k++)
            decode_step(&m, (uint32_t)strtoul(argv[k], NULL, 10), 512, false);
        free_model(&m);
    }
}

/* All matrices in blocks, the head too. */
static void block_steps(void)
{
    static const enum ek_dtype quants[] = {EK_Q4_0, EK_Q8_0,   EK_Q4_K,  EK_Q5_K,
                                           EK_Q6_K, EK_G4_128, EK_B8_128};

    for (size_t i = 0; i < EK_ARRAY_LEN(quants); i++) {
        struct model m;

        make_model(&m, &models[1], quants[i]);
        decode_step(&m, 1, 512, false);
        decode_step(&m, 4, 512, false);
        decode_step(&m, 8, 512, false);
        prefill(&m, 4096);
        free_model(&m);
    }
    printf("\n");
}

/* ---- attention ---------------------------------------------------------------------------------
 */
struct attend {
    struct model m;
    uint32_t times;
};
static void run_attend(void *arg)
{
    struct attend *a = arg;
    const struct shape *s = a->m.s;

    for (uint32_t i = 0; i < a->times; i++)
        need(ops->attention(dev, a->m.qkv, qkv_rows(s), &a->m.batch, &a->m.layers[i % s->layers].kv,
                            s->heads, 0.0884f, a->m.attn, s->heads * s->dim));
}

/* Contexts of n sequences from len / n to len, in steps of len / n: about half of them all. */
static void spread_lengths(struct ek_batch *b, uint32_t len)
{
    int32_t lens[64];

    for (uint32_t i = 0; i < b->n_seqs; i++)
        lens[i] = (int32_t)(len * (i + 1) / b->n_seqs);
    need(ops->upload(dev, (void *)(uintptr_t)b->kv_len, lens, b->n_seqs * sizeof(*lens)));
}

enum kind { EQUAL, SPREAD, SCALED }; /* contexts of equal length or spread; a cache of E4M3 */

/* Caches that follow one another in a graph: past twice the L2, and no more memory than there is.
 */
static uint32_t count_caches(double bytes)
{
    double n = fmin(fmax(8, 160e6 / bytes), 40e9 / bytes);

    return (uint32_t)n + 1;
}

/* Scales lie behind the bytes, in what was taken for a cache of activations. */
static void make_scaled(struct ek_kv *kv, size_t rows)
{
    kv->dtype = EK_F8_E4M3;
    kv->k_scale = (float *)(void *)((char *)kv->k + rows * kv->head_dim);
    kv->v_scale = (float *)(void *)((char *)kv->v + rows * kv->v_dim);
}

static void one_attention(const struct shape *shape, uint32_t n_seqs, uint32_t past, uint32_t n_new,
                          enum kind kind)
{
    static const char *const names[] = {"", ", spread", ", E4M3"};
    struct shape s = *shape;
    struct attend a = {0};
    double pairs = (double)n_seqs * ((double)n_new * past + 0.5 * n_new * (n_new + 1)), t;
    size_t rows = (size_t)n_seqs * (past + n_new) * s.kv_heads;
    double bytes = (double)rows * 2 * (kind == SCALED ? s.dim + 4 : 2 * s.dim);

    bytes *= kind == SPREAD ? 0.5 + 0.5 / n_seqs : 1;
    s.layers = a.times = n_new > 1 ? 4 : count_caches(bytes);
    a.m.s = &s;
    a.m.layers = calloc(a.times, sizeof(struct layer));
    make_batch(&a.m, n_seqs, past, n_new);
    make_buffers(&a.m, n_seqs * n_new, n_seqs, past + n_new);
    if (kind == SPREAD)
        spread_lengths(&a.m.batch, past + n_new);
    for (uint32_t i = 0; i < a.times && kind == SCALED; i++)
        make_scaled(&a.m.layers[i].kv,
                    (size_t)n_seqs * ((past + n_new + 31) / 32) * 32 * s.kv_heads);
    t = seconds(run_attend, &a, true, 11) / a.times;
    printf("attention %2u/%u x %u, %2u x (%u after %u)%s: %.2f us, %.0f GB/s, %.1f %% of read, "
           "%.0f TFLOP/s\n",
           s.heads, s.kv_heads, s.dim, n_seqs, n_new, past, names[kind], t * 1e6, bytes / t / 1e9,
           100 * bytes / t / read_rate, 4 * pairs * s.dim * s.heads / t / 1e12);
    fflush(stdout);
    free_buffers(&a.m);
    free(a.m.layers);
}

static void attentions(void)
{
    static const struct shape shapes[] = {
        {"3B", 2048, 36, 16, 2, 128, 11008, 0, 0},
        {"7B", 3584, 28, 28, 4, 128, 18944, 0, 0},
        {"DeepSeek LLM 7B", 4096, 30, 32, 32, 128, 11008, 0, 0},
        {"DeepSeek LLM 67B", 8192, 95, 64, 8, 128, 22016, 0, 0},
    };
    static const uint32_t batches[] = {1, 8, 32}, contexts[] = {512, 4096, 32768};

    for (size_t i = 0; i < EK_ARRAY_LEN(shapes); i++) {
        for (size_t k = 0; k < EK_ARRAY_LEN(batches) * EK_ARRAY_LEN(contexts); k++) {
            uint32_t n = batches[k / EK_ARRAY_LEN(contexts)];
            uint32_t past = contexts[k % EK_ARRAY_LEN(contexts)] - 1;

            one_attention(&shapes[i], n, past, 1, EQUAL);
            one_attention(&shapes[i], n, past, 1, SCALED);
        }
        one_attention(&shapes[i], 32, 4095, 1, SPREAD);
        one_attention(&shapes[i], 1, 0, 512, EQUAL);
        one_attention(&shapes[i], 1, 0, 4096, EQUAL);
        one_attention(&shapes[i], 1, 0, 4096, SCALED);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "all";
    bool one = strcmp(what, "one") == 0;

    if (!bench_open())
        return 77;
    if (strcmp(what, "all") == 0 || strcmp(what, "attention") == 0)
        attentions();
    if (strcmp(what, "all") == 0 || strcmp(what, "products") == 0 || one)
        products(one);
    if (strcmp(what, "all") == 0 || strcmp(what, "formats") == 0)
        formats(argc > 2 ? argv[2] : "");
    if (strcmp(what, "all") == 0 || strcmp(what, "steps") == 0 || one)
        steps(one);
    if (strcmp(what, "all") == 0 || strcmp(what, "block-steps") == 0)
        block_steps();
    if (strcmp(what, "batches") == 0)
        batches(argc, argv);
    if (strcmp(what, "largest") == 0)
        largest_step(argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0);
    ek_device_close(dev);
    return 0;
}
