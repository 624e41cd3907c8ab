/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations other than products against plain loops in double precision, for every instruction
 * set of this machine.
 */
#include "tests/kernels/support.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double TOLERANCE = 2e-6;
static const uint32_t dims[] = {1, 5, 16, 63, 576, 1001};

/* ---- Rows ------------------------------------------------------------------------------------ */

static void norms_of(struct ek_device *dev, uint32_t dim, uint64_t *seed)
{
    enum { N = 5 };
    size_t ld = dim + 7;
    float *x = random_floats(seed, N * ld), *w = random_floats(seed, dim);
    float *b = random_floats(seed, dim), *y = random_floats(seed, N * ld);
    double *rms = ek_calloc((size_t)N * dim, sizeof(double)), *ln = ek_calloc((size_t)N * dim, 8);

    for (uint32_t t = 0; t < N; t++) {
        double square = 0, sum = 0, var = 0;
        for (uint32_t i = 0; i < dim; i++) {
            square += (double)x[t * ld + i] * x[t * ld + i];
            sum += x[t * dim + i];
        }
        for (uint32_t i = 0; i < dim; i++)
            var += pow(x[t * dim + i] - sum / dim, 2);
        for (uint32_t i = 0; i < dim; i++) {
            rms[t * dim + i] = x[t * ld + i] / sqrt(square / dim + 1e-5) * w[i];
            ln[t * dim + i] = (x[t * dim + i] - sum / dim) / sqrt(var / dim + 1e-5) * w[i] + b[i];
        }
    }
    ck_assert_int_eq(dev->ops->rms_norm(dev, x, ld, w, 1e-5f, N, dim, y, ld), EK_OK);
    for (uint32_t t = 0; t < N; t++)
        ck_assert_double_lt(relative_error(y + t * ld, rms + t * dim, dim), TOLERANCE);
    ck_assert_int_eq(dev->ops->layer_norm(dev, x, w, b, 1e-5f, N, dim, y), EK_OK);
    ck_assert_double_lt(relative_error(y, ln, (size_t)N * dim), TOLERANCE);
    free(x), free(w), free(b), free(y), free(rms), free(ln);
}

static void swiglu_of(struct ek_device *dev, uint32_t dim, uint64_t *seed)
{
    enum { N = 4 };
    float *x = random_floats(seed, (size_t)N * 2 * dim), *y = random_floats(seed, (size_t)N * dim);
    double *want = ek_calloc((size_t)N * dim, sizeof(double));

    for (uint32_t i = 0; i < N * 2 * dim; i++)
        x[i] *= i % 3 ? 1.0f : 40.0f; /* far into both tails of the exponential */
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t i = 0; i < dim; i++) {
            double g = x[t * 2 * dim + i];
            want[t * dim + i] = g / (1 + exp(-g)) * x[t * 2 * dim + dim + i];
        }
    ck_assert_int_eq(dev->ops->swiglu(dev, x, 2 * dim, N, dim, y, dim), EK_OK);
    for (uint32_t i = 0; i < N * dim; i++)
        ck_assert_double_le(fabs(y[i] - want[i]), 1e-6 * fabs(want[i]) + 1e-30);
    free(x), free(y), free(want);
}

START_TEST(norms_and_swiglu_are_right)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);
    uint64_t seed = 3;

    for (size_t k = 0; dev && k < EK_ARRAY_LEN(dims); k++) {
        norms_of(dev, dims[k], &seed);
        swiglu_of(dev, dims[k], &seed);
    }
    ek_device_close(dev);
}
END_TEST

START_TEST(argmax_takes_the_lowest_of_equals)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 1);
    uint64_t seed = 4;
    enum { V = 1003 };
    float *x = random_floats(&seed, 3 * V);
    int32_t ids[3];

    if (dev) {
        x[17] = x[900] = x[1001] = 50;
        x[V + V - 1] = 60;
        for (int i = 0; i < V; i++)
            x[2 * V + i] = -INFINITY;
        x[2 * V + 3] = -1e30f;
        ck_assert_int_eq(dev->ops->argmax(dev, x, 3, V, ids), EK_OK);
        ck_assert_int_eq(ids[0], 17);
        ck_assert_int_eq(ids[1], V - 1);
        ck_assert_int_eq(ids[2], 3);
    }
    free(x);
    ek_device_close(dev);
}
END_TEST

START_TEST(permute_takes_columns_in_any_order)
{
    struct ek_device *dev = open_cpu("c", 2);
    const int32_t order[] = {3, 0, 4, 4, 1};
    const float x[] = {10, 11, 12, 13, 14, -1, 20, 21, 22, 23, 24, -1};
    const float want[] = {13, 10, 14, 14, 11, 23, 20, 24, 24, 21};
    float y[10];

    ck_assert_int_eq(dev->ops->permute(dev, x, 6, order, 2, 5, y), EK_OK);
    ck_assert_mem_eq(y, want, sizeof(want));
    ek_device_close(dev);
}
END_TEST

START_TEST(gather_takes_rows_in_any_order)
{
    struct ek_device *dev = open_cpu("c", 2);
    const int32_t rows[] = {4, 0, 4, 2};
    uint64_t seed = 4;
    float *x = random_floats(&seed, 5 * 40), y[4 * 33];

    ck_assert_int_eq(dev->ops->gather(dev, x, 40, rows, 4, 33, y), EK_OK);
    for (int i = 0; i < 4; i++)
        ck_assert_mem_eq(y + i * 33, x + rows[i] * 40, 33 * sizeof(float));
    free(x);
    ek_device_close(dev);
}
END_TEST

START_TEST(conversions_round_to_even_and_keep_nan)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);
    enum { N = 9001 };
    uint64_t seed = 6;
    float *x = random_floats(&seed, N), *back = random_floats(&seed, N);
    uint16_t *h = ek_calloc(N, 2);

    if (dev) {
        x[0] = NAN, x[1] = INFINITY, x[2] = -70000.0f, x[3] = 1e-9f, x[4] = 1.00390625f;
        x[N - 1] = NAN;
        ck_assert_int_eq(dev->ops->convert(dev, x, EK_F32, h, EK_BF16, N), EK_OK);
        for (int i = 0; i < N; i++)
            ck_assert(isnan(x[i]) ? isnan(ek_bf16_to_f32(h[i])) : h[i] == ek_f32_to_bf16(x[i]));
        ck_assert_int_eq(dev->ops->convert(dev, x, EK_F32, h, EK_F16, N), EK_OK);
        for (int i = 0; i < N; i++)
            ck_assert(isnan(x[i]) ? isnan(ek_f16_to_f32(h[i])) : h[i] == ek_f32_to_f16(x[i]));
        ck_assert_int_eq(dev->ops->convert(dev, h, EK_F16, back, EK_F32, N), EK_OK);
        for (int i = 1; i < N - 1; i++)
            ck_assert(back[i] == ek_f16_to_f32(h[i]));
        ck_assert_int_eq(dev->ops->convert(dev, x, EK_F32, h, EK_I16, N), EK_EUNSUPPORTED);
    }
    free(x), free(back), free(h);
    ek_device_close(dev);
}
END_TEST

/* ---- A paged cache --------------------------------------------------------------------------- */

enum { MAX_SEQS = 6 };

struct paged {
    uint32_t n_seqs, page, heads, kv_heads, head_dim, v_dim;
    uint32_t past[MAX_SEQS], fresh[MAX_SEQS];
    enum ek_dtype dtype;
    bool latent; /* values are the first v_dim elements of the keys */
};

struct cache { /* a batch and its cache, with what the cache holds in F32 */
    struct ek_batch batch;
    struct ek_kv kv;
    int32_t *seq_start, *kv_len, *table, *slots, *positions;
    float *k, *v; /* [slot][kv_heads][dim] as they will be read */
    float *k_scale, *v_scale;
    uint32_t n_slots;
};

/* What a row of dim elements is multiplied by when it is read (struct ek_kv has the rule). */
static float scale_of(enum ek_dtype t, const float *row, uint32_t dim)
{
    float largest = 0;

    for (uint32_t d = 0; d < dim; d++)
        largest = fmaxf(largest, fabsf(row[d]));
    return t == EK_F8_E4M3 && largest > 0x1p-100f ? largest / 448 : 1;
}

static float through(enum ek_dtype t, float x, float scale)
{
    return t == EK_F16       ? ek_f16_to_f32(ek_f32_to_f16(x))
           : t == EK_BF16    ? ek_bf16_to_f32(ek_f32_to_bf16(x))
           : t == EK_F8_E4M3 ? ek_e4m3_to_f32(ek_f32_to_e4m3(x / scale)) * scale
                             : x;
}

static void put_element(enum ek_dtype t, void *base, size_t i, float x, float scale)
{
    if (t == EK_F32)
        ((float *)base)[i] = x;
    else if (t == EK_F8_E4M3)
        ((uint8_t *)base)[i] = ek_f32_to_e4m3(x / scale);
    else
        ((uint16_t *)base)[i] = t == EK_F16 ? ek_f32_to_f16(x) : ek_f32_to_bf16(x);
}

/* Rows of dim elements as a cache of type t, their scales, and in x what will be read. */
static void *cache_of(enum ek_dtype t, float *x, size_t rows, uint32_t dim, float **scales)
{
    void *base = ek_calloc(rows * dim, sizeof(float));

    *scales = ek_calloc(rows, sizeof(float));
    for (size_t r = 0; r < rows; r++) {
        (*scales)[r] = scale_of(t, x + r * dim, dim);
        for (size_t i = r * dim; i < (r + 1) * dim; i++) {
            put_element(t, base, i, x[i], (*scales)[r]);
            x[i] = through(t, x[i], (*scales)[r]);
        }
    }
    return base;
}

static uint32_t slot_of(const struct cache *c, uint32_t seq, uint32_t j)
{
    uint32_t page = c->kv.page;

    return (uint32_t)c->table[seq * c->batch.max_blocks + j / page] * page + j % page;
}

/* Blocks of the sequences interleaved and in falling order; slots of no sequence hold NaN. */
static void cache_layout(struct cache *c, const struct paged *p)
{
    uint32_t most = 0, used = 0, tokens = 0, fresh = 0, longest = 0;

    for (uint32_t s = 0; s < p->n_seqs; s++) {
        uint32_t blocks = (p->past[s] + p->fresh[s] + p->page - 1) / p->page;
        most = blocks > most ? blocks : most;
        c->seq_start[s] = (int32_t)tokens;
        c->kv_len[s] = (int32_t)(p->past[s] + p->fresh[s]);
        tokens += p->fresh[s];
        fresh = p->fresh[s] > fresh ? p->fresh[s] : fresh;
        longest = p->past[s] + p->fresh[s] > longest ? p->past[s] + p->fresh[s] : longest;
    }
    c->seq_start[p->n_seqs] = (int32_t)tokens;
    c->n_slots = most * p->n_seqs * p->page;
    c->table = ek_calloc(most * p->n_seqs + 1, 4);
    c->slots = ek_calloc(tokens + 1, 4);
    c->positions = ek_calloc(3 * tokens + 1, 4);
    for (uint32_t b = most; b-- > 0;)
        for (uint32_t s = 0; s < p->n_seqs; s++)
            c->table[s * most + b] = (int32_t)used++;
    c->batch = (struct ek_batch){.n_tokens = tokens,
                                 .n_seqs = p->n_seqs,
                                 .max_q = fresh,
                                 .max_kv = longest,
                                 .max_blocks = most,
                                 .positions = c->positions,
                                 .slots = c->slots,
                                 .seq_start = c->seq_start,
                                 .kv_len = c->kv_len,
                                 .block_table = c->table};
    for (uint32_t s = 0; s < p->n_seqs; s++)
        for (uint32_t i = 0; i < p->fresh[s]; i++) {
            c->slots[(uint32_t)c->seq_start[s] + i] = (int32_t)slot_of(c, s, p->past[s] + i);
            c->positions[(uint32_t)c->seq_start[s] + i] = (int32_t)(p->past[s] + i);
        }
}

static struct cache cache_new(const struct paged *p, uint64_t *seed)
{
    struct cache c = {.kv = {.dtype = p->dtype,
                             .kv_heads = p->kv_heads,
                             .head_dim = p->head_dim,
                             .v_dim = p->v_dim,
                             .page = p->page}};
    size_t k_row = (size_t)p->kv_heads * p->head_dim, v_row = (size_t)p->kv_heads * p->v_dim;

    c.seq_start = ek_calloc(MAX_SEQS + 1, 4);
    c.kv_len = ek_calloc(MAX_SEQS, 4);
    cache_layout(&c, p);
    c.k = random_floats(seed, c.n_slots * k_row);
    c.v = random_floats(seed, c.n_slots * v_row);
    bool *taken = ek_calloc(c.n_slots + 1, 1);
    for (uint32_t s = 0; s < p->n_seqs; s++)
        for (uint32_t j = 0; j < (uint32_t)c.kv_len[s]; j++)
            taken[slot_of(&c, s, j)] = true;
    for (uint32_t i = 0; i < c.n_slots; i++)
        for (size_t d = 0; !taken[i] && d < k_row; d++)
            c.k[i * k_row + d] = NAN;
    for (uint32_t i = 0; i < c.n_slots; i++)
        for (size_t d = 0; !taken[i] && d < v_row; d++)
            c.v[i * v_row + d] = NAN;
    free(taken);
    c.kv.k = cache_of(p->dtype, c.k, c.n_slots * p->kv_heads, p->head_dim, &c.k_scale);
    if (!p->latent)
        c.kv.v = cache_of(p->dtype, c.v, c.n_slots * p->kv_heads, p->v_dim, &c.v_scale);
    c.kv.k_scale = c.k_scale;
    c.kv.v_scale = c.v_scale;
    return c;
}

static void cache_free(struct cache *c)
{
    free(c->seq_start), free(c->kv_len), free(c->table), free(c->slots), free(c->positions);
    free(c->k), free(c->v), free(c->kv.k), free(c->kv.v), free(c->k_scale), free(c->v_scale);
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* One head of one query over keys 0 .. n - 1 of its sequence. */
static void attend_plainly(const struct cache *c, uint32_t seq, uint32_t kv_head, uint32_t n,
                           const float *q, double scale, double *out)
{
    uint32_t hd = c->kv.head_dim, vd = c->kv.v_dim, kvh = c->kv.kv_heads;
    double *s = ek_calloc(n, sizeof(double)), most = -INFINITY, sum = 0;

    for (uint32_t j = 0; j < n; j++) {
        const float *k = c->k + ((size_t)slot_of(c, seq, j) * kvh + kv_head) * hd;
        for (uint32_t d = 0; d < hd; d++)
            s[j] += (double)q[d] * k[d] * scale;
        most = fmax(most, s[j]);
    }
    for (uint32_t d = 0; d < vd; d++)
        out[d] = 0;
    for (uint32_t j = 0; j < n; j++) {
        size_t at = (size_t)slot_of(c, seq, j) * kvh + kv_head;
        const float *v = c->kv.v ? c->v + at * vd : c->k + at * hd;
        double p = exp(s[j] - most);
        sum += p;
        for (uint32_t d = 0; d < vd; d++)
            out[d] += p * v[d];
    }
    for (uint32_t d = 0; d < vd; d++)
        out[d] /= sum;
    free(s);
}

static const struct paged cases[] = {
    /* one token each over contexts under, at and over the cuts of blocks and parts */
    {6, 16, 9, 3, 64, 64, {0, 62, 63, 255, 256, 700}, {1, 1, 1, 1, 1, 1}, EK_F32, false},
    {3, 16, 9, 3, 64, 64, {300, 5, 1}, {1, 1, 1}, EK_F16, false},
    {2, 7, 4, 4, 20, 20, {130, 40}, {1, 1}, EK_BF16, false},
    /* whole prompts */
    {1, 16, 9, 3, 64, 64, {0}, {150}, EK_F32, false},
    {1, 16, 8, 1, 128, 128, {0}, {33}, EK_BF16, false},
    {2, 1, 2, 2, 16, 24, {0, 0}, {65, 2}, EK_F16, false},
    {1, 32, 14, 2, 80, 80, {0}, {70}, EK_F32, false},
    /* a mixture: prompts on a past, single tokens, an empty sequence */
    {5, 16, 6, 2, 64, 32, {10, 200, 0, 64, 0}, {20, 1, 3, 64, 0}, EK_F32, false},
    {4, 5, 6, 3, 24, 24, {3, 0, 500, 61}, {2, 100, 1, 7}, EK_F16, false},
    {1, 16, 128, 1, 16, 16, {9}, {4}, EK_F32, false},
    /* latent */
    {3, 16, 10, 1, 72, 48, {0, 300, 7}, {1, 1, 1}, EK_F32, true},
    {2, 16, 16, 1, 96, 64, {0, 70}, {80, 9}, EK_BF16, true},
    {2, 8, 3, 1, 40, 24, {20, 0}, {1, 30}, EK_F16, true},
    /* scaled rows */
    {3, 16, 9, 3, 64, 64, {300, 5, 1}, {1, 1, 1}, EK_F8_E4M3, false},
    {4, 5, 6, 3, 24, 40, {3, 0, 500, 61}, {2, 100, 1, 7}, EK_F8_E4M3, false},
    {2, 16, 16, 1, 96, 64, {0, 70}, {80, 9}, EK_F8_E4M3, true},
    {2, 8, 3, 1, 40, 24, {20, 0}, {1, 30}, EK_F8_E4M3, true},
};

static float *attention_of(struct ek_device *dev, const struct paged *p, const struct cache *c,
                           const float *q, size_t ldq, size_t ldo)
{
    float *out = ek_calloc(c->batch.n_tokens * ldo, sizeof(float));

    ck_assert_int_eq(
        dev->ops->attention(dev, q, ldq, &c->batch, &c->kv, p->heads, 0.125f, out, ldo), EK_OK);
    return out;
}

static void check_attention(const char *simd, const struct paged *p, size_t which)
{
    struct ek_device *dev = open_cpu(simd, 1), *two = open_cpu(simd, 2);
    uint64_t seed = 21 + which;
    size_t ldq = p->heads * p->head_dim + 9, ldo = p->heads * p->v_dim + 5;
    struct cache c = cache_new(p, &seed);
    float *q = random_floats(&seed, c.batch.n_tokens * ldq), *out, *again;
    double *want = ek_calloc(p->v_dim, sizeof(double));

    if (dev) {
        out = attention_of(dev, p, &c, q, ldq, ldo);
        again = attention_of(two, p, &c, q, ldq, ldo);
        ck_assert_mem_eq(out, again, c.batch.n_tokens * ldo * sizeof(float));
        for (uint32_t s = 0; s < p->n_seqs; s++)
            for (uint32_t i = 0; i < p->fresh[s] * p->heads; i++) {
                uint32_t t = (uint32_t)c.seq_start[s] + i / p->heads, h = i % p->heads;
                attend_plainly(&c, s, h / (p->heads / p->kv_heads), p->past[s] + i / p->heads + 1,
                               q + t * ldq + h * p->head_dim, 0.125, want);
                double error = relative_error(out + t * ldo + h * p->v_dim, want, p->v_dim);
                ck_assert_msg(error < 5e-6, "case %zu seq %u token %u head %u: error %g", which, s,
                              i / p->heads, h, error);
            }
        free(out), free(again);
    }
    free(q), free(want);
    cache_free(&c);
    ek_device_close(dev);
    ek_device_close(two);
}

START_TEST(attention_over_ragged_pages_is_right)
{
    for (size_t k = 0; k < EK_ARRAY_LEN(cases); k++)
        check_attention(simd_names[_i], &cases[k], k);
}
END_TEST

/* As tokens that pad a batch: alone, and beside one that has a context. */
START_TEST(a_token_of_no_context_gets_zeros)
{
    const struct paged *p = &cases[0];
    struct ek_device *dev = open_cpu(simd_names[_i], 1);
    size_t ldq = p->heads * p->head_dim, ldo = p->heads * p->v_dim;
    uint64_t seed = 5;
    struct cache c = cache_new(p, &seed);
    float *q = random_floats(&seed, c.batch.n_tokens * ldq);
    float *out = random_floats(&seed, c.batch.n_tokens * ldo);

    for (uint32_t with = 0; with < 2 && dev; with++) {
        for (uint32_t s = 0; s < p->n_seqs; s++)
            c.kv_len[s] = with && s == 3 ? 256 : 0;
        ck_assert_int_eq(
            dev->ops->attention(dev, q, ldq, &c.batch, &c.kv, p->heads, 0.125f, out, ldo), EK_OK);
        for (size_t i = 0; i < c.batch.n_tokens * ldo; i++)
            ck_assert((fabsf(out[i]) > 0) == (with && i / ldo == 3));
    }
    free(q), free(out);
    cache_free(&c);
    ek_device_close(dev);
}
END_TEST

START_TEST(attention_refuses_what_it_cannot_do)
{
    struct ek_device *dev = open_cpu("c", 1);
    uint64_t seed = 1;
    struct cache c = cache_new(&cases[3], &seed);
    float q[1], out[1];
    struct ek_rope rope = {.inv_freq = q, .dim = 2};
    struct ek_kv kv = c.kv;

    kv.dtype = EK_F8_E5M2;
    ck_assert_int_eq(dev->ops->attention(dev, q, 1, &c.batch, &kv, 9, 1, out, 1), EK_EUNSUPPORTED);
    kv = c.kv;
    kv.v = NULL; /* values inside of the keys: one head only */
    ck_assert_int_eq(dev->ops->attention(dev, q, 1, &c.batch, &kv, 9, 1, out, 1), EK_EUSAGE);
    kv.kv_heads = 1;
    kv.v_dim = kv.head_dim + 1;
    ck_assert_int_eq(dev->ops->attention(dev, q, 1, &c.batch, &kv, 9, 1, out, 1), EK_EUSAGE);
    ck_assert_int_eq(dev->ops->rope_append(dev, q, 1, &rope, &c.batch, 9, &kv), EK_EUSAGE);
    ck_assert_int_eq(dev->ops->attention(dev, q, 1, &c.batch, &c.kv, 10, 1, out, 1), EK_EUSAGE);
    cache_free(&c);
    ek_device_close(dev);
}
END_TEST

/* ---- Rotation -------------------------------------------------------------------------------- */

static const struct {
    struct paged p;
    uint32_t dim;
    bool interleaved;
    uint32_t sections[3];
} ropes[] = {
    {{2, 16, 4, 2, 64, 64, {3, 100000}, {5, 1}, EK_F32, false}, 64, false, {0, 0, 0}},
    {{1, 16, 3, 1, 20, 20, {0}, {40}, EK_F16, false}, 20, true, {0, 0, 0}},
    {{1, 4, 2, 2, 24, 16, {7}, {9}, EK_BF16, false}, 16, false, {0, 0, 0}},
    {{1, 16, 4, 2, 32, 32, {2}, {33}, EK_F32, false}, 32, false, {4, 6, 6}},
    {{2, 16, 4, 2, 64, 40, {3, 20}, {5, 1}, EK_F8_E4M3, false}, 64, false, {0, 0, 0}},
};

static void rotate_plainly(float *head, const float *angle, uint32_t dim, bool interleaved,
                           double amplitude, double *out, uint32_t head_dim)
{
    for (uint32_t i = 0; i < head_dim; i++)
        out[i] = head[i];
    for (uint32_t i = 0; i < dim / 2; i++) {
        uint32_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + dim / 2;
        double c = cos(angle[i]) * amplitude, s = sin(angle[i]) * amplitude;
        out[a] = head[a] * c - head[b] * s;
        out[b] = head[b] * c + head[a] * s;
    }
}

static float stored(const struct ek_kv *kv, const void *base, size_t at, float scale)
{
    const uint16_t *h = base;

    return kv->dtype == EK_F32       ? ((const float *)base)[at]
           : kv->dtype == EK_F16     ? ek_f16_to_f32(h[at])
           : kv->dtype == EK_F8_E4M3 ? ek_e4m3_to_f32(((const uint8_t *)base)[at]) * scale
                                     : ek_bf16_to_f32(h[at]);
}

/* A row of the cache holds what was appended: to the bit, and within what the format promises. */
static void check_row(const struct ek_kv *kv, const void *base, const float *scales, size_t row,
                      const float *want, uint32_t dim)
{
    float scale = scale_of(kv->dtype, want, dim);

    ck_assert(kv->dtype != EK_F8_E4M3 || scales[row] == scale);
    for (uint32_t i = 0; i < dim; i++) {
        float got = stored(kv, base, row * dim + i, scale);

        ck_assert(got == through(kv->dtype, want[i], scale));
        ck_assert(fabsf(got - want[i]) <= fmaxf(fabsf(want[i]) / 15.9f, scale / 1023));
    }
}

static void check_rope(struct ek_device *dev, size_t which)
{
    const struct paged *p = &ropes[which].p;
    uint64_t seed = 31;
    struct paged small = *p;
    size_t k_at = (size_t)p->heads * p->head_dim, v_at = k_at + (size_t)p->kv_heads * p->head_dim;
    size_t ld = v_at + (size_t)p->kv_heads * p->v_dim + 3;
    float freq[32], angle[32];

    for (uint32_t s = 0; s < p->n_seqs; s++) /* far positions need no far cache */
        small.past[s] = p->past[s] % 50;
    struct cache c = cache_new(&small, &seed);
    uint32_t n = c.batch.n_tokens;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = 0; r < 3; r++)
            c.positions[r * n + t] = (int32_t)(t * 37 + r * 11 + p->past[p->n_seqs - 1]);
    for (uint32_t i = 0; i < ropes[which].dim / 2; i++)
        freq[i] = powf(10000.0f, -2.0f * (float)i / (float)ropes[which].dim);
    struct ek_rope rope = {.inv_freq = freq,
                           .dim = ropes[which].dim,
                           .amplitude = 1.25f,
                           .interleaved = ropes[which].interleaved};
    memcpy(rope.sections, ropes[which].sections, sizeof(rope.sections));
    float *x = random_floats(&seed, n * ld), *y = random_floats(&seed, n * ld);
    memcpy(y, x, n * ld * sizeof(float));
    ck_assert_int_eq(dev->ops->rope_append(dev, y, ld, &rope, &c.batch, p->heads, &c.kv), EK_OK);
    for (uint32_t t = 0; t < n; t++) {
        double want[128];
        for (uint32_t i = 0; i < rope.dim / 2; i++) {
            uint32_t r = !rope.sections[0]                         ? 0
                         : i < rope.sections[0]                    ? 0
                         : i < rope.sections[0] + rope.sections[1] ? 1
                                                                   : 2;
            angle[i] = (float)c.positions[r * n + t] * freq[i];
        }
        for (uint32_t h = 0; h < p->heads + p->kv_heads; h++) {
            float *got = y + t * ld + h * p->head_dim;
            rotate_plainly(x + t * ld + h * p->head_dim, angle, rope.dim, rope.interleaved, 1.25,
                           want, p->head_dim);
            ck_assert_double_lt(relative_error(got, want, p->head_dim), TOLERANCE);
            if (h >= p->heads)
                check_row(&c.kv, c.kv.k, c.k_scale, (size_t)c.slots[t] * p->kv_heads + h - p->heads,
                          got, p->head_dim);
        }
        for (uint32_t h = 0; h < p->kv_heads; h++)
            check_row(&c.kv, c.kv.v, c.v_scale, (size_t)c.slots[t] * p->kv_heads + h,
                      x + t * ld + v_at + h * p->v_dim, p->v_dim);
    }
    free(x), free(y);
    cache_free(&c);
}

START_TEST(rotation_and_append_are_right)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);

    for (size_t k = 0; dev && k < EK_ARRAY_LEN(ropes); k++)
        check_rope(dev, k);
    ek_device_close(dev);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("operations");
    TCase *tc = tcase_create("operations");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_loop_test(tc, norms_and_swiglu_are_right, 0, N_SIMD);
    tcase_add_loop_test(tc, argmax_takes_the_lowest_of_equals, 0, N_SIMD);
    tcase_add_test(tc, gather_takes_rows_in_any_order);
    tcase_add_test(tc, permute_takes_columns_in_any_order);
    tcase_add_loop_test(tc, conversions_round_to_even_and_keep_nan, 0, N_SIMD);
    tcase_add_loop_test(tc, attention_over_ragged_pages_is_right, 0, N_SIMD);
    tcase_add_loop_test(tc, a_token_of_no_context_gets_zeros, 0, N_SIMD);
    tcase_add_test(tc, attention_refuses_what_it_cannot_do);
    tcase_add_loop_test(tc, rotation_and_append_are_right, 0, N_SIMD);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
