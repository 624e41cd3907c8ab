/* SPDX-License-Identifier: Apache-2.0
 *
 * A device's queue is one stream: copies, events, and sequences of operations captured as graphs.
 */
#include "kernels/cuda/cuda.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ek_event {
    cudaEvent_t event;
    struct ek_cuda *dev;
};
struct ek_graph {
    cudaGraphExec_t exec;
    struct ek_cuda *dev;
};

enum ek_status ek_cuda_queue_open(struct ek_cuda *d)
{
    EK_CU_TRY(d, cudaStreamCreateWithFlags(&d->queue.stream, cudaStreamNonBlocking));
    EK_CU_TRY(d, cudaHostAlloc(&d->staging.host, (size_t)EK_CU_N_STAGING * EK_CU_TAKEN,
                               cudaHostAllocPortable));
    for (int i = 0; i < EK_CU_N_STAGING; i++)
        EK_CU_TRY(d, cudaEventCreateWithFlags(&d->staging.passed[i], cudaEventDisableTiming));
    return EK_OK;
}

void ek_cuda_queue_close(struct ek_cuda *d)
{
    if (d->queue.stream)
        cudaStreamSynchronize(d->queue.stream);
    for (int i = 0; i < EK_CU_N_STAGING; i++)
        if (d->staging.passed[i])
            cudaEventDestroy(d->staging.passed[i]);
    if (d->staging.host)
        cudaFreeHost(d->staging.host);
    for (int i = 0; i < 2 * EK_CU_CARRIERS; i++)
        if (d->carried.passed[i / 2][i % 2])
            cudaEventDestroy(d->carried.passed[i / 2][i % 2]);
    if (d->carried.host)
        ek_cuda_host_free(&d->base, d->carried.host);
    if (d->queue.stream)
        cudaStreamDestroy(d->queue.stream);
}

/* ---- copies ------------------------------------------------------------------------------------
 */
/* What a thread carries of an upload from memory that is not pinned: every so manyth piece. The
 * driver carries all of it by one thread: a picture's 25 MB took it 3.7 ms, and four take 0.9. */
struct carrier {
    struct ek_cuda *d;
    unsigned index, n_carriers;
    char *dst;
    const char *src;
    size_t n;
    cudaError_t error;
    pthread_t thread;
    bool running;
};

static cudaError_t carry_piece(const struct carrier *c, size_t at, unsigned slot)
{
    struct ek_cuda *d = c->d;
    char *pinned = (char *)d->carried.host + (2 * (size_t)c->index + slot) * EK_CU_CARRIED;
    size_t n = c->n - at < EK_CU_CARRIED ? c->n - at : EK_CU_CARRIED;
    cudaError_t e = cudaEventSynchronize(d->carried.passed[c->index][slot]);

    if (e != cudaSuccess)
        return e;
    memcpy(pinned, c->src + at, n);
    e = cudaMemcpyAsync(c->dst + at, pinned, n, cudaMemcpyHostToDevice, d->queue.stream);
    return e != cudaSuccess ? e
                            : cudaEventRecord(d->carried.passed[c->index][slot], d->queue.stream);
}

static void *carry(void *arg)
{
    struct carrier *c = arg;
    size_t step = (size_t)c->n_carriers * EK_CU_CARRIED, i = 0;

    ek_cuda_use(c->d);
    for (size_t at = (size_t)c->index * EK_CU_CARRIED; at < c->n && c->error == cudaSuccess;
         at += step)
        c->error = carry_piece(c, at, i++ % 2);
    return NULL;
}

static enum ek_status open_carried(struct ek_cuda *d)
{
    if (d->carried.host)
        return EK_OK;
    for (int i = 0; i < 2 * EK_CU_CARRIERS; i++)
        if (!d->carried.passed[i / 2][i % 2])
            EK_CU_TRY(d, cudaEventCreateWithFlags(&d->carried.passed[i / 2][i % 2],
                                                  cudaEventDisableTiming));
    return ek_cuda_pages_new(d, (size_t)2 * EK_CU_CARRIERS * EK_CU_CARRIED, &d->carried.host);
}

static enum ek_status upload_carried(struct ek_cuda *d, char *dst, const char *src, size_t n)
{
    struct carrier c[EK_CU_CARRIERS];
    long cores = sysconf(_SC_NPROCESSORS_ONLN) / 2;
    unsigned most = cores < 1 ? 1 : cores < EK_CU_CARRIERS ? (unsigned)cores : EK_CU_CARRIERS;
    cudaError_t e = cudaSuccess;

    EK_TRY(open_carried(d));
    for (unsigned i = most; i-- > 0;) { /* the first one is this thread's */
        c[i] = (struct carrier){
            .d = d, .index = i, .n_carriers = most, .dst = dst, .src = src, .n = n};
        c[i].running = i > 0 && pthread_create(&c[i].thread, NULL, carry, &c[i]) == 0;
        if (!c[i].running)
            carry(&c[i]);
    }
    for (unsigned i = 0; i < most; i++) {
        if (c[i].running)
            pthread_join(c[i].thread, NULL);
        e = e == cudaSuccess ? c[i].error : e;
    }
    EK_CU_TRY(d, e);
    return EK_OK;
}

static bool is_pinned(const void *p)
{
    struct cudaPointerAttributes a;

    return cudaPointerGetAttributes(&a, p) == cudaSuccess && a.type != cudaMemoryTypeUnregistered;
}

enum ek_status ek_cuda_upload(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);
    uint32_t i = d->staging.next;
    char *taken = (char *)d->staging.host + (size_t)i * EK_CU_TAKEN;

    ek_cuda_use(d);
    if (n > 2 * EK_CU_CARRIED && !is_pinned(src))
        return upload_carried(d, dst, src, n);
    if (n > EK_CU_TAKEN) {
        EK_CU_TRY(d, cudaMemcpyAsync(dst, src, n, cudaMemcpyHostToDevice, d->queue.stream));
        return EK_OK;
    }
    EK_CU_TRY(d, cudaEventSynchronize(d->staging.passed[i]));
    memcpy(taken, src, n);
    EK_CU_TRY(d, cudaMemcpyAsync(dst, taken, n, cudaMemcpyHostToDevice, d->queue.stream));
    EK_CU_TRY(d, cudaEventRecord(d->staging.passed[i], d->queue.stream));
    d->staging.next = (i + 1) % EK_CU_N_STAGING;
    return EK_OK;
}

enum ek_status ek_cuda_download(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);

    ek_cuda_use(d);
    EK_CU_TRY(d, cudaMemcpyAsync(dst, src, n, cudaMemcpyDeviceToHost, d->queue.stream));
    EK_CU_TRY(d, cudaStreamSynchronize(d->queue.stream));
    return EK_OK;
}

enum ek_status ek_cuda_fetch(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);

    ek_cuda_use(d);
    EK_CU_TRY(d, cudaMemcpyAsync(dst, src, n, cudaMemcpyDeviceToHost, d->queue.stream));
    return EK_OK;
}

enum ek_status ek_cuda_copy(struct ek_device *dev, void *dst, const void *src, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);

    ek_cuda_use(d);
    EK_CU_TRY(d, cudaMemcpyAsync(dst, src, n, cudaMemcpyDeviceToDevice, d->queue.stream));
    return EK_OK;
}

enum ek_status ek_cuda_copy_from(struct ek_device *dev, void *dst, struct ek_device *src_dev,
                                 const void *src, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_cuda *from;

    if (src_dev->ops != dev->ops)
        return ek_error(EK_EUNSUPPORTED, "no copy from %s to %s but through the host",
                        src_dev->spec.name, dev->spec.name);
    from = ek_cuda(src_dev);
    ek_cuda_use(d);
    if (from->gpu == d->gpu)
        return ek_cuda_copy(dev, dst, src, n);
    EK_CU_TRY(d, cudaMemcpyPeerAsync(dst, d->gpu, src, from->gpu, n, d->queue.stream));
    return EK_OK;
}

enum ek_status ek_cuda_zero(struct ek_device *dev, void *dst, size_t n)
{
    struct ek_cuda *d = ek_cuda(dev);

    ek_cuda_use(d);
    EK_CU_TRY(d, cudaMemsetAsync(dst, 0, n, d->queue.stream));
    return EK_OK;
}

/* ---- order -------------------------------------------------------------------------------------
 */
static enum ek_status event_new(struct ek_device *dev, unsigned flags, struct ek_event **out)
{
    struct ek_event *e = ek_calloc(1, sizeof(*e));
    cudaError_t err;

    if (e == NULL)
        return EK_ENOMEM;
    e->dev = ek_cuda(dev);
    ek_cuda_use(e->dev);
    if ((err = cudaEventCreateWithFlags(&e->event, flags)) != cudaSuccess) {
        free(e);
        return ek_cuda_failed(ek_cuda(dev), err, "cudaEventCreate");
    }
    *out = e;
    return EK_OK;
}

enum ek_status ek_cuda_event_new(struct ek_device *dev, struct ek_event **out)
{
    return event_new(dev, cudaEventDefault, out);
}

enum ek_status ek_cuda_event_order(struct ek_device *dev, struct ek_event **out)
{
    return event_new(dev, cudaEventDisableTiming, out);
}

cudaEvent_t ek_cuda_event_of(const struct ek_event *e)
{
    return e->event;
}

void ek_cuda_event_free(struct ek_event *e)
{
    if (e == NULL)
        return;
    cudaEventDestroy(e->event);
    free(e);
}

enum ek_status ek_cuda_event_record(struct ek_device *dev, struct ek_event *e)
{
    ek_cuda_use(ek_cuda(dev));
    EK_CU_TRY(ek_cuda(dev), cudaEventRecord(e->event, ek_cuda(dev)->queue.stream));
    return EK_OK;
}

enum ek_status ek_cuda_event_wait(struct ek_device *dev, struct ek_event *e)
{
    ek_cuda_use(ek_cuda(dev));
    EK_CU_TRY(ek_cuda(dev), cudaStreamWaitEvent(ek_cuda(dev)->queue.stream, e->event, 0));
    return EK_OK;
}

enum ek_status ek_cuda_event_sync(struct ek_event *e)
{
    EK_CU_TRY(e->dev, cudaEventSynchronize(e->event));
    return EK_OK;
}

enum ek_status ek_cuda_event_passed(struct ek_event *e)
{
    cudaError_t state = cudaEventQuery(e->event);

    if (state == cudaErrorNotReady)
        return EK_NO;
    return state == cudaSuccess ? EK_OK : ek_cuda_failed(e->dev, state, "cudaEventQuery");
}

double ek_cuda_event_seconds(struct ek_event *from, struct ek_event *to)
{
    float ms = 0;

    return cudaEventElapsedTime(&ms, from->event, to->event) == cudaSuccess ? ms * 1e-3 : -1;
}

enum ek_status ek_cuda_sync(struct ek_device *dev)
{
    ek_cuda_use(ek_cuda(dev));
    EK_CU_TRY(ek_cuda(dev), cudaStreamSynchronize(ek_cuda(dev)->queue.stream));
    return EK_OK;
}

enum ek_status ek_cuda_idle(struct ek_device *dev)
{
    cudaError_t state = cudaStreamQuery(ek_cuda(dev)->queue.stream);

    if (state == cudaErrorNotReady)
        return EK_NO;
    return state == cudaSuccess ? EK_OK : ek_cuda_failed(ek_cuda(dev), state, "cudaStreamQuery");
}

/* ---- graphs ------------------------------------------------------------------------------------
 */
enum ek_status ek_cuda_graph_begin(struct ek_device *dev)
{
    struct ek_cuda *d = ek_cuda(dev);

    ek_cuda_use(d);
    EK_CU_TRY(d, cudaStreamBeginCapture(d->queue.stream, cudaStreamCaptureModeThreadLocal));
    return EK_OK;
}

enum ek_status ek_cuda_graph_end(struct ek_device *dev, struct ek_graph **out)
{
    struct ek_cuda *d = ek_cuda(dev);
    struct ek_graph *g;
    cudaGraph_t captured;
    cudaError_t e;

    ek_cuda_use(d);
    EK_CU_TRY(d, cudaStreamEndCapture(d->queue.stream, &captured));
    if ((g = ek_calloc(1, sizeof(*g))) == NULL) {
        cudaGraphDestroy(captured);
        return EK_ENOMEM;
    }
    g->dev = d;
    d->captured = true;
    e = cudaGraphInstantiate(&g->exec, captured, 0);
    cudaGraphDestroy(captured);
    if (e == cudaSuccess)
        e = cudaGraphUpload(g->exec, d->queue.stream);
    if (e != cudaSuccess) {
        ek_cuda_graph_free(g);
        return ek_cuda_failed(d, e, "cudaGraphInstantiate");
    }
    *out = g;
    return EK_OK;
}

enum ek_status ek_cuda_graph_launch(struct ek_device *dev, struct ek_graph *g)
{
    ek_cuda_use(ek_cuda(dev));
    EK_CU_TRY(ek_cuda(dev), cudaGraphLaunch(g->exec, ek_cuda(dev)->queue.stream));
    return EK_OK;
}

void ek_cuda_graph_free(struct ek_graph *g)
{
    if (g == NULL)
        return;
    if (g->exec)
        cudaGraphExecDestroy(g->exec);
    free(g);
}
