/* SPDX-License-Identifier: Apache-2.0
 *
 * What a device can do at most, by the backend's own kernels: the ceilings that the gate holds
 * measurements against, and that the rig estimates sampling times from.
 */
#include "profiler/measure.h"

#include <math.h>
#include <string.h>

enum { REPEATS = 7, PRODUCT_ROWS = 2048, PRODUCT_COLS = 2048, PRODUCT_TOKENS = 512 };
#define BUFFER_MOST  ((uint64_t)1 << 30)
#define BUFFER_LEAST ((uint64_t)64 << 20)
#define READ_SECONDS 0.02 /* of reading a small set over and over */

struct work { /* one thing to time */
    struct ek_device *dev;
    enum ek_status (*run)(const struct work *w);
    void *a, *b;
    size_t n;
    struct ek_mat mat;
};

/* The least time of a few runs: a ceiling is what the device can do when nothing is in the way. */
static enum ek_status best_time(const struct work *w, double *best)
{
    const struct ek_ops *ops = w->dev->ops;
    struct ek_event *e[2] = {NULL, NULL};
    enum ek_status st;

    *best = INFINITY;
    EK_GOTO(ops->event_new(w->dev, &e[0]), st, out);
    EK_GOTO(ops->event_new(w->dev, &e[1]), st, out);
    for (int i = 0; i <= REPEATS; i++) {
        EK_GOTO(ops->event_record(w->dev, e[0]), st, out);
        EK_GOTO(w->run(w), st, out);
        EK_GOTO(ops->event_record(w->dev, e[1]), st, out);
        EK_GOTO(ops->event_sync(e[1]), st, out);
        if (i > 0) /* the first one warms up */
            *best = fmin(*best, ops->event_seconds(e[0], e[1]));
    }
    if (!(*best > 0))
        st = ek_error(EK_EDEVICE, "%s: the device's clock gave no time", w->dev->spec.name);
out:
    if (e[0])
        ops->event_free(e[0]);
    if (e[1])
        ops->event_free(e[1]);
    return st;
}

static enum ek_status run_read(const struct work *w)
{
    return w->dev->ops->read_bytes(w->dev, w->a, w->n);
}

static enum ek_status run_copy(const struct work *w)
{
    return w->dev->ops->copy(w->dev, w->b, w->a, w->n);
}

static enum ek_status run_product(const struct work *w)
{
    return w->dev->ops->linear(w->dev, w->a, PRODUCT_COLS, PRODUCT_TOKENS, &w->mat, NULL, w->b,
                               PRODUCT_ROWS, 0);
}

enum ek_status rig_fill_random(struct ek_device *dev, void *p, size_t n, enum ek_dtype dtype)
{
    union {
        float f32[1024];
        uint16_t u16[2048];
    } block;
    uint64_t seed = 1;

    for (size_t i = 0; i < (dtype == EK_F32 ? 1024 : 2048); i++) {
        float x = ek_random_normal(&seed);
        if (dtype == EK_F32)
            block.f32[i] = x;
        else
            block.u16[i] = dtype == EK_BF16 ? ek_f32_to_bf16(x) : ek_f32_to_f16(x);
    }
    for (size_t at = 0; at < n; at += sizeof(block))
        EK_TRY(dev->ops->upload(dev, (char *)p + at, &block,
                                n - at < sizeof(block) ? n - at : sizeof(block)));
    return EK_OK;
}

/* Over many times the last-level cache, as far as there is memory. */
static size_t buffer_bytes(const struct ek_device *dev, uint64_t available)
{
    uint64_t want = dev->info.cache_bytes * 8;

    want = want < BUFFER_LEAST ? BUFFER_LEAST : want > BUFFER_MOST ? BUFFER_MOST : want;
    if (want > available / 4)
        want = available / 4;
    return (size_t)(want & ~(uint64_t)4095);
}

static enum ek_status measure_memory(struct ek_device *dev, struct ek_ceilings *out)
{
    struct work w = {.dev = dev, .run = run_read};
    const struct ek_ops *ops = dev->ops;
    enum ek_status st;
    double t;

    w.n = buffer_bytes(dev, ops->memory_free(dev));
    EK_GOTO(ops->alloc(dev, EK_TAG_WORKSPACE, w.n, &w.a), st, done);
    EK_GOTO(rig_fill_random(dev, w.a, w.n, EK_F32), st, done);
    EK_GOTO(best_time(&w, &t), st, done);
    out->read_bandwidth = (double)w.n / t;
    w.n /= 2;
    w.b = (char *)w.a + w.n;
    w.run = run_copy;
    EK_GOTO(best_time(&w, &t), st, done);
    out->copy_bandwidth = (double)w.n / t;
done:
    if (w.a)
        ops->release(dev, w.a);
    return st;
}

/* FLOP/s of a product of weights of that type; 0 where the backend does not take it. */
static enum ek_status measure_product(struct ek_device *dev, enum ek_dtype dtype, double *rate)
{
    const struct ek_ops *ops = dev->ops;
    struct work w = {.dev = dev, .run = run_product};
    size_t act = ek_dtype_block_bytes(dev->act);
    size_t in = (size_t)PRODUCT_TOKENS * PRODUCT_COLS * act;
    enum ek_status st;
    double t;

    *rate = 0;
    st = ops->mat_new(dev, dtype, PRODUCT_ROWS, PRODUCT_COLS, &w.mat);
    if (st == EK_EUNSUPPORTED)
        return EK_OK;
    EK_TRY(st);
    EK_GOTO(rig_fill_random(dev, w.mat.data, w.mat.bytes, dtype), st, done);
    EK_GOTO(ops->mat_ready(dev, &w.mat), st, done);
    EK_GOTO(ops->alloc(dev, EK_TAG_WORKSPACE, in, &w.a), st, done);
    EK_GOTO(ops->alloc(dev, EK_TAG_WORKSPACE, (size_t)PRODUCT_TOKENS * PRODUCT_ROWS * act, &w.b),
            st, done);
    EK_GOTO(rig_fill_random(dev, w.a, in, dev->act), st, done);
    EK_GOTO(best_time(&w, &t), st, done);
    *rate = 2.0 * PRODUCT_TOKENS * PRODUCT_ROWS * PRODUCT_COLS / t;
done:
    if (w.b)
        ops->release(dev, w.b);
    if (w.a)
        ops->release(dev, w.a);
    ops->mat_free(dev, &w.mat);
    return st;
}

enum ek_status ek_measure_ceilings(struct ek_device *dev, struct ek_ceilings *out)
{
    struct ek_ceilings c = {.overhead = 0};

    EK_TRY(measure_memory(dev, &c));
    EK_TRY(measure_product(dev, EK_F32, &c.peak_f32));
    EK_TRY(measure_product(dev, EK_BF16, &c.peak_bf16));
    EK_TRY(measure_product(dev, EK_F16, &c.peak_f16));
    *out = c;
    return EK_OK;
}

struct reading { /* a set read over and over */
    struct ek_device *dev;
    void *p;
    size_t n;
};

static double read_once(const struct reading *r, enum ek_status *st)
{
    uint64_t begin = ek_now_ns();

    *st = r->dev->ops->read_bytes(r->dev, r->p, r->n);
    if (*st == EK_OK)
        *st = r->dev->ops->sync(r->dev);
    return (double)(ek_now_ns() - begin) * 1e-9;
}

enum ek_status ceilings_read_rate(struct ek_device *dev, uint64_t bytes, double *rate)
{
    struct reading r = {.dev = dev, .n = bytes < 1 << 20 ? 1 << 20 : (size_t)bytes};
    double best = INFINITY, spent = 0;
    enum ek_status st;

    EK_TRY(dev->ops->alloc(dev, EK_TAG_WORKSPACE, r.n, &r.p));
    st = rig_fill_random(dev, r.p, r.n, EK_F32);
    for (int i = 0; st == EK_OK && (i < 3 || spent < READ_SECONDS); i++) {
        double t = read_once(&r, &st);
        best = fmin(best, t);
        spent += t;
    }
    dev->ops->release(dev, r.p);
    if (st == EK_OK)
        *rate = best > 0 ? (double)r.n / best : INFINITY;
    return st;
}
