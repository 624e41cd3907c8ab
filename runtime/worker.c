/* SPDX-License-Identifier: Apache-2.0
 *
 * The worker of a device: loads its stages, then runs steps at them. Everything is queued; the host
 * waits for the device only where a step ends, and on the thread that asked for it.
 */
#include "runtime/engine.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SPIN_NS                                                                                    \
    ((uint64_t)50000000)            /* a worker of a device with a queue looks so long for work    \
                                     */
#define LOOK_NS    ((uint64_t)5000) /* ... and so long for a message that is under way */
#define SPIN_CORES 4 /* ... where there are so many cores a device, before it sleeps */

void engine_wake(struct engine_device *d)
{
    atomic_fetch_add(&d->signals, 1);
    pthread_cond_signal(&d->wake);
}

/* A receiver may wait for what never comes. */
static void abandon_links(struct ek_engine *e)
{
    for (size_t i = 0; i < e->n_stages; i++)
        ek_link_abandon(e->stages[i].out);
    for (size_t i = 0; i < e->vision.n_path; i++)
        ek_link_abandon(e->vision.path[i].in);
}

void engine_fail(struct ek_engine *e, enum ek_status st)
{
    if (e->failed == EK_OK) {
        e->failed = st;
        snprintf(e->message, sizeof(e->message), "%s", ek_last_error());
        abandon_links(e);
    }
    pthread_cond_broadcast(&e->done);
    for (size_t i = 0; i < e->plan->n_devices; i++)
        engine_wake(&e->devices[i]);
}

enum ek_status engine_failed(const struct ek_engine *e)
{
    return ek_error(EK_EDEVICE, "%s", e->message);
}

void engine_push(struct ek_engine *e, size_t stage, struct engine_step *step)
{
    struct engine_stage *s = &e->stages[stage];

    s->queue[(s->head + s->n++) % e->max_in_flight] = step;
    engine_wake(&e->devices[s->device]);
}

static struct ek_device *device_of(const struct ek_engine *e, size_t stage)
{
    return e->devices[e->stages[stage].device].dev;
}

/* Behind it the ids of a step that is issued are there. */
static struct ek_event *end_of(const struct engine_step *step)
{
    return step->pass[step->last_stage].ended;
}

/* Whether what a step needs is there, or its queue may wait for it: the ids of the step that it
 * follows, or a message. A queue that waits holds up what the device's other stages have to do: a
 * device that is visited more than once queues no step before that has come. A queue waits for
 * devices of its own kind alone. */
static bool arrived(const struct ek_engine *e, size_t i, const struct engine_step *step)
{
    const struct ek_device *dev = device_of(e, i), *other;
    bool revisited = e->devices[e->stages[i].device].revisited;

    if (i == 0 && step->from == NULL)
        return true;
    other = device_of(e, i == 0 ? step->from->last_stage : i - 1);
    if (other == dev || (!revisited && (i > 0 || other->ops == dev->ops)))
        return true;
    return other->ops->event_passed(i == 0 ? end_of(step->from) : step->pass[i - 1].ended) != EK_NO;
}

/* Oldest step that can run on the device; *coming: there are others whose messages are under way.
 * The lock is held. */
static struct engine_step *pick(struct ek_engine *e, uint32_t device, size_t *stage, bool *coming)
{
    struct engine_step *best = NULL;

    for (size_t i = 0; i < e->n_stages; i++) {
        struct engine_stage *s = &e->stages[i];
        struct engine_step *first;
        if (s->device != device || s->n == 0)
            continue;
        first = s->queue[s->head];
        if (first->last_stage != i && !ek_link_ready(s->out))
            continue;
        if (i == 0 && first->from != NULL && !first->from->issued)
            continue;
        if (!arrived(e, i, first)) {
            *coming = true;
            continue;
        }
        if (best == NULL || first->ticket < best->ticket) {
            best = first;
            *stage = i;
        }
    }
    if (best != NULL) {
        struct engine_stage *s = &e->stages[*stage];
        s->head = (s->head + 1) % e->max_in_flight;
        s->n--;
        best->pass[*stage].order = ++e->order;
    }
    return best;
}

/* Activations that cross into a stage. */
static size_t boundary(const struct ek_engine *e, const struct engine_stage *to,
                       const struct engine_step *step)
{
    return (size_t)(to->normed_in ? step->rows : step->counts.n_tokens) * e->m->config.hidden;
}

static uint64_t *time_of(struct engine_pass *pass, unsigned which)
{
    return (uint64_t *)&pass->when[which];
}

static enum ek_status mark(struct ek_engine *e, size_t i, struct engine_step *step, unsigned which)
{
    struct ek_device *dev = device_of(e, i);

    EK_TRY(dev->ops->stamp(dev, time_of(&step->pass[i], which)));
    atomic_store(&step->pass[i].recorded, which + 1);
    return EK_OK;
}

/* The message is taken, or the slot that the stage worked in is free: the sender may go on. */
static enum ek_status take(struct ek_engine *e, size_t i, const struct engine_step *step)
{
    struct engine_stage *s = &e->stages[i];

    EK_TRY(ek_link_recv(s->in, ek_stage_hidden(s->stage), boundary(e, s, step)));
    pthread_mutex_lock(&e->lock);
    engine_wake(&e->devices[e->stages[i - 1].device]);
    pthread_mutex_unlock(&e->lock);
    return EK_OK;
}

/* Rows of a padded batch that no message brings are those of its first sequence. */
static enum ek_status pad(struct ek_engine *e, const struct engine_stage *s,
                          const struct engine_step *step, const struct ek_batch *batch)
{
    struct ek_device *dev = e->devices[s->device].dev;
    char *x = ek_stage_hidden(s->stage);
    size_t row = e->m->config.hidden * stage_act_bytes(s->stage);

    for (uint32_t k = step->counts.n_tokens; k < batch->n_tokens && !s->normed_in; k++)
        EK_TRY(dev->ops->copy(dev, x + k * row, x, row));
    return EK_OK;
}

/* Where a message lies in this device's memory the stage works in its slot; else it is copied. The
 * wait for it notes the time: a mark of its own takes the queue a microsecond. */
static enum ek_status receive(struct ek_engine *e, size_t i, struct engine_step *step,
                              const struct ek_batch *batch)
{
    struct engine_stage *s = &e->stages[i];
    struct engine_pass *pass = &step->pass[i];
    void *slot = NULL;

    pass->received = MARK_BEGIN;
    if (s->in == NULL) {
        EK_TRY(mark(e, i, step, MARK_BEGIN));
    } else {
        EK_TRY(ek_link_wait(s->in, time_of(pass, MARK_BEGIN)));
        atomic_store(&pass->recorded, MARK_BEGIN + 1);
        slot = ek_link_slot(s->in);
        stage_work_at(s->stage, slot);
    }
    if (s->in == NULL || (slot != NULL && batch->n_tokens == step->counts.n_tokens)) {
        atomic_store(&pass->recorded, MARK_RECEIVED + 1);
        return EK_OK;
    }
    if (slot == NULL)
        EK_TRY(take(e, i, step));
    EK_TRY(pad(e, s, step, batch));
    pass->received = MARK_RECEIVED;
    return mark(e, i, step, MARK_RECEIVED);
}

/* Host room for the rows of a step, of the head's device. */
static enum ek_status make_room(struct ek_device *dev, struct engine_step *step, uint32_t vocab)
{
    size_t need = (size_t)step->rows * vocab;

    if (step->ids_only || need <= step->logits_cap)
        return EK_OK;
    if (step->logits != NULL)
        dev->ops->host_free(dev, step->logits);
    step->logits = NULL;
    step->logits_cap = 0;
    EK_TRY(dev->ops->host_alloc(dev, need * sizeof(float), (void **)&step->logits));
    step->logits_cap = need;
    return EK_OK;
}

/* Ids and, when asked for, the logits of rows at .. at + n to the host. */
static enum ek_status fetch(struct ek_engine *e, struct ek_stage *s, struct engine_step *step,
                            uint32_t at, uint32_t n)
{
    uint32_t vocab = e->m->config.vocab;
    const float *logits = ek_stage_logits(s);

    if (step->drawn)
        EK_TRY(s->dev->ops->sample(s->dev, logits, n, vocab, step->draws + at, step->ids + at));
    else
        EK_TRY(s->dev->ops->argmax(s->dev, logits, n, vocab, step->ids + at));
    if (step->ids_only)
        return EK_OK;
    return s->dev->ops->fetch(s->dev, step->logits + (size_t)at * vocab, logits,
                              (size_t)n * vocab * sizeof(*logits));
}

/* A stage with the head: rows in pieces of the logits buffer, usually one. */
static enum ek_status run_with_head(struct ek_engine *e, struct ek_stage *s,
                                    struct engine_step *step, const struct ek_batch *batch,
                                    const int32_t *rows, uint32_t n_rows)
{
    void *x = ek_stage_hidden(s);
    uint32_t piece = s->opt.max_logits, vocab = e->m->config.vocab;
    size_t row = e->m->config.hidden * stage_act_bytes(s);

    EK_TRY(make_room(s->dev, step, vocab));
    if (n_rows <= piece) {
        EK_TRY(ek_stage_run(s, batch, x, ek_stage_logits(s), rows, n_rows));
        return step->rows ? fetch(e, s, step, 0, step->rows) : EK_OK;
    }
    EK_TRY(stage_run_layers(s, batch, x));
    for (uint32_t at = 0; at < step->rows; at += piece) {
        uint32_t n = step->rows - at < piece ? step->rows - at : piece;
        /* with the norm here rows are gathered; else they came normalised, in order */
        const void *from = s->has_norm ? x : (char *)x + at * row;
        EK_TRY(stage_run_head(s, from, rows + at, n, ek_stage_logits(s)));
        EK_TRY(fetch(e, s, step, at, n));
    }
    return EK_OK;
}

/* The output of a stage of one module. */
static enum ek_status trace(struct ek_engine *e, struct engine_stage *s, struct engine_step *step)
{
    uint32_t n = s->norm ? step->rows : step->counts.n_tokens, hidden = e->m->config.hidden;
    float *rows;
    enum ek_status st;

    if (n == 0)
        return EK_OK;
    if ((rows = ek_calloc((size_t)n * hidden, sizeof(*rows))) == NULL)
        return EK_ENOMEM;
    st = stage_fetch(s->stage, ek_stage_hidden(s->stage), (size_t)n * hidden, rows);
    if (st == EK_OK)
        e->trace(e->trace_user, e->m->modules[s->modules[0]].name, rows, n, hidden);
    free(rows);
    return st;
}

/* From the arrival of the message to the next one's departure. */
static enum ek_status work(struct ek_engine *e, size_t i, struct engine_step *step,
                           const struct ek_batch *batch, const int32_t *rows, uint32_t n_rows)
{
    struct engine_stage *s = &e->stages[i];
    void *x = ek_stage_hidden(s->stage);

    if (i == 0 && step->from != NULL && step->from->status != EK_OK)
        return ek_error(step->from->status, "%s", step->from->message);
    EK_TRY(engine_hang(e, i));
    if (s->head_mod)
        EK_TRY(run_with_head(e, s->stage, step, batch, rows, n_rows));
    else
        EK_TRY(ek_stage_run(s->stage, batch, x, x, rows, n_rows));
    if (e->trace != NULL && !s->head_mod)
        EK_TRY(trace(e, s, step));
    if (step->last_stage == i)
        return mark(e, i, step, MARK_RAN);
    EK_TRY(ek_link_send(s->out, x, boundary(e, s + 1, step), time_of(&step->pass[i], MARK_RAN)));
    atomic_store(&step->pass[i].recorded, MARK_RAN + 1);
    return EK_OK;
}

/* The stage has sent on what it made; the last one has sent nothing. */
static enum ek_status end_pass(struct ek_engine *e, size_t i, struct engine_step *step)
{
    struct ek_device *dev = device_of(e, i);

    EK_TRY(dev->ops->event_record(dev, step->pass[i].ended));
    atomic_store(&step->pass[i].recorded, N_MARKS);
    return EK_OK;
}

/* The batch, with the ids of the step that this one follows: its queue waits for them where they
 * are made elsewhere. */
static enum ek_status take_batch(struct ek_engine *e, size_t i, const struct engine_step *step,
                                 struct ek_batch *batch, const int32_t **rows, uint32_t *n_rows)
{
    const struct engine_step *from = i == 0 ? step->from : NULL;
    struct ek_device *dev = device_of(e, i), *other;

    other = from ? device_of(e, from->last_stage) : dev;
    if (other != dev && other->ops == dev->ops)
        EK_TRY(dev->ops->event_wait(dev, end_of(from)));
    return stage_take_image(e->stages[i].stage, step->image, from ? from->ids : NULL, &step->counts,
                            batch, rows, n_rows);
}

/* A stage that finds no memory ends its step there, and nothing else: what came is taken, what was
 * to go on does not. */
static enum ek_status end_step(struct ek_engine *e, size_t i, struct engine_step *step)
{
    step->status = EK_ENOMEM;
    snprintf(step->message, sizeof(step->message), "%s", ek_last_error());
    pthread_mutex_lock(&e->lock);
    step->last_stage = (uint32_t)i;
    pthread_mutex_unlock(&e->lock);
    return mark(e, i, step, MARK_RAN);
}

static enum ek_status run_step(struct ek_engine *e, size_t i, struct engine_step *step)
{
    struct engine_stage *s = &e->stages[i];
    struct ek_batch batch;
    const int32_t *rows;
    uint32_t n_rows;
    enum ek_status st;

    /* the batch's description is there before the hidden states are */
    EK_TRY(take_batch(e, i, step, &batch, &rows, &n_rows));
    if (s->embed)
        EK_TRY(stage_replace(s->stage, step->embeds, step->places, step->n_embeds));
    if (step->last_stage != i)
        EK_TRY(ek_link_reserve(s->out));
    EK_TRY(receive(e, i, step, &batch));
    st = work(e, i, step, &batch, rows, n_rows);
    if (st == EK_ENOMEM)
        st = end_step(e, i, step);
    EK_TRY(st);
    EK_TRY(end_pass(e, i, step));
    return s->in && ek_link_slot(s->in) == ek_stage_hidden(s->stage) ? take(e, i, step) : EK_OK;
}

bool engine_settle(struct ek_engine *e)
{
    struct engine_step **at = &e->ended, *step;

    while (*at != NULL && (*at)->followers > 0)
        at = &(*at)->next;
    if ((step = *at) == NULL)
        return false;
    *at = step->next;
    e->n_ended--;
    for (size_t i = 0; i <= step->last_stage; i++) {
        struct ek_stage_timing *t = &e->stages[i].timing;
        const struct engine_pass *pass = &step->pass[i];
        /* the end of the last stage is after all sends, but not after what is noted of them */
        if (device_of(e, i)->ops->event_sync(pass->ended) != EK_OK)
            break;
        t->steps++;
        t->tokens += step->counts.n_tokens;
        t->busy_s += (double)(int64_t)(pass->when[MARK_RAN] - pass->when[pass->received]) * 1e-9;
    }
    step->next = e->idle;
    e->idle = step;
    return true;
}

void engine_finish(struct ek_engine *e, struct engine_step *step)
{
    struct ek_device *dev = e->devices[e->stages[step->last_stage].device].dev;
    enum ek_status st;

    step->finishing = true;
    st = engine_await(e, dev, end_of(step));
    if (st != EK_OK && e->failed == EK_OK)
        engine_fail(e, st);
    if (e->failed != EK_OK) /* what is there may come from a link that was cut */
        return;
    step->done = true;
    if (step->from != NULL)
        step->from->followers--;
    step->from = NULL;
    e->in_flight--;
    engine_moved(e);
    pthread_cond_broadcast(&e->done);
}

static enum ek_status load(struct engine_device *d)
{
    struct ek_engine *e = d->e;

    for (size_t i = 0; i < e->n_all; i++) {
        struct engine_stage *s = &e->stages[i];
        struct ek_stage_options o;
        if (s->device != d->index)
            continue;
        o = engine_stage_options(e, i);
        EK_TRY(ek_stage_new(d->dev, e->m, s->modules, s->n_modules, &o, &s->stage));
        EK_TRY(engine_vision_fetch(e, s->stage));
    }
    return EK_OK;
}

/* Looks for a signal for a while, the lock not held: waking a thread takes longer than a decode
 * step has to spare. Only where the device works without its thread, and cores are plenty. */
static void spin(struct engine_device *d, unsigned seen)
{
    uint64_t until = ek_now_ns() + SPIN_NS;

    if (!d->spins)
        return;
    pthread_mutex_unlock(&d->e->lock);
    while (atomic_load(&d->signals) == seen && ek_now_ns() < until)
        ;
    pthread_mutex_lock(&d->e->lock);
}

/* A message that is under way wakes nobody: a moment, and another look. */
static void look_again(struct engine_device *d, unsigned seen)
{
    uint64_t until = ek_now_ns() + LOOK_NS;

    pthread_mutex_unlock(&d->e->lock);
    while (atomic_load(&d->signals) == seen && ek_now_ns() < until)
        sched_yield();
    pthread_mutex_lock(&d->e->lock);
}

/* Waits for a step to run, or for a part of a picture (*out NULL); false when the engine closes.
 * The lock is held. */
static bool next_work(struct engine_device *d, size_t *stage, struct engine_step **out,
                      struct engine_encode **job)
{
    struct ek_engine *e = d->e;
    uint64_t from = ek_now_ns();
    struct engine_step *step = NULL;
    bool coming = false;

    while (!e->closing &&
           (e->failed != EK_OK || ((*job = engine_vision_ready(e, d->index)) == NULL &&
                                   (step = pick(e, d->index, stage, &coming)) == NULL))) {
        unsigned seen = atomic_load(&d->signals);
        if (e->failed == EK_OK)
            (void)engine_settle(e); /* there is time for it now */
        if (coming && e->failed == EK_OK) {
            coming = false;
            look_again(d, seen);
            continue;
        }
        spin(d, seen);
        if (atomic_load(&d->signals) == seen) /* only who holds the lock signals */
            pthread_cond_wait(&d->wake, &e->lock);
    }
    *out = step;
    if (e->closing || step == NULL)
        return !e->closing;
    e->stages[*stage].timing.wait_s += (double)(ek_now_ns() - from) * 1e-9;
    return true;
}

/* The device's part of a picture; the lock is held. */
static void encode(struct ek_engine *e, struct engine_encode *job)
{
    enum ek_status st;

    job->running = true;
    pthread_mutex_unlock(&e->lock);
    st = engine_vision_run(e, job);
    pthread_mutex_lock(&e->lock);
    engine_moved(e);
    engine_vision_pass(e, job, st);
}

/* Who waits for it may finish it, and a step that follows it may begin; the lock is held. */
static void issued(struct ek_engine *e, struct engine_step *step)
{
    step->issued = true;
    engine_wake(&e->devices[e->stages[0].device]);
    pthread_cond_broadcast(&e->done);
}

void *engine_worker(void *device)
{
    struct engine_device *d = device;
    struct ek_engine *e = d->e;
    struct engine_step *step;
    struct engine_encode *job = NULL;
    size_t stage = 0;
    enum ek_status st = load(d);

    d->spins = d->dev->ops->graph_begin != NULL &&
               sysconf(_SC_NPROCESSORS_ONLN) >= (long)(SPIN_CORES * e->plan->n_devices);
    pthread_mutex_lock(&e->lock);
    if (st != EK_OK)
        engine_fail(e, st);
    d->loaded = true;
    pthread_cond_broadcast(&e->done);
    while (next_work(d, &stage, &step, &job)) {
        if (step == NULL) {
            encode(e, job);
            continue;
        }
        pthread_mutex_unlock(&e->lock);
        st = run_step(e, stage, step);
        pthread_mutex_lock(&e->lock);
        engine_moved(e);
        if (st != EK_OK)
            engine_fail(e, st);
        else if (step->last_stage == stage)
            issued(e, step);
        else
            engine_push(e, stage + 1, step);
    }
    d->ended = true;
    pthread_cond_broadcast(&e->done);
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
