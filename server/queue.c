/* SPDX-License-Identifier: Apache-2.0 */
#include "server/queue.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOOK_NS    100000000 /* how often waiting threads look up */
#define STOPPING   "the server is stopping"
#define ANSWER_MAX ((size_t)1 << 23)

void queue_open(struct queue *q, const atomic_bool *stop)
{
    pthread_condattr_t attributes;

    *q = (struct queue){.stop = stop};
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->arrived, &attributes);
    pthread_cond_init(&q->moved, &attributes);
    pthread_condattr_destroy(&attributes);
}

void queue_close(struct queue *q)
{
    pthread_cond_destroy(&q->arrived);
    pthread_cond_destroy(&q->moved);
    pthread_mutex_destroy(&q->lock);
}

/* The lock is held. */
static void wait_a_moment(struct queue *q, pthread_cond_t *what)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += LOOK_NS;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(what, &q->lock, &t);
}

/* ---- The thread that generates ----------------------------------------------------------------
 */
static double seconds_since(uint64_t from)
{
    return (double)(ek_now_ns() - from) * 1e-9;
}

/* The lock is held. */
static void end(struct queue *q, struct job *j, enum ek_status st)
{
    struct queue_numbers *n = &q->numbers;

    j->ended = true;
    j->status = st;
    n->whole_s += seconds_since(j->since);
    if (st == EK_OK && (j->enough || j->generation.out.finish == EK_FINISH_STOP))
        n->stopped++;
    else if (st == EK_OK && j->generation.out.finish == EK_FINISH_LENGTH)
        n->full++;
    else
        n->cancelled++;
    ++*j->moves;
    pthread_cond_broadcast(&q->moved);
}

/* Takes a job, or the first where j is NULL, out of those that wait; NULL: it does not wait, or
 * nobody does. The lock is held. */
static struct job *take(struct queue *q, const struct job *j)
{
    struct job **at = &q->head, *before = NULL, *found;

    while (*at != NULL && j != NULL && *at != j) {
        before = *at;
        at = &before->next;
    }
    if ((found = *at) == NULL)
        return NULL;
    *at = found->next;
    if (q->tail == found)
        q->tail = before;
    q->numbers.waiting--;
    return found;
}

/* The first that waits runs. The lock is held. */
static struct job *begin(struct queue *q)
{
    struct job *j = take(q, NULL);

    if (j != NULL) {
        j->next = q->running;
        q->running = j;
        q->numbers.running++;
        q->numbers.prompt_tokens += j->generation.prompt.n;
    }
    return j;
}

static enum ek_status next(void *user, bool wait, struct ek_generation **out)
{
    struct queue *q = user;
    struct job *j;

    pthread_mutex_lock(&q->lock);
    while ((j = *q->stop ? NULL : begin(q)) == NULL && wait && !*q->stop)
        wait_a_moment(q, &q->arrived);
    pthread_mutex_unlock(&q->lock);
    *out = j ? &j->generation : NULL;
    return EK_OK;
}

static void on_logits(void *user, size_t prompt, int32_t id, const float *logits)
{
    struct job *j = user;

    (void)prompt;
    score_row(logits, j->vocab, id, j->n_best, j->last);
}

/* One more. The lock is held. */
static enum ek_status add(struct job *j, int32_t id)
{
    size_t row = (1 + j->n_best) * sizeof(*j->scores);

    if (j->scored)
        EK_TRY(ek_grow((void **)&j->scores, &j->scores_cap, j->n + 1, row, ANSWER_MAX));
    EK_TRY(ek_grow((void **)&j->ids, &j->cap, j->n + 1, sizeof(*j->ids), ANSWER_MAX));
    if (j->scored)
        memcpy(j->scores + j->n * (1 + j->n_best), j->last, row);
    j->ids[j->n++] = id;
    return EK_OK;
}

static bool on_token(void *user, size_t prompt, int32_t id)
{
    struct job *j = user;
    struct queue *q = j->queue;
    bool on;

    (void)prompt;
    pthread_mutex_lock(&q->lock);
    on = !j->cancelled && !*q->stop;
    if (on)
        j->status = add(j, id);
    on = on && j->status == EK_OK;
    if (on) {
        if (j->n == 1) {
            j->first = ek_now_ns();
            q->numbers.first_tokens++;
            q->numbers.cached_tokens += j->generation.kept;
            q->numbers.first_token_s += (double)(j->first - j->since) * 1e-9;
        }
        q->numbers.tokens++;
        ++*j->moves;
        pthread_cond_broadcast(&q->moved);
    }
    pthread_mutex_unlock(&q->lock);
    return on;
}

static void leave_running(struct queue *q, struct job *j)
{
    struct job **at = &q->running;

    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
    q->numbers.running--;
}

static void ended(void *user, struct ek_generation *g)
{
    struct queue *q = user;
    struct job *j = g->opt.user;
    enum ek_status st;

    pthread_mutex_lock(&q->lock);
    leave_running(q, j);
    st = j->status;
    if (st == EK_OK && *q->stop && g->out.finish == EK_FINISH_CALLBACK)
        st = EK_EINTR;
    end(q, j, st);
    pthread_mutex_unlock(&q->lock);
}

/* Nobody is served any more. */
static void tell_all(struct queue *q, enum ek_status st)
{
    struct job *j;

    pthread_mutex_lock(&q->lock);
    q->failed = st == EK_OK ? EK_EINTR : st;
    snprintf(q->message, sizeof(q->message), "%s", st == EK_OK ? STOPPING : ek_last_error());
    while ((j = q->running) != NULL) {
        leave_running(q, j);
        end(q, j, q->failed);
    }
    while ((j = take(q, NULL)) != NULL)
        end(q, j, q->failed);
    pthread_mutex_unlock(&q->lock);
}

enum ek_status queue_run(struct queue *q, struct ek_engine *e)
{
    struct ek_generations from = {.next = next, .ended = ended, .user = q};
    enum ek_status st = ek_generate_stream(e, &from);

    tell_all(q, st);
    return st;
}

/* ---- The threads of clients -------------------------------------------------------------------
 */
void queue_put(struct queue *q, struct job *j)
{
    j->queue = q;
    j->next = NULL;
    j->since = ek_now_ns();
    j->generation.opt.on_token = on_token;
    j->generation.opt.on_logits = j->scored ? on_logits : NULL;
    j->generation.opt.user = j;
    pthread_mutex_lock(&q->lock);
    if (q->failed != EK_OK) {
        end(q, j, q->failed);
    } else {
        if (q->tail != NULL)
            q->tail->next = j;
        else
            q->head = j;
        q->tail = j;
        q->numbers.waiting++;
        pthread_cond_signal(&q->arrived);
    }
    pthread_mutex_unlock(&q->lock);
}

void queue_wait(struct queue *q, const uint64_t *moves, uint64_t *seen)
{
    pthread_mutex_lock(&q->lock);
    if (*moves == *seen)
        wait_a_moment(q, &q->moved);
    *seen = *moves;
    pthread_mutex_unlock(&q->lock);
}

bool queue_progress(struct queue *q, const struct job *j, size_t *n)
{
    bool over;

    pthread_mutex_lock(&q->lock);
    *n = j->n;
    over = j->ended;
    pthread_mutex_unlock(&q->lock);
    return over;
}

int32_t queue_token(struct queue *q, const struct job *j, size_t i, struct scored *scores)
{
    size_t row = 1 + j->n_best;
    int32_t id;

    pthread_mutex_lock(&q->lock); /* arrays may move as they grow */
    id = j->ids[i];
    if (j->scored)
        memcpy(scores, j->scores + i * row, row * sizeof(*scores));
    pthread_mutex_unlock(&q->lock);
    return id;
}

/* The lock is held. */
static void cancel(struct queue *q, struct job *j)
{
    j->cancelled = true;
    if (take(q, j) != NULL) {
        j->generation.out.finish = EK_FINISH_CALLBACK;
        end(q, j, EK_OK);
    }
}

void queue_cancel(struct queue *q, struct job *j, bool enough)
{
    pthread_mutex_lock(&q->lock);
    j->enough |= enough;
    cancel(q, j);
    pthread_mutex_unlock(&q->lock);
}

void queue_leave(struct queue *q, struct job *j)
{
    pthread_mutex_lock(&q->lock);
    cancel(q, j);
    while (!j->ended)
        wait_a_moment(q, &q->moved);
    pthread_mutex_unlock(&q->lock);
    free(j->generation.out.ids);
    free(j->ids);
    free(j->scores);
}

enum ek_status queue_reason(struct queue *q, const struct job *j)
{
    char message[sizeof(q->message)];

    pthread_mutex_lock(&q->lock);
    snprintf(message, sizeof(message), "%s", q->message);
    pthread_mutex_unlock(&q->lock);
    if (message[0] == '\0') /* it ended, the others did not */
        return ek_error(j->status, j->status == EK_EINTR ? STOPPING : "no memory for the answer");
    return ek_error(j->status, "%s", message);
}

struct queue_numbers queue_look(struct queue *q)
{
    struct queue_numbers n;

    pthread_mutex_lock(&q->lock);
    n = q->numbers;
    pthread_mutex_unlock(&q->lock);
    return n;
}
