/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/gpu/gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#define MANY ((size_t)1 << 19)

size_t element(enum ek_dtype t)
{
    return ek_dtype_block_bytes(t);
}

void widen(const void *x, enum ek_dtype t, float *out, size_t n)
{
    const uint16_t *h = x;

    if (t == EK_F32)
        memcpy(out, x, n * sizeof(float));
    for (size_t i = 0; i < n && t != EK_F32; i++)
        out[i] = t == EK_BF16 ? ek_bf16_to_f32(h[i]) : ek_f16_to_f32(h[i]);
}

void narrow(const float *x, enum ek_dtype t, void *out, size_t n)
{
    uint16_t *h = out;

    if (t == EK_F32)
        memcpy(out, x, n * sizeof(float));
    for (size_t i = 0; i < n && t != EK_F32; i++)
        h[i] = t == EK_BF16 ? ek_f32_to_bf16(x[i]) : ek_f32_to_f16(x[i]);
}

static struct ek_device *open_one(const char *text, enum ek_dtype act)
{
    struct ek_device_spec *specs = NULL;
    struct ek_device *dev = NULL;
    size_t n = 0;

    if (ek_device_specs_parse(text, &specs, &n) == EK_OK && n == 1)
        (void)!ek_device_open(&specs[0], act, &dev);
    free(specs);
    return dev;
}

/* ---- bits: of what is read from GPUs, in the order of the tests */
static const struct ek_ops *own;
static struct ek_ops noting;
static uint64_t bits = 0xcbf29ce484222325u, n_bytes;

static enum ek_status noted_download(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    enum ek_status st = own->download(dev, dst, src, n);
    uint64_t word;

    for (size_t i = 0; st == EK_OK && i < n; i += sizeof(word)) {
        word = 0;
        memcpy(&word, (const char *)dst + i, n - i < sizeof(word) ? n - i : sizeof(word));
        bits = (bits ^ word) * 0x100000001b3u;
        bits ^= bits >> 29;
    }
    n_bytes += n;
    return st;
}

static void note_downloads(struct ek_device *gpu)
{
    own = gpu->ops;
    noting = *own;
    noting.download = noted_download;
    gpu->ops = &noting;
}

void pair_report(void)
{
    printf("bits %016llx of %llu bytes\n", (unsigned long long)bits, (unsigned long long)n_bytes);
}

const char *pair_open(struct pair *p, enum ek_dtype act)
{
    p->act = act;
    p->cpu = NULL;
    if ((p->gpu = open_one("cuda:0", act)) == NULL)
        return ek_last_error();
    note_downloads(p->gpu);
    if ((p->cpu = open_one("cpu:0", EK_F32)) == NULL) {
        pair_close(p);
        return ek_last_error();
    }
    return NULL;
}

void pair_close(struct pair *p)
{
    ek_device_close(p->gpu);
    ek_device_close(p->cpu);
    p->gpu = p->cpu = NULL;
}

bool pair_present(void)
{
    struct pair p;
    const char *why = pair_open(&p, EK_F32);

    if (why)
        printf("skipped: %s\n", why);
    else
        pair_close(&p);
    return why == NULL;
}

TCase *add_case(Suite *s, const char *name)
{
    TCase *tc = tcase_create(name);

    suite_add_tcase(s, tc);
    tcase_set_timeout(tc, 0);
    return tc;
}

/* ---- data --------------------------------------------------------------------------------------
 */
static void put(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    ck_assert_msg(dev->ops->upload(dev, dst, src, n) == EK_OK, "%s", ek_last_error());
    ck_assert_msg(dev->ops->sync(dev) == EK_OK, "%s", ek_last_error());
}

static void *take(struct ek_device *dev, size_t n)
{
    void *p = NULL;

    ck_assert_msg(dev->ops->alloc(dev, EK_TAG_ACTIVATIONS, n, &p) == EK_OK, "%s", ek_last_error());
    return p;
}

static struct both both_of(struct pair *p, const float *v, size_t n)
{
    struct both b = {take(p->gpu, n * element(p->act)), take(p->cpu, n * sizeof(float)), n};
    float *rounded = malloc(n * sizeof(float));
    void *narrowed = malloc(n * sizeof(float));

    ck_assert(rounded && narrowed);
    narrow(v, p->act, narrowed, n);
    widen(narrowed, p->act, rounded, n);
    put(p->gpu, b.gpu, narrowed, n * element(p->act));
    put(p->cpu, b.cpu, rounded, n * sizeof(float));
    free(rounded);
    free(narrowed);
    return b;
}

static float *random_floats(size_t n, float base, float scale, uint64_t *seed)
{
    float *v = malloc(n * sizeof(float));

    ck_assert(v != NULL);
    for (size_t i = 0; i < n; i++)
        v[i] = base + scale * ek_random_normal(seed);
    return v;
}

/* By the hundred million: even values of the same spread, which are ten times faster made. */
static float *random_many(size_t n, float scale, uint64_t *seed)
{
    float *v = malloc(n * sizeof(float)), step = scale * 1.7320508f / 0x80000000u;

    ck_assert(v != NULL);
    for (size_t i = 0; i < n; i += 2) {
        uint64_t u = ek_random_u64(seed);

        v[i] = step * (float)(int32_t)u;
        if (i + 1 < n)
            v[i + 1] = step * (float)(int32_t)(u >> 32);
    }
    return v;
}

struct both both_new(struct pair *p, size_t n)
{
    float *v = calloc(n, sizeof(float));
    struct both b;

    ck_assert(v != NULL);
    b = both_of(p, v, n);
    free(v);
    return b;
}

struct both both_random(struct pair *p, size_t n, float scale, uint64_t *seed)
{
    float *v = n > MANY ? random_many(n, scale, seed) : random_floats(n, 0, scale, seed);
    struct both b = both_of(p, v, n);

    free(v);
    return b;
}

static struct both both_bytes(struct pair *p, const void *v, size_t n, size_t size)
{
    struct both b = {take(p->gpu, n * size), take(p->cpu, n * size), n};

    put(p->gpu, b.gpu, v, n * size);
    put(p->cpu, b.cpu, v, n * size);
    return b;
}

struct both both_floats(struct pair *p, size_t n, float base, float scale, uint64_t *seed)
{
    float *v = random_floats(n, base, scale, seed);
    struct both b = both_bytes(p, v, n, sizeof(float));

    free(v);
    return b;
}

struct both both_ints(struct pair *p, const int32_t *v, size_t n)
{
    return both_bytes(p, v, n, sizeof(int32_t));
}

void both_free(struct pair *p, struct both *b)
{
    p->gpu->ops->release(p->gpu, b->gpu);
    p->cpu->ops->release(p->cpu, b->cpu);
    *b = (struct both){0};
}

/* ---- weights -----------------------------------------------------------------------------------
 */
/* Where a block's half-precision scales are: random bytes there would be infinities. */
static size_t scales_of(enum ek_dtype t, size_t at[2])
{
    at[0] = t == EK_Q6_K ? 208 : 0;
    at[1] = 2;
    return t == EK_Q4_1 || t == EK_Q5_1 || t == EK_Q4_K || t == EK_Q5_K ? 2 : 1;
}

/* Heads of groups: an F16 or BF16 scale, a zero, which of them it is; or an F32 scale and no NaN.
 */
static void random_groups(enum ek_dtype t, uint8_t *out, size_t bytes, float scale, uint64_t *seed)
{
    size_t size = ek_dtype_block_bytes(t);

    for (size_t b = 0; b < bytes; b += size) {
        bool wide = t >= EK_B8_32, bf16 = b / size % 2;
        float v = scale * (0.5f + (float)ek_random_unit(seed)) / (t < EK_G8_32 ? 8 : 256);
        uint16_t h = bf16 ? ek_f32_to_bf16(v) : ek_f32_to_f16(v);
        uint8_t head[4] = {h & 255, h >> 8, t < EK_G8_32 ? out[b + 2] % 17 : out[b + 2], bf16};

        memcpy(out + b, wide ? (const void *)&v : head, 4);
        for (size_t i = 4; wide && i < size; i++)
            out[b + i] = (out[b + i] & 127) == 127 ? 0 : out[b + i];
    }
}

static void random_blocks(enum ek_dtype t, uint8_t *out, size_t bytes, float scale, uint64_t *seed)
{
    size_t size = ek_dtype_block_bytes(t), at[2], n = scales_of(t, at);

    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)ek_random_u64(seed);
    if (t >= EK_G4_32) {
        random_groups(t, out, bytes, scale, seed);
        return;
    }
    for (size_t b = 0; b < bytes; b += size)
        for (size_t i = 0; i < n; i++) {
            float v = scale * (0.5f + (float)ek_random_unit(seed)) / (t >= EK_Q4_K ? 256 : 8);
            uint16_t h = ek_f32_to_f16(v);

            memcpy(out + b + at[i], &h, 2);
        }
}

static void mat_fill(struct ek_device *dev, enum ek_dtype t, uint32_t rows, uint32_t cols,
                     const void *src, struct ek_mat *m)
{
    ck_assert_msg(dev->ops->mat_new(dev, t, rows, cols, m) == EK_OK, "%s", ek_last_error());
    put(dev, m->data, src, m->bytes);
    ck_assert_msg(dev->ops->mat_ready(dev, m) == EK_OK, "%s", ek_last_error());
}

void mats_random(struct pair *p, enum ek_dtype t, uint32_t rows, uint32_t cols, float scale,
                 uint64_t *seed, struct ek_mat *gpu, struct ek_mat *cpu)
{
    size_t n = (size_t)rows * cols, bytes;
    uint8_t *data;

    ck_assert_int_eq(ek_dtype_bytes(t, n, &bytes), EK_OK);
    ck_assert((data = malloc(bytes)) != NULL);
    if (t >= EK_Q4_0) {
        random_blocks(t, data, bytes, scale, seed);
    } else {
        float *v = random_many(n, scale, seed);

        narrow(v, t, data, n);
        free(v);
    }
    mat_fill(p->gpu, t, rows, cols, data, gpu);
    mat_fill(p->cpu, t, rows, cols, data, cpu);
    free(data);
}

void mats_free(struct pair *p, struct ek_mat *gpu, struct ek_mat *cpu)
{
    p->gpu->ops->mat_free(p->gpu, gpu);
    p->cpu->ops->mat_free(p->cpu, cpu);
}

/* ---- comparison --------------------------------------------------------------------------------
 */
static double error_as(struct pair *p, const struct both *b, enum ek_dtype t)
{
    void *raw = malloc(b->n * element(t));
    float *g = malloc(b->n * sizeof(float)), *c = malloc(b->n * sizeof(float));
    double worst = 0, largest = 0;

    ck_assert(raw && g && c);
    ck_assert_msg(p->gpu->ops->download(p->gpu, raw, b->gpu, b->n * element(t)) == EK_OK, "%s",
                  ek_last_error());
    ck_assert_int_eq(p->cpu->ops->download(p->cpu, c, b->cpu, b->n * sizeof(float)), EK_OK);
    widen(raw, t, g, b->n);
    for (size_t i = 0; i < b->n; i++) {
        double d = fabs((double)g[i] - c[i]);

        worst = d <= worst ? worst : isfinite(d) ? d : (double)INFINITY;
        largest = fmax(largest, fabs((double)c[i]));
    }
    free(raw);
    free(g);
    free(c);
    return largest > 0 ? worst / largest : worst;
}

double both_error(struct pair *p, const struct both *b)
{
    return error_as(p, b, p->act);
}

double float_error(struct pair *p, const struct both *b)
{
    return error_as(p, b, EK_F32);
}

double tolerance(enum ek_dtype act)
{
    return act == EK_F32 ? 2e-5 : act == EK_F16 ? 2e-3 : 1.2e-2;
}
