/* SPDX-License-Identifier: Apache-2.0
 *
 * Links while others are at work: a pair of devices in both directions, or all pairs at once. Every
 * direction has devices of its own (the same GPUs and cores), so that no queue stands behind
 * another's, and a thread that sends message after message; sizes begin together, and a thread that
 * is done with one goes on until all are.
 */
#include "profiler/measure.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SIZES = 4, ROUNDS = 5, MESSAGES = 8 };
#define LEAST_BYTES ((size_t)64 << 10) /* then times 4: up to 4 MiB; ... */
#define LEAST_GPU                                                                                  \
    ((size_t)1 << 20) /* ... between GPUs up to 64 MiB, else a thread's part shows                 \
                       */

struct flow {
    struct traffic *t;
    struct ek_device *dev[2];
    struct ek_link *link;
    void *buffer[2];
    double seconds[SIZES]; /* of a message */
    pthread_t thread;
    enum ek_status status;
    char message[1024];
};

struct traffic {
    struct flow *flows;
    size_t n;
    pthread_mutex_t start;
    bool whole; /* every flow has a thread */
    pthread_barrier_t begin, end;
    atomic_size_t at_work; /* flows that are not done with this size */
};

static size_t message_bytes(const struct flow *f, size_t size)
{
    bool gpus = f->dev[0]->info.compute_major > 0 && f->dev[1]->info.compute_major > 0;

    return (gpus ? LEAST_GPU : LEAST_BYTES) << 2 * size;
}

static size_t elements(const struct flow *f, size_t size)
{
    return message_bytes(f, size) / ek_dtype_block_bytes(f->dev[0]->act);
}

static enum ek_status send_some(struct flow *f, size_t n, double *seconds)
{
    uint64_t begin = ek_now_ns();

    for (int i = 0; i < MESSAGES; i++) {
        EK_TRY(ek_link_send(f->link, f->buffer[0], n, NULL));
        EK_TRY(ek_link_wait(f->link, NULL));
        EK_TRY(ek_link_recv(f->link, f->buffer[1], n));
    }
    EK_TRY(f->dev[1]->ops->sync(f->dev[1]));
    *seconds = (double)(ek_now_ns() - begin) * 1e-9 / MESSAGES;
    return EK_OK;
}

static enum ek_status time_size(struct flow *f, size_t size)
{
    double samples[ROUNDS], skip;

    EK_TRY(send_some(f, elements(f, size), &skip));
    for (int i = 0; i < ROUNDS; i++)
        EK_TRY(send_some(f, elements(f, size), &samples[i]));
    f->seconds[size] = timing_median(samples, ROUNDS);
    return EK_OK;
}

static void *run_flow(void *arg)
{
    struct flow *f = arg;
    struct traffic *t = f->t;
    double skip;
    bool whole;

    pthread_mutex_lock(&t->start);
    whole = t->whole;
    pthread_mutex_unlock(&t->start);
    for (size_t size = 0; whole && size < SIZES; size++) {
        pthread_barrier_wait(&t->begin);
        if (f->status == EK_OK)
            f->status = time_size(f, size);
        atomic_fetch_sub(&t->at_work, 1);
        while (f->status == EK_OK && atomic_load(&t->at_work) > 0)
            f->status = send_some(f, elements(f, size), &skip);
        if (pthread_barrier_wait(&t->end) == PTHREAD_BARRIER_SERIAL_THREAD)
            atomic_store(&t->at_work, t->n);
        pthread_barrier_wait(&t->end);
    }
    if (f->status != EK_OK)
        snprintf(f->message, sizeof(f->message), "%s", ek_last_error());
    return NULL;
}

static enum ek_status open_flow(struct flow *f, const struct ek_traffic_pair *pair,
                                const char *mechanism, enum ek_dtype act)
{
    for (int i = 0; i < 2; i++) {
        struct ek_device_spec spec = *(i ? pair->to : pair->from);
        spec.memory = 0;
        spec.memory_fraction = 0;
        EK_TRY(ek_device_open(&spec, act, &f->dev[i]));
    }
    EK_TRY(ek_link_open_as(f->dev[0], f->dev[1], elements(f, SIZES - 1), mechanism, &f->link));
    for (int i = 0; i < 2; i++) {
        size_t bytes = elements(f, SIZES - 1) * ek_dtype_block_bytes(act);
        EK_TRY(f->dev[i]->ops->alloc(f->dev[i], EK_TAG_WORKSPACE, bytes, &f->buffer[i]));
        EK_TRY(rig_fill_random(f->dev[i], f->buffer[i], bytes, act));
    }
    return EK_OK;
}

/* What it sent has arrived. Links end all at once: NCCL takes half a second for one. */
static void stop_flow(struct flow *f)
{
    for (int i = 0; i < 2; i++)
        if (f->dev[i] != NULL)
            (void)f->dev[i]->ops->sync(f->dev[i]);
    ek_link_abandon(f->link);
}

static void close_flow(struct flow *f)
{
    ek_link_close(f->link);
    for (int i = 0; i < 2; i++) {
        if (f->buffer[i] != NULL)
            f->dev[i]->ops->release(f->dev[i], f->buffer[i]);
        ek_device_close(f->dev[i]);
    }
}

static enum ek_status run_all(struct traffic *t)
{
    size_t started = 0;

    pthread_mutex_init(&t->start, NULL);
    pthread_barrier_init(&t->begin, NULL, (unsigned)t->n);
    pthread_barrier_init(&t->end, NULL, (unsigned)t->n);
    atomic_store(&t->at_work, t->n);
    pthread_mutex_lock(&t->start);
    while (started < t->n &&
           pthread_create(&t->flows[started].thread, NULL, run_flow, &t->flows[started]) == 0)
        started++;
    t->whole = started == t->n;
    pthread_mutex_unlock(&t->start);
    for (size_t i = 0; i < started; i++)
        pthread_join(t->flows[i].thread, NULL);
    pthread_barrier_destroy(&t->begin);
    pthread_barrier_destroy(&t->end);
    pthread_mutex_destroy(&t->start);
    if (!t->whole)
        return ek_error(EK_EENV, "links: no thread for %zu at once", t->n);
    for (size_t i = 0; i < t->n; i++)
        if (t->flows[i].status != EK_OK)
            return ek_error(t->flows[i].status, "%s", t->flows[i].message);
    return EK_OK;
}

static void fill_row(const struct flow *f, const char *suffix, struct ek_store_link *out)
{
    double bytes[SIZES];

    *out = (struct ek_store_link){.n = SIZES * ROUNDS};
    for (size_t i = 0; i < SIZES; i++)
        bytes[i] = (double)message_bytes(f, i);
    link_fit(bytes, f->seconds, SIZES, out);
    snprintf(out->from, sizeof(out->from), "%s", f->dev[0]->spec.name);
    snprintf(out->to, sizeof(out->to), "%s", f->dev[1]->spec.name);
    snprintf(out->mechanism, sizeof(out->mechanism), "%.17s%s", ek_link_mechanism(f->link), suffix);
}

enum ek_status ek_measure_traffic(const struct ek_traffic_pair *pairs, size_t n,
                                  const char *mechanism, enum ek_dtype act, const char *suffix,
                                  struct ek_store_link *out)
{
    struct traffic t = {.n = n, .flows = ek_calloc(n, sizeof(*t.flows))};
    enum ek_status st = EK_ENOMEM;

    if (t.flows == NULL)
        return st;
    for (size_t i = 0; i < n; i++) {
        t.flows[i].t = &t;
        EK_GOTO(open_flow(&t.flows[i], &pairs[i], mechanism, act), st, done);
    }
    EK_GOTO(run_all(&t), st, done);
    for (size_t i = 0; i < n; i++)
        fill_row(&t.flows[i], suffix, &out[i]);
done:
    for (size_t i = 0; i < n; i++)
        stop_flow(&t.flows[i]);
    for (size_t i = 0; i < n; i++)
        close_flow(&t.flows[i]);
    free(t.flows);
    return st;
}
