/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights: decoders against recorded vectors, products of every type against double precision, for
 * every instruction set of this machine; the same bits whatever the threads and the batch.
 */
#include "tests/kernels/support.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double TOLERANCE = 1e-6; /* of the sum of the terms' sizes */

START_TEST(decoders_agree_with_the_gguf_package)
{
    const char *dir = getenv("EK_FIXTURES");
    char *path = ek_path_join(dir ? dir : FIXTURES, "dequant.bin"), *file, *p;
    size_t n, records = 0;

    ck_assert_int_eq(ek_file_read(path, 1 << 20, &file, &n), EK_OK);
    for (p = file; p < file + n; records++) {
        char name[9] = "";
        uint32_t count, bytes;
        enum ek_dtype type;
        memcpy(name, p, 8);
        memcpy(&count, p + 8, 4);
        memcpy(&bytes, p + 12, 4);
        ck_assert(ek_dtype_from_name(name, &type));
        float *got = ek_calloc(count, sizeof(float));
        ck_assert_int_eq(ek_dequantize(type, p + 16, got, count), EK_OK);
        for (uint32_t i = 0; i < count; i++) {
            float want;
            memcpy(&want, p + 16 + bytes + i * 4, 4);
            ck_assert_msg(got[i] == want, "%s[%u]: %.9g, not %.9g", name, i, got[i], want);
        }
        free(got);
        p += 16 + bytes + (size_t)count * 4;
    }
    ck_assert_uint_eq(records, 10);
    free(file);
    free(path);
}
END_TEST

START_TEST(decoders_know_the_bytes_of_f8_and_refuse_integers)
{
    const uint8_t e4m3[] = {0x00, 0x01, 0x08, 0x38, 0xb8, 0x7e}, e5m2[] = {0x3c, 0xbc, 0x01, 0x7b};
    float f[6];

    ck_assert_int_eq(ek_dequantize(EK_F8_E4M3, e4m3, f, 6), EK_OK);
    ck_assert(f[0] == 0 && f[1] == 0x1p-9f && f[2] == 0x1p-6f && f[3] == 1 && f[4] == -1);
    ck_assert_float_eq(f[5], 448);
    ck_assert_int_eq(ek_dequantize(EK_F8_E5M2, e5m2, f, 4), EK_OK);
    ck_assert(f[0] == 1 && f[1] == -1 && f[2] == 0x1p-16f && f[3] == 57344);
    ck_assert_int_eq(ek_dequantize(EK_I32, e5m2, f, 1), EK_EUNSUPPORTED);
    ck_assert_int_eq(ek_dequantize(EK_Q4_0, e5m2, f, 33), EK_EFORMAT);
}
END_TEST

static void check_embed(struct ek_device *dev, const struct ek_mat *m, const float *values)
{
    const int32_t ids[] = {3, 0, (int32_t)m->rows - 1, 3}, bad[] = {(int32_t)m->rows, -1};
    float *out = ek_calloc(4 * (size_t)m->cols, sizeof(float));

    ck_assert_int_eq(dev->ops->embed(dev, m, ids, 4, out), EK_OK);
    for (int i = 0; i < 4; i++)
        for (uint32_t c = 0; c < m->cols; c++)
            ck_assert_msg(out[(uint32_t)i * m->cols + c] == values[(uint32_t)ids[i] * m->cols + c],
                          "%s row %d col %u", ek_dtype_name(m->dtype), ids[i], c);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(dev->ops->embed(dev, m, bad + i, 1, out), EK_EUSAGE);
    free(out);
}

static bool same_float(float a, float b)
{
    return a == b || (isnan(a) && isnan(b));
}

/* Decoding a matrix of one row of 256 weights with this head to each of its groups. */
static void check_head(struct ek_device *dev, enum ek_dtype type, const uint8_t head[4])
{
    size_t group = ek_dtype_block_bytes(type);
    const int32_t id = 0;
    float got[256], want[256];
    struct ek_mat m;
    uint8_t *b;

    ck_assert_int_eq(dev->ops->mat_new(dev, type, 1, 256, &m), EK_OK);
    b = m.data;
    for (size_t i = 0, q = 0; i < m.bytes; i++)
        b[i] = i % group < 4 ? head[i % group] : (uint8_t)q++;
    ck_assert_int_eq(ek_dequantize(type, b, want, 256), EK_OK);
    ck_assert_int_eq(dev->ops->embed(dev, &m, &id, 1, got), EK_OK);
    for (int i = 0; i < 256; i++)
        ck_assert_msg(same_float(got[i], want[i]), "%s [%d] under %02x%02x%02x%02x: %.9g, not %.9g",
                      ek_dtype_name(type), i, head[0], head[1], head[2], head[3], got[i], want[i]);
    dev->ops->mat_free(dev, &m);
}

START_TEST(groups_of_any_scale_and_every_byte_decode_as_the_reference)
{
    /* scales as half floats: 0, the least, below full precision, plain, the greatest,
     * not a number; as BF16, kind 1, the greatest is beyond sense */
    static const uint16_t scales[] = {0, 1, 0x8003, 0x0299, 0x2c55, 0xbc01, 0x7bff, 0x7fc1};
    static const uint8_t zeros[] = {0, 7, 15, 128, 255};
    struct ek_device *dev = open_cpu(simd_names[_i], 1);
    uint8_t head[4];

    for (enum ek_dtype t = EK_G4_32; dev && t <= EK_B8_128; t++)
        for (size_t s = 0; s < EK_ARRAY_LEN(scales); s++)
            for (size_t z = 0; z < EK_ARRAY_LEN(zeros); z++)
                for (uint8_t kind = 0; kind < (scales[s] == 0x7bff ? 1 : 2); kind++) {
                    memcpy(head, &scales[s], 2);
                    head[2] = t >= EK_B8_32 ? 0x80 : zeros[z];
                    head[3] = t >= EK_B8_32 ? 0x3c : kind;
                    check_head(dev, t, head);
                }
    ek_device_close(dev);
}
END_TEST

/* Returns the largest sum of the terms' sizes. */
static double expected(const float *x, size_t ldx, uint32_t n, const float *w, uint32_t rows,
                       uint32_t cols, const float *bias, double *out)
{
    double most = 0;

    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = 0; r < rows; r++) {
            double sum = bias ? bias[r] : 0, size = fabs(sum);
            for (uint32_t c = 0; c < cols; c++) {
                double term = (double)x[t * ldx + c] * w[(size_t)r * cols + c];
                sum += term;
                size += fabs(term);
            }
            out[(size_t)t * rows + r] = sum;
            most = fmax(most, size);
        }
    return most;
}

/* Products of m with n tokens in rows of stride ld, against the sums; each token alone gives the
 * same bits. */
static void check_linear(struct ek_device *dev, const struct ek_mat *m, const float *values,
                         uint32_t n, uint64_t *seed)
{
    uint32_t rows = m->rows, cols = m->cols;
    size_t ldx = cols + 5, ldo = rows + 3;
    float *x = random_floats(seed, n * ldx), *bias = random_floats(seed, rows);
    float *y = random_floats(seed, n * ldo), *alone = random_floats(seed, ldo);
    float *packed = ek_calloc((size_t)n * rows, sizeof(float));
    double *want = ek_calloc((size_t)n * rows, sizeof(double));

    double size = expected(x, ldx, n, values, rows, cols, bias, want);
    ck_assert_int_eq(dev->ops->linear(dev, x, ldx, n, m, bias, y, ldo, 0), EK_OK);
    for (uint32_t t = 0; t < n; t++)
        memcpy(packed + (size_t)t * rows, y + t * ldo, rows * sizeof(float));
    double error = largest_error(packed, want, (size_t)n * rows) / size;
    ck_assert_msg(error < TOLERANCE, "%s %u x %u, %u tokens: error %g", ek_dtype_name(m->dtype),
                  rows, cols, n, error);
    for (uint32_t t = 0; t < n; t++) {
        ck_assert_int_eq(dev->ops->linear(dev, x + t * ldx, ldx, 1, m, bias, alone, ldo, 0), EK_OK);
        ck_assert_msg(memcmp(alone, y + t * ldo, rows * sizeof(float)) == 0,
                      "%s %u x %u: token %u of %u alone differs", ek_dtype_name(m->dtype), rows,
                      cols, t, n);
    }
    free(x);
    free(bias);
    free(y);
    free(alone);
    free(packed);
    free(want);
}

static void check_type(struct ek_device *dev, enum ek_dtype type)
{
    static const uint32_t counts[] = {1, 2, 3, 5, 6, 7, 13, 40};
    static const uint32_t shapes[][2] = {{1, 256}, {7, 512}, {67, 1280}, {50, 48}, {9, 31}};
    uint64_t seed = 11 + (uint64_t)type;

    for (size_t s = 0; s < EK_ARRAY_LEN(shapes); s++) {
        float *values;
        if (shapes[s][1] % ek_dtype_block(type))
            continue;
        struct ek_mat m = random_mat(dev, type, shapes[s][0], shapes[s][1], &seed, &values);
        if (shapes[s][0] > 3)
            check_embed(dev, &m, values);
        for (size_t k = 0; k < EK_ARRAY_LEN(counts); k++)
            check_linear(dev, &m, values, counts[k], &seed);
        dev->ops->mat_free(dev, &m);
        free(values);
    }
}

START_TEST(products_of_every_type_are_right_alone_and_in_a_batch)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);

    for (size_t k = 0; dev && k < n_weight_types; k++)
        check_type(dev, weight_types[k]);
    ek_device_close(dev);
}
END_TEST

/* One product on a device with so many threads; freed by the caller. */
static float *product_of(const char *simd, int threads, enum ek_dtype type, uint32_t n,
                         uint32_t rows, uint32_t cols)
{
    struct ek_device *dev = open_cpu(simd, threads);
    uint64_t seed = 5;
    float *values, *x, *y;

    if (!dev)
        return NULL;
    struct ek_mat m = random_mat(dev, type, rows, cols, &seed, &values);
    x = random_floats(&seed, (size_t)n * cols);
    y = random_floats(&seed, (size_t)n * rows);
    ck_assert_int_eq(dev->ops->linear(dev, x, cols, n, &m, NULL, y, rows, 0), EK_OK);
    ek_device_close(dev);
    free(values);
    free(x);
    return y;
}

START_TEST(one_thread_and_two_give_the_same_bits)
{
    static const uint32_t counts[] = {1, 4, 37, 130};
    static const enum ek_dtype types[] = {EK_F32, EK_BF16, EK_Q4_1, EK_Q6_K};

    for (size_t t = 0; t < EK_ARRAY_LEN(types); t++)
        for (size_t k = 0; k < EK_ARRAY_LEN(counts); k++) {
            float *one = product_of(simd_names[_i], 1, types[t], counts[k], 203, 768);
            float *two = product_of(simd_names[_i], 2, types[t], counts[k], 203, 768);
            if (one)
                ck_assert_mem_eq(one, two, counts[k] * 203 * sizeof(float));
            free(one);
            free(two);
        }
}
END_TEST

static double gelu(double x, int flags)
{
    if (flags & EK_LINEAR_GELU)
        return 0.5 * x * (1 + erf(x / sqrt(2)));
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

START_TEST(epilogues_add_and_bend)
{
    static const int flags[] = {EK_LINEAR_ADD, EK_LINEAR_GELU, EK_LINEAR_GELU_TANH,
                                EK_LINEAR_OUT_F32, EK_LINEAR_ADD | EK_LINEAR_GELU};
    struct ek_device *dev = open_cpu(simd_names[_i], 2);
    enum { N = 9, ROWS = 37, COLS = 64 };
    uint64_t seed = 2;
    float *values;
    double want[N * ROWS];

    if (!dev)
        return;
    struct ek_mat m = random_mat(dev, EK_F32, ROWS, COLS, &seed, &values);
    for (size_t f = 0; f < EK_ARRAY_LEN(flags); f++) {
        float *x = random_floats(&seed, N * COLS), *y = random_floats(&seed, N * ROWS);
        for (int i = 0; i < N * COLS; i++)
            x[i] *= 0.2f;
        double size = expected(x, COLS, N, values, ROWS, COLS, NULL, want);
        for (int i = 0; i < N * ROWS; i++) {
            if (flags[f] & (EK_LINEAR_GELU | EK_LINEAR_GELU_TANH))
                want[i] = gelu(want[i], flags[f]);
            if (flags[f] & EK_LINEAR_ADD)
                want[i] += y[i];
        }
        ck_assert_int_eq(dev->ops->linear(dev, x, COLS, N, &m, NULL, y, ROWS, flags[f]), EK_OK);
        ck_assert_double_lt(largest_error(y, want, N * ROWS) / size, TOLERANCE);
        free(x);
        free(y);
    }
    free(values);
    ek_device_close(dev);
}
END_TEST

/* norm_linear and norm_gate_up against norm, linear and swiglu one after the other. */
static void check_fused(struct ek_device *dev, uint32_t n, uint32_t cols, enum ek_dtype type)
{
    enum { ROWS = 45 };
    uint64_t seed = 8;
    struct ek_mat mats[2];
    float *values[2], *x = random_floats(&seed, (size_t)n * cols);
    float *weight = random_floats(&seed, cols), *bias = random_floats(&seed, ROWS);
    float *normed = random_floats(&seed, (size_t)n * cols), *gated = ek_calloc(n, ROWS * 4);
    float *fused = ek_calloc(n, 2 * ROWS * 4), *plain = ek_calloc(n, 2 * ROWS * 4);
    const float *biases[2] = {NULL, bias};

    for (int i = 0; i < 2; i++)
        mats[i] = random_mat(dev, type, ROWS, cols, &seed, &values[i]);
    dev->ops->rms_norm(dev, x, cols, weight, 1e-5f, n, cols, normed, cols);
    for (int i = 0; i < 2; i++)
        dev->ops->linear(dev, normed, cols, n, &mats[i], biases[i], plain + i * ROWS, 2 * ROWS, 0);
    ck_assert_int_eq(
        dev->ops->norm_linear(dev, x, weight, 1e-5f, n, mats, 2, biases, fused, 2 * ROWS), EK_OK);
    ck_assert_mem_eq(fused, plain, (size_t)n * 2 * ROWS * 4);
    for (int i = 0; i < 2; i++)
        dev->ops->linear(dev, normed, cols, n, &mats[i], NULL, plain + i * ROWS, 2 * ROWS, 0);
    dev->ops->swiglu(dev, plain, 2 * ROWS, n, ROWS, gated, ROWS);
    ck_assert_int_eq(dev->ops->norm_gate_up(dev, x, weight, 1e-5f, n, mats, fused, ROWS), EK_OK);
    ck_assert_mem_eq(fused, gated, (size_t)n * ROWS * 4);
    for (int i = 0; i < 2; i++) {
        dev->ops->mat_free(dev, &mats[i]);
        free(values[i]);
    }
    free(x), free(weight), free(bias), free(normed), free(gated), free(fused), free(plain);
}

START_TEST(fused_operations_equal_their_parts)
{
    struct ek_device *dev = open_cpu(simd_names[_i], 2);

    for (uint32_t n = 1; dev && n < 120; n += 29) {
        check_fused(dev, n, 96, EK_Q5_0);
        check_fused(dev, n, 72, EK_BF16);
    }
    ek_device_close(dev);
}
END_TEST

START_TEST(impossible_matrices_are_refused)
{
    struct ek_device *dev = open_cpu("c", 1);
    struct ek_mat m;

    ck_assert_int_eq(dev->ops->mat_new(dev, EK_I32, 2, 2, &m), EK_EUNSUPPORTED);
    ck_assert_int_eq(dev->ops->mat_new(dev, EK_Q4_K, 2, 300, &m), EK_EFORMAT);
    ck_assert_int_eq(dev->ops->mat_new(dev, EK_F32, 0, 4, &m), EK_EFORMAT);
    ek_device_close(dev);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("products");
    TCase *tc = tcase_create("products");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_test(tc, decoders_agree_with_the_gguf_package);
    tcase_add_test(tc, decoders_know_the_bytes_of_f8_and_refuse_integers);
    tcase_add_loop_test(tc, groups_of_any_scale_and_every_byte_decode_as_the_reference, 0, N_SIMD);
    tcase_add_loop_test(tc, products_of_every_type_are_right_alone_and_in_a_batch, 0, N_SIMD);
    tcase_add_loop_test(tc, one_thread_and_two_give_the_same_bits, 0, N_SIMD);
    tcase_add_loop_test(tc, epilogues_add_and_bend, 0, N_SIMD);
    tcase_add_loop_test(tc, fused_operations_equal_their_parts, 0, N_SIMD);
    tcase_add_test(tc, impossible_matrices_are_refused);
    tcase_set_timeout(tc, 120);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
