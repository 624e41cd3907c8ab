/* SPDX-License-Identifier: Apache-2.0
 *
 * What a device can do at most, by the backend's own kernels: the ceilings that the gate holds
 * measurements against, and that the rig estimates sampling times from.
 */
#include "profiler/measure.h"

#include <math.h>
#include <string.h>

enum { REPEATS = 15, FEW_REPEATS = 4, PRODUCT_LEAST = 128, PRODUCT_MOST = 8192 };
#define PRODUCT_SECONDS 0.002 /* long enough for the clock, short enough to find a quiet moment */
#define BUFFER_MOST     ((uint64_t)1 << 30)
#define BUFFER_LEAST    ((uint64_t)64 << 20)
#define READ_SECONDS    0.02 /* of reading a small set over and over */
#define PIECE_SECONDS   0.001
#define ENOUGH_SECONDS  0.3 /* for one thing, when three runs of it take that long */

struct work { /* one thing to time */
    struct ek_device *dev;
    enum ek_status (*run)(struct work *w);
    void *a, *b;
    size_t n;         /* bytes; of a product: rows, columns and tokens */
    size_t piece, at; /* bytes of one run, and where it begins: runs go round in the n bytes */
    struct ek_mat mat;
};

/* The least time of a few runs: a ceiling is what the device can do when nothing is in the way. */
static enum ek_status best_time(struct work *w, int repeats, double *best)
{
    const struct ek_ops *ops = w->dev->ops;
    struct ek_event *e[2] = {NULL, NULL};
    double spent = 0, t;
    enum ek_status st;

    *best = INFINITY;
    EK_GOTO(ops->event_new(w->dev, &e[0]), st, out);
    EK_GOTO(ops->event_new(w->dev, &e[1]), st, out);
    for (int i = 0; i <= repeats && (i <= 3 || spent < ENOUGH_SECONDS); i++) {
        EK_GOTO(ops->event_record(w->dev, e[0]), st, out);
        EK_GOTO(w->run(w), st, out);
        EK_GOTO(ops->event_record(w->dev, e[1]), st, out);
        EK_GOTO(ops->event_sync(e[1]), st, out);
        t = ops->event_seconds(e[0], e[1]);
        spent += t;
        if (i > 0) /* the first one warms up */
            *best = fmin(*best, t);
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

static size_t next_piece(struct work *w)
{
    size_t at = w->at;

    w->at = at + 2 * w->piece <= w->n ? at + w->piece : 0;
    return at;
}

static enum ek_status run_read(struct work *w)
{
    return w->dev->ops->read_bytes(w->dev, (char *)w->a + next_piece(w), w->piece);
}

static enum ek_status run_copy(struct work *w)
{
    size_t at = next_piece(w);

    return w->dev->ops->copy(w->dev, (char *)w->b + at, (char *)w->a + at, w->piece);
}

static enum ek_status run_product(struct work *w)
{
    return w->dev->ops->linear(w->dev, w->a, w->n, (uint32_t)w->n, &w->mat, NULL, w->b, w->n, 0);
}

/* A prime number of elements over and over: rows of no usual length are alike. */
enum { FILL_LONG = 1021, FILL_SHORT = 2039 };

enum ek_status rig_fill_random(struct ek_device *dev, void *p, size_t n, enum ek_dtype dtype)
{
    union {
        float f32[FILL_LONG];
        uint16_t u16[FILL_SHORT];
    } block;
    size_t bytes = dtype == EK_F32 ? sizeof(block.f32) : sizeof(block.u16);
    char *to = p;
    uint64_t seed = 1;

    for (size_t i = 0; i < (dtype == EK_F32 ? FILL_LONG : FILL_SHORT); i++) {
        float x = ek_random_normal(&seed);
        if (dtype == EK_F32)
            block.f32[i] = x;
        else
            block.u16[i] = dtype == EK_BF16 ? ek_f32_to_bf16(x) : ek_f32_to_f16(x);
    }
    EK_TRY(dev->ops->upload(dev, to, &block, n < bytes ? n : bytes));
    for (size_t at = bytes; at < n; at *= 2)
        EK_TRY(dev->ops->copy(dev, to + at, to, n - at < at ? n - at : at));
    return EK_OK;
}

/* Over several times the last-level cache, as far as there is memory; where a run is launched, over
 * so much that the launch is no part of its time. */
static size_t buffer_bytes(const struct ek_device *dev, uint64_t available)
{
    uint64_t want = dev->info.cache_bytes * (dev->ops->host ? 4 : 16);

    want = want < BUFFER_LEAST ? BUFFER_LEAST : want > BUFFER_MOST ? BUFFER_MOST : want;
    if (want > available / 4)
        want = available / 4;
    return (size_t)(want & ~(uint64_t)4095);
}

/* Bytes a second over all n bytes at once; where that takes long, over an eighth of them at a time,
 * which finds a quiet moment of a busy machine. */
static enum ek_status best_rate(struct work *w, double *rate)
{
    double whole, part;

    w->piece = w->n;
    w->at = 0;
    EK_TRY(best_time(w, FEW_REPEATS, &whole));
    *rate = (double)w->n / whole;
    if (whole < 8 * PIECE_SECONDS)
        return EK_OK;
    w->piece = w->n / 8;
    EK_TRY(best_time(w, REPEATS, &part));
    *rate = fmax(*rate, (double)w->piece / part);
    return EK_OK;
}

static enum ek_status measure_memory(struct ek_device *dev, struct ek_ceilings *out)
{
    struct work w = {.dev = dev, .run = run_read};
    const struct ek_ops *ops = dev->ops;
    enum ek_status st;

    w.n = buffer_bytes(dev, ops->memory_free(dev));
    EK_GOTO(ops->alloc(dev, EK_TAG_WORKSPACE, w.n, &w.a), st, done);
    EK_GOTO(rig_fill_random(dev, w.a, w.n, EK_F32), st, done);
    EK_GOTO(best_rate(&w, &out->read_bandwidth), st, done);
    w.n /= 2;
    w.b = (char *)w.a + w.n;
    w.run = run_copy;
    st = best_rate(&w, &out->copy_bandwidth);
done:
    if (w.a)
        ops->release(dev, w.a);
    return st;
}

/* Seconds of a product of n rows, columns and tokens; EK_EUNSUPPORTED where the backend does not
 * take that type of weights. */
static enum ek_status time_product(struct ek_device *dev, enum ek_dtype dtype, uint32_t n,
                                   double *seconds)
{
    const struct ek_ops *ops = dev->ops;
    struct work w = {.dev = dev, .run = run_product, .n = n};
    size_t bytes = (size_t)n * n * ek_dtype_block_bytes(dev->act);
    enum ek_status st;

    EK_TRY(ops->mat_new(dev, dtype, n, n, &w.mat));
    EK_GOTO(rig_fill_random(dev, w.mat.data, w.mat.bytes, dtype), st, done);
    EK_GOTO(ops->mat_ready(dev, &w.mat), st, done);
    EK_GOTO(ops->alloc(dev, EK_TAG_WORKSPACE, bytes, &w.a), st, done);
    EK_GOTO(ops->alloc(dev, EK_TAG_WORKSPACE, bytes, &w.b), st, done);
    EK_GOTO(rig_fill_random(dev, w.a, bytes, dev->act), st, done);
    st = best_time(&w, REPEATS, seconds);
done:
    if (w.b)
        ops->release(dev, w.b);
    if (w.a)
        ops->release(dev, w.a);
    ops->mat_free(dev, &w.mat);
    return st;
}

/* FLOP/s of a product that is large for the device; 0 where there is none of that type. */
static enum ek_status measure_product(struct ek_device *dev, enum ek_dtype dtype, double *rate)
{
    double best = 0;

    for (uint32_t n = PRODUCT_LEAST; n <= PRODUCT_MOST; n *= 2) {
        double t;
        enum ek_status st = time_product(dev, dtype, n, &t);
        if (st == EK_EUNSUPPORTED || (st == EK_ENOMEM && best > 0))
            break;
        EK_TRY(st);
        best = fmax(best, 2.0 * n * n * n / t);
        if (t > PRODUCT_SECONDS)
            break;
    }
    *rate = best;
    return EK_OK;
}

/* What is gone from a GPU's memory that is no allocation of ours: the context, libraries, kernels
 * (and other processes). A CPU device has no such thing: its memory is the host's. */
static uint64_t overhead_of(struct ek_device *dev)
{
    struct ek_usage usage[EK_N_TAGS];
    uint64_t known;

    if (dev->info.compute_major == 0)
        return 0;
    dev->ops->usage(dev, usage);
    known = dev->ops->memory_free(dev) + ek_usage_total(usage, false);
    return dev->info.memory_total > known ? dev->info.memory_total - known : 0;
}

enum ek_status ek_measure_ceilings(struct ek_device *dev, struct ek_ceilings *out)
{
    struct ek_ceilings c = {.overhead = 0};

    EK_TRY(measure_memory(dev, &c));
    EK_TRY(measure_product(dev, EK_F32, &c.peak_f32));
    EK_TRY(measure_product(dev, EK_BF16, &c.peak_bf16));
    EK_TRY(measure_product(dev, EK_F16, &c.peak_f16));
    c.overhead = overhead_of(dev); /* with everything loaded that a run loads */
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
