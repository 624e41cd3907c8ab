/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/support.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const simd_names[] = {"c", "avx2", "avx512"};
const enum ek_dtype weight_types[] = {EK_F32,    EK_F16,   EK_BF16,  EK_F8_E4M3, EK_F8_E5M2,
                                      EK_Q4_0,   EK_Q4_1,  EK_Q5_0,  EK_Q5_1,    EK_Q8_0,
                                      EK_Q4_K,   EK_Q5_K,  EK_Q6_K,  EK_G4_32,   EK_G4_64,
                                      EK_G4_128, EK_G8_32, EK_G8_64, EK_G8_128,  EK_B8_32,
                                      EK_B8_64,  EK_B8_128};
const size_t n_weight_types = EK_ARRAY_LEN(weight_types);

int n_cores(void)
{
    struct ek_device_spec spec = {.name = "cpu:0", .backend = "cpu"};
    struct ek_device *dev;
    int n;

    ck_assert_int_eq(ek_device_open(&spec, EK_F32, &dev), EK_OK);
    n = (int)dev->info.n_units;
    ek_device_close(dev);
    return n;
}

struct ek_device *open_cpu(const char *simd, int n_threads)
{
    struct ek_device_spec *specs;
    struct ek_device *dev = NULL;
    char text[64];
    size_t n;

    setenv("EK_SIMD", simd, 1);
    snprintf(text, sizeof(text), "cpu:0/threads=0-%d", n_threads - 1);
    ck_assert_int_eq(ek_device_specs_parse(text, &specs, &n), EK_OK);
    if (n_threads > 1 && n_cores() < n_threads)
        specs[0].threads[0] = 0; /* all there are */
    if (ek_device_open(&specs[0], EK_F32, &dev) != EK_OK)
        ck_assert_ptr_nonnull(strstr(ek_last_error(), "not available on this processor"));
    free(specs);
    return dev;
}

float *random_floats(uint64_t *seed, size_t n)
{
    float *x = ek_calloc(n + 1, sizeof(*x));

    ck_assert_ptr_nonnull(x);
    for (size_t i = 0; i < n; i++)
        x[i] = ek_random_normal(seed);
    return x;
}

/* The two bytes of a half float of a fitting size. */
static void put_scale(uint8_t *p, uint64_t *seed)
{
    uint16_t h = ek_f32_to_f16(ek_random_normal(seed) * 0.05f);

    memcpy(p, &h, sizeof(h));
}

/* The head of a group: F16 or BF16 scale and a zero, or an F32 scale before E4M3 without NaN. */
static void put_group(enum ek_dtype type, uint8_t *b, uint64_t *seed)
{
    float scale = ek_random_normal(seed) * 0.05f;
    uint16_t half;

    if (type >= EK_B8_32) {
        memcpy(b, &scale, sizeof(scale));
        for (size_t i = 0; i < ek_dtype_block(type); i++)
            b[4 + i] &= 0xbf;
        return;
    }
    b[3] &= 1;
    if (type <= EK_G4_128)
        b[2] &= 15;
    half = b[3] ? ek_f32_to_bf16(scale) : ek_f32_to_f16(scale);
    memcpy(b, &half, sizeof(half));
}

static void fill_blocks(enum ek_dtype type, uint8_t *p, size_t n, uint64_t *seed)
{
    size_t bytes = ek_dtype_block_bytes(type), n_blocks = n / ek_dtype_block(type);
    bool two = type == EK_Q4_1 || type == EK_Q5_1 || type == EK_Q4_K || type == EK_Q5_K;

    for (size_t i = 0; i < n_blocks * bytes; i++)
        p[i] = (uint8_t)ek_random_u64(seed);
    for (size_t i = 0; i < n_blocks; i++, p += bytes) {
        if (type >= EK_G4_32)
            put_group(type, p, seed);
        else
            put_scale(type == EK_Q6_K ? p + 208 : p, seed);
        if (two)
            put_scale(p + 2, seed);
    }
}

void fill_random(enum ek_dtype type, void *data, size_t n, uint64_t *seed)
{
    uint16_t *half = data;
    uint8_t *byte = data;
    float *f = data;

    if (type >= EK_Q4_0)
        fill_blocks(type, data, n, seed);
    for (size_t i = 0; type < EK_Q4_0 && i < n; i++) {
        float v = ek_random_normal(seed);
        if (type == EK_F32)
            f[i] = v;
        else if (type == EK_F16)
            half[i] = ek_f32_to_f16(v);
        else if (type == EK_BF16)
            half[i] = ek_f32_to_bf16(v);
        else /* F8: below the exponents of infinity and NaN */
            byte[i] = (uint8_t)(ek_random_u64(seed) & 0xbf);
    }
}

struct ek_mat random_mat(struct ek_device *dev, enum ek_dtype type, uint32_t rows, uint32_t cols,
                         uint64_t *seed, float **values)
{
    size_t n = (size_t)rows * cols;
    struct ek_mat m;
    void *bytes;

    ck_assert_int_eq(dev->ops->mat_new(dev, type, rows, cols, &m), EK_OK);
    bytes = ek_calloc(m.bytes, 1);
    *values = ek_calloc(n, sizeof(float));
    ck_assert(bytes && *values);
    fill_random(type, bytes, n, seed);
    ck_assert_int_eq(ek_dequantize(type, bytes, *values, n), EK_OK);
    ck_assert_int_eq(dev->ops->upload(dev, m.data, bytes, m.bytes), EK_OK);
    ck_assert_int_eq(dev->ops->mat_ready(dev, &m), EK_OK);
    free(bytes);
    return m;
}

double largest_error(const float *a, const double *b, size_t n)
{
    double error = 0;

    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        error = d > error || isnan(d) ? d : error;
    }
    return error;
}

double relative_error(const float *a, const double *b, size_t n)
{
    double most = 1e-30;

    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs(b[i]));
    return largest_error(a, b, n) / most;
}
