/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages between two GPUs by NCCL's send and receive. The library (libnccl.so.2, or the file that
 * the environment variable EVENKEEL_NCCL names) is loaded when it is first asked for, so that
 * programs start without it. Communicators do not block: every call is polled,
 * with a deadline, and they are aborted, never finalised, for that may wait for a peer. A channel
 * has both ends in this process; its sender's thread issues the send on its own queue and the
 * receive on a stream beside the receiver's, which waits for an event behind it.
 */
#include "kernels/cuda/cuda.h"

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define CALL_S 30.0 /* for a call to come back, or a message to be queued */
#define OPEN_S 90.0 /* for two ends to find each other, the first time in a process */

static struct {
    ncclResult_t (*unique_id)(ncclUniqueId *);
    ncclResult_t (*init)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
    ncclResult_t (*state)(ncclComm_t, ncclResult_t *);
    ncclResult_t (*begin)(void);
    ncclResult_t (*end)(void);
    ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    ncclResult_t (*recv)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    ncclResult_t (*abort)(ncclComm_t);
    const char *(*text)(ncclResult_t);
} nccl;
static char missing[256]; /* why it cannot be used; empty: it can */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What channels take: one from a GPU to another, at its two ends, and the first of this process at
 * a GPU, which is the library's own and stays. Both are seen in what is free, so channels open one
 * at a time, under the lock, which guards the numbers too. */
enum { MAX_GPUS = 64 };
#define GRAIN ((uint64_t)2 << 20) /* of what is free: a channel takes so much more or less */
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static struct {
    bool known;
    uint64_t each[2];
} pairs[MAX_GPUS][MAX_GPUS];
static struct {
    bool known;
    uint64_t once;
} gpus[MAX_GPUS];

struct ek_channel {
    struct ek_cuda *end[2];
    ncclComm_t comm[2];
    uint64_t bytes[2];   /* that it took at its ends */
    bool counted;        /* these are in the ends' accounts */
    cudaStream_t side;   /* of the receiver */
    pthread_t thread;    /* that aborts */
    atomic_bool aborted; /* the thread was started */
};

static void load(void)
{
    const char *file = getenv("EVENKEEL_NCCL");
    void *lib;

    setenv("NCCL_NVLS_ENABLE", "0", 0); /* multicast of the switch: others may use it */
    file = file ? file : "libnccl.so.2";
    if ((lib = dlopen(file, RTLD_NOW | RTLD_LOCAL)) == NULL) {
        snprintf(missing, sizeof(missing), "%s", dlerror());
        return;
    }
    *(void **)&nccl.unique_id = dlsym(lib, "ncclGetUniqueId");
    *(void **)&nccl.init = dlsym(lib, "ncclCommInitRankConfig");
    *(void **)&nccl.state = dlsym(lib, "ncclCommGetAsyncError");
    *(void **)&nccl.begin = dlsym(lib, "ncclGroupStart");
    *(void **)&nccl.end = dlsym(lib, "ncclGroupEnd");
    *(void **)&nccl.send = dlsym(lib, "ncclSend");
    *(void **)&nccl.recv = dlsym(lib, "ncclRecv");
    *(void **)&nccl.abort = dlsym(lib, "ncclCommAbort");
    *(void **)&nccl.text = dlsym(lib, "ncclGetErrorString");
    if (!nccl.unique_id || !nccl.init || !nccl.state || !nccl.begin || !nccl.end || !nccl.send ||
        !nccl.recv || !nccl.abort || !nccl.text)
        snprintf(missing, sizeof(missing), "%s: not NCCL, or one before 2.14", file);
}

const char *ek_cuda_channel_lacks(const struct ek_device *dev, const struct ek_device *to)
{
    if (dev->ops != to->ops)
        return "one of them is no GPU";
    if (dev->spec.index == to->spec.index)
        return "NCCL refuses two ends on one GPU";
    pthread_once(&once, load);
    return missing[0] ? missing : NULL;
}

static enum ek_status failed(const struct ek_channel *c, const char *what, ncclResult_t r)
{
    return ek_error(EK_EDEVICE, "link %s -> %s (nccl): %s: %s", c->end[0]->base.spec.name,
                    c->end[1]->base.spec.name, what, nccl.text(r));
}

enum ek_status ek_cuda_channel_check(const struct ek_channel *c)
{
    for (int i = 0; i < 2 && !atomic_load(&c->aborted); i++) {
        ncclResult_t now = ncclSuccess, r = nccl.state(c->comm[i], &now);
        if (r != ncclSuccess || (now != ncclSuccess && now != ncclInProgress))
            return failed(c, "communicator", r != ncclSuccess ? r : now);
    }
    return EK_OK;
}

/* Polls until a call that was begun has come to its end at both ends. */
static enum ek_status settle(const struct ek_channel *c, const char *what, ncclResult_t begun,
                             double seconds)
{
    uint64_t until = ek_now_ns() + (uint64_t)(seconds * 1e9);

    if (begun != ncclSuccess && begun != ncclInProgress)
        return failed(c, what, begun);
    for (int i = 0; i < 2; i++) {
        ncclResult_t now = ncclInProgress, r = ncclSuccess;
        while (r == ncclSuccess && now == ncclInProgress && ek_now_ns() < until)
            r = c->comm[i] ? nccl.state(c->comm[i], &now) : ncclSuccess;
        if (r != ncclSuccess)
            return failed(c, what, r);
        if (now == ncclInProgress)
            return ek_error(EK_EDEVICE, "link %s -> %s (nccl): %s: no answer of %s for %.0f s",
                            c->end[0]->base.spec.name, c->end[1]->base.spec.name, what,
                            c->end[i]->base.spec.name, seconds);
        if (now != ncclSuccess)
            return failed(c, what, now);
    }
    return EK_OK;
}

static enum ek_status connect_ends(struct ek_channel *c)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    ncclResult_t r = nccl.unique_id(&id), ended;

    config.blocking = 0;
    config.minCTAs = config.maxCTAs = 1; /* more take memory, and hidden states need no more */
    if (r != ncclSuccess)
        return failed(c, "ncclGetUniqueId", r);
    nccl.begin();
    for (int i = 0; i < 2 && (r == ncclSuccess || r == ncclInProgress); i++) {
        ek_cuda_use(c->end[i]);
        r = nccl.init(&c->comm[i], 2, id, i, &config);
    }
    ended = nccl.end();
    return settle(c, "ncclCommInitRankConfig", r == ncclInProgress ? ended : r ? r : ended, OPEN_S);
}

/* The first message connects the two ends, which takes long, and memory. */
static enum ek_status connect_and_send(struct ek_channel *c, void *const p[2])
{
    EK_TRY(connect_ends(c));
    EK_TRY(ek_cuda_channel_send(c, p[0], p[1], EK_CU_ALIGN, NULL, NULL));
    for (int i = 0; i < 2; i++) {
        cudaStream_t queue = i ? c->side : c->end[0]->queue.stream;
        ek_cuda_use(c->end[i]);
        EK_TRY(ek_cuda_issued(c->end[i], cudaStreamSynchronize(queue), "nccl"));
    }
    return EK_OK;
}

/* By how much less is free: no other channel opens meanwhile. */
static void note_bytes(struct ek_channel *c, const uint64_t before[2])
{
    for (int i = 0; i < 2; i++) {
        uint64_t now = ek_cuda_avail(c->end[i]);
        c->bytes[i] = before[i] > now ? before[i] - now : 0;
    }
}

static enum ek_status connect_noted(struct ek_channel *c)
{
    uint64_t before[2];
    void *p[2] = {NULL, NULL};
    enum ek_status st = EK_OK;

    for (int i = 0; i < 2 && st == EK_OK; i++)
        st = ek_cuda_alloc(&c->end[i]->base, EK_TAG_COMM, EK_CU_ALIGN, &p[i]);
    for (int i = 0; i < 2; i++)
        before[i] = ek_cuda_avail(c->end[i]);
    if (st == EK_OK)
        st = connect_and_send(c, p);
    if (st == EK_OK)
        note_bytes(c, before);
    for (int i = 0; i < 2; i++)
        ek_cuda_release(&c->end[i]->base, p[i]);
    return st;
}

static enum ek_status open_uncounted(struct ek_device *dev, struct ek_device *to,
                                     struct ek_channel **out)
{
    struct ek_channel *c = ek_calloc(1, sizeof(*c));
    cudaError_t e;
    enum ek_status st;

    if (c == NULL)
        return EK_ENOMEM;
    c->end[0] = ek_cuda(dev);
    c->end[1] = ek_cuda(to);
    ek_cuda_use(c->end[1]);
    e = cudaStreamCreateWithFlags(&c->side, cudaStreamNonBlocking);
    EK_GOTO(ek_cuda_issued(c->end[1], e, "cudaStreamCreate"), st, fail);
    EK_GOTO(connect_noted(c), st, fail);
    *out = c;
    return EK_OK;
fail:
    ek_cuda_channel_close(c);
    return st;
}

/* Two, for the first at a GPU takes what the next do not. */
static enum ek_status try_out(struct ek_device *dev, struct ek_device *to)
{
    struct ek_channel *a = NULL, *b = NULL;
    int gpu[2] = {ek_cuda(dev)->gpu, ek_cuda(to)->gpu};
    enum ek_status st;

    EK_GOTO(open_uncounted(dev, to, &a), st, done);
    EK_GOTO(open_uncounted(dev, to, &b), st, done);
    for (int i = 0; i < 2; i++) {
        pairs[gpu[0]][gpu[1]].each[i] = b->bytes[i] + GRAIN;
        if (!gpus[gpu[i]].known && a->bytes[i] > b->bytes[i])
            gpus[gpu[i]].once = a->bytes[i] - b->bytes[i];
        gpus[gpu[i]].known = true;
    }
    pairs[gpu[0]][gpu[1]].known = true;
done:
    if (a != NULL && b != NULL)
        ek_cuda_channel_abort(a); /* both at once */
    ek_cuda_channel_close(b);
    ek_cuda_channel_close(a);
    return st;
}

/* What the channels of a pair take, tried out the first time. */
static enum ek_status know(struct ek_device *dev, struct ek_device *to,
                           struct ek_channel_bytes *out)
{
    int gpu[2] = {ek_cuda(dev)->gpu, ek_cuda(to)->gpu};

    for (int i = 0; i < 2; i++)
        if (gpu[i] >= MAX_GPUS)
            return ek_error(EK_EUNSUPPORTED, "nccl: GPU %d: at most %d", gpu[i], MAX_GPUS);
    if (!pairs[gpu[0]][gpu[1]].known)
        EK_TRY(try_out(dev, to));
    for (int i = 0; i < 2; i++) {
        out->each[i] = pairs[gpu[0]][gpu[1]].each[i];
        out->once[i] = gpus[gpu[i]].once;
    }
    return EK_OK;
}

enum ek_status ek_cuda_channel_bytes(struct ek_device *dev, struct ek_device *to,
                                     struct ek_channel_bytes *out)
{
    enum ek_status st;

    pthread_mutex_lock(&opening);
    st = know(dev, to, out);
    pthread_mutex_unlock(&opening);
    return st;
}

/* Tried out before, so that what it is counted with is its own. */
enum ek_status ek_cuda_channel_open(struct ek_device *dev, struct ek_device *to,
                                    struct ek_channel **out)
{
    struct ek_channel_bytes tried;
    enum ek_status st;

    pthread_mutex_lock(&opening);
    if ((st = know(dev, to, &tried)) == EK_OK)
        st = open_uncounted(dev, to, out);
    pthread_mutex_unlock(&opening);
    if (st != EK_OK)
        return st;
    for (int i = 0; i < 2; i++)
        ek_cuda_count((*out)->end[i], EK_TAG_COMM, (int64_t)(*out)->bytes[i]);
    (*out)->counted = true;
    return EK_OK;
}

enum ek_status ek_cuda_channel_send(struct ek_channel *c, const void *src, void *dst, size_t n,
                                    struct ek_event *before, struct ek_event *after)
{
    ncclResult_t r, ended;

    ek_cuda_use(c->end[1]);
    if (before != NULL)
        EK_CU_TRY(c->end[1], cudaStreamWaitEvent(c->side, ek_cuda_event_of(before), 0));
    nccl.begin();
    r = nccl.send(src, n, ncclUint8, 1, c->comm[0], c->end[0]->queue.stream);
    if (r == ncclSuccess || r == ncclInProgress)
        r = nccl.recv(dst, n, ncclUint8, 0, c->comm[1], c->side);
    ended = nccl.end();
    EK_TRY(settle(c, "ncclSend", r == ncclInProgress ? ended : r ? r : ended, CALL_S));
    ek_cuda_use(c->end[1]);
    if (after != NULL)
        EK_CU_TRY(c->end[1], cudaEventRecord(ek_cuda_event_of(after), c->side));
    return EK_OK;
}

static void *abort_ends(void *arg)
{
    struct ek_channel *c = arg;

    for (int i = 0; i < 2; i++)
        if (c->comm[i] != NULL)
            nccl.abort(c->comm[i]);
    return NULL;
}

/* An abort takes half a second, and may wait for a kernel that never ends: not this thread. */
void ek_cuda_channel_abort(struct ek_channel *c)
{
    if (!atomic_exchange(&c->aborted, true) && pthread_create(&c->thread, NULL, abort_ends, c) != 0)
        atomic_store(&c->aborted, false);
}

void ek_cuda_channel_close(struct ek_channel *c)
{
    if (c == NULL)
        return;
    ek_cuda_channel_abort(c);
    if (atomic_load(&c->aborted))
        pthread_join(c->thread, NULL);
    for (int i = 0; i < 2 && c->counted; i++)
        ek_cuda_count(c->end[i], EK_TAG_COMM, -(int64_t)c->bytes[i]);
    ek_cuda_use(c->end[1]);
    if (c->side != NULL)
        cudaStreamDestroy(c->side);
    free(c);
}
