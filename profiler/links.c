/* SPDX-License-Identifier: Apache-2.0
 *
 * A link, measured the way a step crosses it. A message goes there and one comes back by the link
 * in the other direction, so that one clock sees both ways; what is kept is half of it. Where the
 * two queues pass messages on by themselves, a chain of round trips is queued behind a gate, as
 * the engine queues a stage while the one before it runs, and the device's clock times it. Else
 * there is one thread a device: the sender copies into the link and wakes the receiver, who copies
 * out.
 */
#include "profiler/measure.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SIZES = 8, WARM = 3, ROUNDS = 25 };
enum { CHAIN = 4 };                   /* round trips queued at once */
#define PATIENCE_S  10.0              /* for a chain to end */
#define LEAST_BYTES ((size_t)1 << 10) /* then times 4: up to 16 MiB */

struct table { /* of a ping-pong */
    struct ek_device *dev[2];
    struct ek_link *link[2];  /* [0]: from dev[0] to dev[1]; [1]: back */
    void *buffer[2];          /* activations, one a device */
    void *slot[2];            /* a message that came to it and lies there; NULL: in buffer */
    struct ek_event *mark[2]; /* of dev[0]: around a chain */
    size_t max, n;            /* activations: of the buffers, of this message */
    _Atomic uint32_t *gate;   /* host memory of dev[0]: how many chains may begin, ... */
    uint32_t chains;          /* ... of so many queued */
    pthread_mutex_t lock;
    pthread_cond_t turn_changed;
    uint32_t sent[2]; /* messages in either direction */
    bool stop;
    enum ek_status status; /* of the other thread */
    char message[1024];
};

static void post(struct table *t, int direction)
{
    pthread_mutex_lock(&t->lock);
    t->sent[direction]++;
    pthread_cond_broadcast(&t->turn_changed);
    pthread_mutex_unlock(&t->lock);
}

/* Until a message of that number was sent; false when the other thread gave up. */
static bool await(struct table *t, int direction, uint32_t number)
{
    bool ok;

    pthread_mutex_lock(&t->lock);
    while (t->sent[direction] < number && !t->stop)
        pthread_cond_wait(&t->turn_changed, &t->lock);
    ok = !t->stop;
    pthread_mutex_unlock(&t->lock);
    return ok;
}

static void give_up(struct table *t)
{
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->turn_changed);
    pthread_mutex_unlock(&t->lock);
}

static enum ek_status send_message(struct table *t, int direction)
{
    EK_TRY(ek_link_send(t->link[direction], t->buffer[direction], t->n, NULL));
    post(t, direction);
    return EK_OK;
}

static enum ek_status receive_message(struct table *t, int direction)
{
    struct ek_device *to = t->dev[!direction];

    EK_TRY(ek_link_wait(t->link[direction], NULL));
    EK_TRY(ek_link_recv(t->link[direction], t->buffer[!direction], t->n));
    return to->ops->sync(to);
}

/* The far side: sends back whatever comes. */
static void *reflect(void *arg)
{
    struct table *t = arg;

    for (uint32_t number = 1; await(t, 0, number); number++) {
        enum ek_status st = receive_message(t, 0);
        if (st == EK_OK)
            st = send_message(t, 1);
        if (st != EK_OK) {
            t->status = st;
            snprintf(t->message, sizeof(t->message), "%s", ek_last_error());
            give_up(t);
            break;
        }
    }
    return NULL;
}

static enum ek_status round_trip(struct table *t, uint32_t number, double *seconds)
{
    uint64_t begin = ek_now_ns();

    EK_TRY(send_message(t, 0));
    if (!await(t, 1, number))
        return ek_error(t->status, "%s", t->message);
    EK_TRY(receive_message(t, 1));
    *seconds = (double)(ek_now_ns() - begin) * 1e-9;
    return EK_OK;
}

/* The message that device i holds is its own again; where it was in a slot, that is free. */
static enum ek_status let_go(struct table *t, int i)
{
    void *slot = t->slot[i];

    t->slot[i] = NULL;
    return slot ? ek_link_recv(t->link[!i], slot, t->n) : EK_OK;
}

/* As the engine does it: a message that lies in the receiver's memory is worked on there. */
static enum ek_status cross(struct table *t, int direction)
{
    int to = !direction;
    void *x = t->slot[direction] ? t->slot[direction] : t->buffer[direction];

    EK_TRY(ek_link_send(t->link[direction], x, t->n, NULL));
    EK_TRY(let_go(t, direction));
    EK_TRY(ek_link_wait(t->link[direction], NULL));
    t->slot[to] = ek_link_slot(t->link[direction]);
    return t->slot[to] ? EK_OK : ek_link_recv(t->link[direction], t->buffer[to], t->n);
}

/* What came back last to where it is looked at. */
static enum ek_status keep(struct table *t)
{
    struct ek_device *d = t->dev[0];

    if (t->slot[0] != NULL)
        EK_TRY(d->ops->copy(d, t->buffer[0], t->slot[0], t->n * ek_dtype_block_bytes(d->act)));
    return let_go(t, 0);
}

/* Until a chain has passed; what never comes is told. */
static enum ek_status passes(struct table *t)
{
    struct ek_device *d = t->dev[0];
    enum ek_status st = ek_event_poll(d, t->mark[1], PATIENCE_S);

    if (st == EK_NO)
        st =
            ek_error(EK_EDEVICE, "link %s -> %s (%s): no end of a message for %.0f s", d->spec.name,
                     t->dev[1]->spec.name, ek_link_mechanism(t->link[0]), PATIENCE_S);
    for (int i = 0; st != EK_OK && i < 2; i++)
        ek_link_abandon(t->link[i]);
    return st;
}

static enum ek_status queue_chain(struct table *t)
{
    struct ek_device *d = t->dev[0];

    EK_TRY(d->ops->event_record(d, t->mark[0]));
    for (int i = 0; i < 2 * CHAIN; i++)
        EK_TRY(cross(t, i % 2));
    EK_TRY(d->ops->event_record(d, t->mark[1]));
    return keep(t);
}

/* A round trip without the host: all of a chain is queued before it begins. Not the first, for
 * kernels may have to be loaded, which waits for those that run. */
static enum ek_status chained_trip(struct table *t, double *seconds)
{
    struct ek_device *d = t->dev[0];
    enum ek_status st;

    if (t->chains++ > 0)
        EK_TRY(d->ops->flag_wait(d, (const uint32_t *)t->gate, t->chains, NULL, NULL));
    st = queue_chain(t);
    atomic_store(t->gate, t->chains);
    EK_TRY(st);
    EK_TRY(passes(t));
    *seconds = d->ops->event_seconds(t->mark[0], t->mark[1]) / CHAIN;
    return EK_OK;
}

static bool chained(const struct table *t)
{
    return t->gate != NULL && ek_link_queued(t->link[0]) && ek_link_queued(t->link[1]);
}

static enum ek_status any_trip(struct table *t, double *seconds)
{
    return chained(t) ? chained_trip(t, seconds) : round_trip(t, t->sent[0] + 1, seconds);
}

/* ---- Fit --------------------------------------------------------------------------------------
 */

/* Least squares of the relative errors: with w = 1 / t, alpha w + bytes / beta w = 1. */
void link_fit(const double *bytes, const double *seconds, size_t n, struct ek_store_link *out)
{
    double a11 = 0, a12 = 0, a22 = 0, b1 = 0, b2 = 0, det, alpha, slope;

    for (size_t i = 0; i < n; i++) {
        double w = 1 / seconds[i], x = bytes[i] * w;
        a11 += w * w;
        a12 += w * x;
        a22 += x * x;
        b1 += w;
        b2 += x;
    }
    det = a11 * a22 - a12 * a12;
    alpha = det > 0 ? (b1 * a22 - b2 * a12) / det : 0;
    slope = det > 0 ? (a11 * b2 - a12 * b1) / det : b2 / a22;
    if (alpha < 0) { /* no latency to speak of: the best line through the origin */
        alpha = 0;
        slope = b2 / a22;
    }
    if (slope <= 0) /* no size tells from another: at least as fast as the largest went */
        slope = seconds[n - 1] / bytes[n - 1];
    /* the largest message is mostly latency: its bytes are not told apart from that. What it
     * reached */
    if (bytes[n - 1] * slope < alpha) {
        slope = seconds[n - 1] / bytes[n - 1];
        alpha = fmax(seconds[0] - bytes[0] * slope, 0);
    }
    out->alpha_s = alpha;
    out->beta_bytes_s = 1 / slope;
    out->residual = 0;
    for (size_t i = 0; i < n; i++)
        out->residual =
            fmax(out->residual, fabs(alpha + bytes[i] * slope - seconds[i]) / seconds[i]);
}

double link_typical(const struct ek_store_link *l)
{
    return l->alpha_s + 65536 / l->beta_bytes_s;
}

const struct ek_store_link *link_fastest(const struct ek_store_link *links, size_t n,
                                         const char *from, const char *to)
{
    const struct ek_store_link *best = NULL;

    for (size_t i = 0; i < n; i++)
        if (strcmp(links[i].from, from) == 0 && strcmp(links[i].to, to) == 0 &&
            strchr(links[i].mechanism, ' ') == NULL &&
            (best == NULL || link_typical(&links[i]) < link_typical(best)))
            best = &links[i];
    return best;
}

/* ---- Set-up -----------------------------------------------------------------------------------
 */

static enum ek_status check_data(struct table *t)
{
    size_t bytes = t->n * ek_dtype_block_bytes(t->dev[0]->act);
    char *want, *got;
    enum ek_status st = EK_ENOMEM;

    want = ek_calloc(bytes, 2);
    if (!want)
        return st;
    got = want + bytes;
    EK_GOTO(rig_fill_random(t->dev[0], t->buffer[0], bytes, t->dev[0]->act), st, done);
    EK_GOTO(t->dev[0]->ops->download(t->dev[0], want, t->buffer[0], bytes), st, done);
    double skip;
    EK_GOTO(any_trip(t, &skip), st, done);
    EK_GOTO(t->dev[0]->ops->download(t->dev[0], got, t->buffer[0], bytes), st, done);
    if (t->dev[0]->act == t->dev[1]->act && memcmp(want, got, bytes) != 0)
        st = ek_error(EK_EDEVICE, "link %s -> %s: what came back is not what was sent",
                      t->dev[0]->spec.name, t->dev[1]->spec.name);
done:
    free(want);
    return st;
}

static enum ek_status ping_pong(struct table *t, struct ek_store_link *out)
{
    double bytes[SIZES], seconds[SIZES], samples[ROUNDS];
    size_t act = ek_dtype_block_bytes(t->dev[0]->act), n = 0;

    for (size_t size = LEAST_BYTES; n < SIZES && size / act <= t->max; size *= 4, n++) {
        t->n = size / act;
        for (int i = -WARM; i < ROUNDS; i++) {
            double s;
            EK_TRY(any_trip(t, &s));
            if (i >= 0)
                samples[i] = s / 2;
        }
        bytes[n] = (double)size;
        seconds[n] = timing_median(samples, ROUNDS);
    }
    EK_TRY(check_data(t));
    link_fit(bytes, seconds, n, out);
    out->n = n * ROUNDS;
    return EK_OK;
}

static void close_table(struct table *t)
{
    for (int i = 0; i < 2; i++)
        ek_link_abandon(t->link[i]); /* at once: NCCL takes half a second to end one */
    for (int i = 0; i < 2; i++) {
        ek_link_close(t->link[i]);
        if (t->mark[i])
            t->dev[0]->ops->event_free(t->mark[i]);
        if (t->buffer[i])
            t->dev[i]->ops->release(t->dev[i], t->buffer[i]);
    }
    if (t->gate)
        t->dev[0]->ops->host_free(t->dev[0], (void *)(uintptr_t)t->gate);
    pthread_cond_destroy(&t->turn_changed);
    pthread_mutex_destroy(&t->lock);
}

static enum ek_status open_table(struct table *t, const char *mechanism)
{
    for (int i = 0; i < 2; i++) {
        struct ek_device *d = t->dev[i];
        size_t bytes = t->max * ek_dtype_block_bytes(d->act);
        EK_TRY(ek_link_open_as(d, t->dev[!i], t->max, mechanism, &t->link[i]));
        EK_TRY(t->dev[0]->ops->event_new(t->dev[0], &t->mark[i]));
        EK_TRY(d->ops->alloc(d, EK_TAG_WORKSPACE, bytes, &t->buffer[i]));
        EK_TRY(rig_fill_random(d, t->buffer[i], bytes, d->act));
    }
    if (t->dev[0]->ops->flag_wait == NULL)
        return EK_OK;
    EK_TRY(t->dev[0]->ops->host_alloc(t->dev[0], sizeof(*t->gate), (void **)&t->gate));
    atomic_store(t->gate, 0);
    return EK_OK;
}

static enum ek_status measure(struct table *t, struct ek_store_link *out)
{
    pthread_t thread;
    enum ek_status st;

    if (chained(t))
        return ping_pong(t, out);
    if (pthread_create(&thread, NULL, reflect, t) != 0)
        return ek_error(EK_EENV, "link %s -> %s: cannot start a thread", t->dev[0]->spec.name,
                        t->dev[1]->spec.name);
    st = ping_pong(t, out);
    give_up(t);
    pthread_join(thread, NULL);
    return st;
}

enum ek_status ek_measure_link_as(struct ek_device *from, struct ek_device *to,
                                  const char *mechanism, struct ek_store_link *out)
{
    struct table t = {.dev = {from, to}, .status = EK_OK};
    struct ek_store_link l = {.n = 0};
    enum ek_status st;

    t.max = (LEAST_BYTES << 2 * (SIZES - 1)) / ek_dtype_block_bytes(from->act);
    pthread_mutex_init(&t.lock, NULL);
    pthread_cond_init(&t.turn_changed, NULL);
    EK_GOTO(open_table(&t, mechanism), st, done);
    EK_GOTO(measure(&t, &l), st, done);
    snprintf(l.from, sizeof(l.from), "%s", from->spec.name);
    snprintf(l.to, sizeof(l.to), "%s", to->spec.name);
    snprintf(l.mechanism, sizeof(l.mechanism), "%s", ek_link_mechanism(t.link[0]));
    *out = l;
done:
    close_table(&t);
    return st;
}

enum ek_status ek_measure_link(struct ek_device *from, struct ek_device *to,
                               struct ek_store_link *out)
{
    return ek_measure_link_as(from, to, ek_link_pick(from, to, NULL), out);
}
