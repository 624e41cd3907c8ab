/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations of vision towers against plain loops in double precision.
 */
#include "tests/kernels/support.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double TOLERANCE = 3e-6;

/* ---- Dense attention ----------------------------------------------------------------------------
 */
enum { HEADS = 3, MARGIN = 5 };

/* Heads of the towers, and odd ones; segments shorter and longer than any block. */
static const uint32_t head_dims[] = {4, 12, 72, 80, 129};
static const int32_t segments[] = {0, 1, 65, 66, 190, 447};
enum { N_SEGMENTS = EK_ARRAY_LEN(segments) - 1 };

static void head_plainly(const float *qkv, size_t ld, int32_t row, const int32_t range[2],
                         uint32_t head, uint32_t dim, double *out)
{
    const float *q = qkv + (size_t)row * ld + (size_t)head * dim;
    double sum = 0;

    for (uint32_t d = 0; d < dim; d++)
        out[d] = 0;
    for (int32_t j = range[0]; j < range[1]; j++) {
        const float *k = qkv + (size_t)j * ld + (size_t)(HEADS + head) * dim;
        double dot = 0, p;
        for (uint32_t d = 0; d < dim; d++)
            dot += (double)q[d] * k[d];
        p = exp(dot / sqrt(dim));
        sum += p;
        for (uint32_t d = 0; d < dim; d++)
            out[d] += p * k[(size_t)HEADS * dim + d];
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] /= sum;
}

static void attention_of(struct ek_device *dev, uint32_t dim, uint64_t *seed)
{
    uint32_t n = (uint32_t)segments[N_SEGMENTS], width = HEADS * dim;
    size_t ld = 3 * width + MARGIN, ldo = width + MARGIN;
    float *qkv = random_floats(seed, n * ld), *out = random_floats(seed, n * ldo);
    double *want = ek_calloc(width, sizeof(*want));

    ck_assert_int_eq(dev->ops->attention_dense(dev, qkv, ld, n, segments, N_SEGMENTS, 300, HEADS,
                                               dim, 1.0f / sqrtf((float)dim), out, ldo),
                     EK_OK);
    for (uint32_t s = 0; s < N_SEGMENTS; s++)
        for (int32_t row = segments[s]; row < segments[s + 1]; row++) {
            for (uint32_t h = 0; h < HEADS; h++)
                head_plainly(qkv, ld, row, segments + s, h, dim, want + (size_t)h * dim);
            ck_assert_double_lt(relative_error(out + (size_t)row * ldo, want, width), TOLERANCE);
        }
    free(qkv), free(out), free(want);
}

START_TEST(every_row_of_a_segment_attends_to_all_of_it)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);
    uint64_t seed = 5;

    for (size_t i = 0; dev && i < EK_ARRAY_LEN(head_dims); i++)
        attention_of(dev, head_dims[i], &seed);
    ek_device_close(dev);
}
END_TEST

START_TEST(large_scores_do_not_overflow)
{
    enum { N = 70, DIM = 16 };
    static const int32_t one[] = {0, N};
    struct ek_device *dev = open_cpu(simd_names[_i], 1);
    uint64_t seed = 6;
    float *qkv = random_floats(&seed, (size_t)N * 3 * DIM), out[N * DIM];

    for (size_t i = 0; i < (size_t)N * 3 * DIM; i++)
        qkv[i] *= 100.0f;
    if (dev != NULL)
        ck_assert_int_eq(dev->ops->attention_dense(dev, qkv, 3 * DIM, N, one, 1, N, 1, DIM, 1.0f,
                                                   out, DIM),
                         EK_OK);
    for (int i = 0; dev && i < N * DIM; i++)
        ck_assert(isfinite(out[i]));
    free(qkv);
    ek_device_close(dev);
}
END_TEST

START_TEST(segments_out_of_order_are_refused)
{
    static const int32_t bad[][3] = {{0, 0, 2}, {0, 2, 1}, {0, 1, 9}, {0, 1, 4}, {1, 2, 5}};
    struct ek_device *dev = open_cpu("c", 1);
    float qkv[5 * 3] = {0}, out[5];

    for (size_t i = 0; i < EK_ARRAY_LEN(bad); i++)
        ck_assert_int_eq(
            dev->ops->attention_dense(dev, qkv, 3, 5, bad[i], 2, 4, 1, 1, 1.0f, out, 1), EK_EUSAGE);
    ek_device_close(dev);
}
END_TEST

/* ---- Rotation -----------------------------------------------------------------------------------
 */
START_TEST(rows_are_rotated_by_both_their_positions)
{
    enum { N = 7, ROTATED = 2, DIM = 12, HALF = DIM / 2, LD = 3 * DIM };
    static const float inv_freq[HALF] = {1.0f, 0.3f, 0.01f, 1.0f, 0.3f, 0.01f};
    static const int32_t positions[2 * N] = {0, 0, 1, 1, 90, 91, 2, 0, 1, 0, 1, 3, 200, 7};
    static const struct ek_rope rope = {
        .inv_freq = inv_freq, .dim = DIM, .sections = {3, 3, 0}, .amplitude = 1};
    struct ek_device *dev = open_cpu(simd_names[_i], 1);
    uint64_t seed = 7;
    float *x = random_floats(&seed, (size_t)N * LD), y[N * LD];

    memcpy(y, x, sizeof(y));
    if (dev != NULL)
        ck_assert_int_eq(dev->ops->rope_rows(dev, y, LD, &rope, positions, N, ROTATED, DIM), EK_OK);
    for (int i = 0; dev && i < N * LD; i++) {
        int row = i / LD, at = i % LD, d = at % DIM, f = d % HALF;
        double angle = (double)positions[(f >= 3 ? N : 0) + row] * inv_freq[f];
        double other = d < HALF ? -x[i + HALF] : x[i - HALF];
        double want = at < ROTATED * DIM ? x[i] * cos(angle) + other * sin(angle) : x[i];
        ck_assert_double_le(fabs(y[i] - want), 1e-5);
    }
    free(x);
    ek_device_close(dev);
}
END_TEST

/* ---- Rows ---------------------------------------------------------------------------------------
 */
START_TEST(rows_go_to_their_places)
{
    enum { N = 3, DIM = 5, LD = 6 };
    static const int32_t rows[N] = {4, 0, 3}, back[N + 1] = {4, -1, 0, 3}, wrong[1] = {-1};
    struct ek_device *dev = open_cpu("c", 1);
    float x[N * DIM], out[5 * LD] = {0}, again[(N + 1) * DIM];

    for (int i = 0; i < N * DIM; i++)
        x[i] = (float)i + 1;
    ck_assert_int_eq(dev->ops->scatter_rows(dev, x, rows, N, DIM, out, LD), EK_OK);
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(memcmp(out + rows[i] * LD, x + (ptrdiff_t)i * DIM, DIM * sizeof(*x)), 0);
    for (int i = 0; i < 5; i++)
        ck_assert(out[i * LD + DIM] == 0 && (i == 4 || i == 0 || i == 3 || out[i * LD] == 0));
    ck_assert_int_eq(dev->ops->gather(dev, out, LD, back, N + 1, DIM, again), EK_OK);
    ck_assert_int_eq(memcmp(again, x, DIM * sizeof(*x)), 0);
    ck_assert_int_eq(memcmp(again + 2 * DIM, x + DIM, 2 * DIM * sizeof(*x)), 0);
    for (int i = 0; i < DIM; i++)
        ck_assert(again[DIM + i] == 0);
    ck_assert_int_eq(dev->ops->scatter_rows(dev, x, wrong, 1, DIM, out, LD), EK_EUSAGE);
    ek_device_close(dev);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("vision kernels");
    TCase *tc = tcase_create("vision");
    SRunner *r;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, every_row_of_a_segment_attends_to_all_of_it, 0, N_SIMD);
    tcase_add_loop_test(tc, large_scores_do_not_overflow, 0, N_SIMD);
    tcase_add_test(tc, segments_out_of_order_are_refused);
    tcase_add_loop_test(tc, rows_are_rotated_by_both_their_positions, 0, N_SIMD);
    tcase_add_test(tc, rows_go_to_their_places);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
