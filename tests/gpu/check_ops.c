/* SPDX-License-Identifier: Apache-2.0
 *
 * Every operation of the CUDA backend against the CPU backend on random shapes, ragged edges
 * included. A CUDA context does not survive fork: the suite runs in one process. Skips without a
 * GPU.
 */
#include "tests/gpu/gpu.h"
#include "tests/kernels/refused.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

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

    seed = 1000 + (uint64_t)i;
    ck_assert_msg(why == NULL, "%s", why);
}

static uint32_t pick(uint32_t below)
{
    return (uint32_t)(ek_random_u64(&seed) % below);
}

/* ---- rows ---------------------------------------------------------------------------------------
 */
static const struct {
    uint32_t n, dim, pad;
} row_cases[] = {{1, 8, 0}, {3, 64, 0}, {5, 100, 3}, {2, 2048, 8}, {17, 577, 0}, {4, 11008, 16}};

static void check_norms(size_t c)
{
    uint32_t n = row_cases[c].n, dim = row_cases[c].dim;
    size_t ld = dim + row_cases[c].pad;
    struct both x = both_random(&pr, n * ld, 2, &seed), w = both_floats(&pr, dim, 1, 0.2f, &seed);
    struct both b = both_floats(&pr, dim, 0, 0.3f, &seed), out = both_new(&pr, n * ld);
    struct both plain = both_new(&pr, (size_t)n * dim);

    need(pr.gpu->ops->rms_norm(pr.gpu, x.gpu, ld, w.gpu, 1e-6f, n, dim, out.gpu, ld));
    need(pr.cpu->ops->rms_norm(pr.cpu, x.cpu, ld, w.cpu, 1e-6f, n, dim, out.cpu, ld));
    need_close("rms_norm", both_error(&pr, &out), tolerance(pr.act));
    need(pr.gpu->ops->layer_norm(pr.gpu, x.gpu, w.gpu, b.gpu, 1e-5f, n, dim, plain.gpu));
    need(pr.cpu->ops->layer_norm(pr.cpu, x.cpu, w.cpu, b.cpu, 1e-5f, n, dim, plain.cpu));
    need_close("layer_norm", both_error(&pr, &plain), tolerance(pr.act));
    both_free(&pr, &x);
    both_free(&pr, &w);
    both_free(&pr, &b);
    both_free(&pr, &out);
    both_free(&pr, &plain);
}

static void check_permute(size_t c)
{
    uint32_t n = row_cases[c].n, dim = row_cases[c].dim;
    size_t ldx = dim + row_cases[c].pad;
    int32_t *order = ek_calloc(dim, sizeof(*order));
    struct both x = both_random(&pr, n * ldx, 3, &seed), out = both_new(&pr, (size_t)n * dim),
                index;

    for (uint32_t i = 0; i < dim; i++)
        order[i] = (int32_t)pick(dim);
    index = both_ints(&pr, order, dim);
    need(pr.gpu->ops->permute(pr.gpu, x.gpu, ldx, index.gpu, n, dim, out.gpu));
    need(pr.cpu->ops->permute(pr.cpu, x.cpu, ldx, index.cpu, n, dim, out.cpu));
    need_close("permute", both_error(&pr, &out), 0);
    both_free(&pr, &x);
    both_free(&pr, &out);
    both_free(&pr, &index);
    free(order);
}

static void check_swiglu_gather(size_t c)
{
    uint32_t n = row_cases[c].n, dim = row_cases[c].dim;
    size_t ldx = 2 * (size_t)dim + row_cases[c].pad, ldo = dim + row_cases[c].pad;
    int32_t rows[32];
    struct both x = both_random(&pr, n * ldx, 3, &seed), out = both_new(&pr, n * ldo), index;
    struct both taken = both_new(&pr, (size_t)n * dim);

    for (uint32_t i = 0; i < n; i++)
        rows[i] = i == 1 ? -1 : (int32_t)pick(n); /* -1: a row of zeros */
    index = both_ints(&pr, rows, n);
    need(pr.gpu->ops->swiglu(pr.gpu, x.gpu, ldx, n, dim, out.gpu, ldo));
    need(pr.cpu->ops->swiglu(pr.cpu, x.cpu, ldx, n, dim, out.cpu, ldo));
    need_close("swiglu", both_error(&pr, &out), tolerance(pr.act));
    need(pr.gpu->ops->gather(pr.gpu, x.gpu, ldx, index.gpu, n, dim, taken.gpu));
    need(pr.cpu->ops->gather(pr.cpu, x.cpu, ldx, index.cpu, n, dim, taken.cpu));
    need_close("gather", both_error(&pr, &taken), 0);
    both_free(&pr, &x);
    both_free(&pr, &out);
    both_free(&pr, &index);
    both_free(&pr, &taken);
}

START_TEST(rows_are_normalised_activated_and_gathered_as_on_the_cpu)
{
    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(row_cases); c++) {
        check_norms(c);
        check_swiglu_gather(c);
        check_permute(c);
    }
    pair_close(&pr);
}
END_TEST

static void check_argmax(uint32_t n, uint32_t vocab)
{
    struct both logits = both_floats(&pr, (size_t)n * vocab, 0, 1, &seed);
    int32_t got[8], want[8];
    void *g, *c;
    float top = 50;

    /* a tie: the lowest of the two indices wins */
    for (uint32_t i = 0; i < 2; i++) {
        size_t at = (i ? vocab - 1 : vocab / 3) * sizeof(float);

        need(pr.gpu->ops->upload(pr.gpu, (char *)logits.gpu + at, &top, sizeof(top)));
        need(pr.cpu->ops->upload(pr.cpu, (char *)logits.cpu + at, &top, sizeof(top)));
    }
    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_ACTIVATIONS, sizeof(got), &g));
    need(pr.cpu->ops->alloc(pr.cpu, EK_TAG_ACTIVATIONS, sizeof(got), &c));
    need(pr.gpu->ops->argmax(pr.gpu, logits.gpu, n, vocab, g));
    need(pr.cpu->ops->argmax(pr.cpu, logits.cpu, n, vocab, c));
    need(pr.gpu->ops->download(pr.gpu, got, g, n * sizeof(*got)));
    need(pr.cpu->ops->download(pr.cpu, want, c, n * sizeof(*want)));
    for (uint32_t i = 0; i < n; i++)
        ck_assert_int_eq(got[i], want[i]);
    ck_assert_int_eq(got[0], (int32_t)(vocab / 3));
    pr.gpu->ops->release(pr.gpu, g);
    pr.cpu->ops->release(pr.cpu, c);
    both_free(&pr, &logits);
}

/* ---- tokens */
static const struct {
    double temperature;
    uint32_t top_k;
    float top_p, min_p;
} draw_cases[] = {
    {0, 0, 1, 0},       {1, 0, 1, 0},       {0.7, 50, 1, 0},     {1, 0, 0.9f, 0},
    {1.2, 0, 1, 0.1f},  {0.8, 20, 0.8f, 0}, {2, 0, 0.3f, 0.01f}, {0.9, 1000, 0.95f, 0.05f},
    {0.01, 0, 0.5f, 0}, {30, 3, 0.99f, 0},
};
enum { DRAWS = 8, N_DRAW_CASES = EK_ARRAY_LEN(draw_cases) };

/* Rows of all kinds: usual, all alike, in steps with many ties, one without a number. */
static void draw_row(float *x, uint32_t vocab, uint32_t kind)
{
    for (uint32_t i = 0; i < vocab; i++)
        x[i] = kind == 1 ? 2.5f : 3 * ek_random_normal(&seed);
    for (uint32_t i = 0; i < vocab && kind == 2; i++)
        x[i] = floorf(x[i]);
    for (uint32_t i = 0; i < vocab && kind == 3; i += 3)
        x[i] = i % 2 ? NAN : -INFINITY;
    x[vocab / 2] = kind == 4 ? INFINITY : x[vocab / 2];
}

static void check_draws(uint32_t vocab)
{
    float *x = ek_calloc((size_t)DRAWS * vocab, sizeof(*x));
    struct ek_draw *draws;
    void *logits;
    int32_t *ids, want;

    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_ACTIVATIONS, (size_t)DRAWS * vocab * 4, &logits));
    need(pr.gpu->ops->host_alloc(pr.gpu, DRAWS * sizeof(*draws), (void **)&draws));
    need(pr.gpu->ops->host_alloc(pr.gpu, DRAWS * sizeof(*ids), (void **)&ids));
    for (uint32_t i = 0; i < DRAWS; i++)
        draw_row(x + (size_t)i * vocab, vocab, i);
    need(pr.gpu->ops->upload(pr.gpu, logits, x, (size_t)DRAWS * vocab * 4));
    for (size_t c = 0; c < 8 * N_DRAW_CASES; c++) {
        double t = draw_cases[c % N_DRAW_CASES].temperature;
        for (uint32_t i = 0; i < DRAWS; i++)
            draws[i] = (struct ek_draw){.scale = t > 0 ? (float)(1.4426950408889634 / t) : 0,
                                        .top_k = draw_cases[c % N_DRAW_CASES].top_k,
                                        .top_p = draw_cases[c % N_DRAW_CASES].top_p,
                                        .min_p = draw_cases[c % N_DRAW_CASES].min_p,
                                        .random = ek_random_u64(&seed)};
        need(pr.gpu->ops->sample(pr.gpu, logits, DRAWS, vocab, draws, ids));
        need(pr.gpu->ops->sync(pr.gpu));
        for (uint32_t i = 0; i < DRAWS; i++) {
            need(ek_draw_token(&draws[i], x + (size_t)i * vocab, vocab, &want));
            ck_assert_msg(ids[i] == want, "vocabulary %u, case %zu, row %u: %d, not %d", vocab,
                          c % N_DRAW_CASES, i, ids[i], want);
        }
    }
    pr.gpu->ops->host_free(pr.gpu, draws);
    pr.gpu->ops->host_free(pr.gpu, ids);
    pr.gpu->ops->release(pr.gpu, logits);
    free(x);
}

START_TEST(draws_are_those_of_the_host_to_the_token)
{
    static const uint32_t vocabs[] = {5, 257, 32003, 102400, 151936, 400000};

    open_act(0);
    for (size_t i = 0; i < EK_ARRAY_LEN(vocabs); i++)
        check_draws(vocabs[i]);
    pair_close(&pr);
}
END_TEST

START_TEST(a_batch_is_taken_with_the_ids_of_the_step_before)
{
    enum { WORDS = 5000, IDS = 1200 };
    int32_t *src, *ids, got[WORDS];
    void *dst;

    open_act(0);
    need(pr.gpu->ops->host_alloc(pr.gpu, WORDS * sizeof(*src), (void **)&src));
    need(pr.gpu->ops->host_alloc(pr.gpu, IDS * sizeof(*ids), (void **)&ids));
    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_ACTIVATIONS, sizeof(got), &dst));
    for (int32_t i = 0; i < WORDS; i++)
        src[i] = i % 3 == 1 ? -1 - i % IDS : i;
    for (int32_t i = 0; i < IDS; i++)
        ids[i] = i % 7 == 4 ? -1 : 100000 + i;
    need(pr.gpu->ops->take(pr.gpu, dst, src, WORDS, IDS, ids));
    need(pr.gpu->ops->download(pr.gpu, got, dst, sizeof(got)));
    for (int32_t i = 0; i < WORDS; i++)
        ck_assert_int_eq(got[i], src[i] >= 0 || i >= IDS ? src[i] : i % 7 == 4 ? 0 : ids[i]);
    need(pr.gpu->ops->take(pr.gpu, dst, src, WORDS, IDS, NULL));
    need(pr.gpu->ops->download(pr.gpu, got, dst, sizeof(got)));
    ck_assert_mem_eq(got, src, sizeof(got));
    pr.gpu->ops->host_free(pr.gpu, src);
    pr.gpu->ops->host_free(pr.gpu, ids);
    pr.gpu->ops->release(pr.gpu, dst);
    pair_close(&pr);
}
END_TEST

START_TEST(argmax_takes_the_lowest_index_of_a_tie)
{
    open_act(0);
    check_argmax(1, 151936);
    check_argmax(7, 1001);
    check_argmax(3, 5);
    pair_close(&pr);
}
END_TEST

START_TEST(converted_numbers_are_those_of_the_host)
{
    float v[1000], back[1000], want[1000];
    uint16_t raw[1000];
    void *x, *y;

    open_act(0);
    for (size_t i = 0; i < 1000; i++)
        v[i] = ek_random_normal(&seed) * 100;
    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_COMM, sizeof(v), &x));
    need(pr.gpu->ops->alloc(pr.gpu, EK_TAG_COMM, sizeof(v), &y));
    for (int i = 1; i < N_ACTS; i++) {
        need(pr.gpu->ops->upload(pr.gpu, x, v, sizeof(v)));
        need(pr.gpu->ops->convert(pr.gpu, x, EK_F32, y, acts[i], 1000));
        need(pr.gpu->ops->convert(pr.gpu, y, acts[i], x, EK_F32, 1000));
        need(pr.gpu->ops->download(pr.gpu, back, x, sizeof(back)));
        narrow(v, acts[i], raw, 1000);
        widen(raw, acts[i], want, 1000);
        ck_assert_mem_eq(back, want, sizeof(want));
    }
    pair_close(&pr);
}
END_TEST

/* ---- products -----------------------------------------------------------------------------------
 */
static const enum ek_dtype weights[] = {EK_F32,   EK_BF16,   EK_F16,   EK_Q4_0,   EK_Q4_1,
                                        EK_Q5_0,  EK_Q5_1,   EK_Q8_0,  EK_Q4_K,   EK_Q5_K,
                                        EK_Q6_K,  EK_G4_32,  EK_G4_64, EK_G4_128, EK_G8_32,
                                        EK_G8_64, EK_G8_128, EK_B8_32, EK_B8_64,  EK_B8_128};
#define N_WEIGHTS EK_ARRAY_LEN(weights)

/* Groups with BF16 scales: the CPU rounds each weight, as those who made them do; products of few
 * tokens on the GPU are more exact. */
static double product_tolerance(enum ek_dtype t)
{
    bool rounded = t >= EK_G4_32 && t <= EK_G8_128;

    return tolerance(rounded && pr.act == EK_F16 ? EK_BF16 : pr.act);
}

static void check_linear(enum ek_dtype t, uint32_t rows, uint32_t cols, uint32_t n, int flags,
                         bool with_bias)
{
    struct both x = both_random(&pr, (size_t)n * cols, 1, &seed);
    struct both bias = both_floats(&pr, rows, 0, 0.5f, &seed);
    bool f32 = flags & EK_LINEAR_OUT_F32;
    struct both out = f32 ? both_floats(&pr, (size_t)n * rows, 0, 0, &seed)
                          : both_random(&pr, (size_t)n * rows, 1, &seed);
    struct ek_mat g, c;
    char what[96];

    mats_random(&pr, t, rows, cols, 1 / sqrtf((float)cols), &seed, &g, &c);
    need(pr.gpu->ops->linear(pr.gpu, x.gpu, cols, n, &g, with_bias ? bias.gpu : NULL, out.gpu, rows,
                             flags));
    need(pr.cpu->ops->linear(pr.cpu, x.cpu, cols, n, &c, with_bias ? bias.cpu : NULL, out.cpu, rows,
                             flags));
    snprintf(what, sizeof(what), "linear %s %ux%u, %u tokens, flags %d, bias %d", ek_dtype_name(t),
             rows, cols, n, flags, with_bias);
    need_close(what, f32 ? float_error(&pr, &out) : both_error(&pr, &out), product_tolerance(t));
    mats_free(&pr, &g, &c);
    both_free(&pr, &x);
    both_free(&pr, &bias);
    both_free(&pr, &out);
}

START_TEST(products_agree_for_every_weight_type_and_number_of_tokens)
{
    static const uint32_t tokens[] = {1, 2, 7, 8, 9, 16, 17, 70};
    enum ek_dtype t = weights[_i / N_ACTS];
    uint32_t cols = t >= EK_Q4_K ? 512 : 288;

    open_act(_i);
    for (size_t i = 0; i < EK_ARRAY_LEN(tokens); i++) {
        check_linear(t, 130, cols, tokens[i], 0, false);
        check_linear(t, 96, cols, tokens[i], EK_LINEAR_ADD, true);
        check_linear(t, 64, 2048, tokens[i], EK_LINEAR_OUT_F32, i % 2);
        check_linear(t, 77, cols, tokens[i], EK_LINEAR_GELU, true);
        check_linear(t, 33, cols, tokens[i], EK_LINEAR_GELU_TANH, false);
    }
    if (t >= EK_Q4_0 && pr.act != EK_F32) { /* bands that warps and multiprocessors share */
        check_linear(t, 4400, 256, 1, EK_LINEAR_ADD, true);
        check_linear(t, 40, 22016, 1, 0, true);
    }
    if (t < EK_Q4_0)
        for (uint32_t n = 1; n < 20; n += 9) { /* rows that no wide load can read */
            check_linear(t, 24, 100, n, 0, true);
            check_linear(t, 24, 1130, n, 0, true);
        }
    pair_close(&pr);
}
END_TEST

/* Matrices that are converted in two tiles, the second of few rows: a large tower's merger in F32.
 */
START_TEST(products_with_converted_weights_agree_across_their_tiles)
{
    open_act(0);
    check_linear(EK_BF16, 3584, 5120, 20, 0, true);
    check_linear(EK_BF16, 3584, 5120, 3, EK_LINEAR_GELU, true);
    check_linear(EK_Q8_0, 3584, 5120, 20, EK_LINEAR_ADD, false);
    pair_close(&pr);
}
END_TEST

static void check_normed(enum ek_dtype t, uint32_t rows, uint32_t cols)
{
    struct both x = both_random(&pr, cols, 3, &seed), norm = both_floats(&pr, cols, 1, 0.1f, &seed);
    struct both out = both_new(&pr, rows);
    struct ek_mat g, c;
    char what[64];

    mats_random(&pr, t, rows, cols, 1 / sqrtf((float)cols), &seed, &g, &c);
    need(pr.gpu->ops->norm_linear(pr.gpu, x.gpu, norm.gpu, 1e-6f, 1, &g, 1, NULL, out.gpu, rows));
    need(pr.cpu->ops->norm_linear(pr.cpu, x.cpu, norm.cpu, 1e-6f, 1, &c, 1, NULL, out.cpu, rows));
    snprintf(what, sizeof(what), "norm_linear %s %ux%u", ek_dtype_name(t), rows, cols);
    need_close(what, both_error(&pr, &out), product_tolerance(t));
    mats_free(&pr, &g, &c);
    both_free(&pr, &x);
    both_free(&pr, &norm);
    both_free(&pr, &out);
}

/* Tokens that fill shared memory up to what needs no asking, and beyond; many rows a warp. */
START_TEST(products_with_one_token_agree_for_all_widths)
{
    static const uint32_t cols[] = {8, 264, 896, 2048, 3584, 6144, 8192, 12288, 16384};

    open_act(_i);
    for (size_t i = 0; i < EK_ARRAY_LEN(cols); i++) {
        check_linear(weights[i % 3], 77, cols[i], 1, EK_LINEAR_ADD, false);
        check_normed(weights[i % 3], 77, cols[i]);
    }
    for (uint32_t rows = 3000; rows < 4096; rows += 960) { /* up to 30 a multiprocessor */
        check_linear(pr.act, rows, 2048, 1, EK_LINEAR_ADD, true);
        check_normed(pr.act, rows, 2048);
    }
    check_linear(pr.act, 70001, 256, 1, EK_LINEAR_OUT_F32, false);
    pair_close(&pr);
}
END_TEST

START_TEST(embeddings_are_rows_of_the_table)
{
    enum ek_dtype t = weights[_i / N_ACTS];
    uint32_t cols = t >= EK_Q4_K ? 256 : t >= EK_Q4_0 ? 96 : 100 + 4 * (uint32_t)(_i % 2);
    int32_t ids[40];
    struct both index, out;
    struct ek_mat g, c;

    open_act(_i);
    for (int i = 0; i < 40; i++)
        ids[i] = (int32_t)pick(300);
    index = both_ints(&pr, ids, 40);
    out = both_new(&pr, 40 * cols);
    mats_random(&pr, t, 300, cols, 1, &seed, &g, &c);
    need(pr.gpu->ops->embed(pr.gpu, &g, index.gpu, 40, out.gpu));
    need(pr.cpu->ops->embed(pr.cpu, &c, index.cpu, 40, out.cpu));
    need_close("embed", both_error(&pr, &out), tolerance(pr.act));
    pair_close(&pr);
}
END_TEST

static void check_fused(enum ek_dtype t, uint32_t n)
{
    const uint32_t rows[3] = {160, 32, 32}, cols = 512, ffn = 352;
    struct both x = both_random(&pr, (size_t)n * cols, 3, &seed), bias[3], out, act;
    struct both norm = both_floats(&pr, cols, 1, 0.1f, &seed);
    const float *gb[3], *cb[3];
    struct ek_mat g[3], c[3];

    out = both_new(&pr, (size_t)n * 224);
    act = both_new(&pr, (size_t)n * ffn);
    for (int i = 0; i < 3; i++) {
        mats_random(&pr, t, rows[i], cols, 0.05f, &seed, &g[i], &c[i]);
        bias[i] = both_floats(&pr, rows[i], 0, 0.3f, &seed);
        gb[i] = i == 1 ? NULL : bias[i].gpu;
        cb[i] = i == 1 ? NULL : bias[i].cpu;
    }
    need(pr.gpu->ops->norm_linear(pr.gpu, x.gpu, norm.gpu, 1e-6f, n, g, 3, gb, out.gpu, 224));
    need(pr.cpu->ops->norm_linear(pr.cpu, x.cpu, norm.cpu, 1e-6f, n, c, 3, cb, out.cpu, 224));
    need_close("norm_linear", both_error(&pr, &out), product_tolerance(t));
    for (int i = 0; i < 3; i++)
        mats_free(&pr, &g[i], &c[i]);
    for (int i = 0; i < 2; i++)
        mats_random(&pr, t, ffn, cols, 0.05f, &seed, &g[i], &c[i]);
    need(pr.gpu->ops->norm_gate_up(pr.gpu, x.gpu, norm.gpu, 1e-6f, n, g, act.gpu, ffn));
    need(pr.cpu->ops->norm_gate_up(pr.cpu, x.cpu, norm.cpu, 1e-6f, n, c, act.cpu, ffn));
    need_close("norm_gate_up", both_error(&pr, &act), 2 * product_tolerance(t));
}

START_TEST(fused_products_agree_with_the_cpu)
{
    open_act(_i);
    check_fused(weights[_i / N_ACTS], 1);
    check_fused(weights[_i / N_ACTS], 5);
    check_fused(weights[_i / N_ACTS], 33);
    pair_close(&pr);
}
END_TEST

/* Shapes that kernels for few tokens cut in every way: many tiles of rows or few, columns shared by
 * clusters of 1 to 8 blocks, the last tile ragged. */
static const struct {
    uint32_t rows, cols;
} few_cases[] = {{64, 64},     {200, 640},  {640, 2048}, {1600, 1024},
                 {2048, 2112}, {9032, 576}, {17000, 128}};

static void need_same_bits(const char *what, const struct both *a, const struct both *b)
{
    size_t bytes = a->n * element(pr.act);
    char *x = malloc(bytes), *y = malloc(bytes);

    need(pr.gpu->ops->download(pr.gpu, x, a->gpu, bytes));
    need(pr.gpu->ops->download(pr.gpu, y, b->gpu, bytes));
    ck_assert_msg(memcmp(x, y, bytes) == 0, "%s: not the same bits twice", what);
    free(x);
    free(y);
}

/* Three matrices side by side, the last one ragged. */
static void check_side_by_side(uint32_t cols, uint32_t n, enum ek_dtype t)
{
    static const uint32_t rows[3] = {192, 64, 88};
    struct both x = both_random(&pr, (size_t)n * cols, 3, &seed), out;
    struct both norm = both_floats(&pr, cols, 1, 0.1f, &seed), bias[3];
    const float *gb[3], *cb[3];
    struct ek_mat g[3], c[3];

    for (int i = 0; i < 3; i++) {
        mats_random(&pr, t, rows[i], cols, 1 / sqrtf((float)cols), &seed, &g[i], &c[i]);
        bias[i] = both_floats(&pr, rows[i], 0, 0.3f, &seed);
        gb[i] = i == 1 ? NULL : bias[i].gpu;
        cb[i] = i == 1 ? NULL : bias[i].cpu;
    }
    out = both_new(&pr, (size_t)n * 344);
    need(pr.gpu->ops->norm_linear(pr.gpu, x.gpu, norm.gpu, 1e-6f, n, g, 3, gb, out.gpu, 344));
    need(pr.cpu->ops->norm_linear(pr.cpu, x.cpu, norm.cpu, 1e-6f, n, c, 3, cb, out.cpu, 344));
    need_close("side by side", both_error(&pr, &out), tolerance(pr.act));
    for (int i = 0; i < 3; i++) {
        mats_free(&pr, &g[i], &c[i]);
        both_free(&pr, &bias[i]);
    }
    both_free(&pr, &x);
    both_free(&pr, &norm);
    both_free(&pr, &out);
}

static void check_few(uint32_t rows, uint32_t cols, uint32_t n, enum ek_dtype t)
{
    struct both x = both_random(&pr, (size_t)n * cols, 3, &seed), linear, pairs, again;
    struct both norm = both_floats(&pr, cols, 1, 0.1f, &seed);
    struct ek_mat g[2], c[2];
    const float *none[1] = {NULL};
    char what[96];

    for (int i = 0; i < 2; i++)
        mats_random(&pr, t, rows, cols, 1 / sqrtf((float)cols), &seed, &g[i], &c[i]);
    linear = both_new(&pr, (size_t)n * rows);
    pairs = both_new(&pr, (size_t)n * rows);
    again = both_new(&pr, (size_t)n * rows);
    snprintf(what, sizeof(what), "%u tokens, %ux%u", n, rows, cols);
    need(pr.gpu->ops->norm_linear(pr.gpu, x.gpu, norm.gpu, 1e-6f, n, g, 1, none, linear.gpu, rows));
    need(pr.cpu->ops->norm_linear(pr.cpu, x.cpu, norm.cpu, 1e-6f, n, c, 1, none, linear.cpu, rows));
    need_close(what, both_error(&pr, &linear), tolerance(pr.act));
    need(pr.gpu->ops->norm_gate_up(pr.gpu, x.gpu, norm.gpu, 1e-6f, n, g, pairs.gpu, rows));
    need(pr.cpu->ops->norm_gate_up(pr.cpu, x.cpu, norm.cpu, 1e-6f, n, c, pairs.cpu, rows));
    need_close(what, both_error(&pr, &pairs), 2 * tolerance(pr.act));
    need(pr.gpu->ops->norm_gate_up(pr.gpu, x.gpu, norm.gpu, 1e-6f, n, g, again.gpu, rows));
    need_same_bits(what, &pairs, &again);
    for (int i = 0; i < 2; i++)
        mats_free(&pr, &g[i], &c[i]);
    both_free(&pr, &x);
    both_free(&pr, &norm);
    both_free(&pr, &linear);
    both_free(&pr, &pairs);
    both_free(&pr, &again);
}

START_TEST(products_of_few_tokens_agree_however_they_are_cut)
{
    static const uint32_t tokens[] = {2, 8, 13, 32, 47, 64};
    uint32_t rows = few_cases[_i].rows, cols = few_cases[_i].cols;

    open_act(1 + _i % 2);
    for (size_t i = 0; i < EK_ARRAY_LEN(tokens); i++)
        if ((uint64_t)rows * cols * tokens[i] < (uint64_t)300 << 20)
            check_few(rows, cols, tokens[i], pr.act);
    check_side_by_side(cols, 23, pr.act);
    pair_close(&pr);
}
END_TEST

/* The residual stream after the output product and the feed-forward layer, of the GPU in one
 * launch, of the CPU one by one. */
static const struct {
    uint32_t heads, hidden, inner;
} tail_cases[] = {{64, 64, 64},       {128, 320, 448},    {512, 256, 3008},
                  {2048, 2048, 1408}, {1152, 3584, 2496}, {640, 192, 17024}};

static void cpu_tail(const struct both *in, const struct both *norm, const struct ek_mat *m,
                     uint32_t n, struct both *act, struct both *x)
{
    const struct ek_ops *ops = pr.cpu->ops;

    need(ops->linear(pr.cpu, in->cpu, m[0].cols, n, &m[0], NULL, x->cpu, m[0].rows, EK_LINEAR_ADD));
    need(ops->norm_gate_up(pr.cpu, x->cpu, norm->cpu, 1e-6f, n, &m[1], act->cpu, m[1].rows));
    need(
        ops->linear(pr.cpu, act->cpu, m[3].cols, n, &m[3], NULL, x->cpu, m[0].rows, EK_LINEAR_ADD));
}

/* What was left of the next norm, against the whole norm. */
static void check_ahead(const char *what, const struct ek_norm_ahead *next, const struct both *norm,
                        uint32_t n, uint32_t hidden, const struct both *x, struct both *rows)
{
    uint32_t pitch = n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : 64;
    size_t sums = (size_t)hidden / 16 * pitch * sizeof(float);
    float *squares = malloc(sums);
    float *v = malloc((size_t)n * hidden * sizeof(float));
    void *raw = malloc((size_t)n * hidden * 2);

    need(pr.gpu->ops->download(pr.gpu, squares, next->squares, sums));
    need(pr.gpu->ops->download(pr.gpu, raw, next->rows, (size_t)n * hidden * 2));
    widen(raw, EK_BF16, v, (size_t)n * hidden);
    for (uint32_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint32_t k = 0; k < hidden / 16; k++)
            sum += squares[k * pitch + i];
        for (uint32_t c = 0; c < hidden; c++)
            v[(size_t)i * hidden + c] /= sqrtf(sum / (float)hidden + 1e-6f);
    }
    narrow(v, EK_BF16, raw, (size_t)n * hidden);
    need(pr.gpu->ops->upload(pr.gpu, rows->gpu, raw, (size_t)n * hidden * 2));
    need(pr.cpu->ops->rms_norm(pr.cpu, x->cpu, hidden, norm->cpu, 1e-6f, n, hidden, rows->cpu,
                               hidden));
    need_close(what, both_error(&pr, rows), 4 * tolerance(EK_BF16));
    free(squares);
    free(raw);
    free(v);
}

static void check_tail(uint32_t heads, uint32_t hidden, uint32_t inner, uint32_t n)
{
    struct both in = both_random(&pr, (size_t)n * heads, 1, &seed);
    struct both x = both_random(&pr, (size_t)n * hidden, 1, &seed), again, act, rows;
    struct both norm = both_floats(&pr, hidden, 1, 0.1f, &seed);
    const uint32_t tall[4] = {hidden, inner, inner, hidden};
    const uint32_t cols[4] = {heads, hidden, hidden, inner};
    struct ek_norm_ahead next = {.weight = norm.gpu};
    struct ek_mat g[4], c[4];
    bool taken[2];
    char what[96];

    for (int i = 0; i < 4; i++)
        mats_random(&pr, EK_BF16, tall[i], cols[i], 2 / sqrtf((float)cols[i]), &seed, &g[i], &c[i]);
    again = both_new(&pr, (size_t)n * hidden);
    rows = both_new(&pr, (size_t)n * hidden);
    act = both_new(&pr, (size_t)n * inner);
    next.rows = rows.gpu;
    snprintf(what, sizeof(what), "tail, %u tokens, %u %u %u", n, heads, hidden, inner);
    need(pr.gpu->ops->copy(pr.gpu, again.gpu, x.gpu, (size_t)n * hidden * 2));
    need(pr.gpu->ops->layer_tail(pr.gpu, in.gpu, heads, n, g, norm.gpu, 1e-6f, g + 1, g + 3,
                                 again.gpu, NULL, &taken[0]));
    need(pr.gpu->ops->layer_tail(pr.gpu, in.gpu, heads, n, g, norm.gpu, 1e-6f, g + 1, g + 3, x.gpu,
                                 &next, &taken[1]));
    ck_assert(taken[0] == taken[1]);
    if (taken[0]) {
        cpu_tail(&in, &norm, c, n, &act, &x);
        need_close(what, both_error(&pr, &x), 4 * tolerance(EK_BF16));
        need_same_bits(what, &x, &again);
        check_ahead(what, &next, &norm, n, hidden, &x, &rows);
    }
    for (int i = 0; i < 4; i++)
        mats_free(&pr, &g[i], &c[i]);
    both_free(&pr, &in);
    both_free(&pr, &x);
    both_free(&pr, &again);
    both_free(&pr, &rows);
    both_free(&pr, &act);
    both_free(&pr, &norm);
}

START_TEST(tails_of_layers_agree_with_the_cpu)
{
    static const uint32_t tokens[] = {5, 16, 31, 64};

    open_act(1);
    for (size_t i = 0; i < EK_ARRAY_LEN(tokens) && pr.gpu->ops->layer_tail != NULL; i++)
        check_tail(tail_cases[_i].heads, tail_cases[_i].hidden, tail_cases[_i].inner, tokens[i]);
    pair_close(&pr);
}
END_TEST

START_TEST(arguments_that_do_not_fit_are_refused_by_their_values)
{
    open_act(1);
    for (int i = 0; i < n_refused; i++)
        check_refused(pr.gpu, i);
    pair_close(&pr);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu operations");
    SRunner *sr;
    TCase *tc;
    int failed;

    if (!pair_present())
        return 77;
    sr = srunner_create(s);
    tc = add_case(s, "operations");
    tcase_add_loop_test(tc, rows_are_normalised_activated_and_gathered_as_on_the_cpu, 0, N_ACTS);
    tcase_add_test(tc, argmax_takes_the_lowest_index_of_a_tie);
    tcase_add_test(tc, draws_are_those_of_the_host_to_the_token);
    tcase_add_test(tc, a_batch_is_taken_with_the_ids_of_the_step_before);
    tcase_add_test(tc, converted_numbers_are_those_of_the_host);
    tcase_add_test(tc, arguments_that_do_not_fit_are_refused_by_their_values);
    tc = add_case(s, "products");
    tcase_add_loop_test(tc, products_agree_for_every_weight_type_and_number_of_tokens, 0,
                        N_ACTS * N_WEIGHTS);
    tcase_add_test(tc, products_with_converted_weights_agree_across_their_tiles);
    tcase_add_loop_test(tc, products_with_one_token_agree_for_all_widths, 0, N_ACTS);
    tcase_add_loop_test(tc, embeddings_are_rows_of_the_table, 0, N_ACTS * N_WEIGHTS);
    tc = add_case(s, "fused");
    tcase_add_loop_test(tc, fused_products_agree_with_the_cpu, 0, N_ACTS * N_WEIGHTS);
    tc = add_case(s, "few tokens");
    tcase_add_loop_test(tc, products_of_few_tokens_agree_however_they_are_cut, 0,
                        (int)EK_ARRAY_LEN(few_cases));
    tcase_add_loop_test(tc, tails_of_layers_agree_with_the_cpu, 0, (int)EK_ARRAY_LEN(tail_cases));
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    pair_report();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
