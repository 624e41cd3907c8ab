/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations of vision towers of the CUDA backend against the CPU backend: ragged segments, windows
 * and long ones, heads that fill a tile and heads that do not, rows wider than what they hold.
 */
#include "tests/gpu/gpu.h"

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

    seed = 2000 + (uint64_t)i;
    ck_assert_msg(why == NULL, "%s", why);
}

/* ---- attention ----------------------------------------------------------------------------------
 */
#define MAX_SEGMENTS 40
struct segments {
    uint32_t n, lengths[MAX_SEGMENTS];
};

/* n segments of 1 to most rows. */
static struct segments random_segments(uint32_t n, uint32_t most)
{
    struct segments s = {.n = n};

    for (uint32_t i = 0; i < n; i++)
        s.lengths[i] = 1 + (uint32_t)(ek_random_u64(&seed) % most);
    return s;
}

/* Rounding of a score of thousands is that of its exponent: large is what it may add. */
static void check_dense(const struct segments *s, uint32_t heads, uint32_t dim, float scale,
                        double large)
{
    int32_t starts[MAX_SEGMENTS + 1] = {0};
    uint32_t most = 0, pad = dim % 8 ? 3 : 8, width = heads * dim;
    size_t ld = 3 * (size_t)width + pad, ldo = width + pad, n;
    struct both qkv, out, index;
    char what[96];

    for (uint32_t i = 0; i < s->n; i++) {
        starts[i + 1] = starts[i] + (int32_t)s->lengths[i];
        most = s->lengths[i] > most ? s->lengths[i] : most;
    }
    n = (size_t)starts[s->n];
    qkv = both_random(&pr, n * ld, scale, &seed);
    out = both_new(&pr, n * ldo);
    index = both_ints(&pr, starts, s->n + 1);
    need(pr.gpu->ops->attention_dense(pr.gpu, qkv.gpu, ld, (uint32_t)n, index.gpu, s->n, most,
                                      heads, dim, 1 / sqrtf((float)dim), out.gpu, ldo));
    need(pr.cpu->ops->attention_dense(pr.cpu, qkv.cpu, ld, (uint32_t)n, index.cpu, s->n, most,
                                      heads, dim, 1 / sqrtf((float)dim), out.cpu, ldo));
    snprintf(what, sizeof(what), "attention of %u segments of up to %u rows, %u heads of %u", s->n,
             most, heads, dim);
    need_close(what, both_error(&pr, &out), tolerance(pr.act) + large);
    both_free(&pr, &qkv);
    both_free(&pr, &out);
    both_free(&pr, &index);
}

START_TEST(every_row_attends_to_its_segment_as_on_the_cpu)
{
    static const uint32_t dims[] = {72, 80, 8, 64, 104, 128, 12, 129};
    static const struct segments fixed[] = {
        {1, {1}},        {1, {64}},          {1, {65}},
        {2, {128, 129}}, {3, {729, 1, 729}}, {4, {64, 64, 48, 1}},
        {1, {1025}},
    };

    open_act(_i);
    for (size_t d = 0; d < EK_ARRAY_LEN(dims); d++) {
        for (size_t i = 0; i < EK_ARRAY_LEN(fixed); i++)
            check_dense(&fixed[i], 3, dims[d], 1, 0);
        for (uint32_t most = 16; most <= 400; most *= 5) { /* windows, then longer ones */
            struct segments s = random_segments(MAX_SEGMENTS, most);
            check_dense(&s, 2, dims[d], 1, 0);
        }
    }
    pair_close(&pr);
}
END_TEST

/* Scores of thousands: nothing overflows, and the largest wins. */
START_TEST(large_scores_stay_finite)
{
    static const struct segments s = {2, {200, 40}};

    open_act(_i);
    check_dense(&s, 2, 80, 20, 5e-4);
    pair_close(&pr);
}
END_TEST

/* ---- rotation -----------------------------------------------------------------------------------
 */
static const struct {
    uint32_t n, heads, rotated, dim, rope, pad;
    bool interleaved;
} ropes[] = {
    {1, 16, 32, 80, 80, 0, false}, {77, 16, 32, 80, 80, 8, false}, {9, 2, 3, 8, 8, 1, false},
    {5, 3, 4, 64, 32, 0, false},   {33, 2, 2, 72, 72, 0, false},   {6, 2, 6, 40, 20, 5, true},
};

static void check_rope(size_t c)
{
    uint32_t n = ropes[c].n, half = ropes[c].rope / 2, dim = ropes[c].dim;
    size_t ld = 3 * (size_t)ropes[c].heads * dim + ropes[c].pad;
    struct both x = both_random(&pr, n * ld, 1, &seed), index, freq;
    int32_t positions[2 * 80];
    float f[64];
    struct ek_rope gpu = {.dim = 2 * half, .interleaved = ropes[c].interleaved, .amplitude = 1},
                   cpu;

    for (uint32_t i = 0; i < half; i++) /* as towers have them: h, then w, each half of them */
        f[i] = powf(10000.0f, -2.0f * (float)(i % (half / 2)) / (float)half);
    for (uint32_t i = 0; i < 2 * n; i++)
        positions[i] = (int32_t)(ek_random_u64(&seed) % 256);
    index = both_ints(&pr, positions, 2 * n);
    freq = both_ints(&pr, (const int32_t *)f, half);
    gpu.sections[0] = half / 2;
    gpu.sections[1] = half - half / 2;
    cpu = gpu;
    gpu.inv_freq = freq.gpu;
    cpu.inv_freq = freq.cpu;
    need(pr.gpu->ops->rope_rows(pr.gpu, x.gpu, ld, &gpu, index.gpu, n, ropes[c].rotated, dim));
    need(pr.cpu->ops->rope_rows(pr.cpu, x.cpu, ld, &cpu, index.cpu, n, ropes[c].rotated, dim));
    need_close("rope_rows", both_error(&pr, &x), tolerance(pr.act));
    both_free(&pr, &x);
    both_free(&pr, &index);
    both_free(&pr, &freq);
}

START_TEST(rows_are_rotated_by_both_their_positions)
{
    open_act(_i);
    for (size_t c = 0; c < EK_ARRAY_LEN(ropes); c++)
        check_rope(c);
    pair_close(&pr);
}
END_TEST

/* ---- rows ---------------------------------------------------------------------------------------
 */
START_TEST(rows_go_to_their_places_and_the_others_stay)
{
    enum { N = 9, ROWS = 20, DIM = 37, LD = 40 };
    static const int32_t rows[N] = {19, 0, 3, 7, 8, 1, 12, 11, 4};
    struct both x, out, index;

    open_act(_i);
    x = both_floats(&pr, (size_t)N * DIM, 0, 1, &seed);
    out = both_random(&pr, (size_t)ROWS * LD, 1, &seed);
    index = both_ints(&pr, rows, N);
    need(pr.gpu->ops->scatter_rows(pr.gpu, x.gpu, index.gpu, N, DIM, out.gpu, LD));
    need(pr.cpu->ops->scatter_rows(pr.cpu, x.cpu, index.cpu, N, DIM, out.cpu, LD));
    need_close("scatter_rows", both_error(&pr, &out), tolerance(pr.act));
    both_free(&pr, &x);
    both_free(&pr, &out);
    both_free(&pr, &index);
    pair_close(&pr);
}
END_TEST

/* ---- products of towers -------------------------------------------------------------------------
 */
/* Rows that 16-byte pieces do not divide; GELU with the product's bias. */
static void check_product(enum ek_dtype t, uint32_t rows, uint32_t cols, uint32_t n, int flags,
                          bool bias)
{
    size_t ldx = ek_round_up(cols, 8);
    struct both x = both_random(&pr, n * ldx, 1, &seed), b = both_floats(&pr, rows, 0, 1, &seed);
    struct both out = both_random(&pr, (size_t)n * rows, 1, &seed);
    struct ek_mat g, c;
    char what[96];

    mats_random(&pr, t, rows, cols, 1 / sqrtf((float)cols), &seed, &g, &c);
    need(pr.gpu->ops->linear(pr.gpu, x.gpu, ldx, n, &g, bias ? b.gpu : NULL, out.gpu, rows, flags));
    need(pr.cpu->ops->linear(pr.cpu, x.cpu, ldx, n, &c, bias ? b.cpu : NULL, out.cpu, rows, flags));
    snprintf(what, sizeof(what), "linear %s %ux%u, %u rows, flags %d, bias %d", ek_dtype_name(t),
             rows, cols, n, flags, bias);
    need_close(what, both_error(&pr, &out), tolerance(pr.act));
    mats_free(&pr, &g, &c);
    both_free(&pr, &x);
    both_free(&pr, &b);
    both_free(&pr, &out);
}

START_TEST(products_of_towers_agree)
{
    static const uint32_t rows[] = {1, 5, 40, 333};

    enum ek_dtype t = acts[_i / N_ACTS]; /* of weights, whatever the activations are */

    open_act(_i);
    for (size_t i = 0; i < EK_ARRAY_LEN(rows); i++) {
        check_product(t, 64, 3420, rows[i], EK_LINEAR_ADD, true);
        check_product(t, 96, 1176, rows[i], 0, false);
        check_product(t, 80, 588, rows[i], EK_LINEAR_ADD, true);
        check_product(t, 256, 288, rows[i], EK_LINEAR_GELU_TANH, true);
        check_product(t, 130, 288, rows[i], EK_LINEAR_GELU_TANH, false);
        check_product(t, 64, 288, rows[i], EK_LINEAR_GELU, true);
    }
    pair_close(&pr);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu vision");
    TCase *tc = tcase_create("vision");
    SRunner *sr;
    int failed;

    if (!pair_present())
        return 77;
    sr = srunner_create(s);
    suite_add_tcase(s, tc);
    tcase_set_timeout(tc, 0);
    tcase_add_loop_test(tc, every_row_attends_to_its_segment_as_on_the_cpu, 0, N_ACTS);
    tcase_add_loop_test(tc, large_scores_stay_finite, 0, N_ACTS);
    tcase_add_loop_test(tc, rows_are_rotated_by_both_their_positions, 0, N_ACTS);
    tcase_add_loop_test(tc, rows_go_to_their_places_and_the_others_stay, 0, N_ACTS);
    tcase_add_loop_test(tc, products_of_towers_agree, 0, N_ACTS * N_ACTS);
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    pair_report();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
