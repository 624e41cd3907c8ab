/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/gpu/bench.h"

#include <math.h>
#include <stdlib.h>

struct ek_device *dev;
const struct ek_ops *ops;
double read_rate, matrix_rate;
static void *noise; /* NOISE bytes of random BF16 */
#define NOISE ((size_t)64 << 20)

void need(enum ek_status st)
{
    if (st != EK_OK) {
        fprintf(stderr, "%s\n", ek_last_error());
        exit(1);
    }
}

/* ---- data --------------------------------------------------------------------------------------
 */
static void fill(void *p, size_t bytes)
{
    for (size_t at = 0; noise && at < bytes; at += NOISE)
        need(ops->copy(dev, (char *)p + at, noise, bytes - at < NOISE ? bytes - at : NOISE));
}

void *take(size_t bytes)
{
    void *p;

    need(ops->alloc(dev, EK_TAG_WEIGHTS, bytes, &p));
    fill(p, bytes);
    return p;
}

static void make_noise(void)
{
    uint16_t *v = malloc(NOISE);
    uint64_t seed = 1;

    if (v == NULL)
        exit(1);
    for (size_t i = 0; i < NOISE / 2; i++) /* +- [2^-6, 2^-5): no row's sum grows large */
        v[i] = (uint16_t)(ek_random_u64(&seed) & 0x807f) | 0x3c80;
    noise = NULL;
    noise = take(NOISE);
    need(ops->upload(dev, noise, v, NOISE));
    need(ops->sync(dev));
    free(v);
}

void *take_copy(const void *v, size_t bytes)
{
    void *p = take(bytes);

    need(ops->upload(dev, p, v, bytes));
    need(ops->sync(dev));
    return p;
}

void *take_ints(const int32_t *v, size_t n)
{
    return take_copy(v, n * sizeof(*v));
}

float *take_ones(size_t n)
{
    float *v = malloc(n * sizeof(*v)), *p;

    for (size_t i = 0; v && i < n; i++)
        v[i] = 1 + 0.01f * (float)(i % 7);
    p = take_copy(v, n * sizeof(*v));
    free(v);
    return p;
}

double weight_bytes(enum ek_dtype type, double n)
{
    return n / (double)ek_dtype_block(type) * (double)ek_dtype_block_bytes(type);
}

struct ek_mat matrix(enum ek_dtype t, uint32_t rows, uint32_t cols)
{
    struct ek_mat m;

    need(ops->mat_new(dev, t, rows, cols, &m));
    fill(m.data, m.bytes);
    return m;
}

/* ---- time --------------------------------------------------------------------------------------
 */
static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double seconds(void (*run)(void *), void *arg, bool graph, int repeats)
{
    struct ek_event *from, *to;
    struct ek_graph *g = NULL;
    double t[101];

    need(ops->event_new(dev, &from));
    need(ops->event_new(dev, &to));
    run(arg);
    need(ops->sync(dev));
    if (graph) {
        need(ops->graph_begin(dev));
        run(arg);
        need(ops->graph_end(dev, &g));
        need(ops->graph_launch(dev, g));
    }
    for (int i = -2; i < repeats; i++) {
        need(ops->event_record(dev, from));
        if (graph)
            need(ops->graph_launch(dev, g));
        else
            run(arg);
        need(ops->event_record(dev, to));
        need(ops->event_sync(to));
        t[i < 0 ? 0 : i] = ops->event_seconds(from, to);
    }
    qsort(t, (size_t)repeats, sizeof(*t), by_value);
    ops->graph_free(g);
    ops->event_free(from);
    ops->event_free(to);
    return t[repeats / 2];
}

/* ---- ceilings ----------------------------------------------------------------------------------
 */
struct stream {
    void *p, *to;
    size_t bytes;
};
static void run_read(void *arg)
{
    struct stream *s = arg;

    need(ops->read_bytes(dev, s->p, s->bytes));
}
static void run_copy(void *arg)
{
    struct stream *s = arg;

    need(ops->copy(dev, s->to, s->p, s->bytes));
}

struct large {
    struct ek_mat w;
    void *x, *out;
};
static void run_large(void *arg)
{
    struct large *p = arg;

    need(ops->linear(dev, p->x, 8192, 8192, &p->w, NULL, p->out, 8192, 0));
}

static void ceilings(void)
{
    struct stream s = {.bytes = (size_t)4 << 30};
    struct large p;

    s.p = take(s.bytes);
    s.to = take(s.bytes);
    read_rate = (double)s.bytes / seconds(run_read, &s, false, 11);
    printf("read     %.0f GB/s\n", read_rate / 1e9);
    printf("copy     %.0f GB/s read and written\n",
           2 * (double)s.bytes / seconds(run_copy, &s, false, 11) / 1e9);
    ops->release(dev, s.p);
    ops->release(dev, s.to);
    p.w = matrix(EK_BF16, 8192, 8192);
    p.x = take((size_t)8192 * 8192 * 2);
    p.out = take((size_t)8192 * 8192 * 2);
    matrix_rate = 2 * pow(8192, 3) / seconds(run_large, &p, false, 21);
    printf("product  %.0f TFLOP/s (8192^3, BF16)\n\n", matrix_rate / 1e12);
    ops->release(dev, p.w.data);
    ops->release(dev, p.x);
    ops->release(dev, p.out);
}

bool bench_open(void)
{
    struct ek_device_spec *specs;
    size_t n;

    need(ek_device_specs_parse("cuda:0", &specs, &n));
    if (ek_device_open(&specs[0], EK_BF16, &dev) != EK_OK)
        printf("skipped: %s\n", ek_last_error());
    free(specs);
    if (dev == NULL)
        return false;
    ops = dev->ops;
    printf("%s, %s\n", dev->info.model, dev->info.driver);
    make_noise();
    ceilings();
    return true;
}
